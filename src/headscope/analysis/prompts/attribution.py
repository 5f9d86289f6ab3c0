"""Direct logit attribution: what each part of the model adds to the logit difference of right and wrong answers.

With the final norm's scale frozen to that of the real final state, logits are linear in the residual stream: for a
prompt with scale `s`, norm weight `w` and answers whose unembeddings differ by `u`, anything written to the stream adds
its product with `center(w * u) / s`. That vector is made once per prompt, and everything is read along it: a head as
`z . (W_O v)`, a head's source as `pattern * (value . (W_O v))`, a neuron as `activation * (W_out v)`. Norms behind
attention and MLP (Gemma 2, OLMo 2) have their scales frozen too, at the position that is read: so are these shares of
one sum, and all parts together still give the logit difference (before a soft cap, if there is one).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch, describe_data, iterate_batches
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.prompts.attribution_result import Attribution, component_labels
from headscope.analysis.prompts.metrics import LinearMetric
from headscope.analysis.prompts.reading import TokenStrings
from headscope.analysis.prompts.task import Task
from headscope.analysis.recording.lens_states import state_labels
from headscope.analysis.recording.record import Reading, check_final, record
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.options import RunOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import Readout, readout_of
from headscope.model.names import Part, post_scale_name
from headscope.model.transformer import HookedTransformer

__all__ = ["attribute", "attribute_each", "values_along"]


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
        **run: Options of every run; see `RunOptions`.

    Raises:
        InvalidInputError: For answers or positions that do not fit, a metric that is not linear in the logits, tokens
            out of range, or a part of the model that was replaced by something that cannot be read.
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
    if not Readout.is_shown_by(model.unembed):
        raise InvalidInputError("the model's unembedding was replaced by a module without W_U and b_U.")
    task = _as_task(model, data, answer_tokens, positions, run["attention_mask"], metric)
    run["attention_mask"] = None
    run["describe"] = run["describe"] or (data.description if isinstance(data, Task) else describe_data(data))
    options = {"sources": sources, "neurons": neurons}
    batch = {"tokens": task.clean_tokens, "attention_mask": task.attention_mask}
    answers, weights = _linear_of(task).terms()
    asked = {"answers": answers, "weights": weights, "positions": _linear_of(task).positions}
    passes = Passes("attribution", model, batch, {**options, "asked": fingerprint(asked)}, include_bos=True, **run)
    if (finished := passes.finished(Attribution)) is not None:
        return finished
    return passes.finish(
        "attribution", _AttributionAccumulator(model, options, passes.described, against=asked, task=task)
    )


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
    prompts = {"tokens": tasks[0].clean_tokens, "attention_mask": tasks[0].attention_mask}
    for batch in iterate_batches(model, prompts, include_bos=True, progress=progress, description="attribution"):
        acts, final = each[0].recorded(batch)
        for one in each:
            one.read(batch, acts, final)
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
        _check_answers(model, _linear_of(task).terms()[0], data.clean_tokens)
        return task.to(device)
    if not isinstance(data, Tensor):
        raise InvalidInputError(f"data must be a Task, or tokens [prompt, pos]; got {type(data).__name__}.")
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
            f"attention_mask must have the tokens' shape {list(tokens.shape)}; got {list(mask.shape)}."
        )
    n, length = tokens.shape
    at = (mask * torch.arange(length, device=device)).amax(1) if positions is None else positions.to(device)
    inside = at.shape == (n,) and bool(((at >= 0) & (at < length)).all())
    if not inside or not bool(mask.gather(1, at[:, None]).all()):
        raise InvalidInputError(
            f"positions must be one for each of {n} prompts, from 0 to {length - 1} and not at padding; got "
            f"{list(at.shape)}, from {int(at.min())} to {int(at.max())}."
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


def _linear_of(task: Task) -> LinearMetric:
    """Return a task's metric, if it is one that can be attributed.

    Raises:
        InvalidInputError: If it is not linear in the logits.
    """
    metric = task.measure
    if not isinstance(metric, LinearMetric):
        raise InvalidInputError(
            f"only a metric that is linear in the logits adds up over the parts of a model; got {metric!r}. Give an "
            "AnswerMetric, a NumberMetric or another LinearMetric, or use activation_patch or attribution_patch."
        )
    return metric


def _check_answers(model: HookedTransformer, answers: Tensor, tokens: Tensor) -> None:
    if answers.ndim != 2 or len(answers) != len(tokens):
        raise InvalidInputError(
            f"there are {len(tokens)} prompts; answer_tokens must be [{len(tokens)}, 2], got {list(answers.shape)}."
        )
    d_vocab = model.cfg.d_vocab_out
    bad = ((answers < 0) | (answers >= d_vocab)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise InvalidInputError(
            f"answers must be tokens from 0 to {d_vocab - 1}; prompt {row} has {int(answers[row, column])}. "
            "Were they made by another model's tokenizer?"
        )


class _AttributionAccumulator(Accumulator[Attribution]):
    """Direct logit attribution over a stream of batches of prompts."""

    def __init__(
        self, model: HookedTransformer, options: dict[str, Any], data: str, *, task: Task, **part: Any
    ) -> None:
        super().__init__(model, options, data, **part)
        self.task, self.cfg, self.metric = task, model.cfg, _linear_of(task)
        self.positions = self.metric.places(*task.clean_tokens.shape)[:, 0].to(task.clean_tokens.device)
        self.sources = options["sources"]
        self.neurons = options["neurons"] and not (self.cfg.attn_only or self.cfg.num_experts is not None)
        self.readout = readout_of(model)
        self.kind = torch.promote_types(self.cfg.dtype, torch.float32)
        layers = range(self.cfg.n_layers)
        self.W_O = {layer: model.output_weight(layer) for layer in self.cfg.layers_with("attn")}
        with_neurons = self.cfg.layers_with("mlp") if self.neurons else ()
        self.W_out = {layer: model.output_weight(layer, "mlp") for layer in with_neurons}
        self.embeddings = ["hook_embed"]
        self.embeddings += ["hook_pos_embed"] if self.cfg.positional_embedding_type == "standard" else []
        kinds = ["hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mixer_out", "hook_mlp_out", "attn.hook_z"]
        kinds += ["attn.hook_pattern", "attn.hook_v", "attn.hook_gate"] if self.sources else []
        kinds += ["mlp.hook_post"] if self.neurons else []
        self.names = self.embeddings + [f"blocks.{layer}.{kind}" for layer in layers for kind in kinds]
        parts: tuple[Part, ...] = ("attn", "mlp") if self.neurons else ("attn",)
        self.names += [post_scale_name(layer, of) for layer in layers for of in parts]

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Run a batch of prompts, and read it along the directions of its answers."""
        self.read(batch, *self.recorded(batch))

    def recorded(self, batch: Batch) -> tuple[dict[str, Tensor], Float[Tensor, "prompt d_model"]]:
        """Run a batch of prompts; what is read of it, and its final state."""
        n = len(batch.tokens)
        prompts = torch.arange(n, device=batch.tokens.device)
        positions = self.positions[self.n_before : self.n_before + n]

        def reading(name: str) -> Reading:
            if name.endswith("hook_v"):
                return lambda values: values.to(self.kind)
            if name.endswith("hook_pattern"):
                return lambda pattern: pattern[prompts, :, positions].to(self.kind)
            return lambda activation: activation[prompts, positions].to(self.kind)

        readings = {name: reading(name) for name in self.names}
        acts, final = record(self.model, batch.tokens, readings, attention_mask=batch.attention_mask)
        final = final[prompts, positions].to(self.kind)
        check_final(final)
        return acts, final

    def read(self, batch: Batch, acts: Mapping[str, Tensor], final: Float[Tensor, "prompt d_model"]) -> None:
        """Read a batch that was run along the directions of its answers."""
        n = len(batch.tokens)
        which = slice(self.n_before, self.n_before + n)
        toward, constant = self._directions(final, *self.metric.terms(which))

        def along(state: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
            return (state * toward).sum(-1)

        def behind(layer: int, of: Part) -> Float[Tensor, "prompt d_model"]:
            scale = acts.get(post_scale_name(layer, of))
            return toward if scale is None else toward / scale

        components, by_source, by_neuron = [along(acts[name]) for name in self.embeddings], [], []
        for layer in range(self.cfg.n_layers):
            name, parts = f"blocks.{layer}.", self.cfg.parts_of(layer)
            if "attn" in parts:
                onto = torch.einsum("hed,pd->phe", self.W_O[layer].to(self.kind), behind(layer, "attn"))
                heads = (acts[name + "attn.hook_z"] * onto).sum(-1)
                # What attention adds besides its heads is its bias, which belongs to none of them.
                components += [*heads.unbind(-1), along(acts[name + "hook_attn_out"]) - heads.sum(-1)]
            components += [along(acts[f"{name}hook_{part}_out"]) for part in parts if part != "attn"]
            if "attn" in parts and self.sources:
                # The gate is that of the position the head writes at, the same for all it attends to.
                onto = onto * acts.get(f"{name}attn.hook_gate", 1.0)
                by_source.append(acts[name + "attn.hook_pattern"] * values_along(acts[name + "attn.hook_v"], onto))
            if layer in self.W_out:
                onto_neurons = behind(layer, "mlp") @ self.W_out[layer].to(self.kind).T
                by_neuron.append((acts[name + "mlp.hook_post"] * onto_neurons).double().sum(0))
        kinds = ("hook_resid_pre", "hook_resid_mid") if self.cfg.has_resid_mid else ("hook_resid_pre",)
        passed = [acts[f"blocks.{layer}.{kind}"] for layer in range(self.cfg.n_layers) for kind in kinds]
        states = torch.stack([along(state) + constant for state in (*passed, final)], 1)
        # Rows are [..., prompt, x].
        rows = {"states": states, "components": torch.stack([*components, constant], 1)}
        rows |= {"sources": over_layers(self.cfg, torch.stack(by_source)).movedim(2, 1)} if by_source else {}
        neurons = {"neurons": over_layers(self.cfg, torch.stack(by_neuron), "mlp")} if by_neuron else {}
        self.add(batch, n, neurons, rows)

    def summary(self, rows: dict[str, Tensor]) -> Attribution:
        """Return the attributions of all prompts; those of neurons as means over them."""
        task, neurons = self.task, self.sums.get("neurons")
        total = rows["states"][:, -1].clone()
        words = list(task.word_idx.values())
        return Attribution(
            info=self.info(self.options),
            logit_difference=total,
            accumulated=rows["states"],
            components=rows["components"],
            sources=rows["sources"].movedim(-2, 0).contiguous() if self.sources else None,
            neurons=None if neurons is None else (neurons / self.n_sequences).to(total.dtype),
            tokens=task.clean_tokens,
            attention_mask=task.attention_mask,
            positions=self.positions,
            word_positions=torch.stack(words) if words else task.positions.new_empty(0, len(task)),
            state_labels=state_labels(self.model),
            component_labels=component_labels(self.cfg),
            token_strings=tuple(string for row in task.str_tokens for string in row),
            labels=task.labels,
            word_names=tuple(task.word_idx),
            n_heads=self.cfg.n_heads,
            clusters=task.clusters,
        )

    def _directions(
        self, final: Float[Tensor, "prompt d_model"], answers: Tensor, weights: Tensor
    ) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, " prompt"]]:
        """Return the direction that the stream is read along, and what the biases behind it add."""
        readout = self.readout
        columns, b_U = readout.W_U.detach().T[answers].to(self.kind), readout.b_U.detach()[answers].to(self.kind)
        by = weights.to(self.kind).to(columns.device)
        u = (columns * by[..., None]).sum(1)
        constant = (b_U * by).sum(1) + self.metric.constant
        if readout.bias is not None:
            constant = constant + u @ readout.bias.detach().to(self.kind)
        if readout.weight is not None:
            u = u * readout.weight.detach().to(self.kind)
        # Centering is its own transpose: what is read of a centered state is read along the centered direction.
        return readout.center(u) / readout.scale(final), constant


def values_along(
    v: Float[Tensor, "prompt key_pos group d_head"], onto: Float[Tensor, "prompt head d_head"]
) -> Float[Tensor, "prompt head key_pos"]:
    """Return what each position's value adds through each head, were it attended to fully; heads may share values."""
    by_group = onto.unflatten(1, (v.shape[2], -1))
    return torch.einsum("pkge,pgre->pgrk", v, by_group).flatten(1, 2)
