"""One transformer block, the hook points on its residual stream, and its arithmetic piece by piece.

`forward` is made of `attn_out`, `after_attention`, `after_mid` and `mlp_out`, which analyses call when they change
something in the middle: what a new kind of block does differently is written here, once.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening, is_own
from headscope.model.parts.attention import make_attention
from headscope.model.parts.experts import make_mlp
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCacheEntry
from headscope.model.parts.layers import make_post_norm, make_pre_norm
from headscope.ops.indexing import at_positions

__all__ = ["RESUMABLE", "TransformerBlock"]

_STREAMS = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_post": 2}
_PROJECTIONS = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
# Where a run of a block can be taken up again; see `TransformerBlock.resumed`.
RESUMABLE = (*_STREAMS, "hook_attn_out", "hook_mlp_out", "attn.hook_z", *_PROJECTIONS, "attn.hook_pattern")


class TransformerBlock(nn.Module):
    """Attention, then an MLP (unless `attn_only`), each reading a norm of the residual stream and adding to it.

    Their outputs may go through post-norms, `ln1_post` and `ln2_post`: `hook_attn_out` and `hook_mlp_out` show what is
    added to the stream, behind these. A part that the config does not ask for is absent, not `None`.
    """

    ln1_post: nn.Module
    ln2_post: nn.Module

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
        if cfg.has_post_norms:
            self.ln1_post = make_post_norm(cfg)
            if not cfg.attn_only:
                self.ln2_post = make_post_norm(cfg)
        if cfg.has_resid_mid:
            self.hook_resid_mid = HookPoint()

    def forward(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        past_kv_cache_entry: HookedTransformerKeyValueCacheEntry | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream after this block.

        Args:
            resid_pre: The stream before it.
            shortformer_pos_embed: Added to what queries and keys read (never to the stream).
            past_kv_cache_entry: This layer's keys and values of the tokens in front of these.
            attention_mask: `[batch, key_pos]`, true for real tokens; `None` when all are.
        """
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.attn_out(resid_pre, shortformer_pos_embed, past_kv_cache_entry, attention_mask)
        return self.after_attention(resid_pre, self.hook_attn_out(attn_out))

    def attn_out(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        past_kv_cache_entry: HookedTransformerKeyValueCacheEntry | None = None,
        attention_mask: Tensor | None = None,
        query_at: Int[Tensor, "batch 1"] | None = None,
    ) -> Float[Tensor, "batch query_pos d_model"]:
        """Return what attention adds to the stream it reads, through its norms.

        Args:
            resid_pre: The stream before the block.
            shortformer_pos_embed: See `forward`.
            past_kv_cache_entry: See `forward`.
            attention_mask: See `forward`.
            query_at: Attend from one position of each row only. Attention takes it for the last one, so that the keys
                behind it have to be masked.
        """
        queries, keys, values = self._attention_inputs(resid_pre)
        if shortformer_pos_embed is not None:
            positions = shortformer_pos_embed if queries.ndim == 3 else shortformer_pos_embed.unsqueeze(-2)
            queries, keys = queries + positions, keys + positions
        if query_at is not None:
            queries = at_positions(queries, query_at)
        out = self.attn(queries, keys, values, past_kv_cache_entry=past_kv_cache_entry, attention_mask=attention_mask)
        return self.ln1_post(out) if self.cfg.has_post_norms else out

    def after_attention(
        self, resid_pre: Float[Tensor, "batch pos d_model"], attn_out: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream after this block, given what attention adds to it."""
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        if self.cfg.parallel_attn_mlp:
            return self.hook_resid_post(resid_pre + attn_out + self._mlp_out(resid_pre))
        return self.after_mid(resid_pre + attn_out)

    def after_mid(self, resid_mid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream after this block, given that between attention and MLP."""
        resid_mid = self.hook_resid_mid(resid_mid)
        return self.hook_resid_post(resid_mid + self._mlp_out(resid_mid))

    def mlp_out(self, resid: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """Return what the MLP adds to the stream it reads, through its norms."""
        out = self.mlp(self.ln2(resid))
        return self.ln2_post(out) if self.cfg.has_post_norms else out

    def reprojected(
        self,
        name: Literal["q", "k", "v"],
        head: int,
        shown: Float[Tensor, "*lead d_head"],
        before: Float[Tensor, "*fewer d_model"],
        after: Float[Tensor, "*lead d_model"],
    ) -> Float[Tensor, "*lead d_head"]:
        """Return what `hook_q`, `hook_k` or `hook_v` shows of a head once the stream it reads has changed.

        Args:
            name: Which of them.
            head: The head.
            shown: What it showed before.
            before: The stream it read then.
            after: The stream it reads now.
        """
        attn, limit = self.attn, self.cfg.clip_qkv
        weight = getattr(attn, f"W_{name.upper()}")[head]
        if name == "v" and limit is not None:
            # Values are clipped before they are shown; queries and keys after.
            return (self.ln1(after) @ weight + attn.b_V[head]).clamp(-limit, limit)
        # Linear in the normalized stream; biases, and the positions that queries and keys may read too, stay.
        return shown + (self.ln1(after) - self.ln1(before)) @ weight

    # Taken up in the middle

    @property
    def can_resume(self) -> bool:
        """True if `resumed`, `after_mid` and `query_at` give what a whole run gives, for some of its positions.

        Not with a hook on any part, which may count on the batch and the positions it was made for, nor with a module
        of somebody else's, which may mix positions. Rotary positions, ALiBi, post-norms, gated MLPs, experts, capped
        scores, clipped and normalized queries and keys are not supported yet.
        """
        cfg = self.cfg
        unsupported = (
            cfg.positional_embedding_type in ("rotary", "alibi")
            or cfg.has_post_norms
            or cfg.gated_mlp
            or cfg.num_experts is not None
            or cfg.attn_scores_soft_cap > 0
            or cfg.clip_qkv is not None
            or cfg.use_qk_norm
        )
        return not unsupported and all(map(is_own, self.modules()))

    def read_by_resumed(self, site: str) -> list[str]:
        """Return the activations that `resumed` needs, by their names in this block, besides keys and values."""
        streams = ["hook_resid_pre", "hook_attn_out"]
        streams += ["hook_resid_mid"] if self.cfg.has_resid_mid else []
        streams += [] if self.cfg.attn_only else ["hook_mlp_out"]
        return [*streams, *(["attn.hook_q"] if site in _PROJECTIONS else []), site]

    def resumed(
        self,
        site: str,
        value: Tensor,
        kept: Mapping[str, Tensor],
        here: slice,
        attention_mask: Tensor | None = None,
    ) -> tuple[int, Float[Tensor, "batch here d_model"]]:
        """Return where a run goes on, and with which stream, once one activation is replaced.

        Args:
            site: One of `RESUMABLE`, in a block that `can_resume`.
            value: What takes its place, of the same shape.
            kept: The unpatched run's activations, by their names in this block.
            here: The positions wanted.
            attention_mask: That of the unpatched run.

        Returns:
            0, 1 or 2 for a stream before the block, between attention and MLP, or after the block; and the stream.
        """
        if site in _STREAMS:
            return _STREAMS[site], value[:, here]
        resid_pre = kept["hook_resid_pre"][:, here]
        if site == "hook_mlp_out":
            if self.cfg.has_resid_mid:
                return 2, kept["hook_resid_mid"][:, here] + value[:, here]
            return 2, resid_pre + kept["hook_attn_out"][:, here] + value[:, here]
        if site == "hook_attn_out":
            attn_out = value[:, here]
        else:
            change = self.attn.change_of_z(site.removeprefix("attn."), value, kept, attention_mask)[:, here]
            attn_out = kept["hook_attn_out"][:, here] + self.attn.heads_out(change)
        if self.cfg.has_resid_mid:
            return 1, resid_pre + attn_out
        after = resid_pre + attn_out
        return 2, after if self.cfg.attn_only else after + kept["hook_mlp_out"][:, here]

    def _mlp_out(self, resid: Tensor) -> Tensor:
        if self.cfg.use_hook_mlp_in or is_listening(self.hook_mlp_in):
            resid = self.hook_mlp_in(resid.clone())
        return self.hook_mlp_out(self.mlp_out(resid))

    def _attention_inputs(self, resid_pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized inputs of q, k and v: one tensor for all, unless somebody wants them per head."""
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
