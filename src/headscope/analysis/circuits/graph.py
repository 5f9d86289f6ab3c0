"""`Graph`: who reads what whom writes, the edges that circuits are made of.

Senders, in the order in which they write to the residual stream: the embedding (tokens and learned positions, behind
a norm or a scale of its own if it has one), and of each layer its heads, its mixer and its MLP. Receivers: a head's
query, key and value inputs apart, mixers, MLPs, and the final norm. Heads that share keys and values each have inputs
of their own for them, as in path patching: an edge into `3.2.k` changes the keys that head 2 sees and no other's.

An edge leads from each sender to each receiver that reads the stream after it writes. Biases of attention (and values'
biases folded into them) are not senders: every reader gets them, in every circuit.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.components import Component, all_components, canonical_label
from headscope.analysis.patching.path_ends import EMBED, FINAL, INPUTS, Receiver, Sender, mlp_stage, sender_of
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.config import HookedTransformerConfig

__all__ = ["Graph"]


@dataclass(frozen=True, eq=False)
class Graph:
    """The edges of a model; made by `Graph.of`.

    Attributes:
        senders: What writes to the stream, in order.
        receivers: What reads it, in order: of a layer the queries of all heads, their keys, their values, the mixer,
            the MLP; last the final norm.
        allowed: The edges there are, those on which the sender writes before the receiver reads.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
        >>> graph = Graph.of(cfg)
        >>> graph
        Graph(7 senders, 15 receivers, 46 edges)
        >>> graph.sender_labels
        ('embed', '0.0', '0.1', 'mlp0', '1.0', '1.1', 'mlp1')
        >>> [graph.receiver_labels[at] for at in graph.allowed[4].nonzero()[:, 0]]  # head 1.0 is read by
        ['mlp1', 'final']
    """

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    allowed: Bool[Tensor, "sender receiver"]

    @classmethod
    def of(cls, cfg: HookedTransformerConfig) -> Self:
        """Make the graph of a model from its config."""
        parts = all_components(cfg)
        senders = tuple(sender_of(part) for part in (None, *parts))
        receivers: list[Receiver] = []
        for layer in range(cfg.n_layers):
            here = [part for part in parts if part.layer == layer]
            heads = [part for part in here if part.head is not None]
            receivers += [Receiver(2 * layer, head, each) for each in INPUTS for head in heads]
            receivers += [
                Receiver(2 * layer if part.is_mixer else mlp_stage(cfg, layer), part)
                for part in here
                if part.head is None
            ]
        receivers.append(Receiver(2 * cfg.n_layers, None))
        written, read = (torch.tensor([end.stage for end in ends], device="cpu") for ends in (senders, receivers))
        return cls(senders, tuple(receivers), written[:, None] <= read)

    @cached_property
    def sender_labels(self) -> tuple[str, ...]:
        """`embed`, `0.0`, ..., `mlp0`, ..."""
        return tuple(sender.label for sender in self.senders)

    @cached_property
    def receiver_labels(self) -> tuple[str, ...]:
        """`0.0.q`, ..., `mlp0`, ..., `final`."""
        return tuple(receiver.label for receiver in self.receivers)

    @property
    def n_edges(self) -> int:
        """The number of edges."""
        return int(self.allowed.sum())

    def __repr__(self) -> str:
        return f"Graph({len(self.senders)} senders, {len(self.receivers)} receivers, {self.n_edges:,} edges)"

    def writers(self, layer: int, part: str) -> slice:
        """Return where the senders of a layer's part (`attn`, `mixer`, `mlp`) stand."""
        return _run([s.component is not None and _is(s.component, layer, part) for s in self.senders])

    def readers(self, layer: int, part: str, read: str = "") -> slice:
        """Return where the receivers of a layer's part stand; of heads those of one input, or of all three."""
        return _run(
            [
                r.component is not None and _is(r.component, layer, part) and read in ("", r.input)
                for r in self.receivers
            ]
        )

    @cached_property
    def _owners(self) -> list[int]:
        """The sender that each receiver feeds; that behind the last one for the final norm."""
        at = {sender.component: number for number, sender in enumerate(self.senders)}
        return [len(at) if receiver.component is None else at[receiver.component] for receiver in self.receivers]

    def spread(self, of_edges: Float[Tensor, " edge"]) -> Float[Tensor, "sender receiver"]:
        """Return a number for each edge, in the order of senders, then receivers, as a matrix; NaN for no edge."""
        values = of_edges.new_full(self.allowed.shape, torch.nan)
        values[self.allowed] = of_edges
        return values

    # Circuits

    def of_edges(self, named: Iterable[str | tuple[str, str]]) -> Bool[Tensor, "sender receiver"]:
        """Return the circuit of some edges: `"1.0 -> 2.1.q"`, or a pair of labels.

        A head without an input, `"2.1"`, stands for its three.

        Raises:
            UnknownNameError: For an end that the graph does not have.
            InvalidInputError: For an edge that it does not have.

        Example:
            >>> from headscope import HookedTransformerConfig
            >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
            >>> graph = Graph.of(cfg)
            >>> graph.labels_of(graph.of_edges(["embed -> 0.1", ("0.1", "final")]))
            ('embed -> 0.1.q', 'embed -> 0.1.k', 'embed -> 0.1.v', '0.1 -> final')
        """
        kept = torch.zeros_like(self.allowed)
        for edge in named:
            ends = re.split(r"\s*->\s*", edge.strip()) if isinstance(edge, str) else [str(end) for end in edge]
            if len(ends) != 2:
                raise InvalidInputError(f"an edge has two ends, 'sender -> receiver', such as '1.0 -> final'; {edge!r}")
            sender, into = self._sender(ends[0]), self._receivers(ends[1])
            if not bool(self.allowed[sender, into].all()):
                raise InvalidInputError(
                    f"there is no edge from {ends[0]} to {ends[1]}, which reads before {ends[0]} writes."
                )
            kept[sender, into] = True
        return kept

    def of_nodes(self, named: Iterable[object]) -> Bool[Tensor, "sender receiver"]:
        """Return the circuit of some components: all edges between them, the embedding and the final norm.

        Args:
            named: `(9, 9)`, `"9.9"`, `"mlp5"`, `"mixer5"`.

        Raises:
            UnknownNameError: For a component that the model does not have.
        """
        names = [each.label if isinstance(each, Component) else canonical_label(each) for each in named]
        for name in names:
            if name not in self.sender_labels[1:]:
                raise unknown_name("component", name, self.sender_labels[1:], code="HS-NAME-10")
        kept = {sender.component for sender in self.senders if sender.label in {EMBED, *names}} | {None}
        sends, reads = (
            torch.tensor([end.component in kept for end in ends], device="cpu")
            for ends in (self.senders, self.receivers)
        )
        return self.allowed & sends[:, None] & reads

    def labels_of(self, kept: Bool[Tensor, "sender receiver"]) -> tuple[str, ...]:
        """Return the edges of a circuit by name, in the order of senders."""
        return tuple(f"{self.sender_labels[u]} -> {self.receiver_labels[v]}" for u, v in kept.nonzero().tolist())

    def nodes_of(self, kept: Bool[Tensor, "sender receiver"]) -> tuple[str, ...]:
        """Return the heads, mixers and MLPs that some edge of a circuit leads through, in order.

        Those are named that a path leads to from the embedding, and from there to the final norm (`pruned`).
        """
        through = self.pruned(kept).any(1)
        return tuple(label for label, is_in in zip(self.sender_labels[1:], through[1:].tolist(), strict=True) if is_in)

    def pruned(self, kept: Bool[Tensor, "sender receiver"]) -> Bool[Tensor, "sender receiver"]:
        """Return a circuit without the edges that no path from the embedding to the final norm goes along.

        Taking these away changes no run: what no kept edge leads to gives what it gave in the other run.

        Example:
            >>> from headscope import HookedTransformerConfig
            >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
            >>> graph = Graph.of(cfg)
            >>> kept = graph.of_edges(["embed -> 0.1.v", "0.1 -> final", "0.0 -> final", "embed -> mlp1"])
            >>> graph.labels_of(graph.pruned(kept))
            ('embed -> 0.1.v', '0.1 -> final')
        """
        pruned = self.checked(kept).clone()
        owners = torch.tensor(self._owners, device=kept.device)
        for sender in range(1, len(self.senders)):  # upwards: what gets nothing sends nothing
            pruned[sender] &= pruned[:, owners == sender].any()
        for sender in range(len(self.senders) - 1, 0, -1):  # downwards: what sends nothing need get nothing
            pruned[:, owners == sender] &= pruned[sender].any()
        return pruned

    def checked(self, kept: Bool[Tensor, "*circuit sender receiver"]) -> Bool[Tensor, "*circuit sender receiver"]:
        """Refuse what is no circuit, or several, of this graph.

        Raises:
            InvalidInputError: For another shape or dtype, or an edge that there is not.
        """
        shape = tuple(self.allowed.shape)
        if kept.dtype != torch.bool or tuple(kept.shape[-2:]) != shape:
            raise InvalidInputError(
                f"a circuit is a mask of edges, bool [sender, receiver] = {list(shape)}; got {kept.dtype} "
                f"{list(kept.shape)}. Graph.of_edges and Graph.of_nodes make one."
            )
        beyond = (kept & ~self.allowed.to(kept.device)).nonzero()
        if len(beyond):
            sender, receiver = beyond[0, -2:].tolist()
            raise InvalidInputError(
                f"there is no edge from {self.sender_labels[sender]} to {self.receiver_labels[receiver]}, which reads "
                f"before it writes ({len(beyond)} such in all): take `kept & graph.allowed`."
            )
        return kept

    def _sender(self, label: str) -> int:
        if label not in self.sender_labels:
            raise unknown_name("sender", label, self.sender_labels, code="HS-NAME-10")
        return self.sender_labels.index(label)

    def _receivers(self, label: str) -> list[int]:
        names = [label] if label in self.receiver_labels else [f"{label}.{each}" for each in INPUTS]
        if names[0] not in self.receiver_labels:
            raise unknown_name("receiver", label, self.receiver_labels, hint=f"Or {FINAL!r}.", code="HS-NAME-10")
        return [self.receiver_labels.index(name) for name in names]


def _is(component: Component, layer: int, part: str) -> bool:
    return component.layer == layer and component.part == part


def _run(where: Sequence[bool]) -> slice:
    """The one run of true values."""
    first = where.index(True) if True in where else 0
    return slice(first, first + sum(where))
