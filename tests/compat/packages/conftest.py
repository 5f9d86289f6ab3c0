"""A small model with a tokenizer, and headscope under the name of TransformerLens."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.compat import install
from headscope.differences import DifferenceWarning

WORDS = ("Mary", "and", "John", "went", "to", "the", "shop", "store", "gave", "a", "drink", "book")


@pytest.fixture(scope="session")
def alias() -> None:
    install()


@pytest.fixture(autouse=True)
def _differences_may_be_told() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DifferenceWarning)
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word. Special tokens come last: circuit-tracer takes a BOS token with the id 0 for none."""
    vocab = {word: token for token, word in enumerate([*WORDS, "[UNK]", "<bos>", "<eos>", "<pad>"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the native layout."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=32, d_head=8, d_mlp=48, act_fn="gelu_new", initializer_range=0.3, seed=1,
        d_vocab=len(tokenizer), model_name="tiny", original_architecture="GPT2LMHeadModel", device="cpu",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "tiny"
    HookedTransformer(cfg, tokenizer).save_pretrained(path)
    return path
