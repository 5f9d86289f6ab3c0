"""Next-token loss and accuracy from logits, in nats, with padding kept out of every mean."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.errors import InvalidInputError
from headscope.ops.devices import Budget

__all__ = ["Loss", "LossPerToken", "SingleLoss", "lm_accuracy", "lm_cross_entropy_loss"]

SingleLoss = Float[Tensor, ""]
LossPerToken = Float[Tensor, "batch pos-1"]
Loss = SingleLoss | LossPerToken
_NO_TARGET = torch.iinfo(torch.int64).min


def lm_cross_entropy_loss(
    logits: Float[Tensor, "*batch pos d_vocab"],
    tokens: Int[Tensor, "*batch pos"],
    attention_mask: Int[Tensor, "*batch pos"] | Bool[Tensor, "*batch pos"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "*batch pos-1"]:
    """Cross-entropy of each next token, in nats.

    Args:
        logits: Predictions; those at the last position have no target and are not used.
        tokens: The tokens predicted.
        attention_mask: 1 for real tokens, 0 for padding. A pair of positions counts when both are real.
        per_token: Return `[*batch, pos - 1]` (0 where a pair does not count) instead of the mean over pairs.

    Returns:
        The mean over all pairs that count (NaN if none does), or each pair's loss.

    Raises:
        InvalidInputError: If the shapes do not fit together.

    Example:
        >>> lm_cross_entropy_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
        tensor(1.3863)
    """
    counted = _counted_pairs(logits, tokens, attention_mask)
    targets = F.pad(tokens[..., 1:].long().to(logits.device), (0, 1), value=_NO_TARGET)
    loss = _cross_entropy(logits.flatten(0, -2), targets.flatten()).view(tokens.shape)[..., :-1]
    if counted is None:
        return loss if per_token else loss.mean()
    loss = torch.where(counted, loss, 0.0)
    return loss if per_token else loss.sum() / counted.sum()


def lm_accuracy(
    logits: Float[Tensor, "*batch pos d_vocab"],
    tokens: Int[Tensor, "*batch pos"],
    per_token: bool = False,
    *,
    attention_mask: Int[Tensor, "*batch pos"] | Bool[Tensor, "*batch pos"] | None = None,
) -> Float[Tensor, ""] | Bool[Tensor, "*batch pos-1"]:
    """Top-1 accuracy on next tokens: the share that were the model's likeliest, or a boolean for each.

    Args:
        logits: Predictions; those at the last position have no target and are not used.
        tokens: The tokens predicted.
        per_token: Return `[*batch, pos - 1]` (false where a pair does not count) instead of the mean over pairs.
        attention_mask: 1 for real tokens, 0 for padding. A pair of positions counts when both are real.

    Returns:
        The share over all pairs that count (NaN if none does), or a boolean for each.

    Raises:
        InvalidInputError: If the shapes do not fit together.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])
        >>> lm_accuracy(logits, torch.tensor([[0, 1, 0]]))
        tensor(0.5000)
    """
    counted = _counted_pairs(logits, tokens, attention_mask)
    correct = logits[..., :-1, :].argmax(-1) == tokens[..., 1:].to(logits.device)
    if counted is None:
        return correct if per_token else correct.float().mean()
    correct = correct & counted
    return correct if per_token else correct.sum() / counted.sum()


def _counted_pairs(logits: Tensor, tokens: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    mask_shape = tokens.shape if attention_mask is None else attention_mask.shape
    if tokens.ndim == 0 or logits.shape[:-1] != tokens.shape or mask_shape != tokens.shape:
        mask = "" if attention_mask is None else f" and attention_mask {list(mask_shape)}"
        raise InvalidInputError(
            "logits must be [batch, pos, d_vocab] for tokens (and attention_mask) [batch, pos]; "
            f"got logits {list(logits.shape)}, tokens {list(tokens.shape)}{mask}."
        )
    if attention_mask is None:
        return None
    real = attention_mask.to(logits.device, torch.bool)
    return real[..., 1:] & real[..., :-1]


def _cross_entropy(logits: Float[Tensor, "row d_vocab"], targets: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Loss of each row, 0 without a target.

    Without gradients, rows are reduced a few at a time: the log-probabilities of all of them would be as large as the
    logits, and allocating that takes several times as long as computing it.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        return F.cross_entropy(logits, targets, reduction="none", ignore_index=_NO_TARGET)
    rows = max(1, Budget.of(logits.device).loss_logits // logits.shape[-1])
    losses = [
        F.cross_entropy(chunk, chunk_targets, reduction="none", ignore_index=_NO_TARGET)
        for chunk, chunk_targets in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(losses)
