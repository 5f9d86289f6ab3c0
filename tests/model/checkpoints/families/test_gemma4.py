"""Gemma 4: numbers that multiply the stream, heads of two widths and copies of key weights, and what is refused."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import transformers
from families_table import _GEMMA4, LENGTH, TOKENS, hf_model

from headscope import HookedTransformer
from headscope.analysis import logit_lens
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.families import FAMILIES, family_of
from headscope.model.checkpoints.families.gemma4 import _resid_scales


def with_numbers(row: str, *numbers: float) -> Any:
    """A `transformers` model whose layers multiply the stream by these."""
    hf = copy.deepcopy(hf_model(row))
    for layer, number in zip(hf.model.layers, numbers, strict=True):
        layer.layer_scalar.fill_(number)
    return hf


@pytest.mark.parametrize("numbers", [(1e-3, 40.0, 0.02), (1.0, 1.0, 1.0), (1e-6, 1e-5, 1e-4)])
def test_streams_are_those_of_transformers_but_for_their_scales(numbers: tuple[float, ...]) -> None:
    """Far from one, `eps` counts: 0.01 in this row, beside streams of a millionth."""
    hf = with_numbers("gemma4_text", *numbers)
    model = HookedTransformer.from_hf(hf)
    with torch.no_grad():
        theirs = hf(TOKENS, output_hidden_states=True)
        logits, cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, theirs.logits, rtol=0, atol=1e-4)
    assert model.cfg.resid_scales is not None
    for layer, stream in enumerate(theirs.hidden_states[:-1]):
        scaled = stream * model.cfg.resid_scales[layer]
        torch.testing.assert_close(cache["resid_pre", layer], scaled, rtol=1e-4, atol=1e-6)
    # Each state at its own scale reads as theirs does, through the final norm and the unembedding.
    own = logit_lens(model, TOKENS, k=1, scale="own", include_bos=True, progress=False)
    with torch.no_grad():
        for at, stream in enumerate(theirs.hidden_states[:-1]):
            logits = hf.lm_head(hf.model.norm(stream)) / 3.0
            expected = (3.0 * logits.tanh()).log_softmax(-1)
            entropy = -(expected.exp() * expected).sum(-1)
            torch.testing.assert_close(own.entropy[2 * at], entropy, rtol=0, atol=1e-4)


def test_the_first_layers_alone() -> None:
    """Their stream is at another scale than the final one, and so is the final norm's `eps`."""
    hf = with_numbers("gemma4_text", 0.5, 0.3, 0.2)
    first = HookedTransformer.from_hf(hf, first_n_layers=2)
    hf.model.layers = hf.model.layers[:2]
    hf.config.num_hidden_layers = 2
    with torch.no_grad():
        torch.testing.assert_close(first(TOKENS), hf(TOKENS).logits, rtol=0, atol=1e-4)


def test_the_first_layers_have_widths_of_their_own() -> None:
    """Without global layers, whose heads are wider; and numbers of dropped layers count nowhere."""
    hf = copy.deepcopy(hf_model("gemma4_text with experts"))
    cfg = HookedTransformer.from_hf(hf, first_n_layers=2).cfg
    assert (cfg.d_head, cfg.rotary_dim, cfg.n_layers) == (6, 6, 2) == (cfg.head_width_of(1), cfg.rotary_dim_local, 2)
    assert dataclasses.replace(cfg, n_params=None).d_head_layers == cfg.d_head_layers  # its checks pass


def test_scales_too_far_apart_for_a_dtype() -> None:
    hf = with_numbers("gemma4_text", 1e-3, 1e-3, 1e-3)
    with pytest.raises(CheckpointError, match="scales 1e\\+09 apart, which float16 cannot hold: pass dtype='bfloat16'"):
        HookedTransformer.from_hf(hf, dtype="float16")
    with torch.no_grad():
        found = HookedTransformer.from_hf(hf, dtype="bfloat16")(TOKENS).log_softmax(-1)
        torch.testing.assert_close(found.float(), hf(TOKENS).logits.log_softmax(-1), rtol=0, atol=0.1)


def test_the_layout_of_the_hub() -> None:
    """There, the entries of global layers have names of their own."""
    hub = {
        **{name: value for name, value in _GEMMA4.items() if name != "layer_types"}, "model_type": "gemma4_text",
        "num_hidden_layers": 8, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
        "use_bidirectional_attention": "vision", "tie_word_embeddings": True,
    }  # fmt: skip
    fields = FAMILIES["gemma4_text"].config(hub)
    assert fields["d_head_layers"] == [6] * 5 + [10, 6, 10]
    assert fields["n_key_value_heads_layers"] == [2] * 5 + [1, 2, 1]
    assert fields["attn_types"] == ["local"] * 5 + ["global", "local", "global"]
    assert (fields["rotary_dim"], fields["rotary_pairs"], fields["rotary_dim_local"]) == (10, 1, 6)
    written = transformers.Gemma4TextConfig(**hub).to_dict()
    assert "per_layer_config" in written and FAMILIES["gemma4_text"].config(written) == fields


@pytest.mark.parametrize("number", [0.0, -0.5, math.nan, math.inf])
def test_a_number_that_cannot_be_folded_is_refused(number: float) -> None:
    with pytest.raises(CheckpointError, match=f"layer_scalar of {number}; only positive"):
        HookedTransformer.from_hf(with_numbers("gemma4_text", 0.5, number, 0.5))


def test_numbers_that_are_none_or_leave_the_range_of_floats_are_refused() -> None:
    with pytest.raises(CheckpointError, match="cannot hold"):
        _resid_scales([1e-200, 1e-200, 1.0], torch.float32)
    with pytest.raises(CheckpointError, match="cannot hold"):
        _resid_scales([1e200, 1e200, 1.0], torch.float32)
    hf = with_numbers("gemma4_text", 1.0, 1.0, 1.0)
    for shape in ((2,), (0,)):
        hf.model.layers[1].layer_scalar = torch.ones(shape)
        with pytest.raises(CheckpointError, match="layers.1.layer_scalar' must hold one number"):
            HookedTransformer.from_hf(hf)


def test_shapes_of_hooks_and_stacks() -> None:
    """Hooks have a layer's own width and key-value heads; stacked weights have zeros behind narrower heads."""
    model = HookedTransformer.from_hf(hf_model("gemma4_text"))
    cache = model.run_with_cache(TOKENS)[1]
    assert [cache["z", layer].shape[2:] for layer in range(3)] == [(4, 10), (4, 6), (4, 10)]
    assert [cache["v", layer].shape[2:] for layer in range(3)] == [(1, 10), (2, 6), (1, 10)]
    with pytest.raises(InvalidInputError, match=r"z has not one shape .*, 4, 10\], .*, 4, 6\].* cache\['z', layer\]"):
        cache.stack_activation("z")
    assert model.W_Q.shape == (3, 4, 12, 10) and not bool(model.W_Q[1, ..., 6:].any())
    W_K, W_Q = (getattr(model.blocks[1].attn, name) for name in ("W_K", "W_Q"))
    torch.testing.assert_close(model.QK.AB[1], W_Q @ W_K.mT)
    # Padding is not counted, and in global layers values have weights of their own, copies of the keys'.
    attention, mlp = 12 * (2 * 4 * 10 + 2 * 10), 3 * 12 * 20
    assert model.cfg.n_params == 2 * attention + 12 * (2 * 4 * 6 + 2 * 2 * 6) + 3 * mlp
    assert torch.equal(model.blocks[0].attn.W_K, model.blocks[0].attn.W_V)
    assert not torch.equal(model.blocks[1].attn.W_K, model.blocks[1].attn.W_V)


def test_values_are_shown_behind_their_norm() -> None:
    model = HookedTransformer.from_hf(hf_model("gemma4_text"))
    values = model.run_with_cache(TOKENS)[1]["v", 1]
    expected = torch.full(values.shape[:-1], 1.0)
    torch.testing.assert_close(values.square().mean(-1), expected, rtol=0.3, atol=0)  # `eps` is large
    assert float(values.mean(-1).abs().max()) > 0.1  # no LayerNorm
    pattern = model.run_with_cache(TOKENS)[1]["pattern", 1]
    z = torch.einsum("bhqk,bkhe->bqhe", pattern, values.repeat_interleave(2, dim=2))
    torch.testing.assert_close(z, model.run_with_cache(TOKENS)[1]["z", 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("row", ["gemma4_text", "gemma4_text with experts"])
def test_resumed_runs_are_whole_ones(row: str) -> None:
    model = HookedTransformer.from_hf(hf_model(row), dtype="float64")
    with torch.no_grad():
        middle = model(TOKENS, stop_at_layer=1)
        torch.testing.assert_close(model(middle, start_at_layer=1, tokens=TOKENS), model(TOKENS))
    assert all(block.can_resume and not block.looks_ahead(LENGTH) for block in model.blocks)


def test_neurons_behind_norms_of_their_own_do_not_write_to_the_stream() -> None:
    model = HookedTransformer.from_hf(hf_model("gemma4_text with experts"))
    with pytest.raises(InvalidInputError, match="norms behind its experts"):
        model.output_weight(0, "mlp")


@pytest.mark.parametrize("entries, message", [
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
    ({"per_layer_config": {"0": {"head_dim": 6}, "2": {"head_dim": 8}}}, r"heads of widths \[6, 6, 8\]"),
    ({"per_layer_config": {"0": {"intermediate_size": 6}}}, "per_layer_config .* 'intermediate_size' for layer 0"),
    ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}},
     "partial_rotary_factor = 0.5"),
    ({"per_layer_config": [1]}, r"per_layer_config in .* must be a mapping; got \[1\]"),
    ({"per_layer_config": {"0": "x"}}, r"per_layer_config\['0'\] in .* must be a mapping; got 'x'"),
    ({"per_layer_config": {"x": {}}}, "per_layer_config in .* has 'x', which is no number"),
    ({"per_layer_config": {"0": {"head_dim": "x"}}}, "head_dim in .* must be a positive whole number; got 'x'"),
    ({"rope_parameters": [1]}, r"rope_parameters in .* must be a mapping; got \[1\]"),
    ({"rope_parameters": {"full_attention": "x"}}, r"rope_parameters\['full_attention'\] in .* must be a mapping"),
    ({"rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": "a"}}},
     "partial_rotary_factor in .* must be from 0 to 1; got 'a'"),
    ({"final_logit_softcapping": "x"}, "final_logit_softcapping in .* must be a positive number; got 'x'"),
    ({"final_logit_softcapping": -3.0}, "final_logit_softcapping in .* must be a positive number; got -3.0"),
])  # fmt: skip
def test_what_is_refused(entries: dict[str, Any], message: str) -> None:
    config = {**hf_model("gemma4_text").config.to_dict(), **entries}
    with pytest.raises(CheckpointError, match=message):
        family_of(config).config(config)
