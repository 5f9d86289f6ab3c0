"""`patching`, `head_detector` and `evals`: against whole runs of the reference and formulas written out.

Patched metrics are float32, and differ by 1e-6 at most; the rest within 1e-9.
"""

import math
import sys
import types
from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch
from reference import Reference
from small_models import STORY, small_model, small_tokenizer
from surface import EVALS, HEAD_DETECTOR, PATCHING, same
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import ActivationCache, HookedTransformer, evals, head_detector, patching

# Patching

LENGTH, HEADS = 4, 3
CORRUPTED, CLEAN = tiny_tokens(2, LENGTH, seed=1), tiny_tokens(2, LENGTH, seed=2)


def metric(logits: Tensor) -> Tensor:
    return (logits[:, -1, 3] - logits[:, 1, 5]).mean()


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model()


@pytest.fixture(scope="module")
def cache(model: HookedTransformer) -> ActivationCache:
    return model.run_with_cache(CLEAN)[1]


def cell(model: HookedTransformer, name: str, place: tuple[Any, ...]) -> float:
    """The metric of the corrupted run with one place of one activation taken from the clean run, by the reference."""
    clean = Reference(model.state_dict(), model.cfg).run(CLEAN).acts[name]

    def edit(at: str, value: Tensor) -> Tensor:
        if at == name:
            value = value.clone()
            value[place] = clean[place]
        return value

    return metric(Reference(model.state_dict(), model.cfg, edit=edit).run(CORRUPTED).logits).item()


ALL = slice(None)
# (activation, axes after the layer, and where an index points to)
SWEEPS: dict[str, tuple[str, tuple[int, ...], Any]] = {
    "resid_pre": ("hook_resid_pre", (LENGTH,), lambda pos: (ALL, pos)),
    "resid_mid": ("hook_resid_mid", (LENGTH,), lambda pos: (ALL, pos)),
    "attn_out": ("hook_attn_out", (LENGTH,), lambda pos: (ALL, pos)),
    "mlp_out": ("hook_mlp_out", (LENGTH,), lambda pos: (ALL, pos)),
    "attn_head_out_by_pos": ("attn.hook_z", (LENGTH, HEADS), lambda pos, head: (ALL, pos, head)),
    "attn_head_q_by_pos": ("attn.hook_q", (LENGTH, HEADS), lambda pos, head: (ALL, pos, head)),
    "attn_head_k_by_pos": ("attn.hook_k", (LENGTH, HEADS), lambda pos, head: (ALL, pos, head)),
    "attn_head_v_by_pos": ("attn.hook_v", (LENGTH, HEADS), lambda pos, head: (ALL, pos, head)),
    "attn_head_pattern_by_pos": ("attn.hook_pattern", (HEADS, LENGTH), lambda head, pos: (ALL, head, pos)),
    "attn_head_pattern_dest_src_pos": (
        "attn.hook_pattern",
        (HEADS, LENGTH, LENGTH),
        lambda head, to, of: (ALL, head, to, of),
    ),
    "attn_head_out_all_pos": ("attn.hook_z", (HEADS,), lambda head: (ALL, ALL, head)),
    "attn_head_q_all_pos": ("attn.hook_q", (HEADS,), lambda head: (ALL, ALL, head)),
    "attn_head_k_all_pos": ("attn.hook_k", (HEADS,), lambda head: (ALL, ALL, head)),
    "attn_head_v_all_pos": ("attn.hook_v", (HEADS,), lambda head: (ALL, ALL, head)),
    "attn_head_pattern_all_pos": ("attn.hook_pattern", (HEADS,), lambda head: (ALL, head)),
}


def swept(model: HookedTransformer, what: str) -> Tensor:
    hook, sizes, place = SWEEPS[what]
    values = [
        cell(model, f"blocks.{layer}.{hook}", place(*index))
        for layer in range(2)
        for index in product(*map(range, sizes))
    ]
    return torch.tensor(values).view(2, *sizes)


@PATCHING.shows(*(f"get_act_patch_{what}" for what in SWEEPS))
def test_sweeps(name: str, model: HookedTransformer, cache: ActivationCache) -> None:
    found = getattr(patching, name)(model, CORRUPTED, cache, metric)
    same(found, swept(model, name.removeprefix("get_act_patch_")), within=1e-6)


@PATCHING.shows(
    "get_act_patch_block_every", "get_act_patch_attn_head_all_pos_every", "get_act_patch_attn_head_by_pos_every"
)
def test_stacked_sweeps(name: str, model: HookedTransformer, cache: ActivationCache) -> None:
    kinds = [f"attn_head_{part}" for part in ("out", "q", "k", "v", "pattern")]
    wanted = {
        "block_every": ["resid_pre", "attn_out", "mlp_out"],
        "attn_head_all_pos_every": [f"{kind}_all_pos" for kind in kinds],
        "attn_head_by_pos_every": [f"{kind}_by_pos" for kind in kinds],
    }[name.removeprefix("get_act_patch_")]
    parts = [swept(model, what) for what in wanted]
    # A pattern comes by head and then position; in the stack all have the position first.
    parts = [part.transpose(1, 2) if part.shape[1:] == (HEADS, LENGTH) else part for part in parts]
    same(getattr(patching, name)(model, CORRUPTED, cache, metric), torch.stack(parts), within=1e-6)


SETTERS = {
    "layer_pos_patch_setter": ([1, 2], (ALL, 2)),
    "layer_pos_head_vector_patch_setter": ([1, 2, 0], (ALL, 2, 0)),
    "layer_head_vector_patch_setter": ([1, 2], (ALL, ALL, 2)),
    "layer_head_pattern_patch_setter": ([1, 2], (ALL, 2)),
    "layer_head_pos_pattern_patch_setter": ([1, 2, 3], (ALL, 2, 3)),
    "layer_head_dest_src_pos_pattern_patch_setter": ([1, 2, 3, 0], (ALL, 2, 3, 0)),
}


@PATCHING.shows(*SETTERS)
def test_setters(name: str) -> None:
    index, place = SETTERS[name]
    corrupted, clean = torch.randn(2, 2, 4, 4, 5)
    wanted = corrupted.clone()
    wanted[place] = clean[place]
    assert torch.equal(getattr(patching, name)(corrupted, index, clean), wanted) and not torch.equal(wanted, clean)


@PATCHING.shows("generic_activation_patch")
def test_generic_activation_patch(model: HookedTransformer, cache: ActivationCache) -> None:
    def negate(corrupted: Tensor, index: Any, clean: Tensor) -> Tensor:
        return torch.where(torch.arange(LENGTH)[:, None, None] == index[1], -clean, corrupted)

    given = (model, CORRUPTED, cache, metric, negate, "z")
    values, table = patching.generic_activation_patch(*given, index_axis_names=["layer", "pos"], return_index_df=True)
    assert table.columns.tolist() == ["layer", "pos"] and table.values.tolist() == [
        *map(list, product(range(2), range(4)))
    ]
    acts = Reference(model.state_dict(), model.cfg).run(CLEAN).acts
    for layer, pos in product(range(2), range(LENGTH)):

        def edit(at: str, value: Tensor, layer: int = layer, pos: int = pos) -> Tensor:
            if at == f"blocks.{layer}.attn.hook_z":
                value = value.clone()
                value[:, pos] = -acts[at][:, pos]
            return value

        wanted = metric(Reference(model.state_dict(), model.cfg, edit=edit).run(CORRUPTED).logits).float()
        same(values[layer, pos], wanted, within=1e-6)
    some = pd.DataFrame({"layer": [1, 0], "pos": [3, 2]})
    same(patching.generic_activation_patch(*given, index_df=some), torch.stack([values[1, 3], values[0, 2]]))


@PATCHING.shows("make_df_from_ranges")
def test_make_df_from_ranges() -> None:
    frame = patching.make_df_from_ranges([2, 3], ["layer", "pos"])
    assert frame.to_dict("list") == {"layer": [0, 0, 0, 1, 1, 1], "pos": [0, 1, 2, 0, 1, 2]}


# Head detection

ROW = [5, 6, 5, 7, 6]
PATTERNS: dict[str, list[tuple[int, int]]] = {  # (query, key)
    "previous_token_head": [(1, 0), (2, 1), (3, 2), (4, 3)],
    "duplicate_token_head": [(2, 0), (4, 1)],
    "induction_head": [(2, 1), (4, 2)],
}


def matrix(pairs: list[tuple[int, int]]) -> Tensor:
    out = torch.zeros(5, 5)
    for query, key in pairs:
        out[query, key] = 1
    return out


@HEAD_DETECTOR.shows("HEAD_NAMES", *(f"get_{kind}_detection_pattern" for kind in PATTERNS))
def test_detection_patterns(name: str) -> None:
    assert head_detector.HEAD_NAMES == list(PATTERNS)
    for kind in PATTERNS if name == "HEAD_NAMES" else [name.removeprefix("get_").removesuffix("_detection_pattern")]:
        make = getattr(head_detector, f"get_{kind}_detection_pattern")
        assert torch.equal(make(torch.tensor(ROW)), matrix(PATTERNS[kind]))
        assert torch.equal(make(torch.tensor([ROW])), matrix(PATTERNS[kind]))


def similarity(pattern: Tensor, wanted: Tensor, *, bos: bool, current: bool, measure: str) -> float:
    """Entry by entry: the share of attention on the pattern, or 1 less the mean row's absolute difference."""
    size, hit, total, apart = len(wanted), 0.0, 0.0, 0.0
    for query, key in product(range(size), range(size)):
        if (bos and key == 0) or (current and key == query):
            continue
        paid, expected = float(pattern[query, key]), float(wanted[query, key])
        hit, total, apart = hit + paid * expected, total + paid, apart + abs(paid - expected)
    return hit / total if measure == "mul" else 1 - round(apart / size, 3)


MEASURES = [(bos, current, measure) for bos in (False, True) for current in (False, True) for measure in ("mul", "abs")]


@HEAD_DETECTOR.shows("compute_head_attention_similarity_score")
@pytest.mark.parametrize(("bos", "current", "measure"), MEASURES)
def test_similarity(bos: bool, current: bool, measure: Any) -> None:
    pattern = torch.randn(5, 5, dtype=torch.float64).tril().softmax(-1).tril()
    for pairs in PATTERNS.values():
        found = head_detector.compute_head_attention_similarity_score(
            pattern, matrix(pairs), exclude_bos=bos, exclude_current_token=current, error_measure=measure
        )
        assert abs(found - similarity(pattern, matrix(pairs), bos=bos, current=current, measure=measure)) < 1e-9


@HEAD_DETECTOR.shows("detect_head")
@pytest.mark.parametrize(("bos", "current", "measure"), MEASURES)
def test_detect_head(bos: bool, current: bool, measure: Any) -> None:
    model = small_model(dtype=torch.float64)
    text = "Mary saw the dog, Mary saw"
    ids = [0, *model.tokenizer.encode(text)]
    acts = Reference(model.state_dict(), model.cfg).run(torch.tensor([ids])).acts
    pairs = {
        "previous_token_head": lambda q, k: k == q - 1,
        "duplicate_token_head": lambda q, k: k < q and ids[k] == ids[q],
        "induction_head": lambda q, k: 0 < k <= q and ids[k - 1] == ids[q] and k - 1 < q,
    }
    options: dict[str, Any] = {"exclude_bos": bos, "exclude_current_token": current, "error_measure": measure}
    for kind, is_hit in pairs.items():
        wanted = torch.tensor([[float(is_hit(q, k)) for k in range(len(ids))] for q in range(len(ids))])
        assert bool(wanted.any())
        scores = torch.zeros(2, 3, dtype=torch.float64)
        for layer, head in product(range(2), range(3)):
            pattern = acts[f"blocks.{layer}.attn.hook_pattern"][0, head]
            scores[layer, head] = similarity(pattern, wanted, bos=bos, current=current, measure=measure)
        same(head_detector.detect_head(model, text, kind, **options), scores)
        same(head_detector.detect_head(model, [text, text], wanted, **options), scores)
        _, cache = model.run_with_cache(text)
        some = head_detector.detect_head(model, text, kind, [(1, 2), (0, 1)], cache, **options)
        assert (some == -1).sum() == 4
        same(some[[1, 0], [2, 1]], scores[[1, 0], [2, 1]])
        same(head_detector.detect_head(model, text, kind, heads={1: [2], 0: [1]}, **options), some)


@HEAD_DETECTOR.shows("get_supported_heads")
def test_get_supported_heads(capsys: pytest.CaptureFixture[str]) -> None:
    head_detector.get_supported_heads()
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in PATTERNS)


@HEAD_DETECTOR.shows("is_lower_triangular", "is_square")
def test_shapes(name: str) -> None:
    cases = [
        (torch.ones(3, 3), False, True), (torch.ones(3, 3).tril(), True, True), (torch.zeros(2, 3), False, False),
        (torch.eye(4).roll(1, 0), False, True), (torch.ones(2, 2, 2), False, False),
    ]  # fmt: skip
    for tensor, triangular, square in cases:
        assert getattr(head_detector, name)(tensor) is (triangular if name == "is_lower_triangular" else square)


# Evals


def losses(model: HookedTransformer, tokens: Tensor) -> Tensor:
    log_probs = Reference(model.state_dict(), model.cfg).run(tokens).logits.log_softmax(-1)
    return -log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@pytest.fixture(scope="module")
def reader() -> HookedTransformer:
    return small_model(dtype=torch.float64)


@EVALS.shows("sanity_check")
def test_sanity_check() -> None:
    """The loss on whatever text it runs; that is plain English, so it is found again in the embeddings."""
    model = small_model(dtype=torch.float64, n_ctx=512)
    seen: list[Tensor] = []
    model.embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = evals.sanity_check(model)
    assert len(model.tokenizer.decode(seen[0][0]).split()) > 40
    same(loss.detach(), losses(model, seen[0]).mean())


@EVALS.shows("evaluate_on_dataset")
def test_evaluate_on_dataset(reader: HookedTransformer) -> None:
    batches = [{"tokens": torch.randint(1, 300, (2, 7))} for _ in range(3)]
    means = [losses(reader, batch["tokens"]).mean().item() for batch in batches]
    assert math.isclose(evals.evaluate_on_dataset(reader, batches), sum(means) / 3, abs_tol=1e-9)
    assert math.isclose(evals.evaluate_on_dataset(reader, batches, truncate=2, device="cpu"), sum(means[:2]) / 2)


SOURCES = {
    "wiki": ("wikitext", "wikitext-2-v1"),
    "owt": ("stas/openwebtext-10k", None),
    "pile": ("NeelNanda/pile-10k", None),
    "code": ("codeparrot/codeparrot-valid-v2-near-dedup", None),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for the optional package `datasets`, and what it was asked for."""

    class Rows(list[dict[str, str]]):
        column_names = ["text", "content"]

    calls: list[Any] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Rows:
        calls.append((name, config))
        return Rows({"text": f"{i} {STORY}", "content": f"def {i} {STORY}"} for i in range(24))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


@EVALS.shows("DATASET_NAMES", "DATASET_LOADERS", *(f"make_{name}_data_loader" for name in SOURCES))
def test_loaders(name: str, asked: list[Any]) -> None:
    """Rows of a thousand tokens, that begin with BOS, of the documents with EOS between them."""
    assert list(SOURCES) == evals.DATASET_NAMES
    assert [getattr(evals, f"make_{each}_data_loader") for each in SOURCES] == evals.DATASET_LOADERS
    tokenizer = small_tokenizer()
    wanted = [name[5:-12]] if name.startswith("make_") else list(SOURCES)
    for each in wanted:
        (batch,) = getattr(evals, f"make_{each}_data_loader")(tokenizer, batch_size=1)
        assert batch["tokens"].shape == (1, 1024) and int(batch["tokens"][0, 0]) == tokenizer.bos_token_id
        text = tokenizer.decode(batch["tokens"][0, 1:])
        documents = [f"{'def ' * (each == 'code')}{i} {STORY}" for i in range(24)]
        assert tokenizer.eos_token.join(documents).startswith(text)
    assert asked == [SOURCES[each] for each in wanted]


@EVALS.shows("evaluate")
def test_evaluate(reader: HookedTransformer, asked: list[Any]) -> None:
    found = evals.evaluate(reader, truncate=1, batch_size=2)
    assert list(found) == ["wiki_loss", "owt_loss", "pile_loss", "code_loss"] and asked == list(SOURCES.values())
    first = next(iter(evals.make_wiki_data_loader(reader.tokenizer, 2, max_length=48)))["tokens"]
    assert first.shape == (2, 48)
    assert math.isclose(found["wiki_loss"], losses(reader, first).mean().item(), abs_tol=1e-9)
    other = evals.evaluate(reader, 1, 2, tokenizer=small_tokenizer())
    assert other == found


@EVALS.shows("induction_loss")
def test_induction_loss(reader: HookedTransformer) -> None:
    seen: list[Tensor] = []
    handle = reader.embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = evals.induction_loss(reader, batch_size=3, subseq_len=8)
    evals.induction_loss(reader, prepend_bos=False, device="cpu")
    handle.remove()
    tokens = seen[0]
    assert tokens.shape == (3, 16) and bool((tokens[:, 0] == reader.tokenizer.bos_token_id).all())
    assert torch.equal(tokens[:, 1:8], tokens[:, 9:])
    same(loss.detach(), losses(reader, tokens)[:, 9:].mean())
    assert seen[1].shape == (4, 48) and torch.equal(seen[1][:, :24], seen[1][:, 24:])


@EVALS.shows("IOIDataset", "ioi_eval")
def test_ioi(name: str, reader: HookedTransformer) -> None:
    dataset = evals.IOIDataset(
        reader.tokenizer, ["When [A] and [B] saw the [X], [B] ran to [A]"], ["Mary", "John"], {"X": ["dog"]}, 6
    )
    differences = []
    for index in range(6):
        item = {key: value.tolist() for key, value in dataset[index].items()}
        assert {tuple(item["IO"]), tuple(item["S"])} == {
            tuple(reader.tokenizer.encode(f" {n}")) for n in ("Mary", "John")
        }
        a, b = (reader.tokenizer.decode(item[key]) for key in ("IO", "S"))
        assert item["prompt"] == [0, *reader.tokenizer.encode(f"When{a} and{b} saw the dog,{b} ran to{a}")]
        logits = Reference(reader.state_dict(), reader.cfg).run(torch.tensor([item["prompt"][:-1]])).logits[0, -1]
        differences.append(float(logits[item["IO"][0]] - logits[item["S"][0]]))
    if name == "IOIDataset":
        pairs = evals.IOIDataset(reader.tokenizer, num_samples=4, symmetric=True, prepend_bos=False)
        assert torch.equal(pairs[0]["IO"], pairs[1]["S"]) and torch.equal(pairs[1]["IO"], pairs[0]["S"])
        assert int(pairs[0]["prompt"][0]) != 0 and len(pairs) == 4
        assert len(evals.IOIDataset(reader.tokenizer)) == 1000
        return
    found = evals.ioi_eval(reader, dataset, batch_size=4)
    assert set(found) == {"Logit Difference", "Accuracy"}
    assert math.isclose(found["Logit Difference"], sum(differences) / 6, abs_tol=1e-9)
    assert math.isclose(found["Accuracy"], sum(each > 0 for each in differences) / 6)


def test_every_row_has_a_check() -> None:
    assert PATCHING.unchecked() == []
    assert HEAD_DETECTOR.unchecked() == []
    assert EVALS.unchecked() == []
