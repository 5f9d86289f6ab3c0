"""Source code that imports TransformerLens and CircuitsVis, rewritten to import headscope.

Only import statements change; what they cannot say in headscope's names stays as it is and is listed.
"""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from headscope.compat.alias_table import MODULES, ROOTS, Home, home_of, whole_home, why_not
from headscope.errors import InvalidInputError

__all__ = ["Migrated", "migrate_notebook", "migrate_source"]

_MENTION = re.compile(rf"\b({'|'.join(ROOTS)})\b")
_MODULE_PATH = re.compile(rf"({'|'.join(ROOTS)})(\.\w+)*")
_MAGIC = re.compile(r"^([ \t]*)[%!?].*$", re.MULTILINE)
_OTHER_LANGUAGE = re.compile(r"\s*%%(bash|sh|script|html|javascript|js|latex|markdown|svg|writefile|perl|ruby)\b")


@dataclass
class Migrated:
    """Rewritten code.

    Attributes:
        text: The code, with its imports rewritten.
        n_rewritten: Number of import statements that were rewritten.
        left: One line for each place that could not be, with its line number.
    """

    text: str
    n_rewritten: int = 0
    left: list[str] = field(default_factory=list)


def migrate_source(text: str, *, magic: bool = False) -> Migrated:
    """Rewrite the imports in Python source.

    Args:
        text: The source.
        magic: Pass over lines that start with `%`, `!` or `?`, as a notebook's cell may have.

    Raises:
        SyntaxError: If it is not Python.

    Example:
        >>> print(migrate_source("from transformer_lens.hook_points import HookPoint, NamesFilter").text)
        from headscope import HookPoint
        from headscope.model.hooks import NamesFilter
    """
    if not _MENTION.search(text):
        return Migrated(text)
    # Columns are read on lines of imports alone, so that what stands for a line of magic may be shorter.
    tree = ast.parse(_MAGIC.sub(r"\1pass", text) if magic else text)
    migrated = Migrated(text)
    # Python counts columns in bytes, and its lines end at \n, \r\n and \r alone, like those of bytes.
    lines = text.encode().splitlines(keepends=True)
    changes: list[tuple[ast.stmt, list[str]]] = []
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and _paths(node):
            new, why = _import_from(node) if isinstance(node, ast.ImportFrom) else _import(node, modules)
            migrated.left += [f"line {node.lineno}: {reason}" for reason in why]
            if new != [ast.unparse(node)]:
                changes.append((node, new))
                if "#" in (ast.get_source_segment(text, node) or ""):
                    migrated.left.append(f"line {node.lineno}: comments inside the import are not kept")
    migrated.left += _left_in(tree, modules)
    migrated.left.sort(key=lambda each: int(each.split()[1].rstrip(":")))
    for node, new in sorted(changes, key=lambda change: (change[0].lineno, change[0].col_offset), reverse=True):
        _replace(lines, node, new)
    migrated.text, migrated.n_rewritten = b"".join(lines).decode(), len(changes)
    return migrated


def _paths(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        names = [node.module or ""] if node.level == 0 else []
    else:
        names = [alias.name for alias in node.names]
    return [name for name in names if name.split(".")[0] in ROOTS]


def _import_from(node: ast.ImportFrom) -> tuple[list[str], list[str]]:
    """Return the statements that replace `from path import names`, and what stays."""
    path = node.module or ""
    new: dict[str, list[str]] = {}
    why = []
    for alias in node.names:
        home = _from_home(path, alias.name)
        if home is None:
            new.setdefault(path, []).append(ast.unparse(alias))
            why.append(
                f"from {path} import *: name what you use of it"
                if alias.name == "*"
                else _several(f"{path}.{alias.name}")
                if f"{path}.{alias.name}" in MODULES
                else why_not(f"{path}.{alias.name}")
            )
            continue
        module, name = home
        bound = alias.asname or alias.name
        new.setdefault(module, []).append(name if name == bound else f"{name} as {bound}")
    return [f"from {module} import {', '.join(names)}" for module, names in new.items()], why


def _from_home(path: str, name: str) -> tuple[str, str] | None:
    whole = whole_home(path)
    if name == "*":
        return (whole, "*") if whole is not None and MODULES[path][whole] == "*" else None
    home = home_of(path, name)
    if home is not None:
        return home.module, home.name
    below = whole_home(f"{path}.{name}")
    return None if below is None else _split(below)


def _split(module: str) -> tuple[str, str]:
    package, _, name = module.rpartition(".")
    return package, name


def _import(node: ast.Import, modules: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the statements that replace `import path`, and what stays; add to `modules` which names hold which."""
    new, why = [], []
    for alias in node.names:
        path, root = alias.name, alias.name.split(".")[0]
        # `import a.b` binds `a`; `import a.b as c` binds the module, or the class of the same name in `a`.
        bound, holds = (root, root) if alias.asname is None else (alias.asname, path)
        home = _class_named_as(holds)
        whole = _whole(holds) if path in MODULES else None
        if home is not None:
            new.append(f"from {home.module} import {home.name}" + (f" as {bound}" if bound != home.name else ""))
        elif whole is not None:
            new.append(f"import {whole} as {bound}")
            modules[bound] = holds
        else:
            new.append(f"import {ast.unparse(alias)}")
            if root in ROOTS:
                why.append(_several(path) if path in MODULES else why_not(path))
    return list(dict.fromkeys(new)), why


def _class_named_as(path: str) -> Home | None:
    # In `circuitsvis` such names are modules.
    return home_of(*_split(path)) if path in MODULES and path.startswith("transformer_lens.") else None


def _whole(path: str) -> str | None:
    # The package itself has two names by which ours are called otherwise; uses of those are listed.
    return "headscope" if path == "transformer_lens" else whole_home(path)


def _several(path: str) -> str:
    return f"the names of {path} are in several modules here: import them one by one"


def _instead_of(path: str, name: str) -> str:
    home = home_of(path, name)
    below = f"{path}.{name}"
    ours = f"{home.module}.{home.name}" if home is not None else whole_home(below)
    if ours is not None:
        return f"{below} is {ours} here"
    return _several(below) if below in MODULES else why_not(below)


def _left_in(tree: ast.AST, modules: dict[str, str]) -> Iterator[str]:
    """Yield the uses of rewritten modules that their new module does not have, and module paths in strings."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE_PATH.fullmatch(node.value):
            yield f"line {node.lineno}: the string {node.value!r} is not changed"
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        names = ast.unparse(node).split(".")
        path = modules.get(names[0])
        for name in names[1:] if path is not None else []:
            whole = _whole(str(path))
            if whole is None or not hasattr(importlib.import_module(whole), name):
                yield f"line {node.lineno}: {_instead_of(str(path), name)}"
                break
            path = f"{path}.{name}"
            if path not in MODULES or _class_named_as(path) is not None:
                break


def _replace(lines: list[bytes], node: ast.stmt, new: list[str]) -> None:
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    newline = b"\r\n" if lines[first].endswith(b"\r\n") else b"\n"
    # Statements on lines of their own where this one was; else beside what shares its line, such as `try:`.
    alone = not before.strip() and not after.lstrip().startswith(b";")
    lines[first : last + 1] = [before + (newline + before if alone else b"; ").join(map(str.encode, new)) + after]


def migrate_notebook(text: str) -> Migrated:
    """Rewrite the imports in the code cells of a notebook's JSON; outputs and all else stay.

    Raises:
        InvalidInputError: If the text is not a notebook.
    """
    try:
        notebook = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"it is not valid JSON: {error}.") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise InvalidInputError("it has no list of cells: not a notebook of format 4.")
    migrated = Migrated(text)
    for number, cell in enumerate(cells, start=1):
        source = cell.get("source") if isinstance(cell, dict) else None
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = "".join(source)
        if not isinstance(source, str):
            raise InvalidInputError(f"cell {number} is not one of a notebook: it has no source.")
        if cell.get("cell_type") != "code":
            continue
        changed = _cell(source)
        migrated.n_rewritten += changed.n_rewritten
        migrated.left += [f"cell {number}, {left}" for left in changed.left]
        if changed.n_rewritten:
            is_text = isinstance(cell["source"], str)
            cell["source"] = changed.text if is_text else changed.text.splitlines(keepends=True)
    if migrated.n_rewritten:
        indent = re.match(r"\{\n( *)", text)
        end = "\n" if text.endswith("\n") else ""
        written = json.dumps(notebook, indent=len(indent[1]) if indent else None, ensure_ascii=text.isascii())
        migrated.text = written + end
    return migrated


def _cell(source: str) -> Migrated:
    if _OTHER_LANGUAGE.match(source):
        return Migrated(source)
    try:
        return migrate_source(source, magic=True)
    except SyntaxError as error:
        return Migrated(source, left=[f"line {error.lineno or 1}: the cell is not valid Python: {error.msg}"])
