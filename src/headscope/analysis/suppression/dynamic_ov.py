"""The OV circuit as it acts on text: what heads write against the tokens they attend to.

The OV circuit without its embedding: after McDougall et al. 2023 (arXiv 2310.04625), for each pair of a query and a
source with enough attention, where does the source token's own logit stand in what the head writes for it?
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.core.head_lists import HeadListResult, chosen_heads, heads_tensor, one_vocabulary
from headscope.analysis.core.result import Array
from headscope.analysis.recording.layer import LayerRead, entering, read_layer, sources
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.analysis.suppression.circuit_ranks import own_token_excess
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["DynamicOV", "dynamic_ov"]


@dataclass(frozen=True, repr=False)
class DynamicOV(HeadListResult):
    """Shares of pairs of a query and a source, with enough attention, in which a head writes against the source token.

    Attributes:
        heads: Layer and head of each row below.
        n_pairs: How many pairs had more attention than the threshold.
        negative: Share of them where the source token's own logit is lowered, against the mean over all tokens; NaN
            without pairs, like the others.
        bottom: Share where it is among the `k` lowest.
        lowest: Share where it is the lowest of all.
        k: How many count as the bottom.
        threshold: Attention that a pair must exceed.
        info: What was run on what; `n_positions` is the number of query positions.
    """

    kind: ClassVar[str] = "dynamic_ov"
    arrays: ClassVar[Mapping[str, Array]] = {
        "n_pairs": Array("head", style=",.0f"),
        **{name: Array("head", style=".1%") for name in ("negative", "bottom", "lowest")},
    }
    columns: ClassVar[tuple[str, ...]] = ("n_pairs", "negative", "bottom", "lowest")
    ranked: ClassVar[tuple[str, ...]] = ("bottom", "lowest", "negative")
    n_pairs: Int[Tensor, " head"]
    negative: Float[Tensor, " head"]
    bottom: Float[Tensor, " head"]
    lowest: Float[Tensor, " head"]
    k: int
    threshold: float


@streaming()
@torch.no_grad()
def dynamic_ov(
    model: HookedTransformer,
    data: Any,
    heads: Iterable[object] | None = None,
    *,
    threshold: float = 0.1,
    k: int = 10,
    **run: Unpack[StreamOptions],
) -> DynamicOV:
    """Measure what heads write against the tokens they attend to on text: the OV circuit without its embedding.

    For each pair of a query and a source with more attention than `threshold`, where does the source token's own logit
    stand in `v W_O W_U`, among all tokens? Only such sources are unembedded, in tiles. Scales of norms behind,
    and a soft cap, change neither sign nor rank.

    Cost: one forward pass, one more of each layer with such heads, and `2 * d_head * d_vocab` operations per source.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches.
        heads: `(layer, head)` or `"layer.head"` each; default all.
        threshold: Attention that a pair must exceed.
        k: How many count as the bottom.
        **run: Options of every run; see `StreamOptions`. With `include_bos`, BOS positions are queries and sources too.

    Raises:
        InvalidInputError: for a head that does not exist, an option out of range, tokens that do not fit the model, or
            no position that counts.
        NotFiniteError: if the model's values are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> found = dynamic_ov(model, tokens, [(4, 0)], progress=False)
        >>> print(f"lowered in {found.negative.item():.1%} of {found.n_pairs.item()} pairs")
        lowered in 52.8% of 36 pairs
    """
    d_vocab = one_vocabulary(model)
    chosen = chosen_heads(model, heads)
    if not 0 <= threshold < 1:
        raise InvalidInputError(f"threshold is attention, at least 0 and below 1; got {threshold}.")
    if not 1 <= k <= d_vocab:
        raise InvalidInputError(f"k must be between 1 and d_vocab = {d_vocab}; got {k}.")
    options = {"threshold": threshold, "k": k, "include_bos": run["include_bos"]}
    passes = Passes("dynamic-ov", model, data, {**options, "heads": [head.label for head in chosen]}, **run)
    if (finished := passes.finished(DynamicOV)) is not None:
        return finished
    return passes.finish("dynamic OV", _DynamicOVAccumulator(model, options, passes.described, chosen))


class _DynamicOVAccumulator(Accumulator[DynamicOV]):
    """Counts of pairs, and of where the source token's own logit stands in them, over a stream of batches."""

    def __init__(
        self, model: HookedTransformer, options: dict[str, Any], data: str, heads: tuple[Component, ...], **part: Any
    ) -> None:
        super().__init__(model, options, data, against={"heads": heads_tensor(heads)}, **part)
        self.heads = heads

    def update(self, batch: Batch) -> None:
        """Count the pairs of a batch, head by head."""
        threshold, k = self.options["threshold"], self.options["k"]
        counts = torch.zeros(len(self.heads), 4, dtype=torch.long, device="cpu")
        for layer, resid in entering(self.model, batch, {head.layer for head in self.heads}).items():
            rows = {head: row for row, head in enumerate(self.heads) if head.layer == layer}
            read = read_layer(self.model, batch, layer, resid, rows)
            for head, row in rows.items():
                counts[row] = _own_logit_counts(self.model, batch, read, head, threshold, k)
        self.add(batch, int(batch.counted.sum()), {"counts": counts})

    def summary(self, rows: dict[str, Tensor]) -> DynamicOV:
        """Return the shares of pairs."""
        counts = self.sums["counts"]
        negative, bottom, lowest = (wide(counts[:, 1:]) / wide(counts[:, :1])).float().T.contiguous()
        info, heads, n_pairs = self.info(self.options), heads_tensor(self.heads), counts[:, 0].clone()
        k, threshold = self.options["k"], self.options["threshold"]
        return DynamicOV(info, heads, n_pairs, negative, bottom, lowest, k, threshold)


def _own_logit_counts(
    model: HookedTransformer, batch: Batch, read: LayerRead, head: Component, threshold: float, k: int
) -> Int[Tensor, "4"]:
    """Count pairs with enough attention, and those whose source token's own logit is lowered, at the bottom, lowest."""
    assert head.head is not None
    pairs = (((read.pattern[head.head] > threshold) & sources(model, batch, head.layer)).sum(1)).cpu()
    chosen = pairs > 0
    if not bool(chosen.any()):
        return torch.zeros(4, dtype=torch.long, device="cpu")
    attended = chosen.to(batch.tokens.device)
    tokens, values, n_pairs = batch.tokens[attended], read.values[head.head][attended], pairs[chosen]
    readout = readout_of(model)
    W_U = readout.W_U.detach().to(values.dtype)
    W_O = readout.direction(model.output_weight(head.layer)[head.head].to(values.dtype))
    d_head, d_model = W_O.shape
    n = len(values)
    left, right = (values @ W_O, W_U) if n * d_model < d_head * (d_model + n) else (values, W_O @ W_U)
    rank = (model.cfg.d_vocab - 1 - own_token_excess(left, right, tokens)) // 2
    own = (left * (right.T[tokens] - right.mean(-1))).sum(-1).cpu()
    found = [torch.ones_like(rank, dtype=torch.bool), own < 0, rank < k, rank == 0]
    return torch.stack([(n_pairs * each).sum() for each in found])
