"""Data in, batches out: every kind of data, which positions count, and what is refused."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from sizes import SetBudget
from small_models import small_model
from tiny import tiny_model, tiny_tokenizer, tiny_tokens

from headscope import HookedTransformer
from headscope.analysis.core import progress
from headscope.analysis.core.batches import check_repeatable, describe_data, iterate_batches
from headscope.errors import InvalidInputError

TOKENS = tiny_tokens(5, 4)


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model()


@pytest.fixture(scope="module")
def speaker() -> HookedTransformer:
    return tiny_model(tiny_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"), d_vocab=-1)


def batches_of(model: HookedTransformer, data: Any, **options: Any) -> list[Any]:
    return list(iterate_batches(model, data, progress=False, **options))


@pytest.mark.parametrize("limit, sizes", [(1, [1] * 5), (7, [1] * 5), (8, [2, 2, 1]), (19, [4, 1]), (2048, [5])])
def test_rows_are_cut_into_batches(
    model: HookedTransformer, limit: int, sizes: list[int], set_budget: SetBudget
) -> None:
    set_budget(batch_tokens=limit)
    mask = torch.ones_like(TOKENS)
    mask[:, -1] = 0
    found = batches_of(model, TOKENS, attention_mask=mask)
    assert [len(batch.tokens) for batch in found] == sizes
    assert torch.equal(torch.cat([batch.tokens for batch in found]), TOKENS)
    for name in ("attention_mask", "counted"):
        assert torch.equal(torch.cat([getattr(batch, name) for batch in found]), mask.bool())


@pytest.mark.parametrize("data", [
    TOKENS, [TOKENS], (TOKENS,), {"tokens": TOKENS}, [{"tokens": TOKENS}], [{"input_ids": TOKENS}], list(TOKENS),
    torch.utils.data.DataLoader(TOKENS, batch_size=2), TOKENS.int(), [TOKENS[:2], {"tokens": TOKENS[2:]}],
], ids=lambda data: type(data).__name__)  # fmt: skip
def test_the_same_tokens_in_many_shapes(model: HookedTransformer, data: Any) -> None:
    found = batches_of(model, data)
    assert torch.equal(torch.cat([batch.tokens for batch in found]).long(), TOKENS)
    assert all(batch.attention_mask is None and bool(batch.counted.all()) for batch in found)
    check_repeatable(data, "baseline='mean'")


def test_one_row_and_an_iterator(model: HookedTransformer) -> None:
    assert torch.equal(batches_of(model, TOKENS[0])[0].tokens, TOKENS[:1])
    mask = torch.tensor([1, 1, 0, 0])
    (batch,) = batches_of(model, TOKENS[0], attention_mask=mask)
    assert batch.attention_mask.tolist() == [[True, True, False, False]]
    assert len(batches_of(model, (row for row in TOKENS))) == 5
    assert batches_of(model, []) == []


def test_which_positions_count(speaker: HookedTransformer) -> None:
    bos, pad = speaker.tokenizer.bos_token_id, speaker.tokenizer.pad_token_id
    tokens = torch.tensor([[bos, 5, 6, pad], [5, bos, 6, 7], [bos, bos, 6, 7], [bos, pad, pad, pad]])
    (batch,) = batches_of(speaker, tokens)
    real = [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.attention_mask.int().tolist() == real
    assert batch.counted.int().tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    (batch,) = batches_of(speaker, tokens, include_bos=True)
    assert batch.counted.int().tolist() == real
    left = torch.tensor([[pad, bos, 5, 6]])
    (batch,) = batches_of(speaker, left, attention_mask=(left != pad).float())
    assert batch.counted.int().tolist() == [[0, 0, 1, 1]]


def test_padding_on_the_side_where_none_is_looked_for_is_refused(speaker: HookedTransformer) -> None:
    texts = ["Mary and John", "Mary and John went to the store, John gave a book to Mary"]
    for side, other, does in (("left", "right", "begins"), ("right", "left", "ends")):
        tokens = speaker.to_tokens(texts, padding_side=side)
        n_pad = int((tokens[0] == speaker.tokenizer.pad_token_id).sum())
        real = speaker.attention_mask(tokens, padding_side=side)
        speaker.default_padding_side = other
        try:
            message = f"row 0 {does} with {n_pad} padding tokens.*for on the {other}"
            with pytest.raises(InvalidInputError, match=message):
                batches_of(speaker, tokens)
            (masked,) = batches_of(speaker, tokens, attention_mask=real)
            speaker.default_padding_side = side
            (found,) = batches_of(speaker, tokens)
        finally:
            speaker.default_padding_side = "right"
        assert torch.equal(found.counted, masked.counted) and int(real[0].sum()) == tokens.shape[1] - n_pad


def test_rows_may_begin_with_bos_and_a_separator_that_are_padding_too() -> None:
    model = small_model()  # BOS, EOS and padding are 0
    packed = torch.tensor([[0, 0, 5, 6], [0, 5, 6, 0]])
    (batch,) = batches_of(model, packed)
    assert batch.counted.tolist() == [[False, True, True, True], [False, True, True, False]]
    with pytest.raises(InvalidInputError, match="row 1 begins with 3 padding tokens"):
        batches_of(model, torch.tensor([[0, 5, 6, 7], [0, 0, 0, 5]]))
    assert len(batches_of(model, torch.tensor([[0, 5, 6, 7], [0, 0, 0, 0]]))) == 1


def test_bos_that_is_also_padding_counts_once() -> None:
    model = tiny_model(tiny_tokenizer(eos_token="<eos>"), d_vocab=-1)
    eos = model.tokenizer.eos_token_id
    (batch,) = batches_of(model, torch.tensor([[eos, 5, 6, eos], [eos, 5, 6, 7]]))
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.counted.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize("data, message", [
    ("some text", r"got str.*to_tokens"),
    (5, "got int"),
    (None, "got NoneType"),
    ([[1, 2, 3]], "integer tokens.*got list"),
    (["text"], "integer tokens.*got str"),
    (torch.rand(2, 3), r"integer tokens.*torch.float32 \[2, 3\]"),
    (torch.zeros(2, 3).bool(), r"integer tokens.*torch.bool \[2, 3\]"),
    (torch.zeros(1, 2, 3).long(), r"\[1, 2, 3\]"),
    (torch.tensor(3), r"\[\]"),
    (torch.zeros(0, 3).long(), r"at least one.*\[0, 3\]"),
    ({"ids": TOKENS}, "'tokens' or 'input_ids'; got NoneType"),
    ([TOKENS, torch.tensor([[23]])], "between 0 and d_vocab - 1 = 22; got 23"),
    (torch.tensor([[3, -1]]), "between 0 and d_vocab - 1 = 22; got -1"),
    (torch.zeros(2, 13).long(), "13 tokens.*n_ctx = 12"),
    ({"tokens": TOKENS, "attention_mask": torch.ones(5, 3)}, r"\[5, 4\]; got \[5, 3\]"),
])  # fmt: skip
def test_other_data_is_refused(model: HookedTransformer, data: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        batches_of(model, data)


def test_masks_that_do_not_belong(model: HookedTransformer) -> None:
    with pytest.raises(InvalidInputError, match=r"\[5, 4\]; got \[4, 4\]"):
        batches_of(model, TOKENS, attention_mask=torch.ones(4, 4))
    with pytest.raises(InvalidInputError, match="one tensor of tokens"):
        batches_of(model, [TOKENS], attention_mask=torch.ones(5, 4))


class Once:
    def __init__(self) -> None:
        self.batches = iter([TOKENS])

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.batches)


@pytest.mark.parametrize("data", [iter([TOKENS]), (row for row in TOKENS), map(abs, [TOKENS]), Once()])
def test_what_can_be_gone_through_once(data: Any) -> None:
    with pytest.raises(InvalidInputError, match="used up"):
        check_repeatable(data, "baseline='mean'")


def test_data_describes_itself() -> None:
    assert describe_data(TOKENS) == "tokens [5, 4]"
    assert describe_data([TOKENS]) == "batches from a list"
    assert isinstance({"tokens": TOKENS}, Mapping) and "dict" in describe_data({"tokens": TOKENS})


def test_progress_counts_tokens(model: HookedTransformer, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(list(iterate_batches(model, TOKENS, description="reading"))) == 1
    shown = capfd.readouterr().err
    assert "reading" in shown and "/20" in shown
    batches_of(model, TOKENS)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("data, total", [
    (TOKENS, 20),
    ([TOKENS, TOKENS[:2]], 28),
    ({"input_ids": TOKENS}, 20),
    ([{"tokens": TOKENS}, TOKENS], 40),
    (torch.utils.data.DataLoader(TOKENS, batch_size=2), 24),  # from the first batch: three of eight
    ((row for row in TOKENS), None),
], ids=["tensor", "list", "mapping", "mixed", "loader", "generator"])  # fmt: skip
def test_the_bar_knows_how_long_it_takes(
    model: HookedTransformer, data: Any, total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Bar(progress.tqdm):  # type: ignore[name-defined,misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr(progress, "tqdm", Bar)
    found = iterate_batches(model, data)
    next(found)
    assert (bars[0].total, bars[0].unit) == (total, "tok")
    found.close()


@pytest.mark.parametrize("done", [0, 4, 8, 20])
def test_the_bar_counts_from_what_was_done(
    model: HookedTransformer, done: int, monkeypatch: pytest.MonkeyPatch, set_budget: SetBudget
) -> None:
    bars: list[Any] = []

    class Bar(progress.tqdm):  # type: ignore[name-defined,misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            bars.append(self)

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            steps.append(n)

    steps: list[Any] = []
    monkeypatch.setattr(progress, "tqdm", Bar)
    set_budget(batch_tokens=4)
    assert len(list(iterate_batches(model, TOKENS, done=done))) == 5
    assert (bars[0].n, bars[0].initial, bars[0].total, steps) == (20, done, 20, [4] * (5 - done // 4))


def test_a_loader_of_a_stream_has_no_length(model: HookedTransformer) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(TOKENS)

    assert len(list(iterate_batches(model, torch.utils.data.DataLoader(Stream(), batch_size=2)))) == 3
