"""What is read of the configs of DeepSeek and its kin beside the table of families: refusals, and layers left out."""

from typing import Any

import pytest
import torch
from families_table import hf_model

from headscope import HookedTransformer
from headscope.errors import CheckpointError
from headscope.model.checkpoints.families import FAMILIES, family_of


@pytest.mark.parametrize(
    ("row", "entry", "value"),
    [
        ("deepseek_v3", "scoring_func", "softmax"),
        ("deepseek_v3", "moe_layer_freq", 2),
        ("deepseek_v2", "norm_topk_prob", True),
        ("deepseek_v2", "topk_method", "random"),
        ("gpt_oss", "swiglu_alpha", 1.5),
    ],
)
def test_entries_that_are_refused(row: str, entry: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{entry} = .* is not supported"):
        FAMILIES[row].config({**hf_model(row).config.to_dict(), entry: value})


@pytest.mark.parametrize(
    "model_type",
    ["gemma3n", "gemma3n_text", "olmo_hybrid", "zamba", "zamba2"],
)
def test_families_that_are_refused(model_type: str) -> None:
    reason = "(Gemma 3n|OLMo Hybrid|Zamba) has "
    with pytest.raises(CheckpointError, match=f"'{model_type}' in config.json is not supported: {reason}"):
        family_of({"model_type": model_type})


def test_the_layer_that_predicts_the_token_after_the_next_is_left_out() -> None:
    class Checkpoint:
        config = hf_model("deepseek_v3").config

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {**hf_model("deepseek_v3").state_dict(), "model.layers.2.eh_proj.weight": torch.ones(2)}

    wanted = HookedTransformer.from_hf(hf_model("deepseek_v3")).state_dict()
    found = HookedTransformer.from_hf(Checkpoint()).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()) and found.keys() == wanted.keys()
