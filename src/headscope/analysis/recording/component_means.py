"""The mean outputs of heads and MLPs over the data, or at each position of it: what components are measured against."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component, all_components
from headscope.analysis.recording.record import CleanRun, CleanRuns
from headscope.model.transformer import HookedTransformer
from headscope.ops.arrays import stack_padded
from headscope.ops.devices import sums_device, wide

__all__ = ["ComponentMeans", "OutputSums"]


@dataclass(frozen=True)
class ComponentMeans:
    """Means of outputs: heads' before `W_O`, MLPs' as they are; see `OutputSums` for heads with a norm behind them.

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
    def tensors(self) -> dict[str, Tensor]:
        """Those over the data, by component, then those at each position: what an accumulator is measured against."""
        at = {f"mean of {part.label} at": mean for part, mean in (self.at or {}).items()}
        return {f"mean of {part.label}": mean for part, mean in self.over_data.items()} | at

    @property
    def z(self) -> Float[Tensor, "layer head d_head"]:
        """Those of heads, over the data, of each layer with attention; they must be all of the model's."""
        heads = sorted(part for part in self.over_data if part.head is not None)
        n_layers = len({part.layer for part in heads})
        return stack_padded([self.over_data[head] for head in heads]).unflatten(0, (n_layers, -1))

    def of_whole(self, part: str) -> Float[Tensor, "layer d_model"] | None:
        """Those of all MLPs (`"mlp"`) or mixers (`"mixer"`), over the data; `None` where there are none."""
        whole = sorted(each for each in self.over_data if each.part == part)
        return torch.stack([self.over_data[each] for each in whole]) if whole else None


class OutputSums:
    """The sums that components' means are made of: sums of their outputs, batch by batch, in float64.

    Args:
        runs: What runs the batches, and which components' outputs they show.
        by_position: Also at each position.
        added: Of what components add to the stream: a head's output over the scale that a norm behind attention has
            where it is, which differs from position to position. Else of what they give, which ablations replace.
    """

    def __init__(self, runs: CleanRuns, *, by_position: bool = False, added: bool = False) -> None:
        self.runs, self.by_position, self.added = runs, by_position, added

    @classmethod
    def of_all(cls, model: HookedTransformer, *, added: bool = False) -> Self:
        """For every head, mixer and MLP of a model."""
        return cls(CleanRuns(model, all_components(model.cfg), room=0), added=added)

    def measure(self, batch: Batch, n_before: int) -> dict[str, Tensor]:
        """Return the sums over a batch that `n_before` rows of the data come before."""
        return self.of_run(self.runs.first(batch, n_before), batch)

    def of_run(self, run: CleanRun, batch: Batch) -> dict[str, Tensor]:
        """Return the sums over a batch that was run."""
        pos = batch.places[1].to(sums_device(batch.tokens.device))
        n_ctx = self.runs.model.cfg.n_ctx
        sums = {"n": wide(batch.counted.sum())}
        if self.by_position:
            sums["n at"] = torch.bincount(pos, minlength=n_ctx).double()
        for part in self.runs.parts:
            given = run.output(part)
            output = wide((run.onto_stream(part, given) if self.added else given)[batch.places])
            sums[part.label] = output.sum(0)
            if self.by_position:
                sums[f"{part.label} at"] = output.new_zeros(n_ctx, output.shape[1]).index_add_(0, pos, output)
        return sums

    def means(self, sums: Mapping[str, Tensor]) -> ComponentMeans:
        """Return the means, in float32 at least."""
        home = self.runs.model.W_E.device
        device = sums_device(home)
        sums = {name: values.to(device) for name, values in sums.items()}
        kind = torch.promote_types(self.runs.model.W_E.dtype, torch.float32)
        over_data = {part: sums[part.label] / sums["n"] for part in self.runs.parts}
        at = None
        if self.by_position:
            n = sums["n at"][:, None]
            at = {
                part: torch.where(n > 0, sums[f"{part.label} at"] / n, mean).to(home, kind)
                for part, mean in over_data.items()
            }
        return ComponentMeans({part: mean.to(home, kind) for part, mean in over_data.items()}, at)
