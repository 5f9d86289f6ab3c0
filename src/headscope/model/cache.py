"""`ActivationCache`: the activations of a run, and the residual stream taken apart.

The cache keeps activations and references to the weights needed to read them out; it never keeps the model.
"""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError, unknown_name
from headscope.model.names import get_act_name
from headscope.model.readout import Readout
from headscope.model.tokens import residual_directions
from headscope.ops.indexing import Slice, SliceInput

if TYPE_CHECKING:
    from headscope.model.transformer import HookedTransformer

__all__ = ["ActivationCache"]


class ActivationCache:
    """Activations by hook name.

    `cache["blocks.2.attn.hook_z"]`, `cache["z", 2]` and, for the embedding and the final norm, `cache["embed"]` and
    `cache["scale"]` all work; a negative layer counts from the end.

    Args:
        cache_dict: Activations by full hook name.
        model: The model they come from; its readout and output weights are referenced, the model is not kept.
        has_batch_dim: Whether the first axis of each activation is the batch.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> _, cache = model.run_with_cache("Mary went to the park.")
        >>> parts, labels = cache.get_full_resid_decomposition(return_labels=True)
        >>> bool(torch.allclose(parts.sum(0), cache["resid_post", -1], atol=1e-3))
        True
    """

    def __init__(self, cache_dict: dict[str, Tensor], model: "HookedTransformer", has_batch_dim: bool = True) -> None:
        self.cache_dict = cache_dict
        self.has_batch_dim = has_batch_dim
        self.readout = Readout.of(model)
        self._cfg = model.cfg
        self._tokenizer = model.tokenizer
        self._output_weights = model.per_layer("attn", "W_O")
        self._output_biases = model.per_layer("attn", "b_O")

    # A dictionary of activations

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
                "cached activation", name, self.cache_dict, hint="Was it kept? See names_filter in run_with_cache."
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
                    raise InvalidInputError(f"only a batch of 1 can be dropped; {name} has shape {list(tensor.shape)}.")
            self.cache_dict = {name: tensor[0] for name, tensor in self.cache_dict.items()}
            self.has_batch_dim = False
        return self

    # The residual stream, taken apart

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """The residual stream on its way: what enters each layer up to `layer`, and that layer's own input last.

        Args:
            layer: Stop at the input of this layer; `None` or `n_layers` (or -1) gives all, ending with the final state.
            incl_mid: Also the states between attention and MLP.
            apply_ln: Divide each by the scale of the norm that reads the last one.
            pos_slice: Keep only these positions.
            mlp_input: The last state is the input of that layer's MLP.
            return_labels: Also return a name for each: `0_pre`, `0_mid`, ..., `final_post`.

        Returns:
            `[state, batch, pos, d_model]`, and the labels if asked for.
        """
        stop = self._stop(layer)
        names: list[tuple[str, int]] = []
        labels: list[str] = []
        for each in range(stop + 1):
            last = each == stop
            if each == self._cfg.n_layers:
                names.append(("resid_post", each - 1))
                labels.append("final_post")
                continue
            names.append(("resid_pre", each))
            labels.append(f"{each}_pre")
            if self._cfg.has_resid_mid and ((incl_mid and not last) or (mlp_input and last)):
                names.append(("resid_mid", each))
                labels.append(f"{each}_mid")
        return self._stacked(
            [self[name] for name in names], labels, layer, apply_ln, pos_slice, mlp_input, return_labels
        )

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """What was added to the residual stream before `layer`: embeddings, then each attention and MLP layer.

        Returns:
            `[component, batch, pos, d_model]`, which sums to the stream at that point (with `mode="all"`), and the
            labels `embed`, `pos_embed`, `0_attn_out`, `0_mlp_out`, ... if asked for.
        """
        parts, labels = self._embeddings() if incl_embeds else ([], [])
        stop = self._stop(layer)
        for each in range(stop):
            if mode in ("all", "attn"):
                parts.append(self["attn_out", each])
                labels.append(f"{each}_attn_out")
            if mode in ("all", "mlp") and not self._cfg.attn_only:
                parts.append(self["mlp_out", each])
                labels.append(f"{each}_mlp_out")
        if mlp_input and mode in ("all", "attn") and stop < self._cfg.n_layers:
            parts.append(self["attn_out", stop])
            labels.append(f"{stop}_attn_out")
        return self._stacked(parts, labels, layer, apply_ln, pos_slice, mlp_input, return_labels)

    def compute_head_results(self) -> None:
        """Add every layer's `hook_result` to the cache, from its `hook_z`."""
        for layer, weight in enumerate(self._output_weights):
            name = get_act_name("result", layer)
            if name not in self.cache_dict:
                self.cache_dict[name] = torch.einsum("...he,hed->...hd", self["z", layer], weight.detach())

    def stack_head_results(
        self,
        layer: int | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput | Slice = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each head before `layer` adds to the residual stream, `[component, batch, pos, d_model]`.

        `incl_remainder` appends everything else, so that the stack sums to the stream. Labels are `L0H0`, ...
        """
        stop = self._stop(layer)
        parts: list[Tensor] = []
        labels: list[str] = []
        for each in range(stop):
            result = self._head_results(each)
            parts.extend(result.unbind(-2))
            labels.extend(f"L{each}H{head}" for head in range(result.shape[-2]))
        if incl_remainder:
            state = self["resid_post", stop - 1] if stop else self["resid_pre", 0]
            parts.append(state - sum(parts, torch.zeros_like(state)))
            labels.append("remainder")
        return self._stacked(parts, labels, layer, apply_ln, pos_slice, False, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        return_labels: bool = False,
    ) -> Any:
        """Every head, every MLP, the embeddings and the attention biases, which together sum to the stream.

        Returns:
            `[component, batch, pos, d_model]`, and labels `L0H0`, ..., `0_mlp_out`, ..., `embed`, `pos_embed`, `bias`.
        """
        stop = self._stop(layer)
        heads_until = stop + 1 if mlp_input and stop < self._cfg.n_layers else stop
        parts: list[Tensor] = []
        labels: list[str] = []
        for each in range(heads_until):
            parts.extend(self._head_results(each).unbind(-2))
            labels.extend(f"L{each}H{head}" for head in range(self._cfg.n_heads))
        if not self._cfg.attn_only:
            parts.extend(self["mlp_out", each] for each in range(stop))
            labels.extend(f"{each}_mlp_out" for each in range(stop))
        embeddings, names = self._embeddings()
        bias = sum((b.detach() for b in self._output_biases[:heads_until]), torch.zeros_like(embeddings[0]))
        parts, labels = [*parts, *embeddings, bias], [*labels, *names, "bias"]
        return self._stacked(parts, labels, layer, apply_ln, pos_slice, mlp_input, return_labels)

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput | Slice = None,
    ) -> Float[Tensor, "component *batch_and_pos d_model"]:
        """Divide parts of the stream by the scale of the norm that read their sum, centring them if it centres.

        With folded weights the result times what reads it sums to what was read.

        Args:
            residual_stack: Parts of the stream, at the positions of `pos_slice`.
            layer: The layer whose norm it is; `None` or `n_layers` for the final norm.
            mlp_input: That layer's second norm.
            pos_slice: The positions the stack is at.
        """
        if not self.readout.normalized:
            return residual_stack
        stop = self._stop(layer)
        name = (
            "ln_final.hook_scale"
            if stop == self._cfg.n_layers
            else f"blocks.{stop}.ln{2 if mlp_input else 1}.hook_scale"
        )
        scale = self[name]
        if scale.ndim > 2 + self.has_batch_dim:
            # Heads with inputs of their own have scales of their own: one, unless a hook changed an input.
            if not bool((scale == scale[..., :1, :]).all()):
                raise InvalidInputError(
                    f"the heads of layer {stop} read different inputs, so there is no one scale to freeze."
                )
            scale = scale[..., 0, :]
        scale = self._sliced(scale, pos_slice)
        return self.readout.centre(residual_stack) / scale

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        tokens: str | int | Int[Tensor, "*shape"],
        incorrect_tokens: str | int | Int[Tensor, "*shape"] | None = None,
        pos_slice: SliceInput | Slice = None,
    ) -> Float[Tensor, "component *batch_and_pos"]:
        """What each part of the stream adds to a token's logit (or to its difference from another's).

        Args:
            residual_stack: Parts of the final residual stream; the final norm's frozen scale is applied here.
            tokens: The token, one for all or one per batch entry.
            incorrect_tokens: Subtract this token's logit.
            pos_slice: The positions the stack is at.
        """
        W_U = self.readout.W_U
        directions = residual_directions(tokens, W_U, self._tokenizer)
        if incorrect_tokens is not None:
            directions = directions - residual_directions(incorrect_tokens, W_U, self._tokenizer)
        if self.readout.weight is not None:
            directions = directions * self.readout.weight
        scaled = self.apply_ln_to_stack(residual_stack, pos_slice=pos_slice)
        if directions.ndim == 2 and scaled.ndim == 4:
            directions = directions[:, None]
        return (scaled * directions.detach()).sum(-1)

    def _embeddings(self) -> tuple[list[Tensor], list[str]]:
        names = ["embed"] + (["pos_embed"] if self._cfg.positional_embedding_type == "standard" else [])
        return [self[f"hook_{name}"] for name in names], names

    def _head_results(self, layer: int) -> Tensor:
        name = get_act_name("result", layer)
        if name in self.cache_dict:
            return self.cache_dict[name]
        return torch.einsum("...he,hed->...hd", self["z", layer], self._output_weights[layer].detach())

    def _stop(self, layer: int | None) -> int:
        if layer is None or layer == -1:
            return self._cfg.n_layers
        if not 0 <= layer <= self._cfg.n_layers:
            raise InvalidInputError(f"layer must be between 0 and n_layers = {self._cfg.n_layers}; got {layer}.")
        return layer

    def _sliced(self, tensor: Tensor, pos_slice: SliceInput | Slice) -> Tensor:
        return tensor if pos_slice is None else Slice(pos_slice).apply(tensor, dim=-2)

    def _stacked(
        self,
        parts: list[Tensor],
        labels: list[str],
        layer: int | None,
        apply_ln: bool,
        pos_slice: SliceInput | Slice,
        mlp_input: bool,
        return_labels: bool,
    ) -> Any:
        if not parts:
            raise InvalidInputError("there are no components before layer 0 to stack.")
        stack = torch.stack([self._sliced(part, pos_slice) for part in parts])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input=mlp_input, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack
