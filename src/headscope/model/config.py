"""`HookedTransformerConfig`: a model's architecture, as plain mutable fields.

The forward pass reads the config each time it runs, so a field changed on a live model
(`model.cfg.output_logits_soft_cap = 30.0`) takes effect at once. Everything else in headscope is frozen.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch

from headscope.differences import tell
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.config_checks import check_and_complete

__all__ = ["HookedTransformerConfig"]


@dataclass
class HookedTransformerConfig:
    """Architecture of a decoder-only transformer.

    Attributes:
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        n_ctx: Context length.
        d_head: Width of one head; of the widest, where layers differ.
        d_head_layers: Width of the heads of each layer, where layers differ.
        d_head_v: Width of a head's values, and of its output before `W_O`; default `d_head`.
        d_latent_q: Width of the latent that the queries of all heads are made from, in a model with latent attention;
            `None` if they are made from the stream.
        d_latent_kv: Width of the latent that keys and values of all heads are made from, in latent attention (see
            `LatentAttention`); `None` for attention without.
        n_heads: Heads per layer; `-1` means `d_model // d_head`.
        n_key_value_heads: Key-value heads per layer, each shared by a group of heads; `None` means one per head. The
            most of any layer, where layers differ.
        n_key_value_heads_layers: Those of each layer, where layers differ.
        ungroup_grouped_query_attention: Expose keys and values to hooks per head instead of per group.
        d_mlp: Hidden width of the MLP; default `4 * d_model`. Unused when `attn_only`.
        act_fn: MLP activation, one of `ACTIVATIONS` (`"solu_ln"` has a LayerNorm after it, `"xielu"` weights of
            its own). Required unless `attn_only`.
        gated_mlp: The MLP is `(act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out`.
        gated_mlp_limit: A gated MLP's gate is at most this before the activation, and its linear factor within plus and
            minus this.
        gated_mlp_offset: Added to the linear factor of a gated MLP.
        num_experts: Number of experts, each `d_mlp` wide; `None` for a dense MLP.
        experts_per_token: Experts used for each token.
        mlp_types: `"experts"` or `"dense"` for each layer of a model with experts; default experts in all.
        d_mlp_dense: Hidden width of the dense MLPs in a model with experts; default `d_mlp`.
        d_mlp_shared: Hidden width of an MLP beside the experts that every token goes through; `None` without one.
        gate_shared_expert: Multiply its output by the sigmoid of a product with the token's state.
        router: How experts are scored and chosen: `"softmax"`, `"sigmoid"` or `"sparsemixer"`; see `MoE`.
        sparsemixer_margin: Experts whose score is behind by a larger share than this have no part in a softmax of the
            sparse mixer.
        norm_topk_prob: Normalize the scores of a token's experts to sum to one.
        expert_weight_scale: Multiplies the scores of a token's experts.
        expert_groups: Number of groups of experts next to one another, of which a token's are chosen first.
        expert_groups_per_token: Number of groups that a token's experts are chosen from.
        norm_expert_outputs: What the experts write together, and what the MLP beside them writes, go through a norm
            each, `mlp.ln_experts` and `mlp.ln_shared`, before they are added up.
        scale_expert_inputs: Multiply what an expert reads by its score, instead of what it writes.
        expert_output_biases: Experts have output biases of their own, `b_out_expert`.
        d_vocab: Number of input tokens; `-1` takes it from the tokenizer.
        d_vocab_out: Number of output tokens; `-1` means `d_vocab`.
        attn_only: No MLPs.
        layer_parts: For layers of several kinds, the parts of each: some of `attn`, `mixer` (which has a state instead
            of a pattern; beside attention, both read the same norm) and `mlp`, such as `"mixer+mlp"` or `"attn"`.
            Default: attention in all, and an MLP unless `attn_only`.
        mixer: The kind of mixers and their sizes: the `model_type` and the entries of a `transformers` config that
            their module reads (see `model.parts.mixers`).
        parallel_attn_mlp: Attention and MLP both read the block's input.
        normalization_type: `None`, `"LN"`, `"RMS"`, or the `"...Pre"` forms whose weight and bias are folded away.
        use_normalization_before_and_after: Attention and MLP outputs also go through post-norms, `ln1_post` and
            `ln2_post`, before they are added to the residual stream.
        use_normalization_after_only: Post-norms only, without pre-norms.
        final_rms: The final norm is an RMSNorm, whatever the others are.
        post_embedding_ln: A LayerNorm directly after the token embedding.
        positional_embedding_type: `"standard"` (learned, added to the token embedding), `"rotary"` (queries and keys
            are rotated by their position), `"alibi"` (scores fall with distance), `"shortformer"` (learned, added to
            the inputs of queries and keys in every layer) or `"none"`.
        alibi_bfloat16: ALiBi as in Falcon: what it adds is rounded to bfloat16, and divided by `attn_scale` too.
        rotary_layers: True for each layer that rotates queries and keys; by default all do.
        rotary_dim: Number of rotated dimensions of a head, from the first; all by default.
        rotary_dim_local: The same of local layers with a base of their own; `rotary_dim` by default.
        rotary_pairs: Only so many pairs of the rotated dimensions turn, the fastest; the angles of the others are zero.
            Local layers with a base of their own turn all.
        rotary_base: Base of the geometric sequence of frequencies.
        rotary_base_local: Another base for local layers, which are then not scaled.
        rotary_adjacent_pairs: Rotate adjacent dimensions (0 and 1, 2 and 3, ...) together, instead of each with the one
            half of `rotary_dim` further.
        rotary_scaling_factor: Divides every frequency (linear position interpolation).
        use_NTK_by_parts_rope: Divide low frequencies, and not high ones, by `NTK_by_parts_factor` (Llama 3.1); the
            other `NTK_...` fields set the limits.
        use_yarn_rope: YaRN (Peng et al. 2023), with the `yarn_...` fields; `yarn_truncate` rounds the ends of its ramp
            outwards to whole pairs.
        dynamic_NTK_factor: Dynamic NTK: in a text of `s > NTK_original_ctx_len` tokens, the base grows with
            `dynamic_NTK_factor * (s / NTK_original_ctx_len - 1)`; `None` for none of this.
        longrope_short_factors: LongRoPE (Ding et al. 2024): divisors of the frequencies, one for each pair.
        longrope_long_factors: The same for inputs longer than `longrope_original_ctx_len`.
        longrope_original_ctx_len: Longest input for the short factors.
        longrope_attention_factor: Multiplies sines and cosines.
        use_qk_norm: A norm on each head's queries and keys, with one weight for all heads of a layer.
        qk_norm_type: Type of this norm, `"RMS"` or `"LN"`.
        qk_norm_all_heads: It treats all heads of a layer together as one vector.
        qk_norm_per_head: It has a weight for each head.
        qk_norm_after_rotation: It comes after the rotation by position.
        qk_norm_layers: True for each layer that has this norm; by default all do.
        use_v_norm: An RMSNorm without weights on each head's values; `hook_v` shows what comes out of it.
        clip_qkv: Clip queries, keys and values to `[-c, c]` (after the norms of queries and keys).
        use_local_attn: Use local (windowed) attention in the layers that `attn_types` marks.
        attn_types: `"global"` or `"local"` for each layer.
        window_size: Number of keys that a query of a local layer can attend to, including its own.
        attn_in_chunks: Local layers attend within chunks of `window_size` tokens, of which the first begins with the
            first real token, instead of to the last `window_size` (Llama 4).
        attn_scores_soft_cap: `c > 0` makes the attention scores `c * tanh(scores / c)`.
        attn_temperature_slope: Multiply queries at position `p` by `1 + slope * log(1 + floor(p / length))`, counted
            from `attn_temperature_start`: attention sharpens in long texts.
        attn_temperature_length: The length in this formula.
        attn_temperature_start: The position of the first token in it.
        attn_temperature_layers: True for each layer that does this; by default all do.
        gated_attn: Each head's output is multiplied by `sigmoid(x W_G + b_G)`, made of the position it is for.
        use_attn_sinks: Each head has a learned logit, `b_sink`, that takes part in the softmax over the keys of every
            query like the score of one more key, whose value is zero: patterns sum to less than one (gpt-oss).
        eps: Added to the variance in a norm.
        resid_scales: For the stream that enters each layer, and the final one: it is this times the stream of the model
            that the checkpoint was made for, whose layers multiply all of it by a number. The numbers are in the
            weights here, and norms that read a stream take `eps` times the square of its scale.
        use_attn_scale: Divide attention scores by `attn_scale`.
        attn_scale: Default (`-1`): `sqrt(d_head)`.
        scale_attn_by_inverse_layer_idx: Divide the scores of layer `l` by `l + 1` as well.
        attention_dir: `"causal"` or `"bidirectional"`.
        output_logits_soft_cap: `c > 0` makes the logits `c * tanh(logits / c)`.
        use_attn_result: Include `hook_result` in a cache of everything.
        use_split_qkv_input: Always give q, k and v separate inputs for each head.
        use_attn_in: Always give each head a separate input.
        use_hook_mlp_in: Always run `hook_mlp_in`.
        use_hook_tokens: Run the tokens through a hook point `hook_tokens`.
        default_prepend_bos: Prepend a BOS token to text by default.
        tie_word_embeddings: The checkpoint shares embedding and unembedding (for information only).
        init_weights: Draw random weights on construction; `False` leaves them unset, to be loaded.
        init_mode: Initialization: `"gpt2"` (normal), or `"xavier_..."`, `"kaiming_..."` with `"uniform"` or `"normal"`,
            where `initializer_range` is the gain, or `"muP"`; see `headscope.model.weights.initialize`.
        initializer_range: Standard deviation of random weights; `-1` means `0.8 / sqrt(d_model)` (a gain of 1 in the
            other modes).
        n_devices: Number of devices that the model is spread over; set by `place` and `to`.
        seed: Seed of the random weights, which are those of TransformerLens 3.9; the global generator is untouched.
        dtype: Floating-point dtype of the weights, or its name.
        device: Device of the weights; CUDA if there is one, else the CPU, by default.
        model_name: Name in results and titles.
        original_architecture: Architecture name in the original checkpoint.
        tokenizer_name: Name or directory of the model whose tokenizer is loaded when none is given.
        n_params: Number of weights in attention and MLPs, without biases, embeddings and unembedding; computed.
        uses_rms_norm: True if `normalization_type` is RMSNorm; computed.

    The other fields exist for compatibility with TransformerLens, and accept only their defaults.

    Raises:
        InvalidInputError: For sizes that are not positive, or an unknown choice.

    Example:
        >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=16, d_head=4, d_vocab=11, attn_only=True)
        >>> cfg.n_heads, cfg.d_vocab_out
        (2, 11)
    """

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    model_name: str = "custom"
    n_heads: int = -1
    n_key_value_heads: int | None = None
    d_mlp: int | None = None
    act_fn: str | None = None
    d_vocab: int = -1
    d_vocab_out: int = -1
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    normalization_type: str | None = "LN"
    positional_embedding_type: str = "standard"
    eps: float = 1e-5
    use_attn_scale: bool = True
    attn_scale: float = -1.0
    scale_attn_by_inverse_layer_idx: bool = False
    attention_dir: str = "causal"
    output_logits_soft_cap: float = -1.0
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False
    use_hook_tokens: bool = False
    ungroup_grouped_query_attention: bool = False
    default_prepend_bos: bool = True
    tie_word_embeddings: bool = False
    init_weights: bool = True
    init_mode: str = "gpt2"
    initializer_range: float = -1.0
    seed: int | None = None
    dtype: Any = torch.float32
    device: Any = None
    original_architecture: str | None = None
    tokenizer_name: str | None = None
    tokenizer_prepends_bos: bool | None = None
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    n_params: int | None = None
    uses_rms_norm: bool = False
    layer_norm_folding: bool = False
    n_devices: int = 1
    trust_remote_code: bool = False
    load_in_4bit: bool = False
    quantization_method: str | None = None
    gated_mlp: bool = False
    gated_mlp_limit: float | None = None
    gated_mlp_offset: float = 0.0
    final_rms: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    norm_topk_prob: bool = False
    mlp_types: list[str] | None = None
    d_mlp_dense: int | None = None
    d_mlp_shared: int | None = None
    gate_shared_expert: bool = False
    router: str = "softmax"
    sparsemixer_margin: float = 0.02
    expert_weight_scale: float = 1.0
    expert_groups: int | None = None
    expert_groups_per_token: int | None = None
    scale_expert_inputs: bool = False
    norm_expert_outputs: bool = False
    expert_output_biases: bool = False
    use_v_norm: bool = False
    use_qk_norm: bool = False
    qk_norm_type: str = "RMS"
    use_local_attn: bool = False
    window_size: int | None = None
    attn_types: list[str] | None = None
    attn_in_chunks: bool = False
    alibi_bfloat16: bool = False
    rotary_layers: list[bool] | None = None
    rotary_dim: int | None = None
    rotary_dim_local: int | None = None
    rotary_pairs: int | None = None
    rotary_base: float | int = 10000
    rotary_base_local: float | int | None = None
    rotary_scaling_factor: float = 1.0
    rotary_adjacent_pairs: bool = False
    use_NTK_by_parts_rope: bool = False
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192
    dynamic_NTK_factor: float | None = None
    use_yarn_rope: bool = False
    yarn_factor: float = 1.0
    yarn_attention_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_original_max_position_embeddings: int = 4096
    yarn_truncate: bool = True
    post_embedding_ln: bool = False
    use_normalization_before_and_after: bool = False
    use_normalization_after_only: bool = False
    qk_norm_all_heads: bool = False
    qk_norm_per_head: bool = False
    qk_norm_after_rotation: bool = False
    qk_norm_layers: list[bool] | None = None
    clip_qkv: float | None = None
    longrope_short_factors: list[float] | None = None
    longrope_long_factors: list[float] | None = None
    longrope_original_ctx_len: int = 4096
    longrope_attention_factor: float = 1.0
    attn_scores_soft_cap: float = -1.0
    use_attn_sinks: bool = False
    d_head_layers: list[int] | None = None
    n_key_value_heads_layers: list[int] | None = None
    resid_scales: list[float] | None = None
    d_head_v: int | None = None
    d_latent_q: int | None = None
    d_latent_kv: int | None = None
    attn_temperature_slope: float = 0.0
    attn_temperature_length: int = 8192
    attn_temperature_start: int = 0
    attn_temperature_layers: list[bool] | None = None
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None
    train_seq_length: int | None = None
    use_attention_sinks: bool = False
    use_dynamic_ntk_rope: bool = False
    use_logn_attn: bool = False
    yarn_global_attn_only: bool = False
    gated_attn: bool = False
    layer_parts: list[str] | None = None
    mixer: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_and_complete(self)
        if self.seed is not None:
            tell("seed")

    def __repr__(self) -> str:
        """Show the fields that differ from their defaults."""
        shown = [
            f"    {field.name}={value!r},\n"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{type(self).__name__}(\n{''.join(shown)})"

    @property
    def n_cached_heads(self) -> int:
        """Number of key-value heads in a cache, the most of any layer: one per group, where heads share them."""
        if self.n_key_value_heads is None or self.ungroup_grouped_query_attention:
            return self.n_heads
        return self.n_key_value_heads

    def cached_heads_of(self, layer: int) -> int:
        """Return the number of key-value heads that a cache holds of a layer, and that `hook_k` and `hook_v` show."""
        if self.n_key_value_heads_layers is None or self.ungroup_grouped_query_attention:
            return self.n_cached_heads
        return self.n_key_value_heads_layers[layer]

    def groups_of(self, layer: int) -> int:
        """Return the number of key-value heads that a layer has weights for."""
        if self.n_key_value_heads_layers is not None:
            return self.n_key_value_heads_layers[layer]
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    def head_width_of(self, layer: int) -> int:
        """Return the width of the heads of a layer."""
        return self.d_head if self.d_head_layers is None else self.d_head_layers[layer]

    def eps_of(self, layer: int | None) -> float:
        """Return what norms that read the stream of a layer add to the variance; `n_layers` for the final one."""
        if layer is None or self.resid_scales is None:
            return self.eps
        return self.eps * self.resid_scales[layer] ** 2

    @property
    def has_resid_mid(self) -> bool:
        """True if blocks have a state between attention and MLP: if any has an MLP that reads what others write."""
        if self.layer_parts is None:
            return not (self.attn_only or self.parallel_attn_mlp)
        return any(len(parts) > 1 and "mlp" in parts for parts in map(self.parts_of, range(self.n_layers)))

    def parts_of(self, layer: int) -> tuple[str, ...]:
        """Return the parts of a layer, in the order they write: some of `attn`, `mixer` and `mlp`."""
        if self.layer_parts is not None:
            return tuple(self.layer_parts[layer].split("+"))
        return ("attn",) if self.attn_only else ("attn", "mlp")

    def layers_with(self, part: str) -> tuple[int, ...]:
        """Return the layers that have `attn`, a `mixer` or an `mlp`.

        Example:
            >>> cfg = HookedTransformerConfig(n_layers=3, d_model=8, n_ctx=16, d_head=4, d_vocab=11, act_fn="silu",
            ...                               layer_parts=["attn", "mlp", "attn+mlp"])
            >>> cfg.layers_with("attn"), cfg.layers_with("mixer"), cfg.parts_of(2)
            ((0, 2), (), ('attn', 'mlp'))
        """
        return tuple(layer for layer in range(self.n_layers) if part in self.parts_of(layer))

    @property
    def value_width(self) -> int:
        """Width of a head's values, and of its output before `W_O`."""
        return self.d_head if self.d_head_v is None else self.d_head_v

    def value_width_of(self, layer: int) -> int:
        """Return the same of a layer."""
        return self.head_width_of(layer) if self.d_head_v is None else self.d_head_v

    def has_experts(self, layer: int) -> bool:
        """Return True if the MLP of a layer is a mixture of experts."""
        return self.num_experts is not None and (self.mlp_types is None or self.mlp_types[layer] == "experts")

    def is_layer_norm_activation(self) -> bool:
        """Return True if a LayerNorm follows the MLP's activation."""
        return self.act_fn is not None and self.act_fn.endswith("_ln")

    @property
    def has_pre_norms(self) -> bool:
        """True if attention and MLP read the stream through a norm."""
        return self.normalization_type is not None and not self.use_normalization_after_only

    @property
    def has_post_norms(self) -> bool:
        """True if outputs of attention and MLP go through a norm before they are added to the stream."""
        return self.normalization_type is not None and (
            self.use_normalization_before_and_after or self.use_normalization_after_only
        )

    @property
    def final_norm(self) -> str | None:
        """Type of the final norm, in the terms of `normalization_type`."""
        if self.final_rms and self.centered_norm:
            return {"LN": "RMS", "LNPre": "RMSPre"}[str(self.normalization_type)]
        return self.normalization_type

    @property
    def centered_norm(self) -> bool:
        """True if norms subtract the mean (LayerNorm, not RMSNorm)."""
        return self.normalization_type in ("LN", "LNPre")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Make a config from a dictionary of its fields.

        Raises:
            UnknownNameError: For an unknown field; the message suggests the nearest ones.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                raise unknown_name("config field", name, names, code="HS-NAME-04")
        return cls(**fields)

    @classmethod
    def unwrap(cls, config: "HookedTransformerConfig | dict[str, Any]") -> "HookedTransformerConfig":
        """Accept a config or a dictionary of its fields.

        Raises:
            InvalidInputError: For a model's name, which `from_pretrained` takes.
        """
        if isinstance(config, str):
            raise InvalidInputError(
                f"a model is made from a config; got {config!r}. To load one by name: "
                f"HookedTransformer.from_pretrained({config!r}).",
                code="HS-CONFIG-05",
            )
        return cls.from_dict(config) if isinstance(config, dict) else config
