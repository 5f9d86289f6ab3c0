"""The metadata of a GGUF file as the entries of a `config.json`, for each architecture.

Source: `convert_hf_to_gguf.py` and `llama-model.cpp` of https://github.com/ggml-org/llama.cpp
"""

import math
from collections.abc import Callable
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.checkpoints.gguf.values import Entries, Values

__all__ = ["ENTRIES"]


def _rms_eps(values: Values) -> Entries:
    return {"rms_norm_eps": values.get("attention.layer_norm_rms_epsilon", 1e-6)}


def _part(n_rotated: int, d_head: int) -> float:
    """Return the part of a head that is rotated, of which `transformers` takes the whole part times the width."""
    part = n_rotated / d_head
    return part if int(d_head * part) == n_rotated else math.nextafter(part, 2.0)


def _rope(values: Values, d_head: int, *, base: float = 10000.0) -> Entries:
    """Return the entry on rotary positions; factors of single frequencies are read from their tensors."""
    n_rotated = values.get("rope.dimension_count", d_head)
    rope: Entries = {
        "rope_theta": values.get("rope.freq_base", base),
        "partial_rotary_factor": _part(n_rotated, d_head),
        "rope_type": "default",
    }
    kind, original = values.get("rope.scaling.type"), values.get("rope.scaling.original_context_length")
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear", 0.0)) or 1.0
    attention = values.get("rope.scaling.attn_factor", 1.0)
    every = values.factors("rope_freqs.weight")
    short, long = values.factors("rope_factors_short.weight"), values.factors("rope_factors_long.weight")
    if every is not None:
        # Llama 3's scaling, worked out for each frequency: the same factors at every length.
        short, long, original = every, every, original or values.get("context_length")
    if short is not None and long is not None and factor == 1.0 and kind in (None, "none", "longrope"):
        rope |= {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original,
            "attention_factor": attention,
        }
    elif short is not None or long is not None or attention != 1.0:
        raise CheckpointError("the GGUF file scales rotary positions in two ways at once, which is not supported.")
    elif kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original or values.get("context_length"),
            "beta_fast": values.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": values.get("rope.scaling.yarn_beta_slow", 1.0),
        }
    elif factor != 1.0 and kind in (None, "linear"):
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind not in (None, "none", "linear"):
        raise CheckpointError(f"rotary positions of type {kind!r} in the GGUF file are not supported.")
    return {"rope_parameters": rope}


def _llama_like(model_type: str, **more: Any) -> Callable[[Values], Entries]:
    """Return the reader of a family that differs from Llama by fixed entries only."""

    def entries(values: Values) -> Entries:
        sizes = values.sizes
        return {
            "model_type": model_type,
            **sizes,
            **_rms_eps(values),
            **_rope(values, sizes["head_dim"]),
            "attention_bias": values.has("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
            "mlp_bias": values.has("ffn_up.bias", "ffn_down.bias"),
            **more,
        }

    return entries


def _whole_heads(values: Values, sizes: Entries) -> None:
    """Raise if only part of a head is rotated, which with rows in pairs is another part than in halves."""
    if values.get("rope.dimension_count", sizes["head_dim"]) != sizes["head_dim"]:
        raise CheckpointError("the GGUF file rotates part of each head, which this architecture does not.")


def _llama(values: Values) -> Entries:
    entries = _llama_like("llama")(values)
    _whole_heads(values, entries)
    if values.get("expert_count", 0):
        experts = {"num_local_experts": values.number("expert_count")}
        chosen = {"num_experts_per_tok": values.number("expert_used_count")}
        return {**entries, **experts, **chosen, "model_type": "mixtral"}
    return entries


def _granite(values: Values) -> Entries:
    entries = _llama_like("granite")(values)
    _whole_heads(values, entries)
    return {
        **entries,
        "attention_multiplier": values.get("attention.scale") or 1 / math.sqrt(entries["head_dim"]),
        "embedding_multiplier": values.get("embedding_scale") or 1.0,
        "residual_multiplier": values.get("residual_scale") or 1.0,
        "logits_scaling": values.get("logit_scale") or 1.0,
    }


def _olmo(values: Values) -> Entries:
    sizes = values.sizes
    _whole_heads(values, sizes)
    if values.get("attention.layer_norm_epsilon", 1e-5) != 1e-5:
        raise CheckpointError("OLMo's norms have an epsilon of 1e-5; the GGUF file has another.")
    clip = values.get("attention.clamp_kqv")
    return {"model_type": "olmo", **sizes, **_rope(values, sizes["head_dim"]), "clip_qkv": clip or None}


def _granite_moe(values: Values) -> Entries:
    shared = values.get("expert_shared_feed_forward_length", 0)
    return {
        **_granite(values),
        "model_type": "granitemoeshared" if shared else "granitemoe",
        "num_local_experts": values.number("expert_count"),
        "num_experts_per_tok": values.number("expert_used_count"),
        **({"shared_intermediate_size": shared} if shared else {}),
    }


def _gpt_oss(values: Values) -> Entries:
    """Return entries with every other layer local, as llama.cpp's code has it."""
    entries = _llama_like("gpt_oss")(values)
    rope = entries["rope_parameters"]
    return {
        **{name: value for name, value in entries.items() if name != "mlp_bias"},
        "intermediate_size": values.get("expert_feed_forward_length", entries["intermediate_size"]),
        "num_local_experts": values.number("expert_count"),
        "num_experts_per_tok": values.number("expert_used_count"),
        "sliding_window": values.number("attention.sliding_window"),
        "rope_parameters": {**rope, "truncate": False} if rope["rope_type"] == "yarn" else rope,
    }


def _smollm3(values: Values) -> Entries:
    """Return entries with every fourth layer unrotated, which the file does not say: llama.cpp has it in its code."""
    entries = _llama_like("smollm3", no_rope_layer_interval=4)(values)
    _whole_heads(values, entries)
    return entries


def _windows(values: Values, period: int) -> Entries:
    """Return the entries on windows, of a file that has any; the last layer of each period has none by default."""
    window, local = values.get("attention.sliding_window"), values.get("attention.sliding_window_pattern")
    if not window:
        return {}
    n_layers = values.sizes["num_hidden_layers"]
    if local is None:
        local = [bool((layer + 1) % period) for layer in range(n_layers)]
    local = [local] * n_layers if isinstance(local, bool) else local
    if len(local) != n_layers:
        raise CheckpointError("the GGUF file does not say for each layer whether it has a window.")
    types = ["sliding_attention" if each else "full_attention" for each in local]
    return {"sliding_window": window, "layer_types": types}


def _exaone4(values: Values) -> Entries:
    return {**_llama_like("exaone4")(values), "sliding_window": None, **_windows(values, 4)}


def _cohere2(values: Values) -> Entries:
    entries = {name: value for name, value in _command_r(values).items() if name != "use_qk_norm"}
    return {**entries, "model_type": "cohere2", **_windows(values, 4)}


def _olmo2(values: Values) -> Entries:
    """Return entries of OLMo 2, or, of a file with windows, of OLMo 3, which scales rotations in global layers only."""
    entries, windows = _llama_like("olmo2")(values), _windows(values, 4)
    if not windows:
        return entries
    rope = entries["rope_parameters"]
    plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return {
        **entries,
        **windows,
        "model_type": "olmo3",
        "rope_parameters": {"full_attention": rope, "sliding_attention": plain},
    }


def _command_r(values: Values) -> Entries:
    sizes = values.sizes
    _whole_heads(values, sizes)
    return {
        "model_type": "cohere",
        **sizes,
        **_rope(values, sizes["head_dim"]),
        "layer_norm_eps": values.get("attention.layer_norm_epsilon", 1e-5),
        "logit_scale": values.get("logit_scale") or 1.0,
        "use_qk_norm": values.has("attn_q_norm.weight"),
        "attention_bias": values.has("attn_q.bias"),
    }


def _layer_norms(model_type: str, epsilon: str, **more: Any) -> Callable[[Values], Entries]:
    """Return the reader of a Llama-like with LayerNorms, for its name of their epsilon."""

    def entries(values: Values) -> Entries:
        found = _llama_like(model_type, **more)(values)
        del found["rms_norm_eps"]
        return {**found, epsilon: values.get("attention.layer_norm_epsilon", 1e-5)}

    return entries


def _moe(model_type: str, **more: Any) -> Callable[[Values], Entries]:
    def entries(values: Values) -> Entries:
        width, shared = (values.get(f"expert_{kind}feed_forward_length") for kind in ("", "shared_"))
        return {
            **_llama_like(model_type, **more)(values),
            "num_experts": values.number("expert_count"),
            "num_experts_per_tok": values.number("expert_used_count"),
            **({} if width is None else {"moe_intermediate_size": width}),
            **({} if shared is None else {"shared_expert_intermediate_size": shared}),
        }

    return entries


def _phi3(values: Values) -> Entries:
    window = values.get("attention.sliding_window") or None
    entries = _llama_like("phi3", sliding_window=window)(values)
    # Its class has the context in training beside the entries on positions, with a default that goes before theirs.
    inside = entries["rope_parameters"].get("original_max_position_embeddings")
    return {**entries, **({} if inside is None else {"original_max_position_embeddings": inside})}


def _gemma(values: Values) -> Entries:
    return _llama_like("gemma", hidden_activation="gelu_pytorch_tanh")(values)


# Layers of the largest Gemma 2 and 3, whose attention scores are divided by sqrt(d_model / n_heads).
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}


def _gemma_scale(values: Values, entries: Entries, architecture: str) -> Entries:
    largest = entries["num_hidden_layers"] == _LARGEST_GEMMA[architecture]
    scalar = entries["hidden_size"] / entries["num_attention_heads"] if largest else entries["head_dim"]
    return {"query_pre_attn_scalar": scalar, "final_logit_softcapping": values.get("final_logit_softcapping")}


def _gemma2(values: Values) -> Entries:
    entries = _gemma(values)
    return {
        **entries,
        **_gemma_scale(values, entries, "gemma2"),
        "model_type": "gemma2",
        "sliding_window": values.number("attention.sliding_window"),
        "attn_logit_softcapping": values.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": values.get("final_logit_softcapping", 30.0),
    }


def _gemma3(values: Values) -> Entries:
    sizes = values.sizes
    everywhere = _rope(values, sizes["head_dim"], base=1_000_000.0)["rope_parameters"]
    local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", 10000.0)}
    window = values.get("attention.sliding_window") or None
    return {
        "model_type": "gemma3_text",
        **sizes,
        **_rms_eps(values),
        **_gemma_scale(values, sizes, "gemma3"),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {"full_attention": everywhere, "sliding_attention": local},
        "sliding_window": window,
        "sliding_window_pattern": 6,
    }


def _layer_norm_llama(model_type: str) -> Callable[[Values], Entries]:
    """Return the reader of Phi 1 and 2 and StableLM: LayerNorm, and part of each head rotated."""

    def entries(values: Values) -> Entries:
        sizes = values.sizes
        values.get("use_parallel_residual")  # the tensors say it
        return {
            "model_type": model_type,
            **sizes,
            **_rope(values, sizes["head_dim"]),
            "layer_norm_eps": values.get("attention.layer_norm_epsilon", 1e-5),
            "use_parallel_residual": not values.has("ffn_norm.weight"),
            "use_qkv_bias": values.has("attn_q.bias", "attn_k.bias", "attn_v.bias"),
        }

    return entries


def _renamed(sizes: Entries, **names: str) -> Entries:
    """Return some of the sizes under the names that a family has for them."""
    return {theirs: sizes[ours] for theirs, ours in names.items()}


_PLAIN = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "tie_word_embeddings")


def _neox(values: Values) -> Entries:
    sizes = values.sizes
    return {
        "model_type": "gpt_neox",
        **{name: sizes[name] for name in (*_PLAIN, "intermediate_size", "max_position_embeddings")},
        **_rope(values, sizes["head_dim"]),
        "layer_norm_eps": values.get("attention.layer_norm_epsilon", 1e-5),
        "use_parallel_residual": values.get("use_parallel_residual", True),
        "attention_bias": values.has("attn_qkv.bias"),
    }


def _falcon(values: Values) -> Entries:
    sizes = values.sizes
    groups, two_norms = sizes["num_key_value_heads"], values.has("attn_norm_2.weight")
    return {
        "model_type": "falcon",
        **{name: sizes[name] for name in _PLAIN},
        "ffn_hidden_size": sizes["intermediate_size"],
        "max_position_embeddings": sizes["max_position_embeddings"],
        "num_kv_heads": groups,
        **_rope(values, sizes["head_dim"]),
        "layer_norm_epsilon": values.get("attention.layer_norm_epsilon", 1e-5),
        "multi_query": groups == 1,
        "new_decoder_architecture": groups > 1 or two_norms,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "bias": values.has("attn_qkv.bias"),
    }


def _early(model_type: str, **more: str) -> Callable[[Values], Entries]:
    """Return the entries of GPT-2 or BLOOM, whose sizes have names of their own."""
    names = {
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "vocab_size": "vocab_size",
        "tie_word_embeddings": "tie_word_embeddings",
        **more,
    }

    def entries(values: Values) -> Entries:
        epsilon = values.get("attention.layer_norm_epsilon", 1e-5)
        return {"model_type": model_type, **_renamed(values.sizes, **names), "layer_norm_epsilon": epsilon}

    return entries


def _starcoder2(values: Values) -> Entries:
    biases = values.has("attn_q.bias", "ffn_up.bias")
    entries = _layer_norms("starcoder2", "norm_epsilon", sliding_window=None, use_bias=biases)(values)
    return {name: value for name, value in entries.items() if name not in ("attention_bias", "mlp_bias")}


def _seed_oss(values: Values) -> Entries:
    entries = _llama_like("seed_oss", attention_out_bias=values.has("attn_output.bias"))(values)
    return {**entries, "attention_bias": values.has("attn_q.bias")}


# By `general.architecture`.
ENTRIES: dict[str, Callable[[Values], Entries]] = {
    "arcee": _llama_like("arcee"),
    "bloom": _early("bloom", hidden_size="hidden_size", seq_length="max_position_embeddings"),
    "cohere2": _cohere2,
    "command-r": _command_r,
    "exaone4": _exaone4,
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _early("gpt2", n_embd="hidden_size", n_inner="intermediate_size", n_positions="max_position_embeddings"),
    "gpt-oss": _gpt_oss,
    "gptneox": _neox,
    "granite": _granite,
    "granitemoe": _granite_moe,
    "llama": _llama,
    "nemotron": _layer_norms("nemotron", "norm_eps"),
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmoe": _moe("olmoe", norm_topk_prob=False),
    "phi2": _layer_norm_llama("phi"),
    "phi3": _phi3,
    "qwen2": _llama_like("qwen2"),
    "qwen2moe": _moe("qwen2_moe", norm_topk_prob=False),
    "qwen3": _llama_like("qwen3"),
    "qwen3moe": _moe("qwen3_moe", norm_topk_prob=True),
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
    "stablelm": _layer_norm_llama("stablelm"),
    "starcoder2": _starcoder2,
}
