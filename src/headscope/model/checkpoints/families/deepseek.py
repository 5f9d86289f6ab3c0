"""DeepSeek V2 and V3: latent attention, experts in groups beside shared ones, and dense MLPs in the first layers."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import QUERY, Row, Table, linear, sizes
from headscope.model.checkpoints.families.llama import LlamaLike, any_bias
from headscope.model.checkpoints.families.moe import WithExperts, gated_rows
from headscope.model.config import HookedTransformerConfig

__all__ = ["DEEPSEEK_V2", "DEEPSEEK_V3"]

_ATTENTION_BIASES = ("attn.b_Q_down", "attn.b_KV_down", "attn.b_K_rotary", "attn.b_O")


class _DeepSeekV3(WithExperts):
    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1")
    windowed = False
    names = {**WithExperts.names, "expert_weight_scale": "routed_scaling_factor"}
    defaults = {**WithExperts.defaults, "norm_topk_prob": True, "expert_weight_scale": 2.5}
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "router": "sigmoid"}
    # What the code of the authors reads and transformers does not; other values would change the model.
    only: ClassVar[Mapping[str, Any]] = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        self._check(hf)
        content, turned, value, latent, d_mlp, d_dense, n_shared, experts, n_layers = sizes(
            hf, "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "moe_intermediate_size",
            "intermediate_size", "n_shared_experts", "n_routed_experts", "num_hidden_layers",
        )  # fmt: skip
        for entry, width in (("head_dim", turned), ("qk_head_dim", content + turned)):  # transformers writes them too
            if hf.get(entry, width) != width:
                raise CheckpointError(f"{entry} = {hf[entry]} in config.json must be {width}, as its parts say.")
        plain = {"num_experts": experts, "intermediate_size": d_mlp, "head_dim": turned, "num_key_value_heads": None}
        fields = super().config(changed(hf, **plain))
        n_dense = min(hf.get("first_k_dense_replace") or 0, n_layers)
        types = {"mlp_types": ["dense"] * n_dense + ["experts"] * (n_layers - n_dense), "d_mlp_dense": d_dense}
        return {
            **fields,
            **(types if n_dense else {}),
            **self._groups(hf),
            "d_head": content + turned,
            "d_head_v": value,
            "d_latent_kv": latent,
            "d_latent_q": hf.get("q_lora_rank"),
            "d_mlp_shared": n_shared * d_mlp,
            "rotary_adjacent_pairs": self._adjacent_pairs(hf),
            "attn_scale": math.sqrt(content + turned) / _mscale(hf) ** 2,
        }

    def _check(self, hf: Mapping[str, Any]) -> None:
        for entry, only in self.only.items():
            if hf.get(entry, only) != only:
                raise CheckpointError(f"{entry} = {hf[entry]!r} in config.json is not supported: it must be {only!r}.")

    def _groups(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        n_groups, used = sizes(hf, "n_group", "topk_group")
        return {} if n_groups == 1 else {"expert_groups": n_groups, "expert_groups_per_token": used}

    def _adjacent_pairs(self, hf: Mapping[str, Any]) -> bool:
        return bool(hf.get("rope_interleave", True))

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        assert cfg.rotary_dim is not None and cfg.d_mlp_shared is not None and cfg.d_mlp is not None
        entries = super().entries(cfg, state)
        rope = {**entries["rope_parameters"], "partial_rotary_factor": 1.0, **_mscale_entry(cfg)}
        scaled = rope["rope_type"] != "default"
        groups = (cfg.expert_groups or 1, cfg.expert_groups_per_token or 1)
        return {
            **entries,
            "rope_parameters": rope,
            "rope_scaling": rope if scaled else None,
            "partial_rotary_factor": 1.0,
            "head_dim": cfg.rotary_dim,
            "num_key_value_heads": cfg.n_heads,
            "qk_nope_head_dim": cfg.d_head - cfg.rotary_dim,
            "qk_rope_head_dim": cfg.rotary_dim,
            "v_head_dim": cfg.value_width,
            "kv_lora_rank": cfg.d_latent_kv,
            "q_lora_rank": cfg.d_latent_q,
            "rope_interleave": cfg.rotary_adjacent_pairs,
            "moe_intermediate_size": cfg.d_mlp,
            "intermediate_size": cfg.d_mlp_dense or cfg.d_mlp,
            "n_shared_experts": cfg.d_mlp_shared // cfg.d_mlp,
            "n_routed_experts": cfg.num_experts,
            "first_k_dense_replace": sum(not cfg.has_experts(layer) for layer in range(cfg.n_layers)),
            "n_group": groups[0],
            "topk_group": groups[1],
            "attention_bias": any_bias(state, *_ATTENTION_BIASES),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        assert cfg.rotary_dim is not None
        axes = {"c": cfg.d_latent_kv or 0, "p": cfg.rotary_dim, "k": cfg.d_head - cfg.rotary_dim, "v": cfg.value_width}
        at, biased = "self_attn.", bool(hf.get("attention_bias"))
        down = f"{at}kv_a_proj_with_mqa"
        table = {
            "attn.W_KV_down attn.W_K_rotary": Row(f"{down}.weight", ("c d -> d c", "p d -> d p"), axes=axes),
            "attn.kv_latent_norm.w": Row(f"{at}kv_a_layernorm.weight"),
            "attn.W_K_up attn.W_V_up": Row(
                f"{at}kv_b_proj.weight", ("k h c -> h c k", "v h c -> h c v"), first="(h y) c -> y h c", axes=axes
            ),
            "attn.W_O": Row(f"{at}o_proj.weight", "d (h v) -> h v d", axes=axes),
            "ln1.w": Row("input_layernorm.weight"),
            "ln2.w": Row("post_attention_layernorm.weight"),
        }
        if biased:
            table["attn.b_KV_down attn.b_K_rotary"] = Row(f"{down}.bias", ("c -> c", "p -> p"), axes=axes)
            table["attn.b_O"] = Row(f"{at}o_proj.bias")
        if cfg.d_latent_q is None:
            return {**table, "attn.W_Q_up": Row(f"{at}q_proj.weight", QUERY)}
        queries = linear("attn.Q_down", f"{at}q_a_proj")
        return {
            **table,
            **{name: row for name, row in queries.items() if biased or ".W_" in name},
            "attn.q_latent_norm.w": Row(f"{at}q_a_layernorm.weight"),
            "attn.W_Q_up": Row(f"{at}q_b_proj.weight", QUERY),
        }

    def dense(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return gated_rows("mlp", "mlp")

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **super().experts(cfg, hf),
            "mlp.b_choice": Row("mlp.gate.e_score_correction_bias"),
            **gated_rows("mlp.shared", "mlp.shared_experts"),
        }

    def left_out(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        # Behind the last layer of the config, checkpoints have one that predicts the token after the next.
        more = range(hf.get("num_nextn_predict_layers") or 0)
        layers = (self.layer_prefix.format(hf["num_hidden_layers"] + each) for each in more)
        return (*super().left_out(hf), *(self.prefix + each for each in layers))


class _DeepSeekV2(_DeepSeekV3):
    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    examples = ("deepseek-ai/DeepSeek-V2", "deepseek-ai/DeepSeek-V2-Lite")
    defaults = {**WithExperts.defaults, "expert_weight_scale": 1.0}
    fixed = LlamaLike.fixed
    # The code of the authors makes weights sum to one where norm_topk_prob says so, and transformers never does.
    only = {"moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": False}

    def _groups(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        method = hf.get("topk_method", "greedy")
        if method == "greedy":
            return {}
        if method == "group_limited_greedy":
            return super()._groups(hf)
        raise CheckpointError(
            f"topk_method = {method!r} in config.json is not supported. Supported: greedy, group_limited_greedy."
        )

    def _adjacent_pairs(self, hf: Mapping[str, Any]) -> bool:
        return True

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        biases = tuple(f"mlp.{part}b_{each}" for part in ("", "shared.") for each in ("gate", "in", "out"))
        return {
            **super().entries(cfg, state),
            "topk_method": "greedy" if cfg.expert_groups is None else "group_limited_greedy",
            "mlp_bias": any_bias(state, *biases),
        }

    def dense(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {**super().dense(cfg, hf), **self._mlp_biases("mlp", "mlp", hf)}

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = {name: row for name, row in super().experts(cfg, hf).items() if name != "mlp.b_choice"}
        return {**table, **self._mlp_biases("mlp.shared", "mlp.shared_experts", hf)}

    def _mlp_biases(self, ours: str, theirs: str, hf: Mapping[str, Any]) -> Table:
        parts = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"} if hf.get("mlp_bias") else {}
        return {f"{ours}.b_{each}": Row(f"{theirs}.{name}.bias") for each, name in parts.items()}


def _mscale(hf: Mapping[str, Any]) -> float:
    """Return what both queries and keys are multiplied by, with scaled rotary positions."""
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    scale, factor = rope.get("mscale_all_dim"), rope.get("factor") or 1.0
    if rope.get("rope_type", rope.get("type", "default")) == "default" or not scale or factor <= 1:
        return 1.0
    return 0.1 * float(scale) * math.log(factor) + 1.0


def _mscale_entry(cfg: HookedTransformerConfig) -> dict[str, float]:
    """Return the entry for a scale of the scores: the inverse of `_mscale`."""
    squared = math.sqrt(cfg.d_head) / cfg.attn_scale
    if squared == 1.0 or not cfg.use_yarn_rope:
        return {}
    # As many digits as such an entry has: then the scale comes out to the bit.
    return {"mscale_all_dim": round((math.sqrt(squared) - 1) / (0.1 * math.log(cfg.yarn_factor)), 9)}


DEEPSEEK_V2, DEEPSEEK_V3 = _DeepSeekV2(), _DeepSeekV3()
