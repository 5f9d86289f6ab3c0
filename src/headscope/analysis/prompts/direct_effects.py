"""Direct effects: what each part of the model adds to a metric that is linear in the logits, read from a forward pass.

With the final norm's scale frozen to that of the real final state, logits are linear in the residual stream: for a
prompt with scale `s`, norm weight `w` and answers whose unembeddings differ by `u`, anything written to the stream adds
its product with `center(w * u) / s`. That vector is made once per prompt, and everything is read along it: a head as
`z . (W_O v)`, a head's source as `pattern * (value . (W_O v))`, a neuron as `activation * (W_out v)`. Norms behind
attention and MLP (Gemma 2, OLMo 2) have their scales frozen too, at the position that is read: so are these shares of
one sum, and all parts together still give the logit difference (before a soft cap, if there is one).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.prompts.metrics import LinearMetric
from headscope.analysis.prompts.task import Task
from headscope.analysis.recording.by_hand import check_heads_add_up, check_readout, layers_between
from headscope.analysis.recording.record import Reading, check_final, record
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.names import Part, post_scale_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["DirectEffects", "PartReader", "Recorded", "linear_of", "values_along"]

Recorded = tuple[dict[str, Tensor], Float[Tensor, "prompt d_model"]]  # what is read of a run, and its final states


def linear_of(task: Task) -> LinearMetric:
    """Return a task's metric, if it is one that can be attributed.

    Raises:
        InvalidInputError: If it is not linear in the logits.
    """
    metric = task.measure
    if not isinstance(metric, LinearMetric):
        raise InvalidInputError(
            f"only a metric that is linear in the logits adds up over the parts of a model; got {metric!r}. Give an "
            "AnswerMetric, a NumberMetric or another LinearMetric, or use activation_patch or attribution_patch.",
            code="HS-METRIC-03",
        )
    return metric


class PartReader:
    """Reads what each part of a model adds along directions of the final state.

    Args:
        model: The model.
        sources: Also by the position that each head attends to.
        neurons: Also by MLP neuron.

    Attributes:
        names: The activations that are read, by hook name; those that the model lacks are left out.
    """

    def __init__(self, model: HookedTransformer, *, sources: bool, neurons: bool) -> None:
        self.model, self.cfg = model, model.cfg
        self.sources = sources
        self.neurons = neurons and not (self.cfg.attn_only or self.cfg.num_experts is not None)
        self.readout = readout_of(model)
        self.kind = torch.promote_types(self.cfg.dtype, torch.float32)
        layers = range(self.cfg.n_layers)
        self.W_O = {layer: model.output_weight(layer) for layer in self.cfg.layers_with("attn")}
        with_neurons = self.cfg.layers_with("mlp") if self.neurons else ()
        self.W_out = {layer: model.output_weight(layer, "mlp") for layer in with_neurons}
        self.embeddings = ["hook_embed"]
        self.embeddings += ["hook_pos_embed"] if self.cfg.positional_embedding_type == "standard" else []
        kinds = ["hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mixer_out", "hook_mlp_out", "attn.hook_z"]
        kinds += ["attn.hook_pattern", "attn.hook_v", "attn.hook_gate"] if self.sources else []
        kinds += ["mlp.hook_post"] if self.neurons else []
        self.names = self.embeddings + [f"blocks.{layer}.{kind}" for layer in layers for kind in kinds]
        parts: tuple[Part, ...] = ("attn", "mlp") if self.neurons else ("attn",)
        self.names += [post_scale_name(layer, of) for layer in layers for of in parts]

    def toward(
        self, final: Float[Tensor, "prompt d_model"], u: Float[Tensor, "prompt d_model"]
    ) -> Float[Tensor, "prompt d_model"]:
        """Return the direction of the stream that comes to `u` behind the final norm, at its scale for final states."""
        if self.readout.weight is not None:
            u = u * self.readout.weight.detach().to(self.kind)
        # Centering is its own transpose: what is read of a centered state is read along the centered direction.
        return self.readout.center(u) / self.readout.scale(final)

    def parts(
        self,
        acts: Mapping[str, Tensor],
        final: Float[Tensor, "prompt d_model"],
        toward: Float[Tensor, "prompt d_model"],
        constant: Float[Tensor, " prompt"],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what each part adds along a direction of each prompt: rows of each, and sums over neurons.

        Args:
            acts: What `names` name, of each prompt at the position that is read, by hook name.
            final: The final states there.
            toward: The direction, as `toward` gives it.
            constant: What biases behind the stream add.
        """

        def along(state: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
            return (state * toward).sum(-1)

        def behind(layer: int, of: Part) -> Float[Tensor, "prompt d_model"]:
            scale = acts.get(post_scale_name(layer, of))
            return toward if scale is None else toward / scale

        components, by_source, by_neuron = [along(acts[name]) for name in self.embeddings], [], []
        for layer in range(self.cfg.n_layers):
            name, parts = f"blocks.{layer}.", self.cfg.parts_of(layer)
            if "attn" in parts:
                onto = torch.einsum("hed,pd->phe", self.W_O[layer].to(self.kind), behind(layer, "attn"))
                heads = (acts[name + "attn.hook_z"] * onto).sum(-1)
                # What attention adds besides its heads is its bias, which belongs to none of them.
                components += [*heads.unbind(-1), along(acts[name + "hook_attn_out"]) - heads.sum(-1)]
            components += [along(acts[f"{name}hook_{part}_out"]) for part in parts if part != "attn"]
            if "attn" in parts and self.sources:
                # The gate is that of the position the head writes at, the same for all it attends to.
                onto = onto * acts.get(f"{name}attn.hook_gate", 1.0)
                by_source.append(acts[name + "attn.hook_pattern"] * values_along(acts[name + "attn.hook_v"], onto))
            if layer in self.W_out:
                onto_neurons = behind(layer, "mlp") @ self.W_out[layer].to(self.kind).T
                by_neuron.append(wide(acts[name + "mlp.hook_post"] * onto_neurons).sum(0))
        kinds = ("hook_resid_pre", "hook_resid_mid") if self.cfg.has_resid_mid else ("hook_resid_pre",)
        passed = [acts[f"blocks.{layer}.{kind}"] for layer in range(self.cfg.n_layers) for kind in kinds]
        states = torch.stack([along(state) + constant for state in (*passed, final)], 1)
        # Rows are [..., prompt, x].
        rows = {"states": states, "components": torch.stack([*components, constant], 1)}
        rows |= {"sources": over_layers(self.cfg, torch.stack(by_source)).movedim(2, 1)} if by_source else {}
        neurons = {"neurons": over_layers(self.cfg, torch.stack(by_neuron), "mlp")} if by_neuron else {}
        return rows, neurons


class DirectEffects(PartReader):
    """Reads what each part of a model adds to a task's metric, prompts in batches."""

    def __init__(self, model: HookedTransformer, task: Task, *, sources: bool, neurons: bool) -> None:
        super().__init__(model, sources=sources, neurons=neurons)
        self.metric = linear_of(task)
        self.positions = self.metric.places(*task.clean_tokens.shape)[:, 0].to(task.clean_tokens.device)

    def recorded(self, batch: Batch, which: slice) -> Recorded:
        """Run a batch of prompts; what is read of it, and its final state."""
        prompts = torch.arange(len(batch.tokens), device=batch.tokens.device)
        positions = self.positions[which]

        def reading(name: str) -> Reading:
            if name.endswith("hook_v"):
                return lambda values: values.to(self.kind)
            if name.endswith("hook_pattern"):
                return lambda pattern: pattern[prompts, :, positions].to(self.kind)
            return lambda activation: activation[prompts, positions].to(self.kind)

        readings = {name: reading(name) for name in self.names}
        acts, final = record(self.model, batch.tokens, readings, attention_mask=batch.attention_mask)
        last, final = final, final[prompts, positions].to(self.kind)
        check_final(final)
        check_readout(self.model, last, (prompts, positions))
        for layer in layers_between(self.model, self.W_O):
            z, attn_out = (acts[f"blocks.{layer}.{name}"] for name in ("attn.hook_z", "hook_attn_out"))
            check_heads_add_up(self.model, layer, z.transpose(0, 1), attn_out, acts.get(post_scale_name(layer)))
        return acts, final

    def read(self, which: slice, recorded: Recorded) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read prompts that were run along the directions of their answers: rows of each, and sums over neurons."""
        acts, final = recorded
        u, constant = self._answers(*self.metric.terms(which))
        return self.parts(acts, final, self.toward(final, u), constant)

    def _answers(
        self, answers: Tensor, weights: Tensor
    ) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, " prompt"]]:
        """Return the direction behind the final norm that the answers stand for, and what biases add along it."""
        readout = self.readout
        columns, b_U = readout.W_U.detach().T[answers].to(self.kind), readout.b_U.detach()[answers].to(self.kind)
        by = weights.to(self.kind).to(columns.device)
        u = (columns * by[..., None]).sum(1)
        constant = (b_U * by).sum(1) + self.metric.constant
        if readout.bias is not None:
            constant = constant + u @ readout.bias.detach().to(self.kind)
        return u, constant


def values_along(
    v: Float[Tensor, "prompt key_pos group d_head"], onto: Float[Tensor, "prompt head d_head"]
) -> Float[Tensor, "prompt head key_pos"]:
    """Return what each position's value adds through each head, were it attended to fully; heads may share values."""
    by_group = onto.unflatten(1, (v.shape[2], -1))
    return torch.einsum("pkge,pgre->pgrk", v, by_group).flatten(1, 2)
