"""GGUF files as llama.cpp's `convert_hf_to_gguf.py` writes them, from models of `transformers`.

Names of tensors come from the table of the `gguf` package that the converter itself uses; what it does to entries and
rows is written out here, family by family, so that reading them back is checked against it and not against ourselves.
"""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

ARCHITECTURES = {
    "gpt2": "gpt2", "llama": "llama", "mistral": "llama", "mixtral": "llama", "granite": "granite", "olmo": "olmo",
    "olmo2": "olmo2", "olmoe": "olmoe", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "phi": "phi2", "phi3": "phi3", "stablelm": "stablelm",
    "arcee": "arcee", "nemotron": "nemotron", "starcoder2": "starcoder2", "seed_oss": "seed_oss", "smollm3": "smollm3",
    "cohere": "command-r", "qwen2_moe": "qwen2moe", "granitemoe": "granitemoe", "granitemoeshared": "granitemoe",
    "cohere2": "cohere2", "exaone4": "exaone4", "gpt_oss": "gpt-oss", "olmo3": "olmo2", "gpt_neox": "gptneox",
    "bloom": "bloom", "falcon": "falcon",
}  # fmt: skip
_IN_PAIRS = ("llama", "granite", "granitemoe", "olmo", "arcee", "smollm3")


class Writer:
    """One file; `tensors` and `values` may be changed before it is written."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.architecture = ARCHITECTURES[self.config.model_type]
        self.values: dict[str, Any] = _values(self.config, self.architecture)
        self.tensors: dict[str, Tensor] = {}
        self.kinds: dict[str, gguf.GGMLQuantizationType] = {}
        self.tokenizer: dict[str, Any] = {}
        number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == self.architecture)
        names = gguf.get_tensor_name_map(number, self.config.num_hidden_layers)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            for theirs, changed in _changed(name, tensor, self.config, self.architecture):
                found = (
                    theirs if theirs.startswith("blk.") else names.get_name(theirs, try_suffixes=(".weight", ".bias"))
                )
                assert found is not None, theirs
                self.tensors[found] = changed.contiguous()
        self.tensors |= _rope_tensors(self.config, self.architecture)

    def write(
        self,
        path: Path,
        kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        *,
        type: str = "model",
        split: int = 0,
    ) -> Path:
        """Write the matrices as `kind` where their rows are whole blocks, and what is no matrix as float32."""
        writer = gguf.GGUFWriter(path, self.architecture, split_max_tensors=split)
        writer.add_type(type)
        for key, value in self.values.items():
            _add(writer, f"{self.architecture}.{key}", value)
        for key, value in self.tokenizer.items():
            _add(writer, f"tokenizer.{key}", value)
        for name, tensor in self.tensors.items():
            own = self.kinds.get(name, kind)
            block = gguf.GGML_QUANT_SIZES[own][0]
            own = own if tensor.ndim > 1 and tensor.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quantize(tensor.float().numpy(), own), raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _values(config: Any, architecture: str) -> dict[str, Any]:
    width, heads = config.hidden_size, config.num_attention_heads
    given = config.to_dict()
    head = given.get("head_dim") or width // heads
    rope = given.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    values: dict[str, Any] = {
        "context_length": given.get("max_position_embeddings") or given.get("n_positions") or 2048,
        "embedding_length": width,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": given.get("intermediate_size") or given.get("ffn_hidden_size") or 4 * width,
        "attention.head_count": heads,
    }
    groups = given.get("num_key_value_heads")
    if architecture == "falcon":
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        values["tensor_data_layout"] = "jploski"
    if groups:
        values["attention.head_count_kv"] = groups
    if "rms_norm_eps" in given:
        values["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    else:
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
        eps = next((given[name] for name in names if name in given), 1e-5)
        values["attention.layer_norm_epsilon"] = eps
    if given.get("head_dim"):
        values |= {"attention.key_length": head, "attention.value_length": head}
    if architecture in ("llama", "granite", "granitemoe", "arcee", "smollm3"):
        values |= {"vocab_size": config.vocab_size, "rope.dimension_count": head}
    if architecture in ("phi2", "phi3", "stablelm", "gptneox", "nemotron"):
        values["rope.dimension_count"] = int(rope.get("partial_rotary_factor", 1.0) * width) // heads
    if "rope_theta" in rope and architecture not in ("gptneox", "stablelm", "falcon", "gemma", "gemma2"):
        values["rope.freq_base"] = float(rope["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope.get("rope_type") == "yarn":
        values["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return values | _own_values(config, architecture, rope)


def _own_values(config: Any, architecture: str, rope: dict[str, Any]) -> dict[str, Any]:
    if architecture in ("granite", "granitemoe"):
        experts = {}
        if architecture == "granitemoe":
            experts = {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
        if getattr(config, "shared_intermediate_size", 0):
            experts["expert_shared_feed_forward_length"] = config.shared_intermediate_size
        return {
            **experts, "attention.scale": config.attention_multiplier, "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier, "logit_scale": config.logits_scaling,
        }  # fmt: skip
    if architecture == "olmo":
        return {} if config.clip_qkv is None else {"attention.clamp_kqv": config.clip_qkv}
    if architecture in ("gptneox", "stablelm"):
        return {"use_parallel_residual": config.use_parallel_residual}
    if architecture == "gemma2":
        return {
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
            "attention.sliding_window": config.sliding_window,
        }
    if architecture == "gpt-oss":
        return {
            "attention.sliding_window": config.sliding_window, "expert_count": config.num_local_experts,
            "expert_feed_forward_length": config.intermediate_size, "expert_used_count": config.num_experts_per_tok,
        }  # fmt: skip
    if architecture == "command-r":
        return {"logit_scale": config.logit_scale, "rope.scaling.type": "none"}
    if architecture == "cohere2":
        return {"attention.sliding_window": config.sliding_window, "logit_scale": config.logit_scale}
    if architecture == "exaone4" and config.sliding_window is None:
        return {}
    if config.model_type in ("exaone4", "olmo3"):
        local = [each == "sliding_attention" for each in config.layer_types]
        return {"attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": local}
    if architecture == "gemma3":
        return {"attention.sliding_window": config.sliding_window}
    if architecture == "phi3":
        original = config.max_position_embeddings
        factor = rope.get("original_max_position_embeddings", original)
        values = {
            "attention.sliding_window": config.sliding_window or 0,
            "rope.scaling.original_context_length": factor,
        }
        if "short_factor" in rope:
            scale = original / factor
            values["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(factor))
        return values
    if config.model_type == "mixtral":
        return {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    if architecture in ("olmoe", "qwen2moe", "qwen3moe"):
        width = {} if architecture == "olmoe" else {"expert_feed_forward_length": config.moe_intermediate_size}
        if architecture == "qwen2moe":
            width["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
        return {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok, **width}
    return {}


def _rope_tensors(config: Any, architecture: str) -> dict[str, Tensor]:
    rope = config.to_dict().get("rope_parameters") or {}
    if "short_factor" in rope:
        return {f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"]) for kind in ("short", "long")}
    if rope.get("rope_type") != "llama3":
        return {}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    length = rope["original_max_position_embeddings"]
    factors = []
    for pair in range(0, width, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (pair / width)
        if wave < length / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wave > length / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            smooth = (length / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": torch.tensor(factors)}


def _changed(name: str, tensor: Tensor, config: Any, architecture: str) -> list[tuple[str, Tensor]]:
    if architecture in _IN_PAIRS and ".q_proj." in name:
        tensor = _in_pairs(tensor, config.num_attention_heads)
    if architecture in _IN_PAIRS and ".k_proj." in name:
        tensor = _in_pairs(tensor, config.num_key_value_heads)
    if architecture.startswith(("gemma", "nemotron")) and name.endswith("norm.weight"):
        tensor = tensor + 1
    if architecture == "gpt2" and name.endswith(("attn.c_attn.weight", "c_proj.weight", "c_fc.weight")):
        tensor = tensor.T
    if "query_key_value" in name:
        tensor = _by_kind(tensor, config, architecture)
    if architecture == "bloom":
        name = name.removeprefix("transformer.")
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    if architecture == "gpt-oss" and "experts." in name:
        kind = "bias" if name.endswith("bias") else "weight"
        tensor = tensor if kind == "bias" else tensor.transpose(-1, -2)
        if "down_proj" in name:
            return [(f"blk.{layer}.ffn_down_exps.{kind}", tensor)]
        return [(f"blk.{layer}.ffn_{part}_exps.{kind}", tensor[:, at::2]) for at, part in enumerate(("gate", "up"))]
    if name.endswith("sinks"):
        return [(f"{name}.weight", tensor)]
    if name.endswith("experts.gate_up_proj"):
        gate, up = tensor.chunk(2, 1)
        return [(f"blk.{layer}.ffn_gate_exps.weight", gate), (f"blk.{layer}.ffn_up_exps.weight", up)]
    if name.endswith("shared_mlp.input_linear.weight"):
        gate, up = tensor.chunk(2)
        return [(f"blk.{layer}.ffn_gate_shexp.weight", gate), (f"blk.{layer}.ffn_up_shexp.weight", up)]
    if name.endswith("block_sparse_moe.router.weight"):
        return [(f"blk.{layer}.ffn_gate_inp.weight", tensor)]
    if name.endswith("shared_expert_gate.weight"):
        return [(name, tensor[0])]
    if name.endswith("experts.down_proj"):
        return [(f"blk.{layer}.ffn_down_exps.weight", tensor)]
    return [(name, tensor)]


def _in_pairs(tensor: Tensor, heads: int) -> Tensor:
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _by_kind(tensor: Tensor, config: Any, architecture: str) -> Tensor:
    if architecture != "falcon":
        parts = tensor.reshape(config.num_attention_heads, 3, -1, *tensor.shape[1:])
        return torch.cat([parts[:, each].reshape(-1, *tensor.shape[1:]) for each in range(3)])
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    width = config.hidden_size // config.num_attention_heads
    parts = tensor.reshape(groups, config.num_attention_heads // groups + 2, width, *tensor.shape[1:])
    kinds = (parts[:, :-2], parts[:, -2:-1], parts[:, -1:])
    return torch.cat([kind.reshape(-1, *tensor.shape[1:]) for kind in kinds])


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, columns: int, seed: int) -> np.ndarray:
    """Return random blocks of a type that the package cannot quantize to; their scales are finite."""
    n_elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    while True:
        blocks = generator.integers(0, 256, (rows, columns // n_elements * n_bytes), dtype=np.uint8)
        # Half-precision scales lie at any place: keep their exponents small by keeping all bytes below 0x7c's.
        blocks &= 0x3B
        if np.isfinite(gguf.dequantize(blocks, kind)).all():
            return blocks
