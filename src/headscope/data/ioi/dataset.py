"""`IOIDataset`: indirect-object sentences as tokens, with the positions of their names."""

import copy
import operator
from collections.abc import Mapping, Sequence
from random import Random
from typing import Self, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.data.ioi.prompts import Prompt, Template, flipped, parse_flip
from headscope.data.ioi.rows import tokenized
from headscope.data.ioi.words import NAMES, NOUNS, TEMPLATES, baba, single_tokens, third_person
from headscope.data.protocols import Tokenizer
from headscope.errors import InvalidInputError, MissingTokenizerError

__all__ = ["IOIDataset"]

_BABA = tuple(map(baba, TEMPLATES))
_KINDS: dict[str, tuple[str, ...]] = {
    "ABBA": TEMPLATES,
    "BABA": _BABA,
    "mixed": TEMPLATES + _BABA,
    "ABC": tuple(map(third_person, TEMPLATES)),
    "BAC": tuple(map(third_person, _BABA)),
    "ABC mixed": tuple(map(third_person, TEMPLATES + _BABA)),
}


class IOIDataset:
    """Sentences that end with the indirect object: of the two people named, the one who is not named twice.

    After Wang et al. 2022, "Interpretability in the Wild" (arXiv 2211.00593). Tokens are those of the whole sentence,
    including the answer; the answer is predicted at `word_idx["end"]`. Only names and nouns that are a single token
    inside a sentence are drawn, so that sentences with other names (`gen_flipped_prompts`) are aligned with these token
    by token.

    Args:
        prompt_type: `"ABBA"` (the indirect object is named first), `"BABA"`, `"mixed"`; `"ABC"`, `"BAC"`, `"ABC mixed"`
            with a third person in place of the second mention of the subject; or your own templates, with `[A]` for the
            indirect object, with which they end, `[B]` for the subject, `[C]` for a third person, and other gaps for
            nouns.
        N: Number of sentences.
        tokenizer: A Hugging Face tokenizer, or any object with the same `encode` and special tokens.
        prepend_bos: Begin each row with BOS (EOS for a tokenizer without BOS).
        symmetric: Follow each sentence by its twin, in which the two people have swapped roles.
        seed: Seed of the draws; the global generator is untouched.
        names: First names to draw from.
        nouns: Words for other gaps, in addition to `[PLACE]` and `[OBJECT]`, or in place of their words.
        device: Device of the tokens.

    Attributes:
        toks: Tokens, padded on the right, `[prompt, pos]`.
        attention_mask: True for real tokens.
        sentences: The texts.
        ioi_prompts: Each sentence as `{"text": ..., "IO": ..., "S": ..., "TEMPLATE_IDX": ..., "[PLACE]": ...}`.
        word_idx: Positions `[prompt]` of `IO`, `S1`, `S1+1`, `S2`, `end` (the token before the answer), `starts`, and
            `punct` (the last comma or period before `S2`) if every sentence has one.
        io_tokenIDs: The correct answer's token, for each sentence.
        s_tokenIDs: The wrong answer's token, for each sentence.
        groups: For each template drawn, the indices of its sentences.
        templates: The templates that `TEMPLATE_IDX` refers to.
        names: The names that can be drawn.

    Raises:
        MissingTokenizerError: If there is no tokenizer.
        InvalidInputError: For another `prompt_type`, a bad template, a number of sentences below 1 (or odd, with
            `symmetric`), or if too few names or nouns are single tokens.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> ioi = IOIDataset("mixed", N=2, tokenizer=model.tokenizer, prepend_bos=True, seed=1)
        >>> for sentence in [*ioi.sentences, *ioi.gen_flipped_prompts("ABB->XYZ, BAB->XYZ").sentences]:
        ...     print(sentence)
        While Lisa and Nathan waited at the park, Nathan brought a ring to Lisa
        The library was full when Joseph and Olivia came in. Joseph gave the basket to Olivia
        While Rachel and Angela waited at the park, Sean brought a ring to Lisa
        The library was full when Kevin and Brian came in. Amy gave the basket to Olivia
        >>> ioi.word_idx["S2"], ioi.word_idx["end"]
        (tensor([13, 12]), tensor([17, 16]))
    """

    toks: Int[Tensor, "prompt pos"]
    attention_mask: Bool[Tensor, "prompt pos"]
    word_idx: dict[str, Int[Tensor, " prompt"]]

    def __init__(
        self,
        prompt_type: str | Sequence[str] = "mixed",
        N: int = 500,
        tokenizer: Tokenizer | None = None,
        *,
        prepend_bos: bool = False,
        symmetric: bool = False,
        seed: int = 0,
        names: Sequence[str] | None = None,
        nouns: Mapping[str, Sequence[str]] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if tokenizer is None:
            raise MissingTokenizerError(
                "an IOI dataset needs a tokenizer: pass tokenizer=model.tokenizer.", code="HS-TOKENIZER-02"
            )
        if N < 1 or (symmetric and N % 2):
            twins = " and even, since symmetric=True gives each sentence a twin" if symmetric else ""
            raise InvalidInputError(f"N must be at least 1{twins}; got {N}.")
        self.tokenizer, self.prompt_type, self.seed = tokenizer, prompt_type, seed
        self.prepend_bos, self.symmetric, self.device = prepend_bos, symmetric, torch.device(device)
        words = {**NOUNS, **(nouns or {})}
        templates = [Template.parse(text, words) for text in _templates(prompt_type)]
        used = {gap for template in templates for gap in template.nouns}
        words = {gap: tuple(single_tokens(tokenizer, words[gap], f"words for [{gap}]")) for gap in words if gap in used}
        people = 3 if any("C" in template.roles for template in templates) else 2
        self._name_ids = single_tokens(tokenizer, NAMES if names is None else names, "names", at_least=people)
        self._first_ids = self._ids_at_the_start(templates, people)
        self.names = tuple(self._name_ids)
        self.templates = [template.text for template in templates]
        rng = Random(f"ioi/{seed}")
        drawn: list[Prompt] = []
        while len(drawn) < N:
            index = rng.randrange(len(templates))
            prompt = templates[index].draw(index, self.names, words, rng)
            drawn += [prompt, prompt.exchanged()] if symmetric else [prompt]
        self._take(drawn)

    def _ids_at_the_start(self, templates: Sequence[Template], at_least: int) -> dict[str, int]:
        """Tokens of names at the start of a text, if some template begins with one; multi-token names are dropped."""
        if not any(template.text.startswith(("[A]", "[B]", "[C]")) for template in templates):
            return {}
        ids = {name: self.tokenizer.encode(name, add_special_tokens=False) for name in self._name_ids}
        single = {name: tokens[0] for name, tokens in ids.items() if len(tokens) == 1}
        if len(single) < at_least:
            raise InvalidInputError(
                f"a template begins with a name, and {len(single)} of {len(ids)} names are a single token there "
                f"({at_least} are needed). Put a word before it."
            )
        self._name_ids = {name: self._name_ids[name] for name in single}
        return single

    def _take(self, prompts: list[Prompt], width: int = 0) -> None:
        """Store these prompts, their tokens in rows of at least `width`, and the positions of their words."""
        self._prompts = prompts
        rows = tokenized(
            prompts, self.tokenizer, self._name_ids, self._first_ids, prepend_bos=self.prepend_bos, width=width
        )
        self.toks, self.attention_mask = rows.toks.to(self.device), rows.attention_mask.to(self.device)
        self.word_idx = {name: at.to(self.device) for name, at in rows.word_idx.items()}

    # Contents

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def N(self) -> int:
        """Number of sentences."""
        return len(self)

    @property
    def max_len(self) -> int:
        """Tokens in a row."""
        return self.toks.shape[1]

    @property
    def sentences(self) -> list[str]:
        """The texts, including the answer."""
        return [prompt.text() for prompt in self._prompts]

    @property
    def prompts(self) -> list[str]:
        """The texts up to the answer, without the space before it."""
        return [prompt.before(len(prompt.names) - 1) for prompt in self._prompts]

    @property
    def ioi_prompts(self) -> list[dict[str, str | int]]:
        """The names and nouns of each sentence."""
        return [prompt.as_dict() for prompt in self._prompts]

    @property
    def orders(self) -> list[str]:
        """`ABBA`, `BABA` or the like, for each sentence."""
        return [prompt.roles for prompt in self._prompts]

    @property
    def io_tokenIDs(self) -> list[int]:
        """The token of the correct answer, for each sentence."""
        return [self._name_ids[prompt.io] for prompt in self._prompts]

    @property
    def s_tokenIDs(self) -> list[int]:
        """The token of the wrong answer, for each sentence."""
        return [self._name_ids[prompt.s] for prompt in self._prompts]

    @property
    def groups(self) -> list[Int[Tensor, " member"]]:
        """The indices of the sentences of each template drawn."""
        drawn = torch.tensor([prompt.template for prompt in self._prompts])
        return [(drawn == index).nonzero().flatten() for index in drawn.unique().tolist()]

    @property
    def clusters(self) -> Int[Tensor, " sentence"] | None:
        """A number for each sentence, the same for a sentence and its twin; `None` without twins."""
        if not self.symmetric:
            return None
        pairs = [frozenset((prompt, prompt.exchanged())) for prompt in self._prompts]
        numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        return torch.tensor([numbers[pair] for pair in pairs], device=self.device)

    @overload
    def __getitem__(self, key: int) -> dict[str, str | int]: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Tensor) -> Self: ...
    def __getitem__(self, key: int | slice | Sequence[int] | Tensor) -> dict[str, str | int] | Self:
        """Return one sentence, as in `ioi_prompts`, or a dataset of some of them, with rows of the same length."""
        if isinstance(key, int):
            return self._prompts[key].as_dict()
        indices = torch.arange(len(self))[key if isinstance(key, (slice, Tensor)) else list(map(operator.index, key))]
        if not indices.numel():
            raise InvalidInputError(f"{key!r} selects none of the {len(self)} sentences.")
        new = copy.copy(self)
        new._prompts = [self._prompts[index] for index in indices.tolist()]
        rows = indices.to(self.device)
        new.toks, new.attention_mask = self.toks[rows], self.attention_mask[rows]
        new.word_idx = {name: at[rows] for name, at in self.word_idx.items()}
        return new

    def gen_flipped_prompts(self, flip: str | tuple[str, str], *, seed: int | None = None) -> Self:
        """Make the same sentences with other names, aligned with these token by token.

        `"ABB->XYZ, BAB->XYZ"` says, for each order of names, who is named instead: A is the indirect object and B the
        subject of the sentence, other letters are new people; the answer stays unless a pattern has a fourth letter for
        it. The new subject is the person at `S2`, the new indirect object the other of the first two.

        A pair changes one role: `("IO", "RAND")` and `("S", "RAND")` put a new person everywhere, `("S1", "RAND")` and
        `("S2", "RAND")` at that mention alone; `("S2", "IO")` makes the indirect object act, and so the subject;
        `("IO", "S1")` swaps the order in which the two are first named, `("IO", "S")` swaps them everywhere;
        `("END", "S")` ends the sentence with the subject.

        Args:
            flip: The change of names.
            seed: Seed of the draws of new people; that of the dataset by default.

        Returns:
            A dataset with the same `word_idx`.

        Raises:
            InvalidInputError: For another flip, an order that none of its patterns fits, or too few names.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> met = ["When [A] and [B] met, [B] waved to [A]"]
            >>> ioi = IOIDataset(met, N=1, tokenizer=model.tokenizer, names=["Mary", "John", "Tom"])
            >>> ioi.sentences + ioi.gen_flipped_prompts(("S2", "IO")).sentences
            ['When John and Tom met, Tom waved to John', 'When John and Tom met, John waved to John']
        """
        change = parse_flip(flip)
        rng = Random(f"ioi/{self.seed if seed is None else seed}/{flip}")
        new = copy.copy(self)
        # A slice of a dataset may have rows longer than its sentences need.
        new._take([flipped(prompt, change, self.names, rng) for prompt in self._prompts], self.max_len)
        return new

    def __repr__(self) -> str:
        return f"IOIDataset({len(self)} sentences, {self.max_len} tokens a row, e.g. {self.sentences[0]!r})"


def _templates(prompt_type: str | Sequence[str]) -> Sequence[str]:
    if isinstance(prompt_type, str):
        if prompt_type not in _KINDS:
            allowed = ", ".join(map(repr, _KINDS))
            raise InvalidInputError(
                f"prompt_type must be one of {allowed}, or a list of templates; got {prompt_type!r}."
            )
        return _KINDS[prompt_type]
    if not prompt_type:
        raise InvalidInputError("prompt_type is an empty list: give at least one template.")
    return prompt_type
