"""From a forward pass to the problem the entropy kernels solve: states and components through the final norm.

The states handed in are worked on in place: at the end they are the problem's own, so that nothing of the size of the
residual stream is held twice.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.recording.component_means import ComponentMeans
from headscope.analysis.recording.lens_states import LensStates
from headscope.model.activations.readout import Readout, readout_of
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget
from headscope.ops.lens_problem import Chain, Gains, LensProblem, Steps

__all__ = ["lens_problem"]


def lens_problem(
    model: HookedTransformer,
    states: LensStates,
    means: ComponentMeans | None = None,
    *,
    scale: Literal["final", "own"] = "final",
    lens_bias: bool = True,
) -> LensProblem:
    """Return the problem that `ops.lens_entropy` is to solve for one batch.

    Args:
        model: The model the states are of.
        states: They are used up: their tensors become the problem's.
        means: The means of what components add to the stream, taken from each, for `baseline="mean"`.
        scale: The final norm's scale: that of the final state for all, or each state's own.
        lens_bias: Use `b_U` for every state, or for the final one only.
    """
    readout = readout_of(model)
    W_U, b_U = states.wide(readout.W_U), states.wide(readout.b_U)
    norm_offset = torch.zeros_like(b_U) if readout.bias is None else states.wide(readout.bias) @ W_U
    z, mlp, mixer = states.take_heads(), states.mlp, states.mixer
    if means is not None:
        z -= means.z[:, :, None]
    for part, outputs in (("mlp", mlp), ("mixer", mixer)):
        of_part = None if means is None else means.of_whole(part)
        if outputs is not None and of_part is not None:
            outputs -= of_part[:, None]
    W_O = states.wide(model.output_weights())
    step = 2 if model.cfg.has_resid_mid else 1
    bases = _bases(model.cfg, step)
    frozen = scale == "final"
    by = readout.scale(states.resid[-1]) if frozen else torch.ones_like(states.resid[-1][:, :1])
    gains = None if frozen else _own_gains(readout, states, W_O, bases)
    uniform = model.cfg.layer_parts is None
    chain = _chain(readout, states, W_O, 1 / by[:, 0], step) if uniform else None
    mlps: Tensor | Steps | None = mlp
    if chain is not None and step == 2 and not Budget.of(W_U.device).is_accelerators:
        mlps = Steps(states.resid, chain)
    for held in (states.resid, mlps, mixer):
        for rows in held if isinstance(held, Tensor) else ():
            rows.copy_(readout.direction(rows)).div_(by)
    z /= by
    for weight in W_O:  # stacked for this problem alone
        weight.copy_(readout.direction(weight))
    return LensProblem(
        states=states.resid,
        head_base=bases["attn"],
        mlp_base=() if mlp is None else bases["mlp"],
        heads=z,
        W_O=W_O,
        mlps=mlps,
        W_U=W_U,
        offset=norm_offset + b_U if lens_bias else norm_offset,
        final_offset=norm_offset + b_U,
        soft_cap=readout.soft_cap,
        gains=gains,
        chain=chain,
        mixer_base=() if mixer is None else bases["mixer"],
        mixers=mixer,
    )


def _bases(cfg: HookedTransformerConfig, step: int) -> dict[str, tuple[int | None, ...]]:
    """Return the state that each part of each layer adds to, of `step` states a layer; `None` for one it lacks."""
    offsets = {"attn": 0, "mixer": 0, "mlp": step - 1}
    return {
        part: tuple(step * layer + offset if part in cfg.parts_of(layer) else None for layer in range(cfg.n_layers))
        for part, offset in offsets.items()
    }


def _chain(readout: Readout, states: LensStates, W_O: Tensor, by: Tensor, step: int) -> Chain | None:
    """Return the way each state follows from the one before; `None` where a hook or coarse rounding comes between."""
    if states.mlp is None or states.rounding > 1e-6:
        return None
    attn_rest, mlp_rest, constant = [], [], []
    # Room for all layers in turn: of blocks that are freed and taken anew, the allocator would keep hundreds of MB.
    heads, *room = states.resid.new_empty(4, *states.resid.shape[1:]).unbind()
    side_by_side = heads.new_empty(states.n, W_O[0, :, :, 0].numel())
    for layer, z in enumerate(states.z):
        start, end = states.resid[step * layer], states.resid[step * (layer + 1)]
        side_by_side.view(-1, *W_O.shape[1:3]).copy_(z.transpose(0, 1))
        torch.mm(side_by_side, W_O[layer].flatten(0, 1), out=heads)
        mlp = states.mlp[layer]
        if step == 1:
            attn, is_constant = _constant_rest(start, (heads, mlp), end, states.rounding, room)
            rest = torch.zeros_like(attn)
        else:
            middle = states.resid[step * layer + 1]
            attn, is_constant = _constant_rest(start, (heads,), middle, states.rounding, room)
            rest, also = _constant_rest(middle, (mlp,), end, states.rounding, room)
            is_constant &= also
        attn_rest.append(attn)
        mlp_rest.append(rest)
        constant.append(is_constant)
    if not bool(torch.stack(constant).all()):  # asked once: a GPU has to be waited for
        return None
    return Chain(readout.direction(torch.stack(attn_rest)), readout.direction(torch.stack(mlp_rest)), by)


def _constant_rest(
    start: Float[Tensor, "row d_model"],
    written: tuple[Float[Tensor, "row d_model"], ...],
    end: Float[Tensor, "row d_model"],
    rounding: float,
    room: Sequence[Float[Tensor, "row d_model"]],
) -> tuple[Float[Tensor, " d_model"], Bool[Tensor, ""]]:
    """Return what `end` holds besides `start` and what was written, and whether all rows agree but for rounding.

    `room` is for three tensors of the states' size.
    """
    rest = torch.sub(end, start, out=room[0])
    for each in written:
        rest -= each
    mean = rest.mean(0)
    sizes = [torch.linalg.vector_norm(each, torch.inf, dim=-1, keepdim=True) for each in written]
    largest = torch.stack(sizes).amax(0) + mean.abs().amax()
    noise = torch.abs(start, out=room[1]).add_(torch.abs(end, out=room[2])).mul_(16 * rounding)
    noise += 64 * rounding * largest
    return mean, (rest.sub_(mean).abs_() <= noise).all()


def _own_gains(readout: Readout, states: LensStates, W_O: Tensor, bases: Mapping[str, tuple[int | None, ...]]) -> Gains:
    """One over each perturbed state's own scale."""
    n_heads = W_O.shape[1]
    outputs = {"mixer": states.mixer, "mlp": states.mlp}
    whole = [part for part, each in outputs.items() if each is not None]
    by = states.resid.new_ones(2, len(bases["attn"]), n_heads + len(whole), states.n)

    def note(layer: int, which: slice, base: int, written: Float[Tensor, "component row d_model"]) -> None:
        by[0, layer, which] = 1 / readout.scale(states.resid[base] + written, states.eps_of(base))[..., 0]
        by[1, layer, which] = 1 / readout.scale(states.resid[-1] - written)[..., 0]

    def present(part: str) -> list[tuple[int, int]]:
        return [(layer, base) for layer, base in enumerate(bases[part]) if base is not None]

    for at, (layer, base) in enumerate(present("attn")):
        note(layer, slice(0, n_heads), base, torch.bmm(states.z[at], W_O[at]))
    for column, part in enumerate(whole, n_heads):
        written = outputs[part]
        assert written is not None
        for at, (layer, base) in enumerate(present(part)):
            note(layer, slice(column, column + 1), base, written[at][None])
    return Gains(states=1 / readout.scale(states.resid, states.eps).squeeze(-1), plus=by[0], minus=by[1])
