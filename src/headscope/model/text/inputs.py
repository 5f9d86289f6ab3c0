"""Checked and normalized inputs of a forward pass: tokens, residual streams, attention masks, layer ranges.

Nothing here runs a model. Errors say what the input was, what is allowed and how to fix it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headscope.differences import tell
from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCache

__all__ = [
    "Masks",
    "checked_mask",
    "checked_residual",
    "checked_targets",
    "checked_tokens",
    "is_text",
    "layer_range",
    "new_mask",
    "with_past",
]


def is_text(input: Any) -> bool:
    """Return True for a text or a list of texts."""
    return isinstance(input, str) or (isinstance(input, (list, tuple)) and bool(input) and isinstance(input[0], str))


def checked_targets(tokens: Tensor, cfg: HookedTransformerConfig) -> Tensor:
    """Return the tokens of a loss, after checking that each next token has a logit.

    Only a model with fewer outputs than inputs can lack one, so that others need not wait for the device.

    Raises:
        InvalidInputError: For a token of `d_vocab_out` or more.
    """
    if cfg.d_vocab_out < cfg.d_vocab and tokens[..., 1:].numel():
        largest = int(tokens[..., 1:].max())
        if largest >= cfg.d_vocab_out:
            raise InvalidInputError(
                f"this model has no logit for token {largest}, and so no next-token loss: d_vocab_out is "
                f"{cfg.d_vocab_out}. Compute a loss of your own from its logits (return_type='logits')."
            )
    return tokens


def checked_tokens(input: Any, device: torch.device) -> Tensor:
    """Return tokens `[batch, pos]` on a device, from a tensor `[batch, pos]` or `[pos]`.

    Raises:
        InvalidInputError: For anything else, or no tokens at all.
    """
    if not isinstance(input, Tensor) or input.is_floating_point() or input.dtype == torch.bool:
        given = f"a {input.dtype} tensor" if isinstance(input, Tensor) else type(input).__name__
        raise InvalidInputError(
            f"input must be text or an integer tensor of tokens; got {given}. "
            "To start from a residual stream, pass start_at_layer.",
            code="HS-TOKENS-02",
        )
    tokens = (input[None] if input.ndim == 1 else input).to(device)
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise InvalidInputError(
            f"tokens must be [batch, pos] or [pos] with at least one; got shape {list(input.shape)}.",
            code="HS-TOKENS-02",
        )
    return tokens if tokens.dtype == torch.int32 else tokens.long()


def checked_residual(input: Any, d_model: int) -> Tensor:
    """Check that an input is a residual stream `[batch, pos, d_model]`.

    Raises:
        InvalidInputError: For anything else.
    """
    if not isinstance(input, Tensor) or input.ndim != 3 or input.shape[-1] != d_model:
        shape = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
        raise InvalidInputError(
            f"with start_at_layer the input is a residual stream [batch, pos, d_model = {d_model}]; got {shape}."
        )
    return input


def checked_mask(given: Tensor, beside: Tensor, n_past: int = 0) -> Tensor | None:
    """Return the attention mask of tokens or a residual stream as booleans `[batch, pos]`; `None` if all are true.

    With `n_past` tokens in a key-value cache the mask may cover these too; only its end is kept.

    Raises:
        InvalidInputError: For a mask of another shape.
    """
    if not isinstance(given, Tensor):
        raise InvalidInputError(
            f"attention_mask must be a tensor [batch, pos]; got {type(given).__name__}.", code="HS-TOKENS-06"
        )
    mask = torch.atleast_2d(given).to(beside.device)
    batch, length = beside.shape[:2]
    if n_past and mask.shape == (batch, n_past + length):
        mask = mask[:, n_past:]
    if mask.shape != (batch, length):
        longer = f" (or {[batch, n_past + length]} with the past)" if n_past else ""
        raise InvalidInputError(
            f"attention_mask must be [batch, pos] = {[batch, length]}{longer}; got {list(given.shape)}.",
            code="HS-TOKENS-06",
        )
    return _unless_all(mask.bool())


@dataclass(frozen=True)
class Masks:
    """Padding masks of a forward pass.

    Attributes:
        counted: `[batch, pos]`, true for the tokens that a loss counts; `None` if all are.
        seen: `[batch, past + pos]`, true for the keys that queries may attend to and that positions count; `None` if
            all are, or if it makes no difference.
        n_past: Number of positions from a key-value cache.
    """

    counted: Tensor | None
    seen: Tensor | None
    n_past: int

    @property
    def of_loss(self) -> Tensor | None:
        """The tokens that a loss counts, `counted`; code that expects padding on the right to count is told."""
        if self.counted is not None and self.seen is None:
            tell("padding")
        return self.counted


def with_past(mask: Tensor | None, past: HookedTransformerKeyValueCache, beside: Tensor) -> Tensor | None:
    """Return the mask of cached and new tokens together; `None` if all are real.

    Raises:
        InvalidInputError: If the cache is for another batch size.
    """
    before = past.previous_attention_mask
    if before.shape[0] != beside.shape[0]:
        raise InvalidInputError(
            f"past_kv_cache is for a batch of {before.shape[0]}; the input has {beside.shape[0]} rows.",
            code="HS-CACHE-03",
        )
    return _unless_all(torch.cat([before.bool(), new_mask(mask, beside)], dim=-1))


def new_mask(mask: Tensor | None, beside: Tensor) -> Tensor:
    """Return the mask of new tokens as a tensor: all true for `None`."""
    return torch.ones(beside.shape[:2], dtype=torch.bool, device=beside.device) if mask is None else mask


def _unless_all(mask: Tensor) -> Tensor | None:
    return None if bool(mask.all()) else mask


def layer_range(n_layers: int, start: int | None, stop: int | None) -> range:
    """Return the layers from `start` up to `stop`; negative numbers count from the end.

    Raises:
        InvalidInputError: For a layer out of range; a `stop` beyond the end is the end.
    """
    for name, layer, last in (("start_at_layer", start, n_layers), ("stop_at_layer", stop, None)):
        whole = layer is None or hasattr(layer, "__index__")
        if not whole or (layer is not None and (layer < -n_layers or (last is not None and layer > last))):
            raise InvalidInputError(
                f"{name} must be between 0 and n_layers = {n_layers}, or negative to count from the end; got {layer!r}."
            )
    return range(n_layers)[start:stop]
