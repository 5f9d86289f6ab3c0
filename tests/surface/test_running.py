"""Running a model: forward and its options, the switches, generation, and the key-value cache.

Compared with the plain reimplementation in `support/reference.py`, in float64, within 1e-9.
"""

from typing import Any

import pytest
import torch
from reference import Reference, Run
from small_models import small_model
from surface import PAST, PAST_ENTRY, RUNNING, same
from tiny import tiny_config, tiny_model, tiny_tokenizer, tiny_tokens
from torch import Tensor

from headscope import (
    HookedTransformer,
    HookedTransformerConfig,
    HookedTransformerKeyValueCache,
    HookedTransformerKeyValueCacheEntry,
)

TOKENS = tiny_tokens(2, 7)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
KINDS: dict[str, dict[str, Any]] = {
    "standard": {},
    "attention only": {"attn_only": True},
    "parallel": {"parallel_attn_mlp": True},
    "RMSNorm": {"normalization_type": "RMS"},
    "folded": {"normalization_type": "LNPre"},
    "no norm": {"normalization_type": None},
    "no positions": {"positional_embedding_type": "none"},
    "both ways": {"attention_dir": "bidirectional"},
    "soft cap": {"output_logits_soft_cap": 3.0},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"use_attn_scale": False},
}


def by_hand(
    model: HookedTransformer, tokens: Tensor = TOKENS, mask: Tensor | None = None, optional: tuple[str, ...] = ()
) -> Run:
    return Reference(model.state_dict(), model.cfg, optional=optional).run(tokens, mask)


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Minus the log-probability of each next token, `[batch, pos - 1]`."""
    chosen = logits.exp().gather(-1, tokens.roll(-1, 1)[..., None])[..., 0]
    return (logits.exp().sum(-1).log() - chosen.log())[:, :-1]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model()


# Making and running


@RUNNING.shows("__init__")
def test_init() -> None:
    cfg, tokenizer = tiny_config(d_vocab=-1), tiny_tokenizer(bos_token="<bos>")
    model = HookedTransformer(cfg, tokenizer, default_padding_side="left")
    assert model.cfg is cfg and model.tokenizer is tokenizer and model.default_padding_side == "left"
    assert model.cfg.d_vocab == len(tokenizer) == model.W_E.shape[0]
    from_fields = HookedTransformer(tiny_config().to_dict(), move_to_device=False)
    assert from_fields.cfg == tiny_config()
    stays = HookedTransformer(tiny_config(device="meta"), move_to_device=False)
    assert stays.W_E.device.type == "cpu" and HookedTransformer(tiny_config(device="meta")).W_E.is_meta


@RUNNING.shows("forward")
@pytest.mark.parametrize("kind", KINDS)
def test_forward(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
    same(model(TOKENS), by_hand(model).logits)
    same(model.forward(TOKENS, attention_mask=MASK)[1, 3:], by_hand(model, mask=MASK).logits[1, 3:])


def test_forward_returns_what_is_asked_for(model: HookedTransformer) -> None:
    logits = by_hand(model).logits
    same(model(TOKENS, "loss"), losses(logits, TOKENS).mean())
    same(model(TOKENS, return_type="loss", loss_per_token=True), losses(logits, TOKENS))
    both = model(TOKENS, return_type="both")
    same(both[0], logits)
    same(both.loss, losses(logits, TOKENS).mean())
    assert model(TOKENS, return_type=None) is None
    real = MASK[:, 1:].bool() & MASK[:, :-1].bool()
    masked = losses(by_hand(model, mask=MASK).logits, TOKENS)
    same(model(TOKENS, return_type="loss", attention_mask=MASK), masked[real].mean())


def test_forward_starts_and_stops_at_layers(model: HookedTransformer) -> None:
    run = by_hand(model)
    middle, end = run.acts["blocks.1.hook_resid_pre"], run.acts["blocks.1.hook_resid_post"]
    same(model(TOKENS, stop_at_layer=1), middle)
    same(model(TOKENS, stop_at_layer=-1), middle)
    same(model(TOKENS, stop_at_layer=2), end)
    same(model(middle, start_at_layer=1), run.logits)
    same(model(middle, start_at_layer=-1, stop_at_layer=2), end)
    loss = model(middle, start_at_layer=1, tokens=TOKENS, return_type="loss")
    same(loss, losses(run.logits, TOKENS).mean())


def test_forward_takes_text() -> None:
    model = small_model(dtype=torch.float64)
    bos, pad = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    long, short = (model.tokenizer.encode(text) for text in ("When Mary and John went", "the old dog"))
    same(model("the old dog"), by_hand(model, torch.tensor([[bos, *short]])).logits)
    same(model("the old dog", prepend_bos=False), by_hand(model, torch.tensor([short])).logits)
    gap = [pad] * (len(long) - len(short))
    rows = torch.tensor([[bos, *long], [*gap, bos, *short]])
    mask = torch.ones_like(rows)
    mask[1, : len(gap)] = 0
    left = model(["When Mary and John went", "the old dog"], padding_side="left")
    same(left[1, len(gap) :], by_hand(model, rows, mask).logits[1, len(gap) :])
    right = model(["When Mary and John went", "the old dog"], padding_side="right")
    same(right[1, : len(short) + 1], left[1, len(gap) :])
    model.cfg.attention_dir = "bidirectional"
    right = model(["When Mary and John went", "the old dog"], padding_side="right")
    same(right[1, : len(short) + 1], by_hand(model, torch.tensor([[bos, *short]])).logits[0])


def test_forward_adds_shortformer_positions_to_queries_and_keys() -> None:
    model = tiny_model(positional_embedding_type="shortformer", n_layers=1, attn_only=True)

    class Shortformer(Reference):
        def attention_inputs(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = super().attention_inputs(name, x)
            positions = self.state["pos_embed.W_pos"][: x.shape[1], None]
            return q + positions, k + positions, v

    wanted = Shortformer(model.state_dict(), model.cfg).run(TOKENS).logits
    same(model(TOKENS), wanted)
    same(model(model.W_E[TOKENS], start_at_layer=0, shortformer_pos_embed=model.W_pos[:7].expand(2, -1, -1)), wanted)
    zero = torch.zeros(2, 7, 10, dtype=torch.float64)
    without = Reference(model.state_dict(), model.cfg).run(TOKENS).logits
    same(model(model.W_E[TOKENS], start_at_layer=0, shortformer_pos_embed=zero), without)


@RUNNING.shows("input_to_embed")
def test_input_to_embed(model: HookedTransformer) -> None:
    residual, tokens, shortformer, mask = model.input_to_embed(TOKENS, attention_mask=MASK)
    same(residual, by_hand(model, mask=MASK).acts["blocks.0.hook_resid_pre"])
    assert torch.equal(tokens, TOKENS) and shortformer is None and torch.equal(mask.bool(), MASK.bool())
    resumed = model(residual, start_at_layer=0, tokens=tokens, attention_mask=mask)
    same(resumed[1, 3:], by_hand(model, mask=MASK).logits[1, 3:])
    reader = small_model(dtype=torch.float64)
    ids = reader.tokenizer.encode("the old dog")
    residual, tokens, _, _ = reader.input_to_embed("the old dog", prepend_bos=False)
    assert tokens.tolist() == [ids]
    same(residual, (reader.W_E[ids] + reader.W_pos[: len(ids)])[None])
    past = HookedTransformerKeyValueCache.init_cache(model.cfg, batch_size=2)
    model(TOKENS[:, :3], past_kv_cache=past)
    same(model.input_to_embed(TOKENS[:, 3:], past_kv_cache=past)[0], model.W_E[TOKENS[:, 3:]] + model.W_pos[3:7])


@RUNNING.shows("loss_fn")
def test_loss_fn(model: HookedTransformer) -> None:
    logits = by_hand(model).logits
    same(model.loss_fn(logits, TOKENS), losses(logits, TOKENS).mean())
    same(model.loss_fn(logits, TOKENS, per_token=True), losses(logits, TOKENS))
    real = MASK[:, 1:].bool() & MASK[:, :-1].bool()
    same(model.loss_fn(logits, TOKENS, MASK), losses(logits, TOKENS)[real].mean())


@RUNNING.shows("cfg", "embed", "hook_embed", "pos_embed", "hook_pos_embed", "blocks", "ln_final", "unembed")
def test_parts(name: str, model: HookedTransformer) -> None:
    """Each part is what the forward pass goes through, and gives what the reference has there."""
    run = by_hand(model)
    acts, part = run.acts, getattr(model, name)
    embedded, end = model.W_E[TOKENS], acts["blocks.1.hook_resid_post"]
    if name == "cfg":
        assert isinstance(part, HookedTransformerConfig) and part is model.blocks[1].attn.cfg
    elif name == "embed":
        same(part(TOKENS), acts["hook_embed"])
    elif name == "pos_embed":
        same(part(TOKENS), acts["hook_pos_embed"])
    elif name in ("hook_embed", "hook_pos_embed"):
        assert part.name == name and part is model.hook_dict[name] and part(embedded) is embedded
    elif name == "blocks":
        assert len(part) == 2
        same(part[0](acts["blocks.0.hook_resid_pre"]), acts["blocks.1.hook_resid_pre"])
    elif name == "ln_final":
        normalized = acts["ln_final.hook_normalized"] * model.state_dict()["ln_final.w"]
        same(part(end), normalized + model.state_dict()["ln_final.b"])
    else:
        same(part(model.ln_final(end)), run.logits)


# The switches


@RUNNING.shows("set_use_attn_result", "set_use_split_qkv_input", "set_use_attn_in", "set_use_hook_mlp_in")
def test_switches(name: str) -> None:
    """On, a cache of everything has the points, with the reference's values; off, it has not. Logits stay."""
    optional, points = {
        "set_use_attn_result": ("result", ["attn.hook_result"]),
        "set_use_split_qkv_input": ("q_input", ["hook_q_input", "hook_k_input", "hook_v_input"]),
        "set_use_attn_in": ("attn_in", ["hook_attn_in"]),
        "set_use_hook_mlp_in": ("mlp_in", ["hook_mlp_in"]),
    }[name]
    model = tiny_model()
    switched = [f"blocks.{layer}.{point}" for layer in range(2) for point in points]
    _, before = model.run_with_cache(TOKENS)
    getattr(model, name)(True)
    assert getattr(model.cfg, name.removeprefix("set_")) is True
    wanted = by_hand(model, optional=(optional,))
    logits, cache = model.run_with_cache(TOKENS)
    same(logits, wanted.logits)
    assert set(cache) - set(before) == set(switched)
    for point in switched:
        same(cache[point], wanted.acts[point])
    getattr(model, name)(False)
    assert set(model.run_with_cache(TOKENS)[1]) == set(before)


@RUNNING.shows("set_ungroup_grouped_query_attention")
def test_ungrouping_shows_the_keys_of_every_head() -> None:
    model = tiny_model(n_heads=4, n_key_value_heads=2)
    state = dict(model.state_dict())
    for name in [name for name in state if "._" in name]:
        state[name.replace("._", ".")] = state.pop(name).repeat_interleave(2, dim=0)
    wanted = Reference(state, model.cfg).run(TOKENS)
    for ungrouped in (True, False):
        model.set_ungroup_grouped_query_attention(ungrouped)
        logits, cache = model.run_with_cache(TOKENS)
        same(logits, wanted.logits)
        for name in ("blocks.0.attn.hook_k", "blocks.1.attn.hook_v"):
            same(cache[name], wanted.acts[name] if ungrouped else wanted.acts[name][:, :, ::2])
        _, cache = model.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("k_input"))
        stream = wanted.acts["blocks.1.hook_resid_pre"][:, :, None].expand(-1, -1, 4 if ungrouped else 2, -1)
        same(cache["k_input", 1], stream)


# Generation


def written_by_hand(
    model: HookedTransformer, prompt: Tensor, steps: int, mask: Tensor | None = None, penalty: float = 0.0
) -> Tensor:
    """The likeliest token again and again, less a penalty for each time it occurred; everything read anew each time."""
    mask = torch.ones_like(prompt) if mask is None else mask
    for _ in range(steps):
        logits = by_hand(model, prompt, mask).logits[:, -1]
        logits = logits - penalty * torch.nn.functional.one_hot(prompt, logits.shape[-1]).sum(1)
        prompt = torch.cat([prompt, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return prompt


@RUNNING.shows("generate")
def test_generate(model: HookedTransformer) -> None:
    prompt = TOKENS[:, :4]
    wanted = written_by_hand(model, prompt, 6)
    quiet: dict[str, Any] = {"stop_at_eos": False, "verbose": False}
    for use_cache in (True, False):
        found = model.generate(prompt, 6, do_sample=False, use_past_kv_cache=use_cache, **quiet)
        assert torch.equal(found, wanted)
    assert torch.equal(model.generate(prompt, 6, top_k=1, **quiet), wanted)
    assert torch.equal(model.generate(prompt, 6, top_p=1e-6, **quiet), wanted)
    assert torch.equal(model.generate(prompt, 6, temperature=1e-6, **quiet), wanted)
    penalised = written_by_hand(model, prompt, 6, penalty=5.0)
    assert not torch.equal(penalised, wanted)
    assert torch.equal(model.generate(prompt, 6, top_k=1, freq_penalty=5.0, **quiet), penalised)
    assert model.generate(prompt, **{**quiet, "max_new_tokens": 3}).shape == (2, 7)
    same(model.generate(prompt, 6, do_sample=False, return_type="embeds", **quiet), model.W_E[wanted])
    first_end = int(wanted[0, 5])
    stopped = model.generate(prompt[:1], 6, eos_token_id=first_end, do_sample=False, verbose=False)
    assert stopped.tolist() == [wanted[0, : wanted[0, 4:].tolist().index(first_end) + 5].tolist()]


def test_generate_fills_rows_that_ended_earlier(model: HookedTransformer) -> None:
    wanted = written_by_hand(model, TOKENS[:, :4], 8)
    end = next(token for token in wanted[0, 4:9].tolist() if token not in wanted[1, 4:])
    at = wanted[0, 4:].tolist().index(end) + 4
    wanted[0, at:] = end
    assert torch.equal(model.generate(TOKENS[:, :4], 8, eos_token_id=end, do_sample=False, verbose=False), wanted)


def test_generate_draws_from_the_distribution(model: HookedTransformer) -> None:
    prompt = TOKENS[:1, :3].expand(3000, -1)
    probabilities = by_hand(model, prompt[:1]).logits[0, -1].softmax(-1)
    best = probabilities.argsort(descending=True)
    warm = (probabilities.log() / 2).softmax(-1)
    nucleus = best[: int((probabilities[best].cumsum(0) < 0.7).sum()) + 1]
    cases: list[tuple[dict[str, float], Tensor]] = [
        ({}, probabilities),
        ({"temperature": 2.0}, warm),
        ({"top_k": 3}, torch.zeros_like(warm).scatter(0, best[:3], probabilities[best[:3]])),
        ({"top_p": 0.7}, torch.zeros_like(warm).scatter(0, nucleus, probabilities[nucleus])),
    ]
    for options, weights in cases:
        drawn = model.generate(prompt, 1, stop_at_eos=False, verbose=False, **options)[:, -1]
        shares = torch.bincount(drawn, minlength=23) / 3000
        # Four standard deviations of a share are 0.037 at most.
        assert float((shares - weights / weights.sum()).abs().max()) < 0.037
        assert set(drawn.tolist()) <= set(weights.nonzero().flatten().tolist())


def test_generate_reads_and_writes_text() -> None:
    model = small_model(dtype=torch.float64)
    tokenizer = model.tokenizer
    texts = ["When Mary and John", "the old"]
    rows = [[tokenizer.bos_token_id, *tokenizer.encode(text)] for text in texts]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    alone = [written_by_hand(model, torch.tensor([row]), 5)[0].tolist() for row in rows]
    wanted = [tokenizer.decode(row, skip_special_tokens=True) for row in alone]
    assert [model.generate(text, **options) for text in texts] == wanted
    assert model.generate(texts, padding_side="left", **options) == wanted
    assert model.generate(torch.tensor(rows[:1]), return_type="str", **options) == wanted[0]
    bare = written_by_hand(model, torch.tensor([rows[0][1:]]), 5)
    assert torch.equal(model.generate(texts[0], prepend_bos=False, return_type="tokens", **options), bare)
    padded = model.to_tokens(texts, padding_side="left")
    gap = len(rows[0]) - len(rows[1])
    mask = torch.ones_like(padded)
    mask[1, :gap] = 0
    found = model.generate(padded, attention_mask=mask, **options)
    assert [found[0].tolist(), found[1, gap:].tolist()] == alone


@RUNNING.shows("generate_stream")
def test_generate_stream(model: HookedTransformer) -> None:
    wanted = written_by_hand(model, TOKENS[:1, :3], 7)
    options: dict[str, Any] = {"do_sample": False, "stop_at_eos": False, "verbose": False}
    pieces = list(model.generate_stream(TOKENS[:1, :3], 7, max_tokens_per_yield=3, **options))
    assert torch.equal(torch.cat(pieces, dim=1), wanted)
    assert [piece.shape[1] for piece in pieces] == [6, 3, 1]
    reader = small_model(dtype=torch.float64)
    text = "the old dog"
    streamed = list(reader.generate_stream(text, 4, max_tokens_per_yield=2, **options))
    ids = written_by_hand(reader, reader.to_tokens(text), 4)[0]
    assert len(streamed) == 2 and "".join(streamed) == reader.tokenizer.decode(ids, skip_special_tokens=True)


# Keys and values of what was read


@PAST.shows("init_cache", "entries", "__getitem__", "previous_attention_mask", "frozen", "freeze", "unfreeze")
def test_past(name: str, model: HookedTransformer) -> None:
    """Runs in two pieces are the run in one; what the cache holds is the reference's keys, values and mask."""
    run = by_hand(model, mask=MASK)
    past = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", 2)
    assert [entry.past_keys.shape for entry in past.entries] == [(2, 0, 3, 4)] * 2
    model(TOKENS[:, :4], past_kv_cache=past, attention_mask=MASK[:, :4])
    if name in ("frozen", "freeze"):
        past.freeze()
    if name == "unfreeze":
        past.freeze()
        past.unfreeze()
    assert past.frozen is (name in ("frozen", "freeze"))
    kept = 4 if past.frozen else 7
    same(model(TOKENS[:, 4:], past_kv_cache=past)[:, :], run.logits[:, 4:])
    assert torch.equal(past.previous_attention_mask.long(), MASK[:, :kept])
    for layer in range(2):
        entry = past[layer]
        assert entry is past.entries[layer]
        # The first row has no padding in it.
        same(entry.past_keys[0], run.acts[f"blocks.{layer}.attn.hook_k"][0, :kept])
        same(entry.past_values[1, 3:], run.acts[f"blocks.{layer}.attn.hook_v"][1, 3:kept])
    again = model(TOKENS[:, 4:6], past_kv_cache=past)
    if past.frozen:
        same(again, run.logits[:, 4:6])


@PAST.shows("__init__", "append_attention_mask")
def test_past_from_parts(name: str, model: HookedTransformer) -> None:
    run = by_hand(model)
    acts = [(run.acts[f"blocks.{layer}.attn.hook_k"], run.acts[f"blocks.{layer}.attn.hook_v"]) for layer in range(2)]
    entries = [HookedTransformerKeyValueCacheEntry(k[:, :3], v[:, :3]) for k, v in acts]
    past = HookedTransformerKeyValueCache(entries, torch.ones(2, 3, dtype=torch.long))
    if name == "__init__":
        same(model(TOKENS[:, 3:], past_kv_cache=past), run.logits[:, 3:])
        assert HookedTransformerKeyValueCache(entries, torch.ones(2, 7, dtype=torch.bool), frozen=True).frozen
    else:
        longer = past.append_attention_mask(torch.tensor([[1, 0], [0, 1]]))
        assert longer.long().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]
        assert torch.equal(past.previous_attention_mask, longer)
        past.freeze()
        assert past.append_attention_mask(torch.ones(2, 1)).shape == (2, 6)
        assert past.previous_attention_mask.shape == (2, 5)


@PAST_ENTRY.shows("__init__", "past_keys", "past_values", "frozen", "append", "init_cache_entry")
def test_past_entry(name: str) -> None:
    keys, values = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64)
    entry = HookedTransformerKeyValueCacheEntry(keys[:, :2], values[:, :2], name == "frozen")
    if name == "init_cache_entry":
        entry = HookedTransformerKeyValueCacheEntry.init_cache_entry(tiny_config(), "cpu", 2)
        assert entry.past_keys.shape == entry.past_values.shape == (2, 0, 3, 4)
        assert entry.past_keys.dtype == torch.float64
        entry.append(keys[:, :2], values[:, :2])
    assert entry.frozen is (name == "frozen")
    same(entry.past_keys, keys[:, :2])
    same(entry.past_values, values[:, :2])
    for end in (4, 5):
        start = 2 if entry.frozen else entry.past_keys.shape[1]
        all_keys, all_values = entry.append(keys[:, start:end], values[:, start:end])
        same(all_keys, keys[:, :end])
        same(all_values, values[:, :end])
    same(entry.past_keys, keys[:, : 2 if entry.frozen else 5])
    same(entry.past_values, values[:, : 2 if entry.frozen else 5])


def test_every_row_has_a_check() -> None:
    assert RUNNING.unchecked() == []
    assert PAST.unchecked() == []
    assert PAST_ENTRY.unchecked() == []
