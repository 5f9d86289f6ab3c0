"""Entropy of many perturbed predictions at once: each component added to a state, and taken from the final one.

For every state `r` with logits `a`, the final logits `f`, and every component with logits `d`, the entropies of
`softmax(a)`, `softmax(a + d)` and `softmax(f - d)` are reduced over the vocabulary tile by tile. What makes it quick:

- a head's logits have rank d_head: `z (W_O W_U)`, with `W_O W_U` of a vocabulary tile made once for all rows;
- `exp(a)` and `exp(f)` are made once per state, and `exp(d)` and its reciprocal then serve both sums,
  `Z = sum exp(a) exp(d)` and `sum exp(f) / exp(d)`, with S = sum l exp(l) from the same factors;
- a tile of rows by a tile of the vocabulary stays in cache.

That product form is used where every `|d|` in the tile is at most `SAFE_RANGE`: then a term lost to underflow,
`exp(a - max a) < e^-87`, is at most `e^(-87 + 30)` beside a sum of at least `e^-30`, so all d_vocab of them together
change nothing in float32. Elsewhere, under a soft cap, and when each state has a scale of its own, the logits are
formed and reduced one component at a time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.ops.vocab import VOCAB_TILE, RunningMoments, cap_logits, tile_moments

__all__ = ["SAFE_RANGE", "Gains", "LensEntropies", "LensProblem", "lens_entropies"]

SAFE_RANGE = 30.0
_ROWS = 64


@dataclass(frozen=True)
class Gains:
    """Factors on the logits' linear part, one for each row, when a state's norm has a scale of its own.

    Attributes:
        states: For each state.
        plus: For each component added to its state.
        minus: For each component taken from the final state.
    """

    states: Float[Tensor, "state row"]
    plus: Float[Tensor, "layer component row"]
    minus: Float[Tensor, "layer component row"]


@dataclass(frozen=True)
class LensProblem:
    """Rows and weights of one block of positions.

    Attributes:
        states: States on their way, the final one last; `logits = gain * (states @ W_U) + offset`.
        head_base: The state that each layer's heads add to.
        mlp_base: The state that each layer's MLP adds to; empty without MLPs.
        heads: Head outputs before `W_O`.
        W_O: What turns them into rows.
        mlps: MLP outputs as rows, if there are MLPs.
        W_U: Unembedding.
        offset: Added to the logits of every state but the final one, and of states with a component added.
        final_offset: Added to the final logits, with and without a component.
        soft_cap: `c` of a soft cap on all logits; 0 for none.
        gains: `None` when rows carry their (frozen) scale already.
    """

    states: Float[Tensor, "state row d_model"]
    head_base: tuple[int, ...]
    mlp_base: tuple[int, ...]
    heads: Float[Tensor, "layer head row d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    mlps: Float[Tensor, "layer row d_model"] | None
    W_U: Float[Tensor, "d_model d_vocab"]
    offset: Float[Tensor, " d_vocab"]
    final_offset: Float[Tensor, " d_vocab"]
    soft_cap: float = 0.0
    gains: Gains | None = None


@dataclass(frozen=True)
class LensEntropies:
    """Entropies in nats, float64.

    Attributes:
        states: Of each state.
        plus: Of each component's state with it added.
        minus: Of the final state with the component taken away.
    """

    states: Float[Tensor, "state row"]
    plus: Float[Tensor, "layer component row"]
    minus: Float[Tensor, "layer component row"]


def lens_entropies(problem: LensProblem) -> LensEntropies:
    """Solve a `LensProblem`.

    Cost: `2 * d_vocab * (states + layers) * d_model + 2 * d_vocab * layers * heads * d_head` operations and one
    exponential per component, row and token, plus `W_O W_U` once. Memory: `layers * heads * d_head` times a vocabulary
    tile, and a few tiles of rows.
    """
    layers, heads, rows, _ = problem.heads.shape
    components = heads + (problem.mlps is not None)
    device = problem.states.device
    states = RunningMoments((problem.states.shape[0], rows), device)
    # [plus or minus, layer, component, row]
    changed = RunningMoments((2, layers, components, rows), device)
    # The softmax does not see the mean over tokens; without it the components' logits span less.
    mean = problem.W_U.mean(-1, keepdim=True) if not problem.soft_cap else torch.zeros_like(problem.W_U[:, :1])
    for at in range(0, problem.W_U.shape[1], VOCAB_TILE):
        tile = slice(at, at + VOCAB_TILE)
        W_U = problem.W_U[:, tile] - mean
        W_OU = torch.matmul(problem.W_O, W_U)
        for start in range(0, rows, _ROWS):
            block = slice(start, min(start + _ROWS, rows))
            tiles = _Tiles(problem, W_U, W_OU, tile, block)
            states.add(*tiles.state_moments(), block)
            changed.add(*tiles.component_moments(), block)
    plus, minus = changed.entropy()
    return LensEntropies(states.entropy(), plus, minus)


class _Tiles:
    """One tile of rows by one tile of the vocabulary."""

    def __init__(self, problem: LensProblem, W_U: Tensor, W_OU: Tensor, tile: slice, block: slice) -> None:
        self.problem = problem
        self.block = block
        self.W_U = W_U
        self.W_OU = W_OU
        self.offsets = problem.offset[tile], problem.final_offset[tile]
        states = problem.states[:, block]
        self.linear = (states.flatten(0, 1) @ W_U).unflatten(0, states.shape[:2])
        self._pairs: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def state_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        last = len(self.linear) - 1
        shifts, pairs = zip(*(self._factors(index, final=index == last) for index in range(last + 1)), strict=True)
        z, s = torch.stack([pair.sum(-1) for pair in pairs]).unbind(-1)
        return torch.stack(shifts), z, s

    def component_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shift, Z and S, each `[plus or minus, layer, component, row]`."""
        problem = self.problem
        layers, heads, _, _ = problem.heads.shape
        components = heads + (problem.mlps is not None)
        out = self.linear.new_empty(3, 2, layers, components, self.linear.shape[1])
        for layer in range(layers):
            logits = torch.bmm(problem.heads[layer, :, self.block], self.W_OU[layer])
            base = problem.head_base[layer]
            out[:, :, layer, :heads] = self._changed(logits, base, layer, slice(0, heads))
            if problem.mlps is not None:
                logits = (problem.mlps[layer, self.block] @ self.W_U)[None]
                base = problem.mlp_base[layer]
                out[:, :, layer, heads:] = self._changed(logits, base, layer, slice(heads, heads + 1))
        return out[0], out[1], out[2]

    def _logits(self, linear: Tensor, gain: Tensor | None, *, final: bool) -> Tensor:
        scaled = linear if gain is None else linear * gain[..., None]
        return cap_logits(scaled + self.offsets[final], self.problem.soft_cap)

    def _factors(self, state: int, *, final: bool) -> tuple[Tensor, Tensor]:
        """Row maximum `[row]` of a state's logits, and `e = exp(l - max)` with `(l - max) e`, `[row, 2, tile]`."""
        key = state, final
        if key not in self._pairs:
            gains = self.problem.gains
            gain = None if gains is None else gains.states[state, self.block]
            logits = self._logits(self.linear[state], gain, final=final)
            shift = logits.amax(-1)
            shifted = logits - shift[:, None]
            weights = shifted.exp()
            self._pairs[key] = shift, torch.stack([weights, shifted.mul_(weights)], dim=1)
        return self._pairs[key]

    def _changed(self, logits: Tensor, base: int, layer: int, which: slice) -> Tensor:
        """Shift, Z and S of `a + d` and `f - d`, `[3, plus or minus, component, row]`, for `d = logits`."""
        plain = self.problem.gains is not None or self.problem.soft_cap > 0
        if plain or float(torch.maximum(logits.amax(), -logits.amin())) > SAFE_RANGE:
            return self._changed_plainly(logits, base, layer, which)
        shift, pair = self._factors(base, final=False)
        final_shift, final_pair = self._factors(len(self.linear) - 1, final=True)
        grown = logits.exp()
        shrunk = grown.reciprocal()
        shifts = torch.stack([shift.expand(len(logits), -1), final_shift.expand(len(logits), -1)])
        plus = _product_moments(grown, logits, pair)
        minus = _product_moments(shrunk, logits.neg_(), final_pair)
        return torch.stack([shifts, *torch.stack([plus, minus]).unbind(1)])

    def _changed_plainly(self, logits: Tensor, base: int, layer: int, which: slice) -> Tensor:
        gains = self.problem.gains
        plus_gain = None if gains is None else gains.plus[layer, which, self.block]
        minus_gain = None if gains is None else gains.minus[layer, which, self.block]
        plus = tile_moments(self._logits(self.linear[base] + logits, plus_gain, final=False))
        minus = tile_moments(self._logits(self.linear[-1] - logits, minus_gain, final=True))
        return torch.stack([torch.stack(pair) for pair in zip(plus, minus, strict=True)])


def _product_moments(
    factor: Float[Tensor, "component row tile"],
    change: Float[Tensor, "component row tile"],
    pair: Float[Tensor, "row 2 tile"],
) -> Float[Tensor, "2 component row"]:
    """Z and S of logits `l + change`, from `factor = exp(change)` and the pair `exp(l)`, `l exp(l)`.

    `factor` is overwritten. The sums along the vocabulary are batched products over rows: with two columns at once
    they run at the speed of a matrix product, where single dot products do not.
    """
    moments = torch.bmm(pair, factor.permute(1, 2, 0))
    moments[:, 1] += torch.bmm(pair, factor.mul_(change).permute(1, 2, 0))[:, 0]
    return moments.permute(1, 2, 0)
