"""The app, the registration of commands, what they run on, and what they write."""

import functools
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, get_args

import typer
from torch import Tensor

from headscope.analysis.core.ranking import Ranking
from headscope.analysis.core.result import Result
from headscope.analysis.prompts.task import Task
from headscope.analysis.storage.sharded import Engine
from headscope.cli.base.help import Command
from headscope.cli.base.loading import from_options, load, with_loading_options
from headscope.data.cutting import Chunk
from headscope.data.hub import get_dataset
from headscope.data.ioi import IOIDataset
from headscope.data.small_english import documents
from headscope.data.text import read_chunks
from headscope.data.token_files import TOKEN_SUFFIXES, read_tokens
from headscope.errors import IncompleteRunError, InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.report import token_rows
from headscope.scale import Part
from headscope.views.drawing.saving import figure_page

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

P = ParamSpec("P")
R = TypeVar("R")
Texts = Iterable[str] | Iterable[Chunk] | Tensor

_SAMPLE_SEED = 1  # the demo model was trained on seed 0
_SAMPLE = "generated small English"

# What the command line was given, as `main` has it.
arguments: ContextVar[list[str]] = ContextVar("arguments", default=sys.argv[1:])

app = typer.Typer(
    name="headscope",
    help="See what the attention heads of a transformer do, on which tokens, and to the certainty of its predictions.",
    epilog="Start with: headscope report, and open report/report.html in a browser. It needs no network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train = typer.Typer(no_args_is_help=True, help="Train the models headscope has recipes for.")
app.add_typer(train, name="train")


def command(
    group: typer.Typer, *examples: str, loads_model: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a command, whose Ctrl-C (or SIGTERM) ends in one line and exit code 130.

    Args:
        group: The app, or a command of it with commands of its own.
        examples: Command lines, for its help.
        loads_model: The command calls `load`, and has the options of how a model is loaded.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with _terminated_as_interrupted(), from_options(kwargs) if loads_model else nullcontext():
                    return function(*args, **kwargs)
            except KeyboardInterrupt as stop:
                stopped(stop)

        if loads_model:
            with_loading_options(guarded)
        name = function.__name__.replace("_", "-")
        group.command(name, cls=Command, epilog="Examples:\n\n" + "\n\n".join(examples))(guarded)
        return function

    return register


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, so that what is done is kept."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def continuing() -> str:
    """Return the command line that continues this one."""
    args = arguments.get()
    return shlex.join(["headscope", *args, *(["--resume"] if "--resume" not in args else [])])


def texts_of(path: Path | None, dataset: str | None = None) -> tuple[Texts, str]:
    """Return the documents, or the rows of tokens, to run on, and what to call them."""
    if dataset is not None:
        if path is not None:
            raise InvalidInputError("--text and --dataset are two texts: give one of them.")
        return (row["text"] for row in get_dataset(dataset)), f"the dataset {dataset}"
    if path is None:
        return documents(_SAMPLE_SEED), _SAMPLE
    if path.suffix.lower() in TOKEN_SUFFIXES:
        return read_tokens(path), path.name
    return read_chunks(path), path.name


def task_of(
    model: str, path: Path | None, prompts: int, kind: str, seed: int, flip: str = "ABB->XYZ, BAB->XYZ"
) -> tuple[HookedTransformer, Task]:
    """Return the model, and the prompts in a file, or generated ones with corrupted ones beside them."""
    loaded = load(model)
    if path is not None:
        return loaded, Task.read(path, loaded.tokenizer, prepend_bos=loaded.cfg.default_prepend_bos)
    dataset = IOIDataset(kind, prompts, loaded.tokenizer, prepend_bos=loaded.cfg.default_prepend_bos, seed=seed)
    return loaded, Task.from_ioi(dataset, flip)


def listed(text: str | None) -> list[str] | None:
    """Return the parts of a list separated by commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def ends(ranking: Ranking, top: int) -> str:
    """Return a ranking as text, without its middle where it is long."""
    heading, *rows = str(ranking).splitlines()
    return "\n".join([heading, *(rows if len(rows) <= 2 * top else [*rows[:top], "...", *rows[-top:]])])


def each_of(choices: object) -> Callable[[list[str]], list[str]]:
    """Return a callback that checks a list of `Literal` choices, which typer has no type for."""
    allowed = get_args(choices)

    def check(values: list[str]) -> list[str]:
        for value in values:
            if value not in allowed:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, allowed))}.")
        return values

    return check


def check_resume(out: Path | str | None, resume: bool) -> None:
    """Refuse to resume without a folder."""
    if resume and out is None:
        raise InvalidInputError("--resume continues the run in a folder; name it with --out.", code="HS-RUN-06")


@contextmanager
def kept_run(
    name: str,
    texts: tuple[Texts, str],
    max_tokens: int,
    seq_len: int | None,
    out: str | None,
    resume: bool,
    engine: Engine | None = None,
) -> Iterator[tuple[HookedTransformer, Tensor, dict[str, Any]]]:
    """Load a model and the tokens `[batch, pos]` it runs on, with the text's name and the run's folder as options.

    At the end say where the run was saved, or, after Ctrl-C, how to continue it, or what is left to others.
    """
    check_resume(out, resume)
    try:
        documents, described = texts
        model = load(name)
        tokens = token_rows(model, documents, max_tokens=max_tokens, seq_len=seq_len)
        # Parts of a run begin it together, and go on with it as they come.
        shared = resume or isinstance(engine, Part)
        yield model, tokens, {"describe": described, "out": out, "resume": shared, "engine": engine}
    except KeyboardInterrupt:
        if out is None:
            raise
        say(f"Stopped. What was measured is kept in {out}: the same command with --resume continues it.")
        raise typer.Exit(130) from None
    except IncompleteRunError as others:
        if not isinstance(engine, Part):
            raise
        typer.echo(f"This part is measured. {others}")
        return
    if out is not None:
        typer.echo(f"\nSaved to {out}/result.safetensors")


def write_folder(
    out: Path,
    page: str,
    figures: "Iterable[go.Figure]",
    *,
    title: str,
    frames: "Mapping[str, pd.DataFrame]",
    results: Mapping[str, Result],
) -> None:
    """Write a page of figures, tables and results, and say what was written."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{page}.html").write_text(figure_page(*figures, title=title), encoding="utf-8")
    for name, frame in frames.items():
        frame.to_parquet(out / f"{name}.parquet", index=False)
    for name, result in results.items():
        result.save(out / f"{name}.safetensors")
    names = [f"{page}.html", *(f"{name}.parquet" for name in frames), *(f"{name}.safetensors" for name in results)]
    typer.echo(f"\nWritten to {out}: {', '.join(names)}")


def fail(message: str) -> NoReturn:
    """Print one line on stderr, and exit with code 1."""
    say("Error: " + " ".join(message.split()))
    sys.exit(1)


def stopped(stop: KeyboardInterrupt) -> NoReturn:
    """Say that a command was stopped, and what of it is kept; and exit with code 130."""
    say(" ".join(["Stopped.", *map(str, stop.args)]))
    sys.exit(130)


def say(message: str) -> None:
    """Print one line on stderr."""
    typer.echo(message, err=True)
