"""`default_prepend_bos` of each family, as in TransformerLens 3.9.0."""

from typing import Any

import pytest
from tiny import tiny_tokenizer

from headscope import HookedTransformer
from headscope.model.checkpoints.catalog import _SMALL
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.config import HookedTransformerConfig

# In TransformerLens 3.9.0's `HookedTransformer`; of families that it lacks, in its `TransformerBridge`; true for those
# that both lack (BioGPT, CWM, Helium, InternLM 3, Ministral, Persimmon).
EXPECTED = {
    "arcee": True, "biogpt": True, "codegen": True, "cwm": True, "gpt_bigcode": True, "helium": True,
    "internlm3": True, "jais2": True, "mpt": False, "nemotron": True, "starcoder2": False, "xglm": True,
    "cohere": True, "cohere2": True,
    "exaone4": False, "glm": False, "glm4": False, "hunyuan_v1_dense": True, "ministral": True, "ministral3": True,
    "olmo3": True, "seed_oss": False, "smollm3": False, "vaultgemma": True,
    "bloom": False, "falcon": True, "gemma": True, "gemma2": True, "gemma3_text": True, "gpt2": True, "gpt_neo": True,
    "gpt_neox": False, "gptj": True, "granite": False, "llama": True, "mistral": True, "mixtral": True, "olmo": True,
    "olmo2": True, "olmoe": True, "opt": True, "phi": False, "phi3": True, "qwen2": False, "qwen3": False,
    "qwen3_moe": False, "stablelm": True,
    "bamba": True, "falcon_h1": True, "granitemoehybrid": False, "lfm2": True, "nemotron_h": True,
    "jamba": True, "llama4": True, "llama4_text": True,
    "qwen3_5": False, "qwen3_5_moe": False, "qwen3_5_moe_text": False, "qwen3_5_text": False,
    "qwen3_next": False, "recurrent_gemma": False,
    "apertus": True, "gemma3": True, "mistral3": True, "nanochat": True, "persimmon": True,
    "deepseek_v2": True, "deepseek_v3": True,
    "gemma4": True, "gemma4_text": True, "gemma4_unified": True, "gemma4_unified_text": True,
    "dbrx": True, "gpt_oss": True, "phimoe": False, "granitemoe": False, "granitemoeshared": False, "qwen2_moe": False,
}  # fmt: skip


def test_every_family_is_listed() -> None:
    assert EXPECTED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("model_type", EXPECTED)
def test_bos_is_prepended_where_transformer_lens_does(model_type: str) -> None:
    small = {name: value for name, value in _SMALL.items() if "cap" not in name}
    fields = FAMILIES[model_type].config({**small, "text_config": small})
    cfg = HookedTransformerConfig(**fields, device="cpu")
    assert cfg.default_prepend_bos is EXPECTED[model_type]


@pytest.mark.parametrize("options, prepended", [
    ({}, False), ({"default_prepend_bos": None}, False), ({"default_prepend_bos": True}, True),
    ({"default_prepend_bos": False}, False),
])  # fmt: skip
def test_the_default_can_be_overridden(options: dict[str, Any], prepended: bool) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = tiny_tokenizer(bos_token="<bos>", eos_token="<eos>")
    config = GPTNeoXConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=len(tokenizer)
    )
    model = HookedTransformer.from_pretrained(
        "pythia-70m", hf_model=GPTNeoXForCausalLM(config), tokenizer=tokenizer, device="cpu", **options
    )
    bare = model.to_tokens("a", prepend_bos=False)
    assert model.to_tokens("a").shape[1] == bare.shape[1] + prepended
