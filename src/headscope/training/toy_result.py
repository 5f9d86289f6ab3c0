"""Results of training on a toy task: curves of loss and accuracy, separately for signal and noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.data.tasks.base import TaskMetrics

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MetricCurve", "TrainingResult"]


@dataclass(frozen=True)
class MetricCurve:
    """Loss in nats and accuracy at points of a run; NaN where a point has no answers of a kind.

    Attributes:
        step: Number of optimizer steps taken, `[point]`; for an epoch's mean, at its end.
        loss: Mean loss over all answers.
        accuracy: Accuracy over all answers.
        signal_loss: Mean loss over answers determined by their prompt.
        signal_accuracy: Accuracy over these.
        noise_loss: Mean loss over the other answers.
        noise_accuracy: Accuracy over these.
    """

    step: Int[Tensor, " point"]
    loss: Float[Tensor, " point"]
    accuracy: Float[Tensor, " point"]
    signal_loss: Float[Tensor, " point"]
    signal_accuracy: Float[Tensor, " point"]
    noise_loss: Float[Tensor, " point"]
    noise_accuracy: Float[Tensor, " point"]

    def __len__(self) -> int:
        return len(self.step)

    def at(self, point: int) -> TaskMetrics:
        """Return the metrics at one point; −1 is the last."""
        return TaskMetrics(*(float(values[point]) for values in list(vars(self).values())[1:]))

    def reached(self, accuracy: float = 0.99) -> int | None:
        """Return the first measured step with at least this signal accuracy; `None` if there is none."""
        points = (self.signal_accuracy >= accuracy).nonzero()
        return int(self.step[points[0, 0]]) if len(points) else None

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row for each point."""
        import pandas as pd

        return pd.DataFrame({name: values.numpy() for name, values in vars(self).items()})

    @classmethod
    def of_points(cls, points: Sequence[tuple[int, TaskMetrics]]) -> "MetricCurve":
        """Make a curve from single points, each a step and its metrics."""
        rows = torch.tensor(
            [list(vars(metrics).values()) for _, metrics in points], dtype=torch.float64, device="cpu"
        ).view(-1, 6)
        return cls(torch.tensor([step for step, _ in points], dtype=torch.long, device="cpu"), *rows.unbind(1))

    @classmethod
    def of_sums(cls, sums: Float[Tensor, "step 6"], ends: Int[Tensor, " point"]) -> "MetricCurve":
        """Make a curve of means over the steps from each end to the next.

        Args:
            sums: For each step, the sums of loss and accuracy and the number of answers: of signal, then of noise.
            ends: Number of steps after which each point ends.
        """
        total = torch.cat([torch.zeros(1, 6, dtype=torch.float64, device="cpu"), sums.double().cumsum(0)])[ends]
        total = torch.diff(total, dim=0, prepend=torch.zeros(1, 6, dtype=torch.float64, device="cpu"))
        signal, noise = total[:, :3], total[:, 3:]
        both = signal + noise
        means = [part[:, column] / part[:, 2] for part in (both, signal, noise) for column in (0, 1)]
        return cls(ends, *means)


@dataclass(frozen=True)
class TrainingResult:
    """Curves of a training run; the model is trained in place.

    Attributes:
        model: The model's name.
        data: Description of the training data.
        train: Metrics of each step's batch, before the step.
        train_epochs: Means of these over each epoch.
        validation: Metrics on the validation data at the start, at the end, and in between; `None` without such data.
        bayes: Metrics of the best predictor on the training data.
        validation_bayes: The same on the validation data.
        lr: Learning rate of each step.
        seconds: Wall time, including earlier parts of a resumed run.
    """

    model: str
    data: str
    train: MetricCurve
    train_epochs: MetricCurve
    validation: MetricCurve | None
    bayes: TaskMetrics
    validation_bayes: TaskMetrics | None
    lr: Float[Tensor, " step"]
    seconds: float

    @property
    def final(self) -> TaskMetrics:
        """Metrics at the end: on the validation data if there is any, else over the last epoch."""
        return (self.train_epochs if self.validation is None else self.validation).at(-1)

    def __str__(self) -> str:
        final = self.final
        best = self.bayes if self.validation_bayes is None else self.validation_bayes
        lines = [
            f"{self.model}, trained on {self.data}: {len(self.train)} steps in {self.seconds:.1f} s",
            f"{'':<8} {'loss':>8} {'(best)':>9} {'accuracy':>9} {'(best)':>9}",
        ]
        for name, prefix in (("all", ""), ("signal", "signal_"), ("noise", "noise_")):
            loss, accuracy = (getattr(final, prefix + kind) for kind in ("loss", "accuracy"))
            if loss == loss:  # NaN where there is no such answer
                best_loss, best_accuracy = (getattr(best, prefix + kind) for kind in ("loss", "accuracy"))
                lines.append(f"{name:<8} {loss:8.4f} ({best_loss:7.4f}) {accuracy:9.2%} ({best_accuracy:7.2%})")
        return "\n".join(lines)
