"""Model names to local checkpoint directories: short names, hub ids, local folders, and the bundled demo model.

Files in the Hugging Face cache are used without network access; only missing ones are downloaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.errors import CheckpointError, InvalidInputError, unknown_name

__all__ = [
    "DEMO",
    "FIELD_WEIGHTS",
    "HUB_MODELS",
    "TOKENIZER_FILES",
    "HubModel",
    "checkpoint_revision",
    "find_checkpoint",
]

DEMO = "headscope-demo"
_DEMO_DIRECTORY = Path(__file__).parents[2] / "assets" / "demo"


@dataclass(frozen=True)
class HubModel:
    """A model with a short name, its hub id and its size."""

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
    *(
        HubModel(f"pythia-{size}{kind}", f"EleutherAI/pythia-{size}{kind}", size.upper())
        for size in ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
        for kind in ("", "-deduped")
        if size not in ("14m", "31m") or not kind
    ),
    HubModel("gpt-neox-20b", "EleutherAI/gpt-neox-20b", "20B", ("gpt-neox", "neox")),
    HubModel("gpt-neo-125M", "EleutherAI/gpt-neo-125M", "125M", ("gpt-neo-small", "neo-small", "neo")),
    HubModel("gpt-neo-1.3B", "EleutherAI/gpt-neo-1.3B", "1.3B", ("gpt-neo-medium", "neo-medium")),
    HubModel("gpt-neo-2.7B", "EleutherAI/gpt-neo-2.7B", "2.7B", ("gpt-neo-large", "neo-large")),
    HubModel("gpt-j-6B", "EleutherAI/gpt-j-6B", "6B", ("gpt-j", "gptj")),
    HubModel("opt-125m", "facebook/opt-125m", "125M", ("opt-small", "opt")),
    HubModel("opt-1.3b", "facebook/opt-1.3b", "1.3B", ("opt-medium",)),
    HubModel("opt-2.7b", "facebook/opt-2.7b", "2.7B", ("opt-large",)),
    HubModel("opt-6.7b", "facebook/opt-6.7b", "6.7B", ("opt-xl",)),
    HubModel("opt-13b", "facebook/opt-13b", "13B", ("opt-xxl",)),
    HubModel("opt-30b", "facebook/opt-30b", "30B", ("opt-xxxl",)),
    HubModel("opt-66b", "facebook/opt-66b", "66B", ("opt-xxxxl",)),
    *(
        HubModel(f"bloom-{size}", f"bigscience/bloom-{size}", size.upper())
        for size in ("560m", "1b1", "1b7", "3b", "7b1")
    ),
    HubModel("olmo-1b", "allenai/OLMo-1B-hf", "1B"),
    HubModel("olmo-7b", "allenai/OLMo-7B-hf", "7B"),
    HubModel("olmo-2-1b", "allenai/OLMo-2-0425-1B", "1B"),
    HubModel("olmo-2-7b", "allenai/OLMo-2-1124-7B", "7B"),
    HubModel("olmoe", "allenai/OLMoE-1B-7B-0924", "7B"),
    HubModel("phi-1", "microsoft/phi-1", "1.3B"),
    HubModel("phi-1_5", "microsoft/phi-1_5", "1.3B"),
    HubModel("phi-2", "microsoft/phi-2", "2.7B"),
    HubModel("phi-3", "microsoft/Phi-3-mini-4k-instruct", "3.8B"),
    HubModel("phi-4", "microsoft/phi-4", "14B"),
    HubModel("mixtral", "mistralai/Mixtral-8x7B-v0.1", "47B", ("mixtral-8x7b",)),
    HubModel("mixtral-instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1", "47B", ("mixtral-8x7b-instruct",)),
    HubModel("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", "30B"),
    HubModel("falcon-7b", "tiiuae/falcon-7b", "7B"),
    HubModel("falcon-40b", "tiiuae/falcon-40b", "40B"),
    HubModel("stablelm-2-1.6b", "stabilityai/stablelm-2-1_6b", "1.6B"),
    HubModel("granite-3.1-2b", "ibm-granite/granite-3.1-2b-base", "2.5B"),
    *(
        HubModel(f"attn-only-{n}l", f"NeelNanda/Attn_Only_{n}L512W_C4_Code", size)
        for n, size in ((1, "1.0M"), (2, "2.1M"), (3, "3.1M"), (4, "4.2M"))
    ),
    HubModel("attn-only-2l-demo", "NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr", "2.1M", ("attn-only-demo",)),
    *(
        HubModel(f"gelu-{n}l", f"NeelNanda/GELU_{n}L512W_C4_Code", size)
        for n, size in ((1, "3.1M"), (2, "6.3M"), (3, "9.4M"), (4, "12.6M"))
    ),
    *(
        HubModel(f"solu-{n}l", f"NeelNanda/SoLU_{n}L{width}W_C4_Code", size)
        for n, width, size in (
            (1, 512, "3.1M"), (2, 512, "6.3M"), (3, 512, "9.4M"), (4, 512, "12.6M"), (6, 768, "42M"), (8, 1024, "101M"),
            (10, 1280, "197M"), (12, 1536, "340M"),
        )
    ),
    *(
        HubModel(f"solu-{n}l-pile", f"NeelNanda/SoLU_{n}L_v{version}_old", size, (f"solu-{n}l-old",))
        for n, version, size in (
            (1, 9, "13M"), (2, 10, "13M"), (4, 11, "13M"), (6, 13, "42M"), (8, 21, "101M"), (10, 22, "197M"),
            (12, 23, "340M"),
        )
    ),
)  # fmt: skip
# When Pythia was saved (Biderman et al. 2023): at each power of two up to 512 steps, then every 1,000.
_PYTHIA_STEPS = (0, *(2**power for power in range(10)), *range(1000, 144_000, 1000))
_HUB_IDS = {alias: model.hub_id for model in HUB_MODELS for alias in (model.name, *model.aliases)}

_WANTED = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
           "special_tokens_map.json", "added_tokens.json", "*.model"]  # fmt: skip
FIELD_WEIGHTS = "*final.pth"  # of the field's own small models
_WANTED_BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json", FIELD_WEIGHTS]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def find_checkpoint(name: str, *, weights: bool = True, **hub: Any) -> Path:
    """Return the local directory with a model's files, downloading them first if needed.

    Args:
        name: `"headscope-demo"`, a short name (`"gpt2"`, `"gpt2-medium"`, ...), a hub id (`"owner/model"`), or the
            path of a directory with `config.json` and weights.
        weights: `False` fetches the config and the tokenizer alone.
        hub: For `huggingface_hub.snapshot_download`: `revision`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        UnknownNameError: For a name that is none of these; the message suggests the nearest ones.
        CheckpointError: If the hub has no such model, denies access to it, or cannot be reached.

    Example:
        >>> sorted(p.name for p in find_checkpoint("headscope-demo").iterdir() if p.suffix == ".safetensors")
        ['model.safetensors']
    """
    if name == DEMO:
        return _DEMO_DIRECTORY
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name in _HUB_IDS:
        return _from_hub(_HUB_IDS[name], weights, hub)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        if path.exists() or "/" in name:
            what = "is a file" if path.exists() else "does not exist"
            raise CheckpointError(
                f"{name!r} {what}. A local model is a directory with config.json and *.safetensors in it."
            )
        raise unknown_name("model", name, [DEMO, *_HUB_IDS], hint="A hub id has the form 'owner/model'.")
    return _from_hub(name, weights, hub)


def checkpoint_revision(name: str, *, index: int | None = None, step: int | str | None = None) -> tuple[int, int, str]:
    """Resolve a training checkpoint, for the models that have them (Pythia).

    Args:
        name: A short name or a hub id.
        index: Index of the checkpoint, in the order of steps; negative counts from the end.
        step: Training step of the checkpoint.

    Returns:
        Its index, its step, and its revision on the hub.

    Raises:
        InvalidInputError: If the model has no training checkpoints, or not this one.

    Example:
        >>> checkpoint_revision("pythia-70m", index=-1)
        (153, 143000, 'step143000')
    """
    steps = _PYTHIA_STEPS if _HUB_IDS.get(name, name).startswith("EleutherAI/pythia-") else ()
    if not steps:
        raise InvalidInputError(f"no training checkpoints are known for {name!r}. Give a revision on the hub instead.")
    if (index is None) == (step is None):
        raise InvalidInputError("give either checkpoint_index or checkpoint_value, not both.")
    if step is not None:
        number = int(str(step).removeprefix("step")) if str(step).removeprefix("step").isdecimal() else -1
        if number not in steps:
            near = ", ".join(map(str, sorted(steps, key=lambda known: abs(known - number))[:3]))
            raise InvalidInputError(f"{name} has no checkpoint of step {step!r}. The nearest: {near}.")
        index = steps.index(number)
    assert index is not None
    if not -len(steps) <= index < len(steps):
        raise InvalidInputError(f"checkpoint_index must be between 0 and {len(steps) - 1} for {name}; got {index}.")
    index %= len(steps)
    return index, steps[index], f"step{steps[index]}"


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
            f"model {repo!r} is gated: accept its terms on its hub page, then log in with `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"the Hugging Face hub has no public model {repo!r}. Check the spelling; for a private one log in first."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        found = cached
        why = f"the hub cannot be reached ({type(error).__name__})"
    if found is not None and is_enough(found):
        return found
    raise CheckpointError(
        f"model {repo!r} is not in the local cache, or not all of it, and {why}. Try again with a network, give a "
        f"local checkpoint directory, or use {DEMO!r}, which needs none."
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
