"""Two models' findings on one text, and what may be set against what."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from headscope.analysis.core.stats import Estimate, Estimates, difference, estimate, estimates
from headscope.report.model.findings import Findings

__all__ = ["Compared"]


@dataclass(frozen=True)
class Compared:
    """What was found of two models.

    Attributes:
        names: What they are called; different.
        first: Of the first.
        second: Of the second: differences are its numbers less those of the first.
    """

    names: tuple[str, str]
    first: Findings
    second: Findings

    @property
    def sides(self) -> tuple[Findings, Findings]:
        """Both."""
        return self.first, self.second

    @cached_property
    def paired(self) -> bool:
        """Whether both read the same tokens, so that they can be compared token by token."""
        return self.first.strings == self.second.strings and torch.equal(self.first.tokens, self.second.tokens)

    @cached_property
    def one_shape(self) -> bool:
        """Whether both have the same layers and heads."""
        return self.first.diff.values.shape == self.second.diff.values.shape

    def gap(self, first: Tensor, second: Tensor) -> Estimate:
        """The mean of `second [batch, pos]` less that of `first`; token by token if they are of the same tokens."""
        if self.paired and first.shape == second.shape:
            return estimate(second - first)
        return difference(estimate(second), estimate(first))

    def gaps(self, first: Estimates, second: Estimates) -> Estimates:
        """For models of one shape, the same of each head."""
        if self.paired and first.each.shape == second.each.shape:
            return estimates(second.each - first.each)
        return Estimates(
            values=second.values - first.values,
            errors=(first.errors.square() + second.errors.square()).sqrt(),
            freedom=torch.minimum(first.freedom, second.freedom),
            each=second.each,
            n=min(first.n, second.n),
        )
