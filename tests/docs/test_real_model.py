"""The results that the notebook on the real model shows where that model is not."""

import json
from pathlib import Path

import pytest

from headscope import analysis
from headscope.analysis.core.result import Result

SAVED = Path(analysis.__file__).parents[1] / "assets" / "notebooks" / "real-model"
KINDS = {
    "attribution": analysis.Attribution,
    "entropy": analysis.EntropyResult,
    "faithfulness": analysis.Faithfulness,
    "patching": analysis.PatchingResult,
    "scores": analysis.HeadScores,
    "suppression": analysis.CopySuppression,
}


def test_there_is_a_result_of_each_kind_and_what_it_was_measured_on() -> None:
    assert {path.stem for path in SAVED.glob("*.safetensors")} == set(KINDS)
    assert set(json.loads((SAVED / "about.json").read_text(encoding="utf-8"))) == {"date", "machine"}


@pytest.mark.parametrize("name", KINDS)
def test_a_result_loads_and_is_of_that_model(name: str) -> None:
    kind: type[Result] = KINDS[name]
    result = kind.load(SAVED / f"{name}.safetensors")
    assert result.info.model.startswith("SmolLM2-135M")
    measured = f'"{name}", {kind.__name__},'
    text = " ".join((SAVED.parent / "real-model.md").read_text(encoding="utf-8").split())
    assert measured in text  # the notebook loads it as what it is
