"""`measure_entropy`: how each head and MLP moves the entropy of the prediction, seen through the logit lens.

One forward pass gives every state and every component's output; `ops.lens_entropy` then reduces all the perturbed
predictions over the vocabulary in tiles. GPT-2 small has 25 states and 156 components: about 4 GFLOP a token.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.batches import Block, check_repeatable, describe_data, iterate_blocks
from headscope.analysis.entropy_result import EntropyResult
from headscope.analysis.lens_problem import ComponentMeans, lens_problem
from headscope.analysis.result import RunInfo, check_option
from headscope.analysis.states import LensStates, lens_states, state_labels
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.ops.lens_entropy import lens_entropies

if TYPE_CHECKING:
    from headscope.model.transformer import HookedTransformer

__all__ = ["EntropyAccumulator", "EntropyOptions", "EntropyResult", "measure_entropy"]


@dataclass(frozen=True)
class EntropyOptions:
    """How entropy is measured; see `measure_entropy`."""

    baseline: Literal["zero", "mean"] = "zero"
    scale: Literal["final", "own"] = "final"
    lens_bias: bool = True
    reduce: Literal["mean", "none"] = "mean"
    include_bos: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_option("precision", self.precision, ("float32", "bfloat16"))
        check_option("baseline", self.baseline, ("zero", "mean"))
        check_option("scale", self.scale, ("final", "own"))
        check_option("reduce", self.reduce, ("mean", "none"))


def measure_entropy(
    model: "HookedTransformer",
    data: Any,
    *,
    baseline: Literal["zero", "mean"] = "zero",
    scale: Literal["final", "own"] = "final",
    lens_bias: bool = True,
    reduce: Literal["mean", "none"] = "mean",
    attention_mask: Tensor | None = None,
    include_bos: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    describe: str | None = None,
    progress: bool = True,
) -> EntropyResult:
    """How each head and each MLP moves the entropy of the next-token prediction.

    The logit lens reads a state `x` as `norm_final(x) W_U + b_U`. A head's output is `z W_O` of the model as it
    stands: under the default weight processing biases sit in `b_O`, which belongs to no head, so numbers against the
    zero baseline depend on the processing, and the result names it.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`). With `baseline="mean"` it is gone through twice.
        baseline: `"zero"` takes a component whole; `"mean"` takes it minus its mean over the data.
        scale: The final norm's scale: `"final"` freezes it to that of the real final state, `"own"` uses that of the
            state being read. With `"own"`, a component is taken from the final state before its norm.
        lens_bias: Use `b_U` for every state; `False` leaves it out for all but the final logits.
        reduce: `"mean"` over positions, or `"none"` to keep batch and position.
        attention_mask: 1 for real tokens, for a tensor of tokens; default: found from the padding token.
        include_bos: Let BOS positions count.
        precision: `"bfloat16"` rounds the heads' logits to 8 bits, which is faster on CPUs with bfloat16 arithmetic.
            Everything else stays in float32 (or the model's own type, if that is wider).
        describe: What the data is, for titles.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: for an unknown option, a wrong shape, tokens out of range, or no position that counts.
        NotFiniteError: if the model's states or logits are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> entropy = measure_entropy(model, tokens, progress=False)
        >>> entropy.diff.shape[0] == model.cfg.n_layers, len(entropy.top(3))
        (True, 3)
    """
    options = EntropyOptions(baseline, scale, lens_bias, reduce, include_bos, precision)
    means = None
    if baseline == "mean":
        check_repeatable(data)
        blocks = iterate_blocks(
            model, data, attention_mask=attention_mask, include_bos=include_bos, progress=progress, description="means"
        )
        means = component_means(model, blocks)
    accumulator = EntropyAccumulator(model, options, means, describe or describe_data(data))
    for block in iterate_blocks(
        model, data, attention_mask=attention_mask, include_bos=include_bos, progress=progress, description="entropy"
    ):
        accumulator.update(block)
    return accumulator.result()


def component_means(model: "HookedTransformer", blocks: Any) -> ComponentMeans:
    """Mean output of every component over the positions that count, in float64 sums."""
    z_sum = mlp_sum = None
    n = 0
    for block in blocks:
        states = lens_states(model, block)
        n += states.n
        z = states.z.double().sum(2)
        z_sum = z if z_sum is None else z_sum + z
        if states.mlp is not None:
            mlp = states.mlp.double().sum(1)
            mlp_sum = mlp if mlp_sum is None else mlp_sum + mlp
    if z_sum is None or n == 0:
        raise _nothing_counts()
    kind = torch.promote_types(model.W_U.dtype, torch.float32)
    return ComponentMeans((z_sum / n).to(kind), None if mlp_sum is None else (mlp_sum / n).to(kind))


class EntropyAccumulator:
    """Entropy over a stream of blocks.

    Args:
        model: The model.
        options: How to measure.
        means: Component means, for `baseline="mean"`.
        data: What the data is, for titles.
    """

    def __init__(
        self, model: "HookedTransformer", options: EntropyOptions, means: ComponentMeans | None, data: str
    ) -> None:
        self.model = model
        self.options = options
        self.means = means
        self.data = data
        self.n_sequences = 0
        self.n_positions = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, block: Block) -> None:
        """Measure a block and add it in."""
        states = lens_states(self.model, block)
        self.n_sequences += len(block.tokens)
        self.n_positions += states.n
        if states.n == 0:
            found = self._empty(states)
        else:
            found = self._measure(states)
        if self.options.reduce == "none":
            self._kept.append(tuple(_spread(values, block.counted) for values in found))  # type: ignore[arg-type]
        else:
            resid, diff, marginal = (values.sum(-1) for values in found)
            self._sums = _added(self._sums, (resid, diff, marginal))

    def merge(self, other: Self) -> None:
        """Add what another accumulator of the same run has seen, as if it came after."""
        self.n_sequences += other.n_sequences
        self.n_positions += other.n_positions
        self._kept += other._kept
        if other._sums is not None:
            self._sums = _added(self._sums, other._sums)

    def state(self) -> dict[str, Any]:
        """All that was accumulated, as tensors and numbers."""
        return {
            "n_sequences": self.n_sequences,
            "n_positions": self.n_positions,
            "sums": self._sums,
            "kept": list(self._kept),
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        model: "HookedTransformer",
        options: EntropyOptions,
        means: ComponentMeans | None,
        data: str,
    ) -> Self:
        """Go on from a `state()`."""
        accumulator = cls(model, options, means, data)
        accumulator.n_sequences, accumulator.n_positions = state["n_sequences"], state["n_positions"]
        accumulator._sums, accumulator._kept = state["sums"], list(state["kept"])
        return accumulator

    def result(self) -> EntropyResult:
        """What was measured so far.

        Raises:
            InvalidInputError: if no position counted.
        """
        if self.n_positions == 0:
            raise _nothing_counts()
        cfg = self.model.cfg
        if self.options.reduce == "none":
            resid, diff, marginal = (_joined(parts) for parts in zip(*self._kept, strict=True))
        else:
            assert self._sums is not None
            resid, diff, marginal = (sums / self.n_positions for sums in self._sums)
        options = {
            name: getattr(self.options, name) for name in ("baseline", "scale", "lens_bias", "include_bos", "precision")
        }
        return EntropyResult(
            info=RunInfo(
                cfg.model_name, self.model.weight_processing, self.data, self.n_sequences, self.n_positions, options
            ),
            resid=resid.float(),
            diff=diff.float(),
            marginal=marginal.float(),
            state_labels=state_labels(self.model),
            component_labels=(*map(str, range(cfg.n_heads)), *([] if cfg.attn_only else ["MLP"])),
        )

    def _measure(self, states: LensStates) -> tuple[Tensor, Tensor, Tensor]:
        problem = lens_problem(
            self.model, states, self.means, scale=self.options.scale, lens_bias=self.options.lens_bias
        )
        entropies = lens_entropies(problem, precision=self.options.precision)
        if not all(bool(found.isfinite().all()) for found in (entropies.states, entropies.plus, entropies.minus)):
            raise NotFiniteError(
                "the logits hold NaN or infinite values, though the residual stream is finite. Check the weights of "
                "the final norm and the unembedding."
            )
        base = [problem.head_base] + [problem.mlp_base] * (problem.mlps is not None)
        n_heads = problem.heads.shape[1]
        widths = [n_heads, 1]
        before = torch.cat(
            [
                entropies.states[list(at)][:, None].expand(-1, width, -1)
                for at, width in zip(base, widths, strict=False)
            ],
            dim=1,
        )
        return entropies.states, entropies.plus - before, entropies.states[-1] - entropies.minus

    def _empty(self, states: LensStates) -> tuple[Tensor, Tensor, Tensor]:
        layers, heads = states.z.shape[:2]
        components = heads + (states.mlp is not None)
        nothing = states.resid.new_zeros(0, dtype=torch.float64)
        return (
            nothing.expand(len(states.resid), 0),
            nothing.expand(layers, components, 0),
            nothing.expand(layers, components, 0),
        )


def _added(
    sums: tuple[Tensor, Tensor, Tensor] | None, more: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    if sums is None:
        return more
    return sums[0] + more[0], sums[1] + more[1], sums[2] + more[2]


def _spread(values: Float[Tensor, "*lead row"], counted: Tensor) -> Float[Tensor, "*lead batch pos"]:
    out = values.new_full((*values.shape[:-1], *counted.shape), torch.nan, dtype=torch.float32)
    out[..., counted] = values.float()
    return out


def _joined(parts: tuple[Tensor, ...]) -> Float[Tensor, "*lead batch pos"]:
    longest = max(part.shape[-1] for part in parts)
    filled = [torch.nn.functional.pad(part, (0, longest - part.shape[-1]), value=torch.nan) for part in parts]
    return torch.cat(filled, dim=-2)


def _nothing_counts() -> InvalidInputError:
    return InvalidInputError(
        "no position counts: every token is padding or BOS. Give longer rows, or include_bos=True."
    )
