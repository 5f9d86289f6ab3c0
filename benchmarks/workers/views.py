"""One library's views in a process of its own, answering what `benchmarks/views.py` asks.

It runs under the Python of the library's own environment; both get the same numbers, from NumPy's seeded generator.

    python benchmarks/workers/views.py (headscope | circuitsvis)
"""

import gc
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from protocol import serve

VOCABULARY = 50_257
WORDS = [" the", " store", " Mary", " and", " John", " gave", ",", " a", " drink", "\n", " went", " to"]
Call = Callable[[Any], Any]


def patterns(random: np.random.Generator, n_heads: int, n: int) -> np.ndarray:
    """Causal attention patterns `[head, query_pos, key_pos]`."""
    scores = np.exp(2 * random.standard_normal((n_heads, n, n), dtype=np.float32)) * np.tri(n, dtype=np.float32)
    return scores / scores.sum(-1, keepdims=True)


def text(n: int) -> list[str]:
    """That many tokens."""
    return [WORDS[at % len(WORDS)] for at in range(n)]


def calls() -> dict[str, Call]:
    """What to draw, as notebooks call it: ten of their size, and one that is large."""
    import torch

    random = np.random.default_rng(0)
    normal = random.standard_normal
    heads, longer, one = (torch.from_numpy(patterns(random, *shape)) for shape in ((12, 64), (12, 512), (1, 200)))
    pattern = heads[3].clone()
    log_probs = torch.from_numpy(3 * normal((200, VOCABULARY), dtype=np.float32)).log_softmax(-1)
    tokens = torch.from_numpy(random.integers(0, VOCABULARY, 200))
    strings = [f" w{number}" for number in range(VOCABULARY)]
    losses = [torch.from_numpy(normal((200, 4, 2), dtype=np.float32)) for _ in range(50)]
    values = torch.from_numpy(normal((200, 8), dtype=np.float32))
    neurons = [normal((6, 100, 32), dtype=np.float32) for _ in range(4)]
    samples = normal((2, 8, 5, 40)).tolist()
    names = {"first_dimension_name": "loss_type", "second_dimension_name": "head"}

    def to_string(token: Any) -> str:
        return strings[int(token)]

    return {
        "attention_heads, 12 x 64": lambda cv: cv.attention.attention_heads(attention=heads, tokens=text(64)),
        "attention_heads, 1 x 200": lambda cv: cv.attention.attention_heads(
            attention=one, tokens=text(200), attention_head_names=["10.7"]
        ),
        "attention_pattern, 64": lambda cv: cv.attention.attention_pattern(tokens=text(64), attention=pattern),
        "text_neuron_activations, 50 texts": lambda cv: cv.activations.text_neuron_activations(
            tokens=[text(200)] * 50, activations=losses, **names
        ),
        "token_log_probs, 200": lambda cv: cv.logits.token_log_probs(tokens, log_probs, to_string=to_string),
        "token_log_probs, 200, again": lambda cv: cv.logits.token_log_probs(
            tokens.flip(0), log_probs, to_string=to_string, top_k=5
        ),
        "colored_tokens, 200": lambda cv: cv.tokens.colored_tokens(text(200), values[:, 0]),
        "colored_tokens_multi, 200 x 8": lambda cv: cv.tokens.colored_tokens_multi(
            text(200), values, labels=[f"kind {kind}" for kind in range(8)]
        ),
        "topk_tokens, 4 texts x 6 x 32": lambda cv: cv.topk_tokens.topk_tokens([text(100)] * 4, neurons),
        "topk_samples, 2 x 8 x 5": lambda cv: cv.topk_samples.topk_samples([[[text(40)] * 5] * 8] * 2, samples),
        "attention_heads, 12 x 512": lambda cv: cv.attention.attention_heads(attention=longer, tokens=text(512)),
    }


class Headscope:
    """`headscope.views`: `str` of a view is its page, and a page of several holds the script once."""

    def __init__(self) -> None:
        self.views = importlib.import_module("headscope.views")

    def page(self, views: list[Any]) -> str:
        return self.views.html.page(views) if len(views) > 1 else str(views[0])


class CircuitsVis:
    """CircuitsVis in its local form: its other form loads its script from a network."""

    def __init__(self) -> None:
        self.views = importlib.import_module("circuitsvis")
        for name in ("attention", "activations", "logits", "tokens", "topk_tokens", "topk_samples"):
            importlib.import_module(f"circuitsvis.{name}")

    def page(self, views: list[Any]) -> str:
        return '<!doctype html><meta charset="utf-8"><body>' + "".join(view.local_src for view in views)


LIBRARIES: dict[str, Callable[[], Any]] = {"headscope": Headscope, "circuitsvis": CircuitsVis}


def prepare(name: str) -> Callable[..., dict[str, Any]]:
    """What answers questions about the library of that name."""
    library = LIBRARIES[name]()
    drawn = calls()

    def answer(task: str, names: list[str] | None = None, save: str = "") -> dict[str, Any]:
        if task == "names":
            return {"names": list(drawn)}
        assert task == "build" and names, task
        gc.collect()
        start = time.perf_counter()
        page = library.page([drawn[name](library.views) for name in names])
        seconds = time.perf_counter() - start
        Path(save).write_text(page, encoding="utf-8")
        return {"seconds": seconds, "bytes": Path(save).stat().st_size}

    return answer


if __name__ == "__main__":
    serve(prepare)
