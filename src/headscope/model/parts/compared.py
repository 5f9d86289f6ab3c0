"""Queries and keys on their way to scores: norms of heads, clips, rotary positions, temperatures.

`ComparedHeads` is the half of attention that knows this. `forward` takes whole texts through it; `compared` takes the
queries or keys of one head at single positions, of whatever stream it is handed, so that a score can be split by what
the stream consists of.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint
from headscope.model.parts.masks import of_queries_among, token_positions
from headscope.model.parts.rotary import RotaryTable, attention_temperature, rotary_table, rotate

__all__ = ["ComparedHeads"]

_SHOWN_ROWS = 2048


class ComparedHeads(nn.Module):
    """Queries and keys of one layer, from their projections to what scores are products of."""

    cfg: HookedTransformerConfig
    layer_id: int
    W_O: Tensor
    q_norm: nn.Module
    k_norm: nn.Module
    hook_rot_q: HookPoint
    hook_rot_k: HookPoint
    _table: RotaryTable | None
    _own_sin: Tensor | None
    _own_cos: Tensor | None

    @property
    def attn_type(self) -> str:
        """`"local"` if a query sees `cfg.window_size` keys only (see `cfg.attn_in_chunks`), else `"global"`."""
        return self.cfg.attn_types[self.layer_id] if self.cfg.use_local_attn and self.cfg.attn_types else "global"

    @property
    def turns(self) -> bool:
        """True if queries and keys are turned by their positions."""
        return self.cfg.positional_embedding_type == "rotary" and self._is_among(self.cfg.rotary_layers)

    @property
    def norms_qk(self) -> bool:
        """True if queries and keys go through norms."""
        return self.cfg.use_qk_norm and self._is_among(self.cfg.qk_norm_layers)

    def _is_among(self, layers: list[bool] | None) -> bool:
        return layers is None or layers[self.layer_id]

    @property
    def rotary_sin(self) -> Float[Tensor, "pos rotary_dim"]:
        """Sines of the angles queries and keys are turned by by position. Assign others to change them."""
        return self._shown_rows()[0]

    @rotary_sin.setter
    def rotary_sin(self, sin: Tensor) -> None:
        self._own_sin = self._unless_shown(sin, 0)

    @property
    def rotary_cos(self) -> Float[Tensor, "pos rotary_dim"]:
        """Cosines of the angles queries and keys are turned by, as `rotary_sin`."""
        return self._shown_rows()[1]

    @rotary_cos.setter
    def rotary_cos(self, cos: Tensor) -> None:
        self._own_cos = self._unless_shown(cos, 1)

    def _shown_rows(self) -> tuple[Tensor, Tensor]:
        if self.cfg.positional_embedding_type != "rotary":
            raise AttributeError("only rotary positions have rotary_sin and rotary_cos.")  # then `hasattr` says no
        sin, cos = self._rotary_rows(min(self.cfg.n_ctx, _SHOWN_ROWS))
        return sin.clone(), cos.clone()

    def _unless_shown(self, rows: Tensor, which: int) -> Tensor | None:
        # Rows that say what is so anyway are not kept: what is shown may be shorter than the context.
        own = rows.to(self.W_O.device)
        return None if torch.equal(own, self._shown_rows()[which]) else own

    def _rotary_rows(self, length: int) -> tuple[Tensor, Tensor]:
        """Sines and cosines of the first positions."""
        self._table = self._rotary_table(length)
        sin, cos = self._table.rows(length)
        sin, cos = sin if self._own_sin is None else self._own_sin, cos if self._own_cos is None else self._own_cos
        return sin[:length], cos[:length]

    def _rotary_table(self, length: int) -> RotaryTable:
        return rotary_table(self.cfg, local=self.attn_type == "local", length=length, device=self.W_O.device)

    def _turned(
        self, q: Tensor, k: Tensor, attention_mask: Tensor | None, query_at: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys as scores compare them, turned by their positions."""
        n_queries, n_keys = q.shape[1], k.shape[1]
        if n_keys > self.cfg.n_ctx:
            raise InvalidInputError(
                f"the input has {n_keys} tokens, but this model's context is n_ctx = {self.cfg.n_ctx}. Cut it, split "
                "it into several sequences, or set cfg.n_ctx: rotary positions go on, though the model saw none there.",
                code="HS-TOKENS-03",
            )
        positions = None if attention_mask is None else token_positions(attention_mask)
        if positions is not None and self.depends_on_length(1, n_keys):  # only then wait for the device
            self._check_length(int(positions.max()) + 1, n_keys)
        of_keys: list[Tensor] = []
        if self.turns:
            of_keys = [each[None] if positions is None else each[positions] for each in self._rotary_rows(n_keys)]
        of_queries = [of_queries_among(each, n_queries, query_at) for each in of_keys]
        query_places = None
        if self._tempers:
            everywhere = torch.arange(n_keys, device=q.device)[None] if positions is None else positions
            query_places = of_queries_among(everywhere, n_queries, query_at)
        q, k = self._placed("q", q, of_queries, query_places), self._placed("k", k, of_keys, None)
        return self.hook_rot_q(q), self.hook_rot_k(k)

    def _check_length(self, longest: int, n_keys: int) -> None:
        """Refuse a batch whose angles are others by the length of its longest text than by that of its rows."""
        if self.depends_on_length(longest, n_keys):
            raise InvalidInputError(
                f"the rows have {n_keys} positions, but the longest text in them has {longest}, and this model's "
                "rotary angles depend on how long a text is (LongRoPE or dynamic NTK). Take away the padding that all "
                "rows have, and run texts of like length together."
            )

    @property
    def _tempers(self) -> bool:
        return bool(self.cfg.attn_temperature_slope) and self._is_among(self.cfg.attn_temperature_layers)

    def _placed(
        self, name: Literal["q", "k"], x: Tensor, angles: list[Tensor], places: Tensor | None
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Queries or keys, given the sines and cosines of their positions if they turn, and their places."""
        if angles:
            x = self._rotated(x, *angles)
        if self.norms_qk and self.cfg.qk_norm_after_rotation:
            x = (self.q_norm if name == "q" else self.k_norm)(x)
        if name == "q" and self._tempers:
            assert places is not None
            x = x * attention_temperature(self.cfg, places)[..., None, None].to(x.dtype)
        return x

    def compared(
        self,
        name: Literal["q", "k"],
        head: int,
        read: Float[Tensor, "row d_model"],
        places: Int[Tensor, " row"],
        n_keys: int,
        whole: Float[Tensor, "row d_model"] | None = None,
    ) -> Float[Tensor, "row d_head"]:
        """Return a head's queries or keys as its scores compare them, each of a normalized stream at one position.

        Args:
            name: Which of them.
            head: The head.
            read: The streams.
            places: The position of each, padding not counted.
            n_keys: The length of the text, on which some models' angles depend.
            whole: The streams that `read` are parts of: a clip then takes from a part the share that it takes from
                the whole, so that clipped parts sum to the clipped whole. Default: `read` is whole itself.
        """
        x, limit = self._normed(name, head, read), self.cfg.clip_qkv
        if limit is not None:
            of_whole = x if whole is None else self._normed(name, head, whole)
            x = x * torch.where(of_whole == 0, 1.0, of_whole.clamp(-limit, limit) / of_whole)
        if self.cfg.positional_embedding_type == "rotary":
            rows = self._rotary_rows(n_keys) if self.turns else ()
            x = self._placed(name, x, [each[places][:, None] for each in rows], places[:, None])
        n = x.shape[2]
        return x[:, 0, head * n // self.cfg.n_heads]

    def _normed(self, name: Literal["q", "k"], head: int, read: Tensor) -> Float[Tensor, "row 1 head d_head"]:
        """Queries or keys before they are clipped and turned: of one head, or of all where norms may read them all."""
        if not self.norms_qk:
            return self.of_head(name, head, read)[:, None, None]
        x = self.projected(*(read[:, None],) * 3)[name == "k"]
        norm = self.q_norm if name == "q" else self.k_norm
        return norm(x) if self._norms_before_turning else x

    def projected(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values of what attention is given."""
        raise NotImplementedError

    def of_head(
        self, name: Literal["q", "k", "v"], head: int, read: Float[Tensor, "*lead d_model"], *, biased: bool = True
    ) -> Float[Tensor, "*lead d_head"]:
        """Return a head's queries, keys or values of a normalized stream."""
        raise NotImplementedError

    def _rotated(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return rotate(x, sin, cos, adjacent=self.cfg.rotary_adjacent_pairs)

    def cached(self, k: Float[Tensor, "batch pos group d_head"]) -> Float[Tensor, "batch pos group d_head"]:
        """Return keys as `hook_k` shows them in the form that a key-value cache holds, not yet turned."""
        return self._clipped(self.k_norm(k) if self._norms_before_turning else k)

    @property
    def _norms_before_turning(self) -> bool:
        return self.norms_qk and not self.cfg.qk_norm_after_rotation

    def _clipped(self, projected: Tensor) -> Tensor:
        limit = self.cfg.clip_qkv
        return projected if limit is None else projected.clamp(-limit, limit)

    def depends_on_length(self, stop: int, length: int) -> bool:
        """Return True if the first `stop` of `length` positions are turned otherwise in a text that ends there."""
        if not self.turns:
            return False
        of_both = (self._rotary_table(each) for each in (stop, length))  # layers with the same angles share a table
        return next(of_both) is not next(of_both)
