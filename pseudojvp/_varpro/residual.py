from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact, Num, PyTree, Real

from .._base.checks import check_solver
from .._base.inexact import as_inexact, as_native
from .._base.results import nan_after_failure
from .._base.tree import at_least_single
from .._solver import PivotedQR
from .elimination import Elimination
from .limits import check_limits
from .model import Observations, SeparableModel


@eqx.filter_custom_jvp
def residual_columns(theta, inputs, exact):
    """r(θ) as columns, `inputs` being elimination, args and observations.

    Its tangents with respect to θ are products with one Jacobian that is computed at
    once, so that an optimiser which linearises it carries q m k numbers and no tape.
    """
    del exact
    elimination, args, observations = inputs
    return elimination(theta, args, observations).residual


@residual_columns.def_jvp
def _residual_jvp(primals, tangents):
    theta, inputs, exact = primals
    t_theta, t_inputs, _ = tangents
    elimination, args, observations = inputs
    at = elimination(theta, args, observations)
    tangent = jnp.zeros_like(at.residual)
    if jtu.tree_leaves(t_theta):
        jacobian = elimination.jacobian(theta, args, observations, at, exact=exact)
        jacobian = nan_after_failure(at.result, jacobian)
        flat, _ = jfu.ravel_pytree(jtu.tree_map(_materialise, theta, t_theta))
        along = jnp.tensordot(flat.astype(jacobian.dtype), jacobian, 1)
        tangent = tangent + along
    if jtu.tree_leaves(t_inputs):

        def of_inputs(inputs):
            elimination, args, observations = inputs
            return elimination(theta, args, observations).residual

        perturbed = jtu.tree_map(lambda t: t is not None, t_inputs, is_leaf=_is_none)
        moving, still = eqx.partition(inputs, perturbed)
        _, along = jax.jvp(
            lambda moving: of_inputs(eqx.combine(moving, still)), (moving,), (t_inputs,)
        )
        tangent = tangent + along
    return at.residual, tangent


def _is_none(x) -> bool:
    return x is None


def _materialise(primal, tangent):
    return jnp.zeros_like(primal) if tangent is None else tangent


class ProjectedResidual(eqx.Module):
    """What [`pseudojvp.projected_residual`][] returns."""

    _elimination: Elimination
    _observations: Observations
    _exact: bool = eqx.field(static=True)
    _vector: bool = eqx.field(static=True)

    # By identity, as of any function, so that `jax.jit` takes it.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __call__(self, theta: PyTree[Array], args: Any = None) -> Inexact[Array, "m *k"]:
        theta = check_theta(theta, self._elimination.caller)
        inputs = self._elimination.closed(theta, args), args, self._observations
        return self._shaped(residual_columns(theta, inputs, self._exact))

    def coefficients(
        self, theta: PyTree[Array], args: Any = None
    ) -> Inexact[Array, "n *k"]:
        """Returns c(θ), `(n,)` or `(n, k)`."""
        theta = check_theta(theta, self._elimination.caller)
        at = self._elimination(theta, args, self._observations)
        return self._shaped(at.coefficients)

    def jacobian(self, theta: PyTree[Array], args: Any = None):
        """Returns ∂r/∂θ, `(m, q)` or `(m, k, q)`, θ in the order of `ravel_pytree`.

        At the cost of one factorisation, without the tangents of Φ all at once.
        """
        theta = check_theta(theta, self._elimination.caller)
        elimination, observations = self._elimination, self._observations
        at = elimination(theta, args, observations)
        j = elimination.jacobian(theta, args, observations, at, exact=self._exact)
        j = nan_after_failure(at.result, j)
        return self._shaped(jnp.moveaxis(j, 0, -1))

    def _shaped(self, columns):
        return columns[:, 0] if self._vector else columns


def projected_residual(
    basis: Callable[[PyTree[Array], Any], Inexact[Array, "m n"]],
    data: Num[ArrayLike, " m"] | Num[ArrayLike, "m k"] | list,
    *,
    weights: Real[ArrayLike, " m"] | Real[ArrayLike, "m k"] | list | None = None,
    offset: Callable[[PyTree[Array], Any], Inexact[Array, " m"] | Inexact[Array, "m k"]]
    | None = None,
    solver: lx.AbstractLinearSolver = PivotedQR(),
    jacobian: str = "exact",
    coefficient_bounds: tuple[ArrayLike, ArrayLike] | None = None,
) -> ProjectedResidual:
    """Returns the function θ ↦ W (y − offset(θ) − Φ(θ) c), c the best coefficients.

        r(θ) = (I − A A†) W (y − offset(θ)),    A = W Φ(θ)

    For an optimiser of your own: SciPy's `least_squares`, Optimistix, optax. Call it as
    `residual(theta, args=None)`; it is the `fn(y, args)` of Optimistix as it stands.
    `residual.coefficients(theta, args)` returns c, and `residual.jacobian(theta, args)`
    the whole ∂r/∂θ, `(m, q)` or `(m, k, q)`. `jax.jit` takes all three, with the data as
    constants; `equinox.filter_jit` compiles once for all data of a shape.

    **Arguments:** as for [`pseudojvp.varpro`][].

    **Returns:** a function of `(theta, args=None)`, a pytree, with a residual of the
    shape of `data`; complex if the basis or the data are. It never raises at run time: it
    is NaN where the solver failed or something was not finite.

    **Derivatives:** with respect to everything, forward and reverse, of every order; with
    respect to θ as `jacobian` says, the rest exactly. A tangent with respect to θ
    computes ∂r/∂θ for all of θ, once for all tangents under `jax.vmap`.

    **Raises:** `TypeError` or `ValueError` at trace time for shapes, dtypes or types that
    do not fit.

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), equations (4.4) and
    (5.4); Kaufman, BIT 15 (1975), equation (4.1).
    """
    caller = "projected_residual"
    elimination, observations, exact = prepare(
        caller, basis, data, weights, offset, solver, jacobian, coefficient_bounds
    )
    return ProjectedResidual(elimination, observations, exact, np.ndim(data) == 1)


def prepare(
    caller, basis, data, weights, offset, solver, jacobian, coefficient_bounds=None
):
    """The model, the observations as columns, and whether the Jacobian is exact."""
    for name, function in (("basis", basis), ("offset", offset)):
        if not callable(function) and (name == "basis" or function is not None):
            raise TypeError(
                f"`{caller}({name}=...)` got {type(function).__name__}. Pass a function "
                "of (theta, args)."
            )
    check_solver(solver, caller)
    if jacobian not in ("exact", "kaufman"):
        raise ValueError(
            f"`{caller}(jacobian=...)` got {jacobian!r}. Pass 'exact' or 'kaufman'."
        )
    data = at_least_single(as_inexact(data, f"{caller}(data=...)"))
    if data.ndim not in (1, 2) or 0 in data.shape:
        raise ValueError(
            f"`{caller}(data=...)` got an array of shape {data.shape}. Pass one of shape "
            "(m,), or (m, k) for k columns that share theta, m and k at least 1; for "
            "a batch of fits use `jax.vmap` or `varpro_batch`."
        )
    columns = data[:, None] if data.ndim == 1 else data
    weights = _check_weights(weights, data, caller)
    limits = check_limits(coefficient_bounds, solver, data, caller)
    gain = jnp.ones(columns.shape[1], data.dtype)
    observations = Observations(columns, weights, gain, limits)
    elimination = Elimination(SeparableModel(basis, offset), solver, caller)
    return elimination, observations, jacobian == "exact"


def _check_weights(weights, data, caller):
    if weights is None:
        return None
    weights = at_least_single(as_inexact(weights, f"{caller}(weights=...)"))
    if jnp.iscomplexobj(weights):
        raise TypeError(
            f"`{caller}(weights=...)` got {weights.dtype}. Pass real numbers, 1/σ for "
            "data of standard deviation σ."
        )
    if weights.shape not in (data.shape[:1], data.shape):
        raise ValueError(
            f"`{caller}(weights=...)` got an array of shape {weights.shape}. Pass one of "
            f"shape {data.shape[:1]}" + (f" or {data.shape}." if data.ndim == 2 else ".")
        )
    # A negative weight is not a number that the fit could use, and tells itself as one.
    return jnp.where(weights >= 0, weights, jnp.nan)


def check_theta(theta: PyTree[ArrayLike], caller: str) -> PyTree[Array]:
    """θ as arrays of real floating-point numbers, or an error."""
    if not any(np.size(leaf) for leaf in jtu.tree_leaves(theta)):
        raise ValueError(
            f"`{caller}` got theta without a single number. Without nonlinear "
            "parameters, solve for the coefficients by `lstsq`."
        )

    def check(leaf):
        leaf = as_native(leaf, f"{caller}(theta=...)")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"`{caller}` got theta with a leaf of dtype {dtype}. Pass real "
                "floating-point numbers (1.0 for 1; two real ones for a complex one)."
            )
        return jnp.asarray(leaf)

    return jtu.tree_map(check, theta)
