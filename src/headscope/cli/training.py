"""`headscope train`: the models headscope has recipes for."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.base import options
from headscope.cli.base.commands import check_resume, command, train
from headscope.cli.base.foretelling import foretell
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.report import write_toy_report
from headscope.report.costs import training_work
from headscope.report.plan import Part
from headscope.report.words import count
from headscope.training import toy
from headscope.training.demo import DEMO_BATCH, DEMO_STEPS, demo_config, train_demo
from headscope.training.toy_tasks import ToyTask, toy_task

__all__ = ["demo", "induction", "modular_addition", "skip_trigram"]


@command(train, "headscope train demo --out my-demo", "headscope train demo --out quick --steps 300 --seed 1")
def demo(
    out: Annotated[Path, typer.Option(help="The checkpoint's folder.")] = Path("headscope-demo"),
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = DEMO_STEPS,
    seed: Annotated[int, typer.Option(help="Seed of the text and of the initial weights.")] = 0,
    progress: options.Progress = True,
) -> None:
    """Train the demo model by its recipe: a small GPT-2 on generated English, in minutes on a laptop."""
    if progress:
        _foretell(HookedTransformer(demo_config()), DEMO_BATCH, steps)
    history = train_demo(out, seed=seed, steps=steps, progress=progress)
    typer.echo(
        f"{out}: loss {history.loss[-1]:.3f} nats in the last of {len(history.loss)} steps, {history.seconds:.0f} s. "
        f"What it learned: headscope evaluate {out}"
    )


def _toy_command(name: str, explained: str) -> Callable[..., None]:
    """Register a command that trains one toy task's model."""

    def run(
        config: Annotated[
            Path | None,
            typer.Option(
                help='A JSON file that changes the recipe: {"task": {"n_heads": 2}, "training": {"epochs": 8}}.',
                show_default=False,
            ),
        ] = None,
        seed: Annotated[int, typer.Option(help="Seed of the initial weights, the data and its order.")] = 0,
        out: Annotated[
            Path | None,
            typer.Option(
                help="A folder for checkpoints, snapshots and the page. Default: the page alone, in report.",
                show_default=False,
            ),
        ] = None,
        resume: options.Resume = False,
        progress: options.Progress = True,
    ) -> None:
        _train_toy(name, config, seed, out, resume, progress)

    run.__name__ = name.replace("-", "_")
    run.__doc__ = explained
    return command(train, f"headscope train {name}", f"headscope train {name} --seed 1 --out my-{name}")(run)


skip_trigram = _toy_command(
    "skip-trigram", "Train one layer of attention to look up pairs of operands, and print its accuracy; seconds."
)
induction = _toy_command(
    "induction", "Train two layers of attention to continue a repeated sequence of tokens; about a minute."
)
modular_addition = _toy_command(
    "modular-addition", "Train a small layer on 30 % of an addition table until it can add; a minute or two."
)


def _train_toy(name: str, config: Path | None, seed: int, out: Path | None, resume: bool, progress: bool) -> None:
    check_resume(out, resume)
    changes = {} if config is None else _read_changes(config)
    task, cfg = _recipe(name, seed, changes)
    with tempfile.TemporaryDirectory(prefix="headscope-") as temporary:
        # Without a folder of its own the run is kept for as long as its page is made.
        folder = Path(temporary) if out is None else out
        if progress and not resume:
            _foretell(task.model, cfg.batch_size * task.data.tokens.shape[1], cfg.n_steps(len(task.data)))
        result = toy.train(
            task.model,
            task.data,
            cfg,
            validation=task.validation,
            out=folder,
            resume=resume,
            snapshots=toy.log_spaced_steps(cfg.n_steps(len(task.data))),
            progress=progress,
        )
        typer.echo(str(result))
        page = Path("report") if out is None else out / "report"
        written = write_toy_report(task.model, task.validation, result, page, run=folder, progress=progress)
    kept = "" if out is None else f"{out}: checkpoint, snapshots; "
    typer.echo(f"{kept}the page: {written.page}")


def _foretell(model: HookedTransformer, n_tokens: int, n_steps: int) -> None:
    """Say how long training takes, for a number of tokens in a step."""
    foretell(model, [Part("training", count(n_steps, "step"), training_work(model, n_tokens, n_steps))])


def _recipe(name: str, seed: int, changes: dict[str, Any]) -> tuple[ToyTask, toy.TrainConfig]:
    try:
        task = toy_task(name, **{"seed": seed, **changes.get("task", {})})
    except TypeError as error:
        raise InvalidInputError(f"the config changes what the {name} task does not have: {error}.") from None
    training = changes.get("training", {})
    recipe = asdict(task.training)
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if training.get(one) is not None:
            recipe[other] = None
    return task, toy.TrainConfig.from_dict({**recipe, **training})


def _read_changes(path: Path) -> dict[str, Any]:
    try:
        changes = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON: {error}.") from None
    if not isinstance(changes, dict) or not changes.keys() <= {"task", "training"}:
        found = sorted(changes) if isinstance(changes, dict) else type(changes).__name__
        raise InvalidInputError(f"{path} must hold an object with 'task' and 'training'; got {found}.")
    return changes
