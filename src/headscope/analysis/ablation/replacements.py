"""Replacements for an ablated component's output: zero, its mean, or its output on another text."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.recording.component_means import ComponentMeans
from headscope.analysis.recording.record import CleanRun, clean_run
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["Replacements"]


@dataclass(frozen=True)
class Replacements:
    """The source of the values put in.

    Attributes:
        parts: The components that are ablated.
        values: Some of `"zero"`, `"mean"`, `"resample"`.
        means: For `"mean"`: over the data, or per position.
        reference: Rows of another text, for `"resample"`; `None` takes the other rows of the same batch.
        seed: Of the draw of rows.
    """

    parts: frozenset[Component]
    values: tuple[str, ...]
    means: ComponentMeans | None = None
    reference: Int[Tensor, "row pos"] | None = None
    seed: int = 0

    def for_batch(
        self, model: HookedTransformer, batch: Batch, run: CleanRun, n_before: int
    ) -> dict[str, dict[Component, Tensor]]:
        """For each value and component, what replaces its output; it can be broadcast to `[row, pos, width]`.

        Args:
            model: The model.
            batch: The batch.
            run: What it gave.
            n_before: Number of rows of the data that came before it, so that a resumed run draws the same.

        Raises:
            InvalidInputError: if there are no rows to draw from, or they do not fit.
        """
        instead: dict[str, dict[Component, Tensor]] = {}
        for value in self.values:
            if value == "zero":
                instead[value] = {part: run.final.new_zeros(1) for part in self.parts}
            elif value == "mean":
                assert self.means is not None
                instead[value] = {part: self.means.of(part, batch.tokens.shape[1]) for part in self.parts}
            else:
                instead[value] = self._drawn(model, batch, run, n_before)
        return instead

    def _drawn(self, model: HookedTransformer, batch: Batch, run: CleanRun, n_before: int) -> dict[Component, Tensor]:
        if batch.attention_mask is not None and not bool(batch.attention_mask.all()):
            raise InvalidInputError(
                "values=['resample'] puts what another row gives at the same position, and these rows hold padding. "
                "Give rows of equal length, or use 'mean'."
            )
        n_rows, length = batch.tokens.shape
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + n_before)
        if self.reference is None:
            if n_rows < 2:
                raise InvalidInputError(
                    "values=['resample'] puts in what other rows give, and here a row is alone in its batch. Give "
                    "more or shorter rows, or other texts' tokens as reference."
                )
            by = int(torch.randint(1, n_rows, (1,), generator=generator, device="cpu"))
            return {part: run.output(part).roll(by, dims=0) for part in self.parts}
        if self.reference.shape[1] < length:
            raise InvalidInputError(
                f"the reference has rows of {self.reference.shape[1]} tokens, and the data of {length}: rows to "
                "resample from must be at least as long."
            )
        rows = torch.randint(len(self.reference), (n_rows,), generator=generator, device="cpu")
        tokens = self.reference[rows, :length].to(batch.tokens.device)
        if model.attention_mask(tokens) is not None:
            raise InvalidInputError(
                "values=['resample'] puts what rows of the reference give at the same position, and these hold padding "
                f"among their first {length} tokens. Give rows at least as long as the data's, or use 'mean'."
            )
        drawn = clean_run(model, Batch(tokens, None, torch.ones_like(tokens, dtype=torch.bool)), self.parts)
        return {part: drawn.output(part) for part in self.parts}
