"""Names notebooks look for under `utils`; each is defined where it belongs and only re-exported here."""

from headscope.analysis.prompt import test_prompt
from headscope.data.packing import tokenize_and_concatenate
from headscope.model.names import get_act_name
from headscope.ops.indexing import Slice
from headscope.ops.losses import lm_accuracy, lm_cross_entropy_loss

__all__ = [
    "Slice",
    "get_act_name",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "test_prompt",
    "tokenize_and_concatenate",
]
