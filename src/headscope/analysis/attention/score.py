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
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.attention.score_result import OTHERS, AttentionAttribution
from headscope.analysis.attention.score_run import ScoreRun
from headscope.analysis.core.components import component_label, components
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import RunInfo
from headscope.analysis.prompts.positions import Positions
from headscope.analysis.prompts.task import Task
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
        mlp0     +1.5771 ± 0.16...
        0.3      +0.9775 ± 0.06...
        1.1      +0.6450 ± 0.13...
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
    sums, order = _Sums(), torch.arange(len(task), device="cpu")
    clusters = order if task.clusters is None else task.clusters.cpu()
    order = clusters.argsort(stable=True)  # so that a cluster's prompts come one after the other
    n_looked_at = at.shape[1] + (task.clean_tokens.shape[1] if others else 0)
    with progress_bar(len(task), "attention", shown=progress) as bar:
        for rows in order.split(_prompts_at_once(model, task, layer, n_looked_at)):
            run = ScoreRun(model, task[rows], layer, number, at[rows.to(at.device)], others=others, sources=sources)
            sums.add(run, clusters[rows], sources)
            bar.update(len(rows))
    options = {"head": component_label(layer, number), **{side: str(each) for side, each in places.items()}}
    options |= {"against": OTHERS} if others else {}
    info = RunInfo(model.cfg.model_name, model.weight_processing, task.description, len(task), len(task), options)
    return sums.result(info, task, at, order.argsort())


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
    """Sums of pairs over clusters of prompts, and rows of everything else that is kept of the runs.

    Clusters come one after the other: of each only the sum is held while its prompts are added, which may be in several
    batches, and then squares and products of it. Pairs of each prompt would be too many to keep.
    """

    def __init__(self) -> None:
        self.n, self.n_clusters = 0, 0
        # Over clusters: of sums of pairs S, their squares, and with the numbers of prompts c, of c S and of c c.
        self.moments: list[Tensor | float] = [0.0, 0.0, 0.0, 0.0]
        self._open: tuple[Tensor, Tensor, Tensor] | None = None  # number, sum and prompts of the last cluster
        self.rows: dict[str, list[Tensor]] = {}
        self.labels: list[str] = []

    def add(self, run: ScoreRun, clusters: Int[Tensor, " prompt"], sources: bool) -> None:
        pairs = wide(run.pairs)
        self.labels, self.n = run.labels, self.n + len(pairs)
        more = [clusters.to(pairs.device), pairs, pairs.new_ones(len(pairs))]
        if self._open is not None:
            more = [torch.cat(each) for each in zip(self._open, more, strict=True)]
        numbers, which = more[0].unique_consecutive(return_inverse=True)
        sums, counts = (each.new_zeros(len(numbers), *each.shape[1:]).index_add_(0, which, each) for each in more[1:])
        self._open = numbers[-1:], sums[-1:], counts[-1:]
        self._close(sums[:-1], counts[:-1])
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

    def _close(self, sums: Float[Tensor, "cluster query_part key_part"], counts: Float[Tensor, " cluster"]) -> None:
        of_each = counts[:, None, None]
        more = (sums, sums.square(), of_each * sums, of_each.square())
        self.moments = [before + each.sum(0) for before, each in zip(self.moments, more, strict=True)]
        self.n_clusters += len(sums)

    def result(
        self, info: RunInfo, task: Task, at: Int[Tensor, "prompt looked_at"], order: Int[Tensor, " prompt"]
    ) -> AttentionAttribution:
        """Return the result, the rows in the order in which prompts are in the task."""
        assert self._open is not None
        self._close(*self._open[1:])
        rows = {name: torch.cat(values)[order] for name, values in self.rows.items()}
        total, squares, products, squared_counts = map(torch.as_tensor, self.moments)
        means = total / self.n
        # The error of a ratio of sums over clusters, as in `core.stats`.
        spread = (squares - 2 * means * products + means.square() * squared_counts).clamp(min=0) / self.n**2
        n = self.n_clusters
        errors = (spread * n / (n - 1)).sqrt() if n > 1 else None
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
            clusters=task.clusters,
        )
