"""Changed predictions against their definition in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import SetBudget
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.changed_predictions import (
    ChangedPredictions,
    HeadChanges,
    Prediction,
    RowChanges,
    compare,
    compare_rows,
)
from headscope.ops.devices import Tile


def make(rows: int = 40, d_model: int = 6, d_vocab: int = 70, seed: int = 0, **fields: Any) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    dtype = fields.pop("dtype", torch.float32)
    spread = fields.pop("spread", 1.0)
    given = {
        "rows": spread * torch.randn(rows, d_model, generator=generator, dtype=dtype),
        "W_U": torch.randn(d_model, d_vocab, generator=generator, dtype=dtype),
        "offset": torch.randn(d_vocab, generator=generator, dtype=dtype),
        "targets": torch.randint(d_vocab, (rows,), generator=generator),
    }
    return Prediction(**{**given, **fields})


def log_probs(clean: Prediction, rows: Tensor) -> Tensor:
    logits = rows.double() @ clean.W_U.double() + clean.offset.double()
    if clean.soft_cap:
        logits = clean.soft_cap * torch.tanh(logits / clean.soft_cap)
    return logits.log_softmax(-1)


def check(clean: Prediction, changed: Tensor, found: ChangedPredictions, tolerance: float) -> None:
    p, q = log_probs(clean, clean.rows), log_probs(clean, changed)
    rows = torch.arange(len(clean.rows))
    kl = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)
    for mine, right in (
        (found.loss, -p[rows, clean.targets]),
        (found.changed_loss, -q[:, rows, clean.targets]),
        (found.kl, kl),
    ):
        assert mine.shape == right.shape
        assert torch.allclose(mine, right, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[(7, 3, 2), (512, 128, 12)], ids=["small tiles", "default tiles"])
def tiles(request: pytest.FixtureRequest, set_budget: SetBudget) -> None:
    width, rows, changes = request.param
    set_budget(core_tile=Tile(rows, width), changes=changes)


# float32: logits of this size are rounded by 1e-6, and sums of 70 terms add little; float64: the formula itself.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
def test_rows(dtype: torch.dtype, tolerance: float, soft_cap: float, tiles: None) -> None:
    clean = make(dtype=dtype, soft_cap=soft_cap)
    changed = clean.rows + torch.randn(5, *clean.rows.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    check(clean, changed, compare_rows(clean, changed), tolerance)


def test_rows_may_be_transposed_in_memory() -> None:
    clean = make(d_model=16)
    changed = clean.rows[None] + torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(1))
    transposed = Prediction(clean.rows.T.contiguous().T, clean.W_U, clean.offset, clean.targets)
    check(clean, changed, compare_rows(transposed, changed.mT.contiguous().mT), 2e-5)


@pytest.mark.parametrize("n_rows", [3, 40])  # heads go through d_model, or through their rank
@pytest.mark.parametrize("n_values", [1, 2, 15])
def test_heads(n_rows: int, n_values: int, tiles: None) -> None:
    clean = make(rows=n_rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    taken = torch.randn(n_values, 5, n_rows, 4, generator=generator, dtype=torch.float64)
    W_O = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    changed = clean.rows - torch.einsum("vhrd,hdm->vhrm", taken, W_O)
    rows = clean.rows + torch.randn(3, *clean.rows.shape, generator=generator, dtype=torch.float64)
    # Beside other changes, the numbers are the same.
    found, beside = compare(clean, HeadChanges(taken, W_O), RowChanges(clean.rows, rows))
    check(clean, changed.flatten(0, 1), found, 1e-11)
    check(clean, rows, beside, 1e-11)


def test_adversarial_logits(tiles: None) -> None:
    """Masked tokens (a tile of them and more), ties, one token sure beyond doubt, a change that spans 200 nats."""
    clean = make(rows=9, d_vocab=60, seed=3)
    offset = clean.offset.clone()
    offset[10:26] = -torch.inf
    offset[40] = 300.0
    clean.W_U[:, 30:36] = clean.W_U[:, 30:31]
    clean = Prediction(clean.rows, clean.W_U, offset, torch.full((9,), 40))
    changed = torch.stack([clean.rows, 200 * clean.rows, -50 * clean.rows, clean.rows + 1e-4])
    check(clean, changed, compare_rows(clean, changed), 1e-4)


def test_a_masked_target_has_infinite_loss() -> None:
    clean = make(rows=2, d_vocab=5, targets=torch.tensor([1, 1]))
    clean.offset[1] = -torch.inf
    found = compare_rows(clean, clean.rows[None] + 1)
    assert bool(found.loss.isinf().all()) and bool(found.changed_loss.isinf().all())
    assert bool(found.kl.isfinite().all())


@given(
    st.integers(0, 6), st.integers(1, 4), st.integers(1, 40), st.integers(0, 4), st.floats(0.01, 30.0),
    st.sampled_from([0.0, 1.5]), st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=40)
def test_any_shape(
    rows: int, d_model: int, d_vocab: int, n_changes: int, spread: float, soft_cap: float, seed: int
) -> None:
    clean = make(rows, d_model, d_vocab, seed, dtype=torch.float64, spread=spread, soft_cap=soft_cap)
    changed = make(rows * n_changes, d_model, 1, seed + 1, dtype=torch.float64, spread=spread).rows
    changed = changed.view(n_changes, rows, d_model)
    check(clean, changed, compare_rows(clean, changed), 1e-9)


def test_inputs_are_untouched_and_threads_change_nothing() -> None:
    clean = make(rows=300)
    changed = clean.rows + make(rows=300, seed=5).rows.expand(3, -1, -1)
    before = [value.clone() for value in (clean.rows, clean.W_U, clean.offset, changed)]
    wanted = compare_rows(clean, changed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        found = compare_rows(clean, changed)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found.kl, wanted.kl) and torch.equal(found.changed_loss, wanted.changed_loss)
    for value, kept in zip((clean.rows, clean.W_U, clean.offset, changed), before, strict=True):
        assert torch.equal(value, kept)


def test_targets_out_of_range_are_told() -> None:
    with pytest.raises(InvalidInputError, match="targets must be between 0 and d_vocab - 1 = 4"):
        compare_rows(make(rows=1, d_vocab=5, targets=torch.tensor([5])), torch.zeros(1, 1, 6))
