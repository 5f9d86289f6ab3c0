"""One batch with heads ablated to their copy suppression, and to their means; `copy_suppression` says what is kept."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import check_option
from headscope.analysis.recording.component_means import ComponentMeans
from headscope.analysis.recording.embedding import TokenDirections
from headscope.analysis.recording.layer import LayerRead, entering, read_layer, run_changed, sources
from headscope.analysis.recording.record import check_final, clean_prediction
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.changed_predictions import Prediction, compare_rows
from headscope.ops.devices import Budget

__all__ = ["SuppressionBatch", "SuppressionOptions"]


@dataclass(frozen=True)
class SuppressionOptions:
    """Options of the ablation: what is kept of heads; see `copy_suppression_preserving_ablation`."""

    heads: tuple[Component, ...]
    top: float = 0.05
    effect: Literal["direct", "patched"] = "direct"
    include_bos: bool = False

    def __post_init__(self) -> None:
        check_option("effect", self.effect, ("direct", "patched"))
        if not 0 < self.top <= 1:
            raise InvalidInputError(
                f"top is the share of sources that are kept, above 0 and at most 1; got {self.top}."
            )


class SuppressionBatch:
    """One batch, and what ablating each head does to its predictions."""

    def __init__(
        self,
        model: HookedTransformer,
        batch: Batch,
        options: SuppressionOptions,
        means: ComponentMeans,
        related: Int[Tensor, "d_vocab n"] | None,
    ) -> None:
        self.model, self.batch, self.heads, self.means = model, batch, options.heads, means
        self.top, self.effect = options.top, options.effect
        self.where = batch.predicting()
        self.kind = torch.promote_types(model.cfg.dtype, torch.float32)
        self.readout = readout_of(model)
        # The batch's different tokens, and which of them stands where.
        self.ids, self.at = batch.tokens.unique(return_inverse=True)
        self.bases = _bases(TokenDirections(model), self.ids, related)

    def measure(self, progress: bool) -> Float[Tensor, "number row pos"]:
        """The clean loss, then of each head the losses and KLs of CSPA and mean ablation."""
        shape = (1 + 4 * len(self.heads), *self.batch.tokens.shape)
        found = torch.full(shape, torch.nan)
        where = self.where.cpu()
        if not bool(where.any()):
            return found
        layers = {head.layer for head in self.heads}
        streams = entering(self.model, self.batch, layers | {self.model.cfg.n_layers})
        final = streams.pop(self.model.cfg.n_layers)[self.where].to(self.kind)
        check_final(final)
        clean = clean_prediction(self.readout, self.batch, self.where, final)
        scale = self.readout.scale(final)
        # Each head makes two changes: CSPA, and the mean ablation.
        together = max(1, Budget.of(final.device).changes // 2)
        with progress_bar(len(self.heads), "heads", shown=progress) as bar:
            for layer, resid in streams.items():
                rows = [row for row, head in enumerate(self.heads) if head.layer == layer]
                read = read_layer(self.model, self.batch, layer, resid, [self.heads[row] for row in rows])
                kept = self._kept_sources(layer, read.resid)
                for at in range(0, len(rows), together):
                    some = rows[at : at + together]
                    changed = [self._changed(self.heads[row], read, kept, resid, clean, scale) for row in some]
                    predictions = compare_rows(clean, torch.cat(changed))
                    found[0, where] = predictions.loss.cpu().float()
                    losses, kls = (values.cpu().float() for values in (predictions.changed_loss, predictions.kl))
                    for number, row in enumerate(some):
                        two = slice(2 * number, 2 * number + 2)
                        found[1 + 4 * row : 5 + 4 * row, where] = torch.cat([losses[two], kls[two]])
                    bar.update(len(some))
        return found

    def _kept_sources(
        self, layer: int, resid: Float[Tensor, "row pos d_model"]
    ) -> Bool[Tensor, "row query_pos key_pos"]:
        """The sources most predicted at each destination by the logit lens of what enters the layer."""
        W_U, b_U = (each.detach().to(self.kind) for each in (self.readout.W_U, self.readout.b_U))
        # Unembedded once for each different token: sources with one token are then predicted exactly alike.
        logits = self.readout.normalize(resid) @ W_U[:, self.ids] + b_U[self.ids]
        n_pos = resid.shape[1]
        predicted = logits.gather(2, self.at[:, None].expand(-1, n_pos, -1))
        return _most_predicted(predicted, sources(self.model, self.batch, layer), self.top)

    def _changed(
        self, head: Component, read: LayerRead, kept: Tensor, resid: Tensor, clean: Prediction, scale: Tensor
    ) -> Float[Tensor, "2 n d_model"]:
        """Final states, normalized, with the head's output replaced by its CSPA and by its mean."""
        assert head.head is not None
        W_O = self.model.output_weight(head.layer)[head.head].to(self.kind)
        mean = self.means.over_data[head].to(self.kind) @ W_O
        written = read.values[head.head] @ W_O - mean
        against = _negative_part(written, self.bases[self.at])
        taken = mean - read.z[head.head] @ W_O
        changes = torch.stack([taken + (read.pattern[head.head] * kept) @ against, taken])
        if read.post_scale is not None:
            changes /= read.post_scale
        if self.effect == "direct":
            return clean.rows + self.readout.direction(changes[:, self.where]) / scale
        changes = torch.where(self.batch.counted[..., None], changes, 0.0).to(resid.dtype)
        finals = [run_changed(self.model, self.batch, head, resid, change) for change in changes]
        return self.readout.normalize(torch.stack([final[self.where].to(self.kind) for final in finals]))


def _negative_part(
    written: Float[Tensor, "row pos d_model"], bases: Float[Tensor, "row pos basis d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """Return what each source writes against its basis: the negative ones of its coefficients."""
    coefficients = torch.einsum("rpd,rpnd->rpn", written, bases).clamp(max=0)
    return torch.einsum("rpn,rpnd->rpd", coefficients, bases)


def _most_predicted(
    predicted: Float[Tensor, "row query_pos key_pos"], sources: Bool[Tensor, "row query_pos key_pos"], top: float
) -> Bool[Tensor, "row query_pos key_pos"]:
    """The given share of each query's sources, rounded up, highest first, then earliest first."""
    # Less a hair: 0.07 * 100 is above 7 in floating point.
    n_kept = (top * sources.sum(-1, keepdim=True).double() - 1e-9).ceil()
    order = predicted.masked_fill(~sources, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(order.shape[-1], device=order.device) < n_kept
    return torch.zeros_like(sources).scatter(-1, order, first) & sources


def _bases(
    directions: TokenDirections, ids: Int[Tensor, " id"], related: Int[Tensor, "d_vocab n"] | None
) -> Float[Tensor, "id basis d_model"]:
    """For each token an orthonormal basis of its own and its related tokens' directions, each pointing as they do.

    A vector that adds nothing to those before it (or stands for no token) is zero.
    """
    own = directions.of(ids)[:, None]
    if related is None:
        return F.normalize(own, dim=-1, eps=torch.finfo(own.dtype).tiny)
    others = related.to(ids.device)[ids]
    wanted = torch.cat([own, directions.of(others.clamp(min=0)) * (others >= 0)[..., None]], dim=1)
    basis: list[Tensor] = []
    lengths = wanted.norm(dim=-1, keepdim=True)
    for vector, length in zip(wanted.unbind(1), lengths.unbind(1), strict=True):
        rest = vector
        # Twice: once leaves rounding of the size of what was taken.
        for _ in range(2):
            for other in basis:
                rest = rest - (rest * other).sum(-1, keepdim=True) * other
        size = rest.norm(dim=-1, keepdim=True)
        adds = size > 1e-4 * length
        basis.append(torch.where(adds, rest / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0))
    return torch.stack(basis, dim=1)
