"""Tiny random models and tokenizers for the tests."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from headscope import HookedTransformer, HookedTransformerConfig

SENTENCES = (
    "When Mary and John went to the store, John gave a book to Mary.",
    "Then Mary and John walked home, and it rained, and it rained.",
)


def tiny_config(**fields: Any) -> HookedTransformerConfig:
    """Two layers of three heads that do not fill the residual stream, in float64 unless told otherwise."""
    defaults: dict[str, Any] = {
        "n_layers": 2, "d_model": 10, "n_ctx": 12, "d_head": 4, "n_heads": 3, "d_mlp": 14, "d_vocab": 23,
        "act_fn": "gelu_new", "dtype": torch.float64, "seed": 0, "device": "cpu",
    }  # fmt: skip
    return HookedTransformerConfig(**{**defaults, **fields})


def randomize(model: torch.nn.Module, *, spread: float = 0.4, seed: int = 0) -> None:
    """Give every parameter random values, biases and norm weights too, so that none can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = spread * torch.randn(parameter.shape, generator=generator)
            one = name.rsplit(".", 1)[-1] == "w" or (".ln_" in name and name.endswith("weight"))
            parameter.copy_(values + 1.0 if one else values)


def tiny_model(tokenizer: Any = None, *, spread: float = 0.4, **fields: Any) -> HookedTransformer:
    """A model of `tiny_config` whose every parameter is random."""
    model = HookedTransformer(tiny_config(**fields), tokenizer)
    randomize(model, spread=spread)
    return model


def tiny_tokens(batch: int = 2, length: int = 7, *, d_vocab: int = 23, seed: int = 1) -> Tensor:
    """Random tokens."""
    return torch.randint(0, d_vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer(*, adds_bos: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on two sentences; `adds_bos` gives it a post-processor that prepends `<bos>`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*SENTENCES] * 3, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, verbose=False, **special)
