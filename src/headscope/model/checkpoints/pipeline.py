"""Loading of checkpoints: files -> our names -> processing -> a model, one tensor at a time.

Safetensors and GGUF files are memory-mapped: a tensor's bytes are read when it is copied into its final layout, and its
pages are released right after. Processing works in place on these copies, and they become the model's parameters, so
that there is never a second copy of the weights. No Hugging Face model is built, and no code from a checkpoint is ever
run.
"""

import copy
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from headscope.differences import tell
from headscope.errors import (
    CheckpointError,
    HeadscopeError,
    InvalidInputError,
    NotFiniteError,
    UnknownNameError,
    unknown_name,
)
from headscope.model.checkpoints.entries import ReadEntries, naming_entries
from headscope.model.checkpoints.families import FAMILIES, family_of, saved_with
from headscope.model.checkpoints.folder import CheckpointFolder, read_pickle
from headscope.model.checkpoints.gguf.checkpoint import GGUFCheckpoint
from headscope.model.checkpoints.hub import fetch_file, find_checkpoint
from headscope.model.checkpoints.names import HUB_IDS
from headscope.model.checkpoints.quantized import dequantized
from headscope.model.checkpoints.training import TrainingCheckpoint, find_training_checkpoint
from headscope.model.config import HookedTransformerConfig
from headscope.model.config_checks import keep_first_layers, parse_dtype
from headscope.model.parts.attention import FIELD_BUFFERS
from headscope.model.parts.layers import MLP, LayerNormPre, RMSNormPre, make_final_norm, make_pre_norm
from headscope.model.protocols import Model
from headscope.model.text.tokens import PaddingSide
from headscope.model.weights.mapped import give_back_blocks
from headscope.model.weights.placement import DeviceMap, balanced_device_map, gpus
from headscope.model.weights.processing import WeightProcessing, process_weights, unfolded_norm

__all__ = ["fill", "find_tokenizer", "load_pretrained", "open_checkpoint", "with_its_options"]

logger = logging.getLogger("headscope")

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")
_WITHOUT_EFFECT = ("trust_remote_code", "low_cpu_mem_usage")
# A folder or a file: both have a path, `config()`, `tensors()` and `tokenizer()`.
Checkpoint = CheckpointFolder | GGUFCheckpoint
_PARTS = ("embed", "pos_embed", "blocks", "ln_final", "unembed")

Loaded = TypeVar("Loaded", bound=Model)
Method = TypeVar("Method", bound=Callable[..., Any])


def load_pretrained(
    cls: type[Loaded],
    model_name: str | Path | None,
    fold_ln: bool | None = None,
    center_writing_weights: bool | None = None,
    center_unembed: bool | None = None,
    refactor_factored_attn_matrices: bool | None = None,
    *,
    fold_value_biases: bool | None = None,
    hf_model: Any = None,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    default_padding_side: PaddingSide | None = None,
    default_prepend_bos: bool | None = None,
    first_n_layers: int | None = None,
    n_ctx: int | None = None,
    mapped: bool = False,
    move_to_device: bool = True,
    n_devices: int = 1,
    device_map: DeviceMap | Literal["auto"] | None = None,
    checkpoint_index: int | None = None,
    checkpoint_value: int | None = None,
    checkpoint_label: int | str | None = None,
    **hub_options: Any,
) -> Loaded:
    """Make a model of class `cls` from a checkpoint.

    A folder that `save_pretrained` wrote gives the model that was saved, to the bit: it is processed only where a flag
    asks for it by name, and never twice.

    Args:
        cls: `HookedTransformer` or a subclass; called as `cls(cfg, tokenizer, ...)`.
        model_name: `"headscope-demo"`, a short name, a hub id, a directory, a GGUF file, or one on the hub
            (`"owner/model:file.gguf"`); may be `None` with `hf_model`.
        fold_ln: Fold the norms' weights into the weights that read them. The defaults of this flag and those below
            are those of `WeightProcessing`.
        center_writing_weights: Center the weights that write to the residual stream (LayerNorm models).
        center_unembed: Center the unembedding over tokens.
        refactor_factored_attn_matrices: Factor QK and OV by SVD.
        fold_value_biases: Move value biases into the output bias.
        hf_model: Take config and weights from this `transformers` model instead of files; `model_name` is then used
            for the tokenizer only.
        tokenizer: Use this tokenizer instead of the checkpoint's.
        device: Device of the model.
        dtype: Floating-point dtype to convert the weights to; float32 by default, or that of the model saved.
        torch_dtype: The same, by the name used in `transformers`.
        default_padding_side: `"left"` or `"right"` (the default, or that of the model saved).
        default_prepend_bos: Prepend BOS to text by default; `None` means what `config.json` says of it, or as in
            TransformerLens 3.9, which does for all families but those listed in `docs/migration.md`.
        first_n_layers: Keep only the first layers.
        n_ctx: A shorter context than the checkpoint's.
        mapped: On the CPU, and without weight processing (as for a folder of `save_pretrained`), use the weights in
            the checkpoint's files as they lie there, where their layout and dtype allow it: several processes then
            share one copy in memory, and of a model of more than `Budget.mapped_bytes` (1 GiB) a block is there only
            while it runs. They are not checked for NaN.
        move_to_device: `False` leaves the model on the CPU.
        n_devices: Spread the layers over this many GPUs, about the same number of bytes on each.
        device_map: Device of each part (see `Placement.place`), or `"auto"` to spread over all GPUs.
        checkpoint_index: Index of a training checkpoint, for models that have them (Pythia, Stanford's GPT-2, the
            field's small models).
        checkpoint_value: The same, by training step, or by number of tokens (see `get_checkpoint_labels`).
        checkpoint_label: The same, by training step or by the name of its revision (`"step1000"`).
        hub_options: `revision`, `cache_dir`, `token` and `local_files_only`, for files on the hub. `trust_remote_code`
            and `low_cpu_mem_usage` are accepted and ignored: no code of a checkpoint is ever run, and the weights are
            never in memory twice.

    Raises:
        UnknownNameError: For an unknown model name or option.
        InvalidInputError: For a training checkpoint that does not exist, more devices than there are, or a longer
            context than the checkpoint has positions for.
        CheckpointError: For a checkpoint that is missing, incomplete, corrupt or not supported.
        NotFiniteError: For weights that are NaN or infinite.
    """
    if model_name is None and hf_model is None:
        raise InvalidInputError("give a model name, or a transformers model as hf_model.")
    spread = gpus() if device_map == "auto" else gpus(n_devices) if n_devices != 1 else None
    for name in hub_options:
        if name not in (*_HUB_OPTIONS, *_WITHOUT_EFFECT):
            raise unknown_name("option of from_pretrained", name, [*_OPTIONS, *_HUB_OPTIONS], code="HS-NAME-05")
    hub = {name: value for name, value in hub_options.items() if name in _HUB_OPTIONS}
    model_name = None if model_name is None else str(model_name)
    if n_ctx is None and HUB_IDS.get(str(model_name).lower(), str(model_name)).startswith("roneneldan/TinyStories"):
        tell("context")
    training: TrainingCheckpoint | None = None
    label = checkpoint_value if checkpoint_label is None else checkpoint_label
    if checkpoint_index is not None or label is not None:
        training = find_training_checkpoint(str(model_name), index=checkpoint_index, label=label, **hub)
        hub |= {} if training.revision is None else {"revision": training.revision}
    checkpoint = None if hf_model is not None else open_checkpoint(find_checkpoint(str(model_name), **hub))
    hf_config = ReadEntries(hf_model.config.to_dict() if checkpoint is None else checkpoint.config())
    where, saved = "hf_model" if checkpoint is None else str(checkpoint.path), saved_with(hf_config)
    cfg = make_config(
        hf_config,
        where,
        model_name=model_name,
        device=device,
        dtype=dtype if torch_dtype is None else torch_dtype,
        default_prepend_bos=default_prepend_bos,
        first_n_layers=first_n_layers,
        training=training,
    )
    tensors: Mapping[str, Tensor]
    if checkpoint is None:
        tensors = hf_model.state_dict()
    elif training is not None and training.file is not None:
        tensors = read_pickle(fetch_file(str(model_name), training.file, **hub))
    else:
        tensors = checkpoint.tensors()
    flags = {
        "fold_ln": fold_ln,
        "center_writing_weights": center_writing_weights,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    given = {name: flag for name, flag in flags.items() if flag is not None}
    if saved is None:
        processing = WeightProcessing(**given)
    else:
        wanted = {name: given.get(name, False) and name not in saved.processing for name in flags}
        processing = WeightProcessing(**wanted)
    # Rewrites change weights where they are, each once, and a file may hold one tensor for two of them.
    mapped = mapped and not any(dataclasses.astuple(processing))
    read = CountedTensors(dequantized(tensors, hf_config), beside=family_of(hf_config).ignore)
    with naming_entries(hf_config, where):
        weights = converted(read, cfg, hf_config, first_n_layers=first_n_layers, mapped=mapped)
    if "model_type" in hf_config:
        hf_config.check_all_read()
    if first_n_layers:
        keep_first_layers(cfg, first_n_layers)
    if n_ctx is not None:
        if not 1 <= n_ctx <= cfg.n_ctx:
            raise InvalidInputError(f"n_ctx must be between 1 and the checkpoint's {cfg.n_ctx}; got {n_ctx}.")
        if "pos_embed.W_pos" in weights:
            # A slice would keep the memory of all positions alive.
            weights["pos_embed.W_pos"] = weights["pos_embed.W_pos"][:n_ctx].clone()
        cfg.n_ctx = n_ctx
    if tokenizer is None:
        tokenizer, cfg.tokenizer_name = _tokenizer_of(model_name, checkpoint, hub, cfg.tokenizer_name)
    side = default_padding_side or ("right" if saved is None else saved.padding_side)
    model: Any = cls(cfg, tokenizer, move_to_device=False, default_padding_side=side)
    model.weight_processing = () if saved is None else saved.processing
    model.n_params_checkpoint = read.counted if saved is None else None if first_n_layers else saved.n_params
    fill(model, weights, processing, in_place=True)
    if mapped:
        give_back_blocks(model)
    if device_map is not None and not isinstance(device_map, str):
        return model.place(device_map)
    if spread is not None:
        return model.place(balanced_device_map(model, spread))
    return model.to(cfg.device) if move_to_device else model


_OPTIONS = tuple(inspect.signature(load_pretrained).parameters)[2:-1]


def with_its_options(method: Method) -> Method:
    """Give a class method that hands its arguments on to `load_pretrained` that signature, for `help` and `inspect`."""
    method.__signature__ = inspect.signature(load_pretrained)  # type: ignore[attr-defined]
    return method


def fill(
    model: Model,
    weights: Mapping[str, Tensor],
    processing: WeightProcessing,
    *,
    in_place: bool = False,
) -> None:
    """Process weights and make them the parameters of a model, replacing its norms to match.

    A model whose config says that its norms are folded takes weights that still have them, and `fold_ln` folds them.
    The parameters keep the model's dtype and device.

    Args:
        model: The model to fill.
        weights: Weights under the model's names.
        processing: The rewrites to run first.
        in_place: Use and change these tensors themselves; otherwise they are copied.

    Raises:
        CheckpointError: For missing or unused names, or a wrong shape, each by name.
    """
    parameters = {name: p for name, p in model.named_parameters() if name.split(".")[0] in _PARTS}
    # Parameters that a subclass added are in no checkpoint; buffers of old checkpoints are not parameters here.
    others = model.state_dict().keys() - parameters.keys()
    weights = {
        name: weight
        for name, weight in weights.items()
        if name not in others and not name.endswith(tuple(f".attn.{buffer}" for buffer in FIELD_BUFFERS))
    }
    cfg, norms = copy.copy(model.cfg), _norms_before_folding(model, parameters["unembed.W_U"])
    if processing.fold_ln and not weights.keys().isdisjoint(norms):
        cfg.normalization_type = unfolded_norm(cfg)
        parameters |= norms
    _check_fit(parameters, weights)
    if cfg.gated_mlp and any(name.endswith("mlp.b_in") and bool(bias.any()) for name, bias in weights.items()):
        tell("gated biases")
    state, norm, done = process_weights(weights, cfg, processing, in_place=in_place)
    if norm != model.cfg.normalization_type:
        model.cfg.normalization_type = norm
        _replace_norms(model)
    own = {}
    for name in list(state):
        # Popped one by one, so that a tensor that has to be converted is released before the next.
        tensor, like = state.pop(name), parameters[name]
        device = tensor.device if like.is_meta else like.device
        # Contiguous, so that a state dict can be saved as it is.
        own[name] = nn.Parameter(tensor.to(device, like.dtype).contiguous(), requires_grad=like.requires_grad)
    model.load_state_dict(own, assign=True, strict=False)
    model.weight_processing = tuple(dict.fromkeys((*model.weight_processing, *done)))
    model.setup()


def _norms_before_folding(model: Model, like: nn.Parameter) -> dict[str, nn.Parameter]:
    """Return the norms' parameters that a model built as folded lacks, and weights still to be folded have."""
    return {
        f"{path}.{name}": nn.Parameter(like.new_empty(norm.length), requires_grad=like.requires_grad)
        for path, norm in model.named_modules()
        if isinstance(norm, LayerNormPre | RMSNormPre)
        for name in ("wb" if norm.centered else "w")
    }


def _check_fit(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    missing, unused = sorted(set(parameters) - set(weights)), sorted(set(weights) - set(parameters))
    if missing or unused:
        raise CheckpointError(
            "the weights do not match the model."
            + (f" Missing: {', '.join(missing[:5])}." if missing else "")
            + (f" Unused: {', '.join(unused[:5])}." if unused else ""),
            code="HS-CHECKPOINT-07",
        )
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            raise CheckpointError(
                f"{name} must have shape {list(parameter.shape)}; got {list(weights[name].shape)}.",
                code="HS-CHECKPOINT-08",
            )


def _replace_norms(model: Model) -> None:
    for layer, block in enumerate(model.blocks):
        for name in ("ln1", "ln2"):
            if name in dict(block.named_children()):
                setattr(block, name, make_pre_norm(model.cfg, layer))
        for part in block.modules():
            if isinstance(part, MLP):
                part.reset_norm()
    model.ln_final = make_final_norm(model.cfg)


def make_config(
    hf_config: Mapping[str, Any],
    where: str,
    *,
    model_name: str | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    default_prepend_bos: bool | None,
    first_n_layers: int | None,
    training: TrainingCheckpoint | None,
) -> HookedTransformerConfig:
    """Convert a Hugging Face config to ours, of all its layers; `first_n_layers` is checked, not applied."""
    fields = config_fields(hf_config, where)
    if first_n_layers is not None and not 1 <= first_n_layers <= fields["n_layers"]:
        raise InvalidInputError(f"first_n_layers must be between 1 and {fields['n_layers']}; got {first_n_layers}.")
    if default_prepend_bos is not None:
        fields["default_prepend_bos"] = default_prepend_bos
    with naming_entries(hf_config, where):
        architecture = next(iter(hf_config.get("architectures") or []), family_of(hf_config).architecture)
    fields = {
        "original_architecture": architecture,
        "model_name": _display_name(model_name, hf_config),
        **fields,
        "device": device,
        "init_weights": False,
    }
    if dtype is not None:
        fields["dtype"] = parse_dtype(dtype)
    if training is not None:
        fields |= {"from_checkpoint": True, "checkpoint_index": training.index, "checkpoint_value": training.value}
        fields["checkpoint_label_type"] = training.label_type
    with naming_entries(hf_config, where):
        return HookedTransformerConfig(**fields)


class CountedTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors, and how many numbers those hold that were kept, each counted once.

    Args:
        tensors: Where they are read from; may be lazy.
        beside: Endings of names that are no parameters.
    """

    def __init__(self, tensors: Mapping[str, Tensor], beside: Iterable[str] = ()) -> None:
        self._tensors = tensors
        self._beside = tuple(beside)
        self._seen: set[str] = set()
        self._since = 0
        self.counted = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        self._since += 0 if name in self._seen or name.endswith(self._beside) else tensor.numel()
        self._seen.add(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def count(self, *, kept: bool) -> None:
        """Count what was read for the first time since the last call, if it is kept."""
        self.counted += self._since * kept
        self._since = 0


def converted(
    tensors: CountedTensors,
    cfg: HookedTransformerConfig,
    hf_config: Mapping[str, Any],
    *,
    first_n_layers: int | None = None,
    mapped: bool = False,
) -> dict[str, Tensor]:
    """Convert a checkpoint's tensors to our names and the config's dtype, and check that they are finite.

    Those that may stay `mapped`, since they are as they should be, are taken as they lie in their files, unread.
    """
    state = {}
    for name, theirs in family_of(hf_config).convert(tensors, cfg, hf_config):
        left_out = first_n_layers and name.startswith("blocks.") and int(name.split(".")[1]) >= first_n_layers
        # Some files hold a tied unembedding too, which is the embedding once more.
        tensors.count(kept=not left_out and not (name == "unembed.W_U" and cfg.tie_word_embeddings))
        if left_out:
            continue
        tensor = theirs.detach()
        if mapped and tensor.dtype == cfg.dtype:
            state[name] = tensor
            continue
        own = torch.empty(tensor.shape, dtype=cfg.dtype, device=tensor.device).copy_(tensor)
        # Drops the last references to the memory map, so that its pages need not stay in memory.
        del theirs, tensor
        if own.numel() and not bool(torch.stack(own.aminmax()).isfinite().all()):
            raise NotFiniteError(
                f"weight {name} holds NaN or infinite values: the checkpoint is damaged or diverged in training.",
                code="HS-FINITE-01",
            )
        state[name] = own
    return state


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder or a GGUF file."""
    return GGUFCheckpoint(path) if path.suffix.lower() == ".gguf" else CheckpointFolder(path)


def config_fields(hf_config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert a Hugging Face config to fields of ours, with a clear error for a missing entry."""
    own_code = hf_config.get("auto_map")
    if own_code:
        family = FAMILIES.get(str(hf_config.get("model_type")))
        code = own_code.get("AutoModelForCausalLM") if isinstance(own_code, Mapping) else None
        name = str(code).rpartition("--")[2]  # there may be a repository in front of it
        if family is None or name not in family.adopted:
            raise CheckpointError(
                f"{where} needs its own code to run (auto_map in config.json), and code from checkpoints is never run.",
                code="HS-CHECKPOINT-10",
            )
    try:
        with naming_entries(hf_config, where):
            return family_of(hf_config).config(hf_config)
    except HeadscopeError:
        raise
    except KeyError as error:
        raise CheckpointError(f"config.json of {where} lacks {error.args[0]!r}.") from None


def _tokenizer_of(
    model_name: str | None, checkpoint: Checkpoint | None, hub: dict[str, Any], named: str | None
) -> tuple[Any, str | None]:
    """Return the tokenizer of a checkpoint, and its source.

    If it has none, it is that of the model named in the checkpoint's config; for weights from elsewhere,
    that of the model of this name, if available.
    """
    tokenizer = None if checkpoint is None else checkpoint.tokenizer()
    name = model_name if checkpoint is None or tokenizer is not None else named
    if tokenizer is None and name is not None:
        # The revision belongs to the checkpoint, not to another repository.
        options = hub if checkpoint is None else {key: value for key, value in hub.items() if key != "revision"}
        try:
            tokenizer = open_checkpoint(find_checkpoint(name, weights=False, **options)).tokenizer()
        except (CheckpointError, UnknownNameError) as error:
            logger.warning("the model has no tokenizer: none was found for %r. %s", name, error)
    return tokenizer, None if tokenizer is None else name


def find_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model, named as for `find_checkpoint`; weights are not fetched.

    Raises:
        CheckpointError: If there is none, or it cannot be reached.
    """
    try:
        tokenizer = open_checkpoint(find_checkpoint(name, weights=False)).tokenizer()
        reason = "there are no tokenizer files."
    except (CheckpointError, UnknownNameError) as error:
        tokenizer, reason = None, error.message
    if tokenizer is None:
        raise CheckpointError(
            f"no tokenizer was found for cfg.tokenizer_name = {name!r}: {reason} Pass one as tokenizer=, or set "
            "cfg.tokenizer_name = None and cfg.d_vocab for a model that takes only tokens.",
            code="HS-CHECKPOINT-13",
        )
    return tokenizer


def _display_name(model_name: str | None, hf_config: Mapping[str, Any]) -> str:
    if model_name is None:
        return hf_config.get("_name_or_path") or str(hf_config.get("model_type", "custom"))
    path = Path(model_name).expanduser()
    return path.resolve().name if path.exists() else model_name
