"""The device that is chosen, the sizes that are computed at a time on it, and the memory line."""

import pytest
import torch

from headscope.ops.devices import Budget, Tile, budget, get_device, print_gpu_mem


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
    assert Budget.of("cuda:1") == Budget.of("mps") != Budget.of("cpu")


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
