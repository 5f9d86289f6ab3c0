"""`headscope heads`: which heads are of which kind."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headscope.analysis.circuits.circuit import Circuit, find_circuit
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.prompts.task import Task
from headscope.cli.shared import ModelArgument, ProgressOption, app, command
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.hub import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.views.drawing.saving import figure_page
from headscope.views.figures.circuit import circuit_picture
from headscope.views.figures.head_types import head_type_maps, k_composition_maps

__all__ = ["heads"]

_IOI = "ioi"
_SWAPPED = "ABB->ABA, BAB->BAA"
_PROMPTS = 100
_WIDE = 120  # characters


@command(
    app,
    examples=(
        "headscope heads",
        "headscope heads --task ioi --circuit --out heads",
        "headscope heads gpt2 --task my.csv --out heads",
    ),
)
def heads(
    model: ModelArgument = DEMO,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Also find the heads that move names: 'ioi', or prompts of your own in a .csv or .jsonl file with the "
            "columns prompt, correct, incorrect and corrupted, in which the right name is named once and the wrong one "
            "twice.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", help="How many prompts to draw for --task ioi.")] = _PROMPTS,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens and of the drawn prompts.")] = 0,
    min_attention: Annotated[float, typer.Option(help="Share of attention that makes a head a kind of head.")] = 0.3,
    min_effect: Annotated[float, typer.Option(help="Share of the logit difference that makes a head one.")] = 0.05,
    circuit: Annotated[
        bool, typer.Option("--circuit", help="Also find the paths between them; needs --task, and takes long.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for the figures, the numbers as parquet, and the results.", show_default=False),
    ] = None,
    progress: ProgressOption = True,
) -> None:
    """Find previous-token, duplicate-token, induction and copy-suppressing heads, and those that do a task."""
    if out is not None and out.exists() and not out.is_dir():
        raise InvalidInputError(f"{str(out)!r} is a file; give a folder (--out).")
    if circuit and task is None:
        raise InvalidInputError("--circuit is about the paths that carry a task: say which by --task, such as ioi.")
    loaded = HookedTransformer.from_pretrained(model)
    asked = None if task is None else _task(loaded, task, prompts, seed)
    found = detect_heads(
        loaded, task=asked, seed=seed, min_attention=min_attention, min_effect=min_effect, progress=progress
    )
    console = Console()
    wide = console.width >= _WIDE
    console.print(found.table(evidence=wide))
    if not wide:
        typer.echo("In a wider window, and in the files of --out, each label comes with its evidence.")
    for note in found.notes:
        typer.echo(note)
    paths = None
    if circuit and asked is not None:
        paths = find_circuit(loaded, asked, found, progress=progress)
        console.print(paths.table())
    if out is not None:
        names = _write(found, paths, out)
        typer.echo(f"Written to {out}: {', '.join(names)}")


def _task(model: HookedTransformer, asked: str, prompts: int, seed: int) -> Task:
    prepend_bos = model.cfg.default_prepend_bos
    if asked != _IOI:
        return Task.read(asked, model.tokenizer, prepend_bos=prepend_bos)
    dataset = IOIDataset("mixed", prompts, model.tokenizer, prepend_bos=prepend_bos, seed=seed)
    return Task.from_ioi(dataset, _SWAPPED)


def _write(found: HeadTypes, circuit: Circuit | None, out: Path) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    figures = [head_type_maps(found)]
    figures += [head_type_maps(found, unit="logits")] if "copy_suppression" in found.kinds else []
    figures += [k_composition_maps(found)] if found.heads("induction") else []
    figures += [circuit_picture(circuit)] if circuit is not None and circuit.inputs else []
    (out / "heads.html").write_text(figure_page(*figures, title="Kinds of heads"), encoding="utf-8")
    found.to_frame().to_parquet(out / "heads.parquet", index=False)
    found.save(out / "result.safetensors")
    names = ["heads.html", "heads.parquet", "result.safetensors"]
    if circuit is not None:
        circuit.to_frame().to_parquet(out / "paths.parquet", index=False)
        circuit.save(out / "circuit.safetensors")
        names += ["paths.parquet", "circuit.safetensors"]
    return names
