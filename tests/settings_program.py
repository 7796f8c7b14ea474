"""Run by `test_settings.py` under a setting of JAX: `settings_program.py DTYPE NAME...`.

Solves one system with each of the named solvers, with first and second derivatives, and
prints the names of those that are right.
"""

import sys
import traceback

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from claims import CLAIMS
from strategies import direction, numbers, system_of, t_solution

import pseudojvp as pj


ROWS, COLS = 4, 3


def system_for(claim, dtype):
    rng = np.random.default_rng(0)
    rows = ROWS if claim.kind == "general" and not claim.square else COLS
    if claim.kind == "general":
        matrix = numbers(rng, (rows, COLS), dtype, False) + 3 * np.eye(rows, COLS)
    elif claim.kind == "near_identity":
        matrix = np.eye(COLS) + 0.1 * numbers(rng, (COLS, COLS), dtype, False)
    elif claim.kind in ("positive", "negative"):
        factor = numbers(rng, (COLS, COLS), dtype, False)
        sign = 1 if claim.kind == "positive" else -1
        matrix = sign * (factor @ factor.conj().T + np.eye(COLS))
    else:
        matrix = 3 * np.eye(COLS)
    system = system_of(matrix, numbers(rng, (rows,), dtype, False), (0, 0), dtype, 1e-3)
    t_matrix = direction(rng, claim, system, dtype).astype(dtype)
    t_vector = numbers(rng, (rows,), dtype, False).astype(dtype)
    return system, t_matrix, t_vector


def close(got, want, dtype):
    # Iterations stop at 1e-5 in single and 1e-11 in double precision.
    rtol = 1e-3 if np.finfo(dtype).eps > 1e-10 else 1e-8
    assert got.dtype == dtype, f"dtype {got.dtype}, not {dtype}"
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


def check(claim, dtype):
    """That x, its tangent and the cotangents are right, and the second order finite.

    The tangent is taken under `throw=False`, the cotangents under `throw=True`.
    """
    solver = claim.solver(dtype)
    system, t_matrix, t_vector = system_for(claim, dtype)
    primals = jnp.asarray(system.matrix), jnp.asarray(system.vector)
    tangents = jnp.asarray(t_matrix), jnp.asarray(t_vector)

    def solve(matrix, vector, throw=False):
        operator = claim.operator(matrix)
        solution = pj.linear_solve(operator, vector, solver, throw=throw)
        return solution.value, solution.result

    def loss(matrix, vector):
        return jnp.sum(jnp.abs(solve(matrix, vector, throw=True)[0]) ** 2)

    @jax.jit
    def everything(primals, tangents):
        (value, result), (t_value, _) = jax.jvp(solve, primals, tangents)
        gradient = jax.grad(loss, argnums=(0, 1))
        cotangents, second = jax.jvp(gradient, primals, tangents)
        return value, result == lx.RESULTS.successful, t_value, cotangents, second

    value, successful, t_value, cotangents, second = everything(primals, tangents)
    assert successful
    close(value, system.solution, dtype)
    want = t_solution(system, t_matrix, t_vector)
    close(t_value, want, dtype)
    t_loss = 2 * np.sum(np.conj(system.solution) * want).real
    paired = sum(
        np.sum(np.asarray(c) * np.asarray(t)).real
        for c, t in zip(cotangents, tangents, strict=True)
    )
    scale = np.abs(system.solution).max() * np.abs(want).max()
    tolerance = 1e-2 if np.finfo(dtype).eps > 1e-10 else 1e-8
    assert abs(paired - t_loss) <= tolerance * scale
    for leaf in jax.tree.leaves(second):
        assert leaf.dtype == dtype
        assert np.isfinite(leaf).all()


def main(dtype, names):
    """Goes on after a failure, so that one run tells of all of them."""
    failed = False
    for name in names:
        try:
            check(CLAIMS[name], np.dtype(dtype))
            print(name, flush=True)
        except Exception:
            failed = True
            print(f"{name} failed:", file=sys.stderr)
            traceback.print_exc()
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
