"""`write_report`: one offline HTML page about a model on a text, with its numbers as parquet beside it.

The analyses run once each, then everything on the page is made from their results, and the files appear together at
the end or not at all.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from headscope.analysis.core.components import component_label
from headscope.analysis.core.costs import Work
from headscope.analysis.lens.entropy import EntropyResult
from headscope.analysis.prompts.task import Task
from headscope.data.cutting import Chunk
from headscope.errors import InvalidInputError, MissingTokenizerError, check_at_least
from headscope.model.transformer import HookedTransformer
from headscope.report.blocks import Page
from headscope.report.files import staged
from headscope.report.model.ablation_section import ablation_section
from headscope.report.model.entropy_section import entropy_head_section, entropy_layer_section
from headscope.report.model.findings import Findings, positions_of
from headscope.report.model.heads_section import heads_section
from headscope.report.model.loss_section import loss_section
from headscope.report.model.measuring import measure, rows_to_ablate
from headscope.report.model.model_section import model_section
from headscope.report.model.planning import ABLATION_TOKENS, Sizes, fitting_sizes, report_plan, task_part
from headscope.report.model.suppression_section import suppression_section
from headscope.report.model.types_section import attention_section, types_section
from headscope.report.numbers_section import numbers_section
from headscope.report.plan import Plan, measured_rates
from headscope.report.task.measuring import ioi_task, measure_task
from headscope.report.task.section import task_section
from headscope.report.task.story import TaskStory
from headscope.report.tokens import MAX_TOKENS, token_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ABLATION_TOKENS", "MINUTES", "Report", "write_report"]

MINUTES = 10.0

_TABLES = {
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


@dataclass(frozen=True)
class Report:
    """The files that `write_report` wrote, and results they are made from.

    Attributes:
        directory: Where everything is.
        page: The HTML page.
        tables: The parquet files.
        entropy: Entropy per position.
        loss: Mean next-token loss in nats.
    """

    directory: Path
    page: Path
    tables: tuple[Path, ...]
    entropy: EntropyResult
    loss: float


def write_report(
    model: HookedTransformer,
    texts: Iterable[str] | Iterable[Chunk] | Tensor,
    out: str | Path = "report",
    *,
    describe: str | None = None,
    max_tokens: int | None = None,
    seq_len: int | None = None,
    n_heads: int = 4,
    n_positions: int = 5,
    ablation_tokens: int | None = None,
    minutes: float = MINUTES,
    task: Task | Literal["auto", "ioi"] | None = "auto",
    progress: bool = True,
) -> Report:
    """Analyze a model on some text and write a page about it.

    Args:
        model: The model.
        texts: Documents, or tokens `[batch, pos]`.
        out: The folder to write to; created if necessary. Files of an earlier report in it are replaced.
        describe: The text in a few words, for titles.
        max_tokens: Largest number of tokens to analyze (at least one sequence); time grows with it. Default: 4,096, or
            as many as `minutes` allow on this machine.
        seq_len: Tokens per sequence, BOS included; default: the model's context, at most 256.
        n_heads: Number of heads that raise entropy to show in detail.
        n_positions: Number of positions to show for each of them.
        ablation_tokens: Largest number of tokens to ablate every head on (at least one sequence), at about half a
            forward pass for each head and way; 0 leaves out ablation and copy suppression. Default: 1,024, or as many
            as `minutes` allow.
        minutes: How long the report may take, about: sizes that are not given are halved until it does, as a short
            probe of this machine foretells, but not below 512 tokens, of which half are ablated.
        task: Prompts with two names, to find the heads that tell them apart: `"ioi"` generates those of indirect object
            identification, `"auto"` does too, and says on the page why not where the model cannot read them; `None`
            leaves it out. It takes some seconds for a small model, and minutes for GPT-2 small, on which it measures
            16 prompts and not the circuit.
        progress: Show progress bars.

    Raises:
        InvalidInputError: If `out` cannot be written, an option is out of range, the text is empty, or the model cannot
            read the prompts of a task that was asked for.
        MissingTokenizerError: For text (or `task="ioi"`) and a model without a tokenizer.
        NotFiniteError: If the model's activations are not finite.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> model = HookedTransformer(HookedTransformerConfig(1, 8, 32, 4, d_vocab=20, attn_only=True))
        >>> with TemporaryDirectory() as folder:
        ...     report = write_report(model, torch.arange(20)[None], folder, progress=False)
        ...     report.page.name, len(report.tables)
        ('report.html', 9)
    """
    check_at_least(1, n_heads=n_heads, n_positions=n_positions)
    fixed = max_tokens is not None, ablation_tokens is not None
    asked = Sizes(
        MAX_TOKENS if max_tokens is None else max_tokens,
        ABLATION_TOKENS if ablation_tokens is None else ablation_tokens,
    )
    check_at_least(0, ablation_tokens=asked.ablated)
    if not minutes > 0:
        raise InvalidInputError(f"minutes must be above 0; got {minutes}.")
    tokens = token_rows(model, texts, max_tokens=asked.tokens, seq_len=seq_len)
    with staged(Path(out)) as write:
        prompts = _prompts(model, task)
        parts = (task_part(model, prompts),) if isinstance(prompts, Task) else ()
        # The probe is for defaults, and for telling.
        rates = Work() if all(fixed) and not progress else measured_rates(model, tokens)
        seconds = 60 * minutes - Plan(parts, rates).seconds
        sizes = fitting_sizes(model, tokens, rates, seconds=seconds, asked=asked, fixed=fixed)
        tokens = rows_to_ablate(tokens, sizes.tokens)
        plan = report_plan(model, tokens, sizes.ablated, rates)
        plan = replace(plan, parts=plan.parts + parts)
        if progress:
            _tell(plan, asked, sizes, minutes)
        with plan.following(shown=progress) as following:
            findings = measure(
                model,
                tokens,
                describe=describe or "a text",
                ablation_tokens=sizes.ablated,
                n_heads=n_heads,
                following=following,
                progress=progress,
            )
            with following.part("task"):
                story = measure_task(model, prompts, progress=progress) if isinstance(prompts, Task) else prompts
        tables = findings.tables() | {"positions": _positions_table(findings, n_positions)}
        if isinstance(story, TaskStory):
            tables |= story.tables()
        tables = {name: tables[name] for name in _TABLES if name in tables}
        page, paths = write("report.html", _page(findings, story, n_positions, tables), tables)
    return Report(Path(out), page, paths, findings.entropy, float(findings.predictions.loss.nanmean()))


def _prompts(model: HookedTransformer, task: Task | Literal["auto", "ioi"] | None) -> Task | str | None:
    """Return the prompts to measure, or why there are none."""
    if not isinstance(task, str):
        return task
    try:
        return ioi_task(model)
    except (InvalidInputError, MissingTokenizerError) as error:
        if task == "auto":
            return str(error)
        raise


def _tell(plan: Plan, asked: Sizes, sizes: Sizes, minutes: float) -> None:
    """Say what will be done, and what was cut to end in time."""
    lines = [str(plan)]
    if sizes != asked:
        lines.append(
            f"Cut from {asked.tokens:,} tokens, of which {asked.ablated:,} ablated, to end in {minutes:g} minutes; "
            "max_tokens and ablation_tokens (--max-tokens, --ablation-tokens) set them, minutes (--minutes) the time."
        )
    print("\n".join(lines), file=sys.stderr)


def _page(findings: Findings, story: TaskStory | str | None, n_positions: int, tables: Iterable[str]) -> Page:
    """The sections, in the order of the page."""
    info = findings.means.info
    sections = (
        model_section(findings),
        loss_section(findings),
        entropy_layer_section(findings),
        entropy_head_section(findings),
        heads_section(findings, n_positions),
        ablation_section(findings),
        None if story is None else task_section(story),
        suppression_section(findings),
        types_section(findings),
        attention_section(findings),
        numbers_section({f"{name}.parquet": _TABLES[name] for name in tables}, info),
    )
    return Page(
        title=info.model,
        subtitle=f"What its attention heads do to the certainty of its predictions, on {info.data}",
        sections=[section for section in sections if section is not None],
    )


def _positions_table(findings: Findings, n_positions: int) -> "pd.DataFrame":
    import pandas as pd

    positions = [
        (component_label(*head), place.row, place.pos, place.value, findings.strings[place.row][place.pos])
        for head in findings.notable
        for place in positions_of(findings.entropy, head, n_positions)
    ]
    return pd.DataFrame(positions, columns=["head", "sequence", "position", "diff", "token"])
