"""Ends of paths through the model: senders, which write to the residual stream, and receivers, which read it.

The stream has stages: 0 before all layers, `2l + 1` between attention and MLP of layer `l`, `2l + 2` after it. A
sender adds to the stream at its stage; a receiver reads the stream as it is at its own. A mixer writes when the heads
do. Where blocks have no state between, as parallel ones, the MLP reads at `2l`, and nothing of what is beside it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from headscope.analysis.core.components import Component, all_components, all_heads, all_mlps, components
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.config import HookedTransformerConfig

__all__ = [
    "EMBED",
    "FINAL",
    "INPUTS",
    "Receiver",
    "Sender",
    "as_receivers",
    "as_senders",
    "check_fed",
    "mlp_stage",
    "sender_of",
]

EMBED, FINAL, INPUTS = "embed", "final", ("q", "k", "v")
_COMPONENT = r"\d+\.\d+|(?:mlp|mixer)[ .]?\d+"

End = TypeVar("End", "Sender", "Receiver")


@dataclass(frozen=True)
class Sender:
    """A writer to the stream: a head, an MLP, a mixer, or the embedding (whose component is `None`)."""

    stage: int
    component: Component | None

    @property
    def label(self) -> str:
        """`10.7`, `mlp3`, `mixer3` or `embed`."""
        return EMBED if self.component is None else self.component.label


@dataclass(frozen=True)
class Receiver:
    """A reader of the stream: a head's `q`, `k` or `v`, an MLP, or (without a component) the final norm."""

    stage: int
    component: Component | None
    input: str = ""

    @property
    def label(self) -> str:
        """`10.7.q`, `mlp3` or `final`."""
        if self.component is None:
            return FINAL
        return self.component.label + (f".{self.input}" if self.input else "")


def mlp_stage(cfg: HookedTransformerConfig, layer: int) -> int:
    """Return the stage at which an MLP reads."""
    return 2 * layer + cfg.has_resid_mid


def sender_of(component: Component | None) -> Sender:
    """Make a sender of a component; `None` is the embedding."""
    if component is None:
        return Sender(0, None)
    return Sender(2 * component.layer + (2 if component.part == "mlp" else 1), component)


def as_senders(cfg: HookedTransformerConfig, named: object) -> tuple[Sender, ...]:
    """Parse one sender, or several that change together: `(9, 9)`, `"9.9"`, `"mlp5"`, `"embed"`, `"9.9+9.6"`, a list.

    Raises:
        UnknownNameError: For a name of another form.
        InvalidInputError: For a component that the model does not have, one that is named twice, or none at all.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
        >>> [sender.label for sender in as_senders(cfg, ["embed", (1, 0), "mlp1"])]
        ['embed', '1.0', 'mlp1']
    """
    return _each_once([_sender(cfg, each) for each in _listed(named, r"[,+]")], "sender")


def as_receivers(cfg: HookedTransformerConfig, named: object) -> tuple[Receiver, ...]:
    """Parse one receiver or several: `"9.9.q"`, `("9.9", "q")`, `(9, 9, "q")`, `"mlp5"`, `"final"`, a list.

    A head without an input is all three: `"9.9"` stands for `9.9.q`, `9.9.k` and `9.9.v`.

    Raises:
        UnknownNameError: For a name of another form.
        InvalidInputError: For a component that the model does not have, one that is named twice, none at all, or
            others beside `"final"`.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
        >>> [receiver.label for receiver in as_receivers(cfg, ["1.0.q", ("0.1", "v"), "mlp1"])]
        ['0.1.v', '1.0.q', 'mlp1']
    """
    receivers = _each_once([end for each in _listed(named, r",") for end in _receiver(cfg, each)], "receiver")
    if len(receivers) > 1 and receivers[-1].component is None:
        raise InvalidInputError(
            f"'final' is a receiver by itself: what it reads settles the logits, whatever {receivers[0].label} does. "
            "Measure them in two calls."
        )
    return receivers


def check_fed(senders: Sequence[Sender], receivers: Sequence[Receiver]) -> None:
    """Refuse senders that write after all receivers have read.

    Raises:
        InvalidInputError: Naming the first.
    """
    last = max(receivers, key=lambda receiver: receiver.stage)
    for sender in senders:
        if sender.stage > last.stage:
            beside = not last.input and last.stage % 2 == 0 and sender.stage == last.stage + 1  # in a parallel block
            reason = "reads what attention reads" if beside else f"reads the stream before {sender.label} writes"
            raise InvalidInputError(
                f"no path leads from {sender.label} to {', '.join(each.label for each in receivers)}: "
                f"{last.label} {reason}. Name senders of earlier layers."
            )


def _listed(named: object, separators: str) -> list[object]:
    if isinstance(named, str):
        return [part for part in re.split(rf"\s*{separators}\s*", named.strip()) if part]
    # `(9, 9)`, `(9, 9, "q")`, `("9.9", "q")` and `((9, 9), "q")` are one end; other tuples are several.
    is_one = isinstance(named, tuple) and named and (set(map(type, named)) == {int} or named[-1] in INPUTS)
    return list(named) if isinstance(named, Iterable) and not is_one else [named]


def _text(name: object) -> str:
    """One end as text: `(9, 9, "q")` is `"9.9.q"`."""
    if isinstance(name, Component):
        return name.label.lower()
    return ".".join(map(_text, name)) if isinstance(name, tuple) else str(name).strip().lower()


def _sender(cfg: HookedTransformerConfig, name: object) -> Sender:
    text = _text(name)
    if text == EMBED:
        return sender_of(None)
    if not re.fullmatch(_COMPONENT, text):
        known = [EMBED, *(part.label for part in all_components(cfg))]
        hint = "A sender is a head ('9.9'), an MLP ('mlp5'), a mixer ('mixer5') or 'embed'."
        raise unknown_name("sender", str(name), known, hint=hint, code="HS-NAME-10")
    return sender_of(components(cfg, [text])[0])


def _receiver(cfg: HookedTransformerConfig, name: object) -> list[Receiver]:
    text = _text(name)
    if text == FINAL:
        return [Receiver(2 * cfg.n_layers, None)]
    parts = re.fullmatch(rf"({_COMPONENT})(?:\.([qkv]))?", text)
    if parts is None:
        known = [f"{head.label}.{each}" for head in all_heads(cfg) for each in INPUTS]
        known += [FINAL, *(mlp.label for mlp in all_mlps(cfg))]
        hint = "A receiver is a head's input ('9.9.q'), an MLP ('mlp5') or 'final'."
        raise unknown_name("receiver", str(name), known, hint=hint, code="HS-NAME-10")
    component = components(cfg, [parts[1]])[0]
    if component.part == "mixer":
        raise InvalidInputError(
            f"{component.label} is no receiver: a mixer reads all positions at once, and what reads a path must read "
            "one. Name it as a sender, or a head's input, an MLP or 'final' as the receiver."
        )
    if component.head is not None:
        return [Receiver(2 * component.layer, component, each) for each in parts[2] or INPUTS]
    if parts[2]:
        raise InvalidInputError(f"{component.label} has one input, not q, k and v; name it 'mlp{component.layer}'.")
    return [Receiver(mlp_stage(cfg, component.layer), component)]


def _each_once(ends: list[End], kind: str) -> tuple[End, ...]:
    """Return ends in order of their stages."""
    if not ends:
        raise InvalidInputError(f"no {kind} is named; give at least one, such as '0.0{'.q' * (kind == 'receiver')}'.")
    ordered = sorted(ends, key=lambda end: end.stage)
    for end in ordered:
        if ends.count(end) > 1:
            raise InvalidInputError(f"{kind} {end.label} is named twice; name each once.", code="HS-HEADS-04")
    return tuple(ordered)
