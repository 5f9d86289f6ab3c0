"""The table family by what was checked, written by a test run: `pytest --families-table docs/models.md ...`.

A cell is filled if that check ran on the family and passed on every row of it. A run with a failure writes nothing.
"""

from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_START, _END = "<!-- families: written by the test run, as said above -->", "<!-- end of families -->"

# Column, the test that fills it, and which of its parameters.
_CHECKS: list[tuple[str, str, dict[str, str]]] = [
    ("logits", "test_logits", {}),
    ("left pad", "test_padded_logits", {"side": "left"}),
    ("right pad", "test_padded_logits", {"side": "right"}),
    ("generation", "test_generation", {}),
    ("bf16", "test_there_and_back_again", {}),
    ("processing", "test_processing", {}),
    ("round trip", "test_there_and_back_again", {}),
    ("entropy", "test_entropy", {}),
    ("decomposition", "test_decomposition_and_patterns", {}),
    ("patterns", "test_decomposition_and_patterns", {}),
    ("ablation", "test_ablation", {}),
    ("attribution", "test_attribution", {}),
    ("patching", "test_activation_patching", {}),
    ("path patching", "test_path_patching", {}),
]
_FILES = {"test_parity.py", "test_families.py", "test_hybrids.py", "test_mixers.py"}
_PROPERTY = "families table"


def family_of(row: str) -> str:
    """The family a row of the table of random models belongs to."""
    return row.split()[0].rstrip(",")


def listed_families(text: str) -> set[str]:
    """The families that a page's table lists."""
    table = text[text.index(_START) : text.index(_END)]
    return {line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| `")}


class FamiliesTable:
    """Records which checks passed on which rows, and writes the table at the end.

    Args:
        path: The page; the table in it is replaced.
        families: Names of all families, and of each the models to name.
    """

    def __init__(self, path: Path, families: dict[str, tuple[str, ...]]) -> None:
        self.path, self.families = path, families
        self.outcomes: dict[tuple[str, str], list[bool]] = defaultdict(list)
        self.rows: dict[str, set[str]] = defaultdict(set)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        params: dict[str, Any] = item.callspec.params if "callspec" in vars(item) else {}
        row = params.get("row")
        if item.path.name in _FILES and isinstance(row, str):
            name = getattr(item, "originalname", item.name)
            # A property travels with the report, from another process too.
            columns = [
                column
                for column, test, wanted in _CHECKS
                if test == name and all(params.get(key) == value for key, value in wanted.items())
            ]
            item.user_properties.append((_PROPERTY, (row, columns)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == _PROPERTY:
                row, columns = value
                self.rows[family_of(row)].add(row)
                for column in columns:
                    self.outcomes[family_of(row), column].append(report.passed)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        yield
        if exitstatus == 0:
            self.write()

    def write(self) -> None:
        """Replace the table in the page."""
        text = self.path.read_text(encoding="utf-8")
        before, after = text.split(_START)[0], text.split(_END)[1]
        self.path.write_text(f"{before}{_START}\n\n{self.table()}\n\n{_END}{after}", encoding="utf-8")

    def table(self) -> str:
        """The table in Markdown."""
        columns = [column for column, _, _ in _CHECKS]
        lines = ["| family | for example | variants | " + " | ".join(columns) + " |"]
        lines.append("|---|---|---:|" + ":---:|" * len(columns))
        for family, examples in sorted(self.families.items()):
            cells = [self._cell(family, column) for column in columns]
            lines.append(f"| `{family}` | {examples[0]} | {len(self.rows[family])} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _cell(self, family: str, column: str) -> str:
        found = self.outcomes[family, column]
        return "✓" if found and all(found) else ""
