"""TransformerLens and CircuitsVis as names of headscope, so that code that imports them runs without a change.

`import headscope.compat.transformer_lens` as the first line is all that a notebook needs. What is offered stands in
`headscope.compat.alias_table`; an object is looked up when it is first asked for.
"""

import importlib
import sys
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from headscope.compat.alias_table import MODULES, ROOTS, home_of, offered, why_not
from headscope.differences import expect_transformer_lens
from headscope.errors import AliasError

__all__ = ["AliasModule", "install"]


class AliasModule(ModuleType):
    """One module path of theirs; its names are those of ours."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"`{name}` as headscope offers it; see `headscope.compat.alias`.")
        # An empty path makes it a package: then `from module import name` asks the finder below about a name that is
        # missing, whose error says why, where Python's own would only say that it is.
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        path = self.__name__
        if name == "__all__":
            return offered(path)
        home, below = home_of(path, name), sys.modules.get(f"{path}.{name}")
        if home is None and below is None:
            raise AttributeError(why_not(f"{path}.{name}"))
        value = below if home is None else getattr(importlib.import_module(home.module), home.name)
        # A class shares its name with the module it is in; a module of ours gives way to the one that stands for it.
        if below is not None and isinstance(value, ModuleType):
            value = below
        self.__dict__[name] = value
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *offered(self.__name__)})


class _Refusal(MetaPathFinder):
    """Finder that refuses what the alias lacks, before Python looks for it elsewhere."""

    def find_spec(self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None) -> None:
        if fullname.startswith(tuple(f"{root}." for root in ROOTS)):
            raise AliasError(why_not(fullname))


def install() -> None:
    """Make `import transformer_lens` and `import circuitsvis`, and their submodules, give headscope's own names.

    Only this process is affected; a second call does nothing.

    Raises:
        AliasError: If one of the two is already imported: objects of both libraries would be mixed.

    Example:
        >>> install()
        >>> from transformer_lens.components import LayerNorm
        >>> LayerNorm.__module__
        'headscope.model.parts.layers'
    """
    present = [root for root in ROOTS if root in sys.modules]
    for root in present:
        if not isinstance(sys.modules[root], AliasModule):
            raise AliasError(
                f"{root} itself is already imported, so headscope cannot stand in for it. Import "
                "headscope.compat.transformer_lens before anything else, in a fresh process.",
                code="HS-ALIAS-01",
            )
    expect_transformer_lens()
    if not present:
        sys.modules.update({path: AliasModule(path) for path in MODULES})
        sys.meta_path.insert(0, _Refusal())
