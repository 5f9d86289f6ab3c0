"""Results that keep a value of each prompt: errors, intervals, tests, and what stands out of all that was looked at.

A table `[prompt, *cell]` of float32 costs 4 bytes a number: 144 heads at 20 positions and 100 prompts, 1.2 MB. Means,
errors and tests are of the prompts, taken to be drawn independently: they say what other prompts of the same kind would
give, not what another task or another seed would (`stability` asks that). Prompts that were not, such as the two of a
template that are each other's corruption, are averaged first: errors and tests are then of these clusters. Counted one
by one, errors of mirrored prompts are too small by up to the square root of two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.bootstrap import IntervalMethod, bootstrap_interval
from headscope.analysis.core.result import Result
from headscope.analysis.core.significance import Correction, TestMethod, adjusted, looked_at, p_values
from headscope.analysis.core.stats import LEVEL, by_cluster, standard_errors
from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NO_CONTROL", "SHARE_UNIT", "TOLD_NUMBERS", "Controlled", "OverPrompts", "evidence"]

NO_CONTROL = "no control was measured: name one in `control`."
SHARE_UNIT = "share of clean - corrupted"
_CONTROL = "control_"
TOLD_NUMBERS = 2**18  # of the table, up to which `str` says what stands out


@dataclass(frozen=True, repr=False)
class OverPrompts(Result):
    """A result whose entries are means over prompts, each of which has a value of its own.

    The arrays that `by` may name are those with an axis `prompt`, and what a subclass adds to them.

    Attributes:
        judged: The array whose rows are those of `to_frame()`, which gets columns for errors and tests.
        clusters: A number for each prompt, the same for those not drawn independently (see `Task`); `None` where each
            stands by itself.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.analysis import Task, attribute
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=12, tokenizer=model.tokenizer, prepend_bos=True))
        >>> found = attribute(model, task, progress=False)
        >>> low, high = found.interval()
        >>> print(f"3.2 adds {low[3, 2]:.2f} to {high[3, 2]:.2f} logits; {int(found.significant().sum())} stand out")
        3.2 adds ... to ... logits; ... stand out
    """

    judged: ClassVar[str | None] = None
    clusters: Int[Tensor, " prompt"] | None = field(default=None, kw_only=True)

    def by_prompt(self, by: str | None = None) -> Float[Tensor, "prompt *cell"]:
        """The value of each prompt, prompts first.

        Args:
            by: An array; default: the one that rankings are of.

        Raises:
            InvalidInputError: If the array does not exist, was not measured, or has no values of prompts.
        """
        array = self.array(by or self.ranked[0])
        if "prompt" not in array.axes:
            raise InvalidInputError(f"{by!r} has no values of single prompts: its axes are {', '.join(array.axes)}.")
        return array.values.movedim(array.axes.index("prompt"), 0)

    @property
    def n_independent(self) -> int:
        """The number of prompts with values, or of clusters of them, that were drawn independently; 0 without values.

        Example:
            >>> from headscope import HookedTransformer
            >>> from headscope.analysis import Task, attribute
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> pairs = [("Mary", "John"), ("Tom", "James")]
            >>> task = Task.from_templates(["So {} gave a drink to"], pairs, model.tokenizer)
            >>> len(task), attribute(model, task, progress=False).n_independent
            (4, 2)
        """
        try:
            n = len(self.by_prompt())
        except InvalidInputError:
            return 0
        return n if self.clusters is None else len(self.clusters.unique())

    @cached_property
    def errors(self) -> Float[Tensor, "*cell"]:
        """One standard error of each entry's mean over prompts; NaN for a single prompt, or cluster.

        Raises:
            InvalidInputError: If there are no values of single prompts.
        """
        return standard_errors(self.by_prompt(), self.clusters)

    def interval(
        self,
        level: float = LEVEL,
        *,
        by: str | None = None,
        method: IntervalMethod = "studentized",
        draws: int = 1_999,
        seed: int = 0,
    ) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
        """Return the ends of the bootstrap interval of each entry, which misses the mean with probability `level`.

        Each entry's interval stands by itself: of 100 entries some 5 are missed. `core.bootstrap` says more.

        Raises:
            InvalidInputError: As for `by_prompt`, and for fewer than two prompts.
        """
        rows = self.by_prompt(by)
        rows = by_cluster(rows, self.clusters, rows.mean(0))
        return bootstrap_interval(rows, level, method=method, draws=draws, seed=seed)

    def p_values(
        self, method: TestMethod = "sign_flip", *, by: str | None = None, seed: int = 0
    ) -> Float[Tensor, "*cell"]:
        """Return the p-value of each entry by itself, for a mean of zero; see `core.significance`.

        Raises:
            InvalidInputError: As for `by_prompt`, and for fewer than two prompts.
        """
        return p_values(self._clustered(by), method, seed=seed)

    def significant(
        self,
        correction: Correction = "max",
        *,
        level: float = LEVEL,
        by: str | None = None,
        method: TestMethod = "sign_flip",
        seed: int = 0,
    ) -> Bool[Tensor, "*cell"]:
        """Tell the entries that stand out of all that were looked at.

        Args:
            correction: `"max"` or `"holm"`: the probability that any entry stands out by chance is at most `level`.
                `"bh"`: of those that stand out, a share of at most `level` does so by chance.
            level: The probability, or the share.
            by: The entries that are looked at; default: all that rankings are of.
            method: `"sign_flip"`, or `"t"` (with `"holm"` or `"bh"`).
            seed: Of the flips, where not all are gone through.

        Raises:
            InvalidInputError: As for `by_prompt`, and for fewer than two prompts.
        """
        return adjusted(self._clustered(by), correction, method=method, seed=seed) <= level

    def _clustered(self, by: str | None = None) -> Float[Tensor, "cluster *cell"]:
        """The rows of a test: the value of each prompt, or the mean of each cluster."""
        return by_cluster(self.by_prompt(by), self.clusters)

    def findings(self) -> tuple[str, ...]:
        """Return the labels of the entries that stand out; none from fewer than six prompts.

        Raises:
            InvalidInputError: If there are no values of single prompts.
        """
        clear, start, found = self.significant().flatten(), 0, []
        for name in self._default():
            array = self.array(name).mean(self.sampled)
            here = clear[start : start + array.values.numel()]
            start += array.values.numel()
            found += [self.cell_label(name, array.cell(at)) for at in here.nonzero()[:, 0].tolist()]
        return tuple(found)

    def rule(
        self,
        correction: Correction = "max",
        *,
        level: float = LEVEL,
        by: str | None = None,
        method: TestMethod = "sign_flip",
    ) -> str:
        """The rule of `significant`, in words for a legend."""
        rows = self._clustered(by)
        test = "sign flips" if method == "sign_flip" else "Student's t"
        n = int(looked_at(rows).sum())
        cells = f"{n} cell{'s' * (n != 1)}"
        of_all = {
            "max": f"the largest of {cells}, {level:.0%} for all",
            "holm": f"Holm over {cells}, {level:.0%} for all",
            "bh": f"Benjamini-Hochberg over {cells}, {level:.0%} false",
            "none": f"each of {cells} by itself, {level:.0%}",
        }
        return f"{test} over {self._counted()}; {of_all[correction]}"

    def _counted(self) -> str:
        """The independent prompts in words."""
        of = "prompts" if self.clusters is None else "clusters of prompts"
        return f"{self.n_independent} {of}"

    @property
    def has_rows(self) -> bool:
        """True if there are values of two independent prompts or more, so that errors are known."""
        return self.n_independent > 1

    @property
    def is_judged(self) -> bool:
        """True if there are independent prompts enough for an entry to stand out by sign flips: six or more."""
        return self.has_rows and 2.0 ** (1 - self.n_independent) <= LEVEL

    def to_frame(self, *names: str, means: bool = True) -> "pd.DataFrame":
        """A table with a column for each array and a row for each entry, and what is known of the entry's error.

        The columns `error` (one standard error), `low` and `high` (of the bootstrap interval, 95 %), `p_value` (of sign
        flips, corrected by the largest of all entries) and `significant` stand where there are values of two prompts or
        more, unless other arrays are named.

        Args:
            names: The arrays; the rows run over the axes of the first. Default: those the result's class names.
            means: Take means over positions and prompts; else each has rows of its own.

        Raises:
            InvalidInputError: For an array that does not exist, or was not measured.
        """
        frame = super().to_frame(*names, means=means)
        if names or not means or not self.has_rows:
            return frame
        return frame.assign(**evidence(self.by_prompt(self.judged), self.clusters))

    def _evidence_note(self) -> str:
        """A line on what stands out; empty where nothing is known."""
        if not self.has_rows or (rows := self._clustered()).numel() > TOLD_NUMBERS:
            return ""
        if not self.is_judged:
            return f"{self._counted()} are too few for anything to stand out by sign flips: take six or more"
        clear, among = int((adjusted(rows) <= LEVEL).sum()), int(looked_at(rows).sum())
        return f"{clear} of {among} stand{'s' * (clear == 1)} out ({self.rule()})"

    def _errors(self) -> Tensor | None:
        """Standard errors, `None` without values of prompts."""
        return self.errors if self.has_rows else None


@dataclass(frozen=True, repr=False)
class Controlled(OverPrompts):
    """A result that a control may stand beside: for a field `values`, the control's is `control_values`.

    Attributes:
        control: The control that was measured beside it (see `prompts.controls`); empty without.
    """

    control: str = field(default="", kw_only=True)

    def of_control(self) -> Self:
        """The control as a result of its own.

        Raises:
            InvalidInputError: If none was measured.
        """
        if not self.control:
            raise InvalidInputError(NO_CONTROL)
        beside = [each.name for each in fields(self) if each.name.startswith(_CONTROL)]
        taken: dict[str, Any] = {name.removeprefix(_CONTROL): getattr(self, name) for name in beside}
        return replace(self, **taken | dict.fromkeys(beside), control="")

    def _control_notes(self) -> Iterator[str]:
        """Lines on what the control gave; none without."""
        if self.control:
            found = self.of_control()
            yield f"control, {self.control.replace('_', ' ')}: {found.top(3).line(errors=True)}"
            if note := found._evidence_note():
                yield f"  of the control, {note}"


def evidence(rows: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"] | None) -> dict[str, list[Any]]:
    """Return columns on errors and tests, an entry for each cell."""
    rows = rows.cpu()
    p = adjusted(by_cluster(rows, clusters))
    low, high = bootstrap_interval(by_cluster(rows, clusters, rows.mean(0)))
    numbers = {
        "error": standard_errors(rows, clusters),
        "low": low,
        "high": high,
        "p_value": p,
        "significant": p <= LEVEL,
    }
    return {name: each.flatten().tolist() for name, each in numbers.items()}
