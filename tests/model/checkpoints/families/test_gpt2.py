"""GPT-2 checkpoints: the logits of `transformers`' own model, on random tiny configs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import randomize, tiny_config, tiny_tokens
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from headscope import HookedTransformer
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.families import FAMILIES, family_of
from headscope.model.checkpoints.families.base import Tensors
from headscope.model.checkpoints.families.gpt2 import GPT2
from headscope.model.config import HookedTransformerConfig

CONFIGS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "by layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "unscaled": {"scale_attn_weights": False},
    "unscaled by layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "n_inner": {"n_inner": 20},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "silu": {"activation_function": "silu"},
    "eps": {"layer_norm_epsilon": 0.1},
    "one head": {"n_head": 1, "n_layer": 1},
}
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases",
              "refactor_factored_attn_matrices")  # fmt: skip
RIGHT = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]])


def hf_model(**fields: Any) -> GPT2LMHeadModel:
    """A GPT-2 of `transformers` whose every weight and bias is random."""
    defaults = {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_positions": 10, "vocab_size": 29}
    model = GPT2LMHeadModel(GPT2Config(**{**defaults, **fields})).eval()
    randomize(model, spread=0.3)
    return model


def hf_logits(model: GPT2LMHeadModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(tokens, attention_mask=mask, position_ids=positions).logits


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_equal_those_of_transformers(kind: str) -> None:
    theirs = hf_model(**CONFIGS[kind])
    tokens = tiny_tokens(3, d_vocab=29)
    wanted = hf_logits(theirs, tokens)
    raw = HookedTransformer.from_hf(theirs)
    assert raw.weight_processing == ()
    torch.testing.assert_close(raw(tokens), wanted, rtol=0, atol=1e-5)
    processed = HookedTransformer.from_pretrained("anything", hf_model=theirs)
    assert processed.weight_processing == PROCESSING[:4]
    assert processed.cfg.normalization_type == "LNPre"
    torch.testing.assert_close(processed(tokens).log_softmax(-1), wanted.log_softmax(-1), rtol=0, atol=1e-4)
    assert float(wanted.std()) > 0.3


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["tied", "by layer"])
def test_padded_logits_equal_those_of_transformers(side: str, kind: str) -> None:
    theirs = hf_model(**CONFIGS[kind])
    tokens = tiny_tokens(3, d_vocab=29)
    mask = RIGHT if side == "right" else RIGHT.flip(-1)
    wanted = hf_logits(theirs, tokens, mask)
    found = HookedTransformer.from_hf(theirs)(tokens, attention_mask=mask)
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("flags", [*[(name,) for name in PROCESSING], PROCESSING, ()], ids="+".join)
def test_processing_keeps_log_probabilities(tied: bool, flags: tuple[str, ...]) -> None:
    theirs = hf_model(tie_word_embeddings=tied)
    tokens = tiny_tokens(3, d_vocab=29)
    wanted = hf_logits(theirs, tokens).log_softmax(-1)
    model = HookedTransformer.from_hf(theirs, **dict.fromkeys(flags, True))
    assert model.weight_processing == flags
    torch.testing.assert_close(model(tokens).log_softmax(-1), wanted, rtol=0, atol=1e-4)


def test_the_loss_equals_that_of_transformers() -> None:
    theirs = hf_model()
    tokens = tiny_tokens(3, d_vocab=29)
    with torch.no_grad():
        wanted = theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(HookedTransformer.from_hf(theirs)(tokens, return_type="loss"), wanted)


def test_the_hugging_face_model_is_not_shared_or_changed() -> None:
    theirs = hf_model()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    for flags in ({}, {"fold_ln": True, "center_writing_weights": True}):
        ours = HookedTransformer.from_hf(theirs, **flags)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(1.0)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_config_is_read() -> None:
    cfg = HookedTransformer.from_hf(hf_model(n_inner=20, activation_function="relu", layer_norm_epsilon=0.1)).cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_head, cfg.n_ctx, cfg.d_vocab) == (2, 12, 3, 4, 10, 29)
    assert (cfg.d_mlp, cfg.act_fn, cfg.eps, cfg.normalization_type) == (20, "relu", 0.1, "LN")
    assert cfg.original_architecture in (None, "GPT2LMHeadModel") and cfg.tie_word_embeddings


@pytest.mark.parametrize("change, message", [
    ({"activation_function": "xielu"}, "xielu"),
    ({"add_cross_attention": True}, "cross-attention"),
])  # fmt: skip
def test_what_is_not_supported_is_said(change: dict[str, Any], message: str) -> None:
    theirs = hf_model()
    for name, value in change.items():
        setattr(theirs.config, name, value)
    with pytest.raises((CheckpointError, InvalidInputError), match=message):
        HookedTransformer.from_hf(theirs)


def converted(tensors: dict[str, Tensor], **fields: Any) -> dict[str, Tensor]:
    cfg = HookedTransformerConfig(**GPT2.config({**hf_model().config.to_dict(), **fields}))
    return dict(GPT2.convert(tensors, cfg, {**hf_model().config.to_dict(), **fields}))


def test_a_missing_and_an_unused_tensor_are_named() -> None:
    tensors = dict(hf_model().state_dict())
    without = {name: tensor for name, tensor in tensors.items() if "h.1.mlp.c_fc.weight" not in name}
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight"):
        converted(without)
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        converted({**tensors, "classifier.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        converted({name: t for name, t in tensors.items() if name != "lm_head.weight"}, tie_word_embeddings=False)


def test_names_with_and_without_prefix_and_old_mask_buffers_are_read() -> None:
    tensors = dict(hf_model().state_dict())
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items() if name != "lm_head.weight"}
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 10, 10), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    wanted, found = converted(tensors), converted({**bare, **buffers})
    assert set(wanted) == set(found)
    for name in wanted:
        assert torch.equal(wanted[name], found[name])


def test_families_are_found_by_model_type() -> None:
    assert family_of({"model_type": "gpt2"}) is FAMILIES["gpt2"] is GPT2
    for config in ({"model_type": "bert"}, {}):
        with pytest.raises(CheckpointError, match="Supported: .*gpt2"):
            family_of(config)


def test_tensors_know_which_of_them_nobody_read() -> None:
    given = {"a.x": torch.ones(1), "y": torch.ones(2), "mask": torch.ones(3)}
    tensors = Tensors(given, lambda name: name.removeprefix("a."), ignore=["mask"])
    assert "x" in tensors and "y" in tensors and "mask" not in tensors and "a.x" not in tensors
    assert tensors["x"].shape == (1,)
    with pytest.raises(CheckpointError, match="does not use: y"):
        tensors.check_all_read()
    assert tensors["y"].shape == (2,)
    tensors.check_all_read()


@pytest.mark.parametrize("kind", CONFIGS)
def test_there_and_back_again(kind: str, tmp_path: Path) -> None:
    hf = hf_model(**CONFIGS[kind])
    tied = kind != "untied"
    back = HookedTransformer.from_hf(hf).to_hf()
    assert type(back) is GPT2LMHeadModel and not back.training
    before, after = hf.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
        assert after[name].data_ptr() != tensor.data_ptr()
    shared = back.lm_head.weight.data_ptr() == back.transformer.wte.weight.data_ptr()
    assert shared is tied is back.config.tie_word_embeddings
    back.save_pretrained(tmp_path)
    again = HookedTransformer.from_pretrained_no_processing(tmp_path)
    for name, tensor in HookedTransformer.from_hf(hf).state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_what_gpt2_has_no_place_for_is_not_converted() -> None:
    folded = HookedTransformer.from_hf(hf_model(), fold_ln=True)
    with pytest.raises(CheckpointError, match="b_U, which is not zero.*from_pretrained_no_processing"):
        folded.to_hf()
    toy = HookedTransformer(tiny_config(attn_only=True))
    with pytest.raises(CheckpointError, match="original_architecture = None.*GPT2LMHeadModel"):
        toy.to_hf()
    toy.cfg.original_architecture = "GPT2LMHeadModel"
    with pytest.raises(CheckpointError, match=r"n_embd = 10 .* is not a multiple of n_head = 3"):
        toy.to_hf()
