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
    """`make_solver(rtol)`; `verdict` says what is wrong with a solution, or `None`."""

    make_solver: Any
    kinds: str
    verdict: Any
    exact: bool = True  # solves every good system


_normal = ft.partial(_full_rank, power=2)
_least_squares = ft.partial(_pseudoinverse, relative_to="projection", power=2)
_singular_cg = lambda rtol: pj.CG(rtol, 0.0, well_posed=False)
# The same solver under another name: one kind of system is enough.
CASES = {
    "QR": Case(lambda _: pj.QR(), ANY, _full_rank),
    "CholeskyQR": Case(lambda _: pj.CholeskyQR(), ANY, _full_rank),
    "PivotedQR": Case(lambda _: pj.PivotedQR(), f"{ANY} definite", _any_rank),
    "SVD": Case(lambda _: pj.SVD(), ANY, ft.partial(_any_rank, cutoff=2)),
    "LU": Case(lambda _: pj.LU(), "square", _full_rank),
    "Cholesky": Case(lambda _: pj.Cholesky(), "definite", _full_rank),
    "Triangular": Case(lambda _: pj.Triangular(), "lower-triangular", _full_rank),
    "Tridiagonal": Case(lambda _: pj.Tridiagonal(), "tridiagonal", _full_rank),
    "Normal(Cholesky)": Case(lambda _: pj.Normal(pj.Cholesky()), ANY, _normal),
    "Normal(QR)": Case(lambda _: pj.Normal(pj.QR()), ANY, _normal),
    "Normal(PivotedQR)": Case(
        lambda _: pj.Normal(pj.PivotedQR()), ANY, ft.partial(_any_rank, power=2)
    ),
    "Normal(SVD)": Case(
        lambda _: pj.Normal(pj.SVD()), ANY, ft.partial(_any_rank, power=2, cutoff=2)
    ),
    "Auto(True)": Case(
        lambda _: pj.AutoLinearSolver(True), "square definite tridiagonal", _full_rank
    ),
    "Auto(None)": Case(lambda _: pj.AutoLinearSolver(None), "tall", _full_rank),
    "Auto(False)": Case(lambda _: pj.AutoLinearSolver(False), "wide", _any_rank),
    "CG": Case(lambda rtol: pj.CG(rtol, 0.0), "definite", _promise),
    "CG(well_posed=False)": Case(
        _singular_cg,
        "definite",
        ft.partial(_pseudoinverse, relative_to="projection", power=1),
    ),
    "Normal(CG)": Case(
        lambda rtol: pj.Normal(pj.CG(rtol, 0.0)),
        ANY,
        ft.partial(_promise, relative_to="gram"),
    ),
    "Normal(CG(well_posed=False))": Case(
        lambda rtol: pj.Normal(_singular_cg(rtol)),
        ANY,
        ft.partial(_pseudoinverse, relative_to="gram", power=2),
    ),
    "MINRES": Case(lambda rtol: pj.MINRES(rtol), "definite", _least_squares),
    "MINRES(well_posed=True)": Case(
        lambda rtol: pj.MINRES(rtol, well_posed=True), "definite", _promise
    ),
    "LSMR": Case(lambda rtol: pj.LSMR(rtol), ANY, _least_squares),
    "LSMR(well_posed=True)": Case(
        lambda rtol: pj.LSMR(rtol, well_posed=True), ANY, _least_squares
    ),
    "GMRES": Case(lambda rtol: pj.GMRES(rtol), "square", _promise),
    # Eigenvalues all around zero are not for it.
    "BiCGStab": Case(lambda rtol: pj.BiCGStab(rtol), "square", _promise, exact=False),
    # Eigenvalues from 0.5 to 1.5: others diverge, and are to be told.
    "Neumann": Case(
        lambda rtol: pj.Neumann(400, 0.9, rtol=rtol),
        "definite square",
        ft.partial(_promise, relative_to="solution"),
        exact=False,
    ),
    "lineax.GMRES": Case(
        lambda rtol: lx.GMRES(rtol, 0.0, restart=5), "square", _promise, exact=False
    ),
    "lineax.BiCGStab": Case(
        lambda rtol: lx.BiCGStab(rtol, 0.0), "square", _promise, exact=False
    ),
}
DTYPES = ("float32", "float64", "complex128")


def finds_rank(case, *_):
    return getattr(case.verdict, "func", case.verdict) is _any_rank


def is_direct(case):
    return getattr(case.verdict, "func", case.verdict) in (_any_rank, _full_rank)
