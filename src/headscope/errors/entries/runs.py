"""Numbers that are not finite, and runs that are kept, resumed and shared."""

from headscope.errors.entry import Entry

ENTRIES = (
    Entry(
        code="HS-FINITE-01",
        error="NotFiniteError",
        title="Weights of a checkpoint that are not finite",
        symptom=(
            "weight blocks.3.attn.W_Q holds NaN or infinite values: the checkpoint is damaged or diverged in training."
        ),
        cause=(
            "A tensor of the checkpoint holds NaN or infinity: the file is damaged, training diverged, or numbers "
            "beyond float16 were converted to it."
        ),
        repair=(
            "Fetch the file again; load a checkpoint of an earlier step; convert from float32 to bfloat16 rather "
            "than to float16."
        ),
        related=("HS-CHECKPOINT-09", "HS-CONFIG-04"),
    ),
    Entry(
        code="HS-FINITE-02",
        error="NotFiniteError",
        title="Activations, logits or a metric that are not finite",
        symptom=(
            "the model's final residual stream holds NaN or infinite values. Check its weights, and any hooks on it."
        ),
        cause=(
            "Some activation is NaN or infinite: weights that are not finite, a hook that divides by zero or takes "
            "the logarithm of zero, or a dtype too narrow for this model."
        ),
        repair=(
            "Remove hooks (`model.reset_hooks()`); run in float32; look for the first activation that is not "
            "finite in `model.run_with_cache(tokens)[1]`."
        ),
        example="""
from headscope.analysis import measure_entropy
bad = HookedTransformer.from_pretrained("headscope-demo")
bad.blocks[2].mlp.W_in.data[0, 0] = float("nan")
measure_entropy(bad, bad.to_tokens("The cat sat on the mat."))
""",
        related=("HS-FINITE-01", "headscope.HookedTransformer.reset_hooks"),
    ),
    Entry(
        code="HS-FINITE-03",
        error="NotFiniteError",
        title="A training loss that is not finite",
        symptom="The loss is nan at step 120; lower lr (0.1) or max_grad_norm (1.0).",
        cause="The steps were too large, and the weights are lost.",
        repair="Lower `lr` or `max_grad_norm`, warm up longer, and begin anew or from the last snapshot.",
        related=("headscope.training.train",),
    ),
    Entry(
        code="HS-RUN-01",
        error="InvalidInputError",
        title="A folder that holds a run already",
        symptom="'...run' holds a run already. Go on with it by resume=True (--resume), or give another folder.",
        cause="`out` names a folder in which a run was begun, and nothing is overwritten.",
        repair=(
            "Go on with it by `resume=True` (`--resume`), which gives the result at once if the run was finished; "
            "or give another folder."
        ),
        example="""
from headscope.analysis import measure_entropy
measure_entropy(model, model.to_tokens("The cat sat on the mat."), out=folder / "run")
measure_entropy(model, model.to_tokens("The cat sat on the mat."), out=folder / "run")
""",
        related=("HS-RUN-02", "scale.md"),
    ),
    Entry(
        code="HS-RUN-02",
        error="InvalidInputError",
        title="A run that was begun with something else",
        symptom=(
            "'...run' holds another run: options.baseline is 'zero' there and 'mean' here. Resume it with what it "
            "was begun with, or give another folder."
        ),
        cause=(
            "The model, the data or an option is not that of the run in the folder, and a sum over two different "
            "measurements has no meaning."
        ),
        repair="Resume with what the message says the run was begun with, or give another folder.",
        example="""
from headscope.analysis import measure_entropy
tokens = model.to_tokens("The cat sat on the mat.")
measure_entropy(model, tokens, out=folder / "run")
measure_entropy(model, tokens, baseline="mean", out=folder / "run", resume=True)
""",
        related=("HS-RUN-01", "HS-RUN-03"),
    ),
    Entry(
        code="HS-RUN-03",
        error="InvalidInputError",
        title="Data that are not those of the run",
        symptom=(
            "the data is not that of the run in 'run': it ends after 3 batches, and 4 were gone through there. "
            "Give the same data, or another folder."
        ),
        cause=(
            "The batches are checked against hashes in the run's folder, and differ: other texts, another order, "
            "another length of rows."
        ),
        repair=(
            "Give the same data in the same order, or another folder. A `DataLoader` that shuffles gives another "
            "order each time."
        ),
        related=("HS-RUN-02", "headscope.data.Corpus"),
    ),
    Entry(
        code="HS-RUN-04",
        error="InvalidInputError",
        title="A run of another version",
        symptom=(
            "the run in 'run' was begun with other software (torch 2.6.0, here 2.7.1), and its shards are merged "
            "only with others of the same. Go on with that, or give another folder."
        ),
        cause=(
            "The folder was begun by another version of headscope or PyTorch, whose numbers may differ in the last "
            "digits; shards of both would not be one measurement."
        ),
        repair="Go on with the version the message names, or begin anew in another folder.",
        related=("HS-RUN-02", "scale.md"),
    ),
    Entry(
        code="HS-RUN-05",
        error="InvalidInputError",
        title="A folder that is no run's",
        symptom=(
            "'...' is no run's folder: it has no manifest.json, and holds 'notes.txt'. Give an empty folder, or "
            "one that does not exist yet."
        ),
        cause="`out` names a folder with other files in it. A run would mix its own with them.",
        repair="Give an empty folder, or one that does not exist yet.",
        example="""
from headscope.analysis import measure_entropy
(folder / "notes.txt").write_text("mine")
measure_entropy(model, model.to_tokens("The cat sat on the mat."), out=folder)
""",
        related=("HS-RUN-01",),
    ),
    Entry(
        code="HS-RUN-06",
        error="InvalidInputError",
        title="Resuming without a folder",
        symptom="resume=True goes on with the run in a folder; say which by out.",
        cause="`resume=True`, and an engine, go on with the run in a folder, and none was named.",
        repair='Name it: `out="run"` (`--out run`).',
        example="""
from headscope.analysis import measure_entropy
measure_entropy(model, model.to_tokens("The cat sat on the mat."), resume=True)
""",
        related=("HS-RUN-01", "scale.md"),
    ),
    Entry(
        code="HS-RUN-07",
        error="InvalidInputError",
        title="An iterator that is used up",
        symptom=(
            "baseline='mean' goes through the data twice, and an iterator is used up after the first time. Give "
            "tokens, a list, a DataLoader or a Corpus."
        ),
        cause="Some analyses go through the data twice, first for means, and a generator can be gone through once.",
        repair=(
            "Give tokens, a list, a `DataLoader` or a `Corpus`; a `Corpus` takes a function that makes the generator."
        ),
        example="""
from headscope.analysis import measure_entropy
batches = (batch for batch in [model.to_tokens("The cat sat on the mat.")])
measure_entropy(model, batches, baseline="mean")
""",
        related=("headscope.data.Corpus",),
    ),
    Entry(
        code="HS-RUN-08",
        error="InvalidInputError",
        title="A worker with another model",
        symptom=(
            "the weights of 'gpt2' are not those of the run in '/shared/run', whose model is 'gpt2-medium'. Give "
            "the same, loaded with the same options."
        ),
        cause=(
            "A worker of a run on several machines loaded weights or a config that are not those the run was begun "
            "with: another checkpoint, dtype or way of processing."
        ),
        repair="Load it with the same options; or leave `model=` out, and workers get a copy of the model as it is.",
        related=("scale.md", "HS-RUN-04"),
    ),
    Entry(
        code="HS-RUN-09",
        error="InvalidInputError",
        title="Data in which no position counts",
        symptom=(
            "no position counts: each is padding, BOS, or the last of its row. Give longer rows, or include_bos=True."
        ),
        cause=(
            "BOS and padding are left out, and the last token of a row has no next one; nothing is left to measure."
        ),
        repair="Give longer rows, or `include_bos=True` where a row's first token is like any other.",
        example="""
from headscope.analysis import next_token_loss
next_token_loss(model, torch.tensor([[0]]))
""",
        related=("headscope.analysis.measure_entropy",),
    ),
    Entry(
        code="HS-INCOMPLETE-01",
        error="IncompleteRunError",
        title="Shards that are still to be measured",
        symptom=(
            "60 of 64 shards of 'entropy' in '/shared/run' are measured; 3, 17, 18, 40 are not. When all are, "
            "merge them: headscope merge /shared/run"
        ),
        cause="Some shards of the run have no result: other machines are still at them, or stopped.",
        repair=(
            "`headscope status FOLDER` shows who is at what. Start the missing parts again; when all are there, "
            "`headscope merge FOLDER`."
        ),
        related=("headscope.scale.status", "headscope.scale.merge", "scale.md"),
    ),
    Entry(
        code="HS-STORAGE-01",
        error="StorageError",
        title="A full disk in the middle of a run",
        symptom=(
            "/scratch/run/entropy.safetensors could not be written: No space left on device. What was there before "
            "stands: make room, or mend what is in the way, and go on with resume=True (--resume)."
        ),
        cause="A file of the run could not be written. What was measured and written before still stands.",
        repair="Make room, then go on with `resume=True` (`--resume`).",
        related=("HS-RUN-01",),
    ),
    Entry(
        code="HS-SHARD-01",
        error="ShardError",
        title="A shard that failed again and again",
        symptom=(
            "shard 17 of 'entropy' failed 3 times, last in process 4711 of this machine: out of memory. The "
            "other shards are kept; resume=True (--resume) goes on with the run."
        ),
        cause="The same shard failed on every worker that tried it, for the reason in the message: often memory.",
        repair=(
            "Mend the reason (smaller `batch_size`, fewer workers a machine), and go on with `resume=True`; shards "
            "that are done are kept."
        ),
        related=("HS-INCOMPLETE-01", "scale.md"),
    ),
    Entry(
        code="HS-CHECKPOINT-14",
        error="CheckpointError",
        title="A file that holds another result, or part of one",
        symptom="...scores.safetensors holds 'head_scores', not 'entropy'.",
        cause="The file was saved by another class, or is not whole.",
        repair="Load it by the class that the message names.",
        example="""
from headscope.analysis import EntropyResult, head_scores
head_scores(model, model.to_tokens("The cat sat on the mat.")).save(folder / "scores.safetensors")
EntropyResult.load(folder / "scores.safetensors")
""",
        related=("results.md",),
    ),
    Entry(
        code="HS-CHECKPOINT-15",
        error="CheckpointError",
        title="A damaged file of a run",
        symptom="run/entropy.safetensors is damaged: its content does not match its checksum.",
        cause="A file of the run does not have the checksum that was written with it.",
        repair=(
            "Delete what the message names: `resume=True` makes it again from the rest. Without that, delete the "
            "folder and start again."
        ),
        related=("HS-RUN-01", "scale.md"),
    ),
)
