"""`ActivationCache`: the activations of a run, by name.

The cache keeps activations and references to the weights needed to read them out; it never keeps the model. What the
activations mean, the residual stream taken apart, is in `decomposition.py`.
"""

import copy
import weakref
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from headscope.errors import CheckpointError, InvalidInputError, unknown_name
from headscope.model.activations.decomposition import ResidualDecomposition
from headscope.model.activations.readout import Readout, readout_of
from headscope.model.checkpoints.files import TensorFiles, read_metadata, write_tensors
from headscope.model.names import get_act_name
from headscope.model.protocols import Model
from headscope.ops.indexing import Slice, SliceInput

__all__ = ["ActivationCache"]

_KIND = "activations"
_POST_NORM = ("ln1_post.w", "ln1_post.b", "ln2_post.w", "ln2_post.b")


class ActivationCache(ResidualDecomposition):
    """Activations by hook name.

    `cache["blocks.2.attn.hook_z"]`, `cache["z", 2]` and, for the embedding and the final norm, `cache["embed"]` and
    `cache["scale"]` all work; a negative layer counts from the end.

    Args:
        cache_dict: Activations by full hook name.
        model: The model they come from; its readout and output weights are referenced, the model is not kept.
        has_batch_dim: True if the first axis of each activation is the batch.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> _, cache = model.run_with_cache("When Mary and John went to the store, John gave a drink to")
        >>> heads, labels = cache.stack_head_results(return_labels=True)
        >>> added = cache.logit_attrs(heads, " Mary", " John")[:, 0, -1]  # to the difference of the two logits
        >>> [(labels[i], round(float(added[i]), 1)) for i in added.topk(3).indices]
        [('L1H3', 2.4), ('L3H3', 2.4), ('L3H2', 2.3)]
    """

    def __init__(self, cache_dict: dict[str, Tensor], model: Model, has_batch_dim: bool = True) -> None:
        self.cache_dict = cache_dict
        self.has_batch_dim = has_batch_dim
        self._cfg = model.cfg
        self._tokenizer = model.tokenizer
        self._model: weakref.ref[Model] | None = weakref.ref(model)
        self._obstacle = Readout.obstacle(model)
        self._readout = None if self._obstacle else readout_of(model)
        self._outputs = {
            name: model.per_layer_if_shown(*name.split("."))
            for name in ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out", *_POST_NORM)
        }

    @property
    def readout(self) -> Readout:
        """The final norm and the unembedding.

        Raises:
            InvalidInputError: if one of them was replaced by a module that does not show its weights.
        """
        if self._readout is None:
            raise InvalidInputError(f"{self._obstacle}.")
        return self._readout

    @property
    def model(self) -> Model:
        """The model the activations come from, while somebody else keeps it: the cache does not.

        Raises:
            InvalidInputError: if it is gone.
        """
        model = None if self._model is None else self._model()
        if model is None:
            raise InvalidInputError(
                "the model this cache came from is gone: keep a reference to it.", code="HS-CACHE-01"
            )
        return model

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has no model.
        return {**self.__dict__, "_model": None}

    def full_name(self, key: str | tuple[Any, ...]) -> str:
        """The hook name that a key stands for."""
        if isinstance(key, str):
            return key if key in self.cache_dict else get_act_name(key)
        name, *rest = key
        if rest and isinstance(rest[0], int) and rest[0] < 0:
            rest[0] += self._cfg.n_layers
        return get_act_name(name, *rest)

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        name = self.full_name(key)
        if name not in self.cache_dict:
            raise unknown_name(
                "cached activation",
                name,
                self.cache_dict,
                hint="Was it kept? See names_filter in run_with_cache.",
                code="HS-NAME-03",
            )
        return self.cache_dict[name]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, (str, tuple)) and self.full_name(key) in self.cache_dict

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __repr__(self) -> str:
        size = sum(tensor.nbytes for tensor in self.cache_dict.values())
        return f"ActivationCache({len(self)} activations, {size / 2**20:.1f} MB)"

    def keys(self) -> KeysView[str]:
        """Hook names."""
        return self.cache_dict.keys()

    def values(self) -> ValuesView[Tensor]:
        """Activations."""
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and activations."""
        return self.cache_dict.items()

    def to(self, device: torch.device | str) -> Self:
        """Move every activation to a device."""
        self.cache_dict = {name: tensor.to(device) for name, tensor in self.cache_dict.items()}
        return self

    def remove_batch_dim(self) -> Self:
        """Drop the batch axis, which must have size 1."""
        if self.has_batch_dim:
            for name, tensor in self.cache_dict.items():
                if tensor.shape[0] != 1:
                    raise InvalidInputError(
                        f"only a batch of 1 can be dropped; {name} has shape {list(tensor.shape)}.", code="HS-CACHE-02"
                    )
            self.cache_dict = {name: tensor[0] for name, tensor in self.cache_dict.items()}
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: SliceInput | Slice) -> Self:
        """A cache of some rows of the batch (of one without its batch axis, for an integer).

        Raises:
            InvalidInputError: if the batch axis is gone.
        """
        if not self.has_batch_dim:
            raise InvalidInputError("this cache has no batch axis to slice: it was removed.")
        rows = Slice(batch_slice)
        new = copy.copy(self)
        new.cache_dict = {name: rows.apply(tensor) for name, tensor in self.cache_dict.items()}
        new.has_batch_dim = rows.mode != "int"
        return new

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Tensor:
        """One activation of all layers before `layer` (-1 or `None`: all), `[layer, ...]`.

        Raises:
            InvalidInputError: If it has not one shape in all of them, as where layers have heads of several widths.
        """
        found = [self[activation_name, each, sublayer_type] for each in range(self._stop(layer))]
        if len({each.shape for each in found}) > 1:
            shapes = ", ".join(str(list(each.shape)) for each in found)
            raise InvalidInputError(
                f"{activation_name} has not one shape in all layers: {shapes}. Take it layer by layer: "
                f"cache[{activation_name!r}, layer].",
                code="HS-WEIGHTS-01",
            )
        return torch.stack(found)

    # On disk

    def save(self, path: str | Path) -> Path:
        """Write all activations to one safetensors file, atomically.

        Example:
            >>> import tempfile
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> _, cache = model.run_with_cache("Mary went to the park.", names_filter="blocks.0.hook_resid_pre")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     again = ActivationCache.load(cache.save(f"{folder}/cache.safetensors"), model)
            ...     again["resid_pre", 0].shape
            torch.Size([1, 8, 128])
        """
        path = Path(path)
        write_tensors(path, self.cache_dict, {"kind": _KIND, "has_batch_dim": str(self.has_batch_dim)})
        return path

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Self:
        """Open what `save` wrote, for the model it came from.

        The activations are mapped from the file: each is read when it is used, and may be larger than memory together.

        Raises:
            CheckpointError: if the file is missing, corrupt, or holds no activations.
        """
        path = Path(path)
        metadata = read_metadata(path)
        if metadata.get("kind") != _KIND:
            raise CheckpointError(f"{path} holds {metadata.get('kind')!r}, not {_KIND!r}.", code="HS-CHECKPOINT-14")
        return cls(dict(TensorFiles([path])), model, has_batch_dim=metadata.get("has_batch_dim") != "False")
