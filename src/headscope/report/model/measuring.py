"""Analyses of a page about one model: everything that runs the model or reads its weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.core.components import component_label
from headscope.analysis.core.costs import run_operations
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.heads.scores import MIN_ATTENTION, HeadScores, head_scores
from headscope.analysis.lens.entropy import EntropyResult, measure_entropy
from headscope.analysis.lens.loss import predict_next_tokens
from headscope.analysis.prompts.task import Task
from headscope.analysis.suppression.circuit_ranks import weights_circuit_ranks
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.analysis.suppression.scores import suppression_scores
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer
from headscope.report.kept import Kept
from headscope.report.model.findings import (
    Attention,
    Findings,
    Suppression,
    notable_heads,
    positions_of,
    strongest,
)
from headscope.report.parts import run_parts
from headscope.report.places import Head, head_of
from headscope.report.plan import Following
from headscope.report.task.measuring import measure_task
from headscope.report.words import count

__all__ = ["IOI_PROMPTS", "SUPPRESSION_VARIANT", "SUPPRESSORS", "measure", "model_facts", "rows_to_ablate"]

SUPPRESSION_VARIANT: Literal["own_logit"] = "own_logit"  # finds suppressors in models where the paper's keeps nothing
SUPPRESSORS = 3  # heads to look at for copy suppression, by each score
_SUPPRESSED = 10  # a token is suppressed if it is among so many
IOI_PROMPTS = 100
_PROMPT_CONTEXT = 64  # IOI prompts fit into it
_SHOWN_TOKENS = 256
_ABLATED_AT_ONCE = 3e12  # operations that a stop may lose


def measure(
    model: HookedTransformer,
    tokens: Tensor,
    *,
    parts: Sequence[str],
    describe: str,
    ablation_tokens: int,
    n_heads: int = 0,
    task: Task | None = None,
    following: Following,
    kept: Kept,
    progress: bool,
) -> Findings:
    """Measure some parts of what a page shows, in their order: loss, types, entropy, attention, ablation, and so on.

    A stop ends it with what is done by then, and a failure leaves out one part (see `run_parts`).

    Args:
        model: The model.
        tokens: What it runs on.
        parts: The parts, by name.
        describe: What the tokens are.
        ablation_tokens: Number of them that heads are ablated on.
        n_heads: Number of heads that raise entropy whose attention is shown.
        task: The prompts of the part of that name.
        following: The bar over the plan of it all.
        kept: Where measurements are kept until the page is whole.
        progress: Show progress bars.
    """
    ablated = rows_to_ablate(tokens, ablation_tokens)
    done: dict[str, Any] = {}

    def attention() -> Attention | None:
        entropy = done.get("entropy")
        if entropy is None:
            return None
        return _attention(model, tokens, entropy, done.get("types"), notable_heads(entropy.mean(), n_heads))

    on_text: list[HeadScores] = []

    def types() -> HeadScores | None:
        scores = _scores(model, kept, progress)
        if scores is not None and _predicts(model, tokens):
            run = {"describe": describe, "progress": progress, **kept.run("types-on-text")}
            on_text.append(head_scores(model, tokens, **run))
        return scores

    steps: dict[str, Callable[[], object]] = {
        "loss": lambda: predict_next_tokens(
            model, tokens, k=3, describe=describe, progress=progress, **kept.run("loss")
        ),
        "types": types,
        "entropy": lambda: measure_entropy(
            model, tokens, reduce="none", describe=describe, progress=progress, **kept.run("entropy")
        ),
        "attention": attention,
        "ablation": lambda: _ablated(model, ablated, describe, kept, progress),
        "suppression": lambda: _suppression(model, ablated, describe, kept, progress),
    }
    if task is not None:
        steps["task"] = lambda: measure_task(model, task, kept=kept, progress=progress)
    outcome = run_parts({part: steps[part] for part in parts if part in steps}, done, following, kept)
    entropy, predictions, pattern = (done.get(part) for part in ("entropy", "loss", "attention"))
    shown = [tokens.flatten().cpu()] + ([] if predictions is None else [predictions.top_tokens.flatten().cpu()])
    return Findings(
        facts=model_facts(model),
        model_name=model.cfg.model_name,
        processing=model.weight_processing,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        d_vocab=model.cfg.d_vocab,
        d_vocab_out=model.cfg.d_vocab_out,
        data=describe,
        tokens=tokens.cpu(),
        **_special(model, tokens),
        texts={token: _text(model, token) for token in torch.cat(shown).unique().tolist() if token >= 0},
        outcome=outcome,
        notable=notable_heads(entropy.mean(), n_heads) if n_heads and entropy is not None else (),
        attention=pattern,
        scores_on_text=on_text[0] if on_text else None,
    )


def rows_to_ablate(tokens: Tensor, ablation_tokens: int) -> Tensor:
    """Return the first rows of some tokens, as many as a number of tokens allows, but one at least."""
    return tokens[: max(1, ablation_tokens // tokens.shape[1])]


def model_facts(model: HookedTransformer) -> dict[str, str]:
    """Names and values of what a reader wants to know of a model."""
    cfg = model.cfg
    # The model itself holds a tied matrix twice, and zeros for the biases that the checkpoint has not.
    n_params = model.n_params_checkpoint or model.n_params_total
    with_heads = len(cfg.layers_with("attn"))
    return {
        "Name": cfg.model_name,
        "Layers": _layers(cfg),
        "Heads": f"{cfg.n_heads} per layer{' with attention' * (with_heads < cfg.n_layers)}, "
        f"{with_heads * cfg.n_heads} in all",
        "Width": f"{cfg.d_model} (head {cfg.d_head}" + ("" if cfg.attn_only else f", MLP {cfg.d_mlp}") + ")",
        "Vocabulary": str(count(cfg.d_vocab, "token")),
        "Context": str(count(cfg.n_ctx, "token")),
        "Parameters": f"{n_params:,}",
        "Weight processing": ", ".join(model.weight_processing) or "none",
    }


def _layers(cfg: HookedTransformerConfig) -> str:
    """Return how many layers there are, and what is in them."""
    if cfg.layer_parts is None:
        return f"{cfg.n_layers}, attention only" if cfg.attn_only else f"{cfg.n_layers}, attention and MLP"
    names = {"attn": "attention", "mixer": "a mixer", "mlp": "an MLP"}
    with_parts = {name: len(cfg.layers_with(part)) for part, name in names.items()}
    return f"{cfg.n_layers}, " + ", ".join(f"{n} with {name}" for name, n in with_parts.items() if n)


def _text(model: HookedTransformer, token: int) -> str:
    """Return a token's text, or its number for a model without a tokenizer."""
    return f" {token}" if model.tokenizer is None else model.to_single_str_token(token)


def _special(model: HookedTransformer, tokens: Tensor) -> dict[str, str | None]:
    """Return the texts of the tokenizer's BOS, if every row begins with it, and of its EOS, if it stands within one."""
    bos, eos = (getattr(model.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos"))
    return {
        "bos": None if bos is None or bool((tokens[:, 0] != bos).any()) else _text(model, bos),
        "separator": None if eos is None or bool((tokens[:, 1:] != eos).all()) else _text(model, eos),
    }


def _predicts(model: HookedTransformer, tokens: Tensor) -> bool:
    return any(bool(batch.predicting().any()) for batch in iterate_batches(model, tokens, progress=False))


def _scores(model: HookedTransformer, kept: Kept, progress: bool) -> HeadScores | None:
    """Score head types; `None` where BOS and two copies of two tokens do not fit: there is nothing to look back at."""
    if model.cfg.n_ctx < 5 or model.cfg.d_vocab <= 4:
        return None
    return head_scores(model, progress=progress, **kept.run("types"))


def _ablated(
    model: HookedTransformer, tokens: Tensor, describe: str, kept: Kept, progress: bool
) -> AblationResult | None:
    """Ablate every head, some layers at a time, of which a stop loses none; `None` where nothing is predicted."""
    if not _predicts(model, tokens):
        return None
    results = []
    groups = _head_groups(model, tokens.numel())
    with progress_bar(sum(len(group) for group in groups), "ablation", shown=progress) as bar:
        bar.follows = "ablation"  # not the means before it
        for number, heads in enumerate(groups):
            bar.step = len(heads)
            run = {"describe": describe, "progress": progress, **kept.run(f"ablation/{number}")}
            results.append(ablate_heads(model, tokens, heads=heads, values=["mean", "zero"], **run))
            bar.update(len(heads))
    return _joined(results)


def _head_groups(model: HookedTransformer, n_tokens: int) -> list[list[str]]:
    """Return the heads in groups of whole layers, each of which takes some tens of seconds of a laptop."""
    groups: list[list[str]] = []
    room = 0.0
    for layer in model.cfg.layers_with("attn"):
        runs = 2 * model.cfg.n_heads * n_tokens  # patched, for each of two values
        cost = runs * run_operations(model, layer)
        if not groups or cost > room:
            groups.append([])
            room = _ABLATED_AT_ONCE
        room -= cost
        groups[-1] += [component_label(layer, head) for head in range(model.cfg.n_heads)]
    return groups


def _joined(results: Sequence[AblationResult]) -> AblationResult:
    """Return one result on all components, from results on some of them each, on the same tokens."""
    first, *others = results
    if not others:
        return first
    return replace(
        first,
        loss_diff=torch.cat([each.loss_diff for each in results], 2),
        loss_diff_error=torch.cat([each.loss_diff_error for each in results], 2),
        component_labels=tuple(label for each in results for label in each.component_labels),
    )


def _suppression(
    model: HookedTransformer, tokens: Tensor, describe: str, kept: Kept, progress: bool
) -> Suppression | None:
    """Score every head, and look closely at the best by either score; `None` where there is nothing to measure on."""
    cfg = model.cfg
    if cfg.n_ctx < 5 or cfg.d_vocab <= 4 or cfg.d_vocab_out != cfg.d_vocab or cfg.attention_dir != "causal":
        return None
    if not _predicts(model, tokens):
        return None
    n_prompts = IOI_PROMPTS if model.tokenizer is not None and cfg.n_ctx >= _PROMPT_CONTEXT else 0
    scores = suppression_scores(model, n_prompts=n_prompts, progress=progress, **kept.run("suppression/scores"))
    by = ("anti_induction",) if scores.ioi is None else ("anti_induction", "ioi")
    heads = list(dict.fromkeys(score.label for name in by for score in scores.top(SUPPRESSORS, by=name)))
    run = {"describe": describe, "progress": progress, **kept.run("suppression/explained")}
    explained = copy_suppression_preserving_ablation(model, tokens, heads, variant=SUPPRESSION_VARIANT, **run)
    k = min(_SUPPRESSED, cfg.d_vocab)
    ranks = kept.result(
        "suppression/ranks", CircuitRanks, lambda: weights_circuit_ranks(model, heads, k=k, progress=progress)
    )
    return Suppression(scores, explained, ranks)


@torch.no_grad()
def _attention(
    model: HookedTransformer,
    tokens: Tensor,
    entropy: EntropyResult,
    scores: HeadScores | None,
    notable: tuple[Head, ...],
) -> Attention:
    """Run the sequence where the first notable head has its strongest effect; the best of each type comes along."""
    names = {head: component_label(*head) for head in notable}
    for name, (best, *_) in strongest(scores).items():
        if best.value >= MIN_ATTENTION and name != "duplicate-token":
            names[head_of(best)] = f"{names.get(head_of(best), best.label)} {name}"
    n = min(_SHOWN_TOKENS, tokens.shape[1])
    places = [place for place in positions_of(entropy, notable[0], 50) if place.pos < n]
    # Near the start of a row there is little to attend to.
    place = next((place for place in places if place.pos >= min(8, n // 2)), places[0] if places else None)
    row, focus = (place.row, place.pos) if place is not None else (0, None)
    hooks = [f"blocks.{layer}.attn.hook_pattern" for layer in {layer for layer, _ in names}]
    _, cache = model.run_with_cache(tokens[row : row + 1, :n], names_filter=hooks, return_type=None)
    patterns = torch.stack([cache["pattern", layer][0, head] for layer, head in names])
    return Attention(row, focus, tuple(names.values()), patterns.cpu())
