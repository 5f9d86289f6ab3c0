"""Findings on two models on one text, and the differences between them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from headscope.analysis.core.stats import Estimate, Estimates, difference, estimates
from headscope.report.model.findings import Findings

__all__ = ["Compared"]


@dataclass(frozen=True)
class Compared:
    """Findings on two models.

    Attributes:
        names: Their names, which differ.
        first: Findings on the first.
        second: Findings on the second: differences are its numbers less those of the first.
    """

    names: tuple[str, str]
    first: Findings
    second: Findings

    @cached_property
    def sides(self) -> dict[str, Findings]:
        """Both in order, by name."""
        return dict(zip(self.names, (self.first, self.second), strict=True))

    @cached_property
    def paired(self) -> bool:
        """Both read the same tokens, so that they can be compared token by token."""
        return self.first.strings == self.second.strings and torch.equal(self.first.tokens, self.second.tokens)

    @cached_property
    def one_shape(self) -> bool:
        """Both have the same layers and heads."""
        return (self.first.n_layers, self.first.n_heads) == (self.second.n_layers, self.second.n_heads)

    def gap(self, first: Tensor, second: Tensor) -> Estimate:
        """Mean of `second [batch, pos]` less that of `first`; token by token if both read the same tokens."""
        return self.gaps(estimates(first[None]), estimates(second[None]))[0]

    def gaps(self, first: Estimates, second: Estimates) -> Estimates:
        """The same for each head, of models of one shape."""
        if self.paired and first.each.shape == second.each.shape:
            return estimates(second.each - first.each)
        return difference(second, first)
