"""Results that have a number for each edge; `EdgeAttributionResult`, which `edge_attribution` returns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.circuits.circuit_result import FINAL, Circuit
from headscope.analysis.core.components import component_of
from headscope.analysis.core.named_arrays import Label, NamedArray
from headscope.analysis.core.over_prompts import NO_CONTROL, SHARE_UNIT, TOLD_NUMBERS, Controlled
from headscope.analysis.core.result import Array, check_option
from headscope.analysis.patching.path_ends import EMBED, INPUTS
from headscope.errors import InvalidInputError, check_at_least

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EdgeAttributionResult", "EdgeResult"]

_SHOWN = 8
_GROUPS = {"attn": "head", "mixer": "mixer", "mlp": "MLP"}


@dataclass(frozen=True, repr=False)
class EdgeResult(Controlled):
    """A change of a metric for each edge.

    Intervals, tests and findings are of the edges, one after the other as in the table.

    Attributes:
        per_prompt: The values of each prompt; `None` for a metric of all prompts together, or more prompts than there
            was room for.
        clean: The metric of the clean run.
        corrupted: That of the corrupted run.
        direction: `"noising"` or `"denoising"`.
        scale: `"share"` (of `clean - corrupted`) or `"metric"`.
        has_answers: The metric is a logit difference.
        control_per_prompt: What the control gave for each prompt, in the same scale.
    """

    either_way: ClassVar[bool] = True
    per_prompt: Float[Tensor, "edge prompt"] | None
    clean: Float[Tensor, ""]
    corrupted: Float[Tensor, ""]
    direction: str
    scale: str
    control_per_prompt: Float[Tensor, "edge prompt"] | None = field(default=None, kw_only=True)
    has_answers: bool = field(default=False, kw_only=True)

    @property
    def unit(self) -> str:
        """The unit of values: shares, or in the metric's scale logits, or none that is known."""
        if self.scale == "share":
            return SHARE_UNIT
        return "logits" if self.has_answers else ""

    def declared(self) -> Mapping[str, Array]:
        return {name: replace(array, unit=self.unit) for name, array in self.arrays.items()}

    def by_prompt(self, by: str | None = None) -> Float[Tensor, "prompt edge"]:
        """The value of each prompt, prompts first.

        Raises:
            InvalidInputError: If there are none, or for an array of other numbers.
        """
        check_option("by", by, (None, self.ranked[0], "per_prompt"))
        return self.array("per_prompt").values.T

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        return _edge_columns(labels) if axis == "edge" else super().axis_columns(axis, labels)

    def _row(self, name: str, array: NamedArray, cell: Mapping[str, Label]) -> dict[str, Any]:
        # Of a single edge, without those of all others.
        return {column: values[0] for column, values in _edge_columns([cell["edge"]]).items()}

    def to_frame(self, *names: str, means: bool = True) -> "pd.DataFrame":
        """A row for each edge: its ends, its numbers, and those of `OverPrompts.to_frame`.

        The columns `low`, `high`, `p_value` and `significant` are left out of tables of more than 2^18 values of
        prompts, as they would take longer than the edges: ask `interval`, `p_values` and `significant` for them.
        """
        is_small = not self.has_rows or self.by_prompt().numel() <= TOLD_NUMBERS
        chosen = names if names or is_small else (name for name in self.columns if name in self.measured())
        return super().to_frame(*chosen, means=means)

    def _notes(self) -> Iterator[str]:
        measured = "logit difference" if self.has_answers else "metric"
        yield f"{measured}: {float(self.clean):+.4f} clean, {float(self.corrupted):+.4f} corrupted"
        yield from str(self.top(_SHOWN)).splitlines()
        if note := self._evidence_note():
            yield note
        yield from self._control_notes()


@dataclass(frozen=True, repr=False)
class EdgeAttributionResult(EdgeResult):
    """The change of a metric that patching each edge alone would make, to first order.

    Attributes:
        values: The estimate for each edge, the mean over prompts, in the scale; NaN where there is no edge.
        errors: One standard error over prompts (see `Task.clusters`); NaN for a metric of all prompts together, and
            over clusters of more prompts than there was room for.
        sender_labels: `embed`, `0.0`, ..., `mlp0`, ...
        receiver_labels: `0.0.q`, ..., `mlp0`, ..., `final`.
        method: Where gradients were taken; see `edge_attribution`.
        steps: In how many runs.
        control_values: What the control gave, in the same scale as `values`.
        control_errors: One standard error of it.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.analysis import edge_attribution, Task
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> found = edge_attribution(model, task, progress=False)
        >>> found.top(3)
                       score (share of clean - corrupted)
        embed -> mlp0  -0.3... ± 0.08...
        embed -> 0.3.v -0.2... ± 0.1...
        3.2 -> final   -0.2... ± 0.03...
        >>> found.strongest(100).sum()
        tensor(100)
    """

    kind: ClassVar[str] = "edge attribution"
    arrays: ClassVar[Mapping[str, Array]] = {
        "score": Array("edge", error="error", of=lambda found: found.values[found.allowed]),
        "error": Array("edge", of=lambda found: found.errors[found.allowed]),
        "control_score": Array(
            "edge",
            column="control",
            error="control_error",
            absent=NO_CONTROL,
            of=lambda found: None if (given := found.control_values) is None else given[found.allowed],
        ),
        "control_error": Array(
            "edge",
            absent=NO_CONTROL,
            of=lambda found: None if (given := found.control_errors) is None else given[found.allowed],
        ),
        "per_prompt": Array("edge prompt", absent="values of single prompts were not kept."),
    }
    coords: ClassVar[Mapping[str, str]] = {"edge": "edge_labels"}
    columns: ClassVar[tuple[str, ...]] = ("score", "error", "control_score")
    ranked: ClassVar[tuple[str, ...]] = ("score",)
    values: Float[Tensor, "sender receiver"]
    errors: Float[Tensor, "sender receiver"] = field()  # known of more prompts than have values of their own
    sender_labels: tuple[str, ...]
    receiver_labels: tuple[str, ...]
    method: str
    steps: int
    control_values: Float[Tensor, "sender receiver"] | None = field(default=None, kw_only=True)
    control_errors: Float[Tensor, "sender receiver"] | None = field(default=None, kw_only=True)

    @property
    def answer_sign(self) -> int:
        return 1 if self.direction == "denoising" else -1

    @property
    def allowed(self) -> Bool[Tensor, "sender receiver"]:
        """The edges there are."""
        return ~self.values.isnan()

    @cached_property
    def edge_labels(self) -> tuple[str, ...]:
        """`embed -> 0.0.q`, ... for each edge."""
        return tuple(f"{sender} -> {receiver}" for sender, receiver in self._pairs())

    def strongest(self, n: int, *, magnitude: bool = True) -> Bool[Tensor, "sender receiver"]:
        """Return the circuit of the edges with the largest scores, for `CircuitRuns`.

        Args:
            n: How many edges.
            magnitude: Whatever their sign; else those that work for the answer most.

        Raises:
            InvalidInputError: If there are not as many edges.
        """
        check_at_least(0, n=n)
        n_edges = int(self.allowed.sum())
        if n > n_edges:
            raise InvalidInputError(f"there are {n_edges:,} edges, and {n:,} are asked for.")
        sizes = self.values.abs() if magnitude else self.answer_sign * self.values
        sizes = sizes.masked_fill(~self.allowed, -torch.inf)
        kept = torch.zeros_like(self.allowed)
        kept.view(-1)[sizes.flatten().argsort(descending=True, stable=True)[:n]] = True
        return kept

    def circuit(self, k: int = 40) -> Circuit:
        """The strongest edges as a `Circuit`, for `views.circuit_picture` and `circuit_faithfulness`.

        Its effects are what corrupting an edge takes from the metric, to first order: above zero, the edge works for
        the answer.

        Args:
            k: How many edges.

        Raises:
            InvalidInputError: If there are not as many edges.
        """
        ends = self.strongest(k).nonzero().tolist()
        ends.sort(key=lambda pair: -abs(float(self.values[*pair])))
        unit = float(self.clean - self.corrupted) if self.scale == "share" else 1.0
        sign = self.answer_sign * unit
        names = {self.sender_labels[sender] for sender, _ in ends}
        pairs = [(self.sender_labels[sender], *_reader(self.receiver_labels[receiver])) for sender, receiver in ends]
        names |= {receiver for _, receiver, _ in pairs} | {FINAL}
        n_layers = 1 + max(part.layer for label in self.sender_labels if (part := component_of(label)) is not None)
        nodes = [EMBED] * (EMBED in names) + [name for name in self.sender_labels[1:] if name in names] + [FINAL]
        parts = {name: component_of(name) for name in nodes}
        layers = [n_layers if name == FINAL else -1 if part is None else part.layer for name, part in parts.items()]
        effects = torch.tensor([sign * float(self.values[*pair]) for pair in ends])
        return Circuit(
            info=self.info,
            edges=torch.tensor([(nodes.index(u), nodes.index(v)) for u, v, _ in pairs], dtype=torch.long).view(-1, 2),
            effects=effects,
            errors=torch.tensor([abs(unit) * float(self.errors[*pair]) for pair in ends]),
            layers=torch.tensor(layers),
            nodes=tuple(nodes),
            groups=tuple(name if part is None else _GROUPS[part.part] for name, part in parts.items()),
            inputs=tuple(read for _, _, read in pairs),
            threshold=float(effects.abs().min()) if len(effects) else 0.0,
            clean=float(self.clean),
            corrupted=float(self.corrupted),
            left_out=(),
            has_answers=self.has_answers,
        )

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for sender, receiver in self.allowed.nonzero().tolist():
            yield self.sender_labels[sender], self.receiver_labels[receiver]

    def _notes(self) -> Iterator[str]:
        runs = f", {self.steps} steps" if self.steps > 1 else ""
        yield f"{self.method}{runs}; {self.direction}, {self.scale}; {int(self.allowed.sum()):,} edges"
        yield from super()._notes()


def _reader(label: str) -> tuple[str, str]:
    """A receiver's component, and what of it reads."""
    component, _, read = label.rpartition(".")
    return (component, read) if read in INPUTS else (label, "")


def _edge_columns(labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
    """Return the columns of a table that say where edges lead from and to."""
    ends = [str(label).split(" -> ") for label in labels]
    return {"sender": [sender for sender, _ in ends], "receiver": [receiver for _, receiver in ends]}
