"""Every analysis on models whose layers have no common pattern: what mixers, heads and MLPs do, against plain formulas.

In float64; what is computed again is held against full forward passes with hooks. What a layer lacks is NaN.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families_table import CLOSE, HYBRIDS, MASK, TOKENS, VOCABULARY, hf_model
from small_models import STORY, small_tokenizer
from three_passes import ThreePasses, random_task
from tiny import randomize
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import (
    ablate_heads,
    activation_patch,
    attribute,
    attribution_patch,
    detect_heads,
    head_scores,
    logit_lens,
    measure_calibration,
    measure_entropy,
    path_patch,
    path_patch_sweep,
    suppression_scores,
    weights_circuit_ranks,
)
from headscope.analysis.core.components import Component, all_components, component_of, part_labels
from headscope.analysis.heads.evidence import k_composition
from headscope.analysis.recording.record import hook_name
from headscope.compat.head_detector import detect_head
from headscope.errors import InvalidInputError
from headscope.report import write_report

pytestmark = pytest.mark.usefixtures("no_gradients")


@cache
def model_of(row: str) -> HookedTransformer:
    return HookedTransformer.from_hf(hf_model(row), dtype="float64")


@cache
def acts_of(row: str) -> dict[str, Tensor]:
    return dict(model_of(row).run_with_cache(TOKENS, attention_mask=MASK)[1].items())


def written(row: str) -> dict[str, Tensor]:
    """What each component adds to the stream, by label."""
    model, acts = model_of(row), acts_of(row)
    found = {}
    for part in all_components(model.cfg):
        out = acts[hook_name(part)]
        if part.head is not None:
            out = out[:, :, part.head] @ model.output_weight(part.layer)[part.head]
        found[part.label] = out
    return found


def column_of(part: Component) -> str:
    return str(part.head) if part.head is not None else {"mixer": "mixer", "mlp": "MLP"}[part.part]


def lens(model: HookedTransformer, state: Tensor, scale: Tensor) -> Tensor:
    weight = dict(model.ln_final.named_parameters())["w"]
    logits = (state / scale * weight) @ model.W_U + model.b_U
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def scale_of(model: HookedTransformer, state: Tensor) -> Tensor:
    return (state.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()


def entropy_of(logits: Tensor) -> Tensor:
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("row", HYBRIDS)
def test_decomposition_and_patterns(row: str) -> None:
    model = model_of(row)
    _, cache = model.run_with_cache(TOKENS, attention_mask=MASK)
    final = cache["resid_post", -1]
    neurons = model.cfg.num_experts is None
    for parts in (
        cache.decompose_resid(),
        cache.stack_head_results(incl_remainder=True),
        cache.get_full_resid_decomposition(expand_neurons=neurons),
        cache.get_full_resid_decomposition(expand_neurons=False),
    ):
        torch.testing.assert_close(parts.sum(0), final, rtol=1e-9, atol=1e-9)
    for layer in range(model.cfg.n_layers):
        for mlp_input in (False, True):
            state = "resid_mid" if mlp_input and model.cfg.has_resid_mid else "resid_pre"
            before = cache.decompose_resid(layer, mlp_input=mlp_input and model.cfg.has_resid_mid)
            torch.testing.assert_close(before.sum(0), cache[state, layer], rtol=1e-9, atol=1e-9)
    for layer in model.cfg.layers_with("attn"):
        total = cache["pattern", layer].sum(-1).transpose(1, 2)[MASK]
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    _, labels = cache.decompose_resid(return_labels=True)
    parts_of = [f"{layer}_{part}_out" for layer in range(model.cfg.n_layers) for part in model.cfg.parts_of(layer)]
    assert labels == ["embed", *parts_of]
    assert cache.stack_head_results(return_labels=True)[1] == model.all_head_labels()
    mixers = cache.decompose_resid(mode="mixer", incl_embeds=False)
    assert len(mixers) == len(model.cfg.layers_with("mixer"))


@pytest.mark.parametrize("row", HYBRIDS)
@pytest.mark.parametrize(("baseline", "scale"), [("zero", "final"), ("mean", "own")])
def test_entropy(row: str, baseline: Any, scale: Any) -> None:
    model, acts, counted = model_of(row), acts_of(row), MASK
    found = measure_entropy(
        model, TOKENS, attention_mask=MASK, include_bos=True, reduce="none", baseline=baseline, scale=scale,
        progress=False,
    )  # fmt: skip
    final = acts[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    frozen = scale_of(model, final)

    def entropy(state: Tensor) -> Tensor:
        return entropy_of(lens(model, state, frozen if scale == "final" else scale_of(model, state)))[counted]

    states = [(f"{n}_{kind}", acts.get(f"blocks.{n}.hook_resid_{kind}")) for n in range(model.cfg.n_layers)
              for kind in ("pre", "mid")]  # fmt: skip
    states = [*((name, state) for name, state in states if state is not None), ("final", final)]
    assert found.state_labels == tuple(name for name, _ in states)
    for at, (_, state) in enumerate(states):
        torch.testing.assert_close(found.resid[at][counted].double(), entropy(state), **CLOSE)
    columns = part_labels(model.cfg)
    assert found.component_labels == columns
    seen = torch.zeros(found.diff.shape[:2], dtype=torch.bool)
    for label, out in written(row).items():
        part = component_of(label)
        assert part is not None
        column = columns.index(column_of(part))
        seen[part.layer, column] = True
        out = out - out[counted].mean(0) if baseline == "mean" else out
        base = acts.get(f"blocks.{part.layer}.hook_resid_mid") if part.part == "mlp" else None
        base = acts[f"blocks.{part.layer}.hook_resid_pre"] if base is None else base
        wanted = entropy(base + out) - entropy(base), entropy(final) - entropy(final - out)
        assert float(wanted[1].abs().max()) > 1e-3, f"too little happens to tell at {label}"
        for values, each in zip((found.diff, found.marginal), wanted, strict=True):
            torch.testing.assert_close(values[part.layer, column][counted].double(), each, **CLOSE, msg=label)
    assert torch.equal(found.mean().diff.isnan(), ~seen) and torch.equal(found.mean().marginal.isnan(), ~seen)
    assert all("nan" not in str(score.value) for score in found.top(100, mlps=True))


@pytest.mark.parametrize("row", HYBRIDS)
def test_ablation(row: str) -> None:
    model, acts = model_of(row), acts_of(row)
    chosen = [part.label for part in all_components(model.cfg) if part.head in (None, 1)]
    together = "+".join(part.label for part in all_components(model.cfg) if part.layer == 1)
    names = [*chosen, *([together] if "+" in together else [])]
    found = ablate_heads(model, TOKENS, heads=names, attention_mask=MASK, include_bos=True, progress=False)
    final = acts[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    told = MASK[:, :-1] & MASK[:, 1:]

    def losses(state: Tensor, scale: Tensor) -> Tensor:
        logits = lens(model, state, scale)
        return -logits.log_softmax(-1)[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0]

    clean = losses(final, scale_of(model, final))
    for at, name in enumerate(names):
        for number, value in enumerate(("zero", "mean")):
            parts = [component_of(label) for label in name.split("+")]
            instead = {}
            taken = torch.zeros_like(final)
            for part in parts:
                assert part is not None
                out = acts[hook_name(part)] if part.head is None else acts[hook_name(part)][:, :, part.head]
                mean = out[MASK].mean(0) if value == "mean" else torch.zeros_like(out[0, 0])
                instead[part] = mean
                change = out - mean
                taken = taken + (change if part.head is None else change @ model.output_weight(part.layer)[part.head])

            def put(activation: Tensor, hook: Any, instead: dict[Any, Tensor] = instead) -> Tensor:
                activation = activation.clone()
                for part, mean in instead.items():
                    if hook_name(part) == hook.name:
                        (activation if part.head is None else activation[:, :, part.head])[:] = mean
                return activation

            logits = model.run_with_hooks(
                TOKENS, attention_mask=MASK, fwd_hooks=[(name, put) for name in {hook_name(part) for part in instead}]
            )
            patched = -logits.log_softmax(-1)[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0] - clean
            direct = losses(final - taken, scale_of(model, final)) - clean
            for effect, wanted in enumerate((patched, direct)):
                assert float(wanted[told].abs().max()) > 1e-4, "too little happens to tell"
                values = found.loss_diff[number, effect, at].double()
                torch.testing.assert_close(values[told], wanted[told], **CLOSE, msg=f"{name} {value} {effect}")


@pytest.mark.parametrize("row", HYBRIDS)
def test_attribution(row: str) -> None:
    model, acts = model_of(row), acts_of(row)
    ends, rows = MASK.sum(1) - 1, torch.arange(len(TOKENS))
    found = attribute(
        model, TOKENS, answer_tokens=torch.tensor([[3, 5]] * len(TOKENS)), attention_mask=MASK, progress=False
    )
    final = acts[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"][rows, ends]
    weight = dict(model.ln_final.named_parameters())["w"]
    toward = (model.W_U[:, 3] - model.W_U[:, 5]) * weight / scale_of(model, final)
    for label, out in written(row).items():
        wanted = (out[rows, ends] * toward).sum(-1)
        torch.testing.assert_close(found.sel(component=label), wanted, rtol=0, atol=1e-9)
        part = component_of(label)
        assert part is not None
        column = found.part_labels.index(column_of(part))
        torch.testing.assert_close(found.heads_and_mlps[:, part.layer, column], wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.unexplained, torch.zeros(len(TOKENS)).double(), rtol=0, atol=1e-9)
    with_heads = torch.zeros(model.cfg.n_layers, dtype=torch.bool)
    with_heads[list(model.cfg.layers_with("attn"))] = True
    assert torch.equal(~found.heads.isnan().any(0).any(-1), with_heads)
    assert found.sources is not None
    sums = found.sources.sum(-1)
    torch.testing.assert_close(sums, found.heads, rtol=0, atol=1e-9, equal_nan=True)
    if found.neurons is not None:
        with_mlp = torch.tensor([layer in model.cfg.layers_with("mlp") for layer in range(model.cfg.n_layers)])
        assert torch.equal(~found.neurons.isnan().any(-1), with_mlp)


@pytest.mark.parametrize("row", HYBRIDS)
def test_activation_patching(row: str) -> None:
    model, task = model_of(row), random_task(d_vocab=VOCABULARY)
    sites = ["resid_pre", "mixer_out", "mlp_out", "z", *(["resid_mid"] if model.cfg.has_resid_mid else [])]
    options: dict[str, Any] = {"scale": "metric", "progress": False}
    found = activation_patch(model, task, sites, **options)
    estimated = attribution_patch(model, task, sites, **options)
    _, clean = model.run_with_cache(task.clean_tokens, attention_mask=task.attention_mask)
    logits, corrupted = model.run_with_cache(task.corrupted_tokens, attention_mask=task.attention_mask)
    before = task.logit_difference(logits)
    with torch.enable_grad():
        names = {f"blocks.{layer}.hook_mixer_out": layer for layer in model.cfg.layers_with("mixer")}
        kept: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            kept[hook.name] = value.requires_grad_() if value.is_leaf else value

        run = model.run_with_hooks(
            task.corrupted_tokens, attention_mask=task.attention_mask, fwd_hooks=[(name, keep) for name in names]
        )
        # Of the sum over prompts, as the analysis takes them: some mixers work in float32, whatever the model.
        gradients = torch.autograd.grad(task.logit_difference(run, per_prompt=True).sum(), list(kept.values()))
    positions = (1, 3)
    for (name, layer), gradient in zip(names.items(), gradients, strict=True):
        wanted = ((clean[name] - corrupted[name]) * gradient).sum(-1).mean(0)
        torch.testing.assert_close(estimated["mixer_out"][layer], wanted, rtol=0, atol=1e-9)

        def put(value: Tensor, hook: Any) -> Tensor:
            runs = [*value.clone().split(len(task))]
            for run, position in zip(runs, positions, strict=True):
                run[:, position] = clean[hook.name][:, position]
            return torch.cat(runs)

        tokens, mask = (each.repeat(len(positions), 1) for each in (task.corrupted_tokens, task.attention_mask))
        patched = model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[(name, put)])
        for run, position in zip(patched.split(len(task)), positions, strict=True):
            wanted = task.logit_difference(run) - before
            torch.testing.assert_close(found["mixer_out"][layer, position].double(), wanted, **CLOSE)
    for site, part in {"mixer_out": "mixer", "mlp_out": "mlp", "z": "attn"}.items():
        lacking = [layer for layer in range(model.cfg.n_layers) if part not in model.cfg.parts_of(layer)]
        for result in (found, estimated):
            unknown = result[site].flatten(1).isnan()
            assert unknown.all(1).nonzero()[:, 0].tolist() == lacking and torch.equal(unknown.any(1), unknown.all(1))
    with pytest.raises(InvalidInputError, match="no 'mixer_out'"):
        activation_patch(model_of("llama"), task, "mixer_out", progress=False)


@pytest.mark.parametrize("freeze_mlps", [True, False])
@pytest.mark.parametrize("row", HYBRIDS)
def test_path_patching(row: str, freeze_mlps: bool) -> None:
    model, task = model_of(row), random_task(d_vocab=VOCABULARY)
    passes = ThreePasses(model, task)
    last = max(model.cfg.layers_with("attn"))
    before = [part.label for part in all_components(model.cfg) if part.layer < last] or ["embed"]
    mlps = [f"mlp{layer}" for layer in model.cfg.layers_with("mlp") if layer > 0][-1:]
    options: dict[str, Any] = {"direction": "noising", "scale": "metric"}
    mixers = [label for label in before if label.startswith("mixer")]
    inputs = [f"{last}.1.q", f"{last}.0.v"]
    cells = [(before, ["final"]), (before, inputs), (mixers or before, ["final"]), (before[:1], mlps)]
    for senders, receivers in cells:
        found = path_patch(model, task, senders=senders, receivers=receivers, freeze_mlps=freeze_mlps, **options)
        wanted = passes.change(senders, receivers, freeze_mlps=freeze_mlps)
        torch.testing.assert_close(found.per_prompt, wanted, rtol=0, atol=1e-9, msg=f"{senders} -> {receivers}")
        model.hook_dict["hook_embed"].add_hook(lambda value, hook: value)
        whole = path_patch(model, task, senders=senders, receivers=receivers, freeze_mlps=freeze_mlps, **options)
        model.reset_hooks()
        torch.testing.assert_close(whole.per_prompt, wanted, rtol=0, atol=1e-9, msg=f"{senders} -> {receivers}")
    if freeze_mlps is bool([*HYBRIDS].index(row) % 2):  # turn and turn about
        return
    swept = path_patch_sweep(
        model, task, receivers="final", senders="components", freeze_mlps=freeze_mlps, progress=False, **options
    )
    assert swept.values.shape == (model.cfg.n_layers, len(part_labels(model.cfg)))
    there = {part.label for part in all_components(model.cfg)}
    for label, value in zip(swept.sender_labels, swept.values.flatten(), strict=True):
        assert bool(value.isnan()) is (label not in there)


@pytest.mark.parametrize("row", HYBRIDS)
def test_what_is_about_heads(row: str) -> None:
    model = model_of(row)
    lacking = [layer for layer in range(model.cfg.n_layers) if "attn" not in model.cfg.parts_of(layer)]
    having = list(model.cfg.layers_with("attn"))
    scores = head_scores(model, TOKENS, progress=False)
    calibration = measure_calibration(model, TOKENS, progress=False)
    suppressing = suppression_scores(model, n_sequences=2, length=5, progress=False)
    types = detect_heads(model, n_sequences=4, length=10, progress=False)
    assert calibration.head_change is not None
    for values in (scores.previous_token, calibration.head_change, suppressing.anti_induction, types.scores[0]):
        assert values.shape == (model.cfg.n_layers, model.cfg.n_heads)
        assert bool(values[lacking].isnan().all()) and not bool(values[having].isnan().any())
    assert not bool(types.labelled[:, lacking].any())
    assert logit_lens(model, TOKENS, progress=False).state_labels[-1] == "final"
    if lacking:
        with pytest.raises(InvalidInputError, match=rf"W_Q is asked for every layer, and layers {lacking[0]}"):
            _ = model.W_Q
        with pytest.raises(InvalidInputError, match="has no attention"):
            ablate_heads(model, TOKENS, heads=[(lacking[0], 0)], progress=False)
        with pytest.raises(InvalidInputError, match="has no attn"):
            model.output_weight(lacking[0])
    mixer = f"mixer{model.cfg.layers_with('mixer')[-1]}"
    with pytest.raises(InvalidInputError, match="is no receiver"):
        path_patch(model, random_task(d_vocab=VOCABULARY), senders="embed", receivers=mixer)


@pytest.mark.parametrize("row", ["nemotron_h", "lfm2 attention first, untied"])
def test_k_composition(row: str) -> None:
    """With earlier heads, where there are any; NaN for layers without attention."""
    model, at = model_of(row), model_of(row).cfg.layers_with("attn")
    found = k_composition(model, [(at[-1], 1)])[0]
    assert bool(found[[layer for layer in range(model.cfg.n_layers) if layer not in at[:-1]]].isnan().all())
    for layer in at[:-1]:
        earlier, reader = model.blocks[layer].attn, model.blocks[at[-1]].attn
        writes, reads = earlier.OV.AB, reader.QK.AB[1].T
        norms = writes.norm(dim=(-2, -1)) * reads.norm()
        wanted = (writes @ reads).norm(dim=(-2, -1)) / norms
        torch.testing.assert_close(found[layer], wanted.float(), rtol=1e-4, atol=1e-6)


def test_gates_count_as_open_in_circuits_of_weights() -> None:
    """Of gated attention; that the ranks are of this is in their options."""
    model = model_of("qwen3_next")
    assert model.cfg.gated_attn
    attn: Any = model.blocks[1].attn
    torch.testing.assert_close(attn.OV.AB, attn.W_V @ attn.W_O)
    options = {"tokens": torch.arange(5), "progress": False}
    ranks = weights_circuit_ranks(model, [(1, 0)], **options)
    assert ranks.info.options["gates"] == "open"
    before, attn.W_G.data = attn.W_G.data, torch.zeros_like(attn.W_G)
    try:
        assert torch.equal(weights_circuit_ranks(model, [(1, 0)], **options).ov, ranks.ov)
    finally:
        attn.W_G.data = before


def test_a_report(tmp_path: Path) -> None:
    """A page about heads, of the layers that have some; no number on it is NaN."""
    tokenizer = small_tokenizer()
    config = transformers.Lfm2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, layer_types=["conv", "full_attention", "conv"],
    )  # fmt: skip
    theirs = transformers.Lfm2ForCausalLM(config).eval()
    randomize(theirs)
    model = HookedTransformer.from_hf(theirs, tokenizer=tokenizer)
    report = write_report(model, model.to_tokens(STORY)[:, :40], tmp_path / "report", task=None, progress=False)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    assert "3, 1 with attention, 2 with a mixer, 3 with an MLP" in text and "4 in all" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE) and "0.0" not in re.findall(r"[Hh]ead\s+(\d+\.\d+)", text)
    assert report is not None
    scores = detect_head(model, "Mary saw Tom. Mary saw Tom.", "previous_token_head")
    assert bool((scores[[0, 2]] == -1).all()) and bool((scores[1] > -1).all())
    with pytest.raises(InvalidInputError, match="layer 0 has no attention"):
        detect_head(model, "Mary saw Tom.", "previous_token_head", heads=[(0, 1)])
