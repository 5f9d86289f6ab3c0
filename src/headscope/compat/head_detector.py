"""Scores of each head's attention against the pattern expected of a kind of head.

The expectation is a *detection pattern* `[query_pos, key_pos]`: your own, or that of a named kind.

| kind                  | a query attends to                                       |
|-----------------------|----------------------------------------------------------|
| `previous_token_head` | the position before it                                   |
| `duplicate_token_head`| earlier copies of its own token                          |
| `induction_head`      | positions right after earlier copies (its own may be one)|

A prompt's heads are compared as soon as a layer has made its pattern; none is kept. `headscope.analysis.heads.scores`
measures the same kinds on a corpus, with padding and BOS left out.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.analysis.core.result import check_option
from headscope.analysis.recording.record import record
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.activations.cache import ActivationCache
from headscope.model.names import get_act_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.arrays import is_lower_triangular, is_square

__all__ = [
    "HEAD_NAMES",
    "ErrorMeasure",
    "HeadName",
    "LayerHeadTuple",
    "LayerToHead",
    "compute_head_attention_similarity_score",
    "detect_head",
    "get_duplicate_token_head_detection_pattern",
    "get_induction_head_detection_pattern",
    "get_previous_token_head_detection_pattern",
    "get_supported_heads",
    "is_lower_triangular",
    "is_square",
]

logger = logging.getLogger("headscope")

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
HEAD_NAMES: list[HeadName] = list(get_args(HeadName))
ErrorMeasure = Literal["abs", "mul"]
LayerHeadTuple = tuple[int, int]
LayerToHead = dict[int, list[int]]


@torch.no_grad()
def detect_head(
    model: HookedTransformer,
    seq: str | Sequence[str],
    detection_pattern: Tensor | str,
    heads: Sequence[LayerHeadTuple] | LayerToHead | None = None,
    cache: ActivationCache | Mapping[str, Tensor] | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
) -> Float[Tensor, "layer head"]:
    """Score every head by how close its attention is to the detection pattern.

    - `error_measure="mul"`: the share of the head's attention that falls where the pattern is 1, between 0 and 1.
    - `error_measure="abs"`: 1 minus the absolute difference from the pattern, summed over keys and averaged over
      queries (rounded to three decimals): 1 for the pattern itself, -1 for attention nowhere near it.

    Args:
        model: The model.
        seq: A text, or several: then the mean of their scores.
        detection_pattern: One of `HEAD_NAMES`, or a lower triangular matrix with a row and a column for each token of
            the text, BOS included.
        heads: Score only these: `(layer, head)` pairs, or lists of heads by layer.
        cache: Activations of a run on this one text, with or without the batch axis; default: the model is run.
        exclude_bos: Leave attention to the first position out.
        exclude_current_token: Leave a position's attention to itself out.
        error_measure: `"mul"` or `"abs"`.

    Returns:
        The scores, on the CPU; -1 for heads that were not asked for, NaN for a head with no attention left to compare.

    Raises:
        UnknownNameError: For a kind of head that does not exist, or a cache without patterns.
        InvalidInputError: For a pattern that is not a lower triangular matrix of the text's size, a text of fewer than
            two tokens or longer than the model's context, a head that does not exist, or a cache of another text.
        MissingTokenizerError: If the model has no tokenizer.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> scores = detect_head(model, "Mary saw Tom. Then Mary saw Tom.", "previous_token_head")
        >>> scores.amax(1)  # the best head of each layer
        tensor([0.9090, 0.1687, 0.2755, 0.2034, 0.2273])
    """
    check_option("error_measure", error_measure, get_args(ErrorMeasure))
    texts = [seq] if isinstance(seq, str) else list(seq)
    if not texts:
        raise InvalidInputError("there is no text to look at: seq is empty.")
    if cache is not None and len(texts) > 1:
        raise InvalidInputError(f"a cache goes with one text; got {len(texts)} texts. Leave the cache out.")
    chosen = _chosen_heads(model, heads)
    layers = chosen.any(1).nonzero().flatten().tolist()
    names = [get_act_name("pattern", layer) for layer in layers]
    scores = torch.zeros(len(texts), *chosen.shape, dtype=model.cfg.dtype)
    for row, text in zip(scores, texts, strict=True):
        tokens = _tokens(model, text)
        expected = _expected_pattern(tokens, detection_pattern, error_measure)
        compare = partial(_similarity, expected, exclude_bos, exclude_current_token, error_measure)
        if cache is not None:
            shape = (model.cfg.n_heads, len(tokens), len(tokens))
            compared = {name: compare(_cached_pattern(cache, name, shape)) for name in names}
        elif layers:
            # Each pattern is compared when it is made, and dropped.
            compared = record(model, tokens[None], dict.fromkeys(names, compare), stop_at_layer=layers[-1] + 1).kept
        for layer, name in zip(layers, names, strict=True):
            row[layer] = compared[name]
    return torch.where(chosen, scores.mean(0), -1.0)


def _chosen_heads(
    model: HookedTransformer, heads: Sequence[LayerHeadTuple] | LayerToHead | None
) -> Bool[Tensor, "layer head"]:
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    having = model.cfg.layers_with("attn")
    chosen = torch.zeros(n_layers, n_heads, dtype=torch.bool)
    chosen[list(having)] = heads is None
    if isinstance(heads, Mapping):
        heads = [(layer, head) for layer, of_layer in heads.items() for head in of_layer]
    for layer, head in heads or ():
        if 0 <= layer < n_layers and layer not in having:
            raise InvalidInputError(f"there is no head {layer}.{head}: layer {layer} has no attention.")
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise InvalidInputError(
                f"there is no head {layer}.{head}: this model has layers 0 to {n_layers - 1}, each with heads 0 to "
                f"{n_heads - 1}.",
                code="HS-HEADS-01",
            )
        chosen[layer, head] = True
    return chosen


def _tokens(model: HookedTransformer, text: str) -> Int[Tensor, " pos"]:
    tokens = model.to_tokens(text, truncate=False)[0]
    if not 2 <= len(tokens) <= model.cfg.n_ctx:
        raise InvalidInputError(
            f"the text {text[:40]!r}{'...' if len(text) > 40 else ''} is {len(tokens)} tokens; a head is looked at on "
            f"2 to n_ctx = {model.cfg.n_ctx} tokens. {'Cut it.' if len(tokens) > 2 else 'Give a longer one.'}"
        )
    return tokens


def _expected_pattern(
    tokens: Int[Tensor, " pos"], detection_pattern: Tensor | str, error_measure: ErrorMeasure
) -> Float[Tensor, "pos pos"]:
    """Return the named pattern of these tokens, or the given one once it is known to fit them."""
    if isinstance(detection_pattern, str):
        if detection_pattern not in _PATTERNS:
            raise unknown_name(
                "kind of head", detection_pattern, _PATTERNS, hint=f"Allowed: {', '.join(_PATTERNS)}, or a tensor."
            )
        return _PATTERNS[detection_pattern](tokens)
    expected = detection_pattern.to(tokens.device)
    fits = expected.shape == (len(tokens), len(tokens))
    if not fits or not is_lower_triangular(expected):
        raise InvalidInputError(
            "detection_pattern must be a lower triangular matrix [pos, pos] with pos the text's number of tokens "
            f"(BOS included), which is {len(tokens)}; got shape {list(expected.shape)}"
            f"{' with entries above the diagonal' if fits else ''}."
        )
    if error_measure == "mul" and not bool(((expected == 0) | (expected == 1)).all()):
        logger.warning(
            "the detection pattern has entries other than 0 and 1, so that a score of error_measure='mul' is no share "
            "of attention; error_measure='abs' compares with such patterns."
        )
    return expected.to(torch.float32) if not expected.is_floating_point() else expected


def _cached_pattern(
    cache: ActivationCache | Mapping[str, Tensor], name: str, shape: tuple[int, ...]
) -> Float[Tensor, "head query_pos key_pos"]:
    if name not in cache:
        raise unknown_name(
            "cached activation", name, cache, hint="Cache the patterns, or leave the cache out.", code="HS-NAME-03"
        )
    pattern = cache[name]
    if pattern.shape not in (shape, (1, *shape)):
        raise InvalidInputError(
            f"the cache's {name} has shape {list(pattern.shape)}, which is not that of this text: {list(shape)}. "
            "Leave the cache out, or make it of this text alone."
        )
    return pattern.view(shape)


def _similarity(
    expected: Float[Tensor, "query_pos key_pos"],
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
    patterns: Float[Tensor, "*head query_pos key_pos"],
) -> Float[Tensor, "*head"]:
    length = expected.shape[-1]
    compared = torch.ones(length, length, dtype=torch.bool, device=patterns.device)
    if exclude_bos:
        compared[:, 0] = False
    if exclude_current_token:
        compared.fill_diagonal_(False)
    patterns = patterns.to(torch.promote_types(patterns.dtype, torch.float32))
    if error_measure == "mul":
        paid = patterns * compared
        return (paid * expected).sum((-2, -1)) / paid.sum((-2, -1))
    difference = ((patterns - expected).abs() * compared).sum((-2, -1)) / length
    return 1 - difference.round(decimals=3)


def compute_head_attention_similarity_score(
    attention_pattern: Float[Tensor, "query_pos key_pos"],
    detection_pattern: Tensor,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> float:
    """Return the score that `detect_head` gives to one head's attention; neither tensor is changed.

    Raises:
        InvalidInputError: If the two are not square matrices of the same size, or for an unknown `error_measure`.

    Example:
        >>> halves = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        >>> options = {"exclude_bos": False, "exclude_current_token": False}
        >>> compute_head_attention_similarity_score(halves, torch.eye(2), error_measure="mul", **options)
        0.75
    """
    check_option("error_measure", error_measure, get_args(ErrorMeasure))
    if not is_square(attention_pattern) or attention_pattern.shape != detection_pattern.shape:
        raise InvalidInputError(
            "the two patterns must be square matrices of one size; got shapes "
            f"{list(attention_pattern.shape)} and {list(detection_pattern.shape)}."
        )
    return _similarity(detection_pattern, exclude_bos, exclude_current_token, error_measure, attention_pattern).item()


def get_previous_token_head_detection_pattern(tokens: Int[Tensor, "*one pos"]) -> Float[Tensor, "pos pos"]:
    """Return 1 where a query attends to the position before it, for tokens `[pos]` or `[1, pos]`.

    Example:
        >>> get_previous_token_head_detection_pattern(torch.tensor([5, 6, 7]))
        tensor([[0., 0., 0.],
                [1., 0., 0.],
                [0., 1., 0.]])
    """
    length = len(_one_row(tokens))
    return torch.ones(length, length, device=tokens.device).tril(-1).triu(-1)


def get_duplicate_token_head_detection_pattern(tokens: Int[Tensor, "*one pos"]) -> Float[Tensor, "pos pos"]:
    """Return 1 where a query attends to an earlier copy of its own token, for tokens `[pos]` or `[1, pos]`.

    Example:
        >>> get_duplicate_token_head_detection_pattern(torch.tensor([5, 6, 5]))[2]
        tensor([1., 0., 0.])
    """
    row = _one_row(tokens)
    return (row[:, None] == row[None, :]).float().tril(-1)


def get_induction_head_detection_pattern(tokens: Int[Tensor, "*one pos"]) -> Float[Tensor, "pos pos"]:
    """Return 1 where a query attends to the token after an earlier copy of its own, for tokens `[pos]` or `[1, pos]`.

    Example:
        >>> get_induction_head_detection_pattern(torch.tensor([5, 6, 5]))[2]
        tensor([0., 1., 0.])
    """
    return F.pad(get_duplicate_token_head_detection_pattern(tokens)[:, :-1], (1, 0))


def get_supported_heads() -> None:
    """Print the kinds of head that have a name.

    Example:
        >>> get_supported_heads()
        Supported heads: previous_token_head, duplicate_token_head, induction_head
    """
    print(f"Supported heads: {', '.join(HEAD_NAMES)}")


def _one_row(tokens: Tensor) -> Int[Tensor, " pos"]:
    if tokens.ndim != 1 and (tokens.ndim != 2 or len(tokens) != 1):
        raise InvalidInputError(f"tokens must be one sequence, [pos] or [1, pos]; got shape {list(tokens.shape)}.")
    return tokens.flatten()


_PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}
