"""`TruncatedAdjoint`: the solution exactly, its derivative by a few terms of a series."""

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import ArrayLike, Real

from .._base.checks import check_count
from .._base.structure import Structure
from .._base.tree import stop_gradient
from .._operator.adjoint import adjoint as adjoint_of
from .._solver import Neumann
from .adjoints import AbstractAdjoint
from .rows import nondifferentiable, Other, Problem


class TruncatedAdjoint(AbstractAdjoint):
    """Differentiates the solution with `num_terms + 1` terms of a Neumann series.

    The solver computes x. For a square A its derivative is

        ẋ = N (ḃ − Ȧ x),   N = scale Σ_{k=0}^{num_terms} (I − scale A)^k ≈ A⁻¹.

    In reverse mode λ = Nᴴx̄ is the cotangent of b, and −λ xᴴ that of A: `num_terms`
    products with Aᴴ instead of a solve. With K = `num_terms`, q = ‖I − scale A‖ and
    2-norms,

        ‖λ − A⁻ᴴx̄‖ ≤ qᴷ⁺¹ ‖A⁻ᴴx̄‖,

    and the cotangent of A has the same relative bound, because λ − A⁻ᴴx̄ is −(I − scale
    Aᴴ)ᴷ⁺¹ A⁻ᴴx̄. If A is positive definite with eigenvalues in [μ, L], the best scale is
    2 / (L + μ), with q = (κ − 1) / (κ + 1); for κ = 1000, 1 % takes 2300 terms. A short
    series gives the gradient of a loss whose x moves only along the well-conditioned
    directions.

    If A is tall or wide, of full rank, the series is that of the normal equations,

        N = scale Σ_k (I − scale AᴴA)^k Aᴴ ≈ A†,   0 < scale < 2 / ‖A‖²,

    with N Nᴴ for (AᴴA)⁻¹. A term takes two products, and q = max |1 − scale σ²| over the
    singular values σ of A. The second term of the cotangent of A, r gᴴ with g =
    (AᴴA)⁻¹x̄, then has an error of at most 3 qᴷ⁺¹ ‖r‖ ‖g‖.

    **Arguments:**

    - `num_terms`: K, the last index of the series, `≥ 0`, as in [`pseudojvp.Neumann`][].
    - `scale`: a real scalar in the units of A⁻¹, or of A⁻² if A is tall or wide;
        positive, or negative for a negative definite A, never zero. It is not
        differentiated. Defaults to `1.0`.

    **Derivatives:** of first order, forward and reverse; a second derivative is an error.
    If the last term is larger than the first, the series diverges, and the derivative is
    NaN, or an error under `throw=True`.

    **Raises:** `TypeError` or `ValueError` for a `num_terms` that is not a nonnegative
    integer, and for a `scale` that is not real, not a scalar, or known to be zero, NaN or
    Inf (a traced one makes the derivative NaN, or an error under `throw=True`);
    `ValueError` at trace time with a solver that allows any rank (`PivotedQR`, `SVD`,
    `LSMR()`), and for a second derivative.

    **Sources:** Lorraine, Vicol & Duvenaud, *Optimizing millions of hyperparameters by
    implicit differentiation*, AISTATS (2020), theorem 1 and algorithm 3; Shaban, Cheng,
    Hatch & Boots, *Truncated back-propagation for bilevel optimization*, AISTATS (2019),
    for the bound.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 0.5], [0.0, 1.0]]), jnp.array([2.0, 2.0])
    adjoint = pj.TruncatedAdjoint(num_terms=1)  # (I + (I − A)), here the whole of A⁻¹
    solve = lambda b: pj.linear_solve(A, b, adjoint=adjoint).value
    print(jax.jacobian(solve)(b).tolist())  # [[1.0, -0.5], [0.0, 1.0]]
    ```
    """

    num_terms: int = eqx.field(static=True)
    scale: Real[ArrayLike, ""] = 1.0

    def __check_init__(self):
        check_count(self.num_terms, "num_terms", "TruncatedAdjoint", least=0)
        check_scale(self.scale, "TruncatedAdjoint")

    def of_primal(self, solver):
        return solver

    def other(self, problem, constant, mixed):
        del mixed
        check_full_rank(problem, "TruncatedAdjoint")
        # The map of a wide A is that of its adjoint, B.
        operator = adjoint_of(constant) if problem.from_adjoint else constant
        scale = one_scale(self.scale, "TruncatedAdjoint")
        same = is_square(operator)
        preconditioner = None if same else adjoint_of(operator)
        solver = Neumann(self.num_terms, scale, preconditioner)
        state = stop_gradient(solver.init(operator, {}))
        solver = nondifferentiable(Neumann(self.num_terms, scale))
        return Other(solver, state, {}, "TruncatedAdjoint")


def check_scale(scale: Any, caller: str) -> None:
    """That it is real, and a number that a series can have where that is known."""
    number = isinstance(scale, int | float | np.number | np.ndarray | jax.Array)
    if not number or isinstance(scale, bool) or jnp.iscomplexobj(scale):
        raise TypeError(f"`{caller}(scale=...)` got {scale!r}. Pass a real number.")
    if isinstance(scale, jax.core.Tracer):
        return
    if not np.all(np.isfinite(scale) & (np.asarray(scale) != 0)):
        raise ValueError(
            f"`{caller}(scale=...)` got {scale}: the derivative would be zero or NaN. "
            "Pass a number near 2 / (L + μ) for eigenvalues from μ to L."
        )


def one_scale(scale: Any, caller: str) -> Real[ArrayLike, ""]:
    """A scalar; NaN, which no series hides, for a traced one that is zero."""
    if jnp.ndim(scale) != 0:
        raise ValueError(
            f"`{caller}(scale=...)` got an array of shape {jnp.shape(scale)}. Pass a "
            "scalar, or map over adjoints by `jax.vmap`."
        )
    if not isinstance(scale, jax.core.Tracer):
        return scale
    return jnp.where(scale != 0, scale, jnp.nan)


def is_square(operator: lx.AbstractLinearOperator) -> bool:
    """Whether b is of the structure of x."""
    spaces = operator.in_structure(), operator.out_structure()
    return Structure.of(spaces[0]) == Structure.of(spaces[1])


def check_full_rank(problem: Problem, name: str) -> None:
    if not problem.solver.assume_full_rank():
        raise ValueError(
            f"`{name}` got the solver `{type(problem.solver).__name__}`, which allows "
            "any rank, and takes A to have full rank. Use `LU()`, `QR()`, an iterative "
            "solver with `well_posed=True`, or `ImplicitAdjoint()`."
        )
