"""The commands about prompts with a right and a wrong answer: `headscope ioi`, `attribute`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor

from headscope.analysis.prompts.attribution import attribute as attribute_answers
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.analysis.prompts.task import Task
from headscope.cli.shared import ModelArgument, ProgressOption, app, command
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.hub import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.views.drawing.saving import figure_page
from headscope.views.figures.attribution import (
    attribution_by_component,
    attribution_by_head,
    attribution_by_layer,
    attribution_by_source,
)

__all__ = ["PromptTypeOption", "PromptsOption", "SeedOption", "TaskOption", "attribute", "ioi", "task_of"]

_PROMPTS = 500

TaskOption = Annotated[
    Path | None,
    typer.Option(
        "--task",
        help="Prompts of your own: a .csv or .jsonl file with the columns prompt, correct, incorrect, and where wanted "
        "corrupted and label. Default: indirect object identification.",
        show_default=False,
    ),
]
PromptsOption = Annotated[int, typer.Option("--prompts", help="How many prompts to draw, without --task.")]
PromptTypeOption = Annotated[str, typer.Option(help="Kind of drawn prompts: mixed, ABBA or BABA.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the drawn prompts.")]


@command(
    app,
    examples=(
        "headscope ioi",
        "headscope ioi gpt2 --prompts 500 --prompt-type ABBA",
        "headscope ioi gpt2 --task my.csv --rows 20",
    ),
)
def ioi(
    model: ModelArgument = DEMO,
    task: TaskOption = None,
    prompts: PromptsOption = _PROMPTS,
    prompt_type: PromptTypeOption = "mixed",
    seed: SeedOption = 0,
    rows: Annotated[int, typer.Option(help="How many prompts to show.")] = 10,
    progress: ProgressOption = True,
) -> None:
    """Show prompts, their answers, the logit difference between right and wrong, and what corrupting them does."""
    if rows < 0:
        raise InvalidInputError(f"rows must be at least 0; got {rows}.")
    loaded = HookedTransformer.from_pretrained(model)
    found = task_of(loaded, task, prompts, prompt_type, seed)
    clean = _differences(loaded, found, progress)
    if rows:
        shown = found[:rows]
        Console().print(shown.table(clean[:rows]))
        if len(found) > rows:
            typer.echo(f"... and {len(found) - rows} more")
    above = float((clean > 0).double().mean())
    typer.echo(f"Logit difference: {float(clean.mean()):+.3f} on average, above zero for {above:.1%} of {len(found)}.")
    labels = sorted({label for label in found.labels if label})
    for label in labels if len(labels) > 1 else []:
        chosen = [at for at, each in enumerate(found.labels) if each == label]
        typer.echo(f"  {label}: {float(clean[chosen].mean()):+.3f} ({len(chosen)} prompts)")
    if found.corrupted_tokens is not None:
        corrupted = dataclasses.replace(found, clean_tokens=found.corrupted_tokens, corrupted_tokens=None)
        broken = _differences(loaded, corrupted, progress)
        typer.echo(f"Corrupted, with the same answers: {float(broken.mean()):+.3f}.")


@command(
    app,
    examples=(
        "headscope attribute",
        "headscope attribute gpt2 --prompt-type ABBA --out attribution",
        "headscope attribute gpt2 --task my.csv --top 20",
    ),
)
def attribute(
    model: ModelArgument = DEMO,
    task: TaskOption = None,
    prompts: PromptsOption = _PROMPTS,
    prompt_type: PromptTypeOption = "mixed",
    seed: SeedOption = 0,
    top: Annotated[int, typer.Option(help="How many heads to print at each end, and how many neurons.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for the figures, the numbers as parquet, and the result.", show_default=False),
    ] = None,
    progress: ProgressOption = True,
) -> None:
    """Measure what each part of the model adds directly to the logit difference between right and wrong answers."""
    if top < 1:
        raise InvalidInputError(f"top must be at least 1; got {top}.")
    if out is not None and out.exists() and not out.is_dir():
        raise InvalidInputError(f"{str(out)!r} is a file; give a folder (--out).")
    loaded = HookedTransformer.from_pretrained(model)
    found = attribute_answers(loaded, task_of(loaded, task, prompts, prompt_type, seed), progress=progress)
    typer.echo(_attribution_text(found, top))
    if out is not None:
        _write(found, out)
        typer.echo(f"\nWritten to {out}: attribution.html, components.parquet, states.parquet, result.safetensors")


def task_of(model: HookedTransformer, path: Path | None, prompts: int, prompt_type: str, seed: int) -> Task:
    """The prompts in a file, or drawn ones."""
    if path is not None:
        return Task.read(path, model.tokenizer, prepend_bos=model.cfg.default_prepend_bos)
    dataset = IOIDataset(prompt_type, prompts, model.tokenizer, prepend_bos=model.cfg.default_prepend_bos, seed=seed)
    return Task.from_ioi(dataset)


def _differences(model: HookedTransformer, task: Task, progress: bool) -> Tensor:
    return attribute_answers(model, task, sources=False, neurons=False, progress=progress).logit_difference.cpu()


def _attribution_text(found: Attribution, top: int) -> str:
    lines = [str(found)]
    for title, largest in (("add most", True), ("take most", False)):
        lines += ["", f"Heads that {title} (logits)"]
        lines += [f"  {score.label:<8}{score.value:>+9.4f}" for score in found.top(top, largest=largest)]
    if found.neurons is not None:
        lines += ["", "Neurons that add most (logits)"]
        lines += [f"  {score.label:<8}{score.value:>+9.4f}" for score in found.top_neurons(top)]
    return "\n".join(lines)


def _write(found: Attribution, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    figures = [attribution_by_layer(found), attribution_by_component(found), attribution_by_head(found)]
    figures.append(attribution_by_source(found))
    (out / "attribution.html").write_text(figure_page(*figures, title="Attribution"), encoding="utf-8")
    found.to_frame().to_parquet(out / "components.parquet", index=False)
    found.states_frame().to_parquet(out / "states.parquet", index=False)
    found.save(out / "result.safetensors")
