"""`serve`: an explorer's folder on an address of this machine, with a model that answers the live page."""

import errno
import json
import secrets
import socket
import webbrowser
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headscope.analysis.core.components import Component, component_of
from headscope.errors import CheckpointError, InvalidInputError, StorageError
from headscope.explorer.serving.app import make_app
from headscope.explorer.serving.guard import App, Guard
from headscope.explorer.serving.queue import Queue
from headscope.explorer.serving.sessions import Sessions
from headscope.model.transformer import HookedTransformer

__all__ = ["Address", "Server", "serve"]

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """The address at which a server listens.

    Attributes:
        listening: The socket, on this machine's loopback interface alone.
        token: The secret of the first link.
    """

    listening: socket.socket
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @classmethod
    def bind(cls, port: int) -> "Address":
        """Take a port; 0 takes any that is free.

        Raises:
            InvalidInputError: If it is taken, or there is none of that number.
        """
        if not 0 <= port <= 65535:
            raise InvalidInputError(f"--port is a number from 0 to 65535; got {port}.")
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((_HOST, port))
        except OSError as error:
            listening.close()
            said = {
                errno.EADDRINUSE: f"port {port} is taken by another program",
                errno.EACCES: f"port {port} is for the system alone",
            }.get(error.errno or 0)
            if said is None:
                raise
            raise InvalidInputError(f"{said}: name another one with --port, or leave it out for a free one.") from None
        return cls(listening)

    @property
    def port(self) -> int:
        """The port."""
        return int(self.listening.getsockname()[1])

    @property
    def link(self) -> str:
        """The first link, which holds the token."""
        return f"http://{_HOST}:{self.port}/?token={self.token}"


class Server:
    """A folder's server, listening but not yet answering.

    Args:
        address: Where it listens.
        folder: An explorer's folder.
        sessions: What answers the live page.
        queue: Who runs the model.
    """

    def __init__(self, address: Address, folder: Path, sessions: Sessions, queue: Queue | None = None) -> None:
        self.address = address
        app: App = make_app(sessions, folder, Queue() if queue is None else queue)
        guarded = Guard(app, token=address.token, port=address.port)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                guarded,
                http="h11",
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=256,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=3,
                h11_max_incomplete_event_size=16 * 2**10,
            )
        )

    def run(self) -> None:
        """Answer until Ctrl-C."""
        self._uvicorn.run(sockets=[self.address.listening])

    def stop(self) -> None:
        """Have `run`, in another thread, come to its end."""
        self._uvicorn.should_exit = True


def serve(
    folder: str | Path,
    *,
    model: HookedTransformer | str | Path | None = None,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], Any] = print,
) -> None:
    """Serve an explorer's folder until Ctrl-C; see `headscope.explorer.serve`."""
    folder = Path(folder)
    config = _config(folder)
    address = Address.bind(port)  # a port that is taken should be told before a model is loaded
    with closing(address.listening):
        loaded = _model(model, config, folder)
        server = Server(address, folder, Sessions(loaded, _means(folder, loaded)))
        say(f"{address.link}\nThis link is for you alone, on this machine. Ctrl-C ends the server.")
        if open_browser:
            webbrowser.open(address.link)
        server.run()


def _config(folder: Path) -> dict[str, Any]:
    """Return an explorer's config.

    Raises:
        InvalidInputError: If the folder holds none.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInputError(
            f"{folder} is no explorer: it holds no config.json. headscope explore MODEL --out {folder} makes one."
        ) from None
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise InvalidInputError(f"{path} holds no explorer's config.")
    return config


def _model(given: HookedTransformer | str | Path | None, config: dict[str, Any], folder: Path) -> HookedTransformer:
    """Return the model of a folder, and check that it is that.

    Raises:
        InvalidInputError: If its shape is another than the folder's, or the folder does not say which it is.
    """
    if isinstance(given, HookedTransformer):
        model = given
    else:
        provenance = config.get("pipeline_config")
        name = given or (provenance or {}).get("model") or config.get("model_name")
        if not name:
            raise InvalidInputError(f"{folder} does not say what model it is of: name it with --model.")
        try:
            model = HookedTransformer.from_pretrained(name)
        except CheckpointError as error:
            if given is not None:
                raise
            raise CheckpointError(f"{error} Say where the model of {folder} is with --model.") from None
    for name, here in (("n_layers", model.cfg.n_layers), ("n_heads", model.cfg.n_heads)):
        if name in config and config[name] != here:
            raise InvalidInputError(
                f"{folder} is of a model with {name} = {config[name]}, and {model.cfg.model_name!r} has {here}: "
                "name the model that was measured with --model."
            )
    return model


def _means(folder: Path, model: HookedTransformer) -> dict[Component, Tensor]:
    """Return the mean outputs that were measured, if they were on this model with its weights processed alike."""
    path = folder / "means.safetensors"
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt", device=str(model.W_E.device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise StorageError(f"{path} cannot be read: {error}.") from None
    if metadata.get("weight_processing") != ",".join(model.weight_processing):
        return {}
    parts = {component_of(name): mean for name, mean in tensors.items()}
    return {part: mean for part, mean in parts.items() if part is not None}
