"""Errors of a fit, propagated linearly: covariances of θ and c, confidence bands."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Integer, PyTree

from .._base.axes import fori_loop
from .._base.order import after_in_batch
from .._base.tree import all_finite, at_least_single
from .compression import compress
from .data_sets import each, listed
from .elimination import Eliminated, Elimination, Factors, unit_directions
from .loss import Loss, reweighted
from .model import has_real_coefficients, Observations
from .prior import with_priors
from .real import added, as_real, squared_norm


class VarProStatistics(eqx.Module):
    """What `VarProFit.statistics()` returns, for q parameters θ and n coefficients.

    θ is in the order of `jax.flatten_util.ravel_pytree(theta)`. `(k)` stands for an axis
    k that is in front if `data` has shape `(m, k)`; covariances between coefficients of
    different columns are left out. Complex coefficients have the covariance E[δc δcᴴ].
    For several data sets, fields about coefficients are tuples.

    - `theta_covariance`: `(q, q)`; NaN if the data do not determine all of θ.
    - `coefficient_covariance`: `(k) (n, n)`; that of the minimum-norm solution if Φ is
        rank-deficient.
    - `cross_covariance`: between c and θ, `(k) (n, q)`.
    - `theta_standard_deviation`: `(q,)`.
    - `coefficient_standard_deviation`: as `coefficients`, `(n,)` or `(n, k)`.
    - `correlation`: of θ followed by c, `(k) (q + n, q + n)`.
    - `reduced_chi_square`: ‖residual‖² over the degrees of freedom.
    - `degrees_of_freedom`: the number of data with nonzero weight, minus rank(W Φ) for
        each column, minus q; complex data and complex coefficients count twice.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y = 2 * jnp.exp(-0.5 * t) + 0.01 * jnp.cos(40 * t)
    fit = pj.varpro(decay, y, jnp.array(0.4), t)
    statistics = fit.statistics()
    print(statistics.correlation.shape, statistics.degrees_of_freedom)  # (2, 2) 48
    print(statistics.theta_standard_deviation < 0.01)  # [ True]
    ```
    """

    theta_covariance: Float[Array, "q q"]
    coefficient_covariance: PyTree[Inexact[Array, "..."]]
    cross_covariance: PyTree[Inexact[Array, "..."]]
    theta_standard_deviation: Float[Array, " q"]
    coefficient_standard_deviation: PyTree[Float[Array, "..."]]
    correlation: PyTree[Inexact[Array, "..."]]
    reduced_chi_square: Float[Array, ""]
    degrees_of_freedom: Integer[Array, ""]


class VarProPrediction(eqx.Module):
    """What `VarProFit.predict()` returns: the model at p points, and its band.

    - `value`: `(p,)` or `(p, k)`.
    - `standard_deviation`: of `value`, real.
    - `lower`, `upper`: the ends of the band; `None` for complex values.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y = 2 * jnp.exp(-0.5 * t) + 0.01 * jnp.cos(40 * t)
    fit = pj.varpro(decay, y, jnp.array(0.4), t)
    prediction = fit.predict(jnp.array([0.0, 10.0]))
    print(prediction.value.round(2))  # [2.   0.01]
    print(prediction.lower < prediction.upper)  # [ True  True]
    ```
    """

    value: Inexact[Array, "p *k"]
    standard_deviation: Float[Array, "p *k"]
    lower: Float[Array, "p *k"] | None
    upper: Float[Array, "p *k"] | None


class Errors(NamedTuple):
    """The blocks from which all of it is made, but for s²."""

    # Of a coefficient to err: of a complex one, s² is the variance of each. Of several
    # data sets a tuple, as the last two.
    ways: int | tuple[int, ...]
    chi_square: Float[Array, ""]  # reduced
    degrees_of_freedom: Integer[Array, ""]
    parameters: Integer[Array, ""]  # the numbers that were fitted
    theta_covariance: Float[Array, "q q"]  # (JᵀJ)⁻¹
    gram_inverse: PyTree[Inexact[Array, "_ _ _"]]  # (k, n, n), (AᴴA)†; k = 1: common
    gain: PyTree[Inexact[Array, "_ _ _"]]  # (k, n, q), G

    def scaled(self, absolute: Bool[Array, ""]) -> "Errors":
        """With s², which is one where the weights are `absolute`."""
        scale = jnp.where(absolute, 1, self.chi_square)
        of = lambda block, by: by * scale.astype(block.dtype) * block
        return self._replace(
            theta_covariance=of(self.theta_covariance, 1),
            gram_inverse=each(of, self.gram_inverse, self.ways),
        )


class _Blocks(NamedTuple):
    """What is of one data set."""

    covariance: Inexact[Array, "*k n n"]
    cross: Inexact[Array, "*k n q"]
    deviation: Float[Array, "n *k"]
    correlation: Inexact[Array, "*k q+n q+n"]


def statistics(fit, errors: Errors) -> VarProStatistics:
    theta = errors.theta_covariance
    blocks = each(
        lambda *parts: _blocks_of_set(theta, *parts),
        fit.coefficients,
        errors.gram_inverse,
        errors.gain,
    )
    return VarProStatistics(
        theta,
        each(lambda of: of.covariance, blocks),
        each(lambda of: of.cross, blocks),
        jnp.sqrt(jnp.diagonal(theta)),
        each(lambda of: of.deviation, blocks),
        each(lambda of: of.correlation, blocks),
        errors.chi_square,
        errors.degrees_of_freedom,
    )


def _blocks_of_set(theta_covariance, c, gram_inverse, gain) -> _Blocks:
    cross = -jnp.matmul(gain, theta_covariance.astype(gain.dtype))
    spread = jnp.matmul(-cross, jnp.swapaxes(gain.conj(), 1, 2))
    coefficients = gram_inverse + spread
    theta_block = jnp.broadcast_to(
        theta_covariance.astype(gain.dtype), (gain.shape[0], *theta_covariance.shape)
    )
    upper = [theta_block, jnp.swapaxes(cross.conj(), 1, 2)]
    full = jnp.block([upper, [cross, coefficients]])
    deviation = jnp.sqrt(jnp.diagonal(full.real, axis1=1, axis2=2))
    known = jnp.where(deviation > 0, deviation, 1)
    correlation = full / (known[:, :, None] * known[:, None, :]).astype(full.dtype)
    c_deviation = deviation[:, len(theta_covariance) :].T
    if c.ndim == 1:
        return _Blocks(coefficients[0], cross[0], c_deviation[:, 0], correlation[0])
    return _Blocks(coefficients, cross, c_deviation, correlation)


def predict(
    fit, context, errors: Errors, args: Any, confidence, absolute: Bool[Array, ""]
) -> VarProPrediction | tuple[VarProPrediction, ...]:
    elimination, _, observations = context
    freedom, dtype = errors.degrees_of_freedom, errors.theta_covariance.dtype
    quantile = student_quantile(confidence, freedom, dtype, normal=absolute)

    def of_set(elimination, args, c, observations, gram_inverse, gain):
        columns = c if c.ndim == 2 else c[:, None]
        theta = fit.theta, errors.theta_covariance
        own = columns, observations.gain, gram_inverse, gain
        value, deviation = _predict_columns(elimination, args, theta, own)
        if c.ndim == 1:
            value, deviation = value[:, 0], deviation[:, 0]
        if jnp.iscomplexobj(value):
            return VarProPrediction(value, deviation, None, None)
        band = quantile.astype(deviation.dtype) * deviation
        return VarProPrediction(value, deviation, value - band, value + band)

    return each(
        of_set,
        elimination.parts,
        args,
        fit.coefficients,
        observations,
        errors.gram_inverse,
        errors.gain,
    )


def _predict_columns(elimination, args, of_theta, own):
    """The values of one data set, and their standard deviations."""
    (theta, theta_covariance), (c, gain_of_offset, gram_inverse, gain) = of_theta, own

    def model(theta):
        return elimination.predict(theta, args, c, gain_of_offset)

    value, push = jax.linearize(model, theta)
    d = lax.map(push, unit_directions(theta))  # (q, p, k)
    phi = elimination.model.matrix(theta, args, elimination.caller)
    if isinstance(phi, lx.AbstractLinearOperator):
        phi = phi.as_matrix()
    phi = phi.astype(value.dtype)
    # θ moves c as well: its effect is D − Φ G.
    d = d - jnp.einsum("pn,knq->qpk", phi, gain)
    covariance = theta_covariance.astype(d.dtype)
    by_theta = jnp.einsum("qpk,qr,rpk->pk", d.conj(), covariance, d).real
    by_c = jnp.einsum("pn,knl,pl->pk", phi, gram_inverse, phi.conj()).real
    return value, jnp.sqrt(by_theta + by_c)


class _Part(NamedTuple):
    """Of one data set: (I − A A†) D, what G and (AᴴA)† come from, and counts."""

    jacobian: Inexact[Array, "q m k"]
    gain: Inexact[Array, "k n q"] | None  # `None`: yet to be computed, by what follows
    gram_inverse: Inexact[Array, "k n n"]
    elimination: Elimination
    observations: Observations
    at: Eliminated
    ways: int
    data: Integer[Array, ""]  # how many, and rows of priors
    parameters: Integer[Array, ""]  # but for θ
    cost: Float[Array, ""]


def errors_of(fit, context, prior: Any, loss: Loss | None) -> Errors:
    elimination, args, observations = context
    theta = at_least_single(fit.theta)
    if prior is not None:
        counts = each(len, fit.coefficients)
        elimination, observations = with_priors(prior, elimination, observations, counts)
    priors = each(lambda _: None, observations) if prior is None else prior
    parts = each(
        lambda *of_set: _part(theta, loss, *of_set),
        elimination.parts,
        args,
        observations,
        priors,
        fit.residual,
        fit.coefficients,
        fit.rank,
    )
    jacobians = each(lambda part: part.jacobian, parts)
    theta_covariance, theta_rank = _gram_inverse_of_theta(jacobians, _held(fit))

    def gain_of(part, args):
        if part.gain is not None:
            return part.gain
        ordered = after_in_batch(theta_covariance, after_in_batch(part.jacobian, theta))
        return _gain(part.elimination, ordered, args, part.observations, part.at)

    data, parameters, cost = (
        added([getattr(part, name) for part in listed(parts)])
        for name in ("data", "parameters", "cost")
    )
    parameters = parameters + theta_rank
    freedom = data - parameters
    return Errors(
        each(lambda part: part.ways, parts),
        cost / jnp.maximum(freedom, 0).astype(cost.dtype),
        freedom,
        parameters,
        theta_covariance,
        each(lambda part: part.gram_inverse, parts),
        each(gain_of, parts, args),
    )


def _part(theta, loss, elimination, args, observations, prior, r, c, fit_rank) -> _Part:
    r, c = (x.reshape(len(x), -1) for x in at_least_single((r, c)))
    phi, shift = elimination.model_at(theta, args)
    if prior is not None:
        r = jnp.concatenate([r, prior.residual(theta, c).astype(r.dtype)])
    if loss is not None:
        fitted = elimination.predict(theta, args, c, observations.gain)
        weights = loss.weights(r, fitted, observations)
        observations, r = reweighted(observations, weights), weights * r
    reduced = compress(
        observations,
        None if shift is None else shift.shape,
        None if has_real_coefficients(phi) else len(c),
    )
    # Each `after` here is for the order of the library calls of many fits.
    theta = theta if reduced is observations else after_in_batch(reduced, theta)
    if observations.limits is not None:
        at = elimination(theta, args, observations)
    elif reduced is observations:
        factors = Factors.create(phi, observations, elimination.solver, r.dtype)
        at = Eliminated(r, c, fit_rank, lx.RESULTS.successful, factors)
    else:
        at = elimination(theta, args, reduced)
    d, _ = elimination.tangents(theta, args, reduced, at, exact=False)
    assert d is not None
    jacobian, gain, gram_inverse = _blocks(at.factors, d, len(c))
    gain, gram_inverse = (_of_free(x, at.factors) for x in (gain, gram_inverse))
    gram_inverse = _of_free(gram_inverse.mT, at.factors).mT
    if reduced is not observations:
        at, gain = Eliminated(r, c, fit_rank, at.result, at.factors), None
    of_datum, ways = (2 if jnp.iscomplexobj(x) else 1 for x in (r, c))
    rank = r.shape[1] * fit_rank if jnp.ndim(fit_rank) == 0 else jnp.sum(fit_rank)
    once, counted = count_data(observations)
    parameters = ways * rank
    return _Part(
        jacobian,
        gain,
        gram_inverse,
        elimination,
        observations,
        at,
        ways,
        of_datum * counted + once,
        parameters,
        squared_norm(r),
    )


def count_data(observations: Observations):
    """Rows of nonzero weight that all columns have in common, and other such data."""
    rows, columns = observations.data.shape
    if observations.weights is None:
        return 0, jnp.asarray(rows * columns)
    own = rows - observations.common
    first, common = jnp.split(observations.weights, [own])
    times = columns if common.ndim == 1 else 1
    common = common if common.ndim == 1 else common[:, 0]
    return jnp.count_nonzero(common), times * jnp.count_nonzero(first)


def _blocks(factors: Factors, d: Inexact[Array, "q m k"], n: int):
    """(I − A A†) D as `(q, m, k)`, G = A†D as `(k, n, q)`, and (AᴴA)†, one for all
    columns or one for each, from one application of the factors."""
    q, m, k = d.shape
    if factors.shared:
        v = jnp.moveaxis(d, 1, 0).reshape(m, q * k)
        v = jnp.concatenate([v, jnp.zeros((m, n), d.dtype)], axis=1)
        w = jnp.eye(n, q * k + n, q * k, dtype=d.dtype)
        (r, x), *_ = factors.apply(v, w, derivative=True)
        r = jnp.moveaxis(r[:, : q * k].reshape(m, q, k), 0, 1)
        gain = jnp.moveaxis(x[:, : q * k].reshape(n, q, k), 2, 0)
        return r, gain, -x[None, :, q * k :]

    def solve(v, w):
        w = jnp.broadcast_to(w[:, None], (n, k))
        return factors.apply(v, w, derivative=True)[0]

    v = jnp.concatenate([d, jnp.zeros((n, m, k), d.dtype)])
    r, x = jax.vmap(solve)(v, jnp.eye(q + n, n, -q, dtype=d.dtype))
    x = jnp.moveaxis(x, (0, 1, 2), (2, 1, 0))
    return r[:q], x[:, :, :q], -x[:, :, q:]


def _of_free(rows: Inexact[Array, "k n _"], factors: Factors):
    """Rows of coefficients, those held at a bound zero, and not its rounding."""
    free = factors.free
    return rows if free is None else jnp.where(free.T[:, :, None], rows, 0)


def _held(fit) -> Bool[Array, " q"] | None:
    """Which of θ are no parameters, but constants."""
    if fit.held is None:
        return None
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jtu.tree_leaves(fit.held)]) != 0


def _gram_inverse_of_theta(jacobian: PyTree[Inexact[Array, "q _ _"]], held):
    """(JᵀJ)⁻¹, or NaN, and the rank of J; zero for what is held."""
    columns = jax.vmap(as_real, out_axes=1)(jacobian)
    rows, q = columns.shape
    if held is not None:  # ones of their own on the diagonal, until the end
        columns = jnp.where(held[None, :], 0, columns)
        columns = jnp.concatenate([columns, jnp.diag(held.astype(columns.dtype))])
    # Columns of one length, so that the rank does not depend on the units of θ.
    size = jnp.linalg.norm(columns, axis=0)
    size = jnp.where(size > 0, size, 1)
    r = jnp.linalg.qr(columns / size[None, :], mode="r")
    finite = all_finite(r)
    values = lax.stop_gradient(jnp.where(finite, r, 0))
    values = jnp.linalg.svd(values, compute_uv=False)
    rank = jnp.sum(values > jnp.finfo(r.dtype).eps * max(rows, q) * values[0])
    r = after_in_batch(values, r)
    inverse = jsl.solve_triangular(r, jnp.eye(q, dtype=r.dtype))
    inverse = inverse @ inverse.T / jnp.outer(size, size)
    inverse = jnp.where(rank == q, inverse, jnp.nan)
    if held is None:
        return inverse, rank
    return jnp.where(held[:, None] | held[None, :], 0, inverse), rank - jnp.sum(held)


def _gain(elimination, theta, args, observations, at: Eliminated):
    """G = A†D, `(k, n, q)`."""

    def solve(d, _):
        (_, x), *_ = at.factors.apply(d, residual=False)
        return x

    gain = elimination.tangents(theta, args, observations, at, exact=False, then=solve)
    return _of_free(jnp.moveaxis(gain, (0, 1, 2), (2, 1, 0)), at.factors)


# Of the expansion of Student's quantile over z in 1/ν: polynomials in z².
_EXPANSION = (
    np.array([1, 1]) / 4,
    np.array([5, 16, 3]) / 96,
    np.array([3, 19, 17, -15]) / 384,
    np.array([79, 776, 1482, -1920, -945]) / 92160,
)
# Of the series of Student's distribution: for up to twice as many degrees of freedom.
_TERMS = 128
_RATIOS = np.arange(1, _TERMS) * 2.0
_WEIGHTS = (  # of an even number, and of an odd one
    np.cumprod(np.append(1, (_RATIOS - 1) / _RATIOS)),
    np.cumprod(np.append(1, _RATIOS / (_RATIOS + 1))),
)


def student_quantile(
    confidence: float | Float[Array, ""],
    freedom: Integer[Array, ""],
    dtype,
    *,
    normal: bool | Bool[Array, ""] = False,
) -> Float[Array, ""]:
    """t with P(|T| < t) = `confidence`, or that of the normal distribution.

    By bisection of the angle arctan(t/√ν), of which the probability is a finite series
    (Abramowitz & Stegun (1964), 26.7.3 and 26.7.4); by its expansion in 1/ν (26.7.5)
    where that would be long.
    """
    nu = freedom.astype(dtype)
    nu = jnp.where(nu > 0, nu, jnp.nan)
    confidence = jnp.asarray(confidence, dtype)
    odd = freedom % 2 == 1
    powers = 2 * jnp.arange(_TERMS) + jnp.where(odd, 1, 0)
    weights = jnp.where(odd, *(jnp.asarray(w, dtype) for w in _WEIGHTS[::-1]))
    weights = jnp.where(jnp.arange(_TERMS) < freedom // 2, weights, 0)

    def halve(_, bounds):
        low, high = bounds
        angle = 0.5 * (low + high)
        terms = weights * jnp.exp(powers.astype(dtype) * jnp.log(jnp.cos(angle)))
        inside = jnp.sin(angle) * jnp.sum(terms)
        inside = jnp.where(odd, (angle + inside) * (2 / math.pi), inside)
        below = inside < confidence
        return jnp.where(below, angle, low), jnp.where(below, high, angle)

    bounds = jnp.zeros((), dtype), jnp.full((), math.pi / 2, dtype)
    low, high = fori_loop(0, jnp.finfo(dtype).nmant, halve, bounds)
    t = jnp.sqrt(nu) * jnp.tan(0.5 * (low + high))
    z = jax.scipy.special.ndtri(0.5 + 0.5 * confidence)
    expansion = z
    for power, polynomial in enumerate(_EXPANSION, 1):
        expansion += z * jnp.polyval(jnp.asarray(polynomial, dtype), z**2) / nu**power
    t = jnp.where(nu < 2 * _TERMS, t, expansion)
    return jnp.where(normal, z, jnp.where(jnp.isnan(nu), jnp.nan, t))
