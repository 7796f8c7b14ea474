import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree, Real

from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_scale, tree_where
from ..._kernel.norms import two_norm
from ..._operator.adjoint import is_complex
from ..options import resolve_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    derivative_solver,
    divide,
    flat_mv,
    flat_system,
    OPTIONS,
    over,
    rotation,
    run,
    System,
)


class _HermitianTag:
    def __repr__(self):
        return "hermitian_tag"


hermitian_tag = _HermitianTag()

_not_well_posed_message = (
    "`MINRES(well_posed=False)` takes neither a preconditioner nor `y0`: with either, "
    "MINRES of a singular operator ends in a solution that is not the minimum-norm one. "
    "Drop it, or pass `well_posed=True` if the operator is nonsingular."
)


class MINRESState(eqx.Module):
    """The operator, and |A u| for a unit vector u: a lower bound of the norm of A."""

    operator: lx.AbstractLinearOperator
    size: Real[Array, ""]


class _Lanczos(eqx.Module):
    """q and v = P q are the last basis vectors, of length one: <q, v> = 1."""

    previous: Inexact[Array, " n"]  # the q before
    q: Inexact[Array, " n"]
    v: Inexact[Array, " n"]
    beta: Real[Array, ""]


class _Rotated(eqx.Module):
    """The QR factorisation of the tridiagonal matrix, as far as the next column needs."""

    c: Real[Array, ""]
    s: Real[Array, ""]
    d_bar: Real[Array, ""]
    epsilon: Real[Array, ""]
    phi_bar: Real[Array, ""]  # the residual norm, in the norm of P
    w: Inexact[Array, " n"]
    w_previous: Inexact[Array, " n"]


class _Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    null: Inexact[Array, " n"]  # r / |r| for r = b − A x of the last check
    overlap: Inexact[Array, ""]  # <null, x>
    ratio: Real[Array, ""]  # its length, over that in the norm of P
    size: Real[Array, ""]  # the largest |A v| so far: a lower bound of the norm of A
    peak: Real[Array, ""]  # the longest x so far
    fresh: Bool[Array, ""]  # no step since the last check
    least: Bool[Array, ""]  # the last cycle ended where A r seemed to be small
    shortened: Bool[Array, ""]  # no step since x lost its part along `null`
    lanczos: _Lanczos
    rotated: _Rotated
    cycle: Cycle


class MINRES(AbstractKrylovSolver):
    """Solves real symmetric or complex Hermitian systems by minimal residuals.

    A may be indefinite and singular. It carries `lineax.symmetric_tag` if it is real,
    `pseudojvp.hermitian_tag` if it is complex, or a tag of definiteness. One product
    with A a step, and two more in a run of one cycle: the residual that MINRES updates is
    replaced by b − A x before it counts, and the run begins another cycle if that is not
    small enough. For shifts, pass `A - sigma * lineax.IdentityLinearOperator(...)`.

    - `well_posed=False`, the default, returns A†b for every A and b. It is `successful`
        if, with r = b − A x,

            |r| ≤ atol + rtol |b|,  or  |A r| ≤ 10 rtol |A| |r|  (least squares),

        where |A| is an estimate from below. An inconsistent system has r in the null
        space, and x − r <r, x> / <r, r> is its minimum-norm solution: that takes two
        products more, for another check. Derivatives are those along
        constant rank: one run a application, three applications a JVP and a VJP. It takes
        neither preconditioner nor `y0`, which would leave a part in the null space.
    - `well_posed=True` takes A for nonsingular: only the first inequality counts, and
        derivatives take one run each. If A is singular after all, a consistent system
        gets A†b (without preconditioner and `y0`) but wrong derivatives, an inconsistent
        one `stagnation`.

    `options` (not differentiated):

    - `preconditioner`: a positive definite `lineax.AbstractLinearOperator` near |A|^-1;
        it wins over the field of that name.
    - `y0`: first guess of x, with the structure of x. Defaults to zeros. Primal only.

    `stats`: `num_steps`, `max_steps`, and with `history` also `residual_norms`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `max_steps`: the most steps; defaults to `None`, ten times the size of x.
    - `preconditioner`: see `options`. Defaults to `None`, the identity.
    - `well_posed`: see above. Defaults to `False`.
    - `derivative_rtol`: the tolerance of tangent and adjoint solves, relative to their
        own right-hand sides; `atol` does not apply to them. The smaller of it and `rtol`
        counts. Defaults to `None`, `rtol` alone.
    - `history`: whether to keep the norm of the residual after each step, as
        `stats["residual_norms"]` of shape `(max_steps,)`, NaN at the end. Defaults to
        `False`.
    - `progress`: print a line every so many steps. Defaults to `0`, never.

    **Raises:** `ValueError` at trace time for a non-square operator, one without a tag, a
    preconditioner that is not declared positive definite or of another shape, an unknown
    option, a negative tolerance.

    **Sources:** Paige & Saunders, *Solution of sparse indefinite systems of linear
    equations*, SIAM J. Numer. Anal. 12 (1975), section 6; Choi, Paige & Saunders,
    *MINRES-QLP*, SIAM J. Sci. Comput. 33 (2011), for the stopping rules; Liu, Milzarek &
    Roosta, *Obtaining pseudo-inverse solutions with MINRES* (2023), for x − r <r, x> /
    <r, r>.
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    max_steps: int | None = None
    preconditioner: lx.AbstractLinearOperator | None = None
    well_posed: bool = False
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def __check_init__(self):
        if not self.well_posed and self.preconditioner is not None:
            raise ValueError(_not_well_posed_message)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> MINRESState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        if not is_hermitian(operator):
            raise ValueError(
                "`MINRES()` may only be used for symmetric or Hermitian operators, and "
                "`operator` is tagged as neither. Tag it with `lineax.symmetric_tag` (if "
                "complex, with `pseudojvp.hermitian_tag`), or use `GMRES()` or `LSMR()`."
            )
        operator = lx.linearise(operator)
        structure = Structure.of(operator.in_structure())
        signs = np.random.default_rng(0).choice([-1, 1], structure.size)
        probe = signs / math.sqrt(max(structure.size, 1))
        image = operator.mv(structure.unravel(jnp.asarray(probe)))
        return MINRESState(operator, two_norm(structure.ravel(image)))

    def compute(
        self, state: MINRESState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        system = flat_system(self, state.operator, vector, options)
        structure = Structure.of(state.operator.in_structure())
        preconditioner = resolve_preconditioner(
            self, self.preconditioner, options, structure, structure
        )
        if preconditioner is not None and not lx.is_positive_semidefinite(preconditioner):
            raise ValueError(
                "The preconditioner must be positive definite: tag the preconditioner "
                "of `MINRES` with `lineax.positive_semidefinite_tag`."
            )
        if not self.well_posed and (preconditioner is not None or "y0" in options):
            raise ValueError(_not_well_posed_message)
        precondition = None if preconditioner is None else flat_mv(preconditioner)
        size = state.size if preconditioner is None else 0 * state.size
        size = size.astype(system.norm.dtype)
        final, result, stats = run(
            self,
            system,
            lambda iterate: self._advance(system, precondition, iterate),
            _start(system, size),
        )
        return system.solution(final.solution), result, stats

    def _advance(self, system: System, precondition, iterate: _Iterate) -> _Iterate:
        cycle, lanczos = iterate.cycle, iterate.lanczos
        image = system.mv(jnp.where(cycle.due, iterate.solution, lanczos.v))
        # The next basis vector; in a check, the first one of a new cycle.
        residual = system.vector - image
        y = image - tree_scale(lanczos.beta, lanczos.previous)
        alpha = jnp.vdot(lanczos.v, y).real
        y = jnp.where(cycle.due, residual, y - tree_scale(alpha, lanczos.q))
        z = y if precondition is None else precondition(y)
        beta = two_norm(y)
        if precondition is not None:
            beta = beta * jnp.sqrt(jnp.vdot(over(beta, y), over(beta, z)).real)
        q = over(beta, y)
        v = q if precondition is None else over(beta, z)
        checked = self._checked(system, iterate, residual, q, v, beta)
        stepped = self._stepped(system, iterate, q, v, alpha, beta)
        return tree_where(cycle.due, checked, stepped)

    def _checked(self, system: System, iterate, residual, q, v, beta) -> _Iterate:
        """r = b − A x; the beginning of a cycle."""
        norm = two_norm(residual)
        null = over(norm, residual)
        clean = self._is_clean(system, iterate)
        cycle = iterate.cycle.checked(
            norm,
            (norm <= system.allowed) & clean,
            norm,
            shrink=0.5,
            patience=jnp.where(clean, 2 if self.well_posed else 5, 0),
            max_steps=system.max_steps,
        )
        return _Iterate(
            solution=iterate.solution,
            null=null,
            overlap=jnp.vdot(null, iterate.solution),
            ratio=divide(norm, beta),
            size=iterate.size,
            peak=iterate.peak,
            fresh=jnp.array(True),
            least=iterate.least,
            shortened=iterate.shortened,
            lanczos=_Lanczos(jnp.zeros_like(q), q, v, jnp.zeros_like(beta)),
            rotated=_unrotated(q, beta),
            cycle=cycle,
        )

    def _stepped(self, system: System, iterate, q, v, alpha, beta) -> _Iterate:
        cycle, lanczos = iterate.cycle, iterate.lanczos
        rotated, step_size, root, gamma = _rotate(iterate.rotated, lanczos, alpha, beta)
        size = jnp.hypot(lanczos.beta, jnp.hypot(alpha, beta))
        size = jnp.maximum(iterate.size, size)
        rounding = 10 * system.eps * size
        # `root` is |A r| / |r| before this step; after a check, that of b − A x.
        least = root <= (rounding if self.well_posed else system.rtol * size)
        shortens = jnp.array(False)
        if not self.well_posed:
            least_so_far = iterate.fresh & (least | iterate.least)
            shortens = least_so_far & ~iterate.shortened
        # To shorten x by an r that is not quite in the null space costs a digit.
        finished = iterate.fresh & iterate.shortened & (root <= 10 * system.rtol * size)
        finished = finished & self._is_clean(system, iterate)
        moves = ~least & ~shortens & ~finished & (gamma > rounding)
        x = iterate.solution
        solution = jnp.where(moves, x + tree_scale(step_size, rotated.w), x)
        # x − r <r, x> / <r, r>: then another check, whether it still solves.
        shorter = x - iterate.overlap * iterate.null
        solution = jnp.where(shortens, shorter, solution)
        estimate = rotated.phi_bar * iterate.ratio
        ends = ~moves | ~(estimate > system.allowed) | (beta <= rounding)
        norm = jnp.where(moves, estimate, cycle.norm)
        cycle = cycle.stepped(norm, ends, max_steps=system.max_steps)
        cycle = tree_where(finished, iterate.cycle.finished(), cycle)
        return _Iterate(
            solution=solution,
            null=iterate.null,
            overlap=iterate.overlap,
            ratio=iterate.ratio,
            size=size,
            peak=jnp.maximum(iterate.peak, two_norm(solution)),
            fresh=jnp.array(False),
            least=least & ~iterate.fresh,
            shortened=shortens | (iterate.shortened & ~moves),
            lanczos=_Lanczos(lanczos.q, q, v, beta),
            rotated=rotated,
            cycle=cycle,
        )

    def _is_clean(self, system: System, iterate: _Iterate):
        """Whether the rounding of a longer x before left too little to matter.

        It lies in the null space in any direction, where no residual tells of it.
        """
        if self.well_posed:
            return jnp.array(True)
        rounding = system.eps * iterate.peak
        length = two_norm(iterate.solution) + divide(system.norm, iterate.size)
        return rounding <= 10 * jnp.maximum(system.rtol, 10 * system.eps) * length

    def for_derivative(self) -> "MINRES":
        return derivative_solver(self)

    def assume_full_rank(self) -> bool:
        return self.well_posed


def _start(system: System, size: Real[Array, ""]) -> _Iterate:
    zeros, zero = jnp.zeros_like(system.guess), jnp.zeros_like(system.norm)
    return _Iterate(
        solution=system.guess,
        null=zeros,
        overlap=jnp.zeros((), zeros.dtype),
        ratio=zero,
        size=size,
        peak=jnp.zeros_like(size),
        fresh=jnp.array(False),
        least=jnp.array(False),
        shortened=jnp.array(False),
        lanczos=_Lanczos(zeros, zeros, zeros, zero),
        rotated=_unrotated(zeros, zero),
        cycle=Cycle.start(zero.dtype),
    )


def _unrotated(q, phi_bar) -> _Rotated:
    zeros, zero = jnp.zeros_like(q), jnp.zeros_like(phi_bar)
    return _Rotated(zero - 1, zero, zero, zero, phi_bar, zeros, zeros)


def _rotate(rotated: _Rotated, lanczos: _Lanczos, alpha, beta):
    """One more column (β_k, α, β): the step along w, |A r| / |r| before, and γ."""
    c, s = rotated.c, rotated.s
    delta = c * rotated.d_bar + s * alpha
    g_bar = s * rotated.d_bar - c * alpha
    d_bar = -c * beta
    c, s_next, gamma = rotation(g_bar, beta)
    w = lanczos.v - tree_scale(rotated.epsilon, rotated.w_previous)
    w = over(gamma, w - tree_scale(delta, rotated.w))
    out = _Rotated(c, s_next, d_bar, s * beta, s_next * rotated.phi_bar, w, rotated.w)
    return out, c * rotated.phi_bar, jnp.hypot(g_bar, d_bar), gamma


def is_hermitian(operator: lx.AbstractLinearOperator) -> bool:
    tags = getattr(operator, "tags", frozenset())
    return (
        hermitian_tag in tags
        or lx.is_positive_semidefinite(operator)
        or lx.is_negative_semidefinite(operator)
        or (lx.is_symmetric(operator) and not is_complex(operator))
    )
