from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Integer, PyTree, Real

from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_scale, tree_where
from ..._kernel.norms import two_norm
from ..options import resolve_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    derivative_solver,
    flat_mv,
    flat_system,
    KrylovState,
    OPTIONS,
    over,
    run,
    System,
)


class _Arnoldi(eqx.Module):
    """A P V = V H with orthonormal rows of V, and Q H = R triangular."""

    r_inverse: Inexact[Array, "restart restart"]
    basis: Inexact[Array, "restart+1 n"]  # those after `index` are left from before
    q: Inexact[Array, "restart+1 restart+1"]
    beta: Real[Array, ""]  # the residual norm at the beginning of the cycle
    size: Real[Array, ""]  # the largest column of H in this cycle
    index: Integer[Array, ""]

    def correction(self) -> Inexact[Array, " n"]:
        """V y for the y of the smallest residual |β e_1 − H y|."""
        y = _multiply(self.r_inverse, tree_scale(self.beta, self.q[:-1, 0]))
        return _multiply(y, self.basis[:-1])


class _Iterate(eqx.Module):
    solution: Inexact[Array, " n"]  # at the last check
    arnoldi: _Arnoldi
    cycle: Cycle


class GMRES(AbstractKrylovSolver):
    """Solves square nonsingular systems by generalised minimal residuals, GMRES(restart).

    One product with A and one with the preconditioner P a step, and one more of each a
    cycle of at most `restart` steps; memory for `restart + 1` vectors. P stands on the
    right, A P y = b and x = P y, so that the residual that is minimised is that of x. It
    is `successful` if b − A x, computed as such, has

        |b − A x| ≤ atol + rtol |b|.

    Each cycle begins from b − A x. The result is `stagnation` if three cycles in a row
    made it smaller by less than a hundredth (a longer `restart` or a preconditioner may
    help; A may be singular), or `max_steps_reached`. Unlike `lineax.GMRES`, which counts
    cycles and looks at the residual after a preconditioner on the left, it counts steps.

    Derivatives take A for nonsingular: one run a JVP, one a VJP, the latter with A^H and
    P^H.

    `options` (not differentiated):

    - `preconditioner`: P, a `lineax.AbstractLinearOperator` near A^-1; it wins over the
        field of that name.
    - `y0`: first guess of x, with the structure of x. Defaults to zeros. Primal only.

    `stats`: `num_steps`, `max_steps`, and with `history` also `residual_norms`.

    **Arguments:**

    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `max_steps`: the most steps; defaults to `None`, ten times the size of x.
    - `restart`: the most steps of a cycle, positive. Defaults to `20`.
    - `preconditioner`: see `options`. Defaults to `None`, the identity.
    - `derivative_rtol`, `history`, `progress`: as for [`pseudojvp.MINRES`][].

    **Raises:** `ValueError` at trace time for a non-square operator, a preconditioner of
    another shape, an unknown option, a negative tolerance, a `restart` below one.

    **Sources:** Saad & Schultz, *GMRES: a generalized minimal residual algorithm for
    solving nonsymmetric linear systems*, SIAM J. Sci. Stat. Comput. 7 (1986), section 3;
    Saad, *Iterative Methods for Sparse Linear Systems* (2003), algorithm 9.5 (P on the
    right).
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    max_steps: int | None = None
    restart: int = 20
    preconditioner: lx.AbstractLinearOperator | None = None
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def __check_init__(self):
        if self.restart < 1:
            raise ValueError(
                f"`GMRES(restart=...)` got {self.restart}. Pass a positive integer."
            )

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
            _start(system, min(self.restart, max(structure.size, 1))),
        )
        return system.solution(final.solution), result, stats

    def for_derivative(self) -> "GMRES":
        return derivative_solver(self)

    def assume_full_rank(self) -> bool:
        return True


def _start(system: System, restart: int) -> _Iterate:
    dtype, zero = system.guess.dtype, jnp.zeros_like(system.norm)
    arnoldi = _Arnoldi(
        r_inverse=jnp.zeros((restart, restart), dtype),
        basis=jnp.zeros((restart + 1, system.guess.size), dtype),
        q=jnp.eye(restart + 1, dtype=dtype),
        beta=zero,
        size=zero,
        index=jnp.array(0),
    )
    return _Iterate(system.guess, arnoldi, Cycle.start(zero.dtype))


def _advance(system: System, precondition, iterate: _Iterate) -> _Iterate:
    cycle, arnoldi, x = iterate.cycle, iterate.arnoldi, iterate.solution
    last = arnoldi.basis[arnoldi.index]
    direction = lax.cond(
        eqxi.unvmap_any(cycle.due),  # one branch for a whole batch
        lambda: jnp.where(cycle.due, arnoldi.correction(), last),
        lambda: last,
    )
    moved = precondition(direction)
    x = jnp.where(cycle.due, x + moved, x)
    image = system.mv(jnp.where(cycle.due, x, moved))

    residual = system.vector - image
    norm = two_norm(residual)
    column, rest = _orthogonalised(arnoldi, image)
    height = two_norm(rest)
    q, r_inverse, size, usable = _extended(arnoldi, column, height, system.eps)
    index = arnoldi.index + 1
    place = jnp.where(cycle.due, 0, index)
    row = jnp.where(cycle.due, over(norm, residual), over(height, rest))
    basis = arnoldi.basis.at[place].set(row)

    fresh = jnp.eye(len(q), dtype=q.dtype)
    checked = (
        _Arnoldi(0 * r_inverse, basis, fresh, norm, 0 * norm, jnp.array(0)),
        cycle.checked(
            norm,
            norm <= system.allowed,
            norm,
            shrink=0.99,
            patience=3,
            max_steps=system.max_steps,
        ),
    )
    estimate = arnoldi.beta * jnp.abs(q[index, 0])
    full = index >= len(r_inverse)
    ends = full | ~usable | ~(estimate > system.allowed)
    ends = ends | (height <= 10 * system.eps * size)
    stepped = (
        _Arnoldi(r_inverse, basis, q, arnoldi.beta, size, index),
        cycle.stepped(estimate, ends, max_steps=system.max_steps),
    )
    arnoldi, cycle = tree_where(cycle.due, checked, stepped)
    return _Iterate(x, arnoldi, cycle)


def _orthogonalised(arnoldi: _Arnoldi, image):
    """The coefficients of `image` in the basis and the rest, by Gram-Schmidt twice."""
    basis = arnoldi.basis
    known = jnp.arange(len(basis)) <= arnoldi.index
    column, rest = jnp.zeros(len(basis), basis.dtype), image
    for _ in range(2):
        part = jnp.where(known, _multiply(basis.conj(), rest), 0)
        column, rest = column + part, rest - _multiply(part, basis)
    return column, rest


def _extended(arnoldi: _Arnoldi, column, height, eps):
    """Q and R^-1 with one more column of H, its length, and whether R stays regular."""
    j, q = arnoldi.index, arnoldi.q
    size = jnp.maximum(arnoldi.size, jnp.hypot(two_norm(column), height))
    rotated = _multiply(q, column)  # height is not in it: q is the identity there
    a, b = rotated[j], height.astype(q.dtype)
    rho = jnp.hypot(jnp.abs(a), height)
    upper, lower = q[j], q[j + 1]
    new_upper = over(rho, a.conj() * upper + b * lower)
    new_lower = over(rho, a * lower - b * upper)
    q_next = q.at[j].set(new_upper).at[j + 1].set(new_lower)
    # R = [[R, t], [0, ρ]] has the inverse [[R^-1, −R^-1 t / ρ], [0, 1 / ρ]].
    usable = rho > 10 * eps * size
    before = jnp.arange(len(arnoldi.r_inverse)) < j
    t = jnp.where(before, rotated[:-1], 0)
    new = over(rho, -_multiply(arnoldi.r_inverse, t)).at[j].set(over(rho, 1 + 0 * a))
    r_inverse = arnoldi.r_inverse.at[:, j].set(jnp.where(usable, new, 0))
    return jnp.where(usable, q_next, q), r_inverse, size, usable


def _multiply(left, right):
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
