"""How many steps, or products with A, do flexible and shifted Krylov solvers take?

Counts to a relative residual of 1e-10, and the error of x and of a gradient beside dense
NumPy: `python -m benchmarks.krylov_steps`, some ten seconds.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp as pj


_PSD = lx.positive_semidefinite_tag


def _definite(size: int, smallest: float, largest: float):
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    matrix = basis * np.geomspace(smallest, largest, size) @ basis.T
    return (matrix + matrix.T) / 2, rng.standard_normal(size)


def _poisson(side: int):
    line = 2 * np.eye(side) - np.eye(side, k=1) - np.eye(side, k=-1)
    matrix = np.kron(line, np.eye(side)) + np.kron(np.eye(side), line)
    return matrix, np.random.default_rng(0).standard_normal(side**2)


def _bent(vector):
    return vector * (1 + 0.3 * jnp.tanh(10 * vector / jnp.linalg.norm(vector)))


def _two_grid(matrix, side: int):
    """Damped Jacobi, the grid of half the side exactly, damped Jacobi."""
    line = np.zeros((side, side // 2))
    for j in range(side // 2):
        line[2 * j : 2 * j + 3, j] = [0.5, 1.0, 0.5][: side - 2 * j]
    up = np.kron(line, line)
    coarse = up @ np.linalg.solve(up.T @ matrix @ up, up.T)

    def precondition(residual):
        x = 0.2 * residual
        x = x + coarse @ (residual - matrix @ x)
        return x + 0.2 * (residual - matrix @ x)

    return precondition


def _error(got, want) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _flexible(name: str, matrix, vector, solver) -> None:
    def total(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, _PSD)
        solution = pj.linear_solve(operator, vector, solver)
        return jnp.sum(solution.value), (solution.value, solution.stats["num_steps"])

    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (by_matrix, by_vector), (x, steps) = grad(matrix, vector)
    truth = np.linalg.solve(matrix, np.stack([vector, np.ones(len(vector))], 1)).T
    errors = _error(x, truth[0]), _error(by_vector, truth[1])
    of_matrix = _error(by_matrix, -np.outer(truth[1], truth[0]))
    print(
        f"| {name} | {int(steps)} | {errors[0]:.0e} | {max(errors[1], of_matrix):.0e} |"
    )


def _shifted(name: str, matrix, vector, shifts, solver) -> None:
    def total(matrix, vector, shifts):
        operator = lx.MatrixLinearOperator(matrix, _PSD)
        solution = pj.shifted_solve(operator, vector, shifts, solver)
        return jnp.sum(solution.value), (solution.value, solution.stats["num_products"])

    grad = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    gradients, (x, products) = grad(matrix, vector, shifts)
    each = [matrix + s * np.eye(len(vector)) for s in shifts]
    truth = np.stack([np.linalg.solve(shifted, vector) for shifted in each])
    adjoint = np.stack([np.linalg.solve(a, np.ones(len(vector))) for a in each])
    wanted = -adjoint.T @ truth, adjoint.sum(0), -np.sum(adjoint * truth, 1)
    of_gradient = max(map(_error, gradients, wanted))
    print(f"| {name} | {int(products)} | {_error(x, truth):.0e} | {of_gradient:.0e} |")


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    head = "| error of x | of the gradient |\n|---|---|---|---|"
    print(f"| 50 unknowns, condition number 1e4 | steps {head}")
    problem = _definite(50, 1, 1e4)
    _flexible("`CG()`", *problem, pj.CG())
    for memory in (10, 20, 40, 50):
        solver = pj.FlexibleCG(preconditioner=_bent, memory=memory, max_steps=5000)
        _flexible(f"`FlexibleCG`, P of tanh, memory {memory}", *problem, solver)
    print(f"\n| Poisson, 32 x 32 | steps {head}")
    problem = _poisson(32)
    cycle = _two_grid(problem[0], 32)
    _flexible("`CG()`", *problem, pj.CG())
    _flexible("`FlexibleCG`, two grids", *problem, pj.FlexibleCG(preconditioner=cycle))
    solver = pj.FlexibleGMRES(preconditioner=cycle, adjoint_preconditioner=cycle)
    _flexible("`FlexibleGMRES`, two grids", *problem, solver)
    print(f"\n| 200 unknowns, eigenvalues from 0.1 to 100 | products {head}")
    problem, shifts = _definite(200, 0.1, 100), np.geomspace(0.1, 10, 16)
    solvers = {
        "CG()": pj.CG(),
        "MINRES()": pj.MINRES(),
        "MINRES(well_posed=True)": pj.MINRES(well_posed=True),
    }
    for name, solver in solvers.items():
        _shifted(f"`{name}`, the smallest shift", *problem, shifts[:1], solver)
        _shifted(f"`{name}`, 16 shifts", *problem, shifts, solver)


if __name__ == "__main__":
    main()
