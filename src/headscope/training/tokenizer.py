"""Training of a byte-level BPE tokenizer like GPT-2's, which `transformers` loads from its directory."""

import json
from collections.abc import Iterable
from pathlib import Path

from headscope.errors import InvalidInputError

__all__ = ["END_OF_TEXT", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
_N_BYTES = 256


def train_tokenizer(texts: Iterable[str], out: str | Path, *, vocab_size: int, n_ctx: int) -> Path:
    """Train a byte-level BPE and write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

    Any text can be encoded, since all 256 bytes are tokens. Id 0 is `<|endoftext|>`, which serves as BOS, EOS and
    padding, as in GPT-2; encoding adds no special tokens. The same texts give the same files.

    Args:
        texts: Texts to learn the merges from.
        out: Directory to write to; created if missing.
        vocab_size: Maximum number of tokens, including the special one and the bytes.
        n_ctx: Context length of the model it is for.

    Returns:
        The directory.

    Raises:
        InvalidInputError: If `vocab_size` leaves no room for the bytes and the special token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocab_size < _N_BYTES + 1:
        raise InvalidInputError(
            f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least {_N_BYTES + 1} tokens, "
            f"one per byte and {END_OF_TEXT}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    special = {f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "pad", "unk")}
    settings = {
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return out
