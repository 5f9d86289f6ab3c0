"""Results: selection, rankings, tables and print of arrays with named axes; files whole or not at all."""

import copy
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from headscope.analysis.core.named_arrays import masked_mean
from headscope.analysis.core.ranking import HeadScore, Ranking
from headscope.analysis.core.result import Array, Result, RunInfo, check_option, component_label
from headscope.errors import CheckpointError, InvalidInputError, MissingDependencyError
from headscope.model.checkpoints import files as tensor_file

INFO = RunInfo("tiny", ("fold_ln",), "a story", 2, 1234, {"scale": "final", "lens_bias": True, "k": 3})


@dataclass(frozen=True, repr=False)
class Scores(Result):
    kind: ClassVar[str] = "scores"
    values: Tensor
    labels: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Other(Result):
    kind: ClassVar[str] = "other"
    values: Tensor


@pytest.fixture
def scores() -> Scores:
    return Scores(INFO, torch.arange(6.0).view(2, 3).T, ("a", "b"))


def test_a_result_goes_through_a_file(scores: Scores, tmp_path: Path) -> None:
    path = scores.save(str(tmp_path / "deep" / "scores.safetensors"))
    assert path == tmp_path / "deep" / "scores.safetensors" and path.is_file()
    again = Scores.load(path)
    assert type(again) is Scores
    assert torch.equal(again.values, scores.values) and again.values.dtype == scores.values.dtype
    assert again.labels == scores.labels and again.info == INFO and again.info.processing == ("fold_ln",)
    assert [each.name for each in path.parent.iterdir()] == ["scores.safetensors"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(again.values, scores.values), "it reads from the file still"


def test_a_result_is_frozen(scores: Scores) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.labels = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        INFO.model = "x"  # type: ignore[misc]


def test_a_failed_save_leaves_the_old_file(scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scores.save(tmp_path / "scores.safetensors")
    old = path.read_bytes()

    def fail(tensors: Any, file: Path, **options: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tensor_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(scores, labels=("c",)).save(path)
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("contents", [b"", b"garbage", b"\xff" * 100])
def test_a_file_that_is_no_result_is_said(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "scores.safetensors"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match="scores.safetensors"):
        Scores.load(path)


def test_another_kind_of_file_is_said(scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    with pytest.raises(CheckpointError, match="not a readable"):
        Scores.load(path)
    with pytest.raises(CheckpointError, match="not a readable"):
        Scores.load(tmp_path)
    Other(INFO, torch.ones(2)).save(path)
    with pytest.raises(CheckpointError, match="holds 'other', not 'scores'"):
        Scores.load(path)
    save_file({"values": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not 'scores'"):
        Scores.load(path)


@pytest.mark.parametrize("metadata", [
    {}, {"fields": "not json"}, {"fields": "[]"}, {"fields": "{}"}, {"fields": '{"info": {}}'},
    {"fields": json.dumps({"info": dataclasses.asdict(INFO)})},
    {"fields": json.dumps({"info": dataclasses.asdict(INFO), "labels": ["a"], "surplus": 1})},
    {"fields": json.dumps({"info": {**dataclasses.asdict(INFO), "surplus": 1}, "labels": ["a"]})},
])  # fmt: skip
def test_a_damaged_header_is_said(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "scores.safetensors"
    save_file({"values": torch.ones(2)}, path, metadata={"kind": "scores", **metadata})
    with pytest.raises(CheckpointError, match="scores.safetensors"):
        Scores.load(path)


def test_a_run_says_what_it_was() -> None:
    assert str(INFO) == (
        "tiny on a story: 2 sequences, 1,234 positions\nweight processing: fold_ln\nscale=final, lens_bias=True, k=3"
    )
    assert str(RunInfo("tiny", (), "x", 1, 1)) == "tiny on x: 1 sequence, 1 position\nweight processing: none"
    long = RunInfo("tiny", ("fold_ln", "fold_value_biases"), "x", 1, 1, {f"option_{n}": "values" for n in range(9)})
    assert max(map(len, str(long).splitlines())) <= 78


def test_labels() -> None:
    assert component_label(10, 7) == "10.7" and component_label(10, None) == "mlp10"
    assert HeadScore(10, 7, 0.5).label == "10.7" and HeadScore(3, None, 0.5).label == "mlp3"


VALUES = torch.tensor([[[1.0, 2.0], [-5.0, -5.0], [9.0, 9.0]], [[3.0, 3.0], [2.0, torch.nan], [-9.0, -9.0]]])


@dataclass(frozen=True, repr=False)
class Effects(Result):
    """Means `[layer, component]`, or values of two prompts: heads 0 and 1, and an MLP."""

    kind: ClassVar[str] = "effects"
    arrays: ClassVar = {
        "effects": Array("layer component prompt", unit="nats", title="effect", error="errors", column="effect"),
        "errors": Array("layer component", column="error"),
        "states": Array("state", style=".1%"),
        "bias": Array("layer"),
        "extra": Array("layer", absent="extra was not asked for."),
        "sizes": Array("layer component prompt", of=lambda found: found.effects.abs()),
    }
    coords: ClassVar = {"component": "parts", "state": "state_labels"}
    columns: ClassVar = ("effects", "errors", "bias", "extra")
    ranked: ClassVar = ("effects",)
    effects: Tensor
    errors: Tensor
    states: Tensor
    bias: Tensor
    extra: Tensor | None = None
    parts: tuple[str, ...] = ("0", "1", "MLP")
    state_labels: tuple[str, ...] = ("0_pre", "final")


@pytest.fixture
def effects() -> Effects:
    return Effects(INFO, VALUES, torch.arange(6.0).view(2, 3) / 10, torch.tensor([0.25, 0.5]), torch.tensor([7.0, 8.0]))


def ranked(ranking: Ranking) -> list[tuple[str, float]]:
    return [(score.label, score.value) for score in ranking]


def test_selection_by_label(effects: Effects) -> None:
    assert torch.equal(effects.sel(head="1.0"), VALUES[1, 0])
    assert torch.equal(effects.sel(component="mlp0"), VALUES[0, 2])
    for name in ("MLP 0", "mlp 0", "MLP0"):
        assert torch.equal(effects.sel(component=name), VALUES[0, 2])
    assert torch.equal(effects.sel(head=(1, 1)).nan_to_num(), VALUES[1, 1].nan_to_num())
    assert torch.equal(effects.sel(layer=0), VALUES[0])
    assert float(effects.sel(head="1.0", prompt=1)) == 3.0 and float(effects.sel(layer=1, component=0, prompt=1)) == 3.0
    assert torch.equal(effects.sel(component="MLP", layer=0), VALUES[0, 2])
    assert torch.equal(
        effects.sel(head=["1.0", "0.1", "mlp1"]), torch.stack([VALUES[1, 0], VALUES[0, 1], VALUES[1, 2]])
    )
    assert torch.equal(effects.sel(layer=[1], prompt=0, component="1"), torch.tensor([2.0]))
    assert float(effects.sel(state="final")) == 0.5, "the first array that has the axis"
    assert float(effects.sel(by="errors", head="0.1")) == pytest.approx(0.1)
    assert torch.equal(effects.sel(by="bias"), effects.bias)


@pytest.mark.parametrize(("labels", "message"), [
    ({"head": "7.0"}, r"component must be one of '0.0', '0.1', 'mlp0', '1.0', '1.1', 'mlp1'; got '7.0'"),
    ({"layer": 2}, "layer must be one of 0, 1; got 2"),
    ({"layer": -1}, "layer must be one of 0, 1; got -1"),
    ({"state": "end"}, "state must be one of '0_pre', 'final'; got 'end'"),
    ({"colour": 1}, "no array has the axes colour: effects has layer, component, prompt; "),
    ({"by": "errors", "prompt": 0}, "no axis 'prompt' here; the axes are layer, component"),
    ({"by": "effect"}, "by must be one of 'effects', 'errors'"),
    ({"by": "extra"}, "extra was not asked for"),
])  # fmt: skip
def test_what_is_not_there_is_not_selected(effects: Effects, labels: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        effects.sel(**labels)


def test_a_label_of_two_entries_selects_neither(effects: Effects) -> None:
    twice = dataclasses.replace(effects, state_labels=("a", "a"))
    with pytest.raises(InvalidInputError, match="got 'a'"):
        twice.sel(state="a")


def test_rankings(effects: Effects) -> None:
    assert ranked(effects.top()) == [("1.0", 3.0), ("1.1", 2.0), ("0.0", 1.5), ("0.1", -5.0)]
    assert ranked(effects.top(2, largest=False)) == [("0.1", -5.0), ("0.0", 1.5)]
    assert ranked(effects.top(2, mlps=True)) == [("mlp0", 9.0), ("1.0", 3.0)]
    assert ranked(effects.top(1, mlps=True, largest=False)) == [("mlp1", -9.0)]
    assert ranked(effects.top(9, prompt=0, layer=[0])) == [("0.0", 1.0), ("0.1", -5.0)]
    assert ranked(effects.top(9, prompt=1)) == [("1.0", 3.0), ("0.0", 2.0), ("0.1", -5.0)], "NaN is no number"
    first = effects.top(1)[0]
    assert (first.layer, first.head, first.error) == (1, 0, pytest.approx(0.3)) and first.share is None
    assert first.effect == 3.0 and first.component == "0", "labels and numbers of the table's row"
    with pytest.raises(AttributeError, match="no attribute 'wit'"):
        _ = first.wit
    assert copy.deepcopy(first) == first == HeadScore(1, 0, 3.0, first.error)
    assert ranked(effects.top(2, by="states")) == [("final", 0.5), ("0_pre", 0.25)]
    assert effects.top(1, by="states")[0].layer is None
    assert effects.top(1, by="sizes")[0].label == "0.1", "derived arrays too"


def test_rankings_either_way(effects: Effects) -> None:
    class Patches(Effects):
        either_way: ClassVar[bool] = True

    patches = Patches(**{field.name: getattr(effects, field.name) for field in dataclasses.fields(effects)})
    assert ranked(patches.top(2)) == [("0.1", -5.0), ("1.0", 3.0)]
    assert ranked(patches.top(1, largest=True)) == [("1.0", 3.0)]
    assert "effect (nats): 0.1 -5.0000, 1.0 +3.0000, 1.1 +2.0000" in str(patches)


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 0}, "k must be at least 1; got 0"),
    ({"by": "effect"}, "by must be one of"),
    ({"by": "extra"}, "extra was not asked for"),
    ({"layer": 5}, "layer must be one of 0, 1; got 5"),
    ({"colour": 5}, "no axis 'colour'"),
])  # fmt: skip
def test_what_is_not_there_is_not_ranked(effects: Effects, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        effects.top(**options)


def test_rankings_print_as_tables(effects: Effects) -> None:
    assert str(effects.top(2)).splitlines() == [
        "         effect (nats)", "1.0      +3.0000 ± 0.3000", "1.1      +2.0000 ± 0.4000",
    ]  # fmt: skip
    assert str(effects.top(1, by="states")).splitlines() == ["         states", "final    50.0%"]
    long = Ranking([HeadScore(None, None, 1.0, share=0.5, name="10.7+11.10+9.9")], name="change", unit="logits")
    assert str(long).splitlines() == [" " * 15 + "change (logits), share", "10.7+11.10+9.9 +1.0000  +50.0%"]
    assert repr(Ranking([], name="nothing")).strip() == "nothing"
    heads = Ranking.of_heads(torch.tensor([[1.0, 5.0], [2.0, 3.0]]), 2, name="score")
    assert ranked(heads) == [("0.1", 5.0), ("1.1", 3.0)]
    assert heads.line() == "0.1 +5.0000, 1.1 +3.0000" == heads.line(errors=True)


def test_tables(effects: Effects) -> None:
    frame = effects.to_frame()
    assert list(frame.columns) == ["layer", "component", "label", "effect", "error", "bias"]
    assert frame.label.tolist() == ["0.0", "0.1", "mlp0", "1.0", "1.1", "mlp1"]
    assert frame.effect.tolist() == [1.5, -5.0, 9.0, 3.0, 2.0, -9.0]
    assert frame.bias.tolist() == [7.0] * 3 + [8.0] * 3, "what lacks an axis is the same along it"
    each = effects.to_frame("effects", means=False)
    assert list(each.columns) == ["layer", "component", "label", "prompt", "effect"] and len(each) == 12
    row = each[(each.label == "0.0") & (each.prompt == 1)]
    assert row.effect.item() == 2.0
    assert effects.to_frame("states").to_dict("list") == {"state": ["0_pre", "final"], "states": [0.25, 0.5]}
    spread = effects.to_frame("bias", "effects")
    assert list(spread.columns) == ["layer", "bias", "effect 0", "effect 1", "effect MLP"]
    assert spread.iloc[1].tolist()[1:] == [8.0, 3.0, 2.0, -9.0]
    with pytest.raises(InvalidInputError, match="extra was not asked for"):
        effects.to_frame("extra")


def test_datasets(effects: Effects) -> None:
    dataset = effects.to_xarray()
    assert set(dataset.data_vars) == {"effects", "errors", "states", "bias", "sizes"}
    assert dataset["effects"].dims == ("layer", "component", "prompt") and dataset["effects"].attrs["units"] == "nats"
    assert float(dataset["effects"].sel(layer=1, component="0", prompt=0)) == 3.0
    np.testing.assert_array_equal(dataset["effects"].values, VALUES.numpy())
    assert dataset.attrs == {"kind": "effects", "info": str(INFO)}


def test_a_missing_xarray_is_said(effects: Effects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[xarray\]'"):
        effects.to_xarray()


def test_labels_that_do_not_fit_are_said(effects: Effects) -> None:
    with pytest.raises(InvalidInputError, match="parts has 2 labels for 3 entries"):
        dataclasses.replace(effects, parts=("0", "1")).top()


def test_results_print_their_ends(effects: Effects) -> None:
    assert str(effects).splitlines() == [
        *f"Effects: {INFO}".replace("\n", "\n  ").splitlines(),
        "  effect (nats): highest 1.0 +3.0000, 1.1 +2.0000, 0.0 +1.5000; lowest 0.1 -5.0000, 0.0 +1.5000, 1.1 +2.0000",
    ]
    assert repr(effects) == str(effects)


def test_notebooks_show_a_small_table(effects: Effects) -> None:
    info = dataclasses.replace(INFO, data="<script>alert(1)</script>")
    page = dataclasses.replace(effects, info=info)._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "mlp0" in page
    table = page[page.index("<table") :]
    assert table.index("mlp0") < table.index("1.0"), "the largest come first"


@pytest.mark.parametrize(("n_layers", "n_rows", "said"), [(25, 25, False), (26, 10, True)])
def test_notebooks_show_short_tables_whole(n_layers: int, n_rows: int, said: bool) -> None:
    @dataclass(frozen=True, repr=False)
    class Depths(Result):
        arrays: ClassVar = {"depth": Array("layer")}
        columns: ClassVar = ("depth",)
        depth: Tensor

    page = Depths(INFO, torch.arange(n_layers))._repr_html_()
    assert page.count("<tr>") == n_rows
    assert ("10 of 26 rows" in page) is said


def test_files_of_before_name_mlps_as_now(effects: Effects, tmp_path: Path) -> None:
    @dataclass(frozen=True, repr=False)
    class Named(Result):
        kind: ClassVar[str] = "named"
        component_labels: tuple[str, ...]
        token_strings: tuple[str, ...]

    old = Named(INFO, ("0.1", "MLP 3", "0.1+MLP 11", "MLP"), ("MLP 3",)).save(tmp_path / "old.safetensors")
    assert Named.load(old).component_labels == ("0.1", "mlp3", "0.1+mlp11", "MLP")
    assert Named.load(old).token_strings == ("MLP 3",)


def test_options() -> None:
    check_option("by", "a", ("a", "b"))
    with pytest.raises(InvalidInputError, match="by must be one of 'a', 'b'; got 'c'"):
        check_option("by", "c", ("a", "b"))


def test_means_over_what_counts() -> None:
    values = torch.tensor([[[1.0, torch.nan], [3.0, 8.0]]])
    assert masked_mean(values, (-2, -1)).tolist() == [4.0]
    assert masked_mean(values, (-1,)).tolist() == [[1.0, 5.5]]
    assert masked_mean(values.half(), (-2, -1)).dtype == torch.float16
