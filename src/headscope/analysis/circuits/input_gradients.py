"""`InputGradients`: the gradient of a metric with respect to what each receiver reads of the residual stream.

A head reads the stream three times, for its queries, keys and values, and no run holds a copy of the stream for each.
One backward pass gives the gradients of queries, keys and values, `[row, pos, head, d_head]`; from there they go on to
the stream by hand, a layer at a time, through the projection and the norm before it:

    h = g W^T,    dx = (h - n (h . n) / d_model) / s        with n = (x - mean x) / s and s the norm's scale

(the norm's weight is folded into `W`, and with LayerNorm so is the mean it takes away). So the forward and the backward
pass are those of a model whose heads share their input, and for each layer there are one product and one pass over
`[3 heads, row, pos, d_model]`. MLPs' and mixers' inputs and the final state have gradients of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.circuits.graph import Graph
from headscope.analysis.circuits.sender_outputs import whole_name
from headscope.analysis.patching.path_ends import INPUTS
from headscope.analysis.recording.record import Replacement, record
from headscope.errors import InvalidInputError
from headscope.model.block import TransformerBlock
from headscope.model.hooks import HookPoint, is_own
from headscope.model.transformer import HookedTransformer
from headscope.ops.kernels.products import product_each

__all__ = ["InputGradients"]


class InputGradients:
    """Gradients at the inputs of a model's receivers.

    Args:
        model: The model, without hooks.
        graph: Its graph.
    """

    def __init__(self, model: HookedTransformer, graph: Graph) -> None:
        self.model, self.graph = model, graph
        folded = {layer: self._folded(layer) for layer in model.cfg.layers_with("attn")}
        self._linear = {layer: weights for layer, weights in folded.items() if weights is not None}

    def of(
        self,
        start: Float[Tensor, "row pos d_model"],
        score: Callable[[Float[Tensor, "row pos d_model"]], Tensor],
        here: slice,
        *,
        layer: int = 0,
        replaced: Mapping[str, Sequence[Replacement]] | None = None,
        **options: Any,
    ) -> Iterator[tuple[slice, Float[Tensor, "receiver row here d_model"]]]:
        """Yield receivers, and the gradients at their inputs, from a layer on.

        Args:
            start: The stream that enters the layer.
            score: Gives the metric, one number, of the final residual stream.
            here: The positions whose gradients are wanted.
            layer: The layer.
            replaced: What takes the place of some activations.
            options: See `HookedTransformer.forward`: `tokens`, `attention_mask`, ...

        Raises:
            InvalidInputError: If the metric has no gradient.
        """
        names = [name for each in range(layer, self.model.cfg.n_layers) for name in self._names(each)]
        with torch.enable_grad(), self._heads_apart():
            begin = start.detach().clone().requires_grad_()
            kept, final = record(self.model, begin, names, start_at_layer=layer, replaced=replaced or {}, **options)
            value = score(final)
            if not value.requires_grad:
                raise InvalidInputError(
                    "metric has no gradient: it must be made of its logits by torch functions alone.",
                    code="HS-METRIC-02",
                )
            ends = [*kept.values(), final]
            found = torch.autograd.grad(value, ends, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(kept, found, strict=False))
        yield slice(len(self.graph.receivers) - 1, len(self.graph.receivers)), found[-1][None, :, here]
        streams = {name: each.detach() for name, each in kept.items()}
        del kept, ends, final, value
        for each in range(layer, self.model.cfg.n_layers):
            yield from self._of_layer(each, streams, gradients, here, options)

    @contextmanager
    def _heads_apart(self) -> Iterator[None]:
        """Let hooks see the keys and values of each head, where a group shares them."""
        cfg = self.model.cfg
        before = cfg.ungroup_grouped_query_attention
        try:
            cfg.ungroup_grouped_query_attention = cfg.n_key_value_heads is not None or before
            yield
        finally:
            cfg.ungroup_grouped_query_attention = before

    def _names(self, layer: int) -> Iterator[str]:
        parts = self._block(layer).parts
        before = f"blocks.{layer}.hook_resid_pre"
        if "attn" in parts:
            yield from (before, *self._made(layer))
        if "mixer" in parts:
            yield from (before, whole_name(layer, "mixer"))
        if "mlp" in parts:
            yield f"blocks.{layer}.hook_mlp_in"

    def _made(self, layer: int) -> list[str]:
        """The hook points that show what a layer's heads make of their inputs."""
        more = ["gate"] if self.model.cfg.gated_attn else []
        return [f"blocks.{layer}.attn.hook_{each}" for each in (*INPUTS, *more)]

    def _of_layer(
        self,
        layer: int,
        kept: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        here: slice,
        options: Mapping[str, Any],
    ) -> Iterator[tuple[slice, Tensor]]:
        block, graph = self._block(layer), self.graph
        stream = kept.get(f"blocks.{layer}.hook_resid_pre")
        if "attn" in block.parts:
            assert stream is not None
            made = [gradients[name] for name in self._made(layer)]
            if layer in self._linear:
                found = self._through_linear(layer, stream[:, here], [each[:, here] for each in made])
            else:
                found = self._through_block(layer, stream, made, options.get("shortformer_pos_embed"))[:, :, here]
            yield graph.readers(layer, "attn"), found
        if "mixer" in block.parts:
            assert stream is not None
            with torch.enable_grad():
                read = stream.clone().requires_grad_()
                mask = None if (given := options.get("attention_mask")) is None else given.bool()
                out = block.mixer_out(read, mask)
            (found,) = torch.autograd.grad(out, read, gradients[whole_name(layer, "mixer")])
            yield graph.readers(layer, "mixer"), found[None, :, here]
        if "mlp" in block.parts:
            yield graph.readers(layer, "mlp"), gradients[f"blocks.{layer}.hook_mlp_in"][None, :, here]

    # From queries, keys and values to the stream

    def _folded(self, layer: int) -> Tensor | None:
        """Return weights from queries, keys and values to the normalized stream, `[3 heads, d_head, d_model]`.

        `None` where something else stands between, such as a latent, a gate, a norm on values or a clip.
        """
        cfg, block = self.model.cfg, self._block(layer)
        between = cfg.gated_attn or cfg.use_v_norm or cfg.clip_qkv is not None
        if between or not (is_own(block.ln1) and is_own(block.attn) and block.attn.reads_linearly):
            return None
        weights = torch.cat([getattr(block.attn, f"W_{each.upper()}").detach() for each in INPUTS]).mT
        wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
        if not cfg.has_pre_norms:
            return wide.contiguous()
        norm: Any = block.ln1
        wide = wide * norm.w.detach() if norm.affine else wide
        return (wide - wide.mean(-1, keepdim=True) if norm.centered else wide).contiguous()

    def _through_linear(
        self, layer: int, stream: Float[Tensor, "row pos d_model"], made: Sequence[Tensor]
    ) -> Float[Tensor, "receiver row pos d_model"]:
        weights = self._linear[layer]
        given = torch.cat([each.permute(2, 0, 1, 3) for each in made]).flatten(1, 2).to(weights.dtype)
        flat = stream.flatten(0, 1).to(weights.dtype)
        if self.model.cfg.has_pre_norms:
            norm: Any = self._block(layer).ln1
            centered = flat - flat.mean(-1, keepdim=True) if norm.centered else flat
            scale = (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            given = given / scale
        read = product_each(given, weights, given.new_empty(*given.shape[:2], flat.shape[1]))
        if self.model.cfg.has_pre_norms:
            normalized = centered / scale
            along = torch.einsum("rnd,nd->rn", read, normalized) / flat.shape[1]
            read.addcmul_(along[..., None], normalized, value=-1.0)
        return read.unflatten(1, stream.shape[:2])

    def _through_block(
        self, layer: int, stream: Float[Tensor, "row pos d_model"], made: Sequence[Tensor], positions: Tensor | None
    ) -> Float[Tensor, "receiver row pos d_model"]:
        """The same by autograd, through a copy of the stream for each."""
        block, names, shown = self._block(layer), self._made(layer), dict[str, Tensor]()

        def keep(value: Tensor, hook: HookPoint) -> None:
            shown[hook.name or ""] = value

        with torch.enable_grad(), self.model.hooks([(name, keep) for name in names]):
            n_readers = len(INPUTS) * self.model.cfg.n_heads
            read = stream.expand(n_readers, *stream.shape).clone().requires_grad_()
            queries, keys, values = block.ln1(read).permute(1, 2, 0, 3).chunk(len(INPUTS), dim=2)
            block.attend(queries, keys, values, positions)
        return torch.autograd.grad([shown[name] for name in names], read, made)[0]

    def _block(self, layer: int) -> TransformerBlock:
        return cast(TransformerBlock, self.model.blocks[layer])
