"""`activation_patch` equals plain runs with hooks, whichever run is patched, and says what stands out."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SetBudget
from small_models import small_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.patching.sites import SITES
from headscope.analysis.prompts.task import Task
from headscope.errors import CheckpointError, InvalidInputError, NotFiniteError, UnknownNameError

PROMPTS = ["When Mary and John went, John", "Then Mary said thank you to John. Mary", "the old dog ran, John"]
CORRUPTED = ["When Mary and John went, Mary", "Then John said thank you to Mary. Mary", "the old cat ran, Mary"]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def task(model: HookedTransformer) -> Task:
    found = Task.from_prompts(PROMPTS, ["Mary"] * 3, ["John"] * 3, model.tokenizer, corrupted=CORRUPTED)
    lengths = found.attention_mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    words = {"second": torch.tensor([1, 1, 1]), "end": found.positions}
    return replace(found, word_idx=words)


def difference(model: HookedTransformer, task: Task, tokens: Tensor, hooks: Any = ()) -> float:
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks), attention_mask=task.attention_mask)
    return float(task.logit_difference(logits))


def by_definition(
    model: HookedTransformer, task: Task, name: str, places: list[tuple[Tensor, Any]], denoises: bool
) -> float:
    """One cell: each row's entries at `places` (its position, what comes after that axis) come from the other run."""
    assert task.corrupted_tokens is not None
    both = (task.clean_tokens, task.corrupted_tokens)
    source, target = both if denoises else both[::-1]
    _, cache = model.run_with_cache(source, names_filter=name, attention_mask=task.attention_mask)

    def put(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for positions, head in places:
            for row, position in enumerate(positions.tolist()):
                if name.endswith("pattern"):
                    value[row, head, position] = cache[name][row, head, position]
                elif head is None:
                    value[row, position] = cache[name][row, position]
                else:
                    value[row, position, head] = cache[name][row, position, head]
        return value

    clean, corrupted = (difference(model, task, tokens) for tokens in both)
    patched = difference(model, task, target, [(name, put)])
    return (patched - (corrupted if denoises else clean)) / (clean - corrupted)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@torch.no_grad()
def test_cells_equal_their_definition(direction: Any, model: HookedTransformer, task: Task) -> None:
    sites = [site for site in SITES if site != "mixer_out"]
    found = activation_patch(model, task, sites, direction=direction, progress=False)
    n = task.clean_tokens.shape[1]
    for site in sites:
        inside = site in ("z", "q", "k", "v", "pattern")
        assert found[site].shape == ((2, 3) if inside else (2, n)), site
        assert found[site].std() > 1e-3, site
        name = f"blocks.1.{'attn.' if inside else ''}hook_{site}"
        for last in (0, 2):
            if inside:
                places = [(torch.tensor([each] * 3), last) for each in range(n)]
            else:
                places = [(torch.tensor([last + 4] * 3), None)]
            wanted = by_definition(model, task, name, places, direction == "denoising")
            assert float(found[site][1, last if inside else last + 4]) == pytest.approx(wanted, abs=1e-5), site
    # All of the last stream is all of the answer.
    whole = activation_patch(model, task, "resid_post", direction=direction, by_position=False, progress=False)
    assert whole["resid_post"][-1].item() == pytest.approx(1.0 if direction == "denoising" else -1.0, abs=1e-5)


@torch.no_grad()
def test_positions_by_name_and_number(model: HookedTransformer, task: Task) -> None:
    options: dict[str, Any] = {"positions": ["end", 1, -3], "progress": False}
    found = activation_patch(model, task, ["resid_mid", "z", "pattern"], by_position=True, **options)
    assert found.positions == ("end", 1, -3) and found.position_labels[0] == "end"
    assert found.axes == ("layer pos", "layer pos head", "layer head pos")
    places = [task.positions, torch.tensor([1] * 3), task.attention_mask.sum(1) - 3]
    for layer, at in product(range(2), range(3)):
        block = f"blocks.{layer}."
        wanted = by_definition(model, task, f"{block}hook_resid_mid", [(places[at], None)], True)
        assert float(found["resid_mid"][layer, at]) == pytest.approx(wanted, abs=1e-5)
        wanted = by_definition(model, task, f"{block}attn.hook_z", [(places[at], 2)], True)
        assert float(found["z"][layer, at, 2]) == pytest.approx(wanted, abs=1e-5)
        wanted = by_definition(model, task, f"{block}attn.hook_pattern", [(places[at], 1)], True)
        assert float(found["pattern"][layer, 1, at]) == pytest.approx(wanted, abs=1e-5)
    together = activation_patch(model, task, ["z", "attn_out"], by_position=False, **options)
    wanted = by_definition(model, task, "blocks.0.attn.hook_z", [(each, 1) for each in places], True)
    assert float(together["z"][0, 1]) == pytest.approx(wanted, abs=1e-5)
    assert together.axes_of("attn_out") == ("layer",) and together["attn_out"].shape == (2,)


@torch.no_grad()
def test_prompts_in_parts_give_the_same(model: HookedTransformer, task: Task, set_budget: SetBudget) -> None:
    options: dict[str, Any] = {"positions": ["second", 4], "progress": False}
    whole = activation_patch(model, task, ["attn_out", "k"], **options)
    set_budget(batch_tokens=2 * task.clean_tokens.shape[1])  # two prompts, then one
    parts = activation_patch(model, task, ["attn_out", "k"], **options)
    torch.testing.assert_close(parts.values, whole.values)
    assert (parts.clean, parts.corrupted) == pytest.approx((whole.clean, whole.corrupted))


@torch.no_grad()
def test_hooks_and_metrics_of_ones_own(model: HookedTransformer, task: Task) -> None:
    def metric(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[:, 4, 7].mean()

    found = activation_patch(model, task, "mlp_out", metric=metric, progress=False)
    assert found.unit == "the share of the metric brought back"
    logits = model(task.clean_tokens, attention_mask=task.attention_mask)
    assert found.clean == pytest.approx(float(metric(logits)), abs=1e-6)
    assert found["mlp_out"][:, 5:].abs().max() < 1e-6  # behind what it reads
    assert found["mlp_out"][:, :5].abs().max() > 1e-3
    with model.hooks([("blocks.0.hook_mlp_out", lambda value, hook: 2 * value)]):
        hooked = activation_patch(model, task, "z", progress=False)
        places = [(torch.tensor([at] * 3), 1) for at in range(task.clean_tokens.shape[1])]
        wanted = by_definition(model, task, "blocks.1.attn.hook_z", places, True)
    assert float(hooked["z"][1, 1]) == pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def result(model: HookedTransformer, task: Task) -> PatchingResult:
    return activation_patch(model, task, ["resid_pre", "z"], progress=False)


def test_what_stands_out(result: PatchingResult) -> None:
    best = result.top(3, site="z")
    assert [score.value for score in best] == sorted((s.value for s in best), key=abs, reverse=True)
    first = best[0]
    assert first.head is not None and first.value == float(result["z"][first.layer, first.head])
    assert abs(first.value) == float(result["z"].abs().max())
    assert str(best).splitlines()[1].startswith(f"z {first.layer}.{first.head}")
    place = next(score for score in result.top(99) if score.position == 1)
    assert place.label.startswith(f"resid_pre {place.layer} at 1 ") and place.token == result.position_labels[1]
    frame = result.to_frame()
    assert len(frame) == result["resid_pre"].numel() + result["z"].numel()
    row = frame[(frame.site == "z") & (frame.layer == 1) & (frame["head"] == 2)]
    assert row.value.item() == float(result["z"][1, 2]) and row.position.isna().all()
    assert "denoising" in str(result) and "z (2 layers x 3 heads): " in str(result)
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        result.top(0)
    with pytest.raises(UnknownNameError, match="'resid_post'"):
        result["resid_post"]


def test_results_are_kept(result: PatchingResult, tmp_path: Path) -> None:
    again = PatchingResult.load(result.save(tmp_path / "patching.safetensors"))
    assert torch.equal(again.values, result.values) and again.positions == result.positions
    assert torch.equal(again["z"], result["z"]) and str(again) == str(result)
    with pytest.raises(CheckpointError):
        PatchingResult.load(tmp_path / "nothing.safetensors")


def test_what_is_refused(model: HookedTransformer, task: Task) -> None:
    def run(some: Task = task, sites: Any = "resid_pre", **options: Any) -> Any:
        return activation_patch(model, some, sites, progress=False, **options)

    with pytest.raises(InvalidInputError, match="one number"):
        run(metric=lambda logits: logits[:, 0, 0])
    with pytest.raises(NotFiniteError):
        run(metric=lambda logits: logits.sum() * torch.nan)


def test_the_result_says_how_patched_runs_were_made(model: HookedTransformer, task: Task) -> None:
    result = activation_patch(model, task, "z", by_position=False, progress=False)
    assert result.runs == "suffix" and "runs: suffix" in str(result)
    with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: z)]):
        hooked = activation_patch(model, task, "z", by_position=False, progress=False)
    assert hooked.runs.startswith("whole, for")
    torch.testing.assert_close(hooked["z"], result["z"])
