"""Analyses: each a function of a model and tokens that returns a frozen result."""

from headscope.analysis.ablation import AblationAccumulator, AblationOptions, ablate_heads
from headscope.analysis.ablation_result import AblationResult
from headscope.analysis.activation_patching import activation_patch
from headscope.analysis.attribution import attribute
from headscope.analysis.attribution_patching import attribution_patch
from headscope.analysis.attribution_patching_result import AttributionPatchingResult
from headscope.analysis.attribution_result import Attribution, NeuronScore
from headscope.analysis.calibration import CalibrationAccumulator, CalibrationOptions, measure_calibration
from headscope.analysis.calibration_result import CalibrationResult
from headscope.analysis.circuit import Circuit, find_circuit
from headscope.analysis.circuit_ranks import RanksCost, circuit_ranks_cost, effective_embedding, weights_circuit_ranks
from headscope.analysis.circuit_ranks_result import CircuitRanks
from headscope.analysis.copy_suppression import SuppressionAccumulator, copy_suppression_preserving_ablation
from headscope.analysis.copy_suppression_result import CopySuppression
from headscope.analysis.copy_suppression_runs import SuppressionOptions
from headscope.analysis.dynamic_ov import DynamicOV, dynamic_ov
from headscope.analysis.entropy import EntropyAccumulator, EntropyOptions, measure_entropy
from headscope.analysis.entropy_result import EntropyResult
from headscope.analysis.head_evidence import copying_scores
from headscope.analysis.head_scores import HeadScores, head_scores
from headscope.analysis.head_types import detect_heads
from headscope.analysis.head_types_result import HeadTypes
from headscope.analysis.ioi import (
    IOIMetric,
    generate_data_and_caches,
    ioi_logit_difference,
    ioi_metric_denoising,
    ioi_metric_noising,
)
from headscope.analysis.lens import LogitLensResult, logit_lens
from headscope.analysis.loss import NextTokens, next_token_loss, predict_next_tokens
from headscope.analysis.patch_metrics import AnswerMetric, last_position, reads
from headscope.analysis.patching_result import PatchingResult
from headscope.analysis.path_patching import path_patch, path_patch_sweep
from headscope.analysis.path_patching_result import PathPatchingResult
from headscope.analysis.positions import Position, TokenMean, token_means, top_positions
from headscope.analysis.prompt import PromptTest, test_prompt
from headscope.analysis.result import HeadScore, Ranking, RunInfo
from headscope.analysis.suppression_scores import SuppressionScores, suppression_scores
from headscope.analysis.svd import SVDInterpreter
from headscope.analysis.task import Task, logit_difference

__all__ = [
    "AblationAccumulator",
    "AblationOptions",
    "AblationResult",
    "AnswerMetric",
    "Attribution",
    "AttributionPatchingResult",
    "CalibrationAccumulator",
    "CalibrationOptions",
    "CalibrationResult",
    "CircuitRanks",
    "CopySuppression",
    "DynamicOV",
    "EntropyAccumulator",
    "EntropyOptions",
    "EntropyResult",
    "HeadScore",
    "HeadScores",
    "IOIMetric",
    "LogitLensResult",
    "NeuronScore",
    "PathPatchingResult",
    "PatchingResult",
    "Position",
    "PromptTest",
    "Ranking",
    "RunInfo",
    "RanksCost",
    "SVDInterpreter",
    "SuppressionAccumulator",
    "SuppressionOptions",
    "SuppressionScores",
    "Task",
    "TokenMean",
    "NextTokens",
    "ablate_heads",
    "activation_patch",
    "attribute",
    "attribution_patch",
    "circuit_ranks_cost",
    "copy_suppression_preserving_ablation",
    "dynamic_ov",
    "effective_embedding",
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
    "reads",
    "suppression_scores",
    "test_prompt",
    "token_means",
    "top_positions",
    "weights_circuit_ranks",
    "detect_heads",
    "HeadTypes",
    "find_circuit",
    "Circuit",
    "copying_scores",
]
