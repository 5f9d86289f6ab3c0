"""Hooks on a model: what they change, see and cache, against the reference with the same edit; gradients too.

In float64, within 1e-9.
"""

from collections.abc import Callable

import pytest
import torch
from reference import Reference, Run
from surface import MODEL_HOOKS, same
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import ActivationCache, HookedTransformer, HookPoint


def times(number: float) -> Callable[..., Tensor]:
    return lambda value, hook: value * number


TOKENS = tiny_tokens(2, 5)
HALVED = ("blocks.0.attn.hook_z", "blocks.1.mlp.hook_post")
HOOKS = [(each, times(0.5)) for each in HALVED]


def by_hand(model: HookedTransformer, halved: tuple[str, ...] = ()) -> Run:
    """The reference on the model's own parameters, so that gradients reach them."""

    def edit(name: str, value: Tensor) -> Tensor:
        return value * 0.5 if name in halved else value

    return Reference(dict(model.named_parameters()), model.cfg, edit=edit).run(TOKENS)


def loss_of(run: Run) -> Tensor:
    log_probs = run.logits.log_softmax(-1)[:, :-1]
    return -log_probs.gather(-1, TOKENS[:, 1:, None]).mean()


@pytest.fixture
def model() -> HookedTransformer:
    return tiny_model()


@MODEL_HOOKS.shows("setup", "mod_dict", "hook_dict", "hook_points")
def test_a_model_knows_its_points(name: str, model: HookedTransformer) -> None:
    model.blocks[0].attn.hook_z = HookPoint()
    model.blocks[1].late = HookPoint()
    assert model.hook_dict[HALVED[0]] is not model.blocks[0].attn.hook_z
    model.setup()
    modules = {each: module for each, module in model.named_modules() if each}
    assert model.mod_dict == modules
    points = {each: module for each, module in modules.items() if isinstance(module, HookPoint)}
    assert model.hook_dict == points and list(model.hook_points()) == list(points.values())
    assert model.blocks[0].attn.hook_z.name == HALVED[0] and model.blocks[1].late.name == "blocks.1.late"


@MODEL_HOOKS.shows("add_hook", "add_perma_hook", "hooks", "run_with_hooks")
def test_hooks_on_a_model(name: str, model: HookedTransformer) -> None:
    """What a hook returns is used from there on; a gradient returned by a backward hook flows on from there."""
    middle = "blocks.1.hook_resid_pre"  # all that W_E does passes here
    wanted, embedding = by_hand(model, HALVED), model.embed.W_E
    (gradient,) = torch.autograd.grad(loss_of(wanted), embedding)
    if name == "run_with_hooks":
        same(model.run_with_hooks(TOKENS, fwd_hooks=HOOKS), wanted.logits)
        same(model.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=HOOKS), loss_of(wanted))
        model.run_with_hooks(TOKENS, fwd_hooks=HOOKS, bwd_hooks=[(middle, times(2))], reset_hooks_end=False)
    elif name == "hooks":
        with model.hooks(fwd_hooks=HOOKS, bwd_hooks=[(middle, times(2))]):
            same(model(TOKENS), wanted.logits)
            same(torch.autograd.grad(model(TOKENS, "loss"), embedding)[0], 2 * gradient)
        same(model(TOKENS), by_hand(model).logits)
        return
    else:
        adding = getattr(model, name)
        adding(HALVED[0], times(0.5))
        adding(lambda each: each == HALVED[1], times(0.5))
        adding(middle, times(2), dir="bwd")
    same(model(TOKENS), wanted.logits)
    same(torch.autograd.grad(model(TOKENS, "loss"), embedding)[0], 2 * gradient)
    model.reset_hooks()
    same(model(TOKENS), (wanted if name == "add_perma_hook" else by_hand(model)).logits)


@MODEL_HOOKS.shows("remove_all_hook_fns", "reset_hooks", "clear_contexts", "is_caching", "context_level")
def test_taking_hooks_off_a_model(name: str, model: HookedTransformer) -> None:
    model.add_hook(HALVED[0], times(0.5), level=3)
    model.add_perma_hook(HALVED[1], times(0.5))
    model.blocks[0].attn.hook_z.ctx["kept"] = 1
    cache = model.add_caching_hooks("blocks.1.hook_resid_pre")
    same(model(TOKENS), by_hand(model, HALVED).logits)
    same(cache["blocks.1.hook_resid_pre"], by_hand(model, HALVED).acts["blocks.1.hook_resid_pre"].detach())
    assert model.is_caching and model.context_level == 0
    left = HALVED
    if name == "clear_contexts":
        model.clear_contexts()
    elif name == "remove_all_hook_fns":
        model.remove_all_hook_fns("fwd", level=3)
        left = HALVED[1:]
    elif name == "context_level":
        with model.hooks(), model.hooks():
            assert model.context_level == 2
    else:
        model.reset_hooks()
        left = HALVED[1:]
        assert not model.is_caching
    assert bool(model.blocks[0].attn.hook_z.ctx) is (name in ("remove_all_hook_fns", "context_level"))
    same(model(TOKENS), by_hand(model, left).logits)
    model.reset_hooks(including_permanent=True)
    same(model(TOKENS), by_hand(model).logits)


@MODEL_HOOKS.shows("run_with_cache", "add_caching_hooks", "get_caching_hooks")
def test_caching_on_a_model(name: str, model: HookedTransformer) -> None:
    """Every activation, and every gradient of the loss, is the reference's."""
    run = by_hand(model)
    if name == "run_with_cache":
        loss, cache = model.run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
        assert isinstance(cache, ActivationCache)
        same(loss, loss_of(run))
    elif name == "get_caching_hooks":
        cache, forward, backward = model.get_caching_hooks(incl_bwd=True)
        with model.hooks(forward, backward):
            model(TOKENS, return_type="loss").backward()
    else:
        cache = model.add_caching_hooks(incl_bwd=True)
        model(TOKENS, return_type="loss").backward()
    names = list(run.acts)
    gradients = torch.autograd.grad(loss_of(run), list(run.acts.values()))
    assert set(cache.keys()) == {*names, *(f"{each}_grad" for each in names)}
    for each, gradient in zip(names, gradients, strict=True):
        same(cache[each], run.acts[each].detach())
        same(cache[each + "_grad"], gradient)


def test_options_of_run_with_cache(model: HookedTransformer) -> None:
    acts = {each: value.detach() for each, value in by_hand(model).acts.items()}
    pattern = "blocks.1.attn.hook_pattern"
    logits, plain = model.run_with_cache(TOKENS, names_filter=[pattern, "hook_embed"], return_cache_object=False)
    assert type(plain) is dict and set(plain) == {pattern, "hook_embed"}
    same(logits, by_hand(model).logits)
    _, cache = model.run_with_cache(TOKENS, names_filter=pattern, pos_slice=-1)
    same(cache[pattern], acts[pattern][:, :, -1:])
    _, cache = model.run_with_cache(TOKENS, names_filter=lambda each: each.endswith("hook_z"), pos_slice=[1, 3])
    assert set(cache) == {"blocks.0.attn.hook_z", "blocks.1.attn.hook_z"}
    same(cache["z", 1], acts["blocks.1.attn.hook_z"][:, [1, 3]])
    _, cache = model.run_with_cache(TOKENS[:1], remove_batch_dim=True)
    same(cache["resid_post", 1], acts["blocks.1.hook_resid_post"][0])
    assert not cache.has_batch_dim and model.run_with_cache(TOKENS, stop_at_layer=1)[0].shape == (2, 5, 10)
    assert model.run_with_cache(TOKENS, device="meta")[1]["z", 0].is_meta


def test_every_row_has_a_check() -> None:
    assert MODEL_HOOKS.unchecked() == []
