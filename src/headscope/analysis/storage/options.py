"""The options that every analysis of a stream takes, declared and documented once.

A function that takes them is written with `**run: Unpack[StreamOptions]` under `@streaming()`. Type checkers and
editors see each by name; so do `help()` and `inspect.signature`, to which the decorator shows them with their defaults
and their documentation.
"""

import inspect
import textwrap
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Any, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

from torch import Tensor

from headscope.analysis.storage.sharded import Call, Sharding

__all__ = ["RunOptions", "StreamOptions", "streaming"]

P = ParamSpec("P")
R = TypeVar("R")


class RunOptions(TypedDict, total=False):
    """Options of a run over batches; `_OPTIONS` says what each is."""

    attention_mask: Tensor | None
    describe: str | None
    progress: bool
    out: str | Path | None
    resume: bool
    flush_every: int | None
    engine: Any


class StreamOptions(RunOptions, total=False):
    """Those of a run in which BOS positions may count or not."""

    include_bos: bool


# The default of each, and its meaning.
_OPTIONS: dict[str, tuple[Any, str]] = {
    "attention_mask": (None, "1 for real tokens, for a tensor of tokens; default: found from the padding token."),
    "include_bos": (False, "Let BOS positions count, in means too."),
    "describe": (None, "What the data is, for titles; default: its shape."),
    "progress": (True, "Show a progress bar."),
    "out": (
        None,
        "A folder to keep the run in, so that it can be stopped at any moment and resumed. What is measured goes to "
        "the disk as it comes, and the result is written there as `result.safetensors`. Another run's folder raises "
        "`InvalidInputError`, one that cannot be written `StorageError` (what was written before stands), and a "
        "damaged one `CheckpointError`.",
    ),
    "resume": (
        False,
        "Go on with the run that `out` holds, if it holds one; the result is that of a run never stopped. The "
        "model, the data and the options must be the same, and hooks at the same places.",
    ),
    "flush_every": (
        None,
        "Write to `out` after so many batches (of about 2,000 tokens) too. By default what was measured is there "
        "within 30 seconds, or the time of one batch, and sooner where a process has just begun.",
    ),
    "engine": (
        None,
        "Who measures, where the data is cut into shards that `out` keeps: one of `headscope.scale`, such as "
        "`Processes(8)`. The result has the same bits whoever measures, in whatever order. `IncompleteRunError` "
        "says that shards are left to others.",
    ),
}
# Those that belong to one process of a run, not to the run.
_OF_A_PROCESS = ("engine", "out", "resume", "progress")


def streaming(**defaults: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show the options that stand behind a function's `**run`, and fill in those not given.

    `**run: Unpack[StreamOptions]` or `Unpack[RunOptions]` says which; without an annotation it is the former.

    Args:
        defaults: Where they are other than for most analyses.

    Returns:
        A decorator. The function then finds every option in `run`. In its docstring, the line of `**run` gives way to
        a line for each.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        # A function that does not say which options it takes has all of them.
        (shared,) = get_args(signature.parameters["run"].annotation) or (StreamOptions,)
        types = get_type_hints(shared)
        names = [name for name in _OPTIONS if name in types]
        values = {name: default for name, (default, _) in _OPTIONS.items()} | defaults
        more = [Parameter(name, Parameter.KEYWORD_ONLY, default=values[name], annotation=types[name]) for name in names]
        own = [parameter for name, parameter in signature.parameters.items() if name != "run"]
        shown = signature.replace(parameters=[*own, *more])

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = shown.bind(*args, **kwargs)
            bound.apply_defaults()
            engine = bound.arguments["engine"]
            if engine is None or isinstance(engine, Sharding):
                return function(*bound.args, **bound.kwargs)
            given = dict(list(bound.arguments.items())[1:])  # without the model
            called = {name: value for name, value in given.items() if name not in _OF_A_PROCESS}
            call = Call(f"{function.__module__}:{function.__qualname__}", called)
            bound.arguments["engine"] = Sharding(engine, call)
            try:
                return function(*bound.args, **bound.kwargs)
            finally:
                engine.end()

        run.__signature__ = shown  # type: ignore[attr-defined]
        if function.__doc__ is not None:
            run.__doc__ = _with_meanings(function.__doc__, names)
        return run

    return decorate


def _with_meanings(documentation: str, names: list[str]) -> str:
    lines = documentation.splitlines()
    at = next((number for number, line in enumerate(lines) if line.lstrip().startswith("**run:")), None)
    if at is None:
        return documentation
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    wrapped = [textwrap.wrap(f"{name}: {_OPTIONS[name][1]}", 112) for name in names]
    meanings = [indent + "    " * (number > 0) + line for each in wrapped for number, line in enumerate(each)]
    return "\n".join([*lines[:at], *meanings, *lines[at + 1 :]])
