"""Table of the names of TransformerLens and CircuitsVis, each with its home here, for the alias and for migration.

A row is a module path of theirs and what it offers, by our module: names separated by spaces (`Theirs=Ours` where they
differ), or `*` for all that our module has. A row also offers the rows one level below it, as submodules.
"""

import importlib
from dataclasses import dataclass

__all__ = ["MODULES", "ROOTS", "Home", "home_of", "offered", "submodules", "whole_home", "why_not"]

ROOTS = ("transformer_lens", "circuitsvis")

_CACHES = {
    "headscope": "HookedTransformerKeyValueCache HookedTransformerKeyValueCacheEntry "
    "TransformerLensKeyValueCache=HookedTransformerKeyValueCache "
    "TransformerLensKeyValueCacheEntry=HookedTransformerKeyValueCacheEntry"
}
_CONFIG = {"headscope": "HookedTransformerConfig"}
_LOADING = {"headscope.compat.loading": "*"}
_UTILS = {"headscope.utils": "*"}
_ATTENTION = {"headscope.model.parts.attention": "AbstractAttention=Attention Attention GroupedQueryAttention"}
_LAYERS = "Embed GatedMLP LayerNorm LayerNormPre MLP PosEmbed RMSNorm RMSNormPre Unembed"


def _layer(name: str) -> dict[str, str]:
    return {"headscope.model.parts.layers": name}


MODULES: dict[str, dict[str, str]] = {
    "transformer_lens": {
        "headscope": "ActivationCache FactoredMatrix HookPoint HookedRootModule HookedTransformer "
        "HookedTransformerConfig SVDInterpreter " + _CACHES["headscope"],
    },
    "transformer_lens.ActivationCache": {"headscope": "ActivationCache"},
    "transformer_lens.FactoredMatrix": {"headscope": "FactoredMatrix"},
    "transformer_lens.HookedRootModule": {"headscope": "HookedRootModule"},
    "transformer_lens.HookedTransformer": {
        "headscope": "ActivationCache FactoredMatrix HookPoint HookedRootModule HookedTransformer "
        "HookedTransformerConfig",
        "headscope.model.transformer": "Output",
        "headscope.ops.losses": "Loss LossPerToken SingleLoss",
    },
    "transformer_lens.HookedTransformerConfig": _CONFIG,
    "transformer_lens.SVDInterpreter": {
        "headscope": "SVDInterpreter",
        "headscope.compat.svd": "OUTPUT_EMBEDDING VECTOR_TYPES",
    },
    "transformer_lens.cache": {},
    "transformer_lens.cache.key_value_cache": _CACHES,
    "transformer_lens.cache.key_value_cache_entry": _CACHES,
    "transformer_lens.components": {
        "headscope.model.parts.layers": _LAYERS,
        **_ATTENTION,
        "headscope.model.parts.experts": "MoE",
        "headscope.model.block": "TransformerBlock",
    },
    "transformer_lens.components.abstract_attention": _ATTENTION,
    "transformer_lens.components.attention": _ATTENTION,
    "transformer_lens.components.embed": _layer("Embed"),
    "transformer_lens.components.grouped_query_attention": _ATTENTION,
    "transformer_lens.components.layer_norm": _layer("LayerNorm"),
    "transformer_lens.components.layer_norm_pre": _layer("LayerNormPre"),
    "transformer_lens.components.mlps": {},
    "transformer_lens.components.mlps.can_be_used_as_mlp": {"headscope.model.parts.layers": "CanBeUsedAsMLP=MLP"},
    "transformer_lens.components.mlps.gated_mlp": _layer("GatedMLP"),
    "transformer_lens.components.mlps.mlp": _layer("MLP"),
    "transformer_lens.components.mlps.moe": {"headscope.model.parts.experts": "MoE"},
    "transformer_lens.components.pos_embed": _layer("PosEmbed"),
    "transformer_lens.components.rms_norm": _layer("RMSNorm"),
    "transformer_lens.components.rms_norm_pre": _layer("RMSNormPre"),
    "transformer_lens.components.transformer_block": {"headscope.model.block": "TransformerBlock"},
    "transformer_lens.components.unembed": _layer("Unembed"),
    "transformer_lens.config": _CONFIG,
    "transformer_lens.config.hooked_transformer_config": _CONFIG,
    "transformer_lens.evals": {"headscope.evals": "*"},
    "transformer_lens.head_detector": {"headscope.head_detector": "*"},
    "transformer_lens.hook_points": {
        "headscope": "HookPoint HookedRootModule",
        "headscope.model.hooks": "HookFunction LensHandle NamesFilter",
    },
    "transformer_lens.loading": _LOADING,
    "transformer_lens.loading_from_pretrained": _LOADING,
    "transformer_lens.past_key_value_caching": _CACHES,
    "transformer_lens.patching": {"headscope.patching": "*"},
    "transformer_lens.supported_models": {
        "headscope.compat.loading": "DEFAULT_MODEL_ALIASES MODEL_ALIASES OFFICIAL_MODEL_NAMES"
    },
    "transformer_lens.train": {"headscope.training.epochs": "*"},
    "transformer_lens.utils": _UTILS,
    "transformer_lens.utilities": _UTILS,
    **{
        f"transformer_lens.utilities.{name}": _UTILS
        for name in (
            "activation_functions", "attribute_utils", "components_utils", "defaults_utils", "devices",
            "exploratory_utils", "gpu_utils", "hf_utils", "initialization_utils", "lm_utils", "logits_utils",
            "matrix", "slice", "tensors", "tokenize_utils",
        )
    },
    "circuitsvis": {"headscope.views": "*"},
    **{
        f"circuitsvis.{name}": {f"headscope.views.{name}": "*"}
        for name in ("activations", "attention", "examples", "logits", "tokens", "topk_samples", "topk_tokens")
    },
}  # fmt: skip

_DECODERS = "only decoder-only models are supported"
_NO_BRIDGE = "the alias stands for HookedTransformer; there is no TransformerBridge"
# Why something is left out, for it and for all below it.
_LEFT_OUT = {
    "transformer_lens.BertNextSentencePrediction": _DECODERS,
    "transformer_lens.HookedAudioEncoder": _DECODERS,
    "transformer_lens.HookedEncoder": _DECODERS,
    "transformer_lens.HookedEncoderDecoder": _DECODERS,
    "transformer_lens.TransformerBridgeConfig": _NO_BRIDGE,
    "transformer_lens.config.TransformerBridgeConfig": _NO_BRIDGE,
    "transformer_lens.model_bridge": _NO_BRIDGE,
    "transformer_lens.evals.mmlu_eval": "MMLU is not among its evaluations",
    "transformer_lens.tools.analysis.direct_path_patching": "see headscope.analysis.path_patch",
    **{
        f"transformer_lens.head_detector.{name}_ERR": "the errors of headscope.errors say more"
        for name in ("CACHE_WITH_SEQ_LIST", "DET_PAT_NOT_SQUARE", "INVALID_HEAD_NAME", "SEQ_LEN")
    },
    "transformer_lens.weight_processing": "see headscope.model.weights.processing",
    "transformer_lens.utilities.hf_utils.clear_huggingface_cache": "it deletes every model on the machine",
}


@dataclass(frozen=True)
class Home:
    """A name of ours, and the module to import it from."""

    module: str
    name: str


def submodules(path: str) -> list[str]:
    """List the submodules that a module of theirs has here, by their last names."""
    return [row.rpartition(".")[2] for row in MODULES if row.rpartition(".")[0] == path]


def home_of(path: str, name: str) -> Home | None:
    """Find a name in a module of theirs; None where headscope has no such name.

    Example:
        >>> home_of("transformer_lens.components.mlps.mlp", "MLP")
        Home(module='headscope.model.parts.layers', name='MLP')
    """
    for module, names in MODULES.get(path, {}).items():
        if names == "*":
            if name in importlib.import_module(module).__all__:
                return Home(module, name)
            continue
        ours = {theirs: own or theirs for theirs, _, own in (each.partition("=") for each in names.split())}
        if name in ours:
            return Home(module, ours[name])
    return None


def offered(path: str) -> list[str]:
    """List the names and the submodules of a module of theirs."""
    names = set(submodules(path))
    for module, listed in MODULES[path].items():
        if listed == "*":
            names.update(importlib.import_module(module).__all__)
        else:
            names.update(each.partition("=")[0] for each in listed.split())
    return sorted(names)


def whole_home(path: str) -> str | None:
    """Return our module that has all a module of theirs offers, under the same names; None if no one module does.

    Example:
        >>> whole_home("transformer_lens.utils"), whole_home("transformer_lens.components")
        ('headscope.utils', None)
    """
    homes = MODULES.get(path, {})
    if len(homes) != 1 or any("=" in names for names in homes.values()):
        return None
    return next(iter(homes))


def why_not(path: str) -> str:
    """Say that a module or name is not supported, and why.

    Example:
        >>> print(why_not("transformer_lens.HookedEncoder"))
        headscope does not support transformer_lens.HookedEncoder: only decoder-only models are supported.
    """
    above = path
    while above and above not in _LEFT_OUT:
        above = above.rpartition(".")[0]
    reason = f": {_LEFT_OUT[above]}" if above else ""
    return f"headscope does not support {path}{reason}."
