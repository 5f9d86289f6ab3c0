"""Activation patching equals whole forward passes, cell by cell, and runs less than they do."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch
from reference import Reference
from small_models import small_model
from tiny import tiny_model, tiny_tokens
from torch import Tensor

import headscope.patching as patching
from headscope import HookedTransformer
from headscope.compat import patching as module
from headscope.errors import InvalidInputError, UnknownNameError

LENGTH = 5
EVERYWHERE = slice(None)


def metric(logits: Tensor) -> Tensor:
    """Reads every position, and is not linear."""
    return (logits[:, -1, 3] - logits[:, -1, 5]).mean() - logits.log_softmax(-1)[:, :, 7].mean()


@pytest.fixture
def model() -> HookedTransformer:
    return tiny_model()


@pytest.fixture
def corrupted() -> Tensor:
    return tiny_tokens(2, LENGTH, seed=1)


@pytest.fixture
def clean() -> Tensor:
    return tiny_tokens(2, LENGTH, seed=2)


def whole_runs(
    model: HookedTransformer,
    tokens: Tensor,
    cache: Any,
    hook: str,
    sizes: tuple[int, ...],
    where: Callable[..., tuple[Any, ...]],
) -> Tensor:
    """The sweep by its definition, on a model written anew: for each cell a run from the tokens on."""
    results = torch.zeros(sizes, dtype=torch.float64)
    for index in product(*map(range, sizes)):
        site, place = f"blocks.{index[0]}.{hook}", where(*index[1:])

        def edit(name: str, value: Tensor, site: str = site, place: tuple[Any, ...] = place) -> Tensor:
            if name == site:
                value = value.clone()
                value[place] = cache[name][place]
            return value

        results[index] = metric(Reference(model.state_dict(), model.cfg, edit=edit).run(tokens).logits)
    return results


def at_pos(pos: int) -> tuple[Any, ...]:
    return (EVERYWHERE, pos)


def at_pos_and_head(pos: int, head: int) -> tuple[Any, ...]:
    return (EVERYWHERE, pos, head)


def at_head(head: int) -> tuple[Any, ...]:
    return (EVERYWHERE, EVERYWHERE, head)


def in_pattern(*place: int) -> tuple[Any, ...]:
    return (EVERYWHERE, *place)


SWEEPS: dict[str, tuple[str, tuple[int, ...], Callable[..., tuple[Any, ...]]]] = {
    "resid_pre": ("hook_resid_pre", (2, LENGTH), at_pos),
    "resid_mid": ("hook_resid_mid", (2, LENGTH), at_pos),
    "resid_post": ("hook_resid_post", (2, LENGTH), at_pos),
    "attn_out": ("hook_attn_out", (2, LENGTH), at_pos),
    "mlp_out": ("hook_mlp_out", (2, LENGTH), at_pos),
    "attn_head_out_by_pos": ("attn.hook_z", (2, LENGTH, 3), at_pos_and_head),
    "attn_head_q_by_pos": ("attn.hook_q", (2, LENGTH, 3), at_pos_and_head),
    "attn_head_k_by_pos": ("attn.hook_k", (2, LENGTH, 3), at_pos_and_head),
    "attn_head_v_by_pos": ("attn.hook_v", (2, LENGTH, 3), at_pos_and_head),
    "attn_head_pattern_by_pos": ("attn.hook_pattern", (2, 3, LENGTH), in_pattern),
    "attn_head_pattern_dest_src_pos": ("attn.hook_pattern", (2, 3, LENGTH, LENGTH), in_pattern),
    "attn_head_out_all_pos": ("attn.hook_z", (2, 3), at_head),
    "attn_head_q_all_pos": ("attn.hook_q", (2, 3), at_head),
    "attn_head_k_all_pos": ("attn.hook_k", (2, 3), at_head),
    "attn_head_v_all_pos": ("attn.hook_v", (2, 3), at_head),
    "attn_head_pattern_all_pos": ("attn.hook_pattern", (2, 3), in_pattern),
}


def sweep(name: str) -> Callable[..., Any]:
    return getattr(patching, f"get_act_patch_{name}")


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_equals_whole_runs(name: str, model: HookedTransformer, corrupted: Tensor, clean: Tensor) -> None:
    _, cache = model.run_with_cache(clean)
    patched = sweep(name)(model, corrupted, cache, metric, progress=False)
    expected = whole_runs(model, corrupted, cache, *SWEEPS[name])
    assert expected.std() > 1e-3  # the cells differ
    torch.testing.assert_close(patched, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [{"attn_only": True}, {"parallel_attn_mlp": True}])
@pytest.mark.parametrize("name", ["resid_pre", "attn_out", "attn_head_v_by_pos"])
def test_in_other_kinds_of_blocks(name: str, fields: dict[str, Any], corrupted: Tensor, clean: Tensor) -> None:
    model = tiny_model(**fields)
    _, cache = model.run_with_cache(clean)
    patched = sweep(name)(model, corrupted, cache, metric, progress=False)
    expected = whole_runs(model, corrupted, cache, *SWEEPS[name])
    torch.testing.assert_close(patched, expected.float(), rtol=1e-5, atol=1e-5)


def test_every_kind_of_patch_in_one_stack(model: HookedTransformer, corrupted: Tensor, clean: Tensor) -> None:
    _, cache = model.run_with_cache(clean)
    kinds = {name: sweep(name)(model, corrupted, cache, metric, progress=False) for name in SWEEPS}
    vectors = ("attn_head_out", "attn_head_q", "attn_head_k", "attn_head_v")
    stacks = {
        "block_every": [kinds["resid_pre"], kinds["attn_out"], kinds["mlp_out"]],
        "attn_head_all_pos_every": [kinds[f"{kind}_all_pos"] for kind in (*vectors, "attn_head_pattern")],
        "attn_head_by_pos_every": [kinds[f"{kind}_by_pos"] for kind in vectors]
        + [kinds["attn_head_pattern_by_pos"].transpose(1, 2)],
    }
    for name, parts in stacks.items():
        assert torch.equal(sweep(name)(model, corrupted, cache, metric, progress=False), torch.stack(parts))


def test_shared_keys_and_values_are_patched_by_group(corrupted: Tensor, clean: Tensor) -> None:
    model = tiny_model(n_heads=4, n_key_value_heads=2)
    _, cache = model.run_with_cache(clean)
    keys = patching.get_act_patch_attn_head_k_all_pos(model, corrupted, cache, metric, progress=False)
    assert keys.shape == (2, 2)
    for layer, group in product(range(2), range(2)):
        name = f"blocks.{layer}.attn.hook_k"

        def patch(k: Tensor, hook: Any, group: int = group) -> Tensor:
            k[:, :, group] = cache[hook.name][:, :, group]
            return k

        with torch.no_grad():
            logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, patch)])
        torch.testing.assert_close(keys[layer, group], metric(logits).float())
    every = patching.get_act_patch_attn_head_all_pos_every(model, corrupted, cache, metric, progress=False)
    assert every.shape == (5, 2, 4)
    assert torch.equal(every[2], torch.cat([keys, torch.zeros(2, 2)], dim=1))
    model.set_ungroup_grouped_query_attention(True)
    _, cache = model.run_with_cache(clean)
    assert patching.get_act_patch_attn_head_v_by_pos(model, corrupted, cache, metric, progress=False).shape[-1] == 4


# The generic function


def put_position(corrupted: Tensor, index: list[int], clean: Tensor) -> Tensor:
    corrupted[:, index[-1]] = clean[:, index[-1]]
    return corrupted


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("hook_embed", "hook_embed"),
        ("pos_embed", "hook_pos_embed"),
        ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z"),
        ("k1", "blocks.1.attn.hook_k"),
        ("scale1ln2", "blocks.1.ln2.hook_scale"),
        ("scale", "ln_final.hook_scale"),
        ("ln_final.hook_normalized", "ln_final.hook_normalized"),
    ],
)
def test_one_hook_point_wherever_it_is(
    name: str, hook: str, model: HookedTransformer, corrupted: Tensor, clean: Tensor
) -> None:
    _, cache = model.run_with_cache(clean)
    patched = patching.generic_activation_patch(
        model, corrupted, cache, metric, put_position, name, ("pos",), progress=False
    )
    for pos in range(LENGTH):

        def edit(at: str, value: Tensor, pos: int = pos) -> Tensor:
            value = value.clone()
            if at == hook:
                value[:, pos] = cache[at][:, pos]
            return value

        expected = metric(Reference(model.state_dict(), model.cfg, edit=edit).run(corrupted).logits)
        torch.testing.assert_close(patched[pos], expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "axes", "shape"),
    [
        ("resid_pre", ("layer", "pos"), (2, LENGTH)),
        ("mlp_post", ("layer", "pos"), (2, LENGTH)),
        ("attn_scores", ("layer", "head", "dest_pos"), (2, 3, LENGTH)),
        ("pattern", ("layer",), (2,)),
        ("result", ("layer", "head_index"), (2, 3)),
        ("q_input", ("layer", "head"), (2, 3)),
        ("z", ["layer", "pos"], (2, LENGTH)),
    ],
)
def test_any_setter_gets_activation_index_and_clean_activation(
    name: str, axes: Any, shape: tuple[int, ...], model: HookedTransformer, corrupted: Tensor, clean: Tensor
) -> None:
    def everything(name: str) -> bool:
        return True

    _, cache = model.run_with_cache(clean, names_filter=everything)
    seen = []

    def setter(corrupted_activation: Tensor, index: list[int], clean_activation: Tensor) -> Tensor:
        assert corrupted_activation.shape == clean_activation.shape
        assert clean_activation is cache[name, index[0]]
        seen.append(index)
        return clean_activation * 1.0

    patched = patching.generic_activation_patch(model, corrupted, cache, metric, setter, name, axes, progress=False)
    assert seen == [list(index) for index in product(*map(range, shape))]
    assert patched.shape == shape and patched.dtype == torch.float32
    for layer in range(2):
        # The whole activation is replaced, so that all cells of a layer are one.
        hook = "blocks.0." if layer == 0 else "blocks.1."
        full = next(key for key in cache if key.startswith(hook) and cache[key] is cache[name, layer])
        logits = model.run_with_hooks(corrupted, fwd_hooks=[(full, lambda value, hook: cache[hook.name])])
        torch.testing.assert_close(patched[layer], metric(logits).float().expand_as(patched[layer]))


def test_a_setter_may_write_in_place_and_return_nothing(
    model: HookedTransformer, corrupted: Tensor, clean: Tensor
) -> None:
    _, cache = model.run_with_cache(clean)

    def write(corrupted_activation: Tensor, index: list[int], clean_activation: Tensor) -> None:
        put_position(corrupted_activation, index, clean_activation)

    args = (model, corrupted, cache, metric)
    patched = patching.generic_activation_patch(*args, write, "resid_pre", ("layer", "pos"), progress=False)
    assert torch.equal(patched, patching.get_act_patch_resid_pre(*args, progress=False))


def test_a_table_of_indices_in_any_order(model: HookedTransformer, corrupted: Tensor, clean: Tensor) -> None:
    _, cache = model.run_with_cache(clean)
    args = (model, corrupted, cache, metric)
    whole, table = patching.get_act_patch_attn_head_out_all_pos(*args, return_index_df=True, progress=False)
    assert table.columns.to_list() == ["layer", "head"] and len(table) == 6
    some = pd.DataFrame({"layer": [1, 0, 1, 0], "head": [2, 1, 0, 1]})
    setter = patching.layer_head_vector_patch_setter
    flat, returned = patching.generic_activation_patch(
        *args, setter, "z", index_df=some, return_index_df=True, progress=False
    )
    assert torch.equal(flat, torch.stack([whole[1, 2], whole[0, 1], whole[1, 0], whole[0, 1]]))
    assert returned is some
    again = patching.get_act_patch_attn_head_out_all_pos(*args, index_axis_names=None, index_df=some, progress=False)
    assert torch.equal(again, flat)
    assert patching.generic_activation_patch(*args, setter, "z", index_df=some[:0], progress=False).shape == (0,)


def test_make_df_from_ranges() -> None:
    frame = patching.make_df_from_ranges([2, 3], ("layer", "pos"))
    assert list(frame.itertuples(index=False, name=None)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert frame.columns.to_list() == ["layer", "pos"]


# What stays as it was


def test_lower_layers_run_once(corrupted: Tensor, clean: Tensor) -> None:
    model = tiny_model(n_layers=4)
    _, cache = model.run_with_cache(clean)
    calls = [0] * 4
    for layer, block in enumerate(model.blocks):

        def count(_module: Any, _inputs: Any, layer: int = layer) -> None:
            calls[layer] += 1

        block.register_forward_pre_hook(count)
    table = pd.DataFrame({"layer": [3] * LENGTH + [1] * LENGTH, "pos": [*range(LENGTH)] * 2})
    setter = patching.layer_pos_patch_setter
    patching.generic_activation_patch(model, corrupted, cache, metric, setter, "attn_out", index_df=table)
    assert calls == [1, 1 + LENGTH, 1 + LENGTH, 2 * LENGTH]


def test_hooks_on_the_model_stay_and_count_once(model: HookedTransformer, corrupted: Tensor, clean: Tensor) -> None:
    _, cache = model.run_with_cache(clean)

    def double_in_place(value: Tensor, hook: Any) -> None:
        value.mul_(2)

    model.add_hook("blocks.0.attn.hook_z", double_in_place)
    model.add_perma_hook("blocks.1.hook_resid_pre", double_in_place)
    with model.hooks([("hook_embed", lambda value, hook: value + 1)]):
        args = (model, corrupted, cache, metric)
        patched = patching.get_act_patch_mlp_out(*args, progress=False)
        for layer, pos in product(range(2), range(LENGTH)):

            def patch(value: Tensor, hook: Any, pos: int = pos) -> Tensor:
                value[:, pos] = cache[hook.name][:, pos]
                return value

            with torch.no_grad():
                logits = model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", patch)])
            torch.testing.assert_close(patched[layer, pos], metric(logits).float())
    assert [name for name, point in model.hook_dict.items() if point.fwd_hooks] == [
        "blocks.0.attn.hook_z",
        "blocks.1.hook_resid_pre",
    ]


def test_the_caches_and_the_grad_mode_are_left_alone(
    model: HookedTransformer, corrupted: Tensor, clean: Tensor
) -> None:
    _, cache = model.run_with_cache(clean)
    before = {name: value.clone() for name, value in cache.items()}
    grad_modes = []

    def watched(logits: Tensor) -> Tensor:
        grad_modes.append(torch.is_grad_enabled() or logits.requires_grad)
        return metric(logits)

    patched = patching.get_act_patch_attn_head_pattern_all_pos(model, corrupted, cache, watched, progress=False)
    assert torch.is_grad_enabled() and not any(grad_modes) and not patched.requires_grad
    assert all(torch.equal(cache[name], value) for name, value in before.items())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stays_unseen(side: str, model: HookedTransformer, corrupted: Tensor, clean: Tensor) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :2] = 0
    mask = mask if side == "left" else mask.flip(1)
    _, cache = model.run_with_cache(clean, attention_mask=mask)
    patched = patching.get_act_patch_resid_pre(model, corrupted, cache, metric, attention_mask=mask, progress=False)
    for layer, pos in product(range(2), range(LENGTH)):

        def edit(name: str, value: Tensor, layer: int = layer, pos: int = pos) -> Tensor:
            value = value.clone()
            if name == f"blocks.{layer}.hook_resid_pre":
                value[:, pos] = cache[name][:, pos]
            return value

        run = Reference(model.state_dict(), model.cfg, edit=edit).run(corrupted, mask)
        torch.testing.assert_close(patched[layer, pos], metric(run.logits).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_found_from_the_tokens(side: Any) -> None:
    model = small_model(dtype=torch.float64)
    model.default_padding_side = side
    tokens = model.to_tokens(["When Mary and John went", "the old dog"])
    mask = model.attention_mask(tokens)
    assert mask is not None and not bool(mask.all())
    _, cache = model.run_with_cache(tokens.flip(0), attention_mask=mask.flip(0))
    args = (model, tokens, cache, metric)
    found = patching.get_act_patch_attn_out(*args, progress=False)
    masked = patching.get_act_patch_attn_out(*args, attention_mask=mask, progress=False)
    unmasked = patching.get_act_patch_attn_out(*args, attention_mask=torch.ones_like(mask), progress=False)
    # Behind a row, padding is seen by padding alone; it is left as it is, as in a plain forward.
    assert torch.equal(found, masked if side == "left" else unmasked) and not torch.allclose(masked, unmasked)


def test_positions_read_at_every_layer_are_there_when_resumed(corrupted: Tensor, clean: Tensor) -> None:
    model = tiny_model(positional_embedding_type="shortformer")
    _, cache = model.run_with_cache(clean)
    with model.hooks([("hook_pos_embed", lambda value, hook: 2 * value)]):
        patched = patching.get_act_patch_attn_out(model, corrupted, cache, metric, progress=False)

        def patch(value: Tensor, hook: Any) -> Tensor:
            value[:, 1] = cache[hook.name][:, 1]
            return value

        with torch.no_grad():
            logits = model.run_with_hooks(corrupted, fwd_hooks=[("blocks.1.hook_attn_out", patch)])
    torch.testing.assert_close(patched[1, 1], metric(logits).float())


def test_prompts_of_one_clean_run_for_all_and_metrics_that_are_plain_numbers(
    model: HookedTransformer, corrupted: Tensor, clean: Tensor
) -> None:
    _, cache = model.run_with_cache(clean[:1])
    one = patching.get_act_patch_resid_pre(model, corrupted, cache, lambda x: metric(x).item(), progress=False)
    _, twice = model.run_with_cache(clean[[0, 0]])
    torch.testing.assert_close(one, patching.get_act_patch_resid_pre(model, corrupted, twice, metric, progress=False))


def test_a_plain_dictionary_is_a_cache(model: HookedTransformer, corrupted: Tensor, clean: Tensor) -> None:
    _, cache = model.run_with_cache(clean)
    sweep = patching.get_act_patch_mlp_out
    from_dict = sweep(model, corrupted, dict(cache.items()), metric, progress=False)
    assert torch.equal(from_dict, sweep(model, corrupted, cache, metric, progress=False))


# What is refused


def test_wrong_axes_names_and_caches_are_named(model: HookedTransformer, corrupted: Tensor, clean: Tensor) -> None:
    _, cache = model.run_with_cache(clean, names_filter="blocks.0.attn.hook_z")

    def run(activation_name: str, axes: Any = ("layer", "pos"), **options: Any) -> Any:
        setter = patching.layer_pos_patch_setter
        return patching.generic_activation_patch(
            model, corrupted, cache, metric, setter, activation_name, axes, progress=False, **options
        )

    with pytest.raises(UnknownNameError, match=r"Unknown axis 'place'\."):
        run("z", ("layer", "place"))
    with pytest.raises(InvalidInputError, match=r"must begin with 'layer', .* got \['pos'\]"):
        run("z", ("pos",))
    with pytest.raises(UnknownNameError, match=r"'blocks\.0\.hook_mpl_out'\. Did you mean 'blocks\.0\.hook_mlp"):
        run("mpl_out")
    with pytest.raises(UnknownNameError, match=r"cached activation 'blocks\.0\.hook_mlp_out'.*names_filter"):
        run("mlp_out")
    with pytest.raises(InvalidInputError, match="one of them; got neither"):
        run("z", None)
    with pytest.raises(InvalidInputError, match="one of them; got both"):
        run("z", index_df=pd.DataFrame({"layer": [0]}))
    with pytest.raises(UnknownNameError, match=r"hook point 'blocks\.7\.attn\.hook_z'"):
        run("z", None, index_df=pd.DataFrame({"layer": [7], "pos": [0]}))
    with pytest.raises(UnknownNameError, match="resid_mid"):
        patching.get_act_patch_resid_mid(tiny_model(attn_only=True), corrupted, cache, metric, progress=False)


def test_a_metric_of_many_numbers_is_refused_and_no_hook_stays(
    model: HookedTransformer, corrupted: Tensor, clean: Tensor
) -> None:
    _, cache = model.run_with_cache(clean)
    with pytest.raises(InvalidInputError, match=r"one number .* shape \[2\]\. Take a mean"):
        patching.get_act_patch_resid_pre(model, corrupted, cache, lambda logits: logits[:, -1, 0], progress=False)

    def broken(corrupted: Tensor, index: list[int], clean: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        patching.generic_activation_patch(
            model, corrupted, cache, metric, broken, "z", ("layer", "pos"), progress=False
        )
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("length", "rows", "drop_batch"),
    [(LENGTH - 1, 2, False), (LENGTH, 3, False), (LENGTH, 1, True)],
)
def test_runs_that_do_not_match_are_refused(
    length: int, rows: int, drop_batch: bool, model: HookedTransformer, corrupted: Tensor
) -> None:
    _, cache = model.run_with_cache(tiny_tokens(rows, length, seed=3), remove_batch_dim=drop_batch)
    with pytest.raises(InvalidInputError, match=r"at \{'layer': 0, 'head': 0\} .* does not fit .*same number"):
        patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric, progress=False)


def test_setters_take_an_index_of_their_own_length() -> None:
    activation = torch.zeros(1, 3, 2)
    with pytest.raises(InvalidInputError, match=r"takes an index \[layer, pos\]; got \[0, 1, 2\]"):
        patching.layer_pos_patch_setter(activation, [0, 1, 2], activation)
    with pytest.raises(InvalidInputError, match=r"takes an index \[layer, head, dest_pos, src_pos\]; got \[0, 1\]"):
        patching.layer_head_dest_src_pos_pattern_patch_setter(activation, [0, 1], activation)


def test_sweeps_say_what_they_are() -> None:
    for name in module.__all__:
        assert getattr(patching, name) is getattr(module, name)
        if name.startswith("get_act_patch"):
            assert str(getattr(patching, name).__doc__).startswith("Patch ")
    assert "[layer, pos, head]" in str(patching.get_act_patch_attn_head_k_by_pos.__doc__)
