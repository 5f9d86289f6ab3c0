"""Workers of a Ray cluster of several nodes on this machine: the bits of one process, whatever dies."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from streams import make_model, measured, same_bits

from headscope import HookedTransformer
from headscope.analysis.storage.sharded import map_shards
from headscope.errors import InvalidInputError, MissingDependencyError, NotFiniteError, ShardError
from headscope.scale import InProcess, Ray, Receipt, ShardJob, status
from headscope.scale.ray_workers import _Actor

TOKENS = torch.randint(0, 23, (64, 8), generator=torch.Generator().manual_seed(0))
SHARD = 24  # tokens: sixteen shards of two batches


def test_without_ray(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[ray\]'.*Processes"):
        Ray()


class StandIn:
    """Ray without Ray: workers that answer at once, or never."""

    def __init__(self, answers: bool) -> None:
        self.results: dict[Any, Any] = {}
        self.answers, self.n_killed = answers, 0
        self.exceptions = SimpleNamespace(RayError=OSError)

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref in self.results][:num_returns], []

    def get(self, ref: Any) -> Any:
        return self.results[ref]

    def kill(self, handle: Any) -> None:
        self.n_killed += 1

    def actor(self) -> _Actor:
        return _Actor(SimpleNamespace(measure=SimpleNamespace(remote=self.measure)), None)

    def measure(self, stage: str, number: int) -> Any:
        ref = object()
        if self.answers:
            self.results[ref] = answer(stage, number)
        return ref


def answer(stage: str, number: int) -> dict[str, Any]:
    return {"receipt": asdict(Receipt(stage, number, 1, 0.1, "worker", 0.0, ""))}


def without_cluster(monkeypatch: pytest.MonkeyPatch, answers: bool, **options: Any) -> tuple[Ray, StandIn]:
    ray = StandIn(answers)
    monkeypatch.setitem(sys.modules, "ray", ray)
    engine = Ray(**options)
    monkeypatch.setattr(engine, "_connect", lambda: setattr(engine, "_room", options["workers"]))
    monkeypatch.setattr(engine, "_started", ray.actor)
    return engine, ray


RUN: Any = SimpleNamespace(note_failure=lambda *_: None)


@pytest.mark.parametrize(
    "stale", [answer("means", 0), {"error": "'entropy' comes first.", "kind": "IncompleteRunError"}]
)
def test_a_reply_of_the_pass_before_counts_for_nothing(monkeypatch: pytest.MonkeyPatch, stale: dict[str, Any]) -> None:
    engine, ray = without_cluster(monkeypatch, answers=True, workers=2, timeout=60.0)
    late = ray.actor()  # its shard was raced by another, and the pass is over
    late.jobs["stale"], late.is_late = ShardJob("means", 0, 1, RUN), True
    ray.results["stale"] = stale
    engine._actors = [late, ray.actor()]
    found = list(map_shards([ShardJob("entropy", number, 1, RUN) for number in range(6)], engine))
    assert {(receipt.stage, receipt.number) for receipt in found} == {("entropy", number) for number in range(6)}


def test_a_shard_that_always_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ray = without_cluster(monkeypatch, answers=False, workers=1, timeout=0.01, retries=1)
    with pytest.raises(ShardError, match=r"shard 0 of 'means' failed 2 times, .* it took more than 0.01 seconds"):
        list(map_shards([ShardJob("means", 0, 1, RUN)], engine))
    assert ray.n_killed == 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and three nodes of one core each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'headscope[ray]'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def connected(cluster: Any) -> Iterator[Any]:
    """This cluster, to which the process is connected already."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'headscope[ray]'")
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        yield cluster
    finally:
        ray.shutdown()


class Disturbed(Ray):
    """A worker is killed, one stops without a word, and a whole node goes, while there are shards to measure."""

    cluster: Any
    done = 0

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        for receipt in super().map_shards(jobs):
            yield receipt
            self.done += 1
            ready = [int(actor.node.rpartition(":")[2]) for actor in self._actors if actor.ready]
            if self.done == 3:
                os.kill(ready[0], signal.SIGKILL)
            if self.done == 8:
                os.kill(ready[-1], signal.SIGSTOP)
            if self.done == 20:
                self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_whose_workers_and_nodes_die(model: HookedTransformer, tmp_path: Path, connected: Any) -> None:
    wanted = measured(model, TOKENS, tmp_path / "one", InProcess(shard_tokens=SHARD))
    engine = Disturbed(connected.address, workers=2, shard_tokens=SHARD, timeout=3.0, retries=10)
    engine.cluster = connected
    same_bits(measured(model, TOKENS, tmp_path / "run", engine), wanted)
    assert engine.done == 32 and engine._actors == []
    assert "entropy: 16 of 16 shards done, merged\nThe result is there." in str(status(tmp_path / "run"))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_worker_refuses_is_refused_here(model: HookedTransformer, tmp_path: Path, connected: Any) -> None:
    broken = make_model(seed=3)
    with torch.no_grad():
        broken.W_U.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="the logits hold NaN"):
        measured(broken, TOKENS, tmp_path / "run", Ray(workers=1, shard_tokens=SHARD))
    with pytest.raises(InvalidInputError, match="is in the memory of this process"):
        measured(model, TOKENS, "memory://run", Ray(workers=1))  # type: ignore[arg-type]
