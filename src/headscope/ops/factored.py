"""`FactoredMatrix`: a product `A @ B` of low rank that is never multiplied out unless asked.

A head's OV circuit `W_V @ W_O` is [d_model, d_model] of rank d_head: its SVD, eigenvalues and norm come from the
thin factors, at d_head^2 * d_model operations instead of d_model^3.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["FactoredMatrix"]


class FactoredMatrix:
    """The matrix `A @ B`, kept as its factors.

    Args:
        A: Left factor, `[..., ldim, mdim]`.
        B: Right factor, `[..., mdim, rdim]`; leading axes broadcast against those of `A`.

    Raises:
        InvalidInputError: if the inner dimensions differ.

    Example:
        >>> product = FactoredMatrix(torch.ones(5, 2), torch.ones(2, 7))
        >>> product.shape, float(product.norm())
        (torch.Size([5, 7]), 11.832159042358398)
    """

    def __init__(self, A: Float[Tensor, "*leadA ldim mdim"], B: Float[Tensor, "*leadB mdim2 rdim"]) -> None:
        if A.shape[-1] != B.shape[-2]:
            raise InvalidInputError(
                f"the inner dimensions of A and B must agree; got A {list(A.shape)} and B {list(B.shape)}."
            )
        lead = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        self.A = A.expand(*lead, *A.shape[-2:])
        self.B = B.expand(*lead, *B.shape[-2:])

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
        """Whether this is a stack of matrices."""
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
    def AB(self) -> Float[Tensor, "... ldim rdim"]:
        """The product itself."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "... mdim mdim"]:
        """The product the other way round; it has the same non-zero eigenvalues. Needs `ldim == rdim`."""
        self._check_square("BA")
        return self.B @ self.A

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose."""
        return FactoredMatrix(self.B.transpose(-2, -1), self.A.transpose(-2, -1))

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Both factors."""
        return self.A, self.B

    @property
    def U(self) -> Float[Tensor, "... ldim rank"]:
        """Left singular vectors."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "... rank"]:
        """Singular values, largest first."""
        return self.svd()[1]

    @property
    def Vh(self) -> Float[Tensor, "... rdim rank"]:
        """Right singular vectors as columns (named as the field names it)."""
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Tensor:
        """Complex eigenvalues, `mdim` of them: the others are zero."""
        return torch.linalg.eigvals(self.BA)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Singular value decomposition: `U`, `S`, `V` with `AB = U @ diag(S) @ V.T`.

        Two thin QR factorisations leave an SVD of at most `[mdim, mdim]`.
        """
        left, left_small = torch.linalg.qr(self.A)
        right, right_small = torch.linalg.qr(self.B.transpose(-2, -1))
        u, s, vh = torch.linalg.svd(left_small @ right_small.transpose(-2, -1), full_matrices=False)
        return left @ u, s, right @ vh.transpose(-2, -1)

    def norm(self) -> Float[Tensor, "..."]:
        """Frobenius norm, from the singular values."""
        return self.S.square().sum(-1).sqrt()

    def make_even(self) -> "FactoredMatrix":
        """The same product with orthogonal factors of equal norms, `U sqrt(S)` and `sqrt(S) V.T`."""
        u, s, v = self.svd()
        root = s.sqrt()
        return FactoredMatrix(u * root[..., None, :], root[..., :, None] * v.transpose(-2, -1))

    def collapse_l(self) -> Float[Tensor, "... rank rdim"]:
        """`diag(S) V.T`: the product up to a rotation on the left."""
        _, s, v = self.svd()
        return s[..., :, None] * v.transpose(-2, -1)

    def collapse_r(self) -> Float[Tensor, "... ldim rank"]:
        """`U diag(S)`: the product up to a rotation on the right."""
        u, s, _ = self.svd()
        return u * s[..., None, :]

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """A new leading axis at `k`."""
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def get_corner(self, k: int = 3) -> Tensor:
        """The first `k` rows and columns of the product."""
        return self.A[..., :k, :] @ self.B[..., :, :k]

    def __matmul__(self, other: "FactoredMatrix | Tensor") -> "FactoredMatrix | Tensor":
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        self._check_inner(self.rdim, other.shape[-2], self.shape, other.shape)
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, self.B @ other)
        return FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Tensor) -> "FactoredMatrix | Tensor":
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        self._check_inner(other.shape[-1], self.ldim, other.shape, self.shape)
        if self.ldim > self.mdim:
            return FactoredMatrix(other @ self.A, self.B)
        return FactoredMatrix(other, self.AB)

    def __mul__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise InvalidInputError(f"a FactoredMatrix is scaled by one number; got shape {list(scalar.shape)}.")
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Index leading axes, then rows (of `A`), then columns (of `B`); an integer keeps its axis as size 1."""
        key = index if isinstance(index, tuple) else (index,)
        lead = self.ndim - 2
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *[slice(None)] * (self.ndim - len(key) + 1), *key[at + 1 :])
        if len(key) > self.ndim:
            raise InvalidInputError(f"{len(key)} indices for a FactoredMatrix of {self.ndim} axes.")
        key = (*key, *[slice(None)] * (self.ndim - len(key)))
        rows, columns = (_keep_axis(k) for k in key[lead:])
        return FactoredMatrix(self.A[key[:lead]][..., rows, :], self.B[key[:lead]][..., columns])

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={list(self.shape)}, mdim={self.mdim})"

    def _check_square(self, what: str) -> None:
        if self.ldim != self.rdim:
            raise InvalidInputError(f"{what} needs a square product; this one is {list(self.shape)}.")

    @staticmethod
    def _check_inner(left: int, right: int, left_shape: torch.Size, right_shape: torch.Size) -> None:
        if left != right:
            raise InvalidInputError(f"cannot multiply shapes {list(left_shape)} and {list(right_shape)}.")


def _keep_axis(index: Any) -> Any:
    if isinstance(index, int):
        return slice(index, index + 1 if index != -1 else None)
    return index
