"""Reading a tree: what this package wrote, or HeadVis and Neuronpedia did; what is missing is `None`."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import CheckpointError, InvalidInputError
from headscope.explorer.tree.measures import ALIASES
from headscope.explorer.tree.writing import FORMAT_VERSION, head_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Exploration", "HeadRecord", "read_tree"]

# What a head's file holds: lists of objects, and objects.
_PARTS: dict[str, type] = {
    "sequences": list,
    "qk_distance_histogram": dict,
    "top_query_tokens": list,
    "top_key_tokens": list,
    "histogram": dict,
    "statistics": dict,
    "measures": dict,
    "kinds": list,
    "ov_table": list,
    "token_pairs": list,
    "output_norm_histogram": dict,
    "neighbors": list,
}
_WORDS = {dict: "an object", list: "a list", str: "text", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class HeadRecord:
    """All that a tree holds of a head; `docs/explorer.md` and the schema say what each part is.

    Attributes:
        layer: Its layer.
        head: Its number in the layer.
        missing: The parts that the tree does not have.
    """

    layer: int
    head: int
    sequences: Sequence[Mapping[str, Any]] | None
    qk_distance_histogram: Mapping[str, Any] | None
    top_query_tokens: Sequence[Mapping[str, Any]] | None
    top_key_tokens: Sequence[Mapping[str, Any]] | None
    histogram: Mapping[str, Any] | None
    statistics: Mapping[str, Any] | None
    measures: Mapping[str, Mapping[str, Any]] | None
    kinds: Sequence[Mapping[str, Any]] | None
    ov_table: Sequence[Mapping[str, Any]] | None
    token_pairs: Sequence[Mapping[str, Any]] | None
    output_norm_histogram: Mapping[str, Any] | None
    neighbors: Sequence[Mapping[str, Any]] | None

    @property
    def label(self) -> str:
        """Its name, such as `3.1`."""
        return f"{self.layer}.{self.head}"

    @property
    def missing(self) -> tuple[str, ...]:
        """The parts that the tree does not have."""
        return tuple(part for part in _PARTS if getattr(self, part) is None)


@dataclass(frozen=True)
class Exploration:
    """A tree in a folder: the measures of every head of a model, and each head's own file when it is asked for.

    Attributes:
        directory: The folder.
        config: What is about all heads: see the schema.
        rows: For each head its layer, its number and its measures, by name; `None` where one is missing.
    """

    directory: Path
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def page(self) -> Path:
        """The page to open in a browser."""
        return self.directory / "index.html"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    @cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Layer and number of each head."""
        return tuple((layer, head) for layer, head in self.config["heads"])

    def head(self, layer: int, head: int) -> HeadRecord:
        """Read what is known of a head; a file that is missing leaves all its parts `None`.

        Raises:
            InvalidInputError: If there is no such head.
            CheckpointError: If its file is damaged.
        """
        if (layer, head) not in self.heads:
            raise InvalidInputError(
                f"head {layer}.{head} is not among the {len(self.heads)} heads of {str(self.directory)!r}; "
                f"its layers are 0 to {self.config['n_layers'] - 1}, its heads 0 to {self.config['n_heads'] - 1}."
            )
        path = self.directory / f"{head_file(layer, head)}.json"
        found = _mapping(path) if path.exists() else {}
        parts = {part: _part(path, part, found.get(part)) for part in _PARTS}
        if parts["measures"] is None:
            row = next((row for row in self.rows if (row["layer"], row["head"]) == (layer, head)), {})
            parts["measures"] = {
                name: {"value": row.get(name), "error": None, "count": None}
                for name in self.config["metrics"]
                if row.get(name) is not None
            } or None
        return HeadRecord(layer, head, **parts)

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with a row for each head and a column for each measure, NaN where one is missing."""
        import pandas as pd

        names = [name for name in self.config["metrics"] if any(row.get(name) is not None for row in self.rows)]
        columns = ["layer", "head", *(each for name in names for each in (name, f"{name}_error"))]
        present = [name for name in columns if any(name in row for row in self.rows)]
        return pd.DataFrame(
            {
                name: [row[name] if name in ("layer", "head") else _number(row.get(name)) for row in self.rows]
                for name in present
            }
        )


def read_tree(directory: str | Path) -> Exploration:
    """Read the head explorer's files: this package's, or those of HeadVis and Neuronpedia.

    Args:
        directory: The folder that holds `config.json`.

    Raises:
        InvalidInputError: If the folder holds no such tree, or one of a newer format.
        CheckpointError: If a file is damaged.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     config = {"heads": [[0, 0], [0, 1]], "metrics": ["induction_score"]}
        ...     rows = [{"layer": 0, "head": 1, "induction_score": 0.5}]
        ...     for name, content in (("config", config), ("scatter_data", rows)):
        ...         _ = (Path(folder) / f"{name}.json").write_text(json.dumps(content))
        ...     tree = read_tree(folder)
        ...     tree.rows[0]["induction_score"], tree.rows[1]["induction_score"], tree.head(0, 1).sequences
        (None, 0.5, None)
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise InvalidInputError(
            f"{str(directory)!r} holds no head explorer: it has no config.json. Make one: headscope explore "
            f"MODEL --out {directory}."
        )
    config = _config(path)
    path = directory / "scatter_data.json"
    rows = _list(path) if path.exists() else []
    return Exploration(directory, config, _rows(path, rows, config))


def _config(path: Path) -> dict[str, Any]:
    """The config, with what is missing filled in as far as the heads tell."""
    config = dict(_mapping(path))
    version = config.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InvalidInputError(
            f"{path} is of format version {version!r}, and this package reads versions up to {FORMAT_VERSION}. "
            "Install a newer headscope."
        )
    heads = config.get("heads")
    if not isinstance(heads, list) or not heads or not all(_is_head(each) for each in heads):
        raise InvalidInputError(
            f"{path} is not the config of a head explorer: it names no heads, as [[layer, head], ...]. "
            "A folder with a checkpoint holds a config.json of another kind."
        )
    defaults: dict[str, Any] = {
        "model_name": "",
        "n_layers": 1 + max(layer for layer, _ in heads),
        "n_heads": 1 + max(head for _, head in heads),
        "n_intervals": 10,
        "metrics": [],
        "metric_descriptions": {},
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [],
        "custom_tables": [],
        "statistics_display": {},
        "pipeline_config": {},
        "kinds": [],
    }
    config = {**defaults, **{name: value for name, value in config.items() if value is not None}}
    for name, default in defaults.items():
        _check(path, name, config[name], type(default))
    for name in ("measures", "kinds"):
        _check_all(path, name, _check(path, name, config.get(name, []), list), dict)
        _check_all(path, f"the name in {name}", [each.get("name") for each in config.get(name, [])], str)
    _check_all(path, "metrics", config["metrics"], str)
    _check_all(path, "metric_descriptions", config["metric_descriptions"].values(), str)
    config["metrics"] = [ALIASES.get(name, name) for name in config["metrics"]]
    texts = {ALIASES.get(name, name): text for name, text in config["metric_descriptions"].items()}
    config["metric_descriptions"] = texts
    if "measures" not in config:
        config["measures"] = [_foreign_measure(name, texts.get(name, "")) for name in config["metrics"]]
    return config


def _rows(path: Path, found: Sequence[Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """A row for each head, with a number or `None` for each measure."""
    by_head: dict[tuple[int, int], Mapping[str, Any]] = {}
    for row in found:
        if not isinstance(row, dict) or not _is_head([row.get("layer"), row.get("head")]):
            raise CheckpointError(f"{path} is damaged: a row has no layer and head: {_short(row)}.")
        by_head[row["layer"], row["head"]] = {ALIASES.get(str(name), str(name)): value for name, value in row.items()}
    rows = []
    for layer, head in config["heads"]:
        row = by_head.get((layer, head), {})
        for name in (each for metric in config["metrics"] for each in (metric, f"{metric}_error")):
            if not _is_number(row.get(name)):
                raise CheckpointError(
                    f"{path} is damaged: {name} of head {layer}.{head} is no number: {_short(row[name])}."
                )
        empty = {"layer": layer, "head": head, **dict.fromkeys(config["metrics"]), "kinds": [], "label": None}
        rows.append({**empty, **row})
    return tuple(rows)


def _foreign_measure(name: str, description: str) -> dict[str, Any]:
    """A measure of which a tree of others says no more than its name."""
    return {
        "name": name,
        "label": name.replace("_", " "),
        "unit": "",
        "description": description,
        "group": "attention",
        "diverging": False,
        "range": None,
        "better_log": False,
        "count": None,
        "count_unit": "",
    }


def _is_head(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value)
    )


def _part(path: Path, name: str, found: Any) -> Any:
    """A part of a head's file; `None` for one that says nothing, as others write it."""
    if found is None or found == {}:
        return None
    _check(path, name, found, _PARTS[name])
    if _PARTS[name] is list:
        _check_all(path, name, found, dict)
    elif name == "measures":
        _check_all(path, name, found.values(), dict)
    return found


def _check(path: Path, name: str, value: Any, kind: type) -> Any:
    """Return a value that is of a kind.

    Raises:
        CheckpointError: If it is not.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"{path} is damaged: {name} should be {_WORDS[kind]}; it is {_short(value)}.")
    return value


def _check_all(path: Path, name: str, values: Iterable[Any], kind: type) -> None:
    for value in values:
        _check(path, f"an entry of {name}", value, kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _is_number(value: Any) -> bool:
    """True for a number that a table can hold, and for a missing one."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _mapping(path: Path) -> Mapping[str, Any]:
    content = _content(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object.")
    return content


def _list(path: Path) -> Sequence[Any]:
    content = _content(path)
    if not isinstance(content, list):
        raise CheckpointError(f"{path} is damaged: it holds no JSON list.")
    return content


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of too many digits, too deep
        raise CheckpointError(
            f"{path} is damaged: it is no JSON ({error}). Copy the tree again, or make it anew."
        ) from None
