"""Entropy of many perturbed predictions at once: each component added to a state, and removed from the final one.

For every state `r` with logits `a`, the final logits `f`, and every component with logits `d`, the entropies of
`softmax(a)`, `softmax(a + d)` and `softmax(f - d)` are reduced over the vocabulary tile by tile. It is fast because:

- a head's logits have rank d_head: `z (W_O W_U)`, with `W_O W_U` of a vocabulary tile made once for all rows;
- in a plain residual stream only the states before each layer need a product with `W_U`: the logits between attention
  and MLP are these plus the heads' logits, and an MLP's logits are a difference of two states' (`Chain`);
- `exp(a)` and `exp(f)` are made once per state, and `exp(d)` and its reciprocal then serve the sums of both changes
  (`ops.kernels`: fused loops on a CPU, PyTorch's operations elsewhere);
- a tile of rows by a tile of the vocabulary stays in a core's cache, in buffers that are reused, and each thread
  takes tiles of its own.

Under a soft cap, and when each state has a scale of its own, logits are formed first: no factors of a state serve.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.devices import Budget
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.head_products import HeadProducts
from headscope.ops.kernels.interface import BITS, Factors, Kernels, Precision, RightFactors, formed_logits
from headscope.ops.kernels.tile_weights import head_factors
from headscope.ops.kernels.torch_kernels import within
from headscope.ops.lens_problem import CHAIN_RANGE, LensProblem, Steps, is_chained, runs_of, with_base
from headscope.ops.parallel import RowChunks
from headscope.ops.vocab import RunningMoments, token_mean, vocab_tiles

__all__ = ["LensEntropies", "lens_entropies"]


@dataclass(frozen=True)
class LensEntropies:
    """Entropies in nats, float64.

    Attributes:
        states: Of each state.
        plus: Of the state each component adds to, with it added.
        minus: Of the final state, with the component removed. Both are NaN for components that a layer lacks.
    """

    states: Float[Tensor, "state row"]
    plus: Float[Tensor, "layer component row"]
    minus: Float[Tensor, "layer component row"]


def lens_entropies(
    problem: LensProblem,
    *,
    precision: Precision = "float32",
    watch: Callable[[Sequence[slice]], Iterable[slice]] = iter,
) -> LensEntropies:
    """Solve a `LensProblem`.

    Cost: with a chain `2 * d_vocab * (layers + 1) * d_model` operations a row for the states (without, for all states
    and MLPs), `2 * d_vocab * layers * heads * d_head` for the heads, one exponential for each state and component and
    token, and `2 * d_vocab * layers * heads * d_head * d_model` once for `W_O W_U`. Memory: `W_O W_U` of a vocabulary
    tile, and a few tiles of rows for each thread.

    Args:
        problem: What to measure.
        precision: `"bfloat16"` computes the heads' products in bfloat16. Their logits are then rounded to 8 bits, one
            of 4 by up to 0.008: entropies of single rows are off by about a hundredth of a nat, means by less. A
            processor without instructions for it multiplies the rounded factors in float32, and keeps the logits so.
            `"tf32"` rounds the two factors to 11 bits, `"bfloat16x3"` to two bfloat16 each, of 16 bits, and leaves the
            product of the two rests out: they are off by 2^-11 and 2^-16 of what the factors' sizes multiply to.
            The triton kernels alone have these two.
        watch: Gives the tiles of the vocabulary it is handed, as a progress bar does.

    Raises:
        InvalidInputError: if the kernels at hand do not have this precision.
    """
    n_states, rows = problem.states.shape[:2]
    device = problem.states.device
    states = RunningMoments((n_states, rows), device)
    # [plus or minus, layer, component, row]
    changed = RunningMoments((2, problem.n_layers, problem.n_components, rows), device)
    mean = token_mean(problem.W_U, problem.soft_cap)  # where logits span less, more tiles can take the fast form
    d_vocab = problem.W_U.shape[1]
    budget = Budget.of(device)
    schedule = _Launches if budget.is_accelerators else _Tile
    chained = budget.is_accelerators and is_chained(problem, mean)
    n_products = n_states // 2 + 1 if chained and problem.is_sequential else n_states
    size = budget.tile_of(
        rows, d_vocab, per_row=max(n_products, problem.n_components), shared=problem.W_O[..., 0].numel()
    )
    heads = HeadProducts(problem.heads, problem.W_O, torch.bfloat16 if precision == "bfloat16" else None)
    kernels_here = kernels_for(device, problem.states.dtype)
    if precision not in kernels_here.precisions:
        raise InvalidInputError(
            f"precision={precision!r} needs the triton kernels (a GPU, float32, and pip install 'headscope[gpu]'); "
            f"the {kernels_here.name} kernels that are used here have {', '.join(map(repr, kernels_here.precisions))}."
        )
    with RowChunks(rows, size.rows, partial(kernels_here, precision), device) as chunks:
        for tile in watch(list(vocab_tiles(d_vocab, size.vocab))):
            weights = _TileWeights(problem, heads, kernels_here, mean, tile, chained=chained)
            weights.fill(chunks)

            def reduce(chunk: slice, kernels: Kernels, weights: _TileWeights = weights) -> None:
                sums = schedule(problem, weights, chunk, kernels)
                sums.run()
                for moments, (shift, z, s) in ((states, sums.states), (changed, sums.changed)):
                    moments.add(shift / BITS, z, s / BITS, chunk)

            chunks.run(reduce)
            del weights, reduce  # before the next tile's are made
    plus, minus = changed.entropy()
    return LensEntropies(states.entropy(), plus, minus)


class _TileWeights:
    """Products of weights that all rows share, for one vocabulary tile and logits in bits.

    Attributes:
        W_U: The tile of the unembedding, less its mean.
        unembed: The same as the right factor of products.
        right: Each layer's right factors of its heads' products.
        offsets: Those of every state but the final one, and the final one's.
        rests: Logits of what each layer adds besides its heads and its MLP, where states are a chain.
    """

    W_U: Float[Tensor, "d_model tile"]
    unembed: RightFactors
    right: list[RightFactors]
    rests: tuple[Float[Tensor, "layer tile"], Float[Tensor, "layer tile"]] | None

    def __init__(
        self,
        problem: LensProblem,
        heads: HeadProducts,
        kernels: type[Kernels],
        mean: Float[Tensor, "d_model 1"],
        tile: slice,
        *,
        chained: bool = False,
    ) -> None:
        self.problem, self.heads, self.kernels, self.mean, self.tile = problem, heads, kernels, mean, tile
        self.chained = chained

    def fill(self, chunks: RowChunks[Kernels]) -> None:
        """Make all of them, on the threads that will read them."""
        chunks.each([self.tile], self._unembedding)
        self.right = head_factors(self.heads, self.W_U, self.kernels, chunks)

    def _unembedding(self, tile: slice) -> None:
        problem, chain = self.problem, self.problem.chain
        self.W_U = (problem.W_U[:, tile] - self.mean).mul_(BITS)
        self.unembed = self.kernels.prepared(self.W_U)
        self.offsets = problem.offset[tile] * BITS, problem.final_offset[tile] * BITS
        self.rests = None if chain is None else (chain.attn_rest @ self.W_U, chain.mlp_rest @ self.W_U)


class _Tile:
    """Shift, Z and S of every state and change, in one tile of rows by vocabulary, in bits."""

    def __init__(self, problem: LensProblem, weights: _TileWeights, chunk: slice, kernels: Kernels) -> None:
        self.problem = problem
        self.weights = weights
        self.chunk = chunk
        self.kernels = kernels
        n_states, n_rows = len(problem.states), chunk.stop - chunk.start
        self.shape = n_rows, weights.W_U.shape[1]
        like = problem.states
        # Neither gains nor a cap: the logits of a sum are the sum of its parts' logits.
        self.is_plain = problem.gains is None and problem.soft_cap == 0
        self.states = like.new_empty(3, n_states, n_rows)
        self.changed = like.new_full((3, 2, problem.n_layers, problem.n_components, n_rows), torch.nan)

    def run(self) -> None:
        problem = self.problem
        if not problem.is_uniform:
            self._run_by_state()
            return
        layers, n_heads = problem.heads.shape[:2]
        last = len(problem.states) - 1
        final_linear = self._product(last, "final")
        final = self._state(last, final_linear, "final", final=True)
        before = self._product(0, "linear0") if last > 0 else final_linear
        is_small = self._is_small(before)
        starts = [base for base in problem.head_base if base is not None]  # all, in a uniform problem
        for layer in range(layers):
            base = self._state(starts[layer], before, "base")
            end = starts[layer + 1] if layer + 1 < layers else last
            after = final_linear if end == last else self._product(end, f"linear{(layer + 1) % 2}")
            is_small, was_small = self._is_small(after), is_small
            total = self.kernels.buffer("middle", self.shape, before) if is_small and was_small else None
            self._heads(layer, layer, before, base, final_linear, final, total)
            if problem.mlps is not None:
                between = problem.mlp_base[layer]
                assert between is not None
                middle, mlp = self._mlp(layer, between, total, before, after)
                if between != starts[layer]:
                    base = self._state(between, middle, "base")
                self._change(mlp, middle, base, final_linear, final, (layer, slice(n_heads, n_heads + 1)))
            before = after

    def _run_by_state(self) -> None:
        """Do the same where layers differ: each state with all components that add to it."""
        problem, last = self.problem, len(self.problem.states) - 1
        final_linear = self._product(last, "final")
        final = self._state(last, final_linear, "final", final=True)
        heads, whole = (
            list(enumerate(with_base(problem.head_base))),
            list(enumerate(problem.whole, problem.heads.shape[1])),
        )
        for index in range(last):
            linear = self._product(index, "linear0")
            state = self._state(index, linear, "base")
            for at, (layer, base) in heads:
                if base == index:
                    self._heads(at, layer, linear, state, final_linear, final)
            for number, (bases, outputs) in whole:
                for at, (layer, base) in enumerate(with_base(bases)):
                    if base == index:
                        added = self._whole(outputs, at)
                        self._change(added, linear, state, final_linear, final, (layer, slice(number, number + 1)))

    def _whole(self, outputs: Tensor | Steps, at: int) -> Float[Tensor, "1 row tile"]:
        """Linear part of the logits of one component's whole output."""
        out = self.kernels.buffer("mlp", self.shape, self.problem.states)
        return self.kernels.product(outputs[at, self.chunk], self.weights.unembed, out)[None]

    def _product(self, state: int, name: str) -> Float[Tensor, "row tile"]:
        """Linear part of a state's logits."""
        out = self.kernels.buffer(name, self.shape, self.problem.states)
        return self.kernels.product(self.problem.states[state, self.chunk], self.weights.unembed, out)

    def _heads(
        self,
        at: int,
        layer: int,
        linear: Float[Tensor, "row tile"],
        base: Factors,
        final_linear: Float[Tensor, "row tile"],
        final: Factors,
        total: Float[Tensor, "row tile"] | None = None,
    ) -> None:
        """Note the changes of a layer's heads, the `at`th of those with heads; `total` becomes their sum."""
        heads, right = self.weights.heads.left[at, :, self.chunk], self.weights.right[at]
        where = layer, slice(0, self.problem.heads.shape[1])
        if self.is_plain:
            self.kernels.head_changes(heads, right, base, final, self.changed[:, :, *where], total)
            return
        added = self.kernels.head_logits(heads, right, linear.dtype)
        if total is not None:
            torch.sum(added, 0, out=total)
        self._change(added, linear, base, final_linear, final, where)

    def _is_small(self, linear: Float[Tensor, "row tile"]) -> bool:
        """Return True if other logits may follow from these by addition, where states are a chain."""
        chained = self.problem.chain is not None and self.problem.mlps is not None
        return chained and within(linear, CHAIN_RANGE * BITS)

    def _mlp(
        self, layer: int, between: int, total: Tensor | None, before: Tensor, after: Tensor
    ) -> tuple[Float[Tensor, "row tile"], Float[Tensor, "1 row tile"]]:
        """Linear parts of the logits of the state `between` that an MLP reads, and of the MLP's own output.

        With the heads' `total`, both by addition: the state between is that before plus the heads, the MLP the
        difference to the state after. That replaces two products of 2 * d_model operations per logit.
        """
        problem = self.problem
        assert problem.mlps is not None
        sequential = between != problem.head_base[layer]
        if total is None:
            middle = self._product(between, "middle") if sequential else before
            return middle, self._whole(problem.mlps, layer)
        assert problem.chain is not None and self.weights.rests is not None
        rests = tuple(rest[layer] for rest in self.weights.rests)
        mlp = self.kernels.buffer("mlp", self.shape, before)
        self.kernels.follow(total, before, after, problem.chain.by[self.chunk], rests, mlp)
        return (total if sequential else before), mlp[None]

    def _logits(self, linear: Tensor, gain: Tensor | None, *, final: bool) -> Tensor:
        return formed_logits(linear, gain, self.weights.offsets[final], self.problem.soft_cap * BITS)

    def _state(self, index: int, linear: Tensor, name: str, *, final: bool = False) -> Factors:
        """Return a state's factors, and note its own moments on the way."""
        gains = self.problem.gains
        if self.is_plain:
            state = self.kernels.factors(linear, name, self.weights.offsets[final])
        else:
            logits = self._logits(linear, None if gains is None else gains.states[index, self.chunk], final=final)
            state = self.kernels.factors(logits, name)
        for at, moment in enumerate((state.shift, state.z, state.s)):
            self.states[at, index] = moment
        return state

    def _change(
        self,
        added: Float[Tensor, "component row tile"],
        linear: Float[Tensor, "*component row tile"],
        base: Factors,
        final_linear: Float[Tensor, "row tile"],
        final: Factors,
        where: tuple[int | slice, int | slice],
    ) -> None:
        """Note Shift, Z and S of `a + d` and `f - d`, for the logits `d` of the components at `[layer, component]`."""
        out = self.changed[:, :, *where]
        if self.is_plain:
            self.kernels.changes(added, base, final, out)
            return
        gains, signs = self.problem.gains, (1, -1)
        of_gains = (None, None) if gains is None else (gains.plus[where], gains.minus[where])
        for sign, gain, state, offset, sums in zip(
            signs, of_gains, (linear, final_linear), self.weights.offsets, out.unbind(1), strict=True
        ):
            gain = None if gain is None else gain[:, self.chunk]
            self.kernels.formed(added, sign, state, offset, self.problem.soft_cap * BITS, gain, sums)


class _Launches(_Tile):
    """The same on an accelerator, where tiles are large: all of a kind is one launch, and no value is awaited."""

    def run(self) -> None:
        problem, kernels, weights = self.problem, self.kernels, self.weights
        rest = slice(0, len(problem.states) - 1)  # all but the final state
        # With a chain, states between attention and MLP follow from those before.
        stride = 2 if weights.chained and problem.is_sequential else 1
        linear = kernels.buffer("linear", (len(problem.states[::stride]), *self.shape), problem.states)
        self._into(problem.states[::stride], linear)
        final_linear, before = linear[-1], linear[:-1]
        final = self._note(slice(len(problem.states) - 1, None), linear[-1:], "final", final=True)[0]
        base = self._note(rest if stride == 1 else slice(0, rest.stop, stride), before, "base")
        totals = kernels.buffer("totals", before.shape, linear) if weights.chained else None
        n_heads = problem.heads.shape[1]
        for at, (layer, start) in enumerate(with_base(problem.head_base)):
            state, total = start // stride, None if totals is None else totals[at]
            self._heads(at, layer, before[state], base[state], final_linear, final, total)
        if totals is not None:
            self._chained_mlps(totals, linear, base, final, stride)
            return
        for number, (bases, outputs) in enumerate(problem.whole, n_heads):
            for layers, written, states in runs_of(bases):
                assert isinstance(outputs, Tensor)
                added = kernels.buffer("heads", (written.stop - written.start, *self.shape), linear)
                self._into(outputs[written], added)
                self._change(added, before[states], base[states], final_linear, final, (layers, number))

    def _chained_mlps(self, totals: Tensor, linear: Tensor, base: Factors, final: Factors, stride: int) -> None:
        """Do all MLPs, from the sums of each layer's heads and the logits of the states around it: see `_mlp`."""
        chain = self.problem.chain
        assert chain is not None and self.weights.rests is not None
        middle, mlps = totals, self.kernels.buffer("heads", totals.shape, totals)
        rests = tuple(rest[:, None] for rest in self.weights.rests)
        self.kernels.follow(totals, linear[:-1], linear[1:], chain.by[self.chunk], rests, mlps)
        if stride == 2:
            base = self._note(slice(1, None, 2), middle, "middle")
        else:
            middle = linear[:-1]
        self._change(mlps, middle, base, linear[-1], final, (slice(None), self.problem.heads.shape[1]))

    def _into(self, rows: Float[Tensor, "each all_rows d_model"], out: Float[Tensor, "each row tile"]) -> None:
        """Write the linear part of the logits of some states or outputs, in one product."""
        torch.mm(rows[:, self.chunk].reshape(-1, rows.shape[-1]), self.weights.W_U, out=out.view(-1, out.shape[-1]))

    def _note(
        self, states: slice, linear: Float[Tensor, "each row tile"], name: str, *, final: bool = False
    ) -> Factors:
        """Return the factors of some states, and note their own moments on the way."""
        gains = self.problem.gains
        gain = None if gains is None else gains.states[states, self.chunk]
        factors = self.kernels.factors(self._logits(linear, gain, final=final), name)
        torch.stack((factors.shift, factors.z, factors.s), out=self.states[:, states])
        return factors
