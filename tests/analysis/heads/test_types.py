"""Kinds of heads: models with weights set by hand get their labels and no others, random ones get none."""

import io
import itertools
from dataclasses import replace

import pytest
import torch
from induction_model import INDUCTION, PREVIOUS, induction_model
from name_moving_model import BACKUP, DUPLICATE, INHIBITION, MOVER, NEGATIVE, name_moving_model, name_task
from small_models import small_model
from suppressing_model import SUPPRESSOR, suppressing_model
from tiny import randomize, tiny_model

from headscope import HookedTransformer
from headscope.analysis.core.stats import LEVEL, threshold
from headscope.analysis.heads.evidence import copying_scores, k_composition
from headscope.analysis.heads.name_evidence import TASK_KINDS
from headscope.analysis.heads.names import name_places
from headscope.analysis.heads.probes import random_repeats
from headscope.analysis.heads.scores import SCORES, head_scores
from headscope.analysis.heads.types import KINDS, detect_heads
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.data.random_tokens import repeated_random_tokens
from headscope.errors import CheckpointError, InvalidInputError, UnknownNameError


def detect(model, data=None, **options) -> HeadTypes:
    return detect_heads(model, data, progress=False, **options)


def labels(found: HeadTypes) -> dict[str, list[tuple[int, int]]]:
    every = {name: [(score.layer, score.head) for score in found.heads(name)] for name in found.kinds}
    return {name: heads for name, heads in every.items() if heads}


@pytest.fixture(scope="module")
def demo() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def moving() -> HeadTypes:
    return detect(name_moving_model(), task=name_task(), length=10)


# Which heads get which label


def test_an_induction_model_set_by_hand_gets_its_two_labels_and_no_other():
    found = detect(induction_model())
    assert labels(found) == {"previous_token": [PREVIOUS], "induction": [INDUCTION]}
    composition = found.composition[0]
    assert composition[PREVIOUS] > 10 * composition[0, 0]
    assert bool(composition[1].isnan().all())
    assert "K-composition with 0.1" in found.reasons(*INDUCTION, "induction")


def test_a_head_that_writes_against_what_it_finds_is_no_induction_head():
    found = detect(suppressing_model())
    assert labels(found)["copy_suppression"] == [SUPPRESSOR]
    assert SUPPRESSOR not in labels(found)["induction"]
    assert labels(found)["previous_token"] == [(0, 0), (1, 1)]
    assert 0 < found.n_repeats < found.info.n_positions


def test_repeats_are_counted_where_what_followed_comes_next_again():
    """One for each query whose next token followed an earlier copy of it, and is not the one after."""
    tokens = torch.tensor([[1, 2, 3, 1, 2, 4, 4, 4, 4], [5, 6, 7, 5, 6, 5, 6, 8, 9]])
    expected = 0
    for row in tokens.tolist():
        for query in range(len(row) - 2):
            copies = [key for key in range(query) if row[key] == row[query]]
            follows = any(row[key + 1] == row[query + 1] for key in copies)
            expected += follows and row[query + 1] != row[query + 2]
    assert detect(tiny_model(), tokens).n_repeats == expected == 3


@pytest.mark.parametrize("swap", [True, False], ids=["subject swapped", "other names"])
def test_a_name_moving_model_set_by_hand_gets_the_classes_of_wang_et_al(swap):
    found = detect(name_moving_model(), task=name_task(swap=swap), length=10)
    assert labels(found) == {
        "duplicate_token": [DUPLICATE],
        "duplicate_name": [DUPLICATE],
        "name_mover": [MOVER],
        "negative_name_mover": [NEGATIVE],
        "s_inhibition": [INHIBITION],
        "backup_name_mover": [BACKUP],
    }


def test_head_copying_by_place_is_a_name_copier_and_no_name_mover():
    """Without S-inhibition, and with queries that look for the first name only, the mover copies whoever is first."""
    model = name_moving_model()
    with torch.no_grad():
        for layer, head in (NEGATIVE, BACKUP):
            model.blocks[layer].attn.W_O[head] = 0
        model.blocks[2].attn.W_Q[0, : -model.cfg.n_ctx] = 0
        model.blocks[2].attn.W_Q[0, 1, -1] = 30.0
        model.blocks[2].attn.W_K[0] = 0
        model.blocks[2].attn.W_K[0, -model.cfg.n_ctx + 1, -1] = 1.0  # position 1
    task = name_task()
    first = task[[row for row, label in enumerate(task.labels) if label == "ABBA"]]
    assert labels(detect(model, task=first, length=10))["name_mover"] == [MOVER]
    assert any("looks like a name mover" in note for note in detect(model, task=first, length=10).notes)
    # Over both orders it adds nothing, so that another head must do the task.
    with torch.no_grad():
        model.blocks[3].attn.W_O[1] = 0
        model.blocks[3].attn.W_V[1, 6:18, 6:18] = torch.eye(12)
        model.blocks[3].attn.W_O[1, 6:18, 54 + 6 : 54 + 18] = -20 * torch.eye(12)
        model.blocks[3].attn.W_Q[1, 1, -1] = 30.0
        model.blocks[3].attn.W_K[1, -model.cfg.n_ctx + 5, -1] = 1.0  # where the subject is named again
    found = labels(detect(model, task=task, length=10))
    assert found["name_copier"] == [MOVER] and found["subject_suppressor"] == [(3, 1)]
    assert "name_mover" not in found


RANDOM = {
    "plain": {},
    "no tokens' order": {"positional_embedding_type": "none"},
    "grouped": {"n_heads": 4, "n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True},
    "attention only, no norm": {"attn_only": True, "normalization_type": None},
}


@pytest.mark.parametrize("fields", RANDOM.values(), ids=RANDOM)
def test_random_models_get_no_labels(fields):
    for spread, seed in ((0.02, 1), (0.4, 2), (1.0, 3)):
        model = tiny_model(n_ctx=32, dtype=torch.float32, **fields)
        randomize(model, spread=spread, seed=seed)
        found = detect(model, task=name_task(24), n_sequences=8)
        assert labels(found) == {}, (spread, seed, found)


def test_a_head_that_looks_back_a_fixed_distance_is_no_induction_head():
    """On rows that say 10 tokens twice it attends where an induction head does; shuffled, it still does."""
    model = induction_model()
    with torch.no_grad():
        attn = model.blocks[1].attn
        attn.W_Q[1, -model.cfg.n_ctx :] = 30.0 * torch.eye(model.cfg.n_ctx)
        attn.W_K[1, -model.cfg.n_ctx :] = torch.eye(model.cfg.n_ctx).roll(9, dims=1)
    found = detect(model, length=10)
    at = SCORES.index("induction")
    assert float(found.scores[at, 1, 1]) > 0.9 and float(found.controls[at, 1, 1]) > 0.9
    assert labels(found)["induction"] == [INDUCTION]


# The numbers


def test_scores_are_those_of_head_scores(demo):
    found, wanted = detect(demo, n_sequences=8, seed=3), head_scores(demo, n_sequences=8, seed=3, progress=False)
    for at, name in enumerate(SCORES):
        torch.testing.assert_close(found.scores[at], getattr(wanted, name), rtol=0, atol=1e-6)


def test_previous_token_control_is_an_even_spread_over_the_other_keys():
    """Or what the token before that gets, if it is more; with errors over rows, over positions and over tokens."""
    model = tiny_model(n_ctx=12, dtype=torch.float64)
    tokens = repeated_random_tokens(5, 6, d_vocab=23, seed=1)
    found = detect(model, tokens)
    _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        for head in range(3):
            pattern = cache["pattern", layer][:, head]
            # Position 1 sees itself and the one before: one key, one other.
            paid = torch.stack([pattern[:, q, q - 1] for q in range(1, 12)], 1)
            even = torch.stack([(1 - pattern[:, q, q - 1]) / q for q in range(1, 12)], 1)
            nearby = torch.stack([pattern[:, q, max(q - 2, 0)] * (q > 1) for q in range(1, 12)], 1)
            assert float(found.scores[0, layer, head]) == pytest.approx(float(paid.mean()), abs=1e-6)
            control = even if float(even.mean()) > float(nearby.mean()) else nearby
            assert float(found.controls[0, layer, head]) == pytest.approx(float(control.mean()), abs=1e-6)
            # Rows count alike, and so do positions: each error is that of a mean of means.
            rows = (paid - control).mean(1).var() / 5
            moving = paid if control is even else paid - nearby
            away = moving - moving.mean()
            places = away.mean(0).square().sum() / 11 / 10 - away.square().sum() / 55**2
            of_token, left = torch.zeros(23, dtype=torch.float64), torch.zeros(5, 23, dtype=torch.float64)
            for row, pos in itertools.product(range(5), range(11)):
                of_token[tokens[row, pos + 1]] += away[row, pos]
                left[row, tokens[row, pos + 1]] += away[row, pos]
            n = len(tokens[:, 1:].unique())
            by_token = (of_token.square().sum() * n / (n - 1) - left.square().sum()) / 55**2
            error = (rows + places.clamp(min=0) + by_token.clamp(min=0)).sqrt()
            assert float(found.errors[0, layer, head]) == pytest.approx(float(error), rel=1e-4)


def test_the_level_is_kept_and_decides(demo):
    found, strict = detect(demo, n_sequences=6), detect(demo, n_sequences=6, level=1e-12)
    n = found.scores.numel()
    assert found.info.options["level"] == LEVEL and strict.info.options["level"] == 1e-12
    # Six rows leave five degrees of freedom at most.
    assert found.bound >= threshold(n, 5.0) and strict.bound > 10 * found.bound
    assert torch.equal(found.scores, strict.scores) and int(found.labelled.sum()) > int(strict.labelled.sum())
    above = found.scores - found.controls
    assert bool((above > threshold(n, 1e9) * found.errors)[found.labelled].all())


@pytest.mark.parametrize("fields", [{}, {"attn_only": True, "normalization_type": None}, {"normalization_type": "RMS"}])
@torch.no_grad()
def test_copying_is_the_sum_of_the_full_circuits_eigenvalues(fields):
    model = tiny_model(**fields)
    found = copying_scores(model)
    W_U = model.W_U - model.W_U.mean(-1, keepdim=True)
    if fields.get("normalization_type", "LN") is not None:
        W_U = model.ln_final.w[:, None] * W_U
    for layer in range(2):
        read = model.W_E
        block = model.blocks[layer]
        if layer == 1 and not model.cfg.attn_only:
            read = read + block_of_tokens(model, read)
        if model.cfg.normalization_type is not None:
            if model.cfg.normalization_type == "LN":
                read = read - read.mean(-1, keepdim=True)
            read = read / (read.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt() * block.ln1.w
        for head in range(3):
            written = block.attn.W_V[head] @ block.attn.W_O[head]
            if model.cfg.normalization_type == "LN":
                written = written - written.mean(-1, keepdim=True)
            values = torch.linalg.eigvals(read @ written @ W_U)
            assert float(found[layer, head]) == pytest.approx(float(values.real.sum() / values.abs().sum()), abs=1e-5)


def block_of_tokens(model, read):
    """What the first MLP writes for each token."""
    return model.blocks[0].mlp(model.blocks[0].ln2(read[:, None]))[:, 0]


def test_k_composition_is_that_of_all_heads(demo):
    wanted = demo.all_composition_scores("K")
    found = k_composition(demo, [(1, 0), (3, 2)])
    torch.testing.assert_close(found[0, :1], wanted[:1, :, 1, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1, :3], wanted[:3, :, 3, 2], rtol=0, atol=1e-6)
    assert bool(found[1, 3:].isnan().all())
    assert k_composition(demo, []).shape == (0, 5, 4)


@torch.no_grad()
def test_effects_from_names_are_sums_over_their_places():
    """Against the cache: pattern times value through `W_O`, along the two answers, at the real final scale."""
    model = tiny_model(n_ctx=24, d_vocab=24)
    task = name_task(12)
    found = detect(model, task=task, n_sequences=4)
    _, cache = model.run_with_cache(task.clean_tokens)
    final = cache["resid_post", 1][:, -1]
    scale = ((final - final.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    u = (model.W_U[:, task.correct[:, 0]] - model.W_U[:, task.incorrect[:, 0]]).T * model.ln_final.w
    toward = (u - u.mean(-1, keepdim=True)) / scale
    abba = torch.arange(0, 12, 2)  # 0 IO 2 S 3 S 4 1
    for layer, head in ((0, 1), (1, 2)):
        written = cache["v", layer][:, :, head] @ model.W_O[layer, head]
        effect = cache["pattern", layer][:, head, -1] * (written * toward[:, None]).sum(-1)
        for who, places in (("IO", [1, 2]), ("S", [3, 4, 5, 6])):
            wanted = float(effect[abba][:, places].sum(-1).mean())
            assert float(found.evidence_of(f"from {who} (ABBA)")[layer, head]) == pytest.approx(wanted, abs=1e-6)
        paid = cache["pattern", layer][:, head, -1, 5].mean()
        assert float(found.evidence_of("attention end to S2")[layer, head]) == pytest.approx(float(paid), abs=1e-6)


@torch.no_grad()
def test_change_when_patched_is_that_of_a_forward_with_the_other_runs_output(demo):
    dataset = IOIDataset("mixed", 40, demo.tokenizer, prepend_bos=True, seed=2)
    task = Task.from_ioi(dataset, "ABB->ABA, BAB->BAA")
    found = detect(demo, task=task, n_sequences=4)
    _, other = demo.run_with_cache(task.corrupted_tokens, attention_mask=task.attention_mask)

    def put(z, hook):
        z[:, :, 2] = torch.where(task.attention_mask[..., None], other["z", 3][:, :, 2], z[:, :, 2])
        return z

    hooks = [("blocks.3.attn.hook_z", put)]
    patched = demo.run_with_hooks(task.clean_tokens, attention_mask=task.attention_mask, fwd_hooks=hooks)
    clean = demo(task.clean_tokens, attention_mask=task.attention_mask)
    wanted = float(task.logit_difference(patched) - task.logit_difference(clean))
    assert float(found.evidence_of("change when patched")[3, 2]) == pytest.approx(wanted, abs=1e-3)
    assert wanted < -5
    assert (3, 2) in labels(found)["subject_suppressor"]


def test_padding_does_not_count():
    model = tiny_model(n_ctx=24, dtype=torch.float64)
    tokens = repeated_random_tokens(6, 7, d_vocab=23, seed=1)
    padded = torch.cat([tokens, torch.zeros(6, 5, dtype=torch.long)], 1)
    mask = torch.arange(19)[None].expand(6, -1) < 14
    one, other = detect(model, tokens), detect(model, padded, attention_mask=mask)
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-6)
    # The shuffled control draws other orders for nothing: both shuffle the same tokens in the same order.
    torch.testing.assert_close(one.controls, other.controls, rtol=0, atol=1e-6)


def test_places_of_names_are_found_from_the_answers(demo):
    task = Task.from_ioi(IOIDataset("mixed", 12, demo.tokenizer, prepend_bos=True))
    found, known = name_places(replace(task, word_idx={})), name_places(task)
    assert all(torch.equal(found[name], known[name]) for name in ("IO", "S1", "S2", "end"))


def test_answers_that_are_not_in_the_prompt_are_refused(demo):
    task = Task.from_prompts(
        ["Mary gave a book to", "When Mary met John, Mary gave a book to"], ["John", "John"], ["Mary", "Mary"],
        demo.tokenizer,
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="prompt 0 .*right answer 0 times and its wrong one 0 times"):
        detect(demo, task=task)


def test_few_prompts_of_an_order_are_refused():
    task = name_task(10)[[0, 2, 4, 6, 8, 1]]
    with pytest.raises(InvalidInputError, match="at least 4 prompts of each order .* there are 1 of BABA"):
        detect(name_moving_model(), task=task)


def test_what_cannot_be_told_is_said(moving):
    assert any("not clearly predict what repeats" in note for note in moving.notes)
    found = detect(name_moving_model(), task=name_task(corrupted=False), length=10)
    assert any("no corrupted prompts" in note for note in found.notes)
    assert labels(found)["name_mover"] == [MOVER] and "s_inhibition" not in labels(found)
    lost = detect(small_model(tokenizer=False), task=name_task(), n_sequences=4)
    assert any("does not clearly do the task" in note for note in lost.notes) and labels(lost) == {}


def test_models_that_read_and_predict_other_vocabularies_have_no_copying():
    found = detect(tiny_model(n_ctx=32, d_vocab_out=7), n_sequences=4)
    assert found.kinds == SCORES and found.evidence_names == ("start",) and found.evidence.shape == (1, 2, 3)


# What is wrong to ask for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sequences": 1}, "n_sequences must be at least 2"),
        ({"min_attention": 1.0}, "min_attention is a share"),
        ({"min_effect": 0.0}, "min_effect is a share"),
        ({"level": 0.0}, "level is a share"),
        ({"length": 1}, "length must be between 2 and 15"),
        ({"length": 16}, "length must be between 2 and 15"),
        ({"data": torch.ones(1, 8, dtype=torch.long)}, "one row"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InvalidInputError, match=message):
        detect(tiny_model(n_ctx=32), **options)


def test_bad_models():
    with pytest.raises(InvalidInputError, match="attends both ways"):
        detect(tiny_model(attention_dir="bidirectional"), task=name_task())
    with pytest.raises(InvalidInputError, match="n_ctx = 4"):
        detect(tiny_model(n_ctx=4))


def test_the_shortest_context_there_is():
    assert detect(tiny_model(n_ctx=5), n_sequences=4).scores.shape == (4, 2, 3)


# The result


def test_a_result_is_saved_and_read(moving, tmp_path):
    path = moving.save(tmp_path / "types.safetensors")
    again = HeadTypes.load(path)
    assert str(again) == str(moving) and again.kinds == moving.kinds and again.notes == moving.notes
    for name in ("scores", "labelled", "evidence", "composition", "composition_heads"):
        torch.testing.assert_close(getattr(again, name), getattr(moving, name), equal_nan=True)
    with pytest.raises(CheckpointError):
        type("Other", (HeadTypes,), {"kind": "other"}).load(path)


def test_a_result_tells_its_heads(moving):
    assert moving.kinds == KINDS
    assert moving.kinds_of(*MOVER) == ("name_mover",) and moving.kinds_of(1, 1) == ()
    # Only the likeliest heads are tested for it.
    assert moving.top(1, by="s_inhibition")[0].label == "1.0" and len(moving.top(3, by="s_inhibition")) == 1
    assert moving.heads("name_mover").unit == "logits" and moving.heads("duplicate_token").unit == "attention"
    assert "name_mover" in str(moving) and "2.0 (6.00)" in str(moving)
    with pytest.raises(UnknownNameError, match="name_mover"):
        moving.heads("name_movers")
    with pytest.raises(UnknownNameError, match="takes a task"):
        detect(induction_model(), n_sequences=2).heads("name_mover")
    with pytest.raises(UnknownNameError):
        moving.evidence_of("wit")
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        moving.top(0)
    with pytest.raises(InvalidInputError, match="head 7.0 does not exist"):
        moving.kinds_of(7, 0)


def test_a_result_is_a_table(moving):
    from rich.console import Console

    frame = moving.to_frame()
    assert len(frame) == len(KINDS) * 8
    row = frame[(frame.label == "2.0") & (frame.kind == "name_mover")].iloc[0]
    assert bool(row.labelled) and row.score == pytest.approx(6.0, abs=1e-4)
    assert row.threshold == pytest.approx(0.2, abs=1e-4)
    assert row["direct effect (ABBA)"] == pytest.approx(6.0, abs=0.05)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(moving.table())
    text = console.export_text()
    assert "backup name mover" in text and "attention end to IO +1.00" in text


def test_the_demo_model_copies_both_names_and_lowers_the_subject(demo):
    task = Task.from_ioi(IOIDataset("mixed", 60, demo.tokenizer, prepend_bos=True))
    found = labels(detect(demo, task=task, n_sequences=8))
    assert found["previous_token"] == [(0, 3)] and set(found["induction"]) == {(1, 0), (1, 1), (1, 2), (1, 3)}
    assert found["subject_suppressor"][0] == (3, 2)
    assert {(1, 0), (1, 3)} <= set(found["name_copier"])
    assert not set(found) & set(TASK_KINDS) - {"name_copier", "subject_suppressor"}


def test_special_tokens_are_left_out_without_a_tokenizer() -> None:
    model = tiny_model(d_vocab=9)
    (rows,) = random_repeats(model, 8, 4, 0, (3, 5))
    assert (rows[:, 0] == 3).all() and not torch.isin(rows[:, 1:], torch.tensor([3, 5])).any()
    assert set(rows[:, 1:].unique().tolist()) == {0, 1, 2, 4, 6, 7, 8}
    named = detect_heads(model, n_sequences=8, length=4, special_tokens=(3, 5), progress=False)
    given = detect_heads(model, [rows], progress=False)
    torch.testing.assert_close(named.scores, given.scores, equal_nan=True)
    scores = head_scores(model, n_sequences=8, length=4, special_tokens=(3, 5), progress=False)
    torch.testing.assert_close(scores.induction, head_scores(model, rows, progress=False).induction)
