"""A + U C V^H, kept as its parts."""

import dataclasses
import operator as _operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from .._base.inexact import as_inexact
from .._base.structure import Structure
from .._base.tree import tree_add
from .._kernel.products import adjoint_matmul, matmul
from .adjoint import hermitian_tag, is_complex, is_hermitian
from .as_operator import as_operator
from .matrix import matrix_of
from .over_reals import mixes
from .sparse import SparseLinearOperator as Sparse
from .structured import AbstractStructured
from .tags import as_scalar, with_known_tags
from .unit_diagonal import with_implied_ones


class LowRankUpdate(lx.AbstractLinearOperator):
    """The operator A + U C Vᴴ, of which only A, U, V and C are stored.

    It has the structure of A; U and V act on vectors as one flat array, with the leaves
    one after the other. [`pseudojvp.AutoLinearSolver`][] solves with it by
    [`pseudojvp.Woodbury`][]: k + 1 solves with A instead of one with a dense matrix.

    It is known to be positive semidefinite if A is, V is left out, and C is left out or
    tagged so: D + U Uᴴ by construction. The same holds for negative semidefinite,
    symmetric (real) and `hermitian_tag`. To state anything else about the sum, use
    `lineax.TaggedLinearOperator`. Multiples (`2.0 * M`, `M / 2.0`, `-M`) are updates too.

    **Arguments:**

    - `operator`: A, of shape `(rows, cols)`; any `lineax.AbstractLinearOperator`, also
        another update, or an array or a sparse matrix, as for
        [`pseudojvp.linear_solve`][].
    - `U`: an array of shape `(rows, k)`.
    - `V`: an array of shape `(cols, k)`. Defaults to `None`, U.
    - `C`: an array of shape `(k, k)`, or an operator of that shape with its tags.
        Defaults to `None`, the identity.

    U, V and C may be complex only if A is complex.

    Cost of M v: one product with A and 2 (rows + cols + k) k flops.

    **Derivatives:** with respect to A, U, V and C, forward and reverse, of every order; a
    derivative of M v uses only the parts, and never forms a rows × cols matrix.

    **Raises:** `TypeError` for an A or C that is not an operator, or for complex parts
    with a real A; `ValueError` for shapes that do not match, or for an A that mixes real
    and complex leaves.

    **Sources:** Hager, *Updating the inverse of a matrix*, SIAM Review 31 (1989),
    equation (1).

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    D = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0]))
    A = pj.LowRankUpdate(D, jnp.array([[1.0], [1.0]]))  # D + u uᵀ
    print(A.as_matrix().tolist())  # [[2.0, 1.0], [1.0, 3.0]]
    print(pj.linear_solve(A, jnp.array([3.0, 4.0])).value.round(2))  # [1. 1.]
    ```
    """

    operator: lx.AbstractLinearOperator
    U: Inexact[Array, "rows k"]
    V: Inexact[Array, "cols k"] | None
    C: lx.AbstractLinearOperator | None

    def __init__(self, operator: Any, U: Any, V: Any = None, C: Any = None):
        self.operator = with_implied_ones(as_operator(operator, "LowRankUpdate"))
        if mixes(self.operator):
            raise ValueError(
                "`LowRankUpdate(operator=...)` got an operator with real and complex "
                "leaves, whose flat vectors are of no one kind. Pass one whose leaves "
                "are all real or all complex."
            )
        rows, cols = self.operator.out_size(), self.operator.in_size()
        self.U = self._factor(U, "U", "rows", rows)
        self.V = None if V is None else self._factor(V, "V", "columns", cols)
        rank = self.U.shape[1]
        if V is None and Structure.of(self.operator.in_structure()) != Structure.of(
            self.operator.out_structure()
        ):
            raise ValueError(
                "`LowRankUpdate(V=None)` takes U for V, but A has shape "
                f"{(rows, cols)}, or maps to vectors of another structure. Pass V of "
                f"shape {(cols, rank)}."
            )
        if self.V is not None and self.V.shape[1] != rank:
            raise ValueError(
                f"`LowRankUpdate` got U of shape {self.U.shape} and V of shape "
                f"{self.V.shape}. They need the same number of columns."
            )
        self.C = None if C is None else self._core(C, rank)

    def _factor(self, factor: Any, name: str, side: str, size: int):
        factor = as_inexact(factor, f"LowRankUpdate({name}=...)")
        if factor.ndim != 2 or factor.shape[0] != size:
            hint = " For one column, pass `u[:, None]`." if factor.ndim == 1 else ""
            raise ValueError(
                f"`LowRankUpdate({name}=...)` got an array of shape {factor.shape}, and "
                f"A has {size} {side}. Pass an array of shape ({size}, k).{hint}"
            )
        return self._cast(factor, name)

    def _core(self, core: Any, rank: int) -> lx.AbstractLinearOperator:
        if not isinstance(core, lx.AbstractLinearOperator):
            core = as_inexact(core, "LowRankUpdate(C=...)")
            if core.shape == (rank, rank):
                core = lx.MatrixLinearOperator(self._cast(core, "C"))
        shape = getattr(core, "shape", None)
        if isinstance(core, lx.AbstractLinearOperator):
            shape = (core.out_size(), core.in_size())
        if shape != (rank, rank):
            raise ValueError(
                f"`LowRankUpdate(C=...)` got shape {shape} beside U of shape "
                f"{self.U.shape}. Pass an array or an operator of shape {(rank, rank)}."
            )
        self._check_kind(Structure.of(core.out_structure()).dtype, "C")
        return core

    @property
    def _dtype(self):
        spaces = self.operator.in_structure(), self.operator.out_structure()
        return Structure.of(spaces).dtype

    def _check_kind(self, dtype, name: str) -> None:
        of_complex = jnp.issubdtype(dtype, jnp.complexfloating)
        if of_complex and not jnp.issubdtype(self._dtype, jnp.complexfloating):
            raise TypeError(
                f"`LowRankUpdate({name}=...)` got complex numbers beside a real A. Pass "
                "A as a complex operator."
            )

    def _cast(self, array: Array, name: str) -> Array:
        """In the dtype of flat vectors of A."""
        self._check_kind(array.dtype, name)
        return array.astype(self._dtype)

    @property
    def tags(self) -> frozenset[object]:
        """The tags, with `hermitian_tag` if the parts imply it."""
        same = self.V is None and is_hermitian(self.operator)
        holds = same and (self.C is None or is_hermitian(self.C))
        return frozenset({hermitian_tag}) if holds else frozenset()

    @property
    def rank(self) -> int:
        """k, the number of columns of U."""
        return self.U.shape[1]

    @property
    def right(self) -> Inexact[Array, "cols k"]:
        """The array V, or U if V was left out."""
        return self.U if self.V is None else self.V

    def core(self) -> Inexact[Array, "k k"]:
        """C as a matrix, `(k, k)`."""
        if self.C is None:
            return jnp.eye(self.rank, dtype=self.U.dtype)
        return matrix_of(self.C).astype(self.U.dtype)

    def times_core(self, columns: Inexact[Array, "rows k"]) -> Inexact[Array, "rows k"]:
        """Returns X C."""
        return columns if self.C is None else matmul(columns, self.core())

    def band(self, offset: int) -> Inexact[Array, " length"]:
        """Returns the entries of U C Vᴴ with column − row = offset."""
        left, right = self.times_core(self.U), self.right.conj()
        length = min(len(left) + min(offset, 0), len(right) - max(offset, 0))
        left = left[max(-offset, 0) :][: max(length, 0)]
        return jnp.sum(left * right[max(offset, 0) :][: max(length, 0)], axis=1)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        in_structure = Structure.of(self.operator.in_structure())
        out_structure = Structure.of(self.operator.out_structure())
        inner = adjoint_matmul(self.right, in_structure.ravel(vector).astype(self._dtype))
        if self.C is not None:
            inner = matmul(self.core(), inner)
        moved = out_structure.unravel(matmul(self.U, inner))
        return tree_add(self.operator.mv(vector), moved)

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        update = matmul(self.times_core(self.U), self.right.conj().T)
        return matrix_of(self.operator).astype(self._dtype) + update

    def transpose(self) -> "LowRankUpdate":
        transposed = self.operator.transpose()
        if self.V is None and is_hermitian(self):
            # Aᵀ + Ū Cᵀ Uᵀ, still known to be Hermitian.
            core = None if self.C is None else self.C.transpose()
            return LowRankUpdate(transposed, self.U.conj(), None, core)
        core = None if self.C is None else self.C.transpose()
        return LowRankUpdate(transposed, self.right.conj(), self.U.conj(), core)

    def __mul__(self, other: Any) -> "LowRankUpdate":
        return self._multiple(_operator.mul, other)

    def __truediv__(self, other: Any) -> "LowRankUpdate":
        return self._multiple(_operator.truediv, other)

    def __neg__(self) -> "LowRankUpdate":
        return self._multiple(_operator.mul, -1.0)

    def _multiple(self, operation: Callable, number: Any) -> "LowRankUpdate":
        scalar = self._cast(as_scalar(number, "LowRankUpdate"), "operator")
        core = self.C
        if core is None:
            core = lx.TaggedLinearOperator(
                lx.DiagonalLinearOperator(jnp.ones(self.rank, self._dtype)),
                lx.positive_semidefinite_tag,
            )

        def of_part(part):
            own = isinstance(part, AbstractStructured | LowRankUpdate | Sparse)
            # The sign is that of what was given: a complex number has none.
            moved = operation(part, number if own else scalar)
            return with_known_tags(moved, number)

        operator, core = of_part(self.operator), of_part(core)
        return dataclasses.replace(self, operator=operator, C=core)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.operator.in_structure()

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.operator.out_structure()


for _function in (lx.linearise, lx.materialise):

    @_function.register(LowRankUpdate)
    def _(operator: LowRankUpdate, _function=_function) -> LowRankUpdate:
        return dataclasses.replace(operator, operator=_function(operator.operator))


@lx.conj.register(LowRankUpdate)
def _(operator: LowRankUpdate) -> LowRankUpdate:
    return LowRankUpdate(
        lx.conj(operator.operator),
        operator.U.conj(),
        None if operator.V is None else operator.V.conj(),
        None if operator.C is None else lx.conj(operator.C),
    )


@lx.diagonal.register(LowRankUpdate)
def _(operator: LowRankUpdate):
    return lx.diagonal(operator.operator) + operator.band(0)


@lx.tridiagonal.register(LowRankUpdate)
def _(operator: LowRankUpdate):
    diagonal, lower, upper = lx.tridiagonal(operator.operator)
    update = operator.band(0), operator.band(-1), operator.band(1)
    return diagonal + update[0], lower + update[1], upper + update[2]


def _definite(operator: LowRankUpdate, holds: Callable) -> bool:
    same = operator.V is None and holds(operator.operator)
    # U Uᴴ is positive, and −U Uᴴ needs a C that says so.
    core = operator.C
    return same and (holds(core) if core is not None else holds is _positive)


_positive = lx.is_positive_semidefinite


@lx.is_positive_semidefinite.register(LowRankUpdate)
def _(operator: LowRankUpdate) -> bool:
    return _definite(operator, _positive)


@lx.is_negative_semidefinite.register(LowRankUpdate)
def _(operator: LowRankUpdate) -> bool:
    return _definite(operator, lx.is_negative_semidefinite)


@lx.is_symmetric.register(LowRankUpdate)
def _(operator: LowRankUpdate) -> bool:
    return hermitian_tag in operator.tags and not is_complex(operator)


def _is_unknown(operator: LowRankUpdate) -> bool:
    del operator
    return False


for _function in (
    lx.has_unit_diagonal,
    lx.is_diagonal,
    lx.is_lower_triangular,
    lx.is_tridiagonal,
    lx.is_upper_triangular,
):
    _function.register(LowRankUpdate, _is_unknown)
