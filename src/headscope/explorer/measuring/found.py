"""`Found`: everything that was measured of a model's heads, from which the explorer's files are written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.lens.entropy_result import EntropyResult
from headscope.explorer.measuring.activity import HeadActivity
from headscope.explorer.measuring.rows import PickedRows
from headscope.explorer.measuring.sequences import HeadSequences
from headscope.explorer.measuring.written import Written

__all__ = ["Column", "Found"]


@dataclass(frozen=True)
class Column:
    """A measure of every head.

    Attributes:
        values: The numbers, NaN where there is none.
        errors: One standard error of each; NaN where nobody knows.
        count: The number of what they are means over.
    """

    values: Float[Tensor, "layer head"]
    errors: Float[Tensor, "layer head"]
    count: int


@dataclass(frozen=True)
class Found:
    """Results about the heads of a model.

    Attributes:
        heads: Layer and number of each head.
        n_layers: Layers of the model.
        n_heads: Heads in a layer.
        provenance: What was run on what.
        activity: What they attend to, and how much they write.
        sequences: Their patterns on some sequences.
        rows: The tokens of these.
        written: What they write for the tokens they look at most.
        entropy: What they do to the entropy of the prediction; `None` if it was not measured.
        ablation: What the loss is without them; `None` likewise.
        types: Which kinds they are of; `None` likewise.
        texts: The text of each token.
    """

    heads: tuple[tuple[int, int], ...]
    n_layers: int
    n_heads: int
    provenance: Mapping[str, object]
    activity: HeadActivity
    sequences: HeadSequences
    rows: PickedRows
    written: Written
    entropy: EntropyResult | None
    ablation: AblationResult | None
    types: HeadTypes | None
    texts: Mapping[int, str]

    def columns(self) -> dict[str, Column]:
        """The measures that there are, by name."""
        activity = self.activity
        found = {
            name: Column(activity.scores[at], activity.errors[at], int(activity.counts[at]))
            for at, name in enumerate(activity.measures)
        }
        if self.entropy is not None:
            for name in ("diff", "marginal"):
                values, errors = (getattr(self.entropy, each)[:, : self.n_heads] for each in (name, f"{name}_error"))
                found[f"entropy_{name}"] = Column(values, errors, self.entropy.info.n_positions)
        if self.ablation is not None:
            found |= self._ablated(self.ablation)
        if self.types is not None:
            found |= self._copying(self.types)
        return found

    def _ablated(self, ablation: AblationResult) -> dict[str, Column]:
        found = {}
        of_head = [tuple(map(int, label.split("."))) for label in ablation.component_labels]
        for name, effect in (("ablation_direct", "direct"), ("ablation_total", "patched")):
            at = ablation.effects.index(effect)
            values, errors = torch.full((2, self.n_layers, self.n_heads), math.nan, device="cpu")
            for number, (layer, head) in enumerate(of_head):
                values[layer, head] = ablation.loss_diff[0, at, number]
                errors[layer, head] = ablation.loss_diff_error[0, at, number]
            found[name] = Column(values, errors, ablation.info.n_positions)
        return found

    def _copying(self, types: HeadTypes) -> dict[str, Column]:
        found = {}
        if "copying" in types.evidence_names:
            scores = types.evidence_of("copying")
            found["copying_score"] = Column(scores, torch.full_like(scores, math.nan), 0)
        if "copy_suppression" in types.kinds:
            at = types.kinds.index("copy_suppression")
            excess = types.scores[at] - types.controls[at]
            found["suppression_score"] = Column(excess, types.errors[at], types.n_repeats)
        return found
