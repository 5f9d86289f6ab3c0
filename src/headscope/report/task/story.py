"""Findings on a task of two names: how well it is done, by which heads, along which paths.

The corrupted prompts name the other person as the subject ("John gave a drink to" becomes "Mary gave a drink to"): all
else stays, so that a patch shows who carries the subject's identity, and nothing else.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.attention.score_result import AttentionAttribution
from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.core.stats import Estimate, Estimates, estimates_over_prompts
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.task import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LOOKED_AT", "SWAPPED_WORDS", "WORDS", "Order", "TaskStory"]

WORDS = ("IO", "S1", "S1+1", "S2", "end")
# Where heads look from the end, and where their outputs are patched.
LOOKED_AT = ("IO", "S1", "S2")
SWAPPED_WORDS = ("S2", "end")


@dataclass(frozen=True)
class Order:
    """The model's results on the prompts of one order of the names.

    Attributes:
        name: `ABBA` (the right name first) or `BABA`.
        difference: The logit difference.
        swapped: That of the prompts with the other name as subject, with the same answers; `None` without them.
        right: Share of the prompts in which the right name is ahead.
    """

    name: str
    difference: Estimate
    swapped: Estimate | None
    right: float


@dataclass(frozen=True)
class TaskStory:
    """Everything the section is made from.

    Attributes:
        task: The prompts.
        differences: Their logit differences.
        orders: How well the model does, for each order of the names.
        attention: Attention of each head, in each order, from the end to `LOOKED_AT`.
        types: The head types.
        stream: Noising the residual stream at each named word; `None` if the model does not do the task, or there
            are no corrupted prompts.
        heads: The same of each head at `SWAPPED_WORDS`.
        circuit: The paths that carry the task; `None` if the model does not do the task, or it would take too long.
        why: For heads that look at a name from the end, the score there less that at the other name, in parts.
    """

    task: Task
    differences: Float[Tensor, " prompt"]
    orders: tuple[Order, ...]
    attention: Float[Tensor, "order word layer head"]
    types: HeadTypes
    stream: PatchingResult | None
    heads: PatchingResult | None
    circuit: Circuit | None
    why: tuple[AttentionAttribution, ...] = ()

    @cached_property
    def whole(self) -> Estimate:
        """The mean logit difference of all prompts."""
        return estimates_over_prompts(self.differences[:, None], self.task.clusters)[0]

    @property
    def can(self) -> bool:
        """The right name is clearly ahead."""
        return self.whole.value > 0 and self.whole.clear()

    @property
    def gap(self) -> float:
        """Change from swapping the subject, in logits: below zero if it turns the model round."""
        return 0.0 if self.heads is None else self.heads.corrupted - self.heads.clean

    def stream_changes(self) -> Float[Tensor, "layer word"]:
        """Change from noising the stream, in logits; the result has it as shares, where -1 is all of it."""
        assert self.stream is not None
        return self.stream["resid_pre"] * -self.gap

    def head_changes(self, word: str) -> Float[Tensor, "layer head"]:
        """Change from noising each head at one of `SWAPPED_WORDS`, in logits."""
        assert self.heads is not None
        return self.heads["z"][:, SWAPPED_WORDS.index(word)] * -self.gap

    def head_estimates(self, word: str) -> Estimates:
        """The same with errors over prompts."""
        assert self.heads is not None
        rows = self.heads.by_prompt("z")[:, :, SWAPPED_WORDS.index(word)] * -self.gap
        return estimates_over_prompts(rows, self.heads.clusters)

    def attention_to(self, word: str) -> Float[Tensor, "order layer head"]:
        """Attention of each head from the end to one of `LOOKED_AT`, in each order."""
        return self.attention[:, LOOKED_AT.index(word)]

    def tables(self) -> "dict[str, pd.DataFrame]":
        """The numbers, by the name of their file."""
        import pandas as pd

        tables = {"task_prompts": self.task.to_frame(self.differences), "task_heads": self.types.to_frame()}
        patched = [result.to_frame() for result in (self.stream, self.heads) if result is not None]
        if patched:
            tables["task_patching"] = pd.concat(patched, ignore_index=True)
        sides = [
            result.to_frame(f"{side}_parts")
            .rename(columns={f"{side}_part": "part"})
            .assign(head=str(result.info.options["head"]), side=side)
            for result in self.why
            for side in ("query", "key")
        ]
        if sides:
            tables["task_attention"] = pd.concat(sides, ignore_index=True)
        if self.circuit is not None:
            tables["task_paths"] = self.circuit.to_frame()
        return tables
