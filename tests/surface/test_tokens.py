"""Text to tokens and back: compared with what the Hugging Face tokenizer itself says."""

from typing import Any

import pytest
import torch
from small_models import small_model, small_tokenizer
from surface import TOKENS
from tiny import tiny_config, tiny_tokenizer

from headscope import HookedTransformer
from headscope.errors import MissingTokenizerError

TEXT, SHORT = "When Mary and John went to the store", "the old dog"
TOKENIZER = small_tokenizer()
END = TOKENIZER.eos_token_id  # BOS, EOS, and what rows are padded with
LONG_IDS, SHORT_IDS = TOKENIZER.encode(TEXT), TOKENIZER.encode(SHORT)
GAP = [END] * (len(LONG_IDS) - len(SHORT_IDS))
WORD = TOKENIZER.encode(" Mary")[0]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model()


def pieces(ids: list[int]) -> list[str]:
    return [TOKENIZER.decode([i]) for i in ids]


@TOKENS.shows("to_tokens")
def test_to_tokens(model: HookedTransformer) -> None:
    found = model.to_tokens(TEXT)
    assert found.dtype == torch.int64 and found.tolist() == [[END, *LONG_IDS]]
    assert model.to_tokens(TEXT, prepend_bos=False).tolist() == [LONG_IDS]
    assert model.to_tokens([TEXT, SHORT]).tolist() == [[END, *LONG_IDS], [END, *SHORT_IDS, *GAP]]
    assert model.to_tokens([TEXT, SHORT], padding_side="left").tolist()[1] == [*GAP, END, *SHORT_IDS]
    assert model.to_tokens([TEXT, SHORT], False, "left").tolist()[1] == [*GAP, *SHORT_IDS]
    long = " ".join([TEXT] * 9)
    assert model.to_tokens(long).tolist() == [[END, *TOKENIZER.encode(long)][:48]]
    assert model.to_tokens(long, truncate=False).tolist() == [[END, *TOKENIZER.encode(long)]]
    elsewhere = HookedTransformer(tiny_config(device="meta", d_vocab=-1), TOKENIZER)
    assert elsewhere.to_tokens(TEXT).is_meta
    assert elsewhere.to_tokens(TEXT, move_to_device=False).device.type == "cpu"


@TOKENS.shows("to_string")
def test_to_string(model: HookedTransformer) -> None:
    assert model.to_string(torch.tensor(LONG_IDS)) == TEXT
    assert model.to_string(LONG_IDS) == TEXT
    assert model.to_string(torch.tensor([LONG_IDS[:4], SHORT_IDS[:4]])) == [
        TOKENIZER.decode(LONG_IDS[:4]),
        TOKENIZER.decode(SHORT_IDS[:4]),
    ]
    assert model.to_string(torch.tensor(WORD)) == model.to_string(WORD) == " Mary"


@TOKENS.shows("to_str_tokens")
def test_to_str_tokens(model: HookedTransformer) -> None:
    assert model.to_str_tokens(SHORT) == ["<|end|>", *pieces(SHORT_IDS)]
    assert model.to_str_tokens(SHORT, prepend_bos=False) == pieces(SHORT_IDS)
    assert "".join(model.to_str_tokens(TEXT, prepend_bos=False)) == TEXT
    assert model.to_str_tokens([TEXT, SHORT], prepend_bos=False) == [pieces(LONG_IDS), pieces(SHORT_IDS)]
    assert model.to_str_tokens([TEXT, SHORT], True, "left")[1] == ["<|end|>", *pieces(SHORT_IDS)]
    for tokens in (torch.tensor(SHORT_IDS), torch.tensor([SHORT_IDS]), SHORT_IDS):
        assert model.to_str_tokens(tokens) == pieces(SHORT_IDS)


@TOKENS.shows("to_single_token")
def test_to_single_token(model: HookedTransformer) -> None:
    assert model.to_single_token(" Mary") == WORD and isinstance(WORD, int)
    with pytest.raises(ValueError, match="the old dog"):
        model.to_single_token(SHORT)


@TOKENS.shows("to_single_str_token")
def test_to_single_str_token(model: HookedTransformer) -> None:
    assert model.to_single_str_token(WORD) == " Mary"
    assert model.to_single_str_token(END) == "<|end|>"


@TOKENS.shows("get_token_position")
def test_get_token_position(model: HookedTransformer) -> None:
    text = "Then Mary and Mary and John"
    ids = TOKENIZER.encode(text)
    first, last = ids.index(WORD), len(ids) - 1 - ids[::-1].index(WORD)
    assert first < last
    assert model.get_token_position(" Mary", text) == first + 1
    assert model.get_token_position(WORD, text, mode="last") == last + 1
    assert model.get_token_position(" Mary", text, "last", prepend_bos=False) == last
    assert model.get_token_position(WORD, torch.tensor(ids)) == first
    assert model.get_token_position(WORD, torch.tensor([ids]), mode="last", padding_side="left") == last
    with pytest.raises(ValueError, match="does not occur"):
        model.get_token_position(" John", "Then Mary")


@TOKENS.shows("tokens_to_residual_directions")
def test_tokens_to_residual_directions(model: HookedTransformer) -> None:
    columns = model.W_U.T
    for one in (" Mary", WORD, torch.tensor(WORD), torch.tensor([WORD])):
        assert torch.equal(model.tokens_to_residual_directions(one), columns[WORD])
    ids = torch.tensor([[3, WORD, 5], [7, 2, 3]])
    assert torch.equal(model.tokens_to_residual_directions(ids[0]), columns[ids[0]])
    assert torch.equal(model.tokens_to_residual_directions(ids), columns[ids])


@TOKENS.shows("tokenizer", "default_padding_side", "set_tokenizer")
def test_settings(name: str) -> None:
    model = small_model(tokenizer=False)
    assert model.tokenizer is None and model.default_padding_side == "right"
    with pytest.raises(MissingTokenizerError):
        model.to_tokens(SHORT)
    if name == "default_padding_side":
        model.set_tokenizer(TOKENIZER)
        model.default_padding_side = "left"
    else:
        model.set_tokenizer(TOKENIZER, default_padding_side="left")
    assert model.tokenizer is TOKENIZER and model.default_padding_side == "left"
    assert model.to_tokens([TEXT, SHORT]).tolist()[1] == [*GAP, END, *SHORT_IDS]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_is_there_once_when_asked_for(adds_bos: bool) -> None:
    """Also for a tokenizer that puts it there itself."""
    special: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = tiny_tokenizer(adds_bos=adds_bos, **special)
    model = HookedTransformer(tiny_config(d_vocab=-1), tokenizer)
    ids = tokenizer.encode("Mary", add_special_tokens=False)
    bos = tokenizer.bos_token_id
    assert model.to_tokens("Mary").tolist() == [[bos, *ids]]
    assert model.to_tokens("Mary", prepend_bos=False).tolist() == [ids]
    assert model.to_str_tokens("Mary")[0] == "<bos>" and "<bos>" not in model.to_str_tokens("Mary", prepend_bos=False)
    (single,) = tokenizer.encode(" Mary", add_special_tokens=False)
    assert model.to_single_token(" Mary") == single
    assert torch.equal(model.tokens_to_residual_directions(" Mary"), model.W_U[:, single])


def test_every_row_has_a_check() -> None:
    assert TOKENS.unchecked() == []
