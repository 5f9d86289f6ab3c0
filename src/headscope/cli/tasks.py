"""Commands about prompts with a right and a wrong answer: `headscope ioi`, `attribute`."""

import dataclasses
import math
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor

from headscope.analysis.core.stats import standard_errors
from headscope.analysis.prompts.attribution import attribute as attribute_answers
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.analysis.prompts.task import Task
from headscope.cli.base import options
from headscope.cli.base.commands import app, command, ends, task_of, write_folder
from headscope.cli.base.foretelling import foretold
from headscope.model.checkpoints.names import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide
from headscope.report.costs import attribution_work
from headscope.report.plan import Part
from headscope.report.words import count
from headscope.views.figures.attribution import (
    attribution_by_component,
    attribution_by_head,
    attribution_by_layer,
    attribution_by_source,
)

__all__ = ["attribute", "ioi"]

_PROMPTS = 500


@command(
    app,
    "headscope ioi",
    "headscope ioi gpt2 --prompts 500 --prompt-type ABBA",
    "headscope ioi gpt2 --task my.csv --rows 20",
    loads_model=True,
)
def ioi(
    model: options.Model = DEMO,
    task: options.Task = None,
    prompts: options.Prompts = _PROMPTS,
    prompt_type: options.PromptType = "mixed",
    seed: options.Seed = 0,
    rows: Annotated[int, typer.Option(min=0, help="Number of prompts to show.")] = 10,
    progress: options.Progress = True,
) -> None:
    """Show prompts, their answers, the logit difference between right and wrong, and what corrupting them does."""
    loaded, asked = task_of(model, task, prompts, prompt_type, seed)
    both = [("clean", asked)]
    if asked.corrupted_tokens is not None:
        swapped = dataclasses.replace(asked, clean_tokens=asked.corrupted_tokens, corrupted_tokens=None)
        both.append(("corrupted", swapped))
    parts = [Part(name, count(len(asked), "prompt"), attribution_work(loaded, some)) for name, some in both]
    measured = {}
    with foretold(loaded, parts, shown=progress) as within:
        for name, some in both:
            with within(name):
                measured[name] = _differences(loaded, some, progress)
    clean = measured["clean"]
    if rows:
        Console().print(asked[:rows].table(clean[:rows]))
        if len(asked) > rows:
            typer.echo(f"... and {len(asked) - rows} more")
    above = float(wide(clean > 0).mean())
    mean = _mean(clean, asked.clusters)
    typer.echo(f"Logit difference: {mean} on average, above zero for {above:.1%} of {count(len(asked), 'prompt')}.")
    labels = sorted({label for label in asked.labels if label})
    for label in labels if len(labels) > 1 else []:
        chosen = [at for at, each in enumerate(asked.labels) if each == label]
        together = None if asked.clusters is None else asked.clusters[chosen]
        typer.echo(f"  {label}: {_mean(clean[chosen], together)} ({count(len(chosen), 'prompt')})")
    if "corrupted" in measured:
        typer.echo(f"Corrupted, with the same answers: {_mean(measured['corrupted'], asked.clusters)}.")


@command(
    app,
    "headscope attribute",
    "headscope attribute gpt2 --prompt-type ABBA --out attribution",
    "headscope attribute gpt2 --task my.csv --top 20",
    loads_model=True,
)
def attribute(
    model: options.Model = DEMO,
    task: options.Task = None,
    prompts: options.Prompts = _PROMPTS,
    prompt_type: options.PromptType = "mixed",
    seed: options.Seed = 0,
    top: options.Top = 5,
    out: options.Folder = None,
    progress: options.Progress = True,
) -> None:
    """Measure the direct effect of each part of the model on the logit difference of right and wrong answers."""
    loaded, asked = task_of(model, task, prompts, prompt_type, seed)
    part = Part("attribution", count(len(asked), "prompt"), attribution_work(loaded, asked))
    with foretold(loaded, [part], shown=progress) as within, within("attribution"):
        result = attribute_answers(loaded, asked, progress=progress)
    typer.echo(_attribution_text(result, top))
    if out is not None:
        figures = (
            attribution_by_layer(result),
            attribution_by_component(result),
            attribution_by_head(result),
            attribution_by_source(result),
        )
        frames = {"components": result.to_frame(), "states": result.states_frame()}
        write_folder(out, "attribution", figures, title="Attribution", frames=frames, results={"result": result})


def _mean(differences: Tensor, clusters: Tensor | None) -> str:
    """Return the mean over prompts as text, with its standard error where there are several."""
    error = float(standard_errors(wide(differences), clusters))
    return f"{float(differences.mean()):+.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def _differences(model: HookedTransformer, task: Task, progress: bool) -> Tensor:
    return attribute_answers(model, task, sources=False, neurons=False, progress=progress).logit_difference.cpu()


def _attribution_text(result: Attribution, top: int) -> str:
    rankings = [ends(result.top(result.n_layers * result.n_heads), top)]
    if result.neurons is not None:
        rankings.append(str(result.top_neurons(top)))
    return "\n\n".join([str(result), *rankings])
