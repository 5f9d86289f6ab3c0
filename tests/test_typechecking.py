"""The tests' own type checker: it is on, and it checks shapes and types."""

from typing import Any, Literal, Self, TypeVar

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typechecking import checked

from headscope.errors import unknown_name

Absent = TypeVar("Absent", bound="NotThere")


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeCheckError, match="hint"):
        unknown_name("model", "gtp2", ["gpt2"], hint=3)


def test_shapes_and_types_are_checked() -> None:
    @jaxtyped(typechecker=checked)
    def project(x: Float[Tensor, "pos d_model"], w: Float[Tensor, "d_model d_out"], *, name: str = "") -> Tensor:
        return x @ w

    assert project(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(TypeCheckError, match="parameter 'w'"):
        project(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(TypeCheckError, match="parameter 'name'"):
        project(torch.ones(2, 3), torch.ones(3, 4), name=None)


def test_only_what_cannot_be_looked_up_goes_unchecked() -> None:
    class Chain:
        @jaxtyped(typechecker=checked)
        def make(self, kind: type[Absent]) -> Absent:
            return kind()

        @jaxtyped(typechecker=checked)
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
