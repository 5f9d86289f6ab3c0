"""One example of every view, of the demo model: what the pictures in the documentation show and the browser tests open.

from gallery import token_views, figures, real_figures
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headscope import HookedTransformer, views
from headscope.analysis import (
    ablate_heads,
    activation_patch,
    attribute,
    attribute_attention,
    attribution_patch,
    circuit_faithfulness,
    copy_suppression_preserving_ablation,
    detect_heads,
    find_circuit,
    head_scores,
    measure_calibration,
    measure_entropy,
    next_token_loss,
    path_patch_sweep,
    suppression_scores,
    weights_circuit_ranks,
)
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.data.small_english import documents
from headscope.training import token_circuits, toy_task, train, training_dynamics
from headscope.training.toy_fourier import fourier_power
from headscope.views.figures.head_scores import head_score_maps
from headscope.views.figures.loss import loss_by_position
from headscope.views.figures.training import token_maps_along_training
from headscope.views.html import HtmlView

if TYPE_CHECKING:
    import plotly.graph_objects as go

TEXTS = [
    "When Mary and John went to the park, John gave a ball to Mary. Then Tom and Anna walked to the garden, and Anna "
    "gave a book to Tom.",
    "Then Lucy and Paul walked to the river, and Paul gave a ring to Lucy. When Tom and Mary went to the school, Tom "
    "gave a cake to Mary.",
]
HEADS = ["1.3", "3.2", "4.0"]
QUIET: dict[str, Any] = {"progress": False, "describe": "two texts about gifts"}


@torch.no_grad()
def token_views() -> dict[str, HtmlView]:
    """Views of tokens, by name."""
    model = HookedTransformer.from_pretrained("headscope-demo")
    rows = model.to_tokens(TEXTS[0])
    logits, cache = model.run_with_cache(rows)
    tokens, log_probs = model.to_str_tokens(TEXTS[0]), logits[0].log_softmax(-1)
    loss = -log_probs[:-1].gather(-1, rows[0, 1:, None])[:, 0]
    loss = torch.cat([torch.tensor([torch.nan]), loss])  # of the token itself; the first has none
    effect = cache["z", 3][0, :, 2] @ model.W_O[3, 2] @ model.W_U
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    texts = [model.to_str_tokens(text) for text in TEXTS]
    neurons = [model.run_with_cache(text)[1].stack_activation("post")[:, 0] for text in TEXTS]
    losses = [ablate_heads(model, model.to_tokens(text), heads=HEADS, **QUIET).loss_diff[:, :, :, 0] for text in TEXTS]
    # [value, effect, head, pos] to [pos, way, head], and nothing is known of the token after the last.
    losses = [torch.nn.functional.pad(one.flatten(0, 1).permute(2, 0, 1), (0, 0, 0, 0, 1, 0)) for one in losses]
    parts = [text[start : start + 12] for text in texts for start in (1, 13)]
    active = [[[one[0, start : start + 12, n] for one in neurons for start in (1, 13)] for n in range(3)]]
    return {
        "attention_heads": views.attention.attention_heads(
            cache["pattern", 1][0],
            tokens,
            attention_head_names=[f"1.{head}" for head in range(model.cfg.n_heads)],
            title="Attention of layer 1",
            focus=tokens.index(" gave"),
        ),
        "attention_pattern": views.attention.attention_pattern(
            cache["pattern", 3][0, 2], tokens, title="Attention of head 3.2"
        ),
        "text_neuron_activations": views.activations.text_neuron_activations(
            texts,
            losses,
            first_dimension_name="ablation",
            first_dimension_labels=["zero, patched", "zero, direct", "mean, patched", "mean, direct"],
            second_dimension_name="head",
            second_dimension_labels=HEADS,
            name="loss increase",
            unit="nats",
            title="What each token's loss gains without a head",
        ),
        "token_log_probs": views.logits.token_log_probs(
            rows[0], log_probs, to_string=model.to_string, title="What the demo model expected"
        ),
        "direct_effects": views.logits.token_log_probs(
            rows[0],
            effect,
            to_string=model.to_string,
            negative=True,
            name="direct effect",
            unit="logits",
            title="What head 3.2 holds back",
        ),
        "colored_tokens": views.tokens.colored_tokens(
            tokens, loss, name="loss", unit="nats", title="Loss of each token"
        ),
        "colored_tokens_multi": views.tokens.colored_tokens_multi(
            tokens,
            torch.stack([loss, entropy, log_probs.max(-1).values.exp()], -1),
            labels=["loss", "entropy", "confidence"],
            title="Three numbers for each token",
        ),
        "topk_tokens": views.topk_tokens.topk_tokens(texts, neurons, title="What MLP neurons fire on"),
        "topk_samples": views.topk_samples.topk_samples([[parts] * 3], active, title="Passages a neuron fires most on"),
    }


@torch.no_grad()
def figures(*, draft: bool = False) -> "dict[str, go.Figure]":
    """Plotly figures, by name: the helpers first, then those of results.

    Args:
        draft: Train the toy models a tenth as long: the same figures of other numbers.
    """
    model = HookedTransformer.from_pretrained("headscope-demo")
    tokens = model.to_tokens(TEXTS)
    entropy = measure_entropy(model, tokens, **QUIET)
    ablation = ablate_heads(model, tokens, **QUIET)
    calibration = measure_calibration(model, tokens, **QUIET)
    task = Task.from_ioi(IOIDataset(N=40, tokenizer=model.tokenizer, prepend_bos=True))
    attribution = attribute(model, task, progress=False, describe="40 IOI prompts")
    suppression = copy_suppression_preserving_ablation(model, tokens, HEADS, **QUIET)
    ranks = weights_circuit_ranks(model, HEADS, progress=False)
    scores = suppression_scores(model, n_sequences=8, length=40, n_prompts=20, progress=False)
    drawn: dict[str, Any] = {
        "imshow": views.imshow(
            ablation.mean().loss_diff[:, 0].reshape(2, model.cfg.n_layers, -1),
            facet_col=0,
            facet_labels=["zero", "mean"],
            border=True,
            labels={"x": "Head", "y": "Layer", "color": "nats"},
            title="Loss increase without a head",
            return_fig=True,
        ),
        "line": views.line(
            [entropy.resid, entropy.resid.flip(0)],
            names=["as it is", "the other way round"],
            labels={"x": "State", "y": "Entropy (nats)"},
            title="Entropy along the residual stream",
            return_fig=True,
        ),
        "bar": views.bar(
            ablation.mean().loss_diff[:, 0, :6],
            x=[f"0.{head}" for head in range(6)],
            names=["zero", "mean"],
            labels={"x": "Head", "y": "Loss increase (nats)"},
            title="Six heads, ablated two ways",
            return_fig=True,
        ),
        "scatter": views.scatter(
            ablation.mean().loss_diff[0, 0],
            ablation.mean().loss_diff[0, 1],
            add_line="y=x",
            labels={"x": "patched (nats)", "y": "direct (nats)"},
            title="A head's direct effect beside its whole",
            return_fig=True,
        ),
        "hist": views.hist(
            list(ablation.loss_diff[:, 0, 4].flatten(1)),
            names=["zero", "mean"],
            add_mean_line=True,
            labels={"x": "Loss increase (nats)"},
            title="Loss increase at each token",
            return_fig=True,
        ),
        "entropy_by_layer": views.entropy_by_layer(entropy),
        "entropy_by_head": views.entropy_by_head(entropy),
        "ablation_by_head": views.ablation_by_head(ablation),
        "ablation_bars": views.ablation_bars(ablation),
        "attribution_by_layer": views.attribution_by_layer(attribution),
        "attribution_by_component": views.attribution_by_component(attribution),
        "attribution_by_head": views.attribution_by_head(attribution),
        "attribution_by_source": views.attribution_by_source(attribution, prompt=0),
        "calibration_curve": views.calibration_curve(calibration),
        "overconfidence_by_head": views.overconfidence_by_head(calibration),
        "copy_suppression_by_head": views.copy_suppression_by_head(suppression),
        "circuit_rank_maps": views.circuit_rank_maps(ranks),
        "suppression_scatter": views.suppression_scatter(scores),
        "head_score_maps": head_score_maps(head_scores(model, n_sequences=8, progress=False)),
        "loss_by_position": loss_by_position(next_token_loss(model, tokens), data="two texts about gifts"),
    }
    return drawn | _tasks(model) | _comparison(model) | _training(draft)


@torch.no_grad()
def real_figures(path: Path) -> "dict[str, go.Figure]":
    """Figures of the pretrained model of docs/real-model.md, by name.

    Args:
        path: SmolLM2-135M-Instruct as GGUF, which `make real-model` fetches.
    """
    model = HookedTransformer.from_pretrained(path)
    tokens = model.to_tokens("\n".join(documents(0, n=40)))[:, :256]
    entropy = measure_entropy(model, tokens, progress=False, describe="256 tokens of generated small English")
    task = Task.from_ioi(IOIDataset("mixed", 16, model.tokenizer, prepend_bos=True))
    return {
        "entropy_by_layer": views.entropy_by_layer(entropy),
        "entropy_by_head": views.entropy_by_head(entropy, "heads"),
        "attribution_by_head": views.attribution_by_head(
            attribute(model, task, progress=False, describe="16 prompts with two names, both orders")
        ),
        "head_score_maps": head_score_maps(head_scores(model, n_sequences=8, progress=False)),
    }


def _tasks(model: HookedTransformer) -> "dict[str, go.Figure]":
    """Figures of how indirect objects are found: patches, paths, kinds of heads."""
    swapped = IOIDataset("ABBA", 24, model.tokenizer, prepend_bos=True)
    task = Task.from_ioi(swapped, "ABB->ABA, BAB->BAA")
    by_layer = activation_patch(model, task, ["resid_pre", "attn_out"], progress=False)
    by_head = activation_patch(model, task, ["z", "q", "v"], direction="noising", by_position=False, progress=False)
    by_both = activation_patch(model, task, "z", by_position=True, progress=False)
    estimated = attribution_patch(model, task, "z", direction="noising", progress=False)
    final = path_patch_sweep(model, task, receivers="final", senders="components", direction="noising", progress=False)
    mixed = Task.from_ioi(IOIDataset("mixed", 48, model.tokenizer, prepend_bos=True), "ABB->ABA, BAB->BAA")
    types = detect_heads(model, task=mixed, n_sequences=8, progress=False)
    why = attribute_attention(model, mixed, "3.2", "end", "S2", against="IO", progress=False)
    kept = circuit_faithfulness(model, mixed, by_head["z"].abs(), sizes=[0, 1, 2, 4, 6, 8, 12, 16, 20], progress=False)
    return {
        "patching_by_position": views.patching_by_position(by_layer),
        "patching_by_head": views.patching_by_head(by_head),
        "patching_by_head_and_position": views.patching_by_head_and_position(by_both, "z", k=8),
        "path_patching_by_head": views.path_patching_by_head(final),
        "attribution_scatter": views.attribution_scatter(estimated.compare(by_head)),
        "head_type_maps": views.head_type_maps(types),
        "head_type_maps_in_logits": views.head_type_maps(types, unit="logits"),
        "k_composition_maps": views.k_composition_maps(types),
        "circuit_picture": views.circuit_picture(
            find_circuit(model, mixed[:24], types, max_receivers=4, progress=False), k=24
        ),
        "faithfulness_curve": views.faithfulness_curve(kept),
        "attention_sides": views.attention_sides(why),
        "attention_pairs": views.attention_pairs(why),
    }


def _comparison(model: HookedTransformer) -> "dict[str, go.Figure]":
    """Figures of two models: the demo, and the demo without its previous-token head."""
    other = HookedTransformer.from_pretrained("headscope-demo")
    other.blocks[0].attn.W_O.data[3] = 0.0
    models = {"headscope-demo": model, "without head 0.3": other}
    tokens = model.to_tokens([text * 3 for text in TEXTS], prepend_bos=True)
    losses = {name: next_token_loss(one, tokens, include_bos=True).mean(0).tolist() for name, one in models.items()}
    scores = {name: head_scores(one, n_sequences=8, progress=False).induction for name, one in models.items()}
    return {
        "compared_lines": views.compared_lines(
            {name: (list(range(1, len(loss) + 1)), loss) for name, loss in losses.items()},
            title="Loss by position",
            data="two texts about gifts, each three times over",
            x="position of the predicted token",
            y="loss (nats)",
        ),
        "compared_maps": views.compared_maps(
            scores, title="Induction score", data="repeated random tokens", unit="score", limit=1.0
        ),
    }


def _training(draft: bool) -> "dict[str, go.Figure]":
    """Figures of toy models that train in seconds."""
    toy = toy_task("skip-trigram", seed=0, size=1_000 if draft else 5_000)
    before = token_circuits(toy.model).ov
    with torch.enable_grad(), tempfile.TemporaryDirectory() as folder:
        result = train(
            toy.model,
            toy.data,
            toy.training,
            validation=toy.validation,
            out=Path(folder),
            snapshots=(0, 2, 5, 10, 20, 40, 80),
            progress=False,
        )
        dynamics = training_dynamics(folder, toy.validation, device="cpu", progress=False)
    after = token_circuits(toy.model).ov
    titles: dict[str, str] = {"x_title": "logit", "y_title": "attended token"}
    return {
        "training_metrics": views.training_metrics(result),
        "token_maps": views.token_maps(after, title="OV circuits", **titles),
        "token_maps_along_training": token_maps_along_training(
            torch.stack([before, after]), [0, int(result.train.step[-1])], title="OV circuits in training", **titles
        ),
        "dynamics_along_training": views.dynamics_along_training(dynamics),
        **_addition(draft),
    }


def _addition(draft: bool) -> "dict[str, go.Figure]":
    """Figures of a network that has begun to learn addition modulo 23."""
    toy = toy_task("modular-addition", seed=0, p=23, fraction=0.7)
    before = fourier_power(toy.model.W_E[:23])
    short = dataclasses.replace(toy.training, epochs=None, steps=40 if draft else 400, evaluate_every=10)
    with torch.enable_grad():
        result = train(toy.model, toy.data, short, validation=toy.validation, progress=False)
    return {
        "fourier_bars": views.fourier_bars(
            {"before training": before, "after": fourier_power(toy.model.W_E[:23])}, data="the rows of W_E"
        ),
        "grokking_curve": views.grokking_curve(result),
    }
