"""`SVDInterpreter` against dense matrices in float64."""

from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from headscope.compat.svd import SVDInterpreter
from headscope.errors import InvalidInputError, UnknownNameError


def wanted_logits(matrix: Tensor, W_U: Tensor, n: int) -> Tensor:
    """Logits of the strongest right singular vectors, as eigenvectors of the Gram matrix."""
    _, vectors = torch.linalg.eigh(matrix.T @ matrix)
    return (vectors.flip(-1)[:, :n].T @ W_U).T


def same_up_to_sign(found: Tensor, wanted: Tensor) -> None:
    for at in range(wanted.shape[-1]):
        one, other = found[:, 0, at], wanted[:, at]
        torch.testing.assert_close(one * torch.sign(one @ other), other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["LN", "LNPre", "RMS", "RMSPre", None])
@pytest.mark.parametrize("layer", [0, 1])
def test_vectors_are_those_of_the_weights(norm: str | None, layer: int) -> None:
    model = tiny_model(normalization_type=norm)
    state = model.state_dict()
    block = f"blocks.{layer}."
    W_U, interpreter = state["unembed.W_U"], SVDInterpreter(model)
    for head in range(3):
        found = interpreter.get_singular_vectors("OV", layer, num_vectors=4, head_index=head)
        assert found.shape == (23, 1, 4) and found.dtype == torch.float64 and not found.requires_grad
        same_up_to_sign(found, wanted_logits(state[block + "attn.W_V"][head] @ state[block + "attn.W_O"][head], W_U, 4))
    W_in = state[block + "mlp.W_in"].T
    if norm in ("LN", "RMS"):
        W_in = W_in * state[block + "ln2.w"]
    same_up_to_sign(interpreter.get_singular_vectors("w_in", layer), wanted_logits(W_in, W_U, 10))
    found = interpreter.get_singular_vectors("w_out", layer, num_vectors=3)
    same_up_to_sign(found, wanted_logits(state[block + "mlp.W_out"], W_U, 3))


def test_weights_are_read_when_asked_for() -> None:
    model = tiny_model()
    interpreter = SVDInterpreter(model)
    before = interpreter.get_singular_vectors("w_out", 0, 1)
    with torch.no_grad():
        model.unembed.W_U.mul_(2.0)
    torch.testing.assert_close(interpreter.get_singular_vectors("w_out", 0, 1).abs(), 2 * before.abs())


def test_half_precision_gives_float32() -> None:
    interpreter = SVDInterpreter(tiny_model(dtype=torch.bfloat16))
    for kind, head in (("OV", 0), ("w_in", None), ("w_out", None)):
        found = interpreter.get_singular_vectors(kind, 1, 2, head)  # type: ignore[arg-type]
        assert found.dtype == torch.float32 and bool(found.isfinite().all())


@pytest.mark.parametrize("arguments, message", [
    (("OV", 2, 1, 0), "layer_index must be between 0 and 1; got 2"),
    (("w_in", -1, 1), "layer_index must be between 0 and 1; got -1"),
    (("OV", 0, 1), "'OV' needs a head_index between 0 and 2; got None"),
    (("OV", 0, 1, 3), "head_index between 0 and 2; got 3"),
    (("OV", 0, 5, 0), "num_vectors must be between 1 and 4, the rank of this matrix; got 5"),
    (("w_out", 0, 0), "num_vectors must be between 1 and 10, .*; got 0"),
])  # fmt: skip
def test_what_there_is_not_is_told(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SVDInterpreter(tiny_model()).get_singular_vectors(*arguments)


def test_an_unknown_kind_is_told() -> None:
    with pytest.raises((UnknownNameError, TypeError), match="QK"):
        SVDInterpreter(tiny_model()).get_singular_vectors("QK", 0)  # type: ignore[arg-type]


def test_a_model_without_mlps() -> None:
    interpreter = SVDInterpreter(tiny_model(attn_only=True))
    assert interpreter.get_singular_vectors("OV", 1, 2, 1).shape == (23, 1, 2)
    with pytest.raises(InvalidInputError, match="'w_in' needs an MLP"):
        interpreter.get_singular_vectors("w_in", 0)
