from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from .._base.call import compiled
from .._base.inexact import as_inexact
from .._base.statistics import without_derivative
from .._map.factorised import Factorised
from .._operator import Matrix
from .._operator.as_operator import with_known_pattern
from .._operator.over_reals import joined, mixes, over_reals, parted
from .._operator.shifted import ShiftedOperator
from .._solver import CG, MINRES, ShiftedSolver
from .._solver.counterpart import counterpart
from .linear_solve import check_system


def shifted_solve(
    operator: lx.AbstractLinearOperator | Matrix,
    vector: PyTree[ArrayLike],
    shifts: ArrayLike,
    solver: lx.AbstractLinearSolver = CG(),
    *,
    throw: bool = True,
) -> lx.Solution:
    """Returns the solutions x_i of (A + s_i I) x_i = b for all shifts s_i.

    All solutions come from one Krylov space: a step takes one product with A for all
    shifts, and each shift is updated until its own residual is small enough. Then b −
    (A + s_i I) x_i is computed explicitly, one product for each shift. If it is too
    large, the solver continues from there, with each shift by itself.

    **Arguments:**

    - `operator`: A, real symmetric or complex Hermitian, and tagged so; a
        `lineax.AbstractLinearOperator`, or an array or a sparse matrix as for
        [`pseudojvp.linear_solve`][] (these two carry no tags).
    - `vector`: b; a pytree like `operator.out_structure()`, the same for all shifts. For
        several b use `jax.vmap`.
    - `shifts`: real numbers of shape `(shifts,)`, in the units of A.
    - `solver`: [`pseudojvp.CG`][] if A + s I is positive definite for each shift
        (negative definite, if A is tagged `lineax.negative_semidefinite_tag`), or
        [`pseudojvp.MINRES`][] if it may be indefinite, or also singular unless
        `well_posed=True`. It may have no preconditioner, because the Krylov space of P
        (A + s I) differs from shift to shift. `stabilise_every` of `CG` applies only
        after the check. Defaults to `CG()`.
    - `throw`: whether a failed solve of any shift raises at run time, and in derivatives.
        If `False`, `result` reports each shift. Defaults to `True`.

    **Returns:** a `lineax.Solution`. Its `value` is like `operator.in_structure()`, with
    an axis of shifts in front of each leaf. `result` has one entry for each shift. With
    `CG`, a shift that makes A + s I indefinite gives `breakdown`; a shift that makes it
    singular gives `breakdown` or what the solver reports for such a system. `stats`:
    `num_steps` for each shift; `num_products`, the columns that A was multiplied with for
    all shifts together; `max_steps`; with `history` of the solver `residual_norms`,
    `(shifts, max_steps)`; with `lanczos` the tridiagonal matrix of A itself, started from
    b, of the shared run. `state` is `None`.

    Cost: as many products as the slowest shift takes steps, and one for each shift;
    memory for three vectors a shift (`MINRES`: four).

    **Derivatives:** with respect to A, b and the shifts, of every order. Their right-hand
    sides differ from shift to shift, so they do not share a Krylov space: each
    application is one run for each shift (all in one loop, where a step multiplies A with
    a block of columns). A JVP and a VJP take one application each if `solver` takes A + s
    I to be nonsingular, three each for `MINRES()`.

    **Raises:** `TypeError` or `ValueError` at trace time for another solver, a solver
    with a preconditioner, `CG(well_posed=False)`, an operator that is not square or
    carries no tag, shifts that are complex or not 1-D, or a vector that does not match; a
    run-time error as `throw` says.

    **Sources:** Jegerlehner, *Krylov space solvers for shifted linear systems* (1996),
    section 3; van den Eshof & Sleijpen, *Accurate conjugate gradient methods for families
    of shifted systems*, Appl. Numer. Math. 49 (2004), for CG by Lanczos.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    diagonal = jnp.diag(jnp.array([1.0, 3.0]))
    A = lx.MatrixLinearOperator(diagonal, lx.positive_semidefinite_tag)
    solution = pj.shifted_solve(A, jnp.array([2.0, 12.0]), jnp.array([0.0, 1.0]))
    print(solution.value.round().tolist())  # [[2.0, 4.0], [1.0, 3.0]]
    ```
    """
    operator = with_known_pattern(operator, "shifted_solve")
    return _shifted_solve(operator, vector, shifts, solver, throw)


@compiled
def _shifted_solve(operator, vector, shifts, solver, throw) -> lx.Solution:
    operator, vector = check_system(operator, vector, solver, "shifted_solve")
    shifts = _check_shifts(shifts)
    solver = counterpart(solver)
    if not isinstance(solver, CG | MINRES):
        raise TypeError(
            f"`shifted_solve(solver=...)` got {type(solver).__name__}. Pass `CG(...)` or "
            "`MINRES(...)`, or solve for each shift by `linear_solve`."
        )
    solver = ShiftedSolver(solver)
    mixed = mixes(operator)
    if mixed:
        operator, vector = over_reals(operator), parted(vector)

    def one(shift: Array):
        shifted = ShiftedOperator(operator, shift)
        factorised, _ = Factorised.create(shifted, solver, throw=throw)
        value, _, result, stats = factorised.apply(vector)
        return value, result, stats

    value, result, stats = eqx.filter_vmap(one)(shifts)
    for name in {"num_products", "lanczos"} & set(stats):  # the same for all
        stats[name] = jtu.tree_map(_first, stats[name])
    stats = without_derivative(stats, operator, vector, shifts, solver)
    value = joined(value) if mixed else value
    # A state would have a copy of A for each shift.
    return lx.Solution(value=value, result=result, stats=stats, state=None)


def _first(leaf: Array) -> Array:
    fill = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
    return leaf[0] if len(leaf) > 0 else jnp.full(leaf.shape[1:], fill, leaf.dtype)


def _check_shifts(shifts: Any) -> Array:
    shifts = as_inexact(shifts, "shifted_solve(shifts=...)")
    if jnp.iscomplexobj(shifts):
        raise TypeError(
            "`shifted_solve(shifts=...)` got complex numbers: A + s I would not be "
            "Hermitian. Pass real shifts, or solve for each by `linear_solve` with "
            "`GMRES()`."
        )
    if shifts.ndim != 1:
        raise ValueError(
            f"`shifted_solve(shifts=...)` got an array of shape {shifts.shape}. Pass one "
            "of shape (shifts,); for a batch of them use `jax.vmap`."
        )
    return shifts
