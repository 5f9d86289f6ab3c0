"""GPT-2, DistilGPT-2 and everything saved as `model_type: gpt2`.

GPT-2 keeps q, k and v side by side in one `Conv1D` of shape [d_model, 3 * d_model] (inputs first, unlike `Linear`).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.config import HookedTransformerConfig
from headscope.model.families.base import Family, StateDict, Tensors, sizes

__all__ = ["GPT2"]


class _GPT2(Family):
    architecture = "GPT2LMHeadModel"

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("add_cross_attention"):
            raise CheckpointError("config.json asks for cross-attention; only decoder-only models are supported.")
        n_layers, d_model, n_heads, n_ctx, d_vocab = sizes(
            hf, "n_layer", "n_embd", "n_head", "n_positions", "vocab_size"
        )
        if d_model % n_heads:
            raise CheckpointError(f"n_embd = {d_model} in config.json is not a multiple of n_head = {n_heads}.")
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": n_heads,
            "d_head": d_model // n_heads,
            "d_mlp": hf.get("n_inner") or 4 * d_model,
            "d_vocab": d_vocab,
            "act_fn": hf.get("activation_function", "gelu_new"),
            "eps": hf.get("layer_norm_epsilon", 1e-5),
            "normalization_type": "LN",
            "use_attn_scale": hf.get("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": hf.get("scale_attn_by_inverse_layer_idx", False),
            "tie_word_embeddings": hf.get("tie_word_embeddings", True),
        }

    def convert(self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> dict[str, Tensor]:
        # A tied checkpoint may carry a copy of its embedding as lm_head; transformers does not read it either.
        buffers = (".attn.bias", ".attn.masked_bias")
        tied = cfg.tie_word_embeddings
        hf = Tensors(tensors, prefix="transformer.", ignore=(*buffers, "lm_head.weight") if tied else buffers)
        heads, width, d_model = cfg.n_heads, cfg.d_head, cfg.d_model
        state = {"embed.W_E": hf["wte.weight"], "pos_embed.W_pos": hf["wpe.weight"]}
        for layer in range(cfg.n_layers):
            theirs, ours = f"h.{layer}.", f"blocks.{layer}."
            weights = hf[theirs + "attn.c_attn.weight"].split(heads * width, dim=-1)
            biases = hf[theirs + "attn.c_attn.bias"].split(heads * width)
            for name, weight, bias in zip("QKV", weights, biases, strict=True):
                state[f"{ours}attn.W_{name}"] = weight.view(d_model, heads, width).permute(1, 0, 2)
                state[f"{ours}attn.b_{name}"] = bias.view(heads, width)
            state |= {
                f"{ours}attn.W_O": hf[theirs + "attn.c_proj.weight"].view(heads, width, d_model),
                f"{ours}attn.b_O": hf[theirs + "attn.c_proj.bias"],
                f"{ours}ln1.w": hf[theirs + "ln_1.weight"],
                f"{ours}ln1.b": hf[theirs + "ln_1.bias"],
                f"{ours}ln2.w": hf[theirs + "ln_2.weight"],
                f"{ours}ln2.b": hf[theirs + "ln_2.bias"],
                f"{ours}mlp.W_in": hf[theirs + "mlp.c_fc.weight"],
                f"{ours}mlp.b_in": hf[theirs + "mlp.c_fc.bias"],
                f"{ours}mlp.W_out": hf[theirs + "mlp.c_proj.weight"],
                f"{ours}mlp.b_out": hf[theirs + "mlp.c_proj.bias"],
            }
        state |= {"ln_final.w": hf["ln_f.weight"], "ln_final.b": hf["ln_f.bias"]}
        unembedding = state["embed.W_E"] if tied else hf["lm_head.weight"]
        state["unembed.W_U"] = unembedding.T
        state["unembed.b_U"] = unembedding.new_zeros(cfg.d_vocab_out)
        hf.check_all_read()
        return state

    def export(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], StateDict]:
        _check_expressible(cfg, state)
        heads, width, d_model = cfg.n_heads, cfg.d_head, cfg.d_model
        one, zero = torch.ones(d_model), torch.zeros(d_model)  # norms that were folded away
        tensors = {"wte.weight": state["embed.W_E"], "wpe.weight": state["pos_embed.W_pos"]}
        for layer in range(cfg.n_layers):
            theirs, ours = f"h.{layer}.", f"blocks.{layer}."
            matrices = [state[f"{ours}attn.W_{m}"].permute(1, 0, 2).reshape(d_model, heads * width) for m in "QKV"]
            tensors |= {
                f"{theirs}attn.c_attn.weight": torch.cat(matrices, dim=-1),
                f"{theirs}attn.c_attn.bias": torch.cat([state[f"{ours}attn.b_{m}"].flatten() for m in "QKV"]),
                f"{theirs}attn.c_proj.weight": state[f"{ours}attn.W_O"].flatten(0, 1),
                f"{theirs}attn.c_proj.bias": state[f"{ours}attn.b_O"],
                f"{theirs}ln_1.weight": state.get(f"{ours}ln1.w", one),
                f"{theirs}ln_1.bias": state.get(f"{ours}ln1.b", zero),
                f"{theirs}ln_2.weight": state.get(f"{ours}ln2.w", one),
                f"{theirs}ln_2.bias": state.get(f"{ours}ln2.b", zero),
                f"{theirs}mlp.c_fc.weight": state[f"{ours}mlp.W_in"],
                f"{theirs}mlp.c_fc.bias": state[f"{ours}mlp.b_in"],
                f"{theirs}mlp.c_proj.weight": state[f"{ours}mlp.W_out"],
                f"{theirs}mlp.c_proj.bias": state[f"{ours}mlp.b_out"],
            }
        tensors |= {"ln_f.weight": state.get("ln_final.w", one), "ln_f.bias": state.get("ln_final.b", zero)}
        named = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
        named["lm_head.weight"] = state["unembed.W_U"].T
        fields = {
            "model_type": "gpt2",
            "architectures": [self.architecture],
            "n_layer": cfg.n_layers,
            "n_embd": d_model,
            "n_head": heads,
            "n_positions": cfg.n_ctx,
            "n_inner": cfg.d_mlp,
            "vocab_size": cfg.d_vocab,
            "activation_function": cfg.act_fn,
            "layer_norm_epsilon": cfg.eps,
            "scale_attn_weights": cfg.use_attn_scale,
            "scale_attn_by_inverse_layer_idx": cfg.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": torch.equal(state["embed.W_E"].T, state["unembed.W_U"]),
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
        return fields, named


def _check_expressible(cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> None:
    """Refuse what GPT-2's class has no place for, by name."""
    wanted: dict[str, tuple[Any, Any]] = {
        "n_heads * d_head": (cfg.n_heads * cfg.d_head, cfg.d_model),
        "n_key_value_heads": (cfg.n_key_value_heads or cfg.n_heads, cfg.n_heads),
        "attn_scale": (cfg.attn_scale if cfg.use_attn_scale else math.sqrt(cfg.d_head), math.sqrt(cfg.d_head)),
        "d_vocab_out": (cfg.d_vocab_out, cfg.d_vocab),
        "attn_only": (cfg.attn_only, False),
        "parallel_attn_mlp": (cfg.parallel_attn_mlp, False),
        "positional_embedding_type": (cfg.positional_embedding_type, "standard"),
        "attention_dir": (cfg.attention_dir, "causal"),
        "centred norms": (cfg.centred_norm, True),
        "a soft cap on the logits": (cfg.output_logits_soft_cap > 0, False),
    }
    for what, (found, expected) in wanted.items():
        if found != expected:
            raise CheckpointError(f"GPT-2 in transformers needs {what} to be {expected}; this model has {found}.")
    if bool(state["unembed.b_U"].any()):
        raise CheckpointError(
            "GPT-2 in transformers has no output bias, and this model's b_U is not zero: folding the final norm put it "
            "there. Load the model with from_pretrained_no_processing."
        )


GPT2 = _GPT2()
