"""Files of token ids: `.npy`, `.safetensors` and `.json`, for models without a tokenizer and text cut beforehand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["TOKEN_SUFFIXES", "read_tokens"]

TOKEN_SUFFIXES = (".npy", ".safetensors", ".json")
_NAME = "tokens"


def read_tokens(path: Path | str) -> Int[Tensor, "batch pos"]:
    """Read rows of token ids.

    Args:
        path: A `.npy` array of whole numbers `[batch, pos]` or `[pos]`; a `.safetensors` file with one tensor, or one
            that is named `tokens`; or a `.json` list of rows of equal length (or one row).

    Raises:
        InvalidInputError: If the file cannot be read, or holds something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "tokens.json"
        ...     _ = path.write_text("[[3, 1, 2], [3, 0, 1]]")
        ...     read_tokens(path)
        tensor([[3, 1, 2],
                [3, 0, 1]])
    """
    path = Path(path)
    readers = {".npy": _numpy, ".safetensors": _safetensors, ".json": _json}
    if path.suffix.lower() not in readers:
        raise InvalidInputError(f"{path} is no file of tokens; these end in {', '.join(TOKEN_SUFFIXES)}.")
    if not path.is_file():
        raise InvalidInputError(f"{path} is no file.")
    try:
        tokens = readers[path.suffix.lower()](path)
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise InvalidInputError(f"{path} cannot be read as tokens: {error}.") from None
    if tokens.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise InvalidInputError(f"{path} holds {tokens.dtype}, and tokens are whole numbers.")
    if tokens.ndim not in (1, 2) or not tokens.numel():
        raise InvalidInputError(f"{path} holds {list(tokens.shape)}; tokens are [batch, pos], or one row.")
    return torch.atleast_2d(tokens).long()


def _numpy(path: Path) -> Tensor:
    with path.open("rb") as file:  # np.load would open an archive of arrays too
        values = np.lib.format.read_array(file, allow_pickle=False)
    if np.issubdtype(values.dtype, np.integer) and values.size and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{values.max()} is too large for a token id")
    # Unsigned ids (as corpora keep them) have no tensor of their own width.
    return torch.from_numpy(values.astype(np.int64) if np.issubdtype(values.dtype, np.integer) else values)


def _safetensors(path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        if _NAME not in names and len(names) != 1:
            raise ValueError(f"it holds {len(names)} tensors, none of them named {_NAME!r}")
        found: Tensor = file.get_tensor(_NAME if _NAME in names else names[0])
        return found


def _json(path: Path) -> Tensor:
    rows: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"it holds a {type(rows).__name__}, not a list of rows such as [[3, 1, 2], [3, 0, 1]]")
    try:
        return torch.as_tensor(rows)
    except RuntimeError as error:  # of what is no number
        raise ValueError(str(error)) from None
