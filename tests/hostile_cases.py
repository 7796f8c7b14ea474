"""Every solver, the hostile systems that are its business, and what it promises of them.

`hostile_judge.py` states what counts as right.
"""

import functools as ft
from typing import Any, NamedTuple

import hostile_judge as judge
import lineax as lx

import pseudojvp as pj


TAGS = {
    "definite": lx.positive_semidefinite_tag,
    "lower-triangular": lx.lower_triangular_tag,
    "tridiagonal": lx.tridiagonal_tag,
}
ANY = "square tall wide"


def tolerance(dtype):
    return 1e-4 if dtype == "float32" else 1e-9


def _full_rank(system, solution, stats, rtol, power=1):
    return judge.wrong(system, solution, power=power)


def _any_rank(system, solution, stats, rtol, power=1, cutoff=1):
    return judge.wrong(system, solution, rank=stats["rank"], power=power, cutoff=cutoff)


def _promise(system, solution, stats, rtol, relative_to="vector"):
    return judge.broken_promise(system, solution, rtol, relative_to=relative_to)


def _pseudoinverse(system, solution, stats, rtol, relative_to, power):
    broken = judge.broken_promise(system, solution, rtol, relative_to=relative_to)
    return broken or judge.strayed(system, solution, rtol, power=power)


class Case(NamedTuple):
    """A solver, the systems that are its business, and what it promises of them.

    - `make_solver`: takes the tolerance.
    - `kinds`: of the systems; all of them, in each dtype, run before a release.
    - `verdict`: says what is wrong with a solution, or `None`.
    - `default`, `ci`: the kind and dtype that run by default, and in CI as well.
    - `exact`: solves every good system.
    """

    make_solver: Any
    kinds: str
    verdict: Any
    default: str
    ci: str
    exact: bool = True


_normal = ft.partial(_full_rank, power=2)
_least_squares = ft.partial(_pseudoinverse, relative_to="projection", power=2)
_doubled = lambda vector: 2 * vector
_singular_cg = lambda rtol: pj.CG(rtol, 0.0, well_posed=False)
# The same solver under another name: one kind of system is enough.
CASES = {
    "QR": Case(lambda _: pj.QR(), ANY, _full_rank, *("wide-float64", "tall-complex128")),
    "CholeskyQR": Case(
        lambda _: pj.CholeskyQR(), ANY, _full_rank, *("tall-float32", "wide-complex128")
    ),
    "PivotedQR": Case(
        lambda _: pj.PivotedQR(),
        f"{ANY} definite",
        _any_rank,
        *("tall-complex128", "wide-float32"),
    ),
    "SVD": Case(
        lambda _: pj.SVD(),
        ANY,
        ft.partial(_any_rank, cutoff=2),
        *("tall-complex128", "wide-float32"),
    ),
    "LU": Case(
        lambda _: pj.LU(), "square", _full_rank, *("square-complex128", "square-float32")
    ),
    "Cholesky": Case(
        lambda _: pj.Cholesky(),
        "definite",
        _full_rank,
        *("definite-float64", "definite-complex128"),
    ),
    "Triangular": Case(
        lambda _: pj.Triangular(),
        "lower-triangular",
        _full_rank,
        *("lower-triangular-complex128", "lower-triangular-float32"),
    ),
    "Tridiagonal": Case(
        lambda _: pj.Tridiagonal(),
        "tridiagonal",
        _full_rank,
        *("tridiagonal-complex128", "tridiagonal-float32"),
    ),
    "Normal(Cholesky)": Case(
        lambda _: pj.Normal(pj.Cholesky()),
        ANY,
        _normal,
        *("wide-float64", "tall-complex128"),
    ),
    "Normal(QR)": Case(
        lambda _: pj.Normal(pj.QR()), ANY, _normal, *("tall-float32", "wide-complex128")
    ),
    "Normal(PivotedQR)": Case(
        lambda _: pj.Normal(pj.PivotedQR()),
        ANY,
        ft.partial(_any_rank, power=2),
        *("wide-float64", "tall-complex128"),
    ),
    "Normal(SVD)": Case(
        lambda _: pj.Normal(pj.SVD()),
        ANY,
        ft.partial(_any_rank, power=2, cutoff=2),
        *("tall-complex128", "wide-float32"),
    ),
    "Auto(True)": Case(
        lambda _: pj.AutoLinearSolver(True),
        "square definite tridiagonal",
        _full_rank,
        *("square-complex128", "tridiagonal-float64"),
    ),
    "Auto(None)": Case(
        lambda _: pj.AutoLinearSolver(None),
        "tall",
        _full_rank,
        *("tall-complex128", "tall-float32"),
    ),
    "Auto(False)": Case(
        lambda _: pj.AutoLinearSolver(False),
        "wide",
        _any_rank,
        *("wide-float64", "wide-complex128"),
    ),
    "CG": Case(
        lambda rtol: pj.CG(rtol, 0.0),
        "definite",
        _promise,
        *("definite-complex128", "definite-float32"),
    ),
    "CG(well_posed=False)": Case(
        _singular_cg,
        "definite",
        ft.partial(_pseudoinverse, relative_to="projection", power=1),
        *("definite-float64", "definite-complex128"),
    ),
    "Normal(CG)": Case(
        lambda rtol: pj.Normal(pj.CG(rtol, 0.0)),
        ANY,
        ft.partial(_promise, relative_to="gram"),
        *("tall-float32", "wide-complex128"),
    ),
    "Normal(CG(well_posed=False))": Case(
        lambda rtol: pj.Normal(_singular_cg(rtol)),
        ANY,
        ft.partial(_pseudoinverse, relative_to="gram", power=2),
        *("wide-float64", "tall-complex128"),
    ),
    "MINRES": Case(
        lambda rtol: pj.MINRES(rtol),
        "definite",
        _least_squares,
        *("definite-complex128", "definite-float32"),
    ),
    "MINRES(well_posed=True)": Case(
        lambda rtol: pj.MINRES(rtol, well_posed=True),
        "definite",
        _promise,
        *("definite-float64", "definite-complex128"),
    ),
    "LSMR": Case(
        lambda rtol: pj.LSMR(rtol),
        ANY,
        _least_squares,
        *("tall-complex128", "wide-float32"),
    ),
    "LSMR(well_posed=True)": Case(
        lambda rtol: pj.LSMR(rtol, well_posed=True),
        ANY,
        _least_squares,
        *("wide-float64", "tall-complex128"),
    ),
    "GMRES": Case(
        lambda rtol: pj.GMRES(rtol),
        "square",
        _promise,
        *("square-complex128", "square-float32"),
    ),
    # As many directions as unknowns; the systems are not for a short memory.
    "FlexibleCG": Case(
        lambda rtol: pj.FlexibleCG(rtol, preconditioner=_doubled),
        "definite",
        _promise,
        *("definite-complex128", "definite-float32"),
    ),
    "FlexibleGMRES": Case(
        lambda rtol: pj.FlexibleGMRES(rtol, preconditioner=_doubled),
        "square",
        _promise,
        *("square-float64", "square-complex128"),
    ),
    # Eigenvalues all around zero are not for it.
    "BiCGStab": Case(
        lambda rtol: pj.BiCGStab(rtol),
        "square",
        _promise,
        *("square-complex128", "square-float32"),
        exact=False,
    ),
    # Eigenvalues from 0.5 to 1.5: others diverge, and are to be told.
    "Neumann": Case(
        lambda rtol: pj.Neumann(400, 0.9, rtol=rtol),
        "square definite",
        ft.partial(_promise, relative_to="solution"),
        *("definite-float64", "square-complex128"),
        exact=False,
    ),
    "lineax.GMRES": Case(
        lambda rtol: lx.GMRES(rtol, 0.0, restart=5),
        "square",
        _promise,
        *("square-complex128", "square-float64"),
        exact=False,
    ),
    "lineax.BiCGStab": Case(
        lambda rtol: lx.BiCGStab(rtol, 0.0),
        "square",
        _promise,
        *("square-complex128", "square-float32"),
        exact=False,
    ),
}
DTYPES = ("float32", "float64", "complex128")


def finds_rank(case):
    return getattr(case.verdict, "func", case.verdict) is _any_rank


def is_direct(case):
    return getattr(case.verdict, "func", case.verdict) in (_any_rank, _full_rank)
