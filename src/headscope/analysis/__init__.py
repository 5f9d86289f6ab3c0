"""Analyses: each a function of a model and tokens that returns a frozen result."""

from headscope.analysis.entropy import EntropyAccumulator, EntropyOptions, EntropyResult, measure_entropy
from headscope.analysis.result import HeadScore, Ranking, RunInfo

__all__ = [
    "EntropyAccumulator",
    "EntropyOptions",
    "EntropyResult",
    "HeadScore",
    "Ranking",
    "RunInfo",
    "measure_entropy",
]
