"""Figure of a toy model's training dynamics: entropy, head scores and per-head logits, with a slider over snapshots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from headscope.errors import InvalidInputError
from headscope.views.drawing.animation import JUMP, animate
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.maps import color_scale
from headscope.views.drawing.theme import PALETTE, plot_text, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["dynamics_along_training"]

_SCORES = {"previous_token": "previous", "duplicate_token": "duplicate", "induction": "induction"}
_ROW = 300  # pixels, like the following
_GAP = 80
_MARGIN = 104
_CONTROLS = 150
_FRAME_MS = 350
_MAX_CELLS_LABELED = 16
_APART = 0.07  # of a panel's height: names at the ends of lines nearer than this would overlap


@dataclass(frozen=True)
class _Map:
    """A heat map that changes along training, and the lines over steps beside it."""

    title: str
    values: Float[np.ndarray, "step row column"]
    rows: Sequence[str]
    columns: Sequence[str]
    unit: str
    lines_title: str
    lines: Sequence[tuple[str, np.ndarray]]
    rising: bool = False


def dynamics_along_training(dynamics: Any, *, prompt: int = 0, vocabulary: Sequence[str] | None = None) -> "go.Figure":
    """Draw training dynamics: lines over all of training, and maps at the slider's step beside them.

    There is one row for each measure taken: entropy along the residual stream, with each component's effect on it; the
    strongest head of each type, with the scores of all; each head's contribution to the correct answer's logit (minus
    its mean over the vocabulary, averaged over prompts), with its contribution to each logit of one prompt.

    Args:
        dynamics: Result of `training.training_dynamics`, a `training.TrainingDynamics`.
        prompt: Index of the prompt in `dynamics.tokens` whose logits are drawn.
        vocabulary: Names of the tokens; their ids by default.

    Raises:
        InvalidInputError: If nothing was measured, there is no such prompt, or there are too few names.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> record = SimpleNamespace(
        ...     info=SimpleNamespace(model="toy", data="a task"), steps=torch.tensor([0, 10]), tokens=torch.zeros(1, 3),
        ...     labels=torch.tensor([2]), resid=torch.rand(2, 2), diff=torch.randn(2, 1, 3), induction=None,
        ...     head_logits=None, answer_logits=None, state_labels=("0_pre", "final"), component_labels=("0", "1", "2"),
        ... )
        >>> figure = dynamics_along_training(record)
        >>> len(figure.frames), [step.label for step in figure.layout.sliders[0].steps]
        (2, ['0', '10'])
    """
    steps = to_array(dynamics.steps).astype(int)
    maps = _maps(dynamics, prompt, vocabulary)
    if not maps:
        raise InvalidInputError("nothing was measured along training; pass training_dynamics(measures=...).")
    figure, moving = _panels(maps, steps)
    _animate(figure, maps, steps, moving)
    return styled(
        figure,
        f"{plot_text(dynamics.info.model)} along its training",
        dynamics.info.data,
        width=960,
        height=_ROW * len(maps) + _MARGIN + _CONTROLS,
        margin={"t": _MARGIN, "b": _CONTROLS, "r": 90},
        showlegend=False,
    )


def _maps(dynamics: Any, prompt: int, vocabulary: Sequence[str] | None) -> list[_Map]:
    maps = []
    if dynamics.resid is not None:
        resid, diff = to_array(dynamics.resid), to_array(dynamics.diff)
        states = [(name, resid[:, i]) for i, name in enumerate(dynamics.state_labels)]
        rows = [f"layer {layer}" for layer in range(diff.shape[1])]
        columns = [name if name == "MLP" else f"head {name}" for name in dynamics.component_labels]
        lines_title = "Entropy along the stream, nats"
        maps.append(_Map("Entropy change by component", diff, rows, columns, "nats", lines_title, states))
    if dynamics.induction is not None:
        scores = np.stack([to_array(getattr(dynamics, kind)) for kind in _SCORES], axis=1)  # [step, kind, layer, head]
        heads = _heads(scores.shape[2:])
        flat = scores.reshape(len(scores), len(_SCORES), -1)
        known = np.isfinite(flat)
        best = np.where(known.any(-1), np.where(known, flat, -1.0).max(-1), np.nan)
        strongest = [(name, best[:, i]) for i, name in enumerate(_SCORES.values())]
        kinds, lines_title = list(_SCORES.values()), "Strongest head of each type"
        maps.append(_Map("Head types", flat, kinds, heads, "score", lines_title, strongest, rising=True))
    if dynamics.head_logits is not None:
        maps.append(_logits(dynamics, prompt, vocabulary))
    return maps


def _logits(dynamics: Any, prompt: int, vocabulary: Sequence[str] | None) -> _Map:
    logits = to_array(dynamics.head_logits)  # [step, layer, head, prompt, d_vocab]
    n_prompts, d_vocab = logits.shape[-2:]
    if not 0 <= prompt < n_prompts:
        raise InvalidInputError(f"prompt is {prompt}; there are prompts 0 to {n_prompts - 1}.")
    names = [str(token) for token in range(d_vocab)] if vocabulary is None else [plot_text(str(v)) for v in vocabulary]
    tokens = to_array(dynamics.tokens)[prompt].astype(int)
    label = int(to_array(dynamics.labels)[prompt])
    if len(names) < max(d_vocab, int(tokens.max()) + 1):
        raise InvalidInputError(f"vocabulary has {len(names)} names; the model has {d_vocab} tokens.")
    heads = _heads(logits.shape[1:3])
    shown = " ".join(names[token] for token in tokens)
    shown = shown if len(shown) <= 24 else "… " + shown[-22:]
    answers = to_array(dynamics.answer_logits).reshape(len(logits), -1)
    return _Map(
        f"{shown} → {names[label]}",
        logits[..., prompt, :].reshape(len(logits), len(heads), d_vocab),
        [f"head {head}" for head in heads],
        names[:d_vocab],
        "logits",
        "Logit of the correct answer, by head",
        [(f"head {head}", answers[:, i]) for i, head in enumerate(heads)],
    )


def _heads(shape: tuple[int, ...]) -> list[str]:
    return [f"{layer}.{head}" for layer in range(shape[0]) for head in range(shape[1])]


def _panels(maps: list[_Map], steps: np.ndarray) -> tuple["go.Figure", list[int]]:
    """Draw all panels at the last step; return also the traces that a frame changes, two for each row."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(maps),
        cols=2,
        subplot_titles=[title for panel in maps for title in (panel.lines_title, f"{panel.title} ({panel.unit})")],
        horizontal_spacing=0.2,
        vertical_spacing=_GAP / (_ROW * len(maps)) if len(maps) > 1 else 0.0,
    )
    moving = []
    at = np.arange(len(steps))
    for row, panel in enumerate(maps, start=1):
        named = _named(panel)
        for number, (name, values) in enumerate(panel.lines):
            figure.add_scatter(
                x=at, y=values, name=plot_text(name), mode="lines+text",
                text=[""] * (len(at) - 1) + [f" {named.get(name, '')}"],
                textposition="middle right", textfont={"color": PALETTE[number % len(PALETTE)]}, cliponaxis=False,
                line={"color": PALETTE[number % len(PALETTE)], "width": 2}, customdata=steps,
                hovertemplate=f"{plot_text(name)}, step %{{customdata:,}}<br>%{{y:.3f}}<extra></extra>",
                row=row, col=1,
            )  # fmt: skip
        cursor = {"color": "rgba(90,100,115,0.8)", "width": 1, "dash": "dot"}
        figure.add_scatter(x=[at[-1]] * 2, y=_span(panel), mode="lines", hoverinfo="skip", line=cursor, row=row, col=1)
        axis = "coloraxis" if row == 1 else f"coloraxis{row}"
        heat = go.Heatmap(
            z=panel.values[-1], coloraxis=axis, xgap=1, ygap=1,
            hovertemplate=f"%{{customdata[0]}}, %{{customdata[1]}}<br>%{{z:.3f}} {panel.unit}<extra></extra>",
            customdata=[[(label, name) for name in panel.columns] for label in panel.rows],
        )  # fmt: skip
        figure.add_trace(heat, row=row, col=2)
        low, high = figure.get_subplot(row, 2).yaxis.domain
        bar = {"thickness": 9, "len": high - low, "y": (low + high) / 2, "x": 1.01, "nticks": 5}
        limit = 1.0 if panel.rising else None
        figure.update_layout({axis: color_scale(panel.values, "", rising=panel.rising, limit=limit, **bar)})
        moving += [len(figure.data) - 2, len(figure.data) - 1]
        every = max(1, -(-len(panel.columns) // _MAX_CELLS_LABELED))
        here = {"showgrid": False, "zeroline": False, "row": row, "col": 2}
        ticks = list(range(0, len(panel.columns), every))
        figure.update_xaxes(tickvals=ticks, ticktext=[panel.columns[at] for at in ticks], **here)
        figure.update_yaxes(autorange="reversed", tickvals=list(range(len(panel.rows))), ticktext=panel.rows, **here)
    few = sorted({round(value) for value in np.linspace(0, len(steps) - 1, min(6, len(steps)))})
    figure.update_xaxes(tickvals=few, ticktext=[f"{steps[i]:,}" for i in few], col=1)
    figure.update_xaxes(title_text="step", row=len(maps), col=1)
    return figure, moving


def _named(panel: _Map) -> dict[str, str]:
    """Choose names for the ends of lines: from the highest down, where there is room."""
    low, high = _span(panel)
    shown: dict[str, str] = {}
    lowest = np.inf
    for name, values in sorted(panel.lines, key=lambda line: -line[1][-1] if np.isfinite(line[1][-1]) else np.inf):
        if np.isfinite(values[-1]) and lowest - values[-1] > _APART * (high - low):
            shown[name], lowest = plot_text(name), values[-1]
    return shown


def _span(panel: _Map) -> list[float]:
    values = np.concatenate([line for _, line in panel.lines])
    values = values[np.isfinite(values)]
    return [float(values.min()), float(values.max())] if values.size else [0.0, 1.0]


def _animate(figure: "go.Figure", maps: list[_Map], steps: np.ndarray, moving: list[int]) -> None:
    """Add a frame for each step, a slider to select one, and buttons to play and stop."""
    import plotly.graph_objects as go

    frames = [
        [trace for panel in maps for trace in (go.Scatter(x=[index] * 2), go.Heatmap(z=panel.values[index]))]
        for index in range(len(steps))
    ]
    animate(figure, steps.tolist(), frames, moving, pad={"t": 54}, x=0.1, len=0.9)
    play = {**JUMP, "fromcurrent": True, "frame": {"duration": _FRAME_MS, "redraw": True}}
    buttons = [
        {"label": "play", "method": "animate", "args": [None, play]},
        {"label": "stop", "method": "animate", "args": [[None], JUMP]},
    ]
    place = {"x": -0.04, "y": 0, "xanchor": "left", "yanchor": "top", "pad": {"t": 62}}
    menu = {"type": "buttons", "direction": "right", "showactive": False, "buttons": buttons, **place}
    figure.update_layout(updatemenus=[menu])
