"""`measure_entropy`: how each head and MLP moves the entropy of the prediction, seen through the logit lens.

One forward pass gives every state and every component's output; `ops.lens_entropy` then reduces all the perturbed
predictions over the vocabulary in tiles. GPT-2 small has 25 states and 156 components: about 2 GFLOP a token.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.batches import Batch, check_repeatable
from headscope.analysis.core.result import RunInfo, check_option
from headscope.analysis.lens.entropy_problem import lens_problem
from headscope.analysis.lens.entropy_result import EntropyResult
from headscope.analysis.recording.component_means import ComponentMeans, MeansAccumulator, added_sums, nothing_counts
from headscope.analysis.recording.lens_states import LensStates, lens_states, state_labels
from headscope.analysis.storage.passes import Passes
from headscope.analysis.storage.run_folder import join_rows
from headscope.errors import NotFiniteError
from headscope.model.transformer import HookedTransformer
from headscope.ops.lens_entropy import lens_entropies

__all__ = ["EntropyAccumulator", "EntropyOptions", "EntropyResult", "measure_entropy"]

_VALUES = ("resid", "diff", "marginal")


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
    model: HookedTransformer,
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
    out: str | Path | None = None,
    resume: bool = False,
    flush_every: int = 20,
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
        out: A folder to keep the run in, so that it can be stopped at any moment and resumed; the result is written
            there as `result.safetensors`. With `reduce="none"` what is measured goes to the disk as it comes, and is
            read into memory once, at the end: 4 bytes for each state and twice for each component (1.3 kB for
            GPT-2 small) a token.
        resume: Go on with the run in `out`; if there is none, or nothing of it yet, start one. It must be the same
            model, data, batches and options (hooks on the model are not compared). The result is the uninterrupted
            run's to the last bit. The data is gone through from its start, and what was measured is skipped.
        flush_every: Blocks (of about 2,000 tokens) between two writes to `out`.

    Raises:
        InvalidInputError: for an unknown option, a wrong shape, tokens out of range, no position that counts, or an
            `out` that holds another run.
        NotFiniteError: if the model's states or logits are not finite.
        StorageError: if `out` cannot be written, as on a full disk. What was written before stands.
        CheckpointError: if what `out` holds is damaged.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> entropy = measure_entropy(model, tokens, progress=False)
        >>> entropy.diff.shape[0] == model.cfg.n_layers, len(entropy.top(3))
        (True, 3)
    """
    options = EntropyOptions(baseline, scale, lens_bias, reduce, include_bos, precision)
    if baseline == "mean":
        check_repeatable(data, "baseline='mean'")
    passes = Passes(
        "entropy",
        model,
        data,
        attention_mask=attention_mask,
        include_bos=include_bos,
        progress=progress,
        describe=describe,
        options=asdict(options),
        out=out,
        resume=resume,
        flush_every=flush_every,
    )
    finished = passes.finished(EntropyResult)
    if finished is not None:
        return finished
    means, means_stage = None, None
    if baseline == "mean":
        sums, means_stage = passes.gather("means", lambda state: MeansAccumulator.of_all(state, model))
        means = sums.result()
    accumulator, stage = passes.gather(
        "entropy",
        lambda state: EntropyAccumulator.from_state(state, model, options, means, passes.described),
        means_stage,
    )
    return passes.keep(accumulator.result(None if stage is None else stage.rows()))


class EntropyAccumulator:
    """Entropy over a stream of batches.

    Args:
        model: The model.
        options: How to measure.
        means: Component means, for `baseline="mean"`.
        data: What the data is, for titles.
    """

    def __init__(
        self, model: HookedTransformer, options: EntropyOptions, means: ComponentMeans | None, data: str
    ) -> None:
        self.model = model
        self.options = options
        self.means = means
        self.data = data
        self.n_sequences = 0
        self.n_positions = 0
        self._sums: dict[str, Tensor] = {}
        self._kept: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Measure a batch and add it in."""
        states = lens_states(self.model, batch)
        found = dict(zip(_VALUES, self._empty(states) if states.n == 0 else self._measure(states), strict=True))
        if self.options.reduce == "none":
            self._kept.append({name: _spread(values, batch.counted) for name, values in found.items()})
        else:
            self._sums = added_sums(self._sums, {name: values.sum(-1) for name, values in found.items()})
        self.n_sequences += len(batch.tokens)
        self.n_positions += int(batch.counted.sum())

    def merge(self, other: Self) -> None:
        """Add what another accumulator of the same run has seen, as if it came after."""
        self.n_sequences += other.n_sequences
        self.n_positions += other.n_positions
        self._kept += other._kept
        self._sums = added_sums(self._sums, other._sums)

    def state(self) -> dict[str, Any]:
        """All that was accumulated and not taken, flat: tensors, and numbers that JSON keeps."""
        rows = {f"rows.{name}": values for name, values in join_rows(self._kept).items()}
        return {"n_sequences": self.n_sequences, "n_positions": self.n_positions, **self._sums, **rows}

    def take_rows(self) -> dict[str, Float[Tensor, "*lead batch pos"]]:
        """Hand over the entropies per position (`reduce="none"`) since the last time, and forget them."""
        rows, self._kept = join_rows(self._kept), []
        return rows

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        model: HookedTransformer,
        options: EntropyOptions,
        means: ComponentMeans | None,
        data: str,
    ) -> Self:
        """Go on from a `state()`; from an empty one, start."""
        accumulator = cls(model, options, means, data)
        accumulator.n_sequences, accumulator.n_positions = state.get("n_sequences", 0), state.get("n_positions", 0)
        found = {name: values.to(model.W_U.device) for name, values in state.items() if isinstance(values, Tensor)}
        accumulator._sums = {name: found[name] for name in _VALUES if name in found}
        rows = {name: found[f"rows.{name}"] for name in _VALUES if f"rows.{name}" in found}
        accumulator._kept = [rows] if rows else []
        return accumulator

    def result(self, rows: dict[str, Float[Tensor, "*lead batch pos"]] | None = None) -> EntropyResult:
        """What was measured so far.

        Args:
            rows: What `take_rows` gave out before, joined.

        Raises:
            InvalidInputError: if no position counted.
        """
        if self.n_positions == 0:
            raise nothing_counts()
        cfg = self.model.cfg
        if self.options.reduce == "none":
            found = join_rows([rows, *self._kept] if rows else self._kept)
        else:
            found = {name: sums / self.n_positions for name, sums in self._sums.items()}
        options = {
            name: getattr(self.options, name) for name in ("baseline", "scale", "lens_bias", "include_bos", "precision")
        }
        return EntropyResult(
            info=RunInfo(
                cfg.model_name, self.model.weight_processing, self.data, self.n_sequences, self.n_positions, options
            ),
            **{name: values.float() for name, values in found.items()},
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


def _spread(values: Float[Tensor, "*lead row"], counted: Tensor) -> Float[Tensor, "*lead batch pos"]:
    out = values.new_full((*values.shape[:-1], *counted.shape), torch.nan, dtype=torch.float32)
    out[..., counted] = values.float()
    return out
