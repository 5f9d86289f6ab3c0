"""`Passes`: how an analysis goes through its data, once or more often, kept in a folder where there is one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from headscope.analysis.core.batches import describe_data, iterate_batches
from headscope.analysis.core.result import Result
from headscope.analysis.storage.run_folder import Accumulator, LongRun, Stage, accumulate
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["Passes"]

A = TypeVar("A", bound=Accumulator)
R = TypeVar("R", bound=Result)


class Passes:
    """The passes of one analysis over its data.

    Args:
        analysis: Which analysis it is.
        model: The model.
        data: See `iterate_batches`.
        attention_mask: As there.
        include_bos: As there.
        progress: Show a progress bar for each pass.
        describe: What the data is; described by its shape otherwise.
        options: The options that the result depends on.
        out: A folder to keep the run in.
        resume: Go on with the run that `out` holds.
        flush_every: How many batches are measured between two writes.
        reference: Other data that a pass may go through; `None` for the data itself.

    Attributes:
        described: What the data is.

    Raises:
        InvalidInputError: if `out` holds another run, `resume` has no `out`, or `flush_every` is below 1.
        CheckpointError: if what `out` holds is damaged.
        StorageError: if `out` cannot be written.
    """

    def __init__(
        self,
        analysis: str,
        model: HookedTransformer,
        data: Any,
        *,
        attention_mask: Tensor | None,
        include_bos: bool,
        progress: bool,
        describe: str | None,
        options: Mapping[str, Any],
        out: str | Path | None,
        resume: bool,
        flush_every: int,
        reference: Any = None,
    ) -> None:
        if flush_every < 1:
            raise InvalidInputError(f"flush_every must be at least 1; got {flush_every}.")
        if out is None and resume:
            raise InvalidInputError("resume=True goes on with the run in a folder; say which by out.")
        self.model = model
        self.data = data
        self.reference = reference
        self.described = describe or describe_data(data)
        self._flush_every = flush_every
        self._attention_mask = attention_mask
        self._include_bos = include_bos
        self._progress = progress
        self._run = None
        if out is not None:
            self._run = LongRun(
                out,
                analysis,
                model=model,
                data=data,
                reference=reference,
                attention_mask=attention_mask,
                description=self.described,
                options=options,
                resume=resume,
            )

    def finished(self, kind: type[R]) -> R | None:
        """The result, if the folder holds it already."""
        return None if self._run is None else self._run.result(kind)

    def gather(
        self,
        name: str,
        begin: Callable[[dict[str, Any]], A],
        after: Stage | None = None,
        *,
        of_reference: bool = False,
        include_bos: bool | None = None,
    ) -> tuple[A, Stage | None]:
        """Go through the data once.

        Args:
            name: What the pass is called, in the folder and beside the progress bar.
            begin: Makes the accumulator from a `state()`, which is empty at the start.
            after: The pass before, over the same data.
            of_reference: Go through the reference, if there is one, instead.
            include_bos: Other than for the other passes.

        Returns:
            The accumulator, and what the folder holds of the pass.
        """
        stage = None if self._run is None else self._run.stage(name, after=after)
        done = 0 if stage is None else stage.done.n_tokens
        elsewhere = of_reference and self.reference is not None
        batches = iterate_batches(
            self.model,
            self.reference if elsewhere else self.data,
            attention_mask=None if elsewhere else self._attention_mask,
            include_bos=self._include_bos if include_bos is None else include_bos,
            progress=self._progress,
            description=name,
            done=done,
        )
        found = accumulate(batches, lambda state: begin(state or {}), stage=stage, flush_every=self._flush_every)
        return found, stage

    def keep(self, result: R) -> R:
        """Write the result to the folder, where there is one; returns it."""
        if self._run is not None:
            self._run.keep(result)
        return result
