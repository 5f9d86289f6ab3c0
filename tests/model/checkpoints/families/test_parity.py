"""Each family against `transformers`: a table of random tiny models, awkward on purpose, and what must hold for all.

Logits are those of `transformers` in float32 within 1e-4, padded on either side too; what is generated with a key-value
cache is the same, token for token; a model goes there and back again; processing keeps log-probabilities.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families_table import HYBRIDS, LENGTH, ROWS, TOKENS, VOCABULARY, hf_model
from safetensors.torch import save_file
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerKeyValueCache
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.families import FAMILIES, family_of
from headscope.model.checkpoints.folder import CheckpointFolder
from headscope.model.weights.processing import WeightProcessing

RIGHT = torch.arange(LENGTH) < torch.tensor([[LENGTH - 4], [LENGTH], [2]])
MASKS = {"right": RIGHT, "left": RIGHT.flip(-1)}
EVERY = [*ROWS, *HYBRIDS]
FOLDED = {
    "biogpt",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "gemma4_unified",
    "gemma4_unified_text",
    "nemotron",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "vaultgemma",
    "xglm",
}
WITHOUT_NORM_WEIGHTS = {"nanochat", "olmo"}
# Come back as their text model alone.
READS_IMAGES = {"gemma3", "gemma4", "gemma4_unified", "llama4", "mistral3", "qwen3_5", "qwen3_5_moe"}
# Come back with the factors, or the norm behind the embedding, in the weights.
REWRITTEN = {
    "falcon_h1",
    "gemma4_text with experts",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "nanochat",
}
# Queries are scaled by their place in the row, which counts padding: what we compare with is each text alone.
COUNTS_PADDING = {"llama4", "llama4_text"}
# It would get into the state.
REFUSED_PADDING = {("recurrent_gemma", "left")}


@cache
def ours(row: str) -> HookedTransformer:
    return HookedTransformer.from_hf(hf_model(row))


def hf_logits(row: str, mask: Tensor | None = None) -> Tensor:
    positions = None if mask is None else (mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        if mask is None or row.split()[0] not in COUNTS_PADDING:
            return hf_model(row)(TOKENS, attention_mask=mask, position_ids=positions).logits
        logits = torch.zeros(*TOKENS.shape, VOCABULARY)
        for tokens, real, out in zip(TOKENS, mask, logits, strict=True):
            out[real] = hf_model(row)(tokens[None, real]).logits[0]
        return logits


def test_every_family_has_a_row() -> None:
    assert {row.split()[0].rstrip(",") for row in EVERY} == set(FAMILIES)
    assert all(family.examples for family in FAMILIES.values())


@pytest.mark.parametrize("row", EVERY)
def test_logits(row: str) -> None:
    wanted = hf_logits(row)
    with torch.no_grad():
        torch.testing.assert_close(ours(row)(TOKENS), wanted, rtol=0, atol=1e-4)
        # With somebody looking at scores and patterns, attention takes another way.
        logits, acts = ours(row).run_with_cache(TOKENS)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
    assert float(wanted.std()) > 0.3
    parts = acts.decompose_resid().sum(0)
    torch.testing.assert_close(parts, acts["resid_post", -1], rtol=1e-4, atol=1e-4)
    heads = acts.get_full_resid_decomposition(expand_neurons=not ours(row).cfg.num_experts).sum(0)
    torch.testing.assert_close(heads, acts["resid_post", -1], rtol=1e-4, atol=1e-4)


# Type checks of the tests read the first tensor of a mapping: of these, one that reads images.
@pytest.mark.parametrize("row", [row for row in EVERY if row.split()[0].rstrip(",") not in READS_IMAGES])
def test_parameters_are_counted_as_there(row: str) -> None:
    """A tied matrix once, and no zeros for biases that are not there; other tensors too, but Gemma 4's scales."""
    saved = [each for name, each in hf_model(row).state_dict().items() if not name.endswith("layer_scalar")]
    distinct = {(tensor.data_ptr(), tensor.shape): tensor.numel() for tensor in saved}
    assert ours(row).n_params_checkpoint == sum(distinct.values())


@pytest.mark.parametrize(
    ("row", "side"), [(row, side) for row in EVERY for side in MASKS if (row, side) not in REFUSED_PADDING]
)
def test_padded_logits(row: str, side: str) -> None:
    mask = MASKS[side]
    wanted = hf_logits(row, mask)
    with torch.no_grad():
        for found in (ours(row)(TOKENS, attention_mask=mask), ours(row).run_with_cache(TOKENS, attention_mask=mask)[0]):
            torch.testing.assert_close(found[mask], wanted[mask], rtol=0, atol=1e-4)


@pytest.mark.parametrize("row", ROWS)
def test_generation(row: str) -> None:
    """Greedy, with the cache of keys and values, from prompts padded on the left; past the window of local layers."""
    mask = MASKS["left"]
    options = {"max_new_tokens": 8, "do_sample": False}
    options |= {"pad_token_id": 0, "eos_token_id": None}
    if row.split()[0] in COUNTS_PADDING:
        each = [
            hf_model(row).generate(tokens[None, real], **options)[0] for tokens, real in zip(TOKENS, mask, strict=True)
        ]
        wanted = torch.stack([torch.cat([tokens, new[-8:]]) for tokens, new in zip(TOKENS, each, strict=True)])
    else:
        wanted = hf_model(row).generate(TOKENS, attention_mask=mask.long(), **options)
    step, found = TOKENS, TOKENS
    past = HookedTransformerKeyValueCache.init_cache(ours(row).cfg, "cpu", batch_size=3)
    with torch.no_grad():
        for number in range(8):
            logits = ours(row)(step, past_kv_cache=past, attention_mask=mask if number == 0 else None)
            step = logits[:, -1:].argmax(-1)
            found = torch.cat([found, step], dim=1)
    assert torch.equal(found, wanted)
    plain = hf_model(row).generate(TOKENS[:1], **options)
    mine = ours(row).generate(TOKENS[:1], max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    assert torch.equal(mine, plain)


@pytest.mark.parametrize("row", EVERY)
def test_processing(row: str) -> None:
    """Each rewrite alone and all together leave log-probabilities as they are, or say why they do not apply."""
    wanted = hf_logits(row).log_softmax(-1)
    names = WeightProcessing.names()
    for alone in [*names, None]:
        if alone is None:
            model = HookedTransformer.from_hf(hf_model(row), **dict.fromkeys(names, True))
        else:
            model = copy.deepcopy(ours(row))
            model.process_weights_(**{name: name == alone for name in names})
        with torch.no_grad():
            torch.testing.assert_close(model(TOKENS).log_softmax(-1), wanted, rtol=0, atol=1e-4)
    kept = bool(model.cfg.clip_qkv or model.cfg.use_attn_sinks or model.cfg.gated_attn or model.cfg.use_v_norm)
    assert ("fold_value_biases" in model.weight_processing) is not kept
    assert ("fold_ln" in model.weight_processing) is not (
        row.split()[0] in WITHOUT_NORM_WEIGHTS or row.endswith("without biases and norms' weights")
    )


@pytest.mark.parametrize("row", EVERY)
def test_there_and_back_again(row: str, tmp_path: Path) -> None:
    hf, here = hf_model(row), ours(row)
    back = here.to_hf()
    before, after = hf.state_dict(), back.state_dict()
    if row.split()[0] in READS_IMAGES:
        assert type(back).__name__ == FAMILIES[hf.config.text_config.model_type].architecture
        before = {name: tensor for name, tensor in before.items() if "language_model" in name}
        before = {
            name.replace("model.language_model.", "model.").removeprefix("language_model."): tensor
            for name, tensor in before.items()
        }
        assert before.keys() | {"lm_head.weight"} == after.keys() | {"lm_head.weight"}
    else:
        assert type(back) is type(hf) and before.keys() == after.keys()
    # What was folded, by a factor or one more, comes back to the last digit only.
    within = 1e-6 if row.split()[0] in FOLDED else 0.0
    for name, tensor in before.items() if REWRITTEN.isdisjoint({row, row.split()[0]}) else ():
        if name == "lm_head.weight" and row.startswith("cohere"):
            continue  # it comes back with the factor of the logits in it
        first = 2 if "embed_positions" in name else 0  # OPT's positions begin at its third row
        found, wanted = (each[first:] if first else each for each in (after[name], tensor))
        torch.testing.assert_close(found, wanted, rtol=within, atol=within, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(back(TOKENS).logits, hf_logits(row), rtol=0, atol=1e-5)
    back.save_pretrained(tmp_path)
    again = HookedTransformer.from_pretrained_no_processing(tmp_path)
    told = {"model_name": "", "original_architecture": "", "tie_word_embeddings": False}
    assert again.cfg.to_dict() | told == here.cfg.to_dict() | told
    for name, tensor in here.state_dict().items():
        # x * s / s * s, or a norm undone and done again
        inexact = name == "embed.W_E" and (row.endswith("untied") or row.split()[0] == "nanochat")
        inexact = inexact or (row.startswith("gemma4") and name.endswith(("W_E", "_post.w")))
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=3e-7 if inexact else 0, atol=0, msg=name)
    loaded = HookedTransformer.from_pretrained(tmp_path, dtype="bfloat16")
    assert loaded.W_E.dtype == torch.bfloat16 and bool(loaded(TOKENS).isfinite().all())


@pytest.mark.parametrize("row", EVERY)
def test_missing_and_unused_tensors_are_named(row: str) -> None:
    class Changed:
        """A `transformers` model with other tensors."""

        def __init__(self, tensors: dict[str, Tensor]) -> None:
            self.config, self.tensors = hf_model(row).config, tensors

        def state_dict(self) -> dict[str, Tensor]:
            return self.tensors

    tensors = hf_model(row).state_dict()
    gone = next(name for name in reversed(tensors) if ".1." in name)
    with pytest.raises(CheckpointError, match=gone.split(".1.")[1].replace(".", r"\.")):
        HookedTransformer.from_hf(Changed({name: t for name, t in tensors.items() if name != gone}))
    with pytest.raises(CheckpointError, match=r"does not use: extra\.weight"):
        HookedTransformer.from_hf(Changed({**tensors, "extra.weight": torch.ones(2)}))
    with pytest.raises((CheckpointError, InvalidInputError), match="shape"):
        HookedTransformer.from_hf(Changed({**tensors, gone: torch.ones(3)}))


@pytest.mark.parametrize("row, name", [
    ("codegen", "transformer.h.1.attn.causal_mask"), ("xglm", "model.embed_positions.weights"),
])  # fmt: skip
def test_buffers_of_older_checkpoints(row: str, name: str, tmp_path: Path) -> None:
    hf_model(row).save_pretrained(tmp_path)
    tensors = {each: tensor.clone() for each, tensor in CheckpointFolder(tmp_path).tensors().items()}
    save_file({**tensors, name: torch.ones(3, 3)}, tmp_path / "model.safetensors")
    found = HookedTransformer.from_pretrained_no_processing(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(found(TOKENS), hf_logits(row), rtol=0, atol=1e-4)


@pytest.mark.parametrize("row", ["mixtral", "olmoe", "qwen3_moe"])
def test_experts_one_by_one(row: str, tmp_path: Path) -> None:
    """On the hub each expert has tensors of its own; `transformers` writes them so, and holds them joined."""
    hf_model(row).save_pretrained(tmp_path)
    # Copies: the file they are mapped from is written over.
    tensors = {name: tensor.clone() for name, tensor in CheckpointFolder(tmp_path).tensors().items()}
    assert any(".experts.0." in name for name in tensors) and not any("gate_up" in name for name in tensors)
    found = HookedTransformer.from_pretrained_no_processing(tmp_path)
    for name, tensor in ours(row).state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    gone = next(name for name in tensors if ".1." in name and ".experts.1." in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=gone.removeprefix("model.").replace(".", r"\.")):
        HookedTransformer.from_pretrained(tmp_path)
    save_file({**tensors, gone: torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not of equal shapes"):
        HookedTransformer.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type, entries, message", [
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = False is not supported: .* residual stream"),
    ("opt", {"word_embed_proj_dim": 6}, "word_embed_proj_dim = 6 is not supported"),
    ("nemotron_h", {"layers_block_type": ["moe"], "moe_latent_size": 8}, "moe_latent_size = 8 .* is not supported"),
    ("openai-gpt", {}, "GPT-1 .* residual stream"),
    ("mpt", {"no_bias": False}, "no_bias = False is not supported"),
    ("mpt", {"attn_config": {"alibi_bias_max": 16}}, "alibi_bias_max = 16 is not supported; it can only be 8"),
    ("mpt", {"attn_config": ["alibi"]}, "attn_config in config.json must hold"),
    ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln = True is not supported"),
    ("codegen", {"n_head": 6}, "n_head = 6 .* not a multiple of 4"),
    ("internlm3", {"qkv_bias": True}, "qkv_bias = True and bias = False is not supported"),
    ("xglm", {"add_cross_attention": True}, "cross-attention"),
    ("gpt_bigcode", {"add_cross_attention": True}, "cross-attention"),
])  # fmt: skip
def test_what_is_refused(model_type: str, entries: dict[str, Any], message: str) -> None:
    config = hf_model(model_type).config.to_dict() if model_type in FAMILIES else {"model_type": model_type}
    if "qkv_bias" in entries:
        del config["attention_bias"]
    with pytest.raises(CheckpointError, match=message):
        family_of({**config, **entries}).config({**config, **entries})


def test_attention_at_unequal_distances_is_no_jamba() -> None:
    model = HookedTransformer.from_hf(hf_model("jamba"))
    model.cfg.layer_parts = ["attn+mlp", "mixer+mlp", "attn+mlp", "attn+mlp"]
    with pytest.raises(CheckpointError, match=r"attn layers at equal distances; here they are \[0, 2, 3\]"):
        model.to_hf()


def test_an_embedding_that_a_norm_cannot_give_is_refused() -> None:
    model = HookedTransformer.from_hf(hf_model("nanochat"))
    with torch.no_grad():
        model.W_E.mul_(1.01)
    with pytest.raises(CheckpointError, match="normalizes the embedding"):
        model.to_hf()


@pytest.mark.parametrize("row, code, loads", [
    ("phi3", "modeling_phi3.Phi3ForCausalLM", True),
    ("falcon", "tiiuae/falcon-7b--modeling_falcon.FalconForCausalLM", True),
    ("falcon", "modeling_phi3.Phi3ForCausalLM", False),
    ("llama", "modeling_llama.LlamaForCausalLM", False),
])  # fmt: skip
def test_code_that_became_a_class_of_transformers(row: str, code: str, loads: bool, tmp_path: Path) -> None:
    """Checkpoints from before that still bring it along; it is not run."""
    hf_model(row).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": code}}))
    if loads:
        found = HookedTransformer.from_pretrained_no_processing(tmp_path)
        with torch.no_grad():
            torch.testing.assert_close(found(TOKENS), hf_logits(row), rtol=0, atol=1e-4)
    else:
        with pytest.raises(CheckpointError, match="needs its own code"):
            HookedTransformer.from_pretrained(tmp_path)
