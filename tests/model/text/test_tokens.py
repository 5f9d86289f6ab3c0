"""Text to tokens and back: BOS once, padding on either side, and what is not text."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SENTENCES, tiny_model, tiny_tokenizer
from torch import Tensor

from headscope import HookedTransformer
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.model.text.tokens import get_attention_mask, get_tokens_with_bos_removed, padding_mask, single_token

BOTH = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
TEXT = "Mary gave a book"


def speaking(*, adds_bos: bool = False, n_ctx: int = 64, special: dict[str, str] = BOTH, **fields: Any) -> Any:
    return tiny_model(tiny_tokenizer(adds_bos=adds_bos, **special), d_vocab=-1, n_ctx=n_ctx, **fields)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds BOS itself"])
def model(request: pytest.FixtureRequest) -> HookedTransformer:
    return speaking(adds_bos=request.param)


def bos_count(model: HookedTransformer, tokens: Tensor) -> int:
    return int((tokens == model.tokenizer.bos_token_id).sum())


@pytest.mark.parametrize("prepend", [None, True, False])
def test_bos_is_there_once_or_not_at_all(model: HookedTransformer, prepend: bool | None) -> None:
    tokens = model.to_tokens(TEXT, prepend_bos=prepend)
    expected = 0 if prepend is False else 1
    assert bos_count(model, tokens) == expected
    assert tokens.dtype == torch.int64 and tokens.shape[0] == 1
    assert model.to_string(tokens[0]) == "<bos>" * expected + TEXT
    strings = model.to_str_tokens(TEXT, prepend_bos=prepend)
    assert len(strings) == tokens.shape[1] and "".join(strings) == "<bos>" * expected + TEXT
    several = model.to_tokens([TEXT, SENTENCES[0]], prepend_bos=prepend)
    assert bos_count(model, several) == 2 * expected


def test_the_default_of_bos_is_the_configs(model: HookedTransformer) -> None:
    model.cfg.default_prepend_bos = False
    try:
        assert bos_count(model, model.to_tokens(TEXT)) == 0
        assert bos_count(model, model.to_tokens(TEXT, prepend_bos=True)) == 1
    finally:
        model.cfg.default_prepend_bos = True


def test_no_bos_inside_look_ups(model: HookedTransformer) -> None:
    token = model.to_single_token(" Mary")
    assert model.to_string(token) == " Mary" == model.to_single_str_token(token)
    assert model.to_str_tokens(torch.tensor([token])) == [" Mary"]
    direction = model.tokens_to_residual_directions(" Mary")
    assert torch.equal(direction, model.W_U[:, token])
    with pytest.raises(InvalidInputError, match=r"tokens, not one.*'x'") as caught:
        model.to_single_token("xyzzy")
    assert "<bos>" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="0 tokens"):
        model.to_single_token("")


def test_a_tokenizer_without_bos_uses_eos() -> None:
    model = speaking(special={"eos_token": "<eos>"})
    tokens = model.to_tokens([TEXT, SENTENCES[0]])
    eos = model.tokenizer.eos_token_id
    assert tokens[:, 0].tolist() == [eos, eos]
    assert int(tokens[0, -1]) == eos
    mask = model.attention_mask(tokens)
    assert mask is not None and mask.sum(-1).tolist() == [len(model.to_str_tokens(TEXT)), tokens.shape[1]]
    neither = speaking(special={"pad_token": "<pad>"})
    with pytest.raises(InvalidInputError, match="prepend_bos=False"):
        neither.to_tokens(TEXT)
    assert neither.to_tokens(TEXT, prepend_bos=False).ndim == 2


def test_a_tokenizer_that_cannot_pad_takes_texts_of_one_length() -> None:
    model = speaking(special={"bos_token": "<bos>"})
    assert model.to_tokens([TEXT, TEXT]).shape[0] == 2
    with pytest.raises(InvalidInputError, match="padding"):
        model.to_tokens([TEXT, SENTENCES[0]])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_on_either_side(model: HookedTransformer, side: Any) -> None:
    texts = [TEXT, SENTENCES[0], "a"]
    pad = model.tokenizer.pad_token_id
    alone = [model.to_tokens(text)[0].tolist() for text in texts]
    together = model.to_tokens(texts, padding_side=side)
    length = max(map(len, alone))
    for row, ids in zip(together.tolist(), alone, strict=True):
        missing = [pad] * (length - len(ids))
        assert row == (ids + missing if side == "right" else missing + ids)
    mask = model.attention_mask(together, padding_side=side)
    assert mask is not None and mask.sum(-1).tolist() == [len(ids) for ids in alone]
    assert torch.equal(mask, together != pad)
    assert model.attention_mask(model.to_tokens(TEXT)) is None


def test_the_default_side_is_the_models() -> None:
    model = speaking()
    model.set_tokenizer(model.tokenizer, default_padding_side="left")
    left = model.to_tokens([TEXT, "a"])
    assert int(left[1, 0]) == model.tokenizer.pad_token_id
    assert torch.equal(left, model.to_tokens([TEXT, "a"], padding_side="left"))
    assert model.tokenizer.padding_side == "right"


@pytest.mark.parametrize("tokens, pad, side, bos, wanted", [
    ([5, 6, 7], 9, "right", 1, "111"),
    ([1, 5, 9, 9], 9, "right", 1, "1100"),
    ([9, 9, 1, 5], 9, "left", 1, "0011"),
    ([9, 9, 1, 5], 9, "right", 1, "1111"),
    ([1, 5, 9, 9], 9, "left", 1, "1111"),
    ([1, 9, 5, 9], 9, "right", 1, "1110"),
    ([9, 1, 9, 5], 9, "left", 1, "0111"),
    ([9, 9, 9], 9, "right", 1, "000"),
    ([9, 9, 9], 9, "left", None, "000"),
    # Padding and BOS are one token: the first of a row is its BOS.
    ([9, 5, 9, 9], 9, "right", 9, "1100"),
    ([9, 9, 9, 5], 9, "left", 9, "0011"),
    ([9, 5, 6, 7], 9, "left", 9, "1111"),
    ([9, 9, 9, 9], 9, "right", 9, "1000"),
    ([9, 9, 9, 9], 9, "left", 9, "0001"),
    ([5, 6, 9, 9], 9, "right", 9, "1100"),
    ([5, 6, 9, 9], 9, "left", 9, "1111"),
    ([9], 9, "right", 9, "1"),
    ([9], 9, "left", 9, "1"),
    ([9], 9, "left", None, "0"),
    # The same, but no BOS was put in front.
    ([9, 5, 9, 9], 9, "right", None, "1100"),
    ([9, 9, 9, 5], 9, "left", None, "0001"),
])  # fmt: skip
def test_the_padding_mask(tokens: list[int], pad: int, side: Any, bos: int | None, wanted: str) -> None:
    mask = padding_mask(torch.tensor([tokens]), pad, padding_side=side, bos_id=bos)
    assert "".join(str(int(each)) for each in mask[0]) == wanted


def test_a_list_gives_a_list_of_lists_each_of_its_own_length(model: HookedTransformer) -> None:
    strings = model.to_str_tokens([TEXT, "a"])
    assert strings == [model.to_str_tokens(TEXT), ["<bos>", "a"]]
    assert model.to_str_tokens([TEXT]) == [model.to_str_tokens(TEXT)]
    assert model.to_str_tokens([]) == []


def test_strings_of_tokens(model: HookedTransformer) -> None:
    tokens = model.to_tokens(TEXT)
    strings = model.to_str_tokens(TEXT)
    for same in (tokens, tokens[0], tokens[0].tolist(), tuple(tokens[0].tolist())):
        assert model.to_str_tokens(same) == strings
    assert model.to_str_tokens(tokens[0, 0]) == ["<bos>"]
    assert model.to_str_tokens([tokens[0], tokens]) == [strings, strings]
    with pytest.raises(InvalidInputError, match=r"\[2, "):
        model.to_str_tokens(torch.cat([tokens, tokens]))


def test_text_of_tokens(model: HookedTransformer) -> None:
    tokens = model.to_tokens([TEXT, SENTENCES[1]], prepend_bos=False)
    assert model.to_string(tokens)[1] == SENTENCES[1]
    assert model.to_string(tokens.tolist()) == model.to_string(tokens)
    assert model.to_string(tokens[1].tolist()) == SENTENCES[1]
    assert model.to_string(int(tokens[1, 0])) == model.to_str_tokens(SENTENCES[1], prepend_bos=False)[0]
    with pytest.raises(InvalidInputError, match="two axes"):
        model.to_string(tokens[None])


def test_spaces_are_left_as_they_are(model: HookedTransformer) -> None:
    for text in ("a , b .", " n't do 's", "  two  spaces \n", "é café — 日本"):
        assert model.to_string(model.to_tokens(text, prepend_bos=False)[0]) == text


def test_text_is_cut_at_the_context() -> None:
    model = speaking(n_ctx=6)
    long = SENTENCES[0]
    cut = model.to_tokens(long)
    whole = model.to_tokens(long, truncate=False)
    assert cut.shape == (1, 6) and whole.shape[1] > 6
    assert torch.equal(whole[:, :6], cut)
    assert model(long).shape[1] == 6
    assert len(model.to_str_tokens(long)) == 6
    with pytest.raises(InvalidInputError, match="n_ctx = 6"):
        model(whole)


def test_text_without_tokens(model: HookedTransformer) -> None:
    assert model.to_tokens("").tolist() == [[model.tokenizer.bos_token_id]]
    assert model.to_str_tokens("", prepend_bos=False) == []
    for texts in ("", [""], [TEXT, ""], ["", TEXT]):
        with pytest.raises(InvalidInputError, match="no tokens"):
            model.to_tokens(texts, prepend_bos=False)
    for nothing in ([], ()):
        with pytest.raises(InvalidInputError, match="empty"):
            model.to_tokens(nothing)


@pytest.mark.parametrize("wrong, shown", [
    (None, "NoneType"), (b"Mary", "bytes: decode them first"), (np.array([b"Mary"]), "bytes: decode"),
    ([TEXT, None], "NoneType"), ({TEXT: 1}, "dict"),
])  # fmt: skip
def test_what_is_no_text_is_refused(model: HookedTransformer, wrong: Any, shown: str) -> None:
    """Bytes are whole numbers, and a mapping's keys may be text: neither is taken for tokens or texts."""
    for read in (HookedTransformer.to_tokens, HookedTransformer.to_str_tokens):
        with pytest.raises(InvalidInputError, match=f"got {shown}"):
            inspect.unwrap(read)(model, wrong)  # as they are called without the checks of the tests
    with pytest.raises(InvalidInputError, match="only text has tokens to be looked up"):
        inspect.unwrap(single_token)(wrong, model.tokenizer)


@pytest.mark.parametrize("wrong, shown", [
    (3, "int .3"), ([TEXT, [TEXT]], "list"), (np.array([[TEXT, TEXT]]), "list"), (torch.tensor([3]), r"a tensor \[1\]"),
])  # fmt: skip
def test_tokens_and_nested_lists_are_not_text(model: HookedTransformer, wrong: Any, shown: str) -> None:
    with pytest.raises(InvalidInputError, match=f"a string, or a list of strings; got {shown}"):
        inspect.unwrap(HookedTransformer.to_tokens)(model, wrong)


def test_texts_in_arrays_and_generators(model: HookedTransformer) -> None:
    texts = [TEXT, "Mary"]
    for given in (np.array(texts), np.array(texts, dtype=object), (text for text in texts), tuple(texts)):
        assert torch.equal(model.to_tokens(given), model.to_tokens(texts))
    for given in (np.array(texts), (text for text in texts)):
        assert model.to_str_tokens(given) == model.to_str_tokens(texts)
    assert torch.equal(model.to_tokens(np.array(TEXT)), model.to_tokens(TEXT))


@pytest.mark.parametrize("mode, wanted", [("first", 1), ("last", 6)])
def test_where_a_token_stands(model: HookedTransformer, mode: Any, wanted: int) -> None:
    text = " Mary and John and John and".replace(" and John and", " Mary Mary", 1)
    tokens = model.to_tokens(text)
    mary = model.to_single_token(" Mary")
    places = (tokens[0] == mary).nonzero().flatten().tolist()
    assert len(places) > 1
    wanted = places[0] if mode == "first" else places[-1]
    for given in (text, tokens, tokens[0]):
        assert model.get_token_position(" Mary", given, mode) == wanted
        assert model.get_token_position(mary, given, mode=mode) == wanted
    assert model.get_token_position(" Mary", text, mode, prepend_bos=False) == wanted - 1


def test_a_token_that_is_not_there(model: HookedTransformer) -> None:
    with pytest.raises(InvalidInputError, match="' John' does not occur"):
        model.get_token_position(" John", TEXT)
    with pytest.raises(InvalidInputError, match=r"one sequence.*\[2, "):
        model.get_token_position(" Mary", model.to_tokens([TEXT, TEXT]))


def test_directions_of_tokens(model: HookedTransformer) -> None:
    W_U = model.W_U
    assert torch.equal(model.tokens_to_residual_directions(7), W_U[:, 7])
    assert torch.equal(model.tokens_to_residual_directions(torch.tensor([[7]])), W_U[:, 7])
    assert torch.equal(model.tokens_to_residual_directions([7, 8]), W_U.T[[7, 8]])
    grid = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert model.tokens_to_residual_directions(grid).shape == (3, 2, 10)
    assert torch.equal(model.tokens_to_residual_directions(grid)[2, 1], W_U[:, 6])


def test_without_a_tokenizer_only_text_is_refused() -> None:
    model = tiny_model()
    for call in (model.to_tokens, model.to_str_tokens, model.to_single_token, model):
        with pytest.raises(MissingTokenizerError, match="has no tokenizer"):
            call(TEXT)
    with pytest.raises(MissingTokenizerError):
        model.to_string([1, 2])
    with pytest.raises(MissingTokenizerError):
        model.to_single_str_token(1)
    with pytest.raises(MissingTokenizerError):
        model.tokens_to_residual_directions(" Mary")
    assert model.attention_mask(torch.tensor([[1, 2]])) is None
    assert torch.equal(model.tokens_to_residual_directions(3), model.W_U[:, 3])
    assert model.get_token_position(2, torch.tensor([1, 2])) == 1


def test_masks_and_rows_without_bos_by_the_tokenizer_alone() -> None:
    own = tiny_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    one = tiny_tokenizer(bos_token="<eos>", eos_token="<eos>")
    for tokenizer, bos, pad in ((own, 0, 2), (one, 1, 1)):
        for side in ("right", "left"):
            tokenizer.padding_side = side
            rows = [[bos, 7, 8, 9], [bos, 7, pad, pad] if side == "right" else [pad, pad, bos, 7]]
            tokens = torch.tensor(rows)
            mask = get_attention_mask(tokenizer, tokens, prepend_bos=True)
            assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0] if side == "right" else [0, 0, 1, 1]]
            rest = [7, pad, pad] if side == "right" else [pad, pad, 7]
            assert get_tokens_with_bos_removed(tokenizer, tokens).tolist() == [[7, 8, 9], rest]
        tokenizer.padding_side = "right"
        with pytest.raises(InvalidInputError, match="not every row begins with a BOS"):
            get_tokens_with_bos_removed(tokenizer, torch.tensor([[bos, 7], [7, 8]]))


def test_a_side_given_goes_before_the_tokenizers() -> None:
    tokenizer = tiny_tokenizer(bos_token="<bos>", pad_token="<pad>")
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    tokens = torch.tensor([[pad, bos, 7, pad]])
    for own in ("left", "right"):
        tokenizer.padding_side = own
        assert get_attention_mask(tokenizer, tokens, True, "left").tolist() == [[0, 1, 1, 1]]
        assert get_attention_mask(tokenizer, tokens, True, padding_side="right").tolist() == [[1, 1, 1, 0]]
        assert get_tokens_with_bos_removed(tokenizer, tokens, "left").tolist() == [[pad, 7, pad]]
        assert get_tokens_with_bos_removed(tokenizer, tokens[:, 1:], "right").tolist() == [[7, pad]]


def test_tokens_in_arrays() -> None:
    model = tiny_model(tiny_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"), d_vocab=-1)
    tokens = model.to_tokens("Mary and John", prepend_bos=False)
    assert model.to_str_tokens(tokens[0].numpy()) == model.to_str_tokens("Mary and John", prepend_bos=False)
    assert model.to_string(tokens[0].numpy()) == "Mary and John" == model.to_string(tokens.numpy())[0]
