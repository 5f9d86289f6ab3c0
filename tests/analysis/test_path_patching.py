"""Path patching against three full forward passes with hooks."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.path_patching import path_patch
from headscope.analysis.task import Task

SHAPES: dict[str, dict[str, Any]] = {
    "mlps": {"n_layers": 3},
    "grouped": {"n_layers": 3, "n_heads": 4, "n_key_value_heads": 2},
    "parallel": {"n_layers": 3, "parallel_attn_mlp": True, "normalization_type": "RMS"},
    "attn_only": {"n_layers": 3, "attn_only": True},
    "shortformer": {"n_layers": 3, "positional_embedding_type": "shortformer", "normalization_type": "LNPre"},
    "bidirectional": {
        "n_layers": 3,
        "attention_dir": "bidirectional",
        "output_logits_soft_cap": 2.0,
        "normalization_type": None,
    },
}


def random_task(*, n: int = 3, width: int = 6, lengths: tuple[int, ...] | None = (6, 4, 5), seed: int = 1) -> Task:
    """Random prompts of several lengths, with two right answers and three wrong ones."""
    clean, corrupted = tiny_tokens(n, width, seed=seed), tiny_tokens(n, width, seed=seed + 1)
    ends = torch.tensor(lengths or (width,) * n)
    mask = torch.arange(width) < ends[:, None]
    answers = torch.stack([torch.randperm(23, generator=torch.Generator().manual_seed(at))[:5] for at in range(n)])
    return Task(
        clean_tokens=clean,
        correct=answers[:, :2],
        incorrect=answers[:, 2:],
        attention_mask=mask,
        positions=ends - 1,
        corrupted_tokens=corrupted,
        prompts=tuple(f"prompt {at}" for at in range(n)),
        str_tokens=tuple(tuple(map(str, row[:end])) for row, end in zip(clean.tolist(), ends.tolist(), strict=True)),
        answers=(("right", "wrong"),) * n,
        labels=("",) * n,
        word_idx={"S2": torch.tensor([2, 1, 3])[:n]},
    )


def three_passes(
    model: HookedTransformer,
    task: Task,
    senders: list[str],
    receivers: list[str],
    *,
    noising: bool = True,
    freeze_mlps: bool = True,
    where: Tensor | None = None,
) -> Tensor:
    """Logit differences of the patched run, each pass a full one, every head reading an input of its own."""
    cfg = model.cfg
    before = cfg.ungroup_grouped_query_attention
    cfg.ungroup_grouped_query_attention = True
    given = {"attention_mask": task.attention_mask}
    runs = (task.clean_tokens, task.corrupted_tokens)
    tokens, other_tokens = runs if noising else runs[::-1]
    _, base = model.run_with_cache(tokens, **given)
    _, other = model.run_with_cache(other_tokens, **given)
    at = torch.ones_like(task.attention_mask) if where is None else where
    hooks: list[Any] = []
    for layer in range(cfg.n_layers):

        def freeze_heads(z: Tensor, hook: Any, layer: int = layer) -> Tensor:
            z[:] = base[hook.name]
            for head in range(cfg.n_heads):
                if f"{layer}.{head}" in senders:
                    z[:, :, head][at] = other[hook.name][:, :, head][at]
            return z

        def freeze_mlp(out: Tensor, hook: Any, layer: int = layer) -> Tensor:
            sends = f"mlp{layer}" in senders
            if freeze_mlps or sends:
                out = base[hook.name].clone()
            if sends:
                out[at] = other[hook.name][at]
            return out

        hooks.append((f"blocks.{layer}.attn.hook_z", freeze_heads))
        if not cfg.attn_only:
            hooks.append((f"blocks.{layer}.hook_mlp_out", freeze_mlp))
    if "embed" in senders:

        def embed(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[at] = other[hook.name][at]
            return value

        hooks.append(("hook_embed", embed))
    points: dict[str, list[int | None]] = {}
    for receiver in receivers:
        if receiver == "final":
            points[f"blocks.{cfg.n_layers - 1}.hook_resid_post"] = [None]
        elif receiver.startswith("mlp"):
            points[f"blocks.{receiver[3:]}.hook_mlp_in"] = [None]
        else:
            layer, head, kind = receiver.split(".")
            points.setdefault(f"blocks.{layer}.hook_{kind}_input", []).append(int(head))
    recorded: dict[str, Tensor] = {}

    def record(value: Tensor, hook: Any) -> None:
        recorded[hook.name] = value.clone()

    model.run_with_hooks(tokens, fwd_hooks=[*hooks, *((name, record) for name in points)], **given)

    def put(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for head in points[hook.name]:
            part = slice(None) if head is None else head
            value[:, :, part] = recorded[hook.name][:, :, part]
        return value

    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, put) for name in points], **given)
    cfg.ungroup_grouped_query_attention = before
    return task.logit_difference(logits, per_prompt=True).detach()


def change(model: HookedTransformer, task: Task, *args: Any, noising: bool = True, **options: Any) -> Tensor:
    tokens = task.clean_tokens if noising else task.corrupted_tokens
    before = task.logit_difference(model(tokens, attention_mask=task.attention_mask), per_prompt=True).detach()
    return three_passes(model, task, *args, noising=noising, **options) - before


CASES = (
    (["0.1"], ["2.1.q"]),
    (["embed"], ["1.0.k"]),
    (["0.0", "1.2"], ["1.0.k", "2.2.v"]),
    (["embed", "0.2", "1.1"], ["1.0.q", "1.0.k", "1.0.v", "2.0.q", "2.1.k"]),
    (["1.0", "2.2"], ["final"]),
    (["embed", "0.2"], ["final"]),
    (["0.0"], ["mlp1"]),
    (["mlp0"], ["2.1.q", "2.0.k"]),
    (["mlp0", "0.1", "mlp1"], ["mlp1", "2.1.q", "mlp2"]),
    (["embed", "mlp1"], ["final"]),
)


@pytest.mark.parametrize("noising", [True, False])
@pytest.mark.parametrize("freeze_mlps", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_paths_are_those_of_three_passes(shape: str, freeze_mlps: bool, noising: bool) -> None:
    model, task = tiny_model(**SHAPES[shape]), random_task()
    for senders, receivers in CASES:
        if model.cfg.attn_only and any("mlp" in name for name in (*senders, *receivers)):
            continue
        direction = "noising" if noising else "denoising"
        found = path_patch(
            model, task, senders=senders, receivers=receivers, direction=direction, freeze_mlps=freeze_mlps
        )
        expected = change(model, task, senders, receivers, freeze_mlps=freeze_mlps, noising=noising)
        assert expected.abs().max() > 1e-6, (senders, receivers)
        torch.testing.assert_close(found.per_prompt, expected, atol=1e-11, rtol=1e-7)
        assert float(found) == pytest.approx(float(expected.mean()), abs=1e-10)
