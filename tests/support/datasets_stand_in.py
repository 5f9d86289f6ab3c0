"""A stand-in for the optional package `datasets`, as far as headscope uses it."""

import types
from collections.abc import Callable
from typing import Any

Column = list[Any]


class StandInDataset:
    """Columns in memory."""

    def __init__(self, columns: dict[str, Column], format: str | None = None) -> None:
        self.columns, self.format = columns, format

    @property
    def column_names(self) -> list[str] | None:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}

    def select_columns(self, column_names: list[str]) -> "StandInDataset":
        return type(self)({name: self.columns[name] for name in column_names})

    def with_format(self, type: str | None) -> "StandInDataset":
        return self.__class__(self.columns, type)

    def map(
        self,
        function: Callable[[dict[str, Column]], dict[str, Column]],
        *,
        batched: bool,
        batch_size: int,
        remove_columns: list[str],
        features: dict[str, Any],
    ) -> "StandInDataset":
        assert batched and remove_columns == list(self.columns)
        made: dict[str, Column] = {name: [] for name in features}
        n_rows = len(next(iter(self.columns.values())))
        for start in range(0, n_rows, batch_size):
            batch = {name: column[start : start + batch_size] for name, column in self.columns.items()}
            for name, values in function(batch).items():
                made[name] += values
        return type(self)(made)


class StandInStream(StandInDataset):
    """One of which neither the columns nor the length are known."""

    column_names = None  # type: ignore[assignment]
    __len__ = None  # type: ignore[assignment]


def datasets_module(**functions: Callable[..., Any]) -> types.ModuleType:
    """A module to put in the place of `datasets`."""
    module = types.ModuleType("datasets")
    for name, function in {"Features": dict, "Sequence": lambda of: [of], "Value": str, **functions}.items():
        setattr(module, name, function)
    return module
