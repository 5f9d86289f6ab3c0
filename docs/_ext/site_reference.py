"""The reference, made from the package itself, so that nothing public is missing.

`{public} headscope.analysis` documents the names in a module's `__all__`, or those that are defined in the rooms it is
given: a table of their first lines, then each by autodoc. `{commands}` documents the command line from its typer app,
and `{result-arrays}` what every result declares of its arrays: axes, units, labels.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

import typer
from docutils import nodes
from docutils.parsers.rst import directives
from public_names import MODULES, public, results
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

# Members of these bases are not repeated for every class.
_ENDS = "Result, Module, Dataset, tuple, dict, Exception, Protocol, Generic"


def first_line(thing: Any) -> str:
    """Return the first paragraph of a docstring, on one line; empty for data, whose type's docstring says nothing."""
    if not (isinstance(thing, ModuleType) or callable(thing)) or type(thing).__module__ in ("typing", "types"):
        return ""
    text = re.split(r"\n\s*\n", inspect.getdoc(thing) or "")[0]
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _attributes(thing: type) -> list[str]:
    """Return what a class's docstring lists as its attributes, and what only declares a result."""
    section = re.search(r"^Attributes:\n((?:    .*\n|\n)*)", (inspect.getdoc(thing) or "") + "\n", flags=re.MULTILINE)
    lines = re.findall(r"^ {4}(\w+(?:, \w+)*):", section[1] if section else "", flags=re.MULTILINE)
    named = [name for line in lines for name in line.split(", ")]
    return [*named, "kind", "arrays", "coords", "rows", "columns", "ranked", "sampled", "fixed", "either_way", "ends"]


class _Generated(SphinxDirective):
    """A directive that writes markdown and has it parsed where it stands."""

    def parsed(self, text: str) -> list[nodes.Node]:
        lines = nodes.Element()
        self.state.nested_parse(text.splitlines(), self.content_offset, lines)
        return list(lines.children)


class Public(_Generated):
    """The public names of a module."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"rooms": directives.unchanged, "names": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        names = public(module, tuple(self.options.get("rooms", "").split()))
        names = [name for name in self.options["names"].split() if name in names] if "names" in self.options else names
        holder = import_module(module)
        rows = [f"| {{py:obj}}`~{module}.{name}` | {first_line(getattr(holder, name))} |" for name in names]
        table = ["| | |", "|---|---|", *rows, ""] if len(names) > 1 else []
        return self.parsed("\n".join([*table, *(line for name in names for line in self._documented(module, name))]))

    def _documented(self, module: str, name: str) -> Iterator[str]:
        full, thing = f"{module}.{name}", getattr(import_module(module), name)
        yield "```{eval-rst}"
        if isinstance(thing, ModuleType):
            yield from (f".. py:module:: {full}", "", f"   {first_line(thing)}", "", f"``{full}``: {first_line(thing)}")
            listed = [
                each for each in getattr(thing, "__all__", ()) if not isinstance(getattr(thing, each), ModuleType)
            ]
            if listed:
                yield from ("", "   " + ", ".join(f":py:obj:`~{_canonical(thing, each)}`" for each in listed))
        elif (home := _homes().get(_defined(thing), full)) != full:
            kind = "class" if inspect.isclass(thing) else "function"
            yield from (f".. py:{kind}:: {full}", "", f"   The same as :py:obj:`{home}`.")
        elif inspect.isclass(thing):
            yield from (f".. autoclass:: {full}", "   :members:", "   :undoc-members:")
            yield f"   :inherited-members: {_ENDS}"
            yield f"   :exclude-members: {', '.join(_attributes(thing))}"
        elif callable(thing) and type(thing).__module__ not in ("typing", "types"):
            yield f".. autofunction:: {full}"
        else:
            yield from (f".. py:data:: {full}", f"   :value: {_shown(thing)}", "")
        yield "```"


class Commands(_Generated):
    """Every command with its flags and examples."""

    def run(self) -> list[nodes.Node]:
        from headscope.cli import app

        return self.parsed("\n".join(_commands(typer.main.get_command(app), "headscope")))


def _commands(command: Any, name: str) -> Iterator[str]:
    below = getattr(command, "commands", {})
    context = typer.Context(command, info_name=name)
    if name != "headscope":
        yield from (f"({name.replace(' ', '-')})=", f"## {name}", "", command.help or "", "")
        if not below:
            yield from ("```text", command.get_usage(context).removeprefix("Usage: "), "```", "")
            records = [each.get_help_record(context) for each in command.params if not getattr(each, "hidden", False)]
            yield from ("| | |", "|---|---|")
            for flag, text in filter(None, records):
                yield f"| `{flag.replace('|', chr(92) + '|')}` | {_cell(text)} |"
            yield ""
            if command.epilog:
                examples = [line for line in command.epilog.splitlines() if line.startswith("headscope")]
                yield from ("```bash", *examples, "```", "")
    for each in sorted(below):
        yield from _commands(below[each], f"{name} {each}")


def _cell(text: str) -> str:
    text = text.replace("\n", " ").replace("|", "\\|").replace("[", "\\[").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", text.replace("<", "&lt;"))


class ResultArrays(_Generated):
    """The arrays of every result, as its class declares them."""

    def run(self) -> list[nodes.Node]:
        return self.parsed("\n".join(line for module, name in results() for line in _arrays(module, name)))


def _arrays(module: str, name: str) -> Iterator[str]:
    result = getattr(import_module(module), name)
    yield from (f"## {name}", "", f"{first_line(result)} Reference: {{py:obj}}`~{module}.{name}`.", "")
    if not result.arrays:
        yield from ("Its arrays depend on what was measured: `result.measured()` names them.", "")
        return
    yield from ("| array | axes | unit | column of `to_frame()` | also |", "|---|---|---|---|---|")
    for array, spec in result.arrays.items():
        also = [f"errors in `{spec.error}`"] if spec.error else []
        also += [f"as shares in `{spec.share}`"] if spec.share else []
        also += ["ranked by `top()`"] if array in result.ranked[:1] else []
        column = array if spec.column is None else spec.column
        shown = f"`{column}`" if column else ""
        yield f"| `{array}` | `{spec.axes or '-'}` | {spec.unit} | {shown} | {', '.join(also)} |"
    labeled = ", ".join(f"`{axis}` by `{labels}`" for axis, labels in result.coords.items())
    if labeled:
        yield from ("", f"Labels: {labeled}.")
    yield ""


def _shown(thing: Any) -> str:
    """Return a constant, or a type, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"\b(?:typing|jaxtyping|torch|collections\.abc)\.", "", repr(thing)))


def _canonical(module: ModuleType, name: str) -> str:
    """Return the name under which something of a module is documented."""
    return _homes().get(_defined(getattr(module, name)), f"{module.__name__}.{name}")


def _defined(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


_HOMES: dict[str, str] = {}


def _homes() -> Mapping[str, str]:
    """The public name of each thing, by the name it was defined under."""
    if not _HOMES:
        for module in MODULES:
            for name in public(module):
                thing = getattr(import_module(module), name)
                if not isinstance(thing, ModuleType):
                    _HOMES.setdefault(_defined(thing), f"{module}.{name}")
    return _HOMES


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement) -> nodes.Node | None:
    """Lead from the name that something was defined under, as annotations have it, to where it is documented."""
    if node.get("refdomain") != "py":
        return None
    target = str(node.get("reftarget"))
    home = _homes().get(target) or _homes().get(target.rpartition(".")[0])
    if home is None or home == target:
        return None
    if target not in _homes():  # a method
        home = f"{home}.{target.rpartition('.')[2]}"
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, shown)


def _place_types(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Put the types of attributes, which napoleon writes below their descriptions, beside their names."""
    opening = None
    for number, line in enumerate(lines):
        if line.lstrip().startswith(".. attribute::"):
            opening = number
        elif line.lstrip().startswith(":type:") and opening is not None:
            lines[opening] += "\n" + line.replace("jaxtyping.", "")
            lines[number] = ""
    lines[:] = "\n".join(lines).split("\n")


def _no_constructor(app: Sphinx, what: str, name: str, thing: Any, *signature: Any) -> tuple[str, None] | None:
    """Leave out how a result is constructed: analyses do that, and its attributes are listed below."""
    from headscope.analysis.core.result import Result

    return ("", None) if what == "class" and issubclass(thing, Result) else None


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("public", Public)
    app.add_directive("commands", Commands)
    app.add_directive("result-arrays", ResultArrays)
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-docstring", _place_types, priority=900)
    app.connect("autodoc-process-signature", _no_constructor)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
