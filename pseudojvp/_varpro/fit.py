"""The fit that `varpro` returns."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import numpy as np
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, Inexact, Integer, PyTree

from .._base.auto_axes import with_auto_axes
from .._base.call import compiled_lazily, Frame
from .._base.inexact import as_array
from .data_sets import as_arrays, check_sets, Eliminations
from .elimination import Elimination
from .loss import Loss
from .model import Observations
from .plot import plot_fit
from .profile import profile, Settings as ProfileSettings, VarProProfile
from .report import VarProReport
from .statistics import (
    Errors,
    errors_of,
    predict,
    statistics,
    VarProPrediction,
    VarProStatistics,
)
from .summary import check_confidence, check_one_fit, report


class VarProFit(eqx.Module):
    """What [`pseudojvp.varpro`][] returns: a pytree of arrays.

    - `theta`: a pytree like `theta0`.
    - `coefficients`: c, `(n,)` or `(n, k)`.
    - `residual`: W (data − offset − Φ c), in the shape of `data`.

    For several data sets, `coefficients`, `residual`, `rank` and `held_coefficients` are
    tuples.

    - `cost`: ½‖residual‖² plus the terms of the priors, a scalar.
    - `rank`: the rank of W Φ at `theta`; `(k,)` for weights of shape `(m, k)`. If the
        solver finds no rank, n.
    - `result`: compare with `optimistix.RESULTS.successful`.
    - `held`: a pytree like `theta` of integers: 0 if θ is free, −1 if it ended at its
        lower bound, 1 at its upper bound, 2 for `fixed`. `None` without `bounds` and
        `fixed`.
    - `held_coefficients`: in the shape of `coefficients`: −1 at the lower bound, 1 at the
        upper bound, 0 if free. `None` without `coefficient_bounds`.
    - `stats`: `num_steps` of the optimiser, `max_steps`, `polishing_steps`, and
        `relative_offset`, the part of the residual that a change of θ could still remove,
        in units of its statistical error (Bates & Watts); a fit above 0.001 is not
        `successful`.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y = 2 * jnp.exp(-0.5 * t) + 0.01 * jnp.cos(40 * t)
    fit = pj.varpro(decay, y, jnp.array(0.4), t)
    print(fit.theta.round(2), fit.coefficients.round(2), fit.rank)  # 0.5 [2.] 1
    print(f"{fit.cost:.1e}")  # 1.2e-03
    ```
    """

    theta: PyTree[Array]
    coefficients: Inexact[Array, "n *k"] | tuple[Inexact[Array, "..."], ...]
    residual: Inexact[Array, "m *k"] | tuple[Inexact[Array, "..."], ...]
    cost: Float[Array, ""]
    rank: Integer[Array, ""] | Integer[Array, " k"] | tuple[Integer[Array, "..."], ...]
    result: optx.RESULTS
    held: PyTree[Integer[Array, "..."]] | None
    held_coefficients: PyTree[Integer[Array, "..."]] | None
    stats: dict[str, Any]
    # Elimination, args and observations: functions as static parts, so that a fit can
    # come out of `jax.vmap` and `jax.jit`.
    _arrays: list[Array]
    _functions: Frame

    def statistics(self, *, absolute_sigma: bool = False) -> VarProStatistics:
        """Returns covariances of θ and c by linear propagation of the errors of `data`.

        With J = −(I − A A†) D, a part of ∂r/∂θ, and G = A†D, where A = W Φ and D = W
        ∂(offset + Φ c)/∂θ,

            cov(θ) = s² (JᵀJ)⁻¹,    cov(c) = s² (AᴴA)⁻¹ + G cov(θ) Gᴴ,
            cov(c, θ) = −G cov(θ),

        where s² = ‖r‖²/(degrees of freedom). These are the blocks of the covariance of
        the full problem, computed from the QR of J (m k × q) and the factors of A, in
        time proportional to k. What is `held` has variance zero, and the statistics are
        those of the other parameters.

        **Arguments:**

        - `absolute_sigma`: whether `weights` are 1/σ as they are, and s² = 1. Defaults to
            `False`: only their ratios matter.

        **Returns:** a [`pseudojvp.VarProStatistics`][].

        **Sources:** O'Leary & Rust, Comput. Optim. Appl. 54 (2013), section 3; Seber &
        Wild, *Nonlinear Regression* (1989), section 2.1.2.
        """
        return _statistics(self, as_array(absolute_sigma))[0]

    def predict(
        self,
        args: Any = None,
        confidence: float = 0.95,
        *,
        absolute_sigma: bool = False,
    ) -> VarProPrediction | tuple[VarProPrediction, ...]:
        """Returns the fitted model at other `args`, with its confidence band.

        The band is offset(θ, args) + Φ(θ, args) c ± t · standard deviation, with t the
        quantile of Student's distribution. It contains the true *mean* at one point, not
        the next datum, with probability `confidence`.

        **Arguments:**

        - `args`: as in `varpro`, at any points, not only those of the data: the number of
            rows is free, n and k stay.
        - `confidence`: between 0 and 1. Defaults to 0.95.
        - `absolute_sigma`: as for `statistics`.

        **Returns:** a [`pseudojvp.VarProPrediction`][], with arrays `(p,)` or `(p, k)`
        for p rows; for several data sets a tuple of them.

        **Raises:** `ValueError` for a confidence outside (0, 1).
        """
        check_confidence(confidence, "predict")
        absolute = as_array(absolute_sigma)
        _, errors = _statistics(self, absolute)
        observations = self._context()[2]
        args = check_sets(self.theta, as_arrays(args), observations, "VarProFit.predict")
        level = as_array(np.float64(confidence))
        return _predict(self, errors, args, level, absolute)

    def summary(
        self, confidence: float = 0.95, *, absolute_sigma: bool = False
    ) -> VarProReport:
        """Returns a report of the fit: `print(fit.summary())`.

        It has names, values, standard deviations, intervals value ± t · standard
        deviation, correlations, χ², R², AIC and BIC, and warnings. It is computed on the
        host from `statistics()`, whose program it shares.

        **Arguments:**

        - `confidence`: the probability of the intervals, between 0 and 1. Defaults to
            0.95. t is the quantile of Student's distribution, or of the normal one with
            `absolute_sigma`.
        - `absolute_sigma`: as for `statistics`.

        **Returns:** a [`pseudojvp.VarProReport`][]. Nothing in it is differentiated.

        **Raises:** `ValueError` for a confidence outside (0, 1) and for fits with a batch
        axis; `TypeError` while JAX traces.
        """
        check_confidence(confidence, "summary")
        check_one_fit(self, "summary")
        found, errors = _statistics(self, as_array(absolute_sigma))
        return report(self, found, errors, confidence, absolute_sigma)

    def plot(
        self,
        axes: Any = None,
        *,
        confidence: float = 0.95,
        x: ArrayLike | tuple[Any, ...] | None = None,
        curve: tuple[Any, Any] | None = None,
        columns: Sequence[int] | None = None,
        absolute_sigma: bool = False,
    ) -> Any:
        """Draws the data, the fit and its confidence band, and the weighted residuals
        below.

        For complex data, real and imaginary parts are drawn, without a band. Data of
        weight zero are drawn hollow. Needs matplotlib, from the extra `plot`.

        **Arguments:**

        - `axes`: two matplotlib axes, above and below; `(2, D)` for D data sets. Defaults
            to those of a new figure of `matplotlib.pyplot`.
        - `confidence`, `absolute_sigma`: for the band, as in `predict`. With
            `absolute_sigma` the data have error bars of 1/weights.
        - `x`: the abscissa of each row of `data`, `(m,)`. Defaults to `args`, if that is
            an array of shape `(m,)`, otherwise to the row numbers.
        - `curve`: a pair of other `args` and their abscissae, at which fit and band are
            drawn, to get a finer curve. Defaults to the points of the data. For several
            data sets `x` and both parts of `curve` are tuples.
        - `columns`: which of the k columns to draw. Defaults to the first six.

        **Returns:** the axes, in a NumPy array.

        **Raises:** `ImportError` without matplotlib; `ValueError` for arrays or numbers
        that do not match and for fits with a batch axis; `TypeError` while JAX traces.
        """
        check_one_fit(self, "plot")
        check_confidence(confidence, "plot")
        band = lambda args: self.predict(args, confidence, absolute_sigma=absolute_sigma)
        at = None if curve is None else (band(curve[0]), curve[1])
        here = band(self._context()[1])
        return plot_fit(self, axes, here, at, x, columns, absolute_sigma)

    def profile(
        self,
        name: str,
        confidence: float = 0.95,
        *,
        absolute_sigma: bool = False,
        bounds: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
        values: ArrayLike | list[float] | None = None,
        batch_size: int = 16,
        throw: bool = True,
    ) -> VarProProfile:
        """Returns the profile-likelihood interval of one parameter, and its curve.

        The parameter is held at a value, all others are fitted again, and the cost rises
        from its minimum to cost(value). With the signed root

            τ(value) = sign(value − estimate) √(2 (cost(value) − least cost)/s²)

        the interval is where |τ| < t. It is as asymmetric as the cost, may be open, and
        does not change when the model is written in other parameters. For a linear model
        it equals that of `summary()`. Cost: a few times sixteen fits at once, in one
        program; the ends are found to 1e-6 of their distance from the estimate.

        **Arguments:**

        - `name`: as in `summary()`: a number of θ, or a real coefficient without
            `coefficient_bounds`. The profile of a coefficient of one of k columns needs
            twice the rows and weights of each column.
        - `confidence`: between 0 and 1. Defaults to 0.95. t is the quantile of Student's
            distribution, or of the normal one with `absolute_sigma`.
        - `absolute_sigma`: as for `statistics`; then s² = 1.
        - `bounds`: as in `varpro`; the fit does not keep its own. What was `fixed` stays
            fixed. Defaults to none.
        - `values`: more values at which to compute the curve. Defaults to none: only
            those at which the search looked for the ends.
        - `batch_size`: the number of fits at once, from 1 to 16. Defaults to 16.
        - `throw`: whether an error is raised if an end is not found because fits failed,
            or if a better fit is found. If `False`, such ends are NaN and `warnings` says
            so. Defaults to `True`.

        **Returns:** a [`pseudojvp.VarProProfile`][]. Nothing in it is differentiated.

        **Raises:** `ValueError` for an unknown name, a confidence outside (0, 1), a
        failed fit, a fit with a prior or another loss than squares, or a parameter
        without a profile; `TypeError` while JAX traces; `RuntimeError` as `throw` says.

        **Sources:** Bates & Watts, *Nonlinear Regression Analysis and Its Applications*
        (1988), section 6.1.
        """
        check_one_fit(self, "profile")
        check_confidence(confidence, "profile")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"`VarProFit.profile(batch_size=...)` got {batch_size!r}. Pass 1 or more."
            )
        found, _ = _statistics(self, as_array(absolute_sigma))
        of = ProfileSettings(
            confidence, absolute_sigma, bounds, values, batch_size, throw
        )
        return profile(self, name, found, self._again(), of)

    def _context(
        self,
    ) -> tuple[Elimination | Eliminations, Any, Observations | tuple[Observations, ...]]:
        return self._functions.filled(self._arrays)[:3]

    def _prior(self) -> Any:  # of several data sets a tuple
        return self._functions.filled(self._arrays)[3]

    def _loss(self) -> Loss | None:
        return self._functions.filled(self._arrays)[4]

    def _again(self) -> Callable:
        """`varpro`, which stands above this module."""
        return self._functions.filled(self._arrays)[5]


@compiled_lazily
@with_auto_axes
def _statistics(fit: VarProFit, absolute) -> tuple[VarProStatistics, Errors]:
    errors = errors_of(fit, fit._context(), fit._prior(), fit._loss()).scaled(absolute)
    return statistics(fit, errors), errors


@compiled_lazily
@with_auto_axes
def _predict(
    fit: VarProFit, errors: Errors, args, confidence, absolute
) -> VarProPrediction | tuple[VarProPrediction, ...]:
    return predict(fit, fit._context(), errors, args, confidence, absolute)
