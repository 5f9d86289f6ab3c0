"""Parts of a page's measurements, one after another: neither a stop nor a failure of one loses the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from headscope.errors import HeadscopeError, StorageError
from headscope.report.kept import Kept
from headscope.report.plan import Following

__all__ = ["Outcome", "Stopped", "attempt", "run_parts"]

T = TypeVar("T")

# What an analysis may fail by, a defect of its own included. A disk that fails ends them all.
_FAILURES = (
    HeadscopeError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


class Stopped(KeyboardInterrupt):
    """A Ctrl-C, with what is kept of a report and how to go on, in words."""


@dataclass(frozen=True)
class Outcome:
    """The results of parts, and the parts without one.

    Attributes:
        results: The result of each that was done; `None` where there is nothing to measure.
        failed: The error of each that failed.
        left: Those that a stop left undone, the one it fell into first.
    """

    results: Mapping[str, object]
    failed: Mapping[str, Exception]
    left: tuple[str, ...] = ()


def attempt(work: Callable[[], T]) -> T | Exception:
    """Return what some work returns, or the error it fails by.

    Raises:
        StorageError: If the disk fails.
    """
    try:
        return work()
    except StorageError:
        raise
    except _FAILURES as error:
        return error


def run_parts(
    parts: Mapping[str, Callable[[], object]], results: dict[str, Any], following: Following, kept: Kept
) -> Outcome:
    """Do the parts in their order, until they are done or a Ctrl-C stops them.

    Args:
        parts: What to do, by name.
        results: Where their results go, for later parts to read.
        following: The bar over all of them.
        kept: Where it is noted that a part is done.

    Raises:
        HeadscopeError: The first failure, or whatever other error it is, if no part could be done.
        StorageError: If the disk fails.
    """
    failed: dict[str, Exception] = {}
    stopped = False
    try:
        for name, work in parts.items():
            with following.part(name):
                result = attempt(work)
            if isinstance(result, Exception):
                failed[name] = result
            else:
                results[name] = result
                kept.note_done(name)
    except KeyboardInterrupt:
        stopped = True
    if failed and not stopped and all(result is None for result in results.values()):
        raise next(iter(failed.values()))
    left = tuple(name for name in parts if name not in results and name not in failed)
    return Outcome(results, failed, left)
