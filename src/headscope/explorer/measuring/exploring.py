"""`explore`: measure every head of a model on a text, and write the site that shows them.

Everything is measured by analyses that stream, each in a run folder of its own under `measured`, until the site is
whole: stopped at any moment, the same call with `resume=True` goes on.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.batches import check_repeatable, describe_data
from headscope.analysis.core.components import Component, all_heads
from headscope.analysis.core.progress import each_step
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.lens.entropy import measure_entropy
from headscope.analysis.lens.entropy_result import EntropyResult
from headscope.analysis.storage.sharded import Engine
from headscope.errors import InvalidInputError, check_at_least
from headscope.explorer.measuring.activity import HeadActivity, measure_activity
from headscope.explorer.measuring.found import Found
from headscope.explorer.measuring.records import config_of, head_record, scatter_row
from headscope.explorer.measuring.rows import PickedRows, mean_outputs, pick_rows, sampled_numbers
from headscope.explorer.measuring.sequences import chosen_sequences, measure_sequences
from headscope.explorer.measuring.written import Written, written_for
from headscope.explorer.tree.means import write_means
from headscope.explorer.tree.reading import Exploration, read_tree
from headscope.explorer.tree.writing import TreeWriter
from headscope.model.transformer import HookedTransformer

__all__ = ["ABLATION_TOKENS", "MEASURED", "entropy_sample", "explore"]

MEASURED = "measured"
ABLATION_TOKENS = 1024
_FEWEST = 8  # sequences for means
_OF_KINDS = 64  # sequences that kinds are told on
_SOURCES = 12  # tokens of each head whose OV rows are shown


def explore(
    model: HookedTransformer,
    data: Any,
    out: str | Path = "explorer",
    *,
    describe: str | None = None,
    sequences: int = 8,
    entropy_tokens: int | None = None,
    ablation_tokens: int = ABLATION_TOKENS,
    attention_mask: Tensor | None = None,
    include_bos: bool = False,
    resume: bool = False,
    engine: Engine | None = None,
    progress: bool = True,
) -> Exploration:
    """Measure every head of a model on a text, and write a site of static files that shows them.

    One pass over the data for what heads attend to and write (`measure_activity`), one over the sequences that are
    shown, and one over a sample each for entropy (`measure_entropy`) and ablation (`ablate_heads`, means over the
    sample in the place of outputs). Kinds are told by `detect_heads` on pieces of the text said twice, or on random
    tokens where the text is too short.

    Args:
        model: The model; hooks on it stay in force.
        data: Tokens `[batch, pos]`, or an iterable of such batches (or of mappings with `tokens` and
            `attention_mask`) that can be gone through twice.
        out: The folder to write to, which must be empty or an explorer's; made if necessary.
        describe: What the data is, in words.
        sequences: How many sequences of the largest activation are shown for each head, beside one of each tenth.
        entropy_tokens: Measure entropy on about so many tokens, in whole sequences drawn at random; 0 leaves it out.
            Default: one sequence in 128, at most 1,024; of a short text one in 16, up to eight, at least two.
        ablation_tokens: Ablate every head on about so many, at about half a forward pass a head; 0 leaves it out.
        attention_mask: 1 for real tokens, for a tensor of tokens; default: found from the padding token.
        include_bos: Let BOS positions count, in means too.
        resume: Go on with what was stopped in `out`; the model, the data and the options must be the same.
        engine: Who measures what is streamed, such as `headscope.scale.Processes(8)`; default: this process.
        progress: Show progress bars.

    Raises:
        InvalidInputError: For tokens that do not fit the model, no position that counts, an option out of range, or a
            folder with other files in it, or with measurements that are not to be resumed.
        NotFiniteError: If the model's activations are not finite.
        StorageError: If a file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens(["Mary and John went to the park. John gave a ball to Mary."] * 2)
        >>> with TemporaryDirectory() as folder:
        ...     found = explore(model, tokens, folder, ablation_tokens=0, progress=False)
        ...     head = found.head(0, 3)
        >>> found.config["n_heads"], round(head.measures["prev_token_score"]["value"], 2), len(head.ov_table)
        (4, 1.0, 12)
    """
    check_at_least(1, sequences=sequences)
    check_at_least(0, ablation_tokens=ablation_tokens, entropy_tokens=entropy_tokens or 0)
    check_repeatable(data, "explore")
    out, described = Path(out), describe or describe_data(data)
    _check_folder(out, resume)
    stages = _Stages(model, out / MEASURED, described, include_bos, engine, progress)
    activity: HeadActivity = stages.run(
        "activity", measure_activity, data, n_top=sequences, attention_mask=attention_mask, engine=engine
    )
    shown = chosen_sequences(activity, sequences, 1)
    n_rows = activity.info.n_sequences
    per_row = max(1.0, activity.info.n_positions / n_rows)
    of_entropy = entropy_sample(n_rows) if entropy_tokens is None else _sample(n_rows, per_row, entropy_tokens)
    of_ablation = _sample(n_rows, per_row, ablation_tokens)
    fewest, of_kinds = sampled_numbers(n_rows, _FEWEST), sampled_numbers(n_rows, _OF_KINDS)
    numbers = {each.sequence for each in shown}.union(of_entropy, of_ablation, fewest, of_kinds)
    rows = pick_rows(model, data, numbers, attention_mask)
    patterns = stages.run("sequences", measure_sequences, rows, shown)
    written = written_for(model, activity.key_tokens[:, :, :_SOURCES], activity.gains, progress=progress)
    entropy = _entropy(stages, rows, of_entropy)
    ablation = _ablation(stages, rows, of_ablation)
    types = _types(stages, rows.at(of_kinds))
    found = Found(
        heads=tuple((head.layer, int(head.head or 0)) for head in all_heads(model.cfg)),
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        provenance=_provenance(model, activity, rows, described, entropy, ablation, stages.notes),
        activity=activity,
        sequences=patterns,
        rows=rows,
        written=written,
        entropy=entropy,
        ablation=ablation,
        types=types,
        texts=_texts(model, activity, rows, written),
    )
    sample = max([of_entropy, of_ablation, fewest], key=len)
    return _write(found, model, mean_outputs(model, rows.at(sample), include_bos), out, progress)


def _check_folder(out: Path, resume: bool) -> None:
    """Refuse measurements of another call, which nobody said to go on with."""
    if (out / MEASURED).is_dir() and any((out / MEASURED).iterdir()) and not resume:
        raise InvalidInputError(
            f"{str(out / MEASURED)!r} holds the measurements of an exploration that was stopped. Go on with it by "
            "resume=True (--resume), delete that folder to begin anew, or write to another one."
        )
    TreeWriter.check(out)


class _Stages:
    """The analyses of an exploration, each in a run folder of its own; and notes on what could not be measured."""

    def __init__(
        self,
        model: HookedTransformer,
        folder: Path,
        described: str,
        include_bos: bool,
        engine: Engine | None,
        progress: bool,
    ) -> None:
        self.model, self._folder, self._engine = model, folder, engine
        self._options = {"describe": described, "include_bos": include_bos, "resume": True, "progress": progress}
        self.notes: list[str] = []

    def run(self, name: str, analysis: Any, *data: Any, **options: Any) -> Any:
        """Run an analysis, or go on with it, or read what it found."""
        return analysis(self.model, *data, **{**self._options, **options}, out=self._folder / name)

    def shared(self, name: str, analysis: Any, *data: Any, **options: Any) -> Any:
        """Run an analysis by whoever measures."""
        return self.run(name, analysis, *data, engine=self._engine, **options)

    def shared_batches(self, name: str, analysis: Any, rows: PickedRows, **options: Any) -> Any:
        """Run an analysis that takes long on few rows: in small batches, each kept when it is done, and shared."""
        # A run folder knows batches by words alone: which rows were drawn follows from their number.
        described = f"{self._options['describe']}, {len(rows.numbers)} sequences of it"
        return self.shared(name, analysis, rows.batches, describe=described, **options)


def entropy_sample(n_rows: int) -> list[int]:
    """Return the numbers of the rows that entropy is measured on by default: few, since each costs ten runs of it.

    Example:
        >>> [len(entropy_sample(n_rows)) for n_rows in (1, 32, 256, 10_000, 1_000_000)]
        [1, 2, 8, 78, 1024]
    """
    return sampled_numbers(n_rows, max(2, min(8, n_rows // 16), min(n_rows // 128, 1024)))


def _sample(n_rows: int, per_row: float, n_tokens: int) -> list[int]:
    """The numbers of the rows that something is measured on; none for 0."""
    return sampled_numbers(n_rows, round(n_tokens / per_row)) if n_tokens else []


def _entropy(stages: _Stages, rows: PickedRows, numbers: Sequence[int]) -> EntropyResult | None:
    if not numbers:
        stages.notes.append("The effect on entropy was left out (entropy_tokens=0).")
        return None
    found: EntropyResult = stages.shared("entropy", measure_entropy, rows.at(numbers).data)
    return found


def _ablation(stages: _Stages, rows: PickedRows, numbers: Sequence[int]) -> AblationResult | None:
    cfg = stages.model.cfg
    if not numbers:
        stages.notes.append("The effect on the loss was left out (ablation_tokens=0, --no-ablation).")
        return None
    if cfg.d_vocab_out != cfg.d_vocab or cfg.attention_dir != "causal":
        stages.notes.append("The effect on the loss was left out: the model does not predict the next token.")
        return None
    options = {"values": ["mean"], "effects": ["patched", "direct"], "reduce": "mean"}
    found: AblationResult = stages.shared_batches("ablation", ablate_heads, rows.at(numbers), **options)
    return found


def _types(stages: _Stages, rows: PickedRows) -> HeadTypes | None:
    """The kinds of the heads: on pieces of the text, else on random tokens, else none, and why."""
    for name, text in (("kinds", rows.data), ("kinds on random tokens", None)):
        try:
            found: HeadTypes = stages.run(name, detect_heads, text=text)
        except InvalidInputError as error:
            stages.notes.append(f"Kinds of heads {'on the text' if text is not None else ''}: {error}")
        else:
            stages.notes += found.notes
            return found
    return None


def _provenance(
    model: HookedTransformer,
    activity: HeadActivity,
    rows: PickedRows,
    described: str,
    entropy: EntropyResult | None,
    ablation: AblationResult | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Model, data and sizes, for the config."""
    found = {
        "model_name": activity.info.model,
        "dataset_name": described,
        "n_sequences": activity.info.n_sequences,
        "n_tokens": activity.info.n_positions,
        "seq_len": rows.tokens.shape[1],
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "weight_processing": list(activity.info.processing),
        "include_bos": activity.info.options["include_bos"],
        "notes": list(notes),
    }
    for name, result in (("entropy", entropy), ("ablation", ablation)):
        if result is not None:
            found[f"{name}_n_sequences"] = result.info.n_sequences
    return found


def _texts(model: HookedTransformer, activity: HeadActivity, rows: PickedRows, written: Written) -> dict[int, str]:
    """The text of every token that is shown; its number, for a model without a tokenizer."""
    lists = [activity.key_tokens, activity.query_tokens, activity.pair_queries, activity.pair_keys]
    shown = torch.cat([each.flatten() for each in (*lists, rows.tokens.cpu(), written.promoted, written.suppressed)])
    ids = [token for token in shown.unique().tolist() if token >= 0]
    if model.tokenizer is None:
        return {token: f" {token}" for token in ids}
    return {token: model.to_single_str_token(token) for token in ids}


def _write(
    found: Found, model: HookedTransformer, means: Mapping[Component, Tensor], out: Path, progress: bool
) -> Exploration:
    columns = found.columns()
    writer = TreeWriter(out)
    for layer, head in each_step(found.heads, "writing", shown=progress):
        writer.head(head_record(found, columns, layer, head))
    write_means(out, model, means)
    writer.finish(config_of(found, columns), [scatter_row(found, columns, *head) for head in found.heads])
    shutil.rmtree(out / MEASURED, ignore_errors=True)
    return read_tree(out)
