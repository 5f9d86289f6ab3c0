"""Checks on errors of means."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.stats import standard_errors
from headscope.exercises.verdict import Verdict, judge


def check_standard_error(answer: Any, values: Float[Tensor, "text pos"]) -> Verdict:
    """Check the standard error of a mean over positions, which are dependent within a text and not between texts.

    Args:
        answer: One number: the error of `values.mean()`, with the texts as what was drawn.
        values: A number at each position of texts of equal length.

    Example:
        >>> import torch
        >>> values = torch.tensor([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
        >>> check_standard_error(values.std() / 6**0.5, values)
        Not yet. Positions of one text were counted as independent draws: each text counts once.
    """
    rows = values.double().mean(1)
    right = standard_errors(rows)
    n, flat = len(rows), values.double().flatten()
    mistakes = {
        "Positions of one text were counted as independent draws: each text counts once": flat.std() / len(flat) ** 0.5,
        "It is the standard deviation over texts; divide by the root of their number": rows.std(),
        "It is the standard deviation over positions; an error of the mean is asked for": flat.std(),
        "The standard deviation of so few texts needs n - 1 below (Bessel's correction)": rows.std(correction=0)
        / n**0.5,
        "It is the variance of the mean; take the root": right**2,
        "The standard deviation was divided by the number of texts, not by its root": rows.std() / n,
        "It is the mean of the errors within each text, which says nothing about other texts": (
            (values.double().std(1) / values.shape[1] ** 0.5).mean()
        ),
        "It is the mean itself; its error is asked for": rows.mean(),
        "The deviation between positions was divided by the root of the number of texts": flat.std() / n**0.5,
    }
    naive = float(flat.std() / len(flat) ** 0.5)
    praise = (
        f"The mean is {float(rows.mean()):.3f} ± {float(right):.3f}; counting positions would have said ± {naive:.3f}."
    )
    return judge(answer, right, mistakes=mistakes, praise=praise)
