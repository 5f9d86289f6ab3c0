"""`Circuit`: the heads and MLPs that carry a task, and the paths between them, as `find_circuit` found them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.analysis.core.named_arrays import Label
from headscope.analysis.core.result import Array, Result
from headscope.analysis.patching.path_ends import FINAL
from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FINAL", "Circuit"]

_SHOWN = 12


@dataclass(frozen=True, repr=False)
class Circuit(Result):
    """Parts of a model, and how much of a metric, mostly the logit difference, goes along the paths between them.

    Attributes:
        edges: Sender and receiver of each path, as numbers of nodes; the strongest first.
        effects: What the metric loses when the path, and it alone, carries what it carried in the corrupted
            prompts, mean over prompts: above zero, the path works for the right answer.
        errors: Standard error of each, over prompts.
        layers: The layer of each node; that of `final` is the number of layers.
        nodes: `3.2`, `mlp3`, and `final`, the stream that the answer is read from.
        groups: The kind of each node: that of a head (`name_mover`, ...), `head`, `MLP`, `final`.
        inputs: What of the receiver reads the path: `q`, `k`, `v`, or nothing for MLPs and `final`.
        threshold: The least effect of a path that was kept, in the metric's unit.
        clean: The metric.
        corrupted: That on the corrupted prompts.
        left_out: Nodes into which no paths were looked for, since there were too many.
        node_effects: What the metric loses when a head alone leaves the circuit, everything else outside giving what it
            gives on the corrupted prompts; NaN for MLPs, which stay, and `final`.
        kept: The heads of the circuit, in the order in which `kept_sizes` takes them.
        kept_sizes: Numbers of heads that were run by themselves; see `faithfulness`.
        kept_per_prompt: The metric of each.
        kept_random: That of as many heads drawn at random, mean over prompts.
        kept_whole: That of the whole model, on the same prompts.
        kept_nothing: That of the corrupted run.
        kept_empty: That of a run in which no head is at work.
        kept_clusters: The clusters of these prompts, over which errors are; `None` where each stands by itself.
        n_parts: The number of heads of the model.
        held_out: The search saw none of these prompts: they did not judge it, and no head joined for a path on them.
        has_answers: The metric is a logit difference, in logits.
        info: What was run on what.
    """

    kind: ClassVar[str] = "circuit"
    arrays: ClassVar[Mapping[str, Array]] = {
        "effects": Array("edge", unit="logits", title="effect", column="effect", error="errors", share="shares"),
        "errors": Array("edge", unit="logits", column="error"),
        "shares": Array("edge", column="share", style="+.1%"),
        "layers": Array("node"),
        "node_effects": Array("node", unit="logits", absent="no circuit was run by itself."),
    }
    coords: ClassVar[Mapping[str, str]] = {"edge": "edge_labels", "node": "nodes"}
    columns: ClassVar[tuple[str, ...]] = ("effects", "errors", "shares")
    ranked: ClassVar[tuple[str, ...]] = ("effects",)
    either_way: ClassVar[bool] = True
    edges: Int[Tensor, "edge 2"]
    effects: Float[Tensor, " edge"]
    errors: Float[Tensor, " edge"]
    layers: Int[Tensor, " node"]
    nodes: tuple[str, ...]
    groups: tuple[str, ...]
    inputs: tuple[str, ...]
    threshold: float
    clean: float
    corrupted: float
    left_out: tuple[str, ...]
    node_effects: Float[Tensor, " node"] | None = None
    kept: tuple[str, ...] = ()
    kept_sizes: Int[Tensor, " size"] | None = None
    kept_per_prompt: Float[Tensor, "size prompt"] | None = None
    kept_random: Float[Tensor, "draw size"] | None = None
    kept_whole: Float[Tensor, " prompt"] | None = None
    kept_nothing: Float[Tensor, " prompt"] | None = None
    kept_empty: Float[Tensor, " prompt"] | None = None
    kept_clusters: Int[Tensor, " prompt"] | None = None
    n_parts: int = 0
    held_out: bool = False
    has_answers: bool = False

    def declared(self) -> Mapping[str, Array]:
        return {name: replace(array, unit=self.unit if array.unit else "") for name, array in self.arrays.items()}

    @property
    def unit(self) -> str:
        """The unit of effects: logits, or none that is known."""
        return "logits" if self.has_answers else ""

    @property
    def measured_as(self) -> str:
        """The metric in words."""
        return "logit difference" if self.has_answers else "metric"

    @property
    def faithfulness(self) -> Faithfulness | None:
        """The share of the metric that the circuit's heads keep, MLPs being at work as they are, over their number."""
        if self.kept_sizes is None or self.kept_whole is None or self.kept_nothing is None:
            return None
        assert self.kept_per_prompt is not None
        return Faithfulness(
            info=replace(self.info, n_sequences=len(self.kept_whole)),
            sizes=self.kept_sizes,
            shares=self.kept_sizes / self.n_parts,
            metrics=self.kept_per_prompt.mean(1),
            per_prompt=self.kept_per_prompt,
            random=self.kept_random,
            whole=self.kept_whole,
            nothing=self.kept_nothing,
            empty=self.kept_empty,
            ranking=self.kept,
            n_parts=self.n_parts,
            level="nodes",
            ablation="patch",
            has_answers=self.has_answers,
            clusters=self.kept_clusters,
        )

    def into(self, node: str) -> tuple[int, ...]:
        """The numbers of the paths into a node, the strongest first.

        Raises:
            InvalidInputError: If the node is not in the circuit.
        """
        if node not in self.nodes:
            raise InvalidInputError(f"{node!r} is not in the circuit, whose nodes are {', '.join(self.nodes)}.")
        at = self.nodes.index(node)
        return tuple(number for number, (_, receiver) in enumerate(self.edges.tolist()) if receiver == at)

    @property
    def shares(self) -> Float[Tensor, " edge"]:
        """Effects as shares of the clean metric less the corrupted one."""
        return self.effects / (self.clean - self.corrupted)

    @property
    def edge_labels(self) -> tuple[str, ...]:
        """`2.0 -> final`, `1.3 -> 2.0.q`, ... for each path."""
        ends = zip(self.edges.tolist(), self.inputs, strict=True)
        return tuple(
            f"{self.nodes[sender]} -> {self.nodes[receiver]}" + (f".{read}" if read else "")
            for (sender, receiver), read in ends
        )

    def findings(self) -> tuple[str, ...]:
        """The labels of the paths."""
        return self.edge_labels

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        if axis != "edge":
            return super().axis_columns(axis, labels)
        senders, receivers = ([int(at) for at in ends] for ends in self.edges.T)
        return {
            "sender": [self.nodes[at] for at in senders],
            "receiver": [self.nodes[at] for at in receivers],
            "input": self.inputs,
            "sender_group": [self.groups[at] for at in senders],
            "receiver_group": [self.groups[at] for at in receivers],
        }

    def table(self) -> "Table":
        """The paths as a table for `rich.print`."""
        from rich.table import Table

        table = Table(title="Paths of the circuit", caption=str(self.info), caption_justify="left")
        for name in ("Sender", "Receiver"):
            table.add_column(name)
        for name in (f"Effect ({self.unit})" if self.unit else "Effect", "Error", "Share"):
            table.add_column(name, justify="right")
        for row in self.to_frame().itertuples(index=False):
            to = f"{row.receiver}.{row.input}" if row.input else row.receiver
            table.add_row(row.sender, to, f"{row.effect:+.3f}", f"{row.error:.3f}", f"{row.share:+.1%}")
        return table

    def _notes(self) -> Iterator[str]:
        yield (
            f"{self.measured_as} {self.clean:+.3f}, corrupted {self.corrupted:+.3f}; {len(self.nodes)} nodes, "
            f"{len(self.inputs)} paths of at least {self.threshold:.3f}" + (f" {self.unit}" if self.unit else "")
        )
        yield from self.kept_alone
        if self.inputs:
            yield from str(self.top(_SHOWN)).splitlines()
        if len(self.inputs) > _SHOWN:
            yield f"... and {len(self.inputs) - _SHOWN} more"

    @property
    def kept_alone(self) -> tuple[str, ...]:
        """The lines of `str` on what the heads keep by themselves."""
        found = self.faithfulness
        if found is None or not self.kept:
            return ()
        share, error = float(found.faithfulness[-1]), float(found.errors[-1])
        lines = [
            f"its {len(self.kept)} heads alone keep {share:.1%} ± {error:.1%} of clean less corrupted "
            f"({float(found.metrics[-1]):+.3f}, the whole model {float(found.whole.mean()):+.3f}), on "
            f"{len(found.whole)} prompts that " + ("the search did not see" if self.held_out else "the search saw")
        ]
        if found.right is not None and found.whole_right is not None:
            lines.append(f"right in {float(found.right[-1]):.0%} of these, the whole model in {found.whole_right:.0%}")
        beside = [] if found.control is None else [f"as many heads at random keep {float(found.control[-1]):.1%}"]
        beside += [] if found.kept_by_none is None else [f"no head at all keeps {found.kept_by_none:.1%}"]
        if beside:
            lines.append(", ".join(beside))
        return tuple(lines)
