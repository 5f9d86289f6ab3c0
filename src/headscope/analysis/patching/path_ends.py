"""Ends of paths through the model: what writes to the residual stream, what reads it, and which comes before which.

The stream has stages: 0 before all layers, `2l + 1` between attention and MLP of layer `l`, `2l + 2` after it. What a
sender writes is there from its stage on; a receiver reads the stream as it is at its own. In a parallel block the MLP
reads what attention reads, at `2l`, and so nothing of the heads beside it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from headscope.analysis.core.components import Component, all_heads, all_mlps, components
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.config import HookedTransformerConfig

__all__ = ["EMBED", "Receiver", "Sender", "as_receivers", "as_senders", "check_fed", "mlp_stage", "sender_of"]

EMBED, FINAL, _INPUTS = "embed", "final", ("q", "k", "v")

End = TypeVar("End", "Sender", "Receiver")


@dataclass(frozen=True)
class Sender:
    """What writes to the stream: a head, an MLP, or the embedding (whose component is `None`)."""

    stage: int
    component: Component | None

    @property
    def label(self) -> str:
        """`10.7`, `MLP 3` or `embed`."""
        return EMBED if self.component is None else self.component.label


@dataclass(frozen=True)
class Receiver:
    """What reads the stream: a head's `q`, `k` or `v`, an MLP, or (without a component) the final norm."""

    stage: int
    component: Component | None
    input: str = ""

    @property
    def label(self) -> str:
        """`10.7.q`, `MLP 3` or `final`."""
        if self.component is None:
            return FINAL
        return self.component.label + (f".{self.input}" if self.input else "")


def mlp_stage(cfg: HookedTransformerConfig, layer: int) -> int:
    """Where an MLP reads."""
    return 2 * layer if cfg.parallel_attn_mlp else 2 * layer + 1


def sender_of(component: Component | None) -> Sender:
    """A component as a sender; `None` is the embedding."""
    if component is None:
        return Sender(0, None)
    return Sender(2 * component.layer + (2 if component.head is None else 1), component)


def as_senders(cfg: HookedTransformerConfig, named: object) -> tuple[Sender, ...]:
    """One sender, or several that go together: `(9, 9)`, `"9.9"`, `"mlp5"`, `"embed"`, `["9.9", "mlp5"]`, `"9.9+9.6"`.

    Raises:
        UnknownNameError: For a name of another form.
        InvalidInputError: For a component that the model does not have, one that is named twice, or none at all.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
        >>> [sender.label for sender in as_senders(cfg, ["embed", (1, 0), "mlp1"])]
        ['embed', '1.0', 'MLP 1']
    """
    found = [_sender(cfg, each) for each in _listed(named, r"[,+]")]
    return _each_once(tuple(sorted(found, key=lambda sender: sender.stage)), "sender")


def as_receivers(cfg: HookedTransformerConfig, named: object) -> tuple[Receiver, ...]:
    """One receiver or several: `"9.9.q"`, `("9.9", "q")`, `(9, 9, "q")`, `"mlp5"`, `"final"`, or a list of these.

    A head without an input is all three: `"9.9"` stands for `9.9.q`, `9.9.k` and `9.9.v`.

    Raises:
        UnknownNameError: For a name of another form.
        InvalidInputError: For a component that the model does not have, one that is named twice, none at all, or
            others beside `"final"`.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
        >>> [receiver.label for receiver in as_receivers(cfg, ["1.0.q", ("0.1", "v"), "mlp1"])]
        ['0.1.v', '1.0.q', 'MLP 1']
    """
    found = [receiver for each in _listed(named, r",") for receiver in _receiver(cfg, each)]
    receivers = _each_once(tuple(sorted(found, key=lambda receiver: receiver.stage)), "receiver")
    if len(receivers) > 1 and receivers[-1].component is None:
        raise InvalidInputError(
            f"'final' is a receiver by itself: what it reads settles the logits, whatever {receivers[0].label} does. "
            "Measure them in two calls."
        )
    return receivers


def check_fed(senders: Sequence[Sender], receivers: Sequence[Receiver]) -> None:
    """Refuse senders that write only after everything that is to receive from them has read.

    Raises:
        InvalidInputError: Naming the first.
    """
    last = max(receivers, key=lambda receiver: receiver.stage)
    for sender in senders:
        if sender.stage > last.stage:
            beside = _is_beside(sender, last)
            reason = "reads what attention reads" if beside else f"reads the stream before {sender.label} writes"
            raise InvalidInputError(
                f"no path leads from {sender.label} to {', '.join(each.label for each in receivers)}: "
                f"{last.label} {reason}. Name senders of earlier layers."
            )


def _is_beside(sender: Sender, receiver: Receiver) -> bool:
    a, b = sender.component, receiver.component
    return a is not None and b is not None and a.layer == b.layer and b.head is None and a.head is not None


def _listed(named: object, separators: str) -> list[object]:
    if isinstance(named, str):
        return [part for part in re.split(rf"\s*{separators}\s*", named.strip()) if part]
    if isinstance(named, Component) or (isinstance(named, tuple) and _is_one(named)):
        return [named]
    return list(named) if isinstance(named, Iterable) else [named]


def _is_one(named: tuple[object, ...]) -> bool:
    """Whether a tuple is `(9, 9)`, `(9, 9, "q")`, `("9.9", "q")` or `((9, 9), "q")`, and not several of these."""
    return bool(named) and (all(isinstance(each, int) for each in named) or named[-1] in _INPUTS)


def _sender(cfg: HookedTransformerConfig, name: object) -> Sender:
    if isinstance(name, str) and name.strip().lower() == EMBED:
        return sender_of(None)
    if isinstance(name, str) and not _is_component(name):
        known = [EMBED, *(part.label for part in (*all_heads(cfg), *all_mlps(cfg)))]
        raise unknown_name("sender", name, known, hint="A sender is a head ('9.9'), an MLP ('mlp5') or 'embed'.")
    return sender_of(components(cfg, [name])[0])


def _receiver(cfg: HookedTransformerConfig, name: object) -> list[Receiver]:
    part: object = name
    wanted: tuple[str, ...] = _INPUTS
    if isinstance(name, tuple) and len(name) > 1 and name[-1] in _INPUTS:
        part, wanted = name[:-1] if len(name) > 2 else name[0], (str(name[-1]),)
    elif isinstance(name, str):
        text = name.strip().lower()
        if text == FINAL:
            return [Receiver(2 * cfg.n_layers, None)]
        part, dot, last = text.rpartition(".")
        if dot and last in _INPUTS:
            wanted = (last,)
        else:
            part = text
        if not _is_component(part):
            known = [f"{head.label}.{each}" for head in all_heads(cfg) for each in _INPUTS]
            known += [FINAL, *(mlp.label for mlp in all_mlps(cfg))]
            hint = "A receiver is a head's input ('9.9.q'), an MLP ('mlp5') or 'final'."
            raise unknown_name("receiver", name, known, hint=hint)
    component = components(cfg, [part])[0]
    if component.head is not None:
        return [Receiver(2 * component.layer, component, each) for each in wanted]
    if wanted != _INPUTS:
        raise InvalidInputError(f"{component.label} has one input, not q, k and v; name it 'mlp{component.layer}'.")
    return [Receiver(mlp_stage(cfg, component.layer), component)]


def _is_component(name: str) -> bool:
    return re.fullmatch(r"\s*(\d+\.\d+|mlp[ .]?\d+)\s*", name, re.IGNORECASE) is not None


def _each_once(ends: tuple[End, ...], kind: str) -> tuple[End, ...]:
    if not ends:
        raise InvalidInputError(f"no {kind} is named; give at least one, such as '0.0{'.q' * (kind == 'receiver')}'.")
    for end in ends:
        if ends.count(end) > 1:
            raise InvalidInputError(f"{kind} {end.label} is named twice; name each once.")
    return ends
