"""Names and layouts of tensors in llama.cpp's files, architecture by architecture, and their way back.

Conversion to GGUF renames tensors, permutes the rows of queries and keys for rotary positions in pairs (`llama`,
`granite`, `olmo`), adds the one of Gemma's norms, transposes GPT-2's matrices and sorts the rows of fused
queries, keys and values by kind instead of by head. Here is the inverse, so that the families read a GGUF file like
any other checkpoint of theirs.

Source: `convert_hf_to_gguf.py` and `llama-model.cpp` of https://github.com/ggml-org/llama.cpp
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from headscope.model.checkpoints.gguf.values import Entries

__all__ = ["ARCHITECTURES", "Architecture"]

# Undoes what was done to a tensor, given the sizes of the model.
Undo = Callable[[Tensor, Entries], Tensor]


@dataclass(frozen=True)
class Architecture:
    """One value of `general.architecture`.

    Attributes:
        outside: Names of tensors outside the layers, from GGUF's to those of `transformers`, without `.weight` and
            `.bias`; one that ends in either is taken as it is, and several that are joined along the axis
            of outputs are separated by spaces.
        layer: The same in a layer, after its prefix.
        layer_prefix: That prefix in `transformers`; `{}` is the layer's number.
        joined: How the parts of a name with spaces become one tensor, where they are not just one after another.
        undo: What to undo, by the tensor's name within a layer or outside, with `.weight` or `.bias`.
        norm_shift: Added to the weights of all norms by the conversion.
    """

    outside: Mapping[str, str]
    layer: Mapping[str, str]
    layer_prefix: str = "model.layers.{}."
    undo: Mapping[str, Undo] = field(default_factory=dict)
    joined: Mapping[str, Callable[[list[Tensor]], Tensor]] = field(default_factory=dict)
    norm_shift: float = 0.0


def _halves(entry: str) -> Undo:
    """Return rows of each head from pairs of rotated rows to two halves, for the size that is the number of heads."""
    return lambda tensor, sizes: rearrange(tensor, "(h e n) ... -> (h n e) ...", h=sizes[entry], n=2)


def _by_head(tensor: Tensor, sizes: Entries) -> Tensor:
    """Return rows of queries, keys and values, each of all heads, to those of each head."""
    return rearrange(tensor, "(n h e) ... -> (h n e) ...", n=3, h=sizes["num_attention_heads"])


def _by_group(tensor: Tensor, sizes: Entries) -> Tensor:
    """Return rows of queries, keys and values to the queries, the key and the value of each group."""
    heads, groups, d_head = (sizes[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    parts = tensor.split([heads * d_head, groups * d_head, groups * d_head])
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def _one_row(tensor: Tensor, sizes: Entries) -> Tensor:
    """Return a matrix of one output, whose axis the conversion drops."""
    return tensor.view(1, -1)


def _taking_turns(parts: list[Tensor]) -> Tensor:
    """Return matrices with the rows of gates and inputs one of each after another, inputs of the model first."""
    return torch.stack(parts, 2).flatten(1, 2).transpose(-1, -2)


def _inputs_first(tensor: Tensor, sizes: Entries) -> Tensor:
    return tensor.transpose(-1, -2)


def _transposed(tensor: Tensor, sizes: Entries) -> Tensor:
    return tensor.T


_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LAYER = {**_NORMS, **_ATTENTION, **_MLP}
_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA2_LAYER = {**_LAYER, **_AFTER, "ffn_norm": "pre_feedforward_layernorm"}
# Experts' matrices are joined in one tensor of each kind, in both; `transformers` joins gates and inputs once more.
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps.weight ffn_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
_MOE_LAYER = {**_NORMS, **_ATTENTION, **_EXPERTS}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_GRANITE_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.router",
    "ffn_gate_exps.weight ffn_up_exps.weight": "block_sparse_moe.experts.gate_up_proj",
    "ffn_down_exps.weight": "block_sparse_moe.experts.down_proj",
    "ffn_gate_shexp.weight ffn_up_shexp.weight": "shared_mlp.input_linear.weight",
    "ffn_down_shexp": "shared_mlp.output_linear",
}
_IN_PAIRS: dict[str, Undo] = {
    f"{name}.{kind}": _halves(entry)
    for name, entry in (("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads"))
    for kind in ("weight", "bias")
}
_QKV_BY_HEAD: dict[str, Undo] = {"attn_qkv.weight": _by_head, "attn_qkv.bias": _by_head}
_BLOOM_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def _like_llama(layer: Mapping[str, str] = _LAYER, **more: Any) -> Architecture:
    return Architecture(_OUTSIDE, layer, **more)


ARCHITECTURES: dict[str, Architecture] = {
    "arcee": _like_llama(undo=_IN_PAIRS),
    "llama": _like_llama({**_LAYER, **_EXPERTS}, undo=_IN_PAIRS),
    "cohere2": _like_llama(),
    "command-r": _like_llama(),
    "exaone4": _like_llama({**_ATTENTION, **_MLP, **_AFTER}),
    "gpt-oss": _like_llama(
        {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            **_ATTENTION,
            "attn_sinks.weight": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
            "ffn_gate_exps.weight ffn_up_exps.weight": "mlp.experts.gate_up_proj",
            "ffn_gate_exps.bias ffn_up_exps.bias": "mlp.experts.gate_up_proj_bias",
            "ffn_down_exps.weight": "mlp.experts.down_proj",
            "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
        },
        undo={"ffn_down_exps.weight": _inputs_first},
        joined={
            "mlp.experts.gate_up_proj": _taking_turns,
            "mlp.experts.gate_up_proj_bias": lambda parts: torch.stack(parts, -1).flatten(-2),
        },
    ),
    "granite": _like_llama(undo=_IN_PAIRS),
    "granitemoe": _like_llama({**_NORMS, **_ATTENTION, **_GRANITE_EXPERTS}, undo=_IN_PAIRS),
    "nemotron": _like_llama(norm_shift=1.0),
    "olmo": _like_llama(undo=_IN_PAIRS),
    "olmo2": _like_llama({**_ATTENTION, **_MLP, **_AFTER}),
    "olmoe": _like_llama(_MOE_LAYER),
    "qwen2": _like_llama(),
    "qwen2moe": _like_llama({**_MOE_LAYER, **_SHARED_EXPERT}, undo={"ffn_gate_inp_shexp.weight": _one_row}),
    "qwen3": _like_llama(),
    "qwen3moe": _like_llama(_MOE_LAYER),
    "gemma": _like_llama(norm_shift=1.0),
    "gemma2": _like_llama(_GEMMA2_LAYER, norm_shift=1.0),
    "gemma3": _like_llama(_GEMMA2_LAYER, norm_shift=1.0),
    "phi3": _like_llama(
        {
            **_NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "phi2": Architecture(
        {**_OUTSIDE, "output_norm": "model.final_layernorm"},
        {
            **_NORMS,
            **_ATTENTION,
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
    ),
    "seed_oss": _like_llama({**_LAYER, **_AFTER}),
    "smollm3": _like_llama(undo=_IN_PAIRS),
    "stablelm": _like_llama(),
    "starcoder2": _like_llama({**_LAYER, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "gptneox": Architecture(
        {
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        {**_BLOOM_LAYER, "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense"},
        "gpt_neox.layers.{}.",
        undo=_QKV_BY_HEAD,
    ),
    "bloom": Architecture(
        {
            "token_embd": "transformer.word_embeddings",
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        _BLOOM_LAYER,
        "transformer.h.{}.",
        undo=_QKV_BY_HEAD,
    ),
    "falcon": Architecture(
        {
            "token_embd": "transformer.word_embeddings",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        {**_BLOOM_LAYER, "attn_norm_2": "ln_attn"},
        "transformer.h.{}.",
        undo={"attn_qkv.weight": _by_group, "attn_qkv.bias": _by_group},
    ),
    "gpt2": Architecture(
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        "transformer.h.{}.",
        undo={f"{name}.weight": _transposed for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")},
    ),
}
