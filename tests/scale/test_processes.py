"""Workers on this machine that are stopped, killed and left hanging: the bits of one process."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import measured, same_bits

from headscope import HookedTransformer
from headscope.errors import InvalidInputError, NotFiniteError, ShardError
from headscope.scale import InProcess, Processes, Receipt, ShardJob, merge, processes, status, worker
from headscope.scale.models import ModelCopy

TOKENS = torch.randint(0, 23, (40, 8), generator=torch.Generator().manual_seed(0))
SHARD = 24  # tokens: ten shards of two batches


class Interrupted(Processes):
    """Ctrl-C when the first shard is done."""

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        for receipt in super().map_shards(jobs):
            yield receipt
            self.left = [process._process for process in self._started]
            raise KeyboardInterrupt


class Disturbed(Processes):
    """One worker is killed, another stops without a word, and a third cannot write, while they have shards."""

    done = passes = 0

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        self.passes += 1
        for number, receipt in enumerate(super().map_shards(jobs), start=1):
            yield receipt
            self.done += 1
            ready = [process for process in self._started if process.ready]
            # Early in a pass, so that shards are left for the one that is disturbed.
            if (self.passes, number) == (1, 2):
                os.kill(ready[0].pid, signal.SIGKILL)
            if (self.passes, number) == (1, 5):
                os.kill(ready[-1].pid, signal.SIGSTOP)
            if (self.passes, number) == (2, 1):  # as on a full disk
                resource.prlimit(ready[0].pid, resource.RLIMIT_FSIZE, (0, 0))
                self.without_room = ready[0].pid


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops and kills with signals")
def test_stopped_killed_and_hanging_workers(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "queue.py").write_text("raise SystemExit('a file of the current folder was taken for a module')")
    monkeypatch.chdir(here)
    wanted = measured(model, TOKENS, tmp_path / "one", InProcess(shard_tokens=SHARD))
    run = tmp_path / "run"
    first = Interrupted(1, threads=1, shard_tokens=SHARD)
    with pytest.raises(KeyboardInterrupt):
        measured(model, TOKENS, run, first)
    assert [process.returncode for process in first.left] in ([0], [130]), "it stopped by itself"
    found = status(run)
    assert found.passes[0].name == "means" and 1 <= found.passes[0].done <= 3 and not found.finished
    assert f"means: {found.passes[0].done} of 10 shards done" in str(found) and "left" in str(found)
    engine = Disturbed(2, threads=1, timeout=2.0)
    same_bits(measured(model, TOKENS, run, engine), wanted)
    assert engine._started == [] and engine.done >= 12
    failures = [path.read_text() for path in run.glob("shards/*/*.failure")]
    assert [each for each in failures if f"process {engine.without_room}: " in each and "could not be written" in each]
    assert "entropy: 10 of 10 shards done, merged\nThe result is there." in str(status(run))
    same_bits(merge(run, loaded=model, progress=False), wanted)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in the place of the worker's Python."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(path))

    return put


def test_a_shard_that_always_fails_is_named(
    model: HookedTransformer, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    run = tmp_path / "run"
    stand_in("echo no such module >&2; exit 3")
    message = r"shard \d of 'means' failed 3 times, last in process \d+ .*exit code 3: no such module"
    with pytest.raises(ShardError, match=message):
        measured(model, TOKENS, run, Processes(2, shard_tokens=SHARD, retries=2))
    stand_in("""read job; echo '{"ready": true}'; echo '{"error": "out of memory", "kind": "MemoryError"}'; read job""")
    with pytest.raises(ShardError, match=r"shard 0 of 'means' failed 1 times, .*: out of memory\. The other shards"):
        measured(model, TOKENS, run, Processes(1, retries=0))
    assert "0 of 10 shards done" in str(status(run)) and "shard 0 failed: process" in str(status(run))
    same_bits(
        measured(model, TOKENS, run, InProcess()),
        measured(model, TOKENS, tmp_path / "one", InProcess(shard_tokens=SHARD)),
    )


@pytest.mark.parametrize("devices", [["cuda:0", "cuda:1"], ["cuda:0", "cuda:0", "cuda:1"]])
def test_a_worker_in_the_place_of_another_takes_its_device(monkeypatch: pytest.MonkeyPatch, devices: list[str]) -> None:
    class Started:
        def __init__(self, arguments: Sequence[str], *_: Any) -> None:
            self.device, self.slot = arguments[2], _[-1]

        def wait(self, seconds: float) -> None: ...

    monkeypatch.setattr(processes, "_Process", Started)
    n_workers = 2 * len(devices)
    engine = Processes(n_workers, devices=devices)
    engine._arguments = "run", "model", devices
    running: dict[Any, Any] = {}
    for _ in range(n_workers):
        running[engine._free(running)] = None
    assert [each.device for each in engine._started] == devices * 2
    for each in list(engine._started):
        engine._let_go(each)
        assert engine._free(running).device == each.device
        running[engine._started[-1]] = None
    assert sorted(each.device for each in engine._started) == sorted(devices * 2)


def test_half_a_reply_is_the_end_of_a_worker(
    model: HookedTransformer, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in("""read job; printf '{"error": "half'; echo no more room >&2; exit 1""")
    with pytest.raises(ShardError, match=r"shard 0 of 'means' failed 1 times, last in process \d+"):
        measured(model, TOKENS, tmp_path / "run", Processes(1, shard_tokens=SHARD, retries=0))
    stand_in("read job; echo no JSON; exec sleep 60")
    with pytest.raises(ShardError, match=r"it ended with signal SIGKILL"):
        measured(model, TOKENS, tmp_path / "run", Processes(1, retries=0))


def test_a_worker_stops_where_interrupts_were_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(worker, "_serve", serve)
    output, before = os.dup(1), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stopped:
            worker._main([])
        assert stopped.value.code == 130
    finally:
        signal.signal(signal.SIGINT, before)
        os.dup2(output, 1)
        os.close(output)


def test_what_a_worker_refuses_is_refused_here(
    model: HookedTransformer, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in("""read job; echo '{"error": "the logits hold NaN", "kind": "NotFiniteError"}'; read job""")
    with pytest.raises(NotFiniteError, match="the logits hold NaN"):
        measured(model, TOKENS, tmp_path / "run", Processes(1, shard_tokens=SHARD))


def test_bad_numbers_and_hooks(model: HookedTransformer, tmp_path: Path) -> None:
    for options in ({"workers": 0}, {"threads": 0}, {"retries": -1}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(options))} must be at least"):
            Processes(**options)
    with pytest.raises(InvalidInputError, match="is in the memory of this process"):
        measured(model, TOKENS, "memory://run", Processes(1))  # type: ignore[arg-type]
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: value)]):
        with pytest.raises(InvalidInputError, match=r"a hook on blocks.0.hook_resid_pre"):
            measured(model, TOKENS, tmp_path / "run", Processes(1))


@pytest.mark.skipif(sys.platform == "win32", reason="locks as Unix has them")
def test_a_driver_that_is_killed(model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers stop, its copy of the model is removed by the next driver, and its shards are gone on with."""
    copies, run = tmp_path / "copies", tmp_path / "run"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    paths = {"TMPDIR": str(copies), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    driver = subprocess.run([sys.executable, "-c", KILLED, str(run)], env={**os.environ, **paths}, capture_output=True)
    assert driver.returncode == -signal.SIGKILL, driver.stderr.decode()
    (worker,) = map(int, driver.stdout.split())
    (left,) = copies.iterdir()
    assert 1 <= status(run).passes[0].done < 10
    ours = ModelCopy(model)
    assert not left.exists() and HookedTransformer.from_pretrained(ours.path).cfg.n_layers == 2
    other = ModelCopy(model)
    assert ours.path.exists(), "it is in use"
    ours.remove()
    other.remove()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(HookedTransformer, "save_pretrained", full_disk)
        ModelCopy(model)
    assert list(copies.iterdir()) == []
    wanted = measured(model, TOKENS, tmp_path / "one", InProcess(shard_tokens=SHARD))
    same_bits(measured(model, TOKENS, run, InProcess()), wanted)
    deadline = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def full_disk(*_: Any) -> Path:
    raise OSError("the disk is full")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


# A driver that dies when a shard is done.
KILLED = """
import os, signal, sys
from streams import make_model, measured
from headscope.ops.devices import budget
from headscope.scale import Processes
from test_processes import SHARD, TOKENS

class Dies(Processes):
    def map_shards(self, jobs):
        for receipt in super().map_shards(jobs):
            print(self._started[0].pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

with budget(batch_tokens=16):
    measured(make_model(), TOKENS, sys.argv[1], Dies(1, threads=1, shard_tokens=SHARD))
"""
