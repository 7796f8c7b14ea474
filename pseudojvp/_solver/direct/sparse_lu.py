import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, Int

from ..._base.checks import check_options, check_square
from ..._base.tree import at_least_single
from ..._kernel.condition import full_rank_result
from ..._kernel.determinant import of_product
from ..._kernel.superlu import solve_sparse, sparse_slogdet
from ..._operator.sparse import SparseLinearOperator, untagged
from ..factorisation import Slogdet


class SparseLUState(eqx.Module):
    """A itself (A^T is meant if `transposed`)."""

    row: Int[Array, " nse"]
    col: Int[Array, " nse"]
    data: Inexact[Array, " nse"]
    transposed: bool = eqx.field(static=True)
    size: int = eqx.field(static=True)


class SparseLU(lx.AbstractLinearSolver[SparseLUState]):
    """Solves sparse square nonsingular systems by a sparse LU factorisation, SuperLU.

    A must be a [`pseudojvp.SparseLinearOperator`][]. A minimum degree ordering on the
    pattern of A + Aᵀ keeps the fill low, and a pivot is at least a tenth of the largest
    entry in its column. Good for any sparse A whose factors stay sparse: PDEs in two
    dimensions up to about 10⁵ unknowns, circuits, networks. In three dimensions use a
    preconditioned iteration instead.

    SuperLU is SciPy's. It runs on the host, whatever the platform, in double precision;
    in single precision the solution is rounded. Rows and columns of A are first scaled by
    powers of two, and `stats["reciprocal_condition"]` estimates the reciprocal condition
    number of the scaled A. The result is `RESULTS.singular` if that is at most `eps * n`
    (A is singular to working precision), or if A is singular for any entries on its
    pattern. Each solution is checked. If an entry of b − A x (rows scaled) exceeds 10 eps
    times the largest of |A| |x| + |b|, a step of iterative refinement follows. If it
    exceeds 10 eps n times that, the solution is NaN and the result `RESULTS.singular`.

    The state is A itself. The host keeps the factors of the last matrix, and those of
    earlier ones up to 512 MiB together, and looks them up by the entries of A. So a solve
    and its adjoint share one factorisation, and a second solve with the same A needs
    none. The factors of the last matrix occupy memory until the next matrix.

    Takes no `options`. Real and complex. Cost: one factorisation and a solve with eight
    columns, shared by primal, JVP and VJP; then one solve for each of them. Several
    right-hand sides under `jax.vmap` are columns of one solve; several matrices are
    factorised one after the other.

    **Raises:** `ValueError` at trace time for an operator that is not sparse or not
    square, or an option.

    **Sources:** Li, *An overview of SuperLU: algorithms, implementation, and user
    interface*, ACM Trans. Math. Softw. 31 (2005); Gudmundsson, Kenney & Laub,
    *Small-sample statistical estimates for matrix norms*, SIAM J. Matrix Anal. Appl. 16
    (1995), for the estimate.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj
    import scipy.sparse

    A = scipy.sparse.diags_array([-1.0, 2, -1], offsets=[-1, 0, 1], shape=(4, 4))
    b = jnp.array([1.0, 0.0, 0.0, 1.0])
    print(pj.sparse_solve(A, b, pj.SparseLU()).round(2))  # [1. 1. 1. 1.]
    ```
    """

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> SparseLUState:
        check_options(self, options)
        check_square(self, operator)
        sparse = untagged(operator)
        if not isinstance(sparse, SparseLinearOperator):
            raise ValueError(
                "`SparseLU` takes a `pseudojvp.SparseLinearOperator`, but got a "
                f"`{type(sparse).__name__}`. Use `LU()`."
            )
        sparsity = sparse.sparsity
        entries = sparsity.row, sparsity.col, sparse.data
        return SparseLUState(*entries, transposed=False, size=sparsity.shape[0])

    def compute(
        self, state: SparseLUState, vector: Inexact[Array, " n"], options: dict[str, Any]
    ) -> tuple[Inexact[Array, " n"], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        size = vector.size
        if size == 0:
            one = jnp.ones((), jnp.finfo(vector.dtype).dtype)
            return vector, lx.RESULTS.successful, {"reciprocal_condition": one}
        data, wide = at_least_single((state.data, vector))
        solution, estimate = solve_sparse(
            state.row, state.col, data, wide, transposed=state.transposed
        )
        return (
            solution.astype(vector.dtype),
            full_rank_result(estimate, size, size),
            {"reciprocal_condition": estimate},
        )

    def transpose(self, state: SparseLUState, options: dict[str, Any]):
        return dataclasses.replace(state, transposed=not state.transposed), options

    def conj(self, state: SparseLUState, options: dict[str, Any]):
        return dataclasses.replace(state, data=state.data.conj()), options

    def slogdet(self, state: SparseLUState) -> Slogdet:
        if state.size == 0:
            return Slogdet(*of_product(at_least_single(jnp.ones(0, state.data.dtype))))
        data = at_least_single(state.data)
        return Slogdet(*sparse_slogdet(state.row, state.col, data, state.size))

    def assume_full_rank(self) -> bool:
        return True
