"""Operations that pieces of work take, from the shape of a model: what bars and estimates of time are weighted by.

Three kinds of work make up nearly all of every analysis, and run at rates of their own on a machine: products of
weights and states; the same with an exponential for each token of the vocabulary; products of a head's small rank with
that:

| work    | is done for                                        | operations                         |
|---------|----------------------------------------------------|------------------------------------|
| `layer` | a token, in each layer it goes through             | 2 for each weight of the layer     |
| `row`   | a final state that is read as a prediction         | 2 for each weight of the unembedding |
| `head`  | a head's output that is read as a prediction       | `2 * d_head * d_vocab`             |
"""

from headscope.model.transformer import HookedTransformer

__all__ = ["layer_operations", "row_operations", "run_operations"]


def layer_operations(model: HookedTransformer) -> float:
    """Operations that a token takes in a layer, on average over layers; attention among positions is left out.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> model = HookedTransformer(HookedTransformerConfig(2, 8, 32, 4, d_vocab=20, attn_only=True))
        >>> layer_operations(model)  # four matrices of 8 by 8, their biases, and a norm
        608.0
    """
    cfg = model.cfg
    every = sum(weight.numel() for block in model.blocks for weight in block.parameters())
    used = 1.0
    if cfg.num_experts and cfg.experts_per_token:
        used = cfg.experts_per_token / cfg.num_experts
    return 2.0 * every * used / cfg.n_layers


def row_operations(model: HookedTransformer) -> float:
    """Operations that reading a final state as a prediction takes."""
    return 2.0 * model.cfg.d_model * model.cfg.d_vocab_out


def run_operations(model: HookedTransformer, start_at_layer: int = 0) -> float:
    """Operations that a token takes from a layer to its prediction: the later the layer, the fewer.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> model = HookedTransformer(HookedTransformerConfig(2, 8, 32, 4, d_vocab=20, attn_only=True))
        >>> run_operations(model), run_operations(model, 1)
        (1536.0, 928.0)
    """
    return (model.cfg.n_layers - start_at_layer) * layer_operations(model) + row_operations(model)
