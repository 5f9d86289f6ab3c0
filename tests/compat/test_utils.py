"""The face `utils`: every name the field's notebooks look for is there, and takes the field's arguments."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from own_process import run_program

import headscope
from headscope import utils

# Parameters in the field's order. Ours may have more, by keyword only.
SIGNATURES = {
    "LocallyOverridenDefaults": "model",
    "calc_fan_in_and_fan_out": "tensor",
    "check_structure": "t1 t2",
    "composition_scores": "left right broadcast_dims",
    "download_file_from_hf": "repo_name file_name subfolder cache_dir force_is_torch",
    "filter_dict_by_prefix": "dictionary prefix",
    "gelu_fast": "input",
    "gelu_new": "input",
    "gelu_pytorch_tanh": "input",
    "get_act_name": "name layer layer_type",
    "get_attention_mask": "tokenizer tokens prepend_bos padding_side",
    "get_tokens_with_bos_removed": "tokenizer tokens padding_side",
    "get_corner": "tensor n",
    "get_cumsum_along_dim": "tensor dim reverse",
    "get_dataset": "dataset_name",
    "get_device": "",
    "get_matrix_corner": "matrix n",
    "get_nested_attr": "obj attr_str",
    "get_offset_position_ids": "past_kv_pos_offset attention_mask",
    "init_kaiming_normal_": "param a nonlinearity gain mode",
    "init_kaiming_uniform_": "param a nonlinearity gain mode",
    "init_xavier_normal_": "param gain",
    "init_xavier_uniform_": "param gain",
    "is_lower_triangular": "x",
    "is_square": "x",
    "keep_single_column": "dataset col_name",
    "lm_accuracy": "logits tokens per_token",
    "lm_cross_entropy_loss": "logits tokens attention_mask per_token",
    "logits_to_df": "logits tokenizer top_k",
    "override_or_use_default_value": "default_flag override",
    "print_gpu_mem": "step_name",
    "remove_batch_dim": "tensor",
    "repeat_along_head_dimension": "tensor n_heads clone_tensor",
    "sample_logits": "final_logits top_k top_p temperature freq_penalty repetition_penalty tokens",
    "select_compatible_kwargs": "kwargs_dict callable",
    "set_nested_attr": "obj attr_str value",
    "Slice": "input_slice",
    "solu": "input",
    "test_prompt": "prompt answer model prepend_space_to_answer print_details prepend_bos top_k",
    "to_numpy": "tensor",
    "tokenize_and_concatenate": (
        "dataset tokenizer streaming max_length column_name add_bos_token num_proc set_format"
    ),
    "transpose": "tensor",
}
DEFAULTS = {
    "composition_scores": {"broadcast_dims": True},
    "get_corner": {"n": 3},
    "get_cumsum_along_dim": {"reverse": False},
    "get_matrix_corner": {"n": 3},
    "init_kaiming_normal_": {"a": 0, "nonlinearity": "relu", "gain": 1.0, "mode": "fan_in"},
    "repeat_along_head_dimension": {"clone_tensor": True},
    "sample_logits": {
        "top_k": None, "top_p": None, "temperature": 1.0, "freq_penalty": 0.0, "repetition_penalty": 1.0,
        "tokens": None, "generator": None,
    },
    "test_prompt": {"prepend_space_to_answer": True, "print_details": True, "prepend_bos": None, "top_k": 10},
    "tokenize_and_concatenate": {
        "streaming": False, "max_length": 1024, "column_name": "text", "add_bos_token": True, "set_format": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments(name: str) -> None:
    parameters = inspect.signature(getattr(utils, name)).parameters
    by_position = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == SIGNATURES[name].split()
    for parameter, default in DEFAULTS.get(name, {}).items():
        assert parameters[parameter].default == default


def test_the_face_is_complete_and_sorted() -> None:
    assert set(utils.__all__) == {*SIGNATURES, "SliceInput", "USE_DEFAULT_VALUE", "rprint"}
    assert len(utils.__all__) == len(set(utils.__all__))
    assert headscope.FactoredMatrix.__module__ == "headscope.ops.factored"


def test_each_name_is_documented_with_an_example() -> None:
    for name in SIGNATURES:
        assert ">>>" in (inspect.getdoc(getattr(utils, name)) or ""), name


def test_nothing_is_defined_here() -> None:
    tree = ast.parse(Path(inspect.getfile(utils)).read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))]


def test_rprint_prints_with_markup(capsys: pytest.CaptureFixture[str]) -> None:
    utils.rprint("[b]Rank[/b] 3")
    assert capsys.readouterr().out == "Rank 3\n"


def test_names_work_together() -> None:
    """A notebook's line or two with each of several helpers."""
    product = headscope.FactoredMatrix(torch.randn(2, 6, 3), torch.randn(2, 3, 6))
    scores = utils.to_numpy(utils.composition_scores(product, product))
    assert scores.shape == (2, 2)
    corner = utils.get_corner(product, 2)
    assert torch.equal(utils.transpose(utils.transpose(corner)), corner)
    logits = torch.randn(1, 4, 9)
    tokens = utils.sample_logits(utils.remove_batch_dim(logits), temperature=0.0)[None]
    assert float(utils.lm_accuracy(logits, tokens.roll(1, -1))) == 1.0


def test_importing_it_costs_little() -> None:
    code = "import sys, headscope.utils; print([n for n in ('rich.console', 'pandas', 'datasets') if n in sys.modules])"
    loaded = run_program(code)
    assert loaded.stdout.strip() == "[]", loaded.stderr
