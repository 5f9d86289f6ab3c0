"""Rows of heads' OV circuits: the tokens that a head raises and lowers when it looks at some token."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.progress import each_step
from headscope.analysis.recording.embedding import as_read, effective_embedding, token_embedding
from headscope.errors import NotFiniteError
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer

__all__ = ["Written", "written_for"]


@dataclass(frozen=True)
class Written:
    """The ends of heads' rows of logits, for some source tokens; -1 and NaN where there is no source.

    Attributes:
        promoted: The tokens that are raised most, best first.
        promoted_logits: By how much, above the mean over all tokens.
        suppressed: The tokens that are lowered most, lowest first.
        suppressed_logits: By how much; negative below the mean.
    """

    promoted: Int[Tensor, "layer head source k"]
    promoted_logits: Float[Tensor, "layer head source k"]
    suppressed: Int[Tensor, "layer head source k"]
    suppressed_logits: Float[Tensor, "layer head source k"]


@torch.no_grad()
def written_for(
    model: HookedTransformer,
    sources: Int[Tensor, "layer head source"],
    gains: Float[Tensor, " layer"],
    *,
    k: int = 10,
    progress: bool = True,
) -> Written:
    """Return which tokens heads raise and lower when they give all their attention to a source token.

    The row of a source in the full OV circuit, `norm(E) W_V W_O W_U` (Elhage et al. 2021), with the token as
    `effective_embedding` has it (heads of the first layer read `W_E`), and without constants that belong to no token.
    Less its mean over all tokens, which no softmax sees, and at the mean gain of the norms behind the head.

    Cost: `2 * d_model * d_vocab` operations a head and source. Memory: the logits of one head's sources.

    Args:
        model: The model.
        sources: The source tokens of each head; -1 for none.
        gains: See `HeadActivity.gains`.
        k: How many tokens at each end.
        progress: Show a progress bar.

    Raises:
        NotFiniteError: If weights are not finite.
    """
    cfg, readout = model.cfg, readout_of(model)
    kind = torch.promote_types(model.W_U.dtype, torch.float32)
    W_U = readout.W_U.detach().to(kind)
    k = min(k, W_U.shape[1])
    shape = (*sources.shape, k)
    tokens = torch.full((2, *shape), -1, device="cpu")
    logits = torch.full((2, *shape), torch.nan, device="cpu")
    first, later = token_embedding(model).to(kind), effective_embedding(model).to(kind)
    for layer in each_step(cfg.layers_with("attn"), "what heads write", shown=progress):
        block: Any = model.blocks[layer]
        weight = readout.direction(model.output_weight(layer).detach().to(kind))
        asked = sources[layer].clamp(min=0).to(W_U.device)
        read = as_read(model, (first if layer == 0 else later)[asked.flatten()], layer).view(*asked.shape, -1)
        for head in range(cfg.n_heads):
            values = block.attn.of_head("v", head, read[head], biased=False)
            rows = (values @ weight[head] * float(gains[layer])) @ W_U
            rows -= rows.mean(-1, keepdim=True)
            if not bool(rows.isfinite().all()):
                raise NotFiniteError(
                    f"what head {layer}.{head} writes holds NaN or infinite values. Check the weights."
                )
            for end, largest in enumerate((True, False)):
                best = rows.topk(k, -1, largest=largest)
                absent = (sources[layer, head] < 0)[:, None]
                tokens[end, layer, head] = best.indices.cpu().masked_fill(absent, -1)
                logits[end, layer, head] = best.values.float().cpu().masked_fill(absent, torch.nan)
    return Written(tokens[0], logits[0], tokens[1], logits[1])
