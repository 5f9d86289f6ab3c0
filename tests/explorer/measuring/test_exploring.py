"""A whole exploration: files with what the analyses give, stops that lose nothing, and words on what is missing."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from sizes import SetBudget
from tiny import tiny_model, tiny_tokens

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import ablate_heads, detect_heads, measure_entropy
from headscope.analysis.core.stats import estimates
from headscope.data.small_english import documents
from headscope.errors import InvalidInputError
from headscope.explorer import Exploration, explore
from headscope.explorer.measuring import activity as activity_module
from headscope.explorer.measuring import exploring
from headscope.explorer.measuring.activity import measure_activity
from headscope.explorer.measuring.rows import pick_rows, sampled_numbers
from headscope.explorer.measuring.written import written_for
from headscope.explorer.tree.means import read_means
from headscope.explorer.tree.measures import MEASURES
from headscope.report import token_rows

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "src/headscope/explorer/tree/schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def tokens(model: HookedTransformer) -> torch.Tensor:
    return token_rows(model, documents(1), max_tokens=1536, seq_len=48)


@pytest.fixture(scope="module")
def found(model: HookedTransformer, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Exploration:
    """The demo model on 32 sequences."""
    out = tmp_path_factory.mktemp("site") / "explorer"
    return explore(model, tokens, out, describe="small English", sequences=3, ablation_tokens=192, progress=False)


def test_every_file_is_as_the_schema_says(found: Exploration) -> None:
    files = {"config": "config", "scatter_data": "scatter_data", "search": "search"}
    files |= {f"heads/L{layer}H{head}": "head" for layer, head in found.heads}
    for name, definition in files.items():
        content = json.loads((found.directory / f"{name}.json").read_bytes())
        jsonschema.validate(content, {**SCHEMA, "$ref": f"#/$defs/{definition}"})
        assert (found.directory / f"{name}.js").exists()
    assert found.page.exists() and (found.directory / "assets").is_dir()
    assert not (found.directory / "measured").exists()
    assert found.config["pipeline_config"]["notes"] == []


def test_measures_are_those_of_the_analyses(found: Exploration, model: HookedTransformer, tokens: torch.Tensor) -> None:
    activity = measure_activity(model, tokens, progress=False)
    wanted: dict[str, tuple[torch.Tensor, torch.Tensor, int | None]] = {
        name: (activity.scores[at], activity.errors[at], int(activity.counts[at]))
        for at, name in enumerate(activity.measures)
    }
    rows = pick_rows(model, tokens, sampled_numbers(32, 2))
    entropy = measure_entropy(model, rows.data, reduce="none", progress=False)
    for name, values in (("entropy_diff", entropy.diff), ("entropy_marginal", entropy.marginal)):
        means = estimates(values[:, :4])
        wanted[name] = (means.values, means.errors, entropy.info.n_positions)
    rows = pick_rows(model, tokens, sampled_numbers(32, 4))
    ablation = ablate_heads(model, rows.data, values=["mean"], effects=["direct", "patched"], progress=False).mean()
    assert ablation.loss_diff_error is not None
    for at, name in enumerate(("ablation_direct", "ablation_total")):
        values, errors = (each[0, at].unflatten(0, (5, 4)) for each in (ablation.loss_diff, ablation.loss_diff_error))
        wanted[name] = (values, errors, ablation.info.n_positions)
    unknown = torch.full((5, 4), math.nan)
    types = detect_heads(model, progress=False)
    wanted["copying_score"] = (types.evidence_of("copying"), unknown, None)
    assert wanted.keys() | {"suppression_score"} == {measure.name for measure in MEASURES}
    for name, (values, errors, count) in wanted.items():
        for layer, head in found.heads:
            shown = (found.head(layer, head).measures or {})[name]
            value, error = float(values[layer, head]), float(errors[layer, head])
            assert shown["value"] == pytest.approx(value, rel=1e-5, abs=1e-6), name
            assert shown["count"] == count, name
            if math.isnan(error):
                assert shown["error"] is None, name
            else:
                assert shown["error"] == pytest.approx(error, rel=0.01, abs=1e-7), name
    suppressing = [(found.head(*head).measures or {})["suppression_score"] for head in found.heads]
    assert all(each["value"] is not None and each["error"] > 0 for each in suppressing)
    on_text = detect_heads(model, text=tokens, progress=False)
    assert {each["count"] for each in suppressing} == {on_text.n_repeats}
    assert 0 < on_text.n_repeats < on_text.info.n_positions


def test_what_is_known_of_the_demo_is_found(found: Exploration) -> None:
    """Head 0.3 attends to the token before; and heads of layer 1 are of the induction kind."""
    kinds = {(row["layer"], row["head"]): row["kinds"] for row in found.rows}
    assert kinds[0, 3] == ["previous_token"]
    head = found.head(0, 3)
    assert head.kinds is not None and head.kinds[0]["sure"] and head.kinds[0]["evidence"].startswith("score 0.")
    assert head.measures is not None and head.measures["prev_token_score"]["value"] > 0.9
    frame = found.to_frame()
    assert frame.induction_score.idxmax() // 4 == 1


def test_sequences_hold_patterns_and_tokens(found: Exploration, model: HookedTransformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, return_type=None)
    head = found.head(1, 2)
    assert head.sequences is not None
    assert [each["rank"] for each in head.sequences] == ["top"] * 3 + ["typical"] * (len(head.sequences) - 3)
    assert {each["interval"] for each in head.sequences if each["rank"] == "typical"} >= set(range(1, 10))
    norms = (cache["z", 1][:, :, 2] @ model.W_O[1, 2]).norm(dim=-1)
    best = norms[:, 1:].amax(-1).topk(3).values.tolist()
    assert [each["output_norm"] for each in head.sequences[:3]] == pytest.approx(best, rel=1e-3)
    for sequence in head.sequences:
        row = sequence["sequence_id"]
        assert sequence["tokens"] == model.to_str_tokens(tokens[row]) and sequence["seq_len"] == 48
        pattern = cache["pattern", 1][row, 2]
        assert sequence["attention_indices"] == sorted(sequence["attention_indices"])
        for index, value in zip(sequence["attention_indices"], sequence["attention_values"], strict=True):
            assert value == pytest.approx(float(pattern.flatten()[index]), abs=0.00051)
        assert sequence["output_norms"] == pytest.approx(norms[row].tolist(), rel=1e-3)


def test_rows_of_ov_are_made_of_the_weights(found: Exploration, model: HookedTransformer, tokens: torch.Tensor) -> None:
    """In float64, from the whole circuit of head 1.2 and of 0.1, for each of its sources."""
    activity = measure_activity(model, tokens, progress=False)
    with torch.no_grad():
        W_E, mlp = model.W_E, model.blocks[0].mlp
        later = W_E + mlp(model.blocks[0].ln2(W_E[None]))[0]
        for layer, head, embedded in ((0, 1, W_E), (1, 2, later)):
            x = embedded.double() - embedded.double().mean(-1, keepdim=True)
            x = x / (x.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
            written = x @ model.W_V[layer, head].double() @ model.W_O[layer, head].double()
            written = written - written.mean(-1, keepdim=True)
            logits = written @ model.W_U.double() * float(activity.gains[layer])
            logits -= logits.mean(-1, keepdim=True)
            table = found.head(layer, head).ov_table or ()
            assert len(table) == 12
            assert [each["id"] for each in table] == activity.key_tokens[layer, head, :12].tolist()
            for source in table:
                row = logits[source["id"]]
                for end, largest in (("promoted", True), ("suppressed", False)):
                    best = row.topk(10, largest=largest).values.tolist()
                    assert [each["logit"] for each in source[end]] == pytest.approx(best, rel=1e-3, abs=1e-4)


def test_the_live_page_has_the_means_of_a_sample(found: Exploration, model: HookedTransformer) -> None:
    means = read_means(found.directory, model)
    assert len(means) == 25 and all(bool(each.isfinite().all()) for each in means.values())


@pytest.mark.parametrize("stop_at", ["measure_sequences", "ablate_heads", "_write"])
def test_stopped_and_resumed_is_never_stopped(
    found: Exploration,
    model: HookedTransformer,
    tokens: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: str,
) -> None:
    options: dict[str, Any] = {"describe": "small English", "sequences": 3, "ablation_tokens": 192, "progress": False}

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exploring, stop_at, stop)
        with pytest.raises(KeyboardInterrupt):
            explore(model, tokens, tmp_path, **options)
    with pytest.raises(InvalidInputError, match=r"Go on with it by resume=True"):
        explore(model, tokens, tmp_path, **options)
    with pytest.raises(InvalidInputError, match="holds another run"):
        explore(model, tokens[:8], tmp_path, resume=True, **options)
    if stop_at == "_write":
        with pytest.raises(InvalidInputError, match="4 sequences of it"):
            explore(model, tokens, tmp_path, resume=True, **{**options, "ablation_tokens": 96})
    if stop_at == "measure_sequences":
        with monkeypatch.context() as patch:
            patch.setattr("headscope.explorer.measuring.activity.reduced", stop)  # nothing is measured twice
            again = explore(model, tokens, tmp_path, resume=True, **options)
    else:
        again = explore(model, tokens, tmp_path, resume=True, **options)
    for path in found.directory.rglob("*.json"):
        assert (again.directory / path.relative_to(found.directory)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("masked", [False, True])
def test_ablation_goes_in_small_batches(
    model: HookedTransformer, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    """So that what was stopped has lost little, and several processes share it."""
    given: list[Any] = []

    def ablate(_: HookedTransformer, data: list[Any], **__: Any) -> None:
        given.extend(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(exploring, "ablate_heads", ablate)
    mask = torch.ones_like(tokens) if masked else None
    with pytest.raises(KeyboardInterrupt):
        explore(model, tokens, tmp_path, attention_mask=mask, entropy_tokens=0, progress=False)
    rows = pick_rows(model, tokens, sampled_numbers(len(tokens), round(1024 / 47)), mask)
    batches = [batch["tokens"] if masked else batch for batch in given]
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 2] and torch.equal(torch.cat(batches), rows.tokens)
    if masked:
        assert torch.equal(torch.cat([batch["attention_mask"] for batch in given]), rows.mask)


def test_what_is_left_out_is_missing_and_said(model: HookedTransformer, tmp_path: Path) -> None:
    tokens = model.to_tokens(["Mary and John went to the park."] * 3, prepend_bos=True)
    found = explore(model, tokens, tmp_path, entropy_tokens=0, ablation_tokens=0, progress=False)
    notes = " ".join(found.config["pipeline_config"]["notes"])
    assert "effect on entropy was left out" in notes and "--no-ablation" in notes and "Kinds of heads" in notes
    measures = found.head(0, 0).measures or {}
    missing = {name for name, measure in measures.items() if measure["value"] is None}
    left_out = {"entropy_diff", "entropy_marginal", "ablation_direct", "ablation_total"}
    assert missing == left_out | {"induction_score", "duplicate_token_score"}  # nothing repeats


def test_models_without_a_tokenizer_or_of_other_kinds(tmp_path: Path) -> None:
    tokens = tiny_tokens(5, 12)
    small = tiny_model(dtype=torch.float32)
    found = explore(small, tokens, tmp_path / "small", progress=False)
    assert found.heads == tuple((layer, head) for layer in range(2) for head in range(3))
    sequence = (found.head(0, 0).sequences or [])[0]
    assert sequence["tokens"] == [f" {token}" for token in tokens[sequence["sequence_id"]].tolist()]
    both = tiny_model(dtype=torch.float32, attention_dir="bidirectional")
    found = explore(both, tokens, tmp_path / "both", progress=False)
    assert any("does not predict the next token" in note for note in found.config["pipeline_config"]["notes"])
    assert found.rows[0]["ablation_total"] is None and found.rows[0]["pattern_entropy"] is not None


def test_padding_is_cut_on_either_side(tmp_path: Path) -> None:
    model, tokens = tiny_model(dtype=torch.float32), tiny_tokens(4, 12)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :5] = False
    mask[1, 9:] = False
    options: dict[str, Any] = {"entropy_tokens": 0, "ablation_tokens": 0, "progress": False}
    found = explore(model, tokens, tmp_path, attention_mask=mask, **options)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=mask, return_type=None)
    seen = set()
    for sequence in found.head(1, 2).sequences or []:
        row = sequence["sequence_id"]
        seen.add(row)
        real = mask[row].nonzero()[:, 0]
        assert sequence["tokens"] == [f" {token}" for token in tokens[row, real].tolist()]
        pattern = cache["pattern", 1][row, 2][real][:, real]
        shown = torch.zeros_like(pattern).flatten()
        shown[sequence["attention_indices"]] = torch.tensor(sequence["attention_values"])
        best = pattern.topk(min(8, len(real)), -1)
        kept = torch.zeros_like(pattern).scatter(-1, best.indices, best.values)
        assert (shown.view_as(pattern) - kept).abs().max() < 0.0051
        norms = (cache["z", 1][row, real, 2] @ model.W_O[1, 2]).norm(dim=-1)
        assert sequence["output_norms"] == pytest.approx(norms.tolist(), rel=1e-3)
    assert seen == {0, 1, 2, 3}


def test_what_may_be_lost_is_said_and_nothing_smaller_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_budget: SetBudget
) -> None:
    model, tokens = tiny_model(dtype=torch.float32), tiny_tokens(20, 12)
    monkeypatch.setattr(activity_module, "N_ITEMS", 6)
    set_budget(batch_tokens=24)
    found = explore(model, tokens, tmp_path, entropy_tokens=0, ablation_tokens=0, progress=False)
    activity = measure_activity(model, tokens, progress=False)
    dropped = 0
    for layer, head in found.heads:
        record = found.head(layer, head)
        assert record.statistics is not None and record.top_key_tokens is not None
        lost = record.statistics["key_tokens_lost"]
        assert lost == pytest.approx(float(activity.lost[0, layer, head]), rel=0.01)
        assert all(each["weight"] >= 0.99 * lost for each in record.top_key_tokens)
        dropped += int((activity.key_tokens[layer, head] >= 0).sum()) - len(record.top_key_tokens)
        lists = {name.removesuffix("_lost") for name in record.statistics if name.endswith("_lost")}
        assert lists == {"key_tokens", "query_tokens", "token_pairs"}
        assert record.statistics.keys() <= found.config["statistics_display"].keys()
    assert dropped > 0


def test_kinds_are_told_on_sequences_drawn_at_random(
    model: HookedTransformer, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on those that are shown, which stand out."""
    given = []

    def spy(model: HookedTransformer, *, text: Any, **_: Any) -> None:
        given.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(exploring, "_OF_KINDS", 5)
    monkeypatch.setattr(exploring, "detect_heads", spy)
    with pytest.raises(KeyboardInterrupt):
        explore(model, tokens, tmp_path, entropy_tokens=0, ablation_tokens=0, progress=False)
    assert torch.equal(given[0], tokens[sampled_numbers(32, 5)])


@pytest.mark.parametrize(("n_rows", "wanted"), [(1, 1), (40, 2), (128, 8), (1024, 8), (2048, 16), (10**6, 1024)])
def test_entropy_is_measured_on_few_sequences(n_rows: int, wanted: int) -> None:
    assert len(exploring.entropy_sample(n_rows)) == wanted


def test_folders_with_other_files_and_options_out_of_range_are_refused(
    model: HookedTransformer, tmp_path: Path
) -> None:
    tokens = tiny_tokens(2, 7)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InvalidInputError, match=r"holds 'thesis.tex', which is no file of an explorer"):
        explore(model, tokens, tmp_path, progress=False)
    for name in ("sequences", "ablation_tokens", "entropy_tokens"):
        with pytest.raises(InvalidInputError, match=f"{name} must be at least"):
            explore(model, tokens, tmp_path / "new", progress=False, **{name: -1})
    with pytest.raises(InvalidInputError, match="explore goes through the data twice"):
        explore(model, iter([tokens]), tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_nothing_of_the_size_of_the_vocabulary_squared_is_made() -> None:
    """The OV rows of some sources, of a model whose vocabulary squared would take 160 GB."""
    cfg = HookedTransformerConfig(1, 4, 8, 4, d_vocab=200_000, attn_only=True, device="cpu")
    sources = torch.tensor([[[3, -1]]])
    written = written_for(HookedTransformer(cfg), sources, torch.ones(1), k=2, progress=False)
    assert written.promoted.shape == (1, 1, 2, 2) and written.promoted[0, 0, 1].tolist() == [-1, -1]
    assert bool((written.promoted_logits[0, 0, 0] > written.suppressed_logits[0, 0, 0]).all())
