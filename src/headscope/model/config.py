"""`HookedTransformerConfig`: what a model is, as plain mutable fields.

The forward pass reads the config each time it runs, so a field changed on a live model
(`model.cfg.output_logits_soft_cap = 30.0`) takes effect at once. Everything else in headscope is frozen.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import torch

from headscope.errors import InvalidInputError, unknown_name

__all__ = ["ACTIVATIONS", "NORMALIZATIONS", "POSITIONS", "HookedTransformerConfig", "parse_dtype"]

NORMALIZATIONS = (None, "LN", "LNPre", "RMS", "RMSPre")
POSITIONS = ("standard", "none")
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu")


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Turn `"float32"`, `"torch.float32"` or a dtype into a floating-point dtype.

    Raises:
        InvalidInputError: if it names no floating-point dtype.

    Example:
        >>> parse_dtype("bfloat16")
        torch.bfloat16
    """
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InvalidInputError(
            f"dtype must be a floating-point torch dtype or its name, such as 'float32' or 'bfloat16'; got {dtype!r}."
        )
    return found


@dataclass
class HookedTransformerConfig:
    """The shape and the choices of a decoder-only transformer.

    Attributes:
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        n_ctx: Longest sequence of tokens.
        d_head: Width of one head.
        n_heads: Heads per layer; `-1` means `d_model // d_head`.
        d_mlp: Hidden width of the MLP; default `4 * d_model`. Unused when `attn_only`.
        act_fn: MLP activation, one of `ACTIVATIONS`. Required unless `attn_only`.
        d_vocab: Number of input tokens; `-1` takes it from the tokenizer.
        d_vocab_out: Number of output tokens; `-1` means `d_vocab`.
        attn_only: No MLPs.
        parallel_attn_mlp: Attention and MLP both read the block's input.
        normalization_type: `None`, `"LN"`, `"RMS"`, or the `"...Pre"` forms whose weight and bias are folded away.
        positional_embedding_type: `"standard"` (learned, added to the token embedding) or `"none"`.
        eps: Added to the variance in a norm.
        use_attn_scale: Divide attention scores by `attn_scale`.
        attn_scale: Default (`-1`): `sqrt(d_head)`.
        scale_attn_by_inverse_layer_idx: Divide the scores of layer `l` by `l + 1` as well.
        attention_dir: `"causal"` or `"bidirectional"`.
        output_logits_soft_cap: `c > 0` makes the logits `c * tanh(logits / c)`.
        use_attn_result: Always compute `hook_result`, and sum it.
        use_split_qkv_input: Always give q, k and v inputs of their own for each head.
        use_attn_in: Always give each head an input of its own.
        use_hook_mlp_in: Always run `hook_mlp_in`.
        default_prepend_bos: Whether text gets a BOS token unless told otherwise.
        tie_word_embeddings: Whether the checkpoint shares embedding and unembedding (information only).
        init_weights: Draw random weights on construction; `False` leaves them unset, to be loaded.
        initializer_range: Standard deviation of random weights; `-1` means `0.8 / sqrt(d_model)`.
        seed: Seed for the random weights, without touching the global generator.
        dtype: Floating-point type of the weights, as a dtype or its name.
        device: Where the weights live; default: CUDA if there is one, else the CPU.
        model_name: Shown in results and titles.
        original_architecture: Architecture name in the checkpoint it came from.
        tokenizer_name: Where the tokenizer came from.

    Raises:
        InvalidInputError: for sizes that are not positive, or a choice that does not exist.

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
    default_prepend_bos: bool = True
    tie_word_embeddings: bool = False
    init_weights: bool = True
    initializer_range: float = -1.0
    seed: int | None = None
    dtype: Any = torch.float32
    device: Any = None
    original_architecture: str | None = None
    tokenizer_name: str | None = None
    n_params: int | None = None

    def __post_init__(self) -> None:
        if self.n_heads == -1:
            self.n_heads = self.d_model // self.d_head if self.d_head else 0
        for name in ("n_layers", "d_model", "n_ctx", "d_head", "n_heads"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1; got {getattr(self, name)}.")
        self._check_choice("normalization_type", NORMALIZATIONS)
        self._check_choice("positional_embedding_type", POSITIONS)
        self._check_choice("attention_dir", ("causal", "bidirectional"))
        if not self.attn_only:
            if self.act_fn is None:
                raise InvalidInputError(
                    f"act_fn is needed for a model with MLPs: one of {', '.join(ACTIVATIONS)}; or set attn_only=True."
                )
            self._check_choice("act_fn", ACTIVATIONS)
            if self.d_mlp is None:
                self.d_mlp = 4 * self.d_model
        if self.d_vocab_out == -1:
            self.d_vocab_out = self.d_vocab
        if self.attn_scale == -1.0:
            self.attn_scale = math.sqrt(self.d_head)
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / math.sqrt(self.d_model)
        self.dtype = parse_dtype(self.dtype)
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        attention = 4 * self.d_model * self.d_head * self.n_heads
        mlp = 0 if self.attn_only else 2 * self.d_model * (self.d_mlp or 0)
        self.n_params = self.n_layers * (attention + mlp)

    def _check_choice(self, field: str, allowed: tuple[str | None, ...]) -> None:
        value = getattr(self, field)
        if value not in allowed:
            raise InvalidInputError(
                f"{field} must be one of {', '.join(repr(a) for a in allowed)}; got {value!r}. "
                "Other choices of the field's configs are not supported yet."
            )

    @property
    def has_resid_mid(self) -> bool:
        """Whether blocks have a state between attention and MLP."""
        return not (self.attn_only or self.parallel_attn_mlp)

    @property
    def centred_norm(self) -> bool:
        """Whether norms subtract the mean (LayerNorm, not RMSNorm)."""
        return self.normalization_type in ("LN", "LNPre")

    def to_dict(self) -> dict[str, Any]:
        """All fields, as a dictionary that `from_dict` takes back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Make a config from a dictionary of its fields.

        Raises:
            UnknownNameError: for a field that does not exist, with the nearest that do.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                raise unknown_name("config field", name, names)
        return cls(**fields)

    @classmethod
    def unwrap(cls, config: "HookedTransformerConfig | dict[str, Any]") -> "HookedTransformerConfig":
        """Accept a config or a dictionary of its fields."""
        return cls.from_dict(config) if isinstance(config, dict) else config
