"""The minimum of a loss other than squares, and the equation that it solves."""

import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx

from .._base import axes
from .._base.tree import all_finite
from .._map.factorised import Factorised
from .._solver import SVD
from .data_sets import each, listed
from .elimination import Elimination
from .loss import Loss, reweighted
from .model import Observations, real_matrix, spread
from .real import added


# Each takes a step or two from where the last one ended.
_LARGEST_REWEIGHTING = 200
_AT_THE_START = 30


def reweighting(search_of: Callable, inputs):
    """As the search of squares, again with the weights of the residual where it ended.

    Each time the weighted squares are above the loss and touch it where they were made,
    if ρ is concave: the loss falls (Huber & Ronchetti, Robust Statistics (2009), 7.8).
    """
    elimination, args, _, observations, size, start, settings, while_loop = inputs
    loss = settings.loss.over(size)
    first = each(loss.first_weights, observations)
    gain = each(lambda o: o.gain, observations)
    eps = jnp.finfo(jtu.tree_leaves(first)[0].dtype).eps

    def weights_at(point, at):
        fitted = elimination.predict(settings.theta(point), args, at.coefficients, gain)
        residual = each(Observations.residual, observations, fitted)
        return each(loss.weights, residual, fitted, observations), residual

    def settle(_, weights):
        weighted = each(reweighted, observations, weights)
        new, _ = weights_at(start, elimination(settings.theta(start), args, weighted))
        finite = all_finite(new)
        return jtu.tree_map(lambda new, old: jnp.where(finite, new, old), new, weights)

    # Of c alone, or the first search would be one of squares, and leave the minimum that
    # the start belongs to. From here on the loss never is above that at the start.
    first = axes.fori_loop(0, _AT_THE_START, settle, first)

    def search(point, weights):
        weighted = each(reweighted, observations, weights)
        inputs = elimination, args, None, weighted, size, point, settings, while_loop
        point, (outcome, at) = search_of(inputs)
        new, residual = weights_at(point, at)
        defined = all_finite(new)
        # The search may pass where a mean is not positive, but not end there.
        new = jtu.tree_map(
            lambda new, old: jnp.where(jnp.isfinite(new), new, old), new, weights
        )
        changes = each(lambda new, old: jnp.max(jnp.abs(new - old)), new, weights)
        change = _largest(changes) / _largest(each(jnp.max, weights))
        residual = jtu.tree_map(lambda r, to: r.astype(to.dtype), residual, at.residual)
        at = eqx.tree_at(lambda at: at.residual, at, residual)
        return point, new, change, defined, outcome, at

    def again(carry):
        count, change, result = carry[0], carry[3], carry[5].result
        going_on = (result == optx.RESULTS.successful) & (change > 1e3 * eps)
        return (count < _LARGEST_REWEIGHTING) & (going_on | (count == 0))

    def once(carry):
        count, point, weights, _, _, before, _ = carry
        point, weights, change, defined, outcome, at = search(point, weights)
        outcome = eqx.tree_at(
            lambda o: (o.num_steps, o.polishing_steps),
            outcome,
            (
                before.num_steps + outcome.num_steps,
                before.polishing_steps + outcome.polishing_steps,
            ),
        )
        return count + 1, point, weights, change, defined, outcome, at

    structure = eqx.filter_eval_shape(search, start, first)
    zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), structure)
    carry = (jnp.array(0), start, first, zeros[2], *zeros[3:])
    _, point, _, change, defined, outcome, at = axes.while_loop(again, once, carry)
    late = optx.RESULTS.nonlinear_max_steps_reached
    result = optx.RESULTS.where(change <= eps**0.5, outcome.result, late)
    result = optx.RESULTS.where(defined, result, optx.RESULTS.nonfinite)
    result = optx.RESULTS.where(
        outcome.result == optx.RESULTS.successful, result, outcome.result
    )
    return point, (eqx.tree_at(lambda o: o.result, outcome, result), at)


def robust_system(point, c, loss: Loss, inputs):
    """∂cost/∂point, the residual and c where c minimises the loss, by a Newton step.

    From the c of the solution, which it does not change: but its derivative is that of
    the minimiser, of every order, since the derivative by the c it starts from is zero.
    """
    elimination, args, observations, _, size, _, settings = inputs
    if any(map(jnp.iscomplexobj, listed(c))):
        raise TypeError(
            "`varpro(loss=...)` has no derivative for complex data. Fit real and "
            "imaginary part as rows of real data."
        )
    loss = loss.over(size)
    c = jtu.tree_map(lambda leaf: leaf / size.astype(leaf.dtype), c)
    observations = each(lambda o: o.over(size), observations)
    gain = each(lambda o: o.gain, observations)

    def fitted(point, c):
        return elimination.predict(settings.theta(point), args, c, gain)

    def cost(point, c):
        value = fitted(point, c)
        residual = each(Observations.residual, observations, value)
        return added(listed(each(loss.cost_of, residual, value, observations)))

    theta = settings.theta(point)
    c = each(
        lambda c, *of: _after_newton_step(loss, theta, c, *of),
        c,
        elimination.parts,
        args,
        observations,
    )
    gradient = jax.grad(cost)(point, c)
    residual = each(Observations.residual, observations, fitted(point, c))
    return gradient, residual, c


def _after_newton_step(
    loss: Loss, theta, c, elimination: Elimination, args, observations
):
    """The c of one data set, of which those at a bound are that bound."""
    weights = observations.weights
    shared = weights is None or weights.ndim == 1
    n, k = c.shape
    free = jnp.ones((n, k), bool)
    if observations.limits is not None:
        limits = observations.limits.columns(n, k, elimination.caller)
        side = limits.side(c)
        free = side == 0
        held = jnp.where(side < 0, limits.lower, limits.upper)
        c = jnp.where(free, c, held)
    phi, shift = elimination.model_at(theta, args)
    phi = real_matrix(phi, elimination.caller)
    offset = jnp.zeros_like(observations.data)
    if shift is not None:
        offset = spread(shift, observations.gain, offset.dtype)

    def step(c, offset, data, w, free):
        def of_column(c):
            value = phi @ c + offset
            residual = (data - value) if w is None else w * (data - value)
            return loss.cost(residual, value, observations, data, w)

        hessian = jnp.where(free[:, None] & free[None, :], jax.hessian(of_column)(c), 0)
        operator = lx.MatrixLinearOperator(hessian)
        factorised, _ = Factorised.create(operator, SVD(), throw=False)
        gradient = jnp.where(free, jax.grad(of_column)(c), 0)
        taken, *_ = factorised.apply(gradient)
        assert taken is not None
        return taken

    axis = None if shared else 1
    step = jax.vmap(step, in_axes=(1, 1, 1, axis, 1), out_axes=1)
    return c - step(c, offset, observations.data, weights, free)


def _largest(numbers):
    return ft.reduce(jnp.maximum, listed(numbers))
