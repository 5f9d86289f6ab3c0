"""`measure_calibration` against one head, one position and all logits at a time, in float64."""

import dataclasses
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from means import component_means
from reference import Reference
from sizes import SetBudget
from tiny import tiny_model, tiny_tokenizer, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import (
    CalibrationAccumulator,
    CalibrationOptions,
    CalibrationResult,
    measure_calibration,
)
from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.lens import calibration as calibration_module
from headscope.errors import CheckpointError, InvalidInputError, NotFiniteError
from headscope.ops.kernels.cpu_kernels import CpuKernels

MODELS: dict[str, dict[str, Any]] = {
    "LN": {},
    "LNPre, attn_only": {"normalization_type": "LNPre", "attn_only": True},
    "RMS, parallel, soft cap": {
        "normalization_type": "RMS",
        "parallel_attn_mlp": True,
        "output_logits_soft_cap": 2.0,
    },
    "no norm": {"normalization_type": None},
    "grouped": {"n_heads": 4, "n_key_value_heads": 2},
}
TOKENS = tiny_tokens(6, 10)
MASK = torch.ones_like(TOKENS)
MASK[0, 6:] = 0
MASK[2, :3] = 0
MASK[3, 1:] = 0


def measure(model: HookedTransformer, data: Any, **options: Any) -> CalibrationResult:
    return measure_calibration(model, data, progress=False, **options)


@dataclass
class Naive:
    """Of one prediction at every position: probabilities and whether they came true, `[position][k]`."""

    p: list[list[float]]
    came: list[list[bool]]

    def overconfidence(self) -> float:
        pairs = [(p, came) for ps, cs in zip(self.p, self.came, strict=True) for p, came in zip(ps, cs, strict=True)]
        excess = sum(p - came for p, came in pairs)
        return excess / (sum(p for p, _ in pairs) if excess > 0 else sum(1 - p for p, _ in pairs))

    def influence(self) -> list[float]:
        """How far the ratio moves with each position, to first order."""
        ratio = self.overconfidence()
        above = ratio > 0
        q = [sum(p if above else 1 - p for p in ps) for ps in self.p]
        d = [sum(ps) - sum(cs) for ps, cs in zip(self.p, self.came, strict=True)]
        return [(d_i - ratio * q_i) / sum(q) for d_i, q_i in zip(d, q, strict=True)]

    def bins(self, n: int) -> list[list[tuple[float, bool]]]:
        bins: list[list[tuple[float, bool]]] = [[] for _ in range(n)]
        for ps, cs in zip(self.p, self.came, strict=True):
            for p, came in zip(ps, cs, strict=True):
                bins[min(int(p * n), n - 1)].append((p, came))
        return bins


@torch.no_grad()
def naive(
    model: HookedTransformer, tokens: Tensor, *, k: int = 1, mask: Tensor | None = None, counted: Tensor | None = None
) -> list[Naive]:
    """The model's predictions, then those without each head."""
    cfg, state = model.cfg, dict(model.state_dict())
    for name in list(state):
        if "attn._" in name:  # keys and values shared by a group of heads
            shared = state.pop(name)
            state[name.replace("attn._", "attn.")] = shared.repeat_interleave(cfg.n_heads // len(shared), dim=0)
    reference = Reference(state, cfg)
    run = reference.run(tokens, mask)
    real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
    counted = real if counted is None else counted
    weights = reference.state
    final = run.acts[f"blocks.{cfg.n_layers - 1}.hook_resid_post"]
    kind = cfg.normalization_type
    scale = torch.ones_like(final[..., :1])
    if kind is not None:
        centered = final - final.mean(-1, keepdim=True) if kind.startswith("LN") else final
        scale = torch.sqrt((centered**2).mean(-1, keepdim=True) + cfg.eps)

    def logits_of(x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if kind is not None and kind.startswith("LN") else x
        x = x / scale
        x = x * weights["ln_final.w"] if kind in ("LN", "RMS") else x
        x = x + weights["ln_final.b"] if kind == "LN" else x
        logits = x @ weights["unembed.W_U"] + weights["unembed.b_U"]
        cap = cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    torch.testing.assert_close(logits_of(final)[real], run.logits[real])
    predictions = [logits_of(final)]
    for layer in range(cfg.n_layers):
        for head in range(cfg.n_heads):
            name = f"blocks.{layer}.attn."
            written = run.acts[name + "hook_z"][:, :, head] @ weights[name + "W_O"][head]
            predictions.append(logits_of(final - written + written[counted].mean(0)))
    found = []
    for logits in predictions:
        p, came = [], []
        for row in range(tokens.shape[0]):
            for pos in range(tokens.shape[1] - 1):
                if counted[row, pos] and real[row, pos + 1]:
                    probs = logits[row, pos].softmax(-1).tolist()
                    # Ties to the lower token: sorted() keeps the order of equals.
                    best = sorted(range(len(probs)), key=lambda token, probs=probs: -probs[token])[:k]
                    p.append([probs[token] for token in best])
                    came.append([token == int(tokens[row, pos + 1]) for token in best])
        found.append(Naive(p, came))
    return found


def compare(result: CalibrationResult, wanted: list[Naive], n_bins: int = 10, tolerance: float = 1e-6) -> None:
    model, *heads = wanted
    assert result.info.n_positions == len(model.p)
    curves = [(result.count, result.predicted, result.correct)]
    if result.head_count is not None:
        assert result.head_predicted is not None and result.head_correct is not None
        per_head = (result.head_count, result.head_predicted, result.head_correct)
        curves += list(zip(*(values.flatten(0, 1) for values in per_head), strict=True))
        assert len(curves) == len(wanted)
    for (count, predicted, correct), one in zip(curves, wanted, strict=False):
        bins = one.bins(n_bins)
        assert count.tolist() == [len(each) for each in bins]
        for at, each in enumerate(bins):
            if each:
                assert float(predicted[at]) == pytest.approx(sum(p for p, _ in each) / len(each), abs=tolerance)
                assert float(correct[at]) == pytest.approx(sum(came for _, came in each) / len(each), abs=1e-6)
            else:
                assert math.isnan(predicted[at]) and math.isnan(correct[at])
    assert result.overconfidence == pytest.approx(model.overconfidence(), abs=tolerance)
    error = math.sqrt(sum(x * x for x in model.influence()))
    assert result.overconfidence_error == pytest.approx(error, abs=tolerance)
    if result.head_overconfidence is None:
        return
    assert result.head_change is not None and result.head_change_error is not None
    expected = [one.overconfidence() for one in heads]
    close(result.head_overconfidence.flatten(), expected, tolerance)
    close(result.head_change.flatten(), [value - model.overconfidence() for value in expected], tolerance)
    own = model.influence()
    close(
        result.head_change_error.flatten(),
        [math.sqrt(sum((a - b) ** 2 for a, b in zip(one.influence(), own, strict=True))) for one in heads],
        tolerance,
    )


def close(found: Tensor, wanted: list[float], tolerance: float) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("k, n_bins", [(1, 10), (3, 7), (8, 1)])
@pytest.mark.parametrize("shape", MODELS)
def test_equals_the_plain_measure(shape: str, k: int, n_bins: int) -> None:
    for mask in (None, MASK):
        model = tiny_model(**MODELS[shape])
        wanted = naive(model, TOKENS, k=k, mask=mask)
        result = measure(model, TOKENS, k=k, n_bins=n_bins, attention_mask=mask)
        compare(result, wanted, n_bins)
        assert result.head_change is not None
        assert float(result.head_change.abs().max()) > 0.003, "too little happens to tell"
        alone = measure(model, TOKENS, k=k, n_bins=n_bins, attention_mask=mask, heads=False)
        compare(alone, wanted[:1], n_bins)
        assert alone.head_change is None and alone.head_count is None


@pytest.mark.parametrize("shape", MODELS)
def test_float32(shape: str) -> None:
    wide, single = tiny_model(**MODELS[shape]), tiny_model(**MODELS[shape], dtype=torch.float32)
    compare(measure(single, TOKENS, attention_mask=MASK), naive(wide, TOKENS, mask=MASK), tolerance=1e-4)


@pytest.mark.parametrize("spread", [0.05, 1.5])
def test_unsure_and_sure_models(spread: float) -> None:
    model = tiny_model(spread=spread)
    compare(measure(model, TOKENS), naive(model, TOKENS))


def test_ends_of_the_scale() -> None:
    model = tiny_model(spread=1.0)
    rows = tiny_tokens(1, 2)
    with torch.no_grad():
        probs = model(rows)[0, 0].softmax(-1)
    order = probs.argsort(descending=True)
    right, wrong = rows.clone(), rows.clone()
    right[0, 1], wrong[0, 1] = order[0], order[-1]
    for data, end, overconfidence in ((right, 1.0, -1.0), (wrong, 0.0, 1.0)):
        result = measure(model, data, n_bins=1)
        assert result.overconfidence == pytest.approx(overconfidence) and result.overconfidence_error < 1e-6
        assert (int(result.count[0]), float(result.correct[0])) == (1, end)
        assert float(result.predicted[0]) == pytest.approx(float(probs.max()), abs=1e-6)


def test_a_uniform_model_predicts_the_first_token() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.unembed.W_U.zero_()
        model.unembed.b_U.zero_()
    tokens = torch.tensor([[4, 0, 0, 5, 0, 1, 2]])
    result = measure(model, tokens, k=2)
    share = (3 * 1 + 1) / 12
    assert int(result.count[0]) == 12 and float(result.correct[0]) == pytest.approx(share)
    assert float(result.predicted[0]) == pytest.approx(1 / 23)
    assert result.overconfidence == pytest.approx((1 / 23 - share) / (22 / 23))
    assert result.head_change is not None and float(result.head_change.abs().max()) < 1e-6


def test_masked_tokens_are_never_right() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.unembed.b_U[5:] = -torch.inf
    compare(measure(model, TOKENS, k=4), naive(model, TOKENS, k=4))
    with torch.no_grad():
        model.unembed.b_U[2:] = -torch.inf
    result = measure(model, TOKENS, k=3)
    assert int(result.count.sum()) == 3 * 54
    came = TOKENS[:, 1:] < 2
    assert float((result.correct * result.count).nansum()) == pytest.approx(float(came.sum()))


@pytest.fixture(scope="module")
def speaker() -> HookedTransformer:
    tokenizer = tiny_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    return tiny_model(tokenizer, d_vocab=-1, n_ctx=40)


def test_bos_and_padding_are_left_out_unless_asked_for(speaker: HookedTransformer) -> None:
    tokens = speaker.to_tokens(["Mary gave a book", "John walked home, and it rained, and it rained"])
    bos, pad = speaker.tokenizer.bos_token_id, speaker.tokenizer.pad_token_id
    real = tokens != pad
    for include_bos, counted in ((False, real & (tokens != bos)), (True, real)):
        wanted = naive(speaker, tokens, mask=real, counted=counted)
        result = measure(speaker, tokens, include_bos=include_bos)
        compare(result, wanted)
        assert result.info.n_positions == int(counted.sum()) - 2
    left = speaker.to_tokens(["Mary gave a book", "John walked home, and it rained"], padding_side="left")
    mask = speaker.attention_mask(left, padding_side="left")
    assert mask is not None
    compare(measure(speaker, left, attention_mask=mask), naive(speaker, left, mask=mask, counted=mask & (left != bos)))


def test_batches_and_tiles_change_nothing(set_budget: SetBudget) -> None:
    model = tiny_model()
    wanted = naive(model, TOKENS)
    for batch_tokens in (10, 25):
        set_budget(batch_tokens=batch_tokens)
        for data in (TOKENS, [TOKENS[:1], TOKENS[1:]], {"tokens": TOKENS}):
            result = measure(model, data)
            compare(result, wanted)
            assert result.info.n_sequences == 6


def test_a_row_of_one_token_adds_nothing_but_to_the_means() -> None:
    model = tiny_model()
    padded = torch.cat([TOKENS, TOKENS[:1]])
    mask = torch.ones_like(padded)
    mask[-1, 1:] = 0
    compare(measure(model, [TOKENS, TOKENS[:1, :1]]), naive(model, padded, mask=mask))


def test_an_accumulator_merges_and_resumes() -> None:
    model = tiny_model()
    batches = list(iterate_batches(model, [TOKENS, tiny_tokens(2, 9, seed=4), TOKENS[:1]], progress=False))
    means = component_means(model, batches)

    def fresh() -> CalibrationAccumulator:
        return CalibrationAccumulator(model, CalibrationOptions(k=2), means, "data")

    whole = fresh()
    for batch in batches:
        whole.update(batch)
    left, right, empty = fresh(), fresh(), fresh()
    left.update(batches[0])
    right.update(batches[1])
    right.update(batches[2])
    left.merge(empty)
    empty.merge(right)
    left.merge(empty)
    before = fresh()
    before.update(batches[0])
    state = before.state()
    before.update(batches[1])
    again = CalibrationAccumulator.from_state(state, model, CalibrationOptions(k=2), means, "data")
    for batch in batches[1:]:
        again.update(batch)
    assert whole.take_rows() == {}
    wanted = whole.result()
    for accumulator, tolerance in ((left, 1e-6), (again, 0.0)):
        found = accumulator.result()
        assert found.info == wanted.info
        for field in dataclasses.fields(CalibrationResult):
            one, other = getattr(found, field.name), getattr(wanted, field.name)
            if isinstance(one, Tensor):
                torch.testing.assert_close(one, other, rtol=0, atol=tolerance, equal_nan=True)
            elif isinstance(one, float):
                assert one == pytest.approx(other, abs=tolerance)


@pytest.mark.parametrize("heads", [True, False])
def test_a_result_is_saved_and_read(heads: bool, tmp_path: Path) -> None:
    result = measure(tiny_model(), TOKENS, heads=heads, describe="a story")
    read = CalibrationResult.load(result.save(tmp_path / "calibration.safetensors"))
    assert read.info == result.info and str(read) == str(result)
    for field in dataclasses.fields(CalibrationResult)[1:]:
        one, other = getattr(read, field.name), getattr(result, field.name)
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other
    other_kind = tmp_path / "other.safetensors"
    broken = dataclasses.replace(result)
    object.__setattr__(broken, "kind", "entropy")
    with pytest.raises(CheckpointError, match="holds 'entropy', not 'calibration'"):
        CalibrationResult.load(broken.save(other_kind))


def test_frames_rankings_and_print() -> None:
    result = measure(tiny_model(), TOKENS, n_bins=5, describe="a story")
    frame = result.to_frame()
    assert list(frame.columns) == ["low", "high", "count", "predicted", "correct", "correct_low", "correct_high"]
    assert (
        len(frame) == 5
        and frame["count"].sum() == 54
        and frame["high"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    )
    filled = frame[frame["count"] > 0]
    assert (filled.predicted >= filled.low).all() and (filled.predicted <= filled.high).all()
    heads = result.heads_frame()
    assert result.head_change is not None
    assert heads.label.tolist() == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert heads.change.tolist() == result.head_change.flatten().tolist()
    best, worst = result.top(1)[0], result.top(1, largest=False)[0]
    assert best.value == float(result.head_change.max()) and worst.value == float(result.head_change.min())
    assert best.label == heads.label[heads.change.idxmax()]
    text = str(result)
    assert "on a story: 6 sequences, 54 positions" in text and "k=1" in text
    assert f"{result.overconfidence:+.4f} ± " in text
    assert f"bolder without {best.label} {best.value:+.4f}" in text
    assert len(text.splitlines()) == 6 + int((result.count > 0).sum())


def test_wilson_band() -> None:
    result = measure(tiny_model(), TOKENS, heads=False, n_bins=3)
    made = dataclasses.replace(result, count=torch.tensor([10, 0, 4]), correct=torch.tensor([0.3, math.nan, 1.0]))
    low, high = made.band()
    # Wilson's interval is where |share - s| = z sqrt(s (1 - s) / n).
    for bound, share, n in ((low[0], 0.3, 10), (high[0], 0.3, 10), (low[2], 1.0, 4)):
        s = float(bound)
        assert abs(share - s) == pytest.approx(1.959964 * math.sqrt(s * (1 - s) / n), rel=1e-5)
    assert float(high[2]) == 1.0 and math.isnan(low[1]) and math.isnan(high[1])


def test_the_standard_error_is_that_of_repeated_drawing() -> None:
    generator = torch.Generator().manual_seed(0)
    for tilt in (0.7, 1.3):
        values, errors = [], []
        for _ in range(400):
            p = torch.rand(300, generator=generator, dtype=torch.float64)
            came = (torch.rand(300, generator=generator) < (p * tilt).clamp(max=1.0)).double()
            u = torch.stack([torch.ones_like(p), p, came], dim=-1)
            moments = (u.T @ u)[None]
            value, weights = calibration_module._overconfidence(moments, 1)
            values.append(float(value))
            errors.append(float(calibration_module._variances(moments, weights).clamp(min=0).sqrt()))
        assert (sum(values) > 0) == (tilt < 1)
        assert sum(errors) / 400 == pytest.approx(float(torch.tensor(values).std()), rel=0.12)


def test_to_be_sure_and_right_is_calibrated() -> None:
    # Sure of what comes next, and right: there is nothing to divide by.
    moments = torch.tensor([[[4.0, 4, 4], [4, 4, 4], [4, 4, 4]]], dtype=torch.float64)
    value, weights = calibration_module._overconfidence(moments, 1)
    assert float(value) == 0.0 and float(calibration_module._variances(moments, weights).clamp(min=0).sqrt()) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"n_bins": 0}, "n_bins must be at least 1; got 0"),
        ({"k": 24}, "k must be between 1 and d_vocab = 23; got 24"),
        ({"k": 24, "heads": False}, "k must be between 1 and d_vocab = 23; got 24"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        measure(tiny_model(), TOKENS, **options)


def test_an_iterator_is_enough_only_without_heads() -> None:
    def batches() -> Iterator[Tensor]:
        yield TOKENS

    model = tiny_model()
    with pytest.raises(InvalidInputError, match="heads=True goes through the data twice"):
        measure(model, batches())
    assert measure(model, batches(), heads=False).info.n_positions == 54


def test_nothing_to_count_and_nothing_measured_are_told() -> None:
    model = tiny_model()
    with pytest.raises(InvalidInputError, match="no position counts: each is padding, BOS, or the last of its row"):
        measure(model, TOKENS[:, :1])
    with pytest.raises(InvalidInputError, match="Give means, or heads=False"):
        inspect.unwrap(CalibrationAccumulator)(model, CalibrationOptions(), None, "data")
    alone = measure(model, TOKENS, heads=False)
    for ask in (alone.top, alone.heads_frame):
        with pytest.raises(InvalidInputError, match="Run measure_calibration with heads=True"):
            ask()


def test_weights_that_are_not_finite_are_told() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.unembed.W_U[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="the logits hold NaN"):
        measure(model, TOKENS)


@pytest.mark.parametrize("heads", [True, False])
def test_a_resumed_run_has_the_same_bits(heads: bool, tmp_path: Path) -> None:
    model = tiny_model()
    data = [TOKENS[:, :length] for length in (9, 5, 7, 8)]
    options: dict[str, Any] = {"heads": heads, "describe": "d", "flush_every": 1}
    whole = measure(model, data, **options)

    class Stopping:
        """Data that ends in an error on its last time through."""

        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.passes += 1
            yield from data[:2]
            if self.passes == 1 + heads:
                raise OSError("the disk is gone")
            yield from data[2:]

    out = tmp_path / "run"
    with pytest.raises(OSError, match="the disk is gone"):
        measure(model, Stopping(), **options, out=out)
    found = measure(model, data, **options, out=out, resume=True)
    assert found.info == whole.info
    for field in dataclasses.fields(found):
        mine, theirs = getattr(found, field.name), getattr(whole, field.name)
        if isinstance(mine, Tensor):
            assert torch.equal(mine.nan_to_num(-9.0), theirs.nan_to_num(-9.0)), field.name
        else:
            assert mine == theirs, field.name
    with pytest.raises(InvalidInputError, match="holds another run"):
        measure(model, data, **{**options, "k": 2}, out=out, resume=True)


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
def test_a_result_names_the_kernels_that_the_user_chose(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_KERNELS", kernels)
    by_kernels = []
    for name in ("head_top", "top"):
        original = getattr(CpuKernels, name)
        monkeypatch.setattr(CpuKernels, name, lambda *args, of=original: (by_kernels.append(args), of(*args))[1])
    assert measure(tiny_model(), TOKENS).info.options["kernels"] == "torch", "float64 is"
    assert not by_kernels
    assert measure(tiny_model().float(), TOKENS).info.options["kernels"] == kernels
    assert bool(by_kernels) == (kernels == "cpu")
