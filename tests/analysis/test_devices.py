"""Everything runs on a device that is not the CPU, also as the default device, and gives the same numbers.

The device is a stand-in (see tests/support/far_device.py) that refuses what CUDA refuses, and float64 as MPS does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from far_device import FAR, far, far_device, near
from small_models import small_model
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import (
    Task,
    ablate_components,
    ablate_heads,
    activation_patch,
    attribute,
    attribution_patch,
    circuit_faithfulness,
    copy_suppression_preserving_ablation,
    copying_scores,
    detect_heads,
    dynamic_ov,
    edge_attribution,
    effective_embedding,
    find_circuit,
    head_scores,
    logit_lens,
    measure_calibration,
    measure_entropy,
    next_token_loss,
    path_patch,
    path_patch_sweep,
    predict_next_tokens,
    suppression_scores,
    test_prompt,
    weights_circuit_ranks,
)
from headscope.compat.head_detector import detect_head
from headscope.data.random_tokens import repeated_random_tokens
from headscope.data.tasks import SkipTrigramDataset
from headscope.training.toy import TrainConfig, train

PROMPTS = ["When Mary and John went, John", "Then Mary said thank you to John. Mary"]
CORRUPTED = ["When Mary and John went, Mary", "Then John said thank you to Mary. Mary"]
ROWS = torch.randint(300, (5, 6), generator=torch.Generator().manual_seed(0)).repeat(1, 2)


def tokens(model: HookedTransformer) -> Tensor:
    return model.to_tokens(PROMPTS[0])


def rows(model: HookedTransformer) -> Tensor:
    return ROWS.to(model.W_E.device)


def task(model: HookedTransformer) -> Task:
    return Task.from_prompts(PROMPTS, ["Mary"] * 2, ["John"] * 2, model.tokenizer, corrupted=CORRUPTED)


def cached(model: HookedTransformer) -> list[Tensor]:
    logits, cache = model.run_with_cache(tokens(model))
    parts = cache.decompose_resid()
    outputs = [
        logits, parts, cache.accumulated_resid(apply_ln=True, incl_mid=True), cache.stack_head_results(),
        cache.get_full_resid_decomposition(expand_neurons=False), cache.logit_attrs(parts, tokens(model)[:, 3]),
        cache.apply_ln_to_stack(parts),
    ]  # fmt: skip
    assert cache.to("cpu")["blocks.0.attn.hook_z"].device.type == "cpu"
    return outputs


def gradients(model: HookedTransformer) -> list[Tensor]:
    with torch.enable_grad():
        model(tokens(model), return_type="loss").backward()
    return [model.blocks[0].attn.W_Q.grad, model.W_E.grad]


def trained(model: HookedTransformer) -> list[Tensor]:
    data, validation = (SkipTrigramDataset(40, prob=2, prompt_length=5, seed=seed) for seed in (0, 1))
    cfg = HookedTransformerConfig(
        n_layers=1, n_heads=2, d_model=11, d_head=5, d_vocab=11, n_ctx=5, attn_only=True, normalization_type=None,
        seed=0, device="cpu",
    )  # fmt: skip
    small = HookedTransformer(cfg)
    if model.W_E.device == FAR:
        far(small)
    with torch.enable_grad():
        result = train(small, data, TrainConfig(epochs=2, batch_size=20), validation=validation, progress=False)
    return [small.W_Q, result.train.signal_loss]


STREAMS: dict[str, Callable[..., Any]] = {
    "entropy": measure_entropy,
    "entropy, mean": lambda *a, **o: measure_entropy(*a, baseline="mean", reduce="none", scale="own", **o),
    "calibration": measure_calibration,
    "ablation": lambda *a, **o: ablate_heads(*a, kl=True, effects=["direct", "patched", "indirect"], **o),
    "ablation, resampled": lambda model, data, **o: ablate_heads(
        model, data, values=["mean", "resample"], mean_over="position", reference=data.flip(0), **o
    ),
    "CSPA": copy_suppression_preserving_ablation,
    "dynamic OV": dynamic_ov,
    "loss": next_token_loss,
    "next tokens": predict_next_tokens,
    "logit lens": logit_lens,
    "head scores": head_scores,
    "head types": detect_heads,
}
WORK: dict[str, Callable[[HookedTransformer], Any]] = {
    **{name: lambda model, run=run: run(model, rows(model), progress=False) for name, run in STREAMS.items()},
    "logits": lambda model: model(tokens(model)),
    "padded": lambda model: model(model.to_tokens([*PROMPTS, "John"], padding_side="left")),
    "loss of each token": lambda model: model(tokens(model), return_type="loss", loss_per_token=True),
    "generation": lambda model: model.generate(tokens(model), max_new_tokens=4, do_sample=False, verbose=False),
    "cache": cached,
    "gradients": gradients,
    "training": trained,
    "weights": lambda model: [model.OV.eigenvalues.abs(), model.QK.svd()[1], model.all_composition_scores("Q")],
    "random tokens": lambda model: repeated_random_tokens(2, 4, d_vocab=50, bos=0),
    "suppression scores": lambda model: suppression_scores(
        model, prompts=rows(model), answers=rows(model)[:, :2], n_sequences=5, length=4, progress=False
    ),
    "attribution": lambda model: attribute(model, task(model), progress=False),
    "patching": lambda model: activation_patch(model, task(model), ["resid_pre", "z"], progress=False),
    "patching by position": lambda model: activation_patch(
        model, task(model), ["z", "q"], by_position=True, positions="end", progress=False
    ),
    "attribution patching": lambda model: attribution_patch(model, task(model), progress=False),
    "path": lambda model: path_patch(model, task(model), senders=["0.1", "mlp0"], receivers=["1.0.q", "mlp1"]),
    "paths": lambda model: path_patch_sweep(model, task(model), receivers="1.0.q", progress=False),
    "circuit": lambda model: find_circuit(model, task(model), max_receivers=1, progress=False),
    "faithfulness": lambda model: circuit_faithfulness(
        model, task(model), torch.ones(2, 3), sizes=[2], ablation="mean", controls=1, progress=False
    ),
    "edges": lambda model: edge_attribution(model, task(model), progress=False),
    "components": lambda model: ablate_components(model, task(model), progress=False),
    "circuit ranks": lambda model: weights_circuit_ranks(model, ["0.1"], progress=False),
    "copying": copying_scores,
    "effective embedding": effective_embedding,
    "prompt": lambda model: test_prompt(PROMPTS[0], " Mary", model, print_details=False),
    "head detector": lambda model: detect_head(model, PROMPTS[0], "previous_token_head"),
}
test_prompt.__test__ = False


def numbers(found: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, list):
        return found
    if not dataclasses.is_dataclass(found):
        return []
    values = [getattr(found, field.name) for field in dataclasses.fields(found)]
    return [value for value in values if isinstance(value, Tensor)]


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """What the CPU gives, by the same kernels."""
    return {}


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize(
    ("by_default", "float64"),
    [(False, True), (True, True), (False, False)],
    ids=["named", "default device", "without float64"],
)
@pytest.mark.parametrize("name", WORK)
def test_numbers_are_the_cpus(
    name: str, by_default: bool, float64: bool, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSCOPE_KERNELS", "torch")
    if name not in wanted:
        wanted[name] = numbers(WORK[name](small_model()))
    model = small_model()
    with far_device(by_default=by_default, float64=float64):
        far(model).cfg.device = str(FAR)
        found = WORK[name](model)
        for use in ("to_frame", "to_xarray"):
            if dataclasses.is_dataclass(found) and hasattr(found, use):
                getattr(found, use)()
    ours, theirs = numbers(found), wanted[name]
    assert len(ours) == len(theirs)
    for value, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(near(value.detach()), right.detach(), atol=1e-4, rtol=1e-4, equal_nan=True)
