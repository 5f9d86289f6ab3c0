"""Every set of kernels against plain float64 formulas, on awkward tiles, and the choice between them."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_process import run_program
from torch import Tensor

from headscope.errors import InvalidInputError, MissingDependencyError
from headscope.ops.activations import cap_logits
from headscope.ops.devices import budget
from headscope.ops.kernels import dispatch
from headscope.ops.kernels.accelerator_kernels import AcceleratorKernels
from headscope.ops.kernels.cpu_kernels import CpuKernels
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.interface import SAFE_BITS, Factors, Kernels, Top
from headscope.ops.kernels.torch_kernels import TorchKernels

# What Triton's interpreter makes numpy say of infinities, which are not hidden.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|All-NaN slice) encountered:RuntimeWarning")

KERNELS = [TorchKernels, CpuKernels, AcceleratorKernels]
if importlib.util.find_spec("triton"):
    KERNELS.append(dispatch._fused("triton")[0])
# Relative: a sum of T float32 terms, each with a 2^x off by at most 2e-7.
TOLERANCE = 2e-6


def moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return `log2 Z` and entropy (in bits) of float64 logits in bits, any of which may be minus infinity."""
    log_z = (logits * torch.log(torch.tensor(2.0))).logsumexp(-1) / torch.log(torch.tensor(2.0))
    log_p = logits - log_z[..., None]
    return log_z, -torch.nan_to_num(log_p.exp2() * log_p, nan=0.0, neginf=0.0).sum(-1)


def of_sums(shift: Tensor, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return shift.double() + z.double().log2(), z.double().log2() - s.double() / z.double()


def tiles(seed: int, rows: int, tile: int, changes: int, spread: float, *, masked: bool) -> tuple[Tensor, ...]:
    """Logits of two states and changes to them; `spread` is how far the largest change goes, in bits."""
    generator = torch.Generator().manual_seed(seed)
    base, final = 5 * torch.randn(2, rows, tile, generator=generator)
    added = torch.randn(changes, rows, tile, generator=generator)
    added *= spread / added.abs().max()
    if masked and tile > 1:
        base[:, 0] = -torch.inf
        final[:, -1] = -torch.inf
    return base, final, added


def close(found: Tensor, wanted: Tensor, by: float) -> bool:
    return bool(((found.double() - wanted).abs() <= by * (1 + wanted.abs())).all())


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 70), st.integers(1, 4),
    st.sampled_from([1e-3, 1.0, 0.999 * SAFE_BITS, 1.001 * SAFE_BITS, 200.0]), st.booleans(),
)  # fmt: skip
def test_sums_equal_plain_ones(
    kernels: type[Kernels], seed: int, rows: int, tile: int, changes: int, spread: float, masked: bool
) -> None:
    base, final, added = tiles(seed, rows, tile, changes, spread, masked=masked)
    set_of = kernels()
    states = [set_of.factors(logits.clone(), name) for logits, name in ((base, "base"), (final, "final"))]
    for state, logits in zip(states, (base, final), strict=True):
        log_z, entropy = moments(logits.double())
        found_z, found_entropy = of_sums(state.shift, state.z, state.s)
        assert close(found_z, log_z, TOLERANCE) and close(found_entropy, entropy, TOLERANCE)

    out = torch.full((3, 2, changes, rows), torch.nan)
    set_of.changes(added.clone(), *states, out)
    by = TOLERANCE * (1 + spread)  # float32 rounds a changed logit of 200 by 1e-5
    for sign, changed in enumerate((base.double() + added, final.double() - added)):
        log_z, entropy = moments(changed)
        found_z, found_entropy = of_sums(*out[:, sign])
        assert close(found_z, log_z, by) and close(found_entropy, entropy, by)

    sums = torch.full((3, changes, rows), torch.nan)
    set_of.removals(added.clone(), states[1], sums)
    log_z, _ = moments(final.double() - added)
    assert close(sums[0].double() + sums[1].double().log2(), log_z, by)
    weights = (final.double() - states[1].shift.double()[:, None]).exp2()
    assert close(sums[2], (weights * added.double()).sum(-1), by)


@pytest.mark.parametrize("cap", [2.0, 30.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_soft_cap_of_any_size(kernels: type[Kernels], cap: float) -> None:
    """Logits from a thousandth of a bit, which a large cap leaves as they are, to far beyond a small one."""
    linear, _, added = tiles(0, 4, 300, 2, 3.0, masked=False)
    linear *= torch.tensor([1e-3, 0.1, 1.0, 4.0])[:, None]
    added *= torch.tensor([1e-3, 0.1, 1.0, 4.0])[:, None]
    out = torch.full((3, 2, 4), torch.nan)
    kernels().formed(added.clone(), -1, linear, torch.zeros(300), cap, None, out)
    log_z, entropy = moments(cap * torch.tanh((linear.double() - added.double()) / cap))
    found_z, found_entropy = of_sums(*out)
    assert close(found_z, log_z, TOLERANCE) and close(found_entropy, entropy, TOLERANCE)


@pytest.mark.parametrize("kernels", KERNELS)
def test_what_is_not_finite_is_not_hidden(kernels: type[Kernels]) -> None:
    base, final, added = tiles(0, 3, 20, 2, 1.0, masked=False)
    added[0, 1, 5], added[1, 2, 6] = torch.nan, torch.inf
    set_of = kernels()
    out = torch.zeros(3, 2, 2, 3)
    set_of.changes(added, set_of.factors(base, "base"), set_of.factors(final, "final"), out)
    every_sum = out[1:].isfinite().all(0).all(0)
    assert every_sum.tolist() == [[True, False, True], [True, True, False]]
    assert not out[1:, :, 0, 1].isfinite().any(), "of Z too"

    removed = torch.zeros(1, 3, 20)
    removed[0, 1, 5] = torch.nan
    sums = torch.zeros(3, 1, 3)
    set_of.removals(removed, set_of.factors(base, "base"), sums)
    assert sums[1:].isfinite().all(0).tolist() == [[True, False, True]]

    logits = torch.zeros(3, 20)
    logits[1, 3], logits[2, 4] = torch.nan, -torch.nan  # sums of infinities are NaN of either sign
    state = set_of.factors(logits, "base")
    assert state.z.isfinite().tolist() == state.s.isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_tile_that_is_masked_whole_weighs_nothing(kernels: type[Kernels]) -> None:
    state = kernels().factors(torch.full((2, 9), -torch.inf), "base")
    assert isinstance(state, Factors)
    assert float(state.shift.max()) < -1e37 and bool(state.z.isfinite().all() and state.s.isfinite().all())


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_row_does_not_depend_on_the_rows_beside_it(kernels: type[Kernels]) -> None:
    """So neither do results on how rows were shared among threads; a row out of range takes another way alone."""
    base, final, added = tiles(1, 6, 40, 3, 20.0, masked=True)

    def run(rows: slice) -> Tensor:
        set_of = kernels()
        states = (set_of.factors(base[rows].clone(), "base"), set_of.factors(final[rows].clone(), "final"))
        out = torch.empty(3, 2, 3, rows.stop - rows.start)
        set_of.changes(added[:, rows].contiguous(), *states, out)
        return out

    if kernels is CpuKernels:
        assert torch.equal(run(slice(0, 6)), torch.cat([run(slice(0, 2)), run(slice(2, 6))], dim=-1))
    else:
        torch.testing.assert_close(run(slice(0, 6)), torch.cat([run(slice(0, 2)), run(slice(2, 6))], dim=-1))


def test_the_best_kernels_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu, mps = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
    monkeypatch.delenv("HEADSCOPE_KERNELS", raising=False)
    assert kernels_for(cpu, torch.float32) is CpuKernels
    assert kernels_for(cpu, torch.float64) is TorchKernels
    assert kernels_for(mps, torch.float32) is kernels_for(gpu, torch.float64) is AcceleratorKernels
    with budget("cuda"):
        assert kernels_for(cpu, torch.float32) is AcceleratorKernels
    monkeypatch.setenv("HEADSCOPE_KERNELS", "cpu")
    assert kernels_for(gpu, torch.float32) is AcceleratorKernels
    monkeypatch.setenv("HEADSCOPE_KERNELS", "torch")
    assert kernels_for(cpu, torch.float32) is TorchKernels
    assert kernels_for(gpu, torch.float32) is AcceleratorKernels
    monkeypatch.setenv("HEADSCOPE_KERNELS", "fast")
    with pytest.raises(InvalidInputError, match="HEADSCOPE_KERNELS is 'fast'.*torch.*cpu.*triton"):
        kernels_for(cpu, torch.float32)


@pytest.mark.parametrize("error", [ImportError("not installed"), RuntimeError("no locator available")])
@pytest.mark.parametrize(
    ("device", "name", "plain", "repair"),
    [("cpu", "cpu", TorchKernels, "pip install numba"), ("cuda", "triton", AcceleratorKernels, r"headscope\[gpu\]")],
)
def test_without_a_compiler(
    device: str, name: str, plain: type[Kernels], repair: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch._fused.cache_clear()

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(dispatch.importlib, "import_module", fail)
    monkeypatch.delenv("HEADSCOPE_KERNELS", raising=False)
    assert kernels_for(torch.device(device), torch.float32) is plain
    monkeypatch.setenv("HEADSCOPE_KERNELS", name)
    with pytest.raises(MissingDependencyError, match=f"HEADSCOPE_KERNELS={name} needs .*{repair}.*{error}"):
        kernels_for(torch.device(device), torch.float32)
    dispatch._fused.cache_clear()


def test_compilers_load_when_they_are_used() -> None:
    code = "import sys, headscope.analysis, headscope.ops.lens_entropy; print({'numba', 'triton'} & sys.modules.keys())"
    done = run_program(code)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 70))
def test_excess_counts_what_is_above_less_what_is_below(
    kernels: type[Kernels], seed: int, rows: int, tile: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randint(-3, 4, (rows, tile), generator=generator).float()  # with ties
    entries[0, 0], entries[-1, -1] = torch.inf, -torch.inf
    than = torch.randint(-3, 4, (rows, 1), generator=generator).float()
    excess = torch.arange(rows)
    kernels().count_excess(entries.clone(), than, excess)
    assert torch.equal(excess, torch.arange(rows) + (entries > than).sum(-1) - (entries < than).sum(-1))


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 40), st.integers(1, 12),
    st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 70),
    st.sampled_from([0.0, 5.0]), st.booleans(),
)  # fmt: skip
def test_the_largest_logits_of_several_tiles(
    kernels: type[Kernels],
    seed: int,
    heads: int,
    rows: int,
    inner: int,
    tiles: list[int],
    k: int,
    cap: float,
    masked: bool,
) -> None:
    """Heads taken out of logits, in whole numbers, so that many tie."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    left, right, final = whole(heads, rows, inner), whole(heads, inner, sum(tiles)), whole(rows, sum(tiles))
    targets = torch.randint(sum(tiles), (rows,), generator=generator)
    if masked:
        final[:, : tiles[0]] = -torch.inf  # a whole tile
    best, z = torch.full((heads, rows, k), -torch.inf), torch.zeros(heads, rows, dtype=torch.float64)
    so_far = Top(best, z, torch.full((heads, rows), -torch.inf), torch.zeros(heads, rows, dtype=torch.long))
    of_each = Top(*(each.clone() for each in (so_far.best, so_far.z, so_far.target, so_far.ties)))
    set_of, start = kernels(), 0
    for tile in tiles:
        here = slice(start, start + tile)
        factor = set_of.prepared(right[..., here].contiguous())
        set_of.head_top(left, factor, final[:, here].contiguous(), cap, targets - start, so_far)
        logits = cap_logits(final[:, here] - left @ right[..., here], cap)
        set_of.top(logits, targets - start, of_each)
        start += tile

    every = cap_logits(final.double() - left.double() @ right.double(), cap)
    wanted = torch.nn.functional.pad(every, (0, k), value=-torch.inf).sort(-1, descending=True).values[..., :k]
    own = every.gather(-1, targets.expand(heads, -1)[..., None])
    is_known = (own.isfinite() & (own >= wanted[..., -1:]))[..., 0]
    earlier = torch.arange(sum(tiles)) < targets[:, None]
    ties = ((every == own) & earlier).sum(-1)
    for found in (so_far, of_each):
        torch.testing.assert_close(found.best.double(), wanted, rtol=1e-6, atol=1e-6)
        log_z = found.shift_of(found.best).double() + found.z.log()
        some = every.logsumexp(-1).isfinite()
        torch.testing.assert_close(log_z[some], every.logsumexp(-1)[some], rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(found.target.double(), own[..., 0], rtol=1e-6, atol=1e-6)
        if not cap:  # above it, numbers that differ become the same
            above = (found.best > found.target[..., None]).sum(-1)
            assert torch.equal((above + found.ties)[is_known].clamp(max=k), (above + ties)[is_known].clamp(max=k))
