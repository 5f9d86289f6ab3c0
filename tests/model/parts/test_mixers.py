"""Mixers: made from a config alone, saved and loaded, without a cache, and refused where they cannot be."""

from pathlib import Path

import pytest
import torch
from families_table import HYBRIDS, LENGTH, TOKENS, VOCABULARY, hf_model
from tiny import tiny_config, tiny_tokens

from headscope import HookedTransformer, HookedTransformerKeyValueCache
from headscope.errors import InvalidInputError
from headscope.model.parts.mixers import MIXERS, make_mixer, mixer_tensors

LEFT = torch.arange(LENGTH) >= torch.tensor([[4], [0], [LENGTH - 2]])


@pytest.mark.parametrize("row", HYBRIDS)
def test_generation(row: str) -> None:
    """Whole texts are run for each token: the same tokens as `transformers` with its cache of states."""
    ours, options = HookedTransformer.from_hf(hf_model(row)), {"max_new_tokens": 6, "do_sample": False}
    wanted = hf_model(row).generate(TOKENS, pad_token_id=0, eos_token_id=None, **options)
    assert torch.equal(ours.generate(TOKENS, stop_at_eos=False, verbose=False, **options), wanted)
    embedded = ours.generate(ours.embed(TOKENS), stop_at_eos=False, verbose=False, return_type="tokens", **options)
    assert torch.equal(embedded, wanted[:, LENGTH:])
    past = HookedTransformerKeyValueCache.init_cache(ours.cfg, "cpu", batch_size=3)
    with pytest.raises(InvalidInputError, match="does not hold the states of mixers"):
        ours(TOKENS, past_kv_cache=past)
    assert past.n_past == 0


@pytest.mark.parametrize("row", HYBRIDS)
def test_saved_and_loaded(row: str, tmp_path: Path) -> None:
    ours = HookedTransformer.from_hf(hf_model(row), fold_ln=True)
    assert "fold_ln" in ours.weight_processing
    again = HookedTransformer.from_pretrained(ours.save_pretrained(tmp_path / "model"))
    assert again.cfg.layer_parts == ours.cfg.layer_parts and again.cfg.mixer == ours.cfg.mixer
    with torch.no_grad():
        assert torch.equal(again(TOKENS), ours(TOKENS))
    assert any(".mixer." in name for name in ours.state_dict())


@pytest.mark.parametrize("row", HYBRIDS)
def test_a_part_that_a_layer_lacks_is_absent(row: str) -> None:
    ours = HookedTransformer.from_hf(hf_model(row))
    points = {"attn": "attn.hook_z", "mixer": "hook_mixer_out", "mlp": "hook_mlp_out"}
    for layer, block in enumerate(ours.blocks):
        for part, point in points.items():
            there = part in ours.cfg.parts_of(layer)
            assert hasattr(block, part) is there and (f"blocks.{layer}.{point}" in ours.hook_dict) is there
    first = HookedTransformer.from_hf(hf_model(row), first_n_layers=1)
    with torch.no_grad():
        torch.testing.assert_close(first(TOKENS, stop_at_layer=1), ours(TOKENS, stop_at_layer=1), rtol=0, atol=0)


@pytest.mark.parametrize("row", HYBRIDS)
def test_hooks_and_gradients(row: str) -> None:
    """What is added to the stream can be replaced, and later states depend on earlier tokens alone."""
    ours = HookedTransformer.from_hf(hf_model(row), dtype="float64")
    layer = ours.cfg.layers_with("mixer")[0]
    name = f"blocks.{layer}.hook_mixer_out"
    with torch.no_grad():
        clean, cache = ours.run_with_cache(TOKENS)
        none = ours.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda value, hook: torch.zeros_like(value))])
        assert float((none - clean).abs().max()) > 1e-3
        later = TOKENS.clone()
        later[:, 6:] = (later[:, 6:] + 1) % VOCABULARY
        torch.testing.assert_close(ours(later)[:, :6], clean[:, :6], rtol=0, atol=1e-6)
        assert float((ours(later)[:, 6:] - clean[:, 6:]).abs().max()) > 1e-3
        assert torch.equal(cache["mixer_out", layer], cache[name])
    gradients: list[torch.Tensor] = []
    with ours.hooks(bwd_hooks=[(name, lambda value, hook: gradients.append(value))]):
        ours(TOKENS, return_type="loss").backward()
    assert float(gradients[0].abs().max()) > 0


@pytest.mark.parametrize("model_type", MIXERS)
def test_a_seed_draws_all_weights(model_type: str) -> None:
    """Also those that the modules of `transformers` leave unset or draw from the global generator."""
    row = next(row for row in HYBRIDS if HookedTransformer.from_hf(hf_model(row)).cfg.mixer["model_type"] == model_type)
    fields = HookedTransformer.from_hf(hf_model(row)).cfg.to_dict() | {"init_weights": True, "seed": 3}
    before = torch.random.get_rng_state()
    first, second = HookedTransformer(fields), HookedTransformer(fields)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    with torch.no_grad():
        assert bool(first(TOKENS).isfinite().all())
    assert set(mixer_tensors(first.cfg)) == set(make_mixer(first.cfg).state_dict())


def test_padding_that_would_get_into_a_state_is_refused() -> None:
    ours = HookedTransformer.from_hf(hf_model("recurrent_gemma"))
    with pytest.raises(InvalidInputError, match="pad on the right"):
        ours(TOKENS, attention_mask=LEFT)
    assert ours(TOKENS, attention_mask=LEFT.flip(-1)).shape == (3, LENGTH, VOCABULARY)


def test_configs_that_are_refused() -> None:
    parts = {"layer_parts": ["mixer+mlp", "attn+mlp"], "normalization_type": "RMS"}
    with pytest.raises(InvalidInputError, match=r"layer_parts must name the parts of each of 2 layers.*'mlp\+attn'"):
        tiny_config(layer_parts=["mlp+attn", "attn"])
    with pytest.raises(InvalidInputError, match="layers with a mixer need cfg.mixer"):
        tiny_config(**parts)
    with pytest.raises(InvalidInputError, match=r"model_type 'rwkv'; mixers are known of .*lfm2"):
        HookedTransformer(tiny_config(**parts, mixer={"model_type": "rwkv"}))
    with pytest.raises(InvalidInputError, match="mixer needs layer_parts"):
        tiny_config(mixer={"model_type": "lfm2"})
    with pytest.raises(InvalidInputError, match="without post-norms"):
        tiny_config(layer_parts=["attn", "mlp"], use_normalization_before_and_after=True)
    with pytest.raises(InvalidInputError, match="attn_only = True, but layer_parts has MLPs in layers"):
        tiny_config(layer_parts=["attn", "mlp"], attn_only=True)
    assert tiny_config(layer_parts=["attn", "attn"], act_fn=None).attn_only


def test_layers_of_one_part_each_without_mixers() -> None:
    """What is between attention and MLP is the stream itself then; with LayerNorm everything is processed."""
    model = HookedTransformer(tiny_config(layer_parts=["mlp", "attn", "mlp"], n_layers=3))
    tokens = tiny_tokens()
    assert not model.cfg.has_resid_mid and not hasattr(model.blocks[0], "ln1") and not hasattr(model.blocks[1], "ln2")
    with torch.no_grad():
        before, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", -1])
        model.process_weights_(fold_ln=True, center_writing_weights=True)
        torch.testing.assert_close(model(tokens).log_softmax(-1), before.log_softmax(-1), rtol=0, atol=1e-9)
    assert model.all_head_labels() == [f"L1H{head}" for head in range(3)]
    torch.testing.assert_close(
        model.accumulated_bias(3),
        sum([block.attn.b_O if hasattr(block, "attn") else block.mlp.b_out for block in model.blocks], torch.zeros(10)),
    )
