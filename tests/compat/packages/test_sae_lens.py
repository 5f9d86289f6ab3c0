"""SAELens on headscope, its code unchanged: training, attached autoencoders, stores, evaluation."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import marks
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope import HookedTransformer

pytestmark = [*marks("sae_lens"), pytest.mark.usefixtures("alias")]

TEXT = "Mary and John went to the shop"
SITE = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def model(folder: Path) -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing(str(folder))


@pytest.fixture(scope="module")
def hooked(folder: Path) -> Any:
    from sae_lens import HookedSAETransformer

    return HookedSAETransformer.from_pretrained_no_processing(str(folder))


@pytest.fixture(scope="module")
def texts() -> Any:
    from datasets import Dataset

    draw = random.Random(0)
    return Dataset.from_list([{"text": " ".join(draw.choices(TEXT.split(), k=40))} for _ in range(200)])


@pytest.fixture(autouse=True)
def _no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def random_weights(sae: Any, site: str) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    sae.cfg.metadata.hook_name = site
    return sae


def random_sae(site: str, width: int) -> Any:
    from sae_lens import StandardSAE, StandardSAEConfig

    reshape = "hook_z" if ".attn.hook_" in site else "none"
    return random_weights(StandardSAE(StandardSAEConfig(d_in=width, d_sae=32, reshape_activations=reshape)), site)


def test_training_saves_an_autoencoder_that_loads(folder: Path, texts: Any, tmp_path: Path) -> None:
    from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
    from sae_lens import StandardTrainingSAEConfig as Sae

    cfg = LanguageModelSAERunnerConfig(
        sae=Sae(d_in=24, d_sae=48, l1_coefficient=1e-3), model_name=str(folder), hook_name=SITE, dataset_path="texts",
        is_dataset_tokenized=False, streaming=False, context_size=16, training_tokens=4096, lr=3e-3,
        store_batch_size_prompts=4, train_batch_size_tokens=128, n_batches_in_buffer=16, n_eval_batches=2,
        logger=LoggingConfig(log_to_wandb=False), output_path=str(tmp_path / "sae"), checkpoint_path=None,
        verbose=False, autocast_lm=True, exclude_special_tokens=True,
    )  # fmt: skip
    trained = LanguageModelSAETrainingRunner(cfg, override_dataset=texts).run()
    sae = SAE.load_from_disk(str(tmp_path / "sae"))
    assert sae.cfg.metadata.model_name == str(folder) and sae.cfg.metadata.hook_name == SITE
    assert torch.equal(sae.W_dec, trained.W_dec)
    cache = HookedTransformer.from_pretrained_no_processing(str(folder)).run_with_cache(TEXT)[1]
    error = (sae(cache[SITE]) - cache[SITE])[:, 1:].square().mean()
    assert error < 0.5 * (cache[SITE] - cache[SITE].mean(1, keepdim=True))[:, 1:].square().mean()


@pytest.mark.parametrize(
    ("site", "width"),
    [
        (SITE, 24),
        ("blocks.0.attn.hook_z", 24),
        ("blocks.0.attn.hook_q", 24),
        ("blocks.1.attn.hook_v", 24),
        ("blocks.1.hook_attn_out", 24),
        ("blocks.0.ln2.hook_normalized", 24),
        ("blocks.1.hook_mlp_in", 24),
        ("blocks.0.mlp.hook_in", 24),
        ("blocks.0.mlp.hook_post", 48),
        ("blocks.1.hook_mlp_out", 24),
        ("ln_final.hook_normalized", 24),
    ],
)
def test_an_attached_autoencoder_stands_for_its_site(hooked: Any, site: str, width: int) -> None:
    sae = random_sae(site, width)
    plain = hooked(TEXT)
    wanted = hooked.run_with_hooks(TEXT, fwd_hooks=[(site, lambda value, hook: sae(value))])
    assert (wanted - plain).abs().max() > 0.01
    got, cache = hooked.run_with_cache_with_saes(TEXT, saes=[sae])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert cache[f"{site}.hook_sae_acts_post"].shape == (1, 8, 32)
    torch.testing.assert_close(hooked.run_with_saes(TEXT, saes=[sae]), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hooked.run_with_saes(TEXT, saes=[sae], use_error_term=True), plain, rtol=1e-5, atol=1e-5)
    silent = hooked.run_with_hooks_with_saes(
        TEXT, saes=[sae], fwd_hooks=[(f"{site}.hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))]
    )
    bias = hooked.run_with_hooks(
        TEXT, fwd_hooks=[(site, lambda value, hook: sae.b_dec.view(value.shape[2:]).expand_as(value).clone())]
    )
    torch.testing.assert_close(silent, bias, rtol=1e-5, atol=1e-5)
    assert torch.equal(hooked(TEXT), plain)


def test_saes_stay_until_they_are_removed(hooked: Any, model: HookedTransformer) -> None:
    sae = random_sae(SITE, 24)
    once = hooked.run_with_saes(TEXT, saes=[sae], return_type="loss")
    hooked.add_sae(sae)
    assert torch.equal(hooked(TEXT, return_type="loss"), once)
    assert list(hooked.acts_to_saes) == [SITE]
    assert hooked.generate(TEXT, max_new_tokens=3, do_sample=False, verbose=False).startswith(TEXT)
    hooked.reset_saes()
    assert torch.equal(hooked(TEXT), model(TEXT))


def test_special_tokens_go_past_an_autoencoder(hooked: Any) -> None:
    _, cache = hooked.run_with_cache_with_saes(TEXT, saes=[random_sae(SITE, 24)], exclude_special_tokens=True)
    stream, shown = cache["blocks.0.hook_resid_post"], cache[f"{SITE}.hook_sae_output"]
    assert torch.equal(shown[0, 0], stream[0, 0])
    assert not torch.isclose(shown[0, 1:], stream[0, 1:]).all(-1).any()


def test_a_transcoder_reads_one_site_and_writes_another(hooked: Any) -> None:
    from sae_lens import Transcoder, TranscoderConfig

    transcoder = Transcoder(TranscoderConfig(d_in=24, d_out=24, d_sae=32, apply_b_dec_to_input=False))
    random_weights(transcoder, "blocks.1.mlp.hook_in").cfg.metadata["hook_name_out"] = "blocks.1.hook_mlp_out"
    got, cache = hooked.run_with_cache_with_saes(TEXT, saes=[transcoder])
    wanted = transcoder(cache["blocks.1.mlp.hook_in"])
    torch.testing.assert_close(cache["blocks.1.hook_mlp_out.hook_sae_output"], wanted)
    ended = cache["blocks.1.hook_resid_mid"] + wanted
    torch.testing.assert_close(cache["blocks.1.hook_resid_post"], ended)
    torch.testing.assert_close(got, hooked.unembed(hooked.ln_final(ended)), rtol=1e-5, atol=1e-5)


def test_evaluation(model: HookedTransformer, texts: Any) -> None:
    from sae_lens import ActivationsStore
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = random_sae(SITE, 24)
    sae.cfg.metadata.prepend_bos = True
    store = ActivationsStore.from_sae(
        model, sae, dataset=texts, streaming=False, context_size=16, store_batch_size_prompts=4,
        train_batch_size_tokens=64, n_batches_in_buffer=16, total_tokens=4096, device="cpu",
    )  # fmt: skip
    assert store.next_batch().shape == (64, 24)
    everything = get_eval_everything_config(
        batch_size_prompts=4, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2
    )
    metrics, per_feature = run_evals(sae, store, model, ActivationScaler(), eval_config=everything)
    assert metrics["model_performance_preservation"]["ce_loss_with_sae"] > 0
    assert metrics["model_behavior_preservation"]["kl_div_with_sae"] > 0
    assert len(per_feature["feature_density"]) == 32


def test_cached_activations(model: HookedTransformer, folder: Path, texts: Any, tmp_path: Path) -> None:
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    cfg = CacheActivationsRunnerConfig(
        dataset_path="texts", model_name=str(folder), model_batch_size=4, hook_name=SITE, d_in=24, context_size=16,
        training_tokens=1024, new_cached_activations_path=str(tmp_path / "acts"), streaming=False,
        buffer_size_gb=0.00005,
    )  # fmt: skip
    rows = CacheActivationsRunner(cfg, override_dataset=texts).run().with_format("torch")
    assert len(rows) == 64
    tokens, kept = rows["token_ids"][:], rows[SITE][:]
    wanted = model.run_with_cache(tokens.long(), names_filter=SITE)[1][SITE]
    torch.testing.assert_close(kept, wanted, rtol=1e-5, atol=1e-5)


def test_a_hugging_face_model_under_our_hooks(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from sae_lens.load_model import load_model

    cfg = GPT2Config(n_layer=2, n_embd=24, n_head=3, n_positions=32, vocab_size=len(tokenizer))
    hf_model = GPT2LMHeadModel(cfg).eval()
    hf_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    proxy = load_model("AutoModelForCausalLM", str(tmp_path), device="cpu")
    tokens = torch.tensor([[13, 0, 1, 2]])
    logits, cache = proxy.run_with_cache(tokens, names_filter=["transformer.h.1.mlp"])
    torch.testing.assert_close(logits, hf_model(tokens).logits)
    assert cache["transformer.h.1.mlp"].shape == (1, 4, 24)
    loss = proxy(tokens, return_type="both").loss
    zeroed = proxy.run_with_hooks(tokens, fwd_hooks=[("transformer.h.0", lambda value, hook: 0 * value)])
    assert loss > 0 and not torch.allclose(zeroed, logits)
