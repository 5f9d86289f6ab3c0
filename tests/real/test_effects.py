"""Effects of heads on the pretrained model's answers: by full passes in float64 with activations edited."""

from typing import Any

import pytest
import torch
from smollm import RealRun
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import (
    Task,
    ablate_heads,
    activation_patch,
    attribute,
    attribution_patch,
    copy_suppression_preserving_ablation,
    dynamic_ov,
    path_patch,
    weights_circuit_ranks,
)
from headscope.data import IOIDataset

pytestmark = pytest.mark.real

Acts = dict[str, Tensor]


@pytest.fixture(scope="module")
def clean(real_run: RealRun, task: Task) -> Acts:
    with torch.no_grad():
        return real_run(task.clean_tokens)


@pytest.fixture(scope="module")
def corrupted(real_run: RealRun, task: Task) -> Acts:
    with torch.no_grad():
        return real_run(task.corrupted_tokens)


def difference(task: Task, logits: Tensor) -> Tensor:
    """Of right and wrong answer, prompt by prompt; the prompts are equally long."""
    rows = torch.arange(len(task))
    return logits[rows, -1, task.correct[:, 0]] - logits[rows, -1, task.incorrect[:, 0]]


def test_ablation(model: HookedTransformer, real_run: RealRun, tokens: Tensor, acts: Acts) -> None:
    chosen = [(18, 6), (23, 0), "mlp20"]
    found = ablate_heads(model, tokens, heads=chosen, include_bos=True, progress=False)
    final, before = real_run.final(acts), real_run.losses(acts["logits"], tokens)
    for at, (layer, head) in enumerate([(18, 6), (23, 0), (20, None)]):
        point = f"blocks.{layer}." + ("hook_mlp_out" if head is None else "attn.hook_z")
        for number in range(2):
            output = acts[point] if head is None else acts[point][:, :, head]
            instead = torch.zeros_like(output[0, 0]) if number == 0 else output.mean((0, 1))

            def put(
                name: str, value: Tensor, point: str = point, head: Any = head, instead: Tensor = instead
            ) -> Tensor:
                if name != point:
                    return value
                value = value.clone()
                (value if head is None else value[:, :, head])[:] = instead
                return value

            patched = real_run.losses(real_run(tokens, put)["logits"], tokens) - before
            written = real_run.written(acts, layer, head)
            kept = torch.zeros_like(written) if number == 0 else written.mean((0, 1)).expand_as(written)
            logits = real_run.read(final - written + kept, real_run.scale(final))
            direct = real_run.losses(logits, tokens) - before
            for effect, wanted in enumerate((patched, direct)):
                values = found.loss_diff[number, effect, at].double()
                torch.testing.assert_close(values, wanted, rtol=0, atol=1e-4)
                assert float(wanted.abs().max()) > 1e-3


def test_attribution(model: HookedTransformer, real_run: RealRun, task: Task, clean: Acts) -> None:
    found = attribute(model, task, neurons=False, progress=False)
    final = real_run.final(clean)[:, -1]
    towards = (
        real_run.state["unembed.W_U"][:, task.correct[:, 0]] - real_run.state["unembed.W_U"][:, task.incorrect[:, 0]]
    ).T
    towards = towards / real_run.scale(final)
    for layer in range(30):
        for head in range(9):
            wanted = (real_run.written(clean, layer, head)[:, -1] * towards).sum(-1)
            torch.testing.assert_close(found.heads[:, layer, head].double(), wanted, rtol=0, atol=1e-4)
    # What a head writes is the sum over the tokens that it looks at.
    assert found.sources is not None
    pattern = clean["blocks.23.attn.hook_pattern"][:, 0, -1]
    written = clean["blocks.23.attn.hook_v"][:, :, 0] @ real_run.state["blocks.23.attn.W_O"][0]
    wanted = pattern * (written * towards[:, None]).sum(-1)
    torch.testing.assert_close(found.sources[:, 23, 0, : wanted.shape[1]].double(), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.logit_difference.double(), difference(task, clean["logits"]), rtol=0, atol=1e-3)


def test_activation_patching(
    model: HookedTransformer, real_run: RealRun, task: Task, clean: Acts, corrupted: Acts
) -> None:
    found = activation_patch(
        model, task, ["resid_pre", "z"], positions="end", scale="metric", by_position=True, progress=False
    )
    before = difference(task, corrupted["logits"]).mean()
    for layer, head in ((15, None), (25, None), (20, 0), (23, 0), (24, 4)):
        point = f"blocks.{layer}." + ("hook_resid_pre" if head is None else "attn.hook_z")

        def put(name: str, value: Tensor, point: str = point, head: int | None = head) -> Tensor:
            if name != point:
                return value
            value = value.clone()
            part = (slice(None), -1) if head is None else (slice(None), -1, head)
            value[part] = clean[point][part]
            return value

        wanted = difference(task, real_run(task.corrupted_tokens, put)["logits"]).mean() - before
        value = found["resid_pre"][layer] if head is None else found["z"][layer, ..., head]
        assert float(value.flatten()[0] if value.numel() == 1 else value) == pytest.approx(float(wanted), abs=2e-4)
        assert abs(float(wanted)) > 1e-3


def test_path_patching(model: HookedTransformer, real_run: RealRun, task: Task, clean: Acts, corrupted: Acts) -> None:
    """From an S-inhibition head into the queries of two name movers: three passes."""
    found = path_patch(
        model, task, senders=["20.0"], receivers=["23.0.q", "23.1.q"], direction="noising", scale="metric"
    )
    optional = ("q_input",)
    inputs: Acts = {}

    def send(name: str, value: Tensor) -> Tensor:
        if name.endswith("attn.hook_z"):
            value = clean[name].clone()
            if name == "blocks.20.attn.hook_z":
                value[:, :, 0] = corrupted[name][:, :, 0]
        if name.endswith("hook_mlp_out"):
            return clean[name]
        if name == "blocks.23.hook_q_input":
            inputs[name] = value
        return value

    def receive(name: str, value: Tensor) -> Tensor:
        if name == "blocks.23.hook_q_input":
            value = value.clone()
            value[:, :, :2] = inputs[name][:, :, :2]
        return value

    real_run(task.clean_tokens, send, optional)
    logits = real_run(task.clean_tokens, receive, optional)["logits"]
    wanted = (difference(task, logits) - difference(task, clean["logits"])).mean()
    assert float(found) == pytest.approx(float(wanted), abs=2e-4)
    assert abs(float(wanted)) > 0.01


def test_attribution_patching(
    model: HookedTransformer, real_run: RealRun, task: Task, clean: Acts, corrupted: Acts
) -> None:
    """The slope of a patch, from a thousandth of it in either direction."""
    with torch.enable_grad():
        found = attribution_patch(model, task, sites=("z",), scale="metric", progress=False)
    for layer, head in ((20, 0), (23, 0)):
        point = f"blocks.{layer}.attn.hook_z"

        def moved(size: float, point: str = point, head: int = head) -> float:
            def put(name: str, value: Tensor) -> Tensor:
                if name != point:
                    return value
                value = value.clone()
                value[:, :, head] += size * (clean[point][:, :, head] - value[:, :, head])
                return value

            return float(difference(task, real_run(task.corrupted_tokens, put)["logits"]).mean())

        slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
        assert float(found["z"][layer, :, head].sum()) == pytest.approx(slope, abs=2e-4)
        assert abs(slope) > 1e-3


def test_copy_suppression(model: HookedTransformer, real_run: RealRun, tokens: Tensor, acts: Acts) -> None:
    """Of the negative name mover: a destination and a source at a time, with the lens on all tokens."""
    layer, head, top = 24, 4, 0.2
    found = copy_suppression_preserving_ablation(
        model, tokens, [(layer, head)], top=top, include_bos=True, progress=False
    )
    W_U = real_run.state["unembed.W_U"]
    directions = W_U[:, tokens[0]] - W_U.mean(1, keepdim=True)
    directions = (directions / directions.norm(dim=0)).T
    pattern = acts[f"blocks.{layer}.attn.hook_pattern"][0, head]
    values = acts[f"blocks.{layer}.attn.hook_v"][0, :, head] @ real_run.state[f"blocks.{layer}.attn.W_O"][head]
    written = real_run.written(acts, layer, head)[0]
    mean = written.mean(0)
    predicted = real_run.read(acts[f"blocks.{layer}.hook_resid_pre"])[0]
    kept = mean.expand_as(written).clone()
    for query in range(tokens.shape[1]):
        n = -(-(query + 1) * 1000 * top // 1000)  # a share of the sources, rounded up
        by_logit = sorted(range(query + 1), key=lambda key, query=query: -float(predicted[query, tokens[0, key]]))
        for key in by_logit[: int(n)]:
            part = pattern[query, key] * (values[key] - mean)
            kept[query] += min(0.0, float(part @ directions[key])) * directions[key]
    final = real_run.final(acts)
    clean = acts["logits"].log_softmax(-1)
    for stored, instead in ((found.kl_cspa, kept), (found.kl_mean, mean.expand_as(written))):
        logits = real_run.read(final - written + instead, real_run.scale(final)).log_softmax(-1)
        wanted = (clean.exp() * (clean - logits)).sum(-1)[0, :-1]
        torch.testing.assert_close(stored[0, 0, :-1].double(), wanted, rtol=0, atol=1e-4)
        assert float(wanted.max()) > 0.01


def test_copy_suppression_in_logits(model: HookedTransformer, real_run: RealRun, tokens: Tensor, acts: Acts) -> None:
    """By the definition of `own_logit`: sources above their token's average, and the least change of all logits."""
    layer, head, top = 24, 4, 0.2
    found = copy_suppression_preserving_ablation(
        model, tokens, [(layer, head)], top=top, include_bos=True, variant="own_logit", progress=False
    )
    W_U = real_run.state["unembed.W_U"]
    centered = W_U - W_U.mean(1, keepdim=True)
    directions = centered[:, tokens[0]]
    least = torch.linalg.solve(centered @ centered.T, directions)
    least = (least / (least * directions).sum(0)).T
    pattern = acts[f"blocks.{layer}.attn.hook_pattern"][0, head]
    values = acts[f"blocks.{layer}.attn.hook_v"][0, :, head] @ real_run.state[f"blocks.{layer}.attn.W_O"][head]
    written = real_run.written(acts, layer, head)[0]
    mean = written.mean(0)
    predicted = real_run.read(acts[f"blocks.{layer}.hook_resid_pre"])[0]
    predicted = predicted - predicted.mean(0)
    instead = mean.expand_as(written).clone()
    for query in range(tokens.shape[1]):
        n = -(-(query + 1) * 1000 * top // 1000)
        seen = set(tokens[0, : query + 1].tolist())
        kept = sorted(seen, key=lambda token, query=query: -float(predicted[query, token]))[: int(n)]
        for key in range(query + 1):
            if int(tokens[0, key]) in kept:
                change = float((values[key] - mean) @ directions[:, key])
                instead[query] += pattern[query, key] * min(0.0, change) * least[key]
    final, clean = real_run.final(acts), acts["logits"].log_softmax(-1)
    logits = real_run.read(final - written + instead, real_run.scale(final)).log_softmax(-1)
    wanted = (clean.exp() * (clean - logits)).sum(-1)[0, :-1]
    torch.testing.assert_close(found.kl_cspa[0, 0, :-1].double(), wanted, rtol=0, atol=1e-4)
    assert float((found.kl_mean[0, 0, :-1] - wanted).abs().max()) > 1e-3


def test_a_negative_name_mover_suppresses_copying_and_a_name_mover_does_not(
    model: HookedTransformer, ioi: IOIDataset
) -> None:
    """In this model the paper's variant keeps function words only, and finds nothing."""
    tokens = ioi.toks[:12]
    mask = torch.arange(tokens.shape[1]) <= ioi.word_idx["end"][:12, None] + 1
    heads = ["24.4", "23.0", "29.0"]
    options = {"attention_mask": mask, "progress": False}
    found = copy_suppression_preserving_ablation(model, tokens, heads, variant="own_logit", **options)
    suppressor, mover, late = found.share_estimates()
    assert suppressor.value > 0.3 and suppressor.clear(among=3)
    assert abs(mover.value) < 0.02 and abs(late.value) < 0.05
    assert float(found.power()[0]) > 0.3 and float(found.power()[2]) > 0.5
    paper = copy_suppression_preserving_ablation(model, tokens, heads[:1], **options)
    assert float(paper.share()) < 0.05 and float(paper.power()) < 0.3


def test_circuit_ranks(model: HookedTransformer, real_run: RealRun) -> None:
    """Of tokens that are names, embedded by the first MLP: the negative heads write them away, the movers up."""
    names = torch.tensor([model.to_single_token(f" {name}") for name in ("Mary", "John", "Anna", "Tom", "Paul")])
    heads = [(23, 0), (24, 4)]
    found = weights_circuit_ranks(model, heads, tokens=names, progress=False)
    state = real_run.state
    embedded = state["embed.W_E"][names]
    inside = embedded / real_run.scale(embedded)
    gate, value = inside @ state["blocks.0.mlp.W_gate"], inside @ state["blocks.0.mlp.W_in"]
    stream = embedded + (gate * torch.sigmoid(gate) * value) @ state["blocks.0.mlp.W_out"]
    stream = stream / real_run.scale(stream)
    for row, (layer, head) in enumerate(heads):
        attn = f"blocks.{layer}.attn."
        logits = stream @ state[attn + "W_V"][head] @ state[attn + "W_O"][head] @ state["unembed.W_U"]
        own = logits[torch.arange(len(names)), names]
        wanted = (logits < own[:, None]).sum(-1)
        assert (found.ov[row] - wanted).abs().max() <= 2  # of 49,152; float32 decides near ties
        assert bool((wanted < 10).all() if head == 4 else (wanted > 49_000).all())


def test_dynamic_ov(model: HookedTransformer, tokens: Tensor, acts: Acts) -> None:
    found = dynamic_ov(model, tokens, [(18, 6), (23, 0)], threshold=0.1, include_bos=True, progress=False)
    for row, (layer, head) in enumerate([(18, 6), (23, 0)]):
        assert int(found.n_pairs[row]) == int((acts[f"blocks.{layer}.attn.hook_pattern"][0, head] > 0.1).sum())
