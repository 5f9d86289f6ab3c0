"""Runs of circuits of nodes against whole runs with hooks, circuit by circuit, in float64."""

from typing import Any

import pytest
import torch
from three_passes import random_task
from tiny import tiny_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.core.components import component_of
from headscope.analysis.prompts.task import Task
from headscope.ops.devices import budget

SHAPES: dict[str, dict[str, Any]] = {
    "MLPs": {},
    "attention only": {"attn_only": True},
    "grouped and rotary": {
        "n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4,
    },
    "parallel": {"parallel_attn_mlp": True},
    "post-norms": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
}  # fmt: skip


def others(model: HookedTransformer, task: Task, ablation: str) -> dict[str, Tensor]:
    """What every component gives outside a circuit, by hook name; means counted from a prompt's first token."""
    _, cache = model.run_with_cache(task.corrupted_tokens, attention_mask=task.attention_mask)
    found = {}
    for name in (name for name in model.hook_dict if name.endswith(("attn.hook_z", "hook_mlp_out"))):
        given = cache[name].clone()
        if ablation == "zero":
            given = torch.zeros_like(given)
        elif ablation == "mean":
            starts = task.attention_mask.long().argmax(1).tolist()
            ends = [start + int(mask.sum()) for start, mask in zip(starts, task.attention_mask, strict=True)]
            for place in range(given.shape[1]):
                rows = [row for row in range(len(task)) if starts[row] + place < ends[row]]
                for row in rows:
                    own = [cache[name][each, starts[each] + place] for each in rows]
                    given[row, starts[row] + place] = torch.stack(own).mean(0)
        found[name] = given
    return found


def by_hooks(
    model: HookedTransformer, task: Task, kept: Tensor, parts: tuple[str, ...], other: dict[str, Tensor]
) -> Tensor:
    """The logit differences of one circuit, by a whole run; where others give NaN, parts keep their own output."""

    def replace(output: Tensor, hook: Any) -> Tensor:
        output = output.clone()
        for is_kept, label in zip(kept.tolist(), parts, strict=True):
            part = component_of(label)
            assert part is not None
            if not is_kept and part.layer == hook.layer() and (part.head is None) == hook.name.endswith("mlp_out"):
                where = slice(None) if part.head is None else (slice(None), slice(None), part.head)
                given = other[hook.name][where]
                output[where] = torch.where(given.isnan(), output[where], given)
        return output

    hooks = [(name, replace) for name in other]
    logits = model.run_with_hooks(task.clean_tokens, fwd_hooks=hooks, attention_mask=task.attention_mask)
    return task.logit_difference(logits, per_prompt=True).detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ablation", ["patch", "mean", "zero"])
def test_runs_are_whole_runs_with_hooks(shape: str, ablation: str) -> None:
    model = tiny_model(n_layers=3, **SHAPES[shape])
    for pad_left, keep_mlps in ((False, True), (True, False)):
        task = random_task(pad_left=pad_left)
        runs = NodeRuns(model, task, ablation, keep_mlps=keep_mlps)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        kept = torch.rand(4, len(runs.parts), generator=generator) < 0.6
        kept[0], kept[1] = True, False
        kept[3] = kept[2]
        kept[3, -1] = ~kept[2, -1]
        other = others(model, task, ablation)
        wanted = torch.stack([by_hooks(model, task, each, runs.parts, other) for each in kept])
        torch.testing.assert_close(runs.values(kept), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(runs.values(kept, near=kept[2]), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(runs.whole, wanted[0], rtol=0, atol=1e-12)
        assert float((wanted - wanted[0]).abs().max()) > 1e-2
        if ablation == "patch":
            corrupted = model(task.corrupted_tokens, attention_mask=task.attention_mask)
            nothing = task.logit_difference(corrupted, per_prompt=True)
        else:
            nothing = wanted[1]
        torch.testing.assert_close(runs.nothing, nothing, rtol=0, atol=1e-12)
        torch.testing.assert_close(runs.empty, wanted[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_gradients_along_the_way_to_the_whole_model(shape: str) -> None:
    """They sum to what the circuit lacks, prompt by prompt; with one step each is a finite difference at the middle."""
    model, task = tiny_model(n_layers=3, **SHAPES[shape]), random_task()
    runs = NodeRuns(model, task, keep_mlps=False)
    kept = torch.arange(len(runs.parts)) % 3 == 0
    scores = runs.scores(kept, steps=30)
    lacking = runs.whole - runs.values(kept[None])[0]
    torch.testing.assert_close(scores.sum(0), lacking, rtol=0, atol=2e-3)
    assert float(lacking.abs().max()) > 1e-2 and bool((scores[kept] == 0).all())
    middle = runs.scores(kept, steps=1)
    other = others(model, task, "patch")
    at = 4
    part = component_of(runs.parts[at])
    assert part is not None and not kept[at]

    def run(gate: float) -> Tensor:
        def mix(output: Tensor, hook: Any) -> Tensor:
            shares = torch.full((len(runs.parts),), 0.5, dtype=output.dtype).masked_fill(kept, 1.0)
            shares[at] = gate
            mixed = output.clone()
            for share, label in zip(shares, runs.parts, strict=True):
                here = component_of(label)
                assert here is not None
                if here.layer == hook.layer() and (here.head is None) == hook.name.endswith("mlp_out"):
                    where = slice(None) if here.head is None else (slice(None), slice(None), here.head)
                    given = other[hook.name][where]
                    mixed[where] = given + share * (output[where] - given)
            return mixed

        logits = model.run_with_hooks(
            task.clean_tokens, fwd_hooks=[(name, mix) for name in other], attention_mask=task.attention_mask
        )
        return task.logit_difference(logits, per_prompt=True).detach()

    torch.testing.assert_close(middle[at], (run(0.5 + 1e-5) - run(0.5 - 1e-5)) / 2e-5, rtol=1e-5, atol=1e-8)


def test_hooks_on_the_model_stay_in_force() -> None:
    model, task = tiny_model(n_layers=3), random_task()
    kept = torch.arange(9)[None] % 2 == 0
    before = NodeRuns(model, task).values(kept)
    model.add_hook("blocks.1.attn.hook_q", lambda q, hook: 2 * q)
    runs = NodeRuns(model, task)
    wanted = by_hooks(model, task, kept[0], runs.parts, others(model, task, "patch"))
    torch.testing.assert_close(runs.values(kept)[0], wanted, rtol=0, atol=1e-12)
    assert float((before - runs.values(kept)).abs().max()) > 1e-4


def test_batches_and_metrics_of_ones_own() -> None:
    """Prompts in several batches give what they give in one; a metric of all prompts is one number."""
    model = tiny_model(n_layers=2, n_ctx=40)
    task = random_task(tuple(range(20, 40)))
    runs = NodeRuns(model, task)
    assert len(runs._batches) > 1
    kept = torch.arange(6)[None] < 3
    wanted = by_hooks(model, task, kept[0], runs.parts, others(model, task, "patch"))
    torch.testing.assert_close(runs.values(kept)[0], wanted, rtol=0, atol=1e-12)
    own = NodeRuns(model, task, metric=lambda logits: task.logit_difference(logits) ** 2)
    assert own.values(kept).shape == (1,)
    torch.testing.assert_close(own.values(kept)[0], wanted.mean() ** 2, rtol=0, atol=1e-12)


def masked_task(fill: int = 0) -> Task:
    """Prompts of eight tokens whose corrupted ones have six; other ids stand behind these."""
    generator = torch.Generator().manual_seed(2)
    clean, corrupted = (torch.randint(0, 20, (4, 8), generator=generator) for _ in range(2))
    corrupted[:, 6:] = (corrupted[:, 6:] + fill) % 20
    mask = torch.ones(4, 8, dtype=torch.bool)
    shorter = mask.clone()
    shorter[:, 6:] = False
    answers = {"correct": torch.arange(4), "incorrect": torch.arange(4) + 9, "positions": torch.full((4,), 5)}
    return Task.from_tokens(clean, corrupted, attention_mask=mask, corrupted_mask=shorter, **answers)


@pytest.mark.parametrize("ablation", ["patch", "mean", "zero"])
def test_padding_of_corrupted_prompts_gives_nothing(ablation: Any) -> None:
    """Tokens that only the clean prompts have keep the circuit's own output; NaN stands for that here."""
    model = tiny_model(n_layers=2, n_ctx=10, attention_dir="bidirectional")
    runs, again = (NodeRuns(model, masked_task(fill), ablation, keep_mlps=False) for fill in (0, 7))
    kept = torch.zeros(2, len(runs.parts), dtype=torch.bool)
    kept[0, ::2] = True
    values = runs.values(kept)
    torch.testing.assert_close(again.values(kept), values, rtol=0, atol=1e-12)
    task = masked_task()
    _, cache = model.run_with_cache(task.corrupted_tokens, attention_mask=task.corrupted_mask)
    other = {name: cache[name].clone() for name in model.hook_dict if name.endswith(("attn.hook_z", "hook_mlp_out"))}
    for given in other.values():
        if ablation == "mean":
            given[:] = given.mean(0)
        given *= ablation != "zero"
        given[:, 6:] = 0.0 if ablation == "zero" else torch.nan
    wanted = torch.stack([by_hooks(model, task, each, runs.parts, other) for each in kept])
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-12)
    scores = runs.scores(kept[0], steps=30)
    torch.testing.assert_close(scores.sum(0), runs.whole - values[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("ablation", ["patch", "mean", "zero"])
def test_runs_beyond_the_memory_are_made_again(ablation: Any) -> None:
    model, task = tiny_model(n_layers=2, n_ctx=40), random_task(tuple(range(20, 40)))
    kept = torch.arange(6)[None].repeat(2, 1) < torch.tensor([[3], [5]])
    whole = NodeRuns(model, task, ablation)
    with budget(kept_bytes=whole._kept[0].nbytes):
        part = NodeRuns(model, task, ablation)
        assert len(whole._kept) == len(whole._batches) > len(part._kept) == 1
        for each in ("whole", "nothing", "empty"):
            assert torch.equal(getattr(part, each), getattr(whole, each))
        assert torch.equal(part.values(kept), whole.values(kept))
        assert torch.equal(part.scores(kept[0], steps=1), whole.scores(kept[0], steps=1))
        assert len(part._kept) == 1
