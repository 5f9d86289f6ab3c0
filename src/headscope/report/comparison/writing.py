"""`write_comparison`: two models on the same text, side by side on one offline HTML page."""

import itertools
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headscope.analysis.core.costs import Work
from headscope.analysis.storage.manifest import make_manifest
from headscope.data.cutting import Chunk
from headscope.errors import InvalidInputError, check_at_least
from headscope.model.transformer import HookedTransformer
from headscope.report.assembly import Assembly, Builder, assembled, write_assembled
from headscope.report.blocks import Page
from headscope.report.comparison.compared import Compared
from headscope.report.comparison.sections import (
    compared_ablation_section,
    compared_head_section,
    compared_layer_section,
    compared_loss_section,
    compared_models_section,
    compared_types_section,
)
from headscope.report.files import check_writable
from headscope.report.kept import Kept
from headscope.report.model.findings import Findings
from headscope.report.model.measuring import measure
from headscope.report.model.planning import ABLATION_TOKENS, report_plan
from headscope.report.numbers_section import numbers_section
from headscope.report.parts import Stopped
from headscope.report.plan import measured_rates
from headscope.report.tokens import MAX_TOKENS, token_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "write_comparison"]

_LONGEST_NAME = 40
_SIDES = ("first", "second")
_TABLES = {
    "entropy": "diff and marginal of every head and MLP of both models",
    "entropy_states": "entropy at each state of both residual streams",
    "loss": "loss of every next token under both models",
    "ablation": "loss difference without each head of both models",
    "head_scores": "the scores behind the head types of both models",
}


@dataclass(frozen=True)
class Comparison:
    """The files that `write_comparison` wrote, and the losses.

    Attributes:
        directory: Where everything is.
        page: The HTML page.
        tables: The parquet files; their column `model` tells the models apart.
        loss: Mean next-token loss of both models, in nats; NaN if it could not be measured.
        failed: The error of each section that could not be made; the page says so too.
    """

    directory: Path
    page: Path
    tables: tuple[Path, ...]
    loss: tuple[float, float]
    failed: Mapping[str, Exception] = field(default_factory=dict)


def write_comparison(
    first: HookedTransformer,
    second: HookedTransformer,
    texts: Iterable[str] | Iterable[Chunk] | Tensor,
    out: str | Path = "report",
    *,
    names: tuple[str, str] | None = None,
    describe: str | None = None,
    max_tokens: int = MAX_TOKENS,
    seq_len: int | None = None,
    ablation_tokens: int = ABLATION_TOKENS,
    resume: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Analyze two models, or two checkpoints of one, on the same text and write a page that compares them.

    Models of one shape are compared head by head; of different shapes, side by side. Where both read the text as the
    same tokens, their losses are compared token by token; else per byte of text.

    What is measured is kept in `out/measured` until the page is whole, as by `write_report`: a Ctrl-C writes the page
    with what was measured of both models, and raises `Stopped`; a section that fails is told on the page.

    Args:
        first: A model.
        second: The model compared with it: differences are second less first.
        texts: Documents, or tokens `[batch, pos]`, which both models take.
        out: The folder to write to; created if necessary.
        names: Names for the two; default: their own, marked first and second if they are the same.
        describe: The text in a few words, for titles.
        max_tokens: Largest number of tokens to analyze (at least one sequence); time grows with it.
        seq_len: Tokens per sequence, BOS included; default: the shorter of the models' contexts, at most 256.
        ablation_tokens: Largest number of tokens to ablate every head on; 0 leaves ablation out.
        resume: Continue the comparison in `out` that was stopped, if there is one; all must be as it was begun.
        command: The command line that continues it, for the page; default: this call with `resume=True`.
        progress: Show progress bars.

    Raises:
        InvalidInputError: If `out` cannot be written or holds another report's measurements, an option is out of
            range, or the text is empty.
        MissingTokenizerError: For text and a model without a tokenizer.
        NotFiniteError: If a model's activations are not finite.
        Stopped: By Ctrl-C; it is a `KeyboardInterrupt` that says what is kept.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> models = [
        ...     HookedTransformer(HookedTransformerConfig(1, 8, 32, 4, d_vocab=20, attn_only=True, seed=seed))
        ...     for seed in (0, 1)
        ... ]
        >>> with TemporaryDirectory() as folder:
        ...     made = write_comparison(*models, torch.arange(20)[None], folder, ablation_tokens=0, progress=False)
        ...     made.page.name, len(made.tables)
        ('comparison.html', 4)
    """
    check_at_least(0, ablation_tokens=ablation_tokens)
    models = (first, second)
    told = _told_apart(names or (first.cfg.model_name, second.cfg.model_name))
    if seq_len is None:
        # The same length for both, so that models with one tokenizer read the same rows.
        seq_len = min(256, *(model.cfg.n_ctx for model in models))
    copies: Iterable[Any] = (texts, texts) if isinstance(texts, Tensor) else itertools.tee(texts)
    rows = [
        token_rows(model, copy, max_tokens=max_tokens, seq_len=seq_len)
        for model, copy in zip(models, copies, strict=True)
    ]
    out, described = Path(out), describe or "a text"
    check_writable(out)
    kept = Kept(out / "measured", resume=resume)
    command = command or "the same call with resume=True"
    rows = [tokens[:, : model.cfg.n_ctx] for model, tokens in zip(models, rows, strict=True)]
    options = {"max_tokens": max_tokens, "ablation_tokens": ablation_tokens}
    kept.begin(
        {
            side: make_manifest("comparison", model, tokens, None, None, described, options)
            for side, model, tokens in zip(_SIDES, models, rows, strict=True)
        }
    )
    try:
        findings = _measured(models, rows, described, ablation_tokens, kept, progress)
    finally:
        kept.remove_if_empty()
    if len(findings) < len(models):
        raise Stopped(
            f"The second model was not come to. What was measured is kept in {kept.folder}; to continue: {command}"
        )
    one, other = findings
    both = Compared(told, one, other)
    assembly = _assembled(both)

    def make() -> "tuple[Page, dict[str, pd.DataFrame]]":
        tables = _tables(both)
        return _page(both, assembly, tables, command), tables

    old = [f"comparison_{name}" for name in _TABLES]
    page, paths = write_assembled(assembly, out, "comparison.html", make, kept=kept, command=command, of_old=old)
    loss = [float(side.predictions.loss.nanmean()) if side.has("loss") else math.nan for side in findings]
    return Comparison(out, page, paths, (loss[0], loss[1]), assembly.failed)


def _measured(
    models: tuple[HookedTransformer, HookedTransformer],
    rows: list[Tensor],
    described: str,
    ablation_tokens: int,
    kept: Kept,
    progress: bool,
) -> list[Findings]:
    """Measure both models, after the plan of each is told; the first alone if it is stopped."""
    parts = ["loss", "types", "entropy"] + ["ablation"] * (ablation_tokens > 0)
    places = [kept.within(side) for side in _SIDES]
    plans = []
    for model, tokens, place in zip(models, rows, places, strict=True):
        left = [part for part in parts if not place.has(part)]
        rates = measured_rates(model, tokens) if progress else Work()
        plans.append(report_plan(model, tokens, ablation_tokens, rates, parts=left))
    if progress:
        print("First model. {}\nSecond model. {}".format(*plans), file=sys.stderr)
    findings: list[Findings] = []
    for model, tokens, plan, place in zip(models, rows, plans, places, strict=True):
        if findings and findings[0].outcome.left:
            break
        with plan.following(shown=progress) as following:
            findings.append(
                measure(
                    model,
                    tokens,
                    parts=parts,
                    describe=described,
                    ablation_tokens=ablation_tokens,
                    following=following,
                    kept=place,
                    progress=progress,
                )
            )
    return findings


def _told_apart(names: tuple[str, str]) -> tuple[str, str]:
    """Return two different names, short enough for a table; their ends are kept, where checkpoints differ."""
    if len(names) != 2:
        raise InvalidInputError(f"names must be two, one for each model; got {len(names)}.")
    first, second = (name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :] for name in names)
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _assembled(both: Compared) -> Assembly:
    """The sections, in the order of the page, that were measured in both models."""
    builders: dict[str, Builder] = {
        "loss": lambda: [compared_loss_section(both)],
        "entropy": lambda: [compared_layer_section(both), compared_head_section(both)],
        "ablation": lambda: [compared_ablation_section(both)],
        "types": lambda: [compared_types_section(both)],
    }
    return assembled(builders, {name: (name,) for name in builders}, [side.outcome for side in both.sides.values()])


def _page(both: Compared, assembly: Assembly, tables: Iterable[str], command: str) -> Page:
    of_tables = {f"{name}.parquet": _TABLES[name.removeprefix("comparison_")] for name in tables}
    info = both.first.means.info if both.first.has("entropy") else None
    return Page(
        title=f"{both.names[0]} and {both.names[1]}",
        subtitle=f"Two models side by side, on {both.first.data}",
        sections=[
            compared_models_section(both),
            *assembly.flat,
            numbers_section(of_tables, info, both.first.processing),
        ],
        notices=assembly.notices(command),
    )


def _tables(both: Compared) -> "dict[str, pd.DataFrame]":
    """Tables by name; the column `model` says which model a row is of."""
    import pandas as pd

    first, second = (side.tables() for side in both.sides.values())
    return {
        f"comparison_{name}": pd.concat(
            [first[name].assign(model=both.names[0]), second[name].assign(model=both.names[1])], ignore_index=True
        )
        for name in first
        if name in second
    }
