"""The type checker the tests put on every function of the package: beartype, less what it cannot check.

jaxtyping's own decorator binds a call's arguments by name, checks them, calls the function, and checks them again
with the result: most of the time of a suite of small models. Here beartype checks each of them once, and only
functions that name the axes of a tensor open a scope for these names.

A function inside a function is decorated whenever the outer one runs, and compiling its checks costs milliseconds: more
than a norm or an attention of these models, which are such functions. So its checks are compiled once.

Tensors are held against their hints millions of times in a run, and for each of them jaxtyping parses the name of its
dtype and copies what it knows of the axes: a tenth of the suite's time. `Fit` says the same without either.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, Self, TypeVar, get_args, get_origin

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import _array_types, _storage

_WITH_AXES = jaxtyping.jaxtyped
_WITH_TYPES = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError, is_color=False))
# What checks the first function made of a code inside another function, by that code.
_INSIDE: dict[types.CodeType, "_Checks"] = {}
# By hint; None for a hint that only jaxtyping itself can tell of.
_FITS: "dict[type, Fit | None]" = {}
# What is known of the axes in this thread's calls, the innermost last: jaxtyping's own.
_SCOPES = _storage._shape_storage


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
    made = _INSIDE.get(target.__code__)
    if made is None or made.annotations != target.__annotations__:
        made = _Checks.of(target)
        if "<locals>" in target.__qualname__:
            _INSIDE[target.__code__] = made
    checking = made.around(target)
    if checking is target:
        return target

    def unless_disabled(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return target(*args, **kwargs)
        return checking(*args, **kwargs)

    def with_axes(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return target(*args, **kwargs)
        try:
            scopes = _SCOPES.memo_stack
        except AttributeError:  # the first call in this thread
            scopes = _SCOPES.memo_stack = []
        scopes.append(({}, {}, {}, {}))
        try:
            return checking(*args, **kwargs)
        finally:
            scopes.pop()

    return functools.update_wrapper(with_axes if made.scoped else unless_disabled, target)


class Fit:
    """Tells if a tensor fits a hint, and notes its axes' lengths where jaxtyping does: if all of them fit.

    Args:
        hint: One of jaxtyping's for tensors, its axes names, numbers, `_`, and `...` or `*names`.
    """

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.any_shape = hint.dtype[hint.array_type, "..."]
        # By type and dtype of a value: whether they fit.
        self.kinds: dict[tuple[type, object], bool] = {}
        axes = [getattr(axis, "name", getattr(axis, "size", None)) for axis in hint.dims]
        at = len(axes) if hint.index_variadic is None else hint.index_variadic
        self.variadic, self.before = hint.index_variadic is not None, at
        # Of all axes but those of the variadic one, `several`.
        self.axes, self.several = axes[:at] + axes[at + 1 :], axes[at] if self.variadic else None

    @classmethod
    def of(cls, hint: Any) -> Self | None:
        plain = hint.array_type is torch.Tensor and hint.dtypes == hint.dtype.dtypes
        return cls(hint) if plain and all(map(cls._is_known, hint.dims)) else None

    @staticmethod
    def _is_known(axis: object) -> bool:
        if axis is _array_types._anonymous_dim or axis is _array_types._anonymous_variadic_dim:
            return True
        known = isinstance(axis, _array_types._NamedDim | _array_types._NamedVariadicDim | _array_types._FixedDim)
        return known and not axis.broadcastable and not getattr(axis, "treepath", False)

    def __call__(self, value: Any) -> bool:
        try:
            fits = self.kinds[value.__class__, value.dtype]
        except KeyError:
            fits = _is_instance(self.any_shape, value)
            self.kinds[value.__class__, value.dtype] = fits
        except AttributeError:
            return False
        if not fits:
            return False
        sizes = value.shape
        n_axes = len(self.axes)
        if self.variadic:
            start, stop = self.before, len(sizes) - n_axes + self.before
            if stop < start:
                return False
            several = sizes[start:stop]
            sizes = sizes[:start] + sizes[stop:]
        elif len(sizes) != n_axes:
            return False
        scopes = getattr(_SCOPES, "memo_stack", None)
        known, known_several = scopes[-1][:2] if scopes else ({}, {})
        n_known = len(known)
        for axis, size in zip(self.axes, sizes, strict=True):
            if axis is None or (axis if axis.__class__ is int else known.setdefault(axis, size)) == size:
                continue
            break
        else:
            if self.several is None:
                return True
            broadcast, lengths = known_several.setdefault(self.several, (False, several))
            if not broadcast and lengths == several:
                return True
        while len(known) > n_known:
            known.popitem()
        return _is_instance(self.hint, value)


_is_instance = _array_types._MetaAbstractArray.__instancecheck__


def _fits(hint: Any, value: object) -> bool:
    try:
        fit = _FITS[hint]
    except KeyError:
        fit = _FITS[hint] = Fit.of(hint)
    return _is_instance(hint, value) if fit is None else fit(value)


_array_types._MetaAbstractArray.__instancecheck__ = _fits  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class _Checks:
    """What checks a function's arguments and result.

    Args:
        annotations: The function's own.
        checking: The function as beartype checks it; None if nothing in it can be wrong.
        function: The one that beartype's code calls.
        scoped: If the annotations name axes.
    """

    annotations: dict[str, Any]
    checking: types.FunctionType | None
    function: types.FunctionType
    scoped: bool

    @classmethod
    def of(cls, target: types.FunctionType) -> Self:
        hints = {name: _looked_up(hint, target.__globals__) for name, hint in target.__annotations__.items()}
        if inspect.isgeneratorfunction(target):
            hints.pop("return", None)
        hints = {name: hint for name, hint in hints.items() if hint is not Any and not _uncheckable(hint)}
        # A copy with these annotations: the function itself keeps its own, which signatures are read from.
        code = types.FunctionType(
            target.__code__, target.__globals__, target.__name__, target.__defaults__, target.__closure__
        )
        copy = functools.update_wrapper(code, target)
        del copy.__wrapped__
        copy.__kwdefaults__ = target.__kwdefaults__
        copy.__annotations__ = hints
        anything = hints.keys() - {"return"} or hints.get("return") is not None  # not just that nothing is returned
        checking = _WITH_TYPES(copy) if anything else copy
        scoped = any(_has_axes(hint) for hint in hints.values())
        return cls(target.__annotations__, None if checking is copy else checking, copy, scoped)

    def around(self, target: types.FunctionType) -> types.FunctionType:
        """Check another function of the same code; beartype's code has the one it calls as default of a keyword."""
        if self.checking is None:
            return target
        given = self.checking
        again = types.FunctionType(given.__code__, given.__globals__, given.__name__, given.__defaults__)
        again.__kwdefaults__ = {
            name: target if value is self.function else value for name, value in given.__kwdefaults__.items()
        }
        assert target in again.__kwdefaults__.values()
        return again


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
    if getattr(hint, "__module__", "").startswith("triton."):
        return True  # for its compiler, which reads the function as it is written
    return hint is Self or isinstance(hint, (str, ForwardRef)) or any(map(_uncheckable, _parts(hint)))


def _has_axes(hint: object) -> bool:
    axes = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return axes or any(map(_has_axes, _parts(hint)))
