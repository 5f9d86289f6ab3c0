"""`headscope merge` and `status`, and the engines that commands take by `--workers`, `--ray` and `--shard`."""

import re
from typing import Annotated

import typer

from headscope.analysis.core.result import Result
from headscope.analysis.storage.sharded import Engine
from headscope.cli.base import options
from headscope.cli.base.commands import app, command
from headscope.cli.base.loading import Device
from headscope.errors import InvalidInputError
from headscope.scale import Part, Processes, Ray, runs

__all__ = ["engine_of", "merge", "status"]

Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run in shards, or its URL.")]


def engine_of(
    model: str,
    out: str | None,
    *,
    workers: int | None,
    ray: str | None,
    gpus: float | None,
    shard: str | None,
    shard_tokens: int | None,
    worker_lines: bool,
) -> Engine | None:
    """Return who measures; `None` for this process, without shards.

    Raises:
        InvalidInputError: for options that do not go together, or without a folder.
    """
    given = {"--workers": workers, "--ray": ray, "--shard": shard}
    if gpus is not None and ray is None:
        raise InvalidInputError("--gpus goes with --ray: workers of a cluster get so many each.")
    named = [name for name, value in given.items() if value is not None]
    if not named:
        if shard_tokens is not None:
            raise InvalidInputError("--shard-tokens goes with --workers, --ray or --shard.")
        return None
    if out is None:
        raise InvalidInputError(f"{named[0]} needs a folder that workers share; name it with --out.")
    if shard is not None:
        if len(named) > 1:
            raise InvalidInputError(f"{named[0]} and --shard are two ways to share a run: give one of them.")
        found = re.fullmatch(r"(\d+)/(\d+)", shard)
        if found is None:
            raise InvalidInputError(f"--shard is a part I of N, written I/N, such as 3/64; got {shard!r}.")
        return Part(int(found[1]), int(found[2]), shard_tokens=shard_tokens, model=model)
    if ray is not None:
        each = gpus or 0.0
        return Ray(ray, workers=workers, gpus=each, shard_tokens=shard_tokens, source=model, tells_workers=worker_lines)
    return Processes(workers, shard_tokens=shard_tokens, source=model, tells_workers=worker_lines)


@command(app, "headscope merge story-entropy")
def merge(
    run: Run,
    model: Annotated[
        str | None,
        typer.Option(help="The model, where it lies elsewhere than when the run was begun.", show_default=False),
    ] = None,
    device: Device = None,
    progress: options.Progress = True,
) -> None:
    """Put the shards of a run together, when all are measured: the result of one pass over the data, or of the run.

    The model is loaded as the run was begun with it, in its dtype.
    """
    result = runs.merge(run, model=model, device=device, progress=progress)
    if isinstance(result, Result):
        typer.echo(str(result.info))
    typer.echo(f"Saved to {run}/result.safetensors")


@command(app, "headscope status story-entropy", "headscope status story-entropy --workers")
def status(
    run: Run,
    workers: Annotated[bool, typer.Option("--workers", help="Show each worker too: its shards and its rate.")] = False,
) -> None:
    """Show how far a run in shards is: shards done, under way and failed, tokens a second and the time left."""
    typer.echo(runs.status(run).told(workers=workers))
