"""Chunks of rows on several threads, each running its own small operations.

Operations on tiles that fit a core's cache are too small to be split: the threads of one operation would wait for each
other longer than they work, much longer when another process has a core. Here every thread takes whole chunks and runs
them alone. PyTorch releases the interpreter lock inside an operation, so plain threads are enough.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

__all__ = ["RowChunks"]

Buffers = TypeVar("Buffers")
Item = TypeVar("Item")


class _ThreadLocal(threading.local):
    """Buffers of the current thread, in a tuple, since they may be `None` themselves."""

    buffers: tuple[Any] | None = None


class RowChunks(Generic[Buffers]):
    """Runs a function on each chunk of rows, on as many threads as PyTorch itself would use.

    Args:
        n_rows: Number of rows in all.
        chunk: Number of rows to take at a time.
        make_buffers: Makes a thread's own buffers, which it keeps from chunk to chunk.
        device: Device of the rows; several threads are used on the CPU only.

    Example:
        >>> squares = torch.zeros(10)
        >>> def square(rows, _): squares[rows] = torch.arange(10.0)[rows] ** 2
        >>> with RowChunks(10, 4, lambda: None) as chunks:
        ...     chunks.run(square)
        >>> squares
        tensor([ 0.,  1.,  4.,  9., 16., 25., 36., 49., 64., 81.])
    """

    def __init__(
        self,
        n_rows: int,
        chunk: int,
        make_buffers: Callable[[], Buffers],
        device: torch.device | None = None,
    ) -> None:
        self._chunks = [slice(at, min(at + chunk, n_rows)) for at in range(0, n_rows, chunk)]
        self._make_buffers = make_buffers
        self._local = _ThreadLocal()
        on_cpu = device is None or device.type == "cpu"
        self._threads_before = torch.get_num_threads()
        self._n_threads = min(self._threads_before, len(self._chunks)) if on_cpu else 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._n_threads > 1:
            # One thread inside each operation: the parallelism is across chunks.
            self._pool = ThreadPoolExecutor(
                self._n_threads, "headscope-rows", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            # The setting is per thread, but threads started later inherit the last one made: put it back.
            torch.set_num_threads(self._threads_before)

    def run(self, work: Callable[[slice, Buffers], None]) -> None:
        """Call `work(rows, buffers)` for every chunk, and return when all are done. An error in one is raised here."""
        self.each(self._chunks, lambda rows: work(rows, self._buffers()))

    def each(self, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        """Call `work(item)` for each of some items, such as what all chunks share and `run` reads, in the same way."""
        if self._pool is None:
            with torch.no_grad():
                for item in items:
                    work(item)
            return
        # Modes are per thread, and only in inference mode may tensors made in it be written to.
        mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

        def in_mode(item: Item) -> None:
            with mode():
                work(item)

        for future in [self._pool.submit(in_mode, item) for item in items]:
            future.result()

    def _buffers(self) -> Buffers:
        if self._local.buffers is None:
            self._local.buffers = (self._make_buffers(),)
        buffers: Buffers = self._local.buffers[0]
        return buffers
