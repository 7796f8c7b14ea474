from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, Integer, PyTree, Real

from ..._base.checks import check_options
from ..._base.tree import one_or_nan
from ..._kernel.condition import resolve_rcond
from ..factorisation import AbstractFactorisation
from ..state import conjugated, structures_of, swapped


class SVDState(eqx.Module):
    """A = U S V^H, thin; `kept` marks the singular values above the cutoff.

    The methods are those of any complete orthogonal decomposition A = Q T Z^H.
    """

    u: Inexact[Array, "rows k"]
    singular_values: Real[Array, " k"]
    vh: Inexact[Array, "k cols"]
    kept: Bool[Array, " k"]
    structures: eqxi.Static

    @property
    def rank(self) -> Integer[Array, ""]:
        return jnp.sum(self.kept)

    def qh_mv(self, vector: Inexact[Array, " rows"]) -> Inexact[Array, " k"]:
        """U^H v in the kept directions, zero in the others."""
        return self._kept(_matmul(self.u.conj().T, vector))

    def q_mv(self, coefficients: Inexact[Array, " k"]) -> Inexact[Array, " rows"]:
        return _matmul(self.u, coefficients)

    def zh_mv(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " k"]:
        """V^H w in the kept directions, zero in the others."""
        return self._kept(_matmul(self.vh, vector))

    def z_mv(self, coefficients: Inexact[Array, " k"]) -> Inexact[Array, " cols"]:
        return _matmul(self.vh.conj().T, coefficients)

    def _kept(self, coefficients: Inexact[Array, " k"]) -> Inexact[Array, " k"]:
        # Not zero but a product with it: a NaN of the vector is never dropped.
        return jnp.where(self.kept, coefficients, 0 * coefficients)

    def t_solve(
        self, coefficients: Inexact[Array, " k"], *, adjoint: bool = False
    ) -> Inexact[Array, " k"]:
        del adjoint  # S is real and diagonal
        safe = jnp.where(self.kept, self.singular_values, 1)
        return coefficients / safe.astype(coefficients.dtype)


def _matmul(matrix, vector):
    return jnp.matmul(matrix, vector, precision=lax.Precision.HIGHEST)


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
        operator's dtype, as lineax (the factor 2 guards rank-deficient products against
        their own rounding). A negative value means `eps`, as in NumPy.

    **Raises:** `ValueError` at trace time for an unknown option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 5.5.2.
    """

    rcond: Real[ArrayLike, ""] | None = None

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> SVDState:
        check_options(self, options)
        matrix = operator.as_matrix()
        # LAPACK's `gesdd` can loop for ever on an Inf.
        finite = jnp.all(jnp.isfinite(matrix))
        matrix = jnp.where(finite, matrix, 0)
        u, singular_values, vh = jsl.svd(matrix, full_matrices=False)
        singular_values = singular_values * one_or_nan(finite).astype(
            singular_values.dtype
        )
        dtype = singular_values.dtype
        rcond = resolve_rcond(
            self.rcond, 2 * jnp.finfo(dtype).eps * max(matrix.shape), dtype
        )
        largest = jnp.max(singular_values, initial=0)
        kept = singular_values > rcond * largest
        return SVDState(u, singular_values, vh, kept, structures_of(operator))

    def compute(
        self, state: SVDState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        flat = out_structure.ravel(vector)
        solution = state.z_mv(state.t_solve(state.qh_mv(flat)))
        return in_structure.unravel(solution), self.result(state), self.stats(state)

    def result(self, state: SVDState) -> lx.RESULTS:
        finite = jnp.all(jnp.isfinite(state.singular_values))
        return lx.RESULTS.where(finite, lx.RESULTS.successful, lx.RESULTS.singular)

    def stats(self, state: SVDState) -> dict[str, Any]:
        return {"rank": state.rank}

    def transpose(self, state: SVDState, options: dict[str, Any]):
        transposed = SVDState(
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
