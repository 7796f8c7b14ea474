import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from .._base.structure import Structure
from .._base.tree import stop_gradient
from .._operator import as_operator, SparseLinearOperator
from .._operator.tags import advice, as_scalar, tags_of_multiple


class AbstractPreconditioner(lx.AbstractLinearOperator):
    """A linear map P near A^-1, between vectors of one structure.

    The laws: `apply` is linear, `transpose().apply` its transpose and `conj().apply` its
    conjugate; the tags are true whatever numbers P was made from.
    """

    structure: Structure = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    @abc.abstractmethod
    def apply(self, flat: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """Returns P v of the entries of a vector."""

    @abc.abstractmethod
    def conj(self) -> lx.AbstractLinearOperator:
        """Returns the conjugate, not transposed."""

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.structure.unravel(self.apply(self.structure.ravel(vector)))

    def as_matrix(self) -> Inexact[Array, "n n"]:
        dtype = jax.eval_shape(self.structure.ravel, self.in_structure()).dtype
        identity = jnp.eye(self.structure.size, dtype=dtype)
        return jax.vmap(self.apply, in_axes=1, out_axes=1)(identity)

    def __mul__(self, other: Any) -> lx.TaggedLinearOperator:
        return self._multiple(lx.MulLinearOperator, other)

    def __truediv__(self, other: Any) -> lx.TaggedLinearOperator:
        return self._multiple(lx.DivLinearOperator, other)

    def _multiple(self, kind: Callable, number: Any) -> lx.TaggedLinearOperator:
        multiple = kind(self, as_scalar(number, type(self).__name__))
        of_complex = self.structure.is_complex
        tags = tags_of_multiple(self.tags, number, of_complex=of_complex)
        return lx.TaggedLinearOperator(multiple, tags)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.structure.as_tree()

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.structure.as_tree()


def constant_square_operator(
    operator: Any, caller: str
) -> tuple[lx.AbstractLinearOperator, Structure]:
    """Returns `operator` as a lineax operator without derivatives, and its structure."""
    operator = lx.linearise(stop_gradient(as_operator(operator, caller)))
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    if in_structure != out_structure:
        raise ValueError(
            f"`{caller}(operator=...)` got an operator that maps "
            f"{in_structure.as_tree()} to {out_structure.as_tree()}. A preconditioner of "
            "this kind needs a square one; for least squares precondition AᴴA."
        )
    return operator, in_structure


def sparse_entries(
    operator: Any, caller: str
) -> tuple[SparseLinearOperator, np.ndarray, np.ndarray, Structure]:
    """Returns a sparse A without derivatives, its rows, its columns and its structure."""
    tags = frozenset()
    while isinstance(operator, lx.TaggedLinearOperator):
        tags, operator = tags | operator.tags, operator.operator
    if not isinstance(operator, SparseLinearOperator):
        if isinstance(operator, lx.AbstractLinearOperator) or eqx.is_array(operator):
            raise TypeError(
                f"`{caller}(operator=...)` got a {type(operator).__name__}. Pass a "
                "`SparseLinearOperator`, a BCOO, a BCSR or a SciPy sparse matrix: this "
                "works on the stored entries of A."
            )
        operator = SparseLinearOperator(operator)
    row, col = operator.sparsity.row, operator.sparsity.col
    operator, structure = constant_square_operator(operator, caller)
    if isinstance(row, jax.core.Tracer) or isinstance(col, jax.core.Tracer):
        raise ValueError(
            f"`{caller}(operator=...)` got traced indices. What it does depends on them, "
            "so they must be known while JAX traces: within a compiled function pass "
            "`(data, row, col, shape)` with NumPy indices; `data` may be traced."
        )
    tags = operator.tags | tags
    operator = SparseLinearOperator((operator.data, operator.sparsity), tags)
    return operator, np.asarray(row), np.asarray(col), structure


def check_definite(operator: lx.AbstractLinearOperator, caller: str) -> None:
    if not lx.is_positive_semidefinite(operator):
        raise ValueError(
            f"`{caller}(operator=...)` needs a positive semidefinite operator. Tag it "
            "with `lineax.positive_semidefinite_tag` if it is; pass `-operator` if it is "
            "negative semidefinite."
            + advice(operator, "lineax.positive_semidefinite_tag")
        )


def conj_arrays(module: PyTree) -> PyTree:
    """A module whose numbers are all in arrays, conjugated."""
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jnp.conj, arrays), rest)


def symmetry_tags(operator: lx.AbstractLinearOperator) -> frozenset[object]:
    """The tags that the inverse of A, or a polynomial in A, shares with A."""
    if lx.is_positive_semidefinite(operator):
        return frozenset({lx.positive_semidefinite_tag})
    if lx.is_symmetric(operator):
        return frozenset({lx.symmetric_tag})
    return frozenset()


def unit_probe(size: int, dtype) -> Inexact[Array, " n"]:
    """A fixed unit vector with a part along every eigenvector, almost surely."""
    key = jax.random.key(0)
    signs = jax.random.rademacher(key, (size,), dtype=jnp.int32)
    return signs.astype(dtype) / math.sqrt(max(size, 1))


@lx.linearise.register(AbstractPreconditioner)
def _(operator):
    return operator


@lx.materialise.register(AbstractPreconditioner)
def _(operator):
    structure = operator.in_structure()
    return lx.materialise(
        lx.FunctionLinearOperator(operator.mv, structure, operator.tags)
    )


@lx.diagonal.register(AbstractPreconditioner)
def _(operator):
    return jnp.diag(operator.as_matrix())


@lx.tridiagonal.register(AbstractPreconditioner)
def _(operator):
    return lx.tridiagonal(lx.MatrixLinearOperator(operator.as_matrix()))


@lx.conj.register(AbstractPreconditioner)
def _(operator):
    return operator.conj()


@lx.is_symmetric.register(AbstractPreconditioner)
def _(operator):
    if lx.symmetric_tag in operator.tags:
        return True
    return lx.is_positive_semidefinite(operator) and not operator.structure.is_complex


@lx.is_positive_semidefinite.register(AbstractPreconditioner)
def _(operator):
    return lx.positive_semidefinite_tag in operator.tags


@lx.is_negative_semidefinite.register(AbstractPreconditioner)
@lx.is_diagonal.register(AbstractPreconditioner)
@lx.is_tridiagonal.register(AbstractPreconditioner)
@lx.is_lower_triangular.register(AbstractPreconditioner)
@lx.is_upper_triangular.register(AbstractPreconditioner)
@lx.has_unit_diagonal.register(AbstractPreconditioner)
def _(operator):
    return False
