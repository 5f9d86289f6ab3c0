"""Every exercise's solution is right, and plausible wrong answers are told apart in the right words."""

from typing import Any

import jupytext
import pytest
import solving
import torch

import headscope.exercises
from headscope.exercises import Verdict
from headscope.exercises.verdict import judge

# Wrong answers to each exercise, after its solution was run, and words of the verdict on them.
WRONG = {
    "01-logit-lens": {
        "check_logit_lens(state[0, -1] @ model.W_U + model.b_U, model, tokens, layer)": "final norm is missing",
        "check_logit_lens(model.unembed(model.ln_final(state))[0, 0], model, tokens, layer)": "first position",
        "check_logit_lens(model.unembed(model.ln_final(state))[0, -2], model, tokens, layer)": "last position but one",
        "check_logit_lens(model.unembed(model.ln_final(state)), model, tokens, layer)": "Its shape is [1, 15, 1024]",
        "check_logit_lens(answer.softmax(-1), model, tokens, layer)": "probabilities",
        "check_logit_lens(model.unembed(model.ln_final(cache['resid_post', layer]))[0, -1], model, tokens, layer)": (
            "after layer 3"
        ),
        "check_logit_lens(answer - model.b_U, model, tokens, layer)": "b_U",
    },
    "02-entropy-of-a-head": {
        "check_entropy_diff(answer / torch.log(torch.tensor(2.0)), model, tokens, layer, head)": "in bits",
        "check_entropy_diff(-answer, model, tokens, layer, head)": "sign",
        "check_entropy_diff(answer[1:], model, tokens, layer, head)": "Is an axis left over",
        "check_entropy_diff(entropy(before), model, tokens, layer, head)": "before the head",
        "final = cache['resid_post', 4][0]\n"
        "check_entropy_diff(entropy(final) - entropy(final - written), model, tokens, layer, head)": "marginal",
    },
    "03-induction-scores": {
        "check_induction_scores(answer.T, model, tokens)": "Transpose",
        "wrong = [cache['pattern', l].diagonal(-n, -2, -1)[..., 1:].mean((0, 2)) for l in range(5)]\n"
        "check_induction_scores(torch.stack(wrong), model, tokens)": "duplicate-token score",
        "wrong = [cache['pattern', l].diagonal(1 - n, -2, -1).mean((0, 2)) for l in range(5)]\n"
        "check_induction_scores(torch.stack(wrong), model, tokens)": "before the second copy",
        "check_induction_scores(answer * n, model, tokens)": "20 times the right answer",
    },
    "04-previous-token-head": {
        "check_previous_token_head('1.3', model, tokens)": "Head 1.3 gives the token before 0.1",
        "check_previous_token_head('3.0.0', model, tokens)": "names no component",
        "check_previous_token_head('0.4', model, tokens)": "heads of 'headscope-demo' are 0 to 3",
        "check_previous_token_head('mlp0', model, tokens)": "is no head",
    },
    "05-zero-and-mean-ablation": {
        "check_ablation(answer.flip(0), model, tokens, layer)": "rows are exchanged",
        "check_ablation(answer + whole, model, tokens, layer)": "the loss itself",
        "check_ablation(-answer, model, tokens, layer)": "sign",
        "mean = cache[name].mean(0)\n"
        "rows = [[loss_without(h, v) - whole for h, v in enumerate(values)] "
        "for values in ([0.0] * 4, mean.unbind(1))]\n"
        "check_ablation(torch.tensor(rows), model, tokens, layer)": "one of each position",
        "removed = lambda h, v: [(name, lambda z, hook, k=k: z.index_fill_(2, torch.tensor([k]), 0.0) if v == 0 else "
        "z.index_copy_(2, torch.tensor([k]), mean_all[k].expand(*z.shape[:2], 1, -1))) for k in range(h + 1)]\n"
        "mean_all = cache[name].mean((0, 1))\n"
        "rows = [[model.run_with_hooks(tokens, return_type='loss', fwd_hooks=removed(h, v)) - whole for h in range(4)] "
        "for v in (0, 1)]\n"
        "check_ablation(torch.tensor(rows), model, tokens, layer)": "Hooks pile up",
    },
    "06-direct-logit-attribution": {
        "check_direct_logit_attribution(answer * len(task), model, task)": "8 times the right answer",
        "check_direct_logit_attribution(-answer, model, task)": "sign",
        "wrong = [torch.einsum('phe,hed,pd->ph', cache['z', l][rows, ends], model.W_O[l], directions).mean(0) "
        "for l in range(5)]\n"
        "check_direct_logit_attribution(torch.stack(wrong), model, task)": "final norm is missing",
        "right_only = model.W_U[:, task.correct[:, 0]].T / scale\n"
        "wrong = [torch.einsum('phe,hed,pd->ph', cache['z', l][rows, ends], model.W_O[l], right_only).mean(0) "
        "for l in range(5)]\n"
        "check_direct_logit_attribution(torch.stack(wrong), model, task)": "right answer alone",
    },
    "07-copying-scores": {
        "check_copying_scores(answer.abs(), model)": "magnitude was taken of the sum",
        "check_copying_scores(eigenvalues.sum(-1).real, model)": "divide by the sum of their magnitudes",
        "other = FactoredMatrix(model.W_V, model.W_O).eigenvalues\n"
        "check_copying_scores(other.sum(-1).real / other.abs().sum(-1), model)": "W_V W_O alone",
        "check_copying_scores(answer.T, model)": "Transpose",
        "check_copying_scores(answer + 0j, model)": "take .real",
    },
    "08-activation-patching": {
        "check_activation_patch(1 - answer, model, task)": "1 less the right answer",
        "check_activation_patch(answer * (clean_metric - corrupted_metric), model, task)": "It is the change in logits",
        "check_activation_patch(answer * 0, model, task)": "nothing was patched",
        "check_activation_patch(answer.T, model, task)": "Transpose",
        "check_activation_patch(answer.roll(1, 1), model, task)": "one position too far on",
        "check_activation_patch(torch.rand(5, 15), model, task)": "The largest difference is at layer",
    },
    "09-skip-trigrams": {
        "check_skip_trigrams(answer.mT, model)": "exchanged",
        "check_skip_trigrams(answer.softmax(-1), model)": "probabilities",
        "check_skip_trigrams(answer.sum(0), model)": "Is an axis left over",
    },
    "10-errors-of-means": {
        "check_standard_error(values.std() / values.numel() ** 0.5, values)": "counted as independent draws",
        "check_standard_error(by_text.std(), values)": "divide by the root of their number",
        "check_standard_error(by_text.std(correction=0) / 24 ** 0.5, values)": "Bessel",
        "check_standard_error(by_text.var() / 24, values)": "take the root",
        "check_standard_error(1.0, values)": "neither right nor a mistake known here",
        "check_standard_error(float('nan'), values)": "NaN",
    },
    "11-path-patching": {
        "total = model.run_with_hooks(task.corrupted_tokens, fwd_hooks=[(get_act_name('z', 0), lambda z, hook: "
        "torch.cat([z[:, :, :3], clean_cache[hook.name][:, :, 3:]], 2))])\n"
        "share = (task.logit_difference(total) - corrupted) / (clean - corrupted)\n"
        "check_path_patch(share, model, task, sender, receiver)": "total effect",
        "check_path_patch(answer * (clean - corrupted), model, task, sender, receiver)": "not the share",
        "check_path_patch(-answer, model, task, sender, receiver)": "sign",
    },
    "12-three-head-circuit": {
        "check_circuit(earlier, model, task)": "These are 12 heads; at most 3",
        "check_circuit([*answer[:2], '4.3'], model, task)": "4.3 adds nothing",
        "check_circuit(answer[:2], model, task)": "Each of them does something: add one.",
        "check_circuit(['mlp0'], model, task)": "Name heads",
        "check_circuit(['3.2', '3.2'], model, task)": "3.2 keeps 26% by itself; 60% is asked for. Add one.",
        "check_circuit(['9.9'], model, task)": "does not exist",
    },
}


def test_every_exercise_is_here() -> None:
    assert list(WRONG) == solving.NAMES and len(WRONG) == 12
    checks = {name for name in headscope.exercises.__all__ if name.startswith("check_")}
    assert checks == {word.split("(")[0] for cases in WRONG.values() for word in [next(iter(cases)).split("\n")[-1]]}


@pytest.fixture(scope="module", params=solving.NAMES)
def solved(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], list[Any]]:
    """An exercise, its names after the solution, and what each cell showed."""
    names: dict[str, Any] = {}
    with torch.set_grad_enabled(True):
        shown = [solving.run_cell(source, names) for source in solving.cells(request.param)]
        torch.set_grad_enabled(True)
    return request.param, names, shown


def test_the_solution_is_right_and_the_empty_answer_is_not(solved: tuple[str, dict[str, Any], list[Any]]) -> None:
    _, _, shown = solved
    empty, solution = (verdict for verdict in shown if isinstance(verdict, Verdict))
    assert not empty and repr(empty).startswith("Not yet. ")
    assert solution and repr(solution).startswith("Right. "), solution


def test_wrong_answers_are_told_apart(solved: tuple[str, dict[str, Any], list[Any]]) -> None:
    name, names, _ = solved
    assert len(WRONG[name]) >= 2
    with torch.no_grad():
        for source, words in WRONG[name].items():
            verdict = solving.run_cell(source, names)
            assert not verdict and words in verdict.says, (source, verdict)


@pytest.mark.parametrize("name", solving.NAMES)
def test_the_page_has_all_it_should(name: str) -> None:
    text = (solving.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="md:myst")
    title = notebook["cells"][0]["source"]
    assert title.startswith("# ") and " minutes, " in title and "You learn" in title
    assert any(f" minutes, {level}.**" in title for level in ("easy", "medium", "hard"))
    assert "<summary>Hint" in text and "## Solution" in text
    solution = notebook["cells"][-2] if notebook["cells"][-1]["cell_type"] == "markdown" else notebook["cells"][-1]
    assert solution["metadata"]["tags"] == ["hide-cell", "solution"]
    assert solution["metadata"]["jupyter"] == {"source_hidden": True, "outputs_hidden": True}


def test_numbers_of_any_kind_are_judged() -> None:
    right = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert judge(right.numpy(), right, ["row", "column"], praise="Well done.").says == "Well done."
    assert judge([[1, 2], [3, 5]], right, ["row", "column"], praise="Well done.")
    assert judge(list(right), right, ["row", "column"], praise="Well done.")
    assert judge(tuple(map(tuple, right)), right, ["row", "column"], praise="Well done.")
    assert "transposed: column and row" in judge(right.T, right, ["row", "column"], praise="").says
    assert "not numbers" in judge("0.3", right, praise="").says
    assert "times the right answer" in judge(3 * right, right, ["row", "column"], praise="").says
    assert "+2 from the right answer" in judge(right + 2, right, ["row", "column"], praise="").says
    assert "axes of length 1" in judge(right[None], right, ["row", "column"], praise="").says
    assert "one number" in judge(right, right[0, 0], praise="").says
