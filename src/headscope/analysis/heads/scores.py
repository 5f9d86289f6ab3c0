"""Previous-token, duplicate-token and induction scores of heads, read off attention patterns.

A score is the attention a head pays, on average, to the keys that define the kind:

| kind             | a query attends to                                              | positions that count            |
|------------------|-----------------------------------------------------------------|---------------------------------|
| `previous_token` | the token before it                                             | all but the first               |
| `duplicate_token`| earlier copies of its own token                                 | those with an earlier copy      |
| `induction`      | tokens that came right after earlier copies (not itself)        | those with such a token         |

On repeated random tokens `[BOS, r, r]` the last two are the stripes one and one-less block length below the
diagonal (plus the few chance repeats within `r`), as in Elhage et al. 2021 and Olsson et al. 2022, "In-context
Learning and Induction Heads". In a model that attends both ways, later copies are copies too, and what was counted is
said with the result. A pattern is reduced as soon as a layer has made it; none is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.batches import Batch, describe_data
from headscope.analysis.core.result import Array, Result
from headscope.analysis.recording.record import record_patterns
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.data.random_tokens import repeated_random_tokens
from headscope.errors import NotFiniteError
from headscope.model.text.tokens import bos_token_id
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["MIN_ATTENTION", "SCORES", "HeadScores", "defining_keys", "head_scores", "scored_tokens"]


SCORES = ("previous_token", "duplicate_token", "induction")
MIN_ATTENTION = 0.3  # the least share of its attention for which a head is called one of a kind, everywhere


@dataclass(frozen=True, repr=False)
class HeadScores(Result):
    """Scores of every head, each between 0 and 1; NaN where no position counted.

    Attributes:
        previous_token: Mean attention to the token before.
        duplicate_token: Mean attention to earlier copies of the token.
        induction: Mean attention to what followed earlier copies of the token.
        info: What was run on what; `n_positions` is the number of query positions looked at.
    """

    kind: ClassVar[str] = "head_scores"
    arrays: ClassVar[Mapping[str, Array]] = {
        name: Array(
            "layer head",
            absent=f"no position of the data counts for the {name} score (nothing repeats): there is nothing to rank.",
        )
        for name in SCORES
    }
    columns: ClassVar[tuple[str, ...]] = SCORES
    ranked: ClassVar[tuple[str, ...]] = ("induction", "duplicate_token", "previous_token")
    previous_token: Float[Tensor, "layer head"]
    duplicate_token: Float[Tensor, "layer head"]
    induction: Float[Tensor, "layer head"]


@streaming()
def head_scores(
    model: HookedTransformer,
    data: Any = None,
    *,
    n_sequences: int = 32,
    length: int | None = None,
    seed: int = 0,
    special_tokens: Sequence[int] = (),
    **run: Unpack[StreamOptions],
) -> HeadScores:
    """Score every head of `model` as a previous-token, duplicate-token and induction head.

    Args:
        model: The model.
        data: Tokens `[batch, pos]`, or an iterable of batches. Default: `n_sequences` rows of repeated random tokens
            `[BOS, r, r]`, drawn uniformly from the vocabulary without the tokenizer's special tokens.
        n_sequences: Rows of random tokens; unused with `data`.
        length: Length of `r`, unused with `data`; default 50, or what fits in the context.
        seed: Seed of the random tokens; unused with `data`.
        special_tokens: Ids that random tokens leave out besides; without a tokenizer the first begins each row.
        **run: Options of every run; see `StreamOptions`. With `include_bos`, BOS counts as the token before, too.

    Raises:
        InvalidInputError: For tokens that do not fit the model, or if no position counts.
        NotFiniteError: If an attention pattern is not finite.

    Example:
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=16, n_ctx=64, d_head=4, d_vocab=50, attn_only=True)
        >>> scores = head_scores(HookedTransformer(cfg), n_sequences=2, length=20, progress=False)
        >>> scores.induction.shape, len(scores.top(3, by="previous_token"))
        (torch.Size([2, 4]), 3)
    """
    if data is None:
        data = scored_tokens(model, n_sequences, length, seed, special_tokens)
        run["describe"] = run["describe"] or f"repeated random tokens (seed {seed})"
    if model.cfg.attention_dir != "causal":
        run["describe"] = f"{run['describe'] or describe_data(data)}, copies on either side"
    options = {"include_bos": run["include_bos"]}
    passes = Passes("head-scores", model, data, options, **run)
    if (finished := passes.finished(HeadScores)) is not None:
        return finished
    return passes.finish("head scores", _ScoreAccumulator(model, options, passes.described))


class _ScoreAccumulator(Accumulator[HeadScores]):
    """Attention to the keys that define each kind, over a stream of batches."""

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Add up the attention of a batch, and the queries that have such keys."""
        keys = defining_keys(batch, both_ways=self.model.cfg.attention_dir != "causal")
        n_queries = keys.any(-1).sum((1, 2)).cpu().double()
        weights = keys.float()
        paid = record_patterns(
            self.model, batch, lambda pattern: wide(torch.einsum("rhqk,srqk->sh", pattern.float(), weights))
        )
        if not bool(paid[list(self.model.cfg.layers_with("attn"))].isfinite().all()):
            raise NotFiniteError(
                "an attention pattern holds NaN or infinite values. Check the model's weights, and any hooks on it.",
                code="HS-FINITE-02",
            )
        self.add(batch, int(batch.counted.sum()), {"paid": paid.movedim(0, 1), "queries": n_queries})

    def summary(self, rows: dict[str, Tensor]) -> HeadScores:
        """Return the mean attention over queries."""
        means = self.sums["paid"] / self.sums["queries"][:, None, None]
        return HeadScores(self.info(self.options), *means.float().unbind())


def scored_tokens(
    model: HookedTransformer, n_sequences: int, length: int | None, seed: int, special_tokens: Sequence[int] = ()
) -> Tensor:
    """Rows of repeated random tokens, as long as fits; without special tokens, and after BOS where there is one."""
    special, bos = set(special_tokens), next(iter(special_tokens), None)
    if model.tokenizer is not None:
        special, bos = special.union(model.tokenizer.all_special_ids), bos_token_id(model.tokenizer)
    if length is None:
        length = min(50, (model.cfg.n_ctx - 1) // 2)
    allowed = [token for token in range(model.cfg.d_vocab) if token not in special]
    return repeated_random_tokens(n_sequences, length, allowed=allowed, bos=bos, seed=seed)


def defining_keys(batch: Batch, *, both_ways: bool = False) -> Bool[Tensor, "kind row query_pos key_pos"]:
    """Return the keys that define each of `SCORES`; none for queries that do not count.

    Args:
        batch: The batch.
        both_ways: Later copies of a token are copies too, and what follows them counts.
    """
    tokens, counted = batch.tokens, batch.counted
    n_pos = tokens.shape[1]
    real = counted if batch.attention_mask is None else batch.attention_mask
    here = torch.arange(n_pos, device=tokens.device)
    earlier = here[:, None] > here
    in_sight = here[:, None] != here if both_ways else earlier
    # Only where both query and key count: padding and BOS are neither.
    pairs = (counted[:, :, None] & counted[:, None, :]) & (real[:, :, None] & real[:, None, :])
    copies = (tokens[:, :, None] == tokens[:, None, :]) & in_sight & pairs
    followers = torch.zeros_like(copies)
    followers[:, :, 1:] = copies[:, :, :-1]
    return torch.stack([earlier.triu(-1) & pairs, copies, followers & in_sight & pairs])
