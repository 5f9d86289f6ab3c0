"""Products of the CPU kernels' own loops, in blocks that registers hold, against float64."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.registry import cpu_target
from own_process import run_program
from torch import Tensor

from headscope.ops.kernels import cpu_kernels, loops
from headscope.ops.kernels.cpu_kernels import CpuKernels
from headscope.ops.kernels.interface import SAFE_BITS, Kernels

pytestmark = pytest.mark.skipif(not cpu_kernels._PACKS, reason="here products are the library's")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 70), st.integers(1, 130))
def test_a_product_has_every_row_and_column_and_nothing_beside_them(
    seed: int, rows: int, inner: int, tile: int
) -> None:
    kernels = CpuKernels()
    left, right = draw(seed, rows, inner), draw(seed + 1, inner, tile)
    room = torch.full((rows + 2, tile + 2), 7.0)
    within = draw(seed, rows + 9, inner + 5)[4 : 4 + rows, 3 : 3 + inner]  # rows that do not follow each other
    for factor in (left, within):
        found = kernels.product(factor, kernels.prepared(right), torch.empty(rows, tile))
        wanted = factor.double() @ right.double()
        assert float((found - wanted).abs().max()) <= 1e-6 * inner * float(factor.abs().max() * right.abs().max())
    loops.product(left.numpy(), kernels.prepared(right).entries.numpy(), room[1:-1, 1:-1].numpy())
    assert torch.equal(room[1:-1, 1:-1], kernels.product(left, kernels.prepared(right), torch.empty(rows, tile)))
    room[1:-1, 1:-1] = 7.0
    assert bool((room == 7.0).all()), "nothing around it was written"


def otherwise_laid_out(factor: Tensor) -> list[Tensor]:
    """The same numbers in memory that a product has to walk through differently: transposed, and with gaps."""
    rows, inner = factor.shape[-2:]
    gaps = torch.full((*factor.shape[:-2], 2 * rows, 3 * inner), torch.nan)[..., ::2, ::3].copy_(factor)
    return [factor.mT.contiguous().mT, gaps]


@pytest.mark.parametrize(("rows", "inner", "tile"), [(10, 64, 70), (16, 5, 96), (1, 7, 48), (9, 1, 50)])
def test_factors_may_lie_in_memory_in_any_way(rows: int, inner: int, tile: int) -> None:
    kernels = CpuKernels()
    left, right = draw(0, 2, rows, inner), kernels.prepared(draw(1, 2, inner, tile))
    base, final = draw(2, 2, rows, tile)
    states = kernels.factors(base.clone(), "base"), kernels.factors(final.clone(), "final")
    heads = kernels.head_logits(left, right, torch.float32).clone()
    sums, found = torch.empty(3, 2, 2, rows), torch.empty(3, 2, 2, rows)
    kernels.head_changes(left, right, *states, sums)
    for factor in otherwise_laid_out(left):
        assert torch.equal(kernels.product(factor[0], right[0], torch.empty(rows, tile)), heads[0])
        assert torch.equal(kernels.head_logits(factor, right, torch.float32), heads)
        kernels.head_changes(factor, right, *states, found)
        assert torch.equal(found, sums)
    for out in otherwise_laid_out(torch.empty(rows, tile)):
        assert torch.equal(kernels.product(left[0], right[0], out), heads[0])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 70), st.integers(1, 20), st.integers(1, 100),
    st.sampled_from([0.01, 1.0, 40.0]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_heads_sums_are_those_of_their_logits(
    seed: int, heads: int, rows: int, inner: int, tile: int, size: float, shared: bool, summed: bool
) -> None:
    """Also where a row's changes go beyond the range of the fast form, and where all heads share the right factor."""
    kernels = CpuKernels()
    left = size * draw(seed, heads, rows, inner) / inner**0.5
    right = draw(seed + 1, 1 if shared else heads, inner, tile).expand(heads, -1, -1)
    base, final = 5 * draw(seed + 2, 2, rows, tile)
    states = kernels.factors(base.clone(), "base"), kernels.factors(final.clone(), "final")
    prepared = kernels.prepared(right)
    added = kernels.head_logits(left, prepared, torch.float32).clone()
    torch.testing.assert_close(added, left @ right, rtol=1e-4, atol=1e-5 * size)
    wanted, found = torch.empty(3, 2, heads, rows), torch.empty(3, 2, heads, rows)
    kernels.changes(added, *states, wanted)
    total = torch.full((rows, tile), torch.nan) if summed else None
    kernels.head_changes(left, prepared, *states, found, total)
    assert torch.equal(found, wanted) or float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    if total is not None:
        torch.testing.assert_close(total, added.sum(0), rtol=1e-5, atol=1e-5 * size)
    assert size < 40 or rows * tile < 50 or float(added.abs().max()) > SAFE_BITS


def test_what_follows_from_the_heads_is_as_by_plain_operations() -> None:
    total, before, after = draw(0, 3, 5, 33)
    by, rests = draw(1, 5), (draw(2, 33), draw(3, 33))
    results = []
    for follow in (CpuKernels.follow, Kernels.follow):
        middle, mlp = total.clone(), torch.empty(5, 33)
        follow(CpuKernels(), middle, before, after, by, rests, mlp)
        results.append(torch.stack((middle, mlp)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def without_avx512(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The loops as a processor with 16 registers of 8 numbers has them, compiled apart from the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "CACHE_DIR", str(tmp_path_factory.mktemp("numba")))
        triple, processor, _ = cpu_target.target_context.codegen().magic_tuple()
        patch.setattr(cpu_target.target_context.codegen(), "magic_tuple", lambda: (triple, processor, "+avx2,-avx512f"))
        spec = importlib.util.spec_from_file_location("narrow_loops", Path(loops.__file__))
        assert spec is not None and spec.loader is not None
        narrow = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(narrow)
    return narrow


def test_blocks_of_another_shape(without_avx512: ModuleType) -> None:
    narrow = without_avx512
    assert (narrow._ROWS, narrow.N_COLUMNS) == (6, 16)
    left, right = draw(0, 17, 9), draw(1, 1, 9, 50)
    packed, out = torch.empty(1, 4, 9, 16), torch.empty(17, 50)
    narrow.pack(right.numpy(), packed.numpy())
    narrow.product(left.numpy(), packed[0].numpy(), out.numpy())
    torch.testing.assert_close(out, left @ right[0], rtol=1e-5, atol=1e-5)


# Said of a processor to a program that has numba compile for none in particular.
PRODUCT_ON = """
import sys
import llvmlite.binding as llvm
features = llvm.get_host_cpu_features()
features["avx512f"] = sys.argv[1] == "wide"
llvm.get_host_cpu_features = lambda: features
import torch
from headscope.ops.kernels.cpu_kernels import CpuKernels
left, right, out = torch.arange(200.0).view(20, 10), torch.arange(1000.0).view(10, 100), torch.empty(20, 100)
print(torch.equal(CpuKernels().product(left, CpuKernels.prepared(right), out), left @ right))
"""


def test_machines_may_share_what_was_compiled(tmp_path: Path) -> None:
    """A folder of compiled code for all of a cluster, whose processors have registers of different lengths."""
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    for processor in ("wide", "narrow"):
        done = run_program(PRODUCT_ON, processor, environment=environment)
        assert (done.stdout, done.returncode) == ("True\n", 0), (processor, done.stderr)
