"""Latent attention: keys and values of all heads from one narrow vector, against the formulas of DeepSeek-V2."""

from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_model, tiny_tokens

from headscope import HookedTransformer
from headscope.errors import InvalidInputError

LATENT = {
    "positional_embedding_type": "rotary", "rotary_dim": 2, "d_latent_kv": 6, "d_latent_q": 5, "d_head_v": 3,
    "normalization_type": "RMS",
}  # fmt: skip


def model(**fields: Any) -> HookedTransformer:
    return tiny_model(**{**LATENT, **fields})


@pytest.mark.parametrize("d_latent_q", [5, None])
def test_what_heads_get(d_latent_q: int | None) -> None:
    own = model(d_latent_q=d_latent_q)
    attn, head = own.blocks[1].attn, 2
    with torch.no_grad():
        _, acts = own.run_with_cache(tiny_tokens())
        read = acts["blocks.1.ln1.hook_normalized"] * own.blocks[1].ln1.w
        latents = {}
        for kind in ("Q", "KV") if d_latent_q else ("KV",):
            down = read @ getattr(attn, f"W_{kind}_down") + getattr(attn, f"b_{kind}_down")
            norm = getattr(attn, f"{kind.lower()}_latent_norm")
            latents[kind] = down / (down.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.w
        q = latents.get("Q", read) @ attn.W_Q_up[head] + attn.b_Q[head]
        v = latents["KV"] @ attn.W_V_up[head] + attn.b_V[head]
        shared = read @ attn.W_K_rotary + attn.b_K_rotary
        k = torch.cat([latents["KV"] @ attn.W_K_up[head], shared], dim=-1) + attn.b_K[head]
        for name, wanted in (("q", q), ("k", k), ("v", v)):
            torch.testing.assert_close(acts[name, 1][:, :, head], wanted, rtol=0, atol=1e-12)
            torch.testing.assert_close(attn.of_head(name, head, read), wanted, rtol=0, atol=1e-12)
            # An input of its own for each head is another way through.
        own.set_use_split_qkv_input(True)
        torch.testing.assert_close(own.run_with_cache(tiny_tokens())[1]["k", 1], acts["k", 1], rtol=0, atol=1e-12)
        torch.testing.assert_close(acts["rot_k", 1][..., :2], acts["k", 1][..., :2])  # the rest of a key is turned
        assert not torch.allclose(acts["rot_k", 1][:, 1:, :, 2:], acts["k", 1][:, 1:, :, 2:])
        # The product of the matrices is a head's values, but for the scale of the norm.
        attn.b_KV_down.zero_()
        attn.b_V.zero_()
        found = attn.of_head("v", head, read)
        scale = (read @ attn.W_KV_down).square().mean(-1, keepdim=True).add(1e-6).sqrt()
        torch.testing.assert_close(read @ attn.W_V[head] / scale, found, rtol=0, atol=1e-12)
    assert acts["z", 1].shape == (2, 7, 3, 3) and own.OV.shape == (2, 3, 10, 10)
    matrices = sum(p.numel() for n, p in own.named_parameters() if ".W_" in n and n.startswith("blocks."))
    assert own.cfg.n_params == matrices


def test_what_no_one_matrix_makes_is_refused() -> None:
    own = model()
    for of in (own, own.blocks[0].attn):
        for name in ("W_K", "W_Q", "QK"):
            with pytest.raises(InvalidInputError, match="latent attention has no W_"):
                getattr(of, name)
    assert model(d_latent_q=None).W_Q.shape == (2, 3, 10, 4)


@pytest.mark.parametrize(("norm", "folded"), [("RMS", True), ("LN", True)])
def test_processing_keeps_log_probabilities(norm: str, folded: bool) -> None:
    tokens, own = tiny_tokens(), model(normalization_type=norm)
    with torch.no_grad():
        wanted = own(tokens).log_softmax(-1)
        own.process_weights_()
        torch.testing.assert_close(own(tokens).log_softmax(-1), wanted, rtol=0, atol=1e-10)
    assert ("fold_ln" in own.weight_processing) is folded and "fold_value_biases" in own.weight_processing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_latent_q": 4}, "d_latent_q = 4 needs d_latent_kv"),
        ({"d_head_v": 4}, "d_head_v = 4 needs d_latent_kv"),
        ({**LATENT, "d_latent_kv": 0}, "d_latent_kv must be at least 1; got 0"),
        ({**LATENT, "rotary_dim": 4}, "rotary_dim below d_head = 4"),
        ({**LATENT, "positional_embedding_type": "none"}, "got positional_embedding_type = 'none'"),
        ({**LATENT, "n_key_value_heads": 1}, "n_key_value_heads must be None"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tiny_config(**fields)
