"""Training on toy tasks: shuffled epochs, separate metrics for signal and noise, runs that resume.

The order of an epoch depends only on the seed and the epoch's number, so a run that was killed continues from its last
checkpoint to exactly the same numbers as an uninterrupted one (on the same machine, torch and number of threads).
"""

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from headscope.analysis.core.progress import hiding
from headscope.analysis.storage.manifest import fingerprint, headscope_version
from headscope.data.tasks.base import TaskDataset, TaskMetrics
from headscope.errors import InvalidInputError, check_at_least, unknown_name
from headscope.model.config_checks import parse_dtype
from headscope.model.transformer import HookedTransformer
from headscope.training.toy_checkpoint import (
    RunFolder,
    RunState,
    describe_model,
    optimizer_tensors,
    restore_optimizer,
    weights_in,
)
from headscope.training.toy_result import MetricCurve, TrainingResult
from headscope.training.trainer import OptimizerConfig, make_optimizer, take_step

__all__ = ["TrainConfig", "evaluate_task", "log_spaced_steps", "sample_order", "train"]

_EVALUATION_BATCH = 10_000
_SHOW_EVERY = 0.2  # seconds
_ORDER = 0x5BD1E995  # so that an order shares no generator with the draw of the data


@dataclass(frozen=True)
class TrainConfig(OptimizerConfig):
    """Options of training on a task, in addition to those of `OptimizerConfig`.

    Attributes:
        epochs: Passes over the data. Give this or `steps`.
        steps: Optimizer steps.
        batch_size: Samples in a step; an epoch's last batch may be smaller.
        evaluate_every: Steps between two evaluations on the validation data; one epoch by default.
        seed: Seed of the order of samples.
        dtype: Dtype to convert the model to; unchanged by default.
        device: Device to move the model to; unchanged by default.
        compile: Run the model through `torch.compile`.
        threads: CPU threads while training; torch's current setting by default. The smallest models gain nothing from
            a second thread, and lose by waiting for it where cores are shared.

    Raises:
        InvalidInputError: If a number is out of its range, or both or neither of `epochs` and `steps` are given.

    Example:
        >>> TrainConfig(epochs=3, batch_size=100).n_steps(250)
        9
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 1000
    evaluate_every: int | None = None
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    compile: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs is None) == (self.steps is None):
            raise InvalidInputError(f"give either epochs or steps; epochs is {self.epochs}, steps {self.steps}.")
        for name in ("epochs", "steps", "batch_size", "evaluate_every", "threads"):
            if (value := getattr(self, name)) is not None:
                check_at_least(1, **{name: value})
        if self.dtype is not None:
            parse_dtype(self.dtype)

    def n_steps(self, n_samples: int) -> int:
        """Return the number of optimizer steps on a dataset of this size."""
        return self.steps if self.steps is not None else (self.epochs or 0) * ceil(n_samples / self.batch_size)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make a config from a dictionary of its fields, such as a JSON file holds.

        Raises:
            UnknownNameError: For an unknown field; the message suggests the nearest ones.
        """
        names = [option.name for option in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name("training option", name, names)
        betas = {"betas": tuple(values["betas"])} if "betas" in values else {}
        return cls(**{**values, **betas})


def train(
    model: HookedTransformer,
    data: TaskDataset,
    cfg: TrainConfig,
    *,
    validation: TaskDataset | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    snapshots: Collection[int] = (),
    checkpoint_seconds: float = 5.0,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train `model` in place on a task's answers.

    Args:
        model: The model; frozen parameters stay as they are.
        data: The task to train on.
        cfg: Training options.
        validation: Data to evaluate on at the start, at the end, and every `cfg.evaluate_every` steps.
        out: Folder for checkpoints, which `load_toy_model` reads; created if missing.
        resume: Continue the run in `out`, if there is one; the model gets its weights. A finished run is read back.
        snapshots: Steps after which to keep the weights as well, 0 being the start; see `log_spaced_steps`.
        checkpoint_seconds: Time between two checkpoints; there is always one at the end.
        progress: Show a progress bar with the current loss and accuracy.
        on_step: Called after each step with its number, counted from 1.

    Raises:
        InvalidInputError: If data, model and folder do not match, or snapshots have no folder.
        NotFiniteError: If the loss becomes NaN or infinite.
        StorageError: If the folder cannot be written to.
        CheckpointError: If the checkpoint to resume from is damaged.

    Example:
        >>> from headscope.data.tasks import SkipTrigramDataset
        >>> from headscope.training import toy_configs
        >>> model = toy_configs.one_hot(HookedTransformer(toy_configs.skip_trigram()))
        >>> data = SkipTrigramDataset(2000, seed=0)
        >>> cfg = TrainConfig(epochs=3, batch_size=50, lr=0.03)
        >>> train(model, data, cfg, progress=False).train_epochs.to_frame().round(1)[["step", "signal_loss"]]
           step  signal_loss
        0    40          2.4
        1    80          1.9
        2   120          0.6
    """
    if snapshots and out is None:
        raise InvalidInputError("snapshots need a folder: give out=... as well.")
    if cfg.dtype is not None or cfg.device is not None:
        model.to(device=cfg.device, dtype=None if cfg.dtype is None else parse_dtype(cfg.dtype))
    for dataset in (data, validation):
        if dataset is not None:
            _check_fits(model, dataset)
    run = _Run(model, data, cfg, validation)
    folder = None if out is None else RunFolder(Path(out), run.manifest(), resume=resume)
    if folder is not None and folder.previous is not None:
        run.restore(folder.previous)
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads or threads)
    try:
        run.go(folder, snapshots, checkpoint_seconds, progress, on_step)
    finally:
        torch.set_num_threads(threads)
    return run.result()


@torch.no_grad()
def evaluate_task(model: HookedTransformer, data: TaskDataset, *, batch_size: int = _EVALUATION_BATCH) -> TaskMetrics:
    """Evaluate loss and accuracy of a model on a task, separately for signal and noise.

    Args:
        model: The model.
        data: The task.
        batch_size: Samples in a forward pass.

    Raises:
        InvalidInputError: If the data does not fit the model.

    Example:
        >>> from headscope.data.tasks import SkipTrigramDataset
        >>> from headscope.training import toy_configs
        >>> model = HookedTransformer(toy_configs.skip_trigram())
        >>> metrics = evaluate_task(model, SkipTrigramDataset(500))  # untrained: near log 11 = 2.4 nats
        >>> round(metrics.signal_loss, 1), round(metrics.noise_loss, 1)
        (2.5, 2.5)
    """
    _check_fits(model, data)
    losses, correct = [], []
    for start in range(0, len(data), batch_size):
        part = slice(start, start + batch_size)
        tokens, labels = data.tokens[part].to(model.input_device), data.labels[part].to(model.input_device)
        answers = data.answer_positions
        loss, is_correct = _losses(model(tokens)[:, answers.start : answers.stop], labels)
        losses.append(loss.view_as(labels).cpu())
        correct.append(is_correct.view_as(labels).cpu())
    return TaskMetrics.of(torch.cat(losses), torch.cat(correct), data.signal)


def log_spaced_steps(steps: int, n: int = 20) -> list[int]:
    """Return steps from 0 to `steps`, evenly spaced on a log scale up to rounding, for `train(snapshots=...)`.

    Example:
        >>> log_spaced_steps(1000, 8)
        [0, 1, 3, 10, 32, 100, 316, 1000]
    """
    last = torch.tensor(float(steps), device="cpu").log10().item()
    spaced = torch.logspace(0, last, max(2, n - 1), dtype=torch.float64, device="cpu")
    return sorted({0, *(int(step) for step in spaced.round())})


def sample_order(n_samples: int, epoch: int, seed: int) -> Int[Tensor, " sample"]:
    """Return the order of samples in an epoch (counted from 0), which depends on these numbers alone.

    Example:
        >>> sample_order(5, 0, seed=1)
        tensor([0, 4, 2, 3, 1])
    """
    # A generator reads 32 bits of its seed. The factor keeps runs with neighboring seeds far apart: without it, epoch 1
    # of one seed would be epoch 0 of the next.
    epoch_seed = (seed * 0x9E3779B1 + epoch + _ORDER) % 2**32
    return torch.randperm(n_samples, generator=torch.Generator().manual_seed(epoch_seed), device="cpu")


def _losses(
    logits: Float[Tensor, "batch answer d_vocab"], labels: Int[Tensor, "batch answer"]
) -> tuple[Float[Tensor, " answers"], Float[Tensor, " answers"]]:
    """Cross-entropy in nats of every answer, and 1 where it has the highest logit; 16-bit logits go to float32."""
    answers, flat = logits.flatten(0, 1), labels.flatten()
    if answers.dtype.itemsize < torch.float32.itemsize:
        answers = answers.float()
    losses = F.cross_entropy(answers, flat, reduction="none")
    return losses, (answers.detach().argmax(-1) == flat).to(losses.dtype)


def _check_fits(model: HookedTransformer, data: TaskDataset) -> None:
    cfg = model.cfg
    smallest = min(cfg.d_vocab, cfg.d_vocab_out)
    if data.d_vocab > smallest:
        raise InvalidInputError(f"the data has {data.d_vocab} tokens; the model has {smallest} (d_vocab).")
    if data.n_ctx > cfg.n_ctx and cfg.positional_embedding_type != "none":
        raise InvalidInputError(f"the data's rows have {data.n_ctx} tokens; the model's context is {cfg.n_ctx}.")


class _Epoch:
    """An epoch's samples in their order, on the model's device; prompts as indices of distinct ones."""

    def __init__(self, data: TaskDataset, prompts: Tensor, number: int, seed: int, device: torch.device) -> None:
        order = sample_order(len(data), number, seed)
        self.number = number
        self.prompts = prompts[order.to(device)]
        self.labels = data.labels[order].to(device)
        signal = data.signal[order].float()
        self.kinds = torch.stack([signal, 1 - signal], dim=-1).to(device)


@dataclass
class _Run:
    """A run in memory.

    Attributes:
        sums: For each step, the sums that `MetricCurve.of_sums` takes; in float64 for a model of that dtype.
        points: Steps at which the model was evaluated on the validation data, with the metrics.
        shown: Time and step of the last update of the progress bar.
    """

    model: HookedTransformer
    data: TaskDataset
    cfg: TrainConfig
    validation: TaskDataset | None
    step: int = 0
    seconds: float = 0.0
    points: list[tuple[int, TaskMetrics]] = field(default_factory=list)
    shown: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        self.steps = self.cfg.n_steps(len(self.data))
        self.steps_per_epoch = ceil(len(self.data) / self.cfg.batch_size)
        self.evaluate_every = self.cfg.evaluate_every or self.steps_per_epoch
        device = self.model.input_device
        dtype = torch.float64 if self.model.cfg.dtype == torch.float64 else torch.float32
        self.sums = torch.zeros(self.steps, 6, dtype=dtype, device=device)
        self.optimizer = make_optimizer(self.model, self.cfg, fused=device.type in ("cpu", "cuda"))
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if self.cfg.compile else self.model
        self.epoch: _Epoch | None = None
        distinct, prompts = _distinct(self.data)
        self.distinct, self.prompts = distinct.to(device), prompts.to(device)

    def manifest(self) -> dict[str, Any]:
        """Describe the run: everything that must agree for it to be resumed."""
        training = asdict(self.cfg)
        training.pop("device")
        return {
            "model": describe_model(self.model),
            "data": _describe(self.data),
            "validation": {} if self.validation is None else _describe(self.validation),
            "training": training,
            "software": {"headscope": headscope_version(), "torch": torch.__version__},
        }

    def go(
        self,
        folder: RunFolder | None,
        snapshots: Collection[int],
        checkpoint_seconds: float,
        progress: bool,
        on_step: Callable[[int], None] | None,
    ) -> None:
        """Take the remaining steps."""
        if self.step == self.steps:
            return
        began = saved = time.perf_counter()
        before = self.seconds
        if self.step == 0:
            self._evaluate(folder, snapshots)
        self.model.train()
        try:
            with tqdm(total=self.steps, initial=self.step, desc="train", **hiding(not progress)) as bar:
                while self.step < self.steps:
                    self._take_step()
                    self._evaluate(folder, snapshots)
                    now = time.perf_counter()
                    self.seconds = before + now - began
                    last = self.step == self.steps
                    if folder is not None and (last or now - saved >= checkpoint_seconds):
                        folder.write(self.state())
                        saved = time.perf_counter()
                    self._show(bar, now)
                    if on_step is not None:
                        on_step(self.step)
        finally:
            self.model.eval()

    def state(self) -> RunState:
        """Return everything needed to resume the run."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        tensors["metrics/train"] = self.sums[: self.step]
        rows = [[step, *vars(metrics).values()] for step, metrics in self.points]
        tensors["metrics/validation"] = torch.tensor(rows, dtype=torch.float64, device="cpu").view(-1, 7)
        return RunState(tensors, self.step, self.seconds)

    def restore(self, state: RunState) -> None:
        """Put the run back into a saved state."""
        self.model.load_state_dict(weights_in(state.tensors))
        restore_optimizer(self.optimizer, state.tensors)
        self.step, self.seconds = state.step, state.seconds
        self.sums[: self.step] = state.tensors["metrics/train"].to(self.sums.device)
        self.points = [(int(row[0]), TaskMetrics(*row[1:])) for row in state.tensors["metrics/validation"].tolist()]

    def result(self) -> TrainingResult:
        """Return the curves."""
        epoch_ends = torch.tensor(
            [*range(self.steps_per_epoch, self.steps, self.steps_per_epoch), self.steps], device="cpu"
        )
        sums = self.sums.cpu()
        return TrainingResult(
            model=self.model.cfg.model_name,
            data=repr(self.data),
            train=MetricCurve.of_sums(sums, torch.arange(1, self.steps + 1, device="cpu")),
            train_epochs=MetricCurve.of_sums(sums, epoch_ends),
            validation=None if self.validation is None else MetricCurve.of_points(self.points),
            bayes=self.data.bayes,
            validation_bayes=None if self.validation is None else self.validation.bayes,
            lr=torch.tensor([self.cfg.rate(step, self.steps) for step in range(self.steps)], device="cpu"),
            seconds=self.seconds,
        )

    def _take_step(self) -> None:
        number, batch = divmod(self.step, self.steps_per_epoch)
        if self.epoch is None or self.epoch.number != number:
            self.epoch = _Epoch(self.data, self.prompts, number, self.cfg.seed, self.model.input_device)
        epoch = self.epoch
        part = slice(batch * self.cfg.batch_size, (batch + 1) * self.cfg.batch_size)

        def loss() -> Tensor:
            logits = self._logits(epoch, part)
            losses, correct = _losses(logits, epoch.labels[part])
            detached = losses.detach()
            measured = torch.stack([detached, correct, torch.ones_like(detached)])
            kinds = epoch.kinds[part].flatten(0, 1).to(measured.dtype)
            self.sums[self.step] = (measured @ kinds).T.flatten()
            return losses.mean()

        rate = self.cfg.rate(self.step, self.steps)
        take_step(self.model, self.optimizer, loss, self.cfg, lr=rate, step=self.step)
        self.step += 1

    def _logits(self, epoch: _Epoch, part: slice) -> Float[Tensor, "batch answer d_vocab"]:
        """Compute a batch's logits; if it has more samples than there are distinct prompts, run each prompt once."""
        prompts, answers = epoch.prompts[part], self.data.answer_positions
        if len(prompts) > len(self.distinct):
            return self.forward(self.distinct)[:, answers.start : answers.stop].index_select(0, prompts)
        return self.forward(self.distinct[prompts])[:, answers.start : answers.stop]

    def _evaluate(self, folder: RunFolder | None, snapshots: Collection[int]) -> None:
        """Evaluate on the validation data and keep a snapshot, if either is due at this step."""
        due = self.step % self.evaluate_every == 0 or self.step == self.steps
        if self.validation is not None and due:
            self.points.append((self.step, evaluate_task(self.model, self.validation)))
        if folder is not None and self.step in snapshots:
            folder.write_snapshot(self.model.state_dict(), self.step)

    def _show(self, bar: Any, now: float) -> None:
        if bar.disable or (now - self.shown[0] < _SHOW_EVERY and self.step < self.steps):
            return
        recent = MetricCurve.of_sums(
            self.sums[: self.step].cpu(), torch.tensor([self.shown[1], self.step], device="cpu")
        ).at(-1)
        self.shown = (now, self.step)
        text = f"loss {recent.loss:.3f}, signal {recent.signal_loss:.3f} ({recent.signal_accuracy:.1%})"
        if self.validation is not None:
            text += f", validation {self.points[-1][1].signal_accuracy:.1%}"
        bar.set_postfix_str(text, refresh=False)
        bar.update(self.step - bar.n)


def _distinct(data: TaskDataset) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " sample"]]:
    """Return the distinct prompts, and the index of each sample's; rows too long to encode count as distinct."""
    if data.d_vocab**data.n_ctx >= 2**63:
        return data.tokens, torch.arange(len(data), device="cpu")
    # Encode each row as one integer, since sorting integers is many times faster than sorting rows.
    places = data.d_vocab ** torch.arange(data.n_ctx, device="cpu")
    numbers, prompts = (data.tokens * places).sum(1).unique(return_inverse=True)
    return numbers[:, None] // places % data.d_vocab, prompts


def _describe(data: TaskDataset) -> dict[str, Any]:
    tensors = {"tokens": data.tokens, "labels": data.labels, "signal": data.signal}
    return {"task": data.task, **data.options, "tokens": fingerprint(tensors)}
