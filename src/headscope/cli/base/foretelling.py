"""The foretelling of long commands: the work and its time, said before it starts, and one bar over it all."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from headscope.analysis.core.progress import duration
from headscope.cli.base.commands import say
from headscope.model.transformer import HookedTransformer
from headscope.report.plan import Part, Plan, measured_rates

__all__ = ["foretell", "foretold"]

_LONG = 10.0  # seconds, from which it is worth telling
_SHORT = 5e10  # operations that any machine does in less, so that none is probed for them
_RUN = 1e7  # what a call of the model counts there, besides its operations


@contextmanager
def foretold(
    model: HookedTransformer, parts: Sequence[Part], *, shown: bool = True
) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Say what will be done and about how long it takes, unless it is short, and yield what each part is done within.

    Args:
        model: The model, which is run for a second or two to measure this machine.
        parts: What will be done.
        shown: `False` says nothing and shows no bar.
    """
    plan = foretell(model, parts) if shown else None
    if plan is None:
        yield lambda _: nullcontext()
    else:
        with plan.following(shown=True) as following:
            yield following.part


def foretell(model: HookedTransformer, parts: Sequence[Part]) -> Plan | None:
    """Say what will be done and about how long it takes, and return the plan; `None` if it is short.

    Args:
        model: The model, which is run for a second or two to measure this machine.
        parts: What will be done.
    """
    stages = [stage for part in parts for stage in part.stages.values()]
    if sum(stage.operations + _RUN * stage.runs for stage in stages) < _SHORT:
        return None
    probe = torch.zeros(1, model.cfg.n_ctx, dtype=torch.long, device=model.W_E.device)
    plan = Plan(tuple(parts), measured_rates(model, probe))
    if plan.seconds < _LONG:
        return None
    say(_line(plan))
    return plan


def _line(plan: Plan) -> str:
    if len(plan.parts) == 1:
        return str(plan)
    each = (f"{part.name} ({part.says}) {duration(plan.seconds_of(part))}" for part in plan.parts)
    return f"About {duration(plan.seconds)} on this machine: {', '.join(each)}."
