"""The contenders of `benchmarks.sparse_solves`, and the problems of its two tables.

What a contender is: from the matrix to `solve` (entries, f) -> u, traced by JAX, with
whatever else `solve` takes; or from the matrix, f and w to two calls, the solve and the
solve with its gradient.
"""

import functools as ft
import importlib
from collections.abc import Callable

import jax
import jax.experimental.sparse as jsparse
import jax.experimental.sparse.linalg
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import lineax as lx
import scipy.sparse.linalg

import pseudojvp as pj

from . import sparse_problems as problems


RTOL = 1e-8
MODEL_SIDE, MODEL_SIZE = 317, 100_000
_DEFINITE = lx.positive_semidefinite_tag


def _operator(matrix, tags=_DEFINITE):
    return pj.SparseLinearOperator(matrix, tags)


def _ours(matrix, solver, preconditioner=None, tags=_DEFINITE):
    operator = _operator(matrix, tags)
    built = {} if preconditioner is None else {"preconditioner": preconditioner(operator)}

    def solve(data, vector, options):
        moved = pj.SparseLinearOperator((data, operator.sparsity), operator.tags)
        solution = pj.linear_solve(moved, vector, solver, options=options, throw=False)
        return solution.value, solution.stats.get("num_steps")

    return solve, built


def _jax_krylov(name, **settings):
    """A solver of `jax.scipy.sparse.linalg` on BCSR, the fastest of JAX's own formats."""
    function = getattr(jax.scipy.sparse.linalg, name)

    def contender(matrix):
        indices, starts = jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr)

        def solve(data, vector, _):
            sparse = jsparse.BCSR((data, indices, starts), shape=matrix.shape)
            return function(lambda u: sparse @ u, vector, tol=RTOL, **settings)[0], None

        return solve, {}

    return contender


def _jax_spsolve(matrix):
    indices, starts = jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr)
    spsolve = jax.experimental.sparse.linalg.spsolve
    return lambda data, vector, _: (spsolve(data, indices, starts, vector), None), {}


def _klujax(matrix):
    klujax = importlib.import_module("klujax")
    row, col = map(jnp.asarray, matrix.tocoo().coords)
    return lambda data, vector, _: (klujax.solve(row, col, data, vector), None), {}


def on_pattern(matrix, adjoint, solution):
    entries = matrix.tocoo()
    return -adjoint[entries.row] * solution[entries.col]


def _scipy_splu(matrix, vector, weights):
    def solve():
        return scipy.sparse.linalg.splu(matrix.tocsc()).solve(vector)

    def both():
        factors = scipy.sparse.linalg.splu(matrix.tocsc())
        solution, adjoint = factors.solve(vector), factors.solve(weights, "T")
        return solution, on_pattern(matrix, adjoint, solution)

    return solve, both


def _scipy_cg(matrix, vector, weights):
    run = ft.partial(scipy.sparse.linalg.cg, matrix, rtol=RTOL, maxiter=10**5)

    def both():
        solution, adjoint = run(vector)[0], run(weights)[0]
        return solution, on_pattern(matrix, adjoint, solution)

    return lambda: run(vector)[0], both


def _torch(matrix, vector, weights):
    torch = importlib.import_module("torch")
    package = importlib.import_module("torchsparsegradutils")
    utils = importlib.import_module("torchsparsegradutils.utils.linear_cg")
    settings = utils.LinearCGSettings(max_cg_iterations=10**5, cg_tolerance=RTOL)
    arrays = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
    sparse = torch.sparse_csr_tensor(*arrays, size=matrix.shape).requires_grad_()
    right, weights = torch.from_numpy(vector), torch.from_numpy(weights)

    def solve():
        return package.sparse_generic_solve(
            sparse, right, solve=utils.linear_cg, settings=settings
        )

    def both():
        sparse.grad = None
        solution = solve()
        (weights @ solution).backward()
        return solution.detach().numpy(), sparse.grad.values().numpy()

    return lambda: solve().detach().numpy(), both


_cg, _bicgstab = pj.CG(rtol=RTOL), pj.BiCGStab(rtol=RTOL)
_gmres = pj.GMRES(rtol=RTOL)
TRACED: dict[str, Callable] = {
    "pseudojvp CG": lambda matrix: _ours(matrix, _cg),
    "pseudojvp CG, amg": lambda matrix: _ours(matrix, _cg, pj.amg),
    "pseudojvp CG, chebyshev": lambda matrix: _ours(
        matrix, _cg, lambda operator: pj.chebyshev(operator, 4)
    ),
    "pseudojvp SparseLU": lambda matrix: _ours(matrix, pj.SparseLU()),
    "jax.scipy cg": _jax_krylov("cg", maxiter=10**5),
    "jax.scipy bicgstab": _jax_krylov("bicgstab", maxiter=10**5),
    "jax.scipy gmres": _jax_krylov("gmres", maxiter=10**4),
    "jax.experimental spsolve": _jax_spsolve,
    "klujax": _klujax,
}
CALLED: dict[str, Callable] = {
    "SciPy splu": _scipy_splu,
    "SciPy cg": _scipy_cg,
    "torchsparsegradutils linear_cg": _torch,
}
NEEDS = {
    "pseudojvp CG, amg": "pyamg",
    "klujax": "klujax",
    "torchsparsegradutils linear_cg": "torchsparsegradutils",
}


def _general(solver, preconditioner):
    return lambda matrix: _ours(matrix, solver, preconditioner, ())


def _minres(matrix):
    return _ours(matrix, pj.MINRES(rtol=RTOL), None, lx.symmetric_tag)


def _bounded_cg(preconditioner):
    solver = pj.CG(rtol=RTOL, max_steps=2000)
    return lambda matrix: _ours(matrix, solver, preconditioner)


_cholesky = ft.partial(pj.incomplete_cholesky, sweeps=3)
_lu = ft.partial(pj.incomplete_lu, sweeps=3)
_ruge_stuben = ft.partial(pj.amg, method="ruge_stuben")


_convection = ft.partial(problems.convection_diffusion, MODEL_SIDE, 100.0)
_materials = ft.partial(problems.two_materials, MODEL_SIDE, 1e6)
_poissons = {
    "Poisson, square": lambda: problems.poisson(MODEL_SIDE, 2),
    "Poisson, cube": lambda: problems.poisson(47, 3),
}
_DIRECT = {"SparseLU": lambda matrix: _ours(matrix, pj.SparseLU(), None, ())}
MODELS: dict[str, tuple[Callable, dict[str, Callable]]] = {
    **{
        name: (
            matrix,
            {
                "CG": _bounded_cg(None),
                "CG, incomplete_cholesky(sweeps=3)": _bounded_cg(_cholesky),
                "CG, amg": _bounded_cg(pj.amg),
                **_DIRECT,
            },
        )
        for name, matrix in _poissons.items()
    },
    "convection-diffusion": (
        _convection,
        {
            "BiCGStab": _general(_bicgstab, None),
            "BiCGStab, incomplete_lu(sweeps=3)": _general(_bicgstab, _lu),
            "BiCGStab, amg(method='ruge_stuben')": _general(_bicgstab, _ruge_stuben),
            "GMRES, amg(method='ruge_stuben')": _general(_gmres, _ruge_stuben),
            **_DIRECT,
        },
    ),
    "graph Laplacian, singular": (
        lambda: problems.graph_laplacian(MODEL_SIZE),
        {"MINRES": _minres},
    ),
    "two materials, 1 : 10⁶": (
        _materials,
        {
            "CG, 2000 steps at most": _bounded_cg(None),
            "CG, incomplete_cholesky(sweeps=3)": _bounded_cg(_cholesky),
            "CG, amg": _bounded_cg(pj.amg),
            "CG, amg(method='ruge_stuben')": _bounded_cg(_ruge_stuben),
            **_DIRECT,
        },
    ),
}
DIRECT = "SciPy splu"
