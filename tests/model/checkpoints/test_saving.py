"""Our own layout: `save_pretrained` and back to the bit, and folders written by hand, read whole or refused by name."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import randomize, tiny_model, tiny_tokenizer, tiny_tokens

from headscope import HookedTransformer
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints import exporting
from headscope.model.weights import processing
from headscope.model.weights.processing import WeightProcessing

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"attention_dir": "bidirectional"},
    "fewer outputs": {"d_vocab_out": 5},
    "one output": {"d_vocab_out": 1},
    "as many tokens as the stream is wide": {"d_vocab": 10, "n_ctx": 10},
    "the same, with as wide a head": {"d_vocab": 10, "n_ctx": 10, "d_head": 10},
    "grouped keys": {"n_heads": 4, "n_key_value_heads": 2},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 2, "rotary_base": 500.0},
    "rotary in a layer, odd norms of queries": {
        "positional_embedding_type": "rotary",
        "rotary_layers": [True, False],
        "use_qk_norm": True,
        "qk_norm_type": "LN",
        "qk_norm_per_head": True,
        "qk_norm_after_rotation": True,
        "attn_temperature_slope": 0.3,
        "attn_temperature_length": 3,
        "dynamic_NTK_factor": 2.0,
        "NTK_original_ctx_len": 4,
    },
    "alibi, own scale": {"positional_embedding_type": "alibi", "attn_scale": 3.0, "eps": 1e-3},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "gated RMS": {"gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS"},
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
    "solu": {"act_fn": "solu_ln", "final_rms": True},
    "solu without norms": {"act_fn": "solu_ln", "normalization_type": None},
    "experts": {"num_experts": 3, "experts_per_token": 2, "gated_mlp": True},
    "all norms": {"use_normalization_before_and_after": True, "use_qk_norm": True, "post_embedding_ln": True},
    "LayerNorms on queries and keys": {"use_qk_norm": True, "qk_norm_type": "LN"},
    "xielu": {"act_fn": "xielu"},
    "post-norms only": {"use_normalization_after_only": True, "normalization_type": "RMS"},
    "windows": {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global"]},
    "chunks": {
        "use_local_attn": True,
        "window_size": 3,
        "attn_types": ["local", "global"],
        "attn_in_chunks": True,
        "positional_embedding_type": "rotary",
        "attn_temperature_slope": 0.3,
        "attn_temperature_length": 3,
        "attn_temperature_start": 1,
        "attn_temperature_layers": [False, True],
        "use_qk_norm": True,
        "qk_norm_layers": [True, False],
    },
    "caps": {"output_logits_soft_cap": 5.0, "attn_scores_soft_cap": 4.0, "tie_word_embeddings": True},
    "bfloat16": {"dtype": torch.bfloat16},
}
# Of this run rather than of the model.
FREE = {"init_weights"}


def logits(model: HookedTransformer) -> torch.Tensor:
    return model(tiny_tokens(d_vocab=min(model.cfg.d_vocab, 23)))


def assert_same(found: HookedTransformer, wanted: HookedTransformer) -> None:
    theirs, ours = found.state_dict(), wanted.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor), name
    for field in dataclasses.fields(wanted.cfg):
        if field.name not in FREE:
            assert getattr(found.cfg, field.name) == getattr(wanted.cfg, field.name), field.name
    assert found.weight_processing == wanted.weight_processing
    assert found.n_params_checkpoint == wanted.n_params_checkpoint
    assert torch.equal(logits(found), logits(wanted))


def edited(folder: Path, **entries: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder


def by_hand(folder: Path, model: HookedTransformer, **entries: Any) -> Path:
    """What a user of TransformerLens would write."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**model.cfg.to_dict(), **entries}, default=str))
    return folder


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_comes_back_to_the_bit(kind: str, processed: bool, tmp_path: Path) -> None:
    model = tiny_model(**MODELS[kind])
    if processed:
        model.process_weights_()
        assert "fold_value_biases" in model.weight_processing
    folder = model.save_pretrained(tmp_path / "deep" / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]
    for load in (HookedTransformer.from_pretrained, HookedTransformer.from_pretrained_no_processing):
        found = load(folder, device="cpu")
        assert_same(found, model)
        assert found.tokenizer is None


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "bfloat16"])
def test_a_folder_written_by_hand_is_read_with_every_field(kind: str, tmp_path: Path) -> None:
    model = tiny_model(**MODELS[kind])
    folder = by_hand(tmp_path / "model", model)
    found = HookedTransformer.from_pretrained_no_processing(folder, dtype=torch.float64)
    assert torch.equal(logits(found), logits(model))
    free = {*FREE, "model_name", "seed", "original_architecture"} | ({"act_fn"} if model.cfg.attn_only else set())
    for name, value in model.cfg.to_dict().items():
        assert name in free or getattr(found.cfg, name) == value, name
    processed = HookedTransformer.from_pretrained(folder, dtype=torch.float64)
    torch.testing.assert_close(logits(processed).log_softmax(-1), logits(model).log_softmax(-1))


def test_processing_is_done_once_and_only_when_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    raw = model.save_pretrained(tmp_path / "raw")
    folded = HookedTransformer.from_pretrained(raw, fold_ln=True)
    assert folded.weight_processing == ("fold_ln",) and folded.cfg.normalization_type == "LNPre"
    torch.testing.assert_close(logits(folded), logits(model))
    again = HookedTransformer.from_pretrained(folded.save_pretrained(tmp_path / "folded"), fold_ln=True)
    assert_same(HookedTransformer.from_pretrained(tmp_path / "folded"), folded)
    assert_same(again, folded)
    more = HookedTransformer.from_pretrained(tmp_path / "folded", fold_ln=True, center_unembed=True)
    assert more.weight_processing == ("fold_ln", "center_unembed")
    assert HookedTransformer.from_pretrained(raw, dtype="float32").W_E.dtype == torch.float32


def test_no_rewrite_is_run_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second factoring by SVD would change bits, and a second folding of norms would warn."""
    model = tiny_model()
    every = dict.fromkeys(WeightProcessing.names(), True)
    model.process_weights_(**every)
    found = HookedTransformer.from_pretrained(model.save_pretrained(tmp_path / "a"), **every)
    assert_same(found, model)
    assert caplog.text == "" and set(found.weight_processing) == set(every)


def test_the_tokenizer_and_text_options_are_kept(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(adds_bos=True, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    model = tiny_model(tokenizer, d_vocab=340, default_prepend_bos=False)
    model.default_padding_side = "left"
    found = HookedTransformer.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    texts = ["When Mary", "and John went to"]
    assert torch.equal(found.to_tokens(texts), model.to_tokens(texts))
    assert torch.equal(found(texts), model(texts)) and found.default_padding_side == "left"
    assert found.cfg.default_prepend_bos is False
    assert HookedTransformer.from_pretrained(tmp_path / "saved", default_prepend_bos=True).cfg.default_prepend_bos
    assert found.tokenizer.pad_token == "<pad>" and found.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_without_a_tokenizer_none_is_looked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    model.cfg.tokenizer_name = "no/such-tokenizer"
    assert HookedTransformer.from_pretrained(model.save_pretrained(tmp_path / "saved")).tokenizer is None
    assert "such-tokenizer" not in caplog.text


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"n_memory_slots": 3}, r"are no fields .* n_memory_slots = 3\. .* can be removed"),
        ({"load_in_4bit": True}, "load_in_4bit = True is not supported"),
        ({"attention_dir": "sideways"}, "attention_dir must be one of"),
        ({"attn_only": "false"}, "attn_only = 'false' in config.json is of the wrong type"),
        ({"eps": True}, "eps = True"),
        ({"n_layers": 2.0}, "n_layers in config.json must be a positive whole number"),
        ({"neuron_temp": 2.0}, "neuron_temp = 2.0"),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_entries_that_cannot_be_honored_are_refused(
    entries: dict[str, Any], message: str, saved: bool, tmp_path: Path
) -> None:
    model = tiny_model()
    folder = model.save_pretrained(tmp_path / "a") if saved else by_hand(tmp_path / "a", model)
    with pytest.raises(CheckpointError, match=message):
        HookedTransformer.from_pretrained(edited(folder, **entries))


def test_notes_on_training_change_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    notes = {"lr_hidden": 2e-3, "betas": [0.9, 0.99], "wandb_project": "x", "dataset_name": "c4", "neuron_temp": 1.0}
    folder = by_hand(tmp_path / "a", model, **notes, seed=-1, n_devices=8, device="cuda:7", dtype="bf16")
    found = HookedTransformer.from_pretrained_no_processing(folder, dtype=torch.float64, device="cpu")
    assert torch.equal(logits(found), logits(model)) and found.cfg.n_devices == 1


@pytest.mark.parametrize("entries", [{"weight_processing": ["fold"]}, {"default_padding_side": "up"}])
def test_what_saving_cannot_have_written(entries: dict[str, Any], tmp_path: Path) -> None:
    folder = edited(tiny_model().save_pretrained(tmp_path / "a"), **entries)
    with pytest.raises(CheckpointError, match=next(iter(entries))):
        HookedTransformer.from_pretrained(folder)


def test_a_saved_folder_lacks_no_bias(tmp_path: Path) -> None:
    """A bias that is gone is damage there, and not one that was never trained."""
    folder = tiny_model().save_pretrained(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    del tensors["blocks.1.attn.b_Q"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor 'blocks\.1\.attn\.b_Q'"):
        HookedTransformer.from_pretrained(folder)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model, folder = tiny_model(), tmp_path / "a"
    folder.mkdir()
    assert_same(HookedTransformer.from_pretrained(model.save_pretrained(folder)), model)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InvalidInputError, match="not an empty folder"):
        tiny_model(attn_only=True).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(InvalidInputError, match="not an empty folder"):
        model.save_pretrained(folder / "config.json")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        tiny_model().save_pretrained(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_what_was_added_to_a_model_is_not_lost_silently(tmp_path: Path) -> None:
    model = tiny_model()
    model.blocks[0].mlp.extra = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.extra"):
        model.save_pretrained(tmp_path / "a")
    del model.blocks[0].mlp.extra
    model.blocks[1].attn.W_Q.data = model.blocks[1].attn.W_Q.data.half()
    with pytest.raises(CheckpointError, match=r"torch\.float16, torch\.float64"):
        model.save_pretrained(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_subclass_saves_and_loads(tmp_path: Path) -> None:
    class Own(HookedTransformer):
        pass

    model = Own(tiny_model().cfg)
    randomize(model)
    found = Own.from_pretrained(model.save_pretrained(tmp_path / "a"))
    assert isinstance(found, Own)
    assert_same(found, model)


def test_one_output_is_not_centered(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing, "_told", set())
    model = tiny_model(d_vocab_out=1)
    wanted = logits(model)
    with caplog.at_level(logging.WARNING, "headscope"):
        model.process_weights_()
    assert "center_unembed is left out" in caplog.text and "one output" in caplog.text
    assert "center_unembed" not in model.weight_processing
    torch.testing.assert_close(logits(model), wanted)
    assert bool(wanted.any())


def test_a_loss_needs_a_logit_for_each_token() -> None:
    model = tiny_model(d_vocab_out=5)
    tokens = torch.tensor([[22, 1, 4, 0]])  # the first is no target
    reference = -model(tokens)[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None]).mean()
    torch.testing.assert_close(model(tokens, return_type="loss"), reference)
    for return_type in ("loss", "both"):
        with pytest.raises(InvalidInputError, match="no logit for token 5"):
            model(torch.tensor([[0, 5, 1]]), return_type=return_type)
    with pytest.raises(InvalidInputError, match="d_vocab_out is 5"):
        model.loss_fn(model(tokens), torch.tensor([[0, 1, 2, 9]]))
    assert model(torch.tensor([[22]]), return_type="loss", loss_per_token=True).shape == (1, 0)


def test_mapped_weights_are_those_of_the_file(tmp_path: Path) -> None:
    model = tiny_model(tokenizer=tiny_tokenizer())
    folder = model.save_pretrained(tmp_path / "model")
    before = (folder / "model.safetensors").read_bytes()
    mapped = HookedTransformer.from_pretrained(folder, mapped=True, device="cpu")
    tokens = tiny_tokens()
    assert torch.equal(mapped(tokens), model(tokens))
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(folder / "model.safetensors") in maps.read_text()
    with torch.no_grad():
        mapped.W_U.zero_()  # pages that are written to are this process's own
    assert (folder / "model.safetensors").read_bytes() == before
    folded = {"fold_ln": True, "center_unembed": True, "mapped": True}
    for options in (folded, {**folded, "mapped": False}):
        processed = HookedTransformer.from_pretrained(folder, device="cpu", **options)
        torch.testing.assert_close(processed(tokens).log_softmax(-1), model(tokens).log_softmax(-1))
    narrow = HookedTransformer.from_pretrained(folder, mapped=True, device="cpu", dtype="float32")
    torch.testing.assert_close(narrow(tokens).double(), model(tokens), rtol=1e-4, atol=1e-4)
