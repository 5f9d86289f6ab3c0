"""The page about one model: its sections and tables, from what was measured."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from headscope.analysis.core.result import component_label
from headscope.report.assembly import Assembly, Builder, assembled
from headscope.report.blocks import Page
from headscope.report.model.ablation_section import ablation_section
from headscope.report.model.entropy_section import entropy_head_section, entropy_layer_section
from headscope.report.model.findings import Findings, positions_of
from headscope.report.model.heads_section import heads_section
from headscope.report.model.loss_section import loss_section
from headscope.report.model.model_section import model_section
from headscope.report.model.suppression_section import suppression_section
from headscope.report.model.types_section import attention_section, types_section
from headscope.report.numbers_section import numbers_section
from headscope.report.task.section import task_section
from headscope.report.task.story import TaskStory

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SECTIONS", "TABLES", "assembled_sections", "model_page", "page_tables"]

# The sections of a report, in the order of its page, with the parts of the measurement that each is made from.
SECTIONS = {
    "loss": ("loss",),
    "entropy": ("entropy",),
    "ablation": ("ablation",),
    "task": ("task",),
    "suppression": ("suppression",),
    "types": ("types",),
    "attention": ("entropy", "attention"),
}

TABLES = {
    "entropy": "diff and marginal of every head and MLP",
    "entropy_states": "entropy at each state of the residual stream",
    "loss": "loss and rank of every next token",
    "positions": "the positions shown above",
    "ablation": "loss difference without each head",
    "suppression_scores": "anti-induction and IOI scores of every head",
    "copy_suppression": "what copy suppression explains",
    "circuit_ranks": "ranks of tokens in OV and QK circuits",
    "head_scores": "the scores behind the head types",
    "task_prompts": "the prompts with two names, and the logit difference of each",
    "task_heads": "every head's scores in them, for each head type, with the evidence",
    "task_patching": "what each patch of them changes, as a share of the whole swap",
    "task_paths": "the paths of the circuit",
}


def assembled_sections(
    findings: Findings, story: TaskStory | str | None, chosen: Sequence[str], *, n_positions: int
) -> Assembly:
    """Make the sections that were chosen and measured.

    Args:
        findings: What was measured.
        story: The task, or why it cannot be measured.
        chosen: Names of the sections that are wanted, in the order of the page.
        n_positions: Number of positions to show for each notable head.
    """
    builders: dict[str, Builder] = {
        "loss": lambda: (loss_section(findings),),
        "entropy": lambda: (
            entropy_layer_section(findings),
            entropy_head_section(findings),
            heads_section(findings, n_positions),
        ),
        "ablation": lambda: (ablation_section(findings),),
        "task": lambda: (None if story is None else task_section(story),),
        "suppression": lambda: (suppression_section(findings),),
        "types": lambda: (types_section(findings),),
        "attention": lambda: (attention_section(findings),),
    }
    return assembled({name: builders[name] for name in chosen}, SECTIONS, [findings.outcome])


def model_page(
    findings: Findings, assembly: Assembly, tables: Iterable[str], chosen: Sequence[str], command: str
) -> Page:
    """Return the page of some sections, with the model before them and the tables behind.

    Args:
        findings: What was measured.
        assembly: The sections.
        tables: Names of the tables beside the page.
        chosen: Names of the sections that were wanted.
        command: What continues a report that was stopped.
    """
    of_entropy = "entropy" in assembly.sections
    return Page(
        title=findings.model_name,
        subtitle=f"What its attention heads do{' to the certainty of its predictions' * of_entropy}, on "
        f"{findings.data}",
        sections=[
            model_section(findings, chosen if len(chosen) < len(SECTIONS) else ()),
            *assembly.flat,
            numbers_section(
                {f"{name}.parquet": TABLES[name] for name in tables},
                findings.means.info if findings.has("entropy") else None,
                findings.processing,
            ),
        ],
        notices=assembly.notices(command),
    )


def page_tables(findings: Findings, story: TaskStory | str | None, n_positions: int) -> "dict[str, pd.DataFrame]":
    """The tables beside the page, by name."""
    tables = findings.tables()
    if findings.notable:
        tables["positions"] = _positions_table(findings, n_positions)
    if isinstance(story, TaskStory):
        tables |= story.tables()
    return {name: tables[name] for name in TABLES if name in tables}


def _positions_table(findings: Findings, n_positions: int) -> "pd.DataFrame":
    import pandas as pd

    positions = [
        (component_label(*head), place.row, place.pos, place.value, findings.strings[place.row][place.pos])
        for head in findings.notable
        for place in positions_of(findings.entropy, head, n_positions)
    ]
    return pd.DataFrame(positions, columns=["head", "sequence", "position", "diff", "token"])
