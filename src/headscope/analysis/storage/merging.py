"""The states of a run's shards, added up: always in the same order, so that the sum has the same bits.

Sums of floating-point numbers depend on the order of additions. The order here is a binary tree over shard numbers, as
in a tournament: 0 with 1, 2 with 3, then these two, and so on. It depends on how many shards there are and on nothing
else, neither on who measured them nor on when they came. At most one state for each level of the tree is held.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from headscope.analysis.storage.accumulator import added, flat_summaries, joined_summaries, split_summaries

__all__ = ["merge_states"]

State = Mapping[str, Any]


def merge_states(states: Iterable[State]) -> dict[str, Any]:
    """Add up accumulators' states, given in the order of their shards.

    Args:
        states: As `Accumulator.state` gives them; read one by one.

    Returns:
        The state of an accumulator that saw all of it: numbers and sums added (floating-point ones in float64), and
        the summaries of all (see `core.summaries`).

    Example:
        >>> import torch
        >>> merge_states([{"n_positions": 2, "total": torch.ones(2)}, {"n_positions": 3, "total": torch.ones(2)}])
        {'n_positions': 5, 'total': tensor([2., 2.], dtype=torch.float64)}
    """
    levels: list[tuple[int, State]] = []  # sizes fall from left to right, as in a binary number
    for state in states:
        levels.append((1, state))
        while len(levels) > 1 and levels[-2][0] == levels[-1][0]:
            _join_last(levels)
    while len(levels) > 1:
        _join_last(levels)
    return dict(levels[0][1]) if levels else {}


def _join_last(levels: list[tuple[int, State]]) -> None:
    (n_left, left), (n_right, right) = levels[-2:]
    levels[-2:] = [(n_left + n_right, _joined(left, right))]


def _joined(left: State, right: State) -> State:
    (left_kept, left), (right_kept, right) = split_summaries(left), split_summaries(right)
    numbers = {
        name: left.get(name, 0) + right.get(name, 0)
        for name in {**left, **right}
        if not isinstance(left.get(name, right.get(name)), Tensor)
    }
    tensors = [{name: value for name, value in each.items() if isinstance(value, Tensor)} for each in (left, right)]
    return {**numbers, **added(*tensors), **flat_summaries(joined_summaries(left_kept, right_kept))}
