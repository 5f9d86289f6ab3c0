"""`Positions`: the words for places in prompts, the same for patching, attribution and the command line.

A position is

- a name: `"end"`, where the answer is predicted, which every task has, and those of `task.word_idx`, such as `"S2"`;
- a name with a number of tokens after or before it: `"S2+1"`, `"end-2"`;
- a number, which counts from 0, or, if negative, back from each prompt's last token; also as text, `"3"`;
- a tensor with one position for each prompt.

Each is a real token of every prompt.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, unknown_name

__all__ = ["Positions", "named_place", "number_of", "shifted"]

_OWN = "one per prompt"
_SHIFTED = re.compile(r"(.+?)([+-]\d+)", re.DOTALL)


@dataclass(frozen=True)
class Positions:
    """Positions of a task's prompts, in the order in which they were asked for.

    Attributes:
        task: The prompts.
        at: Where each position is in every prompt.
        names: The numbers and names that were asked for.
    """

    task: Task
    at: Int[Tensor, "position prompt"]
    names: tuple[int | str, ...]

    @classmethod
    def of(cls, task: Task, asked: Any = None) -> "Positions":
        """Parse positions as the module's docstring words them; `None` stands for all, padding included.

        Raises:
            InvalidInputError: If one is not a real token of every prompt, or none is given.
            UnknownNameError: For a name that the task does not have.

        Example:
            >>> from headscope import HookedTransformer
            >>> tokenizer = HookedTransformer.from_pretrained("headscope-demo").tokenizer
            >>> prompts = ["When Mary met John, John gave a book to", "Mary said to"]
            >>> task = Task.from_prompts(prompts, ["Mary", "John"], ["John", "Mary"], tokenizer)
            >>> positions = Positions.of(task, ["end", 1, -2, "end-3"])
            >>> positions.at.tolist(), positions.labels
            ([[10, 4], [1, 1], [9, 3], [7, 1]], ('end', 'When…', ' book…', 'end-3'))
        """
        n, width = task.clean_tokens.shape
        if asked is None:
            everywhere = torch.arange(width, device=task.clean_tokens.device)
            return cls(task, everywhere[:, None].expand(-1, n), tuple(range(width)))
        listed = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, (str, Tensor)) else [asked]
        if not listed:
            raise InvalidInputError("give at least one position, or None for all.")
        names, at = zip(*(_place(task, each) for each in listed), strict=True)
        own = [number for number, name in enumerate(names) if name == _OWN]
        of_tensors = {number: f"{_OWN} ({which})" for which, number in enumerate(own, 1)} if len(own) > 1 else {}
        return cls(task, torch.stack(at), tuple(of_tensors.get(number, name) for number, name in enumerate(names)))

    @cached_property
    def mask(self) -> Bool[Tensor, "prompt pos"]:
        """The tokens at any of these positions that are real in both runs."""
        clean, corrupted = self.task.masks
        mask = clean & corrupted
        return torch.zeros_like(mask).scatter(1, self.at.T, True) & mask

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the positions; of a number the token, or the word, that all prompts have there."""
        return tuple(map(self._label, self.names, self.at))

    def _label(self, name: int | str, at: Tensor) -> str:
        if isinstance(name, str):
            return name
        places = at - self.task.attention_mask.long().argmax(1)
        rows = zip(self.task.str_tokens, places.tolist(), strict=True)
        tokens = list(dict.fromkeys(row[place] for row, place in rows if 0 <= place < len(row)))
        words = [word for word, where in self.task.word_idx.items() if bool((where == at).all())]
        if len(tokens) == 1 or not words:
            return tokens[0] + "…" * (len(tokens) > 1) if tokens else ""
        return words[0]

    def __str__(self) -> str:
        everywhere = self.names == tuple(range(self.task.clean_tokens.shape[1]))
        return "all" if everywhere else ", ".join(map(str, self.names))


def named_place(
    name: str,
    known: Mapping[str, Int[Tensor, " prompt"]],
    hint: str = "Or give a number, or a name with an offset: 'end-1'.",
) -> Int[Tensor, " prompt"]:
    """Return the place of a name in each prompt, which may have an offset.

    Raises:
        UnknownNameError: If it is none of those that are known.
    """
    if name in known:
        return known[name]
    word, offset = shifted(name)
    if word not in known:
        raise unknown_name("position", name, known, hint=hint, code="HS-NAME-08")
    return known[word] + offset


def shifted(name: str) -> tuple[str, int]:
    """Return a name without its offset, and the offset.

    Example:
        >>> shifted("S2+1"), shifted("end-2"), shifted("S2")
        (('S2', 1), ('end', -2), ('S2', 0))
    """
    found = _SHIFTED.fullmatch(name.replace(" ", ""))
    return (name, 0) if found is None else (found[1], int(found[2]))


def number_of(name: str) -> int | str:
    """Return the number that a text is, or the text."""
    return int(name) if name.removeprefix("-").isdecimal() else name


def _place(task: Task, asked: Any) -> tuple[int | str, Int[Tensor, " prompt"]]:
    """Return a position's name, and its place in each prompt."""
    mask = task.masks[0] & task.masks[1]
    n, width = mask.shape
    if isinstance(asked, Tensor) and asked.ndim == 0 and not asked.is_floating_point():
        asked = int(asked)
    if isinstance(asked, str) and asked not in task.word_idx:
        asked = number_of(asked)
    name: int | str
    if isinstance(asked, str):
        name, at = asked, named_place(asked, {"end": task.positions, **task.word_idx}).to(mask.device)
    elif isinstance(asked, Integral) and not isinstance(asked, bool):
        name, at = int(asked), torch.full((n,), int(asked), device=mask.device)
    elif isinstance(asked, Tensor) and asked.ndim == 1 and asked.dtype in (torch.int64, torch.int32):
        if len(asked) != n:
            raise InvalidInputError(f"there are {n} prompts, and positions of {len(asked)}; give one for each.")
        name, at = _OWN, asked.long().to(mask.device)
    else:
        raise InvalidInputError(
            f"positions must be names, numbers, a tensor with one for each prompt, or a list of these; got {asked!r}."
        )
    if not isinstance(asked, str):
        lasts = (task.attention_mask * torch.arange(width, device=mask.device)).amax(1)
        at = torch.where(at < 0, at + lasts + 1, at)
    inside = (at >= 0) & (at < width)
    if not bool(inside.all()) or not bool(mask.gather(1, at[:, None]).all()):
        raise InvalidInputError(
            f"position {asked!r} is not a real token of every prompt; the shortest has {int(mask.sum(1).min())} of "
            "them.",
            code="HS-PROMPTS-05",
        )
    return name, at
