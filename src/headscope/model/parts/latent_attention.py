"""Latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads are made from one narrow vector.

The stream is projected to a latent, which goes through a norm; each head's values and most of its keys are projections
of that. The rest of a key is a rotated vector that all heads share, projected from the stream itself. Queries may come
from a latent of their own. Hooks show what queries, keys and values become for each head, as in any attention.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.attention import Attention, GroupedQueryAttention
from headscope.model.parts.layers import RMSNorm, empty_parameter, zero_parameter
from headscope.model.parts.projections import project
from headscope.model.parts.rotary import rotate

__all__ = ["LatentAttention", "make_attention"]


class LatentNorm(RMSNorm):
    """The norm of a latent, whose `eps` is not that of the model's other norms."""

    @property
    def eps(self) -> float:
        """Added to the variance."""
        return 1e-6


class LatentAttention(Attention):
    """The heads of one layer, their keys and values (and queries, with `cfg.d_latent_q`) made from latents.

    With `c = norm(x W_KV_down + b_KV_down)`, a head's values are `c W_V_up + b_V`, and its keys `c W_K_up` beside
    `x W_K_rotary + b_K_rotary`, plus `b_K`: only the latter, the last `cfg.rotary_dim` dimensions, are turned by
    position, as are those of its queries, `norm(x W_Q_down + b_Q_down) W_Q_up + b_Q`, or `x W_Q_up + b_Q` without a
    latent.

    Weights: `W_Q_down [d_model, d_latent_q]`, `W_Q_up [head, d_latent_q, d_head]`, `W_KV_down [d_model, d_latent_kv]`,
    `W_K_up [head, d_latent_kv, d_head - rotary_dim]`, `W_V_up [head, d_latent_kv, d_head_v]`, `W_K_rotary [d_model,
    rotary_dim]`, `W_O [head, d_head_v, d_model]`; norms `q_latent_norm`, `kv_latent_norm`.

    `W_V`, and so `OV`, is the product of the two matrices with the norm's weight between them: what a head reads, but
    for the scale of the norm, which differs from position to position. `W_K`, and `W_Q` with a latent, are refused: a
    key is partly behind the norm and partly not, so that no one matrix makes it.
    """

    def _make_weights(self, cfg: HookedTransformerConfig) -> None:
        heads, d_model, latent, turned = cfg.n_heads, cfg.d_model, cfg.d_latent_kv, cfg.rotary_dim
        assert latent is not None and turned is not None
        if cfg.d_latent_q is not None:
            self.W_Q_down = empty_parameter(cfg, d_model, cfg.d_latent_q)
            self.b_Q_down = zero_parameter(cfg, cfg.d_latent_q)
            self.q_latent_norm = LatentNorm(cfg, cfg.d_latent_q)
        self.W_Q_up = empty_parameter(cfg, heads, cfg.d_latent_q or d_model, cfg.d_head)
        self.W_KV_down = empty_parameter(cfg, d_model, latent)
        self.b_KV_down = zero_parameter(cfg, latent)
        self.kv_latent_norm = LatentNorm(cfg, latent)
        self.W_K_up = empty_parameter(cfg, heads, latent, cfg.d_head - turned)
        self.W_K_rotary = empty_parameter(cfg, d_model, turned)
        self.b_K_rotary = zero_parameter(cfg, turned)
        self.W_V_up = empty_parameter(cfg, heads, latent, cfg.value_width)
        self.W_O = empty_parameter(cfg, heads, cfg.value_width, d_model)
        self.b_Q = zero_parameter(cfg, heads, cfg.d_head)
        self.b_K = zero_parameter(cfg, heads, cfg.d_head)
        self.b_V = zero_parameter(cfg, heads, cfg.value_width)
        self.b_O = zero_parameter(cfg, d_model)

    @property
    def W_Q(self) -> Tensor:  # type: ignore[override]
        """Query weights of each head, where queries are made from the stream."""
        if self.cfg.d_latent_q is None:
            return self.W_Q_up
        raise _no_matrix(
            "W_Q", "a query is made from a latent behind a norm: W_Q_down, q_latent_norm and W_Q_up make it"
        )

    @property
    def W_K(self) -> Tensor:  # type: ignore[override]
        """Refused: keys are partly behind a norm."""
        reason = "a key is partly made from a latent behind a norm (W_KV_down, kv_latent_norm, W_K_up), partly not"
        raise _no_matrix("W_K", f"{reason} (W_K_rotary)")

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head_v"]:  # type: ignore[override]
        """Value weights of each head, but for the scale of the norm between."""
        return (self.W_KV_down * self.kv_latent_norm.w) @ self.W_V_up

    @property
    def reads_linearly(self) -> bool:
        """False: the norm of a latent stands between the stream and queries, keys and values."""
        return False

    def projected(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self._latent(key_input)
        content = self.cfg.d_head - self.W_K_rotary.shape[1]
        of_latent = project(latent, self.W_K_up, self.b_K[:, :content])
        shared = F.linear(key_input, self.W_K_rotary.T, self.b_K_rotary)
        shared = (shared if shared.ndim == 4 else shared.unsqueeze(2)) + self.b_K[:, content:]
        v = project(latent if value_input is key_input else self._latent(value_input), self.W_V_up, self.b_V)
        q = project(self._query_latent(query_input), self.W_Q_up, self.b_Q)
        return q, torch.cat([of_latent, shared], dim=-1), v

    def of_head(
        self, name: Literal["q", "k", "v"], head: int, read: Float[Tensor, "*lead d_model"], *, biased: bool = True
    ) -> Float[Tensor, "*lead d_head"]:
        kind = read.dtype
        if name == "q":
            found = self._query_latent(read) @ self.W_Q_up[head].to(kind)
        elif name == "v":
            found = self._latent(read) @ self.W_V_up[head].to(kind)
        else:
            shared = F.linear(read, self.W_K_rotary.T.to(kind), self.b_K_rotary.to(kind))
            found = torch.cat([self._latent(read) @ self.W_K_up[head].to(kind), shared], dim=-1)
        return found + getattr(self, f"b_{name.upper()}")[head].to(kind) if biased else found

    def _latent(self, read: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_latent_kv"]:
        return _through(read, self.W_KV_down, self.b_KV_down, self.kv_latent_norm)

    def _query_latent(self, read: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_latent_q"]:
        if self.cfg.d_latent_q is None:
            return read
        return _through(read, self.W_Q_down, self.b_Q_down, self.q_latent_norm)

    def _rotated(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        content = x.shape[-1] - sin.shape[-1]
        turned = rotate(x[..., content:], sin, cos, adjacent=self.cfg.rotary_adjacent_pairs)
        return torch.cat([x[..., :content], turned], dim=-1)


def _through(read: Tensor, weight: Tensor, bias: Tensor, norm: LatentNorm) -> Tensor:
    kind = read.dtype
    return norm.normalize(F.linear(read, weight.T.to(kind), bias.to(kind)), norm.w.to(kind), None)


def _no_matrix(name: str, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"latent attention has no {name}: {reason}. hook_q, hook_k and hook_v show what they become."
    )


def make_attention(cfg: HookedTransformerConfig, layer_id: int) -> Attention:
    """The attention the config asks for."""
    if cfg.d_latent_kv is not None:
        return LatentAttention(cfg, layer_id)
    return (Attention if cfg.n_key_value_heads is None else GroupedQueryAttention)(cfg, layer_id)
