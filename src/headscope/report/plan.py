"""The plan of a long run: what will be done, about how long it takes on this machine, and one bar over all of it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from headscope.analysis.core.costs import (
    Work,
    layer_operations,
    row_operations,
    run_operations,
)
from headscope.analysis.core.progress import Bar, duration, watching
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.changed_predictions import Prediction, RowChanges, compare
from headscope.ops.lens_entropy import lens_entropies
from headscope.ops.lens_problem import LensProblem
from headscope.report.costs import Stages

__all__ = ["Following", "Part", "Plan", "measured_rates"]

_PROBE = 2e10  # operations: some tenths of a second of one core
_ROWS, _COLUMNS = 64, 8192
# The pace of a run is judged by its plan at first, and by itself once it is well under way.
_TRUST = 0.1


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        name: Its name.
        says: What it is done on, for people.
        stages: Its work, by the name of the bar that moves with it.
    """

    name: str
    says: str
    stages: Stages


@dataclass(frozen=True)
class Plan:
    """The work to be done, and its rates.

    Attributes:
        parts: In the order in which they are done.
        rates: Seconds for each unit of each kind of work.
    """

    parts: tuple[Part, ...]
    rates: Work

    @property
    def seconds(self) -> float:
        """The time that all of it takes."""
        return float(sum(map(self.seconds_of, self.parts)))

    def seconds_of(self, part: Part) -> float:
        """The time that a part takes."""
        return float(sum(work.seconds(self.rates) for work in part.stages.values()))

    def __str__(self) -> str:
        if len(self.parts) == 1:
            (part,) = self.parts
            return f"{part.name}: {part.says}; about {duration(self.seconds)} on this machine."
        width = max((len(part.name) for part in self.parts), default=0)
        wide = max((len(part.says) for part in self.parts), default=0)
        lines = [
            f"  {part.name:<{width}}  {part.says:<{wide}}  {duration(self.seconds_of(part)):>8}" for part in self.parts
        ]
        return "\n".join([f"About {duration(self.seconds)} on this machine:", *lines])

    @contextmanager
    def following(self, *, shown: bool) -> Iterator["Following"]:
        """Show one bar over all parts, with the time left."""
        line = "{desc}{percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        with tqdm(total=self.seconds, bar_format=line, disable=not shown, leave=False, dynamic_ncols=True) as terminal:
            yield Following(self, terminal)


class Following(Bar):
    """The bar over a plan: the bars of each stage move it by the stage's share of all the time.

    Args:
        plan: The plan.
        terminal: The line it is shown on.
    """

    def __init__(self, plan: Plan, terminal: Any) -> None:
        super().__init__(plan.seconds, "all", self._show)
        self._plan, self._terminal, self._start = plan, terminal, time.monotonic()
        self._stages: Mapping[str, float] = {}
        self._shares: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Do a part of the plan; one that is not in it moves nothing."""
        part = next((part for part in self._plan.parts if part.name == name), None)
        stages = {} if part is None else part.stages
        self._stages = {stage: work.seconds(self._plan.rates) for stage, work in stages.items()}
        self._shares = {}
        self._terminal.set_description(name, refresh=False)
        self._show(self)
        with watching(self):
            yield
        self.update(sum(self._stages.values()))

    def moved_within(self, inner: Bar) -> None:
        """Move by the share of a stage that is done."""
        self._shares[inner.name] = max(self._shares.get(inner.name, 0.0), float(inner.share))
        self._within = sum(self._stages.get(name, 0.0) * share for name, share in self._shares.items())
        self._show(self)

    def left(self, elapsed: float) -> float:
        """Return the seconds that are left, after some that passed."""
        assert self.total is not None
        trust = _TRUST * self.total
        return (self.total - self.position) * (elapsed + trust) / (self.position + trust) if self.total else 0.0

    def _show(self, _: Bar) -> None:
        left = self.left(time.monotonic() - self._start)
        self._terminal.set_postfix_str(f"about {duration(left)} left", refresh=False)
        self._terminal.update(self.position - self._terminal.n)


@torch.no_grad()
def measured_rates(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Work:
    """Measure how long a unit of each kind of work takes here and now; a second or two for a model of 135M parameters.

    Args:
        model: The model.
        tokens: Some that it can read.
    """
    cfg = model.cfg
    n = int(min(max(8, _PROBE / (cfg.n_layers * layer_operations(model))), 128, tokens.shape[1]))
    few, many = tokens[:1, :1], tokens[:1, :n]
    model(few, stop_at_layer=cfg.n_layers)
    call = _timed(lambda: model(few, stop_at_layer=cfg.n_layers))
    layers = _timed(lambda: model(many, stop_at_layer=cfg.n_layers)) - call
    readout = readout_of(model)
    kind = torch.promote_types(cfg.dtype, torch.float32)
    W_U, b_U = (each.detach().to(kind) for each in (readout.W_U, readout.b_U))
    n_rows = int(min(max(4, _PROBE / run_operations(model, cfg.n_layers)), _ROWS))
    rows = W_U.new_zeros(n_rows, cfg.d_model)
    clean = Prediction(rows, W_U, b_U, torch.zeros(n_rows, dtype=torch.long, device=rows.device))
    one, three = (_timed(lambda n=n: compare(clean, RowChanges(rows, rows.expand(n, -1, -1)))) for n in (1, 3))
    row = _rate(three - one, three, 2 * n_rows * row_operations(model))
    heads, products = _head_rates(model, W_U[:, :_COLUMNS], b_U[:_COLUMNS], row)
    return Work(
        runs=call,
        layers=_rate(layers, layers + call, n * cfg.n_layers * layer_operations(model)),
        rows=row,
        heads=heads,
        products=products,
    )


def _head_rates(
    model: HookedTransformer, W_U: Float[Tensor, "d_model some"], b_U: Float[Tensor, " some"], row: float
) -> tuple[float, float]:
    """Seconds for each operation on heads' outputs, and on products of weights: from few and more rows of two layers.

    Args:
        model: The model.
        W_U: A part of the unembedding, of which the weights' products are cheap.
        b_U: Its bias.
        row: Seconds for each operation on states, of which there are some among the heads.
    """
    cfg, n_layers = model.cfg, min(2, model.cfg.n_layers)

    def solve(n_rows: int) -> None:
        states = W_U.new_zeros(n_layers + 1, n_rows, cfg.d_model)
        heads = W_U.new_zeros(n_layers, cfg.n_heads, n_rows, cfg.d_head)
        W_O = W_U.new_zeros(n_layers, cfg.n_heads, cfg.d_head, cfg.d_model)
        lens_entropies(LensProblem(states, tuple(range(n_layers)), (), heads, W_O, None, W_U, b_U, b_U))

    few, more = (_timed(lambda n=n: solve(n)) for n in (_ROWS, 4 * _ROWS))
    each = max(more - few, 0.1 * more) / (3 * _ROWS)
    once = max(few - _ROWS * each, 0.1 * few)
    n_heads = n_layers * cfg.n_heads
    head = 2.0 * W_U.shape[1] * cfg.d_head
    states = (n_layers + 1) * 2.0 * W_U.numel() * row
    return max(each - states, 0.3 * each) / (n_heads * head), once / (n_heads * cfg.d_model * head)


def _rate(seconds: float, at_most: float, operations: float) -> float:
    """Seconds for each operation, also where noise leaves nothing of a difference of times."""
    return max(seconds, 0.1 * at_most) / operations


def _timed(work: Any) -> float:
    """The shortest of three times: what else runs on the machine only adds to them."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a GPU's work is only launched when a call returns
        times.append(time.perf_counter() - start)
    return min(times)
