"""Rotary positions: queries and keys turned by angles that grow with their position (Su et al. 2021).

A head's dimensions go in pairs; at position `p`, pair `i` is turned by `p * frequency[i]`, so that a score depends on
the distance of two tokens alone. Frequencies fall geometrically, and models made for longer texts divide some of them
(`frequencies` has the variants). Tables of sines and cosines are as long as the longest text so far, and layers with
the same angles share one.
"""

import math
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.model.config import HookedTransformerConfig

__all__ = ["RotaryTable", "attention_temperature", "frequencies", "rotary_table", "rotate"]

_SETTINGS = (
    "rotary_dim", "rotary_dim_local", "rotary_pairs", "rotary_base", "rotary_base_local", "rotary_adjacent_pairs",
    "rotary_scaling_factor", "use_NTK_by_parts_rope", "NTK_by_parts_low_freq_factor",
    "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor", "NTK_original_ctx_len", "use_yarn_rope", "yarn_factor",
    "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_original_max_position_embeddings",
    "yarn_truncate", "dynamic_NTK_factor", "longrope_original_ctx_len", "longrope_attention_factor", "dtype",
)  # fmt: skip


class RotaryTable:
    """Sines and cosines `[pos, rotary_dim]`, made as far as they are asked for.

    Args:
        angles: The angle of each pair of dimensions at position 1.
        factor: Multiplies sines and cosines.
        adjacent: Pair neighboring dimensions; else each with the one half further.
        dtype: Of the table.
    """

    def __init__(self, angles: Float[Tensor, " pair"], factor: float, adjacent: bool, dtype: torch.dtype) -> None:
        self._angles = angles.repeat_interleave(2) if adjacent else angles.repeat(2)
        self._factor = factor
        self._dtype = dtype
        self._sin = self._cos = torch.empty(0, len(self._angles), dtype=dtype, device=angles.device)

    def rows(self, length: int) -> tuple[Tensor, Tensor]:
        """Sines and cosines of at least the first `length` positions. They are shared: not to be written to."""
        if length > self._sin.shape[0]:
            wide = max(length, 2 * self._sin.shape[0])
            with torch.inference_mode(False):
                positions = torch.arange(wide, dtype=self._angles.dtype, device=self._angles.device)
                turned = positions[:, None] * self._angles
                self._sin, self._cos = ((self._factor * each).to(self._dtype) for each in (turned.sin(), turned.cos()))
        return self._sin, self._cos


# Kept alive by the layers that use them.
_TABLES: WeakValueDictionary[tuple[object, ...], RotaryTable] = WeakValueDictionary()


def rotary_table(cfg: HookedTransformerConfig, *, local: bool, length: int, device: torch.device) -> RotaryTable:
    """The table for a layer.

    Args:
        cfg: The model's config.
        local: True if the layer is a local one.
        length: How long the text is, with what is in a key-value cache: LongRoPE and dynamic NTK have other angles for
            long texts.
        device: Where the table is.
    """
    factors = _longrope_factors(cfg, length)
    of_scale = None if factors is None else tuple(factors)
    key = (*(getattr(cfg, name) for name in _SETTINGS), local, of_scale, _base_growth(cfg, length), str(device))
    table = _TABLES.get(key)
    if table is None:
        with torch.inference_mode(False):  # a table outlives the block it was first needed in
            angles, factor = frequencies(cfg, local=local, length=length)
            table = RotaryTable(angles.to(device), factor, cfg.rotary_adjacent_pairs, cfg.dtype)
        _TABLES[key] = table
    return table


def frequencies(
    cfg: HookedTransformerConfig, *, local: bool = False, length: int = 1
) -> tuple[Float[Tensor, " pair"], float]:
    """The angle of each pair of dimensions from one position to the next, and what sines and cosines are multiplied by.

    `base ** (-2 i / rotary_dim)` for pair `i`, then scaled: by a constant, by parts ("NTK-by-parts", as Llama 3.1 has
    it), by YaRN (Peng et al. 2023, arXiv 2309.00071, section 3), by a base that grows with the text (dynamic NTK) or by
    LongRoPE's factors (Ding et al. 2024, arXiv 2402.13753). Local layers with a base of their own are not scaled.

    Args:
        cfg: The model's config.
        local: True if the layer is a local one.
        length: How long the text is.

    Example:
        >>> cfg = HookedTransformerConfig(
        ...     n_layers=1, d_model=8, n_ctx=9, d_head=4, attn_only=True, positional_embedding_type="rotary"
        ... )
        >>> frequencies(cfg)[0]
        tensor([1.0000, 0.0100])
    """
    assert cfg.rotary_dim is not None
    wide = torch.float64 if cfg.dtype == torch.float64 else torch.float32
    own_base = local and cfg.rotary_base_local is not None
    base = cfg.rotary_base_local if own_base else cfg.rotary_base
    assert base is not None
    if not own_base:
        base *= _base_growth(cfg, length)
    width = cfg.rotary_dim_local if own_base and cfg.rotary_dim_local is not None else cfg.rotary_dim
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=wide) / width)
    if own_base:
        return plain, 1.0
    if cfg.rotary_pairs is not None:
        plain[cfg.rotary_pairs :] = 0.0
    factors = _longrope_factors(cfg, length)
    if factors is not None:
        return plain / torch.tensor(factors, dtype=wide), cfg.longrope_attention_factor
    if cfg.use_NTK_by_parts_rope:
        return _by_parts(plain, cfg), 1.0
    if cfg.use_yarn_rope:
        return _yarn(plain, cfg), cfg.yarn_attention_factor
    return plain / cfg.rotary_scaling_factor, 1.0


def _longrope_factors(cfg: HookedTransformerConfig, length: int) -> list[float] | None:
    return cfg.longrope_long_factors if length > cfg.longrope_original_ctx_len else cfg.longrope_short_factors


def _base_growth(cfg: HookedTransformerConfig, length: int) -> float:
    """Return what dynamic NTK multiplies the base by in a text of this length."""
    assert cfg.rotary_dim is not None
    if cfg.dynamic_NTK_factor is None or length <= cfg.NTK_original_ctx_len or cfg.rotary_dim < 4:
        return 1.0  # one pair of dimensions always has the frequency 1
    stretch = cfg.dynamic_NTK_factor * length / cfg.NTK_original_ctx_len - (cfg.dynamic_NTK_factor - 1)
    return stretch ** (cfg.rotary_dim / (cfg.rotary_dim - 2))


def _by_parts(plain: Tensor, cfg: HookedTransformerConfig) -> Tensor:
    """Fast angles stay, slow ones are divided, and those between go from one to the other."""
    turns = cfg.NTK_original_ctx_len * plain / (2 * math.pi)  # over the context the model was made with
    low, high = cfg.NTK_by_parts_low_freq_factor, cfg.NTK_by_parts_high_freq_factor
    stay = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (stay + (1 - stay) / cfg.NTK_by_parts_factor)


def _yarn(plain: Tensor, cfg: HookedTransformerConfig) -> Tensor:
    """The same by parts, with a ramp between that is linear in the number of the pair."""
    assert cfg.rotary_dim is not None

    def pair_that_turns(times: float) -> float:
        length = cfg.yarn_original_max_position_embeddings / (times * 2 * math.pi)
        return cfg.rotary_dim * math.log(length) / (2 * math.log(cfg.rotary_base))  # type: ignore[operator]

    ends = pair_that_turns(cfg.yarn_beta_fast), pair_that_turns(cfg.yarn_beta_slow)
    if cfg.yarn_truncate:
        ends = math.floor(ends[0]), math.ceil(ends[1])
    first, last = max(ends[0], 0), min(ends[1], cfg.rotary_dim - 1)
    pairs = torch.arange(len(plain), dtype=plain.dtype)
    divided = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
    return plain * (1 - divided + divided / cfg.yarn_factor)


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    sin: Float[Tensor, "#batch pos rotary_dim"],
    cos: Float[Tensor, "#batch pos rotary_dim"],
    *,
    adjacent: bool,
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn the first `rotary_dim` dimensions of each head, in pairs.

    Args:
        x: Queries or keys.
        sin: Sines of the angles.
        cos: Their cosines.
        adjacent: Pair neighbors; else each dimension is with the one half of `rotary_dim` further.
    """
    width = sin.shape[-1]
    sin, cos = (each.to(x.dtype)[:, :, None] for each in (sin, cos))
    part = x[..., :width]
    if adjacent:
        across = torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = part.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    turned = part * cos + across * sin
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)


def attention_temperature(
    cfg: HookedTransformerConfig, positions: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """Return what queries are multiplied by at each position, so that attention stays sharp among many keys.

    `1 + slope * log(1 + floor((start + position) / length))`, with the config's `attn_temperature_...` (Llama 4).
    """
    wide = torch.float64 if cfg.dtype == torch.float64 else torch.float32
    periods = ((positions + cfg.attn_temperature_start) // cfg.attn_temperature_length).to(wide)
    return 1 + cfg.attn_temperature_slope * torch.log1p(periods)
