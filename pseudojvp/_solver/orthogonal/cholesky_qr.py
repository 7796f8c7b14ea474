from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact, Integer, PyTree, Real

from ..._base.axes import fori_loop
from ..._base.checks import check_options
from ..._base.order import after_in_batch
from ..._base.tree import tree_sub
from ..._kernel.condition import largest_singular_value, probes
from ..._kernel.norms import power_of_two
from ..._kernel.products import adjoint_matmul, gram, matmul
from ..factorisation import AbstractFactorisation
from ..state import conjugated, long_side_first, structures_of, transposed


# Vectors of inverse iteration. It squares what the estimates of the other solvers get
# from one application of the inverse, so that half of their number tells as much.
_PROBES = 4
# From this estimate of 1/κ on, no refinement: on random problems the largest error is
# that of Householder QR at κ = 1 to 2, and up to twice that at 3.
_WELL = 0.4


class CholeskyQRState(eqx.Module):
    """S^H S = R^H R, where S = B D⁻¹; B is A if that is tall or square, A^H if wide.

    D = diag(scale) is made of powers of two. `steps` is how often a solution is refined.
    """

    matrix: Inexact[Array, "long short"]  # S
    r: Inexact[Array, "short short"]
    scale: Real[Array, " short"]
    steps: Integer[Array, ""]
    reciprocal_condition: Real[Array, ""]
    wide: eqxi.Static
    structures: eqxi.Static

    def solve(
        self,
        v: Inexact[Array, " long"] | None,
        w: Inexact[Array, " short"] | None,
        *,
        residual: bool,
    ) -> tuple[Inexact[Array, " short"], Inexact[Array, " long"] | None]:
        """x and, if asked for, r of r + B x = v, B^H r = w. `None` is zero."""
        v, w = after_in_batch(self.reciprocal_condition, (v, w))
        w = None if w is None else w / self.scale.astype(w.dtype)
        x = self._approximate(v, w)
        r = jnp.zeros(self.matrix.shape[0], x.dtype) if v is None else v

        def refine(_, carry):
            x, r, correction = carry
            r = r - matmul(self.matrix, correction)
            correction = self._approximate(r, w)
            return x + correction, r, correction

        x, r, correction = fori_loop(0, self.steps, refine, (x, r, x))
        r = r - matmul(self.matrix, correction) if residual else None
        return x / self.scale.astype(x.dtype), r

    def _approximate(
        self, v: Inexact[Array, " long"] | None, w: Inexact[Array, " short"] | None
    ) -> Inexact[Array, " short"]:
        """(R^H R)⁻¹ (S^H v − w)."""
        backward = None if v is None else adjoint_matmul(self.matrix, v)
        return _gram_solve(self.r, jnp.asarray(tree_sub(backward, w)))


class CholeskyQR(AbstractFactorisation[CholeskyQRState]):
    """Solves full-rank systems of any shape at the cost of a Gram matrix, as accurately
    as [`pseudojvp.QR`][], up to a condition number of 10⁷ in double precision.

    R of A = Q R is the Cholesky factor of A^H A, and Q is never formed. Rounding in A^H A
    makes the error of x = R⁻¹ R⁻ᴴ A^H b about eps κ² instead of eps κ, where κ is the
    condition number of A with columns (rows, if A is wide) scaled to norm one. Each step
    of refinement with the same R multiplies the error by another eps κ². The solver takes
    as many steps as needed: none for κ up to 2.5, one up to 1e5, two up to 1e6, five at
    1e7 (single precision: one up to 200, two up to 500).

    `stats["reciprocal_condition"]` estimates 1/κ from the products of A with the vectors
    that R shrinks most; unlike R itself, these products are not affected by the rounding
    of A^H A. If it is at most `4 sqrt(eps)` (6e-8 in double and 1.4e-3 in single
    precision), the refinement might not converge, and the result is `RESULTS.singular`,
    although A may have full rank. Use `QR()` for such an A, and [`pseudojvp.PivotedQR`][]
    if the rank may be deficient.

    Takes no `options`. Real and complex. Cost, for m rows and n columns: 2mn² flops, all
    in a matrix product, and n³/3. Then a solve takes one product with A^H (with A, if A
    is wide) and two more for each step of refinement; a JVP takes one more solve and a
    VJP one more, each with one additional product. Many right-hand sides or tangents
    under `jax.vmap` are columns of one product.

    **Raises:** `ValueError` at trace time for an unknown option.

    **Sources:** Björck, *Stability analysis of the method of seminormal equations for
    linear least squares problems*, Linear Algebra Appl. 88/89 (1987), for the corrected
    seminormal equations, here of the augmented system; Yamamoto, Nakatsukasa, Yanagisawa
    & Fukaya, *Roundoff error analysis of the CholeskyQR2 algorithm*, ETNA 44 (2015), for
    the limit on κ.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 3.0, 5.0])
    print(pj.linear_solve(A, b, pj.CholeskyQR()).value.round(2))  # [1. 2.]
    ```
    """

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> CholeskyQRState:
        check_options(self, options)
        matrix, wide = long_side_first(operator)
        scale = power_of_two(matrix, axis=0)
        matrix = matrix / scale.astype(matrix.dtype)[None, :]
        r = jsl.cholesky(gram(matrix))
        estimate = _reciprocal_condition(matrix, r)
        eps = jnp.finfo(matrix.dtype).eps
        clipped = jnp.maximum(estimate, smallest_reciprocal_condition(matrix.dtype))
        # The error after k steps, (eps κ²)^(k + 1), is to be eps κ.
        steps = jnp.ceil(jnp.log(eps / clipped) / jnp.log(eps / clipped**2)) - 1
        steps = jnp.where(estimate < _WELL, jnp.maximum(steps, 1), 0)
        return CholeskyQRState(
            matrix,
            r,
            scale,
            steps.astype(int),
            estimate,
            wide,
            structures_of(operator),
        )

    def compute(
        self, state: CholeskyQRState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        flat = out_structure.ravel(vector)
        if state.wide.value:
            _, solution = state.solve(None, flat, residual=True)
        else:
            solution, _ = state.solve(flat, None, residual=False)
        return in_structure.unravel(solution), self.result(state), self.stats(state)

    def result(self, state: CholeskyQRState) -> lx.RESULTS:
        results = lx.RESULTS
        regular = state.reciprocal_condition > smallest_reciprocal_condition(
            state.matrix.dtype
        )
        return results.where(regular, results.successful, results.singular)

    def stats(self, state: CholeskyQRState) -> dict[str, Any]:
        return {"reciprocal_condition": state.reciprocal_condition}

    def transpose(self, state: CholeskyQRState, options: dict[str, Any]):
        return transposed(state), options

    def conj(self, state: CholeskyQRState, options: dict[str, Any]):
        return conjugated(state), options

    def assume_full_rank(self) -> bool:
        return True


def smallest_reciprocal_condition(dtype) -> float:
    """Up to it the refinement might not converge: eps κ² is 1/16."""
    return 4 * float(jnp.finfo(dtype).eps) ** 0.5


def _gram_solve(r: Inexact[Array, "n n"], columns: Inexact[Array, "n ..."]):
    """R⁻¹ R⁻ᴴ C."""
    return jsl.solve_triangular(r, jsl.solve_triangular(r, columns, trans="C"))


def _reciprocal_condition(
    matrix: Inexact[Array, "long short"], r: Inexact[Array, "short short"]
) -> Real[Array, ""]:
    """An estimate of σ_min / σ_max of S with its columns scaled to norm one.

    Those norms are the ones of R's columns. The smallest ‖S z‖ is taken of z from inverse
    iteration with R: where the rounding of S^H S hides that S is singular, R is no
    witness, but S z is small. Zero if it is not finite.
    """
    if r.shape[0] == 0:
        return jnp.ones((), matrix.real.dtype)
    norms = jnp.linalg.norm(r, axis=0)
    vectors = probes(r.shape[0], _PROBES, norms.dtype).astype(r.dtype)
    largest = largest_singular_value(
        norms, lambda vector: r @ vector, lambda vector: r.conj().T @ vector, vectors
    )
    units = norms[:, None].astype(r.dtype)
    z = _gram_solve(r, units * vectors)
    images = jnp.linalg.norm(matmul(matrix, z), axis=0)
    smallest = jnp.min(images / jnp.linalg.norm(units * z, axis=0))
    estimate = smallest / largest
    return jnp.where(jnp.isfinite(estimate), estimate, 0)
