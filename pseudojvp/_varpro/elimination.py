"""The coefficients eliminated: c(θ) = A†b, the projected residual and its Jacobian.

With A = W Φ(θ) and b = W (y − offset(θ)), the least residual over c is

    r(θ) = (I − A A†) b,    c(θ) = A†b,

the saddle-point map (r, c) = M†(b, 0) of `_map/primitive.py`, whose equation (3) is its
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
import numpy as np
from jaxtyping import Array, Bool, Inexact, Integer, PyTree

from .._base.axes import as_varying, cond, like, varying_axes
from .._base.order import after_in_batch
from .._map.factorised import Factorised
from .._map.rows import Blocks
from .dependence import groups_of, moved_columns
from .limits import hold
from .model import (
    adjoint_times,
    check_shapes,
    common_dtype,
    Observations,
    of_dtype,
    real_matrix,
    SeparableModel,
    spread,
    times,
    weighted,
)
from .parameters import Parameters
from .real import squared_norm


# Of ‖A‖ ‖c‖ over ‖b‖, up to which b − A c is as good as any other form of the residual.
_LARGEST_CANCELLATION = 10
_NO_ACTIVE_SET = lx.RESULTS.stagnation


class Factors(eqx.Module):
    """A factorised: once, or for each column with weights of its own."""

    factorised: Factorised
    shared: bool = eqx.field(static=True)
    free: Bool[Array, "n k"] | None = None  # whose columns are factorised; `None`: all

    @classmethod
    def create(
        cls, phi, observations: Observations, solver, dtype, free=None
    ) -> "Factors":
        if free is not None:

            def create_free(free, weights):
                operator = weighted(jnp.where(free[None, :], phi, 0), weights, dtype)
                return Factorised.create(operator, solver, throw=False)[0]

            axis = None if observations.shares_weights else 1
            factors = eqx.filter_vmap(create_free, in_axes=(1, axis))
            return cls(factors(free, observations.weights), False, free)

        def create(weights):
            operator = weighted(phi, weights, dtype)
            return Factorised.create(operator, solver, throw=False)[0]

        if observations.shares_weights:
            return cls(create(observations.weights), True)
        return cls(eqx.filter_vmap(create, in_axes=1)(observations.weights), False)

    def apply(
        self,
        v,
        w=None,
        *,
        residual: bool = True,
        coefficients: bool = True,
        derivative: bool = False,
    ):
        """The r and c of r + A c = v, Aᴴr = w, column by column, and how it went.

        v is `(m, k)` and w `(n, k)`, or `None` for zero; r and c are `None` where they
        are not asked for. c = A†v − (AᴴA)†w.
        """

        def column(factorised, v, w):
            if derivative:
                # Whether the factors are sound, the solve for r and c has told.
                factorised = factorised.for_derivative(of_primal=True)
            wanted = Blocks(residual, coefficients, False)
            v = of_dtype(v, factorised.operator.out_structure())
            w = of_dtype(w, factorised.operator.in_structure())
            (r, c, _), *told = factorised.blocks(Blocks(v, w), wanted)
            return (r, c), *told

        both = v, w
        if self.shared and all(x is None or x.shape[1] == 1 for x in both):
            # Not a batch of one, whose library calls would be put in order.
            v, w = jtu.tree_map(lambda x: x[:, 0], both)
            out, *told = column(self.factorised, v, w)
            told = jtu.tree_map(lambda leaf: leaf[None], told)
            return jtu.tree_map(lambda leaf: leaf[:, None], out), *told
        axis = None if self.shared else eqx.if_array(0)
        apply = eqx.filter_vmap(column, in_axes=(axis, 1, 1), out_axes=(1, 0, 0))
        return apply(self.factorised, v, w)

    def derivative(self, d, e) -> Inexact[Array, "q m k"]:
        """The r of M†(−D, −E) for D `(q, m, k)` and E `(q, n, k)`, or `None` for zero."""

        def one(d, e):
            v, w = jtu.tree_map(jnp.negative, (d, e))
            (r, _), *_ = self.apply(v, w, coefficients=False, derivative=True)
            return r

        return jax.vmap(one)(d, e)


class Eliminated(NamedTuple):
    """r and c at some θ, as columns, and what they were computed from.

    Of several data sets all but the result are tuples.
    """

    residual: PyTree[Inexact[Array, "m k"]]
    coefficients: PyTree[Inexact[Array, "n k"]]
    rank: PyTree[Integer[Array, "..."]]
    result: lx.RESULTS
    factors: Any


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
        phi, shift = self.model_at(theta, args)
        check_shapes(phi, shift, observations.data, self.caller)
        dtype = common_dtype(phi, shift, observations.data)
        b = observations.data.astype(dtype)
        if shift is not None:
            b = b - spread(shift, observations.gain, dtype)
        b = observations.weigh(b)
        if observations.limits is not None:
            return self._between(phi, b, observations)
        if factors is None:
            factors = Factors.create(phi, observations, self.solver, dtype)
        many = factors.shared and b.shape[1] > b.shape[0]
        if many and not isinstance(phi, lx.AbstractLinearOperator):
            (_, c), result, stats = factors.apply(b, residual=False)
            r = _residual_of_many(factors, observations.weigh(phi.astype(dtype)), b, c)
        else:
            (r, c), result, stats = factors.apply(b)
        if r is None:  # the solver takes square A for regular: nothing is left
            r = jnp.zeros_like(b)
        rank = stats.get("rank", jnp.full(c.shape[1], c.shape[0]))
        rank = rank[0] if factors.shared else rank
        return Eliminated(r, c, rank, _first_failure(result), factors)

    def _between(self, phi, b, observations: Observations) -> Eliminated:
        """With coefficients between bounds: those of the free columns, of what the others
        leave of b."""
        phi = real_matrix(phi, self.caller).astype(b.dtype)
        (_, n), (_, k) = phi.shape, b.shape
        assert observations.limits is not None
        limits = observations.limits.columns(n, k, self.caller)
        if observations.shares_weights:
            a = observations.weigh(phi)
        else:
            a = jax.vmap(lambda w: w[:, None] * phi, in_axes=1)(observations.weights)
        held = hold(a, b, limits)
        factors = Factors.create(phi, observations, self.solver, b.dtype, held.free)
        (r, c), result, stats = factors.apply(
            b - observations.weigh(times(phi, held.coefficients))
        )
        r = jnp.zeros_like(b) if r is None else r
        rank = stats.get("rank", jnp.sum(held.free, axis=0))
        converged = jnp.all(held.converged)
        result = lx.RESULTS.where(converged, _first_failure(result), _NO_ACTIVE_SET)
        c = jnp.where(held.free, c, held.coefficients)
        return Eliminated(r, c, rank[0] if k == 1 else rank, result, factors)

    @property
    def parts(self) -> "Elimination":
        """Of one data set, where several have a tuple."""
        return self

    def closed(self, theta: PyTree[Array], args: Any) -> "Elimination":
        """See `SeparableModel.closed`."""
        return Elimination(self.model.closed(theta, args), self.solver, self.caller)

    def restricted(self, parameters: Parameters) -> "Elimination":
        """As a function of the free parameters, in one vector."""
        if parameters.all_free:
            return self
        basis, offset = parameters.restrict(self.model.basis), self.model.offset
        offset = None if offset is None else parameters.restrict(offset)
        return Elimination(SeparableModel(basis, offset), self.solver, self.caller)

    def model_at(self, theta: PyTree[Array], args: Any):
        """Φ, and the offset or `None`."""
        phi = self.model.matrix(theta, args, self.caller)
        return phi, self.model.shift(theta, args, self.caller)

    def predict(self, theta, args, coefficients, gain):
        """offset ⊗ gain + Φ c, `(m, k)`."""
        value = times(self.model.matrix(theta, args, self.caller), coefficients)
        shift = self.model.shift(theta, args, self.caller)
        return value if shift is None else value + spread(shift, gain, value.dtype)

    def tangents(self, theta, args, observations, at: Eliminated, *, exact, then=None):
        """D and E, `(q, m, k)` and `(q, n, k)`; E is `None` unless `exact`.

        From one tangent of Φ at a time, so that there never is an array of q m n entries:
        of one parameter, or of several that move different columns of Φ. With `then`,
        what that makes of the D and E of each parameter, one after the other.
        """
        flat, unravel = jfu.ravel_pytree(theta)
        weighted_residual = observations.weigh(at.residual)

        def model(flat) -> _Matrix | _Products:
            theta = unravel(flat)
            phi = self.model.matrix(theta, args, self.caller)
            if not isinstance(phi, lx.AbstractLinearOperator):
                return _Matrix(phi, self.model.shift(theta, args, self.caller))
            forward = self.predict(theta, args, at.coefficients, observations.gain)
            backward = adjoint_times(phi, weighted_residual) if exact else None
            return _Products(observations.weigh(forward), backward)

        def products(tangent: _Matrix, moved) -> _Products:
            """For one of the parameters that the tangent belongs to, by what it moves."""
            phi, shift = tangent
            moved = moved[: phi.shape[1], None], moved[phi.shape[1] :, None]
            forward = times(phi, jnp.where(moved[0], at.coefficients, 0))
            if shift is not None:
                shift = spread(shift, observations.gain, forward.dtype)
                forward = forward + jnp.where(moved[1], shift, 0)
            backward = None
            if exact:
                backward = adjoint_times(phi, weighted_residual)
                backward = jnp.where(moved[0], backward, 0)
            return _Products(observations.weigh(forward), backward)

        value, push = jax.linearize(model, flat)
        groups, moved = np.arange(flat.size)[:, None], np.zeros((flat.size, 0), bool)
        if isinstance(value, _Matrix):
            moved = _moved(push, flat)
            groups = groups_of(moved) if then is None else groups
        # What fills up a group is no parameter, and moves nothing.
        moved = np.pad(moved, [(0, 1), (0, 0)])[groups]

        def group(inputs):
            members, moved = inputs
            direction = jnp.any(
                jnp.arange(flat.size)[:, None] == members[None, :], axis=1
            )
            tangent = push(like(flat, direction.astype(flat.dtype)))
            if isinstance(tangent, _Matrix):
                tangents = jax.vmap(products, in_axes=(None, 0))(tangent, moved)
            else:
                tangents = jtu.tree_map(lambda leaf: leaf[None], tangent)
            if then is None:
                return tuple(tangents)
            return then(*jtu.tree_map(lambda leaf: leaf[0], tangents))

        inputs = jnp.asarray(groups), jnp.asarray(moved)
        if then is not None:
            return lax.map(group, inputs)
        if len(groups) == 1:
            stacked = group(jtu.tree_map(lambda leaf: leaf[0], inputs))
        else:
            stacked = lax.map(group, inputs)
            stacked = jtu.tree_map(
                lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked
            )
        places = np.argsort(groups.ravel(), kind="stable")[: flat.size]
        if np.array_equal(places, np.arange(len(groups.ravel()))):
            return stacked
        return jtu.tree_map(lambda leaf: leaf[places], stacked)

    def jacobian(
        self, theta, args, observations, at: Eliminated, *, exact: bool
    ) -> Inexact[Array, "q m k"]:
        """∂r/∂θ, θ in the order of `jax.flatten_util.ravel_pytree`; of no use where `at`
        has failed."""
        d, e = self.tangents(theta, args, observations, at, exact=exact)
        if e is not None and at.factors.free is not None:
            e = jnp.where(at.factors.free[None], e, 0)
        return at.factors.derivative(d, e)


def _residual_of_many(factors: Factors, a, b, c) -> Inexact[Array, "m k"]:
    """b − A c, or by the saddle-point map where A c would cancel.

    In that XLA transposes b and r, and passes over all of both some ten times. The map is
    the more accurate one, in proportion to ‖A‖ ‖c‖ / ‖b‖.
    """

    def by_map(b, c):
        (r, _), *_ = factors.apply(after_in_batch(c, b), coefficients=False)
        return b - (b - r)  # in the order of b, which the other branch then has as well

    size = jnp.sqrt(squared_norm(a) * squared_norm(c))
    # Not so for NaN.
    alike = size < _LARGEST_CANCELLATION * jnp.sqrt(squared_norm(b))
    return cond(alike, lambda b, c: b - times(a, c), by_map, b, c)


class _Matrix(NamedTuple):
    """Φ and the offset, or their tangents."""

    phi: Inexact[Array, "m n"]
    shift: Inexact[Array, " m"] | Inexact[Array, "m k"] | None


class _Products(NamedTuple):
    """W (offset ⊗ gain + Φ c) and Φᴴ W r, or their tangents, c and r constant."""

    forward: Inexact[Array, "m k"]
    backward: Inexact[Array, "n k"] | None


def _moved(push, flat) -> Bool[np.ndarray, "q _"]:
    """The columns of Φ that each parameter moves, and whether it moves the offset."""
    phi, *shift = moved_columns(push, flat)
    return np.concatenate([phi, *(s.any(axis=1, keepdims=True) for s in shift)], axis=1)


def unit_directions(theta: PyTree[Array]) -> PyTree[Array]:
    """The q unit tangents of θ, stacked in front."""
    flat, unravel = jfu.ravel_pytree(theta)
    units = as_varying(varying_axes(flat), jnp.eye(flat.size, dtype=flat.dtype))
    return jax.vmap(unravel)(units)


def _first_failure(results: lx.RESULTS) -> lx.RESULTS:
    """Of the results of all columns."""
    failed = results != lx.RESULTS.successful
    first = jnp.argmax(failed) if failed.size > 1 else 0
    return jtu.tree_map(lambda value: value[first], results)
