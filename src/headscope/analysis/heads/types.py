"""`detect_heads`: which heads are of which kind, from measured numbers beside their controls.

| kind                  | what the head does                                                        | score in  |
|-----------------------|---------------------------------------------------------------------------|-----------|
| `previous_token`      | attends to the token before                                               | attention |
| `duplicate_token`     | attends to earlier copies of the token                                    | attention |
| `induction`           | attends to what followed earlier copies, and does not write against it    | attention |
| `copy_suppression`    | lowers the logit of the token that repeats next                           | logits    |

And on a task of two names (the right one `IO`, the wrong one `S`, which is named twice):

| kind                  | what the head does                                                        | score in  |
|-----------------------|---------------------------------------------------------------------------|-----------|
| `duplicate_name`      | looks from a name's second mention to its first, not to the other name    | attention |
| `name_mover`          | does the task by raising the right name from its place                    | logits    |
| `subject_suppressor`  | does the task by lowering the wrong name from its places                  | logits    |
| `amplifier`           | does the task by adding to what is written at the end                     | logits    |
| `negative_name_mover` | works against the task by lowering the right name from its place          | logits    |
| `dampener`            | works against the task by taking from what is written at the end          | logits    |
| `name_copier`         | raises the name it looks at, right or wrong, and does not do the task     | logits    |
| `s_inhibition`        | tells the queries of heads that move names where to look                  | logits    |
| `backup_name_mover`   | raises the right name when the heads that do the task are taken out       | logits    |

A head does the task, or works against it, by its whole direct effect on the logit difference, in prompts that name the
right one first and in those that name it second (negative name movers: over all prompts).

After Elhage et al. 2021 and Olsson et al. 2022 (induction), McDougall et al. 2023 (copy suppression), and Wang et al.
2022 (the classes of heads in indirect object identification; copiers, suppressors, amplifiers and dampeners are what
other models have).

A head gets a label if all numbers that the kind is told by are above the threshold, if they are so by more than their
control (the same number with what defines the kind taken out), and if each difference is significant: by a two-sided
t-test over rows, positions and tokens, or over prompts, at a level of 5 % for all labels together, which kinds share
alike, and within a kind the heads that were measured (Bonferroni). The score is the lowest of the numbers: where
pieces of several lengths are said twice, that of the length at which it is lowest, since a head may look for what is
twelve tokens back and not for what is fifty. The thresholds are choices and are kept with the result: a share of
attention, and a share of the logit difference. A head may have several labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.batches import check_repeatable
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.stats import LEVEL, threshold
from headscope.analysis.heads.attention_evidence import AttentionEvidence, attention_evidence, attention_moments
from headscope.analysis.heads.evidence import (
    Condition,
    HeadKind,
    Measured,
    copying_scores,
    k_composition,
    repeat_evidence,
    repeat_moments,
)
from headscope.analysis.heads.inhibition import changes_when_patched
from headscope.analysis.heads.name_evidence import NAME_KINDS, TASK_KINDS, task_evidence
from headscope.analysis.heads.probes import random_repeats, repeats_of, rows_of
from headscope.analysis.heads.scores import MIN_ATTENTION, SCORES
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.prompts.identity import identity
from headscope.analysis.prompts.task import Task
from headscope.analysis.storage.accumulator import Totals
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["KINDS", "HeadTypes", "detect_heads"]

KINDS = (*SCORES, "copy_suppression", *NAME_KINDS, *TASK_KINDS)
_BOTH_WAYS = ("previous_token", "duplicate_token")  # what makes sense where nothing is predicted
_CONFIRMS = 1 / 3  # of the least attention, on the running text


@streaming()
@torch.no_grad()
def detect_heads(
    model: HookedTransformer,
    data: Any = None,
    *,
    text: Any = None,
    task: Task | None = None,
    n_sequences: int = 32,
    length: int | None = None,
    seed: int = 0,
    special_tokens: Sequence[int] = (),
    min_attention: float = MIN_ATTENTION,
    min_effect: float = 0.05,
    level: float = LEVEL,
    **run: Unpack[StreamOptions],
) -> HeadTypes:
    """Find the heads of known kinds, with the evidence for each.

    Kinds that need no task are measured on tokens that are said twice: random ones, where meaning cannot help, or
    pieces of a text. With a task of two names, such as indirect object identification, so are the classes of heads of
    Wang et al. 2022.

    Cost: three forward passes over the repeated tokens, and two over the text. With a task three over its prompts, one
    for each labeled head, and, where heads do the task, path patching from every head to their queries on a few
    prompts, and from the likeliest on more, which is most of it.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]` in which something repeats, or an iterable of batches that can be gone through
            twice, in the place of `n_sequences` rows of tokens said twice.
        text: Text of the kind that the model was trained on: a string, or tokens as for `data`. Pieces of it are said
            twice in the place of random tokens, and kinds told by attention need a third of `min_attention` on the
            running text too.
        task: Prompts with a right and a wrong name. The places `IO`, `S1` and `S2` are found from the answers where the
            task does not name them.
        n_sequences: Rows of tokens said twice; at least 2, to know the error.
        length: Tokens that are said twice; default: 50, or what fits in the context, and half and a quarter of it, at
            each of which the score must be reached. Fewer than 24 rows have one length.
        seed: Of the random tokens, of where pieces of the text start, and of the shuffled control.
        special_tokens: Ids that random tokens leave out besides those of the tokenizer; without one, the first begins
            each row.
        min_attention: The share of attention that makes a head one of the first three kinds.
        min_effect: The share of the logit difference (for `copy_suppression`: of what the model gives the token that
            repeats) that makes a head one of the others.
        level: The probability that chance alone labels any head at all.
        **run: Options of every run; see `StreamOptions`. With `include_bos`, BOS counts as the token before, too.

    Raises:
        InvalidInputError: For too short a context or text, fewer than two rows, a threshold out of range, or a task
            whose names cannot be found in its prompts.
        NotFiniteError: If the model's values are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> found = detect_heads(model, progress=False)
        >>> [score.label for score in found.heads("previous_token")], len(found.heads("induction"))
        (['0.3'], 4)
    """
    _check(model, task, n_sequences, min_attention=min_attention, min_effect=min_effect, level=level)
    check_repeatable(data, "detect_heads")
    check_repeatable(text, "detect_heads")
    notes, twice, by_length = [], "the data", data is None
    text = None if text is None else rows_of(model, text)
    if data is None and text is not None:
        data, twice = repeats_of(model, text, n_sequences, length, seed), "pieces said twice"
        n_pieces = sum(map(len, data))
        if n_pieces < n_sequences:
            notes.append(f"the text has {n_pieces} different pieces to say twice, of the {n_sequences} asked for.")
        run["describe"] = run["describe"] or f"pieces of a text said twice (seed {seed})"
    elif data is None:
        data = random_repeats(model, n_sequences, length, seed, special_tokens)
        run["describe"] = run["describe"] or f"repeated random tokens (seed {seed})"
        if model.tokenizer is not None:
            notes.append("scored on random tokens: to see what heads do on text, give one (text=, or --text FILE).")
    options = {"min_attention": min_attention, "min_effect": min_effect, "level": level}
    options |= {"include_bos": run["include_bos"]}
    asked = None if task is None else identity(task.tensors())
    every_option = {**options, "seed": seed, "task": asked}
    may_repeat = model.cfg.attention_dir == "causal" and model.cfg.d_vocab == model.cfg.d_vocab_out
    given = {"attention": True, "text": text is not None, "repeats": may_repeat}
    order = {name: "reference" if name == "text" else "data" for name, is_given in given.items() if is_given}
    passes = Passes("head-types", model, data, every_option, reference=text, order=order, **run)
    if (finished := passes.finished(HeadTypes)) is not None:
        return finished
    paid = passes.gather("attention", Totals(model, attention_moments(model, seed, by_length=by_length)))
    if paid.n_sequences < 2:
        raise InvalidInputError("the data has one row; give two or more, so that the error of a score can be known.")
    kinds = SCORES if model.cfg.attention_dir == "causal" else _BOTH_WAYS
    on_text = None
    if text is not None:
        running = passes.gather("text", Totals(model, attention_moments(model, seed)))
        on_text = attention_evidence(running.result())
        silent = [name for name in kinds if _says_nothing(on_text, name)]
        notes += [f"{name}: nothing repeats in the text, so it was scored on {twice} alone." for name in silent]
    n_repeats = 0
    found = _Found.of_attention(kinds, attention_evidence(paid.result()), on_text, min_attention)
    if len(kinds) < len(SCORES):
        notes.append("the model attends both ways, so kinds that are about what follows were not looked for.")
    elif may_repeat:
        repeating = passes.gather("repeats", Totals(model, repeat_moments(model)), after="attention")
        against, whole = repeat_evidence(model, repeating.result())
        n_repeats = whole.n
        repeats = whole.value > 0 and whole.clear(level=level)
        condition = Condition(against, min_effect * whole.value if repeats else math.inf)
        found.kinds.append(HeadKind("copy_suppression", against, (condition,)))
        if not repeats:
            notes.append("copy_suppression: the model does not clearly predict what repeats, so nothing is suppressed.")
        found.evidence["copying"] = copying_scores(model)
        found.evidence["adds to the repeated token"] = -against.scores
    if task is not None:
        of_task = task_evidence(
            model,
            task,
            min_attention=min_attention,
            min_effect=min_effect,
            level=level,
            n_kinds=len(found.kinds) + len(NAME_KINDS) + len(TASK_KINDS),
            progress=run["progress"],
        )
        found.kinds += of_task.kinds
        found.evidence |= of_task.evidence
        notes += of_task.notes
    labelled = found.labelled(level)
    if task is not None and task.corrupted_tokens is not None:
        moving = labelled[-len(TASK_KINDS) :].any(0).nonzero().tolist()
        patched = changes_when_patched(model, task, [(layer, head) for layer, head in moving])
        found.evidence["change when patched"] = patched
    nobody = torch.empty(0, 2, dtype=torch.long, device="cpu")
    readers = labelled[kinds.index("induction")].nonzero() if "induction" in kinds else nobody
    described = passes.described + (f" and {task.description}" if task is not None else "")
    types = HeadTypes(
        info=RunInfo(
            model.cfg.model_name, model.weight_processing, described, paid.n_sequences, paid.n_positions, options
        ),
        scores=found.stacked("scores"),
        controls=found.stacked("controls"),
        errors=found.stacked("errors"),
        thresholds=torch.tensor([kind.least for kind in found.kinds], dtype=torch.float32, device="cpu"),
        labelled=labelled,
        open=found.undecided(labelled),
        evidence=torch.stack([each.float().cpu() for each in found.evidence.values()]),
        composition=k_composition(model, [(layer, head) for layer, head in readers.tolist()]),
        composition_heads=readers,
        kinds=tuple(kind.name for kind in found.kinds),
        evidence_names=tuple(found.evidence),
        bound=found.bound(level),
        notes=tuple(notes),
        n_repeats=n_repeats,
    )
    return passes.keep(types)


@dataclass
class _Found:
    """The kinds that were looked for, by the numbers they are told by, and further evidence."""

    kinds: list[HeadKind]
    evidence: dict[str, Float[Tensor, "layer head"]]

    @classmethod
    def of_attention(
        cls, names: Sequence[str], repeated: AttentionEvidence, text: AttentionEvidence | None, least: float
    ) -> "_Found":
        """The kinds that are told by attention: at each length of what is said twice, and confirmed by a text."""
        kinds = []
        evidence = {"start": repeated.start}
        for name in names:
            at = SCORES.index(name)
            said_twice = {width: each[at] for width, each in repeated.measured.items()}
            conditions = [Condition(each, least, of_the_rest=True) for each in said_twice.values()]
            if len(said_twice) > 1:
                evidence |= {
                    f"{name} said twice ({width // 2} tokens)": each.scores for width, each in said_twice.items()
                }
            shown = Measured.lowest(list(said_twice.values()))
            if text is not None and not _says_nothing(text, name):
                (running,) = (each[at] for each in text.measured.values())
                conditions.append(Condition(running, _CONFIRMS * least, of_the_rest=True, confirms=True))
                evidence[f"{name} on text"] = running.scores
            kinds.append(HeadKind(name, shown, tuple(conditions)))
        if text is not None:
            evidence["start on text"] = text.start
        return cls(kinds, evidence)

    def labelled(self, level: float) -> Bool[Tensor, "kind layer head"]:
        """Tell which heads are of which kind."""
        labelled = {kind.name: kind.labelled(len(self.kinds), level) for kind in self.kinds}
        if "copy_suppression" in labelled:
            # It attends where an induction head does, and writes against what it finds there.
            labelled["induction"] &= ~labelled["copy_suppression"]
        return torch.stack(list(labelled.values()))

    def undecided(self, labelled: Bool[Tensor, "kind layer head"]) -> Bool[Tensor, "kind layer head"]:
        """Tell which heads have numbers high enough for a kind, of which one at least is not sure."""
        found = torch.stack([kind.reached() for kind in self.kinds]) & ~labelled
        at = {kind.name: number for number, kind in enumerate(self.kinds)}
        if "copy_suppression" in at:
            found[at["induction"]] &= ~labelled[at["copy_suppression"]]
        # Those that have a part in the task by another kind are decided: a mover is no copier.
        task = [at[name] for name in TASK_KINDS if name in at]
        found[task] &= ~labelled[task].any(0)
        return found

    def stacked(self, part: str) -> Float[Tensor, "kind layer head"]:
        """The numbers that stand for each kind."""
        return torch.stack([getattr(kind.shown, part) for kind in self.kinds])

    def bound(self, level: float) -> float:
        """Standard errors that an excess must be above zero, for the error with the fewest degrees of freedom."""
        among = len(self.kinds) * max(kind.n_tests() for kind in self.kinds)
        return threshold(among, float(self.stacked("freedom").nan_to_num(nan=math.inf).min()), level)


def _says_nothing(text: AttentionEvidence, kind: str) -> bool:
    """Tell whether no position of a text counts for a kind, since nothing repeats there."""
    return all(bool(each[SCORES.index(kind)].scores.isnan().all()) for each in text.measured.values())


def _check(model: HookedTransformer, task: Task | None, n_sequences: int, **shares: float) -> None:
    if task is not None and model.cfg.attention_dir != "causal":
        raise InvalidInputError(
            f"{model.cfg.model_name!r} attends both ways: heads of a task are about a prompt that goes on. Leave out "
            "task=."
        )
    if n_sequences < 2:
        raise InvalidInputError(f"n_sequences must be at least 2, so that errors are known; got {n_sequences}.")
    for name, value in shares.items():
        if not 0 < value < 1:
            raise InvalidInputError(f"{name} is a share, between 0 and 1; got {value}.")
