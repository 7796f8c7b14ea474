from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax.linalg as jll
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Bool, Inexact, PyTree

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

    def full_rank(self) -> Bool[Array, ""]:
        """Whether no pivot of R is negligible: false for NaN too."""
        if self.taus.size == 0:
            return jnp.array(True)
        r = self.reflectors[: self.taus.size]
        pivots = jnp.abs(jnp.diagonal(r))
        threshold = jnp.finfo(r.dtype).eps * max(self.reflectors.shape)
        # Finite column means see every entry, in one cheap product.
        weights = jnp.full(self.taus.size, 1 / self.taus.size, r.dtype)
        finite = jnp.all(jnp.isfinite(weights @ r))
        return finite & (jnp.min(pivots) > threshold * jnp.max(pivots))


class QR(lx.AbstractLinearSolver[QRState]):
    """Solves full-rank systems of any shape by a Householder QR factorisation.

    The solution is the pseudoinverse solution A†b: of A x = b when `operator` is square,
    of min ‖A x − b‖ when it is tall, of minimum norm when it is wide.

    A pivot of R below `eps * max(rows, cols)` times the largest one means that A is not
    of full rank to working precision: the result is then `RESULTS.singular`. Use
    [`pseudojvp.SVD`][] where the rank may be deficient.

    Takes no `options`. Real and complex. Cost: one factorisation, 2mn² flops; then one
    application of the factors (Q and R once each) a solve, one more for a JVP and one
    more for a VJP. Many right-hand sides or tangents under `jax.vmap` are columns of one
    application; the factors are not copied.

    **Raises:** `ValueError` at trace time for an unknown option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 5.3.2
    (tall) and 5.6.2 (wide).
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
        return QRState(reflectors.mT, taus, eqxi.Static(wide), eqxi.Static(structures))

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
        return lx.RESULTS.where(
            state.full_rank(), lx.RESULTS.successful, lx.RESULTS.singular
        )

    def transpose(self, state: QRState, options: dict[str, Any]):
        # A = QR gives (A^T)^H = conj(Q) conj(R), and the same from A^H = QR.
        out_structure, in_structure = state.structures.value
        transposed = QRState(
            state.reflectors.conj(),
            state.taus.conj(),
            eqxi.Static(not state.wide.value),
            eqxi.Static((in_structure, out_structure)),
        )
        return transposed, options

    def conj(self, state: QRState, options: dict[str, Any]):
        conjugated = QRState(
            state.reflectors.conj(), state.taus.conj(), state.wide, state.structures
        )
        return conjugated, options

    def assume_full_rank(self) -> bool:
        return True
