"""`headscope attention` says why a head looks where it looks, and which words a prompt has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headscope import HookedTransformer
from headscope.analysis import AttentionAttribution, Task, attribute_attention
from headscope.data.ioi import IOIDataset

Run = Callable[..., tuple[int, str, str]]
PROMPT = "When Mary and John went to the store, John gave a drink to"


def test_a_prompt_is_looked_at_where_the_head_looks_most(run: Run, tmp_path: Path) -> None:
    code, printed, _ = run("attention", "headscope-demo", PROMPT, "--head", "3.2", "--out", tmp_path, "--no-progress")
    assert code == 0
    model = HookedTransformer.from_pretrained("headscope-demo")
    expected = attribute_attention(model, model.to_tokens(PROMPT), "3.2", against="others", progress=False)
    assert str(expected) in printed and "at: 14 ' to', 10 ' John'" in printed
    assert (
        f"The key by head and the token it was had from\n{expected.by_token().head(10).to_string(index=False)}"
        in printed
    )
    assert AttentionAttribution.load(tmp_path / "result.safetensors").pairs.equal(expected.pairs)
    assert (tmp_path / "attention.html").exists() and (tmp_path / "pairs.parquet").exists()


@pytest.mark.parametrize("key", ["store", "the+1", "8"])
def test_a_place_in_a_prompt_is_a_word_one_after_it_or_a_number(key: str, run: Run) -> None:
    code, printed, _ = run("attention", "headscope-demo", PROMPT, "--head", "3.2", "--key", key, "--query", "end-1")
    assert code == 0 and "Looked from, and at: 13 ' drink', 8 ' store'" in printed


def test_prompts_are_looked_at_by_the_names_of_their_words(run: Run) -> None:
    flags = ("--head", "3.2", "--key", "S2", "--against", "IO", "--prompts", 5, "--no-progress")
    code, printed, _ = run("attention", *flags)
    model = HookedTransformer.from_pretrained("headscope-demo")
    task = Task.from_ioi(IOIDataset("mixed", 5, model.tokenizer, prepend_bos=model.cfg.default_prepend_bos))
    expected = attribute_attention(model, task, "3.2", "end", "S2", against="IO", progress=False)
    assert code == 0 and str(expected) in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((PROMPT, "--head", "3.2", "--key", "John"), "'John' stands there 2 times, as one token. Give its number."),
        ((PROMPT, "--head", "3.2", "--key", "Tom"), "'Tom' is not one token of it"),
        ((PROMPT, "--head", "3.9"), "3.9"),
        ((PROMPT, "--head", "3.2", "--query", "2", "--key", "4"), "cannot look from position 2 of a prompt to 4"),
        ((PROMPT, "--head", "3.2", "--task", "my.csv"), "not both"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(flags: tuple[str, ...], message: str, run: Run) -> None:
    code, printed, error = run("attention", "headscope-demo", *flags, "--no-progress")
    assert code == 1 and not printed and message in error and len(error.splitlines()) == 1
