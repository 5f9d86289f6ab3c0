"""The pictures of docs/toy-lab.md, and the numbers it says: every model is trained here, from seed 0, and those
that are too small from seed 1.

    python examples/toy_lab_images.py --out docs/images/toy    # three minutes; needs Chromium

Figures of headscope are drawn by Chromium without a window, which turns each into an SVG.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from skip_trigram import OPERANDS, SOLVED, circuit_figures
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.heads.types import detect_heads
from headscope.data.tasks import SkipTrigramDataset
from headscope.training import (
    fourier_power,
    heads_needed,
    operand_study,
    token_circuits,
    toy_task,
    train,
    training_dynamics,
)
from headscope.training.toy import log_spaced_steps
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_tasks import ToyTask
from headscope.views.drawing.theme import PALETTE, house_template, plot_title
from headscope.views.figures.head_types import k_composition_maps
from headscope.views.figures.toy import fourier_bars, grokking_curve
from headscope.views.figures.toy_dynamics import dynamics_along_training
from headscope.views.figures.training import token_maps, training_metrics

if TYPE_CHECKING:
    import plotly.graph_objects as go

DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
(async () => {
  const drawn = {};
  for (const [name, figure] of Object.entries(figures)) {
    const place = document.body.appendChild(document.createElement("div"));
    await Plotly.newPlot(place, figure.data, figure.layout);
    const size = { format: "svg", width: figure.layout.width, height: figure.layout.height };
    drawn[name] = decodeURIComponent((await Plotly.toImage(place, size)).split(",").slice(1).join(","));
    place.remove();
  }
  const found = document.body.appendChild(document.createElement("pre"));
  found.id = "drawn";
  found.textContent = JSON.stringify(drawn);
})();
"""


def save_svgs(figures: "dict[str, go.Figure]", out: Path) -> None:
    """Draw figures by Chromium."""
    from plotly.offline import get_plotlyjs

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("the pictures are drawn by Chromium, which is not on the PATH.")
    data = json.dumps({name: json.loads(figure.to_json()) for name, figure in figures.items()}).replace("<", "\\u003c")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figures.html"
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><body><script type="application/json" id="figures">{data}</script>'
            f"<script>{get_plotlyjs()}</script><script>{DRAW}</script></body>",
            encoding="utf-8",
        )
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
        shown = subprocess.run(
            [*command, f"--user-data-dir={folder}/profile", "--dump-dom", page.as_uri()],
            capture_output=True,
            check=True,
        )
    drawn = re.search(r'<pre id="drawn">(.*)</pre>', shown.stdout.decode(), re.DOTALL)
    if drawn is None:
        sys.exit("Chromium did not draw the figures.")
    for name, svg in json.loads(unescape(drawn[1])).items():
        (out / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")


def learn(name: str, folder: Path) -> tuple[ToyTask, TrainingResult]:
    """Train by the recipe, with snapshots."""
    task = toy_task(name, seed=0, device="cpu")
    steps = log_spaced_steps(task.training.n_steps(len(task.data)))
    result = train(task.model, task.data, task.training, validation=task.validation, out=folder, snapshots=steps)
    print(result)
    return task, result


def draw_skip_trigram(folder: Path) -> "dict[str, go.Figure]":
    """The notebook's study."""
    task, result = learn("skip-trigram", folder)
    study = operand_study(task.model)
    paid = study.attention[0]
    other = ~torch.eye(4, dtype=torch.bool)
    beside = torch.stack([paid[:, 0, value, other[value]].mean(-1) for value in range(4)], dim=1)
    heads = [f"head {head}" for head in range(len(paid))]
    figures = {f"skip-trigram-{name}": figure for name, figure in circuit_figures(task.model).items()}
    figures["skip-trigram-pairs"] = draw_few_heads()
    figures["skip-trigram-training"] = training_metrics(result)
    figures["skip-trigram-operands"] = token_maps(
        torch.stack([beside / beside.max(), study.carried[0] / study.carried[0].max()]),
        title="Which head carries which operand",
        x=OPERANDS,
        y=heads,
        x_title="operand",
        names=["attention to it", "logits it moves"],
        unit="of the most",
    )
    return figures


def pair_points(model: HookedTransformer) -> Tensor:
    """What the heads pass on for each unordered pair, `z` at the last place, from the weights: `[pair, number]`.

    In `a f b 0` a head's `z` is the mean of its values of the four tokens, weighted by the exponentials of their
    scores for the query 0; here the filler `f` is 5.
    """
    attn = model.blocks[0].attn
    scores = token_circuits(model).qk[:, 0]  # the embedding is one-hot: rows of W_V are the tokens' values
    values = attn.W_V + attn.b_V[:, None]
    tokens = torch.tensor([[low, 5, high, 0] for low, high in SkipTrigramDataset.ANSWERS])
    points = torch.einsum("hpt,hpte->phe", scores[:, tokens].softmax(-1), values[:, tokens]).flatten(1)
    return points.detach()


def draw_few_heads() -> "go.Figure":
    """The ten pairs in the plane of two numbers: a model that tells them all apart, and one that cannot."""
    from plotly.subplots import make_subplots

    pairs = list(SkipTrigramDataset.ANSWERS)
    labels = [f"{low}{high}" for low, high in pairs]
    shapes = {"two heads of width 1": {"n_heads": 2, "d_head": 1}, "one head of width 2": {"n_heads": 1, "d_head": 2}}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(shapes), horizontal_spacing=0.1)
    for column, (name, shape) in enumerate(shapes.items(), start=1):
        task = toy_task("skip-trigram", seed=1, device="cpu", **shape)
        train(task.model, task.data, task.training, progress=False)
        accuracy = operand_study(task.model).accuracy
        right = [bool(accuracy[low - 1, high - 1] > SOLVED) for low, high in pairs]
        points = pair_points(task.model)
        nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).amin(1)
        print(f"{name}: {sum(right)} of 10 pairs answered; distance to the nearest other pair:")
        print("  " + ", ".join(f"{pair} {near:.2f}" for pair, near in zip(labels, nearest.tolist(), strict=True)))
        colors = [PALETTE[0] if each else PALETTE[1] for each in right]
        figure.add_scatter(
            x=points[:, 0], y=points[:, 1], mode="markers+text", text=labels, textposition="top center",
            marker={"size": 9, "color": colors}, cliponaxis=False, row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text="first number", row=1, col=column)
    figure.update_yaxes(title_text="second number", col=1)
    title = plot_title("What reaches the output for each pair (blue: answered, orange: not)", "")
    figure.update_layout(template=house_template(), title=title, width=900, height=460, showlegend=False)
    return figure


def draw_induction(folder: Path) -> "dict[str, go.Figure]":
    """Two heads in a row."""
    task, _ = learn("induction", folder)
    found = detect_heads(task.model, progress=False)
    print(found)
    needed = heads_needed(task.model, task.validation)
    readers = [f"{layer}.{head}" for layer, head in found.composition_heads.tolist()]
    for reader, scores in zip(readers, found.composition[:, 0].tolist(), strict=True):
        print(f"keys of {reader} read", ", ".join(f"0.{head}: {score:.3f}" for head, score in enumerate(scores)))
    print(f"unrelated heads: {task.model.cfg.d_model**-0.5:.3f}")
    for layer, row in enumerate(needed.accuracy_without.tolist()):
        print("right without", ", ".join(f"{layer}.{head}: {share:.2%}" for head, share in enumerate(row)))
    return {
        "induction-along": dynamics_along_training(training_dynamics(folder, task.validation, device="cpu")),
        "induction-composition": k_composition_maps(found).update_layout(width=960),
    }


def draw_modular_addition(folder: Path) -> "dict[str, go.Figure]":
    """A table by heart, and then the rule."""
    task, result = learn("modular-addition", folder)
    assert result.validation is not None
    print(f"learned by heart at step {result.train.reached()}, grokked at step {result.validation.reached()}")
    p = task.data.options["p"]
    untrained = toy_task("modular-addition", seed=0, device="cpu").model
    power = {"before training": fourier_power(untrained.W_E[:p]), "after": fourier_power(task.model.W_E[:p])}
    strongest = power["after"].topk(5)
    ranked = power["after"].sort(descending=True).values.cumsum(0)
    print(f"{int((ranked < 0.95).sum()) + 1} of {len(ranked)} frequencies hold 95 % of the power")
    print(
        "strongest frequencies:", (strongest.indices + 1).tolist(), f"{float(strongest.values.sum()):.1%} of the power"
    )
    return {
        "modular-addition-grokking": grokking_curve(result),
        "modular-addition-waves": fourier_bars(power, data=f"the {p} numbers' rows of W_E"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("toy-lab"), help="folder for the pictures")
    options = parser.parse_args(arguments)
    figures: dict[str, go.Figure] = {}
    with tempfile.TemporaryDirectory() as folder:
        for draw in (draw_skip_trigram, draw_induction, draw_modular_addition):
            figures |= draw(Path(folder) / draw.__name__)
    save_svgs(figures, options.out)
    print(f"{len(figures)} pictures in {options.out}")


if __name__ == "__main__":
    main()
