"""SmolLM2-135M-Instruct in plain float64, and as a model of `transformers`: what the analyses on it are held against.

`RealRun` is a forward pass of `reference.Reference`, which shares no code with headscope, with its keys and values
spread over the heads that share them.
"""

import os
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from reference import Edit, Reference, keep
from torch import Tensor

from headscope import HookedTransformer

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PATH = Path(os.environ.get("HEADSCOPE_REAL_MODEL") or _CACHE / "headscope" / "SmolLM2-135M-Instruct.Q4_1.gguf")
TEXT = "When the rain stopped, Anna opened the old window. The rain had left the old garden green, and Anna smiled."

_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def hf_model() -> Any:
    """The model of `transformers`, its weights read and expanded by the `gguf` package alone."""
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0,
        tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    state = {}
    for tensor in gguf.GGUFReader(PATH).tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        first, *rest = tensor.name.removesuffix(".weight").split(".")
        if first != "blk":
            state[{"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[first] + ".weight"] = values
            continue
        layer, part = rest
        if part in ("attn_q", "attn_k"):
            # Rows of a head come in pairs that rotate together; transformers wants first and second ones apart.
            values = values.view(-1, 32, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
        state[f"model.layers.{layer}.{_NAMES[part]}.weight"] = values
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


class RealRun:
    """Full passes in float64, with any activation edited, and a lens on their states.

    Attributes:
        cfg: The model's config.
        state: Its weights, those of keys and values head by head.
    """

    def __init__(self, model: HookedTransformer) -> None:
        self.cfg = model.cfg
        self.state = {}
        for name, tensor in model.state_dict().items():
            tensor = tensor.double()
            if "attn._" in name:
                name, tensor = name.replace("attn._", "attn."), tensor.repeat_interleave(3, 0)
            self.state[name] = tensor

    def __call__(self, tokens: Tensor, edit: Edit = keep, optional: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """All activations by name, and `"logits"`."""
        run = Reference(self.state, self.cfg, edit=edit, optional=optional).run(tokens)
        return {**run.acts, "logits": run.logits}

    def final(self, acts: dict[str, Tensor]) -> Tensor:
        return acts[f"blocks.{self.cfg.n_layers - 1}.hook_resid_post"]

    def scale(self, state: Tensor) -> Tensor:
        return torch.sqrt((state**2).mean(-1, keepdim=True) + self.cfg.eps)

    def read(self, state: Tensor, scale: Tensor | None = None) -> Tensor:
        """Logits of states, by their own scale or another."""
        scale = self.scale(state) if scale is None else scale
        return state / scale @ self.state["unembed.W_U"] + self.state["unembed.b_U"]

    def written(self, acts: dict[str, Tensor], layer: int, head: int | None) -> Tensor:
        """What a head, or the layer's MLP, adds to the stream."""
        if head is None:
            return acts[f"blocks.{layer}.hook_mlp_out"]
        return acts[f"blocks.{layer}.attn.hook_z"][:, :, head] @ self.state[f"blocks.{layer}.attn.W_O"][head]

    def losses(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Of each next token."""
        return -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def entropy(logits: Tensor) -> Tensor:
    probabilities = logits.log_softmax(-1)
    return -(probabilities.exp() * probabilities).sum(-1)
