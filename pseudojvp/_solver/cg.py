import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import lineax.internal as lxi
import numpy as np
from jaxtyping import Array, Bool, Integer, PyTree, Real, Scalar

from .._misc import (
    all_finite,
    check_options,
    check_square,
    first_failure,
    is_zero,
    Structure,
    tree_add,
    tree_neg,
    tree_scale,
    tree_sub,
    tree_where,
)
from .preconditioner import (
    check_tolerances,
    promoting,
    resolve_preconditioner,
    resolve_y0,
)


_dot = promoting(lxi.tree_dot)
_max_norm = promoting(lxi.max_norm)
_two_norm = promoting(lxi.two_norm)

_not_well_posed_message = (
    "`CG(well_posed=False)` takes neither a preconditioner nor `y0`: with either, CG "
    "ends in a solution that is not the minimum-norm one. Drop it, or pass "
    "`well_posed=True` if the operator is nonsingular."
)


class CGState(eqx.Module):
    """The operator, negated if it is negative (semi)definite.

    `size` is the largest entry of A u for a unit vector u: a lower bound of the norm of
    A.
    """

    operator: lx.AbstractLinearOperator
    size: Real[Array, ""]
    negated: eqxi.Static


class _System(eqx.Module):
    """A y = vector + A offset, from the guess `y0`; `None` is zero, or the identity."""

    operator: lx.AbstractLinearOperator
    size: Real[Array, ""]
    vector: PyTree[Array]
    preconditioner: lx.AbstractLinearOperator | None = None
    y0: PyTree[Array] | None = None
    offset: PyTree[Array] | None = None
    to_floor: Bool[Array, ""] | None = None  # whether to go on until rounding stops it


class _Iterate(eqx.Module):
    solution: PyTree[Array]
    residual: PyTree[Array]  # in multiples of `unit`
    unit: Real[Array, ""]  # the largest entry of b: no product over- or underflows
    direction: PyTree[Array]
    gamma: Real[Array, ""]  # <M r, r>
    length: Real[Array, ""]  # of the direction before it was scaled to one
    curvature: Real[Array, ""]  # the largest <p, A p> so far
    travelled: Real[Array, ""]  # a bound of the length of y - offset
    residual_met: Bool[Array, ""]
    converged: Bool[Array, ""]
    definite: Bool[Array, ""]
    resting: Bool[Array, ""]  # no step is left that rounding would not drown
    step: Integer[Array, ""]


class CG(lx.AbstractLinearSolver[CGState]):
    """Solves positive or negative definite systems by conjugate gradients.

    Real symmetric or complex Hermitian; `operator` carries
    `lineax.positive_semidefinite_tag` or `lineax.negative_semidefinite_tag`. Only
    `operator.mv` is called, once an iteration and once more every `stabilise_every`.

    It stops when both the residual, against `atol + rtol * |b|`, and the last change of
    x, against `atol + rtol * |x|`, have `norm` at most one, elementwise quotients taken
    before the norm. Otherwise the result says so: `max_steps_reached` (or `singular`,
    as in lineax, if `max_steps` is `None`), `breakdown` if a direction of non-positive
    curvature shows that the operator is not definite. With both tolerances zero it runs
    `max_steps` iterations, and that truncation is what was asked for.

    If A is singular and b lies in its range, the solution without preconditioner and
    first guess is the minimum-norm one, A†b. Derivatives however take A for nonsingular
    (one inner solve a JVP, one a VJP) unless `well_posed=False`, which returns A†b for
    *every* b and differentiates it along paths of constant rank. An application of A† is
    then three runs, the first and the last of which project b and x onto the range, and a
    derivative with respect to A takes three applications. Singular values below 1000 eps
    times the largest count as zero, and the error is eps κ². That mode takes neither
    preconditioner nor `y0`, with which CG would end in another solution.

    `options` (not differentiated, as the solution does not depend on them):

    - `preconditioner`: a positive definite `lineax.AbstractLinearOperator` near A^-1;
        it wins over the field of that name.
    - `y0`: first guess of x, a vector of the structure of x. Defaults to zeros. Used by
        the primal solve only.

    `stats["num_steps"]` counts iterations, `stats["max_steps"]` is the field.

    **Arguments:**

    - `rtol`, `atol`: `≥ 0`, relative and absolute tolerance.
    - `norm`: from a vector to a scalar. Defaults to the largest absolute entry.
    - `stabilise_every`: the residual is recomputed as b − A x this often (iterations)
        against drift; `None` for never. Defaults to `10`.
    - `max_steps`: the most iterations; defaults to `None`, ten times the size of x.
    - `preconditioner`: see `options`. Defaults to `None`, the identity.
    - `well_posed`: whether A may be taken for nonsingular. Defaults to `True`.

    **Raises:** `ValueError` at trace time for a non-square operator, one without a
    definiteness tag, a preconditioner that is not declared positive definite or of
    another shape, an unknown option, a negative tolerance, or no stopping rule at all.

    **Sources:** Hestenes & Stiefel, *Methods of conjugate gradients for solving linear
    systems*, J. Res. NBS 49 (1952), (3:1); Kaasschieter, *Preconditioned conjugate
    gradients for solving singular systems*, J. Comput. Appl. Math. 24 (1988).
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = lxi.max_norm
    stabilise_every: int | None = 10
    max_steps: int | None = None
    preconditioner: lx.AbstractLinearOperator | None = None
    well_posed: bool = True

    def __check_init__(self):
        check_tolerances(self, rtol=self.rtol, atol=self.atol)
        if not self._has_tolerance and self.max_steps is None:
            raise ValueError(
                "`CG(rtol=0, atol=0, max_steps=None)` would never stop. Must specify "
                "`rtol`, `atol`, or `max_steps` (or some combination of all three)."
            )
        for name in ("stabilise_every", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < (1 if name == "stabilise_every" else 0):
                raise ValueError(f"`CG({name}=...)` got {value}; it must be positive.")
        if not self.well_posed and self.preconditioner is not None:
            raise ValueError(_not_well_posed_message)

    @property
    def _has_tolerance(self) -> bool:
        given = (self.rtol, self.atol)
        return not all(isinstance(tol, int | float) and tol == 0 for tol in given)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> CGState:
        check_options(self, options, ("preconditioner", "y0"))
        check_square(self, operator)
        negated = lx.is_negative_semidefinite(operator)
        if not (lx.is_positive_semidefinite(operator) or negated):
            raise ValueError(
                "`CG()` may only be used for positive or negative definite linear "
                "operators, and `operator` is tagged as neither. Tag it with "
                "`lineax.positive_semidefinite_tag`, or use `Normal(CG(...))`."
            )
        operator = lx.linearise(operator)
        structure = Structure.of(operator.in_structure())
        signs = np.random.default_rng(0).choice([-1, 1], structure.size)
        unit_vector = signs / math.sqrt(max(structure.size, 1))
        image = operator.mv(structure.unravel(jnp.asarray(unit_vector)))
        operator = -operator if negated else operator
        return CGState(operator, _max_norm(image), eqxi.Static(negated))

    def compute(
        self, state: CGState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        return self._compute(state, vector, options, in_range=False)

    def compute_in_range(
        self, state: CGState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        """As `compute`, for a vector in the range of A: that is not projected."""
        return self._compute(state, vector, options, in_range=True)

    def _compute(self, state: CGState, vector, options, *, in_range: bool):
        check_options(self, options, ("preconditioner", "y0"))
        structure = Structure.of(state.operator.in_structure())
        y0 = resolve_y0(self, options, structure)
        preconditioner = resolve_preconditioner(
            self, self.preconditioner, options, structure, structure
        )
        if preconditioner is not None and not lx.is_positive_semidefinite(preconditioner):
            raise ValueError(
                "The preconditioner must be positive definite: tag the preconditioner "
                "of `CG` with `lineax.positive_semidefinite_tag`."
            )
        if state.negated.value:
            vector = tree_neg(vector)
        if self.well_posed:
            system = _System(state.operator, state.size, vector, preconditioner, y0)
            solution, result, num_steps = self._run(system)
        else:
            if preconditioner is not None or y0 is not None:
                raise ValueError(_not_well_posed_message)
            projected = self._run_projected(state, vector, in_range=in_range)
            solution, result, num_steps = projected
        stats = {"num_steps": num_steps, "max_steps": self.max_steps}
        return solution, result, stats

    def _run_projected(self, state: CGState, vector, *, in_range: bool):
        """A†b for any b: A p = A b gives p = A A†b, then A x = p is consistent.

        Rounding may leave a large part of x in the null space, so x is projected as well.
        The projections go down to rounding. A loop of three passes, so that `operator.mv`
        is traced no more often.
        """

        def one_pass(carry, projects):
            (previous, result), steps = carry
            # A projection takes no tolerance: its scale is free.
            unit = jnp.where(projects, _unit(previous), 1)
            previous = tree_scale(1 / unit, previous)
            zeros = jtu.tree_map(jnp.zeros_like, previous)
            system = _System(
                state.operator,
                state.size,
                vector=tree_where(projects, zeros, previous),
                y0=zeros,
                offset=tree_where(projects, previous, zeros),
                to_floor=projects,
            )
            solution, new_result, new_steps = self._run(system)
            return (
                (tree_scale(unit, solution), first_failure(result, new_result)),
                steps + new_steps,
            ), None

        passes = jnp.array([False, True] if in_range else [True, False, True])
        init = ((vector, lx.RESULTS.successful), jnp.array(0))
        ((solution, result), steps), _ = lax.scan(one_pass, init, passes)
        return solution, result, steps

    def _run(self, system: _System):
        size = sum(leaf.size for leaf in jtu.tree_leaves(system.vector))
        max_steps = 10 * size if self.max_steps is None else self.max_steps

        def keep_going(iterate):
            stopped = iterate.converged | iterate.resting | ~iterate.definite
            return (iterate.step < max_steps) & (iterate.gamma > 0) & ~stopped

        # Constants of the loop: what the residual may be, and the length of b.
        allowed, size_of_b = self._allowed(system.vector), _two_norm(system.vector)
        final = lax.while_loop(
            keep_going,
            lambda iterate: self._advance(system, allowed, size_of_b, iterate),
            _start(system),
        )
        if self._has_tolerance:
            truly = self._truly_met(system, final, allowed, size_of_b)
            final = dataclasses.replace(final, converged=final.converged & truly)
        result = self._result(final, final.step >= max_steps)
        return final.solution, result, final.step

    def _truly_met(self, system: _System, final: _Iterate, allowed, size_of_b):
        """Whether b − A x itself is as small as its update by recurrence says.

        The update drifts away where a singular A has no solution. Up to ten times the
        tolerance, or the rounding of A x, as long as that is small beside b.
        """
        image = system.operator.mv(tree_sub(final.solution, system.offset))
        residual = tree_sub(system.vector, image)
        within = self._norm_of_quotient(residual, allowed) <= 10
        unit, eps = final.unit, jnp.finfo(final.unit.dtype).eps
        size = _two_norm(tree_scale(1 / unit, residual))
        size_of_b = size_of_b / unit
        rounding = 10 * eps * (final.curvature * final.travelled + size_of_b)
        if system.to_floor is None:
            return within | (size <= jnp.minimum(rounding, jnp.sqrt(eps) * size_of_b))
        bound = jnp.minimum(rounding, jnp.sqrt(eps) * size_of_b)
        return within & ~system.to_floor | (
            size <= jnp.where(system.to_floor, 10 * rounding, bound)
        )

    def _advance(self, system: _System, allowed, size_of_b, iterate: _Iterate):
        residual = self._residual(system, iterate)
        unit = iterate.unit
        if system.offset is not None:
            first = (iterate.step == 0) & is_zero(system.vector)
            unit = jnp.where(first, _unit(residual), unit)
            residual = tree_where(first, tree_scale(1 / unit, residual), residual)
        preconditioner = system.preconditioner
        z = residual if preconditioner is None else preconditioner.mv(residual)
        gamma = _dot(z, residual).real
        beta = jnp.where(gamma > 0, gamma / iterate.gamma, 0)
        # The direction p is scaled to length one, <p, M^-1 p> = 1.
        tail = beta * iterate.length
        length = jnp.sqrt(gamma + tail**2)  # as <r, p_previous> = 0
        shrink = jnp.where(length > 0, 1 / length, 0)
        direction = tree_scale(shrink, tree_add(z, tree_scale(tail, iterate.direction)))
        image = system.operator.mv(direction)
        curvature = _dot(direction, image).real / unit
        largest = jnp.maximum(iterate.curvature, jnp.abs(curvature))
        if preconditioner is None:
            largest = jnp.maximum(largest, system.size.astype(unit.dtype) / unit)
        # A direction in the null space, up to rounding: no step along it. For a singular
        # A the limit is where rounding makes a direction of the range of one that is not.
        limit = (10 if system.to_floor is None else 1000) * jnp.finfo(largest.dtype).eps
        flat = jnp.abs(curvature) <= limit * largest
        scale = largest * iterate.travelled + size_of_b / unit
        resting = flat | self._at_floor(system, iterate, gamma, scale)
        definite = (curvature > 0) | resting
        step_size = jnp.where(definite & ~resting, gamma * shrink / curvature, 0)
        change = tree_scale(step_size, direction)
        solution = tree_add(iterate.solution, change)
        residual = tree_sub(residual, tree_scale(step_size, tree_scale(1 / unit, image)))
        residual_met = converged = jnp.array(False)
        if self._has_tolerance:
            residual_met = self._norm_of_quotient(residual, allowed) <= 1 / unit
            change_met = self._norm_of_quotient(change, self._allowed(solution)) <= 1
            converged = definite & residual_met & change_met
        if system.to_floor is not None:
            converged = jnp.where(system.to_floor, resting, converged)
        return _Iterate(
            solution=solution,
            residual=residual,
            unit=unit,
            direction=direction,
            gamma=gamma,
            length=length,
            curvature=largest,
            travelled=iterate.travelled + step_size,
            residual_met=residual_met,
            converged=converged,
            definite=definite,
            resting=resting,
            step=iterate.step + 1,
        )

    def _at_floor(self, system, iterate, gamma, scale) -> Bool[Array, ""]:
        """Whether the residual is the rounding of A x and b, and good enough.

        A step along it would go anywhere in the null space of a singular A.
        """
        if system.preconditioner is not None:
            return jnp.array(False)
        floor = jnp.sqrt(gamma) <= 10 * jnp.finfo(gamma.dtype).eps * scale
        enough = iterate.residual_met
        if system.to_floor is not None:
            enough = enough | system.to_floor
        return floor & enough

    def _residual(self, system: _System, iterate: _Iterate) -> PyTree[Array]:
        """The residual at the start of an iteration, recomputed if it is time."""
        every = self.stabilise_every
        if every is None and system.y0 is None:
            return iterate.residual
        step = eqxi.unvmap_max(iterate.step)  # one branch for a whole batch
        due = step == 0 if every is None else step % every == 0
        if system.y0 is None:
            due = due & (step > 0)

        def recompute():
            image = system.operator.mv(tree_sub(iterate.solution, system.offset))
            residual = tree_sub(system.vector, image)
            return tree_scale(1 / iterate.unit, residual)

        return lax.cond(eqxi.nonbatchable(due), recompute, lambda: iterate.residual)

    def _allowed(self, reference):
        """`atol + rtol |reference|`, entry by entry."""

        def leaf_allowed(leaf):
            magnitude = jnp.abs(leaf)
            rtol = jnp.asarray(self.rtol).astype(magnitude.dtype)
            return jnp.asarray(self.atol).astype(magnitude.dtype) + rtol * magnitude

        return jtu.tree_map(leaf_allowed, reference)

    def _norm_of_quotient(self, error, allowed):
        """`norm(error / allowed)`, in which 0 / 0 is no error."""

        def quotient(err, leaf_allowed):
            return jnp.where(err == 0, 0, jnp.abs(err) / leaf_allowed)

        return promoting(self.norm)(jtu.tree_map(quotient, error, allowed))

    def _result(self, final: _Iterate, exhausted) -> lx.RESULTS:
        results = lx.RESULTS
        met = final.converged | is_zero(final.residual)
        if not self._has_tolerance:
            out = results.successful
        elif self.max_steps is None:
            out = results.where(exhausted, results.singular, results.breakdown)
        else:
            out = results.where(exhausted, results.max_steps_reached, results.breakdown)
        out = results.where(final.definite, out, results.breakdown)
        out = results.where(met, results.successful, out)
        finite = all_finite((final.residual, final.solution))
        return results.where(finite, out, results.singular)

    def transpose(self, state: CGState, options: dict[str, Any]):
        transposed = CGState(state.operator.transpose(), state.size, state.negated)
        return transposed, self._map_preconditioner(options, lambda p: p.transpose())

    def conj(self, state: CGState, options: dict[str, Any]):
        conjugated = CGState(lx.conj(state.operator), state.size, state.negated)
        return conjugated, self._map_preconditioner(options, lx.conj)

    def _map_preconditioner(self, options: dict[str, Any], transform: Callable):
        preconditioner = options.get("preconditioner", self.preconditioner)
        if preconditioner is None:
            return {}
        return {"preconditioner": transform(preconditioner)}

    def assume_full_rank(self) -> bool:
        return self.well_posed


def _start(system: _System) -> _Iterate:
    vector = system.vector
    zeros = jtu.tree_map(jnp.zeros_like, vector)
    unit = _unit(vector)
    infinity = jnp.full_like(unit, jnp.inf)
    zero = jnp.zeros_like(unit)
    travelled = zero
    for begin in (system.y0, system.offset):
        travelled = travelled if begin is None else travelled + _two_norm(begin)
    return _Iterate(
        solution=zeros if system.y0 is None else system.y0,
        residual=tree_scale(1 / unit, vector),
        unit=unit,
        direction=zeros,
        gamma=infinity,
        length=zero,
        curvature=zero,
        travelled=travelled,
        residual_met=jnp.array(False),
        converged=jnp.array(False),
        definite=jnp.array(True),
        resting=jnp.array(False),
        step=jnp.array(0),
    )


def _unit(vector: PyTree[Array]) -> Real[Array, ""]:
    largest = _max_norm(vector)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
