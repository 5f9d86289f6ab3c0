"""`EntropyResult`, which `measure_entropy` returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.result import Array, Result

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EntropyResult"]


@dataclass(frozen=True, repr=False)
class EntropyResult(Result):
    """Entropies in nats, as means over positions, or per position (`reduce="none"`, NaN where one does not count).

    Attributes:
        resid: Entropy of the prediction at each state, `[state]` or `[state, batch, pos]`.
        diff: H(lens(state + component)) - H(lens(state)), `[layer, component]` or `[layer, component, batch, pos]`.
            Positive: the component raises the entropy of what the stream says when it writes.
        marginal: H(final logits) - H(final logits without the component), the same shape. Positive: it raises the
            entropy of the final prediction.
        state_labels: `0_pre`, `0_mid`, `1_pre`, ..., `final`.
        component_labels: `0`, `1`, ..., and `MLP` last where there are MLPs.
        resid_error: One standard error of the mean of `resid`, over rows (see `core.stats`).
        diff_error: The same of `diff`.
        marginal_error: The same of `marginal`.
    """

    kind: ClassVar[str] = "entropy"
    arrays: ClassVar[Mapping[str, Array]] = {
        "resid": Array("state batch pos", unit="nats", column="entropy", error="resid_error"),
        "diff": Array("layer component batch pos", unit="nats", title="entropy diff", error="diff_error"),
        "marginal": Array("layer component batch pos", unit="nats", title="entropy marginal", error="marginal_error"),
        "resid_error": Array("state", unit="nats", column="error"),
        "diff_error": Array("layer component", unit="nats"),
        "marginal_error": Array("layer component", unit="nats"),
    }
    coords: ClassVar[Mapping[str, str]] = {"state": "state_labels", "component": "component_labels"}
    ranked: ClassVar[tuple[str, ...]] = ("diff", "marginal")
    columns: ClassVar[tuple[str, ...]] = ("diff", "marginal", "diff_error", "marginal_error")
    ends: ClassVar[tuple[str, str]] = ("raised most by", "lowered most by")
    resid: Float[Tensor, "state *batch_pos"]
    diff: Float[Tensor, "layer component *batch_pos"]
    marginal: Float[Tensor, "layer component *batch_pos"]
    state_labels: tuple[str, ...]
    component_labels: tuple[str, ...]
    resid_error: Float[Tensor, " state"] | None = None
    diff_error: Float[Tensor, "layer component"] | None = None
    marginal_error: Float[Tensor, "layer component"] | None = None

    @property
    def has_mlp(self) -> bool:
        """True if the last component of each layer is its MLP."""
        return self.component_labels[-1] == "MLP"

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return len(self.component_labels) - self.has_mlp - ("mixer" in self.component_labels)

    @property
    def n_layers(self) -> int:
        """Layers."""
        return self.diff.shape[0]

    def mean(self) -> Self:
        """The means over the positions that count; itself if it holds means already."""
        return self._position_means()

    def resid_frame(self) -> "pd.DataFrame":
        """One row per state of the residual stream: its label, entropy in nats, and its error."""
        return self.to_frame("resid", *(["resid_error"] if self.resid_error is not None else []))

    def _notes(self) -> Iterator[str]:
        resid = self.mean().resid
        yield f"entropy: {resid[0]:.3f} nats at the first state, {resid[-1]:.3f} at the end"
        yield from super()._notes()
