"""`logits_to_df`: one position's predictions as a table."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas

__all__ = ["logits_to_df"]


@runtime_checkable
class Decoder(Protocol):
    """A decoder of token ids into text; every Hugging Face tokenizer is one."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of some tokens."""
        ...


def logits_to_df(
    logits: Float[Tensor, " d_vocab"], tokenizer: Decoder | None = None, top_k: int | None = None
) -> "pandas.DataFrame":
    """Return a table of tokens with their logit, log-probability (nats) and probability, likeliest first.

    Args:
        logits: Of one position.
        tokenizer: Gives the column `token_string`; without one there is none.
        top_k: Keep this many rows; all by default, and if there are fewer.

    Returns:
        A data frame with the columns `token_index`, `token_string`, `logit`, `log_prob` and `probability`.

    Raises:
        InvalidInputError: If `logits` has more than one axis, or `top_k` is negative.

    Example:
        >>> print(logits_to_df(torch.tensor([0.0, 2.0, 1.0]), top_k=2).round(2).to_string(index=False))
         token_index  logit  log_prob  probability
                   1    2.0     -0.41         0.67
                   2    1.0     -1.41         0.24
    """
    import pandas

    if logits.ndim != 1:
        raise InvalidInputError(f"logits must be those of one position, [d_vocab]; got shape {list(logits.shape)}.")
    if top_k is not None and top_k < 0:
        raise InvalidInputError(f"top_k must be at least 0, or None for all tokens; got {top_k}.")
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).cpu()
    order = logits.argsort(descending=True, stable=True)[:top_k]
    log_probs = logits.log_softmax(-1)[order]
    ids = order.tolist()
    names = {} if tokenizer is None else {"token_string": [tokenizer.decode([i]) for i in ids]}
    values = {"logit": logits[order], "log_prob": log_probs, "probability": log_probs.exp()}
    numbers = {name: value.numpy() for name, value in values.items()}
    return pandas.DataFrame({"token_index": ids, **names, **numbers})
