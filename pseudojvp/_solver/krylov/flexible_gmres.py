from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree, Real, Scalar

from ..._base.checks import check_options, check_square
from ..options import as_preconditioner, check_positive, PreconditioningFunction
from .flexible import FlexibleState
from .gmres import advance, start
from .iteration import AbstractKrylovSolver, flat_system, KrylovState, OPTIONS, run


_Preconditioner = lx.AbstractLinearOperator | PreconditioningFunction | None


class FlexibleGMRES(AbstractKrylovSolver):
    """Solves square nonsingular systems by GMRES(restart) with any preconditioner.

    The preconditioner P may be any function from a vector to a vector, even a different
    one in each step: nonlinear, a network, an iteration that stops at a tolerance. The
    method is that of [`pseudojvp.GMRES`][], except that x moves along the vectors z_j = P
    v_j themselves, which are stored (each divided by a power of two near its size, so P
    need only be near A^-1 up to a factor):

        A Z = V' H,    x + Z y,    y = argmin |β e_1 − H y|.

    Cost: one product with A and one call of P a step, one more product for each cycle of
    at most `restart` steps, and two at the beginning; memory for `2 restart + 1` vectors.
    The result is `successful` if b − A x, computed explicitly, satisfies

        |b − A x| ≤ atol + rtol |b|,

    whatever P returns. It is `stagnation` or `max_steps_reached` as for `GMRES`, and
    `singular` if P returns NaN.

    Derivatives are those of the solution, of every order, with respect to A and b, for
    nonsingular A. A JVP takes one run, with P; a VJP takes one run with A^H and
    `adjoint_preconditioner`. Without an `adjoint_preconditioner`, a linear operator P is
    transposed, and a function P is left out: that run takes the steps of GMRES without
    preconditioner. The derivative with respect to a number within a preconditioner, or
    that one closes over, is zero.

    `options` (not differentiated):

    - `preconditioner`: P, a function or a `lineax.AbstractLinearOperator`; it overrides
        the field of that name.
    - `y0`: first guess of x, with the structure of x. Defaults to zeros. Used by the
        primal solve only.

    `stats`: `num_steps`, `max_steps`, and with `history` also `residual_norms`.

    **Arguments:**

    - `rtol`, `atol`, `norm`, `max_steps`, `restart`, `stagnation_iters`: as for
        [`pseudojvp.GMRES`][], with the same defaults.
    - `preconditioner`, by name: P, near A^-1: a function that JAX can trace, such as an
        `equinox.Module`, or a linear operator. It is called with a vector of Euclidean
        length one in the structure and dtypes of b, and returns one of the same
        structure. Defaults to `None`, the identity.
    - `adjoint_preconditioner`, by name: the same for A^H, near A^-H. Defaults to `None`.
    - `derivative_rtol`, `history`, `progress`: as for [`pseudojvp.MINRES`][]. Default to
        `None`, `False` and `0`.

    **Raises:** `TypeError` for a preconditioner that is neither function nor operator,
    `ValueError` at trace time for a non-square operator, a preconditioner that maps to
    another space, an unknown option, a negative tolerance, a `restart` or
    `stagnation_iters` below one.

    **Sources:** Saad, *A flexible inner-outer preconditioned GMRES algorithm*, SIAM J.
    Sci. Comput. 14 (1993), algorithm 2.2; and those of `GMRES`.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[3.0, 1.0], [0.0, 2.0]]), jnp.array([4.0, 2.0])
    nonlinear = lambda r: r / (1 + jnp.abs(r))
    solver = pj.FlexibleGMRES(rtol=1e-5, preconditioner=nonlinear)
    print(pj.linear_solve(A, b, solver).value.round(2))  # [1. 1.]
    ```
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    max_steps: int | None = None
    restart: int = 20
    stagnation_iters: int = 3
    _: KW_ONLY
    preconditioner: _Preconditioner = eqx.field(default=None, converter=as_preconditioner)
    adjoint_preconditioner: _Preconditioner = eqx.field(
        default=None, converter=as_preconditioner
    )
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def __check_init__(self):
        check_positive(self, "restart", "stagnation_iters")

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> FlexibleState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        state = KrylovState.create(operator)
        return FlexibleState.create(self, state, options, self.adjoint_preconditioner)

    def compute(
        self, state: FlexibleState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        system = flat_system(self, state.scaled, vector, options)

        final, result, stats = run(
            self,
            system,
            lambda iterate: advance(
                system, state.precondition, iterate, self.stagnation_iters
            ),
            start(system, self.restart, flexible=True),
        )
        return system.solution(final.solution), result, stats

    def transpose(self, state: FlexibleState, options: dict[str, Any]):
        check_options(self, options, OPTIONS)
        return state.transpose(), {}

    def conj(self, state: FlexibleState, options: dict[str, Any]):
        check_options(self, options, OPTIONS)
        return state.conj(), {}

    def assume_full_rank(self) -> bool:
        return True
