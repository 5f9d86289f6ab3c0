"""`headscope edges`: the edges between parts of a model that carry a task."""

from typing import Annotated

import typer

from headscope.analysis.circuits.edge_patching import edge_patch
from headscope.analysis.circuits.edges import EdgeMethod, edge_attribution
from headscope.analysis.core.result import Result
from headscope.analysis.prompts.two_runs import Direction, Scale
from headscope.cli.base import options
from headscope.cli.base.commands import app, command, task_of, write_folder
from headscope.cli.base.foretelling import foretold
from headscope.model.checkpoints.names import DEMO
from headscope.report.costs import edge_patching_work, edges_work
from headscope.report.plan import Part
from headscope.report.words import count
from headscope.views.figures.circuit import circuit_picture
from headscope.views.figures.path_patching import attribution_scatter

__all__ = ["edges"]


@command(
    app,
    "headscope edges",
    "headscope edges gpt2 --prompts 30 --patch 50 --out edges",
    "headscope edges gpt2 --method eap --task my.csv",
    loads_model=True,
)
def edges(
    model: options.Model = DEMO,
    task: options.Task = None,
    method: Annotated[
        EdgeMethod,
        typer.Option(
            help="Take gradients in the run that is patched (eap), in runs on the way between both runs' embeddings "
            "(eap_ig) or activations (eap_ig_activations; slow), or in both runs (clean_corrupted)."
        ),
    ] = "eap_ig",
    steps: Annotated[int, typer.Option(min=1, help="Runs on the way, for the two methods with ig.")] = 5,
    patch: Annotated[int, typer.Option(min=0, help="Patch so many of the strongest edges one by one.")] = 20,
    direction: Annotated[
        Direction,
        typer.Option(help="Put corrupted values into the clean run (noising), or the reverse (denoising)."),
    ] = "noising",
    scale: Annotated[
        Scale,
        typer.Option(help="Effects as a share of the clean metric less the corrupted one, or in logits (metric)."),
    ] = "share",
    prompts: options.Prompts = 50,
    prompt_type: options.PromptType = "mixed",
    seed: options.Seed = 0,
    top: options.Top = 15,
    out: options.Folder = None,
    progress: options.Progress = True,
) -> None:
    """Estimate what every edge between heads, MLPs and logits does for a task, and patch the strongest edges."""
    loaded, prompted = task_of(model, task, prompts, prompt_type, seed)
    said = count(len(prompted), "prompt")
    parts = [Part("edges", f"{said}, {method}", edges_work(loaded, prompted, method, steps))]
    if patch:
        parts.append(
            Part("edge patching", f"{said}, {count(patch, 'edge')}", edge_patching_work(loaded, prompted, patch))
        )
    with foretold(loaded, parts, shown=progress) as within:
        with within("edges"):
            found = edge_attribution(
                loaded, prompted, method, steps=steps, direction=direction, scale=scale, progress=progress
            )
        typer.echo(f"{found}\n\n{found.top(top)}")
        results: dict[str, Result] = {"result": found}
        frames, figures = {"edges": found.to_frame()}, [circuit_picture(found.circuit())]
        if patch:
            with within("edge patching"):
                patched = edge_patch(loaded, prompted, found, n=patch, progress=progress)
            typer.echo(f"\n{patched}")
            results["patched"], frames["patched"] = patched, patched.to_frame()
            if len(patched.edges) > 1:
                figures.append(attribution_scatter(patched.compare()))
    if out is not None:
        write_folder(out, "edges", figures, title="Edges", frames=frames, results=results)
