"""Attribution patching against small patches and against plain loops of true ones."""

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from side_by_side import changed_runs
from sizes import SetBudget
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.comparison import AttributionPatchingResult, PatchingComparison
from headscope.analysis.patching.gradient import attribution_patch
from headscope.analysis.patching.sites import AXES
from headscope.analysis.prompts.metrics import AnswerMetric
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, NotFiniteError, UnknownNameError
from headscope.model.names import get_act_name

IN_LOGITS: dict[str, Any] = {"direction": "noising", "scale": "metric"}


def random_task(lengths: tuple[int, ...] = (5, 4, 5), *, pad_left: bool = False) -> Task:
    n, width = len(lengths), max(lengths)
    ends = torch.tensor(lengths)
    mask = torch.arange(width) < ends[:, None]
    if pad_left:
        mask, ends = mask.flip(1), torch.full_like(ends, width)
    answers = tiny_tokens(n, 3, seed=5)
    clean = tiny_tokens(n, width, seed=1)
    return Task(
        clean_tokens=clean,
        correct=answers[:, :1],
        incorrect=answers[:, 1:],
        attention_mask=mask,
        positions=ends - 1,
        corrupted_tokens=tiny_tokens(n, width, seed=2),
        prompts=tuple(f"prompt {at}" for at in range(n)),
        str_tokens=tuple(tuple(map(str, row[seen].tolist())) for row, seen in zip(clean, mask, strict=True)),
        answers=(("right", "wrong"),) * n,
        labels=("",) * n,
        word_idx={"S2": ends - 2},
    )


class Patches:
    """True patches of one cell, a part of the way to what the other run has there."""

    def __init__(self, model: HookedTransformer, task: Task, *, noising: bool = True) -> None:
        self.model, self.task = model, task
        runs = (task.clean_tokens, task.corrupted_tokens)
        self.tokens, other = runs if noising else runs[::-1]
        self.given = {"attention_mask": task.attention_mask}
        with torch.no_grad():
            logits, self.base = model.run_with_cache(self.tokens, **self.given)
            _, self.other = model.run_with_cache(other, **self.given)
        self.before = float(task.logit_difference(logits))

    def every(self, site: str, shape: tuple[int, ...], part: float = 1.0) -> Tensor:
        """Return what a patch of each cell alone changes."""
        changes = []
        for layer in range(shape[0]):
            name = get_act_name(site, layer)
            step = part * (self.other[name] - self.base[name])
            places = [(slice(None), *cell) for cell in product(*map(range, shape[1:]))]
            writes = [lambda value, at=at, step=step: value[at].add_(step[at]) for at in places]
            for logits in changed_runs(self.model, self.tokens, name, writes, **self.given):
                changes.append(float(self.task.logit_difference(logits)) - self.before)
        return torch.tensor(changes, dtype=torch.float64).view(shape)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_heads": 4, "n_key_value_heads": 2, "direction": "denoising"},
        {"parallel_attn_mlp": True, "normalization_type": "RMS"},
        {"attn_only": True, "attention_dir": "bidirectional", "output_logits_soft_cap": 2.0},
        {"positional_embedding_type": "shortformer", "pad_left": True},
    ],
    ids=["mlps", "grouped", "parallel", "attn_only", "shortformer"],
)
def test_estimates_are_those_of_small_patches(fields: dict[str, Any]) -> None:
    direction, pad_left = fields.get("direction", "noising"), fields.get("pad_left", False)
    model = tiny_model(**{name: value for name, value in fields.items() if name not in ("direction", "pad_left")})
    task = random_task((4, 3), pad_left=pad_left)
    sites = [site for site in AXES if get_act_name(site, 0) in model.hook_dict]
    found = attribution_patch(model, task, sites=sites, direction=direction, scale="metric", progress=False)
    patches = Patches(model, task, noising=direction == "noising")
    assert len(sites) == {"attn_only": 8, "parallel_attn_mlp": 9}.get(next(iter(fields), ""), 10)
    for site in sites:
        estimates = found[site]
        # Both ways, so that what is left of the curve is of third order.
        step = 1e-4
        true = (patches.every(site, estimates.shape, step) - patches.every(site, estimates.shape, -step)) / (2 * step)
        assert float(true.abs().max()) > 1e-3, site
        torch.testing.assert_close(estimates, true, rtol=1e-4, atol=1e-7)
        summed = estimates.sum((2, 3)) if site == "pattern" else estimates.sum(1)
        torch.testing.assert_close(found.over_positions(site), summed)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_many_steps_account_for_all_of_the_change(direction: Any) -> None:
    model, task = tiny_model(), random_task()
    gaps = []
    for steps in (1, 4, 32):
        found = attribution_patch(model, task, sites=["resid_pre"], direction=direction, steps=steps, progress=False)
        gaps.append(abs(float(found["resid_pre"][0].sum()) - (1.0 if direction == "denoising" else -1.0)))
    assert gaps[2] < 1e-3 < gaps[0] and gaps[2] < gaps[1] < gaps[0]


def test_steps_are_runs_on_the_way_between_embeddings() -> None:
    model, task = tiny_model(), random_task((5, 5))
    found = attribution_patch(model, task, sites=["z"], steps=3, **IN_LOGITS, progress=False)["z"]
    starts = [model.input_to_embed(tokens)[0].detach() for tokens in (task.clean_tokens, task.corrupted_tokens)]
    ends = [model.run_with_cache(tokens)[1] for tokens in (task.clean_tokens, task.corrupted_tokens)]
    for layer in range(2):
        name = f"blocks.{layer}.attn.hook_z"
        expected = torch.zeros_like(found[layer])
        for at in (1 / 6, 3 / 6, 5 / 6):
            kept = []
            start = (starts[0] + at * (starts[1] - starts[0])).requires_grad_()
            logits = model.run_with_hooks(
                start, start_at_layer=0, fwd_hooks=[(name, lambda value, hook, kept=kept: kept.append(value))]
            )
            (gradient,) = torch.autograd.grad(task.logit_difference(logits), kept)
            expected += ((ends[1][name] - ends[0][name]) * gradient).sum((0, -1)) / 3
        torch.testing.assert_close(found[layer], expected)


def test_batches_of_prompts_and_a_metric_of_ones_own(set_budget: SetBudget) -> None:
    model, task = tiny_model(), random_task((5, 3, 4, 5, 2))
    whole = attribution_patch(model, task, progress=False)
    set_budget(backward_tokens=10)
    cut = attribution_patch(model, task, progress=False)
    torch.testing.assert_close(cut.values, whole.values)
    for metric in (task.logit_difference, AnswerMetric.of(task)):
        own = attribution_patch(model, task, metric=metric, progress=False)
        torch.testing.assert_close(own.values, whole.values)
        torch.testing.assert_close((own.clean, own.corrupted), (whole.clean, whole.corrupted))


def test_positions_by_name() -> None:
    model, task = tiny_model(), random_task((5, 3, 4))
    sites = ("resid_pre", "z", "pattern")
    options: dict[str, Any] = {"sites": sites, "scale": "metric", "progress": False}
    alone = [attribution_patch(model, task[[at]], **options) for at in range(3)]
    found = attribution_patch(model, task, positions=["S2", "end", 1], **options)
    for number, at in enumerate(([3, 1, 2], [4, 2, 3], [1, 1, 1])):
        for site in ("resid_pre", "z"):
            expected = torch.stack([one[site][:, p] for one, p in zip(alone, at, strict=True)]).mean(0)
            torch.testing.assert_close(found[site][:, number], expected)
        expected = torch.stack([one["pattern"][:, :, p] for one, p in zip(alone, at, strict=True)]).mean(0)
        torch.testing.assert_close(found["pattern"][:, :, number], expected)
    assert " at S2" in str(found) and " at end" in str(found)
    both = found.compare(torch.ones(2, 3, 3), site="pattern")
    assert both.axes == ("layer", "head", "dest_pos") and both.labels[:2] == ("0.0 at S2", "0.0 at end")
    torch.testing.assert_close(both.estimated, found["pattern"].sum(-1))
    assert both.to_frame().dest_pos.tolist()[:3] == ["S2", "end", 1]
    with pytest.raises(InvalidInputError, match="the estimates are of denoising, and the patches of noising"):
        found.compare(activation_patch(model, task, "z", direction="noising", by_position=True), site="z")


def test_hooks_stay_in_force_and_the_model_is_as_before() -> None:
    model, task = tiny_model(), random_task()
    for weight in model.parameters():
        weight.requires_grad_(False)
    model.W_E.requires_grad_(True)
    with torch.no_grad():
        plain = attribution_patch(model, task, progress=False)
        assert not torch.is_grad_enabled()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["embed.W_E"]
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(point.has_hooks() for point in model.hook_points())
    assert not plain.values.requires_grad

    def ablate(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    model.add_hook("blocks.1.attn.hook_z", ablate)
    ablated = attribution_patch(model, task, sites=["z", "q"], progress=False)
    assert model.hook_dict["blocks.1.attn.hook_z"].has_hooks()
    assert bool((ablated["z"][1, :, 1] == 0).all()) and bool((ablated["q"][1, :, 1] == 0).all())
    assert not torch.equal(ablated["z"][0], plain["z"][0])


def test_estimates_beside_true_patches(tmp_path: Path) -> None:
    model, task = tiny_model(), random_task()
    found = attribution_patch(model, task, sites=["z", "resid_pre"], **IN_LOGITS, progress=False)
    patches = Patches(model, task)
    true = patches.every("z", (2, 5, 3))
    both = found.compare(true, site="z")
    pairs = pd.DataFrame({"a": found["z"].flatten(), "b": true.flatten()})
    assert both.pearson == pytest.approx(pairs.corr().iloc[0, 1], abs=1e-12) and both.pearson > 0.8
    assert both.spearman == pytest.approx(pairs.rank().corr().iloc[0, 1], abs=1e-12)
    assert (both.to_frame().true.to_numpy() == true.flatten().numpy()).all()
    assert list(both.to_frame().columns) == ["layer", "pos", "head", "estimated", "true"]
    assert f"Pearson {both.pearson:.3f}, Spearman {both.spearman:.3f}" in str(both) and "30 cells" in str(both)
    assert found.compare({"z": true}, site="z").pearson == both.pearson
    over = found.compare(torch.tensor([[1.0, 2.0, 2.0], [torch.nan, 0.0, -1.0]]), site="z")
    assert over.axes == ("layer", "head") and "5 cells" in str(over)
    shown = found.over_positions("z").flatten()
    left = pd.DataFrame({"a": shown, "b": over.true.flatten()}).drop(3)
    assert over.spearman == pytest.approx(left.rank().corr().iloc[0, 1], abs=1e-12)
    again = AttributionPatchingResult.load(found.save(tmp_path / "a.safetensors"))
    assert str(again) == str(found) and torch.equal(again["resid_pre"], found["resid_pre"])
    assert "z (2 layers x 5 positions x 3 heads): " in str(found) and found.axes("resid_pre") == ("layer", "pos")


def test_what_cannot_be_done_is_told() -> None:
    model, task = tiny_model(attn_only=True), random_task()

    def run(**given: Any) -> AttributionPatchingResult:
        return attribution_patch(model, **{"task": task, "sites": ["z", "q"], "progress": False, **given})

    with pytest.raises(InvalidInputError, match="steps must be at least 1; got 0"):
        run(steps=0)
    with pytest.raises(InvalidInputError, match="metric has no gradient"):
        run(metric=lambda logits: logits.detach().sum())
    found = run()
    with pytest.raises(UnknownNameError, match="Unknown site 'v'"):
        found["v"]
    with pytest.raises(InvalidInputError, match="say which site to compare: one of z, q"):
        found.compare(torch.zeros(2, 3))
    with pytest.raises(InvalidInputError, match=r"shape \[3\]; the estimates have \[2, 5, 3\], or \[2, 3\]"):
        found.compare(torch.zeros(3), site="z")
    with pytest.raises(InvalidInputError, match="at least two cells"):
        PatchingComparison("z", ("layer",), torch.tensor([1.0, 2.0]), torch.tensor([torch.nan, 1.0]))
    with torch.no_grad():
        model.W_E[:] = torch.nan
    with pytest.raises(NotFiniteError):
        run()
