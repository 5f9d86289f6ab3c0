"""Figure of a `Circuit`: nodes by layer, paths as wide as their effect."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from headscope.analysis.circuits.circuit_result import FINAL, Circuit
from headscope.errors import InvalidInputError
from headscope.views.drawing.theme import PALETTE, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["circuit_picture"]

_HELPS, _HARMS = "rgb(67,147,195)", "rgb(214,96,77)"
_WIDEST = 9.0
_LONGEST_BEND = 5.0
_BENDS = {"q": -0.3, "k": 0.3, "v": 0.1, "": 0.1}
_DASHES = {"q": "solid", "k": "dash", "v": "solid", "": "solid"}
_COLORS = {
    "previous_token": PALETTE[5],
    "duplicate_token": "#c2448b",
    "induction": PALETTE[4],
    "copy_suppression": "#8c3b2f",
    "name_mover": PALETTE[0],
    "negative_name_mover": PALETTE[1],
    "name_copier": "#3fa7c4",
    "subject_suppressor": PALETTE[3],
    "s_inhibition": PALETTE[2],
    "backup_name_mover": "#7fb0dd",
}
_PLAIN = "rgb(160,160,160)"


def circuit_picture(circuit: Circuit, *, k: int = 40) -> "go.Figure":
    """Draw a circuit from the first layer (below) to the answer (above).

    A path's width is its effect: the drop of the metric when only this path is corrupted. Blue paths support
    the correct answer, red ones work against it; paths into keys are dashed. Hover over the middle of a path, or over a
    node, for its numbers.

    Args:
        circuit: Result of `find_circuit`.
        k: Number of paths to draw, strongest first.

    Raises:
        InvalidInputError: If `k` is below 1, or there is no path to draw.

    Example:
        >>> import torch
        >>> from headscope.analysis.core.result import RunInfo
        >>> circuit = Circuit(
        ...     RunInfo("tiny", (), "two prompts", 2, 10),
        ...     edges=torch.tensor([[0, 1]]), effects=torch.tensor([2.0]), errors=torch.tensor([0.1]),
        ...     layers=torch.tensor([0, 1]), nodes=("0.1", "final"), groups=("name_mover", "final"), inputs=("",),
        ...     threshold=0.1, clean=2.0, corrupted=0.0, left_out=(),
        ... )
        >>> [trace.name for trace in circuit_picture(circuit).data if trace.showlegend]
        ['name mover', 'final']
    """
    import plotly.graph_objects as go

    if k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    if not circuit.inputs:
        least = f"{circuit.threshold:.3f} {circuit.unit}".rstrip()
        raise InvalidInputError(f"the circuit has no path: none has an effect of {least} or more.")
    shown = list(range(min(k, len(circuit.inputs))))
    ends = circuit.edges.tolist()
    used = sorted({end for number in shown for end in ends[number]})
    rows = {layer: row for row, layer in enumerate(sorted({int(circuit.layers[node]) for node in used}))}
    places = _places(circuit, used, rows)
    figure = go.Figure()
    # Drawn last, the strongest are on top.
    for trace in _paths(circuit, shown[::-1], places):
        figure.add_trace(trace)
    for group in dict.fromkeys(circuit.groups[node] for node in used):
        figure.add_trace(_nodes(circuit, group, [node for node in used if circuit.groups[node] == group], places))
    n_layers = int(circuit.layers.max())
    names = {-1: "embedding", n_layers: "answer"} | {layer: f"layer {layer}" for layer in range(n_layers)}
    figure.update_xaxes(visible=False, range=[-1.15, 1.15])
    figure.update_yaxes(
        tickvals=list(rows.values()), ticktext=[names[layer] for layer in rows], showgrid=False, zeroline=False,
        range=[-0.6, len(rows) - 0.4],
    )  # fmt: skip
    return styled(
        figure,
        "Paths that carry the task",
        circuit.info.data,
        height=max(380, 150 + len(rows) * min(95, max(52, 800 // len(rows)))),
        margin={"t": 96},
        legend={"orientation": "h", "y": -0.05},
        hovermode="closest",
    )


def _places(circuit: Circuit, used: list[int], rows: dict[int, int]) -> dict[int, tuple[float, float]]:
    """Place layers upwards, with heads side by side, grouped by type, and the MLP to their right, slightly higher.

    Layers without a node take no room. Neighboring ones are shifted sideways, so that paths across several layers do
    not run behind nodes.
    """
    places: dict[int, tuple[float, float]] = {}
    for layer, row in rows.items():
        here = [node for node in used if int(circuit.layers[node]) == layer]
        heads = sorted(
            (node for node in here if circuit.groups[node] != "MLP"), key=lambda at: (circuit.groups[at], at)
        )
        shift = 0.08 * (row % 3 - 1)
        for at, node in enumerate(heads):
            across = -0.25 if len(heads) == 1 else -0.85 + 1.2 * at / (len(heads) - 1)
            places[node] = (0.0, float(row)) if circuit.nodes[node] == FINAL else (across + shift, float(row))
        for node in here:
            if circuit.groups[node] == "MLP":
                places[node] = (0.8 + shift, row + 0.3)
    return places


def _paths(circuit: Circuit, shown: list[int], places: dict[int, tuple[float, float]]) -> Iterator[Any]:
    import plotly.graph_objects as go

    widest = float(circuit.effects.abs().max())
    gap = circuit.clean - circuit.corrupted
    for number in shown:
        sender, receiver = circuit.edges[number].tolist()
        effect, error, read = float(circuit.effects[number]), float(circuit.errors[number]), circuit.inputs[number]
        xs, ys = _curve(places[sender], places[receiver], _BENDS[read])
        into = circuit.nodes[receiver] + (f" ({read})" if read else "")
        text = f"{circuit.nodes[sender]} → {into}<br>{effect:+.3f} ± {error:.3f} {circuit.unit}".rstrip()
        text += f"<br>{effect / gap:+.1%} of what corrupting changes"
        color = _HELPS if effect > 0 else _HARMS
        line = {"width": max(1.0, _WIDEST * abs(effect) / widest), "color": color, "dash": _DASHES[read]}
        yield go.Scatter(x=xs, y=ys, mode="lines", line=line, opacity=0.55, hoverinfo="skip", showlegend=False)
        # Lines have no hover text between their points: invisible markers around the middle show it.
        middle = slice(4, -4, 3)
        yield go.Scatter(
            x=xs[middle],
            y=ys[middle],
            mode="markers",
            marker={"size": 9, "opacity": 0.0, "color": color},
            text=[text] * len(xs[middle]),
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )


def _curve(start: tuple[float, float], end: tuple[float, float], bend: float) -> tuple[list[float], list[float]]:
    """Points of a quadratic curve, bent sideways by a share of its length, within the figure."""
    (x0, y0), (x1, y1) = start, end
    length = min(_LONGEST_BEND, math.hypot(x1 - x0, y1 - y0))
    middle = ((x0 + x1) / 2 + bend * length * 0.5, (y0 + y1) / 2)
    steps = [step / 20 for step in range(21)]
    xs = [(1 - t) ** 2 * x0 + 2 * t * (1 - t) * middle[0] + t**2 * x1 for t in steps]
    ys = [(1 - t) ** 2 * y0 + 2 * t * (1 - t) * middle[1] + t**2 * y1 for t in steps]
    return xs, ys


def _nodes(circuit: Circuit, group: str, nodes: list[int], places: dict[int, tuple[float, float]]) -> Any:
    import plotly.graph_objects as go

    words = {"head": "other head"}.get(group, group.replace("_", " ").replace("s inhibition", "S-inhibition"))
    texts = []
    for node in nodes:
        lines = [f"<b>{circuit.nodes[node]}</b>, {words}"]
        for number in circuit.into(circuit.nodes[node])[:6]:
            sender = circuit.nodes[int(circuit.edges[number, 0])]
            read = f" ({circuit.inputs[number]})" if circuit.inputs[number] else ""
            lines.append(f"from {sender}{read}: {float(circuit.effects[number]):+.3f} {circuit.unit}".rstrip())
        if circuit.nodes[node] in circuit.left_out:
            lines.append("paths into it were not searched")
        texts.append("<br>".join(lines))
    return go.Scatter(
        x=[places[node][0] for node in nodes],
        y=[places[node][1] for node in nodes],
        mode="markers+text",
        marker={
            "size": 34,
            "symbol": "square" if group == "MLP" else ("diamond" if group == FINAL else "circle"),
            "color": _COLORS.get(group, _PLAIN),
            "line": {"width": 1.5, "color": "white"},
        },
        text=["logits" if circuit.nodes[node] == FINAL else circuit.nodes[node].replace("mlp", "M") for node in nodes],
        textfont={"color": "white", "size": 11},
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        name=words,
        showlegend=True,
    )
