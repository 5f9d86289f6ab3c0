"""nanochat: Llama with squared ReLU, capped logits, and norms without weights, also behind the embedding.

Two things are folded. The norm behind the embedding sees a token alone, so that `W_E` is the embedding after it. And
queries and keys are rotated the other way round: with the second half of each head's dimensions negated in both, which
leaves their products as they are, the usual rotation is the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import Table, linear
from headscope.model.checkpoints.families.llama import LlamaLike, norms_without_weights
from headscope.model.config import HookedTransformerConfig

__all__ = ["NANOCHAT"]

_TURNED = (".attn.W_Q", ".attn.W_K", ".attn._W_K", ".attn.b_Q", ".attn.b_K", ".attn._b_K")


class _NanoChat(LlamaLike):
    model_type = "nanochat"
    architecture = "NanoChatForCausalLM"
    examples = ("nanochat-students/base-d20", "karpathy/nanochat-d32")
    windowed = False
    names = {**LlamaLike.names, "output_logits_soft_cap": "final_logit_softcapping"}
    fixed = {**LlamaLike.fixed, "gated_mlp": False, "normalization_type": "RMSPre", "use_qk_norm": True}
    defaults = {**LlamaLike.defaults, "act_fn": "relu2", "output_logits_soft_cap": 15.0}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        return {**fields, "output_logits_soft_cap": float(fields["output_logits_soft_cap"] or -1)}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        cap = cfg.output_logits_soft_cap
        return {**super().entries(cfg, state), "final_logit_softcapping": cap if cap > 0 else None}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {name: row for name, row in super().outside(cfg, hf).items() if name != "ln_final.w"}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        attention = {name: row for name, row in super().layer(cfg, hf).items() if name.startswith(("attn.W", "attn.b"))}
        mlp = {**linear("mlp.in", "mlp.fc1"), **linear("mlp.out", "mlp.fc2")}
        return {**attention, **{name: row for name, row in mlp.items() if ".W_" in name}}

    def computed(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> dict[str, Tensor]:
        return norms_without_weights(cfg)

    def convert(
        self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, hf: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().convert(tensors, cfg, hf):
            if name == "embed.W_E":
                wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                yield name, F.rms_norm(wide, wide.shape[-1:], eps=cfg.eps)
            else:
                yield name, _turned_back(tensor) if name.endswith(_TURNED) else tensor

    def export(
        self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        turned = {name: _turned_back(each) if name.endswith(_TURNED) else each for name, each in state.items()}
        return super().export(cfg, {**turned, "embed.W_E": _before_norm(state["embed.W_E"], cfg.eps)})


def _before_norm(embedding: Tensor, eps: float) -> Tensor:
    """Scale each row `y` so that the norm gives `y`: `c y / sqrt(c^2 m + eps)` is, for its mean square `m < 1`."""
    square = embedding.double().square().mean(-1, keepdim=True)
    rounding = 8 * torch.finfo(embedding.dtype).eps
    if bool((square > 1 + rounding).any()):
        raise CheckpointError(
            "NanoChatForCausalLM in transformers normalizes the embedding, and cannot hold a W_E with longer rows: "
            f"the largest root mean square here is {float(square.max().sqrt()):.4g}."
        )
    return (embedding * (eps / (1 - square).clamp(min=1e-9)).sqrt()).to(embedding.dtype)


def _turned_back(tensor: Tensor) -> Tensor:
    """Negate the second half of each head's dimensions, which is its own inverse."""
    first, second = tensor.chunk(2, dim=-1)
    return torch.cat([first, -second], dim=-1)


NANOCHAT = _NanoChat()
