"""Parts of a model on several devices. The meta device, which has shapes and no numbers, stands in for a second one."""

from pathlib import Path

import pytest
import torch
from small_models import save_checkpoint
from tiny import tiny_model, tiny_tokens

from headscope import HookedTransformer, HookedTransformerKeyValueCache
from headscope.errors import InvalidInputError, UnknownNameError
from headscope.model.weights.placement import balanced_device_map, gpus, near

SPLIT = {"": "cpu", "blocks.1": "meta", "ln_final": "meta", "unembed": "meta"}


@pytest.mark.parametrize("positions", ["standard", "shortformer", "rotary", "alibi"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_stream_goes_from_device_to_device(positions: str, padded: bool) -> None:
    model, tokens = tiny_model(positional_embedding_type=positions), tiny_tokens(2, 6)
    mask = torch.ones_like(tokens)
    mask[0, 0] = 1 - padded
    wanted, clean = model.run_with_cache(tokens, attention_mask=mask)
    model.place(SPLIT)
    assert model.cfg.n_devices == 2 and model.cfg.device == "cpu"
    logits, cache = model.run_with_cache(tokens, attention_mask=mask)
    assert logits.device.type == "meta" and logits.shape == wanted.shape
    assert torch.equal(cache["resid_post", 0], clean["resid_post", 0])
    assert cache["z", 1].device.type == "meta" and set(cache) == set(clean)
    assert model(tokens, return_type="loss", attention_mask=mask).device.type == "meta"
    assert model(tokens, return_type=None) is None


def test_a_key_value_cache_follows_its_layers() -> None:
    model, tokens = tiny_model(), tiny_tokens(2, 6)
    model.place(SPLIT)
    past = HookedTransformerKeyValueCache.init_cache(model.cfg, batch_size=2)
    model(tokens[:, :4], past_kv_cache=past)
    logits = model(tokens[:, 4:], past_kv_cache=past)
    assert logits.shape[:2] == (2, 2) and past[0].past_keys.shape[1] == past[1].past_keys.shape[1] == 6
    assert (past[0].past_keys.device.type, past[1].past_keys.device.type) == ("cpu", "meta")


def test_back_on_one_device_nothing_is_carried() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    wanted = model(tokens)
    model.place({"": "cpu"})
    assert model.cfg.n_devices == 1
    assert torch.equal(model(tokens), wanted)


def test_stacked_weights_stand_on_the_first_layers_device() -> None:
    model = tiny_model().place({"": "meta", "blocks.0": "cpu", "blocks.1": "cpu"})
    assert model.W_O.device.type == "cpu" and model.W_E.device.type == "meta"
    assert near(model.embed, None, torch.ones(1))[1].device.type == "meta"
    assert near(torch.nn.Identity(), torch.ones(1))[0].device.type == "cpu"


def test_the_longest_name_counts() -> None:
    model = tiny_model().place({"blocks": "meta", "blocks.0": "cpu", "": "cpu"})
    assert model.blocks[0].attn.W_Q.device.type == "cpu" and model.blocks[1].attn.W_Q.device.type == "meta"


def test_a_balanced_map_splits_by_bytes() -> None:
    model = tiny_model(n_layers=6, d_vocab=7, n_ctx=8)
    found = balanced_device_map(model, ["a", "b", "c"])
    assert [found[f"blocks.{layer}"] for layer in range(6)] == ["a", "a", "b", "b", "c", "c"]
    assert (found["embed"], found["pos_embed"], found["ln_final"], found["unembed"]) == ("a", "a", "c", "c")
    heavy = balanced_device_map(tiny_model(n_layers=6, d_vocab=5000), ["a", "b"])
    assert {heavy[f"blocks.{layer}"] for layer in range(6)} <= {"a", "b"} and heavy["embed"] == "a"
    assert set(balanced_device_map(model, ["cpu"]).values()) == {"cpu"}


def test_loading_onto_several_devices(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path)
    model = HookedTransformer.from_pretrained(directory, device_map={"": "cpu", "unembed": "meta"})
    assert model.W_U.is_meta and not model.W_E.is_meta and model(torch.arange(5)[None]).is_meta
    if not torch.cuda.is_available():
        assert gpus() == ["cpu"]
        model = HookedTransformer.from_pretrained(directory, device_map="auto")
        assert model.cfg.n_devices == 1 and model.cfg.device == "cpu"


def test_maps_that_do_not_fit_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(UnknownNameError, match="part of the model 'block.0'"):
        model.place({"": "cpu", "block.0": "cpu"})
    with pytest.raises(InvalidInputError, match="no device for 'unembed'"):
        model.place({"embed": "cpu", "pos_embed": "cpu", "blocks": "cpu", "ln_final": "cpu"})
    assert model.cfg.n_devices == 1
