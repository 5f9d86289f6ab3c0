"""Engines without processes of their own: this one, one of several started apart, and none, which only merges."""

from collections.abc import Iterable, Iterator, Sequence

from headscope.analysis.storage.sharded import Engine, Receipt, ShardedRun, ShardJob
from headscope.errors import InvalidInputError, check_at_least
from headscope.scale.calls import write_call

__all__ = ["InProcess", "MergeOnly", "Part"]


class InProcess(Engine):
    """This process, which walks the shards one after the other.

    Args:
        shard_tokens: Least number of tokens of a shard; default: that of the run's folder, or a 32nd of the data,
            at most 32,768.

    Example:
        >>> from headscope.analysis import measure_entropy
        >>> from headscope import HookedTransformer
        >>> import tempfile
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens(["Mary went to the park.", "John gave a ball to Mary."], prepend_bos=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = f"{folder}/run"
        ...     entropy = measure_entropy(model, tokens, engine=InProcess(shard_tokens=8), out=out, progress=False)
        >>> entropy.info.n_sequences
        2
    """

    def __init__(self, *, shard_tokens: int | None = None) -> None:
        self.shard_tokens = shard_tokens

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        """Measure the shards in order."""
        for job in jobs:
            yield job.measure()


class Part(Engine):
    """One of several processes that were started apart, such as the tasks of a SLURM array.

    Each measures every `of`-th shard. The one that finds all shards of a pass done merges it, and goes on with the next
    pass or the result; the others end in `IncompleteRunError`, and are run again for the next pass.

    Args:
        number: Which one this is, from 0.
        of: How many there are.
        shard_tokens: Least number of tokens of a shard; default: that of the run's folder, or a 32nd of the data,
            at most 32,768.
        model: What `from_pretrained` takes to load the model, for `headscope merge` and others to know.

    Raises:
        InvalidInputError: if `number` is not below `of`.
    """

    def __init__(self, number: int, of: int, *, shard_tokens: int | None = None, model: str | None = None) -> None:
        check_at_least(1, of=of)
        if not 0 <= number < of:
            raise InvalidInputError(f"parts are numbered from 0 to {of - 1}; got {number}.")
        self.number, self.of, self.shard_tokens, self.model = number, of, shard_tokens, model

    def begin(self, run: ShardedRun) -> None:
        """Note the call, so that others can merge the run."""
        write_call(run, self.model)

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        """Measure this part of the shards."""
        for job in jobs:
            if job.number % self.of == self.number:
                yield job.measure()


class MergeOnly(Engine):
    """An engine that measures nothing: it lets measured shards be merged, and a run that lacks some be refused."""

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterable[Receipt]:
        """Measure nothing."""
        return ()
