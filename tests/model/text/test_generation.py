"""Writing: the same tokens as transformers, as running everything anew, and as each row of a padded batch alone."""

from typing import Any

import pytest
import torch
from small_models import STORY, small_model, small_tokenizer
from tiny import randomize, tiny_model, tiny_tokens
from transformers import GPT2Config, GPT2LMHeadModel

from headscope import HookedTransformer
from headscope.errors import InvalidInputError, MissingTokenizerError

GREEDY: dict[str, Any] = {"do_sample": False, "stop_at_eos": False, "verbose": False}


@pytest.fixture(scope="module")
def pair() -> tuple[HookedTransformer, GPT2LMHeadModel]:
    cfg = GPT2Config(
        vocab_size=83, n_positions=40, n_embd=24, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    hf = GPT2LMHeadModel(cfg).eval()
    randomize(hf, spread=0.3)
    return HookedTransformer.from_hf(hf), hf


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_greedy_tokens_are_those_of_transformers(
    pair: tuple[HookedTransformer, GPT2LMHeadModel], use_past_kv_cache: bool
) -> None:
    model, hf = pair
    prompt = tiny_tokens(3, 7, d_vocab=83)
    wanted = hf.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=30, eos_token_id=None
    )
    assert torch.equal(model.generate(prompt, 30, use_past_kv_cache=use_past_kv_cache, **GREEDY), wanted)


def test_left_padded_rows_continue_as_transformers_continues_them(
    pair: tuple[HookedTransformer, GPT2LMHeadModel],
) -> None:
    model, hf = pair
    prompt = tiny_tokens(2, 8, d_vocab=83)
    mask = torch.ones_like(prompt)
    mask[0, :5] = 0
    wanted = hf.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=12, eos_token_id=None)
    found = model.generate(prompt, 12, attention_mask=mask, **GREEDY)
    assert torch.equal(found, wanted)
    alone = model.generate(prompt[:1, 5:], 12, **GREEDY)
    assert torch.equal(found[:1, 8:], alone[:, 3:])


def test_penalties_count_no_padding(pair: tuple[HookedTransformer, GPT2LMHeadModel]) -> None:
    """A row continues as it would alone, and as `transformers` continues it."""
    model, hf = pair
    prompt = tiny_tokens(2, 8, d_vocab=83)
    mask = torch.ones_like(prompt)
    mask[0, :5] = 0
    options = {"repetition_penalty": 3.0, "max_new_tokens": 12}
    wanted = hf.generate(prompt, attention_mask=mask, do_sample=False, eos_token_id=None, **options)
    found = model.generate(prompt, attention_mask=mask, **GREEDY, **options)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, model.generate(prompt, 12, attention_mask=mask, **GREEDY))

    drawn = {"freq_penalty": 50.0, "top_k": 1, "stop_at_eos": False, "verbose": False}  # the likeliest after penalties
    alone = model.generate(prompt[:1, 5:], 12, **drawn)
    padded = torch.cat([alone[:, -4:].repeat(1, 2)[:, :5], prompt[:1, 5:]], dim=1)  # of tokens that it would write
    assert torch.equal(model.generate(padded, 12, attention_mask=mask[:1], **drawn)[:, 8:], alone[:, 3:])


@pytest.mark.parametrize("positions", ["standard", "shortformer", "none"])
@pytest.mark.parametrize("groups", [None, 1])
def test_the_cache_changes_nothing(positions: str, groups: int | None) -> None:
    model = tiny_model(positional_embedding_type=positions, n_key_value_heads=groups)
    prompt = tiny_tokens(2, 4)
    anew = model.generate(prompt, 8, use_past_kv_cache=False, **GREEDY)
    assert torch.equal(model.generate(prompt, 8, **GREEDY), anew)
    by_hand = prompt
    for _ in range(8):
        by_hand = torch.cat([by_hand, model(by_hand)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(by_hand, anew)


def test_texts_of_different_length_continue_as_each_alone() -> None:
    model = small_model()
    texts = ["When Mary and John", "The", STORY[:40]]
    together = model.generate(texts, 6, **GREEDY)
    assert isinstance(together, list)
    for text, found in zip(texts, together, strict=True):
        alone = model.generate(text, 6, **GREEDY)
        assert isinstance(alone, str) and found == alone and found.startswith(text)
    assert model.generate(texts[:1], 6, **GREEDY) == together[:1]


def test_forms_of_input_and_output() -> None:
    model = small_model()
    text = "When Mary"
    tokens = model.to_tokens(text)
    written = model.generate(tokens, 5, **GREEDY)
    assert written.shape == (1, tokens.shape[1] + 5) and torch.equal(written[:, :-5], tokens)
    assert torch.equal(model.generate(text, 5, return_type="tokens", **GREEDY), written)
    assert model.generate(tokens, 5, return_type="str", **GREEDY) == model.generate(text, 5, **GREEDY)
    assert torch.equal(model.generate(tokens[0], 5, **GREEDY), written)
    embeddings = model.embed(tokens)
    out = model.generate(embeddings, 5, **GREEDY)
    assert torch.equal(out, model.embed(written))
    assert torch.equal(model.generate(embeddings, 5, return_type="tokens", **GREEDY), written[:, -5:])
    assert model.generate("", 3, return_type="tokens", **GREEDY).shape == (1, 4)  # from BOS alone
    assert torch.equal(model.generate(tokens, 0, **GREEDY), tokens)
    assert not written.requires_grad and not written.is_inference()


def test_rows_end_at_their_end_token() -> None:
    model = tiny_model()
    prompt = tiny_tokens(4, 3)
    free = model.generate(prompt, 9, **GREEDY)
    ends = [int(free[0, 5]), int(free[1, 7])]
    found = model.generate(prompt, 9, eos_token_id=ends, do_sample=False, verbose=False)
    for row, wanted in zip(found.tolist(), free.tolist(), strict=True):
        stops = [at for at in range(3, len(wanted)) if wanted[at] in ends]
        until = stops[0] + 1 if stops else len(row)
        assert row[:until] == wanted[:until] and all(token == ends[0] for token in row[until:])
    one = model.generate(prompt[:1], 9, eos_token_id=ends[0], do_sample=False, verbose=False)
    assert one.shape[1] == free[0].tolist().index(ends[0], 3) + 1


def test_draws_follow_the_generator_and_the_model() -> None:
    model = tiny_model(spread=0.2)
    prompt = tiny_tokens(1, 3).expand(4000, -1)

    def draw(seed: int, **options: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(prompt, 1, stop_at_eos=False, verbose=False, generator=generator, **options)[:, -1]

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    shares = torch.bincount(draw(0), minlength=23) / 4000
    wanted = model(prompt[:1])[0, -1].softmax(-1).detach()
    assert float((shares - wanted).abs().max()) < 0.03  # four standard deviations of a share are 0.03 at most
    best = wanted.topk(2).indices
    assert set(draw(0, top_k=2).tolist()) == set(best.tolist())
    assert set(draw(0, temperature=0.0).tolist()) == {int(best[0])}
    before = torch.random.get_rng_state()
    draw(2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_streaming_gives_the_same_in_pieces() -> None:
    model = small_model()
    text = "The old dog"
    pieces = list(model.generate_stream(text, 7, max_tokens_per_yield=3, **GREEDY))
    assert len(pieces) == 3
    assert "".join(pieces) == model.generate(text, 7, **GREEDY)
    tokens = model.to_tokens(text)
    joined = torch.cat(list(model.generate_stream(tokens, 7, max_tokens_per_yield=3, **GREEDY)), dim=1)
    assert torch.equal(joined, model.generate(tokens, 7, **GREEDY))


def test_hooks_see_each_step() -> None:
    model = tiny_model()
    seen = []
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda value, hook: seen.append(value.shape[-2:]))]):
        model.generate(tiny_tokens(1, 4), 3, **GREEDY)
    assert seen == [(4, 4), (1, 5), (1, 6)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate(tiny_tokens(1, 5), 9, **GREEDY), InvalidInputError, "n_ctx = 12"),
        (lambda m: m.generate(tiny_tokens(1, 5), -1, **GREEDY), InvalidInputError, "max_new_tokens = -1"),
        (lambda m: m.generate(tiny_tokens(1, 5), 2, verbose=False), InvalidInputError, "pass eos_token_id"),
        (lambda m: m.generate("Mary", 2), MissingTokenizerError, "takes tokens, not text"),
        (
            lambda m: m.generate(tiny_tokens(1, 3), 2, attention_mask=torch.tensor([[1, 1, 0]]), **GREEDY),
            InvalidInputError,
            "padded on the left",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(tiny_model())


def test_the_whole_context_can_be_written() -> None:
    model = tiny_model()
    assert model.generate(tiny_tokens(1, 5), 8, **GREEDY).shape == (1, 13)  # the last is written, never read


def test_special_tokens_are_no_text() -> None:
    model = small_model()
    bos = small_tokenizer().bos_token
    assert bos not in model.generate("Mary", 3, **GREEDY)


def test_logits_of_each_step_come_with_the_tokens(pair: tuple[HookedTransformer, GPT2LMHeadModel]) -> None:
    model, hf = pair
    prompt = tiny_tokens(2, 7, d_vocab=83)
    asked = {"output_logits": True, "return_dict_in_generate": True}
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 5, "eos_token_id": None}
    wanted = hf.generate(prompt, **options, **asked)
    found = model.generate(prompt, 5, **GREEDY, **asked)
    assert type(found) is type(wanted) and torch.equal(found.sequences, wanted.sequences)
    assert isinstance(found.logits, tuple) and len(found.logits) == 5
    for mine, theirs in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(prompt, 5, return_dict_in_generate=True, **GREEDY), wanted.sequences)
    # Before the temperature, and with a prompt of embeddings the new tokens alone.
    generator = torch.Generator().manual_seed(0)
    warm = model.generate(
        model.embed(prompt),
        1,
        temperature=7.0,
        stop_at_eos=False,
        verbose=False,
        output_logits=True,
        generator=generator,
    )
    torch.testing.assert_close(warm.logits[0], found.logits[0], rtol=1e-4, atol=1e-4)
    assert warm.sequences.shape == (2, 1)


def test_rows_that_ended_at_one_of_several_tokens_are_filled_with_eos() -> None:
    model = small_model()
    prompt = tiny_tokens(3, 5, d_vocab=300)
    free = model.generate(prompt, 6, **GREEDY)[:, 5:]
    ends = [int(free[0, 1]), int(free[1, 2])]
    eos = model.tokenizer.eos_token_id
    assert eos not in ends
    found = model.generate(prompt, 6, eos_token_id=ends, do_sample=False, verbose=False)[:, 5:]
    for row, wanted in zip(found.tolist(), free.tolist(), strict=True):
        until = next((at + 1 for at, token in enumerate(wanted) if token in ends), len(row))
        assert row[:until] == wanted[:until][: len(row)] and set(row[until:]) <= {eos}
    assert eos in found
    model.tokenizer = None
    without = model.generate(prompt, 6, eos_token_id=ends, do_sample=False, verbose=False)[:, 5:]
    assert torch.equal(without, torch.where(found == eos, ends[0], found))


def test_options_of_transformers_that_are_not_taken_are_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="no option 'num_beams', 'use_cache'"):
        small_model().generate("Mary", 2, num_beams=4, use_cache=True)
