"""Path patching on a model with hooks, against three full passes through the same hooks."""

from typing import Any

import pytest
import torch
from three_passes import ThreePasses, random_task
from tiny import tiny_model
from torch import Tensor, nn

from headscope.analysis.patching import path as module
from headscope.analysis.patching.path import path_patch, path_patch_sweep
from headscope.analysis.patching.path_block import WholePaths

CASES = (
    (["0.1"], ["2.1.q"]),
    (["0.0", "1.2"], ["1.0.k", "2.2.v"]),
    (["embed", "mlp0", "1.1"], ["1.0.q", "2.0.q", "mlp2"]),
    (["embed", "mlp1"], ["final"]),
)


@pytest.mark.parametrize("shape", [{}, {"n_heads": 4, "n_key_value_heads": 2}, {"parallel_attn_mlp": True}])
@pytest.mark.parametrize("freeze_mlps", [True, False])
def test_every_hook_is_in_force(shape: dict[str, Any], freeze_mlps: bool) -> None:
    model, task = tiny_model(n_layers=3, **shape), random_task()

    def bent(value: Tensor, hook: Any) -> Tensor:
        return value + 0.5 * torch.tanh(value)

    unhooked = [path_patch(model, task, senders=s, receivers=r, freeze_mlps=freeze_mlps) for s, r in CASES]
    model.add_hook("blocks.0.attn.hook_z", bent)
    model.add_hook("blocks.2.attn.hook_q", bent)
    model.add_hook("blocks.1.hook_mlp_out", bent)
    model.add_hook("blocks.2.hook_resid_post", bent)
    reference = ThreePasses(model, task)
    for (senders, receivers), before in zip(CASES, unhooked, strict=True):
        options: dict[str, Any] = {"direction": "noising", "scale": "metric", "freeze_mlps": freeze_mlps}
        found = path_patch(model, task, senders=senders, receivers=receivers, **options)
        expected = reference.change(senders, receivers, freeze_mlps=freeze_mlps)
        torch.testing.assert_close(found.per_prompt, expected, atol=1e-11, rtol=1e-7)
        assert abs(float(found.change) - float(before.change)) > 1e-6
    assert model.hook_dict["blocks.0.attn.hook_z"].has_hooks()


@pytest.mark.parametrize("shape", [{}, {"clip_qkv": 0.4}])
def test_whole_runs_give_what_short_ones_give(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = tiny_model(n_layers=3, **shape), random_task(pad_left=True)
    for options in (
        {"receivers": "2.1.q, 2.0.v", "senders": "components", "freeze_mlps": False},
        {"receivers": "final", "positions": ["end", "S2"]},
    ):
        short = path_patch_sweep(model, task, **options, progress=False)
        with monkeypatch.context() as patched:
            patched.setattr(module, "PathBlock", WholePaths)
            whole = path_patch_sweep(model, task, **options, progress=False)
        assert float(short.values.abs().max()) > 1e-3
        torch.testing.assert_close(whole.per_prompt, short.per_prompt, atol=1e-11, rtol=1e-7)


def test_a_forward_hook_of_torch_is_a_hook_too() -> None:
    model, task = tiny_model(n_layers=3), random_task()
    options: dict[str, Any] = {"senders": "mlp0", "receivers": "2.1.q", "scale": "metric"}
    unhooked = float(path_patch(model, task, **options))
    handle = model.blocks[2].attn.register_forward_hook(lambda part, given, made: 3 * made)
    hooked = path_patch(model, task, direction="noising", **options)
    torch.testing.assert_close(
        hooked.per_prompt, ThreePasses(model, task).change(["mlp0"], ["2.1.q"]), atol=1e-11, rtol=1e-7
    )
    handle.remove()
    assert abs(unhooked - float(hooked)) > 1e-9 and isinstance(model.blocks[2].attn, nn.Module)
