"""Sharded runs in this process: the same bits whoever measures and in whatever order, and what is not merged."""

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import CASES, make_model, make_tokens, same_bits, tensors_of
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import ablate_heads, measure_calibration, measure_entropy
from headscope.analysis.core import progress
from headscope.analysis.core.batches import Batch, iterate_batches
from headscope.analysis.lens.entropy import EntropyAccumulator, EntropyResult
from headscope.analysis.storage import manifest as run_manifest
from headscope.analysis.storage import run_folder, sharded
from headscope.analysis.storage.merging import merge_states
from headscope.analysis.storage.places import place_of
from headscope.analysis.storage.run_folder import Stage
from headscope.analysis.storage.sharded import RunFiles, shard_size
from headscope.analysis.storage.shards import Cut
from headscope.data import Corpus
from headscope.errors import CheckpointError, IncompleteRunError, InvalidInputError, StorageError
from headscope.scale import Engine, InProcess, MergeOnly, Part, Receipt, ShardJob, map_shards, status
from headscope.scale.calls import read_call, write_call
from headscope.scale.worker import Worker, read_run

# One of each kind: one pass and two, rows, other data for a pass, none from outside, one within another.
KINDS = [
    "entropy, mean, every position",
    "calibration",
    "ablation, resampled, means",
    "CSPA",
    "suppression scores",
    "loss",
    "attribution",
    "head scores",
    "head types",
]
SHARD = 24  # tokens: three rows of eight, two batches


class Elsewhere(Engine):
    """Several workers that share a run's folder and nothing else, and take its shards in some order, some twice."""

    def __init__(self, workers: int = 2, order: random.Random | None = None, twice: float = 0.3) -> None:
        self.shard_tokens, self.n, self.order, self.twice = SHARD, workers, order or random.Random(0), twice

    def begin(self, run: Any) -> None:
        write_call(run, None)
        self.workers = [Worker(run.place, loaded=run.model) for _ in range(self.n)]

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        asked = [job for job in jobs for _ in range(1 + (self.order.random() < self.twice))]
        self.order.shuffle(asked)
        for job in asked:
            yield self.order.choice(self.workers).measure(job.stage, job.number)


@pytest.mark.filterwarnings("ignore:.*is done again")
@pytest.mark.parametrize("kind", KINDS)
def test_workers_elsewhere_give_the_bits_of_one_process(model: HookedTransformer, tmp_path: Path, kind: str) -> None:
    measure, _ = CASES[kind]
    given = {"progress": False, "describe": "d"}
    plain = measure(model, make_tokens(), **given)
    one = measure(model, make_tokens(), **given, engine=InProcess(shard_tokens=SHARD), out=tmp_path / "one")
    many = measure(model, make_tokens(), **given, engine=Elsewhere(), out=tmp_path / "many")
    same_bits(many, one)
    for name, value in tensors_of(one).items():
        # Only the order of additions in float64 differs from that of a run without shards.
        torch.testing.assert_close(value, tensors_of(plain)[name], rtol=1e-6, atol=1e-7, equal_nan=True, msg=name)
    assert isinstance(one, Tensor) or one.info == plain.info
    left = [path.name for path in (tmp_path / "many").rglob("*.safetensors")]
    assert not [name for name in left if "-rows-" in name or name.startswith("data-")], "what the result does not need"
    same_bits(measure(model, make_tokens(), **given, engine=MergeOnly(), out=tmp_path / "many", resume=True), one)
    same_bits(measure(model, make_tokens(), **given, out=tmp_path / "many", resume=True), one)


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workers=st.integers(1, 4), seed=st.integers(0, 2**32), twice=st.floats(0, 1))
def test_any_order_and_number_of_workers(
    model: HookedTransformer, tmp_path_factory: pytest.TempPathFactory, workers: int, seed: int, twice: float
) -> None:
    options = {"baseline": "mean", "reduce": "none", "progress": False}
    folder = tmp_path_factory.mktemp("runs")
    wanted = measure_entropy(model, make_tokens(), **options, engine=InProcess(shard_tokens=SHARD), out=folder / "one")
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:  # and clocks that go as they like
        clock = SimpleNamespace(time=lambda: chance.uniform(0, 2e9), monotonic=lambda: chance.uniform(-1e6, 1e6))
        for module in (run_folder, sharded):
            patch.setattr(module, "time", clock)
        engine = Elsewhere(workers, chance, twice)
        same_bits(measure_entropy(model, make_tokens(), **options, engine=engine, out=folder / "many"), wanted)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_the_tree_is_fixed_by_the_number_of_shards(values: list[float]) -> None:
    def total(some: list[float]) -> float:
        """A tournament, drawn from the top."""
        if len(some) == 1:
            return some[0]
        half = 1 << ((len(some) - 1).bit_length() - 1)
        return total(some[:half]) + total(some[half:])

    held = 0

    def states() -> Iterator[dict[str, Any]]:
        nonlocal held
        for value in values:
            held += 1
            yield {"n_positions": 1, "x": torch.tensor([value])}

    merged = merge_states(states())
    assert merged["n_positions"] == len(values) == held
    if len(values) > 1:
        assert merged["x"].item() == total([float(torch.tensor(value)) for value in values])
    assert merge_states([]) == {}


@pytest.mark.parametrize("sharded", [False, True])
def test_one_bar_goes_over_all_passes(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    lines: list[Any] = []

    class Line(progress.tqdm):  # type: ignore[name-defined,misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            lines.append(self)
            self.passed: list[float] = []

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            self.passed.append(self.n)

    monkeypatch.setattr(progress, "tqdm", Line)
    engine = InProcess(shard_tokens=SHARD) if sharded else None
    measure_entropy(model, make_tokens(), baseline="mean", engine=engine, out=tmp_path / "run")
    ours = [line for line in lines if line.desc != "cutting"]
    assert [(line.desc, line.total, line.initial) for line in ours] == [
        ("means (1 of 2)", 144, 0),
        ("entropy (2 of 2)", 144, 72),
    ]
    for line, start in zip(ours, (0, 72), strict=True):
        assert line.passed == sorted(line.passed) and line.passed[-1] == start + 72
        assert line.postfix == f"safe: {100 * (start + 72) / 144:.0f}%"


# Parts started apart


def test_parts_end_at_the_barrier_and_the_last_one_merges(model: HookedTransformer, tmp_path: Path) -> None:
    options = {"baseline": "mean", "progress": False, "out": tmp_path / "run", "resume": True}
    wanted = measure_entropy(
        model,
        make_tokens(),
        baseline="mean",
        progress=False,
        engine=InProcess(shard_tokens=SHARD),
        out=tmp_path / "one",
    )

    def part(number: int) -> EntropyResult:
        return measure_entropy(model, make_tokens(), **options, engine=Part(number, 3, shard_tokens=SHARD))

    with pytest.raises(IncompleteRunError, match=r"1 of 3 shards of 'means' .* 0, 1 are not.*headscope merge"):
        part(2)
    with pytest.raises(IncompleteRunError, match=r"2 of 3 shards of 'means' .* 1 is not"):
        part(0)
    with pytest.raises(IncompleteRunError, match="'means'"):
        measure_entropy(model, make_tokens(), **options, engine=MergeOnly())
    with pytest.raises(IncompleteRunError, match="1 of 3 shards of 'entropy'"):
        part(1)  # merges the means, and goes on
    with pytest.raises(IncompleteRunError, match="2 of 3 shards of 'entropy'"):
        part(2)
    same_bits(part(0), wanted)
    same_bits(part(1), wanted)
    for bad in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(InvalidInputError):
            Part(*bad)


@pytest.mark.parametrize("when", ["merging", "reading rows"])
def test_a_part_that_finds_the_run_finished_meanwhile(
    model: HookedTransformer, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks that find all shards done: one writes the result and tidies up under the other."""
    folder, wanted = tmp_path / "run", []

    def other() -> None:
        if not wanted:
            wanted.append(None)  # it does not disturb itself
            wanted[0] = run(model, folder, Part(0, 1), reduce="none")

    check, rows = Stage.check_rows, Stage.rows
    if when == "merging":
        monkeypatch.setattr(Stage, "check_rows", lambda self: [other(), check(self)][1])
    else:
        monkeypatch.setattr(Stage, "rows", lambda self: [other(), rows(self)][1])
    with pytest.raises(IncompleteRunError, match="another process has just finished the run"):
        run(model, folder, Part(0, 1, shard_tokens=SHARD), reduce="none")
    same_bits(run(model, folder, Part(0, 1), reduce="none"), wanted[0])


# What is refused


def begun(model: HookedTransformer, folder: Path, *numbers: int, **options: Any) -> Path:
    """A run of three shards, of which some are measured."""

    class Some(InProcess):
        def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
            return super().map_shards([job for job in jobs if job.number in numbers])

    with pytest.raises(IncompleteRunError):
        run(model, folder, Some(shard_tokens=SHARD), **options)
    return folder


def run(model: HookedTransformer, folder: Path, engine: Engine, data: Any = None, **options: Any) -> EntropyResult:
    data = make_tokens() if data is None else data
    return measure_entropy(model, data, progress=False, out=folder, engine=engine, resume=True, **options)


def state(folder: Path, number: int) -> Path:
    return folder / "shards" / "entropy" / f"{number:06d}.safetensors"


def test_shards_of_others_are_not_merged(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = begun(model, tmp_path / "ours", 0, 1)
    others = begun(model, tmp_path / "others", 2, scale="own")
    for name in ("000002.safetensors", "000002.json"):
        (ours / "shards" / "entropy" / name).write_bytes((others / "shards" / "entropy" / name).read_bytes())
    with pytest.raises(InvalidInputError, match=r"000002.safetensors belongs to another run: it has run"):
        run(model, ours, MergeOnly())
    for name in ("000002.safetensors", "000002.json"):
        (ours / "shards" / "entropy" / name).unlink()
    # The state of another shard of the same run.
    for name in ("safetensors", "json"):
        (ours / f"shards/entropy/000002.{name}").write_bytes((ours / f"shards/entropy/000001.{name}").read_bytes())
    with pytest.raises(InvalidInputError, match=r"it has shard 1 \(here 2\)"):
        run(model, ours, MergeOnly())
    for name in ("000002.safetensors", "000002.json"):
        (ours / "shards" / "entropy" / name).unlink()
    (ours / "shards" / "entropy" / "000007.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="holds shard 7, and this run has 3 shards"):
        run(model, ours, MergeOnly())
    (ours / "shards" / "entropy" / "000007.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(run_manifest.torch, "__version__", "0.4")
        with pytest.raises(InvalidInputError, match=r"begun with other software \(software.torch is '2.* merged only"):
            run(model, ours, InProcess())
        with pytest.raises(InvalidInputError, match="two versions are not merged"):
            read_run(place_of(ours))
    manifest = json.loads((ours / "manifest.json").read_text())
    manifest["software"]["headscope"] = "9.9"
    files = RunFiles(place_of(ours), manifest, {"data": Cut.read(place_of(ours), "data") or pytest.fail("no cut")})
    with pytest.raises(InvalidInputError, match=r"000000.safetensors belongs to another run: it has headscope"):
        files.stage("entropy", 0)
    same_bits(run(model, ours, InProcess()), run(model, tmp_path / "new", InProcess(shard_tokens=SHARD)))


@pytest.mark.parametrize("damage", ["half", "flip", "rows"])
def test_a_damaged_shard_is_done_again(model: HookedTransformer, tmp_path: Path, damage: str) -> None:
    wanted = run(model, tmp_path / "whole", InProcess(shard_tokens=SHARD), reduce="none")
    folder = begun(model, tmp_path / "run", 0, 1, reduce="none")
    path = next(folder.glob("shards/entropy/000001-rows-*")) if damage == "rows" else state(folder, 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "half" else content)
    with pytest.warns(UserWarning, match=r"shard 1 of 'entropy' is done again: .*00001"):
        same_bits(run(model, folder, InProcess(), reduce="none"), wanted)


def test_a_damaged_merged_pass_is_merged_again(model: HookedTransformer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wanted = run(model, folder, InProcess(shard_tokens=SHARD), baseline="mean")
    (folder / "result.safetensors").unlink()
    merged = folder / "means.safetensors"
    content = bytearray(merged.read_bytes())
    content[-1] ^= 1
    merged.write_bytes(content)
    receipts = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*/*.json")}
    with pytest.warns(UserWarning, match=r"the shards of 'means' are merged again: .*means.safetensors is damaged"):
        same_bits(run(model, folder, InProcess(), baseline="mean"), wanted)
    assert receipts == {path: path.stat().st_mtime_ns for path in folder.glob("shards/*/*.json")}, "measured again"


def test_a_run_begun_before_passes_said_what_comes_then(model: HookedTransformer, tmp_path: Path) -> None:
    folder = begun(model, tmp_path / "run", 0)
    record = folder / "pass-entropy.json"
    fields = json.loads(record.read_text())
    del fields["then"]
    record.write_text(json.dumps(fields))
    (found,) = status(folder).passes
    assert (found.name, found.done, found.then) == ("entropy", 1, ())
    same_bits(run(model, folder, InProcess()), run(model, tmp_path / "whole", InProcess(shard_tokens=SHARD)))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"begun": "soon"}'])
@pytest.mark.parametrize("name", ["shards/entropy/000000.json", "pass-entropy.json"])
def test_status_tells_which_record_is_damaged(
    model: HookedTransformer, tmp_path: Path, name: str, content: str
) -> None:
    folder = begun(model, tmp_path / "run", 0)
    assert status(folder).passes[0].done == 1
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: .* Delete that file, and resume=True makes it"):
        status(folder)
    (folder / name).unlink()
    run(model, folder, InProcess())
    assert status(folder).finished


def test_other_data_and_other_cuts_are_refused(model: HookedTransformer, tmp_path: Path) -> None:
    class Stream(list[Tensor]):
        """Rows whose hash is not told beforehand."""

    rows = Stream([make_tokens()[:5], make_tokens()[5:]])
    folder = begun(model, tmp_path / "run", 0, data=rows)
    with pytest.raises(InvalidInputError, match=r"shards.shard_tokens is 24 there and 48 here"):
        run(model, folder, InProcess(shard_tokens=48), rows)
    with pytest.raises(InvalidInputError, match="shard 0 hashes to"):
        run(model, folder, InProcess(), Stream(rows[::-1]))
    with pytest.raises(InvalidInputError, match="it makes 2 shards, and there are 3 there"):
        run(model, folder, InProcess(), Stream([rows[0], rows[1][:2]]))
    known = begun(model, tmp_path / "known", 0, data=list(rows))
    with pytest.raises(InvalidInputError, match=r"data\.batches is"):
        run(model, known, InProcess(), rows[::-1])
    with pytest.raises(InvalidInputError, match=r"is in shards: go on with it by an engine"):
        measure_entropy(model, rows, progress=False, out=folder, resume=True)
    with pytest.raises(InvalidInputError, match="say which by out"):
        measure_entropy(model, rows, progress=False, engine=InProcess())
    for size in (-1, 0):
        with pytest.raises(InvalidInputError, match=f"shard_tokens must be at least 1; got {size}"):
            run(model, tmp_path / "bad", InProcess(shard_tokens=size))
    plain = tmp_path / "plain"
    measure_entropy(model, rows, progress=False, out=plain)
    with pytest.raises(InvalidInputError, match="shards is None there"):
        run(model, plain, InProcess(), rows)
    with pytest.raises(InvalidInputError, match="no position counts"):
        run(model, tmp_path / "empty", InProcess(), [])
    (tmp_path / "run" / "cut-data.json").write_text("{")
    with pytest.raises(CheckpointError, match="cut-data.json is damaged"):
        run(model, folder, InProcess(), rows)


def test_damaged_tokens_are_told(model: HookedTransformer, tmp_path: Path) -> None:
    folder = begun(model, tmp_path / "run", 0)
    path = folder / "tokens" / "data-000002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"data-000002.safetensors is damaged.*cuts the data again"):
        run(model, folder, InProcess())
    (folder / "cut-data.json").unlink()
    same_bits(run(model, folder, InProcess()), run(model, tmp_path / "whole", InProcess(shard_tokens=SHARD)))


class Letters:
    bos_token_id, eos_token_id = 0, 1

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % 23 for letter in text]


TEXT = "When Mary and John went to the store, John gave a drink to Mary."


def corpus(text: str) -> Corpus:
    return Corpus([text], Letters(), row_length=8, batch_size=2)


def test_a_corpus_is_known_by_its_fingerprint(model: HookedTransformer, tmp_path: Path) -> None:
    folder = begun(model, tmp_path / "run", 1, data=corpus(TEXT))
    with pytest.raises(InvalidInputError, match=r"data\.corpus is"):
        run(model, folder, InProcess(), corpus(TEXT[::-1]))
    wanted = run(model, tmp_path / "whole", InProcess(shard_tokens=SHARD), corpus(TEXT))
    same_bits(run(model, folder, InProcess(), corpus(TEXT)), wanted)
    same_bits(wanted, measure_entropy(model, corpus(TEXT), progress=False))


@pytest.mark.parametrize(("ours", "others"), [
    (make_tokens(), make_tokens().flip(0)),
    ({"input_ids": make_tokens()}, {"input_ids": make_tokens().flip(0)}),
    (corpus(TEXT), corpus(TEXT[::-1])),
], ids=["tokens", "input_ids", "corpus"])  # fmt: skip
def test_a_finished_run_is_not_that_of_other_data(
    model: HookedTransformer, tmp_path: Path, ours: Any, others: Any
) -> None:
    wanted = run(model, tmp_path / "run", InProcess(shard_tokens=SHARD), ours)
    resumed = {"progress": False, "out": tmp_path / "run", "resume": True}
    same_bits(measure_entropy(model, ours, **resumed), wanted)
    for engine in (None, InProcess()):
        with pytest.raises(InvalidInputError, match=r"holds another run: data\.(tokens|corpus) is"):
            measure_entropy(model, others, engine=engine, **resumed)


def test_input_ids_are_known_by_their_tokens(model: HookedTransformer, tmp_path: Path) -> None:
    tokens = make_tokens()
    folder = begun(model, tmp_path / "run", 0, data={"input_ids": tokens})
    with pytest.raises(InvalidInputError, match=r"data\.tokens is"):
        run(model, folder, Part(1, 2), {"input_ids": tokens.flip(0)})
    found = run(model, folder, InProcess(), {"input_ids": tokens})
    same_bits(found, measure_entropy(model, {"input_ids": tokens}, progress=False))


def test_documents_of_a_function_are_compared_with_the_shards(model: HookedTransformer, tmp_path: Path) -> None:
    def made(text: str) -> Corpus:
        return Corpus(lambda: [text], Letters(), row_length=8, batch_size=2)

    assert made(TEXT).fingerprint() == made(TEXT[::-1]).fingerprint(), "only the function's name is known"
    assert corpus(TEXT).has_fixed_text
    assert not made(TEXT).has_fixed_text
    folder = begun(model, tmp_path / "run", 1, data=made(TEXT))
    with pytest.raises(InvalidInputError, match="shard 0 hashes to"):
        run(model, folder, InProcess(), made(TEXT[::-1]))
    same_bits(run(model, folder, InProcess(), made(TEXT)), measure_entropy(model, corpus(TEXT), progress=False))


def test_another_reference_is_refused(model: HookedTransformer, tmp_path: Path) -> None:
    def ablate(reference: Corpus, engine: Engine) -> Any:
        given = {"heads": ["0.0"], "values": ("mean",), "progress": False, "out": tmp_path / "run", "resume": True}
        return ablate_heads(model, corpus(TEXT), reference=reference, engine=engine, **given)

    with pytest.raises(IncompleteRunError):
        ablate(corpus(TEXT), Part(0, 2, shard_tokens=SHARD))
    with pytest.raises(InvalidInputError, match=r"reference\.corpus is"):
        ablate(corpus(TEXT[::-1]), Part(1, 2, shard_tokens=SHARD))
    ablate(corpus(TEXT), InProcess())
    with pytest.raises(InvalidInputError, match=r"reference\.corpus is"):
        ablate(corpus(TEXT[::-1]), InProcess())


def test_workers_refuse_other_models_and_kernels(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(model, tmp_path / "run", 0)
    with pytest.raises(InvalidInputError, match=r"no sharded run's folder: it has no call.json"):
        Worker(place_of(folder), loaded=model)
    with pytest.raises(IncompleteRunError):
        run(model, folder, Part(0, 3))
    with pytest.raises(InvalidInputError, match="weights of 'custom' are not those of the run"):
        Worker(place_of(folder), loaded=make_model(seed=1))
    other = make_model()
    other.cfg.eps = 0.5
    with pytest.raises(InvalidInputError, match=r"config of the worker's model .*: eps is 1e-05 there and 0\.5 here"):
        Worker(place_of(folder), loaded=other)
    moved = make_model()
    moved.cfg.tokenizer_name = "elsewhere"
    Worker(place_of(folder), loaded=moved)
    with pytest.raises(InvalidInputError, match="has no copy of its model"):
        Worker(place_of(folder))
    with pytest.raises(IncompleteRunError, match="'means' is wanted, and 'entropy' comes first"):
        Worker(place_of(folder), loaded=model).measure("means", 0)
    with monkeypatch.context() as patch, pytest.raises(InvalidInputError, match="has the kernels 'torch'"):
        patch.setenv("HEADSCOPE_KERNELS", "torch")
        Worker(place_of(folder), loaded=model)
    with pytest.raises(InvalidInputError, match="is no run's folder"):
        Worker(str(tmp_path / "nowhere"))
    call = json.loads((folder / "call.json").read_text())
    for function in ("os:system", "headscope.analysis.core.stats:estimate"):
        (folder / "call.json").write_text(json.dumps({**call, "function": function}))
        with pytest.raises(CheckpointError, match="is no analysis"):
            read_call(place_of(folder))
    with pytest.raises(InvalidInputError, match="heads holds a generator, which cannot be sent"):
        call_with(model, tmp_path / "other", heads=(label for label in ["0.0"]))


def call_with(model: HookedTransformer, folder: Path, **options: Any) -> None:
    CASES["dynamic OV"][0](model, make_tokens(), progress=False, out=folder, engine=Part(0, 1), **options)


def test_a_receipt_that_comes_twice_counts_once() -> None:
    receipts = [Receipt("s", number, 1, 0.0, "w", 0.0, "") for number in (1, 0, 1, 5, 0)]

    class Twice(Engine):
        def map_shards(self, jobs: Sequence[ShardJob]) -> list[Receipt]:
            return receipts

    jobs = [ShardJob("s", number, 1, None) for number in (0, 1)]  # type: ignore[arg-type]
    assert [receipt.number for receipt in map_shards(jobs, Twice())] == [1, 0]
    assert list(map_shards([], Twice())) == []


# Where runs are kept


def test_a_run_behind_a_url(model: HookedTransformer, tmp_path: Path) -> None:
    wanted = run(model, tmp_path / "disk", InProcess(shard_tokens=SHARD), reduce="none", baseline="mean")
    url = f"memory://{tmp_path.name}/run"
    options = {"reduce": "none", "baseline": "mean"}
    same_bits(run(model, url, Elsewhere(), **options), wanted)  # type: ignore[arg-type]
    same_bits(run(model, url, MergeOnly(), **options), wanted)  # type: ignore[arg-type]
    found = measure_calibration(model, make_tokens(), out=f"memory://{tmp_path.name}/plain", progress=False)
    again = measure_calibration(
        model, make_tokens(), out=f"memory://{tmp_path.name}/plain", progress=False, resume=True
    )
    same_bits(again, found)
    with pytest.raises(InvalidInputError, match="holds a run already"):
        measure_calibration(model, make_tokens(), out=f"memory://{tmp_path.name}/plain", progress=False)
    with pytest.raises(InvalidInputError, match="'nothing://x' cannot be a run's folder"):
        place_of("nothing://x")


def test_two_processes_that_do_one_shard_at_once(model: HookedTransformer, tmp_path: Path) -> None:
    """One of them, thought dead, writes again what it had: an earlier state, over a finished one."""
    folder = begun(model, tmp_path / "run", 0, reduce="none")
    wanted = run(model, tmp_path / "whole", InProcess(shard_tokens=SHARD), reduce="none")
    ghost: list[bytes] = []

    class Stops(Exception):
        pass

    def update(self: EntropyAccumulator, batch: Batch, real: Any = EntropyAccumulator.update) -> None:
        if ghost == [] and state(folder, 1).exists():
            ghost.append(state(folder, 1).read_bytes())
            raise Stops
        real(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stops):
        patch.setattr(EntropyAccumulator, "update", update)
        run(model, folder, InProcess(), reduce="none", flush_every=1)

    class Haunted(InProcess):
        def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
            for receipt in super().map_shards(jobs):
                if receipt.number == 1 and ghost:
                    state(folder, 1).write_bytes(ghost.pop())
                yield receipt

    with pytest.warns(UserWarning, match="shard 1 of 'entropy' is done again: 000001.safetensors is not finished"):
        same_bits(run(model, folder, Haunted(), reduce="none", flush_every=1), wanted)


def test_a_full_disk_leaves_the_run_as_it_was(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(model, tmp_path / "whole", InProcess(shard_tokens=SHARD), baseline="mean")
    folder, n_failures = tmp_path / "run", 0
    real = os.replace

    def failing(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(self, target)
        return target

    for n_writes in (0, 1, 3, 6, 7, 9, 12, 40):
        left = n_writes
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing)
            try:
                found = run(model, folder, InProcess(shard_tokens=SHARD), baseline="mean")
            except StorageError:
                n_failures += 1
    assert n_failures >= 2
    same_bits(found, wanted)


def test_shards_are_whole_batches(model: HookedTransformer, tmp_path: Path) -> None:
    place = place_of(tmp_path)
    masked = {"tokens": make_tokens()[:3], "attention_mask": torch.ones(3, 8)}
    data = [masked, make_tokens()[3:]]
    whole = list(iterate_batches(model, data, progress=False))
    cut = Cut.make(place, "data", iter(whole), SHARD)
    assert [shard.n_tokens for shard in cut.shards] == [24, 32, 16] and cut.n_tokens == 72
    assert [shard.first_row for shard in cut.shards] == [0, 3, 7]
    again = [each for shard in cut.shards for each in iterate_batches(model, cut.batches(shard.number), progress=False)]
    assert len(again) == len(whole)
    for ours, theirs in zip(again, whole, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.counted, theirs.counted)
        assert (ours.attention_mask is None) == (theirs.attention_mask is None)
    found = Cut.read(place, "data")
    assert found is not None and found.shards == cut.shards and found.hash == cut.hash


def test_little_data_is_cut_for_several_workers(model: HookedTransformer, tmp_path: Path) -> None:
    """A 32nd of it, in whole batches; what has a size of its own keeps it."""
    assert [shard_size(torch.zeros(n, 64)) for n in (1, 64, 100_000)] == [2, 128, 2**15]
    assert shard_size(iter([torch.zeros(1, 64)])) == 2**15
    rows = [row[None] for row in make_tokens()]
    run(model, tmp_path / "run", InProcess(), rows)
    assert len(list((tmp_path / "run" / "shards" / "entropy").glob("*.json"))) == len(rows)
