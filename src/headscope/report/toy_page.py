"""`write_toy_report`: one offline HTML page about a model trained on a toy task, with its numbers as parquet beside it.

A toy model's answers are not the next tokens of a text, so that `write_report` would measure it by what it was never
asked. This page measures answers: how they were learned, what heads do to them, and what circuits they come from.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headscope.analysis.head_scores import HeadScores, head_scores
from headscope.analysis.run_manifest import headscope_version
from headscope.data.tasks import ModularAdditionDataset, TaskDataset
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.training.toy_checkpoint import load_toy_model
from headscope.training.toy_dynamics import TrainingDynamics, training_dynamics
from headscope.training.toy_fourier import fourier_power
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_study import HeadsNeeded, head_logits, heads_needed, token_circuits
from headscope.views.attention import attention_heads
from headscope.views.component_maps import component_maps
from headscope.views.head_scores import head_score_maps
from headscope.views.html import CONTENT_POLICY, HtmlView, bundle
from headscope.views.toy import fourier_bars, grokking_curve
from headscope.views.toy_dynamics import dynamics_along_training
from headscope.views.training import token_maps, training_metrics

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["ToyReport", "write_toy_report"]

_TEMPLATES = Path(__file__).parent.parent / "templates"
_PROMPTS = 10
_LEARNED = 0.99
_LEAST_CONTEXT = 5  # two copies of at least two tokens and a first one, or there is nothing to look back at


@dataclass(frozen=True)
class ToyReport:
    """What `write_toy_report` wrote, and the results it stands on.

    Attributes:
        page: The HTML page.
        tables: The parquet files beside it.
        heads: What answers become without each head.
        dynamics: The model along its training; `None` without snapshots.
    """

    page: Path
    tables: tuple[Path, ...]
    heads: HeadsNeeded
    dynamics: TrainingDynamics | None


@dataclass(frozen=True)
class _Found:
    """All that the page is made of."""

    model: HookedTransformer
    data: TaskDataset
    result: TrainingResult
    heads: HeadsNeeded
    scores: HeadScores | None
    dynamics: TrainingDynamics | None
    first: HookedTransformer | None


def write_toy_report(
    model: HookedTransformer,
    data: TaskDataset,
    result: TrainingResult,
    out: str | Path = "report",
    *,
    run: str | Path | None = None,
    progress: bool = True,
) -> ToyReport:
    """Analyse a model that was trained on a toy task, and write a page about it.

    Args:
        model: The model, trained.
        data: What to measure it on: the validation data.
        result: What `train` gave.
        out: The folder to write to; made if need be. Files of an earlier report in it are replaced.
        run: The folder that was given to `train` as `out`; if it has snapshots, the page shows training along them.
        progress: Show progress bars.

    Raises:
        InvalidInputError: If `out` cannot be written, or no row of data has an answer that its prompt settles.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from headscope.training import TrainConfig, toy_task, train
        >>> task = toy_task("skip-trigram", size=500)
        >>> with TemporaryDirectory() as folder:
        ...     cfg = TrainConfig(steps=10, lr=0.03)
        ...     result = train(task.model, task.data, cfg, validation=task.validation, progress=False)
        ...     write_toy_report(task.model, task.validation, result, folder, progress=False).page.name
        'report.html'
    """
    if not bool(data.signal[:, -1].any()):
        raise InvalidInputError("no row of data has a last answer that its prompt settles; give more rows.")
    dynamics = None if run is None else training_dynamics(run, data, device=str(model.input_device), progress=progress)
    found = _Found(
        model,
        data,
        result,
        heads_needed(model, data),
        head_scores(model, progress=progress) if model.cfg.n_ctx >= _LEAST_CONTEXT else None,
        dynamics,
        None if run is None or dynamics is None else load_toy_model(run, step=int(dynamics.steps[0]), device="cpu"),
    )
    tables = _tables(found)
    page = _render(found, tuple(tables))
    return ToyReport(*_write(Path(out), page, tables), found.heads, dynamics)


def _write(out: Path, page: str, tables: "dict[str, pd.DataFrame]") -> tuple[Path, tuple[Path, ...]]:
    """All files, made beside their places and moved there together."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".headscope-", dir=out) as stage:
            for name, table in tables.items():
                table.to_parquet(Path(stage) / name, index=False)
            (Path(stage) / "report.html").write_text(page, encoding="utf-8")
            for file in sorted(Path(stage).iterdir()):
                file.replace(out / file.name)
    except OSError as error:
        raise InvalidInputError(
            f"the report cannot be written to {str(out)!r}: {error.strerror or error}. Choose another folder, or make "
            "room there."
        ) from None
    return out / "report.html", tuple(out / name for name in tables)


def _tables(found: _Found) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    n_layers, n_heads = found.heads.loss_without.shape
    heads: dict[str, Any] = {
        "layer": [layer for layer in range(n_layers) for _ in range(n_heads)],
        "head": [*range(n_heads)] * n_layers,
        "loss_without": found.heads.loss_without.flatten().numpy(),
        "accuracy_without": found.heads.accuracy_without.flatten().numpy(),
    }
    tables = {"training.parquet": found.result.train.to_frame(), "heads.parquet": pd.DataFrame(heads)}
    if found.result.validation is not None:
        tables["validation.parquet"] = found.result.validation.to_frame()
    if found.dynamics is not None:
        tables["dynamics.parquet"] = found.dynamics.to_frame()
    return tables


def _render(found: _Found, tables: tuple[str, ...]) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = {name: draw(found) for name, draw in _FIGURES.items()}
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    result, needed = found.result, found.heads.loss_without
    layer, head = divmod(int(needed.argmax()), needed.shape[1])
    by_heart = result.train.reached(_LEARNED)
    grokked = None if result.validation is None else result.validation.reached(_LEARNED)
    return environment.get_template("toy.html.j2").render(
        policy=CONTENT_POLICY,
        bundle=Markup(bundle()),
        figures={name: Markup(_html(figure, first=i == 0)) for i, (name, figure) in enumerate(drawn.items())},
        attention=Markup(_attention(found).fragment()),
        model=found.model.cfg,
        n_params=sum(weight.numel() for weight in found.model.parameters() if weight.requires_grad),
        task=found.data.task,
        result=result,
        kinds=_kinds(result),
        reached={"share": _LEARNED, "training": by_heart, "held_out": grokked},
        missed={
            "label": f"{layer}.{head}",
            "loss": float(needed[layer, head]),
            "accuracy": float(found.heads.accuracy_without[layer, head]),
            "whole": found.heads,
        },
        prompts=_prompts(found),
        tables=tables,
        version=headscope_version(),
        date=datetime.now().strftime("%d %B %Y, %H:%M"),
    )  # fmt: skip


def _kinds(result: TrainingResult) -> list[dict[str, Any]]:
    """All answers, then signal and noise apart where there are both."""
    final, best = result.final, result.validation_bayes or result.bayes
    both = not math.isnan(final.noise_loss)
    rows = (("all answers", ""), ("signal", "signal_"), ("noise", "noise_")) if both else (("all answers", ""),)
    return [
        {
            "name": name,
            "loss": getattr(final, f"{kind}loss"),
            "accuracy": getattr(final, f"{kind}accuracy"),
            "best_loss": getattr(best, f"{kind}loss"),
            "best_accuracy": getattr(best, f"{kind}accuracy"),
        }
        for name, kind in rows
    ]


def _html(figure: "go.Figure", *, first: bool) -> str:
    figure.update_layout(width=None)
    config = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}
    return figure.to_html(full_html=False, include_plotlyjs=first, config=config, default_width="100%", auto_play=False)


@torch.no_grad()
def _prompts(found: _Found) -> list[dict[str, Any]]:
    """Some prompts that settle their last answer, one for each answer as far as they go, and what the model says."""
    data, end = found.data, found.data.answer_positions.stop
    rows: dict[int, int] = {}
    for row in data.signal[:, -1].nonzero()[:, 0].tolist():
        rows.setdefault(int(data.labels[row, -1]), row)
    chosen = [row for _, row in sorted(rows.items())][:_PROMPTS]
    tokens = data.tokens[chosen, :end].to(found.model.input_device)
    probabilities = found.model(tokens)[:, -1].float().softmax(-1).cpu()
    facts = []
    for row, said in zip(chosen, probabilities, strict=True):
        label, answer = int(data.labels[row, -1]), int(said.argmax())
        facts.append(
            {
                "tokens": " ".join(map(str, data.tokens[row, :end].tolist())),
                "label": label,
                "answer": answer,
                "probability": float(said[answer]),
                "right": answer == label,
            }
        )
    return facts


@torch.no_grad()
def _attention(found: _Found) -> HtmlView:
    """All heads on the first prompt that settles its last answer."""
    row = int(found.data.signal[:, -1].nonzero()[0, 0])
    tokens = found.data.tokens[row : row + 1, : found.data.answer_positions.stop]
    cfg = found.model.cfg
    _, cache = found.model.run_with_cache(tokens, return_type=None)
    return attention_heads(
        torch.cat([cache["pattern", layer][0] for layer in range(cfg.n_layers)]),
        [f"{token} " for token in tokens[0].tolist()],
        attention_head_names=[f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)],
        min_value=0.0,
        max_value=1.0,
        focus=tokens.shape[1] - 1,
    )


def _draw_training(found: _Found) -> "go.Figure":
    return training_metrics(found.result, steps=len(found.result.train_epochs) < 8)


def _draw_grokking(found: _Found) -> "go.Figure | None":
    return grokking_curve(found.result) if isinstance(found.data, ModularAdditionDataset) else None


def _draw_waves(found: _Found) -> "go.Figure | None":
    if not isinstance(found.data, ModularAdditionDataset):
        return None
    models = {"before training": found.first, "after": found.model}
    power = {name: fourier_power(m.W_E[: found.data.p].cpu()) for name, m in models.items() if m is not None}
    return fourier_bars(power, data="W_E")


def _draw_heads(found: _Found) -> "go.Figure":
    needed = found.heads
    return component_maps(
        {"loss, nats": needed.loss_without - needed.loss},
        columns=[str(head) for head in range(needed.loss_without.shape[1])],
        title="What the loss of settled answers gains when a head adds its mean",
        data=found.result.data,
        unit="nats",
    )


def _draw_scores(found: _Found) -> "go.Figure | None":
    return None if found.scores is None else head_score_maps(found.scores)


def _draw_composition(found: _Found) -> "go.Figure | None":
    cfg = found.model.cfg
    if cfg.n_layers < 2:
        return None
    first, second = ([f"{layer}.{head}" for head in range(cfg.n_heads)] for layer in (0, 1))
    scores = torch.stack([found.model.all_composition_scores(kind)[0, :, 1] for kind in ("Q", "K", "V")])
    return token_maps(
        scores.detach(), title="How much of what a head of layer 0 writes a head of layer 1 reads", x=second, y=first,
        x_title="reads", y_title="writes", names=["as query", "as key", "as value"], unit="score",
    )  # fmt: skip


def _is_plain_sum(found: _Found) -> bool:
    cfg = found.model.cfg
    return cfg.attn_only and cfg.normalization_type is None and cfg.output_logits_soft_cap <= 0


def _draw_parts(found: _Found) -> "go.Figure | None":
    if not _is_plain_sum(found):
        return None
    row = int(found.data.signal[:, -1].nonzero()[0, 0])
    tokens = found.data.tokens[row : row + 1, : found.data.answer_positions.stop]
    parts = head_logits(found.model, tokens)
    cfg = found.model.cfg
    names = [f"head {layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    stack = torch.cat([parts.heads[0].flatten(0, 1), parts.bias, parts.direct, parts.total])
    rows = [*names, *(f"b_O of layer {layer}" for layer in range(cfg.n_layers)), "embedding", "logits"]
    prompt = " ".join(map(str, tokens[0].tolist()))
    return token_maps(
        stack[None], title=f"What the logits after {prompt} are made of", y=rows, names=[""], x_title="logit of"
    )


def _circuits(found: _Found, kind: str) -> "go.Figure | None":
    if not _is_plain_sum(found) or found.model.cfg.n_layers > 1:
        return None
    circuits = token_circuits(found.model)
    if kind == "ov":
        return token_maps(circuits.ov, title="OV circuits", x_title="logit of", y_title="attended token")
    return token_maps(circuits.qk, title="QK circuits", x_title="key", y_title="query", unit="score")


def _draw_along(found: _Found) -> "go.Figure | None":
    return None if found.dynamics is None else dynamics_along_training(found.dynamics)


_FIGURES: "dict[str, Callable[[_Found], go.Figure | None]]" = {
    "training": _draw_training,
    "grokking": _draw_grokking,
    "along": _draw_along,
    "heads": _draw_heads,
    "parts": _draw_parts,
    "ov": lambda found: _circuits(found, "ov"),
    "qk": lambda found: _circuits(found, "qk"),
    "scores": _draw_scores,
    "composition": _draw_composition,
    "waves": _draw_waves,
}
