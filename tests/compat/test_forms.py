"""Code as notebooks and packages write it for TransformerLens, with the alias as its only addition.

Each form is a function of a script that runs in a process of its own and imports nothing of
headscope besides the alias.
"""

import json
import re
from pathlib import Path

import pytest
from own_process import run_program

ROOT = Path(__file__).parents[2]
NAMES = ROOT / "tests" / "model" / "checkpoints" / "transformer_lens_names.txt"

FORMS = """
import headscope.compat.transformer_lens

import json, os, sys, tempfile, warnings
import torch
import transformer_lens
import transformer_lens.utils as utils
import circuitsvis as cv
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

warnings.simplefilter("ignore", UserWarning)
SIZES = dict(n_layers=2, d_model=16, n_ctx=12, d_head=4, n_heads=4, d_mlp=32, d_vocab=30, act_fn="gelu", device="cpu")
TOKENS = torch.arange(10)[None]
demo = HookedTransformer.from_pretrained("headscope-demo")


def toy(**fields):
    return HookedTransformer(HookedTransformerConfig(**{**SIZES, "seed": 1, "initializer_range": 0.3, **fields}))


def fails(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("nothing was refused")


def deep_imports():
    from transformer_lens.ActivationCache import ActivationCache as cache_class
    from transformer_lens.components.mlps.mlp import MLP
    from transformer_lens.FactoredMatrix import FactoredMatrix as matrix
    from transformer_lens.HookedTransformer import HookedTransformer as model_class
    from transformer_lens.HookedTransformerConfig import HookedTransformerConfig as config_class
    from transformer_lens.SVDInterpreter import SVDInterpreter
    from transformer_lens import components, evals, head_detector, hook_points, loading_from_pretrained, patching
    from transformer_lens.utilities.tensors import to_numpy
    import transformer_lens.loading, transformer_lens.past_key_value_caching
    assert (cache_class, matrix) == (ActivationCache, FactoredMatrix)
    assert (model_class, config_class) == (HookedTransformer, HookedTransformerConfig)
    assert isinstance(toy().blocks[0].mlp, components.MLP) and components.MLP is MLP
    assert to_numpy is utils.to_numpy


def optional_parts_are_absent():
    model, attention = toy(), toy(attn_only=True)
    for part in ("ln1_post", "ln2_post"):
        assert not hasattr(model.blocks[0], part)
    for part in ("mlp", "ln2", "hook_mlp_out", "hook_resid_mid"):
        assert hasattr(model.blocks[0], part) and not hasattr(attention.blocks[0], part)
    rotary = toy(positional_embedding_type="rotary", rotary_dim=4)
    assert hasattr(model, "pos_embed") and not hasattr(rotary, "pos_embed")
    assert hasattr(rotary.blocks[0].attn, "rotary_sin") and not hasattr(model.blocks[0].attn, "rotary_sin")


def the_tokenizer_a_config_names():
    folder = tempfile.mkdtemp()
    demo.tokenizer.save_pretrained(folder)
    model = HookedTransformer(HookedTransformerConfig(**{**SIZES, "d_vocab": -1}, tokenizer_name=folder))
    assert model.cfg.d_vocab == model.cfg.d_vocab_out == len(demo.tokenizer)
    assert model("Mary went home").shape[-1] == model.cfg.d_vocab


def circuitsvis():
    page = cv.examples.hello("Neel")
    assert "Neel" in str(page)
    _, cache = demo.run_with_cache("Mary went home", remove_batch_dim=True)
    view = cv.attention.attention_patterns(demo.to_str_tokens("Mary went home"), cache["pattern", 0])
    view.show_code()
    cv.tokens.colored_tokens(["a", "b"], torch.tensor([0.1, 0.2]))
    log_probs = demo("Mary went home").log_softmax(-1)[0]
    cv.logits.token_log_probs(demo.to_tokens("Mary went home")[0], log_probs, demo.to_string)


def every_short_name():
    from transformer_lens.loading_from_pretrained import MODEL_ALIASES, OFFICIAL_MODEL_NAMES, get_official_model_name
    resolved = 0
    for name in json.loads(sys.argv[1]):
        try:
            assert get_official_model_name(name)
            resolved += 1
        except Exception as error:
            assert "not supported" in str(error) or "code of their own" in str(error), (name, error)
    assert resolved > 500 and "gpt2-small" in sum(map(list, MODEL_ALIASES.values()), [])
    assert "openai-community/gpt2" in OFFICIAL_MODEL_NAMES


def modules_have_names():
    model = toy()
    assert model.blocks[1].attn.name == "blocks.1.attn" and model.blocks[1].attn.hook_z.name == "blocks.1.attn.hook_z"
    assert all(module.name == name for name, module in model.named_modules() if name)
    assert model.mod_dict["blocks.0.mlp"] is model.blocks[0].mlp


def checkpoint_labels():
    from transformer_lens.loading_from_pretrained import get_checkpoint_labels
    labels, kind = get_checkpoint_labels("pythia-70m")
    assert kind == "step" and labels[:3] == [0, 1, 2] and labels[-1] == 143000


def weights_with_norms_for_a_folded_model():
    model = toy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    folded = toy(normalization_type="LNPre")
    folded.load_and_process_state_dict(model.state_dict(), fold_ln=True, center_writing_weights=True)
    torch.testing.assert_close(folded(TOKENS).log_softmax(-1), model(TOKENS).log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert not [name for name, _ in folded.named_parameters() if "ln" in name]


def small_helpers():
    from transformer_lens.HookedTransformer import Loss, Output
    assert utils.select_compatible_kwargs({"a": 1, "c": 2}, lambda a, b=3: a) == {"a": 1}
    utils.check_structure(torch.eye(3), torch.eye(3))
    logits, loss = toy()(TOKENS, return_type="both")
    assert isinstance(toy()(TOKENS, return_type="both"), Output) and Loss is not None
    assert loss.shape == () and logits.shape == (1, 10, 30)


def factored_matrices():
    matrix = toy().OV[0]
    for two in (2.0, torch.tensor(2.0), torch.tensor([[2.0]])):
        torch.testing.assert_close((matrix * two).AB, 2 * matrix.AB)
    assert torch.equal(matrix.eigenvalues, torch.linalg.eig(matrix.BA).eigenvalues)
    torch.testing.assert_close(matrix.U @ matrix.S.diag_embed() @ matrix.Vh.transpose(-2, -1), matrix.AB)
    row = torch.rand(16)
    torch.testing.assert_close(row @ matrix[0], row @ matrix[0].AB)


def layers_beyond_the_end():
    model = toy()
    residual = model(TOKENS, stop_at_layer=2)
    assert torch.equal(model(TOKENS, stop_at_layer=99), residual)
    assert model(TOKENS, stop_at_layer=-1).shape == residual.shape


def positional_flags():
    raw = HookedTransformer.from_pretrained("headscope-demo", False, False, False)
    assert raw.cfg.normalization_type == "LN"
    torch.testing.assert_close(raw("ab").log_softmax(-1), demo("ab").log_softmax(-1), rtol=1e-4, atol=1e-4)
    model = toy()
    model.load_and_process_state_dict(model.state_dict(), True, True)
    assert model.cfg.normalization_type == "LNPre"


def hooks_in_every_spelling():
    model, seen = toy(), []
    def keep(value, hook: HookPoint):
        seen.append((hook.name, hook.layer()))
    hooks = [(utils.get_act_name("z", 1), keep), (lambda name: name.endswith("q"), keep)]
    model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    assert sorted(seen) == [("blocks.0.attn.hook_q", 0), ("blocks.1.attn.hook_q", 1), ("blocks.1.attn.hook_z", 1)]
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(TOKENS)
    assert cache["result", 0].shape == (1, 10, 4, 16) and cache["blocks.0.hook_q_input"].shape == (1, 10, 4, 16)


def filtered_and_sliced_caches():
    model = toy()
    _, everything = model.run_with_cache(TOKENS)
    _, some = model.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("hook_z"))
    assert torch.equal(some["z", 1], everything["z", 1])
    _, last = model.run_with_cache(TOKENS, pos_slice=-1)
    assert last["z", 1].shape == (1, 1, 4, 4) and last["pattern", 1].shape == (1, 4, 1, 10)


def native_layout():
    folder = tempfile.mkdtemp()
    model = toy(attention_dir="bidirectional", d_vocab_out=5)
    model.save_pretrained(folder)
    again = HookedTransformer.from_pretrained(folder)
    assert (again.cfg.attention_dir, again.cfg.d_vocab_out) == ("bidirectional", 5)
    assert torch.equal(again(TOKENS), model(TOKENS))
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        entries = json.load(file)
    with open(path, "w") as file:
        json.dump({**entries, "attention_dirr": "causal"}, file)
    assert "attention_dirr" in fails(ValueError, lambda: HookedTransformer.from_pretrained(folder))


def one_logit_and_few_logits():
    model = toy(d_vocab_out=1)
    before = model(TOKENS)
    raw = dict(fold_ln=False, center_writing_weights=False)
    model.load_and_process_state_dict(model.state_dict(), **raw, center_unembed=True)
    assert torch.equal(model(TOKENS), before) and bool(before.any())
    assert "d_vocab_out" in fails(ValueError, lambda: toy(d_vocab_out=5)(TOKENS, return_type="loss"))


def padded_positions():
    mask = torch.ones(1, 10, dtype=torch.long)
    mask[0, :3] = 0
    _, cache = toy().run_with_cache(TOKENS, attention_mask=mask)
    assert not bool(cache["pos_embed"][0, :3].any()) and bool(cache["pos_embed"][0, 3:].any())


def beginnings_of_texts():
    with_bos = demo.to_tokens("Mary went home")
    assert with_bos[0, 0] == demo.tokenizer.bos_token_id
    assert torch.equal(demo.to_tokens("Mary went home", prepend_bos=False), with_bos[:, 1:])
    own = HookedTransformer.from_pretrained("headscope-demo", default_prepend_bos=False)
    assert torch.equal(own.to_tokens("Mary went home"), with_bos[:, 1:])


def factored_attention():
    model = toy()
    with torch.no_grad():
        model.blocks[0].attn.b_Q += 0.3
        model.blocks[0].attn.b_K += 0.2
    before = model(TOKENS)
    model.load_and_process_state_dict(model.state_dict(), fold_ln=False, center_writing_weights=False,
        center_unembed=False, fold_value_biases=False, refactor_factored_attn_matrices=True)
    torch.testing.assert_close(model(TOKENS), before, rtol=1e-4, atol=1e-4)


def a_seed():
    torch.manual_seed(3)
    model, same = toy(seed=None), toy(seed=3)
    assert torch.equal(model.W_Q, same.W_Q)
    # W_E, W_pos, then W_Q and W_O, as TransformerLens 3.9 draws them.
    generator = torch.Generator().manual_seed(3)
    for weight in (model.W_E, model.W_pos, model.W_Q[0], model.W_O[0], model.W_K[0]):
        assert torch.equal(weight, torch.empty(weight.shape).normal_(0.0, 0.3, generator=generator))


def patching_and_heads():
    import transformer_lens.patching as patching
    from transformer_lens.head_detector import detect_head
    model = toy()
    _, cache = model.run_with_cache(TOKENS)
    out = patching.get_act_patch_resid_pre(model, TOKENS.flip(1), cache, lambda logits: logits[0, -1, 3])
    assert out.shape == (2, 10)
    scores = detect_head(demo, "Mary went home Mary went", "induction_head")
    assert scores.shape == (demo.cfg.n_layers, demo.cfg.n_heads)


def generated():
    tokens = demo.to_tokens("Mary went")
    written = demo.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False)
    assert written.shape == (1, tokens.shape[1] + 3) and torch.equal(written[:, :-3], tokens)
    given = demo.generate(tokens, 2, do_sample=False, verbose=False, output_logits=True, return_dict_in_generate=True)
    assert given.sequences.shape == (1, tokens.shape[1] + 2) and len(given.logits) == 2
    assert demo.generate("Mary went", max_new_tokens=2, temperature=0.0, verbose=False).startswith("Mary went")


told = {}
for name, form in [(name, form) for name, form in globals().items() if getattr(form, "__module__", "") == "__main__"]:
    if name not in ("toy", "fails"):
        try:
            form()
            told[name] = ""
        except BaseException as error:
            told[name] = f"{type(error).__name__}: {error} (line {error.__traceback__.tb_next.tb_lineno})"
print(json.dumps(told))
"""
EXPECTED = re.findall(r"^def (\w+)\(\):$", FORMS, re.MULTILINE)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    script = tmp_path_factory.mktemp("forms") / "notebook.py"
    script.write_text(FORMS, encoding="utf-8")
    names = " ".join(NAMES.read_text(encoding="utf-8").splitlines()[1:]).split()
    done = run_program(script, json.dumps(names), cwd=script.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_forms_ran(told: dict[str, str]) -> None:
    assert list(told) == EXPECTED


@pytest.mark.parametrize("form", EXPECTED)
def test_form(told: dict[str, str], form: str) -> None:
    assert told[form] == ""
