"""`headscope heads`: which heads are of which kind."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headscope.analysis.circuits.circuit import find_circuit
from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.core.result import Result
from headscope.analysis.heads.probes import rows_of
from headscope.analysis.heads.scores import MIN_ATTENTION
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.heads.types_result import HeadTypes
from headscope.cli.base import options
from headscope.cli.base.commands import app, command, task_of, write_folder
from headscope.cli.base.foretelling import foretold
from headscope.cli.base.loading import load
from headscope.data.text import read_chunks
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.names import DEMO
from headscope.report.costs import circuit_work, types_work
from headscope.report.plan import Part
from headscope.report.task.measuring import SWAPPED
from headscope.report.words import count
from headscope.views.figures.circuit import circuit_picture
from headscope.views.figures.head_types import head_type_maps, k_composition_maps

__all__ = ["heads"]

_WIDE = 120  # characters
_RECEIVERS = 12  # at most, as by default
_CHARACTERS = 20_000  # of a text


@command(
    app,
    "headscope heads",
    "headscope heads --task ioi --circuit --out heads",
    "headscope heads gpt2 --text book.txt",
    "headscope heads gpt2 --task my.csv --out heads",
    loads_model=True,
)
def heads(
    model: options.Model = DEMO,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="ioi|FILE",
            help="Also find the heads that move names: on generated prompts (ioi), or on your own, a .csv or .jsonl "
            "file with the columns prompt, correct, incorrect and corrupted, in which the right name appears once and "
            "the wrong one twice.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="A file of text like that the model was trained on: pieces of it are said twice in the place of "
            "random tokens, and labels by attention must reach the least share on one of the two, and a third of it "
            "on the other.",
            show_default=False,
        ),
    ] = None,
    prompts: options.Prompts = 100,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens and of the generated prompts.")] = 0,
    min_attention: Annotated[
        float, typer.Option(help="Least share of its attention for a head of a kind.")
    ] = MIN_ATTENTION,
    min_effect: Annotated[float, typer.Option(help="Least share of the logit difference, for a task.")] = 0.05,
    circuit: Annotated[bool, typer.Option("--circuit", help="Also find the paths between heads; slow.")] = False,
    out: options.Folder = None,
    progress: options.Progress = True,
) -> None:
    """Find previous-token, duplicate-token, induction and copy-suppressing heads, and those that do a task."""
    if circuit and task is None:
        raise InvalidInputError("--circuit finds the paths that carry a task: name one with --task, such as ioi.")
    asked = None
    if task is None:
        loaded = load(model)
    else:
        loaded, asked = task_of(model, None if task == "ioi" else Path(task), prompts, "mixed", seed, SWAPPED)
    paths = None
    tokens = None if text is None else rows_of(loaded, _beginning(text))
    said = "random tokens" if tokens is None else f"a text of {count(tokens.numel(), 'token')}"
    work = types_work(loaded, asked, 0 if tokens is None else tokens.numel())
    parts = [Part("head types", f"{said}, {count(len(asked), 'prompt')}" if asked else said, work)]
    if circuit and asked is not None:
        parts.append(Part("circuit", f"at most {_RECEIVERS} receivers", circuit_work(loaded, asked, _RECEIVERS)))
    with foretold(loaded, parts, shown=progress) as within:
        with within("head types"):
            types = detect_heads(
                loaded,
                text=tokens,
                task=asked,
                seed=seed,
                min_attention=min_attention,
                min_effect=min_effect,
                progress=progress,
            )
        if circuit and asked is not None:
            with within("circuit"):
                paths = find_circuit(loaded, asked, types, max_receivers=_RECEIVERS, progress=progress)
    console = Console()
    wide = console.width >= _WIDE
    console.print(types.table(evidence=wide))
    if not wide:
        typer.echo("In a wider window, and in the files of --out, each label comes with its evidence.")
    for note in types.notes:
        typer.echo(note)
    if paths is not None:
        console.print(paths.table())
        for line in paths.kept_alone:
            typer.echo(line)
    if out is not None:
        _write(types, paths, out)


def _beginning(path: Path) -> str:
    """The beginning of a text: as much as `detect_heads` looks at."""
    found = ""
    for chunk in read_chunks(path):
        found += chunk.text + "\n\n" * chunk.ends
        if len(found) >= _CHARACTERS:
            break
    return found[:_CHARACTERS]


def _write(types: HeadTypes, circuit: Circuit | None, out: Path) -> None:
    figures = [head_type_maps(types)]
    figures += [head_type_maps(types, unit="logits")] if "copy_suppression" in types.kinds else []
    figures += [k_composition_maps(types)] if types.heads("induction") else []
    figures += [circuit_picture(circuit)] if circuit is not None and circuit.inputs else []
    frames, results = {"heads": types.to_frame()}, dict[str, Result](result=types)
    if circuit is not None:
        frames["paths"] = circuit.to_frame()
        results["circuit"] = circuit
    write_folder(out, "heads", figures, title="Head types", frames=frames, results=results)
