"""Prompts and answers that are token ids already, checked and padded; see `Task.from_tokens`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.analysis.prompts.metrics import Metric, NumberMetric, PromptMetric
from headscope.analysis.prompts.reading import TokenStrings, cluster_numbers
from headscope.errors import InvalidInputError

__all__ = ["TokenRows", "token_columns"]


class TokenRows:
    """A maker of a task's tensors from token ids.

    Args:
        tokenizer: Makes their text; without one they are shown as numbers.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self._strings = None if tokenizer is None else TokenStrings(tokenizer)

    def padded(self, name: str, rows: Any, mask: Any) -> tuple[Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]]:
        """Return rows as one tensor, padded on the right, and their real tokens.

        Raises:
            InvalidInputError: If they are no token ids, or the mask is not of them or leaves a prompt without tokens.
        """
        tokens, real = (rows, torch.ones_like(rows, dtype=torch.bool)) if isinstance(rows, Tensor) else _listed(rows)
        if tokens.ndim != 2 or not tokens.numel() or tokens.dtype not in (torch.int64, torch.int32):
            raise InvalidInputError(
                f"{name} tokens must be whole numbers [prompt, pos]; got {tokens.dtype} {list(tokens.shape)}.",
                code="HS-TOKENS-02",
            )
        if int(tokens.min()) < 0:
            raise InvalidInputError(f"{name} tokens are ids from 0 on; got {int(tokens.min())}.")
        if mask is not None:
            real = torch.as_tensor(mask).bool().to(tokens.device)
            if real.shape != tokens.shape:
                raise InvalidInputError(
                    f"the mask of the {name} tokens must have their shape {list(tokens.shape)}; got {list(real.shape)}."
                )
        empty = (~real).all(1)
        if bool(empty.any()):
            raise InvalidInputError(f"{name} prompt {int(empty.nonzero()[0])} has no real token, by its mask.")
        return tokens.long(), real

    def answers(
        self, n: int, correct: Any, incorrect: Any, has_metric: bool
    ) -> tuple[Int[Tensor, "prompt n_correct"], Int[Tensor, "prompt n_incorrect"]]:
        """Return right and wrong answers, without columns where there are none.

        Raises:
            InvalidInputError: For one without the other, neither answers nor a metric, not as many as prompts, or an
                answer that is both.
        """
        if (correct is None) != (incorrect is None) or (correct is None and not has_metric):
            raise InvalidInputError(
                "a task needs the right and the wrong answer of each prompt (correct and incorrect), or a metric."
            )
        if correct is None:
            none = torch.empty(n, 0, dtype=torch.long)
            return none, none
        found = []
        for name, given in (("correct", correct), ("incorrect", incorrect)):
            try:
                answers = torch.as_tensor(given)
            except (TypeError, ValueError) as error:
                raise InvalidInputError(
                    f"{name} must be as many token ids for each prompt: {error}.", code="HS-PROMPTS-06"
                ) from None
            answers = answers[:, None] if answers.ndim == 1 else answers
            if answers.ndim != 2 or len(answers) != n or not answers.numel() or answers.is_floating_point():
                raise InvalidInputError(
                    f"{name} must be token ids, one or several for each of {n} prompts; got {answers.dtype} "
                    f"{list(answers.shape)}.",
                    code="HS-PROMPTS-06",
                )
            found.append(answers.long())
        both = (found[0][:, :, None].to(found[1].device) == found[1][:, None]).flatten(1).any(1).nonzero()
        if len(both):
            raise InvalidInputError(
                f"prompt {int(both[0])} has an answer that is both correct and incorrect.", code="HS-PROMPTS-03"
            )
        return found[0], found[1]

    def positions(
        self,
        given: Any,
        metric: Metric | None,
        mask: Bool[Tensor, "prompt pos"],
        other: Bool[Tensor, "prompt pos"] | None,
    ) -> Int[Tensor, " prompt"]:
        """Return where answers are predicted; by default where the metric reads, or at the clean prompt's last token.

        Raises:
            InvalidInputError: If the metric reads elsewhere, or one is not a real token of both prompts.
        """
        if isinstance(metric, PromptMetric):
            if given is not None and not torch.equal(torch.as_tensor(given).cpu(), metric.positions.cpu()):
                raise InvalidInputError("the metric reads other positions than positions names; leave these out.")
            given = metric.positions
        n, length = mask.shape
        ends = (mask * torch.arange(length, device=mask.device)).amax(1)
        at = ends if given is None else torch.as_tensor(given).to(mask.device).long()
        if at.shape != ends.shape:
            raise InvalidInputError(f"positions must be one for each of {n} prompts; got {list(at.shape)}.")
        real = mask if other is None else mask & other
        inside = (at >= 0) & (at < length) & real.gather(1, at.clamp(0, length - 1)[:, None])[:, 0]
        if not bool(inside.all()):
            row = int((~inside).nonzero()[0])
            raise InvalidInputError(
                f"prompt {row} has its answer at position {int(at[row])}, which is no real token"
                + (" of both runs." if other is not None else " of it."),
                code="HS-PROMPTS-05",
            )
        return at

    def clusters(self, given: Any, tokens: Int[Tensor, "prompt pos"]) -> Int[Tensor, " prompt"] | None:
        """Return a number for each prompt's cluster, where some are given; see `cluster_numbers`."""
        if given is None:
            return None
        numbers = cluster_numbers(given, [f"prompt {number}" for number in range(len(tokens))])
        return None if numbers is None else numbers.to(tokens.device)

    def rows(self, tokens: Tensor, mask: Tensor) -> tuple[tuple[str, ...], ...]:
        """Return the text of every real token."""
        if self._strings is not None:
            return self._strings.rows(tokens, mask)
        return tuple(tuple(map(str, row[real].tolist())) for row, real in zip(tokens, mask, strict=True))

    def texts(self, tokens: Tensor, mask: Tensor) -> tuple[str, ...]:
        """Return each prompt as text; without a tokenizer, its numbers."""
        between = " " if self._strings is None else ""
        return tuple(map(between.join, self.rows(tokens, mask)))

    def text(self, answers: Tensor) -> str:
        """Return answers as one text, with `|` between them."""
        return "|".join(str(each) if self._strings is None else self._strings[each] for each in answers.tolist())


def token_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `Task.from_tokens` that the rows of a file come to; errors call them by `names`.

    Answers with a decimal point are numbers, and make a `NumberMetric`.

    Raises:
        InvalidInputError: For a row without what others have, or without a prompt and both answers.
    """
    columns: dict[str, Any] = {}
    for key in ("prompt", "corrupted", "correct", "incorrect", "position"):
        values = [row.get(key) for row in rows]
        without = [name for name, value in zip(names, values, strict=True) if value is None]
        if without and (len(without) < len(rows) or key in ("prompt", "correct", "incorrect")):
            raise InvalidInputError(f"{without[0]} has no {key!r}, which all rows need or none of them.")
        columns[key] = None if without else values
    for name, prompt in zip(names, columns["prompt"], strict=True):
        if not isinstance(prompt, list):
            raise InvalidInputError(f"{name}: 'prompt' is text, and that of another row a list of token ids.")
    found = {name: columns[key] for name, key in (("clean", "prompt"), ("corrupted", "corrupted"))}
    found["labels"] = [row.get("label") or "" for row in rows]
    found["clusters"] = cluster_numbers([row.get("cluster") for row in rows], names)
    right, wrong, at = columns["correct"], columns["incorrect"], columns["position"]
    if not any(isinstance(each, float) for each in (*right, *wrong)):
        return {**found, "correct": right, "incorrect": wrong, "positions": at}
    try:
        both = [torch.tensor(list(map(float, each)), dtype=torch.float64, device="cpu") for each in (right, wrong)]
        at = torch.tensor([len(prompt) - 1 for prompt in columns["prompt"]] if at is None else at)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"numbers as answers are one for each prompt, and positions whole: {error}.") from None
    return {**found, "metric": NumberMetric.between(both[0], both[1], at)}


def _listed(rows: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return rows of any lengths as one tensor, and which of its tokens they had."""
    if not len(rows) or any(isinstance(row, int | str) or not len(row) for row in rows):
        raise InvalidInputError("tokens must be lists of token ids, at least one for each prompt.")
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    try:
        flat = torch.cat([torch.as_tensor(row) for row in rows])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"tokens must be lists of whole numbers: {error}.") from None
    return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter_(mask, flat), mask
