"""Checkpoints from disk: every layout, every way to be broken, and nothing of theirs ever run or shared."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import save_checkpoint
from tiny import randomize, tiny_tokenizer, tiny_tokens
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.errors import CheckpointError, HeadscopeError, InvalidInputError, NotFiniteError, UnknownNameError
from headscope.model.checkpoints import pipeline as loading
from headscope.model.checkpoints.hub import find_checkpoint

TOKENS = tiny_tokens(3)


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=12, n_head=3, n_positions=10, vocab_size=330)).eval()
    randomize(model, spread=0.3)
    return model


@pytest.fixture(scope="module")
def logits(theirs: GPT2LMHeadModel) -> Tensor:
    with torch.no_grad():
        return theirs(TOKENS).logits


@pytest.fixture(scope="module")
def saved(theirs: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "tiny-gpt2"
    theirs.save_pretrained(path)
    tiny_tokenizer(bos_token="<bos>", eos_token="<eos>").save_pretrained(path)
    return path


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-gpt2"))


def raw(path: Path | str, **options: Any) -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing(str(path), **options)


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")


def as_bin(directory: Path, contents: Any = None, **options: Any) -> Path:
    tensors = load_file(directory / "model.safetensors") if contents is None else contents
    (directory / "model.safetensors").unlink()
    path = directory / "pytorch_model.bin"
    torch.save(tensors, path, **options)
    return path


def test_a_directory_loads_with_and_without_processing(saved: Path, logits: Tensor) -> None:
    model = raw(saved)
    torch.testing.assert_close(model(TOKENS), logits, rtol=0, atol=1e-5)
    assert model.cfg.model_name == "tiny-gpt2" and model.weight_processing == ()
    assert model.cfg.original_architecture == "GPT2LMHeadModel"
    processed = HookedTransformer.from_pretrained(str(saved))
    torch.testing.assert_close(processed(TOKENS).log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-4)
    assert processed.weight_processing == (
        "fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases",
    )  # fmt: skip
    assert processed.tokenizer.bos_token == "<bos>"
    assert processed("Mary gave").shape[-1] == 330


def test_a_path_object_loads(saved: Path, logits: Tensor) -> None:
    model = HookedTransformer.from_pretrained_no_processing(saved)
    torch.testing.assert_close(model(TOKENS), logits, rtol=0, atol=1e-5)


def test_a_home_and_a_relative_directory_load(saved: Path, logits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    monkeypatch.setenv("HOME", str(saved.parent))
    for name in ("./tiny-gpt2", "tiny-gpt2", "~/tiny-gpt2"):
        model = raw(name)
        torch.testing.assert_close(model(TOKENS), logits, rtol=0, atol=1e-5)
        assert model.cfg.model_name == "tiny-gpt2"


def test_sharded_safetensors_load(theirs: GPT2LMHeadModel, tmp_path: Path, logits: Tensor) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    torch.testing.assert_close(raw(tmp_path)(TOKENS), logits, rtol=0, atol=1e-5)
    missing = sorted(tmp_path.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(CheckpointError, match=missing.name):
        raw(tmp_path)


@pytest.mark.parametrize("index", ["not json", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_broken_shard_index_is_said(directory: Path, index: str) -> None:
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        raw(directory)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_checkpoint_of_tensors_loads(directory: Path, logits: Tensor, zipped: bool) -> None:
    as_bin(directory, _use_new_zipfile_serialization=zipped)
    model = raw(directory)
    torch.testing.assert_close(model(TOKENS), logits, rtol=0, atol=1e-5)


class Payload:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "code ran")


def test_a_hostile_pickle_is_refused_and_not_run(directory: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = as_bin(directory, {"wte.weight": torch.ones(1), "x": Payload(witness)})
    with pytest.raises(CheckpointError, match="more than tensors"):
        raw(directory)
    assert not witness.exists()
    path.write_bytes(pickle.dumps(Payload(witness), protocol=2))
    with pytest.raises(CheckpointError):
        raw(directory)
    assert not witness.exists()
    pickle.loads(path.read_bytes())
    assert witness.exists(), "the payload is harmless, so the test shows nothing"


@pytest.mark.parametrize("contents", [[torch.ones(1)], torch.ones(3), {"a": 3}, {"state": {"b": torch.ones(1)}}, 7])
def test_a_pickle_of_something_else_is_refused(directory: Path, contents: Any) -> None:
    as_bin(directory, contents)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        raw(directory)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.7, 0.99, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_truncated_file_is_said(directory: Path, kind: str, keep: float) -> None:
    path = directory / "model.safetensors"
    if kind != "safetensors":
        path = as_bin(directory, _use_new_zipfile_serialization=kind == "zip")
    contents = path.read_bytes()
    path.write_bytes(contents[: int(len(contents) * keep)])
    with pytest.raises(CheckpointError, match=path.name):
        raw(directory)


def test_a_corrupt_safetensors_header_is_said(directory: Path) -> None:
    path = directory / "model.safetensors"
    contents = path.read_bytes()
    for broken in (b"\xff" * 8 + contents[8:], contents[:8] + b"x" * 40 + contents[48:], b"garbage"):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=path.name):
            raw(directory)


def test_no_config_no_weights_and_no_directory(directory: Path, tmp_path: Path) -> None:
    config = (directory / "config.json").read_text()
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        raw(directory)
    (directory / "config.json").write_text(config)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        raw(directory)
    with pytest.raises(CheckpointError, match="is a file"):
        raw(directory / "config.json")
    with pytest.raises(CheckpointError, match="does not exist"):
        raw(tmp_path / "nowhere")


@pytest.mark.parametrize("contents", [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"null"])
def test_a_config_that_is_not_one_is_said(directory: Path, contents: bytes) -> None:
    (directory / "config.json").write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        raw(directory)


@pytest.mark.parametrize("fields, message", [
    ({"model_type": "bert"}, "'bert'.*Supported: .*gpt2"),
    ({"model_type": ...}, "None.*Supported"),
    ({"n_embd": ...}, "lacks 'n_embd'"),
    ({"n_head": ...}, "lacks 'n_head'"),
    ({"vocab_size": ...}, "lacks 'vocab_size'"),
    ({"n_head": 0}, "n_head"),
    ({"n_head": 5}, "n_head"),
    ({"n_layer": 0}, "n_layer"),
    ({"n_head": "3"}, "n_head"),
    ({"n_embd": 24}, "shape|size"),
    ({"n_embd": 6}, "shape|size"),
    ({"n_inner": 7}, "shape"),
    ({"vocab_size": 40}, "shape"),
    ({"n_positions": 11}, "shape"),
    ({"n_layer": 3}, r"h\.2\."),
    ({"n_layer": 1}, r"h\.1\."),
    ({"activation_function": "swiglu"}, "swiglu"),
    ({"tie_word_embeddings": False}, "lm_head"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
])  # fmt: skip
def test_a_config_that_does_not_fit_is_said(directory: Path, fields: dict[str, Any], message: str) -> None:
    edit_config(directory, **fields)
    with pytest.raises((CheckpointError, InvalidInputError), match=message):
        raw(directory)


def test_a_missing_an_unused_and_a_misshapen_tensor_are_named(directory: Path) -> None:
    name = "transformer.h.1.ln_2.bias"
    edit_weights(directory, lambda tensors: tensors.update({name: tensors[name][:-1]}))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ln2\.b must have shape \[12\]; got \[11\]"):
        raw(directory)
    edit_weights(directory, lambda tensors: tensors.update({name: torch.ones(12), "surplus": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="does not use: surplus"):
        raw(directory)
    edit_weights(directory, lambda tensors: (tensors.pop("surplus"), tensors.pop(name)) and None)
    with pytest.raises(CheckpointError, match=r"no tensor 'h\.1\.ln_2\.bias'"):
        raw(directory)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(directory: Path, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.h.1.mlp.c_fc.weight"][2, 3] = value

    edit_weights(directory, spoil)
    with pytest.raises(NotFiniteError, match=r"blocks\.1\.mlp\.W_in"):
        raw(directory)


def test_a_shard_outside_the_directory_is_not_read(directory: Path) -> None:
    outside = directory.parent / "outside.safetensors"
    (directory / "model.safetensors").rename(outside)
    index = {"weight_map": {"transformer.wte.weight": "../outside.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map"):
        raw(directory)


def test_the_first_layers(saved: Path, theirs: GPT2LMHeadModel) -> None:
    model = raw(saved, first_n_layers=1)
    whole = raw(saved)
    assert model.cfg.n_layers == len(model.blocks) == 1
    _, cache = whole.run_with_cache(TOKENS)
    _, cut = model.run_with_cache(TOKENS)
    assert torch.equal(cut["resid_post", 0], cache["resid_post", 0])
    torch.testing.assert_close(model(TOKENS), whole.unembed(whole.ln_final(cache["resid_post", 0])))
    assert torch.equal(HookedTransformer.from_hf(theirs, first_n_layers=1)(TOKENS), model(TOKENS))
    for layers in (0, 3, -1):
        with pytest.raises(InvalidInputError, match=rf"between 1 and 2; got {layers}"):
            raw(saved, first_n_layers=layers)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64, "torch.float16"])
def test_another_dtype(saved: Path, logits: Tensor, dtype: Any) -> None:
    model = raw(saved, dtype=dtype)
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.removeprefix("torch."))
    assert {parameter.dtype for parameter in model.parameters()} == {wanted} == {model.cfg.dtype}
    torch.testing.assert_close(model(TOKENS).float(), logits, rtol=0.05, atol=0.1)
    processed = HookedTransformer.from_pretrained(str(saved), dtype=dtype)
    assert {parameter.dtype for parameter in processed.parameters()} == {wanted}
    for bad in ("int64", "float31"):
        with pytest.raises(InvalidInputError, match=bad):
            raw(saved, dtype=bad)


def test_a_half_precision_checkpoint_is_widened(directory: Path, logits: Tensor) -> None:
    edit_weights(directory, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    model = raw(directory)
    assert model.W_E.dtype == torch.float32
    torch.testing.assert_close(model(TOKENS), logits, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("flags", [(), ("center_unembed",), ("fold_value_biases",), ("fold_ln",)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_share_no_memory_with_the_file_or_one_another(
    directory: Path, flags: tuple[str, ...], dtype: torch.dtype
) -> None:
    model = raw(directory, dtype=dtype, **dict.fromkeys(flags, True))
    parameters = dict(model.named_parameters())
    owners: dict[int, str] = {}
    for name, parameter in parameters.items():
        storage = parameter.untyped_storage()
        assert storage.data_ptr() not in owners, (name, owners[storage.data_ptr()])
        owners[storage.data_ptr()] = name
        assert storage.nbytes() == parameter.nbytes, name
        assert parameter.requires_grad
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    contents = (directory / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(2.0)
    assert (directory / "model.safetensors").read_bytes() == contents
    (directory / "model.safetensors").write_bytes(b"\x7f" * len(contents))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name] * 2), name


def test_a_checkpoint_without_a_tokenizer(directory: Path, logits: Tensor) -> None:
    for path in directory.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    model = raw(directory)
    assert model.tokenizer is None and model.cfg.tokenizer_name is None
    torch.testing.assert_close(model(TOKENS), logits, rtol=0, atol=1e-5)
    with pytest.raises(HeadscopeError, match="no tokenizer"):
        model("Mary")
    given = tiny_tokenizer(bos_token="<bos>")
    assert raw(directory, tokenizer=given).tokenizer is given


@pytest.mark.parametrize("contents", ["", "not json", "{}", '{"version": "1.0"}'])
def test_a_corrupt_tokenizer_is_said(directory: Path, contents: str) -> None:
    (directory / "tokenizer.json").write_text(contents)
    with pytest.raises(CheckpointError, match="tokenizer"):
        raw(directory)


def test_a_tokenizers_own_code_is_not_run(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path.write_text(json.dumps(config))
    (directory / "evil.py").write_text("raise SystemExit('code ran')")
    try:
        model = raw(directory)
    except CheckpointError as error:
        assert "tokenizer" in str(error)
    else:
        assert type(model.tokenizer).__module__.startswith("transformers")


def test_defaults_for_text(saved: Path) -> None:
    model = raw(saved, default_prepend_bos=False, default_padding_side="left")
    assert model.to_str_tokens("Mary")[0] != "<bos>"
    assert model.default_padding_side == "left"


class Sub(HookedTransformer):
    """As other packages do: arguments of its own, and something set up after the weights' places."""

    calls: list[tuple[Any, ...]] = []

    def __init__(self, cfg: Any, tokenizer: Any = None, *args: Any, **kwargs: Any) -> None:
        Sub.calls.append((cfg, tokenizer))
        super().__init__(cfg, tokenizer, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, model_name: str, **options: Any) -> Any:
        model = super().from_pretrained(model_name, **options)
        model.came_by = "from_pretrained"
        return model


def test_a_subclass_is_made_by_its_own_constructor(saved: Path, theirs: GPT2LMHeadModel, logits: Tensor) -> None:
    Sub.calls.clear()
    model = Sub.from_pretrained(str(saved), fold_ln=False)
    assert type(model) is Sub and model.came_by == "from_pretrained"
    assert len(Sub.calls) == 1 and isinstance(Sub.calls[0][0], HookedTransformerConfig)
    assert Sub.calls[0][1] is model.tokenizer is not None
    for other in (Sub.from_pretrained_no_processing(str(saved)), Sub.from_hf(theirs)):
        assert type(other) is Sub and not hasattr(other, "came_by")
        torch.testing.assert_close(other(TOKENS), logits, rtol=0, atol=1e-5)


def test_something_to_load_must_be_named() -> None:
    with pytest.raises(InvalidInputError, match="hf_model"):
        loading.load_pretrained(HookedTransformer, None)


def test_weights_can_be_saved_and_loaded_again(saved: Path, tmp_path: Path) -> None:
    for model in (raw(saved), HookedTransformer.from_pretrained(str(saved), refactor_factored_attn_matrices=True)):
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        again = HookedTransformer(model.cfg)
        again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(again(TOKENS), model(TOKENS))


def test_no_hugging_face_model_is_built(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a transformers model was built")

    monkeypatch.setattr(GPT2LMHeadModel, "__init__", refuse)
    with pytest.raises(AssertionError, match="was built"):
        GPT2LMHeadModel.from_pretrained(saved)
    assert raw(saved).cfg.n_layers == 2


def test_a_loaded_models_state_dict_can_be_saved_and_loaded(tmp_path: Path) -> None:
    model = HookedTransformer.from_pretrained("headscope-demo")
    save_file(model.state_dict(), tmp_path / "saved.safetensors")
    back = load_file(tmp_path / "saved.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_files_beside_the_model_are_not_merged_into_it(tmp_path: Path) -> None:
    shutil.copytree(find_checkpoint("headscope-demo"), tmp_path, dirs_exist_ok=True)
    save_file({"h.0.ln_1.weight": torch.zeros(3)}, tmp_path / "adapter.safetensors")
    model = HookedTransformer.from_pretrained(tmp_path)
    assert torch.equal(model.W_E, HookedTransformer.from_pretrained("headscope-demo").W_E)


def test_options_that_only_concern_the_hub_or_nothing(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path)
    model = HookedTransformer.from_pretrained(
        directory, torch_dtype="bfloat16", trust_remote_code=True, low_cpu_mem_usage=True, local_files_only=True,
        revision="main", n_devices=1, move_to_device=False, default_prepend_bos=None, default_padding_side=None,
    )  # fmt: skip
    assert model.cfg.dtype is torch.bfloat16 and model.cfg.default_prepend_bos
    assert model.default_padding_side == "right"
    with pytest.raises(UnknownNameError, match="option of from_pretrained 'fold_nl'. Did you mean 'fold_ln'"):
        HookedTransformer.from_pretrained(directory, fold_nl=False)
    for option in ("checkpoint_index", "checkpoint_value", "checkpoint_label"):
        with pytest.raises(InvalidInputError, match="no training checkpoints"):
            HookedTransformer.from_pretrained(directory, **{option: 3})
    with pytest.raises(InvalidInputError, match="n_devices = 99, but this machine has"):
        HookedTransformer.from_pretrained(directory, n_devices=99)


def test_a_shorter_context(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path)
    model = HookedTransformer.from_pretrained(directory, n_ctx=10)
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(model(tokens), HookedTransformer.from_pretrained(directory)(tokens))
    with pytest.raises(InvalidInputError, match="n_ctx = 10"):
        model(torch.arange(11)[None])
    with pytest.raises(InvalidInputError, match="between 1 and the checkpoint's 48; got 49"):
        HookedTransformer.from_pretrained(directory, n_ctx=49)


def test_the_tokenizer_of_a_named_model_whose_weights_are_in_memory(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path)
    hf = GPT2LMHeadModel.from_pretrained(directory)
    model = HookedTransformer.from_pretrained(directory, hf_model=hf)
    assert model.to_string(model.to_tokens("When Mary", prepend_bos=False)) == ["When Mary"]
    assert HookedTransformer.from_pretrained("no-such-model", hf_model=hf).tokenizer is None


def test_a_name_is_no_config() -> None:
    with pytest.raises(InvalidInputError, match=r"from_pretrained\('gpt2'\)"):
        HookedTransformerConfig.unwrap("gpt2")  # what the model's constructor does
