"""With the scales of the norms behind attention and MLP frozen, what heads and neurons add sums to what was added."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import nn

from headscope.errors import InvalidInputError
from headscope.model.names import post_scale_name

KINDS = [
    {"normalization_type": "RMS", "use_normalization_before_and_after": True}, {"use_normalization_after_only": True},
    {},
]  # fmt: skip


@pytest.mark.parametrize("fields", KINDS)
def test_parts_sum_to_what_is_added(fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    _, acts = model.run_with_cache(tiny_tokens())
    block: Any = model.blocks[1]
    for of, name, bias in (("attn", "attn_out", block.attn.b_O), ("mlp", "mlp_out", block.mlp.b_out)):
        norm = dict(block.named_children()).get({"attn": "ln1_post", "mlp": "ln2_post"}[of])
        scale = 1.0 if norm is None else acts[post_scale_name(1, of)]
        given = acts["z", 1] if of == "attn" else acts["post", 1]
        weight = model.output_weight(1, of)
        parts = (given / (scale[..., None] if norm is not None and of == "attn" else scale)).flatten(2)
        total = parts @ weight.reshape(-1, weight.shape[-1])
        total = total + (bias if norm is None else norm.direction(bias) / scale)
        if fields.get("use_normalization_after_only"):
            total = total + norm.b
        torch.testing.assert_close(total, acts[name, 1], rtol=1e-9, atol=1e-9)


def test_without_such_norms_weights_are_the_models() -> None:
    model = tiny_model()
    assert post_scale_name(0) not in model.hook_dict
    assert torch.equal(model.output_weights(), model.W_O)


def test_a_module_in_the_norms_place_is_refused() -> None:
    model = tiny_model(**KINDS[0])
    model.blocks[0].ln1_post = nn.Tanh()
    with pytest.raises(InvalidInputError, match="blocks.0.ln1_post holds a Tanh"):
        model.output_weight(0)
