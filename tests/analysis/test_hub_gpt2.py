"""GPT-2 small on indirect objects: the figures of the notebook that asked, and the heads of the paper that answered.

Marked `hub`: they download the model. The notebook's figures are those of TransformerLens on processed weights.
"""

import os

import pytest
import torch

from headscope import HookedTransformer
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.prompts.answers import logit_difference
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.utils import test_prompt as run_prompt

pytestmark = [
    pytest.mark.hub,
    pytest.mark.skipif(
        os.environ.get("HF_HUB_OFFLINE") != "0", reason="GPT-2 is downloaded: run with HF_HUB_OFFLINE=0"
    ),
]

PROMPT = "After John and Mary went to the store, John gave a bottle of milk to"
CHOICES = (
    (" Mary", 0.7007, 18.09), (" the", 0.0467, 15.38), (" John", 0.0454, 15.35), (" them", 0.0411, 15.25),
    (" his", 0.0273, 14.84), (" her", 0.0124, 14.06), (" a", 0.0074, 13.54), (" their", 0.0073, 13.52),
    (" Jesus", 0.0049, 13.13), (" him", 0.0042, 12.97),
)  # fmt: skip
TEMPLATES = (
    "When John and Mary went to the shops, {} gave the bag to",
    "When Tom and James went to the park, {} gave the ball to",
    "When Dan and Sid went to the shops, {} gave an apple to",
    "After Martin and Amy went to the park, {} gave a drink to",
)
# With their leading spaces, so that filled in after a space the prompts have two.
PAIRS = ((" Mary", " John"), (" Tom", " James"), (" Dan", " Sid"), (" Martin", " Amy"))


@pytest.fixture(scope="module")
def gpt2() -> HookedTransformer:
    return HookedTransformer.from_pretrained(
        "gpt2-small",
        center_unembed=True,
        fold_ln=True,
        center_writing_weights=True,
        refactor_factored_attn_matrices=True,
    )


@pytest.fixture(scope="module")
def prompts() -> Task:
    """A hundred prompts in both orders, as the paper has them; corrupted by other names."""
    model = HookedTransformer.from_pretrained("gpt2")
    return Task.from_ioi(IOIDataset("mixed", 100, model.tokenizer, prepend_bos=False, seed=0))


def test_the_notebooks_prompt_has_its_ten_likeliest_words(gpt2: HookedTransformer) -> None:
    found = run_prompt(PROMPT, " Mary", gpt2, prepend_bos=True, print_details=False)
    assert found.rank == 0
    top = found.answer[0].top
    assert [each.token for each in top] == [word for word, _, _ in CHOICES]
    for each, (_, prob, logit) in zip(top, CHOICES, strict=True):
        assert each.prob == pytest.approx(prob, abs=1e-4)  # the notebook's last digit, and a little rounding
        assert each.logit == pytest.approx(logit, abs=0.01)


@torch.no_grad()
def test_the_notebooks_eight_prompts_have_its_mean_logit_difference(gpt2: HookedTransformer) -> None:
    """2.710, with the doubled space before the name that the notebook's pairs and templates give together."""
    texts = [text.format(name) for text, names in zip(TEMPLATES, PAIRS, strict=True) for name in names[::-1]]
    assert texts[0] == "When John and Mary went to the shops,  John gave the bag to"
    answers = [names[::step] for names in PAIRS for step in (1, -1)]
    answer_tokens = torch.tensor([[gpt2.to_single_token(name) for name in names] for names in answers])
    assert answer_tokens[0].tolist() == [5335, 1757] and answer_tokens[-1].tolist() == [14235, 5780]
    tokens = gpt2.to_tokens(texts, prepend_bos=True)
    logits = gpt2(tokens)
    last = gpt2.attention_mask(tokens)
    positions = None if last is None else last.long().sum(1) - 1
    assert float(logit_difference(logits, answer_tokens, positions=positions)) == pytest.approx(2.710, abs=2e-3)


def test_the_papers_heads_stand_on_top_of_the_direct_effects(gpt2: HookedTransformer, prompts: Task) -> None:
    """Name movers 9.9, 10.0 and 9.6, negative ones 10.7 and 11.10 (Wang et al. 2022, section 3.1)."""
    found = attribute(gpt2, prompts, sources=False, neurons=False, progress=False)
    assert {score.label for score in found.top(3)} == {"9.9", "10.0", "9.6"}
    assert {score.label for score in found.top(2, largest=False)} == {"10.7", "11.10"}
    assert float(found.logit_difference.mean()) > 2.5
    assert bool(found.unexplained.abs().max() < 1e-3)


def test_the_papers_classes_of_heads_are_found(gpt2: HookedTransformer, prompts: Task) -> None:
    """Each class holds the heads that the paper names first for it; which others pass is a matter of thresholds."""
    found = detect_heads(gpt2, task=prompts[:50], progress=False)
    labels = {name: {score.label for score in found.heads(name)} for name in found.kinds}
    assert {"9.9", "10.0", "9.6"} <= labels["name_mover"]
    assert {"10.7", "11.10"} <= labels["negative_name_mover"]
    assert len(labels["s_inhibition"] & {"7.3", "7.9", "8.6", "8.10"}) >= 3
    assert "4.11" in labels["previous_token"]
    assert {"5.5", "6.9"} <= labels["induction"]
    assert labels["duplicate_token"] & {"0.1", "0.10", "3.0"}
