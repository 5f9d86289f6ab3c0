"""The sections of a toy model's page, each from the results that `write_toy_report` has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from markupsafe import Markup

from headscope.analysis.heads.types_result import HeadTypes
from headscope.data.tasks import ModularAdditionDataset, TaskDataset
from headscope.model.transformer import HookedTransformer
from headscope.report.blocks import Caption, Cell, Column, FactList, Figure, Prose, Row, Section, Table
from headscope.report.model.model_section import model_facts
from headscope.report.words import count, head_cell, listed, nats, number_cell, percent, say
from headscope.training.toy_dynamics import TrainingDynamics
from headscope.training.toy_fourier import fourier_power
from headscope.training.toy_result import TrainingResult
from headscope.training.toy_study import HeadsNeeded, head_logits, token_circuits
from headscope.views.attention import attention_heads
from headscope.views.drawing.maps import component_maps
from headscope.views.figures.head_types import head_type_maps, k_composition_maps
from headscope.views.figures.toy import fourier_bars, grokking_curve
from headscope.views.figures.toy_dynamics import dynamics_along_training
from headscope.views.figures.training import token_maps, training_metrics
from headscope.views.html import HtmlView

__all__ = ["ToyFindings", "toy_sections"]

_PROMPTS = 10
_LEARNED = 0.99
_FEW_EPOCHS = 8
_POWER = 0.95
_BLUE_RED = say("Blue adds, red takes away, no colour is nothing; the maps share one scale.")
_KINDS = ("previous_token", "duplicate_token", "induction")


@dataclass(frozen=True)
class ToyFindings:
    """All that the page is made of; `None` for what there is not.

    Attributes:
        model: The model, trained.
        data: What it was measured on.
        result: Its training.
        heads: What answers become without each head.
        types: Kinds of its heads.
        dynamics: The model along its training.
        first: The model as it was before.
    """

    model: HookedTransformer
    data: TaskDataset
    result: TrainingResult
    heads: HeadsNeeded
    types: HeadTypes | None
    dynamics: TrainingDynamics | None
    first: HookedTransformer | None

    @property
    def shown(self) -> torch.Tensor:
        """The first prompt whose last answer is settled, `[1, pos]`."""
        row = int(self.data.signal[:, -1].nonzero()[0, 0])
        return self.data.tokens[row : row + 1, : self.data.answer_positions.stop]

    @property
    def is_plain_sum(self) -> bool:
        """Whether the logits are a sum of what each head gives."""
        cfg = self.model.cfg
        return cfg.attn_only and cfg.normalization_type is None and cfg.output_logits_soft_cap <= 0


def toy_sections(found: ToyFindings, tables: Mapping[str, str]) -> tuple[Section, ...]:
    """The sections, in the order of the page; of those that may be missing, the ones there are."""
    sections = (
        _answers(found),
        _training(found),
        _along(found),
        _heads(found),
        _circuits(found),
        _kinds(found),
        _waves(found),
        _numbers(found, tables),
    )
    return tuple(section for section in sections if section is not None)


def _share(value: float) -> Markup:
    """A share that may be near to all, in percent with two decimals."""
    return say('<span class="number">{value:.2f}\xa0%</span>', value=100 * value)


def _loss(value: float) -> Markup:
    return say('<span class="number">{value:.4f}</span>', value=value)


def _answers(found: ToyFindings) -> Section:
    """The model, the task, and how the one answers the other."""
    result, data = found.result, found.data
    final, best = result.final, result.validation_bayes or result.bayes
    both = not math.isnan(final.noise_loss)
    kinds = (("all answers", ""), ("signal", "signal_"), ("noise", "noise_")) if both else (("all answers", ""),)
    measured = ("loss", "accuracy")
    rows = tuple(
        (
            Cell(name, at),
            *(
                number_cell(value, _share(value) if metric == "accuracy" else _loss(value))
                for metric in measured
                for value in (getattr(final, kind + metric), getattr(best, kind + metric))
            ),
        )
        for at, (name, kind) in enumerate(kinds)
    )
    summary = say(
        "After {steps} ({seconds:.1f} s) <b>{accuracy}</b> of the answers that their prompt settles are right, at a "
        "loss of <b>{loss}</b> nats (the best possible: {best})",
        steps=count(len(result.train), "step"),
        seconds=result.seconds,
        accuracy=_share(final.signal_accuracy),
        loss=_loss(final.signal_loss),
        best=_loss(best.signal_loss),
    )
    if both:
        summary += say(
            "; of all answers, noise included, {all} (the best possible: {best})",
            all=_share(final.accuracy),
            best=_share(best.accuracy),
        )
    trained = sum(weight.numel() for weight in found.model.parameters() if weight.requires_grad)
    where = "held-out data" if result.validation is not None else "the last epoch"
    facts = (
        ("Task", data.task),
        ("Trained on", result.data),
        ("Answers", f"at positions {data.answer_positions.start} to {data.answer_positions.stop - 1}"),
        ("Parameters trained", f"{trained:,}"),
    )
    blocks = (
        Row((FactList("Model", model_facts(found.model, found.model.weight_processing)), FactList("Task", facts))),
        Table(
            tuple(Column(name) for name in ("answers", "loss, nats", "best possible", "right", "best possible")),
            rows,
            say(
                "Means over {where}. The best possible is what a predictor has that knows the rule: signal is what the "
                "prompt settles, noise what nothing settles.",
                where=where,
            ),
        ),
        _prompts(found),
    )
    return Section("answers", "The model and its answers", (summary + ".",), blocks)


@torch.no_grad()
def _prompts(found: ToyFindings) -> Table:
    """Some prompts that settle their last answer, one for each answer as far as they go, and what the model says."""
    data, end = found.data, found.data.answer_positions.stop
    first: dict[int, int] = {}
    for row in data.signal[:, -1].nonzero()[:, 0].tolist():
        first.setdefault(int(data.labels[row, -1]), row)
    chosen = [row for _, row in sorted(first.items())][:_PROMPTS]
    logits = found.model(data.tokens[chosen, :end].to(found.model.input_device))[:, -1]
    rows = []
    for row, said in zip(chosen, logits.float().softmax(-1).cpu(), strict=True):
        label, answer = int(data.labels[row, -1]), int(said.argmax())
        prompt = " ".join(map(str, data.tokens[row, :end].tolist()))
        shown = say("{answer}" if answer == label else "<b>{answer}, which is wrong</b>", answer=answer)
        rows.append(
            (
                Cell(say("<code>{prompt}</code>", prompt=prompt), prompt),
                Cell(str(label), label),
                Cell(shown, answer),
                Cell(_share(float(said[answer])), float(said[answer])),
            )
        )
    return Table(
        (Column("prompt", words=True), Column("right answer"), Column("the model's"), Column("its probability")),
        tuple(rows),
        say("For each answer the first prompt that has it, as far as {n}; tokens by their numbers.", n=_PROMPTS),
        sorted_by=1,
        descending=False,
    )


def _training(found: ToyFindings) -> Section:
    """Loss and accuracy over steps."""
    result = found.result
    figures = [
        Figure(
            training_metrics(result, steps=len(result.train_epochs) < _FEW_EPOCHS),
            Caption(
                say("Loss and accuracy over steps; dotted lines are what the best predictor there can be has."),
                say("Training: each batch before its step. Validation: the model as it was, on data it never saw."),
                say("A colour for each kind of answer."),
            ),
        )
    ]
    sentences = []
    by_heart = result.train.reached(_LEARNED)
    held_out = None if result.validation is None else result.validation.reached(_LEARNED)
    if held_out is not None:
        sentences.append(
            say(
                "{share} of the signal in a training batch was first right at step {training}, of that in held-out "
                "data when it was measured at step {held_out}.",
                share=percent(_LEARNED),
                training="–" if by_heart is None else f"{by_heart:,}",
                held_out=f"{held_out:,}",
            )
        )
    if isinstance(found.data, ModularAdditionDataset) and result.validation is not None:
        figures.append(
            Figure(
                grokking_curve(result),
                Caption(
                    say("The shown part of the table can be learned by heart; held-out sums need the rule."),
                    say("Mean loss on a log scale; dotted where {share} is right first.", share=percent(_LEARNED)),
                    say("Grey is what was shown, blue what was held out."),
                ),
            )
        )
    return Section("training", "How it was learned", tuple(sentences), tuple(figures))


def _along(found: ToyFindings) -> Section | None:
    """All snapshots; `None` without."""
    if found.dynamics is None:
        return None
    caption = Caption(
        say(
            "Left, over all snapshots: the entropy of the prediction read off each state of the residual stream, where "
            "answers are given; the strongest head of each kind; and what each head adds to the right answer's logit. "
            "Right, at the slider's step: by how much each component moves the entropy of the state it writes to; "
            "every head's scores; and what each head adds to the logits after one prompt."
        ),
        say("From the weights that were kept along the way; logits are counted from their mean on the vocabulary."),
        say("In the maps blue raises and red lowers; scores go from none (no colour) to all (blue)."),
    )
    return Section("along", "Along training", (), (Figure(dynamics_along_training(found.dynamics), caption),))


def _heads(found: ToyFindings) -> Section:
    """Where heads look, which are missed, and what they add."""
    needed = found.heads
    layer, head = divmod(int(needed.loss_without.argmax()), needed.loss_without.shape[1])
    summary = say(
        "When one head at a time adds its mean over the data, head <b>{label}</b> is missed most: {accuracy} are right "
        "without it, and the loss is {loss} nats instead of {whole}.",
        label=f"{layer}.{head}",
        accuracy=_share(float(needed.accuracy_without[layer, head])),
        loss=nats(float(needed.loss_without[layer, head])),
        whole=nats(needed.loss),
    )
    attention = Figure(
        _attention(found),
        Caption(
            say("All heads on the first prompt whose last answer is settled; its last position answers."),
            say("The attention weights of one forward pass. Point at a token to see where it looks."),
            say("No colour is no attention, the strongest blue is all of it."),
        ),
    )
    missed = Figure(
        component_maps(
            {"loss, nats": needed.loss_without - needed.loss},
            columns=[str(number) for number in range(needed.loss_without.shape[1])],
            title="What the loss of settled answers gains without a head",
            data=found.result.data,
            unit="nats",
        ),
        Caption(
            say("By how much the loss of settled answers rises when a head adds its mean in place of what it says."),
            say("The mean is over the data at each position; everything after the head is computed again."),
            say("Blue: without the head the loss is higher. Red: lower."),
        ),
    )
    parts = (_parts(found),) if found.is_plain_sum else ()
    return Section("heads", "What each head does", (summary,), (attention, missed, *parts))


@torch.no_grad()
def _attention(found: ToyFindings) -> HtmlView:
    """All heads on the prompt shown."""
    cfg, tokens = found.model.cfg, found.shown
    _, cache = found.model.run_with_cache(tokens, return_type=None)
    return attention_heads(
        torch.cat([cache["pattern", layer][0] for layer in range(cfg.n_layers)]),
        [f"{token} " for token in tokens[0].tolist()],
        attention_head_names=[f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)],
        min_value=0.0,
        max_value=1.0,
        focus=tokens.shape[1] - 1,
    )


def _parts(found: ToyFindings) -> Figure:
    """The logits of the prompt shown as a sum."""
    cfg, tokens = found.model.cfg, found.shown
    parts = head_logits(found.model, tokens)
    names = [f"head {layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    stack = torch.cat([parts.heads[0].flatten(0, 1), parts.bias, parts.direct, parts.total])
    rows = [*names, *(f"b_O of layer {layer}" for layer in range(cfg.n_layers)), "embedding", "logits"]
    prompt = " ".join(map(str, tokens[0].tolist()))
    figure = token_maps(
        stack[None], title=f"What the logits after {prompt} are made of", y=rows, names=[""], x_title="logit of"
    )
    return Figure(
        figure,
        Caption(
            say("What each head adds to each logit. All but the last row sum to the last."),
            say("A head's part is <code>z W_O W_U</code>; the output bias <code>b_O</code> belongs to no head."),
            _BLUE_RED,
        ),
    )


def _circuits(found: ToyFindings) -> Section | None:
    """Circuits over tokens, where they are all there is."""
    if not found.is_plain_sum or found.model.cfg.n_layers > 1:
        return None
    circuits = token_circuits(found.model)
    ov = Caption(
        say("What a head adds to each logit when it attends to nothing but one token."),
        say("<code>W_E W_V W_O W_U</code>, from the weights alone; biases are left out."),
        _BLUE_RED,
    )
    qk = Caption(
        say("How a query scores each key: attention is the softmax of these over the tokens in a prompt."),
        say("From the weights alone, biases and scale included."),
        say("Blue is looked at, red is looked away from."),
    )
    blocks = (
        Figure(token_maps(circuits.ov, title="OV circuits", x_title="logit of", y_title="attended token"), ov),
        Figure(token_maps(circuits.qk, title="QK circuits", x_title="key", y_title="query", unit="score"), qk),
    )
    return Section("circuits", "Circuits over tokens", (), blocks)


def _kinds(found: ToyFindings) -> Section | None:
    """Heads of known kinds, and how they compose."""
    types = found.types
    if types is None:
        return None
    rows = tuple(
        (
            Cell(kind.replace("_", " "), at),
            head_cell(score.label),
            number_cell(score.value, percent(score.value)),
            number_cell(control := float(types.controls[types.kinds.index(kind), score.layer, int(score.head or 0)]),
                        percent(control)),
        )
        for at, kind in enumerate(_KINDS)
        for score in types.heads(kind)
    )  # fmt: skip
    blocks: list[Figure | Table | Prose] = [
        Figure(
            head_type_maps(types),
            Caption(
                say(
                    "Attention that a head pays to the token before, to earlier copies of the token, and to what "
                    "followed these; heads that surely are of a kind are outlined."
                ),
                say("On random tokens said twice; a mean over positions, between 0 and 1."),
                say("No colour is none of its attention, the strongest blue is all of it."),
            ),
        )
    ]
    if rows:
        names = (Column("kind", words=True), Column("head"), Column("of its attention"), Column("control"))
        blocks.append(
            Table(
                names,
                rows,
                say("The outlined heads. The control is the same number with what defines the kind taken out."),
            )
        )
    else:
        blocks.append(Prose(say("No head is surely of one of these kinds.")))
    if found.model.cfg.n_layers > 1 and types.heads("induction"):
        caption = Caption(
            say(
                "How much the keys of each induction head read what each earlier head writes. An induction head looks "
                "for what a previous-token head (outlined) wrote."
            ),
            say("K-composition, |A B| / (|A| |B|) in Frobenius norms, from the weights alone."),
            say("No colour is none; the strongest blue is the most there is."),
        )
        blocks.append(Figure(k_composition_maps(types), caption))
    named = [
        say("{kind}: <b>{heads}</b>", kind=kind.replace("_", " "), heads=listed([s.label for s in types.heads(kind)]))
        for kind in _KINDS
        if types.heads(kind)
    ]
    summary = (say("Heads of known kinds: {named}.", named=Markup("; ").join(named)),) if named else ()
    return Section("kinds", "Kinds of head", summary, tuple(blocks))


def _waves(found: ToyFindings) -> Section | None:
    """The embedding of numbers that are added, as waves."""
    if not isinstance(found.data, ModularAdditionDataset):
        return None
    p = found.data.p
    models = {"before training": found.first, "after": found.model}
    power = {name: fourier_power(model.W_E[:p].cpu()) for name, model in models.items() if model is not None}
    ranked = power["after"].sort(descending=True).values.cumsum(0)
    summary = say(
        "<b>{n}</b> of {of} frequencies hold {share} of what differs between the numbers' embeddings.",
        n=int((ranked < _POWER).sum()) + 1,
        of=len(ranked),
        share=percent(_POWER),
    )
    caption = Caption(
        say("How much of what differs between the numbers' embeddings is a wave of each frequency."),
        say("Sines and cosines over the numbers modulo {p}, fitted to the rows of <code>W_E</code>.", p=p),
        say("Blue is the model as it is, grey as it was before training."),
    )
    return Section("waves", "Waves in the embedding", (summary,), (Figure(fourier_bars(power, data="W_E"), caption),))


def _numbers(found: ToyFindings, tables: Mapping[str, str]) -> Section:
    """Links to the tables."""
    links = tuple((say('<a href="{n}"><code>{n}</code></a>', n=name), what) for name, what in tables.items())
    words = say("Losses are in nats. All is measured on {data}.", data=repr(found.data))
    return Section("numbers", "The numbers", (), (FactList("Tables beside this page", links), Prose(words)))
