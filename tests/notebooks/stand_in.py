"""What the notebooks have at home and a fresh machine has not: GPT-2 in the Hugging Face cache, web text, Jupyter.

The model is random, with GPT-2 small's layers, heads and context, so that head 10.7 exists; only its widths and its
vocabulary are small. Its tokenizer is trained on the small English, with the names the notebooks use in it often
enough to be one token each.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import plotly.io as pio
import torch
from plotly.io.base_renderers import ExternalRenderer
from transformers import GPT2Config, GPT2LMHeadModel

from headscope import HookedTransformer
from headscope.data import documents
from headscope.data.ioi.words import NAMES, NOUNS
from headscope.training.tokenizer import train_tokenizer

__all__ = ["FIGURES", "Figures", "clear_output", "display", "local_rows", "local_webtext", "save_gpt2"]

_NAMES = ("Amy", "Dan", "James", "John", "Martin", "Mary", "Sid", "Tom")
_N_CTX, _N_VOCAB = 1024, 1000
_COMMIT = "0" * 40
FIGURES = "checked"  # the name of the renderer below


def save_gpt2(cache: Path) -> None:
    """Put the stand-in where Hugging Face's client would have stored `openai-community/gpt2`."""
    root = cache / "models--openai-community--gpt2"
    snapshot = root / "snapshots" / _COMMIT
    # Names, and the words that go with them in prompts, are single tokens, as they are in GPT-2.
    words = [*_NAMES, *NAMES[:20], *(word for nouns in NOUNS.values() for word in nouns)]
    texts = [*documents(seed=0, n=40), *(f" {word} and {word} gave {word}" for word in words for _ in range(60))]
    train_tokenizer(texts, snapshot, vocab_size=_N_VOCAB, n_ctx=_N_CTX)
    torch.manual_seed(0)
    cfg = GPT2Config(
        vocab_size=_N_VOCAB, n_positions=_N_CTX, n_ctx=_N_CTX, n_embd=48, n_layer=12, n_head=12,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(cfg).save_pretrained(snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(_COMMIT)


def local_webtext(seed: int = 420) -> list[str]:
    """Documents of the small English, each a few hundred tokens long, in the place of OpenWebText's."""
    drawn = documents(seed)
    return ["\n\n".join(islice(drawn, 4)) for _ in range(60)]


def local_rows(model: HookedTransformer, n: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Rows of tokens as a tokenized dataset gives them."""
    return [{"tokens": model.to_tokens(text)[0, :length]} for text in local_webtext()[:n]]


class Figures(ExternalRenderer):
    """Turns each figure into JSON, which checks it, and opens nothing."""

    def render(self, fig_dict: dict[str, Any]) -> None:
        pio.to_json(fig_dict, validate=True)


def display(*values: Any, **_: Any) -> None:
    """Show values as Jupyter would, as far as their own code is run."""
    for value in values:
        if callable(getattr(value, "_ipython_display_", None)):
            value._ipython_display_()
        elif callable(getattr(value, "_repr_html_", None)):
            print(value._repr_html_())
        else:
            print(repr(value))


def clear_output(wait: bool = False) -> None:
    """Stand in for IPython's, which has nothing to clear here."""
