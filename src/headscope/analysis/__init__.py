"""Analyses: each a function of a model and tokens that returns a frozen result."""

from headscope.analysis.ablation.ablate import AblationAccumulator, AblationOptions, ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.attention.score import attribute_attention
from headscope.analysis.attention.score_result import AttentionAttribution
from headscope.analysis.circuits.circuit import find_circuit
from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.circuits.completeness import (
    Completeness,
    Minimality,
    circuit_completeness,
    circuit_minimality,
)
from headscope.analysis.circuits.edge_patching import EdgePatchingResult, edge_patch
from headscope.analysis.circuits.edge_runs import CircuitRuns
from headscope.analysis.circuits.edges import edge_attribution
from headscope.analysis.circuits.edges_result import EdgeAttributionResult
from headscope.analysis.circuits.faithfulness import circuit_faithfulness
from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.circuits.stability import Stability, stability
from headscope.analysis.core.batches import Batch
from headscope.analysis.core.result import Array, HeadScore, Ranking, Result, RunInfo
from headscope.analysis.core.top_places import Position, TokenMean, token_means, top_positions
from headscope.analysis.heads.evidence import copying_scores
from headscope.analysis.heads.power import prompts_needed
from headscope.analysis.heads.scores import HeadScores, head_scores
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.lens.calibration import CalibrationAccumulator, CalibrationOptions, measure_calibration
from headscope.analysis.lens.calibration_result import CalibrationResult
from headscope.analysis.lens.entropy import EntropyAccumulator, EntropyOptions, measure_entropy
from headscope.analysis.lens.entropy_result import EntropyResult
from headscope.analysis.lens.logit_lens import LogitLensResult, logit_lens
from headscope.analysis.lens.loss import NextTokens, next_token_loss, predict_next_tokens
from headscope.analysis.patching.ablation import TaskAblation, ablate_components
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.comparison import AttributionPatchingResult
from headscope.analysis.patching.gradient import attribution_patch
from headscope.analysis.patching.path import path_patch, path_patch_sweep
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.answers import logit_difference
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.attribution_result import Attribution, NeuronScore
from headscope.analysis.prompts.metrics import (
    AnswerMetric,
    LinearMetric,
    NumberMetric,
    PromptMetric,
    last_position,
    reads,
)
from headscope.analysis.prompts.task import Task
from headscope.analysis.recording.embedding import effective_embedding
from headscope.analysis.scoreboard.board import KnownModel, Scoreboard, scoreboard
from headscope.analysis.scoreboard.truth import Truth
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.analysis.suppression.circuit_ranks import (
    RanksCost,
    circuit_ranks_cost,
    weights_circuit_ranks,
)
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.analysis.suppression.cspa import SuppressionAccumulator, copy_suppression_preserving_ablation
from headscope.analysis.suppression.cspa_block import SuppressionOptions
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.analysis.suppression.dynamic_ov import DynamicOV, dynamic_ov
from headscope.analysis.suppression.scores import SuppressionScores, suppression_scores
from headscope.compat.path_notebooks import (
    IOIMetric,
    generate_data_and_caches,
    ioi_logit_difference,
    ioi_metric_denoising,
    ioi_metric_noising,
)
from headscope.compat.prompt import PromptTest, test_prompt
from headscope.compat.svd import SVDInterpreter

__all__ = [
    "AblationAccumulator",
    "AblationOptions",
    "AblationResult",
    "Accumulator",
    "AnswerMetric",
    "Array",
    "AttentionAttribution",
    "Attribution",
    "AttributionPatchingResult",
    "Batch",
    "CalibrationAccumulator",
    "CalibrationOptions",
    "CalibrationResult",
    "Circuit",
    "CircuitRanks",
    "CircuitRuns",
    "Completeness",
    "CopySuppression",
    "DynamicOV",
    "EdgeAttributionResult",
    "EdgePatchingResult",
    "EntropyAccumulator",
    "EntropyOptions",
    "EntropyResult",
    "Faithfulness",
    "Graph",
    "HeadScore",
    "HeadScores",
    "HeadTypes",
    "IOIMetric",
    "KnownModel",
    "LinearMetric",
    "LogitLensResult",
    "Minimality",
    "NeuronScore",
    "NextTokens",
    "NumberMetric",
    "Passes",
    "PatchingResult",
    "PathPatchingResult",
    "Position",
    "PromptMetric",
    "PromptTest",
    "Ranking",
    "RanksCost",
    "Result",
    "RunInfo",
    "SVDInterpreter",
    "Scoreboard",
    "Stability",
    "StreamOptions",
    "SuppressionAccumulator",
    "SuppressionOptions",
    "SuppressionScores",
    "Task",
    "TaskAblation",
    "TokenMean",
    "Truth",
    "ablate_components",
    "ablate_heads",
    "activation_patch",
    "attribute",
    "attribute_attention",
    "attribution_patch",
    "circuit_completeness",
    "circuit_faithfulness",
    "circuit_minimality",
    "circuit_ranks_cost",
    "copy_suppression_preserving_ablation",
    "copying_scores",
    "detect_heads",
    "dynamic_ov",
    "edge_attribution",
    "edge_patch",
    "effective_embedding",
    "find_circuit",
    "generate_data_and_caches",
    "head_scores",
    "ioi_logit_difference",
    "ioi_metric_denoising",
    "ioi_metric_noising",
    "last_position",
    "logit_difference",
    "logit_lens",
    "measure_calibration",
    "measure_entropy",
    "next_token_loss",
    "path_patch",
    "path_patch_sweep",
    "predict_next_tokens",
    "prompts_needed",
    "reads",
    "scoreboard",
    "stability",
    "streaming",
    "suppression_scores",
    "test_prompt",
    "token_means",
    "top_positions",
    "weights_circuit_ranks",
]
