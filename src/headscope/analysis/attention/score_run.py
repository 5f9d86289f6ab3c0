"""`ScoreRun`: a forward pass up to a layer, and the score of one of its heads taken apart."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.attention.score_result import OWN
from headscope.analysis.core.components import component_label, component_of
from headscope.analysis.prompts.direct_effects import values_along
from headscope.analysis.prompts.task import Task
from headscope.analysis.recording.record import record
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.activations.cache import ActivationCache
from headscope.model.block import TransformerBlock
from headscope.model.parts.attention import Attention
from headscope.model.parts.masks import alibi_penalties, token_positions
from headscope.model.transformer import HookedTransformer

__all__ = ["ScoreRun"]

_TOLERANCE = 64  # roundings of the parts' magnitudes by which their sum may miss the score


class _Side(NamedTuple):
    """Queries, or keys at one position, as scores compare them.

    Attributes:
        parts: Of each part of the stream, and last of an empty stream.
        toward: Gives the direction along which the stream is read there, for what they are compared with.
    """

    parts: Float[Tensor, "part prompt d_head"]
    toward: Callable[[Tensor], Tensor]


class ScoreRun:
    """A batch of prompts, run up to a layer, and the score of one of its heads taken apart.

    Attributes:
        labels: The parts of both sides.
        pairs: The score, or the difference of two, in pairs of parts.
        penalty: What ALiBi adds to it.
        attention: The attention to the key, or the keys.
    """

    def __init__(
        self,
        model: HookedTransformer,
        task: Task,
        layer: int,
        head: int,
        at: Int[Tensor, "prompt looked_at"],
        *,
        others: bool,
        sources: bool,
    ) -> None:
        self.model, self.cfg, self.task, self.layer, self.head = model, model.cfg, task, layer, head
        block = model.blocks[layer]
        assert isinstance(block, TransformerBlock)
        if not isinstance(block.attn, Attention):
            raise InvalidInputError(
                f"blocks.{layer}.attn is a {type(block.attn).__name__}, which does not say what its scores are made of."
            )
        self.block, self.attn = block, block.attn
        self.length = task.clean_tokens.shape[1]
        self.prompts = torch.arange(len(task), device=at.device)[:, None]
        self.mask = None if bool(task.attention_mask.all()) else task.attention_mask
        self.at, self.weights = self._looked_at(at, others)
        self.n_keys = at.shape[1] - 1
        self._record(sources)
        self._split()

    def _looked_at(
        self, at: Int[Tensor, "prompt looked_at"], others: bool
    ) -> tuple[Int[Tensor, "prompt read"], Float[Tensor, "prompt key"]]:
        """Return the positions of the query and all keys that are read, and the weights of these keys' scores."""
        self._check_seen(at, seen := self._seen_from(at[:, 0]))
        weights = torch.ones_like(at[:, 1:], dtype=self.cfg.dtype)
        weights[:, 1:] = -1
        if not others:
            return at, weights
        # Behind the key, all positions: each of the others that the query sees has its share of the mean.
        everywhere = torch.arange(self.length, device=at.device).expand(len(at), -1)
        rest = seen & (everywhere != at[:, 1:])
        if not bool(rest.any(1).all()):
            raise InvalidInputError(
                f"from position {int(at[int(rest.any(1).int().argmin()), 0])} of a prompt there is no other key to "
                "see: leave against='others' out, or ask for a later query."
            )
        return torch.cat([at, everywhere], 1), torch.cat([weights, -rest.to(weights) / rest.sum(1, keepdim=True)], 1)

    def _seen_from(self, query_at: Int[Tensor, " prompt"]) -> Bool[Tensor, "prompt pos"]:
        allowed = self.attn.allowed(self.length, self.length, self.mask)[:, 0]
        return allowed.expand(len(self.task), -1, -1)[self.prompts[:, 0], query_at]

    def _check_seen(self, at: Int[Tensor, "prompt looked_at"], seen: Bool[Tensor, "prompt pos"]) -> None:
        hidden = ~seen.gather(1, at[:, 1:])
        if bool(hidden.any()):
            prompt, key = hidden.nonzero()[0].tolist()
            window = f", in a window of {self.cfg.window_size}" if self.attn.attn_type == "local" else ""
            raise InvalidInputError(
                f"head {component_label(self.layer, self.head)} cannot look from position {int(at[prompt, 0])} of a "
                f"prompt to {int(at[prompt, 1 + key])}: its attention is {self.cfg.attention_dir}{window}. Choose a "
                "key that the query can see."
            )

    def _record(self, sources: bool) -> None:
        def here(activation: Tensor) -> Tensor:
            return activation[self.prompts, self.at].clone()

        def from_here(pattern: Tensor) -> Float[Tensor, "prompt looked_at head key_pos"]:
            return pattern.transpose(1, 2)[self.prompts, self.at].clone()

        def of_query(shown: Tensor) -> Float[Tensor, "prompt key"]:
            return shown[self.prompts, self.head, self.at[:, :1], self.at[:, 1:]].clone()

        kinds = ["attn.hook_z", "attn.hook_gate", "hook_mlp_out", "hook_mixer_out", "ln1_post.hook_scale"]
        before = [f"blocks.{layer}." for layer in range(self.layer)]
        names = ["hook_embed", "hook_pos_embed", f"blocks.{self.layer}.hook_resid_pre"]
        readings: dict[str, Any] = dict.fromkeys([*names, *(name + kind for name in before for kind in kinds)], here)
        if sources:
            for name in before:
                readings |= {name + "attn.hook_pattern": from_here, name + "attn.hook_v": torch.clone}
        self.name = f"blocks.{self.layer}.attn."
        readings |= {self.name + "hook_attn_scores": of_query, self.name + "hook_pattern": of_query}
        options: dict[str, Any] = {"attention_mask": self.mask} if self.mask is not None else {}
        self.acts = record(self.model, self.task.clean_tokens, readings, stop_at_layer=self.layer + 1, **options).kept
        self.attention = self.acts[self.name + "hook_pattern"][:, : self.n_keys]

    def _split(self) -> None:
        stack, self.labels = self._stack()
        if self.cfg.positional_embedding_type == "shortformer":
            self.labels.append("pos_embed")
        self.labels.append(OWN)
        scales = [name for name in self.model.hook_dict if self._is_scale(name)]
        self.query = self._side("q", stack, 0, scales)
        self.keys = [self._side("k", stack, number, scales) for number in range(1, self.at.shape[1])]
        penalties = self._penalties()
        self._check(penalties)
        # A score is linear in the key: one product gives what is said of all keys together.
        key = self._weighted([side.parts for side in self.keys])
        self.pairs = torch.einsum("ipe,jpe->pij", self.query.parts, key) / self.attn.attn_scale
        self.penalty = (self.weights * penalties).sum(1)

    def _weighted(
        self, of_keys: Sequence[Float[Tensor, "*part prompt d_head"]]
    ) -> Float[Tensor, "*part prompt d_head"]:
        return torch.stack([weight[:, None] * each for weight, each in zip(self.weights.T, of_keys, strict=True)]).sum(
            0
        )

    def _stack(self) -> tuple[Float[Tensor, "part prompt looked_at d_model"], list[str]]:
        """The stream in front of the layer as a sum of what was written to it, in the order of writing."""
        cache = ActivationCache(self.acts, self.model)
        stack, labels = cache.get_full_resid_decomposition(self.layer, expand_neurons=False, return_labels=True)
        named = list(map(_label, labels))
        order = sorted(range(len(named)), key=lambda number: _place(named[number]))
        return stack[order], [named[number] for number in order]

    def _side(self, name: Literal["q", "k"], stack: Tensor, number: int, names: Sequence[str]) -> _Side:
        """Return the queries or keys at one of the positions looked at, with norms whose scales have these names."""
        whole = self.acts[f"blocks.{self.layer}.hook_resid_pre"][:, number]
        places = token_positions(self.task.attention_mask)[self.prompts[:, 0], self.at[:, number]]
        extra = self.model.W_pos[places] if self.cfg.positional_embedding_type == "shortformer" else None
        scales: dict[str, Tensor] = {}

        def keep(scale: Tensor, hook: Any) -> None:
            scales[hook.name] = scale.detach().clone()

        def freeze(scale: Tensor, hook: Any) -> Tensor:
            kept = scales[hook.name]
            return kept.repeat(len(scale) // len(kept), *[1] * (kept.ndim - 1))

        def made(stream: Tensor, added: Tensor | None = None) -> Float[Tensor, "row d_head"]:
            read, of_whole, times = self.block.ln1(stream), None, len(stream) // len(whole)
            if self.cfg.clip_qkv is not None:
                of_whole = (self.block.ln1(whole) + (0 if extra is None else extra)).repeat(times, 1)
            read = read if added is None else read + added
            return self.attn.compared(name, self.head, read, places.repeat(times), self.length, of_whole)

        def toward(other: Float[Tensor, "prompt d_head"]) -> Float[Tensor, "prompt d_model"]:
            with torch.enable_grad(), self.model.hooks(fwd_hooks=[(each, freeze) for each in names]):
                stream = whole.clone().requires_grad_()
                score = (made(stream, extra) * other).sum() / self.attn.attn_scale
                return torch.autograd.grad(score, stream)[0]

        with self.model.hooks(fwd_hooks=[(each, keep) for each in names]):
            made(whole, extra)
        empty = torch.zeros_like(whole)
        with self.model.hooks(fwd_hooks=[(each, freeze) for each in names]):
            own = made(empty)
            parts = [*made(stack[:, :, number].flatten(0, 1)).unflatten(0, (len(stack), -1)) - own]
            parts += [] if extra is None else [made(empty, extra) - own]
        return _Side(torch.stack([*parts, own]), toward)

    def _is_scale(self, name: str) -> bool:
        prefixes = (f"blocks.{self.layer}.ln1.", self.name)
        return name.startswith(prefixes) and name.endswith("hook_scale")

    def _penalties(self) -> Float[Tensor, "prompt key"]:
        like = self.acts[self.name + "hook_attn_scores"]
        if self.cfg.positional_embedding_type != "alibi":
            return torch.zeros_like(like)
        penalties = alibi_penalties(self.cfg, self.length, self.length, self.mask, like)
        of_all = penalties.expand(len(self.task), -1, -1, -1)
        return of_all[self.prompts, self.head, self.at[:, :1], self.at[:, 1:]]

    def _check(self, penalties: Float[Tensor, "prompt key"]) -> None:
        """Compare the sums of parts with the scores that the model's own pass has shown."""
        shown, cap = self.acts[self.name + "hook_attn_scores"], self.cfg.attn_scores_soft_cap
        if not bool((shown.isfinite() | (self.weights == 0)).all()):
            raise NotFiniteError(
                f"a score of head {component_label(self.layer, self.head)} is not finite. Check the weights, and any "
                "hooks on the model.",
                code="HS-FINITE-02",
            )
        query, scale = self.query.parts, self.attn.attn_scale
        sums = torch.stack([(query.sum(0) * key.parts.sum(0)).sum(-1) / scale for key in self.keys], 1)
        sizes = [(query.abs().sum(0) * key.parts.abs().sum(0)).sum(-1) / scale for key in self.keys]
        expected = (cap * torch.tanh(sums / cap) if cap > 0 else sums) + penalties
        allowed = _TOLERANCE * torch.finfo(shown.dtype).eps * (torch.stack(sizes, 1) + penalties.abs())
        off = torch.where(self.weights == 0, 0.0, (expected - shown).abs() - allowed)
        if bool((off > 0).any()):
            worst = int(off.flatten().argmax())
            raise InvalidInputError(
                f"what the stream consists of makes a score of {float(expected.flatten()[worst]):.4g}, and head "
                f"{component_label(self.layer, self.head)} shows {float(shown.flatten()[worst]):.4g}: a hook, or a "
                "module of somebody else's, stands between. Take it off for this analysis (model.reset_hooks())."
            )

    # By head and source

    def sources(self) -> tuple[Float[Tensor, "prompt layer head key_pos"], Float[Tensor, "prompt layer head key_pos"]]:
        """Return what each earlier head gives the query and the key from each position it had it from."""
        query, key = self.query.parts.sum(0), self._weighted([side.parts.sum(0) for side in self.keys])
        of_keys = [
            self._by_source(1 + number, side.toward(weight[:, None] * query))
            for number, (weight, side) in enumerate(zip(self.weights.T, self.keys, strict=True))
        ]
        return self._by_source(0, self.query.toward(key)), torch.stack(of_keys).sum(0)

    def _by_source(self, number: int, direction: Tensor) -> Float[Tensor, "prompt layer head key_pos"]:
        shape = (len(self.task), self.layer, self.cfg.n_heads, self.length)
        found = direction.new_full(shape, torch.nan)
        for layer in self.cfg.layers_with("attn"):
            if layer >= self.layer:
                break
            name = f"blocks.{layer}."
            scale = self.acts.get(name + "ln1_post.hook_scale")
            onto = torch.einsum(
                "hed,pd->phe",
                self.model.output_weight(layer).to(direction.dtype),
                direction if scale is None else direction / scale[:, number],
            )
            gate = self.acts.get(name + "attn.hook_gate")
            onto = onto if gate is None else onto * gate[:, number]
            pattern = self.acts[name + "attn.hook_pattern"][:, number]
            found[:, layer] = pattern * values_along(self.acts[name + "attn.hook_v"], onto)
        return found


def _label(label: str) -> str:
    """The house's label of a part that the cache names."""
    head = re.fullmatch(r"L(\d+)H(\d+)", label)
    if head is not None:
        return component_label(int(head[1]), int(head[2]))
    whole = re.fullmatch(r"(\d+)_(mlp|mixer)_out", label)
    return label if whole is None else component_label(int(whole[1]), None, is_mixer=whole[2] == "mixer")


def _place(label: str) -> tuple[int, tuple[int, bool, bool, int]]:
    """The order of writing: embeddings, components, and the biases behind them."""
    component = component_of(label)
    first = (0, False, False, 0)
    return (1, component.place) if component is not None else (2 if label == "bias" else 0, first)
