"""`write_report`: one offline HTML page about a model on a text, with its numbers as parquet beside it.

The analyses run once each and are kept beside the page until it is whole; then everything on it is made from their
results, and its files appear together or not at all.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from headscope.analysis.core.costs import Work
from headscope.analysis.lens.entropy import EntropyResult
from headscope.analysis.prompts.identity import identity
from headscope.analysis.prompts.task import Task
from headscope.analysis.storage.manifest import make_manifest
from headscope.analysis.storage.sharded import Engine
from headscope.data.cutting import Chunk
from headscope.errors import InvalidInputError, MissingTokenizerError, check_at_least
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import budget
from headscope.report.assembly import write_assembled
from headscope.report.blocks import Page
from headscope.report.files import check_writable
from headscope.report.kept import Kept
from headscope.report.model.measuring import measure, rows_to_ablate
from headscope.report.model.model_page import TABLES, assembled_sections, model_page, page_tables
from headscope.report.model.planning import (
    ABLATION_TOKENS,
    Sizes,
    batch_tokens,
    chosen_sections,
    fitting_sizes,
    parts_of,
    report_plan,
    task_part,
)
from headscope.report.plan import Plan, measured_rates
from headscope.report.task.measuring import ioi_task
from headscope.report.tokens import token_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ABLATION_TOKENS", "MINUTES", "Report", "write_report"]

MINUTES = 10.0


@dataclass(frozen=True)
class Report:
    """The files that `write_report` wrote, and results they are made from.

    Attributes:
        directory: Where everything is.
        page: The HTML page.
        tables: The parquet files.
        entropy: Entropy per position; `None` if it was not measured.
        loss: Mean next-token loss in nats; NaN if it was not measured.
        sections: The sections on the page, by the names of `sections`.
        failed: The error of each section that could not be made; the page says so too.
        summary: The sentences of the page's summary, as text.
    """

    directory: Path
    page: Path
    tables: tuple[Path, ...]
    entropy: EntropyResult | None
    loss: float
    sections: tuple[str, ...] = ()
    failed: Mapping[str, Exception] = field(default_factory=dict)
    summary: tuple[str, ...] = ()


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
    sections: str | Sequence[str] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Report:
    """Analyze a model on some text and write a page about it.

    What is measured is kept in `out/measured` until the page is whole. A Ctrl-C writes the page with the sections that
    are done, which says what is missing, and raises `Stopped`; with `resume=True` the same call goes on from there, and
    the page is that of a report never stopped. A section that fails is told on the page, and the others stand.

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
            leaves it out. It takes some seconds for a small model, and minutes for GPT-2 small, whose circuit it
            finds on fewer prompts than that of a small one; of models that are much larger it finds none.
        sections: Names of the sections to make; default: all of loss, entropy, ablation, task, suppression, types,
            attention. Nothing is measured for others, or said of them. Entropy comes with the loss of each token, and
            attention patterns with the entropies and head types that their heads are chosen by.
        resume: Continue the report in `out` that was stopped, if there is one. The model, the tokens, the prompts and
            the sections must be the same; numbers of tokens that are not given are those it was begun with.
        engine: Who measures what is streamed, such as `headscope.scale.Processes(8)`; default: this process.
        command: The command line that continues the report, for its page; default: this call with `resume=True`.
        progress: Show progress bars.

    Raises:
        InvalidInputError: If `out` cannot be written or holds another report's measurements, an option is out of
            range, the text is empty, or the model cannot read the prompts of a task that was asked for.
        UnknownNameError: For a section there is none of.
        Stopped: By Ctrl-C; it is a `KeyboardInterrupt` that says what is kept.
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
    if not minutes > 0:
        raise InvalidInputError(f"minutes must be above 0; got {minutes}.")
    check_at_least(0, ablation_tokens=ABLATION_TOKENS if ablation_tokens is None else ablation_tokens)
    left_out = _left_out(model, task, ablation_tokens)
    chosen = chosen_sections(sections, without=left_out)
    out, described = Path(out), describe or "a text"
    check_writable(out)
    kept = Kept(out / "measured", resume=resume, engine=engine)
    asked, fixed = _sizes_asked(max_tokens, ablation_tokens, kept)
    tokens = token_rows(model, texts, max_tokens=asked.tokens, seq_len=seq_len)
    prompts = _prompts(model, task) if "task" in chosen else None
    with budget(batch_tokens=batch_tokens(model)):
        parts = parts_of(chosen, without=left_out)
        sizes, plan = _planned(model, tokens, prompts, parts, asked, fixed, 60 * minutes, kept, probed=progress)
        tokens = rows_to_ablate(tokens, sizes.tokens)
        kept.begin({"model": _manifest(model, tokens, described, sizes, chosen, prompts)})
        if progress:
            _tell(plan, asked, sizes, minutes, kept)
        try:
            with plan.following(shown=progress) as following:
                findings = measure(
                    model,
                    tokens,
                    parts=parts,
                    describe=described,
                    ablation_tokens=sizes.ablated,
                    n_heads=n_heads,
                    task=prompts if isinstance(prompts, Task) else None,
                    following=following,
                    kept=kept,
                    progress=progress,
                )
        finally:
            kept.remove_if_empty()
    story = findings.story if isinstance(prompts, Task) else prompts
    assembly = assembled_sections(findings, story, chosen, n_positions=n_positions)
    command = command or "the same call with resume=True"

    def make() -> "tuple[Page, dict[str, pd.DataFrame]]":
        tables = page_tables(findings, story, n_positions)
        return model_page(findings, assembly, tables, chosen, command), tables

    page, tables = write_assembled(assembly, out, "report.html", make, kept=kept, command=command, of_old=TABLES)
    entropy = findings.entropy if findings.has("entropy") else None
    loss = float(findings.predictions.loss.nanmean()) if findings.has("loss") else math.nan
    summary = tuple(str(sentence.striptags()) for section in assembly.flat for sentence in section.summary)
    return Report(out, page, tables, entropy, loss, tuple(assembly.sections), assembly.failed, summary)


def _left_out(model: HookedTransformer, task: object, ablation_tokens: int | None) -> dict[str, str]:
    """The sections that are left out, and what leaves them out."""
    left_out = {} if task is not None else {"task": "task=None"}
    if ablation_tokens == 0:
        left_out |= dict.fromkeys(("ablation", "suppression"), "ablation_tokens=0")
    if model.cfg.d_vocab_out != model.cfg.d_vocab:
        why = f"a model that reads {model.cfg.d_vocab} tokens and predicts among {model.cfg.d_vocab_out} others"
        left_out |= dict.fromkeys(("loss", "ablation", "suppression"), why)
    return left_out


def _sizes_asked(max_tokens: int | None, ablation_tokens: int | None, kept: Kept) -> tuple[Sizes, tuple[bool, bool]]:
    """The numbers of tokens that are given, else those a stopped report was begun with; and which of the two stand."""
    begun = kept.begun.get("model", {}).get("options", {})
    given = [begun.get(name) if value is None else value
             for name, value in (("max_tokens", max_tokens), ("ablation_tokens", ablation_tokens))]  # fmt: skip
    defaults = Sizes()
    asked = Sizes(defaults.tokens if given[0] is None else given[0], defaults.ablated if given[1] is None else given[1])
    return asked, (given[0] is not None, given[1] is not None)


def _planned(
    model: HookedTransformer,
    tokens: Tensor,
    prompts: Task | str | None,
    needed: tuple[str, ...],
    asked: Sizes,
    fixed: tuple[bool, bool],
    seconds: float,
    kept: Kept,
    *,
    probed: bool,
) -> tuple[Sizes, Plan]:
    """The numbers of tokens that end in time, and the plan of what is left to do."""
    parts = [part for part in needed if not kept.has(part)]
    task = prompts if isinstance(prompts, Task) and "task" in parts else None
    # The probe is for defaults, and for telling.
    rates = Work() if all(fixed) and not probed else measured_rates(model, tokens)
    if task is not None:
        seconds -= Plan((task_part(model, task),), rates).seconds
    sizes = fitting_sizes(model, tokens, rates, parts=parts, seconds=seconds, asked=asked, fixed=fixed)
    rows = rows_to_ablate(tokens, sizes.tokens)
    return sizes, report_plan(model, rows, sizes.ablated, rates, parts=parts, task=task)


def _manifest(
    model: HookedTransformer,
    tokens: Tensor,
    described: str,
    sizes: Sizes,
    chosen: tuple[str, ...],
    prompts: Task | str | None,
) -> dict[str, Any]:
    """Return everything that the numbers depend on, in which a report that is continued must be the same."""
    task = identity(prompts.tensors()) if isinstance(prompts, Task) else None
    options = {"sections": chosen, "max_tokens": sizes.tokens, "ablation_tokens": sizes.ablated, "task": task}
    return make_manifest("report", model, tokens, None, None, described, options)


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


def _tell(plan: Plan, asked: Sizes, sizes: Sizes, minutes: float, kept: Kept) -> None:
    """Say what will be done, and what was cut to end in time."""
    lines = [f"Continuing a report: {', '.join(kept.done)} done before."] if kept.done else []
    lines += [str(plan)] if plan.parts else []
    if sizes != asked:
        lines.append(
            f"Cut from {asked.tokens:,} tokens, of which {asked.ablated:,} ablated, to end in {minutes:g} minutes; "
            "max_tokens and ablation_tokens (--max-tokens, --ablation-tokens) set them, minutes (--minutes) the time."
        )
    print("\n".join(lines), file=sys.stderr)
