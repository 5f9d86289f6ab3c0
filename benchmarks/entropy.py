"""`measure_entropy` against the notebooks' formula written out naively, on GPT-2 small's shape with random weights.

The naive form makes the logits [batch, pos, d_vocab] of every head and MLP added to its state and taken from the final
one, and asks `Categorical(...).entropy()`. It runs on headscope's model or, with `--peer`, on that of TransformerLens
in its own environment. Every method has a process of its own (`workers/entropy.py`) with the same weights and tokens;
they are asked in turn, so that all meet the same moods of the machine, and ratios are taken pair by pair. Values are
compared position by position with the naive form in float64. Memory is read from `/proc` (Linux).

    python benchmarks/entropy.py [--tokens 64,1024,4096] [--repeats 5] [--peer PYTHON_WITH_TRANSFORMER_LENS_3]
                                 [--before SRC_OF_AN_OLDER_CHECKOUT] [--table]
    python benchmarks/entropy.py --scaling docs/images/entropy-scaling   # writes .csv and .svg; headscope alone

Beside each time stands the floor: the operations that are needed over the rates that this machine was measured at,
    products      each layer's first state and the final one through W_U; each head's `z (W_O W_U)`, where W_O W_U
                  is made once and spread over the tokens (or, for few tokens, each head's output through W_U)
    exponentials  one for each state and component, each token of the vocabulary
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
from safetensors.torch import save_file
from workers.protocol import MEMORY, Side, Worker, process_options, workers

import headscope
from headscope import HookedTransformer, HookedTransformerConfig

SCRIPT = Path(__file__).parent / "workers" / "entropy.py"
GPT2_SMALL: dict[str, Any] = {
    "n_layers": 12,
    "d_model": 768,
    "n_ctx": 1024,
    "d_head": 64,
    "d_vocab": 50257,
    "act_fn": "gelu_new",
    "normalization_type": "LNPre",
}
SPREAD = 0.05  # of the weights: far enough from zero that predictions are not flat
CHECKED, EVERY = 128, 16  # values are compared at every 16th of 128 positions
WATCH = 0.01  # seconds between looks at the memory
VERSIONS = """
import sys
from importlib.metadata import version
print(sys.argv[1], version(sys.argv[1]), "with torch", version("torch"))
"""

LABELS = {
    "transformer_lens": "naive, TransformerLens",
    "naive": "naive, headscope",
    "headscope": "headscope float32",
    "headscope-bfloat16": "headscope bfloat16",
    "headscope-before": "headscope before",
}
OURS = ("headscope", "headscope-bfloat16")
SCALING = {
    "tokens": (64, 128, 256, 512, 1024, 2048, 4096),
    "n_layers": (3, 6, 12),
    "d_vocab": (5000, 10000, 25000, 50257),
    "threads": (1, 2),
}


@dataclass(frozen=True)
class Floor:
    """Milliseconds per token that the operations would take at the measured rates."""

    states: float
    heads: float
    shared: float
    exponentials: float

    @property
    def total(self) -> float:
        return self.states + self.heads + self.shared + self.exponentials

    def __str__(self) -> str:
        return (
            f"{self.total:.1f} = {self.states:.1f} states + {self.heads:.1f} heads + {self.shared:.1f} W_O W_U + "
            f"{self.exponentials:.1f} exp2"
        )


def floor(shape: dict[str, Any], n_tokens: int, rates: dict[str, float], *, bfloat16: bool = False) -> Floor:
    """The operations of `shape` over the machine's rates."""
    layers, d_model, d_head, d_vocab = (shape[name] for name in ("n_layers", "d_model", "d_head", "d_vocab"))
    n_heads = d_model // d_head
    column = 2 * d_model * d_vocab / rates["mm"]
    through_rank = 2 * d_head * d_vocab / rates["bmm_bfloat16" if bfloat16 else "bmm"]
    through_d_model = 2 * d_model * d_vocab / rates["bmm_bfloat16"] if bfloat16 else column
    ways = [(n_heads * through_rank, n_heads * column * d_head / n_tokens), (n_heads * through_d_model, 0.0)]
    heads, shared = (layers * each for each in min(ways, key=sum))
    exponentials = (2 * layers + 1 + layers * (n_heads + 1)) * d_vocab / rates["exp2"]
    return Floor(*(1e3 * seconds for seconds in ((layers + 1) * column, heads, shared, exponentials)))


@dataclass
class Method:
    """One method's numbers at one number of tokens, which is smaller for those that take minutes."""

    n_tokens: int
    seconds: list[float] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MEMORY, 0))

    @property
    def per_token(self) -> list[float]:
        """Milliseconds."""
        return [1e3 * seconds / self.n_tokens for seconds in self.seconds]


def write_weights(shape: dict[str, Any], path: Path) -> None:
    """Random weights of a shape, the same each time."""
    model = HookedTransformer(HookedTransformerConfig(**shape, initializer_range=SPREAD, seed=0, device="cpu"))
    save_file({name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}, path)


def median_rates(rates: Iterable[dict[str, float]]) -> dict[str, float]:
    """The median of each rate."""
    found = list(rates)
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def differences(folder: Path, sides: list[Side]) -> dict[str, tuple[float, float]]:
    """For each method, the largest difference from float64 of a single position's value, and of a mean over them."""
    exact = torch.load(folder / "naive-float64.pt", weights_only=True)
    largest = {}
    for side in sides:
        found = torch.load(folder / f"{side.library}.pt", weights_only=True)
        both = [(mine.double(), right) for mine, right in zip(found, exact, strict=True)]
        single = max(float((mine - right).abs().max()) for mine, right in both)
        mean = max(float((mine - right).mean((-2, -1)).abs().max()) for mine, right in both)
        largest[side.library] = single, mean
    return largest


def check(worker: Worker, library: str, folder: Path) -> None:
    """Have a method's values written; this is its warm-up too."""
    worker.ask(task="check", n_tokens=CHECKED, every=EVERY, save=str(folder / f"{library}.pt"))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all methods in turn; a table for each number of tokens."""
    # Those whose ratio matters most are next to each other.
    sides = [Side(library, sys.executable) for library in OURS]
    if options.before:
        sides.append(Side("headscope-before", sys.executable, str(options.before)))
    if options.peer is None:
        sides.append(Side("naive", sys.executable))
    else:
        sides.insert(0, Side("transformer_lens", str(options.peer.absolute())))
        print(f"beside {peer_version(sides[0], folder)}", flush=True)
    weights = folder / "weights.safetensors"
    write_weights(GPT2_SMALL, weights)
    load = {"task": "load", "shape": GPT2_SMALL, "weights": str(weights)}
    with workers(SCRIPT, [Side("naive-float64", sys.executable)], folder, options.threads) as [exact]:
        exact.ask(**load)
        check(exact, "naive-float64", folder)
    results: dict[str, Any] = {}
    with workers(SCRIPT, sides, folder, options.threads) as asked:
        loaded = []
        for worker, side in zip(asked, sides, strict=True):
            worker.ask(**load)
            loaded.append(worker.memory())
            check(worker, side.library, folder)
        off = differences(folder, sides)
        for n_tokens in sorted(options.tokens):
            methods = {
                side.library: Method(
                    n_tokens if side.library.startswith("headscope") else min(n_tokens, options.naive_tokens)
                )
                for side in sides
            }
            rates = []
            for _ in range(options.repeats):
                for worker, side, before in zip(asked, sides, loaded, strict=True):
                    method = methods[side.library]
                    if side.library == "headscope":
                        rates.append(worker.ask(task="rates"))
                    answer, peak = worker.ask_watching(WATCH, task="measure", n_tokens=method.n_tokens)
                    method.seconds.append(answer["seconds"])
                    method.memory = {name: max(method.memory[name], peak[name] - before[name]) for name in MEMORY}
            show(n_tokens, methods, off, median_rates(rates))
            results[str(n_tokens)] = {
                "methods": {name: asdict(method) for name, method in methods.items()},
                "rates": rates,
                "differences": off,
            }
    return results


def peer_version(side: Side, folder: Path) -> str:
    """What the peer's environment holds."""
    command = [side.python, "-c", VERSIONS, side.library.replace("_", "-")]
    return subprocess.run(command, check=True, **process_options(side.python, folder, 1)).stdout.strip()


def show(
    n_tokens: int, methods: dict[str, Method], off: dict[str, tuple[float, float]], rates: dict[str, float]
) -> None:
    """Print one number of tokens."""
    floors = {name: floor(GPT2_SMALL, n_tokens, rates, bfloat16=name == "headscope-bfloat16") for name in OURS}
    speed = ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in rates.items())
    print(f"\n{n_tokens} tokens; billions of operations a second: {speed}")
    for name, found in floors.items():
        print(f"floor of {LABELS[name]}, ms/token: {found}")
    print(f"{'':<24} {'ms/token':>9} {'/ floor':>8} {'peak MB':>8} {'total MB':>9} {'difference':>11} {'of means':>9}")
    for name, method in methods.items():
        per_token = statistics.median(method.per_token)
        over = f"{per_token / floors[name].total:.2f}" if name in floors else ""
        anonymous, total = (method.memory[kind] / 2**20 for kind in MEMORY)
        single, mean = off[name]
        note = "" if method.n_tokens == n_tokens else f"  on {method.n_tokens} tokens"
        print(
            f"{LABELS[name]:<24} {per_token:>9.1f} {over:>8} {anonymous:>8.0f} {total:>9.0f} "
            f"{single:>11.1e} {mean:>9.1e}{note}"
        )
    for slow in ("transformer_lens", "naive", "headscope-before"):
        for quick in OURS:
            if slow in methods:
                pairs = zip(methods[slow].per_token, methods[quick].per_token, strict=True)
                ratios = [theirs / ours for theirs, ours in pairs]
                each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"{LABELS[slow]} / {LABELS[quick]}: {statistics.median(ratios):.2f} (pair by pair {each})")
    sys.stdout.flush()


def table(results: dict[str, Any]) -> str:
    """The rows of docs/entropy-speed.md."""
    lines = [
        "| tokens | naive, ms/token | float32 (limit) | bfloat16 (limit) | peak beyond the model |",
        "|---|---|---|---|---|",
    ]
    for n_tokens, of_tokens in results.items():
        methods = {name: Method(**given) for name, given in of_tokens["methods"].items()}
        naive = next(each for name, each in methods.items() if not name.startswith("headscope"))
        rates = median_rates(of_tokens["rates"])
        cells = [f"{statistics.median(naive.per_token):.0f}, on {naive.n_tokens}"]
        for name in OURS:
            least = floor(GPT2_SMALL, int(n_tokens), rates, bfloat16=name == "headscope-bfloat16").total
            ours = methods[name].per_token
            ratio = statistics.median(slow / quick for slow, quick in zip(naive.per_token, ours, strict=True))
            cells.append(f"{statistics.median(ours):.1f} ({least:.1f}), {ratio:.1f} times as fast")
        peaks = [methods[name].memory["RssAnon"] / 2**20 for name in OURS]
        cells.append(f"{peaks[0]:.0f} MB, {peaks[1]:.0f} MB; naive {naive.memory['RssAnon'] / 2**20:,.0f} MB")
        lines.append(f"| {int(n_tokens):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Point:
    """Headscope's time for one shape, number of tokens and threads, and what varies in its panel."""

    varied: str
    tokens: int
    n_layers: int
    d_vocab: int
    threads: int
    ms_per_token: float
    fastest: float
    slowest: float
    floor_ms_per_token: float

    @property
    def x(self) -> int:
        return int(getattr(self, self.varied))

    def __str__(self) -> str:
        return f"{self.varied:<10} {self.x:>6} {self.ms_per_token:>8.1f} ms/token, floor {self.floor_ms_per_token:.1f}"


def scaling(options: argparse.Namespace, folder: Path) -> list[Point]:
    """Headscope alone, one thing varied at a time."""
    weights = folder / "weights.safetensors"
    whole = {name: GPT2_SMALL[name] for name in ("n_layers", "d_vocab")}
    base = {"tokens": options.at, **whole, "threads": options.threads}
    axes = SCALING | ({"tokens": tuple(options.tokens)} if options.tokens else {})
    plan = [(varied, base | {varied: value}) for varied, values in axes.items() for value in values]
    points: list[Point] = []
    for threads in dict.fromkeys(at["threads"] for _, at in plan):
        loaded = None
        with workers(SCRIPT, [Side("headscope", sys.executable)], folder, threads) as [worker]:
            for varied, at in plan:
                if at["threads"] != threads:
                    continue
                shape = GPT2_SMALL | {name: at[name] for name in whole}
                if shape != loaded:
                    write_weights(shape, weights)
                    worker.ask(task="load", shape=shape, weights=str(weights))
                    worker.ask(task="measure", n_tokens=64)
                    loaded = shape
                points.append(measure_point(worker, varied, at, shape, options.repeats))
                print(points[-1], flush=True)
    return sorted(points, key=lambda point: (list(axes).index(point.varied), point.x))


def measure_point(worker: Worker, varied: str, at: dict[str, int], shape: dict[str, Any], repeats: int) -> Point:
    """A point, and the floor at the rates measured before each of its runs."""
    times, rates = [], []
    for _ in range(repeats):
        rates.append(worker.ask(task="rates"))
        times.append(worker.ask(task="measure", n_tokens=at["tokens"])["seconds"] * 1e3 / at["tokens"])
    least = floor(shape, at["tokens"], median_rates(rates)).total
    middle = statistics.median(times)
    return Point(varied, **at, ms_per_token=middle, fastest=min(times), slowest=max(times), floor_ms_per_token=least)


def write_scaling(points: list[Point], path: Path) -> None:
    """The numbers and the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(points[0])), lineterminator="\n")
        writer.writeheader()
        for point in points:
            row = asdict(point)
            writer.writerow(
                {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
            )
    path.with_suffix(".svg").write_text(draw(points), encoding="utf-8")


MEASURED, LEAST, INK, PALE = "#2563a8", "#8a8f98", "#20242a", "#e3e6ea"
DASHED = ' stroke-dasharray="5 4"'
TITLES = {"tokens": "tokens", "n_layers": "layers", "d_vocab": "vocabulary", "threads": "threads"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 190, 190, 60, 62, 24  # of each panel, and around them
LABEL = 40  # from one label on the axis to the next, at least


def draw(points: list[Point]) -> str:
    """A panel for each thing varied, all with one scale of milliseconds per token, as SVG."""
    step = tick_step(max(point.slowest for point in points))
    ticks = [step * number for number in range(1 + math.ceil(max(point.slowest for point in points) / step))]
    panels = list(dict.fromkeys(point.varied for point in points))
    size = f"{LEFT + len(panels) * (WIDTH + GAP)} {TOP + HEIGHT + 52}"

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / ticks[-1])

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        text(LEFT, 22, "Time of measure_entropy, ms per token", size=15, weight="bold"),
        line([(LEFT, 40), (LEFT + 24, 40)], MEASURED),
        text(LEFT + 30, 44, "measured (median; bars from fastest to slowest)"),
        line([(LEFT + 330, 40), (LEFT + 354, 40)], LEAST, DASHED),
        text(LEFT + 360, 44, "floor: operations over this machine's rates"),
        *(text(LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end") for tick in ticks),
    ]
    for index, varied in enumerate(panels):
        start = LEFT + index * (WIDTH + GAP)
        parts += [line([(start, y(tick)), (start + WIDTH, y(tick))], PALE, width=1) for tick in ticks]
        here = [point for point in points if point.varied == varied]
        xs = spread([point.x for point in here], start + 18, start + WIDTH - 18, log=varied == "tokens")
        placed = list(zip(xs, here, strict=True))
        parts.append(line([(x, y(point.floor_ms_per_token)) for x, point in placed], LEAST, DASHED))
        parts.append(line([(x, y(point.ms_per_token)) for x, point in placed], MEASURED))
        for x, point in placed:
            parts.append(line([(x, y(point.fastest)), (x, y(point.slowest))], MEASURED, width=1))
            parts.append(f'<circle cx="{x:.1f}" cy="{y(point.ms_per_token):.1f}" r="3.5" fill="{MEASURED}"/>')
        labelled = math.inf
        for x, point in reversed(placed):
            if labelled - x >= LABEL:
                parts.append(text(x, TOP + HEIGHT + 18, f"{point.x:,}", anchor="middle"))
                labelled = x
        parts.append(text(start + WIDTH / 2, TOP + HEIGHT + 38, TITLES[varied], anchor="middle", weight="bold"))
    return "\n".join([*parts, "</svg>\n"])


def line(points: list[tuple[float, float]], colour: str, style: str = "", *, width: int = 2) -> str:
    through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{through}" fill="none" stroke="{colour}" stroke-width="{width}"{style}/>'


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 11, weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def tick_step(highest: float) -> float:
    """A round number that fits into `highest` a few times."""
    power = 10.0 ** math.floor(math.log10(highest / 4))
    return next(step * power for step in (1, 2, 5, 10) if highest / (step * power) <= 6)


def spread(values: list[int], start: float, end: float, *, log: bool) -> list[float]:
    """Where values lie between two ends."""
    at = [math.log(value) if log else float(value) for value in values]
    low, span = (min(at), max(at) - min(at)) if len(at) > 1 else (at[0] - 0.5, 1.0)
    return [start + (value - low) / span * (end - start) for value in at]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=numbers, help="how many, with commas between; default 128 (--scaling: 64-4096)"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="one that has TransformerLens 3")
    parser.add_argument("--before", type=Path, metavar="SRC", help="also measure the headscope of another checkout")
    parser.add_argument("--table", action="store_true", help="print the rows of docs/entropy-speed.md")
    parser.add_argument("--naive-tokens", type=int, default=1024, help="the naive forms are run on no more tokens")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument(
        "--scaling", type=Path, metavar="PATH", help="measure headscope alone; write PATH.csv, PATH.svg"
    )
    parser.add_argument("--at", type=int, default=1024, help="tokens of --scaling where something else is varied")
    options = parser.parse_args()
    context = GPT2_SMALL["n_ctx"]
    given = [*(options.tokens or [128]), options.naive_tokens, options.at]
    wrong = [n_tokens for n_tokens in given if n_tokens < 1 or (n_tokens > context and n_tokens % context)]
    if wrong:
        parser.error(f"tokens are at most {context}, or whole rows of {context}; got {wrong[0]}")
    return options


def numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def main() -> None:
    """Print the tables, or write the scaling's files."""
    options = arguments()
    torch.set_grad_enabled(False)
    print(f"GPT-2 small's shape, random weights, {options.threads} threads, medians of {options.repeats}")
    print(f"headscope {headscope.__version__} with torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        if options.scaling:
            write_scaling(scaling(options, Path(name)), options.scaling)
            return
        options.tokens = options.tokens or [128]
        results = compare(options, Path(name))
    if options.table:
        print("\n" + table(results))
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "tokens": results}, indent=1))


if __name__ == "__main__":
    main()
