"""One batch with heads ablated to their copy suppression, and to their means; `cspa` says what is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import check_option
from headscope.analysis.recording.by_hand import check_readout
from headscope.analysis.recording.component_means import ComponentMeans
from headscope.analysis.recording.embedding import TokenDirections
from headscope.analysis.recording.layer import (
    LayerRead,
    check_layer_adds_up,
    entering,
    read_layer,
    run_changed,
    sources,
)
from headscope.analysis.recording.record import check_final, clean_prediction
from headscope.analysis.suppression.cspa_variants import VARIANTS, LogitCoordinates, kept_sources, token_bases
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.activations import cap_logits
from headscope.ops.changed_predictions import Prediction, compare_rows
from headscope.ops.devices import Budget

__all__ = ["NUMBERS", "Against", "SuppressionBatch", "SuppressionOptions"]

NUMBERS = ("loss_cspa", "loss_mean", "kl_cspa", "kl_mean", "planted", "planted_kept")
"""The numbers of each head at each position, in order."""


@dataclass(frozen=True)
class SuppressionOptions:
    """Options of the ablation: what is kept of heads; see `copy_suppression_preserving_ablation`."""

    heads: tuple[Component, ...]
    top: float = 0.05
    effect: Literal["direct", "patched"] = "direct"
    include_bos: bool = False
    variant: Literal["paper", "relative", "own_logit"] = "paper"

    def __post_init__(self) -> None:
        check_option("effect", self.effect, ("direct", "patched"))
        check_option("variant", self.variant, tuple(VARIANTS))
        if not 0 < self.top <= 1:
            raise InvalidInputError(
                f"top is the share of sources that are kept, above 0 and at most 1; got {self.top}."
            )


@dataclass(frozen=True)
class Against:
    """Means, related tokens and coordinates that all batches are measured against.

    Attributes:
        means: The heads' means over the data.
        lens: Means over the data of what enters a layer, and of the final state (`n_layers`), normalized as the final
            norm does: what the logit lens reads on average. Without them nothing is planted.
        related: Tokens related to each, -1 for none.
        coordinates: In which what is kept is an orthogonal projection; `None` for those of the stream.
    """

    means: ComponentMeans
    lens: Mapping[int, Float[Tensor, " d_model"]]
    related: Int[Tensor, "d_vocab n"] | None = None
    coordinates: LogitCoordinates | None = None


class SuppressionBatch:
    """One batch, and what ablating each head does to its predictions."""

    def __init__(self, model: HookedTransformer, batch: Batch, options: SuppressionOptions, against: Against) -> None:
        self.model, self.batch, self.heads, self.against = model, batch, options.heads, against
        self.top, self.effect, self.variant = options.top, options.effect, VARIANTS[options.variant]
        self.where = batch.predicting()
        self.kind = torch.promote_types(model.cfg.dtype, torch.float32)
        self.readout = readout_of(model)
        # The batch's different tokens, and which of them stands where.
        self.ids, self.at = batch.tokens.unique(return_inverse=True)
        bases = token_bases(TokenDirections(model), self.ids, against.related, against.coordinates)
        self.bases = bases.at(self.at)

    def measure(self, progress: bool) -> Float[Tensor, "number row pos"]:
        """The clean loss, then of each head its `NUMBERS`."""
        width = len(NUMBERS)
        shape = (1 + width * len(self.heads), *self.batch.tokens.shape)
        found = torch.full(shape, torch.nan, device="cpu")
        where = self.where.cpu()
        if not bool(where.any()):
            return found
        layers = {head.layer for head in self.heads}
        streams = entering(self.model, self.batch, layers | {self.model.cfg.n_layers})
        last = streams.pop(self.model.cfg.n_layers)
        final = last[self.where].to(self.kind)
        check_final(final)
        check_readout(self.model, last, self.where)
        clean = clean_prediction(self.readout, self.batch, self.where, final)
        scale = self.readout.scale(final)
        # Each head makes two changes: CSPA, and the mean ablation.
        together = max(1, Budget.of(final.device).changes // 2)
        with progress_bar(len(self.heads), "heads", shown=progress) as bar:
            for layer, resid in streams.items():
                rows = [row for row, head in enumerate(self.heads) if head.layer == layer]
                read = read_layer(self.model, self.batch, layer, resid, [self.heads[row] for row in rows])
                if self.effect == "direct":
                    check_layer_adds_up(self.model, self.batch, layer, resid)
                in_sight = sources(self.model, self.batch, layer)
                kept = self._kept_sources(layer, read.resid, in_sight)
                for at in range(0, len(rows), together):
                    some = rows[at : at + together]
                    changed = [self._changed(self.heads[row], read, kept, resid, clean, scale) for row in some]
                    predictions = compare_rows(clean, torch.cat(changed))
                    found[0, where] = predictions.loss.cpu().float()
                    planted = self._planted(clean, predictions.loss, in_sight, kept).cpu().float()
                    losses, kls = (values.cpu().float() for values in (predictions.changed_loss, predictions.kl))
                    for number, row in enumerate(some):
                        two, first = slice(2 * number, 2 * number + 2), 1 + width * row
                        found[first : first + width, where] = torch.cat([losses[two], kls[two], planted])
                    bar.update(len(some))
        return found

    def _kept_sources(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], in_sight: Bool[Tensor, "row query_pos key_pos"]
    ) -> Bool[Tensor, "row query_pos key_pos"]:
        """The sources most predicted at each destination by the logit lens of what enters the layer."""
        state = self.readout.normalize(resid, self.model.cfg.eps_of(layer))
        predicted = self._above_average(state, layer) if self.variant.relative else self._lens(state)
        return kept_sources(predicted, self.at, in_sight, self.top, once=self.variant.relative)

    def _lens(self, state: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead id"]:
        """Logits of the batch's tokens, each made once, so that sources with one token are predicted exactly alike."""
        return state @ self.readout.W_U.detach().to(self.kind)[:, self.ids] + self.readout.b_U.detach()[self.ids]

    def _above_average(self, state: Float[Tensor, "*lead d_model"], layer: int) -> Float[Tensor, "*lead id"]:
        """Logits less their means over the data; `n_layers` stands for the final state."""
        mean = self.against.lens[layer].to(state)
        return (state - mean) @ self.readout.W_U.detach().to(self.kind)[:, self.ids]

    def _planted(
        self,
        clean: Prediction,
        loss: Float[Tensor, " n"],
        in_sight: Bool[Tensor, "row query_pos key_pos"],
        kept: Bool[Tensor, "row query_pos key_pos"],
    ) -> Float[Tensor, "2 n"]:
        """The KL of ablating an ideal suppressor in the heads' place, and the part of it that the kept sources explain.

        It lowers by a small step d the logit of one token in sight: the one that the model's own prediction raises most
        above its average. With p the token's probability, that is a KL of `d^2 p (1 - p) / 2`; here without d^2 / 2.
        Its step comes in equal parts from the token's copies. Where a share s of them is kept, a step of `(1 - s) d` is
        still ablated, so that the part explained is `1 - (1 - s)^2`.
        """
        if not self.against.lens:
            return loss.new_full((2, len(loss)), torch.nan)
        row, query = self.where.nonzero(as_tuple=True)
        in_sight, kept, at = in_sight[row, query], kept[row, query], self.at[row]
        raised = self._above_average(clean.rows, self.model.cfg.n_layers).gather(1, at)
        token = at.gather(1, raised.masked_fill(~in_sight, -torch.inf).argmax(-1, keepdim=True))
        copies = in_sight & (at == token)
        share = ((kept & copies).sum(-1) / copies.sum(-1).clamp(min=1)).to(loss.device)
        columns = torch.stack([self.ids[token[:, 0]], clean.targets])
        logits = torch.einsum("nd,dtn->tn", clean.rows, clean.W_U[:, columns]) + clean.offset[columns]
        logits = cap_logits(logits, clean.soft_cap)
        p = ((logits[0] - logits[1]).to(loss.device) - loss).exp().clamp(max=1)
        return torch.stack([p * (1 - p), p * (1 - p) * (1 - (1 - share) ** 2)])

    def _changed(
        self, head: Component, read: LayerRead, kept: Tensor, resid: Tensor, clean: Prediction, scale: Tensor
    ) -> Float[Tensor, "2 n d_model"]:
        """Final states, normalized, with the head's output replaced by its CSPA and by its mean."""
        assert head.head is not None
        W_O = self.model.output_weight(head.layer)[head.head].to(self.kind)
        mean = self.against.means.over_data[head].to(self.kind) @ W_O
        written = read.values[head.head] @ W_O - mean
        against = self.bases.negative_part(written)
        taken = mean - read.z[head.head] @ W_O
        changes = torch.stack([taken + (read.pattern[head.head] * kept) @ against, taken])
        if read.post_scale is not None:
            changes /= read.post_scale
        if self.effect == "direct":
            return clean.rows + self.readout.direction(changes[:, self.where]) / scale
        changes = torch.where(self.batch.counted[..., None], changes, 0.0).to(resid.dtype)
        finals = [run_changed(self.model, self.batch, head, resid, change) for change in changes]
        return self.readout.normalize(torch.stack([final[self.where].to(self.kind) for final in finals]))
