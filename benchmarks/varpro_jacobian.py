"""How long does one exact Jacobian of the projected residual take (milliseconds)?

`pseudojvp.projected_residual(...).jacobian` beside the composition of
`lineax.linear_solve` with `jax.jacfwd`, SciPy's finite differences, and Golub and
Pereyra's formula written by hand in NumPy, which knows that each parameter moves one
column. On a sum of 24 Gaussians at 1000 points (48 parameters), and on three exponentials
at 100 points.

    python -m benchmarks.varpro_jacobian [--rounds 25]
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.linalg as sl
from scipy.optimize import approx_fprime

import pseudojvp as pj

from .harness import relative_error
from .turns import parse, print_header, take_turns


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its data, and for NumPy the one column that each parameter moves.

    - `basis`: Φ, a function of (θ, x) and of `np` or `jnp`.
    - `moved`: from (θ, x) to ∂(its column)/∂θⱼ, `(m, q)`, and the q columns' numbers.
    """

    title: str
    basis: Callable
    moved: Callable
    theta: np.ndarray
    grid: np.ndarray
    data: np.ndarray


def _gaussians(theta, grid, xp):
    centres, widths = xp.split(theta, 2)
    return xp.exp(-0.5 * ((grid[:, None] - centres) / widths) ** 2)


def _gaussians_moved(theta, grid):
    centres, widths = np.split(theta, 2)
    scaled = (grid[:, None] - centres) / widths
    by_centre = np.exp(-0.5 * scaled**2) * scaled / widths
    columns = np.tile(np.arange(centres.size), 2)
    return np.concatenate([by_centre, by_centre * scaled], axis=1), columns


def _exponentials(theta, grid, xp):
    return xp.exp(-grid[:, None] * theta)


def _exponentials_moved(theta, grid):
    phi = _exponentials(theta, grid, np)
    return -grid[:, None] * phi, np.arange(theta.size)


def _cases() -> list[Case]:
    rng = np.random.default_rng(0)
    peaks = 24
    grid = np.linspace(0, peaks + 1, 1000)
    centres = np.arange(1, peaks + 1) + rng.uniform(-0.2, 0.2, peaks)
    theta = np.concatenate([centres, rng.uniform(0.4, 0.7, peaks)])
    data = _gaussians(theta, grid, np) @ rng.uniform(1, 2, peaks)
    data += 0.1 * rng.standard_normal(grid.size)
    rates, times = np.array([0.3, 1.0, 4.0]), np.linspace(0, 5, 100)
    decay = _exponentials(rates, times, np) @ np.array([1.0, 2.0, 1.5])
    decay += 0.01 * rng.standard_normal(times.size)
    return [
        Case(
            "24 Gaussians at 1000 points, 48 parameters",
            _gaussians, _gaussians_moved, theta, grid, data,
        ),
        Case(
            "3 exponentials at 100 points, 3 parameters",
            _exponentials, _exponentials_moved, rates, times, decay,
        ),
    ]  # fmt: skip


def _ours(case: Case, solver) -> Callable:
    basis = lambda theta, grid: case.basis(theta, grid, jnp)

    def jacobian(theta, grid, data):
        return pj.projected_residual(basis, data, solver=solver).jacobian(theta, grid)

    return jacobian


def _composed(case: Case, solver) -> Callable:
    def residual(theta, grid, data):
        operator = lx.MatrixLinearOperator(case.basis(theta, grid, jnp))
        return data - operator.mv(lx.linear_solve(operator, data, solver).value)

    return jax.jacfwd(residual)


def _residual_by_numpy(theta, case: Case):
    q, _ = np.linalg.qr(case.basis(theta, case.grid, np))
    return case.data - q @ (q.T @ case.data)


def _by_hand(case: Case):
    q, r = np.linalg.qr(case.basis(case.theta, case.grid, np))
    along = q.T @ case.data
    residual = case.data - q @ along
    c = sl.solve_triangular(r, along)
    moved, columns = case.moved(case.theta, case.grid)
    d = moved * c[columns]
    e = np.zeros((c.size, case.theta.size))
    e[columns, np.arange(case.theta.size)] = moved.T @ residual
    return -(d - q @ (q.T @ d)) - q @ sl.solve_triangular(r, e, trans="T")


def _reference(case: Case):
    """The same by `pinv`, one dense ∂Φ/∂θⱼ after the other."""
    phi = case.basis(case.theta, case.grid, np)
    inverse = np.linalg.pinv(phi)
    orthogonal = np.eye(case.grid.size) - phi @ inverse
    moved, columns = case.moved(case.theta, case.grid)
    out = []
    for j, column in enumerate(columns):
        t_phi = np.zeros_like(phi)
        t_phi[:, column] = moved[:, j]
        half = orthogonal @ t_phi @ inverse
        out.append(-(half + half.T) @ case.data)
    return np.stack(out, axis=1)


def _run(case: Case, rounds: int) -> None:
    arguments = jax.device_put((case.theta, case.grid, case.data))

    def compiled(function):
        function = jax.jit(function)
        return lambda: function(*arguments)

    contenders = {
        "pseudojvp, `QR()`": compiled(_ours(case, pj.QR())),
        "pseudojvp, `PivotedQR()`, the default": compiled(_ours(case, pj.PivotedQR())),
        "pseudojvp, `CholeskyQR()`": compiled(_ours(case, pj.CholeskyQR())),
        "lineax, `QR()`": compiled(_composed(case, lx.QR())),
        "lineax, `Normal(Cholesky())`": compiled(
            _composed(case, lx.Normal(lx.Cholesky()))
        ),
        "SciPy, finite differences": lambda: approx_fprime(
            case.theta, _residual_by_numpy, np.sqrt(np.finfo(float).eps), case
        ),
        "NumPy, by hand": lambda: _by_hand(case),
    }
    reference = _reference(case)
    errors = {
        name: relative_error(call(), reference) for name, call in contenders.items()
    }
    take_turns(case.title, contenders, errors, rounds)


def main() -> None:
    arguments = parse(__doc__, 25).parse_args()
    jax.config.update("jax_enable_x64", True)
    print_header()
    for case in _cases():
        _run(case, arguments.rounds)


if __name__ == "__main__":
    main()
