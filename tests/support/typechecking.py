"""The type checker the tests put on every function of the package: beartype, less what it cannot check."""

from collections.abc import Callable
from typing import Any, ForwardRef, Literal, Self, TypeVar, get_args, get_origin

from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """Check `function` at each call, but for annotations that hold `Self` or a name that cannot be looked up.

    jaxtyping decorates methods one by one, where beartype refuses `Self`; names imported under TYPE_CHECKING
    do not exist at run time, and a class does not yet while its own body runs.
    """
    function.__annotations__ = {
        name: Any if _uncheckable(hint) else hint for name, hint in function.__annotations__.items()
    }
    return beartype(function)


def _uncheckable(hint: object) -> bool:
    if hint is Self or isinstance(hint, (str, ForwardRef)):
        return True
    if isinstance(hint, TypeVar):
        return _uncheckable(hint.__bound__)
    parts = hint if isinstance(hint, list) else get_args(hint)
    return get_origin(hint) is not Literal and any(_uncheckable(part) for part in parts)
