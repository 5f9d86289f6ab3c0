"""Rotary positions of `config.json` against those of `transformers`, and which entries are refused.

The frequencies themselves are compared; what a family does with them is held by the table of random models.
"""

from typing import Any

import pytest
import torch
import transformers
from families_table import ROWS, VOCABULARY
from tiny import randomize, tiny_tokens
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headscope import HookedTransformer, HookedTransformerKeyValueCache
from headscope.errors import CheckpointError
from headscope.model.checkpoints.families import FAMILIES, family_of
from headscope.model.checkpoints.families.rope import rope_entries
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.rotary import frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 500.0}
SCALED: dict[str, dict[str, Any]] = {
    "yarn": YARN,
    "yarn, not truncated": {**YARN, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, a ramp of no length": {**YARN, "beta_fast": 1.5, "beta_slow": 1.4},
    "yarn, a given factor": {**YARN, "attention_factor": 1.7},
    "yarn, mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.3},
    "yarn, only one mscale": {**YARN, "mscale": 0.707},
    "yarn, without an original length": {**YARN, "original_max_position_embeddings": None},
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64, "rope_theta": 500.0},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0 + i / 8 for i in range(8)], "rope_theta": 500.0,
                 "long_factor": [2.0 + i for i in range(8)], "original_max_position_embeddings": 64, "factor": 5.0},
}  # fmt: skip
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 14, "num_hidden_layers": 2, "pad_token_id": None,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip


def config_of(hf: dict[str, Any]) -> HookedTransformerConfig:
    return HookedTransformerConfig(**family_of(hf).config(hf), device="cpu")


@pytest.mark.parametrize("length", [10, 300])
@pytest.mark.parametrize("kind", SCALED)
def test_frequencies(kind: str, length: int) -> None:
    rope = {name: value for name, value in SCALED[kind].items() if value is not None}
    hf = transformers.LlamaConfig(**LLAMA, rope_parameters=dict(rope))
    wanted, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](hf, "cpu", seq_len=length)
    for entries in (
        hf.to_dict(),  # as transformers 5 writes them, and as 4 did
        {**LLAMA, "rope_theta": 500.0, "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}},
        {**LLAMA, "rope_theta": 500.0, "rope_scaling": {"type": rope["rope_type"], **rope}},
    ):
        cfg = config_of({**entries, "model_type": "llama"})
        found, own_factor = frequencies(cfg, length=length)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=0)
        assert own_factor == pytest.approx(factor, rel=1e-12)
        back = config_of({**LLAMA, **rope_entries(cfg), "model_type": "llama"})
        assert back == cfg


@pytest.mark.parametrize("n_layers", [1, 2])
def test_dynamic_ntk_gives_the_logits_of_transformers_whatever_the_length(n_layers: int) -> None:
    """Angles change with the length of the text, and those of keys in a cache with them.

    With more than one layer, what a cache holds depends on the angles of a shorter text, and is not compared.
    """
    sizes = {**LLAMA, "max_position_embeddings": 8, "num_hidden_layers": n_layers}
    config = transformers.LlamaConfig(**sizes, rope_parameters=SCALED["dynamic"])
    hf = transformers.LlamaForCausalLM(config).eval()
    randomize(hf, spread=0.4)
    model = HookedTransformer.from_hf(hf)
    assert model.cfg.n_ctx == 24 and model.cfg.NTK_original_ctx_len == 8
    tokens = tiny_tokens(2, 24, d_vocab=VOCABULARY)
    past = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", batch_size=2)
    with torch.no_grad():
        for length in range(1, 25):
            wanted = hf(tokens[:, :length], use_cache=False).logits
            torch.testing.assert_close(model(tokens[:, :length]), wanted, rtol=0, atol=1e-4)
            step = model(tokens[:, length - 1 : length], past_kv_cache=past)
            if n_layers == 1:
                torch.testing.assert_close(step[:, -1], wanted[:, -1], rtol=0, atol=1e-4)
        shorter = hf(tokens[:, :4], use_cache=False).logits
        torch.testing.assert_close(model(tokens[:, :4]), shorter, rtol=0, atol=1e-4)
    back = model.to_hf()
    assert back.config.max_position_embeddings == 8 and back.config.rope_parameters["rope_type"] == "dynamic"
    with torch.no_grad():
        torch.testing.assert_close(back(tokens).logits, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("model_type", "entries", "message"), [
    ("llama", {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "'proportional' .* not supported"),
    ("llama", {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section .* does not read"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention .* does not read"),
    ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5 .* rotates all of a head"),
    ("qwen3", {"layer_types": ["full_attention", "chunked_attention"], "use_sliding_window": True},
     "layers of type 'chunked_attention'"),
    ("olmo3", {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}, "by type of layer"),
    ("olmo3", {"rope_theta": 10000.0}, r"rope_theta = 10000\.0 .* does not say whether local layers"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     "scaled rotary positions of local layers"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2.0}}},
     "scaled rotary positions of local layers"),
    ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 8.0}, "rope_parameters": {
        "full_attention": {"rope_type": "default"}}}, "'type': 'linear', which transformers 5 does not read"),
    ("ministral3", {"rope_parameters": {"rope_type": "default"}}, "must have llama_4_scaling_beta and original_max"),
    ("cohere2", {"sliding_window": None}, "without a sliding_window"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention .* not supported"),
])  # fmt: skip
def test_entries_that_are_refused(model_type: str, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_of({**LLAMA, **entries, "model_type": model_type})


# What a family's class adds to entries that are not there differs, and shapes would tell: here they are all given.
GIVEN = ("num_key_value_heads", "head_dim", "n_inner", "ffn_dim", "intermediate_size", "d_model", "num_experts_per_tok")


@pytest.mark.parametrize("row", ROWS)
def test_entries_that_are_missing_are_those_of_transformers(row: str) -> None:
    """Of `config.json`s that leave out what is the default of their class."""
    stem, fields = ROWS[row]
    cls = getattr(transformers, f"{stem}Config")
    whole = cls(**fields).to_dict()
    sparse = {**fields, "model_type": cls.model_type, **{name: whole[name] for name in GIVEN if name in whole}}
    assert config_of(sparse) == config_of(whole)
    assert cls.model_type in FAMILIES
