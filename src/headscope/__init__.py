"""headscope: mechanistic interpretability of transformer language models, attention heads first."""

import importlib
from typing import TYPE_CHECKING, Any

from headscope.data.sample import training_dataset
from headscope.model.activations.cache import ActivationCache
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookedRootModule, HookPoint
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCache, HookedTransformerKeyValueCacheEntry
from headscope.model.transformer import HookedTransformer
from headscope.ops.factored import FactoredMatrix

if TYPE_CHECKING:
    from headscope import evals, head_detector, patching, utils
    from headscope.compat.svd import SVDInterpreter

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

# Loaded when first asked for: with them come all analyses, which take as long to import as the rest.
_LATER = {
    "SVDInterpreter": "headscope.compat.svd",
    "evals": "headscope.evals",
    "head_detector": "headscope.head_detector",
    "patching": "headscope.patching",
    "utils": "headscope.utils",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _LATER[name]
    module = importlib.import_module(home)
    return module if home == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
