"""Every analysis of a stream: stopped anywhere and resumed, cut in two and merged, and in another run's folder."""

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SetBudget
from streams import CASES, make_model, make_tokens, same_bits, tensors_of

from headscope import HookedTransformer
from headscope.analysis import ablate_heads, attribute, measure_entropy
from headscope.analysis.core.batches import Batch
from headscope.analysis.storage import passes as passes_module
from headscope.analysis.storage.accumulator import Accumulator, Totals
from headscope.errors import InvalidInputError

every_analysis = pytest.mark.parametrize(("measure", "other"), CASES.values(), ids=CASES.keys())


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return make_model()


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch, set_budget: SetBudget) -> None:
    """Five batches of two rows or one; files need not be forced to the disk."""
    set_budget(batch_tokens=16)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError], ids=["Ctrl-C", "killed"])
@every_analysis
def test_stopped_and_resumed_is_never_stopped(
    model: HookedTransformer, tmp_path: Path, measure: Any, other: Any, stop: Any
) -> None:
    wanted, left = measure(model, make_tokens(), progress=False), 3
    real = passes_module.iterate_batches

    def stopping(*args: Any, **options: Any) -> Iterator[Batch]:
        nonlocal left
        for batch in real(*args, **options):
            if left == 0:
                raise stop
            left -= 1
            yield batch

    options = {"out": tmp_path / "run", "resume": True, "flush_every": 2, "progress": False}
    found, n_stops = None, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes_module, "iterate_batches", stopping)
        while found is None:
            try:
                found = measure(model, make_tokens(), **options)
            except stop:
                n_stops += 1
                # What was done is gone through again, and skipped: each process comes further than the one before.
                left = 3 + 2 * n_stops
    assert n_stops >= 1
    same_bits(found, wanted)
    same_bits(measure(model, make_tokens(), **options), wanted)


@every_analysis
def test_two_halves_merged_are_one_run(model: HookedTransformer, measure: Any, other: Any) -> None:
    wanted = measure(model, make_tokens(), progress=False)
    n_merged = 0

    def in_halves(batches: Iterator[Batch], accumulator: Accumulator[Any], **_: Any) -> Accumulator[Any]:
        nonlocal n_merged
        parts, whole = [copy.copy(accumulator), copy.copy(accumulator)], list(batches)
        for part, some in zip(parts, (whole[:2], whole[2:]), strict=True):
            part.begins_at = 0 if part is parts[0] else parts[0].n_sequences
            part.restore({})
            for batch in some:
                part.update(batch)
        parts[0].merge(copy.copy(accumulator).restore(parts[1].state()))
        n_merged += 1
        return accumulator.restore(parts[0].state())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes_module, "accumulate", in_halves)
        found = measure(model, make_tokens(), progress=False)
    assert n_merged
    ours, theirs = tensors_of(found), tensors_of(wanted)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # Only the order of additions in float64 differs; results are float32.
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-7, equal_nan=True, msg=name)


@every_analysis
def test_another_runs_folder_is_refused(model: HookedTransformer, tmp_path: Path, measure: Any, other: Any) -> None:
    options = {"out": tmp_path / "run", "progress": False}
    measure(model, make_tokens(), **options)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    other_run = {"data": make_tokens(), **other}
    data = other_run.pop("data")
    for call in (
        lambda: measure(model, data, **other_run, **options, resume=True),
        lambda: measure(make_model(seed=1), make_tokens(), **options, resume=True),
        lambda: measure(model, make_tokens(), **options, describe="something else", resume=True),
    ):
        with pytest.raises(InvalidInputError, match="holds another run: "):
            call()
    with pytest.raises(InvalidInputError, match="holds a run already"):
        measure(model, make_tokens(), **options)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


# What may not be merged


def test_parts_of_other_runs_are_not_merged(model: HookedTransformer) -> None:
    def totals(**given: Any) -> Totals:
        part = Totals(model, lambda batch, n_before: {"n": batch.counted.sum()})
        for name, value in given.items():
            setattr(part, name, value)
        return part

    class Others(Totals):
        """Another analysis."""

    whole = totals()
    for other, message in (
        (Others(model, whole.measure), "Totals with {} and Others with {}"),
        (totals(options={"k": 1}), "Totals with {} and Totals with {'k': 1}"),
        (totals(against={"mean of 0.0": torch.ones(2)}), "measured against different mean of 0.0"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            whole.merge(other)
    whole.against = {"mean of 0.0": torch.ones(2)}
    whole.merge(totals(against={"mean of 0.0": torch.ones(2)}))


@every_analysis
def test_unknown_options_are_refused(model: HookedTransformer, measure: Any, other: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'flush_evry'"):
        measure(model, make_tokens(), flush_evry=3)


def test_help_shows_every_option() -> None:
    assert measure_entropy.__doc__ is not None
    for name in ("attention_mask", "include_bos", "describe", "progress", "out", "resume", "flush_every", "engine"):
        assert name in inspect.signature(measure_entropy).parameters
        assert f"\n        {name}: " in measure_entropy.__doc__
    assert "**run" not in measure_entropy.__doc__
    assert inspect.signature(ablate_heads).parameters["flush_every"].default is None
    assert "include_bos" not in inspect.signature(attribute).parameters
