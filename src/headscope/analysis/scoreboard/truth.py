"""`Truth`: what is known of a model, read from the `truth.json` beside its weights.

    {"roles": {"0.2": {...}, "MLP 1": {...}}, "idle": ["0.0", "MLP 0"], "edges": [["0.2", "2.0.k"], ["2.0", "final"]],
     "kinds": {"induction": ["2.0"]}, "output": "categorical", "vocab_in": {...}, "vocab_out": {...},
     "examples": [{"clean": [...], "corrupted": [...], "position": 5, "output": [...], "corrupted_output": [...]}]}

Every key may be missing, and what needs it is then left out. Components are named in any of the field's ways (`0.2`,
`L0H2`, `MLP 1`, `mlp1`, `blocks.1.mlp`); tokens and outputs are ids, or words of `vocab_in` and `vocab_out`. Without
`idle`, all that has no role is idle, if roles are given. Kinds of heads follow from `kinds`, or are said in the words
of a head's role (`derived`, `heads`, `writes`): "previous token" and "before", "induction", "duplicate token".
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headscope.analysis.core.components import all_components, canonical_label, component_of
from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig

__all__ = ["Example", "Truth"]

FINAL, EMBED = "final", "embed"
_NAMED = {"final": FINAL, "output": FINAL, "logits": FINAL, "unembed": FINAL, "embed": EMBED, "tokens": EMBED}
# In the words of a role, what a head is: searched in this order.
_KINDS = {
    "previous_token": r"previous[ _-]token|\bbefore(_|\b)",
    "induction": r"induction",
    "duplicate_token": r"duplicate[ _-]token",
}


@dataclass(frozen=True)
class Example:
    """A prompt and what is right at each of its positions, and the same of a corrupted prompt, where there is one."""

    clean: tuple[int, ...]
    output: tuple[float | None, ...]
    corrupted: tuple[int, ...] | None = None
    corrupted_output: tuple[float | None, ...] | None = None
    position: int | None = None


@dataclass(frozen=True)
class Truth:
    """The known answers of a model.

    Attributes:
        name: The model's name.
        true: The components that do its task, by label.
        idle: Those that do nothing.
        edges: The edges of its circuit: sender, and receiver with its input (`2.0.k`), without if it is not known.
        kinds: The heads of each kind of `detect_heads`; a kind that is known of some head of a layer only is in `some`.
        some: Layers, of which some head is of a kind.
        numerical: True if the model's output is a number.
        examples: Prompts with right outputs.
        special: Ids that begin or fill up prompts, and are no tokens of the task.
        bos: The one that begins them.
        text: The text that the model writes from BOS on, greedily.
        notes: What could not be read.
    """

    name: str
    true: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    edges: frozenset[tuple[str, str]] = frozenset()
    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    some: Mapping[str, int] = field(default_factory=dict)
    numerical: bool = False
    examples: tuple[Example, ...] = ()
    special: tuple[int, ...] = ()
    bos: int | None = None
    text: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, cfg: HookedTransformerConfig) -> "Truth":
        """Read a file.

        Raises:
            InvalidInputError: If it is no JSON object, or names a component that the model does not have.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidInputError(f"{path} cannot be read as JSON: {error}.") from None
        if not isinstance(data, dict):
            raise InvalidInputError(f"{path} must hold an object, with roles, idle, edges, ...")
        return cls.of(data, cfg, name=str(data.get("name") or path.parent.name))

    @classmethod
    def of(cls, data: Mapping[str, Any], cfg: HookedTransformerConfig, *, name: str = "model") -> "Truth":
        """Make it of the object in the file.

        Raises:
            InvalidInputError: For a component that the model does not have.

        Example:
            >>> from headscope import HookedTransformerConfig
            >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="relu")
            >>> truth = Truth.of({"roles": {"L0H1": {}, "MLP 1": {}}, "edges": [["0.1", "MLP 1"]]}, cfg)
            >>> sorted(truth.true), sorted(truth.idle), sorted(truth.edges)
            (['0.1', 'mlp1'], ['0.0', '1.0', '1.1', 'mlp0'], [('0.1', 'mlp1')])
        """
        every = {part.label for part in all_components(cfg)}
        roles = {
            _label(part): _words(said) for key in ("roles", "derived", "heads") for part, said in _items(data, key)
        }
        roles = {part: words for part, words in roles.items() if part not in (FINAL, EMBED)}
        true = frozenset(_checked(roles, every, cfg))
        named = [key for key in data if key.startswith("idle")]
        idle = frozenset(_checked((_label(part) for key in named for part in _listed(data[key])), every, cfg))
        if not named and true:
            idle = frozenset(every - true)
        kinds, some = _kinds(data, roles)
        vocab_in, vocab_out = (dict(data.get(key) or {}) for key in ("vocab_in", "vocab_out"))
        special = {word: token for word, token in vocab_in.items() if re.search(r"(^|_)(bos|pad|eos|unk)$", word)}
        notes: list[str] = []
        examples = []
        for given in _listed(data.get("examples")):
            try:
                examples.append(_example(given, vocab_in, vocab_out))
            except (KeyError, TypeError, ValueError) as error:
                notes.append(f"an example is left out: {type(error).__name__}: {error}")
        return cls(
            name=name,
            true=true,
            idle=idle - true,
            edges=frozenset(_edge(each) for each in _listed(data.get("edges"))),
            kinds=kinds,
            some=some,
            numerical=str(data.get("output", "")).startswith("num"),
            examples=tuple(examples),
            special=tuple(sorted(special.values())),
            bos=next((token for word, token in special.items() if word.endswith("bos")), None),
            text=data.get("greedy_text"),
            notes=tuple(dict.fromkeys(notes)),
        )


def _items(data: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    found = data.get(key)
    if isinstance(found, Mapping):
        return found.items()
    return [(each, "") for each in _listed(found)]


def _listed(found: Any) -> Sequence[Any]:
    return list(found) if isinstance(found, Sequence | Mapping | set) and not isinstance(found, str) else []


def _words(said: Any) -> str:
    """The words of a head's role: what it writes, or whatever text there is."""
    if isinstance(said, Mapping):
        said = [said[key] for key in ("kind", "role", "writes", "description") if key in said]
    return " ".join(map(str, said)) if isinstance(said, list | tuple) else str(said)


def _label(name: Any) -> str:
    """A component, `embed` or `final`, in the one form that labels have."""
    text = str(name).strip()
    if text.lower() in _NAMED:
        return _NAMED[text.lower()]
    head = re.fullmatch(r"(?:[Ll]|a?)(\d+)\s*[.:,\s]?\s*[Hh]?(\d+)", text) or re.fullmatch(
        r"(?:blocks\.)?(\d+)\.attn\.(?:head[_.]?)?(\d+)", text
    )
    if head is not None and ("." in text or "h" in text.lower() or ":" in text or "," in text):
        return f"{int(head[1])}.{int(head[2])}"
    mlp = re.fullmatch(r"(?:[Ll]|[Bb]locks\.)?(\d+)[._ ]?(?:mlp|MLP)|[Mm](?:LP|lp)?[ ._]?(\d+)", text)
    return f"mlp{int(mlp[1] or mlp[2])}" if mlp is not None else canonical_label(text)


def _checked(labels: Iterable[str], every: set[str], cfg: HookedTransformerConfig) -> list[str]:
    found = list(labels)
    for label in found:
        # Programs without MLPs may name those of layers that the model's file leaves out.
        if label not in every and not (component_of(label) is not None and label.startswith("mlp") and cfg.attn_only):
            raise InvalidInputError(f"the truth names {label!r}, and {cfg.model_name!r} has no such part.")
    return [label for label in found if label in every]


def _kinds(data: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[dict[str, frozenset[str]], dict[str, int]]:
    found: dict[str, set[str]] = {}
    some: dict[str, int] = {}
    given = data.get("kinds")
    for kind, heads in given.items() if isinstance(given, Mapping) else []:
        name = re.sub(r"[ -]", "_", str(kind).lower().removesuffix(" head"))
        layer = re.search(r"layer (\d+)", heads) if isinstance(heads, str) else None
        if layer is not None:
            some[name] = int(layer[1])
        else:
            found.setdefault(name, set()).update(map(_label, [heads] if isinstance(heads, str) else _listed(heads)))
    for part, said in roles.items():
        if component_of(part) is not None and not part.startswith("mlp"):
            kind = next((kind for kind, words in _KINDS.items() if re.search(words, said.lower())), None)
            if kind is not None:
                found.setdefault(kind, set()).add(part)
    return {kind: frozenset(heads) for kind, heads in found.items()}, some


def _edge(given: Any) -> tuple[str, str]:
    if isinstance(given, str):
        sender, receiver = re.split(r"\s*->\s*", given)
    elif isinstance(given, Mapping):
        sender, receiver = (
            next(given[key] for key in keys if key in given)
            for keys in (("sender", "from", "src", "source"), ("receiver", "to", "dst", "target"))
        )
    else:
        sender, receiver = given[0], ".".join(map(str, given[1:]))
    read = re.fullmatch(r"(.+?)[._ ]([qkv])", str(receiver).strip())
    return _label(sender), f"{_label(read[1])}.{read[2]}" if read else _label(receiver)


def _example(given: Mapping[str, Any], vocab_in: Mapping[str, int], vocab_out: Mapping[str, int]) -> Example:
    position = None if given.get("position") is None else int(given["position"])

    def ids(*names: str) -> tuple[int, ...] | None:
        values = next((given[name] for name in names if given.get(name) is not None), None)
        return (
            None if values is None else tuple(int(vocab_in[each] if isinstance(each, str) else each) for each in values)
        )

    def numbers(name: str, length: int) -> tuple[float | None, ...] | None:
        values = given.get(name)
        if values is not None and not isinstance(values, list | tuple):  # what is right where it is read
            values = [values if at == position else None for at in range(length)]
        return None if values is None else tuple(_number(each, vocab_out) for each in values)

    clean, corrupted = ids("clean", "tokens", "input"), ids("corrupted")
    output, other = numbers("output", len(clean or ())), numbers("corrupted_output", len(corrupted or ()))
    if clean is None or output is None or len(clean) != len(output):
        raise ValueError("it needs clean tokens, and an output for each")
    if corrupted is None or other is None:
        corrupted = other = None
    return Example(clean, output, corrupted, other, position)


def _number(output: Any, words: Mapping[str, int]) -> float | None:
    """An output as a number: an id, or a value; a word of the vocabulary is its id."""
    if isinstance(output, str | bool):
        return float(words[str(output)])
    return None if output is None else float(output)
