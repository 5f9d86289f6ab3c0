"""`headscope patch`: activation patching on a task."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.two_runs import Direction, Scale
from headscope.cli.base import options
from headscope.cli.base.commands import app, command, listed, task_of, write_folder
from headscope.cli.base.foretelling import foretold
from headscope.model.checkpoints.names import DEMO
from headscope.report.costs import patching_work
from headscope.report.plan import Part
from headscope.report.words import count
from headscope.views.figures.patching import patching_by_head, patching_by_head_and_position, patching_by_position

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["patch"]


@command(
    app,
    "headscope patch",
    "headscope patch gpt2 --sites resid_pre,attn_out,mlp_out --prompts 50 --out patching",
    "headscope patch gpt2 --sites z,q,k,v,pattern --direction noising",
    "headscope patch gpt2 --sites z --by-position --positions S2,end",
    "headscope patch gpt2 --task my.csv --sites z",
    loads_model=True,
)
def patch(
    model: options.Model = DEMO,
    task: options.Task = None,
    sites: Annotated[
        str,
        typer.Option(
            help="Sites to patch, separated by commas: resid_pre, resid_mid, resid_post, attn_out, mlp_out; and of "
            "each head z, q, k, v, pattern."
        ),
    ] = "resid_pre",
    direction: Annotated[
        Direction,
        typer.Option(help="Patch clean activations into the corrupted run (denoising), or the reverse (noising)."),
    ] = "denoising",
    scale: Annotated[
        Scale,
        typer.Option(help="Effects as a share of the clean metric less the corrupted one, or in logits (metric)."),
    ] = "share",
    by_position: Annotated[
        bool | None,
        typer.Option(
            "--by-position/--all-positions",
            help="Patch one position at a time, or all together. Default: one at a time, but all together for heads.",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Only these positions, separated by commas: numbers, end (where the answer is predicted), or names of "
            "words such as S2 (generated prompts only); S2+1 is the token after one, end-1 the one before.",
            show_default=False,
        ),
    ] = None,
    prompts: options.Prompts = 100,
    prompt_type: options.PromptType = "mixed",
    seed: options.Seed = 0,
    top: options.Top = 10,
    out: options.Folder = None,
    progress: options.Progress = True,
) -> None:
    """Patch activations of one run into another, and measure which of them restore a task's answer, or break it."""
    asked = listed(positions)
    loaded, prompted = task_of(model, task, prompts, prompt_type, seed)
    names = listed(sites) or []
    where: Any = {
        "by_position": by_position,
        "positions": asked,
    }
    says = f"{count(len(prompted), 'prompt')}, {', '.join(names)}"
    part = Part("patching", says, patching_work(loaded, prompted, names, **where))
    with foretold(loaded, [part], shown=progress) as within, within("patching"):
        result = activation_patch(loaded, prompted, names, direction=direction, scale=scale, progress=progress, **where)
    typer.echo(f"{result}\n\n{result.top(top)}")
    if out is not None:
        frames, results = {"patches": result.to_frame()}, {"result": result}
        write_folder(out, "patching", _figures(result), title="Activation patching", frames=frames, results=results)


def _figures(result: PatchingResult) -> "list[go.Figure]":
    axes = {site: result.axes_of(site) for site in result.sites}
    figures = [patching_by_position(result)] if ("layer", "pos") in axes.values() else []
    figures += [patching_by_head(result)] if ("layer", "head") in axes.values() else []
    return figures + [patching_by_head_and_position(result, site) for site in result.sites if len(axes[site]) == 3]
