"""Models that read images too: their text model in every layout of the files, and what is said of the rest."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from families_table import VOCABULARY, hf_model
from safetensors.torch import save_file
from tiny import tiny_tokens
from torch import Tensor
from transformers import CONFIG_MAPPING

from headscope import HookedTransformer
from headscope.errors import CheckpointError
from headscope.model.checkpoints import entries
from headscope.model.checkpoints.families import FAMILIES

TOKENS = tiny_tokens(2, 9, d_vocab=VOCABULARY)
TEXT = ("model.language_model.", "language_model.", "lm_head.")


def older_name(name: str) -> str:
    """As in the checkpoints on the hub."""
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.")
    return f"language_model.{name}" if name.startswith("lm_head.") else name.removeprefix("model.")


def folder_of(row: str, folder: Path, *, older: bool) -> Path:
    hf = hf_model(row)
    tensors: dict[str, Tensor] = hf.state_dict()
    if hf.config.tie_word_embeddings:
        tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    named = {older_name(name) if older else name: tensor.clone() for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf.config.to_dict()))
    return folder


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    "row",
    ["gemma3", "gemma3 untied", "gemma4", "gemma4_unified", "llama4", "mistral3", "mistral3 of ministral3, tied"]
    + ["qwen3_5", "qwen3_5_moe"],
)
def test_both_layouts_of_the_files(row: str, older: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="headscope"):
        found = HookedTransformer.from_pretrained_no_processing(folder_of(row, tmp_path, older=older))
    with torch.no_grad():
        torch.testing.assert_close(found(TOKENS), hf_model(row)(TOKENS).logits, rtol=0, atol=1e-4)
    said = [record.getMessage() for record in caplog.records if "images" in record.getMessage()]
    n_vision = sum(not name.startswith(TEXT) for name in hf_model(row).state_dict())
    assert said == [f"the text model alone is loaded; {n_vision} tensors that read images or sound are left out."]


def test_an_unembedding_beside_the_embedding_counts(tmp_path: Path) -> None:
    """Mistral 3's config says by default that both are one, and its checkpoints have both."""
    folder = folder_of("mistral3", tmp_path, older=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    found = HookedTransformer.from_pretrained_no_processing(folder)
    with torch.no_grad():
        torch.testing.assert_close(found(TOKENS), hf_model("mistral3")(TOKENS).logits, rtol=0, atol=1e-4)


def test_entries_that_the_class_fills_in() -> None:
    """Gemma 3's configs on the hub say only what their text model has of its own."""
    hf = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}}
    fields = FAMILIES["gemma3"].config(hf)
    assert (fields["d_vocab"], fields["n_heads"], fields["n_key_value_heads"], fields["d_head"]) == (262_208, 8, 4, 256)
    assert (fields["d_model"], fields["n_layers"], fields["window_size"]) == (2560, 34, 1024)
    assert fields["attn_types"][:6] == ["local"] * 5 + ["global"]


@pytest.mark.parametrize("model_type, text, message", [
    ("mistral3", {"model_type": "llama"}, "text model of model_type 'llama' is not supported"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    ("gemma3", ["hidden_size"], "text_config in config.json must hold"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
])  # fmt: skip
def test_what_is_not_supported_is_said(model_type: str, text: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        FAMILIES[model_type].config({"model_type": model_type, "text_config": text})


@pytest.mark.parametrize("row", ["gemma3", "gemma4", "llama4", "mistral3"])
def test_an_entry_of_the_text_model_that_nobody_read_is_refused(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a config of text alone: what `transformers` knows, with another value than its default."""
    hf = hf_model(row)
    config = hf.config.to_dict()
    config["text_config"] |= {"attention_multiplier": 3.0}
    family = FAMILIES[row].texts[0]  # type: ignore[attr-defined]
    defaults = CONFIG_MAPPING[family.model_type]().to_dict()
    monkeypatch.setattr(entries, "_defaults", lambda *_: {**defaults, "attention_multiplier": 1.0})

    class Checkpoint:
        def __init__(self) -> None:
            self.config = self

        def to_dict(self) -> dict[str, Any]:
            return config

        def state_dict(self) -> dict[str, Tensor]:
            return hf.state_dict()

    with pytest.raises(CheckpointError, match=r"attention_multiplier = 3.0 \(the default is 1.0\)"):
        HookedTransformer.from_hf(Checkpoint())
