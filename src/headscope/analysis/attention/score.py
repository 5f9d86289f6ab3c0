"""`attribute_attention`: one attention score, split exactly by what made the query and what made the key.

Before the softmax a score is a product of a query and a key, `q . k / attn_scale`, and both are linear in the residual
stream once the scales of norms are frozen: that of the norm in front of the layer, those of norms on queries and keys,
and those of latents (DeepSeek). The stream in turn is the sum of what the embeddings, each earlier head, mixer and MLP
have written. So

    score = sum_ij (query that component i gives) . (key that component j gives) / attn_scale

without a remainder, whatever the family: rotary positions are rotations of both sides, at their positions, and biases
are one more part of each side. What is frozen is a scale that depends on the whole stream, so a part says what the
component adds to this score, not what the score would be without it. ALiBi adds a penalty that no component has a share
in; a soft cap comes behind the sum, and the parts are of the score before it.

The parts are compared with the score that the model's own forward pass shows, and nothing is returned if their sum is
another: a hook between the stream and the scores, or a module in a block's place, cannot go unnoticed.

Cost: one forward pass up to the layer, and for `C` components `C^2` products of `d_head` numbers a prompt.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.attention.score_result import OWN, AttentionAttribution
from headscope.analysis.core.components import component_label, component_of, components
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import RunInfo
from headscope.analysis.prompts.attribution import values_along
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Positions
from headscope.analysis.recording.record import record
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.activations.cache import ActivationCache
from headscope.model.block import TransformerBlock
from headscope.model.parts.attention import Attention
from headscope.model.parts.masks import alibi_penalties, token_positions
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["attribute_attention"]

_TOLERANCE = 64  # roundings of the parts' magnitudes by which their sum may miss the score


@torch.no_grad()
def attribute_attention(
    model: HookedTransformer,
    data: Task | Int[Tensor, "prompt pos"] | Int[Tensor, " pos"],
    head: tuple[int, int] | str,
    query_pos: Any = "end",
    key_pos: Any = 0,
    *,
    against: Any = None,
    sources: bool = True,
    progress: bool = True,
) -> AttentionAttribution:
    """Split a head's attention score into pairs of what made the query and what made the key.

    Args:
        model: The model; hooks on it stay in force as long as the parts still sum to the score.
        data: A task, over whose prompts means are taken; or tokens without padding.
        head: The head, `(9, 9)` or `"9.9"`.
        query_pos: Where it looks from: a number (negative ones count back from the last token), a tensor with one
            position a prompt, `"end"`, or another name that the task has (`"S2"`).
        key_pos: Where it looks, in the same words.
        against: A second position: then all numbers are of the score at `key_pos` less the score there, which says why
            the head looks here and not there.
        sources: Also split what each earlier head gives by the position that it had it from.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a head, a position or a pair of positions that the model or the prompts do not have, a
            query that may not see the key, or a model on which the parts do not sum to the score.
        NotFiniteError: If a score is not finite.
        UnknownNameError: For a position that the task has no name for.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> why = attribute_attention(model, task, "3.2", "end", "IO", against="S1", progress=False)
        >>> print(why.top(3))
    """
    layer, number = _the_head(model, head)
    task = _as_task(model, data)
    asked = {"query": query_pos, "key": key_pos} | ({} if against is None else {"against": against})
    places = {side: Positions.of(task, [at]) for side, at in asked.items()}
    at = torch.cat([each.at for each in places.values()]).T  # [prompt, query and keys]
    sums = _Sums()
    with progress_bar(len(task), "attention", shown=progress) as bar:
        for rows in torch.arange(len(task)).split(_prompts_at_once(model, task, layer)):
            sums.add(_ScoreRun(model, task[rows], layer, number, at[rows.to(at.device)], sources), sources)
            bar.update(len(rows))
    options = {"head": component_label(layer, number), **{side: str(each) for side, each in places.items()}}
    info = RunInfo(model.cfg.model_name, model.weight_processing, task.description, len(task), len(task), options)
    return sums.result(info, task, at)


def _the_head(model: HookedTransformer, head: tuple[int, int] | str) -> tuple[int, int]:
    (component,) = components(model.cfg, [head])
    if component.head is None:
        raise InvalidInputError(f"only a head attends; {component.label} is none.")
    return component.layer, component.head


def _as_task(model: HookedTransformer, data: Any) -> Task:
    """Return the prompts as a task on the model's device; of tokens, one whose answers nobody reads."""
    if isinstance(data, Task):
        return data.to(model.W_E.device)
    if not isinstance(data, Tensor) or data.ndim not in (1, 2) or not data.numel() or data.is_floating_point():
        found = f"a tensor {list(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise InvalidInputError(
            f"data must be a Task, or tokens [prompt, pos]; got {found}. For text: model.to_tokens."
        )
    tokens = torch.atleast_2d(data).to(model.W_E.device)
    text = str if model.tokenizer is None else model.to_single_str_token
    n, length = tokens.shape
    return Task(
        clean_tokens=tokens,
        correct=tokens[:, -1:],
        incorrect=tokens[:, -1:],
        attention_mask=torch.ones_like(tokens, dtype=torch.bool),
        positions=torch.full((n,), length - 1, device=tokens.device),
        corrupted_tokens=None,
        prompts=tuple("".join(map(text, row)) for row in tokens.tolist()),
        str_tokens=tuple(tuple(map(text, row)) for row in tokens.tolist()),
        answers=(("", ""),) * n,
        labels=("",) * n,
    )


def _prompts_at_once(model: HookedTransformer, task: Task, layer: int) -> int:
    budget = Budget.of(model.W_E.device)
    n_components = 3 + layer * (model.cfg.n_heads + 2)
    held = n_components * (8 * n_components + 3 * 4 * model.cfg.d_model)  # pairs; stacks and what is made of them
    return max(1, min(budget.work_bytes // held, budget.batch_tokens // task.clean_tokens.shape[1]))


class _Side(NamedTuple):
    """Queries, or keys at one position, as scores compare them.

    Attributes:
        parts: Of each part of the stream, and last of an empty stream.
        toward: Gives the direction along which the stream is read there, for what they are compared with.
    """

    parts: Float[Tensor, "part prompt d_head"]
    toward: Callable[[Tensor], Tensor]


class _ScoreRun:
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
        sources: bool,
    ) -> None:
        self.model, self.cfg, self.task, self.layer, self.head, self.at = model, model.cfg, task, layer, head, at
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
        self._check_seen()
        self._record(sources)
        self._split()

    def _check_seen(self) -> None:
        allowed = self.attn.allowed(self.length, self.length, self.mask)[:, 0]
        seen = allowed.expand(len(self.task), -1, -1)[self.prompts, self.at[:, :1], self.at[:, 1:]]
        if not bool(seen.all()):
            prompt, key = (~seen).nonzero()[0].tolist()
            query, hidden = int(self.at[prompt, 0]), int(self.at[prompt, 1 + key])
            window = f", in a window of {self.cfg.window_size}" if self.attn.attn_type == "local" else ""
            raise InvalidInputError(
                f"head {component_label(self.layer, self.head)} cannot look from position {query} of a prompt to "
                f"{hidden}: its attention is {self.cfg.attention_dir}{window}. Choose a key that the query can see."
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
        self.attention = self.acts[self.name + "hook_pattern"]

    def _split(self) -> None:
        stack, self.labels = self._stack()
        if self.cfg.positional_embedding_type == "shortformer":
            self.labels.append("pos_embed")
        self.labels.append(OWN)
        self.query, *self.keys = (
            self._side("k" if number else "q", stack, number) for number in range(self.at.shape[1])
        )
        self.each = [self._products(self.query.parts, key.parts) for key in self.keys]
        penalties = self._penalties()
        self._check(penalties)
        self.pairs, self.penalty = self._net(self.each), self._net(list(penalties.unbind(1)))

    def _products(self, queries: Tensor, keys: Tensor) -> Float[Tensor, "prompt query_part key_part"]:
        return torch.einsum("ipe,jpe->pij", queries, keys) / self.attn.attn_scale

    @staticmethod
    def _net(of_keys: Sequence[Tensor]) -> Tensor:
        """What is said of the key, or of the first one less the second."""
        return of_keys[0] - of_keys[1] if len(of_keys) == 2 else of_keys[0]

    def _stack(self) -> tuple[Float[Tensor, "part prompt looked_at d_model"], list[str]]:
        """The stream in front of the layer as a sum of what was written to it, in the order of writing."""
        cache = ActivationCache(self.acts, self.model)
        stack, labels = cache.get_full_resid_decomposition(self.layer, expand_neurons=False, return_labels=True)
        named = list(map(_label, labels))
        order = sorted(range(len(named)), key=lambda number: _place(named[number]))
        return stack[order], [named[number] for number in order]

    def _side(self, name: Literal["q", "k"], stack: Tensor, number: int) -> _Side:
        whole = self.acts[f"blocks.{self.layer}.hook_resid_pre"][:, number]
        places = token_positions(self.task.attention_mask)[self.prompts[:, 0], self.at[:, number]]
        extra = self.model.W_pos[places] if self.cfg.positional_embedding_type == "shortformer" else None
        names = [each for each in self.model.hook_dict if self._is_scale(each)]
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
        if not bool(shown.isfinite().all()):
            raise NotFiniteError(
                f"a score of head {component_label(self.layer, self.head)} is not finite. Check the weights, and any "
                "hooks on the model."
            )
        sums = torch.stack([pairs.sum((1, 2)) for pairs in self.each], 1)
        sizes = torch.stack([pairs.abs().sum((1, 2)) for pairs in self.each], 1) + penalties.abs()
        expected = (cap * torch.tanh(sums / cap) if cap > 0 else sums) + penalties
        off = (expected - shown).abs()
        if bool((off > _TOLERANCE * torch.finfo(shown.dtype).eps * sizes).any()):
            worst = int(off.flatten().argmax())
            raise InvalidInputError(
                f"what the stream consists of makes a score of {float(expected.flatten()[worst]):.4g}, and head "
                f"{component_label(self.layer, self.head)} shows {float(shown.flatten()[worst]):.4g}: a hook, or a "
                "module of somebody else's, stands between. Take it off for this analysis (model.reset_hooks())."
            )

    # By head and source

    def sources(self) -> tuple[Float[Tensor, "prompt layer head key_pos"], Float[Tensor, "prompt layer head key_pos"]]:
        """Return what each earlier head gives the query and the key from each position it had it from."""
        whole = [side.parts.sum(0) for side in (self.query, *self.keys)]
        of_query = self._by_source(0, self.query.toward(self._net(whole[1:])))
        of_keys = [self._by_source(1 + number, key.toward(whole[0])) for number, key in enumerate(self.keys)]
        return of_query, self._net(of_keys)

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


class _Sums:
    """What is kept of the runs: sums over prompts of pairs, rows of everything else."""

    def __init__(self) -> None:
        self.n = 0
        self.pairs: Tensor | None = None
        self.squares: Tensor | None = None
        self.rows: dict[str, list[Tensor]] = {}
        self.labels: list[str] = []

    def add(self, run: _ScoreRun, sources: bool) -> None:
        pairs = run.pairs.double()
        self.labels, self.n = run.labels, self.n + len(pairs)
        self.pairs = pairs.sum(0) if self.pairs is None else self.pairs + pairs.sum(0)
        squares = pairs.square().sum(0)
        self.squares = squares if self.squares is None else self.squares + squares
        rows = {
            "scores": pairs.sum((1, 2)) + run.penalty,
            "penalties": run.penalty,
            "attention": run.attention,
            "query_parts": pairs.sum(2),
            "key_parts": pairs.sum(1),
        }
        if sources:
            rows["query_sources"], rows["key_sources"] = run.sources()
        for name, values in rows.items():
            self.rows.setdefault(name, []).append(values.to(run.pairs.dtype))

    def result(self, info: RunInfo, task: Task, at: Int[Tensor, "prompt looked_at"]) -> AttentionAttribution:
        assert self.pairs is not None and self.squares is not None
        rows = {name: torch.cat(values) for name, values in self.rows.items()}
        means = self.pairs / self.n
        spread = (self.squares / self.n - means.square()).clamp(min=0)
        errors = (spread / (self.n - 1)).sqrt() if self.n > 1 else torch.full_like(means, torch.nan)
        kind = rows["scores"].dtype
        return AttentionAttribution(
            info=info,
            pairs=means.to(kind),
            errors=errors.to(kind),
            scores=rows["scores"],
            penalties=rows["penalties"],
            attention=rows["attention"],
            query_parts=rows["query_parts"],
            key_parts=rows["key_parts"],
            query_sources=rows.get("query_sources"),
            key_sources=rows.get("key_sources"),
            looked_at=at,
            attention_mask=task.attention_mask,
            token_strings=tuple(string for row in task.str_tokens for string in row),
            part_labels=tuple(self.labels),
        )


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
