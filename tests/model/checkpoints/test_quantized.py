"""Quantized checkpoints give the matrices they stand for, by each format's formula written out number by number."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families_table import LENGTH, ROWS, VOCABULARY, hf_model
from safetensors.torch import load_file, save_file
from tiny import randomize, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.errors import CheckpointError
from headscope.model.checkpoints.quantized import dequantized

TOKENS = tiny_tokens(3, LENGTH, d_vocab=VOCABULARY)
# The table of NF4 (Dettmers et al. 2023, appendix E), rounded.
NF4 = torch.tensor([-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379,
                    0.4407, 0.5626, 0.7230, 1.0])  # fmt: skip


def random(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def scales(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def packed(numbers: Tensor, bits: int, axis: int) -> Tensor:
    """Pack along an axis, the lowest bits first."""
    each = 32 // bits
    rows = numbers if axis == 1 else numbers.T
    words = torch.zeros(rows.shape[0], -(-rows.shape[1] // each), dtype=torch.int64)
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            words[row, column // each] += int(rows[row, column]) << (bits * (column % each))
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return words if axis == 1 else words.T.contiguous()


def read(tensors: dict[str, Tensor], **options: Any) -> Tensor:
    found = dequantized({f"layer.{name}": tensor for name, tensor in tensors.items()}, {"quantization_config": options})
    assert list(found) == ["layer.weight"] and len(found) == 1
    return found["layer.weight"]


def nf4(weight: Tensor, block: int, nested: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix as bitsandbytes stores it, and what it stands for."""
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
    largest = blocks.abs().amax(1)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": list(weight.shape)}
    own = {".absmax": largest, ".quant_map": NF4.clone()}
    if nested:
        offset, table = float(largest.mean()), torch.linspace(-1, 1, 256)
        scale = (largest - offset).abs().max()
        own[".absmax"] = (((largest - offset) / scale)[:, None] - table).abs().argmin(1).to(torch.uint8)
        largest = table[own[".absmax"].long()] * scale + offset
        own |= {".nested_absmax": scale[None], ".nested_quant_map": table}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    indices = ((blocks / largest[:, None])[..., None] - NF4).abs().argmin(-1)
    values = (NF4[indices] * largest[:, None]).flatten()[: weight.numel()].view(weight.shape)
    flat = torch.nn.functional.pad(indices.flatten()[: weight.numel()], (0, weight.numel() % 2))
    own[""] = (flat[0::2] * 16 + flat[1::2]).to(torch.uint8)[:, None]
    own[".quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return {f"weight{name}": tensor for name, tensor in own.items()}, values


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4bit(nested: bool) -> None:
    stored, wanted = nf4(torch.randn(7, 36, generator=torch.Generator().manual_seed(0)), 64, nested)
    found = read(stored, quant_method="bitsandbytes", load_in_4bit=True)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_bitsandbytes_8bit() -> None:
    numbers, largest = random(5, 7, below=255).to(torch.int16) - 127, scales(5)
    stored = {"weight": numbers.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = read(stored, load_in_8bit=True)
    torch.testing.assert_close(found, numbers * largest[:, None] / 127)
    with pytest.raises(CheckpointError, match="order that only a GPU reads"):
        read({**stored, "weight_format": torch.tensor(1, dtype=torch.uint8)}, quant_method="bitsandbytes")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("sorted_by_activation", [False, True])
def test_gptq(bits: int, version: str | None, sorted_by_activation: bool) -> None:
    inputs, outputs, size = 32, 20, 16
    numbers, zeros, scale = (
        random(inputs, outputs, below=2**bits),
        random(2, outputs, below=2**bits - 1),
        scales(2, outputs),
    )
    groups = random(inputs, below=2, seed=3) if sorted_by_activation else torch.arange(inputs) // size
    one = 0 if version == "gptq_v2" else 1
    wanted = torch.stack([scale[g] * (numbers[i] - (zeros[g] + one)) for i, g in enumerate(groups.tolist())]).T
    stored = {"qweight": packed(numbers, bits, 0), "qzeros": packed(zeros, bits, 1), "scales": scale.half()}
    stored |= {"g_idx": groups.int()} if sorted_by_activation else {}
    options = {} if version is None else {"checkpoint_format": version}
    found = read(stored, quant_method="gptq", bits=bits, group_size=size, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert found.shape == (outputs, inputs)


def test_gptq_of_three_bits_is_refused() -> None:
    stored = {"qweight": torch.zeros(3, 4, dtype=torch.int32), "qzeros": torch.zeros(1, 1, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match=r"layer\.weight cannot be put together from .*layer\.qweight.*3 bits"):
        read({**stored, "scales": torch.ones(1, 4)}, quant_method="gptq", bits=3)


def test_awq() -> None:
    """Eight columns an integer, of which the even ones come first."""
    inputs, outputs, size = 12, 16, 4
    numbers, zeros, scale = random(inputs, outputs, below=16), random(3, outputs, below=16), scales(3, outputs)
    wanted = torch.stack([scale[i // size] * (numbers[i] - zeros[i // size]) for i in range(inputs)]).T
    order = [first + each for first in range(0, outputs, 8) for each in (0, 2, 4, 6, 1, 3, 5, 7)]
    stored = {"qweight": packed(numbers[:, order], 4, 1), "qzeros": packed(zeros[:, order], 4, 1), "scales": scale}
    torch.testing.assert_close(read(stored, quant_method="awq", bits=4, version="GEMM"), wanted)
    with pytest.raises(CheckpointError, match=r"awq \(gemv\)"):
        read(stored, quant_method="awq", bits=4, version="gemv")


def test_mxfp4_is_that_of_transformers() -> None:
    theirs = pytest.importorskip(
        "transformers.integrations.mxfp4", reason="an older transformers, without MXFP4"
    ).convert_moe_packed_tensors
    blocks = random(2, 6, 3, 16, below=256).to(torch.uint8)
    exponents = (random(2, 6, 3, below=8) + 124).to(torch.uint8)
    stored = {"experts.down_proj_blocks": blocks, "experts.down_proj_scales": exponents, "norm.weight": torch.ones(2)}
    found = dequantized(stored, {"quantization_config": {"quant_method": "mxfp4"}})
    assert set(found) == {"norm.weight", "experts.down_proj"} and torch.equal(found["norm.weight"], torch.ones(2))
    assert torch.equal(found["experts.down_proj"], theirs(blocks, exponents, dtype=torch.float32))
    values = (0, 0.5, 1, 1.5, 2, 3, 4, 6)  # E2M1 of Open Compute's MX formats
    byte = int(blocks[1, 4, 2, 5])
    for place, four in ((10, byte & 15), (11, byte >> 4)):
        wanted = (-1) ** (four >> 3) * values[four & 7] * 2.0 ** (int(exponents[1, 4, 2]) - 127)
        assert float(found["experts.down_proj"][1, 2 * 32 + place, 4]) == wanted


def test_float8_tiles_with_a_ragged_edge() -> None:
    weight = torch.randn(5, 7).to(torch.float8_e4m3fn)
    scale = scales(3, 3)
    wanted = torch.tensor([[float(weight[i, j]) * float(scale[i // 2, j // 3]) for j in range(7)] for i in range(5)])
    stored = {"weight": weight, "weight_scale_inv": scale}
    torch.testing.assert_close(read(stored, quant_method="fp8", weight_block_size=[2, 3]), wanted)
    with pytest.raises(CheckpointError, match=r"must be \[2, 2\]; got \[3, 3\]"):
        read(stored, quant_method="fp8", weight_block_size=[4, 4])
    single = {"weight": weight, "weight_scale_inv": torch.tensor(0.25), "activation_scale": torch.tensor(2.0)}
    torch.testing.assert_close(read(single, quant_method="fp8"), weight.float() / 4)
    exponents = {"weight": weight, "weight_scale_inv": torch.full((3, 3), 125, dtype=torch.uint8)}
    torch.testing.assert_close(read(exponents, quant_method="fp8", weight_block_size=[2, 3]), weight.float() / 4)
    experts = {"experts.down_proj": torch.ones(2, 4, 4).to(torch.float8_e4m3fn)}
    experts["experts.down_proj_scale_inv"] = scales(2, 2, 2)
    found = dequantized(experts, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}})
    grid = experts["experts.down_proj_scale_inv"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(found["experts.down_proj"], grid)


@pytest.mark.parametrize("options", [{"quant_method": "fbgemm_fp8"}, {"quant_method": "compressed-tensors",
                                     "format": "float-quantized"}])  # fmt: skip
def test_float8_rows(options: dict[str, str]) -> None:
    weight, scale = torch.randn(4, 6).to(torch.float8_e4m3fn), scales(4, 1)
    stored = {"weight": weight, "weight_scale": scale, "input_scale": torch.tensor(0.1)}
    torch.testing.assert_close(read(stored, **options), weight.float() * scale)


def test_int8_rows_with_zero_points() -> None:
    weight, scale = (random(4, 6, below=256) - 128).to(torch.int8), scales(4, 1)
    zeros = torch.tensor([[0], [3], [-5], [127]], dtype=torch.int8)
    options = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    found = read({"weight": weight, "weight_scale": scale, "weight_zero_point": zeros}, **options)
    torch.testing.assert_close(found, (weight.float() - zeros.float()) * scale)
    with pytest.raises(CheckpointError, match=r"must be of torch\.int8"):
        read({"weight": weight.float(), "weight_scale": scale}, **options)  # saved before it was quantized


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_packed(bits: int, symmetric: bool) -> None:
    offset, outputs, inputs = 2 ** (bits - 1), 9, 24
    numbers, scale = random(outputs, inputs, below=2**bits), scales(outputs, 3)
    zeros = random(outputs, 3, below=2**bits, seed=5)
    groups = torch.arange(inputs) // 8
    stored = {
        "weight_packed": packed(numbers, bits, 1),
        "weight_scale": scale,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    wanted = (numbers - offset) * scale[:, groups]
    if not symmetric:
        stored["weight_zero_point"] = packed(zeros, bits, 0)
        wanted = (numbers - zeros[:, groups]) * scale[:, groups]
    options = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    torch.testing.assert_close(read(stored, **options), wanted)
    if symmetric:
        mixed = random(inputs, below=3, seed=9)
        found = read({**stored, "weight_g_idx": mixed.int()}, **options)
        torch.testing.assert_close(found, (numbers - offset) * scale[:, mixed])
        unsorted = read({**stored, "weight_g_idx": torch.full((inputs,), -1)}, **options)
        torch.testing.assert_close(unsorted, wanted)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, r"compressed-tensors \(marlin-24\)"),
        ({"bits": 4}, "None"),
    ],
)
def test_other_ways_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"quantized with {named}, as quantization_config .*Supported: awq"):
        dequantized({}, {"quantization_config": options})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_numbers_that_nothing_explains_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name}.* holds {str(dtype)[6:]}"):
        HookedTransformer.from_pretrained(tmp_path)


def test_a_quantized_checkpoint_loads_as_the_rounded_model(tmp_path: Path) -> None:
    hf = hf_model("llama")
    hf.save_pretrained(tmp_path)
    tensors, rounded = load_file(tmp_path / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        if name.endswith("_proj.weight"):
            stored, rounded[name] = nf4(tensor, 64, nested=True)
            tensors |= {name.removesuffix("weight") + part: value for part, value in stored.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    entries = json.loads((tmp_path / "config.json").read_text())
    entries["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    found = HookedTransformer.from_pretrained_no_processing(tmp_path)
    wanted = HookedTransformer.from_pretrained_no_processing("", hf_model=Rounded(hf, rounded))
    with torch.no_grad():
        logits = found(TOKENS)
        torch.testing.assert_close(logits, wanted(TOKENS), rtol=0, atol=1e-5)
        assert float((logits - hf(TOKENS).logits).abs().max()) > 0.01


class Rounded:
    """A model of `transformers` with some of its weights replaced."""

    def __init__(self, model: Any, weights: dict[str, Tensor]) -> None:
        self.config, self._weights = model.config, {**model.state_dict(), **weights}

    def state_dict(self) -> dict[str, Tensor]:
        return self._weights


def test_gpt_oss_as_published(tmp_path: Path) -> None:
    """Experts in MXFP4, the rest as it is."""
    _, fields = ROWS["gpt_oss"]
    wide = {**fields, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    hf = transformers.GptOssForCausalLM(transformers.GptOssConfig(**wide)).eval()
    randomize(hf, spread=0.3)
    hf.save_pretrained(tmp_path)
    tensors, rounded = load_file(tmp_path / "model.safetensors"), {}
    for name in [each for each in tensors if each.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        n_experts, inputs, outputs = tensors.pop(name).shape
        blocks = random(n_experts, outputs, inputs // 32, 16, below=256).to(torch.uint8)
        exponents = (random(n_experts, outputs, inputs // 32, below=3) + 122).to(torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": exponents}
        stored = {f"{name}_blocks": blocks, f"{name}_scales": exponents}
        rounded[name] = dequantized(stored, {"quantization_config": {"quant_method": "mxfp4"}})[name]
    assert len(rounded) == 4
    save_file(tensors, tmp_path / "model.safetensors")
    entries = json.loads((tmp_path / "config.json").read_text())
    entries["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    found = HookedTransformer.from_pretrained_no_processing(tmp_path)
    hf.load_state_dict({**hf.state_dict(), **rounded})
    with torch.no_grad():
        wanted = hf(TOKENS).logits
        torch.testing.assert_close(found(TOKENS), wanted, rtol=0, atol=1e-4)
    assert float(wanted.std()) > 0.3
