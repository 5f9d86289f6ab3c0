"""Weights by name, and what they make: compared with the state dict and plain products, in float64, within 1e-9."""

import math
from typing import Any

import pytest
import torch
from surface import SVD, WEIGHTS, same
from tiny import tiny_model
from torch import Tensor

from headscope import FactoredMatrix, HookedTransformer, SVDInterpreter


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model(n_layers=3)


def stacked(model: HookedTransformer, name: str) -> Tensor:
    return torch.stack([model.state_dict()[f"blocks.{layer}.{name}"] for layer in range(model.cfg.n_layers)])


@WEIGHTS.shows("W_E", "W_pos", "W_U", "b_U")
def test_weights_outside_the_blocks(name: str, model: HookedTransformer) -> None:
    part = {"W_E": "embed", "W_pos": "pos_embed"}.get(name, "unembed")
    same(getattr(model, name), model.state_dict()[f"{part}.{name}"])
    assert getattr(model, name).requires_grad


@WEIGHTS.shows("W_E_pos")
def test_w_e_pos(model: HookedTransformer) -> None:
    assert model.W_E_pos.shape == (23 + 12, 10)
    same(model.W_E_pos[:23], model.embed.W_E)
    same(model.W_E_pos[23:], model.pos_embed.W_pos)


SHAPES = {
    "W_Q": (3, 3, 10, 4), "W_K": (3, 3, 10, 4), "W_V": (3, 3, 10, 4), "W_O": (3, 3, 4, 10),
    "b_Q": (3, 3, 4), "b_K": (3, 3, 4), "b_V": (3, 3, 4), "b_O": (3, 10),
    "W_in": (3, 10, 14), "W_out": (3, 14, 10), "b_in": (3, 14), "b_out": (3, 10),
}  # fmt: skip


@WEIGHTS.shows(*SHAPES)
def test_weights_of_all_layers(name: str, model: HookedTransformer) -> None:
    part = "mlp" if name in ("W_in", "W_out", "b_in", "b_out") else "attn"
    found = getattr(model, name)
    assert found.shape == SHAPES[name]
    same(found, stacked(model, f"{part}.{name}"))
    same(found[1], getattr(getattr(model.blocks[1], part), name))


@WEIGHTS.shows("W_gate")
def test_the_gates_of_all_layers() -> None:
    model = tiny_model(n_layers=3, gated_mlp=True)
    same(model.W_gate, stacked(model, "mlp.W_gate"))
    same(model.b_gate, stacked(model, "mlp.b_gate"))
    assert model.W_gate.shape == (3, 10, 14) and model.b_gate.shape == (3, 14)


@WEIGHTS.shows("OV", "QK")
def test_circuits(name: str, model: HookedTransformer) -> None:
    state = model.state_dict()
    left, right = ("W_V", "W_O") if name == "OV" else ("W_Q", "W_K")
    circuit = getattr(model, name)
    assert isinstance(circuit, FactoredMatrix) and circuit.shape == (3, 3, 10, 10) and circuit.mdim == 4
    for layer in range(3):
        of_layer = getattr(model.blocks[layer].attn, name)
        for head in range(3):
            a, b = (state[f"blocks.{layer}.attn.{which}"][head] for which in (left, right))
            wanted = a @ (b if name == "OV" else b.T)
            same(circuit[layer, head].AB, wanted)
            same(of_layer[head].AB, wanted)


@WEIGHTS.shows("n_params_total")
def test_n_params_total() -> None:
    """Counted by hand: embeddings, three norms' pairs, heads, MLPs, unembedding."""
    model = tiny_model(n_layers=1)
    heads, mlp = 3 * 4 * (4 * 10 + 3) + 10, 2 * 10 * 14 + 14 + 10
    assert model.n_params_total == 23 * 10 + 12 * 10 + 3 * 2 * 10 + heads + mlp + 10 * 23 + 23
    assert model.cfg.n_params == 3 * 4 * 4 * 10 + 2 * 10 * 14


@WEIGHTS.shows("accumulated_bias")
@pytest.mark.parametrize("attn_only", [False, True])
def test_accumulated_bias(attn_only: bool) -> None:
    """What the stream holds when the embeddings and all weights that read it are zero."""
    model = tiny_model(n_layers=3, attn_only=attn_only)
    b_O, b_out = model.b_O, torch.zeros(3, 10, dtype=torch.float64) if attn_only else model.b_out
    for layer in range(4):
        same(model.accumulated_bias(layer), b_O[:layer].sum(0) + b_out[:layer].sum(0))
        same(model.accumulated_bias(layer, include_mlp_biases=False), b_O[:layer].sum(0))
    same(model.accumulated_bias(1, mlp_input=True), b_O[:2].sum(0) + b_out[0])
    same(model.accumulated_bias(1, True, False), b_O[:2].sum(0))
    if not attn_only:
        silent = tiny_model(n_layers=3, normalization_type=None, act_fn="relu")
        with torch.no_grad():
            for name, parameter in silent.named_parameters():
                if name.split(".")[-1] not in ("b_O", "b_out"):
                    parameter.zero_()
        for layer in range(4):
            stream = silent(torch.tensor([[1, 2]]), stop_at_layer=layer)
            same(stream, silent.accumulated_bias(layer).expand(1, 2, -1))


@WEIGHTS.shows("all_composition_scores")
@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_all_composition_scores(mode: Any, model: HookedTransformer) -> None:
    """`|W_OV1 W_2| / (|W_OV1| |W_2|)`, one pair of heads at a time, on full matrices."""
    found = model.all_composition_scores(mode).detach()
    assert found.shape == (3, 3, 3, 3)
    ov, qk = model.W_V @ model.W_O, model.W_Q @ model.W_K.transpose(-2, -1)
    reads = {"Q": qk, "K": qk.transpose(-2, -1), "V": ov}[mode]
    for l1, h1, l2, h2 in torch.cartesian_prod(*[torch.arange(3)] * 4).tolist():
        first, second = ov[l1, h1].detach(), reads[l2, h2].detach()
        norms = [math.sqrt(float((m**2).sum())) for m in (first @ second, first, second)]
        wanted = norms[0] / (norms[1] * norms[2]) if l1 < l2 else 0.0
        assert abs(float(found[l1, h1, l2, h2]) - wanted) < 1e-9


@WEIGHTS.shows("all_head_labels")
def test_all_head_labels() -> None:
    assert tiny_model(n_heads=2).all_head_labels() == ["L0H0", "L0H1", "L1H0", "L1H1"]


# Singular vectors


@SVD.shows("__init__", "model", "cfg")
def test_svd_interpreter(name: str, model: HookedTransformer) -> None:
    interpreter = SVDInterpreter(model)
    assert interpreter.model is model and interpreter.cfg is model.cfg


@SVD.shows("get_singular_vectors")
@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_get_singular_vectors(kind: Any, model: HookedTransformer) -> None:
    """A unit direction of the residual stream, in order of strength, times `W_U`; found again as an eigenvector."""
    state = model.state_dict()
    layer, head = 1, 2
    # Each row is something that writes to, or reads from, the stream.
    rows = {
        "OV": state["blocks.1.attn.W_V"][head] @ state["blocks.1.attn.W_O"][head],
        "w_in": (state["blocks.1.mlp.W_in"] * state["blocks.1.ln2.w"][:, None]).T,
        "w_out": state["blocks.1.mlp.W_out"],
    }[kind]
    _, directions = torch.linalg.eigh(rows.T @ rows)
    wanted = directions.flip(-1)[:, :3].T @ state["unembed.W_U"]
    found = SVDInterpreter(model).get_singular_vectors(kind, layer, 3, head if kind == "OV" else None)
    assert found.shape == (23, 1, 3)
    sign = torch.sign((found[:, 0].T * wanted).sum(-1, keepdim=True))
    same(found[:, 0].T, sign * wanted)
    options = {"num_vectors": 3, "head_index": head}
    same(SVDInterpreter(model).get_singular_vectors(vector_type=kind, layer_index=layer, **options), found)
    if kind != "OV":
        assert SVDInterpreter(model).get_singular_vectors(kind, layer).shape == (23, 1, 10)


def test_every_row_has_a_check() -> None:
    assert WEIGHTS.unchecked() == []
    assert SVD.unchecked() == []
