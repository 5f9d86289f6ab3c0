"""Rough numbers to compare models by: the loss on small public data sets, induction, indirect objects.

They run on the model's own device, with random draws under seeds of their own. Losses are in nats.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from headscope.compat.ioi_eval import IOIDataset, ioi_eval, tokenizer_of
from headscope.data.packing import tokenize_and_concatenate
from headscope.data.protocols import Tokenizer
from headscope.data.random_tokens import repeated_random_tokens
from headscope.data.text import hf_dataset_texts
from headscope.differences import tell
from headscope.errors import InvalidInputError, check_at_least
from headscope.model.text.tokens import begin_token
from headscope.model.transformer import HookedTransformer

__all__ = [
    "DATASET_LOADERS",
    "DATASET_NAMES",
    "IOIDataset",
    "evaluate",
    "evaluate_on_dataset",
    "induction_loss",
    "ioi_eval",
    "make_code_data_loader",
    "make_owt_data_loader",
    "make_pile_data_loader",
    "make_wiki_data_loader",
    "sanity_check",
]

Rows = DataLoader[dict[str, Tensor]]

_PLAIN_TEXT = (
    "For a long time nobody knew how deep the lake was. Fishermen said that it had no bottom, and children believed "
    "them. Then, one winter, a teacher walked out on the ice with a rope and a stone, and by the evening the whole "
    "town knew the number. It was smaller than anyone had guessed, and people were a little sorry to have learned it."
)


@torch.no_grad()
def sanity_check(model: HookedTransformer) -> Float[Tensor, ""]:
    """Return the loss on a paragraph of English: a few nats for a model of English, some log(d_vocab) for a broken one.

    Example:
        >>> from headscope import HookedTransformer
        >>> loss = sanity_check(HookedTransformer.from_pretrained("headscope-demo"))
        >>> print(f"{loss:.1f} nats")  # most of these words are not in its small English
        7.4 nats
    """
    return model(_PLAIN_TEXT, return_type="loss")


# Text


def _loader(texts: Iterable[str], tokenizer: Tokenizer, batch_size: int, max_length: int, seed: int) -> Rows:
    add_bos = tokenizer.bos_token_id is not None
    batches = tokenize_and_concatenate(texts, tokenizer, max_length=max_length, batch_size=64, add_bos_token=add_bos)
    rows: Any = [{"tokens": row} for batch in batches for row in batch]
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=True, generator=generator)


def make_wiki_data_loader(tokenizer: Tokenizer, batch_size: int = 8, *, max_length: int = 1024, seed: int = 0) -> Rows:
    """Load Wikitext-2 in packed rows: batches `{"tokens": [batch, pos]}`, shuffled, each with `batch_size` rows.

    Documents are joined with EOS between them, and each row begins with BOS where the tokenizer has one. The split is
    the largest, for training.

    Args:
        tokenizer: A Hugging Face tokenizer.
        batch_size: Rows per batch; rows that fill no batch are left out.
        max_length: Tokens per row.
        seed: Seed of the shuffle.

    Raises:
        MissingDependencyError: If the package `datasets` is not installed: `pip install 'headscope[hf-datasets]'`.
        InvalidInputError: If the data set cannot be loaded.
    """
    texts = hf_dataset_texts("wikitext", config="wikitext-2-v1")
    return _loader(texts, tokenizer, batch_size, max_length, seed)


def make_owt_data_loader(tokenizer: Tokenizer, batch_size: int = 8, *, max_length: int = 1024, seed: int = 0) -> Rows:
    """Load ten thousand documents of OpenWebText, GPT-2's training text made again; see `make_wiki_data_loader`."""
    return _loader(hf_dataset_texts("stas/openwebtext-10k"), tokenizer, batch_size, max_length, seed)


def make_pile_data_loader(tokenizer: Tokenizer, batch_size: int = 8, *, max_length: int = 1024, seed: int = 0) -> Rows:
    """Load ten thousand documents of the Pile, many kinds of English; see `make_wiki_data_loader`."""
    return _loader(hf_dataset_texts("NeelNanda/pile-10k"), tokenizer, batch_size, max_length, seed)


def make_code_data_loader(tokenizer: Tokenizer, batch_size: int = 8, *, max_length: int = 1024, seed: int = 0) -> Rows:
    """Load Python files (CodeParrot's validation split), easy even for models of text; see `make_wiki_data_loader`."""
    texts = hf_dataset_texts("codeparrot/codeparrot-valid-v2-near-dedup", column="content")
    return _loader(texts, tokenizer, batch_size, max_length, seed)


DATASET_NAMES = ["wiki", "owt", "pile", "code"]
DATASET_LOADERS: list[Callable[..., Rows]] = [
    make_wiki_data_loader,
    make_owt_data_loader,
    make_pile_data_loader,
    make_code_data_loader,
]


@torch.no_grad()
def evaluate_on_dataset(
    model: HookedTransformer,
    data_loader: Iterable[Mapping[str, Tensor]],
    truncate: int = 100,
    device: torch.device | str | None = None,
    *,
    progress: bool = True,
) -> float:
    """Return the mean loss of the first `truncate` batches.

    Args:
        model: The model.
        data_loader: Batches with tokens `[batch, pos]` under `"tokens"`.
        truncate: Maximum number of batches.
        device: Device of the tokens; the model's by default.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: If there is no batch, or `truncate` is below 1.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("When Mary and John went to the store, John gave a drink to Mary.")
        >>> round(evaluate_on_dataset(model, [{"tokens": tokens}], progress=False), 1)
        1.9
    """
    check_at_least(1, truncate=truncate)
    tell("truncate")
    losses: list[float] = []
    with tqdm(total=truncate, desc="loss", unit="batch", disable=not progress, leave=False) as bar:
        for batch in islice(data_loader, truncate):
            tokens = batch["tokens"].to(model.W_E.device if device is None else device)
            losses.append(model(tokens, return_type="loss").item())
            bar.update()
    if not losses:
        raise InvalidInputError("data_loader has no batch: give more text, or a smaller batch_size.")
    return sum(losses) / len(losses)


def evaluate(
    model: HookedTransformer, truncate: int = 100, batch_size: int = 8, tokenizer: Any = None
) -> dict[str, float]:
    """Return the mean loss on Wikipedia, OpenWebText, the Pile and Python: `{"wiki_loss": ..., "owt_loss": ..., ...}`.

    Args:
        model: The model.
        truncate: Batches of each data set.
        batch_size: Rows of `n_ctx` tokens (1,024 at most) per batch.
        tokenizer: The model's by default.

    Raises:
        MissingTokenizerError: If there is no tokenizer.
        MissingDependencyError: If the package `datasets` is not installed: `pip install 'headscope[hf-datasets]'`.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    max_length = min(1024, model.cfg.n_ctx)
    losses = {}
    for name, make_loader in zip(DATASET_NAMES, DATASET_LOADERS, strict=True):
        loader = make_loader(tokenizer, batch_size, max_length=max_length)
        losses[f"{name}_loss"] = evaluate_on_dataset(model, loader, truncate=truncate)
    return losses


# Induction


@torch.no_grad()
def induction_loss(
    model: HookedTransformer,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int | None = None,
    prepend_bos: bool | None = None,
    device: torch.device | str | None = None,
    *,
    seed: int = 0,
) -> Float[Tensor, ""]:
    """Return the loss on the second half of repeated random tokens: far below log(d_vocab) only with induction heads.

    Args:
        model: The model.
        tokenizer: Its BOS begins a row, and its special tokens are not drawn; the model's by default.
        batch_size: Rows.
        subseq_len: Tokens in a half; default 384, or half the context if that is less.
        prepend_bos: Put BOS in the place of the first token; default `cfg.default_prepend_bos`.
        device: Device of the tokens; the model's by default.
        seed: Seed of the tokens. They are drawn from 100 to 19,999, or from a smaller vocabulary's all.

    Returns:
        The mean over the tokens whose predecessor was seen before, in nats.

    Raises:
        MissingTokenizerError: If BOS is asked for and there is no tokenizer.
        InvalidInputError: If two halves do not fit in the context, or are too short to predict anything.

    Example:
        >>> from headscope import HookedTransformer
        >>> print(f"{induction_loss(HookedTransformer.from_pretrained('headscope-demo'), subseq_len=50):.2f}")
        0.24
    """
    tell("induction tokens")
    n_ctx = model.cfg.n_ctx
    if subseq_len is None:
        subseq_len = min(384, n_ctx // 2)
    if not 3 <= subseq_len <= n_ctx // 2:
        raise InvalidInputError(
            f"subseq_len must be from 3 to n_ctx // 2 = {n_ctx // 2}, so that both halves fit; got {subseq_len}."
        )
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    prepend_bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    tokens = repeated_random_tokens(batch_size, subseq_len, allowed=_ordinary_tokens(model, tokenizer), seed=seed)
    if prepend_bos:
        tokens[:, 0] = begin_token(tokenizer)
    tokens = tokens.to(model.W_E.device if device is None else device)
    loss = model(tokens, return_type="loss", loss_per_token=True)
    # The second half begins with a token whose first copy BOS may have replaced: count what follows the next one.
    return loss[:, subseq_len + 1 :].mean()


def _ordinary_tokens(model: HookedTransformer, tokenizer: Any) -> list[int]:
    special = set() if tokenizer is None else set(tokenizer.all_special_ids)
    ids = range(100, 20_000) if model.cfg.d_vocab >= 20_000 else range(model.cfg.d_vocab)
    return [token for token in ids if token not in special]
