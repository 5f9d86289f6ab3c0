"""Copy suppression for the report: two scores of every head, and a closer look at the few that stand out."""

from dataclasses import dataclass

from torch import Tensor

from headscope.analysis.suppression.circuit_ranks import weights_circuit_ranks
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.analysis.suppression.scores import SuppressionScores, suppression_scores
from headscope.model.transformer import HookedTransformer

__all__ = ["Suppression", "measure_suppression"]

_EACH = 3
_SUPPRESSED = 10  # a token is suppressed if it is among so many
_PROMPTS = 100
_PROMPT_CONTEXT = 64  # IOI prompts fit into it


@dataclass(frozen=True)
class Suppression:
    """Scores of all heads, and what is known of those that score highest."""

    scores: SuppressionScores
    explained: CopySuppression
    ranks: CircuitRanks


def measure_suppression(model: HookedTransformer, tokens: Tensor, describe: str, progress: bool) -> Suppression | None:
    """Score every head, and look closely at the best by either score; `None` where there is nothing to measure on."""
    cfg = model.cfg
    if cfg.n_ctx < 5 or cfg.d_vocab <= 4 or cfg.d_vocab_out != cfg.d_vocab or cfg.attention_dir != "causal":
        return None
    n_prompts = _PROMPTS if model.tokenizer is not None and cfg.n_ctx >= _PROMPT_CONTEXT else 0
    scores = suppression_scores(model, n_prompts=n_prompts, progress=progress)
    by = ("anti_induction",) if scores.ioi is None else ("anti_induction", "ioi")
    heads = list(dict.fromkeys(score.label for name in by for score in scores.top(_EACH, by=name)))
    explained = copy_suppression_preserving_ablation(model, tokens, heads, describe=describe, progress=progress)
    ranks = weights_circuit_ranks(model, heads, k=min(_SUPPRESSED, cfg.d_vocab), progress=progress)
    return Suppression(scores, explained, ranks)
