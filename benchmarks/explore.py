"""The cost of an exploration beside a plain forward pass over the same tokens, and the memory that it takes.

Each step runs next to a forward pass (to the logits, nobody listening) in one process, turn about, on one thread, in
CPU seconds; quoted are the medians of the ratios. Ablation is a pass of its own over a sample and is left out here.
`peak` is the largest memory of a process that does the whole pass, less that of one that runs the model alone.

    python benchmarks/explore.py [demo|gpt2] [--tokens 16384] [--repeats 3]
    python benchmarks/explore.py ~/.cache/headscope/SmolLM2-135M-Instruct.Q4_1.gguf --text book.txt
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import detect_heads, measure_entropy
from headscope.data.small_english import documents
from headscope.explorer.measuring.activity import measure_activity
from headscope.explorer.measuring.exploring import entropy_sample
from headscope.explorer.measuring.rows import pick_rows
from headscope.explorer.measuring.sequences import chosen_sequences, measure_sequences
from headscope.explorer.measuring.written import written_for
from headscope.report import token_rows

ROWS = 2048  # tokens of a batch
SEQ_LEN = 128
MODELS = ("demo", "gpt2")
DEFAULT_TOKENS = {"demo": 131_072, "gpt2": 8_192}
OTHERS_TOKENS = 4_096


def gpt2_shape() -> HookedTransformer:
    """GPT-2 small's shape with random weights."""
    cfg = HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, d_head=64, d_vocab=50257, act_fn="gelu_new", seed=0, device="cpu"
    )
    return HookedTransformer(cfg)


def made(name: str, n_tokens: int, text: Path | None) -> tuple[HookedTransformer, Tensor]:
    """A model, and tokens for it; random ones as common as words are (Zipf) for random weights."""
    if name not in MODELS:
        model = HookedTransformer.from_pretrained(name)
        texts = documents(1) if text is None else [text.read_text(encoding="utf-8")]
        return model, token_rows(model, texts, max_tokens=n_tokens, seq_len=SEQ_LEN)
    if name == "demo":
        model = HookedTransformer.from_pretrained("headscope-demo")
        return model, token_rows(model, documents(1), max_tokens=n_tokens, seq_len=SEQ_LEN)
    model = gpt2_shape()
    weights = 1 / torch.arange(1, model.cfg.d_vocab + 1).double()
    drawn = torch.multinomial(weights, n_tokens, replacement=True, generator=torch.Generator().manual_seed(0))
    return model, drawn.view(-1, SEQ_LEN)


@torch.no_grad()
def forward(model: HookedTransformer, tokens: Tensor) -> None:
    """Run the model to its logits, batch by batch."""
    for at in range(0, len(tokens), ROWS // SEQ_LEN):
        model(tokens[at : at + ROWS // SEQ_LEN])


def steps(model: HookedTransformer, tokens: Tensor) -> dict[str, Callable[[], object]]:
    """The steps of an exploration without ablation: three that grow with the text, and two that do not."""
    activity = measure_activity(model, tokens, progress=False)
    shown = chosen_sequences(activity, 8, 1)
    rows = pick_rows(model, tokens, {each.sequence for each in shown})
    sample = tokens[entropy_sample(len(tokens))]
    print(f"shown are {len(rows.numbers)} of {len(tokens)} sequences; entropy is measured on {len(sample)}")
    return {
        "activity": lambda: measure_activity(model, tokens, progress=False),
        "sequences": lambda: measure_sequences(model, rows, shown, progress=False),
        "entropy of a sample": lambda: measure_entropy(model, sample, reduce="none", progress=False),
        "what heads write (once)": lambda: written_for(
            model, activity.key_tokens[:, :, :12], activity.gains, progress=False
        ),
        "kinds (once)": lambda: detect_heads(model, progress=False),
    }


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one thread."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, n_tokens: int, text: Path | None, repeats: int) -> None:
    """Print each step's share of a forward pass over all the tokens."""
    model, tokens = made(name, n_tokens, text)
    forward(model, tokens[: ROWS // SEQ_LEN])
    print(f"{name}: {tokens.numel():,} tokens, sequences of {SEQ_LEN}")
    total = 0.0
    for step, work in steps(model, tokens).items():
        pairs = [(seconds(work), seconds(lambda: forward(model, tokens))) for _ in range(repeats)]
        ratio = statistics.median(step_seconds / plain for step_seconds, plain in pairs)
        total += 0 if step.endswith("(once)") else ratio
        print(f"  {step:<24} {ratio:5.2f} x a forward pass   {pairs[-1][0]:7.2f} s, {pairs[-1][1]:.2f} s")
    print(f"  {'the pass':<24} {total:5.2f} x a forward pass")


def peak(name: str, n_tokens: int, text: Path | None, what: str) -> None:
    """Print the largest memory of this process after a forward pass, or after all of the pass."""
    model, tokens = made(name, n_tokens, text)
    if what == "forward":
        forward(model, tokens)
    else:
        for work in list(steps(model, tokens).values())[:3]:
            work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(args: Sequence[str] | None = None) -> None:
    """Compare on the models named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--text", type=Path, help="for models by name or path; default: small English")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=("forward", "explore"), help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    for name in given.models:
        n_tokens = given.tokens or DEFAULT_TOKENS.get(name, OTHERS_TOKENS)
        if given.peak is not None:
            peak(name, n_tokens, given.text, given.peak)
            continue
        compare(name, n_tokens, given.text, given.repeats)
        text = [] if given.text is None else ["--text", str(given.text)]
        command = [sys.executable, __file__, name, "--tokens", str(n_tokens), *text, "--peak"]
        sizes = [
            float(subprocess.run([*command, what], capture_output=True, text=True, check=True).stdout.split()[-1])
            for what in ("forward", "explore")
        ]
        print(f"  memory: forward passes {sizes[0]:.0f} MiB, with the exploration {sizes[1]:.0f} MiB\n")


if __name__ == "__main__":
    main()
