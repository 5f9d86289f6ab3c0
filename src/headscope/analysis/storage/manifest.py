"""The manifest of a run: fingerprints of the model, the data and the options, and differences between two of them."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.analysis.storage.places import Place
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.hooks import is_plain
from headscope.model.parts.attention import Attention
from headscope.model.transformer import HookedTransformer
from headscope.model.weights.mapped import give_back
from headscope.ops.devices import Budget
from headscope.ops.kernels.dispatch import kernels_of

__all__ = [
    "START_ANEW",
    "changes_in_process",
    "check_same_run",
    "compare_manifests",
    "describe_config",
    "fingerprint",
    "headscope_version",
    "make_manifest",
    "read_manifest",
]

FORMAT = 3
_LARGE = 2**16  # bytes of a tensor whose memory is given back, where it is mapped from a file
START_ANEW = "It cannot be continued: delete the folder and start again, or give another one."
_COMPARED = ("analysis", "model", "data", "reference", "options", "shards")


def make_manifest(
    analysis: str,
    model: HookedTransformer,
    data: Any,
    reference: Any,
    attention_mask: Tensor | None,
    description: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a run as JSON keeps it; the arguments are those of `Passes`."""
    put_on = changes_in_process(model)
    manifest = {
        "format": FORMAT,
        "analysis": analysis,
        "model": {
            "name": model.cfg.model_name,
            "weights": fingerprint(model.state_dict()),
            "weight_processing": model.weight_processing,
            "config": describe_config(model),
            **({"put_on": put_on} if put_on else {}),
        },
        "data": {"description": description, **_describe_data(data, attention_mask)},
        "reference": {} if reference is None else _describe_data(reference, None),
        "options": {
            **options,
            "batch_tokens": Budget.of(model.W_E.device).batch_tokens,
            "kernels": kernels_of(model.W_U),
        },
        "software": {"headscope": headscope_version(), "torch": torch.__version__},
    }
    return json.loads(json.dumps(manifest, default=str))


def changes_in_process(model: HookedTransformer) -> list[str]:
    """Return the names of what was put on a model that neither its weights nor its config tell, and no copy of it has.

    That is hooks, `forward`s of single modules, and masks and rotary angles; of hooks it is told where they are, and of
    a mask which it is.
    """
    found = []
    for name, module in model.named_modules():
        if not is_plain(module, type(module)):
            found.append(f"a hook on {name or 'the model'}")
        found += [
            f"{name}.{each} {fingerprint({each: tensor})[:12]}"
            for each, tensor in (module.assigned.items() if isinstance(module, Attention) else ())
        ]
    return found


def describe_config(model: HookedTransformer) -> dict[str, Any]:
    """Return the config of a model as JSON keeps it, without what its numbers do not depend on."""
    config = {name: value for name, value in model.cfg.to_dict().items() if name not in ("device", "seed")}
    return json.loads(json.dumps(config, default=str))


def read_manifest(place: Place, name: str) -> dict[str, Any]:
    """Read a manifest from a file in a folder.

    Raises:
        CheckpointError: if it is damaged.
    """
    try:
        manifest = json.loads(place.read(name))
    except ValueError as error:
        raise CheckpointError(f"{place}/{name} is damaged: {error}. {START_ANEW}", code="HS-CHECKPOINT-15") from None
    if not isinstance(manifest, dict):
        raise CheckpointError(
            f"{place}/{name} is damaged: it holds no JSON object. {START_ANEW}", code="HS-CHECKPOINT-15"
        )
    return manifest


def compare_manifests(folder: Place, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on in a folder that holds another run; warn if other software began it.

    Raises:
        InvalidInputError: naming what differs, and both values.
    """
    if there.get("format") != FORMAT:
        raise InvalidInputError(
            f"the run in {str(folder)!r} is in format {there.get('format')!r}, and this headscope reads and writes "
            f"format {FORMAT}. Go on with it with headscope {there.get('software', {}).get('headscope')}, or give "
            "another folder.",
            code="HS-RUN-04",
        )
    check_same_run(folder, *({name: each.get(name) for name in _COMPARED} for each in _known_of_both(there, here)))
    software = _differences(there.get("software"), here["software"], "software")
    if software and here.get("shards"):
        raise InvalidInputError(
            f"the run in {str(folder)!r} was begun with other software ({'; '.join(software)}), and its shards are "
            "merged only with others of the same. Go on with that, or give another folder.",
            code="HS-RUN-04",
        )
    if software:
        warnings.warn(
            f"the run in {str(folder)!r} was begun with other software ({'; '.join(software)}): its last digits may "
            "differ from those of an uninterrupted run.",
            stacklevel=4,
        )


def _known_of_both(there: dict[str, Any], here: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave out the hash of batches where one of them has none: a list may be gone on with as a stream.

    What is read then is compared batch by batch (see `run_folder`).
    """
    known = [
        name for name in ("data", "reference") if all("batches" in (each.get(name) or {}) for each in (there, here))
    ]

    def without(manifest: dict[str, Any]) -> dict[str, Any]:
        of_data = {name: dict(manifest.get(name) or {}) for name in ("data", "reference")}
        for name in of_data.keys() - set(known):
            of_data[name].pop("batches", None)
        return manifest | of_data

    return without(there), without(here)


def check_same_run(folder: Place | Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that holds another run.

    Raises:
        InvalidInputError: Naming what differs, and both values.
    """
    differing = _differences(there, here)
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InvalidInputError(
            f"{str(folder)!r} holds another run: {'; '.join(differing[:5])}{more}. "
            "Resume it with what it was begun with, or give another folder.",
            code="HS-RUN-02",
        )


def fingerprint(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """SHA-256 of some texts and of tensors with their names, types and shapes, as 64 hexadecimal digits.

    Example:
        >>> fingerprint({"a": torch.arange(3)})[:12], fingerprint({"a": torch.arange(4)})[:12]
        ('732bd6bb51fe', '9774ce7684bf')
    """
    digest = hashlib.sha256("".join(f"{len(text)} {text}\n" for text in texts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # A single number counts as contiguous whatever its stride, and is viewed as bytes only with one of 1.
        digest.update(tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data)
        if tensor.nbytes >= _LARGE:
            give_back([tensor])
    return digest.hexdigest()


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Return the differences between two trees of JSON, one line each."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            line
            for key in sorted({*there, *here})
            for line in _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if there == here else [f"{name} is {_short(there)} there and {_short(here)} here"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-8:]}"


def _describe_data(data: Any, attention_mask: Tensor | None) -> dict[str, Any]:
    """Describe data as far as that takes no pass over it but of what is in memory."""
    if type(data) in (list, tuple):  # a subclass may make its batches as they are asked for
        batches = [_tensors(batch, None) for batch in data]
        return {"batches": fingerprint({}, *map(fingerprint, batches))} if all(batches) else {}
    tensors = _tensors(data, attention_mask)
    tokens = tensors.get("tokens", tensors.get("input_ids"))
    return {} if tokens is None else {"shape": list(tokens.shape), "tokens": fingerprint(tensors)}


def _tensors(batch: Any, attention_mask: Any) -> dict[str, Tensor]:
    """Return the tensors of a batch; none if it has no tokens."""
    given = dict(batch) if isinstance(batch, Mapping) else {"tokens": batch, "attention_mask": attention_mask}
    if not isinstance(given.get("tokens", given.get("input_ids")), Tensor):
        return {}
    if (mask := given.get("attention_mask")) is not None:
        given["attention_mask"] = torch.as_tensor(mask)
    return {name: each for name, each in given.items() if isinstance(each, Tensor)}


def headscope_version() -> str:
    """Return the version that is installed."""
    try:
        return version("headscope")
    except PackageNotFoundError:
        return "(not installed)"
