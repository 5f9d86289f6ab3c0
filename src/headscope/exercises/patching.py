"""Checks on interventions: activations, paths and circuits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.circuits.faithfulness import circuit_faithfulness
from headscope.analysis.core.components import components
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.path import path_patch
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.exercises.verdict import Verdict, judge
from headscope.model.transformer import HookedTransformer


@torch.no_grad()
def check_activation_patch(answer: Any, model: HookedTransformer, task: Task) -> Verdict:
    """Check activation patching of the residual stream: the share of the logit difference that each place brings back.

    Args:
        answer: `[layer, pos]`: the corrupted run with the clean `resid_pre` of this layer and position, scaled so that
            0 is the corrupted run and 1 the clean one; a mean over prompts.
        model: The model.
        task: Clean and corrupted prompts of one length.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> pair = ["When Mary and Tom met, Tom waved to", "When Mary and Tom met, Mary waved to"]
        >>> task = Task.from_prompts(pair[:1], [" Mary"], [" Tom"], model.tokenizer, corrupted=pair[1:])
        >>> check_activation_patch([[0.0] * 12] * 5, model, task)
        Not yet. All of it is 0: nothing was patched. Does the hook return the activation that it changed?
    """
    right = _patched(model, task)
    change = _patched(model, task, scale="metric")
    mistakes: dict[str, Tensor | Callable[[], Tensor]] = {
        "All of it is 0: nothing was patched. Does the hook return the activation that it changed?": 0 * right,
        "It is 1 less the right answer: 0 is the corrupted run, and 1 the clean one": 1 - right,
        "It is the change in logits; divide by what lies between the corrupted run and the clean one": change,
        "It is the logit difference itself, not scaled to 0 for the corrupted run and 1 for the clean one": (
            change + float(task.logit_difference(model(task.corrupted_tokens, attention_mask=task.corrupted_mask)))
        ),
        "It is the reverse, noising: the corrupted activation put into the clean run": (
            lambda: _patched(model, task, direction="noising")
        ),
    }
    layer, pos = divmod(int((right[1:] - right[1:].max()).argmax()), right.shape[1])
    praise = f"At layer {layer + 1} position {pos} alone brings back {float(right[layer + 1, pos]):.0%}."
    return judge(answer, right, ["layer", "position"], mistakes=mistakes, praise=praise)


def check_path_patch(answer: Any, model: HookedTransformer, task: Task, sender: str, receiver: str) -> Verdict:
    """Check path patching of one edge: the share that a head brings back through one input of a later head.

    Args:
        answer: One number: the sender's clean output reaches the receiver's input alone, with all other heads and all
            MLPs between them as in the corrupted run; what follows from the receiver is computed again.
        model: The model.
        task: Clean and corrupted prompts.
        sender: A head, such as `"0.3"`.
        receiver: An input of a later head, such as `"2.2.v"`.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> pair = ["When Mary and Tom met, Tom waved to", "When Mary and Tom met, Mary waved to"]
        >>> task = Task.from_prompts(pair[:1], [" Mary"], [" Tom"], model.tokenizer, corrupted=pair[1:])
        >>> check_path_patch([1.0, 2.0], model, task, "0.3", "2.2.v")
        Not yet. Its shape is [2], and one number is asked for. Is an axis left over, or averaged away?
    """
    (start,) = components(model.cfg, [sender])

    def effect(senders: str, receivers: str, **options: Any) -> Tensor:
        return path_patch(model, task, senders=[senders], receivers=[receivers], **options).values.reshape(())

    right = effect(sender, receiver)
    z = activation_patch(model, task, "z", by_position=False, progress=False)["z"]
    name, part = receiver.rsplit(".", 1)
    others = {
        f"It is the path into the {word} of {name}; that into its {_INPUTS[part]} is asked for": f"{name}.{each}"
        for each, word in _INPUTS.items()
        if each != part
    }
    mistakes = {
        f"It is the total effect of {sender}, over all paths: what lies between must stay as in the corrupted run": (
            z[start.layer, start.head]
        ),
        f"It is the direct effect of {sender} on the logits": effect(sender, "final"),
        "It is the reverse, noising: the corrupted output put into the clean run": (
            effect(sender, receiver, direction="noising")
        ),
        "The MLPs between were computed again; they are to stay as in the corrupted run": (
            effect(sender, receiver, freeze_mlps=False)
        ),
        "It is the change in logits, not the share": effect(sender, receiver, scale="metric"),
        **{sentence: effect(sender, other) for sentence, other in others.items()},
    }
    return judge(
        answer, right, mistakes=mistakes, praise=f"The path {sender} -> {receiver} carries {float(right):.1%}."
    )


def check_circuit(
    answer: Sequence[Any], model: HookedTransformer, task: Task, *, size: int = 3, share: float = 0.6
) -> Verdict:
    """Check a circuit of few heads: how much of the task's metric do they keep by themselves?

    Args:
        answer: Names of heads. All MLPs stay; all other heads give what they give on the corrupted prompt.
        model: The model.
        task: Clean and corrupted prompts.
        size: Most heads it may have.
        share: Least share of the metric it has to keep.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> pair = ["When Mary and Tom met, Tom waved to", "When Mary and Tom met, Mary waved to"]
        >>> task = Task.from_prompts(pair[:1], [" Mary"], [" Tom"], model.tokenizer, corrupted=pair[1:])
        >>> check_circuit(["0.0", "0.1", "1.0", "1.1"], model, task)
        Not yet. These are 4 heads; at most 3 are allowed.
    """
    try:
        heads = components(model.cfg, answer)
    except (InvalidInputError, TypeError) as error:
        return Verdict(
            False, error.message if isinstance(error, InvalidInputError) else "Give a list of names of heads."
        )
    labels = list(dict.fromkeys(head.label for head in heads))
    if len(labels) > size:
        return Verdict(False, f"These are {len(labels)} heads; at most {size} are allowed.")
    if not labels or any(head.head is None for head in heads):
        return Verdict(False, "Name heads, such as '3.2'; the MLPs are there anyway.")
    kept = _kept(model, task, labels)
    said = f"{', '.join(labels)} " + (
        f"keep {kept:.0%} by themselves" if len(labels) > 1 else f"keeps {kept:.0%} by itself"
    )
    if kept >= share:
        return Verdict(True, f"{said}.")
    without = {label: kept - _kept(model, task, [each for each in labels if each != label]) for label in labels}
    idle = min(without, key=lambda label: without[label]) if len(labels) > 1 else labels[0]
    said += f"; {share:.0%} is asked for"
    if without[idle] < 0.02 and len(labels) > 1:
        return Verdict(
            False, f"{said}. {idle} adds nothing to the others ({without[idle]:+.1%}): take another in its place."
        )
    more = "add one" if len(labels) < size else "exchange one"
    return Verdict(False, f"{said}. {'Each of them does something: ' + more if len(labels) > 1 else 'Add one'}.")


_INPUTS = {"q": "queries", "k": "keys", "v": "values"}


def _patched(
    model: HookedTransformer, task: Task, site: str = "resid_pre", **options: Any
) -> Float[Tensor, "layer pos"]:
    return activation_patch(model, task, site, by_position=True, progress=False, **options)[site]


def _kept(model: HookedTransformer, task: Task, labels: Sequence[str]) -> float:
    if not labels:
        return 0.0
    return float(circuit_faithfulness(model, task, list(labels), controls=0, progress=False).faithfulness[0])
