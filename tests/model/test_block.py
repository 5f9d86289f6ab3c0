"""A block's arithmetic piece by piece: put together it is `forward`, and taken up in the middle it is a whole run."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from headscope import HookedTransformer
from headscope.model.block import RESUMABLE, TransformerBlock
from headscope.model.parts.layers import MLP
from headscope.ops.indexing import at_positions

KINDS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
    "shared keys": {"n_heads": 4, "n_key_value_heads": 2},
    "window": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]},
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "alibi": {"positional_embedding_type": "alibi"},
    "post-norms": {"use_normalization_before_and_after": True},
    "gated": {"gated_mlp": True},
    "experts": {"num_experts": 3, "experts_per_token": 2},
    "capped scores": {"attn_scores_soft_cap": 5.0},
    "clipped": {"clip_qkv": 0.5},
    "normalized queries": {"use_qk_norm": True},
}
ABSENT = {"parallel": ("hook_resid_mid",), "attention only": ("hook_resid_mid", "hook_mlp_out")}
HERE = slice(2, 6)


def block_of(model: HookedTransformer) -> TransformerBlock:
    block = model.blocks[1]
    assert isinstance(block, TransformerBlock)
    return block


def entering(model: HookedTransformer, seed: int = 1) -> Tensor:
    return model(tiny_tokens(seed=seed), stop_at_layer=1)


@pytest.mark.parametrize("kind", [*KINDS, *UNSUPPORTED])
def test_pieces_put_together_are_the_block(kind: str) -> None:
    model = tiny_model(**{**KINDS, **UNSUPPORTED}[kind])
    block, resid = block_of(model), entering(model)
    after = block(resid)
    attn_out = block.attn_out(resid)
    torch.testing.assert_close(block.after_attention(resid, attn_out), after, rtol=0, atol=0)
    if model.cfg.has_resid_mid:
        torch.testing.assert_close(block.after_mid(resid + attn_out), after, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "site"), [(k, s) for k in KINDS for s in RESUMABLE if s not in ABSENT.get(k, ())])
def test_a_block_taken_up_in_the_middle_is_a_whole_run(kind: str, site: str) -> None:
    model = tiny_model(**KINDS[kind])
    block, name = block_of(model), f"blocks.1.{site}"
    assert block.can_resume
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, :2] = False
    names = [f"blocks.1.{each}" for each in (*block.read_by_resumed(site), "attn.hook_k", "attn.hook_v")]
    options: dict[str, Any] = {"attention_mask": mask, "stop_at_layer": 2}
    _, cache = model.run_with_cache(tiny_tokens(), names_filter=names, **options)
    _, other = model.run_with_cache(tiny_tokens(seed=5), names_filter=name, **options)
    kept = {each.removeprefix("blocks.1."): cache[each] for each in names}
    stage, stream = block.resumed(site, other[name], kept, HERE, mask)

    def put(value: Tensor, hook: Any) -> Tensor:
        return other[name]

    after = model.run_with_hooks(tiny_tokens(), fwd_hooks=[(name, put)], **options)
    assert stream.shape == after[:, HERE].shape
    if stage == 1:
        stream = block.after_mid(stream)
    if stage == 0:
        assert torch.equal(stream, other[name][:, HERE])
    else:
        torch.testing.assert_close(stream, after[:, HERE], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_query_gives_its_row_of_all(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
    block, resid = block_of(model), entering(model)
    at = torch.tensor([[4], [1]])
    seen = block.attn.allowed(7, 7)[0, 0][at[:, 0]]
    one = block.attn_out(resid, attention_mask=seen, query_at=at)
    if kind != "window":  # the last position's window is not that of the query
        torch.testing.assert_close(one, at_positions(block.attn_out(resid), at), rtol=1e-10, atol=1e-12)
    assert one.shape == (2, 1, 10)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_is_not_supported_is_said(kind: str) -> None:
    assert not block_of(tiny_model(**UNSUPPORTED[kind])).can_resume


def test_a_hook_or_a_foreign_module_anywhere_in_it_forbids_resuming() -> None:
    class Own(MLP):
        pass

    model = tiny_model()
    block = block_of(model)
    with model.hooks([("blocks.1.ln2.hook_scale", lambda scale, hook: None)]):
        assert not block.can_resume
    handle = block.mlp.register_forward_pre_hook(lambda part, given: None)
    assert not block.can_resume
    handle.remove()
    assert block.can_resume
    before, block.mlp = block.mlp, Own(model.cfg)
    assert not block.can_resume
    block.mlp = before
    block.attn.hook_z = nn.Sequential()  # type: ignore[assignment]
    assert not block.can_resume


@pytest.mark.parametrize(
    "fields", [{}, {"clip_qkv": 0.4}, {"use_qk_norm": True}, {"n_heads": 4, "n_key_value_heads": 2}]
)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_head_shows_what_it_would_of_another_stream(fields: dict[str, Any], name: Any) -> None:
    model = tiny_model(ungroup_grouped_query_attention=True, **fields)
    block, point = block_of(model), f"blocks.1.attn.hook_{name}"
    before, after = entering(model), entering(model, seed=5)
    shown = [
        model.run_with_cache(resid, start_at_layer=1, names_filter=point, return_type=None)[1][point][:, :, 2]
        for resid in (before, after)
    ]
    torch.testing.assert_close(block.reprojected(name, 2, shown[0], before, after), shown[1], rtol=1e-10, atol=1e-12)
