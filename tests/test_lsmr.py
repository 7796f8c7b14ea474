"""What `LSMR` promises for each shape and rank, against dense NumPy."""

import jax
import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SHAPES = {"tall": (8, 5), "wide": (5, 8), "square": (6, 6)}
FULL_RANK = pj.LSMR(1e-12, well_posed=True)

shapes = pytest.mark.parametrize("shape", SHAPES)
fields = pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])


def _values(shape, deficient):
    values = np.linspace(1, 3, min(SHAPES[shape]))
    return np.where(np.arange(len(values)) < 2, 0, values) if deficient else values


def _matrix(shape, is_complex, deficient=False, seed=0):
    values = _values(shape, deficient)
    return krylov.with_values(seed, is_complex, *SHAPES[shape], values)


@pytest.mark.ci("*")
@shapes
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
def test_pseudoinverse_solution_of_any_rank(shape, dtype):
    is_complex = dtype == "complex128"
    matrices, vectors = [], []
    for seed in range(12):
        matrix = _matrix(shape, is_complex, seed % 2 == 0, seed).astype(dtype)
        vector = krylov.random(100 + seed, is_complex, len(matrix)).astype(dtype)
        inner = krylov.random(200 + seed, is_complex, matrix.shape[1]).astype(dtype)
        matrices.append(matrix)
        vectors.append(vector if seed % 4 < 2 else matrix @ inner)
    value, successful, _ = krylov.solve_all(matrices, vectors, pj.LSMR())
    truth = [krylov.pinv(a) @ b for a, b in zip(matrices, vectors, strict=True)]
    assert successful.all()
    # 100 times rtol: the condition is 3, and counts twice for least squares.
    tolerance = 1e-3 if dtype == "float32" else 1e-8
    assert krylov.relative_error(value, np.stack(truth)) < tolerance


def test_vector_orthogonal_to_the_range_has_the_solution_zero():
    matrix = _matrix("tall", False)
    vector = krylov.random(1, False, len(matrix))
    vector = vector - matrix @ krylov.pinv(matrix) @ vector
    value, successful, *_ = krylov.solve(matrix, vector, pj.LSMR())
    assert successful
    assert np.abs(value).max() < 1e-9


def test_zero_matrix_has_the_solution_zero():
    value, successful, *_ = krylov.solve(np.zeros((8, 5)), np.ones(8), pj.LSMR())
    assert successful
    np.testing.assert_array_equal(value, 0)


@pytest.mark.default("complex-wide")
@pytest.mark.ci("*")
@shapes
@fields
def test_preconditioner_of_the_shorter_side_leaves_the_solution(shape, is_complex):
    matrix = _matrix(shape, is_complex)
    vector = krylov.random(1, is_complex, len(matrix))
    size = min(matrix.shape)
    preconditioner = krylov.operator(krylov.general(2, is_complex, size))
    value, successful, *_ = krylov.solve(
        matrix, vector, FULL_RANK, options={"preconditioner": preconditioner}
    )
    assert successful
    assert krylov.relative_error(value, krylov.pinv(matrix) @ vector) < 1e-9


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_preconditioner_near_the_root_of_the_gram_inverse_saves_steps(shape):
    left, right = (krylov.orthonormal(seed, False, n, 5) for seed, n in ((0, 8), (1, 5)))
    values = np.geomspace(1, 1e4, 5)
    matrix = left * values @ right.T
    root = right / values @ right.T  # (A^T A)^-1/2
    matrix = matrix if shape == "tall" else matrix.T
    vector = krylov.random(2, False, len(matrix))
    value, successful, _, stats = krylov.solve(
        matrix, vector, FULL_RANK, options={"preconditioner": krylov.operator(root)}
    )
    assert successful
    assert krylov.relative_error(value, np.linalg.pinv(matrix) @ vector) < 1e-9
    assert stats["num_steps"] <= 2


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_first_guess_of_a_tall_operator_saves_steps():
    matrix = _matrix("tall", False)
    exact = np.ones(matrix.shape[1])
    *_, stats = krylov.solve(matrix, matrix @ exact, FULL_RANK, options={"y0": exact})
    assert stats["num_steps"] == 0


@pytest.mark.default("wide")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", ["wide", "square"])
def test_deficient_rank_declared_full_is_not_successful(shape):
    matrix = _matrix(shape, False, deficient=True)
    vector = krylov.random(1, False, len(matrix))
    _, successful, *_ = krylov.solve(matrix, vector, FULL_RANK)
    assert not successful


def test_residual_near_rounding_still_counts_as_least_squares():
    # |r| = 1e-7 |b|: neither |r| nor |A^H r| / |r| can be made as small as 1e-10.
    matrix = _matrix("tall", False)
    inner, outer = krylov.random(1, False, 5), krylov.random(2, False, 8)
    vector = matrix @ inner + 1e-7 * outer
    value, successful, *_ = krylov.solve(matrix, vector, pj.LSMR())
    assert successful
    assert krylov.relative_error(value, krylov.pinv(matrix) @ vector) < 1e-12


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_too_few_steps_report_max_steps_reached():
    matrix = _matrix("tall", False)
    vector = krylov.random(1, False, len(matrix))
    _, _, result, stats = krylov.solve(matrix, vector, pj.LSMR(max_steps=2))
    assert result == lx.RESULTS.max_steps_reached
    assert stats["num_steps"] == 2


@pytest.mark.parametrize("option", ["preconditioner", "y0"])
def test_any_rank_refuses_what_would_leave_a_null_part(option):
    value = {"y0": np.ones(5), "preconditioner": krylov.operator(np.eye(5))}[option]
    operator = krylov.operator(_matrix("tall", False))
    with pytest.raises(ValueError, match="takes neither a preconditioner nor"):
        pj.linear_solve(operator, np.ones(8), pj.LSMR(), options={option: value})


def test_first_guess_of_a_wide_operator_is_refused():
    operator = krylov.operator(_matrix("wide", False))
    with pytest.raises(ValueError, match="takes no `y0` for a wide operator"):
        pj.linear_solve(operator, np.ones(5), FULL_RANK, options={"y0": np.ones(8)})


def test_preconditioner_of_the_longer_side_is_refused():
    operator = krylov.operator(_matrix("tall", False))
    options = {"preconditioner": krylov.operator(np.eye(8))}
    with pytest.raises(ValueError, match="got a preconditioner that maps"):
        pj.linear_solve(operator, np.ones(8), FULL_RANK, options=options)


@pytest.mark.slow  # a second
def test_damped_solution_is_that_of_the_regularised_normal_equations():
    matrix = _matrix("tall", True, deficient=True)
    vector = krylov.random(1, True, 8)
    solution = jax.jit(_damped)(matrix, vector, 0.7)
    assert krylov.relative_error(solution, _dense_damped(matrix, vector, 0.7)) < 1e-9


def _damped(matrix, vector, damp, solver=FULL_RANK):
    operator = pj.damped(matrix, damp)
    zeros = 0 * operator.mv(matrix[0] * 0)[1]
    return pj.linear_solve(operator, (vector, zeros), solver).value


def _dense_damped(matrix, vector, damp):
    gram = matrix.conj().T @ matrix + damp**2 * np.eye(matrix.shape[1])
    return jax.numpy.linalg.solve(gram, matrix.conj().T @ vector)


@pytest.mark.slow  # of second order, through two loops
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_damped_derivatives_of_first_and_second_order(shape):
    matrix, t_matrix = _matrix(shape, False, True), _matrix(shape, False, True, 5)
    vector, t_vector = krylov.random(1, False, 2, len(matrix))
    primals, tangents = (matrix, vector, 0.7), (t_matrix, t_vector, 1.0)

    def derivatives(solve):
        loss = lambda *args: (solve(*args) ** 3).sum()
        gradient = jax.grad(loss, argnums=(0, 1, 2))
        return jax.jvp(gradient, primals, tangents)

    options = {"xla_backend_optimization_level": 0}
    ours = jax.jit(lambda: derivatives(_damped), compiler_options=options)()
    dense = derivatives(_dense_damped)
    for got, want in zip(ours[0], dense[0], strict=True):
        assert krylov.relative_error(got, want) < 1e-8
    for got, want in zip(ours[1], dense[1], strict=True):
        assert krylov.relative_error(got, want) < 1e-6


def test_damping_by_a_vector_is_refused():
    with pytest.raises(ValueError, match="Pass a scalar"):
        pj.damped(np.eye(3), np.ones(3))


def test_complex_damping_is_refused():
    with pytest.raises(TypeError, match="Pass a real one"):
        pj.damped(np.eye(3), 1j)


@pytest.mark.slow  # two seconds
def test_condition_above_its_limit_is_told():
    values = np.geomspace(1, 1e6, 12)
    matrix, vector = krylov.with_values(0, False, 14, 12, values), np.ones(14)
    _, _, result, stats = krylov.solve(matrix, vector, pj.LSMR(conlim=1e3))
    assert result == lx.RESULTS.conlim
    assert stats["num_steps"] <= 12
    assert krylov.solve(matrix, vector, pj.LSMR())[1]


def test_condition_below_its_limit_changes_nothing():
    matrix = _matrix("tall", False)
    vector = krylov.random(1, False, len(matrix))
    value, successful, *_ = krylov.solve(matrix, vector, pj.LSMR(conlim=10.0))
    assert successful
    assert krylov.relative_error(value, krylov.pinv(matrix) @ vector) < 1e-9
