"""`measure_entropy`: how each head, mixer and MLP moves the entropy of the prediction, seen through the logit lens.

One forward pass gives every state and every component's output; `ops.lens_entropy` then reduces all the perturbed
predictions over the vocabulary in tiles. GPT-2 small has 25 states and 156 components: about 2 GFLOP a token.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from headscope.analysis.core.batches import Batch, check_repeatable, spread
from headscope.analysis.core.components import part_labels
from headscope.analysis.core.progress import each_step
from headscope.analysis.core.result import check_option
from headscope.analysis.core.stats import estimates_of_moments, row_moments
from headscope.analysis.lens.entropy_problem import lens_problem
from headscope.analysis.lens.entropy_result import EntropyResult
from headscope.analysis.recording.component_means import ComponentMeans, OutputSums
from headscope.analysis.recording.lens_states import lens_states, state_labels
from headscope.analysis.storage.accumulator import Accumulator, Totals
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import NotFiniteError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import give_back_freed, sums_device, wide
from headscope.ops.kernels.interface import PRECISIONS, Precision
from headscope.ops.lens_entropy import lens_entropies

__all__ = ["EntropyAccumulator", "EntropyOptions", "EntropyResult", "measure_entropy"]

_VALUES = ("resid", "diff", "marginal")


@dataclass(frozen=True)
class EntropyOptions:
    """Options of the measurement; see `measure_entropy`."""

    baseline: Literal["zero", "mean"] = "zero"
    scale: Literal["final", "own"] = "final"
    lens_bias: bool = True
    reduce: Literal["mean", "none"] = "mean"
    include_bos: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_option("precision", self.precision, PRECISIONS)
        check_option("baseline", self.baseline, ("zero", "mean"))
        check_option("scale", self.scale, ("final", "own"))
        check_option("reduce", self.reduce, ("mean", "none"))


@streaming()
def measure_entropy(
    model: HookedTransformer,
    data: Any,
    *,
    baseline: Literal["zero", "mean"] = "zero",
    scale: Literal["final", "own"] = "final",
    lens_bias: bool = True,
    reduce: Literal["mean", "none"] = "mean",
    precision: Precision = "float32",
    **run: Unpack[StreamOptions],
) -> EntropyResult:
    """Measure how each head and each MLP moves the entropy of the next-token prediction.

    The logit lens reads a state `x` as `norm_final(x) W_U + b_U`. A head's output is `z W_O` of the model as it
    stands: under the default weight processing biases sit in `b_O`, which belongs to no head, so numbers against the
    zero baseline depend on the processing, and the result names it.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`). With `baseline="mean"` it is gone through twice.
        baseline: `"zero"` takes a component whole; `"mean"` takes what it adds to the stream minus the mean of that
            over the data.
        scale: The final norm's scale: `"final"` freezes it to that of the real final state, `"own"` uses that of the
            state being read. With `"own"`, a component is taken from the final state before its norm.
        lens_bias: Use `b_U` for every state; `False` leaves it out for all but the final logits.
        reduce: `"mean"` over positions, or `"none"` to keep batch and position.
        precision: `"bfloat16"` rounds the heads' factors to 8 bits, which is faster on CPUs with bfloat16 arithmetic;
            others multiply what was rounded in float32, at about its speed. On a GPU with the triton kernels also
            `"tf32"` (11 bits) and `"bfloat16x3"` (16 bits). Everything else stays in float32 (or
            the model's own type, if that is wider).
        **run: Options of every run; see `StreamOptions`.

    With `out` and `reduce="none"`, the numbers of each position are read into memory once, at the end: 4 bytes for each
    state and twice for each component (1.3 kB for GPT-2 small) a token.

    Raises:
        InvalidInputError: for an unknown option, a wrong shape, tokens out of range, or no position that counts.
        NotFiniteError: if the model's states or logits are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> entropy = measure_entropy(model, tokens, progress=False)
        >>> entropy.top(3)
                 entropy diff (nats)
        3.2      +0.1089 ± 0.0550
        3.0      +0.1075 ± 0.0642
        2.2      +0.0978 ± 0.0594
    """
    options = EntropyOptions(baseline, scale, lens_bias, reduce, run["include_bos"], precision)
    if baseline == "mean":
        check_repeatable(data, "baseline='mean'")
    order = {"means": "data", "entropy": "data"} if baseline == "mean" else {}
    passes = Passes("entropy", model, data, options, order=order, **run)
    if (finished := passes.finished(EntropyResult)) is not None:
        return finished
    means = None
    if baseline == "mean":
        outputs = OutputSums.of_all(model, added=True)
        means = outputs.means(passes.gather("means", Totals(model, outputs.measure)).result())
    accumulator = EntropyAccumulator(model, options, means, passes.described, progress=run["progress"])
    return passes.finish("entropy", accumulator, after="means" if means else None)


class EntropyAccumulator(Accumulator[EntropyResult]):
    """Entropy over a stream of batches.

    Args:
        model: The model.
        options: How to measure.
        means: The means of what components add to the stream, for `baseline="mean"`.
        data: What the data is, for titles.
        progress: Show a progress bar of each batch's vocabulary.
        begins_at: Number of rows of the data that come before this part of it.
    """

    options: EntropyOptions

    def __init__(
        self,
        model: HookedTransformer,
        options: EntropyOptions,
        means: ComponentMeans | None,
        data: str,
        *,
        progress: bool = False,
        begins_at: int = 0,
    ) -> None:
        super().__init__(model, options, data, against=means.tensors if means else None, begins_at=begins_at)
        self.means = means
        self._watch = partial(each_step, name="vocabulary", shown=progress)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Measure a batch and add it in."""
        entropies = dict(zip(_VALUES, self._measure(batch), strict=True))
        n = int(batch.counted.sum())
        counted = batch.counted.to(sums_device(batch.tokens.device))
        row = counted.nonzero()[:, 0]
        # Of all values at once: on an accelerator every call is a hundred launches.
        sums = {"moments": row_moments(torch.cat([values.flatten(0, -2) for values in entropies.values()]), row)}
        if self.options.reduce == "none":
            rows = {name: spread(values.float(), counted) for name, values in entropies.items()}
            self.add(batch, n, sums, rows)
        else:
            self.add(batch, n, sums | {name: values.sum(-1) for name, values in entropies.items()})

    def summary(self, rows: dict[str, Tensor]) -> EntropyResult:
        """Return the entropies, or their means over positions."""
        entropies = rows or {name: self.sums[name] / self.n_positions for name in _VALUES}
        states, parts = state_labels(self.model), part_labels(self.model.cfg)
        shapes = {"resid": (len(states),), **dict.fromkeys(("diff", "marginal"), (self.model.cfg.n_layers, len(parts)))}
        flat = estimates_of_moments(self.sums["moments"]).errors.split([math.prod(shapes[name]) for name in _VALUES])
        errors = {f"{name}_error": each.view(shapes[name]) for name, each in zip(_VALUES, flat, strict=True)}
        shown = ("baseline", "scale", "lens_bias", "include_bos", "precision")
        return EntropyResult(
            info=self.info({**{name: getattr(self.options, name) for name in shown}, "kernels": self.kernels}),
            **{name: values.float() for name, values in (entropies | errors).items()},
            state_labels=states,
            component_labels=parts,
        )

    def _measure(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        give_back_freed()  # what the last batch took
        states = lens_states(self.model, batch)
        if states.n == 0:
            shape = self.model.cfg.n_layers, len(part_labels(self.model.cfg))
            nothing = wide(states.resid.new_zeros(*shape, 0))
            return nothing.new_zeros(len(states.resid), 0), nothing, nothing
        problem = lens_problem(
            self.model, states, self.means, scale=self.options.scale, lens_bias=self.options.lens_bias
        )
        del states  # the problem needs less of them
        give_back_freed()
        entropies = lens_entropies(problem, precision=self.options.precision, watch=self._watch)
        bases = problem.bases.to(entropies.states.device)
        del problem
        measured = bases >= 0  # what a layer lacks is NaN
        changed = (entropies.plus[measured], entropies.minus[measured])
        if not all(bool(found.isfinite().all()) for found in (entropies.states, *changed)):
            raise NotFiniteError(
                "the logits hold NaN or infinite values, though the residual stream is finite. Check the weights of "
                "the final norm and the unembedding.",
                code="HS-FINITE-02",
            )
        before = entropies.states[bases]
        return entropies.states, entropies.plus - before, entropies.states[-1] - entropies.minus
