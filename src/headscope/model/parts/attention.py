"""Multi-head attention that computes only what somebody looks at.

With nobody on `hook_attn_scores` or `hook_pattern`, scores and pattern never exist: the work is one
`scaled_dot_product_attention`. The per-head `hook_result` [batch, pos, head, d_model] is one batched product, made
only when listened to. Its sum, or the pattern times the values, goes on only where a hook changes it; otherwise the
kernel's output does, and heads are summed inside one matrix product.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, writable
from headscope.model.listening import Show, unless_changed
from headscope.model.parts.compared import ComparedHeads
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCacheEntry
from headscope.model.parts.layers import HeadNorm, ValueNorm, empty_parameter, zero_parameter
from headscope.model.parts.masks import alibi_penalties, allowed_by_position, of_queries_among
from headscope.model.parts.projections import mixed, project, ungrouped
from headscope.ops.factored import FactoredMatrix
from headscope.ops.kernels.products import linear

__all__ = ["FIELD_BUFFERS", "Attention", "GroupedQueryAttention"]

FIELD_BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")


class Attention(ComparedHeads):
    """The heads of one layer.

    Weights: `W_Q W_K W_V [head, d_model, d_head]`, `W_O [head, d_head, d_model]`, `b_Q b_K b_V [head, d_head]`,
    `b_O [d_model]`, with `cfg.use_attn_sinks` `b_sink [head]`, and with `cfg.gated_attn` `W_G [head, d_model, d_head]`
    and `b_G [head, d_head]`, whose `hook_gate` shows what `hook_z` has been multiplied by. Rotary and ALiBi positions,
    windows, soft caps and norms of queries and keys are read from the config at each pass.
    """

    _stored: ClassVar[str] = ""  # what the names of the weights of keys and values begin with
    # True if `cached` and `z_of` say what `forward` makes of queries, keys and values: a run may be taken up between.
    can_resume: ClassVar[bool] = True
    W_K: Tensor
    W_V: Tensor
    b_K: Tensor
    b_V: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):  # what is said of one forward does not hold of another
            cls.can_resume = vars(cls).get("can_resume", False)

    def __init__(self, cfg: HookedTransformerConfig, layer_id: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        self.layer_id = layer_id
        heads, groups, width = cfg.n_heads, cfg.groups_of(layer_id), cfg.head_width_of(layer_id)
        self._make_weights(cfg)
        if cfg.use_attn_sinks:
            self.b_sink = zero_parameter(cfg, heads)
        if cfg.gated_attn:
            self.W_G = empty_parameter(cfg, heads, cfg.d_model, width)
            self.b_G = zero_parameter(cfg, heads, width)
            self.hook_gate = HookPoint()
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_z = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_result = HookPoint()
        if cfg.positional_embedding_type == "rotary":
            self.hook_rot_q = HookPoint()
            self.hook_rot_k = HookPoint()
        if self.norms_qk:
            self.q_norm = HeadNorm(cfg, heads, width)
            self.k_norm = HeadNorm(cfg, groups, width)
        if cfg.use_v_norm:
            self.v_norm = ValueNorm(cfg, width)
        self._table = None
        self._mask: Tensor | None
        self._own_sin: Tensor | None
        self._own_cos: Tensor | None
        for name in ("_mask", "_own_sin", "_own_cos"):
            self.register_buffer(name, None, persistent=False)

    def _make_weights(self, cfg: HookedTransformerConfig) -> None:
        heads, d_model = cfg.n_heads, cfg.d_model
        groups, width = cfg.groups_of(self.layer_id), cfg.head_width_of(self.layer_id)
        self.W_Q = empty_parameter(cfg, heads, d_model, width)
        for name in ("W_K", "W_V"):
            setattr(self, self._stored + name, empty_parameter(cfg, groups, d_model, width))
        self.W_O = empty_parameter(cfg, heads, width, d_model)
        self.b_Q = zero_parameter(cfg, heads, width)
        for name in ("b_K", "b_V"):
            setattr(self, self._stored + name, zero_parameter(cfg, groups, width))
        self.b_O = zero_parameter(cfg, d_model)

    @property
    def attn_scale(self) -> float:
        """The number that scores are divided by."""
        scale = self.cfg.attn_scale if self.cfg.use_attn_scale else 1.0
        return scale * (self.layer_id + 1) if self.cfg.scale_attn_by_inverse_layer_idx else scale

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V W_O` of each head: what a head writes for what it reads, with its gates open if `cfg.gated_attn`."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q W_K^T` of each head: what it looks for."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def mask(self) -> Bool[Tensor, "query_pos key_pos"]:
        """The keys each query may see, by position alone. Assign a mask of your own to change it."""
        return self._default_mask() if self._mask is None else self._mask

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        own = mask.to(self.W_O.device).bool()
        # One that says what is so anyway is not kept: attention without a mask of its own is faster.
        self._mask = None if torch.equal(own, self._default_mask()) else own

    @property
    def assigned(self) -> dict[str, Tensor]:
        """Tensors assigned in the place of those that follow from the config; no checkpoint keeps them."""
        own = {"mask": self._mask, "rotary_sin": self._own_sin, "rotary_cos": self._own_cos}
        return {name: each for name, each in own.items() if each is not None}

    def _default_mask(self) -> Tensor:
        return self._by_position(self.cfg.n_ctx, self.cfg.n_ctx)[0]

    def _by_position(self, n_queries: int, n_keys: int, attention_mask: Tensor | None = None) -> Tensor:
        return allowed_by_position(
            n_queries,
            n_keys,
            causal=self.cfg.attention_dir == "causal",
            window=self._window(n_keys),
            device=self.W_O.device,
            chunked=self.cfg.attn_in_chunks,
            attention_mask=attention_mask,
        )

    def _window(self, n_keys: int) -> int | None:
        """Return the number of keys a query sees; `None` if it sees them all."""
        window = self.cfg.window_size if self.attn_type == "local" else None
        return None if window is None or window >= n_keys else window

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Checkpoints of the field keep these two buffers beside the weights.
        for name in FIELD_BUFFERS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "batch key_pos *key_head d_model"],
        value_input: Float[Tensor, "batch key_pos *key_head d_model"],
        past_kv_cache_entry: HookedTransformerKeyValueCacheEntry | None = None,
        attention_mask: Tensor | None = None,
        query_at: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attend.

        Args:
            query_input: Normalized residual stream, with a head axis if each head has an input of its own; of all
                positions, or of some of them.
            key_input: The same for keys, of which a group of heads may share one.
            value_input: The same for values.
            past_kv_cache_entry: Keys and values in front of these; the new ones are added to it.
            attention_mask: `[batch, key_pos]`, true for real tokens; `None` when all are.
            query_at: Where among the keys each query stands; default: the queries are the last of them.
        """
        q, k, v = self.projected(query_input, key_input, value_input)
        v = self._clipped(self.v_norm(v) if self.cfg.use_v_norm else v)
        q, k, v = self.hook_q(q), self.cached(self.hook_k(k)), self.hook_v(v)
        if past_kv_cache_entry is not None:
            k, v = past_kv_cache_entry.append(k, v)
        z = self.z_of(q, k, v, attention_mask, query_at)
        if self.cfg.gated_attn:
            gates = project(query_input, self.W_G, self.b_G).sigmoid()
            z = z * self.hook_gate(writable(self.hook_gate, gates))
        z = self.hook_z(z)
        return unless_changed(
            [self.hook_result],
            inside=lambda show: show(self.hook_result, torch.einsum("bphe,hed->bphd", z, self.W_O)),
            outside=lambda result: result.sum(-2) + self.b_O,
            fused=lambda: self.out(z),
        )

    def projected(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values of what `forward` is given."""
        n_cached = key_input.shape[2] if key_input.ndim == 4 else self.cfg.cached_heads_of(self.layer_id)
        shared = self._stored if n_cached == self.cfg.groups_of(self.layer_id) else ""
        W_K, b_K, W_V, b_V = (getattr(self, shared + name) for name in ("W_K", "b_K", "W_V", "b_V"))
        return project(query_input, self.W_Q, self.b_Q), project(key_input, W_K, b_K), project(value_input, W_V, b_V)

    def of_head(
        self, name: Literal["q", "k", "v"], head: int, read: Float[Tensor, "*lead d_model"], *, biased: bool = True
    ) -> Float[Tensor, "*lead d_head"]:
        """Return what a head's queries, keys or values are of a normalized stream, in the dtype of that.

        Args:
            name: Which of them.
            head: The head.
            read: The stream.
            biased: Add the head's bias; a norm on values reads it in any case.
        """
        weight, bias = (getattr(self, f"{kind}_{name.upper()}")[head].to(read.dtype) for kind in ("W", "b"))
        if name == "v" and self.cfg.use_v_norm:
            return self.v_norm(read @ weight + bias)
        return read @ weight + bias if biased else read @ weight

    @property
    def reads_linearly(self) -> bool:
        """True if queries, keys and values are linear in the normalized stream, up to norms of each head's."""
        return True

    def z_of(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch key_pos group d_head"],
        v: Float[Tensor, "batch key_pos group d_head_v"],
        attention_mask: Tensor | None = None,
        query_at: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos head d_head_v"]:
        """Return each head's output before `W_O`.

        Args:
            q: Queries as `hook_q` shows them.
            k: Keys as a cache holds them; see `cached`.
            v: Values as `hook_v` shows them.
            attention_mask: See `forward`.
            query_at: See `forward`.
        """
        q = self._clipped(self.q_norm(q) if self._norms_before_turning else q)
        if self.cfg.positional_embedding_type == "rotary":
            q, k = self._turned(q, k, attention_mask, query_at)
        if k.shape[2] != q.shape[2]:
            k, v = (ungrouped(shared, q.shape[2]) for shared in (k, v))

        def inside(show: Show) -> Tensor:
            return self._pattern(q, k, attention_mask, query_at, v.dtype, show)

        def outside(pattern: Tensor) -> Tensor:
            return mixed(pattern, v)

        def fused() -> Tensor:
            return self._attend_fused(q, k, v, attention_mask, query_at)

        if self.cfg.attn_scores_soft_cap > 0:  # the fused kernel has no cap
            return outside(inside(lambda point, value: point(value)))
        return unless_changed([self.hook_attn_scores, self.hook_pattern], inside, outside, fused)

    def out(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """Return `z W_O` summed over heads, and the bias."""
        return linear(z.flatten(-2), self.W_O.flatten(0, 1), self.b_O)

    def allowed(
        self,
        n_queries: int,
        n_keys: int,
        attention_mask: Tensor | None = None,
        query_at: Int[Tensor, "batch query_pos"] | None = None,
    ) -> Bool[Tensor, "#batch 1 query_pos key_pos"]:
        """Return which keys each query may see; the queries are the last of the positions, unless it is said where."""
        n_rows = n_queries if query_at is None else n_keys
        own = None if self._mask is None else self._mask[None, n_keys - n_rows : n_keys, :n_keys]
        of_all = self._by_position(n_rows, n_keys, attention_mask) if own is None else own
        allowed = of_queries_among(of_all, n_queries, query_at)[:, None]
        return allowed if attention_mask is None else allowed & attention_mask.bool()[:, None, None, :]

    def looks_ahead(self, length: int) -> bool:
        """Return True if some of `length` positions sees one behind it."""
        return bool(self.allowed(length, length)[0, 0].triu(1).any())

    def _pattern(
        self,
        q: Tensor,
        k: Tensor,
        attention_mask: Tensor | None,
        query_at: Tensor | None,
        dtype: torch.dtype,
        show: Show,
    ) -> Tensor:
        allowed = self.allowed(q.shape[1], k.shape[1], attention_mask, query_at)
        scores = torch.einsum("bqhe,bkhe->bhqk", q / self.attn_scale, k)
        cap = self.cfg.attn_scores_soft_cap
        if cap > 0:
            scores = cap * torch.tanh(scores / cap)
        if self.cfg.positional_embedding_type == "alibi":
            scores = scores + alibi_penalties(self.cfg, q.shape[1], k.shape[1], attention_mask, scores, query_at)
        scores = show(self.hook_attn_scores, scores.masked_fill_(~allowed, -math.inf))
        pattern = self._softmax(scores)
        if attention_mask is not None or self._mask is not None or pattern.requires_grad:
            # A padded query may see no key at all: its softmax is NaN, its pattern is taken as zero. With gradients,
            # the softmax keeps its output for the backward pass, so a hook that writes in place needs a copy.
            pattern = torch.where(pattern.isnan(), 0.0, pattern)
        return show(self.hook_pattern, pattern.to(dtype))

    def _softmax(self, scores: Float[Tensor, "batch head query_pos key_pos"]) -> Tensor:
        """Return the pattern; a sink takes its part of each row, and gives nothing for it."""
        if not self.cfg.use_attn_sinks:
            return scores.softmax(-1)
        sink = self.b_sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]

    def z_with(
        self, site: str, value: Tensor, kept: Mapping[str, Tensor], here: slice, attention_mask: Tensor | None
    ) -> Float[Tensor, "batch here head d_head"]:
        """Return `z` at some positions once `hook_q`, `hook_k`, `hook_v`, `hook_pattern` or `hook_z` is replaced.

        Args:
            site: Which of them.
            value: What takes its place, at all positions.
            kept: What they were, by name in the block (`"attn.hook_q"`, ...), as far as they are needed.
            here: The positions; nothing behind them is seen from there.
            attention_mask: See `forward`.
        """
        if site == "hook_z":
            return value[:, here]
        seen = slice(here.stop)
        if site == "hook_pattern":
            v = kept["attn.hook_v"][:, seen]
            return mixed(value[:, :, here, seen], ungrouped(v, self.cfg.n_heads))
        q, k, v = (value if site == f"hook_{each}" else kept[f"attn.hook_{each}"] for each in "qkv")
        mask = None if attention_mask is None else attention_mask[:, seen]
        return self.z_of(q[:, here], self.cached(k[:, seen]), v[:, seen], mask)

    def _attend_fused(
        self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, query_at: Tensor | None
    ) -> Tensor:
        n_queries, n_keys = q.shape[1], k.shape[1]
        causal = self.cfg.attention_dir == "causal" and n_queries > 1
        given = (attention_mask, query_at, self._mask, self._window(n_keys))
        unmasked = all(each is None for each in given)
        alibi = self.cfg.positional_embedding_type == "alibi"
        sinks = self.cfg.use_attn_sinks
        plain = unmasked and not (alibi or sinks) and (not causal or n_queries == n_keys)
        allowed = mask = None if plain else self.allowed(n_queries, n_keys, attention_mask, query_at)
        if alibi:
            assert allowed is not None
            penalties = alibi_penalties(self.cfg, n_queries, n_keys, attention_mask, q, query_at)
            mask = penalties.masked_fill(~allowed, -math.inf)
        if sinks:
            assert allowed is not None
            if not alibi:
                mask = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -math.inf)
            # One more key and value, both zero: its score is the sink's, which the mask adds.
            k, v = (F.pad(each, (0, 0, 0, 0, 0, 1)) for each in (k, v))
            assert mask is not None
            sink = self.b_sink.to(q.dtype)[:, None, None].expand(len(mask), -1, n_queries, 1)
            mask = torch.cat([mask.expand(-1, q.shape[2], -1, -1), sink], dim=-1)
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=plain and causal,
            scale=1.0 / self.attn_scale,
        ).transpose(1, 2)
        if attention_mask is not None or self._mask is not None:
            # Backends differ on a query that sees no key; here its output is zero, as its pattern is.
            assert allowed is not None
            return torch.where(allowed.any(-1)[:, 0, :, None, None], z, 0.0)
        # The kernel keeps its output for the backward pass; a hook may write to this one.
        return writable(self.hook_z, z)


def _for_each_head(name: str, doc: str) -> Any:
    """Make a property of a weight that groups of heads share, which shows it once for each head."""

    def for_each_head(attention: Attention) -> Tensor:
        shared = getattr(attention, name)
        return shared.repeat_interleave(attention.cfg.n_heads // shared.shape[0], dim=0)

    return property(for_each_head, doc=doc)


class GroupedQueryAttention(Attention):
    """Attention whose keys and values are each shared by a group of heads.

    The weights it has are `_W_K`, `_W_V [group, d_model, d_head]` and `_b_K`, `_b_V [group, d_head]`; `W_K`, `W_V`,
    `b_K` and `b_V` show them once for each head. `hook_k` and `hook_v` show the groups, unless
    `cfg.ungroup_grouped_query_attention` is set.
    """

    _stored = "_"

    W_K = _for_each_head("_W_K", "Key weights of each head.")
    W_V = _for_each_head("_W_V", "Value weights of each head.")
    b_K = _for_each_head("_b_K", "Key biases of each head.")
    b_V = _for_each_head("_b_V", "Value biases of each head.")
