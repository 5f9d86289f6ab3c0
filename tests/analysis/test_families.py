"""Every analysis on every family of the table: against plain definitions, in float64, as converted and processed.

What is measured with a frozen scale is held against the formula spelled out, with the scale of a norm behind attention
frozen too; what is computed again is held against full forward passes with hooks.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families_report import FamiliesTable, listed_families
from families_table import CLOSE, LENGTH, MASK, ROWS, TOKENS, VOCABULARY, hf_model
from reference import heads_written, naive_entropy_of, scale_of
from small_models import STORY, small_tokenizer
from three_passes import ThreePasses, random_task
from tiny import randomize, tiny_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import (
    ablate_heads,
    activation_patch,
    attribute,
    attribute_attention,
    attribution_patch,
    copy_suppression_preserving_ablation,
    detect_heads,
    dynamic_ov,
    head_scores,
    logit_lens,
    measure_calibration,
    measure_entropy,
    path_patch,
    suppression_scores,
    weights_circuit_ranks,
)
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.weights.processing import WeightProcessing
from headscope.report import write_report

# Not in the table: LayerNorms behind, which center and have a bias, and norms behind only, as in OLMo 2.
SHAPES: dict[str, dict[str, Any]] = {
    "LayerNorm behind": {"use_normalization_before_and_after": True},
    "norms behind only": {"use_normalization_after_only": True, "normalization_type": "RMS", "gated_mlp": True},
}
EVERY = [*ROWS, *SHAPES]
# What costs more is measured on the first row of each family.
SOME = [*{row.split()[0].rstrip(","): row for row in reversed(ROWS)}.values(), *SHAPES]
# Every row as converted or processed, turn and turn about; those that stand for a family both ways.
BOTH = [(row, flag) for at, row in enumerate(EVERY) for flag in (False, True) if row in SOME or flag == bool(at % 2)]


pytestmark = pytest.mark.usefixtures("no_gradients")


@cache
def model_of(row: str, *, processed: bool = False) -> HookedTransformer:
    flags = dict.fromkeys(WeightProcessing.names(), processed)
    if row not in SHAPES:
        return HookedTransformer.from_hf(hf_model(row), dtype="float64", **flags)
    model = tiny_model(d_vocab=VOCABULARY, n_ctx=2 * LENGTH, **SHAPES[row])
    if processed:
        model.process_weights_(**flags)
    return model


@cache
def acts_of(row: str, *, processed: bool = False) -> dict[str, Tensor]:
    return dict(model_of(row, processed=processed).run_with_cache(TOKENS, attention_mask=MASK)[1].items())


def weights_of(model: HookedTransformer) -> dict[str, Tensor]:
    return dict(model.state_dict())


def difference(logits: Tensor) -> Tensor:
    """Of two tokens' logits, at the last real position of each row."""
    ends = MASK.sum(1) - 1
    return (logits[..., 3] - logits[..., 5])[torch.arange(len(ends)), ends]


@pytest.mark.parametrize(("row", "processed"), BOTH)
def test_decomposition_and_patterns(row: str, processed: bool) -> None:
    model = model_of(row, processed=processed)
    _, cache = model.run_with_cache(TOKENS, attention_mask=MASK)
    final = cache["resid_post", -1]
    for parts in (
        cache.decompose_resid(),
        cache.stack_head_results(incl_remainder=True),
        cache.get_full_resid_decomposition(expand_neurons=model.cfg.num_experts is None),
        cache.get_full_resid_decomposition(expand_neurons=False),
    ):
        torch.testing.assert_close(parts.sum(0)[MASK], final[MASK], rtol=1e-9, atol=1e-9)
    read = cache.get_full_resid_decomposition(expand_neurons=False, apply_ln=True).sum(0)
    norm = model.ln_final.direction(final) / cache["scale"] if model.cfg.normalization_type else final
    weight = dict(model.ln_final.named_parameters()).get("w", torch.ones(()))
    torch.testing.assert_close((read * weight)[MASK], norm[MASK], rtol=1e-9, atol=1e-9)
    heads = cache.stack_head_results().unflatten(0, (model.cfg.n_layers, -1))
    weights = weights_of(model)
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer]
        # Padded queries may see no key at all within their window.
        total = pattern.sum(-1).transpose(1, 2)[MASK]
        if model.cfg.use_attn_sinks:  # they take the rest
            assert bool((total < 1).all() and (total > 0).all())
        else:
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
        assert bool((pattern.triu(1) == 0).all())
        written = torch.stack(heads_written(dict(cache.items()), weights, model.cfg, layer))
        torch.testing.assert_close(heads[layer], written, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("row", EVERY)
def test_attention_attribution(row: str) -> None:
    model = model_of(row)
    layer = model.cfg.layers_with("attn")[-1]
    found = attribute_attention(model, TOKENS[:1], (layer, 1), progress=False)
    names = [f"blocks.{layer}.attn.hook_{kind}" for kind in ("attn_scores", "pattern")]
    _, cache = model.run_with_cache(TOKENS[:1], names_filter=names)
    scores, pattern = (cache[name][0, 1, -1] for name in names)
    score, cap = found.pairs.sum(), model.cfg.attn_scores_soft_cap
    score = cap * torch.tanh(score / cap) if cap > 0 else score
    key = int(pattern.argmax())
    assert found.looked_at.tolist() == [[LENGTH - 1, key]]
    torch.testing.assert_close(score + found.penalties[0], scores[key], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.attention[0, 0], pattern[key])
    heads = [label for label in found.part_labels if label[0].isdigit()]
    for parts, sources in ((found.query_parts, found.query_sources), (found.key_parts, found.key_sources)):
        at = [found.part_labels.index(label) for label in heads]
        assert sources is not None
        by_source = sources[0].sum(-1)
        torch.testing.assert_close(by_source[~by_source.isnan()], parts[0, at], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", EVERY)
def test_entropy(row: str) -> None:
    for processed, options in ((False, {}), (True, {"baseline": "mean", "scale": "own"})):
        model = model_of(row, processed=processed)
        wanted = naive_entropy_of(
            acts_of(row, processed=processed), weights_of(model), model.cfg, counted=MASK, **options
        )
        found = measure_entropy(
            model, TOKENS, attention_mask=MASK, include_bos=True, reduce="none", progress=False, **options
        )
        for name in ("resid", "diff", "marginal"):
            value = getattr(wanted, name)
            torch.testing.assert_close(getattr(found, name).double(), value, **CLOSE, equal_nan=True)
            assert float(value.nan_to_num().abs().max()) > 0.01, "too little happens to tell"


def ablated(
    model: HookedTransformer, acts: dict[str, Tensor], cases: list[tuple[str, int | None, str]]
) -> list[Tensor]:
    """Final states of a full run with hooks for each: a point, the head of it or all, and what is put there."""
    kept: list[Tensor] = []

    def put(activation: Tensor, hook: Any) -> Tensor:
        runs = [*activation.clone().split(len(TOKENS))]
        for run, (name, head, value) in zip(runs, cases, strict=True):
            if name == hook.name:
                output = acts[name] if head is None else acts[name][:, :, head]
                instead = output[MASK].mean(0) if value == "mean" else torch.zeros_like(output[0, 0])
                (run if head is None else run[:, :, head])[:] = instead
        return torch.cat(runs)

    hooks = [(name, put) for name in {name for name, _, _ in cases}]
    hooks += [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda x, hook: kept.append(x.clone()))]
    n = len(cases)  # one after another in one batch
    model.run_with_hooks(TOKENS.repeat(n, 1), attention_mask=MASK.repeat(n, 1), fwd_hooks=hooks)
    return [*kept[0].split(len(TOKENS))]


def losses(model: HookedTransformer, final: Tensor, scale_of_state: Tensor | None = None) -> Tensor:
    """Of each next token, from final states; with the scale of other ones."""
    cfg = model.cfg
    norm = dict(model.ln_final.named_parameters())
    kind = cfg.final_norm
    scale = scale_of(final if scale_of_state is None else scale_of_state, kind, cfg.eps)
    centered = final - final.mean(-1, keepdim=True) if kind in ("LN", "LNPre") else final
    logits = (centered / scale * norm.get("w", 1.0) + norm.get("b", 0.0)) @ model.W_U + model.b_U
    cap = cfg.output_logits_soft_cap
    logits = cap * torch.tanh(logits / cap) if cap > 0 else logits
    return -logits.log_softmax(-1)[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0]


@pytest.mark.parametrize("row", EVERY)
def test_ablation(row: str) -> None:
    model, acts = model_of(row), acts_of(row)
    last = model.cfg.n_layers - 1
    chosen: list[Any] = [(0, 1), (last, 0), "mlp0"]
    found = ablate_heads(model, TOKENS, heads=chosen, attention_mask=MASK, include_bos=True, progress=False)
    final = acts[f"blocks.{last}.hook_resid_post"]
    clean = losses(model, final)
    told = MASK[:, :-1] & MASK[:, 1:]
    weights = weights_of(model)
    places = [(0, 1, "attn.hook_z"), (last, 0, "attn.hook_z"), (0, None, "hook_mlp_out")]
    cases = [(f"blocks.{layer}.{name}", head, value) for layer, head, name in places for value in ("zero", "mean")]
    runs = iter(ablated(model, acts, cases))
    for at, (layer, head, name) in enumerate(places):
        name = f"blocks.{layer}.{name}"
        for number, value in enumerate(("zero", "mean")):
            patched = losses(model, next(runs)) - clean
            means = acts[name][MASK].mean(0) if value == "mean" else None
            if head is None:
                written = acts[name] if means is None else acts[name] - means
            else:
                written = heads_written(acts, weights, model.cfg, layer, means)[head]
            direct = losses(model, final - written, final) - clean
            for effect, wanted in enumerate((patched, direct)):
                assert float(wanted[told].abs().max()) > 1e-3, "too little happens to tell"
                values = found.loss_diff[number, effect, at].double()
                torch.testing.assert_close(values[told], wanted[told], **CLOSE, msg=f"{chosen[at]} {value} {effect}")
    # Copy suppression's direct mean ablation is the same thing by another way.
    kept = copy_suppression_preserving_ablation(
        model, TOKENS, [(0, 1), (last, 0)], attention_mask=MASK, include_bos=True, progress=False
    )
    by_mean = (kept.loss_mean - kept.loss)[:, :, :-1]
    torch.testing.assert_close(by_mean[:, told], found.loss_diff[1, 1, :2][:, told], rtol=0, atol=5e-6)
    assert bool(kept.kl_cspa[:, :, :-1][:, told].isfinite().all())


@pytest.mark.parametrize(("row", "processed"), BOTH)
def test_attribution(row: str, processed: bool) -> None:
    model = model_of(row, processed=processed)
    answers = torch.tensor([[3, 5]] * len(TOKENS))
    # Of a mixture of experts no neuron is shown.
    dense = model.cfg.num_experts is None
    found = attribute(model, TOKENS, answer_tokens=answers, attention_mask=MASK, neurons=dense, progress=False)
    cap = model.cfg.output_logits_soft_cap
    model.cfg.output_logits_soft_cap = -1.0
    wanted = difference(model(TOKENS, attention_mask=MASK))
    model.cfg.output_logits_soft_cap = cap
    torch.testing.assert_close(found.logit_difference, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.components.sum(-1), wanted, rtol=1e-9, atol=1e-9)
    assert found.sources is not None
    torch.testing.assert_close(found.sources.sum(-1), found.heads, rtol=1e-9, atol=1e-9)
    # The heads' biases, and MLPs' less their neurons, are what no token moves: the parts of the cache say the same.
    _, cache = model.run_with_cache(TOKENS, attention_mask=MASK)
    parts, labels = cache.get_full_resid_decomposition(expand_neurons=dense, return_labels=True)
    ends = (torch.arange(len(TOKENS)), MASK.sum(1) - 1)
    towards = torch.stack([cache.logit_attrs(part[None], 3, 5)[0][ends] for part in parts])
    heads = torch.stack([towards[labels.index(f"L{l}H{h}")] for l in range(model.cfg.n_layers)
                         for h in range(model.cfg.n_heads)], 1)  # fmt: skip
    torch.testing.assert_close(found.heads.flatten(1), heads, rtol=1e-9, atol=1e-9)
    if found.neurons is not None:
        neurons = torch.stack([towards[labels.index(f"L{layer}N0")].mean() for layer in range(model.cfg.n_layers)])
        torch.testing.assert_close(found.neurons[:, 0], neurons, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("row", EVERY)
def test_activation_patching(row: str) -> None:
    model, task = model_of(row), random_task((9, 6), d_vocab=VOCABULARY)
    mask = task.attention_mask
    _, clean = model.run_with_cache(task.clean_tokens, attention_mask=mask)

    def scored(logits: Tensor) -> Tensor:
        return task.logit_difference(logits)

    found = activation_patch(
        model, task, ["resid_pre", "z", "k"], scale="metric", metric=scored, by_position=False, progress=False
    )
    assert found.runs == "suffix"
    last, size = model.cfg.n_layers - 1, len(mask)
    places = [
        (site, at, f"blocks.{at}.{name}", part)
        for site, name, part in (
            ("resid_pre", "hook_resid_pre", slice(None)), ("z", "attn.hook_z", 1), ("k", "attn.hook_k", 0),
        )
        for at in (0, last)
    ]  # fmt: skip

    def put(value: Tensor, hook: Any) -> Tensor:
        runs = [*value.clone().split(size)]
        for run, (_, _, point, part) in zip(runs, places, strict=True):
            if point == hook.name:
                run[:, :, part] = clean[point][:, :, part]
        return torch.cat(runs)

    n = len(places)  # one after another in one batch
    hooks = [(point, put) for _, _, point, _ in places]
    logits = model.run_with_hooks(task.corrupted_tokens.repeat(n, 1), fwd_hooks=hooks, attention_mask=mask.repeat(n, 1))
    for run, (site, at, _, part) in zip(logits.split(size), places, strict=True):
        value = found[site][at] if isinstance(part, slice) else found[site][at, part]
        assert float(value) == pytest.approx(float(scored(run)) - found.corrupted, abs=2e-6), (site, at)


@pytest.mark.parametrize("row", SOME)
def test_path_patching(row: str) -> None:
    model, task = model_of(row), random_task((9, 6), d_vocab=VOCABULARY)
    passes = ThreePasses(model, task)
    last = model.cfg.n_layers - 1
    cases = [(["0.0", "0.1", "embed"], [f"{last}.1.q", f"{last}.2.k"]), (["0.1"], [f"mlp{last}"]),
             ([f"{last}.1", f"{last}.2", "mlp0"], ["final"])]  # fmt: skip
    for senders, receivers in cases:
        wanted = passes.change(senders, receivers).mean()
        found = path_patch(model, task, senders=senders, receivers=receivers, direction="noising", scale="metric")
        assert float(found) == pytest.approx(float(wanted), abs=2e-6), (senders, receivers)
        assert abs(float(wanted)) > 1e-6 and found.runs == "suffix"


@pytest.mark.parametrize("row", SOME)
def test_the_rest_agrees_with_the_model(row: str) -> None:
    model = model_of(row, processed=True)
    options = {"attention_mask": MASK, "include_bos": True, "progress": False}
    lens = logit_lens(model, TOKENS, k=2, **options)
    logits = model(TOKENS, attention_mask=MASK)
    top = lens.top_tokens[-1][MASK]
    assert torch.equal(top, logits.topk(2).indices[MASK])
    calibration = measure_calibration(model, TOKENS, n_bins=4, **options)
    assert bool(calibration.head_change is not None and calibration.head_change.isfinite().all())
    scores = head_scores(model, n_sequences=2, length=5, progress=False)
    assert bool(((scores.induction >= 0) & (scores.induction <= 1)).all())
    # Direct effects along the final direction of two tokens are those of attribution.
    answers = torch.tensor([[3, 5]] * len(TOKENS))
    found = suppression_scores(
        model, n_sequences=2, length=5, prompts=TOKENS, answers=answers, attention_mask=MASK, progress=False
    )
    attribution = attribute(model, TOKENS, answer_tokens=answers, attention_mask=MASK, neurons=False, progress=False)
    assert found.ioi is not None
    torch.testing.assert_close(found.ioi.double(), -attribution.heads.mean(0), **CLOSE)
    ranks = weights_circuit_ranks(model, [(1, 0)], tokens=torch.arange(5), progress=False)
    assert bool((ranks.ov >= 0).all() and (ranks.ov < VOCABULARY).all())
    assert dynamic_ov(model, TOKENS, [(1, 0)], **options).n_pairs.shape == (1,)
    assert detect_heads(model, n_sequences=2, length=5, progress=False).info.n_sequences > 0


@pytest.mark.parametrize("row", SOME)
def test_attribution_patching(row: str) -> None:
    """The slope of a patch: what a thousandth of it changes, a thousand times."""
    model, task = model_of(row), random_task((9, 6), d_vocab=VOCABULARY)
    found = attribution_patch(model, task, sites=("z", "attn_out", "k"), scale="metric", progress=False)
    mask, point = task.attention_mask, "blocks.0.attn.hook_z"
    _, clean = model.run_with_cache(task.clean_tokens, attention_mask=mask)

    def step(size: float) -> float:
        def put(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, 1] += size * (clean[point][:, :, 1] - z[:, :, 1])
            return z

        logits = model.run_with_hooks(task.corrupted_tokens, fwd_hooks=[(point, put)], attention_mask=mask)
        return float(task.logit_difference(logits))

    slope = (step(1e-4) - step(-1e-4)) / 2e-4
    assert float(found["z"][0, :, 1].sum()) == pytest.approx(slope, abs=2e-6)
    assert abs(slope) > 1e-5


def test_the_docs_list_every_family(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--families-table") is not None:
        pytest.skip("the page is being written")
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert listed_families(text) == set(FAMILIES), "write the table in docs/models.md anew, by the command there"


def test_the_table_says_what_passed_on_every_variant(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text((Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8"), encoding="utf-8")
    table = FamiliesTable(page, {"llama": ("one/model",), "olmo": ("other/model", "more")})

    def report(row: str, *columns: str, outcome: Any = "passed", when: Any = "call") -> None:
        found = pytest.TestReport("", ("", 0, ""), {}, outcome, None, when)
        found.user_properties = [("families table", (row, list(columns)))]
        table.pytest_runtest_logreport(found)

    report("llama", "logits", "bf16")
    report("llama, tied", "logits")
    report("olmo", "logits", outcome="failed")
    report("olmo", "bf16", when="setup")
    table.write()
    text = page.read_text(encoding="utf-8")
    assert listed_families(text) == {"llama", "olmo"} and text.startswith("# Models") and "frozen" in text
    lines = text[text.index("| family |") :].splitlines()
    first, second = (line.split("|")[2:] for line in lines if line.startswith("| `"))
    assert [cell.strip() for cell in first[:6]] == ["one/model", "2", "✓", "", "", ""] and first.count(" ✓ ") == 2
    assert [cell.strip() for cell in second[:3]] == ["other/model", "1", ""] and " ✓ " not in second


@pytest.mark.slow
@pytest.mark.parametrize("row", ["llama", "gemma2"])
def test_report(row: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    stem, fields = ROWS[row]
    config = getattr(transformers, f"{stem}Config")(**{**fields, "vocab_size": len(tokenizer)})
    hf = getattr(transformers, f"{stem}ForCausalLM")(config)
    randomize(hf)
    model = HookedTransformer.from_hf(hf, tokenizer=tokenizer)
    report = write_report(model, [STORY] * 4, tmp_path, max_tokens=100, n_heads=2, progress=False)
    assert report.page.stat().st_size > 10_000
