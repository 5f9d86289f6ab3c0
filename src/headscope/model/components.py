"""The parts of a block: embeddings, norms, MLP, unembedding. Attention has a file of its own."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening
from headscope.ops.activations import gelu_fast, gelu_new, gelu_pytorch_tanh, solu

__all__ = ["MLP", "Embed", "LayerNorm", "LayerNormPre", "PosEmbed", "RMSNorm", "RMSNormPre", "Unembed", "make_norm"]

_ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_pytorch_tanh": gelu_pytorch_tanh,
    "silu": F.silu,
    "solu": solu,
}


def empty_parameter(cfg: HookedTransformerConfig, *shape: int) -> nn.Parameter:
    """An unset weight; the model draws or loads its values."""
    return nn.Parameter(torch.empty(*shape, dtype=cfg.dtype))


def zero_parameter(cfg: HookedTransformerConfig, *shape: int) -> nn.Parameter:
    """A bias, or a weight that starts at zero."""
    return nn.Parameter(torch.zeros(*shape, dtype=cfg.dtype))


class Embed(nn.Module):
    """Token embedding, `W_E [d_vocab, d_model]`."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_E = empty_parameter(cfg, cfg.d_vocab, cfg.d_model)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        try:
            return F.embedding(tokens, self.W_E)
        except IndexError:
            bad = tokens[(tokens < 0) | (tokens >= self.W_E.shape[0])]
            raise InvalidInputError(
                f"tokens must be between 0 and d_vocab - 1 = {self.W_E.shape[0] - 1}; got {bad[0].item()}. "
                "Were they made by another model's tokenizer?"
            ) from None


class PosEmbed(nn.Module):
    """Learned positional embedding, `W_pos [n_ctx, d_model]`. Padded positions do not count."""

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
                "Cut it, or split it into several sequences."
            )
        if attention_mask is None:
            return self.W_pos[past_kv_pos_offset:end].expand(batch, -1, -1)
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past_kv_pos_offset:]
        return F.embedding(positions, self.W_pos)


class _Norm(nn.Module):
    """A norm over d_model: `centred` subtracts the mean, `affine` has a weight (and, when centred, a bias)."""

    centred: bool
    affine: bool
    w: nn.Parameter
    b: nn.Parameter

    def __init__(self, cfg: HookedTransformerConfig, length: int | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        width = cfg.d_model if length is None else length
        if self.affine:
            self.w = nn.Parameter(torch.ones(width, dtype=cfg.dtype))
        if self.affine and self.centred:
            self.b = zero_parameter(cfg, width)
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        weight = self.w if self.affine else None
        bias = self.b if self.affine and self.centred else None
        if not (is_listening(self.hook_scale) or is_listening(self.hook_normalized)):
            if self.centred:
                return F.layer_norm(x, x.shape[-1:], weight, bias, self.cfg.eps)
            return F.rms_norm(x, x.shape[-1:], weight, self.cfg.eps)
        dtype = x.dtype
        wide = x.to(torch.promote_types(dtype, torch.float32))
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((wide.square().mean(-1, keepdim=True) + self.cfg.eps).sqrt())
        normalized = self.hook_normalized((wide / scale).to(dtype))
        if weight is not None:
            normalized = normalized * weight
        return normalized if bias is None else normalized + bias


class LayerNorm(_Norm):
    """`(x - mean) / scale * w + b`, scale the standard deviation (eps inside the root)."""

    centred, affine = True, True


class LayerNormPre(_Norm):
    """LayerNorm whose weight and bias are folded into what reads it."""

    centred, affine = True, False


class RMSNorm(_Norm):
    """`x / scale * w`, scale the root mean square."""

    centred, affine = False, True


class RMSNormPre(_Norm):
    """RMSNorm whose weight is folded into what reads it."""

    centred, affine = False, False


_NORMS = {"LN": LayerNorm, "LNPre": LayerNormPre, "RMS": RMSNorm, "RMSPre": RMSNormPre}


def make_norm(cfg: HookedTransformerConfig) -> nn.Module:
    """The norm the config asks for; an identity for `None`."""
    return nn.Identity() if cfg.normalization_type is None else _NORMS[cfg.normalization_type](cfg)


class MLP(nn.Module):
    """`act(x W_in + b_in) W_out + b_out`."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        assert cfg.d_mlp is not None and cfg.act_fn is not None
        self.cfg = cfg
        self.W_in = empty_parameter(cfg, cfg.d_model, cfg.d_mlp)
        self.b_in = zero_parameter(cfg, cfg.d_mlp)
        self.W_out = empty_parameter(cfg, cfg.d_mlp, cfg.d_model)
        self.b_out = zero_parameter(cfg, cfg.d_model)
        self.act_fn = _ACTIVATION_FUNCTIONS[cfg.act_fn]
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(F.linear(x, self.W_in.T, self.b_in))
        post = self.hook_post(self.act_fn(pre))
        return F.linear(post, self.W_out.T, self.b_out)


class Unembed(nn.Module):
    """Residual stream to logits, `W_U [d_model, d_vocab_out]` and `b_U`."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_U = empty_parameter(cfg, cfg.d_model, cfg.d_vocab_out)
        self.b_U = zero_parameter(cfg, cfg.d_vocab_out)

    def forward(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return F.linear(residual, self.W_U.T, self.b_U)
