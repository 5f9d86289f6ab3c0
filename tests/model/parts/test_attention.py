"""Keys and values shared by groups of heads, and positions that only queries and keys see."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens

from headscope import HookedTransformer
from headscope.errors import InvalidInputError
from headscope.model.parts.attention import GroupedQueryAttention
from headscope.model.weights.processing import WeightProcessing

TOKENS = tiny_tokens()
NAMES = WeightProcessing.names()


def grouped_and_plain() -> tuple[HookedTransformer, HookedTransformer]:
    """Four heads that share two keys and values, and the same model with each pair written out."""
    grouped, plain = tiny_model(n_heads=4, n_key_value_heads=2), tiny_model(n_heads=4)
    plain.load_state_dict(
        {
            name.replace("attn._", "attn."): tensor.repeat_interleave(2, 0) if "attn._" in name else tensor
            for name, tensor in grouped.state_dict().items()
        }
    )
    return grouped, plain


@pytest.mark.parametrize("flag", [None, "use_split_qkv_input", "use_attn_in", "use_attn_result", "ungroup"])
def test_shared_keys_and_values_are_those_of_each_head(flag: str | None) -> None:
    grouped, plain = grouped_and_plain()
    assert isinstance(grouped.blocks[0].attn, GroupedQueryAttention)
    for model in (grouped, plain):
        if flag == "ungroup":
            model.set_ungroup_grouped_query_attention(True)
        elif flag is not None:
            getattr(model, f"set_{flag}")(True)
    with torch.no_grad():
        logits, cache = grouped.run_with_cache(TOKENS)
        wanted, other = plain.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, wanted, rtol=1e-12, atol=1e-12)
    shown = 4 if flag in ("ungroup", "use_attn_in") else 2
    assert cache["k", 0].shape == cache["v", 0].shape == (2, 7, shown, 4)
    torch.testing.assert_close(cache["k", 1], other["k", 1][:, :, :: 4 // shown], rtol=1e-12, atol=1e-12)
    for name in ("q", "z", "pattern"):
        torch.testing.assert_close(cache[name, 1], other[name, 1], rtol=1e-12, atol=1e-12)
    for name in ("W_K", "W_V", "b_K", "b_V", "W_Q"):
        assert torch.equal(getattr(grouped, name), getattr(plain, name)), name
    torch.testing.assert_close(grouped.OV.AB, plain.OV.AB)


@pytest.mark.parametrize("name", NAMES)
def test_processing_a_model_with_shared_keys(name: str) -> None:
    model, _ = grouped_and_plain()
    wanted = model(TOKENS).log_softmax(-1)
    model.process_weights_(**{each: each == name for each in NAMES})
    torch.testing.assert_close(model(TOKENS).log_softmax(-1), wanted, rtol=1e-10, atol=1e-10)
    assert model.weight_processing == (() if name == "refactor_factored_attn_matrices" else (name,))


def test_gradients_of_shared_weights_add_up() -> None:
    grouped, plain = grouped_and_plain()
    for model in (grouped, plain):
        model(TOKENS, return_type="loss").backward()
    for layer in range(2):
        each = plain.blocks[layer].attn.W_K.grad
        torch.testing.assert_close(grouped.blocks[layer].attn._W_K.grad, each[::2] + each[1::2])


def test_groups_that_do_not_fit_are_refused() -> None:
    for groups in (3, 0, -1):
        with pytest.raises(InvalidInputError, match="n_key_value_heads must divide n_heads = 4"):
            tiny_model(n_heads=4, n_key_value_heads=groups)


@pytest.mark.parametrize("fields", [{}, {"attn_only": True, "normalization_type": None}, {"use_attn_in": True}])
def test_shortformer_positions_reach_queries_and_keys_only(fields: dict[str, Any]) -> None:
    model = tiny_model(positional_embedding_type="shortformer", **fields)
    with torch.no_grad():
        logits, cache = model.run_with_cache(TOKENS)
        for layer, block in enumerate(model.blocks):
            stream = cache["resid_pre", layer]
            normalized = block.ln1(stream)
            for kind, positions in (("q", model.W_pos[:7]), ("k", model.W_pos[:7]), ("v", 0.0)):
                weight, bias = getattr(block.attn, f"W_{kind.upper()}"), getattr(block.attn, f"b_{kind.upper()}")
                wanted = torch.einsum("bpd,hde->bphe", normalized + positions, weight) + bias
                torch.testing.assert_close(cache[kind, layer], wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(cache["resid_pre", 0], model.W_E[TOKENS])
        torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1], rtol=1e-10, atol=1e-10)
        halfway = model(TOKENS, stop_at_layer=1)
        torch.testing.assert_close(model(halfway, start_at_layer=1), logits)
        shifted = model.W_pos[2:9].expand(2, -1, -1)
        moved = model(halfway, start_at_layer=1, shortformer_pos_embed=shifted)
        assert not torch.allclose(moved, logits)


def test_processing_leaves_shortformer_log_probs_as_they_are() -> None:
    model = tiny_model(positional_embedding_type="shortformer")
    wanted = model(TOKENS).log_softmax(-1)
    model.process_weights_()
    torch.testing.assert_close(model(TOKENS).log_softmax(-1), wanted, rtol=1e-10, atol=1e-10)
    assert model.weight_processing == ("center_writing_weights", "center_unembed", "fold_value_biases")
