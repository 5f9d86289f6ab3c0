"""`ActivationCache`: each reading of the residual stream, against the activations and weights of the reference.

In float64, within 1e-9.
"""

from typing import Any

import pytest
import torch
from reference import Reference
from small_models import small_model
from surface import CACHE, same
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import ActivationCache, HookedTransformer

TOKENS = tiny_tokens(2, 5)
HEADS, NEURONS = 3, 14
STOPS = [0, 1, 2, None]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model()


@pytest.fixture(scope="module")
def acts(model: HookedTransformer) -> dict[str, Tensor]:
    return Reference(model.state_dict(), model.cfg, optional=("result",)).run(TOKENS).acts


@pytest.fixture
def cache(model: HookedTransformer) -> ActivationCache:
    return model.run_with_cache(TOKENS)[1]


def neurons(model: HookedTransformer, acts: dict[str, Tensor], layer: int) -> Tensor:
    """What each neuron writes, `[neuron, batch, pos, d_model]`, one at a time."""
    W_out = model.state_dict()[f"blocks.{layer}.mlp.W_out"]
    post = acts[f"blocks.{layer}.mlp.hook_post"]
    return torch.stack([post[..., neuron, None] * W_out[neuron] for neuron in range(NEURONS)])


def state(acts: dict[str, Tensor], layer: int | None) -> Tensor:
    """The stream that enters a layer; the final one for `None`."""
    return acts["blocks.1.hook_resid_post"] if layer in (None, 2) else acts[f"blocks.{layer}.hook_resid_pre"]


def normed(stack: Tensor, acts: dict[str, Tensor], norm: str) -> Tensor:
    """Each part without its mean, over the scale of a norm."""
    return (stack - stack.mean(-1, keepdim=True)) / acts[f"{norm}.hook_scale"]


def norm_before(layer: int | None, mlp_input: bool = False) -> str:
    return "ln_final" if layer in (None, 2) else f"blocks.{layer}.ln{2 if mlp_input else 1}"


# A dictionary


@CACHE.shows("__init__", "cache_dict", "model", "has_batch_dim", "has_embed", "has_pos_embed")
def test_a_cache(name: str, model: HookedTransformer, acts: dict[str, Tensor]) -> None:
    kept = {"hook_embed": acts["hook_embed"]}
    made = ActivationCache(kept, model, has_batch_dim=name != "has_batch_dim")
    assert made.cache_dict is kept and made.model is model
    assert made.has_batch_dim is (name != "has_batch_dim")
    assert made.has_embed and not made.has_pos_embed
    made = ActivationCache({"hook_pos_embed": acts["hook_pos_embed"]}, model)
    assert made.has_pos_embed and not made.has_embed and made.has_batch_dim


@CACHE.shows("__getitem__", "__contains__", "__len__", "__iter__", "keys", "values", "items")
def test_as_a_dictionary(name: str, cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    wanted = {key: value for key, value in acts.items() if not key.endswith("hook_result")}
    if name == "__getitem__":
        for key in wanted:
            same(cache[key], wanted[key])
        for key, full in [
            (("q", 1), "blocks.1.attn.hook_q"), (("attn", 0), "blocks.0.attn.hook_pattern"),
            (("resid_pre", -1), "blocks.1.hook_resid_pre"), (("scale", 0, "ln2"), "blocks.0.ln2.hook_scale"),
            (("post", 0, "mlp"), "blocks.0.mlp.hook_post"), ("scale", "ln_final.hook_scale"),
            ("embed", "hook_embed"), ("k1", "blocks.1.attn.hook_k"),
        ]:  # fmt: skip
            same(cache[key], wanted[full])
        with pytest.raises(KeyError, match=r"blocks\.0\.attn\.hook_result"):
            cache["result", 0]
    elif name == "__contains__":
        assert all(key in cache for key in wanted) and ("pattern", 1) in cache and "embed" in cache
        assert ("result", 0) not in cache and "nothing" not in cache
    elif name == "__len__":
        assert len(cache) == len(wanted)
    elif name in ("__iter__", "keys"):
        assert set(cache if name == "__iter__" else cache.keys()) == set(wanted)
    elif name == "values":
        assert all(value is cache[key] for key, value in zip(cache.keys(), cache.values(), strict=True))
    else:
        assert all(value is cache[key] for key, value in cache.items()) and len(cache.items()) == len(wanted)


@CACHE.shows("to")
def test_to(cache: ActivationCache) -> None:
    assert cache.to("meta") is cache and all(value.is_meta for value in cache.values())


@CACHE.shows("remove_batch_dim")
def test_remove_batch_dim(model: HookedTransformer, cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    _, one = model.run_with_cache(TOKENS[1:])
    assert one.remove_batch_dim() is one and not one.has_batch_dim
    for key in one:
        same(one[key], acts[key][1])
    with pytest.raises(ValueError, match="batch of 1"):
        cache.remove_batch_dim()
    same(one.decompose_resid().sum(0), state(acts, None)[1])
    same(one.stack_head_results(pos_slice=-1, incl_remainder=True).sum(0), state(acts, None)[1, -1])


@CACHE.shows("apply_slice_to_batch_dim")
def test_apply_slice_to_batch_dim(cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    for rows, index in [((1, 2), slice(1, 2)), ([1, 0], [1, 0]), (None, slice(None))]:
        part = cache.apply_slice_to_batch_dim(rows)  # type: ignore[arg-type]
        assert part.has_batch_dim and set(part) == set(cache)
        assert all(torch.equal(part[key], cache[key][index]) for key in cache)
    one = cache.apply_slice_to_batch_dim(1)
    assert not one.has_batch_dim and cache.has_batch_dim
    same(one["resid_post", 1], state(acts, None)[1])


@CACHE.shows("stack_activation")
def test_stack_activation(cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    z = torch.stack([acts[f"blocks.{layer}.attn.hook_z"] for layer in range(2)])
    same(cache.stack_activation("z"), z)
    same(cache.stack_activation("z", layer=1), z[:1])
    scales = torch.stack([acts[f"blocks.{layer}.ln2.hook_scale"] for layer in range(2)])
    same(cache.stack_activation("scale", sublayer_type="ln2"), scales)


# The stream on its way


@CACHE.shows("accumulated_resid")
@pytest.mark.parametrize("layer", STOPS)
def test_accumulated_resid(layer: int | None, cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    stop = 2 if layer is None else layer
    names = [(f"{each}_pre", state(acts, each)) for each in range(stop)]
    names.append(("final_post" if stop == 2 else f"{stop}_pre", state(acts, stop)))
    found, labels = cache.accumulated_resid(layer, return_labels=True)
    assert labels == [label for label, _ in names]
    same(found, torch.stack([value for _, value in names]))
    same(cache.accumulated_resid(layer, pos_slice=(1, 3)), found[:, :, 1:3])
    middles = [acts[f"blocks.{each}.hook_resid_mid"] for each in range(2)]
    with_mid, labels = cache.accumulated_resid(layer, incl_mid=True, return_labels=True)
    order = [value for each in range(stop) for value in (state(acts, each), middles[each])] + [state(acts, stop)]
    same(with_mid, torch.stack(order))
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"][: 2 * stop + 1]
    if stop < 2:
        same(cache.accumulated_resid(layer, apply_ln=True), normed(found, acts, norm_before(layer)))
        mlp, labels = cache.accumulated_resid(layer, mlp_input=True, return_labels=True)
        same(mlp, torch.stack([*found, middles[stop]]))
        assert labels[-2:] == [f"{stop}_pre", f"{stop}_mid"]
        scaled = cache.accumulated_resid(layer, mlp_input=True, apply_ln=True)
        same(scaled, normed(mlp, acts, norm_before(layer, mlp_input=True)))


@CACHE.shows("decompose_resid")
@pytest.mark.parametrize("layer", STOPS)
def test_decompose_resid(layer: int | None, cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    stop = 2 if layer is None else layer
    embeds = {"embed": acts["hook_embed"], "pos_embed": acts["hook_pos_embed"]}
    layers = {
        f"{each}_{part}": acts[f"blocks.{each}.hook_{part}"] for each in range(stop) for part in ("attn_out", "mlp_out")
    }
    found, labels = cache.decompose_resid(layer, return_labels=True)
    assert labels == [*embeds, *layers]
    same(found, torch.stack([*embeds.values(), *layers.values()]))
    same(found.sum(0), state(acts, layer))
    same(cache.decompose_resid(layer, apply_ln=True), normed(found, acts, norm_before(layer)))
    same(cache.decompose_resid(layer, pos_slice=-1), found[:, :, -1])
    if stop:
        same(cache.decompose_resid(layer, incl_embeds=False), found[2:])
        for mode in ("attn", "mlp"):
            some, labels = cache.decompose_resid(layer, mode=mode, incl_embeds=False, return_labels=True)
            assert labels == [label for label in layers if mode in label]
            same(some, torch.stack([layers[label] for label in labels]))
    if stop < 2:
        same(cache.decompose_resid(layer, mlp_input=True).sum(0), acts[f"blocks.{stop}.hook_resid_mid"])
        parts, labels = cache.decompose_resid(layer, mlp_input=True, apply_ln=True, return_labels=True)
        assert labels[-1] == f"{stop}_attn_out"
        for mode, count in (("attn", stop + 1), ("mlp", stop)):
            assert len(cache.decompose_resid(layer, mlp_input=True, mode=mode)) == 2 + count
        same(parts.sum(0), acts[f"blocks.{stop}.ln2.hook_normalized"])


@CACHE.shows("apply_ln_to_stack")
def test_apply_ln_to_stack(cache: ActivationCache, acts: dict[str, Tensor], model: HookedTransformer) -> None:
    stack = torch.randn(4, 2, 5, 10, dtype=torch.float64)
    for layer, mlp_input in [(None, False), (0, False), (1, True)]:
        wanted = normed(stack, acts, norm_before(layer, mlp_input))
        same(cache.apply_ln_to_stack(stack, layer, mlp_input), wanted)
        same(cache.apply_ln_to_stack(stack[:, :, 1:3], layer, mlp_input, pos_slice=(1, 3)), wanted[:, :, 1:3])
        same(cache.apply_ln_to_stack(stack, layer, mlp_input, batch_slice=[1]), wanted[:, [1]])
        without = cache.apply_ln_to_stack(stack[:, 1], layer, mlp_input, batch_slice=1, has_batch_dim=False)
        same(without, wanted[:, 1])
    scale = (stack.var(-1, correction=0, keepdim=True) + model.cfg.eps).sqrt()
    own = (stack - stack.mean(-1, keepdim=True)) / scale * model.ln_final.w + model.ln_final.b
    same(cache.apply_ln_to_stack(stack, recompute_ln=True), own)


# Heads and neurons


@CACHE.shows("compute_head_results")
def test_compute_head_results(cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    cache.compute_head_results()
    for layer in range(2):
        same(cache["result", layer], acts[f"blocks.{layer}.attn.hook_result"])


@CACHE.shows("stack_head_results")
@pytest.mark.parametrize("layer", STOPS)
def test_stack_head_results(layer: int | None, cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    stop = 2 if layer is None else layer
    results = [acts[f"blocks.{each}.attn.hook_result"][:, :, head] for each in range(stop) for head in range(HEADS)]
    found, labels = cache.stack_head_results(layer, return_labels=True, incl_remainder=True)
    assert labels == [f"L{each}H{head}" for each in range(stop) for head in range(HEADS)] + ["remainder"]
    same(found, torch.stack([*results, state(acts, layer) - sum(results)]))
    scaled = cache.stack_head_results(layer, incl_remainder=True, apply_ln=True)
    same(scaled, normed(found, acts, norm_before(layer)))
    if stop:
        same(cache.stack_head_results(layer), found[:-1])
        same(cache.stack_head_results(layer, pos_slice=[0, 2]), found[:-1, :, [0, 2]])
        same(cache.stack_head_results(layer, pos_slice=2, apply_ln=True), scaled[:-1, :, 2])


@CACHE.shows("get_neuron_results")
def test_get_neuron_results(model: HookedTransformer, cache: ActivationCache, acts: dict[str, Tensor]) -> None:
    wanted = neurons(model, acts, 1).movedim(0, 2)
    same(cache.get_neuron_results(1), wanted)
    same(cache.get_neuron_results(1, neuron_slice=(2, 9, 3), pos_slice=-1), wanted[:, -1, [2, 5, 8]])
    direction, plane = torch.randn(10, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    same(cache.get_neuron_results(1, project_output_onto=direction), (wanted * direction).sum(-1))
    same(cache.get_neuron_results(1, project_output_onto=plane), wanted @ plane)


@CACHE.shows("stack_neuron_results")
@pytest.mark.parametrize("layer", STOPS)
def test_stack_neuron_results(
    layer: int | None, model: HookedTransformer, cache: ActivationCache, acts: dict[str, Tensor]
) -> None:
    stop = 2 if layer is None else layer
    parts = [part for each in range(stop) for part in neurons(model, acts, each)]
    found, labels = cache.stack_neuron_results(layer, return_labels=True, incl_remainder=True)
    assert labels == [f"L{each}N{neuron}" for each in range(stop) for neuron in range(NEURONS)] + ["remainder"]
    same(found, torch.stack([*parts, state(acts, layer) - sum(parts)]))
    scaled = cache.stack_neuron_results(layer, incl_remainder=True, apply_ln=True)
    same(scaled, normed(found, acts, norm_before(layer)))
    direction = torch.randn(10, dtype=torch.float64)
    for apply_ln, whole in ((False, found), (True, scaled)):
        along = cache.stack_neuron_results(layer, incl_remainder=True, apply_ln=apply_ln, project_output_onto=direction)
        same(along, whole @ direction)
    if stop:
        same(cache.stack_neuron_results(layer), found[:-1])
        some, labels = cache.stack_neuron_results(layer, pos_slice=1, neuron_slice=[3, 0], return_labels=True)
        assert labels == [f"L{each}N{neuron}" for each in range(stop) for neuron in (3, 0)]
        same(some, found[[NEURONS * each + neuron for each in range(stop) for neuron in (3, 0)], :, 1])


@CACHE.shows("get_full_resid_decomposition")
@pytest.mark.parametrize("layer", STOPS)
@pytest.mark.parametrize("expand_neurons", [True, False])
def test_get_full_resid_decomposition(
    expand_neurons: bool,
    layer: int | None,
    model: HookedTransformer,
    cache: ActivationCache,
    acts: dict[str, Tensor],
) -> None:
    stop = 2 if layer is None else layer
    b_O, b_out = model.b_O.detach(), model.b_out.detach()
    parts: dict[str, Tensor] = {}
    for each in range(stop):
        result = acts[f"blocks.{each}.attn.hook_result"]
        parts |= {f"L{each}H{head}": result[:, :, head] for head in range(HEADS)}
    for each in range(stop):
        if expand_neurons:
            parts |= {f"L{each}N{neuron}": part for neuron, part in enumerate(neurons(model, acts, each))}
        else:
            parts[f"{each}_mlp_out"] = acts[f"blocks.{each}.hook_mlp_out"]
    parts |= {"embed": acts["hook_embed"], "pos_embed": acts["hook_pos_embed"]}
    bias = b_O[:stop].sum(0) + (b_out[:stop].sum(0) if expand_neurons else 0)
    parts["bias"] = bias.expand(2, 5, -1)
    options: dict[str, Any] = {"layer": layer, "expand_neurons": expand_neurons}
    found, labels = cache.get_full_resid_decomposition(return_labels=True, **options)
    assert labels == list(parts)
    same(found, torch.stack(list(parts.values())))
    same(found.sum(0), state(acts, layer))
    scaled = cache.get_full_resid_decomposition(apply_ln=True, **options)
    same(scaled, normed(found, acts, norm_before(layer)))
    plane = torch.randn(10, 2, dtype=torch.float64)
    same(cache.get_full_resid_decomposition(project_output_onto=plane, **options), found @ plane)
    same(cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=plane, **options), scaled @ plane)
    same(cache.get_full_resid_decomposition(pos_slice=(1, 4), **options), found[:, :, 1:4])
    if stop < 2:
        whole = cache.get_full_resid_decomposition(mlp_input=True, **options)
        same(whole.sum(0), acts[f"blocks.{stop}.hook_resid_mid"])
        assert len(whole) == len(found) + HEADS


@CACHE.shows("logit_attrs")
def test_logit_attrs() -> None:
    """Each part's share of a logit, with folded norms; with the bias, the shares add up to the logit itself."""
    model = tiny_model(normalization_type="LNPre")
    run = Reference(model.state_dict(), model.cfg).run(TOKENS)
    _, cache = model.run_with_cache(TOKENS)
    stack = cache.decompose_resid()
    read = normed(stack, run.acts, "ln_final") @ model.W_U.detach()
    same(cache.logit_attrs(stack, 7), read[..., 7])
    same(cache.logit_attrs(stack, 7, incorrect_tokens=3), read[..., 7] - read[..., 3])
    answers, others = torch.tensor([7, 2]), torch.tensor([1, 4])
    by_row = torch.stack([read[:, row, :, answers[row]] - read[:, row, :, others[row]] for row in range(2)], dim=1)
    same(cache.logit_attrs(stack, answers, others), by_row)
    last = cache.decompose_resid(pos_slice=-1)
    same(cache.logit_attrs(last, answers, others, pos_slice=-1), by_row[:, :, -1])
    same(cache.logit_attrs(stack, 7, batch_slice=[1]), read[:, [1], :, 7])
    same(cache.logit_attrs(stack[:, 1], 7, batch_slice=1, has_batch_dim=False), read[:, 1, :, 7])
    each = torch.randint(0, 23, (2, 5), generator=torch.Generator().manual_seed(0))
    same(cache.logit_attrs(stack, each), read.gather(-1, each.expand(6, -1, -1)[..., None])[..., 0])
    same(cache.logit_attrs(stack, 7).sum(0) + model.b_U[7].detach(), run.logits[..., 7])


def test_logit_attrs_takes_words() -> None:
    model = small_model(dtype=torch.float64)
    _, cache = model.run_with_cache("the old dog")
    stack, (mary, john) = cache.decompose_resid(), (model.tokenizer.encode(word)[0] for word in (" Mary", " John"))
    same(cache.logit_attrs(stack, " Mary", " John"), cache.logit_attrs(stack, mary, john))


def test_every_row_has_a_check() -> None:
    assert CACHE.unchecked() == []
