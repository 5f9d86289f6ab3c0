"""Multi-head attention that computes only what somebody looks at.

With nobody on `hook_attn_scores` or `hook_pattern`, scores and pattern never exist: the work is one
`scaled_dot_product_attention`. The per-head `hook_result` [batch, pos, head, d_model] is one batched product, made
only when listened to (or `use_attn_result` is set); otherwise heads are summed inside one matrix product.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from headscope.model.components import empty_parameter, zero_parameter
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening
from headscope.ops.factored import FactoredMatrix

__all__ = ["Attention"]


class Attention(nn.Module):
    """The heads of one layer.

    Weights: `W_Q W_K W_V [head, d_model, d_head]`, `W_O [head, d_head, d_model]`, `b_Q b_K b_V [head, d_head]`,
    `b_O [d_model]`.
    """

    def __init__(self, cfg: HookedTransformerConfig, layer_id: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        self.layer_id = layer_id
        heads, width, d_model = cfg.n_heads, cfg.d_head, cfg.d_model
        self.W_Q = empty_parameter(cfg, heads, d_model, width)
        self.W_K = empty_parameter(cfg, heads, d_model, width)
        self.W_V = empty_parameter(cfg, heads, d_model, width)
        self.W_O = empty_parameter(cfg, heads, width, d_model)
        self.b_Q = zero_parameter(cfg, heads, width)
        self.b_K = zero_parameter(cfg, heads, width)
        self.b_V = zero_parameter(cfg, heads, width)
        self.b_O = zero_parameter(cfg, d_model)
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_z = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_result = HookPoint()
        self._mask: Tensor | None = None

    @property
    def attn_scale(self) -> float:
        """What scores are divided by."""
        scale = self.cfg.attn_scale if self.cfg.use_attn_scale else 1.0
        return scale * (self.layer_id + 1) if self.cfg.scale_attn_by_inverse_layer_idx else scale

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V W_O` of each head: what a head writes for what it reads."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q W_K^T` of each head: what it looks for."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def mask(self) -> Bool[Tensor, "query_pos key_pos"]:
        """Which keys each query may see, by position alone. Assign a mask of your own to change it."""
        if self._mask is not None:
            return self._mask
        allowed = torch.ones(self.cfg.n_ctx, self.cfg.n_ctx, dtype=torch.bool, device=self.W_Q.device)
        return allowed.tril() if self.cfg.attention_dir == "causal" else allowed

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self._mask = mask.bool()

    def forward(
        self,
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "batch pos *head d_model"],
        value_input: Float[Tensor, "batch pos *head d_model"],
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attend.

        Args:
            query_input: Normalized residual stream, with a head axis if each head has an input of its own.
            key_input: The same for keys.
            value_input: The same for values.
            attention_mask: `[batch, pos]`, true for real tokens; `None` when all are.
        """
        q = self.hook_q(_project(query_input, self.W_Q, self.b_Q))
        k = self.hook_k(_project(key_input, self.W_K, self.b_K))
        v = self.hook_v(_project(value_input, self.W_V, self.b_V))
        if is_listening(self.hook_attn_scores) or is_listening(self.hook_pattern):
            z = self._attend_visibly(q, k, v, attention_mask)
        else:
            z = self._attend_fused(q, k, v, attention_mask)
        z = self.hook_z(z)
        if self.cfg.use_attn_result or is_listening(self.hook_result):
            result = self.hook_result(torch.einsum("bphe,hed->bphd", z, self.W_O))
            return result.sum(-2) + self.b_O
        return F.linear(z.flatten(-2), self.W_O.flatten(0, 1).T, self.b_O)

    def _allowed(self, length: int, attention_mask: Tensor | None) -> Bool[Tensor, "#batch 1 query_pos key_pos"]:
        if self._mask is not None:
            by_position = self._mask[:length, :length]
        else:
            by_position = torch.ones(length, length, dtype=torch.bool, device=self.W_Q.device)
            by_position = by_position.tril() if self.cfg.attention_dir == "causal" else by_position
        allowed = by_position[None, None]
        return allowed if attention_mask is None else allowed & attention_mask.bool()[:, None, None, :]

    def _attend_visibly(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
        allowed = self._allowed(q.shape[1], attention_mask)
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / self.attn_scale
        scores = self.hook_attn_scores(scores.masked_fill(~allowed, -math.inf))
        # A padded query may see no key at all: its softmax is NaN, its pattern is taken as zero. The softmax keeps its
        # output for the backward pass, so a hook that writes in place needs this copy in any case.
        pattern = scores.softmax(-1)
        pattern = torch.where(pattern.isnan(), 0.0, pattern)
        pattern = self.hook_pattern(pattern.to(v.dtype))
        return torch.einsum("bhqk,bkhe->bqhe", pattern, v)

    def _attend_fused(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
        plain = attention_mask is None and self._mask is None
        mask = None if plain else self._allowed(q.shape[1], attention_mask)
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=plain and self.cfg.attention_dir == "causal",
            scale=1.0 / self.attn_scale,
        ).transpose(1, 2)
        if mask is not None:
            # Backends differ on a query that sees no key; here its output is zero, as its pattern is.
            return torch.where(mask.any(-1)[:, 0, :, None, None], z, 0.0)
        # The kernel keeps its output for the backward pass; a hook may write to this one.
        return z.clone() if z.requires_grad and is_listening(self.hook_z) else z


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Float[Tensor, "batch pos head d_head"]:
    if x.ndim == 4:
        return torch.einsum("bphd,hde->bphe", x, weight) + bias
    heads, _, width = weight.shape
    stacked = weight.permute(0, 2, 1).reshape(heads * width, -1)
    return F.linear(x, stacked, bias.flatten()).unflatten(-1, (heads, width))
