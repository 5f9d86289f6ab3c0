"""Parts of a model wrapped, taken out, shared or added to by other packages, which then run it as it was."""

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference
from small_models import STORY, save_checkpoint, small_model
from tiny import tiny_config, tiny_model, tiny_tokens
from torch import Tensor, nn

from headscope import HookedTransformer, HookPoint
from headscope.errors import InvalidInputError

TOKENS = tiny_tokens()


class Plain(nn.Module):
    """A wrapper that shows nothing of what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.hook_out = HookPoint()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook_out(self.inner(*args, **kwargs))


@pytest.mark.parametrize("part", ["embed", "pos_embed", "ln_final", "unembed", "blocks.0", "blocks.1.attn",
                                  "blocks.1.mlp", "blocks.1.ln1"])  # fmt: skip
def test_any_part_may_be_wrapped(part: str) -> None:
    model = tiny_model()
    clean = model(TOKENS)
    owner, _, name = part.rpartition(".")
    setattr(model.get_submodule(owner), name, Plain(model.get_submodule(part)))
    model.setup()
    logits, cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, clean)
    assert f"{part}.hook_out" in cache
    greedy = {"do_sample": False, "stop_at_eos": False, "verbose": False}
    assert torch.equal(model.generate(TOKENS, 2, **greedy), tiny_model().generate(TOKENS, 2, **greedy))


def test_a_block_may_be_taken_out() -> None:
    model = tiny_model(n_layers=3)
    residual = model.run_with_cache(TOKENS)[1]["resid_post", 1]
    del model.blocks[2]
    torch.testing.assert_close(model(TOKENS), model.to_logits(residual))


def test_every_attention_has_a_type_and_a_mask_that_can_be_shared() -> None:
    model = tiny_model()
    clean = model(TOKENS)
    masks = {block.attn.attn_type: block.attn.mask for block in model.blocks}
    assert list(masks) == ["global"]
    for block in model.blocks:
        block.attn.mask = masks["global"]
    assert torch.equal(model(TOKENS), clean)
    model.blocks[0].attn.mask = torch.eye(12).bool()
    assert "blocks.0.attn._mask" not in model.state_dict()
    assert model.to("meta").blocks[0].attn.mask.is_meta


def test_who_watches_the_end_of_a_generation_sees_the_whole_prompt() -> None:
    model = small_model()
    model.unembed = Plain(model.unembed)
    model.setup()
    shapes: dict[str, list[int]] = {"ln_final.hook_scale": [], "unembed.hook_out": []}
    for name, lengths in shapes.items():
        model.add_hook(name, lambda value, hook, lengths=lengths: lengths.append(value.shape[1]))
    model.generate(model.to_tokens(STORY)[:, :9], max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    assert shapes == {"ln_final.hook_scale": [9, 1, 1], "unembed.hook_out": [9, 1, 1]}


def test_a_pass_for_its_activations_alone_reaches_the_final_norm() -> None:
    model = tiny_model()
    nothing, cache = model.run_with_cache(TOKENS, return_type=None)
    assert nothing is None and torch.equal(cache["scale"], model.run_with_cache(TOKENS)[1]["scale"])
    assert cache.decompose_resid(apply_ln=True).shape[1:] == (2, 7, 10)
    assert cache.model is model


def test_a_cache_says_that_its_model_is_gone() -> None:
    _, cache = tiny_model().run_with_cache(TOKENS)
    gc.collect()
    with pytest.raises(InvalidInputError, match="gone"):
        _ = cache.model


@pytest.mark.parametrize("positions", ["standard", "shortformer", "none"])
def test_the_way_in_can_be_run_alone(positions: str) -> None:
    model = tiny_model(positional_embedding_type=positions)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    residual, tokens, added, seen = model.input_to_embed(TOKENS, attention_mask=mask)
    assert torch.equal(tokens, TOKENS) and torch.equal(seen, mask.bool())
    again = model(residual, start_at_layer=0, tokens=tokens, shortformer_pos_embed=added, attention_mask=seen)
    torch.testing.assert_close(again, model(TOKENS, attention_mask=mask))


def test_a_state_dict_with_the_fields_buffers_loads() -> None:
    model = tiny_model()
    state = dict(model.state_dict())
    for layer in range(2):
        state[f"blocks.{layer}.attn.mask"] = torch.ones(12, 12).tril().bool()
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    for load in ("load_state_dict", "load_and_process_state_dict"):
        fresh = HookedTransformer(tiny_config())
        getattr(fresh, load)(state)
        torch.testing.assert_close(fresh(TOKENS).log_softmax(-1), model(TOKENS).log_softmax(-1))
    assert "blocks.0.attn.mask" in state


class Probed(HookedTransformer):
    """Has a part of its own, which no checkpoint knows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.probe = nn.Linear(self.cfg.d_model, 2)
        self.register_buffer("mean", torch.zeros(self.cfg.d_model))


def test_a_part_of_a_subclass_s_own_stays_as_it_was_made(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = Probed.from_pretrained(save_checkpoint(tmp_path))
    assert model.probe.weight.shape == (2, 24) and bool(model.probe.weight.any())
    model.process_weights_()


class HalfBuilt(HookedTransformer):
    def __del__(self) -> None:
        self.reset_hooks(including_permanent=True)


def test_a_model_refused_at_its_making_is_let_go_quietly() -> None:
    with pytest.raises(InvalidInputError):
        HalfBuilt(tiny_config(d_vocab=-1))
    gc.collect()


def test_the_padding_side_set_on_the_tokenizer_counts() -> None:
    model = small_model()
    texts = ["When Mary", STORY[:40]]
    alone = model(texts[0])[0, -1]
    model.tokenizer.padding_side = "left"
    try:
        tokens = model.to_tokens(texts)
        assert torch.equal(tokens, model.to_tokens(texts, padding_side="left"))
        torch.testing.assert_close(model(tokens)[0, -1], alone)
        torch.testing.assert_close(model(texts)[0, -1], alone)
        assert int(model.to_tokens(texts, padding_side="right")[0, -1]) == model.tokenizer.eos_token_id
    finally:
        model.tokenizer.padding_side = "right"


def test_a_loaded_tokenizer_can_pad(tmp_path: Path) -> None:
    model = HookedTransformer.from_pretrained(save_checkpoint(tmp_path))
    batch = model.tokenizer(["When Mary", STORY[:40]], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape


def test_values_of_a_reference_with_a_mask_of_ones_own() -> None:
    model = tiny_model()
    own = torch.ones(12, 12).tril() - torch.diag(torch.ones(11), -1)
    for block in model.blocks:
        block.attn.mask = own

    def edit(name: str, value: Tensor) -> Tensor:
        return value.masked_fill(own[:7, :7] == 0, -torch.inf) if name.endswith("attn_scores") else value

    wanted = Reference(model.state_dict(), model.cfg, edit=edit).run(TOKENS).logits
    torch.testing.assert_close(model(TOKENS), wanted)


def test_a_cache_of_wrapped_parts_says_what_it_cannot_show() -> None:
    model = tiny_model()
    model.blocks[1].mlp, model.unembed = Plain(model.blocks[1].mlp), Plain(model.unembed)
    model.setup()
    _, cache = model.run_with_cache(TOKENS)
    with pytest.raises(InvalidInputError, match="blocks.1.mlp was replaced by a module without W_out"):
        cache.stack_neuron_results()
    with pytest.raises(InvalidInputError, match="without W_U"):
        cache.logit_attrs(cache.decompose_resid(), 3)
    assert cache.stack_neuron_results(1).shape == (14, 2, 7, 10)


def test_a_cache_goes_through_pickle_without_its_model() -> None:
    model = tiny_model()
    _, cache = model.run_with_cache(TOKENS)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again.stack_head_results(apply_ln=True), cache.stack_head_results(apply_ln=True))
    with pytest.raises(InvalidInputError, match="gone"):
        _ = again.model
    assert copy.deepcopy(cache)["z", 0].shape == cache["z", 0].shape
