"""Every activation of a small model equals the plain float64 forward pass, listened to, replaced and differentiated."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import Reference
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, HookPoint

SHAPES: dict[str, dict[str, Any]] = {
    "LN": {},
    "LNPre": {"normalization_type": "LNPre", "act_fn": "gelu"},
    "RMS": {"normalization_type": "RMS", "act_fn": "silu", "scale_attn_by_inverse_layer_idx": True},
    "RMSPre": {"normalization_type": "RMSPre", "act_fn": "relu", "use_attn_scale": False},
    "no norm": {"normalization_type": None, "act_fn": "leaky_relu"},
    "attn_only": {"attn_only": True, "act_fn": None},
    "parallel": {"parallel_attn_mlp": True, "act_fn": "gelu_pytorch_tanh"},
    "no positions": {"positional_embedding_type": "none", "attn_scale": 1.7},
    "toy": {"attn_only": True, "normalization_type": None, "positional_embedding_type": "none", "n_layers": 1},
    "bidirectional": {"attention_dir": "bidirectional"},
    "soft cap": {"output_logits_soft_cap": 1.5},
    "wide heads": {"d_head": 13, "n_heads": 2},
    "more logits than tokens": {"d_vocab_out": 31},
}
PADDED = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 0]])
OPTIONAL = {
    "attn_in": ("hook_attn_in", "set_use_attn_in"),
    "q_input": ("hook_q_input", "set_use_split_qkv_input"),
    "mlp_in": ("hook_mlp_in", "set_use_hook_mlp_in"),
    "result": ("hook_result", "set_use_attn_result"),
}


def reference_of(model: HookedTransformer, **options: Any) -> Reference:
    return Reference(model.state_dict(), model.cfg, **options)


def assert_close(found: Tensor, wanted: Tensor, what: str = "") -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-9, atol=1e-9, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_every_cached_activation_equals_the_plain_forward_pass(shape: str, padded: bool) -> None:
    model = tiny_model(**SHAPES[shape])
    tokens = tiny_tokens(4)
    mask = PADDED if padded else None
    wanted = reference_of(model).run(tokens, mask)
    logits, cache = model.run_with_cache(tokens, attention_mask=mask)
    assert set(cache.keys()) == set(wanted.acts)
    for name, value in wanted.acts.items():
        assert_close(cache[name], value, name)
    assert_close(logits, wanted.logits, "logits")
    assert_close(model(tokens, attention_mask=mask), wanted.logits, "logits with nobody listening")


@pytest.mark.parametrize("how", ["name", "flag", "predicate", "hook"])
@pytest.mark.parametrize("shape", ["LN", "no norm", "parallel"])
@pytest.mark.parametrize("wanted", [("attn_in",), ("q_input",), ("mlp_in",), ("result",), tuple(OPTIONAL)])
def test_optional_activations_exist_when_asked_for(how: str, shape: str, wanted: tuple[str, ...]) -> None:
    model = tiny_model(**SHAPES[shape])
    tokens = tiny_tokens(4)
    expected = reference_of(model, optional=wanted).run(tokens, PADDED)
    suffixes = [OPTIONAL[each][0] for each in wanted]
    names = [name for name in expected.acts if name.endswith(tuple(suffixes))]
    if "q_input" in wanted:
        names = [*names, *(name.replace("q_input", kind) for name in names if name.endswith("q_input")
                           for kind in ("k_input", "v_input"))]  # fmt: skip
    if how == "name":
        logits, cache = model.run_with_cache(tokens, attention_mask=PADDED, names_filter=names)
        assert set(cache.keys()) == set(names)
    elif how == "predicate":
        logits, cache = model.run_with_cache(tokens, attention_mask=PADDED, names_filter=lambda name: name in names)
        assert set(cache.keys()) == set(names)
    elif how == "flag":
        for each in wanted:
            getattr(model, OPTIONAL[each][1])(True)
        logits, cache = model.run_with_cache(tokens, attention_mask=PADDED)
        assert set(cache.keys()) == set(expected.acts)
        for each in wanted:
            getattr(model, OPTIONAL[each][1])(False)
        assert names[0] not in model.run_with_cache(tokens)[1]
    else:
        cache = {}
        hooks = [(name, lambda value, hook: cache.update({hook.name: value})) for name in names]
        logits = model.run_with_hooks(tokens, attention_mask=PADDED, fwd_hooks=hooks)
    for name in cache:
        assert_close(cache[name], expected.acts[name], name)
    assert_close(logits, expected.logits, "logits")


@pytest.mark.parametrize("flags", [("attn_in", "q_input"), ("attn_in",), ("q_input", "result", "mlp_in")])
def test_flags_change_no_logits(flags: tuple[str, ...]) -> None:
    model = tiny_model()
    tokens = tiny_tokens()
    plain = model(tokens)
    for each in flags:
        getattr(model, OPTIONAL[each][1])(True)
    assert_close(model(tokens), plain)


def change(name: str, value: Tensor) -> Tensor:
    """Another value of the same shape at every entry, which keeps scores that are masked where they are."""
    if name.endswith("hook_scale"):
        return value * 1.5
    return value * 0.5 + 0.1 * torch.arange(value.numel(), dtype=value.dtype).view(value.shape).cos()


def change_hook(value: Tensor, hook: HookPoint) -> Tensor:
    return change(hook.name or "", value)


def all_names(shape: str) -> list[str]:
    return list(tiny_model(**SHAPES[shape]).hook_dict)


@pytest.mark.parametrize("shape", ["LN", "LNPre", "no norm", "attn_only", "parallel"])
def test_a_value_returned_at_any_hook_point_is_used_from_there_on(shape: str) -> None:
    model = tiny_model(**SHAPES[shape])
    tokens, real = tiny_tokens(4), PADDED.bool()
    clean = reference_of(model).run(tokens, PADDED).logits
    for changed in [name for name in model.hook_dict if "blocks.1" not in name]:
        kind = changed.rsplit("hook_", 1)[-1].replace("k_input", "q_input").replace("v_input", "q_input")
        reference = reference_of(
            model,
            edit=lambda name, value, at=changed: change(name, value) if name == at else value,
            optional=[kind] if kind in OPTIONAL else [],
        )
        wanted = reference.run(tokens, PADDED)
        assert float((wanted.logits - clean)[real].abs().max()) > 1e-4, f"{changed} changes nothing in the reference"
        logits = model.run_with_hooks(tokens, attention_mask=PADDED, fwd_hooks=[(changed, change_hook)])
        assert_close(logits[real], wanted.logits[real], changed)
        if kind not in OPTIONAL:
            with model.hooks(fwd_hooks=[(changed, change_hook)]):
                _, cache = model.run_with_cache(tokens, attention_mask=PADDED)
            for name, value in wanted.acts.items():
                assert_close(cache[name], value, f"{name} after {changed}")


def test_all_hook_points_changed_at_once() -> None:
    model = tiny_model()
    tokens = tiny_tokens()
    wanted = reference_of(model, edit=change, optional=OPTIONAL).run(tokens)
    logits = model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, change_hook)])
    assert_close(logits, wanted.logits)


@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_attention_equals_the_visible_one(masked: bool) -> None:
    for shape in ("LN", "bidirectional", "RMS", "wide heads"):
        model = tiny_model(dtype=torch.float32, **SHAPES[shape])
        tokens = tiny_tokens(4)
        mask = PADDED if masked else None
        names = [name for name in model.hook_dict if name.endswith(("hook_z", "resid_post"))]
        fused_logits, fused = model.run_with_cache(tokens, names_filter=names, attention_mask=mask)
        with model.hooks(fwd_hooks=[(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)]):
            visible_logits, visible = model.run_with_cache(tokens, names_filter=names, attention_mask=mask)
        torch.testing.assert_close(fused_logits, visible_logits, rtol=1e-5, atol=1e-5)
        for name in names:
            torch.testing.assert_close(fused[name], visible[name], rtol=1e-5, atol=1e-5)


def test_scores_are_masked_by_position_even_where_they_are_exactly_zero() -> None:
    model = tiny_model()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
    _, cache = model.run_with_cache(tiny_tokens())
    later = torch.ones(7, 7).triu(1).bool()
    assert bool((cache["attn_scores", 0][..., later] == -math.inf).all())
    assert bool((cache["attn_scores", 0][..., ~later] == 0).all())
    wanted = torch.ones(7, 7).double().tril() / torch.arange(1.0, 8.0).double()[:, None]
    assert_close(cache["pattern", 1], wanted.expand(2, 3, 7, 7).contiguous())


@pytest.mark.parametrize("listen", [None, "hook_pattern", "hook_attn_scores"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_gradients_equal_those_of_the_plain_forward_pass(listen: str | None, padded: bool) -> None:
    model = tiny_model()
    tokens = tiny_tokens(4)
    mask = PADDED if padded else None
    real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
    own = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    wanted = Reference(own, model.cfg).run(tokens, mask).logits
    loss = wanted[real].tanh().sum()
    gradients = torch.autograd.grad(loss, list(own.values()))
    hooks = [] if listen is None else [(lambda name: name.endswith(listen), lambda value, hook: None)]
    logits = model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
    logits[real].tanh().sum().backward()
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None, name
        assert_close(parameter.grad, gradient, name)


def test_backward_hooks_see_the_gradient_at_every_hook_point() -> None:
    model = tiny_model()
    tokens = tiny_tokens()
    held: dict[str, Tensor] = {}

    def leaf(name: str, value: Tensor) -> Tensor:
        held[name] = value if value.requires_grad else value.detach().requires_grad_()
        held[name].retain_grad()
        return held[name]

    own = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    Reference(own, model.cfg, edit=leaf).run(tokens).logits.tanh().sum().backward()
    cache, forward, backward = model.get_caching_hooks(incl_bwd=True)
    with model.hooks(forward, backward):
        model(tokens).tanh().sum().backward()
    for name in held:
        wanted = held[name].grad
        assert wanted is not None
        assert_close(cache[f"{name}_grad"], wanted, name)


def test_run_with_cache_keeps_gradients_of_a_loss() -> None:
    model = tiny_model()
    tokens = tiny_tokens()
    loss, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True, names_filter=lambda n: "resid" in n)
    resid = model.blocks[0](model.hook_embed(model.embed(tokens)) + model.pos_embed(tokens))
    resid = resid.detach().requires_grad_()
    again = model(resid, start_at_layer=1, tokens=tokens, return_type="loss")
    again.backward()
    torch.testing.assert_close(loss, again)
    assert resid.grad is not None
    assert_close(cache["blocks.1.hook_resid_pre_grad"], resid.grad)
    assert_close(cache["blocks.0.hook_resid_post_grad"], resid.grad)


def test_a_backward_hook_may_replace_the_gradient() -> None:
    model = tiny_model()
    tokens = tiny_tokens()
    for replacement in (lambda gradient, hook: 0.0 * gradient, lambda gradient, hook: (0.0 * gradient,)):
        model.zero_grad()
        with model.hooks(bwd_hooks=[("blocks.1.attn.hook_z", replacement)]):
            model(tokens).sum().backward()
        values = model.blocks[1].attn.W_V.grad
        assert values is not None and float(values.abs().max()) == 0.0
        output = model.blocks[1].attn.W_O.grad
        assert output is not None and float(output.abs().max()) > 0.0


@pytest.mark.parametrize("point", ["attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale"])
def test_gradients_flow_through_a_returned_value(point: str) -> None:
    model = tiny_model()
    knob = torch.ones((), dtype=torch.float64, requires_grad=True)
    tokens = tiny_tokens()
    name = f"blocks.0.{point}"
    model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: value * knob)]).tanh().sum().backward()
    twin = torch.ones((), dtype=torch.float64, requires_grad=True)
    edit = lambda at, value: value * twin if at == name else value  # noqa: E731
    reference_of(model, edit=edit).run(tokens).logits.tanh().sum().backward()
    assert knob.grad is not None and twin.grad is not None and abs(float(twin.grad)) > 1e-6
    assert_close(knob.grad, twin.grad)


def double_first(value: Tensor, hook: HookPoint) -> Tensor:
    value[:, 0] = value[:, 0] * 2
    return value


IN_PLACE = [
    name for name in all_names("LN") if not name.endswith(("hook_scale", "k_input", "v_input")) and "blocks.0" in name
]


@pytest.mark.parametrize("name", [*IN_PLACE, "hook_embed", "hook_pos_embed", "ln_final.hook_normalized"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_a_hook_may_write_in_place_and_gradients_still_flow(name: str, padded: bool) -> None:
    model = tiny_model()
    tokens = tiny_tokens(4)
    mask = PADDED if padded else None
    real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
    optional = [each for each in OPTIONAL if name.endswith(OPTIONAL[each][0])]

    def edit(at: str, value: Tensor) -> Tensor:
        if at != name:
            return value
        return torch.cat([value[:, :1] * 2, value[:, 1:]], dim=1)

    own = {each: value.detach().clone().requires_grad_() for each, value in model.state_dict().items()}
    wanted = Reference(own, model.cfg, edit=edit, optional=optional).run(tokens, mask).logits[real]
    gradient = torch.autograd.grad(wanted.tanh().sum(), own["embed.W_E"])[0]
    logits = model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[(name, double_first)])
    assert_close(logits[real], wanted, name)
    logits[real].tanh().sum().backward()
    assert model.embed.W_E.grad is not None
    assert_close(model.embed.W_E.grad, gradient, name)


def test_writing_in_place_at_one_input_of_a_head_leaves_the_others_alone() -> None:
    model = tiny_model()
    tokens = tiny_tokens()

    def ablate(value: Tensor, hook: HookPoint) -> Tensor:
        value[:, :, 1] = 0
        return value

    with model.hooks(fwd_hooks=[("blocks.0.hook_q_input", ablate)]):
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.startswith("blocks.0"))
    clean = model.run_with_cache(tokens)[1]
    for name in ("attn.hook_k", "attn.hook_v", "hook_resid_pre"):
        assert_close(cache[f"blocks.0.{name}"], clean[f"blocks.0.{name}"], name)
    changed = (cache["q", 0] - clean["q", 0]).abs().amax((0, 1, 3)) > 1e-9
    assert changed.tolist() == [False, True, False]


def test_the_model_runs_in_bfloat16_and_under_autocast() -> None:
    tokens = tiny_tokens()
    wide = tiny_model(dtype=torch.float32)
    logits = wide(tokens)
    narrow = tiny_model(dtype="bfloat16")
    assert narrow(tokens).dtype == torch.bfloat16
    torch.testing.assert_close(narrow(tokens).float(), logits, rtol=0.1, atol=0.2)
    listen: Callable[[str], bool] = lambda name: True  # noqa: E731
    assert narrow.run_with_cache(tokens, names_filter=listen)[0].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(wide(tokens).float(), logits, rtol=0.1, atol=0.2)
        cast, cache = wide.run_with_cache(tokens, names_filter=listen)
        torch.testing.assert_close(cast.float(), logits, rtol=0.1, atol=0.2)
        loss = wide(tokens, return_type="loss")
    loss.backward()
    assert bool(wide.W_E.grad.isfinite().all())


def test_a_mask_of_ones_own_is_read_and_set() -> None:
    model = tiny_model()
    tokens = tiny_tokens()
    own = torch.eye(12)
    assert bool((model.blocks[0].attn.mask == torch.ones(12, 12).tril().bool()).all())
    model.blocks[0].attn.mask = own
    assert bool((model.blocks[0].attn.mask == own.bool()).all())
    fused = model(tokens)
    visible, cache = model.run_with_cache(tokens)
    assert_close(cache["pattern", 0], torch.eye(7).double().expand(2, 3, 7, 7).contiguous())
    assert_close(fused, visible)


@pytest.mark.parametrize("listen", [False, True], ids=["fused", "visible"])
def test_a_query_that_sees_no_key_attends_to_nothing(listen: bool) -> None:
    model = tiny_model()
    own = torch.ones(12, 12).tril()
    own[2] = 0
    model.blocks[0].attn.mask = own
    names = ["blocks.0.attn.hook_z"] + ["blocks.0.attn.hook_pattern"] * listen
    logits, cache = model.run_with_cache(tiny_tokens(), names_filter=names)
    assert bool((cache["z", 0][:, 2] == 0).all())
    assert bool(logits.isfinite().all())
