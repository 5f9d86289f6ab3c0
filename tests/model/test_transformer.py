"""What `forward` takes and gives, from the middle of the model too, and what it refuses."""

import gc
import math
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from own_process import run_program
from reference import Reference
from tiny import tiny_config, tiny_model, tiny_tokenizer, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.errors import CheckpointError, HeadscopeError, InvalidInputError, MissingTokenizerError

TOKENS = tiny_tokens(3)
RIGHT = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]])
LEFT = RIGHT.flip(-1)


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model(n_layers=3)


@pytest.fixture(scope="module")
def speaker() -> HookedTransformer:
    tokenizer = tiny_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    return tiny_model(tokenizer, d_vocab=-1)


def naive_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    logits = logits.detach()
    rows = [
        [
            -math.log(float(logits[row, at].double().softmax(-1)[tokens[row, at + 1]]))
            for at in range(logits.shape[1] - 1)
        ]
        for row in range(len(tokens))
    ]
    return torch.tensor(rows, dtype=torch.float64)


def test_one_row_of_tokens_needs_no_batch_axis(model: HookedTransformer) -> None:
    assert torch.equal(model(TOKENS[0]), model(TOKENS[:1]))
    assert torch.equal(model(TOKENS[0], return_type="loss"), model(TOKENS[:1], return_type="loss"))
    mask = RIGHT[0]
    assert torch.equal(model(TOKENS[0], attention_mask=mask), model(TOKENS[:1], attention_mask=mask[None]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_any_integer_type_of_tokens_will_do(model: HookedTransformer, dtype: torch.dtype) -> None:
    assert torch.equal(model(TOKENS.to(dtype)), model(TOKENS))
    assert torch.equal(model(TOKENS.to(dtype), return_type="loss"), model(TOKENS, return_type="loss"))


def test_the_return_types(model: HookedTransformer) -> None:
    logits, loss = model(TOKENS, return_type="both")
    both = model(TOKENS, return_type="both")
    assert torch.equal(both.logits, logits) and torch.equal(both.loss, loss)
    assert torch.equal(logits, model(TOKENS)) and torch.equal(loss, model(TOKENS, return_type="loss"))
    assert model(TOKENS, return_type=None) is None
    torch.testing.assert_close(loss, naive_losses(logits, TOKENS).mean())
    per_token = model(TOKENS, return_type="loss", loss_per_token=True)
    torch.testing.assert_close(per_token, naive_losses(logits, TOKENS))
    torch.testing.assert_close(model.loss_fn(logits, TOKENS, per_token=True), per_token)
    torch.testing.assert_close(model.loss_fn(logits, TOKENS), loss)


@pytest.mark.parametrize("mask", [RIGHT, LEFT, RIGHT.bool()], ids=["right", "left", "bool"])
def test_the_loss_of_a_padded_batch_is_that_of_its_real_tokens(model: HookedTransformer, mask: Tensor) -> None:
    whole = model(TOKENS, attention_mask=mask, return_type="loss", loss_per_token=True)
    losses = []
    for row, real in zip(TOKENS, mask.bool(), strict=True):
        alone = model(row[real][None], return_type="loss", loss_per_token=True)[0]
        losses.append(alone)
    counted = mask[:, 1:].bool() & mask[:, :-1].bool()
    torch.testing.assert_close(whole[counted], torch.cat(losses))
    assert bool((whole[~counted] == 0).all())
    loss = model(TOKENS, attention_mask=mask, return_type="loss")
    torch.testing.assert_close(loss, torch.cat(losses).mean())
    assert torch.equal(loss, model(TOKENS, attention_mask=mask, return_type="both").loss)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_found_from_the_padding_token(speaker: HookedTransformer, side: Any) -> None:
    texts = ["Mary gave a book", "John walked home, and it rained"]
    both = speaker(texts, padding_side=side)
    tokens = speaker.to_tokens(texts, padding_side=side)
    mask = speaker.attention_mask(tokens, padding_side=side)
    assert mask is not None
    assert torch.equal(speaker(tokens, padding_side=side), both)
    for row, text in enumerate(texts):
        torch.testing.assert_close(both[row][mask[row]], speaker(text)[0])
    losses = torch.cat([speaker(text, return_type="loss", loss_per_token=True)[0] for text in texts])
    torch.testing.assert_close(speaker(texts, padding_side=side, return_type="loss"), losses.mean())
    if side == "right":
        torch.testing.assert_close(speaker.loss_fn(both, tokens), losses.mean())


def test_text_goes_in_with_or_without_bos(speaker: HookedTransformer) -> None:
    text = "Mary gave a book"
    for prepend in (True, False, None):
        assert torch.equal(speaker(text, prepend_bos=prepend), speaker(speaker.to_tokens(text, prepend_bos=prepend)))
    with_bos, without = speaker(text), speaker(text, prepend_bos=False)
    assert with_bos.shape[1] == without.shape[1] + 1
    with pytest.raises(MissingTokenizerError, match="set_tokenizer"):
        tiny_model()(text)


def test_a_tokenizer_without_bos_does_not_stop_tokens() -> None:
    tokenizer = tiny_tokenizer(pad_token="<pad>")
    model = tiny_model(tokenizer, d_vocab=-1)
    pad = tokenizer.pad_token_id
    tokens = torch.tensor([[5, 6, 7, pad], [5, 6, 7, 8]])
    logits = model(tokens)
    torch.testing.assert_close(logits[0, :3], model(tokens[:1, :3])[0])
    assert bool(model(tokens, return_type="loss").isfinite())


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("stop", [None, 0, 1, 2, 3, -1, -2])
def test_starting_and_stopping_at_any_layer(model: HookedTransformer, start: int, stop: int | None) -> None:
    _, cache = model.run_with_cache(TOKENS, attention_mask=RIGHT)
    states = [cache["resid_pre", layer] for layer in range(3)] + [cache["resid_post", 2]]
    if stop is None:
        out = model(states[start], start_at_layer=start, attention_mask=RIGHT)
        torch.testing.assert_close(out, model(TOKENS, attention_mask=RIGHT))
        negative = model(states[start], start_at_layer=start - 3, attention_mask=RIGHT) if start < 3 else out
        assert torch.equal(negative, out)
        return
    end = stop % 3 if stop < 0 else stop
    whole = model(TOKENS, stop_at_layer=stop, attention_mask=RIGHT)
    torch.testing.assert_close(whole, states[end])
    if start <= end:
        part = model(states[start], start_at_layer=start, stop_at_layer=stop, attention_mask=RIGHT)
        torch.testing.assert_close(part, states[end])


def test_a_loss_from_the_middle_needs_tokens(model: HookedTransformer) -> None:
    resid = model(TOKENS, stop_at_layer=1)
    loss = model(resid, start_at_layer=1, tokens=TOKENS, return_type="loss")
    torch.testing.assert_close(loss, model(TOKENS, return_type="loss"))
    with pytest.raises(InvalidInputError, match="tokens="):
        model(resid, start_at_layer=1, return_type="loss")


def test_from_the_middle_padding_is_found_in_the_tokens(speaker: HookedTransformer) -> None:
    texts = ["Mary gave a book", "John walked home, and it rained"]
    for side in ("left", "right"):
        tokens = speaker.to_tokens(texts, padding_side=side)
        resid = speaker(tokens, stop_at_layer=1, padding_side=side)
        again = speaker(resid, start_at_layer=1, tokens=tokens, padding_side=side, return_type="both")
        whole = speaker(tokens, padding_side=side, return_type="both")
        torch.testing.assert_close(again.loss, whole.loss)
        torch.testing.assert_close(again.logits, whole.logits)


def test_layers_may_be_hooked_when_run_in_part(model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(TOKENS, stop_at_layer=1)
    assert "blocks.0.hook_resid_post" in cache and "blocks.1.hook_resid_pre" not in cache
    resid = cache["resid_post", 0]
    _, cache = model.run_with_cache(resid, start_at_layer=1)
    assert "blocks.0.hook_resid_post" not in cache and "hook_embed" not in cache
    assert torch.equal(cache["resid_pre", 1], resid)


@pytest.mark.parametrize("name, given, message", [
    ("token too high", torch.tensor([[1, 23]]), r"between 0 and d_vocab - 1 = 22; got 23"),
    ("negative token", torch.tensor([[1, -1]]), r"between 0 and d_vocab - 1 = 22; got -1"),
    ("floats", torch.rand(2, 3), r"integer.*torch.float32"),
    ("booleans", torch.ones(2, 3).bool(), r"integer.*torch.bool"),
    ("three axes", torch.zeros(1, 2, 3).long(), r"\[batch, pos\].*\[1, 2, 3\]"),
    ("no axis", torch.tensor(3), r"\[batch, pos\].*\[\]"),
    ("no tokens", torch.zeros(1, 0).long(), r"at least one.*\[1, 0\]"),
    ("no rows", torch.zeros(0, 4).long(), r"at least one.*\[0, 4\]"),
    ("too long", torch.zeros(1, 13).long(), r"13 tokens.*n_ctx = 12"),
])  # fmt: skip
def test_bad_tokens_are_refused(model: HookedTransformer, name: str, given: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model(given)
    with pytest.raises(InvalidInputError, match=message):
        model.run_with_cache(given)
    assert not any(point.fwd_hooks for point in model.hook_points())


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_only_positions_bound_the_context(direction: str) -> None:
    tokens = tiny_tokens(2, 13)
    model = tiny_model(attention_dir=direction)
    assert model(tokens[:, :12]).shape == (2, 12, 23)
    with pytest.raises(InvalidInputError, match=r"13 tokens.*n_ctx = 12"):
        model(tokens)
    without = tiny_model(attention_dir=direction, positional_embedding_type="none")
    torch.testing.assert_close(without(tokens), Reference(without.state_dict(), without.cfg).run(tokens).logits)


@pytest.mark.parametrize("stop", [4, 100])
def test_a_stop_beyond_the_end_is_the_end(model: HookedTransformer, stop: int) -> None:
    assert torch.equal(model(TOKENS, stop_at_layer=stop), model(TOKENS, stop_at_layer=3))
    with pytest.raises(InvalidInputError, match=f"start_at_layer.*3.*{stop}"):
        model(torch.zeros(3, 7, 10), start_at_layer=stop)


@pytest.mark.parametrize("arguments, message", [
    ({"attention_mask": torch.ones(3, 6)}, r"attention_mask.*\[3, 7\].*\[3, 6\]"),
    ({"attention_mask": torch.ones(2, 7)}, r"attention_mask.*\[3, 7\].*\[2, 7\]"),
    ({"start_at_layer": 1}, r"residual stream.*d_model = 10.*\[3, 7\]"),
    ({"stop_at_layer": -4}, r"stop_at_layer.*3.*-4"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(model: HookedTransformer, arguments: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model(TOKENS, **arguments)


@pytest.mark.parametrize("resid, start, message", [
    (torch.zeros(2, 5, 9), 0, r"d_model = 10.*\[2, 5, 9\]"),
    (torch.zeros(5, 10), 0, r"\[5, 10\]"),
    (torch.zeros(2, 5, 10).double(), 4, r"start_at_layer.*3.*4"),
    (torch.zeros(2, 5, 10).double(), -4, r"start_at_layer.*3.*-4"),
    ("text", 0, r"str"),
])  # fmt: skip
def test_starts_that_do_not_fit_are_refused(model: HookedTransformer, resid: Any, start: int, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model(resid, start_at_layer=start)


@pytest.mark.parametrize("given", [[], [1, 2, 3], 5, None, {"tokens": TOKENS}])
def test_other_kinds_of_input_are_refused_by_name(model: HookedTransformer, given: Any) -> None:
    with pytest.raises((InvalidInputError, TypeError)) as caught:
        model(given)
    assert isinstance(caught.value, HeadscopeError) or "parameter input=" in str(caught.value)


def test_a_model_from_a_dictionary_and_from_a_tokenizer() -> None:
    model = HookedTransformer({**tiny_config().to_dict(), "d_vocab": 30})
    assert model.cfg.d_vocab == 30 and isinstance(model.cfg, HookedTransformerConfig)
    tokenizer = tiny_tokenizer(eos_token="<eos>")
    model = HookedTransformer(tiny_config(d_vocab=-1), tokenizer)
    assert model.cfg.d_vocab == model.cfg.d_vocab_out == len(tokenizer) == model.W_E.shape[0]
    with pytest.raises(InvalidInputError, match="d_vocab"):
        HookedTransformer(tiny_config(d_vocab=-1))


def test_a_tokenizer_named_in_the_config_is_loaded(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(eos_token="<eos>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    named = tiny_config(d_vocab=-1, tokenizer_name=str(tmp_path / "tokenizer"))
    model = HookedTransformer(named)
    assert model.cfg.d_vocab == model.cfg.d_vocab_out == len(tokenizer) == model.W_E.shape[0]
    assert model.to_tokens("Mary", prepend_bos=False).tolist() == [tokenizer.encode("Mary", add_special_tokens=False)]
    assert HookedTransformer(tiny_config(d_vocab=500, tokenizer_name="headscope-demo")).cfg.d_vocab == 500
    other = tiny_tokenizer(eos_token="<end>")
    assert HookedTransformer(named, other).tokenizer is other


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", ""])
def test_a_tokenizer_that_cannot_be_found_is_named(name: str, tmp_path: Path) -> None:
    name = name or str(tmp_path)  # a directory without one
    with pytest.raises(CheckpointError, match=re.escape(f"cfg.tokenizer_name = {name!r}")):
        HookedTransformer(tiny_config(tokenizer_name=name))


def test_random_weights_have_a_seed_of_their_own() -> None:
    state = torch.get_rng_state()
    first, second = HookedTransformer(tiny_config(seed=3)), HookedTransformer(tiny_config(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    other = HookedTransformer(tiny_config(seed=4))
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if ".W_" in name or name.startswith("W_"):
            assert not torch.equal(a, c), name
            assert abs(float(a.detach().std()) / (0.8 / math.sqrt(10)) - 1) < 0.5, name
        else:
            assert bool((a == (1.0 if name.endswith(".w") else 0.0)).all()), name


def test_stacked_weights_have_the_fields_shapes_and_are_no_views(model: HookedTransformer) -> None:
    shapes = {
        "W_Q": (3, 3, 10, 4), "W_K": (3, 3, 10, 4), "W_V": (3, 3, 10, 4), "W_O": (3, 3, 4, 10), "b_Q": (3, 3, 4),
        "b_K": (3, 3, 4), "b_V": (3, 3, 4), "b_O": (3, 10), "W_in": (3, 10, 14), "b_in": (3, 14),
        "W_out": (3, 14, 10), "b_out": (3, 10), "W_E": (23, 10), "W_pos": (12, 10), "W_U": (10, 23), "b_U": (23,),
        "W_E_pos": (35, 10),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert tuple(getattr(model, name).shape) == shape, name
    for layer, block in enumerate(model.blocks):
        assert torch.equal(model.W_O[layer], block.attn.W_O) and torch.equal(model.b_in[layer], block.mlp.b_in)
        torch.testing.assert_close(model.OV[layer].AB, block.attn.W_V @ block.attn.W_O)
        torch.testing.assert_close(block.attn.QK.AB, block.attn.W_Q @ block.attn.W_K.transpose(-2, -1))
    storages = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(storages)) == len(storages)
    assert model.all_head_labels() == [f"L{layer}H{head}" for layer in range(3) for head in range(3)]
    for absent in ("W_in", "W_pos"):
        toy = tiny_model(attn_only=True, positional_embedding_type="none")
        with pytest.raises(AttributeError):
            getattr(toy, absent)


def test_assigning_a_state_dict_piece_by_piece(model: HookedTransformer) -> None:
    fresh = HookedTransformer(tiny_config(n_layers=3, seed=9))
    for name, tensor in model.state_dict().items():
        owner, _, attribute = name.rpartition(".")
        setattr(fresh.get_submodule(owner), attribute, torch.nn.Parameter(tensor.clone()))
    assert torch.equal(fresh(TOKENS), model(TOKENS))


def test_a_heads_only_model_without_positions_equals_the_reference_beyond_pairs() -> None:
    model = tiny_model(attn_only=True, positional_embedding_type="none", normalization_type=None)
    torch.testing.assert_close(model(TOKENS), Reference(model.state_dict(), model.cfg).run(TOKENS).logits)


def test_a_single_token_has_logits_and_no_losses(model: HookedTransformer) -> None:
    assert model(TOKENS[:, :1]).shape == (3, 1, 23)
    assert model(TOKENS[:, :1], return_type="loss", loss_per_token=True).shape == (3, 0)


COMPILE = """
import torch
from tiny import tiny_model, tiny_tokens

model, tokens = tiny_model(n_layers=N_LAYERS), tiny_tokens()
wanted = model(tokens)
model(tokens, return_type="loss").backward()
gradient = model.blocks[0].attn.W_Q.grad.clone()
model.zero_grad()
torch._dynamo.config.skip_nnmodule_hook_guards = False  # hooks that come and go are seen
compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
torch.testing.assert_close(compiled(tokens), wanted)
compiled(tokens, return_type="loss").backward()
torch.testing.assert_close(model.blocks[0].attn.W_Q.grad, gradient)
for factor in (0.0, 2.0):
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda value, hook: factor * value)]):
        torch.testing.assert_close(compiled(tokens), model(tokens))
        assert not torch.allclose(compiled(tokens), wanted)
torch.testing.assert_close(compiled(tokens), wanted)
"""


@pytest.mark.parametrize(("backend", "n_layers"), [
    ("aot_eager", 1), pytest.param("aot_eager", 2, marks=pytest.mark.slow),
    pytest.param("inductor", 2, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_compiled_model_gives_the_same_numbers_and_gradients(backend: str, n_layers: int) -> None:
    # In a process of its own: the compiler cannot read what checks types in this one.
    script = COMPILE.replace("BACKEND", repr(backend)).replace("N_LAYERS", str(n_layers))
    done = run_program(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ten_thousand_hooked_forwards_leave_nothing_behind() -> None:
    model, tokens = tiny_model(), tiny_tokens()

    def touch(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value + 0.0

    def use_it(times: int) -> None:
        for _ in range(times):
            model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), touch)])
            model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as memory:
            return int(memory.read().split()[1]) * resource.getpagesize()

    with torch.no_grad():
        use_it(500)
        before, objects = resident(), len(gc.get_objects())
        use_it(5_000)
    assert len(gc.get_objects()) - objects < 200
    assert resident() - before < 4 * 2**20
    assert not any(point._forward_hooks or point.fwd_hooks for point in model.hook_points())
