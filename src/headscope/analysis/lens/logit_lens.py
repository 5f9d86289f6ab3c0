"""`logit_lens`: what the model would predict if it stopped at each state of the residual stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch, describe_data, iterate_batches
from headscope.analysis.core.result import Result, RunInfo, check_option
from headscope.analysis.recording.lens_states import lens_states, state_labels
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.vocab import summarize

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["LogitLensResult", "logit_lens"]


@dataclass(frozen=True)
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
    entropy: Float[Tensor, "state batch pos"]
    top_tokens: Int[Tensor, "state batch pos k"]
    top_log_probs: Float[Tensor, "state batch pos k"]
    next_log_prob: Float[Tensor, "state batch pos"]
    next_rank: Int[Tensor, "state batch pos"]
    state_labels: tuple[str, ...]

    def to_frame(self) -> "pd.DataFrame":
        """One row per state: mean entropy and loss of the next token in nats, and how often it is the top one."""
        import pandas as pd

        known = self.next_rank >= 0
        return pd.DataFrame(
            {
                "state": self.state_labels,
                "entropy": self.entropy.nanmean((-2, -1)).tolist(),
                "loss": (-self.next_log_prob.nanmean((-2, -1))).tolist(),
                "accuracy": ((self.next_rank == 0).sum((-2, -1)) / known.sum((-2, -1))).tolist(),
            }
        )

    def __str__(self) -> str:
        return f"LogitLensResult: {self.info}\n{self.to_frame().to_string(index=False, float_format='%.3f')}"

    __repr__ = __str__


@torch.no_grad()
def logit_lens(
    model: HookedTransformer,
    data: Any,
    *,
    k: int = 5,
    scale: Literal["final", "own"] = "final",
    lens_bias: bool = True,
    attention_mask: Tensor | None = None,
    include_bos: bool = False,
    describe: str | None = None,
    progress: bool = True,
) -> LogitLensResult:
    """Read every state of the residual stream as a prediction (nostalgebraist 2020, the logit lens).

    A state `x` is read as `norm_final(x) W_U + b_U`; over the vocabulary this is reduced in tiles. The result keeps
    `k` tokens for each state and position, and nothing of the size of the vocabulary.

    Args:
        model: The model.
        data: Tokens `[batch, pos]`, or an iterable of batches of one length.
        k: How many of the most likely tokens to keep.
        scale: The final norm's scale: `"final"` freezes it to the real final state's, `"own"` uses each state's.
        lens_bias: Use `b_U` for every state; `False` leaves it out for all but the final one.
        attention_mask: 1 for real tokens; default: found from the padding token.
        include_bos: Let BOS positions count.
        describe: What the data is, for titles.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: for an unknown option, a wrong shape, or batches of different lengths.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> lens = logit_lens(model, model.to_tokens("Mary went to the park."), k=3, progress=False)
        >>> lens.top_tokens.shape[-1], lens.state_labels[-1]
        (3, 'final')
    """
    check_option("scale", scale, ("final", "own"))
    batches = iterate_batches(
        model,
        data,
        attention_mask=attention_mask,
        include_bos=include_bos,
        progress=progress,
        description="logit lens",
    )
    parts, n_sequences, n_positions = [], 0, 0
    for batch in batches:
        parts.append(_read(model, batch, k, scale, lens_bias))
        n_sequences += len(batch.tokens)
        n_positions += int(batch.counted.sum())
    if len({part["entropy"].shape[-1] for part in parts}) != 1:
        raise InvalidInputError("the batches must be non-empty and of one length; pad them to the longest.")
    joined = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    options = {"scale": scale, "lens_bias": lens_bias, "include_bos": include_bos}
    info = RunInfo(
        model.cfg.model_name,
        model.weight_processing,
        describe or describe_data(data),
        n_sequences,
        n_positions,
        options,
    )
    return LogitLensResult(info=info, state_labels=state_labels(model), **joined)


def _read(model: HookedTransformer, batch: Batch, k: int, scale: str, lens_bias: bool) -> dict[str, Tensor]:
    states = lens_states(model, batch)
    readout = readout_of(model)
    W_U, b_U = states.wide(readout.W_U), states.wide(readout.b_U)
    following = batch.counted.clone()
    following[:, -1] = False
    if batch.attention_mask is not None:
        following[:, :-1] &= batch.attention_mask[:, 1:]
    has_next = following[batch.counted]
    targets = batch.tokens.roll(-1, dims=1)[batch.counted]
    found: dict[str, list[Tensor]] = {name: [] for name in _EMPTY}
    for index, resid in enumerate(states.resid):
        last = index == len(states.resid) - 1
        by = readout.scale(states.resid[-1] if scale == "final" else resid)
        rows = readout.direction(resid) / by
        rows = rows if readout.bias is None else rows + readout.bias
        bias = b_U if lens_bias or last else None
        summary = summarize(rows, W_U, bias, targets=targets, k=k, soft_cap=readout.soft_cap)
        assert summary.target_log_prob is not None and summary.target_rank is not None
        values = {
            "entropy": summary.entropy,
            "top_tokens": summary.top_tokens,
            "top_log_probs": summary.top_log_probs,
            "next_log_prob": torch.where(has_next, summary.target_log_prob, torch.nan),
            "next_rank": torch.where(has_next, summary.target_rank, -1),
        }
        for name, value in values.items():
            spread = value.new_full((*batch.counted.shape, *value.shape[1:]), _EMPTY[name])
            spread[batch.counted] = value
            found[name].append(spread)
    return {name: torch.stack(each) for name, each in found.items()}


_EMPTY = {
    "entropy": torch.nan,
    "top_tokens": -1,
    "top_log_probs": torch.nan,
    "next_log_prob": torch.nan,
    "next_rank": -1,
}
