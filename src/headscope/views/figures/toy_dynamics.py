"""Figure of a toy model's training dynamics: entropy, head scores and per-head logits, with a slider over snapshots."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.theme import DIVERGING, PALETTE, RISING, house_template, plot_text, plot_title

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["DynamicsRecord", "dynamics_along_training"]

_SCORES = {"previous_token": "previous", "duplicate_token": "duplicate", "induction": "induction"}
_ROW = 300  # pixels, like the following
_GAP = 80
_MARGIN = 104
_CONTROLS = 150
_FRAME_MS = 350
_MAX_CELLS_LABELED = 16
_APART = 0.07  # of a panel's height: names at the ends of lines nearer than this would overlap


@runtime_checkable
class DynamicsRecord(Protocol):
    """The part of `training.TrainingDynamics` that the figure needs; measures not taken are `None`.

    `steps`, `loss` and `accuracy` are `[step]`, `resid` `[step, state]`, `diff` `[step, layer, component]`,
    `previous_token`, `duplicate_token` and `induction` `[step, layer, head]`, `head_logits` `[step, layer, head,
    prompt, d_vocab]`, `answer_logits` `[step, layer, head]`, `tokens` `[prompt, pos]`, `labels` `[prompt]`.
    """

    if TYPE_CHECKING:  # read only: results are frozen

        @property
        def info(self) -> Any: ...
        @property
        def steps(self) -> Any: ...
        @property
        def tokens(self) -> Any: ...
        @property
        def labels(self) -> Any: ...
        @property
        def resid(self) -> Any: ...
        @property
        def diff(self) -> Any: ...
        @property
        def induction(self) -> Any: ...
        @property
        def head_logits(self) -> Any: ...
        @property
        def answer_logits(self) -> Any: ...
        @property
        def state_labels(self) -> tuple[str, ...]: ...
        @property
        def component_labels(self) -> tuple[str, ...]: ...


class _Map:
    """A heat map that changes along training, and the lines over steps beside it."""

    def __init__(
        self,
        title: str,
        values: np.ndarray,
        axes: tuple[Sequence[str], Sequence[str]],
        unit: str,
        *,
        rising: bool,
        lines: tuple[str, list[tuple[str, np.ndarray]]],
    ) -> None:
        self.title, self.values, self.axes, self.unit = title, values, axes, unit
        self.lines_title, self.lines = lines
        finite = np.abs(values[np.isfinite(values)])
        limit = 1.0 if rising else float(finite.max()) if finite.size and finite.max() > 0 else 1.0
        self.limits = (0.0 if rising else -limit, limit)
        self.scale: Any = RISING if rising else DIVERGING


def dynamics_along_training(
    dynamics: DynamicsRecord, *, prompt: int = 0, vocabulary: Sequence[str] | None = None
) -> "go.Figure":
    """Draw training dynamics: lines over all of training, and maps at the slider's step beside them.

    There is one row for each measure taken: entropy along the residual stream, with each component's effect on it; the
    strongest head of each type, with the scores of all; each head's contribution to the correct answer's logit (minus
    its mean over the vocabulary, averaged over prompts), with its contribution to each logit of one prompt.

    Args:
        dynamics: Result of `training.training_dynamics`.
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
    figure.update_layout(
        template=house_template(),
        title=plot_title(f"{plot_text(dynamics.info.model)} along its training", dynamics.info.data),
        width=960,
        height=_ROW * len(maps) + _MARGIN + _CONTROLS,
        margin={"t": _MARGIN, "b": _CONTROLS, "r": 90},
        showlegend=False,
    )
    return figure


def _maps(dynamics: DynamicsRecord, prompt: int, vocabulary: Sequence[str] | None) -> list[_Map]:
    maps = []
    if dynamics.resid is not None:
        resid, diff = to_array(dynamics.resid), to_array(dynamics.diff)
        states = [(name, resid[:, i]) for i, name in enumerate(dynamics.state_labels)]
        rows = [f"layer {layer}" for layer in range(diff.shape[1])]
        columns = [name if name == "MLP" else f"head {name}" for name in dynamics.component_labels]
        maps.append(
            _Map("Entropy change by component", diff, (rows, columns), "nats", rising=False,
                 lines=("Entropy along the stream, nats", states))
        )  # fmt: skip
    if dynamics.induction is not None:
        scores = np.stack([to_array(getattr(dynamics, kind)) for kind in _SCORES], axis=1)  # [step, kind, layer, head]
        heads = _heads(scores.shape[2:])
        flat = scores.reshape(len(scores), len(_SCORES), -1)
        known = np.isfinite(flat)
        best = np.where(known.any(-1), np.where(known, flat, -1.0).max(-1), np.nan)
        strongest = [(name, best[:, i]) for i, name in enumerate(_SCORES.values())]
        maps.append(
            _Map("Head types", flat, (list(_SCORES.values()), heads), "score", rising=True,
                 lines=("Strongest head of each type", strongest))
        )  # fmt: skip
    if dynamics.head_logits is not None:
        maps.append(_logits(dynamics, prompt, vocabulary))
    return maps


def _logits(dynamics: DynamicsRecord, prompt: int, vocabulary: Sequence[str] | None) -> _Map:
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
        ([f"head {head}" for head in heads], names[:d_vocab]),
        "logits",
        rising=False,
        lines=("Logit of the correct answer, by head", [(f"head {h}", answers[:, i]) for i, h in enumerate(heads)]),
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
        labels, columns = panel.axes
        axis = "coloraxis" if row == 1 else f"coloraxis{row}"
        heat = go.Heatmap(
            z=panel.values[-1], coloraxis=axis, xgap=1, ygap=1,
            hovertemplate=f"%{{customdata[0]}}, %{{customdata[1]}}<br>%{{z:.3f}} {panel.unit}<extra></extra>",
            customdata=[[(label, name) for name in columns] for label in labels],
        )  # fmt: skip
        figure.add_trace(heat, row=row, col=2)
        low, high = figure.get_subplot(row, 2).yaxis.domain
        bar = {"thickness": 9, "len": high - low, "y": (low + high) / 2, "x": 1.01, "nticks": 5}
        scale = {"cmin": panel.limits[0], "cmax": panel.limits[1], "colorscale": panel.scale, "colorbar": bar}
        figure.update_layout({axis: scale})
        moving += [len(figure.data) - 2, len(figure.data) - 1]
        every = max(1, -(-len(columns) // _MAX_CELLS_LABELED))
        figure.update_xaxes(
            tickvals=list(range(0, len(columns), every)), ticktext=list(columns)[::every], showgrid=False,
            zeroline=False, row=row, col=2,
        )  # fmt: skip
        figure.update_yaxes(
            autorange="reversed", tickvals=list(range(len(labels))), ticktext=list(labels), showgrid=False,
            zeroline=False, row=row, col=2,
        )  # fmt: skip
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

    figure.frames = [
        go.Frame(
            name=str(step),
            traces=moving,
            data=[trace for panel in maps for trace in (go.Scatter(x=[index] * 2), go.Heatmap(z=panel.values[index]))],
        )
        for index, step in enumerate(steps)
    ]
    jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    stops = [{"label": str(step), "method": "animate", "args": [[str(step)], jump]} for step in steps]
    play = {**jump, "fromcurrent": True, "frame": {"duration": _FRAME_MS, "redraw": True}}
    figure.update_layout(
        sliders=[
            {
                "active": len(stops) - 1,
                "currentvalue": {"prefix": "step "},
                "pad": {"t": 54},
                "x": 0.1,
                "len": 0.9,
                "steps": stops,
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": -0.04,
                "y": 0,
                "xanchor": "left",
                "yanchor": "top",
                "pad": {"t": 62},
                "showactive": False,
                "buttons": [
                    {"label": "play", "method": "animate", "args": [None, play]},
                    {"label": "stop", "method": "animate", "args": [[None], jump]},
                ],
            }
        ],
    )
