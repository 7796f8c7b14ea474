from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree, Real

from ..._base.checks import check_options
from ..._base.order import after_in_batch
from ..._kernel.blocked_householder import BlockReflectors, orthogonal_factor
from ..._kernel.condition import full_rank_result, largest_entries, reciprocal_condition
from ..._kernel.determinant import of_product
from ..._kernel.householder import Reflectors
from ..factorisation import AbstractFactorisation, Slogdet
from ..state import conjugated, long_side_first, structures_of, transposed
from .blocks import blocks_for, check_blocks


class QRState(eqx.Module):
    """A = QR if A is tall or square, A^H = QR if it is wide; R beside the reflectors."""

    reflectors: Reflectors | BlockReflectors
    reciprocal_condition: Real[Array, ""]
    wide: eqxi.Static
    structures: eqxi.Static

    def q_mv(self, short: Inexact[Array, " short"]) -> Inexact[Array, " long"]:
        return self.reflectors.mv(short)

    def qh_mv(self, long: Inexact[Array, " long"]) -> Inexact[Array, " short"]:
        return self.reflectors.adjoint_mv(after_in_batch(self.reciprocal_condition, long))

    def r_solve(
        self, short: Inexact[Array, " short"], *, adjoint: bool = False
    ) -> Inexact[Array, " short"]:
        short = after_in_batch(self.reciprocal_condition, short)
        return self.reflectors.r_solve(short, adjoint=adjoint)


class QR(AbstractFactorisation[QRState]):
    """Solves full-rank systems of any shape by a Householder QR factorisation.

    The solution is the pseudoinverse solution A†b: that of A x = b if `operator` is
    square, of min ‖A x − b‖ if it is tall, of minimum norm if it is wide.

    `stats["reciprocal_condition"]` estimates, from R at O(n²) cost, the reciprocal
    condition number of A with its columns (its rows, if A is wide) scaled by the largest
    entries in those of R. If it is at most `eps * max(rows, cols)`, A does not have full
    rank to working precision and the result is `RESULTS.singular`. Use
    [`pseudojvp.PivotedQR`][] or [`pseudojvp.SVD`][] if the rank may be deficient.

    Takes no `options`. Real and complex. Cost: one factorisation, 2mn² flops; then one
    application of the factors (Q and R once each) a solve, one more for a JVP and one
    more for a VJP. Many right-hand sides or tangents under `jax.vmap` are columns of one
    application; the factors are not copied.

    **Arguments:**

    - `blocks`: the number of row blocks (column blocks, if A is wide). Each block is
        factorised by itself, all in one batch; then their stacked R are factorised, at
        2pn³ flops for p blocks. An A whose rows are on p devices stays there with
        `blocks=p`, or a multiple of p: pn² numbers are gathered for the factors, and pn
        for each application, whereas one block gathers all of A on every device. Blocks
        with fewer rows than columns are not used. Defaults to `None`: as many blocks as
        devices that A is known to be on, hence one block on one device. The devices are
        known for an array that is not traced, and under `jax.jit` on a mesh with
        `AxisType.Explicit`. With `AxisType.Auto` pass the number.

    **Raises:** `ValueError` if `blocks` is not a positive integer, and at trace time for
    an unknown option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 5.3.2
    (tall) and 5.6.2 (wide); Demmel, Grigori, Hoemmen & Langou, *Communication-optimal
    parallel and sequential QR and LU factorizations*, SIAM J. Sci. Comput. 34 (2012), for
    the blocks; Gudmundsson, Kenney & Laub, *Small-sample statistical
    estimates for matrix norms*, SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 3.0, 5.0])
    print(pj.linear_solve(A, b, pj.QR()).value.round(2))  # [1. 2.]
    ```
    """

    blocks: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_blocks(self)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> QRState:
        check_options(self, options)
        matrix, wide = long_side_first(operator)
        reflectors = orthogonal_factor(matrix, blocks_for(self.blocks, matrix))
        # R^T by rows, as LAPACK's R lies in memory.
        lower = reflectors.r.T
        estimate = reciprocal_condition(
            largest_entries(lower.T),
            lambda vector: vector @ lower,
            lambda vector: lower.conj() @ vector,
            lower.dtype,
            lambda columns: reflectors.r_solve(columns, adjoint=True),
        )
        return QRState(reflectors, estimate, wide, structures_of(operator))

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
        return full_rank_result(state.reciprocal_condition, *state.reflectors.shape)

    def stats(self, state: QRState) -> dict[str, Any]:
        return {"reciprocal_condition": state.reciprocal_condition}

    def slogdet(self, state: QRState) -> Slogdet:
        reflectors = state.reflectors
        sign, logabsdet = of_product(jnp.diagonal(reflectors.r))
        long, short = reflectors.shape
        if long != short or isinstance(reflectors, BlockReflectors):
            return Slogdet(jnp.ones_like(sign), logabsdet)
        sign = sign * reflectors.q_sign()
        return Slogdet(sign.conj() if state.wide.value else sign, logabsdet)

    def transpose(self, state: QRState, options: dict[str, Any]):
        return transposed(state), options

    def conj(self, state: QRState, options: dict[str, Any]):
        return conjugated(state), options

    def assume_full_rank(self) -> bool:
        return True
