"""The section on what was run on what."""

from markupsafe import Markup

from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer
from headscope.report.blocks import FactList, Fold, Prose, Row, Section
from headscope.report.model.findings import Findings
from headscope.report.words import count, say

__all__ = ["glossary", "model_facts", "model_section"]

_GLOSSARY = (
    ("Token", "a piece of text, the unit the model reads and predicts."),
    ("Nat", "the unit of information with natural logarithms; 1 nat is 1.44 bits."),
    ("Entropy", "how spread out a prediction over the vocabulary is, in nats; 0 is certainty."),
    ("Loss", "minus the logarithm of the probability given to the token that came."),
    ("Residual stream", "the vector per position that every layer reads and adds to."),
    (
        "Logit lens",
        "reading a prediction off that vector before the last layer, as if the model stopped there.",
    ),
    ("Head 2.7", "head 7 of layer 2, both counted from 0."),
    (
        "± and “clearly”",
        "after ± stands one standard error: how far the mean would typically move with another text of this kind and "
        "length. It is the larger of two, that of independent positions and that of independent sequences. Something "
        "is called clear if chance alone would show it, anywhere among the heads compared, at most one time in twenty.",
    ),
)


def model_section(found: Findings) -> Section:
    """The model and the data."""
    info, cfg = found.means.info, found.model.cfg
    n_rows, width = found.tokens.shape
    data = (
        ("Text", info.data),
        ("Sequences", f"{n_rows:,} of {width:,} tokens"),
        ("Positions measured", f"{info.n_positions:,}"),
        ("Different tokens", f"{len(found.tokens.unique()):,} of {cfg.d_vocab:,}"),
    )
    return Section(
        "facts",
        "Model and data",
        (),
        (
            Row((FactList("Model", model_facts(found.model, info.processing)), FactList("Data", data))),
            glossary(),
        ),
    )


def glossary() -> Fold:
    """The words a reader may not know."""
    words = tuple(Prose(say("<b>{word}</b>: {meaning}", word=word, meaning=meaning)) for word, meaning in _GLOSSARY)
    return Fold("The words used on this page", words)


def model_facts(model: HookedTransformer, processing: tuple[str, ...]) -> tuple[tuple[Markup | str, Markup | str], ...]:
    """Names and values of what a reader wants to know of a model."""
    cfg: HookedTransformerConfig = model.cfg
    n_params = sum(parameter.numel() for parameter in model.parameters())
    return (
        ("Name", cfg.model_name),
        ("Layers", f"{cfg.n_layers}, attention only" if cfg.attn_only else f"{cfg.n_layers}, attention and MLP"),
        ("Heads", f"{cfg.n_heads} per layer, {cfg.n_layers * cfg.n_heads} in all"),
        ("Width", f"{cfg.d_model} (head {cfg.d_head}" + ("" if cfg.attn_only else f", MLP {cfg.d_mlp}") + ")"),
        ("Vocabulary", str(count(cfg.d_vocab, "token"))),
        ("Context", str(count(cfg.n_ctx, "token"))),
        ("Parameters", f"{n_params:,}"),
        ("Weight processing", ", ".join(processing) or "none"),
    )
