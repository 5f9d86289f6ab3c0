"""Entries of a `config.json`, with a record of those that were read, so that none is dropped in silence.

What a family reads changes the model, and what is listed here changes nothing it computes. An entry that is neither
may: it is refused if the class in `transformers` knows it and it is not at that class's default. Entries that the class
does not know are ignored there, and so they are here.
"""

import logging
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from headscope.errors import CheckpointError, HeadscopeError, MissingDependencyError

__all__ = ["ReadEntries", "changed", "defaulted", "naming_entries"]

logger = logging.getLogger(__name__)

# Entries about tokens, training, generation, other tasks, or the form of what is returned.
_CHANGE_NOTHING = re.compile(
    r"""_.* | architectures | auto_map | model_type | transformers_version | (torch_)?dtype | torchscript | return_dict
    | .*_token_ids? | .*_token_index | .*drop(out)?(_.*)? | .*pdrop | layerdrop | initializer_\w+ | init_(std|device)
    | rescale_prenorm_residual | use_cache | output_(attentions|hidden_states|router_logits)
    | (input|router)_jitter_noise | \w+_loss_coef | pretraining_tp | slow_but_exact | reorder_and_upcast_attn
    | (scale_)?attention_softmax_in_fp32 | chunk_size_feed_forward | is_encoder_decoder | is_decoder | id2label
    | label2id | num_labels | problem_type | summary_\w+ | classifier_\w+ | task_specific_params | finetuning_task
    | tokenizer_class | tokenizer_name | gradient_checkpointing | quantization_config | use_flash_attn\w*
    | use_mamba_kernels | num_logits_to_keep | mtp_\w+ | num_nextn_predict_layers | vision_\w+ | image_\w+ | audio_\w+
    | projector_\w+ | multimodal_\w+ | mm_\w+ | spatial_merge_size | base_model_\w+ | max_length | (do_)?sample
    | temperature | top_[kp]""",
    re.VERBOSE,
)
# Entries that are read where another entry asks for them, and count for nothing elsewhere.
_CONDITIONAL = re.compile(
    r"""(use_|_)?sliding_window(_pattern)? | max_window_layers | num_(ln_in_parallel_attn|kv_heads)
    | num_key_value_heads | num_local_experts | rope_\w+ | n_ctx | learned_pos_emb | embedding_fraction
    | layer_norm_eps | n_group | topk_group""",
    re.VERBOSE,
)


class ReadEntries(Mapping[str, Any]):
    """The entries of a config, and which of them were read.

    Args:
        entries: The config.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._read.add(str(name))
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def unread(self) -> dict[str, Any]:
        """Return the entries that nobody asked for and that may change what the model computes."""
        known = (_CHANGE_NOTHING, _CONDITIONAL)
        return {
            name: value
            for name, value in self._entries.items()
            if name not in self._read and not any(each.fullmatch(name) for each in known)
        }

    def check_all_read(self) -> None:
        """Refuse what was not read if it may change the logits.

        Raises:
            CheckpointError: For entries that the class in `transformers` knows, with other values than its defaults.
            MissingDependencyError: If the installed version has no such class, and cannot tell.
        """
        unread = self.unread()
        if not unread:
            return
        model_type = self._entries.get("model_type")
        defaults = {} if model_type is None else _defaults(model_type, min(unread))
        refused = []
        for name, value in unread.items():
            if name not in defaults:
                logger.info("config.json has %s = %r, which transformers ignores, and so does headscope.", name, value)
            elif value != defaults[name]:
                refused.append(f"{name} = {value!r} (the default is {defaults[name]!r})")
        if refused:
            raise CheckpointError(
                f"{', '.join(refused)} in config.json may change what the model computes, and headscope does not "
                f"support {'it' if len(refused) == 1 else 'them'} for {model_type!r}.",
                code="HS-CHECKPOINT-06",
            )


def changed(hf: Mapping[str, Any], **entries: Any) -> Mapping[str, Any]:
    """Return a config with other entries; of the rest only what is read of it counts as read (see `ReadEntries`)."""
    return ChainMap(entries, hf)  # type: ignore[arg-type]  # nothing is written to it


def defaulted(hf: Mapping[str, Any], **entries: Any) -> Mapping[str, Any]:
    """Return a config with these entries where it has none; only what is read of it counts as read."""
    return ChainMap(hf, entries)  # type: ignore[arg-type]  # nothing is written to it


@contextmanager
def naming_entries(hf: Mapping[str, Any], where: str) -> Iterator[None]:
    """Turn an error over an entry of the wrong kind, such as null for a number, into one that names it.

    Of what kind an entry must be is what the default of the class in `transformers` is.

    Args:
        hf: The contents of a `config.json`.
        where: Its folder or file.

    Raises:
        CheckpointError: For a `TypeError` or the like from the code inside.
    """
    try:
        yield
    except HeadscopeError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        model_type = hf.get("model_type")
        try:
            defaults = _defaults(model_type, "an entry") if isinstance(model_type, str) else {}
        except MissingDependencyError:
            defaults = {}
        wrong = [
            f"{name} = {value!r}, which must be {_kind(default)} (the default is {default!r})"
            for name, value, default in ([] if isinstance(error, ArithmeticError) else _of_other_kinds(hf, defaults))
        ]
        found = ", ".join(wrong) or f"an entry of the wrong type or size: {error}"
        raise CheckpointError(f"config.json of {where} has {found}.") from error


def _of_other_kinds(
    hf: Mapping[str, Any], defaults: Mapping[str, Any], inside: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and default of entries that are of another kind than their default."""
    for name, default in defaults.items():
        if name not in hf or default is None or _CHANGE_NOTHING.fullmatch(name):
            continue
        if hf[name] is None and isinstance(default, Mapping):
            continue  # as if it were not there
        if _kind(hf[name]) != _kind(default):
            yield inside + name, hf[name], default
        elif isinstance(default, Mapping):
            yield from _of_other_kinds(hf[name], default, f"{inside}{name}.")


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a name"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a table of entries"
    return "null"


def _defaults(model_type: str, unread: str) -> dict[str, Any]:
    """Return the default entries of a family's config in `transformers`."""
    from transformers import CONFIG_MAPPING  # takes a second, and is rarely needed

    if model_type not in CONFIG_MAPPING:
        raise MissingDependencyError(
            f"config.json has {unread}, and the installed transformers, too old for models of type {model_type}, "
            "cannot tell whether it changes what the model computes. Update it: pip install -U transformers.",
            code="HS-DEPENDENCY-02",
        )
    defaults: dict[str, Any] = CONFIG_MAPPING[model_type]().to_dict()
    return defaults
