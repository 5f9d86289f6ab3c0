"""Checks on toy models, whose weights can be read as tables."""

from typing import Any

import torch

from headscope.exercises.verdict import Verdict, judge
from headscope.model.transformer import HookedTransformer
from headscope.training.toy_study import token_circuits


@torch.no_grad()
def check_skip_trigrams(answer: Any, model: HookedTransformer) -> Verdict:
    """Check the table of what each head writes, for every token it may attend to, on the logit of every token.

    Args:
        answer: `[head, source, d_vocab]`: `W_E W_V W_O W_U` of the first layer, without biases.
        model: An attention-only model without norms.

    Example:
        >>> from headscope.training import toy_configs
        >>> model = HookedTransformer(toy_configs.skip_trigram())
        >>> check_skip_trigrams(token_circuits(model).qk, model)
        Not yet. It is the QK circuit: where a head looks, not what it writes from there.
    """
    circuits = token_circuits(model)
    right = circuits.ov
    mistakes = {
        "It is the QK circuit: where a head looks, not what it writes from there": circuits.qk,
        "It is the table of logits by source: source and output are exchanged": right.mT,
        "The bias of the values was added; it is written whatever the head looks at": right + circuits.ov_bias[:, None],
        "It is what all heads write together; one table for each is asked for": right.sum(0).expand_as(right),
        "These are probabilities; logits are asked for": right.softmax(-1),
    }
    head, source, output = torch.unravel_index(right.argmax(), right.shape)
    praise = (
        f"The largest entry: head {int(head)}, looking at {int(source)}, raises the logit of {int(output)} by "
        f"{float(right.max()):.1f}."
    )
    return judge(answer, right, ["head", "source", "output"], mistakes=mistakes, praise=praise)
