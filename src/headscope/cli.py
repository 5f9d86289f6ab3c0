"""The command line: flags to functions, errors to one line.

Anything headscope raises on purpose, and a disk or file that fails, ends in one line on stderr and exit code 1; wrong
usage in 2; Ctrl-C in 130.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import typer

from headscope.analysis.entropy import EntropyResult, measure_entropy
from headscope.analysis.prompt import test_prompt
from headscope.analysis.run_manifest import headscope_version
from headscope.data.cutting import Chunk
from headscope.data.small_english import documents
from headscope.data.text import read_chunks
from headscope.errors import HeadscopeError, InvalidInputError
from headscope.model.families import FAMILIES
from headscope.model.hub import DEMO, HUB_MODELS
from headscope.model.transformer import HookedTransformer
from headscope.report import MAX_TOKENS, token_rows, write_report
from headscope.training.demo import DEMO_STEPS, train_demo
from headscope.training.demo_figures import EVALUATION_SEED, evaluate_demo

__all__ = ["app", "main"]

P = ParamSpec("P")
R = TypeVar("R")

_SAMPLE_SEED = 1  # the demo model was trained on seed 0
_SAMPLE = "generated small English"


class Baseline(StrEnum):
    """What a component is measured against."""

    ZERO = "zero"
    MEAN = "mean"


class Scale(StrEnum):
    """Whose scale the final norm has."""

    FINAL = "final"
    OWN = "own"


app = typer.Typer(
    name="headscope",
    help="What do the attention heads of a transformer do, on which tokens, and what do they do to its certainty?",
    epilog="Start with: headscope report, and open report/report.html in a browser. It needs no network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train = typer.Typer(no_args_is_help=True, help="Train the models headscope has recipes for.")
app.add_typer(train, name="train")


def _command(group: typer.Typer, *, examples: Iterable[str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a command whose Ctrl-C ends in one line and exit code 130."""

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except KeyboardInterrupt:
                _say("Stopped.")
                raise typer.Exit(130) from None

        name = function.__name__.strip("_")
        group.command(name, epilog="Examples:\n\n" + "\n\n".join(examples))(guarded)
        return function

    return register


ModelArgument = Annotated[
    str,
    typer.Argument(help="A name that `headscope models` lists, a Hugging Face hub id, or a local checkpoint folder."),
]
TextOption = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="A .txt, .jsonl or .parquet file to run on. Default: small English, generated.",
        show_default=False,
    ),
]
MaxTokensOption = Annotated[int, typer.Option(help="Tokens to run on, at most; time grows with them.")]
SeqLenOption = Annotated[
    int | None,
    typer.Option(help="Tokens per sequence. Default: the model's context, at most 256.", show_default=False),
]


@_command(
    app,
    examples=(
        "headscope report",
        "headscope report gpt2 --text story.txt --out gpt2-report",
        "headscope report ./my-checkpoint --max-tokens 20000",
    ),
)
def report(
    model: ModelArgument = DEMO,
    text: TextOption = None,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("report"),
    max_tokens: MaxTokensOption = MAX_TOKENS,
    seq_len: SeqLenOption = None,
    n_heads: Annotated[int, typer.Option(help="How many of the heads that raise entropy to look at closely.")] = 4,
    n_positions: Annotated[int, typer.Option(help="How many positions to show for each of them.")] = 5,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Write one offline HTML page about a model on a text, and its numbers as parquet beside it."""
    texts, described = _texts(text)
    loaded = HookedTransformer.from_pretrained(model)
    written = write_report(
        loaded,
        texts,
        out,
        describe=described,
        max_tokens=max_tokens,
        seq_len=seq_len,
        n_heads=n_heads,
        n_positions=n_positions,
        progress=progress,
    )
    typer.echo(f"{written.page} (and {len(written.tables)} tables beside it)")


@_command(
    app,
    examples=(
        'headscope prompt headscope-demo "When Mary and John went to the store, John gave a drink to" Mary',
        'headscope prompt gpt2 "The capital of France is" Paris --top-k 5',
    ),
)
def prompt(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The text before the answer.", show_default=False)],
    answer: Annotated[str, typer.Argument(help="The answer to look for.", show_default=False)],
    top_k: Annotated[int, typer.Option(help="How many of the likeliest tokens to list.")] = 10,
    prepend_space_to_answer: Annotated[
        bool, typer.Option("--space/--no-space", help="Put a space before the answer, unless it has one.")
    ] = True,
    prepend_bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Put a BOS token before the prompt. Default: as the model has it."),
    ] = None,
) -> None:
    """Show where an answer stands among what the model would say to a prompt: rank, logit, probability, top tokens."""
    test_prompt(
        prompt,
        answer,
        HookedTransformer.from_pretrained(model),
        prepend_space_to_answer=prepend_space_to_answer,
        prepend_bos=prepend_bos,
        top_k=top_k,
    )


@_command(
    app,
    examples=(
        "headscope entropy",
        "headscope entropy gpt2 --text story.txt --out story-entropy",
        "headscope entropy gpt2 --text story.txt --out story-entropy --resume",
    ),
)
def entropy(
    model: ModelArgument = DEMO,
    text: TextOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder to keep the run in: its result.safetensors (EntropyResult.load reads it), and what --resume "
            "needs.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds, if any.")] = False,
    baseline: Annotated[
        Baseline, typer.Option(help="zero: take components whole; mean: minus their mean over the text.")
    ] = Baseline.ZERO,
    scale: Annotated[
        Scale, typer.Option(help="The final norm's scale: that of the final state, or each state's own.")
    ] = Scale.FINAL,
    lens_bias: Annotated[bool, typer.Option(help="Use the unembedding's bias at every state.")] = True,
    include_bos: Annotated[bool, typer.Option(help="Let BOS positions count.")] = False,
    max_tokens: MaxTokensOption = MAX_TOKENS,
    seq_len: SeqLenOption = None,
    top: Annotated[int, typer.Option(help="How many heads to print at each end.")] = 10,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Measure what each head and MLP does to the entropy of the prediction, and print the strongest."""
    if resume and out is None:
        raise InvalidInputError("--resume goes on with the run in a folder; say which by --out.")
    if out is not None and out.exists() and not out.is_dir():
        raise InvalidInputError(f"{str(out)!r} is a file; a run is kept in a folder (--out).")
    texts, described = _texts(text)
    loaded = HookedTransformer.from_pretrained(model)
    tokens = token_rows(loaded, texts, max_tokens=max_tokens, seq_len=seq_len)
    try:
        result = measure_entropy(
            loaded,
            tokens,
            baseline=baseline.value,
            scale=scale.value,
            lens_bias=lens_bias,
            include_bos=include_bos,
            describe=described,
            progress=progress,
            out=out,
            resume=resume,
        )
    except KeyboardInterrupt:
        if out is None:
            raise
        _say(f"Stopped. What was measured is kept in {out}: the same command with --resume goes on.")
        raise typer.Exit(130) from None
    typer.echo(_entropy_table(result, top))
    if out is not None:
        typer.echo(f"\nSaved to {out / 'result.safetensors'}")


@_command(app, examples=("headscope models",))
def models() -> None:
    """List the models with short names, and the kinds of checkpoint that can be loaded."""
    rows = [(DEMO, "about 1M", "inside the package; works offline")]
    rows += [(", ".join((hub.name, *hub.aliases)), hub.n_params, hub.hub_id) for hub in HUB_MODELS]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, size, where in rows:
        typer.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {where}")
    families = ", ".join(sorted(FAMILIES))
    typer.echo(f"\nAlso any hub id (owner/model) or local folder with a config.json of model_type: {families}.")


@_command(
    app,
    examples=("headscope evaluate", "headscope evaluate ./my-demo --seed 7"),
)
def evaluate(
    model: ModelArgument = DEMO,
    seed: Annotated[int, typer.Option(help="Seed of the data; not one that training used.")] = EVALUATION_SEED,
    n_prompts: Annotated[int, typer.Option(help="How many prompts of indirect object identification.")] = 500,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Measure what the demo model (or another model of its small English) learned: every figure of its model card."""
    loaded = HookedTransformer.from_pretrained(model)
    typer.echo(str(evaluate_demo(loaded, seed=seed, n_prompts=n_prompts, progress=progress)))


@_command(
    train, examples=("headscope train demo --out my-demo", "headscope train demo --out quick --steps 300 --seed 1")
)
def demo(
    out: Annotated[Path, typer.Option(help="The checkpoint's folder.")] = Path("headscope-demo"),
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = DEMO_STEPS,
    seed: Annotated[int, typer.Option(help="Seed of the text and of the first weights.")] = 0,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Train the demo model by its recipe: a small GPT-2 on generated English, in minutes on a laptop."""
    history = train_demo(out, seed=seed, steps=steps, progress=progress)
    typer.echo(
        f"{out}: loss {history.loss[-1]:.3f} nats in the last of {len(history.loss)} steps, {history.seconds:.0f} s. "
        f"What it learned: headscope evaluate {out}"
    )


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"headscope {headscope_version()}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of headscope itself."""


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        app(args, prog_name="headscope")
    except HeadscopeError as error:
        _fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone; keep Python from flushing to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except KeyboardInterrupt:
        _say("Stopped.")
        sys.exit(130)
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    _say("Error: " + " ".join(message.split()))
    sys.exit(1)


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _texts(path: Path | None) -> tuple[Iterable[str] | Iterable[Chunk], str]:
    """Documents, and what to call them."""
    if path is None:
        return documents(_SAMPLE_SEED), _SAMPLE
    return read_chunks(path), path.name


def _entropy_table(result: EntropyResult, top: int) -> str:
    if top < 1:
        raise InvalidInputError(f"top must be at least 1; got {top}.")
    means = result.mean()
    n = means.n_layers * means.n_heads
    lines = [str(result.info), "", "Entropy at each state (nats)"]
    width = max(map(len, means.state_labels))
    lines += [
        f"  {label:<{width}}  {value:7.3f}"
        for label, value in zip(means.state_labels, means.resid.tolist(), strict=True)
    ]
    for title, largest in (("Heads that raise entropy most", True), ("Heads that lower entropy most", False)):
        lines += ["", f"{title} (nats)", f"  {'head':<8}{'diff':>9}{'marginal':>11}"]
        for score in means.top(min(top, n), by="diff", largest=largest):
            marginal = float(means.marginal[score.layer, score.head])
            lines.append(f"  {score.label:<8}{score.value:>+9.4f}{marginal:>+11.4f}")
    return "\n".join(lines)
