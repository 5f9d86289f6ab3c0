"""The demo model: its recipe, and the checkpoint it writes.

`headscope-demo` is a GPT-2-style model of about a million parameters. Two things make its circuits form within
minutes. First, the data: mostly short rows of repeated random tokens, where only looking back helps, so that induction
forms first; then mostly the small English, in short rows and finally in rows of the full context. Second, an
initialization that makes looking back easy: large random token embeddings (nearly orthogonal codes that a head can
match), sinusoidal positions with mostly high frequencies (so that "one before" is a rotation large enough to tell
neighbors apart), and small outputs (so that layers do not drown the embeddings).

The checkpoint has the layout of a Hugging Face GPT-2, with float16 weights.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor

from headscope.data.packing import tokenize_and_concatenate
from headscope.data.random_tokens import repeated_random_tokens
from headscope.data.small_english import documents, ioi_prompts
from headscope.errors import InvalidInputError, check_at_least
from headscope.model.checkpoints.families.gpt2 import GPT2
from headscope.model.checkpoints.folder import CheckpointFolder
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer
from headscope.training.tokenizer import train_tokenizer
from headscope.training.toy_configs import easy_positions
from headscope.training.trainer import LanguageTrainConfig, TrainHistory, train_language_model

__all__ = ["DEMO_BATCH", "DEMO_STEPS", "demo_config", "train_demo"]

DEMO_STEPS = 2800
DEMO_BATCH = 2048  # tokens in a step, at every stage
_N_CTX = 256
_VOCAB_SIZE = 1024
_TOKENIZER_DOCUMENTS = 20_000
_SAMPLE_SEED = 10_000
_SAMPLE_TOKENS = 800
_SAMPLE_PROMPTS = 24


@dataclass(frozen=True)
class _Stage:
    """A stage of training, with the composition of its batches.

    Attributes:
        share: Fraction of all steps.
        length: Tokens per row, including BOS.
        english: Rows of small English in a batch.
        repeats: Rows of repeated random tokens in a batch.
        shortest: Shortest period of random tokens; the longest is half a row, and log-lengths are uniform.
    """

    share: float
    length: int
    english: int
    repeats: int
    shortest: int


_STAGES = (
    _Stage(share=0.25, length=64, english=8, repeats=24, shortest=3),
    _Stage(share=0.40, length=64, english=24, repeats=8, shortest=8),
    _Stage(share=0.35, length=_N_CTX, english=5, repeats=3, shortest=8),
)


def train_demo(out: str | Path, *, seed: int = 0, steps: int = DEMO_STEPS, progress: bool = True) -> TrainHistory:
    """Train the demo model and write its checkpoint, in the layout of a Hugging Face GPT-2.

    The directory gets `config.json`, `model.safetensors` (float16), the tokenizer's files, `sample.txt` and
    `ioi_prompts.jsonl`, all at the end of training, so that nothing partial is left behind. The same seed, steps,
    machine, torch and number of threads give the same weights.

    Args:
        out: Directory to write to; created if missing.
        seed: Seed of the data and of the initial weights.
        steps: Optimizer steps in all. With far fewer than the default, the circuits do not form.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: If `steps` is below 1, or `out` is a file.

    Example:
        >>> import tempfile
        >>> from headscope import HookedTransformer
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     history = train_demo(directory, steps=2, progress=False)
        ...     model = HookedTransformer.from_pretrained(directory)
        >>> len(history.loss), model.cfg.n_layers
        (2, 5)
    """
    out = Path(out)
    check_at_least(1, steps=steps)
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f"{out} is a file; give a directory for the checkpoint.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = CheckpointFolder(_write_tokenizer(Path(directory), seed)).tokenizer()
    model = HookedTransformer(demo_config(len(tokenizer), seed), tokenizer)
    _initialize(model)
    cfg = LanguageTrainConfig(steps=steps, lr=4e-3, warmup=min(100, steps // 4))
    history = train_language_model(model, _batches(tokenizer, seed, steps), cfg, progress=progress)
    with tempfile.TemporaryDirectory(prefix=".train-demo-", dir=out.parent) as directory:
        partial = _write_tokenizer(Path(directory), seed)
        _write_checkpoint(model, partial)
        _write_samples(tokenizer, partial)
        out.mkdir(exist_ok=True)
        for path in sorted(partial.iterdir()):
            path.replace(out / path.name)
    return history


def demo_config(d_vocab: int = _VOCAB_SIZE, seed: int = 0) -> HookedTransformerConfig:
    """Return the config of the demo model."""
    return HookedTransformerConfig(
        n_layers=5,
        d_model=128,
        n_ctx=_N_CTX,
        d_head=32,
        n_heads=4,
        d_mlp=256,
        act_fn="gelu_new",
        d_vocab=d_vocab,
        normalization_type="LN",
        initializer_range=0.09,
        seed=seed,
        device="cpu",
        model_name="headscope-demo",
    )


@torch.no_grad()
def _initialize(model: HookedTransformer) -> None:
    """Scale the initial weights so that circuits form soon (see the module's docstring)."""
    # Positions are frozen: while rows are short, training would move the first ones away from the later ones.
    easy_positions(model)
    model.unembed.W_U.mul_(0.02 / model.cfg.initializer_range)
    for name, parameter in model.named_parameters():
        if name.endswith(("attn.W_O", "mlp.W_out")):
            parameter.mul_(0.316)
    # GPT-2 has no such bias, and the checkpoint must be one.
    model.unembed.b_U.requires_grad_(False)


def _batches(tokenizer: Any, seed: int, steps: int) -> Iterator[Int[Tensor, "batch pos"]]:
    """Yield batches of small English and repeated random tokens, stage by stage."""
    generator = torch.Generator().manual_seed(seed)
    ends = [round(steps * sum(stage.share for stage in _STAGES[: i + 1])) for i in range(len(_STAGES))]
    texts = documents(seed)
    done = 0
    for stage, end in zip(_STAGES, ends, strict=True):
        rows = tokenize_and_concatenate(texts, tokenizer, max_length=stage.length, batch_size=stage.english)
        for _ in range(done, end):
            yield torch.cat([next(rows), _repeats(tokenizer, stage, generator)])
        done = end


def _repeats(tokenizer: Any, stage: _Stage, generator: torch.Generator) -> Int[Tensor, "batch pos"]:
    """Draw rows of repeated random tokens, each row with its own period."""
    special = set(tokenizer.all_special_ids)
    allowed = [token for token in range(len(tokenizer)) if token not in special]
    longest = (stage.length - 1) // 2
    rows = []
    for _ in range(stage.repeats):
        draw = float(torch.rand((), generator=generator, device="cpu"))
        length = round(stage.shortest * (longest / stage.shortest) ** draw)
        row = repeated_random_tokens(
            1,
            length,
            allowed=allowed,
            bos=tokenizer.bos_token_id,
            n_repeats=math.ceil(stage.length / length),
            seed=int(torch.randint(2**40, (), generator=generator, device="cpu")),
        )
        rows.append(row[:, : stage.length])
    return torch.cat(rows)


def _write_tokenizer(directory: Path, seed: int) -> Path:
    for name, content in _tokenizer_files(seed).items():
        (directory / name).write_bytes(content)
    return directory


@cache
def _tokenizer_files(seed: int) -> dict[str, bytes]:
    """Return the tokenizer's files by name; kept, as they are written twice and learning them takes seconds."""
    with tempfile.TemporaryDirectory() as directory:
        texts = documents(seed, n=_TOKENIZER_DOCUMENTS)
        trained = train_tokenizer(texts, directory, vocab_size=_VOCAB_SIZE, n_ctx=_N_CTX)
        return {path.name: path.read_bytes() for path in trained.iterdir()}


def _write_checkpoint(model: HookedTransformer, directory: Path) -> None:
    config, tensors = GPT2.export(model.cfg, model.state_dict())
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, directory / "model.safetensors", metadata={"format": "pt"})
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    config |= {"torch_dtype": "float16", **{name: getattr(model.tokenizer, name) for name in special}}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_samples(tokenizer: Any, directory: Path) -> None:
    """Write a sample text and some prompts, drawn with a seed of their own."""
    texts: list[str] = []
    n_tokens = 0
    for text in documents(_SAMPLE_SEED):
        texts.append(text)
        n_tokens += len(tokenizer.encode(f"{text}\n\n"))
        if n_tokens >= _SAMPLE_TOKENS:
            break
    (directory / "sample.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    lines = [json.dumps(asdict(prompt)) for prompt in ioi_prompts(_SAMPLE_PROMPTS, _SAMPLE_SEED)]
    (directory / "ioi_prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
