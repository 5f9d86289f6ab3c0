"""A model of three heads, each one number wide, that looks up pairs in a table: trained in seconds, then taken apart.

    python examples/skip_trigram.py [--out FOLDER] [--seeds 3]

The task: in `3 7 4 0` the first token and the last but one are operands (1 to 4), and the token after 0 is that of
the unordered pair {3, 4} in an arbitrary table of ten. Half of the prompts are noise without an answer. Five questions:

1. What does training reach, and what is the best that can be reached?
2. What does each head attend to, and what does it add to the logits?
3. Which head carries which operand?
4. Pairs of equal operands are half as frequent: are they treated differently?
5. How few heads and dimensions solve the task?

What comes out: three heads of width 1 solve it from each of eight seeds, two from six, one from none, although weights
for one can be written down by hand (`one_number_is_enough`). Heads share out operand values, never places, for there
are no positions. And equal operands are treated differently: drawn half as often, their loss is over twice that of
different ones; drawn as often, most of the difference goes. They are also what a model that is too small gives up: one
head of width 2 missed three of the four, and nothing else, from four of eight seeds. It gives one operand, say 4, no
attention, so that a 1 beside it has all of it, as beside another 1; {1, 4} and {1, 1} then look the same, and the
answer goes to the more frequent. (`--seeds 8` prints what these sentences say.)

Figures go to FOLDER as HTML. Every number printed can be asked for with the functions used here.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headscope import HookedTransformer
from headscope.data.tasks import SkipTrigramDataset
from headscope.training import toy_configs
from headscope.training.toy import evaluate_task, log_spaced_steps, train
from headscope.training.toy_checkpoint import load_toy_model, snapshot_steps
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_study import OperandStudy, head_logits, operand_study, token_circuits
from headscope.training.toy_tasks import skip_trigram_task
from headscope.views.figures.training import token_maps, token_maps_along_training, training_metrics

if TYPE_CHECKING:
    import plotly.graph_objects as go

PROMPT = (2, 5, 3, 0)
TOKENS = [str(token) for token in range(11)]
OPERANDS = ["1", "2", "3", "4"]
SOLVED = 0.999


def solve(seed: int, steps: int, out: Path) -> tuple[HookedTransformer, TrainingResult]:
    """Train by the default recipe, keeping weights along the way."""
    task = skip_trigram_task(seed, device="cpu")
    result = train(
        task.model,
        task.data,
        replace(task.training, epochs=None, steps=steps, evaluate_every=max(1, steps // 16)),
        validation=task.validation,
        out=out / "run",
        resume=True,
        snapshots=log_spaced_steps(steps, 24),
    )
    training_metrics(result).write_html(out / "training.html", include_plotlyjs=True)
    return task.model, result


def circuit_figures(model: HookedTransformer) -> "dict[str, go.Figure]":
    """Attention and logits of each head on one prompt, and its circuits over tokens."""
    tokens = torch.tensor([PROMPT])
    shown = [str(token) for token in PROMPT]
    prompt = " ".join(shown)
    _, cache = model.run_with_cache(tokens)
    parts = head_logits(model, tokens)
    rows = [f"head {head}" for head in range(model.cfg.n_heads)] + ["b_O", "embedding", "logits"]
    stack = torch.cat([parts.heads[0, 0], parts.bias, parts.direct, parts.total])
    circuits = token_circuits(model)
    logits = {"x": TOKENS, "x_title": "logit of"}
    return {
        "attention": token_maps(
            cache["pattern", 0][0], title=f"Attention in {prompt}", x=shown, y=shown, x_title="key", y_title="query",
            unit="attention",
        ),
        "head-logits": token_maps(stack[None], title=f"What the logits after {prompt} are made of", y=rows, names=[""],
            **logits,
        ),
        "ov": token_maps(circuits.ov, title="OV circuits", y=TOKENS, y_title="attended token", **logits),
        "qk": token_maps(
            circuits.qk, title="QK circuits", x=TOKENS, y=TOKENS, x_title="key", y_title="query", unit="score"
        ),
    }  # fmt: skip


def draw_circuits(model: HookedTransformer, out: Path) -> None:
    """The figures as pages, and the OV circuits along training."""
    figures = circuit_figures(model)
    steps = snapshot_steps(out / "run")
    along = torch.stack([token_circuits(load_toy_model(out / "run", step=step, device="cpu")).ov for step in steps])
    figures["ov-along-training"] = token_maps_along_training(
        along,
        steps,
        title="OV circuits along training",
        x=TOKENS,
        y=TOKENS,
        x_title="logit of",
        y_title="attended token",
    )
    for name, figure in figures.items():
        figure.write_html(out / f"{name}.html", include_plotlyjs=True, auto_play=False)


def table(name: str, values: Tensor) -> str:
    """Numbers in rows, one for each head."""
    rows = [f"  head {head}  " + "  ".join(f"{v:7.2f}" for v in row) for head, row in enumerate(values.tolist())]
    return "\n".join([f"{name:<28}" + "  ".join(f"{operand:>7}" for operand in OPERANDS), *rows])


def tell_operands_apart(study: OperandStudy) -> None:
    """Print which head carries which operand."""
    print("\nWhich head carries which operand? There are no positions, so a head can tell values, never places:")
    asymmetry = (study.logits - study.logits.transpose(2, 3)).abs().max()
    print(f"swapping the operands changes a head's logits by {float(asymmetry):.1e} at most.")
    # Attention to the operand `value`, beside each other value; equal ones share what there is.
    paid = study.attention[0]
    other = ~torch.eye(4, dtype=torch.bool)
    beside = torch.stack([paid[:, 0, value, other[value]].mean(-1) for value in range(4)], dim=1)
    print(table("attention to one operand", beside))
    print(table("logits that it moves", study.carried[0]))
    print("share of a head's variance that is a plain sum over operands:", rounded(study.additive[0]))
    needed = study.margin_without[0].flatten(1)
    print("pairs (of 16) still answered when a head adds its mean:", (needed > 0).sum(1).tolist())


@dataclass(frozen=True)
class Treatment:
    """Equal and different operands in one model: losses in nats, margins in logits, steps until all are right."""

    repeated_loss: float
    mixed_loss: float
    repeated_margin: float
    mixed_margin: float
    repeated_step: float
    mixed_step: float


def treat(seed: int, steps: int, *, equal_pairs: bool) -> Treatment:
    """Train a model, watching both kinds of pairs."""
    task = skip_trigram_task(seed, device="cpu")
    data = SkipTrigramDataset(len(task.data), seed=seed, equal_pairs=equal_pairs)
    learned = [float("inf")] * 2

    def watch(step: int) -> None:
        if step % 10 == 0 or step == steps:
            study = operand_study(task.model)
            for kind, group in enumerate((study.repeated, study.mixed)):
                right = group.accuracy >= SOLVED
                learned[kind] = min(learned[kind], step) if right else float("inf")

    cfg = replace(task.training, epochs=None, steps=steps)
    train(task.model, data, cfg, progress=False, on_step=watch)
    study = operand_study(task.model)
    repeated, mixed = study.repeated, study.mixed
    return Treatment(repeated.loss, mixed.loss, repeated.margin, mixed.margin, *learned)


def compare_repeated(seeds: Sequence[int], steps: int) -> None:
    """Print how equal operands fare, drawn half as often as different ones, and as often."""
    print("\nAre equal operands, half as frequent, treated differently? (means over seeds)")
    print(f"{'':<26} {'loss, nats':>19} {'margin, logits':>19} {'learned by step':>19}")
    print(f"{'drawn':<26} " + f"{'equal':>9} {'different':>9} " * 3)
    for name, equal_pairs in (("half as often", False), ("as often", True)):
        found = [treat(seed, steps, equal_pairs=equal_pairs) for seed in seeds]
        means = torch.tensor([list(vars(one).values()) for one in found]).mean(0).tolist()
        parts = ("9.5f", "9.5f", "9.2f", "9.2f", "9.0f", "9.0f")
        print(f"{name:<26} " + " ".join(f"{mean:{part}}" for mean, part in zip(means, parts, strict=True)))


def one_number_is_enough() -> HookedTransformer:
    """A model of one head of width 1 that solves the task, with weights written down by hand.

    The query 0 looks at operands only, at both alike, and reads a number for each: 0, 1, 3 or 7, whose sums of two
    are all different (a Sidon set). So the head's one number `z`, their mean, tells the pair. The logit of a pair with
    the mean `c` is `g (2 c z - c²)`, a straight line in `z`, and highest of all where `z` is nearest to `c`, for it is
    `g z² - g (z - c)²` and the first part is common. A margin is `g` times the square of a distance between means:
    at least `g / 4`.
    """
    model = toy_configs.one_hot(HookedTransformer(toy_configs.skip_trigram(n_heads=1, d_head=1, device="cpu")))
    attn = model.blocks[0].attn
    gain, far, numbers = 40.0, 60.0, torch.tensor([0.0, 1.0, 3.0, 7.0])
    with torch.no_grad():
        for weight in attn.parameters():
            weight.zero_()
        attn.W_Q[0, 0] = 1.0
        attn.W_K[0, :, 0] = -far
        attn.W_K[0, 1:5, 0] = 0.0
        attn.W_V[0, 1:5, 0] = numbers
        attn.b_O[:] = -1e4
        for (low, high), label in SkipTrigramDataset.ANSWERS.items():
            mean = (numbers[low - 1] + numbers[high - 1]) / 2
            attn.W_O[0, 0, label] = 2 * gain * mean
            attn.b_O[label] = -gain * mean**2
        attn.b_O[0] -= 1.0  # the embedding of the query adds 1 to its own logit
    return model


def count_heads(shapes: Sequence[tuple[int, int]], seeds: Sequence[int], steps: int) -> None:
    """Print what models of fewer heads and dimensions reach, by training and by hand."""
    print("\nHow few heads and dimensions? Share of the signal prompts that are answered, and pairs that are not:")
    for n_heads, d_head in shapes:
        reached = []
        for seed in seeds:
            task = skip_trigram_task(seed, n_heads=n_heads, d_head=d_head, device="cpu")
            train(task.model, task.data, replace(task.training, epochs=None, steps=steps), progress=False)
            accuracy = operand_study(task.model).accuracy
            missed = [f"{a}{b}" for a, b in SkipTrigramDataset.ANSWERS if accuracy[a - 1, b - 1] < SOLVED]
            reached.append(f"{float(accuracy.mean()):.1%}" + f" (not {' '.join(missed)})" * bool(missed))
        print(f"  {n_heads} heads of width {d_head}: {', '.join(reached)}")
    by_hand = one_number_is_enough()
    found = evaluate_task(by_hand, SkipTrigramDataset(10_000, seed=5))
    margin = operand_study(by_hand).smallest_margin.min()
    print(f"  1 head of width 1, by hand: {found.signal_accuracy:.1%}, smallest margin {float(margin):.1f} logits")


def rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the five questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("skip-trigram"), help="folder for the figures and the run")
    parser.add_argument("--seeds", type=int, default=3, help="models to train for each comparison")
    parser.add_argument("--steps", type=int, default=800, help="steps of training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # work this small only waits for a second thread
    model, result = solve(0, options.steps, options.out)
    print(result)
    draw_circuits(model, options.out)
    tell_operands_apart(operand_study(model))
    compare_repeated(range(options.seeds), options.steps)
    count_heads([(3, 1), (2, 1), (1, 1), (1, 2), (1, 3)], range(options.seeds), options.steps)
    print(f"\nfigures: {', '.join(sorted(path.name for path in options.out.glob('*.html')))} in {options.out}")


if __name__ == "__main__":
    main()
