"""The commands that run one analysis and print what it found: `headscope prompt`, `entropy`, `ablate`."""

from enum import StrEnum
from typing import Annotated

import typer

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.lens.entropy import EntropyResult, measure_entropy
from headscope.cli.shared import (
    MaxTokensOption,
    ModelArgument,
    OutOption,
    ProgressOption,
    ResumeOption,
    SeqLenOption,
    TextOption,
    app,
    command,
    kept_run,
    texts_of,
)
from headscope.compat.prompt import test_prompt
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.hub import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.report import ABLATION_TOKENS, MAX_TOKENS, token_rows

__all__ = ["ablate", "entropy", "prompt"]


class Baseline(StrEnum):
    """What a component is measured against."""

    ZERO = "zero"
    MEAN = "mean"


class Scale(StrEnum):
    """Whose scale the final norm has."""

    FINAL = "final"
    OWN = "own"


class Precision(StrEnum):
    """What the heads' products are made in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Value(StrEnum):
    """What takes an ablated output's place."""

    ZERO = "zero"
    MEAN = "mean"
    RESAMPLE = "resample"


class MeanOver(StrEnum):
    """What means are taken over."""

    DATA = "data"
    POSITION = "position"


class Effect(StrEnum):
    """Along which paths an ablation goes."""

    PATCHED = "patched"
    DIRECT = "direct"
    INDIRECT = "indirect"


@command(
    app,
    examples=(
        'headscope prompt headscope-demo "When Mary and John went to the store, John gave a drink to" Mary',
        'headscope prompt gpt2 "The capital of France is" Paris --top-k 5',
    ),
)
def prompt(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The text before the answer.", show_default=False)],
    answer: Annotated[str, typer.Argument(help="The answer to look for.", show_default=False)],
    top_k: Annotated[int, typer.Option(help="How many of the likeliest tokens to list.")] = 10,
    prepend_space_to_answer: Annotated[
        bool, typer.Option("--space/--no-space", help="Put a space before the answer, unless it has one.")
    ] = True,
    prepend_bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Put a BOS token before the prompt. Default: as the model has it."),
    ] = None,
) -> None:
    """Show where an answer stands among what the model would say to a prompt: rank, logit, probability, top tokens."""
    test_prompt(
        prompt,
        answer,
        HookedTransformer.from_pretrained(model),
        prepend_space_to_answer=prepend_space_to_answer,
        prepend_bos=prepend_bos,
        top_k=top_k,
    )


@command(
    app,
    examples=(
        "headscope entropy",
        "headscope entropy gpt2 --text story.txt --out story-entropy",
        "headscope entropy gpt2 --text story.txt --out story-entropy --resume",
    ),
)
def entropy(
    model: ModelArgument = DEMO,
    text: TextOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    baseline: Annotated[
        Baseline, typer.Option(help="zero: take components whole; mean: minus their mean over the text.")
    ] = Baseline.ZERO,
    scale: Annotated[
        Scale, typer.Option(help="The final norm's scale: that of the final state, or each state's own.")
    ] = Scale.FINAL,
    lens_bias: Annotated[bool, typer.Option(help="Use the unembedding's bias at every state.")] = True,
    include_bos: Annotated[bool, typer.Option(help="Let BOS positions count.")] = False,
    precision: Annotated[
        Precision,
        typer.Option(help="Of the heads' products: bfloat16 is faster and a little less exact."),
    ] = Precision.FLOAT32,
    max_tokens: MaxTokensOption = MAX_TOKENS,
    seq_len: SeqLenOption = None,
    top: Annotated[int, typer.Option(help="How many heads to print at each end.")] = 10,
    progress: ProgressOption = True,
) -> None:
    """Measure what each head and MLP does to the entropy of the prediction, and print the strongest."""
    with kept_run(out, resume):
        texts, described = texts_of(text)
        loaded = HookedTransformer.from_pretrained(model)
        tokens = token_rows(loaded, texts, max_tokens=max_tokens, seq_len=seq_len)
        result = measure_entropy(
            loaded,
            tokens,
            baseline=baseline.value,
            scale=scale.value,
            lens_bias=lens_bias,
            include_bos=include_bos,
            precision=precision.value,
            describe=described,
            progress=progress,
            out=out,
            resume=resume,
        )
    typer.echo(_entropy_table(result, top))
    if out is not None:
        typer.echo(f"\nSaved to {out / 'result.safetensors'}")


@command(
    app,
    examples=(
        "headscope ablate",
        "headscope ablate gpt2 --heads 10.7,11.10 --text story.txt",
        "headscope ablate gpt2 --heads '10.7+11.10, MLP 0' --value mean --effect direct --positions 5",
    ),
)
def ablate(
    model: ModelArgument = DEMO,
    text: TextOption = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="What to ablate, separated by commas: 10.7 is head 7 of layer 10; 'MLP 3' an MLP; 10.7+11.10 goes "
            "together. Default: every head.",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        list[Value], typer.Option("--value", help="What takes its place; may be given several times.")
    ] = [Value.ZERO, Value.MEAN],  # noqa: B006
    effects: Annotated[
        list[Effect],
        typer.Option(
            "--effect",
            help="patched: everything after it is computed again; direct: only the final stream changes; indirect: all "
            "but its direct effect. May be given several times.",
        ),
    ] = [Effect.PATCHED, Effect.DIRECT],  # noqa: B006
    mean_over: Annotated[
        MeanOver, typer.Option(help="The mean over all positions, or at each position over sequences.")
    ] = MeanOver.DATA,
    scale: Annotated[
        Scale, typer.Option(help="The final norm's scale in direct and indirect effects: the clean run's, or its own.")
    ] = Scale.FINAL,
    include_bos: Annotated[bool, typer.Option(help="Let BOS positions count.")] = False,
    out: OutOption = None,
    resume: ResumeOption = False,
    max_tokens: MaxTokensOption = ABLATION_TOKENS,
    seq_len: SeqLenOption = None,
    top: Annotated[int, typer.Option(help="How many components to print at each end.")] = 10,
    positions: Annotated[
        int, typer.Option(help="How many of the positions where the first component matters most to print.")
    ] = 0,
    progress: ProgressOption = True,
) -> None:
    """Measure what the loss of the next token becomes without each head, and print the heads missed most and least."""
    if top < 1 or positions < 0:
        raise InvalidInputError(f"top must be at least 1 and positions at least 0; got {top} and {positions}.")
    with kept_run(out, resume):
        texts, described = texts_of(text)
        loaded = HookedTransformer.from_pretrained(model)
        tokens = token_rows(loaded, texts, max_tokens=max_tokens, seq_len=seq_len)
        result = ablate_heads(
            loaded,
            tokens,
            heads=None if heads is None else [part for part in heads.split(",") if part.strip()],
            values=[value.value for value in values],
            effects=[effect.value for effect in effects],
            mean_over=mean_over.value,
            scale=scale.value,
            include_bos=include_bos,
            describe=described,
            progress=progress,
            out=out,
            resume=resume,
        )
    typer.echo(_ablation_table(result, top, positions))
    if out is not None:
        typer.echo(f"\nSaved to {out / 'result.safetensors'}")


def _ablation_table(result: AblationResult, top: int, positions: int) -> str:
    n = len(result.component_labels)
    lines = [str(result.info), "", f"Loss {float(result.mean().loss):.4f} nats. Ablated minus original, ± one error:"]
    for value in result.values:
        for effect in result.effects:
            ranked = result.top(n, value=value, effect=effect)
            shown = list(ranked) if n <= 2 * top else [*ranked[:top], *ranked[n - top :]]
            lines += ["", f"{value}, {effect} (nats)"]
            for number, score in enumerate(shown):
                if n > 2 * top and number == top:
                    lines.append("  ...")
                lines.append(f"  {score.label:<12}{score.loss_diff:>+9.4f} ± {score.error:.4f}")
    if positions:
        best = result.top(1)[0].label
        for largest, what in ((True, "helps"), (False, "costs")):
            places = result.top_positions(positions, component=best, largest=largest)
            lines += ["", f"Where {best} {what} most ({result.values[0]}, {result.effects[0]})", str(places)]
    return "\n".join(lines)


def _entropy_table(result: EntropyResult, top: int) -> str:
    if top < 1:
        raise InvalidInputError(f"top must be at least 1; got {top}.")
    means = result.mean()
    n = means.n_layers * means.n_heads
    lines = [str(result.info), "", "Entropy at each state (nats)"]
    width = max(map(len, means.state_labels))
    lines += [
        f"  {label:<{width}}  {value:7.3f}"
        for label, value in zip(means.state_labels, means.resid.tolist(), strict=True)
    ]
    for title, largest in (("Heads that raise entropy most", True), ("Heads that lower entropy most", False)):
        lines += ["", f"{title} (nats)", f"  {'head':<8}{'diff':>9}{'marginal':>11}"]
        for score in means.top(min(top, n), by="diff", largest=largest):
            marginal = float(means.marginal[score.layer, score.head])
            lines.append(f"  {score.label:<8}{score.value:>+9.4f}{marginal:>+11.4f}")
    return "\n".join(lines)
