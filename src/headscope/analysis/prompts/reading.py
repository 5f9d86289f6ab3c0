"""Prompts and answers from text into tokens; errors name the prompt or the line of the file."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.data.ioi.words import token_after_a_word
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.text.tokens import begin_token, pad_token_id, single_token

__all__ = ["RowMaker", "TaskRow", "TokenStrings", "check_alike", "cluster_numbers", "listed_rows", "read_rows"]

_TEXTS = ("prompt", "correct", "incorrect", "corrupted", "label")
_COLUMNS = (*_TEXTS, "cluster")
_OF_TOKENS = "position"  # a column of rows whose prompts are token ids
_REQUIRED = _COLUMNS[:3]


@dataclass(frozen=True)
class TaskRow:
    """One prompt and its answers in tokens; `corrupted` is empty where there is none."""

    clean: list[int]
    correct: list[int]
    incorrect: list[int]
    corrupted: list[int]


class TokenStrings(dict[int, str]):
    """A cache of the text of each token."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        self[token] = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return self[token]

    def rows(self, tokens: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"]) -> tuple[tuple[str, ...], ...]:
        """Return the text of every real token."""
        return tuple(tuple(self[token] for token in row[real].tolist()) for row, real in zip(tokens, mask, strict=True))


class RowMaker:
    """A tokenizer of rows.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prepend_bos: Begin each row with BOS.
        prepend_space_to_answer: Put a space before each answer unless it starts with one.
    """

    def __init__(self, tokenizer: Any, prepend_bos: bool, prepend_space_to_answer: bool) -> None:
        self.tokenizer = tokenizer
        self.strings = TokenStrings(tokenizer)
        self._bos = [begin_token(tokenizer)] if prepend_bos else []
        self._space = prepend_space_to_answer

    def row(self, row: Mapping[str, Any], name: str) -> TaskRow:
        """Tokenize one row, which errors call `name`.

        Raises:
            InvalidInputError: For a missing field, answers that are not one token each, or prompts that do not align.
        """
        for key in _TEXTS:
            value = row.get(key)
            if value in (None, "") and key not in _REQUIRED:
                continue
            several = key in ("correct", "incorrect") and isinstance(value, (list, tuple))
            texts: Any = value if several else [value]
            if not texts or not all(isinstance(text, str) and text for text in texts):
                kind = "is missing or empty" if value in (None, "", [], ()) else f"must be text; got {value!r}"
                raise InvalidInputError(f"{name}: {key!r} {kind}.")
        clean = self._prompt(row["prompt"], name, "prompt")
        correct, incorrect = (
            [self._answer(text, name, key) for text in ([row[key]] if isinstance(row[key], str) else row[key])]
            for key in ("correct", "incorrect")
        )
        both = sorted(set(correct) & set(incorrect))
        if both:
            raise InvalidInputError(
                f"{name}: {self.strings[both[0]]!r} is both a correct and an incorrect answer.", code="HS-PROMPTS-03"
            )
        corrupted = self._prompt(row["corrupted"], name, "corrupted prompt") if row.get("corrupted") else []
        if corrupted and len(corrupted) != len(clean):
            shown = [[self.strings[token] for token in tokens] for tokens in (clean, corrupted)]
            raise InvalidInputError(
                f"{name}: the corrupted prompt has {len(corrupted)} tokens and the prompt {len(clean)}, so they are "
                f"not aligned: {shown[1]} and {shown[0]}. Change words for others with as many tokens.",
                code="HS-PROMPTS-01",
            )
        if corrupted == clean:
            raise InvalidInputError(f"{name}: the corrupted prompt is the prompt itself, so nothing is corrupted.")
        return TaskRow(clean, correct, incorrect, corrupted)

    def padded(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "prompt pos"]:
        """Pad rows to one length, on the right."""
        length = max(map(len, rows))
        pad = pad_token_id(self.tokenizer)
        if pad is None and min(map(len, rows)) < length:
            raise InvalidInputError(
                "the prompts differ in length, and the tokenizer has no padding or EOS token.", code="HS-TOKENS-07"
            )
        return torch.tensor([[*row, *[pad or 0] * (length - len(row))] for row in rows])

    def text(self, answers: Sequence[int]) -> str:
        """Return answers as one text, with `|` between them."""
        return "|".join(self.strings[token] for token in answers)

    def _prompt(self, text: str, name: str, what: str) -> list[int]:
        if self._space and text != text.rstrip():
            raise InvalidInputError(
                f"{name}: the {what} {text!r} ends with a space, which the answer brings along. Take it away.",
                code="HS-PROMPTS-04",
            )
        return [*self._bos, *self.tokenizer.encode(text, add_special_tokens=False)]

    def _answer(self, text: str, name: str, key: str) -> int:
        if self._space and not text.startswith(" "):
            text = f" {text}"
        is_word = text.startswith(" ") and len(text) > 1
        token = token_after_a_word(self.tokenizer, text[1:]) if is_word else None
        if token is not None:
            return token
        try:
            return single_token(text, self.tokenizer)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{name}: the {key} answer {error.message} Give an answer of one token.", code="HS-TOKENS-04"
            ) from None


def check_alike(rows: Sequence[TaskRow], names: Sequence[str]) -> None:
    """Refuse rows that differ in their number of answers, or of which only some have a corrupted prompt.

    Raises:
        InvalidInputError: Naming the row.
    """
    for row, name in zip(rows, names, strict=True):
        for key in ("correct", "incorrect"):
            n, first = len(getattr(row, key)), len(getattr(rows[0], key))
            if n != first:
                raise InvalidInputError(
                    f"{name} has {n} {key} answers, and {names[0]} {first}; give as many for each.",
                    code="HS-PROMPTS-06",
                )
        if bool(row.corrupted) != bool(rows[0].corrupted):
            without, other = (names[0], name) if row.corrupted else (name, names[0])
            raise InvalidInputError(f"{without} has no corrupted prompt, and {other} one; give it for all or none.")


def cluster_numbers(
    given: Sequence[object] | Int[Tensor, " prompt"], names: Sequence[str]
) -> Int[Tensor, " prompt"] | None:
    """Return numbers of the clusters that prompts are in; `None` if none is in any.

    Args:
        given: A number or a name for each prompt, the same within a cluster; `None` or an empty text for a prompt that
            is a cluster of its own.
        names: What errors call each prompt.

    Raises:
        InvalidInputError: For clusters of another number of prompts, or one that is neither a whole number nor text.

    Example:
        >>> cluster_numbers(["a", None, "b", "a", ""], ["1", "2", "3", "4", "5"])
        tensor([0, 1, 2, 0, 3])
    """
    listed = given.tolist() if isinstance(given, Tensor) else list(given)
    if len(listed) != len(names):
        raise InvalidInputError(f"there are {len(names)} prompts, and {len(listed)} of 'cluster'; give as many.")
    for cluster, name in zip(listed, names, strict=True):
        if isinstance(cluster, bool) or not (cluster is None or isinstance(cluster, str | Integral)):
            raise InvalidInputError(
                f"{name}: 'cluster' must be a whole number or text, the same for prompts that are not independent; got "
                f"{cluster!r}."
            )
    if all(cluster in (None, "") for cluster in listed):
        return None
    keys = [(at,) if cluster in (None, "") else str(cluster) for at, cluster in enumerate(listed)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def listed_rows(
    prompts: Sequence[str], **columns: Sequence[Any] | Tensor | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return rows of lists, as those of a file, with a name for each.

    Raises:
        InvalidInputError: For a list with another number of entries than there are prompts.
    """
    given = {
        name: values.tolist() if isinstance(values, Tensor) else list(values)
        for name, values in columns.items()
        if values is not None
    }
    for name, values in given.items():
        if len(values) != len(prompts):
            raise InvalidInputError(f"there are {len(prompts)} prompts, and {len(values)} of {name!r}; give as many.")
    rows = [
        {"prompt": prompt, **{name: values[at] for name, values in given.items()}} for at, prompt in enumerate(prompts)
    ]
    return rows, [f"prompt {at}" for at in range(len(prompts))]


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the rows of a `.csv` or `.jsonl` file, with a name for each.

    Raises:
        InvalidInputError: If the file cannot be read, or a row is malformed.
        UnknownNameError: For an unknown column.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise InvalidInputError(f"{path} is neither a .csv nor a .jsonl file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8: {error}.") from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from None
    numbered = _csv_rows(text, path) if path.suffix == ".csv" else _jsonl_rows(text, path)
    if not numbered:
        raise InvalidInputError(f"{path} has no rows. Columns: {', '.join(_COLUMNS)}.")
    allowed = {*_COLUMNS, _OF_TOKENS} if any(isinstance(row.get("prompt"), list) for _, row in numbered) else _COLUMNS
    for _, row in numbered:
        for column in row:
            if column not in allowed:
                raise unknown_name(
                    "column", str(column), _COLUMNS, hint=f"{path} may have {', '.join(_COLUMNS)}.", code="HS-NAME-07"
                )
    return [row for _, row in numbered], [f"{path.name}, line {line}" for line, _ in numbered]


def _csv_rows(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = [column for column in _REQUIRED if column not in (reader.fieldnames or ())]
    if missing:
        columns = ", ".join(map(repr, reader.fieldnames or ())) or "nothing"
        raise InvalidInputError(f"{path} has no column {missing[0]!r}; its first line names {columns}.")
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        for row in reader:
            if row.get(None) is not None:
                raise InvalidInputError(
                    f"{path.name}, line {reader.line_num}: there are more fields than columns. Put text with commas in "
                    "double quotes."
                )
            split: dict[str, Any] = dict(row)
            for key in ("correct", "incorrect"):
                if split[key] and "|" in split[key]:
                    split[key] = split[key].split("|")
            rows.append((reader.line_num, split))
    except csv.Error as error:
        raise InvalidInputError(f"{path.name}, line {reader.reader.line_num}: {error}.") from None
    return rows


def _jsonl_rows(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{path.name}, line {line} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise InvalidInputError(f"{path.name}, line {line} must be an object with {', '.join(_REQUIRED)}.")
        rows.append((line, row))
    return rows
