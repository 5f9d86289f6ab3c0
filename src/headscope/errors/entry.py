"""An entry of the table of errors: the message, why it is raised and what to do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A code of an error, and what is known of it.

    Attributes:
        code: Code that the message ends in, such as `"HS-TOKENS-01"`.
        error: Name of the class in `headscope.errors`.
        title: The error in a few words.
        symptom: The message as it is printed, without its code; `...` stands for what differs between machines. Empty
            for the base class, which is never raised itself.
        cause: Why it is raised.
        repair: What to do.
        example: Code that raises it, given `model` (the demo model), `task` (prompts of indirect objects), `folder` (an
            empty folder), `torch` and `HookedTransformer`; empty where that takes a network, a cluster or a damaged
            file.
        related: Other codes, names of headscope (`"headscope.HookedTransformer.to_tokens"`) and pages of the
            documentation (`"models.md"`).
    """

    code: str
    error: str
    title: str
    symptom: str
    cause: str
    repair: str
    example: str = ""
    related: tuple[str, ...] = ()

    @property
    def is_class(self) -> bool:
        """True for the code of a class, False for that of one reason."""
        return self.code.count("-") == 1

    def __str__(self) -> str:
        lines = (f"{self.code}: {self.title} ({self.error})", self.symptom, self.cause, self.repair)
        return "\n\n".join(line for line in lines if line)
