"""`Passes`: the way an analysis goes through its data, once or more often, kept in a folder where there is one."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import Any, TypeVar, Unpack

from headscope.analysis.core.batches import Batch, count_tokens, describe_data, iterate_batches
from headscope.analysis.core.progress import is_shown, progress_bar
from headscope.analysis.core.result import Result
from headscope.analysis.storage.accumulator import Accumulator, as_mapping
from headscope.analysis.storage.manifest import compare_manifests, make_manifest, read_manifest
from headscope.analysis.storage.options import StreamOptions
from headscope.analysis.storage.places import Place, place_of
from headscope.analysis.storage.run_folder import RESULT, Stage, accumulate, check_folder
from headscope.analysis.storage.sharded import RunFiles, ShardedRun, Sharding, shard_size
from headscope.analysis.storage.shards import Cut
from headscope.data.corpus import Corpus
from headscope.errors import CheckpointError, InvalidInputError, check_at_least
from headscope.model.transformer import HookedTransformer

__all__ = ["Passes"]

A = TypeVar("A", bound=Accumulator[Any])
R = TypeVar("R", bound=Result)

_MANIFEST = "manifest.json"


class Passes:
    """The passes of one analysis over its data, kept in a folder where `out` names one (see `run_folder`).

    With an `engine` the data is cut, and each pass is the merge of its shards (see `sharded`).

    Args:
        analysis: Name of the analysis.
        model: The model.
        data: See `iterate_batches`.
        options: The options that the result depends on, as a dataclass or a mapping.
        reference: Other data that a pass may go through; `None` for the data itself.
        order: The names of the passes, where there are several, and which data each goes through: `"data"` or
            `"reference"`.
        **run: All of `StreamOptions`, as `streaming` fills them in.

    Attributes:
        described: What the data is.

    Raises:
        InvalidInputError: if `out` holds other files or another run, or a run and `resume` is false; if `resume` or
            `engine` has no `out`, or `flush_every` is below 1.
        CheckpointError: if what `out` holds is damaged.
        StorageError: if `out` cannot be written.
    """

    def __init__(
        self,
        analysis: str,
        model: HookedTransformer,
        data: Any,
        options: Any,
        *,
        reference: Any = None,
        order: Mapping[str, str] = MappingProxyType({}),
        **run: Unpack[StreamOptions],
    ) -> None:
        if run["flush_every"] is not None:
            check_at_least(1, flush_every=run["flush_every"])
        sharding: Sharding | None = run["engine"]
        if run["out"] is None and run["resume"]:
            raise InvalidInputError("resume=True goes on with the run in a folder; say which by out.", code="HS-RUN-06")
        if run["out"] is None and sharding is not None:
            raise InvalidInputError(
                "an engine keeps the shards of a run in a folder; say which by out.", code="HS-RUN-06"
            )
        self.model, self.data, self.reference, self._run = model, data, reference, run
        self.described = run["describe"] or describe_data(data)
        self._order = order
        self._stages: dict[str, Stage] = {}
        self._place = None if run["out"] is None else place_of(run["out"])
        self._sharded: ShardedRun | None = None
        if self._place is None:
            return
        files = None if sharding is None else sharding.files
        if files is None:
            described = self.described, as_mapping(options)
            manifest = make_manifest(analysis, model, data, reference, run["attention_mask"], *described)
            manifest = self._begun(self._place, manifest, sharding)
            files = RunFiles(self._place, manifest, {} if sharding is None else self._cuts(self._place, manifest))
        if sharding is not None:
            self._sharded = ShardedRun(
                files,
                model,
                sharding,
                described=self.described,
                order=tuple(order),
                flush_every=run["flush_every"],
                progress=run["progress"],
            )

    def _begun(self, place: Place, manifest: dict[str, Any], sharding: Sharding | None) -> dict[str, Any]:
        """Note what is run on what, or compare it with what the folder holds; return the folder's."""
        check_folder(place, _MANIFEST, self._run["resume"])
        there = read_manifest(place, _MANIFEST) if self._run["resume"] and place.has(_MANIFEST) else None
        cut_there = None if there is None else there.get("shards")
        if sharding is not None or cut_there is not None:
            # Shards are taken without the data being read again, so a corpus has to be known by its description.
            for name, data in (("data", self.data), ("reference", self.reference)):
                if isinstance(data, Corpus):
                    manifest[name]["corpus"] = data.fingerprint()
        if sharding is not None:
            size = sharding.engine.shard_tokens if sharding.engine is not None else None
            if size is None:
                size = cut_there["shard_tokens"] if cut_there else shard_size(self.data)
            check_at_least(1, shard_tokens=size)
            manifest["shards"] = {"shard_tokens": size}
        elif there is not None and cut_there is not None:
            if not place.has(RESULT):
                raise InvalidInputError(
                    f"the run in {str(place)!r} is in shards: go on with it by an engine, such as scale.InProcess() or "
                    "scale.Processes() (--workers), or give another folder."
                )
            manifest["shards"] = cut_there
        if there is not None:
            compare_manifests(place, there, manifest)
            return there
        place.write(_MANIFEST, json.dumps(manifest, indent=2).encode())
        return manifest

    def _cuts(self, place: Place, manifest: Mapping[str, Any]) -> dict[str, Cut]:
        """Cut the data into shards, or find those that the folder holds."""
        cuts = {}
        given = {"data": self.data, "reference": self.reference}
        for name, data in given.items():
            if data is None:
                continue
            size = manifest["shards"]["shard_tokens"]
            cut = Cut.read(place, name)
            if cut is None:
                with closing(self._batches(name, "cutting", include_bos=True)) as batches:
                    cut = Cut.make(place, name, batches, size)
            elif not _fingerprinted(data, manifest[name]) and not place.has(RESULT):
                with closing(self._batches(name, "comparing", include_bos=True)) as batches:
                    cut.check(batches, size)
            cuts[name] = cut
        return cuts

    def _batches(self, data: str, description: str, *, include_bos: bool, done: int = 0) -> Generator[Batch]:
        of_reference = data == "reference"
        return iterate_batches(
            self.model,
            self.reference if of_reference else self.data,
            attention_mask=None if of_reference else self._run["attention_mask"],
            include_bos=include_bos,
            progress=self._run["progress"],
            description=description,
            done=done,
        )

    def finished(self, kind: type[R]) -> R | None:
        """Return the result, if the folder holds it already."""
        if self._place is None or not self._place.has(RESULT):
            return None
        try:
            with self._place.file(RESULT) as path:
                result = kind.load(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error.message} Delete that file, and resume=True makes it again from the rest; for a result per "
                "position, whose rows are kept nowhere else, delete the folder and start again.",
                code="HS-CHECKPOINT-15",
            ) from None
        self._tidy()
        return result

    def gather(
        self,
        name: str,
        accumulator: A,
        *,
        after: str | None = None,
        include_bos: bool | None = None,
    ) -> A:
        """Go through the data once, or on from where the folder is.

        Args:
            name: The name of the pass, in the folder and beside the progress bar.
            accumulator: A new one, which is returned.
            after: A pass before this one over the same data, which must not have changed since.
            include_bos: Other than for the other passes.
        """
        counting = self._run["include_bos"] if include_bos is None else include_bos
        with self._bar_of_all(name):
            return self._gathered(name, accumulator, after, counting)

    def _gathered(self, name: str, accumulator: A, after: str | None, include_bos: bool) -> A:
        data = self._data_of(name)
        if self._sharded is not None:
            accumulator, self._stages[name] = self._sharded.gather(
                name, accumulator, data=data, include_bos=include_bos
            )
            return accumulator
        stage = None
        if self._place is not None:
            before = self._stages[after] if after else None
            stage = self._stages[name] = Stage(self._place, name.replace(" ", "-"), after=before)
            stage.clear_uncounted()
        done = 0 if stage is None else stage.done.n_tokens
        # Closed here, so that a pass that fails leaves no progress bar open.
        with closing(self._batches(data, name, include_bos=include_bos, done=done)) as batches:
            return accumulate(batches, accumulator, stage=stage, flush_every=self._run["flush_every"])

    def _data_of(self, name: str) -> str:
        """Return which data a pass goes through."""
        return "data" if self.reference is None else self._order.get(name, "data")

    @contextmanager
    def _bar_of_all(self, name: str) -> Iterator[None]:
        """Open one bar for all passes, at the start of this one, where their sizes are known and no bar is open."""
        wanted = self._run["progress"] and len(self._order) > 1 and not is_shown()
        sizes = [self._n_tokens(self._data_of(each)) for each in self._order] if wanted else []
        if not sizes or None in sizes:
            yield
            return
        known = [size for size in sizes if size is not None]
        at = list(self._order).index(name)
        with progress_bar(sum(known), f"{name} ({at + 1} of {len(known)})", unit="tok", done=sum(known[:at])) as bar:
            bar.step = known[at]
            yield
            if self._place is not None:
                bar.mark_safe(sum(known[: at + 1]))

    def _n_tokens(self, data: str) -> int | None:
        if self._sharded is not None:
            return self._sharded.files.cuts[data].n_tokens
        return count_tokens(self.reference if data == "reference" else self.data)

    def finish(self, name: str, accumulator: Accumulator[R], *, after: str | None = None) -> R:
        """Go through the data for the last time; the result, which the folder then holds too."""
        self.gather(name, accumulator, after=after)
        try:
            rows = self._stages[name].rows() if self._stages else None
        except CheckpointError:
            if self._sharded is not None:
                self._sharded.check_unfinished()
            raise
        return self.keep(accumulator.result(rows))

    def keep(self, result: R) -> R:
        """Write the result to the folder, where there is one, and remove what it was put together from."""
        if self._place is not None:
            with self._place.new_file(RESULT) as path:
                result.save(path)
            self._tidy()
        return result

    def _tidy(self) -> None:
        """Remove what only a run under way needs: rows of results, tokens of shards, files half written."""
        assert self._place is not None
        for name in self._place.names():
            if "-rows-" in name:
                self._place.remove(name)
        if self._sharded is not None:
            self._sharded.tidy()
        self._place.clear_partial()


def _fingerprinted(data: Any, described: Mapping[str, Any]) -> bool:
    """Return True if what the manifest says of data stands for its tokens, which need no comparison then."""
    return "tokens" in described or (isinstance(data, Corpus) and data.has_fixed_text)
