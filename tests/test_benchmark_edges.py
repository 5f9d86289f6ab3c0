"""The benchmark of edges compares like with like: the plain scores are `edge_attribution`'s."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("shape", [{}, {"n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary"}])
def test_plain_edge_attribution_is_edge_attribution(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("benchmark_edges", BENCHMARKS / "edges.py")
        assert spec is not None and spec.loader is not None
        edges = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(edges)
    model = tiny_model(dtype=torch.float32, spread=0.7, **shape).requires_grad_(False)
    task = edges.task_of(23, 3, 6)
    plain = edges.plain_attribution(model, task, 2)
    assert float(plain.abs().max()) > 0.05, "too little happens to tell"
    torch.testing.assert_close(edges.attribution(model, task, 2), plain, rtol=1e-3, atol=2e-5)
