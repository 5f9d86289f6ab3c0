"""Edges of a model through its hook points, one at a time: what every part wrote, read and would have to read."""

from typing import Any

import torch
from tiny import tiny_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.prompts.task import Task

SHAPES: dict[str, dict[str, Any]] = {
    "mlps": {},
    "attn_only": {"attn_only": True, "normalization_type": "LNPre"},
    "grouped, rotary": {
        "n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "gated_mlp": True,
        "normalization_type": "RMS", "use_qk_norm": True,
    },
    "parallel": {"parallel_attn_mlp": True, "normalization_type": "RMS"},
    "norms on both sides": {"use_normalization_before_and_after": True, "positional_embedding_type": "rotary"},
    "norms behind": {"use_normalization_after_only": True, "normalization_type": "RMS"},
    "shortformer, clipped": {"positional_embedding_type": "shortformer", "clip_qkv": 0.4, "normalization_type": None},
    "gated, experts": {"gated_attn": True, "num_experts": 3, "experts_per_token": 2},
    "latent": {
        "d_latent_kv": 6, "d_latent_q": 5, "positional_embedding_type": "rotary", "rotary_dim": 2,
        "normalization_type": "RMS",
    },
    "layers of several kinds": {"layer_parts": ["attn", "mlp", "attn+mlp"]},
}  # fmt: skip


def three_layers(shape: str = "mlps", **fields: Any) -> HookedTransformer:
    return tiny_model(n_layers=3, **SHAPES[shape], **fields)


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

    def gradients(self, start: Tensor, score: Any) -> dict[str, Tensor]:
        """The gradient of a metric at each receiver's input, each head reading a copy of the stream of its own."""
        shown: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> Tensor:
            value = value.clone().requires_grad_() if not value.requires_grad else value.clone()
            shown[hook.name] = value
            return value

        cfg = self.model.cfg
        kinds = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
        final = f"blocks.{cfg.n_layers - 1}.hook_resid_post"
        hooks = [(lambda name: name.endswith(kinds) or name == final, keep)]
        cfg.ungroup_grouped_query_attention = True
        try:
            with torch.enable_grad():
                logits = self.model.run_with_hooks(
                    start.detach().clone(),
                    start_at_layer=0,
                    tokens=self.task.clean_tokens,
                    fwd_hooks=hooks,
                    **self.given,
                )
                found = torch.autograd.grad(score(logits), list(shown.values()))
        finally:
            cfg.ungroup_grouped_query_attention = False
        by_receiver = {}
        for name, each in zip(shown, found, strict=True):
            layer, kind = name.split(".")[1], name.rsplit("_", 2)[1]
            if name == final:
                by_receiver["final"] = each
            elif name.endswith("hook_mlp_in"):
                by_receiver[f"mlp{layer}"] = each
            else:
                by_receiver |= {f"{layer}.{head}.{kind}": each[:, :, head] for head in range(each.shape[2])}
        return by_receiver

    def attribution(self, points: list[float], score: Any = None) -> Tensor:
        """Edge attribution, noising: `[sender, receiver, prompt]`, a loop over edges and points."""
        clean, corrupted = self.written(self.task.clean_tokens), self.written(self.task.corrupted_tokens)
        graph = self.graph
        scores = torch.full((*graph.allowed.shape, len(self.task)), torch.nan, dtype=torch.float64)
        scores[graph.allowed] = 0.0
        for point in points:
            start = clean["embed"] + point * (corrupted["embed"] - clean["embed"])
            gradients = self.gradients(start, score or (lambda logits: self.scored(logits).sum()))
            for sender, receiver in graph.allowed.nonzero().tolist():
                u, v = graph.sender_labels[sender], graph.receiver_labels[receiver]
                product = (corrupted[u] - clean[u]) * gradients[v]
                scores[sender, receiver] += product.sum((1, 2)) / len(points)
        return scores
