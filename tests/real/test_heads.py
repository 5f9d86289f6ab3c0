"""The kinds of heads of the pretrained model: as found, and by probes written out by hand."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm import RealRun
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import HeadTypes, Task, detect_heads, head_scores
from headscope.data import IOIDataset
from headscope.report.blocks import Prose
from headscope.report.task import measuring
from headscope.report.task.section import task_section

pytestmark = pytest.mark.real

INDUCTION = [(18, 6), (17, 3), (17, 4)]
NAME_MOVERS = [(23, 0), (23, 1)]
NEGATIVE = (24, 4)
S_INHIBITION = (20, 0)
# A text of its own, which no edit of a page changes: which heads are told on it depends on it.
PROSE = Path(__file__).with_name("prose.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def repeated(model: HookedTransformer) -> Tensor:
    """BOS and the same thirty random tokens twice."""
    row = torch.randint(100, 40_000, (2, 30), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((2, 1), model.tokenizer.bos_token_id), row, row], 1)


@pytest.fixture(scope="module")
def seen(model: HookedTransformer, ioi: IOIDataset) -> dict[str, Tensor]:
    """On two-name prompts: the movers' patterns and values, and the logits."""
    names = {f"blocks.{layer}.attn.hook_{kind}" for layer in (20, 23, 24) for kind in ("pattern", "v")}
    with torch.no_grad():
        logits, cache = model.run_with_cache(ioi.toks, names_filter=lambda name: name in names)
    return {**dict(cache.items()), "logits": logits}


def attention(pattern: Tensor, ioi: IOIDataset, word: str) -> Tensor:
    """Mean attention of each head from the end to a word."""
    rows = torch.arange(len(ioi))
    return pattern[rows, :, ioi.word_idx["end"], ioi.word_idx[word]].mean(0)


def answers(ioi: IOIDataset, logits: Tensor) -> Tensor:
    rows = torch.arange(len(ioi))
    at_end = logits[rows, ioi.word_idx["end"]]
    return at_end[rows, torch.tensor(ioi.io_tokenIDs)] - at_end[rows, torch.tensor(ioi.s_tokenIDs)]


def test_scores_are_the_attention_they_say(model: HookedTransformer, repeated: Tensor) -> None:
    found = head_scores(model, repeated, progress=False)
    _, cache = model.run_with_cache(repeated, names_filter=lambda name: name.endswith("hook_pattern"))
    patterns = torch.stack([cache["pattern", layer] for layer in range(30)])  # [layer, row, head, query, key]
    queries = torch.arange(31, 61)
    wanted = {
        "induction": patterns[..., queries, queries - 29].mean((1, 3)),
        "duplicate_token": patterns[..., queries, queries - 30].mean((1, 3)),
        "previous_token": patterns[..., torch.arange(2, 61), torch.arange(1, 60)].mean((1, 3)),
    }
    for name, scores in wanted.items():
        torch.testing.assert_close(getattr(found, name), scores, rtol=0, atol=1e-5)
    best = wanted["induction"].flatten().topk(3)
    assert {divmod(place, 9) for place in best.indices.tolist()} == set(INDUCTION)
    assert float(best.values.min()) > 0.6


def test_induction_heads_are_found_and_matter(model: HookedTransformer, repeated: Tensor) -> None:
    found = detect_heads(model, n_sequences=6, length=20, progress=False)
    assert all("induction" in found.kinds_of(*head) for head in INDUCTION)

    def without(z: Tensor, hook: Any) -> Tensor:
        for layer, head in INDUCTION:
            if hook.layer() == layer:
                z[:, :, head] = 0
        return z

    def halves(logits: Tensor) -> tuple[float, float]:
        loss = -logits.log_softmax(-1)[:, :-1].gather(-1, repeated[:, 1:, None])[..., 0]
        return float(loss[:, :30].mean()), float(loss[:, 31:].mean())

    hooks = [(f"blocks.{layer}.attn.hook_z", without) for layer in (17, 18)]
    first, before = halves(model(repeated))
    same, after = halves(model.run_with_hooks(repeated, fwd_hooks=hooks))
    assert before < first - 5 and after > before + 0.5 and after - before > 3 * abs(same - first)


def test_indirect_objects(seen: dict[str, Tensor], ioi: IOIDataset, model: HookedTransformer) -> None:
    """About 3.5 logits of difference, 95 % right."""
    more = IOIDataset("mixed", N=40, tokenizer=model.tokenizer, prepend_bos=True, seed=1)
    ends = torch.arange(len(more)), more.word_idx["end"]
    both = torch.cat([answers(ioi, seen["logits"]), answers(more, model(more.toks))])
    assert len(ends[0]) == 40
    assert 3.0 < float(both.mean()) < 4.2
    assert float((both > 0).float().mean()) > 0.9


def test_name_movers_look_at_the_name_and_copy_it(
    model: HookedTransformer, seen: dict[str, Tensor], ioi: IOIDataset
) -> None:
    rows, names = torch.arange(len(ioi)), torch.tensor(ioi.io_tokenIDs)
    for layer, head in (*NAME_MOVERS, NEGATIVE):
        to_io, to_s = (attention(seen[f"blocks.{layer}.attn.hook_pattern"], ioi, word)[head] for word in ("IO", "S1"))
        assert float(to_io) > 0.35 and float(to_io) > 1.5 * float(to_s)
        # What the head would write if it looked at the name alone, in standard deviations over the vocabulary.
        values = seen[f"blocks.{layer}.attn.hook_v"][rows, ioi.word_idx["IO"], head // 3]
        logits = values @ model.blocks[layer].attn.W_O[head] @ model.W_U
        own = (logits[rows, names] - logits.mean(-1)) / logits.std(-1)
        ranks = (logits > logits[rows, names][:, None]).sum(-1)
        if (layer, head) == NEGATIVE:
            assert float(own.mean()) < -4 and int(ranks.median()) == model.cfg.d_vocab - 1
        else:
            assert float(own.mean()) > 4 and int(ranks.median()) == 0


def test_an_s_inhibition_head_keeps_movers_off_the_subject(
    model: HookedTransformer, seen: dict[str, Tensor], ioi: IOIDataset
) -> None:
    """It looks at the second subject; with its output from prompts of three other names, movers miss the answer."""
    layer, head = S_INHIBITION
    assert float(attention(seen["blocks.20.attn.hook_pattern"], ioi, "S2")[head]) > 0.4
    other = ioi.gen_flipped_prompts("ABB->XYZ, BAB->XYZ")
    point = f"blocks.{layer}.attn.hook_z"
    _, elsewhere = model.run_with_cache(other.toks, names_filter=lambda name: name == point)
    rows, patterns = torch.arange(len(ioi)), {}

    def put(z: Tensor, hook: Any) -> Tensor:
        z[rows, ioi.word_idx["end"], head] = elsewhere[point][rows, ioi.word_idx["end"], head]
        return z

    def record(pattern: Tensor, hook: Any) -> None:
        patterns[hook.name] = pattern

    hooks = [(point, put), ("blocks.23.attn.hook_pattern", record)]
    logits = model.run_with_hooks(ioi.toks, fwd_hooks=hooks)
    before, after = (seen["blocks.23.attn.hook_pattern"], patterns["blocks.23.attn.hook_pattern"])
    for _, mover in NAME_MOVERS:
        assert float((attention(after, ioi, "IO") - attention(before, ioi, "IO"))[mover]) < -0.05
        assert float((attention(after, ioi, "S1") - attention(before, ioi, "S1"))[mover]) > 0.02
    assert float((answers(ioi, logits) - answers(ioi, seen["logits"])).mean()) < -0.8


@pytest.fixture(scope="module")
def kinds(model: HookedTransformer) -> HeadTypes:
    """On 160 prompts of two names, and a text."""
    return detect_heads(model, text=PROSE, task=two_names(model), progress=False)


def two_names(model: HookedTransformer) -> Task:
    prompts = IOIDataset("mixed", N=160, tokenizer=model.tokenizer, prepend_bos=True)
    return Task.from_ioi(prompts, "ABB->ABA, BAB->BAA")


def of_kind(found: HeadTypes, kind: str) -> set[str]:
    return {score.label for score in found.heads(kind)}


def test_the_heads_that_do_indirect_objects(kinds: HeadTypes) -> None:
    """23.3 does most; 29.1 adds to it where it writes; 24.4 and 29.0 work against it; 20.0 finds the subject."""
    assert of_kind(kinds, "subject_suppressor") == {"23.3"} and of_kind(kinds, "amplifier") == {"29.1"}
    assert of_kind(kinds, "negative_name_mover") | of_kind(kinds, "dampener") == {"24.4", "29.0"}
    assert "20.0" in of_kind(kinds, "s_inhibition") and kinds.heads("s_inhibition")[0].label == "20.0"
    assert {"8.1", "9.2", "5.6", "2.4"} <= of_kind(kinds, "duplicate_name")
    # 23.1 raises whom it looks at, and 23.0 helps in both orders: neither is what the other is.
    assert "23.1" in of_kind(kinds, "name_copier") and "23.1" not in of_kind(kinds, "name_mover")
    assert "23.0" not in of_kind(kinds, "name_copier")
    for kind in ("name_mover", "subject_suppressor", "amplifier"):
        for score in kinds.heads(kind):
            for order in ("ABBA", "BABA"):
                whole = float(kinds.evidence_of(f"direct effect ({order})")[score.layer, score.head])
                assert whole >= score.value - 1e-4 > 0
    effects = sum(kinds.evidence_of(f"direct effect ({order})") for order in ("ABBA", "BABA"))
    assert divmod(int(effects.argmax()), 9) == (23, 3)


def test_the_report_says_who_does_the_task(
    model: HookedTransformer, kinds: HeadTypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words, with the numbers of `kinds`: 23.3 first, 24.4 and 29.0 against it, 20.0 as what queries depend on."""
    monkeypatch.setattr(measuring, "detect_heads", lambda *args, **options: kinds)
    story = measuring.measure_task(model, replace(two_names(model), corrupted_tokens=None), progress=False)
    section = task_section(story)
    summary = " ".join(section.summary[0].striptags().replace("\u2212", "-").split())
    does, against, queries = summary.split("(direct effects, in logits)")
    whole = {
        (label, order): float(kinds.evidence_of(f"direct effect ({order})")[layer, head])
        for label, layer, head in (("23.3", 23, 3), ("24.4", 24, 4), ("29.0", 29, 0))
        for order in ("ABBA", "BABA")
    }

    def told(label: str) -> str:
        return f"({whole[label, 'ABBA']:+.3f} in ABBA, {whole[label, 'BABA']:+.3f} in BABA)"

    assert f"done most of all by 23.3, which lowers the subject where it stands {told('23.3')}" in does
    assert min(whole["23.3", order] for order in ("ABBA", "BABA")) > 1.2
    for label in ("24.4", "29.0"):
        assert told(label) in against and max(whole[label, order] for order in ("ABBA", "BABA")) < 0
    assert "depend on 20.0" in queries
    said = " ".join(block.text.striptags() for block in section.blocks if isinstance(block, Prose))
    assert "8.1 to the first mention, and not to the other name" in said
    assert "nothing was patched" in said and "Backups" not in said


def test_no_label_fails_its_probe(model: HookedTransformer, kinds: HeadTypes) -> None:
    """Of docs/kinds.md: each label beside a check written by hand, on other inputs."""
    path = Path(__file__).parents[2] / "benchmarks" / "labels.py"
    spec = importlib.util.spec_from_file_location("labels_of_heads", path)
    assert spec is not None and spec.loader is not None
    labels = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = labels
    spec.loader.exec_module(labels)
    rows = labels.repeating(model, model.to_tokens(PROSE, prepend_bos=False)[0], 24, 7)
    probes = labels.attention_probes(model, rows) | labels.name_probes(labels.Names.of(model), kinds)
    checked = {
        f"{kind} {score.label}": probes[kind]((score.layer, score.head))
        for kind in kinds.kinds
        for score in kinds.heads(kind)
    }
    assert len(checked) > 25 and {label: said for label, (said, agrees) in checked.items() if not agrees} == {}
    # Near by, it finds any token; far back only names do it.
    assert "8.1" not in of_kind(kinds, "duplicate_token")
    near, far = (kinds.evidence_of(f"duplicate_token said twice ({length} tokens)")[8, 1] for length in (12, 50))
    assert float(near) > 0.4 > 0.25 > float(far)


def test_a_head_closes_brackets(model: HookedTransformer) -> None:
    """26.6 looks at an open bracket and writes for closing ones; without the bracket it does neither."""
    close, names = model.to_single_token(")"), {"blocks.26.attn.hook_pattern", "blocks.26.attn.hook_z"}
    for text in ("The author (who was born in London", "He called his brother (the older one"):
        for said, is_open in ((text, True), (text.replace("(", ""), False)):
            _, cache = model.run_with_cache(said, names_filter=lambda name: name in names)
            logits = cache["z", 26][0, -1, 6] @ model.blocks[26].attn.W_O[6] @ model.W_U
            place = [at for at, token in enumerate(model.to_str_tokens(said)) if "(" in token]
            paid = cache["pattern", 26][0, 6, -1, place].sum()
            rank = int((logits > logits[close]).sum())
            assert (float(paid) > 0.9 and rank < 10) if is_open else rank > 10_000


def test_the_suppressor_lowers_the_subject_by_hand(real_run: RealRun, task: Task) -> None:
    """23.3 looks at the second subject, and what it takes from there lowers that name below all others."""
    rows, clean = torch.arange(len(task)), real_run(task.clean_tokens)
    pattern = clean["blocks.23.attn.hook_pattern"][rows, 3, task.positions]
    assert float(pattern[rows, task.word_idx["S2"]].min()) > 0.3
    values = clean["blocks.23.attn.hook_v"][rows, task.word_idx["S2"], 3]
    logits = values @ real_run.state["blocks.23.attn.W_O"][3] @ real_run.state["unembed.W_U"]
    own = logits[rows, task.incorrect[:, 0]]
    assert int((logits < own[:, None]).sum(-1).max()) < 10


def test_induction_on_random_tokens_is_not_induction_on_text(model: HookedTransformer, kinds: HeadTypes) -> None:
    """18.7 rests at BOS on prose, where 18.6, 17.3 and 17.5 still attend to what followed."""
    random = head_scores(model, n_sequences=4, progress=False).induction
    assert float(random[18, 7]) > 0.45 and float(random[18, 6]) > 0.8
    unsure = {score.label for score in kinds.undecided("induction")}
    assert {"18.6", "17.5"} <= of_kind(kinds, "induction") and "17.3" in unsure | of_kind(kinds, "induction")
    assert "18.7" not in of_kind(kinds, "induction")
    assert float(kinds.evidence_of("start on text")[18, 7]) > 0.9
    tokens = model.to_tokens(PROSE)[:, :128]
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name == "blocks.18.attn.hook_pattern")
    assert float(cache["pattern", 18][0, 7, 64:, 0].mean()) > 0.9


def test_shuffled_weights_have_no_kinds(model: HookedTransformer) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    try:
        model.load_state_dict(
            {
                name: value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)
                if value.is_floating_point()
                else value
                for name, value in state.items()
            }
        )
        assert not bool(detect_heads(model, n_sequences=6, length=20, progress=False).labelled.any())
    finally:
        model.load_state_dict(state)
