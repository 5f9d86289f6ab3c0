"""A hook that changes nothing changes no bit, and one that changes something is heard, gradients included."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, HookPoint
from headscope.model.hooks import Reader, only_reads

SHAPE: dict[str, Any] = {
    "d_model": 48, "d_head": 8, "n_heads": 6, "d_mlp": 96, "n_ctx": 40, "dtype": torch.float32, "spread": 0.2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT-2": {"normalization_type": "LN"},
    "GPT-2, folded": {"normalization_type": "LNPre"},
    "Llama": {
        "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8, "n_key_value_heads": 2,
        "gated_mlp": True, "act_fn": "silu",
    },
    "Gemma 2": {
        "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8, "gated_mlp": True,
        "use_normalization_before_and_after": True, "attn_scores_soft_cap": 5.0,
    },
    "Qwen 3, a window": {
        "normalization_type": "RMSPre", "positional_embedding_type": "rotary", "rotary_dim": 8, "use_qk_norm": True,
        "use_local_attn": True, "window_size": 5, "attn_types": ["local", "global"],
    },
    "NeoX": {
        "normalization_type": "LN", "positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True,
    },
    "BLOOM": {"normalization_type": "LN", "positional_embedding_type": "alibi", "post_embedding_ln": True},
    "OLMo 2": {
        "normalization_type": "RMS", "use_normalization_after_only": True, "use_qk_norm": True,
        "qk_norm_all_heads": True,
    },
    "mixture": {"normalization_type": "RMS", "num_experts": 4, "experts_per_token": 2, "gated_mlp": True},
    "bfloat16": {"normalization_type": "LN", "dtype": torch.bfloat16},
}  # fmt: skip
TOKENS = tiny_tokens(batch=3, length=33)
INSIDE = ("hook_scale", "hook_normalized", "hook_attn_scores", "hook_pattern", "hook_result")
Hook = Callable[[Tensor, HookPoint], Any]


def model_of(family: str) -> HookedTransformer:
    return tiny_model(**SHAPE | FAMILIES[family])


def everything(_name: str) -> bool:
    return True


def points_inside(model: HookedTransformer) -> list[str]:
    return [name for name in model.hook_dict if name.endswith(INSIDE)]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_filtered_cache_has_the_bits_of_a_full_one(family: str, grad: bool) -> None:
    model = model_of(family)
    with torch.set_grad_enabled(grad):
        bare = model(TOKENS)
        logits, full = model.run_with_cache(TOKENS, names_filter=everything)
        assert torch.equal(logits, bare)
        logits, usual = model.run_with_cache(TOKENS)
        assert torch.equal(logits, bare)
        assert all(torch.equal(usual[name], full[name]) for name in usual)
        assert set(full) == set(model.hook_dict) and len(full) > len(usual)
        for name in full:
            logits, alone = model.run_with_cache(TOKENS, names_filter=name)
            assert torch.equal(logits, bare), name
            assert torch.equal(alone[name], full[name]), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_that_return_nothing_or_the_same_change_no_bit(family: str, mode: Any) -> None:
    model = model_of(family)
    hooks: list[Hook] = [
        lambda value, hook: None,
        lambda value, hook: value,
        lambda value, hook: value.clone(),
        lambda value, hook: value.detach(),
    ]
    names = points_inside(model)
    with mode():
        bare = model(TOKENS)
        for hook in hooks:
            assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[(everything_in(names), hook)]), bare)
            for name in names[:5] + names[-2:]:
                assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[(name, hook)]), bare), name


def everything_in(names: list[str]) -> Callable[[str], bool]:
    return lambda name: name in names


def scale_in_place(value: Tensor, hook: HookPoint) -> None:
    value *= 0.5


def scale_a_view(value: Tensor, hook: HookPoint) -> None:
    value[0].mul_(0.5)


def scale_its_data(value: Tensor, hook: HookPoint) -> None:
    value.data[...] = 0.5 * value.data


def scale_by_numpy(value: Tensor, hook: HookPoint) -> None:
    array = value.detach().numpy()
    array *= 0.5


def put_other_data(value: Tensor, hook: HookPoint) -> None:
    value.data = 0.5 * value.data


@cache
def halved(family: str, mode: Any, *, first_row_only: bool) -> dict[str, Tensor]:
    """Logits by the point where half of the activation is returned in its place."""
    model = model_of(family)

    def halve(value: Tensor, hook: HookPoint) -> Tensor:
        return torch.cat([0.5 * value[:1], value[1:]]) if first_row_only else 0.5 * value

    with mode():
        names = points_inside(model)
        return {name: model.run_with_hooks(TOKENS, fwd_hooks=[(name, halve)]).detach() for name in names}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("hook", [scale_in_place, scale_a_view, scale_its_data, scale_by_numpy, put_other_data])
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "NeoX"])
def test_writing_in_place_is_heard_however_it_is_done(family: str, hook: Any, mode: Any) -> None:
    model, wanted = model_of(family), halved(family, mode, first_row_only=hook is scale_a_view)
    with mode():
        bare = model(TOKENS)
        for name in points_inside(model):
            written = model.run_with_hooks(TOKENS, fwd_hooks=[(name, hook)])
            torch.testing.assert_close(written.detach(), wanted[name])
            assert not torch.allclose(written, bare), name


def loss_of(model: HookedTransformer, name: str, hook: Hook) -> Tensor:
    loss: Tensor = model.run_with_hooks(TOKENS[:, :9], return_type="loss", fwd_hooks=[(name, hook)])
    return loss


@pytest.mark.parametrize("site", INSIDE)
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "OLMo 2"])
def test_the_gradient_of_what_a_hook_keeps_is_the_slope_of_the_loss(family: str, site: str) -> None:
    model = model_of(family).double()
    bare = model(TOKENS[:, :9], return_type="loss")
    for name in (name for name in points_inside(model) if name.endswith(site)):
        kept: list[Tensor] = []
        loss = loss_of(model, name, note_in(kept))
        assert torch.equal(loss, bare)
        (gradient,) = torch.autograd.grad(loss, kept)
        step = 1e-5 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step *= kept[0].isfinite()  # not from scores that are minus infinity
        up, down = (loss_of(model, name, adding(each)) for each in (step, -step))
        torch.testing.assert_close((gradient * step).sum(), (up - down) / 2, rtol=1e-4, atol=1e-12)

        store, forward, backward = model.get_caching_hooks(name, incl_bwd=True)
        with model.hooks(forward, backward):
            loss = model(TOKENS[:, :9], return_type="loss")
            loss.backward()
        assert torch.equal(loss, bare)
        torch.testing.assert_close(store[name + "_grad"], gradient)


def note_in(kept: list[Tensor]) -> Hook:
    return lambda value, hook: kept.append(value)


def adding(step: Tensor) -> Hook:
    return lambda value, hook: value + step


@pytest.mark.parametrize("family", ["GPT-2", "OLMo 2"])
def test_a_hook_that_detaches_stops_gradients_though_the_value_is_the_same(family: str) -> None:
    model = model_of(family)
    loss = loss_of(model, "blocks.1.attn.hook_pattern", lambda value, hook: value.detach())
    assert torch.equal(loss, model(TOKENS[:, :9], return_type="loss"))
    loss.backward()
    attn = model.blocks[1].attn
    assert attn.W_Q.grad is None and bool((attn.W_V.grad != 0).any())


def test_gradients_of_weights_are_the_same_with_hooks_that_read() -> None:
    model = model_of("GPT-2").double()

    def gradients(*hooks: tuple[Any, Any]) -> dict[str, Tensor]:
        model.zero_grad()
        model.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=hooks).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    bare = gradients()
    names = everything_in(points_inside(model))
    for name, gradient in gradients((names, Reader(lambda value, hook: None))).items():
        assert torch.equal(gradient, bare[name]), name
    for name, gradient in gradients((names, lambda value, hook: None)).items():
        torch.testing.assert_close(gradient, bare[name])


@pytest.mark.parametrize("fields", [
    FAMILIES["GPT-2"], FAMILIES["mixture"], {**FAMILIES["Qwen 3, a window"], "gated_attn": True},
])  # fmt: skip
def test_writing_in_place_and_returning_have_the_same_gradients(fields: dict[str, Any]) -> None:
    """At every point, also where autograd keeps what the point shows: scales, gates and the weights of experts."""
    model = tiny_model(**SHAPE | fields | {"dtype": torch.float64})
    names = [name for name in model.hook_dict if name.startswith(("blocks.0.", "ln_final", "hook_"))]
    for name in (each for each in names if not each.endswith("hook_expert_indices")):
        gradients = []
        for hook in (lambda value, hook: 0.5 * value, lambda value, hook: scale_in_place(value, hook)):
            model.zero_grad()
            loss_of(model, name, hook).backward()
            gradients.append({each: p.grad for each, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*gradients, msg=name)


@pytest.mark.parametrize("family", ["GPT-2", "Gemma 2"])
def test_what_was_read_inside_may_be_written_to_outside(family: str) -> None:
    """A recipe of the field: keep the pattern, and zero a head's output in place, with gradients on."""
    model, patterns = model_of(family), list[Tensor]()

    def zero(value: Tensor, hook: HookPoint) -> None:
        value[:, :, 2] = 0.0

    def zeroed(value: Tensor, hook: HookPoint) -> Tensor:
        return torch.where(torch.arange(6)[:, None] == 2, 0.0, value)

    read = [("blocks.1.attn.hook_pattern", note_in(patterns)), ("blocks.1.ln1.hook_scale", note_in(patterns))]
    found, wanted = (
        model.run_with_hooks(TOKENS, fwd_hooks=[*read, ("blocks.1.attn.hook_z", hook)]) for hook in (zero, zeroed)
    )
    assert torch.equal(found, wanted) and len(patterns) == 4


def test_split_inputs_that_are_only_read_leave_one_norm_for_all() -> None:
    model = model_of("Llama")
    names = ["blocks.1.hook_attn_in", "blocks.1.hook_k_input", "blocks.1.ln1.hook_normalized"]
    _, cache = model.run_with_cache(TOKENS, names_filter=names)
    assert cache["attn_in", 1].shape == (3, 33, 6, 48) and cache["k_input", 1].shape == (3, 33, 2, 48)
    assert cache["normalized", 1, "ln1"].shape == (3, 33, 48)
    model.set_use_split_qkv_input(True)
    shapes: list[torch.Size] = []
    model.run_with_hooks(TOKENS, fwd_hooks=[(names[-1], lambda value, hook: shapes.append(value.shape))])
    assert shapes == [(3, 33, 6, 48), (3, 33, 2, 48), (3, 33, 2, 48)]


def test_what_only_reads() -> None:
    reader = Reader(lambda value, hook: None)
    point = HookPoint()
    assert only_reads(point)
    point.add_hook(reader)
    assert only_reads(point)
    point.add_hook(reader, dir="bwd")
    assert not only_reads(point)
    point.remove_hooks("bwd")
    point.add_hook(lambda value, hook: None)
    assert not only_reads(point)
    point.remove_hooks()
    point.register_forward_hook(lambda module, inputs, output: None)
    assert not only_reads(point)
    assert not only_reads(torch.nn.Identity())


def test_hooks_run_under_vmap_and_on_the_meta_device() -> None:
    model = model_of("GPT-2")
    names = everything_in(points_inside(model))
    stream = torch.randn(4, 1, 9, 48, generator=torch.Generator().manual_seed(0))

    def run(each: Tensor) -> Tensor:
        hooks = [(names, lambda value, hook: None)]
        logits: Tensor = model.run_with_hooks(each, start_at_layer=0, fwd_hooks=hooks)
        return logits

    with torch.no_grad():
        torch.testing.assert_close(
            torch.vmap(run)(stream), torch.stack([model(each, start_at_layer=0) for each in stream])
        )
    shapes = []
    hook: Hook = lambda value, hook: shapes.append(value.shape)  # noqa: E731
    model.to("meta").run_with_hooks(torch.zeros(1, 9, 48, device="meta"), start_at_layer=0, fwd_hooks=[(names, hook)])
    assert len(shapes) == len(points_inside(model))
