"""From a forward pass to the problem the entropy kernels solve: states and components through the final norm.

The states handed in are worked on in place: at the end they are the problem's own, so that nothing of the size of the
residual stream is held twice.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.recording.component_means import ComponentMeans
from headscope.analysis.recording.lens_states import LensStates
from headscope.model.activations.readout import Readout, readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.lens_entropy import Chain, Gains, LensProblem

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
        means: Taken from every component, for `baseline="mean"`.
        scale: The final norm's scale: that of the final state for all, or each state's own.
        lens_bias: Use `b_U` for every state, or for the final one only.
    """
    readout = readout_of(model)
    W_U, b_U = states.wide(readout.W_U), states.wide(readout.b_U)
    norm_offset = torch.zeros_like(b_U) if readout.bias is None else states.wide(readout.bias) @ W_U
    z, mlp = states.take_heads(None if means is None else means.z), states.mlp
    if means is not None and mlp is not None and means.mlp is not None:
        mlp -= means.mlp[:, None]
    W_O = states.wide(model.output_weights())
    n_layers, step = model.cfg.n_layers, 2 if model.cfg.has_resid_mid else 1
    frozen = scale == "final"
    by = readout.scale(states.resid[-1]) if frozen else torch.ones_like(states.resid[-1][:, :1])
    gains = None if frozen else _own_gains(readout, states, W_O, step)
    chain = _chain(readout, states, W_O, 1 / by[:, 0], step)
    for rows in (*states.resid, *(() if mlp is None else mlp)):
        rows.copy_(readout.direction(rows)).div_(by)
    z /= by
    return LensProblem(
        states=states.resid,
        head_base=tuple(range(0, step * n_layers, step)),
        mlp_base=() if mlp is None else tuple(range(step - 1, step * n_layers, step)),
        heads=z,
        W_O=readout.direction(W_O),
        mlps=mlp,
        W_U=W_U,
        offset=norm_offset + b_U if lens_bias else norm_offset,
        final_offset=norm_offset + b_U,
        soft_cap=readout.soft_cap,
        gains=gains,
        chain=chain,
    )


def _chain(readout: Readout, states: LensStates, W_O: Tensor, by: Tensor, step: int) -> Chain | None:
    """Return the way each state follows from the one before; `None` where a hook or coarse rounding comes between."""
    if states.mlp is None or states.rounding > 1e-6:
        return None
    attn_rest, mlp_rest = [], []
    for layer in range(len(states.z)):
        start, end = states.resid[step * layer], states.resid[step * (layer + 1)]
        heads = torch.einsum("hre,hed->rd", states.z[layer], W_O[layer])
        mlp = states.mlp[layer]
        rest: Tensor | None = torch.zeros_like(W_O[0, 0, 0])
        if step == 1:
            attn = _constant_rest(start, (heads, mlp), end, states.rounding)
        else:
            middle = states.resid[step * layer + 1]
            attn = _constant_rest(start, (heads,), middle, states.rounding)
            rest = _constant_rest(middle, (mlp,), end, states.rounding)
        if attn is None or rest is None:
            return None
        attn_rest.append(attn)
        mlp_rest.append(rest)
    return Chain(readout.direction(torch.stack(attn_rest)), readout.direction(torch.stack(mlp_rest)), by)


def _constant_rest(
    start: Float[Tensor, "row d_model"],
    written: tuple[Float[Tensor, "row d_model"], ...],
    end: Float[Tensor, "row d_model"],
    rounding: float,
) -> Float[Tensor, " d_model"] | None:
    """Return what `end` holds besides `start` and what was written, if it is the same in every row but for rounding."""
    rest = end - start
    for each in written:
        rest -= each
    mean = rest.mean(0)
    largest = torch.stack([each.abs().amax(-1, keepdim=True) for each in written]).amax(0) + mean.abs().amax()
    noise = 16 * rounding * (start.abs() + end.abs()) + 64 * rounding * largest
    return mean if bool((rest.sub_(mean).abs_() <= noise).all()) else None


def _own_gains(readout: Readout, states: LensStates, W_O: Tensor, step: int) -> Gains:
    """One over each perturbed state's own scale."""
    plus, minus = [], []
    for layer in range(len(states.z)):
        written = torch.bmm(states.z[layer], W_O[layer])
        added = [readout.scale(states.resid[step * layer] + written)]
        taken = [readout.scale(states.resid[-1] - written)]
        if states.mlp is not None:
            mlp = states.mlp[layer]
            added.append(readout.scale(states.resid[step * layer + step - 1] + mlp)[None])
            taken.append(readout.scale(states.resid[-1] - mlp)[None])
        plus.append(torch.cat(added).squeeze(-1))
        minus.append(torch.cat(taken).squeeze(-1))
    return Gains(
        states=1 / readout.scale(states.resid).squeeze(-1), plus=1 / torch.stack(plus), minus=1 / torch.stack(minus)
    )
