"""The coefficients eliminated: c(θ) = A†b, the projected residual and its Jacobian.

With A = W Φ(θ) and b = W (y − offset(θ)), the least residual over c is

    r(θ) = (I − A A†) b,    c(θ) = A†b,

the saddle-point map (r, c) = M†(b, 0) of `_primitive.py`, whose equation (3) is its
derivative. With D = W ∂(offset + Φ c)/∂θ at fixed c and E = ∂(Φᴴ W r)/∂θ at fixed r,

    ∂r/∂θ = first block of M†(−D, −E).                           (Golub & Pereyra)

Without E, what is left is −(I − A A†) D, the part orthogonal to the range of A
(Kaufman). E adds −A†ᴴE within that range, where r has no part: ∇‖r‖² is the same.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact, Integer, PyTree

from .._linear_solve import create_problem
from .._primitive import bind
from .._saddle_point import Blocks, Problem
from .model import (
    adjoint_times,
    check_shapes,
    common_dtype,
    Observations,
    SeparableModel,
    spread,
    times,
    weighted,
)


class Factors(eqx.Module):
    """A factorised: once, or for each column with weights of its own."""

    problem: Problem
    shared: bool = eqx.field(static=True)

    @classmethod
    def create(cls, phi, observations: Observations, solver, dtype) -> "Factors":
        def create(weights):
            problem, _ = create_problem(
                weighted(phi, weights, dtype), solver, throw=False
            )
            return problem

        if observations.shares_weights:
            return cls(create(observations.weights), True)
        return cls(eqx.filter_vmap(create, in_axes=1)(observations.weights), False)

    def apply(self, v, w, wanted: Blocks, *, derivative: bool = False):
        """The saddle-point map of v `(m, k)` and w `(n, k)`, column by column."""

        def column(problem, v, w):
            problem = problem.for_derivative() if derivative else problem
            return bind(problem, Blocks(v, w), wanted)

        axis = None if self.shared else eqx.if_array(0)
        apply = eqx.filter_vmap(column, in_axes=(axis, 1, 1), out_axes=(1, 0, 0))
        return apply(self.problem, v, w)

    def derivative(self, d, e, wanted: Blocks) -> Blocks:
        """M†(−D, −E) for D `(q, m, k)` and E `(q, n, k)`, or `None` for zero."""

        def one(d, e):
            v, w = jtu.tree_map(jnp.negative, (d, e))
            out, _, _ = self.apply(v, w, wanted, derivative=True)
            return out

        return jax.vmap(one)(d, e)


class Eliminated(NamedTuple):
    """r and c at some θ, as columns, and what they were computed from."""

    residual: Inexact[Array, "m k"]
    coefficients: Inexact[Array, "n k"]
    rank: Integer[Array, ""] | Integer[Array, " k"]
    result: lx.RESULTS
    factors: Factors


class Elimination(eqx.Module):
    """The model with the solver that eliminates c from it."""

    model: SeparableModel
    solver: lx.AbstractLinearSolver
    caller: str = eqx.field(static=True)

    def __call__(
        self,
        theta: PyTree[Array],
        args: Any,
        observations: Observations,
        factors: Factors | None = None,
    ) -> Eliminated:
        """Factorises A, or takes its factors, and solves for c."""
        phi = self.model.matrix(theta, args, self.caller)
        shift = self.model.shift(theta, args, self.caller)
        check_shapes(phi, shift, observations.data, self.caller)
        dtype = common_dtype(phi, shift, observations.data)
        b = observations.data.astype(dtype)
        if shift is not None:
            b = b - spread(shift, observations.gain, dtype)
        if factors is None:
            factors = Factors.create(phi, observations, self.solver, dtype)
        both = Blocks(True, True, False)
        (r, c, _), result, stats = factors.apply(observations.weigh(b), None, both)
        if r is None:  # the solver takes square A for regular: nothing is left
            r = jnp.zeros_like(b)
        rank = stats.get("rank", jnp.full(c.shape[1], c.shape[0]))
        rank = rank[0] if factors.shared else rank
        return Eliminated(r, c, rank, _first_failure(result), factors)

    def closed(self, theta: PyTree[Array], args: Any) -> "Elimination":
        """See `SeparableModel.closed`."""
        return Elimination(self.model.closed(theta, args), self.solver, self.caller)

    def predict(self, theta, args, coefficients, gain):
        """offset ⊗ gain + Φ c, `(m, k)`."""
        value = times(self.model.matrix(theta, args, self.caller), coefficients)
        shift = self.model.shift(theta, args, self.caller)
        return value if shift is None else value + spread(shift, gain, value.dtype)

    def tangents(
        self, theta, directions, args, observations, at: Eliminated, *, exact, then=None
    ):
        """D and E, `(q, m, k)` and `(q, n, k)`; E is `None` unless `exact`.

        For q directions stacked in front, one after the other, so that there never is an
        array of q m n entries. With `then`, what that makes of the D and E of each.
        """
        weighted_residual = observations.weigh(at.residual)

        def products(theta):
            forward = self.predict(theta, args, at.coefficients, observations.gain)
            forward = observations.weigh(forward)
            if not exact:
                return forward, None
            phi = self.model.matrix(theta, args, self.caller)
            return forward, adjoint_times(phi, weighted_residual)

        _, push = jax.linearize(products, theta)
        if then is None:
            return lax.map(push, directions)
        return lax.map(lambda direction: then(*push(direction)), directions)

    def jacobian(
        self, theta, args, observations, at: Eliminated, *, exact: bool
    ) -> Inexact[Array, "q m k"]:
        """∂r/∂θ, θ in the order of `jax.flatten_util.ravel_pytree`."""
        directions = unit_directions(theta)
        d, e = self.tangents(theta, directions, args, observations, at, exact=exact)
        return at.factors.derivative(d, e, Blocks(True, False, False)).data


def unit_directions(theta: PyTree[Array]) -> PyTree[Array]:
    """The q unit tangents of θ, stacked in front."""
    flat, unravel = jfu.ravel_pytree(theta)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))


def _first_failure(results: lx.RESULTS) -> lx.RESULTS:
    """Of the results of all columns."""
    first = jnp.argmax(results != lx.RESULTS.successful)
    return jtu.tree_map(lambda value: value[first], results)
