"""Scores beside the truth: the area under the ROC curve, precision and recall."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Found", "auroc", "found"]


def auroc(scores: Mapping[str, float], true: Iterable[str], idle: Iterable[str]) -> float:
    """Return the area under the ROC curve: how often a true part has a larger score than an idle one; ties are half.

    Args:
        scores: By label, the larger the surer; NaN counts as the lowest.
        true: Labels of what is true.
        idle: Labels of what is not; what is neither is left out.

    Returns:
        NaN if one of the two is empty.

    Example:
        >>> auroc({"0.0": 2.0, "0.1": 0.0, "mlp0": 0.0}, ["0.0", "mlp0"], ["0.1"])
        0.75
    """

    def of(labels: Iterable[str]) -> list[float]:
        values = [scores.get(label, float("-inf")) for label in labels]
        return [value if value == value else float("-inf") for value in values]

    above, below = of(true), of(idle)
    if not above or not below:
        return float("nan")
    wins = sum((a > b) + 0.5 * (a == b) for a in above for b in below)
    return wins / (len(above) * len(below))


@dataclass(frozen=True)
class Found:
    """The count of what a method named, beside what it should.

    Attributes:
        right: Named, and true.
        wrong: Named, and not.
        missed: True, and not named.
    """

    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float:
        """The share of what was named that is true; NaN if nothing was."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else float("nan")

    @property
    def recall(self) -> float:
        """The share of what is true that was named; NaN if nothing is."""
        return self.right / (self.right + self.missed) if self.right + self.missed else float("nan")


def found(named: Iterable[object], true: Iterable[object]) -> Found:
    """Compare what was named with what is true.

    Example:
        >>> counts = found(["0.1", "0.2"], ["0.1", "1.0", "1.1"])
        >>> counts.precision, round(counts.recall, 2)
        (0.5, 0.33)
    """
    named, true = set(named), set(true)
    return Found(len(named & true), len(named - true), len(true - named))
