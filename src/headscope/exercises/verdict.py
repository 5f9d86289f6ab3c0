"""Verdicts on answers: right, or what seems to have gone wrong."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Verdict", "judge"]

_TOLERANCE = 2e-3  # of the largest entry: float32, and means in another order

# What an answer is of the right one where another logarithm was taken.
_FACTORS = {
    -1.0: "The sign is the other way round: it is the right answer times -1",
    1 / math.log(2): "It is in bits: the logarithm was taken to base 2, and nats are asked for",
    math.log(2): "It is the right answer times ln 2, as if nats had been taken for bits",
    1 / math.log(10): "The logarithm was taken to base 10, and nats are asked for",
}


@dataclass(frozen=True)
class Verdict:
    """The judgment on an answer; true if it is right.

    Attributes:
        right: Is it right?
        says: Why, or what seems to have gone wrong.

    Example:
        >>> Verdict(False, "It is in bits.")
        Not yet. It is in bits.
    """

    right: bool
    says: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}. {self.says}"


def judge(
    answer: Any,
    right: Tensor,
    axes: Sequence[str] = (),
    *,
    mistakes: Mapping[str, Tensor | Callable[[], Tensor]] | None = None,
    praise: str,
) -> Verdict:
    """Compare an answer with the right one, and with what usual mistakes give.

    Args:
        answer: A tensor, an array, numbers in lists, or whatever else the reader's function returned.
        right: The right answer.
        axes: Names of its axes.
        mistakes: A sentence about each mistake, and the answer it leads to, or a function that computes it. Those
            common to all exercises (axes, sign, factor, base of the logarithm, off by one) are known here.
        praise: Sentence on the right answer.

    Example:
        >>> right = torch.tensor([1.0, 2.0, 4.0])
        >>> judge([1.443, 2.885, 5.771], right, ["layer"], praise="Entropy in nats.")
        Not yet. It is in bits: the logarithm was taken to base 2, and nats are asked for.
    """
    found = _as_numbers(answer)
    if isinstance(found, str):
        return Verdict(False, found)
    right = right.detach().to("cpu", torch.float64)
    if found.shape != right.shape:
        return Verdict(False, _on_shape(found, right, axes))
    if not bool(found.isfinite().all()):
        return Verdict(False, "It holds NaN or infinite values: a logarithm of zero, or a division by it?")
    if _close(found, right):
        return Verdict(True, praise)
    for sentence, given in (mistakes or {}).items():
        wrong = given if isinstance(given, Tensor) else given()
        if _close(found, wrong.detach().to("cpu", torch.float64)):
            return Verdict(False, sentence if sentence.endswith("?") else f"{sentence}.")
    return Verdict(False, f"{_known_mistake(found, right, axes) or _largest_difference(found, right, axes)}.")


def _as_numbers(answer: Any) -> Tensor | str:
    if answer is None:
        return "There is no answer yet: it is None. Does your function return its result?"
    try:
        numbers = _stacked(answer).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return f"The answer is a {type(answer).__name__}, not numbers: give a tensor."
    if numbers.is_complex():
        return "These are complex numbers, and real ones are asked for: take .real of what has no imaginary part."
    return numbers.to(torch.float64)


def _stacked(answer: Any) -> Tensor:
    """Return an answer as one tensor; it may come as a list of rows, each a tensor."""
    if isinstance(answer, list | tuple) and any(isinstance(row, Tensor | list | tuple) for row in answer):
        return torch.stack([_stacked(row) for row in answer])
    return torch.as_tensor(answer)


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    return float((found - wanted).abs().max()) <= _TOLERANCE * max(float(wanted.abs().max()), 1e-9)


def _on_shape(found: Tensor, right: Tensor, axes: Sequence[str]) -> str:
    wanted = f"[{', '.join(axes)}] = {list(right.shape)}" if axes else "one number"
    if sorted(found.shape) == sorted(right.shape):
        return f"Its axes are in another order: {list(found.shape)}, and {wanted} is asked for. Transpose it."
    if found.squeeze().shape == right.shape:
        return f"Its shape is {list(found.shape)}, and {wanted} is asked for: take the axes of length 1 away."
    return f"Its shape is {list(found.shape)}, and {wanted} is asked for. Is an axis left over, or averaged away?"


def _known_mistake(found: Tensor, right: Tensor, axes: Sequence[str]) -> str:
    for factor, sentence in _FACTORS.items():
        if _close(found, right * factor):
            return sentence
    if right.ndim > 1 and _close(found.mT.contiguous(), right) and right.shape[-1] == right.shape[-2]:
        return f"It is transposed: {axes[-1]} and {axes[-2]} are exchanged"
    if right.numel() < 3:
        return ""
    for axis, name in enumerate(axes):
        for by in (1, -1):
            # The last or first entry has nothing to be compared with.
            n = right.shape[axis] - 1
            first, second = found.narrow(axis, max(by, 0), n), right.narrow(axis, max(-by, 0), n)
            if n > 1 and _close(first, second):
                return f"Off by one: everything stands one {name} too {'far on' if by > 0 else 'early'}"
    factor = float((found * right).sum() / (right**2).sum())
    if abs(factor) > 1e-6 and _close(found, right * factor):
        return f"All of it is {factor:.4g} times the right answer: a sum where a mean is asked for, or a missing scale"
    apart = found - right
    if float((apart - apart.mean()).abs().max()) <= _TOLERANCE * float(right.abs().max()):
        return (
            f"All of it is {float(apart.mean()):+.4g} from the right answer: something constant was added or left out"
        )
    return ""


def _largest_difference(found: Tensor, right: Tensor, axes: Sequence[str]) -> str:
    if not axes:
        return f"It is {float(found):.4g}, which is neither right nor a mistake known here"
    at = torch.unravel_index((found - right).abs().argmax(), right.shape)
    n_right = int(((found - right).abs() <= _TOLERANCE * right.abs().max()).sum())
    where = ", ".join(f"{name} {int(index)}" for name, index in zip(axes, at, strict=True))
    return (
        f"It is right in {n_right} of {right.numel()} places. The largest difference is at {where}, where it is "
        f"{float(found[at]):.4g}"
    )
