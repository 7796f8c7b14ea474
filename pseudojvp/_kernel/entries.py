"""Entries of A⁻¹ b on the host, each with a bound, by local pushes or the whole solve."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int, Real

from .._base.host import called_on_host
from .._base.optional import import_late
from .ball import x_on_ball
from .pushes import certificate, LIMIT, Limits, meet, Rows, Side, Tolerance


# Pushes for an entry until it is left to the whole solve, in rows of the system.
_PUSHES = 10
# The part of the rows that is not local any more.
_LOCAL = 0.5
# The whole solve aims at this part of what is asked for.
_OF_TOLERANCE = 0.25
# The relative error of all of y in derivatives, unless `rtol` is larger.
_OF_Y = 1e-6

SUCCESSFUL = 0
NONFINITE = 1
NOT_DOMINANT = 2
LIMITED = 3
ROUNDED = 4

_NOT_EXPORTED = (
    "`jax.export` cannot serialise `solve_entries()`, which calls the host. Use "
    "`sparse_solve` with an iterative solver."
)


class Told(NamedTuple):
    """What is told of each index."""

    value: Any
    bound: Any
    pushes: Any
    rows_read: Any
    whole: Any
    code: Any


def entries_on_host(
    row: Int[Array, " nse"],
    col: Int[Array, " nse"],
    data: Inexact[Array, " nse"],
    vector: Inexact[Array, " n"],
    indices: Int[Array, " k"],
    rtol: Real[Array, ""],
    atol: Real[Array, ""],
    *,
    most: int | None,
    gradient: bool,
) -> tuple[Told, Inexact[Array, "k two n"] | None]:
    """Returns what is told of x_i, one for each of the indices, and y and x nearby.

    Entries in one place add up; those with an index n are padding. With `gradient`, y and
    x are such that x_i' = yᵀ(b' − A' x).
    """
    import_late("scipy.sparse.linalg")  # here, where filters of warnings can be kept
    real, integer = jnp.finfo(data.dtype).dtype, jnp.result_type(int)
    dtypes = data.dtype, real, integer, integer, jnp.dtype(bool), integer
    shapes = Told(*(jax.ShapeDtypeStruct(indices.shape, dtype) for dtype in dtypes))
    both = None
    if gradient:
        both = jax.ShapeDtypeStruct((*indices.shape, 2, vector.size), data.dtype)
    row = called_on_host(row, _NOT_EXPORTED)
    arguments = row, col, data, vector, indices, rtol, atol
    tell = ft.partial(_tell_all, most=most, gradient=gradient)
    # Each batch is an axis in front: of length one for an array that does not have it.
    return jax.pure_callback(tell, (shapes, both), *arguments, vmap_method="expand_dims")


_RANKS = 1, 1, 1, 1, 1, 0, 0  # of the arguments, without those of a batch


def _tell_all(*arguments, most: int | None, gradient: bool):
    pairs = list(zip(map(np.asarray, arguments), _RANKS, strict=True))
    leading = [array.shape[: array.ndim - rank] for array, rank in pairs]
    of_matrix, batch = np.broadcast_shapes(*leading[:3]), np.broadcast_shapes(*leading)
    inner = [array.shape[array.ndim - rank :] for array, rank in pairs]
    full = [
        np.broadcast_to(array, (*batch, *shape))
        for (array, _), shape in zip(pairs, inner, strict=True)
    ]
    dtype, shape = full[2].dtype, (*batch, *inner[4])
    dtypes = dtype, np.finfo(dtype).dtype, np.int64, np.int64, bool, np.int64
    told = Told(*(np.zeros(shape, dtype) for dtype in dtypes))
    both = np.zeros((*shape, 2, *inner[3]), dtype) if gradient else None
    system, known = None, None
    with np.errstate(all="ignore"):  # what overflows is seen in the bound
        for at in np.ndindex(batch):
            row, col, data, vector, indices, rtol, atol = (array[at] for array in full)
            one = zip(at, of_matrix, strict=True)
            of_this = tuple(i if axis > 1 else 0 for i, axis in one)
            if system is None or of_this != known:  # only the newest is kept
                system, known = System(row, col, data, vector.size), of_this
            tolerance = Tolerance(float(rtol), float(atol))
            entries = Entries(system, vector, tolerance, most)
            for k, index in enumerate(indices):
                here, *nearby = entries.tell(int(index), gradient=gradient)
                for array, number in zip(told, here, strict=True):
                    array[(*at, k)] = number
                if both is not None:
                    both[(*at, k, 0)], both[(*at, k, 1)] = nearby
    return told, both


class System:
    """A and what is known of it; fᵀ C⁻¹ g is x_i for C = A, or Aᵀ with f = b."""

    def __init__(self, row, col, data, size: int):
        sparse = import_late("scipy.sparse")
        present = (row < size) & (col < size)
        if not present.all():
            row, col, data = row[present], col[present], data[present]
        wide = np.complex128 if np.iscomplexobj(data) else np.float64
        data, shape = data.astype(wide), (size, size)
        self.size = size
        self.code = SUCCESSFUL
        if not (np.isfinite(data).all() and np.all(row >= 0) and np.all(col >= 0)):
            self.code = NONFINITE
            return
        matrix = sparse.csr_array((data, (row, col)), shape)
        # Where entries add up, rounding is that of their sizes.
        absolute = sparse.csr_array((np.abs(data), (row, col)), shape)
        rows = Rows(matrix, absolute)
        self.by_rows = _positive(rows.gaps)
        self.of_c = rows if self.by_rows else rows.transposed
        if not _positive(self.of_c.gaps):
            self.code = NOT_DOMINANT
        self._sides = {}

    def unit(self, index: int) -> Side:
        """The side of e_i: pushed once for all right-hand sides."""
        if index not in self._sides:
            unit = np.zeros(self.size)
            unit[index] = 1
            self._sides[index] = Side(self.of_c, unit, right=not self.by_rows)
        return self._sides[index]


def _positive(gaps) -> bool:
    return bool(np.all(gaps > 0))


class Entries:
    """Those of x for one b: its side is pushed once for all indices."""

    def __init__(self, system: System, vector, tolerance: Tolerance, most: int | None):
        self.system, self.tolerance, self.free = system, tolerance, most is None
        size = system.size
        self.limits = Limits(_PUSHES * size, _LOCAL * size)
        if most is not None:
            self.limits = Limits(most, size)
        self.dtype = vector.dtype
        self.vector = vector.astype(np.result_type(vector.dtype, np.float64))
        self.code = system.code
        known = np.isfinite(self.vector).all() and all(t >= 0 for t in tolerance)
        if self.code == SUCCESSFUL and not known:
            self.code = NONFINITE

    @ft.cached_property
    def of_vector(self) -> Side:
        return self.untouched

    @property
    def untouched(self) -> Side:
        """The side of b, not pushed yet."""
        return Side(self.system.of_c, self.vector, right=self.system.by_rows)

    def tell(self, index: int, *, gradient: bool = False) -> tuple[Told, Any, Any]:
        """What is told of x_i and, for a gradient, y and x."""
        code = self.code
        if code == SUCCESSFUL and not 0 <= index < self.system.size:
            code = NONFINITE
        if code != SUCCESSFUL:
            return Told(np.nan, np.inf, 0, 0, False, code), np.nan, np.nan
        of_unit, of_vector = self.system.unit(index), self.of_vector
        if not gradient:
            met = self.met(of_unit, of_vector, [of_unit, of_vector], of_vector)
            return self.told(met, of_unit, of_vector), None, None
        # All of y and x has to be near, not only their product.
        of_vector = self.untouched
        met = self.met(of_unit, of_vector, [of_unit], of_unit)
        told = self.told(met, of_unit, of_vector)
        if told.code == ROUNDED and self.free:
            of_vector = self.of_vector  # the product of both residuals is less
            met = self.met(of_unit, of_vector, [], of_vector)
            told = self.told(met, of_unit, of_vector)
        if told.code == SUCCESSFUL:  # and y by itself, for b may be small, or zero
            wanted = max(self.tolerance.rtol, _OF_Y)
            of_y = lambda: wanted * of_unit.solution_norm()
            told = told._replace(code=self.near(of_unit, of_y, self.free))
        if told.code != SUCCESSFUL:
            return told, np.nan, np.nan
        x, code = self.nearby(of_unit, self.tolerance.of(met[0]))
        return told._replace(code=code), of_unit.solution, x

    def near(self, side: Side, wanted: Callable[[], float], free: bool) -> int:
        """Goes on until the error of a solution is as wanted."""
        while side.sparse and side.error_norm() > wanted():
            room = self.limits.pushes - side.pushes
            if side.whole or room <= 0 or side.pushed.size > self.limits.rows:
                break
            side.push(room)
        side.look()
        if free and side.error_norm() > wanted():
            target = _OF_TOLERANCE * wanted() * self.system.of_c.gap
            side.solve_whole(target if side.right else target / np.sqrt(side.rhs.size))
        if side.error_norm() <= wanted():
            return SUCCESSFUL
        return ROUNDED if free else LIMITED

    def nearby(self, of_unit: Side, tolerance: float) -> tuple[Any, int]:
        """x where y reads it, so that |y|ᵀ |A| |x − x̂| is within the tolerance."""
        if self.system.by_rows and not of_unit.whole:
            x = x_on_ball(of_unit, self.untouched, tolerance, self.limits)
            if x is not None:
                return x, SUCCESSFUL
        cols, _, absolute, counts = of_unit.rows.read(of_unit.pushed)
        weights = np.repeat(np.abs(of_unit.solution[of_unit.pushed]), counts)
        reach = np.bincount(cols, weights * absolute)
        side = self.of_vector  # x in the largest norm, or in the 1-norm
        wanted = tolerance / float(np.sum(reach) if side.right else np.max(reach))
        code = self.near(side, lambda: wanted, True)
        return side.solution, code

    def met(
        self, of_unit: Side, of_vector: Side, sides: list[Side], to_solve: Side
    ) -> tuple[Any, float, int]:
        """Value, bound and why it ended: pushes of `sides`, or a whole solve of one."""
        left, right = of_unit, of_vector
        if left.right:
            left, right = right, left
        sides = [side for side in sides if side.sparse]
        value, bound, why = meet(left, right, self.tolerance, self.limits, sides)
        if self.free and why == LIMIT:
            wanted = _OF_TOLERANCE * self.tolerance.of(value)
            to_solve.solve_whole(
                wanted / left.one_norm * self.system.of_c.gap
                if to_solve.right
                else wanted / right.largest / np.sqrt(self.system.size)
            )
            value, bound = certificate(left, right)
        return value, bound, why

    def told(self, met: tuple[Any, float, int], of_unit: Side, of_vector: Side) -> Told:
        value, bound, why = met
        code, bound = SUCCESSFUL, self.rounded(value, bound)
        if not bound <= self.tolerance.of(value):
            code = LIMITED if why == LIMIT and not self.free else ROUNDED
        rows = min(of_unit.pushed.size + of_vector.pushed.size, self.system.size)
        whole = of_unit.whole or of_vector.whole
        return Told(value, bound, of_unit.pushes + of_vector.pushes, rows, whole, code)

    def rounded(self, value, bound: float) -> float:
        """The bound of the value in the dtype of A, itself in it."""
        finfo = np.finfo(self.dtype)
        real = finfo.dtype.type
        if finfo.bits < 64:
            bound += float(finfo.eps) * float(abs(value))
        return float(np.nextafter(real(bound), real(np.inf))) if bound else 0.0
