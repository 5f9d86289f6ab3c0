"""Edges of a model through its hook points, one at a time: what every part wrote, read and would have to read."""

from typing import Any

import torch
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.prompts.task import Task


class EdgesByHand:
    """Runs in which every head has its inputs to itself, and every reader's input is a sum over senders in a loop."""

    def __init__(self, model: HookedTransformer, task: Task) -> None:
        self.model, self.task, self.graph = model, task, Graph.of(model.cfg)
        self.given = {"attention_mask": task.attention_mask}

    def scored(self, logits: Tensor) -> Tensor:
        return self.task.logit_difference(logits, per_prompt=True)

    def written(self, tokens: Tensor) -> dict[str, Tensor]:
        """What each sender adds to the stream, and what attention's biases do (`bias0`, ...)."""
        cache = self.model.run_with_cache(tokens, **self.given)[1]
        found = {"embed": cache["blocks.0.hook_resid_pre"]}
        for layer in range(self.model.cfg.n_layers):
            parts = self.model.blocks[layer].parts
            if "attn" in parts:
                found |= self.of_attention(layer, cache)
            for part in ("mixer", "mlp"):
                if part in parts:
                    found[f"{part}{layer}"] = cache[f"blocks.{layer}.hook_{part}_out"]
        return found

    def of_attention(self, layer: int, shown: Any) -> dict[str, Tensor]:
        block = self.model.blocks[layer]
        found = {}
        left = shown[f"blocks.{layer}.hook_attn_out"]
        for head in range(self.model.cfg.n_heads):
            out = shown[f"blocks.{layer}.attn.hook_z"][:, :, head] @ block.attn.W_O[head]
            if self.model.cfg.has_post_norms:
                norm = block.ln1_post
                out = (out - out.mean(-1, keepdim=True) if norm.centered else out) * norm.w
                out = out / shown[f"blocks.{layer}.ln1_post.hook_scale"]
            found[f"{layer}.{head}"] = out
            left = left - out
        found[f"bias{layer}"] = left
        return found

    def other(self, ablation: str) -> dict[str, Tensor]:
        corrupted = self.written(self.task.corrupted_tokens)
        if ablation == "patch":
            return corrupted
        if ablation == "zero":
            return {name: torch.zeros_like(each) for name, each in corrupted.items()}
        mask = self.task.attention_mask
        means = {}
        for name, each in corrupted.items():
            mean = torch.zeros_like(each)
            for at in range(int(mask.sum(1).max())):
                # The prompts' `at`-th tokens, wherever padding puts them.
                places = [(row, seen.nonzero()[at, 0]) for row, seen in enumerate(mask) if int(seen.sum()) > at]
                value = sum(each[row, place] for row, place in places) / len(places)
                for row, place in places:
                    mean[row, place] = value
            means[name] = mean
        return means

    def run(self, kept: Tensor, ablation: str = "patch") -> Tensor:
        """Each prompt's logit difference when readers get this run's values along the edges kept, the other's else."""
        model, graph, other = self.model, self.graph, self.other(ablation)
        out: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {}

        def sum_for(receiver: str, stream: Tensor) -> Tensor:
            at = graph.receiver_labels.index(receiver)
            total = torch.zeros_like(stream)
            for sender, label in enumerate(graph.sender_labels):
                if graph.allowed[sender, at]:
                    total = total + (out if kept[sender, at] else other)[label]
            stage = graph.receivers[at].stage
            return total + sum(out[name] for name in out if name.startswith("bias") and 2 * int(name[4:]) < stage)

        def inputs(value: Tensor, hook: Any) -> Tensor:
            kind = hook.name.rsplit("_", 2)[1]
            heads = [sum_for(f"{hook.layer()}.{h}.{kind}", value[:, :, h]) for h in range(value.shape[2])]
            return torch.stack(heads, dim=2)

        def attention(value: Tensor, hook: Any) -> None:
            shown[hook.name] = value
            out.update(self.of_attention(hook.layer(), shown))

        def whole(value: Tensor, hook: Any) -> None:
            part = "mlp" if "mlp" in hook.name else "mixer"
            out[f"{part}{hook.layer()}"] = value

        def entering(value: Tensor, hook: Any) -> Tensor | None:
            if hook.layer() == 0:
                out["embed"] = value.clone()
            label = f"mixer{hook.layer()}"
            return sum_for(label, value) if label in graph.receiver_labels else None

        def keep(value: Tensor, hook: Any) -> None:
            shown[hook.name] = value

        hooks: list[tuple[Any, Any]] = [
            (lambda name: name.endswith(("hook_z", "ln1_post.hook_scale")), keep),
            (lambda name: name.endswith("hook_attn_out"), attention),
            (lambda name: name.endswith(("hook_mlp_out", "hook_mixer_out")), whole),
            (lambda name: name.endswith("hook_resid_pre"), entering),
            (lambda name: name.endswith(("hook_q_input", "hook_k_input", "hook_v_input")), inputs),
            (lambda name: name.endswith("hook_mlp_in"), lambda value, hook: sum_for(f"mlp{hook.layer()}", value)),
            (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda value, hook: sum_for("final", value)),
        ]
        model.cfg.ungroup_grouped_query_attention = True
        try:
            return self.scored(model.run_with_hooks(self.task.clean_tokens, fwd_hooks=hooks, **self.given)).detach()
        finally:
            model.cfg.ungroup_grouped_query_attention = False
