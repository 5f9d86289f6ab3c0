"""The GGUF container: every type of tensor, shards, and files that are damaged."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from families_table import hf_model
from gguf_files import Writer, random_blocks
from own_process import run_program

from headscope.errors import CheckpointError
from headscope.model.checkpoints.gguf.file import GGUFFile

PLAIN = ("F32", "F16", "BF16")
CANNOT_QUANTIZE = (
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",
    "IQ4_XS", "IQ1_M",
)  # fmt: skip
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")


def one_tensor(path: Path, data: np.ndarray, kind: gguf.GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("odd", np.ones(5, np.float32))  # so that the next begins at padding
    writer.add_tensor("weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers_keep_their_type(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    file = GGUFFile(one_tensor(tmp_path / "x.gguf", gguf.quantize(values, kind), kind))
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
    assert file["weight"].dtype == dtype and file.shape("weight") == (3, 7, 5)
    assert torch.equal(file["weight"], torch.from_numpy(values).to(dtype))
    assert torch.equal(file["odd"], torch.ones(5)) and list(file) == ["odd", "weight"] and len(file) == 2


@pytest.mark.parametrize("name", [*QUANTIZED, *CANNOT_QUANTIZE])
def test_blocks_are_expanded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows at a time, which must not show."""
    monkeypatch.setattr("headscope.model.checkpoints.gguf.file._DEQUANTIZED_AT_ONCE", 512 * 3)
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(0).normal(size=(20, 512)).astype(np.float32)
    blocks = gguf.quantize(values, kind) if name in QUANTIZED else random_blocks(kind, 20, 512, seed=0)
    file = GGUFFile(one_tensor(tmp_path / "x.gguf", blocks, kind))
    wanted = torch.from_numpy(gguf.dequantize(blocks, kind))
    assert file["weight"].dtype == torch.float32 and file["weight"].shape == (20, 512)
    assert torch.equal(file["weight"], wanted) and float(wanted.std()) > 0
    if name in QUANTIZED[:5]:  # of the others three values are left
        assert np.corrcoef(values.ravel(), wanted.numpy().ravel())[0, 1] > 0.8


def test_q4_k_by_its_definition(tmp_path: Path) -> None:
    """256 numbers a block: half-precision d and m, eight 6-bit scales and minima in 12 bytes, then 4 bits a number."""
    blocks = random_blocks(gguf.GGMLQuantizationType.Q4_K, 1, 256, seed=1)
    raw = blocks[0]
    d, m = raw[:4].view(np.float16).astype(np.float64)
    packed, nibbles = raw[4:16].astype(int), raw[16:]
    wanted = np.zeros(256)
    for part in range(8):
        if part < 4:
            scale, least = packed[part] & 63, packed[part + 4] & 63
        else:
            scale = (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4
            least = (packed[part + 4] >> 4) | (packed[part] >> 6) << 4
        own = nibbles[32 * (part // 2) :][:32]
        own = own >> 4 if part % 2 else own & 15
        wanted[32 * part :][:32] = d * scale * own - m * least
    file = GGUFFile(one_tensor(tmp_path / "x.gguf", blocks, gguf.GGMLQuantizationType.Q4_K))
    torch.testing.assert_close(file["weight"][0].double(), torch.from_numpy(wanted), rtol=1e-5, atol=1e-8)


def test_shards_are_one_file(tmp_path: Path) -> None:
    writer = Writer(hf_model("llama"))
    whole = GGUFFile(writer.write(tmp_path / "whole.gguf"))
    writer.write(tmp_path / "split.gguf", split=6)
    shards = sorted(tmp_path.glob("split-*.gguf"))
    assert len(shards) > 2
    file = GGUFFile(shards[0])
    assert set(file) == set(whole) and all(torch.equal(file[name], whole[name]) for name in whole)
    assert file.metadata["llama.block_count"] == 2
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        GGUFFile(shards[0])


def test_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32("eps", 1e-5)
    writer.add_float64("exact", 0.1)
    writer.add_bool("yes", True)
    writer.add_int8("less", -3)
    writer.add_array("words", ["a", "", "d\u00e9j\u00e0"])
    writer.add_array("numbers", [1, 2, -3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = GGUFFile(path).metadata
    assert found["eps"] == 1e-5 and found["exact"] == 0.1 and found["yes"] is True and found["less"] == -3
    assert found["words"] == ["a", "", "d\u00e9j\u00e0"] and found["numbers"] == [1, 2, -3]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Writer(hf_model("llama")).write(tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


def test_a_file_cut_short_anywhere_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 7, 12, 23, 24, *range(30, len(content) - 64, 97), len(content) - 64]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf is not a readable GGUF file"):
            GGUFFile(path)


def test_damaged_headers_are_refused(content: bytes, tmp_path: Path) -> None:
    """A changed byte gives the same names and values, other ones, or an error of ours; never another error."""
    path = tmp_path / "damaged.gguf"
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[int(generator.integers(0, 2500))] = int(generator.integers(0, 256))
        path.write_bytes(damaged)
        try:
            GGUFFile(path)
        except CheckpointError as error:
            assert "damaged.gguf" in str(error) or "unknown type" in str(error)
    path.write_bytes(b"GGML" + content[4:])
    with pytest.raises(CheckpointError, match="does not begin with 'GGUF'"):
        GGUFFile(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + content[8:])
    with pytest.raises(CheckpointError, match="byte order"):
        GGUFFile(path)


def test_a_type_that_nothing_expands_is_refused(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_K
    file = GGUFFile(one_tensor(tmp_path / "x.gguf", np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind))
    with pytest.raises(CheckpointError, match="'weight' is quantized as Q8_K"):
        file["weight"]


def test_plain_files_need_no_package_and_others_say_which(tmp_path: Path) -> None:
    values, kind = np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0
    one_tensor(tmp_path / "plain.gguf", values, gguf.GGMLQuantizationType.F32)
    one_tensor(tmp_path / "quantized.gguf", gguf.quantize(values, kind), kind)
    script = """
import sys
from pathlib import Path
sys.modules["gguf"] = None
from headscope.model.checkpoints.gguf.file import GGUFFile
print(float(GGUFFile(Path("plain.gguf"))["weight"].sum()))
try:
    GGUFFile(Path("quantized.gguf"))["weight"]
except Exception as error:
    print(error)
"""
    run = run_program(script, cwd=tmp_path)
    assert run.stdout.startswith("256.0") and "headscope[gguf]" in run.stdout, run.stderr
