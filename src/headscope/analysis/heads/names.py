"""The places of two names in the prompts of a task, and attention between them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.model.hooks import HookPoint
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["ORDERS", "Looks", "attention_between", "name_places", "orders_of"]

ORDERS = ("ABBA", "BABA")


def name_places(task: Task) -> dict[str, Int[Tensor, " prompt"]]:
    """Return the positions of `IO`, `S1`, `S2` and `end` in each prompt: the task's own, or found from its answers.

    Raises:
        InvalidInputError: If an answer is not in its prompt, or the wrong one not twice; it says which prompt.
    """
    if {"IO", "S1", "S2"} <= set(task.word_idx):
        return {**{name: task.word_idx[name] for name in ("IO", "S1", "S2")}, "end": task.positions}
    found: dict[str, list[int]] = {"IO": [], "S1": [], "S2": []}
    for row in range(len(task)):
        tokens = task.clean_tokens[row, : int(task.positions[row]) + 1].tolist()
        right, wrong = (
            [at for at, token in enumerate(tokens) if token == int(answers[row, 0])]
            for answers in (task.correct, task.incorrect)
        )
        if not right or len(wrong) < 2:
            raise InvalidInputError(
                f"prompt {row} ({task.prompts[row]!r}) has its right answer {len(right)} times and its wrong one "
                f"{len(wrong)} times; heads that move names are told where the right one is named, and the wrong one "
                "twice. Detect heads without task=, or give other prompts."
            )
        for name, at in (("IO", right[0]), ("S1", wrong[0]), ("S2", wrong[-1])):
            found[name].append(at)
    places = {name: torch.tensor(at, device=task.positions.device) for name, at in found.items()}
    return {**places, "end": task.positions}


def orders_of(places: Mapping[str, Int[Tensor, " prompt"]]) -> dict[str, Int[Tensor, " some"]]:
    """The prompts of each order of the names, in which there are any."""
    first = (places["IO"] < places["S1"]).cpu()
    return {name: at.nonzero()[:, 0] for name, at in zip(ORDERS, (first, ~first), strict=True) if bool(at.any())}


class Looks:
    """Attention of every head from one named place of each prompt to another, read while the prompts are run.

    For analyses that go through the task's prompts in order, once.

    Args:
        model: The model.
        places: Named positions.
        pairs: Names of query and key.
    """

    def __init__(
        self, model: HookedTransformer, places: Mapping[str, Int[Tensor, " prompt"]], pairs: Sequence[tuple[str, str]]
    ) -> None:
        self.model, self.places, self.pairs = model, places, tuple(pairs)
        self._read: dict[str, list[Tensor]] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read what is run within."""
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in self.model.cfg.layers_with("attn")]
        self._read = {name: [] for name in names}
        with self.model.hooks(fwd_hooks=[(name, self._keep) for name in names]):
            yield

    def _keep(self, pattern: Float[Tensor, "row head query_pos key_pos"], hook: HookPoint) -> None:
        kept = self._read[hook.name or ""]
        seen = sum(len(part) for part in kept)
        rows = torch.arange(len(pattern), device=pattern.device)
        at = {name: places[seen : seen + len(rows)] for name, places in self.places.items()}
        kept.append(torch.stack([pattern[rows, :, at[query], at[key]] for query, key in self.pairs], dim=1).float())

    def all(self) -> dict[tuple[str, str], Float[Tensor, "prompt layer head"]]:
        """Return the attention read, for each pair."""
        layers = torch.stack([torch.cat(parts).cpu() for parts in self._read.values()])  # [layer, prompt, pair, head]
        by_pair = over_layers(self.model.cfg, layers).permute(2, 1, 0, 3)
        return dict(zip(self.pairs, by_pair, strict=True))


def attention_between(
    model: HookedTransformer, task: Task, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Float[Tensor, "layer head"]]:
    """Mean attention of every head from one named place to another, for those pairs whose names the task has."""
    known = {**task.word_idx, "end": task.positions}
    taken = [(query, key) for query, key in pairs if query in known and key in known]
    if not taken:
        return {}
    looks = Looks(model, known, taken)
    prompts = {"tokens": task.clean_tokens, "attention_mask": task.attention_mask}
    with looks.reading():
        for batch in iterate_batches(model, prompts, include_bos=True, progress=False):
            model(batch.tokens, attention_mask=batch.attention_mask, return_type=None)
    return {pair: wide(each).mean(0).float() for pair, each in looks.all().items()}
