"""Model names and configs without weights, for notebooks that ask `loading_from_pretrained` for them."""

from typing import Any

import torch

from headscope.errors import InvalidInputError
from headscope.model.checkpoints.hub import find_checkpoint
from headscope.model.checkpoints.names import DEMO, HUB_IDS, HUB_MODELS, refuse_unsupported, unknown_model
from headscope.model.checkpoints.pipeline import make_config, open_checkpoint
from headscope.model.checkpoints.training import (
    PYTHIA_CHECKPOINTS,
    PYTHIA_V0_CHECKPOINTS,
    STANFORD_CRFM_CHECKPOINTS,
    find_training_checkpoint,
    get_checkpoint_labels,
)
from headscope.model.config import HookedTransformerConfig
from headscope.model.config_checks import keep_first_layers
from headscope.model.weights.processing import folded_norm, inapplicable_processing

__all__ = [
    "DEFAULT_MODEL_ALIASES",
    "MODEL_ALIASES",
    "OFFICIAL_MODEL_NAMES",
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "get_checkpoint_labels",
    "get_official_model_name",
    "get_pretrained_model_config",
]

MODEL_ALIASES: dict[str, list[str]] = {}
for _model in HUB_MODELS:
    MODEL_ALIASES.setdefault(_model.hub_id, []).extend([_model.name, *_model.aliases])
OFFICIAL_MODEL_NAMES = [DEMO, *MODEL_ALIASES]
DEFAULT_MODEL_ALIASES = [MODEL_ALIASES.get(_name, [_name])[0] for _name in OFFICIAL_MODEL_NAMES]
_OFFICIAL = {**HUB_IDS, **{name.lower(): name for name in OFFICIAL_MODEL_NAMES}}


def get_official_model_name(model_name: str) -> str:
    """Return the hub id of a model with a short name, whatever the case of its letters.

    Raises:
        CheckpointError: For a model of a kind that is not supported.
        InvalidInputError: For a name that is in no list here; `HookedTransformer.from_pretrained` also takes any hub
            id and local folder.

    Example:
        >>> get_official_model_name("gpt2-small")
        'openai-community/gpt2'
    """
    official = _OFFICIAL.get(model_name.lower())
    if official is None:
        refuse_unsupported(model_name)
        raise InvalidInputError(unknown_model(model_name).message)
    return official


def get_pretrained_model_config(
    model_name: str,
    hf_cfg: dict[str, Any] | None = None,
    checkpoint_index: int | None = None,
    checkpoint_value: int | None = None,
    fold_ln: bool = False,
    device: torch.device | str | None = None,
    n_devices: int = 1,
    default_prepend_bos: bool | None = None,
    dtype: torch.dtype | str = torch.float32,
    first_n_layers: int | None = None,
    n_ctx: int | None = None,
    **hub: Any,
) -> HookedTransformerConfig:
    """Return the config `HookedTransformer.from_pretrained` would give a model, without reading its weights.

    Args:
        model_name: A short name, a hub id or a local folder.
        hf_cfg: Entries of its `config.json`, to use instead of the file.
        checkpoint_index: Index of the training checkpoint, for the models that have them.
        checkpoint_value: Training step of the checkpoint.
        fold_ln: Say what the config is after folding the norms, where they can be folded.
        device: For the config.
        n_devices: For the config.
        default_prepend_bos: For the config.
        dtype: For the config.
        first_n_layers: Count only the first layers.
        n_ctx: A shorter context.
        hub: For `huggingface_hub.snapshot_download`, such as `revision`.

    Raises:
        InvalidInputError: For a checkpoint, a number of layers or a context the model does not have.

    Example:
        >>> cfg = get_pretrained_model_config("headscope-demo", fold_ln=True)
        >>> cfg.n_layers, cfg.n_heads, cfg.normalization_type
        (5, 4, 'LNPre')
    """
    saved = None
    if checkpoint_index is not None or checkpoint_value is not None:
        saved = find_training_checkpoint(model_name, index=checkpoint_index, label=checkpoint_value, **hub)
        hub |= {} if saved.revision is None else {"revision": saved.revision}
    checkpoint = open_checkpoint(find_checkpoint(model_name, weights=False, **hub))
    cfg = make_config(
        checkpoint.config() if hf_cfg is None else {"_name_or_path": str(checkpoint.path), **hf_cfg},
        str(checkpoint.path),
        model_name=model_name,
        device=device,
        dtype=dtype,
        default_prepend_bos=default_prepend_bos,
        first_n_layers=first_n_layers,
        training=saved,
    )
    keep_first_layers(cfg, first_n_layers or cfg.n_layers)
    cfg.n_devices = n_devices
    if n_ctx is not None:
        if not 1 <= n_ctx <= cfg.n_ctx:
            raise InvalidInputError(f"n_ctx must be between 1 and the checkpoint's {cfg.n_ctx}; got {n_ctx}.")
        cfg.n_ctx = n_ctx
    if fold_ln and not inapplicable_processing(cfg)["fold_ln"]:
        cfg.normalization_type = folded_norm(cfg)
    if checkpoint.has_tokenizer():
        cfg.tokenizer_name = model_name
    return cfg
