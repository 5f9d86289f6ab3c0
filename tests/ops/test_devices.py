"""The device that is chosen, and the memory line."""

import pytest
import torch

from headscope.ops.devices import get_device, print_gpu_mem


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
