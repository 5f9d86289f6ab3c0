"""The vocabulary of hook points: each exists where it has a meaning, and fires when asked for by name.

Compared with the reference, in float64, within 1e-9.
"""

from functools import cache
from typing import Any

import pytest
from reference import Edit, Reference, Run, keep
from surface import same
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, HookPoint

TOKENS = tiny_tokens(2, 5)
BATCH, POS, HEADS, D_MODEL, D_HEAD, D_MLP = 2, 5, 3, 10, 4, 14
STREAM, PER_HEAD, SCALE = (BATCH, POS, D_MODEL), (BATCH, POS, HEADS, D_HEAD), (BATCH, POS, 1)
INPUTS, SCORES, NEURONS = (BATCH, POS, HEADS, D_MODEL), (BATCH, HEADS, POS, POS), (BATCH, POS, D_MLP)

OUTSIDE = {
    "hook_embed": STREAM, "hook_pos_embed": STREAM, "ln_final.hook_scale": SCALE, "ln_final.hook_normalized": STREAM,
}  # fmt: skip
ATTENTION = {
    "hook_resid_pre": STREAM, "hook_resid_post": STREAM, "hook_attn_out": STREAM,
    "hook_attn_in": INPUTS, "hook_q_input": INPUTS, "hook_k_input": INPUTS, "hook_v_input": INPUTS,
    "ln1.hook_scale": SCALE, "ln1.hook_normalized": STREAM,
    "attn.hook_q": PER_HEAD, "attn.hook_k": PER_HEAD, "attn.hook_v": PER_HEAD, "attn.hook_z": PER_HEAD,
    "attn.hook_attn_scores": SCORES, "attn.hook_pattern": SCORES, "attn.hook_result": INPUTS,
}  # fmt: skip
MLP = {
    "hook_mlp_in": STREAM, "hook_mlp_out": STREAM, "mlp.hook_pre": NEURONS, "mlp.hook_post": NEURONS,
    "ln2.hook_scale": SCALE, "ln2.hook_normalized": STREAM,
}  # fmt: skip
BETWEEN = {"hook_resid_mid": STREAM}

ROTATED = {"attn.hook_rot_q": PER_HEAD, "attn.hook_rot_k": PER_HEAD}
GATED = {"mlp.hook_pre_linear": NEURONS}
BEHIND = {f"ln{number}_post.hook_{kind}": shape
          for number in (1, 2) for kind, shape in (("scale", SCALE), ("normalized", STREAM))}  # fmt: skip
OF_HEADS = {f"attn.{which}_norm.hook_{kind}": shape for which in "qk"
            for kind, shape in (("scale", (BATCH, POS, HEADS, 1)), ("normalized", PER_HEAD))}  # fmt: skip
INSIDE = {"mlp.hook_mid": NEURONS, "mlp.ln.hook_scale": SCALE, "mlp.ln.hook_normalized": NEURONS}
IN_FRONT = {name for name in {**ATTENTION, **MLP} if name.startswith(("ln1.", "ln2."))}
LOCAL = {"use_local_attn": True, "attn_types": ["local", "global"], "window_size": 3}

KINDS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "standard": ({}, {**ATTENTION, **MLP, **BETWEEN}),
    "attention only": ({"attn_only": True}, ATTENTION),
    "parallel": ({"parallel_attn_mlp": True}, {**ATTENTION, **MLP}),
    "rotary, parallel": (
        {"positional_embedding_type": "rotary", "rotary_dim": 2, "rotary_scaling_factor": 2.0,
         "parallel_attn_mlp": True},
        {**ATTENTION, **MLP, **ROTATED},
    ),
    "rotary, gated, norms on both sides, a window and caps": (
        {"positional_embedding_type": "rotary", "rotary_base": 50, "rotary_adjacent_pairs": True, "gated_mlp": True,
         "act_fn": "silu", "normalization_type": "RMS", "use_normalization_before_and_after": True,
         "use_qk_norm": True, "attn_scores_soft_cap": 1.5, "output_logits_soft_cap": 2.0, **LOCAL},
        {**ATTENTION, **MLP, **BETWEEN, **ROTATED, **GATED, **BEHIND, **OF_HEADS},
    ),
    "norms behind only": (
        {"use_normalization_after_only": True, **LOCAL},
        {**{name: shape for name, shape in {**ATTENTION, **MLP}.items() if name not in IN_FRONT}, **BETWEEN, **BEHIND},
    ),
    "alibi, a norm behind the embedding": (
        {"positional_embedding_type": "alibi", "post_embedding_ln": True},
        {**ATTENTION, **MLP, **BETWEEN},
    ),
    "solu_ln": ({"act_fn": "solu_ln", "final_rms": True}, {**ATTENTION, **MLP, **BETWEEN, **INSIDE}),
}  # fmt: skip


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    fields, of_block = KINDS[kind]
    outside = dict(OUTSIDE)
    if fields.get("positional_embedding_type", "standard") != "standard":
        del outside["hook_pos_embed"]
    if "post_embedding_ln" in fields:
        outside |= {"embed.ln.hook_scale": SCALE, "embed.ln.hook_normalized": STREAM}
    return outside | {f"blocks.{layer}.{name}": shape for layer in range(2) for name, shape in of_block.items()}


@cache
def model_of(kind: str) -> HookedTransformer:
    return tiny_model(**KINDS[kind][0])


OPTIONAL = ("attn_in", "q_input", "k_input", "v_input", "mlp_in", "result")


def by_hand(kind: str, name: str, edit: Edit = keep) -> Run:
    """The reference, with what is made only for hooks when the name is one of these."""
    model = model_of(kind)
    optional = OPTIONAL if name.endswith(OPTIONAL) else ()
    return Reference(model.state_dict(), model.cfg, edit=edit, optional=optional).run(TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_these_are_all(kind: str) -> None:
    model = model_of(kind)
    assert set(model.hook_dict) == set(shapes(kind))
    assert all(point.name == name for name, point in model.hook_dict.items())


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in shapes(kind)])
def test_a_name_fires_when_asked_for(kind: str, name: str) -> None:
    """Once; it shows the reference's value, and what it returns is used from there on."""
    model, wanted = model_of(kind), by_hand(kind, name)
    seen: list[Tensor] = []

    def look(value: Tensor, hook: HookPoint) -> None:
        assert hook is model.hook_dict[name]
        seen.append(value.detach().clone())

    same(model.run_with_hooks(TOKENS, fwd_hooks=[(name, look)]), wanted.logits)
    assert len(seen) == 1 and seen[0].shape == shapes(kind)[name]
    same(seen[0], wanted.acts[name])
    _, cache = model.run_with_cache(TOKENS, names_filter=name)
    assert list(cache) == [name]
    same(cache[name], wanted.acts[name])

    def edit(at: str, value: Tensor) -> Tensor:
        return change(value) if at == name else value

    def change(value: Tensor) -> Tensor:
        return 0.5 * value + 0.1 * value.roll(1, -1).nan_to_num(neginf=0.0)

    edited = by_hand(kind, name, edit).logits
    found = model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda value, hook: change(value))])
    same(found, edited)
    assert float((edited - wanted.logits).abs().max()) > 1e-6


def test_the_tokens_have_a_point_when_asked_for() -> None:
    model = tiny_model(use_hook_tokens=True)
    found = model.run_with_hooks(TOKENS, fwd_hooks=[("hook_tokens", lambda value, hook: value.flip(0))])
    same(found, Reference(model.state_dict(), model.cfg).run(TOKENS.flip(0)).logits)
