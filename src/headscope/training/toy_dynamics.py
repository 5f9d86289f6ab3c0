"""Training dynamics of a toy model: entropy, head scores and per-head logits, snapshot by snapshot.

`train(..., out=folder, snapshots=log_spaced_steps(...))` keeps weights along the way; `training_dynamics` analyzes one
after the other, holding one model at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from headscope.analysis.core.progress import hiding
from headscope.analysis.core.result import Array, Result, RunInfo, check_option
from headscope.analysis.heads.scores import SCORES, head_scores
from headscope.analysis.lens.entropy import measure_entropy
from headscope.data.tasks.base import TaskDataset
from headscope.errors import InvalidInputError, check_at_least
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide
from headscope.training.toy import evaluate_task
from headscope.training.toy_checkpoint import load_toy_model, snapshot_steps

__all__ = ["MEASURES", "Measure", "TrainingDynamics", "training_dynamics"]

Measure = Literal["entropy", "head_scores", "head_logits"]
MEASURES: tuple[Measure, ...] = ("entropy", "head_scores", "head_logits")


@dataclass(frozen=True, repr=False)
class TrainingDynamics(Result):
    """Measurements of a model along its training; `None` for measures not requested.

    Attributes:
        steps: Number of optimizer steps taken, `[step]`.
        loss: Mean loss of signal answers, in nats, `[step]`.
        accuracy: Accuracy on signal answers, `[step]`.
        tokens: The prompts of `head_logits`, up to the answer's position, `[prompt, pos]`.
        labels: Their answers, `[prompt]`.
        resid: Mean entropy, over answer positions, of the prediction at each state, in nats, `[step, state]`.
        diff: Change of the entropy of the state a component writes to, `[step, layer, component]`.
        marginal: Change of the entropy of the final prediction, `[step, layer, component]`.
        previous_token: Mean attention to the previous token, `[step, layer, head]`.
        duplicate_token: Mean attention to earlier occurrences of the token; NaN if none repeats.
        induction: Mean attention to the tokens after these.
        head_logits: Each head's contribution to the logits of a prompt's last answer, with the final norm's scale
            frozen and without biases, `[step, layer, head, prompt, d_vocab]`.
        state_labels: `0_pre`, `0_mid`, ..., `final`.
        component_labels: `0`, `1`, ..., and `MLP` last where there are MLPs.
    """

    kind: ClassVar[str] = "training_dynamics"
    arrays: ClassVar[Mapping[str, Array]] = {
        "loss": Array("step", unit="nats"),
        "accuracy": Array("step"),
        "resid": Array("step state", unit="nats", column="entropy"),
        "diff": Array("step layer component", unit="nats"),
        "marginal": Array("step layer component", unit="nats"),
        **{name: Array("step layer head") for name in SCORES},
        "answer_logits": Array("step layer head", unit="logits"),
        "head_logits": Array("step layer head prompt token", unit="logits"),
    }
    coords: ClassVar[Mapping[str, str]] = {"step": "steps", "state": "state_labels", "component": "component_labels"}
    rows: ClassVar[tuple[str, ...]] = ("step",)
    columns: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "resid", "diff", "marginal", *SCORES, "answer_logits")
    ranked: ClassVar[tuple[str, ...]] = ("diff", "marginal", *SCORES, "answer_logits")
    fixed: ClassVar[Mapping[str, int | str]] = {"step": -1}
    steps: Int[Tensor, " step"]
    loss: Float[Tensor, " step"]
    accuracy: Float[Tensor, " step"]
    tokens: Int[Tensor, "prompt pos"]
    labels: Int[Tensor, " prompt"]
    resid: Float[Tensor, "step state"] | None = None
    diff: Float[Tensor, "step layer component"] | None = None
    marginal: Float[Tensor, "step layer component"] | None = None
    previous_token: Float[Tensor, "step layer head"] | None = None
    duplicate_token: Float[Tensor, "step layer head"] | None = None
    induction: Float[Tensor, "step layer head"] | None = None
    head_logits: Float[Tensor, "step layer head prompt d_vocab"] | None = None
    state_labels: tuple[str, ...] = ()
    component_labels: tuple[str, ...] = ()

    @property
    def answer_logits(self) -> Float[Tensor, "step layer head"] | None:
        """Each head's contribution to the correct answer's logit minus its mean over the vocabulary, over prompts."""
        if self.head_logits is None:
            return None
        index = self.labels.expand(*self.head_logits.shape[:-1])[..., None]
        answer_logit = self.head_logits.gather(-1, index)[..., 0]
        return (answer_logit - self.head_logits.mean(-1)).mean(-1)

    def _notes(self) -> Iterator[str]:
        yield (
            f"{len(self.steps)} checkpoints, steps {int(self.steps[0]):,} to {int(self.steps[-1]):,}; "
            f"loss {float(self.loss[0]):.3f} → {float(self.loss[-1]):.3f} nats, accuracy "
            f"{float(self.accuracy[0]):.1%} → {float(self.accuracy[-1]):.1%}"
        )
        if self.resid is not None:
            yield f"final entropy: {float(self.resid[0, -1]):.3f} → {float(self.resid[-1, -1]):.3f} nats"
        for name in SCORES:
            values = getattr(self, name)
            if values is not None and not bool(values.isnan().all()):
                best = self.top(1, by=name)[0]
                first = float(values[0, best.layer, best.head])
                yield f"{name}: head {best.label} {first:.2f} → {best.value:.2f}"


@torch.no_grad()
def training_dynamics(
    folder: str | Path,
    data: TaskDataset,
    *,
    measures: Sequence[Measure] = MEASURES,
    steps: Sequence[int] | None = None,
    n_rows: int = 256,
    n_prompts: int = 8,
    device: str | None = None,
    progress: bool = True,
) -> TrainingDynamics:
    """Analyze a run's snapshots, one after the other.

    Args:
        folder: The folder given to `train` as `out`, with snapshots in it.
        data: Data to measure on, usually the validation data.
        measures: Any of `"entropy"` (`measure_entropy` at the answer positions), `"head_scores"` (on the rows of the
            data) and `"head_logits"`.
        steps: The snapshots to analyze; all by default.
        n_rows: Maximum number of rows of `data`; the first are taken.
        n_prompts: Maximum number of prompts for `"head_logits"`: the first rows whose last answer is signal.
        device: Device to run on; CUDA if there is one, else the CPU, by default.
        progress: Show a progress bar over the snapshots.

    Raises:
        InvalidInputError: If there is no snapshot, a measure is unknown, or no row has an answer to measure.
        CheckpointError: If a snapshot is missing or damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from headscope.training import TrainConfig, toy_task, train
        >>> task = toy_task("skip-trigram", size=500)
        >>> with TemporaryDirectory() as folder:
        ...     cfg = TrainConfig(steps=10, lr=0.03)
        ...     _ = train(task.model, task.data, cfg, out=folder, snapshots=[0, 3, 10], progress=False)
        ...     along = training_dynamics(folder, task.validation, progress=False)
        >>> along.steps.tolist(), along.diff.shape
        ([0, 3, 10], torch.Size([3, 1, 3]))
    """
    for name in measures:
        check_option("measures", name, MEASURES)
    check_at_least(1, n_rows=n_rows, n_prompts=n_prompts)
    steps = snapshot_steps(folder) if steps is None else list(steps)
    if not steps:
        raise InvalidInputError(
            f"{str(folder)!r} has no snapshots; they are kept by train(..., out=folder, "
            "snapshots=log_spaced_steps(cfg.n_steps(len(data))))."
        )
    signal_rows = data.signal[:, -1].nonzero()[:n_prompts, 0]
    if not len(signal_rows):
        raise InvalidInputError("no row of data has a last answer determined by its prompt; give more rows.")
    prompts = data.tokens[signal_rows, : data.answer_positions.stop]
    snapshots: list[dict[str, Tensor]] = []
    labels: dict[str, Any] = {}
    for step in tqdm(steps, desc="training dynamics", **hiding(not progress)):
        model = load_toy_model(folder, step=step, device=device)
        tensors, labels = _measure(model, data, prompts, measures, n_rows)
        snapshots.append(tensors)
    series: dict[str, Any] = {name: torch.stack([tensors[name] for tensors in snapshots]) for name in snapshots[0]}
    return TrainingDynamics(
        info=RunInfo(
            model=model.cfg.model_name,
            processing=model.weight_processing,
            data=repr(data),
            n_sequences=min(n_rows, len(data)),
            n_positions=int(data.signal[:n_rows].numel()),
            options={"measures": list(measures), "n_prompts": len(prompts)},
        ),
        steps=torch.tensor(steps, device="cpu"),
        tokens=prompts,
        labels=data.labels[signal_rows, -1],
        **series,
        **labels,
    )


def _measure(
    model: HookedTransformer, data: TaskDataset, prompts: Tensor, measures: Sequence[Measure], n_rows: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return all measures of one snapshot, and the labels of states and components."""
    metrics = evaluate_task(model, data)
    rows, answers = data.tokens[:n_rows], data.answer_positions
    values = {
        "loss": torch.tensor(metrics.signal_loss, device="cpu"),
        "accuracy": torch.tensor(metrics.signal_accuracy, device="cpu"),
    }
    labels: dict[str, Any] = {}
    if "entropy" in measures:
        entropy = measure_entropy(model, rows, reduce="none", include_bos=True, progress=False)
        for name in ("resid", "diff", "marginal"):
            at_answers = getattr(entropy, name)[..., answers.start : answers.stop]
            values[name] = wide(at_answers).mean((-2, -1)).float().cpu()
        labels = {"state_labels": entropy.state_labels, "component_labels": entropy.component_labels}
    if "head_scores" in measures:
        scores = head_scores(model, rows, include_bos=True, progress=False)
        values |= {name: getattr(scores, name).cpu() for name in SCORES}
    if "head_logits" in measures:
        _, cache = model.run_with_cache(prompts)
        readout = readout_of(model)
        written = readout.direction(cache.stack_head_results(pos_slice=-1))
        parts = written / readout.scale(cache["resid_post", -1][:, -1]) @ model.W_U
        values["head_logits"] = parts.unflatten(0, (model.cfg.n_layers, model.cfg.n_heads)).float().cpu()
    return values, labels
