"""`Sessions`: answers to what the live page asks of a model, whose runs are kept for the next question.

Questions come one at a time. Of the same prompt the plain run is there already, and of the same changes the changed
one; both are kept up to so many bytes, those that were not used for longest going first.
"""

import base64
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.attention.score import attribute_attention
from headscope.analysis.core.components import Component, components
from headscope.analysis.prompts.reading import TokenStrings
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.explorer.serving.reading import RunReader
from headscope.explorer.serving.runs import Check, PromptRun, PromptRuns, ResolvedChange
from headscope.explorer.serving.schemas import (
    MAX_CHANGES,
    MAX_CHARACTERS,
    Answer,
    Change,
    ModelInfo,
    OnePatternAnswer,
    OnePatternRequest,
    Part,
    PatternsAnswer,
    PatternsRequest,
    Rest,
    State,
    Token,
    WhyAnswer,
    WhyRequest,
)
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["MAX_TOKENS", "Sessions", "TooLongError"]

MAX_TOKENS = 256
_PAIRS = 30  # of parts of an attention score, which are told
_PATTERN_BYTES = 64 * 2**20


class TooLongError(InvalidInputError):
    """A prompt of more tokens than a run may have."""


class _Resolved(NamedTuple):
    """A state's runs: of the prompt, of the one that patches come from, and with the changes."""

    plain: PromptRun
    other: PromptRun | None
    changed: PromptRun | None
    changes: tuple[ResolvedChange, ...]


class Sessions:
    """Answers about one model.

    Args:
        model: The model; nobody else runs it or puts hooks on it meanwhile.
        means: The mean output of each component over a corpus, which the action `mean` puts in its place.
        max_tokens: The longest prompt.
        kept_bytes: The bytes of runs that are kept for later questions; default: twice the device's
            `Budget.kept_bytes`, so that two long prompts and a changed run of one stay.

    Raises:
        MissingTokenizerError: For a model without a tokenizer.
        InvalidInputError: For a model that does not predict the next token.
    """

    def __init__(
        self,
        model: HookedTransformer,
        means: Mapping[Component, Float[Tensor, " width"]] | None = None,
        *,
        max_tokens: int = MAX_TOKENS,
        kept_bytes: int | None = None,
    ) -> None:
        if model.tokenizer is None:
            raise MissingTokenizerError(
                f"{model.cfg.model_name!r} has no tokenizer, and prompts are text: name a model that has one."
            )
        if model.cfg.d_vocab_out != model.cfg.d_vocab:
            raise InvalidInputError(
                f"{model.cfg.model_name!r} has {model.cfg.d_vocab_out} outputs for {model.cfg.d_vocab} tokens: it does "
                "not predict the next token, which is what the live page shows."
            )
        if model.cfg.attention_dir != "causal":
            raise InvalidInputError(
                f"{model.cfg.model_name!r} attends in both directions: what it gives at a position is no prediction of "
                "the next token, which is what the live page shows."
            )
        self.model, self.means = model, means or {}
        self.max_tokens = min(max_tokens, model.cfg.n_ctx)
        self._room = 2 * Budget.of(model.W_E.device).kept_bytes if kept_bytes is None else kept_bytes
        self._strings = TokenStrings(model.tokenizer)
        self._reader = RunReader(model, self._strings)
        self._runs = PromptRuns(model, self._reader.parts.names, self.means)
        self._kept: OrderedDict[object, PromptRun] = OrderedDict()

    @property
    def info(self) -> ModelInfo:
        """The model, and the limits of what can be asked."""
        cfg = self.model.cfg
        return ModelInfo(
            model_name=cfg.model_name,
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            d_vocab=cfg.d_vocab,
            has_mlps=bool(cfg.layers_with("mlp")),
            max_tokens=self.max_tokens,
            max_changes=MAX_CHANGES,
            max_characters=MAX_CHARACTERS,
            measured_mean=bool(self.means),
        )

    @torch.no_grad()
    def run(self, state: State, check: Check = lambda: None) -> Answer:
        """Run a prompt as it is and with its changes, and read both.

        Args:
            state: What is asked.
            check: Called before every layer; it raises if nobody waits for the answer any longer.

        Raises:
            TooLongError: For a prompt of too many tokens.
            InvalidInputError: For a component, position or token that does not exist, a patch without a second prompt
                of as many tokens, a mean that was not measured, or one component changed twice at a position.
            NotFiniteError: If a final state is not finite.
        """
        began = time.perf_counter()
        plain, other, changed, _ = self._resolved(state, check)
        (position,) = _positions([state.position], plain.length)
        target = self._reader.most_probable(plain, position) if state.target is None else state.target
        if target >= self.model.cfg.d_vocab_out:
            raise InvalidInputError(f"target must be a token from 0 to {self.model.cfg.d_vocab_out - 1}; got {target}.")
        before = self._reader.read(plain, position, target, state.top)
        check()
        return Answer(
            tokens=self._texts(plain.tokens),
            ids=plain.tokens[0].tolist(),
            other_tokens=None if other is None else self._texts(other.tokens),
            target=Token(id=target, token=self._strings[target]),
            before=before,
            after=None if changed is None else self._reader.read(changed, position, target, state.top),
            seconds=time.perf_counter() - began,
        )

    @torch.no_grad()
    def patterns(self, asked: PatternsRequest, check: Check = lambda: None) -> PatternsAnswer:
        """Return the attention patterns of one layer or of all, quantized; for errors see `run`."""
        plain, _, changed, _ = self._resolved(asked.state, check)
        layers = range(self.model.cfg.n_layers) if asked.layer is None else [self._layer(asked.layer)]
        size = (1 if changed is None else 2) * len(layers) * self.model.cfg.n_heads * plain.length**2
        if size > _PATTERN_BYTES:
            raise TooLongError(
                f"these patterns are {size / 2**20:.0f} MiB, and at most {_PATTERN_BYTES / 2**20:.0f} MiB are sent at "
                "once: ask for one layer at a time."
            )

        def of(run: PromptRun) -> list[list[str]]:
            found = []
            for layer in layers:
                check()
                pattern = self._runs.pattern(run, layer)
                found.append([] if pattern is None else [_packed(each) for each in pattern])
            return found

        return PatternsAnswer(before=of(plain), after=None if changed is None else of(changed), n=plain.length)

    @torch.no_grad()
    def pattern(self, asked: OnePatternRequest, check: Check = lambda: None) -> OnePatternAnswer:
        """Return the attention pattern of one head; for errors see `run`."""
        (head,) = components(self.model.cfg, [(asked.layer, asked.head)])
        plain, _, changed, _ = self._resolved(asked.state, check)

        def of(run: PromptRun) -> list[list[float]]:
            pattern = self._runs.pattern(run, head.layer)
            assert pattern is not None and head.head is not None
            rows: list[list[float]] = pattern[head.head].tolist()
            return rows

        return OnePatternAnswer(before=of(plain), after=None if changed is None else of(changed))

    @torch.no_grad()
    def why(self, asked: WhyRequest, check: Check = lambda: None) -> WhyAnswer:
        """Split a head's score into what made its query and its key, with the changes in force; for errors see `run`.

        Raises:
            InvalidInputError: Also for what `attribute_attention` refuses.
        """
        plain, other, _, changes = self._resolved(asked.state, check)
        query, key = (_positions([at], plain.length)[0] for at in (asked.query, asked.key))
        with self._runs.changing(changes, other, check):
            found = attribute_attention(
                self.model, plain.tokens, (asked.layer, asked.head), query, key, sources=False, progress=False
            )
        labels = found.part_labels
        # A model of a thousand heads has a million pairs.
        shares = found.pairs.flatten()
        largest = shares.abs().topk(min(_PAIRS, shares.numel())).indices
        others = torch.ones_like(shares, dtype=torch.bool).index_fill_(0, largest, value=False)
        pairs = [(*divmod(at, len(labels)), float(shares[at])) for at in largest.tolist()]
        return WhyAnswer(
            score=float(found.scores[0]),
            penalty=float(found.penalties[0]),
            attention=float(found.attention[0, 0]),
            parts=[Part(name=f"{labels[row]} × {labels[column]}", value=value) for row, column, value in pairs],
            pairs_rest=Rest(count=shares.numel() - len(pairs), value=float(shares[others].sum())),
            query_parts=_largest(zip(labels, found.query_parts[0].tolist(), strict=True)),
            key_parts=_largest(zip(labels, found.key_parts[0].tolist(), strict=True)),
        )

    # A state and its runs

    def _resolved(self, state: State, check: Check) -> _Resolved:
        tokens = self._tokens(state.prompt, state)
        patches = any(change.action == "patch" for change in state.changes)
        if patches and state.other is None:
            raise InvalidInputError("a patch comes from a second prompt, and there is none: give other.")
        others = None if state.other is None else self._tokens(state.other, state)
        if others is not None and others.shape != tokens.shape:
            raise InvalidInputError(
                f"the second prompt has {others.shape[1]} tokens and the first {tokens.shape[1]}: patches go from "
                "position to position, so give two of the same length."
            )
        changes = self._changes(state.changes, tokens.shape[1])
        plain = self._plain(tokens, check)
        other = None if others is None else self._plain(others, check)
        if not changes:
            return _Resolved(plain, other, None, changes)
        source = _key(others) if patches and others is not None else None
        changed = self._once((_key(tokens), source, changes), lambda: self._runs.changed(plain, changes, other, check))
        return _Resolved(plain, other, changed, changes)

    def _tokens(self, prompt: str, state: State) -> Int[Tensor, "1 pos"]:
        tokens = self.model.to_tokens(prompt, prepend_bos=state.prepend_bos, truncate=False)
        if tokens.shape[1] > self.max_tokens:
            raise TooLongError(
                f"the prompt has {tokens.shape[1]} tokens; at most {self.max_tokens} are run live. Shorten it."
            )
        return tokens

    def _changes(self, changes: Sequence[Change], length: int) -> tuple[ResolvedChange, ...]:
        """Return the changes as the model and the prompt have them, in order of component and position."""
        resolved = []
        taken: set[tuple[Component, int]] = set()
        for change in changes:
            (part,) = components(self.model.cfg, [change.component])
            positions = range(length) if change.positions is None else self._changed_at(part, change.positions, length)
            if not positions:
                raise InvalidInputError(f"{part.label} is changed at no position: name some, or null for all.")
            for position in positions:
                if (part, position) in taken:
                    raise InvalidInputError(f"{part.label} is changed twice at position {position}; keep one of them.")
                taken.add((part, position))
            if change.action == "mean" and part not in self.means:
                raise InvalidInputError(
                    f"the mean output of {part.label} was not measured on this model: measure the folder again with "
                    "headscope explore, or put zero in its place."
                )
            resolved.append(ResolvedChange(part, tuple(positions), change.action, change.factor))
        return tuple(sorted(resolved, key=lambda each: (each.part.place, each.positions)))

    def _changed_at(self, part: Component, positions: Sequence[int], length: int) -> tuple[int, ...]:
        """Return where a change is, and name it if it is behind the end of a prompt that was made shorter."""
        try:
            return _positions(positions, length)
        except InvalidInputError as error:
            raise InvalidInputError(f"the change of {part.label}: {error.message}") from None

    def _plain(self, tokens: Int[Tensor, "1 pos"], check: Check) -> PromptRun:
        return self._once(_key(tokens), lambda: self._runs.plain(tokens, check))

    def _once(self, key: object, make: Callable[[], PromptRun]) -> PromptRun:
        """Return the run that is kept under a key, made if there is none."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        run = self._kept[key]
        held = sum(each.nbytes for each in self._kept.values())
        while held > self._room and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            held -= gone.nbytes
        return run

    # What is told

    def _layer(self, layer: int) -> int:
        if layer >= self.model.cfg.n_layers:
            raise InvalidInputError(f"layers are 0 to {self.model.cfg.n_layers - 1}; got {layer}.")
        return layer

    def _texts(self, tokens: Int[Tensor, "1 pos"]) -> list[str]:
        return [self._strings[token] for token in tokens[0].tolist()]


def _key(tokens: Int[Tensor, "1 pos"]) -> tuple[int, ...]:
    return tuple(tokens[0].tolist())


def _positions(given: Iterable[int], length: int) -> tuple[int, ...]:
    """Return positions counted from the start, in order, each once."""
    found = set()
    for position in given:
        if not -length <= position < length:
            raise InvalidInputError(f"positions are {-length} to {length - 1} in this prompt; got {position}.")
        found.add(position % length)
    return tuple(sorted(found))


def _packed(pattern: Float[Tensor, "pos pos"]) -> str:
    levels = (pattern.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
    return base64.b64encode(levels.cpu().numpy().tobytes()).decode("ascii")


def _largest(values: Iterable[tuple[str, float]]) -> list[Part]:
    """Return named values, the largest in size first."""
    return [Part(name=name, value=value) for name, value in sorted(values, key=lambda each: -abs(each[1]))]
