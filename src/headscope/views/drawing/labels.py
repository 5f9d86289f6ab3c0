"""Labels beside the points of a scatter plot, each on a side where it touches no other label and no labeled point."""

from collections.abc import Sequence

__all__ = ["label_places"]

# Pixels: a plot on a narrow screen, where room is least; points are apart at least as far on a wider one.
_WIDTH, _HEIGHT = 260.0, 230.0
_LETTER, _LINE, _MARKER = 7.5, 15.0, 8.0
_PLACES = ("top center", "bottom center", "middle right", "middle left", "top right", "top left", "bottom right",
           "bottom left")  # fmt: skip
_ACROSS = {"left": -1, "center": 0, "right": 1}
_UP = {"bottom": -1, "middle": 0, "top": 1}
_Box = tuple[float, float, float, float]


def label_places(x: Sequence[float], y: Sequence[float], labels: Sequence[str]) -> list[str | None]:
    """Choose the side of its point on which each label stands, for plotly's `textposition`.

    Labels are placed in the order of points; one for which every side is taken gets `None`, and so does an empty one.

    Args:
        x, y: Where all points are; they span the plot.
        labels: The label of each point, or an empty string.

    Example:
        >>> label_places([0.0, 1.0, 1.01], [0.0, 1.0, 1.0], ["a", "b", "c"])
        ['top center', 'top center', 'bottom center']
    """
    across, up = _scaled(x, _WIDTH), _scaled(y, _HEIGHT)
    points = {at: _box(across[at], up[at], _MARKER, _MARKER) for at, label in enumerate(labels) if label}
    taken: list[_Box] = []
    places: list[str | None] = [None] * len(labels)
    for at, point in points.items():
        others = [box for other, box in points.items() if other != at and box != point]
        for place in _PLACES:
            box = _label_box(across[at], up[at], labels[at], place)
            if not any(_touch(box, other) for other in (*taken, *others)):
                taken.append(box)
                places[at] = place
                break
    return places


def _scaled(values: Sequence[float], length: float) -> list[float]:
    """Pixels from the lowest value."""
    low, high = min(values), max(values)
    return [length * (value - low) / ((high - low) or 1.0) for value in values]


def _label_box(x: float, y: float, label: str, place: str) -> _Box:
    up, across = place.split()
    width = _LETTER * len(label)
    return _box(
        x + _ACROSS[across] * (width + _MARKER) / 2, y + _UP[up] * (_LINE + _MARKER) / 2, width, _LINE
    )  # a corner label stands off its point both ways


def _box(x: float, y: float, width: float, height: float) -> _Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _touch(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
