"""Where tokens rank in heads' circuits, in shares of the vocabulary."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.head_lists import head_columns, head_labels, rank_heads
from headscope.analysis.core.result import Ranking, Result, check_option

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CircuitRanks"]

_SHARES = ("ov_bottom", "ov_lowest", "qk_top", "qk_highest")


@dataclass(frozen=True)
class CircuitRanks(Result):
    """Where each token's own logit and own key stand among all tokens'.

    Ties count half, rounded down: a head that writes nothing ranks every token in the middle.

    Attributes:
        heads: Layer and head of each row below.
        tokens: The tokens that were ranked.
        ov: Rank of the token's own logit in what the head writes for it, from the bottom: 0 is the lowest.
        qk: Rank of the token's own key for its unembedding as query, from the top: 0 is the highest.
        k: How many count as the bottom and the top.
        d_vocab: Ranks are below this.
        info: What was run on what; `n_positions` is the number of tokens ranked.
    """

    kind: ClassVar[str] = "circuit_ranks"
    heads: Int[Tensor, "head 2"]
    tokens: Int[Tensor, " token"]
    ov: Int[Tensor, "head token"]
    qk: Int[Tensor, "head token"]
    k: int
    d_vocab: int

    @property
    def labels(self) -> tuple[str, ...]:
        """`10.7`, ... for each head."""
        return head_labels(self.heads)

    @property
    def ov_bottom(self) -> Float[Tensor, " head"]:
        """Share of tokens whose own logit is among the `k` lowest."""
        return _share(self.ov < self.k)

    @property
    def ov_lowest(self) -> Float[Tensor, " head"]:
        """Share of tokens whose own logit is the lowest of all."""
        return _share(self.ov == 0)

    @property
    def qk_top(self) -> Float[Tensor, " head"]:
        """Share of tokens whose own key is among the `k` highest."""
        return _share(self.qk < self.k)

    @property
    def qk_highest(self) -> Float[Tensor, " head"]:
        """Share of tokens whose own key is the highest of all."""
        return _share(self.qk == 0)

    def top(self, k: int = 10, *, by: str = "ov_bottom", largest: bool = True) -> Ranking:
        """The `k` heads with the largest (or smallest) share, by `ov_bottom`, `ov_lowest`, `qk_top` or `qk_highest`.

        Raises:
            InvalidInputError: if there is no such share, or `k` is below 1.
        """
        check_option("by", by, _SHARES)
        return rank_heads(self.heads, getattr(self, by), k, name=by, largest=largest)

    def to_frame(self) -> "pd.DataFrame":
        """One row per head: layer, head, label, the four shares, and the median ranks."""
        import pandas as pd

        columns: dict[str, Any] = head_columns(self.heads)
        columns |= {name: getattr(self, name).tolist() for name in _SHARES}
        columns |= {f"{name}_median": getattr(self, name).median(-1).values.tolist() for name in ("ov", "qk")}
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        processing = ", ".join(self.info.processing) or "none"
        lines = [
            f"CircuitRanks: {self.info.model} (weight processing: {processing}), {len(self.heads)} heads, "
            f"{len(self.tokens):,} of {self.d_vocab:,} tokens",
            f"  {'head':<8}  {f'OV bottom {self.k}':>13}  {'lowest':>8}  {f'QK top {self.k}':>13}  {'highest':>8}",
        ]
        for row in self.ov_bottom.argsort(descending=True, stable=True)[:5].tolist():
            shares = [float(getattr(self, name)[row]) for name in _SHARES]
            lines.append(
                f"  {self.labels[row]:<8}  {shares[0]:>13.2%}  {shares[1]:>8.2%}  {shares[2]:>13.2%}  {shares[3]:>8.2%}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def _share(found: Tensor) -> Tensor:
    return found.double().mean(-1).float()
