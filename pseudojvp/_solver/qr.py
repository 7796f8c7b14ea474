import math
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax.linalg as jll
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact, PyTree, Real

from .._misc import check_options, Structure


def _ormqr(adjoint: bool):
    """Q c or Q^H c for columns c, (..., rows, k), by LAPACK's `ormqr`.

    A batch of columns against one factorisation becomes more columns: JAX's own rule
    copies the reflectors for each member.
    """

    @jax.custom_batching.custom_vmap
    def apply(reflectors, taus, columns):
        return jll.ormqr(reflectors, taus, columns, transpose=adjoint)

    @apply.def_vmap
    def _(axis_size, batched, reflectors, taus, columns):
        batched_reflectors, batched_taus, batched_columns = batched
        if batched_reflectors or batched_taus:
            reflectors, taus, columns = (
                array
                if is_batched
                else jnp.broadcast_to(array, (axis_size, *array.shape))
                for array, is_batched in zip(
                    (reflectors, taus, columns), batched, strict=True
                )
            )
            return apply(reflectors, taus, columns), True
        assert batched_columns
        columns = jnp.moveaxis(columns, 0, -2)  # (..., rows, batch, k)
        merged = columns.reshape(*columns.shape[:-2], -1)
        out = apply(reflectors, taus, merged).reshape(columns.shape)
        return jnp.moveaxis(out, -2, 0), True

    return apply


_apply_q = _ormqr(adjoint=False)
_apply_qh = _ormqr(adjoint=True)


class QRState(eqx.Module):
    """A = QR if A is tall or square, A^H = QR if it is wide; Q as reflectors."""

    reflectors: Inexact[Array, "long short"]
    taus: Inexact[Array, " short"]
    rcond: Real[Array, ""]
    wide: eqxi.Static
    structures: eqxi.Static

    def q_mv(self, short: Inexact[Array, " short"]) -> Inexact[Array, " long"]:
        long_size, short_size = self.reflectors.shape
        padded = jnp.pad(short, (0, long_size - short_size))
        return _apply_q(self.reflectors, self.taus, padded[:, None])[:, 0]

    def qh_mv(self, long: Inexact[Array, " long"]) -> Inexact[Array, " short"]:
        columns = _apply_qh(self.reflectors, self.taus, long[:, None])
        return columns[: self.taus.size, 0]

    def r_solve(
        self, short: Inexact[Array, " short"], *, adjoint: bool = False
    ) -> Inexact[Array, " short"]:
        r = self.reflectors[: self.taus.size]
        return jsl.solve_triangular(r, short, trans="C" if adjoint else "N")

    def conj(self) -> "QRState":
        return QRState(
            self.reflectors.conj(),
            self.taus.conj(),
            self.rcond,
            self.wide,
            self.structures,
        )


def _reciprocal_condition(matrix, r) -> Real[Array, ""]:
    """An estimate of σ_min / √n of R with the largest entry of each column scaled to one.

    Two steps of inverse iteration on its Gram matrix, from a fixed vector: four
    triangular solves. Scaled, because QR is indifferent to the units of the columns. Zero
    if an entry of `matrix`, of which R is a factor, is not finite.
    """
    size = r.shape[0]
    largest = jnp.max(jnp.abs(matrix), axis=0)
    scale = largest.astype(r.dtype)
    vector = jnp.cos(1 + jnp.arange(size, dtype=largest.dtype) ** 2).astype(r.dtype)
    for _ in range(2):
        vector = vector / jnp.linalg.norm(vector).astype(r.dtype)
        vector = jsl.solve_triangular(r, scale * vector, trans="C")
        vector = scale * jsl.solve_triangular(r, vector)
    smallest = 1 / jnp.sqrt(jnp.linalg.norm(vector))
    rcond = smallest / math.sqrt(size)
    return jnp.where(jnp.isfinite(rcond), rcond, 0)


class QR(lx.AbstractLinearSolver[QRState]):
    """Solves full-rank systems of any shape by a Householder QR factorisation.

    The solution is the pseudoinverse solution A†b: of A x = b when `operator` is square,
    of min ‖A x − b‖ when it is tall, of minimum norm when it is wide.

    A is not of full rank to working precision if the reciprocal condition number of its
    scaled columns (of its scaled rows, if A is wide) is at most `eps * max(rows, cols)`.
    It is estimated from R at O(n²) cost, once a factorisation, and the result is then
    `RESULTS.singular`. Use [`pseudojvp.SVD`][] where the rank may be deficient.

    Takes no `options`. Real and complex. Cost: one factorisation, 2mn² flops; then one
    application of the factors (Q and R once each) a solve, one more for a JVP and one
    more for a VJP. Many right-hand sides or tangents under `jax.vmap` are columns of one
    application; the factors are not copied.

    **Raises:** `ValueError` at trace time for an unknown option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 5.3.2
    (tall), 5.6.2 (wide) and 3.5.4 (condition estimation).
    """

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> QRState:
        check_options(self, options)
        structures = (
            Structure.of(operator.out_structure()),
            Structure.of(operator.in_structure()),
        )
        matrix = operator.as_matrix()
        rows, cols = matrix.shape
        wide = cols > rows
        if wide:
            matrix = matrix.conj().T
        reflectors, taus = jnp.linalg.qr(matrix, mode="raw")
        reflectors = reflectors.mT
        if taus.size == 0:
            rcond = jnp.ones((), jnp.finfo(matrix.dtype).dtype)
        else:
            rcond = _reciprocal_condition(matrix, reflectors[: taus.size])
            # Always true. Batched LAPACK calls without a data dependency can deadlock on
            # the CPU (jaxlib 0.10.2): Q waits for the estimate.
            taus = jnp.where(rcond >= 0, taus, jnp.nan)
        return QRState(
            reflectors, taus, rcond, eqxi.Static(wide), eqxi.Static(structures)
        )

    def compute(
        self, state: QRState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        flat = out_structure.ravel(vector)
        if state.wide.value:
            solution = state.q_mv(state.r_solve(flat, adjoint=True))
        else:
            solution = state.r_solve(state.qh_mv(flat))
        return in_structure.unravel(solution), self.result(state), {}

    def result(self, state: QRState) -> lx.RESULTS:
        cutoff = jnp.finfo(state.reflectors.dtype).eps * max(state.reflectors.shape)
        return lx.RESULTS.where(
            state.rcond > cutoff, lx.RESULTS.successful, lx.RESULTS.singular
        )

    def transpose(self, state: QRState, options: dict[str, Any]):
        # A = QR gives (A^T)^H = conj(Q) conj(R), and the same from A^H = QR.
        out_structure, in_structure = state.structures.value
        conjugated = state.conj()
        transposed = QRState(
            conjugated.reflectors,
            conjugated.taus,
            state.rcond,
            eqxi.Static(not state.wide.value),
            eqxi.Static((in_structure, out_structure)),
        )
        return transposed, options

    def conj(self, state: QRState, options: dict[str, Any]):
        return state.conj(), options

    def assume_full_rank(self) -> bool:
        return True
