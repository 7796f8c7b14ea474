"""The solvers, and which systems each of them claims to solve; cells to compile."""

import itertools
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

    - `default`, `ci`: the shape and dtype of A that run by default, and in CI as well.
    - `kind`: of `drop_in_cases.TAGS`; all but "general" are square.
    - `deficient`: takes any rank, else full rank only.
    - `consistent`: takes b in the range only.
    - `power`: its error grows with this power of the condition number.
    - `squares`: it forms the Gram matrix, whose condition number limits it.
    - `tolerance`: it iterates to a tolerance, absolute too, so that it knows a scale.
    - `twice`: two runs, of which the second amplifies the rounding of the first again.
    """

    make: Callable[[float], lx.AbstractLinearSolver]
    default: str
    ci: str
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
    "QR": Claim(lambda tol: pj.QR(), "4x3-complex128", "3x4-float32"),
    "PivotedQR": Claim(
        lambda tol: pj.PivotedQR(), "3x4-complex64", "6x2-float64", **_ANY
    ),
    "SVD": Claim(lambda tol: pj.SVD(), "4x3-float64", "2x5-complex64", **_ANY),
    "LU": Claim(lambda tol: pj.LU(), "3x3-complex64", "6x6-float64", square=True),
    "Cholesky": Claim(
        lambda tol: pj.Cholesky(), "3x3-complex128", "6x6-float32", "positive"
    ),
    "Cholesky-negative": Claim(
        lambda tol: pj.Cholesky(), "6x6-float64", "3x3-complex64", "negative"
    ),
    "Triangular": Claim(
        lambda tol: pj.Triangular(), "6x6-complex64", "3x3-float64", "lower"
    ),
    "Triangular-unit": Claim(
        lambda tol: pj.Triangular(), "3x3-float32", "6x6-complex128", "unit_lower"
    ),
    "Tridiagonal": Claim(
        lambda tol: pj.Tridiagonal(), "6x6-complex128", "3x3-float32", "tridiagonal"
    ),
    "Normal(Cholesky)": Claim(
        lambda tol: pj.Normal(pj.Cholesky()), "3x4-complex128", "6x2-float32", power=2
    ),
    "Normal(LU)": Claim(
        lambda tol: pj.Normal(pj.LU()), "4x3-complex64", "2x5-float64", power=2
    ),
    "Normal(QR)": Claim(
        lambda tol: pj.Normal(pj.QR()), "2x5-complex128", "4x3-float32", power=2
    ),
    "Normal(SVD)": Claim(
        lambda tol: pj.Normal(pj.SVD()), "4x3-float64", "3x4-complex64", power=2, **_ANY
    ),
    "Normal(PivotedQR)": Claim(
        lambda tol: pj.Normal(pj.PivotedQR()),
        *("6x2-complex128", "3x4-float64"),
        power=2,
        **_ANY,
    ),
    "Normal(CG)": Claim(
        lambda tol: pj.Normal(_cg(tol)),
        *("4x3-complex128", "3x4-float32"),
        power=2,
        tolerance=True,
    ),
    "Normal(CG-singular)": Claim(
        lambda tol: pj.Normal(_singular_cg(tol)),
        *("3x4-float64", "4x3-complex64"),
        power=2,
        tolerance=True,
        **_TWICE,
    ),
    "CG": Claim(_cg, "3x3-complex64", "6x6-float64", "positive", tolerance=True),
    "CG-negative": Claim(
        _cg, "6x6-float32", "3x3-complex128", "negative", tolerance=True
    ),
    "CG-consistent": Claim(
        _cg,
        *("3x3-complex128", "6x6-float64", "positive"),
        consistent=True,
        tolerance=True,
        **_ANY,
    ),
    "CG-singular": Claim(
        _singular_cg,
        *("6x6-complex128", "3x3-float32", "positive"),
        tolerance=True,
        **_TWICE,
    ),
    "Neumann": Claim(
        lambda tol: pj.Neumann(200, rtol=tol, atol=tol),
        *("3x3-complex64", "6x6-float64", "near_identity"),
        tolerance=True,
    ),
    "Auto(True)": Claim(_auto(True), "6x6-complex64", "3x3-float64", square=True),
    "Auto(None)": Claim(_auto(None), "3x4-complex128", "4x3-float32"),
    "Auto(False)": Claim(_auto(False), "6x2-complex64", "3x4-float64", **_ANY),
    "Auto(True)-diagonal": Claim(_auto(True), "3x3-complex64", "6x6-float64", "diagonal"),
    "Auto(True)-positive": Claim(_auto(True), "6x6-float64", "3x3-complex64", "positive"),
    "Auto(None)-upper": Claim(_auto(None), "3x3-complex128", "6x6-float32", "upper"),
    "Auto(None)-tridiagonal": Claim(
        _auto(None), "6x6-float32", "3x3-complex128", "tridiagonal"
    ),
    "Auto(False)-diagonal": Claim(
        _auto(False), "6x6-complex128", "3x3-float32", "diagonal", **_ANY
    ),
    "Auto(False)-negative": Claim(
        _auto(False), "3x3-complex64", "6x6-float64", "negative", **_ANY
    ),
    "CholeskyQR": Claim(
        lambda tol: pj.CholeskyQR(), "6x2-complex64", "3x4-float64", squares=True
    ),
}


class Cell(NamedTuple):
    """What a compilation is for; `label` is the name in `CLAIMS`."""

    label: str
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def claim(self):
        return CLAIMS[self.label]


def cells(label):
    """What the solver claims to solve, by names such as "4x3-complex64".

    Of all shapes in two dtypes, of the first shape in all.
    """
    claim = CLAIMS[label]
    pairs = itertools.product(claim.shapes, DTYPES)
    every = {
        f"{rows}x{cols}-{dtype}": Cell(label, (rows, cols), dtype)
        for (rows, cols), dtype in pairs
    }
    return {
        name: cell
        for name, cell in every.items()
        if cell.shape == claim.shapes[0]
        or cell.dtype in DTYPES[:2]
        or name in (claim.default, claim.ci)
    }


def each_cell(labels=tuple(CLAIMS), *, default=tuple(CLAIMS)):
    """Parametrises a test by solver, shape and dtype.

    A solver's `default` cell runs by default if the solver is one of `default`, which
    then has its `ci` cell in CI, else in CI; all others run before a release.
    """
    params = []
    for label in labels:
        claim = CLAIMS[label]
        marks = dict.fromkeys(cells(label), pytest.mark.nightly)
        marks[claim.default] = pytest.mark.slow  # a compilation for each cell
        if label in default:
            marks |= {claim.default: (), claim.ci: pytest.mark.slow}
        params += [
            pytest.param(cell, id=f"{label}-{name}", marks=marks[name])
            for name, cell in cells(label).items()
        ]
    return pytest.mark.parametrize("cell", params)
