"""`headscope explore`: measure every head of a model on a text, write a site that shows them, and serve it live."""

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.base import options
from headscope.cli.base.commands import app, arguments, command, continuing, texts_of
from headscope.cli.base.foretelling import foretold
from headscope.cli.base.loading import load
from headscope.errors import InvalidInputError
from headscope.explorer import explore as explore_heads
from headscope.explorer import serve as serve_folder
from headscope.explorer.measuring.exploring import ABLATION_TOKENS, MEASURED, entropy_sample
from headscope.model.checkpoints.names import DEMO
from headscope.report import token_rows
from headscope.report.costs import explore_work
from headscope.report.plan import Part
from headscope.report.words import count
from headscope.scale import Processes

__all__ = ["explore"]

_MAX_TOKENS = 32_768
_SEQ_LEN = 128
_SERVING = ("--serve", "--port", "--model", "--browser", "--no-browser")


@command(
    app,
    "headscope explore",
    "headscope explore gpt2 --text book.txt --out gpt2-heads",
    "headscope explore gpt2 --text book.txt --out gpt2-heads --resume",
    "headscope explore gpt2 --dataset owt --max-tokens 1000000 --no-ablation --workers 8",
    "headscope explore gpt2-heads --serve",
    loads_model=True,
)
def explore(
    model: Annotated[
        str,
        typer.Argument(
            help="A name that `headscope models` lists, a Hugging Face hub id, or a local checkpoint folder; with "
            "--serve, the folder of an explorer, by default that of --out."
        ),
    ] = DEMO,
    text: options.Text = None,
    dataset: options.Dataset = None,
    out: options.Page = Path("explorer"),
    max_tokens: options.MaxTokens = _MAX_TOKENS,
    seq_len: Annotated[
        int | None,
        typer.Option(
            help=f"Tokens per sequence. Default: the model's context, at most {_SEQ_LEN}.", show_default=False
        ),
    ] = None,
    sequences: Annotated[
        int, typer.Option(min=1, help="Sequences of the largest activation to show for each head, beside ten others.")
    ] = 8,
    entropy_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Tokens to measure the effect on entropy on, about so many, in whole sequences, at least one; 0 "
            "leaves it out. Default: one sequence in 128, at most 1,024; of a short text one in 16.",
            show_default=False,
        ),
    ] = None,
    ablation_tokens: options.AblationTokens = ABLATION_TOKENS,
    no_ablation: Annotated[bool, typer.Option("--no-ablation", help="Leave ablation out.")] = False,
    include_bos: options.IncludeBos = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what was stopped in --out, if anything was: all else as then.")
    ] = False,
    workers: options.ReportWorkers = None,
    progress: options.Progress = True,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Serve an explorer that is there, on this machine alone, with a page that runs prompts and switches "
            "heads off. Needs the extra live.",
        ),
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="With --serve: the port. Default: any that is free.", show_default=False)
    ] = None,
    of_model: Annotated[
        str | None,
        typer.Option(
            "--model", help="With --serve: the model to run. Default: the one that was measured.", show_default=False
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="With --serve: open the page in a browser.")
    ] = True,
) -> None:
    """Measure every head of a model on a text, and write a site that opens from a file or any web host; or serve it."""
    _check_options(serve)
    if serve:
        folder = out if model == DEMO and not Path(model).is_dir() else Path(model)
        if folder != out and "--out" in _given():
            raise InvalidInputError(f"{str(folder)!r} and --out are two folders to serve: give one of them.")
        serve_folder(folder, model=of_model, port=port or 0, open_browser=browser, say=typer.echo)
        return
    texts, described = texts_of(text, dataset)
    loaded = load(model)
    length = min(loaded.cfg.n_ctx, _SEQ_LEN) if seq_len is None else seq_len
    tokens = token_rows(loaded, texts, max_tokens=max_tokens, seq_len=length)
    ablated = 0 if no_ablation else ablation_tokens
    by_default = len(entropy_sample(len(tokens))) * tokens.shape[1]
    n_entropy = by_default if entropy_tokens is None else min(entropy_tokens, tokens.numel())
    n_shown = min(tokens.numel(), loaded.cfg.n_layers * loaded.cfg.n_heads * sequences * tokens.shape[1])
    work = explore_work(loaded, tokens.numel(), n_shown, n_entropy, min(ablated, tokens.numel()))
    says = f"{count(tokens.numel(), 'token')}, {count(loaded.cfg.n_layers * loaded.cfg.n_heads, 'head')}"
    shown = progress and not resume and workers is None
    try:
        with foretold(loaded, [Part("explorer", says, work)], shown=shown) as within, within("explorer"):
            found = explore_heads(
                loaded,
                tokens,
                out,
                describe=described,
                sequences=sequences,
                entropy_tokens=entropy_tokens,
                ablation_tokens=ablated,
                include_bos=include_bos,
                resume=resume,
                engine=None if workers is None else Processes(workers, source=model),
                progress=progress,
            )
    except KeyboardInterrupt:
        if not (out / MEASURED).is_dir():
            raise
        kept = f"What was measured is kept in {out / MEASURED}. To go on: {continuing()}"
        raise KeyboardInterrupt(kept) from None
    for note in found.config["pipeline_config"]["notes"]:
        typer.echo(note)
    typer.echo(f"{found.page} ({count(len(found.heads), 'head')}, {found.size / 1e6:.1f} MB with all files)")


def _check_options(serve: bool) -> None:
    """Refuse options of the command's other use, which would be ignored."""
    for option in _given():
        if serve and option not in (*_SERVING, "--out", "--progress", "--no-progress"):
            raise InvalidInputError(
                f"{option} goes with measuring, and --serve serves what was measured: leave one of them out."
            )
        if not serve and option in _SERVING:
            raise InvalidInputError(f"{option} goes with --serve.")


def _given() -> list[str]:
    """The options that the command line names, with their defaults too."""
    return [each.partition("=")[0] for each in arguments.get() if each.startswith("--")]
