"""Next-token loss and accuracy from logits, in nats, with padding kept out of every mean."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["lm_accuracy", "lm_cross_entropy_loss"]


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "batch pos-1"]:
    """Cross-entropy of each next token, in nats.

    Args:
        logits: Predictions; those at the last position have no target and are not used.
        tokens: What was predicted.
        attention_mask: 1 for real tokens, 0 for padding. A pair of positions counts when both are real.
        per_token: Return `[batch, pos - 1]` (0 where a pair does not count) instead of the mean over pairs.

    Example:
        >>> lm_cross_entropy_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
        tensor(1.3863)
    """
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().long(), reduction="none"
    ).view(tokens.shape[0], -1)
    if attention_mask is None:
        return loss if per_token else loss.mean()
    counted = attention_mask[:, 1:].bool() & attention_mask[:, :-1].bool()
    loss = torch.where(counted, loss, 0.0)
    return loss if per_token else loss.sum() / counted.sum()


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], per_token: bool = False
) -> Float[Tensor, ""] | Bool[Tensor, "batch pos-1"]:
    """Share of next tokens that are the most likely one, or whether each is."""
    correct = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return correct if per_token else correct.float().mean()
