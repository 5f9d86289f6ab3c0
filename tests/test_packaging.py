"""What is installed from a wheel is all of the package."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import headscope

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    web = source / "headscope" / "explorer" / "web"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        # The explorer's page is installed as built: its sources are for developers, who have Node.
        if not path.is_relative_to(web) or path.is_relative_to(web / "dist")
    }
    assert "headscope/explorer/web/dist/assets/explorer.js" in files
    assert packed == files


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert headscope.__version__ == project["version"]
    assert f"## [{headscope.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {headscope.__version__}\n" in citation


def test_users_have_the_types() -> None:
    assert (ROOT / "src" / "headscope" / "py.typed").exists()
