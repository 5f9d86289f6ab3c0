"""`Queue`: one worker that runs the model, and those who wait for it.

Work is done in a thread of its own, one piece at a time, in the order in which it came. A piece is told in between
(before every layer) when nobody waits for it any longer: its client went away, a newer request of the same page took
its place, or its time is over. What a piece of work raises goes to who asked for it, and to nobody else.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from headscope.errors import HeadscopeError

__all__ = ["CancelledError", "Queue", "QueueFullError", "TimedOutError"]

T = TypeVar("T")


class CancelledError(HeadscopeError):
    """Work that nobody waits for any longer."""


class TimedOutError(HeadscopeError):
    """Work that took too long, waiting included."""


class QueueFullError(HeadscopeError):
    """Work that was not taken in, as too much is waiting."""


class _Ticket:
    """A piece of work, and whether somebody still waits for it.

    Attributes:
        given_up: Is done when nobody does, for who waits in the event loop.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deadline = time.monotonic() + seconds
        self._given_up = threading.Event()

    @property
    def left(self) -> float:
        """The seconds that it has left."""
        return max(0.0, self._deadline - time.monotonic())

    def give_up(self) -> None:
        """Say that nobody waits any longer; in the event loop."""
        self._given_up.set()
        if not self.given_up.done():
            self.given_up.set_result(None)

    @property
    def too_late(self) -> TimedOutError:
        """The error of work whose time is over."""
        return TimedOutError(f"the request took more than {self.seconds:g} s, waiting included.")

    def check(self) -> None:
        """Raise if nobody waits any longer.

        Raises:
            CancelledError: If it was given up.
            TimedOutError: If its time is over.
        """
        if self._given_up.is_set():
            raise CancelledError("the request was cancelled, or a newer one of the same page took its place.")
        if not self.left:
            raise self.too_late


class Queue:
    """Work for one thread.

    Args:
        waiting: The most pieces of work, that under way included.
        seconds: How long each may take, waiting included.
    """

    def __init__(self, *, waiting: int = 16, seconds: float = 30.0) -> None:
        self.waiting, self.seconds = waiting, seconds
        self._tickets: set[_Ticket] = set()
        self._latest: dict[object, _Ticket] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="headscope-live")

    def __len__(self) -> int:
        return len(self._tickets)

    async def run(self, work: Callable[[Callable[[], None]], T], *, instead_of: object = None) -> T:
        """Do a piece of work and return what it returns; a coroutine that is cancelled gives it up.

        Args:
            work: Gets a function to call in between, which raises when nobody waits any longer.
            instead_of: Earlier work under the same name is given up.

        Raises:
            QueueFullError: If too much is waiting.
            CancelledError: If later work under the same name came.
            TimedOutError: If it took too long.
        """
        if instead_of is not None and (before := self._latest.get(instead_of)) is not None:
            before.give_up()
            self._tickets.discard(before)
        if len(self._tickets) >= self.waiting:
            raise QueueFullError(f"{len(self._tickets)} requests are waiting already.")
        ticket = _Ticket(self.seconds)
        self._tickets.add(ticket)
        if instead_of is not None:
            self._latest[instead_of] = ticket
        done = asyncio.wrap_future(self._worker.submit(_do, ticket, work))
        try:
            either: set[asyncio.Future[Any]] = {done, ticket.given_up}
            await asyncio.wait(either, timeout=ticket.left, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                ticket.check()
                raise ticket.too_late
            return done.result()
        finally:
            ticket.give_up()
            done.cancel()
            self._tickets.discard(ticket)
            if self._latest.get(instead_of) is ticket:
                del self._latest[instead_of]

    def close(self) -> None:
        """Give up all work."""
        for ticket in self._tickets:
            ticket.give_up()
        self._worker.shutdown(wait=True, cancel_futures=True)


def _do(ticket: _Ticket, work: Callable[[Callable[[], None]], T]) -> T:
    ticket.check()
    return work(ticket.check)
