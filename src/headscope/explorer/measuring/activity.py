"""`measure_activity`: the attention of every head, and how much it writes, over a stream of text.

One forward pass, in which each layer's pattern is reduced as it passes. With A the pattern of a head, q a query that
counts and k a key:

    entropy(q)  = - sum_k A[q, k] log A[q, k]              distance(q) = sum_k A[q, k] |q - k|
    variance    = mean of sum_k A[q, k] |q - k|^2, less the square of the mean distance
    norm(q)     = |z[q] W_O|                               activation of a sequence = the largest norm(q) in it

each as a mean over queries, with the error of `core.stats` over sequences. Where a sink takes a part of the attention
(gpt-oss), A is the rest over its sum.

Norms need no head's output: with `W_O = R^T Q^T` by a QR decomposition of its transpose, |z W_O| = |z R^T|, a product
of d_head by d_head in the place of d_head by d_model.

What is kept is bounded whatever the length of the text: sums, the sequences of the largest activation, a sample of
`N_SAMPLED` sequences of which deciles are known, and the tokens and pairs of most weight (`core.summaries.Frequent`,
exact up to `N_ITEMS` different ones, and else less than 1 / N_ITEMS of all attention too low).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import component_label
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.core.result import Array, Result
from headscope.analysis.core.stats import estimates_of_moments, row_moments
from headscope.analysis.core.summaries import Frequent, RowSample
from headscope.analysis.core.top_places import TopPlaces
from headscope.analysis.recording.record import record
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError, NotFiniteError, check_at_least
from headscope.explorer.measuring.pattern_sums import PatternSums, Places, reduced
from headscope.model.activations.readout import readout_of
from headscope.model.config import HookedTransformerConfig
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["ACTIVITY", "N_ITEMS", "N_SAMPLED", "HeadActivity", "measure_activity", "norm_edges", "output_factors"]

# The measures, in the order of `HeadActivity.scores`.
ACTIVITY = (
    "self_attention_score",
    "prev_token_score",
    "bos_attention",
    "induction_score",
    "duplicate_token_score",
    "pattern_entropy",
    "qk_distance",
    "qk_distance_variance",
    "output_norm",
    "mean_max_activation",
)
N_SAMPLED = 200
N_ITEMS = 256

_LARGEST_BINS = 50
_LOWEST, _HIGHEST, _PER_DOUBLING = -20, 20, 4  # powers of two of output norms, and bins for each doubling
# Series whose moments are summed: shares, entropy, distance, its square, both added, norm.
_N_SHARES = 5
_ENTROPY, _DISTANCE, _SQUARE, _BOTH, _NORM = range(_N_SHARES, _N_SHARES + 5)


@dataclass(frozen=True, repr=False)
class HeadActivity(Result):
    """Attention and output norms of every head; NaN (counts: 0) in layers without attention.

    Attributes:
        scores: The measures, by name.
        errors: One standard error of each.
        counts: Number of queries (or sequences) that each is a mean over.
        distances: Share of the attention in each bin of distances.
        largest_counts: Sequences by their largest attention to another token that is not the first, in even bins from
            0 to 1.
        norm_counts: Positions by the norm of what the head writes, in the bins of `norm_edges`.
        top_sequences: The numbers of the sequences of the largest activation; -1 behind the last.
        top_norms: Their activations.
        sampled_sequences: The numbers of sequences drawn at random; -1 behind the last.
        sampled_norms: Their activations.
        key_tokens: The tokens that are given most attention, other than BOS; -1 behind the last.
        key_shares: The shares of the head's attention they are given.
        query_tokens: The tokens that give most of it to other tokens than the first.
        query_shares: The shares of what is given to others that these give.
        pair_queries: The query tokens of the pairs that are joined most.
        pair_keys: Their key tokens.
        pair_shares: The share of the head's attention between them, where a query gives a key a fifth or more.
        lost: The most that may be missing from a share of keys, of queries, of pairs.
        gains: Mean over positions of one over the scale of the final norm, times that of the norm behind a layer's
            attention, if there is one: what turns what its heads write into logits.
        similarity: Cosine of the patterns of each two heads, without the first key and the query's own; estimated by
            random projections.
        measures: The names of the measures.
        head_labels: The names of all heads: `0.0`, `0.1`, ...
        info: What was run on what.
    """

    kind: ClassVar[str] = "head_activity"
    arrays: ClassVar[Mapping[str, Array]] = {
        "scores": Array("measure layer head", column="score"),
        "errors": Array("measure layer head", column="error"),
        "counts": Array("measure", column="count"),
        "distances": Array("layer head distance_bin"),
        "largest_counts": Array("layer head largest_bin"),
        "norm_counts": Array("layer head norm_bin"),
        "top_sequences": Array("layer head place"),
        "top_norms": Array("layer head place"),
        "sampled_sequences": Array("sampled"),
        "sampled_norms": Array("sampled layer head"),
        "key_tokens": Array("layer head item"),
        "key_shares": Array("layer head item"),
        "query_tokens": Array("layer head item"),
        "query_shares": Array("layer head item"),
        "pair_queries": Array("layer head item"),
        "pair_keys": Array("layer head item"),
        "pair_shares": Array("layer head item"),
        "lost": Array("list layer head"),
        "gains": Array("layer"),
        "similarity": Array("layer head other"),
    }
    coords: ClassVar[Mapping[str, str]] = {"measure": "measures", "other": "head_labels"}
    columns: ClassVar[tuple[str, ...]] = ("scores", "errors", "counts")
    ranked: ClassVar[tuple[str, ...]] = ("scores",)
    rows: ClassVar[tuple[str, ...]] = ("measure", "layer", "head")
    fixed: ClassVar[Mapping[str, int | str]] = {"measure": "output_norm", "list": 0}
    scores: Float[Tensor, "measure layer head"]
    errors: Float[Tensor, "measure layer head"]
    counts: Int[Tensor, " measure"]
    distances: Float[Tensor, "layer head distance_bin"]
    largest_counts: Int[Tensor, "layer head largest_bin"]
    norm_counts: Int[Tensor, "layer head norm_bin"]
    top_sequences: Int[Tensor, "layer head place"]
    top_norms: Float[Tensor, "layer head place"]
    sampled_sequences: Int[Tensor, " sampled"]
    sampled_norms: Float[Tensor, "sampled layer head"]
    key_tokens: Int[Tensor, "layer head item"]
    key_shares: Float[Tensor, "layer head item"]
    query_tokens: Int[Tensor, "layer head item"]
    query_shares: Float[Tensor, "layer head item"]
    pair_queries: Int[Tensor, "layer head item"]
    pair_keys: Int[Tensor, "layer head item"]
    pair_shares: Float[Tensor, "layer head item"]
    lost: Float[Tensor, "list layer head"]
    gains: Float[Tensor, " layer"]
    similarity: Float[Tensor, "layer head other"]
    measures: tuple[str, ...]
    head_labels: tuple[str, ...]

    def _asked(self, by: str | None, labels: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        # A measure stands for its scores: `top(by="induction_score")`.
        return ("scores", {"measure": by, **labels}) if by in self.measures else (by, labels)

    def _heading(self, name: str, labels: Mapping[str, Any]) -> tuple[str, str]:
        measure = labels.get("measure", self.fixed["measure"])
        return (str(measure), "") if name == "scores" else super()._heading(name, labels)


def norm_edges() -> tuple[float, ...]:
    """Return the edges of the bins of norms: four to each doubling; smaller ones, and larger, go to the outermost."""
    n = (_HIGHEST - _LOWEST) * _PER_DOUBLING
    return tuple(2.0 ** (_LOWEST + at / _PER_DOUBLING) for at in range(n + 1))


@streaming()
def measure_activity(
    model: HookedTransformer, data: Any, *, n_top: int = 8, **run: Unpack[StreamOptions]
) -> HeadActivity:
    """Measure what every head attends to, and how much it writes, as the top of this module defines it.

    Cost: a forward pass with every layer's pattern, and some passes over each. Memory: one layer's pattern of a batch
    at a time, and for each head about 20 kB.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`).
        n_top: How many sequences of the largest activation are named for each head.
        **run: Options of every run; see `StreamOptions`.

    Raises:
        InvalidInputError: For a model without attention, tokens that do not fit it, or no position that counts.
        NotFiniteError: If a pattern or an output is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> activity = measure_activity(model, tokens, progress=False)
        >>> activity.top(2, by="prev_token_score")
                 prev_token_score
        0.3      +0.9998
        4.1      +0.2135
    """
    check_at_least(1, n_top=n_top)
    if not model.cfg.layers_with("attn"):
        raise InvalidInputError(f"{model.cfg.model_name!r} has no attention, and so no heads to measure.")
    options = {"n_top": n_top, "include_bos": run["include_bos"]}
    passes = Passes("head-activity", model, data, options, **run)
    if (finished := passes.finished(HeadActivity)) is not None:
        return finished
    return passes.finish("activity", _ActivityAccumulator(model, options, passes.described))


def output_factors(model: HookedTransformer) -> dict[int, Float[Tensor, "head d_head rank"]]:
    """Return for each layer with attention the factors whose products with `z` have the norms of what heads write."""
    factors = {}
    for layer in model.cfg.layers_with("attn"):
        W_O = model.output_weight(layer).detach()
        W_O = W_O.to(torch.promote_types(W_O.dtype, torch.float32))
        factors[layer] = torch.linalg.qr(W_O.transpose(-2, -1)).R.transpose(-2, -1)
    return factors


class _ActivityAccumulator(Accumulator[HeadActivity]):
    """Sums, sequences and tokens of all heads over a stream of batches."""

    def __init__(self, model: HookedTransformer, options: Any, data: str = "", **part: Any) -> None:
        super().__init__(model, options, data, **part)
        self._factors, self._readout = output_factors(model), readout_of(model)
        self._dtype = torch.promote_types(model.W_U.dtype, torch.float32)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Run a batch, and reduce every layer's pattern and output as they pass."""
        if not bool(batch.counted.any()):
            self.add(batch, 0)
            return
        cfg = self.model.cfg
        both_ways = cfg.attention_dir != "causal"
        places = Places(batch, self.n_before, cfg.n_ctx, both_ways=both_ways, dtype=self._dtype)
        layers = cfg.layers_with("attn")
        patterns = {f"blocks.{layer}.attn.hook_pattern": lambda pattern: reduced(pattern, places) for layer in layers}
        outputs = {
            f"blocks.{layer}.attn.hook_z": lambda z, layer=layer: _norms(z, self._factors[layer]) for layer in layers
        }
        scales = dict.fromkeys((post_scale_name(layer) for layer in layers), torch.clone)
        kept = record(self.model, batch.tokens, {**patterns, **outputs, **scales}, attention_mask=batch.attention_mask)
        sums = [kept.kept[name] for name in patterns]
        norms = torch.stack([kept.kept[name] for name in outputs])
        gains = self._readout.scale(kept.final)[..., 0].reciprocal()[None].expand(len(layers), -1, -1)
        if all(name in kept.kept for name in scales):
            behind = torch.stack([kept.kept[name][..., 0] for name in scales])
            norms, gains = norms / behind[:, :, None], gains / behind
        self._check_finite(sums, norms, batch)
        counted = batch.counted[:, None].to(norms.device)
        activation = norms.masked_fill(~counted, -torch.inf).amax(-1)  # [layer, row, head]
        activation = activation.masked_fill(activation == -torch.inf, torch.nan).float().cpu()
        by_head = activation.transpose(1, 2)
        self.add(
            batch,
            int(batch.counted.sum()),
            self._sums(sums, norms, batch) | {"gains": wide(gains[:, batch.counted]).sum(-1)},
            summaries={
                "active": TopPlaces.of(by_head[..., None], self.options["n_top"], first_row=self.n_before),
                "sampled": RowSample.of(activation.transpose(0, 1), N_SAMPLED, first_row=self.n_before),
                "items": self._items(sums, batch),
            },
        )

    def _check_finite(self, sums: list[PatternSums], norms: Tensor, batch: Batch) -> None:
        masses = torch.stack([each.mass for each in sums])
        if not all(bool(each.movedim(2, -1)[:, batch.counted].isfinite().all()) for each in (masses, norms)):
            raise NotFiniteError(
                "attention patterns or heads' outputs hold NaN or infinite values. Check the model's weights, and any "
                "hooks on it."
            )

    def _sums(self, sums: list[PatternSums], norms: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the sums that are added up over the data; the layers are those with attention."""
        rows, columns = batch.places
        moments = []
        for layer, each in enumerate(sums):
            both = each.distance + each.distance_squared
            series = [*each.shares, each.entropy, each.distance, each.distance_squared, both, norms[layer]]
            values = torch.stack(series)[:, rows, :, columns]  # [position, series, head]
            moments.append(row_moments(values.movedim(0, -1), rows))
        largest = torch.stack([each.largest for each in sums]).transpose(1, 2)  # [layer, head, row]
        several = batch.counted.any(-1)
        largest = largest[..., several]
        at = norms[:, rows, :, columns].movedim(0, -1)  # [layer, head, position]
        sketches = torch.stack([each.sketch for each in sums]).transpose(1, 2).flatten(0, 1).flatten(1)
        return {
            "moments": torch.stack(moments, -2),
            "largest moments": row_moments(largest, torch.arange(largest.shape[-1], device=largest.device)),
            "distances": torch.stack([each.bins for each in sums]),
            "largest": _histogram((largest * _LARGEST_BINS).long(), _LARGEST_BINS),
            "norms": _histogram(_norm_bins(at), len(norm_edges()) - 1),
            "attention": torch.stack([each.mass for each in sums]).transpose(2, 3)[:, batch.counted].sum(1),
            "to others": torch.stack([each.to_others for each in sums]).transpose(2, 3)[:, batch.counted].sum(1),
            "products": sketches @ sketches.T,
        }

    def _items(self, sums: list[PatternSums], batch: Batch) -> Frequent:
        """The tokens of most weight as keys and as queries, and the pairs of them: three lists for each head."""
        n_heads = self.model.cfg.n_heads
        shape = (3, len(sums), n_heads)
        tokens = batch.tokens[batch.counted]
        ids, place = tokens.unique(return_inverse=True)
        of_tokens = [torch.stack([getattr(each, name) for each in sums]) for name in ("on_keys", "to_others")]
        weights = wide(torch.stack(of_tokens)).transpose(2, 3)[..., batch.counted]  # [list, layer, head, position]
        totals = weights.new_zeros(2, *shape[1:], len(ids)).index_add_(-1, place, weights).flatten()
        n_lists = 2 * len(sums) * n_heads
        series = torch.arange(n_lists, device=ids.device).repeat_interleave(len(ids))
        of_layer = [torch.full_like(each.joined[0], at) for at, each in enumerate(sums)]
        head, row, query, key = torch.cat([each.joined for each in sums], -1)
        pairs = batch.tokens[row, query] * self.model.cfg.d_vocab + batch.tokens[row, key]
        of_pairs = n_lists + torch.cat(of_layer) * n_heads + head
        joined = wide(torch.cat([each.joined_weights for each in sums]))
        return Frequent.of(
            torch.cat([series, of_pairs]),
            torch.cat([ids.repeat(n_lists), pairs]),
            torch.cat([totals, joined]),
            N_ITEMS,
            shape,
        )

    def summary(self, rows: dict[str, Tensor]) -> HeadActivity:
        """Return means with their errors, shares, and the sequences and tokens that stand out."""
        cfg, sums = self.model.cfg, {name: each.cpu() for name, each in self.sums.items()}
        scores, errors = _scores(sums["moments"], sums["largest moments"])
        counts = [int(sums["moments"][1, 0, series, 0, 0]) for series in range(_NORM + 1) if series != _BOTH]
        counts.append(int(sums["largest moments"][1, 0, 0, 0]))

        def of_all(values: Tensor) -> Tensor:
            return over_layers(cfg, values)

        def items_of_all(items: Tensor) -> Tensor:
            return of_all(items + 1) - 1  # -1 in layers without attention

        def by_measure(values: Tensor) -> Tensor:
            return of_all(values.transpose(0, 1)).transpose(0, 1).contiguous()

        kept: dict[str, Any] = self.summaries
        items, sampled = kept["items"], kept["sampled"]
        whole = torch.stack([sums["attention"], sums["to others"], sums["attention"]])
        keys, queries, pairs = items.items.cpu()
        shares = (items.weights.cpu() / whole[..., None]).float()
        heads = [component_label(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        return HeadActivity(
            info=self.info(self.options),
            scores=by_measure(scores),
            errors=by_measure(errors),
            counts=torch.tensor(counts, device="cpu"),
            distances=of_all((sums["distances"] / sums["distances"].sum(-1, keepdim=True)).float()),
            largest_counts=of_all(sums["largest"]),
            norm_counts=of_all(sums["norms"]),
            top_sequences=items_of_all(kept["active"].sequences.cpu()),
            top_norms=of_all(kept["active"].values),
            sampled_sequences=sampled.sequences.clone(),
            sampled_norms=of_all(sampled.values.movedim(1, 0)).movedim(0, 1).contiguous(),
            key_tokens=items_of_all(keys),
            key_shares=of_all(shares[0]),
            query_tokens=items_of_all(queries),
            query_shares=of_all(shares[1]),
            pair_queries=items_of_all(pairs.div(cfg.d_vocab, rounding_mode="floor")),
            pair_keys=items_of_all((pairs % cfg.d_vocab).masked_fill(pairs < 0, -1)),
            pair_shares=of_all(shares[2]),
            lost=by_measure((items.lost.cpu() / whole).float()),
            gains=of_all((sums["gains"] / self.n_positions).float()),
            similarity=_similarity(sums["products"], cfg),
            measures=ACTIVITY,
            head_labels=tuple(heads),
        )


def _norms(
    z: Float[Tensor, "row pos head d_head"], factors: Float[Tensor, "head d_head rank"]
) -> Float[Tensor, "row head pos"]:
    """Norms of what heads write."""
    return torch.einsum("rphe,hef->rhpf", z.to(factors.dtype), factors).norm(dim=-1)


def _scores(moments: Tensor, largest: Tensor) -> tuple[Float[Tensor, "measure layer head"], ...]:
    """Means over positions and their errors, in the order of the measures."""
    found, of_largest = estimates_of_moments(moments), estimates_of_moments(largest)
    mean, squared = found.values[_DISTANCE], found.errors.square()
    # Of the square less 2 `mean` times the distance, which the variance varies by.
    shared = (squared[_BOTH] - squared[_DISTANCE] - squared[_SQUARE]) / 2
    spread = squared[_SQUARE] - 4 * mean * shared + 4 * mean.square() * squared[_DISTANCE]
    values, errors = found.values.clone(), found.errors.clone()
    values[_SQUARE] -= mean.square()
    errors[_SQUARE] = spread.clamp(min=0).sqrt()
    order = [at for at in range(len(values)) if at != _BOTH]
    return (
        torch.cat([values[order], of_largest.values[None]]).float(),
        torch.cat([errors[order], of_largest.errors[None]]).float(),
    )


def _histogram(bins: Int[Tensor, "*series n"], n_bins: int) -> Int[Tensor, "*series bin"]:
    """Count what is in each bin; what is beyond the last is in the last."""
    series = bins.flatten(0, -2)
    first = torch.arange(len(series), device=bins.device)[:, None] * n_bins
    counts = torch.bincount((series.clamp(0, n_bins - 1) + first).flatten(), minlength=len(series) * n_bins)
    return counts.view(*bins.shape[:-1], n_bins)


def _norm_bins(norms: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    return ((norms.clamp(min=2.0**_LOWEST).log2() - _LOWEST) * _PER_DOUBLING).floor().long()


def _similarity(
    products: Float[Tensor, "one other"], cfg: HookedTransformerConfig
) -> Float[Tensor, "layer head other"]:
    """Cosines of all pairs of heads."""
    norms = products.diagonal().clamp(min=0).sqrt()
    cosines = (products / norms / norms[:, None]).clamp(-1, 1).float()
    n_heads = cfg.n_heads
    # By layer on both sides, so that those without attention are NaN on both.
    of_one = over_layers(cfg, cosines.unflatten(0, (-1, n_heads)))
    of_both = over_layers(cfg, of_one.flatten(0, 1).T.contiguous().unflatten(0, (-1, n_heads)))
    return of_both.flatten(0, 1).T.contiguous().unflatten(0, (-1, n_heads))
