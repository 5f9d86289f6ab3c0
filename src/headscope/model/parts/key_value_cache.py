"""Keys and values of tokens already read, so that a longer text costs only its new tokens.

    past = HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, batch_size=1)
    model(prompt, past_kv_cache=past)
    past.freeze()
    model(continuation, past_kv_cache=past)  # as if the prompt stood in front of it

Memory is `2 * layers * batch * positions * key_value_heads * d_head` numbers. Buffers grow by doubling, so that adding
one token at a time copies each of them a constant number of times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig

__all__ = ["HookedTransformerKeyValueCache", "HookedTransformerKeyValueCacheEntry"]


class _Growing:
    """A tensor `[batch, pos, ...]` that is added to along `pos`."""

    def __init__(self, start: Tensor) -> None:
        self._buffer = start
        self._length = start.shape[1]

    @property
    def tensor(self) -> Tensor:
        return self._buffer[:, : self._length]

    def extend(self, new: Tensor) -> Tensor:
        """Everything so far with `new` behind it, which is kept."""
        end = self._length + new.shape[1]
        if new.requires_grad or self._buffer.requires_grad:
            # A buffer written in place could not be differentiated through.
            self._buffer = torch.cat([self.tensor, new], dim=1)
        else:
            if end > self._buffer.shape[1] or self._buffer.is_inference() != new.is_inference():
                room = max(end, 2 * self._buffer.shape[1])
                grown = new.new_empty(new.shape[0], room, *new.shape[2:])
                grown[:, : self._length] = self.tensor
                self._buffer = grown
            self._buffer[:, self._length : end] = new
        self._length = end
        return self.tensor

    def cut(self, length: int) -> None:
        """Forget what came after the first `length` positions."""
        self._length = min(self._length, length)


class HookedTransformerKeyValueCacheEntry:
    """Keys and values of one layer, each `[batch, pos, head, d_head]`.

    Args:
        past_keys: Keys so far.
        past_values: Values so far.
        frozen: `append` gives the extended tensors and keeps the old.
    """

    def __init__(
        self,
        past_keys: Float[Tensor, "batch pos head d_head"],
        past_values: Float[Tensor, "batch pos head d_head_v"],
        frozen: bool = False,
    ) -> None:
        self._keys = _Growing(past_keys)
        self._values = _Growing(past_values)
        self.frozen = frozen
        self._due: int | None = None  # how many positions it must hold in the present pass of a whole model

    @classmethod
    def init_cache_entry(
        cls, cfg: HookedTransformerConfig, device: torch.device | str | None, batch_size: int = 1, layer: int = 0
    ) -> Self:
        """An empty entry for one layer of a model."""
        keys, values = (
            torch.empty(batch_size, 0, cfg.cached_heads_of(layer), width, device=device, dtype=cfg.dtype)
            for width in (cfg.head_width_of(layer), cfg.value_width_of(layer))
        )
        return cls(keys, values)

    @property
    def past_keys(self) -> Float[Tensor, "batch pos head d_head"]:
        """Keys so far."""
        return self._keys.tensor

    @property
    def past_values(self) -> Float[Tensor, "batch pos head d_head_v"]:
        """Values so far."""
        return self._values.tensor

    def append(
        self,
        new_keys: Float[Tensor, "batch new_pos head d_head"],
        new_values: Float[Tensor, "batch new_pos head d_head_v"],
    ) -> tuple[Tensor, Tensor]:
        """Past and new keys and values together; kept, unless the entry is frozen.

        Raises:
            InvalidInputError: if the batch differs from that of the past, or other layers have read more or fewer
                positions.
        """
        if self._due not in (None, self.past_keys.shape[1]):
            raise InvalidInputError(
                f"the cache holds {self._due} positions, but {self.past_keys.shape[1]} of this layer: earlier passes "
                "with it left layers out (stop_at_layer, start_at_layer). Run the rest of each pass with the same "
                "cache before the next, or begin with a new one."
            )
        if self.past_keys.device != new_keys.device:  # the layer is elsewhere than the model's first
            self._keys, self._values = (
                _Growing(past.to(new_keys.device)) for past in (self.past_keys, self.past_values)
            )
        past, new = self.past_keys, new_keys
        if past.shape[0] != new.shape[0] or past.shape[2:] != new.shape[2:]:
            raise InvalidInputError(
                f"the cache holds keys [batch, pos, head, d_head] = {list(past.shape)}; the new ones are "
                f"{list(new.shape)}. Batch and heads must agree: pass the batch size to init_cache.",
                code="HS-CACHE-03",
            )
        if self.frozen:
            return torch.cat([past, new], dim=1), torch.cat([self.past_values, new_values], dim=1)
        return self._keys.extend(new), self._values.extend(new_values)

    def cut(self, length: int) -> None:
        """Forget what came after the first `length` positions."""
        self._keys.cut(length)
        self._values.cut(length)


class HookedTransformerKeyValueCache:
    """The entries of all layers, and which of the tokens so far were padding.

    Args:
        entries: One per layer.
        previous_attention_mask: `[batch, pos]`, 1 for real tokens.
        frozen: Nothing is added any more: many texts can be run after one prefix.

    Example:
        >>> import torch
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("When Mary and John went to the store")
        >>> past = HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device)
        >>> _ = model(tokens[:, :5], past_kv_cache=past)
        >>> logits = model(tokens[:, 5:], past_kv_cache=past)  # of the last four tokens, which read the first five
        >>> past, model.to_str_tokens(logits[0, -1].topk(3).indices)
        (HookedTransformerKeyValueCache(5 layers, 9 positions, frozen=False), [',', '.', ' to'])
    """

    def __init__(
        self,
        entries: list[HookedTransformerKeyValueCacheEntry],
        previous_attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"],
        frozen: bool = False,
    ) -> None:
        self.entries = entries
        self.previous_attention_mask = previous_attention_mask
        self.frozen = frozen
        if frozen:
            self.freeze()

    @classmethod
    def init_cache(
        cls, cfg: HookedTransformerConfig, device: torch.device | str | None = None, batch_size: int = 1
    ) -> Self:
        """An empty cache for a model."""
        device = cfg.device if device is None else device
        entry = HookedTransformerKeyValueCacheEntry.init_cache_entry
        return cls(
            [entry(cfg, device, batch_size, layer) for layer in range(cfg.n_layers)],
            torch.ones(batch_size, 0, dtype=torch.bool, device=device),
        )

    @property
    def n_past(self) -> int:
        """The number of positions it holds."""
        return self.previous_attention_mask.shape[1]

    def freeze(self) -> None:
        """Add nothing from now on."""
        self._set_frozen(True)

    def unfreeze(self) -> None:
        """Add what is run from now on."""
        self._set_frozen(False)

    def before(self, layers: range) -> "HookedTransformerKeyValueCache":
        """Return the cache as these layers find it.

        That is the cache itself, unless lower layers have read the next positions already, in the first part of a pass
        in two (`stop_at_layer`, then `start_at_layer`).
        """
        n_past = max((self.entries[layer].past_keys.shape[1] for layer in layers), default=self.n_past)
        return _Before(self, n_past) if layers.start > 0 and n_past < self.n_past else self

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Check in the `with` block what layers hold, and leave all as it was if an error interrupts it."""
        mask, done = self.previous_attention_mask, False
        lengths = [entry.past_keys.shape[1] for entry in self.entries]
        try:
            self._set_due(self.n_past)
            yield
            done = True
        finally:
            self._set_due(None)
            if not done:
                self.previous_attention_mask = mask
                for entry, length in zip(self.entries, lengths, strict=True):
                    entry.cut(length)

    def append_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """The mask of past and new tokens together; kept, unless the cache is frozen."""
        mask = torch.cat([self.previous_attention_mask.bool(), attention_mask.bool()], dim=-1)
        if not self.frozen:
            self.previous_attention_mask = mask
        return mask

    def __getitem__(self, layer: int) -> HookedTransformerKeyValueCacheEntry:
        return self.entries[layer]

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"HookedTransformerKeyValueCache({len(self)} layers, {self.n_past} positions, frozen={self.frozen})"

    def _set_frozen(self, frozen: bool) -> None:
        self.frozen = frozen
        for entry in self.entries:
            entry.frozen = frozen

    def _set_due(self, length: int | None) -> None:
        for entry in self.entries:
            entry._due = length


class _Before(HookedTransformerKeyValueCache):
    """A cache as upper layers find it whose lower layers have read the next positions already."""

    def __init__(self, whole: HookedTransformerKeyValueCache, n_past: int) -> None:
        super().__init__(whole.entries, whole.previous_attention_mask[:, :n_past], whole.frozen)
        self._whole = whole.previous_attention_mask

    def append_attention_mask(self, attention_mask: Tensor) -> Tensor:
        mask = super().append_attention_mask(attention_mask)
        if not torch.equal(mask, self._whole.bool()):
            raise InvalidInputError(
                f"lower layers have read {self._whole.shape[1]} positions with this cache, and these would have read "
                f"{mask.shape[1]}, or others of them as padding. Give the second part of a pass (start_at_layer) what "
                "stop_at_layer returned, and the same attention_mask or tokens."
            )
        return mask
