"""Keys and values kept: a text in pieces gives what it gives in one, with every activation and gradient."""

from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens

from headscope import HookedTransformerKeyValueCache
from headscope.errors import InvalidInputError
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCacheEntry

TOKENS = tiny_tokens(3, 9)
SHAPES: dict[str, dict[str, Any]] = {
    "standard": {},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "no positions": {"positional_embedding_type": "none"},
    "grouped": {"n_heads": 4, "n_key_value_heads": 2},
    "ungrouped": {"n_heads": 4, "n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "parallel": {"parallel_attn_mlp": True},
}


def new_cache(model: Any, batch: int = 3) -> HookedTransformerKeyValueCache:
    return HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 9), (0, 4, 9), (0, 8, 9)])
def test_pieces_give_what_the_whole_gives(shape: str, cuts: tuple[int, ...]) -> None:
    model = tiny_model(**SHAPES[shape])
    with torch.no_grad():
        logits, whole = model.run_with_cache(TOKENS)
        past = new_cache(model)
        for start, stop in zip(cuts, cuts[1:], strict=False):
            out, piece = model.run_with_cache(TOKENS[:, start:stop], past_kv_cache=past)
            assert past.n_past == stop
            torch.testing.assert_close(out, logits[:, start:stop], rtol=1e-10, atol=1e-10)
            for name in ("q", "z", "resid_post"):
                torch.testing.assert_close(piece[name, 1], whole[name, 1][:, start:stop], rtol=1e-10, atol=1e-10)
            pattern = whole["pattern", 1][:, :, start:stop, :stop]
            torch.testing.assert_close(piece["pattern", 1], pattern, rtol=1e-10, atol=1e-10)
    assert past[1].past_keys.shape == (3, 9, model.cfg.n_cached_heads, 4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stays_padding(side: str) -> None:
    model = tiny_model()
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :3] = 0
    if side == "right":
        mask = mask.flip(-1)
    wanted = model(TOKENS, attention_mask=mask)
    for full in (False, True):
        past = new_cache(model)
        first = model(TOKENS[:, :5], attention_mask=mask[:, :5], past_kv_cache=past)
        second = model(TOKENS[:, 5:], attention_mask=mask if full else mask[:, 5:], past_kv_cache=past)
        found = torch.cat([first, second], dim=1)
        torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], rtol=1e-10, atol=1e-10)


def test_a_frozen_cache_serves_many_texts() -> None:
    model = tiny_model()
    past = new_cache(model)
    model(TOKENS[:, :4], past_kv_cache=past)
    past.freeze()
    others = tiny_tokens(3, 5, seed=4)
    for rest in (TOKENS[:, 4:], others, TOKENS[:, 4:]):
        wanted = model(torch.cat([TOKENS[:, :4], rest], dim=1))[:, 4:]
        torch.testing.assert_close(model(rest, past_kv_cache=past), wanted, rtol=1e-10, atol=1e-10)
        assert past.n_past == 4 and past.previous_attention_mask.shape == (3, 4)
    made_frozen = HookedTransformerKeyValueCache(past.entries, past.previous_attention_mask, frozen=True)
    assert torch.equal(model(others, past_kv_cache=made_frozen), model(others, past_kv_cache=made_frozen))
    assert made_frozen[0].past_keys.shape[1] == 4
    past.unfreeze()
    model(others, past_kv_cache=past)
    assert past.n_past == 9 and "9 positions" in repr(past) and len(past) == 2


def test_gradients_flow_through_the_past() -> None:
    model = tiny_model()
    model(TOKENS)[:, 6:].square().sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    past = new_cache(model)
    for start, stop in ((0, 3), (3, 6)):
        model(TOKENS[:, start:stop], past_kv_cache=past)
    model(TOKENS[:, 6:], past_kv_cache=past).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-9)


def test_growing_copies_little_and_keeps_what_was_given() -> None:
    past = torch.arange(6.0).view(1, 3, 1, 2)
    entry = HookedTransformerKeyValueCacheEntry(past, past + 100)
    buffers = set()
    for step in range(40):
        new = torch.full((1, 1, 1, 2), float(step))
        keys, values = entry.append(new, -new)
        assert keys.shape == values.shape == (1, 4 + step, 1, 2)
        assert torch.equal(keys[:, :3], past) and torch.equal(values[:, :3], past + 100)
        assert torch.equal(keys[0, 3:, 0, 0], torch.arange(step + 1.0))
        buffers.add(keys.data_ptr())
    assert len(buffers) <= 6  # 3 positions double to 48 in four steps
    with torch.inference_mode():
        entry.append(new, new)
    entry.append(new, new)
    assert entry.past_keys.shape[1] == 45


def test_an_error_leaves_the_cache_as_it_was() -> None:
    model = tiny_model()
    past = new_cache(model)
    model(TOKENS[:, :4], past_kv_cache=past)

    def fail(value: torch.Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.run_with_hooks(TOKENS[:, 4:6], past_kv_cache=past, fwd_hooks=[("blocks.1.attn.hook_z", fail)])
    assert past.n_past == past[0].past_keys.shape[1] == past[1].past_values.shape[1] == 4
    wanted = model(TOKENS)[:, 4:]
    torch.testing.assert_close(model(TOKENS[:, 4:], past_kv_cache=past), wanted, rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_model()
    past = new_cache(model, batch=2)
    with pytest.raises(InvalidInputError, match="for a batch of 2; the input has 3"):
        model(TOKENS, past_kv_cache=past)
    past = new_cache(model)
    model(TOKENS, past_kv_cache=past)
    with pytest.raises(InvalidInputError, match="the input has 13 tokens"):
        model(TOKENS[:, :4], past_kv_cache=past)
    with pytest.raises(InvalidInputError, match=r"\[3, 2\] \(or \[3, 11\] with the past\)"):
        model(TOKENS[:, :2], attention_mask=torch.ones(3, 5), past_kv_cache=past)
    with pytest.raises(InvalidInputError, match="must agree"):
        past[0].append(torch.zeros(3, 1, 2, 4), torch.zeros(3, 1, 2, 4))


@pytest.mark.parametrize("positions", ["standard", "rotary", "shortformer"])
def test_a_pass_in_two_parts_reads_each_token_once(positions: str) -> None:
    """Lower layers first, then upper ones with the same cache; the next tokens come behind."""
    model, mask = tiny_model(positional_embedding_type=positions), torch.ones(3, 9)
    mask[1, :2] = 0
    wanted, past = model(TOKENS, attention_mask=mask), new_cache(model)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        given, known = TOKENS[:, start:stop], mask[:, start:stop]
        middle = model(given, stop_at_layer=1, past_kv_cache=past, attention_mask=known)
        found = model(middle, start_at_layer=1, past_kv_cache=past, attention_mask=known)
        assert past.n_past == past[0].past_keys.shape[1] == past[1].past_keys.shape[1] == stop
        real = known.bool()
        torch.testing.assert_close(found[real], wanted[:, start:stop][real], rtol=1e-10, atol=1e-10)


def test_layers_that_have_read_other_positions_are_refused() -> None:
    model = tiny_model()
    past = new_cache(model)
    middle = model(TOKENS[:, :4], stop_at_layer=1, past_kv_cache=past)
    with pytest.raises(InvalidInputError, match="holds 4 positions, but 0 of this layer"):
        model(TOKENS[:, 4:], past_kv_cache=past)
    for given, options in ((middle[:, :3], {}), (middle, {"attention_mask": torch.tensor([[0, 1, 1, 1]] * 3)})):
        with pytest.raises(InvalidInputError, match="lower layers have read 4 positions"):
            model(given, start_at_layer=1, past_kv_cache=past, **options)
    assert [entry.past_keys.shape[1] for entry in past.entries] == [4, 0] and past.n_past == 4
    model(middle, start_at_layer=1, past_kv_cache=past)
    torch.testing.assert_close(model(TOKENS[:, 4:], past_kv_cache=past), model(TOKENS)[:, 4:], rtol=1e-10, atol=1e-10)
