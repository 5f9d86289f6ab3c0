"""SAEDashboard and sae-vis on headscope, their code unchanged: they show the activations that a feature has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packages import marks
from torch import Tensor

from headscope import HookedTransformer

pytestmark = [*marks("sae_lens"), pytest.mark.usefixtures("alias")]

SITE = "blocks.1.hook_resid_pre"
FEATURES = [0, 3, 5]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from sae_lens import HookedSAETransformer

    return HookedSAETransformer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def tokens(model: HookedTransformer) -> Tensor:
    return torch.randint(12, (64, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sae(model: HookedTransformer) -> Any:
    from sae_lens import SAE, StandardSAE, StandardSAEConfig

    sae: SAE[Any] = StandardSAE(StandardSAEConfig(d_in=model.cfg.d_model, d_sae=8))
    generator = torch.Generator().manual_seed(1)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    sae.cfg.metadata.hook_name = SITE
    sae.fold_W_dec_norm()  # as the dashboards do
    return sae


@pytest.fixture(scope="module")
def strongest(model: HookedTransformer, sae: Any, tokens: Tensor) -> Tensor:
    """The largest activation of each feature, on the stream of a full run, where they look: 6 behind and 5 ahead."""
    with torch.no_grad():
        return sae.encode(model.run_with_cache(tokens)[1][SITE])[:, 6:-5].flatten(0, 1).amax(0)[FEATURES]


def peaks(groups: Any) -> float:
    return max(max(sequence.feat_acts) for group in groups for sequence in group.seq_data)


def test_sae_dashboard_finds_the_strongest_activations(model: Any, sae: Any, tokens: Tensor, strongest: Tensor) -> None:
    pytest.importorskip("sae_dashboard", reason="SAEDashboard is not installed: run `make compat`")
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    cfg = SaeVisConfig(
        hook_point=SITE, features=FEATURES, minibatch_size_features=2, minibatch_size_tokens=8, device="cpu",
        dtype="float32",
    )  # fmt: skip
    shown = SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens).feature_data_dict
    found = torch.tensor([peaks(shown[feature].sequence_data.seq_group_data) for feature in FEATURES])
    torch.testing.assert_close(found, strongest, rtol=1e-3, atol=1e-3)


def test_sae_vis_finds_the_strongest_activations(model: Any, sae: Any, tokens: Tensor, strongest: Tensor) -> None:
    pytest.importorskip("sae_vis", reason="sae-vis is not installed: run `make compat`")
    from sae_vis.data_config_classes import SaeVisConfig
    from sae_vis.data_storing_fns import SaeVisData

    vars(sae.cfg).update(hook_name=SITE, hook_layer=1, hook_head_index=None)  # where it looks for them
    shown = SaeVisData.create(
        sae=sae, model=model, tokens=tokens, cfg=SaeVisConfig(features=FEATURES, minibatch_size_tokens=8)
    ).feature_data_dict
    found = torch.tensor([peaks(shown[feature]["seqMultiGroup"].seq_group_data) for feature in FEATURES])
    torch.testing.assert_close(found, strongest, rtol=1e-3, atol=1e-3)
