from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree, Real, Scalar

from ..._base.axes import scan
from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_scale
from .cg import CG, definite_preconditioner, definite_state
from .iteration import (
    AbstractKrylovSolver,
    divide,
    dot,
    flat_system,
    KrylovState,
    length,
    OPTIONS,
    report,
)


class LearnedCG(AbstractKrylovSolver):
    """Takes `num_steps` steps of conjugate gradients, with two learnable numbers a step.

    With the factor φ_k and the shift σ_k of step k, z = P r and γ = <z, r>,

        x ← x + φ_k γ / <p, A p> p,    r ← r − φ_k γ / <p, A p> A p,
        p ← z + (γ_new / γ + σ_k) p.

    Initially φ = 1 and σ = 0, which is [`pseudojvp.CG`][] to rounding. Both numbers are
    without unit: what is learned holds for any multiple of A and of b.

    *What there is to gain.* Nothing in the A-norm of the error, which CG minimises over
    its Krylov space. The residual may gain: [`pseudojvp.MINRES`][] minimises it. On the
    systems they were trained on, learned numbers come close to that minimum without
    storing another vector; on others they may be worse than CG. For Poisson's equation
    with 16 x 16 unknowns and random b, 8 steps leave 0.060 of |b|, CG 0.107, MINRES
    0.060.

    *What a solve reports.* Whatever the numbers, a solve is `successful` only if b − A x,
    computed explicitly, satisfies

        |b − A x| ≤ atol + rtol |b|,

    even if both tolerances are zero. Otherwise `result` is `max_steps_reached`,
    `breakdown` if a direction has no positive curvature (that step is not taken), or
    `singular` if the residual is not finite. Solve with `throw=False` to get the x of so
    few steps, for example as a first guess (`y0`).

    *Derivatives with respect to A and b* are those of the solution. `CG` solves for
    tangents and cotangents, to `derivative_rtol`, so they do not depend on the learned
    numbers: one run for a JVP, one for a VJP. After a solve that is not `successful`,
    derivatives with respect to A have an error like that of x.

    *To learn the numbers*, differentiate the steps themselves, in reverse or forward
    mode, with respect to the numbers, A, b, P and y0:

        x, result, stats = solver.compute(solver.init(operator, {}), vector, {})

    `factors` and `shifts` are the leaves to train; the page *Learned solvers*
    shows how, with Optax. Reverse mode stores four vectors a step. Through `linear_solve`
    these leaves are constants, and a tangent of them is an error, except with
    `adjoint=UnrolledAdjoint()`.

    Cost: `num_steps` products with A and with P, one for the size of A, one for b − A x,
    one more with `y0`. A is real symmetric or complex Hermitian, positive or negative
    definite, and tagged so.

    `options`: `preconditioner` and `y0`, as for [`pseudojvp.CG`][].

    `stats`: `num_steps`, `max_steps` (the same), and with `history` `residual_norms`.

    **Fields:** `factors` and `shifts`, arrays of shape `(num_steps,)` in the default
    floating dtype, initially ones and zeros.

    **Arguments:**

    - `num_steps`: the number of steps, positive.
    - `rtol`: `≥ 0`, relative tolerance. Defaults to `None`, 1e-10 (1e-5 in float32).
    - `atol`: `≥ 0`, absolute tolerance, in the units of b. Defaults to `0.0`.
    - `norm`: as for [`pseudojvp.CG`][]. Defaults to `None`, Euclidean norms.
    - `preconditioner`, by name: P, positive definite and tagged so. Defaults to `None`,
        the identity.
    - `derivative_rtol`: relative tolerance of tangent and adjoint solves, in Euclidean
        norms. Defaults to `None`, that of `CG`.
    - `history`: whether to keep |r| after each step. Defaults to `False`.
    - `progress`: prints a line after every `progress` steps. Defaults to `0`, never.

    **Raises:** `TypeError` for a `num_steps` that is not an integer; `ValueError` for a
    `num_steps` below one, and at trace time for a non-square operator, one without a
    definiteness tag, a preconditioner that is not declared positive definite or has
    another shape, an unknown option or a negative tolerance.

    **Sources:** Hestenes & Stiefel, *Methods of conjugate gradients for solving linear
    systems*, J. Res. NBS 49 (1952), (3:1), the iteration that is unrolled; Gregor &
    LeCun, *Learning fast approximations of sparse coding*, ICML (2010), for learning the
    numbers of an unrolled iteration.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    diagonal = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    A = lx.MatrixLinearOperator(diagonal, lx.positive_semidefinite_tag)
    solver = pj.LearnedCG(num_steps=2)  # before it has learned anything: CG
    x = pj.linear_solve(A, jnp.ones(3), solver, throw=False).value
    print(jnp.linalg.norm(jnp.ones(3) - A.mv(x)) < 0.5, solver.factors)  # True [1. 1.]
    ```
    """

    max_steps: int | None  # `num_steps`
    factors: Real[Array, " num_steps"]
    shifts: Real[Array, " num_steps"]
    rtol: Real[ArrayLike, ""] | None
    atol: Real[ArrayLike, ""]
    norm: Callable[[PyTree], Scalar] | None
    preconditioner: lx.AbstractLinearOperator | None
    derivative_rtol: Real[ArrayLike, ""] | None
    history: bool
    progress: int

    def __init__(
        self,
        num_steps: int,
        rtol: Real[ArrayLike, ""] | None = None,
        atol: Real[ArrayLike, ""] = 0.0,
        norm: Callable[[PyTree], Scalar] | None = None,
        *,
        preconditioner: lx.AbstractLinearOperator | None = None,
        derivative_rtol: Real[ArrayLike, ""] | None = None,
        history: bool = False,
        progress: int = 0,
    ):
        if isinstance(num_steps, bool) or not isinstance(num_steps, int):
            raise TypeError(
                f"`LearnedCG(num_steps=...)` got a {type(num_steps).__name__}. Pass a "
                "Python integer."
            )
        if num_steps < 1:
            raise ValueError(
                f"`LearnedCG(num_steps=...)` got {num_steps}. Pass a positive integer."
            )
        self.max_steps = num_steps
        self.factors, self.shifts = jnp.ones(num_steps), jnp.zeros(num_steps)
        self.rtol, self.atol, self.norm = rtol, atol, norm
        self.preconditioner = preconditioner
        self.derivative_rtol = derivative_rtol
        self.history, self.progress = history, progress

    @property
    def num_steps(self) -> int:
        return self.factors.shape[-1]

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> KrylovState:
        check_options(self, options, OPTIONS)
        check_square(self, operator)
        return definite_state(self, operator)

    def compute(
        self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        structure = Structure.of(state.operator.in_structure())
        operator = definite_preconditioner(self, options, structure)
        system = flat_system(self, state, vector, options)
        precondition = system.mapped(operator)
        x, residual = system.guess, system.vector
        if "y0" in options:
            residual = residual - system.mv(x)
        z = precondition(residual)

        def step(carry, numbers):
            x, r, p, gamma, sound = carry
            factor, shift, index = numbers
            image = system.mv(p)
            curvature = dot(p, image).real
            moves = curvature > 0
            size = jnp.where(moves, factor * divide(gamma, curvature), 0)
            x, r = x + tree_scale(size, p), r - tree_scale(size, image)
            z = precondition(r)
            new = dot(z, r).real
            p = z + tree_scale(divide(new, gamma) + shift, p)
            sound = sound & (moves | (gamma == 0))  # no curvature of no residual
            norm = None
            if self.history or self.progress > 0:
                norm = system.unit * jnp.sqrt(dot(r, r).real)
            if self.progress > 0:
                report(self, index, index + 1, norm)
            return (x, r, p, new, sound), norm if self.history else None

        gamma = dot(z, residual).real
        numbers = (
            self.factors.astype(gamma.dtype),
            self.shifts.astype(gamma.dtype),
            jnp.arange(self.num_steps),
        )
        carry = x, residual, z, gamma, jnp.array(True)
        (x, _, _, _, sound), norms = scan(step, carry, numbers)
        residual = system.vector - system.mv(x)
        norm = length(residual)
        met, _ = system.judge(residual, norm)
        results = lx.RESULTS
        result = results.where(sound, results.max_steps_reached, results.breakdown)
        result = results.where(jnp.isfinite(norm), result, results.singular)
        result = results.where(met, results.successful, result)
        stats = {"num_steps": jnp.array(self.num_steps), "max_steps": self.max_steps}
        if self.history:
            stats["residual_norms"] = norms
        return system.solution(x), result, stats

    def for_derivative(self) -> CG:
        """Returns CG to a tolerance, which does not use the learned numbers."""
        return CG(
            self.derivative_rtol,
            preconditioner=self.preconditioner,
            progress=self.progress,
        )

    def assume_full_rank(self) -> bool:
        return True
