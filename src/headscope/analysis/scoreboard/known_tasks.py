"""The task of a model of known answers: its prompts as a `Task`, and how many of them it does."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.prompts.metrics import NumberMetric
from headscope.analysis.prompts.task import Task
from headscope.analysis.scoreboard.truth import Example, Truth
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["known_task", "share_right", "thirds"]

NEAR = 0.02  # a number is right if it is as near as this to the true one
_ROWS = 32


def known_task(model: HookedTransformer, truth: Truth, seed: int = 0) -> Task:
    """Return the task: of its examples where both runs have outputs that differ, or of repeated random tokens.

    Raises:
        InvalidInputError: If there are neither examples that differ nor an induction head to make prompts for.
    """
    if truth.examples:
        return _of_examples(_paired(truth.examples), truth.numerical)
    if "induction" in {*truth.kinds, *truth.some}:
        return _of_repeats(model, truth, seed)
    raise InvalidInputError(f"nothing is known of what {truth.name!r} does: no examples, and no induction head.")


@torch.no_grad()
def share_right(model: HookedTransformer, truth: Truth, task: Task | None) -> float:
    """Return how much of its task a model does: the share of clean prompts, or of the text that it should write.

    An answer is right if its logit is the highest, a number if it is within 0.02.
    """
    if truth.text is not None and model.tokenizer is not None:
        return _text_right(model, truth.text)
    if task is None:
        return float("nan")
    logits = model(task.clean_tokens, attention_mask=task.attention_mask)
    read = logits[torch.arange(len(task)), task.positions]
    if truth.numerical:
        wanted = torch.tensor([_at(each.output, _position(each)) for each in _paired(truth.examples)])
        return float(wide((read[:, 0] - wanted).abs() <= NEAR).mean())
    return float(wide(read.argmax(-1) == task.correct[:, 0]).mean())


def _text_right(model: HookedTransformer, text: str) -> float:
    """The share of a text that greedy generation gives, from its start to the first letter that differs."""
    n = len(model.to_tokens(text, prepend_bos=False, truncate=False)[0])
    bos = torch.tensor([[model.tokenizer.bos_token_id]])
    written = model.generate(
        bos, max_new_tokens=n, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
    )
    said = model.tokenizer.decode(written[0, 1:].tolist(), skip_special_tokens=True).strip()
    wanted = text.strip()
    same = next(
        (at for at, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), min(len(said), len(wanted))
    )
    return same / len(wanted)


def _paired(examples: Sequence[Example]) -> list[Example]:
    """Examples whose output differs from that of their corrupted prompt; without one, the clean prompt of another."""
    found = []
    for number, each in enumerate(examples):
        others = [each] if each.corrupted is not None else [*examples[number + 1 :], *examples[:number]]
        for other in others:
            corrupted, output = other.corrupted or other.clean, other.corrupted_output or other.output
            if len(corrupted) != len(each.clean):
                continue
            pair = Example(each.clean, each.output, corrupted, output, each.position)
            if (at := _position(pair)) is not None and _at(each.output, at) != _at(output, at):
                found.append(pair)
                break
    return found


def _position(example: Example) -> int | None:
    """The position at which an example is read: as it says, or at the last position at which the outputs differ."""
    if example.position is not None:
        return example.position
    assert example.corrupted_output is not None
    both = list(zip(example.output, example.corrupted_output, strict=True))
    return next(
        (at for at in range(len(both) - 1, -1, -1) if None not in both[at] and both[at][0] != both[at][1]), None
    )


def _at(output: Sequence[float | None] | None, at: int | None) -> float:
    assert output is not None and at is not None
    value = output[at]
    return float("nan") if value is None else float(value)


def _of_examples(pairs: Sequence[Example], numerical: bool) -> Task:
    if not pairs:
        raise InvalidInputError("no example has a corrupted prompt of its length with another output.")
    at = [_position(each) for each in pairs]
    right = [_at(each.output, where) for each, where in zip(pairs, at, strict=True)]
    wrong = [_at(each.corrupted_output, where) for each, where in zip(pairs, at, strict=True)]
    clean, corrupted = [each.clean for each in pairs], [each.corrupted for each in pairs]
    if numerical:
        metric = NumberMetric.between(torch.tensor(right), torch.tensor(wrong), torch.tensor(at))
        return Task.from_tokens(clean, corrupted, metric=metric)
    answers = [[int(each) for each in side] for side in (right, wrong)]
    return Task.from_tokens(clean, corrupted, correct=answers[0], incorrect=answers[1], positions=torch.tensor(at))


def thirds(model: HookedTransformer, special: Sequence[int], bos: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return random rows that say one piece in each third, and where it starts, `[row, third]`."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([token for token in range(model.cfg.d_vocab) if token not in {*special, bos}])
    width = model.cfg.n_ctx - (bos is not None)
    third = width // 3
    piece = max(2, third * 4 // 7)
    tokens = allowed[torch.randint(len(allowed), (_ROWS, width), generator=generator)]
    starts = torch.randint(third - piece + 1, (_ROWS, 3), generator=generator) + torch.arange(3) * third
    at = torch.arange(piece)
    for row, (first, *others) in zip(tokens, starts.tolist(), strict=True):
        for other in others:
            row[other + at] = row[first + at].clone()
    if bos is not None:
        tokens, starts = torch.nn.functional.pad(tokens, (1, 0), value=bos), starts + 1
    return tokens, starts


def _of_repeats(model: HookedTransformer, truth: Truth, seed: int) -> Task:
    """Pieces said three times: what follows a token in the last one.

    In the corrupted prompts that token has changed places with another one in the first two, so that what followed the
    other follows it now; both the heads that look one back and those that look for the token get something else.
    """
    tokens, starts = thirds(model, truth.special, truth.bos, seed)
    piece = max(2, (model.cfg.n_ctx - (truth.bos is not None)) // 3 * 4 // 7)
    if piece < 4:
        raise InvalidInputError(f"a context of {model.cfg.n_ctx} tokens is too short to say something three times.")
    generator = torch.Generator().manual_seed(seed + 1)
    rows = torch.arange(len(tokens))
    step = torch.randint(1, piece, (len(tokens),), generator=generator)  # of the answer in the piece
    further = 1 + (step - 1 + 2 + torch.randint(0, max(1, piece - 4), (len(tokens),), generator=generator)) % (
        piece - 1
    )
    corrupted = tokens.clone()
    for third in (0, 1):
        here, there = starts[:, third] + step - 1, starts[:, third] + further - 1
        corrupted[rows, here], corrupted[rows, there] = tokens[rows, there], tokens[rows, here]
    position = starts[:, 2] + step - 1
    right, wrong = tokens[rows, position + 1], tokens[rows, starts[:, 2] + further]
    mask = torch.arange(tokens.shape[1]) <= position[:, None]
    keep: Int[Tensor, " row"] = (right != wrong).nonzero()[:, 0]
    return Task.from_tokens(
        tokens[keep], corrupted[keep], correct=right[keep], incorrect=wrong[keep], positions=position[keep],
        attention_mask=mask[keep],
    )  # fmt: skip
