import dataclasses

import pytest
import torch
from small_models import small_model
from suppressing_model import BLIND, COPIER, SUPPRESSOR, repeated_rows, suppressing_model
from tiny import tiny_model, tiny_tokens

from headscope.analysis.suppression.dynamic_ov import DynamicOV, dynamic_ov
from headscope.errors import InvalidInputError, NotFiniteError

PROCESSED = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}


def measure(model, tokens, heads=None, **options):
    return dynamic_ov(model, tokens, heads, progress=False, **options)


@torch.no_grad()
def naive(model, tokens, real, layer, head, *, threshold, k):
    """One pair at a time, all logits: n_pairs, and how many are negative, among the k lowest, the lowest."""
    cfg = model.cfg
    _, cache = model.run_with_cache(tokens, attention_mask=real)
    return naive_counts(cfg, model, cache, tokens, real, layer, head, threshold, k)


def naive_counts(cfg, model, cache, tokens, counted, layer, head, threshold, k):
    counts = [0, 0, 0, 0]
    v = cache["v", layer]
    v = v[:, :, head * v.shape[2] // cfg.n_heads]
    for r in range(len(tokens)):
        for query in range(tokens.shape[1]):
            for source in range(query + 1):
                if not (counted[r, query] and counted[r, source]):
                    continue
                if not cache["pattern", layer][r, head, query, source] > threshold:
                    continue
                written = v[r, source] @ model.blocks[layer].attn.W_O[head]
                if cfg.normalization_type in ("LN", "LNPre"):
                    written = written - written.mean()
                if cfg.normalization_type in ("LN", "RMS"):
                    written = written * model.ln_final.w
                logits = written @ model.W_U
                own = logits[tokens[r, source]]
                rank = int((logits < own).sum())
                for number, holds in enumerate((True, own < logits.mean(), rank < k, rank == 0)):
                    counts[number] += int(holds)
    return counts


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("fields", [
    {}, {"normalization_type": "RMS"}, {"normalization_type": None}, {"n_heads": 4, "n_key_value_heads": 2},
])  # fmt: skip
def test_equals_the_definition(side, fields):
    model, tokens = tiny_model(spread=0.6, **fields), tiny_tokens(3, 9)
    real = torch.ones_like(tokens, dtype=torch.bool)
    if side is not None:
        real[1, 6:], real[2, 4:] = False, False
    real = real.flip(1) if side == "left" else real
    found = measure(model, tokens, attention_mask=real, threshold=0.2, k=3)
    seen = torch.zeros(4, dtype=torch.long)
    for row, (layer, head) in enumerate(found.heads.tolist()):
        counts = naive(model, tokens, real, layer, head, threshold=0.2, k=3)
        shares = [found.negative[row], found.bottom[row], found.lowest[row]]
        assert int(found.n_pairs[row]) == counts[0]
        assert [round(float(share) * counts[0]) for share in shares] == counts[1:]
        seen += torch.tensor(counts)
    # Some of each, and not all.
    assert 0 < seen[3] < seen[2] < seen[1] < seen[0]


def test_many_sources_go_through_the_heads_width():
    """More sources than a head is wide: the product is taken in the other order."""
    model, tokens = tiny_model(spread=0.6, d_head=2, n_ctx=30), tiny_tokens(6, 30)
    found = measure(model, tokens, [(1, 0)], threshold=0.1, k=3)
    counts = naive(model, tokens, torch.ones_like(tokens, dtype=torch.bool), 1, 0, threshold=0.1, k=3)
    assert int(found.n_pairs) == counts[0] > 50
    assert round(float(found.bottom) * counts[0]) == counts[2]


def test_processing_without_value_biases_changes_nothing():
    """With them it may: the value bias is then the attention's, not the head's."""
    model, tokens = tiny_model(spread=0.6), tiny_tokens(3, 9)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.b_V.zero_()
            block.ln1.b.zero_()
    raw = measure(model, tokens, k=3)
    model.process_weights_(**PROCESSED)
    processed = measure(model, tokens, k=3)
    for name in ("n_pairs", "negative", "bottom", "lowest"):
        torch.testing.assert_close(getattr(processed, name), getattr(raw, name))


def test_heads_made_by_hand():
    found = measure(suppressing_model(), repeated_rows(), [SUPPRESSOR, COPIER, BLIND], k=2, threshold=0.5)
    # Where nothing is predicted the first two rest on token 0, and write nothing.
    assert found.lowest[0] == found.negative[0] > 0.4
    assert found.negative[1] == found.bottom[1] == 0
    assert found.lowest[2] > 0.85


def test_hooks_stay_in_force():
    model, tokens = tiny_model(spread=0.6), tiny_tokens(3, 9)
    real = torch.ones_like(tokens, dtype=torch.bool)
    before = measure(model, tokens, [(1, 0)], k=3)
    with model.hooks([("blocks.1.hook_resid_pre", lambda x, hook: x.flip(-1))]):
        after = measure(model, tokens, [(1, 0)], k=3)
        counts = naive(model, tokens, real, 1, 0, threshold=0.1, k=3)
    assert int(after.n_pairs) == counts[0] and round(float(after.negative) * counts[0]) == counts[1]
    assert not torch.equal(after.n_pairs, before.n_pairs)
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_bos_is_left_out_unless_asked_for():
    model = small_model(n_ctx=64)
    tokens = model.to_tokens("John gave a drink to Mary.")
    found, more = (measure(model, tokens, [(1, 0)], include_bos=bos, threshold=0.05) for bos in (False, True))
    _, cache = model.run_with_cache(tokens)
    counted = torch.ones_like(tokens, dtype=torch.bool)
    assert more.n_pairs.item() == naive_counts(model.cfg, model, cache, tokens, counted, 1, 0, 0.05, 10)[0]
    counted[:, 0] = False
    assert found.n_pairs.item() == naive_counts(model.cfg, model, cache, tokens, counted, 1, 0, 0.05, 10)[0]
    assert more.n_pairs.item() > found.n_pairs.item() and more.info.n_positions == found.info.n_positions + 1


def test_blocks_do_not_matter(set_budget):
    model, tokens = tiny_model(), tiny_tokens(5, 9)
    whole = measure(model, tokens)
    set_budget(batch_tokens=9)
    parts = measure(model, tokens)
    assert torch.equal(parts.n_pairs, whole.n_pairs) and torch.equal(parts.bottom, whole.bottom)
    assert parts.info == whole.info and whole.info.n_sequences == 5 and whole.info.n_positions == 45


def test_without_pairs_there_are_no_shares():
    found = measure(tiny_model(), tiny_tokens(1, 9), [(0, 0), (1, 1)], threshold=0.999999)
    # The first position attends to itself alone.
    assert found.n_pairs.tolist() == [1, 1]
    model = small_model(n_ctx=64)
    found = measure(model, model.to_tokens("a dog ran"), [(1, 0)], threshold=0.99)
    assert found.n_pairs.item() == 0 and found.negative.isnan().all() and len(found.top(3)) == 0


def test_result_is_frozen_tabulated_printed_and_saved(tmp_path):
    found = measure(tiny_model(model_name="tiny"), tiny_tokens(3, 9), describe="noise", k=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.k = 1
    frame = found.to_frame()
    assert list(frame.label) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert frame.lowest[4] == float(found.lowest[4]) and frame.n_pairs[2] == int(found.n_pairs[2])
    best = found.top(1)[0]
    assert best.value == float(found.bottom.max()) and found.top(1, largest=False)[0].value == float(found.bottom.min())
    text = str(found)
    assert "tiny" in text and "noise" in text and "k=4" in text
    assert f"bottom: highest {best.label} {best.value:.1%}" in text
    read = DynamicOV.load(found.save(tmp_path / "found.safetensors"))
    assert torch.equal(read.bottom, found.bottom) and read.info == found.info and read.threshold == 0.1


@pytest.mark.parametrize("options, message", [
    ({"heads": [(0, 3)]}, "0.3 does not exist"),
    ({"threshold": 1.0}, "at least 0 and below 1; got 1"),
    ({"threshold": -0.1}, "got -0.1"),
    ({"k": 0}, "k must be between 1 and d_vocab = 23"),
])  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        measure(tiny_model(), tiny_tokens(), **options)


def test_data_where_nothing_counts_is_refused():
    with pytest.raises(InvalidInputError, match="no position counts"):
        measure(tiny_model(), tiny_tokens(), attention_mask=torch.zeros(2, 7))


def test_weights_that_are_not_finite_are_said():
    model = tiny_model()
    with torch.no_grad():
        model.W_U[0, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        measure(model, tiny_tokens())
