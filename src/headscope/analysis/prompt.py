"""`test_prompt`: what does the model say to this prompt, and where does the right answer stand?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headscope.errors import InvalidInputError, NotFiniteError

if TYPE_CHECKING:
    from headscope.model.transformer import HookedTransformer

__all__ = ["AnswerToken", "Candidate", "PromptTest", "test_prompt"]


@dataclass(frozen=True)
class Candidate:
    """A token the model could have said."""

    token: str
    token_id: int
    logit: float
    prob: float


@dataclass(frozen=True)
class AnswerToken:
    """One token of the answer, after the prompt and the answer's tokens before it.

    Attributes:
        token: Its text.
        token_id: Its number.
        rank: How many tokens the model holds more likely: 0 is the best.
        logit: Its logit.
        prob: Its probability.
        top: The likeliest tokens in its place, best first.
    """

    token: str
    token_id: int
    rank: int
    logit: float
    prob: float
    top: tuple[Candidate, ...]


@dataclass(frozen=True, repr=False)
class PromptTest:
    """What `test_prompt` found; printed as a small report.

    Attributes:
        model: The model's name.
        prompt_tokens: The prompt as the model sees it.
        answer: The answer's tokens, with their ranks and probabilities.
    """

    model: str
    prompt_tokens: tuple[str, ...]
    answer: tuple[AnswerToken, ...]

    @property
    def rank(self) -> int:
        """Rank of the answer's first token: 0 if the model would have said it."""
        return self.answer[0].rank

    @property
    def logit(self) -> float:
        """Logit of the answer's first token."""
        return self.answer[0].logit

    @property
    def prob(self) -> float:
        """Probability of the whole answer: the product over its tokens."""
        return float(torch.tensor([token.prob for token in self.answer], dtype=torch.float64).prod())

    def __str__(self) -> str:
        lines = [
            f"Model   {self.model}",
            f"Prompt  {_listed(self.prompt_tokens)}",
            f"Answer  {_listed(token.token for token in self.answer)}",
        ]
        for number, token in enumerate(self.answer, start=1):
            which = f" {number} of {len(self.answer)}" if len(self.answer) > 1 else ""
            lines += ["", f"Answer token{which}: {token.token!r}  {_numbers(token)}  rank {token.rank}"]
            width = max((len(repr(candidate.token)) for candidate in token.top), default=0)
            for place, candidate in enumerate(token.top):
                mark = "  <- the answer" if candidate.token_id == token.token_id else ""
                lines.append(f"  {place:>2}  {candidate.token!r:<{width}}  {_numbers(candidate)}{mark}")
        if len(self.answer) > 1:
            lines += ["", f"Probability of the whole answer: {self.prob:.3%}"]
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def test_prompt(
    prompt: str,
    answer: str,
    model: "HookedTransformer",
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> PromptTest:
    """Rank, logit and probability of an answer, and what the model would rather have said.

    An answer of several tokens is read one token at a time, each after the true ones before it.

    Args:
        prompt: The text before the answer.
        answer: The answer.
        model: A model with a tokenizer.
        prepend_space_to_answer: Put a space before the answer unless it starts with one.
        print_details: Print what is returned.
        prepend_bos: Put a BOS token before the prompt; default: `model.cfg.default_prepend_bos`.
        top_k: How many of the likeliest tokens to list.

    Raises:
        MissingTokenizerError: If the model has no tokenizer.
        InvalidInputError: For an empty prompt or answer, one too long for the model, or `top_k` out of range.
        NotFiniteError: If the model's logits are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> found = test_prompt(prompt, "Mary", model, print_details=False)
        >>> [token.token for token in found.answer]
        [' Mary']
    """
    if not 0 <= top_k <= model.cfg.d_vocab_out:
        raise InvalidInputError(f"top_k must be between 0 and d_vocab = {model.cfg.d_vocab_out}; got {top_k}.")
    if not answer:
        raise InvalidInputError("the answer is empty: give the text that should follow the prompt.")
    if prepend_space_to_answer and not answer.startswith(" "):
        answer = " " + answer
    prompt_ids = model.to_tokens(prompt, prepend_bos=prepend_bos, truncate=False)[0]
    answer_ids = model.to_tokens(answer, prepend_bos=False, truncate=False)[0]
    # The last token of the answer predicts nothing that is asked for.
    tokens = torch.cat([prompt_ids, answer_ids[:-1]])
    if len(tokens) > model.cfg.n_ctx:
        raise InvalidInputError(
            f"prompt and answer are {len(tokens)} tokens long, but this model's context is n_ctx = {model.cfg.n_ctx}. "
            "Shorten the prompt."
        )
    logits = model(tokens[None])[0, len(prompt_ids) - 1 :].float()
    if not bool(logits.isfinite().all()):
        raise NotFiniteError("the model's logits hold NaN or infinite values. Check its weights, and any hooks on it.")
    found = PromptTest(
        model=model.cfg.model_name,
        prompt_tokens=_strings(model, prompt_ids.tolist()),
        answer=tuple(_answer_token(model, row, i, top_k) for row, i in zip(logits, answer_ids.tolist(), strict=True)),
    )
    if print_details:
        print(found)
    return found


# Its name is the field's; it is no test.
test_prompt.__test__ = False  # type: ignore[attr-defined]


def _answer_token(model: "HookedTransformer", logits: torch.Tensor, token_id: int, k: int) -> AnswerToken:
    probs = logits.softmax(-1)
    top_ids = logits.topk(k).indices.tolist()
    names = _strings(model, [token_id, *top_ids])
    top = tuple(
        Candidate(name, i, float(logits[i]), float(probs[i])) for name, i in zip(names[1:], top_ids, strict=True)
    )
    rank = int((logits > logits[token_id]).sum())
    return AnswerToken(names[0], token_id, rank, float(logits[token_id]), float(probs[token_id]), top)


def _strings(model: "HookedTransformer", token_ids: list[int]) -> tuple[str, ...]:
    return tuple(model.to_single_str_token(i) for i in token_ids)


def _listed(tokens: object) -> str:
    return " ".join(repr(token) for token in tokens)  # type: ignore[attr-defined]


def _numbers(token: AnswerToken | Candidate) -> str:
    return f"logit {token.logit:8.3f}  prob {token.prob:7.2%}"
