"""One library's activation patching in a process of its own, answering what `benchmarks/patching.py` asks.

It runs under the Python of the library's own environment; both have the functions by one name.

    python benchmarks/workers/patching.py (headscope | transformer_lens)
"""

import gc
import importlib
import time
from collections.abc import Callable
from typing import Any

import torch
from protocol import serve
from torch import Tensor

SWEEPS = {"resid_pre": "get_act_patch_resid_pre", "heads": "get_act_patch_attn_head_out_all_pos"}


def prompts(d_vocab: int, rows: int, length: int, differ_at: list[int]) -> tuple[Tensor, Tensor]:
    """Random clean and corrupted tokens, which differ at some positions; alike in every process."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, d_vocab, (rows, length), generator=generator)
    corrupted = clean.clone()
    corrupted[:, differ_at] = (corrupted[:, differ_at] + 1 + clean[:, :1]) % d_vocab
    return clean, corrupted


def answers(d_vocab: int, rows: int) -> Tensor:
    """A right and a wrong token for each prompt."""
    return torch.randint(0, d_vocab, (rows, 2), generator=torch.Generator().manual_seed(2))


def logit_difference(logits: Tensor, wanted: Tensor) -> Tensor:
    """The right answer's logit less the wrong one's at the last position, the mean over prompts."""
    found = logits[:, -1].gather(-1, wanted)
    return (found[:, 0] - found[:, 1]).mean()


def metric_of(kind: str, wanted: Tensor, length: int) -> Callable[[Tensor], Any]:
    """The logit difference as a function of all logits (`"opaque"`), or as one that says what it reads."""

    def opaque(logits: Tensor) -> Tensor:
        return logit_difference(logits, wanted)

    if kind == "opaque":
        return opaque
    metrics = importlib.import_module("headscope.analysis.prompts.metrics")
    if kind == "last position":
        return metrics.last_position(opaque)
    last = torch.full((len(wanted),), length - 1)
    return metrics.AnswerMetric(wanted[:, :1], wanted[:, 1:], last)


class Patching:
    """The `patching` module of one library or the other."""

    def __init__(self, library: str) -> None:
        self.library = importlib.import_module(library)
        self.patching = importlib.import_module(f"{library}.patching")
        self.options = {"progress": False} if library == "headscope" else {}

    def load(self, shape: dict[str, Any], weights: str) -> None:
        """Put weights into a model of some shape."""
        self.model = self.library.HookedTransformer(self.library.HookedTransformerConfig(**shape, device="cpu"))
        found = importlib.import_module("safetensors.torch").load_file(weights)
        self.model.load_state_dict(found, strict=False)  # which may have buffers besides

    def measure(self, sweep: str, metric: str, rows: int, length: int, differ_at: list[int]) -> tuple[float, Tensor]:
        """Seconds that a sweep takes, and its values."""
        d_vocab = self.model.cfg.d_vocab
        clean, corrupted = prompts(d_vocab, rows, length, differ_at)
        _, cache = self.model.run_with_cache(clean)
        measured = metric_of(metric, answers(d_vocab, rows), length)
        gc.collect()
        start = time.perf_counter()
        found = getattr(self.patching, SWEEPS[sweep])(self.model, corrupted, cache, measured, **self.options)
        return time.perf_counter() - start, found


def prepare(name: str) -> Callable[..., dict[str, Any]]:
    """What answers questions about the library of that name."""
    torch.set_grad_enabled(False)
    library = Patching(name)

    def answer(task: str, save: str = "", **question: Any) -> dict[str, Any]:
        if task == "load":
            library.load(**question)
            return {}
        assert task == "measure", task
        seconds, found = library.measure(**question)
        torch.save(found, save)
        return {"seconds": seconds}

    return answer


if __name__ == "__main__":
    serve(prepare)
