"""The tiled top k of perturbed predictions against all logits at a time, in float64."""

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import SetBudget
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.devices import Tile, budget
from headscope.ops.lens_top import LensTop, TopProblem, lens_top


def make_problem(
    *,
    layers: int = 2,
    heads: int = 3,
    rows: int = 5,
    d_vocab: int = 23,
    d_head: int = 3,
    soft_cap: float = 0.0,
    change: float = 1.0,
    scale: float = 1.0,
    mean: float = 0.0,
    masked: int = 0,
    whole: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> TopProblem:
    """Random rows and weights; `whole` rounds them to whole numbers, so that logits tie."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (values.round() if whole else values).to(dtype)

    offset, W_U = random(d_vocab), random(7, d_vocab) + mean
    if whole:  # with their mean taken away they would not add up exactly: here it is 0
        half = d_vocab // 2
        W_U[:, half : 2 * half], W_U[:, 2 * half :] = -W_U[:, :half], 0.0
    offset[torch.randperm(d_vocab, generator=generator)[:masked]] = -torch.inf
    return TopProblem(
        rows=scale * random(rows, 7),
        heads=change * random(layers, heads, rows, d_head),
        W_O=random(layers, heads, d_head, 7),
        W_U=W_U,
        offset=offset,
        targets=torch.randint(0, d_vocab, (rows,), generator=generator),
        soft_cap=soft_cap,
    )


def naive(problem: TopProblem, k: int) -> LensTop:
    """Every logit of every prediction, sorted."""
    W_U, offset, final = problem.W_U.double(), problem.offset.double(), problem.rows.double()
    states = [final]
    if problem.heads is not None:
        for z, W_O in zip(problem.heads.double(), problem.W_O.double(), strict=True):
            states += [final - z[head] @ W_O[head] for head in range(len(z))]
    logits = torch.stack(states) @ W_U + offset
    if problem.soft_cap:
        logits = problem.soft_cap * torch.tanh(logits / problem.soft_cap)
    tokens = logits.sort(dim=-1, descending=True, stable=True).indices
    log_probs = logits.log_softmax(-1).gather(-1, tokens)
    place = torch.full(logits.shape[:2], k)
    for at in range(k):
        place[(tokens[..., at] == problem.targets) & log_probs[..., at].isfinite()] = at
    return LensTop(log_probs[..., :k], place)


def compare(found: LensTop, wanted: LensTop, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=tolerance)
    assert torch.equal(found.place, wanted.place)


@pytest.fixture(autouse=True)
def small_tiles(set_budget: SetBudget) -> None:
    set_budget(core_tile=Tile(3, 5))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.fixed_dictionaries(
        {
            "layers": st.integers(1, 3),
            "heads": st.integers(1, 4),
            "rows": st.integers(1, 9),
            "d_vocab": st.integers(1, 40),
            "d_head": st.integers(1, 12),
            "change": st.sampled_from([0.0, 1.0, 30.0]),
            "scale": st.sampled_from([0.0, 1.0, 50.0]),
            "mean": st.sampled_from([0.0, 20.0]),
            "seed": st.integers(0, 10_000),
        }
    ),
    k=st.integers(1, 6),
    masked=st.floats(0, 0.9),
)
def test_equals_all_logits_sorted(shape: dict[str, Any], k: int, masked: float) -> None:
    problem = make_problem(**shape, masked=min(int(masked * shape["d_vocab"]), shape["d_vocab"] - 1))
    k = min(k, shape["d_vocab"])
    compare(lens_top(problem, k=k), naive(problem, k), 1e-9)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("rows", [2, 9])
def test_a_soft_cap_comes_after_the_sum(rows: int, k: int) -> None:
    # A mean over tokens, which the softmax alone would not see, is seen by the cap.
    problem = make_problem(rows=rows, soft_cap=6.0, mean=0.5)
    compare(lens_top(problem, k=k), naive(problem, k))


@pytest.mark.parametrize("k", [1, 2, 5, 23])
@pytest.mark.parametrize("seed", range(6))
def test_ties_go_to_the_lower_token(k: int, seed: int) -> None:
    problem = make_problem(rows=40, whole=True, masked=4, seed=seed, d_vocab=32)
    found, wanted = lens_top(problem, k=k), naive(problem, k)
    compare(found, wanted)
    best = naive(problem, 2).log_probs
    assert int((best[..., 0] == best[..., 1]).sum()) > 5, "nothing ties"


def test_where_all_tokens_are_alike_the_first_are_predicted() -> None:
    problem = make_problem(rows=23, scale=0.0, change=0.0)
    problem = dataclasses.replace(problem, offset=torch.zeros(23, dtype=torch.float64), targets=torch.arange(23))
    found = lens_top(problem, k=7)
    assert torch.equal(found.place, torch.arange(23).clamp(max=7).expand(7, -1))


def test_a_masked_target_has_no_place_though_fewer_tokens_than_k_are_left() -> None:
    problem = make_problem(rows=23, masked=20)
    problem = dataclasses.replace(problem, targets=torch.arange(23))
    found = lens_top(problem, k=9)
    compare(found, naive(problem, 9))
    masked = problem.offset.isinf()
    assert torch.equal(found.place == 9, masked.expand(7, -1)) and bool((found.log_probs[..., 3:] == -torch.inf).all())


def compare_rounded(found: LensTop, problem: TopProblem, k: int, tolerance: float) -> None:
    """Compare numbers in float32, in which tokens that are nearly as likely may change places."""
    d_vocab = problem.W_U.shape[1]
    every = naive(problem, d_vocab)
    torch.testing.assert_close(found.log_probs, every.log_probs[..., :k], rtol=0, atol=tolerance)
    known = every.place < d_vocab
    assert bool((found.place[~known] == k).all())
    own = every.log_probs.gather(-1, every.place.clamp(max=d_vocab - 1)[..., None])
    least, most = ((every.log_probs > own + by).sum(-1) for by in (tolerance, -tolerance))
    place = found.place[known]
    assert bool(((place >= least[known].clamp(max=k)) & (place < most[known].clamp(max=k + 1))).all())


KERNELS = ["torch", "cpu", "accelerator"]


@contextmanager
def kernels_are(name: str) -> Iterator[None]:
    """Compute in float32 with these kernels, or in an accelerator's order."""
    on_accelerator = name == "accelerator"
    with pytest.MonkeyPatch.context() as patch, budget(launch_bytes=4000) if on_accelerator else nullcontext():
        patch.setenv("HEADSCOPE_KERNELS", "torch" if on_accelerator else name)
        yield


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=60, deadline=None)
@given(
    shape=st.fixed_dictionaries(
        {
            "layers": st.integers(1, 2),
            "heads": st.integers(1, 3),
            "rows": st.integers(1, 40),  # heads go through d_model, or through their rank
            "d_vocab": st.integers(1, 120),
            "d_head": st.integers(1, 5),
            "soft_cap": st.sampled_from([0.0, 0.0, 20.0]),
            "change": st.sampled_from([0.0, 1.0, 30.0]),
            "scale": st.sampled_from([0.0, 1.0, 50.0, 1e5]),
            "whole": st.booleans(),
            "seed": st.integers(0, 10_000),
        }
    ),
    tile=st.builds(Tile, st.integers(1, 40), st.integers(1, 130)),
    k=st.integers(1, 200),
    masked=st.floats(0, 1.0),
)
def test_float32_by_each_set_of_kernels(kernels: str, shape: dict[str, Any], tile: Tile, k: int, masked: float) -> None:
    """Ties, huge logits, masked tokens; one token only, tiles that are not filled, all tokens ordered, many of them."""
    d_vocab = shape["d_vocab"]
    problem = make_problem(**shape, masked=min(int(masked * d_vocab), d_vocab - 1), dtype=torch.float32)
    k = min(k, d_vocab)
    with kernels_are(kernels), budget(core_tile=tile):
        found = lens_top(problem, k=k)
    size = float((problem.rows.double() @ problem.W_U.double()).abs().max()) + 50 * shape["change"]
    if shape["whole"] and shape["soft_cap"] == 0 and size < 2**20:  # exact: ties are, too
        compare(found, naive(problem, k), 1e-6 * (1 + size))
    else:
        compare_rounded(found, problem, k, 2e-6 * (10 + size))


@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_that_are_not_finite_are_not_hidden(kernels: str) -> None:
    problem = make_problem(rows=4, dtype=torch.float32)
    problem.rows[1, 0], problem.rows[2, 3] = torch.nan, torch.inf
    with kernels_are(kernels):
        found = lens_top(problem, k=2)
    assert found.log_probs.isnan().any(-1).any(0).tolist() == [False, True, True, False]


def test_threads_change_nothing(set_budget: SetBudget) -> None:
    set_budget(core_tile=Tile(16, 48))
    problem = make_problem(rows=100, d_vocab=500, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(lens_top(problem, k=5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].log_probs, found[1].log_probs) and torch.equal(found[0].place, found[1].place)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_float32_at_full_tiles(k: int, threads: int, set_budget: SetBudget) -> None:
    set_budget(core_tile=Tile(128, 512))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        problem = make_problem(rows=150, d_vocab=2500, scale=2.0, dtype=torch.float32)
        compare(lens_top(problem, k=k), naive(problem, k), 1e-4)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_without_heads_only_the_final_prediction() -> None:
    problem = dataclasses.replace(make_problem(), heads=None)
    found = lens_top(problem, k=2)
    assert found.log_probs.shape == (1, 5, 2)
    compare(found, naive(problem, 2))


@pytest.mark.parametrize("k", [0, 24])
def test_k_out_of_range_is_told(k: int) -> None:
    with pytest.raises(InvalidInputError, match=f"k must be between 1 and d_vocab = 23; got {k}"):
        lens_top(make_problem(), k=k)


def test_a_target_out_of_range_is_told() -> None:
    problem = dataclasses.replace(make_problem(), targets=torch.tensor([0, 1, 2, 3, 23]))
    with pytest.raises(InvalidInputError, match="targets must be between 0 and d_vocab - 1 = 22"):
        inspect.unwrap(lens_top)(problem)
