"""Figures of patching, read back from their traces."""

import dataclasses

import numpy as np
import pytest
import torch

from headscope.analysis.core.result import RunInfo
from headscope.analysis.patching.result import PatchingResult
from headscope.errors import InvalidInputError, UnknownNameError
from headscope.views.figures.patching import patching_by_head, patching_by_head_and_position, patching_by_position

LAYERS, HEADS, GROUPS = 2, 4, 2
TOKENS = ("<bos>", "<b>Tom", " saw\n", " Tom")
SIZES = {"layer": LAYERS, "head": HEADS, "pos": len(TOKENS)}


def result(axes: dict[str, str], direction: str = "denoising") -> PatchingResult:
    n = 0
    for site, names in axes.items():
        sizes = {**SIZES, "head": GROUPS if site in ("k", "v") else HEADS}
        n += int(np.prod([sizes[name] for name in names.split()]))
    return PatchingResult(
        info=RunInfo("small", (), "a <story>", 3, 3),
        values=torch.randn(n, generator=torch.Generator().manual_seed(0)),
        sites=tuple(axes),
        axes=tuple(axes.values()),
        positions=(0, 1, 2, 3),
        position_labels=TOKENS,
        n_layers=LAYERS,
        n_heads=HEADS,
        n_key_value_heads=GROUPS,
        direction=direction,
        unit="the share",
        clean=2.0,
        corrupted=-1.0,
    )


def test_maps_by_position_have_the_prompt_on_their_axis() -> None:
    found = result({"resid_pre": "layer pos", "z": "layer head", "attn_out": "layer pos"})
    figure = patching_by_position(found)
    assert [each.text for each in figure.layout.annotations] == ["resid_pre", "attn_out"]
    for trace, site in zip(figure.data, ("resid_pre", "attn_out"), strict=True):
        np.testing.assert_allclose(trace.z, found[site])
        assert trace.customdata[0][3] == "3  Tom" and len(trace.customdata) == LAYERS
    ticks = figure.layout.xaxis2.ticktext
    assert ticks[1] == "&lt;b&gt;Tom" and ticks[2] == " saw\\n"
    scale = figure.layout.coloraxis
    widest = max(float(found[site].abs().max()) for site in ("resid_pre", "attn_out"))
    assert scale.cmax == -scale.cmin == pytest.approx(widest)
    assert figure.layout.yaxis.autorange == "reversed"
    assert "&lt;story&gt;" in figure.layout.title.subtitle.text and "restored" in figure.layout.title.text
    assert len(patching_by_position(found, sites=["attn_out"]).data) == 1
    assert "destroyed" in patching_by_position(result({"mlp_out": "layer pos"}, "noising")).layout.title.text


def test_maps_by_head_leave_out_what_is_shared() -> None:
    found = result({"z": "layer head", "k": "layer head"})
    z, k = patching_by_head(found).data
    np.testing.assert_allclose(z.z, found["z"])
    np.testing.assert_allclose(k.z[:, :GROUPS], found["k"])
    assert np.isnan(k.z[:, GROUPS:]).all()


@pytest.mark.parametrize(("site", "axes"), [("z", "layer pos head"), ("pattern", "layer head pos")])
def test_heads_with_the_largest_effects_by_position(site: str, axes: str) -> None:
    found = result({site: axes})
    [trace] = patching_by_head_and_position(found, site, k=3).data
    values = found[site] if site == "pattern" else found[site].transpose(1, 2)
    strongest = values.abs().amax(-1).flatten().sort(descending=True).values[:3]
    np.testing.assert_allclose(np.sort(np.abs(trace.z).max(1))[::-1], strongest)
    for name, row in zip(trace.y, trace.z, strict=True):
        layer, head = map(int, name.split("."))
        np.testing.assert_allclose(row, values[layer, head])


def judged(found: PatchingResult, n: int = 10) -> PatchingResult:
    """The same with prompts of which every third cell alone is sure."""
    noise = torch.randn(n, len(found.values), generator=torch.Generator().manual_seed(1))
    noise[:, 1::3] = 5 + 0.1 * noise[:, 1::3]
    noise[:, 2::3] = 0
    return dataclasses.replace(found, per_prompt=noise, values=noise.mean(0))


@pytest.mark.parametrize("kind", ["position", "head", "both"])
def test_cells_that_do_not_stand_out_are_hatched(kind: str) -> None:
    axes = {"position": {"resid_pre": "layer pos", "attn_out": "layer pos"}, "both": {"z": "layer pos head"}}
    found = judged(result(axes.get(kind, {"z": "layer head", "k": "layer head"})))
    draw = {"position": patching_by_position, "head": patching_by_head}
    figure = draw[kind](found) if kind in draw else patching_by_head_and_position(found, "z", k=8)
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    strokes = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(heats) == len(strokes) == len(found.sites) and [each.showlegend for each in strokes][0]
    assert sum(each.showlegend for each in strokes) == 1 and found.rule() in strokes[0].name
    drawn = 0
    for heat, hatch in zip(heats, strokes, strict=True):
        hatched = set(zip(map(str, hatch.x), map(str, hatch.y), strict=True))
        for row, label in enumerate(heat.y):
            for column, name in enumerate(heat.x):
                value = heat.z[row][column]
                if np.isnan(value):
                    assert (str(name), str(label)) not in hatched
                    continue
                # Sure cells are near 5, the others far from it.
                assert ((str(name), str(label)) in hatched) == (abs(value - 5) > 1), (name, label)
                drawn += 1
    assert drawn == len(found.values)


def test_few_prompts_hatch_nothing() -> None:
    found = judged(result({"z": "layer head"}), n=5)
    assert found.has_rows and [trace.type for trace in patching_by_head(found).data] == ["heatmap"]


def test_what_cannot_be_drawn_is_named() -> None:
    found = result({"z": "layer head"})
    with pytest.raises(
        InvalidInputError, match=r"nothing was patched by layer and pos: the sites are z \(layer head\)"
    ):
        patching_by_position(found)
    with pytest.raises(InvalidInputError, match="'z' was patched by layer, head, and this figure shows layer, pos"):
        patching_by_position(found, sites=["z"])
    with pytest.raises(InvalidInputError, match="shows layer, head, pos"):
        patching_by_head_and_position(found, "z")
    with pytest.raises(UnknownNameError):
        patching_by_head(found, sites=["q"])
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        patching_by_head_and_position(found, "z", k=0)
