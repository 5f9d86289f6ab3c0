"""What headscope asks of a machine that does other things too: the time to import it, and with a neighbor on one core.

- `import headscope` beside `import torch`, in new processes in turn.
- `measure_entropy` on 256 tokens of GPT-2 small's shape with two threads, in turn with every core to itself and with
  another process at work all the time.

Medians of wall-clock time, and ratios pair by pair. It is about the machine as a whole, so nothing else should run.

    python benchmarks/manners.py [--repeats 7] [--tokens 256]
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from entropy import GPT2_SMALL

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import measure_entropy


def importing(module: str) -> float:
    """Seconds that a new process takes to import a module."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - begun


def report(name: str, slow: list[float], quick: list[float]) -> None:
    ratios = [one / other for one, other in zip(slow, quick, strict=True)]
    print(
        f"{name}: {statistics.median(slow):.2f} s beside {statistics.median(quick):.2f} s, "
        f"{statistics.median(ratios):.2f} times (pair by pair {', '.join(f'{ratio:.2f}' for ratio in ratios)})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    importing("torch"), importing("headscope")  # from the disk
    pairs = [(importing("headscope"), importing("torch")) for _ in range(options.repeats)]
    report("import headscope beside import torch", *map(list, zip(*pairs, strict=True)))

    torch.set_num_threads(2)
    model = HookedTransformer(HookedTransformerConfig(**GPT2_SMALL, initializer_range=0.05, seed=0, device="cpu"))
    tokens = torch.randint(GPT2_SMALL["d_vocab"], (1, options.tokens), generator=torch.Generator().manual_seed(1))

    def seconds() -> float:
        begun = time.perf_counter()
        measure_entropy(model, tokens, progress=False)
        return time.perf_counter() - begun

    seconds()  # the first compiles
    busy, alone = [], []
    for _ in range(options.repeats):
        alone.append(seconds())
        neighbor = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            busy.append(seconds())
        finally:
            neighbor.kill()
            neighbor.wait()
    report("measure_entropy with a core busy beside all to itself", busy, alone)


if __name__ == "__main__":
    main()
