"""The patching benchmark asks for what the functions do, and counts operations rightly."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import tiny_model

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The benchmark and its worker, imported as if each were run; `serve` and the command line are not reached."""
    with monkeypatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS / "workers")
        patched.syspath_prepend(BENCHMARKS)  # in front: both have a module `entropy`
        yield load(BENCHMARKS / "patching.py"), load(BENCHMARKS / "workers" / "patching.py")


@torch.no_grad()
def test_every_form_of_the_metric_is_one(scripts: tuple[ModuleType, ModuleType]) -> None:
    benchmark, worker = scripts
    library = worker.Patching("headscope")
    library.model = tiny_model(spread=0.7)
    for sweep in benchmark.SWEEPS:
        found = [
            library.measure(sweep=sweep, metric=metric, rows=2, length=4, differ_at=[1, 2])[1]
            for metric in benchmark.METRICS
        ]
        assert found[0].std() > 0.01, "too little happens to tell"
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_some_cells_are_those_of_all(scripts: tuple[ModuleType, ModuleType]) -> None:
    benchmark, worker = scripts
    library = worker.Patching("headscope")
    library.model = tiny_model(spread=0.7)
    question = {"metric": "opaque", "rows": 2, "length": 3, "differ_at": [1]}
    for sweep in benchmark.SWEEPS:
        every = library.measure(sweep=sweep, **question)[1]
        some = library.measure(sweep=sweep, cells=3, **question)[1]
        known = ~some.isnan()
        assert int(known.sum()) == 3 and some.shape == every.shape
        torch.testing.assert_close(some[known], every[known])


@torch.no_grad()
def test_paths_are_those_of_three_passes(scripts: tuple[ModuleType, ModuleType]) -> None:
    library = scripts[1].Patching("headscope")
    library.model = tiny_model(
        n_layers=2, n_heads=4, n_key_value_heads=2, positional_embedding_type="rotary", gated_mlp=True, spread=0.7
    )
    question = {"rows": 2, "length": 3, "differ_at": [1]}
    plain = library.paths(kind="plain", **question)[1]
    assert plain.std() > 1e-3, "too little happens to tell"
    torch.testing.assert_close(library.paths(kind="sweep", **question)[1], plain)
    some = library.paths(kind="plain", cells=3, **question)[1]
    torch.testing.assert_close(some[~some.isnan()], plain[~some.isnan()])


def test_operations_are_counted(scripts: tuple[ModuleType, ModuleType]) -> None:
    benchmark, _ = scripts
    # Layers of 12 weights (keys and values: 2, MLP: 8), an unembedding of 12; a plain run of two positions takes 72.
    shape = {"n_layers": 2, "d_model": 1, "d_head": 1, "d_vocab": 12}
    pre = {  # from layer 0 and 1, at positions 0 and 1
        "opaque": (48 + 24) + (24 + 12) + (24 + 24) + (12 + 12),
        "last position": (24 + 2 + 12 + 12) + (24 + 12) + (2 + 12 + 12) + (12 + 12),
        "answers": (24 + 2 + 12) + 24 + (2 + 12) + 12,
    }
    heads = {
        "opaque": (16 + 24 + 24) + (16 + 24),
        "last position": (16 + 2 + 12 + 12) + (8 + 12),
        "answers": (16 + 2 + 12) + 8,
    }
    for sweep, cells, counts in (("resid_pre", 4, pre), ("heads", 2, heads)):
        for metric, count in counts.items():
            assert benchmark.expected(shape, sweep, metric, 2) == pytest.approx(72 * cells / count), (sweep, metric)
