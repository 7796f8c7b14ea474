"""An entry of A⁻¹ b and what is told of it: by pushes, and how it goes on after them."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._base.optional import import_late
from .ball import x_on_ball
from .pushes import (
    certificate,
    EPS,
    LIMIT,
    Limits,
    meet,
    product_and_error,
    Rows,
    Side,
    TINY,
    Tolerance,
)
from .walks import walk


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


class Told(NamedTuple):
    """What is told of each index."""

    value: Any
    bound: Any
    pushes: Any
    rows_read: Any
    walks: Any
    whole: Any
    code: Any


class Walks(NamedTuple):
    """Numbers that random ones are drawn from, and the doubt that is left."""

    seed: list[int]
    doubt: float


class System:
    """A and what is known of it; fᵀ C⁻¹ g is x_i for C = A, or Aᵀ with f = b."""

    def __init__(self, row, col, data, size: int):
        sparse = import_late("scipy.sparse")
        present = (row < size) & (col < size)
        if not present.all():
            row, col, data = row[present], col[present], data[present]
        wide = np.complex128 if np.iscomplexobj(data) else np.float64
        tiny = float(np.finfo(data.dtype).tiny)
        data, shape = data.astype(wide), (size, size)
        self.size = size
        self.code = SUCCESSFUL
        if not (np.isfinite(data).all() and np.all(row >= 0) and np.all(col >= 0)):
            self.code = NONFINITE
            return
        matrix = sparse.csr_array((data, (row, col)), shape)
        absolute, added = None, 0
        if matrix.nnz < data.size:  # entries add up: rounding is that of their sizes
            absolute = sparse.csr_array((np.abs(data), (row, col)), shape)
            ones = np.ones(data.size, np.int64)
            added = int(sparse.csr_array((ones, (row, col)), shape).data.max()) - 1
        rows = Rows(matrix, absolute, added, tiny)
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


def ordered(first: Side, second: Side) -> tuple[Side, Side]:
    """The left one, and the right one."""
    return (second, first) if first.right else (first, second)


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
        # Without the signs: that a number compares as zero proves nothing.
        self.bits = np.abs(vector.view(np.finfo(vector.dtype).dtype)).view(np.uint8)
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
        of_c, right = self.system.of_c, self.system.by_rows
        return Side(of_c, self.vector, right=right, floor=self.floor)

    @ft.cached_property
    def floor(self) -> float:
        """How far x_i moves at most if entries of A and b below `tiny` become zero."""
        if not self.bits.any():
            return 0.0
        of_c, sizes = self.system.of_c, np.abs(self.vector)
        most, count = float(np.max(sizes)), 1
        if not self.system.by_rows:
            most, count = float(np.sum(sizes)), sizes.size
        move = 2 * of_c.tiny / of_c.gap
        largest = (most + count * of_c.tiny) / of_c.gap
        return move * (count + of_c.longest * largest) + TINY

    def tell(
        self, index: int, walks: Walks | None = None, *, gradient: bool = False
    ) -> tuple[Told, Any, Any]:
        """What is told of x_i and, for a gradient, y and x."""
        code = self.code
        if code == SUCCESSFUL and not 0 <= index < self.system.size:
            code = NONFINITE
        if code != SUCCESSFUL:
            return Told(np.nan, np.inf, 0, 0, 0, False, code), np.nan, np.nan
        of_unit, of_vector = self.system.unit(index), self.of_vector
        if walks is not None:
            return self.walked(index, of_unit, of_vector, walks), None, None
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

    def walked(self, index: int, of_unit: Side, of_vector: Side, walks: Walks) -> Told:
        """By pushes, and by walks for what they leave."""
        left, right = ordered(of_unit, of_vector)
        sides = [side for side in (left, right) if side.sparse]
        limits = self.limits._replace(rows=self.system.size)  # local or not
        value, bound, why = meet(left, right, self.tolerance, limits, sides)
        told = self.told((value, bound, why), of_unit, of_vector)
        if why != LIMIT:
            return told
        rng = np.random.default_rng([*walks.seed, index])
        _, error = product_and_error(left, right)
        wanted = 0.99 * self.tolerance.of(value) - error
        walked = walk(left, right, rng, wanted, walks.doubt, self.limits.pushes)
        if walked.walks:
            bound = (walked.bound + error) * (1 + 8 * EPS) + of_vector.floor
            told = self.told((value + walked.mean, bound, why), of_unit, of_vector)
        rows = min(told.rows_read + walked.rows, self.system.size)
        pushes = told.pushes + walked.steps
        return told._replace(pushes=pushes, rows_read=rows, walks=walked.walks)

    def met(
        self, of_unit: Side, of_vector: Side, sides: list[Side], to_solve: Side
    ) -> tuple[Any, float, int]:
        """Value, bound and why it ended: pushes of `sides`, or a whole solve of one."""
        left, right = ordered(of_unit, of_vector)
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
            whole = of_unit.whole or of_vector.whole
            code = LIMITED if why == LIMIT and not whole else ROUNDED
        rows = min(of_unit.pushed.size + of_vector.pushed.size, self.system.size)
        whole = of_unit.whole or of_vector.whole
        pushes = of_unit.pushes + of_vector.pushes
        return Told(value, bound, pushes, rows, 0, whole, code)

    def rounded(self, value, bound: float) -> float:
        """The bound of the value in the dtype of A, itself in it."""
        finfo = np.finfo(self.dtype)
        real = finfo.dtype.type
        if finfo.bits < 64:
            bound += float(finfo.eps) * float(abs(value))
            bound += 2 * float(finfo.tiny) if bound else 0.0
        return float(np.nextafter(real(bound), real(np.inf))) if bound else 0.0
