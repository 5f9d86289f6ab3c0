"""What every analysis returns: frozen numbers with labels, what they were measured on, tables, and files.

A result is saved as one safetensors file: its tensors, and the rest as JSON in the file's header. Nothing in such a
file is ever executed.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.files import TensorFiles, read_metadata, write_tensors

__all__ = ["HeadScore", "Ranking", "Result", "RunInfo", "check_option", "component_label", "rank_components"]


@dataclass(frozen=True)
class RunInfo:
    """What was run on what.

    Attributes:
        model: The model's name.
        processing: The weight processing its weights went through; zero-baseline numbers depend on it.
        data: What it ran on, in the caller's words.
        n_sequences: Rows of tokens.
        n_positions: Positions that count in the means.
        options: The options of the analysis.
    """

    model: str
    processing: tuple[str, ...]
    data: str
    n_sequences: int
    n_positions: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        processing = ", ".join(self.processing) or "none"
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return (
            f"{self.model} (weight processing: {processing}) on {self.data}: {self.n_sequences} sequences, "
            f"{self.n_positions:,} positions" + (f"; {options}" if options else "")
        )


@dataclass(frozen=True)
class HeadScore:
    """One component and its number. `head` is `None` for an MLP."""

    layer: int
    head: int | None
    value: float

    @property
    def label(self) -> str:
        """`10.7` for a head, `MLP 10` for an MLP."""
        return component_label(self.layer, self.head)


class Ranking(tuple[HeadScore, ...]):
    """Components in order, printed as a table."""

    unit: str
    name: str

    def __new__(cls, scores: Iterable[HeadScore], *, name: str = "score", unit: str = "") -> Self:
        ranking = super().__new__(cls, tuple(scores))
        ranking.name, ranking.unit = name, unit
        return ranking

    def __str__(self) -> str:
        heading = f"{self.name} ({self.unit})" if self.unit else self.name
        rows = [f"{score.label:<8} {score.value:+.4f}" for score in self]
        return "\n".join([f"{'':<8} {heading}", *rows])

    def __repr__(self) -> str:
        return str(self)


def component_label(layer: int, head: int | None) -> str:
    """`10.7` for a head, `MLP 10` for an MLP."""
    return f"MLP {layer}" if head is None else f"{layer}.{head}"


def rank_components(
    values: Tensor, k: int, *, n_heads: int, name: str, unit: str = "", largest: bool = True, mlps: bool = False
) -> Ranking:
    """The `k` largest (or smallest) entries of `values [layer, component]`, heads first in each layer, then the MLP."""
    if k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    if values.ndim != 2:
        raise InvalidInputError(
            f"only means over positions are ranked; these values have shape {list(values.shape)}. Call .mean() first."
        )
    considered = values if mlps else values[:, :n_heads]
    width = considered.shape[1]
    order = considered.flatten().argsort(descending=largest)[:k].tolist()
    scores = []
    for index in order:
        layer, component = divmod(index, width)
        head = component if component < n_heads else None
        scores.append(HeadScore(layer, head, float(considered[layer, component])))
    return Ranking(scores, name=name, unit=unit)


def check_option(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse an option that is not one of `allowed`."""
    if value not in allowed:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class Result:
    """Base of the result objects: a frozen dataclass of tensors, labels and a `RunInfo`."""

    kind: ClassVar[str] = "result"
    info: RunInfo

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file, atomically: the old file stands until the new one is whole."""
        path = Path(path)
        tensors, rest = {}, {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                tensors[each.name] = value
            else:
                rest[each.name] = dataclasses.asdict(value) if isinstance(value, RunInfo) else value
        write_tensors(path, tensors, {"kind": self.kind, "fields": json.dumps(rest)})
        return path

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing, corrupt, or holds another kind of result.
        """
        metadata = read_metadata(Path(path))
        tensors = {name: tensor.clone() for name, tensor in TensorFiles([Path(path)]).items()}
        if metadata.get("kind") != cls.kind:
            raise CheckpointError(f"{path} holds {metadata.get('kind')!r}, not {cls.kind!r}.")
        try:
            rest = json.loads(metadata["fields"])
            info = rest.pop("info")
            info["processing"] = tuple(info["processing"])
            labels = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
            return cls(info=RunInfo(**info), **labels, **tensors)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a whole {cls.kind!r} result: {error}.") from None


def masked_mean(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean over the entries that are not NaN (positions that do not count are NaN), in float64."""
    return torch.nanmean(values.double(), dim=dims).to(values.dtype)
