"""headscope: mechanistic interpretability of transformer language models, attention heads first."""

from headscope.model.cache import ActivationCache
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookedRootModule, HookPoint
from headscope.model.key_value_cache import HookedTransformerKeyValueCache, HookedTransformerKeyValueCacheEntry
from headscope.model.transformer import HookedTransformer
from headscope.ops.factored import FactoredMatrix

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
]
