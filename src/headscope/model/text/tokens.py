"""Tokenization, decoding, and padding masks.

The tokenizer never adds special tokens: BOS is prepended here. So BOS occurs once if requested, and never in the
look-up of a single word. Padding is done here too, so a tokenizer's own settings are neither needed nor changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.model.config import HookedTransformerConfig

__all__ = [
    "USE_DEFAULT_VALUE",
    "PaddingSide",
    "Tokenization",
    "begin_token",
    "bos_token_id",
    "get_attention_mask",
    "get_tokens_with_bos_removed",
    "pad_token_id",
    "padding_mask",
    "residual_directions",
    "single_token",
]

PaddingSide = Literal["left", "right"]
USE_DEFAULT_VALUE = None  # older notebooks pass it for the model's default


def bos_token_id(tokenizer: Any) -> int | None:
    """Return the token to prepend to a text: BOS, or EOS for a tokenizer without BOS."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def pad_token_id(tokenizer: Any) -> int | None:
    """Return the padding token: PAD, or EOS for a tokenizer without PAD."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def begin_token(tokenizer: Any) -> int:
    """Return the token that begins a row: BOS, or EOS for a tokenizer without BOS.

    Raises:
        MissingTokenizerError: If there is no tokenizer.
        InvalidInputError: If it has neither.
    """
    if tokenizer is None:
        raise MissingTokenizerError(
            "there is no tokenizer to look up BOS with: pass one, or prepend_bos=False.", code="HS-TOKENIZER-02"
        )
    bos = bos_token_id(tokenizer)
    if bos is None:
        raise InvalidInputError(
            "the tokenizer has neither BOS nor EOS to begin a row with: pass prepend_bos=False.", code="HS-TOKENS-08"
        )
    return bos


def padding_mask(
    tokens: Int[Tensor, "batch pos"], pad_id: int, *, padding_side: PaddingSide = "right", bos_id: int | None = None
) -> Bool[Tensor, "batch pos"]:
    """Return a mask of real tokens: all but the run of `pad_id` at the padded end of a row.

    If padding and BOS are the same token (GPT-2), one of them is taken as BOS: the first token of a row padded on the
    right, the last of the leading run of a row padded on the left.

    Example:
        >>> padding_mask(torch.tensor([[9, 5, 6, 9, 9]]), 9, bos_id=9)
        tensor([[ True,  True,  True, False, False]])
        >>> padding_mask(torch.tensor([[9, 9, 9, 5, 6]]), 9, padding_side="left", bos_id=9)
        tensor([[False, False,  True,  True,  True]])
    """
    is_pad = tokens == pad_id
    if padding_side == "right":
        run = is_pad.flip(-1).cumprod(-1).flip(-1).bool()
        if bos_id == pad_id:
            run[:, 0] = False
    else:
        run = is_pad.cumprod(-1).bool()
        if bos_id == pad_id:
            run = run & torch.nn.functional.pad(run[:, 1:], (0, 1), value=False)
    return ~run


def single_token(string: str, tokenizer: Any) -> int:
    """Return the id of a string that is one token; raise an error that shows its tokens otherwise."""
    ids = tokenizer.encode(_checked_text(string), add_special_tokens=False)
    if len(ids) != 1:
        pieces = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
        raise InvalidInputError(
            f"{string!r} is {len(ids)} tokens, not one: {pieces}. Words inside a sentence start with a space.",
            code="HS-TOKENS-04",
        )
    return ids[0]


def residual_directions(
    tokens: str | int | Sequence[int] | Tensor, W_U: Float[Tensor, "d_model d_vocab"], tokenizer: Any = None
) -> Float[Tensor, "*shape d_model"]:
    """Return the columns of `W_U` for a single-token string, a token id, or several ids."""
    if isinstance(tokens, str):
        if tokenizer is None:
            raise MissingTokenizerError(f"the model has no tokenizer to look {tokens!r} up with: give its id.")
        tokens = single_token(tokens, tokenizer)
    ids = torch.as_tensor(tokens).to(W_U.device)
    return W_U.T[ids.squeeze() if ids.numel() == 1 else ids]


def get_attention_mask(
    tokenizer: Any, tokens: Int[Tensor, "batch pos"], prepend_bos: bool, padding_side: PaddingSide | None = None
) -> Int[Tensor, "batch pos"]:
    """Return 1 for real tokens, 0 for padding, by the tokenizer's padding token, and its side unless one is given.

    Example:
        >>> from headscope import HookedTransformer
        >>> tokenizer = HookedTransformer.from_pretrained("headscope-demo").tokenizer
        >>> get_attention_mask(tokenizer, torch.tensor([[0, 5, 6, 0]]), prepend_bos=True)  # 0: BOS, EOS and padding
        tensor([[1, 1, 1, 0]])

    Raises:
        InvalidInputError: if the tokenizer has neither a padding nor an EOS token.
    """
    pad = pad_token_id(tokenizer)
    if pad is None:
        raise InvalidInputError("the tokenizer has no padding or EOS token to find padding by.")
    bos = bos_token_id(tokenizer) if prepend_bos else None
    return padding_mask(tokens, pad, padding_side=padding_side or tokenizer.padding_side, bos_id=bos).long()


def get_tokens_with_bos_removed(
    tokenizer: Any, tokens: Int[Tensor, "batch pos"], padding_side: PaddingSide | None = None
) -> Int[Tensor, "batch pos-1"]:
    """Remove the BOS of each row: the first token, or with left padding, the last of the leading run.

    Padding is on the tokenizer's side unless one is given.

    Example:
        >>> from headscope import HookedTransformer
        >>> tokenizer = HookedTransformer.from_pretrained("headscope-demo").tokenizer
        >>> get_tokens_with_bos_removed(tokenizer, torch.tensor([[0, 5, 6]]))
        tensor([[5, 6]])

    Raises:
        InvalidInputError: if some row has no BOS there.
    """
    bos, pad = bos_token_id(tokenizer), pad_token_id(tokenizer)
    wanted = torch.tensor([-1 if token is None else token for token in (bos, pad)], device=tokens.device)
    leading = torch.isin(tokens, wanted).cumprod(-1).bool()
    left = (padding_side or tokenizer.padding_side) == "left"
    at = leading.sum(-1) - 1 if left else torch.zeros_like(tokens[:, 0])
    rows = torch.arange(len(tokens), device=tokens.device)
    if bool((at < 0).any()) or not torch.equal(tokens[rows, at], wanted[:1].expand(len(tokens))):
        raise InvalidInputError(f"not every row begins with a BOS token ({bos}).")
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[rows, at] = False
    return tokens[keep].view(len(tokens), -1)


class Tokenization:
    """Mixin without fields: tokenization, for a model that has `cfg`, `tokenizer` and `W_U`."""

    cfg: HookedTransformerConfig
    tokenizer: Any
    default_padding_side: PaddingSide
    W_U: Tensor
    _tokenizer_side: PaddingSide | None

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise MissingTokenizerError(
                f"model {self.cfg.model_name!r} has no tokenizer, so it takes tokens, not text. "
                "Pass a tensor of token ids, or set a tokenizer: model.set_tokenizer(tokenizer); on the command line, "
                "--tokenizer MODEL.",
                code="HS-TOKENIZER-01",
            )
        return self.tokenizer

    def to_tokens(
        self,
        input: str | Iterable[str] | np.ndarray,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Tokenize one text or several; shorter ones are padded.

        Args:
            input: A text, or several.
            prepend_bos: Prepend a BOS token; `cfg.default_prepend_bos` by default.
            padding_side: Side on which short rows are padded; `model.default_padding_side` by default.
            move_to_device: Put the tokens on the model's device.
            truncate: Truncate to `cfg.n_ctx` tokens.

        Raises:
            MissingTokenizerError: if the model has no tokenizer.
            InvalidInputError: for an empty list, a text with no tokens, or anything else than texts.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> model.to_tokens("Mary gave a drink to John")
            tensor([[  0,  45, 806, 352, 259, 742, 266, 547]])
        """
        texts = _texts(input)
        if not texts:
            raise InvalidInputError("there is no text to tokenize: the list is empty.", code="HS-TOKENS-05")
        rows = [self._encoded(text, prepend_bos) for text in texts]
        if truncate:
            rows = [row[: self.cfg.n_ctx] for row in rows]
        if not all(rows):
            empty = texts[rows.index([])]
            raise InvalidInputError(
                f"the text {empty!r} has no tokens. Give some text, or prepend_bos=True.", code="HS-TOKENS-05"
            )
        length = max(map(len, rows))
        pad = pad_token_id(self.tokenizer)
        if pad is None and min(map(len, rows)) < length:
            raise InvalidInputError(
                "the texts differ in length, and the tokenizer has no padding or EOS token.", code="HS-TOKENS-07"
            )
        side = self.padding_side_or_default(padding_side)
        filled = [_fill(row, length, pad, side) for row in rows]
        return torch.tensor(filled, device=self.cfg.device if move_to_device else None)

    def to_string(self, tokens: int | Sequence[Any] | Tensor | np.ndarray) -> str | list[str]:
        """Decode tokens: a string for one sequence, a list of strings for a batch."""
        tokenizer = self._need_tokenizer()
        ids = torch.as_tensor(tokens)
        if ids.ndim == 2:
            return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids.tolist()]
        if ids.ndim > 2:
            raise InvalidInputError(
                f"tokens must have at most two axes [batch, pos]; got shape {list(ids.shape)}.", code="HS-TOKENS-02"
            )
        return tokenizer.decode(torch.atleast_1d(ids).tolist(), clean_up_tokenization_spaces=False)

    def to_str_tokens(
        self,
        input: str | int | Iterable[Any] | Tensor | np.ndarray,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
    ) -> list[Any]:
        """Decode each token to a string: a list for one text or sequence, a list of lists for a list of texts.

        Raises:
            MissingTokenizerError: If the model has no tokenizer.
            InvalidInputError: For anything else than texts or tokens.
        """
        return self._strings(input, prepend_bos)

    def _strings(self, input: Any, prepend_bos: bool | None) -> list[Any]:
        tokenizer = self._need_tokenizer()
        if isinstance(input, np.ndarray) and input.dtype.kind not in "iu":
            input = np.atleast_1d(input).tolist()
        if isinstance(input, str):
            ids = self._encoded(input, prepend_bos)[: self.cfg.n_ctx]
        elif isinstance(input, bytes | bytearray | Mapping) or not isinstance(input, int | Iterable):
            raise InvalidInputError(f"input must be text or tokens; got {_given(input)}.", code="HS-TOKENS-02")
        elif not isinstance(input, Sequence | Tensor | np.ndarray | int):
            return self._strings(list(input), prepend_bos)
        elif isinstance(input, (Tensor, int, np.ndarray)) or (len(input) > 0 and isinstance(input[0], int)):
            ids = _one_sequence(torch.atleast_1d(torch.as_tensor(input).squeeze())).tolist()
        else:
            return [self._strings(text, prepend_bos) for text in input]
        return [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]

    def to_single_token(self, string: str) -> int:
        """Return the id of a string that is one token.

        Raises:
            InvalidInputError: If it is not; the message shows its tokens.
        """
        return single_token(string, self._need_tokenizer())

    def to_single_str_token(self, int_token: int) -> str:
        """Decode one token."""
        return self._need_tokenizer().decode([int_token], clean_up_tokenization_spaces=False)

    def get_token_position(
        self,
        single_token: str | int,
        input: str | Tensor,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
    ) -> int:
        """Return the position of a token in a text or a sequence of tokens.

        Raises:
            InvalidInputError: If it does not occur, or the input is a batch of several.
        """
        if mode not in ("first", "last"):
            raise InvalidInputError(f"mode must be 'first' or 'last'; got {mode!r}.")
        tokens = self.to_tokens(input, prepend_bos, padding_side) if isinstance(input, str) else input
        wanted = self.to_single_token(single_token) if isinstance(single_token, str) else single_token
        positions = (_one_sequence(tokens) == wanted).nonzero().flatten().tolist()
        if not positions:
            raise InvalidInputError(f"token {single_token!r} does not occur in the input.", code="HS-TOKENS-09")
        return positions[0] if mode == "first" else positions[-1]

    def tokens_to_residual_directions(
        self, tokens: str | int | Sequence[int] | Tensor
    ) -> Float[Tensor, "*shape d_model"]:
        """Return the columns of `W_U` of tokens: `[d_model]` for one, `[..., d_model]` for several."""
        return residual_directions(tokens, self.W_U, self.tokenizer)

    def attention_mask(
        self, tokens: Int[Tensor, "batch pos"], padding_side: PaddingSide | None = None, prepend_bos: bool | None = None
    ) -> Bool[Tensor, "batch pos"] | None:
        """Return the `padding_mask` of tokens; `None` if nothing is padded, or there is no tokenizer."""
        pad = None if self.tokenizer is None else pad_token_id(self.tokenizer)
        if pad is None:
            return None
        expected = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        bos = bos_token_id(self.tokenizer) if expected else None
        mask = padding_mask(tokens, pad, padding_side=self.padding_side_or_default(padding_side), bos_id=bos)
        return None if bool(mask.all()) else mask

    def _encoded(self, text: str, prepend_bos: bool | None) -> list[int]:
        """Return the tokens of a text, with BOS if asked for."""
        tokenizer = self._need_tokenizer()
        ids = tokenizer.encode(_checked_text(text), add_special_tokens=False, verbose=False)
        if not (self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos):
            return ids
        return [begin_token(tokenizer), *ids]

    def padding_side_or_default(self, padding_side: PaddingSide | None) -> PaddingSide:
        """Return the given side; else the tokenizer's, if changed since it was set here; else the default."""
        side = self.default_padding_side if padding_side is None else padding_side
        if padding_side is None and self.tokenizer is not None and self.tokenizer.padding_side != self._tokenizer_side:
            side = self.tokenizer.padding_side
        if side not in ("left", "right"):
            raise InvalidInputError(f"padding_side must be 'left' or 'right'; got {side!r}.")
        return side


def _texts(input: Any) -> list[str]:
    """Return a text, or several in a list or a 1-D array, as a list of texts."""
    if isinstance(input, np.ndarray):
        input = np.atleast_1d(input).tolist()
    if isinstance(input, str | bytes | bytearray | Mapping | Tensor) or not isinstance(input, Iterable):
        return [_checked_text(input)]
    return [_checked_text(text) for text in input]


def _checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(
            f"only text has tokens to be looked up: a string, or a list of strings; got {_given(text)}.",
            code="HS-TOKENS-02",
        )
    return text


def _given(input: Any) -> str:
    """Return what an input is, and what to do with it where that is clear."""
    if isinstance(input, bytes | bytearray):
        return f"{type(input).__name__}: decode them first, as in data.decode('utf-8')"
    if isinstance(input, Tensor):
        return f"a tensor {list(input.shape)}: tokens need no tokenizer"
    return f"{type(input).__name__} ({input!r:.40})"


def _one_sequence(tokens: Tensor) -> Tensor:
    if tokens.ndim == 2 and tokens.shape[0] == 1:
        return tokens[0]
    if tokens.ndim != 1:
        raise InvalidInputError(f"tokens must be one sequence, [pos] or [1, pos]; got shape {list(tokens.shape)}.")
    return tokens


def _fill(row: list[int], length: int, pad: int | None, side: PaddingSide) -> list[int]:
    missing: list[int] = [] if pad is None else [pad] * (length - len(row))
    return row + missing if side == "right" else missing + row
