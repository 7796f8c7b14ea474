"""How long does the Jacobian of a variable projection residual take (milliseconds)?

The model is a sum of 24 Gaussian peaks on 1000 points: centres and widths are the
parameters θ of the basis A(θ), the heights x = A(θ)†b are projected out, and the residual
is b − A(θ) x. The Jacobian with respect to θ is `jax.jacfwd`'s: of the residual written
down with a solver, and of `pseudojvp.projected_residual`.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp as pj

from . import contenders, dense, reference, torch_peers
from .harness import Contender, Workload


_PEAKS = 24


def _basis(parameters, grid):
    centres, widths = parameters[:_PEAKS], parameters[_PEAKS:]
    return jnp.exp(-0.5 * ((grid[:, None] - centres) / widths) ** 2)


def _jacobian(linear_solve, solver):
    def residual(parameters, grid, data):
        operator = lx.MatrixLinearOperator(_basis(parameters, grid))
        return data - operator.mv(linear_solve(operator, data, solver).value)

    return jax.jacfwd(residual)


def _own_jacobian(parameters, grid, data):
    residual = pj.projected_residual(_basis, data, solver=pj.QR())
    return jax.jacfwd(residual)(parameters, grid)


def _problem():
    rng = np.random.default_rng(0)
    grid = np.linspace(0, _PEAKS + 1, 1000)
    centres = np.arange(1, _PEAKS + 1) + rng.uniform(-0.2, 0.2, _PEAKS)
    widths = rng.uniform(0.4, 0.7, _PEAKS)
    heights = rng.uniform(1, 2, _PEAKS)
    peaks = np.exp(-0.5 * ((grid[:, None] - centres) / widths) ** 2)
    data = peaks @ heights + 0.1 * rng.standard_normal(grid.size)
    return np.concatenate([centres, widths]), grid, data


def _reference(parameters, grid, data):
    centres, widths = parameters[:_PEAKS], parameters[_PEAKS:]
    scaled = (grid[:, None] - centres) / widths
    matrix = np.exp(-0.5 * scaled**2)
    inverse = np.linalg.pinv(matrix)
    columns = []
    for derivative in (matrix * scaled / widths, matrix * scaled**2 / widths):
        for peak in range(_PEAKS):
            t_matrix = np.zeros_like(matrix)
            t_matrix[:, peak] = derivative[:, peak]
            columns.append(reference.residual_tangent(matrix, inverse, data, t_matrix))
    return np.stack(columns, axis=1)


def _limit(factorise):
    """The basis and its slopes, the factorisation, and two products with the slopes."""

    def program(parameters, grid, data):
        matrix = _basis(parameters, grid)
        centres, widths = parameters[:_PEAKS], parameters[_PEAKS:]
        scaled = (grid[:, None] - centres) / widths
        slopes = jnp.concatenate([matrix * scaled, matrix * scaled**2], axis=1)
        within = matrix.T @ slopes
        return factorise(matrix), matrix.T @ data, slopes - matrix @ within

    return program


def _torch_jacobian(function):
    solve = torch_peers.solve(function)

    def residual(parameters, grid, data):
        centres, widths = parameters[:_PEAKS], parameters[_PEAKS:]
        matrix = (-0.5 * ((grid[:, None] - centres) / widths) ** 2).exp()
        return data - matrix @ solve(matrix, data)

    return torch_peers.jacfwd(residual)


workloads = (
    Workload(
        f"projected residual, {_PEAKS} peaks on 1000 points: Jacobian",
        _problem,
        _reference,
        (
            *contenders.solvers(
                _jacobian,
                contenders.FULL_RANK,
                numpy=dense.BY_NUMPY,
                limit=_limit,
                may_hang=contenders.MAY_HANG,
            ),
            Contender(
                "pseudojvp",
                "projected_residual(QR())",
                contenders.compiled(_own_jacobian),
                "QR()",
            ),
            *torch_peers.peers(_torch_jacobian, torch_peers.FULL_RANK),
        ),
    ),
)
