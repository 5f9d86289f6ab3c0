"""The pretrained model's predictions, and what is read of them through the logit lens."""

import math
import time

import pytest
import torch
from smollm import PATH, RealRun, entropy, hf_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import logit_lens, measure_calibration, measure_entropy

pytestmark = pytest.mark.real

Acts = dict[str, Tensor]
COMPONENTS = [(0, 3), (10, 5), (18, 6), (23, 0), (29, 1), (5, None), (29, None)]


def test_logits(model: HookedTransformer, tokens: Tensor, acts: Acts) -> None:
    theirs = hf_model()(tokens).logits
    plain = HookedTransformer.from_pretrained_no_processing(str(PATH))
    torch.testing.assert_close(plain(tokens), theirs, rtol=0, atol=1e-4)
    # Folding and centering change logits by a constant only.
    wanted, found = theirs.log_softmax(-1), model(tokens).log_softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(acts["logits"].log_softmax(-1).float(), wanted, rtol=0, atol=1e-4)
    assert float(theirs.std()) > 3


def test_loading_builds_no_second_model() -> None:
    begin = time.process_time()
    HookedTransformer.from_pretrained_no_processing(str(PATH))
    assert time.process_time() - begin < 30, "about two seconds on a free core"


def test_tokenizer(model: HookedTransformer) -> None:
    for text, ids in {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Caf\u00e9 d\u00e9j\u00e0 vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
        "\n": [198],
    }.items():
        assert model.tokenizer.encode(text) == ids and model.tokenizer.decode(ids) == text
    assert model.to_tokens("Hello world!").tolist() == [[1, 19556, 905, 17]]
    asked = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert asked.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_generation(model: HookedTransformer) -> None:
    assert "Paris" in model.generate("The capital of France is", max_new_tokens=3, do_sample=False, verbose=False)


def test_entropy(model: HookedTransformer, real_run: RealRun, tokens: Tensor, acts: Acts) -> None:
    found = measure_entropy(model, tokens, reduce="none", include_bos=True, progress=False)
    final = real_run.final(acts)
    scale = real_run.scale(final)
    end = entropy(acts["logits"])
    torch.testing.assert_close(found.resid[-1].double(), end, rtol=0, atol=1e-4)
    for layer, head in COMPONENTS:
        name = f"blocks.{layer}.hook_resid_" + ("mid" if head is None else "pre")
        before, written = acts[name], real_run.written(acts, layer, head)
        added = entropy(real_run.read(before + written, scale)) - entropy(real_run.read(before, scale))
        removed = end - entropy(real_run.read(final - written, scale))
        place = (layer, model.cfg.n_heads if head is None else head)
        torch.testing.assert_close(found.diff[place].double(), added, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.marginal[place].double(), removed, rtol=0, atol=1e-4)
        assert float(removed.abs().max()) > 1e-3


def test_logit_lens(model: HookedTransformer, real_run: RealRun, tokens: Tensor, acts: Acts) -> None:
    found = logit_lens(model, tokens, k=2, include_bos=True, progress=False)
    scale = real_run.scale(real_run.final(acts))
    for place, name in ((0, "blocks.0.hook_resid_pre"), (41, "blocks.20.hook_resid_mid"), (60, None)):
        logits = acts["logits"] if name is None else real_run.read(acts[name], scale)
        top = logits.topk(3).values
        sure = (top[..., :-1] - top[..., 1:]).amin(-1) > 1e-3  # of ties any order is right
        assert torch.equal(found.top_tokens[place][sure], logits.topk(2).indices[sure]) and sure.float().mean() > 0.8


def test_calibration(model: HookedTransformer, real_run: RealRun, tokens: Tensor, acts: Acts) -> None:
    found = measure_calibration(model, tokens, n_bins=5, heads=True, include_bos=True, progress=False)
    assert found.head_count is not None and found.head_predicted is not None and found.head_correct is not None
    final = real_run.final(acts)
    written = real_run.written(acts, 23, 0)
    without = real_run.read(final - written + written.mean((0, 1)), real_run.scale(final))
    place = (23, 0)
    curves = (
        (acts["logits"], found.count, found.predicted, found.correct),
        (without, found.head_count[place], found.head_predicted[place], found.head_correct[place]),
    )
    for logits, count, predicted, correct in curves:
        best = logits[0, :-1].softmax(-1).max(-1)
        came = best.indices == tokens[0, 1:]
        for number in range(5):
            inside = ((best.values * 5).long().clamp(max=4)) == number
            assert int(count[number]) == int(inside.sum())
            if inside.any():
                assert float(predicted[number]) == pytest.approx(float(best.values[inside].mean()), abs=1e-5)
                assert float(correct[number]) == pytest.approx(float(came[inside].double().mean()), abs=1e-5)
            else:
                assert math.isnan(float(predicted[number]))
