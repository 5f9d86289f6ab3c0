"""States, components and weights whose perturbed predictions `ops.lens_entropy` reduces over the vocabulary."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["CHAIN_RANGE", "Chain", "Gains", "LensProblem", "Steps", "is_chained", "runs_of", "with_base"]

# Larger logits are not chained (added and subtracted), so that errors stay small: float32 rounds 300 by 2e-5.
CHAIN_RANGE = 300.0


@dataclass(frozen=True)
class Gains:
    """Factors on the logits' linear part, one for each row, when a state's norm has a scale of its own.

    Attributes:
        states: For each state.
        plus: For each component added to its state.
        minus: For each component removed from the final state.
    """

    states: Float[Tensor, "state row"]
    plus: Float[Tensor, "layer component row"]
    minus: Float[Tensor, "layer component row"]


@dataclass(frozen=True)
class Chain:
    """Residual stream in which each layer adds its heads, its MLP and a fixed vector for each, and nothing else.

    The MLP reads the state before the layer + all its heads + `by * attn_rest`; the state before the next layer is
    that + the MLP + `by * mlp_rest`. (In parallel blocks only the whole sum is a state.)

    Attributes:
        attn_rest: Output bias, plus the heads' means where heads are measured as deviations from them.
        mlp_rest: Mean of the MLP where it is measured as a deviation from it.
        by: Factor on both: one over the frozen scale.
    """

    attn_rest: Float[Tensor, "layer d_model"]
    mlp_rest: Float[Tensor, "layer d_model"]
    by: Float[Tensor, " row"]


@dataclass(frozen=True)
class Steps:
    """Outputs of a chain's MLPs as what each one's step adds to its state, made when asked for: not held beside states.

    Attributes:
        states: Of a chain whose MLPs read states of their own, two for each layer and the final one.
        chain: The chain.
    """

    states: Float[Tensor, "state row d_model"]
    chain: Chain

    def __getitem__(self, at: tuple[int, slice]) -> Float[Tensor, "some_row d_model"]:
        """Return some rows of a layer's output."""
        layer, rows = at
        step = self.states[2 * layer + 2, rows] - self.states[2 * layer + 1, rows]
        return step.addcmul_(self.chain.by[rows, None], self.chain.mlp_rest[layer], value=-1)


@dataclass(frozen=True)
class LensProblem:
    """States, components and weights for one batch of positions (rows).

    Attributes:
        states: Intermediate states, the final one last; `logits = gain * (states @ W_U) + offset`.
        head_base: Index of the state that each layer's heads add to; `None` for a layer without.
        mlp_base: The same for each layer's MLP; empty without MLPs.
        heads: Head outputs before `W_O`, of the layers that have heads.
        W_O: Output weights of the heads.
        mlps: MLP outputs of the layers that have one, if there are MLPs; `Steps` serve on a CPU.
        W_U: Unembedding.
        offset: Added to the logits of every state but the final one, and of states with a component added.
        final_offset: Added to the final logits, with and without a component.
        soft_cap: `c` of a soft cap on all logits; 0 for none.
        gains: `None` when the rows are already divided by their (frozen) scale.
        chain: How each state follows from the one before, if it does; `None` computes every state's logits by itself.
        mixer_base: As `mlp_base`, for mixers, which come between heads and MLP among a layer's components.
        mixers: Mixer outputs of the layers that have one, if there are mixers.
    """

    states: Float[Tensor, "state row d_model"]
    head_base: tuple[int | None, ...]
    mlp_base: tuple[int | None, ...]
    heads: Float[Tensor, "attn_layer head row d_head"]
    W_O: Float[Tensor, "attn_layer head d_head d_model"]
    mlps: Float[Tensor, "mlp_layer row d_model"] | Steps | None
    W_U: Float[Tensor, "d_model d_vocab"]
    offset: Float[Tensor, " d_vocab"]
    final_offset: Float[Tensor, " d_vocab"]
    soft_cap: float = 0.0
    gains: Gains | None = None
    chain: Chain | None = None
    mixer_base: tuple[int | None, ...] = ()
    mixers: Float[Tensor, "mixer_layer row d_model"] | None = None

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.head_base)

    @property
    def whole(self) -> list[tuple[tuple[int | None, ...], Tensor | Steps]]:
        """The bases and the outputs of components as wide as the stream, in order: mixers, MLPs."""
        kinds = ((self.mixer_base, self.mixers), (self.mlp_base, self.mlps))
        return [(base, outputs) for base, outputs in kinds if outputs is not None]

    @property
    def n_components(self) -> int:
        """Number of components in a layer: its heads, its mixer and its MLP."""
        return self.heads.shape[1] + len(self.whole)

    @property
    def bases(self) -> Int[Tensor, "layer component"]:
        """Index of the state that each component adds to; -1 for those that a layer lacks."""
        columns = [self.head_base] * self.heads.shape[1] + [base for base, _ in self.whole]
        return torch.tensor([[-1 if base is None else base for base in column] for column in columns]).T

    @property
    def is_sequential(self) -> bool:
        """True if MLPs read the state behind the heads of their layer."""
        return self.mlps is not None and self.mlp_base != self.head_base

    @property
    def is_uniform(self) -> bool:
        """True if all layers have the same parts, none of them a mixer."""
        return self.mixers is None and None not in (*self.head_base, *self.mlp_base)


def with_base(bases: tuple[int | None, ...]) -> list[tuple[int, int]]:
    """Return the layers that have a part, with the states it adds to."""
    return [(layer, base) for layer, base in enumerate(bases) if base is not None]


def runs_of(bases: tuple[int | None, ...]) -> list[tuple[slice, slice, slice]]:
    """Cut the layers that have a part into runs of neighbors: slices of layers, of outputs, and of states added to."""
    runs: list[list[tuple[int, int, int]]] = []
    for at, (layer, base) in enumerate(with_base(bases)):
        last = runs[-1] if runs else []
        step = last[1][2] - last[0][2] if len(last) > 1 else None
        if not last or last[-1][0] + 1 != layer or step not in (None, base - last[-1][2]) or base <= last[-1][2]:
            runs.append([])
        runs[-1].append((layer, at, base))
    return [
        (
            slice(run[0][0], run[-1][0] + 1),
            slice(run[0][1], run[-1][1] + 1),
            slice(run[0][2], run[-1][2] + 1, run[1][2] - run[0][2] if len(run) > 1 else 1),
        )
        for run in runs
    ]


def is_chained(problem: LensProblem, mean: Tensor) -> bool:
    """Return whether logits may be added and subtracted for states and MLPs, in all tiles: they cannot be larger.

    A row and a column make no logit above the product of their lengths, so nobody looks at logits to tell.
    """
    last, chain = len(problem.states) - 1, problem.chain
    if chain is None or problem.mlps is None or not problem.states.numel():
        return False
    if problem.head_base != tuple(range(0, last, 2 if problem.is_sequential else 1)):
        return False
    # |w - m|^2 without a copy of W_U.
    columns = torch.linalg.vector_norm(problem.W_U, dim=0).square() - 2 * (mean[:, 0] @ problem.W_U)
    columns += mean.square().sum()
    longest = torch.linalg.vector_norm(problem.states, dim=-1).amax() * columns.clamp_(min=0).amax().sqrt()
    return bool(longest <= CHAIN_RANGE)
