"""The call of a sharded run, kept in its folder, so that a process elsewhere can take part in it or merge it.

`call.json` names the function and its arguments, and `call.safetensors` holds those that are tensors. Data that is read
as it comes (a corpus, a loader) is not among them: a worker has the tokens of its shards. Reading a call runs no code
but ours: the function is an analysis of this package, and objects are made of its own dataclasses only.
"""

import dataclasses
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from headscope.analysis.storage.places import Place
from headscope.analysis.storage.sharded import ShardedRun
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.files import TensorFiles, write_tensors
from headscope.ops.devices import Budget, Tile
from headscope.scale.models import check_without_hooks

__all__ = ["RecordedCall", "read_call", "write_call", "write_call_for_others"]

_FILE, _TENSORS = "call.json", "call.safetensors"
_DATA = ("data", "reference")


class _DataOfShards:
    """Stands for data that a process does not have, as its shards have the tokens."""

    def __iter__(self) -> Iterator[Any]:
        raise InvalidInputError("this process has only the shards of the data, which were cut already.")


@dataclass(frozen=True)
class RecordedCall:
    """A call, read from a run's folder.

    Attributes:
        function: The analysis.
        arguments: Its arguments, without the model and the options of a process.
        model: A name or path that `from_pretrained` takes; `None` for the copy in the run's folder, if there is one.
        budget: The sizes that it computes with.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    model: str | None
    budget: Mapping[str, Any]


def write_call(run: ShardedRun, model: str | None) -> None:
    """Write the call of a run to its folder.

    Raises:
        InvalidInputError: for an argument that cannot be sent to another process, by name.
    """
    call, tensors = run.sharding.call, dict[str, Tensor]()
    arguments = {}
    for name, value in call.arguments.items():
        try:
            arguments[name] = _encoded(value, tensors)
        except TypeError as error:
            if name not in _DATA:
                raise InvalidInputError(
                    f"{name} holds {error}, which cannot be sent to workers. Give numbers, texts, tensors, a Task, or "
                    "lists of these; or measure in one process, without an engine."
                ) from None
            arguments[name] = {"data of shards": name}
    arguments["describe"] = run.described
    budget = dataclasses.asdict(Budget.of(run.model.W_E.device))
    if tensors:
        with run.place.new_file(_TENSORS) as path:
            write_tensors(path, tensors, {"kind": "call"})
    content = {"function": call.function, "arguments": arguments, "model": model, "budget": budget}
    run.place.write(_FILE, json.dumps(content, indent=2).encode())


def write_call_for_others(run: ShardedRun, model: str | None) -> None:
    """Write the call of a run for processes that have neither this one's memory nor its hooks.

    Raises:
        InvalidInputError: for a model with hooks, a folder in memory, or an argument that cannot be sent.
    """
    if str(run.place).startswith("memory://"):
        raise InvalidInputError(f"{run.place} is in the memory of this process, where no other can reach it.")
    check_without_hooks(run.model)
    write_call(run, model)


def read_call(place: Place) -> RecordedCall:
    """Read the call of a run from its folder.

    Raises:
        CheckpointError: if it is damaged, or is not one of an analysis.
        InvalidInputError: if there is none.
    """
    if not place.has(_FILE):
        raise InvalidInputError(
            f"{str(place)!r} is no sharded run's folder: it has no {_FILE}. Such a run is begun by Processes, Ray or "
            "Part, which are --workers, --ray and --shard on the command line.",
            code="HS-RUN-05",
        )
    try:
        content = json.loads(place.read(_FILE))
        tensors: Mapping[str, Tensor] = {}
        if place.has(_TENSORS):
            with place.file(_TENSORS) as path:
                tensors = dict(TensorFiles([path]).items())
        arguments = {name: _decoded(value, tensors) for name, value in content["arguments"].items()}
        budget = {name: Tile(*value) if isinstance(value, list) else value for name, value in content["budget"].items()}
        return RecordedCall(_function(content["function"]), arguments, content["model"], budget)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{place}/{_FILE} is damaged, or was written by another version: {error!r}.", code="HS-CHECKPOINT-15"
        ) from None


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    if not module.startswith(("headscope.analysis.", "headscope.explorer.measuring.")):
        raise ValueError(f"{name!r} is no analysis")
    function = getattr(importlib.import_module(module), attribute)
    if "engine" not in inspect.signature(function).parameters:
        raise ValueError(f"{name!r} is no analysis of a stream")
    return function


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON keeps it, putting tensors among the others; a `TypeError` names what cannot be kept."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu()
        return {"tensor": name}
    if isinstance(value, list):
        return [_encoded(each, tensors) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [_encoded(each, tensors) for each in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[_encoded(key, tensors), _encoded(each, tensors)] for key, each in value.items()]}
    kind = type(value)
    if dataclasses.is_dataclass(value) and kind.__module__.startswith("headscope."):
        fields = {each.name: _encoded(getattr(value, each.name), tensors) for each in dataclasses.fields(value)}
        return {"object": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    raise TypeError(f"a {kind.__name__}")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_decoded(each, tensors) for each in value["tuple"])
    if "mapping" in value:
        return {_decoded(key, tensors): _decoded(each, tensors) for key, each in value["mapping"]}
    if "data of shards" in value:
        return _DataOfShards()
    module, _, name = value["object"].partition(":")
    kind = getattr(importlib.import_module(module), name) if module.startswith("headscope.") else None
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise ValueError(f"{value['object']!r} is no dataclass of headscope")
    return kind(**{field: _decoded(each, tensors) for field, each in value["fields"].items()})
