"""`headscope attention`: the reasons why a head looks where it looks."""

from typing import Annotated

import typer
from torch import Tensor

from headscope.analysis.attention.score import attribute_attention
from headscope.analysis.attention.score_result import OTHERS
from headscope.analysis.prompts.positions import number_of, shifted
from headscope.analysis.prompts.task import Task
from headscope.cli.base import options
from headscope.cli.base.commands import app, command, task_of, write_folder
from headscope.cli.base.loading import load
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.names import DEMO
from headscope.views.figures.attention_score import attention_pairs, attention_sides

__all__ = ["attention"]


@command(
    app,
    'headscope attention headscope-demo "When Mary and John went to the store, John gave a drink to" --head 3.2',
    'headscope attention gpt2 "When Mary and John went to the store, John gave a drink to" --head 9.9 --key Mary',
    "headscope attention gpt2 --head 9.9 --key IO --against S1 --prompt-type ABBA --out why",
    loads_model=True,
)
def attention(
    head: Annotated[str, typer.Option(help="The head, such as 9.9.", show_default=False)],
    model: options.Model = DEMO,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The text to look at. Default: many prompts, generated or of --task, over which means are taken.",
            show_default=False,
        ),
    ] = None,
    query: Annotated[
        str,
        typer.Option(
            help="Where it looks from: a position (negative: from the end), end, or a word: of the prompt, if it "
            "stands there once as one token, or a name that all prompts have, such as S2; S2+1 is the token after it."
        ),
    ] = "end",
    key: Annotated[
        str | None,
        typer.Option(
            help="Where it looks, in the same words. Default, with a prompt: where it looks most.", show_default=False
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="A second place, in the same words: why there and not here? Or others: the mean of all other keys, "
            "which is the default with a prompt.",
            show_default=False,
        ),
    ] = None,
    task: options.Task = None,
    prompts: options.Prompts = 100,
    prompt_type: options.PromptType = "mixed",
    seed: options.Seed = 0,
    top: options.Top = 10,
    out: options.Folder = None,
    progress: options.Progress = True,
) -> None:
    """Show why a head looks where it does: its score there, split by what made the query and what made the key."""
    if prompt is not None and task is not None:
        raise InvalidInputError("give a prompt or --task with prompts, not both.")
    data: Task | Tensor
    if prompt is None:
        loaded, data = task_of(model, task, prompts, prompt_type, seed)
        strings = None
    else:
        loaded = load(model)
        data = loaded.to_tokens(prompt)
        strings = loaded.to_str_tokens(data[0])
        against = against or OTHERS
    at, to, less = (None if name is None else _place(name, strings) for name in (query, key, against))
    result = attribute_attention(loaded, data, head, at, to, against=less, progress=progress)
    rankings = [result.top(top, by=by) for by in ("query_parts", "key_parts", "pairs")]
    typer.echo("\n\n".join(map(str, [result, *rankings])))
    if strings is not None:
        looked_at = ", ".join(f"{number} {strings[number]!r}" for number in result.looked_at[0].tolist())
        typer.echo(f"\nLooked from, and at: {looked_at}")
        for side in ("query", "key"):
            rows = result.by_token(side).head(top)
            if len(rows):
                typer.echo(f"\nThe {side} by head and the token it was had from\n{rows.to_string(index=False)}")
    if out is not None:
        figures, frames = (attention_sides(result), attention_pairs(result)), {"pairs": result.to_frame()}
        write_folder(out, "attention", figures, title="Attention", frames=frames, results={"result": result})


def _place(name: str, strings: list[str] | None) -> int | str:
    """A position as a number, or by the name that all prompts have; of a single prompt also by a word in it."""
    number = number_of(name)
    if isinstance(number, int) or strings is None or name == OTHERS or shifted(name)[0] == "end":
        return number
    word, offset = name.strip(), 0
    found = [number for number, string in enumerate(strings) if string.strip() == word]
    if not found:
        word, offset = shifted(word)
        found = [number for number, string in enumerate(strings) if string.strip() == word]
    if len(found) != 1:
        shown = ", ".join(f"{number} {string!r}" for number, string in enumerate(strings))
        stands = f"stands there {len(found)} times, as one token" if found else "is not one token of it"
        raise InvalidInputError(f"the prompt's tokens are {shown}; {name!r} {stands}. Give its number.")
    return found[0] + offset
