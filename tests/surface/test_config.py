"""`HookedTransformerConfig`: every field of the field's config, kept through a dictionary, or refused by its name."""

import dataclasses
from typing import Any

import pytest
import surface
import torch
from reference import Reference
from surface import same
from tiny import tiny_config, tiny_model, tiny_tokens

from headscope import HookedTransformerConfig

# Each field of TransformerLens 3.9.0's config, with a value other than its default that a model here can have.
TAKEN: dict[str, Any] = {
    "d_model": 16, "d_head": 2, "n_layers": 3, "n_ctx": 9, "n_heads": 5, "d_mlp": 7, "d_vocab": 31, "d_vocab_out": 5,
    "n_key_value_heads": 1, "attn_only": True, "parallel_attn_mlp": True, "gated_mlp": True, "act_fn": "solu",
    "normalization_type": "RMS", "eps": 1e-3, "uses_rms_norm": False, "layer_norm_folding": True,
    "positional_embedding_type": "shortformer", "attention_dir": "bidirectional",
    "use_attn_scale": False, "attn_scale": 3.0, "scale_attn_by_inverse_layer_idx": True,
    "output_logits_soft_cap": 30.0, "use_attn_result": True, "use_split_qkv_input": True, "use_attn_in": True,
    "use_hook_mlp_in": True, "use_hook_tokens": True, "ungroup_grouped_query_attention": True,
    "default_prepend_bos": False, "tokenizer_name": "mine", "tokenizer_prepends_bos": True,
    "model_name": "mine", "original_architecture": "GPT2LMHeadModel", "from_checkpoint": True, "checkpoint_index": 3,
    "checkpoint_label_type": "step", "checkpoint_value": 512, "tie_word_embeddings": True,
    "init_mode": "xavier_uniform", "initializer_range": 0.1, "init_weights": False, "seed": 7,
    "device": "meta", "dtype": torch.bfloat16, "n_params": None,
    "final_rms": True, "use_qk_norm": True, "attn_types": ["global", "local"], "window_size": 256,
    "rotary_dim": 4, "rotary_base_local": 20_000, "rotary_scaling_factor": 8.0, "rotary_adjacent_pairs": True,
    "use_NTK_by_parts_rope": True, "use_yarn_rope": True, "post_embedding_ln": True,
    "use_normalization_before_and_after": True, "attn_scores_soft_cap": 50.0,
    "rotary_base": 500_000, "norm_topk_prob": True, "decoder_start_token_id": 1,
    "NTK_by_parts_low_freq_factor": 2.0, "NTK_by_parts_high_freq_factor": 3.0, "NTK_by_parts_factor": 4.0,
    "NTK_original_ctx_len": 5, "yarn_factor": 2.0, "yarn_attention_factor": 2.0, "yarn_beta_fast": 2.0,
    "yarn_beta_slow": 2.0, "yarn_original_max_position_embeddings": 5, "n_devices": 2,
    "train_seq_length": 9,  # which only refused fields would read
}  # fmt: skip
# ... and those of which a model here can only have the default, with values that are refused.
REFUSED: dict[str, list[Any]] = {
    "num_experts": [8], "experts_per_token": [2], "use_local_attn": [True], "relative_attention_max_distance": [128],
    "relative_attention_num_buckets": [32], "load_in_4bit": [True], "trust_remote_code": [True],
    "quantization_method": ["mxfp4"], "use_attention_sinks": [True], "use_dynamic_ntk_rope": [True],
    "use_logn_attn": [True], "yarn_global_attn_only": [True],
}  # fmt: skip
# Our own, of families the field's config has no fields for.
OWN: dict[str, Any] = {
    "clip_qkv": 8.0, "use_normalization_after_only": True, "qk_norm_all_heads": True, "qk_norm_type": "LN",
    "qk_norm_per_head": True, "qk_norm_after_rotation": True, "rotary_layers": [True, False], "dynamic_NTK_factor": 2.0,
    "yarn_truncate": False, "attn_temperature_slope": 0.1, "attn_temperature_length": 3,
    "attn_temperature_start": 1, "attn_temperature_layers": [True, False], "qk_norm_layers": [True, False],
    "attn_in_chunks": True,
    "longrope_short_factors": [1.0, 2.0],
    "longrope_long_factors": [1.0, 2.0], "longrope_original_ctx_len": 5, "longrope_attention_factor": 2.0,
    "gated_attn": True, "layer_parts": ["attn+mlp", "mlp"], "mixer": {"model_type": "lfm2"},
    "gated_mlp_limit": 7.0, "gated_mlp_offset": 1.0, "mlp_types": ["dense", "experts"],
    "d_mlp_dense": 6, "d_mlp_shared": 5, "gate_shared_expert": True,
    "router": "sigmoid", "sparsemixer_margin": 0.1, "expert_weight_scale": 2.0,
    "expert_groups": 2, "expert_groups_per_token": 1, "scale_expert_inputs": True, "expert_output_biases": True,
    "alibi_bfloat16": True, "use_attn_sinks": True, "d_head_v": 3, "d_latent_q": 5, "d_latent_kv": 6,
    "d_head_layers": [4, 2], "n_key_value_heads_layers": [1, 3], "resid_scales": [0.5, 0.7, 1.0], "use_v_norm": True,
    "norm_expert_outputs": True, "rotary_dim_local": 2, "rotary_pairs": 1,
}  # fmt: skip
CHOICES: dict[str, list[Any]] = {
    "positional_embedding_type": ["rotari", "relative_positional_bias"], "normalization_type": ["ln", "DyT"],
    "act_fn": ["swish"], "attention_dir": ["causal_only"], "init_mode": ["normal"],
    "n_layers": [0], "d_model": [0], "n_ctx": [0], "d_head": [0], "n_heads": [0], "n_key_value_heads": [2],
    "dtype": [torch.int8],
}  # fmt: skip
COMPUTED = {"uses_rms_norm", "n_params"}
# What only makes sense beside other fields, and is refused without them.
EXPERTS = {"num_experts": 4, "experts_per_token": 2}
LATENT = {"d_latent_kv": 6, "positional_embedding_type": "rotary", "rotary_dim": 2}
NEEDED: dict[str, dict[str, Any]] = {
    "mixer": {"layer_parts": OWN["layer_parts"]}, "alibi_bfloat16": {"positional_embedding_type": "alibi"},
    "attn_in_chunks": {"use_local_attn": True, "window_size": 2, "attn_types": ["local", "global"]},
    "qk_norm_layers": {"use_qk_norm": True},
    "qk_norm_after_rotation": {"use_qk_norm": True, "positional_embedding_type": "rotary"},
    "attn_temperature_layers": {"attn_temperature_slope": 0.1, "positional_embedding_type": "rotary"},
    **dict.fromkeys(("d_head_v", "d_latent_q", "d_latent_kv"), LATENT),
    **dict.fromkeys(("d_mlp_dense", "d_mlp_shared", "mlp_types", "norm_topk_prob", "router", "sparsemixer_margin",
                     "expert_weight_scale", "scale_expert_inputs", "expert_output_biases"), EXPERTS),
    **dict.fromkeys(("gate_shared_expert", "norm_expert_outputs"), {**EXPERTS, "d_mlp_shared": 5}),
    "rotary_dim_local": {"positional_embedding_type": "rotary", "rotary_base_local": 100.0},
    **dict.fromkeys(("expert_groups", "expert_groups_per_token"), {
        **EXPERTS, "expert_groups": 2, "expert_groups_per_token": 1}),
    **dict.fromkeys(("gated_mlp_limit", "gated_mlp_offset"), {**EXPERTS, "gated_mlp": True}),
}  # fmt: skip
ROTARY = {
    "qk_norm_after_rotation",
    "rotary_layers",
    "dynamic_NTK_factor",
    "attn_temperature_slope",
    "attn_temperature_layers",
    "attn_temperature_start",
    "rotary_pairs",
}


def test_every_field_is_in_the_tables() -> None:
    fields = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    assert fields == {*TAKEN, *REFUSED, *OWN} and len(TAKEN) + len(REFUSED) == len(fields) - len(OWN) == 85
    public = {name for name in dir(tiny_config()) if not name.startswith("_")} - fields
    assert (
        public
        == {"to_dict", "from_dict", "unwrap", "is_layer_norm_activation"} | surface.OWN["HookedTransformerConfig"]
    )


@pytest.mark.parametrize("name", [*TAKEN, *REFUSED, *OWN])
def test_a_field_goes_through_a_dictionary(name: str) -> None:
    default, given = getattr(tiny_config(), name), {**TAKEN, **OWN}
    needed: dict[str, Any] = NEEDED.get(name, {"positional_embedding_type": "rotary"} if name in ROTARY else {})
    cfg = tiny_config(**{**needed, name: given.get(name, default)})
    if name in given and name not in COMPUTED:
        assert getattr(cfg, name) == given[name] != default
    fields = cfg.to_dict()
    assert fields[name] == getattr(cfg, name)
    again = HookedTransformerConfig.from_dict(fields)
    assert again == cfg and getattr(again, name) == getattr(cfg, name) and again is not cfg
    again.n_ctx += 1
    assert again != cfg


def test_what_is_computed() -> None:
    shape = {"n_layers": 3, "d_model": 8, "n_ctx": 5, "d_head": 2, "d_vocab": 11, "act_fn": "relu"}
    cfg = HookedTransformerConfig(**shape, normalization_type="RMS", n_params=1, uses_rms_norm=False)
    assert (cfg.n_heads, cfg.d_mlp, cfg.d_vocab_out, cfg.uses_rms_norm) == (4, 32, 11, True)
    assert cfg.n_params == 3 * (4 * 8 * 8 + 2 * 8 * 32)
    assert abs(cfg.attn_scale - 2**0.5) < 1e-9 and abs(cfg.initializer_range - 0.8 / 8**0.5) < 1e-9


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for table in (REFUSED, CHOICES) for name in table for value in table[name]]
)
def test_what_no_model_here_has_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        tiny_config(**{name: value})
    with pytest.raises(ValueError, match=name):
        HookedTransformerConfig.from_dict({**tiny_config().to_dict(), name: value})


def test_unknown_fields_are_refused_by_name() -> None:
    with pytest.raises(KeyError, match=r"'n_layer'.*'n_layers'"):
        HookedTransformerConfig.from_dict({**tiny_config().to_dict(), "n_layer": 3})


def test_unwrap() -> None:
    cfg = tiny_config()
    assert HookedTransformerConfig.unwrap(cfg) is cfg
    assert HookedTransformerConfig.unwrap(cfg.to_dict()) == cfg


@pytest.mark.parametrize(("name", "value"), [
    ("output_logits_soft_cap", 2.0), ("use_attn_scale", False), ("attn_scale", 0.7), ("eps", 0.5),
    ("scale_attn_by_inverse_layer_idx", True), ("attention_dir", "bidirectional"),
])  # fmt: skip
def test_a_field_changed_on_a_live_model_counts_from_then_on(name: str, value: Any) -> None:
    model, tokens = tiny_model(), tiny_tokens()
    before = model(tokens).detach()
    setattr(model.cfg, name, value)
    after = Reference(model.state_dict(), model.cfg).run(tokens).logits
    same(model(tokens), after)
    assert float((after - before).abs().max()) > 1e-3
