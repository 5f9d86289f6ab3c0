"""The curve of what circuits keep, read back from its traces."""

from typing import Any

import pytest
import torch

from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.analysis.core.result import RunInfo
from headscope.views.figures.faithfulness import faithfulness_curve


def faithfulness(sizes: list[int], **fields: Any) -> Faithfulness:
    """Circuits of some sizes that keep ever more of two prompts."""
    whole, nothing = torch.tensor([3.0, 5.0]), torch.tensor([-1.0, 1.0])
    kept = torch.stack([nothing + (whole - nothing) * size / max(sizes) for size in sizes])
    values: dict[str, Any] = {
        "info": RunInfo("m", (), "two <b>prompts</b>", 2, 10), "sizes": torch.tensor(sizes),
        "shares": torch.tensor(sizes) / 200, "metrics": kept.mean(1), "per_prompt": kept,
        "random": torch.zeros(2, len(sizes)), "whole": whole, "nothing": nothing,
        "ranking": tuple(f"0.{at}" for at in range(max(sizes))), "n_parts": 200, "level": "nodes", "ablation": "patch",
        "has_answers": True,
    }  # fmt: skip
    return Faithfulness(**{**values, **fields})


def test_the_curve_has_the_numbers_of_the_result() -> None:
    found = faithfulness([1, 2, 8])
    figure = faithfulness_curve(found)
    whole, circuit, random = figure.data
    assert list(whole.x) == [1, 8] and list(whole.y) == [1, 1]
    assert list(circuit.x) == [1, 2, 8] and list(circuit.y) == pytest.approx([0.125, 0.25, 1.0])
    assert list(circuit.error_y.array) == pytest.approx(found.errors.tolist())
    assert list(random.y) == [0.0, 0.0, 0.0] and "at random" in random.name
    assert circuit.text[0] == "1 head: 0.125 ± 0.000<br>metric +0.500, right in 50%<br>with 0.0"
    assert circuit.text[2].endswith("<br>with 0.2, 0.3, 0.4 and 3 more")
    assert figure.layout.xaxis.title.text == "heads kept, of 200" and figure.layout.xaxis.type == "linear"
    assert "<b>prompts" not in str(figure.layout.title.text)


def test_many_sizes_are_on_a_logarithmic_axis_and_random_ones_may_be_missing() -> None:
    figure = faithfulness_curve(faithfulness([1, 10, 100], random=None, level="edges"), title="Edges")
    assert figure.layout.xaxis.type == "log" and len(figure.data) == 2
    assert figure.layout.xaxis.title.text == "edges kept, of 200" and "Edges" in figure.layout.title.text
    assert faithfulness_curve(faithfulness([0, 10, 100])).layout.xaxis.type == "linear"
