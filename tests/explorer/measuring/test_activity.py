"""Attention and output norms of every head, against the same in float64 from whole patterns."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SetBudget
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import head_scores
from headscope.analysis.core.stats import estimates
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.explorer.measuring import activity as activity_module
from headscope.explorer.measuring import sequences as sequences_module
from headscope.explorer.measuring.activity import HeadActivity, measure_activity, norm_edges
from headscope.explorer.measuring.pattern_sums import JOINED, N_SIGNS, distance_edges
from headscope.explorer.measuring.rows import pick_rows
from headscope.explorer.measuring.sequences import KEYS, Shown, chosen_sequences, measure_sequences
from headscope.scale import InProcess

QUIET: dict[str, Any] = {"progress": False}
N_CTX = 12

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped, rotary, norms on both sides": {
        "n_heads": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4,
        "use_normalization_before_and_after": True, "normalization_type": "RMS",
    },
    "sinks": {"use_attn_sinks": True},
    "both ways": {"attention_dir": "bidirectional"},
}  # fmt: skip


def make(name: str) -> HookedTransformer:
    return tiny_model(n_ctx=N_CTX, spread=0.9, **MODELS[name])


def make_data(d_vocab: int = 7) -> tuple[Tensor, Tensor]:
    """Nine rows of few different tokens, padded on either side or not at all, one of them all padding."""
    tokens = tiny_tokens(9, 10, d_vocab=d_vocab)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 7:] = False
    mask[2, :3] = False
    mask[3] = False
    return tokens, mask


@torch.no_grad()
def naive(model: HookedTransformer, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Numbers of every query (or row) and head, `[layer, head, row, pos]`, NaN where one does not count."""
    n_layers = model.cfg.n_layers
    _, cache = model.run_with_cache(tokens, attention_mask=mask, return_type=None)
    patterns = torch.stack([cache["pattern", layer] for layer in range(n_layers)]).double().movedim(2, 1)
    written = []
    for layer in range(n_layers):
        out = torch.einsum("bphe,hed->hbpd", cache["z", layer], model.blocks[layer].attn.W_O)
        if model.cfg.has_post_norms:
            norm = model.blocks[layer].ln1_post
            whole = cache["z", layer].flatten(-2) @ model.blocks[layer].attn.W_O.flatten(0, 1)
            whole = whole + model.blocks[layer].attn.b_O
            scale = (whole.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
            out = out / scale * norm.w
        written.append(out.norm(dim=-1))
    n_rows, n_pos = tokens.shape
    found = {name: torch.full(patterns.shape[:-1], math.nan, dtype=torch.float64) for name in SERIES}
    others = torch.zeros_like(patterns)
    for row in range(n_rows):
        real = mask[row].nonzero()[:, 0].tolist()
        for q in real:
            given = patterns[:, :, row, q]
            share = given / given.sum(-1, keepdim=True)
            found["self_attention_score"][:, :, row, q] = given[..., q]
            found["bos_attention"][:, :, row, q] = given[..., real[0]]
            if q - 1 in real:
                found["prev_token_score"][:, :, row, q] = given[..., q - 1]
            in_sight = [k for k in real if k < q or (k > q and model.cfg.attention_dir != "causal")]
            copies = [k for k in in_sight if tokens[row, k] == tokens[row, q]]
            after = [k + 1 for k in copies if k + 1 in in_sight]
            if copies:
                found["duplicate_token_score"][:, :, row, q] = given[..., copies].sum(-1)
            if after:
                found["induction_score"][:, :, row, q] = given[..., after].sum(-1)
            found["pattern_entropy"][:, :, row, q] = torch.special.entr(share).sum(-1)
            distance = (torch.arange(n_pos) - q).abs().double()
            found["qk_distance"][:, :, row, q] = (share * distance).sum(-1)
            found["square"][:, :, row, q] = (share * distance.square()).sum(-1)
            found["output_norm"][:, :, row, q] = torch.stack(written)[:, :, row, q]
            kept = [k for k in real if k not in (q, real[0])]
            others[:, :, row, q, kept] = given[..., kept]
    largest = others.amax((-2, -1)).masked_fill(~mask.any(-1), math.nan)
    return {**found, "mean_max_activation": largest[..., None], "patterns": patterns, "others": others}


SERIES = (
    "self_attention_score", "prev_token_score", "bos_attention", "induction_score", "duplicate_token_score",
    "pattern_entropy", "qk_distance", "square", "output_norm",
)  # fmt: skip


def listed(tokens: Tensor, shares: Tensor) -> dict[int, float]:
    """The tokens of a list that are there, with their shares."""
    return {token: share for token, share in zip(tokens.tolist(), shares.tolist(), strict=True) if token >= 0}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[HookedTransformer, Tensor, Tensor, HeadActivity, dict[str, Tensor]]:
    model = make(request.param)
    tokens, mask = make_data()
    found = measure_activity(model, tokens, attention_mask=mask, n_top=3, **QUIET)
    return model, tokens, mask, found, naive(model, tokens, mask)


Case = tuple[HookedTransformer, Tensor, Tensor, HeadActivity, dict[str, Tensor]]


def test_every_measure_is_the_mean_over_whole_patterns_with_its_error(case: Case) -> None:
    *_, found, wanted = case
    for at, name in enumerate(found.measures):
        if name == "qk_distance_variance":
            mean, square = wanted["qk_distance"], wanted["square"]
            of_all = estimates(mean).values
            expected = estimates(square).values - of_all.square()
            # The error of a mean of squares less twice the mean times the distance, which the variance varies by.
            errors = estimates(square - 2 * of_all[..., None, None] * mean).errors
        else:
            each = estimates(wanted[name])
            expected, errors = each.values, each.errors
            assert found.counts[at] == (~wanted[name][0, 0].isnan()).sum()
        torch.testing.assert_close(found.scores[at].double(), expected, rtol=2e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(found.errors[at].double(), errors, rtol=1e-3, atol=1e-6, msg=name)


def test_histograms_count_every_position_and_row(case: Case) -> None:
    model, tokens, mask, found, wanted = case
    n_pos = tokens.shape[1]
    edges = distance_edges(model.cfg.n_ctx)
    assert edges == (0, 1, 2, 4, 8, 16)
    distance = (torch.arange(n_pos)[:, None] - torch.arange(n_pos)).abs()
    asked = wanted["patterns"] * mask[:, :, None]
    bins = [asked[..., (distance >= low) & (distance < high)].sum((-2, -1))
            for low, high in zip(edges, edges[1:], strict=False)]  # fmt: skip
    shares = torch.stack(bins, -1) / asked.sum((-3, -2, -1))[..., None]
    torch.testing.assert_close(found.distances.double(), shares, rtol=1e-5, atol=1e-7)
    norms, outermost = wanted["output_norm"], torch.tensor(norm_edges(), dtype=torch.float64)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            of_head = norms[layer, head][mask].clamp(min=norm_edges()[0])
            counts = torch.histogram(of_head, outermost).hist.long()
            assert (found.norm_counts[layer, head] - counts).abs().sum() <= 2  # one may lie on an edge
            largest = wanted["mean_max_activation"][layer, head, mask.any(-1), 0]
            assert found.largest_counts[layer, head].sum() == len(largest) == 8
            counts = torch.histc(largest.float(), 50, 0, 1).long()
            assert (found.largest_counts[layer, head] - counts).abs().sum() <= 2


def test_sequences_are_ranked_by_the_largest_norm(case: Case) -> None:
    model, _, mask, found, wanted = case
    activation = wanted["output_norm"].nan_to_num(-1.0).amax(-1)  # [layer, head, row]
    best = activation.topk(3, -1)
    torch.testing.assert_close(found.top_norms.double(), best.values, rtol=1e-5, atol=1e-6)
    # Rows that begin alike may have the same activation.
    named = activation.gather(-1, found.top_sequences)
    torch.testing.assert_close(named, best.values, rtol=1e-6, atol=1e-6)
    sampled = found.sampled_sequences.tolist()
    assert sorted(each for each in sampled if each >= 0) == list(range(9))
    for place, row in enumerate(sampled[:9]):
        if row == 3:
            assert found.sampled_norms[place].isnan().all()
        else:
            expected = activation[:, :, row]
            torch.testing.assert_close(found.sampled_norms[place].double(), expected, rtol=1e-5, atol=1e-6)


def test_tokens_and_pairs_have_their_shares_of_attention(case: Case) -> None:
    model, tokens, mask, found, wanted = case
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            keys, queries, pairs = Counter[int](), Counter[int](), Counter[tuple[int, int]]()
            pattern, others = wanted["patterns"][layer, head], wanted["others"][layer, head]
            for row, query in mask.nonzero().tolist():
                queries[int(tokens[row, query])] += float(others[row, query].sum())
                for key in mask[row].nonzero()[:, 0].tolist():
                    keys[int(tokens[row, key])] += float(pattern[row, query, key])
                    if others[row, query, key] >= JOINED:
                        pairs[int(tokens[row, query]), int(tokens[row, key])] += float(others[row, query, key])
            attention, to_others = float(pattern[mask].sum()), float(others[mask].sum())
            at = layer, head
            for tokens_of, shares_of, weights, whole in (
                (found.key_tokens, found.key_shares, keys, attention),
                (found.query_tokens, found.query_shares, queries, to_others),
            ):
                expected = {token: weight / whole for token, weight in weights.items() if weight}
                assert listed(tokens_of[at], shares_of[at]) == pytest.approx(expected, rel=1e-5)
            columns = (found.pair_queries[at].tolist(), found.pair_keys[at].tolist(), found.pair_shares[at].tolist())
            joined = {(query, key): share for query, key, share in zip(*columns, strict=True) if query >= 0}
            assert joined == pytest.approx({each: weight / attention for each, weight in pairs.items()}, rel=1e-5)
            assert found.key_shares[at].tolist() == sorted(found.key_shares[at].tolist(), reverse=True)
    assert not found.lost.any()


def test_similarity_is_near_the_cosine_of_patterns() -> None:
    """Random projections: over 60 rows, and with no more than a few hundredths of noise."""
    model, tokens = make("plain"), tiny_tokens(60, 10)
    found = measure_activity(model, tokens, **QUIET)
    others = naive(model, tokens, torch.ones_like(tokens, dtype=torch.bool))["others"].flatten(0, 1).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(others[:, None], others, dim=-1)
    assert (found.similarity.flatten(0, 1).double() - cosine).abs().max() < 0.1
    assert found.similarity.flatten(0, 1).diagonal().tolist() == pytest.approx([1.0] * 6)
    assert N_SIGNS == 16 and found.head_labels[4] == "1.1"


def test_shares_of_kinds_are_those_of_head_scores_and_bos_is_left_out() -> None:
    """With a tokenizer that has BOS: neither a query nor a key of a kind, unless asked for."""
    model = HookedTransformer.from_pretrained("headscope-demo")
    tokens = model.to_tokens(["Mary and John went to the park. John gave a ball to Mary."] * 2, prepend_bos=True)
    found, scores = measure_activity(model, tokens, **QUIET), head_scores(model, tokens, **QUIET)
    for name, measure in (
        ("previous_token", "prev_token_score"),
        ("induction", "induction_score"),
        ("duplicate_token", "duplicate_token_score"),
    ):
        at = found.measures.index(measure)
        torch.testing.assert_close(found.scores[at], getattr(scores, name), rtol=1e-4, atol=1e-6, equal_nan=True)
    bos = int(tokens[0, 0])
    assert bos not in found.key_tokens and bos not in found.query_tokens
    with_bos = measure_activity(model, tokens, include_bos=True, **QUIET)
    assert bos in with_bos.key_tokens and with_bos.info.n_positions == found.info.n_positions + 2


def test_gains_turn_what_heads_write_into_logits() -> None:
    model, (tokens, mask) = make("grouped, rotary, norms on both sides"), make_data()
    found = measure_activity(model, tokens, attention_mask=mask, **QUIET)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=mask, return_type=None)
        final = cache["resid_post", 1][mask]
        gain = (final.square().mean(-1) + model.cfg.eps).rsqrt()
        for layer in range(2):
            behind = cache[f"blocks.{layer}.ln1_post.hook_scale"][mask][:, 0]
            assert float(found.gains[layer]) == pytest.approx(float((gain / behind).mean()), rel=1e-5)


def test_fewer_items_than_there_are_lose_no_more_than_is_said(
    monkeypatch: pytest.MonkeyPatch, set_budget: SetBudget
) -> None:
    model, tokens = tiny_model(n_ctx=N_CTX), tiny_tokens(40, 10)
    exact = measure_activity(model, tokens, **QUIET)
    monkeypatch.setattr(activity_module, "N_ITEMS", 6)
    set_budget(batch_tokens=20)
    found = measure_activity(model, tokens, **QUIET)
    assert bool((found.lost > 0).any()) and bool((found.lost <= 1 / 7 + 1e-6).all())
    for layer in range(2):
        for head in range(3):
            most = float(found.lost[0, layer, head])
            kept = listed(found.key_tokens[layer, head], found.key_shares[layer, head])
            for token, share in listed(exact.key_tokens[layer, head], exact.key_shares[layer, head]).items():
                assert kept.get(token, 0.0) - 1e-6 <= share <= kept.get(token, 0.0) + most + 1e-6


def test_shards_give_the_same_bits_in_any_order(tmp_path: Path) -> None:
    model, tokens = tiny_model(n_ctx=N_CTX), tiny_tokens(9, 10)
    found = [
        measure_activity(model, tokens, out=tmp_path / str(number), engine=InProcess(shard_tokens=20), **QUIET)
        for number in range(2)
    ]
    whole = measure_activity(model, tokens, **QUIET)
    for name in found[0].measured():
        assert torch.equal(found[0].array(name).values.nan_to_num(), found[1].array(name).values.nan_to_num()), name
        torch.testing.assert_close(
            found[0].array(name).values, whole.array(name).values, rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_sequences_keep_the_largest_of_each_query_in_thousandths(set_budget: SetBudget) -> None:
    set_budget(batch_tokens=20)
    model, (tokens, mask) = make("grouped, rotary, norms on both sides"), make_data()
    rows = pick_rows(model, tokens, [0, 2, 5], mask)
    assert rows.numbers.tolist() == [0, 2, 5] and rows.mask is not None
    shown = [Shown(1, 3, 10, True, 5), Shown(0, 1, 4, False, 2), Shown(1, 0, 10, True, 0), Shown(1, 3, 2, False, 0)]
    found = measure_sequences(model, rows, shown, **QUIET)
    wanted = naive(model, tokens, mask)
    assert sorted(found.entries.tolist()) == sorted(
        [each.layer, each.head, each.interval, int(each.is_top), each.sequence] for each in shown
    )
    for entry, (layer, head, *_, row) in enumerate(found.entries.tolist()):
        pattern = wanted["patterns"][layer, head, row]
        for query in range(10):
            keys, values = found.keys[:, entry, query], found.thousandths[:, entry, query]
            kept = keys >= 0
            best = pattern[query].topk(KEYS)
            torch.testing.assert_close(
                values[kept] / 1000, pattern[query, keys[kept].long()].float(), rtol=0, atol=0.00051
            )
            torch.testing.assert_close(values / 1000, best.values.where(kept, 0.0).float(), rtol=0, atol=0.00051)
            assert bool((best.values[~kept] < 0.0051).all())
        real = mask[row]
        norms = wanted["output_norm"][layer, head, row]
        torch.testing.assert_close(found.norms[entry][real].double(), norms[real], rtol=1e-5, atol=1e-6)
        assert float(found.activations[entry]) == pytest.approx(float(norms[real].max()), rel=1e-5)
        assert float(found.largest[entry]) == pytest.approx(
            float(wanted["mean_max_activation"][layer, head, row, 0]), abs=1e-6
        )
    assert [found.entries[at, 2:].tolist() for at in found.of_head(1, 3)] == [[10, 1, 5], [2, 0, 0]]


def test_typical_sequences_are_in_the_middle_of_their_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences_module, "_READ", 60)
    model, tokens = tiny_model(n_ctx=N_CTX), tiny_tokens(60, 10)
    found = measure_activity(model, tokens, n_top=4, **QUIET)
    shown = chosen_sequences(found, 4, 2)
    numbers = [row for row in found.sampled_sequences.tolist() if row >= 0]
    activation = {row: float(found.sampled_norms[place, 1, 2]) for place, row in enumerate(numbers)}
    ranked = sorted(activation, key=lambda row: activation[row])
    of_head = [each for each in shown if (each.layer, each.head) == (1, 2)]
    assert [each.sequence for each in of_head if each.is_top] == found.top_sequences[1, 2].tolist()
    for interval in range(1, 10):
        within = ranked[6 * (interval - 1) : 6 * interval]
        # Rows that begin alike may have the same activation.
        middle = sorted(activation[each.sequence] for each in of_head if each.interval == interval)
        assert middle == [activation[within[2]], activation[within[3]]]
    assert sum(not each.is_top and each.interval == 10 for each in of_head) == 2
    assert len(of_head) == 4 + 20 and len({each.sequence for each in of_head}) == 24
    # Those that are read anyway come first, so that fewer sequences have to be run again.
    monkeypatch.setattr(sequences_module, "_READ", 20)
    fewer = {each.sequence for each in chosen_sequences(found, 4, 1) if not each.is_top}
    assert len(fewer & set(numbers[:20])) > 0.5 * len(fewer)
    # So do those that are another head's top ones.
    monkeypatch.setattr(sequences_module, "_READ", 0)
    shown = chosen_sequences(found, 4, 1)
    of_others = {each.sequence for each in shown if each.is_top} - set(found.top_sequences[1, 2].tolist())
    chosen = {each.interval: each.sequence for each in shown if (each.layer, each.head, each.is_top) == (1, 2, False)}
    with_such = [at for at in range(1, 10) if of_others & set(ranked[6 * (at - 1) : 6 * at])]
    assert len(with_such) > 3 and {chosen[at] for at in with_such} <= of_others


def test_what_cannot_be_measured_is_refused() -> None:
    tokens = tiny_tokens(2, 7)
    with pytest.raises(InvalidInputError, match="n_top must be at least 1; got 0"):
        measure_activity(tiny_model(), tokens, n_top=0, **QUIET)
    with pytest.raises(InvalidInputError, match="no position counts"):
        measure_activity(tiny_model(), tokens, attention_mask=torch.zeros_like(tokens), **QUIET)
    broken = tiny_model()
    with torch.no_grad():
        broken.blocks[1].attn.W_Q[0] = math.nan
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        measure_activity(broken, tokens, **QUIET)
