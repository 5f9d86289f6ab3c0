"""Parts of a model, its config, its checkpoint and its weights."""

from headscope.errors.entry import Entry

ENTRIES = (
    Entry(
        code="HS-HEADS-01",
        error="InvalidInputError",
        title="A head or layer that does not exist",
        symptom="4.7 does not exist: heads of 'headscope-demo' are 0 to 3.",
        cause=(
            "Layers and heads count from 0, so that a model with 4 heads has heads 0 to 3. A head is `layer.head`: "
            "`10.7` is head 7 of layer 10."
        ),
        repair=(
            "Choose within the range in the message; `model.cfg.n_layers` and `model.cfg.n_heads` have the numbers."
        ),
        example="""
from headscope.analysis import ablate_heads
ablate_heads(model, model.to_tokens("The cat sat on the mat."), heads=["4.7"])
""",
        related=("HS-HEADS-02", "headscope.analysis.ablate_heads"),
    ),
    Entry(
        code="HS-HEADS-02",
        error="InvalidInputError",
        title="Something that names no component",
        symptom=(
            "'L3H1' names no component. A head is (layer, head) or 'layer.head', such as (10, 7) or '10.7'; an MLP "
            "is 'mlp' and its layer, such as 'mlp3', and a mixer 'mixer' and its layer."
        ),
        cause='A head is `(layer, head)` or `"layer.head"`, an MLP `"mlp3"`, a mixer `"mixer3"`.',
        repair='Write `(3, 1)` or `"3.1"`.',
        example="""
from headscope.analysis import ablate_heads
ablate_heads(model, model.to_tokens("The cat sat on the mat."), heads=["L3H1"])
""",
        related=("HS-HEADS-01", "HS-NAME-10"),
    ),
    Entry(
        code="HS-HEADS-03",
        error="InvalidInputError",
        title="A part that this model or layer does not have",
        symptom="mlp0 does not exist: 'custom' has attention only.",
        cause=(
            "Models with attention only have no MLPs, and in hybrid models some layers have no attention, or no MLP."
        ),
        repair=(
            '`model.cfg.parts_of(layer)` and `model.cfg.layers_with("attn")` say what there is. Stacked weights of '
            "a hybrid model are taken layer by layer."
        ),
        example="""
from headscope.analysis import ablate_heads
from headscope import HookedTransformerConfig
toy = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, d_head=4, n_ctx=8, d_vocab=5, attn_only=True))
ablate_heads(toy, torch.tensor([[0, 1, 2]]), heads=["mlp0"])
""",
        related=("models.md", "HS-WEIGHTS-01"),
    ),
    Entry(
        code="HS-HEADS-04",
        error="InvalidInputError",
        title="A head that is named twice",
        symptom="4.0 is named twice; name each component or set once.",
        cause=("The same head, MLP or set stands in a list twice; it would be counted twice in a mean or drawn twice."),
        repair="Name each once: `list(dict.fromkeys(heads))`.",
        example="""
from headscope.analysis import ablate_heads
ablate_heads(model, model.to_tokens("The cat sat on the mat."), heads=["4.0", (4, 0)])
""",
        related=("HS-HEADS-02",),
    ),
    Entry(
        code="HS-HEADS-05",
        error="InvalidInputError",
        title="An MLP where a head is needed",
        symptom="only a head attends; mlp3 is none.",
        cause="Only heads attend, have patterns or a QK and an OV circuit.",
        repair='Name a head, such as `(3, 1)` or `"3.1"`.',
        example="""
from headscope.analysis import attribute_attention
attribute_attention(model, task, "mlp3", key_pos="IO")
""",
        related=("HS-HEADS-02", "headscope.analysis.attribute_attention"),
    ),
    Entry(
        code="HS-CONFIG-01",
        error="InvalidInputError",
        title="An activation, norm or other choice that is not supported",
        symptom=(
            "act_fn must be one of 'relu', 'relu2', 'leaky_relu', 'gelu', 'gelu_new', 'gelu_fast', "
            "'gelu_pytorch_tanh', 'quick_gelu', 'silu', 'solu', 'solu_ln', 'xielu'; got 'swish'. Other choices of "
            "TransformerLens are not supported yet."
        ),
        cause="A field of the config has a value that there is no code for.",
        repair=(
            "Choose one of the values in the message. The activation of a checkpoint is translated by its family: "
            "load it with `from_pretrained` instead of writing its config."
        ),
        example="""
from headscope import HookedTransformerConfig
HookedTransformerConfig(n_layers=1, d_model=8, d_head=4, n_ctx=8, d_vocab=5, act_fn="swish")
""",
        related=("headscope.HookedTransformerConfig", "HS-CONFIG-03"),
    ),
    Entry(
        code="HS-CONFIG-02",
        error="InvalidInputError",
        title="A model without a vocabulary size",
        symptom="d_vocab must be at least 1; got -1. Set it, pass a tokenizer, or cfg.tokenizer_name.",
        cause="`d_vocab` was not set, and there is no tokenizer to take it from.",
        repair="Set `d_vocab`, pass `tokenizer=`, or name one in `tokenizer_name`.",
        example="""
from headscope import HookedTransformerConfig
HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, d_head=4, n_ctx=8, attn_only=True))
""",
        related=("headscope.HookedTransformerConfig",),
    ),
    Entry(
        code="HS-CONFIG-03",
        error="InvalidInputError",
        title="A model with MLPs and no activation",
        symptom=(
            "act_fn is needed for a model with MLPs: one of relu, relu2, leaky_relu, gelu, gelu_new, gelu_fast, "
            "gelu_pytorch_tanh, quick_gelu, silu, solu, solu_ln, xielu; or set attn_only=True."
        ),
        cause=(
            "MLPs need an activation function, and there is no default: a wrong one would train, and load, without "
            "an error."
        ),
        repair='Set `act_fn`, such as `"gelu_new"` for GPT-2, or `attn_only=True`.',
        example="""
from headscope import HookedTransformerConfig
HookedTransformerConfig(n_layers=1, d_model=8, d_head=4, n_ctx=8, d_vocab=5)
""",
        related=("headscope.HookedTransformerConfig", "HS-CONFIG-01"),
    ),
    Entry(
        code="HS-CONFIG-04",
        error="InvalidInputError",
        title="A dtype that is none, or not of floats",
        symptom=(
            "dtype must be a floating-point torch dtype or its name, such as 'float32' or 'bfloat16'; got 'float8'."
        ),
        cause="Weights are kept in a floating-point dtype of PyTorch: float32, float64, bfloat16 or float16.",
        repair="Give `torch.float32` or its name. Quantized checkpoints are expanded when they are loaded.",
        example='HookedTransformer.from_pretrained("headscope-demo", dtype="float8")',
        related=("headscope.HookedTransformer.from_pretrained", "HS-CHECKPOINT-11"),
    ),
    Entry(
        code="HS-CONFIG-05",
        error="InvalidInputError",
        title="A name where a config is needed",
        symptom=(
            "a model is made from a config; got 'gpt2'. To load one by name: HookedTransformer.from_pretrained('gpt2')."
        ),
        cause="The constructor makes a new model with random weights from a config.",
        repair='For trained weights: `HookedTransformer.from_pretrained("gpt2")`.',
        example='HookedTransformer("gpt2")',
        related=("headscope.HookedTransformer.from_pretrained",),
    ),
    Entry(
        code="HS-CHECKPOINT-01",
        error="CheckpointError",
        title="A path that is no checkpoint",
        symptom=(
            "'./checkpoints/none' does not exist. A local model is a directory with config.json and *.safetensors "
            "in it, or a GGUF file; one on the hub is 'owner/model:file.gguf'."
        ),
        cause="The path does not exist, or is a file that is not GGUF.",
        repair=(
            "Give the folder with `config.json` and `*.safetensors`, or a `.gguf` file. A relative path is "
            "relative to the folder the program was started in."
        ),
        example='HookedTransformer.from_pretrained("./checkpoints/none")',
        related=("models.md", "HS-CHECKPOINT-04"),
    ),
    Entry(
        code="HS-CHECKPOINT-02",
        error="CheckpointError",
        title="The hub cannot be reached, and the model is not in the local cache",
        symptom=(
            "model 'gpt2' is not in the local cache, or not all of it, and the hub cannot be reached. Try again "
            "with a network, give a local checkpoint directory, or use 'headscope-demo', which needs none."
        ),
        cause="The model has to be downloaded, and there is no network, or `HF_HUB_OFFLINE=1` is set.",
        repair=(
            "Try again with a network; or fetch it elsewhere (`hf download NAME`) and give the folder. "
            "`headscope-demo` is in the package and needs no network."
        ),
        related=("models.md",),
    ),
    Entry(
        code="HS-CHECKPOINT-03",
        error="CheckpointError",
        title="A gated, private or missing repository",
        symptom=(
            "model 'google/gemma-2b' is gated: accept its terms on its hub page, then log in with `hf auth login`."
        ),
        cause="The hub has no public model of this name, or its terms have to be accepted first.",
        repair="Check the spelling; accept the terms on the model's page, then `hf auth login`.",
        related=("HS-CHECKPOINT-02",),
    ),
    Entry(
        code="HS-CHECKPOINT-04",
        error="CheckpointError",
        title="A checkpoint that is not all there",
        symptom="... has no config.json. A model directory holds config.json and *.safetensors.",
        cause=(
            "The folder lacks `config.json`, the weights, or some of the files that the index names; of a GGUF "
            "file in pieces, a piece is missing."
        ),
        repair="Copy the whole folder. A download that was interrupted is completed by the same command.",
        example="HookedTransformer.from_pretrained(str(folder))",
        related=("HS-CHECKPOINT-01", "HS-CHECKPOINT-09"),
    ),
    Entry(
        code="HS-CHECKPOINT-05",
        error="CheckpointError",
        title="A model family that is not supported",
        symptom="model_type 't5' in config.json is not supported. Supported: apertus, ...",
        cause=(
            "`model_type` in the config is that of no supported family. Encoders, and decoders that read an "
            "encoder, are not supported."
        ),
        repair="The message lists the families. A new one is usually a short file: CONTRIBUTING.md says how.",
        example="""
(folder / "config.json").write_text('{"model_type": "t5"}')
HookedTransformer.from_pretrained(str(folder))
""",
        related=("models.md", "HS-CHECKPOINT-06"),
    ),
    Entry(
        code="HS-CHECKPOINT-06",
        error="CheckpointError",
        title="An entry of config.json that may change what is computed",
        symptom=(
            "attention_sink_size in config.json may change what the model computes, and headscope does not support "
            "it for 'llama'."
        ),
        cause=(
            "The config has an entry that headscope does not read, and which is not known to change nothing. "
            "Loading anyway might give wrong numbers without an error."
        ),
        repair=(
            "If you know that it changes nothing, remove it from a copy of the config. Otherwise this variant of "
            "the family is not supported."
        ),
        related=("models.md", "HS-CHECKPOINT-05"),
    ),
    Entry(
        code="HS-CHECKPOINT-07",
        error="CheckpointError",
        title="Tensors that are missing, or that nothing uses",
        symptom=(
            "the checkpoint has no tensor 'wpe.weight'. It is incomplete, or of another architecture than its "
            "config.json says."
        ),
        cause="The weights do not go with the config: a tensor is missing, or some would be lost.",
        repair="Check that config and weights are of one model. Adapters (LoRA) have to be merged first.",
        related=("HS-CHECKPOINT-08", "HS-CHECKPOINT-04"),
    ),
    Entry(
        code="HS-CHECKPOINT-08",
        error="CheckpointError",
        title="Tensors of other shapes than the config says",
        symptom="W_E must have shape [50257, 768]; got [50259, 768].",
        cause="A width, a number of heads or the vocabulary in the config is not that of the weights.",
        repair=(
            "Take the config that was saved with these weights. A tokenizer that was extended needs the model "
            "resized before saving."
        ),
        related=("HS-CHECKPOINT-07",),
    ),
    Entry(
        code="HS-CHECKPOINT-09",
        error="CheckpointError",
        title="A damaged file, or one that holds more than tensors",
        symptom=(
            "...config.json is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)."
        ),
        cause=(
            "A file is cut short or not what its name says. A pickle that holds more than tensors is not loaded: "
            "it could run code."
        ),
        repair="Fetch the file again. Convert a pickle you trust to safetensors with the program that wrote it.",
        example="""
(folder / "config.json").write_text("{")
HookedTransformer.from_pretrained(str(folder))
""",
        related=("HS-CHECKPOINT-04", "HS-CHECKPOINT-10"),
    ),
    Entry(
        code="HS-CHECKPOINT-10",
        error="CheckpointError",
        title="A checkpoint that needs its own code",
        symptom="... needs its own code to run (auto_map in config.json), and code from checkpoints is never run.",
        cause=(
            "`auto_map` in the config names Python files of the checkpoint, and headscope never runs code that "
            "comes with a checkpoint."
        ),
        repair=(
            "Use the variant of the model that transformers supports itself, if there is one; its repository often "
            "names it."
        ),
        example="""
(folder / "config.json").write_text('{"model_type": "gpt2", "auto_map": {"AutoModel": "modeling.Model"}}')
HookedTransformer.from_pretrained(str(folder))
""",
        related=("models.md", "HS-CHECKPOINT-05"),
    ),
    Entry(
        code="HS-CHECKPOINT-11",
        error="CheckpointError",
        title="A quantization that cannot be expanded",
        symptom=(
            "weights quantized with 'hqq', as quantization_config in config.json says, are not supported. "
            "Supported: ... Load the model that they were made of, or a GGUF file of it."
        ),
        cause=(
            "Quantized weights are expanded when they are loaded, and this method or type is not among those that "
            "are known."
        ),
        repair="Load the model that it was made of, or a GGUF file of type Q4_K_M or Q8_0.",
        related=("models.md",),
    ),
    Entry(
        code="HS-CHECKPOINT-12",
        error="CheckpointError",
        title="A model that its Hugging Face class cannot hold",
        symptom=(
            "GPT2LMHeadModel in transformers has no place for unembed.b_U, which is not zero. If processing put it "
            "there, as folding a norm does, load the model with from_pretrained_no_processing."
        ),
        cause=(
            "`to_hf` and `save_pretrained` write what the class in transformers can compute, and refuse a model "
            "that would be read back as another one: folded norms, centered weights, modules that were added."
        ),
        repair="Load it with `from_pretrained_no_processing`, change what you want, and save that.",
        example="model.to_hf()",
        related=("headscope.HookedTransformer.save_pretrained",),
    ),
    Entry(
        code="HS-CHECKPOINT-13",
        error="CheckpointError",
        title="A tokenizer that cannot be loaded",
        symptom=(
            "no tokenizer was found for cfg.tokenizer_name = 'my-model': there are no tokenizer files. Pass one as "
            "tokenizer=, or set cfg.tokenizer_name = None and cfg.d_vocab for a model that takes only tokens."
        ),
        cause=(
            "The files of the tokenizer are missing, damaged, or of a version that the installed transformers does "
            "not read."
        ),
        repair="Pass one: `tokenizer=AutoTokenizer.from_pretrained(...)`. A model without one takes tokens only.",
        related=("HS-TOKENIZER-01", "headscope.HookedTransformer.set_tokenizer"),
    ),
    Entry(
        code="HS-WEIGHTS-01",
        error="InvalidInputError",
        title="Weights that cannot be stacked over layers",
        symptom=(
            "W_in has not one shape in all layers: [64, 128] and [64, 256]. Take it layer by layer: "
            "model.per_layer('mlp', 'W_in')."
        ),
        cause=(
            "`model.W_Q` and its like stack the weights of all layers, and in this model they have different "
            "shapes: other numbers of heads, widths or experts."
        ),
        repair='Take them layer by layer: `model.blocks[layer].attn.W_Q`, or `model.per_layer("attn", "W_Q")`.',
        related=("HS-HEADS-03", "models.md"),
    ),
    Entry(
        code="HS-WEIGHTS-02",
        error="InvalidInputError",
        title="A rewrite of weights that does not apply",
        symptom="fold_ln does not apply: norms of type LNPre have no weights to fold.",
        cause=(
            "Folding and centering leave a model's output as it is only under conditions: centering the weights "
            "that write to the stream needs a norm that ignores the mean, for example."
        ),
        repair="Leave this one out. `from_pretrained` does so by itself, and says so once.",
        example="""
from headscope import HookedTransformerConfig
from headscope.model.weights.processing import fold_layer_norm
fold_layer_norm(dict(model.state_dict()), model.cfg)
""",
        related=("headscope.HookedTransformer.from_pretrained", "models.md"),
    ),
    Entry(
        code="HS-WEIGHTS-03",
        error="InvalidInputError",
        title="Matrices that do not multiply",
        symptom="A must be [..., ldim, mdim] and B [..., mdim, rdim]; got A [4, 2] and B [3, 4].",
        cause=(
            "The inner dimensions of a product differ, often for a transposed weight: headscope's `W_V` is "
            "`[d_model, d_head]`, `W_O` `[d_head, d_model]`, and rows are vectors."
        ),
        repair="Transpose one side (`.mT`), or exchange them. `model.OV` and `model.QK` are the products per head.",
        example="""
from headscope import FactoredMatrix
FactoredMatrix(torch.rand(4, 2), torch.rand(3, 4))
""",
        related=("headscope.FactoredMatrix",),
    ),
)
