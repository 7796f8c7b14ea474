import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree, Real

from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_where
from ..._kernel.norms import two_norm
from ..options import resolve_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    derivative_solver,
    divide,
    flat_mv,
    flat_system,
    KrylovState,
    OPTIONS,
    over,
    run,
    System,
)


class _Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    shadow: Inexact[Array, " n"]  # the residual of the last check
    direction: Inexact[Array, " n"]  # p
    image: Inexact[Array, " n"]  # A P p
    rho: Inexact[Array, ""]
    alpha: Inexact[Array, ""]
    omega: Inexact[Array, ""]
    halfway: Bool[Array, ""]  # the next pass is the second half of a step
    cycle: Cycle


class BiCGStab(AbstractKrylovSolver):
    """Solves square nonsingular systems by stabilised biconjugate gradients.

    Two products with A and two with the preconditioner P a step, and one more of each in
    a run of one cycle; memory for six vectors. P stands on the right, A P y = b and
    x = P y. It is `successful` if b − A x, computed as such, has

        |b − A x| ≤ atol + rtol |b|.

    The residual that is updated is replaced by b − A x before it counts. After a
    breakdown of the recurrence (a division by zero, up to rounding) another cycle begins
    from there; if two in a row did not halve the residual, the result is `breakdown`, or
    `stagnation` if none broke down. Breakdowns are told relative to the vectors at hand,
    so that float32 and negative definite A are no exceptions, as they are for
    `lineax.BiCGStab` (0.1.1).

    Derivatives take A for nonsingular: one run a JVP, one a VJP, the latter with A^H and
    P^H. For skew-symmetric A, or one with eigenvalues all around zero, use
    [`pseudojvp.GMRES`][].

    `options` (not differentiated):

    - `preconditioner`: P, a `lineax.AbstractLinearOperator` near A^-1; it wins over the
        field of that name.
    - `y0`: first guess of x, with the structure of x. Defaults to zeros. Primal only.

    `stats`: `num_steps`, `max_steps`, and with `history` also `residual_norms`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `max_steps`: the most steps; defaults to `None`, ten times the size of x.
    - `preconditioner`: see `options`. Defaults to `None`, the identity.
    - `derivative_rtol`, `history`, `progress`: as for [`pseudojvp.MINRES`][].

    **Raises:** `ValueError` at trace time for a non-square operator, a preconditioner of
    another shape, an unknown option, a negative tolerance.

    **Sources:** van der Vorst, *Bi-CGSTAB: a fast and smoothly converging variant of
    Bi-CG for the solution of nonsymmetric linear systems*, SIAM J. Sci. Stat. Comput. 13
    (1992), section 3.
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    max_steps: int | None = None
    preconditioner: lx.AbstractLinearOperator | None = None
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> KrylovState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        return KrylovState(lx.linearise(operator))

    def compute(
        self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        system = flat_system(self, state.operator, vector, options)
        structure = Structure.of(state.operator.in_structure())
        preconditioner = resolve_preconditioner(
            self, self.preconditioner, options, structure, structure
        )
        precondition = flat_mv(preconditioner)
        final, result, stats = run(
            self,
            system,
            lambda iterate: _advance(system, precondition, iterate),
            _start(system),
        )
        return system.solution(final.solution), result, stats

    def for_derivative(self) -> "BiCGStab":
        return derivative_solver(self)

    def assume_full_rank(self) -> bool:
        return True


def _start(system: System) -> _Iterate:
    zeros = jnp.zeros_like(system.guess)
    one = jnp.ones((), zeros.dtype)
    return _Iterate(
        solution=system.guess,
        residual=zeros,
        shadow=zeros,
        direction=zeros,
        image=zeros,
        rho=one,
        alpha=one,
        omega=one,
        halfway=jnp.array(False),
        cycle=Cycle.start(system.norm.dtype),
    )


def _advance(system: System, precondition, iterate: _Iterate) -> _Iterate:
    """A check, or half a step: each takes one product."""
    due, r = iterate.cycle.due, iterate.residual
    rho = jnp.vdot(iterate.shadow, r)
    beta = divide(rho, iterate.rho) * divide(iterate.alpha, iterate.omega)
    direction = r + beta * (iterate.direction - iterate.omega * iterate.image)
    moved = precondition(jnp.where(iterate.halfway, r, direction))
    image = system.mv(jnp.where(due, iterate.solution, moved))
    checked = _checked(system, iterate, image)
    first = _first_half(system, iterate, rho, direction, moved, image)
    second = _second_half(system, iterate, moved, image)
    return tree_where(due, checked, tree_where(iterate.halfway, second, first))


def _checked(system: System, iterate: _Iterate, image) -> _Iterate:
    residual = system.vector - image
    norm = two_norm(residual)
    cycle = iterate.cycle.checked(
        norm,
        norm <= system.allowed,
        norm,
        shrink=0.5,
        patience=2,
        max_steps=system.max_steps,
    )
    start = _start(system)
    return dataclasses.replace(
        start, solution=iterate.solution, residual=residual, shadow=residual, cycle=cycle
    )


def _first_half(system: System, iterate, rho, direction, moved, image) -> _Iterate:
    """x + α P p, with b − A x orthogonal to the shadow."""
    r, shadow = iterate.residual, iterate.shadow
    length, eps = two_norm(shadow), system.eps
    curvature = jnp.vdot(over(length, shadow), image)
    broken = (jnp.abs(curvature) <= eps * two_norm(image)) | (
        jnp.abs(rho) <= eps * length * two_norm(r)
    )
    alpha = jnp.where(broken, 0, divide(divide(rho, length.astype(rho.dtype)), curvature))
    residual = r - alpha * image
    norm = two_norm(residual)
    met = ~(norm > system.allowed)
    # The step is not counted before its second half, unless that is not needed.
    cycle = tree_where(
        broken | met,
        iterate.cycle.stepped(norm, True, max_steps=system.max_steps, broken=broken),
        iterate.cycle,
    )
    return _Iterate(
        solution=iterate.solution + alpha * moved,
        residual=residual,
        shadow=shadow,
        direction=direction,
        image=image,
        rho=rho,
        alpha=alpha,
        omega=iterate.omega,
        halfway=jnp.array(True),
        cycle=cycle,
    )


def _second_half(system: System, iterate: _Iterate, moved, image) -> _Iterate:
    """x + ω P r, with the smallest b − A x along it."""
    r = iterate.residual
    length = two_norm(image)
    along = jnp.vdot(over(length, image), r)
    broken = jnp.abs(along) <= system.eps * two_norm(r)
    omega = jnp.where(broken, 0, over(length, along))
    residual = r - omega * image
    norm = two_norm(residual)
    ends = ~(norm > system.allowed)
    cycle = iterate.cycle.stepped(norm, ends, max_steps=system.max_steps, broken=broken)
    return dataclasses.replace(
        iterate,
        solution=iterate.solution + omega * moved,
        residual=residual,
        omega=omega,
        halfway=jnp.array(False),
        cycle=cycle,
    )
