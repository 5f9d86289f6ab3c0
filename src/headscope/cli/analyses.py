"""Commands that run one analysis on a text and print its rankings: `headscope prompt`, `entropy`, `ablate`."""

from typing import Annotated, Any, Literal

import typer
from torch import Tensor

from headscope.analysis.ablation.ablate import Effect, Value, ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.components import all_heads, component_sets
from headscope.analysis.lens.entropy import EntropyResult, measure_entropy
from headscope.cli.base import options
from headscope.cli.base.commands import app, command, each_of, ends, kept_run, listed, texts_of
from headscope.cli.base.foretelling import foretold
from headscope.cli.base.loading import load
from headscope.cli.scale import engine_of
from headscope.compat.prompt import test_prompt
from headscope.model.checkpoints.names import DEMO
from headscope.model.transformer import HookedTransformer
from headscope.ops.kernels.interface import Precision
from headscope.report import ABLATION_TOKENS, MAX_TOKENS
from headscope.report.costs import ablation_work, entropy_work
from headscope.report.plan import Part
from headscope.report.words import count

__all__ = ["ablate", "entropy", "prompt"]


@command(
    app,
    'headscope prompt headscope-demo "When Mary and John went to the store, John gave a drink to" Mary',
    'headscope prompt gpt2 "The capital of France is" Paris --top-k 5',
    loads_model=True,
)
def prompt(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="The text before the answer.", show_default=False)],
    answer: Annotated[str, typer.Argument(help="The answer to look for.", show_default=False)],
    top_k: Annotated[int, typer.Option(help="Number of most likely tokens to list.")] = 10,
    prepend_space_to_answer: Annotated[
        bool, typer.Option("--space/--no-space", help="Put a space before the answer, unless it has one.")
    ] = True,
    prepend_bos: Annotated[
        bool | None, typer.Option("--bos/--no-bos", help="Put BOS before the prompt. Default: the model's own choice.")
    ] = None,
) -> None:
    """Show the rank, logit and probability of an answer to a prompt, beside the most likely tokens."""
    test_prompt(
        prompt,
        answer,
        load(model),
        prepend_space_to_answer=prepend_space_to_answer,
        prepend_bos=prepend_bos,
        top_k=top_k,
    )


@command(
    app,
    "headscope entropy",
    "headscope entropy gpt2 --text story.txt --out story-entropy",
    "headscope entropy gpt2 --text story.txt --out story-entropy --resume",
    loads_model=True,
)
def entropy(
    model: options.Model = DEMO,
    text: options.Text = None,
    dataset: options.Dataset = None,
    out: options.Run = None,
    resume: options.Resume = False,
    workers: options.Workers = None,
    ray: options.Ray = None,
    gpus: options.Gpus = None,
    shard: options.Shard = None,
    shard_tokens: options.ShardTokens = None,
    worker_lines: options.WorkerLines = False,
    baseline: Annotated[
        Literal["zero", "mean"], typer.Option(help="Subtract nothing from a component's output, or its mean.")
    ] = "zero",
    scale: Annotated[
        Literal["final", "own"], typer.Option(help="Final norm's scale: the final state's, or each state's own.")
    ] = "final",
    lens_bias: Annotated[bool, typer.Option(help="Use the unembedding's bias at every state.")] = True,
    include_bos: options.IncludeBos = False,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Precision of the heads' products: bfloat16 is slightly less exact, and faster where the processor "
            "has instructions for it; tf32 and bfloat16x3 are between, and need a GPU."
        ),
    ] = "float32",
    max_tokens: options.MaxTokens = MAX_TOKENS,
    seq_len: options.SeqLen = None,
    top: options.Top = 10,
    progress: options.Progress = True,
) -> None:
    """Measure what each head and MLP does to the entropy of the prediction, and rank the heads."""
    engine = engine_of(
        model,
        out,
        workers=workers,
        ray=ray,
        gpus=gpus,
        shard=shard,
        shard_tokens=shard_tokens,
        worker_lines=worker_lines,
    )
    texts = texts_of(text, dataset)
    with kept_run(model, texts, max_tokens, seq_len, out, resume, engine) as (loaded, tokens, run):
        part = Part("entropy", count(tokens.numel(), "token"), entropy_work(loaded, tokens.numel(), baseline=baseline))
        with foretold(loaded, [part], shown=progress and not resume and engine is None) as within, within("entropy"):
            result = measure_entropy(
                loaded,
                tokens,
                baseline=baseline,
                scale=scale,
                lens_bias=lens_bias,
                include_bos=include_bos,
                precision=precision,
                progress=progress,
                **run,
            )
        typer.echo(_entropy_table(result, top))


@command(
    app,
    "headscope ablate",
    "headscope ablate gpt2 --heads 10.7,11.10 --text story.txt",
    "headscope ablate gpt2 --heads '10.7+11.10, mlp0' --value mean --effect direct --positions 5",
    loads_model=True,
)
def ablate(
    model: options.Model = DEMO,
    text: options.Text = None,
    dataset: options.Dataset = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="Components to ablate, separated by commas: 10.7 is head 7 of layer 10, mlp3 an MLP, 10.7+11.10 a "
            "set ablated together. Default: every head.",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        list[str],
        typer.Option(
            "--value",
            callback=each_of(Value),
            metavar="<zero|mean|resample>",
            help="What replaces the output. May be given several times.",
        ),
    ] = ["zero", "mean"],  # noqa: B006
    effects: Annotated[
        list[str],
        typer.Option(
            "--effect",
            callback=each_of(Effect),
            metavar="<patched|direct|indirect>",
            help="patched: recompute everything after it; direct: change the final stream alone; indirect: all but the "
            "direct effect. May be given several times.",
        ),
    ] = ["patched", "direct"],  # noqa: B006
    mean_over: Annotated[
        Literal["data", "position"], typer.Option(help="Take the mean over all positions, or at each position.")
    ] = "data",
    scale: Annotated[
        Literal["final", "own"],
        typer.Option(help="Final norm's scale in direct and indirect effects: the clean run's, or its own."),
    ] = "final",
    include_bos: options.IncludeBos = False,
    out: options.Run = None,
    resume: options.Resume = False,
    workers: options.Workers = None,
    ray: options.Ray = None,
    gpus: options.Gpus = None,
    shard: options.Shard = None,
    shard_tokens: options.ShardTokens = None,
    worker_lines: options.WorkerLines = False,
    max_tokens: options.MaxTokens = ABLATION_TOKENS,
    seq_len: options.SeqLen = None,
    top: options.Top = 10,
    positions: Annotated[
        int, typer.Option(min=0, help="Number of positions to print where the first component matters most.")
    ] = 0,
    progress: options.Progress = True,
) -> None:
    """Measure the next-token loss without each head, and rank the heads by how much they are missed."""
    checked: Any = {"values": values, "effects": effects}  # by `each_of`
    engine = engine_of(
        model,
        out,
        workers=workers,
        ray=ray,
        gpus=gpus,
        shard=shard,
        shard_tokens=shard_tokens,
        worker_lines=worker_lines,
    )
    texts = texts_of(text, dataset)
    with kept_run(model, texts, max_tokens, seq_len, out, resume, engine) as (loaded, tokens, run):
        part = _ablation_part(loaded, tokens, listed(heads), values, effects)
        with foretold(loaded, [part], shown=progress and not resume and engine is None) as within, within("ablation"):
            result = ablate_heads(
                loaded,
                tokens,
                heads=listed(heads),
                **checked,
                mean_over=mean_over,
                scale=scale,
                include_bos=include_bos,
                progress=progress,
                **run,
            )
        typer.echo(_ablation_table(result, top, positions))


def _ablation_part(
    model: HookedTransformer, tokens: Tensor, heads: list[str] | None, values: list[str], effects: list[str]
) -> Part:
    sets = [(head,) for head in all_heads(model.cfg)] if heads is None else component_sets(model.cfg, heads)
    layers = [min(each.layer for each in together) for together in sets]
    says = f"{count(tokens.numel(), 'token')}, {count(len(sets), 'component')}, {', '.join((*values, *effects))}"
    return Part("ablation", says, ablation_work(model, tokens.numel(), layers=layers, values=values, effects=effects))


def _ablation_table(result: AblationResult, top: int, positions: int) -> str:
    n = len(result.component_labels)
    parts = [
        str(result.info),
        f"Loss {float(result.mean().loss):.4f} nats. Ablated minus original, ± one standard error:",
    ]
    for value in result.values:
        for effect in result.effects:
            parts.append(f"{value}, {effect}\n{ends(result.top(n, value=value, effect=effect), top)}")
    if positions:
        best = result.top(1)[0].label
        for largest, what in ((True, "helps"), (False, "costs")):
            places = result.top_positions(positions, component=best, largest=largest)
            parts.append(f"Where {best} {what} most ({result.values[0]}, {result.effects[0]})\n{places}")
    return "\n\n".join(parts)


def _entropy_table(result: EntropyResult, top: int) -> str:
    means = result.mean()
    width = max(map(len, means.state_labels))
    states = (f"{label:<{width}}  {value:7.3f}" for label, value in zip(means.state_labels, means.resid, strict=True))
    n = means.n_layers * means.n_heads
    rankings = (ends(means.top(n, by=by), top) for by in ("diff", "marginal"))
    return "\n\n".join([str(result.info), "\n".join(["entropy at each state (nats)", *states]), *rankings])
