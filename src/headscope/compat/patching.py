"""Activation patching as notebooks call it: the corrupted run with one piece of the clean run, for every piece.

For each cell of a sweep (a layer and a position, say) the model runs on the corrupted tokens, one activation is set to
what it was on the clean ones, and a metric of the logits tells how far that brings the answer back (Meng et al. 2022,
"Locating and Editing Factual Associations in GPT"; Wang et al. 2022, "Interpretability in the Wild").

What a patch cannot change is not computed again: a cell costs the layers from the patched one on, at the positions
from the patched one on, and cells go through them side by side (see `analysis.patching.engine`). A metric
that says what it reads (`last_position`, `reads`, an `AnswerMetric`) saves all other logits. On a model with hooks on
it, a cell is a run of the layers from the patched one on, so that every hook sees what it always sees. Gradients are
off. `activation_patch` does the same for a `Task`.

    >>> import torch
    >>> from headscope import HookedTransformer
    >>> model = HookedTransformer.from_pretrained("headscope-demo")
    >>> clean = model.to_tokens("When Mary and John went to the store, John gave a drink to")
    >>> corrupted = model.to_tokens("When Mary and John went to the store, Mary gave a drink to")
    >>> mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
    >>> def metric(logits):
    ...     return (logits[:, -1, mary] - logits[:, -1, john]).mean()
    >>> _, cache = model.run_with_cache(clean)
    >>> sweep = get_act_patch_attn_head_out_all_pos
    >>> sweep(model, corrupted, cache, last_position(metric), progress=False).round(decimals=1)
    tensor([[-5.3000, -5.9000, -2.6000,  2.9000],
            [-6.1000, -6.2000, -6.2000, -5.6000],
            [-6.0000, -6.0000,  3.2000, -5.9000],
            [-6.0000, -6.0000,  5.0000, -6.2000],
            [-6.0000, -6.0000, -5.6000, -6.0000]])
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.analysis.patching.engine import Patch, measure_patches
from headscope.analysis.prompts.metrics import Metric, last_position, reads
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.activations.cache import ActivationCache
from headscope.model.names import get_act_name
from headscope.model.transformer import HookedTransformer

if TYPE_CHECKING:
    import pandas as pd


__all__ = [
    "AxisNames",
    "CorruptedActivation",
    "Logits",
    "PatchedActivation",
    "generic_activation_patch",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_post",
    "get_act_patch_resid_pre",
    "last_position",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
    "make_df_from_ranges",
    "reads",
]

Logits = Tensor
CorruptedActivation = Tensor
PatchedActivation = Tensor
AxisNames = Literal["layer", "pos", "head_index", "head", "src_pos", "dest_pos"]
CleanCache = ActivationCache | Mapping[str, Tensor]
PatchSetter = Callable[[CorruptedActivation, Sequence[int], Tensor], PatchedActivation | None]


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> "pd.DataFrame":
    """Return a table of every combination of indices, the last column going fastest.

    Args:
        column_max_ranges: Each column counts from 0 to one less than its number here.
        column_names: Their names.

    Example:
        >>> make_df_from_ranges([2, 2], ["layer", "pos"])
           layer  pos
        0      0    0
        1      0    1
        2      1    0
        3      1    1
    """
    import pandas as pd

    return pd.DataFrame(list(product(*map(range, column_max_ranges))), columns=list(column_names))


@torch.no_grad()
def generic_activation_patch(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "*batch pos"],
    clean_cache: CleanCache,
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: "pd.DataFrame | None" = None,
    return_index_df: bool = False,
    *,
    attention_mask: Tensor | None = None,
    progress: bool = True,
) -> Any:
    """Patch one activation for every index of a sweep, and measure each patched run.

    An index is a list of numbers such as `[layer, pos]`; its first says which layer is patched, unless
    `activation_name` is the name of one hook point. Hooks that are on the model stay on; those below the patched layer
    run once for a whole sweep of that layer. Gradients are off throughout, in the setter and the metric too. The setter
    is called once for each index, lower layers first; the metric in no order.

    Args:
        model: The model.
        corrupted_tokens: What it runs on.
        clean_cache: Activations of the clean run, with their batch axis.
        patching_metric: Takes the patched run's logits and gives one number. `last_position(metric)` and
            `reads(metric, positions)` say what it reads, which is faster.
        patch_setter: Called as `patch_setter(corrupted_activation, index, clean_activation)`, where both activations
            are those of the patched hook point. It may write into the first; what it returns replaces it.
        activation_name: A short name (`"resid_pre"`, `"z"`, `"pattern"`, ...) to which the layer is added, or the name
            of one hook point (`"hook_embed"`, `"blocks.1.attn.hook_z"`), which is then patched for every index.
        index_axis_names: The axes to go through, each over its whole range: `"layer"`, `"pos"`, `"head"` (or
            `"head_index"`), `"dest_pos"`, `"src_pos"`.
        index_df: Instead of these: a table with one index per row, its first column the layer.
        return_index_df: Also return the table of indices.
        attention_mask: `[batch, pos]`, 1 for real tokens; default: found from the tokenizer's padding token.
        progress: Show a progress bar.

    Returns:
        The metric of each cell, with an axis for each of `index_axis_names` or one entry per row of `index_df`, and
        that table if asked for.

    Raises:
        UnknownNameError: For an axis or a hook point that does not exist, or an activation that was not cached.
        InvalidInputError: If both or neither of `index_axis_names` and `index_df` are given, the clean activation does
            not fit where it is put, or the metric is not one number.

    Example:
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, attn_only=True, seed=0)
        >>> model, tokens = HookedTransformer(cfg), torch.tensor([[1, 2, 3]])
        >>> _, cache = model.run_with_cache(torch.tensor([[1, 5, 3]]))
        >>> def swap(corrupted, index, clean):
        ...     layer, pos = index
        ...     corrupted[:, pos] = clean[:, pos]
        ...     return corrupted
        >>> def metric(logits):
        ...     return logits[0, -1, 4]
        >>> axes = ("layer", "pos")
        >>> generic_activation_patch(model, tokens, cache, metric, swap, "attn_out", axes, progress=False)
        tensor([[-0.8718, -0.7643, -0.4502],
                [-0.8718, -0.8718, -0.6201]])
    """
    if (index_axis_names is None) == (index_df is None):
        raise InvalidInputError(
            "give index_axis_names (the axes to go through) or index_df (a table of indices), one of them; "
            f"got {'neither' if index_df is None else 'both'}."
        )
    if index_axis_names is not None:
        shape = _axis_sizes(model, corrupted_tokens, clean_cache, activation_name, list(index_axis_names))
        index_df = make_df_from_ranges(shape, index_axis_names)
    assert index_df is not None
    indices = [list(row) for row in index_df.itertuples(index=False, name=None)]
    shape = [len(indices)] if index_axis_names is None else shape
    patches = []
    for index in indices:
        name = _hook_name(model, activation_name, index)
        patches.append(Patch(name, partial(_set, patch_setter, index, _clean_activation(clean_cache, name))))
    values = measure_patches(
        model,
        corrupted_tokens,
        patching_metric,
        patches,
        attention_mask=attention_mask,
        watched=clean_cache,
        progress=progress,
        description=f"patching {activation_name}",
    )
    means = values.flatten(1).mean(1) if values.ndim > 1 else values
    patched = means.to(device=model.W_E.device, dtype=torch.get_default_dtype()).view(shape)
    return (patched, index_df) if return_index_df else patched


def _hook_name(model: HookedTransformer, activation_name: str, index: Sequence[int]) -> str:
    """Name the hook point an index patches: the one of that very name, or else the one of the index's layer."""
    name = get_act_name(activation_name)
    if name not in model.hook_dict and index:
        name = get_act_name(activation_name, layer=index[0])
    if name not in model.hook_dict:
        raise unknown_name(
            "hook point", name, model.hook_dict, hint=f"It is what {activation_name!r} stands for.", code="HS-NAME-02"
        )
    return name


def _axis_sizes(
    model: HookedTransformer, tokens: Tensor, clean_cache: CleanCache, activation_name: str, names: list[str]
) -> list[int]:
    site = _hook_name(model, activation_name, [0])
    if site != get_act_name(activation_name) and names[:1] != ["layer"]:
        raise InvalidInputError(
            f"index_axis_names must begin with 'layer', which tells whose {activation_name!r} is patched; got {names}."
        )
    n_pos, n_heads = tokens.shape[-1], model.cfg.n_heads
    if site.endswith(("hook_k", "hook_v", "hook_rot_k")):
        # Heads may share keys and values; then there are fewer of these.
        n_heads = _clean_activation(clean_cache, site).shape[-2]
    sizes = dict.fromkeys(get_args(AxisNames), n_pos)
    sizes |= {"layer": model.cfg.n_layers, "head_index": n_heads, "head": n_heads}
    for name in names:
        if name not in sizes:
            raise unknown_name("axis", name, sizes)
    return [sizes[name] for name in names]


def _clean_activation(clean_cache: CleanCache, name: str) -> Tensor:
    if name not in clean_cache:
        raise unknown_name(
            "cached activation", name, clean_cache, hint="See names_filter in run_with_cache.", code="HS-NAME-03"
        )
    return clean_cache[name]


def _set(patch_setter: PatchSetter, index: list[int], clean: Tensor, corrupted: Tensor) -> Tensor | None:
    return patch_setter(corrupted, index, clean)


# Patch setters: called as `setter(corrupted_activation, index, clean_activation)`, they write into the first, return it


def _setter(piece: str, index_names: str, axes: str) -> PatchSetter:
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
                "prompt for each corrupted one, and a cache with its batch axis.",
                code="HS-PROMPTS-01",
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


# The sweeps people run


def _sweep(what: str, activation_name: str, patch_setter: PatchSetter, axes: str) -> Callable[..., Any]:
    """Bind `generic_activation_patch` to an activation, setter and axes; each can still be given by keyword."""
    function = partial(
        generic_activation_patch,
        patch_setter=patch_setter,
        activation_name=activation_name,
        index_axis_names=tuple(axes.split()),
    )
    function.__doc__ = (
        f"Patch {what}: `(model, corrupted_tokens, clean_cache, patching_metric)` -> "
        f"`[{', '.join(axes.split())}]`.\n\nThe other arguments are those of `generic_activation_patch`."
    )
    return function


def _stacked(sweeps: Sequence[Callable[..., Tensor]], *runs: Any, **options: Any) -> Tensor:
    """Stack sweeps, those of fewer heads filled up with zeros."""
    results = [sweep(*runs, **options) for sweep in sweeps]
    width = max(result.shape[-1] for result in results)
    return torch.stack([F.pad(result, (0, width - result.shape[-1])) for result in results])


get_act_patch_resid_pre, get_act_patch_resid_mid, get_act_patch_resid_post = (
    _sweep(f"the residual stream {place}", name, layer_pos_patch_setter, "layer pos")
    for place, name in (
        ("before each layer", "resid_pre"),
        ("between attention and MLP", "resid_mid"),
        ("after each layer", "resid_post"),
    )
)
get_act_patch_attn_out = _sweep("the output of each attention layer", "attn_out", layer_pos_patch_setter, "layer pos")
get_act_patch_mlp_out = _sweep("the output of each MLP", "mlp_out", layer_pos_patch_setter, "layer pos")
_of_a_block = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)

_VECTORS = {
    "z": "each head's output",
    "q": "each head's queries",
    "k": "each head's keys (one per group, where heads share them)",
    "v": "each head's values (one per group, where heads share them)",
}
_by_pos = [_sweep(what, name, layer_pos_head_vector_patch_setter, "layer pos head") for name, what in _VECTORS.items()]
_all_pos = [_sweep(what, name, layer_head_vector_patch_setter, "layer head") for name, what in _VECTORS.items()]
get_act_patch_attn_head_out_by_pos, get_act_patch_attn_head_q_by_pos = _by_pos[:2]
get_act_patch_attn_head_k_by_pos, get_act_patch_attn_head_v_by_pos = _by_pos[2:]
get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_q_all_pos = _all_pos[:2]
get_act_patch_attn_head_k_all_pos, get_act_patch_attn_head_v_all_pos = _all_pos[2:]

get_act_patch_attn_head_pattern_all_pos = _sweep(
    "each head's pattern", "pattern", layer_head_pattern_patch_setter, "layer head_index"
)
get_act_patch_attn_head_pattern_by_pos = _sweep(
    "each head's pattern", "pattern", layer_head_pos_pattern_patch_setter, "layer head_index dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _sweep(
    "each entry of each head's pattern",
    "pattern",
    layer_head_dest_src_pos_pattern_patch_setter,
    "layer head_index dest_pos src_pos",
)


def get_act_patch_attn_head_all_pos_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: CleanCache, metric: Metric, **options: Any
) -> Float[Tensor, "patch_type layer head"]:
    """Patch each head's output, queries, keys, values and pattern (in this order), at all positions.

    Where heads share keys and values, their results have the groups first, then zeros. `options` are the keyword-only
    arguments of `generic_activation_patch`.
    """
    sweeps = [*_all_pos, get_act_patch_attn_head_pattern_all_pos]
    return _stacked(sweeps, model, corrupted_tokens, clean_cache, metric, **options)


def get_act_patch_attn_head_by_pos_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: CleanCache, metric: Metric, **options: Any
) -> Float[Tensor, "patch_type layer pos head"]:
    """Patch each head's output, queries, keys, values and pattern (in this order), at each position.

    A pattern's position is that of the query. The rest is as in `get_act_patch_attn_head_all_pos_every`.
    """

    def pattern(*runs: Any, **options: Any) -> Tensor:
        return get_act_patch_attn_head_pattern_by_pos(*runs, **options).transpose(1, 2)

    return _stacked([*_by_pos, pattern], model, corrupted_tokens, clean_cache, metric, **options)


def get_act_patch_block_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: CleanCache, metric: Metric, **options: Any
) -> Float[Tensor, "patch_type layer pos"]:
    """Patch the residual stream before each layer, each attention layer's output and each MLP's (in this order).

    `options` are the keyword-only arguments of `generic_activation_patch`.
    """
    return _stacked(_of_a_block, model, corrupted_tokens, clean_cache, metric, **options)
