"""Writing a tree: the JSON files that HeadVis and Neuronpedia read, and beside each a script for a page on a disk.

A page opened from a disk may not fetch JSON, but it may load scripts. So `heads/L0H1.json` has a twin `heads/L0H1.js`,
which hands the same JSON to the page.

Each file appears whole or not at all, `config.json` last: a tree without one is not whole.
"""

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headscope.analysis.storage.places import writing
from headscope.errors import InvalidInputError

__all__ = ["BUNDLE", "FORMAT_VERSION", "TreeWriter", "head_file", "put", "rounded"]

FORMAT_VERSION = 1
BUNDLE = Path(__file__).parent.parent / "web" / "dist"
_DIGITS = 6
_PLACES = ("query", "key", "ov_source", "promoted", "suppressed")  # that a token stands in
# The names that a tree has in its folder, and those that an exploration under way, or HeadVis, has there.
_NAMES = frozenset(
    [
        *(f"{name}.{kind}" for name in ("config", "scatter_data", "search") for kind in ("json", "js")),
        *(
            "index.html",
            "assets",
            "heads",
            "server_config.json",
            "attributions",
            "means.safetensors",
            "measured",
            "umap",
        ),
    ]
)
_PARTIAL = re.compile(r"\.(.+)\.partial")  # what `put` leaves if it is killed
_SEARCHED = 30  # tokens of each head in each place


def head_file(layer: int, head: int) -> str:
    """Return the name of a head's file, without its ending: `heads/L3H1`."""
    return f"heads/L{layer}H{head}"


def rounded(value: int | float | None, digits: int = _DIGITS) -> float | None:
    """Return a number with few significant digits, as files have it; `None` for one that is not finite.

    Example:
        >>> rounded(1 / 3), rounded(math.nan), rounded(20.0)
        (0.333333, None, 20.0)
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def put(path: Path, content: bytes) -> None:
    """Write a file of a tree, which appears whole or not at all.

    Raises:
        StorageError: If it cannot be written.
    """
    with writing(path):
        # Not flushed one by one, as `write_bytes` does: the files of a thousand heads would take minutes.
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        partial.replace(path)


class TreeWriter:
    """Writes a tree into a folder, one head at a time.

    Args:
        out: The folder; made if it does not exist. Files of an earlier tree in it are replaced.

    Raises:
        InvalidInputError: If `out` is a file, or below one.
        StorageError: If it cannot be written.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.check(self.out)
        with writing(self.out):
            (self.out / "heads").mkdir(parents=True, exist_ok=True)
            # Not whole again until it is finished.
            for name in ("config.json", "config.js"):
                (self.out / name).unlink(missing_ok=True)
            for folder in (self.out, self.out / "heads", self.out / "attributions"):
                for path in folder.glob(".*.partial"):
                    path.unlink()
        self._search = _Search()
        self._written: set[str] = set()

    @staticmethod
    def check(out: Path) -> None:
        """Refuse a folder that holds anything but a tree, whole or not.

        Raises:
            InvalidInputError: If there is something else in it, or it is a file, or below one.
        """
        above = next(path for path in (out, *out.absolute().parents) if path.exists())
        if not above.is_dir():
            raise InvalidInputError(f"{str(above)!r} is a file; the explorer needs a folder to write to (--out).")
        found = [path.name for path in out.iterdir()] if out.is_dir() else []
        others = sorted(name for name in found if _whole(name) not in _NAMES)
        if others:
            raise InvalidInputError(
                f"{str(out)!r} holds {others[0]!r}, which is no file of an explorer. Give an empty folder, or one that "
                "does not exist yet (--out)."
            )

    def head(self, record: Mapping[str, Any]) -> None:
        """Write a head's file, and note its tokens for the search."""
        name = head_file(record["layer"], record["head"])
        self._write(name, record)
        self._written.add(name)
        self._search.add(record)

    def finish(self, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what is about all heads, and the page; remove the files of heads that an earlier tree had."""
        for path in (self.out / "heads").iterdir():
            if path.suffix in (".json", ".js") and f"heads/{path.stem}" not in self._written:
                path.unlink()
        self._write("scatter_data", rows)
        self._write("search", self._search.packed())
        self._bytes("server_config.json", b"{}")
        (self.out / "attributions").mkdir(exist_ok=True)
        self._bytes("attributions/manifest.json", b"{}")
        self._copy_page()
        self._write("config", {"format_version": FORMAT_VERSION, **config})

    def _copy_page(self) -> None:
        assets = self.out / "assets"
        if assets.is_dir():
            shutil.rmtree(assets)
        for path in sorted(BUNDLE.rglob("*")):
            if path.is_file():
                name = path.relative_to(BUNDLE)
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                self._bytes(name.as_posix(), path.read_bytes())

    def _write(self, name: str, content: Any) -> None:
        """Write content as JSON, and as a script that hands it to the page under its name."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        # JavaScript reads these two as ends of lines, older engines within strings too.
        called = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        # Of this one key an object's literal makes its prototype, unless it is computed. No text within a string looks
        # like it, whose quotes are escaped.
        called = re.sub(r'(?<!\\)"__proto__":', '["__proto__"]:', called)
        self._bytes(f"{name}.js", _encoded(f"headscope.receive({json.dumps(name)},{called});\n"))
        self._bytes(f"{name}.json", _encoded(text))

    def _bytes(self, name: str, content: bytes) -> None:
        put(self.out / name, content)


def _whole(name: str) -> str:
    """The name that a file has once it is whole."""
    partial = _PARTIAL.fullmatch(name)
    return name if partial is None else partial[1]


def _encoded(text: str) -> bytes:
    """UTF-8; half of a surrogate pair can be in no file."""
    return text.encode("utf-8", "replace")


class _Search:
    """The tokens of all heads, and where each stands in them, packed in columns."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._columns: dict[str, list[Any]] = {name: [] for name in ("token", "layer", "head", "where", "weight")}

    def add(self, record: Mapping[str, Any]) -> None:
        """Note the tokens of a head, those of most weight in each place."""
        sources = record.get("ov_table") or ()
        lists: dict[str, Iterable[tuple[str, float | None]]] = {
            "query": ((each["token"], each["weight"]) for each in record.get("top_query_tokens") or ()),
            "key": ((each["token"], each["weight"]) for each in record.get("top_key_tokens") or ()),
            "ov_source": ((each["token"], each["share"]) for each in sources),
            **{
                # A list: a generator would read `name` only after the loop is over.
                name: [(each["token"], each["logit"]) for source in sources for each in source[name]]
                for name in ("promoted", "suppressed")
            },
        }
        for where, found in lists.items():
            best: dict[str, float] = {}
            for token, weight in found:
                if weight is not None and abs(weight) > abs(best.get(token, 0.0)):
                    best[token] = weight
            for token in sorted(best, key=lambda each: (-abs(best[each]), each))[:_SEARCHED]:
                number = self._numbers.setdefault(token, len(self._numbers))
                entry = (number, record["layer"], record["head"], _PLACES.index(where), rounded(best[token], 3))
                for column, value in zip(self._columns.values(), entry, strict=True):
                    column.append(value)

    def packed(self) -> dict[str, Any]:
        """Return the tokens, the names of places, and a column for each part of an entry."""
        return {"tokens": list(self._numbers), "places": list(_PLACES), **self._columns}
