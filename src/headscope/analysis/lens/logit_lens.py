"""`logit_lens`: what the model would predict if it stopped at each state of the residual stream."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from headscope.analysis.core.batches import Batch, spread
from headscope.analysis.core.result import Array, Result, check_option
from headscope.analysis.recording.lens_states import lens_states, state_labels
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.vocab import summarize

__all__ = ["LogitLensResult", "logit_lens"]


@dataclass(frozen=True, repr=False)
class LogitLensResult(Result):
    """The prediction at each state of the residual stream, position by position.

    Positions that do not count (padding, BOS) have NaN, and token -1; so has the next token where there is none.

    Attributes:
        entropy: Of the prediction, in nats.
        top_tokens: The `k` most likely next tokens.
        top_log_probs: Their log-probabilities, in nats.
        next_log_prob: Log-probability of the token that does come next, in nats.
        next_rank: How many tokens are more likely than it (0: it is the top one); -1 where there is none.
        state_labels: `0_pre`, `0_mid`, ..., `final`.
    """

    kind: ClassVar[str] = "logit_lens"
    arrays: ClassVar[Mapping[str, Array]] = {
        "entropy": Array("state batch pos", unit="nats"),
        "loss": Array("state batch pos", unit="nats", of=lambda found: -found.next_log_prob),
        "correct": Array("state batch pos", column="accuracy"),
        "next_rank": Array(
            "state batch pos", of=lambda found: torch.where(found.next_rank >= 0, found.next_rank.float(), torch.nan)
        ),
        "top_tokens": Array("state batch pos k"),
        "top_log_probs": Array("state batch pos k", unit="nats"),
        "next_log_prob": Array("state batch pos", unit="nats"),
    }
    coords: ClassVar[Mapping[str, str]] = {"state": "state_labels"}
    columns: ClassVar[tuple[str, ...]] = ("entropy", "loss", "correct")
    entropy: Float[Tensor, "state batch pos"]
    top_tokens: Int[Tensor, "state batch pos k"]
    top_log_probs: Float[Tensor, "state batch pos k"]
    next_log_prob: Float[Tensor, "state batch pos"]
    next_rank: Int[Tensor, "state batch pos"]
    state_labels: tuple[str, ...]

    @property
    def correct(self) -> Float[Tensor, "state batch pos"]:
        """1 where the next token is the most likely one, 0 where it is not, NaN where there is none."""
        return torch.where(self.next_rank >= 0, (self.next_rank == 0).float(), torch.nan)

    def _notes(self) -> Iterator[str]:
        yield from self.to_frame().to_string(index=False, float_format="%.3f").splitlines()


@streaming()
@torch.no_grad()
def logit_lens(
    model: HookedTransformer,
    data: Any,
    *,
    k: int = 5,
    scale: Literal["final", "own"] = "final",
    lens_bias: bool = True,
    **run: Unpack[StreamOptions],
) -> LogitLensResult:
    """Read every state of the residual stream as a prediction (nostalgebraist 2020, the logit lens).

    A state `x` is read as `norm_final(x) W_U + b_U`; over the vocabulary this is reduced in tiles. The result keeps
    `k` tokens for each state and position, and nothing of the size of the vocabulary.

    Args:
        model: The model.
        data: Tokens `[batch, pos]`, or an iterable of batches (shorter rows end in NaN).
        k: How many of the most likely tokens to keep.
        scale: The final norm's scale: `"final"` freezes it to the real final state's, `"own"` uses each state's.
        lens_bias: Use `b_U` for every state; `False` leaves it out for all but the final one.
        **run: Options of every run; see `StreamOptions`.

    Raises:
        InvalidInputError: for an unknown option, a wrong shape, or no position that counts.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> lens = logit_lens(model, model.to_tokens("Mary went to the park."), k=3, progress=False)
        >>> lens.top_tokens.shape[-1], lens.state_labels[-1]
        (3, 'final')
    """
    check_option("scale", scale, ("final", "own"))
    options = {"scale": scale, "lens_bias": lens_bias, "include_bos": run["include_bos"]}
    passes = Passes("logit-lens", model, data, {**options, "k": k}, **run)
    if (finished := passes.finished(LogitLensResult)) is not None:
        return finished
    return passes.finish("logit lens", _LensAccumulator(model, {**options, "k": k}, passes.described))


class _LensAccumulator(Accumulator[LogitLensResult]):
    """The predictions of every state, over a stream of batches."""

    def update(self, batch: Batch) -> None:
        """Read every state of a batch, and keep every position."""
        self.add(batch, int(batch.counted.sum()), rows=self._read(batch))

    def summary(self, rows: dict[str, Tensor]) -> LogitLensResult:
        """Return the predictions, with the likeliest tokens along the last axis."""
        top = {name: rows.pop(name).movedim(1, -1).contiguous() for name in ("top_tokens", "top_log_probs")}
        info = self.info({name: value for name, value in self.options.items() if name != "k"})
        return LogitLensResult(info=info, state_labels=state_labels(self.model), **rows, **top)

    def _read(self, batch: Batch) -> dict[str, Shaped[Tensor, "state *k batch pos"]]:
        model, options = self.model, self.options
        states = lens_states(model, batch, outputs=False)
        readout = readout_of(model)
        W_U, b_U = states.wide(readout.W_U), states.wide(readout.b_U)
        has_next = batch.predicting()[batch.counted]
        targets = batch.tokens.roll(-1, dims=1)[batch.counted]
        predictions: list[dict[str, Tensor]] = []
        for index, resid in enumerate(states.resid):
            last = index == len(states.resid) - 1
            final = options["scale"] == "final"
            by = readout.scale(states.resid[-1]) if final else readout.scale(resid, states.eps_of(index))
            rows = readout.direction(resid) / by
            rows = rows if readout.bias is None else rows + readout.bias
            bias = b_U if options["lens_bias"] or last else None
            summary = summarize(rows, W_U, bias, targets=targets, k=options["k"], soft_cap=readout.soft_cap)
            assert summary.target_log_prob is not None and summary.target_rank is not None
            values = {
                "entropy": summary.entropy,
                "top_tokens": summary.top_tokens,
                "top_log_probs": summary.top_log_probs,
                "next_log_prob": torch.where(has_next, summary.target_log_prob, torch.nan),
                "next_rank": torch.where(has_next, summary.target_rank, -1),
            }
            predictions.append({name: spread(value.movedim(0, -1), batch.counted) for name, value in values.items()})
        return {name: torch.stack([each[name] for each in predictions]) for name in predictions[0]}
