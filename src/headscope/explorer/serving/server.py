"""`serve`: an explorer's folder on an address of this machine, with a model that answers the live page."""

import errno
import os
import secrets
import socket
import webbrowser
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import uvicorn

from headscope.errors import CheckpointError, InvalidInputError, UnknownNameError
from headscope.explorer.serving.app import make_app
from headscope.explorer.serving.guard import App, Guard
from headscope.explorer.serving.queue import Queue
from headscope.explorer.serving.schemas import State
from headscope.explorer.serving.sessions import Sessions
from headscope.explorer.tree.means import read_means
from headscope.explorer.tree.reading import Exploration, read_tree
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
        if (
            os.name == "posix"
        ):  # connections of a server that was stopped do not keep its port; elsewhere, it means more
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((_HOST, port))
            listening.listen(128)  # from here on nobody else can take the port
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

    @cached_property
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
    tree = read_tree(folder)
    address = Address.bind(port)  # a port that is taken should be told before a model is loaded
    with closing(address.listening):
        loaded = _model(model, tree)
        sessions = Sessions(loaded, read_means(tree.directory, loaded))
        sessions.run(State(prompt="."))  # a first run loads what all need, and tells if the model cannot be run at all
        server = Server(address, tree.directory, sessions)
        say(f"{address.link}\nThis link is for you alone, on this machine. Ctrl-C ends the server.")
        if open_browser:
            webbrowser.open(address.link)
        with suppress(KeyboardInterrupt):  # the way to end it
            server.run()
    say("Stopped.")


def _model(given: HookedTransformer | str | Path | None, tree: Exploration) -> HookedTransformer:
    """Return the model of an explorer, and check that it is that.

    Raises:
        InvalidInputError: If its shape is another than was measured, or the folder does not say which it is.
        CheckpointError: If it cannot be found, or loaded.
    """
    model = given if isinstance(given, HookedTransformer) else _loaded(given, tree)
    for name, here in (("n_layers", model.cfg.n_layers), ("n_heads", model.cfg.n_heads)):
        if tree.config[name] != here:
            raise InvalidInputError(
                f"{str(tree.directory)!r} is of a model with {name} = {tree.config[name]}, and "
                f"{model.cfg.model_name!r} has {here}: name the model that was measured with --model."
            )
    return model


def _loaded(given: str | Path | None, tree: Exploration) -> HookedTransformer:
    written = tree.config["pipeline_config"].get("model"), tree.config["model_name"]
    name = given or next((each for each in written if each and isinstance(each, str)), None)
    if name is None:
        raise InvalidInputError(f"{str(tree.directory)!r} does not say what model it is of: name it with --model.")
    try:
        return HookedTransformer.from_pretrained(name)
    except (CheckpointError, UnknownNameError) as error:
        if given is not None:
            raise
        raise CheckpointError(
            f"the model of {str(tree.directory)!r} cannot be loaded as {name!r}: {error.message} Say where it is with "
            "--model."
        ) from None
