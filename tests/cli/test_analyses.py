"""Commands that run one analysis print what its function gives, keep it, and continue it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sizes import SetBudget
from small_models import STORY

from headscope import HookedTransformer
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core import batches as core_batches
from headscope.analysis.lens.entropy import EntropyAccumulator, EntropyResult, measure_entropy
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.analysis.prompts.task import Task
from headscope.analysis.suppression.circuit_ranks import weights_circuit_ranks
from headscope.compat.prompt import test_prompt as run_prompt
from headscope.data.ioi import IOIDataset
from headscope.report import token_rows

Run = Callable[..., tuple[int, str, str]]


def test_prompt_prints_the_test(run: Run, checkpoint: Path) -> None:
    code, printed, _ = run("prompt", checkpoint, "Mary gave a drink to", "John", "--top-k", 3, "--no-bos")
    model = HookedTransformer.from_pretrained(str(checkpoint))
    expected = run_prompt("Mary gave a drink to", "John", model, print_details=False, prepend_bos=False, top_k=3)
    assert (code, printed) == (0, f"{expected}\n")


def test_entropy_prints_and_saves(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, _ = run(
        "entropy",
        checkpoint,
        "--text",
        story,
        "--out",
        out,
        "--top",
        2,
        "--no-lens-bias",
        "--scale",
        "own",
        "--no-progress",
    )
    assert code == 0
    model = HookedTransformer.from_pretrained(str(checkpoint))
    tokens = token_rows(model, [STORY * 3])
    expected = measure_entropy(model, tokens, lens_bias=False, scale="own", describe="story.txt", progress=False)
    loaded = EntropyResult.load(out / "result.safetensors")
    assert loaded.info == expected.info
    torch.testing.assert_close(loaded.diff, expected.diff)
    for by in ("diff", "marginal"):
        heading, *rows = str(expected.top(6, by=by)).splitlines()
        assert "\n".join(["", heading, *rows[:2], "...", *rows[-2:], ""]) in printed
    assert f"final  {expected.resid[-1]:7.3f}" in printed
    assert printed.endswith(f"Saved to {out / 'result.safetensors'}\n")


def test_entropy_goes_on_after_ctrl_c(
    run: Run,
    checkpoint: Path,
    story: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    set_budget: SetBudget,
) -> None:
    command = ["entropy", checkpoint, "--text", story, "--seq-len", 8, "--baseline", "mean", "--no-progress"]
    code, wanted, _ = run(*command)
    assert code == 0
    out = tmp_path / "run"
    update, n_updates = EntropyAccumulator.update, 0

    def stopping(self: EntropyAccumulator, batch: core_batches.Batch) -> None:
        nonlocal n_updates
        n_updates += 1
        if n_updates == 3:
            raise KeyboardInterrupt
        update(self, batch)

    set_budget(batch_tokens=32)
    monkeypatch.setattr(EntropyAccumulator, "update", stopping)
    code, printed, error = run(*command, "--out", out)
    assert (code, printed) == (130, "")
    (line,) = error.splitlines()
    assert line == f"Stopped. What was measured is kept in {out}: the same command with --resume continues it."
    code, _, error = run(*command, "--out", out)
    assert code == 1 and "holds a run already" in error and "--resume" in error
    code, _, error = run(*command, "--out", out, "--resume", "--scale", "own")
    assert code == 1 and "options.scale is 'final' there and 'own' here" in error
    n_before = n_updates
    code, printed, _ = run(*command, "--out", out, "--resume")
    assert (code, printed) == (0, f"{wanted}\nSaved to {out / 'result.safetensors'}\n")
    n_after = n_updates
    assert run(*command, "--out", out, "--resume") == (0, printed, "") and n_updates == n_after > n_before


def test_ablate_prints_the_ends_and_places(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, _ = run(
        "ablate", checkpoint, "--text", story, "--value", "mean", "--heads", "0.1, 1.0+1.2,MLP 1", "--max-tokens", 96,
        "--positions", 2, "--out", out, "--no-progress",
    )  # fmt: skip
    assert code == 0 and "story.txt" in printed
    result = AblationResult.load(out / "result.safetensors")
    assert (result.values, result.effects) == (("mean",), ("patched", "direct"))
    assert result.component_labels == ("0.1", "1.0+1.2", "mlp1")
    for effect in result.effects:
        (section,) = [part for part in printed.split("\n\n") if part.startswith(f"mean, {effect}")]
        assert section == f"mean, {effect}\n{result.top(3, value='mean', effect=effect)}"
    best = result.top(1)[0].label
    assert f"Where {best} helps most" in printed and f"Where {best} costs most" in printed
    assert str(result.top_positions(2, component=best)) in printed


def test_copy_suppression_prints_every_head_asked_for(run: Run, tmp_path: Path) -> None:
    command = (
        "copy-suppression", "headscope-demo", "--heads", "3.2, 1.3", "--max-tokens", 128, "--seq-len", 128,
        "--no-progress", "--out", tmp_path / "run",
    )  # fmt: skip
    code, printed, _ = run(*command)
    assert code == 0 and f"Saved to {tmp_path / 'run' / 'result.safetensors'}" in printed
    assert run(*command)[0] == 1 and run(*command, "--resume")[1] == printed
    printed = printed.partition("\n\nSaved to")[0]
    lines = printed.partition("\n\n")[2].splitlines()
    assert lines[0].split() == "head explained +- power KL mean KL CSPA anti-ind. IOI OV bottom 10 QK top 10".split()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert list(rows) == ["3.2", "1.3"] and all(len(cells) == 9 for cells in rows.values())
    model = HookedTransformer.from_pretrained("headscope-demo")
    ranks = weights_circuit_ranks(model, ["3.2"], progress=False)
    assert rows["3.2"][-2:] == [f"{float(ranks.ov_bottom):.1%}", f"{float(ranks.qk_top):.1%}"]


def test_ioi_shows_prompts_and_differences(run: Run) -> None:
    code, printed, _ = run("ioi", "headscope-demo", "--prompts", 12, "--rows", 2, "--seed", 3, "--no-progress")
    assert code == 0 and "... and 10 more" in printed
    model = HookedTransformer.from_pretrained("headscope-demo")
    task = Task.from_ioi(IOIDataset(N=12, tokenizer=model.tokenizer, prepend_bos=True, seed=3))
    with torch.no_grad():
        clean = task.logit_difference(model(task.clean_tokens, attention_mask=task.attention_mask), per_prompt=True)
        corrupted = task.logit_difference(model(task.corrupted_tokens, attention_mask=task.attention_mask))
    error = float(clean.std()) / len(clean) ** 0.5
    assert f"Logit difference: {float(clean.mean()):+.3f} ± {error:.3f} on average" in printed
    assert f"Corrupted, with the same answers: {float(corrupted):+.3f} ± " in printed
    assert f"{float(clean[0]):+.3f}" in printed


def test_a_task_of_ones_own_is_attributed(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "my.csv", tmp_path / "out"
    path.write_text(
        "prompt,correct,incorrect,label\n"
        "When Mary and John went to the park John gave a ball to,Mary,John,one\n"
        "When Adam and Claire met Adam gave a ring to,Claire,Adam,two\n"
    )
    code, printed, _ = run("attribute", "headscope-demo", "--task", path, "--top", 2, "--out", out, "--no-progress")
    assert code == 0
    model = HookedTransformer.from_pretrained("headscope-demo")
    wanted = attribute(model, Task.read(path, model.tokenizer), progress=False)
    heading, *rows = str(wanted.top(20)).splitlines()
    assert "\n".join(["", heading, *rows[:2], "...", *rows[-2:], "", str(wanted.top_neurons(2)), ""]) in printed
    found = Attribution.load(out / "result.safetensors")
    assert torch.equal(found.components, wanted.components)
    assert sorted(each.name for each in out.iterdir()) == [
        "attribution.html", "components.parquet", "result.safetensors", "states.parquet",
    ]  # fmt: skip
