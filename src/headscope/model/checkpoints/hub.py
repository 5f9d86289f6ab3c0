"""Model names to local checkpoint directories: short names, hub ids, local folders, and the bundled demo model.

Files in the Hugging Face cache are used without network access; only missing ones are downloaded.
"""

import re
from pathlib import Path
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.checkpoints.names import DEMO, HUB_IDS, refuse_unsupported, unknown_model

__all__ = [
    "FIELD_WEIGHTS",
    "TOKENIZER_FILES",
    "fetch_file",
    "find_checkpoint",
]

_DEMO_DIRECTORY = Path(__file__).parents[2] / "assets" / "demo"

_WANTED = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
           "special_tokens_map.json", "added_tokens.json", "*.model"]  # fmt: skip
FIELD_WEIGHTS = "*final.pth"  # of the field's own small models
_WANTED_BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json", FIELD_WEIGHTS]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def find_checkpoint(name: str, *, weights: bool = True, **hub: Any) -> Path:
    """Return the local directory with a model's files, or its GGUF file, downloading them first if needed.

    Args:
        name: `"headscope-demo"`, a short name (`"gpt2"`, `"gpt2-medium"`, ...), a hub id (`"owner/model"`), or the
            path of a directory with `config.json` and weights, or of a GGUF file; `"owner/model:file.gguf"` is one on
            the hub.
        weights: `False` fetches the config and the tokenizer alone.
        hub: For `huggingface_hub.snapshot_download`: `revision`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        UnknownNameError: For a name that is none of these; the message suggests the nearest ones.
        CheckpointError: For a model of a kind that is not supported, or if the hub has no such model, denies access to
            it, or cannot be reached.

    Example:
        >>> sorted(p.name for p in find_checkpoint("headscope-demo").iterdir() if p.suffix == ".safetensors")
        ['model.safetensors']
    """
    if name == DEMO:
        return _DEMO_DIRECTORY
    path = Path(name).expanduser()
    if name and (path.is_dir() or (path.is_file() and _is_gguf(name))):
        return path
    if _is_gguf(name) and ":" in name:
        return _gguf_from_hub(*name.rsplit(":", 1), **hub)
    if name.lower() in HUB_IDS:
        return _from_hub(HUB_IDS[name.lower()], weights, hub)
    if weights and not path.exists():
        refuse_unsupported(name)
    if path.exists() or _is_gguf(name) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        if path.exists() or _is_gguf(name) or "/" in name:
            what = "is a file" if path.exists() else "does not exist"
            raise CheckpointError(
                f"{name!r} {what}. A local model is a directory with config.json and *.safetensors in it, or a GGUF "
                "file; one on the hub is 'owner/model:file.gguf'.",
                code="HS-CHECKPOINT-01",
            )
        raise unknown_model(name)
    return _from_hub(name, weights, hub)


def fetch_file(name: str, file: str, **hub: Any) -> Path:
    """Return the local path of one file of a model on the hub, downloading it first if needed.

    Raises:
        CheckpointError: If the hub has no such file, or cannot be reached.
    """
    from huggingface_hub import errors, hf_hub_download

    repo = HUB_IDS.get(name.lower(), name)
    try:
        return Path(hf_hub_download(repo, file, **hub))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{file} of {repo!r} cannot be downloaded ({type(error).__name__}).") from None


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def _gguf_from_hub(repo: str, file: str, **hub: Any) -> Path:
    """Return the local path of a GGUF file on the hub, with all its shards beside it."""
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", file)
    files = [f"{split[1]}-{n:05d}-of-{split[2]}.gguf" for n in range(1, int(split[2]) + 1)] if split else [file]
    return [fetch_file(repo, each, **hub) for each in files][0]


def _from_hub(repo: str, weights: bool, hub: dict[str, Any]) -> Path:
    from huggingface_hub import errors, snapshot_download

    def fetch(wanted: list[str], offline: bool) -> Path:
        options = {**hub, "local_files_only": offline or hub.get("local_files_only", False)}
        return Path(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=["*/*"], **options))

    def is_enough(directory: Path) -> bool:
        return _is_whole(directory) if weights else _has_tokenizer(directory)

    wanted = [pattern for pattern in _WANTED if weights or "safetensors" not in pattern]
    cached: Path | None = None
    found: Path | None
    try:
        cached = fetch(wanted, offline=True)
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repo!r} cannot be a Hugging Face hub id: {error}") from None
    if cached is not None and is_enough(cached) and _has_tokenizer(cached):
        return cached
    try:
        found = fetch(wanted, offline=False)
        if weights and not has_weights(found):
            found = fetch(wanted + _WANTED_BIN, offline=False)
        what = "config.json and *.safetensors or pytorch_model*.bin" if weights else "tokenizer files"
        why = f"the hub has no complete set of {what} for it"
    except errors.GatedRepoError:
        raise CheckpointError(
            f"model {repo!r} is gated: accept its terms on its hub page, then log in with `hf auth login`.",
            code="HS-CHECKPOINT-03",
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"the Hugging Face hub has no public model {repo!r}. Check the spelling; for a private one log in first.",
            code="HS-CHECKPOINT-03",
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        found = cached
        why = f"the hub cannot be reached ({type(error).__name__})"
    if found is not None and is_enough(found):
        return found
    raise CheckpointError(
        f"model {repo!r} is not in the local cache, or not all of it, and {why}. Try again with a network, give a "
        f"local checkpoint directory, or use {DEMO!r}, which needs none.",
        code="HS-CHECKPOINT-02",
    )


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def has_weights(directory: Path) -> bool:
    """Return True if a directory has weight files in it."""
    return any(any(directory.glob(kind)) for kind in ("*.safetensors", "pytorch_model*.bin", FIELD_WEIGHTS))


def _is_whole(directory: Path) -> bool:
    """Return True if a download is complete: the config and every file of the weights."""
    files = {path.name for path in directory.iterdir() if path.is_file()}
    shards = [re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\..*)", name) for name in files]
    wanted = {
        f"{found[1]}-{number:05d}-of-{found[2]}{found[3]}"
        for found in shards
        if found
        for number in range(1, int(found[2]) + 1)
    }
    return "config.json" in files and has_weights(directory) and wanted <= files
