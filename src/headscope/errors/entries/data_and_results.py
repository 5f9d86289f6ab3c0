"""Data, results, caches, views and packages."""

from headscope.errors.entry import Entry

ENTRIES = (
    Entry(
        code="HS-DATA-01",
        error="InvalidInputError",
        title="A file of texts that is not there, or of no known kind",
        symptom=(
            "Cannot read texts from 'corpus.pdf': unknown suffix '.pdf'. Allowed: a file ending in .txt, .jsonl, "
            ".parquet, a folder of them, or an iterable of strings. To use a string itself as the text, put it in "
            "a list."
        ),
        cause="The path does not exist, or ends in none of the suffixes that are read.",
        repair=(
            "Give a .txt, .jsonl or .parquet file, a folder of them or a pattern. To use a string itself as the "
            "text, put it in a list."
        ),
        example="""
from headscope.data import read_texts
list(read_texts("corpus.pdf"))
""",
        related=("headscope.data.read_texts", "headscope.data.Corpus"),
    ),
    Entry(
        code="HS-DATA-02",
        error="InvalidInputError",
        title="Too little text for one row",
        symptom=(
            "The texts hold 9 tokens in all, and one row takes 63 tokens besides BOS. Give more text, a smaller "
            "max_length, or keep_last=True."
        ),
        cause=(
            "Texts are packed into rows of equal length, and what does not fill a row is left out; here nothing is "
            "left."
        ),
        repair="Give more text, a smaller `row_length` (`max_length`), or `keep_last=True`.",
        example="""
from headscope.data import Corpus
next(iter(Corpus(["A short text."], model.tokenizer, row_length=64)))
""",
        related=("headscope.data.Corpus", "headscope.data.tokenize_and_concatenate"),
    ),
    Entry(
        code="HS-DATA-03",
        error="InvalidInputError",
        title="One string where a list of texts is needed",
        symptom="the documents are one string; give a list of them: [text], or read_texts(path) for a file.",
        cause="A string is taken for a path by some functions and would be taken letter by letter by others.",
        repair="Put it in a list: `[text]`; for a file, `read_texts(path)`.",
        example="""
from headscope.data import tokenize_and_concatenate
tokenize_and_concatenate("The cat sat on the mat.", model.tokenizer)
""",
        related=("headscope.data.read_texts", "HS-DATA-01"),
    ),
    Entry(
        code="HS-DATA-04",
        error="InvalidInputError",
        title="A line that is not JSON",
        symptom=(
            "...texts.jsonl, line 2: not JSON (Expecting value: line 1 column 1 (char 0)); a .jsonl file has one "
            "JSON object on each line."
        ),
        cause="Each line of a .jsonl file is one JSON object with the text in a column.",
        repair="Mend the line that the message names, or save plain text as .txt.",
        example="""
(folder / "texts.jsonl").write_text('{"text": "Hello."}\\nHello.\\n')
from headscope.data import read_texts
list(read_texts(folder / "texts.jsonl"))
""",
        related=("headscope.data.read_texts", "HS-NAME-07"),
    ),
    Entry(
        code="HS-DATA-05",
        error="InvalidInputError",
        title="A template that is none of an IOI sentence",
        symptom=(
            "a template must name the indirect object [A] once, the subject [B] twice (or [B], then a third person "
            "[C]), and end with [A], like 'When [A] and [B] met, [B] waved to [A]'; got '[A] and [B] went home.'."
        ),
        cause=(
            "A template names the indirect object `[A]` once, the subject `[B]` twice, and ends with `[A]`, the "
            "answer; other gaps need words."
        ),
        repair="Write it like `When [A] and [B] met, [B] waved to [A]`, and give words for other gaps in `nouns`.",
        example="""
from headscope.data import IOIDataset
IOIDataset(prompt_type=["[A] and [B] went home."], N=4, tokenizer=model.tokenizer)
""",
        related=("headscope.data.IOIDataset", "headscope.data.ioi_prompts"),
    ),
    Entry(
        code="HS-DATA-06",
        error="InvalidInputError",
        title="Names that are not single tokens",
        symptom=(
            "of 3 names ('Maximilian', 'Wilhelmina', 'Bartholomew') 0 are a single token for this tokenizer, and "
            "at least 2 must be. Give others, spelled as inside a sentence."
        ),
        cause=(
            "Sentences with other names are aligned only if each name is one token, and too few of these are for "
            "this tokenizer."
        ),
        repair="Give other names, spelled as inside a sentence, or leave `names` out: the defaults are filtered.",
        example="""
from headscope.data import IOIDataset
IOIDataset(N=4, tokenizer=model.tokenizer, names=["Maximilian", "Wilhelmina", "Bartholomew"])
""",
        related=("headscope.data.IOIDataset", "HS-TOKENS-04"),
    ),
    Entry(
        code="HS-RESULT-01",
        error="InvalidInputError",
        title="A number that was not measured",
        symptom=(
            "this result holds means only, so single positions are not known. Run ablate_heads with reduce='none'."
        ),
        cause="The result was made without it, to save time or memory.",
        repair="Run the analysis again with the option that the message names.",
        example="""
from headscope.analysis import ablate_heads
ablate_heads(model, model.to_tokens("The cat sat on the mat."), reduce="mean").top_positions(3, component="4.0")
""",
        related=("results.md", "HS-RESULT-02"),
    ),
    Entry(
        code="HS-RESULT-02",
        error="InvalidInputError",
        title="An axis or label that the result does not have",
        symptom="no array has the axes neuron: diff has layer, component; ...",
        cause="Results have named axes, different ones for different numbers, and labels on them.",
        repair="Print the result: it says its axes. A label is written as in its tables.",
        example="""
from headscope.analysis import measure_entropy
measure_entropy(model, model.to_tokens("The cat sat on the mat.")).sel(neuron=0)
""",
        related=("results.md", "HS-RESULT-01"),
    ),
    Entry(
        code="HS-CACHE-01",
        error="InvalidInputError",
        title="A cache whose model is gone",
        symptom="the model this cache came from is gone: keep a reference to it.",
        cause="A cache does not keep its model in memory, and what is asked for needs the model's weights.",
        repair="Keep a reference to the model as long as the cache is used.",
        related=("headscope.ActivationCache",),
    ),
    Entry(
        code="HS-CACHE-02",
        error="InvalidInputError",
        title="The batch axis of several rows cannot be dropped",
        symptom="remove_batch_dim=True is for a batch of 1; hook_embed has a batch of 2.",
        cause="`remove_batch_dim` takes an axis of length 1 away, and there are several rows.",
        repair='Run one text at a time, or keep the axis and select: `cache["z", 0][row]`.',
        example='model.run_with_cache(["The cat", "The dog"], remove_batch_dim=True)',
        related=("headscope.HookedTransformer.run_with_cache",),
    ),
    Entry(
        code="HS-CACHE-03",
        error="InvalidInputError",
        title="A key-value cache for another batch",
        symptom="past_kv_cache is for a batch of 2; the input has 1 rows.",
        cause=(
            "Keys and values of the rows so far are kept row by row, and the new tokens have another number of rows."
        ),
        repair="Make the cache with the batch size of the tokens, and give all rows each time.",
        example="""
from headscope import HookedTransformerKeyValueCache
past = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", batch_size=2)
model(torch.tensor([[5]]), past_kv_cache=past)
""",
        related=("headscope.HookedTransformerKeyValueCache",),
    ),
    Entry(
        code="HS-VIEWS-01",
        error="InvalidInputError",
        title="Tokens and numbers of different lengths",
        symptom="there are 2 tokens, but values for 3; the numbers must be equal.",
        cause=(
            "Each token is drawn with its number; often the tokens have BOS and the numbers not, or a loss has one "
            "position less."
        ),
        repair=(
            "Cut both to the same positions: `tokens[1:]` for numbers without BOS, and for a loss of next tokens: "
            "each number stands on the token that was predicted."
        ),
        example="""
from headscope import views
views.colored_tokens(["The", " cat"], [0.1, 0.2, 0.3])
""",
        related=("views.md", "headscope.views.colored_tokens"),
    ),
    Entry(
        code="HS-VIEWS-02",
        error="InvalidInputError",
        title="Values with the wrong axes",
        symptom=(
            "attention must have as many queries as keys, since both are the same tokens; got shape [2, 3, 4]. "
            "Allowed: [head, query_pos, key_pos], or the same with one leading axis of size 1, as in "
            "cache['pattern', layer] of one sequence."
        ),
        cause=(
            "Each view takes numbers with certain axes: an attention pattern is `[head, query_pos, key_pos]`, with "
            "as many queries as keys."
        ),
        repair="Select or transpose to the axes in the message; a batch axis of length 1 may stay in front.",
        example="""
from headscope import views
views.attention_heads(torch.rand(2, 3, 4), ["a", "b", "c"])
""",
        related=("views.md", "headscope.views.attention_heads"),
    ),
    Entry(
        code="HS-VIEWS-03",
        error="InvalidInputError",
        title="Numbers that are no log-probabilities",
        symptom=(
            "log_probs are not log-probabilities: the probabilities at position 0 sum to 1751, not 1. Give "
            "logits.log_softmax(-1), or name the numbers otherwise, as in name='direct effect'."
        ),
        cause="Logits, or probabilities, were given where logarithms of probabilities are shown.",
        repair="`logits.log_softmax(-1)`; for other numbers give `name=`.",
        example="""
from headscope import views
views.token_log_probs(model.to_tokens("The cat")[0], model("The cat")[0], model.to_string)
""",
        related=("headscope.views.token_log_probs",),
    ),
    Entry(
        code="HS-VIEWS-04",
        error="InvalidInputError",
        title="Tokens that are not a list of strings",
        symptom=(
            "tokens is one string, 'The cat'; give a list with one string per token, such as model.to_str_tokens(text)."
        ),
        cause="A view shows one string for each token; a text is one string, and a tensor has numbers.",
        repair="`model.to_str_tokens(text)` gives the list.",
        example="""
from headscope import views
views.colored_tokens("The cat", [0.1, 0.2])
""",
        related=("headscope.HookedTransformer.to_str_tokens", "views.md"),
    ),
    Entry(
        code="HS-DEPENDENCY-01",
        error="MissingDependencyError",
        title="An extra that is not installed",
        symptom="to_xarray needs the package xarray. Install it with: pip install 'headscope[xarray]'",
        cause=(
            "Some features need a package that most users do not: xarray, ray, kaleido for pictures, datasets of "
            "the hub, gguf."
        ),
        repair="Install the extra in the message; several at once: `pip install 'headscope[xarray,static]'`.",
        related=("HS-DEPENDENCY-02",),
    ),
    Entry(
        code="HS-DEPENDENCY-02",
        error="MissingDependencyError",
        title="A version of transformers that is too old",
        symptom=(
            "models of type qwen3_next take a newer version of transformers than the one installed. Update it: pip "
            "install -U transformers."
        ),
        cause=(
            "The config or the layers of this family are read with transformers, and the installed version does "
            "not have them."
        ),
        repair="`pip install -U transformers`.",
        related=("models.md",),
    ),
    Entry(
        code="HS-ALIAS-01",
        error="AliasError",
        title="TransformerLens is already imported",
        symptom=(
            "transformer_lens itself is already imported, so headscope cannot stand in for it. Import "
            "headscope.compat.transformer_lens before anything else, in a fresh process."
        ),
        cause=(
            "`headscope.compat.transformer_lens` stands in for the name `transformer_lens`, and the real one was "
            "imported before it."
        ),
        repair="Import it first, in a fresh process (restart the kernel).",
        related=("migration.md",),
    ),
)
