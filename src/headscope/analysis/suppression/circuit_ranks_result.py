"""`CircuitRanks`: ranks of tokens in heads' circuits, and their shares of the vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.head_lists import HeadListResult
from headscope.analysis.core.result import Array
from headscope.ops.devices import wide

__all__ = ["CircuitRanks"]

_SHARES = ("ov_bottom", "ov_lowest", "qk_top", "qk_highest")


@dataclass(frozen=True, repr=False)
class CircuitRanks(HeadListResult):
    """Ranks of each token's own logit and own key among those of all tokens.

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
    arrays: ClassVar[Mapping[str, Array]] = {
        **{name: Array("head", style=".2%") for name in _SHARES},
        "ov": Array("head token"),
        "qk": Array("head token"),
        "ov_median": Array("head", of=lambda found: found.ov.median(-1).values),
        "qk_median": Array("head", of=lambda found: found.qk.median(-1).values),
    }
    coords: ClassVar[Mapping[str, str]] = {"head": "labels", "token": "tokens"}
    columns: ClassVar[tuple[str, ...]] = (*_SHARES, "ov_median", "qk_median")
    ranked: ClassVar[tuple[str, ...]] = _SHARES
    tokens: Int[Tensor, " token"]
    ov: Int[Tensor, "head token"]
    qk: Int[Tensor, "head token"]
    k: int
    d_vocab: int

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


def _share(found: Tensor) -> Tensor:
    return wide(found).mean(-1).float()
