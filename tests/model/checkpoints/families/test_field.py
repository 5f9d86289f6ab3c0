"""The field's own small models: a random model, written in the layouts they were published in, is read as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer, tiny_tokens
from torch import Tensor

from headscope import HookedTransformer
from headscope.errors import CheckpointError
from headscope.model.checkpoints.hub import find_checkpoint
from headscope.model.checkpoints.names import HUB_IDS

KINDS: dict[str, dict[str, Any]] = {
    "attention only": {"attn_only": True},
    "attention only, shortformer": {"attn_only": True, "positional_embedding_type": "shortformer"},
    "gelu": {"act_fn": "gelu"},
    "solu": {"act_fn": "solu_ln"},
    "solu, the last norm without a mean": {"act_fn": "solu_ln", "final_rms": True},
    "norms folded": {"act_fn": "gelu", "normalization_type": "LNPre"},
}
LAYOUTS = ("new", "old", "old of eight layers")


def config_of(model: HookedTransformer, layout: str) -> dict[str, Any]:
    cfg = model.cfg
    names = ("d_model", "n_layers", "d_mlp", "d_head", "n_heads", "n_ctx", "d_vocab", "attn_only", "final_rms")
    return {
        **{name: getattr(cfg, name) for name in names},
        "act_fn": cfg.act_fn or "attn_only",
        "normalization" if layout != "new" else "normalization_type": cfg.normalization_type,
        "shortformer_pos": cfg.positional_embedding_type == "shortformer",
    }


def in_layout(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Weights as such a checkpoint has them."""
    out = {"blocks.0.attn.mask": torch.ones(3, 3).tril().bool(), "blocks.1.attn.IGNORE": torch.tensor(-1e5)}
    for name, tensor in state.items():
        if layout != "new":
            name = name.replace("ln_final", "norm").replace(".ln", ".norm")
            if name == "pos_embed.W_pos" or (".W_" in name and layout == "old"):
                tensor = tensor.transpose(-1, -2)
        out[name] = tensor.clone().contiguous()
    return out


def written(
    directory: Path, model: HookedTransformer, layout: str, *, change: dict[str, Any] | None = None, **config: Any
) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**config_of(model, layout), **config}))
    tensors = {**in_layout(model.state_dict(), layout), **(change or {})}
    torch.save({name: t for name, t in tensors.items() if t is not None}, directory / "model_final.pth")
    return directory


def assert_same(found: HookedTransformer, wanted: HookedTransformer) -> None:
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert torch.equal(found(tiny_tokens()), wanted(tiny_tokens()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_as_it_was(kind: str, layout: str, tmp_path: Path) -> None:
    model = tiny_model(**KINDS[kind], dtype=torch.float32, n_layers=7 if layout == LAYOUTS[2] else 2)
    directory = written(tmp_path, model, layout)
    found = HookedTransformer.from_pretrained_no_processing(directory)
    assert_same(found, model)
    # Without norms no name shows its age.
    shown = layout == "old" or (layout != "new" and "folded" not in kind)
    assert found.cfg.original_architecture == ("neel-solu-old" if shown else "neel")
    processed = HookedTransformer.from_pretrained(directory)
    wanted = model(tiny_tokens()).log_softmax(-1)
    torch.testing.assert_close(processed(tiny_tokens()).log_softmax(-1), wanted, rtol=0, atol=1e-4)
    assert ("fold_ln" in processed.weight_processing) is ("shortformer" not in kind and "folded" not in kind)
    assert HookedTransformer.from_pretrained(directory, dtype="bfloat16").W_E.dtype == torch.bfloat16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_as_many_as_the_stream_is_wide(layout: str, tmp_path: Path) -> None:
    """Their shape does not say which way they are; names do, or what the folder is called."""
    model = tiny_model(act_fn="solu_ln", dtype=torch.float32, n_ctx=10, n_layers=7 if layout == LAYOUTS[2] else 2)
    assert_same(HookedTransformer.from_pretrained_no_processing(written(tmp_path, model, layout)), model)


def test_a_checkpoint_called_old(tmp_path: Path) -> None:
    model = tiny_model(act_fn="solu_ln", dtype=torch.float32, n_ctx=10)
    positions = model.W_pos.T.detach().clone()
    for name in ("some_old", "models--NeelNanda--SoLU_8L_v21_old/snapshots/0123abcd"):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        written(directory, model, "new", change={"pos_embed.W_pos": positions})
        assert_same(HookedTransformer.from_pretrained_no_processing(directory), model)


def test_what_was_never_trained_is_zero(tmp_path: Path) -> None:
    model = tiny_model(act_fn="gelu", dtype=torch.float32)
    gone = ("unembed.b_U", "blocks.1.attn.b_Q", "blocks.0.mlp.b_out", "blocks.1.mlp.b_out")
    with torch.no_grad():
        for name in gone:
            model.get_parameter(name).zero_()
    directory = written(tmp_path, model, "new", change=dict.fromkeys(gone))
    assert_same(HookedTransformer.from_pretrained_no_processing(directory), model)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    model = tiny_model(attn_only=True, dtype=torch.float32)
    directory = written(tmp_path, model, "old")
    (directory / "model_final.pth").unlink()
    save_file(in_layout(model.state_dict(), "old"), directory / "model.safetensors")
    assert_same(HookedTransformer.from_pretrained_no_processing(directory), model)


def test_the_tokenizer_the_config_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(attn_only=True, dtype=torch.float32)
    tokenizer = tmp_path / "tokenizer"
    tiny_tokenizer(bos_token="<bos>", eos_token="<eos>").save_pretrained(tokenizer)
    found = HookedTransformer.from_pretrained(written(tmp_path / "a", model, "new", tokenizer_name=str(tokenizer)))
    assert found.tokenizer.bos_token == "<bos>" and found.cfg.tokenizer_name == str(tokenizer)
    directory = written(tmp_path / "b", model, "new", tokenizer_name=str(tmp_path / "nowhere"))
    assert HookedTransformer.from_pretrained(directory).tokenizer is None
    assert "no tokenizer" in caplog.text and "nowhere" in caplog.text


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"blocks.1.attn.W_Q": None}, {}, r"no tensor 'blocks\.1\.attn\.W_Q'"),
        ({"blocks.0.ln1.w": None}, {}, r"no tensor 'blocks\.0\.ln1\.w'"),
        ({"extra.weight": torch.ones(2)}, {}, r"does not use: extra\.weight"),
        ({"embed.W_E": torch.ones(3, 2)}, {}, "embed.W_E must have shape"),
        ({}, {"architecture": "nanogpt"}, "architecture 'nanogpt' are not supported"),
        ({}, {"d_head": 0}, "d_head in config.json must be a positive whole number; got 0"),
        ({}, {"model_type": "neel"}, "model_type 'neel'"),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = tiny_model(act_fn="gelu", dtype=torch.float32)
    with pytest.raises(CheckpointError, match=message):
        HookedTransformer.from_pretrained(written(tmp_path, model, "new", change=change, **config))


def test_it_has_no_class_in_transformers(tmp_path: Path) -> None:
    model = tiny_model(attn_only=True, dtype=torch.float32)
    with pytest.raises(CheckpointError, match="'neel' has no known Hugging Face class"):
        HookedTransformer.from_pretrained_no_processing(written(tmp_path, model, "new")).to_hf()


def test_mingpt(tmp_path: Path) -> None:
    """Othello-GPT's layout: torch's linear layers, one each for queries, keys and values, and no vocabulary's bias."""
    model = tiny_model(act_fn="gelu", dtype=torch.float32)
    config = {**config_of(model, "new"), "architecture": "mingpt"}
    own = dict(model.state_dict())
    theirs = {
        "tok_emb.weight": own["embed.W_E"], "pos_emb": own["pos_embed.W_pos"][None], "ln_f.weight": own["ln_final.w"],
        "ln_f.bias": own["ln_final.b"], "head.weight": own["unembed.W_U"].T,
    }  # fmt: skip
    for layer in range(model.cfg.n_layers):
        at = f"blocks.{layer}."
        theirs[f"{at}attn.mask"] = torch.ones(1, 1, 4, 4).tril()
        for norm in ("ln1", "ln2"):
            theirs |= {f"{at}{norm}.weight": own[f"{at}{norm}.w"], f"{at}{norm}.bias": own[f"{at}{norm}.b"]}
        for letter, name in (("Q", "query"), ("K", "key"), ("V", "value")):
            theirs[f"{at}attn.{name}.weight"] = own[f"{at}attn.W_{letter}"].transpose(1, 2).flatten(0, 1)
            theirs[f"{at}attn.{name}.bias"] = own[f"{at}attn.b_{letter}"].flatten()
        theirs[f"{at}attn.proj.weight"] = own[f"{at}attn.W_O"].flatten(0, 1).T
        theirs[f"{at}attn.proj.bias"] = own[f"{at}attn.b_O"]
        for part, name in (("in", "0"), ("out", "2")):
            theirs |= {
                f"{at}mlp.{name}.weight": own[f"{at}mlp.W_{part}"].T,
                f"{at}mlp.{name}.bias": own[f"{at}mlp.b_{part}"],
            }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({name: tensor.clone() for name, tensor in theirs.items()}, tmp_path / "othello_final.pth")
    with torch.no_grad():
        model.unembed.b_U.zero_()
    found = HookedTransformer.from_pretrained_no_processing(tmp_path)
    assert_same(found, model)
    assert found.cfg.original_architecture == "mingpt"


def test_a_training_checkpoint_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, first = (tiny_model(act_fn="gelu", dtype=torch.float32, spread=spread) for spread in (0.4, 0.3))
    assert not torch.equal(first.W_E, last.W_E)
    directory = written(tmp_path / "hub", last, "new")
    early = written(tmp_path / "early", first, "new") / "model_final.pth"
    file, asked = "checkpoints/run_000524288.pth", []

    def download(repo: str, name: str, **options: Any) -> str:
        asked.append((repo, name))
        return str(early)

    monkeypatch.setattr("headscope.model.checkpoints.pipeline.find_checkpoint", lambda name, **options: directory)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo, **options: ["config.json", file])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for option in ({"checkpoint_index": 0}, {"checkpoint_value": 524_288}):
        found = HookedTransformer.from_pretrained_no_processing("gelu-1l", tokenizer=tiny_tokenizer(), **option)
        assert_same(found, first)
        assert asked.pop() == ("NeelNanda/GELU_1L512W_C4_Code", file)
        assert found.cfg.from_checkpoint and found.cfg.checkpoint_value == 524_288
        assert (found.cfg.checkpoint_index, found.cfg.checkpoint_label_type) == (0, "step")
    found = HookedTransformer.from_pretrained_no_processing("gelu-1l", tokenizer=tiny_tokenizer())
    assert_same(found, last)
    assert not found.cfg.from_checkpoint and found.cfg.checkpoint_label_type is None


def test_short_names_and_files_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder like those in the hub's cache, without a tokenizer and without the network."""
    assert HUB_IDS["gelu-1l"] == "NeelNanda/GELU_1L512W_C4_Code"
    assert HUB_IDS["solu-8l"] == "NeelNanda/SoLU_8L1024W_C4_Code"
    model = tiny_model(act_fn="gelu", dtype=torch.float32)
    repository = tmp_path / "models--NeelNanda--GELU_1L512W_C4_Code"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    snapshot = written(repository / "snapshots" / ("0" * 40), model, "new")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_checkpoint("gelu-1l", cache_dir=tmp_path, local_files_only=True) == snapshot
    found = HookedTransformer.from_pretrained_no_processing("gelu-1l", cache_dir=tmp_path, local_files_only=True)
    assert_same(found, model)
    assert found.cfg.model_name == "gelu-1l"
