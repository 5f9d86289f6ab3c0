"""Evidence for head types that needs no task: attention to defining keys beside its control, copying, composition.

A *control* is the same number for the same head where what defines the kind is taken out. With it, a label says more
than "this head pays some attention there": a head that looks a fixed distance back, or at everything alike, has a
control as high as its score.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.core.stats import (
    Estimate,
    estimates_of_moments,
    row_moments,
    row_moments_of_sums,
    threshold,
)
from headscope.analysis.heads.scores import SCORES, defining_keys
from headscope.analysis.recording.embedding import (
    TokenDirections,
    direct_effects,
    effective_embedding,
    token_embedding,
)
from headscope.analysis.recording.lens_states import lens_states
from headscope.analysis.recording.record import record_patterns
from headscope.analysis.storage.accumulator import Measure
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.composition import composition_scores
from headscope.ops.factored import FactoredMatrix

__all__ = [
    "Measured",
    "attention_evidence",
    "attention_moments",
    "copying_scores",
    "k_composition",
    "repeat_evidence",
    "repeat_moments",
]


@dataclass(frozen=True)
class Measured:
    """A number of every head, for some kinds, with its control; NaN where nothing was measured.

    Attributes:
        scores: The numbers.
        controls: The same where what defines the kind is taken out.
        errors: Standard error of their difference, over rows.
        freedom: Degrees of freedom of that error.
    """

    scores: Float[Tensor, "*kind layer head"]
    controls: Float[Tensor, "*kind layer head"]
    errors: Float[Tensor, "*kind layer head"]
    freedom: Float[Tensor, "*kind layer head"]

    @classmethod
    def nothing(cls, n_layers: int, n_heads: int) -> "Measured":
        """One kind that was not measured."""
        return cls(*torch.full((4, 1, n_layers, n_heads), math.nan))

    @classmethod
    def joined(cls, parts: Sequence["Measured"]) -> "Measured":
        """All kinds of several."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def reaches(
        self, least: float | Float[Tensor, "*kind 1 1"], among: int, level: float
    ) -> Bool[Tensor, "*kind layer head"]:
        """Tell which scores, and their excess over the control, are at least so high, the excess significantly so.

        Args:
            least: What both must reach.
            among: How many numbers were looked at.
            level: The family-wise level.
        """
        excess = self.scores - self.controls
        significant = excess > threshold(among, self.freedom, level) * self.errors
        return (self.scores >= least) & (excess >= least) & significant


def attention_moments(model: HookedTransformer, seed: int) -> Measure:
    """Return a function that sums attention to the keys that define each of `SCORES`, for `attention_evidence`.

    Args:
        model: The model.
        seed: Of the shuffled control. Each batch is shuffled by its place in the data, so that any part of the data
            gives what it gives as a part of all of it.
    """

    def measure(batch: Batch, n_before: int) -> dict[str, Tensor]:
        keys = defining_keys(batch)
        real = torch.ones_like(batch.tokens) if batch.attention_mask is None else batch.attention_mask.long()
        n_keys = keys.sum(-1)
        n_others = real.cumsum(-1)[None] - n_keys
        # A query with nothing else to look at tells nothing.
        keys = keys & (n_others > 0)[..., None]
        share = n_keys / n_others.clamp(min=1)
        paid, paid_by_share = _attention_to(model, batch, [keys.double(), keys * share[..., None]])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n_before)
        other = Batch(_shuffled(batch, generator), batch.attention_mask, batch.counted)
        by_place = _attention_to(model, other, [keys.double()])[0]
        counts = keys.any(-1).sum(-1).double().cpu().T[:, :, None, None]
        # With attention p on the keys, others get (1 - p) / n_others each.
        spread = (keys.any(-1) * share).sum(-1).double().cpu().T[:, :, None, None] - paid_by_share
        sums = torch.stack([paid, spread, by_place, paid - spread, paid - by_place], dim=1)
        return {"moments": row_moments_of_sums(sums, counts[:, None].expand_as(sums))}

    return measure


def attention_evidence(moments: Float[Tensor, "moment stratum number kind layer head"]) -> Measured:
    """Attention to the keys that define each of `SCORES`, and its controls, from sums over the data.

    The control is the larger of two: what these keys would get if the rest of the attention were spread evenly over all
    other keys in sight, and, for the kinds that match tokens, what the same positions get when the tokens of the row
    are shuffled.
    """
    means = estimates_of_moments(moments)
    paid, even, shuffled = means.values[:3]
    matches = torch.tensor([name != "previous_token" for name in SCORES])[:, None, None]
    use_place = matches & (shuffled > even)
    control = torch.where(use_place, shuffled, even)
    error, freedom = (torch.where(use_place, each[4], each[3]) for each in (means.errors, means.freedom))
    return Measured(paid.float(), control.float(), error.float(), freedom)


def _shuffled(batch: Batch, generator: torch.Generator) -> Int[Tensor, "row pos"]:
    """The tokens that count in another order, row by row."""
    tokens = batch.tokens.clone()
    for row, counted in enumerate(batch.counted):
        places = counted.nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator).to(places.device)
        tokens[row, places] = batch.tokens[row, places[order]]
    return tokens


def _attention_to(
    model: HookedTransformer, batch: Batch, weights: list[Tensor]
) -> list[Float[Tensor, "row kind layer head"]]:
    """Return the attention of each row's queries to keys, weighted by `[kind, row, query_pos, key_pos]`, summed."""
    stacked = torch.stack(weights).float()
    paid = record_patterns(
        model, batch, lambda pattern: torch.einsum("rhqk,wsrqk->wrsh", pattern.float(), stacked).double()
    )
    return list(paid.movedim(0, -2).unbind())


def repeat_moments(model: HookedTransformer) -> Measure:
    """Return a function that sums direct effects where tokens repeat, for `repeat_evidence`."""
    directions, readout = TokenDirections(model), readout_of(model)

    def measure(batch: Batch, n_before: int) -> dict[str, Tensor]:
        where = _repeats(batch)
        rows = where.nonzero()[:, 0]
        if not len(rows):
            return {}
        states = lens_states(model, Batch(batch.tokens, batch.attention_mask, where))
        toward = torch.stack([directions.of(batch.tokens.roll(-ahead, dims=1)[where]) for ahead in (1, 2)])
        final = states.resid[-1]
        logits = ((final / readout.scale(final)) * (toward[0] - toward[1]).to(final.dtype)).sum(-1)
        against = (-direct_effects(model, states, toward)).unbind(2)
        return {
            "heads": row_moments(torch.stack([*against, against[0] - against[1]]), rows),
            "model": row_moments(logits, rows),
        }

    return measure


def repeat_evidence(model: HookedTransformer, sums: Mapping[str, Tensor]) -> tuple[Measured, Estimate]:
    """Measure how each head writes against the token that induction predicts, where that token does come next.

    Score: minus the head's direct effect on that token's logit, above the mean over tokens. Control: the same for
    another token of the row, the one after it. In logits.

    Returns:
        The evidence, and what the whole model gives the expected token above the other; NaN if nothing of the data
        repeats.
    """
    if not sums:
        return Measured.nothing(model.cfg.n_layers, model.cfg.n_heads), Estimate(math.nan, math.nan, 0)
    heads, whole = (estimates_of_moments(sums[name]) for name in ("heads", "model"))
    scores, controls = heads.values[:2, None].float()
    return Measured(scores, controls, heads.errors[2:].float(), heads.freedom[2:]), whole[()]


def _repeats(batch: Batch) -> Bool[Tensor, "row pos"]:
    """Queries whose next token followed an earlier copy of theirs, and whose next but one is real too."""
    followers = defining_keys(batch)[SCORES.index("induction")]
    after = batch.tokens.roll(-1, dims=1)
    told = (followers & (batch.tokens[:, None, :] == after[:, :, None])).any(-1)
    real = torch.ones_like(told) if batch.attention_mask is None else batch.attention_mask.bool()
    for ahead in (1, 2):
        told = told & real.roll(-ahead, dims=1)
        told[:, -ahead:] = False
    return told & (after != batch.tokens.roll(-2, dims=1))


@torch.no_grad()
def copying_scores(model: HookedTransformer) -> Float[Tensor, "layer head"]:
    """Score how far each head's OV circuit copies: 1 raises the logit of whatever is attended to, -1 lowers it.

    The sum of the eigenvalues of the full OV circuit `W_E W_V W_O W_U` over the sum of their magnitudes (Elhage et al.
    2021, "Summarizing OV/QK matrices"). Random heads are near 0. Tokens are embedded by `effective_embedding`, those
    of the first layer by `W_E`, and normalized; nothing of size `d_vocab` by `d_vocab` is made. Of a norm behind
    attention only the weight takes part; gates on heads' outputs (`cfg.gated_attn`), which depend on the text, count
    as open.

    Raises:
        InvalidInputError: If the model does not read and predict the same vocabulary.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> [round(score, 2) for score in copying_scores(model)[1].tolist()]  # its name and induction heads
        [1.0, 0.98, 1.0, 1.0]
    """
    readout, cfg = readout_of(model), model.cfg
    kind = torch.promote_types(model.W_U.dtype, torch.float32)
    W_U = readout.W_U.detach().to(kind)
    W_U = W_U - W_U.mean(-1, keepdim=True)
    found = torch.full((cfg.n_layers, cfg.n_heads), math.nan)
    onto: Tensor | None = None
    for layer in cfg.layers_with("attn"):
        block: Any = model.blocks[layer]
        if onto is None or layer == 1:  # later layers find what the second does
            read = (token_embedding(model) if layer == 0 else effective_embedding(model)).to(kind)
            onto = W_U @ _normalized(model, read)
        weight = dict(block.ln1.named_parameters(recurse=False)).get("w")
        W_V, W_O = (each.detach().to(kind) for each in (block.attn.W_V, model.output_weight(layer)))
        W_V = W_V if weight is None else W_V * weight.detach().to(kind)[:, None]
        # The eigenvalues of a product are those of its factors in turn, up to zeros.
        values = torch.linalg.eigvals(readout.direction(W_O) @ onto @ W_V)
        found[layer] = (values.real.sum(-1) / values.abs().sum(-1)).float().cpu()
    return found


def _normalized(model: HookedTransformer, x: Float[Tensor, "d_vocab d_model"]) -> Float[Tensor, "d_vocab d_model"]:
    cfg = model.cfg
    if not cfg.has_pre_norms:
        return x
    x = x - x.mean(-1, keepdim=True) if cfg.centered_norm else x
    return x / (x.square().mean(-1, keepdim=True) + cfg.eps).sqrt()


@torch.no_grad()
def k_composition(model: HookedTransformer, heads: list[tuple[int, int]]) -> Float[Tensor, "reader layer head"]:
    """K-composition of some heads with each earlier head; NaN where a head is not earlier.

    `|W_OV1 W_QK2^T| / (|W_OV1| |W_QK2|)`, K-composition in Elhage et al. 2021; near `1 / sqrt(d_model)` for unrelated
    heads. An induction head reads what a previous-token head writes. All NaN with latent attention, where no matrix
    makes a key of the stream.
    """
    cfg = model.cfg
    blocks: Any = model.blocks
    if not (heads and all(blocks[layer].attn.reads_linearly for layer in cfg.layers_with("attn"))):
        return torch.full((len(heads), cfg.n_layers, cfg.n_heads), math.nan)
    layers, numbers = (torch.tensor(each) for each in zip(*heads, strict=True))
    W_Q, W_K, W_V = (torch.stack(model.per_layer("attn", f"W_{name}")).detach().float() for name in ("Q", "K", "V"))
    at = torch.tensor([cfg.layers_with("attn").index(layer) for layer, _ in heads]), numbers
    writes = FactoredMatrix(W_V, model.output_weights().float())
    scores = composition_scores(writes, FactoredMatrix(W_K[at], W_Q[at].transpose(-2, -1)))
    scores = over_layers(cfg, scores).permute(2, 0, 1).cpu()
    earlier = torch.arange(cfg.n_layers) < layers[:, None]
    return torch.where(earlier[:, :, None], scores, math.nan)
