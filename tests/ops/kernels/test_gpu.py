"""On a GPU: what tests/ops/kernels/test_triton.py and test_launches.py ask of stand-ins for one."""

import pytest
import torch
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import ablate_heads, measure_entropy
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.interface import PRECISIONS, Kernels, Precision
from headscope.ops.lens_entropy import lens_entropies
from headscope.ops.lens_problem import LensProblem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
# Off float64 in nats, of entropies of logits of a few units.
MOST = {"float32": 1e-4, "bfloat16x3": 1e-3, "tf32": 1e-2, "bfloat16": 1e-1}


@pytest.fixture(params=["torch", "triton"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Kernels]:
    monkeypatch.setenv("HEADSCOPE_KERNELS", request.param)
    found = kernels_for(torch.device("cuda"), torch.float32)
    assert found.name == request.param
    return found


def problem(device: str, dtype: torch.dtype) -> LensProblem:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    layers, heads, rows, d_head, d_model, d_vocab = 3, 5, 130, 64, 96, 5003
    return LensProblem(
        states=random(2 * layers + 1, rows, d_model) / 5, head_base=(0, 2, 4), mlp_base=(1, 3, 5),
        heads=random(layers, heads, rows, d_head) / 20, W_O=random(layers, heads, d_head, d_model) / 4,
        mlps=random(layers, rows, d_model) / 5, W_U=random(d_model, d_vocab), offset=random(d_vocab),
        final_offset=random(d_vocab),
    )  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
def test_entropies_equal_the_cpus_float64(precision: Precision, kernels: type[Kernels]) -> None:
    if precision not in kernels.precisions:
        pytest.skip("for the triton kernels only")
    found = lens_entropies(problem("cuda", torch.float32), precision=precision)
    wanted = lens_entropies(problem("cpu", torch.float64))
    for name in ("states", "plus", "minus"):
        off = float((getattr(found, name).cpu() - getattr(wanted, name)).abs().max())
        assert off < MOST[precision], name


def test_the_host_does_not_wait(kernels: type[Kernels]) -> None:
    on_gpu = problem("cuda", torch.float32)
    lens_entropies(on_gpu)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        lens_entropies(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_model_on_the_gpu(kernels: type[Kernels], monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = {}, {}
    for device, results in (("cuda", found), ("cpu", wanted)):
        monkeypatch.setenv("HEADSCOPE_KERNELS", kernels.name if device == "cuda" else "torch")
        model = HookedTransformer.from_pretrained("headscope-demo", device=device)
        tokens = model.to_tokens("Mary and John went to the park. John gave a ball to Mary.")
        results["entropy"] = measure_entropy(model, tokens, progress=False)
        results["ablation"] = ablate_heads(model, tokens, kl=True, progress=False)
    assert found["entropy"].info.options["kernels"] == found["ablation"].info.options["kernels"] == kernels.name
    for name, fields in (("entropy", ("resid", "diff", "marginal")), ("ablation", ("loss_diff", "kl"))):
        for field in fields:
            mine, right = (getattr(each[name], field).cpu() for each in (found, wanted))
            torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4, equal_nan=True)
