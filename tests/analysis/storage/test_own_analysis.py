"""An analysis made of what `headscope.analysis` exports, as the tutorial makes one."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from small_models import small_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import Accumulator, Array, Batch, Passes, Result, streaming
from headscope.scale import InProcess


@dataclass(frozen=True, repr=False)
class MeanToken(Result):
    """The mean token."""

    kind: ClassVar[str] = "mean_token"
    arrays: ClassVar = {"mean": Array("")}
    mean: Tensor


class MeanTokenAccumulator(Accumulator[MeanToken]):
    def update(self, batch: Batch) -> None:
        counted = batch.tokens[batch.counted]
        self.add(batch, len(counted), {"sum": counted.double().sum()})

    def summary(self, rows: dict[str, Tensor]) -> MeanToken:
        return MeanToken(self.info({}), self.sums["sum"] / self.n_positions)


@streaming()
def mean_token(model: HookedTransformer, data: Any, **run):
    """Measure the mean token."""
    passes = Passes("mean-token", model, data, {}, **run)
    if (finished := passes.finished(MeanToken)) is not None:
        return finished
    return passes.finish("mean token", MeanTokenAccumulator(model, {}, passes.described))


def test_an_analysis_without_annotations_has_the_options_of_every_run(tmp_path: Path) -> None:
    assert {"out", "resume", "engine", "include_bos"} <= {*inspect.signature(mean_token).parameters}
    assert mean_token.__doc__ == "Measure the mean token."
    model = small_model()
    tokens = torch.randint(1, model.cfg.d_vocab, (6, 5), generator=torch.Generator().manual_seed(0))
    found = mean_token(model, tokens, progress=False)
    assert float(found.mean) == float(tokens.double().mean())
    engine = InProcess(shard_tokens=8)
    sharded = mean_token(model, tokens, engine=engine, out=tmp_path / "run", progress=False)
    again = mean_token(model, tokens, engine=engine, out=tmp_path / "run", resume=True, progress=False)
    assert float(sharded.mean) == float(again.mean) == float(found.mean)
