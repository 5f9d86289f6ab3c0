"""The states of the residual stream and what each component wrote, at the positions that count."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.batches import Block
from headscope.errors import InvalidInputError, NotFiniteError

if TYPE_CHECKING:
    from headscope.model.transformer import HookedTransformer

__all__ = ["LensStates", "lens_states", "state_labels"]


@dataclass(frozen=True)
class LensStates:
    """What one forward pass wrote, at the positions that count, in float32 at least.

    Attributes:
        resid: Each `resid_pre` and `resid_mid` (where blocks have one), then the final state.
        z: Each head's output before `W_O`.
        mlp: Each MLP's output; `None` without MLPs.
    """

    resid: Float[Tensor, "state row d_model"]
    z: Float[Tensor, "layer head row d_head"]
    mlp: Float[Tensor, "layer row d_model"] | None

    @property
    def n(self) -> int:
        """Positions that count."""
        return self.resid.shape[1]

    def wide(self, tensor: Tensor) -> Tensor:
        """A weight in the type these states are computed in."""
        return tensor.detach().to(self.resid.dtype)


@torch.no_grad()
def lens_states(model: "HookedTransformer", block: Block) -> LensStates:
    """Run a block through the model and keep its states at the positions that count.

    Raises:
        InvalidInputError: if a module stands where a hook point is read.
        NotFiniteError: if a final state is not finite.
    """
    cfg = model.cfg
    kinds = ("hook_resid_pre", "hook_resid_mid", "attn.hook_z", "hook_mlp_out")
    wanted = [f"blocks.{layer}.{kind}" for layer in range(cfg.n_layers) for kind in kinds]
    names = [name for name in wanted if name in model.mod_dict]
    replaced = [name for name in names if name not in model.hook_dict]
    if replaced:
        module = type(model.mod_dict[replaced[0]]).__name__
        raise InvalidInputError(
            f"{replaced[0]} holds a {module} instead of a hook point, so what passes there cannot be read. "
            "Take it out for this analysis, or apply it with a hook."
        )
    final, cache = model.run_with_cache(
        block.tokens,
        names_filter=names,
        attention_mask=block.attention_mask,
        stop_at_layer=cfg.n_layers,
        return_cache_object=False,
    )
    kind = torch.promote_types(final.dtype, torch.float32)

    def kept(activation: Tensor) -> Tensor:
        return activation[block.counted].to(kind)

    resid = []
    for layer in range(cfg.n_layers):
        resid.append(kept(cache[f"blocks.{layer}.hook_resid_pre"]))
        if cfg.has_resid_mid:
            resid.append(kept(cache[f"blocks.{layer}.hook_resid_mid"]))
    resid.append(kept(final))
    if not bool(resid[-1].isfinite().all()):
        raise NotFiniteError(
            "the model's final residual stream holds NaN or infinite values. Check its weights, and any hooks on it."
        )
    z = torch.stack([kept(cache[f"blocks.{layer}.attn.hook_z"]) for layer in range(cfg.n_layers)])
    mlp = None
    if not cfg.attn_only:
        mlp = torch.stack([kept(cache[f"blocks.{layer}.hook_mlp_out"]) for layer in range(cfg.n_layers)])
    return LensStates(torch.stack(resid), z.permute(0, 2, 1, 3).contiguous(), mlp)


def state_labels(model: "HookedTransformer") -> tuple[str, ...]:
    """Names of the states measured: `0_pre`, `0_mid`, ..., `final`."""
    kinds = ("pre", "mid") if model.cfg.has_resid_mid else ("pre",)
    return (*(f"{layer}_{kind}" for layer in range(model.cfg.n_layers) for kind in kinds), "final")
