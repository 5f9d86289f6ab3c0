"""Random weights for a model made from a config: for a seed, those of TransformerLens 3.9 to the bit.

A seed's numbers depend on the order in which weights are drawn, on their shapes and on their dtype. Matrices are drawn
module by module, within one in the order of `_ORDER`, on the CPU, in the dtype of the weight; experts one by one, as
the `[out, in]` matrices of `torch.nn.Linear`. There, a model with ALiBi has a table of positions that nothing reads:
its numbers are drawn and dropped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from headscope.differences import tell
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.experts import MoE
from headscope.ops.initialization import (
    calc_fan_in_and_fan_out,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)

__all__ = ["initialize_weights"]

# Of heads and MLPs; what has no place here comes before, as it is registered.
_ORDER = "W_Q W_O W_K W_V W_in W_out W_gate "
_WITH_GAIN: dict[str, Callable[..., Any]] = {
    "xavier_uniform": init_xavier_uniform_,
    "xavier_normal": init_xavier_normal_,
    "kaiming_uniform": init_kaiming_uniform_,
    "kaiming_normal": init_kaiming_normal_,
}


def initialize_weights(model: nn.Module) -> None:
    """Draw every weight matrix according to `cfg.init_mode`; biases are zero and norm weights one.

    Weights of other kinds, such as those of an activation function, stay as they are. With `cfg.seed` the draw uses its
    own generator, and the global one is untouched. The modes:

    - `"gpt2"`: a normal of standard deviation `cfg.initializer_range`.
    - `"xavier_..."`, `"kaiming_..."`: as in `headscope.ops.initialization`, with `cfg.initializer_range` as the gain.
    - `"muP"`: a normal of standard deviation `fan_in ** -0.5` (Yang et al. 2022, arXiv 2203.03466), but one for
      embedding, positions and unembedding. The paper's table 3 has `1 / fan_in` for the unembedding.
    """
    cfg = model.cfg
    assert isinstance(cfg, HookedTransformerConfig)
    if cfg.gated_mlp and not cfg.num_experts:
        tell("gated biases")
    generator = None if cfg.seed is None else torch.Generator().manual_seed(cfg.seed)
    with torch.no_grad():
        for path, module in model.named_modules():
            for matrix in _matrices(path, module):
                # Contiguous, and on the CPU: a seed gives other numbers elsewhere.
                matrix.copy_(_draw(torch.empty(matrix.shape, dtype=matrix.dtype, device="cpu"), cfg, path, generator))
            if path == "embed" and cfg.positional_embedding_type == "alibi":
                _draw(torch.empty(cfg.n_ctx, cfg.d_model, dtype=cfg.dtype, device="cpu"), cfg, path, generator)
            _fill_biases_and_norms(path, module)


def _draw(empty: Tensor, cfg: HookedTransformerConfig, path: str, generator: torch.Generator | None) -> Tensor:
    if cfg.init_mode in _WITH_GAIN:
        drawn: Tensor = _WITH_GAIN[cfg.init_mode](empty, gain=cfg.initializer_range, generator=generator)
        return drawn
    deviation = cfg.initializer_range
    if cfg.init_mode == "muP":
        deviation = 1.0 if path in ("embed", "pos_embed", "unembed") else 1 / calc_fan_in_and_fan_out(empty)[0] ** 0.5
    return nn.init.normal_(empty, 0.0, deviation, generator)


def _matrices(path: str, module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's own weight matrices in the order and the layout they are drawn in."""
    named = [each for each in module.named_parameters(recurse=False) if _is_matrix(path, *each)]
    own = dict(sorted(named, key=lambda each: _ORDER.find(each[0].lstrip("_") + " ")))
    if isinstance(module, MoE):
        router, shared_gate = own.pop("W_router"), own.pop("W_shared_gate", None)
        yield from (weight[expert].T for expert in range(router.shape[-1]) for weight in own.values())
        yield from (weight.T for weight in (router, shared_gate) if weight is not None)
        return
    yield from own.values()


def _is_matrix(path: str, name: str, weight: Tensor) -> bool:
    # Weights shared by a group of heads begin with an underscore; a mixer's have the names of `transformers`.
    return name.lstrip("_").startswith("W_") or (_in_mixer(path) and weight.ndim > 1)


def _in_mixer(path: str) -> bool:
    return ".mixer" in path


def _fill_biases_and_norms(path: str, module: nn.Module) -> None:
    for name, weight in module.named_parameters(recurse=False):
        if _is_matrix(path, name, weight):
            continue
        if name in ("b", "bias") or name.lstrip("_").startswith("b_"):
            weight.zero_()
        elif name == "w" or _in_mixer(path):
            weight.fill_(1.0)
