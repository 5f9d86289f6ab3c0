"""Hook points: order, levels, removal, replacement, and being found again."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from tiny import tiny_config, tiny_model, tiny_tokens
from torch import Tensor, nn

from headscope import HookedRootModule, HookedTransformer, HookPoint
from headscope.errors import InvalidInputError, UnknownNameError
from headscope.model.hooks import is_listening

Z = "blocks.0.attn.hook_z"
TOKENS = tiny_tokens()


def note(log: list[str], text: str) -> Any:
    def hook(value: Tensor, hook: HookPoint) -> None:
        log.append(text)

    return hook


def listeners(model: HookedRootModule) -> list[str]:
    return [
        name
        for name, point in model.hook_dict.items()
        if is_listening(point) or point.fwd_hooks or point.bwd_hooks or point._forward_hooks or point._backward_hooks
    ]


@pytest.fixture
def model() -> HookedTransformer:
    return tiny_model()


def test_hooks_run_in_order_and_prepended_ones_first(model: HookedTransformer) -> None:
    log: list[str] = []
    model.add_hook(Z, note(log, "first"))
    model.add_hook(Z, note(log, "second"))
    model.add_hook(Z, note(log, "zeroth"), prepend=True, is_permanent=True)
    assert [handle.is_permanent for handle in model.hook_dict[Z].fwd_hooks] == [True, False, False]
    model(TOKENS)
    assert log == ["zeroth", "first", "second"]


def test_each_hook_gets_what_the_one_before_it_returned(model: HookedTransformer) -> None:
    seen: list[Tensor] = []
    model.add_hook(Z, lambda value, hook: value * 0 + 3)
    model.add_hook(Z, lambda value, hook: seen.append(value))
    model.add_hook(Z, lambda value, hook: value + 1)
    _, cache = model.run_with_cache(TOKENS)
    assert bool((seen[0] == 3).all()) and bool((cache["z", 0] == 4).all())


def test_a_hook_under_aliases_runs_once_for_each(model: HookedTransformer) -> None:
    seen: list[tuple[str | None, int, float]] = []

    def halve(value: Tensor, hook: HookPoint) -> Tensor:
        seen.append((hook.name, hook.layer(), value[0, 0, 0, 0].item()))
        hook.ctx["seen"] = len(seen)
        return 0.5 * value

    names = ["blocks.0.attn.hook_z", "blocks.0.attn.o.hook_in"]
    plain = model.run_with_cache(TOKENS)[1][Z]
    point = model.hook_dict[Z]
    point.add_hook(halve, alias_names=names)
    torch.testing.assert_close(model.run_with_cache(TOKENS)[1][Z], 0.25 * plain)
    first = plain[0, 0, 0, 0].item()
    assert seen == [(names[0], 0, first), (names[1], 0, 0.5 * first)]
    assert point.name == Z and point.ctx == {"seen": 2}
    model.reset_hooks()
    gradients: list[str | None] = []
    point.add_hook(lambda gradient, hook: gradients.append(hook.name), dir="bwd", alias_names=names)
    model(TOKENS, return_type="loss").backward()
    assert gradients == names


def test_a_hook_knows_its_point_its_layer_and_its_scratch_space(model: HookedTransformer) -> None:
    seen: list[tuple[str | None, int]] = []

    def hook_function(value: Tensor, hook: HookPoint) -> None:
        seen.append((hook.name, hook.layer()))
        hook.ctx["sum"] = hook.ctx.get("sum", 0) + 1

    model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), hook_function)])
    model.run_with_hooks(TOKENS, fwd_hooks=[(Z, hook_function)])
    assert seen == [("blocks.0.attn.hook_pattern", 0), ("blocks.1.attn.hook_pattern", 1), (Z, 0)]
    point = model.blocks[0].attn.hook_pattern
    assert point.ctx == {"sum": 1}
    model.run_with_hooks(TOKENS, clear_contexts=True)
    assert point.ctx == {}
    with pytest.raises(InvalidInputError, match="hook_embed"):
        model.hook_embed.layer()


def test_contexts_nest_and_each_removes_only_its_own(model: HookedTransformer) -> None:
    log: list[str] = []
    model.add_hook(Z, note(log, "added"))
    with model.hooks(fwd_hooks=[(Z, note(log, "outer"))]):
        with model.hooks(fwd_hooks=[(Z, note(log, "inner"))]) as same:
            assert same is model
            model(TOKENS)
            assert log == ["added", "outer", "inner"]
            model.run_with_cache(TOKENS)
            assert log[3:] == ["added", "outer", "inner"]
        log.clear()
        model(TOKENS)
        assert log == ["added", "outer"]
    log.clear()
    model(TOKENS)
    assert log == ["added"]
    assert model.context_level == 0


def test_permanent_hooks_stay_until_they_are_meant(model: HookedTransformer) -> None:
    log: list[str] = []
    model.add_perma_hook(Z, note(log, "permanent"))
    model.blocks[1].attn.hook_z.add_perma_hook(note(log, "gradient"), dir="bwd")
    model.add_hook(Z, note(log, "passing"))
    with model.hooks():
        pass
    model.reset_hooks()
    model(TOKENS).sum().backward()
    assert log == ["permanent", "gradient"]
    model.reset_hooks(including_permanent=True)
    assert listeners(model) == []


@pytest.mark.parametrize("direction, left", [("fwd", ["bwd"]), ("bwd", ["fwd"]), ("both", [])])
def test_resetting_one_direction(model: HookedTransformer, direction: Any, left: list[str]) -> None:
    log: list[str] = []
    model.add_hook(Z, note(log, "fwd"))
    model.add_hook(Z, note(log, "bwd"), dir="bwd")
    model.reset_hooks(direction=direction)
    model(TOKENS).sum().backward()
    assert log == left


def test_nothing_is_left_after_an_exception_inside(model: HookedTransformer) -> None:
    def fail(value: Tensor, hook: HookPoint) -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        model.run_with_hooks(TOKENS, fwd_hooks=[(Z, fail), (lambda name: True, fail)], bwd_hooks=[(Z, fail)])
    with pytest.raises(KeyError, match="inside"), model.hooks(fwd_hooks=[(Z, fail)]):
        model.run_with_cache(TOKENS)
    with pytest.raises(UnknownNameError), model.hooks(fwd_hooks=[(Z, fail), ("no such point", fail)]):
        raise AssertionError("never reached")
    assert listeners(model) == []
    assert model.context_level == 0


def test_hooks_can_be_left_in_place(model: HookedTransformer) -> None:
    log: list[str] = []
    model.run_with_hooks(TOKENS, fwd_hooks=[(Z, note(log, "kept"))], reset_hooks_end=False)
    model(TOKENS)
    assert log == ["kept", "kept"]
    model.reset_hooks()
    assert listeners(model) == []


@pytest.mark.parametrize("call", ["add_hook", "run_with_hooks", "run_with_cache", "bwd"])
def test_an_unknown_name_gives_the_nearest(model: HookedTransformer, call: str) -> None:
    with pytest.raises(UnknownNameError, match=r"'blocks.0.attn.hok_z'.*'blocks.0.attn.hook_z'"):
        if call == "add_hook":
            model.add_hook("blocks.0.attn.hok_z", note([], ""))
        elif call == "run_with_cache":
            model.run_with_cache(TOKENS, names_filter=[Z, "blocks.0.attn.hok_z"])
        elif call == "bwd":
            model.run_with_hooks(TOKENS, bwd_hooks=[("blocks.0.attn.hok_z", note([], ""))])
        else:
            model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.attn.hok_z", note([], ""))])
    assert listeners(model) == []


def test_a_direction_that_does_not_exist_is_refused_by_type_or_value() -> None:
    point = HookPoint()
    with pytest.raises((InvalidInputError, TypeError)):
        point.add_hook(note([], ""), dir="sideways")  # type: ignore[arg-type]
    assert not is_listening(point)


def test_a_predicate_hooks_every_point_it_likes(model: HookedTransformer) -> None:
    log: list[str] = []

    def hook_function(value: Tensor, hook: HookPoint) -> None:
        log.append(hook.name or "")

    model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: "blocks.1.attn" in name, hook_function)])
    assert log == [f"blocks.1.attn.hook_{kind}" for kind in ("q", "k", "v", "attn_scores", "pattern", "z", "result")]


@pytest.mark.parametrize("kind", ["hook_z", "hook_pattern", "hook_attn_scores", "hook_result", "hook_q", "hook_v"])
def test_a_hook_given_straight_to_a_point_by_torch_is_honoured(model: HookedTransformer, kind: str) -> None:
    name = f"blocks.0.attn.{kind}"
    by_name = model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda value, hook: value * 0.5)])
    handle = model.hook_dict[name].register_forward_hook(lambda module, args, output: output * 0.5)
    assert torch.equal(model(TOKENS), by_name)
    handle.remove()
    handle = model.hook_dict[name].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    assert torch.equal(model(TOKENS), by_name)
    handle.remove()
    gradients: list[Tensor] = []
    handle = model.hook_dict[name].register_full_backward_hook(
        lambda module, grad_input, grad_output: gradients.append(grad_output[0])
    )
    model(TOKENS).sum().backward()
    assert len(gradients) == 1 and gradients[0].ndim == 4
    handle.remove()
    assert not is_listening(model.hook_dict[name])


class Scale(nn.Module):
    """A stand-in for a sparse autoencoder: not a hook point, with hook points of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.hook_inside = HookPoint()

    def forward(self, value: Tensor) -> Tensor:
        return self.hook_inside(value * self.factor)


@pytest.mark.parametrize("place", [
    "blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern", "blocks.0.attn.hook_result", "blocks.0.attn.hook_attn_scores",
    "blocks.0.hook_q_input", "blocks.0.hook_attn_in", "blocks.0.hook_mlp_in", "blocks.0.ln1.hook_scale",
    "blocks.0.ln2.hook_normalized", "blocks.0.mlp.hook_post", "hook_embed", "hook_pos_embed",
])  # fmt: skip
def test_any_module_may_stand_in_the_place_of_a_hook_point(model: HookedTransformer, place: str) -> None:
    wanted = model.run_with_hooks(TOKENS, fwd_hooks=[(place, lambda value, hook: value * 0.5)])
    owner, _, attribute = place.rpartition(".")
    setattr(model.get_submodule(owner), attribute, Scale(0.5))
    assert torch.equal(model(TOKENS), wanted)
    model.setup()
    assert place not in model.hook_dict and place in model.mod_dict
    inside = f"{place}.hook_inside"
    _, cache = model.run_with_cache(TOKENS, names_filter=[inside])
    assert model.hook_dict[inside].name == inside and inside in cache.cache_dict
    setattr(model.get_submodule(owner), attribute, HookPoint())
    model.setup()
    assert place in model.hook_dict and inside not in model.hook_dict
    assert torch.equal(model(TOKENS), tiny_model()(TOKENS))


def test_setup_finds_points_inside_points(model: HookedTransformer) -> None:
    point = model.blocks[1].hook_mlp_out
    point.hook_grad = HookPoint()
    point.register_forward_hook(lambda module, args, output: module.hook_grad(output))
    model.setup()
    log: list[str] = []
    model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_mlp_out.hook_grad", note(log, "nested"))])
    assert log == ["nested"]


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.hook_in = HookPoint()
        self.hook_out = HookPoint()

    def forward(self, value: Tensor) -> Tensor:
        return self.hook_out(self.inner(self.hook_in(value)))


def test_the_mlp_and_the_unembedding_may_be_wrapped(model: HookedTransformer) -> None:
    clean, clean_cache = model.run_with_cache(TOKENS)
    for block in model.blocks:
        block.mlp = Wrapped(block.mlp)
    unembed = model.unembed
    model.unembed = Wrapped(unembed)
    model.unembed.W_U, model.unembed.b_U = unembed.W_U, unembed.b_U
    model.setup()
    logits, cache = model.run_with_cache(TOKENS)
    assert torch.equal(logits, clean)
    assert torch.equal(cache["blocks.1.mlp.hook_out"], clean_cache["mlp_out", 1])
    assert torch.equal(cache["blocks.1.mlp.inner.hook_post"], clean_cache["post", 1])
    assert torch.equal(cache["unembed.hook_out"], clean)
    zeroed = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.mlp.hook_out", lambda value, hook: value * 0)])
    assert not torch.equal(zeroed, clean)


def test_a_wrapped_forward_is_called(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = model.blocks[0].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda value: plain(value) * 0)
    _, cache = model.run_with_cache(TOKENS)
    assert bool((cache["mlp_out", 0] == 0).all())


def test_hooks_may_be_swapped_inside_a_running_hook(model: HookedTransformer) -> None:
    log: list[str] = []

    def swap(value: Tensor, hook: HookPoint) -> None:
        log.append("swap")
        hook.remove_hooks("fwd")
        hook.add_hook(note(log, "new"))
        model.add_hook("blocks.0.attn.hook_pattern", note(log, "pattern"))

    model.add_hook("blocks.0.hook_resid_pre", swap)
    model(TOKENS)
    assert log == ["swap", "pattern"]
    model(TOKENS)
    assert log == ["swap", "pattern", "new", "pattern"]


def test_the_config_is_read_at_each_forward(model: HookedTransformer) -> None:
    logits = model(TOKENS)
    model.cfg.output_logits_soft_cap = 0.7
    assert torch.equal(model(TOKENS), 0.7 * torch.tanh(logits / 0.7))
    model.cfg.output_logits_soft_cap = -1.0
    assert torch.equal(model(TOKENS), logits)
    model.cfg.use_attn_result = True
    assert "blocks.0.attn.hook_result" in model.run_with_cache(TOKENS)[1]
    model.cfg.use_attn_scale = False
    assert not torch.equal(model(TOKENS), logits)
    model.cfg.use_attn_scale = True
    model.cfg.eps = 0.5
    changed, cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(model(TOKENS), changed)
    resid = cache["resid_pre", 0]
    torch.testing.assert_close(cache["scale", 0, "ln1"], (resid.var(-1, correction=0, keepdim=True) + 0.5).sqrt())


def test_asking_for_nothing_computes_nothing(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    einsum = torch.einsum

    def guarded(equation: str, *operands: Tensor) -> Tensor:
        out = einsum(equation, *operands)
        assert out.ndim < 4 or out.shape[-1] != model.cfg.d_model, "a per-head result was computed"
        return out

    monkeypatch.setattr(torch, "einsum", guarded)
    monkeypatch.setattr(Tensor, "softmax", None)
    model(TOKENS)
    model.run_with_cache(TOKENS, names_filter=Z)


def test_caching_hooks_fill_a_dictionary(model: HookedTransformer) -> None:
    given: dict[str, Tensor] = {}
    cache, forward, backward = model.get_caching_hooks(Z, incl_bwd=True, cache=given)
    assert cache is given
    with model.hooks(forward, backward):
        model(TOKENS).sum().backward()
    assert sorted(cache) == [Z, f"{Z}_grad"]
    assert not cache[Z].requires_grad


@pytest.mark.parametrize("pos_slice, positions", [(2, [2]), (-1, [-1]), ((1, 4), slice(1, 4)), ([0, 3], [0, 3])])
@pytest.mark.parametrize("remove_batch_dim", [False, True])
def test_pos_slice_keeps_positions_of_everything(pos_slice: Any, positions: Any, remove_batch_dim: bool) -> None:
    model = tiny_model()
    tokens = TOKENS[:1]
    everything = lambda name: True  # noqa: E731
    _, whole = model.run_with_cache(tokens, names_filter=everything)
    _, cut = model.run_with_cache(
        tokens, names_filter=everything, pos_slice=pos_slice, remove_batch_dim=remove_batch_dim
    )
    assert set(whole.keys()) == set(cut.keys()) == set(model.hook_dict)
    for name, value in whole.items():
        queries = name.endswith(("hook_pattern", "hook_attn_scores"))
        wanted = value[:, :, positions] if queries else value[:, positions]
        wanted = wanted[0] if remove_batch_dim else wanted
        assert cut[name].shape == wanted.shape, name
        assert torch.equal(cut[name], wanted), name


def test_only_a_batch_of_one_loses_its_axis(model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(TOKENS[:1], remove_batch_dim=True)
    assert cache["pattern", 0].shape == (3, 7, 7)
    with pytest.raises(InvalidInputError, match=r"batch"):
        model.run_with_cache(TOKENS, remove_batch_dim=True)
    assert listeners(model) == []


def test_a_model_can_be_copied_and_pickled_with_its_hooks(model: HookedTransformer) -> None:
    assert torch.equal(pickle.loads(pickle.dumps(model))(TOKENS), model(TOKENS))
    log: list[Any] = []
    model.add_hook(Z, lambda value, hook: log.append(hook))
    twin = copy.deepcopy(model)
    twin(TOKENS)
    assert [hook is twin.blocks[0].attn.hook_z for hook in log] == [True]
    twin.reset_hooks()
    assert listeners(twin) == [] and listeners(model) == [Z]


def test_hook_points_need_no_transformer() -> None:
    class Two(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.hook_a = HookPoint()
            self.linear = nn.Linear(3, 3)
            self.hook_b = HookPoint()
            self.setup()

        def forward(self, value: Tensor) -> Tensor:
            return self.hook_b(self.linear(self.hook_a(value)))

    two = Two()
    value = torch.randn(2, 3)
    output, cache = two.run_with_cache(value)
    assert list(two.hook_dict) == ["hook_a", "hook_b"]
    assert torch.equal(cache["hook_a"], value) and torch.equal(cache["hook_b"], output)
    assert torch.equal(two.run_with_hooks(value, fwd_hooks=[("hook_b", lambda v, hook: v + 1)]), output + 1)


def test_the_vocabulary_of_names_is_complete() -> None:
    model = HookedTransformer(tiny_config(n_layers=1))
    block = [f"blocks.0.hook_{name}" for name in (
        "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn_in", "mlp_in", "q_input", "k_input",
        "v_input")]  # fmt: skip
    attn = [f"blocks.0.attn.hook_{name}" for name in ("q", "k", "v", "z", "attn_scores", "pattern", "result")]
    norms = [f"{norm}.hook_{name}" for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_final")
             for name in ("scale", "normalized")]  # fmt: skip
    mlp = ["blocks.0.mlp.hook_pre", "blocks.0.mlp.hook_post"]
    assert set(model.hook_dict) == {"hook_embed", "hook_pos_embed", *block, *attn, *norms, *mlp}


@pytest.mark.parametrize("names", [3, [3], re.compile("hook_z")])
def test_a_filter_of_another_kind_is_refused(model: HookedTransformer, names: Any) -> None:
    refused = (InvalidInputError, TypeCheckError)  # type checks of the tests see it first
    with pytest.raises(refused, match=r"names_filter( must be a name, several names or a function of a name|=)"):
        model.run_with_cache(TOKENS, names_filter=names)


@pytest.mark.parametrize("options", [
    {}, {"return_type": "both"}, {"return_type": None}, {"return_type": "loss", "loss_per_token": True},
])  # fmt: skip
def test_gradients_are_of_one_number(model: HookedTransformer, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="must be one number with gradients; got .* Pass return_type='loss'"):
        model.run_with_cache(TOKENS, incl_bwd=True, **options)
    with torch.no_grad(), pytest.raises(InvalidInputError, match="got one without gradients"):
        model.run_with_cache(TOKENS, incl_bwd=True, return_type="loss")
    assert not any(point.has_hooks() for point in model.hook_points())
