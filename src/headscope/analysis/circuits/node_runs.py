"""`NodeRuns`: a task's prompts run with only some components at work, the others giving what they give elsewhere.

A component outside the circuit has its output replaced: a head's before `W_O`, an MLP's or a mixer's as it is added to
the stream (so that a norm behind attention is given kept and replaced heads together). Components of the circuit read
what the others leave them. One forward pass of a batch of prompts serves a circuit, whatever its size, and several
circuits go through the model as rows of one batch. Layers below the first component that differs from a run already
made are not run again, nor, where no position looks ahead, positions before the first at which prompts differ. Both
runs of a batch are kept for the next circuits up to `Budget.kept_bytes`, and made again for those beyond.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.circuits.edge_runs import Ablation, given_at, places_of
from headscope.analysis.core.components import all_components, all_heads
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import check_option
from headscope.analysis.patching.base_run import BaseRun, SuffixRuns, way_of_running
from headscope.analysis.prompts.metrics import Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Scorer, TaskRuns
from headscope.analysis.recording.record import check_final, hook_name, record
from headscope.model.hooks import HookPoint
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget, sums_device, wide

__all__ = ["NodeRuns"]


class NodeRuns:
    """Runs of circuits of components.

    Args:
        model: The model; hooks on it stay in force.
        task: Prompts with corrupted ones.
        ablation: In the place of a component's output: that on the corrupted prompt (`"patch"`), its mean over the
            corrupted prompts at that position, counted from a prompt's first token (`"mean"`), or zero (`"zero"`).
        keep_mlps: MLPs and mixers are in every circuit, so that parts are heads alone.
        metric: See `Scorer`.

    Attributes:
        parts: The labels of the components that a circuit keeps or leaves out, in order.
        whole: The metric of the clean run: for each prompt, if it is the logit difference.
        empty: That of the circuit without any part.
        nothing: That of the corrupted run; for other ablations, that of the empty circuit.

    Raises:
        InvalidInputError: For another ablation, or a task without corrupted prompts.
        NotFiniteError: If a final state is not finite.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedTransformer,
        task: Task,
        ablation: Ablation = "patch",
        *,
        keep_mlps: bool = True,
        metric: Metric | None = None,
    ) -> None:
        check_option("ablation", ablation, get_args(Ablation))
        self.model, self.ablation = model, ablation
        self.runs = TaskRuns(model, task, direction="noising", scale="metric")
        self.scorer = Scorer(model, self.runs.task, metric)
        self._every = all_components(model.cfg)
        parts = all_heads(model.cfg) if keep_mlps else self._every
        self.parts = tuple(part.label for part in parts)
        self._at = torch.tensor([self._every.index(part) for part in parts], device="cpu")
        # Small batches, since gradients are taken through them too; several circuits fill them up.
        budget = Budget.of(model.W_E.device)
        self._batches = list(self.scorer.batches(budget.backward_tokens))
        self._kept: dict[int, _Block] = {}
        self._room = budget.kept_bytes
        self._means = self._mean_outputs() if ablation == "mean" else {}
        none = self._whole_masks(torch.zeros(1, len(self.parts), dtype=torch.bool, device="cpu"))
        whole, empty, corrupted = [], [], []
        for block in self._blocks():
            whole.append(block.whole[None])
            empty.append(block.finals(none))
            if ablation == "patch":
                assert block.corrupted is not None
                corrupted.append(block.corrupted[None])
        check_final(torch.cat([each.flatten(0, -2) for each in empty]))
        self.whole, self.empty = self._joined(whole)[0], self._joined(empty)[0]
        self.nothing = self._joined(corrupted)[0] if corrupted else self.empty

    @torch.no_grad()
    def values(
        self, kept: Bool[Tensor, "circuit part"], *, near: Bool[Tensor, " part"] | None = None, progress: bool = False
    ) -> Float[Tensor, "circuit *prompt"]:
        """Return the metric of each circuit: for each prompt if it is the logit difference, else one number.

        Args:
            kept: The parts of each circuit.
            near: A circuit from which these differ in few parts: one run more, and then none of them runs layers below
                the first part in which it differs. Default: all parts.
            progress: Show a progress bar.

        Raises:
            NotFiniteError: If a final state is not finite.
        """
        masks = self._whole_masks(kept)
        around = None if near is None else self._whole_masks(near[None])[0]
        finals = []
        with progress_bar(len(self._batches) * len(kept), "circuits", shown=progress) as bar:
            for block in self._blocks():
                finals.append(block.finals(masks, around, bar.update))
                check_final(finals[-1])
        return self._joined(finals)

    def scores(self, kept: Bool[Tensor, " part"], *, steps: int = 5) -> Float[Tensor, "part prompt"]:
        """Estimate what each part outside a circuit does to the metric on the way from the circuit to the whole model.

        The gradient with respect to the share of its own output that a part gives, a mean over runs in which all parts
        outside give `(step + 1/2) / steps` of theirs: integrated gradients of the gates. Their sum is, but for the
        error of the sum over steps, the whole model's metric less the circuit's, prompt by prompt. (Of a metric that
        is one number for all prompts, each prompt has its share.)

        Args:
            kept: The parts of the circuit, which get 0.
            steps: The number of runs, each with a backward pass.
        """
        inside = self._whole_masks(kept[None])[0]
        found = torch.zeros(len(self.runs.task), len(self._every), dtype=torch.float64, device="cpu")
        for block in self._blocks():
            for step in range(steps):
                gates = torch.where(inside, 1.0, (step + 0.5) / steps)
                found[block.rows.cpu()] += block.gradient(gates).cpu().double() / steps
        return found.T[self._at].masked_fill(kept.cpu()[:, None], 0.0)

    def _whole_masks(self, kept: Tensor) -> Bool[Tensor, "circuit component"]:
        every = torch.ones(len(kept), len(self._every), dtype=torch.bool, device="cpu")
        every[:, self._at] = kept.cpu()
        return every

    def _joined(self, finals: list[Tensor]) -> Float[Tensor, "circuit *prompt"]:
        """The metric of final states `[circuit, prompt, read, d_model]` of each block, prompts in their own order."""
        values = [self.scorer.values(rows, final) for rows, final in zip(self._batches, finals, strict=True)]
        if not self.scorer.is_of_prompts:
            return values[0]
        order = torch.cat(self._batches).argsort()
        return torch.cat(values, dim=1)[:, order]

    def _blocks(self) -> Iterator["_Block"]:
        """The prompts batch by batch; those for which there was no room are run again."""
        for number, rows in enumerate(self._batches):
            yield self._kept[number] if number in self._kept else self._made(number, rows)

    @torch.no_grad()
    def _made(self, number: int, rows: Int[Tensor, " row"]) -> "_Block":
        """A batch, kept if there is room."""
        if self._means:
            places = places_of(self.runs.task.attention_mask[rows])
            given, corrupted = {name: mean[places] for name, mean in self._means.items()}, None
        else:
            given, corrupted = self._other(rows)
        if self.ablation == "zero":
            given = {name: torch.zeros_like(output) for name, output in given.items()}
        real = given_at(self.runs.task, rows, self.ablation)
        block = _Block(
            self.model, self.runs, self.scorer, rows, given, real,
            corrupted=corrupted, same_start=self.ablation == "patch" and real is None,
        )  # fmt: skip
        if block.nbytes <= self._room:
            self._room -= block.nbytes
            self._kept[number] = block
        return block

    def _other(self, rows: Int[Tensor, " row"]) -> tuple[dict[str, Tensor], Tensor]:
        """Every component's output in the corrupted run, by hook name, and the final states that are read."""
        names = dict.fromkeys(map(hook_name, self._every), torch.clone)
        kept, final = record(self.model, self.runs.other[rows], names, **self.runs.options(rows, of_other=True))
        check_final(final)
        return kept, self.scorer.read(rows, final)

    def _mean_outputs(self) -> dict[str, Float[Tensor, "place *width"]]:
        """Means over the corrupted prompts at each place, counted from a prompt's first token."""
        sums: dict[str, Tensor] = {}
        mask = self.runs.task.masks[1]
        home = sums_device(mask.device)
        counts = torch.bincount(places_of(mask)[mask].to(home), minlength=mask.shape[1]).clamp(min=1)
        for rows in self._batches:
            here = mask[rows]
            places = places_of(here)[here].to(home)
            for name, output in self._other(rows)[0].items():
                of_tokens = wide(output[here])
                total = sums.setdefault(name, of_tokens.new_zeros(len(counts), *of_tokens.shape[1:]))
                total.index_add_(0, places, of_tokens)
        dtype = self.model.W_E.dtype
        return {
            name: (total / counts.view(-1, *[1] * (total.ndim - 1))).to(mask.device, dtype)
            for name, total in sums.items()
        }


class _Block:
    """Some prompts: their clean run, and runs of circuits.

    Args:
        model: The model.
        runs: The task's two runs.
        scorer: What reads final states.
        rows: Which of its prompts.
        given: What components outside a circuit give, `[prompt, pos, ...]` by hook name.
        real: Where they do; elsewhere they give what they do in the circuit's run. `None`: everywhere.
        corrupted: The corrupted run's final states where they are read, if that is what `given` is of.
        same_start: Before the first token that differs, `given` is what the clean run has.

    Attributes:
        whole: The clean run's final states where they are read.
    """

    def __init__(
        self,
        model: HookedTransformer,
        runs: TaskRuns,
        scorer: Scorer,
        rows: Int[Tensor, " row"],
        given: Mapping[str, Tensor],
        real: Bool[Tensor, "row pos"] | None,
        *,
        corrupted: Tensor | None,
        same_start: bool,
    ) -> None:
        self.model, self.runs, self.scorer, self.rows, self.given, self.real = model, runs, scorer, rows, given, real
        self.corrupted = corrupted
        self.every = all_components(model.cfg)
        self.n_layers = model.cfg.n_layers
        self.suffixes: SuffixRuns | None = None
        self.begin, self.stop = 0, runs.base.shape[1]
        if way_of_running(model) != "suffix":
            whole = record(model, runs.base[rows], **runs.options(rows)).final
            check_final(whole)
            self.whole = scorer.read(rows, whole)
            return
        streams = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.n_layers)]
        base = BaseRun(model, runs.base[rows], streams, 0, **runs.options(rows))
        check_final(base.final)
        self.suffixes = SuffixRuns(base, scorer.places[rows])
        self.stop = self.suffixes.stop
        if base.is_causal and same_start:
            self.begin = min(self.stop, int(scorer.changes_at[rows].min()))
        self.whole = self.suffixes.unpatched
        self.streams = [base.kept[name][:, self.begin : self.stop] for name in streams]

    @property
    def nbytes(self) -> int:
        """The bytes of both runs."""
        given = sum(each.nbytes for each in self.given.values())
        return given + (0 if self.suffixes is None else self.suffixes.base.nbytes)

    def finals(
        self, kept: Tensor, near: Tensor | None = None, advance: Callable[[int], object] = lambda _: None
    ) -> Float[Tensor, "circuit prompt read d_model"]:
        """Return the final states of circuits, or of gates, where they are read.

        Args:
            kept: `[circuit, component]`: true for those that give their own output; or, `[circuit, prompt, component]`,
                the share that they give of it.
            near: The components of a circuit whose run is the beginning of theirs.
            advance: Told how many circuits more are done.
        """
        finals = []
        if self.suffixes is None:
            for each in kept:
                finals.append(self._whole_run(each[None]))
                advance(1)
            return torch.cat(finals)
        if self.begin >= self.stop:
            advance(len(kept))
            return self.whole.expand(len(kept), *self.whole.shape)
        streams = self.streams if near is None else self._streams_of(near)
        # Of each circuit, the first layer with a component in which it is not the run that was made.
        differs = (
            (kept.detach().cpu() != (1 if near is None else near.cpu())).view(len(kept), -1, len(self.every)).any(1)
        )
        layers = torch.tensor([part.layer for part in self.every], device="cpu")
        first = torch.where(differs, layers, self.n_layers).amin(1)
        order = first.argsort(stable=True)
        together = max(1, Budget.of(self.whole.device).batch_tokens // self.streams[0][..., 0].numel())
        for some in order.split(together):
            at = int(first[some[0]])
            if at == self.n_layers and near is None:
                finals.append(self.whole.expand(len(some), *self.whole.shape))
                advance(len(some))
                continue
            at = min(at, self.n_layers - 1)
            stream = streams[at].repeat(len(some), 1, 1)
            with self._replacing(kept[some], at):
                # All queries of the last layer are made, since the outputs there are replaced at all positions.
                final = self.suffixes.finals(2 * at, self.begin, stream, queries=True)
            finals.append(final.unflatten(0, (len(some), -1)))
            advance(len(some))
        return torch.cat(finals)[order.argsort()]

    @torch.enable_grad()
    def gradient(self, gates: Float[Tensor, " component"]) -> Float[Tensor, "prompt component"]:
        """Return the gradient of each prompt's metric with respect to its gates."""
        each = gates.to(self.whole).expand(1, len(self.rows), -1).clone().requires_grad_()
        value = self.scorer.values(self.rows, self.finals(each)).sum()
        if not value.requires_grad:  # both runs are alike, or a metric without a gradient
            return torch.zeros_like(each[0])
        return torch.autograd.grad(value, each)[0][0]

    def _streams_of(self, circuit: Tensor) -> list[Tensor]:
        """The stream that enters each layer in the run of a circuit."""
        assert self.suffixes is not None
        streams = [self.streams[0]]
        with self._replacing(circuit[None], 0):
            for layer in range(self.n_layers - 1):
                streams.append(self.suffixes.through(layer, self.begin, streams[-1]))
        return streams

    def _whole_run(self, kept: Tensor) -> Tensor:
        with self._replacing(kept, 0):
            final = record(self.model, self.runs.base[self.rows], **self.runs.options(self.rows)).final
        return self.scorer.read(self.rows, final)[None]

    def _replacing(self, kept: Tensor, first: int) -> AbstractContextManager[Any]:
        """Hooks, from a layer on, that give components outside a circuit their other output."""
        by_name: dict[str, list[int]] = {}
        for at, part in enumerate(self.every):
            if part.layer >= first:
                by_name.setdefault(hook_name(part), []).append(at)
        each = kept if kept.ndim == 3 else kept[:, None]  # [circuit, prompt, component]
        shares = {name: each[..., at] for name, at in by_name.items()}
        real = None if self.real is None else self.real[:, self.begin : self.stop]

        def replace(output: Tensor, hook: HookPoint) -> Tensor:
            share = shares[hook.name or ""].to(output.device)
            own = output.unflatten(0, (len(share), -1))  # [circuit, prompt, pos, ...]
            other = self.given[hook.name or ""][:, self.begin : self.stop]
            # Heads have an axis of their own behind positions; what is no head has one number for its vector.
            share = share[:, :, None, :, None] if output.ndim == 4 else share[:, :, None]
            mixed = torch.where(share, own, other) if share.dtype == torch.bool else other + share * (own - other)
            if real is not None:
                mixed = torch.where(real.view(*real.shape, *[1] * (own.ndim - 3)), mixed, own)
            return mixed.flatten(0, 1)

        changed = [name for name, share in shares.items() if share.requires_grad or not bool((share == 1).all())]
        return self.model.hooks([(name, replace) for name in changed])
