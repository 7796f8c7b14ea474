"""Toeplitz matrices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact

from .adjoint import hermitian_tag
from .circulant import as_generator, Circulant, scaled
from .structured import (
    AbstractStructured,
    check_operator,
    completed,
    identity_multiple,
    LINEAR_TAGS,
    same_spaces,
    Tags,
    tags_of_shifted,
    tags_of_transpose,
)


class Toeplitz(AbstractStructured):
    """The Toeplitz matrix with first column c and first row r, constant on its diagonals.

    Like `scipy.linalg.toeplitz`: A_ij is c_(i − j) on and below the diagonal and r_(j −
    i) above, of shape `(len(c), len(r))`, square or not. A product takes three FFTs of
    length about m + n, because A is a corner of a circulant matrix.

    [`pseudojvp.AutoLinearSolver`][] solves it as a dense matrix up to a million entries
    (1000 × 1000), by Cholesky or LU, with an estimate of the condition number. Above that
    it iterates with products and never forms A: `CG` if A is tagged definite, `MINRES` if
    it is Hermitian, `BiCGStab` if it is square, `LSMR` otherwise or if the rank may be
    deficient. `CG` and `BiCGStab` use the inverse of `circulant()` as a preconditioner.
    The relative residual is 1e-10; for an ill-conditioned A name a solver with a smaller
    `rtol`, or `LU()`. Levinson's recursion (O(n²), in n sequential steps) is not used:
    for indefinite or general A it is unstable whenever a leading block is nearly
    singular.

    **Arguments:**

    - `column`: c, of shape `(m,)`, real or complex. 16 bits become 32.
    - `row`: r, of shape `(n,)`; r_0 is ignored. Defaults to `None`, the conjugate of c.
    - `tags`: what is known about the matrix, as for `lineax.MatrixLinearOperator`. A real
        one without `row` is known to be symmetric. Defaults to none.

    These are again a `Toeplitz`: its transpose and conjugate, multiples, the sum of two
    with one shape (or with a [`Circulant`][pseudojvp.Circulant]), and `A + λ I` if A is
    square. Products with other operators are compositions, as for any operator.

    **Derivatives:** with respect to `column` and `row`, of every order.

    **Raises:** `ValueError` for arrays of another shape, or empty ones.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), sections 4.7
    and 4.8.4; T. Chan, SIAM J. Sci. Stat. Comput. 9 (1988), for the preconditioner.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = pj.Toeplitz(jnp.array([4.0, 1.0, 0.0]))  # a column alone: symmetric
    print(A.as_matrix().tolist())  # [[4.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 4.0]]
    print(pj.linear_solve(A, jnp.array([5.0, 6.0, 5.0])).value.round(2))  # [1. 1. 1.]
    ```
    """

    column: Inexact[Array, " m"]
    row: Inexact[Array, " n"]
    given_tags: Tags = eqx.field(static=True)

    def __init__(self, column: Any, row: Any = None, tags: Any = frozenset()):
        column = as_generator(column, "Toeplitz(column=...)")
        if row is None:
            row = column.conj()
            if not jnp.iscomplexobj(column):
                tags = completed(tags, column.dtype) | {lx.symmetric_tag}
        row = as_generator(row, "Toeplitz(row=...)")
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(column, row)
        self.column, self.row = column.astype(dtype), row.astype(dtype)
        self.given_tags = completed(tags, dtype)

    @property
    def tags(self) -> Tags:
        return self.given_tags

    def _mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        rows, cols = self.column.size, self.row.size
        size = _next_fast(rows + cols - 1)
        zeros = jnp.zeros(size - rows - cols + 1, self.column.dtype)
        generator = jnp.concatenate([self.column, zeros, self.row[:0:-1]])
        padded = jnp.pad(vector, (0, size - cols))
        return Circulant(generator).mv(padded)[:rows]

    def as_matrix(self) -> Inexact[Array, "m n"]:
        rows, cols = self.column.size, self.row.size
        entries = jnp.concatenate([self.row[:0:-1], self.column])
        places = jnp.arange(rows)[:, None] - jnp.arange(cols)[None, :]
        return entries[places + cols - 1]

    def transpose(self) -> "Toeplitz":
        column = self.row.at[0].set(self.column[0])
        return Toeplitz(column, self.column, tags_of_transpose(self.tags))

    def conj(self) -> "Toeplitz":
        return Toeplitz(self.column.conj(), self.row.conj(), self.tags)

    def linearise(self) -> "Toeplitz":
        return self

    def materialise(self) -> "Toeplitz":
        return self

    def diagonal(self) -> Inexact[Array, " k"]:
        size = min(self.column.size, self.row.size)
        return jnp.broadcast_to(self.column[0], (size,))

    def trace(self) -> Inexact[Array, ""]:
        self.check_square("trace")
        return self.column.size * self.column[0]

    def circulant(self) -> Circulant:
        """Returns the circulant matrix nearest to a square A in the Frobenius norm.

        c_k = ((n − k) a_k + k a_(k − n)) / n. For Hermitian A its eigenvalues lie between
        the smallest and the largest of A, so it is definite if A is.

            options = {"preconditioner": A.circulant().pseudoinverse()}

        **Raises:** `ValueError` if A is not square.

        **Sources:** T. Chan, *An optimal circulant preconditioner for Toeplitz systems*,
        SIAM J. Sci. Stat. Comput. 9 (1988), equation (4).
        """
        self.check_square("circulant")
        size = self.column.size
        real = jnp.finfo(self.column.dtype).dtype
        part = (jnp.arange(size, dtype=real) / size).astype(self.column.dtype)
        wrapped = jnp.roll(self.row[::-1], 1)  # a_(k − n), from k = 1
        column = (1 - part) * self.column + part * wrapped
        definite = {lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}
        tags = self.tags & (definite | {lx.symmetric_tag, hermitian_tag})
        return Circulant(column, tags)

    def __mul__(self, other: Any) -> "Toeplitz":
        (column, row), tags = scaled(self, other, self.column, self.row)
        return Toeplitz(column, row, tags)

    def __add__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if not same_spaces(self, other):
            return lx.AddLinearOperator(self, other)
        if isinstance(other, Circulant):
            row = other.transpose().column
            other = Toeplitz(other.column, row, other.tags)
        if isinstance(other, Toeplitz):
            tags = self.tags & other.tags & LINEAR_TAGS
            return Toeplitz(self.column + other.column, self.row + other.row, tags)
        shift = identity_multiple(other)
        of_complex = jnp.iscomplexobj(self.column)
        if shift is None or (jnp.iscomplexobj(shift) and not of_complex):
            return lx.AddLinearOperator(self, other)
        column = self.column.at[0].add(shift.astype(self.column.dtype))
        return Toeplitz(column, self.row, tags_of_shifted(self.tags, shift))

    def __radd__(self, other: Any) -> lx.AbstractLinearOperator:
        return self + other

    def __matmul__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        return lx.ComposedLinearOperator(self, other)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.row.shape, self.row.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.column.shape, self.column.dtype)


def _next_fast(size: int) -> int:
    """The next number of factors 2, 3 and 5 alone, for which an FFT is fast."""
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1
