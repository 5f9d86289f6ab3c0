"""Evaluations equal their formulas, run on the model's device, and draw nothing from the global generators."""

import math
import random
import sys
import types
from typing import Any

import pytest
import torch
from small_models import STORY, small_model, small_tokenizer
from torch import Tensor

import headscope.evals as evals
from headscope import HookedTransformer
from headscope.errors import InvalidInputError, MissingDependencyError, MissingTokenizerError
from headscope.evals import IOIDataset


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model(dtype=torch.float64)


def losses_by_hand(model: HookedTransformer, tokens: Tensor) -> Tensor:
    """Minus the log-probability of each next token, one at a time."""
    with torch.no_grad():
        logits = model(tokens)
    rows = []
    for row, scores in zip(tokens.tolist(), logits.tolist(), strict=True):
        rows.append([])
        for pos, token in enumerate(row[1:]):
            total = sum(math.exp(score) for score in scores[pos])
            rows[-1].append(math.log(total) - scores[pos][token])
    return torch.tensor(rows, dtype=torch.float64)


def test_sanity_check_is_a_loss() -> None:
    model = small_model(n_ctx=512, dtype=torch.float64)
    loss = evals.sanity_check(model)
    assert loss.shape == () and not loss.requires_grad
    assert 0.5 * math.log(model.cfg.d_vocab) < loss < 3 * math.log(model.cfg.d_vocab)


# Losses on text


def test_the_loss_on_a_data_set_is_the_mean_over_batches(model: HookedTransformer) -> None:
    batches = [torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    means = [losses_by_hand(model, batch).mean() for batch in batches]
    loader = [{"tokens": batch} for batch in batches]
    for truncate, used in ((100, 4), (4, 4), (3, 3), (1, 1)):
        loss = evals.evaluate_on_dataset(model, loader, truncate=truncate, progress=False)
        assert isinstance(loss, float)
        assert math.isclose(loss, sum(means[:used]) / used, rel_tol=1e-9)
    assert torch.is_grad_enabled()


def test_no_more_batches_are_drawn_than_used(model: HookedTransformer) -> None:
    drawn = []

    def batches() -> Any:
        for i in range(10):
            drawn.append(i)
            yield {"tokens": torch.tensor([[1, 2, 3]])}

    evals.evaluate_on_dataset(model, batches(), truncate=2, device="cpu")
    assert drawn == [0, 1]


def test_nothing_to_evaluate_on_is_refused(model: HookedTransformer) -> None:
    with pytest.raises(InvalidInputError, match="no batch"):
        evals.evaluate_on_dataset(model, [])
    with pytest.raises(InvalidInputError, match="truncate must be at least 1; got 0"):
        evals.evaluate_on_dataset(model, [{"tokens": torch.tensor([[1, 2]])}], truncate=0)


class StandIn(list[dict[str, object]]):
    column_names = ["text", "content"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """What the stand-in for the optional package `datasets` was asked for."""
    calls: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> StandIn:
        calls.append((name, config, split))
        return StandIn({"text": f"{i} {STORY}", "content": f"def f{i}(): return '{STORY}'"} for i in range(20))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


SOURCES = [
    ("wiki", ("wikitext", "wikitext-2-v1", "train")),
    ("owt", ("stas/openwebtext-10k", None, "train")),
    ("pile", ("NeelNanda/pile-10k", None, "train")),
    ("code", ("codeparrot/codeparrot-valid-v2-near-dedup", None, "train")),
]


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_a_loader_gives_packed_rows(name: str, source: Any, asked: list[tuple[str, str | None, str]]) -> None:
    make = getattr(evals, f"make_{name}_data_loader")
    tokenizer = small_tokenizer()
    state = torch.get_rng_state()
    loader = make(tokenizer, batch_size=3, max_length=40)
    batches = [batch["tokens"] for batch in loader]
    assert asked == [source]
    assert len(batches) == len(loader) > 2
    assert all(batch.shape == (3, 40) and bool((batch[:, 0] == tokenizer.bos_token_id).all()) for batch in batches)
    assert ("return" in tokenizer.decode(torch.cat(batches)[:, 1:].flatten())) == (name == "code")
    again = [batch["tokens"] for batch in make(tokenizer, batch_size=3, max_length=40)]
    other = [batch["tokens"] for batch in make(tokenizer, batch_size=3, max_length=40, seed=1)]
    assert torch.equal(torch.cat(batches), torch.cat(again)) and not torch.equal(torch.cat(batches), torch.cat(other))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluate_goes_through_all_four(model: HookedTransformer, asked: list[tuple[str, str | None, str]]) -> None:
    losses = evals.evaluate(model, truncate=2, batch_size=2)
    assert [source for _, source in SOURCES] == asked
    assert list(losses) == [f"{name}_loss" for name in evals.DATASET_NAMES]
    loader = evals.make_pile_data_loader(model.tokenizer, 2, max_length=48)
    batches = [batch["tokens"] for batch in loader][:2]
    expected = sum(losses_by_hand(model, batch).mean() for batch in batches) / 2
    assert math.isclose(losses["pile_loss"], expected, rel_tol=1e-9)
    with pytest.raises(MissingTokenizerError, match="model 'small' has no tokenizer"):
        evals.evaluate(small_model(tokenizer=False))


def test_without_the_datasets_package_the_command_to_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, _ in SOURCES:
        with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[hf-datasets\]'"):
            getattr(evals, f"make_{name}_data_loader")(small_tokenizer())


# Induction


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_induction_loss_is_that_of_the_second_half(prepend_bos: bool | None, model: HookedTransformer) -> None:
    seen = []
    state = torch.get_rng_state()
    with model.hooks([("hook_embed", lambda value, hook: seen.append(value))]):
        loss = evals.induction_loss(model, batch_size=3, subseq_len=10, prepend_bos=prepend_bos, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    # The tokens, found again from their embeddings.
    tokens = torch.cdist(seen[0], model.W_E[None].expand(3, -1, -1)).argmin(-1)
    assert tokens.shape == (3, 20)
    assert torch.equal(tokens[:, 11:], tokens[:, 1:10])
    bos = model.tokenizer.bos_token_id
    assert bool((tokens[:, 0] == bos).all()) == (prepend_bos is not False)
    assert not bool((tokens[:, 1:] == bos).any())
    torch.testing.assert_close(loss, losses_by_hand(model, tokens)[:, 11:].mean())
    again, other = (evals.induction_loss(model, None, 3, 10, prepend_bos, seed=seed) for seed in (4, 5))
    assert torch.equal(again, loss) and not torch.equal(other, loss)


def test_a_head_that_copies_makes_the_induction_loss_small(model: HookedTransformer) -> None:
    """Logits put in by a hook: what followed the token the last time, else nothing in particular."""
    seen: dict[str, Tensor] = {}

    def remember(value: Tensor, hook: Any) -> None:
        seen["tokens"] = torch.cdist(value, model.W_E[None].expand(len(value), -1, -1)).argmin(-1)

    class Copy(torch.nn.Module):
        def forward(self, residual: Tensor) -> Tensor:
            tokens = seen["tokens"]
            logits = torch.zeros(*tokens.shape, model.cfg.d_vocab, dtype=torch.float64)
            for row, pos in torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(tokens.shape[1])).tolist():
                earlier = [p for p in range(pos) if tokens[row, p] == tokens[row, pos]]
                if earlier:
                    logits[row, pos, tokens[row, earlier[0] + 1]] = 50
            return logits

    copying = small_model(dtype=torch.float64)
    copying.unembed = Copy()
    with copying.hooks([("hook_embed", remember)]):
        assert evals.induction_loss(copying, batch_size=1, subseq_len=12, seed=1) < 1e-6
    assert evals.induction_loss(model, batch_size=1, subseq_len=12, seed=1) > 2


def test_induction_fits_the_model_it_is_run_on() -> None:
    model = small_model()
    with model.hooks([("hook_embed", lambda value, hook: shapes.append(value.shape[1]))]):
        shapes: list[int] = []
        evals.induction_loss(model, batch_size=1)
    assert shapes == [model.cfg.n_ctx]
    for length in (2, 25):
        with pytest.raises(InvalidInputError, match=f"from 3 to n_ctx // 2 = 24, .* got {length}"):
            evals.induction_loss(model, subseq_len=length)
    bare = small_model(tokenizer=False)
    with pytest.raises(MissingTokenizerError, match="prepend_bos=False"):
        evals.induction_loss(bare)
    assert evals.induction_loss(bare, prepend_bos=False, batch_size=1).isfinite()
    assert evals.induction_loss(bare, small_tokenizer(), batch_size=1).isfinite()


def test_special_tokens_are_not_drawn(model: HookedTransformer) -> None:
    seen: list[Tensor] = []
    handle = model.embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    evals.induction_loss(model, batch_size=200, prepend_bos=False)
    handle.remove()
    assert sorted(set(seen[0].flatten().tolist())) == list(range(1, model.cfg.d_vocab))


def test_common_tokens_are_drawn_from_a_large_vocabulary() -> None:
    model = small_model(tokenizer=False, d_vocab=30_000, d_model=4, d_head=2, n_layers=1, attn_only=True)
    seen: list[Tensor] = []
    model.embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    evals.induction_loss(model, batch_size=50, prepend_bos=False)
    assert 100 <= int(seen[0].min()) < 500 and 19_000 < int(seen[0].max()) < 20_000


# Indirect objects


def test_sentences_name_one_person_once_and_the_other_twice() -> None:
    dataset = IOIDataset(small_tokenizer(), num_samples=60)
    assert len(dataset) == 60
    for sample in dataset.samples:
        text, io, s = sample["text"], sample["IO"].strip(), sample["S"].strip()
        assert text.endswith(f" {io}") and "[" not in text
        assert text.split().count(io) == 2 and text.replace(",", "").split().count(s) == 2
    firsts = {sample["text"].split()[0] for sample in dataset.samples}
    twice = IOIDataset(small_tokenizer(), names=["Mary", "Mary", "John"], num_samples=30)
    assert all(sample["IO"] != sample["S"] for sample in twice.samples)
    assert firsts == {"When", "After"} and len({sample["IO"] for sample in dataset.samples}) > 20


def test_a_seed_gives_the_same_sentences_without_the_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seed", "choice", "sample", "random", "randrange"):
        monkeypatch.setattr(random, name, lambda *_: pytest.fail("drew from the global generator"))
    sets = [IOIDataset(small_tokenizer(), num_samples=20, seed=seed).samples for seed in (0, 0, 1, None, None)]
    assert sets[0] == sets[1]
    assert sets[0] != sets[2] and sets[3] != sets[4]


def test_symmetric_sentences_come_in_pairs() -> None:
    dataset = IOIDataset(small_tokenizer(), num_samples=11, symmetric=True)
    assert len(dataset) == 10
    for first, second in zip(dataset.samples[::2], dataset.samples[1::2], strict=True):
        assert (first["IO"], first["S"]) == (second["S"], second["IO"])
        swapped = first["text"].replace(first["IO"].strip(), "#").replace(first["S"].strip(), first["IO"].strip())
        assert swapped.replace("#", first["S"].strip()) == second["text"]


def test_items_are_tokens() -> None:
    tokenizer = small_tokenizer()
    own = {"templates": ["[A] and [B] saw the [X]. [B] gave it to [A]"], "names": ["Mary", "John"]}
    dataset = IOIDataset(tokenizer, **own, nouns={"X": ["dog"]}, num_samples=1)
    item, sample = dataset[0], dataset.samples[0]
    assert {sample["IO"], sample["S"]} == {" Mary", " John"}
    assert sample["text"].endswith("saw the dog. {1} gave it to {0}".format(*(sample[k].strip() for k in ("IO", "S"))))
    assert int(item["prompt"][0]) == tokenizer.bos_token_id
    assert tokenizer.decode(item["prompt"][1:]) == sample["text"]
    assert tokenizer.decode(item["IO"]) == sample["IO"] and tokenizer.decode(item["S"]) == sample["S"]
    bare = IOIDataset(tokenizer, **own, nouns={"X": ["dog"]}, num_samples=1, prepend_bos=False)
    assert torch.equal(bare[0]["prompt"], item["prompt"][1:])


def test_ioi_eval_reads_the_logits_where_the_names_part(model: HookedTransformer) -> None:
    """Each sentence on its own, cut off just before the token that tells the names apart."""
    tokenizer = small_tokenizer()
    dataset = IOIDataset(
        tokenizer,
        templates=["[A] and [B] ran. [B] saw [A]", "the dog saw [B] and [A]. Then [B] ran to [A]"],
        names=["Mary", "John", "Jodie", "Marta"],
        num_samples=13,
        seed=2,
    )
    differences = []
    for sample in dataset.samples:
        io, s = (tokenizer.encode(sample[key]) for key in ("IO", "S"))
        text = tokenizer.encode(sample["text"])
        shared = next(i for i, (a, b) in enumerate(zip(io, s, strict=False)) if a != b)
        begin = [tokenizer.bos_token_id, *text[: len(text) - len(io) + shared]]
        with torch.no_grad():
            last = model(torch.tensor([begin]))[0, -1]
        differences.append(float(last[io[shared]] - last[s[shared]]))
    expected = {
        "Logit Difference": sum(differences) / 13,
        "Accuracy": sum(difference > 0 for difference in differences) / 13,
    }
    assert 0 < expected["Accuracy"] < 1
    for batch_size in (1, 5, 100):
        found = evals.ioi_eval(model, dataset, batch_size, progress=False)
        assert found == pytest.approx(expected, rel=1e-9)
    model.default_padding_side = "left"
    assert evals.ioi_eval(model, dataset, 5, progress=False) == pytest.approx(expected, rel=1e-9)
    model.default_padding_side = "right"


def test_ioi_eval_attends_to_no_padding() -> None:
    model = small_model(tokenizer=False, attention_dir="bidirectional", dtype=torch.float64)
    dataset = IOIDataset(small_tokenizer(), templates=["[A] and [B] saw [A]", "[B] ran to [A]"], num_samples=6)
    assert len({len(item["prompt"]) for item in (dataset[i] for i in range(6))}) > 1
    one_by_one = evals.ioi_eval(model, dataset, 1, progress=False)
    assert evals.ioi_eval(model, dataset, 6, progress=False) == pytest.approx(one_by_one, rel=1e-9)


def test_the_demo_model_knows_indirect_objects() -> None:
    model = HookedTransformer.from_pretrained("headscope-demo")
    found = evals.ioi_eval(model, num_samples=60, symmetric=True, progress=False)
    assert found["Accuracy"] > 0.9 and found["Logit Difference"] > 3
    assert found == evals.ioi_eval(model, num_samples=60, symmetric=True, progress=False)


def test_what_cannot_be_asked_of_ioi_is_refused(model: HookedTransformer) -> None:
    tokenizer = small_tokenizer()
    for template in ("[A] and [B]", "[A] gave it to [A]", "[B] gave it to [A]."):
        with pytest.raises(InvalidInputError, match=r"a template ends with \[A\].*got '\["):
            IOIDataset(tokenizer, templates=[template])
    for options in ({"names": ["Mary", "Mary"]}, {"templates": []}, {"num_samples": 0}):
        with pytest.raises(InvalidInputError, match="nothing to draw"):
            IOIDataset(tokenizer, **options)
    with pytest.raises(InvalidInputError, match="1 sentences in pairs"):
        IOIDataset(tokenizer, num_samples=1, symmetric=True)
    with pytest.raises(MissingTokenizerError):
        evals.ioi_eval(small_model(tokenizer=False))
    with pytest.raises(InvalidInputError, match="no sentence"):
        evals.ioi_eval(model, [])
    same = [{"prompt": torch.tensor([1, 2, 3]), "IO": torch.tensor([2, 3]), "S": torch.tensor([2])}]
    with pytest.raises(InvalidInputError, match=r"names' tokens \[2, 3\] and \[2\] are the same"):
        evals.ioi_eval(model, same, progress=False)
