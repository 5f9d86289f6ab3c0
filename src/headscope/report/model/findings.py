"""Findings: everything a page about a model is made from, and what is picked out of it."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.components import component_of
from headscope.analysis.core.ranking import Ranking
from headscope.analysis.core.result import Result
from headscope.analysis.core.stats import Estimate, Estimates, estimate, estimates
from headscope.analysis.core.top_places import Position, top_positions
from headscope.analysis.heads.scores import MIN_ATTENTION, HeadScores
from headscope.analysis.lens.entropy import EntropyResult
from headscope.analysis.lens.loss import NextTokens
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.analysis.suppression.scores import SuppressionScores
from headscope.report.parts import Outcome
from headscope.report.places import Head, head_of
from headscope.report.task.story import TaskStory

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TYPES", "Attention", "Findings", "Suppression", "notable_heads", "positions_of", "strongest", "types_of"]

TYPES = {"previous_token": "previous-token", "duplicate_token": "duplicate-token", "induction": "induction"}


@dataclass(frozen=True)
class Suppression:
    """Copy suppression: scores of all heads, and a closer look at those that score highest."""

    scores: SuppressionScores
    explained: CopySuppression
    ranks: CircuitRanks


@dataclass(frozen=True)
class Attention:
    """Attention patterns of some heads on one sequence.

    Attributes:
        row: The sequence.
        focus: The position to look from first.
        names: What to call each head.
        patterns: Attention weights.
    """

    row: int
    focus: int | None
    names: tuple[str, ...]
    patterns: Float[Tensor, "head query key"]


@dataclass(frozen=True)
class Findings:
    """Results of the analyses of one model on one text.

    Attributes:
        facts: Names and values of what a reader wants to know of the model.
        model_name: Its name.
        processing: The weight processing it went through.
        n_layers: Number of layers.
        n_heads: Number of heads in each.
        d_vocab: Size of the vocabulary.
        d_vocab_out: Number of tokens it predicts among.
        data: What the text is.
        tokens: The tokens it ran on.
        bos: Text of the tokenizer's BOS token, if every sequence begins with it.
        separator: Text of its EOS token, if that stands within a sequence.
        texts: Text of every token that the page shows, by token.
        outcome: What came of each part of the measurement.
        notable: Heads to show in detail; none where entropy was not measured.
        attention: Their attention patterns, where they were asked for.
        scores_on_text: Scores of the head types on the text itself, beside those of `scores`.
    """

    facts: Mapping[str, str]
    model_name: str
    processing: tuple[str, ...]
    n_layers: int
    n_heads: int
    d_vocab: int
    d_vocab_out: int
    data: str
    tokens: Int[Tensor, "batch pos"]
    bos: str | None
    separator: str | None
    texts: Mapping[int, str]
    outcome: Outcome
    notable: tuple[Head, ...]
    attention: Attention | None
    scores_on_text: HeadScores | None = None

    def has(self, *parts: str) -> bool:
        """Tell whether parts were measured."""
        return all(self.outcome.results.get(part) is not None for part in parts)

    @property
    def entropy(self) -> EntropyResult:
        """Entropy effects at every position; only where `has("entropy")`."""
        return cast(EntropyResult, self.outcome.results["entropy"])

    @property
    def predictions(self) -> NextTokens:
        """Next-token predictions; only where `has("loss")`."""
        return cast(NextTokens, self.outcome.results["loss"])

    @property
    def scores(self) -> HeadScores | None:
        """Scores of the head types."""
        return cast(HeadScores | None, self.outcome.results.get("types"))

    @property
    def ablation(self) -> AblationResult | None:
        """Loss without each head."""
        return cast(AblationResult | None, self.outcome.results.get("ablation"))

    @property
    def suppression(self) -> Suppression | None:
        """Copy suppression."""
        return cast(Suppression | None, self.outcome.results.get("suppression"))

    @cached_property
    def strings(self) -> list[list[str]]:
        """The text of each token."""
        return [[self.texts[token] for token in row] for row in self.tokens.tolist()]

    @cached_property
    def means(self) -> EntropyResult:
        """Means of the entropy effects over positions."""
        return self.entropy.mean()

    @cached_property
    def diff(self) -> Estimates:
        """Effect of each head on the entropy where it writes, `[layer, head]`."""
        return estimates(self.entropy.diff[:, : self.entropy.n_heads])

    @cached_property
    def marginal(self) -> Estimates:
        """Effect of each head on the entropy of the final prediction, `[layer, head]`."""
        return estimates(self.entropy.marginal[:, : self.entropy.n_heads])

    def among_first(self, k: int) -> Estimate:
        """Share of the next tokens that are among the model's first `k` choices."""
        among = (self.predictions.rank < k).double()
        return estimate(among.masked_fill(self.predictions.loss.isnan(), torch.nan))

    def loss_without(self, effect: str) -> Estimates:
        """Loss difference of each head, replaced by its mean, along one kind of path, `[layer, head]`.

        NaN for layers without attention.
        """
        assert self.ablation is not None
        values = self.ablation.loss_diff[0, self.ablation.effects.index(effect)]
        grid = values.new_full((self.n_layers, self.n_heads, *values.shape[1:]), torch.nan)
        heads = [component for component in map(component_of, self.ablation.component_labels) if component is not None]
        grid[[each.layer for each in heads], [each.head or 0 for each in heads]] = values
        return estimates(grid)

    @property
    def story(self) -> TaskStory | None:
        """The task of two names."""
        return cast(TaskStory | None, self.outcome.results.get("task"))

    def tables(self) -> "dict[str, pd.DataFrame]":
        """The numbers, by the name of their file."""
        tables: dict[str, pd.DataFrame] = {}
        if self.has("entropy"):
            tables |= {"entropy": self.means.to_frame(), "entropy_states": self.means.resid_frame()}
        if self.has("loss"):
            loss = self.predictions.to_frame().rename(columns={"batch": "sequence", "pos": "position"})
            loss = loss.astype({"loss": "float32"})
            loss.insert(2, "token", self.tokens[:, :-1].flatten().numpy())
            loss.insert(3, "next_token", self.tokens[:, 1:].flatten().numpy())
            tables["loss"] = loss
        results: dict[str, Result | None] = {"ablation": self.ablation, "head_scores": self.scores}
        if self.suppression is not None:
            results["suppression_scores"] = self.suppression.scores
            results["copy_suppression"] = self.suppression.explained
            results["circuit_ranks"] = self.suppression.ranks
        return tables | {name: result.to_frame() for name, result in results.items() if result is not None}


def notable_heads(means: EntropyResult, k: int) -> tuple[Head, ...]:
    """The heads that raise entropy most: by diff and by marginal in turn, none twice."""
    n = means.n_layers * means.n_heads
    in_turn = itertools.chain.from_iterable(zip(means.top(n, by="diff"), means.top(n, by="marginal"), strict=True))
    raising = [score for score in in_turn if score.value > 0] or means.top(k)
    return tuple(dict.fromkeys(map(head_of, raising)))[:k]


def positions_of(entropy: EntropyResult, head: Head, k: int) -> tuple[Position, ...]:
    """The positions where a head raises entropy most."""
    # Neighbors share their context: one of them is enough.
    return top_positions(entropy.diff[head], k, apart=5)


def strongest(scores: HeadScores | None, k: int = 3) -> dict[str, Ranking]:
    """The best heads of each type that was measured at any position."""
    known = [] if scores is None else [type_ for type_ in TYPES if not bool(getattr(scores, type_).isnan().any())]
    return {TYPES[type_]: scores.top(k, by=type_) for type_ in known if scores is not None}


def types_of(scores: HeadScores | None, head: Head) -> dict[str, float]:
    """The types a head is called by, and how much of its attention it gives them."""
    if scores is None:
        return {}
    values = {name: float(getattr(scores, type_)[head]) for type_, name in TYPES.items()}
    return {name: value for name, value in values.items() if value >= MIN_ATTENTION}
