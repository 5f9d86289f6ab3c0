from typing import Any, Protocol


class SetBudget(Protocol):
    """The fixture `set_budget`: other sizes of tiles and batches until the test is over."""

    def __call__(self, **sizes: Any) -> None: ...
