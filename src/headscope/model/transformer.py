"""`HookedTransformer`: wires the blocks and runs them.

Tokenization, stacked weights, hooks, caching, loading and processing live in separate modules; this class defines a
model's parts and the forward pass.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.errors import InvalidInputError
from headscope.model.block import TransformerBlock
from headscope.model.checkpoints import exporting
from headscope.model.checkpoints import pipeline as loading
from headscope.model.config import HookedTransformerConfig
from headscope.model.hooks import HookPoint, is_listening
from headscope.model.parts.key_value_cache import HookedTransformerKeyValueCache
from headscope.model.parts.layers import Embed, PosEmbed, Unembed, make_final_norm
from headscope.model.runs import Output, Runs
from headscope.model.text.generation import Generation
from headscope.model.text.inputs import (
    Masks,
    checked_mask,
    checked_residual,
    checked_targets,
    checked_tokens,
    is_text,
    layer_range,
    new_mask,
    with_past,
)
from headscope.model.text.samples import TrainingText
from headscope.model.text.tokens import PaddingSide, Tokenization
from headscope.model.weights.initialize import initialize_weights
from headscope.model.weights.placement import Placement, near
from headscope.model.weights.processing import WeightProcessing
from headscope.model.weights.stacked import StackedWeights
from headscope.ops.losses import Loss, lm_cross_entropy_loss

__all__ = ["HookedTransformer", "Loss", "Output"]

ReturnType = Literal["logits", "loss", "both"]
_OPTIONAL_POINTS = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}


class HookedTransformer(Tokenization, TrainingText, Generation, StackedWeights, Placement, Runs):
    """A decoder-only transformer with a hook point on every activation.

    Args:
        cfg: Its architecture, as a config or a dictionary of config fields.
        tokenizer: A Hugging Face tokenizer; by default the one that `cfg.tokenizer_name` names. Without either the
            model takes only tokens.
        move_to_device: Move the weights to `cfg.device`.
        default_padding_side: Default side on which batches of texts are padded.

    Raises:
        CheckpointError: If `cfg.tokenizer_name` names no tokenizer that can be found.
        InvalidInputError: If neither the config nor a tokenizer gives the size of the vocabulary.

    Example:
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=16, n_ctx=32, d_head=4, d_vocab=50, act_fn="gelu_new")
        >>> model = HookedTransformer(cfg)
        >>> logits, cache = model.run_with_cache(torch.arange(10)[None])
        >>> logits.shape, cache["pattern", 0].shape
        (torch.Size([1, 10, 50]), torch.Size([1, 4, 10, 10]))
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: PaddingSide = "right",
    ) -> None:
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.default_padding_side = default_padding_side
        self.weight_processing: tuple[str, ...] = ()
        if tokenizer is None and self.cfg.tokenizer_name is not None:
            tokenizer = loading.find_tokenizer(self.cfg.tokenizer_name)
        self.set_tokenizer(tokenizer)
        if self.cfg.d_vocab < 1:
            raise InvalidInputError(
                f"d_vocab must be at least 1; got {self.cfg.d_vocab}. Set it, pass a tokenizer, or cfg.tokenizer_name.",
                code="HS-CONFIG-02",
            )
        self.embed = Embed(self.cfg)
        self.hook_embed = HookPoint()
        if self.cfg.use_hook_tokens:
            self.hook_tokens = HookPoint()
        if self.cfg.positional_embedding_type in ("standard", "shortformer"):
            self.pos_embed = PosEmbed(self.cfg)
            self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(TransformerBlock(self.cfg, layer) for layer in range(self.cfg.n_layers))
        self.ln_final = make_final_norm(self.cfg)
        self.unembed = Unembed(self.cfg)
        if self.cfg.init_weights:
            self.init_weights()
        if move_to_device:
            self.to(self.cfg.device)
        self.setup()

    # Construction

    @classmethod
    @loading.with_its_options
    def from_pretrained(cls, model_name: str | Path, *flags: bool, **options: Any) -> Self:
        """Load a model by short name, Hugging Face hub id or local checkpoint directory.

        See `headscope.model.checkpoints.pipeline.load_pretrained` for every option (`fold_ln`, `center_unembed`,
        `center_writing_weights`, `refactor_factored_attn_matrices`, `fold_value_biases`, `dtype`, `device`, ...).

        Example:
            >>> HookedTransformer.from_pretrained("headscope-demo").cfg.model_name
            'headscope-demo'
        """
        return loading.load_pretrained(cls, model_name, *flags, **options)

    @classmethod
    def from_pretrained_no_processing(cls, model_name: str | Path, **options: Any) -> Self:
        """Load a model like `from_pretrained`, with the weights as they are in the checkpoint."""
        raw = dict.fromkeys(WeightProcessing.names(), False)
        return loading.load_pretrained(cls, model_name, **{**raw, **options})

    @classmethod
    def from_hf(cls, hf_model: Any, **options: Any) -> Self:
        """Convert a `transformers` model in memory, without weight processing unless requested."""
        raw = dict.fromkeys(WeightProcessing.names(), False)
        return loading.load_pretrained(cls, None, hf_model=hf_model, **{**raw, **options})

    def load_and_process_state_dict(self, state_dict: Mapping[str, Tensor], *flags: bool, **processing: bool) -> None:
        """Fill the model with these weights after processing them; no second copy of them is made.

        Args:
            state_dict: Weights under this model's names; it is not changed.
            flags: Those of `headscope.model.weights.processing.WeightProcessing`, in its order or by name.

        Raises:
            CheckpointError: for missing or unused names, or a wrong shape, each by name.
        """
        loading.fill(self, state_dict, WeightProcessing(*flags, **processing))

    def process_weights_(self, **processing: bool) -> None:
        """Process this model's own weights: `load_and_process_state_dict` on its state dict."""
        self.load_and_process_state_dict(self.state_dict(), **processing)

    def to_hf(self) -> Any:
        """Convert to an equivalent `transformers` model.

        Raises:
            CheckpointError: for a model that its family's Hugging Face class cannot express.

        Example:
            >>> model = HookedTransformer.from_pretrained_no_processing("headscope-demo")
            >>> type(model.to_hf()).__name__
            'GPT2LMHeadModel'
        """
        return exporting.to_hf(self)

    save_pretrained = exporting.save_pretrained

    def init_weights(self) -> None:
        """Draw random weights in `cfg.init_mode`; biases zero."""
        initialize_weights(self)

    def set_tokenizer(self, tokenizer: Any, default_padding_side: PaddingSide | None = None) -> None:
        """Set the tokenizer for text, which also sets the vocabulary size if the config has none."""
        self.tokenizer = tokenizer
        self._tokenizer_side = None if tokenizer is None else tokenizer.padding_side
        if default_padding_side is not None:
            self.default_padding_side = default_padding_side
        if tokenizer is not None and self.cfg.d_vocab == -1:
            self.cfg.d_vocab = len(tokenizer)
            self.cfg.d_vocab_out = self.cfg.d_vocab if self.cfg.d_vocab_out == -1 else self.cfg.d_vocab_out

    # Forward pass

    def forward(
        self,
        input: str | Sequence[str] | Tensor,
        return_type: ReturnType | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input: Text, texts, tokens `[batch, pos]` or `[pos]`; a residual stream `[batch, pos, d_model]` when
                `start_at_layer` is given.
            return_type: `"logits"`, `"loss"`, `"both"` (logits, loss) or `None`.
            loss_per_token: Loss `[batch, pos - 1]` instead of its mean.
            prepend_bos: For text: prepend BOS; `cfg.default_prepend_bos` by default.
            padding_side: Side on which rows are padded.
            start_at_layer: Start from the residual stream that enters this layer (negative counts from the end).
            tokens: With `start_at_layer`: the tokens, for the loss and the padding mask.
            shortformer_pos_embed: With `start_at_layer`, for `"shortformer"` positions: position embeddings added to
                the inputs of queries and keys; those of positions 0, 1, ... by default.
            attention_mask: `[batch, pos]`, 1 for real tokens; by default found from the tokenizer's padding token.
            stop_at_layer: Return the residual stream that enters this layer; `n_layers` and more give the final one.
            past_kv_cache: Keys and values of the preceding tokens; those of the new tokens are appended, unless it is
                frozen. The loss is that of the new tokens alone.

        Returns:
            Logits `[batch, pos, d_vocab]`, the loss in nats, both, `None`, or a residual stream.

        Raises:
            MissingTokenizerError: For text without a tokenizer.
            InvalidInputError: For a wrong shape, too many tokens, tokens out of range or (for a loss) without a logit.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise InvalidInputError(f"return_type must be 'logits', 'loss', 'both' or None; got {return_type!r}.")
        layers = layer_range(len(self.blocks), start_at_layer, stop_at_layer)
        past = None if past_kv_cache is None else past_kv_cache.before(layers)
        with nullcontext() if past is None else past.all_or_nothing():
            if start_at_layer is None:
                residual, tokens, shortformer_pos_embed, masks = self._enter(
                    input, prepend_bos, padding_side, attention_mask, past
                )
            else:
                residual = checked_residual(input, self.cfg.d_model)
                tokens = None if tokens is None else self._as_tokens(tokens, prepend_bos, padding_side)
                beside = residual if tokens is None else tokens
                masks = self._masks(beside, prepend_bos, padding_side, attention_mask, past)
                if self.cfg.positional_embedding_type == "shortformer" and shortformer_pos_embed is None:
                    shortformer_pos_embed = self._positions(residual, masks.seen, masks.n_past)
            if past is not None:
                past.append_attention_mask(new_mask(masks.counted, residual))
            seen = masks.seen
            for layer in layers:
                block = self.blocks[layer]
                if self.cfg.n_devices > 1:
                    residual, shortformer_pos_embed, seen = near(block, residual, shortformer_pos_embed, seen)
                residual = block(
                    residual,
                    shortformer_pos_embed=shortformer_pos_embed,
                    past_kv_cache_entry=None if past is None else past[layer],
                    attention_mask=seen,
                )
        if stop_at_layer is not None:
            return residual
        if return_type is None:
            self.ln_final(*near(self.ln_final, residual))  # a cache of activations reads its scale
            return None
        logits = self.to_logits(residual)
        if return_type == "logits":
            return logits
        if tokens is None:
            raise InvalidInputError("a loss needs the tokens: pass tokens=[batch, pos] along with start_at_layer.")
        loss = lm_cross_entropy_loss(logits, checked_targets(tokens, self.cfg), masks.of_loss, loss_per_token)
        return loss if return_type == "loss" else Output(logits, loss)

    def input_to_embed(
        self,
        input: str | Sequence[str] | Tensor,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embed the input: the part of a forward pass before `start_at_layer=0`.

        Returns:
            The first residual stream `[batch, pos, d_model]`, the tokens, `shortformer_pos_embed` (`None` for other
            positions) and the attention mask (`None` if there is nothing to mask), as `forward` takes them.
        """
        residual, tokens, positions, masks = self._enter(
            input, prepend_bos, padding_side, attention_mask, past_kv_cache
        )
        return residual, tokens, positions, masks.seen

    def to_logits(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Apply the final norm, the unembedding and the soft cap, if there is one."""
        if self.cfg.n_devices > 1:
            (residual,) = near(self.unembed, residual)
        logits = self.unembed(self.ln_final(residual))
        cap = self.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Return the next-token cross-entropy in nats: the mean, or `[batch, pos - 1]` with `per_token`."""
        mask = Masks(self.attention_mask(tokens), None, 0).of_loss if attention_mask is None else attention_mask
        return lm_cross_entropy_loss(logits, checked_targets(tokens, self.cfg).to(logits.device), mask, per_token)

    def fires_by_default(self, name: str) -> bool:
        flag = _OPTIONAL_POINTS.get(name.rsplit(".", 1)[-1])
        return flag is None or bool(getattr(self.cfg, flag))

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Always compute each head's `hook_result`, so that a cache of everything has it."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Always give q, k and v separate inputs for each head."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Always give each head a separate input."""
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Always run `hook_mlp_in`."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Expose keys and values to hooks per head, in a model whose heads share them in groups."""
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention

    def _as_tokens(self, input: Any, prepend_bos: bool | None, padding_side: PaddingSide | None) -> Tensor:
        if is_text(input):
            return self.to_tokens(input, prepend_bos, padding_side)
        return checked_tokens(input, self.input_device)

    def _masks(
        self,
        beside: Tensor,
        prepend_bos: bool | None,
        padding_side: PaddingSide | None,
        given: Tensor | None,
        past: HookedTransformerKeyValueCache | None,
    ) -> Masks:
        n_past = 0 if past is None else past.n_past
        if given is not None:
            counted = seen = checked_mask(given, beside, n_past)
        else:
            counted = None if beside.is_floating_point() else self.attention_mask(beside, padding_side, prepend_bos)
            # With causal attention no real token attends to padding on its right: the result is the same without a
            # mask, and faster.
            behind = self.cfg.attention_dir == "causal" and self.padding_side_or_default(padding_side) == "right"
            seen = None if behind else counted
        return Masks(counted, seen if past is None else with_past(counted, past, beside), n_past)

    def _enter(
        self,
        input: Any,
        prepend_bos: bool | None,
        padding_side: PaddingSide | None,
        attention_mask: Tensor | None,
        past: HookedTransformerKeyValueCache | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Masks]:
        """Return the first residual stream, the tokens, the shortformer position embeddings, and the masks."""
        tokens = self._as_tokens(input, prepend_bos, padding_side)
        masks = self._masks(tokens, prepend_bos, padding_side, attention_mask, past)
        embedding = self.hook_embed(self.embed(self.hook_tokens(tokens) if self.cfg.use_hook_tokens else tokens))
        residual, positions = self._with_positions(embedding, masks.seen, masks.n_past)
        return residual, tokens, positions, masks

    def _with_positions(self, embedding: Tensor, mask: Tensor | None, n_past: int) -> tuple[Tensor, Tensor | None]:
        """Return the first residual stream, and the embeddings that `"shortformer"` adds to queries and keys."""
        if self.cfg.positional_embedding_type not in ("standard", "shortformer"):
            return embedding, None
        positions = self._positions(embedding, mask, n_past)
        shortformer = self.cfg.positional_embedding_type == "shortformer"
        return (embedding, positions) if shortformer else (embedding + positions, None)

    def _positions(self, stream: Tensor, mask: Tensor | None, n_past: int) -> Tensor:
        tokens = torch.zeros(stream.shape[:2], dtype=torch.long, device=stream.device)  # only their shape matters
        positions = self.pos_embed(tokens, n_past, mask)
        # This is a broadcast view of the weights: a hook that writes in place must get a copy.
        return self.hook_pos_embed(positions.clone() if is_listening(self.hook_pos_embed) else positions)
