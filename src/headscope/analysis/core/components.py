"""Heads, MLPs and mixers as people name them: `(10, 7)`, `"10.7"`, `"mlp3"`, `"mixer3"`, and sets of these."""

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig

__all__ = [
    "Component",
    "all_components",
    "all_heads",
    "all_mixers",
    "all_mlps",
    "canonical_label",
    "component_label",
    "component_of",
    "component_sets",
    "components",
    "part_labels",
    "set_label",
]


@dataclass(frozen=True)
class Component:
    """A head, or what writes to the stream as a whole: an MLP, or a mixer (`head` is `None` for both).

    Components are in order of their layers, and in a layer of what writes first: heads, mixer, MLP.
    """

    layer: int
    head: int | None
    is_mixer: bool = False

    @property
    def label(self) -> str:
        """`10.7` for a head, `mlp10` for an MLP, `mixer10` for a mixer."""
        return component_label(self.layer, self.head, is_mixer=self.is_mixer)

    @property
    def part(self) -> str:
        """The part of its layer: `attn`, `mixer` or `mlp`."""
        return "attn" if self.head is not None else "mixer" if self.is_mixer else "mlp"

    @property
    def place(self) -> tuple[int, bool, bool, int]:
        """Its place among the components of a model, to be compared."""
        return self.layer, self.head is None, not self.is_mixer, self.head or 0

    def __lt__(self, other: "Component") -> bool:
        return self.place < other.place


def component_label(layer: int, head: int | None, *, is_mixer: bool = False) -> str:
    """`10.7` for a head, `mlp10` for an MLP, `mixer10` for a mixer."""
    return f"{'mixer' if is_mixer else 'mlp'}{layer}" if head is None else f"{layer}.{head}"


def component_of(label: str) -> Component | None:
    """The component of a label; `None` for any other label."""
    whole = re.fullmatch(r"(mlp|mixer)(\d+)", label)
    if whole is not None:
        return Component(int(whole[2]), None, whole[1] == "mixer")
    layer, _, head = label.partition(".")
    return Component(int(layer), int(head)) if layer.isdecimal() and head.isdecimal() else None


def canonical_label(name: object) -> str:
    """Write a label in its one form, however a caller writes it.

    Example:
        >>> canonical_label((10, 7)), canonical_label("mlp3"), canonical_label("0.1+mlp 2"), canonical_label("MLP")
        ('10.7', 'mlp3', '0.1+mlp2', 'mlp')
    """
    pair = _pair(name)
    if pair is not None:
        return "{}.{}".format(*pair)
    return re.sub(r"\b(mlp|mixer)[ .]?(?=\d|$)", lambda found: found[1].lower(), str(name).strip(), flags=re.IGNORECASE)


def all_heads(cfg: HookedTransformerConfig) -> tuple[Component, ...]:
    """Every head of a model."""
    return tuple(Component(layer, head) for layer in cfg.layers_with("attn") for head in range(cfg.n_heads))


def all_mlps(cfg: HookedTransformerConfig) -> tuple[Component, ...]:
    """Every MLP of a model."""
    return tuple(Component(layer, None) for layer in cfg.layers_with("mlp"))


def all_mixers(cfg: HookedTransformerConfig) -> tuple[Component, ...]:
    """Every mixer of a model."""
    return tuple(Component(layer, None, is_mixer=True) for layer in cfg.layers_with("mixer"))


def all_components(cfg: HookedTransformerConfig) -> tuple[Component, ...]:
    """Every head, mixer and MLP of a model, in order."""
    return tuple(sorted((*all_heads(cfg), *all_mixers(cfg), *all_mlps(cfg))))


def part_labels(cfg: HookedTransformerConfig) -> tuple[str, ...]:
    """The columns of a map of all layers' components: `0`, `1`, ..., then `mixer` and `MLP` where a layer has one."""
    whole = {"mixer": cfg.layers_with("mixer"), "MLP": cfg.layers_with("mlp")}
    return (*map(str, range(cfg.n_heads)), *(name for name, layers in whole.items() if layers))


def components(cfg: HookedTransformerConfig, named: Iterable[object]) -> tuple[Component, ...]:
    """Components by name, each checked against the model.

    Raises:
        InvalidInputError: for a name of another form, or a component the model does not have.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
        >>> [component.label for component in components(cfg, [(1, 0), "0.1", "MLP 1"])]
        ['1.0', '0.1', 'mlp1']
    """
    if isinstance(named, str):
        named = [part for part in re.split(r"\s*[,+]\s*", named) if part]
    return tuple(_checked(cfg, _parsed(name)) for name in named)


def component_sets(cfg: HookedTransformerConfig, named: Iterable[object]) -> tuple[tuple[Component, ...], ...]:
    """Sets of components: each entry is one component, or a list of components that go together.

    Raises:
        InvalidInputError: for a name of another form, a component the model does not have, or none at all.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, attn_only=True)
        >>> [set_label(each) for each in component_sets(cfg, [(1, 0), ["0.1", (1, 1)], "0.0+0.1"])]
        ['1.0', '0.1+1.1', '0.0+0.1']
    """
    found = []
    for each in named:
        together = each.split("+") if isinstance(each, str) else each
        is_set = isinstance(together, Sequence | set | frozenset) and _pair(together) is None
        parts = components(cfg, together if is_set else [each])  # type: ignore[arg-type]
        if not parts:
            raise InvalidInputError("a set of components is empty; name at least one head or MLP in it.")
        found.append(tuple(sorted(set(parts))))
    if not found:
        raise InvalidInputError("no components are named; give at least one, such as (0, 0), or None for all heads.")
    labels = [set_label(each) for each in found]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise InvalidInputError(
            f"{sorted(twice)[0]} is named twice; name each component or set once.", code="HS-HEADS-04"
        )
    return tuple(found)


def set_label(together: Iterable[Component]) -> str:
    """`10.7` for one head, `10.7+11.10` for two that go together."""
    return "+".join(component.label for component in together)


def _pair(value: Any) -> tuple[int, int] | None:
    """Return the layer and head of a pair of integers of any kind (NumPy's, tensors), `None` of anything else."""
    if not isinstance(value, Sequence | np.ndarray | Tensor):
        return None  # a set has no order
    try:
        layer, head = map(operator.index, value)
    except (TypeError, ValueError):
        return None
    return layer, head


def _parsed(name: object) -> Component:
    if isinstance(name, Component):
        return name
    pair = _pair(name)
    if pair is not None:
        return Component(*pair)
    found = component_of(canonical_label(name)) if isinstance(name, str) else None
    if found is not None:
        return found
    raise InvalidInputError(
        f"{name!r} names no component. A head is (layer, head) or 'layer.head', such as (10, 7) or '10.7'; "
        "an MLP is 'mlp' and its layer, such as 'mlp3', and a mixer 'mixer' and its layer.",
        code="HS-HEADS-02",
    )


_KINDS = {"attn": "attention", "mixer": "mixer", "mlp": "MLP"}


def _checked(cfg: HookedTransformerConfig, component: Component) -> Component:
    layer, head, part = component.layer, component.head, component.part
    if not 0 <= layer < cfg.n_layers:
        raise InvalidInputError(
            f"{component.label} does not exist: layers of {cfg.model_name!r} are 0 to {cfg.n_layers - 1}.",
            code="HS-HEADS-01",
        )
    if part == "mlp" and cfg.attn_only and cfg.layer_parts is None:
        raise InvalidInputError(
            f"{component.label} does not exist: {cfg.model_name!r} has attention only.", code="HS-HEADS-03"
        )
    if part not in cfg.parts_of(layer):
        having = ", ".join(map(str, cfg.layers_with(part)))
        raise InvalidInputError(
            f"{component.label} does not exist: layer {layer} of {cfg.model_name!r} has no {_KINDS[part]}; "
            + (f"layers {having} have one." if having else "no layer has one."),
            code="HS-HEADS-03",
        )
    if head is not None and not 0 <= head < cfg.n_heads:
        raise InvalidInputError(
            f"{component.label} does not exist: heads of {cfg.model_name!r} are 0 to {cfg.n_heads - 1}.",
            code="HS-HEADS-01",
        )
    return component
