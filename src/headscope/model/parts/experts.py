"""Mixture of experts: an MLP of which each token uses a few parts, chosen by a router.

A token costs what its experts cost: tokens are put in the order of their experts, so that each expert that has any is
one matrix product over just these, and no work is done for the others.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening, writable
from headscope.model.parts.layers import (
    MLP,
    GatedMLP,
    activation_of,
    empty_parameter,
    gated,
    make_post_norm,
    zero_parameter,
)

__all__ = ["MoE", "make_mlp"]


class MoE(nn.Module):
    """`sum over the chosen experts e of p_e * expert_e(x)`, plus `b_out` ("Outrageously Large Neural Networks", Shazeer
    et al. 2017, arXiv 1701.06538; as Mixtral has it, Jiang et al. 2024, arXiv 2401.04088).

    The router scores the experts by `logits = x W_router + b_router`; `cfg.experts_per_token` of them are chosen:

    - `"softmax"`: scores are the softmax of the logits, and the highest are chosen. With `cfg.norm_topk_prob` those of
      the experts chosen are made to sum to one, which is the same as a softmax over their logits alone.
    - `"sigmoid"`: scores are the sigmoids of the logits, and the highest of `scores + b_choice` are chosen, as in
      DeepSeek-V3 (arXiv 2412.19437, equations 12 to 16).
    - `"sparsemixer"`: the two highest logits are chosen one after the other, each scored by a softmax over the logits
      that are not far behind it (Liu et al. 2023, arXiv 2310.00811, as PhiMoE has it).

    With `cfg.expert_groups`, only experts in the best groups can be chosen. A group is as good as its best expert, or
    with sigmoids as its best two together. The scores times `cfg.expert_weight_scale` weight the experts' outputs, or
    with `cfg.scale_expert_inputs` what they read.

    Each expert is an MLP, gated if `cfg.gated_mlp`; the weights of all are `W_in`, `W_gate [expert, d_model, d_mlp]`,
    `W_out [expert, d_mlp, d_model]`, `b_in`, `b_gate [expert, d_mlp]`, `W_router [d_model, expert]`, and with
    `cfg.expert_output_biases` `b_out_expert [expert, d_model]`. With `cfg.d_mlp_shared`, every token goes through the
    MLP `shared` as well, whose output `cfg.gate_shared_expert` multiplies by `sigmoid(x W_shared_gate +
    b_shared_gate)`. With `cfg.norm_expert_outputs`, what experts write together and what that MLP writes go through the
    norms `ln_experts` and `ln_shared` before they are added up.

    Hook points: `hook_expert_weights [batch, pos, expert]`, the scores of all experts, before any is chosen (set one to
    zero, and another is chosen instead; for the sparse mixer these are the logits, to be set to minus infinity);
    `hook_expert_indices [batch, pos, chosen]`, the experts chosen, first choice first (another index takes another
    expert, with its score); and what the experts chosen compute, in the same order: `hook_pre`, `hook_pre_linear` (when
    gated) and `hook_post [batch, pos, chosen, d_mlp]`.
    """

    shared: MLP

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        assert cfg.d_mlp is not None and cfg.act_fn is not None
        assert cfg.num_experts is not None and cfg.experts_per_token is not None
        self.cfg = cfg
        experts, d_model, d_mlp = cfg.num_experts, cfg.d_model, cfg.d_mlp
        self.W_router = empty_parameter(cfg, d_model, experts)
        self.b_router = zero_parameter(cfg, experts)
        if cfg.router == "sigmoid":
            self.b_choice = zero_parameter(cfg, experts)
        self.W_in = empty_parameter(cfg, experts, d_model, d_mlp)
        self.b_in = zero_parameter(cfg, experts, d_mlp)
        if cfg.gated_mlp:
            self.W_gate = empty_parameter(cfg, experts, d_model, d_mlp)
            self.b_gate = zero_parameter(cfg, experts, d_mlp)
        self.W_out = empty_parameter(cfg, experts, d_mlp, d_model)
        if cfg.expert_output_biases:
            self.b_out_expert = zero_parameter(cfg, experts, d_model)
        self.b_out = zero_parameter(cfg, d_model)
        if cfg.d_mlp_shared is not None:
            self.shared = _dense(cfg, cfg.d_mlp_shared)
        if cfg.gate_shared_expert:
            self.W_shared_gate = empty_parameter(cfg, d_model, 1)
            self.b_shared_gate = zero_parameter(cfg, 1)
        if cfg.norm_expert_outputs:
            self.ln_experts, self.ln_shared = make_post_norm(cfg), make_post_norm(cfg)
        self.act_fn = activation_of(cfg)
        self.hook_expert_weights = HookPoint()
        self.hook_expert_indices = HookPoint()
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()
        if cfg.gated_mlp:
            self.hook_pre_linear = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        weights, chosen = self.route(x)
        order = chosen.flatten().argsort(stable=True)  # slots (token, which of its experts) by expert
        counts = chosen.flatten().bincount(minlength=self.W_in.shape[0]).tolist()
        tokens, weight = order // chosen.shape[-1], weights.flatten()[order, None]
        mine = x.flatten(0, 1)[tokens]
        if self.cfg.scale_expert_inputs:
            mine = mine * weight

        def shown(point: HookPoint, values: Tensor) -> Tensor:
            if not is_listening(point):
                return values
            by_token = torch.empty_like(values).index_copy(0, order, values)
            return point(by_token.unflatten(0, chosen.shape)).flatten(0, 2)[order]

        if self.cfg.gated_mlp:
            gate = shown(self.hook_pre, _by_expert(mine, counts, self.W_gate, self.b_gate))
            linear = shown(self.hook_pre_linear, _by_expert(mine, counts, self.W_in, self.b_in))
            post = gated(self.cfg, self.act_fn, gate, linear)
        else:
            post = self.act_fn(shown(self.hook_pre, _by_expert(mine, counts, self.W_in, self.b_in)))
        biases = self.b_out_expert if self.cfg.expert_output_biases else None
        made = _by_expert(shown(self.hook_post, post), counts, self.W_out, biases)
        if not self.cfg.scale_expert_inputs:
            made = made * weight
        out = torch.zeros_like(x).flatten(0, 1).index_add(0, tokens, made).view_as(x) + self.b_out
        if self.cfg.d_mlp_shared is None:
            return out
        shared = self._shared_out(x)
        return self.ln_experts(out) + self.ln_shared(shared) if self.cfg.norm_expert_outputs else out + shared

    def _shared_out(self, x: Tensor) -> Tensor:
        out: Tensor = self.shared(x)
        if not self.cfg.gate_shared_expert:
            return out
        return torch.sigmoid(F.linear(x, self.W_shared_gate.T, self.b_shared_gate)) * out

    def route(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos chosen"], Int[Tensor, "batch pos chosen"]]:
        """Return the weights of each token's experts, and their numbers; scores are in float32 at least."""
        logits = F.linear(x, self.W_router.T, self.b_router).to(torch.promote_types(x.dtype, torch.float32))
        weights, chosen = self._sparse_mixer(logits) if self.cfg.router == "sparsemixer" else self._top(logits)
        if self.cfg.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return (weights * self.cfg.expert_weight_scale).to(x.dtype), chosen

    def _top(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        by_sigmoid = self.cfg.router == "sigmoid"
        scores = logits.sigmoid() if by_sigmoid else logits.softmax(-1)
        scores = self.hook_expert_weights(writable(self.hook_expert_weights, scores))
        order = scores + self.b_choice if by_sigmoid else scores
        if self.cfg.expert_groups is not None:
            order = order.masked_fill(~self._in_best_groups(order), -math.inf)
        chosen = self.hook_expert_indices(order.topk(self.cfg.experts_per_token or 1, dim=-1).indices)
        return scores.gather(-1, chosen), chosen

    def _in_best_groups(self, order: Float[Tensor, "batch pos expert"]) -> Bool[Tensor, "batch pos expert"]:
        groups = order.unflatten(-1, (self.cfg.expert_groups or 1, -1))
        of_group = groups.topk(2 if self.cfg.router == "sigmoid" else 1, dim=-1).values.sum(-1)
        best = of_group.topk(self.cfg.expert_groups_per_token or 1, dim=-1).indices
        allowed = torch.zeros_like(of_group, dtype=torch.bool).scatter(-1, best, True)
        return allowed[..., None].expand_as(groups).flatten(-2)

    def _sparse_mixer(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = left = self.hook_expert_weights(logits)
        picks = []
        for _ in range(2):
            picks.append(left.argmax(-1, keepdim=True))
            left = left.scatter(-1, picks[-1], -math.inf)
        chosen = self.hook_expert_indices(torch.cat(picks, dim=-1))
        weights, left = [], logits
        for pick in chosen.split(1, dim=-1):
            top = left.amax(-1, keepdim=True)
            behind = (top - logits) / logits.abs().clamp(min=top) > self.cfg.sparsemixer_margin
            weights.append(left.masked_fill(behind, -math.inf).softmax(-1).gather(-1, pick))
            left = left.scatter(-1, pick, -math.inf)
        return torch.cat(weights, dim=-1), chosen


def _by_expert(
    rows: Float[Tensor, "slot width"],
    counts: list[int],
    matrices: Float[Tensor, "expert width out"],
    biases: Float[Tensor, "expert out"] | None = None,
) -> Float[Tensor, "slot out"]:
    """Each expert's matrix applied to its rows: the first `counts[0]` are the first expert's, and so on."""
    used = [(expert, part) for expert, part in enumerate(rows.split(counts)) if len(part)]
    if not used:
        return rows.new_empty(0, matrices.shape[-1])
    return torch.cat(
        [F.linear(part, matrices[expert].T, None if biases is None else biases[expert]) for expert, part in used]
    )


def _dense(cfg: HookedTransformerConfig, d_mlp: int | None = None) -> MLP:
    return (GatedMLP if cfg.gated_mlp else MLP)(cfg, d_mlp)


def make_mlp(cfg: HookedTransformerConfig, layer: int) -> nn.Module:
    """The MLP the config asks for in a layer."""
    return MoE(cfg) if cfg.has_experts(layer) else _dense(cfg, cfg.d_mlp_dense)
