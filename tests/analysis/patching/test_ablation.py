"""Components ablated on a task's metric, against full runs with hooks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from three_passes import random_task
from tiny import tiny_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import Task, ablate_components
from headscope.errors import InvalidInputError

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention only": {"attn_only": True},
    "shared keys": {"n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4},
    "parallel": {"parallel_attn_mlp": True},
    "post-norms": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
    "both ways": {"attention_dir": "bidirectional"},
}


def naive(model: HookedTransformer, task: Task, label: str, value: str) -> Tensor:
    """The logit difference of each prompt in a full run with hooks."""
    mask, other = task.masks
    _, cache = model.run_with_cache(task.corrupted_tokens, attention_mask=other)

    def put(out: Tensor, hook: Any) -> Tensor:
        out, part = out.clone(), slice(None) if label.startswith("mlp") else int(label.split(".")[1])
        place = (slice(None), slice(None), part) if isinstance(part, int) else (slice(None), slice(None))
        out[place] = 0
        if value == "mean":
            real = other[(...,) + (None,) * (cache[hook.name][place].ndim - 2)].double()
            out[place] = (cache[hook.name][place] * real).sum(0) / real.sum(0).clamp(min=1)
        return out

    layer = int(label.removeprefix("mlp").split(".")[0])
    point = f"blocks.{layer}." + ("hook_mlp_out" if label.startswith("mlp") else "attn.hook_z")
    logits = model.run_with_hooks(task.clean_tokens, attention_mask=mask, fwd_hooks=[(point, put)])
    return task.logit_difference(logits, per_prompt=True)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_a_change_is_that_of_a_full_run_with_a_hook(kind: str) -> None:
    model, task = tiny_model(**MODELS[kind]), random_task()
    found = ablate_components(model, task, progress=False)
    clean = task.logit_difference(model(task.clean_tokens, attention_mask=task.attention_mask), per_prompt=True)
    assert len(found.component_labels) == model.cfg.n_layers * (model.cfg.n_heads + (not model.cfg.attn_only))
    for label in found.component_labels:
        for value in found.values:
            change = found.sel(component=label, value=value)
            torch.testing.assert_close(change, naive(model, task, label, value) - clean, atol=1e-9, rtol=1e-9)
    assert found.clean == pytest.approx(float(clean.mean()))
    assert found.errors is not None and "±" in str(found)
    torch.testing.assert_close(found.errors, found.change.std(2) / 3**0.5)
    pairs = ablate_components(model, replace(task, clusters=torch.tensor([0, 1, 0])), values=["zero"], progress=False)
    assert pairs.errors is not None
    away = pairs.change[0] - pairs.change[0].mean(1, keepdim=True)
    expected = (2 * ((away[:, 0] + away[:, 2]).square() + away[:, 1].square())).sqrt() / 3
    torch.testing.assert_close(pairs.errors[0], expected)
    assert ablate_components(model, task[:1], ["0.1"], progress=False).errors is None


def test_means_are_over_the_real_tokens_of_corrupted_prompts() -> None:
    model, task = tiny_model(attention_dir="bidirectional"), random_task()
    assert task.corrupted_tokens is not None
    longer = task.attention_mask.clone()
    longer[1] = True
    own = replace(task, corrupted_mask=longer)
    found = ablate_components(model, own, ["0.1"], values=["mean"], progress=False)
    with torch.no_grad():
        clean = own.logit_difference(model(own.clean_tokens, attention_mask=own.attention_mask), per_prompt=True)
        torch.testing.assert_close(found.change[0, 0], naive(model, own, "0.1", "mean") - clean)


def test_a_hook_stays_in_force_and_a_metric_of_all_prompts_gives_one_number() -> None:
    model, task = tiny_model(), random_task()

    def metric(logits: Tensor) -> Tensor:
        return task.logit_difference(logits)

    plain = ablate_components(model, task, progress=False)
    whole = ablate_components(model, task, metric=metric, progress=False)
    torch.testing.assert_close(whole.change, plain.mean())
    assert whole.errors is None and "±" not in str(whole)
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda out, hook: 0 * out)]):
        hooked = ablate_components(model, task, ["mlp0"], values=["zero"], progress=False)
    assert hooked.change.abs().max() == 0 and plain.sel(component="mlp0", value="zero").abs().max() > 0


def test_a_hook_where_an_ablated_run_resumes_runs_once() -> None:
    model, task = tiny_model(), random_task()
    model.add_perma_hook("blocks.1.hook_resid_pre", lambda stream, hook: 1.5 * stream + 1)
    found = ablate_components(model, task, ["1.0", "mlp1"], values=["zero"], progress=False)
    with torch.no_grad():
        clean = task.logit_difference(model(task.clean_tokens, attention_mask=task.attention_mask), per_prompt=True)
        for label in found.component_labels:
            change = found.sel(component=label, value="zero")
            torch.testing.assert_close(change, naive(model, task, label, "zero") - clean, atol=1e-9, rtol=1e-9)


def test_components_that_go_together_and_what_is_refused() -> None:
    model, task = tiny_model(), random_task()
    both = ablate_components(model, task, [["0.1", "mlp1"], "1.0"], values=["zero"], progress=False)
    assert both.component_labels == ("0.1+mlp1", "1.0")
    assert set(both.to_frame().columns) >= {"component", "value", "change"} and "0.1+mlp1" in str(both)
    with pytest.raises(InvalidInputError, match="different ones"):
        ablate_components(model, task, values=[], progress=False)
    with pytest.raises(InvalidInputError, match="does not exist"):
        ablate_components(model, task, ["7.0"], progress=False)
