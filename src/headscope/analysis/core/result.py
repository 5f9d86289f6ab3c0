"""Results of analyses: frozen arrays with named axes, what they were measured on, tables, and files.

A result's class declares its arrays, with their axes and units, once. Selection by label, rankings, tables and printing
follow from that here, the same for all. A result is saved as one safetensors file: its tensors, and the rest as JSON in
the file's header. Nothing in such a file is ever executed.
"""

import dataclasses
import html
import json
import textwrap
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from headscope.analysis.core.components import canonical_label, component_label, component_of
from headscope.analysis.core.named_arrays import WITHIN_LAYER, Array, Label, NamedArray, cell_label
from headscope.analysis.core.ranking import HeadScore, Ranking
from headscope.errors import CheckpointError, InvalidInputError, MissingDependencyError, check_at_least
from headscope.model.checkpoints.files import TensorFiles, read_metadata, write_tensors
from headscope.ops.arrays import to_numpy

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Array", "HeadScore", "Ranking", "Result", "RunInfo", "check_option", "component_label"]

_WIDTH = 78  # columns of what says how something was run, within a terminal of 80
_HTML_ROWS = 10
_HTML_WHOLE = 25  # rows of a table that is short enough to be shown whole


@dataclass(frozen=True)
class RunInfo:
    """Model, data and options of a run.

    Attributes:
        model: The model's name.
        processing: The weight processing its weights went through; zero-baseline numbers depend on it.
        data: What it ran on, in the caller's words.
        n_sequences: Rows of tokens.
        n_positions: Positions that count in the means.
        options: The options of the analysis.
    """

    model: str
    processing: tuple[str, ...]
    data: str
    n_sequences: int
    n_positions: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = f"{_counted(self.n_sequences, 'sequence')}, {_counted(self.n_positions, 'position')}"
        how = [f"weight processing: {', '.join(self.processing) or 'none'}"]
        if self.options:
            how.append(", ".join(f"{name}={value}" for name, value in self.options.items()))
        wrapped = (textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in how)
        return "\n".join([f"{self.model} on {self.data}: {counts}", *wrapped])


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def check_option(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse an option that is not one of `allowed`."""
    if value not in allowed:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


@dataclass(frozen=True, repr=False)
class Result:
    """Base of the results: a frozen dataclass of tensors, labels and a `RunInfo`.

    A subclass, `@dataclass(frozen=True, repr=False)`, declares its arrays, the labels of their axes, and what of it
    stands in tables and rankings:

    Attributes:
        kind: What a file says it holds.
        arrays: The arrays, by name.
        coords: For each axis with labels, the attribute that holds them; other axes are numbered from 0.
        rows: The axes that the rows of `to_frame()` run over; default: those of the first column's array.
        columns: The arrays that are its columns; default: all of `ranked`.
        ranked: The arrays that `str` ranks; the first is the one that `top` and `sel` take by default.
        sampled: Axes to take means over in tables and rankings: positions and prompts.
        fixed: Axes that a ranking takes one entry of, unless told which, and the number or the label of that entry.
        either_way: Rank by magnitude, whatever the sign, unless told otherwise.
        ends: What `str` calls the two ends of a ranking.
        info: What was run on what.

    Example:
        >>> @dataclass(frozen=True, repr=False)
        ... class Norms(Result):
        ...     arrays: ClassVar = {"norms": Array("layer head", unit="nats"), "errors": Array("layer head")}
        ...     ranked: ClassVar = ("norms",)
        ...     columns: ClassVar = ("norms", "errors")
        ...     norms: Tensor
        ...     errors: Tensor
        >>> norms = Norms(RunInfo("tiny", (), "a text", 1, 9), torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.25]]))
        >>> norms.to_frame()
           layer  head label  norms  errors
        0      0     0   0.0    1.0    0.50
        1      0     1   0.1    3.0    0.25
        >>> norms.top(1)
                 norms (nats)
        0.1      +3.0000
        >>> norms.sel(head="0.1")
        tensor(3.)
    """

    kind: ClassVar[str] = "result"
    arrays: ClassVar[Mapping[str, Array]] = {}
    coords: ClassVar[Mapping[str, str]] = {}
    rows: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()
    ranked: ClassVar[tuple[str, ...]] = ()
    sampled: ClassVar[tuple[str, ...]] = ("batch", "pos", "prompt")
    fixed: ClassVar[Mapping[str, int | str]] = {}
    either_way: ClassVar[bool] = False
    ends: ClassVar[tuple[str, str]] = ("highest", "lowest")
    info: RunInfo

    @property
    def answer_sign(self) -> int:
        """The sign of ranked values that work for the answer: -1 for changes that breaking something makes."""
        return 1

    # Arrays by name

    def declared(self) -> Mapping[str, Array]:
        """The arrays of this result, measured or not."""
        return self.arrays

    def measured(self) -> tuple[str, ...]:
        """The names of the arrays that were measured."""
        return tuple(name for name in self.declared() if self._values(name) is not None)

    def array(self, name: str) -> NamedArray:
        """An array with the names of its axes and their labels.

        Raises:
            InvalidInputError: If there is no such array, or it was not measured.
        """
        check_option("by", name, tuple(self.declared()))
        spec, values = self.declared()[name], self._values(name)
        if values is None:
            raise InvalidInputError(spec.absent or f"{name} was not measured.", code="HS-RESULT-01")
        sizes = dict(zip(spec.axes.split()[: values.ndim], values.shape, strict=True))
        return NamedArray(values, tuple(sizes), {axis: self.axis_labels(axis, size) for axis, size in sizes.items()})

    def axis_labels(self, axis: str, size: int) -> Sequence[Label]:
        """The labels of an axis."""
        if axis not in self.coords:
            return range(size)
        labels = getattr(self, self.coords[axis])
        labels = labels.tolist() if isinstance(labels, Tensor) else labels
        if len(labels) != size:
            raise InvalidInputError(f"{self.coords[axis]} has {len(labels)} labels for {size} entries.")
        return labels

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        """The columns that describe an axis in tables."""
        return {axis: labels}

    def cell_label(self, name: str, cell: Mapping[str, Label]) -> str:
        """The label of an entry of an array."""
        return cell_label(cell)

    def _values(self, name: str) -> Tensor | None:
        spec = self.declared()[name]
        values = getattr(self, name) if spec.of is None else spec.of(self)
        return None if values is None else torch.as_tensor(values)

    def _column(self, name: str) -> str:
        column = self.declared()[name].column
        return name if column is None else column

    def sel(self, *, by: str | None = None, **labels: Any) -> Tensor:
        """Select by label along any axis, of one array.

        Args:
            by: The array; default: the first that has these axes.
            labels: For an axis, one label or a list of them: `head="10.7"`, `component="mlp3"`, `layer=3`,
                `effect="direct"`. A label takes its axis away, a list keeps it.

        Raises:
            InvalidInputError: For an array, an axis or a label that does not exist, or that was not measured.
        """
        by, labels = self._asked(by, labels)
        if by is None:
            names = [*self.ranked, *(name for name in self.measured() if name not in self.ranked)]
            arrays = {name: self.array(name) for name in names if name in self.measured()}
            by = next((name for name, each in arrays.items() if all(map(each.has, labels))), None)
            if by is None:
                shown = "; ".join(f"{name} has {', '.join(each.axes) or 'none'}" for name, each in arrays.items())
                raise InvalidInputError(f"no array has the axes {', '.join(labels)}: {shown}.", code="HS-RESULT-02")
        return self.array(by).sel(**labels).values

    # Rankings

    def top(
        self, k: int = 10, *, by: str | None = None, largest: bool | None = None, mlps: bool = False, **labels: Any
    ) -> Ranking:
        """Rank the entries of an array, by their means over positions and prompts; NaN is left out.

        Args:
            k: How many.
            by: The array; default: the result's first.
            largest: The largest, or the smallest (`False`); default: the largest, or for patches those of the largest
                magnitude.
            mlps: Rank MLPs and mixers among the heads.
            labels: Rank only entries with these labels: `effect="direct"`, `layer=3`.

        Raises:
            InvalidInputError: If `k` is below 1; for an array or a label that does not exist or was not measured.
        """
        by, labels = self._asked(by, labels)
        names = self._default() if by is None else (by,)
        check_at_least(1, k=k)
        arrays = [self._reduced(name, mlps, labels) for name in names]
        values = torch.cat([array.values.flatten() for array in arrays])
        known = (~values.isnan()).nonzero()[:, 0]
        spec = self.declared()[names[0]]
        if spec.absent and values.numel() and not known.numel():
            raise InvalidInputError(spec.absent)
        sizes = values.abs() if self.either_way and largest is None else values
        order = known[sizes[known].argsort(descending=largest is not False, stable=True)][:k].tolist()
        starts = [0, *accumulate(array.values.numel() for array in arrays)]
        beside = [self._beside(name, mlps, labels) for name in names]
        scores = []
        for index in order:
            at = bisect_right(starts, index) - 1
            scores.append(self._score(names[at], arrays[at], index - starts[at], beside[at]))
        name, unit = self._heading(names[0], labels)
        return Ranking(scores, name=name, unit=unit, style=spec.style)

    def findings(self) -> tuple[str, ...]:
        """Return the labels of what was found: the first ten of the ranking, where nothing better is known."""
        return tuple(score.label for score in self.top())

    def _asked(self, by: str | None, labels: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The array and the labels that a caller means; some results take other names for them."""
        return by, labels

    def _heading(self, name: str, labels: Mapping[str, Any]) -> tuple[str, str]:
        """The name and the unit over a ranking."""
        spec = self.declared()[name]
        return spec.title or name, spec.unit

    def _position_means(self, **changes: Any) -> Self:
        """The same with means over the positions that count, and these changes; itself if it holds means already."""
        names = [name for name in self.measured() if self.declared()[name].of is None]
        arrays = {name: self.array(name) for name in names}
        means = {name: array.mean(("batch", "pos")).values for name, array in arrays.items() if "pos" in array.axes}
        return dataclasses.replace(self, **{**means, **changes}) if means else self

    def _default(self) -> tuple[str, ...]:
        """The arrays that are ranked unless told otherwise."""
        return self.ranked[:1] or tuple(self.declared())[:1]

    def _reduced(self, name: str, mlps: bool, labels: Mapping[str, Any]) -> NamedArray:
        """The entries to rank: those with the labels, and of a fixed axis one."""
        array = self.array(name)
        given = {axis: label for axis, label in labels.items() if label is not None}
        held = {axis: at for axis, at in self.fixed.items() if axis in array.axes and axis not in given}
        first = {axis: array.labels[axis][at] if isinstance(at, int) else at for axis, at in held.items()}
        array = array.sel(**first, **given).mean(self.sampled)
        return array if mlps else array.heads_only()

    def _beside(self, name: str, mlps: bool, labels: Mapping[str, Any]) -> dict[str, Tensor]:
        """Standard errors and shares of the entries to rank, as far as there are any with these labels."""
        spec, found = self.declared()[name], {}
        for key, other in (("error", spec.error), ("share", spec.share)):
            if other is not None and self._values(other) is not None and all(map(self.array(other).has, labels)):
                found[key] = self._reduced(other, mlps, labels).values.flatten()
        return found

    def _score(self, name: str, array: NamedArray, index: int, beside: Mapping[str, Tensor]) -> HeadScore:
        spec, value, cell = self.declared()[name], float(array.values.flatten()[index]), array.cell(index)
        row = self._row(name, array, cell)
        label = self.cell_label(name, cell) or name
        component = component_of(label)
        layer, head = (row.get("layer"), row.get("head")) if component is None else (component.layer, component.head)
        others = {key: float(each[index]) for key, each in beside.items()}
        columns = {key: getattr(spec, key) for key in others}
        row |= {key if of is None else self._column(of): others[key] for key, of in columns.items()}
        row[self._column(name)] = value
        is_named = component is None or component.is_mixer
        return HeadScore(layer, head, value, **others, name=label if is_named else "", row=row)

    def _row(self, name: str, array: NamedArray, cell: Mapping[str, Label]) -> dict[str, Any]:
        """The columns of a table that describe an entry."""
        row: dict[str, Any] = {}
        for axis, label in cell.items():
            at = array.labels[axis].index(label)
            row |= {column: values[at] for column, values in self.axis_columns(axis, array.labels[axis]).items()}
        return row

    # Tables

    def to_frame(self, *names: str, means: bool = True) -> "pd.DataFrame":
        """A table with a column for each array and a row for each entry.

        Args:
            names: The arrays; the rows run over the axes of the first. Default: those the result's class names.
            means: Take means over positions and prompts; else each has rows of its own.

        Raises:
            InvalidInputError: For an array that does not exist, or was not measured.
        """
        import pandas as pd

        over = self.sampled if means else ()
        chosen = names or tuple(name for name in self.columns or self.ranked if self._values(name) is not None)
        arrays = {name: self.array(name).mean(over) for name in chosen}
        rows = arrays[chosen[0]].axes if names or not self.rows else self.rows
        labels = {axis: each for array in arrays.values() for axis, each in array.labels.items() if axis in rows}
        sizes = [len(labels[axis]) for axis in rows]
        cells = list(product(*map(range, sizes)))
        columns: dict[str, list[Any]] = {}
        for at, axis in enumerate(rows):
            for column, values in self.axis_columns(axis, labels[axis]).items():
                columns[column] = [values[cell[at]] for cell in cells]
            if axis in WITHIN_LAYER and "layer" in rows:
                pairs = ((labels["layer"][cell[rows.index("layer")]], labels[axis][cell[at]]) for cell in cells)
                columns["label"] = [cell_label({"layer": layer, axis: part}) for layer, part in pairs]
        for name, array in arrays.items():
            columns |= array.columns(rows, sizes, self._column(name))
        return pd.DataFrame(columns)

    def to_xarray(self) -> "xr.Dataset":
        """All arrays, with named axes and labels, as an `xarray.Dataset`.

        Raises:
            MissingDependencyError: If xarray is not installed: `pip install 'headscope[xarray]'`.
        """
        try:
            import xarray as xr
        except ImportError:
            raise MissingDependencyError(
                "to_xarray needs the package xarray. Install it with: pip install 'headscope[xarray]'",
                code="HS-DEPENDENCY-01",
            ) from None

        variables: dict[str, Any] = {}
        coords: dict[str, list[Label]] = {}
        for name in self.measured():
            array, unit = self.array(name), self.declared()[name].unit
            coords |= {axis: list(labels) for axis, labels in array.labels.items()}
            variables[name] = (array.axes, to_numpy(array.values), {"units": unit} if unit else {})
        return xr.Dataset(variables, coords, {"kind": self.kind, "info": str(self.info)})

    # Print

    def _notes(self) -> Iterator[str]:
        """The lines of `str` behind the first: both ends of each ranking."""
        for name in self.ranked:
            if self._values(name) is not None:
                yield self._ends(name)

    def _ends(self, by: str, heading: str = "", **labels: Any) -> str:
        spec = self.declared()[by]
        heading = heading or (spec.title or by) + (f" ({spec.unit})" if spec.unit else "")
        if self.either_way:
            return f"{heading}: {self.top(3, by=by, **labels).line()}"
        highest = self.top(3, by=by, largest=True, **labels)
        if len(highest) == 1:  # both ends of the ranking
            return f"{heading}: {highest.line()}"
        ends = (highest.line(), self.top(3, by=by, largest=False, **labels).line())
        return f"{heading}: " + "; ".join(f"{end} {line}" for end, line in zip(self.ends, ends, strict=True))

    def __repr__(self) -> str:
        ran, *how = str(self.info).splitlines()
        return "\n".join([f"{type(self).__name__}: {ran}", *(f"  {line}" for line in (*how, *self._notes()))])

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        by = self._column(self.ranked[0]) if self.ranked else ""
        if by in frame:
            key = frame[by].abs() if self.either_way else frame[by]
            frame = frame.loc[key.sort_values(ascending=False, kind="stable").index]
        n_shown = len(frame) if len(frame) <= _HTML_WHOLE else _HTML_ROWS
        shown = frame.head(n_shown).to_html(index=False, float_format="%.4f", border=0)
        more = f"<p>{n_shown} of {len(frame):,} rows</p>" if len(frame) > n_shown else ""
        title = f"<p><b>{type(self).__name__}</b>: {html.escape(str(self.info)).replace(chr(10), '<br>')}</p>"
        notes = html.escape("\n".join(self._notes()))
        notes = f'<pre style="white-space: pre-wrap; margin: 0 0 0.5em">{notes}</pre>' if notes else ""
        return f"<div>{title}{notes}{shown}{more}</div>"

    # Files

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file, atomically: the old file stands until the new one is whole."""
        path = Path(path)
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in values.items() if name not in tensors}
        rest["info"] = dataclasses.asdict(self.info)
        write_tensors(path, tensors, {"kind": self.kind, "fields": json.dumps(rest)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing, corrupt, or holds another kind of result.
        """
        metadata = read_metadata(Path(path))
        tensors = {name: tensor.clone() for name, tensor in TensorFiles([Path(path)]).items()}
        if metadata.get("kind") != cls.kind:
            raise CheckpointError(f"{path} holds {metadata.get('kind')!r}, not {cls.kind!r}.", code="HS-CHECKPOINT-14")
        try:
            rest = json.loads(metadata["fields"])
            info = rest.pop("info")
            info["processing"] = tuple(info["processing"])
            labels = {name: _read_labels(name, value) for name, value in rest.items()}
            return cls(info=RunInfo(**info), **labels, **tensors)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a whole {cls.kind!r} result: {error}.", code="HS-CHECKPOINT-14"
            ) from None


_COMPONENT_FIELDS = {"component_labels", "sender_labels", "receiver_labels", "nodes", "left_out"}


def _read_labels(name: str, value: Any) -> Any:
    """JSON's lists as tuples; older files have `MLP 3` for `mlp3`."""
    if not isinstance(value, list):
        return value
    return tuple(canonical_label(each) if name in _COMPONENT_FIELDS and each != "MLP" else each for each in value)
