"""Mean outputs beside a tree's files: read for the model that they are of, and for no other."""

import json
from pathlib import Path

import pytest
import torch
from live import live_model
from safetensors.torch import save_file

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import all_components
from headscope.analysis.recording.component_means import OutputSums
from headscope.analysis.storage.manifest import fingerprint
from headscope.errors import CheckpointError
from headscope.explorer.measuring.rows import PickedRows, mean_outputs
from headscope.explorer.tree.means import MEANS, read_means, write_means


@torch.no_grad()
def test_means_are_over_the_tokens_that_count() -> None:
    model = live_model()
    tokens = model.to_tokens(["The old dog ran after the ball.", "Then Mary said thank you to John."])[:, :9]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 6:] = False
    found = mean_outputs(model, PickedRows(torch.arange(2), tokens, mask), include_bos=False)
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    mask[:, 0] = False  # BOS does not count
    assert found.keys() == set(all_components(model.cfg))
    for part, mean in found.items():
        output = cache["mlp_out", part.layer] if part.head is None else cache["z", part.layer][:, :, part.head]
        torch.testing.assert_close(mean, output[mask].mean(0))


@torch.no_grad()
def test_means_come_back_for_their_own_model(tmp_path: Path) -> None:
    model = live_model()
    tokens = model.to_tokens("The old dog ran after the ball.")
    sums = OutputSums.of_all(model)
    means = sums.means(sums.measure(Batch(tokens, None, torch.ones_like(tokens, dtype=torch.bool)), 0)).over_data
    assert read_means(tmp_path, model) == {}
    write_means(tmp_path, model, means)
    found = read_means(tmp_path, model)
    assert found.keys() == means.keys()
    for part, mean in means.items():
        torch.testing.assert_close(found[part], mean.float())
    head = next(part for part in means if part.label == "1.2")
    torch.testing.assert_close(means[head], model.run_with_cache(tokens)[1]["z", 1][0, :, 2].mean(0))
    written = (tmp_path / MEANS).read_bytes()
    write_means(tmp_path, model, means)
    assert (tmp_path / MEANS).read_bytes() == written and [path.name for path in tmp_path.iterdir()] == [MEANS]
    model.blocks[1].mlp.b_out[0] += 1e-6  # of the same shape and processing
    assert read_means(tmp_path, model) == {}


def test_means_are_the_same_file_in_every_process(tmp_path: Path) -> None:
    """More entries of metadata than one would be in an order that changes from run to run."""
    write_means(tmp_path, live_model(), {})
    written = (tmp_path / MEANS).read_bytes()
    header = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])
    assert len(header["__metadata__"]) == 1


@pytest.mark.parametrize(
    ("name", "mean", "said"),
    [
        ("1.2", torch.zeros(5), r"1\.2 is not 8 finite numbers"),
        ("mlp1", torch.zeros(8), r"mlp1 is not 24 finite numbers"),
        ("1.2", torch.full((8,), torch.nan), r"1\.2 is not 8 finite numbers"),
        ("9.0", torch.zeros(8), r"the model has no 9\.0"),
        ("x", torch.zeros(8), "the model has no x"),
    ],
)
def test_damaged_means_are_refused(tmp_path: Path, name: str, mean: torch.Tensor, said: str) -> None:
    model = live_model()
    save_file({name: mean}, tmp_path / MEANS, {"weights": fingerprint(model.state_dict())})
    with pytest.raises(CheckpointError, match=said):
        read_means(tmp_path, model)
    (tmp_path / MEANS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_means(tmp_path, model)
