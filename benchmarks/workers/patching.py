"""One library's activation patching in a process of its own, answering what `benchmarks/patching.py` asks.

It runs under the Python of the library's own environment. headscope and TransformerLens have the functions by one name;
in nnsight they are written out.

    python benchmarks/workers/patching.py (headscope | transformer_lens | nnsight)
"""

import gc
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from protocol import serve
from torch import Tensor

SETTERS = {
    "resid_pre": ("resid_pre", ["layer", "pos"], "layer_pos_patch_setter"),
    "heads": ("z", ["layer", "head"], "layer_head_vector_patch_setter"),
}
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


def spread(total: int, n: int) -> Tensor:
    """Return `n` numbers below `total`, evenly spread."""
    return torch.linspace(0, total - 1, min(n, total)).round().long()


def among(total: int, at: Tensor, values: Tensor) -> Tensor:
    """Values at their places among `total`, NaN elsewhere."""
    return values.new_full((total,), torch.nan).index_copy(0, at, values)


def task_of(clean: Tensor, corrupted: Tensor, wanted: Tensor) -> Any:
    """The prompts as a task, which is answered at the last position."""
    module = importlib.import_module("headscope.analysis.prompts.task")
    n, length = clean.shape
    return module.Task(
        clean_tokens=clean,
        correct=wanted[:, :1],
        incorrect=wanted[:, 1:],
        attention_mask=torch.ones_like(clean, dtype=torch.bool),
        positions=torch.full((n,), length - 1),
        corrupted_tokens=corrupted,
        prompts=("",) * n,
        str_tokens=(("",) * length,) * n,
        answers=(("right", "wrong"),) * n,
        labels=("",) * n,
        word_idx={},
    )


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

    def measure(
        self, sweep: str, metric: str, rows: int, length: int, differ_at: list[int], cells: int | None = None
    ) -> tuple[float, Tensor]:
        """Seconds that a sweep takes, and its values; with `cells`, of so many runs alike, and NaN for the others."""
        cfg = self.model.cfg
        clean, corrupted = prompts(cfg.d_vocab, rows, length, differ_at)
        _, cache = self.model.run_with_cache(clean)
        measured = metric_of(metric, answers(cfg.d_vocab, rows), length)
        gc.collect()
        start = time.perf_counter()
        if cells is None:
            found = getattr(self.patching, SWEEPS[sweep])(self.model, corrupted, cache, measured, **self.options)
            return time.perf_counter() - start, found
        name, axes, setter = SETTERS[sweep]
        shape = (cfg.n_layers, length if axes[1] == "pos" else cfg.n_heads)
        asked = spread(shape[0] * shape[1], cells)
        index = importlib.import_module("pandas").DataFrame(
            [divmod(at, shape[1]) for at in asked.tolist()], columns=axes
        )
        values = self.patching.generic_activation_patch(
            self.model, corrupted, cache, measured, getattr(self.patching, setter), name, index_df=index, **self.options
        )
        seconds = (time.perf_counter() - start) / len(asked) * shape[0] * shape[1]
        return seconds, among(shape[0] * shape[1], asked, values).view(shape)

    def paths(
        self, kind: str, rows: int, length: int, differ_at: list[int], cells: int | None = None
    ) -> tuple[float, Tensor]:
        """Seconds that path patching takes from every head into one's values, and the changes, `[layer, head]`."""
        cfg = self.model.cfg
        clean, corrupted = prompts(cfg.d_vocab, rows, length, differ_at)
        wanted = answers(cfg.d_vocab, rows)
        layer, head = 2 * cfg.n_layers // 3, cfg.n_heads // 2
        n = layer * cfg.n_heads
        asked = torch.arange(n) if cells is None else spread(n, cells)
        gc.collect()
        start = time.perf_counter()
        if kind == "plain":
            changes = ThreePasses(self.model, clean, corrupted, wanted, layer, head).changes(asked.tolist())
            seconds = (time.perf_counter() - start) / len(asked) * n
            return seconds, among(n, asked, changes).view(layer, -1)
        analysis = importlib.import_module("headscope.analysis")
        found = analysis.path_patch_sweep(
            self.model,
            task_of(clean, corrupted, wanted),
            receivers=f"{layer}.{head}.v",
            direction="noising",
            scale="metric",
            progress=False,
        )
        return time.perf_counter() - start, found.values[:layer]


class ThreePasses:
    """Path patching by hooks: both runs are made once, and each pass begins where it may differ from them.

    Args:
        model: The model, headscope's.
        clean: The tokens that are patched.
        corrupted: The tokens that patches are from.
        wanted: A right and a wrong token for each prompt.
        layer: The layer of the receiver.
        head: The receiver, whose values are patched.
    """

    def __init__(self, model: Any, clean: Tensor, corrupted: Tensor, wanted: Tensor, layer: int, head: int) -> None:
        self.model, self.wanted, self.layer, self.head = model, wanted, layer, head
        names = [f"blocks.{at}.hook_resid_pre" for at in range(layer + 1)]
        self.written = [f"blocks.{at}.{name}" for at in range(layer) for name in ("attn.hook_z", "hook_mlp_out")]
        given: dict[str, Any] = {"return_type": None, "names_filter": [*names, *self.written]}
        (_, self.base), (_, self.other) = (model.run_with_cache(tokens, **given) for tokens in (clean, corrupted))
        self.before = self.scored(
            model(self.base[names[layer]], start_at_layer=layer, stop_at_layer=model.cfg.n_layers)
        )

    def scored(self, final: Tensor) -> Tensor:
        """The logit difference of final states; only those of the last position are unembedded."""
        return logit_difference(self.model.to_logits(final[:, -1:]), self.wanted)

    def changes(self, senders: list[int]) -> Tensor:
        """The change from each head, by its number among all."""
        before = self.model.cfg.ungroup_grouped_query_attention
        self.model.cfg.ungroup_grouped_query_attention = True  # one head's values are patched
        try:
            return torch.stack([self.change(*divmod(at, self.model.cfg.n_heads)) for at in senders])
        finally:
            self.model.cfg.ungroup_grouped_query_attention = before

    def change(self, layer: int, head: int) -> Tensor:
        """The change from one head."""
        sender = f"blocks.{layer}.attn.hook_z"

        def frozen(value: Tensor, hook: Any) -> Tensor:
            kept = self.base[hook.name]
            if hook.name == sender:
                kept = kept.clone()
                kept[:, :, head] = self.other[sender][:, :, head]
            return kept

        stream = self.model.run_with_hooks(
            self.base["resid_pre", layer],
            fwd_hooks=[(name, frozen) for name in self.written],
            start_at_layer=layer,
            stop_at_layer=self.layer,
        )
        block = self.model.blocks[self.layer]
        received = block.ln1(stream) @ block.attn.W_V[self.head] + block.attn.b_V[self.head]

        def put(values: Tensor, hook: Any) -> Tensor:
            values[:, :, self.head] = received
            return values

        final = self.model.run_with_hooks(
            self.base["resid_pre", self.layer],
            fwd_hooks=[(f"blocks.{self.layer}.attn.hook_v", put)],
            start_at_layer=self.layer,
            stop_at_layer=self.model.cfg.n_layers,
        )
        return self.scored(final) - self.before


class Nnsight:
    """The same sweeps written in nnsight, on the Hugging Face model."""

    # Where a kind of checkpoint has its layers, and a layer its product with `W_O`, whose input is all heads' outputs.
    PLACES = {"gpt2": ("transformer.h", "attn.c_proj"), "llama": ("model.layers", "self_attn.o_proj")}

    def load(self, shape: dict[str, Any], weights: str) -> None:
        """Read the Hugging Face checkpoint that lies beside the weights."""
        del shape  # the checkpoint has it
        transformers, tokenizers = importlib.import_module("transformers"), importlib.import_module("tokenizers")
        network = transformers.AutoModelForCausalLM.from_pretrained(Path(weights).parent / "checkpoint").eval()
        # Prompts are ids; batches of several invocations ask for a tokenizer all the same.
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a")
        self.model = importlib.import_module("nnsight").TransformersModel(
            network, tokenizer=tokenizer, task="text-generation"
        )
        self.cfg = network.config
        self.layers, self.projection = self.PLACES[network.config.model_type]

    def place(self, sweep: str, layer: int) -> Any:
        """Return the module whose input is patched."""
        block = self.model.get(f"{self.layers}.{layer}")
        return block if sweep == "resid_pre" else block.get(self.projection)

    def measure(
        self,
        sweep: str,
        metric: str,
        rows: int,
        length: int,
        differ_at: list[int],
        cells: int | None = None,
        at_once: int = 1,
    ) -> tuple[float, Tensor]:
        """Seconds that a sweep takes, and its values; with `cells`, of so many runs alike, and NaN for the others.

        Each cell is an invocation, and `at_once` of them a trace, which nnsight runs as one batch.
        """
        clean, corrupted = prompts(self.cfg.vocab_size, rows, length, differ_at)
        wanted = answers(self.cfg.vocab_size, rows)
        read = {} if metric == "opaque" else {"logits_to_keep": 1}
        n_layers, n_heads = self.cfg.num_hidden_layers, self.cfg.num_attention_heads
        second = length if sweep == "resid_pre" else n_heads
        width = self.cfg.hidden_size // n_heads
        with self.model.trace(clean):
            kept = [].save()
            for layer in range(n_layers):
                kept.append(self.place(sweep, layer).input)
        asked = torch.arange(n_layers * second) if cells is None else spread(n_layers * second, cells)
        gc.collect()
        start = time.perf_counter()
        values = []
        for batch in asked.split(at_once):
            with self.model.trace(**read) as tracer:
                found = [].save()
                for cell in batch.tolist():
                    with tracer.invoke(corrupted):
                        layer, which = divmod(cell, second)
                        state = self.place(sweep, layer).input
                        at = which if sweep == "resid_pre" else slice(None)
                        part = slice(None) if sweep == "resid_pre" else slice(which * width, (which + 1) * width)
                        state[:, at, part] = kept[layer][:, at, part]
                        found.append(logit_difference(self.model.lm_head.output, wanted))
            values += found
        seconds = (time.perf_counter() - start) / len(asked) * n_layers * second
        return seconds, among(n_layers * second, asked, torch.stack(values)).view(n_layers, second)


def prepare(name: str) -> Callable[..., dict[str, Any]]:
    """What answers questions about the library of that name."""
    torch.set_grad_enabled(False)
    library = Nnsight() if name == "nnsight" else Patching(name)

    def answer(task: str, save: str = "", **question: Any) -> dict[str, Any]:
        if task == "load":
            library.load(**question)
            return {}
        seconds, found = getattr(library, task)(**question)
        torch.save(found, save)
        return {"seconds": seconds}

    return answer


if __name__ == "__main__":
    serve(prepare)
