"""`clean_run`: one forward pass over a batch, and of it what enters some layers and what some components give."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.recording.lens_states import check_final, readable_hooks
from headscope.analysis.recording.post_norms import scale_name, scale_names
from headscope.model.activations.readout import Readout
from headscope.model.hooks import HookPoint
from headscope.model.transformer import HookedTransformer
from headscope.ops.changed_predictions import Prediction

__all__ = ["CleanRun", "CleanRuns", "clean_prediction", "clean_run", "hook_name"]

# What clean runs may take in memory from one pass over the data to the next.
_KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class CleanRun:
    """What one forward pass wrote.

    Attributes:
        resid: What enters each layer at which a patched run resumes.
        written: What each layer's heads (`[row, pos, head, d_head]`, before `W_O`) and MLPs (`[row, pos, d_model]`)
            gave, and what norms behind attention divided by, by hook name.
        final: The final state.
    """

    resid: Mapping[int, Float[Tensor, "row pos d_model"]]
    written: Mapping[str, Tensor]
    final: Float[Tensor, "row pos d_model"]

    def output(self, component: Component) -> Float[Tensor, "row pos width"]:
        """What a component gave: a head's `z`, an MLP's output."""
        written = self.written[hook_name(component)]
        return written if component.head is None else written[:, :, component.head]

    def onto_stream(self, component: Component, part: Float[Tensor, "row pos width"]) -> Float[Tensor, "row pos width"]:
        """A part of a component's output over this run's scale of the norm behind it, if there is one.

        A head's comes to the stream through `output_weights` then; an MLP's output is behind its norm already.
        """
        scale = None if component.head is None else self.written.get(scale_name(component.layer))
        return part if scale is None else part / scale


def hook_name(component: Component) -> str:
    """Where a component's output passes."""
    return f"blocks.{component.layer}." + ("hook_mlp_out" if component.head is None else "attn.hook_z")


@torch.no_grad()
def clean_run(
    model: HookedTransformer, batch: Batch, parts: Iterable[Component], resume_at: Iterable[int] = ()
) -> CleanRun:
    """Run a batch and keep what some components give, and what enters some layers.

    Raises:
        InvalidInputError: if a module stands where one of these is read.
        NotFiniteError: if a final state is not finite.
    """
    resid = {f"blocks.{layer}.hook_resid_pre": layer for layer in resume_at}
    parts = list(parts)
    names = readable_hooks(model, sorted({*resid, *map(hook_name, parts)}))
    names += readable_hooks(model, scale_names(model, sorted({part.layer for part in parts if part.head is not None})))
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: HookPoint) -> None:
        # A copy: the stream may be written to in place afterwards, by later hooks too.
        kept[hook.name or ""] = activation.clone()

    final = model.run_with_hooks(
        batch.tokens,
        fwd_hooks=[(name, keep) for name in names],
        attention_mask=batch.attention_mask,
        stop_at_layer=model.cfg.n_layers,
    )
    check_final(final[batch.counted])
    return CleanRun({layer: kept[name] for name, layer in resid.items()}, kept, final)


def clean_prediction(
    readout: Readout, batch: Batch, where: Bool[Tensor, "row pos"], final: Float[Tensor, "n d_model"]
) -> Prediction:
    """What final states at some positions of a batch say of each next token, for changes to be compared with."""
    return Prediction(
        readout.normalize(final),
        readout.W_U.detach().to(final.dtype),
        readout.b_U.detach().to(final.dtype),
        batch.tokens.roll(-1, dims=1)[where],
        readout.soft_cap,
    )


class CleanRuns:
    """Clean runs of batches, which a first pass over the data keeps for the second, as far as there is room for them.

    Args:
        model: The model.
        parts: Components whose outputs are kept.
        resume_at: Layers whose input is kept.
        room: How many bytes of runs are kept from the first pass; 0 where it goes through other data.
    """

    def __init__(
        self,
        model: HookedTransformer,
        parts: Iterable[Component],
        resume_at: Iterable[int] = (),
        *,
        room: int | None = None,
    ) -> None:
        self.model = model
        self.parts = frozenset(parts)
        self.resume_at = tuple(resume_at)
        self._kept: dict[int, tuple[Batch, CleanRun]] = {}
        self._room = _KEPT_BYTES if room is None else room

    def first(self, batch: Batch, n_before: int) -> CleanRun:
        """Run a batch that `n_before` rows of the data come before, and keep the run if there is room."""
        run = clean_run(self.model, batch, self.parts, self.resume_at)
        size = sum(each.numel() * each.element_size() for each in (*run.written.values(), run.final))
        if size <= self._room:
            self._room -= size
            self._kept[n_before] = batch, run
        return run

    def second(self, batch: Batch, n_before: int) -> CleanRun:
        """The run that was kept of a batch, which is then forgotten; else a new one."""
        kept = self._kept.pop(n_before, None)
        if kept is not None and torch.equal(kept[0].tokens, batch.tokens):
            return kept[1]
        return clean_run(self.model, batch, self.parts, self.resume_at)
