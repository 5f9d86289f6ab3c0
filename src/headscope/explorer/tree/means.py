"""The mean outputs of a model's components over the text of an exploration, which the live page puts in their place."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from headscope.analysis.core.components import Component, all_components
from headscope.analysis.storage.manifest import fingerprint
from headscope.errors import CheckpointError
from headscope.explorer.tree.writing import put
from headscope.model.transformer import HookedTransformer

__all__ = ["MEANS", "read_means", "write_means"]

MEANS = "means.safetensors"
_WEIGHTS = "weights"


def write_means(directory: Path, model: HookedTransformer, means: Mapping[Component, Float[Tensor, " width"]]) -> None:
    """Write mean outputs beside a tree's other files: heads' before `W_O`, MLPs' and mixers' as they are.

    Args:
        directory: The tree's folder.
        model: The model they are of.
        means: The means, as `ComponentMeans.over_data` has them.

    Raises:
        StorageError: If they cannot be written.
    """
    tensors = {part.label: mean.detach().cpu().float().contiguous() for part, mean in means.items()}
    # One entry: safetensors writes more in an order that changes from run to run.
    put(directory / MEANS, save(tensors, {_WEIGHTS: fingerprint(model.state_dict())}))


def read_means(directory: Path, model: HookedTransformer) -> dict[Component, Float[Tensor, " width"]]:
    """Return the mean outputs that a tree has of this model; none if it has none, or of other weights.

    Weights that were processed otherwise are others: value biases that were folded are not in what a head gives.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = directory / MEANS
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt", device=str(model.W_E.device)) as file:
            measured_on = (file.metadata() or {}).get(_WEIGHTS)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    if measured_on != fingerprint(model.state_dict()):
        return {}
    parts = {part.label: part for part in all_components(model.cfg)}
    for name, mean in tensors.items():
        if name not in parts:
            raise _damaged(path, f"the model has no {name}")
        part = parts[name]
        width = model.cfg.d_model if part.head is None else model.cfg.value_width_of(part.layer)
        if mean.shape != (width,) or not mean.isfinite().all():
            raise _damaged(path, f"{name} is not {width} finite numbers")
    return {parts[name]: mean for name, mean in tensors.items()}


def _damaged(path: Path, said: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({said}). Copy the tree again, or make it anew.")
