"""Names notebooks look for under `utils`; each is defined where it belongs and only re-exported here."""

from rich import print as rprint

from headscope.compat.logit_table import logits_to_df
from headscope.compat.overrides import (
    LocallyOverridenDefaults,
    filter_dict_by_prefix,
    get_nested_attr,
    override_or_use_default_value,
    select_compatible_kwargs,
    set_nested_attr,
)
from headscope.compat.prompt import test_prompt
from headscope.data.hub import download_file_from_hf, get_dataset, keep_single_column
from headscope.data.packing import tokenize_and_concatenate
from headscope.model.names import get_act_name
from headscope.model.text.tokens import USE_DEFAULT_VALUE, get_attention_mask, get_tokens_with_bos_removed
from headscope.ops.activations import gelu_fast, gelu_new, gelu_pytorch_tanh, solu
from headscope.ops.arrays import (
    check_structure,
    get_corner,
    get_cumsum_along_dim,
    get_matrix_corner,
    get_offset_position_ids,
    is_lower_triangular,
    is_square,
    remove_batch_dim,
    repeat_along_head_dimension,
    to_numpy,
    transpose,
)
from headscope.ops.composition import composition_scores
from headscope.ops.devices import get_device, print_gpu_mem
from headscope.ops.indexing import Slice, SliceInput
from headscope.ops.initialization import (
    calc_fan_in_and_fan_out,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)
from headscope.ops.losses import lm_accuracy, lm_cross_entropy_loss
from headscope.ops.sampling import sample_logits

__all__ = [
    "USE_DEFAULT_VALUE",
    "LocallyOverridenDefaults",
    "Slice",
    "SliceInput",
    "calc_fan_in_and_fan_out",
    "check_structure",
    "composition_scores",
    "download_file_from_hf",
    "filter_dict_by_prefix",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_cumsum_along_dim",
    "get_dataset",
    "get_device",
    "get_matrix_corner",
    "get_nested_attr",
    "get_offset_position_ids",
    "get_tokens_with_bos_removed",
    "init_kaiming_normal_",
    "init_kaiming_uniform_",
    "init_xavier_normal_",
    "init_xavier_uniform_",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "logits_to_df",
    "override_or_use_default_value",
    "print_gpu_mem",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "rprint",
    "sample_logits",
    "select_compatible_kwargs",
    "set_nested_attr",
    "solu",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
]
