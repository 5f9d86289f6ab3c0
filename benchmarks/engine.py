"""The model against its peers on GPT-2 small's shape: importing, loading, running, caching, generating.

Each library runs in a process of its own (`workers/engine.py`), under the Python of its own environment. Headscope and
one peer are asked in turn, so that both meet the same moods of the machine, and ratios are taken pair by pair. All
load the same random checkpoint: with its weights as they are beside transformers, processed beside TransformerLens.
What they return is compared. Without `--peer` the only peer is transformers. Memory is read from `/proc` (Linux).

    python benchmarks/engine.py [--repeats 7] [--peer 3.5.1=PYTHON_WITH_TRANSFORMER_LENS]... [--only load,cache]

What is measured:
    import              the library, in a new process; `import torch` is shown beside it
    start               the same, a loaded model, and the logits of one token (mapped weights are read only then)
    load                files to model, when all that it imports is there; its memory beyond that of the process before,
                        without and with the pages of mapped files (which the system may take back at any time)
    forward, loss       on tokens [batch, pos], without gradients
    cache, pattern, result   `run_with_cache` of everything, of one layer's pattern, of every head's `hook_result`
    generate            greedily, with keys and values kept
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from workers.protocol import Side, Worker, process_options, workers

import headscope

SCRIPT = Path(__file__).parent / "workers" / "engine.py"
TOLERANCE = 1e-3  # more is not float32's rounding

TASKS = {
    "forward 8x128": ("forward", (8, 128)),
    "forward 1x1024": ("forward", (1, 1024)),
    "loss 8x128": ("loss", (8, 128)),
    "loss 1x1024": ("loss", (1, 1024)),
    "cache everything 8x128": ("cache", (8, 128)),
    "cache one pattern 8x128": ("pattern", (8, 128)),
    "cache heads' results 8x128": ("result", (8, 128)),
    "generate 50 after 1x32": ("generate", (1, 32)),
}
NEED_HOOKS = ("cache", "pattern", "result")
CASES = ("import", "start", "load", *dict.fromkeys(task for task, _ in TASKS.values()))

# What a user's program begins with (TransformerLens 4 imports its model class when it is named).
IMPORTS = {
    "headscope": "from headscope import HookedTransformer",
    "headscope-raw": "from headscope import HookedTransformer",
    "transformers": "from transformers import AutoTokenizer, GPT2LMHeadModel",
    "transformer_lens": "import transformer_lens",
}
LOADS = {
    "headscope": "model = HookedTransformer.from_pretrained('gpt2')",
    "headscope-raw": "model = HookedTransformer.from_pretrained_no_processing('gpt2')",
    "transformers": "AutoTokenizer.from_pretrained('gpt2'); model = GPT2LMHeadModel.from_pretrained('gpt2')",
    "transformer_lens": """
if int(importlib.metadata.version('transformer-lens').split('.')[0]) < 4:
    model = transformer_lens.HookedTransformer.from_pretrained('gpt2')
else:
    model = transformer_lens.TransformerBridge.boot_transformers('gpt2')
    model.enable_compatibility_mode()
""",
}
FIRST_LOGITS = "import torch; model(torch.tensor([[464]]))"
VERSION = "from importlib.metadata import version; print(version({!r}), '(torch', version('torch') + ')')"
TIMED = """
import importlib.metadata, os, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints is not an answer
start = time.perf_counter()
{}
print(time.perf_counter() - start, file=answers)
"""


@dataclass(frozen=True)
class Setup:
    """What all measurements share; `folder` holds the checkpoint `gpt2`."""

    folder: Path
    repeats: int
    threads: int

    def versions(self, side: Side) -> str:
        """Of the library and of torch; those of headscope are this program's own."""
        if side.library.startswith("headscope"):
            return f"{headscope.__version__} (torch {torch.__version__})"
        command = [side.python, "-c", VERSION.format(side.library.replace("_", "-"))]
        return subprocess.run(command, check=True, **self.process(side)).stdout.strip()

    def process(self, side: Side) -> dict[str, Any]:
        """How to start a process of one side."""
        return process_options(side.python, self.folder, self.threads)

    def workers(self, *sides: Side) -> AbstractContextManager[list[Worker]]:
        """Processes that have imported their libraries."""
        return workers(SCRIPT, list(sides), self.folder, self.threads)


@dataclass
class Row:
    """One line of a table; the forwards are milliseconds of the same library's plain forward, run right before."""

    name: str
    unit: str = "ms"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    our_forwards: list[float] = field(default_factory=list)
    their_forwards: list[float] = field(default_factory=list)
    difference: float | None = None
    note: str = ""

    def __str__(self) -> str:
        middle, pairs, own, difference = "", "", "", ""
        if self.theirs:
            ratios = [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]
            middle = f"{statistics.median(self.theirs):.{digits(self.unit)}f}"
            pairs = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        if self.our_forwards:
            both = [(self.ours, self.our_forwards), (self.theirs, self.their_forwards)]
            own = " / ".join(
                f"{statistics.median(time / plain for time, plain in zip(times, plains, strict=True)):.2f}"
                for times, plains in both
                if times
            )
        if self.difference is not None:
            difference = f"{self.difference:.1e}" + " !" * (not self.difference <= TOLERANCE)
        first = f"{statistics.median(self.ours):.{digits(self.unit)}f}"
        return (
            f"{self.name:<30} {first:>9} {middle:>9} {self.unit:<9} {pairs:>18} {own:>13} {difference:>11}  {self.note}"
        ).rstrip()


HEADER = (
    f"{'':<30} {'headscope':>9} {'peer':>9} {'':<9} {'headscope/peer':>18} {'/ own forward':>13} {'difference':>11}"
)


def digits(unit: str) -> int:
    """Decimals to print a unit with."""
    return 2 if unit == "x weights" else 0


def milliseconds(worker: Worker, task: str, shape: tuple[int, int], save: Path | None = None) -> float:
    """The time of one call; what it returned goes to the file `save`."""
    return float(worker.ask(task=task, shape=shape, save=save and str(save))["seconds"]) * 1e3


def load(worker: Worker) -> dict[str, float]:
    """Load the model; the time, the weights' bytes, and the most memory that took beyond what there was."""
    before = worker.memory()
    answer, peaks = worker.ask_watching(0.002, task="load")
    return answer | {name: peak - before[name] for name, peak in peaks.items()}


def measure_fresh(setup: Setup, name: str, sides: Iterable[Side], statements: list[str]) -> Row:
    """The time of each side's statement in new processes."""
    row = Row(name)
    for _ in range(setup.repeats):
        for side, statement, times in zip(sides, statements, (row.ours, row.theirs), strict=True):
            command = [side.python, "-c", TIMED.format(statement)]
            done = subprocess.run(command, check=True, stderr=subprocess.DEVNULL, **setup.process(side))
            times.append(float(done.stdout) * 1e3)
    return row


def measure_load(setup: Setup, sides: Iterable[Side]) -> list[Row]:
    """Time and peak memory of loading, each time in a new process."""
    rows = {
        "ms": Row("load"),
        "weights": Row("load: weights", "MB"),
        "RssAnon": Row("load: peak memory", "x weights"),
        "VmRSS": Row("load: peak with mapped files", "x weights"),
    }
    for _ in range(setup.repeats):
        for index, side in enumerate(sides):
            with setup.workers(side) as [worker]:
                found = load(worker)
            sizes = {name: found[name] / found["weights"] for name in ("RssAnon", "VmRSS")}
            values = {"ms": found["seconds"] * 1e3, "weights": found["weights"] / 2**20, **sizes}
            for name, row in rows.items():
                (row.theirs if index else row.ours).append(values[name])
    return list(rows.values())


def measure_task(setup: Setup, name: str, pair: list[Worker]) -> Row:
    """The time of a task, in turn, after a run of each whose outputs are compared."""
    (task, shape), row = TASKS[name], Row(name)
    files = [setup.folder / f"{index}.pt" for index in range(len(pair))]
    for worker, file in zip(pair, files, strict=True):
        milliseconds(worker, task, shape, file)
    if len(pair) == 2:
        row.difference, row.note = compare(*files)
    columns = [(row.ours, row.our_forwards), (row.theirs, row.their_forwards)]
    for _ in range(setup.repeats):
        for worker, (times, forwards) in zip(pair, columns, strict=False):
            if task in NEED_HOOKS:
                forwards.append(milliseconds(worker, "forward", shape))
            times.append(milliseconds(worker, task, shape))
    return row


def compare(ours: Path, theirs: Path) -> tuple[float, str]:
    """The largest difference between two saved outputs, where it is, and how much only one of them has."""
    mine, other = (torch.load(path, mmap=True, weights_only=True) for path in (ours, theirs))
    largest, where = 0.0, ""
    for name in sorted(mine.keys() & other.keys()):
        if mine[name].shape != other[name].shape:
            return math.inf, f"{name} is {list(mine[name].shape)} and {list(other[name].shape)}"
        # What is masked is minus infinity in one library and the smallest float in another.
        a, b = (value.float().clamp(min=-1e30) for value in (mine[name], other[name]))
        difference = float((a - b).abs().max())
        if not difference <= largest:
            largest, where = difference, name
    notes = [f"in {where}"] if len(mine) > 1 else []
    for whose, names in (("headscope", mine.keys() - other.keys()), ("the peer", other.keys() - mine.keys())):
        if names:
            notes.append(f"{whose} alone has {', '.join(sorted(names)) if len(names) < 4 else len(names)}")
    return largest, "; ".join(notes)


def measure_pair(setup: Setup, ours: Side, theirs: Side, wanted: list[str]) -> list[Row]:
    """All that is wanted of headscope and one peer; each row is printed when it is there."""
    rows: list[Row] = []

    def show(*found: Row) -> None:
        for row in found:
            rows.append(row)
            print(row, flush=True)

    sides = (ours, theirs)
    imports = [IMPORTS[side.library] for side in sides]
    if "import" in wanted:
        show(measure_fresh(setup, "import", sides, imports))
        show(measure_fresh(setup, "import torch alone", sides, ["import torch"] * 2))
    if "start" in wanted:
        programs = ["\n".join((IMPORTS[side.library], LOADS[side.library], FIRST_LOGITS)) for side in sides]
        show(measure_fresh(setup, "start, to the first logits", sides, programs))
    if "load" in wanted:
        show(*measure_load(setup, sides))
    names = [name for name, (task, _) in TASKS.items() if task in wanted]
    if names:
        with setup.workers(*sides) as pair:
            for worker in pair:
                load(worker)
            for name in names:
                alone = TASKS[name][0] in NEED_HOOKS and theirs.library == "transformers"
                show(measure_task(setup, name, pair[:1] if alone else pair))
    return rows


def write_checkpoint(folder: Path) -> None:
    """A random GPT-2 small with the norms and biases of a trained one's size, and a tokenizer of its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_ctx=1024))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            center = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=center, std=0.1)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(product(letters, repeat=2), 50000))
    words = [*letters, *("".join(pair) for pair in merges), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), words[-1])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="LABEL=PYTHON", help="TransformerLens, of any version"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--only", default=",".join(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = set(options.only) - set(CASES)
    if unknown:
        parser.error(f"--only knows {', '.join(CASES)}; got {', '.join(sorted(unknown))}")
    if not all("=" in peer for peer in options.peer):
        parser.error(f"--peer has the form LABEL=PYTHON; got {', '.join(options.peer)}")
    return options


def main() -> None:
    """Print a table for each peer; exit with 1 if outputs differ."""
    options = arguments()
    peers = [("transformers", Side("headscope-raw", sys.executable), Side("transformers", sys.executable))]
    for peer in options.peer:
        label, python = peer.split("=", 1)
        sides = Side("headscope", sys.executable), Side("transformer_lens", str(Path(python).absolute()))
        peers.append((label, *sides))
    print(f"GPT-2 small's shape, random weights, {options.threads} threads, float32, medians of {options.repeats}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), options.repeats, options.threads)
        write_checkpoint(setup.folder / "gpt2")
        os.sync()  # or the disk is still busy with it when loading is measured
        for label, ours, theirs in peers:
            title = f"headscope {setup.versions(ours)} and {theirs.library} {setup.versions(theirs)}"
            print(f"\n{title}\n{HEADER}", flush=True)
            results[label] = title, measure_pair(setup, ours, theirs, options.only)
    if options.json:
        numbers = {
            label: {"title": title, "rows": [asdict(row) for row in rows]} for label, (title, rows) in results.items()
        }
        options.json.write_text(json.dumps({"threads": options.threads, "peers": numbers}, indent=1))
    sys.exit(any(not (row.difference or 0.0) <= TOLERANCE for _, rows in results.values() for row in rows))


if __name__ == "__main__":
    main()
