"""The classes of errors, each with the code it has where none of its reasons below is named."""

from headscope.errors.entry import Entry

ENTRIES = (
    Entry(
        code="HS-ERROR",
        error="HeadscopeError",
        title="Any error that headscope raises on purpose",
        symptom="",
        cause=(
            "The base class of all errors below. It is never raised itself; catching it catches what headscope "
            "refuses, and lets defects of a program through."
        ),
        repair=(
            "Read the message: it says what was wrong, the value, what is allowed and how to fix it. `error.code` "
            "is the code, `error.message` the text before it."
        ),
        related=("headscope.errors.HeadscopeError",),
    ),
    Entry(
        code="HS-NAME",
        error="UnknownNameError",
        title="A name that does not exist",
        symptom=(
            "Unknown toy task 'grokking'. Allowed: 'skip-trigram', 'induction', 'modular-addition', 'palindrome'."
        ),
        cause=(
            "A model, hook point, site, option, column or part is asked for by a name that there is not. The class "
            "is a `KeyError` too."
        ),
        repair=(
            "Take one of the names that the message gives: those nearest to the one asked for, or else all that "
            "are allowed."
        ),
        example="""
from headscope.training import toy_task
toy_task("grokking")
""",
        related=("HS-NAME-01", "HS-NAME-02", "headscope.errors.UnknownNameError"),
    ),
    Entry(
        code="HS-INPUT",
        error="InvalidInputError",
        title="A value that cannot be used",
        symptom="top_k must be at least 1, or None for all tokens; got 0.",
        cause=(
            "A value of the right type has the wrong shape or range, contradicts another one, or asks for what "
            "this model does not have. The class is a `ValueError` too."
        ),
        repair=(
            "The message names the argument, the value and what is allowed. Nothing was changed and nothing written."
        ),
        example='model.generate("The", top_k=0)',
        related=("HS-TOKENS-02", "HS-HEADS-01", "headscope.errors.InvalidInputError"),
    ),
    Entry(
        code="HS-TOKENIZER",
        error="MissingTokenizerError",
        title="No tokenizer where one is needed",
        symptom="the model has no tokenizer to write the prompts with.",
        cause=(
            "Text was given, or a text has to be shown, and the model has no tokenizer. The class is a "
            "`RuntimeError` too."
        ),
        repair="Give tokens instead of text, or set a tokenizer with `model.set_tokenizer`.",
        related=("HS-TOKENIZER-01", "headscope.HookedTransformer.set_tokenizer"),
    ),
    Entry(
        code="HS-CHECKPOINT",
        error="CheckpointError",
        title="A checkpoint or a file of headscope that cannot be read or written",
        symptom="tensor 'blk.0.attn_q.weight' is of the unknown type 99: a newer version of gguf may know it.",
        cause=(
            "The files of a model, a result or a run are missing, damaged, of an unsupported kind, or hold more "
            "than numbers. The class is a `ValueError` too. Nothing in a checkpoint is executed."
        ),
        repair=(
            "The message names the file or the entry of its config. Fetch a damaged file again; for an unsupported "
            "kind, see the families that are supported."
        ),
        related=("HS-CHECKPOINT-05", "models.md", "headscope.errors.CheckpointError"),
    ),
    Entry(
        code="HS-FINITE",
        error="NotFiniteError",
        title="NaN or infinity where a finite number is needed",
        symptom="a head's circuit holds NaN or infinite values. Check the model's weights.",
        cause=(
            "Weights, activations or a loss are NaN or infinite, so that every number made of them would be "
            "meaningless. The class is an `ArithmeticError` too."
        ),
        repair=(
            "Find the first place that is not finite: `model.run_with_cache(tokens)` and look through the cache in "
            "order. Float16 overflows where float32 and bfloat16 do not."
        ),
        related=("HS-FINITE-01", "HS-FINITE-02"),
    ),
    Entry(
        code="HS-SHARD",
        error="ShardError",
        title="A shard of a run that could not be measured",
        symptom="3 workers could not begin, the last one because: out of memory",
        cause=(
            "A worker failed, wherever the shard was tried. The other shards are kept. The class is a "
            "`RuntimeError` too."
        ),
        repair=(
            "Read the reason in the message, mend it, and call the same function with `resume=True`: only what is "
            "missing is measured."
        ),
        related=("HS-SHARD-01", "scale.md"),
    ),
    Entry(
        code="HS-STORAGE",
        error="StorageError",
        title="A file that could not be written",
        symptom="a copy of the model could not be written to /scratch/run/model: No space left on device.",
        cause="A disk is full, or a folder cannot be written to. The class is an `OSError` too.",
        repair=(
            "Make room or choose another folder. Files are written whole or not at all, so what was there before "
            "still stands."
        ),
        related=("HS-STORAGE-01",),
    ),
    Entry(
        code="HS-INCOMPLETE",
        error="IncompleteRunError",
        title="A run in shards that has no result yet",
        symptom="the data of the run in 'run' is not cut yet.",
        cause=(
            "A result is asked for before all shards are measured; others may still be at it. The class is a "
            "`RuntimeError` too."
        ),
        repair="Wait for the other parts, or measure what is missing with `resume=True`; then merge.",
        related=("HS-INCOMPLETE-01", "headscope.scale.merge", "scale.md"),
    ),
    Entry(
        code="HS-DEPENDENCY",
        error="MissingDependencyError",
        title="A package that is not installed",
        symptom=(
            "hf://data/run needs a package that is not installed: No module named 'huggingface_hub.hf_file_system'"
        ),
        cause="This call needs an optional package. The class is an `ImportError` too.",
        repair="Install the extra that the message names, such as `pip install 'headscope[xarray]'`.",
        related=("HS-DEPENDENCY-01", "HS-DEPENDENCY-02"),
    ),
    Entry(
        code="HS-ALIAS",
        error="AliasError",
        title="A name of TransformerLens that headscope does not have",
        symptom="headscope does not support transformer_lens.HookedEncoder: only decoder-only models are supported.",
        cause=(
            "`headscope.compat.transformer_lens` answers imports of `transformer_lens`, and this name has no "
            "counterpart. The class is an `ImportError` too."
        ),
        repair=(
            "The message says what to use instead. `headscope migrate FILE` goes through a notebook or script and "
            "lists every such name."
        ),
        related=("HS-ALIAS-01", "migration.md"),
    ),
)
