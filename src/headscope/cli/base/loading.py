"""The model of a command, and the options of how it is loaded, which all commands with a model share."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from headscope.errors import InvalidInputError
from headscope.model.checkpoints.families.field import saved_with
from headscope.model.checkpoints.folder import CheckpointFolder
from headscope.model.checkpoints.pipeline import find_tokenizer
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import get_device

__all__ = ["Device", "from_options", "load", "mapped_folder", "with_loading_options"]

_PANEL = "How the model is loaded"


def _is_there(device: str | None) -> str | None:
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            there = f"this machine has {get_device()}" + (", and no GPU that PyTorch finds" * (get_device() == "cpu"))
            raise typer.BadParameter(f"{device!r} cannot be used: {there} ({str(error).splitlines()[0]}).") from None
    return device


Device = Annotated[
    str | None,
    typer.Option(
        callback=_is_there,
        metavar="DEVICE",
        help="cpu, cuda, cuda:1 or mps. Default: a GPU with CUDA, if there is one.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16 or float16. A number takes 4, 2 and 2 bytes. Default: float32, or that of a model "
        "saved by headscope.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Take the tokenizer of this model or folder, for a checkpoint saved without one.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Mapped = Annotated[
    bool,
    typer.Option(
        "--mapped",
        help="For a folder that save_pretrained of headscope wrote, on the CPU: leave the weights in their file, and "
        "read each layer when it runs.",
        rich_help_panel=_PANEL,
    ),
]

_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "device": (Device, None),
    "dtype": (Dtype, None),
    "tokenizer": (Tokenizer, None),
    "mapped": (Mapped, False),
}
_given: ContextVar[Mapping[str, Any]] = ContextVar("given", default={})  # noqa: B039


def with_loading_options(function: Callable[..., object]) -> None:
    """Give a command, as typer reads its parameters, the options of how its model is loaded."""
    signature = inspect.signature(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    function.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    function.__annotations__ = {
        **function.__annotations__,
        **{name: annotation for name, (annotation, _) in _OPTIONS.items()},
    }


@contextmanager
def from_options(arguments: dict[str, Any]) -> Iterator[None]:
    """Take the options of how a model is loaded out of a command's arguments, for `load` within the command."""
    before = _given.set({name: arguments.pop(name) for name in _OPTIONS if name in arguments})
    try:
        yield
    finally:
        _given.reset(before)


def load(name: str) -> HookedTransformer:
    """Load a model as the options of this command say.

    Raises:
        InvalidInputError: For `--mapped` and a model whose weights cannot stay as they are.
    """
    given = _given.get()
    if given.get("mapped"):
        _check_can_be_mapped(name, given)
    tokenizer = given.get("tokenizer")
    return HookedTransformer.from_pretrained(
        name,
        device=given.get("device"),
        dtype=given.get("dtype"),
        tokenizer=None if tokenizer is None else find_tokenizer(tokenizer),
        mapped=bool(given.get("mapped")),
    )


def mapped_folder(name: str) -> str | None:
    """Return the folder that workers are to map instead of a copy of their own, with `--mapped`."""
    return name if _given.get().get("mapped") else None


def _check_can_be_mapped(name: str, given: Mapping[str, Any]) -> None:
    folder = Path(name)
    if not (folder / "config.json").is_file() or saved_with(CheckpointFolder(folder).config()) is None:
        raise InvalidInputError(
            f"--mapped leaves weights in their file, and those of {name!r} are rewritten when they are loaded. Save "
            f"them as they are then, once, where they fit: HookedTransformer.from_pretrained({name!r})"
            ".save_pretrained('FOLDER'); and give FOLDER."
        )
    for option in ("device", "dtype"):
        if given.get(option) not in (None, "cpu"):
            raise InvalidInputError(
                f"--mapped leaves weights in their file, as they are there, and --{option} {given[option]} would copy "
                "them: leave one of the two out."
            )
