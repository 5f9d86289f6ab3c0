"""Direct logit attribution: what each part of the model adds to the logit difference of right and wrong answers.

With the final norm's scale frozen to that of the real final state, logits are linear in the residual stream: for a
prompt with scale `s`, norm weight `w` and answers whose unembeddings differ by `u`, anything written to the stream adds
its product with `center(w * u) / s`. That vector is made once per prompt, and everything is read along it: a head as
`z . (W_O v)`, a head's source as `pattern * (value . (W_O v))`, a neuron as `activation * (W_out v)`. Norms behind
attention and MLP (Gemma 2, OLMo 2) have their scales frozen too, at the position that is read: so are these shares of
one sum, and all parts together still give the logit difference (before a soft cap, if there is one).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch, describe_data
from headscope.analysis.prompts.attribution_result import Attribution, component_labels
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

__all__ = ["attribute"]


@streaming()
@torch.no_grad()
def attribute(
    model: HookedTransformer,
    data: Task | Int[Tensor, "prompt pos"],
    *,
    answer_tokens: Int[Tensor, "prompt 2"] | None = None,
    positions: Int[Tensor, " prompt"] | None = None,
    sources: bool = True,
    neurons: bool = True,
    **run: Unpack[RunOptions],
) -> Attribution:
    """Attribute the logit difference to what each part of the model adds to it directly.

    Memory is bounded by a batch of prompts, and by what is returned: with `sources` that is a number for each prompt,
    head and position.

    Args:
        model: The model.
        data: A task, or prompts as tokens.
        answer_tokens: For tokens: the right and the wrong answer of each prompt.
        positions: For tokens: where each answer is predicted; default: at the last real token.
        sources: Also by the position that each head attends to.
        neurons: Also by MLP neuron; not where MLPs are experts, as each token has other neurons then.
        **run: Options of every run; see `RunOptions`.

    Raises:
        InvalidInputError: For answers or positions that do not fit, tokens out of range, or a part of the model that
            was replaced by something that cannot be read.
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
    asked = _asked(model, data, answer_tokens, positions, run["attention_mask"])
    has_none = model.cfg.attn_only or model.cfg.num_experts is not None
    reader = _Reader(model, sources=sources, neurons=neurons and not has_none)
    run["attention_mask"] = None
    run["describe"] = run["describe"] or (data.description if isinstance(data, Task) else describe_data(data))
    options = {"sources": sources, "neurons": neurons}
    passes = Passes(
        "attribution", model, asked.batch, {**options, "asked": fingerprint(asked.answers)}, include_bos=True, **run
    )
    if (finished := passes.finished(Attribution)) is not None:
        return finished
    return passes.finish("attribution", _AttributionAccumulator(model, options, passes.described, asked, reader))


@dataclass(frozen=True)
class _Asked:
    """The prompts, whoever gave them."""

    batch: dict[str, Tensor]
    correct: Int[Tensor, "prompt n_correct"]
    incorrect: Int[Tensor, "prompt n_incorrect"]
    positions: Int[Tensor, " prompt"]
    words: Int[Tensor, "word prompt"]
    word_names: tuple[str, ...]
    token_strings: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def answers(self) -> dict[str, Tensor]:
        """Right and wrong answers of each prompt, and where they are predicted."""
        return {"answers": self.correct, "wrong answers": self.incorrect, "positions": self.positions}


def _asked(
    model: HookedTransformer,
    data: Any,
    answer_tokens: Tensor | None,
    positions: Tensor | None,
    attention_mask: Tensor | None,
) -> _Asked:
    device = model.W_E.device
    if isinstance(data, Task):
        if answer_tokens is not None or positions is not None or attention_mask is not None:
            raise InvalidInputError("a Task has its answers, positions and mask: give these only with tokens.")
        task = data.to(device)
        _check_answers(model, torch.cat([task.correct, task.incorrect], 1), task.clean_tokens)
        words = [task.word_idx[name] for name in task.word_idx]
        return _Asked(
            {"tokens": task.clean_tokens, "attention_mask": task.attention_mask},
            task.correct,
            task.incorrect,
            task.positions,
            torch.stack(words) if words else torch.empty(0, len(task), dtype=torch.long, device=device),
            tuple(task.word_idx),
            tuple(string for row in task.str_tokens for string in row),
            task.labels,
        )
    if not isinstance(data, Tensor):
        raise InvalidInputError(f"data must be a Task, or tokens [prompt, pos]; got {type(data).__name__}.")
    if answer_tokens is None:
        raise InvalidInputError("tokens need answer_tokens [prompt, 2]: the right and the wrong answer of each prompt.")
    tokens = data.to(device)
    _check_answers(model, answer_tokens, tokens)
    mask = attention_mask if attention_mask is not None else model.attention_mask(tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(device).bool()
    if mask.shape != tokens.shape:
        raise InvalidInputError(
            f"attention_mask must have the tokens' shape {list(tokens.shape)}; got {list(mask.shape)}."
        )
    length = tokens.shape[1]
    at = (mask * torch.arange(length, device=device)).amax(1) if positions is None else positions.to(device)
    inside = at.shape == tokens.shape[:1] and bool(((at >= 0) & (at < length)).all())
    if not inside or not bool(mask.gather(1, at[:, None]).all()):
        raise InvalidInputError(
            f"positions must be one for each of {len(tokens)} prompts, from 0 to {length - 1} and not at padding; got "
            f"{list(at.shape)}, from {int(at.min())} to {int(at.max())}."
        )
    answers = answer_tokens.to(device)
    return _Asked(
        {"tokens": tokens, "attention_mask": mask},
        answers[:, :1],
        answers[:, 1:],
        at,
        torch.empty(0, len(tokens), dtype=torch.long, device=device),
        (),
        _strings(model, tokens, mask),
        ("",) * len(tokens),
    )


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


def _strings(model: HookedTransformer, tokens: Tensor, mask: Tensor) -> tuple[str, ...]:
    ids = tokens[mask].tolist()
    if model.tokenizer is None:
        return tuple(map(str, ids))
    strings = TokenStrings(model.tokenizer)
    return tuple(strings[token] for token in ids)


class _AttributionAccumulator(Accumulator[Attribution]):
    """Direct logit attribution over a stream of batches of prompts."""

    def __init__(
        self,
        model: HookedTransformer,
        options: dict[str, Any],
        data: str,
        asked: _Asked,
        reader: "_Reader",
        **part: Any,
    ) -> None:
        super().__init__(model, options, data, against=asked.answers, **part)
        self.asked, self.reader = asked, reader

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Run a batch of prompts, and read it along the directions of its answers."""
        n = len(batch.tokens)
        asked, at = self.asked, slice(self.n_before, self.n_before + n)
        read = self.reader.read(batch, asked.correct[at], asked.incorrect[at], asked.positions[at])
        # Rows are [..., prompt, x].
        rows = {"states": read.states, "components": read.components}
        rows |= {} if read.sources is None else {"sources": read.sources.movedim(0, -2)}
        self.add(batch, n, {} if read.neurons is None else {"neurons": read.neurons}, rows)

    def summary(self, rows: dict[str, Tensor]) -> Attribution:
        """Return the attributions of all prompts; those of neurons as means over them."""
        asked, cfg, neurons = self.asked, self.model.cfg, self.sums.get("neurons")
        total = rows["states"][:, -1].clone()
        return Attribution(
            info=self.info(self.options),
            logit_difference=total,
            accumulated=rows["states"],
            components=rows["components"],
            sources=rows["sources"].movedim(-2, 0).contiguous() if self.reader.sources else None,
            neurons=None if neurons is None else (neurons / self.n_sequences).to(total.dtype),
            tokens=asked.batch["tokens"],
            attention_mask=asked.batch["attention_mask"],
            positions=asked.positions,
            word_positions=asked.words,
            state_labels=state_labels(self.model),
            component_labels=component_labels(cfg),
            token_strings=asked.token_strings,
            labels=asked.labels,
            word_names=asked.word_names,
            n_heads=cfg.n_heads,
        )


@dataclass(frozen=True)
class _Read:
    """Attribution of one batch; `neurons` is a sum over prompts, in float64."""

    states: Float[Tensor, "prompt state"]
    components: Float[Tensor, "prompt component"]
    sources: Float[Tensor, "prompt layer head key_pos"] | None
    neurons: Float[Tensor, "layer neuron"] | None


class _Reader:
    """One forward pass at a time, read along the directions of the answers."""

    def __init__(self, model: HookedTransformer, *, sources: bool, neurons: bool) -> None:
        self.model, self.cfg = model, model.cfg
        self.sources, self.neurons = sources, neurons
        self.readout = readout_of(model)
        self.kind = torch.promote_types(self.cfg.dtype, torch.float32)
        layers = range(self.cfg.n_layers)
        self.W_O = [model.output_weight(layer) for layer in layers]
        self.W_out = [model.output_weight(layer, "mlp") for layer in layers] if neurons else []
        wanted = ["hook_embed", *(["hook_pos_embed"] if self._has_pos_embed else [])]
        kinds = ["hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out", "attn.hook_z"]
        kinds += ["attn.hook_pattern", "attn.hook_v"] if sources else []
        kinds += ["mlp.hook_post"] if neurons else []
        wanted += [f"blocks.{layer}.{kind}" for layer in layers for kind in kinds]
        parts: tuple[Part, ...] = ("attn", "mlp") if neurons else ("attn",)
        wanted += [post_scale_name(layer, of) for layer in layers for of in parts]
        self.names = wanted

    @property
    def _has_pos_embed(self) -> bool:
        return self.cfg.positional_embedding_type == "standard"

    def read(self, batch: Batch, correct: Tensor, incorrect: Tensor, positions: Tensor) -> _Read:
        """Run a batch of prompts."""
        rows = torch.arange(len(batch.tokens), device=batch.tokens.device)

        def reading(name: str) -> Reading:
            if name.endswith("hook_v"):
                return lambda values: values.to(self.kind)
            if name.endswith("hook_pattern"):
                return lambda pattern: pattern[rows, :, positions].to(self.kind)
            return lambda activation: activation[rows, positions].to(self.kind)

        readings = {name: reading(name) for name in self.names}
        acts, final = record(self.model, batch.tokens, readings, attention_mask=batch.attention_mask)
        final = final[rows, positions].to(self.kind)
        check_final(final)
        toward, constant = self._directions(final, correct, incorrect)

        def along(state: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
            return (state * toward).sum(-1)

        def behind(layer: int, of: Part) -> Float[Tensor, "prompt d_model"]:
            scale = acts.get(post_scale_name(layer, of))
            return toward if scale is None else toward / scale

        by_head, by_source, by_neuron = [], [], []
        for layer in range(self.cfg.n_layers):
            name = f"blocks.{layer}."
            onto = torch.einsum("hed,pd->phe", self.W_O[layer].to(self.kind), behind(layer, "attn"))
            by_head.append((acts[name + "attn.hook_z"] * onto).sum(-1))
            if self.sources:
                by_source.append(acts[name + "attn.hook_pattern"] * _values_along(acts[name + "attn.hook_v"], onto))
            if self.neurons:
                onto_neurons = behind(layer, "mlp") @ self.W_out[layer].to(self.kind).T
                by_neuron.append((acts[name + "mlp.hook_post"] * onto_neurons).double().sum(0))
        states = torch.stack([along(state) + constant for state in (*self._states(acts), final)], 1)
        return _Read(
            states=states,
            components=self._components(acts, by_head, along, constant),
            sources=torch.stack(by_source, 1) if self.sources else None,
            neurons=torch.stack(by_neuron) if self.neurons else None,
        )

    def _directions(
        self, final: Float[Tensor, "prompt d_model"], correct: Tensor, incorrect: Tensor
    ) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, " prompt"]]:
        """Return the direction that the stream is read along, and what the biases behind it add."""
        readout = self.readout
        columns, b_U = readout.W_U.detach().T, readout.b_U.detach()
        u = columns[correct].to(self.kind).mean(1) - columns[incorrect].to(self.kind).mean(1)
        constant = b_U[correct].to(self.kind).mean(1) - b_U[incorrect].to(self.kind).mean(1)
        if readout.bias is not None:
            constant = constant + u @ readout.bias.detach().to(self.kind)
        if readout.weight is not None:
            u = u * readout.weight.detach().to(self.kind)
        # Centering is its own transpose: what is read of a centered state is read along the centered direction.
        return readout.center(u) / readout.scale(final), constant

    def _states(self, acts: dict[str, Tensor]) -> list[Tensor]:
        kinds = ("hook_resid_pre", "hook_resid_mid") if self.cfg.has_resid_mid else ("hook_resid_pre",)
        return [acts[f"blocks.{layer}.{kind}"] for layer in range(self.cfg.n_layers) for kind in kinds]

    def _components(
        self,
        acts: dict[str, Tensor],
        by_head: list[Tensor],
        along: Callable[[Tensor], Tensor],
        constant: Tensor,
    ) -> Float[Tensor, "prompt component"]:
        """In the order of `component_labels`."""
        parts = [along(acts["hook_embed"])]
        parts += [along(acts["hook_pos_embed"])] if self._has_pos_embed else []
        for layer, heads in enumerate(by_head):
            # What attention adds besides its heads is its bias, which belongs to none of them.
            rest = along(acts[f"blocks.{layer}.hook_attn_out"]) - heads.sum(-1)
            parts += [*heads.unbind(-1), rest]
            parts += [] if self.cfg.attn_only else [along(acts[f"blocks.{layer}.hook_mlp_out"])]
        return torch.stack([*parts, constant], 1)


def _values_along(
    v: Float[Tensor, "prompt key_pos group d_head"], onto: Float[Tensor, "prompt head d_head"]
) -> Float[Tensor, "prompt head key_pos"]:
    """Return what each position's value adds through each head, were it attended to fully; heads may share values."""
    by_group = onto.unflatten(1, (v.shape[2], -1))
    return torch.einsum("pkge,pgre->pgrk", v, by_group).flatten(1, 2)
