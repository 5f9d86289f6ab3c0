"""The explorer's files from what was found: the config, a row for each head, and each head's own record."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.storage.manifest import headscope_version
from headscope.explorer.measuring.activity import norm_edges
from headscope.explorer.measuring.found import Column, Found
from headscope.explorer.measuring.pattern_sums import distance_edges
from headscope.explorer.measuring.sequences import N_INTERVALS
from headscope.explorer.tree.measures import MEASURES, described
from headscope.explorer.tree.writing import rounded
from headscope.ops.arrays import to_numpy

__all__ = ["KINDS", "config_of", "head_record", "scatter_row"]

_LISTED = 50  # tokens, and pairs of them
_NEIGHBORS = 8
_LOST = {
    "key_tokens": "At most missing from a key's share",
    "query_tokens": "At most missing from a query's share",
    "token_pairs": "At most missing from a pair's share",
}

KINDS: Mapping[str, tuple[str, str]] = {
    "previous_token": ("Previous token", "attends to the token before"),
    "duplicate_token": ("Duplicate token", "attends to earlier copies of the token"),
    "induction": ("Induction", "attends to what followed earlier copies of the token, and does not write against it"),
    "copy_suppression": ("Copy suppression", "lowers the logit of the token that repeats next"),
}
"""The kinds of heads that are told without a task: how they are called, and what such heads do."""


def config_of(found: Found, columns: Mapping[str, Column]) -> dict[str, Any]:
    """Return what is about all heads."""
    counts = {name: column.count or None for name, column in columns.items()}
    kinds = () if found.types is None else [name for name in found.types.kinds if name in KINDS]
    return {
        "generator": f"headscope {headscope_version()}",
        "model_name": found.activity.info.model,
        "n_layers": found.n_layers,
        "n_heads": found.n_heads,
        "heads": [list(head) for head in found.heads],
        "n_intervals": N_INTERVALS,
        "metrics": [measure.name for measure in MEASURES],
        "metric_descriptions": {measure.name: measure.description for measure in MEASURES},
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [
            {"key": "qk_distance_histogram", "label": "Distance from query to key"},
            {"key": "output_norm_histogram", "label": "Norm of the output"},
        ],
        "custom_tables": [
            {"key": "top_query_tokens", "label": "Query tokens"},
            {"key": "top_key_tokens", "label": "Key tokens"},
        ],
        "statistics_display": {
            "n_samples": {"label": "Sequences", "format": "default"},
            "mean_max_activation": {"label": "Mean largest attention", "format": "default"},
            "mean_output_norm": {"label": "Mean output norm", "format": "default"},
            **{f"{name}_lost": {"label": label, "format": "default"} for name, label in _LOST.items()},
        },
        "pipeline_config": found.provenance,
        "measures": [described(measure, counts.get(measure.name)) for measure in MEASURES],
        "kinds": [{"name": name, "label": KINDS[name][0], "description": KINDS[name][1]} for name in kinds],
    }


def scatter_row(found: Found, columns: Mapping[str, Column], layer: int, head: int) -> dict[str, Any]:
    """Return the row of a head: its measures and their errors, and its kinds."""
    row: dict[str, Any] = {"layer": layer, "head": head}
    for name, measure in _measures(columns, layer, head).items():
        row |= {name: measure["value"], f"{name}_error": measure["error"]}
    sure = [] if found.types is None else [name for name in found.types.kinds_of(layer, head) if name in KINDS]
    return {**row, "kinds": sure, "label": sure[0] if sure else None}


def head_record(found: Found, columns: Mapping[str, Column], layer: int, head: int) -> dict[str, Any]:
    """Return all that a head's page shows."""
    activity, at = found.activity, (layer, head)
    measures = _measures(columns, layer, head)
    lost = {name: float(activity.lost[number, layer, head]) for number, name in enumerate(_LOST)}
    pairs = activity.pair_queries[at], activity.pair_keys[at], activity.pair_shares[at]
    distances = distance_edges(2 ** (activity.distances.shape[-1] - 1))
    return {
        "layer": layer,
        "head": head,
        "sequences": [_sequence(found, entry) for entry in found.sequences.of_head(layer, head)],
        "qk_distance_histogram": _histogram(distances, to_numpy(activity.distances[at]), from_start=True),
        "top_query_tokens": _tokens(found, activity.query_tokens[at], activity.query_shares[at], lost["query_tokens"]),
        "top_key_tokens": _tokens(found, activity.key_tokens[at], activity.key_shares[at], lost["key_tokens"]),
        "histogram": _histogram(
            np.linspace(0, 1, activity.largest_counts.shape[-1] + 1).tolist(), to_numpy(activity.largest_counts[at])
        ),
        "statistics": {
            "n_samples": activity.info.n_sequences,
            "mean_max_activation": measures["mean_max_activation"]["value"],
            "mean_output_norm": measures["output_norm"]["value"],
            **{f"{name}_lost": rounded(share, 3) for name, share in lost.items()},
        },
        "measures": measures,
        "kinds": [] if found.types is None else _kinds(found.types, layer, head),
        "ov_table": _ov_table(found, layer, head),
        "token_pairs": [
            {"query": found.texts[query], "key": found.texts[key], "weight": rounded(share, 4)}
            for query, key, share in _listed(*pairs, lost=lost["token_pairs"])
        ],
        "output_norm_histogram": _histogram(norm_edges(), to_numpy(activity.norm_counts[at])),
        "neighbors": _neighbors(activity.similarity[at], found.n_heads, layer, head),
    }


def _measures(columns: Mapping[str, Column], layer: int, head: int) -> dict[str, dict[str, Any]]:
    nothing = {"value": None, "error": None, "count": None}
    found = {}
    for measure in MEASURES:
        column = columns.get(measure.name)
        found[measure.name] = nothing if column is None else {
            "value": rounded(float(column.values[layer, head])),
            "error": rounded(float(column.errors[layer, head]), 3),
            "count": column.count or None,
        }  # fmt: skip
    return found


def _sequence(found: Found, entry: int) -> dict[str, Any]:
    """A sequence with the head's pattern on it: the pairs of query and key in order."""
    sequences = found.sequences
    _, _, interval, is_top, number = sequences.entries[entry].tolist()
    row = found.rows.numbers.tolist().index(number)
    first, last = 0, found.rows.tokens.shape[1] - 1
    if found.rows.mask is not None:
        real = found.rows.mask[row].nonzero()[:, 0].tolist()
        first, last = real[0], real[-1]
    within = slice(first, last + 1)
    tokens = found.rows.tokens[row, within].tolist()
    length = len(tokens)
    keys = to_numpy(sequences.keys[:, entry, within]).astype(np.int64) - first
    thousandths = to_numpy(sequences.thousandths[:, entry, within])
    kept = keys >= 0
    flat = (np.arange(length) * length + keys)[kept]
    order = flat.argsort(kind="stable")
    norms = [rounded(norm, 4) for norm in sequences.norms[entry, within].tolist()]
    return {
        "sequence_id": number,
        "interval": interval,
        "rank": "top" if is_top else "typical",
        "tokens": [found.texts[token] for token in tokens],
        "attention_indices": flat[order].tolist(),
        "attention_values": [each / 1000 for each in thousandths[kept][order].tolist()],
        "seq_len": length,
        "max_activation": rounded(float(sequences.largest[entry]), 4),
        "output_norm": rounded(float(sequences.activations[entry]), 4),
        "output_norms": norms,
    }


def _histogram(edges: Iterable[int | float], values: np.ndarray, *, from_start: bool = False) -> dict[str, Any]:
    """A histogram without the empty bins at its ends."""
    filled = values.nonzero()[0]
    first, last = (0, 0) if not len(filled) else (0 if from_start else int(filled[0]), int(filled[-1]))
    return {
        "bin_edges": [rounded(edge) for edge in list(edges)[first : last + 2]],
        "bin_values": [each if isinstance(each, int) else rounded(each) for each in values[first : last + 1].tolist()],
    }


def _listed(*columns: Tensor, lost: float) -> list[tuple[Any, ...]]:
    """The entries of a list that are there, without those whose shares, the last column, are less than may be lost."""
    rows = zip(*(column[:_LISTED].tolist() for column in columns), strict=True)
    return [row for row in rows if row[0] >= 0 and row[-1] >= lost]


def _tokens(found: Found, tokens: Tensor, shares: Tensor, lost: float) -> list[dict[str, Any]]:
    listed = _listed(tokens, shares, lost=lost)
    return [{"token": found.texts[token], "weight": rounded(share, 4)} for token, share in listed]


def _kinds(types: HeadTypes, layer: int, head: int) -> list[dict[str, Any]]:
    """The kinds of a head, the sure ones first, with the numbers that say so."""
    found = []
    for at, name in enumerate(types.kinds):
        place = (at, layer, head)
        sure, undecided = bool(types.labelled[place]), bool(types.open[place])
        if name not in KINDS or not (sure or undecided):
            continue
        score, control, error = (float(each[place]) for each in (types.scores, types.controls, types.errors))
        numbers = f"score {score:.3f}, control {control:.3f} ± {error:.3f}, threshold {float(types.thresholds[at]):.3f}"
        reasons = types.reasons(layer, head, name)
        evidence = f"{numbers} ({types.unit(name)}){'; ' + reasons if reasons else ''}"
        found.append({"name": name, "label": KINDS[name][0], "evidence": evidence, "sure": sure})
    return sorted(found, key=lambda kind: not kind["sure"])


def _ov_table(found: Found, layer: int, head: int) -> list[dict[str, Any]]:
    written, activity = found.written, found.activity
    n_sources = written.promoted.shape[2]
    sources = activity.key_tokens[layer, head, :n_sources].tolist()
    shares = activity.key_shares[layer, head, :n_sources].tolist()

    def end(tokens: Tensor, logits: Tensor) -> list[dict[str, Any]]:
        pairs = zip(tokens.tolist(), logits.tolist(), strict=True)
        return [{"token": found.texts[token], "logit": rounded(logit, 4)} for token, logit in pairs]

    return [
        {
            "token": found.texts[source],
            "id": source,
            "share": rounded(share, 4),
            "promoted": end(written.promoted[layer, head, at], written.promoted_logits[layer, head, at]),
            "suppressed": end(written.suppressed[layer, head, at], written.suppressed_logits[layer, head, at]),
        }
        for at, (source, share) in enumerate(zip(sources, shares, strict=True))
        if source >= 0
    ]


def _neighbors(similarity: Tensor, n_heads: int, layer: int, head: int) -> list[dict[str, Any]]:
    known = [(value, at) for at, value in enumerate(similarity.tolist()) if value == value]
    others = sorted(((value, at) for value, at in known if at != layer * n_heads + head), key=lambda each: -each[0])
    return [
        {"layer": at // n_heads, "head": at % n_heads, "similarity": rounded(value, 4)}
        for value, at in others[:_NEIGHBORS]
    ]
