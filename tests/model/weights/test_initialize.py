"""Random weights: those of TransformerLens 3.9 for the same seed, in every mode and for every kind of part."""

import json
import math
from pathlib import Path

import pytest
import torch
from drawn_weights import CASES, WITH_MLP, shown

from headscope import HookedTransformer, HookedTransformerConfig

RECORDED = Path(__file__).with_name("weights_of_seeds.json")  # by tests/support/drawn_weights.py


def test_the_cases_are_those_recorded() -> None:
    assert list(json.loads(RECORDED.read_text())) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_a_seed_are_those_of_transformer_lens(case: str) -> None:
    before = torch.get_rng_state()
    model = HookedTransformer(HookedTransformerConfig(**CASES[case]))
    assert torch.equal(torch.get_rng_state(), before)
    found, recorded = shown(model), json.loads(RECORDED.read_text())[case]
    assert found.keys() == recorded.keys()
    for name, numbers in recorded.items():
        # Equal to the bit on the machine they were recorded on; another's vector instructions may round otherwise.
        assert found[name] == pytest.approx(numbers, rel=1e-5, abs=1e-7), name


def test_without_a_seed_the_global_generator_gives_the_weights_of_the_same_seed() -> None:
    torch.manual_seed(5)
    model = HookedTransformer(HookedTransformerConfig(**{**WITH_MLP, "seed": None}))
    seeded = HookedTransformer(HookedTransformerConfig(**WITH_MLP))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), seeded.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"])
def test_other_ways_to_draw_weights(mode: str) -> None:
    cfg = HookedTransformerConfig(1, 64, 8, 32, n_heads=2, d_vocab=40, attn_only=True, init_mode=mode, seed=3)
    model = HookedTransformer(cfg)
    spread = float(model.blocks[0].attn.W_Q.detach().std())
    # Fan-in 64, fan-out 32 for each of two heads.
    wanted = math.sqrt(2 / (64 + 64)) if mode.startswith("xavier") else math.sqrt(2 / 64)
    assert spread == pytest.approx(wanted, rel=0.05)
    assert not bool(model.b_Q.any()) and bool((model.ln_final.w == 1).all())
