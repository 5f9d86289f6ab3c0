"""Maps of head types, read back from their traces."""

import numpy as np
import pytest
import torch
from induction_model import INDUCTION, PREVIOUS, induction_model
from name_moving_model import MOVER, name_moving_model, name_task
from tiny import tiny_model

from headscope.analysis.heads.types import detect_heads
from headscope.errors import InvalidInputError
from headscope.views.figures.head_types import head_type_maps, k_composition_maps


@pytest.fixture(scope="module")
def induction():
    return detect_heads(induction_model(), progress=False)


@pytest.fixture(scope="module")
def moving():
    return detect_heads(name_moving_model(), task=name_task(), length=10, progress=False)


def frames(figure) -> list[tuple[str, float, float]]:
    """Axis, layer and head of each outlined cell."""
    return [(shape.xref, shape.y0 + 0.5, shape.x0 + 0.5) for shape in figure.layout.shapes]


def test_labeled_heads_are_outlined(induction):
    figure = head_type_maps(induction)
    assert [trace.z.shape for trace in figure.data] == [(2, 2)] * 3
    np.testing.assert_allclose(figure.data[0].z, induction.scores[0].double().numpy())
    assert frames(figure) == [("x", *PREVIOUS), ("x3", *INDUCTION)]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0.0, 1.0)


def test_pointing_at_a_head_tells_what_its_label_rests_on(induction, moving):
    cell = head_type_maps(induction).data[2].customdata[1][0]
    assert cell[0] == "1.0" and float(cell[1]) == pytest.approx(float(induction.controls[2, 1, 0]), abs=1e-3)
    assert "copying +1.00" in cell[3] and "K-composition with 0.1" in cell[3]
    figure = head_type_maps(moving, unit="logits")
    titles = [each.text for each in figure.layout.annotations]
    at = titles.index("name mover")
    assert "S-inhibition" in titles and "backup name mover" in titles
    assert figure.data[at].customdata[MOVER[0]][MOVER[1]][3].startswith("<br>attention end to IO +1.00")
    assert len(frames(figure)) == 4


def test_kinds_that_were_not_measured_are_left_out(induction):
    found = detect_heads(name_moving_model(), task=name_task(corrupted=False), length=10, progress=False)
    assert "S-inhibition" not in [each.text for each in head_type_maps(found, unit="logits").layout.annotations]
    with pytest.raises(InvalidInputError, match="'metres'; there is attention and logits"):
        head_type_maps(induction, unit="metres")


def test_k_composition_of_induction_heads(induction):
    figure = k_composition_maps(induction)
    assert len(figure.data) == 1 and figure.layout.annotations[0].text == "keys of 1.0"
    np.testing.assert_allclose(figure.data[0].z, induction.composition[0, :1].double().numpy())
    assert frames(figure) == [("x", *PREVIOUS)]
    none = detect_heads(tiny_model(n_ctx=12, dtype=torch.float32), n_sequences=4, progress=False)
    with pytest.raises(InvalidInputError, match="no head is an induction head"):
        k_composition_maps(none)
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        k_composition_maps(induction, k=0)
