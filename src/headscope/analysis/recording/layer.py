"""One layer at a time: what enters it, what its heads read and do, and what follows if a head writes something else.

Hooks on the model stay in force: what enters a layer is taken before the hooks there, from a forward pass in steps, and
the layer runs again from there, so that no hook works on what it has changed before.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.recording.by_hand import check_heads_add_up, layers_between
from headscope.analysis.recording.record import Reading, Recording, Steps, readable_hooks, record
from headscope.errors import InvalidInputError
from headscope.model.hooks import HookPoint, is_listening
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer

__all__ = ["LayerRead", "check_layer_adds_up", "entering", "read_layer", "run_changed", "sources"]


@dataclass(frozen=True)
class LayerRead:
    """The input of one layer, and the inner activations of some of its heads, in float32 at least.

    Attributes:
        resid: What entered the layer.
        pattern: By head, `[row, query_pos, key_pos]`.
        values: By head, `[row, pos, d_head]`.
        z: The heads' outputs before `W_O`, `[row, pos, d_head]`.
        post_scale: What the norm behind attention divided by; `None` without one.
    """

    resid: Float[Tensor, "row pos d_model"]
    pattern: dict[int, Tensor]
    values: dict[int, Tensor]
    z: dict[int, Tensor]
    post_scale: Float[Tensor, "row pos 1"] | None


def entering(
    model: HookedTransformer, batch: Batch, layers: Iterable[int]
) -> dict[int, Float[Tensor, "row pos d_model"]]:
    """The stream as it enters some layers, before any hook there; `n_layers` gives the final state."""
    steps = Steps(model, batch.tokens, batch.attention_mask)
    return {layer: steps.entering(layer) for layer in sorted(layers)}


def read_layer(
    model: HookedTransformer, batch: Batch, layer: int, resid: Tensor, heads: Iterable[Component]
) -> LayerRead:
    """Run one layer on what enters it, and keep what some of its heads read and did.

    Raises:
        InvalidInputError: if a head's output is not its values weighted by its pattern: a hook has come between, or
            attention is gated.
    """
    if model.cfg.gated_attn:
        raise InvalidInputError(
            f"{model.cfg.model_name!r} has gated attention: what its heads write is not their values weighted by their "
            "patterns, which this analysis takes apart."
        )
    wanted = [head.head for head in heads if head.head is not None]
    kind = torch.promote_types(model.cfg.dtype, torch.float32)

    def wide(activation: Tensor) -> Tensor:
        return activation.to(kind, copy=True)

    def patterns(activation: Tensor) -> dict[int, Tensor]:
        return {head: wide(activation[:, head]) for head in wanted}

    def by_head(activation: Tensor) -> dict[int, Tensor]:
        # Values may be shared by a group of heads.
        group = model.cfg.n_heads // activation.shape[2]
        return {head: wide(activation[:, :, head // group]) for head in wanted}

    at = f"blocks.{layer}."
    readings: dict[str, Reading] = {
        f"{at}hook_resid_pre": wide,
        f"{at}attn.hook_pattern": patterns,
        f"{at}attn.hook_v": by_head,
        f"{at}attn.hook_z": by_head,
        post_scale_name(layer): wide,
    }
    kept = _run_from(model, batch, layer, resid, readings, stop_at_layer=layer + 1).kept
    read = LayerRead(
        kept[f"{at}hook_resid_pre"],
        kept[f"{at}attn.hook_pattern"],
        kept[f"{at}attn.hook_v"],
        kept[f"{at}attn.hook_z"],
        kept.get(post_scale_name(layer)),
    )
    tolerance = 64 * torch.finfo(model.cfg.dtype).eps
    for head in wanted:
        if not _is_whole(read, head, batch.counted, tolerance, sink=model.cfg.use_attn_sinks):
            raise InvalidInputError(
                f"head {layer}.{head}'s output is not its values weighted by a pattern whose rows sum to one: a hook "
                "between hook_pattern and hook_z changes it. Take it off for this analysis."
            )
    return read


def _is_whole(read: LayerRead, head: int, counted: Tensor, tolerance: float, *, sink: bool) -> bool:
    """Return True if `z` is the values weighted by a pattern that sums to one, or with a sink to no more than that."""
    pattern, values, z = read.pattern[head], read.values[head], read.z[head]
    apart = (pattern @ values - z).abs() <= tolerance * (1 + values.abs().amax())
    over = pattern.sum(-1) - 1
    sums = (over if sink else over.abs()) <= tolerance
    return bool(apart[counted].all() and sums[counted].all())


def check_layer_adds_up(model: HookedTransformer, batch: Batch, layer: int, resid: Tensor) -> None:
    """Refuse a layer, given what enters it, of which the stream gets something else than `z W_O` of each head.

    Raises:
        InvalidInputError: See `check_heads_add_up`.
    """
    if not layers_between(model, [layer]):
        return
    names = [f"blocks.{layer}.{name}" for name in ("attn.hook_z", "hook_attn_out")] + [post_scale_name(layer)]
    here: dict[str, Reading] = {name: lambda activation: activation[batch.places] for name in names}
    kept = _run_from(model, batch, layer, resid, here, stop_at_layer=layer + 1).kept
    z, attn_out = (kept[name] for name in names[:2])
    check_heads_add_up(model, layer, z.transpose(0, 1), attn_out, kept.get(names[2]))


def sources(model: HookedTransformer, batch: Batch, layer: int) -> Bool[Tensor, "row query_pos key_pos"]:
    """Return the sources each destination may see in a layer: positions that count up to its own, within its window."""
    n_pos = batch.tokens.shape[1]
    attn: Any = model.blocks[layer].attn
    allowed = attn.allowed(n_pos, n_pos, batch.attention_mask)[:, 0].tril()
    return batch.counted[:, None, :] & batch.counted[:, :, None] & allowed


def _run_from(
    model: HookedTransformer,
    batch: Batch,
    layer: int,
    resid: Tensor,
    wanted: Mapping[str, Reading] = MappingProxyType({}),
    *,
    stop_at_layer: int | None = None,
) -> Recording:
    # A copy, since hooks may write to what they are shown, and others go on from here too.
    return record(
        model,
        resid.clone(),
        wanted,
        start_at_layer=layer,
        stop_at_layer=stop_at_layer,
        tokens=batch.tokens,
        attention_mask=batch.attention_mask,
    )


def run_changed(
    model: HookedTransformer, batch: Batch, head: Component, resid: Tensor, change: Float[Tensor, "row pos d_model"]
) -> Tensor:
    """The final state with something added to what a head writes, in front of all hooks there.

    Where a norm comes behind attention, it is added behind that norm.
    """
    attn: Any = model.blocks[head.layer].attn
    by_head = not model.cfg.has_post_norms and (model.cfg.use_attn_result or is_listening(attn.hook_result))
    (name,) = readable_hooks(model, [f"blocks.{head.layer}." + ("attn.hook_result" if by_head else "hook_attn_out")])

    def add(activation: Tensor, hook: HookPoint) -> Tensor:
        if not by_head:
            return activation + change
        changed = activation.clone()
        changed[:, :, head.head] += change
        return changed

    with model.hooks([(name, add)], prepend=True):
        return _run_from(model, batch, head.layer, resid).final
