"""Checks on what single heads attend to, write and are needed for."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.core.components import component_label, components
from headscope.errors import InvalidInputError
from headscope.exercises.verdict import Verdict, judge
from headscope.model.transformer import HookedTransformer
from headscope.ops.factored import FactoredMatrix


@torch.no_grad()
def check_induction_scores(answer: Any, model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Verdict:
    """Check each head's induction score on random tokens said twice.

    Args:
        answer: `[layer, head]`: how much a token of the second copy attends to the token behind its first occurrence, a
            mean over the second copy and all rows.
        model: The model.
        tokens: Rows of BOS, n random tokens, and the same n tokens again.

    Example:
        >>> from headscope.data import repeated_random_tokens
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = repeated_random_tokens(4, 10, d_vocab=1024, bos=0)
        >>> check_induction_scores(None, model, tokens)
        Not yet. There is no answer yet: it is None. Does your function return its result?
    """
    patterns = _patterns(model, tokens)
    n = (tokens.shape[1] - 1) // 2

    def looking(back: int, queries: slice = slice(n + 1, None)) -> Float[Tensor, "layer head"]:
        """Mean attention of these queries to the token so many places back."""
        at = torch.arange(tokens.shape[1])[queries]
        return patterns[:, :, :, at, at - back].mean((2, 3))

    right = looking(n - 1)
    mistakes = {
        "It is attention to the first occurrence of the token itself: a duplicate-token score. The token behind it, "
        "one place later, is asked for": looking(n),
        "It is attention two places behind the first occurrence": looking(n - 2),
        "It is attention to the token before: a previous-token score": looking(1),
        "Queries before the second copy are counted too: of the diagonal, only the last n entries have a first copy to "
        "look at": patterns.diagonal(1 - n, -2, -1).mean((2, 3)),
        "Queries and keys are exchanged: a pattern is [query, key], and keys come first in time": (
            patterns.diagonal(n - 1, -2, -1)[..., -n:].mean((2, 3))
        ),
    }
    layer, head = divmod(int(right.argmax()), model.cfg.n_heads)
    praise = f"Head {layer}.{head} scores highest, {float(right.max()):.2f} of at most 1."
    return judge(answer, right, ["layer", "head"], mistakes=mistakes, praise=praise)


@torch.no_grad()
def check_previous_token_head(answer: Any, model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Verdict:
    """Check the name of the head that attends most to the token before.

    Args:
        answer: Its name, `"layer.head"` or `(layer, head)`.
        model: The model.
        tokens: Any text.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> check_previous_token_head("4.0", model, model.to_tokens("Tom went home."))
        Not yet. Head 4.0 gives the token before 0.24 of its attention; another head gives it 1.00. This one ...
    """
    if answer is None:
        return judge(answer, torch.tensor(0), praise="")
    try:
        (component,) = components(model.cfg, [answer])
    except InvalidInputError as error:
        return Verdict(False, error.message)
    layer, head = component.layer, component.head
    if head is None:
        return Verdict(False, f"{answer!r} is no head: name one as 'layer.head'.")
    patterns = _patterns(model, tokens)
    scores = patterns.diagonal(-1, -2, -1).mean((2, 3))
    found, most = float(scores[layer, head]), float(scores.max())
    label = component_label(layer, head)
    if found == most:
        return Verdict(True, f"Head {label} gives the token before {found:.2f} of its attention.")
    said = f"Head {label} gives the token before {found:.2f} of its attention; another head gives it {most:.2f}"
    onto = {"the token itself": patterns.diagonal(0, -2, -1), "the first token": patterns[..., 1:, 0]}
    for name, attention in onto.items():
        if float(attention[layer, head].mean()) > 0.5:
            said += f". This one looks at {name}"
    return Verdict(False, f"{said}.")


@torch.no_grad()
def check_ablation(answer: Any, model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layer: int) -> Verdict:
    """Check by how much each head of a layer lowers the loss, as zero and as mean ablation have it.

    Args:
        answer: `[2, head]`: the mean next-token loss with the head's output replaced by zero (first row) or by its mean
            over all positions of `tokens` (second row), less the loss of the whole model; in nats.
        model: The model.
        tokens: Texts of equal length.
        layer: The heads' layer.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> check_ablation([0.1, 0.2], model, model.to_tokens("The cat sat on the mat."), 3)
        Not yet. Its shape is [2], and [value, head] = [2, 4] is asked for. Is an axis left over, or averaged away?
    """
    heads = [(layer, head) for head in range(model.cfg.n_heads)]

    right = _increase(model, tokens, heads)
    mistakes = {
        "The rows are exchanged: zero ablation comes first": right.flip(0),
        "It is the direct effect alone; what comes after the head has to be computed again": (
            _increase(model, tokens, heads, effects=("direct",))
        ),
        "The mean is one of each position; one mean over all positions is asked for": (
            _increase(model, tokens, heads, mean_over="position")
        ),
        "Hooks pile up: each head is measured with those before it still ablated. Remove them after each run": (
            _piled_up(model, tokens, heads)
        ),
        "Each row is the loss itself; take that of the whole model from it": (
            right + float(model(tokens, return_type="loss"))
        ),
    }
    worst = int(right[1].argmax())
    praise = (
        f"Without head {layer}.{worst} the loss is {float(right[1, worst]):+.3f} nats higher by its mean, "
        f"{float(right[0, worst]):+.3f} by zero."
    )
    return judge(answer, right, ["value", "head"], mistakes=mistakes, praise=praise)


@torch.no_grad()
def check_copying_scores(answer: Any, model: HookedTransformer) -> Verdict:
    """Check how far each head's OV circuit copies: the sum of its eigenvalues over the sum of their magnitudes.

    Args:
        answer: `[layer, head]`, from -1 to 1, of `W_E W_V W_O W_U` (Elhage et al. 2021).
        model: The model.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> check_copying_scores(torch.zeros(5, 4), model)  # doctest: +SKIP
        Not yet. It is right in 0 of 20 places. The largest difference is at layer 2, head 1, where it is 0.
    """

    def score(matrix: FactoredMatrix) -> Float[Tensor, "layer head"]:
        eigenvalues = matrix.eigenvalues
        total: Tensor = eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)
        return total

    whole = FactoredMatrix(model.W_E @ model.W_V, model.W_O @ model.W_U)
    right, eigenvalues = score(whole), whole.eigenvalues
    mistakes = {
        "It is the QK circuit's; what a head writes is its OV circuit": (
            score(FactoredMatrix(model.W_E @ model.W_Q, model.W_K.mT @ model.W_E.mT))
        ),
        "It is of W_V W_O alone, without the embedding and the unembedding": (
            score(FactoredMatrix(model.W_V, model.W_O))
        ),
        "The magnitude was taken of the sum: the sign tells copying from suppressing": right.abs(),
        "It is the sum of the eigenvalues; divide by the sum of their magnitudes": eigenvalues.sum(-1).real,
        "It is the mean of the eigenvalues' signs; large ones count more": eigenvalues.real.sign().mean(-1),
    }
    layer, head = divmod(int(right.argmin()), model.cfg.n_heads)
    praise = f"Most heads copy; {layer}.{head} does the opposite, {float(right.min()):+.2f}."
    return judge(answer, right, ["layer", "head"], mistakes=mistakes, praise=praise)


def _patterns(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer head batch query_pos key_pos"]:
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    return torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)]).transpose(1, 2)


def _increase(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], heads: list[Any], **options: Any
) -> Float[Tensor, "value head"]:
    """Return the loss without each head less that of the model, by zero and by the mean."""
    given = {"effects": ("patched",), "reduce": "mean", "include_bos": True, "progress": False, **options}
    return ablate_heads(model, tokens, heads=heads, **given).loss_diff[:, 0]


def _piled_up(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], heads: list[tuple[int, int]]
) -> Float[Tensor, "value head"]:
    """Return the same where hooks are never removed: each head, and all heads of its layer before it."""
    together = [list(heads[: number + 1]) for number in range(len(heads))]
    return _increase(model, tokens, together)
