"""The config: what it fills in, refuses, and gives back."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny import tiny_config

from headscope import HookedTransformerConfig
from headscope.errors import InvalidInputError, UnknownNameError
from headscope.model.config_checks import ACTIVATIONS, parse_dtype

SMALL: dict[str, Any] = {"n_layers": 1, "d_model": 8, "n_ctx": 16, "d_head": 4}


def test_what_is_left_out_is_filled_in() -> None:
    cfg = HookedTransformerConfig(**SMALL, act_fn="gelu", d_vocab=11)
    assert (cfg.n_heads, cfg.d_mlp, cfg.d_vocab_out, cfg.attn_scale) == (2, 32, 11, 2.0)
    assert cfg.initializer_range == 0.8 / math.sqrt(8)
    assert cfg.dtype == torch.float32 and cfg.device in ("cpu", "cuda") and cfg.model_name == "custom"
    assert cfg.n_params == 4 * 8 * 8 + 2 * 8 * 32
    assert cfg.has_resid_mid and cfg.centered_norm
    assert HookedTransformerConfig(**SMALL, attn_only=True).n_params == 4 * 8 * 8


@pytest.mark.parametrize("fields, message", [
    ({"n_layers": 0}, "n_layers must be at least 1; got 0"),
    ({"d_model": -8}, "d_model must be at least 1; got -8"),
    ({"n_ctx": 0}, "n_ctx must be at least 1"),
    ({"d_head": 0}, "d_head must be at least 1"),
    ({"n_heads": 0}, "n_heads must be at least 1"),
    ({"d_head": 9}, "n_heads must be at least 1; got 0"),
    ({"normalization_type": "ln"}, "normalization_type.*'LNPre'.*got 'ln'"),
    ({"positional_embedding_type": "rotari"}, "positional_embedding_type.*got 'rotari'"),
    ({"attention_dir": "sideways"}, "attention_dir.*got 'sideways'"),
    ({"act_fn": "gelu_quick"}, "act_fn.*'gelu_new'.*got 'gelu_quick'"),
    ({"act_fn": None}, "act_fn is needed.*attn_only=True"),
    ({"dtype": "int8"}, "dtype.*'int8'"),
    ({"dtype": torch.int64}, "dtype.*torch.int64"),
    ({"dtype": "nonsense"}, "dtype.*'nonsense'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        HookedTransformerConfig(**{**SMALL, "act_fn": "gelu", **fields})


@pytest.mark.parametrize("fields, mid, centered", [
    ({}, True, True),
    ({"attn_only": True}, False, True),
    ({"parallel_attn_mlp": True}, False, True),
    ({"normalization_type": "LNPre"}, True, True),
    ({"normalization_type": "RMS"}, True, False),
    ({"normalization_type": "RMSPre"}, True, False),
    ({"normalization_type": None}, True, False),
])  # fmt: skip
def test_what_follows_from_the_choices(fields: dict[str, Any], mid: bool, centered: bool) -> None:
    cfg = tiny_config(**fields)
    assert (cfg.has_resid_mid, cfg.centered_norm) == (mid, centered)


def test_it_goes_through_a_dictionary() -> None:
    cfg = tiny_config(dtype="bfloat16", output_logits_soft_cap=3.0, attn_scale=2.5, initializer_range=0.1)
    fields = cfg.to_dict()
    assert set(fields) == {field.name for field in dataclasses.fields(cfg)}
    assert HookedTransformerConfig.from_dict(fields) == cfg
    assert HookedTransformerConfig.from_dict(fields).to_dict() == fields
    assert HookedTransformerConfig.unwrap(cfg) is cfg and HookedTransformerConfig.unwrap(fields) == cfg


def test_an_unknown_field_gives_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'n_layer'.*'n_layers'"):
        HookedTransformerConfig.from_dict({**SMALL, "n_layer": 3})


def test_every_activation_it_allows_exists() -> None:
    from tiny import tiny_model, tiny_tokens

    for act_fn in ACTIVATIONS:
        assert bool(tiny_model(act_fn=act_fn)(tiny_tokens()).isfinite().all())


@pytest.mark.parametrize("given, wanted", [
    ("float32", torch.float32), ("torch.bfloat16", torch.bfloat16), (torch.float64, torch.float64),
])  # fmt: skip
def test_dtypes_by_name(given: Any, wanted: torch.dtype) -> None:
    assert parse_dtype(given) == wanted


def test_it_shows_what_differs_from_the_defaults() -> None:
    cfg = HookedTransformerConfig(**SMALL, attn_only=True, rotary_base=500)
    lines = repr(cfg).splitlines()
    assert lines[0] == "HookedTransformerConfig(" and lines[-1] == ")"
    assert {"    n_layers=1,", "    attn_only=True,", "    rotary_base=500,"} <= {*lines}
    assert not any("gated_mlp" in line for line in lines)
    again = eval(repr(cfg), {"HookedTransformerConfig": HookedTransformerConfig, "torch": torch})
    assert again == cfg
