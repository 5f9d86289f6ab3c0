"""Two models on one page: what is said, what is drawn, and what is refused."""

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from report_pages import Page
from small_models import STORY, small_model

from headscope import HookedTransformer
from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.core.costs import Work
from headscope.analysis.lens.entropy import measure_entropy
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.report import Comparison, token_rows, write_comparison
from headscope.report.blocks import Prose
from headscope.report.comparison.compared import Compared
from headscope.report.comparison.sections import compared_loss_section, compared_models_section
from headscope.report.kept import Kept
from headscope.report.model.measuring import measure
from headscope.report.plan import Plan

TABLES = {f"comparison_{name}.parquet" for name in ("entropy", "entropy_states", "loss", "ablation", "head_scores")}


@pytest.fixture(scope="module")
def models() -> tuple[HookedTransformer, HookedTransformer]:
    """A model, and the same with a head that writes nothing and an unembedding that knows the word that is most."""
    first, second = small_model(), small_model()
    tokens = token_rows(first, [STORY] * 8, max_tokens=200)
    with torch.no_grad():
        second.blocks[1].attn.W_O[2] = 0.0
        second.b_U[tokens.flatten().bincount().argmax()] += 3.0
    return first, second


@pytest.fixture(scope="module")
def made(models: tuple[HookedTransformer, HookedTransformer], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    out = tmp_path_factory.mktemp("comparison") / "here"
    return write_comparison(*models, [STORY] * 8, out, describe="a story", max_tokens=200, progress=False)


@pytest.fixture(scope="module")
def page(made: Comparison) -> Page:
    return Page(made.page.read_text(encoding="utf-8"))


def test_the_words_agree_with_the_numbers(
    models: tuple[HookedTransformer, HookedTransformer], made: Comparison, page: Page
) -> None:
    tokens = token_rows(models[0], [STORY] * 8, max_tokens=200)
    # From BOS nothing is predicted that counts.
    losses = [float(model.loss_fn(model(tokens), tokens, per_token=True)[:, 1:].mean().detach()) for model in models]
    assert made.loss == pytest.approx(losses, abs=1e-5)
    gap = losses[1] - losses[0]
    better = "small (second)" if gap < 0 else "small (first)"
    sure = f"{better} predicts this text better than" in page.words
    assert sure or f"Neither model clearly predicts this text better: the loss differs by {gap:+.3f} ± " in page.words
    # The models have the same name, so they are told apart; the text is the same for both.
    assert "4 of 48 tokens, the same for both" in page.words
    entropies = [measure_entropy(model, tokens, progress=False) for model in models]
    final = dict(zip(("small (first)", "small (second)"), (float(each.resid[-1]) for each in entropies), strict=True))
    low, high = sorted(final, key=lambda name: final[name])
    said = rf"of {re.escape(high)} are less certain: their entropy is {final[high]:.3f} ± \S+ nats, and that of "
    assert re.search(rf"{said}{re.escape(low)} {final[low]:.3f} ± ", page.words)
    diffs = [float(entropy.diff[1, 2]) for entropy in entropies]
    assert abs(diffs[1]) < 1e-6 < abs(diffs[0])
    assert f"1.2{diffs[0]:+.3f} ± " in page.words


def test_heads_are_compared_by_ablation(models: tuple[HookedTransformer, HookedTransformer], made: Comparison) -> None:
    tokens = token_rows(models[0], [STORY] * 8, max_tokens=200)
    table = pd.read_parquet(made.directory / "comparison_ablation.parquet")
    for model, name in zip(models, ("small (first)", "small (second)"), strict=True):
        effect = ablate_heads(model, tokens, values=["mean", "zero"], progress=False).to_frame()
        ours = table[table.model == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(ours, effect, check_dtype=False)


def test_figures_have_both_models_and_their_difference(made: Comparison, page: Page) -> None:
    source = made.page.read_text(encoding="utf-8")
    assert {path.name for path in made.tables} == TABLES
    assert sorted(path.name for path in made.directory.iterdir()) == sorted([*TABLES, "comparison.html"])
    # Loss, layers, two of entropy, ablation, three kinds of head.
    assert page.classes.count("plot") == 8
    assert source.count('"text":"second − first"') + source.count('"text":"second \\u2212 first"') == 6
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    anchors = [attrs["href"] or "" for tag, attrs in page.elements if tag == "a"]
    assert {anchor[1:] for anchor in anchors if anchor.startswith("#")} <= set(ids)


def test_models_of_different_shapes_stand_side_by_side(tmp_path: Path) -> None:
    models = small_model(), small_model(n_layers=1, n_heads=4, n_ctx=40, model_name="wide")
    made = write_comparison(*models, [STORY] * 8, tmp_path, max_tokens=160, ablation_tokens=0, progress=False)
    source = made.page.read_text(encoding="utf-8")
    page = Page(source)
    assert "4 of 40 tokens, the same for both" in page.words
    assert "second − first" not in source and "second \\u2212 first" not in source
    assert "heads clearly differ" not in page.words and 'id="ablation"' not in source
    assert "The heads with the largest effect in each model" in page.words
    frame = pd.read_parquet(tmp_path / "comparison_entropy.parquet")
    assert frame.groupby("model").size().to_dict() == {"small": 8, "wide": 5}


def test_models_that_cut_text_differently_are_compared_by_byte(tmp_path: Path) -> None:
    first, second = small_model(), small_model(model_name="other")
    # The same tokenizer, but it begins a text differently, so that the rows are others.
    rows = [token_rows(first, [STORY] * 8, max_tokens=200), token_rows(second, [STORY[5:]] * 8, max_tokens=200)]
    with Plan((), Work()).following(shown=False) as following:
        sides = [
            measure(
                model,
                row,
                parts=["loss"],
                describe="a story",
                ablation_tokens=0,
                following=following,
                kept=Kept(None),
                progress=False,
            )
            for model, row in zip((first, second), rows, strict=True)
        ]
    section = compared_loss_section(Compared(("a", "b"), *sides))
    assert "nats per byte" in section.summary[0]
    table = section.blocks[0]
    for side, cells in zip(sides, table.rows, strict=True):  # type: ignore[union-attr]
        n_bytes = sum(len(string.encode()) for strings in side.strings for string in strings[2:])
        assert cells[2].value == pytest.approx(float(side.predictions.loss.nansum()) / n_bytes, rel=1e-5)
    # What stands in front of the text is said of both, or of the model that has it.
    for bos, beginning in ((sides[0].bos, "In front of each"), (None, "a: In front of each")):
        both = Compared(("a", "b"), sides[0], dataclasses.replace(sides[1], bos=bos))
        said = [block.text.striptags() for block in compared_models_section(both).blocks if isinstance(block, Prose)]
        assert said[0].startswith(beginning) and "In front" not in said[1], said


def test_tokens_do_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    models = [small_model(tokenizer=False, d_vocab=30, seed=seed) for seed in (0, 1)]
    made = write_comparison(*models, torch.randint(0, 30, (3, 20)), tmp_path, ablation_tokens=0, progress=False)
    assert "3 of 20 tokens, the same for both" in Page(made.page.read_text(encoding="utf-8")).words
    with pytest.raises(MissingTokenizerError):
        write_comparison(*models, [STORY], tmp_path, progress=False)


def test_names_are_escaped_and_told_apart(tmp_path: Path) -> None:
    models = small_model(), small_model()
    hostile = ("<script>alert(1)</script>%{x}", "<script>alert(1)</script>%{x}")
    made = write_comparison(
        *models, [STORY] * 4, tmp_path, names=hostile, max_tokens=96, ablation_tokens=0, progress=False
    )
    source = made.page.read_text(encoding="utf-8")
    assert "<script>alert" not in source and "%{x}" not in re.sub(r"&lt;[^<]*", "", source.split("</nav>")[0])
    assert set(pd.read_parquet(made.tables[0]).model) == {f"{hostile[0]} (first)", f"{hostile[0]} (second)"}


def test_bad_input_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    models = small_model(), small_model()
    with pytest.raises(InvalidInputError, match="ablation_tokens must be at least 0; got -1"):
        write_comparison(*models, [STORY], tmp_path / "out", ablation_tokens=-1, progress=False)
    with pytest.raises(InvalidInputError, match="seq_len must be between 2"):
        write_comparison(*models, [STORY], tmp_path / "out", seq_len=49, progress=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInputError, match="is a file; the report needs a folder"):
        write_comparison(*models, [STORY], tmp_path / "file", ablation_tokens=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
