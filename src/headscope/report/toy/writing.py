"""`write_toy_report`: one offline HTML page about a model trained on a toy task, with its numbers as parquet beside it.

A toy model's answers are not the next tokens of a text, so `write_report` would measure it on what it was never
trained for. This page is about answers: how they were learned, what heads do to them, and what circuits they come from.
"""

from dataclasses import dataclass
from pathlib import Path

from headscope.data.tasks import TaskDataset
from headscope.model.transformer import HookedTransformer
from headscope.report.blocks import Page
from headscope.report.files import check_writable, write_page
from headscope.report.toy.measuring import measure_toy
from headscope.report.toy.sections import toy_sections
from headscope.training.toy_dynamics import TrainingDynamics
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_study import HeadsNeeded

__all__ = ["ToyReport", "write_toy_report"]

_TABLES = {
    "training": "loss and accuracy of every step, on its batch",
    "validation": "loss and accuracy on held-out data, whenever it was measured",
    "heads": "loss and accuracy without each head",
    "head_types": "the scores behind the head types, and their controls",
    "dynamics": "entropy, head scores and the answer's logits along training",
}


@dataclass(frozen=True)
class ToyReport:
    """The files that `write_toy_report` wrote, and results they are made from.

    Attributes:
        page: The HTML page.
        tables: The parquet files beside it.
        heads: Loss and accuracy without each head.
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
    """Analyze a model that was trained on a toy task, and write a page about it.

    Args:
        model: The model, trained.
        data: The data to measure it on, such as the validation data.
        result: The result of `train`.
        out: The folder to write to; created if necessary. Files of an earlier report in it are replaced.
        run: The folder of the run, `out` of `train`; with snapshots in it, the page shows the model along training.
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
    out = Path(out)
    check_writable(out)
    findings = measure_toy(model, data, result, run, progress=progress)
    tables = findings.tables()
    sections = toy_sections(findings, {f"{name}.parquet": _TABLES[name] for name in tables})
    page = Page(model.cfg.model_name, f"Trained on {result.data}", sections)
    path, paths = write_page(out, "report.html", page, tables, of_old=_TABLES)
    return ToyReport(path, paths, findings.heads, findings.dynamics)
