"""headscope: mechanistic interpretability of transformer language models, attention heads first."""

from headscope import evals, head_detector, patching, utils
from headscope.compat.svd import SVDInterpreter
from headscope.data.sample import training_dataset
from headscope.model.activations.cache import ActivationCache
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookedRootModule, HookPoint
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCache, HookedTransformerKeyValueCacheEntry
from headscope.model.transformer import HookedTransformer
from headscope.ops.factored import FactoredMatrix

# The model does not know the texts in `headscope.data`; here, where both are seen, it is told where its own come from.
HookedTransformer.training_dataset = training_dataset

__version__ = "0.1.0"
__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "HookedTransformerKeyValueCacheEntry",
    "SVDInterpreter",
    "evals",
    "head_detector",
    "patching",
    "utils",
]
