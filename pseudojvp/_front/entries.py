"""`solve_entries`: a few entries of the solution, without the rest."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, Int, PRNGKeyArray, Real

from .._base.auto_axes import with_auto_axes
from .._base.axes import as_varying, varying_axes
from .._base.call import compiled
from .._base.host import raise_if
from .._base.tree import at_least_single, one_or_nan
from .._kernel.entries import entries_on_host
from .._kernel.entry import Told
from .._operator import SparseLinearOperator
from .entries_input import (
    check_indices,
    check_pushes,
    check_scalar_tolerances,
    doubt_of,
    read_square,
    seed_of,
    vector_of,
)


_RESULTS = (
    lx.RESULTS.successful,
    lx.RESULTS.nonfinite_input,
    lx.RESULTS.singular,
    lx.RESULTS.max_steps_reached,
    lx.RESULTS.stagnation,
)
_MESSAGES = (
    "",
    "`solve_entries` got NaN or Inf in A or b, a tolerance that is none, or indices out "
    "of range.",
    "`solve_entries` got A that is not diagonally dominant, neither by rows nor by "
    "columns: |a_ii| - sum_j |a_ij| is not above rounding for each i. No bound is "
    "known for such a matrix. Use `sparse_solve`.",
    "`solve_entries` reached `max_pushes` before `rtol` and `atol`. Allow more, or pass "
    "`max_pushes=None` without a `key`: the whole solve takes what is not local.",
    "`solve_entries` did not reach `rtol` and `atol`, which may be less than rounding: "
    "`bound` says how near it came. Allow more; an entry that is zero needs an `atol`.",
)


_FIRST_DERIVATIVE = "The derivative of `solve_entries` (for a second one: `sparse_solve`)"


class EntriesSolution(eqx.Module):
    """What [`pseudojvp.solve_entries`][] returns. Each field has the shape of `indices`.

    - `value`: x_i, in the dtype of A and b; in single precision if that has 16 bits.
    - `bound`: a bound on |x_i − value|, real; infinite if A is not diagonally dominant.
    - `pushes`: how many times a row or a column of A was read.
    - `rows_read`: how many different rows and columns were read, at most n.
    - `walks`: how many random walks went into the value; if 0, the bound is proved.
    - `whole`: whether the entry came from a solve of the whole system, because too much
        of A would have been read otherwise.
    - `result`: a `lineax.RESULTS` for each entry.

    **Example:**

    ```python
    import numpy as np
    import pseudojvp as pj
    import scipy.sparse

    A = scipy.sparse.diags_array([-1.0, 4, -1], offsets=[-1, 0, 1], shape=(50, 50))
    solution = pj.solve_entries(A, np.ones(50), [3, 25], rtol=1e-3, atol=0.0)
    print(solution.value.shape, solution.bound.shape, solution.walks)  # (2,) (2,) [0 0]
    ```
    """

    value: Inexact[Array, "*k"]
    bound: Real[Array, "*k"]
    pushes: Int[Array, "*k"]
    rows_read: Int[Array, "*k"]
    walks: Int[Array, "*k"]
    whole: Bool[Array, "*k"]
    result: lx.RESULTS


def solve_entries(
    A: SparseLinearOperator | Any,
    b: Inexact[ArrayLike, " n"],
    indices: Int[ArrayLike, "*k"] | Sequence[int],
    *,
    rtol: Real[ArrayLike, ""],
    atol: Real[ArrayLike, ""],
    max_pushes: int | None = None,
    key: PRNGKeyArray | None = None,
    confidence: float = 0.999999,
    throw: bool = True,
) -> EntriesSolution:
    """Returns a few entries of x, where A x = b, each with a proved bound on its error.

        solution = pj.solve_entries(A, b, [5, 9], rtol=1e-6, atol=1e-9)
        abs(x[5] - solution.value[0]) <= solution.bound[0]

    For a sparse A that is diagonally dominant by rows or by columns, symmetric or not. By
    rows: d_i = |a_ii| − Σ_j≠i |a_ij| > 0 for all i. Then, with r = e_i − Aᵀy for any y,

        |x_i − yᵀb| ≤ ‖r‖₁ max_j |b_j| / d_j ≤ ‖r‖₁ ‖b‖∞ / δ,    δ = min_j d_j.

    Local pushes find y: each push reads one row of A, near row i. If b has few entries, x
    is pushed as well and the two meet. If A is dominant by columns, x and y change roles.
    If more than half of the rows are read, or after 10 n pushes, the problem is not
    local: the whole system is then solved on the host (BiCGStab, scaled by the diagonal,
    once for all indices), and the bound comes from b − A x.

    **Arguments:**

    - `A`: `(n, n)`; a `BCOO`, `BCSR`, SciPy sparse matrix or
        [`pseudojvp.SparseLinearOperator`][]. None of them is sorted for this call.
    - `b`: `(n,)`, in the dtype of A. For several b use `jax.vmap`, which pushes y once
        for all of them.
    - `indices`: the entries to return, from 0 to n − 1; an integer or an array `(k,)`.
    - `rtol`, `atol`: real scalars `≥ 0`; an entry is finished when `bound ≤ atol + rtol
        |value|`. An entry that may be zero needs an `atol`.
    - `max_pushes`: the most pushes for each entry; each push costs reading one row. With
        a number, the whole system is never solved. Defaults to `None`, as above.
    - `key`: a key of `jax.random`. With it, random walks replace the solve of the whole
        system; useful if dominance is weak and that solve is too expensive. After the
        pushes, at most as many steps of walks follow as pushes are allowed. The bound of
        an entry with `walks > 0` is the end of a confidence interval. Defaults to `None`,
        no walks.
    - `confidence`: the probability with which such a bound holds, for each entry.
        Defaults to 0.999999.
    - `throw`: whether an entry that is not `successful` raises at run time. If `False`,
        `result` reports each entry, and derivatives of failed ones are NaN. Defaults to
        `True`.

    **Returns:** a [`pseudojvp.EntriesSolution`][]. The bound includes all rounding errors
    and holds whatever `result` says:

    - `max_steps_reached`: `max_pushes`, or as many steps of walks, were not enough.
    - `stagnation`: the tolerances are below rounding, or the solve of the whole system
        did not reach them.
    - `singular`: A is not dominant beyond rounding (this includes δ = 0). Nothing is
        known about x then: the bound is infinite and the value NaN.
    - `nonfinite_input`: A or b has NaN or Inf, or a traced index is out of range.

    Cost: one pass over the entries of A and over b, for δ and ‖b‖∞. Then each entry
    takes, if the rows are scaled to diagonal one, at most 2 m ln(‖b‖∞ / (δ · tolerance))
    / δ pushes, where m is the number of rows touched, however large A is. All work is
    done on the host, in double precision.

    **Derivatives:** first derivatives with respect to b, namely y, and to the stored
    entries of A, namely −y_j x_k for the entry (j, k); forward and reverse. The pushes
    give both. The computed ŷ is so accurate that ŷᵀb alone has the bound, and that ‖y −
    ŷ‖ is at most max(rtol, 1e-6) ‖ŷ‖, in the 1-norm if A is dominant by rows, in the
    largest entry if by columns. x is solved for on the rows that ŷ reads, until |ŷ|ᵀ |A|
    |x − x̂| is within the tolerance; if that is not local, the whole system is solved,
    whatever `max_pushes` is. Memory: two vectors of n for each index. Second derivatives,
    and derivatives of a tolerance or with a `key`, are an error; `bound` has none.

    **Raises:** `TypeError` for a dense A, different dtypes of A and b, or indices that
    are not integers; `ValueError` for shapes that do not match, indices known to be out
    of range, negative tolerances or `max_pushes`; a run-time error as `throw` says. The
    function calls the host, so it cannot be exported.

    **Sources:** Andoni, Krauthgamer & Pogrow, *On solving linear systems in sublinear
    time*, ITCS (2019); Kwok, Wei & Yang, *On solving asymmetric diagonally dominant
    linear systems in sublinear time* (2025), for what is possible; Andersen, Chung &
    Lang, *Local graph partitioning using PageRank vectors*, FOCS (2006), for pushes;
    Lofgren, Banerjee & Goel, *Personalized PageRank estimation and search*, WSDM (2016),
    for walks after pushes; Maurer & Pontil, *Empirical Bernstein bounds*, COLT (2009),
    theorem 4, for their interval; Varah, *A lower bound for the smallest singular value
    of a matrix*, Linear Algebra Appl. 11 (1975), for ‖A⁻¹‖∞ ≤ 1 / δ.

    **Example:**

    ```python
    import numpy as np
    import pseudojvp as pj
    import scipy.sparse

    A = scipy.sparse.diags_array([-1.0, 4, -1], offsets=[-1, 0, 1], shape=(1000, 1000))
    solution = pj.solve_entries(A, np.ones(1000), [500], rtol=1e-3, atol=0.0)
    print(abs(solution.value - 0.5) <= solution.bound)  # [ True]
    print(solution.rows_read < 100)  # [ True]
    ```
    """
    data, row, col, size = read_square(A)
    check_scalar_tolerances(rtol=rtol, atol=atol)
    b = vector_of(data, size, b)
    indices = check_indices(indices, size)
    check_pushes(max_pushes)
    seed, doubt = seed_of(key), doubt_of(confidence)
    tolerances = jnp.asarray(rtol, float), jnp.asarray(atol, float)
    arguments = data, row, col, b, indices, *tolerances, seed
    return _solve_entries(*arguments, max_pushes, doubt, throw)


@compiled
@with_auto_axes
def _solve_entries(
    data, row, col, b, indices, rtol, atol, seed, max_pushes, doubt, throw
) -> EntriesSolution:
    data, b = at_least_single((data, b))
    tolerances = eqxi.nondifferentiable(
        (rtol, atol), name="`solve_entries(rtol=..., atol=...)`"
    )
    if seed.size:
        data, b = eqxi.nondifferentiable((data, b), name="`solve_entries(key=...)`")
    system = row, col, indices.reshape(-1), *tolerances, seed
    value, bound, *counts, whole, code = _told(data, b, *system, max_pushes, doubt)
    if throw:
        one = raise_if(jnp.max(code, initial=0), _MESSAGES)
        value = value * one.astype(value.dtype)
    bound = eqxi.nondifferentiable_backward(bound)
    result = eqx.filter_vmap(_result)(code)
    solution = EntriesSolution(value, bound, *counts, whole, result)  # pyright: ignore
    return jax.tree.map(lambda leaf: leaf.reshape(indices.shape), solution)


@eqx.filter_custom_jvp
def _told(data, b, row, col, indices, rtol, atol, seed, most, doubt) -> Told:
    arguments = row, col, data, b, indices, rtol, atol, seed
    told, _ = entries_on_host(*arguments, most=most, doubt=doubt, gradient=False)
    return as_varying(varying_axes(arguments), told)


@_told.def_jvp
def _(primals, tangents):
    data, b, row, col, indices, rtol, atol, seed, most, doubt = primals
    t_data, t_b, *_ = tangents
    # Of y and x no derivative is known: that is an error, and never a zero.
    data, b = eqxi.nondifferentiable((data, b), name=_FIRST_DERIVATIVE)
    arguments = row, col, data, b, indices, rtol, atol, seed
    told, both = entries_on_host(*arguments, most=most, doubt=doubt, gradient=True)
    assert both is not None
    told, both = as_varying(varying_axes(arguments), (told, both))
    y, x = both[:, 0], both[:, 1]
    failed = one_or_nan(told.code == 0).astype(b.dtype)
    t_value = jnp.zeros_like(told.value)
    if t_b is not None:
        t_value += y @ t_b
    if t_data is not None:
        of_row = y.at[:, row].get(mode="fill", fill_value=0)
        of_col = x.at[:, col].get(mode="fill", fill_value=0)
        t_value -= (of_row * of_col) @ t_data
    t_value = t_value * failed
    # Hung on the others, so that a gradient of it is seen, and is an error.
    t_bound = 0 * t_value.real
    return told, Told(t_value, t_bound, None, None, None, None, None)


def _result(code: Int[Array, ""]) -> lx.RESULTS:
    result = _RESULTS[0]
    for number, failure in enumerate(_RESULTS[1:], 1):
        result = lx.RESULTS.where(code == number, failure, result)
    return result
