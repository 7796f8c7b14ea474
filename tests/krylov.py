"""What the tests of the Krylov solvers share: systems, truths, one compiled solve."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp as pj


SUCCESSFUL = lx.RESULTS.successful
PSD = lx.positive_semidefinite_tag
_OPTIONS = {"xla_backend_optimization_level": 0}  # compiling is most of a test's time


def random(seed, is_complex, *shape):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if is_complex else values


def orthonormal(seed, is_complex, rows, cols):
    return np.linalg.qr(random(seed, is_complex, rows, cols))[0]


def hermitian(seed, is_complex, eigenvalues):
    basis = orthonormal(seed, is_complex, len(eigenvalues), len(eigenvalues))
    matrix = basis * np.asarray(eigenvalues) @ basis.conj().T
    return (matrix + matrix.conj().T) / 2


def with_values(seed, is_complex, rows, cols, values):
    left = orthonormal(seed, is_complex, rows, len(values))
    right = orthonormal(seed + 1, is_complex, cols, len(values))
    return left * np.asarray(values) @ right.conj().T


def general(seed, is_complex, size, shift=4.0):
    """Well conditioned, not symmetric, its eigenvalues on one side."""
    return random(seed, is_complex, size, size) / 2 + shift * np.eye(size)


def pinv(matrix):
    return np.linalg.pinv(matrix, rcond=1e-5)


def pinv_tangent(matrix, t_matrix, vector, t_vector):
    """The derivative of A†b along constant rank (Golub & Pereyra, theorem 4.3)."""
    p, t_adjoint = pinv(matrix), t_matrix.conj().T
    rows, cols = (np.eye(n) for n in matrix.shape)
    t_p = -p @ t_matrix @ p + p @ p.conj().T @ t_adjoint @ (rows - matrix @ p)
    t_p = t_p + (cols - p @ matrix) @ t_adjoint @ p.conj().T @ p
    return t_p @ vector + p @ t_vector


def operator(matrix, tags=()):
    return lx.MatrixLinearOperator(matrix, tags)


def compiled(function):
    """`function` of arguments that need not be arrays, compiled in little time."""
    return eqx.filter_jit(function, compiler_options=_OPTIONS)


@eqx.filter_jit(compiler_options=_OPTIONS)
def _solve(matrix, vector, solver, tags, options):
    return pj.linear_solve(
        operator(matrix, tags), vector, solver, options=options, throw=False
    )


def solve(matrix, vector, solver, tags=(), options=None):
    """Value, whether `successful`, the result and the stats."""
    solution = _solve(jnp.asarray(matrix), jnp.asarray(vector), solver, tags, options)
    stats = jax.tree.map(np.asarray, solution.stats)
    successful = bool(solution.result == SUCCESSFUL)
    return np.asarray(solution.value), successful, solution.result, stats


@eqx.filter_jit(compiler_options=_OPTIONS)
def _solve_all(matrices, vectors, solver, tags):
    def one(matrix, vector):
        solution = pj.linear_solve(operator(matrix, tags), vector, solver, throw=False)
        successful = solution.result == SUCCESSFUL
        return solution.value, successful, solution.stats["num_steps"]

    return jax.vmap(one)(matrices, vectors)


def solve_all(matrices, vectors, solver, tags=()):
    """As `solve` for a batch: values, which are `successful`, numbers of steps."""
    arrays = jnp.stack(matrices), jnp.stack(vectors)
    return jax.tree.map(np.asarray, _solve_all(*arrays, solver, tags))


def relative_error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)
