"""`token_log_probs`: the log-probability of each token of a text, and the tokens the model expected instead."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.packing import color_limit
from headscope.views.html import HtmlView

__all__ = ["token_log_probs"]

_LOG_PROB = "log prob"
_TILE = 1 << 22  # numbers in the rows processed at a time: 16 MiB


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a tokenizer used here: `decode`."""

    def decode(self, token_ids: Any, /, **options: Any) -> Any:
        """Return the text of a list of tokens."""


def token_log_probs(
    token_indices: Any,
    log_probs: Any,
    to_string: Callable[[int], str] | Tokenizer | Sequence[str],
    *,
    top_k: int = 10,
    negative: bool = False,
    name: str = _LOG_PROB,
    unit: str = "",
    max_value: float | None = None,
    title: str = "",
) -> HtmlView:
    """Color the tokens of a text by their log-probability, as predicted at the position before.

    Hovering over a token shows its log-probability, probability and rank, and the `top_k` predictions in its place or,
    with a switch, after it. A click pins it.

    Each row of `log_probs` is read once: nothing is sorted, and only the `top_k` are kept.

    Args:
        token_indices: The text's tokens, `[pos]` or `[1, pos]`.
        log_probs: Log-probabilities of the next token at each position, `[pos, d_vocab]` or `[1, pos, d_vocab]`: a
            tensor on any device, an array or lists.
        to_string: Strings of tokens: a function, a tokenizer, or a list with a string for each token.
        top_k: Number of tokens to show at each position; at most the whole vocabulary.
        negative: Show the lowest instead of the highest.
        name: Name of the values. With any name but "log prob" (such as "direct effect") they may be any real numbers,
            and no probabilities are shown.
        unit: Their unit; nats for log-probabilities.
        max_value: The magnitude with the full color; the largest by default.
        title: A heading.

    Raises:
        InvalidInputError: If shapes do not match, a token is not in the vocabulary, a number is NaN or plus infinity,
            or probabilities do not sum to 1.

    Example:
        >>> log_probs = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()
        >>> view = token_log_probs([0, 1], log_probs, to_string=["a", " b", " c"], top_k=2)
        >>> view.data["ranks"]  # of the second token; nothing predicts the first
        [2]
    """
    tokens, rows = _checked(token_indices, log_probs)
    if not isinstance(top_k, int) or top_k < 1:
        raise InvalidInputError(f"top_k is {top_k!r}; it must be a whole number, at least 1.")
    is_log_prob = name == _LOG_PROB
    values, ranks, top, top_values = _rank(
        rows, tokens, min(top_k, rows.shape[1]), negative=negative, is_log_prob=is_log_prob
    )
    string_index = {int(token): at for at, token in enumerate(np.unique(np.concatenate([tokens, top.reshape(-1)])))}
    return HtmlView(
        "logits",
        {
            "strings": [_string(to_string, token) for token in string_index],
            "tokens": [string_index[token] for token in tokens.tolist()],
            "values": _short(values),
            "ranks": ranks.tolist(),
            "top": [[string_index[token] for token in row] for row in top.tolist()],
            "topValues": [_short(row) for row in top_values],
            "vocabulary": rows.shape[1],
            "negative": negative,
            "probabilities": is_log_prob,
            "signed": not is_log_prob,
            "limit": color_limit(values, max_value),
            "name": name,
            "unit": unit or ("nats" if is_log_prob else ""),
        },
        title,
    )


def _checked(token_indices: Any, log_probs: Any) -> tuple[np.ndarray, Tensor]:
    """Check and return tokens `[pos]` and numbers `[pos, d_vocab]`."""
    tokens = to_array(token_indices, "token_indices", axes=1)
    if tokens.ndim != 1 or not tokens.size:
        raise InvalidInputError(
            f"token_indices must be one sequence of tokens, [pos] or [1, pos]; got shape {list(tokens.shape)}."
        )
    if isinstance(log_probs, Tensor):
        rows = log_probs.detach()
    else:
        rows = torch.from_numpy(to_array(log_probs, "log_probs"))
    if rows.ndim == 3 and rows.shape[0] == 1:
        rows = rows[0]
    if rows.ndim != 2 or rows.shape[0] != tokens.size or not rows.shape[1]:
        raise InvalidInputError(
            f"log_probs has shape {list(rows.shape)}; it must be [pos, d_vocab] or [1, pos, d_vocab] with a row for "
            f"each of the {tokens.size} tokens."
        )
    wrong = np.flatnonzero((tokens < 0) | (tokens >= rows.shape[1]) | (tokens != np.rint(tokens)))
    if wrong.size:
        raise InvalidInputError(
            f"token_indices[{wrong[0]}] is {tokens[wrong[0]]:g}; the tokens of log_probs are 0 to {rows.shape[1] - 1}."
        )
    return tokens.astype(np.int64), rows


def _rank(
    rows: Tensor, tokens: np.ndarray, k: int, *, negative: bool, is_log_prob: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return values and ranks `[pos-1]` of the actual next tokens, and the top tokens and values `[pos, k]`.

    Ranks start at 1; equal numbers share the better rank.
    """
    following = torch.as_tensor(tokens, device=rows.device)
    values, ranks, top, top_values = [], [], [], []
    at_once = max(1, _TILE // rows.shape[1])
    for start in range(0, rows.shape[0], at_once):
        chunk = rows[start : start + at_once]
        exact = chunk if chunk.dtype == torch.float64 else chunk.float()
        _check_numbers(exact, start, is_log_prob=is_log_prob, halved=chunk.dtype in (torch.float16, torch.bfloat16))
        best = exact.topk(k, dim=-1, largest=not negative)
        top.append(best.indices.cpu().numpy())
        top_values.append(best.values.cpu().double().numpy())
        next_tokens = following[start + 1 : start + 1 + len(exact)]
        next_values = exact[: len(next_tokens)].gather(-1, next_tokens[:, None])
        values.append(next_values[:, 0].cpu().double().numpy())
        ranks.append(1 + (exact[: len(next_tokens)] > next_values).sum(-1).cpu().numpy())
    return np.concatenate(values), np.concatenate(ranks), np.concatenate(top), np.concatenate(top_values)


def _check_numbers(rows: Tensor, start: int, *, is_log_prob: bool, halved: bool) -> None:
    """Raise for numbers without a rank, and for log-probabilities that do not sum to 1."""
    wrong = (rows.isnan() | (rows == torch.inf)).any(-1).nonzero()
    if len(wrong):
        raise InvalidInputError(
            f"log_probs holds NaN or plus infinity at position {start + int(wrong[0])}; each number must be finite, "
            "or minus infinity."
        )
    if not is_log_prob:
        return
    total = rows.logsumexp(-1)
    wrong = (total.abs() > (0.2 if halved else 0.01)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise InvalidInputError(
            f"log_probs are not log-probabilities: the probabilities at position {start + at} sum to "
            f"{float(total[at].exp()):.4g}, not 1. Give logits.log_softmax(-1), or name the numbers otherwise, as in "
            "name='direct effect'.",
            code="HS-VIEWS-03",
        )


def _string(to_string: Any, token: int) -> str:
    # Tokenizers are callable too, so check for `decode` first.
    if isinstance(to_string, Tokenizer):
        string = to_string.decode([token], clean_up_tokenization_spaces=False)
    elif callable(to_string):
        string = to_string(token)
    elif isinstance(to_string, Sequence) and not isinstance(to_string, str):
        if token >= len(to_string):
            raise InvalidInputError(
                f"to_string is a list of {len(to_string)} strings, which has none for token {token}."
            )
        string = to_string[token]
    else:
        raise InvalidInputError(
            f"to_string is {type(to_string).__name__}; give a function from a token to its string, such as "
            "model.to_string, a tokenizer, or a list of strings."
        )
    if not isinstance(string, str):
        raise InvalidInputError(
            f"to_string gave {type(string).__name__} {string!r:.60} for token {token}; it must give a string."
        )
    return string


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
