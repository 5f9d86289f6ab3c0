"""Workers of a Ray cluster of several nodes on this machine: the bits of one process, whatever dies."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SetBudget
from streams import make_model, same_bits

from headscope import HookedTransformer
from headscope.analysis import measure_entropy
from headscope.errors import InvalidInputError, MissingDependencyError, NotFiniteError
from headscope.scale import InProcess, Ray, Receipt, ShardJob, status

TOKENS = torch.randint(0, 23, (64, 8), generator=torch.Generator().manual_seed(0))
SHARD = 24  # tokens: sixteen shards of two batches


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return make_model()


@pytest.fixture(autouse=True)
def _small_batches(set_budget: SetBudget) -> None:
    set_budget(batch_tokens=16)


def measure(model: HookedTransformer, out: Path, engine: Any) -> Any:
    options = {"baseline": "mean", "reduce": "none", "progress": False, "resume": True}
    return measure_entropy(model, TOKENS, out=out, engine=engine, **options)


def test_without_ray(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[ray\]'.*Processes"):
        Ray()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and three nodes of one core each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'headscope[ray]'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


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
def test_a_cluster_whose_workers_and_nodes_die(model: HookedTransformer, tmp_path: Path, cluster: Any) -> None:
    wanted = measure(model, tmp_path / "one", InProcess(shard_tokens=SHARD))
    engine = Disturbed(cluster.address, workers=2, shard_tokens=SHARD, timeout=3.0, retries=10)
    engine.cluster = cluster
    same_bits(measure(model, tmp_path / "run", engine), wanted)
    assert engine.done == 32 and engine._actors == []
    assert "entropy: 16 of 16 shards done, merged\nThe result is there." in str(status(tmp_path / "run"))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_worker_refuses_is_refused_here(model: HookedTransformer, tmp_path: Path, cluster: Any) -> None:
    broken = make_model(seed=3)
    with torch.no_grad():
        broken.W_U.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="the logits hold NaN"):
        measure(broken, tmp_path / "run", Ray(workers=1, shard_tokens=SHARD))
    with pytest.raises(InvalidInputError, match="is in the memory of this process"):
        measure(model, "memory://run", Ray(workers=1))  # type: ignore[arg-type]
