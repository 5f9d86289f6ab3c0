"""CodeGen: GPT-J without biases in attention, whose fused matrix has queries, values and keys in four shards.

The shards are those of the TPU cores it was trained on: each holds a quarter of the heads, their queries, their values
and their keys.
"""

from collections.abc import Mapping
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import OUT, Row, Table
from headscope.model.checkpoints.families.gptj import GPTJLike

__all__ = ["CODEGEN"]

_SHARDS = 4


class _CodeGen(GPTJLike):
    model_type = "codegen"
    architecture = "CodeGenForCausalLM"
    examples = ("Salesforce/codegen-350M-mono", "Salesforce/codegen-2B-multi")
    ignore = (*GPTJLike.ignore, ".attn.causal_mask")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        if fields["n_heads"] % _SHARDS:
            raise CheckpointError(
                f"CodeGen keeps its heads in {_SHARDS} shards; n_head = {fields['n_heads']} in config.json is not a "
                f"multiple of {_SHARDS}."
            )
        return fields

    def attention(self) -> Table:
        qkv = Row("attn.qkv_proj.weight", "(shard n s e) d -> n (shard s) d e", axes={"shard": _SHARDS})
        return {"attn.W_Q attn.W_V attn.W_K": qkv, "attn.W_O": Row("attn.out_proj.weight", OUT)}


CODEGEN = _CodeGen()
