"""One transformer block, the hook points on its residual stream, and its arithmetic piece by piece.

`forward` is made of `attn_out`, `after_attention`, `after_mid` and `mlp_out`, which analyses call when they change
something in the middle: what a new kind of block does differently is written here, once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening, is_own, is_plain, only_reads
from headscope.model.parts.experts import make_mlp
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCacheEntry
from headscope.model.parts.latent_attention import make_attention
from headscope.model.parts.layers import make_post_norm, make_pre_norm
from headscope.model.parts.mixers import make_mixer, mixer_output
from headscope.model.weights.mapped import give_back
from headscope.ops.indexing import at_positions

__all__ = ["RESUMABLE", "TransformerBlock"]

_STREAMS = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_post": 2}
_PROJECTIONS = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
# Where a run of a block can be taken up again; see `TransformerBlock.resumed`.
RESUMABLE = (*_STREAMS, "hook_attn_out", "hook_mlp_out", "attn.hook_z", *_PROJECTIONS, "attn.hook_pattern")


class TransformerBlock(nn.Module):
    """Attention, then an MLP (unless `attn_only`), each reading a norm of the residual stream and adding to it.

    In a model with `layer_parts`, a mixer may stand for the attention or beside it, and any part may be missing.

    Their outputs may go through post-norms, `ln1_post` and `ln2_post`: `hook_attn_out` and `hook_mlp_out` show what is
    added to the stream, behind these. A part that the config does not ask for is absent, not `None`.
    """

    ln1_post: nn.Module
    ln2_post: nn.Module
    # True if the methods below the line "Taken up in the middle" say what `forward` does.
    resumes: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):  # what is said of one forward does not hold of another
            cls.resumes = vars(cls).get("resumes", False)

    def __init__(self, cfg: HookedTransformerConfig, block_index: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.layer = block_index
        self.gives_back = False  # the memory of weights that are mapped from a file, whenever it has run
        self.parts = cfg.parts_of(block_index)
        if self.parts != ("mlp",):
            self.ln1 = make_pre_norm(cfg, block_index)
        if "attn" in self.parts:
            self.attn = make_attention(cfg, block_index)
            self.hook_attn_in = HookPoint()
            self.hook_q_input = HookPoint()
            self.hook_k_input = HookPoint()
            self.hook_v_input = HookPoint()
            self.hook_attn_out = HookPoint()
        if "mixer" in self.parts:
            self.mixer = make_mixer(cfg)
            self.hook_mixer_out = HookPoint()
        self.hook_resid_pre = HookPoint()
        self.hook_resid_post = HookPoint()
        if "mlp" in self.parts:
            self.ln2 = make_pre_norm(cfg, block_index)
            self.mlp = make_mlp(cfg, block_index)
            self.hook_mlp_in = HookPoint()
            self.hook_mlp_out = HookPoint()
        if cfg.has_post_norms:
            self.ln1_post = make_post_norm(cfg)
            if "mlp" in self.parts:
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
        added: list[Tensor] = []
        if "attn" in self.parts:
            attn_out = self.attn_out(resid_pre, shortformer_pos_embed, past_kv_cache_entry, attention_mask)
            added.append(self.hook_attn_out(attn_out))
        if "mixer" in self.parts:
            if past_kv_cache_entry is not None:
                raise InvalidInputError(
                    "a key-value cache does not hold the states of mixers, so a model that has them runs on whole "
                    "texts: leave past_kv_cache out."
                )
            added.append(self.hook_mixer_out(self.mixer_out(resid_pre, attention_mask)))
        resid_post = self.after_attention(resid_pre, *added)
        if self.gives_back:
            give_back(self.parameters())
        return resid_post

    def attn_out(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        past_kv_cache_entry: HookedTransformerKeyValueCacheEntry | None = None,
        attention_mask: Tensor | None = None,
        query_at: Int[Tensor, "batch query_pos"] | None = None,
    ) -> Float[Tensor, "batch query_pos d_model"]:
        """Return what attention adds to the stream it reads, through its norms.

        Args:
            resid_pre: The stream before the block.
            shortformer_pos_embed: See `forward`.
            past_kv_cache_entry: See `forward`.
            attention_mask: See `forward`.
            query_at: Attend from these positions of each row only, counted from the start of the text.
        """
        read = self._attention_inputs(resid_pre)
        return self.attend(*read, shortformer_pos_embed, past_kv_cache_entry, attention_mask, query_at)

    def attend(
        self,
        queries: Float[Tensor, "batch pos *head d_model"],
        keys: Float[Tensor, "batch pos *key_head d_model"],
        values: Float[Tensor, "batch pos *key_head d_model"],
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        past_kv_cache_entry: HookedTransformerKeyValueCacheEntry | None = None,
        attention_mask: Tensor | None = None,
        query_at: Int[Tensor, "batch query_pos"] | None = None,
    ) -> Float[Tensor, "batch query_pos d_model"]:
        """Return what attention adds to the stream, given what its queries, keys and values read of it.

        Args:
            queries: The normalized stream that queries are made from, or one for each head.
            keys: The same for keys; with a head axis for each head, or each group that shares them.
            values: The same for values.
            shortformer_pos_embed: See `forward`.
            past_kv_cache_entry: See `forward`.
            attention_mask: See `forward`.
            query_at: See `attn_out`.
        """
        if shortformer_pos_embed is not None:
            positions = shortformer_pos_embed if queries.ndim == 3 else shortformer_pos_embed.unsqueeze(-2)
            queries, keys = queries + positions, keys + positions
        if query_at is not None:
            n_past = 0 if past_kv_cache_entry is None else past_kv_cache_entry.past_keys.shape[1]
            queries = at_positions(queries, query_at - n_past)
        options = {"past_kv_cache_entry": past_kv_cache_entry, "attention_mask": attention_mask}
        options |= {} if query_at is None else {"query_at": query_at}  # which attention of somebody else's lacks
        return self._behind_attention(self.attn(queries, keys, values, **options))

    def _behind_attention(self, out: Tensor) -> Tensor:
        return self.ln1_post(out) if self.cfg.has_post_norms else out

    def mixer_out(
        self, resid_pre: Float[Tensor, "batch pos d_model"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return what the mixer adds to the stream it reads, through its norm; padding stays out of its state."""
        return mixer_output(self.cfg, self.mixer, self.ln1(resid_pre), attention_mask)

    def after_attention(
        self, resid_pre: Float[Tensor, "batch pos d_model"], *added: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream after this block, given what attention, or a mixer, or both, add to it."""
        resid = sum(added, start=resid_pre)
        if self.cfg.parallel_attn_mlp and "mlp" in self.parts:
            return self.hook_resid_post(resid + self._mlp_out(resid_pre))
        return self.after_mid(resid)

    def after_mid(self, resid_mid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream after this block, given that between attention and MLP."""
        if self.cfg.has_resid_mid:
            resid_mid = self.hook_resid_mid(resid_mid)
        return self.hook_resid_post(resid_mid + self._mlp_out(resid_mid) if "mlp" in self.parts else resid_mid)

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
        attn, limit, read = self.attn, self.cfg.clip_qkv, self.ln1(after)
        if name == "v" and limit is not None:
            # Values are clipped before they are shown; queries and keys after.
            return attn.of_head(name, head, read).clamp(-limit, limit)
        # The difference, since the positions that queries and keys may read too stay.
        now, then = (attn.of_head(name, head, each, biased=False) for each in (read, self.ln1(before)))
        return shown + (now - then)

    # Taken up in the middle: a new kind of block or attention is run whole until it says that it does all of this

    @property
    def obstacle(self) -> str | None:
        """The obstacle to `resumed` and `suffix` giving what a whole run gives; `None` if there is none.

        A hook on any part may count on the batch and the positions it was made for, and a module of somebody else's may
        mix positions. A class with a `forward` of its own says that the rest of it holds by `resumes = True` (a block;
        it then gives `looks_ahead` and all that follows it here, and `reprojected`) or
        `can_resume = True` (attention; `cached`, `z_of`, `out`, `looks_ahead`, `depends_on_length`).
        """
        if self.cfg.layer_parts is not None:
            return "layers of several kinds, which are run whole"
        if self.cfg.gated_attn:
            return "gated attention, which is run whole"
        for name, module in self.named_modules():
            if not is_own(module):
                found = f"{type(module).__name__} in" if is_plain(module, type(module)) else "hooks on"
                return f"{found} {name or 'the block'}"
        for part, resumes in ((self, self.resumes), (self.attn, self.attn.can_resume)):
            if not resumes:
                return f"{type(part).__name__} does not say that it can be taken up in the middle"
        return None

    @property
    def can_resume(self) -> bool:
        """True if a run of this block can be taken up in the middle, and at any position; see `obstacle`."""
        return self.obstacle is None

    def looks_ahead(self, length: int) -> bool:
        """Return True if some of `length` positions sees one behind it."""
        return self.attn.looks_ahead(length)

    def depends_on_length(self, stop: int, length: int) -> bool:
        """Return True if the first `stop` of `length` positions come out otherwise in a text that ends there."""
        return self.attn.depends_on_length(stop, length)

    @property
    def reads_before(self) -> tuple[str, ...]:
        """The activations, by their names in this block, of earlier positions that a run of later ones needs."""
        return ("attn.hook_k", "attn.hook_v")

    def before(self, kept: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return what `suffix` needs of an unpatched run, `[batch, pos, ...]`, from what `reads_before` names."""
        return self.attn.cached(kept["attn.hook_k"]), kept["attn.hook_v"]

    def suffix(
        self,
        stream: Float[Tensor, "row suffix d_model"],
        start: int,
        before: Sequence[Tensor],
        *,
        shortformer_pos_embed: Float[Tensor, "row suffix d_model"] | None = None,
        attention_mask: Tensor | None = None,
        query_at: Int[Tensor, "row query_pos"] | None = None,
    ) -> Float[Tensor, "row query_pos d_model"]:
        """Return the stream behind the block at the last positions of texts whose beginning is that of another run.

        Args:
            stream: The stream before it, from position `start` on; rows are those of the other run, several times over.
            start: The first position.
            before: What `before` gave of the other run.
            shortformer_pos_embed: See `forward`.
            attention_mask: `[row, key_pos]`, of the whole texts.
            query_at: The positions wanted, counted from the start of the text; default: all from `start` on.
        """
        past = None
        if start:
            times = len(stream) // len(before[0])
            keys, values = (each[:, :start].repeat(times, 1, 1, 1) for each in before)
            past = HookedTransformerKeyValueCacheEntry(keys, values, frozen=True)
        attn_out = self.attn_out(stream, shortformer_pos_embed, past, attention_mask, query_at)
        read = stream if query_at is None else at_positions(stream, query_at - start)
        return self.after_attention(read, self.hook_attn_out(attn_out))

    def read_by_resumed(self, site: str) -> list[str]:
        """Return the activations that `resumed` needs, by their names in this block."""
        if site in _STREAMS:
            return [site]
        streams = ["hook_resid_pre"]
        if site == "hook_mlp_out":
            streams = ["hook_resid_mid"] if self.cfg.has_resid_mid else ["hook_resid_pre", "hook_attn_out"]
        elif not (self.cfg.has_resid_mid or self.cfg.attn_only):
            streams.append("hook_mlp_out")
        inner = {**dict.fromkeys(_PROJECTIONS, _PROJECTIONS), "attn.hook_pattern": ("attn.hook_v",)}
        return [*streams, *inner.get(site, ()), site]

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
            here: The positions wanted; nothing behind them is seen from there.
            attention_mask: That of the unpatched run.

        Returns:
            0, 1 or 2 for a stream before the block, between attention and MLP, or after the block; and the stream.
        """
        if site in _STREAMS:
            return _STREAMS[site], value[:, here]
        if site == "hook_mlp_out":
            if self.cfg.has_resid_mid:
                return 2, kept["hook_resid_mid"][:, here] + value[:, here]
            return 2, kept["hook_resid_pre"][:, here] + kept["hook_attn_out"][:, here] + value[:, here]
        if site == "hook_attn_out":
            attn_out = value[:, here]
        else:
            z = self.attn.z_with(site.removeprefix("attn."), value, kept, here, attention_mask)
            attn_out = self._behind_attention(self.attn.out(z))
        after = kept["hook_resid_pre"][:, here] + attn_out
        if self.cfg.has_resid_mid:
            return 1, after
        return 2, after if self.cfg.attn_only else after + kept["hook_mlp_out"][:, here]

    def _mlp_out(self, resid: Tensor) -> Tensor:
        if self.cfg.use_hook_mlp_in or is_listening(self.hook_mlp_in):
            resid = self.hook_mlp_in(resid.clone())
        return self.hook_mlp_out(self.mlp_out(resid))

    def _attention_inputs(self, resid_pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized inputs of q, k and v: one tensor for all, unless they may come to differ."""
        points = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        joint = self.cfg.use_attn_in or not only_reads(self.hook_attn_in)
        split = self.cfg.use_split_qkv_input or not all(map(only_reads, points))
        shared = resid_pre
        if joint or is_listening(self.hook_attn_in):
            shown = self.hook_attn_in(self._per_head(resid_pre, self.cfg.n_heads))
            shared = shown if joint else resid_pre
        if split or any(map(is_listening, points)):
            n_cached = self.cfg.cached_heads_of(self.layer)
            copies = (self.cfg.n_heads, n_cached, n_cached)
            inputs = [
                point(shared.clone() if joint else self._per_head(shared, n))
                for point, n in zip(points, copies, strict=True)
            ]
            if split:
                q, k, v = map(self.ln1, inputs)
                return q, k, v
        normalized = self.ln1(shared)
        return normalized, normalized, normalized

    def _per_head(self, resid: Tensor, n_heads: int) -> Float[Tensor, "batch pos head d_model"]:
        # A copy, not a broadcast view: a hook may write to one head's input in place.
        return torch.repeat_interleave(resid.unsqueeze(-2), n_heads, dim=-2)
