"""Rates of each set of kernels on the same tiles, one thread: 12 changes x 128 rows x 512 tokens by default.

The sets take turns, so that both meet the same moods of the machine; the best of the runs is printed, in billions of
logits a second of processor time, with the largest difference of their entropies and log-partitions in bits.

    python benchmarks/kernels.py [--changes 12] [--rows 128] [--tile 512] [--repeats 40]
"""

import argparse
import time

import torch

from headscope.ops.kernels.cpu_kernels import CpuKernels
from headscope.ops.kernels.torch_kernels import TorchKernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("changes", 12), ("rows", 128), ("tile", 512), ("repeats", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    added = torch.randn(asked.changes, asked.rows, asked.tile)
    base, final = 3 * torch.randn(2, asked.rows, asked.tile)
    best: dict[tuple[str, str], float] = {}
    found: dict[str, tuple[torch.Tensor, ...]] = {}
    sets = TorchKernels(), CpuKernels()
    for _ in range(asked.repeats + 1):  # the first compiles
        for kernels in sets:
            states = kernels.factors(base.clone(), "base"), kernels.factors(final.clone(), "final")
            moments, sums = added.new_empty(3, 2, *added.shape[:2]), added.new_empty(3, *added.shape[:2])
            removed = added.clone()
            begun = time.process_time()
            kernels.changes(added, *states, moments)
            between = time.process_time()
            kernels.removals(removed, states[1], sums)
            ended = time.process_time()
            for what, took in (("changes", between - begun), ("removals", ended - between)):
                best[kernels.name, what] = min(best.get((kernels.name, what), float("inf")), took)
            entropies = moments[1].log2() - moments[2] / moments[1]
            found[kernels.name] = entropies, sums[0] + sums[1].log2()
    for (name, what), took in sorted(best.items()):
        print(f"{name:6} {what:9} {added.numel() / took / 1e9:6.2f} G logits/s")
    for what in ("changes", "removals"):
        print(f"{what}: cpu {best['torch', what] / best['cpu', what]:.1f} times as fast as torch")
    gap = max(float((one - other).abs().max()) for one, other in zip(*found.values(), strict=True))
    print(f"largest difference: {gap:.1e} bits")


if __name__ == "__main__":
    main()
