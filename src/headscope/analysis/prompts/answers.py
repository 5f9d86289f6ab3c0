"""The logit difference: the mean logit of right answers less that of wrong ones, where they are predicted."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["answer_difference", "logit_difference", "positions_error"]


def logit_difference(
    logits: Float[Tensor, "prompt *pos d_vocab"],
    answer_tokens: Int[Tensor, "prompt 2"],
    per_prompt: bool = False,
    *,
    positions: Int[Tensor, " prompt"] | None = None,
) -> Float[Tensor, "*prompt"]:
    """Return the right answer's logit less the wrong one's.

    Args:
        logits: At every position, or (without that axis) where the answer is predicted.
        answer_tokens: For each prompt the right token, then the wrong one.
        per_prompt: One number for each prompt, instead of their mean.
        positions: Where each prompt's answer is predicted; default: at the last position.

    Raises:
        InvalidInputError: If shapes do not fit, or a token or position is out of range.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0, 5.0]], [[2.0, 0.0, 1.0]]])
        >>> logit_difference(logits, torch.tensor([[2, 1], [1, 0]]), per_prompt=True)
        tensor([ 4., -2.])
    """
    differences = answer_difference(logits, answer_tokens[:, :1], answer_tokens[:, 1:], positions=positions)
    return differences if per_prompt else differences.mean()


def answer_difference(
    logits: Float[Tensor, "prompt *pos d_vocab"],
    correct: Int[Tensor, "prompt n_correct"],
    incorrect: Int[Tensor, "prompt n_incorrect"],
    *,
    positions: Int[Tensor, " prompt"] | None = None,
) -> Float[Tensor, " prompt"]:
    """Return the mean logit of each prompt's right answers less that of its wrong ones.

    Raises:
        InvalidInputError: If shapes do not fit, a token or position is out of range, or there are no answers.
    """
    if not (correct.shape[-1] and incorrect.shape[-1]):
        raise InvalidInputError("the logit difference is of right and wrong answers, and one of these has none.")
    if not len(logits) == len(correct) == len(incorrect):
        raise InvalidInputError(
            f"there are answers for {len(correct)} and {len(incorrect)} prompts, and logits {list(logits.shape)} for "
            f"{len(logits)}; give a row of each for every prompt."
        )
    if logits.ndim == 3:
        last = torch.full_like(correct[:, 0], logits.shape[1] - 1) if positions is None else positions
        if bool(((last < 0) | (last >= logits.shape[1])).any()):
            raise positions_error(last, logits.shape[1])
        rows = torch.arange(len(logits), device=logits.device)
        logits = logits[rows, last.to(logits.device)]
    both = torch.cat([correct, incorrect], dim=1).to(logits.device)
    d_vocab = logits.shape[-1]
    if bool(((both < 0) | (both >= d_vocab)).any()):
        raise InvalidInputError(
            f"answers must be tokens from 0 to {d_vocab - 1}; they go from {int(both.min())} to {int(both.max())}.",
            code="HS-TOKENS-01",
        )
    right, wrong = logits.gather(-1, both).split([correct.shape[1], incorrect.shape[1]], dim=1)
    return right.mean(-1) - wrong.mean(-1)


def positions_error(positions: Tensor, length: int) -> InvalidInputError:
    """Say which positions do not exist."""
    lowest, highest = int(positions.min()), int(positions.max())
    return InvalidInputError(f"positions must be from 0 to {length - 1}; they go from {lowest} to {highest}.")
