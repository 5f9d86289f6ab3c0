"""One vocabulary: what a direction, a scale, a position or a hook means does not depend on the kind of patching.

Each function here changes the same thing, so that one plain run with one hook says what every one of them is to give:
the last stream before the final norm, at some positions. Attribution is held to a thousandth of that.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
from three_passes import random_task
from tiny import tiny_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.gradient import attribution_patch
from headscope.analysis.patching.path import path_patch, path_patch_sweep
from headscope.analysis.prompts.positions import Positions
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, NotFiniteError, UnknownNameError

HEAD, POINT = (1, 2), "blocks.1.attn.hook_z"

# Each patches one head of the last layer, which only the final state reads.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "activation": partial(activation_patch, sites="z", progress=False),
    "attribution": partial(attribution_patch, sites="z", progress=False),
    "path": partial(path_patch, senders=[HEAD, "mlp1"], receivers="final", freeze_mlps=False),
    "sweep": partial(path_patch_sweep, receivers="final", progress=False),
}
every_function = pytest.mark.parametrize("kind", FUNCTIONS)


def one_value(kind: str, found: Any) -> float:
    """The effect of the head at all positions together."""
    if kind == "attribution":
        return float(found.over_positions("z")[HEAD])
    if kind == "activation":
        return float(found["z"][HEAD])
    return float(found) if kind == "path" else float(found.values[HEAD])


class Plain:
    """Full forward passes with one hook."""

    def __init__(self, model: HookedTransformer, task: Task, direction: str, metric: Any = None) -> None:
        self.model, self.task, self.metric = model, task, metric or task.logit_difference
        self.given = {"attention_mask": task.attention_mask}
        runs = (task.clean_tokens, task.corrupted_tokens)
        self.base, other = runs if direction == "noising" else runs[::-1]
        with torch.no_grad():
            self.logits, self.cache = model.run_with_cache(self.base, **self.given)
            other_logits, self.other = model.run_with_cache(other, **self.given)
        ends = float(self.metric(self.logits)), float(self.metric(other_logits))
        self.clean, self.corrupted = ends if direction == "noising" else ends[::-1]
        self.before = ends[0]

    def change(self, kind: str, where: Tensor) -> float:
        """The metric's change when the head changes at these positions, as each kind of patching defines it."""
        size = 1e-6 if kind == "attribution" else 1.0

        def put(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, HEAD[1]][where] += size * (self.other[POINT] - self.cache[POINT])[:, :, HEAD[1]][where]
            return z

        def put_mlp(out: Tensor, hook: Any) -> Tensor:
            # In a direct path no MLP sees the head; with the MLP a sender too, it gives its output of the other run.
            out = self.cache[hook.name].clone()
            if kind == "path":
                out[where] = self.other[hook.name][where]
            return out

        hooks: list[Any] = [(POINT, put)]
        if kind in ("path", "sweep"):
            hooks.append(("blocks.1.hook_mlp_out", put_mlp))
        with torch.no_grad():
            logits = self.model.run_with_hooks(self.base, fwd_hooks=hooks, **self.given)
        return (float(self.metric(logits)) - self.before) / size


@every_function
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("scale", ["share", "metric"])
@pytest.mark.parametrize("of_ones_own", [False, True], ids=["logit difference", "own metric"])
def test_a_value_is_the_change_of_a_plain_run(kind: str, direction: str, scale: str, of_ones_own: bool) -> None:
    model, task = tiny_model(), random_task()

    def metric(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[:, 1:4, 7].mean()

    own = metric if of_ones_own else None
    found = FUNCTIONS[kind](model, task, direction=direction, scale=scale, metric=own)
    plain = Plain(model, task, direction, own)
    wanted = plain.change(kind, task.attention_mask)
    if scale == "share":
        wanted /= plain.clean - plain.corrupted
    precision = {"activation": 1e-6, "attribution": 1e-5}.get(kind, 1e-10)  # float32; a slope; float64
    assert abs(wanted) > 1e-3
    assert one_value(kind, found) == pytest.approx(wanted, rel=precision, abs=precision)
    assert float(found.clean) == pytest.approx(plain.clean, abs=1e-9)
    assert float(found.corrupted) == pytest.approx(plain.corrupted, abs=1e-9)
    assert found.direction == direction


@every_function
def test_denoising_by_shares_is_what_one_gets_unasked(kind: str) -> None:
    model, task = tiny_model(), random_task()
    unasked = FUNCTIONS[kind](model, task)
    asked = FUNCTIONS[kind](model, task, direction="denoising", scale="share")
    assert torch.equal(unasked.values, asked.values) and str(unasked) == str(asked)
    assert "denoising" in str(unasked)


POSITIONS: dict[str, tuple[Any, list[list[int]]]] = {
    "end": ("end", [[5, 3, 4]]),
    "a word": ("S2", [[4, 2, 3]]),
    "a number": (1, [[1, 1, 1]]),
    "a number from behind": (-2, [[4, 2, 3]]),
    "before a word": ("S2-1", [[3, 1, 2]]),
    "after a word": (["S2 + 1", "end-1"], [[5, 3, 4], [4, 2, 3]]),
    "numbers as text": (["2", "-1"], [[2, 2, 2], [5, 3, 4]]),
    "a tensor": (torch.tensor([5, 0, 2]), [[5, 0, 2]]),
    "a tensor from behind": (torch.tensor([-1, 0, -3]), [[5, 0, 2]]),
    "a tensor of one": (torch.tensor(3), [[3, 3, 3]]),
    "a list": (["S2", 0, torch.tensor([3, 1, 2]), -1], [[4, 2, 3], [0, 0, 0], [3, 1, 2], [5, 3, 4]]),
    "a tuple": ((0, 3), [[0, 0, 0], [3, 3, 3]]),
    "a range": (range(2), [[0, 0, 0], [1, 1, 1]]),
}


@every_function
@pytest.mark.parametrize("form", POSITIONS)
def test_positions_mean_the_same(kind: str, form: str) -> None:
    model, task = tiny_model(), random_task()
    asked, at = POSITIONS[form]
    found = FUNCTIONS[kind](model, task, positions=asked, scale="metric")
    where = torch.zeros_like(task.attention_mask).scatter(1, torch.tensor(at).T, True)
    wanted = Plain(model, task, "denoising").change(kind, where)
    precision = 1e-6 if kind in ("activation", "attribution") else 1e-10
    assert one_value(kind, found) == pytest.approx(wanted, rel=1e-5, abs=precision)
    if kind in ("activation", "attribution"):
        assert len(found.positions) == len(at)
    else:
        assert found.info.n_positions == int(where.sum())


def test_positions_of_several_tensors_have_names_of_their_own() -> None:
    places = [torch.tensor([3, 1, 2]), "end", torch.tensor([0, 1, 2])]
    assert Positions.of(random_task(), places).names == ("one per prompt (1)", "end", "one per prompt (2)")


@every_function
def test_a_name_with_an_offset_is_of_a_word_and_within_the_prompt(kind: str) -> None:
    model, task = tiny_model(), random_task()
    with pytest.raises(UnknownNameError, match=r"Unknown position 'S3\+1'. Allowed: 'end', 'S2'.* with an offset"):
        FUNCTIONS[kind](model, task, positions="S3+1")
    with pytest.raises(InvalidInputError, match=r"'end\+1' is not a real token of every prompt"):
        FUNCTIONS[kind](model, task, positions="end+1")


@every_function
def test_end_needs_no_named_words(kind: str) -> None:
    model, task = tiny_model(), replace(random_task(pad_left=True), word_idx={})
    found = FUNCTIONS[kind](model, task, positions="end", scale="metric")
    where = torch.zeros_like(task.attention_mask).scatter(1, task.positions[:, None], True)
    wanted = Plain(model, task, "denoising").change(kind, where)
    assert one_value(kind, found) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert str(found.positions) in ("end", "('end',)")


@every_function
def test_hooks_stay_in_force(kind: str) -> None:
    model, task = tiny_model(), random_task()

    def double(value: Tensor, hook: Any) -> Tensor:
        return 2 * value

    without = one_value(kind, FUNCTIONS[kind](model, task, scale="metric"))
    for point in ("blocks.0.hook_attn_out", "blocks.1.hook_mlp_out", "ln_final.hook_normalized"):
        model.add_hook(point, double)
        found = FUNCTIONS[kind](model, task, scale="metric")
        model.reset_hooks()
        with model.hooks([(point, double)]):
            plain = Plain(model, task, "denoising")
            wanted = plain.change(kind, task.attention_mask)
        assert one_value(kind, found) == pytest.approx(wanted, rel=1e-5, abs=1e-6), point
        assert float(found.clean) == pytest.approx(plain.clean, abs=1e-9), point
        assert abs(wanted - without) > 1e-3, point


def without_corrupted(task: Task) -> Task:
    return replace(task, corrupted_tokens=None)


def with_the_same(task: Task) -> Task:
    return replace(task, corrupted_tokens=task.clean_tokens)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "direction": (
        {"direction": "noise"}, InvalidInputError, "direction must be one of 'denoising', 'noising'; got 'noise'"
    ),
    "scale": ({"scale": "logits"}, InvalidInputError, "scale must be one of 'share', 'metric'; got 'logits'"),
    "word": ({"positions": "S3"}, UnknownNameError, r"Unknown position 'S3'. Did you mean 'S2'\? Or give a number"),
    "word in a list": ({"positions": ["end", "S3"]}, UnknownNameError, "Unknown position 'S3'"),
    "padding": (
        {"positions": 4}, InvalidInputError, "position 4 is not a real token of every prompt; the shortest has 4 of"
    ),
    "before the first": ({"positions": [-5]}, InvalidInputError, "position -5 is not a real token of every prompt"),
    "far off": ({"positions": 99}, InvalidInputError, "position 99 is not a real token of every prompt"),
    "too few": ({"positions": torch.tensor([1, 2])}, InvalidInputError, "there are 3 prompts, and positions of 2"),
    "half": ({"positions": 1.5}, InvalidInputError, "positions must be names, numbers, a tensor with .*; got 1.5"),
    "truth": ({"positions": True}, InvalidInputError, "positions must be names, numbers, a tensor with .*; got True"),
    "mask": ({"positions": torch.ones(3).bool()}, InvalidInputError, "positions must be names, numbers, a tensor"),
    "none": ({"positions": []}, InvalidInputError, "give at least one position, or None for all"),
    "alone": ({"task": without_corrupted}, InvalidInputError, "patching needs corrupted prompts, and Task.* has none"),
    "same": (
        {"task": with_the_same},
        InvalidInputError,
        "the clean and the corrupted metric are both .*: nothing can be broken or brought back.*scale='metric'",
    ),
    "several numbers": (
        {"metric": lambda logits: logits[:, 0, 0]}, InvalidInputError, r"the metric must give one number .*shape \[3\]"
    ),
    "no number": ({"metric": lambda logits: logits.sum() * torch.nan}, NotFiniteError, "a patched run is not finite"),
}  # fmt: skip


@every_function
@pytest.mark.parametrize("case", REFUSED)
def test_the_same_is_refused_in_the_same_words(kind: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody's calls are type-checked but the tests'.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    options, error, said = REFUSED[case]
    task = random_task()
    changed = options.get("task", lambda task: task)(task)
    options = {name: value for name, value in options.items() if name != "task"}
    with pytest.raises(error, match=said):
        FUNCTIONS[kind](tiny_model(), changed, **options)


def test_labels_say_what_stands_there() -> None:
    task = random_task(pad_left=True)
    strings = tuple(("BOS", *row[1:]) for row in task.str_tokens)
    task = replace(task, str_tokens=strings, word_idx={"start": torch.tensor([0, 2, 1]), "last": torch.tensor([5] * 3)})
    positions = Positions.of(task, ["start", torch.tensor([0, 2, 1]), 5, 4, -1])
    assert positions.names == ("start", "one per prompt", 5, 4, -1)
    assert positions.labels == ("start", "one per prompt", "last", f"{strings[0][4]}…", "last")
    assert str(positions) == "start, one per prompt, 5, 4, -1" and str(Positions.of(task)) == "all"
    assert Positions.of(task).names == tuple(range(6)) and torch.equal(Positions.of(task).mask, task.attention_mask)
