"""The section on the model and the data, and the glossary."""

from collections.abc import Sequence

from markupsafe import Markup

from headscope.report.blocks import FactList, Fold, Prose, Row, Section
from headscope.report.model.findings import Findings
from headscope.report.words import count, prose, say, those, token

__all__ = ["few_sequences", "glossary", "in_front", "model_section"]

_FEW = 8  # sequences, below which errors come from pieces of them
_GLOSSARY = {
    "Token": "a piece of text, the unit the model reads and predicts.",
    "Nat": "the unit of information with natural logarithms; 1 nat is 1.44 bits.",
    "Entropy": "how spread out a prediction over the vocabulary is, in nats; 0 is certainty.",
    "Loss": "minus the logarithm of the probability given to the token that came.",
    "Residual stream": "the vector per position that every layer reads and adds to.",
    "Logit lens": "reading a prediction off that vector before the last layer, as if the model stopped there.",
    "diff": "of a head: the entropy of what the stream predicts by the logit lens after the head has written to it, "
    "less that before.",
    "marginal": "of a head: the entropy of the final prediction, less that without the head's own part of the logits.",
    "patched and direct": "the loss with a head's output replaced, less the loss: with all that follows recomputed, or "
    "with nothing but the final residual stream changed.",
    "Head 2.7": "head 7 of layer 2, both counted from 0.",
    "± and “clearly”": "± is one standard error: how far the mean would typically move with another text of this kind "
    "and length; positions of one sequence are not taken as independent. Something is called clear if chance alone "
    "would show it, anywhere among the heads compared, at most one time in twenty; of twenty such comparisons on a "
    "page, one may still be wrong.",
}


def model_section(findings: Findings, chosen: Sequence[str] = ()) -> Section:
    """The model and the data, and the sections where only some were chosen."""
    n_rows, width = findings.tokens.shape
    data = {
        "Text": findings.data,
        "Sequences": f"{n_rows:,} of {width:,} tokens",
        "Different tokens": f"{len(findings.tokens.unique()):,} of {findings.d_vocab:,}",
    }
    if findings.has("entropy"):
        data["Positions measured"] = f"{findings.means.info.n_positions:,}"
    if chosen:
        data["Sections asked for"] = ", ".join(chosen)
    facts = Row((FactList("Model", findings.facts), FactList("Data", data)))
    said = those(in_front(findings.bos, findings.separator, n_rows), few_sequences(n_rows))
    return Section("facts", "Model and data", (), (facts, *map(Prose, said), glossary()))


def in_front(bos: str | None, separator: str | None, n_rows: int) -> Markup | None:
    """Say which special tokens stand in front of the text and in it; nothing where none does.

    Args:
        bos: The text of the tokenizer's BOS token, if every sequence begins with it.
        separator: The text of its EOS token, if that stands within a sequence.
        n_rows: Number of sequences.
    """
    said = []
    if bos is not None:
        sentence = (
            "In front of {sequences} stands {token}, the tokenizer's token for the beginning of a sequence, which is "
            "no part of the text. Many heads rest their attention on it. What is predicted from it alone counts in no "
            "mean of loss or entropy."
        )
        sequences = "the sequence" if n_rows == 1 else f"each of the {n_rows:,} sequences"
        said.append(say(sentence, sequences=sequences, token=token(bos)))
    if separator is not None:
        said.append(say("Documents are set apart by {token}, which is predicted too.", token=token(separator)))
    return Markup(" ").join(said) if said else None


def few_sequences(n_rows: int) -> Markup | None:
    """Say that errors rest on few sequences; nothing where there are enough."""
    if n_rows >= _FEW:
        return None
    sentence = (
        "There {are} {sequences}, so the errors come from comparing pieces of {them}. They do not know how far another "
        "text would differ, and are likely too small."
    )
    are, them = ("is only", "it") if n_rows == 1 else ("are only", "them")
    return say(sentence, are=are, sequences=count(n_rows, "sequence"), them=them)


def glossary() -> Fold:
    """The terms a reader may not know."""
    words = (prose("<b>{word}</b>: {meaning}", word=word, meaning=meaning) for word, meaning in _GLOSSARY.items())
    return Fold("The words used on this page", tuple(words))
