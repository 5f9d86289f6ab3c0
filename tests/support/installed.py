"""Run by the Python of an environment that headscope was installed into: every module loads, from there."""

import importlib
import pkgutil
import sys
from pathlib import Path

import headscope


def main() -> None:
    """Import every module that needs no extra."""
    place = Path(headscope.__file__).parent
    assert place.is_relative_to(sys.prefix), f"headscope is imported from {place}, not from {sys.prefix}"
    assert (place / "py.typed").exists()
    left_out = []
    for module in pkgutil.walk_packages([str(place)], "headscope."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            left_out.append(f"{module.name} ({error.name or error})")
    print(f"{len(sys.modules)} modules loaded; not without an extra: {', '.join(left_out) or 'none'}")


if __name__ == "__main__":
    main()
