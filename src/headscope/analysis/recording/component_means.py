"""The mean outputs of heads and MLPs over the data, or at each position of it: what components are measured against."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component, all_heads, all_mlps
from headscope.analysis.recording.record import CleanRuns
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["ComponentMeans", "MeansAccumulator", "added_sums", "nothing_counts"]


@dataclass(frozen=True)
class ComponentMeans:
    """Means of outputs: heads' before `W_O`, MLPs' as they are.

    Attributes:
        over_data: Over all positions that count.
        at: At each position, where these were asked for; where no row is as long, over the data.
    """

    over_data: Mapping[Component, Float[Tensor, " width"]]
    at: Mapping[Component, Float[Tensor, "pos width"]] | None = None

    def of(self, component: Component, length: int) -> Float[Tensor, "*pos width"]:
        """A component's mean: one vector, or one for each of `length` positions."""
        return self.over_data[component] if self.at is None else self.at[component][:length]

    @property
    def z(self) -> Float[Tensor, "layer head d_head"]:
        """Those of heads, over the data; they must be all of the model's."""
        heads = sorted(part for part in self.over_data if part.head is not None)
        n_layers = 1 + max(part.layer for part in heads)
        return torch.stack([self.over_data[head] for head in heads]).unflatten(0, (n_layers, -1))

    @property
    def mlp(self) -> Float[Tensor, "layer d_model"] | None:
        """Those of MLPs, over the data; `None` where there are none."""
        mlps = sorted((part for part in self.over_data if part.head is None), key=lambda part: part.layer)
        return torch.stack([self.over_data[part] for part in mlps]) if mlps else None


class MeansAccumulator:
    """Means over a stream of batches, in float64 sums.

    Args:
        runs: What runs the batches, and which components' outputs they show.
        by_position: Also at each position.
    """

    def __init__(self, runs: CleanRuns, *, by_position: bool = False) -> None:
        self.runs, self.by_position = runs, by_position
        self.n_sequences = 0
        self._sums: dict[str, Tensor] = {}

    @classmethod
    def of_all(cls, state: dict[str, Any], model: HookedTransformer) -> Self:
        """For every head and MLP of a model, from a `state()`, which is empty at the start."""
        parts = (*all_heads(model.cfg), *all_mlps(model.cfg))
        return cls.from_state(state, CleanRuns(model, parts, room=0))

    def update(self, batch: Batch) -> None:
        """Add a batch in."""
        run = self.runs.first(batch, self.n_sequences)
        self.n_sequences += len(batch.tokens)
        pos = batch.counted.nonzero()[:, 1]
        n_ctx = self.runs.model.cfg.n_ctx
        more = {"n": batch.counted.sum().double()}
        if self.by_position:
            more["n at"] = torch.bincount(pos, minlength=n_ctx).double()
        for part in self.runs.parts:
            output = run.output(part)[batch.counted].double()
            more[part.label] = output.sum(0)
            if self.by_position:
                more[f"{part.label} at"] = output.new_zeros(n_ctx, output.shape[1]).index_add_(0, pos, output)
        self._sums = added_sums(self._sums, more)

    def merge(self, other: Self) -> None:
        """Add what another accumulator has seen, as if it came after."""
        self.n_sequences += other.n_sequences
        self._sums = added_sums(self._sums, other._sums)

    def state(self) -> dict[str, Any]:
        """All that was accumulated, as tensors and numbers."""
        return {"n_sequences": self.n_sequences, **self._sums}

    def take_rows(self) -> dict[str, Tensor]:
        """Nothing is kept per position."""
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any], runs: CleanRuns, *, by_position: bool = False) -> Self:
        """Go on from a `state()`; from an empty one, start."""
        accumulator = cls(runs, by_position=by_position)
        accumulator.n_sequences = state.get("n_sequences", 0)
        device = runs.model.W_E.device
        accumulator._sums = {name: values.to(device) for name, values in state.items() if isinstance(values, Tensor)}
        return accumulator

    def result(self) -> ComponentMeans:
        """The means, in float32 at least.

        Raises:
            InvalidInputError: if no position counted.
        """
        sums = self._sums
        if not sums or float(sums["n"]) == 0:
            raise nothing_counts()
        kind = torch.promote_types(self.runs.model.W_U.dtype, torch.float32)
        over_data = {part: sums[part.label] / sums["n"] for part in self.runs.parts}
        at = None
        if self.by_position:
            n = sums["n at"][:, None]
            at = {
                part: torch.where(n > 0, sums[f"{part.label} at"] / n, mean).to(kind)
                for part, mean in over_data.items()
            }
        return ComponentMeans({part: mean.to(kind) for part, mean in over_data.items()}, at)


def added_sums(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """New sums; those given stay as they are, for whoever holds a `state()`."""
    if not sums or not more:
        return {**sums, **more}
    return {name: sums[name] + values for name, values in more.items()}


def nothing_counts() -> InvalidInputError:
    """The error for data of padding and BOS alone."""
    return InvalidInputError(
        "no position counts: every token is padding or BOS. Give longer rows, or include_bos=True."
    )
