"""The device that is chosen, the sizes that are computed at a time on it, and the memory line."""

import pytest
import torch
from far_device import FAR, FarTensor, far_device

from headscope.ops.devices import Budget, Tile, budget, get_device, print_gpu_mem, sums_device, wide


@pytest.mark.parametrize("there, wanted", [(True, "cuda"), (False, "cpu")])
def test_the_gpu_is_chosen_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert get_device() == wanted


def test_memory_is_printed_in_gib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3 * 2**29)
    print_gpu_mem("Step 1")
    assert capsys.readouterr().out == "Step 1 ~ 1.50 GiB allocated on GPU.\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    print_gpu_mem()
    assert capsys.readouterr().out == " ~ 0.00 GiB allocated on GPU.\n"


def test_a_budget_is_the_devices() -> None:
    assert Budget.of("cpu") == Budget() == Budget.of(torch.device("cpu"))
    assert Budget.of("cuda:1") == Budget.of("mps") == Budget.of_accelerator(16 * 2**30)


@pytest.mark.parametrize("gib", [4, 8, 16, 24, 80, 141])
def test_an_accelerator_gets_few_large_launches_within_its_memory(gib: int) -> None:
    sizes = Budget.of_accelerator(gib * 2**30)
    assert sizes.is_accelerators and not Budget().is_accelerators
    assert 8 * sizes.launch_bytes <= gib * 2**30 / 4 and sizes.launch_bytes >= 2**26
    assert 4 * sizes.tile.rows * sizes.tile.vocab == sizes.launch_bytes
    for n_rows, per_row, shared in [(1024, 12, 9216), (8192, 64, 10**6), (3, 1, 0), (0, 1, 0)]:
        tile = sizes.tile_of(n_rows, 50257, per_row=per_row, shared=shared)
        assert 1 <= tile.rows <= 2048
        # A tile is at least 512 wide, whatever the shape, and its width is rounded up to 128.
        bound = max(512, sizes.launch_bytes / (4 * max(tile.rows * per_row, shared))) + 128
        assert tile.vocab <= bound and tile.vocab % 128 == 0


def test_the_sizes_of_another_device() -> None:
    with budget("cuda", changes=3):
        assert Budget.of("cpu") == Budget.of("cuda:0") and Budget.of("cpu").is_accelerators
        with budget(batch_tokens=7):
            assert Budget.of("cpu").launch_bytes and Budget.of("cpu").batch_tokens == 7
            assert Budget.of("cpu").changes == 3
    assert Budget.of("cpu") == Budget()


def test_other_sizes_hold_for_a_with_block() -> None:
    with budget(batch_tokens=7):
        with pytest.raises(RuntimeError, match="stop"), budget(core_tile=Tile(2, 3)):
            assert Budget.of("cpu") == Budget(batch_tokens=7, core_tile=Tile(2, 3))
            assert Budget.of("cuda").batch_tokens == 7
            raise RuntimeError("stop")
        assert Budget.of("cpu") == Budget(batch_tokens=7)
    assert Budget.of("cpu") == Budget()
    with pytest.raises(TypeError, match="batch_tokns"), budget(batch_tokns=7):
        pass


@pytest.mark.parametrize(("float64", "where"), [(True, FAR), (False, torch.device("cpu"))])
def test_sums_are_on_the_cpu_where_a_device_has_no_float64(float64: bool, where: torch.device) -> None:
    with far_device(by_default=False, float64=float64):
        values = FarTensor(torch.tensor([1.0, 2.0]))
        assert sums_device(FAR) == where
        assert (wide(values).device, wide(values).dtype) == (where, torch.float64)
        assert wide(values).tolist() == [1.0, 2.0]
