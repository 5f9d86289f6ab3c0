"""`write_toy_report`: one offline HTML page about a model trained on a toy task, with its numbers as parquet beside it.

A toy model's answers are not the next tokens of a text, so that `write_report` would measure it by what it was never
asked. This page measures answers: how they were learned, what heads do to them, and what circuits they come from.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.analysis.heads.types import detect_heads
from headscope.data.tasks import TaskDataset
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.report.blocks import Page
from headscope.report.files import staged, write_files
from headscope.report.page import render_page
from headscope.report.toy.sections import ToyFindings, toy_sections
from headscope.training.toy_checkpoint import load_toy_model
from headscope.training.toy_dynamics import TrainingDynamics, training_dynamics
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_study import HeadsNeeded, heads_needed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ToyReport", "write_toy_report"]

_LEAST_CONTEXT = 5  # two copies of at least two tokens and a first one, or there is nothing to look back at
_LEAST_VOCABULARY = 5
_TABLES = {
    "training": "loss and accuracy of every step, on its batch",
    "validation": "loss and accuracy on held-out data, whenever it was measured",
    "heads": "loss and accuracy without each head",
    "head_types": "the scores behind the kinds of head, and their controls",
    "dynamics": "entropy, head scores and the answer's logits along training",
}


@dataclass(frozen=True)
class ToyReport:
    """What `write_toy_report` wrote, and the results it stands on.

    Attributes:
        page: The HTML page.
        tables: The parquet files beside it.
        heads: What answers become without each head.
        dynamics: The model along its training; `None` without snapshots.
    """

    page: Path
    tables: tuple[Path, ...]
    heads: HeadsNeeded
    dynamics: TrainingDynamics | None


def write_toy_report(
    model: HookedTransformer,
    data: TaskDataset,
    result: TrainingResult,
    out: str | Path = "report",
    *,
    run: str | Path | None = None,
    progress: bool = True,
) -> ToyReport:
    """Analyse a model that was trained on a toy task, and write a page about it.

    Args:
        model: The model, trained.
        data: What to measure it on: the validation data.
        result: What `train` gave.
        out: The folder to write to; made if need be. Files of an earlier report in it are replaced.
        run: The folder that was given to `train` as `out`; if it has snapshots, the page shows training along them.
        progress: Show progress bars.

    Raises:
        InvalidInputError: If `out` cannot be written, or no row of data has an answer that its prompt settles.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from headscope.training import TrainConfig, toy_task, train
        >>> task = toy_task("skip-trigram", size=500)
        >>> with TemporaryDirectory() as folder:
        ...     cfg = TrainConfig(steps=10, lr=0.03)
        ...     result = train(task.model, task.data, cfg, validation=task.validation, progress=False)
        ...     write_toy_report(task.model, task.validation, result, folder, progress=False).page.name
        'report.html'
    """
    if not bool(data.signal[:, -1].any()):
        raise InvalidInputError("no row of data has a last answer that its prompt settles; give more rows.")
    with staged(Path(out)) as (stage, place):
        found = _measure(model, data, result, run, progress)
        tables = _tables(found)
        names = {f"{name}.parquet": _TABLES[name] for name in tables}
        page = Page(
            title=model.cfg.model_name,
            subtitle=f"Trained on {result.data}",
            sections=toy_sections(found, names),
        )
        write_files(stage, "report.html", render_page(page), {f"{name}.parquet": each for name, each in tables.items()})
        directory = place()
    return ToyReport(directory / "report.html", tuple(directory / name for name in names), found.heads, found.dynamics)


def _measure(
    model: HookedTransformer, data: TaskDataset, result: TrainingResult, run: str | Path | None, progress: bool
) -> ToyFindings:
    dynamics = first = None
    if run is not None:
        dynamics = training_dynamics(run, data, device=str(model.input_device), progress=progress)
        first = load_toy_model(run, step=int(dynamics.steps[0]), device="cpu")
    cfg = model.cfg
    repeats = cfg.n_ctx >= _LEAST_CONTEXT and cfg.d_vocab >= _LEAST_VOCABULARY
    return ToyFindings(
        model,
        data,
        result,
        heads=heads_needed(model, data),
        types=detect_heads(model, progress=progress) if repeats else None,
        dynamics=dynamics,
        first=first,
    )


def _tables(found: ToyFindings) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    n_layers, n_heads = found.heads.loss_without.shape
    heads: dict[str, Any] = {
        "layer": [layer for layer in range(n_layers) for _ in range(n_heads)],
        "head": [*range(n_heads)] * n_layers,
        "loss_without": found.heads.loss_without.flatten().numpy(),
        "accuracy_without": found.heads.accuracy_without.flatten().numpy(),
    }
    tables = {"training": found.result.train.to_frame(), "heads": pd.DataFrame(heads)}
    if found.result.validation is not None:
        tables["validation"] = found.result.validation.to_frame()
    if found.types is not None:
        tables["head_types"] = found.types.to_frame()
    if found.dynamics is not None:
        tables["dynamics"] = found.dynamics.to_frame()
    return tables
