import operator
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
from .._base.inexact import as_array, as_native, inexact
from .._base.results import nan_after_failure
from .._base.tree import at_least_single
from .._solver import PivotedQR
from .data_sets import (
    check_no_list,
    check_sets,
    each,
    Eliminations,
    for_each,
    OfSet,
    pairs_for_each,
)
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
    tangent = jtu.tree_map(jnp.zeros_like, at.residual)
    if jtu.tree_leaves(t_theta):
        jacobian = elimination.jacobian(theta, args, observations, at, exact=exact)
        jacobian = nan_after_failure(at.result, jacobian)
        flat, _ = jfu.ravel_pytree(jtu.tree_map(_materialise, theta, t_theta))
        tangent = jtu.tree_map(
            lambda t, j: t + jnp.tensordot(flat.astype(j.dtype), j, 1), tangent, jacobian
        )
    if jtu.tree_leaves(t_inputs):

        def of_inputs(inputs):
            elimination, args, observations = inputs
            return elimination(theta, args, observations).residual

        perturbed = jtu.tree_map(lambda t: t is not None, t_inputs, is_leaf=_is_none)
        moving, still = eqx.partition(inputs, perturbed)
        _, along = jax.jvp(
            lambda moving: of_inputs(eqx.combine(moving, still)), (moving,), (t_inputs,)
        )
        tangent = jtu.tree_map(operator.add, tangent, along)
    return at.residual, tangent


def _is_none(x) -> bool:
    return x is None


def _materialise(primal, tangent):
    return jnp.zeros_like(primal) if tangent is None else tangent


class ProjectedResidual(eqx.Module):
    """What [`pseudojvp.projected_residual`][] returns."""

    _elimination: Elimination | Eliminations
    _observations: Any  # of several data sets a tuple
    _exact: bool = eqx.field(static=True)
    _vector: bool | tuple[bool, ...] = eqx.field(static=True)

    # By identity, as of any function, so that `jax.jit` takes it.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __call__(
        self, theta: PyTree[Array], args: Any = None
    ) -> PyTree[Inexact[Array, "..."]]:
        theta = check_theta(theta, self._elimination.caller)
        args = self._args(theta, args)
        inputs = self._elimination.closed(theta, args), args, self._observations
        return self._shaped(residual_columns(theta, inputs, self._exact))

    def coefficients(
        self, theta: PyTree[Array], args: Any = None
    ) -> PyTree[Inexact[Array, "..."]]:
        """Returns c(θ), `(n,)` or `(n, k)`; of several data sets a tuple."""
        theta = check_theta(theta, self._elimination.caller)
        args = self._args(theta, args)
        at = self._elimination(theta, args, self._observations)
        return self._shaped(at.coefficients)

    def jacobian(self, theta: PyTree[Array], args: Any = None):
        """Returns ∂r/∂θ, `(m, q)` or `(m, k, q)`, θ in the order of `ravel_pytree`.

        At the cost of one factorisation, without the tangents of Φ all at once.
        """
        theta = check_theta(theta, self._elimination.caller)
        elimination, observations = self._elimination, self._observations
        args = self._args(theta, args)
        at = elimination(theta, args, observations)
        j = elimination.jacobian(theta, args, observations, at, exact=self._exact)
        j = nan_after_failure(at.result, j)
        return self._shaped(jtu.tree_map(lambda leaf: jnp.moveaxis(leaf, 0, -1), j))

    def _args(self, theta, args):
        return check_sets(theta, args, self._observations, self._elimination.caller)

    def _shaped(self, columns):
        shaped = lambda columns, vector: columns[:, 0] if vector else columns
        return each(shaped, columns, self._vector)


def projected_residual(
    basis: Callable[[PyTree[Array], Any], Inexact[Array, "m n"]] | tuple[Callable, ...],
    data: Num[ArrayLike, " m"] | Num[ArrayLike, "m k"] | list | tuple[Any, ...],
    *,
    weights: Real[ArrayLike, " m"]
    | Real[ArrayLike, "m k"]
    | list
    | tuple[Any, ...]
    | None = None,
    offset: Callable[[PyTree[Array], Any], Inexact[Array, " m"] | Inexact[Array, "m k"]]
    | tuple[Callable | None, ...]
    | None = None,
    solver: lx.AbstractLinearSolver = PivotedQR(),
    jacobian: str = "exact",
    coefficient_bounds: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
) -> ProjectedResidual:
    """Returns the function θ ↦ W (y − offset(θ) − Φ(θ) c), c the best coefficients.

        r(θ) = (I − A A†) W (y − offset(θ)),    A = W Φ(θ)

    Use it with an optimiser of your own: SciPy's `least_squares`, Optimistix, optax. Call
    it as `residual(theta, args=None)`; it can be passed to Optimistix as `fn(y, args)`.
    `residual.coefficients(theta, args)` returns c, and `residual.jacobian(theta, args)`
    the whole ∂r/∂θ, `(m, q)` or `(m, k, q)`. `jax.jit` takes all three, with the data as
    constants; `equinox.filter_jit` compiles once for all data of one shape.

    **Arguments:** as for [`pseudojvp.varpro`][].

    **Returns:** a pytree that is a function of `(theta, args=None)`. It returns a
    residual of the shape of `data` (a tuple for several data sets), complex if the basis
    or the data are. It never raises at run time: the residual is NaN if the solver failed
    or something was not finite.

    **Derivatives:** with respect to everything, forward and reverse, of every order: with
    respect to θ as `jacobian` says, otherwise exactly. A tangent with respect to θ
    computes ∂r/∂θ for all of θ, once for all tangents under `jax.vmap`.

    **Raises:** `TypeError` or `ValueError` at trace time for shapes, dtypes or types that
    do not match.

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), equations (4.4) and
    (5.4); Kaufman, BIT 15 (1975), equation (4.1).

    Cost of a call: one factorisation of A and one application of its factors; a Jacobian
    takes one more application.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    residual = pj.projected_residual(decay, 2 * jnp.exp(-0.5 * t))
    print(jnp.linalg.norm(residual(jnp.array(0.5), t)) < 1e-5)  # True
    ```
    """
    caller = "projected_residual"
    elimination, observations, exact = prepare(
        caller, basis, data, weights, offset, solver, jacobian, coefficient_bounds
    )
    return ProjectedResidual(elimination, observations, exact, are_vectors(data))


def are_vectors(data) -> bool | tuple[bool, ...]:
    """Whether each data set is one column."""
    return each(lambda part: np.ndim(part) == 1, data)


def prepare(
    caller, basis, data, weights, offset, solver, jacobian, coefficient_bounds=None
):
    """The model, the observations as columns, and whether the Jacobian is exact.

    Of several data sets `Eliminations` and a tuple of observations.
    """
    check_solver(solver, caller)
    if jacobian not in ("exact", "kaufman"):
        raise ValueError(
            f"`{caller}(jacobian=...)` got {jacobian!r}. Pass 'exact' or 'kaufman'."
        )
    check_no_list(data, caller)
    if type(data) is tuple:
        if not data:
            raise ValueError(
                f"`{caller}(data=...)` got an empty tuple. Pass an array, or a tuple "
                "with an array for each data set."
            )
        functions = [
            tuple(
                OfSet(function, number) if callable(function) else function
                for number, function in enumerate(for_each(given, data, what))
            )
            for given, what in (
                (basis, f"{caller}(basis=...)"),
                (offset, f"{caller}(offset=...)"),
            )
        ]
        weights = for_each(weights, data, f"{caller}(weights=...)")
        bounds = _bounds_of_each(coefficient_bounds, data, caller)
    else:
        functions, bounds = (basis, offset), coefficient_bounds
    data = _of_one_precision(each(lambda data: _check_data(data, caller), data))

    def prepare_one(data, basis, offset, weights, bounds):
        return _prepare_one(caller, basis, offset, data, weights, bounds, solver)

    prepared = each(prepare_one, data, *functions, weights, bounds)
    if type(data) is not tuple:
        return *prepared, jacobian == "exact"
    eliminations, observations = zip(*prepared, strict=True)
    return Eliminations(eliminations), observations, jacobian == "exact"


def _prepare_one(caller, basis, offset, data, weights, coefficient_bounds, solver):
    """The model of a data set, and its observations."""
    for name, function in (("basis", basis), ("offset", offset)):
        if not callable(function) and (name == "basis" or function is not None):
            raise TypeError(
                f"`{caller}({name}=...)` got {type(function).__name__}. Pass a function "
                "of (theta, args)."
            )
    columns = data[:, None] if data.ndim == 1 else data
    weights = _check_weights(weights, data, caller)
    limits = check_limits(coefficient_bounds, solver, data, caller)
    ones = np.ones if isinstance(data, np.ndarray) else jnp.ones
    gain = as_array(ones(columns.shape[1], data.dtype))
    observations = Observations(as_array(columns), weights, gain, limits)
    return Elimination(SeparableModel(basis, offset), solver, caller), observations


def _check_data(data, caller):
    data = at_least_single(inexact(data, f"{caller}(data=...)"))
    if data.ndim not in (1, 2) or 0 in data.shape:
        raise ValueError(
            f"`{caller}(data=...)` got an array of shape {data.shape}. Pass one of shape "
            "(m,), or (m, k) for k columns that share theta, m and k at least 1; a tuple "
            "of such for several data sets; for a batch of fits use `jax.vmap` or "
            "`varpro_batch`."
        )
    return data


def _of_one_precision(data):
    """Real and complex ones of the precision of the finest."""
    if type(data) is not tuple:
        return data
    finest = max((jnp.finfo(part.dtype).dtype for part in data), key=lambda d: d.itemsize)
    to = {True: np.result_type(finest, np.complex64), False: finest}
    return tuple(part.astype(to[jnp.iscomplexobj(part)]) for part in data)


def _bounds_of_each(bounds, data, caller):
    """A pair for each data set, of a pair whose parts may be tuples."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        return (bounds,) * len(data)  # `None`, or an error
    return pairs_for_each(bounds, data, f"{caller}(coefficient_bounds=...)")


def _check_weights(weights, data, caller):
    if weights is None:
        return None
    weights = at_least_single(inexact(weights, f"{caller}(weights=...)"))
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
    where = np.where if isinstance(weights, np.ndarray) else jnp.where
    return as_array(where(weights >= 0, weights, weights.dtype.type(jnp.nan)))


def check_theta(theta: PyTree[ArrayLike], caller: str) -> PyTree[Array]:
    """θ as arrays of real floating-point numbers, or an error."""
    if not any(np.size(leaf) for leaf in jtu.tree_leaves(theta)):
        raise ValueError(
            f"`{caller}` got theta without a single number. Without nonlinear "
            "parameters, solve for the coefficients by `lstsq`."
        )

    def check(path, leaf):
        leaf = as_native(leaf, f"{caller}(theta=...)")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = f" at {jtu.keystr(path)}" if path else ""
            raise TypeError(
                f"`{caller}` got theta with a leaf of dtype {dtype}{where}. "
                "Pass real floating-point numbers (1.0 for 1; two real ones for a "
                "complex one)."
            )
        return as_array(leaf)

    return jtu.tree_map_with_path(check, theta)
