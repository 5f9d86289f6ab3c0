"""Models made from checkpoints and configs, processed, moved, and fed their training text.

Compared with transformers' GPT-2 and with what each rewrite of weights promises, in float64, within 1e-9.
"""

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference
from small_models import save_checkpoint, small_model, small_tokenizer
from surface import MAKING, same
from tiny import tiny_model, tiny_tokens
from torch import Tensor
from transformers import GPT2LMHeadModel

from headscope import HookedTransformer

TOKENS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(3))
NO_PROCESSING = dict.fromkeys(
    ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices"),
    False,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def hf(checkpoint: Path) -> GPT2LMHeadModel:
    """Every weight random: a fresh GPT-2's biases are zero and hide what is done to them."""
    model = GPT2LMHeadModel.from_pretrained(checkpoint).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(checkpoint)
    return model.eval()


def hf_logits(hf: GPT2LMHeadModel, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return hf(tokens).logits


# Loading


@MAKING.shows("from_pretrained_no_processing")
def test_from_pretrained_no_processing(checkpoint: Path, hf: GPT2LMHeadModel) -> None:
    model = HookedTransformer.from_pretrained_no_processing(str(checkpoint), dtype=torch.float64, device="cpu")
    same(model(TOKENS), hf_logits(hf))
    block = hf.transformer.h[1]
    same(model.W_in[1], block.mlp.c_fc.weight)
    same(model.b_O[1], block.attn.c_proj.bias)
    q, k, v = block.attn.c_attn.weight.reshape(24, 3, 3, 8).unbind(1)
    for name, weight in (("W_Q", q), ("W_K", k), ("W_V", v)):
        same(getattr(model, name)[1], weight.transpose(0, 1))
    assert model.cfg.normalization_type == "LN"


@MAKING.shows("from_pretrained")
def test_from_pretrained(checkpoint: Path, hf: GPT2LMHeadModel) -> None:
    model = HookedTransformer.from_pretrained(str(checkpoint), dtype=torch.float64, device="cpu")
    wanted = hf_logits(hf)
    same(model(TOKENS).log_softmax(-1), wanted.log_softmax(-1))
    same(model(TOKENS), wanted - wanted.mean(-1, keepdim=True))  # a centered unembedding
    assert model.cfg.normalization_type == "LNPre" and not bool(model.b_V.any())
    same(model.W_O.mean(-1), torch.zeros(2, 3, 8, dtype=torch.float64))
    assert model.tokenizer.encode("When Mary") == small_tokenizer().encode("When Mary")
    assert model.cfg.model_name == checkpoint.name

    class Own(HookedTransformer):
        pass

    assert type(Own.from_pretrained(checkpoint)) is Own


OPTIONS: dict[str, Any] = {
    "checkpoint_index": None, "checkpoint_value": None, "checkpoint_label": None, "hf_model": None, "device": "cpu",
    "n_devices": 1, "tokenizer": None, "move_to_device": True, "default_prepend_bos": None,
    "default_padding_side": None, "dtype": "float64", "first_n_layers": None, "n_ctx": None,
    **NO_PROCESSING,
}  # fmt: skip


def test_from_pretrained_takes_the_options_of_old(checkpoint: Path, hf: GPT2LMHeadModel) -> None:
    same(HookedTransformer.from_pretrained(str(checkpoint), **OPTIONS)(TOKENS), hf_logits(hf))
    tokenizer = small_tokenizer()
    changed = {
        "hf_model": hf, "tokenizer": tokenizer, "default_prepend_bos": False, "default_padding_side": "left",
        "first_n_layers": 1, "n_ctx": 20, "device": "meta", "move_to_device": False,
    }  # fmt: skip
    model = HookedTransformer.from_pretrained("gpt2", **{**OPTIONS, **changed})
    assert model.tokenizer is tokenizer and model.default_padding_side == "left" and not model.cfg.default_prepend_bos
    assert (model.cfg.n_layers, model.cfg.n_ctx, model.cfg.device) == (1, 20, "meta")
    stream = hf(TOKENS, output_hidden_states=True).hidden_states[1]
    same(model(TOKENS), hf.lm_head(hf.transformer.ln_f(stream)))


def test_flags_may_be_given_by_position(checkpoint: Path) -> None:
    by_name = HookedTransformer.from_pretrained(
        checkpoint, fold_ln=False, center_writing_weights=True, center_unembed=False, fold_value_biases=False
    )
    by_position = HookedTransformer.from_pretrained(checkpoint, False, True, False, False, fold_value_biases=False)
    assert by_position.weight_processing == by_name.weight_processing == ("center_writing_weights",)
    model = HookedTransformer.from_pretrained_no_processing(checkpoint)
    model.load_and_process_state_dict(model.state_dict(), False, False, True, False)
    assert model.weight_processing == ("center_unembed",)


@pytest.fixture
def plain() -> HookedTransformer:
    return tiny_model()


@pytest.mark.parametrize("rewrite", NO_PROCESSING)
@MAKING.shows("load_and_process_state_dict", "process_weights_")
def test_processing(name: str, rewrite: str, plain: HookedTransformer) -> None:
    """Each rewrite alone: log-probabilities stay, and the weights are what it promises."""
    tokens = tiny_tokens()
    wanted = Reference(plain.state_dict(), plain.cfg).run(tokens).logits.log_softmax(-1)
    if name == "process_weights_":
        model = plain
        model.process_weights_(**{**NO_PROCESSING, rewrite: True})
    else:
        model = HookedTransformer(plain.cfg)
        before = {key: value.clone() for key, value in plain.state_dict().items()}
        model.load_and_process_state_dict(plain.state_dict(), **{**NO_PROCESSING, rewrite: True})
        assert all(torch.equal(plain.state_dict()[key], value) for key, value in before.items())
    same(model(tokens).log_softmax(-1), wanted)
    zero = torch.zeros((), dtype=torch.float64)
    if rewrite == "fold_ln":
        assert model.cfg.normalization_type == "LNPre" and "ln_final.w" not in model.state_dict()
        for weight in (model.W_Q, model.W_K, model.W_V, model.W_in, model.W_U):
            same(weight.mean(-2), zero.expand(weight.mean(-2).shape))
    elif rewrite == "center_writing_weights":
        for weight in (model.W_E, model.W_pos, model.W_O, model.b_O, model.W_out, model.b_out):
            same(weight.mean(-1), zero.expand(weight.shape[:-1]))
    elif rewrite == "center_unembed":
        same(model.W_U.mean(-1), zero.expand(10))
        same(model.b_U.mean(), zero)
    elif rewrite == "fold_value_biases":
        assert not bool(model.b_V.any())
    else:
        queries, keys = (
            torch.cat([getattr(model, f"W_{name}"), getattr(model, f"b_{name}")[:, :, None]], dim=2) for name in "QK"
        )
        for one, other in ((queries, keys), (model.W_O.transpose(-2, -1), model.W_O.transpose(-2, -1))):
            gram, like = one.transpose(-2, -1) @ one, other.transpose(-2, -1) @ other
            same(gram, like)
            same(gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)))


def test_processing_without_flags_is_the_usual_one(plain: HookedTransformer) -> None:
    plain.process_weights_()
    assert plain.cfg.normalization_type == "LNPre" and not bool(plain.b_V.any())
    same(plain.W_U.mean(-1), torch.zeros(10, dtype=torch.float64))
    same(plain.W_E.mean(-1), torch.zeros(23, dtype=torch.float64))


@MAKING.shows("init_weights")
def test_init_weights() -> None:
    """A normal with the config's standard deviation, within five standard errors; the same for the same seed."""
    model = tiny_model(d_vocab=4000, seed=5, initializer_range=0.3)
    model.init_weights()
    draw = model.W_E.detach().flatten()
    assert abs(float(draw.mean())) < 5 * 0.3 / math.sqrt(len(draw))
    assert abs(float(draw.std()) - 0.3) < 5 * 0.3 / math.sqrt(2 * len(draw))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        kind = name.split(".")[-1]
        if kind.startswith("b"):
            assert not bool(value.any()), name
        elif kind == "w":
            assert bool((value == 1).all()), name
        else:
            assert abs(float(value.std()) / 0.3 - 1) < 0.4, name
    model.init_weights()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    model.cfg.seed = 6
    model.init_weights()
    assert not torch.equal(model.W_E, state["embed.W_E"])


# Moving


@MAKING.shows("to", "cpu", "cuda", "mps")
def test_moving(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In place and returned, with every parameter, and the config says where; "meta" stands in for other devices."""
    model = tiny_model()
    if name == "to":
        moved = model.to(torch.float32)
        assert model.cfg.dtype == torch.float32 and {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.to("meta", print_details=True) is moved is model
        assert "meta" in capsys.readouterr().out
    elif name == "cpu":
        assert model.cpu() is model and model.cfg.device == "cpu"
        return
    elif name == "cuda":
        asked = []

        def cuda(tensor: Tensor, device: Any = None) -> Tensor:
            asked.append(device)
            return tensor.to("meta")

        monkeypatch.setattr(Tensor, "cuda", cuda)
        assert model.cuda(1) is model and set(asked) == {1}
    else:
        to = HookedTransformer.to
        monkeypatch.setattr(HookedTransformer, "to", lambda self, device: to(self, {"mps": "meta"}[device]))
        assert model.mps() is model
    assert model.cfg.device == "meta" and all(p.is_meta for p in model.parameters())
    assert capsys.readouterr().out == ""


# The training text


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for the optional package `datasets`, and what it was asked for."""
    calls: list[Any] = []

    def load_dataset(name: str, **options: Any) -> list[dict[str, str]]:
        calls.append((name, options))
        return [{"text": "the old dog"}, {"text": "Then Mary ran"}]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


@MAKING.shows("dataset", "load_sample_training_dataset")
def test_training_text(name: str, asked: list[Any]) -> None:
    model = small_model(original_architecture="GPT2LMHeadModel")
    assert model.dataset is None
    rows = model.load_sample_training_dataset(cache_dir="there")
    assert [row["text"] for row in rows] == ["the old dog", "Then Mary ran"] and model.dataset is rows
    assert asked == [("stas/openwebtext-10k", {"split": "train", "cache_dir": "there"})]


@MAKING.shows("sample_datapoint")
def test_sample_datapoint(asked: list[Any]) -> None:
    model = small_model(original_architecture="GPT2LMHeadModel")
    assert {model.sample_datapoint() for _ in range(50)} == {"the old dog", "Then Mary ran"}
    assert len(asked) == 1
    model.dataset = [{"text": "the old dog"}]
    ids = model.tokenizer.encode("the old dog")
    assert model.sample_datapoint(tokenize=True).tolist() == [[model.tokenizer.bos_token_id, *ids]]
    assert model.sample_datapoint(True, prepend_bos=False, padding_side="left").tolist() == [ids]


def test_every_row_has_a_check() -> None:
    assert MAKING.unchecked() == []
