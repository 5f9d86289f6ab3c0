"""AutoCircuit on headscope, its code unchanged: it puts modules of its own in the place of hook points."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import marks
from torch import Tensor

from headscope import HookedTransformer

pytestmark = [*marks("auto_circuit"), pytest.mark.usefixtures("alias")]

CLEAN, CORRUPTED = "Mary and John went to the shop and John gave a", "Mary and John went to the shop and Mary gave a"


@pytest.fixture
def model(folder: Path) -> HookedTransformer:
    """As AutoCircuit wants it, with the switches set on the config."""
    model = HookedTransformer.from_pretrained(str(folder)).requires_grad_(False)
    for switch in ("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in"):
        setattr(model.cfg, switch, True)
    return model


def wrapped(model: HookedTransformer, prompts: Path, **options: Any) -> tuple[Any, Any]:
    from auto_circuit.data import load_datasets_from_json
    from auto_circuit.utils.graph_utils import patchable_model

    pair = {"clean": CLEAN, "corrupt": CORRUPTED, "answers": ["Mary"], "wrong_answers": ["John"]}
    prompts.write_text(json.dumps({"prompts": [pair] * 4}))
    loader, _ = load_datasets_from_json(
        model, prompts, torch.device("cpu"), prepend_bos=False, batch_size=2, train_test_size=(2, 2), **options
    )
    return loader, patchable_model(
        model, factorized=True, slice_output="last_seq", separate_qkv=True, kv_caches=(loader.kv_cache,)
    )


def edge_by_hand(model: HookedTransformer, clean: Tensor, corrupted: Tensor) -> Tensor:
    """Logits with what head 2 of layer 0 writes replaced in what the queries of head 1 of layer 1 read."""
    name = "blocks.0.attn.hook_result"
    write = {text: model.run_with_cache(text, names_filter=name)[1][name][:, :, 2] for text in (clean, corrupted)}

    def patch(value: Tensor, hook: Any) -> Tensor:
        value[:, :, 1] += write[corrupted] - write[clean]
        return value

    return model.run_with_hooks(clean, fwd_hooks=[("blocks.1.hook_q_input", patch)])[:, -1]


def test_a_patched_edge_is_that_of_hooks(model: HookedTransformer, folder: Path, tmp_path: Path) -> None:
    from auto_circuit.prune import run_circuits
    from auto_circuit.types import PatchType

    native = HookedTransformer.from_pretrained(str(folder))
    loader, patchable = wrapped(model, tmp_path / "prompts.json")
    batch = next(iter(loader))
    torch.testing.assert_close(patchable(batch.clean), native(batch.clean))
    edge = next(edge for edge in patchable.edges if edge.name == "A0.2->A1.1.Q")
    scores = patchable.new_prune_scores()
    scores[edge.dest.module_name][edge.patch_idx] = 1.0
    # It patches the corrupted run with the clean one's activations.
    outputs = run_circuits(patchable, loader, [1], scores, patch_type=PatchType.EDGE_PATCH)
    expected = edge_by_hand(native, batch.corrupt, batch.clean)
    torch.testing.assert_close(outputs[1][batch.key], expected)
    assert (expected - native(batch.corrupt)[:, -1]).abs().max() > 1e-3


def test_mask_gradients_are_the_slopes_of_a_patch(model: HookedTransformer, tmp_path: Path) -> None:
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.ablation_activations import src_ablations
    from auto_circuit.utils.graph_utils import patch_mode

    loader, patchable = wrapped(model, tmp_path / "prompts.json")
    scores = mask_gradient_prune_scores(patchable, loader, None, "logit", "avg_diff", mask_val=0.0)
    batch, step = next(iter(loader)), 1e-2
    edge = next(edge for edge in patchable.edges if edge.name == "A0.2->A1.1.Q")

    def difference(mask: float) -> Tensor:
        with torch.no_grad(), patch_mode(patchable, src_ablations(patchable, batch.corrupt), [edge]):
            edge.patch_mask(patchable).data[edge.patch_idx] = mask
            logits = patchable(batch.clean)[patchable.out_slice].double()
        return (logits.gather(1, batch.answers) - logits.gather(1, batch.wrong_answers)).mean()

    slope = (difference(step) - difference(-step)) / (2 * step)
    score = scores[edge.dest.module_name][edge.patch_idx].item()
    assert abs(score) > 1e-3
    assert score == pytest.approx(-slope.item(), rel=2e-2)


def test_a_common_prefix_is_kept_as_keys_and_values(model: HookedTransformer, folder: Path, tmp_path: Path) -> None:
    loader, patchable = wrapped(model, tmp_path / "prompts.json", tail_divergence=True)
    batch = next(iter(loader))
    assert batch.clean.shape[1] < len(CLEAN.split())
    native = HookedTransformer.from_pretrained(str(folder))
    torch.testing.assert_close(
        patchable(batch.clean)[patchable.out_slice], native(CLEAN, prepend_bos=False)[:, -1].expand(2, -1)
    )
