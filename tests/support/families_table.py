"""Random tiny models of `transformers`, a row for each family and each of its choices: awkward on purpose.

More than one query head to a key head, heads that do not fill the residual stream, tied and untied unembeddings,
windows shorter than the text, part of a head turned, an odd vocabulary.
"""

from functools import cache
from typing import Any

import torch
import transformers
from tiny import randomize, tiny_tokens

LENGTH, VOCABULARY = 11, 29
# What analyses are run on, their texts padded behind; and how close their results, in float32, come to float64.
TOKENS = tiny_tokens(3, LENGTH, d_vocab=VOCABULARY)
MASK = torch.arange(LENGTH) < torch.tensor([[LENGTH - 4], [LENGTH], [LENGTH - 1]])
CLOSE = {"rtol": 0, "atol": 2e-6}
_COMMON = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
_LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 32, **_COMMON,
}  # fmt: skip
_SQUARE = {**{name: value for name, value in _LLAMA.items() if name != "head_dim"}, "hidden_size": 16}
_EXPERTS = {**_LLAMA, "intermediate_size": 20}  # transformers' kernel wants all widths in fours
_QWEN2_MOE = {**_SQUARE, "intermediate_size": 20, "moe_intermediate_size": 8, "num_experts": 5,
              "num_experts_per_tok": 2}  # fmt: skip
_GRANITE_MOE = {**_SQUARE, "intermediate_size": 20, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
                "logits_scaling": 0.7, "attention_multiplier": 0.3}  # fmt: skip
_LLAMA4 = {
    **_EXPERTS, "intermediate_size_mlp": 16, "num_hidden_layers": 3, "num_local_experts": 4, "attention_chunk_size": 3,
    "interleave_moe_layer_step": 2, "no_rope_layer_interval": 2, "floor_scale": 3, "attn_scale": 0.6,
}  # fmt: skip
_PHIMOE = {**_SQUARE, "intermediate_size": 20, "num_experts_per_tok": 2}
_DBRX = {
    "vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 32, "rope_theta": 500.0,
    "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 5, "moe_top_k": 2}, **_COMMON,
}  # fmt: skip
_DEEPSEEK = {
    **{name: value for name, value in _LLAMA.items() if name != "head_dim"}, "num_key_value_heads": 4,
    "intermediate_size": 20, "moe_intermediate_size": 8, "n_routed_experts": 6, "n_shared_experts": 2,
    "num_experts_per_tok": 2, "q_lora_rank": 10, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 7,
}  # fmt: skip
_ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
}  # fmt: skip
_NEOX = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 32, **_COMMON,
}  # fmt: skip
_FALCON = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "ffn_hidden_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, **_COMMON,
}  # fmt: skip
_GEMMA = {**_LLAMA, "query_pre_attn_scalar": 5, "sliding_window": 4, "num_hidden_layers": 3}
_GEMMA4_UNIFIED = {
    **_EXPERTS,
    "num_hidden_layers": 3,
    "sliding_window": 4,
    "global_head_dim": 10,
    "rms_norm_eps": 0.01,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "pad_token_id": 0,
}
_GEMMA4 = {**_GEMMA4_UNIFIED, "hidden_size_per_layer_input": 0}
_MPT = {"vocab_size": VOCABULARY, "d_model": 12, "n_heads": 3, "n_layers": 2, "max_seq_len": 32, **_COMMON}
_VISION = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
_HALF = {"layer_types": ["full_attention", "sliding_attention"]}

_THREE, _UNTIED = {"num_hidden_layers": 3}, {"tie_word_embeddings": False}
_LAST_GLOBAL = ["sliding_attention", "sliding_attention", "full_attention"]

# family, what is odd about it: the classes' stem in transformers, and the config.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_positions": 32, "vocab_size": VOCABULARY, **_COMMON}),
    "llama": ("Llama", _LLAMA),
    "llama tied, biases": ("Llama", {**_LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, a key for each head": ("Llama", {**_SQUARE, "num_key_value_heads": 4}),
    **{f"llama {kind}": ("Llama", {**_LLAMA, "rope_scaling": {**rope, "rope_theta": 500.0}})
       for kind, rope in _ROPE.items()},
    "mistral": ("Mistral", {**_LLAMA, "sliding_window": 4}),
    "mistral without a window": ("Mistral", {**_LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2", {**_SQUARE, "tie_word_embeddings": True}),
    "qwen2 half local": ("Qwen2", {**_SQUARE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3", _LLAMA),
    "qwen3 half local": ("Qwen3", {**_LLAMA, "use_sliding_window": True, "sliding_window": 4, **_HALF}),
    "gemma": ("Gemma", {**_LLAMA, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2 without caps": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3_text": ("Gemma3Text", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"] + [
        "sliding_attention"]}),
    "gemma3_text scaled": ("Gemma3Text", {**_GEMMA, "layer_types": ["full_attention", "sliding_attention"] + [
        "full_attention"], "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3": ("Gemma3", {"text_config": {**_GEMMA, "layer_types": ["full_attention", "sliding_attention"] + [
        "full_attention"]}, "vision_config": {**_VISION, "patch_size": 4}, "mm_tokens_per_image": 4}),
    "gemma3 untied": ("Gemma3", {"text_config": _GEMMA, "vision_config": {**_VISION, "patch_size": 4},
                                 "mm_tokens_per_image": 4, "tie_word_embeddings": False}),
    "gemma4_text": ("Gemma4Text", {**_GEMMA4, "attention_k_eq_v": True,
                                   "num_global_key_value_heads": 1, "final_logit_softcapping": 3.0}),
    "gemma4_text with experts": ("Gemma4Text", {
        **_GEMMA4, "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 8,
        "layer_types": _LAST_GLOBAL, **_UNTIED}),
    "gemma4_text narrow global heads, biases": ("Gemma4Text", {
        **_GEMMA4, "global_head_dim": 4, "attention_bias": True, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 300.0, "partial_rotary_factor": 0.5}}}),
    "gemma4": ("Gemma4", {"text_config": _GEMMA4, "vision_config": {
        **_VISION, "num_key_value_heads": 2, "head_dim": 4, "patch_size": 4, "position_embedding_size": 16},
        "audio_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 8,
                         "subsampling_conv_channels": [4, 4]}}),
    "gemma4_unified": ("Gemma4Unified", {"text_config": _GEMMA4_UNIFIED, "vision_config": {
        "patch_size": 4, "mm_embed_dim": 8, "mm_posemb_size": 4}}),
    "gemma4_unified_text": ("Gemma4UnifiedText", {
        **_GEMMA4_UNIFIED, "attention_k_eq_v": True, "num_global_key_value_heads": 4}),
    "mistral3": ("Mistral3", {"text_config": {**_LLAMA, "model_type": "mistral", "sliding_window": None},
                              "vision_config": _VISION, "tie_word_embeddings": False}),
    "mistral3 of ministral3, tied": ("Mistral3", {"text_config": {**_LLAMA, "model_type": "ministral3"},
                                                  "vision_config": _VISION, "tie_word_embeddings": True}),
    "gpt_neox": ("GPTNeoX", _NEOX),
    "gpt_neox one after another, tied": ("GPTNeoX", {**_NEOX, "use_parallel_residual": False, "rotary_pct": 0.5,
                                                     "tie_word_embeddings": True}),
    "gemma2 untied": ("Gemma2", {**_GEMMA, "tie_word_embeddings": False}),
    "gpt_neo": ("GPTNeo", {"vocab_size": VOCABULARY, "hidden_size": 12, "num_layers": 2, "num_heads": 3,
                           "max_position_embeddings": 32, "attention_types": [[["local", "global"], 1]],
                           "window_size": 4, "intermediate_size": 20, **_COMMON}),
    "gptj": ("GPTJ", {"vocab_size": VOCABULARY, "n_embd": 18, "n_layer": 2, "n_head": 3, "n_positions": 32,
                      "rotary_dim": 4, "n_inner": 20, **_COMMON}),
    "opt": ("OPT", {"vocab_size": VOCABULARY, "hidden_size": 12, "word_embed_proj_dim": 12, "ffn_dim": 20,
                    "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 32, **_COMMON}),
    "opt untied, without biases and norms' weights": ("OPT", {
        "vocab_size": VOCABULARY, "hidden_size": 12, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 3,
        "max_position_embeddings": 32, "enable_bias": False, "layer_norm_elementwise_affine": False,
        "activation_function": "gelu", "tie_word_embeddings": False, **_COMMON}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 12, "n_layer": 2, "n_head": 3, **_COMMON}),
    "phi": ("Phi", {**_SQUARE, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {**_SQUARE, "sliding_window": 4}),
    "phi3 longrope": ("Phi3", {**_SQUARE, "original_max_position_embeddings": 8, "rope_scaling": {
        "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.5]}}),
    "olmo": ("Olmo", _SQUARE),
    "olmo clipped": ("Olmo", {**_SQUARE, "clip_qkv": 0.3}),
    "olmo2": ("Olmo2", _SQUARE),
    "granite": ("Granite", {**_SQUARE, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 0.7,
                            "attention_multiplier": 0.3, "attention_bias": True, "mlp_bias": True}),
    "stablelm": ("StableLm", {**_SQUARE, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm side by side": ("StableLm", {**_SQUARE, "use_parallel_residual": True, "partial_rotary_factor": 0.5}),
    "olmo3": ("Olmo3", {**_SQUARE, **_THREE, "sliding_window": 4, "layer_types": _LAST_GLOBAL, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {**_ROPE["yarn"], "rope_theta": 500.0, "attention_factor": 1.3}}, "attention_bias": True}),
    "olmo3 unscaled, tied": ("Olmo3", {**_SQUARE, "num_hidden_layers": 5, "sliding_window": 5,
                                       "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {**_SQUARE, **_THREE, "no_rope_layer_interval": 2, "attention_bias": True}),
    "smollm3 half local, untied": ("SmolLM3", {**_SQUARE, **_THREE, "no_rope_layers": [0, 1, 0], "sliding_window": 3,
                                               "use_sliding_window": True, "mlp_bias": True, **_UNTIED,
                                               "layer_types": _LAST_GLOBAL}),
    "glm": ("Glm", {**_LLAMA, "head_dim": 8}),
    "glm scaled, without biases": ("Glm", {**_LLAMA, "head_dim": 12, "attention_bias": False, "rope_parameters": {
        **_ROPE["llama3"], "partial_rotary_factor": 1 / 3, "rope_theta": 500.0}}),
    "glm4": ("Glm4", {**_LLAMA, "head_dim": 8}),
    "seed_oss": ("SeedOss", {**_LLAMA, "attention_out_bias": True, "mlp_bias": True}),
    "seed_oss without biases": ("SeedOss", {**_LLAMA, "attention_bias": False}),
    "exaone4": ("Exaone4", {**_SQUARE, **_THREE, "sliding_window": 4, "layer_types": _LAST_GLOBAL}),
    "exaone4 without a window": ("Exaone4", {**_SQUARE, "sliding_window": None, "rope_parameters": {
        **_ROPE["llama3"], "rope_theta": 500.0}, "layer_types": ["full_attention"] * 2}),
    "ministral": ("Ministral", {**_LLAMA, "sliding_window": 4}),
    "ministral half local": ("Ministral", {**_LLAMA, "sliding_window": 4, **_HALF}),
    "ministral3": ("Ministral3", {**_LLAMA, "rope_parameters": {
        **_ROPE["yarn"], "rope_theta": 500.0, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False,
        "original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.6}}),
    "ministral3 with a window": ("Ministral3", {**_LLAMA, "sliding_window": 4, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0, "original_max_position_embeddings": 3,
        "llama_4_scaling_beta": 0.8}}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", {**_LLAMA, "rope_parameters": {
        "rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 100.0}}),
    "hunyuan_v1_dense tied, biases": ("HunYuanDenseV1", {**_LLAMA, "attention_bias": True,
                                                         "tie_word_embeddings": True}),
    "vaultgemma": ("VaultGemma", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "cohere": ("Cohere", {**_SQUARE, "logit_scale": 0.7, "use_qk_norm": True, **_UNTIED}),
    "cohere tied, biases": ("Cohere", {**_SQUARE, "attention_bias": True, "logit_scale": 1.3}),
    "cohere2": ("Cohere2", {**_SQUARE, **_THREE, "sliding_window": 4, "layer_types": _LAST_GLOBAL,
                            "logit_scale": 1.3}),
    "cohere2 untied, biases": ("Cohere2", {**_SQUARE, "num_hidden_layers": 5, "sliding_window": 3, **_UNTIED,
                                           "logit_scale": 0.7, "attention_bias": True}),
    "phi with norms of queries and keys": ("Phi", {**_SQUARE, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "stablelm with norms of queries and keys": ("StableLm", {**_SQUARE, "partial_rotary_factor": 0.5,
                                                             "qk_layernorm": True}),
    "falcon": ("Falcon", {**_FALCON, "alibi": False}),
    "falcon untied, one after another": ("Falcon", {**_FALCON, "multi_query": False, "parallel_attn": False,
                                                    "tie_word_embeddings": False, "bias": True}),
    "falcon new decoder": ("Falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon new decoder, one norm": ("Falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2,
                                                "num_ln_in_parallel_attn": 1}),
    # Slopes of twelve heads are not exact in bfloat16. The "eager" attention of transformers adds penalties twice.
    "falcon alibi": ("Falcon", {**_FALCON, "hidden_size": 48, "num_attention_heads": 12, "alibi": True, "bias": True,
                                "multi_query": False, "parallel_attn": False, "attn_implementation": "sdpa"}),
    "falcon alibi, one key": ("Falcon", {**_FALCON, "alibi": True, "attn_implementation": "sdpa"}),
    "apertus": ("Apertus", _LLAMA),
    "apertus with biases": ("Apertus", {**_LLAMA, "hidden_size": 24, "attention_bias": True,
                                        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "arcee": ("Arcee", {**_LLAMA, "rope_scaling": {**_ROPE["yarn"], "rope_theta": 500.0}}),
    "arcee tied, biases": ("Arcee", {**_LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "jais2": ("Jais2", _LLAMA),
    "jais2 tied, without biases": ("Jais2", {**_LLAMA, "tie_word_embeddings": True, "attention_bias": False,
                                             "mlp_bias": False}),
    "nanochat": ("NanoChat", {**_SQUARE, "final_logit_softcapping": 2.0}),
    "nanochat without a cap, biases": ("NanoChat", {**_SQUARE, "final_logit_softcapping": None,
                                                    "attention_bias": True}),
    "nemotron": ("Nemotron", {**_LLAMA, "head_dim": 8, "norm_eps": 0.01}),
    "nemotron tied, biases": ("Nemotron", {**_LLAMA, "head_dim": 8, "partial_rotary_factor": 0.25, "mlp_bias": True,
                                           "tie_word_embeddings": True, "attention_bias": True}),
    "helium": ("Helium", {**_SQUARE, "head_dim": 4, "num_key_value_heads": 2}),
    "helium tied, biases": ("Helium", {**_SQUARE, "head_dim": 4, "attention_bias": True, "mlp_bias": True,
                                       "tie_word_embeddings": True}),
    "starcoder2": ("Starcoder2", {**_LLAMA, "sliding_window": 4}),
    "starcoder2 untied, without biases": ("Starcoder2", {**_LLAMA, "tie_word_embeddings": False, "use_bias": False}),
    "gpt_bigcode": ("GPTBigCode", {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_inner": 20, "n_positions": 32,
                                   "vocab_size": VOCABULARY, **_COMMON}),
    "gpt_bigcode, a key for each head": ("GPTBigCode", {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_positions": 32,
                                                        "vocab_size": VOCABULARY, "multi_query": False,
                                                        "scale_attn_weights": False, **_COMMON}),
    "codegen": ("CodeGen", {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 8, "n_positions": 32,
                            "rotary_dim": 4, "n_inner": 20, **_COMMON}),
    "mpt": ("Mpt", {**_MPT, "attn_config": {"clip_qkv": 0.7}}),
    "mpt untied, scores scaled": ("Mpt", {**_MPT, "n_heads": 4, "tie_word_embeddings": False,
                                          "attn_config": {"softmax_scale": 0.3}}),
    "xglm": ("XGLM", {"vocab_size": VOCABULARY, "d_model": 12, "attention_heads": 3, "num_layers": 2, "ffn_dim": 20,
                      "max_position_embeddings": 32, **_COMMON}),
    "xglm untied, padding": ("XGLM", {"vocab_size": VOCABULARY, "d_model": 9, "attention_heads": 3, "num_layers": 2,
                                      "ffn_dim": 20, "max_position_embeddings": 32, **_COMMON, "pad_token_id": 5,
                                      "scale_embedding": False, "tie_word_embeddings": False}),
    "biogpt": ("BioGpt", _NEOX),
    "biogpt untied, unscaled": ("BioGpt", {**_NEOX, "scale_embedding": False, "tie_word_embeddings": False}),
    "internlm3": ("InternLM3", {**_LLAMA, "hidden_size": 24}),
    "internlm3 tied, biases": ("InternLM3", {**_LLAMA, "hidden_size": 24, "attention_bias": True, "mlp_bias": True,
                                             "tie_word_embeddings": True}),
    "cwm": ("Cwm", {**_LLAMA, "hidden_size": 24, "num_hidden_layers": 3, "sliding_window": 4}),
    "cwm tied, biases": ("Cwm", {**_LLAMA, "hidden_size": 24, "sliding_window": 4, "mlp_bias": True,
                                 "tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"],
                                 "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "persimmon": ("Persimmon", {**_NEOX, "hidden_size": 24}),
    "persimmon tied, without norms on queries": ("Persimmon", {
        **_NEOX, "partial_rotary_factor": 0.25, "tie_word_embeddings": True, "qk_layernorm": False}),
    "mixtral": ("Mixtral", {**_EXPERTS, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4}),
    "mixtral tied, without a window": ("Mixtral", {**_EXPERTS, "num_local_experts": 3, "num_experts_per_tok": 3,
                                                   "tie_word_embeddings": True}),
    "olmoe": ("Olmoe", {**_SQUARE, "intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 2}),
    "olmoe summing to one": ("Olmoe", {**_SQUARE, "intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 3,
                                           "norm_topk_prob": True, "attention_bias": True, "clip_qkv": 0.7}),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8}),
    "qwen3_moe local": ("Qwen3Moe", {**_EXPERTS, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 8,
                                     "norm_topk_prob": True, "use_sliding_window": True, "sliding_window": 4}),
    "qwen3_moe dense below": ("Qwen3Moe", {**_EXPERTS, "num_experts": 4, "num_experts_per_tok": 2,
                                           "moe_intermediate_size": 8, "mlp_only_layers": [0]}),
    "qwen2_moe": ("Qwen2Moe", {**_QWEN2_MOE, "shared_expert_intermediate_size": 12}),
    "qwen2_moe every other layer, local": ("Qwen2Moe", {
        **_QWEN2_MOE, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 2, "norm_topk_prob": True,
        "qkv_bias": False, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "granitemoe": ("GraniteMoe", {**_GRANITE_MOE, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "granitemoeshared": ("GraniteMoeShared", {**_GRANITE_MOE, "num_local_experts": 4, "num_experts_per_tok": 3,
                                              "shared_intermediate_size": 12, "attention_bias": True}),
    "granitemoeshared with nothing shared": ("GraniteMoeShared", {**_GRANITE_MOE, "num_local_experts": 3,
                                                              "shared_intermediate_size": 0}),
    "gpt_oss": ("GptOss", {**_EXPERTS, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4,
                           "swiglu_limit": 0.8, "num_hidden_layers": 3, "rope_parameters": {
                               **_ROPE["yarn"], "truncate": False, "beta_fast": 4.0, "rope_theta": 500.0}}),
    "gpt_oss as Llama's": ("GptOss", {
        **_EXPERTS, "num_local_experts": 4, "num_experts_per_tok": 4, "attention_bias": False, "sliding_window": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "tie_word_embeddings": True,
        "layer_types": ["full_attention", "sliding_attention"]}),
    "phimoe": ("Phimoe", {**_PHIMOE, "num_local_experts": 5, "sliding_window": 4, "router_jitter_noise": 0.3}),
    "phimoe longrope, biases": ("Phimoe", {**_PHIMOE, "num_local_experts": 4, "attention_bias": True,
        "lm_head_bias": True, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.5],
            "short_mscale": 1.3, "long_mscale": 1.3, "original_max_position_embeddings": 24}}),
    # Chunks of three, and attention that sharpens from the third token on.
    "llama4_text": ("Llama4Text", {**_LLAMA4, "rope_parameters": {
        **_ROPE["llama3"], "low_freq_factor": 1.0, "high_freq_factor": 1.0, "rope_theta": 500.0}}),
    "llama4_text two experts, biases, tied": ("Llama4Text", {
        **_LLAMA4, "num_experts_per_tok": 2, "moe_layers": [0, 2], "attention_bias": True, "use_qk_norm": False,
        "tie_word_embeddings": True, "no_rope_layers": [0, 1, 0],
        "layer_types": ["chunked_attention", "full_attention", "full_attention"]}),
    "llama4": ("Llama4", {"text_config": _LLAMA4, "vision_config": {
        **_VISION, "vision_output_dim": 12, "projector_input_dim": 12, "projector_output_dim": 12, "patch_size": 4}}),
    "dbrx": ("Dbrx", {**_DBRX, "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.7, "rope_theta": 500.0}}),
    "dbrx not made to sum to one": ("Dbrx", {
        **_DBRX, "attn_config": {"kv_n_heads": 4, "clip_qkv": 50.0, "rope_theta": 500.0},
        "ffn_config": {**_DBRX["ffn_config"], "moe_normalize_expert_weights": None}}),
    "deepseek_v2": ("DeepseekV2", {**_DEEPSEEK, "first_k_dense_replace": 1, "topk_method": "group_limited_greedy",
                                   "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.7, "rope_parameters": {
                                       **_ROPE["yarn"], "rope_theta": 500.0, "mscale": 0.9, "mscale_all_dim": 0.7}}),
    "deepseek_v2 lite, biases": ("DeepseekV2", {**_DEEPSEEK, "q_lora_rank": None, "attention_bias": True,
                                                "mlp_bias": True, "first_k_dense_replace": 1}),
    "deepseek_v3": ("DeepseekV3", {**_DEEPSEEK, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
                                   "hidden_size": 16,
                                   "attention_bias": True, "rope_parameters": {
                                       **_ROPE["yarn"], "rope_theta": 500.0, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "deepseek_v3 in halves, one group": ("DeepseekV3", {
        **_DEEPSEEK, "rope_interleave": False, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "first_k_dense_replace": 0, "q_lora_rank": None}),
}  # fmt: skip

_HYBRID = {**_SQUARE, "num_hidden_layers": 3, "intermediate_size": 20}
_MAMBA = {
    **_HYBRID,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
    "mamba_d_conv": 3,
    "mamba_d_ssm": 32,
}
_FALCON_H1 = {
    "embedding_multiplier": 3.0, "lm_head_multiplier": 0.7, "attention_in_multiplier": 0.8, "key_multiplier": 0.6,
    "attention_out_multiplier": 1.3, "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.9, "mlp_multipliers": [0.7, 1.4],
    "ssm_multipliers": [0.5, 0.9, 1.1, 1.3, 0.8],
}  # fmt: skip
_GRANITE_HYBRID = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4, "logits_scaling": 0.7, "attention_multiplier": 0.3, "shared_intermediate_size": 12,
}  # fmt: skip
_NEMOTRON_H = {
    **_LLAMA, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"], "mamba_num_heads": 4,
    "mamba_head_dim": 5, "n_groups": 2, "ssm_state_size": 6, "conv_kernel": 3, "chunk_size": 4, "use_bias": True,
    "mlp_bias": True,
}  # fmt: skip
_DELTA_NET = {
    **_HYBRID, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 8,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
}  # fmt: skip
_QWEN_VISION = {
    "depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16,
    "num_position_embeddings": 4,
}  # fmt: skip
# Models whose layers have no common pattern.
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("Lfm2", {**_HYBRID, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 3,
                      "conv_bias": True}),
    "lfm2 attention first, untied": ("Lfm2", {**_HYBRID, "layer_types": ["full_attention", "conv", "full_attention"],
                                              "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False}),
    "bamba": ("Bamba", {**_MAMBA, "attn_layer_indices": [1], "attention_bias": True, "mlp_bias": True}),
    "falcon_h1": ("FalconH1", {**_MAMBA, **_FALCON_H1, "mamba_rms_norm": True, "attention_bias": True,
                               "mlp_bias": True, "projectors_bias": True, "mamba_proj_bias": True}),
    "falcon_h1 tied, without norms": ("FalconH1", {**_MAMBA, "tie_word_embeddings": True, "mamba_d_ssm": None,
                                                   "mamba_n_heads": 4}),
    "granitemoehybrid": ("GraniteMoeHybrid", {**_MAMBA, **_GRANITE_HYBRID, "num_local_experts": 4,
                                              "num_experts_per_tok": 2}),
    "granitemoehybrid without experts, rotary": ("GraniteMoeHybrid", {
        **_MAMBA, **_GRANITE_HYBRID, "num_local_experts": 0, "position_embedding_type": "rope"}),
    "jamba": ("Jamba", {
        **_HYBRID, "num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 6, "mamba_d_conv": 3, "mamba_dt_rank": 3,
        "mamba_proj_bias": True}),
    "jamba without experts, tied": ("Jamba", {
        **_HYBRID, "attn_layer_period": 2, "attn_layer_offset": 0, "num_experts": 1, "mamba_d_state": 6,
        "tie_word_embeddings": True}),
    "nemotron_h": ("NemotronH", _NEMOTRON_H),
    "nemotron_h with experts": ("NemotronH", {
        **_NEMOTRON_H, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.7,
        "moe_intermediate_size": 8, "moe_shared_expert_intermediate_size": 12}),
    "qwen3_5_text": ("Qwen3_5Text", {**_DELTA_NET, "attention_bias": True}),
    "qwen3_5": ("Qwen3_5", {"text_config": _DELTA_NET, "vision_config": _QWEN_VISION, "tie_word_embeddings": True}),
    "qwen3_5_moe_text": ("Qwen3_5MoeText", {
        **_DELTA_NET, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 12, "attention_bias": True}),
    "qwen3_5_moe": ("Qwen3_5Moe", {"vision_config": _QWEN_VISION, "text_config": {
        **_DELTA_NET, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 12}}),
    "qwen3_next": ("Qwen3Next", {
        **_DELTA_NET, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 12, "mlp_only_layers": [1], "tie_word_embeddings": True}),
    "recurrent_gemma": ("RecurrentGemma", {
        **{name: value for name, value in _HYBRID.items() if name != "max_position_embeddings"}, "block_types": [
            "recurrent", "attention", "recurrent"], "attention_window_size": 4, "lru_width": 20,
        "logits_soft_cap": 3.0, "num_key_value_heads": 1}),
}  # fmt: skip


@cache
def hf_model(row: str) -> Any:
    """A `transformers` model whose every weight is random; norms' weights are near what they are in that family."""
    stem, fields = {**ROWS, **HYBRIDS}[row]
    config = getattr(transformers, f"{stem}Config")(**fields)
    kind = "ImageTextToText" if "text_config" in fields else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    model = auto.from_config(config, attn_implementation=fields.get("attn_implementation", "eager")).eval()
    randomize(model, spread=0.4)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # learned, but not by its gradient
            buffer.copy_(torch.linspace(-0.3, 0.4, len(buffer)))
        if name.endswith("layer_scalar"):
            buffer.copy_(0.3 + 0.4 * float(name.split(".layers.")[1].split(".")[0]))
    return model
