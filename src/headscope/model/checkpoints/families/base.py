"""Base class of checkpoint families: the mapping of configs and of tensors between Hugging Face and headscope.

Both are written once and used in both directions. A table maps our names to theirs, with an einops pattern for the
layout; loading applies it from theirs to ours, exporting its inverse. A model can be expressed in an architecture if
the entries written for it read back as the same config, and no tensor is left over.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import EinopsError, rearrange
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.block import TransformerBlock
from headscope.model.config import HookedTransformerConfig

__all__ = [
    "BIAS", "KEY", "KEY_BIAS", "LINEAR", "OUT", "QUERY", "Family", "Row", "Table", "Tensors", "block_shapes",
    "linear", "norm", "one_plus_norms", "own_name", "sizes",
]  # fmt: skip

StateDict = dict[str, Tensor]

# Layouts of torch's `Linear`, outputs first: h heads or g groups of width e.
LINEAR = "o i -> i o"
QUERY, KEY = "(h e) d -> h d e", "(g e) d -> g d e"
BIAS, KEY_BIAS = "(h e) -> h e", "(g e) -> g e"
OUT = "d (h e) -> h e d"

# Fields of a config that do not change what a model computes.
_INFORMATION = {
    "model_name", "original_architecture", "tokenizer_name", "tokenizer_prepends_bos", "default_prepend_bos",
    "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "dtype", "device", "seed",
    "init_weights", "init_mode", "initializer_range", "use_attn_result", "use_split_qkv_input", "use_attn_in",
    "use_hook_mlp_in", "use_hook_tokens", "ungroup_grouped_query_attention", "layer_norm_folding", "n_params",
    "tie_word_embeddings", "uses_rms_norm", "decoder_start_token_id",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One tensor of a checkpoint.

    Attributes:
        theirs: Its name there.
        pattern: How einops turns it into ours; axes `h` (heads), `g` (heads that have keys), `r` (heads to each of
            these), `e` (`d_head`), `m` (`d_mlp`) and `x` (experts) have their sizes from the config, others from
            `axes`. When it is several of ours, one pattern stacks them along a first axis `n`, and a tuple of patterns
            takes them from pieces one after another along the tensor's first axis, each as long as its pattern says.
        scale: Ours is theirs times this,
        shift: plus this.
        skip: So many rows at the front are not ours; they are written as zeros.
        shared: Several of ours are this one tensor, arranged by `pattern`, and must be equal to be written.
        also: Other names it goes under.
        first: How einops rearranges it before `pattern`: for pieces that do not follow one another as they are.
        optional: A bias that may be missing, and is zero then.
        experts: The names of one expert's tensors (`{}` is its number), where a checkpoint has them one by one: these
            after one another along their first axis, stacked, are the tensor.
        one_by_one: An axis that theirs has a tensor of its own for at each index, whose number is `{}` in its name.
        axes: Sizes of other axes in `pattern`.
    """

    theirs: str
    pattern: str | tuple[str, ...] = ""
    scale: float = 1.0
    shift: float = 0.0
    skip: int = 0
    shared: bool = False
    also: tuple[str, ...] = ()
    first: str = ""
    optional: bool = False
    experts: tuple[str, ...] = ()
    one_by_one: str = ""
    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def read(self, tensor: Tensor, cfg: HookedTransformerConfig, n: int) -> list[Tensor]:
        """Convert a tensor of theirs to `n` of ours."""
        if self.shared:
            assert isinstance(self.pattern, str)
            return [_arranged(tensor, self.pattern, cfg, **self.axes)] * n
        tensor = tensor[self.skip :] if self.skip else tensor
        if self.scale != 1.0 or self.shift:
            # In bfloat16 one plus a small weight is one.
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * self.scale + self.shift
        tensor = _arranged(tensor, self.first, cfg)
        if isinstance(self.pattern, tuple):
            pieces = tensor.split([_first_axis(pattern, cfg, self.axes) for pattern in self.pattern])
            pairs = zip(pieces, self.pattern, strict=True)
            return [_arranged(piece, pattern, cfg, **self.axes) for piece, pattern in pairs]
        found = _arranged(tensor, self.pattern, cfg, n=n, **self.axes)
        return [found] if n == 1 else list(found.unbind())

    def write(self, ours: list[Tensor], cfg: HookedTransformerConfig) -> Tensor:
        """Convert tensors of ours to theirs."""
        if self.shared and not all(torch.equal(ours[0], each) for each in ours[1:]):
            raise CheckpointError(
                f"{self.theirs} is one tensor in transformers, and stands for several that differ here."
            )
        ours = ours[:1] if self.shared else ours
        if isinstance(self.pattern, tuple):
            pairs = zip(ours, self.pattern, strict=True)
            tensor = torch.cat([_arranged(each, _back(pattern), cfg, **self.axes) for each, pattern in pairs])
        else:
            joined = ours[0] if len(ours) == 1 else torch.stack(ours)
            tensor = _arranged(joined, _back(self.pattern), cfg, n=len(ours), **self.axes)
        tensor = _arranged(tensor, _back(self.first), cfg)
        if self.skip:
            tensor = torch.cat([tensor.new_zeros(self.skip, *tensor.shape[1:]), tensor])
        if self.scale == 1.0 and not self.shift:
            return tensor
        return ((tensor.double() - self.shift) / self.scale).to(tensor.dtype)


Table = Mapping[str, Row]


def _sizes_of(cfg: HookedTransformerConfig, layer: int = 0) -> dict[str, int]:
    groups = cfg.groups_of(layer)
    own = {"h": cfg.n_heads, "g": groups, "r": cfg.n_heads // groups, "e": cfg.head_width_of(layer)}
    return {**own, "m": cfg.d_mlp or 0, "x": cfg.num_experts or 0}


def _arranged(tensor: Tensor, pattern: str, cfg: HookedTransformerConfig, **more: int) -> Tensor:
    if not pattern:
        return tensor
    axes = pattern.replace("(", " ").replace(")", " ").split()
    return rearrange(tensor, pattern, **{k: v for k, v in {**_sizes_of(cfg), **more}.items() if k in axes})


def _back(pattern: str) -> str:
    left, _, right = pattern.partition("->")
    return f"{right.strip()} -> {left.strip()}" if pattern else ""


def _first_axis(pattern: str, cfg: HookedTransformerConfig, axes: Mapping[str, int]) -> int:
    """Length of the first axis of a pattern's left side."""
    first = pattern[1 : pattern.index(")")] if pattern.startswith("(") else pattern.split()[0]
    size = 1
    for axis in first.split():
        size *= {**_sizes_of(cfg), **axes}[axis]
    return size


class Tensors:
    """A checkpoint's tensors, read one at a time, with a record of those never read.

    Args:
        tensors: Where they are read from; may be lazy.
        renamed: Their names as the rows have them.
        ignore: Endings of names that carry no weights (masks saved as buffers).
        beside: Beginnings of names that are left out.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        renamed: Callable[[str], str] = str,
        ignore: Iterable[str] = (),
        beside: Iterable[str] = (),
    ) -> None:
        endings, beginnings = tuple(ignore), tuple(beside)
        self._tensors = tensors
        left_out = {name for name in tensors if name.endswith(endings) or name.startswith(beginnings)}
        self._names = {renamed(name): name for name in tensors if name not in left_out}
        self._unread = set(self._names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise CheckpointError(
                f"the checkpoint has no tensor {name!r}. It is incomplete, or of another architecture than its "
                "config.json says.",
                code="HS-CHECKPOINT-07",
            )
        self._unread.discard(name)
        return self._tensors[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def stacked(self, parts: Sequence[str], n: int) -> Tensor:
        """Stack the tensors of these names over `n` experts or heads, those of each concatenated."""
        found = [[self[part.format(each)] for part in parts] for each in range(n)]
        try:
            return torch.stack([torch.cat(of_one) for of_one in found])
        except RuntimeError as error:
            raise CheckpointError(f"the tensors {', '.join(parts)} are not of equal shapes: {error}") from None

    def check_all_read(self) -> None:
        """Raise if tensors were never read, which would silently lose them."""
        if self._unread:
            names = sorted(self._unread)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CheckpointError(
                f"the checkpoint has tensors this architecture does not use: {', '.join(names[:5])}{more}.",
                code="HS-CHECKPOINT-07",
            )


def sizes(hf: Mapping[str, Any], *names: str) -> tuple[int, ...]:
    """Read entries of a `config.json` that must be positive integers.

    Raises:
        CheckpointError: for one that is missing or is not.
    """
    for name in names:
        if name not in hf:
            raise CheckpointError(f"config.json lacks {name!r}.")
        if type(hf[name]) is not int or hf[name] < 1:
            raise CheckpointError(f"{name} in config.json must be a positive whole number; got {hf[name]!r}.")
    return tuple(hf[name] for name in names)


def norm(ours: str, theirs: str, *, bias: bool = True) -> dict[str, Row]:
    """Return the rows of a norm; where ours are several (`"ln1 ln2"`), they share theirs.

    Args:
        ours: Its name here.
        theirs: Its name there.
        bias: It has one there, as a LayerNorm usually does.
    """
    rows = {"w": Row(f"{theirs}.weight", shared=" " in ours)}
    rows |= {"b": Row(f"{theirs}.bias", shared=" " in ours)} if bias else {}
    return {" ".join(f"{each}.{kind}" for each in ours.split()): row for kind, row in rows.items()}


def one_plus_norms(table: Table) -> Table:
    """Return the rows of a family whose norms multiply by one plus their weight; a norm's weight here is that sum."""
    return {name: dataclasses.replace(row, shift=1.0) if name.endswith(".w") else row for name, row in table.items()}


def linear(
    ours: str, theirs: str, weight: str | tuple[str, ...] = LINEAR, bias: str | tuple[str, ...] = ""
) -> dict[str, Row]:
    """Return the rows of a matrix and its bias, with their patterns: `"mlp.in"` is `mlp.W_in` and `mlp.b_in`."""
    return {
        ours.replace(".", ".W_"): Row(f"{theirs}.weight", weight),
        ours.replace(".", ".b_"): Row(f"{theirs}.bias", bias),
    }


class Family(ABC):
    """One Hugging Face architecture.

    Attributes:
        model_type: What `config.json` calls the family.
        architecture: The class in `transformers`, as `config.json` names it.
        examples: Models of the family, by their hub ids.
        adopted: Code that checkpoints bring along, as `auto_map` names it, and that became the class in `transformers`.
        prefix: What their names begin with, except that of the unembedding.
        layer_prefix: What a layer's names begin with after that; `{}` is its number.
        ignore: Endings of names that carry no weights.
        beside: Beginnings of names of what the class in `transformers` leaves out: heads that predict further tokens.
        prepends_bos: `default_prepend_bos` of its models, as in TransformerLens 3.9.
        names: The entries of `config.json` that are fields of our config as they are, by field.
        defaults: Values of these where the entry is missing; one without a default is required, and positive.
        fixed: Fields of our config that are the same in the whole family.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    adopted: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[str] = "model."
    layer_prefix: ClassVar[str] = "layers.{}."
    ignore: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    prepends_bos: ClassVar[bool] = True

    names: ClassVar[Mapping[str, str]] = {
        "n_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "d_mlp": "intermediate_size",
        "n_ctx": "max_position_embeddings",
        "d_vocab": "vocab_size",
        "act_fn": "hidden_act",
        "eps": "layer_norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
    }
    defaults: ClassVar[Mapping[str, Any]] = {"act_fn": "gelu", "eps": 1e-5, "tie_word_embeddings": False}
    fixed: ClassVar[Mapping[str, Any]] = {"normalization_type": "LN"}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the contents of a `config.json` to fields of `HookedTransformerConfig`.

        Raises:
            CheckpointError: for an entry that is missing, a width that is not a multiple of the number of heads, or an
                activation with weights that the family has no place for.
        """
        needed = [field for field in self.names if field not in self.defaults]
        fields = dict(zip(needed, sizes(hf, *(self.names[field] for field in needed)), strict=True))
        fields |= {field: hf.get(self.names[field], default) for field, default in self.defaults.items()}
        act_fn: Any = fields.get("act_fn")
        if act_fn == "xielu" and self.defaults["act_fn"] != act_fn:
            raise CheckpointError(f"{self.model_type} with {act_fn!r}, an activation with weights, is not supported.")
        d_model, n_heads = fields["d_model"], fields["n_heads"]
        if not fields.get("d_head") and d_model % n_heads:
            raise CheckpointError(
                f"{self.names['d_model']} = {d_model} in config.json is not a multiple of {self.names['n_heads']} = "
                f"{n_heads}."
            )
        d_head = fields.get("d_head") or d_model // n_heads
        return {**fields, "d_head": d_head, "default_prepend_bos": self.prepends_bos, **self.fixed}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Convert a config to entries of a `config.json`: the inverse of `config`.

        What the class has a choice about and our config has not, such as whether there are biases, follows from the
        weights.
        """
        return {entry: getattr(cfg, field) for field, entry in self.names.items()}

    @abstractmethod
    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        """Return the rows outside the layers, from our names to theirs."""

    @abstractmethod
    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        """Return the rows of one layer. Names of several of our tensors in one of theirs are separated by spaces.

        Where layers have several kinds, these are the rows of all kinds: a layer has those of its parts.
        """

    def layer_at(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any], layer: int) -> Table:
        """Return the rows of one layer, in a family whose layers differ; `layer` says what they have in common."""
        return self.layer(cfg, hf)

    def rows(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Iterator[tuple[list[str], Row]]:
        """Return all rows with full names; a tied unembedding maps to the embedding."""
        outside = self.outside(cfg, hf)
        for names, row in outside.items():
            if names == "unembed.W_U" and cfg.tie_word_embeddings:
                row = dataclasses.replace(row, theirs=outside["embed.W_E"].theirs, also=outside["embed.W_E"].also)
            yield names.split(), row
        for layer in range(cfg.n_layers):
            ours, theirs = f"blocks.{layer}.", self.layer_prefix.format(layer)
            for names, row in self.layer_at(cfg, hf, layer).items():
                if not _is_in_layer(names, cfg.parts_of(layer)):
                    continue
                full = [ours + own_name(name, cfg) for name in names.split()]
                also, experts = (tuple(theirs + each for each in names) for names in (row.also, row.experts))
                axes = {**_sizes_of(cfg, layer), **row.axes}
                yield full, dataclasses.replace(row, theirs=theirs + row.theirs, also=also, experts=experts, axes=axes)

    def computed(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> StateDict:
        """Return weights of ours that are the same in every checkpoint of this config, and in no file."""
        return {}

    def renamed(self, name: str) -> str:
        """Return the name of a checkpoint's tensor as the rows have it."""
        return name.removeprefix(self.prefix)

    def left_out(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the beginnings of names in a checkpoint that are left out: `beside`, and what its config says."""
        return self.beside

    def convert(
        self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, hf: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield our names and tensors from the checkpoint's, one at a time; biases it lacks are zero.

        Raises:
            CheckpointError: for tensors that are missing, not used, or of a shape the config does not say.
        """
        given = Tensors(tensors, self.renamed, ignore=self.ignore, beside=self.left_out(hf))
        head = self.outside(cfg, hf)["unembed.W_U"]
        if any(name in given for name in (head.theirs, *head.also)):
            # Then the unembedding is its own, also where the config says that it is the embedding.
            cfg = dataclasses.replace(cfg, tie_word_embeddings=False)
        seen = set()
        for names, row in self.rows(cfg, hf):
            name = next((each for each in (row.theirs, *row.also) if each in given), row.theirs)
            if row.optional and name not in given:
                continue
            if row.one_by_one:
                tensor = given.stacked((row.theirs,), _sizes_of(cfg)[row.one_by_one])
            elif row.experts and name not in given and row.experts[0].format(0) in given:
                tensor = given.stacked(row.experts, cfg.num_experts or 0)
            else:
                tensor = given[name]
            try:
                parts = row.read(tensor, cfg, len(names))
            except (EinopsError, RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"the checkpoint's tensors are not of the shapes its config.json says: {name} is "
                    f"{list(tensor.shape)}. {error}",
                    code="HS-CHECKPOINT-08",
                ) from None
            seen.update(names)
            yield from zip(names, parts, strict=True)
        given.check_all_read()
        yield from self.computed(cfg, hf).items()
        for name, shape in _bias_shapes(cfg).items():
            if name not in seen:
                yield name, torch.zeros(shape)

    def export(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], StateDict]:
        """Return the inverse: entries of a `config.json`, including `model_type`, and the checkpoint's tensors.

        Raises:
            CheckpointError: for a model this architecture cannot express.
        """
        entries = {
            **self.entries(cfg, state),
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "tie_word_embeddings": False,
        }
        self._check_expressible(cfg, entries)
        left = dict(state)
        tensors: StateDict = {}
        untied = dataclasses.replace(cfg, tie_word_embeddings=False)
        for names, row in self.rows(untied, entries):
            ours = [left.pop(name) if name in left else _folded(name, cfg) for name in names]
            name = row.theirs if names[0].startswith("unembed.") else self.prefix + row.theirs
            written = row.write(ours, cfg)
            pieces = written.unbind() if row.one_by_one else (written,)
            tensors |= {name.format(number): piece for number, piece in enumerate(pieces)}
        fixed = self.computed(cfg, entries)
        for name, tensor in left.items():
            if name in fixed and torch.equal(tensor, fixed[name].to(tensor)):
                continue
            if bool(tensor.any()):
                raise CheckpointError(
                    f"{self.architecture} in transformers has no place for {name}, which is not "
                    f"{'what it is there' if name in fixed else 'zero'}. If processing put it there, as folding a "
                    "norm does, load the model with from_pretrained_no_processing.",
                    code="HS-CHECKPOINT-12",
                )
        outside = self.outside(cfg, entries)
        head, embedding = tensors[outside["unembed.W_U"].theirs], outside["embed.W_E"]
        if torch.equal(embedding.read(head, cfg, 1)[0].to(head.dtype), state["embed.W_E"]):
            entries["tie_word_embeddings"] = True
            tensors[self.prefix + embedding.theirs] = head
        return entries, tensors

    def _check_expressible(self, cfg: HookedTransformerConfig, entries: Mapping[str, Any]) -> None:
        """Raise, by name, for anything the class cannot hold: the entries must read back as this config."""
        back = HookedTransformerConfig(**self.config(entries), device="cpu")
        for field in dataclasses.fields(cfg):
            found, expected = getattr(cfg, field.name), getattr(back, field.name)
            if field.name == "normalization_type" and found in ("LNPre", "RMSPre"):
                found = found.removesuffix("Pre")  # folded norms have weights of one
                expected = None if expected is None else expected.removesuffix("Pre")
            if field.name not in _INFORMATION and found != expected:
                needs = f"{field.name} to be {expected!r}; this model has {found!r}"
                raise CheckpointError(f"{self.architecture} in transformers needs {needs}.", code="HS-CHECKPOINT-12")


def _is_in_layer(names: str, parts: tuple[str, ...]) -> bool:
    """Return True if a layer of these parts has the tensors of a row."""
    part = names.partition(".")[0]
    if part in ("ln1", "ln1_post"):
        return parts != ("mlp",)
    return {"ln2": "mlp", "ln2_post": "mlp"}.get(part, part) in parts


def own_name(name: str, cfg: HookedTransformerConfig) -> str:
    """Return the name of an attention weight; one shared by a group of heads has a leading underscore."""
    part, _, weight = name.partition(".")
    shared = part == "attn" and weight in ("W_K", "W_V", "b_K", "b_V") and cfg.n_key_value_heads is not None
    return f"{part}._{weight}" if shared else name


def block_shapes(cfg: HookedTransformerConfig, layer: int) -> dict[str, torch.Size]:
    """Return the names and shapes of all weights in a block, read off one without memory."""
    with torch.device("meta"):
        block = TransformerBlock(cfg, layer)
    return {name: parameter.shape for name, parameter in block.named_parameters()}


def _bias_shapes(cfg: HookedTransformerConfig) -> dict[str, torch.Size]:
    """Return all biases of a model with this config."""
    layers = {
        f"blocks.{layer}.{name}": shape
        for layer in range(cfg.n_layers)
        for name, shape in block_shapes(cfg, layer).items()
        if f"{name.rpartition('.')[2].lstrip('_')}_".startswith("b_")
    }
    outside = {"ln_final.b": torch.Size([cfg.d_model])} if cfg.final_norm == "LN" else {}
    return {**layers, **outside, "unembed.b_U": torch.Size([cfg.d_vocab_out])}


def _folded(name: str, cfg: HookedTransformerConfig) -> Tensor:
    """Return the weight or bias of a norm that was folded away."""
    part, _, kind = name.rpartition(".")
    if not part.endswith(("ln1", "ln2", "ln_final")):
        raise CheckpointError(f"the model has no {name}.")
    return torch.ones(cfg.d_model) if kind == "w" else torch.zeros(cfg.d_model)
