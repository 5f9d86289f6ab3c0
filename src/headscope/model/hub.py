"""From a model's name to a directory with its files: short names, hub ids, local folders, the model in the package.

Files in the Hugging Face cache are used without the network; it is asked only for what is not there.
"""

from dataclasses import dataclass
from pathlib import Path

from headscope.errors import CheckpointError, unknown_name

__all__ = ["DEMO", "HUB_MODELS", "HubModel", "find_checkpoint"]

DEMO = "headscope-demo"
_DEMO_DIRECTORY = Path(__file__).parent.parent / "assets" / "demo"


@dataclass(frozen=True)
class HubModel:
    """A model with a short name: where it is, and its size."""

    name: str
    hub_id: str
    n_params: str
    aliases: tuple[str, ...] = ()


HUB_MODELS = (
    HubModel("gpt2", "openai-community/gpt2", "124M", ("gpt2-small",)),
    HubModel("gpt2-medium", "openai-community/gpt2-medium", "355M"),
    HubModel("gpt2-large", "openai-community/gpt2-large", "774M"),
    HubModel("gpt2-xl", "openai-community/gpt2-xl", "1.56B"),
    HubModel("distilgpt2", "distilbert/distilgpt2", "82M", ("distillgpt2",)),
)
_HUB_IDS = {alias: model.hub_id for model in HUB_MODELS for alias in (model.name, *model.aliases)}

_WANTED = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
           "special_tokens_map.json", "added_tokens.json", "*.model"]  # fmt: skip
_WANTED_BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def find_checkpoint(name: str) -> Path:
    """The local directory that holds a model's files, downloaded first if need be.

    Args:
        name: `"headscope-demo"`, a short name (`"gpt2"`, `"gpt2-medium"`, ...), a hub id (`"owner/model"`), or the
            path of a directory with `config.json` and weights.

    Raises:
        UnknownNameError: for a name that is none of these, with the nearest that are.
        CheckpointError: if the hub has no such model, does not give access to it, or cannot be reached.

    Example:
        >>> sorted(p.name for p in find_checkpoint("headscope-demo").iterdir() if p.suffix == ".safetensors")
        ['model.safetensors']
    """
    if name == DEMO:
        return _DEMO_DIRECTORY
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name in _HUB_IDS:
        return _from_hub(_HUB_IDS[name])
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        if path.exists() or "/" in name:
            what = "is a file" if path.exists() else "does not exist"
            raise CheckpointError(
                f"{name!r} {what}. A local model is a directory with config.json and *.safetensors in it."
            )
        raise unknown_name("model", name, [DEMO, *_HUB_IDS], hint="A hub id has the form 'owner/model'.")
    return _from_hub(name)


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    def fetch(wanted: list[str], offline: bool) -> Path:
        return Path(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=["*/*"], local_files_only=offline))

    try:
        cached = fetch(_WANTED, offline=True)
        if (cached / "config.json").is_file() and has_weights(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        path = fetch(_WANTED, offline=False)
        return path if has_weights(path) else fetch(_WANTED + _WANTED_BIN, offline=False)
    except GatedRepoError:
        raise CheckpointError(
            f"model {repo!r} is gated: accept its terms on its hub page, then log in with `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(
            f"the Hugging Face hub has no public model {repo!r}. Check the spelling; for a private one log in first."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"model {repo!r} is not in the local cache, and the hub cannot be reached ({type(error).__name__}). "
            f"Try again with a network, give a local checkpoint directory, or use {DEMO!r}, which needs none."
        ) from None


def has_weights(directory: Path) -> bool:
    """Whether a directory has weight files in it."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("pytorch_model*.bin"))
