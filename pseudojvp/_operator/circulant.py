"""Circulant matrices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Real

from .._base.inexact import as_inexact
from .._base.tree import at_least_single
from .._kernel.condition import resolve_rcond
from .adjoint import hermitian_tag
from .structured import (
    AbstractStructured,
    check_operator,
    completed,
    identity_multiple,
    LINEAR_TAGS,
    same_spaces,
    scalar_for,
    Tags,
    tags_of_shifted,
    tags_of_transpose,
)
from .tags import tags_of_multiple


class Circulant(AbstractStructured):
    """The circulant matrix A_ij = c_(i − j mod n) with the first column c.

    Like `scipy.linalg.circulant`. The Fourier transform diagonalises it: products, solves
    and pseudoinverses take a few FFTs of length n, O(n log n) flops, and memory for n
    numbers. [`pseudojvp.AutoLinearSolver`][] solves with its eigenvalues, the transform
    of c. An eigenvalue of zero makes the matrix singular under `well_posed=True`;
    otherwise the pseudoinverse leaves out eigenvalues up to `rcond` times the largest.

    **Arguments:**

    - `column`: c, of shape `(n,)`, real or complex. 16 bits become 32.
    - `tags`: what is known about the matrix, as for `lineax.MatrixLinearOperator`.
        Defaults to none. The solve with eigenvalues needs no tag; `CG` and `MINRES` do.

    These are again a `Circulant`: its transpose and conjugate, multiples, `A + λ I`, and
    sums and products of two. `eigenvalues()` are in the order of `jnp.fft.fft`.

    **Derivatives:** with respect to `column`, of every order.

    **Raises:** `ValueError` for a column of another shape, or an empty one.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 4.8.2.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = pj.Circulant(jnp.array([4.0, 1.0, 0.0]))
    print(A.as_matrix().tolist())  # [[4.0, 0.0, 1.0], [1.0, 4.0, 0.0], [0.0, 1.0, 4.0]]
    print(pj.linear_solve(A, jnp.array([5.0, 5.0, 5.0])).value.round(2))  # [1. 1. 1.]
    ```
    """

    column: Inexact[Array, " n"]
    given_tags: Tags = eqx.field(static=True)

    def __init__(self, column: Any, tags: Any = frozenset()):
        self.column = as_generator(column, "Circulant(column=...)")
        self.given_tags = completed(tags, self.column.dtype)

    def eigenvalues(self) -> Inexact[Array, " n"]:
        """Returns the Fourier transform of the column, complex; one FFT."""
        return jnp.fft.fft(self.column)

    @property
    def tags(self) -> Tags:
        return self.given_tags

    def _mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        size = self.column.size
        if jnp.iscomplexobj(self.column):
            return jnp.fft.ifft(self.eigenvalues() * jnp.fft.fft(vector))
        product = jnp.fft.rfft(self.column) * jnp.fft.rfft(vector)
        return jnp.fft.irfft(product, size)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        places = jnp.arange(self.column.size)
        return self.column[(places[:, None] - places[None, :]) % self.column.size]

    def transpose(self) -> "Circulant":
        # c_(−i mod n) is entry i.
        return Circulant(jnp.roll(self.column[::-1], 1), tags_of_transpose(self.tags))

    def conj(self) -> "Circulant":
        return Circulant(self.column.conj(), self.tags)

    def linearise(self) -> "Circulant":
        return self

    def materialise(self) -> "Circulant":
        return self

    def diagonal(self) -> Inexact[Array, " n"]:
        return jnp.broadcast_to(self.column[0], self.column.shape)

    def trace(self) -> Inexact[Array, ""]:
        return self.column.size * self.column[0]

    def pseudoinverse(self, rcond: Real[ArrayLike, ""] | None = None) -> "Circulant":
        """Returns A†, the circulant matrix with the inverted eigenvalues.

        **Arguments:**

        - `rcond`: eigenvalues at most `rcond` times the largest in absolute value count
            as zero. Defaults to `None`, `eps * n`.
        """
        values = self.eigenvalues()
        sizes = jnp.abs(values)
        default = float(jnp.finfo(sizes.dtype).eps) * sizes.size
        cutoff = resolve_rcond(rcond, default, sizes.dtype) * jnp.max(sizes)
        kept = sizes > cutoff
        inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
        definite = {lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}
        tags = self.tags & (definite | {lx.symmetric_tag, hermitian_tag})
        return Circulant(self._cast(jnp.fft.ifft(inverse)), tags)

    def __mul__(self, other: Any) -> "Circulant":
        (column,), tags = scaled(self, other, self.column)
        return Circulant(column, tags)

    def __add__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, Circulant) and same_spaces(self, other):
            tags = self.tags & other.tags & LINEAR_TAGS
            return Circulant(self.column + other.column, tags)
        shift = identity_multiple(other) if same_spaces(self, other) else None
        if shift is None or not _fits(shift, self.column):
            if isinstance(other, AbstractStructured) and type(other) is not Circulant:
                return NotImplemented  # `Toeplitz` is asked then
            return lx.AddLinearOperator(self, other)
        column = self.column.at[0].add(shift.astype(self.column.dtype))
        return Circulant(column, tags_of_shifted(self.tags, shift))

    def __matmul__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, Circulant) and same_spaces(self, other):
            definite = {lx.positive_semidefinite_tag}  # the two commute
            tags = self.tags & other.tags & (definite | {lx.symmetric_tag, hermitian_tag})
            return Circulant(self.mv(other.column), tags)
        return lx.ComposedLinearOperator(self, other)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.column.shape, self.column.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()

    def _cast(self, array):
        return array if jnp.iscomplexobj(self.column) else array.real


def as_generator(array: Any, what: str) -> Inexact[Array, " n"]:
    array = at_least_single(as_inexact(array, what))
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"`{what}` got an array of shape {array.shape}. Pass one of shape (n,), with "
            "n at least one; for a batch of matrices use `jax.vmap`."
        )
    return array


def scaled(
    operator: AbstractStructured, number: Any, *arrays: Inexact[Array, "_"]
) -> tuple[tuple[Inexact[Array, "_"], ...], Tags]:
    """The arrays times a number, complex if it is, and the tags of the multiple."""
    (first, *_) = arrays
    of_complex = jnp.iscomplexobj(first)
    if jnp.iscomplexobj(number) and not of_complex:
        arrays = tuple(jax.lax.complex(array, jnp.zeros_like(array)) for array in arrays)
    scalar = scalar_for(number, arrays[0].dtype, type(operator).__name__)
    tags = tags_of_multiple(operator.tags, number, of_complex=of_complex)
    return tuple(scalar * array for array in arrays), tags


def _fits(shift: Array, column: Array) -> bool:
    return jnp.iscomplexobj(column) or not jnp.iscomplexobj(shift)
