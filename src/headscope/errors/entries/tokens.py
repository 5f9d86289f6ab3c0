"""Tokens, texts and tokenizers."""

from headscope.errors.entry import Entry

ENTRIES = (
    Entry(
        code="HS-TOKENS-01",
        error="InvalidInputError",
        title="A token that the model does not have",
        symptom=(
            "tokens must be between 0 and d_vocab - 1 = 1023; got 5000. Were they made by another model's tokenizer?"
        ),
        cause=(
            "A token id is negative, or d_vocab and above. Most often the tokens were made by the tokenizer of "
            "another model, or padding is marked by -100 or -1."
        ),
        repair="Make tokens with `model.to_tokens`, and mark padding by `attention_mask`.",
        example="model(torch.tensor([[0, 5000]]))",
        related=("headscope.HookedTransformer.to_tokens", "HS-TOKENS-02"),
    ),
    Entry(
        code="HS-TOKENS-02",
        error="InvalidInputError",
        title="Tokens of the wrong dtype or shape",
        symptom=(
            "input must be text or an integer tensor of tokens; got a torch.float32 tensor. To start from a "
            "residual stream, pass start_at_layer."
        ),
        cause=(
            "Tokens are whole numbers `[batch, pos]`. Floats are not taken for tokens, since a residual stream "
            "given by mistake would be rounded."
        ),
        repair=(
            "`tokens.long()` if they are tokens in floats; `tokens[None]` for a single row. To start from a "
            "residual stream, pass `start_at_layer`."
        ),
        example="model(torch.rand(1, 4))",
        related=("headscope.HookedTransformer.to_tokens", "HS-TOKENS-01"),
    ),
    Entry(
        code="HS-TOKENS-03",
        error="InvalidInputError",
        title="A text longer than the context",
        symptom=(
            "the input has 300 tokens, but this model's context is n_ctx = 256. Cut it, or split it into several "
            "sequences."
        ),
        cause=(
            "The text has more tokens than the model has positions (n_ctx), so that there is no embedding for the "
            "last ones. A prompt and what is generated count together."
        ),
        repair=(
            "Cut the text, or split it into rows: `tokenize_and_concatenate` or `Corpus` with `row_length` do that."
        ),
        example="model(torch.zeros(1, 300, dtype=torch.long))",
        related=("headscope.data.Corpus", "headscope.data.tokenize_and_concatenate"),
    ),
    Entry(
        code="HS-TOKENS-04",
        error="InvalidInputError",
        title="A word that is not one token",
        symptom=(
            "' xylophone' is 6 tokens, not one: [' ', 'x', 'y', 'lo', 'ph', 'one']. Words inside a sentence start "
            "with a space."
        ),
        cause=(
            "The tokenizer splits this string into several tokens, or into none, and one token is needed: as the "
            "answer of a prompt, for example."
        ),
        repair=(
            "Choose a word that is one token (`model.to_str_tokens` shows the pieces). Inside a sentence a word "
            'starts with a space: `" Mary"` is not `"Mary"`.'
        ),
        example='model.to_single_token(" xylophone")',
        related=("headscope.HookedTransformer.to_single_token", "headscope.HookedTransformer.to_str_tokens"),
    ),
    Entry(
        code="HS-TOKENS-05",
        error="InvalidInputError",
        title="No text",
        symptom="the text '' has no tokens. Give some text, or prepend_bos=True.",
        cause="A text is empty, or a list of texts is, and a model needs a token to read.",
        repair="Leave empty texts out, or let `prepend_bos=True` begin each with a token.",
        example='model.to_tokens("", prepend_bos=False)',
        related=("headscope.HookedTransformer.to_tokens",),
    ),
    Entry(
        code="HS-TOKENS-06",
        error="InvalidInputError",
        title="An attention mask of the wrong shape",
        symptom="attention_mask must be [batch, pos] = [2, 4]; got [2, 3].",
        cause=(
            "`attention_mask` has a one for each real token and a zero for each padding, so it has the shape of "
            "the tokens (with a key-value cache, of all tokens so far)."
        ),
        repair="Take the mask that the tokenizer gave with these tokens, after the same cutting and BOS.",
        example="model(torch.ones(2, 4, dtype=torch.long), attention_mask=torch.ones(2, 3))",
        related=("headscope.HookedTransformer.forward", "HS-TOKENS-07"),
    ),
    Entry(
        code="HS-TOKENS-07",
        error="InvalidInputError",
        title="Texts of different lengths without a padding token",
        symptom="the texts differ in length, and the tokenizer has no padding or EOS token.",
        cause=(
            "Texts of different lengths are padded to one, and this tokenizer has neither a padding nor an EOS "
            "token to do so."
        ),
        repair='Set one (`tokenizer.pad_token = "<pad>"`), or give texts of one length, or one at a time.',
        related=("headscope.HookedTransformer.to_tokens",),
    ),
    Entry(
        code="HS-TOKENS-08",
        error="InvalidInputError",
        title="No BOS token to begin with",
        symptom="the tokenizer has neither BOS nor EOS to begin a row with: pass prepend_bos=False.",
        cause="`prepend_bos` asks for a first token that the tokenizer does not have.",
        repair=(
            "Pass `prepend_bos=False` (`add_bos_token=False` when packing texts), or set the tokenizer's "
            "`bos_token` if the model was trained with one."
        ),
        related=("headscope.HookedTransformer.to_tokens",),
    ),
    Entry(
        code="HS-TOKENS-09",
        error="InvalidInputError",
        title="A token that does not occur in the text",
        symptom="token ' dog' does not occur in the input.",
        cause=(
            "The position of a token is asked for, and the text does not have it: often for a missing space, since "
            '`" dog"` and `"dog"` are different tokens.'
        ),
        repair="Look at `model.to_str_tokens(text)`, and give the piece as it stands there.",
        example='model.get_token_position(" dog", "The cat sat down.")',
        related=("headscope.HookedTransformer.get_token_position", "HS-TOKENS-04"),
    ),
    Entry(
        code="HS-TOKENIZER-01",
        error="MissingTokenizerError",
        title="Text for a model without a tokenizer",
        symptom=(
            "model 'custom' has no tokenizer, so it takes tokens, not text. Pass a tensor of token ids, or set a "
            "tokenizer: model.set_tokenizer(tokenizer); on the command line, --tokenizer MODEL."
        ),
        cause="A model made from a config, or a toy, knows no text.",
        repair=(
            "Pass tokens `[batch, pos]`, or set a tokenizer: `model.set_tokenizer(tokenizer)`. Tasks of tokens are "
            "made by `Task.from_tokens`."
        ),
        example="""
from headscope import HookedTransformerConfig
toy = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, d_head=4, n_ctx=8, d_vocab=5, attn_only=True))
toy("Hello")
""",
        related=("headscope.HookedTransformer.set_tokenizer", "headscope.analysis.Task.from_tokens"),
    ),
    Entry(
        code="HS-TOKENIZER-02",
        error="MissingTokenizerError",
        title="Prompts that need a tokenizer",
        symptom="an IOI dataset needs a tokenizer: pass tokenizer=model.tokenizer.",
        cause="Prompts are made of words, and which of them are single tokens only a tokenizer says.",
        repair="Pass the model's: `tokenizer=model.tokenizer`.",
        example="""
from headscope.data import IOIDataset
IOIDataset(N=10, tokenizer=None)
""",
        related=("headscope.data.IOIDataset",),
    ),
)
