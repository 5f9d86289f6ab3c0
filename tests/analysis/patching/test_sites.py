"""Sites by name, the same for activation and attribution patching."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from three_passes import random_task
from tiny import tiny_model
from torch import nn

from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.gradient import attribution_patch
from headscope.analysis.patching.sites import AXES, SITES, as_sites, patch_axes
from headscope.errors import InvalidInputError, UnknownNameError
from headscope.model.names import get_act_name


def test_every_site_has_its_hook_points() -> None:
    model = tiny_model()
    there = [site for site in SITES if site != "mixer_out"]
    assert as_sites(model, there) == {site: {layer: get_act_name(site, layer) for layer in (0, 1)} for site in there}
    assert list(as_sites(model, ["z", "q", "z"])) == ["z", "q"]
    assert list(as_sites(model, "mlp_out")) == ["mlp_out"]


@pytest.mark.parametrize("site", [site for site in SITES if site != "mixer_out"])
def test_axes_are_those_of_activations(site: str) -> None:
    model, tokens = tiny_model(), torch.zeros(1, 5, dtype=torch.long)
    shape = model.run_with_cache(tokens)[1][get_act_name(site, 0)].shape[1:]
    sizes = {"pos": 5, "dest_pos": 5, "src_pos": 5, "head": model.cfg.n_heads}
    axes = AXES[site][1:]
    assert tuple(sizes[axis] for axis in axes) == shape[: len(axes)]
    assert patch_axes(site, False) == (("layer", "head") if "head" in axes else ("layer",))
    assert set(patch_axes(site, True)) == {*patch_axes(site, False), "pos"}


@pytest.mark.parametrize("patch", [activation_patch, attribution_patch])
@pytest.mark.parametrize(
    ("sites", "kind", "said"),
    [
        ("resid_per", UnknownNameError, "Unknown site 'resid_per'. Did you mean 'resid_pre'"),
        ([], InvalidInputError, "give at least one site: resid_pre, resid_mid, "),
        (["z", "resid_mid"], InvalidInputError, "no 'resid_mid': its blocks have resid_pre, resid_post, attn_out, z"),
    ],
)
def test_sites_that_are_none(patch: Callable[..., Any], sites: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        patch(tiny_model(attn_only=True), random_task(), sites)


def test_a_module_in_the_place_of_a_hook_point() -> None:
    model = tiny_model()
    model.blocks[1].attn.hook_z = nn.Identity()
    model.setup()
    with pytest.raises(InvalidInputError, match="hook_z holds a Identity instead of a hook point"):
        as_sites(model, ["resid_pre", "z"])
