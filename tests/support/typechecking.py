"""The type checker the tests put on every function of the package: beartype, less what it cannot check.

jaxtyping's own decorator binds a call's arguments by name, checks them, calls the function, and checks them again
with the result: most of the time of a suite of small models. Here beartype checks each of them once, and only
functions that name the axes of a tensor open a scope for these names.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, Self, TypeVar, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype

_WITH_AXES = jaxtyping.jaxtyped
_WITH_TYPES = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError, is_color=False))


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Stand in for jaxtyping's decorator, which its import hook writes above every function and class."""
    return typechecker


def checked(target: Any) -> Any:
    """Check a function, or the making of a dataclass, at each call.

    Left out are annotations that hold `Self`, which beartype refuses on a single method, or a name that cannot be
    looked up: names imported under TYPE_CHECKING do not exist at run time, and a class does not yet while its own
    body runs. What a generator yields is not checked: it would be in the scope of whoever asks for it.
    """
    if inspect.isclass(target):
        if dataclasses.is_dataclass(target) and not hasattr(target.__init__, "__wrapped__"):
            target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    if not inspect.isfunction(target):
        return _WITH_AXES(target, typechecker=checked)
    hints = {name: _looked_up(hint, target.__globals__) for name, hint in target.__annotations__.items()}
    if inspect.isgeneratorfunction(target):
        hints.pop("return", None)
    hints = {name: hint for name, hint in hints.items() if hint is not Any and not _uncheckable(hint)}
    if not hints.keys() - {"return"} and hints.get("return") is None:  # nothing to check, or that nothing is returned
        return target
    # A copy with these annotations: the function itself keeps its own, which signatures are read from.
    code = types.FunctionType(
        target.__code__, target.__globals__, target.__name__, target.__defaults__, target.__closure__
    )
    checking = functools.update_wrapper(code, target)
    del checking.__wrapped__
    checking.__kwdefaults__ = target.__kwdefaults__
    checking.__annotations__ = hints
    checking = _WITH_TYPES(checking)
    scoped = any(_has_axes(hint) for hint in hints.values())

    @functools.wraps(target)
    def unless_disabled(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return target(*args, **kwargs)
        if not scoped:
            return checking(*args, **kwargs)
        with _WITH_AXES("context"):
            return checking(*args, **kwargs)

    return unless_disabled


def _looked_up(hint: object, names: dict[str, Any]) -> object:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names)
    except (NameError, AttributeError):
        return Any


def _parts(hint: object) -> list[object]:
    if isinstance(hint, TypeVar):
        return [hint.__bound__]
    if get_origin(hint) is Literal:
        return []
    return [*(hint if isinstance(hint, list) else get_args(hint))]


def _uncheckable(hint: object) -> bool:
    return hint is Self or isinstance(hint, (str, ForwardRef)) or any(map(_uncheckable, _parts(hint)))


def _has_axes(hint: object) -> bool:
    axes = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return axes or any(map(_has_axes, _parts(hint)))
