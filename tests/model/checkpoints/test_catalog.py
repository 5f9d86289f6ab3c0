"""The table of families."""

from headscope.model.checkpoints.catalog import known_families
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.weights.processing import WeightProcessing


def test_every_family_says_which_processing_applies() -> None:
    families = known_families()
    assert [family.model_type for family in families] == sorted(FAMILIES)
    for family in families:
        assert family.examples and {*family.processing, *family.left_out} == set(WeightProcessing.names())
        assert not set(family.processing) & set(family.left_out)
    found = {family.model_type: family for family in families}
    assert set(found["gpt2"].processing) == set(WeightProcessing.names())
    assert set(found["gemma2"].processing) == {"fold_ln", "fold_value_biases"}
    assert "rotary" in found["gpt_neox"].left_out["refactor_factored_attn_matrices"]
    assert "fold_ln" in found["olmo"].left_out
