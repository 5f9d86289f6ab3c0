"""Checks of the exercises in the documentation: each says that an answer is right, or what seems to have gone wrong.

A check computes the right answer with the library, and what usual mistakes give: another position, the norm forgotten,
bits for nats, rows and columns exchanged. `headscope notebooks DIR` writes the exercises as notebooks.
"""

from headscope.exercises.heads import (
    check_ablation,
    check_copying_scores,
    check_induction_scores,
    check_previous_token_head,
)
from headscope.exercises.lens import check_direct_logit_attribution, check_entropy_diff, check_logit_lens
from headscope.exercises.patching import check_activation_patch, check_circuit, check_path_patch
from headscope.exercises.statistics import check_standard_error
from headscope.exercises.toys import check_skip_trigrams
from headscope.exercises.verdict import Verdict

__all__ = [
    "Verdict",
    "check_ablation",
    "check_activation_patch",
    "check_circuit",
    "check_copying_scores",
    "check_direct_logit_attribution",
    "check_entropy_diff",
    "check_induction_scores",
    "check_logit_lens",
    "check_path_patch",
    "check_previous_token_head",
    "check_skip_trigrams",
    "check_standard_error",
]
