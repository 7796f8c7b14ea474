"""The determinant of A from the factors of a solve, and its derivatives by the map.

    (log |det A|)' = Re tr(A† A'),    (sign det A)' = i sign Im tr(A† A')           (6)

Where A is not square or not of full rank, |det A| is the product of the singular values
that are not zero, its sign is one, and log |det A| is differentiated along paths of
constant rank.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Inexact, Integer

from .._base.axes import scan
from .._base.host import raise_if
from .._base.order import after_in_batch
from .._base.structure import Structure
from .._base.tree import one_or_nan, promoting
from .._kernel.determinant import of_product
from .._operator.matrix import widened
from .._operator.sparse import SparseLinearOperator, untagged
from .._operator.toeplitz import Toeplitz
from .._solver import (
    AbstractByParts,
    AbstractFactorisation,
    PivotedQR,
    Slogdet,
    SparseLU,
    SVD,
    Woodbury,
)
from .._solver.auto import DENSE_ENTRIES
from .._solver.direct.diagonal import Diagonal
from .guard import Guard, is_complex_linear
from .primitive import bind
from .rows import Blocks, Problem
from .tangents import tangent_products


# Columns of A⁻ᴴ that are there at once, where A is sparse.
_CHUNK = 256

_KNOWN = (
    "`LU()`, `Cholesky()`, `QR()`, `Triangular()`, `Tridiagonal()`, `SparseLU()`, "
    "`SparseTriangular()`, `lineax.Diagonal()`, `PivotedQR()` or `SVD()`"
)


_NAN = (
    "is NaN: an entry of A is non-finite (NaN or Inf), A is not definite, as "
    "`Cholesky()` needs, or the vectors of an `Eigh` are not orthonormal. Use `LU()` in "
    "the second case."
)
_NAN_OF_UPDATE = (
    "is NaN: A without its low-rank update is singular, or so nearly that the parts lose "
    "the digits of the determinant of the sum, or an entry is NaN or Inf. A + U C Vᴴ "
    "need not be singular. Use `LU()`, which makes its matrix."
)
_CONJUGATES = "is none: A is not linear over the complex numbers, A(i v) is not i A v."


def slogdet(problem: Problem, guard: Guard, factorised: Callable) -> Slogdet:
    """Sign and log |.|, with derivatives of every order; NaN, or an error, of NaN."""
    solver, operator = problem.solver, problem.operator
    told = None
    if isinstance(solver, AbstractByParts):
        told = solver.slogdet_by_parts(operator, problem.state, factorised)
    elif isinstance(solver, lx.Diagonal | Diagonal):
        told = _of_diagonal(solver, operator)
    if told is None and isinstance(solver, AbstractFactorisation | SparseLU):
        told = _of_factors(problem, guard)
    if told is None:
        if isinstance(untagged(operator), Toeplitz):
            raise TypeError(
                "`slogdet` got a `Toeplitz` of shape "
                f"{operator.out_size(), operator.in_size()} with a solver that iterates, "
                f"as the default does above {DENSE_ENTRIES:,} entries. It has no factors "
                "that tell the determinant; pass `pj.LU()`, which makes the matrix."
            )
        raise TypeError(
            f"`slogdet` got the solver `{type(solver).__name__}()`, which has no factors "
            f"that tell the determinant. Pass {_KNOWN}; for an operator without a matrix "
            "estimate it, as the page on determinants shows."
        )
    linear = is_complex_linear(problem)
    linear = jnp.array(True) if linear is None else linear
    sound = linear & ~jnp.isnan(told.logabsdet)
    one = one_or_nan(sound)  # as a factor: derivatives are NaN as well
    sign = told.sign * one.astype(told.sign.dtype)
    logabsdet = told.logabsdet * one.astype(told.logabsdet.dtype)
    if guard.throw:
        subject = (
            f"The determinant with `{type(solver).__name__}()` of an operator of shape "
            f"{operator.out_size(), operator.in_size()}"
        )
        nan = _NAN_OF_UPDATE if isinstance(solver, Woodbury) else _NAN
        failure = jnp.where(sound, 0, jnp.where(linear, 1, 2))
        one = raise_if(failure, ("", f"{subject} {nan}", f"{subject} {_CONJUGATES}"))
        logabsdet = logabsdet * one.astype(logabsdet.dtype)
    return Slogdet(sign, logabsdet)


def _of_diagonal(
    solver: lx.Diagonal | Diagonal, operator: lx.AbstractLinearOperator
) -> Slogdet:
    diagonal = jnp.ones(0, Structure.of(operator.in_structure()).dtype)
    if not lx.has_unit_diagonal(operator):
        diagonal = lx.diagonal(widened(operator))
    if solver.well_posed or diagonal.size == 0:
        return Slogdet(*of_product(diagonal))
    sizes = jnp.abs(lax.stop_gradient(diagonal))
    rcond = jnp.finfo(sizes.dtype).eps * sizes.size
    if solver.rcond is not None:
        rcond = jnp.where(solver.rcond < 0, jnp.finfo(sizes.dtype).eps, solver.rcond)
    dropped = sizes <= jnp.asarray(rcond, sizes.dtype) * jnp.max(sizes)
    sign, logabsdet = of_product(jnp.where(dropped, 1, diagonal))
    return Slogdet(jnp.where(jnp.any(dropped), 1, sign), logabsdet)


@eqx.filter_custom_jvp
def _of_factors(problem: Problem, guard: Guard) -> Slogdet | None:
    del guard
    solver: Any = problem.solver
    return solver.slogdet(problem.state)


@_of_factors.def_jvp
def _(primals, tangents):
    problem, guard = primals
    t_problem, _ = tangents
    told = _of_factors(problem, guard)
    if told is None:
        return None, None
    # The sign may take a call of LAPACK, and the solves wait for it: `_base/order.py`.
    inverse = _Inverse(problem, guard, told)
    trace = _trace(problem, t_problem.operator, inverse).astype(told.sign.dtype)
    t_sign: Any = None
    if jnp.iscomplexobj(trace):
        turn = 1j * trace.imag.astype(trace.dtype)
        t_sign = told.sign * jnp.where(_has_inverse(problem), turn, 0)
    return told, Slogdet(t_sign, trace.real)


def _has_inverse(problem: Problem) -> Bool[Array, ""]:
    """Where A has none, the sign is 1 by definition."""
    solver, operator = problem.solver, problem.operator
    square = jnp.array(operator.in_size() == operator.out_size())
    if isinstance(solver, PivotedQR | SVD):
        return square & (solver.stats(problem.state)["rank"] == operator.in_size())
    return square


def _trace(
    problem: Problem, t_operator: lx.AbstractLinearOperator, inverse: "_Inverse"
) -> Inexact[Array, ""]:
    """tr(A† A'), by (A†)ᴴ in whole: one application of the factors."""
    operator = problem.operator
    rows = Structure.of(operator.out_structure())
    cols = Structure.of(operator.in_structure())
    if rows.size == 0 or cols.size == 0:
        return jnp.zeros((), cols.dtype)
    t_bare = untagged(t_operator)
    if isinstance(t_bare, SparseLinearOperator):
        bare: Any = untagged(operator)
        entries = inverse.entries(bare.sparsity.row, bare.sparsity.col)
        return _dot(entries, t_bare.data)
    if isinstance(t_bare, lx.MatrixLinearOperator):
        return _dot(inverse.adjoint(), t_bare.matrix)
    t_forward, t_adjoint = tangent_products(operator, t_operator)
    if inverse.by_columns:
        image = jax.vmap(lambda unit: rows.ravel(t_forward(cols.unravel(unit))))
        return _dot(inverse.columns(_units(cols)), image(_units(cols)))
    image = jax.vmap(lambda unit: cols.ravel(t_adjoint(rows.unravel(unit))))
    return _dot(image(_units(rows)), inverse.rows(_units(rows)))


@promoting
def _dot(left: Inexact[Array, "*shape"], right: Inexact[Array, "*shape"]):
    return jnp.sum(left.conj() * right)


def _units(structure: Structure, start=0, count: int | None = None):
    count = structure.size if count is None else count
    start = jnp.asarray(start)
    indices = start + jnp.arange(count, dtype=start.dtype)
    units = indices[:, None] == jnp.arange(structure.size, dtype=start.dtype)[None]
    return units.astype(structure.dtype)


class _Inverse:
    """(A†)ᴴ, and what of it is asked for, by solves along the short side of A."""

    def __init__(self, problem: Problem, guard: Guard, earlier: Slogdet):
        self._problem = problem.for_derivative()
        self._guard = guard.for_derivative(of_primal=False)
        self._earlier = earlier
        operator = problem.operator
        self._rows = Structure.of(operator.out_structure())
        self._cols = Structure.of(operator.in_structure())
        self.by_columns = self._cols.size <= self._rows.size

    def columns(self, units: Inexact[Array, "k cols"]) -> Inexact[Array, "k rows"]:
        """(A†)ᴴ e for each of the units."""

        def solve(unit):
            unit = self._cols.unravel(unit)
            if self._problem.from_adjoint:  # A†ᴴ is (Aᴴ)†
                out = self._bind(Blocks(unit), Blocks(False, True, False)).domain
            else:
                out = self._bind(Blocks(domain=unit), Blocks(True, False, False)).codomain
            return self._rows.ravel(out)

        return jax.vmap(solve)(units)

    def rows(self, units: Inexact[Array, "k rows"]) -> Inexact[Array, "k cols"]:
        """A† e for each of the units."""

        def solve(unit):
            unit = self._rows.unravel(unit)
            if self._problem.from_adjoint:
                out = self._bind(Blocks(domain=unit), Blocks(True, False, False)).codomain
            else:
                out = self._bind(Blocks(unit), Blocks(False, True, False)).domain
            return self._cols.ravel(out)

        return jax.vmap(solve)(units)

    def adjoint(self) -> Inexact[Array, "rows cols"]:
        if self.by_columns:
            return self.columns(_units(self._cols)).T
        return self.rows(_units(self._rows)).conj()

    def entries(
        self, row: Integer[Array, " nse"], col: Integer[Array, " nse"]
    ) -> Inexact[Array, " nse"]:
        """(A†)ᴴ in places: of a large one never more than a chunk of columns."""
        count = self._cols.size
        if not self.by_columns or count <= _CHUNK:
            return self.adjoint().at[row, col].get(mode="fill", fill_value=0)

        def add(entries, start):
            block = self.columns(_units(self._cols, start, _CHUNK))
            here = (col >= start) & (col < start + _CHUNK)
            places = jnp.where(here, col - start, _CHUNK)
            return entries + block.at[places, row].get(mode="fill", fill_value=0), None

        start = jnp.zeros(row.shape, self._rows.dtype)
        return scan(add, start, jnp.arange(0, count, _CHUNK, dtype=col.dtype))[0]

    def _bind(self, rhs: Blocks, wanted: Blocks) -> Blocks:
        rhs = Blocks(*after_in_batch(self._earlier, rhs))
        return bind(self._problem, rhs, wanted, self._guard)[0]
