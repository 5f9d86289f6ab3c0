"""`measure_calibration`: whether tokens held likely with probability p come next with frequency p, and which heads
make a model surer than it should be.

One forward pass gives the final state and every head's output; `ops.lens_top` then reduces the prediction, and the one
without each head's direct effect, over the vocabulary in tiles.
"""

from dataclasses import asdict, dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.batches import Batch, check_repeatable
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.lens.calibration_result import CalibrationResult
from headscope.analysis.recording.component_means import ComponentMeans, OutputSums
from headscope.analysis.recording.lens_states import LensStates, lens_states
from headscope.analysis.storage.accumulator import Accumulator, Totals
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError, NotFiniteError, check_at_least
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide
from headscope.ops.lens_top import LensTop, TopProblem, lens_top

__all__ = ["CalibrationAccumulator", "CalibrationOptions", "measure_calibration"]


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of the measurement; see `measure_calibration`."""

    k: int = 1
    n_bins: int = 10
    heads: bool = True
    include_bos: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, k=self.k, n_bins=self.n_bins)


@streaming()
def measure_calibration(
    model: HookedTransformer,
    data: Any,
    *,
    k: int = 1,
    n_bins: int = 10,
    heads: bool = True,
    **run: Unpack[StreamOptions],
) -> CalibrationResult:
    """Measure how well the probabilities fit what comes next, with all heads and without each one's direct effect.

    At every position that counts and has a next token, the probabilities of the `k` likeliest tokens are binned; where
    two are as likely, the one with the lower number goes first. Without a head means: its output minus its mean over
    the data is taken from the final residual stream, the final norm's scale frozen, and that of a norm behind attention
    (as in `measure_entropy`'s `marginal` against the mean).

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`). With `heads` it is gone through twice.
        k: How many of the likeliest tokens to look at.
        n_bins: How many bins of equal width between probabilities 0 and 1.
        heads: Measure without each head too; `False` measures the model alone, in one pass.
        **run: Options of every run; see `StreamOptions`.

    Raises:
        InvalidInputError: for an option out of range, a wrong shape, tokens out of range, an iterator where two passes
            are needed, or no position that counts.
        NotFiniteError: if the model's states or logits are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        >>> calibration = measure_calibration(model, tokens, n_bins=5, progress=False)
        >>> calibration.count.tolist(), f"{calibration.overconfidence:+.2f}"
        ([12, 0, 1, 1, 1], '-0.05')
    """
    options = CalibrationOptions(k, n_bins, heads, run["include_bos"])
    if heads:
        check_repeatable(data, "heads=True")
    order = {"means": "data", "calibration": "data"} if heads else {}
    passes = Passes("calibration", model, data, options, order=order, **run)
    if (finished := passes.finished(CalibrationResult)) is not None:
        return finished
    means = None
    if heads:
        outputs = OutputSums.of_all(model)
        means = outputs.means(passes.gather("means", Totals(model, outputs.measure)).result())
    accumulator = CalibrationAccumulator(model, options, means, passes.described)
    return passes.finish("calibration", accumulator, after="means" if means else None)


class CalibrationAccumulator(Accumulator[CalibrationResult]):
    """Calibration over a stream of batches.

    The sums are, for the model and then without each head: `bins`, each bin's count, sum of p, and number of tokens
    that came next; and with u = (1, sum of p, how many came next) at a position, `moments`, the sums of u u^T, and
    `cross`, of u with the model's u.

    Args:
        model: The model.
        options: How to measure.
        means: Component means over the data, needed to measure heads.
        data: What the data is, for titles.
        begins_at: Number of rows of the data that come before this part of it.

    Raises:
        InvalidInputError: if heads are to be measured without means, or `k` is above d_vocab.
    """

    predicting = True
    options: CalibrationOptions

    def __init__(
        self,
        model: HookedTransformer,
        options: CalibrationOptions,
        means: ComponentMeans | None,
        data: str,
        *,
        begins_at: int = 0,
    ) -> None:
        if options.heads and means is None:
            raise InvalidInputError("measuring heads takes their means over the data. Give means, or heads=False.")
        if options.k > model.cfg.d_vocab:
            raise InvalidInputError(f"k must be between 1 and d_vocab = {model.cfg.d_vocab}; got {options.k}.")
        super().__init__(model, options, data, against=means.tensors if means else None, begins_at=begins_at)
        self.means = means

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Measure a batch and add it in."""
        batch = Batch(batch.tokens, batch.attention_mask, batch.predicting())
        if not bool(batch.counted.any()):
            self.add(batch, 0)
            return
        states = lens_states(self.model, batch)
        targets = batch.tokens.roll(-1, dims=1)[batch.counted]
        likeliest = lens_top(_problem(self.model, states, targets, self.means), k=self.options.k)
        if bool(likeliest.log_probs.isnan().any()):
            raise NotFiniteError(
                "the logits hold NaN or infinite values, though the residual stream is finite. Check the weights of "
                "the final norm and the unembedding.",
                code="HS-FINITE-02",
            )
        self.add(batch, states.n, _sums(likeliest, self.options.n_bins))

    def summary(self, rows: dict[str, Tensor]) -> CalibrationResult:
        """Return shares of each bin, and overconfidence with its error."""
        cfg, k = self.model.cfg, self.options.k
        count, predicted, correct = self.sums["bins"]
        moments = self.sums["moments"]
        predicted, correct = predicted / count, correct / count
        value, weights = _overconfidence(moments, k)
        # Of each prediction's overconfidence, and of it minus the first one's, which is on the same positions.
        own = _variances(moments, weights)
        both = torch.einsum("px,pxy,y->p", weights, self.sums["cross"], weights[0])
        error, change_error = (each.clamp(min=0).sqrt() for each in (own, own - 2 * both + own[0]))

        def of_heads(values: Tensor) -> Tensor | None:
            if not self.options.heads:
                return None
            return over_layers(cfg, values[1:].unflatten(0, (-1, cfg.n_heads)))

        return CalibrationResult(
            info=self.info({**asdict(self.options), "kernels": self.kernels}),
            count=count[0].long(),
            predicted=predicted[0].float(),
            correct=correct[0].float(),
            overconfidence=float(value[0]),
            overconfidence_error=float(error[0]),
            head_overconfidence=of_heads(value.float()),
            head_change=of_heads((value - value[0]).float()),
            head_change_error=of_heads(change_error.float()),
            head_count=of_heads(count.long()),
            head_predicted=of_heads(predicted.float()),
            head_correct=of_heads(correct.float()),
        )


def _sums(likeliest: LensTop, n_bins: int) -> dict[str, Tensor]:
    """Return what a batch adds to the sums of `CalibrationAccumulator`."""
    probs = likeliest.log_probs.exp().clamp_(max=1.0)
    n_predictions, _, k = probs.shape
    came_next = wide(likeliest.place[..., None] == torch.arange(k, device=probs.device))
    which = (probs * n_bins).long().clamp_(max=n_bins - 1)
    which += n_bins * torch.arange(n_predictions, device=probs.device)[:, None, None]
    each = (torch.ones_like(probs), probs, came_next)
    bins = torch.stack([torch.bincount(which.flatten(), one.flatten(), n_predictions * n_bins) for one in each])
    u = torch.stack([torch.ones_like(probs[..., 0]), probs.sum(-1), came_next.sum(-1)], dim=-1)
    return {
        "bins": bins.view(3, n_predictions, n_bins).cpu(),
        "moments": torch.einsum("prx,pry->pxy", u, u).cpu(),
        "cross": torch.einsum("prx,ry->pxy", u, u[0]).cpu(),
    }


def _problem(model: HookedTransformer, states: LensStates, targets: Tensor, means: ComponentMeans | None) -> TopProblem:
    readout = readout_of(model)
    W_U, b_U = states.wide(readout.W_U), states.wide(readout.b_U)
    scale = readout.scale(states.resid[-1])
    return TopProblem(
        rows=readout.direction(states.resid[-1]) / scale,
        heads=None if means is None else states.take_heads(means.z).div_(scale),
        W_O=readout.direction(states.wide(model.output_weights())),
        W_U=W_U,
        offset=b_U if readout.bias is None else states.wide(readout.bias) @ W_U + b_U,
        targets=targets,
        soft_cap=readout.soft_cap,
    )


def _overconfidence(moments: Float[Tensor, "prediction 3 3"], k: int) -> tuple[Tensor, Tensor]:
    """Overconfidence, and the weights w with which a position's `w . u` adds to its deviation from it.

    It is a ratio of sums D / Q; to first order it deviates by the sum of `(d - ratio * q) / Q` over positions.
    """
    n, p, correct = moments[:, 0].unbind(-1)
    excess = p - correct
    over = excess > 0
    total = torch.where(over, p, k * n - p)
    ratio = torch.where(total > 0, excess / total, 0.0)
    # d = p - correct; q = p when over, else k - p.
    linear = torch.stack([torch.where(over, 0.0, -k * ratio), torch.where(over, 1 - ratio, 1 + ratio)], dim=-1)
    weights = torch.cat([linear, -torch.ones_like(linear[:, :1])], dim=-1)
    return ratio, torch.where(total > 0, 1 / total, 0.0)[:, None] * weights


def _variances(moments: Tensor, weights: Tensor) -> Float[Tensor, " prediction"]:
    return torch.einsum("px,pxy,py->p", weights, moments, weights)
