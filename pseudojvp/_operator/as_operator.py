from typing import Any, Protocol, runtime_checkable

import lineax as lx
import numpy as np
from equinox import is_array
from jaxtyping import Array, Shaped

from .._base.inexact import as_inexact
from .function import typed
from .multiples import with_true_dtypes
from .sparse import is_sparse, SparseLinearOperator
from .tags import with_known_tags


@runtime_checkable
class SparseMatrix(Protocol):
    """`BCOO`, `BCSR` and SciPy's, without importing their modules."""

    shape: tuple[int, ...]

    def todense(self) -> Any: ...


Matrix = Shaped[Array | np.ndarray, "rows cols"] | SparseMatrix


def with_known_pattern(operator: Any, caller: str) -> Any:
    """A sparse matrix as an operator, any other as what `jax.jit` takes.

    To be called outside of `jit`, where the indices of a sparse matrix are known, and the
    numbers that an operator is multiplied with.
    """
    if is_array(operator):
        return operator
    if isinstance(operator, np.ndarray):
        return as_inexact(operator, f"{caller}(operator=...)")
    return as_operator(operator, caller)


def as_operator(
    operator: lx.AbstractLinearOperator | Shaped[Array, "rows cols"] | Any, caller: str
) -> lx.AbstractLinearOperator:
    """Returns `operator` as a lineax operator: a matrix is wrapped, an operator kept.

    A multiple or a sum gets the tags of definiteness that lineax drops.

    **Arguments:**

    - `operator`: a `lineax.AbstractLinearOperator`; an array of shape `(rows, cols)`; or
        a sparse matrix, as [`pseudojvp.SparseLinearOperator`][] takes it: `BCOO`, `BCSR`
        or SciPy's. Integers become the default floating dtype.
    - `caller`: the name of the public function, for the error messages.

    **Raises:** `ValueError` if an array is not 2-D, `TypeError` for anything else.
    """
    if isinstance(operator, lx.AbstractLinearOperator):
        return with_true_dtypes(with_known_tags(typed(operator)))
    if is_sparse(operator):
        return SparseLinearOperator(operator)
    if not (is_array(operator) or isinstance(operator, np.ndarray)):
        raise TypeError(
            f"`{caller}(operator=...)` got a {type(operator).__name__}. Pass a "
            "`lineax.AbstractLinearOperator`, an array of shape (rows, cols), or a "
            "sparse matrix."
        )
    if operator.ndim != 2:
        raise ValueError(
            f"`{caller}(operator=...)` got an array of shape {operator.shape}. A matrix "
            "has shape (rows, cols); for a batch of matrices use `jax.vmap`."
        )
    return lx.MatrixLinearOperator(as_inexact(operator, f"{caller}(operator=...)"))
