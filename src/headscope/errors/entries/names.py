"""Names that do not exist."""

from headscope.errors.entry import Entry

ENTRIES = (
    Entry(
        code="HS-NAME-01",
        error="UnknownNameError",
        title="Unknown model",
        symptom=(
            "Unknown model 'gtp2'. Did you mean 'gpt2' or 'gpt2-xs' or 'gpt2-xl'? A hub id has the form 'owner/model'."
        ),
        cause=(
            "The name is neither one of the known models, nor `owner/model` on the Hugging Face hub, nor a folder "
            "or GGUF file on this machine."
        ),
        repair=(
            "Check the spelling against the nearest names in the message; `headscope models` lists all. A local "
            "checkpoint is given by its path."
        ),
        example='HookedTransformer.from_pretrained("gtp2")',
        related=("models.md", "HS-CHECKPOINT-01", "headscope.HookedTransformer.from_pretrained"),
    ),
    Entry(
        code="HS-NAME-02",
        error="UnknownNameError",
        title="Unknown hook point",
        symptom=(
            "Unknown hook point 'blocks.0.attn.hook_zz'. Did you mean 'blocks.0.attn.hook_z' or "
            "'blocks.4.attn.hook_z' or 'blocks.3.attn.hook_z'? `model.hook_dict` lists them all."
        ),
        cause=(
            "No hook point has this name. Some exist only in some models (`hook_rot_q` with rotary positions), and "
            "some only with a switch of the config (`hook_result` always exists, but is computed only when "
            "listened to)."
        ),
        repair=(
            'List them: `list(model.hook_dict)`. `utils.get_act_name("z", 0)` writes the long name of a short one.'
        ),
        example='model.run_with_hooks("The cat", fwd_hooks=[("blocks.0.attn.hook_zz", lambda z, hook: z)])',
        related=("headscope.utils.get_act_name", "HS-NAME-03"),
    ),
    Entry(
        code="HS-NAME-03",
        error="UnknownNameError",
        title="Unknown cached activation",
        symptom=(
            "Unknown cached activation 'blocks.0.attn.hook_pattern'. Did you mean 'blocks.0.attn.hook_z' or "
            "'blocks.4.attn.hook_z' or 'blocks.3.attn.hook_z'? Was it kept? See names_filter in run_with_cache."
        ),
        cause=(
            "The cache does not hold this activation: the name is wrong, or `names_filter` left it out, or the run "
            "stopped before it (`stop_at_layer`)."
        ),
        repair="Let `names_filter` keep it, or leave the filter out. `list(cache)` names what is there.",
        example="""
_, cache = model.run_with_cache("The cat", names_filter=lambda name: name.endswith("hook_z"))
cache["pattern", 0]
""",
        related=("headscope.HookedTransformer.run_with_cache", "HS-NAME-02"),
    ),
    Entry(
        code="HS-NAME-04",
        error="UnknownNameError",
        title="Unknown field of the config",
        symptom="Unknown config field 'n_head'. Did you mean 'n_heads' or 'd_head' or 'd_head_v'?",
        cause=(
            "The config has no field of this name; a misspelled field would otherwise be left at its default "
            "without a word."
        ),
        repair="Take the nearest name in the message.",
        example="""
from headscope import HookedTransformerConfig
HookedTransformerConfig.from_dict({"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 8, "d_vocab": 5, "n_head": 2})
""",
        related=("headscope.HookedTransformerConfig", "HS-CONFIG-01"),
    ),
    Entry(
        code="HS-NAME-05",
        error="UnknownNameError",
        title="Unknown option of from_pretrained",
        symptom="Unknown option of from_pretrained 'fold_layernorm'. Did you mean 'fold_ln' or 'first_n_layers'?",
        cause="`from_pretrained` takes no option of this name.",
        repair=(
            "Take the nearest name in the message. Options of TransformerLens that do nothing here are listed in "
            "the migration guide."
        ),
        example='HookedTransformer.from_pretrained("headscope-demo", fold_layernorm=False)',
        related=("headscope.HookedTransformer.from_pretrained", "migration.md"),
    ),
    Entry(
        code="HS-NAME-06",
        error="UnknownNameError",
        title="Unknown or unpatched site",
        symptom="Unknown site 'resid_before'. Did you mean 'resid_pre' or 'resid_post' or 'resid_mid'?",
        cause=(
            "A site is an activation that can be patched, such as `resid_pre`, `z` or `mlp_out`. The name is not "
            "one of them, or the result was made without it."
        ),
        repair="Choose from the list in the message, or measure again with this site among `sites`.",
        example="""
from headscope.analysis import activation_patch
activation_patch(model, task, sites=["resid_before"])
""",
        related=("headscope.analysis.activation_patch", "headscope.analysis.attribution_patch"),
    ),
    Entry(
        code="HS-NAME-07",
        error="UnknownNameError",
        title="Unknown column",
        symptom=(
            "Unknown column 'answer'. Allowed: 'prompt', 'correct', 'incorrect', 'corrupted', 'label', 'cluster'. "
            "...task.csv may have prompt, correct, incorrect, corrupted, label, cluster."
        ),
        cause="A file of prompts or a data set has columns of other names than those asked for.",
        repair=(
            "Rename the column, or name the right one (`column=` for a data set). Prompts need `prompt`, `correct` "
            "and `incorrect`."
        ),
        example="""
(folder / "task.csv").write_text("prompt,correct,incorrect,answer\\nThe cat sat, down, up, on\\n")
from headscope.analysis import Task
Task.read(folder / "task.csv", model.tokenizer)
""",
        related=("headscope.analysis.Task.read", "headscope.data.hf_dataset_texts"),
    ),
    Entry(
        code="HS-NAME-08",
        error="UnknownNameError",
        title="Unknown name of a position",
        symptom=(
            "Unknown position 'S3'. Did you mean 'S2' or 'S1'? Or give a number, or a name with an offset: 'end-1'."
        ),
        cause=(
            "Names of positions, such as `S2` or `end`, come with a task: those of IOI prompts, or `word_idx` of "
            "your own."
        ),
        repair="Take one of the names in the message, give numbers, or give the task `word_idx`.",
        example="""
from headscope.analysis import activation_patch
activation_patch(model, task, positions=["S3"])
""",
        related=("headscope.analysis.Task.from_tokens", "HS-PROMPTS-05"),
    ),
    Entry(
        code="HS-NAME-09",
        error="UnknownNameError",
        title="Unknown metric",
        symptom="Unknown metric 'logit_diff'. Did you mean 'logit_difference'? Or give a function of the logits.",
        cause="The metric is none of those that have a name.",
        repair="Take one of the names in the message, or give a function of the logits `[batch, pos, d_vocab]`.",
        example="""
from headscope.analysis import activation_patch
activation_patch(model, task, metric="logit_diff")
""",
        related=("headscope.analysis.AnswerMetric", "HS-METRIC-01"),
    ),
    Entry(
        code="HS-NAME-10",
        error="UnknownNameError",
        title="Unknown part of a circuit, sender or receiver",
        symptom=(
            "Unknown receiver '4.0.query'. Did you mean '4.0.q' or '4.3.q' or '4.2.q'? A receiver is a head's "
            "input ('9.9.q'), an MLP ('mlp5') or 'final'."
        ),
        cause=(
            "A head is `layer.head`, its inputs are `layer.head.q`, `.k` and `.v`, an MLP is `mlp3`, and the end "
            "of the model `final`."
        ),
        repair="Write the part as one of the names in the message; heads and layers count from 0.",
        example="""
from headscope.analysis import path_patch
path_patch(model, task, senders=["0.0"], receivers=["4.0.query"])
""",
        related=("headscope.analysis.path_patch", "headscope.analysis.Graph", "HS-HEADS-02"),
    ),
)
