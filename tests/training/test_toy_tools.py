"""Toy models have no tokenizer, norm, MLP or positions as the case may be; what works on a model works on them.

Each tool's number is held against one that the model's own logits give.
"""

from typing import Any

import pytest
import torch

from headscope.analysis import (
    ablate_heads,
    activation_patch,
    attribute,
    attribution_patch,
    copy_suppression_preserving_ablation,
    dynamic_ov,
    head_scores,
    logit_lens,
    measure_calibration,
    measure_entropy,
    next_token_loss,
    path_patch,
    path_patch_sweep,
    weights_circuit_ranks,
)
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.prompts.task import Task
from headscope.training.toy import TrainConfig, train
from headscope.training.toy_tasks import ToyTask, toy_task
from headscope.views.attention import attention_heads
from headscope.views.figures.ablation import ablation_by_head
from headscope.views.figures.attribution import attribution_by_component
from headscope.views.figures.calibration import calibration_curve
from headscope.views.figures.entropy import entropy_by_head, entropy_by_layer
from headscope.views.figures.head_scores import head_score_maps
from headscope.views.figures.head_types import head_type_maps
from headscope.views.figures.patching import patching_by_head, patching_by_position

TASKS = {
    "skip-trigram": {"size": 200},
    "induction": {"size": 60, "length": 12, "d_vocab": 16},
    "modular-addition": {"p": 7, "d_model": 16, "d_head": 4, "d_mlp": 16},
    "palindrome": {"size": 60},
}
ROWS = 12


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> ToyTask:
    made = toy_task(request.param, device="cpu", **TASKS[request.param])
    train(made.model, made.data, TrainConfig(steps=5, batch_size=40, warmup=0), progress=False)
    return made


def asked(task: ToyTask) -> Task:
    """Some prompts with their answer and a wrong one; corrupted, each is the one before it."""
    data, end = task.data, task.data.answer_positions.stop
    tokens, right = data.tokens[:ROWS, :end], data.labels[:ROWS, -1:]
    return Task(
        clean_tokens=tokens,
        correct=right,
        incorrect=(right + 1) % data.d_vocab,
        attention_mask=torch.ones_like(tokens, dtype=torch.bool),
        positions=torch.full((ROWS,), end - 1),
        corrupted_tokens=tokens.roll(1, 0),
        prompts=tuple(" ".join(map(str, row)) for row in tokens.tolist()),
        str_tokens=tuple(tuple(map(str, row)) for row in tokens.tolist()),
        answers=tuple((str(label), str(label + 1)) for label in right[:, 0].tolist()),
        labels=("",) * ROWS,
    )


def assert_drawn(values: Any, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(values).float(), wanted.float(), rtol=0, atol=1e-6)


@torch.no_grad()
def test_measures_agree_with_the_models_logits(task: ToyTask) -> None:
    model, tokens = task.model, task.data.tokens[:20]
    logits = model(tokens)
    log_probs = logits.double().log_softmax(-1)
    entropy = measure_entropy(model, tokens, include_bos=True, progress=False)
    expected = float(-(log_probs.exp() * log_probs).sum(-1).mean())
    assert float(entropy.resid[-1]) == pytest.approx(expected, abs=1e-5)
    loss = -log_probs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    measured = next_token_loss(model, tokens, progress=False).double()
    torch.testing.assert_close(measured, loss, rtol=0, atol=1e-5)
    ablation = ablate_heads(model, tokens, values=["mean"], include_bos=True, progress=False)
    assert float(ablation.mean().loss) == pytest.approx(float(loss.mean()), abs=1e-5)
    _, cache = model.run_with_cache(tokens)
    scores = head_scores(model, tokens, include_bos=True, progress=False)
    for layer in range(model.cfg.n_layers):
        before = cache["pattern", layer].diagonal(-1, 2, 3).mean((0, 2))
        torch.testing.assert_close(scores.previous_token[layer], before, rtol=0, atol=1e-5)
    calibration = measure_calibration(model, tokens, include_bos=True, progress=False)
    assert calibration.info.n_positions == loss.numel()
    lens = logit_lens(model, tokens[:2], k=3, include_bos=True, progress=False)
    torch.testing.assert_close(
        lens.entropy[-1].double().flatten(), -(log_probs.exp() * log_probs).sum(-1)[:2].flatten(), rtol=0, atol=1e-5
    )
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    assert_drawn(entropy_by_head(entropy).data[0].z, entropy.diff)
    assert_drawn(entropy_by_layer(entropy).data[0].y, entropy.resid)
    assert_drawn(head_score_maps(scores).data[0].z, scores.previous_token)
    increase = ablation.mean().loss_diff[0, 0].reshape(n_layers, -1)
    assert_drawn(ablation_by_head(ablation).data[0].z, increase[:, :n_heads])
    assert [trace.name for trace in calibration_curve(calibration).data] == ["calibrated", "95 % band", "model"]
    strings = [str(token) for token in tokens[0].tolist()]
    assert f'"{strings[0]}"' in str(attention_heads(cache["pattern", 0][0], strings))


def test_patching_agrees_with_the_models_logits(task: ToyTask) -> None:
    model, asking = task.model, asked(task)
    expected = {}
    with torch.no_grad():
        for name, tokens in (("clean", asking.clean_tokens), ("corrupted", asking.corrupted_tokens)):
            last = model(tokens)[:, -1]
            expected[name] = float((last.gather(1, asking.correct) - last.gather(1, asking.incorrect)).mean())
    whole_run = model(asking.clean_tokens).detach()
    assert float(asking.logit_difference(whole_run)) == pytest.approx(expected["clean"], abs=1e-5)
    patched = activation_patch(model, asking, ["resid_pre", "z", "pattern"], progress=False)
    assert float(patched.clean) == pytest.approx(expected["clean"], abs=1e-5)
    assert float(patched.corrupted) == pytest.approx(expected["corrupted"], abs=1e-5)
    # All positions of the first state but the last are read by heads alone; the whole state is the whole run.
    whole = activation_patch(model, asking, "resid_pre", by_position=False, progress=False)
    assert float(whole["resid_pre"][0]) == pytest.approx(1.0, abs=1e-4)
    everything = path_patch(model, asking, senders="embed", receivers="final", direction="noising")
    heads = path_patch_sweep(model, asking, receivers="final", progress=False)
    assert heads.values.shape == (model.cfg.n_layers, model.cfg.n_heads) and heads.values.isfinite().all()
    assert torch.tensor(float(everything)).isfinite()
    attributed = attribution_patch(model, asking, sites=("resid_pre", "z"), progress=False)
    assert attributed.info.n_positions > 0
    answers = torch.cat([asking.correct, asking.incorrect], dim=1)
    found = attribute(model, asking.clean_tokens, answer_tokens=answers, progress=False)
    assert float(found.logit_difference.mean()) == pytest.approx(expected["clean"], abs=1e-4)
    assert_drawn(patching_by_position(patched).data[0].z, patched["resid_pre"])
    assert_drawn(patching_by_head(patched).data[0].z, patched["z"])
    parts = torch.tensor(attribution_by_component(found).data[0].y)
    assert float(parts.sum()) == pytest.approx(expected["clean"], abs=1e-4)


@torch.no_grad()
def test_circuits_and_copy_suppression(task: ToyTask) -> None:
    model, tokens = task.model, task.data.tokens[:20]
    ranks = weights_circuit_ranks(model, k=3, progress=False)
    assert ranks.ov.shape == (model.cfg.n_layers * model.cfg.n_heads, model.cfg.d_vocab)
    assert dynamic_ov(model, tokens[:4], k=3, threshold=0.0, include_bos=True, progress=False).info.n_positions > 0
    kept = copy_suppression_preserving_ablation(model, tokens, heads=[(0, 0)], include_bos=True, progress=False)
    assert kept.info.n_positions > 0
    if model.cfg.n_ctx >= 5:
        types = detect_heads(model, progress=False)
        drawn = [torch.tensor(trace.z) for trace in head_type_maps(types).data if trace.type == "heatmap"]
        assert drawn and all(each.shape == (model.cfg.n_layers, model.cfg.n_heads) for each in drawn)
        assert all(bool((0 <= each).all() and (each <= 1).all()) for each in drawn)


@torch.no_grad()
def test_a_model_without_tokenizer_writes_token_numbers(task: ToyTask) -> None:
    tokens = task.data.tokens[:3, :2]
    for cached in (True, False):
        written = task.model.generate(
            tokens, max_new_tokens=1, do_sample=False, stop_at_eos=False, use_past_kv_cache=cached, verbose=False
        )
        assert torch.equal(written, torch.cat([tokens, task.model(tokens)[:, -1:].argmax(-1)], dim=1))
