"""The same mean over the same data comes out the same, with the same error, whichever analysis takes it."""

import math
import re
from pathlib import Path

import pytest
import torch
from report_pages import Page
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.circuits.circuit import find_circuit
from headscope.analysis.core.stats import Estimate, estimate, estimates, threshold
from headscope.analysis.heads.scores import scored_tokens
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.lens.calibration import measure_calibration
from headscope.analysis.lens.loss import next_token_loss, predict_next_tokens
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.prompts.task import Task
from headscope.cli import main
from headscope.data.ioi import IOIDataset
from headscope.report import token_rows, write_report

TEXTS = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "Then, Tom and Anna had a lot of fun at the park. Anna gave a ring to Tom.",
    "Bob saw a dog.",
    "After Jane and Paul went to the house, Paul decided to give a book to Jane.",
]


@pytest.fixture(scope="module")
def demo() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def padded(demo: HookedTransformer) -> Tensor:
    """Rows of several lengths that begin with BOS."""
    return demo.to_tokens(TEXTS * 3, prepend_bos=True, padding_side="right")


def by_hand(model: HookedTransformer, tokens: Tensor) -> Tensor:
    """Losses from the logits; NaN where BOS predicts, and where padding predicts or is predicted."""
    mask = model.attention_mask(tokens)
    assert mask is not None and not bool(mask.all())
    with torch.no_grad():
        log_probs = model(tokens, attention_mask=mask).double().log_softmax(-1)[:, :-1]
    losses = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
    losses[~(mask[:, 1:] & mask[:, :-1])] = math.nan
    losses[:, 0] = math.nan
    return losses


def test_mean_loss_counts_the_same_positions(demo: HookedTransformer, padded: Tensor) -> None:
    wanted = estimate(by_hand(demo, padded))
    batches = [padded[:5], padded[5:]]
    for data in (padded, batches):
        loss = next_token_loss(demo, data, progress=False)
        assert estimate(loss).n == wanted.n
        assert (estimate(loss).value, estimate(loss).error) == pytest.approx((wanted.value, wanted.error), rel=1e-5)
    ablation = ablate_heads(demo, padded, heads=["0.0"], effects=["direct"], progress=False)
    found = estimate(ablation.loss)
    assert (found.value, found.error, found.n) == pytest.approx((wanted.value, wanted.error, wanted.n), rel=1e-5)
    assert torch.equal(ablation.loss.isnan(), next_token_loss(demo, padded, progress=False).isnan())
    assert float(ablation.mean().loss) == pytest.approx(wanted.value, rel=1e-5)
    calibration = measure_calibration(demo, padded, heads=False, progress=False)
    assert calibration.info.n_positions == ablation.info.n_positions == wanted.n
    # Asked for, BOS counts in each of them.
    with_bos = next_token_loss(demo, padded, include_bos=True, progress=False)
    ablation = ablate_heads(demo, padded, heads=["0.0"], effects=["direct"], include_bos=True, progress=False)
    assert estimate(with_bos).n == wanted.n + len(padded) == ablation.info.n_positions
    assert estimate(ablation.loss).value == pytest.approx(estimate(with_bos).value, rel=1e-5)
    assert estimate(with_bos).value != pytest.approx(wanted.value, rel=1e-3)


def test_predictions_that_do_not_count_are_marked(demo: HookedTransformer, padded: Tensor) -> None:
    found = predict_next_tokens(demo, padded, k=2, progress=False)
    left_out = by_hand(demo, padded).isnan()
    assert torch.equal(found.rank < 0, left_out) and torch.equal(found.top_probs.isnan().all(-1), left_out)


def test_ablation_has_one_error_in_every_place(
    demo: HookedTransformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Per position, as means, in two processes' batches, on the command line and in the report."""
    text = "\n\n".join(TEXTS * 20)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    written = write_report(demo, [text], tmp_path / "out", seq_len=64, ablation_tokens=1024, task=None, progress=False)
    words = Page(written.page.read_text(encoding="utf-8")).words
    options = "--seq-len 64 --value mean --effect patched --top 20 --no-progress"
    with pytest.raises(SystemExit, match="^0$"):
        main(["ablate", "headscope-demo", "--text", str(tmp_path / "text.txt"), *options.split()])
    printed = capsys.readouterr().out

    tokens = token_rows(demo, [text], max_tokens=1024, seq_len=64)
    assert len(tokens) > 8
    every = ablate_heads(demo, tokens, values=["mean"], effects=["patched"], progress=False)
    means = ablate_heads(
        demo, [tokens[:3], tokens[3:]], values=["mean"], effects=["patched"], reduce="mean", progress=False
    )
    torch.testing.assert_close(means.loss_diff_error, every.loss_diff_error, rtol=1e-5, atol=0)
    plain = estimates(every.loss_diff)
    torch.testing.assert_close(every.loss_diff_error.double(), plain.errors, rtol=1e-5, atol=0)
    for at, label in enumerate(every.component_labels):
        each = plain[0, 0, at]
        shown = re.search(rf"^ *{re.escape(label)} +(\S+) ± (\S+)$", printed, re.MULTILINE)
        assert shown is not None, label
        # A ranking shows three digits of the error, and the value to as many places.
        assert float(shown[2]) == pytest.approx(each.error, rel=5e-3)
        assert float(shown[1]) == pytest.approx(each.value, abs=5e-3 * each.error)
        assert f"{label}{each.value:+.3f} ± {each.error:.3f}" in words, label
    first = every.top(1)[0]
    assert first.error == float(every.loss_diff_error[0, 0, every.component_labels.index(first.label)])
    loss = estimate(predict_next_tokens(demo, token_rows(demo, [text], seq_len=64), progress=False).loss)
    assert f"mean loss of {loss.value:.3f} ± {loss.error:.3f} nats" in words


def test_prompts_have_one_error_in_every_place(demo: HookedTransformer) -> None:
    task = Task.from_ioi(IOIDataset("mixed", 16, demo.tokenizer, prepend_bos=True, seed=1), "ABB->ABA, BAB->BAA")
    swept = path_patch_sweep(
        demo, task, receivers="final", senders="components", direction="noising", scale="metric", progress=False
    )
    wanted = estimates(-swept.per_prompt.flatten(0, -2)[..., None])
    plain = swept.per_prompt.double().flatten(0, -2).std(-1) / 16**0.5
    torch.testing.assert_close(wanted.errors, plain)
    circuit = find_circuit(demo, task, max_receivers=0, progress=False)
    strong = wanted.values.abs() >= circuit.threshold
    kept = strong & (wanted.values.abs() > threshold(len(plain), 15.0) * plain)
    assert 0 < int(kept.sum()) == len(circuit.effects)
    found = {circuit.nodes[sender]: at for at, (sender, _) in enumerate(circuit.edges.tolist())}
    for at in kept.nonzero()[:, 0].tolist():
        edge = found[swept.sender_labels[at]]
        mean = Estimate(float(circuit.effects[edge]), float(circuit.errors[edge]), 16)
        assert (mean.value, mean.error) == pytest.approx((wanted[at].value, wanted[at].error), rel=1e-5)
    # From few prompts fewer paths are sure.
    assert len(find_circuit(demo, task[:3], max_receivers=0, progress=False).effects) < len(circuit.effects)


def test_kinds_of_heads_have_the_error_of_their_rows_and_positions(demo: HookedTransformer) -> None:
    """The previous-token score less its control, from the patterns of each row."""
    found = detect_heads(demo, n_sequences=9, length=12, progress=False)
    tokens = scored_tokens(demo, 9, 12, 0)
    _, cache = demo.run_with_cache(tokens)
    n_keys = torch.arange(2, 25)
    # Positions count by themselves up to the sixteenth, and then a few together.
    place = [min(at, 16) + int(max(0.0, 8 * math.log2(at / 16))) for at in range(2, 25)]
    together = torch.tensor([[float(one == other) for other in sorted(set(place))] for one in place])
    for layer, head in ((0, 0), (2, 1)):  # of which the even spread is the larger control
        paid = cache["pattern", layer][:, head].diagonal(-1, 1, 2)[:, 1:]  # not to BOS
        margin = paid - (1 - paid) / n_keys
        n_places = together.shape[1]
        away = (paid - paid.mean()) @ together
        between = away.sum(0).square().sum() * n_places / (n_places - 1) - away.square().sum()
        error = math.sqrt(estimate(margin).error ** 2 + max(0.0, float(between)) / paid.numel() ** 2)
        assert float(found.errors[0, layer, head]) == pytest.approx(error, rel=1e-3)
        assert float((found.scores - found.controls)[0, layer, head]) == pytest.approx(estimate(margin).value, rel=1e-4)
