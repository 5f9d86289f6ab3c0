"""The section on the model and the data, and the glossary."""

from collections.abc import Sequence

from headscope.report.blocks import FactList, Fold, Row, Section
from headscope.report.model.findings import Findings
from headscope.report.words import prose

__all__ = ["glossary", "model_section"]

_GLOSSARY = {
    "Token": "a piece of text, the unit the model reads and predicts.",
    "Nat": "the unit of information with natural logarithms; 1 nat is 1.44 bits.",
    "Entropy": "how spread out a prediction over the vocabulary is, in nats; 0 is certainty.",
    "Loss": "minus the logarithm of the probability given to the token that came.",
    "Residual stream": "the vector per position that every layer reads and adds to.",
    "Logit lens": "reading a prediction off that vector before the last layer, as if the model stopped there.",
    "Head 2.7": "head 7 of layer 2, both counted from 0.",
    "± and “clearly”": "± is one standard error: how far the mean would typically move with another text of this kind "
    "and length; positions of one sequence are not taken as independent. Something is called clear if chance alone "
    "would show it, anywhere among the heads compared, at most one time in twenty.",
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
    return Section("facts", "Model and data", (), (facts, glossary()))


def glossary() -> Fold:
    """The terms a reader may not know."""
    words = (prose("<b>{word}</b>: {meaning}", word=word, meaning=meaning) for word, meaning in _GLOSSARY.items())
    return Fold("The words used on this page", tuple(words))
