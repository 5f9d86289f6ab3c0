"""A part that a model does not have is absent, so that `hasattr` tells; every module knows its place."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookPoint

TOKENS = tiny_tokens(2, 5)
POSITIONS = {"pos_embed", "hook_pos_embed"}
MLP = {f"blocks.1.{part}" for part in ("ln2", "mlp", "hook_mlp_in", "hook_mlp_out")}
MID = {"blocks.1.hook_resid_mid"}
ATTENTION_BEHIND, MLP_BEHIND = {"blocks.1.ln1_post"}, {"blocks.1.ln2_post"}
GATED = {f"blocks.1.mlp.{part}" for part in ("W_gate", "b_gate", "hook_pre_linear")}
AFTER_ACTIVATION = {f"blocks.1.mlp.{part}" for part in ("ln", "hook_mid")}
ROUTED = {f"blocks.1.mlp.{part}" for part in ("W_router", "b_router", "hook_expert_weights", "hook_expert_indices")}
TURNED = {f"blocks.1.attn.{part}" for part in ("hook_rot_q", "hook_rot_k")}
HEAD_NORMS = {f"blocks.1.attn.{part}" for part in ("q_norm", "k_norm")}
REST = {"embed.ln", "hook_tokens"}
ALL = POSITIONS | MLP | MID | ATTENTION_BEHIND | MLP_BEHIND | GATED | AFTER_ACTIVATION | ROUTED | TURNED | HEAD_NORMS
ALL |= REST
EXPERTS = {"num_experts": 3, "experts_per_token": 2}

KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "standard": ({}, POSITIONS | MLP | MID),
    "without norms": ({"normalization_type": None, "use_normalization_before_and_after": True}, POSITIONS | MLP | MID),
    "attention only": ({"attn_only": True}, POSITIONS),
    "attention only, norms on both sides": (
        {"attn_only": True, "use_normalization_before_and_after": True}, POSITIONS | ATTENTION_BEHIND,
    ),
    "parallel, a hook on tokens": (
        {"parallel_attn_mlp": True, "use_hook_tokens": True}, POSITIONS | MLP | {"hook_tokens"},
    ),
    "norms behind only": (
        {"use_normalization_after_only": True}, POSITIONS | MLP | MID | ATTENTION_BEHIND | MLP_BEHIND,
    ),
    "rotary, gated, RMS norms on both sides and of heads": (
        {"positional_embedding_type": "rotary", "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS",
         "use_normalization_before_and_after": True, "use_qk_norm": True},
        MLP | MID | ATTENTION_BEHIND | MLP_BEHIND | GATED | TURNED | HEAD_NORMS,
    ),
    "alibi, a norm behind the embedding": (
        {"positional_embedding_type": "alibi", "post_embedding_ln": True}, MLP | MID | {"embed.ln"},
    ),
    "shortformer, solu_ln": (
        {"positional_embedding_type": "shortformer", "act_fn": "solu_ln"}, POSITIONS | MLP | MID | AFTER_ACTIVATION,
    ),
    "no positions, experts": ({"positional_embedding_type": "none", **EXPERTS}, MLP | MID | ROUTED),
    "gated experts": ({"gated_mlp": True, **EXPERTS}, POSITIONS | MLP | MID | GATED | ROUTED),
}  # fmt: skip


def test_the_table_has_every_part_on_both_sides() -> None:
    assert set().union(*(present for _, present in KINDS.values())) == ALL
    assert not set.intersection(*(present for _, present in KINDS.values()))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_there_or_it_is_not(kind: str, folded: bool) -> None:
    fields, present = KINDS[kind]
    model = tiny_model(**fields)
    before = model(TOKENS)
    if folded:
        model.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    found = set()
    for part in ALL:
        place, _, name = part.rpartition(".")
        if place in dict(model.named_modules()) and hasattr(model.get_submodule(place), name):
            found.add(part)
    assert found == present
    for place, module in model.named_modules():
        absent = {name for name, value in vars(module).items() if value is None and not name.startswith("_")}
        assert absent <= {"tokenizer"}, place
        assert None not in module._modules.values() and None not in module._parameters.values(), place
    torch.testing.assert_close(model(TOKENS).log_softmax(-1), before.log_softmax(-1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_first_can_hook(kind: str) -> None:
    """As packages do that hook whichever norm writes to the stream."""
    fields, present = KINDS[kind]
    model, shown = tiny_model(**fields), []

    def look(value: Tensor, hook: HookPoint) -> None:
        shown.append(hook.name)

    for block in model.blocks:
        if hasattr(block, "ln1_post"):
            block.ln1_post.hook_normalized.add_hook(look)
    model(TOKENS)
    behind = [f"blocks.{layer}.ln1_post.hook_normalized" for layer in range(2)]
    assert shown == (behind if ATTENTION_BEHIND <= present else [])


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_knows_its_place(kind: str) -> None:
    model = tiny_model(**KINDS[kind][0])
    places = {name: module for name, module in model.named_modules() if name}
    assert {"embed", "blocks", "blocks.0", "blocks.1.attn", "unembed", "ln_final"} <= set(places)
    assert [module.name for module in places.values()] == list(places)
    model.blocks[0].attn = torch.nn.Sequential(torch.nn.Identity())
    model.setup()
    assert model.blocks[0].attn[0].name == "blocks.0.attn.0"
