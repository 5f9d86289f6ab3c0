"""Direct logit attribution: what each part of the model adds to the logit difference of right and wrong answers.

`direct_effects` says how one forward pass is read. Prompts come in batches, which are streamed, resumed and sharded as
those of every analysis.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.core.batches import Batch, describe_data, iterate_batches
from headscope.analysis.prompts.attribution_result import Attribution, component_labels
from headscope.analysis.prompts.controls import Control, controlled
from headscope.analysis.prompts.direct_effects import DirectEffects, Recorded, linear_of
from headscope.analysis.prompts.identity import identity
from headscope.analysis.prompts.metrics import LinearMetric
from headscope.analysis.prompts.reading import TokenStrings
from headscope.analysis.prompts.task import Task
from headscope.analysis.recording.lens_states import state_labels
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import RunOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import Readout
from headscope.model.transformer import HookedTransformer

__all__ = ["attribute", "attribute_each"]


@streaming()
@torch.no_grad()
def attribute(
    model: HookedTransformer,
    data: Task | Int[Tensor, "prompt pos"],
    *,
    answer_tokens: Int[Tensor, "prompt 2"] | None = None,
    positions: Int[Tensor, " prompt"] | None = None,
    metric: LinearMetric | None = None,
    sources: bool = True,
    neurons: bool = True,
    control: Control | None = None,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Attribution:
    """Attribute the logit difference to what each part of the model adds to it directly.

    Or another metric, if it is linear in the logits: that of a task, or `metric`. It sees direct paths to the logits
    alone: a part whose work other parts read on the way has no share of its own.

    Memory is bounded by a batch of prompts, and by what is returned: with `sources` that is a number for each prompt,
    head and position.

    Args:
        model: The model.
        data: A task, or prompts as tokens.
        answer_tokens: For tokens: the right and the wrong answer of each prompt.
        positions: For tokens: where each answer is predicted; default: at the last real token.
        metric: An `AnswerMetric`, a `NumberMetric` or another `LinearMetric` of these prompts, in the place of answers
            and positions; default: the task's own.
        sources: Also by the position that each head attends to.
        neurons: Also by MLP neuron; not where MLPs are experts, as each token has other neurons then.
        control: Also measure where there is nothing to find: `"reinitialized"` (another run of each prompt) or
            `"shuffled_answers"` (the same run); see `prompts.controls`. `"norm_matched"` is of patches, which there
            are none of here. By component, not by source or neuron.
        seed: Of the control.
        **run: Options of every run; see `RunOptions`.

    Raises:
        InvalidInputError: For answers or positions that do not fit, a metric that is not linear in the logits, tokens
            out of range, a control that would change nothing, or a part of the model that was replaced by something
            that cannot be read.
        NotFiniteError: If a final state is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> found = attribute(model, task, progress=False)
        >>> print(f"{found.logit_difference.mean():.2f}, of which {found.heads.mean(0)[3, 2]:.2f} by head 3.2")
        8.86, of which 2.92 by head 3.2
    """
    if obstacle := Readout.obstacle(model):
        raise InvalidInputError(f"{obstacle}.")
    task = _as_task(model, data, answer_tokens, positions, run["attention_mask"], metric)
    run["attention_mask"] = None
    run["describe"] = run["describe"] or (data.description if isinstance(data, Task) else describe_data(data))
    options = {"sources": sources, "neurons": neurons}
    batch = {"tokens": task.clean_tokens, "attention_mask": task.attention_mask}
    answers, weights = linear_of(task).terms()
    asked = {"answers": answers, "weights": weights, "positions": linear_of(task).positions}
    beside = _control(model, task, control, metric, seed)
    described = {**options, "asked": identity(task.tensors() | asked)}
    described |= {"control": control, "seed": seed} if control else {}
    passes = Passes("attribution", model, batch, described, include_bos=True, **run)
    if (finished := passes.finished(Attribution)) is not None:
        return finished
    made = _AttributionAccumulator(
        model, options, passes.described, against=asked, task=task, control=control or "", beside=beside
    )
    return passes.finish("attribution", made)


@torch.no_grad()
def attribute_each(model: HookedTransformer, tasks: Sequence[Task], *, progress: bool = True) -> list[Attribution]:
    """Attribute tasks that differ in their answers alone, from one forward pass; by source, not by neuron.

    Args:
        model: The model.
        tasks: The tasks, with the same prompts.
        progress: Show a progress bar.

    Raises:
        InvalidInputError, NotFiniteError: As for `attribute`.
    """
    options = {"sources": True, "neurons": False}
    tasks = [_as_task(model, task, None, None, None, None) for task in tasks]
    each = [_AttributionAccumulator(model, options, task.description, task=task) for task in tasks]
    run = each[0].effects
    prompts = {"tokens": tasks[0].clean_tokens, "attention_mask": tasks[0].attention_mask}
    for batch in iterate_batches(model, prompts, include_bos=True, progress=progress, description="attribution"):
        recorded = run.recorded(batch, each[0].prompts_of(batch))
        for one in each:
            one.take(batch, recorded)
    return [one.result() for one in each]


def _as_task(
    model: HookedTransformer,
    data: Any,
    answer_tokens: Tensor | None,
    positions: Tensor | None,
    attention_mask: Tensor | None,
    metric: LinearMetric | None,
) -> Task:
    """Return the prompts as a task on the model's device; one made of tokens has no texts but those of its tokens."""
    device = model.W_E.device
    if isinstance(data, Task):
        if answer_tokens is not None or positions is not None or attention_mask is not None:
            raise InvalidInputError("a Task has its answers, positions and mask: give these only with tokens.")
        task = data if metric is None else replace(data, metric=metric)
        _check_answers(model, linear_of(task).terms()[0], data.clean_tokens)
        return task.to(device)
    if not isinstance(data, Tensor):
        raise InvalidInputError(
            f"data must be a Task, or tokens [prompt, pos]; got {type(data).__name__}.", code="HS-TOKENS-02"
        )
    if (answer_tokens is None) == (metric is None) or (metric is not None and positions is not None):
        raise InvalidInputError(
            "tokens need either answer_tokens [prompt, 2], the right and the wrong answer of each prompt, or a metric, "
            "which has positions of its own."
        )
    tokens = data.to(device)
    if metric is not None:
        answers, positions = tokens.new_empty(len(tokens), 0), metric.places(*tokens.shape)[:, 0]
        _check_answers(model, metric.terms()[0], tokens)
    else:
        assert answer_tokens is not None
        answers = answer_tokens.to(device)
        _check_answers(model, answers, tokens)
    mask = attention_mask if attention_mask is not None else model.attention_mask(tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(device).bool()
    if mask.shape != tokens.shape:
        raise InvalidInputError(
            f"attention_mask must have the tokens' shape {list(tokens.shape)}; got {list(mask.shape)}.",
            code="HS-TOKENS-06",
        )
    n, length = tokens.shape
    at = (mask * torch.arange(length, device=device)).amax(1) if positions is None else positions.to(device)
    inside = at.shape == (n,) and bool(((at >= 0) & (at < length)).all())
    if not inside or not bool(mask.gather(1, at[:, None]).all()):
        raise InvalidInputError(
            f"positions must be one for each of {n} prompts, from 0 to {length - 1} and not at padding; got "
            f"{list(at.shape)}, from {int(at.min())} to {int(at.max())}.",
            code="HS-PROMPTS-05",
        )
    text = str if model.tokenizer is None else TokenStrings(model.tokenizer).__getitem__
    return Task(
        clean_tokens=tokens,
        correct=answers[:, :1],
        incorrect=answers[:, 1:],
        attention_mask=mask,
        positions=at,
        corrupted_tokens=None,
        prompts=("",) * n,
        str_tokens=tuple(tuple(map(text, row[real].tolist())) for row, real in zip(tokens, mask, strict=True)),
        answers=(("", ""),) * n,
        labels=("",) * n,
        metric=metric,
    ).to(device)


def _check_answers(model: HookedTransformer, answers: Tensor, tokens: Tensor) -> None:
    if answers.ndim != 2 or len(answers) != len(tokens):
        raise InvalidInputError(
            f"there are {len(tokens)} prompts; answer_tokens must be [{len(tokens)}, 2], got {list(answers.shape)}.",
            code="HS-PROMPTS-06",
        )
    d_vocab = model.cfg.d_vocab_out
    bad = ((answers < 0) | (answers >= d_vocab)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise InvalidInputError(
            f"answers must be tokens from 0 to {d_vocab - 1}; prompt {row} has {int(answers[row, column])}. "
            "Were they made by another model's tokenizer?",
            code="HS-TOKENS-01",
        )


def _control(
    model: HookedTransformer, task: Task, control: Control | None, metric: LinearMetric | None, seed: int
) -> "DirectEffects | None":
    """Return what reads a control, if one is asked for.

    Raises:
        InvalidInputError: For a control that there is not, or that would change nothing.
    """
    if control is None:
        return None
    if control == "norm_matched":
        raise InvalidInputError(
            "control='norm_matched' is of patched activations, and attribution patches none. Take 'reinitialized' or "
            "'shuffled_answers'."
        )
    other, other_task = controlled(model, task, control, metric=metric, seed=seed)
    return DirectEffects(other, other_task, sources=False, neurons=False)


class _AttributionAccumulator(Accumulator[Attribution]):
    """Direct logit attribution over a stream of batches of prompts."""

    def __init__(
        self,
        model: HookedTransformer,
        options: dict[str, Any],
        data: str,
        *,
        task: Task,
        control: str = "",
        beside: DirectEffects | None = None,
        **part: Any,
    ) -> None:
        super().__init__(model, options, data, **part)
        self.task, self.control, self.beside = task, control, beside
        self.effects = DirectEffects(model, task, **options)

    def prompts_of(self, batch: Batch) -> slice:
        """The place of a batch among all prompts."""
        return slice(self.n_before, self.n_before + len(batch.tokens))

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Run a batch of prompts, and read it along the directions of its answers."""
        self.take(batch, self.effects.recorded(batch, self.prompts_of(batch)))

    def take(self, batch: Batch, recorded: Recorded) -> None:
        """Read a batch that was run."""
        which = self.prompts_of(batch)
        rows, neurons = self.effects.read(which, recorded)
        if (beside := self.beside) is not None:
            of_control = recorded if beside.model is self.model else beside.recorded(batch, which)
            rows |= {f"control_{name}": each for name, each in beside.read(which, of_control)[0].items()}
        self.add(batch, len(batch.tokens), neurons, rows)

    def summary(self, rows: dict[str, Tensor]) -> Attribution:
        """Return the attributions of all prompts; those of neurons as means over them."""
        task, neurons = self.task, self.sums.get("neurons")
        total = rows["states"][:, -1].clone()
        beside = {}
        if self.beside is not None:
            states = rows["control_states"]
            beside = {"control_logit_difference": states[:, -1].clone(), "control_accumulated": states}
            beside["control_components"] = rows["control_components"]
        words = list(task.word_idx.values())
        return Attribution(
            info=self.info(self.options),
            logit_difference=total,
            accumulated=rows["states"],
            components=rows["components"],
            sources=rows["sources"].movedim(-2, 0).contiguous() if self.effects.sources else None,
            neurons=None if neurons is None else (neurons / self.n_sequences).to(total.dtype),
            tokens=task.clean_tokens,
            attention_mask=task.attention_mask,
            positions=self.effects.positions,
            word_positions=torch.stack(words) if words else task.positions.new_empty(0, len(task)),
            state_labels=state_labels(self.model),
            component_labels=component_labels(self.model.cfg),
            token_strings=tuple(string for row in task.str_tokens for string in row),
            labels=task.labels,
            word_names=tuple(task.word_idx),
            n_heads=self.model.cfg.n_heads,
            clusters=task.clusters,
            control=self.control,
            **beside,
        )
