"""What a report is made from: the results of its analyses, and what is picked out of them."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.result import HeadScore
from headscope.analysis.core.stats import Estimates, estimates
from headscope.analysis.core.top_places import Position, top_positions
from headscope.analysis.heads.scores import HeadScores
from headscope.analysis.lens.entropy import EntropyResult
from headscope.analysis.lens.loss import NextTokens
from headscope.model.transformer import HookedTransformer
from headscope.report.model.suppression import Suppression

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KIND_SCORE", "KINDS", "Findings", "kinds_of", "notable_heads", "positions_of", "strongest", "token_string"]

KINDS = {"previous_token": "previous token", "duplicate_token": "duplicate token", "induction": "induction"}
KIND_SCORE = 0.4  # a head that gives its kind this much of its attention is called by it


@dataclass(frozen=True)
class Findings:
    """Everything the page is made from."""

    model: HookedTransformer
    tokens: Tensor
    strings: list[list[str]]
    entropy: EntropyResult
    predictions: NextTokens
    scores: HeadScores | None
    ablation: AblationResult | None
    suppression: Suppression | None

    @cached_property
    def means(self) -> EntropyResult:
        """The means over positions of the entropies."""
        return self.entropy.mean()

    @cached_property
    def diff(self) -> Estimates:
        """What each head does to the entropy where it writes, `[layer, head]`."""
        return estimates(self.entropy.diff[:, : self.entropy.n_heads])

    @cached_property
    def marginal(self) -> Estimates:
        """What each head does to the entropy of the final prediction, `[layer, head]`."""
        return estimates(self.entropy.marginal[:, : self.entropy.n_heads])

    def loss_frame(self) -> "pd.DataFrame":
        """One row per next token: where it stands, what it is, its loss and its rank."""
        import pandas as pd

        n_rows, width = self.predictions.loss.shape
        where = torch.cartesian_prod(torch.arange(n_rows), torch.arange(width))
        return pd.DataFrame(
            {
                "sequence": where[:, 0].numpy(),
                "position": where[:, 1].numpy(),
                "token": self.tokens[:, :-1].flatten().numpy(),
                "next_token": self.tokens[:, 1:].flatten().numpy(),
                "loss": self.predictions.loss.flatten().numpy(),
                "rank": self.predictions.rank.flatten().numpy(),
            }
        )


def notable_heads(means: EntropyResult, k: int) -> tuple[HeadScore, ...]:
    """The heads that raise entropy most: by diff and by marginal in turn, none twice; the value is their diff."""
    n = means.n_layers * means.n_heads
    in_turn = itertools.chain.from_iterable(zip(means.top(n, by="diff"), means.top(n, by="marginal"), strict=True))
    raising = [s for s in in_turn if s.value > 0] or list(means.top(k))
    heads = list(dict.fromkeys((score.layer, score.head) for score in raising))[:k]
    return tuple(HeadScore(layer, head, float(means.diff[layer, head])) for layer, head in heads)


def positions_of(found: Findings, score: HeadScore, k: int) -> tuple[Position, ...]:
    """Where a head raises entropy most."""
    # Neighbours share their context: one of them is enough.
    return top_positions(found.entropy.diff[score.layer, score.head], k, apart=5)


def token_string(model: HookedTransformer, token: int) -> str:
    """A token's text; its number for a model without a tokenizer."""
    return f" {token}" if model.tokenizer is None else model.to_single_str_token(token)


def strongest(scores: HeadScores | None, k: int = 3) -> list[tuple[str, list[HeadScore]]]:
    """The best heads of each kind; of a kind that no position counts for, none."""
    if scores is None:
        return []
    ranked = {kind: scores.top(k, by=kind) for kind in KINDS if not bool(getattr(scores, kind).isnan().any())}
    return [(KINDS[kind], list(ranking)) for kind, ranking in ranked.items()]


def kinds_of(scores: HeadScores | None, score: HeadScore) -> list[tuple[str, float]]:
    """The kinds a head is called by, and how much of its attention it gives them."""
    if scores is None:
        return []
    values = {name: float(getattr(scores, kind)[score.layer, score.head]) for kind, name in KINDS.items()}
    return [(name, value) for name, value in values.items() if value >= KIND_SCORE]
