from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact, PyTree, Real

from .._misc import check_options, Structure
from .condition import (
    after_estimate,
    full_rank_result,
    triangular_reciprocal_condition,
)
from .householder import apply_q, apply_qh


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
        return apply_q(self.reflectors, self.taus, padded[:, None])[:, 0]

    def qh_mv(self, long: Inexact[Array, " long"]) -> Inexact[Array, " short"]:
        long = after_estimate(self.rcond, long)
        columns = apply_qh(self.reflectors, self.taus, long[:, None])
        return columns[: self.taus.size, 0]

    def r_solve(
        self, short: Inexact[Array, " short"], *, adjoint: bool = False
    ) -> Inexact[Array, " short"]:
        r = self.reflectors[: self.taus.size]
        short = after_estimate(self.rcond, short)
        return jsl.solve_triangular(r, short, trans="C" if adjoint else "N")

    def conj(self) -> "QRState":
        return QRState(
            self.reflectors.conj(),
            self.taus.conj(),
            self.rcond,
            self.wide,
            self.structures,
        )


class QR(lx.AbstractLinearSolver[QRState]):
    """Solves full-rank systems of any shape by a Householder QR factorisation.

    The solution is the pseudoinverse solution A†b: of A x = b when `operator` is square,
    of min ‖A x − b‖ when it is tall, of minimum norm when it is wide.

    `stats["rcond"]` is an estimate, from R at O(n²) cost, of the reciprocal condition
    number of A with its columns (its rows, if A is wide) scaled to unit length. If it is
    at most `eps * max(rows, cols)`, A is not of full rank to working precision and the
    result is `RESULTS.singular`. Use [`pseudojvp.PivotedQR`][] or [`pseudojvp.SVD`][]
    where the rank may be deficient.

    Takes no `options`. Real and complex. Cost: one factorisation, 2mn² flops; then one
    application of the factors (Q and R once each) a solve, one more for a JVP and one
    more for a VJP. Many right-hand sides or tangents under `jax.vmap` are columns of one
    application; the factors are not copied.

    **Raises:** `ValueError` at trace time for an unknown option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 5.3.2
    (tall) and 5.6.2 (wide); Gudmundsson, Kenney & Laub, *Small-sample statistical
    estimates for matrix norms*, SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.
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
        rcond = triangular_reciprocal_condition(jnp.triu(reflectors[: taus.size]))
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
        return in_structure.unravel(solution), self.result(state), self.stats(state)

    def result(self, state: QRState) -> lx.RESULTS:
        return full_rank_result(state.rcond, *state.reflectors.shape)

    def stats(self, state: QRState) -> dict[str, Any]:
        return {"rcond": state.rcond}

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
