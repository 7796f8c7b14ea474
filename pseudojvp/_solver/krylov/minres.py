import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree, Real, Scalar

from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_scale, tree_where
from ..._operator.adjoint import is_complex, is_hermitian
from ..._operator.tags import advice
from .cg import definite_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    derivative_solver,
    divide,
    dot,
    flat_system,
    KrylovState,
    length,
    OPTIONS,
    over,
    rotation,
    run,
    System,
)
from .lanczos import Tridiagonal


_not_well_posed_message = (
    "`MINRES(well_posed=False)` takes neither a preconditioner nor `y0`: with either, "
    "MINRES of a singular operator ends in a solution that is not the minimum-norm one. "
    "Drop it, or pass `well_posed=True` if the operator is nonsingular."
)


class Lanczos(eqx.Module):
    """q and v = P q are the last basis vectors, of length one: <q, v> = 1."""

    previous: Inexact[Array, " n"]  # the q before
    q: Inexact[Array, " n"]
    v: Inexact[Array, " n"]
    beta: Real[Array, ""]


class Rotated(eqx.Module):
    """The QR factorisation of the tridiagonal matrix, as far as the next column needs."""

    c: Real[Array, ""]
    s: Real[Array, ""]
    d_bar: Real[Array, ""]
    epsilon: Real[Array, ""]
    phi_bar: Real[Array, ""]  # the residual norm, in the norm of P
    w: Inexact[Array, " n"]
    w_previous: Inexact[Array, " n"]


class _Null(eqx.Module):
    """What lies in the null space of A: multiples of the part of b that does.

    Vectors are polynomials of A times b, and the multiples their values at zero.
    """

    residual: Inexact[Array, " n"]  # r = b − A x of the last check
    share: Real[Array, ""]  # of x
    q: Real[Array, ""]
    q_previous: Real[Array, ""]
    w: Real[Array, ""]
    w_previous: Real[Array, ""]
    peak: Real[Array, ""]  # the longest x so far
    fresh: Bool[Array, ""]  # no step since the last check
    least: Bool[Array, ""]  # the last cycle ended where A r seemed to be small
    dropped: Bool[Array, ""]  # no step since x lost its part in the null space

    @classmethod
    def start(cls, zeros, zero) -> "_Null":
        false = jnp.array(False)
        return cls(zeros, zero, zero, zero, zero, zero, zero, false, false, false)


class Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    ratio: Real[Array, ""]  # |r| over its length in the norm of P
    size: Real[Array, ""]  # the largest |A v| so far: a lower bound of the norm of A
    null: _Null | None  # if A may be singular
    lanczos: Lanczos
    rotated: Rotated
    tridiagonal: Tridiagonal | None  # if it is kept
    cycle: Cycle


class MINRES(AbstractKrylovSolver):
    """Solves real symmetric or complex Hermitian systems by minimal residuals.

    A may be indefinite and singular. It carries `lineax.symmetric_tag` if it is real,
    `pseudojvp.hermitian_tag` if it is complex, or a definiteness tag. Cost: one product
    with A a step, and two more in a run of one cycle. The updated residual is replaced by
    b − A x before it counts, and another cycle starts if that is not small enough. For
    shifts, pass `A - sigma * lineax.IdentityLinearOperator(...)`.

    - `well_posed=False`, the default, returns A†b for every A and b. The result is
        `successful` if, with r = b − A x,

            |r| ≤ atol + rtol |b|,  or  |A r| ≤ 10 rtol |A| |r|  (least squares),

        where |A| is an estimate from below, or if A r is the rounding of r and at most
        rtol |A| |b|. If the system is inconsistent, r is in the null space, and the part
        of x in the null space is a multiple of r. It is removed, at the cost of two more
        products for another check. Derivatives are those along paths of constant rank: an
        application takes one run, a JVP and a VJP three applications each. This mode
        accepts neither preconditioner nor `y0`, since they would leave a part of x in the
        null space.

    - `well_posed=True` takes A to be nonsingular: only the first inequality counts, and
        derivatives take one run each. If A is singular after all, a consistent system
        gets A†b (without preconditioner and `y0`) but wrong derivatives, an inconsistent
        one `stagnation`.

    `options` (not differentiated):

    - `preconditioner`: a positive definite `lineax.AbstractLinearOperator` near |A|^-1;
        it overrides the field of that name.
    - `y0`: first guess of x, with the structure of x. Defaults to zeros. Used by the
        primal solve only.

    `stats`: `num_steps`, `max_steps`, with `history` also `residual_norms`, and with
    `lanczos` also `lanczos`.

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
    - `well_posed`: whether A is taken to be nonsingular, as above. Defaults to `False`.
    - `derivative_rtol`: the tolerance of tangent and adjoint solves, relative to their
        own right-hand sides; they do not use `atol`. The smaller of it and `rtol`
        applies. Defaults to `None`, `rtol` alone.
    - `history`: whether to keep the norm of the residual after each step, as
        `stats["residual_norms"]` of shape `(max_steps,)`, NaN after the last one.
        Defaults to `False`.
    - `progress`: prints a line after every `progress` steps. Defaults to `0`, never.
    - `lanczos`: whether to keep the tridiagonal matrix T = VᴴA V of the Lanczos process
        behind MINRES, as `stats["lanczos"]`: its diagonal `"alphas"`, of shape
        `(max_steps,)`, and its off-diagonal `"betas"`, of shape `(max_steps - 1,)`.
        Entries beyond the steps taken, or beyond the first cycle, are NaN. The first
        column of V is b (with `y0`, b − A y0) over its length. With a preconditioner P =
        L Lᴴ, T belongs to LᴴA L and Lᴴb. It has no derivative. Defaults to `False`. Costs
        nothing extra.

    **Raises:** `ValueError` at trace time for a non-square operator, one without a tag, a
    preconditioner that is not declared positive definite or of another shape, an unknown
    option, a negative tolerance.

    **Sources:** Paige & Saunders, *Solution of sparse indefinite systems of linear
    equations*, SIAM J. Numer. Anal. 12 (1975), section 6; Choi, Paige & Saunders,
    *MINRES-QLP*, SIAM J. Sci. Comput. 33 (2011), for the stopping rules; Liu, Milzarek &
    Roosta, *Obtaining pseudo-inverse solutions with MINRES* (2023), for the part of x
    along r.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    singular = jnp.diag(jnp.array([2.0, -1.0, 0.0]))
    A = lx.MatrixLinearOperator(singular, lx.symmetric_tag)
    solution = pj.linear_solve(A, jnp.array([2.0, 3.0, 0.0]), pj.MINRES())
    print(jnp.allclose(solution.value, jnp.array([1.0, -3.0, 0.0]), atol=1e-4))  # True
    ```
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    max_steps: int | None = None
    _: KW_ONLY
    preconditioner: lx.AbstractLinearOperator | None = None
    well_posed: bool = False
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0
    lanczos: bool = False

    def __check_init__(self):
        if not self.well_posed and self.preconditioner is not None:
            raise ValueError(_not_well_posed_message)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> KrylovState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        check_hermitian(self, operator)
        return KrylovState.create(operator)

    def compute(
        self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        system = flat_system(self, state, vector, options)
        structure = Structure.of(state.operator.in_structure())
        preconditioner = definite_preconditioner(self, options, structure)
        self.check_aids(preconditioner, options)
        precondition = None
        if preconditioner is not None:
            precondition = system.mapped(preconditioner)
        final, result, stats = run(
            self,
            system,
            lambda iterate: self.advance(system, precondition, iterate),
            self.start(system, 0.0 if precondition else 0.5),
        )
        if final.tridiagonal is not None:
            scale = system.scale if precondition is None else jnp.ones_like(system.scale)
            stats["lanczos"] = final.tridiagonal.stats(scale)
        return system.solution(final.solution), result, stats

    def check_aids(self, preconditioner: Any, options: dict[str, Any]) -> None:
        if not self.well_posed and (preconditioner is not None or "y0" in options):
            raise ValueError(_not_well_posed_message)

    def start(self, system: System, size: float) -> Iterate:
        zeros, zero = jnp.zeros_like(system.guess), jnp.zeros_like(system.norm)
        return Iterate(
            solution=system.guess,
            ratio=zero,
            size=zero + size,
            null=None if self.well_posed else _Null.start(zeros, zero),
            lanczos=Lanczos(zeros, zeros, zeros, zero),
            rotated=unrotated(zeros, zero),
            tridiagonal=(
                Tridiagonal.start(system.max_steps, zero) if self.lanczos else None
            ),
            cycle=system.start(),
        )

    def advance(self, system: System, precondition, iterate: Iterate) -> Iterate:
        cycle, lanczos = iterate.cycle, iterate.lanczos
        image = system.mv(jnp.where(cycle.due, iterate.solution, lanczos.v))
        # The next basis vector; in a check, the first one of a new cycle.
        residual = system.vector - image
        y = image - tree_scale(lanczos.beta, lanczos.previous)
        alpha = dot(lanczos.v, y).real
        y = y - tree_scale(alpha, lanczos.q)
        if not self.well_posed:
            # Where little is left of y, what is left of q in it is not little.
            y = y - dot(lanczos.q, y) * lanczos.q
        y = jnp.where(cycle.due, residual, y)
        z = y if precondition is None else precondition(y)
        beta = length(y)
        if precondition is not None:
            beta = beta * jnp.sqrt(dot(over(beta, y), over(beta, z)).real)
        q = over(beta, y)
        v = q if precondition is None else over(beta, z)
        checked = self.checked(system, iterate, residual, q, v, beta)
        stepped = self.stepped(system, iterate, q, v, alpha, beta)
        out = tree_where(cycle.due, checked, stepped)
        if iterate.tridiagonal is None:
            return out
        tridiagonal = iterate.tridiagonal.with_column(
            cycle.step, alpha, lanczos.beta, counts=~cycle.due, anew=lanczos.beta == 0
        )
        return dataclasses.replace(out, tridiagonal=tridiagonal)

    def checked(self, system: System, iterate, residual, q, v, beta) -> Iterate:
        """r = b − A x; the beginning of a cycle."""
        norm = length(residual)
        met, goal = system.judge(residual, norm)
        patience, null = 2, iterate.null
        if null is not None:
            clean = _is_clean(system, iterate, null)
            met, patience = met & clean, jnp.where(clean, 5, 0)
            null = dataclasses.replace(
                null,
                residual=residual,
                q=divide(1, beta),
                q_previous=0 * beta,
                w=0 * beta,
                w_previous=0 * beta,
                fresh=jnp.array(True),
            )
        cycle = iterate.cycle.checked(
            norm,
            met,
            goal,
            norm,
            shrink=0.5,
            patience=patience,
            max_steps=system.max_steps,
        )
        return Iterate(
            solution=iterate.solution,
            ratio=divide(norm, beta),
            size=iterate.size,
            null=null,
            lanczos=Lanczos(jnp.zeros_like(q), q, v, jnp.zeros_like(beta)),
            rotated=unrotated(q, beta),
            tridiagonal=None,
            cycle=cycle,
        )

    def stepped(self, system: System, iterate, q, v, alpha, beta) -> Iterate:
        cycle, lanczos, x = iterate.cycle, iterate.lanczos, iterate.solution
        rotated, step_size, root, gamma = rotate(iterate.rotated, lanczos, alpha, beta)
        size = jnp.sqrt(lanczos.beta**2 + alpha**2 + beta**2)
        size = jnp.maximum(iterate.size, size)
        rounding = 10 * system.eps * size
        moves = (gamma > rounding) & (root > rounding)
        null, drops, finished = iterate.null, jnp.array(False), jnp.array(False)
        if null is not None:
            least, drops, finished = _least_squares(system, iterate, null, root, size)
            moves = moves & ~(least | drops | finished)
            null = _next(iterate, null, alpha, beta, gamma)
            share = null.share + step_size * null.w
            x = jnp.where(drops, x - tree_scale(null.share, null.residual), x)
            null = dataclasses.replace(
                null,
                share=jnp.where(moves, share, jnp.where(drops, 0, null.share)),
                least=least & ~null.fresh,
                fresh=jnp.array(False),
                dropped=drops | (null.dropped & ~moves),
            )
        x = x + tree_scale(jnp.where(moves, step_size, 0), rotated.w)
        if null is not None:
            peak = jnp.maximum(null.peak, length(x))
            null = dataclasses.replace(null, peak=peak)
        estimate = rotated.phi_bar * iterate.ratio
        ends = ~moves | ~(estimate > system.goal(cycle)) | (beta <= rounding)
        norm = jnp.where(moves, estimate, cycle.norm)
        cycle = cycle.stepped(norm, ends, max_steps=system.max_steps)
        if null is not None:
            cycle = tree_where(finished, iterate.cycle.finished(), cycle)
        return Iterate(
            solution=x,
            ratio=iterate.ratio,
            size=size,
            null=null,
            lanczos=Lanczos(lanczos.q, q, v, beta),
            rotated=rotated,
            tridiagonal=None,
            cycle=cycle,
        )

    def for_derivative(self) -> "MINRES":
        """The solver of tangents and cotangents, which keeps no tridiagonal matrix."""
        return derivative_solver(dataclasses.replace(self, lanczos=False))

    def assume_full_rank(self) -> bool:
        return self.well_posed


def check_hermitian(solver: Any, operator: lx.AbstractLinearOperator) -> None:
    """That a tag says so."""
    if not is_hermitian(operator):
        real = not is_complex(operator)
        tag = "lineax.symmetric_tag" if real else "pseudojvp.hermitian_tag"
        raise ValueError(
            f"`{type(solver).__name__}()` may only be used for symmetric or Hermitian "
            "operators, and `operator` is tagged as neither. Tag it with "
            "`lineax.symmetric_tag` (if complex, with `pseudojvp.hermitian_tag`), or use "
            "`GMRES()` or `LSMR()`." + advice(operator, tag)
        )


def _least_squares(system: System, iterate: Iterate, null: _Null, root, size):
    """Whether A r is small, the part of x in the null space is to go, and all is done.

    `root` is |A r| / |r| before this step; after a check, that of b − A x. What is no
    more than its rounding counts as small, too, as long as that is small itself.
    """
    x, norm = iterate.solution, system.norm
    rounding = 10 * system.eps * (size * length(x) + norm)
    floor = size * jnp.minimum(rounding, system.rtol * norm)
    at_floor = null.fresh & (root * iterate.cycle.norm <= floor)
    least = root <= system.rtol * size
    small = null.fresh & (least | null.least | at_floor)
    # To drop a multiple of an r that is not quite in the null space costs a digit.
    still_small = null.fresh & ((root <= 10 * system.rtol * size) | at_floor)
    finished = still_small & null.dropped & _is_clean(system, iterate, null)
    return least, small & ~null.dropped, finished


def _is_clean(system: System, iterate: Iterate, null: _Null):
    """Whether the rounding of a longer x before left too little to matter.

    It lies in the null space in any direction, where no residual tells of it.
    """
    rounding = system.eps * null.peak
    size = length(iterate.solution) + divide(system.norm, iterate.size)
    return rounding <= 10 * jnp.maximum(system.rtol, 10 * system.eps) * size


def _next(iterate: Iterate, null: _Null, alpha, beta, gamma) -> _Null:
    """The parts in the null space of the next q and w."""
    lanczos, rotated = iterate.lanczos, iterate.rotated
    delta = rotated.c * rotated.d_bar + rotated.s * alpha
    w = null.q - rotated.epsilon * null.w_previous - delta * null.w
    q = -lanczos.beta * null.q_previous - alpha * null.q
    return dataclasses.replace(
        null,
        q=divide(q, beta),
        q_previous=null.q,
        w=divide(w, gamma),
        w_previous=null.w,
    )


def unrotated(q, phi_bar) -> Rotated:
    zeros, zero = jnp.zeros_like(q), jnp.zeros_like(phi_bar)
    return Rotated(zero - 1, zero, zero, zero, phi_bar, zeros, zeros)


def rotate(rotated: Rotated, lanczos: Lanczos, alpha, beta):
    """One more column (β_k, α, β): the step along w, |A r| / |r| before, and γ."""
    c, s = rotated.c, rotated.s
    delta = c * rotated.d_bar + s * alpha
    g_bar = s * rotated.d_bar - c * alpha
    d_bar = -c * beta
    c, s_next, gamma = rotation(g_bar, beta)
    w = lanczos.v - tree_scale(rotated.epsilon, rotated.w_previous)
    w = over(gamma, w - tree_scale(delta, rotated.w))
    out = Rotated(c, s_next, d_bar, s * beta, s_next * rotated.phi_bar, w, rotated.w)
    return out, c * rotated.phi_bar, jnp.sqrt(g_bar**2 + d_bar**2), gamma
