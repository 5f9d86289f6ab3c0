"""The house rules that imports and syntax show: read from the source by AST, on the package and on bad trees.

The rules are in `violations`; each is shown to fail on a small tree made up for it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from own_process import run_program

import headscope

PACKAGE = "headscope"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE
MAX_LINES = 500

# An import may go from a part to one with a smaller number, or within the part itself.
LEVELS = {
    "differences": 0,
    "errors": 0,
    "ops": 1,
    "model": 2,
    "data": 2,
    "analysis": 3,
    "training": 4,
    "views": 4,
    "scale": 4,
    "compat": 4,
    "report": 5,
    "exercises": 5,
    "explorer": 5,
    "cli": 6,
    "__main__": 7,
    # Faces, under the names notebooks import: they may re-export anything, and only the package itself reads them.
    "evals": 8,
    "head_detector": 8,
    "patching": 8,
    "utils": 8,
    "": 9,  # headscope/__init__.py
}
FACES = {part for part, level in LEVELS.items() if level == LEVELS["utils"]}
# The public names of `analysis`, some of which notebooks know from modules that now stand above it, in `compat`.
PUBLIC_NAMES = f"{PACKAGE}.analysis"

# The same within `analysis`, room by room: down only, and never from a room to one beside it.
ROOMS = {
    "core": 0,
    "storage": 1,
    "recording": 1,
    "lens": 2,
    "ablation": 2,
    "prompts": 2,
    "suppression": 2,
    "patching": 3,
    "attention": 3,
    "heads": 4,
    "circuits": 4,
    "scoreboard": 5,
}
MAX_MODULES = 16
CATALOGS = {"model/checkpoints/families", "views/figures"}  # of like things, one file for each
FORBIDDEN_DOWNWARD = {("views", "model")}  # a view never runs a model
# A page tells what was measured before: of `report`, only these see a model, to run an analysis or foretell its cost.
MEASURING = {"measuring", "writing", "tokens", "costs", "plan", "planning", "kept", "__init__"}
PURE_ROOMS = {"core", "storage"}  # of analysis, whose functions run no model
HEAVY = {
    "datasets",
    "fastapi",
    "huggingface_hub",
    "jinja2",
    "llvmlite",
    "numba",
    "pandas",
    "plotly",
    "pyarrow",
    "pydantic",
    "ray",
    "scipy",
    "starlette",
    "tokenizers",
    "transformers",
    "triton",
    "typer",
    "uvicorn",
    "xarray",
}
HEAVY_ALLOWED = {
    ("cli", "typer"),
    ("ops", "numba"),
    ("ops", "llvmlite"),
    ("ops", "triton"),  # of `ops`, only the loops, loaded when used
    # The live explorer, loaded when it is served.
    ("explorer.serving", "fastapi"),
    ("explorer.serving", "pydantic"),
    ("explorer.serving", "starlette"),
    ("explorer.serving", "uvicorn"),
}


@dataclass(frozen=True)
class Import:
    """One imported module or name, as written and where."""

    target: str  # absolute: "headscope.ops.entropy", or "headscope.ops.entropy.kl" for a name in it
    line: int
    in_function: bool
    type_checking: bool


@dataclass
class Module:
    name: str  # dotted; a package's __init__ has the package's name
    path: Path
    tree: ast.Module
    n_lines: int
    imports: list[Import] = field(default_factory=list)

    @property
    def is_public_names(self) -> bool:
        return self.name == PUBLIC_NAMES and self.path.name == "__init__.py"

    @property
    def part(self) -> str:
        """The first name under the package: "ops", "model", ..., "" for the package itself."""
        return (self.name.split(".") + [""])[1]


def read_package(root: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join([PACKAGE, *(parts[:-1] if is_package else parts)])
        text = path.read_text(encoding="utf-8")
        module = Module(name, path, ast.parse(text, str(path)), len(text.splitlines()))
        package = name if is_package else name.rpartition(".")[0]
        module.imports = list(_imports(module.tree, package))
        modules[name] = module
    return modules


def _imports(node: ast.AST, package: str, in_function: bool = False, typing: bool = False) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, in_function, typing)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            yield Import(f"{base}.{alias.name}", node.lineno, in_function, typing)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
        "import_module",
        "__import__",
    ):
        name = node.args[0] if node.args else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            target = name.value if not name.value.startswith(".") else package + name.value
            yield Import(target, node.lineno, in_function, typing)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        in_function = True
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from _imports(child, package, in_function, typing=True)
        for child in node.orelse:
            yield from _imports(child, package, in_function, typing)
        return
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package, in_function, typing)


def part_of(target: str) -> str:
    """The first name under the package that `target` goes through; "" for a name of the package itself."""
    part = (target.split(".") + [""])[1]
    return part if part in LEVELS else ""


def own_imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[Import, str]]:
    """Yield the imports of this package with the module each comes from."""
    for item in module.imports:
        if item.target.split(".")[0] != PACKAGE:
            continue
        target = item.target
        while target not in modules and "." in target:
            target = target.rpartition(".")[0]
        yield item, target


def violations(root: Path) -> list[str]:
    """Every breach of the rules in the package at `root`, one line each."""
    modules = read_package(root)
    checks = (_arrows, _rooms, _function_imports, _heavy_imports, _length, _broad_excepts, _faces, _pages)
    found = [
        f"{module.path.relative_to(root)}:{line}: {message}"
        for module in modules.values()
        for check in checks
        for line, message in check(module, modules)
    ]
    return found + _cycles(modules) + _crowded(root)


def _arrows(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    if module.part not in LEVELS:
        yield 1, f"part {module.part!r} has no place in the order of imports; give it one in LEVELS"
        return
    for item, _ in own_imports(module, modules):
        part = part_of(item.target)
        if part == module.part or (module.is_public_names and part == "compat"):
            continue
        arrow = f"{module.part or PACKAGE} imports {part or PACKAGE} ({item.target})"
        if LEVELS[part] > LEVELS[module.part]:
            yield item.line, f"upward: {arrow}"
        elif LEVELS[part] == LEVELS[module.part]:
            yield item.line, f"sideways: {arrow}"
        elif (module.part, part) in FORBIDDEN_DOWNWARD:
            yield item.line, f"forbidden: {arrow}"


def _rooms(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    if module.part != "analysis" or module.is_public_names:
        return
    room = room_of(module.name)
    if room not in ROOMS:
        yield 1, f"room {room!r} of analysis has no place in the order of imports; give it one in ROOMS"
        return
    for item, _ in own_imports(module, modules):
        other = room_of(item.target)
        if part_of(item.target) != "analysis" or other == room:
            continue
        arrow = f"analysis.{room} imports {item.target}"
        if other not in ROOMS:
            yield item.line, f"upward: {arrow}, where public names are gathered"
        elif ROOMS[other] > ROOMS[room]:
            yield item.line, f"upward: {arrow}"
        elif ROOMS[other] == ROOMS[room]:
            yield item.line, f"sideways: {arrow}"


def room_of(name: str) -> str:
    """The second name under the package: "core" for `headscope.analysis.core.result`; "" where there is none."""
    return (name.split(".") + ["", ""])[2]


def _crowded(root: Path) -> list[str]:
    """Find the folders that hold more modules than a reader takes in at a glance."""
    found = []
    for folder in sorted({path.parent for path in root.rglob("*.py")}):
        name = folder.relative_to(root).as_posix()
        n = len(list(folder.glob("*.py")))
        if n > MAX_MODULES and name not in CATALOGS:
            found.append(f"{name}: holds {n} modules; at most {MAX_MODULES}. Give some of them a room of their own")
    return found


def _function_imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    for item, _ in own_imports(module, modules):
        if item.in_function:
            yield item.line, f"imports {item.target} inside a function"


def _heavy_imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    for item in module.imports:
        package = item.target.split(".")[0]
        lazy = item.in_function or item.type_checking
        homes = (module.part, f"{module.part}.{room_of(module.name)}")
        if package in HEAVY and not lazy and not any((home, package) in HEAVY_ALLOWED for home in homes):
            yield item.line, f"imports {package} at module level; import it in the function that needs it"


def _length(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    if module.n_lines > MAX_LINES:
        yield MAX_LINES + 1, f"{module.n_lines} lines; at most {MAX_LINES}"


def _broad_excepts(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = [None] if node.type is None else getattr(node.type, "elts", [node.type])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
            caught = node.args
        else:
            continue
        for kind in caught:
            name = "everything" if kind is None else ast.unparse(kind).removeprefix("builtins.")
            if name in ("everything", "Exception", "BaseException"):
                yield node.lineno, f"broad except: catches {name}"


def _faces(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    if module.part not in FACES and not module.is_public_names:
        return
    for node in module.tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        if not (isinstance(node, (ast.Import, ast.ImportFrom)) or docstring or names):
            yield node.lineno, f"{module.part} only re-exports: `{ast.unparse(node).splitlines()[0]}`"


def _pages(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    if module.part != "report" or module.path.stem in MEASURING:
        return
    for item, _ in own_imports(module, modules):
        part, name = part_of(item.target), item.target.rpartition(".")[2]
        if part == "model":
            yield item.line, f"a page sees a model: imports {item.target}; measure it in a module named measuring"
        elif part in ("analysis", "training") and room_of(item.target) not in PURE_ROOMS and not name[0].isupper():
            yield item.line, f"a page runs an analysis: imports {item.target}; of analyses it may import results alone"


def _cycles(modules: dict[str, Module]) -> list[str]:
    """Find the modules that import each other, in however many steps; an import for types alone is none."""
    graph = {
        name: {
            target
            for item, target in own_imports(module, modules)
            if target in modules and target != name and not item.type_checking
        }
        for name, module in modules.items()
    }
    # What imports nothing that is left, or is imported by nothing that is left, is in no cycle.
    left = dict(graph)
    while True:
        imported = {target for targets in left.values() for target in targets}
        keep = {name for name in left if name in imported and left[name] & left.keys()}
        if keep == left.keys():
            break
        left = {name: left[name] & keep for name in keep}
    return [f"cycle among: {', '.join(sorted(left))}"] if left else []


def test_the_package_keeps_the_rules() -> None:
    assert violations(SOURCE) == []


def test_the_package_is_what_was_read() -> None:
    modules = read_package(SOURCE)
    assert {"headscope", "headscope.errors", "headscope.data", "headscope.data.packing"} <= modules.keys()
    targets = [target for _, target in own_imports(modules["headscope.data.packing"], modules)]
    assert sorted(set(targets)) == [
        "headscope.data.cutting",
        "headscope.data.hub",
        "headscope.data.protocols",
        "headscope.data.text",
        "headscope.differences",
        "headscope.errors",
    ]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"__init__.py": "", "errors.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


GOOD = {
    "__init__.py": "from headscope import utils\nfrom headscope.model.cache import Cache\n",
    "utils.py": '"""A face."""\nfrom headscope.ops.rank import rank\n__all__ = ["rank"]\n',
    "ops/__init__.py": "from headscope.ops.rank import rank\n",
    "ops/rank.py": "import torch\nfrom headscope.errors import HeadscopeError\n",
    "model/__init__.py": "",
    "model/cache.py": "from ..ops import rank\nfrom . import names\n",
    "model/names.py": (
        "try:\n    import torch\nexcept (ImportError, OSError):\n    raise\n"
        "if TYPE_CHECKING:\n    from headscope.model.cache import Cache\n"
    ),
    "views/page.py": (
        "from typing import TYPE_CHECKING\nfrom headscope.ops.rank import rank\n"
        "if TYPE_CHECKING:\n    import pandas\n"
        "def show():\n    import plotly.express\n    from pyarrow import parquet\n"
    ),
    "analysis/__init__.py": "from headscope.compat.svd import SVD\nfrom headscope.analysis.lens.entropy import x\n",
    "analysis/lens/entropy.py": "from headscope.analysis.core.result import R\nfrom headscope.model import names\n",
    "analysis/core/result.py": "from headscope.errors import HeadscopeError\n",
    "analysis/patching/path.py": "from headscope.analysis.lens.entropy import x\n",
    "report/task/measuring.py": (
        "from headscope.analysis.lens.entropy import x\nfrom headscope.model.cache import Cache\n"
    ),
    "report/task/section.py": (
        "from headscope.analysis.lens.entropy import LIMIT, EntropyResult\n"
        "from headscope.analysis.core.result import label\n"
    ),
    "compat/svd.py": "from headscope.analysis.core.result import Result\n",
    "cli.py": "import typer\nfrom headscope.views import page\n",
}

BAD = {
    "upward": ({"ops/a.py": "from headscope.model.b import x"}, "ops/a.py:1: upward: ops imports model"),
    "upward, plain import": ({"data/a.py": "\nimport headscope.analysis.b"}, "data/a.py:2: upward"),
    "upward, relative": ({"ops/a.py": "from ..model import b"}, "ops/a.py:1: upward: ops imports model"),
    "upward, for types": (
        {"ops/a.py": "if TYPE_CHECKING:\n    from headscope.model import b"},
        "ops/a.py:2: upward: ops imports model",
    ),
    "upward, to the face": (
        {"model/a.py": "from headscope import utils"},
        "model/a.py:1: upward: model imports utils",
    ),
    "upward, to the package": (
        {"report.py": "from headscope import HookPoint"},
        "report.py:1: upward: report imports headscope",
    ),
    "errors import ours": ({"errors.py": "from headscope.ops import a"}, "errors.py:1: upward"),
    "sideways, model to data": ({"model/a.py": "from headscope.data import b"}, "model/a.py:1: sideways"),
    "sideways, data to model": ({"data/a.py": "from headscope.model import b"}, "data/a.py:1: sideways"),
    "sideways, scale to training": (
        {"scale/a.py": "from headscope.training import b"},
        "scale/a.py:1: sideways",
    ),
    "views import model": (
        {"views/a.py": "from headscope.model import b"},
        "views/a.py:1: forbidden: views imports model",
    ),
    "upward between rooms": (
        {"analysis/core/a.py": "from headscope.analysis.lens.b import x"},
        "analysis/core/a.py:1: upward: analysis.core imports headscope.analysis.lens.b.x",
    ),
    "upward between rooms, relative": (
        {"analysis/prompts/a.py": "from ..patching import b"},
        "analysis/prompts/a.py:1: upward: analysis.prompts imports headscope.analysis.patching.b",
    ),
    "upward between rooms, for types": (
        {"analysis/recording/a.py": "if TYPE_CHECKING:\n    from headscope.analysis.heads.b import x"},
        "analysis/recording/a.py:2: upward: analysis.recording imports headscope.analysis.heads.b.x",
    ),
    "sideways between rooms": (
        {"analysis/lens/a.py": "from headscope.analysis.ablation.b import x"},
        "analysis/lens/a.py:1: sideways: analysis.lens imports headscope.analysis.ablation.b.x",
    ),
    "upward to the public names": (
        {"analysis/heads/a.py": "from headscope.analysis import x", "analysis/__init__.py": ""},
        "analysis/heads/a.py:1: upward: analysis.heads imports headscope.analysis.x, where public names",
    ),
    "unplaced room": (
        {"analysis/misc/a.py": ""},
        "analysis/misc/a.py:1: room 'misc' of analysis has no place",
    ),
    "a room reads what notebooks import": (
        {"analysis/lens/a.py": "from headscope.compat.svd import x"},
        "analysis/lens/a.py:1: upward: analysis imports compat",
    ),
    "public names define a function": (
        {"analysis/__init__.py": "def f():\n    pass"},
        "analysis/__init__.py:1: analysis only re-exports: `def f():`",
    ),
    "a section sees a model": (
        {"report/task/section.py": "from headscope.model.transformer import HookedTransformer"},
        "report/task/section.py:1: a page sees a model: imports headscope.model.transformer.HookedTransformer",
    ),
    "figures see a model, for types": (
        {"report/figures.py": "if TYPE_CHECKING:\n    from headscope.model import config"},
        "report/figures.py:2: a page sees a model: imports headscope.model.config",
    ),
    "findings run an analysis": (
        {"report/model/findings.py": "from headscope.analysis.lens.entropy import EntropyResult, measure_entropy"},
        "report/model/findings.py:1: a page runs an analysis: imports headscope.analysis.lens.entropy.measure_entropy",
    ),
    "words study a toy": (
        {"report/words.py": "from headscope.training.toy_study import heads_needed"},
        "report/words.py:1: a page runs an analysis: imports headscope.training.toy_study.heads_needed",
    ),
    "crowded": (
        {"ops/__init__.py": "", **{f"ops/a{number}.py": "" for number in range(16)}},
        "ops: holds 17 modules; at most 16",
    ),
    "unplaced part": ({"misc.py": ""}, "misc.py:1: part 'misc' has no place"),
    "in a function": (
        {"model/a.py": "def f():\n    from headscope.errors import X"},
        "model/a.py:2: imports headscope.errors.X inside a function",
    ),
    "in a method, relative": (
        {"model/a.py": "class A:\n    def f(self):\n        from . import b", "model/b.py": ""},
        "model/a.py:3: imports headscope.model.b inside a function",
    ),
    "in a function, by importlib": (
        {"model/a.py": "def f():\n    return importlib.import_module('headscope.ops')"},
        "model/a.py:2: imports headscope.ops inside a function",
    ),
    "cycle of two": (
        {"ops/a.py": "from headscope.ops.b import x", "ops/b.py": "from headscope.ops.a import y"},
        "cycle among: headscope.ops.a, headscope.ops.b",
    ),
    "cycle of three beside a tail": (
        {
            "model/a.py": "from headscope.model import b, tail",
            "model/b.py": "from headscope.model import c",
            "model/c.py": "from headscope.model import a",
            "model/tail.py": "",
            "model/head.py": "from headscope.model import a",
        },
        "cycle among: headscope.model.a, headscope.model.b, headscope.model.c",
    ),
    "cycle through a package's names": (
        {"ops/__init__.py": "from headscope.ops.a import x", "ops/a.py": "from headscope.ops import y"},
        "cycle among: headscope.ops, headscope.ops.a",
    ),
    "too long": ({"ops/a.py": "x = 1\n" * 501}, "ops/a.py:501: 501 lines; at most 500"),
    "heavy": ({"views/a.py": "import plotly.express as px"}, "views/a.py:1: imports plotly at module level"),
    "heavy, from": (
        {"model/a.py": "from transformers import AutoConfig"},
        "model/a.py:1: imports transformers at module level",
    ),
    "heavy, in a try": (
        {"ops/a.py": "try:\n    import pyarrow\nexcept ImportError:\n    pass"},
        "ops/a.py:2: imports pyarrow",
    ),
    "heavy, beside the types": (
        {"ops/a.py": "if TYPE_CHECKING:\n    import pandas\nelse:\n    import pyarrow"},
        "ops/a.py:4: imports pyarrow",
    ),
    "typer outside the cli": ({"report.py": "import typer"}, "report.py:1: imports typer"),
    "fastapi outside the room that serves": (
        {"explorer/measuring/a.py": "import fastapi"},
        "explorer/measuring/a.py:1: imports fastapi",
    ),
    "bare except": (
        {"ops/a.py": "try:\n    x\nexcept:\n    pass"},
        "ops/a.py:3: broad except: catches everything",
    ),
    "except Exception": (
        {"ops/a.py": "try:\n    x\nexcept Exception as e:\n    pass"},
        "ops/a.py:3: broad except: catches Exception",
    ),
    "except among others": (
        {"ops/a.py": "try:\n    x\nexcept (OSError, BaseException):\n    pass"},
        "ops/a.py:3: broad except: catches BaseException",
    ),
    "suppress": (
        {"ops/a.py": "with contextlib.suppress(Exception):\n    x"},
        "ops/a.py:1: broad except: catches Exception",
    ),
    "utils defines a function": (
        {"utils.py": "def f():\n    pass"},
        "utils.py:1: utils only re-exports: `def f():`",
    ),
    "utils defines a constant": (
        {"utils.py": "from headscope.errors import E\nF = E"},
        "utils.py:2: utils only re-exports: `F = E`",
    ),
    "another face defines a function": (
        {"patching.py": "from headscope.errors import E\ndef f():\n    pass"},
        "patching.py:2: patching only re-exports: `def f():`",
    ),
    "a face reads a face": (
        {"patching.py": "from headscope.utils import f", "utils.py": ""},
        "patching.py:1: sideways: patching imports utils",
    ),
}


def test_a_good_tree_passes(tmp_path: Path) -> None:
    assert violations(write_tree(tmp_path, GOOD)) == []


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_tree_is_told(tmp_path: Path, files: dict[str, str], message: str) -> None:
    found = violations(write_tree(tmp_path, files))
    assert len(found) == 1
    assert found[0].startswith(message)


def test_pages_are_waited_for_by_functions() -> None:
    # A function is evaluated once. An expression is evaluated at each look, which a page's content policy allows at the
    # first and refuses at the second: a test of it passes where the condition holds at once, and fails elsewhere.
    sources = {path: path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py")}
    waits = [
        (path.name, ast.unparse(node.args[0]))
        for path, source in sources.items()
        if ".wait_for_function(" in source
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "wait_for_function"
    ]
    assert waits and [wait for wait in waits if "=>" not in wait[1]] == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    # triton is left out: PyTorch's CUDA builds load it themselves. Analyses take as long to import as the model does.
    heavy = sorted(HEAVY - {"triton"} | {"headscope.analysis", "headscope.compat"})
    code = f"import sys, headscope; print([name for name in {heavy} if name in sys.modules])"
    assert _printed(code) == "[]"


def test_what_is_loaded_later_is_there_when_asked_for() -> None:
    names = sorted(headscope.__all__)
    assert set(names) <= set(dir(headscope))
    code = f"import headscope; print([getattr(headscope, name).__name__ for name in {names}])"
    homes = {"evals", "head_detector", "patching", "utils"}
    assert _printed(code) == str([f"headscope.{name}" if name in homes else name for name in names])
    with pytest.raises(AttributeError, match="module 'headscope' has no attribute 'utilities'"):
        _ = headscope.utilities


def _printed(code: str) -> str:
    """Return the output of a new process."""
    ended = run_program(code)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
