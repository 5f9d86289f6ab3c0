"""One transformer block, and the hook points on its residual stream."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening
from headscope.model.parts.attention import make_attention
from headscope.model.parts.experts import make_mlp
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCacheEntry
from headscope.model.parts.layers import make_post_norm, make_pre_norm

__all__ = ["TransformerBlock"]


class TransformerBlock(nn.Module):
    """Attention, then an MLP (unless `attn_only`), each reading a norm of the residual stream and adding to it.

    What they make may go through a norm as well, `ln1_post` and `ln2_post`: `hook_attn_out` and `hook_mlp_out` are what
    is added to the stream, behind it.
    """

    def __init__(self, cfg: HookedTransformerConfig, block_index: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.ln1 = make_pre_norm(cfg)
        self.attn = make_attention(cfg, block_index)
        self.hook_attn_in = HookPoint()
        self.hook_q_input = HookPoint()
        self.hook_k_input = HookPoint()
        self.hook_v_input = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_pre = HookPoint()
        self.hook_resid_post = HookPoint()
        if not cfg.attn_only:
            self.ln2 = make_pre_norm(cfg)
            self.mlp = make_mlp(cfg)
            self.hook_mlp_in = HookPoint()
            self.hook_mlp_out = HookPoint()
        self.ln1_post = make_post_norm(cfg)
        self.ln2_post = None if cfg.attn_only else make_post_norm(cfg)
        if cfg.has_resid_mid:
            self.hook_resid_mid = HookPoint()

    def forward(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        past_kv_cache_entry: HookedTransformerKeyValueCacheEntry | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this block.

        Args:
            resid_pre: The stream before it.
            shortformer_pos_embed: Added to what queries and keys read (never to the stream).
            past_kv_cache_entry: This layer's keys and values of the tokens in front of these.
            attention_mask: `[batch, key_pos]`, true for real tokens; `None` when all are.
        """
        resid_pre = self.hook_resid_pre(resid_pre)
        queries, keys, values = self._attention_inputs(resid_pre)
        if shortformer_pos_embed is not None:
            positions = shortformer_pos_embed if queries.ndim == 3 else shortformer_pos_embed.unsqueeze(-2)
            queries, keys = queries + positions, keys + positions
        attn_out = self.attn(
            queries, keys, values, past_kv_cache_entry=past_kv_cache_entry, attention_mask=attention_mask
        )
        attn_out = self.hook_attn_out(attn_out if self.ln1_post is None else self.ln1_post(attn_out))
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        if self.cfg.parallel_attn_mlp:
            return self.hook_resid_post(resid_pre + attn_out + self._mlp_out(resid_pre))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        return self.hook_resid_post(resid_mid + self._mlp_out(resid_mid))

    def mlp_out(self, resid: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """What the MLP adds to the stream it reads, by way of its norms."""
        out = self.mlp(self.ln2(resid))
        return out if self.ln2_post is None else self.ln2_post(out)

    def _mlp_out(self, resid: Tensor) -> Tensor:
        if self.cfg.use_hook_mlp_in or is_listening(self.hook_mlp_in):
            resid = self.hook_mlp_in(resid.clone())
        return self.hook_mlp_out(self.mlp_out(resid))

    def _attention_inputs(self, resid_pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalized inputs of q, k and v: one tensor for all, unless somebody wants them per head."""
        if self.cfg.use_attn_in or is_listening(self.hook_attn_in):
            shared = self.hook_attn_in(self._per_head(resid_pre, self.cfg.n_heads))
        else:
            shared = resid_pre
        points = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not (self.cfg.use_split_qkv_input or any(map(is_listening, points))):
            normalized = self.ln1(shared)
            return normalized, normalized, normalized
        copies = (self.cfg.n_heads, self.cfg.n_cached_heads, self.cfg.n_cached_heads)
        q, k, v = (
            self.ln1(point(shared.clone() if shared.ndim == 4 else self._per_head(shared, n)))
            for point, n in zip(points, copies, strict=True)
        )
        return q, k, v

    def _per_head(self, resid: Tensor, n_heads: int) -> Float[Tensor, "batch pos head d_model"]:
        # A copy, not a broadcast view: a hook may write to one head's input in place.
        return torch.repeat_interleave(resid.unsqueeze(-2), n_heads, dim=-2)
