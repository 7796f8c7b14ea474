"""Operators as matrices of flat vectors."""

from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact

from .._base.structure import Structure
from .._base.tree import at_least_single
from .function import Function
from .over_reals import mixes
from .sparse import SparseLinearOperator, untagged


_FUNCTIONS = lx.FunctionLinearOperator | lx.JacobianLinearOperator | Function
_STORED = (
    lx.MatrixLinearOperator
    | lx.DiagonalLinearOperator
    | lx.TridiagonalLinearOperator
    | SparseLinearOperator
)
TAGS = {
    lx.symmetric_tag: lx.is_symmetric,
    lx.diagonal_tag: lx.is_diagonal,
    lx.lower_triangular_tag: lx.is_lower_triangular,
    lx.upper_triangular_tag: lx.is_upper_triangular,
    lx.tridiagonal_tag: lx.is_tridiagonal,
    lx.unit_diagonal_tag: lx.has_unit_diagonal,
    lx.positive_semidefinite_tag: lx.is_positive_semidefinite,
    lx.negative_semidefinite_tag: lx.is_negative_semidefinite,
}


def functions_in(operator: lx.AbstractLinearOperator) -> list[Any]:
    """The operators that are functions, of which it is made."""
    parts = jtu.tree_leaves(operator, is_leaf=lambda part: isinstance(part, _FUNCTIONS))
    return [part for part in parts if isinstance(part, _FUNCTIONS)]


def has_functions(operator: lx.AbstractLinearOperator) -> bool:
    return len(functions_in(operator)) > 0


def is_narrow(operator: lx.AbstractLinearOperator) -> bool:
    """Whether a leaf of its vectors has 16 bits, for which there is no LAPACK."""
    spaces = Structure.of((operator.in_structure(), operator.out_structure()))
    return any(dtype.itemsize == 2 for dtype in spaces.dtypes)


def matrix_of(operator: lx.AbstractLinearOperator) -> Inexact[Array, "rows cols"]:
    """A, for vectors as `Structure.ravel` makes them, in the widest of their dtypes."""
    out_structure = Structure.of(operator.out_structure())
    in_structure = Structure.of(operator.in_structure())
    if mixes(operator):
        raise ValueError(
            f"`operator` maps {in_structure.as_tree()} to {out_structure.as_tree()}: of "
            "real leaves beside complex ones it has no matrix but one over the reals, "
            "and neither has a state of this solver. Pass operator and vector to a "
            "function of pseudojvp, without `state`: it solves over the reals."
        )
    if not has_functions(operator):
        matrix = jnp.asarray(operator.as_matrix())
    elif in_structure.size == 0:  # lineax makes none of no tridiagonals (lineax 0.1.1)
        matrix = jnp.zeros((out_structure.size, 0), in_structure.dtype)
    elif len({*in_structure.dtypes, *out_structure.dtypes}) == 1:
        # XLA fails on the transposed layout that an FFT leaves (jaxlib 0.10.2).
        matrix = lax.optimization_barrier(operator.as_matrix())
    else:

        def column(unit):
            return out_structure.ravel(operator.mv(in_structure.unravel(unit)))

        units = jnp.eye(in_structure.size, dtype=in_structure.dtype)
        matrix = jax.vmap(column, out_axes=1)(units)
        matrix = lax.optimization_barrier(matrix)
    dtypes = in_structure.dtype, out_structure.dtype
    with jax.numpy_dtype_promotion("standard"):
        return matrix.astype(jnp.result_type(*dtypes))


def as_dense(operator: lx.AbstractLinearOperator) -> lx.MatrixLinearOperator:
    """The operator as its matrix, with the tags that hold."""
    return lx.MatrixLinearOperator(matrix_of(operator), known_tags(operator))


def known_tags(operator: lx.AbstractLinearOperator) -> frozenset[object]:
    """Those of lineax that hold, by the operator's tags or its class."""
    with jax.numpy_dtype_promotion("standard"):  # for leaves of several dtypes
        return frozenset(tag for tag, holds in TAGS.items() if holds(operator))


def widened(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """A stored matrix of 16 bits in 32, and any other operator as it is."""
    if isinstance(untagged(operator), _STORED):
        return at_least_single(operator)
    return operator


def rounding_of_rank(operator: lx.AbstractLinearOperator) -> float:
    """Below it, times the largest one, a singular value may be one of rounding.

    eps times the larger dimension. In 16 bits that is more than one for matrices of a
    hundred columns: there it is eps alone, above the rounding of entries.
    """
    eps = Structure.of((operator.in_structure(), operator.out_structure())).eps
    larger = max(operator.in_size(), operator.out_size())
    return eps if is_narrow(operator) else eps * larger
