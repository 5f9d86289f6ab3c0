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

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.attention.score_result import OTHERS, AttentionAttribution
from headscope.analysis.attention.score_run import ScoreRun
from headscope.analysis.core.components import component_label, components
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import RunInfo
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Positions
from headscope.analysis.recording.record import record
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget, wide

__all__ = ["attribute_attention"]


@torch.no_grad()
def attribute_attention(
    model: HookedTransformer,
    data: Task | Int[Tensor, "prompt pos"] | Int[Tensor, " pos"],
    head: tuple[int, int] | str,
    query_pos: Any = "end",
    key_pos: Any = None,
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
        key_pos: Where it looks, in the same words; default: where each prompt's query looks most.
        against: A second position: then all numbers are of the score at `key_pos` less the score there, which says why
            the head looks here and not there. `"others"` for the mean of all other keys that the query sees. The
            softmax does not notice what is added to all keys alike, so a score by itself says less than a difference.
        sources: Also split what each earlier head gives by the position that it had it from.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a head, a position or a pair of positions that the model or the prompts do not have, a
            query that may not see the key, a model in half precision, or one on which the parts do not sum to the
            score.
        NotFiniteError: If a score is not finite.
        UnknownNameError: For a position that the task has no name for.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> why = attribute_attention(model, task, "3.2", "end", "S2", against="IO", progress=False)
        >>> print(why.top(3, by="key_parts"))
                 key side
        mlp0     +1.5771
        0.3      +0.9775
        1.1      +0.6450
    """
    if torch.finfo(model.cfg.dtype).bits < 32:
        raise InvalidInputError(
            f"the model is in {str(model.cfg.dtype).removeprefix('torch.')}, whose rounding of a score is as large as "
            "most of its parts. Split the score of a copy in float32: model.to(torch.float32)."
        )
    layer, number = _the_head(model, head)
    task = _as_task(model, data)
    places = {"query": Positions.of(task, [query_pos])}
    if key_pos is None:
        most = _looks_most(model, task, layer, number, places["query"].at[0])
        key_pos = int(most) if len(task) == 1 else most
    others = isinstance(against, str) and against == OTHERS
    asked = {"key": key_pos} | ({} if against is None or others else {"against": against})
    places |= {side: Positions.of(task, [at]) for side, at in asked.items()}
    at = torch.cat([each.at for each in places.values()]).T  # [prompt, query and keys]
    sums = _Sums()
    n_looked_at = at.shape[1] + (task.clean_tokens.shape[1] if others else 0)
    with progress_bar(len(task), "attention", shown=progress) as bar:
        for rows in torch.arange(len(task)).split(_prompts_at_once(model, task, layer, n_looked_at)):
            run = ScoreRun(model, task[rows], layer, number, at[rows.to(at.device)], others=others, sources=sources)
            sums.add(run, sources)
            bar.update(len(rows))
    options = {"head": component_label(layer, number), **{side: str(each) for side, each in places.items()}}
    options |= {"against": OTHERS} if others else {}
    info = RunInfo(model.cfg.model_name, model.weight_processing, task.description, len(task), len(task), options)
    return sums.result(info, task, at)


def _the_head(model: HookedTransformer, head: tuple[int, int] | str) -> tuple[int, int]:
    (component,) = components(model.cfg, [head])
    if component.head is None:
        raise InvalidInputError(f"only a head attends; {component.label} is none.", code="HS-HEADS-05")
    return component.layer, component.head


def _as_task(model: HookedTransformer, data: Any) -> Task:
    """Return the prompts as a task on the model's device; of tokens, one that measures nothing."""
    if isinstance(data, Task):
        return data.to(model.W_E.device)
    if not isinstance(data, Tensor) or data.ndim not in (1, 2) or not data.numel() or data.is_floating_point():
        found = f"a tensor {list(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise InvalidInputError(
            f"data must be a Task, or tokens [prompt, pos]; got {found}. For text: model.to_tokens.",
            code="HS-TOKENS-02",
        )
    tokens = torch.atleast_2d(data).to(model.W_E.device)
    return Task.from_tokens(tokens, metric=_nothing, tokenizer=model.tokenizer)


def _nothing(logits: Tensor) -> float:
    """Measure nothing: a score is no matter of what is predicted."""
    return 0.0


def _looks_most(
    model: HookedTransformer, task: Task, layer: int, head: int, query_at: Int[Tensor, " prompt"]
) -> Int[Tensor, " prompt"]:
    name = f"blocks.{layer}.attn.hook_pattern"
    found = []
    for rows in torch.arange(len(task)).split(_prompts_at_once(model, task, layer)):
        some, at = task[rows], query_at[rows.to(query_at.device)]

        def most(pattern: Tensor, at: Tensor = at) -> Int[Tensor, " prompt"]:
            return pattern[torch.arange(len(at), device=at.device), head, at].argmax(-1)

        kept = record(
            model, some.clean_tokens, {name: most}, stop_at_layer=layer + 1, attention_mask=some.attention_mask
        ).kept
        found.append(kept[name])
    return torch.cat(found)


def _prompts_at_once(model: HookedTransformer, task: Task, layer: int, n_looked_at: int = 2) -> int:
    budget = Budget.of(model.W_E.device)
    n_parts = 3 + layer * (model.cfg.n_heads + 2)
    held = n_parts * (8 * n_parts + 4 * n_looked_at * (model.cfg.d_model + model.cfg.d_head))  # pairs; the stream
    return max(1, min(budget.work_bytes // held, budget.batch_tokens // task.clean_tokens.shape[1]))


class _Sums:
    """Sums over prompts of pairs, and rows of everything else that is kept of the runs."""

    def __init__(self) -> None:
        self.n = 0
        self.pairs: Tensor | None = None
        self.squares: Tensor | None = None
        self.rows: dict[str, list[Tensor]] = {}
        self.labels: list[str] = []

    def add(self, run: ScoreRun, sources: bool) -> None:
        pairs = wide(run.pairs)
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
        errors = (spread / (self.n - 1)).sqrt() if self.n > 1 else None
        kind = rows["scores"].dtype
        return AttentionAttribution(
            info=info,
            pairs=means.to(kind),
            errors=None if errors is None else errors.to(kind),
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
