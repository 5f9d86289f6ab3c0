"""Weights mapped from a file: their memory goes when a block has run, and no number changes."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SetBudget

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import measure_entropy
from headscope.analysis.storage.manifest import fingerprint
from headscope.model.weights import mapped as mapping
from headscope.model.weights.mapped import give_back

TOKENS = torch.randint(0, 200, (2, 8), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four blocks of 3 MB each."""
    shape: dict[str, Any] = {"n_layers": 4, "d_model": 256, "d_head": 64, "n_ctx": 8, "d_vocab": 200}
    cfg = HookedTransformerConfig(**shape, act_fn="relu", seed=0, device="cpu")
    return HookedTransformer(cfg).save_pretrained(tmp_path_factory.mktemp("models") / "model")


def mapped_model(folder: Path) -> HookedTransformer:
    return HookedTransformer.from_pretrained(folder, mapped=True, device="cpu")


def in_memory(model: HookedTransformer) -> int:
    """Bytes of the large weights that are in this process's memory now."""
    weights = [parameter for parameter in model.blocks.parameters() if parameter.numel() > 10_000]
    found = 0
    for weight in weights:
        first, after = -(-weight.data_ptr() // 4096), (weight.data_ptr() + weight.nbytes) // 4096
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek(8 * first)
            entries = pagemap.read(8 * (after - first))
        found += 4096 * sum(entry >> 7 for entry in entries[7::8])
    return found


def test_a_large_model_holds_no_block_that_is_not_running(folder: Path, set_budget: SetBudget) -> None:
    small = mapped_model(folder)
    wanted = small(TOKENS)
    assert in_memory(small) > 10 * 2**20
    set_budget(mapped_bytes=2**20)
    model = mapped_model(folder)
    most = 0

    def look(_: Any, hook: Any) -> None:
        nonlocal most
        most = max(most, in_memory(model))

    assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.3.hook_mlp_out", look)]), wanted)
    assert most < 4 * 2**20 and in_memory(model) == 0
    assert fingerprint(model.state_dict()) == fingerprint(small.state_dict())
    assert in_memory(model) < 2**20, "a fingerprint reads every weight, and holds one"
    ours, theirs = (measure_entropy(each, TOKENS, progress=False) for each in (model, small))
    assert torch.equal(ours.diff, theirs.diff) and torch.equal(ours.resid, theirs.resid)


def test_weights_that_were_changed_stay_as_they_are(folder: Path, set_budget: SetBudget) -> None:
    set_budget(mapped_bytes=0)
    model, plain = mapped_model(folder), HookedTransformer.from_pretrained(folder, device="cpu")
    for each in (model, plain):
        with torch.no_grad():
            each.blocks[1].mlp.W_in[3, 5] += 1.0
        each.blocks[2].attn.W_O.data[0].mul_(2.0)  # which no counter of versions sees
        each.blocks[3].mlp.W_out.detach().numpy()[-1] = 0.5
        each.blocks[0].mlp.W_out = torch.nn.Parameter(torch.full_like(each.blocks[0].mlp.W_out, 0.1))
    for _ in range(2):
        assert torch.equal(model(TOKENS), plain(TOKENS))
    assert torch.equal(copy.deepcopy(model)(TOKENS), plain(TOKENS))
    optimizer = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, plain)]
    for each, steps in zip((model, plain), optimizer, strict=True):
        for _ in range(2):
            steps.zero_grad()
            each(TOKENS, return_type="loss").backward()
            steps.step()
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_other_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.randn(2**20)
    before = own.clone()
    give_back([own, own[5:-7], torch.empty(0), torch.empty(2**20, device="meta")])
    assert torch.equal(own, before)
    monkeypatch.setattr(mapping, "open", lambda *_, **__: open("/nowhere", "rb"), raising=False)
    give_back([own])
    assert torch.equal(own, before)
