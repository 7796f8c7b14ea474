from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import lineax.internal as lxi
import numpy as np
from jaxtyping import Array, PyTree, Real, Scalar

from .._misc import first_failure, is_zero, tree_sub, tree_where
from .preconditioner import promoting


max_norm = promoting(lxi.max_norm)


def resolve_rtol(rtol: Any, dtype) -> Real[Array, ""]:
    """By default 1e-10 in double precision, 1e-5 in less."""
    if rtol is None:
        rtol = 1e-10 if jnp.finfo(dtype).eps < 1e-12 else 1e-5
    return jnp.asarray(rtol, dtype)


def two_norm(vector: PyTree[Array]) -> Real[Array, ""]:
    """Without under- or overflow of the squares."""
    largest = max_norm(vector)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = [
        jnp.sum((jnp.abs(leaf).astype(unit.dtype) / unit) ** 2)
        for leaf in jtu.tree_leaves(vector)
    ]
    return unit * jnp.sqrt(sum(squares, jnp.zeros_like(unit)))


def largest_part(vector: PyTree[Array]) -> Real[Array, ""]:
    """The largest real or imaginary part.

    Without rounding: XLA may compute it twice, for a division and the multiplication that
    undoes it, and a modulus near a power of two could be on either side of it.
    """
    parts = [(leaf.real, leaf.imag) for leaf in jtu.tree_leaves(vector)]
    return max_norm(parts)


def power_of_two(largest: Real[Array, "..."]) -> Real[Array, "..."]:
    """An even one within a factor of two of `largest`; one for zero, NaN and Inf.

    Its inverse is finite, too. From the bits of the exponent, with the last one set:
    `jnp.frexp` and `jnp.ldexp` are ten times as many operations, and XLA repeats them in
    each kernel that the power goes into.
    """
    info = jnp.finfo(largest.dtype)
    largest = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    largest = jnp.minimum(largest, 2.0 ** (info.maxexp - 2))
    integer = np.dtype(f"uint{info.bits}").type
    last = 1 << info.nmant
    mask = (1 << info.bits - 1) - last
    exponent = lax.bitcast_convert_type(largest, integer) & integer(mask)
    return lax.bitcast_convert_type(exponent | integer(last), largest.dtype)


class Tolerance(eqx.Module):
    """What an error may be: |error| ≤ atol + rtol |reference| in the Euclidean norm.

    With `norm`, as in lineax: the quotient of each entry of the error by
    `atol + rtol |entry of the reference|`, of which `norm` is at most one.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Scalar] | None

    def allowed(self, reference: PyTree[Array]) -> PyTree[Array]:
        def at(size):
            rtol = resolve_rtol(self.rtol, size.dtype)
            return jnp.asarray(self.atol, size.dtype) + rtol * size

        if self.norm is None:
            return at(two_norm(reference))
        return jtu.tree_map(lambda leaf: at(jnp.abs(leaf)), reference)

    def excess(self, error: PyTree[Array], allowed: PyTree[Array]) -> Scalar:
        """At most one if `error` is within `allowed`; 0 / 0 is no error."""

        def quotient(size, allowed):
            return jnp.where(size == 0, 0, size / allowed)

        if self.norm is None:
            return quotient(two_norm(error), allowed)
        magnitude = jtu.tree_map(jnp.abs, error)
        return promoting(self.norm)(jtu.tree_map(quotient, magnitude, allowed))


# How far the residual b − A x may stand above the tolerance, for what the recurrences of
# the solver lose to rounding, and where the tolerance is itself rounding.
_SLACK = 10.0
_ROUNDING = 100.0


def verified(
    solver: lx.AbstractLinearSolver,
    mv: Callable[[PyTree[Array]], PyTree[Array]],
    vector: PyTree[Array],
    solution: PyTree[Array],
    result: lx.RESULTS,
) -> tuple[PyTree[Array], lx.RESULTS]:
    """The solution and `result`, which is `stagnation` if b − A x is too large.

    `lineax.GMRES` looks at the residual after its preconditioner, `lineax.BiCGStab` at
    one that it updates (lineax 0.1.1): both may be small where b − A x is not. One
    product `mv` with A for these two, none for the others. `lineax.BiCGStab` is NaN for
    b = 0, such as the cotangent of a masked loss: here it is zero.
    """
    if not isinstance(solver, lx.BiCGStab | lx.GMRES):
        return solution, result
    if isinstance(solver, lx.BiCGStab):
        zero = is_zero(vector)
        solution = tree_where(zero, jtu.tree_map(jnp.zeros_like, solution), solution)
        result = lx.RESULTS.where(zero, lx.RESULTS.successful, result)
    if all(
        isinstance(tol, int | float) and tol == 0 for tol in (solver.rtol, solver.atol)
    ):
        return solution, result  # asked for a number of steps
    residual = tree_sub(vector, mv(solution))

    def scaled(r, b):
        size = jnp.abs(b)
        eps = jnp.finfo(size.dtype).eps
        largest = jnp.max(size, initial=0)
        tolerance = (
            jnp.asarray(solver.atol, size.dtype)
            + jnp.asarray(solver.rtol, size.dtype) * size
        )
        allowed = _SLACK * tolerance + _ROUNDING * eps * largest
        return jnp.where(r == 0, 0, jnp.abs(r) / jnp.where(r == 0, 1, allowed))

    met = solver.norm(jtu.tree_map(scaled, residual, vector)) <= 1
    told = lx.RESULTS.where(met, lx.RESULTS.successful, lx.RESULTS.stagnation)
    return solution, first_failure(result, told)
