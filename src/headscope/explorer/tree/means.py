"""The mean outputs of a model's components over the text of an exploration, which the live page puts in their place."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from headscope.analysis.core.components import Component, component_of
from headscope.analysis.storage.places import writing
from headscope.errors import CheckpointError
from headscope.model.transformer import HookedTransformer

__all__ = ["MEANS", "read_means", "write_means"]

MEANS = "means.safetensors"
_PROCESSING = "weight_processing"


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
    metadata = {"model": model.cfg.model_name, _PROCESSING: ",".join(model.weight_processing)}
    path = directory / MEANS
    with writing(path):
        path.write_bytes(save(tensors, metadata))


def read_means(directory: Path, model: HookedTransformer) -> dict[Component, Float[Tensor, " width"]]:
    """Return the mean outputs that a tree has of this model; none if it has none, or of weights processed otherwise.

    What a head writes before `W_O` depends on how weights were processed: value biases that were folded are not in it.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = directory / MEANS
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt", device=str(model.W_E.device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}). Copy the tree again, or make it anew.") from None
    if metadata.get(_PROCESSING) != ",".join(model.weight_processing):
        return {}
    parts = {component_of(name): mean for name, mean in tensors.items()}
    return {part: mean for part, mean in parts.items() if part is not None}
