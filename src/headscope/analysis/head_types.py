"""`detect_heads`: which heads are of which kind, from measured numbers beside their controls.

| kind                  | what the head does                                                  | unit      | task |
|-----------------------|---------------------------------------------------------------------|-----------|------|
| `previous_token`      | attends to the token before                                         | attention |      |
| `duplicate_token`     | attends to earlier copies of the token                              | attention |      |
| `induction`           | attends to what followed earlier copies (Olsson et al. 2022), and does not write against it | attention | |
| `copy_suppression`    | lowers the logit of the token that repeats next (McDougall et al. 2023) | logits |      |
| `name_mover`          | raises the right name from its place, in either order of the names  | logits    | yes  |
| `negative_name_mover` | lowers the right name from its place, in either order               | logits    | yes  |
| `name_copier`         | raises whichever name it attends to: the right one in one order, the wrong one in the other | logits | yes |
| `subject_suppressor`  | lowers the wrong name from its places, in either order              | logits    | yes  |
| `s_inhibition`        | tells name movers' queries where not to look (Wang et al. 2022)     | logits    | yes  |
| `backup_name_mover`   | becomes a name mover when the name movers are taken out             | logits    | yes  |

A head gets a label if its score is above the threshold, if it is so by more than the control (the same number with what
defines the kind taken out), and if the difference is more standard errors from zero than any head of the model would
reach by chance in 1 % of cases. The thresholds are choices, and are kept with the result: a share of attention, and a
share of the logit difference. A head may have several labels.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.batches import describe_data
from headscope.analysis.head_evidence import (
    Measured,
    attention_evidence,
    copying_scores,
    k_composition,
    repeat_evidence,
    sure_bound,
)
from headscope.analysis.head_scores import SCORES, scored_tokens
from headscope.analysis.result import HeadScore, Ranking, Result, RunInfo, component_label
from headscope.analysis.task import Task
from headscope.analysis.task_evidence import TASK_KINDS, TaskEvidence, task_evidence
from headscope.errors import InvalidInputError, unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from headscope.model.transformer import HookedTransformer

__all__ = ["KINDS", "HeadTypes", "detect_heads"]

KINDS = (*SCORES, "copy_suppression", *TASK_KINDS)
_SHORTEST = 2
_IN_LINE = 8


@dataclass(frozen=True, repr=False)
class HeadTypes(Result):
    """Kinds of heads, and the numbers that say so. NaN where a number was not measured.

    Attributes:
        scores: How much each head is of each kind.
        controls: The same number with what defines the kind taken out.
        errors: Standard error of scores less controls, over rows or prompts.
        thresholds: What a score, and its excess over the control, must reach.
        labelled: Which heads are of which kind.
        evidence: Further numbers of every head; `evidence_names` names them.
        composition: For each induction head, how much its keys read what each earlier head writes (K-composition).
        composition_heads: Layer and head of these induction heads.
        kinds: What was looked for.
        evidence_names: Such as `copying`, `attention end to IO`.
        bound: Standard errors that an excess must be above zero.
        notes: What could not be told, and why.
        info: What was run on what.
    """

    kind: ClassVar[str] = "head_types"
    scores: Float[Tensor, "kind layer head"]
    controls: Float[Tensor, "kind layer head"]
    errors: Float[Tensor, "kind layer head"]
    thresholds: Float[Tensor, " kind"]
    labelled: Bool[Tensor, "kind layer head"]
    evidence: Float[Tensor, "evidence layer head"]
    composition: Float[Tensor, "reader layer head"]
    composition_heads: Int[Tensor, "reader 2"]
    kinds: tuple[str, ...]
    evidence_names: tuple[str, ...]
    bound: float
    notes: tuple[str, ...]

    def heads(self, kind: str) -> Ranking:
        """The heads of a kind, those with the highest score first.

        Raises:
            UnknownNameError: If the kind was not looked for.
        """
        return self._ranked(kind, self.labelled[self._at(kind)])

    def top(self, k: int = 10, *, by: str = "induction") -> Ranking:
        """The `k` heads with the highest score of a kind, labelled or not.

        Raises:
            UnknownNameError: If the kind was not looked for.
            InvalidInputError: If `k` is below 1.
        """
        if k < 1:
            raise InvalidInputError(f"k must be at least 1; got {k}.")
        ranked = self._ranked(by, ~self.scores[self._at(by)].isnan())
        return Ranking(ranked[:k], name=ranked.name, unit=ranked.unit)

    def kinds_of(self, layer: int, head: int) -> tuple[str, ...]:
        """The labels of a head.

        Raises:
            InvalidInputError: If there is no such head.
        """
        n_layers, n_heads = self.scores.shape[1:]
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise InvalidInputError(
                f"head {component_label(layer, head)} does not exist: layers are 0 to {n_layers - 1}, heads 0 to "
                f"{n_heads - 1}."
            )
        return tuple(name for name, has in zip(self.kinds, self.labelled[:, layer, head].tolist(), strict=True) if has)

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
        return "attention" if kind in SCORES else "logits"

    def _at(self, kind: str) -> int:
        if kind not in self.kinds:
            hint = "It takes a task: detect_heads(model, task=...)." if kind in TASK_KINDS else ""
            raise unknown_name("kind of head", kind, self.kinds, hint=hint)
        return self.kinds.index(kind)

    def _ranked(self, kind: str, which: Bool[Tensor, "layer head"]) -> Ranking:
        values = self.scores[self._at(kind)]
        found = [HeadScore(layer, head, float(values[layer, head])) for layer, head in which.nonzero().tolist()]
        found.sort(key=lambda score: -score.value)
        return Ranking(found, name=kind, unit=self.unit(kind))

    def to_frame(self) -> "pd.DataFrame":
        """One row per head and kind: its score, control, error, threshold and label, and the head's evidence."""
        import pandas as pd

        n_layers, n_heads = self.scores.shape[1:]
        rows = []
        for at, name in enumerate(self.kinds):
            for layer in range(n_layers):
                for head in range(n_heads):
                    numbers = {
                        each: float(getattr(self, f"{each}s")[at, layer, head])
                        for each in ("score", "control", "error")
                    }
                    evidence = {
                        each: float(self.evidence[number, layer, head])
                        for number, each in enumerate(self.evidence_names)
                    }
                    rows.append(
                        {
                            "layer": layer,
                            "head": head,
                            "label": component_label(layer, head),
                            "kind": name,
                            "labelled": bool(self.labelled[at, layer, head]),
                            **numbers,
                            "threshold": float(self.thresholds[at]),
                            **evidence,
                        }
                    )
        return pd.DataFrame(rows)

    def table(self) -> "Table":
        """The labelled heads as a table for `rich.print`, with what the labels rest on."""
        from rich.table import Table

        table = Table(title="Kinds of heads", caption=str(self.info), caption_justify="left")
        table.add_column("Kind")
        for name in ("Head", "Score", "Control", "Error", "Threshold"):
            table.add_column(name, justify="right")
        table.add_column("Evidence")
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
                    self.reasons(score.layer, int(score.head or 0), name),
                )
        return table

    def reasons(self, layer: int, head: int, kind: str) -> str:
        """In a few words, the evidence that goes with a kind of a head."""
        self._at(kind)
        shown = []
        for name in _EVIDENCE_OF.get(kind, ()):
            for each in self.evidence_names:
                if each == name or each.startswith(f"{name} ("):
                    value = float(self.evidence_of(each)[layer, head])
                    shown += [] if math.isnan(value) else [f"{each} {value:+.2f}"]
        if kind == "induction":
            shown += self._composition_words(layer, head)
        return ", ".join(shown)

    def _composition_words(self, layer: int, head: int) -> list[str]:
        pairs = self.composition_heads.tolist()
        if [layer, head] not in pairs or "previous_token" not in self.kinds:
            return []
        scores = self.composition[pairs.index([layer, head])]
        known = scores[~scores.isnan()]
        best = [score for score in self.heads("previous_token") if score.layer < layer]
        if not best:
            return []
        value = float(scores[best[0].layer, int(best[0].head or 0)])
        return [f"K-composition with {best[0].label} {value:.2f} (mean of earlier heads {float(known.mean()):.2f})"]

    def __str__(self) -> str:
        lines = [f"HeadTypes: {self.info}"]
        width = max(map(len, self.kinds))
        for name in self.kinds:
            found = self.heads(name)
            shown = ", ".join(f"{score.label} ({score.value:.2f})" for score in found[:_IN_LINE])
            more = f" and {len(found) - _IN_LINE} more" if len(found) > _IN_LINE else ""
            lines.append(f"  {name:<{width}}  {shown + more or 'none'}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    __repr__ = __str__


_EVIDENCE_OF = {
    "induction": ("copying", "adds to the repeated token"),
    "copy_suppression": ("copying", "adds to the repeated token"),
    "duplicate_token": ("attention S2 to S1",),
    "name_mover": ("attention end to IO", "direct effect", "copying", "drop when patched"),
    "negative_name_mover": ("attention end to IO", "direct effect", "copying", "drop when patched"),
    "name_copier": ("attention end to IO", "direct effect", "copying", "drop when patched"),
    "subject_suppressor": ("attention end to S2", "direct effect", "copying", "drop when patched"),
    "s_inhibition": ("attention end to S2", "direct effect", "drop when patched"),
    "backup_name_mover": ("attention end to IO", "direct effect", "copying"),
}


@torch.no_grad()
def detect_heads(
    model: "HookedTransformer",
    data: Any = None,
    *,
    task: Task | None = None,
    attention_mask: Tensor | None = None,
    include_bos: bool = False,
    n_sequences: int = 32,
    length: int | None = None,
    seed: int = 0,
    min_attention: float = 0.3,
    min_effect: float = 0.05,
    describe: str | None = None,
    progress: bool = True,
) -> HeadTypes:
    """Find the heads of known kinds, with the evidence for each.

    Kinds that need no task are measured on repeated random tokens, where meaning cannot help. With a task of two names,
    such as indirect object identification, so are the classes of heads of Wang et al. 2022.

    Cost: three forward passes over the random tokens. With a task five over its prompts, one for each labelled head,
    and, where there are name movers, path patching from every head to their queries, which is most of it.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]` in which something repeats, or an iterable of batches that can be gone through
            twice, in the place of `n_sequences` rows of random tokens said twice.
        task: Prompts with a right and a wrong name. The places `IO`, `S1` and `S2` are found from the answers where the
            task does not name them.
        attention_mask: For one tensor of tokens: 1 for real tokens. Default: found from the padding token.
        include_bos: Count the BOS position at the start of a row, as a query and as the token before.
        n_sequences: Rows of random tokens; at least 2, to know the error.
        length: Tokens that are said twice; default 50, or what fits in the context.
        seed: Of the random tokens and of the shuffled control.
        min_attention: The share of attention that makes a head one of the first three kinds.
        min_effect: The share of the logit difference (for `copy_suppression`: of what the model gives the token that
            repeats) that makes a head one of the others.
        describe: What the data is, for titles.
        progress: Show progress bars.

    Raises:
        InvalidInputError: For a model that attends both ways, too short a context, fewer than two rows, a threshold
            out of range, or a task whose names cannot be found in its prompts.
        NotFiniteError: If the model's values are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> found = detect_heads(model, n_sequences=8, progress=False)
        >>> [score.label for score in found.heads("previous_token")], len(found.heads("induction"))
        (['0.3'], 4)
    """
    _check(model, n_sequences, min_attention, min_effect)
    tokens = data
    if data is None:
        tokens = _random_rows(model, n_sequences, length, seed)
        describe = describe or f"repeated random tokens (seed {seed})"
    attention, n_rows, n_positions = attention_evidence(
        model, tokens, attention_mask=attention_mask, include_bos=include_bos, seed=seed, progress=progress
    )
    if n_rows < 2:
        raise InvalidInputError("the data has one row; give two or more, so that the error of a score can be known.")
    notes: list[str] = []
    evidence: dict[str, Tensor] = {}
    measured, thresholds = [attention], [min_attention] * len(SCORES)
    names = list(SCORES)
    if model.cfg.d_vocab == model.cfg.d_vocab_out:
        against, whole, whole_error = repeat_evidence(
            model, tokens, attention_mask=attention_mask, include_bos=include_bos
        )
        names.append("copy_suppression")
        measured.append(against)
        bound = sure_bound(1)
        repeats = whole > bound * whole_error
        thresholds.append(min_effect * whole if repeats else math.inf)
        if not repeats:
            notes.append("copy_suppression: the model does not surely predict what repeats, so nothing is suppressed.")
        evidence["copying"] = copying_scores(model)
        evidence["adds to the repeated token"] = -against.scores[0]
    found: TaskEvidence | None = None
    if task is not None:
        found = task_evidence(model, task, min_effect=min_effect, progress=progress)
        names += TASK_KINDS
        measured.append(found.measured)
        thresholds += found.thresholds
        evidence |= found.evidence
        notes += found.notes
    return _labelled(
        model,
        names,
        Measured(*(torch.cat([getattr(m, e) for m in measured]) for e in ("scores", "controls", "errors"))),
        torch.tensor(thresholds, dtype=torch.float32),
        evidence,
        tuple(notes),
        RunInfo(
            model=model.cfg.model_name,
            processing=model.weight_processing,
            data=(describe or describe_data(data)) + (f" and {task.description}" if task is not None else ""),
            n_sequences=n_rows,
            n_positions=n_positions,
            options={"min_attention": min_attention, "min_effect": min_effect, "include_bos": include_bos},
        ),
    )


def _check(model: "HookedTransformer", n_sequences: int, min_attention: float, min_effect: float) -> None:
    if model.cfg.attention_dir != "causal":
        raise InvalidInputError(
            f"{model.cfg.model_name!r} attends both ways: these kinds of heads are about tokens that came before."
        )
    if n_sequences < 2:
        raise InvalidInputError(f"n_sequences must be at least 2, so that errors are known; got {n_sequences}.")
    for name, value in (("min_attention", min_attention), ("min_effect", min_effect)):
        if not 0 < value < 1:
            raise InvalidInputError(f"{name} is a share, between 0 and 1; got {value}.")


def _random_rows(model: "HookedTransformer", n_sequences: int, length: int | None, seed: int) -> Int[Tensor, "row pos"]:
    longest = (model.cfg.n_ctx - 1) // 2
    if (length is not None and not _SHORTEST <= length <= longest) or longest < _SHORTEST:
        raise InvalidInputError(
            f"length must be between {_SHORTEST} and {longest}, since it is said twice after BOS and the context is "
            f"n_ctx = {model.cfg.n_ctx}; got {length}."
        )
    return scored_tokens(model, n_sequences, length, seed)


def _labelled(
    model: "HookedTransformer",
    names: list[str],
    measured: Measured,
    thresholds: Float[Tensor, " kind"],
    evidence: dict[str, Tensor],
    notes: tuple[str, ...],
    info: RunInfo,
) -> HeadTypes:
    """Put the labels on."""
    bound = sure_bound(measured.scores.numel())
    high = (measured.scores >= thresholds[:, None, None]) & (measured.excess >= thresholds[:, None, None])
    labelled = high & (measured.excess >= bound * measured.errors)
    if "copy_suppression" in names:
        # It attends where an induction head does, and writes against what it finds there.
        labelled[SCORES.index("induction")] &= ~labelled[names.index("copy_suppression")]
    readers = labelled[SCORES.index("induction")].nonzero()
    shape = model.cfg.n_layers, model.cfg.n_heads
    return HeadTypes(
        info=info,
        scores=measured.scores,
        controls=measured.controls,
        errors=measured.errors,
        thresholds=thresholds,
        labelled=labelled,
        evidence=torch.stack([each.float().cpu() for each in evidence.values()])
        if evidence
        else torch.empty(0, *shape),
        composition=k_composition(model, [(layer, head) for layer, head in readers.tolist()]),
        composition_heads=readers,
        kinds=tuple(names),
        evidence_names=tuple(evidence),
        bound=bound,
        notes=notes,
    )
