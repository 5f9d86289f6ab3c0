"""The benchmark for a GPU runs, and its ways agree; on a GPU it is run for its times."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.syspath_prepend(SCRIPT.parent / "workers")
    monkeypatch.setenv("HEADSCOPE_KERNELS", "torch")  # put back as it was, whatever the script sets
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("no_gradients")
def test_its_ways_agree(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "kernels", lambda *_: "")  # Triton's interpreter takes seconds: see test_triton.py
    results = script.main(["--device", "cpu", "--small", "--repeats", "1"])
    assert [result["way"] for result in results] == [
        "logits", "naive", "torch", "naive", "torch", "naive", "activation_patch"
    ]  # fmt: skip
    assert all(result["off"] < 1e-5 and result["seconds"] > 0 for result in results)
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("no_gradients")
def test_the_triton_kernels_agree_too(script: ModuleType) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'headscope[gpu]'")
    results = script.main(["--device", "cpu", "--small", "--repeats", "1", "--tokens", "4"])
    off = {result["way"]: result["off"] for result in results if result["way"].startswith("triton")}
    assert len(off) == 5 and off["triton, float32"] < 1e-5 and max(off.values()) < 1e-3, off
