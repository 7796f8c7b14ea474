"""Priors on θ and c as rows of the problem, below those of the data."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.core
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base.inexact import as_inexact
from .data_sets import each, Eliminations, pairs_for_each
from .elimination import Elimination
from .model import Observations, SeparableModel
from .parameters import vector_like


class Rows(eqx.Module):
    """weights (axes x − mean), whose squares are (x − μ)ᵀ P (x − μ).

    With the precision P = axesᵀ diag(weights²) axes; `None` for axes that are those of x.
    """

    mean: Inexact[Array, "rows *k"]
    weights: Float[Array, " rows"]
    axes: Float[Array, "rows rows"] | None

    @classmethod
    def create(cls, mean, precision, name: str) -> "Rows":
        """For a precision that is a vector, the diagonal, or a matrix."""
        axes = None
        if precision.ndim == 2:
            symmetric = 0.5 * (precision + precision.T)
            precision, vectors = jnp.linalg.eigh(symmetric)
            rounding = jnp.finfo(precision.dtype).eps * len(precision)
            small = jnp.abs(precision) <= rounding * jnp.max(jnp.abs(precision))
            precision = jnp.where(small, 0, precision)
            axes = vectors.T
            mean = axes @ mean
        _check_precision(precision, name)
        weights = jnp.sqrt(jnp.where(precision >= 0, precision, jnp.nan))
        return cls(mean, weights, axes)

    def of(self, vector: Inexact[Array, "rows *k"]) -> Inexact[Array, "rows *k"]:
        return vector if self.axes is None else self.axes.astype(vector.dtype) @ vector


class Prior(eqx.Module):
    """What is known of θ and c before the data."""

    theta: Rows | None
    coefficients: Any  # (mean, precision) as given, until n and k are known

    def model(self, elimination: Elimination) -> Elimination:
        """With rows of c, and then of θ, below those of the data."""
        basis, offset = elimination.model.basis, elimination.model.offset
        caller = elimination.caller
        model = SeparableModel(
            _Basis(basis, self, caller),
            offset if self.theta is None else _Offset(basis, offset, self),
        )
        if self.theta is None and offset is not None:
            model = SeparableModel(model.basis, _Offset(basis, offset, self))
        return Elimination(model, elimination.solver, caller)

    def observations(self, observations: Observations, n: int) -> Observations:
        data, weights = observations.data, observations.weights
        rows, columns = data.shape
        weights = jnp.ones(rows) if weights is None else weights
        more = []
        if self.coefficients is not None:
            of_c = self.of_coefficients(n, columns, data.dtype)
            more.append((of_c.mean.astype(data.dtype), of_c.weights))
        if self.theta is not None:
            mean = self.theta.mean.astype(data.dtype)[:, None]
            mean = jnp.broadcast_to(mean, (len(mean), columns))
            # In each column, of which the squares are added up.
            more.append((mean, self.theta.weights / np.sqrt(columns)))
        dtype = jnp.finfo(data.dtype).dtype
        of_weights = [w.astype(dtype) for _, w in more]
        if weights.ndim == 2:
            of_weights = [
                jnp.broadcast_to(w[:, None], (len(w), columns)) for w in of_weights
            ]
        return Observations(
            jnp.concatenate([data, *(mean for mean, _ in more)]),
            jnp.concatenate([weights.astype(dtype), *of_weights]),
            observations.gain,
            observations.limits,
            0 if self.theta is None else len(self.theta.mean),
            sum(len(mean) for mean, _ in more),
        )

    def of_coefficients(self, n: int, columns: int, dtype) -> Rows:
        mean, precision = self.coefficients
        real = jnp.finfo(dtype).dtype
        if mean.shape not in ((), (n,), (n, columns)):
            raise ValueError(
                f"`varpro(coefficient_prior=...)` got a mean of shape {mean.shape} for "
                f"{n} coefficients in {columns} columns. Pass a scalar, or an array of "
                f"shape {(n,)} or {(n, columns)}."
            )
        if precision.shape not in ((), (n,), (n, n)):
            raise ValueError(
                "`varpro(coefficient_prior=...)` got a precision of shape "
                f"{precision.shape} for {n} coefficients. Pass a scalar, the diagonal "
                f"of shape {(n,)}, or a matrix of shape {(n, n)}."
            )
        if jnp.iscomplexobj(mean) and not jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"`varpro(coefficient_prior=...)` got a mean of {mean.dtype} beside real "
                "data. Pass a real mean, or complex data (`data + 0j`)."
            )
        mean = mean[:, None] if mean.ndim == 1 else mean
        mean = jnp.broadcast_to(mean, (n, columns)).astype(dtype)
        precision = precision.astype(real)
        if precision.ndim < 2:
            precision = jnp.broadcast_to(precision, (n,))
        return Rows.create(mean, precision, "coefficient_prior")

    def coefficient_axes(self, n: int) -> Float[Array, "n n"]:
        _, precision = self.coefficients
        if precision.ndim < 2:
            return jnp.eye(n)
        rows = Rows.create(jnp.zeros(n), precision, "coefficient_prior")
        return rows.of(jnp.eye(n))

    def residual(self, theta, coefficients: Inexact[Array, "n k"]):
        """The rows of the priors, as columns."""
        n, columns = coefficients.shape
        rows = []
        if self.coefficients is not None:
            of_c = self.of_coefficients(n, columns, coefficients.dtype)
            weights = of_c.weights[:, None].astype(coefficients.dtype)
            rows.append(weights * (of_c.mean - of_c.of(coefficients)))
        if self.theta is not None:
            flat, _ = jfu.ravel_pytree(theta)
            r = self.theta.weights * (self.theta.mean - self.theta.of(flat))
            r = r.astype(coefficients.dtype)[:, None] / np.sqrt(columns)
            rows.append(jnp.broadcast_to(r, (len(r), columns)))
        return jnp.concatenate(rows)


class _Basis(eqx.Module):
    function: Callable
    prior: Prior
    caller: str = eqx.field(static=True)

    def __call__(self, theta: PyTree[Array], args: Any):
        phi = SeparableModel(self.function, None).matrix(theta, args, self.caller)
        if isinstance(phi, lx.AbstractLinearOperator):
            phi = phi.as_matrix()
        n, blocks = phi.shape[1], [phi]
        if self.prior.coefficients is not None:
            blocks.append(self.prior.coefficient_axes(n).astype(phi.dtype))
        if self.prior.theta is not None:
            blocks.append(jnp.zeros((len(self.prior.theta.mean), n), phi.dtype))
        return jnp.concatenate(blocks)


class _Offset(eqx.Module):
    basis: Callable
    offset: Callable | None
    prior: Prior

    def __call__(self, theta: PyTree[Array], args: Any):
        phi = eqx.filter_eval_shape(self.basis, theta, args)
        is_operator = isinstance(phi, lx.AbstractLinearOperator)
        m, n = (phi.out_size(), phi.in_size()) if is_operator else phi.shape
        dtype = jnp.result_type(jfu.ravel_pytree(theta)[0])
        shift = jnp.zeros(m, dtype) if self.offset is None else self.offset(theta, args)
        blocks = []
        if self.prior.coefficients is not None:
            blocks.append(jnp.zeros(n, shift.dtype))
        if self.prior.theta is not None:
            flat, _ = jfu.ravel_pytree(theta)
            blocks.append(self.prior.theta.of(flat).astype(shift.dtype))
        if shift.ndim == 2:
            columns = shift.shape[1]
            blocks = [jnp.broadcast_to(b[:, None], (len(b), columns)) for b in blocks]
        return jnp.concatenate([shift, *blocks])


def with_priors(priors: Any, elimination: Any, observations: Any, counts: Any):
    """The problem, with counts of coefficients, and what is known before the data."""

    def of_set(prior, elimination, observations, n):
        if prior is None:
            return elimination, observations
        return prior.model(elimination), prior.observations(observations, n)

    if priors is None or type(priors) is not tuple:
        return of_set(priors, elimination, observations, counts)
    pairs = each(of_set, priors, elimination.parts, observations, counts)
    parts, observations = zip(*pairs, strict=True)
    return Eliminations(parts), observations


def prior_of(prior: Any, coefficient_prior: Any, theta0: PyTree[Array], data: Any):
    """Of the arguments of `varpro`, or `None` without either.

    Of several data sets a tuple: θ is known once, in the first one.
    """
    of_theta = None if prior is None else _of_theta(prior, theta0)
    if type(data) is not tuple:
        return _prior(of_theta, coefficient_prior)
    if prior is None and coefficient_prior is None:
        return None
    of_c = (None,) * len(data)
    if coefficient_prior is not None:
        pair = _pair(coefficient_prior, "coefficient_prior")
        of_c = pairs_for_each(pair, data, "varpro(coefficient_prior=...)")
    return each(_prior, (of_theta, *(None for _ in data[1:])), of_c)


def _prior(of_theta: Rows | None, coefficient_prior: Any) -> Prior | None:
    of_c = None
    if coefficient_prior is not None:
        of_c = _of_coefficients(coefficient_prior)
    return None if of_theta is None and of_c is None else Prior(of_theta, of_c)


def _of_theta(prior: Any, theta0: PyTree[Array]) -> Rows:
    mean, precision = _pair(prior, "prior")
    flat, _ = jfu.ravel_pytree(theta0)
    mean = vector_like(mean, theta0, "prior[0]")
    whole = (flat.size, flat.size)
    shapes = [np.shape(leaf) for leaf in jtu.tree_leaves((precision, theta0))]
    if shapes[:1] == [whole] and shapes[1:] != [whole]:
        precision = as_inexact(precision, "varpro(prior[1]=...)").astype(flat.dtype)
    else:
        precision = vector_like(precision, theta0, "prior[1]")
    _check_mean(mean, "prior")
    return Rows.create(mean, precision, "prior")


def _of_coefficients(coefficient_prior: Any) -> tuple[Array, ...]:
    pair = _pair(coefficient_prior, "coefficient_prior")
    of_c = tuple(
        as_inexact(part, f"varpro(coefficient_prior[{i}]=...)")
        for i, part in enumerate(pair)
    )
    if jnp.iscomplexobj(of_c[1]):
        raise TypeError(
            f"`varpro(coefficient_prior=...)` got a precision of {of_c[1].dtype}. "
            "Pass real numbers, 1/σ²."
        )
    _check_mean(of_c[0], "coefficient_prior")
    return of_c


def _pair(prior: Any, name: str):
    if not isinstance(prior, tuple | list) or len(prior) != 2:
        raise TypeError(
            f"`varpro({name}=...)` got {type(prior).__name__}. Pass a pair (mean, "
            "precision), the precision being 1/σ², or the inverse of a covariance."
        )
    return prior


def _check_mean(mean: Array, name: str) -> None:
    if not isinstance(mean, jax.core.Tracer) and not np.all(np.isfinite(mean)):
        raise ValueError(
            f"`varpro({name}=...)` got a mean that is NaN or infinite. Pass finite "
            "numbers, and the precision zero where nothing is known."
        )


def _check_precision(precision: Array, name: str) -> None:
    if isinstance(precision, jax.core.Tracer):
        return  # NaN, and the result tells
    if not np.all((np.asarray(precision) >= 0) & np.isfinite(precision)):
        raise ValueError(
            f"`varpro({name}=...)` got a precision that is negative, NaN or infinite, "
            "or a matrix with a negative eigenvalue. Pass 1/σ², zero where nothing is "
            "known; use `fixed` for what is known exactly."
        )
