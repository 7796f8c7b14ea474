from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Integer, PyTree, Real, Scalar

from ..._base.axes import cond
from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_where
from ..options import check_positive, resolve_preconditioner
from .iteration import (
    AbstractKrylovSolver,
    Cycle,
    dot,
    flat_system,
    KrylovState,
    length,
    OPTIONS,
    over,
    run,
    System,
)


class _Arnoldi(eqx.Module):
    """A P V = V' H with orthonormal rows of V', H = [w; T] with T triangular.

    The smallest residual |β e_1 − H y| is β / |e|, where e = (1, −T^-T w).
    """

    triangle: Inexact[Array, "restart restart"]  # T; an identity from `index` on
    basis: Inexact[Array, "restart+1 n"]  # V'; those after `index` are from before
    e: Inexact[Array, "restart+1"]
    beta: Real[Array, ""]  # the residual norm at the beginning of the cycle
    size: Real[Array, ""]  # the largest column of H in this cycle
    index: Integer[Array, ""]
    moved: Inexact[Array, "restart n"] | None  # Z = P V, where P is not linear

    def correction(self) -> Inexact[Array, " n"]:
        """V y, or Z y, for the y of the smallest residual: T y = −β conj(e) / |e|²."""
        square = dot(self.e, self.e)
        t = self.e[1:].conj() * (-self.beta.astype(square.dtype) / square)
        y = jsl.solve_triangular(self.triangle, t)
        return _multiply(y, self.basis[:-1] if self.moved is None else self.moved)


class Iterate(eqx.Module):
    solution: Inexact[Array, " n"]  # at the last check
    arnoldi: _Arnoldi
    cycle: Cycle


class GMRES(AbstractKrylovSolver):
    """Solves square nonsingular systems by generalised minimal residuals, GMRES(restart).

    Cost: one product with A and one with the preconditioner P a step, one more of each
    for each cycle of at most `restart` steps, and two of A at the beginning; memory for
    `restart + 1` vectors. P is applied on the right, A P y = b and x = P y, so the
    minimised residual is that of x. The result is `successful` if b − A x, computed
    explicitly, satisfies

        |b − A x| ≤ atol + rtol |b|.

    Each cycle starts from b − A x. The result is `stagnation` if `stagnation_iters`
    cycles in a row each reduced the residual by less than one percent (a longer `restart`
    or a preconditioner may help; A may be singular), or `max_steps_reached`. Unlike
    `lineax.GMRES`, which counts cycles and checks the residual behind a left
    preconditioner, it counts steps. With both tolerances zero it runs `max_steps` steps
    and counts as successful.

    Derivatives take A to be nonsingular: one run for a JVP, one for a VJP, the latter
    with A^H and P^H.

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
    - `restart`: the largest number of steps in a cycle, positive. Defaults to `20`.
    - `stagnation_iters`: the solver gives up after this many cycles in a row without
        progress, positive. Defaults to `3`.
    - `preconditioner`, by name: see `options`. Defaults to `None`, the identity.
    - `derivative_rtol`, `history`, `progress`: as for [`pseudojvp.MINRES`][]. Default to
        `None`, `False` and `0`.

    **Raises:** `ValueError` at trace time for a non-square operator, a preconditioner of
    another shape, an unknown option, a negative tolerance, a `restart` or
    `stagnation_iters` below one.

    **Sources:** Saad & Schultz, *GMRES: a generalized minimal residual algorithm for
    solving nonsymmetric linear systems*, SIAM J. Sci. Stat. Comput. 7 (1986), section 3;
    Saad, *Iterative Methods for Sparse Linear Systems* (2003), algorithm 9.5 (P on the
    right); Ayachour, *A fast implementation for GMRES method*, J. Comput. Appl. Math. 159
    (2003), for using the triangular part of the Hessenberg matrix instead of rotations.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[3.0, 1.0], [0.0, 2.0]]), jnp.array([4.0, 2.0])
    solution = pj.linear_solve(A, b, pj.GMRES(rtol=1e-5))
    print(solution.value.round(2))  # [1. 1.]
    ```
    """

    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    norm: Callable[[PyTree], Scalar] | None = None
    max_steps: int | None = None
    restart: int = 20
    stagnation_iters: int = 3
    _: KW_ONLY
    preconditioner: lx.AbstractLinearOperator | None = None
    derivative_rtol: Real[ArrayLike, ""] | None = None
    history: bool = False
    progress: int = 0

    def __check_init__(self):
        check_positive(self, "restart", "stagnation_iters")

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
            lambda iterate: advance(system, precondition, iterate, self.stagnation_iters),
            start(system, self.restart),
        )
        return system.solution(final.solution), result, stats

    def assume_full_rank(self) -> bool:
        return True


def advance(
    system: System, precondition: Callable, iterate: Iterate, patience: int
) -> Iterate:
    """A check or a step; it keeps Z = P V if the iterate has a place for it."""
    cycle, arnoldi, x = iterate.cycle, iterate.arnoldi, iterate.solution
    due, index = cycle.due, arnoldi.index
    last = arnoldi.basis[index]
    direction = cond(
        eqxi.unvmap_any(due),  # one branch for a whole batch
        lambda: jnp.where(due, arnoldi.correction(), last),
        lambda: last,
    )
    if arnoldi.moved is None:
        moved = precondition(direction)
    else:  # the correction is one of P already, which may be dear
        moved = cond(
            eqxi.unvmap_all(due),
            lambda: direction,
            lambda: jnp.where(due, direction, precondition(direction)),
        )
    x = jnp.where(due, x + moved, x)
    image = system.mv(jnp.where(due, x, moved))

    # In a check, b − A x and the beginning of a cycle.
    column, rest = _orthogonalised(arnoldi, image)
    rest = jnp.where(due, system.vector - image, rest)
    norm = length(rest)  # or the entry of H below its diagonal
    checked = cycle.checked(
        norm,
        *system.judge(rest, norm),
        norm,
        shrink=0.99,
        patience=patience,
        max_steps=system.max_steps,
    )
    size = jnp.maximum(arnoldi.size, length(image))
    limit = 10 * system.eps * size
    below = jnp.maximum(norm, limit)
    along = jnp.dot(arnoldi.e, column, precision=lax.Precision.HIGHEST)
    square = dot(arnoldi.e, arnoldi.e).real
    # Whether H keeps its rank with this column.
    usable = (jnp.abs(along) > limit * jnp.sqrt(square)) | (norm > limit)
    new = jnp.where(usable, over(below, -along), 0)
    estimate = arnoldi.beta / jnp.sqrt(square + jnp.abs(new) ** 2)
    goal = jnp.maximum(system.goal(cycle), system.eps * arnoldi.beta)
    full = index + 1 >= len(arnoldi.triangle)
    ends = full | (norm <= limit) | ~(estimate > goal)
    stepped = cycle.stepped(estimate, ends, max_steps=system.max_steps)

    place = jnp.where(due, 0, index + 1)
    first = jnp.arange(len(arnoldi.e)) == 0
    diagonal = jnp.where(usable, below, 1).astype(x.dtype)
    column = column[1:].at[index].set(diagonal)
    e = arnoldi.e.at[index + 1].set(new)
    basis_of_x = arnoldi.moved
    if basis_of_x is not None:
        at = jnp.where(due, len(basis_of_x), index)
        basis_of_x = basis_of_x.at[at].set(moved, mode="drop")
    return Iterate(
        x,
        _Arnoldi(
            basis=arnoldi.basis.at[place].set(over(norm, rest)),
            triangle=jnp.where(
                due,
                jnp.eye(len(column), dtype=x.dtype),
                arnoldi.triangle.at[:, index].set(column),
            ),
            e=jnp.where(due, first.astype(x.dtype), e),
            beta=jnp.where(due, norm, arnoldi.beta),
            size=jnp.where(due, 0, size),
            index=place,
            moved=basis_of_x,
        ),
        tree_where(due, checked, stepped),
    )


def start(system: System, restart: int, *, flexible: bool = False) -> Iterate:
    size = system.guess.size
    restart = min(restart, max(size, 1))
    dtype, zero = system.guess.dtype, jnp.zeros_like(system.norm)
    arnoldi = _Arnoldi(
        basis=jnp.zeros((restart + 1, size), dtype),
        triangle=jnp.eye(restart, dtype=dtype),
        e=jnp.ones(restart + 1, dtype),
        beta=zero,
        size=zero,
        index=jnp.array(0),
        moved=jnp.zeros((restart, size), dtype) if flexible else None,
    )
    return Iterate(system.guess, arnoldi, system.start())


def _orthogonalised(arnoldi: _Arnoldi, image):
    """The coefficients of `image` in the basis and the rest, by Gram-Schmidt twice."""
    basis = arnoldi.basis
    known = jnp.arange(len(basis)) <= arnoldi.index
    column, rest = jnp.zeros(len(basis), basis.dtype), image
    for _ in range(2):
        part = jnp.where(known, _multiply(basis.conj(), rest), 0)
        column, rest = column + part, rest - _multiply(part, basis)
    return column, rest


def _multiply(left, right):
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
