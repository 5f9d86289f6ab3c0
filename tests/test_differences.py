"""Differences from TransformerLens: told once, where they happen, to code that comes through the alias alone."""

import json
from pathlib import Path

import pytest
from own_process import run_program

from headscope.differences import DIFFERENCES

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
BEGIN = """
import os, sys, tempfile, torch
from datasets_stand_in import StandInDataset, datasets_module
from headscope import FactoredMatrix, HookedTransformer, HookedTransformerConfig
from headscope.evals import evaluate_on_dataset, induction_loss
from headscope.utils import sample_logits, tokenize_and_concatenate

sys.modules["datasets"] = datasets_module()
SIZES = dict(n_layers=1, d_model=8, n_ctx=8, d_head=4, d_vocab=9, act_fn="gelu", d_mlp=4)
tokens, demo = torch.arange(5)[None], HookedTransformer.from_pretrained("headscope-demo")
plain = HookedTransformer(HookedTransformerConfig(**SIZES))
os.chdir(tempfile.mkdtemp())
demo.save_pretrained("roneneldan/TinyStories-1M")  # a folder is found before a model of that name on the hub
_, cache = plain.run_with_cache(tokens)
logits = torch.zeros(1, 9)
def same(value, hook): pass
"""
# What leads to each, in a process of its own; and what is near it and leads to none.
CALLS = {
    "seed": "HookedTransformerConfig(**SIZES, seed=1)",
    "gated biases": "HookedTransformer(HookedTransformerConfig(**SIZES, gated_mlp=True))",
    "singular vectors": "plain.OV.U",
    "accumulated_resid": "cache.accumulated_resid(apply_ln=True)",
    "logit_attrs": "cache.logit_attrs(cache.decompose_resid(), 1)",
    "gradients of norms": "plain.add_hook('blocks.0.ln1.hook_normalized', same, dir='bwd')",
    "optional points": "plain.run_with_hooks(tokens, fwd_hooks=[('blocks.0.attn.hook_result', same)])",
    "padding": "demo(['Mary went home', 'John'], return_type='loss')",
    "top_k and top_p": "sample_logits(logits, top_k=3, top_p=0.5)",
    "context": "HookedTransformer.from_pretrained('roneneldan/TinyStories-1M')",
    "index": "FactoredMatrix(torch.ones(2, 4, 3), torch.ones(2, 3, 5))[[0, 1], [0, 1]]",
    "rows": "tokenize_and_concatenate(StandInDataset({'text': ['Mary went home'] * 9}), demo.tokenizer, max_length=4)",
    "truncate": "evaluate_on_dataset(plain, [{'tokens': tokens}], progress=False)",
    "induction tokens": "induction_loss(plain, subseq_len=3, prepend_bos=False)",
    "list of one": "demo.generate(['Mary'], max_new_tokens=1, verbose=False)",
}
ALSO = {
    "optional points": "plain.run_with_cache(tokens, names_filter=lambda name: True)",
    "gated biases": "gated = HookedTransformer(HookedTransformerConfig(**SIZES, gated_mlp=True, init_weights=False))\n"
    "gated.load_and_process_state_dict({name: torch.ones_like(p) for name, p in gated.state_dict().items()})",
    "padding": "demo.loss_fn(demo(['a b', 'a']), demo.to_tokens(['a b', 'a']))",
}
WAYS = [
    "plain.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith('result'), same)])",
    "with plain.hooks([('blocks.0.attn.hook_result', same)]): plain(tokens)",
    "plain.add_hook(lambda name: True, same)",
]
NEAR = [
    "HookedTransformer.from_pretrained('roneneldan/TinyStories-1M', n_ctx=8)",
    "FactoredMatrix(torch.ones(2, 4, 3), torch.ones(2, 3, 5))[0, [0, 1], [0, 1]]",
    "tokenize_and_concatenate(StandInDataset({'text': ['Mary'] * 9}), demo.tokenizer, max_length=4, num_proc=1)",
    "HookedTransformerConfig(**SIZES)",
    "plain.OV.S; plain.OV.eigenvalues; plain.OV.norm()",
    "cache.accumulated_resid(); cache.accumulated_resid(layer=0, apply_ln=True); cache.decompose_resid(apply_ln=True)",
    "_, read = demo.run_with_cache('Mary'); read.logit_attrs(read.decompose_resid(), 1)",
    "plain.add_hook('blocks.0.hook_attn_out', same, dir='bwd')",
    "plain.run_with_hooks(tokens, fwd_hooks=[('blocks.0.attn.hook_z', same)])",
    "plain.run_with_cache(tokens, names_filter='blocks.0.attn.hook_result')",
    "demo(['Mary', 'John'], return_type='loss'); demo(['Mary went', 'John'], return_type='loss', padding_side='left')",
    "sample_logits(logits, top_k=3); sample_logits(logits, top_p=0.5)",
    "demo.generate('Mary', max_new_tokens=1, verbose=False)",
]
SCRIPT = """
import json, warnings
from headscope import differences
%s
%s
told = {}
for call in json.loads(%r):
    if %r:
        differences._told.clear()
    heard = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            exec(compile(call, "notebook", "exec"))
            heard.append([(str(each.message), each.filename) for each in caught])
            caught.clear()
    told[call] = heard
print(json.dumps(told))
"""


def told(calls: list[str], *, through_alias: bool, anew: bool = False) -> dict[str, list[list[list[str]]]]:
    """Run each call twice, all in one process, and return what they warned of; `anew`: as if each were the first."""
    # The alias comes after what the calls use, so that only they are heard.
    alias = "import headscope.compat.transformer_lens" if through_alias else ""
    done = run_program(SCRIPT % (BEGIN, alias, json.dumps(calls), anew))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def aliased() -> dict[str, list[list[list[str]]]]:
    return told([*NEAR, *CALLS.values()], through_alias=True)


@pytest.fixture(scope="module")
def anew() -> dict[str, list[list[list[str]]]]:
    return told([*ALSO.values(), *WAYS], through_alias=True, anew=True)


def test_each_difference_is_called() -> None:
    assert list(CALLS) == list(DIFFERENCES)


@pytest.mark.parametrize("name", CALLS)
def test_told_once_at_the_line_of_the_caller(aliased: dict[str, list[list[list[str]]]], name: str) -> None:
    first, second = aliased[CALLS[name]]
    assert first == [[f"{DIFFERENCES[name]}. See docs/migration.md.", "notebook"]] and second == []


@pytest.mark.parametrize("call", NEAR)
def test_not_told_where_numbers_agree(aliased: dict[str, list[list[list[str]]]], call: str) -> None:
    assert aliased[call] == [[], []]


@pytest.mark.parametrize("call", WAYS)
def test_every_way_to_an_optional_point(anew: dict[str, list[list[list[str]]]], call: str) -> None:
    first, second = anew[call]
    assert first == [[f"{DIFFERENCES['optional points']}. See docs/migration.md.", "notebook"]] and second == []


@pytest.mark.parametrize("name", ALSO)
def test_other_ways_to_the_same(anew: dict[str, list[list[list[str]]]], name: str) -> None:
    assert anew[ALSO[name]][0][-1][0].startswith(DIFFERENCES[name])


def test_the_page_marks_what_is_told() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ⚠")]
    assert len(rows) == len(DIFFERENCES)


def test_native_code_is_told_nothing() -> None:
    heard = told([*CALLS.values(), *ALSO.values()], through_alias=False)
    assert all(each == [[], []] for each in heard.values())
