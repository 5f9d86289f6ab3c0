"""Every error has a code and a page, and what the pages say is what the code does."""

import ast
import importlib
import inspect
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_process import run_program

from headscope import errors
from headscope.errors import HeadscopeError
from headscope.errors.entry import Entry
from headscope.errors.table import ENTRIES, explain

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "headscope"
CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, HeadscopeError)
}
BY_CODE = {entry.code: entry for entry in ENTRIES}
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.code for entry in ENTRIES])


class Made:
    """An error as it is made in the source."""

    def __init__(self, call: ast.Call, place: str) -> None:
        self.place = f"{place}:{call.lineno}"
        name = ast.unparse(call.func)
        self.error = "UnknownNameError" if name == "unknown_name" else name
        self.code = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
        self.text = max((each.value for each in _texts(call)), key=len, default="")


def _texts(call: ast.Call) -> Iterator[ast.Constant]:
    """Yield the fixed pieces of the message: of an `unknown_name`, its kind of name."""
    if call.args:
        for node in ast.walk(call.args[0]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node


@pytest.fixture(scope="module")
def made() -> list[Made]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {*CLASSES, "unknown_name"}:
                found.append(Made(node, str(path.relative_to(SOURCE))))
    return found


def test_every_code_raised_is_in_the_table_and_of_its_class(made: list[Made]) -> None:
    assert len(made) > 800
    for error in made:
        if isinstance(error.code, ast.Constant):
            entry = BY_CODE.get(error.code.value)
            assert entry is not None and not entry.is_class, (error.place, error.code.value)
            assert entry.error == error.error, (error.place, error.code.value)
        elif error.code is not None:  # passed on from another error, or by a function that makes one
            assert ast.unparse(error.code) in ("error.code", "code"), (error.place, ast.unparse(error.code))


def test_every_reason_in_the_table_is_raised(made: list[Made]) -> None:
    raised = {error.code.value for error in made if isinstance(error.code, ast.Constant)}
    assert {entry.code for entry in ENTRIES if not entry.is_class} == raised


def test_every_class_has_an_entry() -> None:
    assert {entry.error: entry.code for entry in ENTRIES if entry.is_class} == {
        name: kind.code for name, kind in CLASSES.items()
    }


def test_codes_are_unique_and_never_used_again() -> None:
    """`codes.txt` has every code there ever was; one that is gone stays in it, with the word retired."""
    lines = (Path(__file__).parent / "codes.txt").read_text(encoding="utf-8").splitlines()
    recorded = [line.split() for line in lines if not line.startswith("#")]
    assert len({code for code, *_ in recorded}) == len(recorded)
    assert len(BY_CODE) == len(ENTRIES)
    assert {(code, rest[0]) for code, *rest in recorded if rest != ["retired"]} == {
        (entry.code, entry.error) for entry in ENTRIES
    }


@each_entry
def test_the_symptom_is_a_message_of_the_source(entry: Entry, made: list[Made]) -> None:
    mine = [error for error in made if error.error == entry.error]
    mine = [
        error
        for error in mine
        if (error.code is None if entry.is_class else getattr(error.code, "value", None) == entry.code)
    ]
    if entry.code == HeadscopeError.code:
        assert not mine and not entry.symptom
        return
    # Messages kept in a constant have no fixed piece here; the examples check these.
    pieces = {error.text for error in mine if len(error.text.strip()) > 3}
    assert not pieces or any(piece in entry.symptom for piece in pieces) or entry.example, (entry.symptom, pieces)


@each_entry
def test_related_names_and_pages_exist(entry: Entry) -> None:
    for related in entry.related:
        if related.endswith(".md"):
            assert list((ROOT / "docs").rglob(related)), related
        elif related.startswith("HS-"):
            assert related in BY_CODE and related != entry.code
        else:
            assert _named(related) is not None


def _named(name: str) -> Any:
    module, *names = name.split(".")
    found = importlib.import_module(module)
    for part in names:
        module = f"{module}.{part}"
        found = getattr(found, part, None) or importlib.import_module(module)
    return found


@each_entry
def test_every_entry_says_enough(entry: Entry) -> None:
    for text in (entry.cause, entry.repair):
        assert len(text) > 20 and text[0] in "`" + text[0].upper() and text.endswith("."), text
    assert not entry.title.endswith(".")
    assert "HS-" not in entry.symptom


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Class, code and message of what each example raises, in a process that checks no types."""
    script = Path(__file__).parent / "run_examples.py"
    folder = tmp_path_factory.mktemp("examples")
    run = run_program(script, str(folder))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.example], ids=lambda entry: entry.code)
def test_the_example_raises_it(entry: Entry, raised: dict[str, list[str]]) -> None:
    error, code, message = raised[entry.code]
    assert (error, code) == (entry.error, entry.code), message
    shown = re.escape(entry.symptom).replace(re.escape("..."), ".*")
    assert re.fullmatch(shown, message, flags=re.DOTALL), message


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES.keys())
def test_an_error_ends_in_its_code_also_from_another_process(kind: type[HeadscopeError]) -> None:
    assert str(kind("k is 0.")) == f"k is 0. [{kind.code}]" and kind.code.startswith("HS-")
    error = kind("k is 0.", code="HS-X-01")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) == "k is 0. [HS-X-01]" and again.message == "k is 0."
    assert kind.code != "HS-X-01"


def test_a_code_is_explained() -> None:
    entry = explain(" [hs-tokens-03]")
    assert entry.code == "HS-TOKENS-03"
    assert entry.cause in str(entry) and entry.repair in str(entry) and "InvalidInputError" in str(entry)
    with pytest.raises(errors.UnknownNameError, match="Unknown code of an error 'HS-TOKEN-3'. Did you mean"):
        explain("HS-TOKEN-3")
