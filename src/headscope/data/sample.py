"""Samples of the kind of text a model was trained on.

The demo model's text is generated on the spot. For models from the hub, a small public dataset stands in for the
training data (GPT-2's own was never published: OpenWebText is its replication), and is downloaded on first use.
"""

from typing import Any

from headscope.data.hub import get_dataset
from headscope.data.small_english import documents
from headscope.errors import InvalidInputError, unknown_name

__all__ = ["training_dataset"]

_BY_ARCHITECTURE = {
    "GPT2LMHeadModel": "openwebtext",
    "GPTNeoForCausalLM": "pile",
    "GPTNeoXForCausalLM": "pile",
    "GPTJForCausalLM": "pile",
    "OPTForCausalLM": "pile",
    "neel": "c4_code",
    "neel-solu-old": "pile",
}
_DEMO = "headscope-demo"
_N_DOCUMENTS = 2_000
_TRAINING_SEED = 0  # of the text the bundled demo model was trained on


def training_dataset(model_name: str, architecture: str | None = None, **options: Any) -> Any:
    """Load a sample of the text a model was trained on, or of similar text.

    Args:
        model_name: The model's name (`cfg.model_name`).
        architecture: The name of its class in the checkpoint (`cfg.original_architecture`).
        options: For `datasets.load_dataset`, such as `cache_dir`; the demo model takes none.

    Returns:
        A `datasets.Dataset`, or a list for the demo model: rows with a document under `"text"`.

    Raises:
        UnknownNameError: If no sample is known for this model.
        MissingDependencyError: If the package `datasets` is needed and not installed.
        InvalidInputError: If the dataset cannot be loaded, or takes no options.

    Example:
        >>> rows = training_dataset("headscope-demo")
        >>> len(rows), sorted(rows[0])
        (2000, ['text'])
    """
    if model_name == _DEMO:
        if options:
            raise InvalidInputError(f"the text of {_DEMO} is generated and takes no options; got {options}.")
        return [{"text": text} for text in documents(_TRAINING_SEED, n=_N_DOCUMENTS)]
    if architecture not in _BY_ARCHITECTURE:
        raise unknown_name(
            "training data of model",
            model_name,
            (),
            hint=(
                f"There is a sample for {_DEMO} and for the architectures {', '.join(_BY_ARCHITECTURE)}; this model's "
                f"is {architecture!r}. Set model.dataset to rows with a document under 'text'."
            ),
        )
    return get_dataset(_BY_ARCHITECTURE[architecture], **options)
