"""The number of prompts that tell what heads do from chance."""

import math

from headscope.analysis.core.stats import LEVEL, estimates_over_prompts, standard_errors, threshold
from headscope.analysis.heads.inhibition import TOLD
from headscope.analysis.heads.names import name_places, orders_of
from headscope.analysis.heads.types import KINDS
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.task import Task
from headscope.model.transformer import HookedTransformer

__all__ = ["prompts_needed"]

_POWER = 0.8416  # standard errors: of effects at a bound half are told, of those so far above it four in five


def prompts_needed(
    model: HookedTransformer, task: Task, *, share: float = TOLD, level: float = LEVEL, progress: bool = False
) -> int:
    """Return how many prompts tell a head with a share of a task's effect from zero, four times in five.

    In each order of the names, from how much the direct effects of heads differ among some prompts (two stages, as in
    Stein 1945): so many that the effect is `threshold + 0.84` errors from zero, a power of 80 %. A head whose own
    effect is larger than that share needs fewer prompts, and counts for no more.

    Args:
        model: The model.
        task: Some prompts like those to come, thirty or so.
        share: Of the logit difference.
        level: The level for all heads and kinds together, as in `detect_heads`.
        progress: Show a progress bar.

    Returns:
        The number; that of the prompts given, if the model does not clearly do the task.

    Raises:
        InvalidInputError: If the names cannot be found in the prompts.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset("mixed", N=32, tokenizer=model.tokenizer, prepend_bos=True))
        >>> prompts_needed(model, task), prompts_needed(model, task, share=0.02)
        (64, 1155)
    """
    found = attribute(model, task, sources=False, neurons=False, progress=progress)
    whole = estimates_over_prompts(found.logit_difference[:, None], task.clusters)[0]
    if whole.value <= 0 or not whole.clear(level=level):
        return len(task)
    heads = found.heads.double().flatten(1).cpu()
    bound = threshold(len(KINDS) * heads.shape[1], math.inf, level) + _POWER
    orders = orders_of(name_places(task))
    needed = 0
    for rows in orders.values():
        effects = heads[rows]
        told = effects.mean(0).abs().clamp(min=share * whole.value)
        spread = standard_errors(effects, task[rows].clusters) * math.sqrt(len(rows))
        each = (bound * spread / told).square().nan_to_num(0.0)
        # As many of this order, at its share of the prompts.
        needed = max(needed, math.ceil(math.ceil(float(each.max())) * len(task) / len(rows)))
    return max(len(task), needed)
