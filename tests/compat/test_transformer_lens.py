"""The alias in processes of their own: what is imported through it is headscope's, and what it lacks says so."""

import json
from pathlib import Path

import pytest
from own_process import run_program

# A statement, and an expression that must be true after it.
FORMS = {
    "from transformer_lens import HookedTransformer": "HookedTransformer is headscope.HookedTransformer",
    "import transformer_lens": "transformer_lens.HookedTransformer is headscope.HookedTransformer",
    "import transformer_lens as tl": "tl.utils.get_act_name is headscope.utils.get_act_name",
    "import transformer_lens.utils": "transformer_lens.utils.to_numpy is headscope.utils.to_numpy",
    "import transformer_lens.utils as u": "u.to_numpy is headscope.utils.to_numpy",
    "from transformer_lens import utils, patching": "patching.generic_activation_patch is"
    " headscope.patching.generic_activation_patch",
    "from transformer_lens.utils import *": "USE_DEFAULT_VALUE is None and gelu_new is headscope.utils.gelu_new",
    "from transformer_lens import *": "ActivationCache is headscope.ActivationCache and utils.transpose",
    "from transformer_lens.HookedTransformer import HookedTransformer, Output": "Output._fields == ('logits', 'loss')",
    "from transformer_lens.HookedTransformer import HookedRootModule": "HookedRootModule is headscope.HookedRootModule",
    "from transformer_lens.components.mlps.can_be_used_as_mlp import CanBeUsedAsMLP as M": "M is parts.layers.MLP",
    "import transformer_lens.HookedTransformer as HT": "HT is headscope.HookedTransformer",
    "from transformer_lens.HookedTransformerConfig import HookedTransformerConfig as C": "C is "
    "headscope.HookedTransformerConfig",
    "from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig as C": "C is "
    "headscope.HookedTransformerConfig",
    "from transformer_lens.ActivationCache import ActivationCache": "ActivationCache is headscope.ActivationCache",
    "from transformer_lens.FactoredMatrix import FactoredMatrix": "FactoredMatrix is headscope.FactoredMatrix",
    "from transformer_lens.SVDInterpreter import SVDInterpreter": "SVDInterpreter is headscope.SVDInterpreter",
    "from transformer_lens.hook_points import HookPoint, HookedRootModule, NamesFilter": "HookPoint is "
    "headscope.HookPoint and HookedRootModule is headscope.HookedRootModule",
    "from transformer_lens.components.mlps.mlp import MLP": "MLP is parts.layers.MLP",
    "import transformer_lens.components as c": "issubclass(c.GroupedQueryAttention, c.AbstractAttention)",
    "from transformer_lens.components.layer_norm import LayerNorm": "LayerNorm is parts.layers.LayerNorm",
    "from transformer_lens.components.transformer_block import TransformerBlock as B": "B.__module__ == "
    "'headscope.model.block'",
    "from transformer_lens.utilities import get_act_name": "get_act_name is headscope.utils.get_act_name",
    "from transformer_lens.utilities.tensors import to_numpy": "to_numpy is headscope.utils.to_numpy",
    "from transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache as K": "K is "
    "headscope.HookedTransformerKeyValueCache",
    "from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as K": "K is "
    "headscope.HookedTransformerKeyValueCache",
    "from transformer_lens.loading_from_pretrained import get_official_model_name as official": "official('GPT2-small')"
    " == 'openai-community/gpt2'",
    "import transformer_lens.loading as loading": "loading.MODEL_ALIASES['openai-community/gpt2'][0] == 'gpt2' and"
    " 'openai-community/gpt2' in loading.OFFICIAL_MODEL_NAMES",
    "from transformer_lens.head_detector import detect_head": "detect_head is headscope.head_detector.detect_head",
    "from transformer_lens.evals import induction_loss": "induction_loss is headscope.evals.induction_loss",
    "from transformer_lens.train import HookedTransformerTrainConfig, train": "train.__module__ == "
    "'headscope.training.epochs'",
    "import circuitsvis as cv": "cv.attention.attention_heads is views.attention.attention_heads",
    "from circuitsvis.topk_tokens import topk_tokens": "topk_tokens is views.topk_tokens.topk_tokens",
    "from circuitsvis.examples import hello": "hello is views.examples.hello",
    "from circuitsvis import tokens": "tokens.colored_tokens is views.tokens.colored_tokens",
    "import importlib, transformer_lens as tl": "importlib.import_module('transformer_lens.utils') is tl.utils",
    "import importlib.util": "importlib.util.find_spec('transformer_lens').name == 'transformer_lens'",
}
# What is not there, and what the error says.
MISSING = {
    "from transformer_lens import HookedEncoder": "ImportError: headscope does not support "
    "transformer_lens.HookedEncoder: only decoder-only models are supported.",
    "import transformer_lens.model_bridge.bridge": "ImportError: headscope does not support "
    "transformer_lens.model_bridge: the alias stands for HookedTransformer; there is no TransformerBridge.",
    "from transformer_lens.components import BertBlock": "ImportError: headscope does not support "
    "transformer_lens.components.BertBlock.",
    "import transformer_lens; transformer_lens.nope": "AttributeError: headscope does not support "
    "transformer_lens.nope.",
    "import transformer_lens\nassert hasattr(transformer_lens, 'HookedEncoder')": "AssertionError: ",
    "from circuitsvis.attention import nope": "ImportError: headscope does not support circuitsvis.attention.nope.",
}
SCRIPT = """
import json
import headscope.compat.transformer_lens
import headscope, headscope.model.parts as parts, headscope.views as views

told = {}
for statement, wanted in json.loads(%r).items():
    names = {"headscope": headscope, "parts": parts, "views": views}
    try:
        exec(statement, names)
        told[statement] = bool(eval(wanted, names))
    except Exception as error:
        kind = ImportError if isinstance(error, ImportError) else type(error)
        told[statement] = f"{kind.__name__}: {error}"
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, bool | str]:
    done = run_program(SCRIPT % json.dumps({**FORMS, **dict.fromkeys(MISSING, "True")}))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("statement", FORMS)
def test_every_form_of_import_gives_our_own(told: dict[str, bool | str], statement: str) -> None:
    assert told[statement] is True


@pytest.mark.parametrize("statement", MISSING)
def test_what_is_not_supported_says_so(told: dict[str, bool | str], statement: str) -> None:
    # Only imports are refused by an error of ours.
    code = " [HS-ALIAS]" if MISSING[statement].startswith("ImportError") else ""
    assert told[statement] == MISSING[statement] + code


def test_every_name_in_the_table_exists() -> None:
    done = run_program(
        "import importlib, headscope.compat\n"
        "headscope.compat.install(); headscope.compat.install()\n"
        "from headscope.compat.alias_table import MODULES\n"
        "n = 0\n"
        "for path in MODULES:\n"
        "    module = importlib.import_module(path)\n"
        "    assert module.__name__ == path and set(module.__all__) <= set(dir(module))\n"
        "    for name in module.__all__: getattr(module, name); n += 1\n"
        "print(n)"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500


NAMES = Path(__file__).with_name("transformer_lens_3_9.txt")
WALK = """
import importlib, json, sys
import headscope.compat.transformer_lens

told = {}
for path, names in json.load(sys.stdin).items():
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        told.update({f"{path}.{name}".rstrip("."): str(error) for name in names or [""]})
        continue
    for name in names:
        try:
            exec(f"from {path} import {name}")
            getattr(module, name)
            told[f"{path}.{name}"] = ""
        except ImportError as error:
            told[f"{path}.{name}"] = str(error)
            assert not hasattr(module, name)
print(json.dumps(told))
"""


# Small names that notebooks import.
WANTED = {
    "HookedTransformer": "Loss LossPerToken Output SingleLoss",
    "SVDInterpreter": "OUTPUT_EMBEDDING VECTOR_TYPES",
    "loading_from_pretrained": "PYTHIA_CHECKPOINTS PYTHIA_V0_CHECKPOINTS STANFORD_CRFM_CHECKPOINTS",
    "supported_models": "DEFAULT_MODEL_ALIASES",
    "utils": "check_structure",
    "utilities.tensors": "check_structure",
}


def test_every_public_name_of_3_9_is_there_or_refused_by_name() -> None:
    lines = NAMES.read_text().replace("\n    ", " ").splitlines()
    names = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines if line[0] != "#")}
    done = run_program(WALK, given=json.dumps(names))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) > 400
    for path, said in told.items():
        assert said == "" or said.startswith("headscope does not support transformer_lens."), path
    there = {path.removeprefix("transformer_lens.") for path, said in told.items() if not said}
    assert len(there) > 200
    for module, wanted in WANTED.items():
        assert {f"{module}.{name}" for name in wanted.split()} <= there


NOTEBOOK = """
# %%
import torch
import transformer_lens.utils as utils
from transformer_lens import HookedTransformer, ActivationCache
from transformer_lens.hook_points import HookPoint
import circuitsvis as cv

# %%
model = HookedTransformer.from_pretrained("headscope-demo")
logits, cache = model.run_with_cache("Mary and John went home")
assert isinstance(cache, ActivationCache)

# %%
def zero(z, hook: HookPoint):
    return torch.zeros_like(z)

ablated = model.run_with_hooks("Mary and John went home", fwd_hooks=[(utils.get_act_name("z", 0), zero)])
assert not torch.equal(ablated, logits)
tokens = model.to_str_tokens("Mary and John went home")
print(type(cv.attention.attention_patterns(tokens=tokens, attention=cache["pattern", 0][0])).__module__)
"""


def test_a_notebook_runs_with_one_line_in_front() -> None:
    done = run_program("import headscope.compat.transformer_lens" + NOTEBOOK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "headscope.views.html\n"


ALONE = """
import sys, types

import headscope

ROOTS = {"transformer_lens", "circuitsvis"}
print(ROOTS & {*sys.modules})
for root in sorted(ROOTS):
    real = sys.modules[root] = types.ModuleType(root)
    try:
        import headscope.compat.transformer_lens
    except ImportError as error:
        print(error)
    assert sys.modules.pop(root) is real and not ROOTS & {*sys.modules}
"""


def test_importing_headscope_alone_registers_nothing_and_the_real_libraries_are_not_replaced() -> None:
    done = run_program(ALONE)
    assert done.returncode == 0, done.stderr
    alone, *refused = done.stdout.splitlines()
    assert alone == "set()"
    for root, said in zip(("circuitsvis", "transformer_lens"), refused, strict=True):
        assert said.startswith(f"{root} itself is already imported")
