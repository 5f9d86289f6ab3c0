"""Kinds told by direct effects: the whole of it, the part by which it comes, and errors that decide."""

import dataclasses
import math

import pytest
import torch
from name_moving_model import DUPLICATE, INHIBITION, MOVER, name_moving_model, name_task
from tiny import tiny_model

from headscope.analysis.core.stats import threshold
from headscope.analysis.heads import inhibition, power
from headscope.analysis.heads.evidence import Condition, HeadKind, Measured
from headscope.analysis.heads.name_evidence import TASK_KINDS
from headscope.analysis.heads.names import attention_between, name_places, orders_of
from headscope.analysis.heads.power import prompts_needed
from headscope.analysis.heads.types import KINDS, detect_heads

AT_END = (3, 1)


def with_head_at_the_end(strength: float):
    """One more head: from the end, to the end, where it reads what is predicted."""
    model = name_moving_model()
    attn = model.blocks[AT_END[0]].attn
    with torch.no_grad():
        attn.W_V[1].zero_()
        attn.W_O[1].zero_()
        attn.W_Q[1, 1, -1] = 30.0
        attn.W_K[1, 1, -1] = 1.0
        attn.W_V[1, 54:72, :18] = torch.eye(18)
        attn.W_O[1, :18, 54:72] = strength * torch.eye(18)
    return model


@pytest.mark.parametrize(("strength", "kind"), [(0.3, "amplifier"), (-0.3, "dampener")])
def test_heads_that_go_by_what_is_written_at_the_end(strength, kind):
    found = detect_heads(with_head_at_the_end(strength), task=name_task(), length=10, progress=False)
    assert found.kinds_of(*AT_END) == (kind,) and found.unit(kind) == "logits"
    # The mover writes 6 for the name, the negative one 2 against it.
    assert found.heads(kind)[0].value == pytest.approx(abs(strength) * 4, abs=0.05)
    for order in ("ABBA", "BABA"):
        whole, part = (found.evidence_of(f"{name} ({order})")[AT_END] for name in ("direct effect", "from end"))
        assert float(whole) == pytest.approx(strength * 4, abs=0.05) and float(part) == pytest.approx(float(whole))
    assert "attention end to end +1.00" in found.reasons(*AT_END, kind)


def test_a_head_that_raises_the_name_and_does_not_help_is_no_mover():
    """Made to write as much for the subject, from where it is named, it raises both names and chooses neither."""
    model = name_moving_model()
    with torch.no_grad():
        attn = model.blocks[MOVER[0]].attn
        attn.W_Q[MOVER[1], 36:54] = 0  # the inhibited name is looked at, too
        # Another head does the task.
        other = model.blocks[AT_END[0]].attn
        other.W_V[1].zero_()
        other.W_V[1, 6:18, 6:18] = torch.eye(12)
        other.W_O[1, 6:18, 60:72] = -20 * torch.eye(12)
        other.W_Q[1, 1, -1] = 30.0
        other.W_K[1, -model.cfg.n_ctx + 5, -1] = 1.0
    found = detect_heads(model, task=name_task(), length=10, progress=False)
    assert "name_mover" not in found.kinds_of(*MOVER) and "name_copier" in found.kinds_of(*MOVER)
    assert "subject_suppressor" in found.kinds_of(*AT_END)
    assert float(found.evidence_of("from IO (ABBA)")[MOVER]) > 1.9
    assert float(found.evidence_of("direct effect (ABBA)")[MOVER]) < 0


def test_duplicates_on_names_look_at_the_same_name_alone():
    found = detect_heads(name_moving_model(), task=name_task(), length=10, progress=False)
    assert [each.label for each in found.heads("duplicate_name")] == ["0.0"]
    assert found.heads("duplicate_name").unit == "attention"
    assert float(found.evidence_of("attention S2 to S1")[DUPLICATE]) == pytest.approx(1.0, abs=1e-3)
    assert float(found.evidence_of("attention S2 to IO")[DUPLICATE]) == pytest.approx(0.0, abs=1e-3)


def test_the_likeliest_heads_are_tested_on_other_prompts(monkeypatch):
    asked = []
    sweep = inhibition.path_patch_sweep

    def watched(model, task, **options):
        asked.append((options["senders"], {tuple(row) for row in task.corrupted_tokens.tolist()}))
        return sweep(model, task, **options)

    monkeypatch.setattr(inhibition, "path_patch_sweep", watched)
    task = name_task(80, swap=False)
    found = detect_heads(name_moving_model(), task=task, length=10, progress=False)
    (everyone, screened), *tests = asked
    assert everyone == "heads" and len(screened) == 8
    assert all(isinstance(senders, list) and "1.0" in senders for senders, _ in tests)
    assert not any(screened & prompts for _, prompts in tests)
    assert [each.label for each in found.heads("s_inhibition")] == ["1.0"]
    # No prompt differs from another in this model, so that the first step tells what more would.
    assert len(tests) == 1
    assert float(found.evidence_of("path to name movers' queries")[INHIBITION]) == pytest.approx(-2, abs=0.01)


def test_prompts_of_both_orders_in_turn():
    places = {"IO": torch.tensor([1, 1, 1, 3, 3]), "S1": torch.tensor([3, 3, 3, 1, 1])}
    orders = orders_of(places)
    assert inhibition.in_turn(orders).tolist() == [0, 3, 1, 4, 2]
    assert inhibition.some_prompts(orders, 3).tolist() == [0, 1, 3]


def test_prompts_needed_follow_from_how_heads_vary(monkeypatch):
    """By hand: an effect of a tenth is as many errors from zero as a test of all heads and kinds asks for."""
    task = name_task(40)
    assert prompts_needed(name_moving_model(), task) == 40  # nothing varies
    lost = tiny_model(n_ctx=24, d_vocab=24, dtype=torch.float32)
    assert prompts_needed(lost, task) == 40  # and here nothing is done
    real = power.attribute

    def noisy(model, task, **options):
        found = real(model, task, **options)
        components = found.components.clone()
        at = found.component_labels.index("1.1")
        components[:, at] = torch.linspace(-1, 1, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
        return dataclasses.replace(found, components=components)

    monkeypatch.setattr(power, "attribute", noisy)
    effects = noisy(name_moving_model(), task, sources=False, neurons=False, progress=False)
    whole, values = float(effects.logit_difference.mean()), effects.heads[:, 1, 1]
    bound = threshold(len(KINDS) * 8, float("inf")) + 0.8416  # told four times in five
    each = [
        (bound * float(values[at::2].std()) / max(0.1 * whole, abs(float(values[at::2].mean())))) ** 2 for at in (0, 1)
    ]
    assert prompts_needed(name_moving_model(), task) == 2 * math.ceil(max(each)) > 40


def measured(score: float, error: float, control: float = 0.0) -> Measured:
    return Measured(*(torch.tensor([[value]]) for value in (score, control, error, 50.0)))


def test_a_kind_holds_where_all_its_numbers_do():
    def labelled(*pairs, **options) -> bool:
        conditions = [Condition(measured(*pair), 0.5) for pair in pairs]
        return bool(HeadKind.by_weakest("kind", conditions, **options).labelled(1, 0.05))

    assert labelled((1.0, 0.1), (0.7, 0.1))
    assert not labelled((1.0, 0.1), (0.4, 0.1))  # too little
    assert not labelled((1.0, 0.6), (0.7, 0.1))  # not sure, though not the lowest
    assert not labelled((1.0, 0.1, 0.6), (0.7, 0.1))  # its control is as good
    assert not labelled((1.0, 0.1), unless=torch.tensor([[True]]))
    share = Condition(measured(0.6, 0.05, 0.4), 0.3, of_the_rest=True)
    assert bool(share.holds(1, 0.05)) and not bool(Condition(share.measured, 0.3).holds(1, 0.05))
    sure = Condition(measured(0.6, 0.25), 0.3)
    confirms = Condition(sure.measured, 0.3, confirms=True)
    assert bool(confirms.holds(100, 0.05)) and not bool(sure.holds(100, 0.05))


def test_what_is_high_in_all_numbers_and_sure_in_some_is_undecided():
    def is_open(*pairs, **options) -> bool:
        kind = HeadKind.by_weakest("kind", [Condition(measured(*pair), 0.5) for pair in pairs], **options)
        return bool(kind.reached() & ~kind.labelled(1, 0.05))

    assert is_open((1.0, 0.6), (0.7, 0.1))  # the number that is not sure is not the one that is shown
    assert is_open((0.7, 0.6), (1.0, 0.1))
    assert not is_open((1.0, 0.1), (0.7, 0.1))  # labeled
    assert not is_open((1.0, 0.6), (0.4, 0.1))  # too little, however sure
    assert not is_open((1.0, 0.6), (0.7, 0.1), unless=torch.tensor([[True]]))


def test_heads_with_another_part_in_the_task_are_decided():
    found = detect_heads(name_moving_model(), task=name_task(80, swap=False), length=10, progress=False)
    at = [found.kinds.index(kind) for kind in TASK_KINDS]
    assert bool(found.labelled[at].any()) and not bool((found.open[at] & found.labelled[at].any(0)).any())
    assert not bool((found.open & found.labelled).any())


def test_attention_between_places_is_that_of_the_patterns():
    model, task = name_moving_model(), name_task(12)
    places = name_places(task)
    pairs = [("end", "IO"), ("S2", "S1"), ("end", "nowhere")]
    found = attention_between(model, dataclasses.replace(task, word_idx=places), pairs)
    assert list(found) == pairs[:2]
    _, cache = model.run_with_cache(task.clean_tokens, attention_mask=task.attention_mask, return_type=None)
    rows = torch.arange(12)
    for (query, key), values in found.items():
        patterns = [cache["pattern", layer][rows, :, places[query], places[key]] for layer in range(model.cfg.n_layers)]
        wanted = torch.stack([pattern.mean(0) for pattern in patterns])
        torch.testing.assert_close(values, wanted.float(), rtol=0, atol=1e-6)
