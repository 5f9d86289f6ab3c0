"""Small random models with a tokenizer of their own, in memory and as checkpoints on disk."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope import HookedTransformer, HookedTransformerConfig

STORY = (
    "When Mary and John went to the store, John gave a drink to Mary. Then Mary said thank you to John. "
    "The old dog ran after the ball, and the cat saw the old dog run. "
)


@cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the story above; BOS and EOS are `<|end|>`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([STORY], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>")


def small_model(*, tokenizer: bool = True, **fields: Any) -> HookedTransformer:
    """Two layers of three heads, drawn with a seed; `fields` are the config's."""
    shape = {"n_layers": 2, "d_model": 24, "d_head": 8, "n_ctx": 48, "act_fn": "gelu_new", "normalization_type": "LN"}
    cfg = HookedTransformerConfig(
        **{**shape, "d_vocab": len(small_tokenizer()), "seed": 0, "device": "cpu", "model_name": "small", **fields}
    )
    model = HookedTransformer(cfg, small_tokenizer() if tokenizer else None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def save_checkpoint(directory: Path) -> Path:
    """A random GPT-2 in Hugging Face's layout, with the tokenizer."""
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    cfg = GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(cfg).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
