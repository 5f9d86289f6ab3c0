"""Names and configs without weights are those that loading a model gives."""

import dataclasses
from pathlib import Path

import pytest
from small_models import save_checkpoint

from headscope import HookedTransformer
from headscope.compat.loading import (
    MODEL_ALIASES,
    OFFICIAL_MODEL_NAMES,
    get_official_model_name,
    get_pretrained_model_config,
)
from headscope.errors import InvalidInputError


@pytest.mark.parametrize("first_n_layers", [None, 1])
@pytest.mark.parametrize("fold_ln", [True, False])
def test_the_config_is_the_loaded_models(tmp_path: Path, fold_ln: bool, first_n_layers: int | None) -> None:
    for name in ("headscope-demo", str(save_checkpoint(tmp_path / "model"))):
        options = {"first_n_layers": first_n_layers, "n_ctx": 8, "default_prepend_bos": False, "fold_ln": fold_ln}
        loaded = HookedTransformer.from_pretrained(name, **options).cfg
        cfg = get_pretrained_model_config(name, **options)
        assert dataclasses.asdict(cfg) == dataclasses.asdict(loaded)
        assert cfg.normalization_type == ("LNPre" if fold_ln else "LN") and cfg.n_ctx == 8


def test_every_alias_has_its_official_name() -> None:
    for official, aliases in MODEL_ALIASES.items():
        assert official in OFFICIAL_MODEL_NAMES
        assert {get_official_model_name(name) for name in [official, *aliases, official.upper()]} == {official}


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown model 'gtp2'. Did you mean 'gpt2'"):
        get_official_model_name("gtp2")
    with pytest.raises(InvalidInputError, match="n_ctx must be between 1 and"):
        get_pretrained_model_config("headscope-demo", n_ctx=0)
    with pytest.raises(InvalidInputError, match="first_n_layers must be between 1 and"):
        get_pretrained_model_config("headscope-demo", first_n_layers=9)
