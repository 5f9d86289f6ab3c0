"""Training on toy tasks: numbers against a plain loop, runs that are killed and resumed, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from headscope import HookedTransformer
from headscope.data.tasks import InductionDataset, SkipTrigramDataset
from headscope.errors import CheckpointError, InvalidInputError, NotFiniteError, StorageError, UnknownNameError
from headscope.training import toy_configs
from headscope.training.toy import TrainConfig, evaluate_task, log_spaced_steps, sample_order, train
from headscope.training.toy_checkpoint import load_toy_model, snapshot_steps
from headscope.training.toy_result import TrainingResult

PLAIN = TrainConfig(
    epochs=3,
    batch_size=64,
    optimizer="adam",
    lr=0.01,
    warmup=0,
    schedule="constant",
    weight_decay=0.0,
    betas=(0.9, 0.999),
    max_grad_norm=None,
)


def new_model(**fields) -> HookedTransformer:
    return toy_configs.one_hot(HookedTransformer(toy_configs.skip_trigram(device="cpu", **fields)))


def equal_results(one: TrainingResult, other: TrainingResult) -> bool:
    for name in ("train", "train_epochs", "validation"):
        for key, values in vars(getattr(one, name)).items():
            torch.testing.assert_close(values, vars(getattr(other, name))[key], rtol=0, atol=0, equal_nan=True)
    return torch.equal(one.lr, other.lr)


def equal_weights(one: HookedTransformer, other: HookedTransformer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def plain_loop(model: HookedTransformer, data: SkipTrigramDataset, cfg: TrainConfig) -> list[dict[str, float]]:
    """Means over each epoch's samples, by torch's own optimizer and a loop over samples."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=cfg.lr, betas=cfg.betas)
    curve = []
    for epoch in range(cfg.epochs or 0):
        sums = {"all": [0.0, 0.0, 0], "signal": [0.0, 0.0, 0], "noise": [0.0, 0.0, 0]}
        order = sample_order(len(data), epoch, cfg.seed)
        for start in range(0, len(order), cfg.batch_size):
            batch = order[start : start + cfg.batch_size]
            logits = model(data.tokens[batch])[:, -1]
            F.cross_entropy(logits, data.labels[batch, 0]).backward()
            optimizer.step()
            optimizer.zero_grad()
            for row, index in zip(logits.detach(), batch.tolist(), strict=True):
                label = int(data.labels[index, 0])
                for kind in ("all", "signal" if data.signal[index, 0] else "noise"):
                    sums[kind][0] -= float(row.log_softmax(-1)[label])
                    sums[kind][1] += int(row.argmax()) == label
                    sums[kind][2] += 1
        curve.append({kind: (loss / n, right / n) for kind, (loss, right, n) in sums.items()})
    return curve


@pytest.mark.parametrize("prompt_length", [3, 6])  # fewer distinct prompts than samples in a batch, and more
def test_the_curves_are_those_of_a_plain_loop(prompt_length: int) -> None:
    data = SkipTrigramDataset(330, prob=2, prompt_length=prompt_length, seed=1)
    cfg = replace(PLAIN, batch_size=150)
    model, other = new_model(), new_model()
    expected = plain_loop(other, data, cfg)
    result = train(model, data, cfg, progress=False)
    assert result.train_epochs.step.tolist() == [3, 6, 9] and len(result.train) == 9
    for point, means in enumerate(expected):
        found = result.train_epochs.at(point)
        assert (found.loss, found.accuracy) == pytest.approx(means["all"], abs=1e-5)
        assert (found.signal_loss, found.signal_accuracy) == pytest.approx(means["signal"], abs=1e-5)
        assert (found.noise_loss, found.noise_accuracy) == pytest.approx(means["noise"], abs=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if not name.endswith("b_K"):  # it moves all scores of a query alike: its gradient is rounding, scaled by Adam
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert not model.training and result.seconds > 0


def test_rows_too_long_for_one_number_train_as_well() -> None:
    data = SkipTrigramDataset(60, prompt_length=20, seed=1)
    model, other = new_model(n_ctx=20), new_model(n_ctx=20)
    cfg = replace(PLAIN, epochs=1, batch_size=20)
    result = train(model, data, cfg, progress=False)
    assert result.train_epochs.at(0).loss == pytest.approx(plain_loop(other, data, cfg)[0]["all"][0], abs=1e-5)


def test_validation_is_measured_when_asked(tmp_path: Path) -> None:
    data = SkipTrigramDataset(300, seed=1)
    validation = data.held_out(100)
    model = new_model()
    before = evaluate_task(model, validation)
    result = train(model, data, replace(PLAIN, evaluate_every=4), validation=validation, progress=False)
    assert result.validation is not None
    assert result.validation.step.tolist() == [0, 4, 8, 12, 15]
    assert result.validation.at(0) == before
    assert result.validation.at(-1) == result.final == evaluate_task(model, validation)
    # In parts or at once.
    assert evaluate_task(model, validation, batch_size=7).loss == pytest.approx(result.final.loss, rel=1e-6)
    text = str(result)
    assert "signal" in text and f"{result.final.signal_accuracy:.2%}" in text
    frame = result.validation.to_frame()
    assert list(frame.columns)[:3] == ["step", "loss", "accuracy"] and len(frame) == 5


def test_every_answer_of_a_row_counts() -> None:
    data = InductionDataset(60, length=8, d_vocab=9, shortest=2, seed=1)
    model = HookedTransformer(toy_configs.induction(9, 8, d_model=8, n_heads=2, d_head=4, device="cpu"))
    logits = model(data.tokens)[:, :-1].detach()
    losses = F.cross_entropy(logits.flatten(0, 1), data.tokens[:, 1:].flatten(), reduction="none").view(60, 7)
    result = train(model, data, replace(PLAIN, epochs=1, batch_size=60), progress=False)
    first = result.train.at(0)
    assert first.loss == pytest.approx(float(losses.mean()), abs=1e-5)
    assert first.signal_loss == pytest.approx(float(losses[data.signal].mean()), abs=1e-5)
    assert first.noise_loss == pytest.approx(float(losses[~data.signal].mean()), abs=1e-5)


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("kill_at", [1, 7, 10, 14])
def test_a_run_that_stopped_goes_on_to_the_same_numbers(tmp_path: Path, kill_at: int) -> None:
    data = SkipTrigramDataset(300, seed=1)
    cfg = replace(PLAIN, optimizer="adamw", weight_decay=0.1, warmup=4, schedule="cosine", evaluate_every=2)
    whole = new_model()
    expected = train(whole, data, cfg, validation=data.held_out(50), progress=False)

    def stop(step: int) -> None:
        if step == kill_at:
            raise Killed

    options = {"validation": data.held_out(50), "out": tmp_path / "run", "progress": False}
    with pytest.raises(Killed):
        train(new_model(), data, cfg, checkpoint_seconds=0.0, on_step=stop, **options)
    model = new_model()
    seen: list[int] = []
    result = train(model, data, cfg, resume=True, on_step=seen.append, **options)
    assert seen == list(range(kill_at + 1, 16))
    assert equal_results(result, expected) and equal_weights(model, whole)
    # A finished run is read back.
    again = new_model()
    assert equal_results(train(again, data, cfg, resume=True, on_step=seen.append, **options), expected)
    assert equal_weights(again, whole) and seen[-1] == 15
    loaded = load_toy_model(tmp_path / "run", device="cpu")
    assert equal_weights(loaded, whole) and loaded.cfg.model_name == whole.cfg.model_name
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in whole.parameters()]


CHILD = """
import sys, time
import torch
torch.set_num_threads(1)
from test_toy import PLAIN, SkipTrigramDataset, new_model, replace, train
train(new_model(), SkipTrigramDataset(2000, seed=1), replace(PLAIN, epochs=10), out=sys.argv[1], progress=False,
      checkpoint_seconds=0.0, on_step=lambda step: time.sleep(0.01))
"""


def test_kill_9_in_mid_epoch_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    data, cfg = SkipTrigramDataset(2000, seed=1), replace(PLAIN, epochs=10)
    model, whole = new_model(), new_model()
    taken: list[int] = []
    result = train(model, data, cfg, out=folder, resume=True, progress=False, on_step=taken.append)
    assert 1 < taken[0] < 320, "the child was to die on its way"
    expected = train(whole, data, cfg, progress=False)
    assert torch.equal(result.train.loss, expected.train.loss) and equal_weights(model, whole)


def test_snapshots_keep_the_weights_of_their_step(tmp_path: Path) -> None:
    data, kept = SkipTrigramDataset(300, seed=1), {}
    model = new_model()
    kept[0] = {name: weight.clone() for name, weight in model.state_dict().items()}

    def keep(step: int) -> None:
        kept[step] = {name: weight.clone() for name, weight in model.state_dict().items()}

    steps = log_spaced_steps(15, 5)
    train(model, data, PLAIN, out=tmp_path, snapshots=steps, progress=False, on_step=keep)
    assert snapshot_steps(tmp_path) == steps and {0, 1, 15} <= set(steps)
    for step in steps:
        loaded = load_toy_model(tmp_path, step=step, device="cpu").state_dict()
        assert all(torch.equal(loaded[name], weight) for name, weight in kept[step].items())
    with pytest.raises(CheckpointError, match="its snapshots are: 0, 1"):
        load_toy_model(tmp_path, step=13)


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    data = SkipTrigramDataset(100, seed=1)
    train(new_model(), data, PLAIN, out=tmp_path, progress=False)
    with pytest.raises(InvalidInputError, match="resume=True"):
        train(new_model(), data, PLAIN, out=tmp_path, progress=False)
    with pytest.raises(InvalidInputError, match=r"training.lr is 0.01 there and 0.02 here"):
        train(new_model(), data, replace(PLAIN, lr=0.02), out=tmp_path, resume=True, progress=False)
    with pytest.raises(InvalidInputError, match=r"data.seed is 1 there and 2 here"):
        train(new_model(), SkipTrigramDataset(100, seed=2), PLAIN, out=tmp_path, resume=True, progress=False)
    with pytest.raises(InvalidInputError, match=r"model.config.n_heads is 3 there and 2 here"):
        train(new_model(n_heads=2), data, PLAIN, out=tmp_path, resume=True, progress=False)
    written = json.loads((tmp_path / "training.json").read_text())
    assert written["data"]["seed"] == 1 and written["training"]["lr"] == 0.01


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    data = SkipTrigramDataset(100, seed=1)
    train(new_model(), data, PLAIN, out=tmp_path, progress=False)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        train(new_model(), data, PLAIN, out=tmp_path, resume=True, progress=False)
    with pytest.raises(CheckpointError, match="not a readable"):
        load_toy_model(tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headscope.training.toy_checkpoint.write_bytes", full)
    seen: list[int] = []
    with pytest.raises(StorageError, match="No space left"):
        train(new_model(), SkipTrigramDataset(50), PLAIN, out=tmp_path, progress=False, on_step=seen.append)
    assert seen == []


def test_the_model_goes_where_the_config_says() -> None:
    model = new_model()
    threads = torch.get_num_threads()
    cfg = replace(PLAIN, dtype="float64", device="cpu", threads=1, epochs=None, steps=3)
    train(model, SkipTrigramDataset(100), cfg, progress=False)
    assert model.W_E.dtype == torch.float64 and torch.get_num_threads() == threads


def test_a_float64_model_is_measured_in_float64() -> None:
    data = SkipTrigramDataset(80, seed=1)
    cfg = replace(PLAIN, epochs=2, batch_size=30, dtype="float64")
    model, other = new_model(), new_model().double()
    expected = plain_loop(other, data, cfg)
    result = train(model, data, cfg, validation=data.held_out(50), progress=False)
    for point, means in enumerate(expected):
        found = result.train_epochs.at(point)
        # float32's rounding is 1e-7 of a loss of 2; Adam's is the same on both sides.
        assert found.signal_loss == pytest.approx(means["signal"][0], abs=1e-12)
        assert found.noise_loss == pytest.approx(means["noise"][0], abs=1e-12)
    held_out = data.held_out(50)
    loss = F.cross_entropy(model(held_out.tokens)[:, -1].detach(), held_out.labels[:, 0])
    assert result.final.loss == pytest.approx(float(loss), abs=1e-13)


def test_weights_of_a_nan_stop_training() -> None:
    model = new_model()
    with torch.no_grad():
        model.blocks[0].attn.W_V[0, 7, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="step 1"):
        train(model, SkipTrigramDataset(100), PLAIN, progress=False)
    assert not model.training


def test_the_progress_bar_tells_how_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    data = SkipTrigramDataset(300, seed=1)
    result = train(new_model(), data, PLAIN, validation=data.held_out(50))
    printed = capsys.readouterr().err
    assert "15/15" in printed and f"validation {result.final.signal_accuracy:.1%}" in printed
    assert "loss" in printed and "signal" in printed


COMPILED = """
from dataclasses import replace
import torch
from headscope.training.toy import train
from headscope.training.toy_tasks import skip_trigram_task
curves = []
for compile in (False, True):
    task = skip_trigram_task(size=2000, device="cpu")
    cfg = replace(task.training, epochs=None, steps=5, compile=compile)
    curves.append(train(task.model, task.data, cfg, progress=False).train.loss)
torch.testing.assert_close(*curves, rtol=0, atol=1e-5)
"""


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_curve() -> None:
    # In a process of its own: torch.compile cannot trace the type checks that tests run under.
    subprocess.run(
        [sys.executable, "-c", COMPILED], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": None}, "give either epochs or steps"),
        ({"steps": 4}, "give either epochs or steps"),
        ({"batch_size": 0}, "batch_size must be at least .*; got 0"),
        ({"schedule": "step"}, "schedule must be one of 'cosine', 'linear', 'constant'; got 'step'"),
        ({"optimizer": "sgd"}, "optimizer must be one of .*; got 'sgd'"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TrainConfig.from_dict({"epochs": 1, **fields})


def test_a_config_comes_from_a_file() -> None:
    cfg = TrainConfig.from_dict(json.loads('{"epochs": 2, "betas": [0.9, 0.99], "lr": 0.1}'))
    assert cfg == TrainConfig(epochs=2, betas=(0.9, 0.99), lr=0.1)
    with pytest.raises(UnknownNameError, match="'epochs'"):
        TrainConfig.from_dict({"epoch": 2})


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_schedules(schedule, middle: float, end: float) -> None:
    cfg = TrainConfig(steps=110, lr=2.0, warmup=10, final_lr=0.1, schedule=schedule)
    assert cfg.rate(4, 110) == pytest.approx(1.0)
    assert cfg.rate(60, 110) == pytest.approx(2.0 * middle)
    assert cfg.rate(110, 110) == pytest.approx(2.0 * end)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="32 tokens; the model has 11"):
        train(new_model(), InductionDataset(5), PLAIN, progress=False)
    long = HookedTransformer(toy_configs.induction(n_ctx=10, device="cpu"))
    with pytest.raises(InvalidInputError, match="context is 10"):
        evaluate_task(long, InductionDataset(5))
    with pytest.raises(InvalidInputError, match="snapshots need a folder"):
        train(new_model(), SkipTrigramDataset(5), PLAIN, snapshots=[1], progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="is a file"):
        train(new_model(), SkipTrigramDataset(5), PLAIN, out=tmp_path / "file", progress=False)
