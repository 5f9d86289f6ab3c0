"""`BaseRun`: the unpatched run, kept so that a patch needs only what it changes, and where each patch enters it."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from headscope.model.block import TransformerBlock
from headscope.model.hooks import HookPoint, is_plain
from headscope.model.parts.attention import Attention, GroupedQueryAttention
from headscope.model.parts.layers import MLP, Embed, LayerNorm, LayerNormPre, PosEmbed, RMSNorm, RMSNormPre, Unembed
from headscope.model.transformer import HookedTransformer

__all__ = ["BaseRun", "Entry", "Site", "can_be_resumed", "site_of"]

_KINDS = (
    nn.ModuleList, nn.Identity, HookPoint, HookedTransformer, TransformerBlock, Attention, GroupedQueryAttention, MLP,
    LayerNorm, LayerNormPre, RMSNorm, RMSNormPre, Embed, PosEmbed, Unembed,
)  # fmt: skip
_ATTENTION_POINTS = {"hook_q", "hook_k", "hook_v", "hook_z", "hook_attn_scores", "hook_pattern", "hook_result"}
_STREAMS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
_IN_HEADS = ("hook_z", "hook_q", "hook_k", "hook_v", "hook_pattern")
_NAME = re.compile(rf"blocks\.(\d+)\.(?:({'|'.join(_STREAMS)})|attn\.({'|'.join(_IN_HEADS)}))")


def can_be_resumed(model: HookedTransformer) -> bool:
    """Whether the model is made of the parts that are known here, and nobody looks at any of them.

    A hook may count on the batch and the positions it was made for; a module of somebody else's may mix positions.
    Rotary positions, gated MLPs and norms of queries and keys are not among these parts yet.
    """
    cfg = model.cfg
    if (
        cfg.has_post_norms
        or cfg.clip_qkv is not None
        or cfg.positional_embedding_type == "alibi"
        or cfg.attn_scores_soft_cap > 0
    ):
        return False
    return all(
        type(module) in _KINDS
        and is_plain(module, type(module))
        and (not isinstance(module, Attention) or {name for name, _ in module.named_children()} == _ATTENTION_POINTS)
        for module in model.modules()
    )


@dataclass(frozen=True)
class Site:
    """A hook point at which a run can be resumed."""

    name: str
    layer: int
    kind: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Activations of its layer that the run after it is made of, if the model has them."""
        stream = ("hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out")
        inside = ("attn.hook_q",) if self.kind in _IN_HEADS[1:] else ()
        return tuple(f"blocks.{self.layer}.{name}" for name in (*stream, *inside)) + (self.name,)


def site_of(hook_name: str) -> Site | None:
    """The site of that name; `None` for a hook point elsewhere."""
    found = _NAME.fullmatch(hook_name)
    if found is None:
        return None
    layer, stream, inside = found.groups()
    return Site(hook_name, int(layer), stream or inside)


@dataclass(frozen=True)
class Entry:
    """A patched residual stream, and where it goes on.

    Attributes:
        layer: Of which layer.
        is_mid: Between its attention and its MLP; else before both.
        start: The first position that differs from the unpatched run.
        stream: What there is from `start` on.
    """

    layer: int
    is_mid: bool
    start: int
    stream: Float[Tensor, "batch suffix d_model"]


class BaseRun:
    """One run, nothing patched: keys and values of every layer, and what patches are put into.

    Args:
        model: One that `can_be_resumed`.
        tokens: `[batch, pos]`.
        attention_mask: See `HookedTransformer.forward`.
        sites: Where patches will be made.
        watched: Hook points to watch as the other run's were: kernels may round otherwise when somebody looks, and what
            is equal in both runs is not run again if it is equal to the last bit.
    """

    def __init__(
        self,
        model: HookedTransformer,
        tokens: Tensor,
        attention_mask: Tensor | None,
        *,
        sites: Collection[Site],
        watched: Iterable[str] = (),
    ) -> None:
        self.model = model
        first, _, self.positions, self.mask = model.input_to_embed(tokens, attention_mask=attention_mask)
        self.batch, self.length = first.shape[:2]
        self.blocks = [cast(TransformerBlock, block) for block in model.blocks]
        self.allowed = [block.attn.mask[: self.length, : self.length].clone() for block in self.blocks]
        self.is_causal = not any(bool(allowed.triu(1).any()) for allowed in self.allowed)
        wanted = {f"blocks.{layer}.attn.hook_{each}" for layer in range(model.cfg.n_layers) for each in "kv"}
        wanted |= {name for site in sites for name in site.needs}
        self.kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: HookPoint) -> None:
            if hook.name in wanted:
                self.kept[hook.name or ""] = activation

        listened = wanted.union(watched)
        self.final: Float[Tensor, "batch pos d_model"] = model.run_with_hooks(
            tokens,
            fwd_hooks=[(name, keep) for name in model.hook_dict if name in listened],
            attention_mask=attention_mask,
            stop_at_layer=model.cfg.n_layers,
        )

    def past(self, layer: int, start: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer before a position."""
        attn = f"blocks.{layer}.attn.hook_"
        return self.kept[f"{attn}k"][:, :start], self.kept[f"{attn}v"][:, :start]

    def enter(self, site: Site, patched: Tensor, stop: int) -> Entry:
        """How the run goes on once an activation is replaced; `start` is `length` if nothing changed.

        Args:
            site: Where it is replaced.
            patched: What takes its place, of the same shape.
            stop: Positions from here on are not needed.
        """
        axis = 2 if site.kind == "hook_pattern" else 1
        differs = patched != self.kept[site.name]
        at = differs.any(dim=[each for each in range(differs.ndim) if each != axis]).nonzero()
        start = self.length if not len(at) else int(at[0]) if self.is_causal else 0
        here = slice(start, stop)
        if start >= stop:
            return Entry(site.layer, False, self.length, self.final[:, :0])
        cfg, layer = self.model.cfg, site.layer
        if site.kind in ("hook_resid_pre", "hook_resid_mid"):
            return Entry(layer, site.kind == "hook_resid_mid", start, patched[:, here])
        if site.kind == "hook_resid_post":
            return Entry(layer + 1, False, start, patched[:, here])
        name = f"blocks.{layer}.hook_"
        if site.kind == "hook_mlp_out":
            if cfg.has_resid_mid:
                before = self.kept[f"{name}resid_mid"][:, here]
            else:
                before = self.kept[f"{name}resid_pre"][:, here] + self.kept[f"{name}attn_out"][:, here]
            return Entry(layer + 1, False, start, before + patched[:, here])
        attn_out = patched[:, here] if site.kind == "hook_attn_out" else self._attn_out(site, patched, here)
        stream = self.kept[f"{name}resid_pre"][:, here] + attn_out
        if not (cfg.has_resid_mid or cfg.attn_only):
            stream = stream + self.kept[f"{name}mlp_out"][:, here]
        return Entry(layer if cfg.has_resid_mid else layer + 1, cfg.has_resid_mid, start, stream)

    def _attn_out(self, site: Site, patched: Tensor, here: slice) -> Float[Tensor, "batch suffix d_model"]:
        """What a layer's attention writes with something inside its heads replaced: their other outputs stay."""
        attn = self.blocks[site.layer].attn
        change = self._change_of_z(site, patched, attn)[:, here]
        heads = change.any(dim=-1).any(dim=0).any(dim=0).nonzero().flatten()
        attn_out = self.kept[f"blocks.{site.layer}.hook_attn_out"][:, here]
        return attn_out + F.linear(change[:, :, heads].flatten(-2), attn.W_O[heads].flatten(0, 1).T)

    def _change_of_z(self, site: Site, patched: Tensor, attn: Attention) -> Float[Tensor, "batch pos head d_head"]:
        base = {each: self.kept[f"blocks.{site.layer}.attn.hook_{each}"] for each in ("k", "v")}
        if site.kind == "hook_z":
            return patched - self.kept[site.name]
        q = self.kept[f"blocks.{site.layer}.attn.hook_q"]
        n_heads = q.shape[2]
        if site.kind == "hook_v":
            pattern = self._pattern(q, base["k"], attn)
            return torch.einsum("bhqk,bkhe->bqhe", pattern, _for_each(patched - base["v"], n_heads))
        if site.kind == "hook_pattern":
            change = patched - self.kept[site.name]
        else:
            q_and_k = (patched, base["k"]) if site.kind == "hook_q" else (q, patched)
            change = self._pattern(*q_and_k, attn) - self._pattern(q, base["k"], attn)
        return torch.einsum("bhqk,bkhe->bqhe", change, _for_each(base["v"], n_heads))

    def _pattern(self, q: Tensor, k: Tensor, attn: Attention) -> Float[Tensor, "batch head query_pos key_pos"]:
        scores = torch.einsum("bqhe,bkhe->bhqk", q / attn.attn_scale, _for_each(k, q.shape[2]))
        allowed = self.allowed[attn.layer_id][None, None]
        if self.mask is not None:
            allowed = allowed & self.mask.bool()[:, None, None, :]
        pattern = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        return torch.where(pattern.isnan(), 0.0, pattern).to(q.dtype)  # a padded query may see no key


def _for_each(shared: Float[Tensor, "batch pos group d_head"], n_heads: int) -> Float[Tensor, "batch pos head d_head"]:
    """Keys or values of each head, where a group of heads shares them."""
    return shared.repeat_interleave(n_heads // shared.shape[2], dim=2)
