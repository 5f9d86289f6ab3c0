"""Short names of activations."""

from typing import Any

import pytest

from headscope.model.names import get_act_name


@pytest.mark.parametrize("arguments, wanted", [
    (("embed",), "hook_embed"),
    (("pos_embed",), "hook_pos_embed"),
    (("hook_embed",), "hook_embed"),
    (("scale",), "ln_final.hook_scale"),
    (("normalized",), "ln_final.hook_normalized"),
    (("blocks.3.attn.hook_z",), "blocks.3.attn.hook_z"),
    (("ln_final.hook_scale",), "ln_final.hook_scale"),
    (("k", 6), "blocks.6.attn.hook_k"),
    (("k", 6, "a"), "blocks.6.attn.hook_k"),
    (("k6",), "blocks.6.attn.hook_k"),
    (("q", 0), "blocks.0.attn.hook_q"),
    (("v", 10), "blocks.10.attn.hook_v"),
    (("z", "4"), "blocks.4.attn.hook_z"),
    (("rot_q", 1), "blocks.1.attn.hook_rot_q"),
    (("rot_k", 1), "blocks.1.attn.hook_rot_k"),
    (("result", 11, "attn"), "blocks.11.attn.hook_result"),
    (("pattern", 2), "blocks.2.attn.hook_pattern"),
    (("attn", 2), "blocks.2.attn.hook_pattern"),
    (("attn_scores", 2), "blocks.2.attn.hook_attn_scores"),
    (("attn_logits", 2), "blocks.2.attn.hook_attn_scores"),
    (("key", 1), "blocks.1.attn.hook_k"),
    (("query", 1), "blocks.1.attn.hook_q"),
    (("value", 1), "blocks.1.attn.hook_v"),
    (("pre", 2), "blocks.2.mlp.hook_pre"),
    (("pre2",), "blocks.2.mlp.hook_pre"),
    (("post", 2, "mlp"), "blocks.2.mlp.hook_post"),
    (("pre_linear", 2), "blocks.2.mlp.hook_pre_linear"),
    (("mid", 0), "blocks.0.mlp.hook_mid"),
    (("mlp_pre", 2), "blocks.2.mlp.hook_pre"),
    (("mlp_mid", 2), "blocks.2.mlp.hook_mid"),
    (("mlp_post", 2), "blocks.2.mlp.hook_post"),
    (("resid_pre", 5), "blocks.5.hook_resid_pre"),
    (("resid_mid", 5), "blocks.5.hook_resid_mid"),
    (("resid_post", 5), "blocks.5.hook_resid_post"),
    (("attn_out", 5), "blocks.5.hook_attn_out"),
    (("mlp_out", 5), "blocks.5.hook_mlp_out"),
    (("attn_in", 5), "blocks.5.hook_attn_in"),
    (("mlp_in", 5), "blocks.5.hook_mlp_in"),
    (("q_input", 5), "blocks.5.hook_q_input"),
    (("scale", 4, "ln1"), "blocks.4.ln1.hook_scale"),
    (("scale4ln1",), "blocks.4.ln1.hook_scale"),
    (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
    (("normalized27ln2",), "blocks.27.ln2.hook_normalized"),
])  # fmt: skip
def test_full_names(arguments: tuple[Any, ...], wanted: str) -> None:
    assert get_act_name(*arguments) == wanted
