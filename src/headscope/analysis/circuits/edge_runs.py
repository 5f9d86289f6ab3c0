"""`CircuitRuns`: a model whose readers get the clean run along the edges of a circuit and another run along all others.

In the run of a circuit each receiver v reads

    x_v = sum over kept u -> v of out_u + sum over the other u -> v of out'_u + biases of attention

with out_u what sender u gives in this very run, and out'_u what it gave in the other: on the corrupted prompts
(`"patch"`), on the mean over these (`"mean"`), or nothing (`"zero"`). What v gives follows from x_v, so that one pass
up through the layers evaluates any circuit. With all edges it is the clean run, with none the other. Norms are those of
x_v, each head's queries, keys and values having one of their own (as in Hanna et al. 2024, arXiv 2403.17806, and the
benchmark MIB of Mueller et al. 2025, arXiv 2504.13151). A norm behind attention has the scale of the heads of the
circuit's run together, and a head gives what it adds to the stream at that scale.

The pass holds `out_u - out'_u` of every sender, `[sender, prompt, pos, d_model]`, and makes the inputs of one layer at
a time from it, by one product with the mask: never one state for each edge. Receivers with the same senders share one.
For S senders, T tokens and L layers of H heads that is S T d_model numbers, and 3 H T d_model for the layer in work;
prompts come in batches for which this fits `Budget.work_bytes`. Beside a forward pass it takes up to E T d_model
multiplications, for E edges: in GPT-2 small (32,491 edges) 25 million a token, of 85 million in the model's weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.circuits.graph import Graph
from headscope.analysis.circuits.sender_outputs import (
    EMBEDDED,
    SenderOutputs,
    check_rewirable,
    heads_name,
    whole_name,
)
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import check_option
from headscope.analysis.patching.path_ends import INPUTS
from headscope.analysis.prompts.metrics import Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Scorer, TaskRuns
from headscope.analysis.recording.record import check_final, record
from headscope.model.block import TransformerBlock
from headscope.model.hooks import HookPoint, Reader
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget, sums_device, wide
from headscope.ops.kernels.products import product

__all__ = ["Ablation", "CircuitRuns", "given_at", "places_of"]

Ablation = Literal["patch", "mean", "zero"]


def places_of(mask: Bool[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """Return the position of each real token, counted from the first one of its prompt."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def given_at(task: Task, rows: Int[Tensor, " row"], ablation: Ablation) -> Bool[Tensor, "row pos"] | None:
    """Return where the other run has something to give; `None` where it has that at every token.

    Elsewhere, at tokens that only the clean prompts have, parts outside a circuit give what they give in its own run.
    """
    if ablation == "zero" or task.corrupted_mask is None:
        return None
    clean, corrupted = task.masks
    if ablation == "mean":
        return places_of(clean[rows]) < int(corrupted.sum(1).max())
    return (clean & corrupted)[rows]


class CircuitRuns:
    """A task's prompts, run through circuits of a model.

    Args:
        model: The model, without hooks.
        task: Prompts and corrupted prompts, aligned token by token.
        ablation: What is read along edges that are not in a circuit: `"patch"`, what the sender gave on the corrupted
            prompt; `"mean"`, its mean over all corrupted prompts at that position, counted from a prompt's first token;
            `"zero"`, nothing (biases of attention, which no sender gives, stay).
        metric: What is measured; default: the task's logit difference.

    Attributes:
        graph: The edges.
        scorer: What measures final states.

    Raises:
        InvalidInputError: For a task without corrupted prompts, another `ablation`, hooks on the model, or parts of
            somebody else's that read the stream in ways of their own.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> circuits = CircuitRuns(model, task)
        >>> graph = circuits.graph
        >>> heads = [label for label in graph.sender_labels if "." in label]
        >>> for name, kept in (("all", graph.allowed), ("heads", graph.of_nodes(heads)), ("none", graph.of_nodes([]))):
        ...     print(f"{name:6} {circuits.measure(kept).mean():+.2f}")
        all    +8.86
        heads  ...
        none   ...
    """

    def __init__(
        self, model: HookedTransformer, task: Task, *, ablation: Ablation = "patch", metric: Metric | None = None
    ) -> None:
        check_option("ablation", ablation, get_args(Ablation))
        check_rewirable(model)
        self.model, self.ablation = model, ablation
        self.graph = Graph.of(model.cfg)
        self.runs = TaskRuns(model, task, "noising")
        self.scorer = Scorer(model, self.runs.task, metric)
        self._senders = SenderOutputs(model)
        self._kept: dict[int, dict[str, Tensor]] = {}  # by the first prompt of a batch
        self._room = Budget.of(model.W_E.device).kept_bytes
        self._means = self._mean_written() if ablation == "mean" else None

    @torch.no_grad()
    def measure(
        self, kept: Bool[Tensor, "*circuit sender receiver"], *, progress: bool = False
    ) -> Float[Tensor, "*circuit_prompt"]:
        """Return the metric of circuits: for each prompt, or one number where a metric of your own gives that.

        Args:
            kept: Edges along which readers get the circuit's own run.
            progress: Show a progress bar.

        Raises:
            InvalidInputError: If that is not a mask of edges of the graph.
            NotFiniteError: If a final state is not finite.
        """
        circuits = self.graph.checked(kept).reshape(-1, *kept.shape[-2:]).to(self.model.W_E.device)
        parts, order = [], []
        with progress_bar(len(self.runs.task) * len(circuits), "circuits", shown=progress) as bar:
            for together in self.scorer.batches(self._tokens):
                finals: list[list[Tensor]] = [[] for _ in circuits]
                for rows in self._split(together):
                    other = self._other(rows)
                    real = given_at(self.runs.task, rows, self.ablation)
                    wiring = _Wiring(self._embedded(rows)[0], other, len(self.graph.senders), real)
                    for each, mask in zip(finals, circuits, strict=True):
                        wiring.begin(mask)
                        each.append(self._final(rows, wiring))
                        bar.update(len(rows))
                states = torch.stack([torch.cat(each) for each in finals])
                check_final(states)
                parts.append(self.scorer.values(together, states))
                order.append(together)
        values = torch.cat(parts, dim=1)[:, torch.cat(order).argsort()] if parts[0].ndim > 1 else parts[0]
        return values.unflatten(0, kept.shape[:-2]) if kept.ndim > 2 else values[0]

    # The run of a circuit

    def _final(self, rows: Int[Tensor, " _"], wiring: "_Wiring") -> Float[Tensor, "row read d_model"]:
        """Final states of some prompts where they are read."""
        model, graph = self.model, self.graph
        _, positions, mask = self._embedded(rows)
        shown: dict[str, Tensor] = {}
        with model.hooks([(name, Reader(_keeping(shown))) for name in self._senders.shown]):
            for layer, block in enumerate(map(_as_block, model.blocks)):
                entering = wiring.others
                if "attn" in block.parts:
                    read, which = wiring.read(graph.readers(layer, "attn"), entering)
                    queries, keys, values = _for_heads(block.ln1(read), which)
                    attn_out = block.attend(queries, keys, values, positions, attention_mask=mask)
                    given = self._senders.of_heads(layer, shown)
                    change = self._senders.added(layer, given - wiring.other[heads_name(layer)])
                    wiring.write(graph.writers(layer, "attn"), attn_out, change)
                if "mixer" in block.parts:
                    read, _ = wiring.read(graph.readers(layer, "mixer"), entering)
                    mixer_out = block.mixer_out(read[0], mask)
                    wiring.write_whole(graph.writers(layer, "mixer"), mixer_out, whole_name(layer, "mixer"))
                if "mlp" in block.parts:
                    stream = wiring.others if model.cfg.has_resid_mid else entering
                    read, _ = wiring.read(graph.readers(layer, "mlp"), stream)
                    wiring.write_whole(graph.writers(layer, "mlp"), block.mlp_out(read[0]), whole_name(layer, "mlp"))
        return self.scorer.read(rows, wiring.read(slice(-1, None), wiring.others)[0][0])

    def _embedded(self, rows: Int[Tensor, " _"]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the clean run's first stream, and the positions and the mask that blocks take beside it."""
        first, _, positions, mask = self.model.input_to_embed(self.runs.base[rows], **self.runs.options(rows))
        return first, positions, mask

    # The other run

    def _other(self, rows: Int[Tensor, " row"]) -> Mapping[str, Tensor]:
        """Return what each sender gave in the other run, by hook name."""
        if self._means is not None:
            places = places_of(self.runs.task.attention_mask[rows])
            return {name: mean[places] for name, mean in self._means.items()}
        if self.ablation == "zero":
            nothing = self.model.W_E.new_zeros(())
            return dict.fromkeys(self._senders.names, nothing)
        number = int(rows[0])
        if number in self._kept:
            return self._kept[number]
        kept = self._on_corrupted(rows)
        size = sum(each.nbytes for each in kept.values())
        if size <= self._room:
            self._room -= size
            self._kept[number] = kept
        return kept

    def _on_corrupted(self, rows: Int[Tensor, " row"]) -> dict[str, Tensor]:
        wanted = dict.fromkeys(self._senders.watched, torch.clone)
        kept, final = record(self.model, self.runs.other[rows], wanted, **self.runs.options(rows, of_other=True))
        check_final(final)
        return self._senders.given(kept)

    def _mean_written(self) -> dict[str, Float[Tensor, "place *width"]]:
        sums: dict[str, Tensor] = {}
        mask = self.runs.task.masks[1].bool()
        counts = torch.zeros(mask.shape[1], dtype=torch.float64, device=sums_device(mask.device))
        for together in self.scorer.batches(self._tokens):
            for rows in self._split(together):
                here = mask[rows]
                places = places_of(here)[here].to(counts.device)
                counts.index_add_(0, places, torch.ones_like(places, dtype=counts.dtype))
                for name, given in self._on_corrupted(rows).items():
                    of_tokens = wide(given[here])
                    total = sums.setdefault(name, of_tokens.new_zeros(len(counts), *of_tokens.shape[1:]))
                    total.index_add_(0, places, of_tokens)
        kind = torch.promote_types(self.model.W_E.dtype, torch.float32)
        shared = {name: counts.clamp(min=1).view(-1, *[1] * (total.ndim - 1)) for name, total in sums.items()}
        return {name: (total / shared[name]).to(mask.device, kind) for name, total in sums.items()}

    @property
    def _tokens(self) -> int:
        """Tokens whose changes fit the memory for work."""
        budget = Budget.of(self.model.W_E.device)
        per_token = len(self.graph.senders) * self.model.cfg.d_model * max(4, self.model.W_E.element_size())
        return max(1, min(budget.batch_tokens, budget.work_bytes // per_token))

    def _split(self, rows: Int[Tensor, " _"]) -> Iterator[Int[Tensor, " _"]]:
        yield from rows.split(max(1, self._tokens // self.runs.task.clean_tokens.shape[1]))


class _Wiring:
    """The changes that senders have made so far in the run of a circuit; used for one circuit after the other.

    Args:
        embedded: The clean run's first stream.
        other: What each sender gave in the other run, by hook name.
        n_senders: How many there are.
        real: Where the other run has something to give; elsewhere readers always get the circuit's own run.

    Attributes:
        others: The stream if no edge were kept.
    """

    others: Float[Tensor, "row pos d_model"]

    def __init__(
        self,
        embedded: Float[Tensor, "row pos d_model"],
        other: Mapping[str, Tensor],
        n_senders: int,
        real: Bool[Tensor, "row pos"] | None,
    ) -> None:
        self.embedded, self.other = embedded, other
        self.unreal = None if real is None else ~real[..., None]
        self.wide = torch.promote_types(embedded.dtype, torch.float32)
        self.changes = embedded.new_empty(n_senders, *embedded.shape, dtype=self.wide)

    def begin(self, kept: Bool[Tensor, "sender receiver"]) -> None:
        """Begin the run of a circuit with the embedding."""
        self.kept = kept.T.to(self.wide)
        self.others = torch.zeros_like(self.embedded, dtype=self.wide)
        self.write_whole(slice(0, 1), self.embedded, EMBEDDED)

    def write(
        self, senders: slice, given: Float[Tensor, "row pos d_model"], change: Float[Tensor, "sender row pos d_model"]
    ) -> None:
        """Note what senders change.

        Args:
            senders: Which.
            given: What they add to the stream together, with a bias that is in every circuit.
            change: What each adds, less what it added in the other run.
        """
        if self.unreal is not None:
            change = change.masked_fill(self.unreal, 0.0)
        self.changes[senders] = change
        self.written = senders.stop
        self.others = self.others + (given - change.sum(0))

    def write_whole(self, sender: slice, given: Float[Tensor, "row pos d_model"], name: str) -> None:
        """Note what a sender changes that gives all of what a hook point shows."""
        self.write(sender, given, (given - self.other[name])[None])

    def read(
        self, receivers: slice, stream: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "some row pos d_model"], Int[Tensor, " receiver"]]:
        """Return what receivers read, given the stream if no edge were kept, and which of these each reads.

        Receivers with the same senders read the same: in a circuit of whole heads and MLPs, all that are in it.
        """
        kept, which = self.kept[receivers, : self.written].unique(dim=0, return_inverse=True)
        changes = self.changes[: self.written].flatten(1)
        read = product(kept, changes, changes.new_empty(len(kept), changes.shape[1])).unflatten(1, stream.shape)
        return read.add_(stream).to(self.embedded.dtype), which


def _for_heads(
    normalized: Float[Tensor, "some row pos d_model"], which: Int[Tensor, " receiver"]
) -> Sequence[Float[Tensor, "row pos *head d_model"]]:
    """Return what queries, keys and values are made from: one tensor for all heads if all read the same."""
    if len(normalized) == 1:
        return [normalized[0]] * len(INPUTS)
    return [normalized[each].permute(1, 2, 0, 3) for each in which.chunk(len(INPUTS))]


def _as_block(block: Any) -> TransformerBlock:
    return cast(TransformerBlock, block)


def _keeping(kept: dict[str, Tensor]) -> Callable[..., None]:
    def keep(value: Tensor, hook: HookPoint) -> None:
        kept[hook.name or ""] = value

    return keep
