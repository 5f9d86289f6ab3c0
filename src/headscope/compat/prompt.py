"""`test_prompt`: the rank and probability of an answer to a prompt."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.transformer import HookedTransformer

__all__ = ["AnswerToken", "Candidate", "PromptTest", "test_prompt"]


@dataclass(frozen=True)
class Candidate:
    """A token the model could have said, with its logit and probability."""

    token: str
    token_id: int
    logit: float
    prob: float


@dataclass(frozen=True)
class AnswerToken(Candidate):
    """One token of the answer, after the prompt and the answer's tokens before it; or the first of one alternative.

    Attributes:
        rank: Number of likelier tokens; 0 is the best.
        top: The likeliest tokens in its place, best first.
    """

    rank: int
    top: tuple[Candidate, ...]


@dataclass(frozen=True, repr=False)
class PromptTest:
    """The findings of `test_prompt`, printed as a small report.

    Attributes:
        model: The model's name.
        prompt_tokens: The prompt as the model sees it.
        answer: The answer's tokens, with their ranks and probabilities; of alternatives, the first token of each.
        alternatives: True if several answers were compared, each standing directly after the prompt.
    """

    model: str
    prompt_tokens: tuple[str, ...]
    answer: tuple[AnswerToken, ...]
    alternatives: bool = False

    @property
    def rank(self) -> int:
        """Rank of the (first) answer's first token: 0 if the model would have said it."""
        return self.answer[0].rank

    @property
    def logit(self) -> float:
        """Logit of the (first) answer's first token."""
        return self.answer[0].logit

    @property
    def prob(self) -> float:
        """Probability of the whole answer, the product over its tokens; of any of the alternatives, their sum."""
        if self.alternatives:
            return sum({token.token_id: token.prob for token in self.answer}.values())
        return float(torch.tensor([token.prob for token in self.answer], dtype=torch.float64).prod())

    def __str__(self) -> str:
        lines = [
            f"Model   {self.model}",
            f"Prompt  {_listed(self.prompt_tokens)}",
            f"{'Answers' if self.alternatives else 'Answer '} {_listed(token.token for token in self.answer)}",
        ]
        if self.alternatives:
            lines += ["", *(_summary("First token of an answer", token) for token in self.answer)]
            return "\n".join([*lines, *self._top_lines(self.answer[0]), "", f"Probability of any: {self.prob:.3%}"])
        for number, token in enumerate(self.answer, start=1):
            which = f" {number} of {len(self.answer)}" if len(self.answer) > 1 else ""
            lines += ["", _summary(f"Answer token{which}", token), *self._top_lines(token)]
        if len(self.answer) > 1:
            lines += ["", f"Probability of the whole answer: {self.prob:.3%}"]
        return "\n".join(lines)

    def _top_lines(self, token: AnswerToken) -> list[str]:
        wanted = {each.token_id for each in self.answer} if self.alternatives else {token.token_id}
        mark = "an answer" if self.alternatives else "the answer"
        width = max((len(repr(candidate.token)) for candidate in token.top), default=0)
        return [
            f"  {place:>2}  {candidate.token!r:<{width}}  {_numbers(candidate)}"
            + (f"  <- {mark}" if candidate.token_id in wanted else "")
            for place, candidate in enumerate(token.top)
        ]

    def __repr__(self) -> str:
        # One line: a notebook whose cell ends in `test_prompt(...)` shows it below the printed report.
        answers = _listed(token.token for token in self.answer)
        return f"PromptTest(answer={answers}, rank={self.rank}, prob={self.prob:.2%})"


@torch.no_grad()
def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: HookedTransformer,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> PromptTest:
    """Find the rank, logit and probability of an answer, and the tokens that the model prefers.

    An answer of several tokens is read one token at a time, each after the true ones before it. Several answers are
    compared by their first tokens, all directly after the prompt.

    Args:
        prompt: The text before the answer.
        answer: The answer, or a list of several; a list of one is that one.
        model: A model with a tokenizer.
        prepend_space_to_answer: Put a space before each answer unless it starts with one.
        print_details: Print the result.
        prepend_bos: Put a BOS token before the prompt; `model.cfg.default_prepend_bos` by default.
        top_k: Number of the likeliest tokens to list.

    Raises:
        MissingTokenizerError: If the model has no tokenizer.
        InvalidInputError: For an empty prompt or answer, one too long for the model, or `top_k` out of range.
        NotFiniteError: If the model's logits are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> _ = test_prompt(prompt, "Mary", model, top_k=2)
        Model   headscope-demo
        ...
        Answer token: ' Mary'  logit ...  prob ...  rank 0
           0  ' Mary'  logit ...  prob ...  <- the answer
           1  ...
    """
    if not 0 <= top_k <= model.cfg.d_vocab_out:
        raise InvalidInputError(f"top_k must be between 0 and d_vocab = {model.cfg.d_vocab_out}; got {top_k}.")
    answers = [answer] if isinstance(answer, str) else list(answer)
    if not answers or not all(answers):
        raise InvalidInputError("the answer is empty: give the text that should follow the prompt.")
    if prepend_space_to_answer:
        answers = [each if each.startswith(" ") else f" {each}" for each in answers]
    prompt_ids = model.to_tokens(prompt, prepend_bos=prepend_bos, truncate=False)[0]
    answer_ids = [model.to_tokens(each, prepend_bos=False, truncate=False)[0] for each in answers]
    alternatives = len(answers) > 1
    wanted = [int(ids[0]) for ids in answer_ids] if alternatives else answer_ids[0].tolist()
    # The last token of the answer predicts nothing that is asked for; nor does any token of several answers.
    tokens = prompt_ids if alternatives else torch.cat([prompt_ids, answer_ids[0][:-1]])
    if len(tokens) > model.cfg.n_ctx:
        raise InvalidInputError(
            f"prompt and answer are {len(tokens)} tokens long, but this model's context is n_ctx = {model.cfg.n_ctx}. "
            "Shorten the prompt.",
            code="HS-TOKENS-03",
        )
    logits = model(tokens[None])[0, len(prompt_ids) - 1 :].float()
    if not bool(logits.isfinite().all()):
        raise NotFiniteError(
            "the model's logits hold NaN or infinite values. Check its weights, and any hooks on it.",
            code="HS-FINITE-02",
        )
    rows = logits.expand(len(wanted), -1)
    prompt_tokens = tuple(map(model.to_single_str_token, prompt_ids.tolist()))
    answer_tokens = tuple(_answer_token(model, row, i, top_k) for row, i in zip(rows, wanted, strict=True))
    result = PromptTest(model.cfg.model_name, prompt_tokens, answer_tokens, alternatives)
    if print_details:
        print(result)
    return result


# Its name is the field's; it is no test.
test_prompt.__test__ = False  # type: ignore[attr-defined]


def _answer_token(model: HookedTransformer, logits: torch.Tensor, token_id: int, k: int) -> AnswerToken:
    probs = logits.softmax(-1)
    answer, *top = (
        Candidate(model.to_single_str_token(i), i, float(logits[i]), float(probs[i]))
        for i in [token_id, *logits.topk(k).indices.tolist()]
    )
    return AnswerToken(**vars(answer), rank=int((logits > logits[token_id]).sum()), top=tuple(top))


def _listed(tokens: Iterable[str]) -> str:
    return " ".join(map(repr, tokens))


def _summary(what: str, token: AnswerToken) -> str:
    return f"{what}: {token.token!r}  {_numbers(token)}  rank {token.rank}"


def _numbers(token: Candidate) -> str:
    return f"logit {token.logit:8.3f}  prob {token.prob:7.2%}"
