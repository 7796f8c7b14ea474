"""Solvers beside matrices they take: of this library, and of lineax in our solve."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


positive, negative = lx.positive_semidefinite_tag, lx.negative_semidefinite_tag
lower, upper = lx.lower_triangular_tag, lx.upper_triangular_tag
TAGS = {
    "general": (),
    "near_identity": (),
    "positive": (positive,),
    "negative": (negative,),
    "diagonal": (lx.diagonal_tag,),
    "tridiagonal": (lx.tridiagonal_tag,),
    "lower": (lower,),
    "upper": (upper,),
    "unit_lower": (lower, lx.unit_diagonal_tag),
}


LSTSQ = {"pivoted_qr": pj.PivotedQR(), "svd": pj.SVD(), "qr": pj.QR()}


class Case(NamedTuple):
    make: Callable[[float], lx.AbstractLinearSolver]
    kind: str = "general"


def _both_definite(name, make):
    return {name: Case(make, "positive"), f"{name}-negative": Case(make, "negative")}


# The solvers take the tolerance of the dtype that they are used with.
OURS = {
    "QR": Case(lambda tol: pj.QR()),
    "SVD": Case(lambda tol: pj.SVD()),
    "Normal(Cholesky)": Case(lambda tol: pj.Normal(lx.Cholesky())),
    "Normal(CG)": Case(lambda tol: pj.Normal(pj.CG(tol, tol))),
    "Normal(lx.CG)": Case(lambda tol: pj.Normal(lx.CG(tol, tol))),
    "Normal(SVD)": Case(lambda tol: pj.Normal(pj.SVD())),
    **_both_definite("CG", lambda tol: pj.CG(tol, tol)),
    "CG-singular": Case(lambda tol: pj.CG(tol, tol, well_posed=False), "positive"),
    "Neumann": Case(lambda tol: pj.Neumann(60), "near_identity"),
    "Neumann-tol": Case(lambda tol: pj.Neumann(60, rtol=tol, atol=tol), "near_identity"),
    "Auto(True)": Case(lambda tol: pj.AutoLinearSolver(True)),
    "Auto(None)": Case(lambda tol: pj.AutoLinearSolver(None)),
    "Auto(False)": Case(lambda tol: pj.AutoLinearSolver(False)),
}
AUTO = {
    f"Auto(True)-{kind}": Case(lambda tol: pj.AutoLinearSolver(True), kind)
    for kind in ("positive", "negative", "diagonal", "tridiagonal", "lower", "upper")
}
THEIRS = {
    "lx.LU": Case(lambda tol: lx.LU()),
    **_both_definite("lx.Cholesky", lambda tol: lx.Cholesky()),
    "lx.Diagonal": Case(lambda tol: lx.Diagonal(), "diagonal"),
    "lx.Diagonal(True)": Case(lambda tol: lx.Diagonal(well_posed=True), "diagonal"),
    "lx.Tridiagonal": Case(lambda tol: lx.Tridiagonal(), "tridiagonal"),
    "lx.Triangular": Case(lambda tol: lx.Triangular(), "lower"),
    "lx.Triangular-upper": Case(lambda tol: lx.Triangular(), "upper"),
    "lx.Triangular-unit": Case(lambda tol: lx.Triangular(), "unit_lower"),
    "lx.QR": Case(lambda tol: lx.QR()),
    "lx.SVD": Case(lambda tol: lx.SVD()),
    **_both_definite("lx.CG", lambda tol: lx.CG(tol, tol)),
    "lx.Normal(lx.CG)": Case(lambda tol: lx.Normal(lx.CG(tol, tol))),
    "lx.Normal(lx.LU)": Case(lambda tol: lx.Normal(lx.LU())),
    "lx.GMRES": Case(lambda tol: lx.GMRES(tol, tol)),
    "lx.BiCGStab": Case(lambda tol: lx.BiCGStab(tol, tol)),
    "lx.Auto(True)": Case(lambda tol: lx.AutoLinearSolver(True)),
    "lx.Auto(False)": Case(lambda tol: lx.AutoLinearSolver(False)),
}
LSMR = {"lx.LSMR": Case(lambda tol: lx.LSMR(tol, tol))}  # real only
REAL = {**OURS, **AUTO, **THEIRS, **LSMR}
FEW = {
    name: OURS[name] for name in ("QR", "SVD", "Normal(Cholesky)", "CG", "Neumann-tol")
}

TOLERANCE = {
    np.dtype("float64"): 1e-12,
    np.dtype("complex128"): 1e-12,
    np.dtype("float32"): 1e-5,
    np.dtype("complex64"): 1e-5,
}


def params(cases: dict[str, Case], *dtypes: str):
    """`(case, dtype)` for each of both, with a readable id."""
    return [
        pytest.param(case, np.dtype(dtype), id=f"{name}-{dtype}")
        for name, case in cases.items()
        for dtype in dtypes
    ]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_array(shape, dtype, seed: int) -> np.ndarray:
    generator = rng(seed)
    array = generator.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        array = array + 1j * generator.normal(size=shape)
    return array.astype(dtype)


def conditioned(shape, singular_values, dtype, seed: int) -> np.ndarray:
    """A matrix of these singular values between random spaces."""
    wide = np.dtype("complex128" if np.issubdtype(dtype, complex) else "float64")
    rank = len(singular_values)
    left, _ = np.linalg.qr(random_array((shape[0], rank), wide, seed))
    right, _ = np.linalg.qr(random_array((shape[1], rank), wide, seed + 1))
    return (left * np.asarray(singular_values) @ right.conj().T).astype(dtype)


def matrix_of(kind: str, size: int, dtype, seed: int = 0) -> np.ndarray:
    """A square matrix of this kind, of condition number below 10."""
    general = conditioned((size, size), np.linspace(1, 3, size), dtype, seed)
    identity = np.eye(size, dtype=dtype)
    gram = general @ general.conj().T / 3
    strict = np.tril(general, -1)
    pivots = np.diag(np.diag(general) + 3)
    band = np.diag(np.diag(general, 1), 1) + np.diag(np.diag(general, -1), -1)
    return {
        "general": general,
        "near_identity": identity + general / 10,
        "positive": gram,
        "negative": -gram,
        "diagonal": pivots,
        "tridiagonal": pivots + band / 2,
        "lower": pivots + strict / 2,
        "upper": pivots + strict.T / 2,
        "unit_lower": identity + strict / 2,
    }[kind].astype(dtype)


def direction_of(kind: str, size: int, dtype, seed: int) -> np.ndarray:
    """A tangent that keeps the structure that the tags of `kind` promise."""
    if kind == "unit_lower":
        return np.tril(random_array((size, size), dtype, seed), -1)
    if kind in ("general", "near_identity"):
        return random_array((size, size), dtype, seed)
    return matrix_of(kind, size, dtype, seed)


def operator_of(matrix, kind: str) -> lx.MatrixLinearOperator:
    return lx.MatrixLinearOperator(jnp.asarray(matrix), TAGS[kind])
