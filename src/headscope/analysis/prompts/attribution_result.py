"""`Attribution`, which `attribute` returns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.components import component_of
from headscope.analysis.core.named_arrays import Label, cell_label
from headscope.analysis.core.over_prompts import NO_CONTROL, Controlled
from headscope.analysis.core.ranking import HeadScore, Ranking
from headscope.analysis.core.result import Array, component_label
from headscope.analysis.prompts.positions import named_place
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.config import HookedTransformerConfig
from headscope.ops.devices import wide

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Attribution", "NeuronScore", "component_labels"]

NeuronScore = HeadScore  # of an MLP's neuron, with `layer`, `neuron` and `value`


def component_labels(cfg: HookedTransformerConfig) -> tuple[str, ...]:
    """All that adds to the logits, in order: embeddings, the parts of each layer, the final bias.

    A layer's attention gives its heads and its `b_O`; a mixer and an MLP are one component each.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
        >>> component_labels(cfg)
        ('embed', 'pos_embed', '0.0', '0.1', 'b_O 0', 'mlp0', 'final bias')
    """
    labels = ["embed", "pos_embed"] if cfg.positional_embedding_type == "standard" else ["embed"]
    for layer in range(cfg.n_layers):
        parts = cfg.parts_of(layer)
        if "attn" in parts:
            labels += [component_label(layer, head) for head in range(cfg.n_heads)] + [f"b_O {layer}"]
        labels += [component_label(layer, None, is_mixer=part == "mixer") for part in parts if part != "attn"]
    return (*labels, "final bias")


@dataclass(frozen=True, repr=False)
class Attribution(Controlled):
    """Direct logit attribution: the effect of each part of the model on the logit difference, in logits.

    Positive: towards the right answer. The final norm's scale is the one the prompt's final state had, so that the
    components of a prompt sum to its logit difference.

    Attributes:
        logit_difference: The model's, for each prompt (before a soft cap, if the model has one).
        accumulated: The difference if the model stopped at each state of the residual stream.
        components: What each component adds; `component_labels` names them.
        sources: What each head adds from each position it attends to, whose sum is what the head adds; `None` where it
            was not asked for.
        neurons: What each MLP neuron adds, the mean over prompts; `None` where there are none, or not asked for. An
            MLP's own bias belongs to no neuron.
        tokens: The prompts.
        attention_mask: True for real tokens.
        positions: Where each answer is predicted.
        word_positions: Positions that have a name, one row for each of `word_names`.
        state_labels: `0_pre`, `0_mid`, ..., `final`.
        component_labels: `embed`, `pos_embed`, then for each layer its heads (`0.0`, ...), `b_O 0`, `mixer0` if it has
            a mixer, and `mlp0`, and last `final bias`: what the final norm's bias and `b_U` add.
        token_strings: The text of all real tokens, one prompt after the other.
        labels: Which kind of prompt each is.
        word_names: Such as `IO`, `S1`, `S2`.
        n_heads: Heads per layer.
        control_logit_difference: What the control gave (of sources and neurons nothing is known there).
        control_accumulated: The same at each state.
        control_components: What each component adds there.
        info: What was run on what; `n_positions` is the number of prompts.
    """

    kind: ClassVar[str] = "attribution"
    arrays: ClassVar[Mapping[str, Array]] = {
        "heads_and_mlps": Array("prompt layer part", unit="logits", title="logit difference", error="error"),
        "error": Array(
            "layer part",
            unit="logits",
            of=lambda found: found._errors(),
            absent="a single prompt has no error.",
        ),
        "logit_difference": Array("prompt", unit="logits"),
        "accumulated": Array("prompt state", unit="logits", column="mean"),
        "accumulated_std": Array("state", unit="logits", column="std", of=lambda found: _std(found.accumulated)),
        "components": Array("prompt component", unit="logits", column="mean"),
        "components_std": Array("component", unit="logits", column="std", of=lambda found: _std(found.components)),
        "control_logit_difference": Array(
            "prompt", unit="logits", absent=NO_CONTROL, of=lambda found: found.control_logit_difference
        ),
        "control_accumulated": Array(
            "prompt state", unit="logits", absent=NO_CONTROL, of=lambda found: found.control_accumulated
        ),
        "control_components": Array("prompt component", unit="logits", column="control", absent=NO_CONTROL),
        "sources": Array(
            "prompt layer head key_pos",
            unit="logits",
            absent="nothing is known about positions: this was made with sources=False.",
        ),
        "neurons": Array(
            "layer neuron",
            unit="logits",
            absent="nothing is known about neurons: there are none, or this was made with neurons=False.",
        ),
    }
    coords: ClassVar[Mapping[str, str]] = {
        "state": "state_labels",
        "component": "component_labels",
        "part": "part_labels",
    }
    columns: ClassVar[tuple[str, ...]] = ("components", "components_std", "control_components")
    ranked: ClassVar[tuple[str, ...]] = ("heads_and_mlps",)
    judged: ClassVar[str | None] = "components"
    ends: ClassVar[tuple[str, str]] = ("add most", "take most away")
    logit_difference: Float[Tensor, " prompt"]
    accumulated: Float[Tensor, "prompt state"]
    components: Float[Tensor, "prompt component"]
    sources: Float[Tensor, "prompt layer head key_pos"] | None
    neurons: Float[Tensor, "layer neuron"] | None
    tokens: Int[Tensor, "prompt key_pos"]
    attention_mask: Bool[Tensor, "prompt key_pos"]
    positions: Int[Tensor, " prompt"]
    word_positions: Int[Tensor, "word prompt"]
    state_labels: tuple[str, ...]
    component_labels: tuple[str, ...]
    token_strings: tuple[str, ...]
    labels: tuple[str, ...]
    word_names: tuple[str, ...]
    n_heads: int
    control_logit_difference: Float[Tensor, " prompt"] | None = field(default=None, kw_only=True)
    control_accumulated: Float[Tensor, "prompt state"] | None = field(default=None, kw_only=True)
    control_components: Float[Tensor, "prompt component"] | None = field(default=None, kw_only=True)

    # The components, by what they are

    @property
    def has_mlp(self) -> bool:
        """True if there are MLPs."""
        return any(label.startswith("mlp") for label in self.component_labels)

    @property
    def n_layers(self) -> int:
        """Layers."""
        return sum(label.endswith("_pre") for label in self.state_labels)

    def _of(self, part: str) -> Float[Tensor, "prompt layer"]:
        """Effects of one column of `part_labels`; NaN for a layer without."""
        found = self.components.new_full((len(self.components), self.n_layers), torch.nan)
        for layer in range(self.n_layers):
            label = cell_label({"layer": layer, "part": part})
            if label in self.component_labels:
                found[:, layer] = self.components[:, self.component_labels.index(label)]
        return found

    @property
    def heads(self) -> Float[Tensor, "prompt layer head"]:
        """Effect of each head; NaN for layers without attention."""
        return self.heads_and_mlps[:, :, : self.n_heads]

    @property
    def mlps(self) -> Float[Tensor, "prompt layer"] | None:
        """Effect of each MLP; `None` without MLPs, NaN for a layer without."""
        return self._of("MLP") if self.has_mlp else None

    @property
    def heads_and_mlps(self) -> Float[Tensor, "prompt layer part"]:
        """Effect of each head, and in the last columns of each layer of its mixer and its MLP: see `part_labels`."""
        return torch.stack([self._of(part) for part in self.part_labels], 2)

    @property
    def part_labels(self) -> tuple[str, ...]:
        """The labels of a layer's heads, mixer and MLP: `0`, `1`, ..., `mixer`, `MLP`, as far as any layer has one."""
        has_mixer = any(label.startswith("mixer") for label in self.component_labels)
        return (*map(str, range(self.n_heads)), *["mixer"] * has_mixer, *["MLP"] * self.has_mlp)

    @property
    def unexplained(self) -> Float[Tensor, " prompt"]:
        """The logit difference less all components: rounding, or what hooks put into the stream between them."""
        return (wide(self.logit_difference) - wide(self.components).sum(1)).to(self.components)

    @property
    def str_tokens(self) -> tuple[tuple[str, ...], ...]:
        """The text of each prompt's real tokens."""
        ends = self.attention_mask.sum(1).cumsum(0).tolist()
        return tuple(self.token_strings[start:end] for start, end in zip([0, *ends], ends, strict=False))

    def sources_of(self, prompt: int) -> Float[Tensor, "layer head key_pos"]:
        """Effect of each head from each real position of one prompt: as many as `str_tokens[prompt]`.

        Raises:
            InvalidInputError: If the attribution was made without sources, or there is no such prompt.
        """
        sources = self.array("sources").values
        if not -len(sources) <= prompt < len(sources):
            raise InvalidInputError(f"prompt must be from 0 to {len(sources) - 1}; got {prompt}.")
        return sources[prompt][..., self.attention_mask[prompt]]

    def sources_at(self, word: str) -> Float[Tensor, "prompt layer head"]:
        """Effect of each head from a named position, such as `IO`, or the token after it, `IO+1`.

        Raises:
            InvalidInputError: If the attribution was made without sources, or a prompt has no such position.
            UnknownNameError: If no position has that name.
        """
        sources = self.array("sources").values
        known = dict(zip(self.word_names, self.word_positions, strict=True))
        at = named_place(word, known, "Names of positions come with a Task.")
        inside = (at >= 0) & (at < self.attention_mask.shape[1])
        if not bool(inside.all()) or not bool(self.attention_mask.gather(1, at[:, None]).all()):
            raise InvalidInputError(f"position {word!r} is not a real token of every prompt.", code="HS-PROMPTS-05")
        return sources[torch.arange(len(sources), device=at.device), :, :, at]

    def only(self, label: str) -> Self:
        """The prompts of one kind, such as those whose names come in one order; without neurons, known on average only.

        A head that moves whoever is named first shows only so: over both orders it adds nothing.

        Raises:
            UnknownNameError: If no prompt has that label.
        """
        if label not in self.labels:
            raise unknown_name("label", label, dict.fromkeys(self.labels))
        keep = [number for number, each in enumerate(self.labels) if each == label]
        strings = self.str_tokens
        names = ["logit_difference", "accumulated", "components", "tokens", "attention_mask", "positions"]
        names += [f"control_{name}" for name in names[:3]] if self.control else []
        taken: dict[str, Any] = {name: getattr(self, name)[keep] for name in names}
        info = replace(self.info, n_sequences=len(keep), n_positions=len(keep), data=f"{self.info.data} ({label})")
        return replace(
            self,
            **taken,
            info=info,
            sources=None if self.sources is None else self.sources[keep],
            neurons=None,
            word_positions=self.word_positions[:, keep],
            clusters=None if self.clusters is None else self.clusters[keep],
            token_strings=tuple(string for number in keep for string in strings[number]),
            labels=(label,) * len(keep),
        )

    def of_control(self) -> Self:
        """The control as a result of its own, without sources and neurons.

        Raises:
            InvalidInputError: If none was measured.
        """
        return replace(super().of_control(), sources=None, neurons=None)

    # What stands out

    def top_neurons(self, k: int = 10, *, largest: bool = True) -> Ranking:
        """The neurons that add most (`largest=False`: that take most away) on average.

        Raises:
            InvalidInputError: If nothing is known of neurons, or `k` is below 1.
        """
        return self.top(k, by="neurons", largest=largest)

    def to_frame(self, *names: str, means: bool = True, per_prompt: bool = False) -> "pd.DataFrame":
        """One row per component: its label, kind, layer and head, and the mean and standard deviation over prompts.

        Args:
            names: Arrays to tabulate instead.
            means: Take means over prompts; else each has rows of its own.
            per_prompt: One row per component and prompt, with the `attribution`, instead.
        """
        if per_prompt:
            return self.to_frame("components", means=False).rename(columns={"mean": "attribution"})
        frame = super().to_frame(*names, means=means)
        return frame.astype({name: "Int64" for name in ("layer", "head") if name in frame})

    def states_frame(self) -> "pd.DataFrame":
        """One row per state of the residual stream: the mean logit difference there, and its standard deviation."""
        return self.to_frame("accumulated", "accumulated_std")

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        if axis == "prompt":
            return {"prompt": labels, "label": self.labels}
        if axis != "component":
            return super().axis_columns(axis, labels)
        kinds, layers, heads = zip(*(_described(str(label)) for label in labels), strict=True)
        return {"component": labels, "kind": kinds, "layer": layers, "head": heads}

    def cell_label(self, name: str, cell: Mapping[str, Label]) -> str:
        return f"L{cell['layer']}N{cell['neuron']}" if name == "neurons" else super().cell_label(name, cell)

    def _notes(self) -> Iterator[str]:
        right = int((self.logit_difference > 0).sum())
        yield (
            f"logit difference: {self.logit_difference.mean():+.3f} on average, above zero for {right} of "
            f"{len(self.logit_difference)} prompts"
        )
        yield from super()._notes()
        if note := self._evidence_note():
            yield note
        yield from self._control_notes()
        left = float(self.unexplained.abs().mean())
        if left > 1e-3 * (1 + float(self.components.abs().sum(1).mean())):
            yield f"{left:.3f} of it is in no component: a hook changes the stream between them"


def _std(values: Float[Tensor, "prompt part"]) -> Float[Tensor, " part"]:
    return wide(values).std(0, correction=0)


def _described(label: str) -> tuple[str, int | None, int | None]:
    """Kind, layer and head of a component, from its label."""
    component, layer = component_of(label), label.removeprefix("b_O ")
    if component is not None:
        kinds = {"attn": "head", "mixer": "mixer", "mlp": "MLP"}
        return kinds[component.part], component.layer, component.head
    return ("b_O", int(layer), None) if layer.isdecimal() else (label, None, None)
