"""`test_prompt` against the model's softmax."""

import pytest
import torch
from small_models import small_model, small_tokenizer

from headscope import HookedTransformer
from headscope.compat.prompt import test_prompt as run_prompt
from headscope.errors import HeadscopeError, InvalidInputError, MissingTokenizerError, NotFiniteError

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model()


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("answer", [" Mary", " Mary said xyz"])
def test_it_reads_the_softmax_after_the_true_tokens(model: HookedTransformer, answer: str, prepend_bos: bool) -> None:
    tokenizer = small_tokenizer()
    prompt_ids = [0] * prepend_bos + tokenizer.encode(PROMPT, add_special_tokens=False)
    answer_ids = tokenizer.encode(answer, add_special_tokens=False)
    found = run_prompt(PROMPT, answer, model, print_details=False, prepend_bos=prepend_bos, top_k=3)
    assert [token.token_id for token in found.answer] == answer_ids
    whole = 1.0
    for step, (token, token_id) in enumerate(zip(found.answer, answer_ids, strict=True)):
        logits = model(torch.tensor([prompt_ids + answer_ids[:step]]))[0, -1].detach()
        probs = logits.softmax(-1)
        assert token.logit == pytest.approx(float(logits[token_id]), abs=1e-4)
        assert token.prob == pytest.approx(float(probs[token_id]), rel=1e-4)
        assert token.rank == sum(p > probs[token_id] for p in probs.tolist())
        assert [c.token_id for c in token.top] == sorted(range(len(probs)), key=lambda i: -probs[i])[:3]
        whole *= float(probs[token_id])
    assert found.prob == pytest.approx(whole, rel=1e-3)
    assert (found.rank, found.logit) == (found.answer[0].rank, found.answer[0].logit)


@pytest.mark.parametrize("answers", [["Mary", "John said"], [" John", "Mary", "the", "Mary"]])
def test_several_answers_are_compared_by_their_first_tokens(model: HookedTransformer, answers: list[str]) -> None:
    tokenizer = small_tokenizer()
    prompt_ids = [0, *tokenizer.encode(PROMPT, add_special_tokens=False)]
    logits = model(torch.tensor([prompt_ids]))[0, -1].detach()
    probs = logits.softmax(-1)
    found = run_prompt(PROMPT, answers, model, print_details=False, top_k=4)
    ids = [tokenizer.encode(f" {answer.strip()}", add_special_tokens=False)[0] for answer in answers]
    assert found.alternatives and [token.token_id for token in found.answer] == ids
    for token, token_id in zip(found.answer, ids, strict=True):
        assert token.logit == pytest.approx(float(logits[token_id]), abs=1e-4)
        assert token.prob == pytest.approx(float(probs[token_id]), rel=1e-4)
        assert token.rank == int((probs > probs[token_id]).sum())
        assert [c.token_id for c in token.top] == logits.topk(4).indices.tolist()
    assert found.prob == pytest.approx(sum(float(probs[i]) for i in set(ids)), rel=1e-4)
    assert found.rank == found.answer[0].rank
    lines = str(found).splitlines()
    assert sum(line.startswith("First token of an answer: ") for line in lines) == len(answers)
    assert len([line for line in lines if line.startswith("   ")]) == 4


def test_the_answers_among_the_likeliest_are_marked(model: HookedTransformer) -> None:
    found = run_prompt(PROMPT, ["Mary", "John"], model, print_details=False, top_k=model.cfg.d_vocab)
    marked = [line for line in str(found).splitlines() if line.endswith("<- an answer")]
    assert len(marked) == 2 and "' Mary'" in "".join(marked) and "' John'" in "".join(marked)


def test_a_list_of_one_answer_is_that_answer(model: HookedTransformer) -> None:
    assert run_prompt(PROMPT, ["Mary said"], model) == run_prompt(PROMPT, "Mary said", model)


@pytest.mark.parametrize(
    ("answer", "prepend", "token"), [("Mary", True, " Mary"), (" Mary", True, " Mary"), ("Mary", False, "Ma")]
)
def test_a_space_is_put_before_an_answer_without_one(
    model: HookedTransformer, answer: str, prepend: bool, token: str
) -> None:
    found = run_prompt(PROMPT, answer, model, prepend_space_to_answer=prepend, print_details=False)
    assert found.answer[0].token == token


def test_it_prints_what_it_returns(model: HookedTransformer, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_prompt(PROMPT, " Mary", model, top_k=model.cfg.d_vocab)
    printed = capsys.readouterr().out
    assert printed == f"{found}\n"
    assert "' Mary'" in printed and f"rank {found.rank}" in printed and "<- the answer" in printed
    run_prompt(PROMPT, " Mary", model, print_details=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((PROMPT, ""), {}, InvalidInputError, "the answer is empty"),
        ((PROMPT, []), {}, InvalidInputError, "the answer is empty"),
        ((PROMPT, ["Mary", ""]), {}, InvalidInputError, "the answer is empty"),
        (("", "Mary"), {"prepend_bos": False}, InvalidInputError, "has no tokens"),
        (("Mary " * 200, "John"), {}, InvalidInputError, "context is n_ctx = 48"),
        ((PROMPT, "Mary"), {"top_k": -1}, InvalidInputError, "top_k must be between 0"),
        ((PROMPT, "Mary"), {"top_k": 10**6}, InvalidInputError, "top_k must be between 0"),
    ],
)
def test_bad_input_is_told(
    model: HookedTransformer,
    arguments: tuple[str, str | list[str]],
    options: dict[str, object],
    error: type[HeadscopeError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run_prompt(*arguments, model, print_details=False, **options)  # type: ignore[arg-type]


def test_a_model_without_a_tokenizer_is_told() -> None:
    with pytest.raises(MissingTokenizerError, match="no tokenizer"):
        run_prompt(PROMPT, "Mary", small_model(tokenizer=False), print_details=False)


def test_nan_logits_are_told() -> None:
    model = small_model()
    with torch.no_grad():
        model.unembed.W_U[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="NaN"):
        run_prompt(PROMPT, "Mary", model, print_details=False)


def test_a_cell_that_ends_in_it_shows_the_report_once(model: HookedTransformer) -> None:
    found = run_prompt(PROMPT, " Mary", model, print_details=False)
    assert repr(found).startswith("PromptTest(answer=' Mary', rank=") and "\n" not in repr(found)
