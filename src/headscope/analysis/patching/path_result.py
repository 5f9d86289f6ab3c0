"""`PathPatchingResult`, which `path_patch` and `path_patch_sweep` return."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.named_arrays import Label
from headscope.analysis.core.over_prompts import NO_CONTROL, Controlled
from headscope.analysis.core.result import Array, check_option
from headscope.analysis.core.stats import standard_errors
from headscope.analysis.prompts.metrics import gap_between
from headscope.errors import InvalidInputError

__all__ = ["PathPatchingResult"]

_NO_PROMPTS = "a metric of your own has no values of single prompts; a PromptMetric has."


@dataclass(frozen=True, repr=False)
class PathPatchingResult(Controlled):
    """The change of a metric when senders change as receivers see them.

    Attributes:
        values: The metric of the patched run less that of the run before it was patched, the mean over prompts, in the
            scale. `[layer, head]` for all heads; `[layer, component]`, the MLP last and NaN for what a layer lacks, for
            all components; `[sender]` for a list; no axis for `path_patch`. Zero where no path leads to the receivers.
        per_prompt: The same for each prompt, along a last axis; `None` for a metric of your own.
        clean: The metric of the clean run.
        corrupted: That of the corrupted run.
        sender_labels: The senders, in the order of `values.flatten()`.
        receiver_labels: What they were patched into, such as `9.9.q`.
        direction: `"denoising"` or `"noising"`.
        scale: `"share"` (of `clean - corrupted`) or `"metric"`.
        freeze_mlps: Whether MLPs between senders and receivers kept what they gave.
        positions: At which positions, in the caller's words; `all` for every one.
        runs: How patched runs were made: `"suffix"` (only layers and positions from the receivers on), or
            `"whole, for"` what stood in the way of that, such as hooks on the model.
        control_values: What the control gave, in the same scale as `values`.
        control_per_prompt: The same of each prompt.
        unit: The metric's: `"logits"`, `"nats"`, or none that is known.
    """

    kind: ClassVar[str] = "path patching"
    arrays: ClassVar[Mapping[str, Array]] = {
        "change": Array("sender", error="error", share="normalized", of=lambda found: found.change.flatten()),
        "normalized": Array("sender", style="+.1%", of=lambda found: found._shares().flatten()),
        "error": Array("sender", of=lambda found: found._change_errors(), absent=_NO_PROMPTS),
        "control_change": Array(
            "sender",
            column="control",
            absent=NO_CONTROL,
            of=lambda found: None if not found.control else found.of_control().change.flatten(),
        ),
        "per_prompt": Array(
            "sender prompt",
            absent=_NO_PROMPTS,
            of=lambda found: None if (each := found.per_prompt) is None else each.reshape(-1, each.shape[-1]),
        ),
    }
    coords: ClassVar[Mapping[str, str]] = {"sender": "sender_labels"}
    columns: ClassVar[tuple[str, ...]] = ("change", "normalized", "control_change")
    ranked: ClassVar[tuple[str, ...]] = ("change",)
    either_way: ClassVar[bool] = True
    judged: ClassVar[str | None] = "change"
    values: Float[Tensor, "*sender"]
    per_prompt: Float[Tensor, "*sender prompt"] | None
    clean: Float[Tensor, ""]
    corrupted: Float[Tensor, ""]
    sender_labels: tuple[str, ...]
    receiver_labels: tuple[str, ...]
    direction: str
    scale: str
    freeze_mlps: bool
    positions: str
    runs: str = ""
    control_values: Float[Tensor, "*sender"] | None = None
    control_per_prompt: Float[Tensor, "*sender prompt"] | None = None
    unit: str = ""

    def declared(self) -> Mapping[str, Array]:
        in_unit = ("change", "error", "control_change")
        return {name: replace(each, unit=self.unit * (name in in_unit)) for name, each in self.arrays.items()}

    @property
    def answer_sign(self) -> int:
        return 1 if self.direction == "denoising" else -1

    @property
    def normalized(self) -> Float[Tensor, "*sender"]:
        """`values` as shares of the clean metric less the corrupted one, whatever their scale.

        -1 is all that noising can break, 1 all that denoising can bring back, as in `ioi_metric_noising`.

        Raises:
            InvalidInputError: If the two runs' metrics are equal.
        """
        return self._in_scale(self.values, "normalized")

    @property
    def change(self) -> Float[Tensor, "*sender"]:
        """`values` in the metric's unit, whatever their scale."""
        return self._in_scale(self.values, "change")

    def by_prompt(self, by: str | None = None) -> Float[Tensor, "prompt *sender"]:
        """The value of each prompt, prompts first: in the scale of `values`, or of `change` or `normalized`.

        Raises:
            InvalidInputError: For a metric of your own, which has none.
        """
        if self.per_prompt is None:
            raise InvalidInputError(_NO_PROMPTS)
        check_option("by", by, (None, "change", "normalized"))
        return self._in_scale(self.per_prompt.movedim(-1, 0), by)

    def _in_scale(self, values: Tensor, by: str | None) -> Tensor:
        """Numbers in the scale of `values` as they are, as changes, or as shares."""
        if by == "normalized" and self.scale != "share":
            return values / gap_between(self.clean, self.corrupted)
        return values * (self.clean - self.corrupted) if by == "change" and self.scale == "share" else values

    def __float__(self) -> float:
        """The one value of a `path_patch`."""
        if self.values.numel() != 1:
            raise InvalidInputError(f"these are {self.values.numel()} values, not one; see .values and .top().")
        return float(self.values)

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        receivers = ", ".join(self.receiver_labels)
        columns = super().axis_columns(axis, labels)
        return columns | {"receivers": [receivers] * len(labels)} if axis == "sender" else columns

    def _change_errors(self) -> Tensor | None:
        return standard_errors(self.by_prompt("change"), self.clusters).flatten() if self.has_rows else None

    def _shares(self) -> Tensor:
        return torch.full_like(self.values, torch.nan) if self.clean == self.corrupted else self.normalized

    def _notes(self) -> Iterator[str]:
        mlps = "MLPs frozen" if self.freeze_mlps else "MLPs recomputed"
        receivers = ", ".join(self.receiver_labels)
        yield f"senders -> {receivers}; {self.direction}, {mlps}, positions: {self.positions}"
        unit = f" {self.unit}" if self.unit else ""
        yield f"metric: {float(self.clean):+.4f}{unit} clean, {float(self.corrupted):+.4f} corrupted"
        if self.runs:
            yield f"runs: {self.runs}"
        yield from str(self.top(8)).splitlines()
        if note := self._evidence_note():
            yield note
        yield from self._control_notes()
