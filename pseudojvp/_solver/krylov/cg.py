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
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real, Scalar

from ..._base.checks import check_options, check_square
from ..._base.results import first_failure
from ..._base.structure import Structure
from ..._base.tree import all_finite, is_zero, tree_neg, tree_scale, tree_where
from ..._kernel.norms import two_norm
from ..options import resolve_preconditioner, resolve_y0
from .cg_iteration import advance, Iterate, start, System, truly_met, unit_of
from .iteration import AbstractKrylovSolver, derivative_solver, loop, OPTIONS, statistics
from .tolerance import Tolerance


_not_well_posed_message = (
    "`CG(well_posed=False)` takes neither a preconditioner nor `y0`: with either, CG "
    "ends in a solution that is not the minimum-norm one. Drop it, or pass "
    "`well_posed=True` if the operator is nonsingular."
)


class CGState(eqx.Module):
    """The operator, negated if it is negative (semi)definite.

    `size` is |A u| for a unit vector u: a lower bound of the norm of A.
    """

    operator: lx.AbstractLinearOperator
    size: Real[Array, ""]
    negated: eqxi.Static


class CG(AbstractKrylovSolver):
    """Solves positive or negative definite systems by conjugate gradients.

    Real symmetric or complex Hermitian; `operator` carries
    `lineax.positive_semidefinite_tag` or `lineax.negative_semidefinite_tag`. Only
    `operator.mv` is called, once an iteration and once more every `stabilise_every`.

    It stops when both the residual and the last change of x are within the tolerance,

        |b − A x| ≤ atol + rtol |b|,    |x − x_previous| ≤ atol + rtol |x|,

    Euclidean norms, or quotients of entries if `norm` is given. Otherwise the result says
    so: `max_steps_reached` (or `singular`, as in lineax, if `max_steps` is `None`),
    `breakdown` if a direction of non-positive curvature shows that the operator is not
    definite. With both tolerances zero it runs `max_steps` iterations, and that
    truncation is what was asked for.

    If A is singular and b lies in its range, the solution without preconditioner and
    first guess is the minimum-norm one, A†b. Derivatives however take A for nonsingular
    (one inner solve a JVP, one a VJP) unless `well_posed=False`, which returns A†b for
    *every* b and differentiates it along paths of constant rank. An application of A† is
    then three runs, the first and the last of which project b and x onto the range, and a
    derivative with respect to A takes three applications. Singular values below 1000 eps
    times the largest count as zero, and the error is eps κ². Its residual is that of the
    part of b within the range, and may always be 10 eps |b|. That mode takes neither
    preconditioner nor `y0`, with which CG would end in another solution.

    `options` (not differentiated, as the solution does not depend on them):

    - `preconditioner`: a positive definite `lineax.AbstractLinearOperator` near A^-1;
        it wins over the field of that name.
    - `y0`: first guess of x, a vector of the structure of x. Defaults to zeros. Used by
        the primal solve only.

    `stats["num_steps"]` counts iterations, `stats["max_steps"]` is the field, and with
    `history` there is `stats["residual_norms"]`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `norm`: from a vector to a scalar. If given, `norm` of the residual, each entry
        divided by `atol + rtol |entry of b|`, has to be at most one, and that of the
        change likewise: the rule of `lineax.CG`, whose default is
        `lineax.internal.max_norm`. Defaults to `None`, Euclidean norms as above.
    - `stabilise_every`: the residual is recomputed as b − A x this often (iterations)
        against drift; `None` for never. Defaults to `10`.
    - `max_steps`: the most iterations; defaults to `None`, ten times the size of x.
    - `preconditioner`: see `options`. Defaults to `None`, the identity.
    - `well_posed`: whether A may be taken for nonsingular. Defaults to `True`.
    - `derivative_rtol`: as for [`pseudojvp.MINRES`][]: the tolerance of tangent and
        adjoint solves, in Euclidean norms and relative to their own right-hand sides.
    - `history`: whether to keep the norm of the residual after each iteration, as
        `stats["residual_norms"]` of shape `(max_steps,)`, NaN at the end; with
        `well_posed=False` those of the run between the projections. Defaults to `False`.
    - `progress`: print a line every so many iterations. Defaults to `0`, never.

    **Raises:** `ValueError` at trace time for a non-square operator, one without a
    definiteness tag, a preconditioner that is not declared positive definite or of
    another shape, an unknown option, a negative tolerance, or no stopping rule at all.

    **Sources:** Hestenes & Stiefel, *Methods of conjugate gradients for solving linear
    systems*, J. Res. NBS 49 (1952), (3:1); Kaasschieter, *Preconditioned conjugate
    gradients for solving singular systems*, J. Comput. Appl. Math. 24 (1988).
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    stabilise_every: int | None = 10
    max_steps: int | None = None
    preconditioner: lx.AbstractLinearOperator | None = None
    well_posed: bool = True
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def __check_init__(self):
        if not self._has_tolerance and self.max_steps is None:
            raise ValueError(
                "`CG(rtol=0, atol=0, max_steps=None)` would never stop. Must specify "
                "`rtol`, `atol`, or `max_steps` (or some combination of all three)."
            )
        if self.stabilise_every is not None and self.stabilise_every < 1:
            raise ValueError(
                f"`CG(stabilise_every=...)` got {self.stabilise_every}; it must be "
                "positive."
            )
        if not self.well_posed and self.preconditioner is not None:
            raise ValueError(_not_well_posed_message)

    @property
    def _has_tolerance(self) -> bool:
        given = (self.rtol, self.atol)
        return not all(isinstance(tol, int | float) and tol == 0 for tol in given)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> CGState:
        check_options(self, options, OPTIONS)
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
        return CGState(operator, two_norm(image), eqxi.Static(negated))

    def compute(
        self, state: CGState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        return self._compute(state, vector, options, None)

    def compute_image(
        self,
        state: CGState,
        vector: PyTree[Array],
        source: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        """As `compute`, for `vector` = B `source`, A = B Bᴴ: that is not projected."""
        return self._compute(state, vector, options, source)

    def _compute(self, state: CGState, vector, options, source):
        check_options(self, options, OPTIONS)
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
            system = self._system(state, vector, preconditioner=preconditioner, y0=y0)
            solution, result, num_steps, norms = self._run(system)
        else:
            if preconditioner is not None or y0 is not None:
                raise ValueError(_not_well_posed_message)
            projected = self._run_projected(state, vector, source)
            solution, result, num_steps, norms = projected
        return solution, result, statistics(self, num_steps, norms)

    def _system(self, state: CGState, vector, **kwargs) -> System:
        tolerance = None
        if self._has_tolerance:
            tolerance = Tolerance(self.rtol, self.atol, self.norm)
        return System.create(
            state.operator,
            state.size,
            vector,
            tolerance=tolerance,
            stabilise_every=self.stabilise_every,
            **kwargs,
        )

    def _run_projected(self, state: CGState, vector, source):
        """A†b for any b: A p = A b gives p = A A†b, then A x = p is consistent.

        Rounding may leave a large part of x in the null space, so x is projected as well.
        The projections go down to rounding. A loop of three passes, so that `operator.mv`
        is traced no more often; two for the image of a `source`, which is in the range.

        What is left of b, or of the source, may be little. Then its rounding is a large
        part of it, outside of the range, and no residual is asked to be smaller.
        """
        in_range = source is not None
        known = two_norm(source if in_range else vector)
        if in_range:  # ‖B‖ from |A u|, for u a unit vector of random signs
            root = math.sqrt(math.sqrt(max(state.operator.in_size(), 1)))
            known = root * jnp.sqrt(state.size).astype(known.dtype) * known
        rounding = 10 * jnp.finfo(known.dtype).eps * known

        def one_pass(carry, projects):
            (previous, result), steps = carry
            # A projection takes no tolerance: its scale is free.
            unit = jnp.where(projects, unit_of(previous), 1)
            previous = tree_scale(1 / unit, previous)
            zeros = jtu.tree_map(jnp.zeros_like, previous)
            system = self._system(
                state,
                tree_where(projects, zeros, previous),
                y0=zeros,
                offset=tree_where(projects, previous, zeros),
                to_floor=projects,
                rounding=jnp.where(projects, 0, rounding),
            )
            solution, new_result, new_steps, norms = self._run(system)
            out = (tree_scale(unit, solution), first_failure(result, new_result))
            return (out, steps + new_steps), norms

        passes = jnp.array([False, True] if in_range else [True, False, True])
        init = ((vector, lx.RESULTS.successful), jnp.array(0))
        ((solution, result), steps), norms = lax.scan(one_pass, init, passes)
        norms = None if norms is None else norms[0 if in_range else 1]
        return solution, result, steps, norms

    def _run(self, system: System):
        size = sum(leaf.size for leaf in jtu.tree_leaves(system.vector))
        max_steps = 10 * size if self.max_steps is None else self.max_steps

        def observe(iterate):
            return iterate.step, two_norm(iterate.residual) * iterate.unit

        final, norms = loop(
            self,
            lambda iterate: (iterate.step < max_steps) & iterate.goes_on,
            lambda iterate: advance(system, iterate),
            start(system),
            observe,
            max_steps,
        )
        if self._has_tolerance:
            converged = final.converged & truly_met(system, final)
            final = dataclasses.replace(final, converged=converged)
        result = self._result(system, final, final.step >= max_steps)
        return final.solution, result, final.step, norms

    def _result(self, system: System, final: Iterate, exhausted) -> lx.RESULTS:
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
        # The size, too: b = 0 takes no product with A.
        seen = final.residual, final.solution, final.gamma, system.size
        finite = all_finite(seen)
        return results.where(finite, out, results.singular)

    def for_derivative(self) -> "CG":
        if not self._has_tolerance:  # a truncation, in the derivatives as well
            return dataclasses.replace(self, history=False)
        return derivative_solver(self, norm=None)

    def assume_full_rank(self) -> bool:
        return self.well_posed
