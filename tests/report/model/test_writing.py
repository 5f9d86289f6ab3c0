"""The report: one page, its numbers beside it, together or not at all."""

import html
import math
import os
import re
import stat
from pathlib import Path

import pandas as pd
import pytest
import torch
from markupsafe import Markup
from report_pages import Page
from small_models import STORY, small_model

from headscope import HookedTransformer
from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.core.components import component_label
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.stats import estimate, estimates
from headscope.analysis.core.top_places import top_positions
from headscope.analysis.lens.entropy import EntropyResult, measure_entropy
from headscope.analysis.prompts.task import Task
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.analysis.suppression.scores import suppression_scores
from headscope.errors import HeadscopeError, InvalidInputError, MissingTokenizerError, NotFiniteError
from headscope.report import Report, Stopped, files, token_rows, write_report
from headscope.report.kept import Kept
from headscope.report.model import measuring
from headscope.report.model.entropy_section import no_head_raises, raising_heads
from headscope.report.model.findings import notable_heads
from headscope.report.model.suppression_section import suppression_verdict
from headscope.report.task.story import TaskStory
from headscope.report.words import visible
from headscope.training.toy_configs import palindrome
from headscope.views.html import bundle

TABLES = [
    "ablation.parquet",
    "circuit_ranks.parquet",
    "copy_suppression.parquet",
    "entropy.parquet",
    "entropy_states.parquet",
    "head_scores.parquet",
    "loss.parquet",
    "positions.parquet",
    "suppression_scores.parquet",
]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model()


@pytest.fixture(scope="module")
def report(model: HookedTransformer, tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("report") / "made" / "here"
    return write_report(model, [STORY] * 8, out, describe="a story", max_tokens=200, n_heads=3, progress=False)


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return report.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_folder_holds_the_page_and_its_tables_and_nothing_else(report: Report) -> None:
    assert sorted(path.name for path in report.directory.iterdir()) == sorted([*TABLES, "report.html"])
    assert {path.name for path in report.tables} == set(TABLES)
    assert [path.name for path in report.directory.parent.iterdir()] == ["here"]
    assert report.page.stat().st_mode & stat.S_IRGRP  # as any other file, not as a temporary one


def test_the_summary_is_that_of_the_page(report: Report, text: str) -> None:
    shown = Markup(text[text.index("<body") :]).striptags()
    assert report.summary and all("<" not in sentence and sentence in shown for sentence in report.summary)


def test_libraries_are_inlined_once_and_nothing_is_fetched(text: str, page: Page) -> None:
    assert text.count(bundle()) == 1
    assert len(re.findall(r"\* plotly\.js v", text)) == 1
    assert not [attrs for tag, attrs in page.elements if "src" in attrs or tag in ("link", "iframe", "object")]
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert {link for link in links if link and not link.startswith("#")} == set(TABLES)
    assert [attrs for _, attrs in page.elements if (attrs.get("content") or "").startswith("default-src 'none'")]


def articles(page: Page, kind: str) -> list[str]:
    """Ids of the articles about single heads."""
    ids = [attrs["id"] or "" for tag, attrs in page.elements if tag == "article"]
    return [name for name in ids if name.startswith(kind)]


def test_every_link_leads_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = [attrs["href"] for tag, attrs in page.elements if tag == "a" and (attrs["href"] or "").startswith("#")]
    heads = articles(page, "head-")
    # The sections and the summary in the contents, one for each sentence of the summary, and the tables' heads.
    sentences = page.classes.count("to")
    assert sentences >= 4 and heads
    assert len(anchors) == 2 + 11 + sentences + len(heads) + len(articles(page, "ablated-"))
    assert {anchor[1:] for anchor in anchors if anchor} <= set(ids)


def test_the_words_agree_with_the_numbers(model: HookedTransformer, report: Report, page: Page) -> None:
    tokens = token_rows(model, [STORY] * 8, max_tokens=200)
    assert tokens.shape == (4, 48)
    words = " ".join(page.text.split())
    losses = -model(tokens).detach().log_softmax(-1)[:, 1:-1].gather(-1, tokens[:, 2:, None])[..., 0].double()
    loss = float(losses.mean())
    assert report.loss == pytest.approx(loss, abs=1e-5)
    error = estimate(losses).error
    assert f"mean loss of {loss:.3f} ± {error:.3f} nats (perplexity {math.exp(loss):,.1f}, over 184 pred" in words
    assert f"is worse than a uniform guess ({math.log(model.cfg.d_vocab):.3f})" in words
    entropy = measure_entropy(model, tokens, progress=False)
    ends = [f"{float(entropy.resid[at]):.3f} ± " for at in (0, -1)]
    assert f"from {ends[0]}" in words and f"nats at the embedding to {ends[1]}" in words
    effects = measure_entropy(model, tokens, reduce="none", progress=False)
    diff, marginal = (estimates(each[:, :3]) for each in (effects.diff, effects.marginal))
    wanted = raising_heads(diff, marginal) or no_head_raises(diff, marginal)
    assert " ".join(wanted.striptags().split()).replace("\u2212", "-") in page.words
    assert "4 of 48 tokens" in words and f"{entropy.info.n_positions:,}" in words
    assert "In front of each of the 4 sequences stands <|end|>, " in words and "There are only 4 sequences" in words
    assert ("Documents are set apart by <|end|>" in words) == bool((tokens[:, 1:] == 0).any())


def test_what_is_clear_is_said(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] *= -12.0  # a head loud enough to be heard, against which another works
        model.unembed.W_U *= 4.0
    texts = [STORY[at:] for at in range(60)]
    written = write_report(model, texts, tmp_path, max_tokens=1440, ablation_tokens=960, progress=False)
    words = Page(written.page.read_text(encoding="utf-8")).words
    tokens = token_rows(model, texts, max_tokens=1440)
    effect = ablate_heads(model, tokens[:20], values=["mean", "zero"], progress=False)
    best = effect.top(1)[0]
    worst = effect.top(1, largest=False)[0]
    assert "0.1" in (best.label, worst.label)
    said = [f"without head {score.label} ({score.loss_diff:+.3f} ± " in words for score in (best, worst)]
    assert any(said) and "of 6 heads " in words
    entropy = measure_entropy(model, tokens, reduce="none", progress=False)
    raising = {}
    for by in ("diff", "marginal"):
        top = entropy.mean().top(1, by=by)[0]
        raising[by] = estimates(getattr(entropy, by)[:, :3]).clear(1)
        assert raising[by].any() and raising[by][top.layer, top.head]
        assert f"by {by}, head {top.label} ({top.value:+.3f} ± " in words
    diff, marginal = ("s" * (int(each.sum()) == 1) for each in raising.values())
    assert f"{int(raising['diff'].sum())} clearly raise{diff} the entropy of the stream (diff)" in words
    assert f"{int(raising['marginal'].sum())} clearly raise{marginal} that of the final prediction (marginal)" in words


def test_the_page_has_every_part(page: Page, text: str) -> None:
    for heading in ("Loss", "Entropy per layer", "Entropy per head", "Head types", "Attention patterns"):
        assert heading in page.text
    assert page.classes.count("plot") == 7
    # Each figure says what it shows, how it was made and what color means.
    tags = [tag for tag, _ in page.elements]
    assert (
        tags.count("figure")
        == tags.count("figcaption")
        == 10
        == text.count("<dt>How</dt><dd>")
        == text.count("<dt>Color</dt><dd>")
    )
    for title in ("Entropy change by each head and MLP", "Entropy change by each head", "Heads that raise entropy"):
        assert f'"text":"{title}"' in text
    assert text.count('"text":"on a story"') == 6
    assert text.count('data-kind="attention"') == 1
    assert text.count('data-kind="activations"') == 1
    # The sample, five positions for each head that raises entropy, three for each that is ablated.
    n_heads, n_ablated = len(articles(page, "head-")), len(articles(page, "ablated-"))
    assert 1 <= n_heads <= 3 and n_ablated == 2
    assert text.count('data-kind="tokens"') == 1 + n_heads * 5 + n_ablated * 3


def test_what_breaks_without_each_head(model: HookedTransformer, report: Report, page: Page) -> None:
    tokens = token_rows(model, [STORY] * 8, max_tokens=200)
    effect = ablate_heads(model, tokens, values=["mean", "zero"], progress=False)
    table = pd.read_parquet(report.directory / "ablation.parquet")
    pd.testing.assert_frame_equal(table, effect.to_frame(), check_dtype=False)
    words = page.words
    # No head's effect is far enough from zero, beside its error, to be told from chance among six.
    assert all(abs(score.loss_diff) < 2.6 * score.error for score in effect.top(6))
    assert "By the patched effect, the loss changes clearly for none of 6 heads." in words
    summary = words[: words.index("Model and data Model")]
    assert "of 6 heads" not in summary[summary.index("What was found") :]
    assert all(f"{score.label}{score.loss_diff:+.3f} ± " in words for score in effect.top(6))
    first = effect.top(1, effect="direct")[0]
    assert f"Head {first.label}: the largest direct effect" in words
    place = effect.top_positions(1, component=first.label, effect="direct")[0]
    shown = visible(place.next_token)
    assert f"{place.loss_diff:+.3f} nats for {shown}".replace("  ", " ") in words


def test_copy_suppression_is_looked_for(model: HookedTransformer, report: Report, page: Page) -> None:
    scores = suppression_scores(model, n_prompts=0, progress=False)
    heads = [score.label for score in scores.top(3)]
    tokens = token_rows(model, [STORY] * 8, max_tokens=200)
    explained = copy_suppression_preserving_ablation(model, tokens, heads, variant="own_logit", progress=False)
    table = pd.read_parquet(report.directory / "copy_suppression.parquet")
    pd.testing.assert_frame_equal(table, explained.to_frame(), check_dtype=False)
    assert len(pd.read_parquet(report.directory / "suppression_scores.parquet")) == 6
    words = " ".join(page.text.split())
    shares, powers = explained.share_estimates(), explained.power_estimates()
    verdict, summary = suppression_verdict(explained.labels, shares, powers)
    assert verdict.striptags() in words and summary == ()
    assert "variant own_logit" in words and "5 % of tokens in sight" in words


def test_without_ablation_nothing_is_said_of_it(model: HookedTransformer, tmp_path: Path) -> None:
    written = write_report(model, [STORY] * 8, tmp_path, max_tokens=96, ablation_tokens=0, progress=False)
    text = written.page.read_text(encoding="utf-8")
    assert 'id="ablation"' not in text and 'href="#ablation"' not in text and "missed most" not in text
    assert 'id="suppression"' not in text
    assert not (tmp_path / "ablation.parquet").exists()
    with pytest.raises(InvalidInputError, match="ablation_tokens must be at least 0; got -1"):
        write_report(model, [STORY] * 8, tmp_path, ablation_tokens=-1)


def test_the_tables_hold_the_results(model: HookedTransformer, report: Report) -> None:
    tables = {path.stem: pd.read_parquet(path) for path in report.tables}
    pd.testing.assert_frame_equal(tables["entropy"], report.entropy.mean().to_frame(), check_dtype=False)
    pd.testing.assert_frame_equal(tables["entropy_states"], report.entropy.resid_frame(), check_dtype=False)
    assert len(tables["head_scores"]) == 6
    loss = tables["loss"]
    assert len(loss) == 4 * 47
    tokens = token_rows(model, [STORY] * 8, max_tokens=200)
    row = loss[(loss.sequence == 2) & (loss.position == 11)].iloc[0]
    expected = -model(tokens).log_softmax(-1)[2, 11, tokens[2, 12]]
    assert (row.token, row.next_token) == (int(tokens[2, 11]), int(tokens[2, 12]))
    assert row.loss == pytest.approx(float(expected.detach()), abs=1e-4)
    positions = tables["positions"]
    layer, head = map(int, positions["head"].iloc[0].split("."))
    best = top_positions(report.entropy.diff[layer, head], 1)[0]
    first = positions.iloc[0]
    assert (first.sequence, first.position) == (best.row, best.pos)
    assert first["diff"] == pytest.approx(best.value)
    assert first.token == model.to_single_str_token(int(tokens[best.row, best.pos]))


def test_notable_heads_come_by_diff_and_marginal_in_turn() -> None:
    diff = torch.tensor([[0.1, 0.4, 9.0], [-0.2, 0.3, 9.0]])
    marginal = torch.tensor([[-0.1, 0.2, 9.0], [0.5, -0.3, 9.0]])

    def result(diff: torch.Tensor, marginal: torch.Tensor) -> EntropyResult:
        info = RunInfo("small", (), "a story", 1, 4)
        return EntropyResult(info, torch.zeros(5), diff, marginal, tuple("abcde"), ("0", "1", "MLP"))

    # By diff 0.1, 1.1, 0.0; by marginal 1.0, 0.1; what raises neither is never there.
    for k, expected in (
        (1, ["0.1"]),
        (2, ["0.1", "1.0"]),
        (3, ["0.1", "1.0", "1.1"]),
        (9, ["0.1", "1.0", "1.1", "0.0"]),
    ):
        heads = notable_heads(result(diff, marginal), k)
        assert [component_label(*head) for head in heads] == expected
    lowering = notable_heads(result(diff - 10, marginal - 10), 2)
    assert [component_label(*head) for head in lowering] == ["0.1", "1.1"]


def test_a_model_that_cannot_read_the_prompts_is_told_so(model: HookedTransformer, page: Page, tmp_path: Path) -> None:
    assert "Indirect objects" in page.words and "Indirect object identification was not measured: " in page.words
    asked = {"max_tokens": 48, "ablation_tokens": 0, "progress": False}
    with pytest.raises(InvalidInputError, match="up to 50 tokens, and the model reads 48"):
        write_report(model, [STORY], tmp_path / "asked", task="ioi", **asked)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    text = write_report(model, [STORY], tmp_path, task=None, **asked).page.read_text(encoding="utf-8")  # type: ignore[arg-type]
    assert 'id="task"' not in text and "Indirect objects" not in text
    bare = small_model(tokenizer=False, d_vocab=30)
    tokens = torch.randint(0, 30, (3, 20), generator=torch.Generator().manual_seed(0))
    page = Page(write_report(bare, tokens, tmp_path, **asked).page.read_text(encoding="utf-8"))  # type: ignore[arg-type]
    assert "was not measured: the model has no tokenizer to write the prompts with." in page.words


def test_a_task_is_part_of_the_page(
    demo: HookedTransformer, demo_story: TaskStory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = demo_story.task

    def measured(model: HookedTransformer, asked: Task, *, kept: Kept, progress: bool) -> TaskStory:
        assert (model, asked, kept.folder, progress) == (demo, task, tmp_path / "measured", False)
        return demo_story

    monkeypatch.setattr(measuring, "measure_task", measured)
    written = write_report(
        demo, ["Anna met Tom."], tmp_path, max_tokens=16, ablation_tokens=0, task=task, progress=False
    )
    text = written.page.read_text(encoding="utf-8")
    page = Page(text)
    assert "the model prefers the indirect object to the subject by" in page.words
    tables = {path.stem: pd.read_parquet(path) for path in written.tables if path.stem.startswith("task_")}
    assert set(tables) == {"task_prompts", "task_heads", "task_patching", "task_paths"}
    n = len(task)
    assert len(tables["task_prompts"]) == n == 48
    right, wrong = (demo.to_tokens(tables["task_prompts"][name].tolist(), prepend_bos=False)[:, 0]
                    for name in ("correct", "incorrect"))  # fmt: skip
    rows = torch.arange(n)
    logits = demo(task.clean_tokens, attention_mask=task.attention_mask)[rows, task.positions].detach()
    expected = (logits[rows, right] - logits[rows, wrong]).double()
    differences = torch.tensor(tables["task_prompts"]["logit_difference"].to_numpy())
    torch.testing.assert_close(differences, expected, atol=1e-3, rtol=1e-4)
    mean, error = float(expected.mean()), float(expected.std()) / math.sqrt(n)
    assert f"by {mean:+.3f} ± {error:.3f} logits on average" in page.words
    assert len(tables["task_patching"]) == demo.cfg.n_layers * (5 + 2 * demo.cfg.n_heads)
    # Figures that carry it: direct effects, attention, patched heads.
    for title in ("Direct effect of each head", "Where heads look from the end", "What patching each head changes"):
        assert title in text


@pytest.mark.parametrize("d_vocab", [3, 5, 9])
def test_a_vocabulary_of_a_few_tokens_has_a_report(d_vocab: int, tmp_path: Path) -> None:
    model = HookedTransformer(palindrome(n_symbols=d_vocab - 1, half=4))
    assert model.cfg.d_vocab == d_vocab
    tokens = torch.randint(0, d_vocab, (8, 9), generator=torch.Generator().manual_seed(0))
    written = write_report(model, tokens, tmp_path, progress=False)
    page = Page(written.page.read_text(encoding="utf-8"))
    sections = {attrs["id"] for tag, attrs in page.elements if tag == "section"}
    tables = {path.stem for path in written.tables}
    # Too few tokens to repeat at random: no head types, and no copies to suppress.
    assert ("types" in sections) == ("head_scores" in tables) == (d_vocab > 4)
    assert ("suppression" in sections) == ("circuit_ranks" in tables) == (d_vocab > 4)
    assert {"loss", "layers", "by-head", "ablation", "attention", "numbers"} <= sections


def test_a_second_report_replaces_the_first_and_leaves_other_files(model: HookedTransformer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.html").write_text("old")
    written = write_report(model, [STORY], tmp_path, describe="another story", max_tokens=48, progress=False)
    assert "another story" in written.page.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*TABLES, "report.html", "notes.txt"])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_hostile_names_and_tokens_stay_text(tmp_path: Path) -> None:
    model = small_model(model_name="<script>alert(1)</script>")
    hostile = 'He said </script><!-- "quoted" & <b>bold</b>\n' * 8
    describe = "<img src=x onerror=alert(1)> & \ud83d"
    written = write_report(model, [hostile], tmp_path, describe=describe, progress=False)
    text = written.page.read_text(encoding="utf-8")
    names = {tag for tag, _ in Page(text).elements}
    assert "img" not in names and "b" in names
    assert "<script>alert(1)</script>" not in text
    assert "<script>alert(1)</script>" in html.unescape(text)


@pytest.mark.parametrize("fields", [{"attn_only": True}, {"normalization_type": None}, {"n_layers": 1, "n_heads": 1}])
def test_other_shapes_of_model_have_a_report(fields: dict[str, object], tmp_path: Path) -> None:
    written = write_report(small_model(**fields), [STORY], tmp_path, progress=False)
    text = written.page.read_text(encoding="utf-8")
    assert ("Entropy change by each head and MLP" in text) == (not fields.get("attn_only", False))


def test_tokens_do_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    model = small_model(tokenizer=False, d_vocab=30)
    tokens = torch.randint(0, 30, (3, 20))
    written = write_report(model, tokens, tmp_path, progress=False)
    assert written.entropy.info.n_sequences == 3
    assert "In front of" not in Page(written.page.read_text(encoding="utf-8")).words
    with pytest.raises(MissingTokenizerError, match="no tokenizer, so it takes no text"):
        write_report(model, [STORY], tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_a_short_text_makes_one_short_row(model: HookedTransformer) -> None:
    tokens = token_rows(model, ["the old dog"])
    assert tokens.shape[0] == 1 and 2 < tokens.shape[1] < 48
    assert model.to_string(tokens[0]) == "<|end|>the old dog"


def test_no_more_documents_are_read_than_are_needed(model: HookedTransformer) -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield STORY

    assert token_rows(model, endless(), max_tokens=100, seq_len=20).shape == (5, 20)  # type: ignore[arg-type]
    assert read < 10


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "hold 0 tokens in all|at most one token"),
        (["  "], {"seq_len": 1}, "seq_len must be between 2 and the model's context n_ctx = 48; got 1"),
        ([STORY], {"seq_len": 49}, "seq_len must be between 2"),
        ([STORY], {"max_tokens": 0}, "max_tokens must be at least 1; got 0"),
        ([STORY], {"n_heads": 0}, "n_heads must be at least 1; got 0"),
        ([STORY], {"n_positions": -1}, "n_positions must be at least 1; got -1"),
        (torch.zeros(2, 1, dtype=torch.int64), {}, r"with 2 positions or more; got \[2, 1\]"),
        (torch.full((1, 5), 9999), {}, "tokens must be between 0"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(
    model: HookedTransformer, texts: object, options: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(HeadscopeError, match=message):
        write_report(model, texts, tmp_path / "report", progress=False, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_are_told_and_leave_nothing(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.blocks[0].mlp.W_out[0, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        write_report(model, [STORY], tmp_path / "report", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, os.strerror(28))])
def test_a_page_that_could_not_be_written_leaves_what_was_measured(
    model: HookedTransformer, stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: object) -> str:
        raise stop

    out = tmp_path / "deep" / "report"
    with monkeypatch.context() as patch:
        patch.setattr(files, "render_page", stopping)
        expected = InvalidInputError if isinstance(stop, OSError) else Stopped
        with pytest.raises(expected) as caught:
            write_report(model, [STORY], out, ablation_tokens=0, progress=False)
    stopped = f"The page was not written. What was measured is kept in {out}"
    assert ("No space left" if isinstance(stop, OSError) else stopped) in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["measured"]
    write_report(model, [STORY], out, ablation_tokens=0, resume=True, progress=False)
    assert (out / "report.html").exists() and not (out / "measured").exists()


def test_a_file_in_the_way_is_told(model: HookedTransformer, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(InvalidInputError, match="is a file; the report needs a folder"):
        write_report(model, [STORY], tmp_path / "report", progress=False)
    with pytest.raises(InvalidInputError, match="report' is a file; the report needs a folder"):
        write_report(model, [STORY], tmp_path / "report" / "below" / "it", progress=False)
    assert (tmp_path / "report").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(model: HookedTransformer, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInputError, match="Permission denied"):
        write_report(model, [STORY], tmp_path / "report", progress=False)
