"""Errors of a fit, propagated linearly: covariances of θ and c, confidence bands."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Inexact, Integer

from .._base.order import after
from .._map.factorised import Factorised
from .._map.rows import Blocks
from .._solver import PivotedQR
from .compression import compress
from .elimination import Eliminated, Elimination, unit_directions
from .model import Observations
from .real import as_real, squared_norm


class VarProStatistics(eqx.Module):
    """What `VarProFit.statistics()` returns, for q parameters θ and n coefficients.

    θ is in the order of `jax.flatten_util.ravel_pytree(theta)`. For `data` of shape
    `(m, k)`, an axis k is in front where `(k)` stands; covariances between the
    coefficients of different columns are left out. Complex coefficients have the
    covariance E[δc δcᴴ].

    - `theta_covariance`: `(q, q)`; NaN if the data do not determine all of θ.
    - `coefficient_covariance`: `(k) (n, n)`; that of the minimum-norm solution if Φ is
        rank-deficient.
    - `cross_covariance`: of c and θ, `(k) (n, q)`.
    - `theta_standard_deviation`: `(q,)`.
    - `coefficient_standard_deviation`: as `coefficients`, `(n,)` or `(n, k)`.
    - `correlation`: of θ and then c, `(k) (q + n, q + n)`.
    - `reduced_chi_square`: ‖residual‖² over the degrees of freedom.
    - `degrees_of_freedom`: data of nonzero weight less rank(W Φ) per column less q;
        complex data and complex coefficients count twice.
    """

    theta_covariance: Float[Array, "q q"]
    coefficient_covariance: Inexact[Array, "*k n n"]
    cross_covariance: Inexact[Array, "*k n q"]
    theta_standard_deviation: Float[Array, " q"]
    coefficient_standard_deviation: Float[Array, "n *k"]
    correlation: Inexact[Array, "*k q+n q+n"]
    reduced_chi_square: Float[Array, ""]
    degrees_of_freedom: Integer[Array, ""]


class VarProPrediction(eqx.Module):
    """What `VarProFit.predict()` returns: the model at p points, and its band.

    - `value`: `(p,)` or `(p, k)`.
    - `standard_deviation`: of `value`, real.
    - `lower`, `upper`: the band; `None` for complex values.
    """

    value: Inexact[Array, "p *k"]
    standard_deviation: Float[Array, "p *k"]
    lower: Float[Array, "p *k"] | None
    upper: Float[Array, "p *k"] | None


class _Errors(NamedTuple):
    """The blocks from which all of it is made."""

    scale: Float[Array, ""]  # s²
    reduced_chi_square: Float[Array, ""]
    degrees_of_freedom: Integer[Array, ""]
    theta_covariance: Float[Array, "q q"]
    gram_inverse: Inexact[Array, "k n n"]  # (AᴴA)†; k = 1 if it is common
    gain: Inexact[Array, "k n q"]  # G


def statistics(fit, context, absolute_sigma: bool) -> VarProStatistics:
    errors = _errors(fit, context, absolute_sigma)
    theta_covariance, gain = errors.theta_covariance, errors.gain
    cross = -jnp.matmul(gain, theta_covariance.astype(gain.dtype))
    spread = jnp.matmul(-cross, jnp.swapaxes(gain.conj(), 1, 2))
    coefficients = errors.scale.astype(gain.dtype) * errors.gram_inverse + spread
    theta_block = jnp.broadcast_to(
        theta_covariance.astype(gain.dtype), (gain.shape[0], *theta_covariance.shape)
    )
    upper = [theta_block, jnp.swapaxes(cross.conj(), 1, 2)]
    full = jnp.block([upper, [cross, coefficients]])
    deviation = jnp.sqrt(jnp.diagonal(full.real, axis1=1, axis2=2))
    known = jnp.where(deviation > 0, deviation, 1)
    correlation = full / (known[:, :, None] * known[:, None, :]).astype(full.dtype)
    q = theta_covariance.shape[0]
    c_deviation = deviation[:, q:].T
    if fit.coefficients.ndim == 1:
        coefficients, cross, correlation = coefficients[0], cross[0], correlation[0]
        c_deviation = c_deviation[:, 0]
    return VarProStatistics(
        theta_covariance,
        coefficients,
        cross,
        deviation[0, :q],
        c_deviation,
        correlation,
        errors.reduced_chi_square,
        errors.degrees_of_freedom,
    )


def predict(
    fit, context, args: Any, confidence: float, absolute_sigma: bool
) -> VarProPrediction:
    elimination, _, observations = context
    errors = _errors(fit, context, absolute_sigma)
    c = fit.coefficients if fit.coefficients.ndim == 2 else fit.coefficients[:, None]

    def model(theta):
        return elimination.predict(theta, args, c, observations.gain)

    value, push = jax.linearize(model, fit.theta)
    d = lax.map(push, unit_directions(fit.theta))  # (q, p, k)
    phi = elimination.model.matrix(fit.theta, args, elimination.caller)
    if isinstance(phi, lx.AbstractLinearOperator):
        phi = phi.as_matrix()
    phi = phi.astype(value.dtype)
    # θ moves c as well: its effect is D − Φ G.
    d = d - jnp.einsum("pn,knq->qpk", phi, errors.gain)
    covariance = errors.theta_covariance.astype(d.dtype)
    by_theta = jnp.einsum("qpk,qr,rpk->pk", d.conj(), covariance, d).real
    by_c = jnp.einsum("pn,knl,pl->pk", phi, errors.gram_inverse, phi.conj()).real
    deviation = jnp.sqrt(by_theta + errors.scale * by_c)
    if fit.coefficients.ndim == 1:
        value, deviation = value[:, 0], deviation[:, 0]
    if jnp.iscomplexobj(value):
        return VarProPrediction(value, deviation, None, None)
    if absolute_sigma:
        half_width = jax.scipy.special.ndtri(0.5 + 0.5 * jnp.asarray(confidence, d.dtype))
    else:
        half_width = student_quantile(
            confidence, errors.degrees_of_freedom, deviation.dtype
        )
    band = half_width * deviation
    return VarProPrediction(value, deviation, value - band, value + band)


def _errors(fit, context, absolute_sigma: bool) -> _Errors:
    elimination, args, observations = context
    shift = eqx.filter_eval_shape(
        elimination.model.shift, fit.theta, args, elimination.caller
    )
    # Each `after` here is for the order of the library calls of many fits.
    reduced = compress(
        observations, None if shift is None else shift.shape, len(fit.coefficients)
    )
    theta = fit.theta if reduced is observations else after(reduced, fit.theta)
    at = elimination(theta, args, reduced)
    theta_covariance, theta_rank = _gram_inverse_of_theta(
        elimination, theta, args, reduced, at
    )
    if reduced is not observations:
        observations = after(theta_covariance, observations)
        at = elimination(theta, args, observations, at.factors)
    gram_inverse = _gram_inverse(at, theta_covariance)
    gain = _gain(elimination, after(gram_inverse, theta), args, observations, at)
    ways = 2 if jnp.iscomplexobj(at.residual) else 1
    k = at.residual.shape[1]
    rank = k * at.rank if at.rank.ndim == 0 else jnp.sum(at.rank)
    freedom = ways * (_count(observations) - rank) - theta_rank
    cost = squared_norm(at.residual)
    chi_square = cost / jnp.maximum(freedom, 0).astype(cost.dtype)
    scale = jnp.ones_like(chi_square) if absolute_sigma else chi_square
    # Of complex noise, s² is the variance of each part.
    return _Errors(
        ways * scale,
        chi_square,
        freedom,
        scale.astype(theta_covariance.dtype) * theta_covariance,
        gram_inverse,
        gain,
    )


def _count(observations: Observations) -> Integer[Array, ""]:
    """Data of nonzero weight."""
    rows, columns = observations.data.shape
    if observations.weights is None:
        return jnp.asarray(rows * columns)
    times = columns if observations.weights.ndim == 1 else 1
    return times * jnp.count_nonzero(observations.weights)


def _gram_inverse_of_theta(elimination: Elimination, theta, args, observations, at):
    """(JᵀJ)⁻¹ for J = −(I − A A†) D, or NaN, and the rank of J."""
    jacobian = elimination.jacobian(theta, args, observations, at, exact=False)
    jacobian = jax.vmap(as_real, out_axes=1)(jacobian)
    # Columns of one length, so that the rank does not depend on the units of θ.
    size = jnp.linalg.norm(jacobian, axis=0)
    size = jnp.where(size > 0, size, 1)
    operator = lx.MatrixLinearOperator(jacobian / size[None, :])
    factorised, _ = Factorised.create(operator, PivotedQR(), throw=False)
    q = jacobian.shape[1]
    inverse = jax.vmap(factorised.gram_inverse)(jnp.eye(q, dtype=jacobian.dtype))
    inverse = 0.5 * (inverse + inverse.T) / jnp.outer(size, size)
    rank = factorised.stats["rank"]
    return jnp.where(rank == q, inverse, jnp.nan), rank


def _gram_inverse(at: Eliminated, earlier) -> Inexact[Array, "k n n"]:
    """(AᴴA)†, one for all columns or one for each."""
    n, k = at.coefficients.shape
    earlier = earlier, at.coefficients, at.residual
    identity = after(earlier, jnp.eye(n, dtype=at.coefficients.dtype))
    wanted = Blocks(False, True, False)
    if at.factors.shared:
        (_, x, _), _, _ = at.factors.apply(None, identity, wanted)
        return -x[None]

    def solve(unit):
        w = jnp.broadcast_to(unit[:, None], (n, k))
        (_, x, _), _, _ = at.factors.apply(None, w, wanted)
        return -x

    return jnp.moveaxis(jax.vmap(solve)(identity), (0, 1, 2), (2, 1, 0))


def _gain(elimination, theta, args, observations, at: Eliminated):
    """G = A†D, `(k, n, q)`."""
    wanted = Blocks(False, True, False)

    def solve(d, _):
        (_, x, _), _, _ = at.factors.apply(d, None, wanted)
        return x

    gain = elimination.tangents(theta, args, observations, at, exact=False, then=solve)
    return jnp.moveaxis(gain, (0, 1, 2), (2, 1, 0))


def student_quantile(
    confidence: float | Float[Array, ""], freedom: Integer[Array, ""], dtype
) -> Float[Array, ""]:
    """t with P(|T| < t) = `confidence`, by bisection of s = t/(1 + t) in the incomplete
    beta function (Abramowitz & Stegun (1964), 26.7.1); by its expansion in 1/ν (26.7.5)
    where ν is so large that single precision would lose it."""
    nu = freedom.astype(dtype)
    nu = jnp.where(nu > 0, nu, jnp.nan)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        t = middle / (1 - middle)
        inside = jax.scipy.special.betainc(0.5, 0.5 * nu, t * t / (nu + t * t))
        return jnp.where(inside < confidence, middle, low), jnp.where(
            inside < confidence, high, middle
        )

    bounds = jnp.zeros((), dtype), jnp.ones((), dtype)
    low, high = lax.fori_loop(0, jnp.finfo(dtype).nmant, halve, bounds)
    middle = 0.5 * (low + high)
    z = jax.scipy.special.ndtri(0.5 + 0.5 * jnp.asarray(confidence, dtype))
    expansion = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    expansion += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    t = jnp.where(nu < 1000, middle / (1 - middle), expansion)
    return jnp.where(jnp.isnan(nu), jnp.nan, t)
