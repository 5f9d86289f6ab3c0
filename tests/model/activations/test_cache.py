"""The cache: every form of key, and the residual stream taken apart and put together again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference
from tiny import tiny_model, tiny_tokenizer, tiny_tokens
from torch import Tensor

from headscope import ActivationCache, HookedTransformer
from headscope.errors import CheckpointError, InvalidInputError, UnknownNameError
from headscope.model.checkpoints.files import write_tensors

SHAPES: dict[str, dict[str, Any]] = {
    "LN": {},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS": {"normalization_type": "RMS"},
    "no norm": {"normalization_type": None},
    "attn_only": {"attn_only": True},
    "parallel": {"parallel_attn_mlp": True},
    "no positions": {"positional_embedding_type": "none"},
}
TOKENS = tiny_tokens(3)


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> HookedTransformer:
    return tiny_model(n_layers=3, **SHAPES[request.param])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def run(model: HookedTransformer, **options: Any) -> tuple[Tensor, ActivationCache]:
    logits, cache = model.run_with_cache(TOKENS, **options)
    return logits, cache


def test_keys_in_all_forms() -> None:
    model = tiny_model(n_layers=3)
    _, cache = run(model)
    z = cache.cache_dict["blocks.2.attn.hook_z"]
    for key in ("blocks.2.attn.hook_z", ("z", 2), ("z", -1), "z2", ("z", 2, "attn"), ("z", -1, "a")):
        assert cache[key] is z, key
        assert key in cache
    assert cache["embed"] is cache["hook_embed"] is cache.cache_dict["hook_embed"]
    assert cache["scale"] is cache.cache_dict["ln_final.hook_scale"]
    assert cache["normalized", 1, "ln2"] is cache.cache_dict["blocks.1.ln2.hook_normalized"]
    assert cache["scale", -3, "ln1"] is cache["scale0ln1"] is cache.cache_dict["blocks.0.ln1.hook_scale"]
    assert cache["attn", 0] is cache["pattern", 0] and cache["attn_scores", 0] is cache["attn_logits", 0]
    assert cache["mlp_out", -2] is cache.cache_dict["blocks.1.hook_mlp_out"]
    assert cache["post", 1] is cache["mlp_post", 1] is cache.cache_dict["blocks.1.mlp.hook_post"]
    for absent in ("nothing", ("z", 3), ("z", -4), ("result", 0), 7, ("resid_pre",)):
        assert absent not in cache


def test_it_is_a_dictionary() -> None:
    model = tiny_model()
    _, cache = run(model)
    _, plain = model.run_with_cache(TOKENS, return_cache_object=False)
    assert isinstance(plain, dict) and list(cache) == list(cache.keys()) == list(plain)
    assert len(cache) == len(plain) == len(cache.values()) == len(cache.items())
    assert all(torch.equal(value, plain[name]) for name, value in cache.items())
    assert f"{len(plain)} activations" in repr(cache) and "MB" in repr(cache)
    assert cache.to("cpu") is cache and torch.equal(cache["z", 0], plain["blocks.0.attn.hook_z"])


def test_an_activation_that_is_not_there_gives_the_nearest() -> None:
    _, cache = run(tiny_model(), names_filter=lambda name: name.endswith("hook_z"))
    with pytest.raises(UnknownNameError, match=r"'blocks.1.attn.hook_q'.*'blocks.1.attn.hook_z'.*names_filter"):
        cache["q", 1]
    with pytest.raises(UnknownNameError, match="names_filter"):
        cache.decompose_resid()


def test_the_cache_keeps_no_model_alive() -> None:
    import gc
    import weakref

    model = tiny_model()
    _, cache = run(model)
    watched = weakref.ref(model.blocks[0].mlp)
    del model
    gc.collect()
    assert watched() is None and len(cache) > 0


def test_kept_activations_hold_no_graph() -> None:
    with torch.enable_grad():
        _, cache = run(tiny_model())
    assert not any(value.requires_grad for value in cache.values())


def test_the_accumulated_stream_equals_the_reference(model: HookedTransformer) -> None:
    acts = Reference(model.state_dict(), model.cfg).run(TOKENS).acts
    _, cache = run(model)
    sequential = "blocks.0.hook_resid_mid" in acts
    for layer in (None, -1, 0, 1, 2, 3):
        stop = 3 if layer in (None, -1) else layer
        for mid in (False, True):
            for mlp_input in (False, True):
                names, labels = [], []
                for each in range(stop + 1):
                    if each == 3:
                        names.append("blocks.2.hook_resid_post")
                        labels.append("final_post")
                        continue
                    names.append(f"blocks.{each}.hook_resid_pre")
                    labels.append(f"{each}_pre")
                    if sequential and ((mid and each < stop) or (mlp_input and each == stop)):
                        names.append(f"blocks.{each}.hook_resid_mid")
                        labels.append(f"{each}_mid")
                stack, found = cache.accumulated_resid(layer, mid, mlp_input=mlp_input, return_labels=True)
                assert found == labels
                close(stack, torch.stack([acts[name] for name in names]))
    close(cache.accumulated_resid(pos_slice=-1), cache.accumulated_resid()[:, :, -1])


def test_the_parts_sum_to_the_stream(model: HookedTransformer) -> None:
    _, cache = run(model)
    mlps = not model.cfg.attn_only
    embeds = ["embed"] + ["pos_embed"] * (model.cfg.positional_embedding_type == "standard")
    for layer in (None, -1, 0, 1, 2, 3):
        stop = 3 if layer in (None, -1) else layer
        target = cache["resid_post", 2] if stop == 3 else cache["resid_pre", stop]
        parts, labels = cache.decompose_resid(layer, return_labels=True)
        written = [f"{each}_{kind}" for each in range(stop) for kind in ("attn_out", "mlp_out")[: 1 + mlps]]
        assert labels == [*embeds, *written]
        close(parts.sum(0), target)
        full, names = cache.get_full_resid_decomposition(layer, expand_neurons=False, return_labels=True)
        heads = [f"L{each}H{head}" for each in range(stop) for head in range(3)]
        assert names == [*heads, *(f"{each}_mlp_out" for each in range(stop) if mlps), *embeds, "bias"]
        close(full.sum(0), target)
        for slice_ in (-1, (1, 4)):
            at = slice(1, 4) if slice_ != -1 else -1
            close(cache.decompose_resid(layer, pos_slice=slice_), parts[:, :, at])
            close(cache.get_full_resid_decomposition(layer, expand_neurons=False, pos_slice=slice_), full[:, :, at])
        if stop:
            stack, labels = cache.stack_head_results(layer, return_labels=True, incl_remainder=True)
            assert labels == [*heads, "remainder"]
            close(stack.sum(0), target)
            close(stack[:-1], cache.stack_head_results(layer))
            close(cache.stack_head_results(layer, pos_slice=2), stack[:-1, :, 2])
    for part in cache.stack_head_results(1), cache.get_full_resid_decomposition(1)[:3]:
        close(part.sum(0) + model.b_O[0], cache["attn_out", 0])


def test_the_input_of_an_mlp_is_the_sum_of_its_parts() -> None:
    _, cache = run(tiny_model(n_layers=3))
    for layer in range(3):
        close(cache.decompose_resid(layer, mlp_input=True).sum(0), cache["resid_mid", layer])
        close(cache.get_full_resid_decomposition(layer, mlp_input=True).sum(0), cache["resid_mid", layer])
    assert cache.decompose_resid(1, mlp_input=True, return_labels=True)[1][-1] == "1_attn_out"


def test_the_modes_of_decomposing() -> None:
    _, cache = run(tiny_model(n_layers=3))
    attn, labels = cache.decompose_resid(mode="attn", incl_embeds=False, return_labels=True)
    assert labels == ["0_attn_out", "1_attn_out", "2_attn_out"]
    mlp = cache.decompose_resid(mode="mlp", incl_embeds=False)
    embeds = cache.decompose_resid(0)
    close(attn.sum(0) + mlp.sum(0) + embeds.sum(0), cache["resid_post", 2])
    with pytest.raises(InvalidInputError, match="layer 0"):
        cache.decompose_resid(0, incl_embeds=False)
    with pytest.raises(InvalidInputError, match="layer 0"):
        cache.stack_head_results(0)


def test_head_results_are_made_from_z_when_they_were_not_kept() -> None:
    model = tiny_model()
    _, cache = run(model)
    _, asked = model.run_with_cache(TOKENS, names_filter=lambda name: True)
    close(cache.stack_head_results(), asked.stack_head_results())
    assert ("result", 0) not in cache
    cache.compute_head_results()
    for layer in range(2):
        close(cache["result", layer], asked["result", layer])


def test_frozen_norm_contributions_sum_to_the_logits() -> None:
    for shape in ("LNPre", "no norm"):
        model = tiny_model(n_layers=3, **SHAPES[shape])
        logits, cache = run(model)
        for stack in (cache.decompose_resid(), cache.get_full_resid_decomposition()):
            close((cache.apply_ln_to_stack(stack) @ model.W_U).sum(0) + model.b_U, logits)
        close(cache.decompose_resid(apply_ln=True), cache.apply_ln_to_stack(cache.decompose_resid()))
        last = cache.decompose_resid(pos_slice=-1, apply_ln=True)
        close((last @ model.W_U).sum(0) + model.b_U, logits[:, -1])
        some = cache.decompose_resid(pos_slice=[0, 2, 5], apply_ln=True)
        close((some @ model.W_U).sum(0) + model.b_U, logits[:, [0, 2, 5]])


def test_frozen_norms_on_the_way() -> None:
    model = tiny_model(n_layers=3, normalization_type="LNPre")
    _, cache = run(model)
    for layer in range(3):
        stack = cache.decompose_resid(layer, apply_ln=True)
        close(stack.sum(0), cache["normalized", layer, "ln1"])
        stack = cache.decompose_resid(layer, mlp_input=True, apply_ln=True)
        close(stack.sum(0), cache["normalized", layer, "ln2"])
        full = cache.get_full_resid_decomposition(layer, mlp_input=True, apply_ln=True)
        close(full.sum(0), cache["normalized", layer, "ln2"])
        accumulated = cache.accumulated_resid(layer, apply_ln=True)
        close(accumulated[-1], cache["normalized", layer, "ln1"])
    for layer in (3, None, -1):
        close(cache.decompose_resid(layer, mlp_input=True, apply_ln=True).sum(0), cache["ln_final.hook_normalized"])


@pytest.mark.parametrize("shape", SHAPES)
def test_attributions_sum_to_the_logit_difference(shape: str) -> None:
    model = tiny_model(n_layers=3, **SHAPES[shape])
    logits, cache = run(model)
    right, wrong = torch.tensor([3, 5, 7]), torch.tensor([4, 4, 0])
    rows = torch.arange(3)
    bias = model.b_U
    if model.cfg.normalization_type == "LN":
        bias = bias + model.ln_final.b @ model.W_U
    wanted = logits[rows, -1, right] - logits[rows, -1, wrong] - (bias[right] - bias[wrong])
    for stack in (cache.decompose_resid(pos_slice=-1), cache.get_full_resid_decomposition(pos_slice=-1)):
        close(cache.logit_attrs(stack, right, wrong, pos_slice=-1).sum(0), wanted)
    everywhere = cache.logit_attrs(cache.decompose_resid(), right, wrong)
    assert everywhere.shape[1:] == (3, 7)
    close(everywhere.sum(0)[:, -1], wanted)
    one = cache.logit_attrs(cache.decompose_resid(), 5).sum(0)
    close(one, logits[..., 5] - bias[5])
    everyone = cache.logit_attrs(cache.decompose_resid(), TOKENS).sum(0)
    close(everyone, logits.gather(-1, TOKENS[..., None])[..., 0] - bias[TOKENS])


def test_attributions_of_words_and_of_one_row() -> None:
    model = tiny_model(tiny_tokenizer(bos_token="<bos>", eos_token="<eos>"), d_vocab=-1, normalization_type="LNPre")
    mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
    logits, cache = model.run_with_cache("When Mary and John went")
    stack = cache.decompose_resid(pos_slice=-1)
    wanted = logits[:, -1, mary] - logits[:, -1, john] - model.b_U[mary] + model.b_U[john]
    close(cache.logit_attrs(stack, " Mary", " John", pos_slice=-1).sum(0), wanted)
    close(cache.logit_attrs(stack, torch.tensor([mary]), torch.tensor([john]), pos_slice=-1).sum(0), wanted)
    with pytest.raises(InvalidInputError, match="tokens, not one"):
        cache.logit_attrs(stack, "xyzzy", pos_slice=-1)


def test_a_batch_of_one_without_its_axis(model: HookedTransformer) -> None:
    logits, cache = model.run_with_cache(TOKENS[:1])
    _, bare = model.run_with_cache(TOKENS[:1], remove_batch_dim=True)
    assert not bare.has_batch_dim and cache.has_batch_dim
    for stack in ("decompose_resid", "get_full_resid_decomposition", "accumulated_resid", "stack_head_results"):
        close(getattr(bare, stack)(), getattr(cache, stack)()[:, 0])
        close(getattr(bare, stack)(apply_ln=True), getattr(cache, stack)(apply_ln=True)[:, 0])
        close(getattr(bare, stack)(pos_slice=-1), getattr(cache, stack)(pos_slice=-1)[:, 0])
    close(bare.logit_attrs(bare.decompose_resid(), 3), cache.logit_attrs(cache.decompose_resid(), 3)[:, 0])
    later = cache.remove_batch_dim()
    assert later is cache and not cache.has_batch_dim
    assert all(torch.equal(value, bare[name]) for name, value in cache.items())
    assert cache.remove_batch_dim() is cache and cache["z", 0].ndim == 3


def test_only_a_batch_of_one_loses_its_axis() -> None:
    _, cache = run(tiny_model())
    with pytest.raises(InvalidInputError, match=r"batch of 1"):
        cache.remove_batch_dim()
    assert cache["z", 0].ndim == 4 and cache.has_batch_dim


def test_layers_out_of_range_are_refused() -> None:
    _, cache = run(tiny_model())
    for call in (cache.accumulated_resid, cache.decompose_resid, cache.stack_head_results,
                 cache.get_full_resid_decomposition):  # fmt: skip
        for layer in (3, -2):
            with pytest.raises(InvalidInputError, match=rf"between 0 and n_layers = 2; got {layer}"):
                call(layer)


@pytest.mark.parametrize("flag", ["set_use_split_qkv_input", "set_use_attn_in"])
def test_norms_of_a_layer_whose_heads_have_inputs_of_their_own(flag: str) -> None:
    model = tiny_model(n_layers=3, normalization_type="LNPre")
    wanted = run(model)[1].decompose_resid(1, apply_ln=True)
    getattr(model, flag)(True)
    close(run(model)[1].decompose_resid(1, apply_ln=True), wanted)
    close(run(model)[1].decompose_resid(1, apply_ln=True, pos_slice=-1), wanted[:, :, -1])
    bare = model.run_with_cache(TOKENS[:1], remove_batch_dim=True)[1]
    close(bare.decompose_resid(1, apply_ln=True), wanted[:, 0])
    point = "blocks.1.hook_attn_in" if flag == "set_use_attn_in" else "blocks.1.hook_v_input"
    with model.hooks(fwd_hooks=[(point, lambda value, hook: value[:, :, :1] * torch.arange(1.0, 4.0)[:, None])]):
        _, cache = run(model)
    with pytest.raises(InvalidInputError, match="different inputs"):
        cache.decompose_resid(1, apply_ln=True)


def test_a_frozen_norm_equals_the_readouts() -> None:
    for shape in ("LN", "RMS", "no norm"):
        model = tiny_model(n_layers=3, **SHAPES[shape])
        logits, cache = run(model)
        final = cache["resid_post", -1]
        readout = cache.readout
        close(readout.logits(final), logits)
        bias = 0.0 if readout.bias is None else readout.bias
        close((readout.direction(final) / readout.scale(final) + bias) @ model.W_U + model.b_U, logits)
        if readout.normalized:
            close(readout.scale(final), cache["scale"])
    capped = tiny_model(output_logits_soft_cap=0.8)
    logits, cache = run(capped)
    close(cache.readout.logits(cache["resid_post", -1]), logits)


@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("shape", ["LN", "LNPre", "RMS", "no norm", "no positions", "attn_only"])
def test_neurons_sum_to_the_stream_and_project_as_their_results_do(shape: str, apply_ln: bool) -> None:
    model = tiny_model(n_layers=3, **SHAPES[shape])
    _, cache = run(model)
    mlps = not model.cfg.attn_only
    for layer, mlp_input in ((None, False), (2, False), (1, mlps and shape != "parallel")):
        stop = 3 if layer is None else layer
        full, labels = cache.get_full_resid_decomposition(
            layer, mlp_input=mlp_input, apply_ln=apply_ln, return_labels=True
        )
        heads = [f"L{each}H{head}" for each in range(stop + mlp_input) for head in range(3)]
        neurons = [f"L{each}N{neuron}" for each in range(stop) for neuron in range(14) if mlps]
        assert labels[: len(heads) + len(neurons)] == heads + neurons and labels[-1] == "bias"
        target = cache["resid_post", 2] if layer is None else cache["resid_mid" if mlp_input else "resid_pre", layer]
        wanted = cache.apply_ln_to_stack(target[None], layer, mlp_input=mlp_input)[0] if apply_ln else target
        close(full.sum(0), wanted)
        if mlps:
            alone, names = cache.stack_neuron_results(layer, apply_ln=apply_ln, return_labels=True)
            assert names == neurons
            if not mlp_input:
                close(alone, full[len(heads) : len(heads) + len(neurons)])
        for directions in (torch.linspace(-1, 1, 10).double(), torch.eye(10).double()[:, 3:5] + 0.1):
            options: dict[str, Any] = {"mlp_input": mlp_input, "apply_ln": apply_ln, "project_output_onto": directions}
            close(cache.get_full_resid_decomposition(layer, **options), full @ directions)
            close(cache.get_full_resid_decomposition(layer, pos_slice=-1, **options), full[:, :, -1] @ directions)


def test_some_neurons() -> None:
    model = tiny_model(n_layers=3)
    _, cache = run(model)
    by_hand = cache["post", 1][..., None] * model.blocks[1].mlp.W_out
    close(cache.get_neuron_results(1), by_hand)
    close(cache.get_neuron_results(1, neuron_slice=(2, 5), pos_slice=3), by_hand[:, 3, 2:5])
    stack, labels = cache.stack_neuron_results(2, neuron_slice=[1, 7], return_labels=True, incl_remainder=True)
    assert labels == ["L0N1", "L0N7", "L1N1", "L1N7", "remainder"]
    close(stack.sum(0), cache["resid_pre", 2])
    close(stack[3], by_hand[:, :, 7])
    one, labels = cache.stack_neuron_results(1, neuron_slice=4, return_labels=True)
    assert labels == ["L0N4"] and one.shape == (1, 3, 7, 10)
    with pytest.raises(InvalidInputError, match="no MLPs"):
        run(tiny_model(attn_only=True))[1].get_neuron_results(0)


def test_rows_of_the_batch() -> None:
    model = tiny_model(n_layers=3)
    _, cache = run(model)
    some = cache.apply_slice_to_batch_dim((1, 3))
    assert some["z", 0].shape[0] == 2 and cache["z", 0].shape[0] == 3
    close(some["resid_post", 2], cache["resid_post", 2][1:3])
    one = cache.apply_slice_to_batch_dim(1)
    assert not one.has_batch_dim
    close(one.stack_head_results(apply_ln=True), cache.stack_head_results(apply_ln=True)[:, 1])
    with pytest.raises(InvalidInputError, match="no batch axis"):
        one.apply_slice_to_batch_dim(0)
    stack = cache.decompose_resid()
    close(cache.apply_ln_to_stack(stack, batch_slice=[0, 2]), cache.apply_ln_to_stack(stack)[:, [0, 2]])
    whole = cache.logit_attrs(stack, 3, 5)
    close(cache.logit_attrs(stack, 3, 5, batch_slice=1), whole[:, 1])


def test_norms_of_their_own_are_the_logit_lens_of_each_state() -> None:
    model = tiny_model(n_layers=3)
    _, cache = run(model)
    states = cache.accumulated_resid()
    lens = cache.apply_ln_to_stack(states, recompute_ln=True) @ model.W_U + model.b_U
    wanted = torch.stack([model.unembed(model.ln_final(state)) for state in states])
    close(lens, wanted)
    assert not torch.allclose(cache.apply_ln_to_stack(states), cache.apply_ln_to_stack(states, recompute_ln=True))


def test_one_activation_of_all_layers() -> None:
    _, cache = run(tiny_model(n_layers=3))
    close(cache.stack_activation("z"), torch.stack([cache["z", layer] for layer in range(3)]))
    close(cache.stack_activation("scale", 2, "ln1"), torch.stack([cache["scale", layer, "ln1"] for layer in (0, 1)]))


@pytest.mark.parametrize("batch_dim", [True, False])
def test_a_cache_on_disk(batch_dim: bool, tmp_path: Path) -> None:
    model = tiny_model(n_layers=3)
    _, cache = model.run_with_cache(TOKENS[:1], remove_batch_dim=not batch_dim)
    again = ActivationCache.load(cache.save(tmp_path / "some" / "cache.safetensors"), model)
    assert again.keys() == cache.keys() and again.has_batch_dim is batch_dim
    for name, tensor in cache.items():
        assert torch.equal(again[name], tensor), name
    close(again.get_full_resid_decomposition(apply_ln=True), cache.get_full_resid_decomposition(apply_ln=True))
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["cache.safetensors"]


def test_what_is_no_cache_on_disk(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        ActivationCache.load(tmp_path / "absent.safetensors", model)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        ActivationCache.load(tmp_path / "text", model)
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {"kind": "entropy"})
    with pytest.raises(CheckpointError, match="holds 'entropy', not 'activations'"):
        ActivationCache.load(tmp_path / "other.safetensors", model)
