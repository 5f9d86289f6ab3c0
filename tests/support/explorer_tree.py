"""A tree of the head explorer's data with drawn numbers, of any size and any text, beside the built page."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from headscope.explorer.tree.measures import MEASURES, described
from headscope.explorer.tree.writing import TreeWriter

KINDS = (
    ("previous_token", "Previous token", "Looks at the token before."),
    ("induction", "Induction", "Looks at what followed an earlier copy of the token."),
    ("duplicate_token", "Duplicate token", "Looks at an earlier copy of the token."),
    ("bos", "Resting", "Looks at the beginning, where there is nothing to read."),
    ("copy_suppression", "Copy suppression", "Lowers the logits of what it looks at."),
)
WORDS = (
    " the",
    " of",
    " Mary",
    " John",
    ",",
    ".",
    " gave",
    " a",
    " book",
    " to",
    "\n",
    " ",
    "  ",
    "\t",
    "ing",
    " émigré",
)


def write_tree(
    folder: Path,
    *,
    n_layers: int = 12,
    n_heads: int = 12,
    model: str = "drawn-model",
    words: tuple[str, ...] = WORDS,
    texts: tuple[str, ...] = (),
    length: int = 24,
    n_intervals: int = 10,
    seed: int = 0,
) -> Path:
    """Write a tree and the built page into `folder`; return the page's path.

    Tokens are drawn from `words`; `texts`, where given, stand for the labels and descriptions of measures and kinds.
    """
    drawn = np.random.default_rng(seed)
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    rows = [_row(drawn, layer, head, n_layers) for layer, head in heads]
    writer = TreeWriter(folder)
    for row in rows:
        writer.head(_head(drawn, row, heads, words, length, n_intervals))
    measures = [described(measure, 64 * length) for measure in MEASURES]
    kinds = [{"name": name, "label": label, "description": text} for name, label, text in KINDS]
    for at, named in enumerate(measures + kinds if texts else ()):
        named |= {"label": texts[at % len(texts)], "description": texts[(at + 1) % len(texts)]}
    config = {
        "generator": "headscope",
        "model_name": model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "heads": heads,
        "n_intervals": n_intervals,
        "metrics": [measure.name for measure in MEASURES],
        "metric_descriptions": {measure.name: measure.description for measure in MEASURES},
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [{"key": "output_norm_histogram", "label": "Norm of the output"}],
        "custom_tables": [],
        "statistics_display": {"n_samples": {"label": "Sequences", "format": ",d"}},
        "pipeline_config": {
            "model_name": model,
            "dataset_name": "drawn words",
            "n_sequences": 64,
            "n_tokens": 64 * length,
            "seq_len": length,
            "dtype": "float32",
        },
        "measures": measures,
        "kinds": kinds,
    }
    writer.finish(config, rows)
    return folder / "index.html"


def read(folder: Path, name: str) -> Any:
    """The data of one file of the tree, as its JSON says them."""
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def _row(drawn: np.random.Generator, layer: int, head: int, n_layers: int) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer, "head": head}
    for measure in MEASURES:
        name, ceiling = measure.name, np.inf if measure.range is None else measure.range[1]
        value = drawn.normal(0, 0.3) if measure.diverging else drawn.lognormal(0, 1) if measure.better_log else None
        value = drawn.beta(1, 6) if value is None else np.clip(value, -ceiling, ceiling)
        missing = name == "induction_score" and (layer + head) % 7 == 5
        row[name] = None if missing else round(float(value), 6)
        row[f"{name}_error"] = None if missing else round(float(abs(value) * drawn.uniform(0.02, 0.2)), 6)
    chosen = drawn.random(len(KINDS)) < 0.08 + 0.1 * layer / n_layers
    row["kinds"] = [kind[0] for kind, yes in zip(KINDS, chosen, strict=True) if yes]
    row["label"] = " and ".join(kind[1].lower() for kind, yes in zip(KINDS, chosen, strict=True) if yes) or None
    return row


def _head(
    drawn: np.random.Generator,
    row: dict[str, Any],
    heads: list[tuple[int, int]],
    words: tuple[str, ...],
    length: int,
    n_intervals: int,
) -> dict[str, Any]:
    def some(count: int) -> list[str]:
        return [words[at] for at in drawn.integers(len(words), size=count)]

    def tokens(count: int, key: str, sign: float = 1) -> list[dict[str, Any]]:
        values = sorted(drawn.random(count), reverse=True)
        return [{"token": word, key: round(sign * value, 4)} for word, value in zip(some(count), values, strict=True)]

    neighbors = [heads[at] for at in drawn.integers(len(heads), size=5)]
    evidence = [
        {"name": name, "label": label, "evidence": f"{text} Drawn at random.", "sure": bool(drawn.random() < 0.5)}
        for name, label, text in KINDS
        if name in row["kinds"]
    ]
    return {
        "layer": row["layer"],
        "head": row["head"],
        "sequences": [
            _sequence(drawn, number, some(length), interval, rank)
            for number, (interval, rank) in enumerate(
                [(n_intervals, "top")] * 4 + [(at, "typical") for at in range(n_intervals, 0, -1)]
            )
        ],
        "qk_distance_histogram": {"bin_edges": [0, 1, 2, 4, 8, 16, 32], "bin_values": _shares(drawn, 6)},
        "top_query_tokens": tokens(20, "weight"),
        "top_key_tokens": tokens(20, "weight"),
        "histogram": {"bin_edges": [at / 10 for at in range(11)], "bin_values": drawn.integers(20, size=10).tolist()},
        "statistics": {
            "n_samples": 64,
            "mean_max_activation": row["mean_max_activation"],
            "key_tokens_lost": 0.3,
            "query_tokens_lost": 0.0,
            "token_pairs_lost": 0.11,
        },
        "measures": {
            measure.name: {
                "value": row[measure.name],
                "error": row[f"{measure.name}_error"],
                "count": 64 * length,
            }
            for measure in MEASURES
        },
        "kinds": evidence,
        "ov_table": [
            {
                "token": word,
                "id": number,
                "share": round(0.3 / (number + 1), 4),
                "promoted": tokens(8, "logit"),
                "suppressed": tokens(8, "logit", -1),
            }
            for number, word in enumerate(some(12))
        ],
        "token_pairs": [
            {"query": one, "key": other, "weight": round(1 / (at + 1), 4)}
            for at, (one, other) in enumerate(zip(some(12), some(12), strict=True))
        ],
        "output_norm_histogram": {"bin_edges": list(range(11)), "bin_values": drawn.integers(20, size=10).tolist()},
        "neighbors": [
            {"layer": layer, "head": head, "similarity": round(0.9 - 0.1 * at, 4)}
            for at, (layer, head) in enumerate(neighbors)
        ],
    }


def _sequence(drawn: np.random.Generator, number: int, tokens: list[str], interval: int, rank: str) -> dict[str, Any]:
    length = len(tokens)
    indices, values = [], []
    for query in range(length):
        weights = drawn.dirichlet(np.full(query + 1, 0.15))
        for key in np.flatnonzero(weights >= 0.005)[-8:].tolist():
            indices.append(query * length + key)
            values.append(round(float(weights[key]), 4))
    norms = [round(float(norm), 4) for norm in drawn.lognormal(0, 0.5, size=length) * interval]
    return {
        "sequence_id": number,
        "interval": interval,
        "rank": rank,
        "tokens": tokens,
        "attention_indices": indices,
        "attention_values": values,
        "seq_len": length,
        "max_activation": max(values),
        "output_norm": round(float(np.mean(norms)), 4),
        "output_norms": norms,
    }


def _shares(drawn: np.random.Generator, count: int) -> list[float]:
    return [round(float(share), 4) for share in drawn.dirichlet(np.ones(count))]
