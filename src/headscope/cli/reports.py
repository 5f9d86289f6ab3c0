"""Commands that write a page, or say what there is: `headscope report`, `compare`, `models`, `evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.base import options
from headscope.cli.base.commands import app, command, continuing, fail, listed, task_of, texts_of
from headscope.cli.base.loading import load
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.checkpoints.catalog import KnownFamily, known_families
from headscope.model.checkpoints.names import DEMO, HUB_MODELS
from headscope.report import (
    ABLATION_TOKENS,
    MAX_TOKENS,
    MINUTES,
    SECTIONS,
    Comparison,
    Report,
    write_comparison,
    write_report,
)
from headscope.scale import Processes
from headscope.training.demo_figures import EVALUATION_SEED, evaluate_demo

__all__ = ["compare", "evaluate", "models", "report"]


def _moved(value: str | None) -> None:
    if value is not None:
        raise InvalidInputError("comparing two models is a command of its own: headscope compare A B.")


@command(
    app,
    "headscope report",
    "headscope report gpt2 --text story.txt --out gpt2-report",
    "headscope report ./my-checkpoint --max-tokens 20000",
    "headscope report gpt2 --sections entropy,ablation --out gpt2-report",
    "headscope report gpt2 --sections entropy,ablation --out gpt2-report --resume",
    "headscope report gpt2 --dataset owt --task my-prompts.csv",
    loads_model=True,
)
def report(
    model: options.Model = DEMO,
    text: options.Text = None,
    dataset: options.Dataset = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="ioi|FILE",
            help="Prompts with two names, to find the heads that tell them apart: ioi generates those of indirect "
            "object identification; FILE is a .csv or .jsonl of your own (prompt, correct, incorrect, corrupted); auto "
            "generates them unless the model cannot read them.",
        ),
    ] = "auto",
    no_task: Annotated[bool, typer.Option("--no-task", help="Leave out the prompts with two names.")] = False,
    out: options.Page = Path("report"),
    max_tokens: options.MaxTokensOrFewer = None,
    seq_len: options.SeqLen = None,
    n_heads: Annotated[int, typer.Option(min=1, help="Number of heads that raise entropy to show in detail.")] = 4,
    n_positions: Annotated[int, typer.Option(min=1, help="Number of positions to show for each of them.")] = 5,
    ablation_tokens: options.AblationTokensOrFewer = None,
    minutes: Annotated[
        float, typer.Option(help="How long it may take, about: sizes that are not given are cut.")
    ] = MINUTES,
    sections: Annotated[
        str | None,
        typer.Option(
            help=f"Only these sections, separated by commas: {', '.join(SECTIONS)}. Default: all.", show_default=False
        ),
    ] = None,
    resume: options.ResumeReport = False,
    workers: options.ReportWorkers = None,
    progress: options.Progress = True,
    compare: Annotated[str | None, typer.Option(hidden=True, is_eager=True, callback=_moved)] = None,
) -> None:
    """Write one offline HTML page about a model on a text, with its numbers as parquet beside it."""
    if no_task and task != "auto":
        raise InvalidInputError(f"--no-task leaves out what --task {task} asks for: give one of them.")
    texts, described = texts_of(text, dataset)
    asked: Any = None if no_task else task
    if no_task or task in ("auto", "ioi"):
        loaded = load(model)
    else:
        loaded, asked = task_of(model, Path(task), 0, "mixed", 0)
    _tell(
        write_report(
            loaded,
            texts,
            out,
            describe=described,
            max_tokens=max_tokens,
            seq_len=seq_len,
            n_heads=n_heads,
            n_positions=n_positions,
            ablation_tokens=ablation_tokens,
            minutes=minutes,
            task=asked,
            sections=listed(sections),
            resume=resume,
            engine=None if workers is None else Processes(workers),
            command=continuing(),
            progress=progress,
        )
    )


@command(
    app,
    "headscope compare gpt2 distilgpt2",
    "headscope compare ./checkpoint-1000 ./checkpoint-9000 --text story.txt --out training",
    "headscope compare gpt2 pythia-160m --dataset owt --ablation-tokens 0",
    loads_model=True,
)
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The first model: a name, a hub id or a checkpoint folder.", show_default=False
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="The second; differences are B less A.", show_default=False)
    ],
    text: options.Text = None,
    dataset: options.Dataset = None,
    out: options.Page = Path("report"),
    max_tokens: options.MaxTokens = MAX_TOKENS,
    seq_len: options.SeqLen = None,
    ablation_tokens: options.AblationTokens = ABLATION_TOKENS,
    resume: options.ResumeReport = False,
    progress: options.Progress = True,
) -> None:
    """Write one offline HTML page that sets two models, or two checkpoints of one, side by side on the same text."""
    texts, described = texts_of(text, dataset)
    _tell(
        write_comparison(
            load(first),
            load(second),
            texts,
            out,
            names=(_called(first), _called(second)),
            describe=described,
            max_tokens=max_tokens,
            seq_len=seq_len,
            ablation_tokens=ablation_tokens,
            resume=resume,
            command=continuing(),
            progress=progress,
        )
    )


def _tell(written: Report | Comparison) -> None:
    """Say where the page is; and fail if a section of it did."""
    n = len(written.tables)
    typer.echo(f"{written.page} (and {n} table{'s' * (n != 1)} beside it)")
    if written.failed:
        told = "; ".join(f"{name} ({type(error).__name__}: {error})" for name, error in written.failed.items())
        fail(f"the page is not whole, for a part of it failed: {told}. To try that again: {continuing()}")


def _called(name: str) -> str:
    """Name a model; a checkpoint folder by its last two parts, which tell checkpoints of one run apart."""
    folder = Path(name)
    return "/".join(folder.absolute().parts[-2:]) if folder.is_dir() else name


@command(app, "headscope models", "headscope models --family gemma2")
def models(
    family: Annotated[str | None, typer.Option(help="Describe one family in full.", show_default=False)] = None,
) -> None:
    """List the models with short names, and the families of checkpoints that can be loaded."""
    known = {each.model_type: each for each in known_families()}
    if family is not None:
        if family not in known:
            raise unknown_name("family", family, list(known))
        typer.echo(_described(known[family]))
        return
    rows = [(DEMO, "about 1M", "inside the package; works offline", "")]
    for hub in HUB_MODELS:
        others = ", ".join(alias for alias in hub.aliases if "/" not in alias)
        rows.append((hub.name, hub.n_params, hub.hub_id, f"  also: {others}" if others else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, size, where, others in rows:
        line = f"{name:<{widths[0]}}  {size:>{widths[1]}}  {where:<{widths[2]}}{others}"
        typer.echo(line.rstrip())
    typer.echo("\nAlso any hub id (owner/model) or local folder with a config.json of these families, such as:")
    width = max(map(len, known))
    for name, each in known.items():
        typer.echo(f"{name:<{width}}  {', '.join(each.examples[:3])}")
    typer.echo("\nWhich weight processing applies to a family: headscope models --family NAME")


def _described(family: KnownFamily) -> str:
    lines = [f"{family.model_type} ({family.architecture} in transformers)", "  models:"]
    lines += [f"    {example}" for example in family.examples]
    lines.append(f"  weight processing that applies: {', '.join(family.processing)}")
    lines += [f"  not {name}: {reason}" for name, reason in family.left_out.items()]
    return "\n".join(lines)


@command(app, "headscope evaluate", "headscope evaluate ./my-demo --seed 7", loads_model=True)
def evaluate(
    model: options.Model = DEMO,
    seed: Annotated[int, typer.Option(help="Seed of the data; not the one used in training.")] = EVALUATION_SEED,
    n_prompts: Annotated[int, typer.Option(help="Number of prompts of indirect object identification.")] = 500,
    progress: options.Progress = True,
) -> None:
    """Measure every figure of the demo model's card, on it or on another model of its small English."""
    loaded = load(model)
    typer.echo(str(evaluate_demo(loaded, seed=seed, n_prompts=n_prompts, progress=progress)))
