"""Figures of path patching hold the results' numbers where their labels say."""

import pytest
import torch

from headscope import HookedTransformer
from headscope.analysis.patching.comparison import PatchingComparison
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError
from headscope.views.figures.path_patching import attribution_scatter, path_patching_by_head


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def task(model: HookedTransformer) -> Task:
    return Task.from_ioi(IOIDataset(N=4, tokenizer=model.tokenizer, prepend_bos=True))


@pytest.mark.parametrize("senders", ["heads", "components"])
def test_effects_stand_at_their_senders(model: HookedTransformer, task: Task, senders: str) -> None:
    sweeps = [
        path_patch_sweep(model, task, senders=senders, receivers=receivers, positions="end", progress=False)
        for receivers in ("final", ["3.0.q", "3.1.q", "3.2.q", "3.3.q"])
    ]
    for normalized in (True, False):
        figure = path_patching_by_head(*sweeps, normalized=normalized)
        for trace, sweep in zip(figure.data, sweeps, strict=True):
            expected = sweep.normalized if normalized else sweep.change
            assert torch.equal(torch.as_tensor(trace.z), expected.double())
            assert tuple(label for row in trace.customdata for label in row) == sweep.sender_labels
    assert [note.text for note in figure.layout.annotations] == ["into final", "into 3.0.q, 3.1.q and 2 more"]
    assert figure.layout.title.text == "Path patching (denoising, MLPs frozen, positions: end)"
    assert "4 prompts" in figure.layout.title.subtitle.text


def test_what_is_no_map_is_told(model: HookedTransformer, task: Task) -> None:
    some = path_patch_sweep(model, task, senders=["0.0", "0.1"], receivers="final", progress=False)
    with pytest.raises(InvalidInputError, match=r"got \[\(2,\)\]. Give results of path_patch_sweep"):
        path_patching_by_head(some)
    with pytest.raises(InvalidInputError, match="maps need values"):
        path_patching_by_head()


def test_points_stand_where_both_numbers_say() -> None:
    estimated, true = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([[0.5, 2.5], [-2.0, 1.0]])
    both = PatchingComparison("z", ("layer", "head"), estimated, true, data="a text")
    figure = attribution_scatter(both)
    (points,) = figure.data
    (line,) = figure.layout.shapes
    assert list(points.x) == true.flatten().tolist() and list(points.y) == estimated.flatten().tolist()
    assert list(points.customdata) == ["0.0", "0.1", "1.0", "1.1"]
    assert (line.x0, line.y0, line.x1, line.y1) == (-2.0, -2.0, 2.5, 2.5)
    assert f"of z: r = {both.pearson:.3f}, rank r = {both.spearman:.3f}" in figure.layout.title.text
    assert figure.layout.title.subtitle.text == "on a text"
    assert attribution_scatter(PatchingComparison("z", ("layer", "head"), estimated, true)).data[0].mode == "markers"
