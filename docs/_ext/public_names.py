"""The public names of the package, by the page of the reference that they are on."""

import inspect
from importlib import import_module
from types import ModuleType

MODULES = (
    "headscope",
    "headscope.analysis",
    "headscope.views",
    "headscope.data",
    "headscope.training",
    "headscope.utils",
    "headscope.patching",
    "headscope.head_detector",
    "headscope.evals",
    "headscope.explorer",
    "headscope.exercises",
    "headscope.scale",
    "headscope.report",
    "headscope.errors",
)


def public(module: str, rooms: tuple[str, ...] = ()) -> list[str]:
    """Return the public names of a module, or those of its names that are defined in one of `rooms`.

    A room is the start of the path of the defining module below `headscope`, such as `analysis.lens`; `other` stands
    for what has no such path.
    """
    names = sorted(import_module(module).__all__, key=str.lower)
    return [
        name for name in names if not rooms or room_of(module, name).startswith(tuple(f"{room}." for room in rooms))
    ]


def room_of(module: str, name: str) -> str:
    """Return the path below `headscope` of the module that defines a public name, with a dot at its end."""
    thing = getattr(import_module(module), name)
    if isinstance(thing, ModuleType):
        return "modules."
    home = str(getattr(thing, "__module__", ""))
    return home.removeprefix("headscope.") + "." if home.startswith("headscope.") else "other."


def results() -> list[tuple[str, str]]:
    """Return the module and the name of every public result."""
    from headscope.analysis.core.result import Result

    found: dict[type, tuple[str, str]] = {}
    for module in MODULES:
        for name in public(module):
            thing = getattr(import_module(module), name)
            if inspect.isclass(thing) and issubclass(thing, Result) and thing is not Result:
                found.setdefault(thing, (module, name))
    return sorted(found.values(), key=lambda each: each[1].lower())
