"""`Passes`: the way an analysis goes through its data, once or more often, kept in a folder where there is one."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar, Unpack

from headscope.analysis.core.batches import describe_data, iterate_batches
from headscope.analysis.core.result import Result
from headscope.analysis.storage.accumulator import Accumulator, as_mapping
from headscope.analysis.storage.manifest import compare_manifests, make_manifest, read_manifest
from headscope.analysis.storage.options import StreamOptions
from headscope.analysis.storage.run_folder import Stage, accumulate, check_folder, writing
from headscope.errors import CheckpointError, InvalidInputError, check_at_least
from headscope.model.checkpoints.files import write_bytes
from headscope.model.transformer import HookedTransformer

__all__ = ["Passes"]

A = TypeVar("A", bound=Accumulator[Any])
R = TypeVar("R", bound=Result)


class Passes:
    """The passes of one analysis over its data, kept in a folder where `out` names one (see `run_folder`).

    Args:
        analysis: Name of the analysis.
        model: The model.
        data: See `iterate_batches`.
        options: The options that the result depends on, as a dataclass or a mapping.
        reference: Other data that a pass may go through; `None` for the data itself.
        **run: All of `StreamOptions`, as `streaming` fills them in.

    Attributes:
        described: What the data is.

    Raises:
        InvalidInputError: if `out` holds other files or another run, or a run and `resume` is false; if `resume` has no
            `out`, or `flush_every` is below 1.
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
        **run: Unpack[StreamOptions],
    ) -> None:
        check_at_least(1, flush_every=run["flush_every"])
        if run["out"] is None and run["resume"]:
            raise InvalidInputError("resume=True goes on with the run in a folder; say which by out.")
        self.model, self.data, self.reference, self._run = model, data, reference, run
        self.described = run["describe"] or describe_data(data)
        self._stages: dict[str, Stage] = {}
        self._folder = None if run["out"] is None else Path(run["out"])
        if self._folder is None:
            return
        path = self._folder / "manifest.json"
        check_folder(self._folder, path, run["resume"])
        described = self.described, as_mapping(options)
        manifest = make_manifest(analysis, model, data, reference, run["attention_mask"], *described)
        if run["resume"] and path.exists():
            compare_manifests(self._folder, read_manifest(path), manifest)
            return
        with writing(path):
            write_bytes(path, json.dumps(manifest, indent=2).encode())

    def finished(self, kind: type[R]) -> R | None:
        """Return the result, if the folder holds it already."""
        path = self._result_path
        if path is None or not path.exists():
            return None
        try:
            result = kind.load(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error} Delete that file, and resume=True makes it again from the rest.") from None
        self._remove_rows()
        return result

    def gather(
        self,
        name: str,
        accumulator: A,
        *,
        after: str | None = None,
        of_reference: bool = False,
        include_bos: bool | None = None,
    ) -> A:
        """Go through the data once, or on from where the folder is.

        Args:
            name: The name of the pass, in the folder and beside the progress bar.
            accumulator: A new one, which is returned.
            after: A pass before this one over the same data, which must not have changed since.
            of_reference: Go through the reference, if there is one, instead.
            include_bos: Other than for the other passes.
        """
        stage = None
        if self._folder is not None:
            before = self._stages[after] if after else None
            stage = self._stages[name] = Stage(self._folder, name.replace(" ", "-"), after=before)
        elsewhere = of_reference and self.reference is not None
        batches = iterate_batches(
            self.model,
            self.reference if elsewhere else self.data,
            attention_mask=None if elsewhere else self._run["attention_mask"],
            include_bos=self._run["include_bos"] if include_bos is None else include_bos,
            progress=self._run["progress"],
            description=name,
            done=0 if stage is None else stage.done.n_tokens,
        )
        # Closed here, so that a pass that fails leaves no progress bar open.
        with closing(batches):
            return accumulate(batches, accumulator, stage=stage, flush_every=self._run["flush_every"])

    def finish(self, name: str, accumulator: Accumulator[R], *, after: str | None = None) -> R:
        """Go through the data for the last time; the result, which the folder then holds too."""
        self.gather(name, accumulator, after=after)
        return self.keep(accumulator.result(self._stages[name].rows() if self._stages else None))

    def keep(self, result: R) -> R:
        """Write the result to the folder, where there is one, and remove the rows it was put together from."""
        path = self._result_path
        if path is not None:
            with writing(path):
                result.save(path)
            self._remove_rows()
        return result

    @property
    def _result_path(self) -> Path | None:
        return None if self._folder is None else self._folder / "result.safetensors"

    def _remove_rows(self) -> None:
        for shard in [] if self._folder is None else self._folder.glob("*-rows-*.safetensors*"):
            shard.unlink(missing_ok=True)
