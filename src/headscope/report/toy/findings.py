"""Findings: everything the page about a toy model is made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.components import component_label
from headscope.analysis.heads.types_result import HeadTypes
from headscope.data.tasks import TaskDataset
from headscope.report.places import Head
from headscope.training.toy_dynamics import TrainingDynamics
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_study import HeadLogits, HeadsNeeded, TokenCircuits

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Answer", "ToyFindings"]


@dataclass(frozen=True)
class Answer:
    """A prompt that settles its last answer, and the model's reply.

    Attributes:
        prompt: Its tokens.
        label: The right answer.
        reply: The model's most likely answer.
        probability: The probability the model gives to its reply.
    """

    prompt: tuple[int, ...]
    label: int
    reply: int
    probability: float


@dataclass(frozen=True)
class ToyFindings:
    """Results on a toy model; `None` for what there is not.

    Attributes:
        facts: Names and values of what a reader wants to know of the model.
        n_trained: Number of its parameters that were trained.
        data: The data it was measured on.
        result: Its training.
        answers: Prompts with the model's replies, the first for each answer.
        shown: The first prompt whose last answer is settled.
        patterns: Attention of every head on it, layer by layer.
        heads: Loss and accuracy without each head.
        types: Its head types.
        dynamics: The model along its training.
        parts: The logits after the prompt shown as a sum, if they are one.
        circuits: Circuits over tokens, if they are all there is.
        power: Power of each frequency in the embedding of numbers, before training and after.
    """

    facts: Mapping[str, str]
    n_trained: int
    data: TaskDataset
    result: TrainingResult
    answers: tuple[Answer, ...]
    shown: tuple[int, ...]
    patterns: Float[Tensor, "head query key"]
    heads: HeadsNeeded
    types: HeadTypes | None
    dynamics: TrainingDynamics | None
    parts: HeadLogits | None
    circuits: TokenCircuits | None
    power: Mapping[str, Float[Tensor, " frequency"]] | None

    @property
    def head_labels(self) -> list[str]:
        """The label of every head, layer by layer."""
        return [component_label(*head) for head in self._heads]

    @property
    def _heads(self) -> list[Head]:
        n_layers, n_heads = self.heads.loss_without.shape
        return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]

    def tables(self) -> "dict[str, pd.DataFrame]":
        """The numbers, by the name of their file."""
        import pandas as pd

        heads = pd.DataFrame(self._heads, columns=["layer", "head"])
        heads["loss_without"] = self.heads.loss_without.flatten().numpy()
        heads["accuracy_without"] = self.heads.accuracy_without.flatten().numpy()
        others = {"validation": self.result.validation, "head_types": self.types, "dynamics": self.dynamics}
        tables = {"training": self.result.train.to_frame(), "heads": heads}
        return tables | {name: each.to_frame() for name, each in others.items() if each is not None}
