import dataclasses

import pytest
import torch
from small_models import small_model
from suppressing_model import BOS, suppressing_model
from tiny import tiny_model, tiny_tokens

from headscope import HookedTransformer
from headscope.analysis.suppression.scores import SuppressionScores, suppression_scores
from headscope.data.ioi import IOIDataset
from headscope.data.random_tokens import repeated_random_tokens
from headscope.errors import InvalidInputError, NotFiniteError

PROCESSED = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}


def measure(model, **options):
    return suppression_scores(model, progress=False, **options)


@torch.no_grad()
def head_logits(model, tokens, real, layer, head):
    """What a head adds to all logits at the final scale, `[row, pos, d_vocab]`, as a difference of two unembeddings."""
    cfg = model.cfg
    _, cache = model.run_with_cache(tokens, attention_mask=real)
    final = cache["resid_post", cfg.n_layers - 1]
    written = cache["z", layer][:, :, head] @ model.blocks[layer].attn.W_O[head]
    kind = cfg.normalization_type

    def unembed(state):
        if kind in ("LN", "LNPre"):
            state = state - state.mean(-1, keepdim=True)
        if kind is not None:
            centered = final - final.mean(-1, keepdim=True) if kind in ("LN", "LNPre") else final
            state = state / (centered.square().mean(-1, keepdim=True) + cfg.eps).sqrt()
        return (state * model.ln_final.w if kind in ("LN", "RMS") else state) @ model.W_U

    return unembed(final) - unembed(final - written)


@pytest.mark.parametrize("fields", [
    {}, {"normalization_type": "RMS"}, {"normalization_type": None}, {"attn_only": True},
    {"n_heads": 4, "n_key_value_heads": 2},
])  # fmt: skip
def test_anti_induction_equals_its_definition(fields):
    model = tiny_model(**fields)
    found = measure(model, n_sequences=4, length=5, seed=3)
    tokens = repeated_random_tokens(4, 5, d_vocab=23, seed=3)
    assert found.ioi is None and found.info.n_positions == 16
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            logits = head_logits(model, tokens, None, layer, head)
            effects = [
                logits[row, pos, tokens[row, pos + 1]] - logits[row, pos].mean()
                for row in range(4)
                for pos in range(5, 9)
            ]
            expected = -sum(effects) / len(effects)
            assert float(found.anti_induction[layer, head]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ioi_equals_its_definition_for_prompts_of_ones_own(side, set_budget):
    set_budget(batch_tokens=14)
    model, prompts = tiny_model(), tiny_tokens(3, 7)
    real = torch.ones_like(prompts, dtype=torch.bool)
    real[1, 4:], real[2, 6:] = False, False
    ends = torch.tensor([6, 3, 5])
    if side == "left":
        real, ends = real.flip(1), torch.tensor([6, 6, 6])
    answers = torch.tensor([[3, 8], [20, 1], [5, 5]])
    found = measure(model, prompts=prompts, answers=answers, attention_mask=real, n_sequences=1)
    for layer in range(2):
        for head in range(3):
            logits = head_logits(model, prompts, real, layer, head)
            effects = [
                logits[row, ends[row], answers[row, 0]] - logits[row, ends[row], answers[row, 1]] for row in range(3)
            ]
            expected = -sum(effects) / 3
            assert float(found.ioi[layer, head]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_drawn_prompts_are_those_of_the_dataset():
    model = small_model(n_ctx=128)
    found = measure(model, n_prompts=6, n_sequences=1, length=10, seed=4)
    data = IOIDataset("mixed", 6, model.tokenizer, prepend_bos=True, symmetric=True, seed=4)
    total = torch.zeros(2, 3, dtype=torch.float64)
    rows = zip(data.toks, data.attention_mask, data.word_idx["end"], data.io_tokenIDs, data.s_tokenIDs, strict=True)
    for tokens, real, end, io, s in rows:
        at = int(end) + 1
        assert tokens[at] == io  # the last word, which is to be predicted
        for layer in range(2):
            for head in range(3):
                logits = head_logits(model, tokens[None], real[None].bool(), layer, head)[0, at - 1]
                total[layer, head] -= logits[io] - logits[s]
    torch.testing.assert_close(found.ioi, (total / 6).float(), rtol=1e-4, atol=1e-6)
    assert "6 IOI prompts" in found.info.data


def test_random_tokens_begin_with_bos_and_leave_special_tokens_out():
    model = small_model(n_ctx=128)
    found = measure(model, n_prompts=2, n_sequences=3, length=6, seed=1)
    allowed = [t for t in range(model.cfg.d_vocab) if t not in model.tokenizer.all_special_ids]
    tokens = repeated_random_tokens(3, 6, allowed=allowed, bos=model.tokenizer.bos_token_id, seed=1)
    logits = head_logits(model, tokens, None, 1, 2)
    effects = [logits[r, p, tokens[r, p + 1]] - logits[r, p].mean() for r in range(3) for p in range(7, 12)]
    assert float(found.anti_induction[1, 2]) == pytest.approx(-float(sum(effects)) / 15, rel=1e-3)


def test_processing_changes_only_what_biases_add():
    model = tiny_model()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.b_V.zero_()
            block.ln1.b.zero_()
    options = {"prompts": tiny_tokens(3, 7), "answers": torch.tensor([[3, 8], [20, 1], [5, 6]]), "length": 5}
    raw = measure(model, **options)
    model.process_weights_(**PROCESSED)
    processed = measure(model, **options)
    torch.testing.assert_close(processed.anti_induction, raw.anti_induction, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(processed.ioi, raw.ioi, atol=1e-5, rtol=1e-4)


def test_a_head_made_to_suppress_copying_scores_on_both():
    """Prompts in which induction brings back the answer: `0 7 9 4 7` goes on with 9."""
    model = suppressing_model()
    prompts = torch.tensor([[BOS, 7, 9, 4, 7], [BOS, 3, 12, 8, 3], [BOS, 5, 1, 2, 5]])
    answers = torch.stack([prompts[:, 2], prompts[:, 3]], dim=1)
    scores = measure(model, length=10, prompts=prompts, answers=answers)
    for by in ("anti_induction", "ioi"):
        assert scores.top(1, by=by)[0].label == "2.0"
        # Those that copy: the induction head most, then the head that is the suppressor's opposite.
        assert [score.label for score in scores.top(2, by=by, largest=False)] == ["1.0", "2.1"]
    assert scores.ioi[2, 0] == pytest.approx(2.0, abs=1e-3) and scores.ioi[2, 1] == pytest.approx(-2.0, abs=1e-3)


def test_the_demo_models_induction_heads_score_below_zero():
    scores = measure(HookedTransformer.from_pretrained("headscope-demo"), n_sequences=4, n_prompts=4)
    assert {score.label for score in scores.top(3, largest=False)} == {"1.0", "1.2", "1.3"}


def test_hooks_stay_in_force_and_none_is_left():
    model = tiny_model()
    before = measure(model, n_sequences=2)
    with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: -z)]):
        after = measure(model, n_sequences=2)
    assert not torch.allclose(after.anti_induction[1], before.anti_induction[1])
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_seed_draws_the_tokens():
    scores = [measure(tiny_model(), n_sequences=2, seed=seed).anti_induction for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_result_is_frozen_tabulated_printed_and_saved(tmp_path):
    model = tiny_model(model_name="tiny")
    found = measure(model, prompts=tiny_tokens(), answers=torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.ioi = None
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "head", "label", "anti_induction", "ioi"]
    assert frame.label[5] == "1.2" and frame.ioi[5] == float(found.ioi[1, 2])
    best = found.top(1, by="ioi")[0]
    assert "tiny" in str(found) and f"ioi (logits): highest {best.label} {best.value:+.4f}" in str(found)
    read = SuppressionScores.load(found.save(tmp_path / "scores.safetensors"))
    assert torch.equal(read.ioi, found.ioi) and read.info == found.info
    alone = measure(model)
    assert "ioi" not in alone.to_frame() and "ioi" not in str(alone)
    path = alone.save(tmp_path / "alone.safetensors")
    assert SuppressionScores.load(path).ioi is None
    with pytest.raises(InvalidInputError, match="were not measured"):
        alone.top(by="ioi")
    with pytest.raises(InvalidInputError, match="by must be one of"):
        alone.top(by="copying")


@pytest.mark.parametrize("options, message", [
    ({"prompts": tiny_tokens()}, "go together"),
    ({"answers": torch.ones(2, 2, dtype=torch.long)}, "go together"),
    ({"prompts": tiny_tokens(), "answers": torch.ones(3, 2, dtype=torch.long)}, "two tokens for each of 2 prompts"),
    ({"prompts": tiny_tokens(), "answers": torch.full((2, 2), 23)}, "between 0 and d_vocab - 1 = 22"),
    ({"prompts": torch.full((2, 3), 99), "answers": torch.ones(2, 2, dtype=torch.long)}, "tokens must be between"),
    ({"prompts": tiny_tokens(), "answers": torch.ones(2, 2, dtype=torch.long), "attention_mask": torch.zeros(2, 7)},
     "all padding"),
    ({"length": 1}, "length must be at least 2"),
    ({"length": 7}, "n_ctx = 12"),
    ({"n_sequences": 0}, "batch must be at least 1; got 0"),
    ({"n_prompts": 1}, "n_prompts must be at least 2"),
])  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        measure(tiny_model(), **options)


def test_two_vocabularies_are_refused():
    with pytest.raises(InvalidInputError, match="d_vocab_out = 5"):
        measure(tiny_model(d_vocab_out=5))


def test_weights_that_are_not_finite_are_said():
    model = tiny_model()
    with torch.no_grad():
        model.blocks[0].attn.W_O[0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        measure(model)


def test_ioi_can_be_left_out():
    model = HookedTransformer.from_pretrained("headscope-demo")
    found = measure(model, n_sequences=2, length=10, n_prompts=0)
    assert found.ioi is None
    assert torch.equal(found.anti_induction, measure(model, n_sequences=2, length=10, n_prompts=2).anti_induction)
