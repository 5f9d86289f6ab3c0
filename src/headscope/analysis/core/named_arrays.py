"""Arrays with named axes and labels: what a result declares of its tensors, and selection, means and tables of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor

from headscope.analysis.core.components import canonical_label, component_label
from headscope.errors import InvalidInputError
from headscope.ops.devices import wide

__all__ = ["WITHIN_LAYER", "Array", "Label", "NamedArray", "cell_label", "masked_mean"]

Label = int | float | str

WITHIN_LAYER = ("head", "component", "part", "key_value_head")  # with `layer`, these name a head or an MLP
_COMPONENTS = (*WITHIN_LAYER, "sender")
_WHOLE = {"mixer", "MLP"}  # components of a layer that are no heads


@dataclass(frozen=True)
class Array:
    """An array of a result, declared once by the result's class.

    Attributes:
        axes: The names of its axes, as in `"layer component batch pos"`. A tensor with fewer axes lacks the last ones:
            it holds means over them.
        unit: The unit of its numbers.
        title: Its name in rankings and summaries; default: the array's name.
        column: Its column in tables; default: the array's name. Empty: the labels of the spread axis alone.
        error: The array that holds its standard errors.
        share: The array that holds the same numbers as shares of a whole.
        style: The format of its numbers in print.
        absent: What to say where it was not measured.
        of: How to derive it from the result; default: the attribute of its name.
    """

    axes: str
    unit: str = ""
    title: str | None = None
    column: str | None = None
    error: str | None = None
    share: str | None = None
    style: str = "+.4f"
    absent: str = ""
    of: Callable[[Any], Tensor | None] | None = None


@dataclass(frozen=True)
class NamedArray:
    """A tensor, the names of its axes, and the labels along each.

    Example:
        >>> scores = NamedArray(torch.arange(4).view(2, 2), ("layer", "head"), {"layer": (0, 1), "head": (0, 1)})
        >>> scores.sel(head="1.0").values
        tensor(2)
        >>> scores.sel(layer=1).values
        tensor([2, 3])
    """

    values: Tensor
    axes: tuple[str, ...]
    labels: Mapping[str, Sequence[Label]]

    @property
    def within_layer(self) -> str | None:
        """The axis that, after `layer`, says which head or MLP."""
        return next((axis for axis in WITHIN_LAYER if "layer" in self.axes and axis in self.axes), None)

    def has(self, axis: str) -> bool:
        """Test for an axis; `head` and `component` stand for whichever axis names components."""
        return axis in self.axes or (axis in _COMPONENTS and any(each in self.axes for each in _COMPONENTS))

    def sel(self, **wanted: Any) -> Self:
        """Select by label: one entry of an axis, which then is gone, or a list of entries. `None` leaves an axis as is.

        Raises:
            InvalidInputError: For an axis or a label that does not exist.
        """
        found = self
        for axis, label in wanted.items():
            if label is None:
                continue
            if axis in _COMPONENTS and axis not in found.axes:
                axis = next((each for each in _COMPONENTS if each in found.axes), axis)
            if axis == found.within_layer and _names_layers(label):
                found, axis = found.merged(), "component"
            found = found._take(axis, label)
        return found

    def _take(self, axis: str, label: Any) -> Self:
        if axis not in self.axes:
            raise InvalidInputError(
                f"there is no axis {axis!r} here; the axes are {', '.join(self.axes) or 'none'}.", code="HS-RESULT-02"
            )
        several = isinstance(label, list)
        names = [canonical_label(each) for each in self.labels[axis]]
        places = []
        for each in label if several else [label]:
            if names.count(canonical_label(each)) != 1:
                shown = ", ".join(map(repr, self.labels[axis][:8])) + (", ..." if len(names) > 8 else "")
                raise InvalidInputError(
                    f"{axis} must be one of {shown or 'nothing'}; got {each!r}.", code="HS-RESULT-02"
                )
            places.append(names.index(canonical_label(each)))
        at = self.axes.index(axis)
        if several:
            taken = self.values.index_select(at, torch.tensor(places, device=self.values.device))
            return type(self)(taken, self.axes, {**self.labels, axis: [self.labels[axis][place] for place in places]})
        axes = self.axes[:at] + self.axes[at + 1 :]
        return type(self)(self.values.select(at, places[0]), axes, {each: self.labels[each] for each in axes})

    def merged(self) -> Self:
        """Make one axis `component`, with labels such as `10.7` and `mlp3`, of `layer` and the axis after it."""
        within = self.within_layer
        if within is None:
            return self
        at = self.axes.index("layer")
        names = tuple(_within(layer, part) for layer in self.labels["layer"] for part in self.labels[within])
        axes = (*self.axes[:at], "component", *self.axes[at + 2 :])
        labels = {axis: names if axis == "component" else self.labels[axis] for axis in axes}
        return type(self)(self.values.flatten(at, at + 1), axes, labels)

    def heads_only(self) -> Self:
        """Leave the mixer and the MLP out of each layer's components."""
        within = self.within_layer
        if within is None or not _WHOLE & set(self.labels[within]):
            return self
        return self._take(within, [label for label in self.labels[within] if label not in _WHOLE])

    def mean(self, over: Iterable[str]) -> Self:
        """The means over some axes; NaN does not count.

        Raises:
            InvalidInputError: For whole numbers, such as token ids.
        """
        dims = tuple(self.axes.index(axis) for axis in over if axis in self.axes)
        if not dims:
            return self
        if not self.values.is_floating_point():
            gone = ", ".join(self.axes[at] for at in dims)
            raise InvalidInputError(
                f"whole numbers, such as token ids, have no mean over {gone}. Select single entries, or ask for "
                "to_frame(means=False)."
            )
        axes = tuple(axis for at, axis in enumerate(self.axes) if at not in dims)
        return type(self)(masked_mean(self.values, dims), axes, {axis: self.labels[axis] for axis in axes})

    def cell(self, index: int) -> dict[str, Label]:
        """The label on each axis of an entry of `values.flatten()`."""
        places = torch.unravel_index(torch.tensor(index), self.values.shape)
        return {axis: self.labels[axis][int(at)] for axis, at in zip(self.axes, places, strict=True)}

    def columns(self, rows: Sequence[str], sizes: Sequence[int], name: str) -> dict[str, list[Any]]:
        """Columns of a table whose rows run over the axes `rows`; further axes are spread into columns of their own."""
        spread = [axis for axis in self.axes if axis not in rows]
        order = [self.axes.index(axis) for axis in (*spread, *(axis for axis in rows if axis in self.axes))]
        values = self.values.permute(order)
        for at, axis in enumerate(rows):
            values = values if axis in self.axes else values.unsqueeze(len(spread) + at)
        values = values.expand((*values.shape[: len(spread)], *sizes))
        if not spread:
            return {name: values.flatten().tolist()}
        cells = product(*(self.labels[axis] for axis in spread))
        return {
            f"{name} {cell_label(dict(zip(spread, cell, strict=True)))}".strip(): column.flatten().tolist()
            for cell, column in zip(cells, values.flatten(0, len(spread) - 1), strict=True)
        }


def cell_label(cell: Mapping[str, Label]) -> str:
    """Name an entry by its labels: `10.7`, `mlp3`, `3_mid`, or `10.7, step 100`.

    Example:
        >>> cell_label({"step": 100, "layer": 10, "head": 7}), cell_label({"state": "3_mid"})
        ('10.7, step 100', '3_mid')
    """
    within = next((axis for axis in WITHIN_LAYER if "layer" in cell and axis in cell), None)
    names = [_within(cell["layer"], cell[within])] if within else []
    others = [(axis, label) for axis, label in cell.items() if not within or axis not in ("layer", within)]
    return ", ".join([*names, *(label if isinstance(label, str) else f"{axis} {label}" for axis, label in others)])


def _within(layer: Label, part: Label) -> str:
    return component_label(int(layer), None if part in _WHOLE else int(part), is_mixer=part == "mixer")


def masked_mean(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean over the entries that are not NaN (positions that do not count are NaN), in float64."""
    return torch.nanmean(wide(values), dim=dims).to(values)


def _names_layers(label: Any) -> bool:
    """Tell `"10.7"`, `"mlp3"` and `(10, 7)`, which name a layer as well, from `7`."""
    first = label[0] if isinstance(label, list) and label else label
    name = canonical_label(first)
    return "." in name or (name.startswith(("mlp", "mixer")) and name[-1].isdecimal())
