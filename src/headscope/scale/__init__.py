"""Corpus runs on many workers, with the numbers of one.

Every analysis of a stream takes an `engine`, which says who measures: `InProcess()`, `Processes(8)` on this machine,
`Ray("auto")` on a cluster, `Part(3, 64)` of a SLURM array. The data is cut into shards before anything is measured,
and what the shards come to is merged in a fixed order, so that the result has the same bits whoever measured, in
whatever order.
"""

from headscope.analysis.storage.sharded import Engine, Receipt, ShardJob, map_shards
from headscope.scale.engines import InProcess, MergeOnly, Part
from headscope.scale.processes import Processes
from headscope.scale.ray_workers import Ray
from headscope.scale.runs import PassStatus, RunStatus, WorkerStatus, merge, status

__all__ = [
    "Engine",
    "InProcess",
    "MergeOnly",
    "Part",
    "PassStatus",
    "Processes",
    "Ray",
    "Receipt",
    "RunStatus",
    "ShardJob",
    "WorkerStatus",
    "map_shards",
    "merge",
    "status",
]
