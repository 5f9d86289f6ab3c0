import dataclasses

import pytest
import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis.heads.scores import HeadScores, head_scores
from headscope.errors import InvalidInputError


@pytest.fixture
def model():
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=32, d_head=4, d_vocab=11, act_fn="gelu_new", seed=0, initializer_range=0.5
    )
    return HookedTransformer(cfg)


def by_hand(model, tokens, real):
    """Each score by its definition, one query at a time."""
    _, cache = model.run_with_cache(tokens, attention_mask=real)
    kinds = {"previous_token": [], "duplicate_token": [], "induction": []}
    for row in range(len(tokens)):
        places = [i for i in range(tokens.shape[1]) if real[row, i]]
        for query in places:
            copies = [k for k in places if k < query and tokens[row, k] == tokens[row, query]]
            keys = {
                "previous_token": [k for k in places if k == query - 1],
                "duplicate_token": copies,
                "induction": [k + 1 for k in copies if k + 1 < query],
            }
            for kind, attended in keys.items():
                if attended:
                    paid = [cache["pattern", layer][row, :, query, attended].sum(-1) for layer in range(2)]
                    kinds[kind].append(torch.stack(paid))
    return {kind: torch.stack(values).mean(0) for kind, values in kinds.items()}


def test_scores_are_those_of_the_definition(model):
    tokens = torch.randint(11, (3, 14), generator=torch.Generator().manual_seed(0))
    real = torch.ones(3, 14, dtype=torch.bool)
    scores = head_scores(model, tokens, progress=False)
    for kind, expected in by_hand(model, tokens, real).items():
        torch.testing.assert_close(getattr(scores, kind), expected)
    assert scores.info.n_sequences == 3 and scores.info.n_positions == 42


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_neither_attends_nor_is_attended_to(model, side):
    tokens = torch.randint(11, (3, 14), generator=torch.Generator().manual_seed(1))
    real = torch.ones(3, 14, dtype=torch.bool)
    real[1, :5], real[2, :9] = False, False
    if side == "right":
        real = real.flip(1)
    scores = head_scores(model, tokens, attention_mask=real, progress=False)
    for kind, expected in by_hand(model, tokens, real).items():
        torch.testing.assert_close(getattr(scores, kind), expected)


def test_batches_give_what_one_tensor_gives(model):
    tokens = torch.randint(11, (5, 14), generator=torch.Generator().manual_seed(2))
    whole = head_scores(model, tokens, progress=False)
    parts = head_scores(model, iter([tokens[:2], tokens[2:]]), progress=False)
    for kind in ("previous_token", "duplicate_token", "induction"):
        torch.testing.assert_close(getattr(parts, kind), getattr(whole, kind))


def test_a_perfect_head_scores_one(model):
    """Patterns put in by a hook: each head one kind."""
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]])
    ideal = torch.zeros(1, 4, 12, 12)
    for query in range(12):
        for head, back in enumerate((1, 6, 5, 0)):
            ideal[0, head, query, query - back if query >= back else query] = 1
    with model.hooks([("blocks.1.attn.hook_pattern", lambda pattern, hook: ideal)]):
        scores = head_scores(model, tokens, progress=False)
    assert scores.previous_token[1].tolist() == [1, 0, 0, 0]
    assert scores.duplicate_token[1].tolist() == [0, 1, 0, 0]
    assert scores.induction[1].tolist() == [0, 0, 1, 0]
    best = scores.top(1, by="induction")
    assert [(s.layer, s.head, s.value) for s in best] == [(1, 2, 1.0)]


def test_hooks_are_gone_afterwards(model):
    head_scores(model, n_sequences=1, length=5, progress=False)
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_random_tokens_are_drawn_by_the_seed(model):
    scores = [head_scores(model, n_sequences=2, seed=seed, progress=False).induction for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_result_is_frozen_tabulated_and_saved(model, tmp_path):
    scores = head_scores(model, n_sequences=2, progress=False, describe="noise")
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.induction = None
    frame = scores.to_frame()
    assert list(frame.columns) == ["layer", "head", "label", "previous_token", "duplicate_token", "induction"]
    assert frame.label[5] == "1.1" and frame.induction[5] == float(scores.induction[1, 1])
    read = HeadScores.load(scores.save(tmp_path / "scores.safetensors"))
    assert torch.equal(read.induction, scores.induction) and read.info == scores.info
    assert read.info.data == "noise"


def test_what_does_not_repeat_cannot_be_ranked(model):
    scores = head_scores(model, torch.arange(8)[None], progress=False)
    assert scores.induction.isnan().all()
    with pytest.raises(InvalidInputError, match="nothing repeats"):
        scores.top(by="induction")
    assert len(scores.top(3, by="previous_token")) == 3
    with pytest.raises(InvalidInputError, match="by must be one of"):
        scores.top(by="copying")


def test_data_where_nothing_counts_is_refused(model):
    with pytest.raises(InvalidInputError, match="no position counts"):
        head_scores(model, torch.ones(1, 4, dtype=torch.long), attention_mask=torch.zeros(1, 4), progress=False)
