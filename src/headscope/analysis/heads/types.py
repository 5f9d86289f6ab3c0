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
| `name_mover`          | raises the right name from its place, in either order of the names        | logits    |
| `negative_name_mover` | lowers the right name from its place, in either order                     | logits    |
| `name_copier`         | raises whom it attends to: the right name in one order, the wrong in the other | logits |
| `subject_suppressor`  | lowers the wrong name from its places, in either order                    | logits    |
| `s_inhibition`        | tells the queries of name movers where not to look                        | logits    |
| `backup_name_mover`   | becomes a name mover when the name movers are taken out                   | logits    |

After Elhage et al. 2021 and Olsson et al. 2022 (induction), McDougall et al. 2023 (copy suppression), and Wang et al.
2022 (the classes of heads in indirect object identification; copiers and suppressors are what smaller models have).

A head gets a label if its score is above the threshold, if it is so by more than the control (the same number with
what defines the kind taken out), and if the difference is significant: by a two-sided t-test over rows or prompts, at a
level of 5 % for all heads and kinds together (Bonferroni). The thresholds are choices and are kept with the result: a
share of attention, and a share of the logit difference. A head may have several labels.
"""

import math
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import check_repeatable
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.stats import LEVEL, threshold
from headscope.analysis.heads.evidence import (
    Measured,
    attention_evidence,
    attention_moments,
    copying_scores,
    k_composition,
    repeat_evidence,
    repeat_moments,
)
from headscope.analysis.heads.name_evidence import TASK_KINDS, changes_when_patched, task_evidence
from headscope.analysis.heads.scores import MIN_ATTENTION, SCORES, scored_tokens
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.prompts.task import Task
from headscope.analysis.storage.accumulator import Totals
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["KINDS", "HeadTypes", "detect_heads"]

KINDS = (*SCORES, "copy_suppression", *TASK_KINDS)
_SHORTEST = 2


@streaming()
@torch.no_grad()
def detect_heads(
    model: HookedTransformer,
    data: Any = None,
    *,
    task: Task | None = None,
    n_sequences: int = 32,
    length: int | None = None,
    seed: int = 0,
    min_attention: float = MIN_ATTENTION,
    min_effect: float = 0.05,
    level: float = LEVEL,
    **run: Unpack[StreamOptions],
) -> HeadTypes:
    """Find the heads of known kinds, with the evidence for each.

    Kinds that need no task are measured on repeated random tokens, where meaning cannot help. With a task of two names,
    such as indirect object identification, so are the classes of heads of Wang et al. 2022.

    Cost: three forward passes over the random tokens. With a task five over its prompts, one for each labeled head,
    and, where there are name movers, path patching from every head to their queries, which is most of it.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]` in which something repeats, or an iterable of batches that can be gone through
            twice, in the place of `n_sequences` rows of random tokens said twice.
        task: Prompts with a right and a wrong name. The places `IO`, `S1` and `S2` are found from the answers where the
            task does not name them.
        n_sequences: Rows of random tokens; at least 2, to know the error.
        length: Tokens that are said twice; default 50, or what fits in the context.
        seed: Of the random tokens and of the shuffled control.
        min_attention: The share of attention that makes a head one of the first three kinds.
        min_effect: The share of the logit difference (for `copy_suppression`: of what the model gives the token that
            repeats) that makes a head one of the others.
        level: The probability that chance alone labels any head at all.
        **run: Options of every run; see `StreamOptions`. With `include_bos`, BOS counts as the token before, too.

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
    _check(model, n_sequences, min_attention=min_attention, min_effect=min_effect, level=level)
    check_repeatable(data, "detect_heads")
    if data is None:
        data = _random_rows(model, n_sequences, length, seed)
        run["describe"] = run["describe"] or f"repeated random tokens (seed {seed})"
    options = {"min_attention": min_attention, "min_effect": min_effect, "level": level}
    options |= {"include_bos": run["include_bos"]}
    asked = None if task is None else fingerprint(task.tensors())
    passes = Passes("head-types", model, data, {**options, "seed": seed, "task": asked}, **run)
    if (finished := passes.finished(HeadTypes)) is not None:
        return finished
    paid = passes.gather("attention", Totals(model, attention_moments(model, seed)))
    attention = attention_evidence(paid.result()["moments"])
    if paid.n_sequences < 2:
        raise InvalidInputError("the data has one row; give two or more, so that the error of a score can be known.")
    notes: list[str] = []
    evidence: dict[str, Tensor] = {}
    names, measured, thresholds = list(SCORES), [attention], [min_attention] * len(SCORES)
    if model.cfg.d_vocab == model.cfg.d_vocab_out:
        repeating = passes.gather("repeats", Totals(model, repeat_moments(model)), after="attention")
        against, whole = repeat_evidence(model, repeating.result())
        names.append("copy_suppression")
        measured.append(against)
        repeats = whole.value > 0 and whole.clear(level=level)
        thresholds.append(min_effect * whole.value if repeats else math.inf)
        if not repeats:
            notes.append("copy_suppression: the model does not surely predict what repeats, so nothing is suppressed.")
        evidence["copying"] = copying_scores(model)
        evidence["adds to the repeated token"] = -against.scores[0]
    if task is not None:
        found = task_evidence(model, task, min_effect=min_effect, level=level, progress=run["progress"])
        names += TASK_KINDS
        measured.append(found.measured)
        thresholds += [found.threshold] * len(TASK_KINDS)
        evidence |= found.evidence
        notes += found.notes
    every = Measured.joined(measured)
    bounds = torch.tensor(thresholds, dtype=torch.float32)
    labelled = _labelled(names, every, bounds, level)
    if task is not None and task.corrupted_tokens is not None:
        moving = labelled[len(names) - len(TASK_KINDS) :].any(0).nonzero().tolist()
        evidence["change when patched"] = changes_when_patched(model, task, [(layer, head) for layer, head in moving])
    readers = labelled[SCORES.index("induction")].nonzero()
    nothing = torch.empty(0, model.cfg.n_layers, model.cfg.n_heads)
    described = passes.described + (f" and {task.description}" if task is not None else "")
    types = HeadTypes(
        info=RunInfo(
            model.cfg.model_name, model.weight_processing, described, paid.n_sequences, paid.n_positions, options
        ),
        scores=every.scores,
        controls=every.controls,
        errors=every.errors,
        thresholds=bounds,
        labelled=labelled,
        evidence=torch.stack([each.float().cpu() for each in evidence.values()]) if evidence else nothing,
        composition=k_composition(model, [(layer, head) for layer, head in readers.tolist()]),
        composition_heads=readers,
        kinds=tuple(names),
        evidence_names=tuple(evidence),
        bound=threshold(every.scores.numel(), float(every.freedom.nan_to_num(nan=math.inf).min()), level),
        notes=tuple(notes),
    )
    return passes.keep(types)


def _check(model: HookedTransformer, n_sequences: int, **shares: float) -> None:
    if model.cfg.attention_dir != "causal":
        raise InvalidInputError(
            f"{model.cfg.model_name!r} attends both ways: these kinds of heads are about tokens that came before."
        )
    if n_sequences < 2:
        raise InvalidInputError(f"n_sequences must be at least 2, so that errors are known; got {n_sequences}.")
    for name, value in shares.items():
        if not 0 < value < 1:
            raise InvalidInputError(f"{name} is a share, between 0 and 1; got {value}.")


def _random_rows(model: HookedTransformer, n_sequences: int, length: int | None, seed: int) -> Int[Tensor, "row pos"]:
    longest = (model.cfg.n_ctx - 1) // 2
    if (length is not None and not _SHORTEST <= length <= longest) or longest < _SHORTEST:
        raise InvalidInputError(
            f"length must be between {_SHORTEST} and {longest}, since it is said twice after BOS and the context is "
            f"n_ctx = {model.cfg.n_ctx}; got {length}."
        )
    return scored_tokens(model, n_sequences, length, seed)


def _labelled(
    names: list[str], measured: Measured, thresholds: Float[Tensor, " kind"], level: float
) -> Bool[Tensor, "kind layer head"]:
    """Return which heads are of which kind."""
    labelled = measured.reaches(thresholds[:, None, None], measured.scores.numel(), level)
    if "copy_suppression" in names:
        # It attends where an induction head does, and writes against what it finds there.
        labelled[SCORES.index("induction")] &= ~labelled[names.index("copy_suppression")]
    return labelled
