"""`headscope scoreboard`: every method on models whose answers are known."""

from pathlib import Path
from typing import Annotated

import typer

from headscope.analysis.scoreboard.board import demo_model, known_models
from headscope.analysis.scoreboard.board import scoreboard as score
from headscope.cli.base import options
from headscope.cli.base.commands import app, command

__all__ = ["scoreboard"]


@command(
    app, "headscope scoreboard", "headscope scoreboard models", "headscope scoreboard models/tracr-hist --out board.md"
)
def scoreboard(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of models, each with a truth.json beside its weights, or one of them. Default: none but the "
            "demo model.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[bool, typer.Option(help="Score the demo model too.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A file for the tables: Markdown, or one row per model (.parquet, .csv)."),
    ] = None,
    progress: options.Progress = True,
) -> None:
    """Score attribution, patching, ablation, circuits and head labels on models whose answers are known."""
    models = [*([] if folder is None else known_models(folder)), *([demo_model()] if demo else [])]
    board = score(models, progress=progress)
    typer.echo(str(board))
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".parquet":
        board.to_frame().to_parquet(out, index=False)
    elif out.suffix == ".csv":
        board.to_frame().to_csv(out, index=False)
    else:
        out.write_text(f"{board}\n", encoding="utf-8")
    typer.echo(f"\nWritten to {out}")
