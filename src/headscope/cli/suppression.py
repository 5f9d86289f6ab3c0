"""`headscope copy-suppression`."""

from typing import Annotated, Literal

import typer
from torch import Tensor

from headscope.analysis.core.head_lists import chosen_heads
from headscope.analysis.suppression.circuit_ranks import weights_circuit_ranks
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.analysis.suppression.scores import SuppressionScores, suppression_scores
from headscope.cli.base import options
from headscope.cli.base.commands import app, command, kept_run, listed, texts_of
from headscope.cli.base.foretelling import foretold
from headscope.cli.scale import engine_of
from headscope.model.checkpoints.names import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.report import ABLATION_TOKENS
from headscope.report.costs import ranks_work, suppression_scores_work, suppression_work
from headscope.report.plan import Part
from headscope.report.words import count

__all__ = ["copy_suppression"]

_PROMPTS = 200  # of indirect objects, for the scores


@command(
    app,
    "headscope copy-suppression",
    "headscope copy-suppression gpt2 --heads 10.7,11.10 --text story.txt",
    "headscope copy-suppression gpt2 --heads 10.7 --no-ranks",
    "headscope copy-suppression smollm2.gguf --heads 24.4,23.3 --variant own_logit --no-ranks",
    loads_model=True,
)
def copy_suppression(
    model: options.Model = DEMO,
    text: options.Text = None,
    dataset: options.Dataset = None,
    heads: Annotated[
        str | None,
        typer.Option(help="Heads, separated by commas, such as 10.7,11.10. Default: every head.", show_default=False),
    ] = None,
    variant: Annotated[
        Literal["paper", "relative", "own_logit"],
        typer.Option(
            help="What is kept: as published; of tokens predicted above their average; or of these what lowers their "
            "own logit alone, which finds suppressors in more models."
        ),
    ] = "paper",
    effect: Annotated[
        Literal["direct", "patched"],
        typer.Option(help="Ablate the direct effect alone, or recompute everything after the head."),
    ] = "direct",
    top: Annotated[
        float, typer.Option(help="Share of the sources kept at each position: those whose tokens are predicted most.")
    ] = 0.05,
    include_bos: options.IncludeBos = False,
    ranks: Annotated[
        bool, typer.Option(help="Also rank every token in the heads' OV and QK circuits, from the weights alone.")
    ] = True,
    max_tokens: options.MaxTokens = ABLATION_TOKENS,
    seq_len: options.SeqLen = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of heads to print, the most explained first.")] = 20,
    out: options.Run = None,
    resume: options.Resume = False,
    workers: options.Workers = None,
    ray: options.Ray = None,
    gpus: options.Gpus = None,
    shard: options.Shard = None,
    shard_tokens: options.ShardTokens = None,
    worker_lines: options.WorkerLines = False,
    progress: options.Progress = True,
) -> None:
    """Measure how much of each head's effect is copy suppression: lowering tokens that are already predicted."""
    engine = engine_of(
        model,
        out,
        workers=workers,
        ray=ray,
        gpus=gpus,
        shard=shard,
        shard_tokens=shard_tokens,
        worker_lines=worker_lines,
    )
    texts = texts_of(text, dataset)
    with kept_run(model, texts, max_tokens, seq_len, out, resume, engine) as (loaded, tokens, run):
        parts = _parts(loaded, tokens, listed(heads), effect, variant, ranks)
        with foretold(loaded, parts, shown=progress and not resume and engine is None) as within:
            with within("suppression"):
                explained = copy_suppression_preserving_ablation(
                    loaded,
                    tokens,
                    listed(heads),
                    top=top,
                    variant=variant,
                    effect=effect,
                    include_bos=include_bos,
                    progress=progress,
                    **run,
                )
            with within("scores"):
                scores = suppression_scores(loaded, n_prompts=_PROMPTS, progress=progress)
            ranked = None
            if ranks:
                with within("ranks"):
                    ranked = weights_circuit_ranks(loaded, explained.labels, progress=progress)
        typer.echo(_table(explained, scores, ranked, rows))


def _parts(
    model: HookedTransformer, tokens: Tensor, heads: list[str] | None, effect: str, variant: str, ranks: bool
) -> list[Part]:
    n_heads = len(chosen_heads(model, heads))
    on_heads = count(n_heads, "head")
    explained = suppression_work(model, tokens.numel(), n_heads, effect=effect, variant=variant)
    parts = [
        Part("suppression", f"{count(tokens.numel(), 'token')}, {on_heads}", explained),
        Part("scores", "random tokens and prompts", suppression_scores_work(model, _PROMPTS)),
    ]
    return [*parts, Part("ranks", f"every token, {on_heads}", ranks_work(model, n_heads))] if ranks else parts


def _table(explained: CopySuppression, scores: SuppressionScores, ranks: CircuitRanks | None, rows: int) -> str:
    frame = explained.to_frame()
    at = frame.layer.tolist(), frame["head"].tolist()
    columns = {
        "explained": (frame.share, "{:.1%}"),
        "+-": (frame.share_error, "{:.1%}"),
        "power": (frame.power, "{:.1%}"),
        "KL mean": (frame.kl_mean, "{:.4f}"),
        "KL CSPA": (frame.kl_cspa, "{:.4f}"),
        "anti-ind.": (scores.anti_induction[at].tolist(), "{:+.3f}"),
    }
    if scores.ioi is not None:
        columns["IOI"] = (scores.ioi[at].tolist(), "{:+.3f}")
    if ranks is not None:
        by_label = ranks.to_frame().set_index("label").loc[frame.label]
        columns[f"OV bottom {ranks.k}"] = (by_label.ov_bottom.tolist(), "{:.1%}")
        columns[f"QK top {ranks.k}"] = (by_label.qk_top.tolist(), "{:.1%}")
    table = [["head", *columns]]
    for row in frame.share.sort_values(ascending=False, na_position="last").index[:rows]:
        cells = ("-" if (value := values[row]) != value else shown.format(value) for values, shown in columns.values())
        table.append([frame.label[row], *cells])
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [str(explained.info), ""]
    for label, *shown_cells in table:
        lines.append(
            f"{label:<{first}}" + "".join(f"{cell:>{n + 1}}" for cell, n in zip(shown_cells, others, strict=True))
        )
    return "\n".join(lines)
