"""Scores of heads against attention patterns, where notebooks look for them; see `headscope.analysis.head_detector`."""

from headscope.analysis.head_detector import (
    HEAD_NAMES,
    ErrorMeasure,
    HeadName,
    LayerHeadTuple,
    LayerToHead,
    compute_head_attention_similarity_score,
    detect_head,
    get_duplicate_token_head_detection_pattern,
    get_induction_head_detection_pattern,
    get_previous_token_head_detection_pattern,
    get_supported_heads,
)
from headscope.ops.shapes import is_lower_triangular, is_square

__all__ = [
    "HEAD_NAMES",
    "ErrorMeasure",
    "HeadName",
    "LayerHeadTuple",
    "LayerToHead",
    "compute_head_attention_similarity_score",
    "detect_head",
    "get_duplicate_token_head_detection_pattern",
    "get_induction_head_detection_pattern",
    "get_previous_token_head_detection_pattern",
    "get_supported_heads",
    "is_lower_triangular",
    "is_square",
]
