"""Every result, as its analysis makes it, through all that results have in common."""

import dataclasses
import html
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from name_moving_model import name_moving_model, name_task
from tiny import tiny_model, tiny_tokens
from torch import Tensor

import headscope.analysis as analysis
from headscope.analysis.circuits.edges_result import EdgeResult
from headscope.analysis.core.head_lists import HeadListResult
from headscope.analysis.core.over_prompts import Controlled, OverPrompts
from headscope.analysis.core.result import Ranking, Result
from headscope.analysis.patching.result import SiteResult
from headscope.errors import InvalidInputError
from headscope.explorer.measuring.activity import measure_activity
from headscope.explorer.measuring.rows import pick_rows
from headscope.explorer.measuring.sequences import Shown, measure_sequences
from headscope.training import TrainConfig, train
from headscope.training.toy_dynamics import TrainingDynamics, training_dynamics
from headscope.training.toy_tasks import skip_trigram_task

QUIET = {"progress": False}
TOKEN = "<script>alert(1)</script>"


def marked(result: Any) -> Any:
    """The same with a text in it that is no HTML."""
    names = [name for name in ("position_labels", "token_strings") if getattr(result, name, None)]
    changes: dict[str, Any] = {name: (TOKEN, *getattr(result, name)[1:]) for name in names}
    return dataclasses.replace(result, info=dataclasses.replace(result.info, data=TOKEN), **changes)


def dynamics(folder: Path) -> TrainingDynamics:
    task = skip_trigram_task(size=100, device="cpu")
    train(task.model, task.data, TrainConfig(steps=2, batch_size=20), out=folder, snapshots=[0, 2], progress=False)
    return training_dynamics(folder, task.validation, n_rows=10, n_prompts=2, device="cpu", progress=False)


def made(name: str, folder: Path) -> Result:
    """A result of each kind, small."""
    model, tokens = tiny_model(n_ctx=24), tiny_tokens()
    grouped = tiny_model(n_ctx=24, n_heads=4, n_key_value_heads=2)
    task = name_task(8)
    answers = torch.tensor([[1, 2], [3, 4]])
    kinds: dict[str, Callable[[], Any]] = {
        "entropy": lambda: analysis.measure_entropy(model, tokens, **QUIET),
        "entropy by position": lambda: analysis.measure_entropy(model, tokens, reduce="none", **QUIET),
        "calibration": lambda: analysis.measure_calibration(model, tokens, n_bins=4, **QUIET),
        "calibration without heads": lambda: analysis.measure_calibration(model, tokens, heads=False, **QUIET),
        "ablation": lambda: analysis.ablate_heads(model, tokens, kl=True, **QUIET),
        "ablation of sets": lambda: analysis.ablate_heads(
            model, tokens, heads=["0.1+1.2", "mlp1"], reduce="mean", **QUIET
        ),
        "task ablation": lambda: analysis.ablate_components(model, task, **QUIET),
        "attribution": lambda: analysis.attribute(model, tokens, answer_tokens=answers, **QUIET),
        "patching": lambda: analysis.activation_patch(grouped, task, ["resid_pre", "z", "k", "attn_out"], **QUIET),
        "attribution patching": lambda: analysis.attribution_patch(
            grouped, task, sites=["resid_pre", "z", "k", "pattern"], **QUIET
        ),
        "path patching": lambda: analysis.path_patch_sweep(
            model, task, receivers="mlp1", senders="components", **QUIET
        ),
        "one path": lambda: analysis.path_patch(model, task, senders="0.1+0.2", receivers="1.0.q"),
        "head types": lambda: analysis.detect_heads(model, task=task, n_sequences=2, **QUIET),
        "head scores": lambda: analysis.head_scores(model, n_sequences=2, **QUIET),
        "circuit": lambda: analysis.find_circuit(name_moving_model(), task, max_receivers=1, **QUIET),
        "completeness": lambda: analysis.circuit_completeness(model, name_task(4), ["0.0", "1.1"], draws=2),
        "minimality": lambda: analysis.circuit_minimality(model, name_task(4), ["0.0", "1.1"]),
        "faithfulness": lambda: analysis.circuit_faithfulness(
            model, name_task(4), torch.ones(2, 3), sizes=[1, 6], controls=2, **QUIET
        ),
        "attention": lambda: analysis.attribute_attention(name_moving_model(), task, "2.0", "end", 2, **QUIET),
        "edges": lambda: analysis.edge_attribution(name_moving_model(), task, **QUIET),
        "patched edges": lambda: analysis.edge_patch(name_moving_model(), task, ["embed -> 0.0.v"], **QUIET),
        "stability": lambda: analysis.stability(
            lambda each: [f"label {int(each.clean_tokens[0, 1]) % 2}"], task, resamples=3, progress=False
        ),
        "copy suppression": lambda: analysis.copy_suppression_preserving_ablation(model, tokens, **QUIET),
        "circuit ranks": lambda: analysis.weights_circuit_ranks(model, tokens=torch.arange(3, 9), **QUIET),
        "dynamic OV": lambda: analysis.dynamic_ov(model, tokens, **QUIET),
        "suppression scores": lambda: analysis.suppression_scores(
            model, n_sequences=2, prompts=tokens, answers=answers, **QUIET
        ),
        "logit lens": lambda: analysis.logit_lens(model, tokens, **QUIET),
        "next tokens": lambda: analysis.predict_next_tokens(model, tokens, k=3, **QUIET),
        "dynamics": lambda: dynamics(folder),
        "head activity": lambda: measure_activity(model, tokens, n_top=2, **QUIET),
        "head sequences": lambda: measure_sequences(
            model, pick_rows(model, tokens, [0, 1]), [Shown(0, 1, 10, True, 0), Shown(1, 0, 3, False, 1)], **QUIET
        ),
    }
    return kinds[name]()


NAMES = (
    "entropy", "entropy by position", "calibration", "calibration without heads", "ablation", "ablation of sets",
    "task ablation", "attribution", "patching", "attribution patching", "path patching", "one path", "head types",
    "head scores", "circuit", "stability", "faithfulness", "copy suppression", "circuit ranks", "dynamic OV",
    "suppression scores", "attention", "edges", "patched edges", "completeness", "minimality", "logit lens",
    "next tokens", "dynamics", "head activity", "head sequences",
)  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return made(request.param, tmp_path_factory.mktemp("results"))


def subclasses(kind: type) -> set[type]:
    return {each for below in kind.__subclasses__() for each in (below, *subclasses(below))}


def test_no_result_is_left_out(tmp_path: Path) -> None:
    here = {type(made(name, tmp_path / name)) for name in NAMES}
    public = {each for each in subclasses(Result) if each.__module__.startswith("headscope.")}
    assert here == public - {HeadListResult, OverPrompts, Controlled, EdgeResult, SiteResult}


def test_arrays_have_the_axes_they_are_declared_with(result: Result) -> None:
    sizes: dict[str, int] = {}
    shown = set(result.columns + result.ranked) & set(result.measured())
    assert result.measured() and all(result.array(name).values.numel() for name in shown)
    for name in result.measured():
        array = result.array(name)
        assert len(array.axes) == len(set(array.axes)) == array.values.ndim
        for axis, size in zip(array.axes, array.values.shape, strict=True):
            assert sizes.setdefault(axis, size) == size == len(array.labels[axis]), (name, axis)


def test_each_entry_is_selected_by_its_labels(result: Result) -> None:
    for name in result.measured():
        array = result.array(name)
        for index in {0, array.values.numel() // 2, array.values.numel() - 1} if array.values.numel() else ():
            expected = array.values.flatten()[index]
            found = result.sel(by=name, **array.cell(index))
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        for axis in array.axes:
            with pytest.raises(InvalidInputError, match=f"{axis} must be one of"):
                result.sel(by=name, **{axis: "nothing of the kind"})
        with pytest.raises(InvalidInputError, match="no axis 'wit'"):
            result.sel(by=name, wit=0)


def has_means(result: Result, name: str) -> bool:
    array = result.array(name)
    return array.values.is_floating_point() or not set(array.axes) & set(result.sampled)


def test_the_best_are_the_largest_of_the_table(result: Result) -> None:
    for name in result.measured():
        array = result.array(name)
        if not has_means(result, name):
            with pytest.raises(InvalidInputError, match="have no mean over"):
                result.top(by=name)
            continue
        held = {
            axis: array.labels[axis][at] if isinstance(at, int) else at
            for axis, at in result.fixed.items()
            if axis in array.axes
        }
        known = array.sel(**held).mean(result.sampled).values.flatten()
        known = known[~known.isnan()]
        ranking = Result.top(result, 10**6, by=name, largest=True, mlps=True)
        assert isinstance(ranking, Ranking)
        assert [score.value for score in ranking] == known.double().sort(descending=True).values.tolist()
        assert len({score.label for score in ranking}) == len(ranking), "labels tell entries apart"
        smallest = Result.top(result, 1, by=name, largest=False, mlps=True)
        assert [score.value for score in smallest] == known.double().sort().values[:1].tolist()
        assert all(score.label in str(ranking) for score in ranking[:1])
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        result.top(0)


def test_tables_have_a_row_for_each_entry(result: Result) -> None:
    for name in result.measured():
        if has_means(result, name):
            shape = result.array(name).mean(result.sampled).values.shape
            assert len(Result.to_frame(result, name)) == math.prod(shape), name
        frame = Result.to_frame(result, name, means=False)
        assert len(frame) == math.prod(result.array(name).values.shape), name
        column = frame[result._column(name)] if not isinstance(result, SiteResult) else frame["value"]
        values = result.array(name).values
        np.testing.assert_array_equal(column.to_numpy(dtype=np.float64), values.flatten().double().numpy())
    if not isinstance(result, SiteResult):
        rows = (
            result.rows
            or result.array(result.columns[0] if result.columns else result.ranked[0]).mean(result.sampled).axes
        )
        sizes = {axis: len(each) for name in result.measured() for axis, each in result.array(name).labels.items()}
        assert len(result.to_frame()) == math.prod(sizes[axis] for axis in rows)


def test_datasets_have_the_same_numbers(result: Result) -> None:
    dataset = result.to_xarray()
    assert set(dataset.data_vars) == set(result.measured())
    for name in result.measured():
        array = result.array(name)
        assert dataset[name].dims == array.axes
        np.testing.assert_array_equal(dataset[name].values, array.values.numpy())
        if array.values.numel():
            labels = {axis: dataset[axis].values[-1] for axis in array.axes}
            np.testing.assert_array_equal(dataset[name].sel(labels).values, array.values.flatten()[-1].numpy())


def test_files_have_the_same_numbers(result: Result, tmp_path: Path) -> None:
    again = type(result).load(result.save(tmp_path / "result.safetensors"))
    for field in dataclasses.fields(result):
        mine, read = getattr(result, field.name), getattr(again, field.name)
        if isinstance(mine, Tensor):
            torch.testing.assert_close(read, mine, rtol=0, atol=0, equal_nan=True)
        elif field.name != "shapes":
            assert read == mine, field.name
    assert str(again) == str(result)


def test_print_and_notebooks(result: Result) -> None:
    text = str(result)
    ran = str(result.info).replace("\n", "\n  ")
    assert text == repr(result) and text.startswith(f"{type(result).__name__}: {ran}")
    assert len(text.splitlines()) > 1 and "nan" not in text
    page = marked(result)._repr_html_()
    assert TOKEN not in page and "&lt;script&gt;" in page and page.count("<tr") >= 1
    shown = html.unescape(page)
    assert all(line.strip() in shown for line in str(marked(result)).splitlines()[1:]), "what str says is there too"
