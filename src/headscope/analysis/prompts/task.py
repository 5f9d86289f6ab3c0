"""`Task`: prompts whose next token has right and wrong answers, and corrupted versions of the same prompts.

The model's score is the logit difference: the mean logit of the right answers less that of the wrong ones, where the
answer is predicted; or a metric that the task is given. A corrupted prompt is aligned with its clean one token by
token, so that activations of either run can be put into the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.prompts.answers import answer_difference, positions_error
from headscope.analysis.prompts.identity import telling
from headscope.analysis.prompts.metrics import AnswerMetric, Metric, PromptMetric
from headscope.analysis.prompts.reading import (
    RowMaker,
    TokenStrings,
    check_alike,
    cluster_numbers,
    listed_rows,
    read_rows,
)
from headscope.analysis.prompts.token_rows import TokenRows, token_columns
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.model.text.tokens import pad_token_id

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["Task"]


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """Prompts with right and wrong next tokens.

    Made by `from_prompts`, `from_templates`, `from_ioi`, `from_tokens`, or read from a file of one's own by `read`.

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
        metric: What is measured in the place of the logit difference; `None` for that. Without answers, `correct` and
            `incorrect` have no columns.
        corrupted_mask: The real tokens of corrupted prompts, where they are not those of the clean ones.
        clusters: A number for each prompt, the same for those that were not drawn independently, such as the two of a
            template; `None` where each prompt stands by itself. Errors and tests are of clusters.
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
    metric: Metric | None = None
    corrupted_mask: Bool[Tensor, "prompt pos"] | None = None
    clusters: Int[Tensor, " prompt"] | None = None

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
        clusters: Sequence[int | str | None] | Int[Tensor, " prompt"] | None = None,
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
            clusters: A number or a name for each prompt, the same for those that are not independent: that share a
                template or a name, or are each other's corrupted prompt. `None` for one that stands by itself.
            prepend_bos: Begin each row with BOS.
            prepend_space_to_answer: Put a space before each answer unless it starts with one.

        Raises:
            InvalidInputError: For an empty prompt, an answer that is not one token or both right and wrong, a corrupted
                prompt of another length, or a cluster that is no number or name; it names the prompt.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> text = "When Mary and John went to the store, John gave a drink to"
            >>> task = Task.from_prompts([text], ["Mary"], ["John"], model.tokenizer)
            >>> print(f"{task.logit_difference(model(task.clean_tokens)):+.2f} logits for Mary")
            +12.30 logits for Mary
        """
        rows, names = listed_rows(
            prompts, correct=correct, incorrect=incorrect, corrupted=corrupted, label=labels, cluster=clusters
        )
        return cls._from_rows(rows, names, RowMaker(tokenizer, prepend_bos, prepend_space_to_answer))

    @classmethod
    def from_templates(
        cls, templates: Sequence[str], pairs: Sequence[tuple[str, str]], tokenizer: Any, *, prepend_bos: bool = True
    ) -> Self:
        """Fill each template twice, with either name of its pair in its gap; the right answer is the other one.

        The two are each other's corrupted prompts, and one of the task's `clusters`.

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
        made = cls._from_rows(rows, names, RowMaker(tokenizer, prepend_bos, True))
        return replace(made, clusters=torch.arange(len(pairs)).repeat_interleave(2))

    @classmethod
    def from_ioi(
        cls, dataset: IOIDataset, corrupted: IOIDataset | str | tuple[str, str] | None = "ABB->XYZ, BAB->XYZ"
    ) -> Self:
        """Make a task of the sentences of an `IOIDataset`, up to their answers; twins are a cluster.

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
            clusters=dataset.clusters,
        )

    @classmethod
    def from_tokens(
        cls,
        clean: Tensor | Sequence[Any],
        corrupted: Tensor | Sequence[Any] | None = None,
        *,
        correct: Tensor | Sequence[Any] | None = None,
        incorrect: Tensor | Sequence[Any] | None = None,
        metric: Metric | None = None,
        positions: Tensor | Sequence[int] | None = None,
        attention_mask: Tensor | None = None,
        corrupted_mask: Tensor | None = None,
        labels: Sequence[str] | None = None,
        clusters: Sequence[int | str | None] | Int[Tensor, " prompt"] | None = None,
        word_idx: Mapping[str, Int[Tensor, " prompt"]] | None = None,
        tokenizer: Any = None,
    ) -> Self:
        """Make a task of token ids, for any model, with a tokenizer or without.

        Args:
            clean: The prompts, `[prompt, pos]`; lists may differ in length.
            corrupted: The same without what tells the answer, aligned position by position.
            correct: The right answer of each prompt, or several.
            incorrect: The wrong ones.
            metric: What to measure in the place of the logit difference: a `NumberMetric` for models that give numbers,
                or any function of the logits `[prompt, pos, d_vocab]`.
            positions: Where the answer is predicted; default: where the metric reads, or each prompt's last real token.
            attention_mask: The real tokens of `clean`, which begin each row; default: all, or as long as its lists are.
            corrupted_mask: Those of `corrupted`; default: the clean ones.
            labels: The kind of each prompt.
            clusters: A number or a name for each prompt, the same for those not independent; see `from_prompts`.
            word_idx: Named positions.
            tokenizer: Where there is one, the text of prompts and answers is shown, in the place of numbers.

        Raises:
            InvalidInputError: For tokens that are no ids, shapes that do not fit, a mask without real tokens in a
                prompt, an answer at padding of either run, no answers and no metric, or a cluster without a name.

        Example:
            >>> task = Task.from_tokens([[1, 5, 7], [1, 6]], [[1, 8, 7], [1, 9]], correct=[5, 6], incorrect=[8, 9])
            >>> task, task.positions.tolist()
            (Task(2 prompts of up to 3 tokens, with corrupted ones, e.g. '1 5 7': '5', not '8'), [2, 1])
        """
        maker = TokenRows(tokenizer)
        tokens, mask = maker.padded("clean", clean, attention_mask)
        other, other_mask = (None, None) if corrupted is None else maker.padded("corrupted", corrupted, corrupted_mask)
        if corrupted is None and corrupted_mask is not None:
            raise InvalidInputError("corrupted_mask is of corrupted prompts, and there are none; leave it out.")
        if other is not None and corrupted_mask is None and isinstance(corrupted, Tensor):
            other_mask = mask
        if other is not None and other.shape != tokens.shape:
            raise InvalidInputError(
                f"the corrupted tokens {list(other.shape)} are not aligned with the clean ones {list(tokens.shape)}; "
                "give as many rows, padded to one length.",
                code="HS-PROMPTS-01",
            )
        right, wrong = maker.answers(len(tokens), correct, incorrect, metric is not None)
        at = maker.positions(positions, metric, mask, other_mask)
        return cls(
            clean_tokens=tokens,
            correct=right.to(tokens.device),
            incorrect=wrong.to(tokens.device),
            attention_mask=mask,
            positions=at,
            corrupted_tokens=other,
            prompts=maker.texts(tokens, mask),
            str_tokens=maker.rows(tokens, mask),
            answers=tuple((maker.text(each), maker.text(other)) for each, other in zip(right, wrong, strict=True)),
            labels=("",) * len(tokens) if labels is None else tuple(labels),
            word_idx=dict(word_idx or {}),
            metric=metric,
            clusters=maker.clusters(clusters, tokens),
            corrupted_mask=None if other_mask is None or torch.equal(other_mask, mask) else other_mask,
        )

    @classmethod
    def read(
        cls, path: str | Path, tokenizer: Any, *, prepend_bos: bool = True, prepend_space_to_answer: bool = True
    ) -> Self:
        r"""Read a task from a table with a row for each prompt.

        Columns (or keys): `prompt`, `correct`, `incorrect`, and where wanted `corrupted`, `label` and `cluster`, the
        same for prompts that are not independent (`clusters` of `from_prompts`). Several answers are a list in
        `.jsonl`, and separated by `|` in `.csv`. In `.jsonl` prompts may be lists of token ids, with answers that are
        ids too, and where wanted the `position` at which the answer is read; answers with a decimal point are what a
        model that gives numbers should say of the clean and the corrupted prompt (`NumberMetric`).

        Args:
            path: A `.csv` file with a line of column names, or `.jsonl`, in UTF-8.
            tokenizer: A Hugging Face tokenizer.
            prepend_bos: Begin each row with BOS.
            prepend_space_to_answer: Put a space before each answer unless it starts with one.

        Raises:
            InvalidInputError: If the file cannot be read, or for a bad row, whose line it names.
            MissingTokenizerError: For prompts of text without a tokenizer.
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
        if any(isinstance(row.get("prompt"), list) for row in rows):
            return cls.from_tokens(**token_columns(rows, names), tokenizer=tokenizer)
        if tokenizer is None:
            raise MissingTokenizerError(
                f"{Path(path).name} has prompts of text, and the model has no tokenizer. Give lists of token ids in a "
                ".jsonl file, or a tokenizer (--tokenizer on the command line).",
                code="HS-TOKENIZER-01",
            )
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
            clusters=cluster_numbers([row.get("cluster") for row in rows], names),
        )

    def __post_init__(self) -> None:
        n, length = self.clean_tokens.shape
        given: dict[str, Any] = {
            "correct": self.correct, "incorrect": self.incorrect, "positions": self.positions,
            "prompts": self.prompts, "str_tokens": self.str_tokens, "answers": self.answers, "labels": self.labels,
            "clusters": self.clusters, **self.word_idx,
        }  # fmt: skip
        for name, values in given.items():
            if values is not None and len(values) != n:
                raise InvalidInputError(f"there are {n} prompts, and {len(values)} of {name}; give as many.")
        for name in ("attention_mask", "corrupted_tokens", "corrupted_mask"):
            tokens = getattr(self, name)
            if tokens is not None and tokens.shape != self.clean_tokens.shape:
                raise InvalidInputError(
                    f"{name} must have the clean tokens' shape {[n, length]}; got {list(tokens.shape)}."
                )
        if n == 0:
            raise InvalidInputError("a task needs at least one prompt.")
        if bool(((self.positions < 0) | (self.positions >= length)).any()):
            raise positions_error(self.positions, length)

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
            if isinstance(values, PromptMetric):
                return values.of_rows(rows.to(values.positions.device))
            if callable(values):
                return self._whole(values, numbers)
            return None if values is None else tuple(values[number] for number in numbers.tolist())

        taken = {each.name: some(getattr(self, each.name)) for each in fields(self) if each.name != "word_idx"}
        return type(self)(**taken, word_idx={name: at[rows] for name, at in self.word_idx.items()})

    def _whole(self, metric: Metric, numbers: Tensor) -> Metric:
        """Refuse a metric of all prompts for some of them."""
        if numbers.tolist() != list(range(len(self))):
            raise InvalidInputError(
                f"the task's metric is a function of the logits of all {len(self)} prompts, so that some of them have "
                "none. Give a metric with a number for each prompt (an AnswerMetric or a NumberMetric).",
                code="HS-METRIC-04",
            )
        return metric

    def to(self, device: torch.device | str) -> Self:
        """Return the task on another device."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | PromptMetric)
        }
        return replace(self, **moved, word_idx={name: at.to(device) for name, at in self.word_idx.items()})

    @property
    def measure(self) -> Metric:
        """The metric of the task: the one it was given, or the logit difference of its answers."""
        return AnswerMetric.of(self) if self.metric is None else self.metric

    @property
    def masks(self) -> tuple[Bool[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]]:
        """The real tokens of the clean and of the corrupted prompts."""
        return self.attention_mask, self.attention_mask if self.corrupted_mask is None else self.corrupted_mask

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that makes it differ from another task, by name; see `prompts.identity`.

        A metric that is a function of the logits is different in each call.
        """
        return telling({each.name: getattr(self, each.name) for each in fields(self)})

    def logit_difference(
        self, logits: Float[Tensor, "prompt *pos d_vocab"], per_prompt: bool = False
    ) -> Float[Tensor, "*prompt"]:
        """Return the mean logit of the right answers less that of the wrong ones, where they are predicted.

        Args:
            logits: Of these prompts, at every position; or (without that axis) at `positions`.
            per_prompt: One number for each prompt, instead of their mean.

        Raises:
            InvalidInputError: If the task has a metric, and no answers.
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
        asked = f"{right!r}, not {wrong!r}" if self.metric is None else "a metric of its own"
        return (
            f"Task({len(self)} prompts of up to {self.clean_tokens.shape[1]} tokens, {corrupted} corrupted ones, e.g. "
            f"{self.prompts[0]!r}: {asked})"
        )
