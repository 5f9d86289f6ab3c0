"""Programs in processes of their own, which need not import PyTorch again: they are forked from one that has.

That one has imported PyTorch and nothing else, and checks no types: what a program imports of headscope is as a user's.
Where the loading of PyTorch is the point, or a signal to the process, take `subprocess`.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
_ON = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
_ON.set_forkserver_preload(["torch"])


def run_program(
    program: str | Path,
    *args: str,
    given: str = "",
    cwd: Path | None = None,
    paths: tuple[Path, ...] = (SOURCE,),
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python's code, or a file of it, with these arguments and standard input.

    Args:
        program: The code or the file.
        args: The rest of `sys.argv`.
        given: What it reads.
        cwd: The folder it runs in.
        paths: Where it imports from, before what is installed.
        environment: What is added to this process's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("in", "out", "error")]
        for file, text in zip(files, (given, "", ""), strict=True):
            file.write_text(text, encoding="utf-8")
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        todo = (program, args, [str(path) for path in paths], [str(file) for file in files], variables)
        process = _ON.Process(target=_run, args=(*todo, cwd or Path.cwd()))
        process.start()
        process.join()
        status = process.exitcode
        process.close()
        out, error = (file.read_text(encoding="utf-8") for file in files[1:])
    assert status is not None
    return subprocess.CompletedProcess([sys.executable, str(program), *args], status, out, error)


def _run(
    program: str | Path, args: tuple[str, ...], paths: list[str], files: list[str], variables: dict[str, str], cwd: Path
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    for number, (file, mode) in enumerate(zip(files, "rww", strict=True)):
        opened = os.open(file, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww")
    )
    is_file = isinstance(program, Path)
    name = str(program) if is_file else "<string>"
    code = program.read_text(encoding="utf-8") if isinstance(program, Path) else program
    sys.argv = [name if is_file else "-c", *args]
    sys.path[:0] = [*([str(Path(name).parent)] if is_file else []), *paths]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if is_file:
        main.__file__ = name
    exec(compile(code, name, "exec"), main.__dict__)
