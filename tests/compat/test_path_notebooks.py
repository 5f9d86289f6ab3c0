"""The IOI task as notebooks run it: data, activations and metrics."""

import pytest
import torch
from small_models import small_model

from headscope import HookedTransformer
from headscope.compat.path_notebooks import (
    IOIMetric,
    generate_data_and_caches,
    ioi_logit_difference,
    ioi_metric_denoising,
    ioi_metric_noising,
)
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError, MissingTokenizerError


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


def difference(model: HookedTransformer, data: IOIDataset, answers: IOIDataset) -> list[float]:
    """One sentence at a time, cut before its answer."""
    found = []
    for i in range(len(data)):
        prompt = data.toks[i : i + 1, : int(data.word_idx["end"][i]) + 1]
        logits = model(prompt)[0, -1].detach()
        found.append(float(logits[answers.io_tokenIDs[i]] - logits[answers.s_tokenIDs[i]]))
    return found


@pytest.mark.parametrize("bos", [False, True])
def test_what_notebooks_unpack(model: HookedTransformer, bos: bool) -> None:
    ioi, abc, ioi_cache, abc_cache, metric = generate_data_and_caches(
        N=10, model=model, verbose=False, seed=420, prepend_bos=bos
    )
    again = IOIDataset("mixed", 10, model.tokenizer, prepend_bos=bos, seed=420)
    assert torch.equal(ioi.toks, again.toks) and abc.toks.shape == ioi.toks.shape
    assert torch.equal(abc.toks, again.gen_flipped_prompts("ABB->XYZ, BAB->XYZ").toks)
    clean, corrupted = difference(model, ioi, ioi), difference(model, abc, ioi)
    assert metric.clean_logit_diff == pytest.approx(sum(clean) / 10, abs=1e-4)
    assert metric.corrupted_logit_diff == pytest.approx(sum(corrupted) / 10, abs=1e-4)
    for data, cache in ((ioi, ioi_cache), (abc, abc_cache)):
        with torch.no_grad():  # as the caches were made: products with gradients may be another library's
            logits, expected = model.run_with_cache(data.toks, attention_mask=data.attention_mask)
        assert sorted(cache) == sorted(expected)
        torch.testing.assert_close(cache["resid_post", -1], expected["resid_post", -1])
        assert metric(logits).ndim == 0
    logits, broken = model(ioi.toks).detach(), model(abc.toks).detach()
    assert float(metric(logits)) == pytest.approx(0, abs=1e-5) and float(metric(broken)) == pytest.approx(-1, abs=1e-5)
    back = metric.denoising()
    assert float(back(logits)) == pytest.approx(1, abs=1e-5) and float(back(broken)) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(
        ioi_logit_difference(logits, ioi, per_prompt=True), torch.tensor(clean), atol=1e-4, rtol=1e-4
    )


def test_the_metrics_are_shares_of_the_mean_difference() -> None:
    ioi = generate_data_and_caches(6, small := small_model(n_ctx=64), only_ioi=True, names_filter=[])[0]
    logits = small(ioi.toks).detach()
    rows, end = torch.arange(6), ioi.word_idx["end"]
    mean = (logits[rows, end, ioi.io_tokenIDs] - logits[rows, end, ioi.s_tokenIDs]).mean()
    torch.testing.assert_close(ioi_logit_difference(logits, ioi), mean)
    torch.testing.assert_close(ioi_metric_noising(logits, 3.0, 0.5, ioi), (mean - 3.0) / 2.5)
    torch.testing.assert_close(ioi_metric_denoising(logits, 3.0, 0.5, ioi), (mean - 0.5) / 2.5)
    torch.testing.assert_close(IOIMetric(ioi, 3.0, 0.5)(logits), (mean - 3.0) / 2.5)
    with pytest.raises(InvalidInputError, match="are both 2.0000: nothing can be broken"):
        ioi_metric_noising(logits, 2.0, 2.0, ioi)


def test_gradients_go_through_the_metric(model: HookedTransformer) -> None:
    ioi, _, _, _, metric = generate_data_and_caches(4, model, names_filter=[])
    logits = model(ioi.toks).detach().requires_grad_()
    metric(logits).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[i, int(end)] for i, end in enumerate(ioi.word_idx["end"])]


def test_options(model: HookedTransformer, capsys: pytest.CaptureFixture[str]) -> None:
    found = generate_data_and_caches(
        4, model, only_ioi=True, symmetric=True, prompt_type="ABBA", names_filter="blocks.0.attn.hook_z", verbose=True
    )
    ioi, cache = found
    assert set(ioi.orders) == {"ABBA"} and list(cache) == ["blocks.0.attn.hook_z"] and ioi.symmetric
    printed = capsys.readouterr().out
    assert printed.startswith("IOI: ") and ioi.sentences[0] in printed and "mean logit difference" in printed
    one_order = generate_data_and_caches(3, model, prompt_type="BABA", names_filter=[], verbose=True)
    assert set(one_order[1].orders) == {"BABA"} and "ABC: " in capsys.readouterr().out
    with pytest.raises(MissingTokenizerError):
        generate_data_and_caches(4, small_model(tokenizer=False))


def test_hooks_of_ones_own_stay(model: HookedTransformer) -> None:
    calls = []
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: calls.append(hook.name))
    try:
        generate_data_and_caches(2, model, names_filter=[])
        model(model.to_tokens("Mary"))
    finally:
        model.reset_hooks()
    assert len(calls) == 3
