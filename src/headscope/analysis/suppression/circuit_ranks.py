"""Ranks in a head's circuits: do its weights suppress (or copy) what it reads, and look for what is predicted?

After McDougall et al. 2023 (arXiv 2310.04625). Two matrices [d_vocab, d_vocab] say what a head does with tokens:

- OV, `W_EE W_V W_O W_U`: row t holds the logits a head adds where it attends to token t. A head that suppresses copying
  puts the token's own logit near the bottom of its row.
- QK, `W_U^T W_Q W_K^T W_EE^T`: row t holds the scores that a stream which predicts token t gives each token as a key. A
  head that suppresses copying looks for the predicted token: the token's own score is near the top of its row.

Both have rank d_head, and only the rank of each diagonal entry in its row is kept: they are made and reduced in tiles.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.head_lists import chosen_heads, heads_tensor, one_vocabulary
from headscope.analysis.core.progress import each_step
from headscope.analysis.core.result import RunInfo
from headscope.analysis.recording.embedding import (
    TokenDirections,
    as_read,
    effective_embedding,
    norm_weight,
    token_embedding,
)
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.activations.readout import Readout, readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.interface import Kernels
from headscope.ops.kernels.products import linear
from headscope.ops.parallel import RowChunks
from headscope.ops.vocab import vocab_tiles

__all__ = ["RanksCost", "circuit_ranks_cost", "own_token_excess", "weights_circuit_ranks"]


@dataclass(frozen=True)
class RanksCost:
    """Cost of ranking.

    Attributes:
        operations: Additions and multiplications.
        seconds: Estimated from a few tiles timed on this machine.
    """

    operations: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.operations:.2g} operations, about {self.seconds:,.2g} s"


@torch.no_grad()
def weights_circuit_ranks(
    model: HookedTransformer,
    heads: Iterable[object] | None = None,
    *,
    k: int = 10,
    tokens: Int[Tensor, " token"] | int | None = None,
    attention: Literal["none", "self"] = "none",
    only_mlp: bool = False,
    qk_biases: bool = False,
    progress: bool = True,
) -> CircuitRanks:
    """Rank each token's own entry in its rows of heads' OV and QK circuits.

    Tokens are embedded by `effective_embedding` (by `W_E` itself for heads of the first layer, which read nothing else)
    and normalized as the head's layer does. Constants that belong to no token (the biases of norm and values) are left
    out of OV. A query is the direction of the stream that predicts a token (`TokenDirections`), normalized likewise.

    Of a norm behind attention only the weight takes part: its scale is one for all sources of a destination. Scores are
    those of content at no distance: rotary positions and ALiBi are left out, and so are norms of queries and keys, with
    which the order of keys is approximate. Gates on heads' outputs (`cfg.gated_attn`), which depend on the text, count
    as open; then the result's `info.options` has `gates`, `"open"`.

    Cost: about `4 * n_tokens * d_vocab * d_head` operations for each head: for GPT-2 small four to eight seconds of one
    core, or ten to twenty minutes for all 144 heads, shared among the cores there are. A sample of tokens is enough for
    the share of them at the bottom or the top: 2,000 of 50,000 give it with an error of about 0.01 in a twentieth of
    the time. `circuit_ranks_cost` tells the cost in advance. Memory: tiles, and a few matrices of the embedding's size.

    Args:
        model: The model.
        heads: `(layer, head)` or `"layer.head"` each; default all.
        k: How many count as the bottom and the top.
        tokens: Rank these tokens only, still among all; a number ranks that many, drawn at random but always the same;
            default all.
        attention: See `effective_embedding`.
        only_mlp: See `effective_embedding`.
        qk_biases: Let queries and keys have their biases.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: for a head that does not exist, an option or a token out of range, or a model that does not
            read and write the same vocabulary.
        NotFiniteError: if weights are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> ranks = weights_circuit_ranks(model, ["4.0", (4, 1)], tokens=torch.arange(100), progress=False)
        >>> ranks.labels, ranks.ov.shape
        (('4.0', '4.1'), torch.Size([2, 100]))
    """
    chosen = chosen_heads(model, heads)
    d_vocab = one_vocabulary(model)
    tokens = _checked_tokens(tokens, d_vocab).to(model.W_U.device)
    if not 1 <= k <= d_vocab:
        raise InvalidInputError(f"k must be between 1 and d_vocab = {d_vocab}; got {k}.")
    kind = torch.promote_types(model.W_U.dtype, torch.float32)
    readout = readout_of(model)
    predicted = TokenDirections(model).of(tokens)
    first = token_embedding(model).to(kind)
    later = effective_embedding(model, attention=attention, only_mlp=only_mlp).to(kind)
    ov, qk = (torch.empty(len(chosen), len(tokens), dtype=torch.int32, device="cpu") for _ in range(2))
    layer: _LayerCircuits | None = None
    for row, head in enumerate(each_step(chosen, "circuit ranks", shown=progress)):
        if layer is None or layer.layer != head.layer:
            embedding = first if head.layer == 0 else later
            layer = _LayerCircuits(model, head.layer, embedding, tokens, predicted, qk_biases)
        assert head.head is not None
        ov_excess = own_token_excess(*layer.ov(head.head, readout), tokens)
        qk_excess = own_token_excess(*layer.qk(head.head), tokens)
        ov[row] = (d_vocab - 1 - ov_excess) // 2
        qk[row] = (d_vocab - 1 + qk_excess) // 2
    options: dict[str, object] = {"k": k, "attention": attention, "only_mlp": only_mlp, "qk_biases": qk_biases}
    options |= {"gates": "open"} if model.cfg.gated_attn else {}
    info = RunInfo(model.cfg.model_name, model.weight_processing, "weights", 0, len(tokens), options)
    return CircuitRanks(info, heads_tensor(chosen), tokens.cpu(), ov, qk, k, d_vocab)


class _LayerCircuits:
    """The factors of one layer's heads; what they read, normalized as the layer does, is made once for all."""

    def __init__(
        self,
        model: HookedTransformer,
        layer: int,
        embedding: Float[Tensor, "d_vocab d_model"],
        tokens: Int[Tensor, " token"],
        predicted: Float[Tensor, "token d_model"],
        qk_biases: bool,
    ) -> None:
        block: Any = model.blocks[layer]
        self.layer, self.attn, self.kind = layer, block.attn, embedding.dtype
        self.qk_biases = qk_biases
        self.written = model.output_weight(layer)
        bias = norm_weight(model, layer, "b")
        self.norm_bias = None if bias is None else bias.detach().to(self.kind)
        self.read, self.asked = (as_read(model, each, layer) for each in (embedding, predicted))
        self.read_of_ranked = self.read[tokens]

    def _projected(self, read: Tensor, name: Literal["q", "k"], head: int) -> Float[Tensor, "token d_head"]:
        if self.qk_biases and self.norm_bias is not None:
            read = read + self.norm_bias
        return self.attn.of_head(name, head, read, biased=self.qk_biases)

    def ov(self, head: int, readout: Readout) -> tuple[Float[Tensor, "token d_head"], Float[Tensor, "d_head d_vocab"]]:
        """Return each ranked token's value, and the map from values to logits, but for the final norm's scale."""
        to_logits = linear(readout.direction(self.written[head].to(self.kind)), readout.W_U.detach().to(self.kind))
        return self.attn.of_head("v", head, self.read_of_ranked, biased=False), to_logits

    def qk(self, head: int) -> tuple[Float[Tensor, "token d_head"], Float[Tensor, "d_head d_vocab"]]:
        """Return the query of a stream that predicts each token, and each token's key."""
        return self._projected(self.asked, "q", head), self._projected(self.read, "k", head).T


def own_token_excess(
    left: Float[Tensor, "row inner"], right: Float[Tensor, "inner d_vocab"], tokens: Int[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """In each row of `left @ right`: how many entries are above that of the row's token, less how many are below.

    With e this number, `(d_vocab - 1 + e) / 2` is the token's rank from the top, and `(d_vocab - 1 - e) / 2` that from
    the bottom, ties counting half. The product is made in tiles, several rows of tiles at once.

    Raises:
        NotFiniteError: if a factor is not finite.
    """
    if not bool(left.isfinite().all() and right.isfinite().all()):
        raise NotFiniteError("a head's circuit holds NaN or infinite values. Check the model's weights.")
    d_vocab = right.shape[1]
    own = (left * right.T[tokens]).sum(-1, keepdim=True)
    excess = torch.zeros(len(left), dtype=torch.long, device=left.device)
    size = Budget.of(left.device).tile
    tiles = [right[:, columns].contiguous() for columns in vocab_tiles(d_vocab, size.vocab)]

    def count(rows: slice, kernels: Kernels) -> None:
        tile_of, place_in = tokens[rows] // size.vocab, tokens[rows] % size.vocab
        with_own = set(tile_of.tolist())
        for number, columns in enumerate(tiles):
            entries = linear(left[rows], columns)
            if number in with_own:
                here = (tile_of == number).nonzero()[:, 0]
                # Made apart, the own entry may differ in its last bits from what it is compared with.
                entries[here, place_in[here]] = own[rows][here, 0]
            kernels.count_excess(entries, own[rows], excess[rows])

    with RowChunks(len(left), size.rows, kernels_for(left.device, left.dtype), left.device) as chunks:
        chunks.run(count)
    return excess.cpu()


def circuit_ranks_cost(
    model: HookedTransformer, heads: Iterable[object] | None = None, *, n_tokens: int | None = None
) -> RanksCost:
    """Estimate the cost of `weights_circuit_ranks`: operations, and seconds by timing a few tiles (some milliseconds).

    Args:
        model: The model.
        heads: As there.
        n_tokens: How many tokens are ranked; default all.

    Raises:
        InvalidInputError: for a head that does not exist.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> print(f"{circuit_ranks_cost(model, ['4.0']).operations / 1e9:.2f} billion operations")
        0.17 billion operations
    """
    n_heads, cfg = len(chosen_heads(model, heads)), model.cfg
    n_tokens = cfg.d_vocab if n_tokens is None else n_tokens
    # Two circuits of n_tokens * d_vocab entries; values, keys, queries and the unembedded W_O.
    in_tiles = n_heads * 4 * cfg.d_head * n_tokens * cfg.d_vocab
    making = n_heads * 4 * cfg.d_head * cfg.d_model * (cfg.d_vocab + n_tokens)
    size = Budget.of(model.W_U.device).tile
    rows, columns = min(n_tokens, 4 * size.rows), min(cfg.d_vocab, 4 * size.vocab)
    kind = torch.promote_types(model.W_U.dtype, torch.float32)
    left = torch.ones(rows, cfg.d_head, dtype=kind, device=model.W_U.device)
    right = torch.ones(cfg.d_head, columns, dtype=kind, device=model.W_U.device)
    tokens, times = torch.zeros(rows, dtype=torch.long, device=model.W_U.device), []
    for _ in range(2):
        start = time.perf_counter()
        own_token_excess(left, right, tokens)
        times.append(time.perf_counter() - start)
    rate = 2 * cfg.d_head * rows * columns / min(times)
    return RanksCost(in_tiles + making, (in_tiles + making) / rate)


def _checked_tokens(tokens: Tensor | int | None, d_vocab: int) -> Int[Tensor, " token"]:
    if tokens is None:
        return torch.arange(d_vocab, device="cpu")
    if not isinstance(tokens, Tensor):
        if isinstance(tokens, bool) or not 1 <= tokens <= d_vocab:
            raise InvalidInputError(f"tokens must be a number between 1 and d_vocab = {d_vocab}; got {tokens}.")
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(d_vocab, generator=generator, device="cpu")[: int(tokens)].sort().values
    if not tokens.numel() or int(tokens.min()) < 0 or int(tokens.max()) >= d_vocab:
        raise InvalidInputError(
            f"tokens must be one or more ids between 0 and d_vocab - 1 = {d_vocab - 1}; got "
            f"{len(tokens)} of them" + (f", {int(tokens.min())} to {int(tokens.max())}." if tokens.numel() else ".")
        )
    return tokens.long()
