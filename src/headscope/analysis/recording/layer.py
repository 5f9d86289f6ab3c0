"""One layer at a time: what enters it, what its heads read and do, and what follows if a head writes something else.

Hooks on the model stay in force: what enters a layer is taken before the hooks there, from a forward pass in steps, and
the layer runs again from there, so that no hook works on what it has changed before.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.recording.lens_states import readable_hooks
from headscope.analysis.recording.post_norms import scale_names
from headscope.errors import InvalidInputError
from headscope.model.hooks import HookFunction, HookPoint, is_listening
from headscope.model.parts.masks import allowed_by_position
from headscope.model.transformer import HookedTransformer

__all__ = ["LayerRead", "entering", "read_layer", "run_changed", "sources"]


@dataclass(frozen=True)
class LayerRead:
    """What one layer read, and what some of its heads did, in float32 at least.

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
    found: dict[int, Tensor] = {}
    resid: Tensor | None = None
    at = 0
    for layer in sorted(layers):
        if resid is None:
            resid = model(batch.tokens, attention_mask=batch.attention_mask, stop_at_layer=layer)
        else:
            resid = _run_from(model, batch, at, resid, layer)
        assert resid is not None
        found[layer], at = resid, layer
    return found


def read_layer(
    model: HookedTransformer, batch: Batch, layer: int, resid: Tensor, heads: Iterable[Component]
) -> LayerRead:
    """Run one layer on what enters it, and keep what some of its heads read and did.

    Raises:
        InvalidInputError: if a head's output is not its values weighted by its pattern: a hook has come between.
    """
    wanted = [head.head for head in heads if head.head is not None]
    kind = torch.promote_types(model.cfg.dtype, torch.float32)
    kept: dict[str, dict[int, Tensor]] = {}
    streams: list[Tensor] = []
    scales: list[Tensor] = []

    def keep(activation: Tensor, hook: HookPoint) -> None:
        name = (hook.name or "").rsplit(".", 1)[-1]
        if name == "hook_resid_pre":
            streams.append(activation.to(kind, copy=True))
        elif name == "hook_scale":
            scales.append(activation.to(kind, copy=True))
        elif name == "hook_pattern":
            kept[name] = {head: activation[:, head].to(kind, copy=True) for head in wanted}
        else:
            # Values may be shared by a group of heads.
            group = model.cfg.n_heads // activation.shape[2]
            kept[name] = {head: activation[:, :, head // group].to(kind, copy=True) for head in wanted}

    kinds = ("hook_resid_pre", "attn.hook_pattern", "attn.hook_v", "attn.hook_z")
    names = readable_hooks(model, [*(f"blocks.{layer}.{each}" for each in kinds), *scale_names(model, [layer])])
    _run_from(model, batch, layer, resid, layer + 1, [(name, keep) for name in names])
    post_scale = scales[0] if scales else None
    read = LayerRead(streams[0], kept["hook_pattern"], kept["hook_v"], kept["hook_z"], post_scale)
    tolerance = 64 * torch.finfo(model.cfg.dtype).eps
    for head in wanted:
        if not _is_whole(read, head, batch.counted, tolerance):
            raise InvalidInputError(
                f"head {layer}.{head}'s output is not its values weighted by a pattern whose rows sum to one: a hook "
                "between hook_pattern and hook_z changes it. Take it off for this analysis."
            )
    return read


def _is_whole(read: LayerRead, head: int, counted: Tensor, tolerance: float) -> bool:
    pattern, values, z = read.pattern[head], read.values[head], read.z[head]
    apart = (pattern @ values - z).abs() <= tolerance * (1 + values.abs().amax())
    sums = (pattern.sum(-1) - 1).abs() <= tolerance
    return bool(apart[counted].all() and sums[counted].all())


def sources(model: HookedTransformer, batch: Batch, layer: int) -> Bool[Tensor, "row query_pos key_pos"]:
    """What each destination may see in a layer: positions that count up to its own, within its window."""
    n_pos = batch.tokens.shape[1]
    attn: Any = model.blocks[layer].attn
    window = model.cfg.window_size if attn.attn_type == "local" else None
    earlier = allowed_by_position(n_pos, n_pos, causal=True, window=window, device=batch.tokens.device)
    return batch.counted[:, None, :] & batch.counted[:, :, None] & earlier


def _run_from(
    model: HookedTransformer,
    batch: Batch,
    layer: int,
    resid: Tensor,
    until: int,
    hooks: Sequence[tuple[str, HookFunction]] = (),
) -> Tensor:
    # A copy, since hooks may write to what they are shown, and others go on from here too.
    return model.run_with_hooks(
        resid.clone(),
        start_at_layer=layer,
        stop_at_layer=until,
        tokens=batch.tokens,
        attention_mask=batch.attention_mask,
        fwd_hooks=list(hooks),
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

    with _in_front(model, name, add):
        return _run_from(model, batch, head.layer, resid, model.cfg.n_layers)


@contextmanager
def _in_front(model: HookedTransformer, name: str, hook: HookFunction) -> Iterator[None]:
    """A hook that runs before those already there, for the length of a `with` block."""
    model.context_level += 1
    level = model.context_level
    try:
        model.hook_dict[name].add_hook(hook, level=level, prepend=True)
        yield
    finally:
        model.reset_hooks(including_permanent=False, level=level)
        model.context_level -= 1
