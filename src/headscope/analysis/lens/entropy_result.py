"""`EntropyResult`: what `measure_entropy` returns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.result import Ranking, Result, check_option, component_label, masked_mean, rank_components

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EntropyResult"]


@dataclass(frozen=True)
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
    """

    kind: ClassVar[str] = "entropy"
    resid: Float[Tensor, "state *batch_pos"]
    diff: Float[Tensor, "layer component *batch_pos"]
    marginal: Float[Tensor, "layer component *batch_pos"]
    state_labels: tuple[str, ...]
    component_labels: tuple[str, ...]

    @property
    def has_mlp(self) -> bool:
        """Whether the last component of each layer is its MLP."""
        return self.component_labels[-1] == "MLP"

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return len(self.component_labels) - self.has_mlp

    @property
    def n_layers(self) -> int:
        """Layers."""
        return self.diff.shape[0]

    def mean(self) -> "EntropyResult":
        """The means over the positions that count; itself if it holds means already."""
        if self.resid.ndim == 1:
            return self
        means = {name: masked_mean(getattr(self, name), (-2, -1)) for name in ("resid", "diff", "marginal")}
        return EntropyResult(
            info=self.info, **means, state_labels=self.state_labels, component_labels=self.component_labels
        )

    def to_frame(self) -> "pd.DataFrame":
        """One row per component: layer, component, label, diff and marginal in nats."""
        import pandas as pd

        means = self.mean()
        rows = [
            {
                "layer": layer,
                "component": name,
                "label": component_label(layer, None if name == "MLP" else int(name)),
                "diff": float(means.diff[layer, column]),
                "marginal": float(means.marginal[layer, column]),
            }
            for layer in range(self.n_layers)
            for column, name in enumerate(self.component_labels)
        ]
        return pd.DataFrame(rows)

    def resid_frame(self) -> "pd.DataFrame":
        """One row per state of the residual stream: its label and entropy in nats."""
        import pandas as pd

        return pd.DataFrame({"state": self.state_labels, "entropy": self.mean().resid.tolist()})

    def top(
        self, k: int = 10, *, by: Literal["diff", "marginal"] = "diff", largest: bool = True, mlps: bool = False
    ) -> Ranking:
        """The components that raise entropy most (`largest=False`: that lower it most); `mlps` lets MLPs in."""
        check_option("by", by, ("diff", "marginal"))
        values = getattr(self.mean(), by)
        return rank_components(
            values, k, n_heads=self.n_heads, name=f"entropy {by}", unit="nats", largest=largest, mlps=mlps
        )

    def __str__(self) -> str:
        means = self.mean()
        lines = [
            f"EntropyResult: {self.info}",
            f"  entropy: {means.resid[0]:.3f} nats at the first state, {means.resid[-1]:.3f} at the end",
            f"  heads that raise it most (diff): {_short(self.top(3))}",
            f"  heads that lower it most (diff): {_short(self.top(3, largest=False))}",
        ]
        return "\n".join(lines)

    __repr__ = __str__


def _short(ranking: Ranking) -> str:
    return ", ".join(f"{score.label} {score.value:+.3f}" for score in ranking)
