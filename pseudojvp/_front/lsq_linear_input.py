"""The arguments of `lsq_linear` and `nnls`, checked."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Num, Real

from .._base.tree import at_least_single
from .._operator import as_operator, SparseMatrix
from .._operator.matrix import matrix_of
from .._operator.sparse import is_sparse
from .._solver import PivotedQR
from .arrays import as_real, check_shapes, dense, promote, rcond_beside, TRUNCATING


Matrix = (
    Num[ArrayLike, "m n"]
    | Bool[ArrayLike, "m n"]
    | SparseMatrix
    | lx.AbstractLinearOperator
)
Columns = Num[ArrayLike, "m *k"] | Bool[ArrayLike, "m *k"]
Bound = Real[ArrayLike, "..."] | None


def checked(caller: str, a, b, bounds, rcond, solver) -> tuple[Any, ...]:
    """All of them as `_lsq_linear` takes them, and the dtype of the answer."""
    solver = PivotedQR() if solver is None else solver
    if not isinstance(solver, TRUNCATING):
        got = type(solver).__name__ if isinstance(solver, eqx.Module) else repr(solver)
        raise TypeError(
            f"`{caller}(solver=...)` got {got}. Pass `PivotedQR()` or `SVD()`: columns "
            "at a bound are zero to it, so that no rank is full."
        )
    rcond = rcond_beside(solver, rcond, caller)
    a, b = promote(caller, a=_matrix(a, caller), b=b)
    if jnp.iscomplexobj(a):
        raise TypeError(
            f"`{caller}` got complex numbers, which have no order. Stack real and "
            "imaginary parts of `a` and `b` as rows, for a real x."
        )
    check_shapes(a, b, caller)
    given = a.dtype
    if given.itemsize == 2 and rcond is None:
        rcond = float(jnp.finfo(given).eps)  # above the rounding of entries
    a, b = at_least_single(a), at_least_single(b)
    lower, upper = _bounds(bounds, (a.shape[1], *b.shape[1:]), a.dtype, caller)
    return a, b, lower, upper, rcond, solver, given


def _matrix(a: Any, caller: str) -> Any:
    """`a` as an array, if it is an operator or a sparse matrix."""
    if isinstance(a, lx.AbstractLinearOperator):
        for structure in (a.in_structure(), a.out_structure()):
            leaves = jtu.tree_leaves(structure)
            if leaves != [structure] or len(structure.shape) != 1:
                raise ValueError(
                    f"`{caller}(a=...)` got an operator with the structure {structure}. "
                    "Pass one of arrays with one axis."
                )
        return matrix_of(as_operator(a, caller))
    if is_sparse(a):
        return dense(a, caller, "pass `a.todense()`, if there is memory for it")
    return a


def _bounds(bounds: Any, shape: tuple[int, ...], dtype, caller: str) -> list[Array]:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        got = (
            f"{len(bounds)} of them" if isinstance(bounds, tuple | list) else repr(bounds)
        )
        raise TypeError(
            f"`{caller}(bounds=...)` got {got}. Pass the pair `(lower, upper)`, in which "
            "`None` is no bound."
        )
    lower, upper = bounds
    lower = -jnp.inf if lower is None else lower
    upper = jnp.inf if upper is None else upper
    return [
        _bound(lower, f"{caller}(lower bound)", shape, dtype),
        _bound(upper, f"{caller}(upper bound)", shape, dtype),
    ]


def _bound(bound: Any, what: str, shape: tuple[int, ...], dtype) -> Array:
    # A scalar and one of the shape of x are as good as one for each unknown.
    fits = jnp.isscalar(bound) or getattr(bound, "shape", None) in ((), shape)
    bound = as_real(bound, what, jnp.shape(bound) if fits else shape[:1], dtype)
    if bound.ndim == 1 and len(shape) == 2:
        bound = bound[:, None]
    return jnp.broadcast_to(bound, shape)
