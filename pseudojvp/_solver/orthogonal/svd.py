from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, Integer, PyTree, Real

from ..._base.checks import check_options
from ..._base.tree import one_or_nan
from ..._kernel.blocked_householder import BlockReflectors
from ..._kernel.condition import resolve_rcond
from ..._kernel.determinant import of_product, sign_of
from ..._kernel.products import adjoint_matmul, matmul
from ..._operator.matrix import matrix_of, rounding_of_rank
from ..factorisation import AbstractFactorisation, Slogdet
from ..state import conjugated, structures_of, swapped
from .blocks import blocks_for, check_blocks


class SVDState(eqx.Module):
    """A = U S V^H, thin; zero is what of U and V is not `kept`, below the cutoff.

    The methods are those of any complete orthogonal decomposition A = Q T Z^H.
    """

    u: Inexact[Array, "rows k"]
    singular_values: Real[Array, " k"]
    vh: Inexact[Array, "k cols"]
    vh_over_s: Inexact[Array, "k cols"]
    kept: Bool[Array, " k"]
    structures: eqxi.Static

    @classmethod
    def of(cls, u, singular_values, vh, kept, structures: eqxi.Static) -> "SVDState":
        safe = jnp.where(kept, singular_values, 1).astype(vh.dtype)
        # By products alone: a quotient would be in the program of each application.
        return cls(u, singular_values, vh, vh / safe[:, None], kept, structures)

    @property
    def rank(self) -> Integer[Array, ""]:
        return jnp.sum(self.kept)

    def qh_mv(self, vector: Inexact[Array, " rows"]) -> Inexact[Array, " k"]:
        return adjoint_matmul(self.u, vector)

    def q_mv(self, c: Inexact[Array, " k"]) -> Inexact[Array, " rows"]:
        return matmul(self.u, c)

    def solve(self, c: Inexact[Array, " k"]) -> Inexact[Array, " cols"]:
        """Z T⁻¹ c."""
        return adjoint_matmul(self.vh_over_s, c)

    def adjoint_solve(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " k"]:
        """T⁻ᴴ Zᴴ w."""
        return matmul(self.vh_over_s, vector)

    def project(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " cols"]:
        """Z Zᴴ y."""
        return adjoint_matmul(self.vh, matmul(self.vh, vector))


def _svd(matrix: Inexact[Array, "rows cols"], blocks: int):
    """The thin SVD; with several blocks that of the R of a QR factorisation by them."""
    rows, cols = matrix.shape
    if blocks == 1:
        return jsl.svd(matrix, full_matrices=False)
    if cols > rows:
        v, singular_values, uh = _svd(matrix.conj().T, blocks)
        return uh.conj().T, singular_values, v.conj().T
    factor = BlockReflectors.of(matrix, blocks)
    u, singular_values, vh = jsl.svd(factor.r, full_matrices=False)
    return jax.vmap(factor.mv, 1, 1)(u), singular_values, vh


class SVD(AbstractFactorisation[SVDState]):
    """Returns the pseudoinverse solution A†b of any system by a thin SVD.

    Any shape and any rank. `stats["rank"]` is the number of singular values kept.

    Takes no `options`. Real and complex. Cost: one SVD; then one application of the
    factors a solve, two more for a JVP and two more for a VJP, with respect to the
    operator along paths of constant rank. (Where the rank changes, A† is discontinuous
    and no derivative exists.)

    **Arguments:**

    - `rcond`: singular values at most `rcond` times the largest one count as zero; a
        number without unit. Defaults to `None`: `2 * eps * max(rows, cols)` in the
        operator's dtype, as in lineax (the factor 2 protects rank-deficient products from
        their own rounding). A negative value means `eps`, as in NumPy.
    - `blocks`: with more than one, A is first reduced to R by a QR factorisation with
        that many row blocks, and the SVD is that of R; for an A whose rows are on several
        devices, as in [`pseudojvp.QR`][]. Defaults to `None`.

    **Raises:** `ValueError` if `blocks` is not a positive integer, and at trace time for
    an unknown option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 5.5.2.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), jnp.array([1.0, 3.0, 5.0])
    print(pj.linear_solve(A, b, pj.SVD()).value.round(2))  # [1. 1.]
    ```
    """

    rcond: Real[ArrayLike, ""] | None = None
    blocks: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_blocks(self)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> SVDState:
        check_options(self, options)
        matrix = matrix_of(operator)
        # LAPACK's `gesdd` can loop for ever on an Inf.
        finite = jnp.all(jnp.isfinite(matrix))
        matrix = jnp.where(finite, matrix, 0)
        u, singular_values, vh = _svd(matrix, blocks_for(self.blocks, matrix))
        dtype = singular_values.dtype
        rcond = resolve_rcond(self.rcond, 2 * rounding_of_rank(operator), dtype)
        # From their number, which XLA keeps, as it is the outcome of a sum.
        rank = jnp.sum(singular_values > rcond * singular_values[:1])
        kept = jnp.arange(len(singular_values)) < rank
        u, vh = jnp.where(kept, u, 0), jnp.where(kept[:, None], vh, 0)
        singular_values = singular_values * one_or_nan(finite).astype(dtype)
        return SVDState.of(u, singular_values, vh, kept, structures_of(operator))

    def compute(
        self, state: SVDState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        flat = out_structure.ravel(vector)
        solution = state.solve(state.qh_mv(flat))
        return in_structure.unravel(solution), self.result(state), self.stats(state)

    def result(self, state: SVDState) -> lx.RESULTS:
        finite = jnp.all(jnp.isfinite(state.singular_values))
        return lx.RESULTS.where(finite, lx.RESULTS.successful, lx.RESULTS.singular)

    def stats(self, state: SVDState) -> dict[str, Any]:
        return {"rank": state.rank}

    def slogdet(self, state: SVDState) -> Slogdet:
        values, kept = state.singular_values, state.kept
        # A NaN is no value to leave out.
        kept = kept | jnp.isnan(values)
        _, logabsdet = of_product(jnp.where(kept, values, 1))
        sign = jnp.ones((), state.u.dtype)
        if state.u.shape[0] == state.vh.shape[1]:
            sign = jnp.where(
                state.rank == len(values), sign_of(matmul(state.u, state.vh)), sign
            )
        return Slogdet(sign, logabsdet)

    def transpose(self, state: SVDState, options: dict[str, Any]):
        transposed = SVDState.of(
            state.vh.T,
            state.singular_values,
            state.u.T,
            state.kept,
            swapped(state.structures),
        )
        return transposed, options

    def conj(self, state: SVDState, options: dict[str, Any]):
        return conjugated(state), options

    def assume_full_rank(self) -> bool:
        return False
