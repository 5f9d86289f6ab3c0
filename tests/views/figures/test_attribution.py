"""Figures of attributions, read back from their traces."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from headscope.analysis.core.result import RunInfo
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.errors import InvalidInputError
from headscope.views.figures import attribution as views
from headscope.views.figures.attribution import (
    attribution_by_component,
    attribution_by_head,
    attribution_by_layer,
    attribution_by_source,
)

LAYERS, HEADS, PROMPTS = 2, 3, 4
TOKENS = ("<bos>", "<b>Tom", " saw\n", " Tom", "<bos>", " Ann", " ran")


def result(*, mlps: bool = True, sources: bool = True) -> Attribution:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    parts = []
    for layer in range(LAYERS):
        parts += [*(f"{layer}.{head}" for head in range(HEADS)), f"b_O {layer}", *([f"mlp{layer}"] if mlps else [])]
    labels = ("embed", "pos_embed", *parts, "final bias")
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]] * 2)
    return Attribution(
        info=RunInfo("small", (), "a <story>", PROMPTS, PROMPTS),
        logit_difference=drawn(PROMPTS),
        accumulated=drawn(PROMPTS, 5),
        components=drawn(PROMPTS, len(labels)),
        sources=drawn(PROMPTS, LAYERS, HEADS, 4) * mask[:, None, None] if sources else None,
        neurons=None,
        tokens=torch.zeros(PROMPTS, 4, dtype=torch.long),
        attention_mask=mask,
        positions=mask.sum(1) - 1,
        word_positions=torch.empty(0, PROMPTS, dtype=torch.long),
        state_labels=("0_pre", "0_mid", "1_pre", "1_mid", "final"),
        component_labels=labels,
        token_strings=TOKENS * 2,
        labels=("", "one", "", ""),
        word_names=(),
        n_heads=HEADS,
    )


def test_a_line_follows_the_stream_in_a_band_of_its_spread() -> None:
    measured = result()
    figure = attribution_by_layer(measured)
    band, line = figure.data
    means, spread = measured.accumulated.double().mean(0), measured.accumulated.double().std(0, correction=0)
    np.testing.assert_allclose(line.y, means, rtol=1e-6)
    np.testing.assert_allclose(band.y, [*(means + spread), *reversed((means - spread).tolist())], rtol=1e-6)
    assert tuple(line.x) == measured.state_labels == tuple(band.x[:5])
    assert tuple(band.x[5:]) == measured.state_labels[::-1]
    assert figure.layout.title.subtitle.text == "on a &lt;story&gt;"
    (alone,) = attribution_by_layer(measured, prompt=1).data
    np.testing.assert_allclose(alone.y, measured.accumulated[1], rtol=1e-6)
    (only,) = attribution_by_layer(measured.only("one")).data
    np.testing.assert_allclose(only.y, alone.y)


@pytest.mark.parametrize("prompt", [None, 2])
def test_bars_show_the_largest_components_and_the_rest_together(prompt: int | None) -> None:
    measured = result()
    values = measured.components.mean(0) if prompt is None else measured.components[prompt]
    expected = dict(zip(measured.component_labels, values.tolist(), strict=True))
    (bars,) = attribution_by_component(measured, k=None, prompt=prompt).data
    assert tuple(bars.x) == measured.component_labels
    np.testing.assert_allclose(bars.y, list(expected.values()), rtol=1e-5)
    (some,) = attribution_by_component(measured, k=4, prompt=prompt).data
    ordered = sorted(expected, key=lambda label: -abs(expected[label]))
    assert list(some.x) == [*ordered[:4], f"{len(expected) - 4} others"]
    assert float(some.y[-1]) == pytest.approx(sum(expected[label] for label in ordered[4:]), abs=1e-5)
    assert float(np.sum(some.y)) == pytest.approx(sum(expected.values()), abs=1e-5)
    assert [color == views.PALETTE[0] for color in some.marker.color] == [value >= 0 for value in some.y]


@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize("has", [False, True])
def test_the_map_has_layers_down_and_heads_across(mlps: bool, has: bool) -> None:
    measured = result(mlps=has)
    figure = attribution_by_head(measured, mlps=mlps)
    (heat,) = figure.data
    columns = ["0", "1", "2", *(["MLP"] if mlps and has else [])]
    assert list(heat.x) == columns and list(heat.y) == ["0", "1"]
    for layer in range(LAYERS):
        for column, name in enumerate(columns):
            label = f"mlp{layer}" if name == "MLP" else f"{layer}.{name}"
            at = measured.component_labels.index(label)
            assert float(heat.z[layer][column]) == pytest.approx(float(measured.components[:, at].mean()), abs=1e-6)
            assert heat.customdata[layer][column] == label
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    one = attribution_by_head(measured, prompt=-1).data[0]
    np.testing.assert_allclose(one.z, measured.heads[-1], rtol=1e-6)


def test_sources_stand_over_the_tokens_of_their_prompt() -> None:
    measured = result()
    figure = attribution_by_source(measured, prompt=1, heads=[(1, 2), (0, 0)])
    (heat,) = figure.data
    assert measured.sources is not None and list(heat.y) == ["1.2", "0.0"]
    np.testing.assert_allclose(heat.z, torch.stack([measured.sources[1, 1, 2, :3], measured.sources[1, 0, 0, :3]]))
    assert list(figure.layout.xaxis.ticktext) == ["&lt;bos&gt;", " Ann", " ran"]
    assert list(heat.customdata[1]) == [f"{at} {token}" for at, token in enumerate(figure.layout.xaxis.ticktext)]
    marked = attribution_by_source(measured, prompt=0).layout.xaxis.ticktext
    assert list(marked) == ["&lt;bos&gt;", "&lt;b&gt;Tom", " saw\\n", " Tom"]
    strongest = attribution_by_source(measured, prompt=2, k=2).data[0]
    order = measured.heads[2].abs().flatten().argsort(descending=True)[:2].tolist()
    assert list(strongest.y) == [f"{index // HEADS}.{index % HEADS}" for index in order]
    assert len(attribution_by_source(measured, k=99).data[0].y) == LAYERS * HEADS
    nothing = dataclasses.replace(measured, sources=torch.zeros_like(measured.sources))
    assert attribution_by_source(nothing).layout.coloraxis.cmax == 1.0


def test_figures_can_be_written() -> None:
    measured = result()
    for draw in (attribution_by_layer, attribution_by_component, attribution_by_head, attribution_by_source):
        html = draw(measured).to_html(include_plotlyjs=False)  # type: ignore[operator]
        assert "<story>" not in html and "logit" in html


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: attribution_by_layer(r, prompt=4), "prompt must be from 0 to 3; got 4"),
        (lambda r: attribution_by_head(r, prompt=-5), "got -5"),
        (lambda r: attribution_by_component(r, k=0), "k must be at least 1"),
        (lambda r: attribution_by_source(r, k=0), "k must be at least 1"),
        (lambda r: attribution_by_source(r, prompt=9), "from 0 to 3; got 9"),
        (lambda r: attribution_by_source(r, heads=[(2, 0)]), "head 2.0 does not exist: layers are 0 to 1"),
        (lambda r: attribution_by_source(r, heads=[(0, -1)]), "heads 0 to 2"),
        (lambda _: attribution_by_source(result(sources=False)), "sources=False"),
    ],
)
def test_what_cannot_be_drawn_is_told(draw, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidInputError, match=message):
        draw(result())


def test_every_view_takes_a_result_first() -> None:
    for name in views.__all__:
        assert next(iter(inspect.signature(getattr(views, name)).parameters)) == "result"
