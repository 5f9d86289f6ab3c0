"""Many patched runs of one batch, each computing what its patch can change and no more.

For a patch (a cell of a sweep) the unpatched run gives everything below its layer and, where attention is causal, all
that lies before the first position it changes: of those positions only keys and values are needed. A cell whose patch
changes nothing is not run at all. Cells that begin at the same position join as they come up through the layers, and
go on as one batch. In the last layer, and behind it, only the positions count that the metric says it reads.

Operations for each cell, against a whole run: with the patched layer `l` of `L` and the position `p` of `P`,
`(L - l) (P - p)` layers and positions of `L P`, less the last layer's queries and MLP, and no unembedding but where the
metric reads. Cells are held in windows of bounded memory.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.progress import progress_bar
from headscope.analysis.patching.base_run import BaseRun, SuffixRuns, obstacle
from headscope.analysis.prompts.metrics import Metric, PositionMetric, PromptMetric, as_number
from headscope.analysis.recording.record import Steps
from headscope.model.block import RESUMABLE, TransformerBlock
from headscope.model.hooks import HookPoint
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["Patch", "measure_patches", "measured_of_logits"]


@dataclass(frozen=True)
class Patch:
    """One cell: a hook point, and what takes the place of its activation.

    Attributes:
        name: The hook point.
        apply: Gets the activation, may write to it, and returns what replaces it (`None`: what it wrote to).
    """

    name: str
    apply: Callable[[Tensor], Tensor | None]

    def replaced(self, activation: Tensor, hook: HookPoint | None = None) -> Tensor:
        """The activation after the patch; a hook, where it is used as one."""
        patched = self.apply(activation)
        return activation if patched is None else patched


@dataclass(frozen=True)
class _Site:
    """A hook point at which a run can be resumed: its layer, and its name in the block."""

    layer: int
    kind: str

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.{self.kind}"

    def read_in(self, model: HookedTransformer) -> list[str]:
        """Activations of the unpatched run, by names in the block."""
        return cast(TransformerBlock, model.blocks[self.layer]).read_by_resumed(self.kind)

    @classmethod
    def of(cls, hook_name: str) -> "_Site | None":
        """The site of that name; `None` for a hook point elsewhere."""
        named = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
        return cls(int(named[1]), named[2]) if named and named[2] in RESUMABLE else None


@dataclass(frozen=True)
class _Entry:
    """A patched residual stream, and where it goes on.

    Attributes:
        stage: `2 * layer` before a layer, one more between its attention and its MLP.
        start: The first position that differs from the unpatched run.
        stream: The stream from `start` on.
    """

    stage: int
    start: int
    stream: Float[Tensor, "batch suffix d_model"]


@torch.no_grad()
def measure_patches(
    model: HookedTransformer,
    tokens: Tensor,
    metric: Metric,
    patches: Sequence[Patch],
    *,
    attention_mask: Tensor | None = None,
    watched: Iterable[str] = (),
    progress: bool = True,
    description: str = "patching",
) -> Float[Tensor, "cell *prompt"]:
    """Return the metric of each patched run, of each prompt if it is a `PromptMetric`; in float64 on the CPU.

    A model with hooks on it, or whose blocks cannot be resumed in the middle, is run whole: all positions, from the
    patched layer on, one cell at a time.

    Args:
        model: The model.
        tokens: What it runs on.
        metric: What is measured of each run's logits; see `metrics` for those that need fewer.
        patches: The cells.
        attention_mask: See `HookedTransformer.forward`.
        watched: Hook points that were watched in the run patches come from; see `BaseRun`.
        progress: Show a progress bar.
        description: Beside it.
    """
    values: dict[int, Tensor] = {}
    # Layer by layer, so that an unpatched stream is carried upwards once.
    order = sorted(range(len(patches)), key=lambda cell: _layer_of(patches[cell].name, model.cfg.n_layers))
    sites = {patch.name: _Site.of(patch.name) for patch in patches} if obstacle(model) is None else {}
    known = [site for site in sites.values() if site is not None]
    unpatched = Steps(model, tokens, attention_mask)
    runs = None
    if known:
        base = BaseRun(
            model,
            torch.atleast_2d(tokens),
            {f"blocks.{site.layer}.{name}" for site in known for name in site.read_in(model)},
            min(site.layer for site in known),
            watched=watched,
            attention_mask=attention_mask,
        )
        runs = _PatchRuns(base, metric)
    with progress_bar(len(patches), description, shown=progress) as bar:
        for cell in order:
            patch, site = patches[cell], sites.get(patches[cell].name)
            if runs is not None and site is not None:
                activation = runs.base.kept[site.name]
                patched = patch.replaced(activation.clone())
                if patched.shape == activation.shape and patched.dtype == activation.dtype:
                    runs.add(cell, site, patched)
                    if runs.is_full:
                        values |= runs.measured(bar.update)
                    continue
                patch = Patch(patch.name, partial(_instead, patched))  # made already; the model says if it fits
            values[cell] = measured_of_logits(metric, _whole_run(unpatched, patch))
            bar.update()
        if runs is not None:
            values |= runs.measured(bar.update)
    return torch.stack([values[cell] for cell in range(len(patches))]) if patches else torch.zeros(0)


def measured_of_logits(metric: Metric, logits: Float[Tensor, "prompt pos d_vocab"]) -> Float[Tensor, "*prompt"]:
    """Return a run's metric, of each prompt if it is a `PromptMetric`; in float64 on the CPU.

    Raises:
        InvalidInputError: If another metric is not one number.
    """
    if isinstance(metric, PromptMetric):
        return metric.each(logits).cpu().double()
    return torch.tensor(as_number(metric(logits)), dtype=torch.float64, device="cpu")


def _layer_of(hook_name: str, n_layers: int) -> int:
    """Return the layer to resume at for a patch there; -1 to begin with the tokens, `n_layers` after all blocks."""
    part, _, rest = hook_name.partition(".")
    if part == "blocks":
        return int(rest.partition(".")[0])
    return n_layers if part in ("ln_final", "unembed") else -1


def _whole_run(unpatched: Steps, patch: Patch) -> Float[Tensor, "batch pos d_vocab"]:
    """Return the logits of a run patched by a hook, whatever the model and the hooks on it, from the layer on.

    Layers must not go down from one patch to the next.
    """
    model, tokens = unpatched.model, unpatched.tokens
    layer = _layer_of(patch.name, model.cfg.n_layers)
    options: dict[str, Any] = {
        "fwd_hooks": [(patch.name, patch.replaced)],
        "attention_mask": unpatched.attention_mask,
    }
    if layer < 0:
        return model.run_with_hooks(tokens, **options)
    # A copy, since hooks may write to what they are shown, and the next run begins from here too.
    return model.run_with_hooks(unpatched.entering(layer).clone(), start_at_layer=layer, tokens=tokens, **options)


def _instead(patched: Tensor, _: Tensor) -> Tensor:
    return patched


class _PatchRuns:
    """A window of cells: taken in until it is full, then run together."""

    def __init__(self, base: BaseRun, metric: Metric | PositionMetric | PromptMetric) -> None:
        self.base, self.model, self.metric = base, base.model, metric
        places = None
        if isinstance(metric, PositionMetric | PromptMetric):
            places = metric.places(base.batch, base.length).to(base.final.device)
        self.suffixes = SuffixRuns(base, places)
        self._entries: dict[int, _Entry] = {}
        self._held = 0
        self._budget = Budget.of(base.final.device)

    @property
    def is_full(self) -> bool:
        return self._held >= self._budget.work_bytes

    def add(self, cell: int, site: _Site, patched: Tensor) -> None:
        """Take in a cell, with the activation as it is after its patch."""
        entry = self._entry(site, patched)
        self._entries[cell] = entry
        self._held += entry.stream.nbytes

    def _entry(self, site: _Site, patched: Tensor) -> _Entry:
        """The rest of the run once an activation is replaced; it starts behind the end if no change counts."""
        base, stop = self.base, self.suffixes.stop
        axis = 2 if site.kind == "attn.hook_pattern" else 1
        differs = patched != base.kept[site.name]
        at = differs.any(dim=[each for each in range(differs.ndim) if each != axis]).nonzero()
        start = base.length if not len(at) else int(at[0]) if base.is_causal else 0
        if start >= stop:
            return _Entry(2 * site.layer, base.length, base.final[:, :0])
        kept = base.of_block(site.layer, site.read_in(self.model))
        stage, stream = base.blocks[site.layer].resumed(site.kind, patched, kept, slice(start, stop), base.mask)
        return _Entry(2 * site.layer + stage, start, stream)

    def measured(self, advance: Callable[[int], object]) -> dict[int, Tensor]:
        """Return the metric of each cell that was taken in; `advance` is told how many are done."""
        entries, self._entries, self._held = self._entries, {}, 0
        changed = {cell: entry for cell, entry in entries.items() if entry.start < self.suffixes.stop}
        unchanged = entries.keys() - changed.keys()
        values = dict.fromkeys(unchanged, self._unpatched_value) if unchanged else {}
        advance(len(unchanged))
        return values | (self._values(changed, self._finals(changed, advance)) if changed else {})

    # From the patched layers to the end

    def _finals(self, entries: dict[int, _Entry], advance: Callable[[int], object]) -> dict[int, Tensor]:
        """Final states of each cell, from its start on; or `[batch, read, d_model]`, if it is known what is read."""
        n_layers = self.model.cfg.n_layers
        entering: dict[int, list[int]] = {}
        for cell, entry in entries.items():
            entering.setdefault(entry.stage, []).append(cell)
        total = sum((n_layers - entry.stage // 2) * (self.suffixes.stop - entry.start) for entry in entries.values())
        done, told = 0, 0
        # Cells whose patched streams begin at one position go together.
        groups: dict[int, dict[int, Tensor]] = {}

        def admit(cells: Iterable[int], to: dict[int, dict[int, Tensor]], layer: int) -> None:
            for cell in cells:
                start, stream = entries[cell].start, entries[cell].stream
                to.setdefault(start, {})[cell] = self.suffixes.read(start, stream) if layer == n_layers else stream

        for layer in range(min(entering) // 2, n_layers):
            admit(entering.get(2 * layer, ()), groups, layer)
            middle: dict[int, dict[int, Tensor]] = {}
            admit(entering.get(2 * layer + 1, ()), middle, layer)
            after: dict[int, dict[int, Tensor]] = {}
            for those, run in ((groups, self.suffixes.through), (middle, self.suffixes.through_mlp)):
                for start, group in those.items():
                    n_together = self._budget.batch_tokens // (self.base.batch * (self.suffixes.stop - start))
                    rows = self.base.batch * max(1, n_together)
                    parts = [run(layer, start, part) for part in torch.cat(list(group.values())).split(rows)]
                    streams = [stream for part in parts for stream in part.split(self.base.batch)]
                    after.setdefault(start, {}).update(zip(group, streams, strict=True))
                    done += len(group) * (self.suffixes.stop - start)
            groups = after
            advance(done * len(entries) // total - told)
            told = done * len(entries) // total
        admit(entering.get(2 * n_layers, ()), groups, n_layers)
        advance(len(entries) - told)
        return {cell: final for group in groups.values() for cell, final in group.items()}

    # What is read

    @cached_property
    def _unpatched_value(self) -> Tensor:
        states = self.suffixes.unpatched
        return self._values({0: _Entry(2 * self.model.cfg.n_layers, 0, states)}, {0: states})[0]

    @cached_property
    def _unpatched_logits(self) -> Float[Tensor, "batch pos d_vocab"]:
        return self.model.to_logits(self.base.final)

    def _values(self, entries: dict[int, _Entry], finals: dict[int, Tensor]) -> dict[int, Tensor]:
        """The metric of final states, in the order in which cells were taken in."""
        values: dict[int, Tensor] = {}
        cells = list(entries)
        if isinstance(self.metric, PromptMetric):
            states = torch.stack([finals[cell][:, 0] for cell in cells])
            return dict(zip(cells, self.metric.of_prompts(self.model, states).cpu().double(), strict=True))
        metric = self.metric.metric if isinstance(self.metric, PositionMetric) else self.metric
        widest = max(final.shape[1] for final in finals.values()) * self.base.batch * self.model.cfg.d_vocab_out
        step = max(1, self._budget.work_bytes // (widest * self.base.final.element_size()))
        for first in range(0, len(cells), step):
            some = cells[first : first + step]
            # Rows of all of them in one product, whatever their lengths.
            flat = self.model.to_logits(torch.cat([finals[cell].flatten(0, 1) for cell in some])[None])[0]
            sizes = [finals[cell].shape[:2] for cell in some]
            for cell, logits, size in zip(some, flat.split([b * p for b, p in sizes]), sizes, strict=True):
                logits = logits.unflatten(0, size)
                if self.suffixes.places is None and entries[cell].start:
                    logits = torch.cat([self._unpatched_logits[:, : entries[cell].start], logits], dim=1)
                values[cell] = measured_of_logits(metric, logits)
        return values
