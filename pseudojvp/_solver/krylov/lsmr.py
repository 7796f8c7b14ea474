from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree, Real, Scalar

from ..._base.axes import cond
from ..._base.checks import check_options
from ..._base.structure import Structure
from ..._base.tree import tree_scale, tree_where
from ..options import check_tolerances, resolve_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    divide,
    flat_system,
    KrylovState,
    length,
    OPTIONS,
    over,
    rotation,
    run,
    System,
)


class Preconditioned(NamedTuple):
    """A, and L A R with one of L and R the preconditioner, the other the identity."""

    mv: Any
    adjoint_mv: Any
    left: Any
    left_adjoint: Any
    right: Any
    right_adjoint: Any


class Bidiagonal(eqx.Module):
    """The last vectors of the bidiagonalisation of L A R."""

    u: Inexact[Array, " rows"]
    v: Inexact[Array, " cols"]
    alpha: Real[Array, ""]


class Rotated(eqx.Module):
    """What the two QR factorisations of the bidiagonal matrix hand on."""

    h: Inexact[Array, " cols"]
    h_bar: Inexact[Array, " cols"]
    alpha_bar: Real[Array, ""]
    rho: Real[Array, ""]
    rho_bar: Real[Array, ""]
    c_bar: Real[Array, ""]
    s_bar: Real[Array, ""]
    zeta: Real[Array, ""]
    zeta_bar: Real[Array, ""]  # |(L A R)^H L r|


class Residual(eqx.Module):
    """What the norm of the residual is computed from (Fong & Saunders, section 5.1)."""

    beta_hat: Real[Array, ""]
    beta_dot: Real[Array, ""]
    rho_dot: Real[Array, ""]
    tau: Real[Array, ""]
    theta: Real[Array, ""]


class _Condition(eqx.Module):
    """Of the bidiagonal matrix, from the diagonal of its last factor."""

    largest: Real[Array, ""]
    smallest: Real[Array, ""]

    def above(self, limit) -> Bool[Array, ""]:
        return self.largest > limit * self.smallest


class _Iterate(eqx.Module):
    solution: Inexact[Array, " cols"]  # at the last check
    change: Inexact[Array, " cols"]  # z: the solution is x + R z
    ratio: Real[Array, ""]  # |r| / |L r|
    size: Real[Array, ""]  # a lower bound of the norm of L A R
    bidiagonal: Bidiagonal
    rotated: Rotated
    residual: Residual
    condition: _Condition | None  # if there is a limit
    cycle: Cycle


class LSMR(AbstractKrylovSolver):
    """Returns A†b for any A, of any shape and rank, by products with A and A^H (LSMR).

    This is MINRES on the normal equations A^H A x = A^H b, through the Golub-Kahan
    bidiagonalisation, which does not form A^H A. Cost: one product with A and one with
    A^H a step, two more of each in a run of one cycle, and one with A for its size. The
    updated residual is replaced by r = b − A x before it counts, and another cycle starts
    if r is not small enough. The result is `successful` if

        |r| ≤ atol + rtol |b|,  or  |A^H r| ≤ rtol |A| |r|  (least squares),

    or if A^H r is no larger than the rounding of r and at most rtol |A| |b|; |A| is an
    estimate from below. The error of x is up to κ rtol |x| by the first condition, up to
    κ² rtol (|b| / |A|) by the others. With both tolerances zero it runs `max_steps` steps
    and counts as successful (for the derivative of that, see
    [`pseudojvp.UnrolledAdjoint`][]).

    - `well_posed=False`, the default, allows any rank. Derivatives take up to three
        applications, each of one or two runs. No preconditioner and no `y0`.
    - `well_posed=True` takes A to have full rank, so derivatives take one application. It
        allows a preconditioner N on the shorter side, of dimension min(m, n): on the
        right for tall and square A (A N has the better condition), on the left for wide A
        (N A has). x is then A†b as well. If A has dependent columns (rows) after all, x
        is *some* least-squares solution (`stagnation` unless consistent). Square and wide
        A must satisfy the first inequality.

    For damped least squares, with derivatives with respect to A, b and the damping, use
    the operator of [`pseudojvp.damped`][].

    `options` (not differentiated):

    - `preconditioner`: N, a `lineax.AbstractLinearOperator` near (A^H A)^-1/2 or (A
        A^H)^-1/2, for square A near A^-1; it overrides the field of that name. Products
        with N^H are needed too; the adjoint solve uses the adjoint of N.
    - `y0`: first guess of x, for tall or square A, with the structure of x. Defaults to
        zeros. Used by the primal solve only.

    `stats`: `num_steps`, `max_steps`, and with `history` also `residual_norms`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `norm`: a function from a vector to a scalar. If given, `norm` of b − A x, each
        entry divided by `atol + rtol |entry of b|`, must be at most one: lineax's rule
        for the residual, whose default is `lineax.internal.max_norm`. Defaults to `None`,
        the Euclidean norms above. Derivatives, and the second inequality, always use the
        Euclidean norms.
    - `max_steps`: the largest number of steps. Defaults to `None`, ten times max(m, n).
    - `conlim`: `≥ 0`; the result is `conlim` if the estimate of the condition number
        exceeds it before the tolerance is met. Defaults to `None`, no limit (lineax:
        1e8).
    - `preconditioner`, by name: see `options`. Defaults to `None`, the identity.
    - `well_posed`: whether A is taken to have full rank, as above. Defaults to `False`.
    - `derivative_rtol`, `history`, `progress`: as for [`pseudojvp.MINRES`][]. Default to
        `None`, `False` and `0`.

    **Raises:** `ValueError` at trace time for a preconditioner of another shape, for a
    preconditioner or `y0` with `well_posed=False`, for `y0` with a wide A, an unknown
    option, or a negative tolerance.

    **Sources:** Fong & Saunders, *LSMR: an iterative algorithm for sparse least-squares
    problems*, SIAM J. Sci. Comput. 33 (2011), sections 2.8, 5 and 6.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), jnp.array([1.0, 3.0, 5.0])
    print(pj.linear_solve(A, b, pj.LSMR()).value.round(2))  # [1. 1.]
    ```
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    max_steps: int | None = None
    conlim: Real[ArrayLike, ""] | None = None
    _: KW_ONLY
    preconditioner: lx.AbstractLinearOperator | None = None
    well_posed: bool = False
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def __check_init__(self):
        check_tolerances("LSMR", conlim=self.conlim)
        self._check_unaided(self.preconditioner)

    def _check_unaided(self, preconditioner, y0=None):
        if not self.well_posed and not (preconditioner is None and y0 is None):
            raise ValueError(
                "`LSMR(well_posed=False)` takes neither a preconditioner nor `y0`: with "
                "either, LSMR of a rank-deficient operator ends in a solution that is "
                "not the minimum-norm one. Drop it, or pass `well_posed=True` if the "
                "operator has full rank."
            )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> KrylovState:
        check_options(self, options, OPTIONS)
        return KrylovState.create(operator)

    def compute(
        self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        operator = state.operator
        system, maps = self.prepared(state, vector, options)
        square_or_wide = operator.in_size() >= operator.out_size()
        solvable = self.well_posed and square_or_wide
        final, result, stats = run(
            self,
            system,
            lambda iterate: self._advance(system, maps, solvable, iterate),
            self._start(system),
        )
        if final.condition is not None:
            results = lx.RESULTS
            above = (result == results.stagnation) & final.condition.above(self.conlim)
            result = results.where(above, results.conlim, result)
        return system.solution(final.solution), result, stats

    def prepared(
        self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[System, Preconditioned]:
        """The system on flat vectors, and its products."""
        operator = state.operator
        system = flat_system(self, state, vector, options)
        wide = operator.in_size() > operator.out_size()
        shorter = operator.out_structure() if wide else operator.in_structure()
        shorter = Structure.of(shorter)
        preconditioner = resolve_preconditioner(
            self, self.preconditioner, options, shorter, shorter
        )
        y0 = options.get("y0")
        self._check_unaided(preconditioner, y0)
        if wide and y0 is not None:
            raise ValueError(
                "`LSMR` takes no `y0` for a wide operator: it would end in the solution "
                "nearest to `y0`, not in the minimum-norm one. Drop it."
            )
        maps = (
            system.mapped(preconditioner),
            system.mapped(preconditioner, adjoint=True),
        )
        nothing = system.mapped(None), system.mapped(None)
        return system, Preconditioned(
            system.mv,
            system.adjoint_mv,
            *(maps if wide else nothing),
            *(nothing if wide else maps),
        )

    def _start(self, system: System) -> _Iterate:
        rows, cols = jnp.zeros_like(system.vector), jnp.zeros_like(system.guess)
        zero = jnp.zeros_like(system.norm)
        condition = None
        if self.conlim is not None:
            condition = _Condition(zero, jnp.full_like(zero, jnp.inf))
        return _Iterate(
            solution=system.guess,
            change=cols,
            ratio=zero,
            size=zero,
            bidiagonal=Bidiagonal(rows, cols, zero),
            rotated=unrotated(cols, zero, zero),
            residual=unrotated_residual(zero),
            condition=condition,
            cycle=system.start(),
        )

    def _advance(self, system: System, maps, solvable: bool, iterate) -> _Iterate:
        cycle, bidiagonal = iterate.cycle, iterate.bidiagonal
        moved = maps.right(jnp.where(cycle.due, iterate.change, bidiagonal.v))
        x = jnp.where(cycle.due, iterate.solution + moved, iterate.solution)
        image = maps.mv(jnp.where(cycle.due, x, moved))
        # The next two basis vectors; in a check, the first ones of a new cycle.
        residual = system.vector - image
        u = maps.left(jnp.where(cycle.due, residual, image))
        u = u - tree_scale(jnp.where(cycle.due, 0, bidiagonal.alpha), bidiagonal.u)
        beta = length(u, system.spread.codomain)
        u = over(beta, u)
        v = maps.right_adjoint(maps.adjoint_mv(maps.left_adjoint(u)))
        v = v - tree_scale(jnp.where(cycle.due, 0, beta), bidiagonal.v)
        alpha = length(v, system.spread.domain)
        bidiagonal = Bidiagonal(u, over(alpha, v), alpha)
        old = iterate.bidiagonal
        # Asked for by a check alone: one branch for a whole batch.
        norms = cond(
            eqxi.nonbatchable(eqxi.unvmap_any(cycle.due)),
            lambda: (
                length(system.vector - image, system.spread.codomain),
                length(x, system.spread.domain),
            ),
            lambda: (jnp.zeros_like(beta),) * 2,
        )
        checked = self._checked(
            system, solvable, iterate, x, residual, norms, bidiagonal, beta
        )
        stepped = self._stepped(system, solvable, iterate, old, bidiagonal, beta)
        return tree_where(cycle.due, checked, stepped)

    def _checked(self, system, solvable, iterate, x, residual, norms, bidiagonal, beta):
        """r = b − A x and |A^H r| = α β; the beginning of a cycle. Norms of r and x."""
        norm, norm_of_x = norms
        alpha = bidiagonal.alpha
        size = jnp.maximum(iterate.size, alpha)
        met, goal = system.judge(residual, norm)
        measure = norm
        if not solvable:
            rounding = 10 * system.eps * (size * norm_of_x + system.norm)
            least_squares = alpha <= system.rtol * size
            at_floor = (alpha * beta <= rounding * size) & (
                alpha * beta <= system.rtol * size * system.norm
            )
            started = iterate.cycle.step > 0
            met = met | least_squares | (at_floor & started)
            measure = alpha * beta
        patience = 2
        if iterate.condition is not None:
            patience = jnp.where(iterate.condition.above(self.conlim), 0, patience)
        cycle = iterate.cycle.checked(
            norm,
            met,
            goal,
            measure,
            shrink=0.5,
            patience=patience,
            max_steps=system.max_steps,
        )
        return _Iterate(
            solution=x,
            change=jnp.zeros_like(x),
            ratio=divide(norm, beta),
            size=size,
            bidiagonal=bidiagonal,
            rotated=unrotated(bidiagonal.v, alpha, alpha * beta),
            residual=unrotated_residual(beta),
            condition=iterate.condition,
            cycle=cycle,
        )

    def _stepped(self, system, solvable, iterate, old, bidiagonal, beta):
        size = jnp.maximum(iterate.size, jnp.sqrt(old.alpha**2 + beta**2))
        rotated, residual = rotate(iterate.rotated, iterate.residual, bidiagonal, beta)
        limit = 10 * system.eps * size
        moves = (rotated.rho > limit) & (rotated.rho_bar > limit)
        step_size = divide(divide(rotated.zeta, rotated.rho), rotated.rho_bar)
        change = iterate.change + tree_scale(step_size, rotated.h_bar)
        norm = jnp.sqrt(residual_square(rotated, residual))
        gradient = jnp.abs(rotated.zeta_bar)
        relative = limit if solvable else jnp.maximum(limit, system.rtol * size)
        estimate = norm * iterate.ratio
        ends = (
            ~moves
            | ~(estimate > system.goal(iterate.cycle))
            | ~(gradient > relative * norm)
        )
        condition = iterate.condition
        if condition is not None:
            condition = _Condition(
                jnp.maximum(condition.largest, rotated.rho_bar),
                jnp.minimum(condition.smallest, rotated.rho_bar),
            )
            ends = ends | condition.above(self.conlim)
        return _Iterate(
            solution=iterate.solution,
            change=jnp.where(moves, change, iterate.change),
            ratio=iterate.ratio,
            size=size,
            bidiagonal=bidiagonal,
            rotated=rotated,
            residual=residual,
            condition=condition,
            cycle=iterate.cycle.stepped(
                jnp.where(moves, estimate, iterate.cycle.norm),
                ends,
                max_steps=system.max_steps,
            ),
        )

    def assume_full_rank(self) -> bool:
        return self.well_posed


def unrotated(v, alpha, zeta_bar) -> Rotated:
    zero = jnp.zeros_like(alpha)
    one = zero + 1
    return Rotated(v, jnp.zeros_like(v), alpha, one, one, one, zero, zero, zeta_bar)


def unrotated_residual(beta) -> Residual:
    zero = jnp.zeros_like(beta)
    return Residual(beta, zero, zero + 1, zero, zero)


def residual_square(rotated: Rotated, residual: Residual) -> Real[Array, ""]:
    """|L r|^2, as far as the recurrence tells."""
    in_range = (
        divide(rotated.zeta, residual.rho_dot)
        - divide(residual.theta, residual.rho_dot) * residual.tau
    )
    return (residual.beta_dot - in_range) ** 2 + residual.beta_hat**2


def rotate(old: Rotated, residual: Residual, bidiagonal: Bidiagonal, beta):
    """One more column of the bidiagonal matrix, (α, β) of which is new."""
    c, s, rho = rotation(old.alpha_bar, beta)
    theta = s * bidiagonal.alpha
    theta_bar = old.s_bar * rho
    c_bar, s_bar, rho_bar = rotation(old.c_bar * rho, theta)
    zeta = c_bar * old.zeta_bar
    back = divide(theta_bar, old.rho) * divide(rho, old.rho_bar)
    h_bar = old.h - tree_scale(back, old.h_bar)
    rotated = Rotated(
        h=bidiagonal.v - tree_scale(divide(theta, rho), old.h),
        h_bar=h_bar,
        alpha_bar=c * bidiagonal.alpha,
        rho=rho,
        rho_bar=rho_bar,
        c_bar=c_bar,
        s_bar=s_bar,
        zeta=zeta,
        zeta_bar=-s_bar * old.zeta_bar,
    )
    beta_hat = c * residual.beta_hat
    c_tilde, s_tilde, rho_tilde = rotation(residual.rho_dot, theta_bar)
    residual = Residual(
        beta_hat=-s * residual.beta_hat,
        beta_dot=c_tilde * beta_hat - s_tilde * residual.beta_dot,
        rho_dot=c_tilde * rho_bar,
        tau=divide(old.zeta - residual.theta * residual.tau, rho_tilde),
        theta=s_tilde * rho_bar,
    )
    return rotated, residual
