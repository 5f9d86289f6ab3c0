"""Checkpoints quantized to eight or four bits, as full-precision tensors, expanded one at a time on any device.

A quantized matrix is several tensors: packed numbers, their scales, and sometimes zero points. `dequantized` shows them
as the one matrix they stand for, in float32. What rounds activations while a model runs is not imitated.

Sources: bitsandbytes (Dettmers et al. 2022, 2023), GPTQ (Frantar et al. 2023), AWQ (Lin et al. 2024), microscaling
formats (OCP MX 1.0), and the layouts in which their libraries store them.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headscope.errors import CheckpointError

__all__ = ["dequantized"]

# E2M1: a sign, two bits of exponent and one of mantissa.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WORD = 32  # bits of the integers that numbers are packed into
# Places of eight consecutive columns within AWQ's integers.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)

Parts = Mapping[str, Tensor]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class _Scheme:
    """One way to store a matrix.

    Attributes:
        key: Ending of the name of a tensor that only quantized matrices have; before it is the matrix's name.
        parts: Endings of the others.
        result: Ending of the matrix's name.
        read: Makes the matrix from the parts that are there, by their endings, and the entry `quantization_config`.
    """

    key: str
    parts: tuple[str, ...]
    result: str
    read: Callable[[Parts, Options], Tensor]


def dequantized(tensors: Mapping[str, Tensor], hf_config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return a checkpoint's tensors, those that are quantized expanded on access.

    Args:
        tensors: The tensors as stored; may be lazy.
        hf_config: Entries of `config.json`; `quantization_config` says how they are quantized.

    Raises:
        CheckpointError: For a way of quantizing that is not known, named with what is, and on access for numbers that
            are packed in a way that nothing says.

    Example:
        >>> stored = {"up.weight": torch.tensor([[127, -64]], dtype=torch.int8), "up.SCB": torch.tensor([2.0])}
        >>> dequantized(stored, {"quantization_config": {"quant_method": "bitsandbytes"}})["up.weight"]
        tensor([[ 2.0000, -1.0079]])
    """
    options = hf_config.get("quantization_config") or {}
    return _Dequantized(tensors, _schemes(options) if options else (), options)


class _Dequantized(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Tensor], schemes: tuple[_Scheme, ...], options: Options) -> None:
        self._tensors, self._options = tensors, options
        self._quantized: dict[str, tuple[_Scheme, dict[str, str]]] = {}
        left = dict.fromkeys(tensors)
        for scheme in schemes:
            for name in [each for each in left if each.endswith(scheme.key)]:
                base = name.removesuffix(scheme.key)
                parts = {part: base + part for part in (scheme.key, *scheme.parts) if base + part in left}
                self._quantized[base + scheme.result] = (scheme, parts)
                for part in parts.values():
                    left.pop(part, None)
        self._names = (*left, *self._quantized)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._quantized:
            scheme, parts = self._quantized[name]
            try:
                return scheme.read({part: self._tensors[place] for part, place in parts.items()}, self._options)
            except (KeyError, ValueError, RuntimeError, IndexError, TypeError) as error:
                found = ", ".join(sorted(parts.values()))
                raise CheckpointError(
                    f"the quantized matrix {name} cannot be put together from {found}: "
                    f"{type(error).__name__}: {str(error).splitlines()[0]}"
                ) from None
        tensor = self._tensors[name]
        if tensor.dtype not in (*_FLOATS, torch.bool):  # masks kept beside the weights are boolean
            raise CheckpointError(
                f"tensor {name!r} holds {str(tensor.dtype).removeprefix('torch.')}, which is no weight by itself: it "
                "is quantized in a way that quantization_config in config.json does not say."
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _schemes(options: Options) -> tuple[_Scheme, ...]:
    """Return the schemes of `quantization_config`, which names the method, and of some a version or format."""
    method = options.get("quant_method")
    if method is None and (options.get("load_in_4bit") or options.get("load_in_8bit")):
        method = "bitsandbytes"
    version = {"awq": options.get("version", "gemm"), "compressed-tensors": options.get("format")}.get(str(method))
    key = (str(method), None if version is None else str(version).lower())
    if key not in _SCHEMES:
        known = ", ".join(f"{name} ({kind})" if kind else name for name, kind in _SCHEMES)
        said = f" ({version})" if version is not None else ""
        raise CheckpointError(
            f"weights quantized with {method}{said}, as quantization_config in config.json says, are not supported. "
            f"Supported: {known}. Load the model that they were made of, or a GGUF file of it.",
            code="HS-CHECKPOINT-11",
        )
    return _SCHEMES[key]


def _expect(tensor: Tensor, *dtypes: torch.dtype) -> Tensor:
    """Return the tensor if it holds packed numbers; a checkpoint saved before packing has ordinary ones."""
    if tensor.dtype not in dtypes:
        raise ValueError(f"packed numbers must be of {' or '.join(map(str, dtypes))}; got {tensor.dtype}")
    return tensor


def _unpacked(packed: Tensor, bits: int, axis: int) -> Tensor:
    """Return the unsigned numbers packed in 32-bit integers along an axis of a matrix, lowest bits first."""
    if bits not in (2, 4, 8):
        raise ValueError(f"numbers of {bits} bits are not packed in whole integers")
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    each = _expect(packed, torch.int32).unsqueeze(axis + 1) >> (shifts[:, None] if axis == 0 else shifts)
    return (each & ((1 << bits) - 1)).flatten(axis, axis + 1)


def _nibbles(packed: Tensor, *, high_first: bool) -> Tensor:
    """Return the two numbers of each byte, one after another along the last axis."""
    low, high = _expect(packed, torch.uint8) & 15, packed >> 4
    return torch.stack((high, low) if high_first else (low, high), -1).flatten(-2).int()


def _mxfp4(parts: Parts, options: Options) -> Tensor:
    """Blocks of 32 numbers of four bits with a shared power of two; gpt-oss's experts, inputs first."""
    blocks, exponents, table = parts["_blocks"], parts["_scales"].to(torch.int32) - 127, torch.tensor(_FP4)
    n_experts, n_outputs, n_blocks, n_bytes = blocks.shape
    weights = torch.empty(n_experts, n_blocks * n_bytes * 2, n_outputs)
    for weight, numbers, exponent in zip(weights, blocks, exponents, strict=True):  # one at a time: indices are large
        values = torch.ldexp(table[_nibbles(numbers, high_first=False)], exponent.unsqueeze(-1))
        weight.copy_(values.flatten(1).T)
    return weights


def _bitsandbytes_4bit(parts: Parts, options: Options) -> Tensor:
    """Indices into a table of sixteen numbers, times the largest absolute value of each block."""
    (name,) = (name for name in parts if name.startswith(".weight.quant_state."))
    state = json.loads(bytes(parts[name].tolist()))
    scales = parts[".weight.absmax"]
    if ".weight.nested_absmax" in parts:
        # Scales are quantized themselves, with one table of 256 numbers.
        own = parts[".weight.nested_quant_map"][_expect(scales, torch.uint8).int()]
        scales = (
            _times_blocks(own.float(), parts[".weight.nested_absmax"], state["nested_blocksize"])
            + state["nested_offset"]
        )
    indices = _nibbles(parts[".weight"].flatten(), high_first=True)
    values = parts[".weight.quant_map"].float()[indices[: math.prod(state["shape"])]]
    return _times_blocks(values, scales.float(), state["blocksize"]).view(state["shape"])


def _times_blocks(values: Tensor, scales: Tensor, size: int) -> Tensor:
    return values * scales.repeat_interleave(size)[: len(values)]


def _bitsandbytes_8bit(parts: Parts, options: Options) -> Tensor:
    """Rows of eight bits, with the largest absolute value of each."""
    if ".weight_format" in parts and int(parts[".weight_format"]):
        raise ValueError("the rows are in an order that only a GPU reads (weight_format is not 0)")
    return _expect(parts[".weight"], torch.int8).float() * (parts[".SCB"].float() / 127).unsqueeze(-1)


def _gptq(parts: Parts, options: Options) -> Tensor:
    """Columns of groups of inputs; an input's group is in `g_idx`, since they may be sorted by their activation."""
    bits = options["bits"]
    numbers, zeros = _unpacked(parts[".qweight"], bits, 0), _unpacked(parts[".qzeros"], bits, 1)
    if options.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros = (zeros + 1) & ((1 << bits) - 1)  # the first version stores one less
    scales = parts[".scales"].float()
    groups = (
        parts[".g_idx"].long() if ".g_idx" in parts else torch.arange(len(numbers)) // (len(numbers) // len(scales))
    )
    return ((numbers - zeros[groups, : numbers.shape[1]]) * scales[groups]).T


def _awq(parts: Parts, options: Options) -> Tensor:
    bits = options.get("bits", options.get("w_bit", 4))
    if bits != 4:
        raise ValueError(f"AWQ has numbers of 4 bits; got {bits}")
    numbers, zeros = (
        _unpacked(parts[name], bits, 1).unflatten(1, (-1, 8))[:, :, list(_AWQ_ORDER)].flatten(1)
        for name in (".qweight", ".qzeros")
    )
    groups = torch.arange(len(numbers)) // (len(numbers) // len(zeros))
    return ((numbers - zeros[groups]) * parts[".scales"].float()[groups]).T


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Return numbers times the scale of their tile: one for all, one for each row, or a grid."""
    if scale.dtype == torch.uint8:
        scale = (scale.float() - 127).exp2()  # an exponent alone
    values, scale = weight.float(), scale.float()
    if scale.ndim < 2:
        return values * (scale if scale.numel() == 1 else scale.unsqueeze(-1))
    tiles = [-(-whole // parts) for whole, parts in zip(values.shape[-2:], scale.shape[-2:], strict=True)]
    grid = scale.repeat_interleave(tiles[0], -2).repeat_interleave(tiles[1], -1)
    return values * grid[..., : values.shape[-2], : values.shape[-1]]


def _float8_tiles(weight: Tensor, scale: Tensor, options: Options) -> Tensor:
    """Numbers of eight bits with a scale for each tile, of 128 by 128 mostly; the last ones may be cut off."""
    _expect(weight, torch.float8_e4m3fn)
    tile = options.get("weight_block_size")
    if tile is None or scale.ndim < 2:
        return _scaled(weight, scale)
    expected = [-(-whole // own) for whole, own in zip(weight.shape[-2:], tile, strict=True)]
    if list(scale.shape[-2:]) != expected:
        raise ValueError(f"scales for tiles of {tile} must be {expected}; got {list(scale.shape[-2:])}")
    grid = scale if scale.dtype == torch.uint8 else scale.float()
    grid = grid.repeat_interleave(tile[0], -2).repeat_interleave(tile[1], -1)
    return _scaled(weight, grid[..., : weight.shape[-2], : weight.shape[-1]])


def _rows(parts: Parts, options: Options) -> Tensor:
    """Numbers of eight bits with one scale, one for each row, or one for each group along a row."""
    weight = _expect(parts[".weight"], torch.int8, torch.float8_e4m3fn).float()
    zeros = parts.get(".weight_zero_point")
    if zeros is not None and bool(zeros.float().any()):
        weight = weight - _scaled(torch.ones_like(weight), zeros.float())
    return _scaled(weight, parts[".weight_scale"])


def _compressed_packed(parts: Parts, options: Options) -> Tensor:
    """Signed numbers in groups along a row, stored with an offset that makes them positive."""
    shape = parts[".weight_shape"].tolist()
    packed = parts[".weight_packed"]
    bits = _WORD * packed.shape[1] // shape[1]
    if _WORD * packed.shape[1] != bits * shape[1]:
        raise ValueError("rows are not whole integers")
    offset = 1 << (bits - 1)
    numbers, scales = _unpacked(packed, bits, 1) - offset, parts[".weight_scale"].float()
    groups = torch.arange(shape[1]) // -(-shape[1] // scales.shape[1])
    if ".weight_g_idx" in parts and not bool((parts[".weight_g_idx"] < 0).all()):
        groups = parts[".weight_g_idx"].long()
    if ".weight_zero_point" in parts:
        numbers = numbers - (_unpacked(parts[".weight_zero_point"], bits, 0)[: shape[0]] - offset)[:, groups]
    return numbers * scales[:, groups]


_MXFP4 = (_Scheme("_blocks", ("_scales",), "", _mxfp4),)
_BITSANDBYTES = (
    _Scheme(
        ".weight.absmax",
        (
            ".weight",
            ".weight.quant_map",
            ".weight.nested_absmax",
            ".weight.nested_quant_map",
            ".weight.quant_state.bitsandbytes__nf4",
            ".weight.quant_state.bitsandbytes__fp4",
        ),
        ".weight",
        _bitsandbytes_4bit,
    ),
    _Scheme(".SCB", (".weight", ".weight_format"), ".weight", _bitsandbytes_8bit),
)
_GPTQ = (_Scheme(".qweight", (".qzeros", ".scales", ".g_idx"), ".weight", _gptq),)
_AWQ = (_Scheme(".qweight", (".qzeros", ".scales"), ".weight", _awq),)
_FP8 = (
    _Scheme(
        ".weight_scale_inv",
        (".weight", ".activation_scale", ".input_scale"),
        ".weight",
        lambda parts, options: _float8_tiles(parts[".weight"], parts[".weight_scale_inv"], options),
    ),
    # Experts, which are parameters by themselves.
    _Scheme("_scale_inv", ("",), "", lambda parts, options: _float8_tiles(parts[""], parts["_scale_inv"], options)),
)
_OF_ROWS = (
    _Scheme(".weight_scale", (".weight", ".weight_zero_point", ".input_scale", ".input_zero_point"), ".weight", _rows),
)
_PACKED = (
    _Scheme(
        ".weight_packed",
        (".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx"),
        ".weight",
        _compressed_packed,
    ),
)
# By quant_method, and the version or format of those that have several.
_SCHEMES: dict[tuple[str, str | None], tuple[_Scheme, ...]] = {
    ("awq", "gemm"): _AWQ,
    ("bitsandbytes", None): _BITSANDBYTES,
    ("compressed-tensors", "float-quantized"): _OF_ROWS,
    ("compressed-tensors", "int-quantized"): _OF_ROWS,
    ("compressed-tensors", "naive-quantized"): _OF_ROWS,
    ("compressed-tensors", "pack-quantized"): _PACKED,
    ("fbgemm_fp8", None): _OF_ROWS,
    ("fp8", None): _FP8,
    ("gptq", None): _GPTQ,
    ("mxfp4", None): _MXFP4,
}
