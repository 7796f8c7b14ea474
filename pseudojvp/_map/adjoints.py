"""How a solve is differentiated: what an `adjoint=` makes of the problem."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, PyTree

from .._base.checks import check_count, check_solver
from .._base.tree import stop_gradient
from .._operator.over_reals import aids_over_reals
from .._solver import Unrolled
from .._solver.counterpart import counterpart
from .._solver.unrolled import hung
from .guard import Guard
from .rows import apply_saddle_point, Blocks, nondifferentiable, Other, Problem


class AbstractAdjoint(eqx.Module):
    """How a solve is differentiated; the `adjoint=` of [`pseudojvp.linear_solve`][].

    One of [`pseudojvp.ImplicitAdjoint`][], [`pseudojvp.UnrolledAdjoint`][],
    [`pseudojvp.TruncatedAdjoint`][] and [`pseudojvp.StochasticAdjoint`][].
    """

    # Whether the solver itself is differentiated, and not the equation it solves.
    unrolls: ClassVar[bool] = False

    @property
    def has_other(self) -> bool:
        """Whether derivatives are another solver's."""
        return True

    @abc.abstractmethod
    def of_primal(self, solver: lx.AbstractLinearSolver) -> lx.AbstractLinearSolver:
        """The solver of the primal."""

    @abc.abstractmethod
    def other(
        self, problem: Problem, constant: lx.AbstractLinearOperator, mixed: bool
    ) -> Other | None:
        """The solver of derivatives, if it is another.

        `constant` is the operator of `problem` without tangents, and `mixed` whether it
        is one over the reals.
        """

    def for_solve(
        self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]
    ) -> "AbstractAdjoint":
        """That of a front with these arguments, once in a batch of them."""
        del operator, vector
        return self


class ImplicitAdjoint(AbstractAdjoint):
    """Differentiates the solution x = A†b, whichever solver computed it.

        ẋ = A†(ḃ − Ȧ x) + …

    The default. Tangents and cotangents come from further solves, with the same solver
    and factors or with another solver. A solver that stops at a tolerance gives
    derivatives to that tolerance. A truncated solver (`CG(rtol=0, atol=0, max_steps=5)`)
    gives a derivative that is neither the exact one nor that of its iteration: the
    formula uses x₅ for A†b, and five steps on the right-hand side of the tangent for A†.
    To differentiate the iteration itself, use [`pseudojvp.UnrolledAdjoint`][].

    **Arguments:**

    - `solver`: the solver for tangents and cotangents of every order; any that
        [`pseudojvp.linear_solve`][] takes and that treats the shape and rank of A as the
        primal solver does. Its `atol` and `norm` are not used, because a cotangent has
        units of its own. Defaults to `None`: the primal solver, whose factors are reused.
    - `options`: run-time options of `solver`, such as `{"preconditioner": P}`, without a
        first guess. Defaults to `None`, none.

    **Derivatives:** forward and reverse, of every order, to the accuracy of `solver`. A
    JVP takes one application of `solver` and a VJP one if A has full rank, up to three
    each otherwise. Another `solver` does not change the formula: it takes A to have full
    rank if the primal solver does. What `solver` sets up (factors) is set up once, with
    the primal, and used by all derivatives. `stats` have no derivative: in reverse mode
    asking for one is an error at run time; in forward mode it is NaN for `residual_norms`
    and `lanczos`, and zero for the others.

    **Raises:** `TypeError` for a `solver` that is not one; `ValueError` for `options`
    without a solver, for a first guess, and for a solver that factorises a wide A from
    the other side than the primal solver does (`QR()` beside `PivotedQR()`).

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), theorem 4.3; `docs/
    adjoints.md`.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[2.0, 1.0], [0.0, 4.0]]), jnp.array([3.0, 4.0])
    adjoint = pj.ImplicitAdjoint(pj.LU())  # x by GMRES, its derivatives by LU
    solve = lambda b: pj.linear_solve(A, b, pj.GMRES(), adjoint=adjoint).value
    print(jax.jacobian(solve)(b).tolist())  # [[0.5, -0.125], [0.0, 0.25]]
    ```
    """

    solver: lx.AbstractLinearSolver | None = None
    options: dict[str, Any] | None = None

    @property
    def has_other(self) -> bool:
        return self.solver is not None

    def __check_init__(self):
        if self.solver is not None:
            check_solver(self.solver, "ImplicitAdjoint")
        elif self.options:
            raise ValueError(
                f"`ImplicitAdjoint(options=...)` got {sorted(self.options)} without a "
                "solver. Pass the solver that takes them, `ImplicitAdjoint(solver, "
                "options)`; those of the primal solver are used without."
            )
        if "y0" in (self.options or {}):
            raise ValueError(
                "`ImplicitAdjoint(options=...)` got a first guess `y0`. Tangents and "
                "cotangents have right-hand sides of their own, and start at zero. For "
                "adjoint solves that start at earlier ones use `warm_solve`."
            )

    def of_primal(self, solver):
        return solver

    def other(self, problem, constant, mixed):
        if self.solver is None:
            return None
        solver, options = counterpart(self.solver), self.options or {}
        if mixed:
            solver, options = aids_over_reals(solver, options)
        return other_of(problem, constant, solver, options, "")


class UnrolledAdjoint(AbstractAdjoint):
    """Differentiates the iteration: x is the iterate after the steps actually taken.

    For a truncated iteration that is a layer or an algorithm of its own: its gradient is
    right after every number of steps. Everything that enters the iteration has a
    derivative: A, b, the preconditioner, the first guess `y0`, `scale` of
    [`pseudojvp.Neumann`][], what a preconditioner function of [`pseudojvp.FlexibleCG`][]
    closes over, and the numbers that a learned solver learns. So has
    `stats["residual_norms"]` (with `history=True` of the solver).

    Solvers: [`pseudojvp.CG`][], [`pseudojvp.MINRES`][], [`pseudojvp.LSMR`][] and
    [`pseudojvp.FlexibleCG`][] with a fixed number of steps (`rtol=0, atol=0,
    max_steps=...`), [`pseudojvp.LearnedCG`][], and [`pseudojvp.Neumann`][] without
    tolerance. Each runs its plain recurrence: without the intermediate checks of b − A x,
    and without the last step of `MINRES()`, which removes the part of x in the null space
    of a singular A.

    The iteration stops early once the residual is no larger than its rounding, and the
    derivative is that of the steps taken, which `stats["num_steps"]` counts. That
    derivative has usually converged to the one of A†b. It has not if the Krylov space
    ended early (b is a combination of few eigenvectors, or eigenvalues coincide); use
    `ImplicitAdjoint()` for a solve that should converge. Except for Neumann's, the
    iterations are not differentiable if the residual is zero from the start (b = 0): the
    derivative is then NaN.

    **Arguments:**

    - `checkpoints`: how many times in the run the iterate is stored for the reverse pass,
        at least one. The reverse pass repeats the steps between two checkpoints, so it
        costs one more run. Memory: `checkpoints` iterates, and all steps of one interval,
        `max_steps / checkpoints` of them (about √N is best for N steps). Defaults to
        `None`: everything in each step is stored, five to ten vectors.

    **Derivatives:** forward and reverse, of every order, under `jax.vmap` and `jax.jit`.
    A reverse pass costs a product with Aᴴ for each step, and memory proportional to the
    number of steps.

    **Raises:** `ValueError` at trace time for a solver without steps (`LU`, `QR`, …), a
    solver with a tolerance, `progress` or `lanczos`, `CG(well_posed=False)`, a given
    `state`, or `checkpoints` below one.

    **Sources:** Griewank & Walther, *Evaluating Derivatives*, 2nd ed. (2008), chapters 3
    and 12, for the reverse pass and its checkpoints, here at one level; Christianson,
    *Reverse accumulation and attractive fixed points*, Optim. Methods Softw. 3 (1994),
    for its limit as the steps increase.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    def loss(scale):  # x = scale b + scale (I − scale A) b, for this `scale`
        solver, adjoint = pj.Neumann(num_terms=1, scale=scale), pj.UnrolledAdjoint()
        A, b = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.ones(2)
        return pj.linear_solve(A, b, solver, adjoint=adjoint).value.sum()

    print(jax.grad(loss)(0.5))  # 1.0
    ```
    """

    checkpoints: int | None = eqx.field(static=True, default=None)
    unrolls: ClassVar[bool] = True

    def __check_init__(self):
        if self.checkpoints is not None:
            check_count(self.checkpoints, "checkpoints", "UnrolledAdjoint")

    def of_primal(self, solver):
        return Unrolled(solver, self.checkpoints)

    def other(self, problem, constant, mixed):
        return None


def other_of(
    problem: Problem,
    constant: lx.AbstractLinearOperator,
    solver: lx.AbstractLinearSolver,
    options: dict[str, Any],
    first_order: str,
) -> Other:
    """`solver` with its state, a constant, or an error if it cannot take `problem`."""
    state = stop_gradient(solver.init(constant, options))
    options = stop_gradient(options)
    told = Problem.create(problem.operator, state, options, solver)
    if told.from_adjoint != problem.from_adjoint:
        shape = problem.operator.out_size(), problem.operator.in_size()
        raise ValueError(
            f"`ImplicitAdjoint(solver=...)` got `{type(solver).__name__}` beside "
            f"`{type(problem.solver).__name__}` and an operator of shape {shape}, which "
            "one of the two takes to have full rank, and the other not. Pass two solvers "
            "for the same rank."
        )
    return Other(nondifferentiable(told.solver), told.state, options, first_order)


def unrolled(
    problem: Problem, rhs: Blocks, wanted: Blocks, guard: Guard
) -> tuple[Blocks, lx.RESULTS, dict[str, Any]]:
    """The map by the steps of the solver, whose derivatives are JAX's own."""
    out, result, stats = apply_saddle_point(problem, rhs, wanted)
    out, result, stats = guard.judge(problem, rhs, out, result, stats)
    # A number of steps that does not meet a tolerance is what was asked for.
    results = lx.RESULTS
    holds = (result == results.successful) | (result == results.max_steps_reached)
    holds = jax.lax.stop_gradient(holds)
    solver, options = problem.solver, problem.options
    out = hung(out, holds, problem.operator, rhs, solver, options)
    return out, result, stats


def check_adjoint(adjoint: Any, caller: str) -> None:
    if not isinstance(adjoint, AbstractAdjoint):
        raise TypeError(
            f"`{caller}(adjoint=...)` got {adjoint!r}. Pass `ImplicitAdjoint()`, "
            "`UnrolledAdjoint()`, `TruncatedAdjoint(num_terms)` or "
            "`StochasticAdjoint(key)` of this library."
        )
