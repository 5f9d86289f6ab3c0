"""Sums over one tile of logits, as a set of kernels computes them, in bits (`l / ln 2`): every exponential is 2^x.

A state's logits are kept as the factors that sums of their changes are products of: with `e = 2^(a - shift)` and
`p = 2^d`, a change `d` of the logits `a` has `Z = sum e p` and `S = sum (a - shift + d) e p`, and removing it has the
same sums with `1 / p`. That holds while every `|d|` of a row is within `SAFE_BITS`: a term lost to underflow,
`2^(a - shift) < 2^-126`, is then at most `2^(-126 + 43)` beside a sum of at least `2^-43`, so all d_vocab of them
together change nothing in float32. In other rows the changed logits are formed, and have a maximum of their own.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.ops.activations import cap_logits
from headscope.ops.devices import wide
from headscope.ops.kernels.head_products import times
from headscope.ops.kernels.products import product

__all__ = ["BITS", "PRECISIONS", "SAFE_BITS", "Factors", "Kernels", "Precision", "RightFactors", "Top", "formed_logits"]

# Of products of heads. "tf32" rounds factors to 10 bits of fraction, "bfloat16x3" to two bfloat16 each, of 8 bits.
Precision = Literal["float32", "bfloat16", "bfloat16x3", "tf32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

BITS = 1 / math.log(2)
SAFE_BITS = 30.0 * BITS
# Masked tokens (logits of minus infinity) stand this many bits below the maximum: their exponential is 0, and 0 times a
# finite number is no NaN.
MASKED_BITS = -1e4


@dataclass(frozen=True)
class Factors:
    """A state's logits in a tile, or several states'.

    Attributes:
        shift: Row maximum of the logits, finite even where all are masked.
        logits: The logits less `shift`, in bits, at least `MASKED_BITS`.
        weights: `e = 2^logits`.
        z: Sum of `e`.
        s: Sum of `logits * e`.
    """

    shift: Float[Tensor, "*state row"]
    logits: Float[Tensor, "*state row tile"]
    weights: Float[Tensor, "*state row tile"]
    z: Float[Tensor, "*state row"]
    s: Float[Tensor, "*state row"]

    def __getitem__(self, which: int | slice) -> "Factors":
        """Return one of several states' factors, or some of them."""
        return Factors(*(getattr(self, name)[which] for name in ("shift", "logits", "weights", "z", "s")))


@dataclass(frozen=True)
class RightFactors:
    """The right factors of products, in the layout that a set of kernels reads them in.

    Attributes:
        entries: `[..., inner, tile]`, or what the kernels made of it.
        tile: Columns of a product.
    """

    entries: Tensor
    tile: int

    def __getitem__(self, which: int | slice) -> "RightFactors":
        """Return some of them, such as one head's or one layer's."""
        return RightFactors(self.entries[which], self.tile)


@dataclass(frozen=True)
class Top:
    """Largest logits of some predictions, after some tiles of the vocabulary; kernels write into it.

    These logits are in nats: sums that are exact tie, as they would not once factors are multiplied by `BITS`.

    Attributes:
        best: The largest logits, in descending order; minus infinity for those yet to come.
        z: Sum of `exp(l - shift)` with the shift of `shift_of(best)`, in float64.
        target: Logit of the token that came next; minus infinity before its tile.
        ties: How many tokens before that one have the same logit, of those that can be among the largest.
    """

    best: Float[Tensor, "prediction row k"]
    z: Float[Tensor, "prediction row"]
    target: Float[Tensor, "prediction row"]
    ties: Int[Tensor, "prediction row"]

    def __getitem__(self, where: tuple[slice, slice]) -> "Top":
        """Return that of some predictions and rows, in the same memory."""
        return Top(self.best[where], self.z[where], self.target[where], self.ties[where])

    @staticmethod
    def shift_of(best: Float[Tensor, "prediction row k"]) -> Float[Tensor, "prediction row"]:
        """Return the largest logits, or a very low number where all so far are masked."""
        return best[..., 0].clamp(min=torch.finfo(best.dtype).min / 2)


class Kernels(ABC):
    """A set of kernels with memory that is reused from tile to tile: every thread has a set of its own.

    Args:
        precision: Of the heads' products, one of `precisions`.

    Attributes:
        name: As `HEADSCOPE_KERNELS` has it, and as results name it.
        precisions: Those that it can compute heads' products in.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "bfloat16")

    def __init__(self, precision: Precision = "float32") -> None:
        self.precision = precision
        self._kept: dict[str, Tensor] = {}

    @classmethod
    def runs_on(cls, device: torch.device) -> bool:
        """Return whether they can compute there."""
        del device
        return True

    def buffer(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialized tensor of this shape: allocating one for every tile costs more than filling it."""
        dtype = like.dtype if dtype is None else dtype
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size or kept.dtype != dtype or kept.device != like.device:
            kept = self._kept[name] = torch.empty(size, dtype=dtype, device=like.device)
        return kept[:size].view(shape)

    @classmethod
    def prepared(cls, right: Float[Tensor, "*each inner tile"]) -> RightFactors:
        """Return the right factors of products, which all threads share, as these kernels read them."""
        return RightFactors(right, right.shape[-1])

    def product(
        self, left: Float[Tensor, "row inner"], right: RightFactors, out: Float[Tensor, "row tile"]
    ) -> Float[Tensor, "row tile"]:
        """Write `left @ right` into `out`."""
        return product(left, right.entries, out)

    @abstractmethod
    def factors(
        self, linear: Float[Tensor, "row tile"], name: str, offset: Float[Tensor, " tile"] | None = None
    ) -> Factors:
        """Return the factors of the logits `linear + offset`, in the buffers of this name.

        Without an offset, the memory of `linear` becomes theirs.
        """

    @abstractmethod
    def changes(
        self,
        added: Float[Tensor, "component row tile"],
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 component row"],
    ) -> None:
        """Write shift, Z and S of `base + d` and `final - d` into `out`, for the logits `d` each component adds.

        On an accelerator, `base` may be a state for each component.
        """

    def formed(
        self,
        added: Float[Tensor, "component row tile"],
        sign: int,
        linear: Float[Tensor, "*component row tile"],
        offset: Float[Tensor, " tile"],
        soft_cap: float,
        gain: Float[Tensor, "component row"] | None,
        out: Float[Tensor, "3 component row"],
    ) -> None:
        """Write shift, Z and S of each component's changed logits into `out`.

        They are `gain (linear + sign * added) + offset`, capped softly: with a gain for each or a cap, no factors of a
        state serve its changes. On an accelerator, `linear` may be a state's for each component.
        """
        # One component at a time, so that a core's logits stay in its cache.
        for number, each in enumerate(added):
            changed = torch.add(linear, each, alpha=sign)
            logits = formed_logits(changed, None if gain is None else gain[number], offset, soft_cap)
            factors = self.factors(logits, "formed")
            torch.stack((factors.shift, factors.z, factors.s), out=out[:, number])

    def head_logits(
        self, left: Float[Tensor, "head row inner"], right: RightFactors, dtype: torch.dtype
    ) -> Float[Tensor, "head row tile"]:
        """Return the products of heads' factors, in a buffer that the next call overwrites."""
        shape = (*left.shape[:2], right.tile)
        out = self.buffer("heads", shape, left, dtype)
        if left.dtype == dtype:
            return times(left, right.entries, out)
        return out.copy_(times(left, right.entries, self.buffer("rounded", shape, left)))

    def head_changes(
        self,
        left: Float[Tensor, "head row inner"],
        right: RightFactors,
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 head row"],
        total: Float[Tensor, "row tile"] | None = None,
    ) -> None:
        """Do the same as `changes` for heads given by the factors of their logits, and fill `total` with their sum."""
        added = self.head_logits(left, right, base.logits.dtype)
        if total is not None:
            torch.sum(added, 0, out=total)
        self.changes(added, base, final, out)

    def follow(
        self,
        total: Float[Tensor, "*layer row tile"],
        before: Float[Tensor, "*layer row tile"],
        after: Float[Tensor, "*layer row tile"],
        by: Float[Tensor, " row"],
        rests: tuple[Tensor, ...],
        mlp: Float[Tensor, "*layer row tile"],
    ) -> None:
        """Make the heads' `total` the logits behind attention, and fill `mlp` with what is left to those of `after`.

        Args:
            by: Factor on both `rests`.
            rests: Logits of what else attention and MLP add.
        """
        attn_rest, mlp_rest = rests
        total.add_(before).addcmul_(by[:, None], attn_rest)
        torch.sub(after, total, out=mlp).addcmul_(by[:, None], mlp_rest, value=-1)

    @abstractmethod
    def removals(
        self, removed: Float[Tensor, "change row tile"], clean: Factors, out: Float[Tensor, "3 change row"]
    ) -> None:
        """Write shift and Z of `clean - d`, and `sum e d` for clean's `e`, into `out`; `removed` is overwritten."""

    def count_excess(
        self, entries: Float[Tensor, "row tile"], than: Float[Tensor, "row 1"], excess: Int[Tensor, " row"]
    ) -> None:
        """Add to `excess` how many entries of a row are above `than`, less how many are below; they are overwritten."""
        # Sums of signs are whole numbers below 2^24 for any tile, which float32 holds exactly.
        excess += entries.sub_(than).sign_().sum(-1).to(excess.dtype)

    def top(self, logits: Float[Tensor, "prediction row tile"], targets: Int[Tensor, " row"], so_far: Top) -> None:
        """Merge a tile of logits, in nats, into what is known of its rows; they are overwritten.

        Args:
            logits: Of some predictions.
            targets: The column of each row's token that came next; outside the tile for most.
            so_far: Of the same predictions and rows.
        """
        best, k = so_far.best, so_far.best.shape[-1]
        rows = ((targets >= 0) & (targets < logits.shape[-1])).nonzero()[:, 0]
        if len(rows):
            here, columns = logits[:, rows], targets[rows]
            own = here.gather(-1, columns.expand(len(here), -1)[..., None])
            earlier = torch.arange(logits.shape[-1], device=targets.device) < columns[:, None]
            so_far.ties[:, rows] = ((here == own) & earlier).sum(-1) + (best[:, rows] == own).sum(-1)
            so_far.target[:, rows] = own[..., 0]
        old, highest = so_far.shift_of(best), logits.amax(-1)
        if k == 1:
            torch.maximum(best, highest[..., None], out=best)
        else:
            # Most tiles hold nothing above the k-th value so far: only rows where one does are sorted.
            enters = highest > best[..., -1]
            candidates = logits[enters].topk(min(k, logits.shape[-1]), dim=-1).values
            best[enters] = torch.cat([best[enters], candidates], dim=-1).topk(k, dim=-1).values
        add_powers(logits, old, so_far)

    def head_top(
        self,
        left: Float[Tensor, "head row inner"],
        right: RightFactors,
        final: Float[Tensor, "row tile"],
        soft_cap: float,
        targets: Int[Tensor, " row"],
        so_far: Top,
    ) -> None:
        """Do the same as `top` for what each head leaves of the logits `final`, capped softly after."""
        removed = self.head_logits(left, right, final.dtype)
        self.top(cap_logits(torch.sub(final, removed, out=removed), soft_cap), targets, so_far)


def add_powers(logits: Float[Tensor, "prediction row tile"], old: Float[Tensor, "prediction row"], so_far: Top) -> None:
    """Add a tile's sum of `exp` to `z`, which stands for the shift `old`, and bring it to that of `best`."""
    new = so_far.shift_of(so_far.best)
    z = logits.sub_(new[..., None]).mul_(BITS).exp2_().sum(-1)  # 2^x is made faster than e^x
    so_far.z.mul_((wide(old) - wide(new)).exp_()).add_(wide(z))


def formed_logits(
    linear: Float[Tensor, "*each row tile"],
    gain: Float[Tensor, "*each row"] | None,
    offset: Float[Tensor, " tile"],
    soft_cap: float,
) -> Float[Tensor, "*each row tile"]:
    """Return the logits that a linear part leads to, in memory of their own."""
    return cap_logits((linear if gain is None else linear * gain[..., None]) + offset, soft_cap)
