from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Real

from .._base.auto_axes import with_auto_axes
from .._base.axes import fori_loop, scan
from .._base.checks import check_count
from .._base.structure import Structure
from .operator import (
    AbstractPreconditioner,
    check_definite,
    constant_square_operator,
    symmetry_tags,
    unit_probe,
)


_LANCZOS_STEPS = 10


class ChebyshevPreconditioner(AbstractPreconditioner):
    """p(A) with p near 1/λ for λ in [lower, upper]."""

    operator: lx.AbstractLinearOperator
    lower: Real[Array, ""]
    upper: Real[Array, ""]
    degree: int = eqx.field(static=True)

    def apply(self, flat: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return chebyshev_iteration(
            lambda vector: _flat_mv(self.operator, self.structure, vector),
            flat,
            self.lower,
            self.upper,
            self.degree,
        )

    def transpose(self) -> "ChebyshevPreconditioner":
        return self._of(self.operator.transpose())

    def conj(self) -> "ChebyshevPreconditioner":
        return self._of(lx.conj(self.operator))

    def _of(self, operator) -> "ChebyshevPreconditioner":
        return ChebyshevPreconditioner(
            self.structure, self.tags, operator, self.lower, self.upper, self.degree
        )


def chebyshev(
    operator: Any,
    degree: int = 4,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
) -> lx.AbstractLinearOperator:
    """Returns a Chebyshev polynomial in A that approximates A^-1 on [lower, upper].

        P = p(A),   1 − λ p(λ) = T_m((θ − λ) / δ) / T_m(θ / δ),   m = degree + 1,

    where θ is the middle of the interval, δ half its length, and T_m the Chebyshev
    polynomial. p is positive on (0, upper]. So P is positive definite if no eigenvalue of
    A is above `upper`, even if some are below `lower`.

    It needs no entries of A, no triangular solves and no inner products, so it suits GPUs
    and matrix-free A. With the default `lower` the number of iterations falls by a factor
    of about m. Each iteration takes m products with A instead of one, so the number of
    products is about the same as without P, and all other costs of the solver fall by a
    factor of m.

    Cost: ten products with A if `upper` is not given; then `degree` products an
    application.

    **Arguments:**

    - `operator`: A, positive semidefinite and tagged so; only its products are used.
    - `degree`: the degree of p, at least 0. Defaults to `4`.
    - `lower`: a scalar between 0 and `upper`, in the units of A. Defaults to `None`,
        `upper / (m + 1)²`; a smaller value gains little.
    - `upper`: a bound on the largest eigenvalue, a scalar in the units of A. Defaults to
        `None`, an estimate: the largest Ritz value of ten Lanczos steps plus the norm of
        their residual, times 1.01. In all our tests this was above the largest
        eigenvalue, but that is not proved: pass a bound (the largest row sum of |A|) if
        you have one.

    **Returns:** a lineax operator, tagged positive definite (which it is if `upper` is a
    bound).

    **Derivatives:** none; a preconditioner is a constant.

    **Raises:** `ValueError` if A is not square or not tagged, if `degree < 0`, or if
    bounds known while JAX traces do not satisfy `0 < lower < upper`.

    **Sources:** Saad, *Iterative Methods for Sparse Linear Systems*, 2nd ed. (2003),
    section 12.3.2; Zhou, Saad, Tiago & Chelikowsky, *Self-consistent-field calculations
    using Chebyshev-filtered subspace iteration*, J. Comput. Phys. 219 (2006), algorithm
    4.4, for the bound.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    diagonal = jnp.diag(jnp.linspace(1.0, 9.0, 50))
    A = lx.MatrixLinearOperator(diagonal, lx.positive_semidefinite_tag)
    P = pj.chebyshev(A, degree=4, lower=1.0, upper=9.0)
    print(pj.condition_number(A, P) < 1.2)  # True
    ```
    """
    check_count(degree, "degree", "chebyshev", least=0)
    operator, structure = constant_square_operator(operator, "chebyshev")
    check_definite(operator, "chebyshev")
    dtype = jax.eval_shape(structure.ravel, operator.in_structure()).dtype
    real = jnp.finfo(dtype).dtype
    if upper is None:
        bound = with_auto_axes(_upper_bound)
        upper = jnp.asarray(bound(operator, structure, dtype))
    if lower is None:
        lower = upper / (degree + 2) ** 2
    _check_bounds(lower, upper)
    lower, upper = (
        lax.stop_gradient(jnp.asarray(bound).astype(real)) for bound in (lower, upper)
    )
    return ChebyshevPreconditioner(
        structure, symmetry_tags(operator), operator, lower, upper, degree
    )


def chebyshev_iteration(
    mv, flat: Inexact[Array, " n"], lower, upper, degree: int
) -> Inexact[Array, " n"]:
    """`degree + 1` steps of Chebyshev iteration for A x = v from x = 0."""
    middle, half = (upper + lower) / 2, (upper - lower) / 2
    ratio = middle / half
    scale = lambda scalar, vector: scalar.astype(vector.dtype) * vector

    def step(_, carry):
        solution, residual, direction, rho = carry
        residual = residual - mv(direction)
        new_rho = 1 / (2 * ratio - rho)
        direction = scale(new_rho * rho, direction) + scale(2 * new_rho / half, residual)
        return solution + direction, residual, direction, new_rho

    first = scale(1 / middle, flat)
    solution, *_ = fori_loop(0, degree, step, (first, flat, first, 1 / ratio))
    return solution


def _upper_bound(operator, structure: Structure, dtype) -> Real[Array, ""]:
    """The largest Ritz value of some Lanczos steps, plus the norm of their residual."""
    steps = min(_LANCZOS_STEPS, structure.size)
    probe = unit_probe(structure.size, dtype)

    def step(carry, _):
        vector, previous, beta = carry
        image = _flat_mv(operator, structure, vector) - beta.astype(dtype) * previous
        alpha = jnp.vdot(vector, image).real
        image = image - alpha.astype(dtype) * vector
        new_beta = jnp.linalg.norm(image)
        inverse = jnp.where(new_beta > 0, 1 / jnp.where(new_beta > 0, new_beta, 1), 0)
        return (inverse.astype(dtype) * image, vector, new_beta), (alpha, new_beta)

    zero = jnp.zeros((), jnp.finfo(dtype).dtype)
    init = (probe, jnp.zeros_like(probe), zero)
    _, (alphas, betas) = scan(step, init, length=steps)
    ritz = jnp.linalg.eigvalsh(
        jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    )
    bound = 1.01 * (jnp.max(ritz, initial=0) + betas[-1:].sum())
    return jnp.where(bound == 0, 1, bound)


def _flat_mv(operator, structure: Structure, flat: Inexact[Array, " n"]):
    return structure.ravel(operator.mv(structure.unravel(flat)))


def _check_bounds(lower, upper) -> None:
    if isinstance(lower, jax.core.Tracer) or isinstance(upper, jax.core.Tracer):
        return
    if not 0 < lower < upper:
        raise ValueError(
            f"`chebyshev(lower=..., upper=...)` got {lower} and {upper}. The interval "
            "holds the eigenvalues to invert: `0 < lower < upper`."
        )
