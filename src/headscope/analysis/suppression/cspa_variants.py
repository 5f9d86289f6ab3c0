"""Variants of copy-suppression-preserving ablation: which sources are kept, and of what they write, which part.

`copy_suppression_preserving_ablation` says when to take which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.analysis.recording.embedding import TokenDirections
from headscope.ops.devices import Budget, wide
from headscope.ops.vocab import vocab_tiles

__all__ = ["VARIANTS", "Bases", "LogitCoordinates", "Variant", "kept_sources", "token_bases"]


@dataclass(frozen=True)
class Variant:
    """A variant of the ablation.

    Attributes:
        relative: Sources are ranked by how far their token is predicted above its average over the data, and a token
            counts once; else by the prediction itself, and every source counts.
        own_logit: What is kept moves the token's own logit as before, and the other logits as little as can be; else
            it is the projection on the token's unembedding.
    """

    relative: bool
    own_logit: bool


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "paper": Variant(relative=False, own_logit=False),
        "relative": Variant(relative=True, own_logit=False),
        "own_logit": Variant(relative=True, own_logit=True),
    }
)


class LogitCoordinates:
    """Coordinates of the stream in which a vector is as long as the root mean square of what it adds to logits.

    With `C = mean_t u_t u_t^T` over the directions `u_t` of all tokens, these are `x C^(1/2)`. A direction of the
    stream that no logit reads has no length, and comes back as zero.

    Args:
        directions: The tokens' directions.
    """

    def __init__(self, directions: TokenDirections) -> None:
        d_model, d_vocab = directions.W_U.shape
        moment = wide(directions.W_U.new_zeros(d_model, d_model))
        for tile in vocab_tiles(d_vocab, Budget.of(directions.W_U.device).tile.vocab):
            rows = directions.of(torch.arange(tile.start, tile.stop, device=directions.W_U.device))
            moment += wide(rows.T @ rows)
        squares, axes = torch.linalg.eigh(moment / d_vocab)
        # A square below the rounding of the largest is that of an axis which no logit reads.
        seen = squares > squares[-1] * d_model * torch.finfo(directions.W_U.dtype).eps
        lengths = torch.where(seen, squares, 1.0).sqrt()
        self.root = ((axes * torch.where(seen, lengths, 0.0)) @ axes.T).to(directions.W_U)
        self.inverse_root = ((axes * torch.where(seen, 1 / lengths, 0.0)) @ axes.T).to(directions.W_U)


class Bases(NamedTuple):
    """For each token, the vectors that coefficients are read with, and those which they are written along.

    Of an orthogonal projection in the stream both are the basis; of one in other coordinates, there and back again.
    """

    read: Float[Tensor, "*id basis d_model"]
    write: Float[Tensor, "*id basis d_model"]

    def at(self, tokens: Int[Tensor, "row pos"]) -> "Bases":
        """Return those of the token at each position, given as its place among the tokens."""
        return Bases(self.read[tokens], self.write[tokens])

    def negative_part(self, written: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """Return what each source writes against its basis: the negative ones of its coefficients."""
        coefficients = torch.einsum("rpd,rpnd->rpn", written, self.read).clamp(max=0)
        return torch.einsum("rpn,rpnd->rpd", coefficients, self.write)


def token_bases(
    directions: TokenDirections,
    ids: Int[Tensor, " id"],
    related: Int[Tensor, "d_vocab n"] | None,
    coordinates: LogitCoordinates | None,
) -> Bases:
    """For each token, bases of its own and its related tokens' directions: orthonormal in the coordinates.

    Args:
        directions: The tokens' directions.
        ids: The tokens.
        related: Tokens related to each, -1 for none.
        coordinates: Default: those of the stream.
    """
    wanted = directions.of(ids)[:, None]
    if related is not None:
        others = related.to(ids.device)[ids]
        wanted = torch.cat([wanted, directions.of(others.clamp(min=0)) * (others >= 0)[..., None]], dim=1)
    if coordinates is None:
        basis = _orthonormal(wanted)
        return Bases(basis, basis)
    # A coefficient `x C^(1/2) . b` in the coordinates is one of the stream with `b C^(1/2)`.
    basis = _orthonormal(wanted @ coordinates.inverse_root)
    return Bases(basis @ coordinates.root, basis @ coordinates.inverse_root)


def kept_sources(
    predicted: Float[Tensor, "row query_pos id"],
    at: Int[Tensor, "row pos"],
    sources: Bool[Tensor, "row query_pos key_pos"],
    top: float,
    *,
    once: bool,
) -> Bool[Tensor, "row query_pos key_pos"]:
    """Return a share of each query's sources, rounded up: highest first, of one token the earliest first.

    Args:
        predicted: How far each query predicts each different token.
        at: Which of the tokens stands at each position.
        sources: The sources in sight.
        top: The share.
        once: A token counts once, and is kept wherever it stands.
    """
    # Less a hair: 0.07 * 100 is above 7 in floating point.
    n_kept = (top * wide(sources.sum(-1, keepdim=True)) - 1e-9).ceil().long().to(sources.device)
    by_source = predicted.gather(2, at[:, None].expand_as(sources)).masked_fill(~sources, -torch.inf)
    if not once:
        order = by_source.argsort(dim=-1, descending=True, stable=True)
        rank = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    else:
        # Sorted by token first, so that a token's copies stand together even among ties.
        by_token = at.argsort(dim=-1, stable=True)[:, None].expand_as(sources)
        within = by_source.gather(-1, by_token).argsort(dim=-1, descending=True, stable=True)
        order = by_token.gather(-1, within)
        tokens = at[:, None].expand_as(sources).gather(-1, order)
        rank = F.pad((tokens.diff(dim=-1) != 0).long(), (1, 0)).cumsum(-1)
    return torch.zeros_like(sources).scatter(-1, order, rank < n_kept) & sources


def _orthonormal(wanted: Float[Tensor, "id basis d_model"]) -> Float[Tensor, "id basis d_model"]:
    """For each token an orthonormal basis of some vectors, each pointing as they do.

    A vector that adds nothing to those before it (or stands for no token) is zero.
    """
    basis: list[Tensor] = []
    lengths = wanted.norm(dim=-1, keepdim=True)
    for vector, length in zip(wanted.unbind(1), lengths.unbind(1), strict=True):
        rest = vector
        # Twice: once leaves rounding of the size of what was taken.
        for _ in range(2):
            for other in basis:
                rest = rest - (rest * other).sum(-1, keepdim=True) * other
        size = rest.norm(dim=-1, keepdim=True)
        adds = size > 1e-4 * length
        basis.append(torch.where(adds, rest / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0))
    return torch.stack(basis, dim=1)
