import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree, Real, Scalar

from ..._base.axes import scan
from ..._base.checks import check_options, check_square
from ..._base.results import first_failure
from ..._base.structure import Structure
from ..._base.tree import tree_scale, tree_where
from ..._kernel.norms import two_norm
from ..._operator.tags import advice
from ..options import resolve_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    derivative_solver,
    dot,
    flat_system,
    KrylovState,
    length,
    OPTIONS,
    run,
    System,
)
from .lanczos import Tridiagonal


_not_well_posed_message = (
    "`CG(well_posed=False)` takes neither a preconditioner nor `y0`: with either, CG "
    "ends in a solution that is not the minimum-norm one. Drop it, or pass "
    "`well_posed=True` if the operator is nonsingular."
)


class Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    direction: Inexact[Array, " n"]  # p
    square: Real[Array, ""]  # |p|^2, in the norm of M^-1
    gamma: Real[Array, ""]  # <M r, r> before the last step; infinite to begin anew
    curvature: Real[Array, ""]  # the largest <p, A p> / |p|^2 so far
    travelled: Real[Array, ""]  # a bound of the length of x
    tridiagonal: Tridiagonal | None  # if it is kept
    cycle: Cycle


class _Singular(eqx.Module):
    """One of the runs for a singular A: of A y = A offset, a projection, or A y = b."""

    projects: Bool[Array, ""]
    offset: Inexact[Array, " n"]
    rounding: Real[Array, ""]  # of b: no residual is asked to be smaller


class CG(AbstractKrylovSolver):
    """Solves positive or negative definite systems by conjugate gradients.

    A is real symmetric or complex Hermitian, and carries
    `lineax.positive_semidefinite_tag` or `lineax.negative_semidefinite_tag`. Cost: a
    solve calls only `operator.mv`: once for the size of A, once an iteration, once more
    every `stabilise_every` iterations, and at the end. The result is `successful` if b −
    A x, computed explicitly, satisfies

        |b − A x| ≤ atol + rtol |b|,

    or if the updated residual satisfies it, and b − A x is at most ten times that, or at
    most the rounding of A x. Otherwise the result is `max_steps_reached` (or `singular`,
    as in lineax, if `max_steps` is `None`), or `breakdown` if only directions of
    non-positive curvature are left, so the operator is not definite. With both tolerances
    zero it runs `max_steps` iterations and counts as successful. Its derivative then uses
    as many iterations for A⁻¹: it is neither the exact derivative nor that of the
    iterate, for which there is [`pseudojvp.UnrolledAdjoint`][].

    If A is singular and b is in its range, the solution without preconditioner and first
    guess is the minimum-norm one, A†b. Derivatives, however, take A to be nonsingular
    (one inner solve for a JVP, one for a VJP). `well_posed=False` returns A†b for *every*
    b and differentiates it along paths of constant rank. An application of A† then takes
    three runs, of which the first and last project b and x onto the range; a derivative
    with respect to A takes three applications. Singular values below 1000 eps times the
    largest count as zero, and the error is eps κ². The residual is that of the part of b
    in the range, and may always be 10 eps |b|. This mode accepts neither preconditioner
    nor `y0`, since CG would then reach another solution.

    `options` (not differentiated, as the solution does not depend on them):

    - `preconditioner`: a positive definite `lineax.AbstractLinearOperator` near A^-1; it
        overrides the field of that name.
    - `y0`: first guess of x, a vector of the structure of x. Defaults to zeros. Used by
        the primal solve only.

    `stats["num_steps"]` counts iterations, and `stats["max_steps"]` is the field. With
    `history` there is `stats["residual_norms"]`, with `lanczos` `stats["lanczos"]`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `norm`: a function from a vector to a scalar. If given, `norm` of b − A x, each
        entry divided by `atol + rtol |entry of b|`, must be at most one: lineax's rule
        for the residual, whose default is `lineax.internal.max_norm`. Defaults to `None`,
        the Euclidean norms above. Derivatives always use the Euclidean norms.
    - `stabilise_every`: after this many iterations the residual is recomputed as b − A x,
        against drift; `None` for never. Defaults to `50` (lineax: 10).
    - `max_steps`: the largest number of iterations. Defaults to `None`, ten times the
        size of x.
    - `preconditioner`, by name: see `options`. Defaults to `None`, the identity.
    - `well_posed`: whether A is taken to be nonsingular. Defaults to `True`.
    - `derivative_rtol`: the tolerance of tangent and adjoint solves, in Euclidean norms
        and relative to their own right-hand sides, as for [`pseudojvp.MINRES`][].
        Defaults to `None`, `rtol` alone.
    - `history`: whether to keep the norm of the residual after each iteration, as
        `stats["residual_norms"]` of shape `(max_steps,)`, NaN after the last one; with
        `well_posed=False`, that of the run between the projections. Defaults to `False`.
    - `progress`: prints a line after every `progress` iterations. Defaults to `0`, never.
    - `lanczos`: whether to keep the tridiagonal matrix T = VᴴA V of the Lanczos process
        behind CG, as `stats["lanczos"]`: its diagonal `"alphas"`, of shape
        `(max_steps,)`, and its off-diagonal `"betas"`, of shape `(max_steps - 1,)`.
        Entries beyond the steps taken, or beyond the first cycle, are NaN. The first
        column of V is b (with `y0`, b − A y0) over its length. With a preconditioner P =
        L Lᴴ, T belongs to LᴴA L and Lᴴb. It has no derivative. Defaults to `False`. Costs
        nothing extra.

    **Raises:** `ValueError` at trace time for a non-square operator, one without a
    definiteness tag, a preconditioner that is not declared positive definite or of
    another shape, an unknown option, a negative tolerance, or no stopping rule at all.

    **Sources:** Hestenes & Stiefel, *Methods of conjugate gradients for solving linear
    systems*, J. Res. NBS 49 (1952), (3:1); Kaasschieter, *Preconditioned conjugate
    gradients for solving singular systems*, J. Comput. Appl. Math. 24 (1988).

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    A = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    solution = pj.linear_solve(A, jnp.array([3.0, 4.0]), pj.CG(rtol=1e-5))
    print(solution.value.round(2), solution.stats["num_steps"])  # [1. 1.] 2
    ```
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    stabilise_every: int | None = 50
    max_steps: int | None = None
    _: KW_ONLY
    preconditioner: lx.AbstractLinearOperator | None = None
    well_posed: bool = True
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0
    lanczos: bool = False

    def __check_init__(self):
        if self.lanczos and not self.well_posed:
            raise ValueError(
                "`CG(lanczos=True, well_posed=False)` has no tridiagonal matrix of its "
                "own: it runs three times. Use `MINRES(lanczos=True)` for a singular A."
            )
        if self.stabilise_every is not None and self.stabilise_every < 1:
            raise ValueError(
                f"`CG(stabilise_every=...)` got {self.stabilise_every}; it must be "
                "positive."
            )
        if not self.well_posed and self.preconditioner is not None:
            raise ValueError(_not_well_posed_message)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> KrylovState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        return definite_state(self, operator)

    def compute(
        self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        return self._compute(state, vector, options, None)

    def compute_image(
        self,
        state: KrylovState,
        vector: PyTree[Array],
        source: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        """As `compute`, for `vector` = B `source`, A = B B^H: that is not projected."""
        return self._compute(state, vector, options, source)

    def _compute(self, state: KrylovState, vector, options, source):
        structure = Structure.of(state.operator.in_structure())
        preconditioner = definite_preconditioner(self, options, structure)
        if self.well_posed:
            system = flat_system(self, state, vector, options)
            precondition = None
            if preconditioner is not None:
                precondition = system.mapped(preconditioner)
            start = start_of(system, 0.0 if precondition else 0.5, "y0" in options)
            if self.lanczos:
                kept = Tridiagonal.start(system.max_steps, system.norm)
                start = dataclasses.replace(start, tridiagonal=kept)
            final, result, stats = self._run(system, precondition, None, start)
            if final.tridiagonal is not None:
                scale = system.scale  # of A; of P A it is one
                scale = scale if precondition is None else jnp.sign(scale)
                stats["lanczos"] = final.tridiagonal.stats(scale)
            return system.solution(final.solution), result, stats
        if preconditioner is not None or "y0" in options:
            raise ValueError(_not_well_posed_message)
        return self._projected(state, vector, options, source)

    def _projected(self, state: KrylovState, vector, options, source):
        """A†b for any b: A p = A b gives p = A A†b, then A x = p is consistent.

        Rounding may leave a large part of x in the null space, so x is projected as well.
        The projections go down to rounding. A loop of three passes, so that `operator.mv`
        is traced no more often; two for the image of a `source`, which is in the range.

        What is left of b, or of the source, may be little. Then its rounding is a large
        part of it, outside of the range, and no residual is asked to be smaller.
        """
        in_range = source is not None
        known = two_norm(source if in_range else vector)
        if in_range:  # |B| from that of A
            scale = jnp.abs(state.scale).astype(known.dtype)
            known = jnp.sqrt(2 * state.operator.in_size() ** 0.5 * scale) * known
        rounding = 10 * float(jnp.finfo(known.dtype).eps) * known

        def one_pass(carry, projects):
            (previous, result), steps = carry
            system = flat_system(self, state, previous, options)
            zeros = jnp.zeros_like(system.vector)
            singular = _Singular(
                projects=projects,
                offset=jnp.where(projects, system.vector, zeros),
                rounding=jnp.where(projects, 0, rounding / system.unit),
            )
            system = system._replace(
                vector=jnp.where(projects, zeros, system.vector),
                norm=jnp.where(projects, 0, system.norm),
                # A projection has the scale of what it projects.
                scale=jnp.where(projects, 1, system.scale),
            )
            start = start_of(system, 0.5, True)
            start = dataclasses.replace(start, travelled=length(singular.offset))
            final, new_result, stats = self._run(system, None, singular, start)
            result = first_failure(result, new_result)
            carry = (system.solution(final.solution), result), steps + stats["num_steps"]
            return carry, stats.get("residual_norms")

        passes = jnp.array([False, True] if in_range else [True, False, True])
        init = (vector, lx.RESULTS.successful), jnp.array(0)
        ((solution, result), steps), norms = scan(one_pass, init, passes)
        stats = {"num_steps": steps, "max_steps": self.max_steps}
        if norms is not None:
            stats["residual_norms"] = norms[0 if in_range else 1]
        return solution, result, stats

    def _run(self, system: System, precondition, singular, start: "Iterate"):
        final, result, stats = run(
            self,
            system,
            lambda iterate: self.advance(system, precondition, singular, iterate),
            start,
        )
        return final, result_of(self, result), stats

    def advance(
        self, system: System, precondition, singular: "_Singular | None", iterate
    ) -> Iterate:
        cycle, x, r = iterate.cycle, iterate.solution, iterate.residual
        due = cycle.due
        z, gamma = r, cycle.norm**2
        if precondition is not None:
            z = precondition(r)
            gamma = dot(z, r).real
        tiny = float(jnp.finfo(gamma.dtype).tiny)
        beta = gamma / jnp.maximum(iterate.gamma, tiny)
        direction = z + tree_scale(beta, iterate.direction)
        direction = jnp.where(due, iterate.direction, direction)
        square = gamma + beta**2 * iterate.square  # as <r, p> = 0
        square = jnp.where(due, iterate.square, square)
        point = x if singular is None else x - singular.offset
        image = system.mv(jnp.where(due, point, direction))
        product = jnp.where(due, 0, dot(direction, image).real)
        curvature = product / jnp.maximum(square, tiny)
        largest = jnp.maximum(iterate.curvature, jnp.abs(curvature))
        # Not along a direction of no curvature, up to rounding, or of a negative one. For
        # a singular A, rounding makes directions of the range of those that are not.
        limit = 10 if singular is None else 1000
        moves = curvature > limit * system.eps * largest
        step_size = jnp.where(moves, gamma / product, 0)
        x = x + tree_scale(step_size, direction)

        # In a check, b − A x itself.
        residual = jnp.where(due, system.vector, r)
        residual = residual - tree_scale(jnp.where(due, 1, step_size), image)
        norm = length(residual)
        aim = system.goal(cycle)
        met, goal = system.judge(residual, norm)
        nearly = nearly_met(system, iterate.travelled, goal)
        if singular is not None:
            floor = 10 * system.eps * (largest * iterate.travelled + system.norm)
            least = jnp.where(singular.projects, floor, singular.rounding)
            met = (met & ~singular.projects) | (norm <= least)
            aim = jnp.where(singular.projects, floor, jnp.maximum(aim, least))
            nearly = jnp.where(singular.projects, 10 * floor, nearly)
        finished = ~(cycle.norm > aim)  # by the recurrence
        checked = cycle.checked(
            norm,
            met | (finished & (norm <= nearly)),
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
        tridiagonal = iterate.tridiagonal
        if tridiagonal is not None:
            inverse = product / jnp.where(moves, gamma, 1)
            tridiagonal = tridiagonal.with_step(cycle.step, inverse, beta, counts=moves)
        kept = jnp.where(finished | cycle.broken, jnp.inf, iterate.gamma)
        return Iterate(
            solution=x,
            residual=residual,
            direction=direction,
            square=square,
            gamma=jnp.where(due, kept, gamma),
            curvature=largest,
            travelled=iterate.travelled + step_size * jnp.sqrt(square),
            tridiagonal=tridiagonal,
            cycle=tree_where(due, checked, stepped),
        )

    def for_derivative(self) -> "CG":
        """The solver of tangents and cotangents, which keeps no tridiagonal matrix."""
        return derivative_solver(dataclasses.replace(self, lanczos=False))

    def assume_full_rank(self) -> bool:
        return self.well_posed


def result_of(solver: CG, result: lx.RESULTS) -> lx.RESULTS:
    """That of a run: as in lineax, `singular` after a number of steps nobody chose."""
    if solver.max_steps is not None:
        return result
    results = lx.RESULTS
    exhausted = result == results.max_steps_reached
    return results.where(exhausted, results.singular, result)


def definite_state(solver: Any, operator: lx.AbstractLinearOperator) -> KrylovState:
    """With a scale of the sign of A, which has to be told by a tag."""
    negative = lx.is_negative_semidefinite(operator)
    if not (lx.is_positive_semidefinite(operator) or negative):
        name = type(solver).__name__
        raise ValueError(
            f"`{name}()` may only be used for positive or negative definite linear "
            "operators, and `operator` is tagged as neither. Tag it with "
            f"`lineax.positive_semidefinite_tag`, or use `Normal({name}(...))`."
            + advice(operator, "lineax.positive_semidefinite_tag")
        )
    state = KrylovState.create(operator)
    scale = -state.scale if negative else state.scale
    return dataclasses.replace(state, scale=scale)


def definite_preconditioner(
    solver: AbstractKrylovSolver, options: dict[str, Any], structure: Structure
) -> lx.AbstractLinearOperator | None:
    """That of `options` or of the solver, if it is declared positive definite."""
    preconditioner = resolve_preconditioner(
        solver, solver.preconditioner, options, structure, structure
    )
    if preconditioner is not None and not lx.is_positive_semidefinite(preconditioner):
        raise ValueError(
            "The preconditioner must be positive definite: tag the preconditioner of "
            f"`{type(solver).__name__}` with `lineax.positive_semidefinite_tag`."
            + advice(preconditioner, "lineax.positive_semidefinite_tag")
        )
    return preconditioner


def start_of(system: System, curvature: float, guessed: bool) -> Iterate:
    zeros, zero = jnp.zeros_like(system.guess), jnp.zeros_like(system.norm)
    cycle = system.start()
    if not guessed:  # b − A 0 needs no check
        met, goal = system.judge(system.vector, system.norm)
        phase = jnp.where(met, cycle.phase, 0)
        norm = system.norm
        cycle = dataclasses.replace(cycle, norm=norm, goal=goal, phase=phase)
    return Iterate(
        solution=system.guess,
        residual=zeros if guessed else system.vector,
        direction=zeros,
        square=zero,
        gamma=jnp.full_like(zero, jnp.inf),
        curvature=zero + curvature,
        travelled=length(system.guess) if guessed else zero,
        tridiagonal=None,
        cycle=cycle,
    )


def nearly_met(system: System, travelled, goal):
    """What b − A x may be where its update by recurrence is within the tolerance.

    Ten times the tolerance, or the rounding of A x, as long as that is small beside b.
    """
    eps, norm = system.eps, system.norm
    rounding = jnp.minimum(10 * eps * (travelled + norm), eps**0.5 * norm)
    return jnp.maximum(10 * (system.allowed if goal is None else goal), rounding)
