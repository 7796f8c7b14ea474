"""PyTorch as a contender, where it is installed: its functions and its own autograd."""

import functools as ft
from collections.abc import Callable

from .harness import Contender


try:
    import torch
except ImportError:
    torch = None


def _lstsq(matrix, columns):
    return torch.linalg.lstsq(matrix, columns, driver="gels").solution


def _by_qr(matrix, columns):
    if matrix.shape[-2] >= matrix.shape[-1]:
        q, r = torch.linalg.qr(matrix)
        return torch.linalg.solve_triangular(r, q.mT @ columns, upper=True)
    q, r = torch.linalg.qr(matrix.mT)
    return q @ torch.linalg.solve_triangular(r.mT, columns, upper=False)


def _by_gram(matrix, columns):
    if matrix.shape[-2] >= matrix.shape[-1]:
        factor = torch.linalg.cholesky(matrix.mT @ matrix)
        return torch.cholesky_solve(matrix.mT @ columns, factor)
    factor = torch.linalg.cholesky(matrix @ matrix.mT)
    return matrix.mT @ torch.cholesky_solve(columns, factor)


def _solve(matrix, columns):
    return torch.linalg.solve(matrix, columns)


def _pinv(matrix, columns):
    return torch.linalg.pinv(matrix, rtol=1e-10) @ columns


def _gelsd(matrix, columns):
    return torch.linalg.lstsq(matrix, columns, rcond=1e-10, driver="gelsd").solution


FULL_RANK = {"lstsq": _lstsq, "qr": _by_qr, "cholesky_solve of AᵀA": _by_gram}
SQUARE = {"solve": _solve}
ANY_RANK = {"pinv": _pinv, "lstsq": _gelsd}


def peers(program: Callable, functions: dict[str, Callable]) -> tuple[Contender, ...]:
    """Contenders, one a function X = f(A, B) of columns; none without PyTorch.

    - `program`: from such a function to the function of the problem data that is timed.
    """
    if torch is None:
        return ()
    return tuple(
        Contender("torch", name, _on_tensors(program(function)))
        for name, function in functions.items()
    )


def _on_tensors(program):
    def prepare(*arguments):
        return ft.partial(program, *map(torch.from_numpy, arguments))

    return prepare


def solve(function):
    """x = A†b for one b, for the rows b, or for one b a matrix of a batch."""

    def run(matrix, vectors):
        if vectors.ndim == matrix.ndim:
            return function(matrix, vectors.mT).mT
        return function(matrix, vectors[..., None])[..., 0]

    return run


def gradient(function):
    """The gradient of Σ <c, A†b>."""
    run = solve(function)

    def program(matrix, vectors, weights):
        inputs = tuple(array.detach().requires_grad_() for array in (matrix, vectors))
        loss = torch.sum(weights * run(*inputs))
        return torch.autograd.grad(loss, inputs)

    return program


def tangents(function):
    """x' for many A'."""
    run = solve(function)

    def program(matrix, vector, t_matrices):
        def t_solution(t_matrix):
            along = lambda a: run(a, vector)
            return torch.func.jvp(along, (matrix,), (t_matrix,))[1]

        return torch.func.vmap(t_solution)(t_matrices)

    return program


def jacfwd(function):
    """The Jacobian with respect to the first argument."""
    return torch.func.jacfwd(function)
