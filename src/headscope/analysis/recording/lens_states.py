"""The states of the residual stream and what each component wrote, at the positions that count."""

from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.recording.by_hand import check_heads_add_up, check_readout, layers_between
from headscope.analysis.recording.record import Reading, check_final, record
from headscope.model.hooks import is_listening
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget, give_back_freed

__all__ = ["LensStates", "lens_states", "state_labels"]


@dataclass(frozen=True)
class LensStates:
    """The states and outputs of one forward pass at the positions that count, in float32 at least.

    Attributes:
        resid: Each `resid_pre` and `resid_mid` (where blocks have one), then the final state.
        z: Each head's output before `W_O`, of each layer with attention; zeros behind heads narrower than others.
        mlp: Each MLP's output, of each layer with one; `None` without MLPs.
        rounding: Relative rounding of the type the model ran in.
        post_scale: What the norm behind each attention layer divided by; `None` without such norms.
        mixer: Each mixer's output, of each layer with one; `None` without mixers.
        eps: What a norm adds to the variance of each state; `None` if that is the same for all.
    """

    resid: Float[Tensor, "state row d_model"]
    z: Float[Tensor, "attn_layer head row d_head"]
    mlp: Float[Tensor, "mlp_layer row d_model"] | None
    rounding: float
    post_scale: Float[Tensor, "layer row 1"] | None = None
    mixer: Float[Tensor, "mixer_layer row d_model"] | None = None
    eps: Float[Tensor, "state 1 1"] | None = None

    @property
    def n(self) -> int:
        """Positions that count."""
        return self.resid.shape[1]

    def eps_of(self, state: int) -> float | None:
        """Return what the final norm adds to the variance of a state at a scale of its own; `None`: as to the last."""
        return None if self.eps is None else float(self.eps[state])

    def take_heads(
        self, means: Float[Tensor, "attn_layer head d_head"] | None = None
    ) -> Float[Tensor, "attn_layer head row d_head"]:
        """Return what times `output_weights` is what each head added to the stream; made in place, so `z` is used up.

        Args:
            means: Taken from each head's output first, before a norm behind attention scales what is left.
        """
        z = self.z
        if means is not None:
            z -= means[:, :, None]
        if self.post_scale is not None:
            z /= self.post_scale[:, None]
        return z

    def wide(self, tensor: Tensor) -> Tensor:
        """A weight in the type these states are computed in."""
        return tensor.detach().to(self.resid.dtype)


@torch.no_grad()
def lens_states(model: HookedTransformer, batch: Batch, *, outputs: bool = True) -> LensStates:
    """Run a batch through the model and keep its states at the positions that count.

    Args:
        model: The model; hooks on it stay in force.
        batch: The batch.
        outputs: Keep what components wrote, too.

    Raises:
        InvalidInputError: if a module stands where a hook point is read, or a hook or a module changes what heads, the
            final norm or the unembedding give (see `by_hand`).
        NotFiniteError: if a final state is not finite.
    """
    cfg = model.cfg
    kind = torch.promote_types(cfg.dtype, torch.float32)
    n, step = len(batch.places[0]), 2 if cfg.has_resid_mid else 1

    def room(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=kind, device=batch.tokens.device)

    # Each activation is written where it stays, once: a cache of them beside would be as much again.
    having = {part: cfg.layers_with(part) if outputs else () for part in ("attn", "mixer", "mlp")}
    resid = room(step * cfg.n_layers + 1, n, cfg.d_model)
    z = room(len(having["attn"]), cfg.n_heads, n, cfg.value_width)
    whole = {part: room(len(having[part]), n, cfg.d_model) if having[part] else None for part in ("mixer", "mlp")}
    post_scale = room(cfg.n_layers, n, 1) if cfg.has_post_norms and outputs else None
    places: dict[str, Tensor] = {}
    for layer in range(cfg.n_layers):
        places[f"blocks.{layer}.hook_resid_pre"] = resid[step * layer]
        places[f"blocks.{layer}.hook_resid_mid"] = resid[step * layer + step - 1]
        if post_scale is not None:
            places[post_scale_name(layer)] = post_scale[layer]
    for at, layer in enumerate(having["attn"]):
        width = cfg.value_width_of(layer)
        z[at, ..., width:] = 0
        places[f"blocks.{layer}.attn.hook_z"] = z[at, ..., :width].transpose(0, 1)
    for part, written in whole.items():
        for layer, output in zip(having[part], () if written is None else written, strict=True):
            places[f"blocks.{layer}.hook_{part}_out"] = output
    between = {layer: f"blocks.{layer}.hook_attn_out" for layer in layers_between(model, having["attn"])}
    kept, finals, start = dict[str, Tensor](), [], 0
    for rows in [slice(None)] if between else _pieces(model, batch):
        where = batch.counted[rows].nonzero(as_tuple=True)
        put = slice(start, start := start + len(where[0]))
        readings: dict[str, Reading] = {name: partial(_put, place[put], where) for name, place in places.items()}
        readings |= dict.fromkeys(between.values(), itemgetter(where))
        mask = None if batch.attention_mask is None else batch.attention_mask[rows]
        found, final = record(model, batch.tokens[rows], readings, attention_mask=mask)
        kept |= {name: found[name] for name in between.values()}
        finals.append(final)
    final = torch.cat(finals) if len(finals) > 1 else final
    resid[-1] = final[batch.places]
    check_final(resid[-1])
    check_readout(model, final, batch.places)
    for layer, name in between.items():
        scale = None if post_scale is None else post_scale[layer]
        check_heads_add_up(model, layer, z[having["attn"].index(layer)], kept[name], scale)
    give_back_freed()
    eps = None
    if cfg.resid_scales is not None:
        eps = resid.new_tensor([cfg.eps_of(at // step) for at in range(len(resid))])[:, None, None]
    return LensStates(resid, z, whole["mlp"], torch.finfo(final.dtype).eps, post_scale, whole["mixer"], eps)


def _put(place: Tensor, where: tuple[Tensor, ...], activation: Tensor) -> None:
    place.copy_(activation[where])


def _pieces(model: HookedTransformer, batch: Batch) -> list[slice]:
    """Cut the rows of a batch into those that run together: half as many, as what they take comes on top of the states.

    A hook may count on the batch it was made for, and a GPU wants few launches: these have all rows together.
    """
    (n_rows, length), budget = batch.tokens.shape, Budget.of(batch.tokens.device)
    if budget.is_accelerators or any(is_listening(point) for point in model.hook_points()):
        return [slice(0, n_rows)]
    at_once = max(1, budget.batch_tokens // 2 // length)
    return [slice(at, at + at_once) for at in range(0, n_rows, at_once)]


def state_labels(model: HookedTransformer) -> tuple[str, ...]:
    """Names of the states measured: `0_pre`, `0_mid`, ..., `final`."""
    kinds = ("pre", "mid") if model.cfg.has_resid_mid else ("pre",)
    return (*(f"{layer}_{kind}" for layer in range(model.cfg.n_layers) for kind in kinds), "final")
