"""One library in a process of its own, answering what `benchmarks/engine.py` asks: JSON lines in, JSON lines out.

It runs under the Python of the library's own environment, in the folder that holds the checkpoint `gpt2`, and imports
no other library than the one it is for (and `transformers`, for the tokenizer).

    python benchmarks/workers/engine.py (headscope | headscope-raw | transformers | transformer_lens)
"""

import gc
import importlib
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch
from protocol import serve
from torch import Tensor

CHECKPOINT = "gpt2"
END_OF_TEXT = 50256  # never among the tokens: it would be taken for padding
NEW_TOKENS = 50


class Transformers:
    """`GPT2LMHeadModel`; without the keys and values that it keeps by default, except when it generates."""

    def __init__(self) -> None:
        transformers = importlib.import_module("transformers")
        self.model_class, self.tokenizer_class = transformers.GPT2LMHeadModel, transformers.AutoTokenizer

    def load(self) -> None:
        self.tokenizer = self.tokenizer_class.from_pretrained(CHECKPOINT)
        self.model = self.model_class.from_pretrained(CHECKPOINT)
        self.model.generation_config.eos_token_id = None

    def call(self, task: str, tokens: Tensor) -> Any:
        if task == "forward":
            return self.model(tokens, use_cache=False).logits
        if task == "loss":
            return self.model(tokens, labels=tokens, use_cache=False).loss
        assert task == "generate", task
        mask, end = torch.ones_like(tokens), END_OF_TEXT
        return self.model.generate(
            tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=end
        )


class Hooked:
    """What the libraries with hook points have in common: they are called alike."""

    model: Any

    def call(self, task: str, tokens: Tensor) -> Any:
        model = self.model
        if task in ("forward", "loss"):
            return model(tokens, return_type="logits" if task == "forward" else "loss")
        if task == "cache":
            return model.run_with_cache(tokens)
        if task == "pattern":
            return model.run_with_cache(tokens, names_filter="blocks.5.attn.hook_pattern")
        if task == "result":
            return model.run_with_cache(tokens, names_filter=lambda name: name.endswith("attn.hook_result"))
        assert task == "generate", task
        return model.generate(tokens, max_new_tokens=NEW_TOKENS, do_sample=False, stop_at_eos=False, verbose=False)


class Headscope(Hooked):
    def __init__(self, processed: bool) -> None:
        cls = importlib.import_module("headscope").HookedTransformer
        self.from_pretrained = cls.from_pretrained if processed else cls.from_pretrained_no_processing

    def load(self) -> None:
        self.model = self.from_pretrained(CHECKPOINT)


class TransformerLens(Hooked):
    """`HookedTransformer` of TransformerLens 1-3, which takes a local folder for the model of that name."""

    def __init__(self) -> None:
        importlib.import_module("transformers").GPT2LMHeadModel  # noqa: B018 (imported when it is named)
        self.library = importlib.import_module("transformer_lens")

    def load(self) -> None:
        self.model = self.library.HookedTransformer.from_pretrained(CHECKPOINT)

    def call(self, task: str, tokens: Tensor) -> Any:
        if task != "result":
            return super().call(task, tokens)
        self.model.set_use_attn_result(True)
        try:
            return super().call(task, tokens)
        finally:
            self.model.set_use_attn_result(False)


class TransformerBridge(TransformerLens):
    """What stands for it in TransformerLens 4, in the mode with the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.model_class = self.library.TransformerBridge

    def load(self) -> None:
        self.model = self.model_class.boot_transformers(CHECKPOINT)
        self.model.enable_compatibility_mode(disable_warnings=True)


def make(name: str) -> Any:
    """The library of that name, imported."""
    if name == "transformers":
        return Transformers()
    if name == "transformer_lens":
        major = int(importlib.metadata.version("transformer-lens").split(".")[0])
        return TransformerLens() if major < 4 else TransformerBridge()
    return Headscope(processed=name == "headscope")


def load(library: Any) -> dict[str, float]:
    """Seconds, and the bytes of the weights; what loading imports has been imported before."""
    start = time.perf_counter()
    library.load()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "weights": sum(weight.nbytes for weight in set(library.model.parameters()))}


def run(library: Any, task: str, shape: list[int], save: str | None) -> dict[str, float]:
    """Seconds of one call on random tokens `[batch, pos]`; what it returned goes to the file `save`."""
    tokens = torch.randint(0, END_OF_TEXT, shape, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    found = library.call(task, tokens)
    seconds = time.perf_counter() - start
    if save is not None:
        output, cache = found if isinstance(found, tuple) else (found, {})
        torch.save({**cache, "output": output}, save)
    found = output = cache = None
    gc.collect()
    return {"seconds": seconds}


def prepare(name: str) -> Callable[..., dict[str, float]]:
    """What answers questions about the library of that name."""
    torch.set_grad_enabled(False)
    library = make(name)
    importlib.import_module("transformers").AutoTokenizer.from_pretrained(CHECKPOINT)

    def answer(task: str, **question: Any) -> dict[str, float]:
        return load(library) if task == "load" else run(library, task, **question)

    return answer


if __name__ == "__main__":
    serve(prepare)
