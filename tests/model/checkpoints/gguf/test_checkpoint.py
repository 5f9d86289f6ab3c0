"""GGUF files as llama.cpp writes them give the logits of the model they were made of."""

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from families_table import LENGTH, ROWS, VOCABULARY, hf_model
from gguf_files import ARCHITECTURES, Writer
from tiny import randomize, tiny_tokens

from headscope import HookedTransformer
from headscope.errors import CheckpointError
from headscope.model.checkpoints.gguf.architectures import ARCHITECTURES as READ

TOKENS = tiny_tokens(3, LENGTH, d_vocab=VOCABULARY)
# Rows of the families' table that a GGUF file can say. It has no place for windows of Llama-likes, for other scales of
# Gemma's scores, for other orders of layers.
WRITTEN = (
    "gpt2", "llama", "llama tied, biases", "llama, a key for each head", "llama linear", "llama llama3", "llama yarn",
    "mistral without a window", "qwen2", "qwen3", "gemma", "gpt_neox", "gpt_neox one after another, tied", "bloom",
    "phi", "phi3", "phi3 longrope", "olmo", "olmo clipped", "olmo2", "granite", "stablelm", "stablelm side by side",
    "falcon",
    "falcon new decoder", "falcon new decoder, one norm", "mixtral tied, without a window", "olmoe",
    "arcee", "arcee tied, biases", "starcoder2 untied, without biases", "seed_oss", "seed_oss without biases",
    "cohere tied, biases", "qwen2_moe", "granitemoe", "granitemoeshared", "exaone4", "exaone4 without a window",
)  # fmt: skip
# The same with what the file can say, by names of their own.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": ("GptOss", {**ROWS["gpt_oss"][1], "swiglu_limit": 7.0, "rope_parameters": {
        **ROWS["gpt_oss"][1]["rope_parameters"], "beta_fast": 32.0}}),
    "cohere2": ("Cohere2", {**ROWS["cohere2"][1], "num_hidden_layers": 5, "layer_types": None}),
    "half of an odd head": ("Phi", {**ROWS["phi"][1], "hidden_size": 180, "partial_rotary_factor": 26.2 / 45}),
    "cohere with norms": ("Cohere", {**ROWS["cohere"][1], "tie_word_embeddings": True}),
    "starcoder2": ("Starcoder2", {**ROWS["starcoder2"][1], "sliding_window": None}),
    "smollm3": ("SmolLM3", {**ROWS["smollm3"][1], "num_hidden_layers": 5, "no_rope_layer_interval": 4}),
    "nemotron": ("Nemotron", {**ROWS["olmo"][1], "partial_rotary_factor": 0.5, "norm_eps": 0.01}),
    "nemotron tied, biases": ("Nemotron", {**ROWS["olmo"][1], "partial_rotary_factor": 0.5, "mlp_bias": True,
                                           "tie_word_embeddings": True, "attention_bias": True}),
    "olmo3": ("Olmo3", {**ROWS["olmo3 unscaled, tied"][1], "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 700.0} for kind in ("sliding_attention", "full_attention")}}),
    "olmo3 scaled": ("Olmo3", {**ROWS["olmo3 unscaled, tied"][1], "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
        "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8,
                           "rope_theta": 700.0}}}),
    "qwen3_moe": ("Qwen3Moe", {**ROWS["qwen3_moe"][1], "norm_topk_prob": True}),
    "gemma2": ("Gemma2", {**ROWS["gemma2"][1], "query_pre_attn_scalar": 6}),
    "gemma3": ("Gemma3Text", {**ROWS["gemma2 without caps"][1], "query_pre_attn_scalar": 6, "num_hidden_layers": 7}),
    "gemma3 scaled": ("Gemma3Text", {**ROWS["gemma2 without caps"][1], "query_pre_attn_scalar": 6,
                                     "num_hidden_layers": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "falcon with biases": ("Falcon", {**ROWS["falcon"][1], "bias": True, "tie_word_embeddings": False}),
}  # fmt: skip


@cache
def model_of(row: str) -> Any:
    if row not in MORE:
        return hf_model(row)
    stem, fields = MORE[row]
    model = getattr(transformers, f"{stem.removesuffix('Text')}ForCausalLM")(
        getattr(transformers, f"{stem}Config")(**fields)
    ).eval()
    randomize(model, spread=0.4)
    return model


def logits_of(row: str) -> torch.Tensor:
    with torch.no_grad():
        return model_of(row)(TOKENS).logits


def test_every_architecture_is_written() -> None:
    names = {ARCHITECTURES[model_of(row).config.model_type] for row in (*WRITTEN, *MORE)}
    assert names == set(READ)


@pytest.mark.parametrize("row", [*WRITTEN, *MORE])
def test_logits(row: str, tmp_path: Path) -> None:
    path = Writer(model_of(row)).write(tmp_path / "model.gguf")
    found = HookedTransformer.from_pretrained_no_processing(path)
    with torch.no_grad():
        torch.testing.assert_close(found(TOKENS), logits_of(row), rtol=0, atol=1e-4)
    wanted = model_of(row).config.architectures or [type(model_of(row)).__name__]
    assert found.cfg.original_architecture == ("LlamaForCausalLM" if row.startswith("mistral") else wanted[0])
    assert found.tokenizer is None


@pytest.fixture
def llama() -> Writer:
    return Writer(model_of("llama"))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_logits(kind: str, tmp_path: Path) -> None:
    """Those of the model with its matrices rounded in place: permuting rows and rounding within a row commute."""
    fields = {**ROWS["llama"][1], "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, tie_word_embeddings=kind == "Q5_0"))
    randomize(model, spread=0.3)
    number = gguf.GGMLQuantizationType[kind]
    found = HookedTransformer.from_pretrained_no_processing(Writer(model).write(tmp_path / "model.gguf", number))
    with torch.no_grad():
        exact = model(TOKENS).logits
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), number), number)))
        wanted = model(TOKENS).logits
        torch.testing.assert_close(found(TOKENS), wanted, rtol=0, atol=1e-4)
    assert float(wanted.std()) > 0.3 and float((wanted - exact).abs().max()) > 1e-5
    assert found.cfg.dtype == torch.float32


def test_processing_and_options_are_those_of_any_checkpoint(llama: Writer, tmp_path: Path) -> None:
    path = llama.write(tmp_path / "model.gguf")
    folded = HookedTransformer.from_pretrained(path, n_ctx=16, dtype="float64")
    assert folded.weight_processing == HookedTransformer.from_hf(model_of("llama"), fold_ln=True, center_unembed=True,
        fold_value_biases=True).weight_processing  # fmt: skip
    assert folded.cfg.n_ctx == 16 and folded.cfg.dtype == torch.float64 and folded.cfg.model_name == "model.gguf"
    with torch.no_grad():
        found = folded(TOKENS).log_softmax(-1).float()
    torch.testing.assert_close(found, logits_of("llama").log_softmax(-1), rtol=0, atol=1e-4)
    one = HookedTransformer.from_pretrained_no_processing(path, first_n_layers=1)
    assert len(one.blocks) == 1


def test_back_to_transformers(llama: Writer, tmp_path: Path) -> None:
    hf = HookedTransformer.from_pretrained_no_processing(llama.write(tmp_path / "model.gguf")).to_hf()
    for name, tensor in model_of("llama").state_dict().items():
        assert torch.equal(hf.state_dict()[name], tensor), name


REFUSED = {
    "attention.shared_kv_layers": (1, "llama.attention.shared_kv_layers = 1"),
    "attention.value_length": (4, "another width"),
    "attention.causal": (False, "encoder"),
    "attention.head_count": ([4, 2], r"attention.head_count .* \[4, 2\]"),
    "block_count": (0, "block_count .* got 0"),
    "rope.dimension_count": (4, "part of each head"),
    "rope.scaling.type": ("dynamic", "'dynamic'"),
    "rope.scaling.attn_factor": (1.5, "two ways at once"),
    "rope.scaling.yarn_attn_factor": (1.5, "yarn_attn_factor = 1.5"),
    "expert_count": (4, "expert_used_count"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_values_that_are_not_understood_are_refused_by_name(key: str, llama: Writer, tmp_path: Path) -> None:
    value, message = REFUSED[key]
    llama.values[key] = value
    with pytest.raises(CheckpointError, match=message):
        HookedTransformer.from_pretrained(llama.write(tmp_path / "model.gguf"))


def test_two_scalings_at_once_are_refused(tmp_path: Path) -> None:
    writer = Writer(model_of("llama llama3"))
    writer.values |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    with pytest.raises(CheckpointError, match="two ways at once"):
        HookedTransformer.from_pretrained(writer.write(tmp_path / "both.gguf"))
    del writer.tensors["rope_freqs.weight"]
    writer.values["rope.scaling.type"] = "longrope"  # whose factors are tensors
    writer.values["rope.scaling.factor"] = 1.0
    with pytest.raises(CheckpointError, match="'longrope'"):
        HookedTransformer.from_pretrained(writer.write(tmp_path / "none.gguf"))


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_missing_sizes_are_refused_by_name(key: str, llama: Writer, tmp_path: Path) -> None:
    del llama.values[key]
    with pytest.raises(CheckpointError, match=f"{key} in the GGUF file .* it is missing"):
        HookedTransformer.from_pretrained(llama.write(tmp_path / "model.gguf"))


def test_tensors_that_are_not_understood_or_missing_are_refused_by_name(llama: Writer, tmp_path: Path) -> None:
    llama.tensors["blk.1.attn_sub_norm.weight"] = torch.ones(12)
    with pytest.raises(CheckpointError, match=r"does not use: blk\.1\.attn_sub_norm\.weight"):
        HookedTransformer.from_pretrained(llama.write(tmp_path / "more.gguf"))
    del llama.tensors["blk.1.attn_sub_norm.weight"], llama.tensors["blk.1.ffn_up.weight"]
    with pytest.raises(CheckpointError, match=r"no tensor 'layers\.1\.mlp\.up_proj\.weight'"):
        HookedTransformer.from_pretrained(llama.write(tmp_path / "less.gguf"))
    llama.values["block_count"] = 1
    with pytest.raises(CheckpointError, match=r"does not use: blk\.1\."):
        HookedTransformer.from_pretrained(llama.write(tmp_path / "fewer.gguf"))


def test_a_shape_that_does_not_fit_is_refused(llama: Writer, tmp_path: Path) -> None:
    llama.tensors["blk.0.attn_q.weight"] = torch.ones(22, 12)
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.weight"):
        HookedTransformer.from_pretrained(llama.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("fields", [{"architecture": "mamba"}, {"type": "adapter"}, {"type": "mmproj"}])
def test_other_than_known_models_is_refused(fields: dict[str, str], llama: Writer, tmp_path: Path) -> None:
    llama.architecture = fields.get("architecture", "llama")
    with pytest.raises(CheckpointError, match=next(iter(fields.values()))):
        HookedTransformer.from_pretrained(llama.write(tmp_path / "model.gguf", type=fields.get("type", "model")))


def test_a_file_on_the_hub(llama: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = llama.write(tmp_path / "model.gguf")
    asked = []

    def download(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = HookedTransformer.from_pretrained("someone/model-GGUF:model.gguf")
    assert asked == [("someone/model-GGUF", "model.gguf")] and model.cfg.model_name == "someone/model-GGUF:model.gguf"
    asked.clear()
    HookedTransformer.from_pretrained("someone/model-GGUF:big-00001-of-00003.gguf")
    assert [file for _, file in asked] == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def test_names_of_no_file(tmp_path: Path, llama: Writer) -> None:
    with pytest.raises(CheckpointError, match="does not exist.*GGUF"):
        HookedTransformer.from_pretrained(str(tmp_path / "absent.gguf"))
    with pytest.raises(CheckpointError, match="does not exist"):
        HookedTransformer.from_pretrained("absent.gguf")
    llama.write(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"no config\.json.*model\.gguf"):
        HookedTransformer.from_pretrained(tmp_path)
