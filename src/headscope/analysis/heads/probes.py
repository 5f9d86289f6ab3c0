"""Rows in which something is said twice: random tokens, or pieces of a text, at several distances.

A head that looks a fixed distance back attends to what is repeated at that distance and to nothing at others, and one
that works only near the start of a row is not seen on long rows. So a third of the tokens is in rows of each of three
lengths: the longest, half and a quarter of it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.heads.scores import scored_tokens
from headscope.errors import InvalidInputError
from headscope.model.text.tokens import bos_token_id
from headscope.model.transformer import HookedTransformer

__all__ = ["random_repeats", "repeats_of", "rows_of"]

_SHORTEST, _SHORTEST_OF_SEVERAL = 2, 8
_LONGEST = 50
_FEW = 24  # rows, from which they are shared out among lengths, so that each has eight
_PIECES = 4096  # tokens of a text, from which pieces are cut
_ROW, _ROWS = 128, 8  # tokens in a row at most, and rows at least, of a text
_FEWEST = 8  # different pieces, of which an error can be known


def random_repeats(
    model: HookedTransformer, n_sequences: int, length: int | None, seed: int, special_tokens: Sequence[int] = ()
) -> list[Int[Tensor, "row pos"]]:
    """Return rows of random tokens said twice.

    Args:
        model: Whose tokens they are.
        n_sequences: Rows in all.
        length: Tokens that are said twice; default: three lengths, where there are rows enough.
        seed: Of the draw.
        special_tokens: Ids to leave out; without a tokenizer the first begins each row.

    Raises:
        InvalidInputError: For a length that does not fit.
    """
    shares = _lengths(model, n_sequences, length)
    return [scored_tokens(model, n, each, seed, special_tokens) for each, n in shares.items()]


def repeats_of(
    model: HookedTransformer, text: Any, n_sequences: int, length: int | None, seed: int
) -> list[Int[Tensor, "row pos"]]:
    """Return rows that say a piece of a text twice: the text's own tokens, in their own order.

    Rows count as independent, so no start serves two of them, no two are alike, and pieces of one length do not
    overlap: a short text has fewer, and none of a length of which it has fewer than eight.

    Args:
        model: Whose tokens they are.
        text: Its tokens, see `rows_of`.
        n_sequences: Rows in all, at most.
        length: Tokens that are said twice; default: three lengths, where there are rows enough.
        seed: Where pieces start.

    Raises:
        InvalidInputError: For a length that does not fit, a text shorter than that, or one of fewer than eight pieces.
    """
    every = list(_counted(model, text))
    shares = _lengths(model, n_sequences, length, fits=max(map(len, every), default=0))
    longest = max(shares)
    # A piece lies within a row, so that none joins two texts.
    rows = [row for row in every if len(row) >= longest]
    if not rows:
        raise InvalidInputError(f"the text has no row of {longest} tokens to say twice: give a longer one.")
    bos = None if model.tokenizer is None else bos_token_id(model.tokenizer)
    begin = torch.tensor([] if bos is None else [bos], dtype=torch.long, device="cpu")
    places = [(number, at) for number, row in enumerate(rows) for at in range(len(row) - min(shares) + 1)]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed), device="cpu")
    drawn = [places[at] for at in order.tolist()]
    found, taken, most = [], set[tuple[int, int]](), 0
    for each, n in shares.items():
        pieces = _apart([place for place in drawn if place not in taken], rows, each, n)
        taken.update(pieces)
        most = max(most, len(pieces))
        if len(pieces) >= min(_FEWEST, n):
            found.append(torch.stack([torch.cat([begin, piece, piece]) for piece in pieces.values()]))
    if not found:
        raise InvalidInputError(
            f"the text has {most} different pieces of {' or '.join(map(str, shares))} tokens to say twice, and an "
            f"error needs {min(_FEWEST, n_sequences)}: give a longer text, or a smaller length."
        )
    return found


def _apart(
    places: Iterable[tuple[int, int]], rows: Sequence[Tensor], length: int, most: int
) -> dict[tuple[int, int], Tensor]:
    """The first places, by row and start, whose pieces lie within a row, do not overlap and differ from each other."""
    found: dict[tuple[int, int], Tensor] = {}
    seen = set[tuple[int, ...]]()
    begun: dict[int, list[int]] = {}
    for number, at in places:
        if len(found) == most:
            break
        piece = rows[number][at : at + length]
        said, near = tuple(piece.tolist()), begun.setdefault(number, [])
        if len(said) == length and said not in seen and all(abs(at - other) >= length for other in near):
            seen.add(said)
            near.append(at)
            found[number, at] = piece
    return found


def rows_of(model: HookedTransformer, text: Any) -> Any:
    """Return a text as data: a string, of its first 4,096 tokens, cut into rows after BOS, where the model has one.

    Anything else is data as it is.
    """
    if not isinstance(text, str):
        return text
    bos = bos_token_id(model.tokenizer) if model.tokenizer is not None else None
    tokens = model.to_tokens(text, prepend_bos=False, truncate=False)[0, :_PIECES]
    # Errors are over rows, so that there should be some.
    length = max(1, min(_ROW, model.cfg.n_ctx, len(tokens) // _ROWS) - (bos is not None))
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    return rows if bos is None else torch.nn.functional.pad(rows, (1, 0), value=bos)


def _counted(model: HookedTransformer, text: Any) -> Iterable[Int[Tensor, " pos"]]:
    """The positions of each row of a text that count, of the first few thousand tokens."""
    seen = 0
    for batch in iterate_batches(model, text, progress=False):
        for row, counted in zip(batch.tokens.cpu(), batch.counted.cpu(), strict=True):
            yield row[counted]
            seen += int(counted.sum())
            if seen >= _PIECES:
                return


def _lengths(model: HookedTransformer, n_sequences: int, length: int | None, fits: int = _LONGEST) -> dict[int, int]:
    """Return how many rows say how many tokens twice; without `length`, at most `fits`."""
    longest = (model.cfg.n_ctx - 1) // 2
    if (length is not None and not _SHORTEST <= length <= longest) or longest < _SHORTEST:
        raise InvalidInputError(
            f"length must be between {_SHORTEST} and {longest}, since it is said twice after BOS and the context is "
            f"n_ctx = {model.cfg.n_ctx}; got {length}."
        )
    most = max(_SHORTEST, min(_LONGEST, longest, fits))
    if length is not None or n_sequences < _FEW:
        return {length or most: n_sequences}
    lengths = [most, *(most // part for part in (2, 4) if most // part >= _SHORTEST_OF_SEVERAL)]
    # Alike, since each length has an error of its own.
    counts = [(n_sequences + at) // len(lengths) for at in range(len(lengths))]
    return dict(zip(lengths, counts, strict=True))
