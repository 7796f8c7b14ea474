from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree, Real, Scalar

from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_where
from ..options import resolve_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    divide,
    dot,
    flat_system,
    KrylovState,
    length,
    OPTIONS,
    over,
    run,
    System,
)


class _Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    shadow: Inexact[Array, " n"]  # the residual of the last check, of length one
    direction: Inexact[Array, " n"]  # p; after both halves p − ω A P p
    image: Inexact[Array, " n"]  # A P p
    factor: Inexact[Array, ""]  # the next p is r + factor <shadow, r> p
    halfway: Bool[Array, ""]  # the next pass is the second half of a step
    cycle: Cycle


class BiCGStab(AbstractKrylovSolver):
    """Solves square nonsingular systems by stabilised biconjugate gradients.

    Cost: two products with A and two with the preconditioner P a step; two more of each
    in a run of one cycle, and one of A for its size; memory for six vectors. P is applied
    on the right, A P y = b and x = P y. The result is `successful` if b − A x, computed
    explicitly, satisfies

        |b − A x| ≤ atol + rtol |b|.

    The updated residual is replaced by b − A x before it counts. After a breakdown of the
    recurrence (a division by zero, up to rounding) a new cycle starts from there. If two
    cycles in a row did not halve the residual, the result is `breakdown`, or `stagnation`
    if neither broke down. Breakdowns are detected relative to the current vectors, so
    float32 and negative definite A need no special care, unlike in `lineax.BiCGStab`
    (0.1.1). With both tolerances zero it runs `max_steps` steps and counts as successful.

    Derivatives take A to be nonsingular: one run for a JVP, one for a VJP, the latter
    with A^H and P^H. For skew-symmetric A, or A with eigenvalues all around zero, use
    [`pseudojvp.GMRES`][].

    `options` (not differentiated):

    - `preconditioner`: P, a `lineax.AbstractLinearOperator` near A^-1; it overrides the
        field of that name.
    - `y0`: first guess of x, with the structure of x. Defaults to zeros. Used by the
        primal solve only.

    `stats`: `num_steps`, `max_steps`, and with `history` also `residual_norms`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `norm`: a function from a vector to a scalar. If given, `norm` of b − A x, each
        entry divided by `atol + rtol |entry of b|`, must be at most one: lineax's rule
        for the residual, whose default is `lineax.internal.max_norm`. Defaults to `None`,
        the Euclidean norms above. Derivatives always use the Euclidean norms.
    - `max_steps`: the largest number of steps. Defaults to `None`, ten times the size of
        x.
    - `preconditioner`, by name: see `options`. Defaults to `None`, the identity.
    - `derivative_rtol`, `history`, `progress`: as for [`pseudojvp.MINRES`][]. Default to
        `None`, `False` and `0`.

    **Raises:** `ValueError` at trace time for a non-square operator, a preconditioner of
    another shape, an unknown option, a negative tolerance.

    **Sources:** van der Vorst, *Bi-CGSTAB: a fast and smoothly converging variant of
    Bi-CG for the solution of nonsymmetric linear systems*, SIAM J. Sci. Stat. Comput. 13
    (1992), section 3.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[3.0, 1.0], [0.0, 2.0]]), jnp.array([4.0, 2.0])
    solution = pj.linear_solve(A, b, pj.BiCGStab(rtol=1e-5))
    print(solution.value.round(2))  # [1. 1.]
    ```
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    max_steps: int | None = None
    _: KW_ONLY
    preconditioner: lx.AbstractLinearOperator | None = None
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> KrylovState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        return KrylovState.create(operator)

    def compute(
        self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        system = flat_system(self, state, vector, options)
        structure = Structure.of(state.operator.in_structure())
        preconditioner = resolve_preconditioner(
            self, self.preconditioner, options, structure, structure
        )
        precondition = system.mapped(preconditioner)
        final, result, stats = run(
            self,
            system,
            lambda iterate: _advance(system, precondition, iterate),
            _start(system),
        )
        return system.solution(final.solution), result, stats

    def assume_full_rank(self) -> bool:
        return True


def _start(system: System) -> _Iterate:
    zeros = jnp.zeros_like(system.guess)
    return _Iterate(
        solution=system.guess,
        residual=zeros,
        shadow=zeros,
        direction=zeros,
        image=zeros,
        factor=jnp.zeros((), zeros.dtype),
        halfway=jnp.array(False),
        cycle=system.start(),
    )


def _advance(system: System, precondition, iterate: _Iterate) -> _Iterate:
    """A check, or half a step: each takes one product.

    The first half is x + α P p, with b − A x orthogonal to the shadow; the second one
    x + ω P r, with the smallest b − A x along it.
    """
    cycle, x, r = iterate.cycle, iterate.solution, iterate.residual
    due = cycle.due
    second = iterate.halfway & ~due
    rho = dot(iterate.shadow, r)
    turned = r + (rho * iterate.factor) * iterate.direction
    direction = jnp.where(second, iterate.direction, turned)
    moved = precondition(jnp.where(second, r, direction))
    image = system.mv(jnp.where(due, x, moved))

    square = dot(image, image).real
    along = dot(jnp.where(second, r, iterate.shadow), image)
    eps = system.eps
    broken = jnp.abs(along) <= eps * jnp.sqrt(square) * jnp.where(second, cycle.norm, 1)
    broken = (broken | (~second & (jnp.abs(rho) <= eps * cycle.norm))) & ~due
    top = jnp.where(second, along.conj(), rho)  # α or ω is top / below
    below = jnp.where(second, square.astype(along.dtype), along)
    step_size = jnp.where(broken | due, 0, top / jnp.where(below == 0, 1, below))

    # In a check, b − A x and the beginning of a cycle.
    residual = jnp.where(due, system.vector, r)
    residual = residual - jnp.where(due, 1, step_size) * image
    norm = length(residual)
    checked = cycle.checked(
        norm,
        *system.judge(residual, norm),
        norm,
        shrink=0.5,
        patience=2,
        max_steps=system.max_steps,
    )
    ends = ~(norm > system.goal(cycle))
    # A step is not counted before its second half, unless that is not needed.
    count = (second | ends | broken).astype(cycle.step.dtype)
    stepped = cycle.stepped(
        norm, ends, broken=broken, count=count, max_steps=system.max_steps
    )
    factor = divide(
        jnp.where(second, iterate.factor, step_size), jnp.where(second, step_size, rho)
    )
    omega = jnp.where(second, step_size, 0)
    return _Iterate(
        solution=x + step_size * moved,
        residual=residual,
        shadow=jnp.where(due, over(norm, residual), iterate.shadow),
        direction=direction - omega * iterate.image,
        image=image,
        factor=jnp.where(due, 0, factor),
        halfway=~(due | second | ends | broken),
        cycle=tree_where(due, checked, stepped),
    )
