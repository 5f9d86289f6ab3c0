"""The tiled entropies of perturbed predictions against the plain ones, in float64."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import SetBudget
from torch import Tensor
from torch.testing import assert_close

from headscope.ops.devices import Tile
from headscope.ops.kernels import products
from headscope.ops.kernels.interface import BITS, SAFE_BITS
from headscope.ops.lens_entropy import LensEntropies, lens_entropies
from headscope.ops.lens_problem import Chain, Gains, LensProblem, Steps


def make_problem(
    *,
    layers: int = 2,
    heads: int = 3,
    rows: int = 5,
    d_vocab: int = 23,
    mlps: bool = True,
    mid: bool = True,
    gains: bool = False,
    soft_cap: float = 0.0,
    change: float = 1.0,
    scale: float = 1.0,
    mean: float = 0.0,
    chained: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LensProblem:
    """Random rows and weights; `change` scales what components write, `scale` the states (`chained`: the first)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    d_model, d_head, components = 7, 3, heads + mlps
    step = 2 if mid else 1

    def gain(*shape: int) -> Tensor:
        return 0.5 + torch.rand(*shape, generator=generator).to(dtype)

    problem = LensProblem(
        states=scale * random(step * layers + 1, rows, d_model),
        head_base=tuple(range(0, step * layers, step)),
        mlp_base=tuple(range(step - 1, step * layers, step)) if mlps else (),
        heads=change * random(layers, heads, rows, d_head),
        W_O=random(layers, heads, d_head, d_model),
        mlps=change * random(layers, rows, d_model) if mlps else None,
        W_U=random(d_model, d_vocab) + mean,
        offset=random(d_vocab),
        final_offset=random(d_vocab),
        soft_cap=soft_cap,
        gains=Gains(gain(step * layers + 1, rows), gain(layers, components, rows), gain(layers, components, rows))
        if gains
        else None,
    )
    if not chained:
        return problem
    assert problem.mlps is not None
    rests = Chain(random(layers, d_model), random(layers, d_model), gain(rows))
    states = [problem.states[0]]
    for layer in range(layers):
        heads_write = torch.einsum("hre,hed->rd", problem.heads[layer], problem.W_O[layer])
        middle = states[-1] + heads_write + rests.by[:, None] * rests.attn_rest[layer]
        end = middle + problem.mlps[layer] + rests.by[:, None] * rests.mlp_rest[layer]
        states += [middle, end] if mid else [end]
    return dataclasses.replace(problem, states=torch.stack(states), chain=rests)


def naive(problem: LensProblem) -> LensEntropies:
    """One component and all logits at a time."""
    W_U = problem.W_U.double()
    gains = problem.gains

    def entropy(linear: Tensor, gain: Tensor | None, *, final: bool) -> Tensor:
        logits = linear if gain is None else linear * gain.double()[:, None]
        logits = logits + (problem.final_offset if final else problem.offset).double()
        if problem.soft_cap:
            logits = problem.soft_cap * torch.tanh(logits / problem.soft_cap)
        log_probs = logits.log_softmax(-1)
        return -torch.nan_to_num(log_probs.exp() * log_probs, neginf=0.0, nan=0.0).sum(-1)

    states = [state.double() @ W_U for state in problem.states]
    last = len(states) - 1
    own = [
        entropy(state, None if gains is None else gains.states[at], final=at == last) for at, state in enumerate(states)
    ]
    plus, minus = [], []
    for layer in range(len(problem.heads)):
        written = [(problem.head_base[layer], head.double() @ W_O.double())
                   for head, W_O in zip(problem.heads[layer], problem.W_O[layer], strict=True)]  # fmt: skip
        if problem.mlps is not None:
            written.append((problem.mlp_base[layer], problem.mlps[layer].double()))
        added, taken = [], []
        for component, (base, rows) in enumerate(written):
            change = rows @ W_U
            plus_gain = None if gains is None else gains.plus[layer, component]
            minus_gain = None if gains is None else gains.minus[layer, component]
            added.append(entropy(states[base] + change, plus_gain, final=False))
            taken.append(entropy(states[-1] - change, minus_gain, final=True))
        plus.append(torch.stack(added))
        minus.append(torch.stack(taken))
    return LensEntropies(torch.stack(own), torch.stack(plus), torch.stack(minus))


def compare(problem: LensProblem, tolerance: float) -> None:
    found, wanted = lens_entropies(problem), naive(problem)
    for name in ("states", "plus", "minus"):
        value, right = getattr(found, name), getattr(wanted, name)
        assert value.dtype == torch.float64 and value.shape == right.shape
        difference = float((value - right).abs().max()) if right.numel() else 0.0
        assert difference <= tolerance, f"{name} is off by {difference}"


@pytest.fixture(
    params=[{"core_tile": Tile(2, 4)}, {"core_tile": Tile(64, 1024)}, {"core_tile": Tile(5, 23)}, {"like": "cuda"},
            {"like": "cuda", "core_tile": Tile(2, 1), "launch_bytes": 4}],
    ids=["small tiles", "default tiles", "exact tiles", "accelerator", "accelerator, small tiles"],
)  # fmt: skip
def tiles(request: pytest.FixtureRequest, set_budget: SetBudget) -> None:
    set_budget(**request.param)


@pytest.mark.parametrize("kind", [
    {}, {"mlps": False, "mid": False}, {"mid": False}, {"gains": True}, {"gains": True, "mlps": False, "mid": False},
    {"gains": True, "mid": False}, {"soft_cap": 3.0}, {"soft_cap": 0.5, "gains": True}, {"mean": 5.0},
    {"layers": 1, "heads": 1, "rows": 1}, {"d_vocab": 1}, {"d_vocab": 2}, {"mean": 5.0, "soft_cap": 2.0},
    {"chained": True}, {"chained": True, "mid": False}, {"chained": True, "gains": True, "layers": 3},
    {"chained": True, "soft_cap": 3.0}, {"chained": True, "mean": 5.0, "layers": 1},
], ids=str)  # fmt: skip
def test_entropies_equal_the_plain_ones(kind: dict[str, Any], tiles: None) -> None:
    compare(make_problem(**kind, dtype=torch.float64), 1e-10)
    compare(make_problem(**kind), 2e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0, 3000.0])
@pytest.mark.parametrize("kind", [{}, {"gains": True}, {"soft_cap": 3.0}], ids=str)
def test_mlps_as_steps_of_the_chain(kind: dict[str, Any], scale: float) -> None:
    """With logits of thousands, which are not chained, and without."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5 + 4e-6 * scale)):
        problem = make_problem(**kind, chained=True, scale=scale, rows=9, dtype=dtype)
        assert problem.chain is not None
        stepped = lens_entropies(dataclasses.replace(problem, mlps=Steps(problem.states, problem.chain)))
        wanted = naive(problem)
        for name in ("states", "plus", "minus"):
            assert_close(getattr(stepped, name), getattr(wanted, name), atol=tolerance, rtol=0)


@pytest.mark.parametrize("change", [1e-4, 1.0, 3.0, 6.0, 30.0, 300.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0])
def test_changes_of_any_size(change: float, scale: float, tiles: None) -> None:
    """Logits of thousands keep their entropy to what float32 logits can carry."""
    problem = make_problem(change=change, scale=scale)
    largest = float((problem.states.double() @ problem.W_U.double()).abs().max())
    written = problem.heads.double() @ problem.W_O.double() @ problem.W_U.double()
    compare(problem, 2e-5 + 1e-6 * (largest + float(written.abs().max())))
    compare(make_problem(change=change, scale=scale, dtype=torch.float64), 1e-9)


@pytest.mark.parametrize("above", [0.9, 1.1])
def test_on_either_side_of_the_safe_range(above: float, tiles: None) -> None:
    problem = make_problem()
    logits = problem.heads @ problem.W_O @ (problem.W_U - problem.W_U.mean(-1, keepdim=True))
    assert problem.mlps is not None
    mlps = problem.mlps @ (problem.W_U - problem.W_U.mean(-1, keepdim=True))
    by = above * SAFE_BITS / BITS
    problem = dataclasses.replace(
        problem, heads=problem.heads * by / logits.abs().max(), mlps=problem.mlps * by / mlps.abs().max()
    )
    compare(problem, 1e-4)


def test_the_worst_that_the_safe_range_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that is sure of one token, and a component that takes all its logit away."""
    d_vocab = 2000
    for high in (5.0, 20.0, 29.0):
        for certain in (40.0, 90.0, 150.0, 1e4):
            W_U = torch.zeros(2, d_vocab)
            W_U[0, 0], W_U[1, 1:] = 1.0, torch.linspace(-1.0, 1.0, d_vocab - 1)
            problem = LensProblem(
                states=torch.tensor([[[certain, 0.0]], [[certain, 1.0]], [[certain, 2.0]]]),
                head_base=(0,),
                mlp_base=(1,),
                heads=torch.tensor([[[[-high]]]]),
                W_O=torch.tensor([[[[1.0, 0.0]]]]),
                mlps=torch.tensor([[[0.0, high]]]),
                W_U=W_U,
                offset=torch.zeros(d_vocab),
                final_offset=torch.zeros(d_vocab),
            )
            compare(problem, 1e-4)


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adversarial_logits(chained: bool, dtype: torch.dtype, tiles: None) -> None:
    """Ties, a token sure beyond doubt, a masked part of the vocabulary, a head that spans 200 nats: all at once."""
    problem = make_problem(chained=chained, dtype=dtype, layers=3, rows=7, seed=3)
    problem.W_U[:, 5:9] = problem.W_U[:, 5:6]  # ties
    offset, final_offset = problem.offset.clone(), problem.final_offset.clone()
    offset[5:9] = offset[5]
    offset[10:14], final_offset[10:20] = -torch.inf, -torch.inf  # more than a tile, where tiles are small
    final_offset[2] = 500.0
    problem.heads[1, 0] *= 200 / (problem.heads[1, 0] @ problem.W_O[1, 0] @ problem.W_U).abs().max()
    if chained:
        states = list(problem.states[:1])
        assert problem.chain is not None and problem.mlps is not None
        for layer in range(3):
            written = torch.einsum("hre,hed->rd", problem.heads[layer], problem.W_O[layer])
            by = problem.chain.by[:, None]
            states.append(states[-1] + written + by * problem.chain.attn_rest[layer])
            states.append(states[-1] + problem.mlps[layer] + by * problem.chain.mlp_rest[layer])
        problem = dataclasses.replace(problem, states=torch.stack(states))
    problem = dataclasses.replace(problem, offset=offset, final_offset=final_offset)
    compare(problem, 1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_and_are_left_as_they_were(threads: int, set_budget: SetBudget) -> None:
    set_budget(core_tile=Tile(8, 512))
    problem = make_problem(rows=50, d_vocab=300, chained=True)
    wanted = lens_entropies(problem)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = lens_entropies(problem)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(getattr(found, name), getattr(wanted, name)) for name in ("states", "plus", "minus"))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_rounded_heads_stay_near(has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of 8 bits, from factors of 8 bits, are off by some 2^-8 of themselves, and means even it out.

    So they are where the processor has no instructions for these factors, and they are multiplied in float32.
    """
    monkeypatch.setattr(products, "_has_bfloat16", lambda: has_bfloat16)
    problem = make_problem(rows=200, d_vocab=3000, chained=True, change=0.3)
    found, wanted = lens_entropies(problem, precision="bfloat16"), naive(problem)
    compare(problem, 2e-5)
    largest = float((problem.heads @ problem.W_O @ problem.W_U).abs().max())
    for name in ("states", "plus", "minus"):
        difference = getattr(found, name) - getattr(wanted, name)
        assert float(difference.mean(-1).abs().max()) < 2e-3, name
        assert (0.0 if name == "states" else 1e-6) < float(difference.abs().max()) < 2**-7 * largest, name


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 40), st.booleans(), st.booleans(),
    st.booleans(), st.booleans(), st.sampled_from([0.0, 2.0]), st.floats(0.01, 20.0), st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=25)
def test_any_shape(
    layers: int,
    heads: int,
    rows: int,
    d_vocab: int,
    mlps: bool,
    mid: bool,
    gains: bool,
    chained: bool,
    soft_cap: float,
    change: float,
    seed: int,
) -> None:
    compare(
        make_problem(
            layers=layers, heads=heads, rows=rows, d_vocab=d_vocab, mlps=mlps, mid=mid and mlps, gains=gains,
            soft_cap=soft_cap, change=change, chained=chained and mlps, dtype=torch.float64, seed=seed,
        ),
        1e-9,
    )  # fmt: skip


def test_no_rows_and_untouched_inputs() -> None:
    empty = lens_entropies(make_problem(rows=0))
    assert empty.states.shape == (5, 0) and empty.plus.shape == (2, 4, 0)
    problem = make_problem()
    before = {name: value.clone() for name, value in vars(problem).items() if isinstance(value, Tensor)}
    lens_entropies(problem)
    for name, value in before.items():
        assert torch.equal(getattr(problem, name), value), name
