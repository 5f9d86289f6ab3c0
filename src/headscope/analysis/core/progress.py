"""Progress bars: one is shown at a time, and what runs within a step of it moves it.

An analysis opens a bar for its steps (batches, patches, heads). Where a step opens a bar of its own (the runs of one
batch, the tiles of a vocabulary), no second line appears: the outer bar moves by the share of its step that is done.
So a bar never stands still for a whole batch, and `watching` lets one bar stand for many analyses.

Steps need not cost the same: a bar's total and its steps are in any unit of work, and the time left follows from it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from headscope.ops.kernels.compiling import told_of_compiling

__all__ = ["Bar", "duration", "each_step", "hiding", "is_shown", "mark_safe", "progress_bar", "say", "watching"]

T = TypeVar("T")
Amount = int | float

_TIMED = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
_COUNTED = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} {elapsed}, {remaining} left, {rate_fmt}{postfix}"
)


class Bar:
    """Work that is done in steps.

    Args:
        total: All of it, in any unit; `None` where nobody knows.
        name: The name of the work.
        moved: Called with the bar whenever it moves.

    Attributes:
        done: The steps that are finished.
        step: The size of the step under way, which bars opened within it share.
        outer: The bar within whose step this one is open.
        follows: The name of the bars within its steps that move it, where those of other names are small beside them;
            `None` for all.
        safe: How much is on disk, and so outlives this process; `None` where nothing is kept.
    """

    def __init__(self, total: Amount | None, name: str, moved: Callable[["Bar"], None] = lambda _: None) -> None:
        self._total, self.name = total, name
        self.done: Amount = 0
        self.step: Amount = 1
        self.outer: Bar | None = None
        self.follows: str | None = None
        self.safe: Amount | None = None
        self._within: Amount = 0
        self._moved = moved

    @property
    def total(self) -> Amount | None:
        """All of the work; it may become known on the way."""
        return self._total

    @total.setter
    def total(self, total: Amount | None) -> None:
        self._total = total
        self._moved(self)

    @property
    def position(self) -> Amount:
        """All that is done, with what is done of the step under way."""
        position = self.done + self._within
        return position if self.total is None else min(position, self.total)

    @property
    def share(self) -> Amount:
        """The share of the work that is done; 0 where nobody knows how much there is."""
        return self.position / self.total if self.total else 0.0

    def update(self, step: Amount = 1) -> None:
        """Note that a step is finished."""
        self.done += step
        self._within = 0
        self._moved(self)

    def moved_within(self, inner: "Bar") -> None:
        """Move by what is done of the step under way; never back, where a step opens several bars one by one."""
        if self.follows in (None, inner.name):
            self._within = max(self._within, self.step * inner.share)
            if inner.safe is not None and inner.total:
                self.safe = max(self.safe or 0, self.done + self.step * inner.safe / inner.total)
            self._moved(self)

    def mark_safe(self, amount: Amount) -> None:
        """Note how much is on disk."""
        self.safe = amount
        self._moved(self)

    def __str__(self) -> str:
        """Return the words beside the bar: how much of the work is safe on disk."""
        if self.safe is None:
            return ""
        return f"safe: {100 * self.safe / self.total:.0f}%" if self.total else f"safe: {self.safe:,.0f}"


# The bar whose step is under way.
_open: ContextVar[Bar | None] = ContextVar("open progress bar", default=None)


@contextmanager
def progress_bar(
    total: Amount | None, name: str, *, shown: bool = True, unit: str = "", done: Amount = 0
) -> Iterator[Bar]:
    """Open a bar: on the terminal, or within the step under way of a bar that is open already.

    Args:
        total: All of the work, in any unit; `None` where nobody knows.
        name: Shown beside the bar.
        shown: `False` leaves the terminal and the outer bar alone.
        unit: The unit of the numbers to show beside the bar; without one only the time is shown.
        done: Work that was done before, which the time left is not judged by.

    Example:
        >>> with progress_bar(3, "layers", shown=False) as bar:
        ...     bar.update(2)
        ...     print(f"{bar.share:.2f}")
        0.67
    """
    outer = _open.get()
    if not shown:
        bar = Bar(total, name)
        bar.done = done
        yield bar
    elif outer is not None:
        bar = Bar(total, name, outer.moved_within)
        bar.done = done
        with _opened(bar, outer):
            yield bar
    else:
        line = {"desc": name, "unit": unit or "it", "smoothing": 0.05, "leave": False, "dynamic_ncols": True}
        with (
            tqdm(total=total, initial=done, bar_format=_line(total, unit), **line) as terminal,
            nullcontext() if terminal.disable else told_of_compiling(_tell),
        ):
            words = ""

            def show(bar: Bar) -> None:
                nonlocal words
                terminal.total, terminal.bar_format = bar.total, _line(bar.total, unit)
                terminal.update(bar.position - terminal.n)
                if str(bar) != words:
                    words = str(bar)
                    terminal.set_postfix_str(words)

            bar = Bar(total, name, show)
            bar.done = done
            with _opened(bar, None):
                yield bar


_told = False


def _tell() -> None:
    """Say, once, why a bar stands still."""
    global _told
    if not _told:
        _told = True
        say("compiling headscope's loops for this processor: some ten seconds, the first time only")


def _line(total: Amount | None, unit: str) -> str | None:
    return None if total is None else _COUNTED if unit else _TIMED


def is_shown() -> bool:
    """Return True if a bar is open that one opened now would move."""
    return _open.get() is not None


def mark_safe(amount: Amount) -> None:
    """Note how much of the work of the bar that is open is on disk; nothing where none is."""
    bar = _open.get()
    if bar is not None:
        bar.mark_safe(amount)


def say(line: str) -> None:
    """Print a line above the bars that are shown."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def watching(bar: Bar) -> Iterator[None]:
    """Let everything that opens bars move this one, and show nothing itself."""
    with _opened(bar, _open.get()):
        yield


def hiding(hidden: bool) -> dict[str, bool]:
    """Return the options of a plain tqdm bar that hide it, or none: `disable=False` would override TQDM_DISABLE=1.

    Example:
        >>> hiding(hidden=True), hiding(hidden=False)
        ({'disable': True}, {})
    """
    return {"disable": True} if hidden else {}


def each_step(items: Iterable[T], name: str, *, shown: bool = True) -> Iterator[T]:
    """Go through items that cost about the same, with a bar.

    Example:
        >>> [head for head in each_step(["0.0", "0.1"], "heads", shown=False)]
        ['0.0', '0.1']
    """
    with progress_bar(len(items) if isinstance(items, Sized) else None, name, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()


def duration(seconds: float) -> str:
    """Return a length of time, as exact as an estimate is.

    Example:
        >>> [duration(seconds) for seconds in (0.2, 17.0, 130.0, 4000.0, 9000.0)]
        ['1 s', '20 s', '2 min', '1.1 h', '2.5 h']
    """
    if seconds < 9.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 90:
        return f"{round(seconds, -1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3570 else f"{seconds / 3600:.1f} h"


@contextmanager
def _opened(bar: Bar, outer: Bar | None) -> Iterator[None]:
    """Let bars that are opened be within this one."""
    bar.outer = outer
    _open.set(bar)
    try:
        yield
    finally:
        # A bar opened in a generator whose consumer failed is closed late, when others may be open: it leaves them.
        inner = _open.get()
        while inner is not None and inner is not bar:
            inner = inner.outer
        if inner is bar:
            _open.set(outer)
