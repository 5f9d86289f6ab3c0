"""A library in a process of its own that answers questions, JSON lines in and JSON lines out: both ends of that.

A benchmark starts `workers` and asks them; the script that runs in each ends in `serve`. Only the standard library is
imported, for the script runs under the Python of the library's own environment.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = ("RssAnon", "VmRSS")  # without and with mapped files, which the system may take back at any time


@dataclass(frozen=True)
class Side:
    """A library, and the Python that has it; `sources` is the folder of another checkout that it comes from."""

    library: str
    python: str
    sources: str = ""


def process_options(python: str, folder: Path, threads: int) -> dict[str, Any]:
    """How to start a process of some environment's Python."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python == sys.executable and "PYTHONPATH" in os.environ:
        # It may lead to headscope's sources, which are for this environment only.
        paths = os.environ["PYTHONPATH"].split(os.pathsep)
        variables["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths))
    variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)) | {"HF_HUB_OFFLINE": "1"}
    return {"env": variables, "cwd": folder, "text": True, "stdout": subprocess.PIPE}


class Worker:
    """A script's process, alive until the benchmark is done with it."""

    def __init__(self, script: Path, side: Side, folder: Path, threads: int) -> None:
        self._library = side.library
        self._log = tempfile.TemporaryFile("w+")
        command = [side.python, str(script.absolute()), side.library]
        options = process_options(side.python, folder, threads)
        if side.sources:
            options["env"]["PYTHONPATH"] = os.path.abspath(side.sources)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._log, **options)
        self._answer()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def ask_watching(self, every: float, **question: Any) -> tuple[dict[str, Any], dict[str, int]]:
        """Ask, and look at the memory every so many seconds: the answer, and the most there was."""
        peaks, done = self.memory(), threading.Event()

        def watch() -> None:
            while not done.wait(every):
                for name, value in self.memory().items():
                    peaks[name] = max(peaks[name], value)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            answer = self.ask(**question)
        finally:
            done.set()
            watching.join()
        return answer, peaks

    def memory(self) -> dict[str, int]:
        """Bytes that are resident now."""
        with open(f"/proc/{self._process.pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return {name: int(fields[name].split()[0]) * 1024 for name in MEMORY if name in fields}

    def close(self) -> None:
        self._process.communicate()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"the process of {self._library} failed:\n{self._log.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def workers(script: Path, sides: list[Side], folder: Path, threads: int) -> Iterator[list[Worker]]:
    """Processes that have imported their libraries."""
    started: list[Worker] = []
    try:
        for side in sides:
            started.append(Worker(script, side, folder, threads))
        yield started
    finally:
        for worker in started:
            worker.close()


def serve(prepare: Callable[[str], Callable[..., dict[str, Any]]]) -> None:
    """Prepare the library that the command line names, and answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    answer = prepare(sys.argv[1])
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)
