"""`write_comparison`: two models on the same text, side by side on one offline HTML page."""

import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headscope.analysis.core.costs import Work
from headscope.data.cutting import Chunk
from headscope.errors import InvalidInputError, check_at_least
from headscope.model.transformer import HookedTransformer
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
from headscope.report.files import staged
from headscope.report.model.findings import Findings
from headscope.report.model.measuring import measure
from headscope.report.model.planning import ABLATION_TOKENS, report_plan
from headscope.report.numbers_section import numbers_section
from headscope.report.plan import measured_rates
from headscope.report.tokens import MAX_TOKENS, token_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "write_comparison"]

_LONGEST_NAME = 40
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
        loss: Mean next-token loss of both models, in nats.
    """

    directory: Path
    page: Path
    tables: tuple[Path, ...]
    loss: tuple[float, float]


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
    progress: bool = True,
) -> Comparison:
    """Analyze two models, or two checkpoints of one, on the same text and write a page that compares them.

    Models of one shape are compared head by head; of different shapes, side by side. Where both read the text as the
    same tokens, their losses are compared token by token; else per byte of text.

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
        progress: Show progress bars.

    Raises:
        InvalidInputError: If `out` cannot be written, an option is out of range, or the text is empty.
        MissingTokenizerError: For text and a model without a tokenizer.
        NotFiniteError: If a model's activations are not finite.

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
    if seq_len is None:
        # The same length for both, so that models with one tokenizer read the same rows.
        seq_len = min(256, *(model.cfg.n_ctx for model in models))
    copies: Iterable[Any] = (texts, texts) if isinstance(texts, Tensor) else itertools.tee(texts)
    rows = [
        token_rows(model, copy, max_tokens=max_tokens, seq_len=seq_len)
        for model, copy in zip(models, copies, strict=True)
    ]
    with staged(Path(out)) as write:
        one, other = _measured(
            models,
            [tokens[:, : model.cfg.n_ctx] for model, tokens in zip(models, rows, strict=True)],
            describe=describe or "a text",
            ablation_tokens=ablation_tokens,
            progress=progress,
        )
        both = Compared(_told_apart(names or (first.cfg.model_name, second.cfg.model_name)), one, other)
        tables = _tables(both)
        page, paths = write("comparison.html", _page(both, tables), tables)
    loss = (float(one.predictions.loss.nanmean()), float(other.predictions.loss.nanmean()))
    return Comparison(Path(out), page, paths, loss)


def _measured(
    models: tuple[HookedTransformer, HookedTransformer],
    rows: list[Tensor],
    *,
    describe: str,
    ablation_tokens: int,
    progress: bool,
) -> list[Findings]:
    """Measure both models, each after its plan is told."""
    plans = [
        report_plan(model, tokens, ablation_tokens, measured_rates(model, tokens) if progress else Work(), alone=False)
        for model, tokens in zip(models, rows, strict=True)
    ]
    if progress:
        print("First model. {}\nSecond model. {}".format(*plans), file=sys.stderr)
    findings = []
    for model, tokens, plan in zip(models, rows, plans, strict=True):
        with plan.following(shown=progress) as following:
            findings.append(
                measure(
                    model,
                    tokens,
                    describe=describe,
                    ablation_tokens=ablation_tokens,
                    following=following,
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


def _page(both: Compared, tables: Iterable[str]) -> Page:
    """The sections, in the order of the page."""
    info = both.first.means.info
    sections = (
        compared_models_section(both),
        compared_loss_section(both),
        compared_layer_section(both),
        compared_head_section(both),
        compared_ablation_section(both),
        compared_types_section(both),
        numbers_section({f"{name}.parquet": _TABLES[name.removeprefix("comparison_")] for name in tables}, info),
    )
    return Page(
        title=f"{both.names[0]} and {both.names[1]}",
        subtitle=f"Two models side by side, on {info.data}",
        sections=[section for section in sections if section is not None],
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
