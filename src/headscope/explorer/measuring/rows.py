"""Rows of the data, picked by their numbers: those a head is shown on, and samples for what costs more than a pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.core.components import Component
from headscope.analysis.core.summaries import hashed
from headscope.analysis.recording.component_means import OutputSums
from headscope.analysis.storage.accumulator import added
from headscope.model.transformer import HookedTransformer

__all__ = ["PickedRows", "mean_outputs", "pick_rows", "sampled_numbers"]

_BATCH = 256  # tokens


@dataclass(frozen=True)
class PickedRows:
    """Some rows of the data.

    Attributes:
        numbers: Their places in the data, in order.
        tokens: Their tokens; shorter rows are filled up behind.
        mask: True for real tokens; `None` when all are.
    """

    numbers: Int[Tensor, " row"]
    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"] | None

    @property
    def data(self) -> Any:
        """The rows as analyses take them."""
        return self.tokens if self.mask is None else {"tokens": self.tokens, "attention_mask": self.mask}

    @property
    def batches(self) -> list[Any]:
        """The rows in batches that are small even for what takes minutes on one."""
        n = max(1, _BATCH // self.tokens.shape[1])
        masks = [None] * len(self.tokens) if self.mask is None else self.mask.split(n)
        parts = zip(self.numbers.split(n), self.tokens.split(n), masks, strict=False)
        return [PickedRows(*part).data for part in parts]

    def at(self, numbers: Iterable[int]) -> "PickedRows":
        """Return some of them, by their places in the data."""
        wanted = set(numbers)
        here = torch.tensor([number in wanted for number in self.numbers.tolist()], device=self.tokens.device)
        mask = None if self.mask is None else self.mask[here]
        return PickedRows(self.numbers[here.to(self.numbers.device)], self.tokens[here], mask)


def sampled_numbers(n_rows: int, n: int) -> list[int]:
    """Return the numbers of `n` of so many rows, in order, at least one: drawn at random but always the same.

    Example:
        >>> sampled_numbers(100, 4), sampled_numbers(2, 4)
        ([10, 21, 48, 68], [0, 1])
    """
    order = hashed(torch.arange(n_rows, device="cpu")).argsort(stable=True)
    return sorted(order[: max(1, n)].tolist())


def pick_rows(
    model: HookedTransformer, data: Any, numbers: Iterable[int], attention_mask: Tensor | None = None
) -> PickedRows:
    """Go through the data, and return the rows of some numbers."""
    wanted = sorted(set(numbers))
    found: list[Tensor] = []
    masks: list[Tensor] = []
    any_mask, before, at = False, 0, 0
    for batch in iterate_batches(model, data, attention_mask=attention_mask, progress=False):
        end = before + len(batch.tokens)
        while at < len(wanted) and wanted[at] < end:
            row = wanted[at] - before
            found.append(batch.tokens[row])
            any_mask |= batch.attention_mask is not None
            real = torch.ones_like(found[-1]) if batch.attention_mask is None else batch.attention_mask[row]
            masks.append(real.bool())
            at += 1
        before = end
        if at == len(wanted):
            break
    longest = max(len(row) for row in found)
    any_mask |= any(len(row) < longest for row in found)

    def filled(rows: list[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])

    numbers_found = torch.tensor(wanted[:at], device="cpu")
    return PickedRows(numbers_found, filled(found), filled(masks) if any_mask else None)


@torch.no_grad()
def mean_outputs(
    model: HookedTransformer, rows: PickedRows, include_bos: bool
) -> Mapping[Component, Float[Tensor, " width"]]:
    """Return the mean output of every component over some rows, as `OutputSums` takes it."""
    outputs = OutputSums.of_all(model)
    sums: dict[str, Tensor] = {}
    for batch in iterate_batches(model, rows.data, include_bos=include_bos, progress=False):
        sums = added(sums, outputs.measure(batch, 0))
    return outputs.means(sums).over_data
