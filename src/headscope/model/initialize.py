"""Random weights for a model made from a config."""

import torch
from torch import nn

from headscope.model.config import HookedTransformerConfig

__all__ = ["initialize_weights"]


def initialize_weights(model: nn.Module) -> None:
    """Draw every weight matrix from a normal of `cfg.initializer_range`; biases are zero and norms one.

    With `cfg.seed` the draw has a generator of its own, so the global one is left alone.
    """
    cfg = model.cfg
    assert isinstance(cfg, HookedTransformerConfig)
    generator = None if cfg.seed is None else torch.Generator().manual_seed(cfg.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if kind.startswith("W_"):
                values = torch.empty(parameter.shape, dtype=torch.float32)
                parameter.copy_(values.normal_(std=cfg.initializer_range, generator=generator))
            elif kind.startswith("b"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
