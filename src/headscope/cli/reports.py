"""`headscope report`, `models`, `evaluate`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from headscope.analysis.prompts.task import Task
from headscope.cli.shared import (
    MaxTokensOption,
    ModelArgument,
    ProgressOption,
    SeqLenOption,
    TextOption,
    app,
    command,
    texts_of,
)
from headscope.cli.tasks import task_of
from headscope.data.cutting import Chunk
from headscope.data.hub import DATASETS, get_dataset
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.checkpoints.catalog import KnownFamily, known_families
from headscope.model.checkpoints.hub import DEMO, HUB_MODELS
from headscope.model.transformer import HookedTransformer
from headscope.report import ABLATION_TOKENS, MAX_TOKENS, write_comparison, write_report
from headscope.training.demo_figures import EVALUATION_SEED, evaluate_demo

__all__ = ["evaluate", "models", "report"]

_N_HEADS, _N_POSITIONS = 4, 5


@command(
    app,
    examples=(
        "headscope report",
        "headscope report gpt2 --text story.txt --out gpt2-report",
        "headscope report ./my-checkpoint --max-tokens 20000",
        "headscope report gpt2 --dataset owt --task my-prompts.csv",
        "headscope report --compare ./checkpoint-1000 ./checkpoint-9000 --text story.txt",
    ),
)
def report(
    model: ModelArgument = DEMO,
    text: TextOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"A dataset of the Hugging Face hub to run on instead of a file: {', '.join(DATASETS)}. Needs the "
            "extra headscope[hf-datasets], and a network or its cache.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="ioi|FILE",
            help="Prompts of two names to look at who tells them apart: ioi draws those of indirect object "
            "identification, FILE is a .csv or .jsonl of your own (prompt, correct, incorrect, corrupted); auto "
            "draws too, unless the model cannot read them.",
        ),
    ] = "auto",
    no_task: Annotated[bool, typer.Option("--no-task", help="Leave the prompts of two names out.")] = False,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("report"),
    max_tokens: MaxTokensOption = MAX_TOKENS,
    seq_len: SeqLenOption = None,
    n_heads: Annotated[
        int, typer.Option(help="How many of the heads that raise entropy to look at closely.")
    ] = _N_HEADS,
    n_positions: Annotated[int, typer.Option(help="How many positions to show for each of them.")] = _N_POSITIONS,
    ablation_tokens: Annotated[
        int, typer.Option(help="Tokens to ablate every head on, at most; 0 leaves it out.")
    ] = ABLATION_TOKENS,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Two models (names, hub ids or checkpoint folders) to set side by side instead, on the same text.",
            show_default=False,
        ),
    ] = None,
    progress: ProgressOption = True,
) -> None:
    """Write one offline HTML page about a model on a text, and its numbers as parquet beside it."""
    texts, described = _documents(text, dataset)
    if no_task and task != "auto":
        raise InvalidInputError(f"--no-task leaves out what --task {task} asks for: give one of them.")
    if compare is not None:
        own = {
            "MODEL": model != DEMO,
            "--n-heads": n_heads != _N_HEADS,
            "--n-positions": n_positions != _N_POSITIONS,
            "--task": task != "auto",
            "--no-task": no_task,
        }
        for name in (name for name, given in own.items() if given):
            raise InvalidInputError(
                f"--compare takes both models itself; {model!r} is a third one. Leave it out."
                if name == "MODEL"
                else f"{name} is for the page about one model, and has no part in --compare. Leave it out."
            )
        first, second = (HookedTransformer.from_pretrained(name) for name in compare)
        compared = write_comparison(
            first,
            second,
            texts,
            out,
            names=(_called(compare[0]), _called(compare[1])),
            describe=described,
            max_tokens=max_tokens,
            seq_len=seq_len,
            ablation_tokens=ablation_tokens,
            progress=progress,
        )
        typer.echo(f"{compared.page} (and {len(compared.tables)} tables beside it)")
        return
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
        ablation_tokens=ablation_tokens,
        task=None if no_task else _prompts(loaded, task),
        progress=progress,
    )
    typer.echo(f"{written.page} (and {len(written.tables)} tables beside it)")


def _documents(text: Path | None, dataset: str | None) -> tuple[Iterable[str] | Iterable[Chunk], str]:
    """What to run on, and what to call it."""
    if dataset is None:
        return texts_of(text)
    if text is not None:
        raise InvalidInputError("--text and --dataset are two texts: give one of them.")
    return (row["text"] for row in get_dataset(dataset)), f"the dataset {dataset}"


def _prompts(model: HookedTransformer, task: str) -> Task | Literal["auto", "ioi"]:
    """The prompts in a file, or the word for those to be drawn."""
    if task == "auto":
        return "auto"
    if task == "ioi":
        return "ioi"
    return task_of(model, Path(task), 0, "mixed", 0)


def _called(name: str) -> str:
    """What to call a model: of a checkpoint folder, its last two parts, which tell checkpoints of one run apart."""
    folder = Path(name)
    return "/".join(folder.absolute().parts[-2:]) if folder.is_dir() else name


@command(app, examples=("headscope models", "headscope models --family gemma2"))
def models(
    family: Annotated[
        str | None, typer.Option(help="Say all there is to say of one family.", show_default=False)
    ] = None,
) -> None:
    """List the models with short names, and the families of checkpoints that can be loaded."""
    known = {each.model_type: each for each in known_families()}
    if family is not None:
        if family not in known:
            raise unknown_name("family", family, list(known))
        typer.echo(_described(known[family]))
        return
    rows = [(DEMO, "about 1M", "inside the package; works offline")]
    rows += [(", ".join((hub.name, *hub.aliases)), hub.n_params, hub.hub_id) for hub in HUB_MODELS]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, size, where in rows:
        typer.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {where}")
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


@command(
    app,
    examples=("headscope evaluate", "headscope evaluate ./my-demo --seed 7"),
)
def evaluate(
    model: ModelArgument = DEMO,
    seed: Annotated[int, typer.Option(help="Seed of the data; not one that training used.")] = EVALUATION_SEED,
    n_prompts: Annotated[int, typer.Option(help="How many prompts of indirect object identification.")] = 500,
    progress: ProgressOption = True,
) -> None:
    """Measure what the demo model (or another model of its small English) learned: every figure of its model card."""
    loaded = HookedTransformer.from_pretrained(model)
    typer.echo(str(evaluate_demo(loaded, seed=seed, n_prompts=n_prompts, progress=progress)))
