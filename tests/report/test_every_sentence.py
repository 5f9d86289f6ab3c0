"""No sentence of a page escapes: each is made by a function of which a table has true and false numbers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import headscope.report

_SOURCE = Path(headscope.report.__file__).parent
_TABLES = [path for path in sorted(Path(__file__).parent.glob("*/test_*.py")) if "\nSAID" in path.read_text("utf-8")]
_SAYS = {"say", "prose", "Markup"}
# Functions whose sentences hold of any numbers: how to read what is below, a message of an error, or a list of numbers.
_EXPLAINS = {
    "ablation_section", "attention_section", "_compared_heads",
    "entropy_head_section", "heads_section", "suppression_section", "task_section",
    "toy_sections", "_places", "_tokens", "place_blocks", "why_blocks",
}  # fmt: skip


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _called(node: ast.AST) -> str:
    return getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""


def _says(function: ast.FunctionDef) -> list[str]:
    """Sentences that are written in a function, but for captions, docstrings and errors."""
    passed_over: set[ast.AST] = set()
    for node in ast.walk(function):
        captions = isinstance(node, ast.Assign | ast.AugAssign) and "caption" in ast.unparse(node).split("=")[0]
        if captions or isinstance(node, ast.Raise) or _called(node) == "captioned":
            passed_over |= set(ast.walk(node))
    literals = (
        node.value for node in ast.walk(function)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in passed_over
    )  # fmt: skip
    doc = ast.get_docstring(function, clean=False)
    speaks = any(_called(node) in _SAYS for node in ast.walk(function))
    return [text for text in literals if speaks and text != doc and _is_sentence(text)]


def _is_sentence(text: str) -> bool:
    """It ends as a sentence, has one in it, or has several words and a number to come."""
    words = text.split()
    return len(words) > 1 and (". " in text or text.rstrip().endswith(".") or ("{" in text and len(words) > 3))


def _names(node: ast.AST, helpers: dict[str, set[str]]) -> set[str]:
    """Names that are used, and those used by the helpers among them."""
    used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    used |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    return used.union(*(helpers.get(name, set()) for name in used))


def _tabled() -> tuple[set[str], set[str]]:
    """Functions that a table says something of, and those with numbers for which something is not said."""
    said, not_said = set[str](), set[str]()
    for path in _TABLES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        helpers = {function.name: _names(function, {}) for function in _functions(tree)}
        for node in tree.body:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)):
                continue
            for case in node.value.values:
                names = _names(case, helpers)
                silent = isinstance(node.target, ast.Name) and node.target.id == "SILENT"
                told = [each.value for each in ast.walk(case) if isinstance(each, ast.Constant)]
                if silent or any(isinstance(each, str) and each.startswith("~") for each in told):
                    not_said |= names
                if not silent:
                    said |= names
        # Tables of numbers alone, which a test gives to a function.
        said |= set[str]().union(*(names for names in helpers.values() if "SAID" in names))
        not_said |= set[str]().union(*(names for names in helpers.values() if "SILENT" in names))
    return said, not_said


def test_every_sentence_is_in_a_table() -> None:
    said, not_said = _tabled()
    speaking = {
        function.name: texts
        for path in sorted(_SOURCE.rglob("*.py"))
        for function in _functions(ast.parse(path.read_text(encoding="utf-8")))
        if (texts := _says(function))
    }
    assert len(_TABLES) == 6 and len(speaking) > 40
    assert {name: texts for name, texts in speaking.items() if name not in said | _EXPLAINS} == {}
    assert {name: texts for name, texts in speaking.items() if name not in not_said | _EXPLAINS} == {}
    assert set(speaking) - said >= _EXPLAINS, "says nothing any more, or is in a table"


def test_an_escaped_sentence_is_found() -> None:
    source = """
def verdict(n):
    '''A docstring.'''
    caption = say("The color of heads.")
    return say("{n} heads do it.", n=n)
"""
    (function,) = _functions(ast.parse(source))
    assert _says(function) == ["{n} heads do it."]
