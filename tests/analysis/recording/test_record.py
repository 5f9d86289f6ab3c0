"""`record`: what is kept of a forward pass, what takes the place of activations, and that no hook is left behind."""

import pytest
import torch
from torch import Tensor, nn

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis.core.batches import Batch
from headscope.analysis.recording.record import Replacement, Steps, record, record_patterns
from headscope.errors import InvalidInputError

TOKENS = torch.arange(12).view(2, 6)
Z = "blocks.1.attn.hook_z"


def tiny(**options: object) -> HookedTransformer:
    fields = {"n_layers": 3, "d_model": 8, "n_ctx": 8, "d_head": 4, "d_vocab": 20, "act_fn": "relu", "seed": 1}
    return HookedTransformer(HookedTransformerConfig(**{**fields, **options}))


@pytest.fixture
def model() -> HookedTransformer:
    return tiny()


def n_hooks(model: HookedTransformer) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_points())


def test_it_keeps_what_a_cache_keeps_and_stops_before_the_final_norm(model: HookedTransformer) -> None:
    names = [Z, "blocks.2.hook_resid_mid"]
    kept, final = record(model, TOKENS, names)
    _, cache = model.run_with_cache(TOKENS, names_filter=[*names, "blocks.2.hook_resid_post"])
    assert kept.keys() == set(names)
    assert all(torch.equal(kept[name], cache[name]) for name in names)
    assert torch.equal(final, cache["resid_post", -1])


def test_activations_are_reduced_as_they_pass_and_missing_ones_passed_over() -> None:
    model = tiny(attn_only=True, act_fn=None)
    kept, _ = record(model, TOKENS, {Z: lambda z: z.sum((0, 1)), "blocks.1.hook_mlp_out": torch.clone})
    assert kept.keys() == {Z}
    _, cache = model.run_with_cache(TOKENS, names_filter=Z)
    assert torch.equal(kept[Z], cache[Z].sum((0, 1)))


def test_replacements_come_behind_hooks_of_the_users_and_are_kept(model: HookedTransformer) -> None:
    seen = []
    model.add_hook(Z, lambda z, hook: seen.append(z.clone()))
    value = torch.arange(4.0)
    kept, final = record(model, TOKENS, [Z], replaced={Z: [Replacement(value, head=1, rows=slice(1, 2))]})
    before, after = seen[0], kept[Z]
    assert torch.equal(after[1, :, 1], value.expand(6, -1))
    unchanged = torch.ones_like(before, dtype=torch.bool)
    unchanged[1, :, 1] = False
    assert torch.equal(after[unchanged], before[unchanged])
    assert not torch.equal(final[1], record(model, TOKENS).final[1])
    assert n_hooks(model) == 1


def test_no_hook_is_left_after_an_error(model: HookedTransformer) -> None:
    def fail(z: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        record(model, TOKENS, {Z: fail})
    assert n_hooks(model) == 0


def test_a_module_in_the_place_of_a_hook_point_is_refused(model: HookedTransformer) -> None:
    model.blocks[1].attn.hook_z = nn.Identity()  # type: ignore[assignment]
    model.setup()
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.attn\.hook_z holds a Identity"):
        record(model, TOKENS, [Z])
    model.blocks[2].attn.hook_pattern = nn.Identity()  # type: ignore[assignment]
    model.setup()
    batch = Batch(TOKENS, None, torch.ones_like(TOKENS, dtype=torch.bool))
    with pytest.raises(InvalidInputError, match=r"hook_pattern holds a Identity"):
        record_patterns(model, batch, torch.clone)


def test_patterns_are_reduced_layer_by_layer(model: HookedTransformer) -> None:
    batch = Batch(TOKENS, None, torch.ones_like(TOKENS, dtype=torch.bool))
    diagonals = record_patterns(model, batch, lambda pattern: pattern.diagonal(dim1=-2, dim2=-1))
    _, cache = model.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("hook_pattern"))
    for layer in range(3):
        assert torch.equal(diagonals[layer], cache["pattern", layer].diagonal(dim1=-2, dim2=-1))


def test_steps_go_up_once_and_streams_handed_out_stay_as_they_are(model: HookedTransformer) -> None:
    calls = []
    model.add_hook("blocks.1.hook_resid_pre", lambda resid, hook: resid.mul_(2))
    model.add_hook("blocks.0.hook_resid_post", lambda resid, hook: calls.append(0))
    steps = Steps(model, TOKENS, None)
    first = steps.entering(1)
    as_it_was = first.clone()
    final = steps.entering(3)
    assert len(calls) == 1
    assert torch.equal(first, as_it_was)
    assert torch.equal(final, model(TOKENS, stop_at_layer=3))
