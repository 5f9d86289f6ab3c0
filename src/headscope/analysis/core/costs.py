"""Operations that pieces of work take, from the shape of a model: what bars and estimates of time are weighted by.

Five kinds of work make up nearly all of every analysis, and run at rates of their own on a machine:

| kind       | is done for                                                  | counted in                             |
|------------|--------------------------------------------------------------|----------------------------------------|
| `runs`     | a call of the model, however short                           | calls                                  |
| `layers`   | a token, in each layer it goes through                       | 2 operations for each weight           |
| `rows`     | a final state that is read as a prediction and reduced       | 2 for each weight of the unembedding   |
| `heads`    | a component's output of rank d_head, read and reduced        | `2 * d_head * d_vocab` operations      |
| `products` | products of weights alone                                    | operations                             |
"""

from dataclasses import dataclass, fields
from typing import Self

from headscope.model.transformer import HookedTransformer

__all__ = ["Work", "head_operations", "layer_operations", "row_operations", "run_operations"]


@dataclass(frozen=True)
class Work:
    """Amounts of work, by kind; also the seconds that a unit of each kind takes.

    Example:
        >>> 2 * (Work(runs=1, rows=5.0) + Work(rows=1.0))
        Work(runs=2.0, layers=0.0, rows=12.0, heads=0.0, products=0.0)
    """

    runs: int | float = 0.0
    layers: int | float = 0.0
    rows: int | float = 0.0
    heads: int | float = 0.0
    products: int | float = 0.0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __rmul__(self, times: int | float) -> Self:
        return type(self)(*(float(times * getattr(self, each.name)) for each in fields(self)))

    @property
    def operations(self) -> float:
        """All operations, of whatever kind."""
        return float(self.layers + self.rows + self.heads + self.products)

    def seconds(self, rates: "Work") -> float:
        """Return how long it takes at some rates."""
        return float(sum(getattr(self, each.name) * getattr(rates, each.name) for each in fields(self)))


def layer_operations(model: HookedTransformer) -> float:
    """Return the operations a token takes in a layer, on average over layers; attention among positions is left out.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> model = HookedTransformer(HookedTransformerConfig(2, 8, 32, 4, d_vocab=20, attn_only=True))
        >>> layer_operations(model)  # four matrices of 8 by 8, their biases, and a norm
        608.0
    """
    cfg = model.cfg
    used = cfg.experts_per_token / cfg.num_experts if cfg.num_experts and cfg.experts_per_token else 1.0
    total = 0.0
    for name, weight in (named for block in model.blocks for named in block.named_parameters()):
        # Experts' matrices have an axis of experts, of which a token uses some.
        total += weight.numel() * (used if name.startswith("mlp.") and weight.ndim == 3 else 1.0)
    return 2.0 * total / cfg.n_layers


def row_operations(model: HookedTransformer) -> float:
    """Return the operations that reading a final state as a prediction takes."""
    return 2.0 * model.cfg.d_model * model.cfg.d_vocab_out


def head_operations(model: HookedTransformer) -> float:
    """Return the operations that reading a head's output as a prediction takes, through `W_O W_U`."""
    return 2.0 * model.cfg.d_head * model.cfg.d_vocab_out


def run_operations(model: HookedTransformer, start_at_layer: int = 0) -> float:
    """Return the operations a token takes from a layer to its prediction: the later the layer, the fewer.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> model = HookedTransformer(HookedTransformerConfig(2, 8, 32, 4, d_vocab=20, attn_only=True))
        >>> run_operations(model), run_operations(model, 1)
        (1536.0, 928.0)
    """
    return (model.cfg.n_layers - start_at_layer) * layer_operations(model) + row_operations(model)
