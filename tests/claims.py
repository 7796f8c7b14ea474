"""The solvers, and which systems each of them claims to solve; cells to compile."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from drop_in_cases import TAGS

import pseudojvp as pj


TALL, WIDE, SQUARE, SINGLE = (4, 3), (3, 4), (3, 3), (1, 1)
_MORE_SHAPES = ((6, 2), (2, 5), (1, 4), (5, 1))
DTYPES = tuple(map(np.dtype, ("float64", "complex64", "complex128", "float32")))
# Powers of two: 1e-150 to 1e150, and 1e-15 to 1e15.
SCALES = dict(zip(DTYPES, (498, 49, 498, 49), strict=True))
TOLERANCE = dict(zip(DTYPES, (1e-11, 1e-5, 1e-11, 1e-5), strict=True))  # of iterations


class Claim(NamedTuple):
    """A solver and the systems that it claims to solve.

    - `kind`: of `drop_in_cases.TAGS`; all but "general" are square.
    - `deficient`: takes any rank, else full rank only.
    - `consistent`: takes b in the range only.
    - `power`: its error grows with this power of the condition number.
    - `squares`: it forms the Gram matrix, whose condition number limits it.
    - `tolerance`: it iterates to a tolerance, absolute too, so that it knows a scale.
    - `twice`: two runs, of which the second amplifies the rounding of the first again.
    """

    make: Callable[[float], lx.AbstractLinearSolver]
    kind: str = "general"
    square: bool = False
    deficient: bool = False
    consistent: bool = False
    power: int = 1
    squares: bool = False
    tolerance: bool = False
    twice: bool = False

    def operator(self, matrix):
        return lx.MatrixLinearOperator(jnp.asarray(matrix), TAGS[self.kind])

    def solver(self, dtype):
        return self.make(TOLERANCE[dtype])

    @property
    def dense(self):
        """Whether the singular values of a matrix of this kind can be prescribed."""
        return self.kind in ("general", "positive", "negative")

    @property
    def scalable(self):
        return not self.tolerance and self.kind != "unit_lower"

    @property
    def shapes(self):
        general = self.kind == "general" and not self.square
        if general:
            return (TALL, WIDE, SQUARE, SINGLE, *_MORE_SHAPES)
        return (SQUARE, SINGLE, (6, 6))

    def unit(self, dtype):
        """The relative error of a well-conditioned solve."""
        return TOLERANCE[dtype] if self.tolerance else np.finfo(dtype).eps

    def max_condition(self, dtype, claimed=True):
        """Up to which the rank is beyond doubt, and the solution has correct digits."""
        if claimed and self.tolerance:
            return 30.0
        power = max(self.power, 2 if self.squares else 1) if claimed else 1
        return float((1e-2 / np.finfo(dtype).eps) ** (0.75 / power))


_ANY = {"deficient": True}
_TWICE = {"deficient": True, "twice": True}
_cg = lambda tol: pj.CG(tol, tol)
_singular_cg = lambda tol: pj.CG(tol, tol, well_posed=False)
_auto = lambda well_posed: lambda tol: pj.AutoLinearSolver(well_posed)
CLAIMS = {
    "QR": Claim(lambda tol: pj.QR()),
    "PivotedQR": Claim(lambda tol: pj.PivotedQR(), **_ANY),
    "SVD": Claim(lambda tol: pj.SVD(), **_ANY),
    "LU": Claim(lambda tol: pj.LU(), square=True),
    "Cholesky": Claim(lambda tol: pj.Cholesky(), "positive"),
    "Cholesky-negative": Claim(lambda tol: pj.Cholesky(), "negative"),
    "Triangular": Claim(lambda tol: pj.Triangular(), "lower"),
    "Triangular-unit": Claim(lambda tol: pj.Triangular(), "unit_lower"),
    "Tridiagonal": Claim(lambda tol: pj.Tridiagonal(), "tridiagonal"),
    "Normal(Cholesky)": Claim(lambda tol: pj.Normal(pj.Cholesky()), power=2),
    "Normal(LU)": Claim(lambda tol: pj.Normal(pj.LU()), power=2),
    "Normal(QR)": Claim(lambda tol: pj.Normal(pj.QR()), power=2),
    "Normal(SVD)": Claim(lambda tol: pj.Normal(pj.SVD()), power=2, **_ANY),
    "Normal(PivotedQR)": Claim(lambda tol: pj.Normal(pj.PivotedQR()), power=2, **_ANY),
    "Normal(CG)": Claim(lambda tol: pj.Normal(_cg(tol)), power=2, tolerance=True),
    "Normal(CG-singular)": Claim(
        lambda tol: pj.Normal(_singular_cg(tol)), power=2, tolerance=True, **_TWICE
    ),
    "CG": Claim(_cg, "positive", tolerance=True),
    "CG-negative": Claim(_cg, "negative", tolerance=True),
    "CG-consistent": Claim(_cg, "positive", consistent=True, tolerance=True, **_ANY),
    "CG-singular": Claim(_singular_cg, "positive", tolerance=True, **_TWICE),
    "Neumann": Claim(
        lambda tol: pj.Neumann(200, rtol=tol, atol=tol), "near_identity", tolerance=True
    ),
    "Auto(True)": Claim(_auto(True), square=True),
    "Auto(None)": Claim(_auto(None)),
    "Auto(False)": Claim(_auto(False), **_ANY),
    "Auto(True)-diagonal": Claim(_auto(True), "diagonal"),
    "Auto(True)-positive": Claim(_auto(True), "positive"),
    "Auto(None)-upper": Claim(_auto(None), "upper"),
    "Auto(None)-tridiagonal": Claim(_auto(None), "tridiagonal"),
    "Auto(False)-diagonal": Claim(_auto(False), "diagonal", **_ANY),
    "Auto(False)-negative": Claim(_auto(False), "negative", **_ANY),
    "CholeskyQR": Claim(lambda tol: pj.CholeskyQR(), squares=True),
}


class Cell(NamedTuple):
    """What a compilation is for."""

    claim: Claim
    shape: tuple[int, int]
    dtype: np.dtype


def each_cell(names=tuple(CLAIMS), *, often=1, seldom=0, core=tuple(CLAIMS)):
    """Parametrises a test by solver, shape and dtype.

    Each solver takes part in `often` cells, if it is one of `core`, and in `seldom` more
    that are slow, of which CI runs two; shapes and dtypes come in turn.
    """
    params = []
    for start, name in enumerate(names):
        claim = CLAIMS[name]
        turns = [
            Cell(claim, shape, DTYPES[(row + column) % len(DTYPES)])
            for row in range(len(DTYPES))
            for column, shape in enumerate(claim.shapes)
        ]
        turns = turns[start % len(turns) :] + turns[: start % len(turns)]
        for turn, cell in enumerate(turns[: often + seldom]):
            rows, cols = cell.shape
            # Hundreds of cells with a compilation each.
            marks = [] if turn < often and name in core else [pytest.mark.slow]
            if turn >= often + 2:
                marks.append(pytest.mark.exhaustive)
            label = f"{name}-{rows}x{cols}-{cell.dtype}"
            params.append(pytest.param(cell, id=label, marks=marks))
    return pytest.mark.parametrize("cell", params)
