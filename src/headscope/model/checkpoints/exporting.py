"""Saving: `save_pretrained` in our own layout, and `to_hf`, the inverse of `from_hf`."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.families import FAMILIES, FIELD, Saved
from headscope.model.checkpoints.families.field import NOT_SAVED
from headscope.model.checkpoints.files import write_bytes, write_tensors
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.attention import FIELD_BUFFERS
from headscope.model.protocols import Model

__all__ = ["save_pretrained", "to_hf"]


def save_pretrained(model: Model, folder: str | Path) -> Path:
    """Write a model to a new folder, from which `from_pretrained` makes it again to the bit.

    The folder has `config.json` with the fields of the config and the weight processing that was done,
    `model.safetensors` with the weights under their names here, and the tokenizer's files if there is one. It appears
    whole or not at all.

    Args:
        model: The model to save.
        folder: Where to; it must not exist yet, or be empty.

    Returns:
        The folder.

    Raises:
        InvalidInputError: If the folder has something in it, or is a file.
        CheckpointError: For a model with parameters that its config does not say, or of several dtypes.
        OSError: If it cannot be written, as on a full disk; nothing is left of it then.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidInputError(f"{str(folder)!r} exists and is not an empty folder: choose another, or remove it.")
    weights = _weights(model)
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        raise CheckpointError(f"the weights are of several dtypes, {names}: convert them with model.to(dtype) first.")
    fields = {
        field.name: getattr(model.cfg, field.name)
        for field in dataclasses.fields(HookedTransformerConfig)
        if field.name not in NOT_SAVED
    }
    fields["dtype"] = str(dtypes.pop()).removeprefix("torch.")
    if model.tokenizer is None:
        fields["tokenizer_name"] = None  # else loading would go and look for it
    kept = Saved(model.weight_processing, model.default_padding_side, model.n_params_checkpoint)
    entries = {**fields, **kept.entries()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".headscope-", dir=folder.parent) as temporary:
        stage = Path(temporary) / "model"
        write_tensors(stage / "model.safetensors", weights, {"format": "pt"})
        write_bytes(stage / "config.json", (json.dumps(entries, indent=2) + "\n").encode())
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(stage)
        if folder.exists():
            folder.rmdir()
        stage.rename(folder)
    return folder


def _weights(model: Model) -> dict[str, Tensor]:
    """Return a model's state, and check that it is what its config says."""
    buffers = tuple(f".attn.{name}" for name in FIELD_BUFFERS)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(buffers)}
    untied = dataclasses.replace(model.cfg, tie_word_embeddings=False)
    expected = {name for names, _ in FIELD.rows(untied, {}) for name in names}
    wrong = sorted(weights.keys() ^ expected)
    if wrong:
        raise CheckpointError(
            f"the model cannot be saved with its config alone: these parameters are not those the config "
            f"describes: {', '.join(wrong[:5])}. Remove what was added to it, or save its state dict instead.",
            code="HS-CHECKPOINT-12",
        )
    return weights


def to_hf(model: Model) -> Any:
    """Convert to an equivalent `transformers` model in evaluation mode, with its own copy of the weights.

    Raises:
        CheckpointError: If no Hugging Face class can express the model: its family is unknown, or its weights are
            processed in a way that the class cannot hold.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    by_class = {family.architecture: family for family in FAMILIES.values()}
    architecture = model.cfg.original_architecture
    if architecture not in by_class:
        raise CheckpointError(
            f"a model with original_architecture = {architecture!r} has no known Hugging Face class. "
            f"Supported: {', '.join(sorted(by_class))}; set it in the config if the model is one of these.",
            code="HS-CHECKPOINT-12",
        )
    fields, tensors = by_class[architecture].export(model.cfg, model.state_dict())
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {name: None if model.tokenizer is None else getattr(model.tokenizer, name) for name in special}
    config = AutoConfig.for_model(**{**tokens, **fields})
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    hf_model, loading_info = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=own,
        dtype=model.cfg.dtype,
        output_loading_info=True,
    )
    wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in loading_info[kind]]
    if wrong:
        raise CheckpointError(f"{architecture} in transformers has other tensors: {', '.join(map(str, wrong[:5]))}.")
    return hf_model.to(model.input_device).eval()
