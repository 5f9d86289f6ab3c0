"""`topk_samples`: the texts that activate each neuron most."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import checked_tokens, to_array
from headscope.views.drawing.packing import checked_labels, is_list, packed, string_table
from headscope.views.html import HtmlView

__all__ = ["topk_samples"]


def topk_samples(
    tokens: Sequence[Sequence[Sequence[Sequence[str]]]],
    activations: Any,
    *,
    zeroth_dimension_name: str = "Layer",
    first_dimension_name: str = "Neuron",
    zeroth_dimension_labels: Sequence[Any] | None = None,
    first_dimension_labels: Sequence[Any] | None = None,
    name: str = "activation",
    unit: str = "",
    title: str = "",
) -> HtmlView:
    """Show a neuron's texts in descending order of their largest activation, with tokens colored by activation.

    Menus select the layer and the neuron. Colors are centered on zero and full at the neuron's largest magnitude.

    Args:
        tokens: Tokens as strings, `tokens[layer][neuron][sample][pos]`; samples may differ in number and length.
        activations: A number for each token, nested in the same way, or one array `[layer, neuron, sample, pos]`. NaN
            is not colored.
        zeroth_dimension_name: Name of the outermost dimension.
        first_dimension_name: Name of the next dimension.
        zeroth_dimension_labels: Labels along the outermost dimension.
        first_dimension_labels: Labels along the next.
        name: Name of the values.
        unit: Their unit.
        title: A heading.

    Raises:
        InvalidInputError: If tokens and activations are nested differently, or for a wrong number of labels.

    Example:
        >>> view = topk_samples([[[["a", " b"], ["c"]]]], [[[[0.1, 0.2], [0.9]]]])
        >>> view.data["samples"]  # the one with 0.9 is first
        [[[[0], [1, 2]]]]
    """
    texts: list[list[str]] = []
    values: list[np.ndarray] = []
    n_neurons = 0
    for layer, pair in enumerate(_pairs(tokens, activations, "", "layers")):
        neurons = _pairs(*pair, f"[{layer}]", "neurons")
        n_neurons = n_neurons or len(neurons)
        if len(neurons) != n_neurons:
            raise InvalidInputError(
                f"tokens[{layer}] has {len(neurons)} neurons, and tokens[0] has {n_neurons}; all layers must have the "
                "same number."
            )
        for neuron, pair in enumerate(neurons):
            where = f"[{layer}][{neuron}]"
            samples = [_sample(*each, f"{where}[{at}]") for at, each in enumerate(_pairs(*pair, where, "samples"))]
            samples.sort(key=lambda sample: -_largest(sample[1]))
            texts += [text for text, _ in samples]
            values += [numbers for _, numbers in samples]
    strings, indices = string_table(texts)
    remaining = iter(indices)
    return HtmlView(
        "topk_samples",
        {
            "strings": strings,
            "samples": [[[next(remaining) for _ in samples] for samples in layer] for layer in tokens],
            "dimensions": [
                [
                    zeroth_dimension_name,
                    checked_labels(zeroth_dimension_labels, len(tokens), "zeroth_dimension_labels"),
                ],
                [first_dimension_name, checked_labels(first_dimension_labels, n_neurons, "first_dimension_labels")],
            ],
            "name": name,
            "unit": unit,
            **packed(np.concatenate(values)),
        },
        title,
    )


def _pairs(tokens: Any, values: Any, where: str, what: str) -> list[tuple[Any, Any]]:
    """Return one level of the nested tokens and activations, which must be as long as each other."""
    for value, name in ((tokens, "tokens"), (values, "activations")):
        if not is_list(value):
            raise InvalidInputError(
                f"{name}{where} is {type(value).__name__} {value!r:.60}; it must be a list of {what}."
            )
    if len(tokens) != len(values):
        raise InvalidInputError(
            f"tokens{where} has {len(tokens)} {what}, and activations{where} has {len(values)}; the numbers must be "
            "equal."
        )
    if not len(tokens):
        raise InvalidInputError(f"tokens{where} has no {what}; give tokens[layer][neuron][sample][pos].")
    return list(zip(tokens, values, strict=True))


def _sample(text: Any, numbers: Any, where: str) -> tuple[list[str], np.ndarray]:
    if not is_list(text):
        raise InvalidInputError(f"tokens{where} is {type(text).__name__} {text!r:.60}; it must be a list of strings.")
    array = to_array(numbers, f"activations{where}")
    if array.ndim != 1:
        raise InvalidInputError(
            f"activations{where} must be one number per token, [pos]; got shape {list(array.shape)}. Activations are "
            "nested as [layer][neuron][sample][pos]."
        )
    return checked_tokens(text, len(array), of=f"activations{where}"), array


def _largest(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else -np.inf
