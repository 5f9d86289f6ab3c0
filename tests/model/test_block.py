"""A block's arithmetic piece by piece: put together it is `forward`, and taken up in the middle it is a whole run."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from headscope import HookedTransformer
from headscope.model.block import RESUMABLE, TransformerBlock
from headscope.model.parts.attention import Attention
from headscope.model.parts.layers import MLP
from headscope.ops.indexing import at_positions

KINDS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
    "shared keys": {"n_heads": 4, "n_key_value_heads": 2},
    "window": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "alibi": {"positional_embedding_type": "alibi"},
    "alibi in bfloat16": {"positional_embedding_type": "alibi", "alibi_bfloat16": True, "attn_scale": 0.7},
    "xielu": {"act_fn": "xielu"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "post-norms": {"use_normalization_before_and_after": True},
    "post-norms only, parallel": {
        "use_normalization_after_only": True, "parallel_attn_mlp": True, "normalization_type": "RMS",
    },
    "gated": {"gated_mlp": True},
    "experts": {"num_experts": 3, "experts_per_token": 2},
    "capped scores": {"attn_scores_soft_cap": 5.0, "positional_embedding_type": "rotary"},
    "clipped": {"clip_qkv": 0.5, "positional_embedding_type": "rotary"},
    "normalized queries": {"use_qk_norm": True, "positional_embedding_type": "rotary"},
    "normalized together": {"use_qk_norm": True, "qk_norm_all_heads": True, "n_heads": 4, "n_key_value_heads": 2},
    "ungrouped": {
        "n_heads": 4, "n_key_value_heads": 2, "ungroup_grouped_query_attention": True, "use_qk_norm": True,
        "positional_embedding_type": "rotary",
    },
}  # fmt: skip
ABSENT = {
    "parallel": ("hook_resid_mid",), "post-norms only, parallel": ("hook_resid_mid",),
    "attention only": ("hook_resid_mid", "hook_mlp_out"),
}  # fmt: skip
HERE = slice(2, 6)


def block_of(model: HookedTransformer) -> TransformerBlock:
    block = model.blocks[1]
    assert isinstance(block, TransformerBlock)
    return block


def entering(model: HookedTransformer, seed: int = 1) -> Tensor:
    return model(tiny_tokens(seed=seed), stop_at_layer=1)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_put_together_are_the_block(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
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
    names = [f"blocks.1.{each}" for each in block.read_by_resumed(site)]
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


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_positions_are_those_of_a_whole_run(kind: str, side: str) -> None:
    model = tiny_model(**KINDS[kind])
    block = block_of(model)
    mask = None
    if side != "none":
        mask = torch.ones(2, 7, dtype=torch.bool)
        mask[1, slice(2) if side == "left" else slice(5, 7)] = False
    resid, _, positions, _ = model.input_to_embed(tiny_tokens(), attention_mask=mask)
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        kept[hook.name.removeprefix("blocks.1.")] = value

    hooks = [(f"blocks.1.{name}", keep) for name in (*block.reads_before, "hook_resid_pre")]
    options: dict[str, Any] = {"start_at_layer": 0, "attention_mask": mask, "stop_at_layer": 2}
    model.run_with_hooks(resid, fwd_hooks=hooks, shortformer_pos_embed=positions, **options)
    # Other streams from the third position on, twice over.
    start, changed = 2, [kept["hook_resid_pre"].clone() for _ in range(2)]
    for number, stream in enumerate(changed):
        stream[:, start:] = entering(model, seed=5 + number)[:, start:]
    given = {"shortformer_pos_embed": positions, "attention_mask": mask}
    whole = torch.cat([block(stream, **given) for stream in changed])
    many = {
        "shortformer_pos_embed": None if positions is None else positions[:, start:].repeat(2, 1, 1),
        "attention_mask": None if mask is None else mask.repeat(2, 1),
    }
    suffix = torch.cat(changed)[:, start:]
    found = block.suffix(suffix, start, block.before(kept), **many)
    torch.testing.assert_close(found, whole[:, start:], rtol=1e-10, atol=1e-12)
    at = torch.tensor([[4, 2], [6, 3], [5, 5], [2, 6]])
    found = block.suffix(suffix, start, block.before(kept), query_at=at, **many)
    torch.testing.assert_close(found, at_positions(whole, at), rtol=1e-10, atol=1e-12)
    many |= {"shortformer_pos_embed": None if positions is None else positions.repeat(2, 1, 1)}
    found = block.suffix(torch.cat(changed), 0, (), query_at=at, **many)
    torch.testing.assert_close(found, at_positions(whole, at), rtol=1e-10, atol=1e-12)


def test_what_is_behind_a_position_may_change_it() -> None:
    assert not block_of(tiny_model()).looks_ahead(7)
    assert block_of(tiny_model(attention_dir="bidirectional")).looks_ahead(7)
    own = block_of(tiny_model())
    own.attn.mask = torch.ones(12, 12).tril(1).bool()
    assert own.looks_ahead(7)
    factors = {"longrope_short_factors": [1.0, 1.5], "longrope_long_factors": [2.0, 3.5]}
    block = block_of(tiny_model(positional_embedding_type="rotary", longrope_original_ctx_len=4, **factors))
    assert block.depends_on_length(3, 6) and not block.depends_on_length(2, 4) and not block.depends_on_length(5, 6)
    assert not block_of(tiny_model(positional_embedding_type="rotary")).depends_on_length(3, 6)


def test_another_forward_is_run_whole_until_it_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Turned(Attention):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return -super().forward(*args, **kwargs)

    class Named(Attention):
        """Another class, the same forward."""

    class Sure(Turned):
        can_resume = True

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward(*args, **kwargs)

    class Doubled(TransformerBlock):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super().forward(*args, **kwargs)

    monkeypatch.setattr("headscope.model.block.is_own", lambda module: True)
    block = block_of(tiny_model())
    for attention, allowed in ((Turned, False), (Named, True), (Sure, True)):
        block.attn.__class__ = attention
        assert block.can_resume == allowed
    block.attn.__class__ = Turned
    assert block.obstacle == "Turned does not say that it can be taken up in the middle"
    block.attn.__class__ = Attention
    block.__class__ = Doubled
    assert block.obstacle == "Doubled does not say that it can be taken up in the middle"


def test_a_hook_or_a_foreign_module_anywhere_in_it_forbids_resuming() -> None:
    class Own(MLP):
        pass

    model = tiny_model()
    block = block_of(model)
    with model.hooks([("blocks.1.ln2.hook_scale", lambda scale, hook: None)]):
        assert block.obstacle == "hooks on ln2.hook_scale"
    handle = block.mlp.register_forward_pre_hook(lambda part, given: None)
    assert not block.can_resume
    handle.remove()
    assert block.can_resume
    before, block.mlp = block.mlp, Own(model.cfg)
    assert block.obstacle == "Own in mlp"
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
