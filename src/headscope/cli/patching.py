"""`headscope patch`: activation patching on a task."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.result import PatchingResult
from headscope.cli.shared import ModelArgument, ProgressOption, app, command
from headscope.cli.tasks import PromptsOption, PromptTypeOption, SeedOption, TaskOption, task_of
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.hub import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.views.drawing.saving import figure_page
from headscope.views.figures.patching import patching_by_head, patching_by_head_and_position, patching_by_position

__all__ = ["patch"]


class Direction(StrEnum):
    """Which run is patched."""

    denoising = "denoising"
    noising = "noising"


@command(
    app,
    examples=(
        "headscope patch",
        "headscope patch gpt2 --sites resid_pre,attn_out,mlp_out --prompts 50 --out patching",
        "headscope patch gpt2 --sites z,q,k,v,pattern --direction noising",
        "headscope patch gpt2 --sites z --by-position --positions S2,end",
        "headscope patch gpt2 --task my.csv --sites z",
    ),
)
def patch(
    model: ModelArgument = DEMO,
    task: TaskOption = None,
    sites: Annotated[
        str,
        typer.Option(
            help="What is patched, separated by commas: resid_pre, resid_mid, resid_post, attn_out, mlp_out; and of "
            "each head z, q, k, v, pattern."
        ),
    ] = "resid_pre",
    direction: Annotated[
        Direction,
        typer.Option(help="denoising: clean parts into the corrupted run; noising: the other way round."),
    ] = Direction.denoising,
    by_position: Annotated[
        bool | None,
        typer.Option(
            "--by-position/--all-positions",
            help="Patch each position by itself, or all together. Default: by itself, but together inside heads.",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Only these, separated by commas: numbers, or names of words such as S2 and end (drawn prompts only).",
            show_default=False,
        ),
    ] = None,
    prompts: PromptsOption = 100,
    prompt_type: PromptTypeOption = "mixed",
    seed: SeedOption = 0,
    top: Annotated[int, typer.Option(help="How many patches to print.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for the figures, the numbers as parquet, and the result.", show_default=False),
    ] = None,
    progress: ProgressOption = True,
) -> None:
    """Put parts of one run into another, and measure what brings a task's answer back, or breaks it."""
    if top < 1:
        raise InvalidInputError(f"top must be at least 1; got {top}.")
    if out is not None and out.exists() and not out.is_dir():
        raise InvalidInputError(f"{str(out)!r} is a file; give a folder (--out).")
    loaded = HookedTransformer.from_pretrained(model)
    found = activation_patch(
        loaded,
        task_of(loaded, task, prompts, prompt_type, seed),
        _listed(sites),
        direction=direction.value,
        by_position=by_position,
        positions=None if positions is None else [_number_or_name(each) for each in _listed(positions)],
        progress=progress,
    )
    typer.echo(f"{found}\n\n{found.top(top)}")
    if out is not None:
        _write(found, out)
        typer.echo(f"\nWritten to {out}: patching.html, patches.parquet, result.safetensors")


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _number_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _write(found: PatchingResult, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    axes = {site: found.axes_of(site) for site in found.sites}
    figures = []
    if ("layer", "pos") in axes.values():
        figures.append(patching_by_position(found))
    if ("layer", "head") in axes.values():
        figures.append(patching_by_head(found))
    figures += [patching_by_head_and_position(found, site) for site in found.sites if len(axes[site]) == 3]
    (out / "patching.html").write_text(figure_page(*figures, title="Activation patching"), encoding="utf-8")
    found.to_frame().to_parquet(out / "patches.parquet", index=False)
    found.save(out / "result.safetensors")
