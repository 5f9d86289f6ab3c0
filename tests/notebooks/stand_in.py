"""What the notebooks have at home and a fresh machine has not: GPT-2 in the Hugging Face cache, web text, Jupyter.

The model is random, with GPT-2 small's layers, heads and context, so that head 10.7 exists; only its widths and its
vocabulary are small. Its tokenizer is trained on the small English, with the names the notebooks use in it often
enough to be one token each.
"""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.io as pio
import torch
from plotly.io.base_renderers import ExternalRenderer
from transformers import GPT2Config, GPT2LMHeadModel

from headscope import HookedTransformer
from headscope.data import documents, ioi_prompts
from headscope.training.tokenizer import train_tokenizer

__all__ = ["FIGURES", "Figures", "clear_output", "display", "local_ioi", "local_rows", "local_webtext", "save_gpt2"]

_NAMES = ("Amy", "Dan", "James", "John", "Martin", "Mary", "Sid", "Tom")
_N_CTX = 1024
_COMMIT = "0" * 40
FIGURES = "checked"  # the name of the renderer below


def save_gpt2(cache: Path) -> None:
    """Put the stand-in where Hugging Face's client would have stored `openai-community/gpt2`."""
    root = cache / "models--openai-community--gpt2"
    snapshot = root / "snapshots" / _COMMIT
    texts = [*documents(seed=0, n=40), *(f" {name} and {name} gave {name}" for name in _NAMES for _ in range(60))]
    train_tokenizer(texts, snapshot, vocab_size=420, n_ctx=_N_CTX)
    torch.manual_seed(0)
    cfg = GPT2Config(
        vocab_size=420, n_positions=_N_CTX, n_embd=48, n_layer=12, n_head=12, n_inner=96,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(cfg).save_pretrained(snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(_COMMIT)


def local_webtext(seed: int = 420) -> list[str]:
    """Documents of the small English, each a few hundred tokens long, in the place of OpenWebText's."""
    drawn = documents(seed)
    return ["\n\n".join(islice(drawn, 2)) for _ in range(60)]


def local_rows(model: HookedTransformer, n: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Rows of tokens as a tokenized dataset gives them."""
    return [{"tokens": model.to_tokens(text)[0, :length]} for text in local_webtext()[:n]]


def local_ioi(model: HookedTransformer, n: int) -> SimpleNamespace:
    """The part of an IOI dataset that the entropy notebooks use: `toks`."""
    return SimpleNamespace(toks=model.to_tokens([drawn.prompt for drawn in ioi_prompts(n, seed=0)]))


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
