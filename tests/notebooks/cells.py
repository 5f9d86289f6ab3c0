"""Notebooks exported as text: where the code of each cell begins and ends.

A cell starts after a line like `In [3]:`. Its outputs, and the prose before the next cell, follow the code after a
blank line and carry no mark of their own. The code is therefore the longest run of whole paragraphs that parses as
Python, less what stands at its end and can only be something printed or written: a value's repr, or comments (which
are the headings of the prose as well).
"""

import ast
import re
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["CellText", "code_of", "split"]

_MARK = re.compile(r"^In \[([^\]\n]*)\]:[ \t]*$", flags=re.MULTILINE)
# What a repr is made of, besides literals.
_REPRS = {"array", "device", "dict_items", "dict_keys", "dict_values", "tensor", "torch.Size"}


@dataclass(frozen=True)
class CellText:
    """One cell as the export has it.

    Attributes:
        label: What stands between the brackets of `In [...]:`.
        text: All up to the next cell: the code, its outputs, prose.
    """

    label: str
    text: str


def split(notebook: str) -> list[CellText]:
    """The cells of a notebook, in order; what stands before the first is prose."""
    marks = [*_MARK.finditer(notebook)]
    ends = [*(mark.start() for mark in marks[1:]), len(notebook)]
    return [CellText(mark[1].strip(), notebook[mark.end() : end]) for mark, end in zip(marks, ends, strict=False)]


def code_of(text: str, *, output: str = "") -> str:
    """The code that a cell's text begins with.

    Args:
        text: Code, then outputs and prose.
        output: How the first line of the output begins, where that cannot be told from code.

    Raises:
        SyntaxError: If no run of paragraphs from the start parses: that of the first one.
        ValueError: If no paragraph after the first begins with `output`.
    """
    lines = text.strip("\n").splitlines()
    ends = [0, *(number for number, line in enumerate(lines) if not line.strip()), len(lines)]
    if output:
        starts = [end + 1 for end in ends[1:-1] if lines[end + 1].startswith(output)]
        if not starts:
            raise ValueError(f"no paragraph begins with {output!r}")
        ends = [end for end in ends if end < starts[0]]
    whole = [end for end in ends[1:] if _tree(lines[:end]) is not None]
    if not whole:
        ast.parse("\n".join(lines[: ends[1]]))
        raise SyntaxError("the cell has no code")
    # The last paragraph goes while it is none of the code's, and the rest is whole without it.
    for before, end in reversed([*pairwise(end for end in ends if end <= whole[-1])]):
        if before == 0 or not _not_code(lines[before:end]) or _tree(lines[:before]) is None:
            return "\n".join(lines[:end]).rstrip() + "\n"
    raise AssertionError("the first paragraph is never left out")


def _tree(lines: list[str]) -> ast.Module | None:
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return None


def _not_code(lines: list[str]) -> bool:
    tree = _tree([line for line in lines if not line.lstrip().startswith("#")])
    return tree is not None and all(isinstance(node, ast.Expr) and _is_repr(node.value) for node in tree.body)


def _is_repr(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.UnaryOp(operand=ast.Constant()):
            return True
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return all(_is_repr(part) for part in parts)
        case ast.Dict(keys=keys, values=values):
            return all(key is not None and _is_repr(key) for key in keys) and all(_is_repr(value) for value in values)
        case ast.Call(func=function):
            return ast.unparse(function) in _REPRS
    return False
