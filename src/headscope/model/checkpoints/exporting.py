"""From our model back to `transformers`: the inverse of `from_hf`."""

from typing import Any

import torch

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.protocols import Model

__all__ = ["to_hf"]


def to_hf(model: Model) -> Any:
    """The same model as a `transformers` one, in evaluation mode, with weights of its own.

    Raises:
        CheckpointError: if no Hugging Face class is that model: its family is unknown, or its weights are processed in
            a way that class has no place for.
    """
    import transformers
    from transformers import AutoConfig

    by_class = {family.architecture: family for family in FAMILIES.values()}
    architecture = model.cfg.original_architecture
    if architecture not in by_class:
        raise CheckpointError(
            f"a model with original_architecture = {architecture!r} has no Hugging Face class to become. "
            f"Supported: {', '.join(sorted(by_class))}; set it in the config if the model is one of these."
        )
    fields, tensors = by_class[architecture].export(model.cfg, model.state_dict())
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    fields |= {name: None if model.tokenizer is None else getattr(model.tokenizer, name) for name in special}
    config = AutoConfig.for_model(**fields)
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    hf_model, told = getattr(transformers, architecture).from_pretrained(
        None,
        config=config,
        state_dict=own,
        dtype=model.cfg.dtype,
        output_loading_info=True,
    )
    wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in told[kind]]
    if wrong:
        raise CheckpointError(f"{architecture} in transformers has other tensors: {', '.join(map(str, wrong[:5]))}.")
    return hf_model.to(model.input_device).eval()
