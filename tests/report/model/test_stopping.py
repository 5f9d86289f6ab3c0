"""A report that is stopped, continued, made in parts, or fails in one part: what is done stands, the page says so."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from report_pages import Page
from small_models import STORY, small_model

from headscope import HookedTransformer
from headscope.analysis.ablation.ablate import AblationAccumulator
from headscope.analysis.core.batches import Batch
from headscope.analysis.core.progress import Bar, watching
from headscope.analysis.lens.entropy import EntropyAccumulator
from headscope.errors import InvalidInputError, StorageError, UnknownNameError
from headscope.ops.devices import budget
from headscope.report import SECTIONS, Report, Stopped, token_rows, write_report
from headscope.report.kept import Kept
from headscope.report.model import measuring
from headscope.scale import InProcess

OPTIONS: dict[str, Any] = {
    "describe": "a story", "max_tokens": 300, "ablation_tokens": 150, "n_heads": 2, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_batches() -> Iterator[None]:
    """Let 300 tokens be several batches."""
    with budget(batch_tokens=96):
        yield


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model()


@pytest.fixture(scope="module")
def whole(model: HookedTransformer, tmp_path_factory: pytest.TempPathFactory) -> Report:
    report = write_report(model, [STORY] * 8, tmp_path_factory.mktemp("whole"), **OPTIONS)
    assert not report.failed
    return report


def words_of(folder: Path) -> tuple[str, set[str]]:
    """The words of a report's page, and the ids of its sections."""
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    return page.words, {attrs["id"] or "" for tag, attrs in page.elements if tag == "section"}


def stopping_at(
    monkeypatch: pytest.MonkeyPatch, accumulator: type, call: int, error: BaseException | None = None
) -> list[Batch]:
    """Let the update of an accumulator be stopped at one of its calls; the batches it was called with."""
    measured: list[Batch] = []
    update: Callable[[Any, Batch], None] = accumulator.update  # type: ignore[attr-defined]

    def stopped(self: Any, batch: Batch) -> None:
        if len(measured) == call:
            raise error or KeyboardInterrupt
        measured.append(batch)
        update(self, batch)

    monkeypatch.setattr(accumulator, "update", stopped)
    return measured


def same_tables(folder: Path, whole: Report) -> None:
    assert {path.name for path in folder.glob("*.parquet")} == {path.name for path in whole.tables}
    for path in whole.tables:
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / path.name), pd.read_parquet(path), check_exact=True, obj=path.name
        )


@pytest.mark.parametrize(
    ("accumulator", "call", "done", "missing"),
    [
        (EntropyAccumulator, 2, "loss, types", "entropy, ablation, suppression, attention"),
        (AblationAccumulator, 1, "loss, entropy, types, attention", "ablation, suppression"),
    ],
)
def test_a_stopped_report_is_continued_as_if_it_never_was(
    model: HookedTransformer,
    whole: Report,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulator: type,
    call: int,
    done: str,
    missing: str,
) -> None:
    with monkeypatch.context() as patch:
        before = stopping_at(patch, accumulator, call)
        with pytest.raises(Stopped) as stopped:
            write_report(model, [STORY] * 8, tmp_path, task=None, command="headscope report --resume", **OPTIONS)
    told = str(stopped.value)
    assert f"has the sections that were done ({done}), and lacks {missing}." in told
    assert f"kept in {tmp_path / 'measured'}; to continue: headscope report --resume" in told
    words, sections = words_of(tmp_path)
    assert "This report is not whole: it was stopped. Missing: " in words
    assert "What was measured is kept; to continue: headscope report --resume" in words
    assert {"loss", "types"} <= sections and not {"ablation", "suppression", "task"} & sections
    assert "of 6 heads" not in words and "suppresses copying" not in words and "missed most" not in words
    with monkeypatch.context() as patch:
        after = stopping_at(patch, accumulator, 99)
        continued = write_report(model, [STORY] * 8, tmp_path, task=None, resume=True, **OPTIONS)
    # It goes on within the pass: no batch is measured twice.
    assert len(before) == call and torch.cat([each.tokens for each in before + after]).shape[0] == (
        6 if accumulator is EntropyAccumulator else 3
    )
    same_tables(tmp_path, whole)
    words, sections = words_of(tmp_path)
    assert "not whole" not in words and not (tmp_path / "measured").exists()
    assert continued.loss == whole.loss and set(continued.sections) == set(SECTIONS) - {"task"}


def test_ablation_goes_on_behind_the_layers_that_are_done(
    model: HookedTransformer, whole: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_ABLATED_AT_ONCE", 1.0)  # a layer at a time
    asked = {**OPTIONS, "sections": ["ablation", "loss"]}
    with monkeypatch.context() as patch:
        before = stopping_at(patch, AblationAccumulator, 3)  # within the second layer, of two batches
        with pytest.raises(Stopped):
            write_report(model, [STORY] * 8, tmp_path, **asked)
    with monkeypatch.context() as patch:
        after = stopping_at(patch, AblationAccumulator, 99)
        write_report(model, [STORY] * 8, tmp_path, resume=True, **asked)
    assert (len(before), len(after)) == (3, 1)
    there, here = (pd.read_parquet(folder / "ablation.parquet") for folder in (whole.directory, tmp_path))
    pd.testing.assert_frame_equal(there, here, rtol=1e-4, atol=1e-6)


def test_ablation_moves_the_bar_as_it_goes(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_ABLATED_AT_ONCE", 1.0)
    seen: list[float] = []
    bar = Bar(1.0, "all", lambda bar: seen.append(float(bar.share)))
    with watching(bar):
        measuring._ablated(model, token_rows(model, [STORY] * 8, max_tokens=150), "a story", Kept(None), True)
    # Two layers, in each of which the means are not taken for the whole of it.
    assert any(0 < share < 0.4 for share in seen) and any(0.5 < share < 0.9 for share in seen)
    assert seen == sorted(seen) and seen[-1] == 1


def test_a_kill_leaves_what_was_flushed(
    model: HookedTransformer, whole: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing catches it."""

    with monkeypatch.context() as patch:
        stopping_at(patch, AblationAccumulator, 1, Killed())
        with pytest.raises(Killed):
            write_report(model, [STORY] * 8, tmp_path, task=None, **OPTIONS)
    assert not (tmp_path / "report.html").exists()
    assert json.loads((tmp_path / "measured" / "report.json").read_bytes())["done"] == [
        "loss", "types", "entropy", "attention",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "predict_next_tokens", lambda *_, out, **__: _finished(out))
        write_report(model, [STORY] * 8, tmp_path, task=None, resume=True, **OPTIONS)
    same_tables(tmp_path, whole)


def _finished(out: Path) -> Any:
    from headscope.analysis.lens.loss import NextTokens

    return NextTokens.load(out / "result.safetensors")


def test_a_stop_before_any_section_writes_no_page(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "report"
    with monkeypatch.context() as patch:
        stopping_at(patch, EntropyAccumulator, 2)
        with pytest.raises(Stopped, match="No section was done yet. What was measured is kept in"):
            write_report(model, [STORY] * 8, out, sections="attention", **OPTIONS)
    assert [path.name for path in out.iterdir()] == ["measured"]
    with monkeypatch.context() as patch:
        stopping_at(patch, EntropyAccumulator, 0)
        patch.setattr(measuring, "predict_next_tokens", _stop)
        with pytest.raises(Stopped):
            write_report(model, [STORY] * 8, tmp_path / "nothing" / "at all", sections="loss", **OPTIONS)
    assert not (tmp_path / "nothing").exists()  # where nothing was measured, nothing is left


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_differs_from_the_report_that_was_stopped_is_named(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**OPTIONS, "task": None, "sections": ["loss", "entropy"]}
    with monkeypatch.context() as patch:
        stopping_at(patch, EntropyAccumulator, 2)
        with pytest.raises(Stopped):
            write_report(model, [STORY] * 8, tmp_path, **asked)
    with pytest.raises(InvalidInputError, match=r"holds the measurements of a report that was stopped\. Continue it"):
        write_report(model, [STORY] * 8, tmp_path, **asked)
    with pytest.raises(InvalidInputError, match="model.weights is '.*' there and '.*' here"):
        write_report(small_model(seed=7), [STORY] * 8, tmp_path, resume=True, **asked)
    with pytest.raises(InvalidInputError, match=r"data.tokens is .* there"):
        write_report(model, ["Once more, " + STORY] * 8, tmp_path, resume=True, **asked)
    with pytest.raises(InvalidInputError, match=r"options.max_tokens is 300 there and 200 here"):
        write_report(model, [STORY] * 8, tmp_path, resume=True, **{**asked, "max_tokens": 200})
    with pytest.raises(InvalidInputError, match=r"options.sections is \['loss', 'entropy'\] there and \['loss'\] here"):
        write_report(model, [STORY] * 8, tmp_path, resume=True, **{**asked, "sections": ["loss"]})
    assert (tmp_path / "measured" / "entropy" / "entropy.safetensors").exists()
    # The numbers of tokens are those it was begun with, where none are given.
    for name in ("max_tokens", "ablation_tokens"):
        del asked[name]
    assert write_report(model, [STORY] * 8, tmp_path, resume=True, **asked).entropy.info.n_sequences == 6  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_alone_says_nothing_of_others(model: HookedTransformer, tmp_path: Path, name: str) -> None:
    if name == "task":
        pytest.skip("this model cannot read the prompts")
    made = write_report(model, [STORY] * 8, tmp_path, sections=[name], **OPTIONS)
    assert made.sections == (name,) and not made.failed
    words, sections = words_of(tmp_path)
    ids = {"entropy": {"layers", "by-head", "heads"}}.get(name, {name})
    assert sections == {"summary", "facts", "numbers", *ids}
    assert f"Sectionsaskedfor{name}" in words.replace(" ", "")
    tables = {path.stem for path in made.tables}
    assert ("loss" in tables) == (name in ("loss", "entropy"))  # entropies come with what was predicted
    assert ("entropy" in tables) == (made.entropy is not None) == (name in ("entropy", "attention"))
    assert ("ablation" in tables) == (name == "ablation") and ("circuit_ranks" in tables) == (name == "suppression")
    summary = words[: words.index("Model and data", words.index("What was found"))]
    said = {
        "loss": "predicts the next token", "entropy": "raise entropy", "ablation": "the loss changes clearly",
        "types": "of its attention",
    }  # fmt: skip
    assert {each for each, sentence in said.items() if sentence in summary} <= {name}


def test_sections_come_in_the_order_of_the_page(model: HookedTransformer, whole: Report, tmp_path: Path) -> None:
    (tmp_path / "ablation.parquet").write_bytes((whole.directory / "ablation.parquet").read_bytes())
    made = write_report(model, [STORY] * 8, tmp_path, sections=["types", "loss"], **OPTIONS)
    assert made.sections == ("loss", "types")
    assert made.entropy is None and made.loss == whole.loss
    assert not (tmp_path / "ablation.parquet").exists()  # that of an earlier page, which had it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sections": ["entropi"]},
            "Unknown section 'entropi'. Did you mean 'entropy' .* A report has the sections loss, entropy, ablation",
        ),
        ({"sections": []}, "no section is asked for; a report has loss, entropy, ablation, task"),
        ({"sections": "task", "task": None}, "the section task is asked for, and task=None leaves it out"),
        ({"sections": ["suppression"], "ablation_tokens": 0}, "suppression is asked for, and ablation_tokens=0 leaves"),
    ],
)
def test_sections_that_there_are_not_are_told(
    model: HookedTransformer, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((UnknownNameError, InvalidInputError), match=message):
        write_report(model, [STORY] * 8, tmp_path / "out", **{**OPTIONS, **options})
    assert not (tmp_path / "out").exists()


def test_a_section_that_fails_loses_none_of_the_others(
    model: HookedTransformer, whole: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping_at(patch, AblationAccumulator, 1, RuntimeError("<out of memory>"))
        made = write_report(model, [STORY] * 8, tmp_path, task=None, **OPTIONS)
    assert made.sections == ("loss", "entropy", "suppression", "types", "attention")
    assert list(made.failed) == ["ablation"] and str(made.failed["ablation"]) == "<out of memory>"
    words, sections = words_of(tmp_path)
    assert "This report is not whole: ablation failed; nothing is said of that below. RuntimeError: <out of m" in words
    assert "ablation" not in sections and "suppression" in sections
    # What was measured stands, so that only what failed is tried again.
    again = write_report(model, [STORY] * 8, tmp_path, task=None, resume=True, **OPTIONS)
    assert not again.failed and not (tmp_path / "measured").exists()
    same_tables(tmp_path, whole)


def test_a_disk_that_fails_ends_it_all(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping_at(monkeypatch, EntropyAccumulator, 1, StorageError("no room"))
    with pytest.raises(StorageError, match="no room"):
        write_report(model, [STORY] * 8, tmp_path, task=None, **OPTIONS)
    assert not (tmp_path / "report.html").exists() and (tmp_path / "measured" / "report.json").exists()


def test_a_report_in_shards_is_the_report(model: HookedTransformer, tmp_path: Path) -> None:
    options = {**OPTIONS, "sections": "entropy"}
    whole = write_report(model, [STORY] * 8, tmp_path / "whole", **options)
    sharded = write_report(model, [STORY] * 8, tmp_path / "shards", **options, engine=InProcess(shard_tokens=128))
    assert not sharded.failed and not (tmp_path / "shards" / "measured").exists()
    assert whole.entropy is not None and sharded.entropy is not None
    assert torch.equal(sharded.entropy.diff.nan_to_num(), whole.entropy.diff.nan_to_num())
    assert words_of(tmp_path / "shards") == words_of(tmp_path / "whole")
