"""A fit with one number held at a value, as fits of the others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from .._base.call import compiled_lazily
from .._base.tree import at_least_single
from .._solver import PivotedQR
from .chunks import in_chunks
from .data_sets import each, listed


class Target(NamedTuple):
    """Which number is held: of θ by its place, or a coefficient of one column of data."""

    theta: int | None
    row: int = 0
    column: int = 0
    data_set: int = 0


@compiled_lazily
def refit(fit: Any, varpro, target: Target, fixed, values, starts, scale, bounds, size):
    """Costs, θ and successes with the target at each of `values`, from `starts`.

    `starts` are vectors of θ, one for each value; `scale` the sizes of its numbers;
    `fixed` the places of those that stay. `varpro` is handed in: it stands above.
    """
    elimination, args, observations = fit._context()
    _, unravel = jfu.ravel_pytree(at_least_single(fit.theta))
    sets = [
        _problem(number, target, *of_set)
        for number, of_set in enumerate(
            zip(
                listed(elimination.parts),
                listed(observations),
                listed(fit.coefficients),
                strict=True,
            )
        )
    ]
    several = type(observations) is tuple
    together = lambda parts: tuple(parts) if several else parts[0]
    basis, offset, data, weights, solvers, lower, upper = (
        together(parts) for parts in zip(*sets, strict=True)
    )
    solver = listed(solvers)[target.data_set]
    limited = any(part.limits is not None for part in listed(observations))
    if target.theta is not None:
        fixed = (*fixed, target.theta)
    mask = np.isin(np.arange(scale.size), fixed)

    def member(inputs):
        value, start = inputs
        start = start if target.theta is None else start.at[target.theta].set(value)
        both = each(lambda args: (args, value), args) if several else (args, value)
        found = varpro(
            basis,
            data,
            unravel(start),
            both,
            weights=weights,
            offset=offset,
            solver=solver,
            x_scale=unravel(scale),
            fixed=_like(mask, fit.theta) if mask.any() else None,
            bounds=bounds,
            coefficient_bounds=(lower, upper) if limited else None,
            throw=False,
        )
        theta, _ = jfu.ravel_pytree(found.theta)
        return found.cost, theta, found.result == optx.RESULTS.successful

    return in_chunks(member, (values, starts), size)


def _problem(number: int, target: Target, elimination, observations, coefficients):
    """Basis, offset, data, weights, solver and limits of one data set."""
    model, solver = elimination.model, elimination.solver
    data, weights, limits = observations.data, observations.weights, observations.limits
    if target.theta is None and target.data_set == number:
        held = _HeldCoefficient(model.basis, model.offset, target, coefficients.shape)
        basis, offset = held.basis, held.offset
        data, weights = held.observed(data, weights)
        solver = PivotedQR() if held.many else solver  # of a column of zeros
    else:
        offset = None if model.offset is None else _of_first(model.offset)
        basis = _of_first(model.basis)
    bounds = (-jnp.inf, jnp.inf) if limits is None else (limits.lower, limits.upper)
    return basis, offset, data, weights, solver, *bounds


def _like(mask: np.ndarray, theta: PyTree[Array]) -> PyTree[np.ndarray]:
    """A vector of booleans as a pytree like θ."""
    leaves, structure = jtu.tree_flatten(theta)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = zip(np.split(mask, ends), leaves, strict=True)
    return structure.unflatten([part.reshape(np.shape(leaf)) for part, leaf in parts])


def _of_first(function: Callable) -> Callable:
    return lambda theta, both: function(theta, both[0])


class _HeldCoefficient(eqx.Module):
    """The model with a coefficient as a number of `args`: its column is in the offset.

    Of several columns of data the others keep it. Their rows are doubled: the held
    column counts in the second half alone, where Φ is without it, the others in the
    first. Where no column of Φ would be left, there is one for a datum of its own, zero.
    """

    of_basis: Callable
    of_offset: Callable | None
    target: Target
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def many(self) -> bool:
        return len(self.shape) == 2 and self.shape[1] > 1

    def basis(self, theta, both):
        phi = self._phi(theta, both)
        if self.many:
            return jnp.concatenate([phi, phi.at[:, self.target.row].set(0)])
        if self.shape[0] == 1:
            return jnp.eye(len(phi) + 1, 1, -len(phi), dtype=phi.dtype)
        return jnp.delete(phi, self.target.row, axis=1, assume_unique_indices=True)

    def offset(self, theta, both):
        args, value = both
        moved = self._phi(theta, both)[:, self.target.row]
        moved = moved * value.astype(moved.dtype)
        shift = None if self.of_offset is None else self.of_offset(theta, args)
        if self.many:
            k = self.shape[1]
            moved = jnp.broadcast_to(moved[:, None], (len(moved), k))
            both_halves = [jnp.zeros_like(moved), moved]
            if shift is not None:
                shift = shift[:, None] if shift.ndim == 1 else shift
                both_halves = [half + shift.astype(half.dtype) for half in both_halves]
            return jnp.concatenate(both_halves)
        if shift is not None:
            shift = shift[:, 0] if shift.ndim == 2 else shift
            moved = moved + shift.astype(moved.dtype)
        return jnp.pad(moved, (0, 1)) if self.shape[0] == 1 else moved

    def observed(self, data, weights):
        """Data and weights for these rows."""
        if self.many:
            whole = jnp.ones(data.shape, data.real.dtype) if weights is None else weights
            whole = whole[:, None] if whole.ndim == 1 else whole
            other = jnp.arange(data.shape[1]) != self.target.column
            first = jnp.where(other[None, :], whole, 0)
            return jnp.concatenate([data, data]), jnp.concatenate([first, whole - first])
        if self.shape[0] == 1:
            if weights is not None:
                one = jnp.ones((1, *weights.shape[1:]), weights.dtype)
                weights = jnp.concatenate([weights, one])
            return jnp.pad(data, [(0, 1), (0, 0)]), weights
        return data, weights

    def _phi(self, theta, both) -> Float[Array, "m n"]:
        phi = self.of_basis(theta, both[0])
        return phi.as_matrix() if isinstance(phi, lx.AbstractLinearOperator) else phi
