"""Hermitian operators by their eigenvalues and eigenvectors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Real

from .._base.inexact import as_inexact
from .._kernel.condition import resolve_rcond
from .._kernel.products import adjoint_matmul, matmul
from .adjoint import hermitian_tag
from .structured import (
    AbstractStructured,
    check_operator,
    completed,
    identity_multiple,
    same_spaces,
    scalar_for,
    Tags,
    tags_of_shifted,
)
from .tags import as_scalar, tags_of_multiple


class Eigh(AbstractStructured):
    """The Hermitian operator V diag(λ) Vᴴ + μ (I − V Vᴴ), V with orthonormal columns.

    `jnp.linalg.eigh` returns λ and V. With fewer columns than rows the operator is of low
    rank, plus `complement` times the identity on the orthogonal complement of V.

        A = pj.Eigh(*jnp.linalg.eigh(matrix))
        x = pj.linear_solve(A + 1e-3 * I, b).value
        root = A.power(0.5)

    **Arguments:**

    - `values`: λ, real, of shape `(k,)`, in any order.
    - `vectors`: V, of shape `(n, k)`, k ≤ n, real or complex, with orthonormal columns. A
        solve fails with `RESULTS.breakdown` if Vᴴ V moves a unit vector by more than
        about 1000 eps √k. It checks every unit vector up to k = 8, and eight fixed
        vectors beyond.
    - `complement`: μ, a real scalar in the units of λ. Defaults to zero.

    These are again an `Eigh`: its transpose and conjugate, real multiples, `A + c I` for
    real c, and the sum and product of two that share the same array of vectors. It is
    known to be Hermitian, and definite if `tags` say so.

    - `tags`: what else is known, `lineax.positive_semidefinite_tag` for instance.
        Defaults to none.

    Cost: 4nk flops for A v and for a solve; k flops for a power, a pseudoinverse or a
    shift.

    **Derivatives:** with respect to `values`, `vectors` and `complement`, of every order.
    They are those of the matrix V diag(λ) Vᴴ + μ (I − V Vᴴ) for any tangent of V. Only
    its determinant by [`pseudojvp.slogdet`][] takes V to stay orthonormal, and is
    differentiated with respect to λ and μ alone.

    **Raises:** `ValueError` for shapes that do not match, `TypeError` for complex values.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = pj.Eigh(jnp.array([1.0, 4.0]), jnp.eye(2))
    print(A.power(0.5).as_matrix().tolist())  # [[1.0, 0.0], [0.0, 2.0]]
    print(pj.linear_solve(A, jnp.array([3.0, 4.0])).value.round(2))  # [3. 1.]
    ```
    """

    values: Real[Array, " k"]
    vectors: Inexact[Array, "n k"]
    complement: Real[Array, ""]
    given_tags: Tags = eqx.field(static=True)

    def __init__(
        self, values: Any, vectors: Any, complement: Any = 0.0, tags: Any = frozenset()
    ):
        values = as_inexact(values, "Eigh(values=...)")
        vectors = as_inexact(vectors, "Eigh(vectors=...)")
        if jnp.iscomplexobj(values) or jnp.iscomplexobj(complement):
            raise TypeError(
                "`Eigh(values=..., complement=...)` got complex numbers. The "
                "eigenvalues of a Hermitian matrix are real."
            )
        if values.ndim != 1 or vectors.ndim != 2 or values.shape != vectors.shape[1:]:
            raise ValueError(
                f"`Eigh` got values of shape {values.shape} and vectors of shape "
                f"{vectors.shape}. Pass (k,) and (n, k), with the vectors as columns; "
                "for a batch use `jax.vmap`."
            )
        if vectors.shape[1] > vectors.shape[0]:
            raise ValueError(
                f"`Eigh` got vectors of shape {vectors.shape}. More columns than rows "
                "are not orthonormal; are they transposed?"
            )
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(values, vectors)
        if dtype.itemsize == 2:
            dtype = jnp.float32
        real = jnp.finfo(dtype).dtype
        self.values = values.astype(real)
        self.vectors = vectors.astype(dtype)
        self.complement = as_scalar(complement, "Eigh").astype(real)
        self.given_tags = completed(tags, dtype) | completed(hermitian_tag, dtype)

    @property
    def tags(self) -> Tags:
        return self.given_tags

    def _mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return self._applied(self.values, self.complement, vector)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        identity = jnp.eye(len(self.vectors), dtype=self.vectors.dtype)
        moved = (self.values - self.complement).astype(self.vectors.dtype)
        product = matmul(self.vectors * moved[None], self.vectors.conj().T)
        return product + self.complement.astype(identity.dtype) * identity

    def transpose(self) -> "Eigh":
        return self.conj()

    def conj(self) -> "Eigh":
        return Eigh(self.values, self.vectors.conj(), self.complement, self.tags)

    def linearise(self) -> "Eigh":
        return self

    def materialise(self) -> "Eigh":
        return self

    def diagonal(self) -> Inexact[Array, " n"]:
        moved = self.values - self.complement
        squares = jnp.square(jnp.abs(self.vectors))
        diagonal = matmul(squares, moved) + self.complement
        return diagonal.astype(self.vectors.dtype)

    def trace(self) -> Inexact[Array, ""]:
        rows, columns = self.vectors.shape
        trace = jnp.sum(self.values) + (rows - columns) * self.complement
        return trace.astype(self.vectors.dtype)

    def power(
        self, exponent: Real[ArrayLike, ""], rcond: Real[ArrayLike, ""] | None = None
    ) -> "Eigh":
        """Returns A^p = V diag(λ^p) Vᴴ + μ^p (I − V Vᴴ), for any real p.

        A negative power is a power of the pseudoinverse: eigenvalues at most `rcond`
        times the largest, in absolute value, stay zero. A fractional power of a negative
        eigenvalue is NaN.

        **Arguments:**

        - `exponent`: p, a number, known or traced; if it is not a Python number,
            derivatives take A to be positive semidefinite.
        - `rcond`: a number without unit. Defaults to `None`, `eps * n`.

        **Raises:** `ValueError` if `exponent` is no scalar.
        """
        if jnp.ndim(exponent) != 0:
            raise ValueError(
                f"`Eigh.power(exponent=...)` got an array of shape "
                f"{jnp.shape(exponent)}. Pass a scalar."
            )
        kept = self._above(rcond)
        negative = jnp.asarray(exponent) < 0

        def raised(value, keep):
            drop = negative & ~keep
            power = jnp.where(drop, 1, value)
            if isinstance(exponent, int) and not isinstance(exponent, bool):
                power = power**exponent
            else:
                power = power ** jnp.asarray(exponent, value.dtype)
            return jnp.where(drop, 0, power)

        tags = self.tags & {lx.positive_semidefinite_tag}
        values = raised(self.values, kept[:-1])
        return Eigh(values, self.vectors, raised(self.complement, kept[-1]), tags)

    def pseudoinverse(self, rcond: Real[ArrayLike, ""] | None = None) -> "Eigh":
        """Returns A†, the same as `power(-1, rcond)`."""
        return self.power(-1, rcond)

    def __mul__(self, other: Any) -> lx.AbstractLinearOperator:
        scalar = scalar_for(other, self.vectors.dtype, "Eigh")
        if jnp.iscomplexobj(other):
            return lx.MulLinearOperator(self, scalar)
        scalar = scalar.real.astype(self.values.dtype)
        tags = tags_of_multiple(self.tags, other, of_complex=True)
        values, complement = scalar * self.values, scalar * self.complement
        return Eigh(values, self.vectors, complement, tags)

    def __add__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, Eigh) and other.vectors is self.vectors:
            tags = self.tags & other.tags
            values = self.values + other.values
            complement = self.complement + other.complement
            return Eigh(values, self.vectors, complement, tags)
        shift = identity_multiple(other)
        if shift is None or jnp.iscomplexobj(shift) or not same_spaces(self, other):
            return lx.AddLinearOperator(self, other)
        tags = tags_of_shifted(self.tags, shift)
        shift = shift.astype(self.values.dtype)
        return Eigh(self.values + shift, self.vectors, self.complement + shift, tags)

    def __matmul__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, Eigh) and other.vectors is self.vectors:
            tags = self.tags & other.tags & {lx.positive_semidefinite_tag}
            values = self.values * other.values
            complement = self.complement * other.complement
            return Eigh(values, self.vectors, complement, tags)
        return lx.ComposedLinearOperator(self, other)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.vectors.shape[:1], self.vectors.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()

    def _applied(self, values, complement, vector):
        """V diag(values) Vᴴ v + complement (v − V Vᴴ v)."""
        inner = adjoint_matmul(self.vectors, vector)
        moved = (values - complement).astype(inner.dtype)
        product = matmul(self.vectors, moved * inner)
        return product + complement.astype(inner.dtype) * vector

    def _above(self, rcond):
        """Of each eigenvalue and of the complement, whether it counts as nonzero."""
        rows, columns = self.vectors.shape
        sizes = jnp.abs(jnp.append(self.values, self.complement))
        present = sizes if columns < rows else sizes[:-1]
        default = float(jnp.finfo(sizes.dtype).eps) * rows
        cutoff = resolve_rcond(rcond, default, sizes.dtype)
        return sizes > cutoff * jnp.max(present, initial=0)
