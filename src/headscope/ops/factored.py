"""`FactoredMatrix`: a low-rank product `A @ B`, multiplied out only on request.

A head's OV circuit `W_V @ W_O` is [d_model, d_model] of rank d_head: its SVD, eigenvalues and norm come from the
thin factors, at d_head^2 * d_model operations instead of d_model^3.
"""

import operator
from collections.abc import Iterator
from numbers import Number
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from headscope.differences import tell
from headscope.errors import InvalidInputError

__all__ = ["FactoredMatrix", "at_least_float32", "triangular_factor", "with_signs"]

_SVD = tuple[Tensor, Tensor, Tensor]


class FactoredMatrix:
    """The matrix `A @ B`, kept as its factors.

    Products with a matrix on either side (`@`) or a number (`*`), and indexing (`[...]`), give another
    `FactoredMatrix`; products with a vector give a vector. Everything is differentiable.

    Args:
        A: Left factor, `[..., ldim, mdim]`.
        B: Right factor, `[..., mdim, rdim]`; leading axes broadcast against those of `A`.

    Raises:
        InvalidInputError: If a factor has fewer than two axes, inner dimensions differ, or leading axes do not
            broadcast.

    Example:
        >>> product = FactoredMatrix(torch.ones(5, 2), torch.ones(2, 7))
        >>> product.shape, round(float(product.norm()), 4)
        (torch.Size([5, 7]), 11.8322)
        >>> (product @ torch.ones(7)).tolist()
        [14.0, 14.0, 14.0, 14.0, 14.0]
    """

    # Makes NumPy leave `numpy_number * product` to `__rmul__`, where it would else multiply elementwise.
    __array_ufunc__ = None

    def __init__(self, A: Float[Tensor, "*leadA ldim mdim"], B: Float[Tensor, "*leadB mdim2 rdim"]) -> None:
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise InvalidInputError(
                f"A must be [..., ldim, mdim] and B [..., mdim, rdim]; got A {list(A.shape)} and B {list(B.shape)}.",
                code="HS-WEIGHTS-03",
            )
        try:
            lead = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError:
            raise InvalidInputError(
                "the leading axes of A and B must be equal, or 1, or missing; "
                f"got A {list(A.shape)} and B {list(B.shape)}."
            ) from None
        self.A = A.expand(*lead, *A.shape[-2:])
        self.B = B.expand(*lead, *B.shape[-2:])
        self._svd: tuple[tuple[int, ...], _SVD] | None = None

    # Shape

    @property
    def ldim(self) -> int:
        """Rows of the product."""
        return self.A.shape[-2]

    @property
    def rdim(self) -> int:
        """Columns of the product."""
        return self.B.shape[-1]

    @property
    def mdim(self) -> int:
        """Inner dimension: an upper bound on the rank."""
        return self.A.shape[-1]

    @property
    def has_leading_dims(self) -> bool:
        """True for a stack of matrices."""
        return self.A.ndim > 2

    @property
    def shape(self) -> torch.Size:
        """Shape of the product."""
        return torch.Size((*self.A.shape[:-1], self.rdim))

    @property
    def ndim(self) -> int:
        """Axes of the product."""
        return self.A.ndim

    @property
    def pair(self) -> tuple[Float[Tensor, "... ldim mdim"], Float[Tensor, "... mdim rdim"]]:
        """Both factors."""
        return self.A, self.B

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={list(self.shape)}, mdim={self.mdim})"

    # Products and transpose

    @property
    def AB(self) -> Float[Tensor, "... ldim rdim"]:
        """The product, multiplied out."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "... mdim mdim"]:
        """The factors multiplied in reverse order: the same non-zero eigenvalues. Needs `ldim == rdim`."""
        if self.ldim != self.rdim:
            raise InvalidInputError(f"BA and eigenvalues are for square products; this one is {list(self.shape)}.")
        return self.B @ self.A

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose."""
        return FactoredMatrix(self.B.transpose(-2, -1), self.A.transpose(-2, -1))

    def __matmul__(self, other: Any) -> "FactoredMatrix | Tensor":
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if not isinstance(other, Tensor):
            return NotImplemented
        _check_inner(self.shape, other.shape, self.rdim, other.shape[-2:][:1])
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        # Keep the smaller inner dimension: a factor that is wider than `mdim` stays factored.
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, self.B @ other)
        return FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Any) -> "FactoredMatrix | Tensor":
        if not isinstance(other, Tensor):
            return NotImplemented
        _check_inner(other.shape, self.shape, self.ldim, other.shape[-1:])
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        if self.ldim > self.mdim:
            return FactoredMatrix(other @ self.A, self.B)
        return FactoredMatrix(other, self.AB)

    def __mul__(self, scalar: Any) -> "FactoredMatrix":
        factor: Any = scalar
        if isinstance(scalar, Tensor):
            if scalar.numel() != 1:
                raise InvalidInputError(
                    f"a FactoredMatrix is scaled by one number; got shape {list(scalar.shape)}. "
                    "For a product of matrices write @."
                )
            factor = scalar.reshape(())
        elif not isinstance(scalar, Number):
            return NotImplemented
        return FactoredMatrix(self.A * factor, self.B)

    __rmul__ = __mul__

    # Spectrum

    def svd(self) -> tuple[Float[Tensor, "... ldim rank"], Float[Tensor, "... rank"], Float[Tensor, "... rdim rank"]]:
        """Singular value decomposition: `U`, `S`, `V` with `AB = U @ diag(S) @ V.T` and `S` from large to small.

        `rank` is the smallest of `ldim`, `mdim` and `rdim`. Factors in half precision give float32. Signs follow
        `with_signs`.

        Two thin QR factorizations leave an SVD of at most `[mdim, mdim]`. The result is cached until a factor or the
        result itself is written to in place. Nothing is cached while gradients are tracked: each call then makes a
        graph of its own.
        """
        tell("singular vectors")
        return self._factors()

    def _factors(self) -> _SVD:
        tracked = torch.is_grad_enabled() and (self.A.requires_grad or self.B.requires_grad)
        # Inference tensors have no version counter, so a stale cache could not be noticed.
        if tracked or torch.is_inference_mode_enabled() or self.A.is_inference() or self.B.is_inference():
            return self._decompose()
        if self._svd is None or self._svd[0] != _versions(self.A, self.B, *self._svd[1]):
            factors = self._decompose()
            self._svd = _versions(self.A, self.B, *factors), factors
        return self._svd[1]

    def _decompose(self) -> _SVD:
        # AB = (Q_A R_A)(Q_B R_B)^T: the SVD of the small R_A R_B^T, with its singular vectors rotated by the Qs.
        left, left_small = torch.linalg.qr(at_least_float32(self.A))
        right, right_small = torch.linalg.qr(at_least_float32(self.B).transpose(-2, -1))
        u, s, vh = torch.linalg.svd(left_small @ right_small.transpose(-2, -1), full_matrices=False)
        return with_signs(left @ u, s, right @ vh.transpose(-2, -1))

    def turned_l(self) -> Float[Tensor, "... rank rdim"]:
        """Return `Q.T @ AB` for a `Q` with orthonormal columns that span those of `A`.

        Like `collapse_l` it has the norm of the product, also after a further product on the right, but it takes one
        QR instead of two and an SVD.
        """
        return triangular_factor(self.A) @ at_least_float32(self.B)

    def turned_r(self) -> Float[Tensor, "... ldim rank"]:
        """Return `AB @ P` for a `P` with orthonormal columns that span the rows of `B`: see `turned_l`."""
        return self.T.turned_l().transpose(-2, -1)

    @property
    def U(self) -> Float[Tensor, "... ldim rank"]:
        """Left singular vectors, as columns."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "... rank"]:
        """Singular values, largest first."""
        return self._factors()[1]

    @property
    def V(self) -> Float[Tensor, "... rdim rank"]:
        """Right singular vectors, as columns."""
        return self.svd()[2]

    @property
    def Vh(self) -> Float[Tensor, "... rdim rank"]:
        """Another name of `V`, as TransformerLens has it, although it is not transposed."""
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Complex[Tensor, "... mdim"]:
        """The `mdim` eigenvalues that can differ from zero. Factors in half precision give complex64."""
        # `eigvals` needs no eigenvectors, but LAPACK then gives another order than the field's notebooks index.
        return torch.linalg.eig(at_least_float32(self.BA)).eigenvalues

    def norm(self) -> Float[Tensor, "..."]:
        """Frobenius norm: the root of the sum of squared singular values."""
        return torch.linalg.matrix_norm(self.turned_l())

    def make_even(self) -> "FactoredMatrix":
        """Rewrite the product with orthogonal factors of equal norm, `U sqrt(S)` and `sqrt(S) V.T`."""
        u, s, v = self.svd()
        root = s.sqrt()
        return FactoredMatrix(u * root[..., None, :], root[..., :, None] * v.transpose(-2, -1))

    def collapse_l(self) -> Float[Tensor, "... rank rdim"]:
        """Return `diag(S) V.T`: the product up to a rotation on the left."""
        _, s, v = self.svd()
        return s[..., :, None] * v.transpose(-2, -1)

    def collapse_r(self) -> Float[Tensor, "... ldim rank"]:
        """Return `U diag(S)`: the product up to a rotation on the right."""
        u, s, _ = self.svd()
        return u * s[..., None, :]

    # Indexing and axes

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """Add a leading axis at `k`, which may count from the end of the result's axes."""
        at = k + self.ndim + 1 if k < 0 else k
        if not 0 <= at <= self.ndim - 2:
            raise InvalidInputError(
                f"a new axis must come before rows and columns: k between 0 and {self.ndim - 2}, "
                f"or {-self.ndim - 1} and -3; got {k}."
            )
        return FactoredMatrix(self.A.unsqueeze(at), self.B.unsqueeze(at))

    def get_corner(self, k: int = 3) -> Tensor:
        """Return the first `k` entries of the product along every axis."""
        return self[tuple(slice(k) for _ in range(self.ndim))].AB

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Index leading axes as in a tensor, then rows (of `A`), then columns (of `B`).

        An integer row or column stays as an axis of size 1, so that the result is again a product of matrices. Lists
        of rows and of columns select independently: `product[[0, 2], [1, 3]]` is 2 by 2.
        """
        key = index if isinstance(index, tuple) else (index,)
        lead, rows, columns = self._split_index(tuple(map(_as_tensor, key)))
        if isinstance(rows, Tensor) and any(isinstance(each, Tensor) for each in lead):
            tell("index")
        A, B = self.A[lead], self.B[lead]
        return FactoredMatrix(A[..., _keep_axis(rows, self.ldim), :], B[..., _keep_axis(columns, self.rdim)])

    def __iter__(self) -> Iterator["FactoredMatrix"]:
        return (self[i] for i in range(self.shape[0]))

    def _split_index(self, key: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any, Any]:
        """Split an index into those of the leading axes, the rows and the columns."""
        used = sum(_n_axes(k) for k in key)
        if used > self.ndim or sum(k is Ellipsis for k in key) > 1:
            raise InvalidInputError(f"{len(key)} indices for a FactoredMatrix of {self.ndim} axes: {list(self.shape)}.")
        at = next((i for i, k in enumerate(key) if k is Ellipsis), len(key))
        key = (*key[:at], *[slice(None)] * (self.ndim - used), *key[at + 1 :])
        n_lead, seen = 0, 0
        while seen < self.ndim - 2 or (n_lead < len(key) and key[n_lead] is None):
            seen += _n_axes(key[n_lead])
            n_lead += 1
        matrix = key[n_lead:]
        if len(matrix) != 2 or any(k is None for k in matrix):
            raise InvalidInputError(
                "rows and columns take one index each, and no new axis may stand between or after them; "
                f"got {key} for the axes {list(self.shape)}."
            )
        return key[:n_lead], *matrix


def _as_tensor(index: Any) -> Any:
    if isinstance(index, list) and not index:
        return torch.empty(0, dtype=torch.int64)
    return torch.as_tensor(index) if isinstance(index, (list, np.ndarray)) else index


def _n_axes(index: Any) -> int:
    """Number of axes that an index consumes."""
    if index is None or index is Ellipsis:
        return 0
    return index.ndim if isinstance(index, Tensor) and index.dtype == torch.bool else 1


def _keep_axis(index: Any, size: int) -> Any:
    """Turn an integer index into a slice of size 1."""
    if isinstance(index, slice) or (isinstance(index, Tensor) and index.ndim == 1):
        return index
    at = operator.index(index)
    if not -size <= at < size:
        raise InvalidInputError(f"index {at} is out of range for an axis of size {size} of a FactoredMatrix.")
    return slice(at % size, at % size + 1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32: PyTorch has no QR, SVD or eigenvalues in less."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def with_signs(
    U: Float[Tensor, "*lead rows rank"], S: Float[Tensor, "*lead rank"], V: Float[Tensor, "*lead columns rank"]
) -> _SVD:
    """Choose the signs of singular vectors, which their product leaves open.

    The largest entry of each column of `V` is made positive, and the column of `U` turned with it.

    Example:
        >>> with_signs(torch.tensor([[1.0]]), torch.tensor([5.0]), torch.tensor([[0.6], [-0.8]]))[2].flatten()
        tensor([-0.6000,  0.8000])
    """
    largest = V.gather(-2, V.abs().argmax(-2, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(V.dtype)
    return U * signs, S, V * signs


def triangular_factor(matrix: Float[Tensor, "*lead rows columns"]) -> Float[Tensor, "*lead rank columns"]:
    """Return `R` of a thin QR factorization: `|R x| = |matrix x|` for every `x`.

    Example:
        >>> triangular_factor(torch.tensor([[3.0], [4.0]])).abs()
        tensor([[5.]])
    """
    matrix = at_least_float32(matrix)
    # R alone costs half as much, but has no gradient.
    tracked = torch.is_grad_enabled() and matrix.requires_grad
    return torch.linalg.qr(matrix, mode="reduced" if tracked else "r").R


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    """PyTorch's counts of in-place writes."""
    return tuple(tensor._version for tensor in tensors)


def _check_inner(left: torch.Size, right: torch.Size, wanted: int, got: torch.Size) -> None:
    if list(got) != [wanted]:
        raise InvalidInputError(
            f"cannot multiply shapes {list(left)} and {list(right)}: inner dimensions differ.", code="HS-WEIGHTS-03"
        )
