"""Word that a loop is being compiled, which takes seconds the first time a machine needs it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["compiling", "told_of_compiling"]

_listening: list[Callable[[], None]] = []


@contextmanager
def told_of_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Call a function before each compilation, for the length of a `with` block; not for what is read from disk."""
    _listening.append(tell)
    try:
        yield
    finally:
        _listening.remove(tell)


def compiling() -> None:
    """Tell those that listen that a compilation begins, in the thread that needs it."""
    for tell in list(_listening):
        tell()
