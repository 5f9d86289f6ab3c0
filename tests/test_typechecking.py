"""The tests' own type checker: it is on, and it checks shapes and types."""

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import jaxtyping
import pytest
import torch
from jaxtyping import Bool, Float, Int, Shaped, TypeCheckError
from torch import Tensor, nn
from typechecking import Fit, checked

from headscope.errors import unknown_name

Absent = TypeVar("Absent", bound="NotThere")


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeCheckError, match="hint"):
        unknown_name("model", "gtp2", ["gpt2"], hint=3)


def test_shapes_and_types_are_checked() -> None:
    @checked
    def project(x: Float[Tensor, "pos d_model"], w: Float[Tensor, "d_model d_out"], *, name: str = "") -> Tensor:
        return x @ w

    assert project(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(TypeCheckError, match="parameter w="):
        project(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(TypeCheckError, match="parameter name="):
        project(torch.ones(2, 3), torch.ones(3, 4), name=None)


def test_an_axis_has_one_length_within_a_call_and_any_between_calls() -> None:
    @checked
    def inner(x: Float[Tensor, " pos"]) -> Float[Tensor, " pos"]:
        return x[:2]

    @checked
    def outer(x: Float[Tensor, " pos"], y: Float[Tensor, " half"]) -> Float[Tensor, " pos"]:
        return x + inner(y).sum()

    assert outer(torch.ones(4), torch.ones(2)).shape == (4,)
    assert outer(torch.ones(6), torch.ones(2)).shape == (6,)
    with pytest.raises(TypeCheckError, match="inner.. return"):
        outer(torch.ones(4), torch.ones(3))


def test_a_function_made_anew_is_checked_anew() -> None:
    def adder(amount: float, kind: type = int) -> Any:
        @checked
        def add(x: Float[Tensor, " pos"], times: kind, *, more: float = amount) -> Float[Tensor, " pos"]:
            return x + times * amount + more

        return add

    one, two = adder(1.0), adder(2.0)
    for add, amount in ((one, 1.0), (two, 2.0)):
        assert (
            add(torch.zeros(2), 1).tolist() == [2 * amount] * 2 and add(torch.zeros(1), 2, more=0.5) == 2 * amount + 0.5
        )
        with pytest.raises(TypeCheckError, match="adder.*parameter x="):
            add(torch.zeros(2, 2), 1)
        with pytest.raises(TypeCheckError, match="parameter times="):
            add(torch.zeros(2), 1.5)
    # The same code with other hints.
    assert adder(1.0, kind=float)(torch.zeros(1), 1.5) == 2.5


def test_checks_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="concatenate"):
        unknown_name("model", "gtp2", ["gpt2"], hint=3)


def test_fields_are_checked_and_signatures_stay() -> None:
    @checked
    @dataclass
    class Point:
        x: int
        ys: Float[Tensor, " y"]

    @checked
    def lengths(points: "list[Point]", *, scale: float = 1.0) -> Iterator[Float[Tensor, ""]]:
        yield from (point.ys.sum() * scale for point in points)

    assert [float(each) for each in lengths([Point(1, torch.ones(2)), Point(2, torch.ones(3))])] == [2.0, 3.0]
    with pytest.raises(TypeCheckError, match="x='1'"):
        Point("1", torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError, match="scale="):
        list(lengths([], scale=None))  # type: ignore[arg-type]
    assert str(inspect.signature(lengths)).startswith("(points: 'list[Point]', *, scale: float = 1.0) ->")


def test_only_what_cannot_be_looked_up_goes_unchecked() -> None:
    class Chain:
        @checked
        def make(self, kind: type[Absent]) -> Absent:
            return kind()

        @checked
        def then(
            self,
            other: "Chain | None",
            others: "list[NotThere]",
            size: int,
            side: Literal["left"],
        ) -> dict[str, Self]:
            return {"self": self}

    assert Chain().make(int) == 0
    then: Any = Chain().then
    assert then(None, [], 3, "left").keys() == {"self"}
    for size, side in (("3", "left"), (3, "right")):
        with pytest.raises(TypeCheckError):
            then(None, [], size, side)


PLAIN = [
    Float[Tensor, ""], Float[Tensor, " a"], Int[Tensor, "a b"], Bool[Tensor, "b a"], Shaped[Tensor, "a a"],
    Float[Tensor, "3 a"], Float[Tensor, "a _ 1"], Shaped[Tensor, "..."], Float[Tensor, "... a"], Int[Tensor, "a ... b"],
    Float[Tensor, "*a b"], Float[Tensor, "b *a"], Float[Tensor, "b *c a"], jaxtyping.Float64[Tensor, "*c"],
    Float[Float[Tensor, " a"], " b"],
]  # fmt: skip
# What jaxtyping itself is asked.
ODD = [Float[Tensor, "#a b"], Int[Tensor, "*#a b"], Float[Tensor, "a+1 a"], Float[nn.Parameter, "a b"]]
SHAPES = [(), (2,), (3,), (1, 2), (3, 2), (2, 3), (2, 2, 1), (3, 3, 2), (2, 3, 3)]
VALUES = [
    *(torch.ones(shape) for shape in SHAPES),
    *(torch.ones(3, 2, dtype=dtype) for dtype in (torch.int64, torch.bool, torch.float64)),
    *(torch.ones(2, 2, dtype=dtype) for dtype in (torch.int64, torch.bool, torch.float64)),
    nn.Parameter(torch.ones(3, 2)), torch.ones(2, 3, dtype=torch.bfloat16, device="meta"), torch.ones(2, 3).numpy(),
    None, 1.0, [1.0],
]  # fmt: skip
# Of the axes with one length each, and of the variadic ones: whether they may be broadcast, and their lengths.
KNOWN: list[Any] = [
    ({}, {}),
    ({"a": 2, "b": 3}, {}),
    ({"b": 2}, {"a": (False, (3,)), "c": (False, ())}),
    ({}, {"a": (True, (1,))}),
]


@pytest.mark.parametrize("hint", PLAIN + ODD, ids=lambda hint: hint.__name__)
def test_what_fits_is_what_jaxtyping_says(hint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is known of the axes afterwards; on tensors in turn, as of one call, and on others of no tensors."""

    def told(values: Any, known: Any) -> tuple[list[Any], Any]:
        singles, several = known
        memos = (dict(singles), dict(several), {}, {})
        monkeypatch.setattr(jaxtyping._storage._shape_storage, "memo_stack", [memos])
        said = []
        for value in values:
            try:
                said.append(isinstance(value, hint))
            except jaxtyping.AnnotationError:
                said.append("axes unknown")
        return said, jaxtyping._storage.get_shape_memo()[:2]

    cases = [(pair, known) for pair in itertools.product(VALUES, repeat=2) for known in KNOWN]
    quick = [told(*case) for case in cases]
    monkeypatch.setattr(type(hint), "__instancecheck__", lambda hint, value: hint.__instancecheck_str__(value) == "")
    assert quick == [told(*case) for case in cases]
    assert any(True in said for said, _ in quick)
    assert (Fit.of(hint) is None) == (hint in ODD)
