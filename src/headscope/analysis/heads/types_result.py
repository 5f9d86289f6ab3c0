"""`HeadTypes`, which `detect_heads` returns."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.ranking import Ranking
from headscope.analysis.core.result import Array, Result, component_label
from headscope.analysis.heads.name_evidence import NAME_KINDS, TASK_KINDS
from headscope.analysis.heads.scores import SCORES
from headscope.errors import InvalidInputError, unknown_name

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["HeadTypes"]

_IN_LINE = 8


@dataclass(frozen=True, repr=False)
class HeadTypes(Result):
    """Kinds of heads, and the numbers that say so. NaN where a number was not measured.

    `top(by="induction")` ranks the heads by their score of a kind, labeled or not.

    Attributes:
        scores: How much each head is of each kind.
        controls: The same number with what defines the kind taken out.
        errors: Standard error of scores less controls, over rows and positions, or over prompts.
        thresholds: What a score, and its excess over the control, must reach.
        labelled: True for the heads of each kind.
        open: True for heads that are not, though all numbers that the kind is told by are high enough: one at least of
            these is not significant.
        evidence: Further numbers of every head; `evidence_names` names them.
        composition: For each induction head, how much its keys read what each earlier head writes (K-composition).
        composition_heads: Layer and head of these induction heads.
        kinds: What was looked for.
        evidence_names: Such as `copying`, `attention end to IO`.
        bound: Standard errors that an excess must be above zero, for the error with the fewest degrees of freedom.
        n_repeats: Positions that the score of `copy_suppression` is a mean over; 0 if it was not measured.
        notes: What could not be told, and why.
        info: What was run on what.
    """

    kind: ClassVar[str] = "head_types"
    arrays: ClassVar[Mapping[str, Array]] = {
        "labelled": Array("kind layer head"),
        "open": Array("kind layer head"),
        "scores": Array("kind layer head", column="score"),
        "controls": Array("kind layer head", column="control"),
        "errors": Array("kind layer head", column="error"),
        "thresholds": Array("kind", column="threshold"),
        "evidence": Array("evidence_name layer head", column=""),
        "composition": Array("reader layer head"),
    }
    coords: ClassVar[Mapping[str, str]] = {"kind": "kinds", "evidence_name": "evidence_names", "reader": "readers"}
    columns: ClassVar[tuple[str, ...]] = ("labelled", "scores", "controls", "errors", "thresholds", "evidence")
    ranked: ClassVar[tuple[str, ...]] = ("scores",)
    rows: ClassVar[tuple[str, ...]] = ("kind", "layer", "head")
    fixed: ClassVar[Mapping[str, int | str]] = {"kind": "induction"}
    scores: Float[Tensor, "kind layer head"]
    controls: Float[Tensor, "kind layer head"]
    errors: Float[Tensor, "kind layer head"]
    thresholds: Float[Tensor, " kind"]
    labelled: Bool[Tensor, "kind layer head"]
    open: Bool[Tensor, "kind layer head"]
    evidence: Float[Tensor, "evidence layer head"]
    composition: Float[Tensor, "reader layer head"]
    composition_heads: Int[Tensor, "reader 2"]
    kinds: tuple[str, ...]
    evidence_names: tuple[str, ...]
    bound: float
    notes: tuple[str, ...]
    n_repeats: int = 0

    def heads(self, kind: str) -> Ranking:
        """The heads of a kind, those with the highest score first.

        Raises:
            UnknownNameError: If the kind was not looked for.
        """
        labelled = self.labelled[self._at(kind)]
        every = self.top(labelled.numel(), by=kind)
        return every.only(lambda score: bool(labelled[score.layer, score.head]))

    def undecided(self, kind: str) -> Ranking:
        """The heads whose numbers are all high enough for a kind, and not all sure: more rows or prompts would decide.

        Raises:
            UnknownNameError: If the kind was not looked for.
        """
        undecided = self.open[self._at(kind)]
        return self.top(undecided.numel(), by=kind).only(lambda found: bool(undecided[found.layer, found.head]))

    def _asked(self, by: str | None, labels: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        # A kind stands for its scores: `top(by="induction")`.
        if by is None or by in self.arrays:
            return by, labels
        self._at(by)
        return "scores", {"kind": by, **labels}

    def _heading(self, name: str, labels: Mapping[str, Any]) -> tuple[str, str]:
        kind = labels.get("kind", self.fixed["kind"])
        return (kind, self.unit(kind)) if name == "scores" else super()._heading(name, labels)

    @property
    def readers(self) -> tuple[str, ...]:
        """The induction heads of `composition`: `5.1`, ..."""
        return tuple(component_label(layer, head) for layer, head in self.composition_heads.tolist())

    def kinds_of(self, layer: int, head: int) -> tuple[str, ...]:
        """The labels of a head.

        Raises:
            InvalidInputError: If there is no such head.
        """
        n_layers, n_heads = self.scores.shape[1:]
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise InvalidInputError(
                f"head {component_label(layer, head)} does not exist: layers are 0 to {n_layers - 1}, heads 0 to "
                f"{n_heads - 1}.",
                code="HS-HEADS-01",
            )
        return tuple(name for name, has in zip(self.kinds, self.labelled[:, layer, head].tolist(), strict=True) if has)

    def findings(self) -> tuple[str, ...]:
        """The labeled heads, with their kinds: `induction 2.0`, ..."""
        heads = self.labelled.nonzero().tolist()
        return tuple(f"{self.kinds[kind]} {component_label(layer, head)}" for kind, layer, head in heads)

    def main_kind(self, layer: int, head: int) -> str | None:
        """The label that says most about a head's part in the task: one of the task's kinds before any other."""
        kinds = self.kinds_of(layer, head)
        return next((kind for kind in kinds if self.unit(kind) == "logits"), kinds[0] if kinds else None)

    def evidence_of(self, name: str) -> Float[Tensor, "layer head"]:
        """One kind of evidence, for every head.

        Raises:
            UnknownNameError: If there is no evidence of that name.
        """
        if name not in self.evidence_names:
            raise unknown_name("evidence", name, self.evidence_names)
        return self.evidence[self.evidence_names.index(name)]

    def unit(self, kind: str) -> str:
        """`attention` or `logits`."""
        return "attention" if kind in (*SCORES, *NAME_KINDS) else "logits"

    def _at(self, kind: str) -> int:
        if kind not in self.kinds:
            hint = "It takes a task: detect_heads(model, task=...)." if kind in (*NAME_KINDS, *TASK_KINDS) else ""
            raise unknown_name("kind of head", kind, self.kinds, hint=hint)
        return self.kinds.index(kind)

    def table(self, *, evidence: bool = True) -> "Table":
        """The labeled heads as a table for `rich.print`.

        Args:
            evidence: With a column of what else is known of each; it needs some 120 characters.
        """
        from rich.table import Table

        table = Table(title="Head types", caption=str(self.info), caption_justify="left")
        table.add_column("Type")
        for name in ("Head", "Score", "Control", "Error", "Threshold"):
            table.add_column(name, justify="right")
        if evidence:
            table.add_column("Evidence", min_width=40)
        for at, name in enumerate(self.kinds):
            for number, score in enumerate(self.heads(name)):
                place = (at, score.layer, score.head)
                table.add_row(
                    name.replace("_", " ") if number == 0 else "",
                    score.label,
                    f"{score.value:.3f}",
                    f"{float(self.controls[place]):.3f}",
                    f"{float(self.errors[place]):.3f}",
                    f"{float(self.thresholds[at]):.3f} {self.unit(name)}" if number == 0 else "",
                    *([self.reasons(score.layer, int(score.head or 0), name)] if evidence else []),
                )
        return table

    def reasons(self, layer: int, head: int, kind: str) -> str:
        """In a few words, the evidence that goes with a kind of a head."""
        self._at(kind)
        values = dict(zip(self.evidence_names, self.evidence[:, layer, head].tolist(), strict=True))
        shown = [
            f"{each} {value:+.2f}"
            for name in _EVIDENCE_OF.get(kind, ())
            for each, value in values.items()
            if (each == name or each.startswith(f"{name} (")) and not math.isnan(value)
        ]
        return ", ".join(shown + (self._composition_words(layer, head) if kind == "induction" else []))

    def _composition_words(self, layer: int, head: int) -> list[str]:
        reader = component_label(layer, head)
        if reader not in self.readers or "previous_token" not in self.kinds:
            return []
        scores = self.composition[self.readers.index(reader)]
        best = next((score for score in self.heads("previous_token") if score.layer < layer), None)
        if best is None:
            return []
        value, mean = float(scores[best.layer, best.head]), float(scores[~scores.isnan()].mean())
        return [f"K-composition with {best.label} {value:.2f} (mean of earlier heads {mean:.2f})"]

    def _notes(self) -> Iterator[str]:
        width = max(map(len, self.kinds))
        for name in self.kinds:
            found = self.heads(name)
            shown = ", ".join(f"{score.label} ({score.value:.2f})" for score in found[:_IN_LINE])
            more = f" and {len(found) - _IN_LINE} more" if len(found) > _IN_LINE else ""
            left = ", ".join(score.label for score in self.undecided(name)[:_IN_LINE])
            yield f"{name:<{width}}  {shown + more or 'none'}{f'; undecided: {left}' if left else ''}"
        yield from self.notes


_REPEATING = ("copying", "adds to the repeated token")
_NAMES = ("attention end to IO", "direct effect", "from IO", "from S", "copying", "change when patched")
_SUBJECT = ("attention end to S2", "direct effect", "from S", "copying", "change when patched")
_END = ("attention end to end", "direct effect", "from end", "copying", "change when patched")
_TEXT = {name: (f"{name} said twice", f"{name} on text", "start", "start on text") for name in SCORES}
_EVIDENCE_OF = {
    "previous_token": _TEXT["previous_token"],
    "duplicate_token": (*_TEXT["duplicate_token"], "attention S2 to S1"),
    "induction": (*_REPEATING, *_TEXT["induction"]),
    "copy_suppression": _REPEATING,
    "duplicate_name": ("attention S2 to S1", "attention S2 to IO"),
    **dict.fromkeys(("name_mover", "negative_name_mover", "name_copier"), _NAMES),
    "subject_suppressor": _SUBJECT,
    **dict.fromkeys(("amplifier", "dampener"), _END),
    "s_inhibition": ("attention end to S2", "direct effect", "change when patched"),
    "backup_name_mover": ("attention end to IO", "direct effect", "copying"),
}
