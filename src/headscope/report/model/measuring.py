"""Analyses of a page about one model: everything that runs the model or reads its weights."""

import torch
from torch import Tensor

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.core.components import component_label
from headscope.analysis.heads.scores import MIN_ATTENTION, HeadScores, head_scores
from headscope.analysis.lens.entropy import EntropyResult, measure_entropy
from headscope.analysis.lens.loss import predict_next_tokens
from headscope.analysis.suppression.circuit_ranks import weights_circuit_ranks
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.analysis.suppression.scores import suppression_scores
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer
from headscope.report.model.findings import (
    Attention,
    Findings,
    Suppression,
    notable_heads,
    positions_of,
    strongest,
)
from headscope.report.places import Head, head_of
from headscope.report.plan import Following
from headscope.report.words import count

__all__ = ["IOI_PROMPTS", "SUPPRESSORS", "measure", "model_facts", "rows_to_ablate"]

SUPPRESSORS = 3  # heads to look at for copy suppression, by each score
_SUPPRESSED = 10  # a token is suppressed if it is among so many
IOI_PROMPTS = 100
_PROMPT_CONTEXT = 64  # IOI prompts fit into it
_SHOWN_TOKENS = 256


def measure(
    model: HookedTransformer,
    tokens: Tensor,
    *,
    describe: str,
    ablation_tokens: int,
    n_heads: int = 0,
    following: Following,
    progress: bool,
) -> Findings:
    """Measure loss, entropy and head types, and with `ablation_tokens` above 0 ablate every head.

    For a page about this model alone (`n_heads` above 0), also the attention of the heads of note, and where heads are
    ablated, copy suppression. `following` is the bar over the plan of it all; its parts have the names used here.
    """
    with following.part("entropy"):
        entropy = measure_entropy(model, tokens, reduce="none", describe=describe, progress=progress)
    ablated = rows_to_ablate(tokens, ablation_tokens)
    with following.part("ablation"):
        ablation = _ablated(model, ablated, describe, progress) if ablation_tokens else None
    with following.part("loss"):
        predictions = predict_next_tokens(model, tokens, k=3, progress=progress)
    # Two copies of at least two tokens and a BOS, or there is nothing to look back at.
    with following.part("types"):
        scores = head_scores(model, progress=progress) if model.cfg.n_ctx >= 5 and model.cfg.d_vocab > 4 else None
    notable = notable_heads(entropy.mean(), n_heads) if n_heads else ()
    with following.part("suppression"):
        suppression = _suppression(model, ablated, describe, progress) if n_heads and ablation is not None else None
    shown = torch.cat([tokens.flatten().cpu(), predictions.top_tokens.flatten().cpu()]).unique().tolist()
    return Findings(
        facts=model_facts(model),
        d_vocab=model.cfg.d_vocab,
        d_vocab_out=model.cfg.d_vocab_out,
        tokens=tokens.cpu(),
        texts={token: _text(model, token) for token in shown if token >= 0},
        entropy=entropy,
        predictions=predictions,
        scores=scores,
        ablation=ablation,
        suppression=suppression,
        notable=notable,
        attention=_attention(model, tokens, entropy, scores, notable) if notable else None,
    )


def rows_to_ablate(tokens: Tensor, ablation_tokens: int) -> Tensor:
    """Return the first rows of some tokens, as many as a number of tokens allows, but one at least."""
    return tokens[: max(1, ablation_tokens // tokens.shape[1])]


def model_facts(model: HookedTransformer) -> dict[str, str]:
    """Names and values of what a reader wants to know of a model."""
    cfg = model.cfg
    n_params = sum(parameter.numel() for parameter in model.parameters())
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


def _ablated(model: HookedTransformer, tokens: Tensor, describe: str, progress: bool) -> AblationResult | None:
    """Ablate every head; `None` where nothing is predicted."""
    if not any(bool(batch.predicting().any()) for batch in iterate_batches(model, tokens, progress=False)):
        return None
    return ablate_heads(model, tokens, values=["mean", "zero"], describe=describe, progress=progress)


def _suppression(model: HookedTransformer, tokens: Tensor, describe: str, progress: bool) -> Suppression | None:
    """Score every head, and look closely at the best by either score; `None` where there is nothing to measure on."""
    cfg = model.cfg
    if cfg.n_ctx < 5 or cfg.d_vocab <= 4 or cfg.d_vocab_out != cfg.d_vocab or cfg.attention_dir != "causal":
        return None
    n_prompts = IOI_PROMPTS if model.tokenizer is not None and cfg.n_ctx >= _PROMPT_CONTEXT else 0
    scores = suppression_scores(model, n_prompts=n_prompts, progress=progress)
    by = ("anti_induction",) if scores.ioi is None else ("anti_induction", "ioi")
    heads = list(dict.fromkeys(score.label for name in by for score in scores.top(SUPPRESSORS, by=name)))
    explained = copy_suppression_preserving_ablation(model, tokens, heads, describe=describe, progress=progress)
    ranks = weights_circuit_ranks(model, heads, k=min(_SUPPRESSED, cfg.d_vocab), progress=progress)
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
