"""The public surface: every name users rely on, with its signature, and the marks that say which test checks it.

A row is a name and its parameters with their defaults, as Python writes them; `None` is for what is not called: a
property or an attribute. An owner's own additions by keyword are not listed; `OWN` has the names it adds, `LEFT_OUT`
those of TransformerLens 3.5.1 it does without. `tests/surface/` holds the checks, an area or two per file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass
class Area:
    """Part of what an owner shows: its rows, and the names some test checks."""

    owner: str
    rows: dict[str, str | None]
    checked: set[str] = field(default_factory=set)

    def shows(self, *names: str) -> Callable[[Test], Test]:
        """Mark a test as the check of these names. For several names, it runs once for each, given as `name`."""
        unknown = [name for name in names if name not in self.rows]
        assert not unknown, f"{self.owner} has no rows {unknown}"
        self.checked.update(names)
        return pytest.mark.parametrize("name", names) if len(names) > 1 else lambda test: test

    def unchecked(self) -> list[str]:
        """The rows without a check."""
        return [name for name in self.rows if name not in self.checked]


def same(found: Tensor, wanted: Tensor, *, within: float = 1e-9) -> None:
    """Fail unless two tensors have the same shape and dtype, and differ by 1e-9 at most."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=within, equal_nan=True)


RUNNING = Area("HookedTransformer", {
    "__init__": "cfg, tokenizer=None, move_to_device=True, default_padding_side='right'",
    "forward": "input, return_type='logits', loss_per_token=False, prepend_bos=None, padding_side=None, "
    "start_at_layer=None, tokens=None, shortformer_pos_embed=None, attention_mask=None, stop_at_layer=None, "
    "past_kv_cache=None",
    "input_to_embed": "input, prepend_bos=None, padding_side=None, attention_mask=None, past_kv_cache=None",
    "loss_fn": "logits, tokens, attention_mask=None, per_token=False",
    "set_use_attn_result": "use_attn_result",
    "set_use_split_qkv_input": "use_split_qkv_input",
    "set_use_attn_in": "use_attn_in",
    "set_use_hook_mlp_in": "use_hook_mlp_in",
    "set_ungroup_grouped_query_attention": "ungroup_grouped_query_attention",
    "generate": "input='', max_new_tokens=10, stop_at_eos=True, eos_token_id=None, do_sample=True, top_k=None, "
    "top_p=None, temperature=1.0, freq_penalty=0.0, use_past_kv_cache=True, prepend_bos=None, padding_side=None, "
    "return_type='input', verbose=True",
    "generate_stream": "input='', max_new_tokens=10, max_tokens_per_yield=25, stop_at_eos=True, eos_token_id=None, "
    "do_sample=True, top_k=None, top_p=None, temperature=1.0, freq_penalty=0.0, use_past_kv_cache=True, "
    "prepend_bos=None, padding_side=None, return_type='input', verbose=True",
    "cfg": None, "embed": None, "hook_embed": None, "pos_embed": None, "hook_pos_embed": None, "blocks": None,
    "ln_final": None, "unembed": None,
})  # fmt: skip

WEIGHTS = Area("HookedTransformer", {
    "W_E": None, "W_pos": None, "W_E_pos": None, "W_U": None, "b_U": None,
    "W_Q": None, "W_K": None, "W_V": None, "W_O": None, "b_Q": None, "b_K": None, "b_V": None, "b_O": None,
    "W_in": None, "W_gate": None, "W_out": None, "b_in": None, "b_out": None,
    "OV": None, "QK": None, "n_params_total": None,
    "accumulated_bias": "layer, mlp_input=False, include_mlp_biases=True",
    "all_composition_scores": "mode",
    "all_head_labels": "",
})  # fmt: skip

MAKING = Area("HookedTransformer", {
    "from_pretrained": "model_name, fold_ln=None, center_writing_weights=None, center_unembed=None, "
    "refactor_factored_attn_matrices=None",
    "from_pretrained_no_processing": "model_name, **options",
    "init_weights": "",
    "load_and_process_state_dict": "state_dict, *flags, **processing",
    "process_weights_": "**processing",
    "to": "*args, print_details=False, **kwargs",
    "cpu": "",
    "cuda": "device=None",
    "mps": "",
    "dataset": None,
    "load_sample_training_dataset": "**options",
    "sample_datapoint": "tokenize=False, prepend_bos=None, padding_side=None",
})  # fmt: skip

TOKENS = Area("HookedTransformer", {
    "tokenizer": None,
    "default_padding_side": None,
    "set_tokenizer": "tokenizer, default_padding_side=None",
    "to_tokens": "input, prepend_bos=None, padding_side=None, move_to_device=True, truncate=True",
    "to_string": "tokens",
    "to_str_tokens": "input, prepend_bos=None, padding_side=None",
    "to_single_token": "string",
    "to_single_str_token": "int_token",
    "get_token_position": "single_token, input, mode='first', prepend_bos=None, padding_side=None",
    "tokens_to_residual_directions": "tokens",
})  # fmt: skip

# On a model, `run_with_cache` gives an ActivationCache; else it is as on any other root.
_ROOT_ROWS = {
    "setup": "",
    "mod_dict": None, "hook_dict": None, "is_caching": None, "context_level": None,
    "hook_points": "",
    "remove_all_hook_fns": "direction='both', including_permanent=False, level=None",
    "clear_contexts": "",
    "reset_hooks": "clear_contexts=True, direction='both', including_permanent=False, level=None",
    "add_hook": "name, hook, dir='fwd', is_permanent=False, level=None, prepend=False",
    "add_perma_hook": "name, hook, dir='fwd'",
    "hooks": "fwd_hooks=(), bwd_hooks=(), reset_hooks_end=True, clear_contexts=False",
    "run_with_hooks": "*model_args, fwd_hooks=(), bwd_hooks=(), reset_hooks_end=True, clear_contexts=False, "
    "**model_kwargs",
    "add_caching_hooks": "names_filter=None, incl_bwd=False, device=None, remove_batch_dim=False, cache=None",
    "get_caching_hooks": "names_filter=None, incl_bwd=False, device=None, remove_batch_dim=False, cache=None, "
    "pos_slice=None",
    "run_with_cache": "*model_args, names_filter=None, device=None, remove_batch_dim=False, incl_bwd=False, "
    "reset_hooks_end=True, clear_contexts=False, pos_slice=None, **model_kwargs",
}  # fmt: skip

ROOT = Area("HookedRootModule", {"__init__": "*args", **_ROOT_ROWS})

MODEL_HOOKS = Area("HookedTransformer", {
    **_ROOT_ROWS,
    "run_with_cache": "*model_args, return_cache_object=True, remove_batch_dim=False, **kwargs",
})  # fmt: skip

POINT = Area("HookPoint", {
    "__init__": "",
    "name": None, "ctx": None, "fwd_hooks": None, "bwd_hooks": None,
    "forward": "x",
    "add_hook": "hook, dir='fwd', is_permanent=False, level=None, prepend=False, alias_names=None",
    "add_perma_hook": "hook, dir='fwd'",
    "has_hooks": "dir='both', including_permanent=True, level=None",
    "remove_hooks": "dir='fwd', including_permanent=False, level=None",
    "clear_context": "",
    "layer": "",
})  # fmt: skip

CACHE = Area("ActivationCache", {
    "__init__": "cache_dict, model, has_batch_dim=True",
    "__getitem__": "key", "__contains__": "key", "__len__": "", "__iter__": "",
    "cache_dict": None, "model": None, "has_batch_dim": None, "has_embed": None, "has_pos_embed": None,
    "keys": "", "values": "", "items": "",
    "to": "device",
    "remove_batch_dim": "",
    "apply_slice_to_batch_dim": "batch_slice",
    "accumulated_resid": "layer=None, incl_mid=False, apply_ln=False, pos_slice=None, mlp_input=False, "
    "return_labels=False",
    "decompose_resid": "layer=None, mlp_input=False, mode='all', apply_ln=False, pos_slice=None, incl_embeds=True, "
    "return_labels=False",
    "logit_attrs": "residual_stack, tokens, incorrect_tokens=None, pos_slice=None, batch_slice=None, "
    "has_batch_dim=True",
    "compute_head_results": "",
    "stack_head_results": "layer=None, return_labels=False, incl_remainder=False, pos_slice=None, apply_ln=False",
    "stack_activation": "activation_name, layer=-1, sublayer_type=None",
    "get_neuron_results": "layer, neuron_slice=None, pos_slice=None, project_output_onto=None",
    "stack_neuron_results": "layer=None, pos_slice=None, neuron_slice=None, return_labels=False, "
    "incl_remainder=False, apply_ln=False, project_output_onto=None",
    "apply_ln_to_stack": "residual_stack, layer=None, mlp_input=False, pos_slice=None, batch_slice=None, "
    "has_batch_dim=True, recompute_ln=False",
    "get_full_resid_decomposition": "layer=None, mlp_input=False, expand_neurons=True, apply_ln=False, "
    "pos_slice=None, return_labels=False, project_output_onto=None",
})  # fmt: skip

FACTORED = Area("FactoredMatrix", {
    "__init__": "A, B",
    "__matmul__": "other", "__rmatmul__": "other", "__mul__": "scalar", "__rmul__": "scalar", "__getitem__": "index",
    "A": None, "B": None, "pair": None, "ldim": None, "rdim": None, "mdim": None,
    "shape": None, "ndim": None, "has_leading_dims": None,
    "AB": None, "BA": None, "T": None,
    "svd": "", "U": None, "S": None, "V": None, "Vh": None,
    "eigenvalues": None,
    "norm": "",
    "make_even": "",
    "collapse_l": "", "collapse_r": "",
    "get_corner": "k=3",
    "unsqueeze": "k",
})  # fmt: skip

PAST = Area("HookedTransformerKeyValueCache", {
    "__init__": "entries, previous_attention_mask, frozen=False",
    "__getitem__": "layer",
    "entries": None, "previous_attention_mask": None, "frozen": None,
    "init_cache": "cfg, device=None, batch_size=1",
    "append_attention_mask": "attention_mask",
    "freeze": "", "unfreeze": "",
})  # fmt: skip

PAST_ENTRY = Area("HookedTransformerKeyValueCacheEntry", {
    "__init__": "past_keys, past_values, frozen=False",
    "past_keys": None, "past_values": None, "frozen": None,
    "init_cache_entry": "cfg, device, batch_size=1, layer=0",
    "append": "new_keys, new_values",
})  # fmt: skip

SVD = Area("SVDInterpreter", {
    "__init__": "model",
    "model": None, "cfg": None,
    "get_singular_vectors": "vector_type, layer_index, num_vectors=10, head_index=None",
})  # fmt: skip

HEAD_DETECTOR = Area("head_detector", {
    "HEAD_NAMES": None,
    "detect_head": "model, seq, detection_pattern, heads=None, cache=None, *, exclude_bos=False, "
    "exclude_current_token=False, error_measure='mul'",
    "compute_head_attention_similarity_score": "attention_pattern, detection_pattern, *, exclude_bos, "
    "exclude_current_token, error_measure",
    "get_previous_token_head_detection_pattern": "tokens",
    "get_duplicate_token_head_detection_pattern": "tokens",
    "get_induction_head_detection_pattern": "tokens",
    "get_supported_heads": "",
    "is_lower_triangular": "x",
    "is_square": "x",
})  # fmt: skip

EVALS = Area("evals", {
    "DATASET_NAMES": None, "DATASET_LOADERS": None,
    "IOIDataset": "tokenizer, templates=None, names=None, nouns=None, num_samples=1000, symmetric=False, "
    "prepend_bos=True, seed=0",
    "sanity_check": "model",
    "make_wiki_data_loader": "tokenizer, batch_size=8",
    "make_owt_data_loader": "tokenizer, batch_size=8",
    "make_pile_data_loader": "tokenizer, batch_size=8",
    "make_code_data_loader": "tokenizer, batch_size=8",
    "evaluate_on_dataset": "model, data_loader, truncate=100, device=None",
    "induction_loss": "model, tokenizer=None, batch_size=4, subseq_len=None, prepend_bos=None, device=None",
    "evaluate": "model, truncate=100, batch_size=8, tokenizer=None",
    "ioi_eval": "model, dataset=None, batch_size=8, num_samples=1000, tokenizer=None, symmetric=False",
})  # fmt: skip

_SETTER = "corrupted_activation, index, clean_activation"
_SWEEP = "model, corrupted_tokens, clean_cache, patching_metric"
_SWEEPS = (
    "resid_pre", "resid_mid", "attn_out", "mlp_out", "attn_head_out_by_pos", "attn_head_q_by_pos",
    "attn_head_k_by_pos", "attn_head_v_by_pos", "attn_head_pattern_by_pos", "attn_head_pattern_dest_src_pos",
    "attn_head_out_all_pos", "attn_head_q_all_pos", "attn_head_k_all_pos", "attn_head_v_all_pos",
    "attn_head_pattern_all_pos",
)  # fmt: skip
PATCHING = Area("patching", {
    "make_df_from_ranges": "column_max_ranges, column_names",
    "generic_activation_patch": f"{_SWEEP}, patch_setter, activation_name, index_axis_names=None, index_df=None, "
    "return_index_df=False",
    "layer_pos_patch_setter": _SETTER,
    "layer_pos_head_vector_patch_setter": _SETTER,
    "layer_head_vector_patch_setter": _SETTER,
    "layer_head_pattern_patch_setter": _SETTER,
    "layer_head_pos_pattern_patch_setter": _SETTER,
    "layer_head_dest_src_pos_pattern_patch_setter": _SETTER,
    **{f"get_act_patch_{what}": _SWEEP for what in _SWEEPS},
    "get_act_patch_attn_head_all_pos_every": "model, corrupted_tokens, clean_cache, metric",
    "get_act_patch_attn_head_by_pos_every": "model, corrupted_tokens, clean_cache, metric",
    "get_act_patch_block_every": "model, corrupted_tokens, clean_cache, metric",
})  # fmt: skip

AREAS = {
    "RUNNING": RUNNING, "WEIGHTS": WEIGHTS, "MAKING": MAKING, "TOKENS": TOKENS, "ROOT": ROOT,
    "MODEL_HOOKS": MODEL_HOOKS, "POINT": POINT, "CACHE": CACHE, "FACTORED": FACTORED, "PAST": PAST,
    "PAST_ENTRY": PAST_ENTRY, "SVD": SVD, "HEAD_DETECTOR": HEAD_DETECTOR, "EVALS": EVALS, "PATCHING": PATCHING,
}  # fmt: skip

# What headscope adds of its own.
OWN = {
    "HookedTransformer": {
        "place",
        "attention_mask", "b_gate", "fires_by_default", "freeze", "from_hf", "input_device", "output_weight",
        "output_weights", "padding_side_or_default",
        "per_layer", "per_layer_if_shown", "save_pretrained", "to_hf", "to_logits", "training_dataset", "unfreeze",
        "n_params_checkpoint",
        "weight_processing",
    },
    "HookedRootModule": {"fires_by_default"},
    "HookPoint": set(),
    "ActivationCache": {"full_name", "load", "readout", "save"},
    "FactoredMatrix": {"turned_l", "turned_r"},
    "HookedTransformerKeyValueCache": {"all_or_nothing", "before", "n_past"},
    "HookedTransformerKeyValueCacheEntry": {"cut"},
    "SVDInterpreter": set(),
    "HookedTransformerConfig": {
        "centered_norm", "final_norm", "has_post_norms", "has_pre_norms", "has_resid_mid", "n_cached_heads",
        "has_experts", "layers_with", "parts_of", "value_width", "cached_heads_of", "eps_of", "groups_of",
        "head_width_of", "value_width_of",
    },
    "evals": set(),
    "head_detector": {"ErrorMeasure", "HeadName", "LayerHeadTuple", "LayerToHead"},
    "patching": {
        "AxisNames", "CorruptedActivation", "Logits", "PatchedActivation", "get_act_patch_resid_post", "last_position",
        "reads",
    },
}  # fmt: skip

_PROCESSING = "a function of headscope.model.weights.processing"
_HOOK_INTERNALS = "an internal step: add_hook and add_caching_hooks take names and predicates"
_INTERNALS = "an internal step of a forward pass: input_to_embed gives its result"
LEFT_OUT = {
    "HookedTransformer": {
        "fold_layer_norm": _PROCESSING,
        "center_writing_weights": _PROCESSING,
        "center_unembed": _PROCESSING,
        "fold_value_biases": _PROCESSING,
        "refactor_factored_attn_matrices": _PROCESSING,
        "fill_missing_keys": "weights that are missing are refused by name",
        "get_residual": _INTERNALS,
        "get_pos_offset": _INTERNALS,
        "check_hooks_to_add": _HOOK_INTERNALS,
        "check_and_add_hook": _HOOK_INTERNALS,
        "cache_all": "deprecated there: add_caching_hooks()",
        "cache_some": "deprecated there: add_caching_hooks(names_filter)",
        "list_hooks": "fwd_hooks and bwd_hooks of each point of hook_dict",
        "move_model_modules_to_device": "blocks are placed by place(), the whole model by to()",
    },
    "HookedRootModule": {
        "check_hooks_to_add": _HOOK_INTERNALS,
        "check_and_add_hook": _HOOK_INTERNALS,
        "cache_all": "deprecated there: add_caching_hooks()",
        "cache_some": "deprecated there: add_caching_hooks(names_filter)",
        "list_hooks": "fwd_hooks and bwd_hooks of each point of hook_dict",
    },
    "HookPoint": {
        "enable_reshape": "for the model bridges of version 3, which are not here",
        "hook_conversion": "for the model bridges of version 3, which are not here",
        "backward_scale": "for the model bridges of version 3, which are not here",
    },
    "ActivationCache": {"toggle_autodiff": "it switches autograd for everybody: torch.set_grad_enabled"},
    "SVDInterpreter": {"params": "the model has its own: named_parameters"},
    "HookedTransformerConfig": {
        "set_seed_everywhere": "the global seed is nobody's: cfg.seed has a generator of its own",
    },
    "evals": {
        "mmlu_eval": "questions with four answers, not a loss on text",
        "make_mmlu_data_loader": "questions with four answers, not a loss on text",
        "warn_if_mps": "no code here depends on the kind of device",
    },
}  # fmt: skip
