"""A run's snapshots measured one after the other: each number as it comes out of that snapshot by itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headscope.analysis import head_scores, measure_entropy
from headscope.data.tasks import PalindromeDataset
from headscope.errors import InvalidInputError
from headscope.training.toy import TrainConfig, evaluate_task, train
from headscope.training.toy_checkpoint import load_toy_model
from headscope.training.toy_dynamics import TrainingDynamics, training_dynamics
from headscope.training.toy_study import head_logits
from headscope.training.toy_tasks import ToyTask, induction_task, palindrome_task, skip_trigram_task

STEPS = [0, 2, 6]


def trained(task: ToyTask, folder: Path) -> ToyTask:
    cfg = replace(task.training, epochs=None, steps=6, batch_size=50, warmup=0)
    train(task.model, task.data, cfg, out=folder, snapshots=STEPS, progress=False)
    return task


def test_each_number_is_that_of_its_snapshot(tmp_path: Path) -> None:
    task = trained(skip_trigram_task(size=400, device="cpu"), tmp_path)
    data = task.validation
    along = training_dynamics(tmp_path, data, n_rows=30, n_prompts=3, device="cpu", progress=False)
    settled = data.signal[:, -1].nonzero()[:3, 0]
    assert torch.equal(along.tokens, data.tokens[settled]) and torch.equal(along.labels, data.labels[settled, 0])
    assert along.steps.tolist() == STEPS and along.info.n_sequences == 30
    for index, step in enumerate(STEPS):
        model = load_toy_model(tmp_path, step=step, device="cpu")
        metrics = evaluate_task(model, data)
        assert float(along.loss[index]) == pytest.approx(metrics.signal_loss, rel=1e-6)
        assert float(along.accuracy[index]) == pytest.approx(metrics.signal_accuracy)
        # The prediction's entropy where the answer is read, by its definition; the last position alone answers.
        logits = model(data.tokens[:30])[:, -1].detach().double().log_softmax(-1)
        assert float(along.resid[index, -1]) == pytest.approx(float(-(logits.exp() * logits).sum(-1).mean()), abs=1e-5)
        whole = measure_entropy(model, data.tokens[:30], reduce="none", progress=False)
        for name in ("resid", "diff", "marginal"):
            torch.testing.assert_close(
                getattr(along, name)[index], getattr(whole, name)[..., -1].mean(-1), rtol=0, atol=1e-6
            )
        scores = head_scores(model, data.tokens[:30], progress=False)
        assert torch.equal(along.previous_token[index], scores.previous_token)
        parts = head_logits(model, along.tokens).heads  # [prompt, layer, head, d_vocab]
        torch.testing.assert_close(along.head_logits[index], parts.movedim(0, 2), rtol=0, atol=1e-6)
        for prompt, label in enumerate(along.labels.tolist()):
            parts[prompt] -= parts[prompt].mean(-1, keepdim=True)
            parts[prompt, ..., 0] = parts[prompt, ..., label]
        torch.testing.assert_close(along.answer_logits[index], parts[..., 0].mean(0), rtol=0, atol=1e-6)
    assert along.state_labels == ("0_pre", "final") and along.component_labels == ("0", "1", "2")


def test_with_norms_and_mlps_parts_are_what_the_final_norm_makes_of_them(tmp_path: Path) -> None:
    task = trained(palindrome_task(size=200, device="cpu"), tmp_path)
    along = training_dynamics(tmp_path, task.validation, n_rows=20, n_prompts=4, device="cpu", progress=False)
    assert along.component_labels[-1] == "MLP" and along.diff.shape == (3, 2, 5)
    model = load_toy_model(tmp_path, step=6, device="cpu")
    _, cache = model.run_with_cache(along.tokens)
    for layer, head in ((0, 1), (1, 3)):
        written = cache["z", layer][:, -1, head] @ model.W_O[layer, head]
        centered = written - written.mean(-1, keepdim=True)
        expected = centered / cache["ln_final.hook_scale"][:, -1] * model.ln_final.w @ model.W_U
        torch.testing.assert_close(along.head_logits[-1, layer, head], expected, rtol=0, atol=1e-5)


def test_every_answer_of_a_row_counts_for_entropy_and_settled_ones_for_loss(tmp_path: Path) -> None:
    task = trained(induction_task(size=100, length=12, d_vocab=16, device="cpu"), tmp_path)
    data = task.validation
    along = training_dynamics(tmp_path, data, n_rows=25, device="cpu", progress=False)
    model = load_toy_model(tmp_path, step=2, device="cpu")
    logits = model(data.tokens[:25])[:, :-1].detach().double().log_softmax(-1)
    assert float(along.resid[1, -1]) == pytest.approx(float(-(logits.exp() * logits).sum(-1).mean()), abs=1e-5)
    assert float(along.induction[1].max()) > 0


def test_it_is_saved_printed_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = trained(skip_trigram_task(size=400, device="cpu"), tmp_path)
    along = training_dynamics(tmp_path, task.validation, n_rows=30)
    assert "training dynamics" in capsys.readouterr().err
    again = TrainingDynamics.load(along.save(tmp_path / "dynamics.safetensors"))
    assert torch.equal(again.head_logits, along.head_logits) and again.state_labels == along.state_labels
    assert again.info.options["measures"] == ["entropy", "head_scores", "head_logits"]
    assert "3 checkpoints, steps 0 to 6" in str(along) and "final entropy" in str(along)
    frame = along.to_frame()
    assert frame["step"].tolist() == STEPS
    assert frame["entropy final"].tolist() == pytest.approx(along.resid[:, -1].tolist())
    assert frame["answer_logits 0.2"].tolist() == pytest.approx(along.answer_logits[:, 0, 2].tolist())


def test_what_is_asked_for_is_measured_and_nothing_else(tmp_path: Path) -> None:
    task = trained(skip_trigram_task(size=400, device="cpu"), tmp_path)
    along = training_dynamics(
        tmp_path, task.validation, measures=["head_scores"], steps=[2], device="cpu", progress=False
    )
    assert along.resid is along.head_logits is along.answer_logits is None and along.induction.shape == (1, 1, 3)
    assert TrainingDynamics.load(along.save(tmp_path / "one.safetensors")).resid is None
    assert "final entropy" not in str(along) and "diff 0.0" not in along.to_frame()


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    task = skip_trigram_task(size=100, device="cpu")
    train(task.model, task.data, TrainConfig(steps=2), out=tmp_path / "none", progress=False)
    with pytest.raises(InvalidInputError, match="has no snapshots"):
        training_dynamics(tmp_path / "none", task.data)
    with pytest.raises(InvalidInputError, match="n_rows must be at least .*; got 0"):
        training_dynamics(tmp_path, task.data, n_rows=0)
    train(task.model, task.data, TrainConfig(steps=2), out=tmp_path / "run", snapshots=[0, 2], progress=False)
    noise = replace_signal(PalindromeDataset(10))
    with pytest.raises(InvalidInputError, match="no row of data"):
        training_dynamics(tmp_path / "run", noise)


def replace_signal(data: PalindromeDataset) -> PalindromeDataset:
    """The same with nothing settled."""
    data.signal = torch.zeros_like(data.signal)
    return data
