"""Data of an analysis: tokens or an iterable of batches in, batches of a bounded size out.

Every analysis takes the same kinds of data, splits them the same way, and agrees on which positions count.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from headscope.analysis.core.progress import progress_bar
from headscope.errors import InvalidInputError
from headscope.model.text.tokens import bos_token_id, pad_token_id
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["Batch", "check_repeatable", "count_tokens", "describe_data", "iterate_batches", "spread"]


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together.

    Attributes:
        tokens: `[row, pos]`.
        attention_mask: True for real tokens; `None` when all are.
        counted: Positions that count in means: real, and not BOS unless asked for.
    """

    tokens: Int[Tensor, "row pos"]
    attention_mask: Bool[Tensor, "row pos"] | None
    counted: Bool[Tensor, "row pos"]

    @cached_property
    def places(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Rows and columns of the positions that count. To index by a mask, the host waits for the device each time."""
        rows, columns = self.counted.nonzero(as_tuple=True)
        return rows, columns

    def predicting(self) -> Bool[Tensor, "row pos"]:
        """Return the positions that count and whose next token is real."""
        found = self.counted.clone()
        found[:, -1] = False
        if self.attention_mask is not None:
            found[:, :-1] &= self.attention_mask[:, 1:]
        return found


def spread(values: Shaped[Tensor, "*lead n"], where: Bool[Tensor, "row pos"]) -> Shaped[Tensor, "*lead row pos"]:
    """Put numbers where their positions are, with NaN (for whole numbers -1) at all others.

    Example:
        >>> spread(torch.tensor([0.5, 2.0]), torch.tensor([[True, False, True]]))
        tensor([[0.5000,    nan, 2.0000]])
    """
    fill = torch.nan if values.is_floating_point() else -1
    rows = values.new_full((*values.shape[:-1], *where.shape), fill)
    rows[..., where] = values
    return rows


def iterate_batches(
    model: HookedTransformer,
    data: Any,
    *,
    attention_mask: Tensor | None = None,
    include_bos: bool = False,
    progress: bool = True,
    description: str = "",
    done: int = 0,
) -> Generator[Batch]:
    """Go through data in batches of at most `Budget.batch_tokens` tokens (or one row, if a row is longer).

    Args:
        model: Whose tokens they are; its tokenizer tells padding and BOS.
        data: Tokens `[batch, pos]` or `[pos]`, or an iterable of batches: such tensors, or mappings with `tokens` or
            `input_ids`, and optionally `attention_mask`.
        attention_mask: For a tensor of tokens: 1 for real tokens. Default: found from the padding token.
        include_bos: Let the BOS position at the start of a row count.
        progress: Show a progress bar, with the time left where the data says how long it is.
        description: Shown beside it.
        done: Tokens that an earlier process did: the bar starts there.

    Raises:
        InvalidInputError: for data of another kind, a wrong shape, a token out of range, or rows longer than the
            model's context.
    """
    if attention_mask is not None and not isinstance(data, Tensor):
        raise InvalidInputError(
            "attention_mask goes with one tensor of tokens; give an iterable's masks in its batches."
        )
    total = count_tokens(data)
    n_batches = _n_batches(data) if total is None else None
    seen = 0
    with progress_bar(total, description, shown=progress, unit="tok", done=done) as bar:
        for number, batch in enumerate([data] if isinstance(data, Tensor) else _checked_iterable(data), 1):
            tokens, mask = _tokens_and_mask(model, batch, attention_mask)
            counted = _counted(model, tokens, mask, include_bos)
            if n_batches is not None:
                bar.total = round((seen + tokens.numel()) / number * max(n_batches, number))
            rows = max(1, Budget.of(tokens.device).batch_tokens // tokens.shape[1])
            for at in range(0, len(tokens), rows):
                part = slice(at, at + rows)
                bar.step = tokens[part].numel()
                yield Batch(tokens[part], None if mask is None else mask[part], counted[part])
                before, seen = seen, seen + tokens[part].numel()
                if seen > done:
                    bar.update(seen - max(before, done))


def check_repeatable(data: Any, why: str) -> None:
    """Refuse data that can be gone through only once, for what needs two passes (`why`, as an option is written)."""
    if not isinstance(data, (Tensor, Mapping)) and isinstance(data, Iterator):
        raise InvalidInputError(
            f"{why} goes through the data twice, and an iterator is used up after the first time. "
            "Give tokens, a list, a DataLoader or a Corpus.",
            code="HS-RUN-07",
        )


def describe_data(data: Any) -> str:
    """Describe data that nobody described."""
    return f"tokens {list(data.shape)}" if isinstance(data, Tensor) else f"batches from a {type(data).__name__}"


def count_tokens(data: Any) -> int | None:
    """Return the number of tokens of data, where it is known without going through it."""
    if isinstance(data, (list, tuple)):
        sizes = [count_tokens(batch) if isinstance(batch, (Tensor, Mapping)) else None for batch in data]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    tokens = data.get("tokens", data.get("input_ids")) if isinstance(data, Mapping) else data
    return tokens.numel() if isinstance(tokens, Tensor) else None


def _n_batches(data: Any) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader over a stream
        return None


def _checked_iterable(data: Any) -> Iterable[Any]:
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, str) or not isinstance(data, Iterable):
        hint = " Make tokens of text first: model.to_tokens(text)." if isinstance(data, str) else ""
        raise InvalidInputError(
            f"data must be tokens [batch, pos] or an iterable of batches; got {type(data).__name__}.{hint}",
            code="HS-TOKENS-02",
        )
    return data


def _tokens_and_mask(
    model: HookedTransformer, batch: Any, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Mapping):
        tokens = batch["tokens"] if "tokens" in batch else batch.get("input_ids")
        mask = batch.get("attention_mask")
    else:
        tokens, mask = batch, attention_mask
    if (
        not isinstance(tokens, Tensor)
        or (tokens.is_floating_point() or tokens.dtype == torch.bool)
        or (tokens.ndim not in (1, 2) or not tokens.numel())
    ):
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InvalidInputError(
            "a batch must be integer tokens [batch, pos] with at least one token, or a mapping with 'tokens' or "
            f"'input_ids'; got {found}.",
            code="HS-TOKENS-02",
        )
    tokens = torch.atleast_2d(tokens).to(model.W_E.device).long()
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.cfg.d_vocab:
        bad = low if low < 0 else high
        raise InvalidInputError(
            f"tokens must be between 0 and d_vocab - 1 = {model.cfg.d_vocab - 1}; got {bad}.", code="HS-TOKENS-01"
        )
    if tokens.shape[1] > model.cfg.n_ctx:
        raise InvalidInputError(
            f"rows have {tokens.shape[1]} tokens, but this model's context is n_ctx = {model.cfg.n_ctx}. "
            "Cut them, or split them into more rows.",
            code="HS-TOKENS-03",
        )
    if mask is None:
        _check_padding(model, tokens)
        return tokens, model.attention_mask(tokens)
    mask = torch.atleast_2d(torch.as_tensor(mask)).to(tokens.device).bool()
    if mask.shape != tokens.shape:
        raise InvalidInputError(
            f"attention_mask must have the tokens' shape {list(tokens.shape)}; got {list(mask.shape)}.",
            code="HS-TOKENS-06",
        )
    return tokens, mask


def _check_padding(model: HookedTransformer, tokens: Tensor) -> None:
    """Refuse rows that are padded on the other side than the one on which padding is looked for: it would be text."""
    tokenizer = model.tokenizer
    pad = None if tokenizer is None else pad_token_id(tokenizer)
    if pad is None or not bool((is_pad := tokens == pad).any()):
        return
    side = model.padding_side_or_default(None)
    other = "left" if side == "right" else "right"
    run = (is_pad if other == "left" else is_pad.flip(-1)).cumprod(-1).sum(-1)
    # A row may begin with BOS, and then with the separator that ends a text; it may end with a separator.
    allowed = int(pad == tokenizer.eos_token_id) + int(other == "left" and pad == bos_token_id(tokenizer))
    padded = ((run > allowed) & (run < tokens.shape[1])).nonzero()[:, 0]
    if len(padded):
        row = int(padded[0])
        raise InvalidInputError(
            f"row {row} {'begins' if other == 'left' else 'ends'} with {int(run[row])} padding tokens, and padding is "
            f"looked for on the {side}, so that they would count as text. Give the mask too, "
            f"attention_mask=model.attention_mask(tokens, padding_side={other!r}), or set model.default_padding_side = "
            f"{other!r}."
        )


def _counted(model: HookedTransformer, tokens: Tensor, mask: Tensor | None, include_bos: bool) -> Tensor:
    counted = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.clone()
    bos = None if model.tokenizer is None else bos_token_id(model.tokenizer)
    if include_bos or bos is None:
        return counted
    first = counted & (counted.long().cumsum(-1) == 1)
    return counted & ~(first & (tokens == bos))
