"""SciPy's `bicgstab`, scaled, on the host."""

import functools as ft
from typing import Any

import numpy as np

from .._base.optional import import_late


_STEPS = 1000


def krylov(matrix: Any, diagonal: Any, rhs: Any, target: float) -> tuple[Any, int]:
    """x with ‖b − A x‖₂ ≤ target, as far as `bicgstab` comes, and its products."""
    linalg = import_late("scipy.sparse.linalg")
    products = 0
    if not np.any(rhs):
        return np.zeros_like(rhs), products

    def product(vector):
        nonlocal products
        products += 1
        return matrix @ vector

    # Of numbers near one: SciPy's breakdowns are absolute.
    largest, norm = float(np.max(np.abs(diagonal))), float(np.linalg.norm(rhs))
    shape, dtype = (rhs.size, rhs.size), rhs.dtype
    linear = ft.partial(linalg.LinearOperator, shape, dtype=dtype)
    solution, _ = linalg.bicgstab(
        linear(lambda vector: product(vector) / largest),
        rhs / norm,
        rtol=0.0,
        atol=target / norm,
        maxiter=_STEPS,
        M=linear(lambda vector: vector / (diagonal / largest)),
    )
    solution = solution * (norm / largest)
    return np.where(np.isfinite(solution), solution, 0), products
