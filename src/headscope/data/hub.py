"""Datasets and files from the Hugging Face hub: small datasets by short names, single columns, single files."""

import json
import pickle
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch

from headscope.errors import InvalidInputError, MissingDependencyError, unknown_name

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "DATASETS",
    "HFDataset",
    "check_column",
    "download_file_from_hf",
    "get_dataset",
    "get_webtext",
    "keep_single_column",
    "load_hf_dataset",
]

DATASETS = {
    "openwebtext": "stas/openwebtext-10k",
    "owt": "stas/openwebtext-10k",
    "pile": "NeelNanda/pile-10k",
    "c4": "NeelNanda/c4-10k",
    "code": "NeelNanda/code-10k",
    "python": "NeelNanda/code-10k",
    "c4_code": "NeelNanda/c4-code-20k",
    "c4-code": "NeelNanda/c4-code-20k",
    "wiki": "NeelNanda/wiki-10k",
}


@runtime_checkable
class HFDataset(Protocol):
    """The part of `datasets.Dataset` and `datasets.IterableDataset` that is used here."""

    if TYPE_CHECKING:

        @property
        def column_names(self) -> list[str] | None: ...

    def map(self, function: Any, **options: Any) -> Self:
        """Apply `function` to the rows."""
        ...

    def select_columns(self, column_names: list[str]) -> Self:
        """Keep only these columns."""
        ...

    def with_format(self, type: str | None) -> Self:
        """Return rows as tensors (`"torch"`)."""
        ...


def get_dataset(dataset_name: str, **kwargs: Any) -> "Dataset":
    """Load a sample of some 10,000 documents by a short name; needs the extra `headscope[hf-datasets]`.

    Args:
        dataset_name: `"openwebtext"` (`"owt"`), `"pile"`, `"c4"`, `"code"` (`"python"`), `"c4_code"` or `"wiki"`.
        **kwargs: For `datasets.load_dataset`, such as `streaming=True`. For other datasets, call that function.

    Returns:
        The training split, with the documents in the column `text`.

    Raises:
        UnknownNameError: For any other name.
        MissingDependencyError: If the package `datasets` is not installed.
        InvalidInputError: If the dataset cannot be loaded.

    Example:
        >>> tokens = tokenize_and_concatenate(get_dataset("pile"), model.tokenizer)  # doctest: +SKIP
    """
    if dataset_name not in DATASETS:
        hint = "For other datasets on the hub, call datasets.load_dataset(name, split='train')."
        raise unknown_name("dataset", dataset_name, DATASETS, hint=hint)
    return load_hf_dataset(DATASETS[dataset_name], **{"split": "train", **kwargs})


def load_hf_dataset(name: str, *config: str | None, **options: Any) -> Any:
    """Call `datasets.load_dataset`, with errors that say what to do.

    Raises:
        MissingDependencyError: If the package `datasets` is not installed.
        InvalidInputError: If the dataset cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f"The dataset {name!r} needs the `datasets` package, which cannot be imported ({error}). "
            "Run: pip install 'headscope[hf-datasets]'",
            code="HS-DEPENDENCY-01",
        ) from error
    try:
        return load_dataset(name, *config, **options)
    except (OSError, ValueError) as error:
        given = ", ".join([*(repr(each) for each in config if each), *(f"{key}={options[key]!r}" for key in options)])
        raise InvalidInputError(f"The dataset {name!r} ({given}) cannot be loaded: {error}") from error


def get_webtext(seed: int = 420, *, dataset: str = "openwebtext") -> list[str]:
    """Load the documents of `stas/openwebtext-10k`, shuffled; needs the extra `headscope[hf-datasets]`.

    Args:
        seed: Seed of the order; the global generator is untouched.
        dataset: Another of `get_dataset`'s names.

    Raises:
        UnknownNameError: For any other name.
        MissingDependencyError: If the package `datasets` is not installed.
        InvalidInputError: If the dataset cannot be loaded.

    Example:
        >>> tokens = model.to_tokens(get_webtext(seed=6)[:50])  # doctest: +SKIP
    """
    texts = [row["text"] for row in get_dataset(dataset)]
    random.Random(seed).shuffle(texts)
    return texts


def keep_single_column(dataset: HFDataset, col_name: str) -> HFDataset:
    """Drop all columns of a dataset but one.

    Args:
        dataset: A `datasets.Dataset` or `datasets.IterableDataset`.
        col_name: The column to keep.

    Raises:
        UnknownNameError: If there is no such column; the message lists the columns.

    Example:
        >>> keep_single_column(get_dataset("pile"), "text").column_names  # doctest: +SKIP
        ['text']
    """
    check_column(col_name, dataset.column_names, "the dataset")
    return dataset.select_columns([col_name])


def check_column(column: str, names: Iterable[str] | None, where: str) -> None:
    """Raise if a column is missing; a streamed dataset may not know its columns (None) before its first row.

    Raises:
        UnknownNameError: If there is no such column; the message lists the columns.
    """
    if names is not None and column not in (names := list(names)):
        raise unknown_name("column", column, names, hint=f"The columns of {where}: {names}.", code="HS-NAME-07")


def download_file_from_hf(
    repo_name: str,
    file_name: str,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
    force_is_torch: bool = False,
    **kwargs: Any,
) -> Any:
    """Download a model's file from the hub, unless it is cached, and read it if it is JSON or tensors.

    Args:
        repo_name: The model's hub id, `"owner/model"`.
        file_name: The file.
        subfolder: The folder it is in.
        cache_dir: Cache folder; by default the one of Hugging Face's libraries.
        force_is_torch: Read it with `torch.load` whatever its suffix.
        **kwargs: For `huggingface_hub.hf_hub_download`, such as `revision`.

    Returns:
        The contents of a `.json` file; the tensors of a `.pth` file, on the CPU; otherwise the local path as a string.
        Pickled code is never run: a file with anything but tensors and plain values is refused.

    Raises:
        InvalidInputError: If there is no such file, or it cannot be downloaded or read.

    Example:
        >>> download_file_from_hf("openai-community/gpt2", "config.json")["n_layer"]  # doctest: +SKIP
        12
    """
    from huggingface_hub import hf_hub_download

    where = f"{file_name!r} of {repo_name!r} on the Hugging Face hub"
    folder = None if subfolder == "." else subfolder
    try:
        path = hf_hub_download(repo_name, file_name, subfolder=folder, cache_dir=cache_dir, **kwargs)
    except (OSError, ValueError) as error:  # bases of the hub's own errors
        raise InvalidInputError(f"{where} cannot be downloaded: {error}") from error
    return _read_file(path, where, is_torch=force_is_torch or path.endswith(".pth"))


def _read_file(path: str, where: str, *, is_torch: bool) -> Any:
    if is_torch:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError, LookupError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidInputError(f"{where} is corrupt, or holds more than tensors: {reason}") from None
    if not path.endswith(".json"):
        return path
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{where} is not valid JSON: {error}") from error
