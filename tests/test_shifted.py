"""`shifted_solve`: many shifts from one Krylov space, against dense NumPy."""

import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest
from shift_cases import (
    definite,
    each,
    SHIFTS,
    SIZE,
    solutions,
    solved,
    SOLVERS,
    successful,
)

import pseudojvp as pj


@pytest.mark.default("CG-complex128")
@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
@each
def test_each_shift_is_solved(name, dtype):
    is_complex = dtype == "complex128"
    matrix, vector = definite(is_complex), krylov.random(1, is_complex, SIZE)
    single = dtype == "float32"
    shifts = SHIFTS.astype("float32" if single else "float64")
    arrays = jnp.asarray(matrix, dtype), jnp.asarray(vector, dtype), shifts
    solver = type(SOLVERS[name])(1e-5) if single else SOLVERS[name]
    solution = solved(*arrays, solver)
    assert successful(solution.result).all()
    assert solution.value.shape == (len(SHIFTS), SIZE)
    assert solution.value.dtype == dtype
    assert solution.stats["num_steps"].shape == SHIFTS.shape
    truth = solutions(matrix, vector, SHIFTS)
    error = krylov.relative_error(np.asarray(solution.value), truth)
    assert error < (1e-3 if single else 1e-10)


def _counting(matrix):
    """A product on the host that counts the columns."""
    columns = []

    def multiply(vector):
        vector = np.asarray(vector)
        columns.append(vector.size // len(matrix))
        return vector @ matrix

    def product(vector):
        out = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
        return jax.pure_callback(multiply, out, vector, vmap_method="broadcast_all")

    return product, columns


@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [pj.CG(), pj.MINRES()], ids=["CG", "MINRES"])
def test_sixteen_shifts_take_at_most_1_3_times_the_products_of_one(solver):
    # Of a condition number of 1e3 for the smallest shift: about a hundred steps.
    size = 100
    matrix = krylov.hermitian(0, False, np.linspace(0, 100, size))
    vector, shifts = krylov.random(1, False, size), np.geomspace(0.1, 100, 16)
    product, columns = _counting(matrix)
    structure = jax.ShapeDtypeStruct((size,), float)
    operator = lx.FunctionLinearOperator(product, structure, krylov.PSD)
    solution = pj.shifted_solve(operator, vector, shifts, solver)
    of_all, steps = sum(columns), solution.stats["num_steps"]
    columns.clear()
    shifted = operator + shifts[0] * lx.IdentityLinearOperator(structure)
    pj.linear_solve(lx.TaggedLinearOperator(shifted, krylov.PSD), vector, solver)
    error = krylov.relative_error(solution.value, solutions(matrix, vector, shifts))
    assert error < 1e-8
    assert of_all <= 1.3 * sum(columns)
    assert int(solution.stats["num_products"]) == of_all == 1 + int(steps.max()) + 16


def _dense(matrix, vector, shifts):
    eye = jnp.eye(len(vector), dtype=matrix.dtype)
    inverse = lambda s: jnp.linalg.inv(matrix + s.astype(matrix.dtype) * eye)
    return jax.vmap(lambda s: inverse(s) @ vector)(shifts)


@pytest.mark.ci("CG*", "MINRES(*")  # of three applications half a minute to compile
@pytest.mark.parametrize("is_complex", [False, True])
@each
def test_derivatives_in_operator_vector_and_shifts_are_exact(name, is_complex):
    primals = definite(is_complex), krylov.random(1, is_complex, SIZE), SHIFTS + 0.5
    primals = tuple(map(jnp.asarray, primals))
    tangents = (
        jnp.asarray(krylov.hermitian(2, is_complex, np.linspace(-1, 1, SIZE))),
        jnp.asarray(krylov.random(3, is_complex, SIZE)),
        jnp.asarray(krylov.random(4, False, len(SHIFTS))),
    )
    weights = jnp.asarray(krylov.random(5, is_complex, len(SHIFTS), SIZE))

    def solve(matrix, vector, shifts):
        operator = krylov.operator(matrix, krylov.PSD)
        return pj.shifted_solve(operator, vector, shifts, SOLVERS[name]).value

    @krylov.compiled
    def derivatives(function):
        def tangent(*primals):
            return jax.jvp(function, primals, tangents)[1]

        second = jax.jvp(tangent, primals, tangents)
        return second, jax.vjp(function, *primals)[1](weights)

    got, want = derivatives(solve), derivatives(_dense)
    for leaf, truth in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert krylov.relative_error(leaf, truth) < 1e-8


@pytest.mark.slow  # beside the main ones
def test_negative_definite_operator_is_solved():
    matrix, vector = -definite(True), krylov.random(1, True, SIZE)
    tags = lx.negative_semidefinite_tag
    solution = solved(matrix, vector, -SHIFTS, pj.CG(1e-12), tags)
    assert successful(solution.result).all()
    truth = solutions(matrix, vector, -SHIFTS)
    assert krylov.relative_error(solution.value, truth) < 1e-10


@pytest.mark.slow  # beside the main ones
@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_scales_do_not_matter(scale):
    matrix, vector = definite(False), krylov.random(1, False, SIZE)
    got = solved(scale * matrix, vector, scale * SHIFTS, pj.CG(1e-12))
    assert successful(got.result).all()
    truth = solutions(matrix, vector, SHIFTS)
    assert krylov.relative_error(scale * got.value, truth) < 1e-10


@pytest.mark.ci("*")
@each
def test_lanczos_and_history_are_those_of_the_shared_run(name):
    kind, settings = type(SOLVERS[name]), {"max_steps": 30, "history": True}
    solver = kind(1e-12, lanczos=True, **settings)
    matrix, vector = definite(True), krylov.random(1, True, SIZE)
    stats = solved(matrix, vector, SHIFTS, solver).stats
    alone = krylov.solve(matrix, vector, solver, krylov.PSD)[3]
    for key in ("alphas", "betas"):
        got, want = stats["lanczos"][key], alone["lanczos"][key]
        np.testing.assert_allclose(got[:6], want[:6], rtol=1e-8)
    norms = np.asarray(stats["residual_norms"])
    assert norms.shape == (len(SHIFTS), 30)
    np.testing.assert_allclose(norms[0, :6], alone["residual_norms"][:6], rtol=1e-6)
    np.testing.assert_array_equal(
        np.isfinite(norms).sum(1), np.asarray(stats["num_steps"])
    )


@pytest.mark.ci("*")
@each
def test_batches_of_vectors_matrices_and_shifts_share_a_run_each(name):
    matrices = np.stack([definite(False), 3 * definite(False)])
    vectors, shifts = krylov.random(1, False, 2, SIZE), np.stack([SHIFTS, SHIFTS + 1])

    def solve(matrix, vector, shifts):
        operator = krylov.operator(matrix, krylov.PSD)
        solution = pj.shifted_solve(operator, vector, shifts, SOLVERS[name])
        return solution.value, solution.stats

    value, stats = krylov.compiled(jax.vmap(solve))(matrices, vectors, shifts)
    for k in range(2):
        truth = solutions(matrices[k], vectors[k], shifts[k])
        assert krylov.relative_error(value[k], truth) < 1e-9
    most = np.asarray(stats["num_steps"]).max(1)
    assert (np.asarray(stats["num_products"]) <= 1 + most + 2 * len(SHIFTS)).all()


@pytest.mark.slow  # beside the main ones
def test_trees_with_real_and_complex_leaves():
    matrix = definite(False)
    vector = krylov.random(0, False, SIZE), krylov.random(1, True, SIZE)

    def product(pair):
        return 2 * pair[0], matrix.astype(complex) @ pair[1]

    structure = jax.eval_shape(lambda: vector)
    with jax.numpy_dtype_promotion("standard"):  # lineax looks at all leaves as one
        operator = lx.FunctionLinearOperator(product, structure, krylov.PSD)
    first, second = pj.shifted_solve(operator, vector, SHIFTS, pj.CG(1e-12)).value
    truth = vector[0] / (2 + SHIFTS[:, None])
    assert krylov.relative_error(first, truth) < 1e-10
    assert krylov.relative_error(second, solutions(matrix, vector[1], SHIFTS)) < 1e-10


@pytest.mark.default("1")
@pytest.mark.ci("*")
@pytest.mark.parametrize("count", [0, 1])
def test_one_shift_and_none(count):
    matrix, vector = definite(False), krylov.random(1, False, SIZE)
    solution = solved(matrix, vector, SHIFTS[:count], pj.CG(1e-12))
    assert solution.value.shape == (count, SIZE)
    truth = np.reshape(
        [solutions(matrix, vector, [s]) for s in SHIFTS[:count]], (-1, SIZE)
    )
    np.testing.assert_allclose(solution.value, truth, rtol=1e-9)


@pytest.mark.slow  # beside the main ones
def test_vector_of_zeros_and_of_no_entries():
    solution = solved(definite(False), np.zeros(SIZE), SHIFTS, pj.CG())
    assert successful(solution.result).all()
    np.testing.assert_array_equal(solution.value, 0)
    nothing = solved(np.zeros((0, 0)), np.zeros(0), SHIFTS, pj.MINRES())
    assert nothing.value.shape == (len(SHIFTS), 0)
    assert successful(nothing.result).all()


@pytest.mark.slow  # beside the main ones
def test_solver_of_lineax_runs_as_ours():
    operator = krylov.operator(definite(False), krylov.PSD)
    vector = krylov.random(1, False, SIZE)
    value = pj.shifted_solve(operator, vector, SHIFTS, lx.CG(1e-12, 1e-12)).value
    truth = solutions(definite(False), vector, SHIFTS)
    assert krylov.relative_error(value, truth) < 1e-9


@pytest.mark.parametrize("well_posed", [True, False])
@pytest.mark.slow  # two seconds each
def test_a_shift_that_cancels_most_of_a_is_solved(well_posed):
    small = 1e-8 * definite(False)
    matrix, vector = np.eye(SIZE) + small, krylov.random(1, False, SIZE)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix), lx.symmetric_tag)
    solver = pj.MINRES(1e-6, well_posed=well_posed)
    many = jax.jit(lambda shifts: pj.shifted_solve(operator, vector, shifts, solver))(
        np.array([-1.0, 0.0])
    )
    one = pj.shifted_solve(operator, vector, np.array([-1.0]), solver)
    truth = np.linalg.solve(matrix - np.eye(SIZE), vector)
    for value in (many.value[0], one.value[0]):
        assert krylov.relative_error(np.asarray(value), truth) < 1e-4
