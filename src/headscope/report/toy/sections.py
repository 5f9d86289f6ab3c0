"""The sections of a toy model's page."""

import math
from collections.abc import Mapping

import torch

from headscope.analysis.heads.scores import SCORES
from headscope.data.tasks import ModularAdditionDataset
from headscope.report.blocks import Block, Cell, FactList, Figure, Prose, Row, Section, Table
from headscope.report.numbers_section import table_links
from headscope.report.places import head_of
from headscope.report.toy.findings import ToyFindings
from headscope.report.toy.sentences import (
    answered,
    composition,
    few_waves,
    head_missed,
    heads_of_types,
    loss_of,
    no_head_of_types,
    replied,
    share_of,
    when_learned,
)
from headscope.report.words import (
    captioned,
    head_cell,
    number_cell,
    percent,
    percent_cell,
    prose,
    say,
    those,
)
from headscope.training.toy_study import HeadLogits
from headscope.views.attention import attention_heads
from headscope.views.drawing.maps import component_maps
from headscope.views.figures.head_types import head_type_maps, k_composition_maps
from headscope.views.figures.toy import fourier_bars, grokking_curve
from headscope.views.figures.toy_dynamics import dynamics_along_training
from headscope.views.figures.training import token_maps, training_metrics

__all__ = ["toy_sections"]

_LEARNED = 0.99
_FEW_EPOCHS = 8
_BLUE_RED = "Blue adds, red takes away, no color is nothing; the maps share one scale."


def toy_sections(findings: ToyFindings, tables: Mapping[str, str]) -> list[Section]:
    """The sections there are, in the order of the page."""
    measured = prose("Losses are in nats. All is measured on {data}.", data=repr(findings.data))
    numbers = Section("numbers", "The numbers", (), (table_links(tables), measured))
    parts = (_answers, _training, _along, _heads, _circuits, _types, _waves)
    return [section for section in (*(part(findings) for part in parts), numbers) if section is not None]


def _answers(findings: ToyFindings) -> Section:
    """The model, the task, and the model's answers."""
    result, data = findings.result, findings.data
    final, best = result.final, result.validation_bayes or result.bayes
    both = not math.isnan(final.noise_loss)
    kinds = (("all answers", ""), ("signal", "signal_"), ("noise", "noise_")) if both else (("all answers", ""),)
    rows = [
        (
            Cell(name, at),
            *(
                number_cell(value, shown(value))
                for metric, shown in (("loss", loss_of), ("accuracy", share_of))
                for value in (getattr(final, kind + metric), getattr(best, kind + metric))
            ),
        )
        for at, (name, kind) in enumerate(kinds)
    ]
    summary = answered(
        len(result.train),
        result.seconds,
        signal=(final.signal_accuracy, final.signal_loss, best.signal_loss),
        every=(final.accuracy, best.accuracy) if both else None,
        held_out=result.validation is not None,
    )
    facts = {
        "Task": data.task,
        "Trained on": result.data,
        "Answers": f"at positions {data.answer_positions.start} to {data.answer_positions.stop - 1}",
        "Parameters trained": f"{findings.n_trained:,}",
    }
    caption = say(
        "Means over {where}. The best possible is that of a predictor that knows the rule: signal is what the prompt "
        "settles, noise what nothing settles.",
        where="held-out data" if result.validation is not None else "the last epoch",
    )
    blocks = (
        Row((FactList("Model", findings.facts), FactList("Task", facts))),
        Table(("answers", "loss, nats", "best possible", "right", "best possible"), rows, caption),
        _prompts(findings),
    )
    return Section("answers", "The model and its answers", (summary,), blocks)


def _prompts(findings: ToyFindings) -> Table:
    """Some prompts that settle their last answer, and the model's replies."""
    rows = []
    for each in findings.answers:
        prompt = " ".join(map(str, each.prompt))
        rows.append(
            (
                Cell(say("<code>{prompt}</code>", prompt=prompt), prompt),
                Cell(str(each.label), each.label),
                Cell(replied(each.reply, each.label), each.reply),
                Cell(share_of(each.probability), each.probability),
            )
        )
    caption = say("The first prompt with each answer, {n} at most; tokens by their numbers.", n=len(rows))
    columns = ("prompt", "right answer", "the model's", "its probability")
    return Table(columns, rows, caption, words=(0,), sorted_by=1, descending=False)


def _training(findings: ToyFindings) -> Section:
    """Loss and accuracy over steps."""
    result = findings.result
    figures = [
        captioned(
            training_metrics(result, steps=len(result.train_epochs) < _FEW_EPOCHS),
            "Loss and accuracy over steps; dotted lines are those of the best possible predictor.",
            "Training: each batch before its step. Validation: the model at that step, on data it never saw.",
            "One color for each kind of answer.",
        )
    ]
    held_out = None if result.validation is None else result.validation.reached(_LEARNED)
    learned = (
        when_learned(_LEARNED, result.train.reached(_LEARNED), held_out) if result.validation is not None else None
    )
    if findings.power is not None and result.validation is not None:
        figures.append(
            captioned(
                grokking_curve(result),
                "The training part of the table can be memorized; held-out sums need the rule.",
                "Mean loss on a log scale; dotted where {share} is right first.",
                "Gray is the training part, blue the held-out one.",
                share=percent(_LEARNED),
            )
        )
    return Section("training", "How it was learned", those(learned), figures)


def _along(findings: ToyFindings) -> Section | None:
    """All snapshots; `None` without."""
    if findings.dynamics is None:
        return None
    figure = captioned(
        dynamics_along_training(findings.dynamics),
        "Left, over all snapshots: the entropy of the prediction read off each state of the residual stream, where "
        "answers are given; the strongest head of each kind; and what each head adds to the right answer's logit. "
        "Right, at the slider's step: by how much each component moves the entropy of the state it writes to; every "
        "head's scores; and what each head adds to the logits after one prompt.",
        "From the weights that were kept along the way; logits are relative to their mean over the vocabulary.",
        "In the maps blue raises and red lowers; scores go from none (no color) to all (blue).",
    )
    return Section("along", "Along training", (), (figure,))


def _heads(findings: ToyFindings) -> Section:
    """Attention of the heads, the loss without each, and what they add to the logits."""
    needed, labels = findings.heads, findings.head_labels
    worst = int(needed.loss_without.argmax())
    missed = head_missed(
        labels[worst],
        right=(needed.accuracy, float(needed.accuracy_without.flatten()[worst])),
        loss=(needed.loss, float(needed.loss_without.flatten()[worst])),
        n_rows=int(findings.data.signal.any(-1).sum()),
        n_heads=len(labels),
    )
    attention = captioned(
        attention_heads(
            findings.patterns,
            [f"{token} " for token in findings.shown],
            attention_head_names=labels,
            min_value=0.0,
            max_value=1.0,
            focus=len(findings.shown) - 1,
        ),
        "All heads on the first prompt whose last answer is settled; its last position answers.",
        "The attention weights of one forward pass. Point at a token to see where it looks.",
        "No color is no attention, the strongest blue is all of it.",
    )
    rises = captioned(
        component_maps(
            {"loss, nats": needed.loss_without - needed.loss},
            title="What the loss of settled answers gains without a head",
            data=findings.result.data,
            unit="nats",
        ),
        "The rise of the loss of settled answers when a head's output is replaced by its mean.",
        "The mean is over the data at each position; everything after the head is recomputed.",
        "Blue: without the head the loss is higher. Red: lower.",
    )
    parts = () if findings.parts is None else (_parts(findings, findings.parts),)
    return Section("heads", "What each head does", those(missed), (attention, rises, *parts))


def _parts(findings: ToyFindings, parts: HeadLogits) -> Figure:
    """The logits after the prompt shown, as a sum."""
    stack = torch.cat([parts.heads[0].flatten(0, 1), parts.bias, parts.direct, parts.total])
    biases = (f"b_O of layer {layer}" for layer in range(len(parts.bias)))
    figure = token_maps(
        stack[None],
        title=f"What the logits after {' '.join(map(str, findings.shown))} are made of",
        y=[*(f"head {label}" for label in findings.head_labels), *biases, "embedding", "logits"],
        names=[""],
        x_title="logit of",
    )
    return captioned(
        figure,
        "What each head adds to each logit. All but the last row sum to the last.",
        "A head's part is <code>z W_O W_U</code>; the output bias <code>b_O</code> belongs to no head.",
        _BLUE_RED,
    )


def _circuits(findings: ToyFindings) -> Section | None:
    """Circuits over tokens, where they are all there is."""
    if findings.circuits is None:
        return None
    maps = findings.circuits
    blocks = (
        captioned(
            token_maps(maps.ov, title="OV circuits", x_title="logit of", y_title="attended token"),
            "What a head adds to each logit when it attends to nothing but one token.",
            "<code>W_E W_V W_O W_U</code>, from the weights alone; biases are left out.",
            _BLUE_RED,
        ),
        captioned(
            token_maps(maps.qk, title="QK circuits", x_title="key", y_title="query", unit="score"),
            "How a query scores each key: attention is the softmax of these over the tokens in a prompt.",
            "From the weights alone, biases and scale included.",
            "Blue is looked at, red is looked away from.",
        ),
    )
    return Section("circuits", "Circuits over tokens", (), blocks)


def _types(findings: ToyFindings) -> Section | None:
    """Heads of known types, and how they compose."""
    types = findings.types
    if types is None:
        return None
    blocks: list[Block] = [
        captioned(
            head_type_maps(types),
            "Attention that a head pays to the token before, to earlier copies of the token, and to what followed "
            "these; heads that are clearly of a type are outlined.",
            "On repeated random tokens; a mean over positions, between 0 and 1, of the length at which it is lowest.",
            "No color is none of its attention, the strongest blue is all of it.",
        )
    ]
    ranked = {key: types.heads(key) for key in SCORES}
    labels = {key: [score.label for score in ranking] for key, ranking in ranked.items()}
    rows = [
        (
            Cell(key.replace("_", " "), at),
            head_cell(score.label),
            percent_cell(score.value),
            percent_cell(float(types.controls[types.kinds.index(key)][head_of(score)])),
        )
        for at, (key, ranking) in enumerate(ranked.items())
        for score in ranking
    ]
    if rows:
        caption = say("The outlined heads. The control is the same number with what defines the type taken out.")
        blocks.append(Table(("type", "head", "of its attention", "control"), rows, caption, words=(0,)))
    blocks += map(Prose, those(no_head_of_types(labels)))
    if len(findings.heads.loss_without) > 1 and ranked["induction"]:
        blocks.append(
            captioned(
                k_composition_maps(types),
                composition(bool(ranked["previous_token"])),
                "K-composition, |A B| / (|A| |B|) in Frobenius norms, from the weights alone.",
                "No color is none; the strongest blue is the most there is.",
            )
        )
    return Section("types", "Head types", those(heads_of_types(labels)), blocks)


def _waves(findings: ToyFindings) -> Section | None:
    """The embedding of numbers that are added, as waves."""
    power, data = findings.power, findings.data
    if power is None or not isinstance(data, ModularAdditionDataset):
        return None
    figure = captioned(
        fourier_bars(power, data="W_E"),
        "How much of what differs between the numbers' embeddings is a wave of each frequency.",
        "Sines and cosines over the numbers modulo {p}, fitted to the rows of <code>W_E</code>.",
        "Blue is the model as it is, gray as it was before training.",
        p=data.p,
    )
    return Section("waves", "Waves in the embedding", those(few_waves(power.get("before"), power["after"])), (figure,))
