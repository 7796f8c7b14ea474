"""fᵀ C⁻¹ g by local pushes, on the host, where sparse C is dominant by rows.

With r = f − Cᵀu and s = g − C v, whatever u and v are,

    fᵀ C⁻¹ g = fᵀv + uᵀs + rᵀ C⁻¹ s,    |rᵀ C⁻¹ s| ≤ ‖r‖₁ max_j |s_j| / d_j           (1)

if d_j = |c_jj| − Σ_k≠j |c_jk| > 0 for each row; `docs/entries.md` has the proof. A push
at j moves u_j by r_j / c_jj, which reads row j of C and lowers ‖r‖₁ by |r_j| d_j / |c_jj|
at least; one at v_k reads column k. Arrays of the size of the system are made of zeros,
which take memory only where something is written: a push costs what it reads.
"""

import functools as ft
from typing import Any, NamedTuple

import numpy as np

from .bicgstab import krylov, two_norm


EPS = float(np.finfo(np.float64).eps)
# The host may take for zero what is smaller (XLA's threads do), given or computed.
TINY = float(np.finfo(np.float64).tiny)
# Operations beside those of a sum of products: conversions, a quotient, a modulus.
_BESIDE = 8
# Where the residual is pushed: entries of at least this part of their mean, or of the
# largest where that is to fall. From 0.1 to 1 the rows read differ by a fifth.
_OF_MEAN = 0.5
_OF_LARGEST = 0.3
# Runs of the whole solve, each from the last residual.
_RESTARTS = 5
# Why pushing ended.
MET = 0
LIMIT = 1
ROUNDING = 2


def rounding(terms: int) -> float:
    """A bound on the relative error of a sum of so many products."""
    return (terms + _BESIDE) * EPS


class Rows:
    """The rows of a sparse matrix, and Σ |.| of the entries that add up in each place.

    - `added`: how many additions there are in a place, at most.
    - `tiny`: of a stored entry, what may be taken for zero.
    - `longest`: how many terms the sum of a row has, at most.
    """

    def __init__(
        self, matrix: Any, absolute: Any = None, added: int = 0, tiny: float = TINY
    ):
        self.matrix = matrix
        self.sizes = abs(matrix)
        self.absolute = self.sizes if absolute is None else absolute
        self.added, self.tiny = added, tiny
        self.diagonal = matrix.diagonal()
        self.longest = int(np.max(np.diff(matrix.indptr), initial=0)) + added

    @ft.cached_property
    def gaps(self) -> Any:
        """d_j of (1), at most: what rounding may hide is taken off."""
        sums = apart = self.sizes @ np.ones(len(self.diagonal))
        if self.absolute is not self.sizes:
            apart = self.absolute @ np.ones(len(sums))
        gaps = 2 * np.abs(self.diagonal) - sums - rounding(self.longest) * apart
        return gaps - 2 * (self.longest + 1) * self.tiny

    @ft.cached_property
    def gap(self) -> float:
        return float(np.min(self.gaps))

    @ft.cached_property
    def transposed(self) -> "Rows":
        absolute = None
        if self.absolute is not self.sizes:
            absolute = self.absolute.T.tocsr()
        return Rows(self.matrix.T.tocsr(), absolute, self.added, self.tiny)

    def read(self, rows):
        """Columns, entries, those of `absolute`, and how many of them each row has."""
        indptr = self.matrix.indptr
        counts = indptr[rows + 1] - indptr[rows]
        ends = np.cumsum(counts, dtype=np.int64)
        places = np.arange(ends[-1] if ends.size else 0)
        places += np.repeat(indptr[rows] - (ends - counts), counts)
        absolute = self.absolute.data[places]
        return self.matrix.indices[places], self.matrix.data[places], absolute, counts


class Side:
    """u with Cᵀu near f, by the rows of C, or, on the right, v with C v near g.

    - `pushed`: the indices of what is not zero in the solution.
    - `active`: those of what is not zero in the residual, or once was not.
    - `error`: what rounding has done to the residual, at most; since the last `look`.
    - `floor`: what given numbers that are taken for zero do to the product, at most;
        it is zero only of a right-hand side of zeros.
    """

    def __init__(self, rows: Rows, rhs: Any, *, right: bool, floor: float = 0.0):
        size = rhs.size
        self.floor = floor
        self.of_c, self.right, self.rhs = rows, right, rhs
        self.solution = np.zeros(size, np.result_type(rhs, rows.matrix.dtype))
        self.residual = rhs.astype(self.solution.dtype)
        self.error = np.zeros(size)
        self.support = self.active = np.flatnonzero(rhs)
        self.pushed = np.zeros(0, np.int64)
        self.pushes = 0
        self.whole = False
        # Of a dense right-hand side nothing is local.
        self.sparse = self.active.size <= max(1, size // 10)
        self._seen, self.was_read = np.zeros((2, size), bool)
        self._seen[self.active] = True
        self._changed()

    def _changed(self) -> None:
        for name in ("sizes", "weights", "one_norm", "largest"):
            self.__dict__.pop(name, None)
        self.looked = False

    @property
    def rows(self) -> Rows:
        """What a push reads: of a dense right-hand side never made."""
        return self.of_c.transposed if self.right else self.of_c

    @property
    def matrix(self) -> Any:
        return self.of_c.matrix if self.right else self.of_c.matrix.T

    @ft.cached_property
    def sizes(self) -> Any:
        """Of the residual, where it is active."""
        return np.abs(self.residual[self.active]) + self.error[self.active]

    @ft.cached_property
    def weights(self) -> Any:
        """|r_j| / d_j, where it is active."""
        return self.sizes / self.of_c.gaps[self.active]

    @ft.cached_property
    def one_norm(self) -> float:
        return float(self.sizes.sum()) * (1 + rounding(self.sizes.size))

    @ft.cached_property
    def largest(self) -> float:
        return float(np.max(self.weights, initial=0)) * (1 + 4 * EPS)

    def solution_norm(self) -> float:
        """In the 1-norm, on the right the largest."""
        sizes = np.abs(self.solution[self.pushed])
        return float(np.max(sizes, initial=0) if self.right else np.sum(sizes))

    def error_norm(self) -> float:
        """A bound on the error of the solution in that norm."""
        return self.largest if self.right else self.one_norm / self.of_c.gap

    def push(self, limit: int) -> None:
        """Pushes where the residual is large, `limit` times at most."""
        weights, part = self.sizes, _OF_MEAN * float(np.mean(self.sizes))
        if self.right:
            weights, part = self.weights, _OF_LARGEST * self.largest
        chosen = self.active[weights >= part]
        if chosen.size > limit:
            chosen = self.active[np.argsort(weights)[len(weights) - limit :]]
        steps = self.residual[chosen] / self.of_c.diagonal[chosen]
        self.solution[chosen] += steps
        self.residual[chosen] = 0
        self.error[self.active] = 0
        cols, entries, _, counts = self.rows.read(chosen)
        off = cols != np.repeat(chosen, counts)
        cols, moved = cols[off], (np.repeat(steps, counts) * entries)[off]
        np.subtract.at(self.residual, cols, moved)
        self.active = np.concatenate([self.active, first_seen(cols, self._seen)])
        self.pushed = np.concatenate([self.pushed, first_seen(chosen, self.was_read)])
        self.pushes += chosen.size
        self._changed()

    def look(self) -> None:
        """The residual as such, with what rounding may have done to it."""
        if self.looked:
            return
        if self.whole:
            self._look_at_all()
        elif self.pushed.size:
            self._look_at_pushed()
        self._changed()
        self.looked = True

    def _look_at_pushed(self) -> None:
        cols, entries, absolute, counts = self.rows.read(self.pushed)
        values = np.repeat(self.solution[self.pushed], counts)
        self.residual[self.active] = 0
        self.residual[self.support] = self.rhs[self.support]
        np.subtract.at(self.residual, cols, values * entries)
        terms, number = np.zeros((2, self.rhs.size))
        np.add.at(terms, cols, np.abs(values) * absolute)
        np.add.at(number, cols, 1)
        terms = terms[self.active] + np.abs(self.rhs[self.active])
        most = int(np.max(number[self.active], initial=0))
        self.error[self.active] = rounding(most + self.of_c.added) * terms + most * TINY

    def _look_at_all(self) -> None:
        of_c = self.of_c
        absolute = of_c.absolute if self.right else of_c.absolute.T
        longest = of_c.longest if self.right else of_c.transposed.longest
        self.residual = self.rhs - self.matrix @ self.solution
        terms = np.abs(self.rhs) + absolute @ np.abs(self.solution)
        self.error = rounding(longest) * terms + longest * TINY

    def solve_whole(self, target: float) -> None:
        """To a 2-norm of the residual, by products with all of the matrix."""
        if not self.whole:
            self.pushed = self.active = np.arange(self.rhs.size)
            self.whole = True
        self._changed()
        self.look()
        for _ in range(_RESTARTS):
            if two_norm(self.residual) <= target:
                return
            step, products = krylov(
                self.matrix, self.of_c.diagonal, self.residual, target
            )
            kept = self.solution, two_norm(self.residual)
            self.solution = self.solution + step
            self.pushes += products * self.rhs.size
            self._changed()
            self.look()
            if not two_norm(self.residual) < kept[1]:
                self.solution = kept[0]
                self._changed()
                self.look()
                return


def first_seen(indices, seen):
    """Those of `indices` that were not in the mask `seen`, each once; now they are."""
    new = np.unique(indices[~seen[indices]])
    seen[new] = True
    return new


def product_and_error(left: Side, right: Side) -> tuple[Any, float]:
    """fᵀv + uᵀs, and what rounding may have done to it."""
    u, v = left.solution[left.pushed], right.solution[right.pushed]
    of_u, of_v = u * right.residual[left.pushed], v * left.rhs[right.pushed]
    sizes = np.abs(of_u).sum() + np.abs(of_v).sum()
    error = rounding(of_u.size + of_v.size) * sizes
    # Not by `@`: threads of BLAS take a hundred times as long to wake up.
    error += np.sum(np.abs(u) * right.error[left.pushed])
    return of_u.sum() + of_v.sum(), error


class Tolerance(NamedTuple):
    """How far a value may be off."""

    rtol: float
    atol: float

    def of(self, value) -> float:
        return self.atol + self.rtol * float(abs(value))


class Limits(NamedTuple):
    """Pushes for an entry, and rows of which more than so many are not local."""

    pushes: int
    rows: float


def meet(
    left: Side, right: Side, tolerance: Tolerance, limits: Limits, sides: Any
) -> tuple[Any, float, int]:
    """Pushes `sides` until (1) is within the tolerance; returns value, bound and why.

    Why it ended is `MET`, `LIMIT`, or `ROUNDING`.
    """
    margin = 0.9  # for what a look at the residual adds
    while True:
        value, error = product_and_error(left, right)
        tail = left.one_norm * right.largest
        room = limits.pushes - left.pushes - right.pushes
        rows = left.pushed.size + right.pushed.size
        met = tail + error <= margin * tolerance.of(value)
        if met or tail == 0 or room <= 0 or rows > limits.rows or not sides:
            value, bound = certificate(left, right)
            if bound <= tolerance.of(value):
                return value, bound, MET
            if not (met or tail == 0):
                return value, bound, LIMIT
            if tail == 0 or margin < 0.1:
                return value, bound, ROUNDING
            margin /= 2
            continue
        min(sides, key=lambda side: side.active.size).push(room)


def certificate(left: Side, right: Side) -> tuple[Any, float]:
    """The value and the bound of (1), with rounding in it."""
    left.look()
    right.look()
    value, error = product_and_error(left, right)
    tail = left.one_norm * right.largest
    bound = float(tail + error) * (1 + 8 * EPS)
    floor = left.floor + right.floor
    if floor == 0 and bound == 0:  # b is zero
        return value, 0.0
    sizes = left.active.size, left.pushed.size + right.pushed.size
    lost = TINY * (sizes[0] * right.largest + left.one_norm + 3 * sizes[1])
    return value, bound + floor + lost + TINY
