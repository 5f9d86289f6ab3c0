"""The model of a run for its workers: a copy of its weights, memory-mapped, so that workers on a node share one.

A copy is what `save_pretrained` writes, and so the model as it stands, however it was made, trained or processed. One
behind a URL is fetched once to a node's own disk.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where copies that were left are the user's to remove
    fcntl = None  # type: ignore[assignment]

from headscope.analysis.storage.manifest import changes_in_process
from headscope.analysis.storage.places import Place
from headscope.errors import InvalidInputError, StorageError
from headscope.model.transformer import HookedTransformer

__all__ = ["ModelCopy", "check_without_hooks", "load_model", "remove_model", "write_model"]

_FOLDER = "model"
_LAST = "config.json"
_COPIES, _LOCK = "headscope-copy-", "lock"


def check_without_hooks(model: HookedTransformer) -> None:
    """Refuse a model with hooks, or a mask of its own, which stay in the process that put them there.

    Raises:
        InvalidInputError: naming the first of them.
    """
    put_on = changes_in_process(model)
    if put_on:
        raise InvalidInputError(
            f"this model has {put_on[0]}, which cannot be sent to workers. Take it off (for hooks, "
            "model.reset_hooks()), or measure in this process: InProcess()."
        )


class ModelCopy:
    """A copy of a model in the system's temporary folder, for the workers of this process.

    It holds a lock, which goes with the process: a copy that nobody locks was left by one that was killed, and the next
    that is made removes it.

    Args:
        model: The model.

    Attributes:
        path: The copy, as `from_pretrained` takes it.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, model: HookedTransformer) -> None:
        _remove_left_copies()
        self._folder = Path(tempfile.mkdtemp(prefix=_COPIES))
        self._lock = _lock(self._folder / "locking")
        (self._folder / "locking").rename(self._folder / _LOCK)  # locked before others find it
        self.path = self._folder / _FOLDER
        with contextlib.ExitStack() as undo:
            undo.callback(self.remove)
            model.save_pretrained(self.path)
            undo.pop_all()

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Lock a file, and return what holds the lock.

    Raises:
        OSError: if another process has locked it.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def _remove_left_copies() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{_COPIES}*/{_LOCK}") if fcntl is not None else ():
        with contextlib.suppress(OSError):  # in use, another user's, or just removed
            file = _lock(lock)
            shutil.rmtree(lock.parent, ignore_errors=True)
            os.close(file)


def write_model(model: HookedTransformer, place: Place) -> None:
    """Write a copy of a model to a run's folder, if there is none yet.

    Raises:
        StorageError: if it cannot be written.
    """
    target = place / _FOLDER
    if target.has(_LAST):
        return
    if type(place) is Place:
        try:
            model.save_pretrained(place.path / _FOLDER)
        except OSError as error:
            if not target.has(_LAST):  # else another process was faster
                raise StorageError(f"a copy of the model could not be written to {place}: {error}.") from error
        return
    with tempfile.TemporaryDirectory(prefix="headscope-") as temporary:
        folder = model.save_pretrained(Path(temporary) / _FOLDER)
        # The config last: a copy is whole when it is there.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == _LAST):
            with target.new_file(path.name) as there:
                shutil.copyfile(path, there)


def remove_model(place: Place) -> None:
    """Remove the copy of a model from a run's folder."""
    for name in (place / _FOLDER).names():
        (place / _FOLDER).remove(name)
    if type(place) is Place and (place.path / _FOLDER).is_dir():
        (place.path / _FOLDER).rmdir()


def load_model(
    given: str | None, noted: str | None, place: Place, weights: str, *, dtype: str, device: str | None
) -> HookedTransformer:
    """Load the model of a run.

    Args:
        given: What `from_pretrained` takes; `None` for the copy in the run's folder.
        noted: What it takes where there is no copy.
        place: The run's folder.
        weights: The fingerprint of its weights.
        dtype: Their dtype, which a checkpoint may have been converted to.
        device: Where to.

    Raises:
        InvalidInputError: if nothing says what to load.
    """
    options: dict[str, Any] = {} if device is None else {"device": device}
    is_copied = (place / _FOLDER).has(_LAST)
    source = given or (noted if noted and not is_copied else str(_on_this_node(place, weights)))
    return HookedTransformer.from_pretrained(source, mapped=True, dtype=dtype, **options)


def _on_this_node(place: Place, weights: str) -> Path:
    copy = place / _FOLDER
    if not copy.has(_LAST):
        raise InvalidInputError(f"{str(place)!r} has no copy of its model: name what to load with model= (--model).")
    if type(place) is Place:
        return place.path / _FOLDER
    folder = Path(tempfile.gettempdir()) / f"headscope-model-{weights[:16]}"
    with tempfile.TemporaryDirectory(prefix="headscope-", dir=folder.parent) as temporary:
        if not folder.exists():
            fetched = Path(temporary) / _FOLDER
            fetched.mkdir()
            for name in copy.names():
                (fetched / name).write_bytes(copy.read(name))
            with contextlib.suppress(OSError):  # when another worker of this node was faster
                fetched.rename(folder)
    return folder
