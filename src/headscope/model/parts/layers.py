"""The parts of a block: embeddings, norms, MLP, unembedding. Attention has a file of its own."""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint
from headscope.model.listening import Show, unless_changed
from headscope.model.parts.masks import token_positions
from headscope.ops.activations import gelu_fast, gelu_new, gelu_pytorch_tanh, solu, xielu
from headscope.ops.kernels.products import linear

__all__ = [
    "MLP",
    "XIELU",
    "Embed",
    "GatedMLP",
    "HeadNorm",
    "LayerNorm",
    "LayerNormPre",
    "PosEmbed",
    "RMSNorm",
    "RMSNormPre",
    "Unembed",
    "ValueNorm",
    "make_final_norm",
    "make_norm",
    "make_post_norm",
    "make_pre_norm",
]

_ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_pytorch_tanh": gelu_pytorch_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "solu": solu,
    "solu_ln": solu,
}


def activation_of(cfg: HookedTransformerConfig) -> Callable[[Tensor], Tensor]:
    """The function `cfg.act_fn` names; a module with weights for `"xielu"`."""
    assert cfg.act_fn is not None
    return XIELU(cfg) if cfg.act_fn == "xielu" else _ACTIVATION_FUNCTIONS[cfg.act_fn]


def empty_parameter(cfg: HookedTransformerConfig, *shape: int) -> nn.Parameter:
    """An unset weight; the model draws or loads its values."""
    return nn.Parameter(torch.empty(*shape, dtype=cfg.dtype))


def zero_parameter(cfg: HookedTransformerConfig, *shape: int) -> nn.Parameter:
    """A bias, or a weight that starts at zero."""
    return nn.Parameter(torch.zeros(*shape, dtype=cfg.dtype))


class XIELU(nn.Module):
    """The activation `xielu`, whose curvatures a layer learns as `alpha_p` and `alpha_n [1]`; `beta` and `eps` stay."""

    weights: ClassVar[tuple[str, ...]] = ("alpha_p", "alpha_n", "beta", "eps")

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()

        def parameter(value: Tensor, *, learned: bool) -> nn.Parameter:
            return nn.Parameter(value.to(cfg.dtype), requires_grad=learned)

        beta = torch.tensor(0.5)
        # By the inverse of softplus: curvatures of 0.8 at the start, on both sides.
        self.alpha_p = parameter(torch.tensor([0.8]).expm1().log(), learned=True)
        self.alpha_n = parameter((torch.tensor([0.8]) - beta).expm1().log(), learned=True)
        self.beta = parameter(beta, learned=False)
        self.eps = parameter(torch.tensor(-1e-6), learned=False)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return xielu(x, self.alpha_p, self.alpha_n, self.beta, self.eps)


class Embed(nn.Module):
    """Token embedding, `W_E [d_vocab, d_model]`, and the LayerNorm `ln` behind it if there is one."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_E = empty_parameter(cfg, cfg.d_vocab, cfg.d_model)
        if cfg.post_embedding_ln:
            self.ln = LayerNorm(cfg)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        try:
            embedding = F.embedding(tokens, self.W_E)
        except IndexError:
            bad = tokens[(tokens < 0) | (tokens >= self.W_E.shape[0])]
            raise InvalidInputError(
                f"tokens must be between 0 and d_vocab - 1 = {self.W_E.shape[0] - 1}; got {bad[0].item()}. "
                "Were they made by another model's tokenizer?",
                code="HS-TOKENS-01",
            ) from None
        return self.ln(embedding) if self.cfg.post_embedding_ln else embedding


class PosEmbed(nn.Module):
    """Learned positional embedding, `W_pos [n_ctx, d_model]`. Padded positions do not count; theirs is zero."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_pos = empty_parameter(cfg, cfg.n_ctx, cfg.d_model)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        past_kv_pos_offset: int = 0,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Embeddings of the positions of `tokens`, which come after `past_kv_pos_offset` others.

        Args:
            tokens: Only their shape counts.
            past_kv_pos_offset: How many tokens are in front of these.
            attention_mask: `[batch, offset + pos]`, true for real tokens; `None` when all are.
        """
        batch, length = tokens.shape
        end = past_kv_pos_offset + length
        if end > self.W_pos.shape[0]:
            raise InvalidInputError(
                f"the input has {end} tokens, but this model's context is n_ctx = {self.W_pos.shape[0]}. "
                "Cut it, or split it into several sequences.",
                code="HS-TOKENS-03",
            )
        if attention_mask is None:
            return self.W_pos[past_kv_pos_offset:end].expand(batch, -1, -1)
        embedding = F.embedding(token_positions(attention_mask)[:, past_kv_pos_offset:], self.W_pos)
        return embedding.masked_fill(~attention_mask.bool()[:, past_kv_pos_offset:, None], 0.0)


class _Norm(nn.Module):
    """A norm over d_model: `centered` subtracts the mean, `affine` has a weight (and, when centered, a bias)."""

    centered: bool
    affine: bool
    w: nn.Parameter
    b: nn.Parameter

    def __init__(self, cfg: HookedTransformerConfig, length: int | None = None, layer: int | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.length = cfg.d_model if length is None else length
        self._layer = layer  # whose stream it reads, if it reads one
        if self.affine:
            self.w = nn.Parameter(torch.ones(self.length, dtype=cfg.dtype))
        if self.affine and self.centered:
            self.b = zero_parameter(cfg, self.length)
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    @property
    def eps(self) -> float:
        """Added to the variance."""
        return self.cfg.eps_of(self._layer)

    def forward(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        return self.normalize(x, self.w if self.affine else None, self.b if self.affine and self.centered else None)

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The norm of `x`, times a weight and plus a bias where there is one."""

        def inside(show: Show) -> Tensor:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.centered:
                wide = wide - wide.mean(-1, keepdim=True)
            scale = show(self.hook_scale, (wide.square().mean(-1, keepdim=True) + self.eps).sqrt())
            return show(self.hook_normalized, (wide / scale).to(x.dtype))

        def outside(normalized: Tensor) -> Tensor:
            weighted = normalized if weight is None else normalized * weight
            return weighted if bias is None else weighted + bias

        def fused() -> Tensor:
            if self.centered:
                return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)
            return F.rms_norm(x, x.shape[-1:], weight, self.eps)

        return unless_changed([self.hook_scale, self.hook_normalized], inside, outside, fused)

    def direction(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """The linear part of the norm without its scale: centered, and times its weight.

        With the scale frozen, `direction(part) / scale` is what a part of `x` becomes, and parts sum to the norm of `x`
        (but for its bias).
        """
        centered = x - x.mean(-1, keepdim=True) if self.centered else x
        return centered * self.w if self.affine else centered


class LayerNorm(_Norm):
    """`(x - mean) / scale * w + b`, scale the standard deviation (eps inside the root)."""

    centered, affine = True, True


class LayerNormPre(_Norm):
    """LayerNorm whose weight and bias are folded into what reads it."""

    centered, affine = True, False


class RMSNorm(_Norm):
    """`x / scale * w`, scale the root mean square."""

    centered, affine = False, True


class RMSNormPre(_Norm):
    """RMSNorm whose weight is folded into what reads it."""

    centered, affine = False, False


_NORMS = {"LN": LayerNorm, "LNPre": LayerNormPre, "RMS": RMSNorm, "RMSPre": RMSNormPre}


class HeadNorm(_Norm):
    """A norm on queries or keys: on each head's, or on those of all heads as one vector.

    Its weight, and the bias of a LayerNorm, are `[d_head]` (the same for all heads), `[head, d_head]`, or
    `[head * d_head]` for one vector.
    """

    centered, affine = False, True

    def __init__(self, cfg: HookedTransformerConfig, n_heads: int, width: int | None = None) -> None:
        self.width = cfg.d_head if width is None else width
        super().__init__(cfg, self.width * n_heads if cfg.qk_norm_all_heads else self.width)
        if cfg.qk_norm_per_head:
            self.w = nn.Parameter(torch.ones(n_heads, self.width, dtype=cfg.dtype))
        if cfg.qk_norm_type == "LN":
            self.centered = True
            self.b = nn.Parameter(torch.zeros_like(self.w))

    def forward(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        n_heads = x.shape[-2]
        weight, bias = self._of(n_heads, self.w), self._of(n_heads, self.b) if self.centered else None
        if self.cfg.qk_norm_all_heads:
            return self.normalize(x.flatten(-2), weight, bias).unflatten(-1, x.shape[-2:])
        if weight.ndim == 1:
            return self.normalize(x, weight, bias)
        normalized = self.normalize(x, None, None) * weight
        return normalized if bias is None else normalized + bias

    def _of(self, n_heads: int, weight: Tensor) -> Tensor:
        """A weight for so many heads. Keys of a group, written out for each of its heads, all have their group's."""
        if not (self.cfg.qk_norm_all_heads or self.cfg.qk_norm_per_head):
            return weight
        by_group = weight.view(-1, self.width)
        return by_group.repeat_interleave(n_heads // len(by_group), dim=0).view(-1, *weight.shape[1:])


class ValueNorm(_Norm):
    """An RMSNorm without weights on each head's values."""

    centered, affine = False, False


def make_norm(
    cfg: HookedTransformerConfig, kind: str | None, length: int | None = None, layer: int | None = None
) -> nn.Module:
    """A norm of this type (`"LN"`, ...) over `d_model` or another length; an identity for `None`.

    Args:
        cfg: The model's config.
        kind: The type.
        length: The length.
        layer: The layer whose stream it reads, if it reads one; `n_layers` for the final one.
    """
    return nn.Identity() if kind is None else _NORMS[kind](cfg, length, layer)


def make_pre_norm(cfg: HookedTransformerConfig, layer: int) -> nn.Module:
    """Return the norm that attention or MLP of a layer reads the stream through; an identity if there is none."""
    return make_norm(cfg, cfg.normalization_type if cfg.has_pre_norms else None, layer=layer)


def make_final_norm(cfg: HookedTransformerConfig) -> nn.Module:
    """Return the norm in front of the unembedding."""
    return make_norm(cfg, cfg.final_norm, layer=cfg.n_layers)


def make_post_norm(cfg: HookedTransformerConfig) -> nn.Module:
    """Return the norm behind attention or MLP, in a model with them. Its weight has nothing to be folded into."""
    return make_norm(cfg, "LN" if cfg.centered_norm else "RMS")


class MLP(nn.Module):
    """`act(x W_in + b_in) W_out + b_out`; with `"solu_ln"`, a LayerNorm `ln` comes behind the activation."""

    ln: nn.Module

    def __init__(self, cfg: HookedTransformerConfig, d_mlp: int | None = None) -> None:
        super().__init__()
        d_mlp = cfg.d_mlp if d_mlp is None else d_mlp
        assert d_mlp is not None
        self.cfg = cfg
        self.W_in = empty_parameter(cfg, cfg.d_model, d_mlp)
        self.b_in = zero_parameter(cfg, d_mlp)
        if cfg.gated_mlp:
            self.W_gate = empty_parameter(cfg, cfg.d_model, d_mlp)
            self.b_gate = zero_parameter(cfg, d_mlp)
        self.W_out = empty_parameter(cfg, d_mlp, cfg.d_model)
        self.b_out = zero_parameter(cfg, cfg.d_model)
        self.act_fn = activation_of(cfg)
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()
        if cfg.is_layer_norm_activation():
            self.hook_mid = HookPoint()
            self.reset_norm()

    def reset_norm(self) -> None:
        """Make the norm behind the activation anew, of the type the config asks for now."""
        if self.cfg.is_layer_norm_activation():
            folded = self.cfg.normalization_type in ("LNPre", "RMSPre")
            self.ln = make_norm(self.cfg, "LNPre" if folded else "LN", self.cfg.d_mlp)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        post = self.act_fn(self.hook_pre(linear(x, self.W_in, self.b_in)))
        if self.cfg.is_layer_norm_activation():
            post = self.ln(self.hook_mid(post))
        return linear(self.hook_post(post), self.W_out, self.b_out)


class GatedMLP(MLP):
    """`(act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out` ("GLU Variants Improve Transformer", Shazeer 2020).

    `hook_pre` shows what goes into the activation, `hook_pre_linear` the other factor, `hook_post` their product.
    """

    def __init__(self, cfg: HookedTransformerConfig, d_mlp: int | None = None) -> None:
        super().__init__(cfg, d_mlp)
        self.hook_pre_linear = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        gate = self.hook_pre(linear(x, self.W_gate, self.b_gate))
        factor = self.hook_pre_linear(linear(x, self.W_in, self.b_in))
        return linear(self.hook_post(gated(self.cfg, self.act_fn, gate, factor)), self.W_out, self.b_out)


def gated(
    cfg: HookedTransformerConfig, act_fn: Callable[[Tensor], Tensor], gate: Tensor, linear: Tensor
) -> Float[Tensor, "*lead d_mlp"]:
    """`act(gate) * linear`; both clamped, and the linear factor shifted, where the config says so (as in gpt-oss)."""
    limit = cfg.gated_mlp_limit
    if limit is not None:
        gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    return act_fn(gate) * (linear + cfg.gated_mlp_offset if cfg.gated_mlp_offset else linear)


class Unembed(nn.Module):
    """Residual stream to logits, `W_U [d_model, d_vocab_out]` and `b_U`."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_U = empty_parameter(cfg, cfg.d_model, cfg.d_vocab_out)
        self.b_U = zero_parameter(cfg, cfg.d_vocab_out)

    def forward(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return linear(residual, self.W_U, self.b_U)
