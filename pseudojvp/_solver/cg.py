from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Integer, PyTree, Real, Scalar
from lineax.internal import max_norm, tree_dot

from .._misc import (
    all_finite,
    check_options,
    check_square,
    is_zero,
    Structure,
    tree_add,
    tree_neg,
    tree_scale,
    tree_sub,
    tree_where,
)
from .preconditioner import check_tolerances, resolve_preconditioner, resolve_y0


_not_well_posed_message = (
    "`CG(well_posed=False)` takes neither a preconditioner nor `y0`: with either, CG "
    "ends in a solution that is not the minimum-norm one. Drop it, or pass "
    "`well_posed=True` if the operator is nonsingular."
)


class CGState(eqx.Module):
    """The operator, negated if it is negative (semi)definite."""

    operator: lx.AbstractLinearOperator
    negated: eqxi.Static


class _Iterate(eqx.Module):
    solution: PyTree[Array]
    residual: PyTree[Array]
    reference: PyTree[Array]  # the right-hand side that `rtol` refers to
    direction: PyTree[Array]
    step_size: Real[Array, ""]  # the last change of x is step_size * direction
    gamma: Real[Array, ""]  # <M r, r>
    length: Real[Array, ""]  # <p, M^-1 p>
    curvature: Real[Array, ""]  # the largest <p, A p> / <p, M^-1 p> so far
    definite: Bool[Array, ""]
    step: Integer[Array, ""]


class _System(eqx.Module):
    """A y = vector + A offset, and one iteration on it; `None` is zero or identity."""

    operator: lx.AbstractLinearOperator
    preconditioner: lx.AbstractLinearOperator | None
    vector: PyTree[Array]
    y0: PyTree[Array] | None
    offset: PyTree[Array] | None
    stabilise_every: int | None = eqx.field(static=True)

    def start(self) -> _Iterate:
        vector = self.vector
        zeros = jtu.tree_map(jnp.zeros_like, vector)
        infinity = jnp.full_like(tree_dot(vector, vector).real, jnp.inf)
        return _Iterate(
            solution=zeros if self.y0 is None else self.y0,
            residual=vector,
            reference=vector,
            direction=zeros,
            step_size=infinity,
            gamma=infinity,
            length=jnp.zeros_like(infinity),
            curvature=jnp.zeros_like(infinity),
            definite=jnp.array(True),
            step=jnp.array(0),
        )

    def advance(self, iterate: _Iterate) -> _Iterate:
        residual = self._residual(iterate)
        reference = iterate.reference
        if self.offset is not None:
            reference = tree_where(iterate.step == 0, residual, reference)
        preconditioner = self.preconditioner
        z = residual if preconditioner is None else preconditioner.mv(residual)
        gamma = tree_dot(z, residual).real
        beta = jnp.where(gamma > 0, gamma / iterate.gamma, 0)
        direction = tree_add(z, tree_scale(beta, iterate.direction))
        length = gamma + beta**2 * iterate.length  # as <r, p_previous> = 0
        image = self.operator.mv(direction)
        product = tree_dot(direction, image).real
        curvature = jnp.where(length > 0, product / length, product)
        largest = jnp.maximum(iterate.curvature, jnp.abs(curvature))
        # A direction in the null space, up to rounding: no step along it.
        flat = jnp.abs(curvature) <= 10 * jnp.finfo(largest.dtype).eps * largest
        upward = (curvature > 0) & ~flat
        alpha = jnp.where(upward, gamma / product, 0)
        return _Iterate(
            solution=tree_add(iterate.solution, tree_scale(alpha, direction)),
            residual=tree_sub(residual, tree_scale(alpha, image)),
            reference=reference,
            direction=direction,
            step_size=jnp.where(upward | flat, alpha, jnp.inf),
            gamma=gamma,
            length=length,
            curvature=largest,
            definite=upward | (flat & (gamma == 0)),
            step=iterate.step + 1,
        )

    def _residual(self, iterate: _Iterate) -> PyTree[Array]:
        """The residual at the start of an iteration, recomputed if it is time."""
        every = self.stabilise_every
        if every is None and self.y0 is None:
            return iterate.residual
        step = eqxi.unvmap_max(iterate.step)  # one branch for a whole batch
        due = step == 0 if every is None else step % every == 0
        if self.y0 is None:
            due = due & (step > 0)

        def recompute():
            image = self.operator.mv(tree_sub(iterate.solution, self.offset))
            return tree_sub(self.vector, image)

        return lax.cond(eqxi.nonbatchable(due), recompute, lambda: iterate.residual)


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
    then two runs, the first of which projects b onto the range, and a derivative with
    respect to A takes three applications. That mode takes neither preconditioner nor
    `y0`, with which CG would end in another solution.

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
    norm: Callable[[PyTree], Scalar] = max_norm
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
        return CGState(-operator if negated else operator, eqxi.Static(negated))

    def compute(
        self, state: CGState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
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
            solution, result, num_steps = self._run(
                state.operator, preconditioner, vector, y0, None
            )
        else:
            if preconditioner is not None or y0 is not None:
                raise ValueError(_not_well_posed_message)
            solution, result, num_steps = self._run_projected(state.operator, vector)
        stats = {"num_steps": num_steps, "max_steps": self.max_steps}
        return solution, result, stats

    def _run_projected(self, operator, vector):
        """A†b for any b: A p = A b gives p = A A†b, then A x = p is consistent.

        A loop of two passes, so that `operator.mv` is traced no more often.
        """

        def one_pass(carry, is_first):
            (previous, result), steps = carry
            zeros = jtu.tree_map(jnp.zeros_like, previous)
            vector = tree_where(is_first, zeros, previous)
            offset = tree_where(is_first, previous, zeros)
            solution, new_result, new_steps = self._run(
                operator, None, vector, zeros, offset
            )
            failed = result != lx.RESULTS.successful
            result = lx.RESULTS.where(failed, result, new_result)
            return ((solution, result), steps + new_steps), None

        passes = jnp.array([True, False])
        init = ((vector, lx.RESULTS.successful), jnp.array(0))
        ((solution, result), steps), _ = lax.scan(one_pass, init, passes)
        return solution, result, steps

    def _run(self, operator, preconditioner, vector, y0, offset):
        """CG on A y = vector + A offset from the guess `y0`; `None` is zero."""
        size = sum(leaf.size for leaf in jtu.tree_leaves(vector))
        max_steps = 10 * size if self.max_steps is None else self.max_steps
        system = _System(
            operator, preconditioner, vector, y0, offset, self.stabilise_every
        )

        def keep_going(iterate):
            going = (iterate.step < max_steps) & iterate.definite & (iterate.gamma > 0)
            return going & ~self._converged(iterate)

        advance = lambda iterate: system.advance(iterate)  # a method would be hashed
        final = lax.while_loop(keep_going, advance, system.start())
        result = self._result(final, final.step >= max_steps)
        return final.solution, result, final.step

    def _converged(self, iterate: _Iterate) -> Bool[Array, ""]:
        if not self._has_tolerance:
            return jnp.array(False)
        difference = tree_scale(iterate.step_size, iterate.direction)
        return (
            jnp.isfinite(iterate.step_size)
            & (self._error(iterate.residual, iterate.reference) <= 1)
            & (self._error(difference, iterate.solution) <= 1)
        )

    def _error(self, error, scale):
        """`norm(error / (atol + rtol |scale|))`, in which 0 / 0 is no error."""

        def quotient(err, ref):
            magnitude = jnp.abs(ref)
            rtol = jnp.asarray(self.rtol).astype(magnitude.dtype)
            allowed = jnp.asarray(self.atol).astype(magnitude.dtype) + rtol * magnitude
            return jnp.where(err == 0, 0, jnp.abs(err) / allowed)

        return self.norm(jtu.tree_map(quotient, error, scale))

    def _result(self, final: _Iterate, exhausted) -> lx.RESULTS:
        results = lx.RESULTS
        met = self._converged(final) | is_zero(final.residual)
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
        transposed = CGState(state.operator.transpose(), state.negated)
        return transposed, self._map_preconditioner(options, lambda p: p.transpose())

    def conj(self, state: CGState, options: dict[str, Any]):
        conjugated = CGState(lx.conj(state.operator), state.negated)
        return conjugated, self._map_preconditioner(options, lx.conj)

    def _map_preconditioner(self, options: dict[str, Any], transform: Callable):
        preconditioner = options.get("preconditioner", self.preconditioner)
        if preconditioner is None:
            return {}
        return {"preconditioner": transform(preconditioner)}

    def assume_full_rank(self) -> bool:
        return self.well_posed
