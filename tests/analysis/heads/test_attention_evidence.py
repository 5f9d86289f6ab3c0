"""Kinds told by attention: what a score must stand beside, on random tokens, on a text, and where little fits."""

import itertools

import pytest
import torch
from induction_model import D_VOCAB, INDUCTION, PREVIOUS, induction_model
from tiny import randomize, tiny_model

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis.core.batches import Batch
from headscope.analysis.core.stats import estimates_of_moments, threshold
from headscope.analysis.heads.attention_evidence import attention_moments
from headscope.analysis.heads.probes import random_repeats, repeats_of, rows_of
from headscope.analysis.heads.scores import SCORES, head_scores
from headscope.analysis.heads.types import detect_heads
from headscope.data.random_tokens import repeated_random_tokens
from headscope.errors import InvalidInputError


def detect(model, data=None, **options):
    return detect_heads(model, data, progress=False, **options)


def matching_model(attention_dir: str) -> HookedTransformer:
    """One layer whose head 1 attends alike to every copy of its token, itself among them, in a context of nine."""
    cfg = HookedTransformerConfig(
        n_layers=1, n_heads=2, d_model=6, d_head=6, n_ctx=9, d_vocab=6, d_vocab_out=2, attn_only=True,
        normalization_type=None, use_attn_scale=False, device="cpu", attention_dir=attention_dir, init_weights=False,
        positional_embedding_type="none",
    )  # fmt: skip
    model = HookedTransformer(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E.copy_(torch.eye(6))
        model.blocks[0].attn.W_Q[1] = 30 * torch.eye(6)
        model.blocks[0].attn.W_K[1] = torch.eye(6)
    return model


@pytest.mark.parametrize("attention_dir", ["causal", "bidirectional"])
def test_a_head_that_shares_its_attention_with_itself_is_a_duplicate_token_head(attention_dir):
    """It pays half to an earlier copy, and chance a quarter: no fixed excess would do."""
    found = detect(matching_model(attention_dir))
    at = found.kinds.index("duplicate_token")
    assert found.kinds_of(0, 1) == ("duplicate_token",) and found.kinds_of(0, 0) == ()
    excess = float(found.scores[at, 0, 1] - found.controls[at, 0, 1])
    assert 0.5 < float(found.scores[at, 0, 1]) < 0.65 and excess < 0.6


def test_models_that_attend_both_ways_are_told_what_was_looked_for():
    model = matching_model("bidirectional")
    found = detect(model)
    assert found.kinds == ("previous_token", "duplicate_token")
    assert any("attends both ways" in note for note in found.notes)
    scores = head_scores(model, progress=False)
    assert "copies on either side" in str(scores.info)
    # Every token is there twice at least, so that each query pays a half or more to other copies.
    assert float(scores.duplicate_token[0, 1]) > 0.5
    causal = head_scores(matching_model("causal"), progress=False)
    assert "either side" not in str(causal.info)


def test_idle_heads_in_a_short_context_get_no_label():
    """A head that goes by position does in every row the same: rows alone would make eight positions look sure."""
    model = tiny_model(n_layers=24, n_heads=16, d_model=24, d_head=6, n_ctx=9, d_vocab=6, d_vocab_out=2)
    randomize(model, spread=1.5, seed=0)
    with torch.no_grad():
        model.embed.W_E.mul_(0.05)
    found = detect(model)
    high = (found.scores - found.controls) / (1 - found.controls)
    assert int(((found.scores > 0.3) & (high > 0.3)).sum()) >= 3
    assert not bool(found.labelled.any())
    assert sum(len(found.undecided(kind)) for kind in SCORES) >= 3
    assert "undecided" in str(found)


def test_errors_are_over_positions_too():
    """Both parts, from the attention itself: a head by position, in sixty rows."""
    model = tiny_model(n_ctx=12, dtype=torch.float64)
    tokens = repeated_random_tokens(60, 6, d_vocab=23, seed=1)
    found = detect(model, tokens)
    _, cache = model.run_with_cache(tokens)
    previous = torch.stack([cache["pattern", 1][:, 1, q, q - 1] for q in range(1, 12)], 1)
    between = float(previous.mean(0).std() / 11**0.5)
    assert float(found.errors[0, 1, 1]) > 0.8 * between > 5 * float(previous.mean(1).std() / 60**0.5)


def without(tokens: range) -> HookedTransformer:
    """The induction model, whose induction head looks nowhere from some tokens."""
    model = induction_model()
    with torch.no_grad():
        model.blocks[1].attn.W_Q[INDUCTION[1], tokens.start : tokens.stop] = 0
    return model


def test_a_label_must_hold_on_the_text():
    text = torch.randint(12, (24, 48), generator=torch.Generator().manual_seed(0))
    for model, labelled in ((induction_model(), True), (without(range(12)), False)):
        found = detect(model, text=text)
        assert (INDUCTION in [(each.layer, each.head) for each in found.heads("induction")]) == labelled
        assert PREVIOUS in [(each.layer, each.head) for each in found.heads("previous_token")]
        assert (float(found.evidence_of("induction on text")[INDUCTION]) > 0.5) == labelled
        at = found.kinds.index("induction")
        each = [found.evidence_of(f"induction said twice ({length} tokens)")[INDUCTION] for length in (11, 23)]
        assert float(found.scores[at][INDUCTION]) == pytest.approx(min(map(float, each)))
        assert "induction on text" in found.reasons(*INDUCTION, "induction")
    # On random tokens it is an induction head, which is what is said of it there.
    found = detect(without(range(12)))
    assert found.kinds_of(*INDUCTION) == ("induction",)
    assert "text" not in found.reasons(*INDUCTION, "induction")


def near_matching_model(reach: int) -> HookedTransformer:
    """The induction model, whose head 0.0 attends to copies of its token, from so many positions back at most."""
    model = induction_model()
    d_vocab, n_ctx, attn = model.cfg.d_vocab, model.cfg.n_ctx, model.blocks[0].attn
    far = torch.ones(n_ctx, n_ctx).tril(-reach - 1)
    with torch.no_grad():
        # Tokens in one half of what the head reads by, and in the other by how much each key is too far for a query.
        attn.W_Q[0], attn.W_K[0] = 0, 0
        attn.W_Q[0, :d_vocab, :d_vocab] = 30.0 * torch.eye(d_vocab)
        attn.W_K[0, :d_vocab, :d_vocab] = torch.eye(d_vocab)
        left = n_ctx - d_vocab
        u, s, v = torch.linalg.svd(far)
        attn.W_Q[0, -n_ctx:, d_vocab:] = -60.0 * u[:, :left] * s[:left]
        attn.W_K[0, -n_ctx:, d_vocab:] = v[:left].T
    return model


def test_a_kind_must_hold_at_each_length():
    """A head that finds its token eleven back and not twenty-three."""
    near, everywhere = (detect(near_matching_model(reach)) for reach in (14, 48))
    at = near.kinds.index("duplicate_token")
    both = [float(near.evidence_of(f"duplicate_token said twice ({length} tokens)")[0, 0]) for length in (11, 23)]
    assert both[0] > 0.4 > 0.25 > both[1] and float(near.scores[at, 0, 0]) == pytest.approx(both[1])
    assert "duplicate_token" not in near.kinds_of(0, 0) and "duplicate_token" in everywhere.kinds_of(0, 0)
    reasons = near.reasons(0, 0, "duplicate_token")
    assert "duplicate_token said twice (11 tokens)" in reasons and "duplicate_token said twice (23 tokens)" in reasons


def test_a_text_where_nothing_repeats_says_nothing_of_matching_tokens():
    text = torch.stack([torch.randperm(D_VOCAB, generator=torch.Generator().manual_seed(row)) for row in range(8)])
    found = detect(induction_model(), text=text, length=10)
    assert found.kinds_of(*INDUCTION) == ("induction",) and found.kinds_of(*PREVIOUS) == ("previous_token",)
    assert "induction on text" not in found.evidence_names and "previous_token on text" in found.evidence_names
    note = "induction: nothing repeats in the text, so it was scored on pieces said twice alone."
    assert note in found.notes and not any(each.startswith("previous_token") for each in found.notes)


def test_rows_say_pieces_of_the_text_twice():
    model = induction_model()
    text = torch.arange(40).repeat(20, 1)
    for rows in (repeats_of(model, text, 30, None, 0), random_repeats(model, 30, None, 0)):
        assert [row.shape[1] for row in rows] == [46, 22] and sum(map(len, rows)) == 30
        for each in rows:
            half = each.shape[1] // 2
            assert torch.equal(each[:, :half], each[:, half:])
    assert all(bool((each[:, 1:5] - each[:, :4] == 1).all()) for each in repeats_of(model, text, 30, None, 0))
    assert [row.shape for row in random_repeats(model, 30, 7, 0)] == [(30, 14)]
    other = torch.stack([row.roll(shift) for shift, row in enumerate(text[:, :20])])
    assert [row.shape[1] for row in repeats_of(model, other, 30, None, 0)] == [40, 20]
    # The same row again and again has one piece of twenty tokens.
    assert [row.shape[1] for row in repeats_of(model, text[:, :20], 30, None, 0)] == [20]
    with pytest.raises(InvalidInputError, match="no row of 21 tokens"):
        repeats_of(model, text[:, :20], 30, 21, 0)


def test_no_piece_of_a_text_counts_twice():
    """Rows are taken to be independent: a short text has fewer, and too short a one none."""
    model = induction_model()
    text = torch.randint(D_VOCAB, (8, 30), generator=torch.Generator().manual_seed(0))
    (rows,) = repeats_of(model, text, 100, 5, 0)
    pieces = {tuple(row[:5].tolist()) for row in rows}
    assert 8 * 30 // 5 >= len(pieces) == len(rows) > 24
    for row in text.tolist():
        here = [at for at in range(26) if tuple(row[at : at + 5]) in pieces]
        assert all(later - one >= 5 for one, later in itertools.pairwise(here))
    found = detect(model, text=text, n_sequences=100, length=5)
    assert f"the text has {len(pieces)} different pieces to say twice, of the 100 asked for." in found.notes
    few = torch.stack([torch.arange(8).roll(shift) for shift in range(7)])
    with pytest.raises(InvalidInputError, match="7 different pieces of 8 tokens to say twice, and an error needs 8"):
        repeats_of(model, few, 32, 8, 0)
    # Saying the same over and over is not more text.
    with pytest.raises(InvalidInputError, match="has 1 different pieces"):
        repeats_of(model, torch.arange(8).repeat(30, 1), 32, 8, 0)


def test_a_string_is_cut_into_rows_after_bos():
    demo = HookedTransformer.from_pretrained("headscope-demo")
    rows = rows_of(demo, "Mary gave a drink to John. " * 40)
    assert rows.ndim == 2 and len(rows) >= 8 and bool((rows[:, 0] == demo.tokenizer.bos_token_id).all())
    found = detect(demo, text="When Mary and John went to the store, John gave a drink to Mary. " * 20, n_sequences=8)
    assert [each.label for each in found.heads("previous_token")] == ["0.3"]
    assert "pieces of a text said twice" in str(found)


def test_attention_to_the_start_of_rows_stands_beside():
    model = tiny_model(n_ctx=12, dtype=torch.float64)
    tokens = repeated_random_tokens(5, 6, d_vocab=23, seed=1)
    found = detect(model, tokens)
    _, cache = model.run_with_cache(tokens)
    wanted = torch.stack([cache["pattern", layer][..., 0].mean((0, 2)) for layer in range(2)])
    torch.testing.assert_close(found.evidence_of("start"), wanted.float(), rtol=0, atol=1e-6)
    assert threshold(1, 4.0) < found.bound


def test_the_control_of_the_token_before_leaves_bos_out():
    """From the second token after BOS the one two back is BOS, where heads rest: that is no control."""
    model = tiny_model(n_ctx=12, dtype=torch.float64)
    tokens = repeated_random_tokens(5, 5, d_vocab=23, bos=0, seed=1)
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, 0] = False
    _, cache = model.run_with_cache(tokens)
    sums = attention_moments(model, 0)(Batch(tokens, None, counted), 0)
    # [number, kind, layer, head]: the third number is attention to the control's keys, of the queries 2 and on.
    _, _, elsewhere = estimates_of_moments(sums["rows 0"]).values[:3]
    pattern = torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)])
    two_back = pattern.diagonal(-2, -2, -1)[..., 1:]  # from BOS on, which is left out
    wanted = two_back.sum(-1).mean(1) / len(range(2, tokens.shape[1]))
    torch.testing.assert_close(elsewhere[0], wanted, rtol=0, atol=1e-5, check_dtype=False)
