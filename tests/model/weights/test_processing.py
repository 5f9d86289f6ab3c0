"""Weight processing: log-probabilities stay, what was promised of the weights holds, inputs are untouched."""

import itertools
import logging
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.weights import processing
from headscope.model.weights.processing import WeightProcessing, process_weights

NAMES = WeightProcessing.names()
SHAPES: dict[str, dict[str, Any]] = {
    "LN": {},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS": {"normalization_type": "RMS"},
    "no norm": {"normalization_type": None},
    "attn_only": {"attn_only": True},
    "parallel": {"parallel_attn_mlp": True},
    "no positions": {"positional_embedding_type": "none"},
    "soft cap": {"output_logits_soft_cap": 2.0},
    "wide heads": {"d_head": 13, "n_heads": 2},
    "wider heads": {"d_head": 11, "n_heads": 1},
    "more logits than tokens": {"d_vocab_out": 31},
}
TOKENS = tiny_tokens(3)


pytestmark = pytest.mark.usefixtures("no_gradients")


def processed(model: HookedTransformer, **flags: bool) -> HookedTransformer:
    cfg = tiny_config(**{**model.cfg.to_dict(), "init_weights": False})
    other = HookedTransformer(cfg)
    other.load_and_process_state_dict(model.state_dict(), **{**dict.fromkeys(NAMES, False), **flags})
    return other


def log_probs(model: HookedTransformer) -> Tensor:
    return model(TOKENS).log_softmax(-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flags", [*[(name,) for name in NAMES], tuple(NAMES), tuple(NAMES[:4])], ids="+".join)
def test_log_probabilities_stay(shape: str, flags: tuple[str, ...]) -> None:
    model = tiny_model(**SHAPES[shape])
    other = processed(model, **dict.fromkeys(flags, True))
    torch.testing.assert_close(log_probs(other), log_probs(model), rtol=0, atol=1e-9)
    assert set(other.weight_processing) <= set(flags)


def test_every_pair_of_flags_keeps_log_probabilities_in_float32() -> None:
    model = tiny_model(dtype=torch.float32)
    wanted = log_probs(model)
    for pair in itertools.combinations(NAMES, 2):
        other = processed(model, **dict.fromkeys(pair, True))
        assert other.weight_processing == pair
        torch.testing.assert_close(log_probs(other), wanted, rtol=0, atol=1e-4)


def test_processing_can_be_done_one_by_one() -> None:
    model = tiny_model()
    wanted = log_probs(model)
    for name in NAMES:
        model.load_and_process_state_dict(model.state_dict(), **{**dict.fromkeys(NAMES, False), name: True})
        torch.testing.assert_close(log_probs(model), wanted, rtol=0, atol=1e-9)
    assert model.weight_processing == tuple(NAMES)


@pytest.mark.parametrize("shape, left_out", [
    ("LNPre", {"fold_ln"}),
    ("RMS", {"center_writing_weights"}),
    ("no norm", {"fold_ln", "center_writing_weights"}),
    ("soft cap", {"center_unembed"}),
])  # fmt: skip
def test_what_does_not_apply_is_said_and_left_out(
    shape: str, left_out: set[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "_told", set())
    model = tiny_model(**SHAPES[shape])
    with caplog.at_level(logging.WARNING, "headscope"):
        other = processed(model, **dict.fromkeys(NAMES, True))
        processed(model, **dict.fromkeys(NAMES, True))
    assert set(NAMES) - set(other.weight_processing) == left_out
    # In one line, and once for a model.
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(left_out) and not any("\n" in line for line in said)
    for name in left_out:
        assert f"{name} is left out: " in said[0] and f"{name}=False" in said[0]


def test_another_model_is_told_of_too_and_who_asks_for_nothing_hears_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "_told", set())
    with caplog.at_level(logging.WARNING, "headscope"):
        for name in ("one", "one", "other"):
            processed(tiny_model(**SHAPES["RMS"], model_name=name), **dict.fromkeys(NAMES, True))
        assert [record.getMessage().split(":")[0] for record in caplog.records] == ["one", "other"]
        caplog.clear()
        asked = {name: name != "center_writing_weights" for name in NAMES}
        processed(tiny_model(**SHAPES["RMS"], model_name="third"), **asked)
        assert not caplog.records


@pytest.mark.parametrize("name", NAMES)
def test_the_functions_are_pure(name: str) -> None:
    model = tiny_model()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    versions = {key: value._version for key, value in state.items()}
    before = dict(state)
    function = {"fold_ln": "fold_layer_norm"}.get(name, name)
    fields = model.cfg.to_dict()
    new = getattr(processing, function)(state, model.cfg)
    assert new is not state and list(state) == list(before)
    for key, value in before.items():
        assert state[key] is value and value._version == versions[key] == 0, key
        assert torch.equal(value, model.state_dict()[key]), key
    assert model.cfg.to_dict() == fields
    process_weights(state, model.cfg, WeightProcessing(**dict.fromkeys(NAMES, True)))
    assert all(value._version == 0 for value in state.values()) and model.cfg.to_dict() == fields


def test_folding_the_norms() -> None:
    model = tiny_model()
    new = processing.fold_layer_norm(model.state_dict(), model.cfg)
    assert not [name for name in new if ".ln" in name or name.startswith("ln")]
    for name in ("blocks.0.attn.W_Q", "blocks.1.mlp.W_in", "unembed.W_U"):
        assert float(new[name].mean(-2).abs().max()) < 1e-12
    block = model.blocks[1]
    torch.testing.assert_close(new["blocks.1.mlp.b_in"], block.mlp.b_in + block.ln2.b @ block.mlp.W_in)
    rms = tiny_model(normalization_type="RMS")
    new = processing.fold_layer_norm(rms.state_dict(), rms.cfg)
    torch.testing.assert_close(new["unembed.W_U"], rms.ln_final.w[:, None] * rms.W_U)
    assert processed(rms, fold_ln=True).cfg.normalization_type == "RMSPre"


def test_centering() -> None:
    model = tiny_model()
    new = processing.center_writing_weights(model.state_dict(), model.cfg)
    for name in ("embed.W_E", "pos_embed.W_pos", "blocks.0.attn.W_O", "blocks.0.attn.b_O", "blocks.1.mlp.W_out",
                 "blocks.1.mlp.b_out"):  # fmt: skip
        assert float(new[name].mean(-1).abs().max()) < 1e-12, name
    new = processing.center_unembed(model.state_dict(), model.cfg)
    assert float(new["unembed.W_U"].mean(-1).abs().max()) < 1e-12 and abs(float(new["unembed.b_U"].mean())) < 1e-12
    with pytest.raises(InvalidInputError, match="RMS"):
        processing.center_writing_weights({}, tiny_config(normalization_type="RMS"))
    with pytest.raises(InvalidInputError, match="soft cap"):
        processing.center_unembed({}, tiny_config(output_logits_soft_cap=3.0))


def test_folding_value_biases() -> None:
    model = tiny_model()
    new = processing.fold_value_biases(model.state_dict(), model.cfg)
    assert bool((new["blocks.0.attn.b_V"] == 0).all())
    attn = model.blocks[0].attn
    torch.testing.assert_close(new["blocks.0.attn.b_O"], attn.b_O + sum(attn.b_V[h] @ attn.W_O[h] for h in range(3)))


def test_refactoring_makes_queries_and_keys_even_and_outputs_orthonormal() -> None:
    model = tiny_model()
    assert all(float(bias.abs().min()) > 0 for bias in (model.b_Q, model.b_K, model.b_V))
    new = processed(model, refactor_factored_attn_matrices=True)
    torch.testing.assert_close(log_probs(new), log_probs(model), rtol=0, atol=1e-9)
    off = ~torch.eye(4).bool()
    rows = {name: torch.cat([getattr(new, f"W_{name}"), getattr(new, f"b_{name}")[:, :, None]], dim=2) for name in "QK"}
    grams = {name: each.mT @ each for name, each in rows.items()}
    for gram in grams.values():
        assert float(gram[..., off].abs().max()) < 1e-10
    norms = [gram.diagonal(dim1=-2, dim2=-1) for gram in grams.values()]
    torch.testing.assert_close(norms[0], norms[1])
    assert bool((norms[0].diff(dim=-1) <= 1e-12).all()), "largest first"
    W_O = new.W_O
    torch.testing.assert_close(W_O @ W_O.transpose(-2, -1), torch.eye(4).double().expand(2, 3, 4, 4).contiguous())
    torch.testing.assert_close(new.OV.AB, model.OV.AB)
    scores = [
        torch.cat([each.W_Q, each.b_Q[:, :, None]], 2) @ torch.cat([each.W_K, each.b_K[:, :, None]], 2).mT
        for each in (new, model)
    ]
    torch.testing.assert_close(*scores)
    assert bool((new.b_V == 0).all())


@pytest.mark.parametrize("broken", ["W_Q zero", "W_K column", "W_V zero", "W_Q twice", "all zero"])
def test_refactoring_heads_without_full_rank_keeps_every_score(broken: str) -> None:
    model = tiny_model()
    attn = model.blocks[0].attn
    if broken == "W_Q zero":
        attn.W_Q[1] = 0
    elif broken == "W_K column":
        attn.W_K[0, :, 2] = 0
    elif broken == "W_V zero":
        attn.W_V[2] = 0
    elif broken == "W_Q twice":
        attn.W_Q[1, :, 0] = attn.W_Q[1, :, 1]
    else:
        for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O, attn.b_Q, attn.b_K):
            weight[0] = 0
    new = processed(model, refactor_factored_attn_matrices=True)
    assert all(bool(parameter.isfinite().all()) for parameter in new.parameters())
    torch.testing.assert_close(log_probs(new), log_probs(model), rtol=0, atol=1e-9)
    scores = [each.run_with_cache(TOKENS)[1]["pattern", 0] for each in (model, new)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-9)


def test_weights_that_do_not_fit_are_named() -> None:
    state = tiny_model().state_dict()
    without = {name: tensor for name, tensor in state.items() if name != "blocks.1.ln2.w"}
    with pytest.raises(CheckpointError, match=r"Missing: blocks\.1\.ln2\.w"):
        tiny_model().load_and_process_state_dict(without)
    with pytest.raises(CheckpointError, match=r"Missing: .*Unused: blocks\.9\.attn\.W_Q"):
        tiny_model().load_and_process_state_dict({**without, "blocks.9.attn.W_Q": torch.ones(1)})
    for name in ("unembed.W_U", "blocks.0.attn.W_Q", "blocks.0.ln1.w", "embed.W_E"):
        wrong = {**state, name: state[name][:-1]}
        with pytest.raises(CheckpointError, match=rf"{name} must have shape \[{state[name].shape[0]}"):
            tiny_model().load_and_process_state_dict(wrong)


def test_a_failed_load_leaves_the_model_as_it_was() -> None:
    model = tiny_model()
    wanted = log_probs(model)
    with pytest.raises(CheckpointError):
        model.load_and_process_state_dict({**model.state_dict(), "extra": torch.ones(1)})
    assert model.cfg.normalization_type == "LN" and model.weight_processing == ()
    assert torch.equal(log_probs(model), wanted)


def test_loading_keeps_the_models_type_and_frozen_parameters() -> None:
    model = tiny_model(dtype=torch.float32)
    model.embed.W_E.requires_grad_(False)
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.load_and_process_state_dict(narrow)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.embed.W_E.requires_grad and model.unembed.W_U.requires_grad
    model(TOKENS)


@pytest.mark.parametrize(("kind", "folded"), [("LN", "LNPre"), ("RMS", "RMSPre")])
@pytest.mark.parametrize("act_fn", ["gelu", "solu_ln"])
def test_a_model_built_as_folded_folds_the_norms_of_weights_that_have_them(kind: str, folded: str, act_fn: str) -> None:
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 8, "d_vocab": 11}
    raw = HookedTransformer(HookedTransformerConfig(**sizes, act_fn=act_fn, normalization_type=kind, seed=1))
    with torch.no_grad():
        for parameter in raw.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.1)
    tokens = torch.arange(6)[None]
    wanted = raw(tokens)
    model = HookedTransformer(HookedTransformerConfig(**sizes, act_fn=act_fn, normalization_type=folded, seed=3))
    weights = raw.state_dict()
    model.load_and_process_state_dict(weights, center_writing_weights=False, center_unembed=False)
    assert model.cfg.normalization_type == folded
    assert not any(".ln1." in name or "ln_final" in name for name in model.state_dict())
    torch.testing.assert_close(model(tokens), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"Unused: blocks\.0\.ln1"):
        model.load_and_process_state_dict(weights, fold_ln=False)
    del weights["blocks.1.ln2.w"]
    with pytest.raises(CheckpointError, match=r"Missing: blocks\.1\.ln2\.w"):
        model.load_and_process_state_dict(weights)
