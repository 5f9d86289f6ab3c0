"""Export to `transformers`: the inverse of `from_hf`."""

from typing import Any

import torch

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.protocols import Model

__all__ = ["to_hf"]


def to_hf(model: Model) -> Any:
    """Convert to an equivalent `transformers` model in evaluation mode, with its own copy of the weights.

    Raises:
        CheckpointError: If no Hugging Face class can express the model: its family is unknown, or its weights are
            processed in a way that the class cannot hold.
    """
    import transformers
    from transformers import AutoConfig

    by_class = {family.architecture: family for family in FAMILIES.values()}
    architecture = model.cfg.original_architecture
    if architecture not in by_class:
        raise CheckpointError(
            f"a model with original_architecture = {architecture!r} has no known Hugging Face class. "
            f"Supported: {', '.join(sorted(by_class))}; set it in the config if the model is one of these."
        )
    fields, tensors = by_class[architecture].export(model.cfg, model.state_dict())
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    fields |= {name: None if model.tokenizer is None else getattr(model.tokenizer, name) for name in special}
    config = AutoConfig.for_model(**fields)
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    hf_model, loading_info = getattr(transformers, architecture).from_pretrained(
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
