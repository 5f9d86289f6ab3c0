"""Full forward passes with an activation changed in each, as one batch: an oracle at the price of a few runs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from headscope import HookedTransformer


def changed_runs(
    model: HookedTransformer,
    tokens: Tensor,
    name: str,
    writes: Sequence[Callable[[Tensor], None]],
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Return the logits of full runs with a hook, `[write, batch, pos, d_vocab]`.

    Args:
        model: Runs them; no row of a batch is seen by another.
        tokens: What each run is on, `[batch, pos]`.
        name: Of the activation.
        writes: What each run writes into it, in place.
        attention_mask: As the model takes it, `[batch, pos]`.
    """

    def put(value: Tensor, hook: Any) -> Tensor:
        copies = value.clone().unflatten(0, (len(writes), len(tokens)))
        for copy, write in zip(copies, writes, strict=True):
            write(copy)
        return copies.flatten(0, 1)

    mask = None if attention_mask is None else attention_mask.repeat(len(writes), 1)
    with torch.no_grad():
        logits = model.run_with_hooks(tokens.repeat(len(writes), 1), fwd_hooks=[(name, put)], attention_mask=mask)
    return logits.unflatten(0, (len(writes), len(tokens)))
