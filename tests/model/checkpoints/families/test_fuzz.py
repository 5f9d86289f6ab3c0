"""Every entry of a config changes the logits as in `transformers`, or is refused, or changes nothing in either.

Each row of the families' table is built anew by `transformers` with one entry changed, and loaded here.
"""

import copy
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from families_table import HYBRIDS, LENGTH, ROWS, VOCABULARY
from tiny import randomize, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.errors import CheckpointError, HeadscopeError, InvalidInputError, MissingDependencyError
from headscope.model.checkpoints.catalog import known_families
from headscope.model.checkpoints.entries import ReadEntries, naming_entries
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.checkpoints.pipeline import config_fields

TABLE = {**ROWS, **HYBRIDS}
FIRST_OF_FAMILY = list({row.split()[0].rstrip(","): row for row in reversed(TABLE)}.values())
TOKENS = tiny_tokens(2, LENGTH, d_vocab=VOCABULARY)
# What `PreTrainedConfig` has for all classes alike, and what the table itself sets.
NOT_FUZZED = {*transformers.PreTrainedConfig().to_dict(), "model_type", "architectures", "attn_implementation"}
# What acts in training or generation only.
NO_FORWARD = re.compile("dropout|pdrop|layerdrop|initializer_range|init_std|init_variance|_loss|jitter|use_cache")
WRONG_IN_TRANSFORMERS = {("falcon", "alibi")}  # its "eager" attention adds the penalties twice


def built(stem: str, fields: dict[str, Any]) -> Any:
    """A `transformers` model whose weights are the same wherever shapes are."""
    config = getattr(transformers, f"{stem}Config")(**fields)
    kind = "ImageTextToText" if "text_config" in fields else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    model = auto.from_config(config, attn_implementation=fields.get("attn_implementation", "eager")).eval()
    randomize(model, spread=0.4)
    return model


def other_values(value: Any) -> list[Any]:
    """Return values that an entry might also have, the likeliest to be understood first."""
    match value:
        case bool():
            return [not value]
        case None:
            return [0.5, 3, True]
        case int():
            return [value + 1, 2 * value]
        case float():
            return [2 * value + 0.25]
        case str():
            return ["relu", "gelu_new", "silu"]
        case [str(), *_]:
            return [value[::-1], [value[0]] * len(value), [value[-1]] * len(value)]
    return []


def changed(row: str, every: bool) -> Iterator[tuple[str, Any, Any, Tensor]]:
    """Yield an entry, its other value, the model it makes in `transformers`, and that model's logits.

    With `every`, several other values of it, and of entries that act in training or generation only.
    """
    stem, fields = TABLE[row]
    for entry, value in built(stem, fields).config.to_dict().items():
        if not every and NO_FORWARD.search(entry):
            continue
        if entry in NOT_FUZZED or (row.split()[0].rstrip(","), entry) in WRONG_IN_TRANSFORMERS:
            continue
        for other in other_values(value)[: None if every else 1]:
            try:
                model = built(stem, {**fields, entry: other})
                with torch.no_grad():
                    logits = model(TOKENS).logits
            except Exception:  # noqa: BLE001  # a config that transformers itself cannot use, in any of many ways
                continue
            if bool(logits.isfinite().all()):
                yield entry, other, model, logits


def check(row: str, *, every: bool) -> None:
    n_checked, wrong = 0, []
    for entry, other, model, wanted in changed(row, every):
        n_checked += 1
        try:
            with torch.no_grad():
                found = HookedTransformer.from_hf(model)(TOKENS)
        except HeadscopeError:
            continue
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=0, atol=1e-3):
            wrong.append(f"{entry} = {other!r}")
    assert not wrong
    assert n_checked >= (3 if "text_config" in TABLE[row][1] else 5)  # the text model's entries have rows of their own


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")  # transformers warns of some of these configs
@pytest.mark.parametrize("row", FIRST_OF_FAMILY)
def test_one_other_value_of_each_entry(row: str) -> None:
    check(row, every=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", TABLE)
def test_several_other_values_of_each_entry(row: str) -> None:
    check(row, every=True)


def test_an_entry_nobody_read_is_refused_if_transformers_knows_it() -> None:
    fields = {"model_type": "llama", "hidden_act": "silu", "hidden_size": 12, "initializer_range": 0.5}
    entries = ReadEntries(fields)
    assert entries["hidden_size"] == 12
    entries.check_all_read()  # the activation is the class's default
    entries = ReadEntries({**fields, "hidden_act": "relu", "attention_bias": True})
    assert entries["hidden_size"] == 12
    both = r"hidden_act = 'relu' \(the default is 'silu'\), attention_bias = True \(the default is False\) in config"
    with pytest.raises(CheckpointError, match=both):
        entries.check_all_read()
    assert entries["attention_bias"]
    assert "hidden_act" in entries and len(entries) == 5
    entries.check_all_read()


def test_an_entry_of_a_family_that_an_old_transformers_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(transformers.CONFIG_MAPPING._mapping, "nanochat")
    entries = ReadEntries({"model_type": "nanochat", "hidden_act": "silu", "attention_dropout": 0.1})
    with pytest.raises(MissingDependencyError, match="has hidden_act, and .* too old for models of type nanochat"):
        entries.check_all_read()
    assert "hidden_act" in entries
    entries.check_all_read()


def test_hybrids_that_an_old_transformers_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog has them all the same, and says why they cannot be loaded."""
    monkeypatch.delitem(transformers.CONFIG_MAPPING._mapping, "bamba")
    with pytest.raises(MissingDependencyError, match="models of type bamba take a newer version of transformers"):
        FAMILIES["bamba"].config({"model_type": "bamba"})
    found = next(family for family in known_families() if family.model_type == "bamba")
    assert not found.processing and "pip install -U transformers" in found.left_out["fold_ln"]


@pytest.mark.parametrize(
    "row", [row for row in FIRST_OF_FAMILY if row not in HYBRIDS and "text_config" not in TABLE[row][1]]
)
def test_every_family_notices_an_entry_it_does_not_read(row: str) -> None:
    """No family reads all there is: an entry of a newer `transformers` would be dropped in silence."""
    stem, fields = TABLE[row]
    config = getattr(transformers, f"{stem}Config")(**fields)
    entries = ReadEntries({**config.to_dict(), "an_entry_of_the_future": 3})
    cfg = HookedTransformerConfig(**config_fields(entries, row), device="cpu")
    assert list(FAMILIES[config.model_type].rows(cfg, entries))
    assert "an_entry_of_the_future" in entries.unread()


@pytest.mark.parametrize("row, entries, message", [
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": None}}, "factor among .* must be a number; got None"),
    ("granite", {"attention_multiplier": 0.0}, "of the wrong type or size"),
    ("mistral", {"sliding_window": "wide"}, "sliding_window = 'wide', which must be a number .the default is 4096"),
    ("llama", {"rope_parameters": [3]}, r"rope_parameters = \[3\], which must be a table of entries"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [], "long_factor": []}}, "must have rotary_dim / 2"),
    ("gpt_neox", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 .* transformers reads only that"),
    ("gpt_neox", {"rope_theta": 7.0}, "rope_theta = 7.0 .* transformers reads only that"),
    ("deepseek_v3", {"head_dim": 7}, "head_dim = 7 in config.json must be 4"),
])  # fmt: skip
def test_entries_that_cannot_be_meant_are_refused_by_name(row: str, entries: dict[str, Any], message: str) -> None:
    stem, fields = TABLE[row]
    config = {**getattr(transformers, f"{stem}Config")(**fields).to_dict(), "rope_parameters": None, **entries}
    with pytest.raises((CheckpointError, InvalidInputError), match=message):
        HookedTransformerConfig(**config_fields(config, "here"), device="cpu")


@pytest.mark.parametrize("row, entry, value, must_be", [
    ("granite", "logits_scaling", None, r"a number \(the default is 1\.0\)"),
    ("granite", "embedding_multiplier", "three", r"a number \(the default is 1\.0\)"),
    ("gemma2", "query_pre_attn_scalar", None, r"a number \(the default is 256\)"),
    ("gemma3", "text_config.query_pre_attn_scalar", None, r"a number \(the default is 256\)"),
    ("falcon_h1", "key_multiplier", None, r"a number \(the default is 1\.0\)"),
    ("falcon_h1", "mamba_n_groups", None, r"a number \(the default is 1\)"),
    ("jamba", "mamba_d_state", None, r"a number \(the default is 16\)"),
    ("nemotron_h", "use_conv_bias", "no", r"true or false \(the default is True\)"),
    ("llama", "num_key_value_heads", "four", r"a number \(the default is 32\)"),
])  # fmt: skip
def test_an_entry_of_another_kind_is_named(row: str, entry: str, value: Any, must_be: str) -> None:
    """Wherever it is that the value does not fit: in the config, in the layers' tables, or in a weight's factor."""
    model = built(*TABLE[row])
    changed_config = model.config.to_dict()
    *path, last = entry.split(".")
    inside = changed_config
    for name in path:
        inside = inside[name]
    inside[last] = value
    model.config.to_dict = lambda: changed_config
    with pytest.raises(CheckpointError, match=rf"hf_model has {re.escape(entry)} = {value!r}, which must be {must_be}"):
        HookedTransformer.from_hf(model)


def test_an_error_over_no_entry_of_another_kind_says_what_it_was() -> None:
    with pytest.raises(CheckpointError, match="of there has an entry of the wrong type or size: 'int' object is not"):
        with naming_entries({"model_type": "of the future"}, "there"):
            iter(3)  # type: ignore[call-overload]


def test_what_transformers_takes_for_a_context_that_no_entry_gives() -> None:
    """Phi 3's class has a default outside the entries on positions, and one outside goes before one inside."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
    given = {**TABLE["phi3"][1], "model_type": "phi3", "num_attention_heads": 2, "num_key_value_heads": 2}
    given |= {"hidden_size": 12, "rope_scaling": {**rope, "original_max_position_embeddings": 8}}
    given.pop("original_max_position_embeddings", None)
    config = transformers.Phi3Config.from_dict(copy.deepcopy(given)).to_dict()
    assert config["rope_parameters"]["original_max_position_embeddings"] == 4096
    assert config_fields(given, "")["longrope_original_ctx_len"] == 4096
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    given = {**TABLE["gpt_oss"][1], "model_type": "gpt_oss", "rope_scaling": rope}
    given |= {"original_max_position_embeddings": 16}
    taken = transformers.GptOssConfig.from_dict(copy.deepcopy(given))
    taken.standardize_rope_params()  # as the model does
    assert taken.rope_parameters["original_max_position_embeddings"] == 16
    assert config_fields(given, "")["yarn_original_max_position_embeddings"] == 16


def test_an_entry_that_transformers_does_not_know_is_named(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    entries = ReadEntries({"model_type": "llama", "color": "red"})
    with caplog.at_level(logging.INFO):
        entries.check_all_read()
    assert "color = 'red', which transformers ignores" in caplog.text
