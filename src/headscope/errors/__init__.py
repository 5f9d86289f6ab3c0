"""The errors headscope raises: one base class, and a few kinds, each also a subclass of the matching builtin.

A message says what was wrong, the value, what is allowed and how to fix it, and ends in a code such as
`[HS-TOKENS-01]`, under which `headscope.errors.table` and the documentation say more. A class has a code, and where it
is raised for a common reason, that reason has one of its own. The command line turns any `HeadscopeError` into one line
and a non-zero exit code; nothing else is caught there.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "AliasError",
    "CheckpointError",
    "HeadscopeError",
    "IncompleteRunError",
    "InvalidInputError",
    "MissingDependencyError",
    "MissingTokenizerError",
    "NotFiniteError",
    "ShardError",
    "StorageError",
    "UnknownNameError",
    "check_at_least",
    "unknown_name",
]


class HeadscopeError(Exception):
    """Base class of every error headscope raises on purpose.

    Args:
        message: What was wrong, the value, what is allowed and how to fix it.
        code: Code of this reason in `headscope.errors.table`; by default that of the class.

    Example:
        >>> print(InvalidInputError("k must be at least 1; got 0."))
        k must be at least 1; got 0. [HS-INPUT]
    """

    code: str = "HS-ERROR"

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    @property
    def message(self) -> str:
        """The message without its code, for the message of another error."""
        return str(self.args[0]) or type(self).__name__

    def __str__(self) -> str:
        # KeyError would print the repr of the message; people read these.
        return f"{self.message} [{self.code}]"


class UnknownNameError(HeadscopeError, KeyError):
    """A model, hook point, option or column that does not exist."""

    code = "HS-NAME"


class InvalidInputError(HeadscopeError, ValueError):
    """A value of the right type that cannot be used: a shape, a range, an empty text, a bad option."""

    code = "HS-INPUT"


class MissingTokenizerError(HeadscopeError, RuntimeError):
    """Text was given to a model that has no tokenizer."""

    code = "HS-TOKENIZER"


class CheckpointError(HeadscopeError, ValueError):
    """A checkpoint that is missing, corrupt, malicious or of an unsupported kind."""

    code = "HS-CHECKPOINT"


class NotFiniteError(HeadscopeError, ArithmeticError):
    """NaN or infinite weights or activations where finite ones are needed."""

    code = "HS-FINITE"


class ShardError(HeadscopeError, RuntimeError):
    """A shard that could not be measured, wherever it was tried; the rest of its run can go on."""

    code = "HS-SHARD"


class StorageError(HeadscopeError, OSError):
    """A file that could not be written: a full disk, or a folder not made by headscope."""

    code = "HS-STORAGE"


class IncompleteRunError(HeadscopeError, RuntimeError):
    """A sharded run that has no result yet: shards of it are still to be measured, here or elsewhere."""

    code = "HS-INCOMPLETE"


class MissingDependencyError(HeadscopeError, ImportError):
    """An optional package is needed for this call and is not installed."""

    code = "HS-DEPENDENCY"


class AliasError(HeadscopeError, ImportError):
    """An import of another library's name that headscope cannot stand in for."""

    code = "HS-ALIAS"


def unknown_name(
    kind: str, name: str, allowed: Iterable[str], *, hint: str = "", code: str | None = None
) -> UnknownNameError:
    """Make an `UnknownNameError` that lists the nearest allowed names.

    Args:
        kind: Kind of thing named, e.g. `"hook point"`.
        name: The name that was not found.
        allowed: All names that exist.
        hint: One more sentence on how to fix it.
        code: Code of this kind of name; by default that of the class.

    Example:
        >>> print(unknown_name("model", "gtp2", ["gpt2", "distilgpt2"], code="HS-NAME-01"))
        Unknown model 'gtp2'. Did you mean 'gpt2'? [HS-NAME-01]
    """
    names = list(allowed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        suggestion = f" Did you mean {' or '.join(repr(n) for n in near)}?"
    elif names:
        shown = ", ".join(repr(n) for n in names[:8])
        suggestion = f" Allowed: {shown}{', ...' if len(names) > 8 else ''}."
    else:
        suggestion = ""
    return UnknownNameError(f"Unknown {kind} {name!r}.{suggestion}{' ' + hint if hint else ''}", code=code)


def check_at_least(least: int, **options: int) -> None:
    """Refuse an option below its smallest value.

    Raises:
        InvalidInputError: With its name and value.

    Example:
        >>> check_at_least(1, batch_size=0)
        Traceback (most recent call last):
        headscope.errors.InvalidInputError: batch_size must be at least 1; got 0. [HS-INPUT]
    """
    for name, value in options.items():
        if value < least:
            raise InvalidInputError(f"{name} must be at least {least}; got {value}.")
