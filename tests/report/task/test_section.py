"""The section on indirect objects says what the numbers say, for models that do the task in different ways or not."""

import dataclasses

import pytest
import torch
from name_moving_model import name_moving_model, name_task
from small_models import small_model
from tiny import tiny_model

from headscope import HookedTransformer
from headscope.errors import HeadscopeError
from headscope.report.blocks import Figure, Fold, Heading, Prose, Section, Table
from headscope.report.task.measuring import ioi_task, measure_task, with_words
from headscope.report.task.section import task_section
from headscope.report.task.story import TaskStory


def words(section: Section) -> str:
    return " ".join(block.text.striptags() for block in section.blocks if isinstance(block, Prose)).replace("−", "-")


def tables(section: Section) -> list[Table]:
    folded = [each for block in section.blocks if isinstance(block, Fold) for each in block.blocks]
    return [block for block in (*section.blocks, *folded) if isinstance(block, Table)]


def test_the_demo_model_is_told_as_it_works(demo_story: TaskStory) -> None:
    """It brings both names up by their places, and lowers the subject; nobody tells that the name is there twice."""
    section = task_section(demo_story)
    assert demo_story.can
    said = words(section)
    assert (
        "Subject suppressors do it by lowering the subject" in said
        and "Name copiers raise the name they look at" in said
    )
    assert "Name movers" not in said and "No head clearly does the task" not in said
    assert "does not tell who the subject is" in said and "0.2" in said
    assert "The strongest paths straight to the answer, in logits, come from" in said
    summary = section.summary[0].striptags()
    assert "done most of all by 3.2, which lowers the subject where it stands" in summary
    headings = [block.text for block in section.blocks if isinstance(block, Heading)]
    assert headings == [
        "Which heads move the names",
        "Why they look there",
        "Which heads know who is named twice",
        "Along which paths",
        "The heads that matter, in numbers",
    ]
    assert sum(isinstance(block, Figure) for block in section.blocks) == 6
    assert "heads alone at work" in said and "that the search for them did not see" in said


def test_nothing_is_said_of_types_that_no_head_has(demo_story: TaskStory) -> None:
    """The same numbers without their labels, and with errors that leave them undecided."""
    types = demo_story.types
    nothing = torch.zeros_like(types.labelled)
    none = dataclasses.replace(types, labelled=nothing, open=nothing)
    section = task_section(dataclasses.replace(demo_story, types=none))
    said, summary = words(section), section.summary[0].striptags()
    for kind in ("Subject suppressors", "Name copiers", "Name movers", "Amplifiers", "Dampeners", "S-inhibition"):
        assert kind not in said, kind
    assert "No head clearly does the task" in said and "Undecided" not in said
    assert summary.endswith("logits.") and "done by" not in summary and "held back" not in summary
    unsure = dataclasses.replace(none, open=types.labelled)
    said = words(task_section(dataclasses.replace(demo_story, types=unsure)))
    assert "Undecided with 48 prompts" in said and "3.2 (subject suppressor)" in said


def test_the_first_head_named_has_the_largest_effect(demo_story: TaskStory) -> None:
    """By its number, not by its type: with the effects of two heads exchanged, the other one comes first."""
    labelled = demo_story.types.labelled.clone()
    labelled[demo_story.types.kinds.index("subject_suppressor"), 2, 2] = True
    types = dataclasses.replace(demo_story.types, labelled=labelled)
    summary = task_section(dataclasses.replace(demo_story, types=types)).summary[0].striptags()
    assert summary.index("3.2") < summary.index("2.2")
    evidence = types.evidence.clone()
    for at, name in enumerate(types.evidence_names):
        if name.startswith("direct effect"):
            evidence[at, 3, 2], evidence[at, 2, 2] = types.evidence[at, 2, 2], types.evidence[at, 3, 2]
    other = dataclasses.replace(demo_story, types=dataclasses.replace(types, evidence=evidence))
    summary = task_section(other).summary[0].striptags()
    assert summary.index("2.2") < summary.index("3.2")
    effect = float(types.evidence_of("direct effect (ABBA)")[3, 2])
    assert f"2.2, which lowers the subject where it stands ({effect:+.3f} in ABBA" in summary


def test_numbers_on_the_page_are_those_measured(demo_story: TaskStory) -> None:
    section = task_section(demo_story)
    assert demo_story.heads is not None
    orders, *_ = tables(section)
    assert [row[1].value for row in orders.rows] == [order.difference.n for order in demo_story.orders]
    assert sum(order.difference.n for order in demo_story.orders) == 48
    for row, order in zip(orders.rows, demo_story.orders, strict=True):
        assert row[2].value == pytest.approx(order.difference.value) and order.swapped is not None
        assert row[4].value == pytest.approx(order.swapped.value) and order.swapped.value < -4
    at_end = demo_story.heads.position_labels.index("end")
    gap = demo_story.heads.clean - demo_story.heads.corrupted
    change = float(demo_story.heads["z"][3, at_end, 2]) * gap
    assert change < -8 and f"3.2 {change:+.3f}" in words(section)
    assert change == pytest.approx(float(demo_story.types.evidence_of("change when patched")[3, 2]), rel=0.05)


def test_every_table_is_whole(demo_story: TaskStory) -> None:
    section = task_section(demo_story)
    found = tables(section)
    assert len(found) == 3
    assert all(len(row) == len(table.columns) for table in found for row in table.rows)


def test_a_model_with_name_movers_is_told_so() -> None:
    task = name_task(40)
    first = torch.tensor([label == "ABBA" for label in task.labels])
    places = {"IO": torch.where(first, 1, 3), "S1": torch.where(first, 3, 1), "S2": torch.full((40,), 5)}
    places |= {"S1+1": places["S1"] + 1, "end": task.positions}
    story = measure_task(name_moving_model(), dataclasses.replace(task, word_idx=places), progress=False)
    section = task_section(story)
    said = words(section)
    assert "Name movers do the task by raising the right name" in said and "2.0 +6.000 in ABBA" in said
    assert "Negative name movers work against it" in said and "Backups" in said
    assert "From the second mention of the subject, these heads look back: 0.0 to the first mention, and not" in said
    assert "What they write there matters" in said
    assert "S-inhibition heads tell heads that move names where to look" in said and "by 1.0 -6.000 logits" in said
    summary = section.summary[0].striptags().replace("−", "-")
    assert (
        "done most of all by 2.0, which raises the right name where it stands (+6.000 in ABBA, +6.000 in BABA)"
        in summary
    )
    assert "held back by 2.1, which lowers the right name where it stands (-2.000 in ABBA" in summary
    # What is said of queries is told by path patching, so that the direct effects are named before it.
    assert "BABA) (direct effects, in logits); the queries of heads that move names depend on 1.0 (path pat" in summary


def test_a_model_that_cannot_do_it_is_told_so() -> None:
    story = measure_task(tiny_model(n_ctx=24, dtype=torch.float32), name_task(40), progress=False)
    section = task_section(story)
    assert not story.can
    assert "does not clearly tell the two apart" in words(section) and section.summary == ()
    assert story.circuit is None and story.stream is None and story.heads is None
    assert len(section.blocks) == 2


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (small_model(tokenizer=False), "has no tokenizer"),
        (small_model(), "up to 50 tokens, and the model reads 48"),
    ],
)
def test_models_that_cannot_read_the_prompts_are_told_why(model: HookedTransformer, why: str) -> None:
    with pytest.raises(HeadscopeError, match=why) as caught:
        ioi_task(model)
    section = task_section(str(caught.value))
    assert str(caught.value) in words(section) and section.summary == ()


def test_attention_is_that_of_each_order(demo: HookedTransformer, demo_story: TaskStory) -> None:
    task = demo_story.task
    _, cache = demo.run_with_cache(task.clean_tokens, attention_mask=task.attention_mask, return_type=None)
    first = task.word_idx["IO"] < task.word_idx["S1"]
    assert [order.name for order in demo_story.orders] == ["ABBA", "BABA"]
    for at, which in enumerate((first, ~first)):
        rows = which.nonzero()[:, 0]
        for word in ("IO", "S1", "S2"):
            pattern = cache["pattern", 3][rows, 2, task.positions[rows], task.word_idx[word][rows]]
            assert float(demo_story.attention_to(word)[at, 3, 2]) == pytest.approx(float(pattern.mean()), abs=1e-5)


def test_a_task_of_ones_own_has_its_words_found(demo_story: TaskStory) -> None:
    """Without the places of the names, they are found from the answers."""
    task = demo_story.task
    found = with_words(dataclasses.replace(task, word_idx={}))
    for word in ("IO", "S1", "S1+1", "S2", "end"):
        assert torch.equal(found.word_idx[word], task.word_idx[word]), word


def test_prompts_swap_the_subject_and_nothing_else(demo: HookedTransformer) -> None:
    task = ioi_task(demo, 12)
    assert task.corrupted_tokens is not None
    differs = (task.corrupted_tokens != task.clean_tokens) & task.attention_mask
    assert torch.equal(differs.sum(1), torch.ones(12, dtype=torch.long))
    assert torch.equal(differs.long().argmax(1), task.word_idx["S2"])
