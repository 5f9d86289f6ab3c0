"""Words on why a head looks at a name: numbers that they are said of, and numbers for which they would be false."""

import pytest
import torch
from sentences import check_words
from torch import Tensor

from headscope.analysis.attention.score_result import AttentionAttribution
from headscope.analysis.core.result import RunInfo
from headscope.report.task.story import TaskStory
from headscope.report.task.why import why_blocks, why_it_looks

LABELS = ("embed", "2.7", "mlp0", "bias")
NOISE = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.5, -0.5, 0.5, -0.5])


def why(
    key_parts: list[float],
    query_parts: list[float],
    attention: tuple[float, float] = (0.9, 0.05),
    spread: float = 0.1,
    prompts: int = 8,
) -> AttentionAttribution:
    """Parts of a difference of scores, each of which scatters over the prompts."""

    def rows(parts: list[float]) -> Tensor:
        return torch.tensor(parts) + spread * NOISE[:prompts, None]

    assert sum(key_parts) == pytest.approx(sum(query_parts))
    n = len(LABELS)
    options = {"head": "3.2", "query": "end", "key": "S2", "against": "IO"}
    return AttentionAttribution(
        info=RunInfo("tiny", (), "prompts", prompts, prompts, options),
        pairs=torch.zeros(n, n),
        errors=torch.zeros(n, n),
        scores=rows(key_parts).sum(1),
        penalties=torch.zeros(prompts),
        attention=torch.tensor([attention]).expand(prompts, -1).contiguous(),
        query_parts=rows(query_parts),
        key_parts=rows(key_parts),
        query_sources=None,
        key_sources=None,
        looked_at=torch.zeros(prompts, 3, dtype=torch.long),
        attention_mask=torch.ones(prompts, 4, dtype=torch.bool),
        token_strings=("a",) * 4 * prompts,
        part_labels=LABELS,
    )


SAID = {
    "both sides": (
        why([1.0, 3.0, 1.0, 0.0], [0.0, 0.0, 5.0, 0.0]),
        ["3.2 looks from the end at the subject's second mention (90 %) rather than at the right name (5.0 %)",
         "its score is 5.000 ±", "through the key 2.7 (+3.000 ± 0.030), embed (+1.000 ± 0.030) and mlp0 (+1.000 ±",
         "100 % of it",
         "through the query mlp0 (+5.000", "~bias"],
    ),
    "small parts are said to be small": (
        why([0.4, 0.0, 0.0, 4.6], [0.0, 0.0, 0.0, 5.0]), ["through the query bias (+5.000 ± 0.030), 100 % of it"],
    ),
    "a part against it is not named": (why([5.0, -2.0, 2.0, 0.0], [5.0, 0.0, 0.0, 0.0]), ["~2.7", "embed (+5.000"]),
    "parts that do not stand out are not named": (
        why([5.0, 0.02, 0.0, 0.0], [2.5, 0.0, 0.0, 2.52]), ["~2.7", "through the query bias (+2.520", "~mlp0"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_is_said(case: str) -> None:
    result, parts = SAID[case]
    check_words(why_it_looks(result), parts)


SILENT = {
    "the score is lower there": why([-5.0, 0.0, 0.0, 0.0], [-5.0, 0.0, 0.0, 0.0]),
    "the score is not clearly higher": why([0.1, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], spread=0.5),
    "it looks more at the other": why([5.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0], attention=(0.2, 0.3)),
    "one prompt": why([5.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0], prompts=1),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_would_be_false_is_not_said(case: str) -> None:
    assert why_it_looks(SILENT[case]) is None


def test_the_demo_is_asked_of_its_subject_suppressor(demo_story: TaskStory) -> None:
    asked = {str(result.info.options["head"]): result for result in demo_story.why}
    assert "3.2" in asked and asked["3.2"].info.options["key"] == "S2"
    heading, how, *_ = why_blocks(demo_story)
    assert heading is not None and "over 48 prompts" in str(how)
    table = demo_story.tables()["task_attention"]
    shown = table[(table["head"] == "3.2") & (table["side"] == "key") & (table["part"] == "mlp0")]
    assert float(shown["score"].iloc[0]) == pytest.approx(
        float(asked["3.2"].sel(key_part="mlp0", by="key_parts").mean())
    )
