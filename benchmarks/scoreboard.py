"""Every method on models whose answers are known, as the tables of docs/scoreboard.md.

    python benchmarks/scoreboard.py FOLDER [--peer PYTHON_WITH_TRANSFORMER_LENS_3] [--out docs/scoreboard.md]

FOLDER holds models with a `truth.json` beside their weights; the models whose weights the tests set by hand join them,
and the demo model. `headscope scoreboard FOLDER` prints the same without those of the tests. With `--peer`,
TransformerLens patches and attributes the same prompts in its own environment, and its AUROC stands beside. With
`--out`, the text between the two marks in that file gives way to the new tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from induction_model import induction_model  # noqa: E402
from name_moving_model import name_moving_model, name_task  # noqa: E402
from suppressing_model import suppressing_model  # noqa: E402

from headscope.analysis.core.components import all_components  # noqa: E402
from headscope.analysis.prompts.metrics import NumberMetric  # noqa: E402
from headscope.analysis.scoreboard.board import (  # noqa: E402
    KnownModel,
    Scoreboard,
    demo_model,
    known_models,
    scoreboard,
)
from headscope.analysis.scoreboard.known_tasks import known_task  # noqa: E402
from headscope.analysis.scoreboard.scoring import auroc  # noqa: E402
from headscope.analysis.scoreboard.truth import Truth  # noqa: E402

BEGIN, END = "<!-- scoreboard: begin -->", "<!-- scoreboard: end -->"
PEER = Path(__file__).parent / "workers" / "scoreboard.py"


def hand_set() -> list[KnownModel]:
    """The models whose weights the tests set by hand."""
    induction = Truth(
        "induction by hand",
        true=frozenset({"0.1", "1.0"}),
        idle=frozenset({"0.0", "1.1"}),
        edges=frozenset({("0.1", "1.0.k"), ("1.0", "final")}),
        kinds={"previous_token": frozenset({"0.1"}), "induction": frozenset({"1.0"})},
    )
    suppressing = Truth(
        "copy suppression by hand",
        true=frozenset({"0.0", "1.0", "2.0"}),
        idle=frozenset({"0.2", "1.2"}),
        kinds={
            "previous_token": frozenset({"0.0", "1.1"}),
            "induction": frozenset({"1.0"}),
            "copy_suppression": frozenset({"2.0"}),
        },
        special=(0,),
        bos=0,
    )
    movers = ("2.0", "2.1", "3.0")
    names = Truth(
        "name moving by hand",
        true=frozenset({"0.0", "1.0", *movers}),
        idle=frozenset({"0.1", "1.1", "3.1"}),
        edges=frozenset(
            {("0.0", "1.0.k"), ("0.0", "1.0.v"), ("2.0", "3.0.q"), ("2.1", "3.0.q")}
            | {("1.0", f"{mover}.q") for mover in movers}
            | {(mover, "final") for mover in movers}
        ),
        kinds={"duplicate_token": frozenset({"0.0"})},
        special=(0, 1),
        bos=0,
    )
    return [
        KnownModel(induction.name, induction_model, induction),
        KnownModel(suppressing.name, suppressing_model, suppressing),
        KnownModel(names.name, name_moving_model, names, lambda model: name_task(32)),
    ]


def add_peer(board: Scoreboard, models: list[KnownModel], python: Path) -> None:
    """Let TransformerLens patch and attribute the same prompts, and put its AUROC beside."""
    for score, known in zip(board, models, strict=True):
        if not score.components:
            continue
        model = known.load()
        truth = known.truth if isinstance(known.truth, Truth) else Truth.read(known.truth, model.cfg)
        task = known_task(model, truth) if known.task is None else known.task(model)
        metric = task.measure
        tokens, weights = metric.terms()
        at = metric.positions if isinstance(metric, NumberMetric) else task.positions
        with tempfile.TemporaryDirectory() as folder:
            tensors = {f"model.{name}": value.float().contiguous() for name, value in model.state_dict().items()}
            given = {"clean": task.clean_tokens, "corrupted": task.corrupted_tokens, "tokens": tokens, "at": at}
            save_file({**tensors, **given, "weights": weights.float()}, Path(folder) / "task.safetensors")
            fields = (
                "n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "act_fn", "d_vocab", "d_vocab_out",
                "normalization_type", "attn_only", "attention_dir", "use_attn_scale",
            )  # fmt: skip
            (Path(folder) / "config.json").write_text(json.dumps({name: getattr(model.cfg, name) for name in fields}))
            done = subprocess.run([str(python), str(PEER), folder], capture_output=True, text=True, check=False)
        if done.returncode:
            score.notes.append(f"TransformerLens: {done.stderr.strip().splitlines()[-1]}")
            continue
        for name, scores in json.loads(done.stdout.splitlines()[-1]).items():
            labels = {part.label for part in all_components(model.cfg)}
            most = max(scores.values())
            kept = {label: value if value >= 1e-6 * most else 0.0 for label, value in scores.items() if label in labels}
            score.components[f"TransformerLens: {name}"] = auroc(kept, truth.true, truth.idle)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of models, each with a truth.json")
    parser.add_argument("--peer", type=Path, help="the Python of an environment with TransformerLens 3")
    parser.add_argument("--out", type=Path, help="a file, between whose marks the tables go")
    given = parser.parse_args()
    start = time.perf_counter()
    models = [*known_models(given.folder), *hand_set(), demo_model()]
    board = scoreboard(models)
    seconds = time.perf_counter() - start
    if given.peer is not None:
        add_peer(board, models, given.peer)
    text = f"{board}\n\nAll of it, TransformerLens left out: {seconds:.0f} s, {torch.get_num_threads()} threads."
    print(text)
    if given.out is not None:
        page = given.out.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        given.out.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
