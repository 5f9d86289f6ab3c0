"""The plotly helpers: arguments as notebooks give them."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from headscope.errors import InvalidInputError, UnknownNameError
from headscope.views.drawing.theme import PALETTE, plot_text, plot_title
from headscope.views.plots import bar, hist, imshow, line, scatter


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(go.Figure, "show", lambda self, **options: calls.append(options))
    return calls


@pytest.mark.parametrize(
    "draw",
    [
        lambda **o: imshow(torch.randn(2, 3), **o),
        lambda **o: line([1.0, 2.0], **o),
        lambda **o: bar([1.0, 2.0], **o),
        lambda **o: scatter([1.0], [2.0], **o),
        lambda **o: hist([1.0, 2.0], **o),
    ],
)
def test_a_figure_shows_at_once_or_is_returned(draw: Any, shown: list[dict[str, Any]]) -> None:
    assert draw(static=True, renderer="png") is None
    assert shown == [{"renderer": "png", "config": {"displaylogo": False, "staticPlot": True}}]
    figure = draw(return_fig=True, title="10.7", width=600, height=300)
    assert len(shown) == 1
    assert draw(draw=False) is not None and len(shown) == 1
    assert draw(draw=True, return_fig=True) is not None and len(shown) == 2
    assert (figure.layout.title.text, figure.layout.width, figure.layout.height) == ("10.7", 600, 300)


def test_imshow_is_centered_on_zero_with_blue_above() -> None:
    figure = imshow(torch.tensor([[1.0, -3.0]]), return_fig=True, labels={"x": "Head", "y": "Layer"}, border=True)
    assert figure is not None
    np.testing.assert_array_equal(figure.data[0].z, [[1.0, -3.0]])
    assert figure.layout.coloraxis.cmid == 0.0
    scale = figure.layout.coloraxis.colorscale
    assert scale[0][1] == "rgb(103,0,31)" and scale[-1][1] == "rgb(5,48,97)"  # RdBu's ends: red, blue
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("Head", "Layer")
    assert figure.layout.xaxis.mirror and figure.layout.yaxis.showline


@pytest.mark.parametrize(
    ("shape", "options", "height", "numbered"),
    [
        ((6, 12), {}, None, (1, 1)),
        ((30, 9), {}, 610, (1, 1)),  # room for the number of each layer
        ((30, 9), {"height": 300}, 300, (1, None)),
        ((32, 32), {}, 642, (None, 1)),
        ((3, 100), {}, None, (None, 1)),  # no number between two rows
        ((2000, 4), {}, 930, (1, None)),
        ((4, 30, 9), {"facet_col": 0, "facet_col_wrap": 2}, 1090, (1, 1)),
        ((6, 12), {"x": list(range(12)), "y": list("abcdef")}, None, (None, None)),
    ],
)
def test_rows_of_a_heat_map_have_room(
    shape: tuple[int, ...], options: dict[str, Any], height: int | None, numbered: tuple[int | None, int | None]
) -> None:
    layout = imshow(torch.zeros(shape), return_fig=True, **options).layout
    assert (layout.height, (layout.xaxis.dtick, layout.yaxis.dtick)) == (height, numbered)


def test_imshow_takes_limits_and_other_scales() -> None:
    figure = imshow(np.eye(2), zmin=-2.0, zmax=2.0, return_fig=True, color_continuous_scale="Blues", text_auto=True)
    assert figure is not None
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-2.0, 2.0)
    assert figure.layout.coloraxis.cmid is None
    assert figure.data[0].texttemplate


@pytest.mark.parametrize("facet_col", [0, 2, -1])
def test_facets_are_labeled_in_order(facet_col: int) -> None:
    values = torch.arange(2 * 2 * 2.0).view(2, 2, 2)
    figure = imshow(values, facet_col=facet_col, facet_labels=["zero", "mean"], return_fig=True)
    assert figure is not None
    assert [note.text for note in figure.layout.annotations] == ["zero", "mean"]
    for index, trace in enumerate(figure.data):
        np.testing.assert_array_equal(trace.z, values.select(facet_col, index).numpy())


def test_facets_that_wrap_keep_their_labels() -> None:
    values = torch.arange(5 * 4.0).view(5, 2, 2)
    figure = imshow(values, facet_col=0, facet_col_wrap=2, facet_labels=list("abcde"), return_fig=True)
    assert figure is not None
    # Where a title stands is where the map is that it names: the trace on the axes with that place across and up.
    for note in figure.layout.annotations:
        trace = figure.data["abcde".index(note.text)]
        axis = figure.layout[trace.xaxis.replace("x", "xaxis")].domain
        up = figure.layout[trace.yaxis.replace("y", "yaxis")].domain
        assert axis[0] <= note.x <= axis[1] and note.y == pytest.approx(up[1])
        np.testing.assert_array_equal(trace.z, values["abcde".index(note.text)])


def test_a_single_step_needs_no_slider() -> None:
    figure = imshow(torch.randn(1, 2, 2), animation_frame=0, animation_labels=["only"], return_fig=True)
    assert figure is not None and not figure.layout.sliders
    assert np.asarray(figure.data[0].z).shape == (2, 2)


def test_a_slider_moves_along_an_axis_with_labels() -> None:
    values = torch.randn(2, 3, 4, 5)
    figure = imshow(
        values,
        facet_col=0,
        facet_labels=["clean", "ablated"],
        animation_frame=1,
        animation_labels=["layer 0", "layer 1", "layer 2"],
        labels={"animation_frame": "up to"},
        return_fig=True,
    )
    assert figure is not None
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["layer 0", "layer 1", "layer 2"]
    assert slider.currentvalue.prefix == "up to: "
    assert [note.text for note in figure.layout.annotations] == ["clean", "ablated"]
    for at, frame in enumerate(figure.frames):
        assert slider.steps[at].args[0] == (frame.name,)
        for facet, trace in enumerate(frame.data):
            np.testing.assert_allclose(trace.z, values[facet, at])


def test_cells_may_hold_text() -> None:
    written = [["a", "b"], ["c", "d"]]
    figure = imshow(torch.eye(2), text=written, return_fig=True)
    assert figure is not None
    np.testing.assert_array_equal(figure.data[0].text, written)
    figure = imshow(torch.eye(2).expand(2, 2, 2), facet_col=2, text=[written, written], return_fig=True)
    assert figure is not None
    np.testing.assert_array_equal(figure.data[1].text, [["b", "d"], ["b", "d"]])


def test_options_of_an_axis_are_for_every_facet() -> None:
    figure = imshow(torch.rand(2, 2, 2), facet_col=0, xaxis_tickangle=45, margin=5, return_fig=True)
    assert figure is not None
    assert figure.layout.xaxis.tickangle == figure.layout.xaxis2.tickangle == 45
    assert figure.layout.margin.t == figure.layout.margin.l == 5


def test_two_lines_may_have_two_axes() -> None:
    figure = line(
        [[1.0, 2.0], [100.0, 50.0]],
        names=["loss", "accuracy"],
        use_secondary_yaxis=True,
        labels={"x": "epoch", "y1": "nats", "y2": "percent"},
        return_fig=True,
    )
    assert figure is not None
    assert [(trace.name, trace.yaxis) for trace in figure.data] == [("loss", "y"), ("accuracy", "y2")]
    assert (figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text) == ("nats", "percent")
    assert figure.layout.yaxis2.side == "right" and figure.layout.yaxis2.overlaying == "y"


def test_bars_of_several_kinds_stand_side_by_side() -> None:
    x = ["10.7", "11.10"]
    figure = bar(torch.tensor([[1.0, -2.0], [0.5, 0.0]]), x=x, names=["zero", "mean"], return_fig=True)
    assert figure is not None
    assert [(trace.name, list(trace.y)) for trace in figure.data] == [("zero", [1.0, -2.0]), ("mean", [0.5, 0.0])]
    assert list(figure.data[0].x) == x and figure.layout.barmode == "group"


@pytest.mark.parametrize("draw", [line, bar])
def test_labels_may_be_called_as_in_data_frames(draw: Any) -> None:
    labels = {"index": "layer", "value": "nats", "variable": "head"}
    figure = draw(torch.rand(2, 3), x=torch.arange(3), labels=labels, return_fig=True)
    layout = figure.layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text, layout.legend.title.text) == ("layer", "nats", "head")
    assert list(figure.data[0].x) == [0, 1, 2]


@pytest.mark.parametrize("draw", [line, bar])
def test_words_are_places_of_their_own(draw: Any) -> None:
    words = ["10.7", " the", "2019", " the", " the"]
    figure = draw([1.0, 2.0, 3.0, 4.0, 5.0], x=words, return_fig=True)
    assert [place.rstrip("\u200b") for place in figure.data[0].x] == words
    assert len(set(figure.data[0].x)) == 5 and figure.layout.xaxis.type == "category"


def test_tokens_that_come_again_keep_their_rows_and_columns() -> None:
    figure = imshow(torch.rand(2, 3, 3), facet_col=0, x=["2", "5", "2"], y=["2", "5", "2"], return_fig=True)
    assert figure is not None
    assert len(set(figure.data[1].x)) == len(set(figure.data[1].y)) == 3
    assert figure.layout.xaxis2.type == figure.layout.yaxis.type == "category"
    numbered = imshow(torch.eye(3), y=[0, 1, 2], return_fig=True)
    assert numbered is not None and numbered.layout.yaxis.type is None


@pytest.mark.parametrize("draw", [line, bar, hist])
def test_series_have_the_houses_colors(draw: Any) -> None:
    figure = draw([[1.0, 2.0], [2.0, 3.0]], return_fig=True)
    used = [trace.line.color if trace.type == "scatter" else trace.marker.color for trace in figure.data]
    assert tuple(used) == PALETTE[:2]
    assert figure.layout.template.layout.paper_bgcolor == "white"


def test_the_color_of_points_is_named() -> None:
    figure = scatter([1, 2], [3, 4], color=torch.tensor([0.1, 0.2]), caxis="layer", xaxis="a", return_fig=True)
    assert figure is not None
    assert figure.layout.coloraxis.colorbar.title.text == "layer"


def test_axis_names_may_come_as_strings() -> None:
    figure = imshow(np.eye(2), xaxis="Head", yaxis="Layer", return_fig=True)
    assert figure is not None
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("Head", "Layer")


def test_lines_may_differ_in_length() -> None:
    figure = line([torch.tensor([1.0, 2.0, 3.0]), [5.0]], names=["attn", "mlp"], return_fig=True)
    assert figure is not None
    assert [(trace.name, list(trace.y)) for trace in figure.data] == [("attn", [1.0, 2.0, 3.0]), ("mlp", [5.0])]


def test_one_line_has_its_own_x() -> None:
    figure = line(torch.tensor([3.0, 4.0]), x=["a", "b"], return_fig=True, labels={"y": "nats"})
    assert figure is not None
    (trace,) = figure.data
    assert (list(trace.x), list(trace.y), figure.layout.yaxis.title.text) == (["a", "b"], [3.0, 4.0], "nats")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("y=x", (1.0, 1.0, 4.0, 4.0)),
        ("x=y", (1.0, 1.0, 4.0, 4.0)),
        ("y = 2", (0, 2.0, 1, 2.0)),
        ("x=-1.5", (-1.5, 0, -1.5, 1)),
    ],
)
def test_a_scatter_may_have_a_line(text: str, ends: tuple[float, ...]) -> None:
    figure = scatter(torch.tensor([1.0, 2.0]), np.array([3.0, 4.0]), add_line=text, return_fig=True)
    assert figure is not None
    (shape,) = figure.layout.shapes
    assert (shape.x0, shape.y0, shape.x1, shape.y1) == ends


def test_texts_of_a_scatter_stand_above_its_points() -> None:
    figure = scatter([1.0, 2.0], [3.0, 4.0], text=["0.0", "0.1"], return_fig=True)
    assert figure is not None
    (points,) = figure.data
    assert (list(points.text), points.textposition) == (["0.0", "0.1"], "top center")


def test_a_histogram_leaves_out_nan_and_marks_means() -> None:
    figure = hist([[1.0, float("nan"), 3.0], [5.0]], names=["a", "b"], add_mean_line=True, return_fig=True)
    assert figure is not None
    assert [list(trace.x) for trace in figure.data] == [[1.0, 3.0], [5.0]]
    assert [shape.x0 for shape in figure.layout.shapes] == [2.0, 5.0]


def test_options_of_the_layout_are_passed_on() -> None:
    figure = line([1.0, 2.0], return_fig=True, showlegend=False, xaxis_tickangle=-45, hovermode="x unified", log_y=True)
    assert figure is not None
    assert (figure.layout.showlegend, figure.layout.xaxis.tickangle, figure.layout.yaxis.type) == (False, -45, "log")


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: imshow(np.eye(2), zmox=1.0, return_fig=True), UnknownNameError, "Unknown option 'zmox'"),
        (lambda: imshow(np.zeros(3)), InvalidInputError, r"shape \[3\]; imshow takes two axes"),
        (lambda: imshow(np.zeros((2, 2, 2))), InvalidInputError, "three with facet_col"),
        (lambda: imshow(np.zeros((2, 2, 2)), facet_col=0, facet_labels=["a"]), InvalidInputError, "must be 2 labels"),
        (lambda: imshow(np.zeros((2, 2, 2)), facet_col=3), InvalidInputError, "facet_col is 3"),
        (lambda: imshow(np.zeros((2, 2, 2)), facet_col=0, animation_frame=0), InvalidInputError, "four with both"),
        (lambda: imshow(np.eye(2), text=["a"]), InvalidInputError, "text must be strings nested"),
        (
            lambda: imshow(np.zeros((2, 2, 2)), animation_frame=0, animation_labels=["a"]),
            InvalidInputError,
            "animation_labels must be 2",
        ),
        (lambda: line([1.0, 2.0], use_secondary_yaxis=True), InvalidInputError, "takes two lines"),
        (lambda: bar([1.0, 2.0], names=["a", "b"]), InvalidInputError, "names must be 1"),
        (lambda: imshow(["a"]), InvalidInputError, "tensor must be numbers"),
        (lambda: line([1.0, 2.0], x=[1]), InvalidInputError, "2 values, and x 1"),
        (lambda: line([1.0, 2.0], names=["a", "b"]), InvalidInputError, "names must be 1"),
        (lambda: scatter([1.0], [1.0, 2.0]), InvalidInputError, "x has 1 numbers, and y has 2"),
        (lambda: scatter([1.0], [1.0], add_line="z=3"), InvalidInputError, "add_line must be"),
        (lambda: scatter([1.0], [1.0], add_line="y=up"), InvalidInputError, "add_line must be"),
    ],
)
def test_what_does_not_fit_is_told(draw: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw()


def test_a_long_name_of_the_data_is_cut() -> None:
    assert plot_title("Loss", "x" * 110)["subtitle"]["text"] == "on " + "x" * 110
    assert plot_title("Loss", "x" * 111)["subtitle"]["text"] == "on " + "x" * 109 + "…"
    assert plot_title("Loss", "")["subtitle"]["text"] == ""


def test_text_is_not_markup() -> None:
    assert plot_text("<b>a & b</b>\n\ud83d") == "&lt;b&gt;a &amp; b&lt;/b&gt; ?"
