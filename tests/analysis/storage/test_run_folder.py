"""Runs that are stopped and go on: the same bits, whatever stopped them, and no other run's folder is touched."""

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

import headscope
from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.core import progress
from headscope.analysis.core.batches import Batch, iterate_batches
from headscope.analysis.core.top_places import TopPlaces
from headscope.analysis.lens.entropy import EntropyAccumulator, EntropyOptions, EntropyResult, measure_entropy
from headscope.analysis.storage import manifest as run_manifest
from headscope.analysis.storage import run_folder
from headscope.analysis.storage.accumulator import Accumulator, join_rows
from headscope.analysis.storage.passes import Passes
from headscope.analysis.storage.run_folder import Stage, accumulate
from headscope.errors import CheckpointError, HeadscopeError, InvalidInputError, StorageError
from headscope.model.checkpoints import files as tensor_file
from headscope.scale.models import check_without_hooks

NAMES = ("resid", "diff", "marginal")
KINDS = [("zero", "mean"), ("mean", "mean"), ("zero", "none"), ("mean", "none")]


def make_model(**fields: Any) -> HookedTransformer:
    shape = {"n_layers": 2, "d_model": 8, "n_ctx": 12, "d_head": 4, "d_vocab": 23, "act_fn": "gelu_new"}
    return HookedTransformer(HookedTransformerConfig(**{**shape, "seed": 0, "device": "cpu", **fields}))


def make_data() -> list[Tensor]:
    """Seven batches of different lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 23, (2, length), generator=generator) for length in (7, 5, 9, 4, 8, 8, 6)]


def measure(model: HookedTransformer, data: Any, out: Path | None = None, **options: Any) -> EntropyResult:
    return measure_entropy(model, data, **{"out": out, "flush_every": 2, "progress": False, "describe": "d", **options})


def same_bits(found: EntropyResult, wanted: EntropyResult) -> None:
    assert found.info == wanted.info
    assert (found.state_labels, found.component_labels) == (wanted.state_labels, wanted.component_labels)
    for name in NAMES:
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert torch.equal(ours.contiguous().view(torch.int32), theirs.contiguous().view(torch.int32))


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return make_model()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a loss of power needs files forced to the disk, which is slow; and no write comes by the time of day."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(run_folder, "_FIRST", run_folder._SECONDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


class Sums(Accumulator[int]):
    """An accumulator that adds tokens up, and keeps each per position."""

    def __init__(self, model: HookedTransformer) -> None:
        super().__init__(model, {})
        self.n_updates = 0

    def update(self, batch: Batch) -> None:
        self.n_updates += 1
        counts = batch.tokens.flatten().bincount(minlength=23)
        largest = TopPlaces.of(batch.tokens.double(), 5, first_row=self.n_before)
        self.add(batch, batch.tokens.numel(), {"total": counts}, {"twice": 2.0 * batch.tokens}, {"largest": largest})

    def summary(self, rows: dict[str, Tensor]) -> int:
        return int(self.sums["total"].sum())


def batches_of(model: HookedTransformer, data: Any = None) -> Iterator[Batch]:
    return iterate_batches(model, make_data() if data is None else data, progress=False)


def check_sums(sums: Sums, stage: Stage) -> None:
    data = make_data()
    assert sums.n_positions == stage.done.n_tokens == sum(batch.numel() for batch in data)
    lines = [line for batch in data for line in batch.tolist()]
    places = [(float(token), row, pos) for row, line in enumerate(lines) for pos, token in enumerate(line)]
    assert sums.summaries["largest"].rows() == tuple(sorted(places, key=lambda place: (-place[0], *place[1:]))[:5])
    assert torch.equal(sums.sums["total"], sum(batch.flatten().bincount(minlength=23) for batch in data))
    wanted = torch.cat(
        [torch.nn.functional.pad(2.0 * batch, (0, 9 - batch.shape[1]), value=torch.nan) for batch in data]
    )
    torch.testing.assert_close(stage.rows()["twice"], wanted, rtol=0, atol=0, equal_nan=True)


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


# Stopped and resumed


@pytest.mark.parametrize("flush_every", [1, 2, 3, 7, 100])
def test_any_accumulator_goes_on_where_it_was(model: HookedTransformer, folder: Path, flush_every: int) -> None:
    new_folder(folder)
    for n_batches in range(8):
        place = new_folder(folder / str(n_batches))
        stage = Stage(place, "sums")

        def stopping(n_batches: int = n_batches) -> Iterator[Batch]:
            for number, batch in enumerate(batches_of(model)):
                if number == n_batches:
                    raise OSError("the data went away")
                yield batch

        flushed = 0
        if n_batches < 7:
            with pytest.raises(OSError, match="went away"):
                accumulate(stopping(), Sums(model), stage=stage, flush_every=flush_every)
            flushed = n_batches - n_batches % flush_every
            assert stage.done.n_batches == flushed
        stage = Stage(place, "sums")
        sums = accumulate(batches_of(model), Sums(model), stage=stage, flush_every=flush_every)
        assert sums.n_updates == 7 - flushed, "nothing is measured twice"
        check_sums(sums, Stage(place, "sums"))


def test_ctrl_c_keeps_every_whole_batch(model: HookedTransformer, folder: Path) -> None:
    class Interrupted(Sums):
        def update(self, batch: Batch) -> None:
            super().update(batch)
            if self.n_updates == 4:
                raise KeyboardInterrupt  # halfway through: the sums have moved on, the batch is not done

    stage = Stage(new_folder(folder), "sums")
    with pytest.raises(KeyboardInterrupt):
        accumulate(batches_of(model), Interrupted(model), stage=stage, flush_every=100)
    assert stage.done.n_batches == 3 and not stage.done.finished
    stage = Stage(folder, "sums")
    sums = accumulate(batches_of(model), Sums(model), stage=stage)
    assert sums.n_updates == 4
    check_sums(sums, stage)


class Clock:
    """A clock that batches and writes move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batch: float, write: float = 0.0) -> None:
        self.now, self.batch, self.write, self.writes = 1000.0, batch, write, list[float]()
        self.lives = float("inf")
        monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(run_folder, "_FIRST", 1.0)
        flush = Stage.flush

        def flushing(stage: Stage, *args: Any) -> None:
            self.passes(self.write)
            self.writes.append(self.now)
            flush(stage, *args)

        monkeypatch.setattr(Stage, "flush", flushing)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.lives:
            raise Killed

    def gaps(self) -> list[float]:
        return [end - start for start, end in zip([1000.0, *self.writes], self.writes, strict=False)]


class Killed(BaseException):
    """The end of a process, between two batches or within one."""


class Timed(Accumulator[int]):
    """An accumulator whose batches take time on a clock."""

    def __init__(self, model: HookedTransformer, clock: Clock) -> None:
        super().__init__(model, {})
        self.clock = clock

    def update(self, batch: Batch) -> None:
        self.clock.passes(self.clock.batch)
        self.add(batch, batch.tokens.numel(), {"tokens": batch.tokens.sum()})

    def summary(self, rows: dict[str, Tensor]) -> int:
        return int(self.sums["tokens"])


def one_by_one(model: HookedTransformer, n: int) -> Iterator[Batch]:
    return iterate_batches(model, [torch.tensor([[at % 23]]) for at in range(n)], progress=False)


@pytest.mark.parametrize(("batch", "n_writes"), [(0.25, 15), (2.0, 16), (29.0, 11), (31.0, 10), (150.0, 2)])
def test_a_run_is_on_disk_within_thirty_seconds(
    model: HookedTransformer, folder: Path, monkeypatch: pytest.MonkeyPatch, batch: float, n_writes: int
) -> None:
    clock = Clock(monkeypatch, batch)
    accumulate(one_by_one(model, round(310 / batch)), Timed(model, clock), stage=Stage(new_folder(folder), "slow"))
    assert max(clock.gaps()) <= max(30.0, batch) + 1e-6
    assert len(clock.writes) <= n_writes + 1, "the last one is the end of the pass"


@pytest.mark.parametrize("write", [0.004, 0.02, 0.25])
def test_writes_take_a_hundredth_of_the_time(
    model: HookedTransformer, folder: Path, monkeypatch: pytest.MonkeyPatch, write: float
) -> None:
    clock = Clock(monkeypatch, 0.5, write)
    accumulate(one_by_one(model, 600), Timed(model, clock), stage=Stage(new_folder(folder), "slow"))
    assert len(clock.writes) * write < 0.0101 * (clock.now - 1000.0)


@pytest.mark.parametrize(("most", "most_held", "n_writes"), [(130, 112, 5), (1, 72, 8), (10**9, 376, 1)])
def test_rows_are_written_before_they_fill_the_memory(
    model: HookedTransformer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    set_budget: Any,
    most: int,
    most_held: int,
    n_writes: int,
) -> None:
    held, flush = list[int](), Stage.flush

    def flushing(stage: Stage, done: Any, state: Any, rows: Any) -> None:
        held.append(sum(tensor.nbytes for each in rows for tensor in each.values()))
        flush(stage, done, state, rows)

    monkeypatch.setattr(Stage, "flush", flushing)
    set_budget(unwritten_bytes=most)
    stage = Stage(new_folder(folder), "sums")
    check_sums(accumulate(batches_of(model), Sums(model), stage=stage), stage)
    assert (max(held), len(held)) == (most_held, n_writes) and sum(held) == 4 * 94


@pytest.mark.parametrize(("batch", "life"), [(10.0, 12.0), (10.0, 25.0), (5.0, 12.0), (0.5, 4.0), (45.0, 46.0)])
def test_a_run_of_few_batches_whose_processes_die_young_gets_on(
    model: HookedTransformer, folder: Path, monkeypatch: pytest.MonkeyPatch, batch: float, life: float
) -> None:
    """Eight batches, and at least half of what each process measured counts."""
    clock, place, n_lives = Clock(monkeypatch, batch, 0.01), new_folder(folder), 0
    while not (stage := Stage(place, "slow")).done.finished:
        clock.lives, n_lives = clock.now + life, n_lives + 1
        with contextlib.suppress(Killed):
            accumulate(one_by_one(model, 8), Timed(model, clock), stage=stage)
    assert n_lives <= 2 * 8 / (life // batch) + 1
    assert Timed(model, clock).restore(stage.state or {}).result() == sum(range(8))


def test_without_a_folder_nothing_is_written(model: HookedTransformer, tmp_path: Path) -> None:
    sums = accumulate(batches_of(model), Sums(model))
    assert sums.n_updates == 7 and len(sums.take_rows()["twice"]) == 14 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("baseline", "reduce"), KINDS)
def test_a_run_in_a_folder_is_the_run_without(
    model: HookedTransformer, folder: Path, baseline: Any, reduce: Any
) -> None:
    options = {"baseline": baseline, "reduce": reduce}
    wanted = measure(model, make_data(), **options)
    found = measure(model, make_data(), folder, **options)
    same_bits(found, wanted)
    same_bits(EntropyResult.load(folder / "result.safetensors"), wanted)
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "entropy.safetensors", "result.safetensors"} | (
        {"means.safetensors"} if baseline == "mean" else set()
    )


@pytest.mark.parametrize(("baseline", "reduce"), KINDS)
def test_entropy_goes_on_after_an_interrupt_at_any_batch(
    model: HookedTransformer, folder: Path, baseline: Any, reduce: Any
) -> None:
    options = {"baseline": baseline, "reduce": reduce}
    data = make_data()
    wanted = measure(model, data, **options)
    n_runs = 0
    while not (folder / "result.safetensors").exists():
        seen = 0

        class Stopping(list[Tensor]):
            """Stops after one batch more than the process before it."""

            limit = n_runs

            def __iter__(self) -> Iterator[Tensor]:
                nonlocal seen
                for batch in data:
                    if seen > self.limit:
                        raise KeyboardInterrupt
                    seen += 1
                    yield batch

        try:
            same_bits(measure(model, Stopping(), folder, resume=True, **options), wanted)
        except KeyboardInterrupt:
            n_runs += 1
        assert n_runs < 20
    assert n_runs >= 7
    same_bits(measure(model, Stopping(), folder, resume=True, **options), wanted)


def test_a_finished_run_is_not_run_again(model: HookedTransformer, folder: Path) -> None:
    wanted = measure(model, make_data(), folder)

    def never() -> Iterator[Tensor]:
        yield pytest.fail("the data is left alone")

    for name, age in (("left", 4000.0), ("being-written", 0.0)):
        (folder / f"{name}.partial").write_bytes(b"{")
        os.utime(folder / f"{name}.partial", (time.time() - age,) * 2)
    same_bits(measure(model, never(), folder, resume=True), wanted)
    (folder / "result.safetensors").unlink()
    same_bits(measure(model, never(), folder, resume=True), wanted)
    assert [path.name for path in folder.glob("*.partial")] == ["being-written.partial"], "another process writes it"


def test_rows_that_nobody_lived_to_count_are_removed(
    model: HookedTransformer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of an hour ago: another process may be about to count younger ones."""
    options = {"reduce": "none", "resume": True}
    wanted, write = measure(model, make_data(), reduce="none"), Stage.write

    def dying(at: int) -> None:
        def writes(stage: Stage, done: Any, state: Any) -> None:
            if done.n_batches >= at:
                raise Killed
            write(stage, done, state)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Stage, "write", writes)
            measure(model, make_data(), folder, **options, flush_every=at)

    def rows() -> list[str]:
        return sorted(path.name.removesuffix(".safetensors") for path in folder.glob("*-rows-*"))

    for at in (5, 4, 3):
        dying(at)
    assert rows() == [f"entropy-rows-000000-00000{at}" for at in (3, 4, 5)]
    stopped_run(model, folder, flush_every=2, **options)
    counted = sorted(name.removesuffix(".safetensors") for name in Stage(folder, "entropy").done.rows)
    assert counted == ["entropy-rows-000000-000002", "entropy-rows-000002-000004", "entropy-rows-000004-000005"]
    assert set(rows()) > set(counted), "too young"
    for path in folder.glob("*-rows-*"):
        os.utime(path, (time.time() - 4000.0,) * 2)
    dying(7)
    assert rows() == [*counted, "entropy-rows-000005-000007"]
    same_bits(measure(model, make_data(), folder, **options), wanted)


# Killed


def serve() -> None:
    """What the subprocess below runs: forks children that run into folders, and are killed."""
    torch.set_num_threads(1)
    os.fsync = lambda _: None
    options = {"baseline": "mean", "reduce": "none", "resume": True}
    measure(make_model(), make_data()[:1])  # so that what is loaded or compiled at the first run is so once
    for line in sys.stdin:
        mode, place = line.split(maxsplit=1)
        folder = Path(place.strip())
        process = os.fork()
        if process == 0:
            if mode == "slow":
                measure(make_model(), Slow(), folder, **options, flush_every=1)
            else:
                die_at(int(mode))
                measure(make_model(), make_data()[:4], folder, **options)
            os._exit(0)
        print(process, flush=True)
        print(os.waitpid(process, 0)[1], flush=True)


class Slow(list[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        for batch in make_data():
            time.sleep(0.03)
            yield batch


def die_at(moment: int) -> None:
    real_save, real_place = tensor_file.save_file, tensor_file._put_in_place
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def save(tensors: Any, path: Path, **more: Any) -> None:
        path.write_bytes(b"half a file")
        tick()
        real_save(tensors, path, **more)

    def place(partial: Path, path: Path) -> None:
        tick()
        real_place(partial, path)
        tick()

    tensor_file.save_file, tensor_file._put_in_place = save, place  # type: ignore[assignment]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A process with headscope in it, whose children are killed."""
    if not hasattr(os, "fork"):
        pytest.skip("forks, and kills with SIGKILL")
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(headscope.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def ask(server: subprocess.Popen[str], mode: object, folder: Path) -> int:
    """Start a child; its process id."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(f"{mode} {folder}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def ended(server: subprocess.Popen[str]) -> int:
    """How the child ended: 0, or minus the signal."""
    assert server.stdout is not None
    return os.waitstatus_to_exitcode(int(server.stdout.readline()))


def test_killed_from_outside(model: HookedTransformer, server: subprocess.Popen[str], folder: Path) -> None:
    options = {"baseline": "mean", "reduce": "none"}
    wanted = measure(model, make_data(), **options)
    for stage, n_batches in (("means", 1), ("means", 4), ("entropy", 1), ("entropy", 5)):
        process = ask(server, "slow", folder)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            # While the other process writes, a state may be replaced between two reads of it, and so look damaged.
            with contextlib.suppress(CheckpointError):
                if Stage(folder, stage).done.n_batches >= n_batches:
                    break
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        assert ended(server) == -signal.SIGKILL
        assert Stage(folder, stage).done.n_batches >= n_batches and not (folder / "result.safetensors").exists()
    same_bits(measure(model, make_data(), folder, **options, resume=True), wanted)


def test_killed_at_every_moment_of_writing(
    model: HookedTransformer, server: subprocess.Popen[str], tmp_path: Path
) -> None:
    options = {"baseline": "mean", "reduce": "none"}
    wanted = measure(model, make_data()[:4], **options)
    for moment in range(1, 200):
        folder = tmp_path / str(moment)
        ask(server, moment, folder)
        end = ended(server)
        for path in folder.glob("*.partial"):
            os.utime(path, (0, 0))
        same_bits(measure(model, make_data()[:4], folder, **options, resume=True), wanted)
        left = {path.name for path in folder.iterdir()}
        assert left == {"manifest.json", "means.safetensors", "entropy.safetensors", "result.safetensors"}
        if end == 0:
            break
        assert end == -signal.SIGKILL
    assert moment > 20


def test_files_are_on_the_disk_before_they_are_named(
    model: HookedTransformer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        done.append(f"named {target.name}")
        return real(path, target)

    def fsync(file: int) -> None:
        done.append("file" if stat.S_ISREG(os.fstat(file).st_mode) else "folder")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    measure(model, make_data(), folder, reduce="none", flush_every=100)
    names = ["manifest.json", "entropy-rows-000000-000007.safetensors", "entropy.safetensors", "result.safetensors"]
    assert done == [step for name in names for step in ("file", f"named {name}", "folder")]


# Disks


def test_a_full_disk_leaves_the_old_state(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"baseline": "mean", "reduce": "none"}
    wanted = measure(model, make_data()[:4], **options)
    real, n_failures = tensor_file.save_file, 0
    for failing in range(1, 100):
        folder, n_writes = tmp_path / str(failing), 0

        def save(tensors: Any, path: Path, failing: int = failing, **more: Any) -> None:
            nonlocal n_writes
            n_writes += 1
            if n_writes == failing:
                path.write_bytes(b"half a fi")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(tensors, path, **more)

        monkeypatch.setattr(tensor_file, "save_file", save)
        try:
            measure(model, make_data()[:4], folder, **options)
        except StorageError as caught:
            n_failures += 1
            assert "No space left on device" in str(caught) and "resume" in str(caught) and str(folder) in str(caught)
            assert isinstance(caught, HeadscopeError) and isinstance(caught, OSError)
            assert not [path for path in folder.iterdir() if path.suffix == ".partial"]
        else:
            break
        monkeypatch.setattr(tensor_file, "save_file", real)
        same_bits(measure(model, make_data()[:4], folder, resume=True, **options), wanted)
    # Three states of each pass (the last says that it is finished), two files of rows, and the result.
    assert n_failures == n_writes == 9


def test_errors_of_the_writer_are_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    tensor_file.write_tensors(path, {"a": torch.ones(2)}, {})
    before = path.read_bytes()
    for said, number in (("I/O error: No space left (os error 28)", errno.ENOSPC), ("something", errno.EIO)):

        def save(tensors: Any, partial: Path, said: str = said, **more: Any) -> None:
            partial.write_bytes(b"half")
            raise SafetensorError(said)

        monkeypatch.setattr(tensor_file, "save_file", save)
        with pytest.raises(OSError) as caught:
            tensor_file.write_tensors(path, {"a": torch.zeros(2)}, {})
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


def test_a_disk_full_from_the_start(model: HookedTransformer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"manifest.json could not be written: No space left"):
        measure(model, make_data(), folder)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_by_result(path: Path) -> None:
    measure(make_model(), make_data()).save(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [halve, flip, replace_by_result, empty])
@pytest.mark.parametrize("stage", ["means", "entropy"])
def test_a_damaged_state_is_told(
    model: HookedTransformer, folder: Path, damage: Callable[[Path], None], stage: str
) -> None:
    measure(model, make_data(), folder, baseline="mean")
    (folder / "result.safetensors").unlink()
    damage(folder / f"{stage}.safetensors")
    with pytest.raises(CheckpointError, match=rf"{stage}.safetensors.*delete the folder and start again"):
        measure(model, make_data(), folder, baseline="mean", resume=True)


@pytest.mark.parametrize("damage", [halve, empty, Path.unlink])
def test_damaged_rows_are_told(model: HookedTransformer, folder: Path, damage: Callable[[Path], None]) -> None:
    stage = Stage(new_folder(folder), "sums")
    accumulate(batches_of(model), Sums(model), stage=stage, flush_every=2)
    damage(folder / "sums-rows-000002-000004.safetensors")
    with pytest.raises(CheckpointError, match=r"sums-rows-000002-000004.safetensors.*delete the folder"):
        stage.rows()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_manifest_is_told(model: HookedTransformer, folder: Path, content: bytes) -> None:
    measure(model, make_data(), folder)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged.*start again"):
        measure(model, make_data(), folder, resume=True)


def test_a_damaged_result_is_made_again(model: HookedTransformer, folder: Path) -> None:
    wanted = measure(model, make_data(), folder)
    halve(folder / "result.safetensors")
    with pytest.raises(CheckpointError, match=r"result.safetensors.*Delete that file.* a result per position"):
        measure(model, make_data(), folder, resume=True)
    (folder / "result.safetensors").unlink()
    same_bits(measure(model, make_data(), folder, resume=True), wanted)


# Other runs' folders


def test_a_folder_that_is_taken_is_refused(model: HookedTransformer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json.partial").write_bytes(b"{")
    measure(model, make_data(), folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InvalidInputError, match=r"holds a run already.*resume=True"):
        measure(model, make_data(), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    other = new_folder(tmp_path / "letters")
    (other / "letter.txt").write_text("Dear")
    for resume in (False, True):
        with pytest.raises(InvalidInputError, match=r"no run's folder.*letter\.txt"):
            measure(model, make_data(), other, resume=resume)
        with pytest.raises(InvalidInputError, match="is a file"):
            measure(model, make_data(), other / "letter.txt", resume=resume)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_resuming_nothing_starts(model: HookedTransformer, tmp_path: Path) -> None:
    wanted = measure(model, make_data())
    same_bits(measure(model, make_data(), new_folder(tmp_path / "empty"), resume=True), wanted)
    same_bits(measure(model, make_data(), tmp_path / "deep" / "absent", resume=True), wanted)


def stopped_run(model: HookedTransformer, folder: Path, data: Any = None, **options: Any) -> None:
    """A run that was interrupted after five batches of the entropies."""

    def stopping(batch: Batch, real: Any = EntropyAccumulator.update) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        real, n = EntropyAccumulator.update, 0

        def update(self: EntropyAccumulator, batch: Batch) -> None:
            nonlocal n
            n += 1
            if n == 6:
                raise KeyboardInterrupt
            real(self, batch)

        patch.setattr(EntropyAccumulator, "update", update)
        with pytest.raises(KeyboardInterrupt):
            measure(model, make_data() if data is None else data, folder, **options)


TOKENS = torch.randint(0, 23, (9, 7), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("changes", "message"), [
    ({"scale": "own"}, r"options\.scale is 'final' there and 'own' here"),
    ({"baseline": "mean"}, r"options\.baseline is 'zero' there and 'mean' here"),
    ({"reduce": "none"}, r"options\.reduce is 'mean' there and 'none' here"),
    ({"lens_bias": False, "include_bos": True}, r"options\.include_bos is False there and True here; options\.lens"),
    ({"describe": "e"}, r"data\.description is 'd' there and 'e' here"),
    ({"data": TOKENS[:8]}, r"data\.shape is \[9, 7\] there and \[8, 7\] here; data\.tokens is '\w+\.\.\.\w+' there"),
    ({"data": TOKENS.flip(1)}, r"data\.tokens is '\w+\.\.\.\w+' there and '\w+\.\.\.\w+' here"),
    ({"attention_mask": torch.ones(9, 7)}, r"data\.tokens is"),
    ({"model": make_model(seed=1)}, r"model\.weights is '\w+\.\.\.\w+' there and '\w+\.\.\.\w+' here"),
    ({"model": make_model(model_name="other")}, r"model\.config\.model_name is 'custom' there and 'other' here"),
])  # fmt: skip
def test_another_runs_folder_is_refused(
    model: HookedTransformer, folder: Path, set_budget: Any, changes: dict[str, Any], message: str
) -> None:
    set_budget(batch_tokens=7)
    stopped_run(model, folder, TOKENS)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    given = {"model": model, "data": TOKENS, "out": folder, "resume": True, **changes}
    with pytest.raises(InvalidInputError, match=rf"holds another run: .*{message}"):
        measure(**given)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    same_bits(measure(model, TOKENS, folder, resume=True), measure(model, TOKENS))


def test_other_formats_and_versions(model: HookedTransformer, folder: Path) -> None:
    stopped_run(model, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    assert manifest["software"]["torch"] == torch.__version__
    path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(InvalidInputError, match=rf"in format 99, .* writes format {run_manifest.FORMAT}"):
        measure(model, make_data(), folder, resume=True)
    path.write_text(json.dumps({**manifest, "software": {**manifest["software"], "torch": "0.4"}}))
    with pytest.warns(UserWarning, match=r"other software \(software.torch is '0\.4' there"):
        found = measure(model, make_data(), folder, resume=True)
    same_bits(found, measure(model, make_data()))


@pytest.mark.parametrize(("data", "message"), [
    (make_data()[1:], "the first 1 batches hash to"),
    ([*make_data()[:4], make_data()[4].flip(0), *make_data()[5:]], "the first 5 batches hash to"),
    (make_data()[:4], "it ends after 4 batches, and 5 were gone through"),
    ([{"tokens": batch, "attention_mask": torch.ones_like(batch)} for batch in make_data()], "the first 1 batches"),
])  # fmt: skip
def test_other_data_is_refused(model: HookedTransformer, folder: Path, data: list[Any], message: str) -> None:
    stopped_run(model, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InvalidInputError, match=rf"not that of the run.*{message}"):
        measure(model, iter(data), folder, resume=True)
    with pytest.raises(InvalidInputError, match=r"holds another run: data\.batches is"):
        measure(model, data, folder, resume=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    same_bits(measure(model, make_data(), folder, resume=True), measure(model, make_data()))


def test_a_finished_run_is_not_that_of_other_batches(model: HookedTransformer, folder: Path) -> None:
    wanted = measure(model, make_data(), folder)
    for other in (
        make_data()[::-1],
        [{"tokens": batch, "attention_mask": torch.ones_like(batch).tolist()} for batch in make_data()],
    ):
        with pytest.raises(InvalidInputError, match=r"holds another run: data\.batches is"):
            measure(model, other, folder, resume=True)
    for same in (make_data(), tuple(make_data()), iter(make_data())):
        same_bits(measure(model, same, folder, resume=True), wanted)


def test_a_reference_of_other_batches_is_refused(model: HookedTransformer, folder: Path) -> None:
    options = {"heads": ["0.0"], "values": ["mean"], "progress": False, "out": folder}
    ablate_heads(model, TOKENS, reference=make_data(), **options)
    with pytest.raises(InvalidInputError, match=r"holds another run: reference\.batches is"):
        ablate_heads(model, TOKENS, reference=make_data()[1:], resume=True, **options)


@pytest.mark.parametrize("finished", [False, True])
def test_hooks_and_masks_belong_to_a_run(folder: Path, finished: bool) -> None:
    model, hooked, wrapped, masked = (make_model() for _ in range(4))
    hooked.add_perma_hook("blocks.0.hook_mlp_out", lambda value, hook: 0 * value)
    wrapped.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: 0 * output)
    masked.blocks[0].attn.mask = torch.eye(masked.cfg.n_ctx).bool()
    if finished:
        measure(model, make_data(), folder)
    else:
        stopped_run(model, folder)
    changed = {"a hook on blocks.0.hook_mlp_out": hooked, "a hook on blocks.1.mlp": wrapped, "attn.mask": masked}
    for message, other in changed.items():
        with pytest.raises(InvalidInputError, match=rf"model\.put_on is None there and .*{message}"):
            measure(other, make_data(), folder, resume=True)
        with pytest.raises(InvalidInputError, match=rf"this model has .*{message}.*cannot be sent to workers"):
            check_without_hooks(other)
    same_bits(measure(model, make_data(), folder, resume=True), measure(model, make_data()))


@pytest.mark.parametrize(("second", "message"), [
    (make_data()[::-1], "the first 1 batches hash to"),
    (make_data() + make_data()[:1], "it ends after 8 batches, and 7"),
    (make_data()[:5], "it ends after 5 batches, and 7"),
])  # fmt: skip
def test_the_second_pass_goes_through_the_same_data(
    model: HookedTransformer, folder: Path, second: list[Tensor], message: str
) -> None:
    class Changing:
        def __init__(self) -> None:
            self.passes = [make_data(), second]

        def __iter__(self) -> Iterator[Tensor]:
            return iter(self.passes.pop(0))

    with pytest.raises(InvalidInputError, match=message):
        measure(model, Changing(), folder, baseline="mean")


@pytest.mark.parametrize(("options", "message"), [
    ({"flush_every": 0}, "flush_every must be at least 1; got 0"),
    ({"out": None, "resume": True}, "say which by out"),
    ({"data": iter(make_data()), "baseline": "mean"}, "twice"),
])  # fmt: skip
def test_bad_options_make_no_folder(
    model: HookedTransformer, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        measure(**{"model": model, "data": make_data(), "out": folder, **options})
    assert not folder.exists()


def test_nothing_that_counts(model: HookedTransformer, folder: Path) -> None:
    for resume in (False, True):
        with pytest.raises(InvalidInputError, match="no position counts"):
            measure(model, [], folder, resume=resume)


# States


@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_a_state_is_flat_and_goes_through_files(model: HookedTransformer, reduce: Any) -> None:
    options = EntropyOptions(reduce=reduce)
    batches = list(batches_of(model))
    whole = EntropyAccumulator(model, options, None, "d")
    first = EntropyAccumulator(model, options, None, "d")
    for batch in batches[:3]:
        whole.update(batch)
        first.update(batch)
    state = first.state()
    copies = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    assert json.loads(json.dumps(numbers)) == numbers and len(copies) == 4
    again = EntropyAccumulator.from_state({**numbers, **copies}, model, options, None, "d")
    rest = EntropyAccumulator(model, options, None, "d")
    for batch in batches[3:]:
        whole.update(batch)
        first.update(batch)
        again.update(batch)
        rest.update(batch)
    for name, value in copies.items():
        assert torch.equal(state[name].nan_to_num(), value.nan_to_num()), "an update changed a state in place"
    same_bits(again.result(), whole.result())
    rows = first.take_rows()
    assert (set(rows) == set(NAMES)) if reduce == "none" else not rows
    same_bits(first.result(rows or None), whole.result())
    parts = [EntropyAccumulator.from_state({**numbers, **copies}, model, options, None, "d"), rest]
    parts[0].merge(parts[1])
    for name in NAMES:
        torch.testing.assert_close(
            getattr(parts[0].result(), name), getattr(whole.result(), name), rtol=0, atol=1e-6, equal_nan=True
        )


def test_a_number_with_a_stride_has_the_fingerprint_of_a_number() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)[:1, 1:2].T
    assert run_manifest.fingerprint({"a": tensor}) == run_manifest.fingerprint({"a": torch.tensor([[1.0]])})
    assert run_manifest.fingerprint({"a": tensor[0, 0]}) != run_manifest.fingerprint({"a": torch.tensor([1.0])})


def test_rows_are_joined() -> None:
    left, right = torch.rand(2, 1, 3, dtype=torch.float64), torch.rand(2, 2, 5, dtype=torch.float64)
    joined = join_rows([{"a": left}, {"a": right}])["a"]
    assert torch.equal(joined[:, :1, :3], left) and torch.equal(joined[:, 1:], right)
    assert joined.shape == (2, 3, 5) and bool(joined[:, 0, 3:].isnan().all()) and joined.dtype == torch.float64
    assert join_rows([]) == {} and join_rows([{"a": left}])["a"] is left


def test_the_bar_starts_at_what_was_done(
    model: HookedTransformer, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0.0, miniters=1))
    stopped_run(model, folder)
    capfd.readouterr()
    measure(model, make_data(), folder, resume=True, progress=True)
    first, *rest = [line for line in capfd.readouterr().err.split("\r") if "tok/s" in line]
    assert "66/94" in first
    safe = [line.rpartition("safe: ")[2].split()[0] for line in rest if "safe: " in line]
    assert list(dict.fromkeys(safe)) == ["70%", "100%"], "written after two batches"


def test_passes_are_made_by_hand(model: HookedTransformer, folder: Path) -> None:
    """What an analysis other than entropy would do."""
    run = {
        "attention_mask": None,
        "include_bos": False,
        "describe": "d",
        "progress": False,
        "flush_every": 2,
        "engine": None,
    }
    given = {**run, "out": folder, "engine": None}
    data = make_data()
    sums = Passes("sums", model, data, {"k": 1}, **given, resume=False).gather("sums", Sums(model))
    assert sums.n_updates == 7
    again = Passes("sums", model, data, {"k": 1}, **given, resume=True).gather("sums", Sums(model))
    assert again.n_updates == 0 and torch.equal(again.sums["total"], sums.sums["total"])
    with pytest.raises(InvalidInputError, match="analysis is 'sums' there and 'other' here"):
        Passes("other", model, data, {"k": 1}, **given, resume=True)


if __name__ == "__main__":
    serve()
