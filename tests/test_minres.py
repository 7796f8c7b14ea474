"""What `MINRES` promises, against dense NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


INDEFINITE = [3.0, -2.0, 1.5, -1.0, 0.7, -0.5]
SINGULAR = [3.0, -2.0, 1.0, 0.0, 0.0, -0.5]
SIZE = len(INDEFINITE)
NONSINGULAR = pj.MINRES(1e-12, well_posed=True)

dtypes = pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])


def _rtol(dtype):
    return 1e-4 if dtype == "float32" else 1e-10


def _bound(dtype):
    return 10 * 36 * _rtol(dtype)  # the condition is 6, and counts twice


def _solve_hermitian(eigenvalues, dtype, in_range, solver=None):
    """Twenty systems: values, successes and the pseudoinverse solutions."""
    is_complex = dtype == "complex128"
    matrices, vectors = [], []
    for seed in range(20):
        matrix = krylov.hermitian(seed, is_complex, eigenvalues).astype(dtype)
        vector = krylov.random(100 + seed, is_complex, SIZE).astype(dtype)
        matrices.append(matrix)
        vectors.append(matrix @ vector if in_range else vector)
    solver = pj.MINRES(_rtol(dtype)) if solver is None else solver
    value, successful, _ = krylov.solve_all(matrices, vectors, solver, pj.hermitian_tag)
    truth = [krylov.pinv(a) @ b for a, b in zip(matrices, vectors, strict=True)]
    return value, successful, np.stack(truth)


@pytest.mark.ci("*")
@dtypes
def test_indefinite_systems_are_solved(dtype):
    value, successful, truth = _solve_hermitian(INDEFINITE, dtype, in_range=False)
    assert successful.all()
    assert krylov.relative_error(value, truth) < _bound(dtype)


@pytest.mark.default("complex128")
@pytest.mark.ci("*")
@dtypes
def test_consistent_singular_systems_get_the_minimum_norm_solution(dtype):
    value, successful, truth = _solve_hermitian(SINGULAR, dtype, in_range=True)
    assert successful.all()
    assert krylov.relative_error(value, truth) < _bound(dtype)


@pytest.mark.default("complex128")
@pytest.mark.ci("*")
@dtypes
def test_inconsistent_singular_systems_get_the_pseudoinverse_solution(dtype):
    value, successful, truth = _solve_hermitian(SINGULAR, dtype, in_range=False)
    assert successful.all()
    assert krylov.relative_error(value, truth) < _bound(dtype)


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_inconsistent_systems_taken_for_nonsingular_are_never_successful():
    _, successful, _ = _solve_hermitian(SINGULAR, "float64", False, NONSINGULAR)
    assert not successful.any()


@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_no_successful_least_squares_solution_has_a_large_error(dtype):
    # In single precision the default tolerance is near rounding.
    is_complex = dtype == "complex64"
    matrices, vectors = [], []
    for seed in range(200):
        matrices.append(krylov.hermitian(seed, is_complex, SINGULAR).astype(dtype))
        vectors.append(krylov.random(1000 + seed, is_complex, SIZE).astype(dtype))
    value, successful, _ = krylov.solve_all(
        matrices, vectors, pj.MINRES(), pj.hermitian_tag
    )
    truth = [krylov.pinv(a) @ b for a, b in zip(matrices, vectors, strict=True)]
    error = np.linalg.norm(value - truth, axis=1) / np.linalg.norm(truth, axis=1)
    assert successful.mean() > 0.9
    assert error[successful].max() < 10 * 36 * 1e-5


def test_inconsistency_too_small_to_tell_is_not_called_solved():
    # |(I − A A†) b| = 1e-7: above the tolerance, while A r is no more than rounding.
    matrix = krylov.hermitian(0, False, SINGULAR)
    inner, outer = krylov.random(1, False, 2, SIZE)
    null_part = outer - matrix @ krylov.pinv(matrix) @ outer
    vector = matrix @ inner + 1e-7 * null_part
    value, successful, *_ = krylov.solve(matrix, vector, pj.MINRES(), lx.symmetric_tag)
    error = krylov.relative_error(value, krylov.pinv(matrix) @ vector)
    assert not successful or error < 1e-8


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_preconditioner_near_the_inverse_of_the_modulus_saves_steps(is_complex):
    eigenvalues = np.array([300.0, -200.0, 1.5, -10.0, 70.0, -0.5])
    matrix = krylov.hermitian(0, is_complex, eigenvalues)
    inverse = krylov.hermitian(0, is_complex, 1 / np.abs(eigenvalues))
    vector = krylov.random(1, is_complex, SIZE)
    options = {"preconditioner": krylov.operator(inverse, krylov.PSD)}
    value, successful, _, stats = krylov.solve(
        matrix, vector, NONSINGULAR, pj.hermitian_tag, options
    )
    assert successful
    assert krylov.relative_error(value, np.linalg.solve(matrix, vector)) < 1e-9
    assert stats["num_steps"] <= 3  # P A has the eigenvalues 1 and −1


def test_indefinite_preconditioner_in_disguise_is_never_successful():
    matrix = krylov.hermitian(0, False, INDEFINITE)
    disguised = krylov.operator(np.linalg.inv(matrix), krylov.PSD)
    options, vector = {"preconditioner": disguised}, krylov.random(1, False, SIZE)
    value, successful, *_ = krylov.solve(
        matrix, vector, NONSINGULAR, lx.symmetric_tag, options
    )
    residual = np.linalg.norm(vector - matrix @ value)
    assert not successful or residual <= 1e-11 * np.linalg.norm(vector)


def test_first_guess_saves_steps():
    matrix = krylov.hermitian(0, False, INDEFINITE)
    vector = krylov.random(1, False, SIZE)
    exact = np.linalg.solve(matrix, vector)
    value, successful, _, stats = krylov.solve(
        matrix, vector, NONSINGULAR, lx.symmetric_tag, {"y0": exact}
    )
    assert successful
    assert stats["num_steps"] == 0
    np.testing.assert_array_equal(value, exact)


def test_shifted_operator_and_the_derivative_in_the_shift():
    matrix, vector = krylov.hermitian(0, False, INDEFINITE), krylov.random(1, False, SIZE)
    identity = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((SIZE,), jnp.float64))

    @eqx.filter_jit
    def solve(shift):
        operator = krylov.operator(matrix, lx.symmetric_tag) - shift * identity
        return pj.linear_solve(operator, vector, NONSINGULAR).value

    value, tangent = jax.jvp(solve, (0.3,), (1.0,))
    shifted = matrix - 0.3 * np.eye(SIZE)
    truth = np.linalg.solve(shifted, vector)
    assert krylov.relative_error(value, truth) < 1e-9
    assert krylov.relative_error(tangent, np.linalg.solve(shifted, truth)) < 1e-8


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_too_few_steps_report_max_steps_reached():
    matrix, vector = krylov.hermitian(0, False, INDEFINITE), krylov.random(1, False, SIZE)
    solver = pj.MINRES(max_steps=2)
    _, _, result, stats = krylov.solve(matrix, vector, solver, lx.symmetric_tag)
    assert result == lx.RESULTS.max_steps_reached
    assert stats["num_steps"] == 2


@pytest.mark.parametrize("options", ["preconditioner", "y0"])
def test_singular_mode_refuses_what_would_leave_a_null_part(options):
    matrix = krylov.hermitian(0, False, SINGULAR)
    options = {
        options: {"y0": np.ones(SIZE)}.get(
            options, krylov.operator(np.eye(6), krylov.PSD)
        )
    }
    operator = krylov.operator(matrix, lx.symmetric_tag)
    with pytest.raises(ValueError, match="takes neither a preconditioner nor"):
        pj.linear_solve(operator, np.ones(SIZE), pj.MINRES(), options=options)


def test_preconditioner_field_needs_well_posed():
    preconditioner = krylov.operator(np.eye(SIZE), krylov.PSD)
    with pytest.raises(ValueError, match="takes neither a preconditioner nor"):
        pj.MINRES(preconditioner=preconditioner)


def test_preconditioner_without_a_tag_is_refused():
    operator = krylov.operator(krylov.hermitian(0, False, INDEFINITE), lx.symmetric_tag)
    options = {"preconditioner": krylov.operator(np.eye(SIZE))}
    with pytest.raises(ValueError, match="must be positive definite"):
        pj.linear_solve(operator, np.ones(SIZE), NONSINGULAR, options=options)


@pytest.mark.parametrize(
    ("dtype", "tags"), [(float, ()), (complex, lx.symmetric_tag)], ids=["real", "complex"]
)
def test_operator_not_known_as_hermitian_is_refused(dtype, tags):
    operator = krylov.operator(np.eye(SIZE, dtype=dtype), tags)
    with pytest.raises(ValueError, match=r"tagged as neither.*hermitian_tag"):
        pj.linear_solve(operator, np.ones(SIZE, dtype), pj.MINRES())


@pytest.mark.default("negative")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "tag",
    [krylov.PSD, lx.negative_semidefinite_tag],
    ids=["positive", "negative"],
)
def test_tag_of_definiteness_is_enough(tag):
    matrix = np.diag([1.0, 2.0, 3.0]) * (1 if tag is krylov.PSD else -1) + 0j
    value, successful, *_ = krylov.solve(matrix, np.ones(3) + 0j, pj.MINRES(), tag)
    assert successful
    np.testing.assert_allclose(value, 1 / np.diag(matrix), rtol=1e-9)


@pytest.mark.slow  # a second
def test_vector_of_which_little_is_out_of_the_range_is_no_stagnation():
    # A ten-thousandth, more than the tolerance: r is near the rounding of b.
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((100, 3))
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    matrices = (unit[:, :, None] * unit[:, None, :]).astype(np.float32)
    vectors = (unit + 1e-4 * rng.standard_normal((100, 3))).astype(np.float32)
    value, successful, _ = krylov.solve_all(
        matrices, vectors, pj.MINRES(1e-5), krylov.PSD
    )
    truth = [krylov.pinv(a) @ b for a, b in zip(matrices, vectors, strict=True)]
    assert successful.all()
    assert np.abs(value - np.stack(truth)).max() < 1e-5
