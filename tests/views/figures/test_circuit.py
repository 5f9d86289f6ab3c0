"""The picture of a circuit, read back from its traces."""

import pytest
import torch

from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.core.result import RunInfo
from headscope.errors import InvalidInputError
from headscope.views.figures.circuit import circuit_picture


def circuit(**fields) -> Circuit:
    values = {
        "info": RunInfo("small", (), "a <story>", 4, 40),
        "edges": torch.tensor([[3, 4], [1, 3], [0, 1], [2, 4], [0, 3]]),
        "effects": torch.tensor([4.0, 3.0, -2.0, -1.0, 0.5]),
        "errors": torch.tensor([0.1, 0.1, 0.2, 0.1, 0.1]),
        "layers": torch.tensor([0, 1, 1, 2, 3]),
        "nodes": ("0.1", "1.0", "mlp1", "2.2", "final"),
        "groups": ("duplicate_token", "s_inhibition", "MLP", "name_mover", "final"),
        "inputs": ("", "q", "v", "", "k"),
        "threshold": 0.4, "clean": 5.0, "corrupted": -5.0, "left_out": ("0.1",),
        "has_answers": True,
    }  # fmt: skip
    return Circuit(**{**values, **fields})


def lines(figure):
    return [trace for trace in figure.data if trace.mode == "lines"]


def hovers(figure):
    return [trace.text[0] for trace in figure.data if trace.mode == "markers"]


def test_paths_are_as_wide_as_their_effects_and_colored_by_sign():
    figure = circuit_picture(circuit())
    drawn = lines(figure)[::-1]  # the strongest are drawn last
    widths = [trace.line.width for trace in drawn]
    assert widths == sorted(widths, reverse=True)
    assert widths[1] / widths[0] == pytest.approx(3 / 4) and widths[2] / widths[0] == pytest.approx(2 / 4)
    assert [trace.line.color for trace in drawn] == ["rgb(67,147,195)"] * 2 + ["rgb(214,96,77)"] * 2 + [
        "rgb(67,147,195)"
    ]
    assert [trace.line.dash for trace in drawn] == ["solid", "solid", "solid", "solid", "dash"]


def test_pointing_at_a_path_tells_its_numbers():
    found = hovers(circuit_picture(circuit()))[::-1]
    assert found[0] == "2.2 → final<br>+4.000 ± 0.100 logits<br>+40.0% of what corrupting changes"
    assert found[1].startswith("1.0 → 2.2 (q)<br>+3.000 ± 0.100")


def test_nodes_stand_in_their_layers_grouped_by_kind():
    figure = circuit_picture(circuit())
    nodes = {trace.name: trace for trace in figure.data if trace.showlegend}
    assert set(nodes) == {"duplicate token", "S-inhibition", "MLP", "name mover", "final"}
    assert nodes["duplicate token"].y[0] == 0 and nodes["name mover"].y[0] == 2 and nodes["final"].y[0] == 3
    assert 1 < nodes["MLP"].y[0] < 2 and nodes["MLP"].text == ("M1",) and nodes["final"].text == ("logits",)
    assert "from 1.0 (q): +3.000 logits" in nodes["name mover"].customdata[0]
    assert "not searched" in nodes["duplicate token"].customdata[0]
    assert list(figure.layout.yaxis.ticktext) == ["layer 0", "layer 1", "layer 2", "answer"]
    assert "&lt;story&gt;" in figure.layout.title.subtitle.text


def test_every_path_ends_at_its_nodes_and_no_two_coincide():
    figure = circuit_picture(circuit())
    nodes = {}
    for trace in figure.data:
        if trace.showlegend:
            nodes |= dict(zip(trace.text, zip(trace.x, trace.y, strict=True), strict=True))
    drawn = lines(figure)[::-1]
    for trace, (start, end) in zip(drawn, [("2.2", "logits"), ("1.0", "2.2"), ("0.1", "1.0")], strict=False):
        assert (trace.x[0], trace.y[0]) == pytest.approx(nodes[start])
        assert (trace.x[-1], trace.y[-1]) == pytest.approx(nodes[end])
    assert len(set(nodes.values())) == len(nodes)


def test_only_so_many_paths_are_drawn():
    figure = circuit_picture(circuit(), k=2)
    assert len(lines(figure)) == 2
    assert {trace.name for trace in figure.data if trace.showlegend} == {"S-inhibition", "name mover", "final"}


def test_nothing_to_draw():
    nothing = circuit(
        edges=torch.empty(0, 2, dtype=torch.long), effects=torch.empty(0), errors=torch.empty(0), inputs=()
    )
    with pytest.raises(InvalidInputError, match="has no path"):
        circuit_picture(nothing)
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        circuit_picture(circuit(), k=0)


def test_layers_far_apart_stand_close_and_paths_stay_on_the_figure():
    figure = circuit_picture(circuit(layers=torch.tensor([1, 12, 12, 27, 30])))
    axis, drawn = figure.layout.yaxis, lines(figure)
    assert list(axis.ticktext) == ["layer 1", "layer 12", "layer 27", "answer"] and list(axis.tickvals) == [0, 1, 2, 3]
    low, high = figure.layout.xaxis.range
    assert all(low <= min(path.x) and max(path.x) <= high for path in drawn)
    # One node in each of 31 layers, and a path from the first to the last.
    n = 31
    deep = circuit(
        edges=torch.tensor([[at, at + 1] for at in range(n)] + [[0, n - 1], [0, n]]), effects=torch.ones(n + 2),
        errors=torch.ones(n + 2), layers=torch.arange(n + 1), nodes=(*(f"{at}.0" for at in range(n)), "final"),
        groups=("head",) * n + ("final",), inputs=("q",) * (n + 1) + ("",), left_out=(),
    )  # fmt: skip
    figure = circuit_picture(deep)
    assert (figure.layout.height - 150) / (n + 1) > 40, "nodes are 34 pixels wide"
    assert all(low <= min(path.x) and max(path.x) <= high for path in lines(figure))
