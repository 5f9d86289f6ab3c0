"""The explorer's files: written as the schema says, read with what is missing shown, and safe to load as scripts."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headscope.errors import CheckpointError, InvalidInputError, StorageError
from headscope.explorer import read_tree
from headscope.explorer.tree.measures import MEASURES, described
from headscope.explorer.tree.writing import TreeWriter, head_file, rounded

SCHEMA = json.loads((Path(__file__).parents[3] / "src/headscope/explorer/tree/schema.json").read_text(encoding="utf-8"))
HOSTILE = '</script><img src=x onerror=alert(1)>\u2028\u2029"\\\n'


def check(definition: str, content: Any) -> None:
    """Refuse content that is not as the schema says; and a schema that is none."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(content, {**SCHEMA, "$ref": f"#/$defs/{definition}"})


def record(layer: int, head: int) -> dict[str, Any]:
    tokens = [{"token": HOSTILE, "weight": 0.5}, {"token": " the", "weight": 0.25}]
    written = [{"token": " a", "logit": 1.5}]
    return {
        "layer": layer,
        "head": head,
        "sequences": [
            {
                "sequence_id": 7,
                "interval": 10,
                "rank": "top",
                "tokens": ["<bos>", HOSTILE],
                "attention_indices": [0, 2, 3],
                "attention_values": [1.0, 0.25, 0.75],
                "seq_len": 2,
                "max_activation": 0.0,
                "output_norm": 2.0,
                "output_norms": [1.0, 2.0],
            }
        ],
        "qk_distance_histogram": {"bin_edges": [0, 1, 2], "bin_values": [0.75, 0.25]},
        "top_query_tokens": tokens,
        "top_key_tokens": tokens,
        "histogram": {"bin_edges": [0.0, 1.0], "bin_values": [3]},
        "statistics": {"n_samples": 3},
        "measures": {"induction_score": {"value": 0.5, "error": 0.125, "count": 8}},
        "kinds": [{"name": "induction", "label": "Induction", "evidence": "0.5", "sure": True}],
        "ov_table": [{"token": HOSTILE, "id": 3, "share": 0.5, "promoted": written, "suppressed": written}],
        "token_pairs": [{"query": HOSTILE, "key": " the", "weight": 0.5}],
        "output_norm_histogram": {"bin_edges": [1.0, 2.0], "bin_values": [4]},
        "neighbors": [{"layer": 1, "head": 0, "similarity": 0.5}],
    }


SHOWN = [measure for measure in MEASURES if measure.name in ("induction_score", "output_norm")]
CONFIG = {
    "generator": "headscope 0",
    "model_name": HOSTILE,
    "n_layers": 2,
    "n_heads": 1,
    "heads": [[0, 0], [1, 0]],
    "n_intervals": 10,
    "metrics": ["induction_score", "output_norm"],
    "measures": [described(measure, 8) for measure in SHOWN],
}
ROWS = [
    {"layer": layer, "head": 0, "induction_score": value, "induction_score_error": 0.125, "kinds": [], "label": None}
    for layer, value in ((0, 0.5), (1, None))
]


def written(folder: Path) -> Path:
    writer = TreeWriter(folder)
    for layer in (0, 1):
        writer.head(record(layer, 0))
    writer.finish(CONFIG, ROWS)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A whole tree of two heads."""
    return written(tmp_path / "tree")


def test_every_file_is_as_the_schema_says(tree: Path) -> None:
    files = {"config": "config", "scatter_data": "scatter_data", "search": "search", head_file(1, 0): "head"}
    for name, definition in files.items():
        content = json.loads((tree / f"{name}.json").read_bytes())
        check(definition, content)
    with pytest.raises(jsonschema.ValidationError):
        check("head", {"measures": {"induction_score": 0.5}})
    assert json.loads((tree / "server_config.json").read_bytes()) == {}
    assert json.loads((tree / "attributions" / "manifest.json").read_bytes()) == {}


def test_each_script_hands_over_its_json_and_nothing_else(tree: Path) -> None:
    scripts = sorted(tree.rglob("*.js"))
    names = [path.relative_to(tree).with_suffix("").as_posix() for path in scripts if "assets" not in path.parts]
    assert names == ["config", "heads/L0H0", "heads/L1H0", "scatter_data", "search"]
    for name in names:
        text = (tree / f"{name}.js").read_text(encoding="utf-8")
        assert "\u2028" not in text and "\u2029" not in text
        handed = re.fullmatch(r"headscope\.receive\((\"[^\"]*\"),(.*)\);\n", text, re.DOTALL)
        assert handed is not None and json.loads(handed[1]) == name
        assert json.loads(handed[2]) == json.loads((tree / f"{name}.json").read_bytes())


def test_a_tree_is_read_as_it_was_written(tree: Path) -> None:
    read = read_tree(tree)
    assert read.heads == ((0, 0), (1, 0)) and read.config["model_name"] == HOSTILE and read.page.parent == tree
    assert read.rows[0]["induction_score"] == 0.5 and read.rows[1]["output_norm"] is None
    head = read.head(1, 0)
    written = record(1, 0)
    assert {name: getattr(head, name) for name in written} == written
    assert head.label == "1.0" and head.missing == ()
    frame = read.to_frame()
    assert list(frame.columns) == ["layer", "head", "induction_score", "induction_score_error"]
    assert frame.induction_score[0] == 0.5 and math.isnan(frame.induction_score[1])


def test_the_search_knows_the_tokens_of_each_place(tree: Path) -> None:
    search = json.loads((tree / "search.json").read_bytes())
    columns = [search[name] for name in ("token", "layer", "head", "where", "weight")]
    entries = {
        (search["tokens"][token], layer, head, search["places"][where]): weight
        for token, layer, head, where, weight in zip(*columns, strict=True)
    }
    expected = {
        (token, layer, 0, where): weight
        for layer in (0, 1)
        for token, where, weight in (
            (HOSTILE, "query", 0.5),
            (" the", "query", 0.25),
            (HOSTILE, "key", 0.5),
            (" the", "key", 0.25),
            (HOSTILE, "ov_source", 0.5),
            (" a", "promoted", 1.5),
            (" a", "suppressed", 1.5),
        )
    }
    assert entries == expected


def test_a_tree_of_others_is_read_with_what_it_lacks_missing(tmp_path: Path) -> None:
    """HeadVis writes no measures of ours, other names, and may leave out anything but the heads."""
    (tmp_path / "heads").mkdir()
    config = {
        "model_name": "theirs",
        "heads": [[0, 1], [2, 0]],
        "metrics": ["previous_token_score", "logit_std"],
        "metric_descriptions": {"previous_token_score": "Mean of the first subdiagonal."},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [{"layer": 2, "head": 0, "previous_token_score": 0.9, "logit_std": 2.0}]
    (tmp_path / "scatter_data.json").write_text(json.dumps(rows))
    sequence = record(2, 0)["sequences"][0]
    ours = ("rank", "output_norm", "output_norms")
    theirs = {name: value for name, value in sequence.items() if name not in ours}
    foreign = {"sequences": [theirs], "histogram": {}, "statistics": {}}
    (tmp_path / "heads" / "L2H0.json").write_text(
        json.dumps({"sequences": [theirs], "histogram": {}, "statistics": {}})
    )
    check("config", config)
    check("scatter_data", rows)
    check("head", foreign)
    read = read_tree(tmp_path)
    assert read.config["n_layers"] == 3 and read.config["n_heads"] == 2 and read.config["n_intervals"] == 10
    assert [measure["name"] for measure in read.config["measures"]] == ["prev_token_score", "logit_std"]
    assert read.config["measures"][0]["description"] == "Mean of the first subdiagonal."
    assert read.rows[0]["prev_token_score"] is None and read.rows[1]["prev_token_score"] == 0.9
    head = read.head(2, 0)
    assert head.sequences == [theirs] and head.histogram is None and head.statistics is None
    assert head.top_query_tokens is head.top_key_tokens is head.token_pairs is head.qk_distance_histogram is None
    assert head.kinds is head.ov_table is head.output_norm_histogram is head.neighbors is None
    assert head.measures == {
        "prev_token_score": {"value": 0.9, "error": None, "count": None},
        "logit_std": {"value": 2.0, "error": None, "count": None},
    }
    assert len(read.head(0, 1).missing) == 12
    assert list(read.to_frame().columns) == ["layer", "head", "prev_token_score", "logit_std"]


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (None, InvalidInputError, "has no config.json"),
        ("{", CheckpointError, "is no JSON"),
        ("[]", CheckpointError, "no JSON object"),
        ('{"format_version": 2, "heads": [[0, 0]]}', InvalidInputError, "reads versions up to 1"),
        ('{"n_layers": 12, "architectures": ["GPT2LMHeadModel"]}', InvalidInputError, "it names no heads"),
        ('{"heads": [[0, -1]]}', InvalidInputError, "it names no heads"),
    ],
)
def test_what_is_no_tree_is_refused(tmp_path: Path, content: str | None, error: type[Exception], says: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=says):
        read_tree(tmp_path)


def test_damaged_files_and_unknown_heads_are_refused(tree: Path) -> None:
    read = read_tree(tree)
    with pytest.raises(InvalidInputError, match=r"head 3\.1 is not among the 2 heads"):
        read.head(3, 1)
    (tree / "heads" / "L0H0.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"L0H0\.json is damaged"):
        read.head(0, 0)
    (tree / "scatter_data.json").write_text('[{"layer": 0}]')
    with pytest.raises(CheckpointError, match="a row has no layer and head"):
        read_tree(tree)
    (tree / "scatter_data.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no JSON list"):
        read_tree(tree)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"metrics": 5}, "metrics should be a list; it is 5"),
        ({"metrics": [["a"]]}, r"an entry of metrics should be text; it is \['a'\]"),
        ({"metric_descriptions": []}, r"metric_descriptions should be an object; it is \[\]"),
        ({"metric_descriptions": {"a": 1}}, "an entry of metric_descriptions should be text; it is 1"),
        ({"pipeline_config": []}, "pipeline_config should be an object"),
        ({"model_name": 5}, "model_name should be text; it is 5"),
        ({"n_layers": "2"}, "n_layers should be a whole number; it is '2'"),
        ({"n_heads": True}, "n_heads should be a whole number; it is True"),
        ({"measures": {}}, "measures should be a list"),
        ({"measures": ["a"]}, "an entry of measures should be an object; it is 'a'"),
        ({"kinds": [{"label": "a"}]}, "an entry of the name in kinds should be text; it is None"),
    ],
)
def test_a_damaged_config_is_refused(tree: Path, changed: dict[str, Any], says: str) -> None:
    (tree / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    with pytest.raises(CheckpointError, match=says):
        read_tree(tree)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"heads": [[0, 0]], "n_layers": ' + "9" * 5000 + "}", '{"a": "\xff"}']
)
def test_what_no_parser_takes_is_refused(tree: Path, text: str) -> None:
    (tree / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: it is no JSON"):
        read_tree(tree)


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("sequences", {"a": 1}, "sequences should be a list"),
        ("sequences", ["a"], "an entry of sequences should be an object; it is 'a'"),
        ("histogram", [1], "histogram should be an object"),
        ("measures", {"induction_score": 0.5}, "an entry of measures should be an object; it is 0.5"),
        ("neighbors", "a" * 1000, "neighbors should be a list; it is 'a{79}\\.\\.\\."),
    ],
)
def test_a_damaged_part_is_refused(tree: Path, part: str, value: Any, says: str) -> None:
    (tree / "heads" / "L0H0.json").write_text(json.dumps({**record(0, 0), part: value}))
    with pytest.raises(CheckpointError, match=says):
        read_tree(tree).head(0, 0)


@pytest.mark.parametrize("value", ["0.5", [0.5], 10**400])
def test_rows_hold_numbers(tree: Path, value: Any) -> None:
    for name in ("induction_score", "induction_score_error"):
        (tree / "scatter_data.json").write_text(json.dumps([{**ROWS[0], name: value}]))
        with pytest.raises(CheckpointError, match=rf"scatter_data\.json is damaged: {name} of head 0\.0 is no number"):
            read_tree(tree)


def test_a_tree_under_way_is_not_whole_and_takes_the_place_of_an_older_one(tree: Path) -> None:
    writer = TreeWriter(tree)
    with pytest.raises(InvalidInputError, match=r"no config\.json"):
        read_tree(tree)
    writer.head(record(0, 0))
    writer.finish({**CONFIG, "heads": [[0, 0]]}, ROWS[:1])
    assert read_tree(tree).heads == ((0, 0),)
    assert sorted(path.name for path in (tree / "heads").iterdir()) == ["L0H0.js", "L0H0.json"]
    files = [path for path in tree.rglob("*") if path.is_file()]
    assert read_tree(tree).size == sum(path.stat().st_size for path in files) > 0


class Killed(BaseException):
    """The end of a process, which tidies nothing up."""


@pytest.mark.parametrize(
    "at", ["heads/L1H0.json", "search.js", "attributions/manifest.json", "index.html", "config.js"]
)
def test_a_writer_killed_at_any_file_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def replace(partial: Path, target: Path) -> None:
        if target == tmp_path / at:
            raise Killed
        partial.rename(target)

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(Path, "replace", replace)
        written(tmp_path)
    assert (tmp_path / at).with_name(f".{Path(at).name}.partial").exists()
    TreeWriter.check(tmp_path)
    written(tmp_path)
    assert read_tree(tmp_path).heads == ((0, 0), (1, 0))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_what_others_left_in_a_folder_is_refused(tmp_path: Path) -> None:
    for name in (".thesis.tex.partial", "thesis.tex", ".partial"):
        (tmp_path / name).write_text("")
        with pytest.raises(InvalidInputError, match=f"holds {re.escape(repr(name))}, which is no file of an explorer"):
            TreeWriter.check(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_no_key_makes_a_prototype(tmp_path: Path) -> None:
    """In an object's literal the key `__proto__` is no key."""
    found = {"__proto__": {"a": 1}, "b": '"__proto__":', '"__proto__': 2, "\\": [{"__proto__": None}]}
    TreeWriter(tmp_path).head({"layer": 0, "head": 0, "found": found})
    read = "globalThis.headscope = { receive: (name, data) => console.log(JSON.stringify(data.found)) };"
    read += "require(process.argv[1])"
    said = subprocess.run(
        ["node", "-e", read, str(tmp_path / "heads" / "L0H0.js")], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(said) == found


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((InvalidInputError, StorageError), match="file"):
        TreeWriter(tmp_path / "file")


def test_measures_say_what_they_are() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names) == 16
    for measure in MEASURES:
        assert measure.label and measure.description.endswith(".") and measure.count_unit
        assert not (measure.diverging and measure.better_log)
        check("measure", described(measure, None))


def test_numbers_are_rounded_and_nan_is_missing() -> None:
    assert rounded(1 / 3) == 0.333333 and rounded(123456.789, 3) == 123000.0
    assert rounded(math.nan) is None and rounded(math.inf) is None and rounded(None) is None
