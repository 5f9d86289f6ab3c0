"""Patch setters: they set a piece of an activation, by an index whose first number is the layer.

A setter is called as `setter(corrupted_activation, index, clean_activation)`. It writes into the first, and returns it.

    >>> import torch
    >>> layer_pos_patch_setter(torch.zeros(1, 3, 2), [0, 1], torch.ones(1, 3, 2))[0, :, 0]
    tensor([0., 1., 0.])
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = [
    "CorruptedActivation",
    "PatchedActivation",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
]

CorruptedActivation = Tensor
PatchedActivation = Tensor
_Setter = Callable[[CorruptedActivation, Sequence[int], Tensor], PatchedActivation]


def _setter(piece: str, index_names: str, axes: str) -> _Setter:
    """Make a setter of what an index names; `axes` are those of the activation, after the batch."""
    names, axis_names = index_names.split(), axes.split()

    def setter(
        corrupted_activation: CorruptedActivation, index: Sequence[int], clean_activation: Tensor
    ) -> PatchedActivation:
        if len(index) != len(names):
            raise InvalidInputError(
                f"this patch setter takes an index [{', '.join(names)}]; got {list(index)}. "
                "Give index_axis_names (or the columns of index_df) in that order."
            )
        at = dict(zip(names, index, strict=True))
        where = (slice(None), *(at.get(axis, slice(None)) for axis in axis_names))
        try:
            if corrupted_activation.ndim != clean_activation.ndim:
                raise IndexError("they differ in their number of axes")
            corrupted_activation[where] = clean_activation[where]
        except (IndexError, RuntimeError) as error:
            raise InvalidInputError(
                f"at {at} the clean activation {list(clean_activation.shape)} does not fit into the corrupted one "
                f"{list(corrupted_activation.shape)}: {error}. Use prompts of the same number of tokens, one clean "
                "prompt for each corrupted one, and a cache with its batch axis."
            ) from None
        return corrupted_activation

    setter.__doc__ = f"Set {piece}; the index is `[{', '.join(names)}]`."
    return setter


layer_pos_patch_setter = _setter("one position of an activation `[batch, pos, ...]`", "layer pos", "pos")
layer_pos_head_vector_patch_setter = _setter(
    "one head at one position of an activation `[batch, pos, head, ...]`", "layer pos head", "pos head"
)
layer_head_vector_patch_setter = _setter(
    "one head at all positions of an activation `[batch, pos, head, ...]`", "layer head", "pos head"
)
layer_head_pattern_patch_setter = _setter(
    "one head of scores or a pattern `[batch, head, dest_pos, src_pos]`", "layer head", "head"
)
layer_head_pos_pattern_patch_setter = _setter(
    "what one head attends to from one position", "layer head dest_pos", "head dest_pos"
)
layer_head_dest_src_pos_pattern_patch_setter = _setter(
    "one entry of one head's pattern", "layer head dest_pos src_pos", "head dest_pos src_pos"
)
