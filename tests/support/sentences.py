"""Means with known errors, and what is said of them."""

from collections.abc import Sequence

import torch
from markupsafe import Markup

from headscope.analysis.core.stats import Estimate, Estimates, estimates

__all__ = ["check_words", "mean", "means"]


def mean(value: float, error: float, n: int = 400) -> Estimate:
    """A mean with many degrees of freedom."""
    return Estimate(value, error, n, freedom=60.0)


def means(values: list[float] | list[list[float]], noise: float) -> Estimates:
    """Means of steps, or of heads `[layer, head]`, each over 32 rows that scatter about it by `noise`.

    No two scatter alike, so that differences of them scatter too.
    """
    exact = torch.tensor(values, dtype=torch.float64)
    rows = torch.arange(32)
    signs = [1 - 2.0 * (rows >> at & 1) for at in range(5)]
    assert exact.numel() <= 5, "there are five ways to scatter that have nothing in common"
    scatter = torch.stack(signs[: exact.numel()]).view(*exact.shape, 32, 1)
    return estimates(exact[..., None, None] + noise * scatter)


def check_words(sentence: Markup | str | None, parts: Sequence[str]) -> None:
    """Check that a sentence has some parts, and none of those that begin with `~`."""
    assert sentence is not None
    words = " ".join(Markup(sentence).striptags().replace("\u2212", "-").split())
    for part in parts:
        assert (part.removeprefix("~") in words) is not part.startswith("~"), words
