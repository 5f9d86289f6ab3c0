"""Weight processing: rewrites of a model that leave its log-probabilities unchanged and make it easier to interpret.

Each public function takes a state dict (under headscope's names) and the config and returns a new state dict; the
tensors it was given are never written to. Its docstring says why it is exact. `process_weights` runs those requested
and logs, once for a model, which do not apply; it can work in place, without a second copy of the weights.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.mixers import mixer_inputs
from headscope.ops.devices import wide
from headscope.ops.factored import FactoredMatrix

__all__ = [
    "WeightProcessing",
    "center_unembed",
    "center_writing_weights",
    "fold_layer_norm",
    "fold_value_biases",
    "inapplicable_processing",
    "process_weights",
    "refactor_factored_attn_matrices",
]

StateDict = dict[str, Tensor]
logger = logging.getLogger("headscope")

# What an MLP reads its norm with, as weights `W` and biases `b`, and what it writes to the stream with; experts have a
# router, and may have an MLP beside them.
_MLP_READERS = ("mlp.{}_in", "mlp.{}_gate", "mlp.{}_router", "mlp.{}_shared_gate", "mlp.shared.{}_in",
                "mlp.shared.{}_gate")  # fmt: skip
_MLP_WRITERS = ("mlp.W_out", "mlp.b_out", "mlp.b_out_expert", "mlp.shared.W_out", "mlp.shared.b_out")


@dataclass(frozen=True)
class WeightProcessing:
    """Selection of rewrites; the defaults are TransformerLens's.

    Attributes:
        fold_ln: Fold the norms' weights and biases into the weights that read them.
        center_writing_weights: Remove the mean over d_model from all writes to the residual stream (LayerNorm only).
        center_unembed: Remove the mean over tokens from the unembedding.
        fold_value_biases: Move value biases into the attention's output bias.
        refactor_factored_attn_matrices: Make `W_Q`, `W_K` orthogonal and of equal norm, and `W_O` a rotation.
    """

    fold_ln: bool = True
    center_writing_weights: bool = True
    center_unembed: bool = True
    fold_value_biases: bool = True
    refactor_factored_attn_matrices: bool = False

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the rewrites, in the order they run."""
        return [field.name for field in dataclasses.fields(cls)]


def process_weights(
    state_dict: Mapping[str, Tensor],
    cfg: HookedTransformerConfig,
    processing: WeightProcessing,
    *,
    in_place: bool = False,
) -> tuple[StateDict, str | None, tuple[str, ...]]:
    """Run the requested rewrites that apply to this model.

    Args:
        state_dict: The weights.
        cfg: The config they belong to; it is not changed.
        processing: The rewrites to run.
        in_place: Change the given tensors instead of copies; no two may share memory.

    Returns:
        The new state dict, its normalization type, and the names of the rewrites done.
    """
    state, cfg, done = dict(state_dict) if in_place else _copied(state_dict), copy.copy(cfg), []
    left_out: dict[str, str] = {}
    for name, rewrite in _STEPS.items():
        if not getattr(processing, name):
            continue
        reason = _why_not(name, cfg)
        if reason:
            left_out[name] = reason
            continue
        with torch.no_grad():
            rewrite(state, cfg)
        if name == "fold_ln":
            cfg.normalization_type = folded_norm(cfg)
        done.append(name)
    if left_out:
        _tell(cfg.model_name, left_out)
    return state, cfg.normalization_type, tuple(done)


# Models whose processing was told of, which is enough once.
_told: set[tuple[str, ...]] = set()


def _tell(model_name: str, left_out: Mapping[str, str]) -> None:
    """Log in one line, once for a model, which rewrites do not apply to it, and how to ask for none of them."""
    if (key := (model_name, *left_out.values())) in _told:
        return
    _told.add(key)
    reasons = "; ".join(f"{name} is left out: {reason.rstrip('.')}" for name, reason in left_out.items())
    silent = ", ".join(f"{name}=False" for name in left_out)
    logger.warning("%s: %s (to silence this: %s).", model_name, reasons, silent)


def _copied(state_dict: Mapping[str, Tensor]) -> StateDict:
    return {name: tensor.detach().clone() for name, tensor in state_dict.items()}


def _rewritten(name: str, state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Run one rewrite on a copy."""
    reason = _why_not(name, cfg)
    if reason:
        raise InvalidInputError(f"{name} does not apply: {reason}", code="HS-WEIGHTS-02")
    return process_weights(state_dict, cfg, WeightProcessing(**{n: n == name for n in WeightProcessing.names()}))[0]


def folded_norm(cfg: HookedTransformerConfig) -> str | None:
    """Return the normalization type of a model whose norms' weights have been folded."""
    return {"LN": "LNPre", "RMS": "RMSPre"}.get(cfg.normalization_type or "", cfg.normalization_type)


def unfolded_norm(cfg: HookedTransformerConfig) -> str | None:
    """Return the normalization type a model had before its norms' weights were folded."""
    return {"LNPre": "LN", "RMSPre": "RMS"}.get(cfg.normalization_type or "", cfg.normalization_type)


def inapplicable_processing(cfg: HookedTransformerConfig) -> dict[str, str]:
    """Return, for each rewrite, the reason it does not apply to a model; empty if it does."""
    return {name: _why_not(name, cfg) for name in WeightProcessing.names()}


def _why_not(name: str, cfg: HookedTransformerConfig) -> str:
    """Return the reason a rewrite does not apply to this model; empty if it does."""
    shared = cfg.n_key_value_heads not in (None, cfg.n_heads)
    if name == "fold_ln" and cfg.normalization_type not in ("LN", "RMS"):
        return f"norms of type {cfg.normalization_type} have no weights to fold."
    if name == "fold_ln" and cfg.centered_norm and cfg.layers_with("mixer"):
        return "mixers have no bias that a LayerNorm's could be folded into."
    if name == "fold_ln" and cfg.positional_embedding_type == "shortformer":
        return "shortformer positions are added after the norm, and its weight must not scale them."
    if name == "fold_ln" and cfg.centered_norm and cfg.scale_expert_inputs:
        return "what experts read is multiplied by their scores, and the norm's bias with it."
    if name == "refactor_factored_attn_matrices":
        if shared:
            return "keys and values shared by several heads cannot be factored for each."
        if cfg.positional_embedding_type == "rotary":
            return "rotary positions rotate queries and keys, so W_Q W_K^T alone does not determine the scores."
        if cfg.use_qk_norm:
            return "queries and keys go through a norm, so W_Q W_K^T alone does not determine the scores."
        if cfg.use_attn_sinks:
            return "a sink takes part of every pattern, so value biases cannot be folded before W_V is factored."
        if cfg.clip_qkv is not None:
            return "queries and keys are clipped, so W_Q W_K^T alone does not determine the scores."
    if name in ("fold_value_biases", "refactor_factored_attn_matrices") and cfg.gated_attn:
        return "each dimension of a head's output has a gate of its own, so values must stay as they are."
    if name == "fold_value_biases" and cfg.clip_qkv is not None:
        return "values are clipped with their biases, so the biases cannot be added afterwards."
    if name in ("fold_value_biases", "refactor_factored_attn_matrices") and cfg.use_v_norm:
        return "values go through a norm with their biases, so the biases cannot be added afterwards."
    if name == "fold_value_biases" and cfg.use_attn_sinks:
        return "a sink takes part of every pattern, so heads do not add their value biases in full."
    if name == "center_writing_weights":
        if not cfg.centered_norm or cfg.final_norm in ("RMS", "RMSPre"):
            norm = cfg.final_norm if cfg.centered_norm else cfg.normalization_type
            return f"only LayerNorm ignores the mean of the residual stream; this model's norm is {norm}."
        if cfg.layers_with("mixer"):
            return "mixers write to the residual stream too, and their output weights are not centered."
        if cfg.has_post_norms:
            return "outputs of attention and MLP go through a post-norm before they are added to the residual stream."
    if name == "center_unembed" and cfg.d_vocab_out == 1:
        return "the model has one output, which is its own mean: centering would make it zero."
    if name == "center_unembed" and cfg.output_logits_soft_cap > 0:
        return "a soft cap on the logits makes them depend on their mean."
    return ""


def fold_layer_norm(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Fold each norm's weight and bias into the weights that read it.

    `(n * w + b) W + c = n (w[:, None] * W) + (b W + c)` for the normalized `n`. A LayerNorm's `n` has mean zero, so
    the mean over d_model of each column of `W` is removed as well: it never contributes.

    Post-norms keep their weights, since no matrix reads their output. So do norms on queries and keys, which rotary
    positions separate from the product.

    Args:
        state_dict: Weights with norms of type `"LN"` or `"RMS"`.
        cfg: The config they belong to.

    Returns:
        Weights for norms of type `"LNPre"` or `"RMSPre"`.

    Raises:
        InvalidInputError: If the model's norms have nothing to fold, or something is added after them.
    """
    return _rewritten("fold_ln", state_dict, cfg)


def _fold_layer_norm(state: StateDict, cfg: HookedTransformerConfig) -> None:
    for layer in range(cfg.n_layers):
        block, parts = f"blocks.{layer}.", cfg.parts_of(layer)
        if cfg.has_pre_norms and parts != ("mlp",):
            readers = _attention_readers(state, layer)
            readers = readers if "attn" in parts else []
            mixer = [f"{block}mixer.{name}" for name in mixer_inputs(cfg)] if "mixer" in parts else []
            _fold_into(state, block + "ln1", readers, centered=cfg.centered_norm, outputs_first=mixer)
        if "mlp" not in parts:
            continue
        if cfg.has_pre_norms:
            names = [block + name for name in _MLP_READERS if block + name.format("W") in state]
            readers = [(name.format("W"), name.format("b")) for name in names]
            _fold_into(state, block + "ln2", readers, centered=cfg.centered_norm)
        if cfg.is_layer_norm_activation():
            _fold_into(state, block + "mlp.ln", [(block + "mlp.W_out", block + "mlp.b_out")], centered=True)
    _fold_into(state, "ln_final", [("unembed.W_U", "unembed.b_U")], centered=cfg.final_norm == "LN")


def _attention_readers(state: StateDict, layer: int) -> list[tuple[str, str]]:
    """Return the weights and biases that attention reads its norm with."""
    block = f"blocks.{layer}.attn."
    if f"{block}W_KV_down" not in state:
        letters = "QKVG" if f"{block}W_G" in state else "QKV"
        return [(_attention(state, layer, f"W_{m}"), _attention(state, layer, f"b_{m}")) for m in letters]
    queries = ("W_Q_down", "b_Q_down") if f"{block}W_Q_down" in state else ("W_Q_up", "b_Q")
    pairs = [queries, ("W_KV_down", "b_KV_down"), ("W_K_rotary", "b_K_rotary")]
    return [(block + weight, block + bias) for weight, bias in pairs]


def _attention(state: StateDict, layer: int, name: str) -> str:
    """Return the full name of an attention weight; one shared by a group of heads has a leading underscore."""
    full = f"blocks.{layer}.attn.{name}"
    return full if full in state else f"blocks.{layer}.attn._{name}"


def _fold_into(
    state: StateDict,
    norm: str,
    readers: list[tuple[str, str]],
    *,
    centered: bool,
    outputs_first: Sequence[str] = (),
) -> None:
    """Fold a norm into matrices with their biases, and into a mixer's (behind an RMSNorm, which has no bias)."""
    weight, bias = state.pop(f"{norm}.w"), state.pop(f"{norm}.b", None)
    for name in outputs_first:
        state[name] *= weight
    for matrix_name, bias_name in readers:
        matrix = state[matrix_name]
        # The bias goes through the matrix as it was, so it comes before the weight. All in place: `matrix` is the
        # final parameter, and a product out of place would hold it twice.
        if bias is not None:
            state[bias_name] += bias @ matrix
        matrix *= weight[:, None]
        if centered:
            matrix -= matrix.mean(-2, keepdim=True)


def center_writing_weights(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Remove the mean over d_model from all weights that write to the residual stream.

    Every reader of the stream begins with a LayerNorm, which subtracts that mean anyway. A LayerNorm after the
    embedding does so for `W_E`; the mean that its own weight adds stays.

    Raises:
        InvalidInputError: If the model's norms do not subtract the mean.
    """
    return _rewritten("center_writing_weights", state_dict, cfg)


def _center_writing_weights(state: StateDict, cfg: HookedTransformerConfig) -> None:
    writers = ["embed.W_E", "embed.ln.b"] + (["pos_embed.W_pos"] if cfg.positional_embedding_type == "standard" else [])
    for layer in range(cfg.n_layers):
        writers += [f"blocks.{layer}.{name}" for name in ("attn.W_O", "attn.b_O", *_MLP_WRITERS)]
    for name in writers:
        if name in state:
            state[name] -= state[name].mean(-1, keepdim=True)


def center_unembed(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Remove the mean over tokens from `W_U` and `b_U`: the softmax ignores a constant added to all logits.

    Raises:
        InvalidInputError: If the logits have a soft cap, which does not ignore it, or there is only one.
    """
    return _rewritten("center_unembed", state_dict, cfg)


def _center_unembed(state: StateDict, cfg: HookedTransformerConfig) -> None:
    for name in ("unembed.W_U", "unembed.b_U"):
        state[name] -= state[name].mean(-1, keepdim=True)


def fold_value_biases(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Move value biases into `b_O`: an attention pattern sums to one, so each head always adds `b_V W_O`.

    Raises:
        InvalidInputError: If patterns do not sum to one, or values are clipped.
    """
    return _rewritten("fold_value_biases", state_dict, cfg)


def _fold_value_biases(state: StateDict, cfg: HookedTransformerConfig) -> None:
    for layer in cfg.layers_with("attn"):
        b_V, W_O = state[_attention(state, layer, "b_V")], state[f"blocks.{layer}.attn.W_O"]
        # Heads of a group share a value bias, but each sends it through its own W_O.
        per_head = b_V.repeat_interleave(cfg.n_heads // b_V.shape[0], dim=0)
        state[f"blocks.{layer}.attn.b_O"] += torch.einsum("he,hed->d", per_head, W_O)
        b_V.zero_()


def refactor_factored_attn_matrices(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Factor QK and OV by SVD into the factors that are easiest to interpret.

    Only the products `W_Q W_K^T` and `W_V W_O` matter. With `W_V W_O = U S V^T`, the new `W_V = U S` and `W_O = V^T`,
    so that `z` has the norm of the head's output; value biases are folded into `b_O` first. Queries and keys are
    factored with their biases as an extra row: with `[W_Q; b_Q] [W_K; b_K]^T = U S V^T`, the new `[W_Q; b_Q]` is
    `U sqrt(S)` and `[W_K; b_K]` is `V sqrt(S)`, whose columns are orthogonal and of equal norm; every score stays.

    Computed in float64.

    Raises:
        InvalidInputError: If keys and values are shared by several heads, or queries and keys are changed before their
            product: by rotary positions, norms or clipping.
    """
    return _rewritten("refactor_factored_attn_matrices", state_dict, cfg)


def _refactor_factored_attn_matrices(state: StateDict, cfg: HookedTransformerConfig) -> None:
    _fold_value_biases(state, cfg)
    for layer in cfg.layers_with("attn"):
        names = {name: _attention(state, layer, name) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K")}
        old = {name: wide(state[full]) for name, full in names.items()}
        u, s, v = FactoredMatrix(old["W_V"], old["W_O"]).svd()
        new = {"W_V": u * s[:, None, :], "W_O": v.transpose(-2, -1)}
        queries, keys = (torch.cat([old[f"W_{name}"], old[f"b_{name}"][:, None]], dim=1) for name in "QK")
        even = FactoredMatrix(queries, keys.mT).make_even()
        for name, rows in (("Q", even.A), ("K", even.B.mT)):
            new |= {f"W_{name}": rows[:, :-1], f"b_{name}": rows[:, -1]}
        for name, tensor in new.items():
            state[names[name]].copy_(_padded(tensor, state[names[name]].shape))


def _padded(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Pad the head dimension with zeros, for heads wider than the residual stream."""
    if tensor.shape == shape:
        return tensor
    out = tensor.new_zeros(shape)
    out[tuple(slice(0, n) for n in tensor.shape)] = tensor
    return out


# In the order they run. Each changes a state dict and its tensors in place.
_STEPS: dict[str, Callable[[StateDict, HookedTransformerConfig], None]] = {
    "fold_ln": _fold_layer_norm,
    "center_writing_weights": _center_writing_weights,
    "center_unembed": _center_unembed,
    "fold_value_biases": _fold_value_biases,
    "refactor_factored_attn_matrices": _refactor_factored_attn_matrices,
}
