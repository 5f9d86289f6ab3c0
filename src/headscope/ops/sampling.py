"""`sample_logits`: the next token of each row, drawn from its logits."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.differences import tell
from headscope.errors import InvalidInputError, NotFiniteError

__all__ = ["sample_logits"]


def sample_logits(
    final_logits: Float[Tensor, "*batch d_vocab"],
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    tokens: Int[Tensor, "*batch pos"] | None = None,
    *,
    generator: torch.Generator | None = None,
    attention_mask: Bool[Tensor, "*batch pos"] | Int[Tensor, "*batch pos"] | None = None,
) -> Int[Tensor, "*batch"]:
    """Draw one token for each row of logits.

    Applied in this order: repetition penalty, temperature, frequency penalty, `top_k`, `top_p`, and a draw from the
    softmax of what is left. At temperature 0 the likeliest token after the repetition penalty is taken.

    Args:
        final_logits: Logits of the last position; they are not changed.
        top_k: Draw from the `top_k` likeliest tokens (and those equal to the last of them).
        top_p: Nucleus sampling: draw from the smallest set of likeliest tokens with at least this much probability,
            out of those `top_k` left.
        temperature: Divides the logits: above 1 the draw is more even, below 1 more certain.
        freq_penalty: Subtracted from a token's logit for each of its occurrences in `tokens`.
        repetition_penalty: Divides positive logits of the tokens in `tokens`, and multiplies negative ones (Keskar et
            al. 2019, arXiv 1909.05858).
        tokens: The text so far, which the two penalties need.
        generator: Source of randomness; PyTorch's global generator by default.
        attention_mask: 0 for those of `tokens` that are padding, which no penalty counts.

    Raises:
        InvalidInputError: For an option out of range, or a penalty without `tokens`.
        NotFiniteError: If a row has a NaN, a plus infinity, or nothing but minus infinities.

    Example:
        >>> logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 9.0]])
        >>> sample_logits(logits, temperature=0.0)
        tensor([1, 2])
        >>> sample_logits(logits, temperature=0.0, repetition_penalty=2.0, tokens=torch.tensor([[1, 0], [0, 0]]))
        tensor([2, 2])
    """
    if top_k is not None and top_p is not None and temperature != 0.0:
        tell("top_k and top_p")
    _check_options(final_logits, top_k, top_p, temperature, repetition_penalty)
    logits = final_logits.float()
    if repetition_penalty != 1.0:
        seen = _occurrences(tokens, attention_mask, logits, "repetition_penalty") > 0
        penalized = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(seen, penalized, logits)
    if temperature == 0.0:
        largest, likeliest = logits.max(-1)
        _check_finite(~largest.isnan())
        return likeliest
    if temperature != 1.0:
        logits = logits / temperature
    if freq_penalty != 0.0:
        logits = logits - freq_penalty * _occurrences(tokens, attention_mask, logits, "freq_penalty")
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1.0:
        logits = _keep_nucleus(logits, top_p)
    probs = logits.softmax(-1)
    # One NaN or infinity makes its whole row NaN, so checking one entry of each row is enough.
    _check_finite(~probs[..., 0].isnan())
    # The largest of p / e with e ~ Exp(1) is a draw from p. torch.multinomial draws one sample this way, so the same
    # seed gives the same token as there.
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)


def _keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Mask tokens once likelier ones hold `top_p` of the probability; the likeliest always stays."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    before = F.pad(probs.cumsum(-1)[..., :-1], (1, 0))
    unneeded = before >= top_p
    return logits.masked_fill(torch.zeros_like(unneeded).scatter_(-1, order, unneeded), -torch.inf)


def _check_options(
    logits: Tensor, top_k: int | None, top_p: float | None, temperature: float, repetition_penalty: float
) -> None:
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise InvalidInputError(f"final_logits must be [batch, d_vocab]; got shape {list(logits.shape)}.")
    if top_k is not None and top_k < 1:
        raise InvalidInputError(f"top_k must be at least 1, or None for all tokens; got {top_k}.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise InvalidInputError(f"top_p must be above 0 and at most 1, or None for all tokens; got {top_p}.")
    if not 0.0 <= temperature < float("inf"):
        raise InvalidInputError(f"temperature must be 0 (the likeliest token) or a positive number; got {temperature}.")
    if not 0.0 < repetition_penalty < float("inf"):
        raise InvalidInputError(f"repetition_penalty must be positive, 1 for none; got {repetition_penalty}.")


def _occurrences(tokens: Tensor | None, mask: Tensor | None, logits: Tensor, option: str) -> Tensor:
    """Return how often each token of the vocabulary occurs in a row, padding apart."""
    ids = _checked_tokens(tokens, logits, option)
    counted = torch.ones_like(ids) if mask is None else mask.to(ids.device).bool()
    return torch.zeros_like(logits).scatter_add_(-1, ids, counted.to(logits.dtype))


def _checked_tokens(tokens: Tensor | None, logits: Tensor, option: str) -> Tensor:
    if tokens is None:
        raise InvalidInputError(f"{option} needs the text so far: pass tokens [batch, pos].")
    if tokens.shape[:-1] != logits.shape[:-1]:
        raise InvalidInputError(
            f"tokens must have one row for each row of logits; got {list(tokens.shape)} and {list(logits.shape)}."
        )
    ids = tokens.to(logits.device, torch.int64)
    if bool(((ids < 0) | (ids >= logits.shape[-1])).any()):
        raise InvalidInputError(
            f"tokens must be between 0 and d_vocab - 1 = {logits.shape[-1] - 1}; "
            f"got {int(ids.min())} to {int(ids.max())}.",
            code="HS-TOKENS-01",
        )
    return ids


def _check_finite(fine: Tensor) -> None:
    if not bool(fine.all()):
        raise NotFiniteError(
            "cannot sample from these logits: a row has a NaN or plus infinity, or only minus infinity. "
            "Check the model's weights, and any hooks on it.",
            code="HS-FINITE-02",
        )
