"""Mixture of experts: an MLP of which each token uses a few parts, chosen by a router.

A token costs what its experts cost: tokens are put in the order of their experts, so that each expert that has any is
one matrix product over just these, and no work is done for the others.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening
from headscope.model.parts.layers import MLP, GatedMLP, activation_of, empty_parameter, zero_parameter

__all__ = ["MoE", "make_mlp"]


class MoE(nn.Module):
    """`sum over the chosen experts e of p_e * expert_e(x)`, plus `b_out` ("Outrageously Large Neural Networks", Shazeer
    et al. 2017, arXiv 1701.06538; as Mixtral has it, Jiang et al. 2024, arXiv 2401.04088).

    The router gives each expert a probability, `softmax(x W_router + b_router)`; the `cfg.experts_per_token` likeliest
    are chosen, and with `cfg.norm_topk_prob` their probabilities made to sum to one. Each expert is an MLP, gated if
    `cfg.gated_mlp`; the weights of all are `W_in`, `W_gate [expert, d_model, d_mlp]`, `W_out [expert, d_mlp, d_model]`,
    `b_in`, `b_gate [expert, d_mlp]`, and `W_router [d_model, expert]`.

    Hook points: `hook_expert_weights [batch, pos, expert]`, the probabilities of all experts, before any is chosen (set
    one to zero, and the next likely is chosen instead); `hook_expert_indices [batch, pos, chosen]`, the experts chosen,
    likeliest first (another index takes another expert, with its probability); and what the experts chosen compute, in
    the same order: `hook_pre`, `hook_pre_linear` (when gated) and `hook_post [batch, pos, chosen, d_mlp]`.
    """

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        assert cfg.d_mlp is not None and cfg.act_fn is not None
        assert cfg.num_experts is not None and cfg.experts_per_token is not None
        self.cfg = cfg
        experts, d_model, d_mlp = cfg.num_experts, cfg.d_model, cfg.d_mlp
        self.W_router = empty_parameter(cfg, d_model, experts)
        self.b_router = zero_parameter(cfg, experts)
        self.W_in = empty_parameter(cfg, experts, d_model, d_mlp)
        self.b_in = zero_parameter(cfg, experts, d_mlp)
        if cfg.gated_mlp:
            self.W_gate = empty_parameter(cfg, experts, d_model, d_mlp)
            self.b_gate = zero_parameter(cfg, experts, d_mlp)
        self.W_out = empty_parameter(cfg, experts, d_mlp, d_model)
        self.b_out = zero_parameter(cfg, d_model)
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
        tokens = order // chosen.shape[-1]
        mine = x.flatten(0, 1)[tokens]

        def shown(point: HookPoint, values: Tensor) -> Tensor:
            if not is_listening(point):
                return values
            by_token = torch.empty_like(values).index_copy(0, order, values)
            return point(by_token.unflatten(0, chosen.shape)).flatten(0, 2)[order]

        if self.cfg.gated_mlp:
            gate = self.act_fn(shown(self.hook_pre, _by_expert(mine, counts, self.W_gate, self.b_gate)))
            post = gate * shown(self.hook_pre_linear, _by_expert(mine, counts, self.W_in, self.b_in))
        else:
            post = self.act_fn(shown(self.hook_pre, _by_expert(mine, counts, self.W_in, self.b_in)))
        made = _by_expert(shown(self.hook_post, post), counts, self.W_out) * weights.flatten()[order, None]
        return torch.zeros_like(x).flatten(0, 1).index_add(0, tokens, made).view_as(x) + self.b_out

    def route(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos chosen"], Int[Tensor, "batch pos chosen"]]:
        """Return the weights of each token's experts, and their numbers; the softmax is in float32 at least."""
        logits = F.linear(x, self.W_router.T, self.b_router)
        wide = torch.promote_types(x.dtype, torch.float32)
        weights = self.hook_expert_weights(logits.softmax(-1, dtype=wide))
        chosen = self.hook_expert_indices(weights.topk(self.cfg.experts_per_token or 1, dim=-1).indices)
        weights = weights.gather(-1, chosen)
        if self.cfg.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen


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


def make_mlp(cfg: HookedTransformerConfig) -> nn.Module:
    """The MLP the config asks for."""
    if cfg.num_experts is not None:
        return MoE(cfg)
    return (GatedMLP if cfg.gated_mlp else MLP)(cfg)
