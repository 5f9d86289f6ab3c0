"""Random weights for a model made from a config."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from headscope.model.config import HookedTransformerConfig
from headscope.ops.initialization import (
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)

__all__ = ["initialize_weights"]

_WITH_GAIN: dict[str, Callable[..., Any]] = {
    "xavier_uniform": init_xavier_uniform_,
    "xavier_normal": init_xavier_normal_,
    "kaiming_uniform": init_kaiming_uniform_,
    "kaiming_normal": init_kaiming_normal_,
}


def initialize_weights(model: nn.Module) -> None:
    """Draw every weight matrix according to `cfg.init_mode`; biases are zero and norm weights one.

    Weights of other kinds, such as those of an activation function, stay as they are.

    `"gpt2"` is a normal of standard deviation `cfg.initializer_range`, which is the gain in the other modes. With
    `cfg.seed` the draw uses its own generator, and the global one is untouched.
    """
    cfg = model.cfg
    assert isinstance(cfg, HookedTransformerConfig)
    generator = None if cfg.seed is None else torch.Generator().manual_seed(cfg.seed)
    if cfg.init_mode == "gpt2":
        draw = partial(nn.init.normal_, mean=0.0, std=cfg.initializer_range, generator=generator)
    else:
        draw = partial(_WITH_GAIN[cfg.init_mode], gain=cfg.initializer_range, generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            short = name.rsplit(".", 1)[-1].lstrip("_")  # weights shared by a group of heads begin with an underscore
            in_mixer = ".mixer." in name  # whose matrices have the names of `transformers`
            if short.startswith("W_") or (in_mixer and parameter.ndim > 1):
                parameter.copy_(draw(torch.empty(parameter.shape, dtype=torch.float32)))
            elif short in ("b", "bias") or short.startswith("b_"):
                parameter.zero_()
            elif short == "w" or in_mixer:
                parameter.fill_(1.0)
