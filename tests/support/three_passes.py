"""Path patching by three full forward passes, and a task of random prompts."""

from typing import Any

import torch
from tiny import tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.prompts.task import Task


def random_task(
    lengths: tuple[int, ...] = (6, 4, 5), *, seed: int = 1, pad_left: bool = False, d_vocab: int = 23
) -> Task:
    """Random prompts of several lengths, with two right answers and three wrong ones."""
    n, width = len(lengths), max(lengths)
    clean, corrupted = (tiny_tokens(n, width, d_vocab=d_vocab, seed=at) for at in (seed, seed + 1))
    ends = torch.tensor(lengths)
    mask = torch.arange(width) < ends[:, None]
    answers = torch.stack([torch.randperm(23, generator=torch.Generator().manual_seed(at))[:5] for at in range(n)])
    if pad_left:
        mask, ends = mask.flip(1), torch.full_like(ends, width)
    return Task(
        clean_tokens=clean,
        correct=answers[:, :2],
        incorrect=answers[:, 2:],
        attention_mask=mask,
        positions=ends - 1,
        corrupted_tokens=corrupted,
        prompts=tuple(f"prompt {at}" for at in range(n)),
        str_tokens=tuple(tuple(map(str, row[seen].tolist())) for row, seen in zip(clean, mask, strict=True)),
        answers=(("right", "wrong"),) * n,
        labels=("",) * n,
        word_idx={"S2": ends - 2},
    )


class ThreePasses:
    """Each pass a full one, through hooks on what every head reads for itself.

    Heads that share keys and values have copies of them here, of which each is patched alone.
    """

    def __init__(self, model: HookedTransformer, task: Task, *, noising: bool = True) -> None:
        self.model, self.task = model, task
        model.cfg.ungroup_grouped_query_attention = True
        runs = (task.clean_tokens, task.corrupted_tokens)
        self.tokens, other = runs if noising else runs[::-1]
        self.given = {"attention_mask": task.attention_mask}
        logits, self.base = model.run_with_cache(self.tokens, **self.given)
        _, self.other = model.run_with_cache(other, **self.given)
        self.before = self.scored(logits)
        model.cfg.ungroup_grouped_query_attention = False

    def scored(self, logits: Tensor) -> Tensor:
        return self.task.logit_difference(logits, per_prompt=True).detach()

    def change(
        self, senders: list[str], receivers: list[str], *, freeze_mlps: bool = True, where: Tensor | None = None
    ) -> Tensor:
        """What the patch does to each prompt's logit difference."""
        at = torch.ones_like(self.task.attention_mask) if where is None else where
        points: dict[str, list[int | slice]] = {}
        for receiver in receivers:
            if receiver == "final":
                points[f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"] = [slice(None)]
            elif receiver.startswith("mlp"):
                points[f"blocks.{receiver[3:]}.hook_mlp_in"] = [slice(None)]
            else:
                layer, head, kind = receiver.split(".")
                points.setdefault(f"blocks.{layer}.hook_{kind}_input", []).append(int(head))
        recorded: dict[str, Tensor] = {}

        def record(value: Tensor, hook: Any) -> None:
            recorded[hook.name] = value.clone()

        def put(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            for part in points[hook.name]:
                value[:, :, part] = recorded[hook.name][:, :, part]
            return value

        self.model.cfg.ungroup_grouped_query_attention = True
        hooks = self.frozen(senders, freeze_mlps, at) + [(name, record) for name in points]
        self.model.run_with_hooks(self.tokens, fwd_hooks=hooks, **self.given)
        logits = self.model.run_with_hooks(self.tokens, fwd_hooks=[(name, put) for name in points], **self.given)
        self.model.cfg.ungroup_grouped_query_attention = False
        return self.scored(logits) - self.before

    def frozen(self, senders: list[str], freeze_mlps: bool, at: Tensor) -> list[tuple[str, Any]]:
        def heads(z: Tensor, hook: Any) -> Tensor:
            z = self.base[hook.name].clone()
            for head in range(z.shape[2]):
                if f"{hook.layer()}.{head}" in senders:
                    z[:, :, head][at] = self.other[hook.name][:, :, head][at]
            return z

        def mlp(out: Tensor, hook: Any) -> Tensor:
            sends = f"mlp{hook.layer()}" in senders
            out = self.base[hook.name].clone() if freeze_mlps or sends else out.clone()
            if sends:
                out[at] = self.other[hook.name][at]
            return out

        def embed(value: Tensor, hook: Any) -> Tensor:
            return torch.where(at[..., None], self.other[hook.name], self.base[hook.name])

        def mixer(out: Tensor, hook: Any) -> Tensor:
            out = self.base[hook.name].clone()
            if f"mixer{hook.layer()}" in senders:
                out[at] = self.other[hook.name][at]
            return out

        points = {"attn.hook_z": heads, "hook_mixer_out": mixer, "hook_mlp_out": mlp}
        hooks = [(name, hook) for name in self.model.hook_dict for end, hook in points.items() if name.endswith(end)]
        return [*hooks, ("hook_embed", embed)] if "embed" in senders else hooks
