"""The residual stream taken apart: what each embedding, head, neuron and layer added to it.

`ResidualDecomposition` is the half of `ActivationCache` that knows what activations mean. Every decomposition is a
stack of parts `[component, batch, pos, d_model]` that sums to a state of the stream. A stack may be read through the
norm that reads that state, with its scale frozen (`apply_ln`), and along directions of one's own
(`project_output_onto`): both are linear, so the parts still sum to what was read, and a projected stack of neurons
never has a d_model axis.

Where a norm comes behind attention or MLP (`ln1_post`, `ln2_post`), a head's or neuron's part is what it adds to the
stream with that norm's scale frozen, which needs its `hook_scale` in the cache.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.differences import tell
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import Readout
from headscope.model.config import HookedTransformerConfig
from headscope.model.names import get_act_name
from headscope.model.text.tokens import residual_directions
from headscope.ops.indexing import Slice, SliceInput

__all__ = ["ResidualDecomposition"]


class ResidualDecomposition:
    """A field-less mixin over a dictionary of activations and references to the weights that made them."""

    cache_dict: dict[str, Tensor]
    has_batch_dim: bool
    _cfg: HookedTransformerConfig
    _tokenizer: Any
    _outputs: dict[str, list[Tensor | None]]

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        raise NotImplementedError

    @property
    def readout(self) -> Readout:
        """The final norm and the unembedding."""
        raise NotImplementedError

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
        if apply_ln and stop == self._cfg.n_layers and self._cfg.normalization_type is not None:
            tell("accumulated_resid")
        parts: dict[str, Tensor] = {}
        for each in range(stop + 1):
            last = each == stop
            if each == self._cfg.n_layers:
                parts["final_post"] = self["resid_post", each - 1]
                continue
            parts[f"{each}_pre"] = self["resid_pre", each]
            if self._cfg.has_resid_mid and ((incl_mid and not last) or (mlp_input and last)):
                parts[f"{each}_mid"] = self["resid_mid", each]
        return self._stacked(parts, layer, mlp_input, apply_ln, pos_slice, return_labels)

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn", "mixer"] = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """Return what was added to the residual stream before `layer`: embeddings, then each attention, mixer and MLP.

        Returns:
            `[component, batch, pos, d_model]`, which sums to the stream at that point (with `mode="all"`), and the
            labels `embed`, `pos_embed`, `0_attn_out`, `0_mlp_out`, ... if asked for.
        """
        parts = self._embeddings() if incl_embeds else {}
        stop = self._stop(layer)
        written = [(each, part) for each in range(stop) for part in self._cfg.parts_of(each)]
        if mlp_input and stop < self._cfg.n_layers:
            written += [(stop, part) for part in self._cfg.parts_of(stop) if part != "mlp"]
        for each, part in written:
            if mode in ("all", part):
                parts[f"{each}_{part}_out"] = self[f"{part}_out", each]
        return self._stacked(parts, layer, mlp_input, apply_ln, pos_slice, return_labels)

    def compute_head_results(self) -> None:
        """Add every layer's `hook_result` to the cache, from its `hook_z`."""
        for layer in self._cfg.layers_with("attn"):
            self.cache_dict[get_act_name("result", layer)] = self._head_results(layer)

    def stack_head_results(
        self,
        layer: int | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput | Slice = None,
        apply_ln: bool = False,
    ) -> Any:
        """Return what each head before `layer` adds to the residual stream, `[component, batch, pos, d_model]`.

        That is `hook_result`, unless a norm comes behind the attention. `incl_remainder` appends everything else, so
        that the stack sums to the stream. Labels are `L0H0`, ...
        """
        stop = self._stop(layer)
        parts = dict(self._heads(stop))
        if incl_remainder:
            state = self._state(stop)
            parts["remainder"] = state - sum(parts.values(), torch.zeros_like(state))
        return self._stacked(parts, layer, False, apply_ln, pos_slice, return_labels)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: SliceInput | Slice = None,
        pos_slice: SliceInput | Slice = None,
        project_output_onto: Float[Tensor, "d_model *directions"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Return what each MLP neuron of one layer adds to the residual stream, `[batch, pos, neuron, d_model]`.

        Args:
            layer: Which layer.
            neuron_slice: Only these neurons. All of them are `d_mlp` times as large as the stream.
            pos_slice: Only these positions.
            project_output_onto: `[d_model]` or `[d_model, direction]`: give the components along these instead.
        """
        if self._cfg.attn_only:
            raise InvalidInputError("the model has no MLPs (attn_only), so it has no neurons.", code="HS-HEADS-03")
        if layer not in self._cfg.layers_with("mlp"):
            raise InvalidInputError(f"layer {layer} has no MLP, so it has no neurons.", code="HS-HEADS-03")
        if self._cfg.num_experts is not None:
            raise InvalidInputError(
                f"the MLPs are {self._cfg.num_experts} experts each, and which neurons a token has depends on the "
                "token: there is no part for each neuron. Use expand_neurons=False, or hook_post of the experts."
            )
        W_out = self._through_post_norm(self._output_weight("mlp.W_out", layer), "ln2_post", layer)
        neurons = Slice([neuron_slice] if isinstance(neuron_slice, int) else neuron_slice)
        weight = neurons.apply(W_out, dim=0)
        activations = neurons.apply(self._sliced(self["post", layer], pos_slice), dim=-1)
        if self._cfg.has_post_norms:
            activations = activations / self._sliced(self._post_scale("ln2_post", layer), pos_slice)
        if project_output_onto is None:
            return activations[..., None] * weight
        if project_output_onto.ndim == 1:
            return activations * (weight @ project_output_onto)
        return activations[..., None] * (weight @ project_output_onto)

    def stack_neuron_results(
        self,
        layer: int | None = None,
        pos_slice: SliceInput | Slice = None,
        neuron_slice: SliceInput | Slice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Float[Tensor, "d_model *directions"] | None = None,
    ) -> Any:
        """Return what each MLP neuron before `layer` adds to the residual stream, `[component, batch, pos, d_model]`.

        Args:
            layer: Neurons of the layers before this one; `None` or -1 for all.
            pos_slice: Only these positions.
            neuron_slice: Only these neurons of each layer.
            return_labels: Also return `L0N0`, `L0N1`, ...
            incl_remainder: Append everything else, so that the stack sums to the stream.
            apply_ln: Divide by the scale of the norm that reads the sum.
            project_output_onto: `[d_model]` or `[d_model, direction]`: give the components along these instead, at
                a d_model-th of the memory.
        """
        stop = self._stop(layer)
        directions = self._directions(project_output_onto, layer, apply_ln)
        parts, labels = self._neurons(stop, neuron_slice, pos_slice, directions)
        if incl_remainder:
            state = _along(self._sliced(self._state(stop), pos_slice), directions)
            parts.append((state - sum((part.sum(0) for part in parts), torch.zeros_like(state)))[None])
            labels.append("remainder")
        stack = self._read(parts, layer, False, apply_ln, pos_slice, directions)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: SliceInput | Slice = None,
        return_labels: bool = False,
        project_output_onto: Float[Tensor, "d_model *directions"] | None = None,
    ) -> Any:
        """Every head, every MLP neuron, the mixers, the embeddings and the biases, which together sum to the stream.

        Args:
            layer: What the stream that enters this layer consists of; `None` or -1 for the final one.
            mlp_input: The stream that enters that layer's MLP.
            expand_neurons: One part for each neuron, which is `d_mlp` parts a layer; `False` gives one for each MLP.
            apply_ln: Divide by the scale of the norm that reads the sum.
            pos_slice: Only these positions.
            return_labels: Also return the labels.
            project_output_onto: `[d_model]` or `[d_model, direction]`: give the components along these instead.

        Returns:
            `[component, batch, pos, d_model]`, and labels `L0H0`, ..., then `L0N0`, ... (or `0_mlp_out`, ...),
            `0_mixer_out`, ... of layers with a mixer, `embed`, `pos_embed`, `bias`.
        """
        stop = self._stop(layer)
        heads_until = stop + 1 if mlp_input and stop < self._cfg.n_layers else stop
        directions = self._directions(project_output_onto, layer, apply_ln)

        def read(part: Tensor) -> Tensor:
            return _along(self._sliced(part, pos_slice), directions)[None]

        heads = {label: read(result) for label, result in self._heads(heads_until)}
        parts, labels = list(heads.values()), list(heads)
        mlps = [each for each in self._cfg.layers_with("mlp") if each < stop]
        if expand_neurons:
            neurons, names = self._neurons(stop, None, pos_slice, directions)
            parts += neurons
            labels += names
        whole = [(each, "mixer") for each in self._cfg.layers_with("mixer") if each < heads_until]
        for each, part in [*((each, "mlp") for each in mlps if not expand_neurons), *whole]:
            parts.append(read(self[f"{part}_out", each]))
            labels.append(f"{each}_{part}_out")
        embeddings = self._embeddings()
        bias = torch.zeros_like(embeddings["embed"])
        for each in self._cfg.layers_with("attn"):
            bias = bias + self._bias_added("attn.b_O", "ln1_post", each) if each < heads_until else bias
        for each in mlps if expand_neurons else ():
            bias = bias + self._bias_added("mlp.b_out", "ln2_post", each)
        parts += [read(part) for part in (*embeddings.values(), bias)]
        stack = self._read(parts, layer, mlp_input, apply_ln, pos_slice, directions)
        return (stack, [*labels, *embeddings, "bias"]) if return_labels else stack

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput | Slice = None,
        batch_slice: SliceInput | Slice = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Float[Tensor, "component *kept d_model"]:
        """Divide parts of the stream by the scale of the norm that read their sum, centering them if it centers.

        With folded weights the result times what reads it sums to what was read.

        Args:
            residual_stack: Parts of the stream, at the positions of `pos_slice`.
            layer: The layer whose norm it is; `None` or `n_layers` for the final norm.
            mlp_input: That layer's second norm.
            pos_slice: The positions the stack is at.
            batch_slice: Keep only these rows of the batch.
            has_batch_dim: True if the stack has a batch axis to slice.
            recompute_ln: Give each part of a stack for the final norm that norm's full output with a scale of its own,
                as the logit lens with `scale="own"` does.
        """
        if has_batch_dim and batch_slice is not None:
            residual_stack = Slice(batch_slice).apply(residual_stack, dim=1)
        if not self._is_normalized(layer):
            return residual_stack
        if recompute_ln and self._stop(layer) == self._cfg.n_layers:
            return self.readout.normalize(residual_stack)
        scale = self._frozen_scale(layer, mlp_input, pos_slice, batch_slice)
        return self._centered(residual_stack, layer) / scale

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        tokens: str | int | Int[Tensor, "*shape"],
        incorrect_tokens: str | int | Int[Tensor, "*shape"] | None = None,
        pos_slice: SliceInput | Slice = None,
        batch_slice: SliceInput | Slice = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component *kept"]:
        """Return what each part of the stream adds to a token's logit (or to its difference from another's).

        Args:
            residual_stack: Parts of the final residual stream; the final norm's frozen scale is applied here.
            tokens: The token, one for all or one per batch entry (of those kept).
            incorrect_tokens: Subtract this token's logit.
            pos_slice: The positions the stack is at.
            batch_slice: Keep only these rows of the batch.
            has_batch_dim: True if the stack has a batch axis to slice.
        """
        W_U = self.readout.W_U
        directions = residual_directions(tokens, W_U, self._tokenizer)
        if incorrect_tokens is not None:
            directions = directions - residual_directions(incorrect_tokens, W_U, self._tokenizer)
        if self.readout.weight is not None:
            tell("logit_attrs")
            directions = directions * self.readout.weight
        scaled = self.apply_ln_to_stack(
            residual_stack, pos_slice=pos_slice, batch_slice=batch_slice, has_batch_dim=has_batch_dim
        )
        if directions.ndim == 2 and scaled.ndim == 4:
            directions = directions[:, None]
        return (scaled * directions.detach()).sum(-1)

    @property
    def has_embed(self) -> bool:
        """True if the token embedding was kept."""
        return "hook_embed" in self.cache_dict

    @property
    def has_pos_embed(self) -> bool:
        """True if the positional embedding was kept."""
        return "hook_pos_embed" in self.cache_dict

    def _embeddings(self) -> dict[str, Tensor]:
        names = ["embed"] + (["pos_embed"] if self._cfg.positional_embedding_type == "standard" else [])
        return {name: self[f"hook_{name}"] for name in names}

    def _state(self, stop: int) -> Tensor:
        """Return the stream that enters layer `stop`."""
        return self["resid_post", stop - 1] if stop else self["resid_pre", 0]

    def _heads(self, stop: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the label of each head before a layer and what it adds to the stream, `[batch, pos, d_model]`."""
        for layer in self._cfg.layers_with("attn"):
            for head, added in enumerate(self._heads_added(layer).unbind(-2)) if layer < stop else ():
                yield f"L{layer}H{head}", added

    def _head_results(self, layer: int) -> Tensor:
        name = get_act_name("result", layer)
        if name in self.cache_dict:
            return self.cache_dict[name]
        return torch.einsum("...he,hed->...hd", self["z", layer], self._output_weight("attn.W_O", layer))

    def _heads_added(self, layer: int) -> Tensor:
        """Return what each head adds to the stream, `[batch, pos, head, d_model]`."""
        results = self._head_results(layer)
        if not self._cfg.has_post_norms:
            return results
        return self._through_post_norm(results, "ln1_post", layer) / self._post_scale("ln1_post", layer)[..., None, :]

    def _bias_added(self, name: str, norm: str, layer: int) -> Tensor:
        """Return what an output bias adds to the stream, with the bias of the norm behind it if there is one."""
        bias = self._output_weight(name, layer)
        if not self._cfg.has_post_norms:
            return bias
        added = self._through_post_norm(bias, norm, layer) / self._post_scale(norm, layer)
        return added + self._output_weight(f"{norm}.b", layer) if self._cfg.centered_norm else added

    def _through_post_norm(self, part: Tensor, norm: str, layer: int) -> Tensor:
        """The norm behind attention or MLP, but for its scale and bias: linear. The part itself if there is none."""
        if not self._cfg.has_post_norms:
            return part
        centered = part - part.mean(-1, keepdim=True) if self._cfg.centered_norm else part
        return centered * self._output_weight(f"{norm}.w", layer)

    def _post_scale(self, norm: str, layer: int) -> Float[Tensor, "*batch_and_pos 1"]:
        return self[f"blocks.{layer}.{norm}.hook_scale"]

    def _output_weight(self, name: str, layer: int) -> Tensor:
        weight = self._outputs[name][layer]
        if weight is None:
            part, parameter = name.split(".")
            raise InvalidInputError(f"blocks.{layer}.{part} was replaced by a module without {parameter}.")
        return weight.detach()

    def _neurons(
        self, stop: int, neuron_slice: SliceInput | Slice, pos_slice: SliceInput | Slice, directions: Tensor | None
    ) -> tuple[list[Tensor], list[str]]:
        """Return the neurons' parts of each layer before `stop`, `[neuron, batch, pos, d_model]`, and all labels."""
        axis = -1 if directions is not None and directions.ndim == 1 else -2
        layers = [layer for layer in self._cfg.layers_with("mlp") if layer < stop]
        parts = [
            self.get_neuron_results(layer, neuron_slice, pos_slice, directions).movedim(axis, 0) for layer in layers
        ]
        numbers = torch.atleast_1d(Slice(neuron_slice).apply(torch.arange(self._cfg.d_mlp or 0))).tolist()
        return parts, [f"L{layer}N{neuron}" for layer in layers for neuron in numbers]

    def _stop(self, layer: int | None) -> int:
        if layer is None or layer == -1:
            return self._cfg.n_layers
        if not 0 <= layer <= self._cfg.n_layers:
            raise InvalidInputError(f"layer must be between 0 and n_layers = {self._cfg.n_layers}; got {layer}.")
        return layer

    def _sliced(self, tensor: Tensor, pos_slice: SliceInput | Slice) -> Tensor:
        return tensor if pos_slice is None else Slice(pos_slice).apply(tensor, dim=-2)

    def _frozen_scale(
        self, layer: int | None, mlp_input: bool, pos_slice: SliceInput | Slice, batch_slice: SliceInput | Slice
    ) -> Float[Tensor, "*batch_and_pos 1"]:
        """Return what the norm in front of a layer divided by, at the positions and rows wanted."""
        stop = self._stop(layer)
        final = stop == self._cfg.n_layers
        scale = self["ln_final.hook_scale" if final else f"blocks.{stop}.ln{2 if mlp_input else 1}.hook_scale"]
        if scale.ndim > 2 + self.has_batch_dim:
            # Heads with inputs of their own have scales of their own: one, unless a hook changed an input.
            if not bool((scale == scale[..., :1, :]).all()):
                raise InvalidInputError(
                    f"the heads of layer {stop} read different inputs, so there is no one scale to freeze."
                )
            scale = scale[..., 0, :]
        if batch_slice is not None and self.has_batch_dim:
            scale = Slice(batch_slice).apply(scale, dim=0)
        return self._sliced(scale, pos_slice)

    def _is_normalized(self, layer: int | None) -> bool:
        """Return whether a layer, or the unembedding, reads the stream through a norm."""
        final = self._stop(layer) == self._cfg.n_layers
        return self.readout.normalized if final else self._cfg.has_pre_norms

    def _centered(self, x: Tensor, layer: int | None) -> Tensor:
        """`x` as the norm in front of a layer centers it."""
        if self._stop(layer) == self._cfg.n_layers:
            return self.readout.center(x)
        return x - x.mean(-1, keepdim=True) if self._cfg.centered_norm else x

    def _directions(
        self, project_output_onto: Tensor | None, layer: int | None, apply_ln: bool
    ) -> Float[Tensor, "d_model *directions"] | None:
        """Directions that give a part's components as they will be read: centering is linear, so it moves onto them."""
        if project_output_onto is None or not apply_ln or not self._is_normalized(layer):
            return project_output_onto
        return self._centered(project_output_onto.transpose(0, -1), layer).transpose(0, -1)

    def _stacked(
        self,
        parts: dict[str, Tensor],
        layer: int | None,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: SliceInput | Slice,
        return_labels: bool,
    ) -> Any:
        """Return a stack of parts by label, normalized, with the labels if asked for."""
        sliced = [self._sliced(part, pos_slice)[None] for part in parts.values()]
        stack = self._read(sliced, layer, mlp_input, apply_ln, pos_slice, None)
        return (stack, list(parts)) if return_labels else stack

    def _read(
        self,
        parts: list[Tensor],
        layer: int | None,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: SliceInput | Slice,
        directions: Tensor | None,
    ) -> Tensor:
        """One stack of parts `[component, ...]` (already sliced, and along directions if there are any), normalized."""
        if not parts:
            raise InvalidInputError("there are no components before layer 0 to stack.")
        stack = torch.cat(parts)
        if not apply_ln or not self._is_normalized(layer):
            return stack
        if directions is None:
            return self.apply_ln_to_stack(stack, layer, mlp_input=mlp_input, pos_slice=pos_slice)
        scale = self._frozen_scale(layer, mlp_input, pos_slice, None)
        return stack / (scale[..., 0] if directions.ndim == 1 else scale)


def _along(part: Tensor, directions: Tensor | None) -> Tensor:
    return part if directions is None else part @ directions
