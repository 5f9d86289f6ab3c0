"""Runs the analyses of a page on one model."""

from torch import Tensor

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.heads.scores import head_scores
from headscope.analysis.lens.entropy import measure_entropy
from headscope.analysis.lens.loss import predict_next_tokens
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.report.model.findings import Findings, token_string
from headscope.report.model.suppression import measure_suppression

__all__ = ["check_at_least", "measure"]


def measure(
    model: HookedTransformer,
    tokens: Tensor,
    *,
    describe: str,
    ablation_tokens: int,
    suppression: bool,
    progress: bool,
) -> Findings:
    """Loss, entropy and kinds of head; with `ablation_tokens` above 0, also ablation, and copy suppression if asked."""
    entropy = measure_entropy(model, tokens, reduce="none", describe=describe, progress=progress)
    ablated = tokens[: max(1, ablation_tokens // tokens.shape[1])]
    ablation = _ablated(model, ablated, describe, progress) if ablation_tokens else None
    return Findings(
        model=model,
        tokens=tokens.cpu(),
        strings=[[token_string(model, token) for token in row] for row in tokens.tolist()],
        entropy=entropy,
        predictions=predict_next_tokens(model, tokens, k=3, progress=progress),
        # Two copies of at least two tokens and a BOS, or there is nothing to look back at.
        scores=head_scores(model, progress=progress) if model.cfg.n_ctx >= 5 and model.cfg.d_vocab > 4 else None,
        ablation=ablation,
        suppression=(
            measure_suppression(model, ablated, describe, progress) if suppression and ablation is not None else None
        ),
    )


def _ablated(model: HookedTransformer, tokens: Tensor, describe: str, progress: bool) -> AblationResult | None:
    """Every head ablated; `None` where nothing is predicted."""
    if not any(bool(batch.predicting().any()) for batch in iterate_batches(model, tokens, progress=False)):
        return None
    return ablate_heads(model, tokens, values=["mean", "zero"], describe=describe, progress=progress)


def check_at_least(least: int, **options: int) -> None:
    """Refuse an option below what it must be at least."""
    for name, value in options.items():
        if value < least:
            raise InvalidInputError(f"{name} must be at least {least}; got {value}.")
