"""Arguments and options that several commands have, as types of their parameters."""

from pathlib import Path
from typing import Annotated

import typer

from headscope.data.hub import DATASETS

# What to run on

Model = Annotated[
    str,
    typer.Argument(
        help="A name that `headscope models` lists, a Hugging Face hub id, a local checkpoint folder, or a GGUF file."
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="A .txt, .jsonl or .parquet file to run on, or a file with rows of token ids: .npy, .safetensors or "
        ".json. Default: generated small English.",
        show_default=False,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help=f"A Hugging Face dataset to run on instead of a file: {', '.join(DATASETS)}. Needs the extra "
        "hf-datasets, and a network or its cache.",
        show_default=False,
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Tokens to run on, at most; time grows with them.")]
SeqLen = Annotated[
    int | None,
    typer.Option(help="Tokens per sequence. Default: the model's context, at most 256.", show_default=False),
]
AblationTokens = Annotated[int, typer.Option(help="Tokens to ablate every head on, at most; 0 leaves ablation out.")]
MaxTokensOrFewer = Annotated[
    int | None,
    typer.Option(help="Tokens to run on, at most. Default: 4096, or what --minutes allow.", show_default=False),
]
AblationTokensOrFewer = Annotated[
    int | None,
    typer.Option(
        help="Tokens to ablate every head on, at most; 0 leaves ablation out. Default: 1024, or what --minutes allow.",
        show_default=False,
    ),
]
IncludeBos = Annotated[bool, typer.Option(help="Count BOS positions.")]
Task = Annotated[
    Path | None,
    typer.Option(
        help="Prompts of your own: a .csv or .jsonl file with the columns prompt, correct, incorrect, and optionally "
        "corrupted, label and cluster, the same for prompts that are not independent (prompts of a .jsonl file may be "
        "lists of token ids). Default: indirect object identification.",
        show_default=False,
    ),
]
Prompts = Annotated[int, typer.Option(help="Number of prompts to generate, without a file of your own.")]
PromptType = Annotated[str, typer.Option(help="Kind of generated prompts: mixed, ABBA or BABA.")]
Seed = Annotated[int, typer.Option(help="Seed of the generated prompts.")]

# Who measures

Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Measure in so many processes on this machine, which share the run in --out; with --ray, in so many "
        "workers of the cluster.",
        show_default=False,
    ),
]
ReportWorkers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Measure what is streamed in so many processes on this machine, in shards.", show_default=False
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|local",
        help="Measure on a Ray cluster, such as auto or ray://head:10001, or one started on this machine (local). "
        "Needs the extra ray.",
        show_default=False,
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs of each worker of --ray, where its model goes. Default: none.", show_default=False),
]
WorkerLines = Annotated[
    bool, typer.Option("--worker-lines", help="With --workers or --ray, print a line for each shard that is done.")
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Measure one part of N of the run in --out, I from 0 to N - 1, as the tasks of a SLURM array do; "
        "headscope merge puts them together.",
        show_default=False,
    ),
]
ShardTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens of a shard, with --workers, --ray or --shard. Default: 32768, less for little text.",
        show_default=False,
    ),
]

# What to do with it

Top = Annotated[int, typer.Option(min=1, help="Number of rows to print at each end of a ranking.")]
Page = Annotated[Path, typer.Option(file_okay=False, help="The folder to write to.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        file_okay=False, help="A folder for the figures, the numbers as parquet, and the result.", show_default=False
    ),
]


def _no_file(out: str | None) -> str | None:
    if out is not None and Path(out).is_file():
        raise typer.BadParameter(f"Directory '{out}' is a file.")
    return out


Run = Annotated[
    str | None,
    typer.Option(
        callback=_no_file,
        metavar="DIRECTORY|URL",
        help="A folder to keep the run in: its result.safetensors, and what --resume needs.",
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run that --out holds, if any.")]
ResumeReport = Annotated[
    bool, typer.Option("--resume", help="Continue the report that was stopped in --out, if any: all else as it was.")
]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]
