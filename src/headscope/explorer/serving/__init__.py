"""The live explorer: a server for this machine alone, and a model that answers its page."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headscope.errors import MissingDependencyError
from headscope.model.transformer import HookedTransformer

__all__ = ["serve"]


def serve(
    folder: str | Path,
    *,
    model: HookedTransformer | str | Path | None = None,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], Any] = print,
) -> None:
    """Serve an explorer's folder on this machine until Ctrl-C, with a live page that runs the model.

    It listens on the loopback interface alone, answers those who have the link that it prints, and writes nothing.

    Args:
        folder: What `explore` wrote.
        model: The model; default: that which the folder names.
        port: The port; 0 for any that is free.
        open_browser: Open the link in a browser.
        say: Is given the link.

    Raises:
        MissingDependencyError: Without the extra `live`.
        InvalidInputError: If the folder is no explorer or that of another model, or the port is taken.
        CheckpointError: If the model cannot be found.
        MissingTokenizerError: If it has no tokenizer.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the live explorer needs {' and '.join(missing)}, which the extra live brings: "
            "pip install 'headscope[live]'. Without it, open index.html of the folder in a browser.",
            code="HS-DEPENDENCY-01",
        )
    # Only who serves loads the web framework, which takes longer than the rest of the command line.
    server = importlib.import_module(f"{__package__}.server")
    server.serve(folder, model=model, port=port, open_browser=open_browser, say=say)
