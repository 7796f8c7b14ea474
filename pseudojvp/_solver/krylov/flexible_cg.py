from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, PyTree, Real, Scalar

from ..._base.axes import cond
from ..._base.checks import check_options, check_square
from ..._base.tree import tree_where
from ..options import as_preconditioner, check_positive, PreconditioningFunction
from .cg import definite_state, nearly_met
from .flexible import FlexibleState
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    divide,
    dot,
    flat_system,
    length,
    OPTIONS,
    over,
    run,
    System,
)


class _Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    directions: Inexact[Array, "memory n"]  # d, of length one
    images: Inexact[Array, "memory n"]  # A d
    inverses: Real[Array, " memory"]  # 1 / <d, A d>; zero where there is none yet
    curvature: Real[Array, ""]  # the largest |<d, A d>| so far
    travelled: Real[Array, ""]  # a bound of the length of x
    cycle: Cycle


class FlexibleCG(AbstractKrylovSolver):
    """Solves definite systems by conjugate gradients with any preconditioner.

    The preconditioner P may be any function from a vector to a vector, even a different
    one in each step: nonlinear, a network, an iteration that stops at a tolerance. A step
    makes P of the residual conjugate to the last `memory` directions,

        d = P r − Σ_k <A d_k, P r> / <d_k, A d_k> d_k,    x + <d, r> / <d, A d> d,

    so no step increases the error in the norm of A, whatever P is. A is real symmetric or
    complex Hermitian, positive or negative definite, and tagged so. Cost: one product
    with A and one call of P a step; one more product every `stabilise_every` steps, at
    the beginning and at the end, and one for the size of A; memory for 2 `memory`
    vectors, and 8 `memory` n flops a step.

    The result is `successful` if b − A x, computed explicitly, satisfies

        |b − A x| ≤ atol + rtol |b|,

    or under the same rule for rounding as [`pseudojvp.CG`][], whatever P returns.
    Otherwise it is `max_steps_reached`, or `breakdown` if no direction of positive
    curvature is left: A is not definite, or P returns zero or NaN.

    Derivatives are those of the solution, of every order, with respect to A and b: one
    run for a JVP, one for a VJP, with the same P. The derivative with respect to a number
    within P, or that P closes over, is zero, except under
    [`pseudojvp.UnrolledAdjoint`][].

    `options` (not differentiated):

    - `preconditioner`: P, a function or a `lineax.AbstractLinearOperator`; it overrides
        the field of that name.
    - `y0`: first guess of x, a vector of the structure of x. Defaults to zeros. Used by
        the primal solve only.

    `stats`: `num_steps`, `max_steps`, and with `history` also `residual_norms`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `norm`: as for [`pseudojvp.CG`][]. Defaults to `None`, Euclidean norms.
    - `max_steps`: the largest number of steps. Defaults to `None`, ten times the size of
        x.
    - `preconditioner`, by name: P, near A^-1 up to a factor: a function that JAX can
        trace, such as an `equinox.Module`, or a linear operator. It is called with b − A
        x divided by its Euclidean length, in the structure and dtypes of b, and returns a
        vector of the same structure. Defaults to `None`, the identity.
    - `memory`: the number of previous directions to which a new one is made conjugate,
        positive (m_max of Notay). One is enough for a nearly linear P. Defaults to `50`.
    - `stabilise_every`: as for [`pseudojvp.CG`][]. Defaults to `50`.
    - `derivative_rtol`, `history`, `progress`: as for [`pseudojvp.MINRES`][]. Default to
        `None`, `False` and `0`.

    **Raises:** `TypeError` for a preconditioner that is neither function nor operator,
    `ValueError` at trace time for a non-square operator, one without a definiteness tag,
    a preconditioner that maps to another space, an unknown option, a negative tolerance,
    a `memory` below one, or no stopping rule at all.

    **Sources:** Notay, *Flexible conjugate gradients*, SIAM J. Sci. Comput. 22 (2000),
    algorithm FCG(m_max), with plain truncation.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    diagonal = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    A = lx.MatrixLinearOperator(diagonal, lx.positive_semidefinite_tag)
    nonlinear = lambda r: r / (1 + jnp.abs(r))
    solver = pj.FlexibleCG(rtol=1e-5, preconditioner=nonlinear)
    x = pj.linear_solve(A, jnp.array([1.0, 2.0, 4.0]), solver).value
    print(x.round(2))  # [1. 1. 1.]
    ```
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    max_steps: int | None = None
    _: KW_ONLY
    preconditioner: lx.AbstractLinearOperator | PreconditioningFunction | None = (
        eqx.field(default=None, converter=as_preconditioner)
    )
    memory: int = 50
    stabilise_every: int | None = 50
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def __check_init__(self):
        check_positive(self, "memory")
        if self.stabilise_every is not None:
            check_positive(self, "stabilise_every")

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> FlexibleState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        return FlexibleState.create(self, definite_state(self, operator), options)

    def compute(
        self, state: FlexibleState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        system = flat_system(self, state.scaled, vector, options)
        final, result, stats = run(
            self,
            system,
            lambda iterate: self._advance(system, state.precondition, iterate),
            self._start(system),
        )
        return system.solution(final.solution), result, stats

    def _start(self, system: System) -> _Iterate:
        zeros, zero = jnp.zeros_like(system.guess), jnp.zeros_like(system.norm)
        memory = max(min(self.memory, zeros.size, system.max_steps), 1)
        vectors = jnp.zeros((memory, zeros.size), zeros.dtype)
        return _Iterate(
            solution=system.guess,
            residual=zeros,
            directions=vectors,
            images=vectors,
            inverses=jnp.zeros(memory, zero.dtype),
            curvature=zero + 0.5,  # A is near one
            travelled=length(system.guess),
            cycle=system.start(),
        )

    def _advance(self, system: System, precondition, iterate: _Iterate) -> _Iterate:
        cycle, x, r = iterate.cycle, iterate.solution, iterate.residual
        due = cycle.due
        z = cond(
            eqxi.unvmap_all(due),
            lambda: r,
            lambda: precondition(over(cycle.norm, r)),  # P need not be homogeneous
        )

        def conjugate(z):
            inner = _multiply(iterate.images.conj(), z)
            return z - _multiply(kept.astype(z.dtype) * inner, iterate.directions)

        kept = iterate.inverses
        new = conjugate(conjugate(z))  # once is not enough where P r is near the old ones
        lost = ~(length(new) > system.eps**0.5 * length(z))  # only rounding is left
        kept, z = jnp.where(lost, 0, kept), jnp.where(lost, z, new)
        direction = over(length(z), z)
        image = system.mv(jnp.where(due, x, direction))
        curvature = jnp.where(due, 0, dot(direction, image).real)
        largest = jnp.maximum(iterate.curvature, jnp.abs(curvature))
        # No direction of no curvature, up to rounding, or of a negative one.
        moves = curvature > 10 * system.eps * largest
        inverse = jnp.where(moves, divide(1, curvature), 0)
        step_size = jnp.where(moves, inverse.astype(z.dtype) * dot(direction, r), 0)
        x = jnp.where(moves, x + step_size * direction, x)  # no NaN of a P either

        # In a check, b − A x itself.
        moved = jnp.where(due, system.vector, r)
        moved = moved - jnp.where(due, 1, step_size) * image
        residual = jnp.where(due | moves, moved, r)
        norm = length(residual)
        aim = system.goal(cycle)
        met, goal = system.judge(residual, norm)
        finished = ~(cycle.norm > aim)  # by the recurrence
        checked = cycle.checked(
            norm,
            met | (finished & (norm <= nearly_met(system, iterate.travelled, goal))),
            goal,
            norm,
            shrink=jnp.where(cycle.broken, 0.5, jnp.inf),
            patience=2,
            max_steps=system.max_steps,
        )
        ends = ~(norm > aim)
        if self.stabilise_every is not None:
            ends = ends | (lax.rem(cycle.step + 1, self.stabilise_every) == 0)
        stepped = cycle.stepped(norm, ends, broken=~moves, max_steps=system.max_steps)
        memory = len(iterate.inverses)
        place = jnp.where(moves, lax.rem(cycle.step, memory), memory)
        inverses = kept.at[place].set(inverse, mode="drop")
        return _Iterate(
            solution=x,
            residual=residual,
            directions=iterate.directions.at[place].set(direction, mode="drop"),
            images=iterate.images.at[place].set(image, mode="drop"),
            inverses=jnp.where(due & (finished | cycle.broken), 0, inverses),
            curvature=largest,
            travelled=iterate.travelled + jnp.abs(step_size),
            cycle=tree_where(due, checked, stepped),
        )

    def transpose(self, state: FlexibleState, options: dict[str, Any]):
        return self.conj(state, options)  # A is Hermitian

    def conj(self, state: FlexibleState, options: dict[str, Any]):
        check_options(self, options, OPTIONS)
        return state.conj(), {}

    def assume_full_rank(self) -> bool:
        return True


def _multiply(left, right):
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
