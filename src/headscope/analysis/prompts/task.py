"""`Task`: prompts whose next token has right and wrong answers, and corrupted versions of the same prompts.

The model's score is the logit difference: the mean logit of the right answers less that of the wrong ones, where the
answer is predicted. A corrupted prompt has as many tokens as its clean one, so that activations of either run can
be put into the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.prompts.reading import RowMaker, TokenStrings, check_alike, read_rows
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError
from headscope.model.text.tokens import pad_token_id

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["Task", "answer_difference", "logit_difference"]


def logit_difference(
    logits: Float[Tensor, "prompt *pos d_vocab"],
    answer_tokens: Int[Tensor, "prompt 2"],
    per_prompt: bool = False,
    *,
    positions: Int[Tensor, " prompt"] | None = None,
) -> Float[Tensor, "*prompt"]:
    """Return the right answer's logit less the wrong one's.

    Args:
        logits: At every position, or (without that axis) where the answer is predicted.
        answer_tokens: For each prompt the right token, then the wrong one.
        per_prompt: One number for each prompt, instead of their mean.
        positions: Where each prompt's answer is predicted; default: at the last position.

    Raises:
        InvalidInputError: If shapes do not fit, or a token or position is out of range.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0, 5.0]], [[2.0, 0.0, 1.0]]])
        >>> logit_difference(logits, torch.tensor([[2, 1], [1, 0]]), per_prompt=True)
        tensor([ 4., -2.])
    """
    differences = answer_difference(logits, answer_tokens[:, :1], answer_tokens[:, 1:], positions=positions)
    return differences if per_prompt else differences.mean()


def answer_difference(
    logits: Float[Tensor, "prompt *pos d_vocab"],
    correct: Int[Tensor, "prompt n_correct"],
    incorrect: Int[Tensor, "prompt n_incorrect"],
    *,
    positions: Int[Tensor, " prompt"] | None = None,
) -> Float[Tensor, " prompt"]:
    """Return the mean logit of each prompt's right answers less that of its wrong ones.

    Raises:
        InvalidInputError: If shapes do not fit, or a token or position is out of range.
    """
    if not len(logits) == len(correct) == len(incorrect):
        raise InvalidInputError(
            f"there are answers for {len(correct)} and {len(incorrect)} prompts, and logits {list(logits.shape)} for "
            f"{len(logits)}; give a row of each for every prompt."
        )
    if logits.ndim == 3:
        last = torch.full_like(correct[:, 0], logits.shape[1] - 1) if positions is None else positions
        if bool(((last < 0) | (last >= logits.shape[1])).any()):
            raise _positions_error(last, logits.shape[1])
        rows = torch.arange(len(logits), device=logits.device)
        logits = logits[rows, last.to(logits.device)]
    both = torch.cat([correct, incorrect], dim=1).to(logits.device)
    d_vocab = logits.shape[-1]
    if bool(((both < 0) | (both >= d_vocab)).any()):
        raise InvalidInputError(
            f"answers must be tokens from 0 to {d_vocab - 1}; they go from {int(both.min())} to {int(both.max())}."
        )
    right, wrong = logits.gather(-1, both).split([correct.shape[1], incorrect.shape[1]], dim=1)
    return right.mean(-1) - wrong.mean(-1)


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """Prompts with right and wrong next tokens.

    Made by `from_prompts`, `from_templates`, `from_ioi`, or read from a file of one's own by `read`.

    Attributes:
        clean_tokens: The prompts, padded on the right.
        correct: The tokens that are right, as many for each prompt.
        incorrect: Those that are wrong.
        attention_mask: True for real tokens.
        positions: Where the answer is predicted: at a prompt's last token.
        corrupted_tokens: The same prompts without what tells the answer, aligned token by token; `None` without them.
        prompts: The texts.
        str_tokens: The text of every real token, row by row.
        answers: The right and the wrong answers of each prompt as text; several have `|` between them.
        labels: The kind of each prompt; empty strings where none is given.
        word_idx: Named positions, such as `IO` and `S2`, where they are known.
    """

    clean_tokens: Int[Tensor, "prompt pos"]
    correct: Int[Tensor, "prompt n_correct"]
    incorrect: Int[Tensor, "prompt n_incorrect"]
    attention_mask: Bool[Tensor, "prompt pos"]
    positions: Int[Tensor, " prompt"]
    corrupted_tokens: Int[Tensor, "prompt pos"] | None
    prompts: tuple[str, ...]
    str_tokens: tuple[tuple[str, ...], ...]
    answers: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    word_idx: Mapping[str, Int[Tensor, " prompt"]] = field(default_factory=dict)

    @classmethod
    def from_prompts(
        cls,
        prompts: Sequence[str],
        correct: Sequence[str | Sequence[str]],
        incorrect: Sequence[str | Sequence[str]],
        tokenizer: Any,
        *,
        corrupted: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        prepend_bos: bool = True,
        prepend_space_to_answer: bool = True,
    ) -> Self:
        """Make a task of texts.

        Args:
            prompts: The texts up to the answer.
            correct: The right answer to each, or several of them; each is one token.
            incorrect: The wrong ones.
            tokenizer: A Hugging Face tokenizer.
            corrupted: A text with as many tokens for each prompt.
            labels: The kind of each prompt.
            prepend_bos: Begin each row with BOS.
            prepend_space_to_answer: Put a space before each answer unless it starts with one.

        Raises:
            InvalidInputError: For an empty prompt, an answer that is not one token or both right and wrong, or a
                corrupted prompt of another length; it names the prompt.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> text = "When Mary and John went to the store, John gave a drink to"
            >>> task = Task.from_prompts([text], ["Mary"], ["John"], model.tokenizer)
            >>> print(f"{task.logit_difference(model(task.clean_tokens)):+.2f} logits for Mary")
            +12.30 logits for Mary
        """
        given: dict[str, Sequence[Any] | None] = {
            "correct": correct, "incorrect": incorrect, "corrupted": corrupted, "label": labels,
        }  # fmt: skip
        for name, values in given.items():
            if values is not None and len(values) != len(prompts):
                raise InvalidInputError(
                    f"there are {len(prompts)} prompts, and {len(values)} of {name!r}; give as many."
                )
        rows = [
            {"prompt": prompt, **{name: values[i] for name, values in given.items() if values is not None}}
            for i, prompt in enumerate(prompts)
        ]
        names = [f"prompt {i}" for i in range(len(prompts))]
        return cls._from_rows(rows, names, RowMaker(tokenizer, prepend_bos, prepend_space_to_answer))

    @classmethod
    def from_templates(
        cls, templates: Sequence[str], pairs: Sequence[tuple[str, str]], tokenizer: Any, *, prepend_bos: bool = True
    ) -> Self:
        """Fill each template twice, with either name of its pair in its gap; the right answer is the other one.

        The two are each other's corrupted prompts.

        Args:
            templates: Texts with a gap `{}`; a single text goes with all pairs.
            pairs: Two names for each, as they are put into the gap. As answers they begin with a space.
            tokenizer: A Hugging Face tokenizer.
            prepend_bos: Begin each row with BOS.

        Raises:
            InvalidInputError: For a template without a gap, and as for `from_prompts`.

        Example:
            >>> from headscope import HookedTransformer
            >>> tokenizer = HookedTransformer.from_pretrained("headscope-demo").tokenizer
            >>> task = Task.from_templates(["When Mary met John, {} gave a book to"], [("Mary", "John")], tokenizer)
            >>> [prompt.split(", ")[1] for prompt in task.prompts], task.answers[0]
            (['John gave a book to', 'Mary gave a book to'], (' Mary', ' John'))
        """
        texts = list(templates) * (len(pairs) if len(templates) == 1 else 1)
        if len(texts) != len(pairs):
            raise InvalidInputError(f"there are {len(texts)} templates and {len(pairs)} pairs of names; give as many.")
        without = [text for text in texts if text.count("{}") != 1]
        if without:
            raise InvalidInputError(f"a template has one gap {{}} for a name; got {without[0]!r}.")
        rows, names = [], []
        for i, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
            filled = [text.replace("{}", name) for name in pair]
            for right, wrong in ((0, 1), (1, 0)):
                row = {"prompt": filled[wrong], "corrupted": filled[right]}
                rows.append({**row, "correct": pair[right], "incorrect": pair[wrong]})
                names.append(f"pair {i} ({pair[right]!r}, {pair[wrong]!r})")
        return cls._from_rows(rows, names, RowMaker(tokenizer, prepend_bos, True))

    @classmethod
    def from_ioi(
        cls, dataset: IOIDataset, corrupted: IOIDataset | str | tuple[str, str] | None = "ABB->XYZ, BAB->XYZ"
    ) -> Self:
        """Make a task of the sentences of an `IOIDataset`, up to their answers.

        Args:
            dataset: The sentences.
            corrupted: The same with other names, or the flip that gives them (`gen_flipped_prompts`).

        Raises:
            InvalidInputError: If `corrupted` is not aligned with the data set.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> task = Task.from_ioi(IOIDataset(N=4, tokenizer=model.tokenizer, prepend_bos=True))
            >>> len(task), sorted(task.word_idx)
            (4, ['IO', 'S1', 'S1+1', 'S2', 'end', 'punct', 'starts'])
        """
        if isinstance(corrupted, (str, tuple)):
            corrupted = dataset.gen_flipped_prompts(corrupted)
        end = dataset.word_idx["end"]
        if corrupted is not None and (
            corrupted.toks.shape != dataset.toks.shape or not torch.equal(corrupted.word_idx["end"], end)
        ):
            raise InvalidInputError(
                "the corrupted data set is not aligned: make it by dataset.gen_flipped_prompts(...)."
            )
        mask = torch.arange(int(end.max()) + 1, device=end.device) <= end[:, None]
        pad = pad_token_id(dataset.tokenizer) or 0

        def to_the_end(sentences: IOIDataset) -> Tensor:
            return torch.where(mask, sentences.toks[:, : mask.shape[1]], pad)

        clean = to_the_end(dataset)
        ids = (dataset.io_tokenIDs, dataset.s_tokenIDs)
        strings = TokenStrings(dataset.tokenizer)
        return cls(
            clean_tokens=clean,
            correct=torch.tensor(ids[0], device=end.device)[:, None],
            incorrect=torch.tensor(ids[1], device=end.device)[:, None],
            attention_mask=mask,
            positions=end,
            corrupted_tokens=None if corrupted is None else to_the_end(corrupted),
            prompts=tuple(dataset.prompts),
            str_tokens=strings.rows(clean, mask),
            answers=tuple((strings[io], strings[s]) for io, s in zip(*ids, strict=True)),
            labels=tuple(dataset.orders),
            word_idx=dict(dataset.word_idx),
        )

    @classmethod
    def read(
        cls, path: str | Path, tokenizer: Any, *, prepend_bos: bool = True, prepend_space_to_answer: bool = True
    ) -> Self:
        r"""Read a task from a table with a row for each prompt.

        Columns (or keys): `prompt`, `correct`, `incorrect`, and where wanted `corrupted` and `label`. Several answers
        are a list in `.jsonl`, and separated by `|` in `.csv`.

        Args:
            path: A `.csv` file with a line of column names, or `.jsonl`, in UTF-8.
            tokenizer: A Hugging Face tokenizer.
            prepend_bos: Begin each row with BOS.
            prepend_space_to_answer: Put a space before each answer unless it starts with one.

        Raises:
            InvalidInputError: If the file cannot be read, or for a bad row, whose line it names.
            UnknownNameError: For an unknown column.

        Example:
            >>> import tempfile
            >>> from headscope import HookedTransformer
            >>> tokenizer = HookedTransformer.from_pretrained("headscope-demo").tokenizer
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = Path(folder) / "my.csv"
            ...     _ = path.write_text("prompt,correct,incorrect\nMary gave a book to,John|Tom,Mary|Mary\n")
            ...     task = Task.read(path, tokenizer)
            >>> task.answers
            ((' John| Tom', ' Mary| Mary'),)
        """
        rows, names = read_rows(Path(path))
        return cls._from_rows(rows, names, RowMaker(tokenizer, prepend_bos, prepend_space_to_answer))

    @classmethod
    def _from_rows(cls, rows: Sequence[Mapping[str, Any]], names: Sequence[str], maker: RowMaker) -> Self:
        if not rows:
            raise InvalidInputError("a task needs at least one prompt.")
        made = [maker.row(row, name) for row, name in zip(rows, names, strict=True)]
        check_alike(made, names)
        clean = maker.padded([row.clean for row in made])
        lengths = torch.tensor([len(row.clean) for row in made])
        mask = torch.arange(clean.shape[1]) < lengths[:, None]

        return cls(
            clean_tokens=clean,
            correct=torch.tensor([row.correct for row in made]),
            incorrect=torch.tensor([row.incorrect for row in made]),
            attention_mask=mask,
            positions=lengths - 1,
            corrupted_tokens=maker.padded([row.corrupted for row in made]) if made[0].corrupted else None,
            prompts=tuple(row["prompt"] for row in rows),
            str_tokens=maker.strings.rows(clean, mask),
            answers=tuple((maker.text(row.correct), maker.text(row.incorrect)) for row in made),
            labels=tuple(row.get("label") or "" for row in rows),
        )

    def __post_init__(self) -> None:
        n, length = self.clean_tokens.shape
        given: dict[str, Any] = {
            "correct": self.correct, "incorrect": self.incorrect, "positions": self.positions,
            "prompts": self.prompts, "str_tokens": self.str_tokens, "answers": self.answers, "labels": self.labels,
            **self.word_idx,
        }  # fmt: skip
        for name, values in given.items():
            if len(values) != n:
                raise InvalidInputError(f"there are {n} prompts, and {len(values)} of {name}; give as many.")
        for name, tokens in (("attention_mask", self.attention_mask), ("corrupted_tokens", self.corrupted_tokens)):
            if tokens is not None and tokens.shape != self.clean_tokens.shape:
                raise InvalidInputError(
                    f"{name} must have the clean tokens' shape {[n, length]}; got {list(tokens.shape)}."
                )
        if n == 0:
            raise InvalidInputError("a task needs at least one prompt.")
        if bool(((self.positions < 0) | (self.positions >= length)).any()):
            raise _positions_error(self.positions, length)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, key: slice | Sequence[int] | Tensor) -> Self:
        """Return the task of some of the prompts."""
        numbers = torch.arange(len(self))[key if isinstance(key, (slice, Tensor)) else list(key)]
        if numbers.ndim != 1 or not numbers.numel():
            raise InvalidInputError(f"take some of the {len(self)} prompts by a slice or a list; got {key!r}.")
        rows = numbers.to(self.clean_tokens.device)

        def some(values: Any) -> Any:
            if isinstance(values, Tensor):
                return values[rows]
            return None if values is None else tuple(values[number] for number in numbers.tolist())

        taken = {each.name: some(getattr(self, each.name)) for each in fields(self) if each.name != "word_idx"}
        return type(self)(**taken, word_idx={name: at[rows] for name, at in self.word_idx.items()})

    def to(self, device: torch.device | str) -> Self:
        """Return the task on another device."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved, word_idx={name: at.to(device) for name, at in self.word_idx.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that makes it differ from another task, by name."""
        tensors = {
            "clean": self.clean_tokens,
            "correct": self.correct,
            "incorrect": self.incorrect,
            "at": self.positions,
        }
        return tensors if self.corrupted_tokens is None else {**tensors, "corrupted": self.corrupted_tokens}

    def logit_difference(
        self, logits: Float[Tensor, "prompt *pos d_vocab"], per_prompt: bool = False
    ) -> Float[Tensor, "*prompt"]:
        """Return the mean logit of the right answers less that of the wrong ones, where they are predicted.

        Args:
            logits: Of these prompts, at every position; or (without that axis) at `positions`.
            per_prompt: One number for each prompt, instead of their mean.
        """
        differences = answer_difference(logits, self.correct, self.incorrect, positions=self.positions)
        return differences if per_prompt else differences.mean()

    def table(self, logit_differences: Float[Tensor, " prompt"] | None = None) -> "Table":
        """Return prompts and answers as a table for `rich.print`, with each prompt's logit difference if given."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title="Prompts and answers")
        table.add_column("Prompt")
        table.add_column("Correct", style="green")
        table.add_column("Incorrect", style="red")
        if logit_differences is not None:
            table.add_column("Logit difference", justify="right", style="bold")
        for row in self.to_frame(logit_differences).itertuples(index=False):
            cells = [escape(row.prompt), escape(repr(row.correct)), escape(repr(row.incorrect))]
            table.add_row(*cells, *([] if logit_differences is None else [f"{row.logit_difference:+.3f}"]))
        return table

    def to_frame(self, logit_differences: Float[Tensor, " prompt"] | None = None) -> "pd.DataFrame":
        """Return one row per prompt: the text, its answers and its label, and its logit difference if it is given."""
        import pandas as pd

        columns: dict[str, Any] = {
            "prompt": self.prompts,
            "correct": [right for right, _ in self.answers],
            "incorrect": [wrong for _, wrong in self.answers],
            "label": self.labels,
        }
        if logit_differences is not None:
            if len(logit_differences) != len(self):
                raise InvalidInputError(
                    f"there are {len(self)} prompts, and {len(logit_differences)} logit differences; give one for each."
                )
            columns["logit_difference"] = logit_differences.tolist()
        return pd.DataFrame(columns)

    @property
    def description(self) -> str:
        """The task in a few words."""
        return f"{len(self)} prompts, such as {self.prompts[0]!r}"

    def __repr__(self) -> str:
        right, wrong = self.answers[0]
        corrupted = "with" if self.corrupted_tokens is not None else "without"
        return (
            f"Task({len(self)} prompts of up to {self.clean_tokens.shape[1]} tokens, {corrupted} corrupted ones, e.g. "
            f"{self.prompts[0]!r}: {right!r}, not {wrong!r})"
        )


def _positions_error(positions: Tensor, length: int) -> InvalidInputError:
    lowest, highest = int(positions.min()), int(positions.max())
    return InvalidInputError(f"positions must be from 0 to {length - 1}; they go from {lowest} to {highest}.")
