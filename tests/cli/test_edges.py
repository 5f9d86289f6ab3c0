"""`headscope edges`: what it prints and writes."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from headscope import HookedTransformer
from headscope.analysis import EdgeAttributionResult, EdgePatchingResult, Task, edge_attribution, edge_patch
from headscope.data.ioi import IOIDataset

Run = Callable[..., tuple[int, str, str]]


def test_edges_are_estimated_and_the_strongest_patched(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--prompts", 4, "--method", "eap_ig", "--steps", 2, "--patch", 6, "--top", 4)
    code, printed, _ = run("edges", *flags, "--out", out, "--no-progress")
    assert code == 0
    model = HookedTransformer.from_pretrained("headscope-demo")
    task = Task.from_ioi(IOIDataset("mixed", 4, model.tokenizer, prepend_bos=True, seed=0))
    wanted = edge_attribution(model, task, steps=2, progress=False)
    patched = edge_patch(model, task, wanted, n=6, progress=False)
    assert str(wanted) in printed and str(wanted.top(4)) in printed and str(patched) in printed
    assert torch.equal(EdgeAttributionResult.load(out / "result.safetensors").strongest(9), wanted.strongest(9))
    assert EdgePatchingResult.load(out / "patched.safetensors").edges == patched.edges
    assert len(pd.read_parquet(out / "edges.parquet")) == int(wanted.allowed.sum())
    assert (out / "edges.html").read_text(encoding="utf-8").count('class="plotly-graph-div"') == 2


def test_estimates_alone(run: Run) -> None:
    code, printed, _ = run("edges", "--prompts", 2, "--method", "eap", "--patch", 0, "--no-progress")
    assert code == 0 and "eap; noising, share" in printed and "EdgePatchingResult" not in printed
