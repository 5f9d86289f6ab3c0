"""`headscope copy-suppression`."""

from enum import StrEnum
from typing import Annotated

import typer

from headscope.analysis.suppression.circuit_ranks import circuit_ranks_cost, weights_circuit_ranks
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.analysis.suppression.scores import SuppressionScores, suppression_scores
from headscope.cli.shared import (
    MaxTokensOption,
    ModelArgument,
    OutOption,
    ProgressOption,
    ResumeOption,
    SeqLenOption,
    TextOption,
    app,
    command,
    kept_run,
    say,
    texts_of,
)
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.hub import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.report import ABLATION_TOKENS, token_rows

__all__ = ["copy_suppression"]


class Effect(StrEnum):
    """Along which paths a head is ablated."""

    DIRECT = "direct"
    PATCHED = "patched"


@command(
    app,
    examples=(
        "headscope copy-suppression",
        "headscope copy-suppression gpt2 --heads 10.7,11.10 --text story.txt",
        "headscope copy-suppression gpt2 --heads 10.7 --no-ranks",
    ),
)
def copy_suppression(
    model: ModelArgument = DEMO,
    text: TextOption = None,
    heads: Annotated[
        str | None,
        typer.Option(help="Heads, separated by commas, such as 10.7,11.10. Default: every head.", show_default=False),
    ] = None,
    effect: Annotated[
        Effect, typer.Option(help="direct: only the final stream changes; patched: all that follows is computed again.")
    ] = Effect.DIRECT,
    top: Annotated[
        float, typer.Option(help="Share of the sources kept at each position: those whose tokens are predicted most.")
    ] = 0.05,
    include_bos: Annotated[bool, typer.Option(help="Let BOS positions count.")] = False,
    ranks: Annotated[
        bool, typer.Option(help="Also rank every token in the heads' OV and QK circuits, from the weights alone.")
    ] = True,
    max_tokens: MaxTokensOption = ABLATION_TOKENS,
    seq_len: SeqLenOption = None,
    rows: Annotated[int, typer.Option(help="How many heads to print, those it explains most of first.")] = 20,
    out: OutOption = None,
    resume: ResumeOption = False,
    progress: ProgressOption = True,
) -> None:
    """Measure how much of what each head does is copy suppression: holding back tokens that are predicted already."""
    if rows < 1:
        raise InvalidInputError(f"rows must be at least 1; got {rows}.")
    chosen = None if heads is None else [part for part in heads.split(",") if part.strip()]
    with kept_run(out, resume):
        texts, described = texts_of(text)
        loaded = HookedTransformer.from_pretrained(model)
        tokens = token_rows(loaded, texts, max_tokens=max_tokens, seq_len=seq_len)
        found = copy_suppression_preserving_ablation(
            loaded,
            tokens,
            chosen,
            top=top,
            effect=effect.value,
            include_bos=include_bos,
            describe=described,
            progress=progress,
            out=out,
            resume=resume,
        )
    scores = suppression_scores(loaded, progress=progress)
    ranked = None
    if ranks:
        if progress:
            say(f"Ranking tokens in {len(found.labels)} heads' circuits: {circuit_ranks_cost(loaded, found.labels)}.")
        ranked = weights_circuit_ranks(loaded, found.labels, progress=progress)
    typer.echo(_table(found, scores, ranked, rows))
    if out is not None:
        typer.echo(f"\nSaved to {out / 'result.safetensors'}")


def _table(found: CopySuppression, scores: SuppressionScores, ranks: CircuitRanks | None, rows: int) -> str:
    frame = found.to_frame().sort_values("share", ascending=False, na_position="last")
    frame["anti-ind."] = [float(scores.anti_induction[row.layer, row.head]) for row in frame.itertuples()]
    if scores.ioi is not None:
        frame["IOI"] = [float(scores.ioi[row.layer, row.head]) for row in frame.itertuples()]
    columns = {"share": "explained", "kl_mean": "KL mean", "kl_cspa": "KL CSPA"}
    formats = {
        "explained": "{:.1%}",
        "KL mean": "{:.4f}",
        "KL CSPA": "{:.4f}",
        "anti-ind.": "{:+.3f}",
        "IOI": "{:+.3f}",
    }
    if ranks is not None:
        table = ranks.to_frame().set_index("label")
        for name, title in (("ov_bottom", f"OV bottom {ranks.k}"), ("qk_top", f"QK top {ranks.k}")):
            frame[title] = table[name].loc[frame.label].tolist()
            formats[title] = "{:.1%}"
    frame = frame.rename(columns=columns).head(rows)
    titles = [title for title in formats if title in frame.columns]
    lines = [str(found.info), "", f"{'head':<8}" + "".join(f"{title:>15}" for title in titles)]
    for _, row in frame.iterrows():
        cells = ("-" if row[title] != row[title] else formats[title].format(row[title]) for title in titles)
        lines.append(f"{row.label:<8}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)
