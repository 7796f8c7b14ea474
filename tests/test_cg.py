"""What `CG` promises, on batches of small systems against dense NumPy."""

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


PSD = lx.positive_semidefinite_tag
NSD = lx.negative_semidefinite_tag
SUCCESSFUL = lx.RESULTS.successful
TIGHT = pj.CG(1e-11, 1e-11, max_steps=200)
SINGULAR = pj.CG(1e-11, 1e-11, max_steps=200, well_posed=False)
COUNT, SIZE = 30, 5

dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])
signs = pytest.mark.parametrize(
    ("sign", "tag"), [(1, PSD), (-1, NSD)], ids=["positive", "negative"]
)


@eqx.filter_jit
def _solve(matrices, vectors, solver, tag=PSD, options=None):
    """One solve for each member of a batch: value, result and number of steps."""

    def solve(matrix, vector, options):
        operator = lx.MatrixLinearOperator(matrix, tag)
        solution = pj.linear_solve(operator, vector, solver, options=options, throw=False)
        return solution.value, solution.result, solution.stats["num_steps"]

    return eqx.filter_vmap(solve)(matrices, vectors, options)


def _normal_entries(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


def _with_eigenvalues(eigenvalues, dtype=float, seed=0):
    """Hermitian matrices with the given eigenvalues (count, size), and vectors."""
    rng = np.random.default_rng(seed)
    count, size = eigenvalues.shape
    q, _ = np.linalg.qr(_normal_entries(rng, (count, size, size), dtype))
    matrices = (q * eigenvalues[:, None]) @ q.conj().mT
    matrices = (matrices + matrices.conj().mT) / 2
    return matrices, _normal_entries(rng, (count, size), dtype)


def _definite(dtype=float, count=COUNT, size=SIZE):
    eigenvalues = np.random.default_rng(1).uniform(1, 10, (count, size))
    return _with_eigenvalues(eigenvalues, dtype)


def _deficient(dtype=float, nullity=2):
    eigenvalues = np.random.default_rng(1).uniform(1, 10, (COUNT, SIZE))
    eigenvalues[:, :nullity] = 0
    return _with_eigenvalues(eigenvalues, dtype)


def _apply(matrices, vectors):
    return (matrices @ vectors[..., None])[..., 0]


def _pinv(matrices, vectors):
    return _apply(np.linalg.pinv(matrices, rcond=1e-9, hermitian=True), vectors)


@pytest.mark.default("negative-complex")
@pytest.mark.ci("*")
@dtypes
@signs
def test_definite_systems_are_solved(dtype, sign, tag):
    a, b = _definite(dtype)
    x, result, _ = _solve(sign * a, b, TIGHT, tag)
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(_apply(sign * a, x), b, rtol=1e-9, atol=1e-9)


@pytest.mark.default("negative-complex")
@pytest.mark.ci("*")
@dtypes
@signs
def test_consistent_singular_systems_get_the_minimum_norm_solution(dtype, sign, tag):
    a, z = _deficient(dtype)
    b = _apply(a, z)
    x, result, _ = _solve(sign * a, b, TIGHT, tag)
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(x, sign * _pinv(a, b), rtol=1e-8, atol=1e-9)


@pytest.mark.default("negative-complex")
@pytest.mark.ci("*")
@dtypes
@signs
def test_not_well_posed_gives_the_pseudoinverse_of_any_vector(dtype, sign, tag):
    a, b = _deficient(dtype)
    x, result, _ = _solve(sign * a, b, SINGULAR, tag)
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(x, sign * _pinv(a, b), rtol=1e-8, atol=1e-9)


def test_not_well_posed_refuses_a_preconditioner():
    a, b = _deficient()
    options = {"preconditioner": lx.MatrixLinearOperator(np.eye(SIZE), PSD)}
    operator = lx.MatrixLinearOperator(a[0], PSD)
    with pytest.raises(ValueError, match="takes neither a preconditioner nor"):
        pj.linear_solve(operator, b[0], SINGULAR, options=options)


def test_not_well_posed_refuses_a_first_guess():
    a, b = _deficient()
    operator = lx.MatrixLinearOperator(a[0], PSD)
    with pytest.raises(ValueError, match="takes neither a preconditioner nor"):
        pj.linear_solve(operator, b[0], SINGULAR, options={"y0": b[0]})


@pytest.mark.default("real-well-posed")  # a program that others run
@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [TIGHT, SINGULAR], ids=["well-posed", "singular"])
@dtypes
def test_indefinite_systems_are_never_successful(dtype, solver):
    eigenvalues = np.random.default_rng(1).uniform(1, 10, (1000, SIZE))
    eigenvalues[:, 0] *= -1
    _, result, _ = _solve(*_with_eigenvalues(eigenvalues, dtype), solver)
    assert not jnp.any(result == SUCCESSFUL)


@pytest.mark.parametrize("nullity", [1, 2, 4])
def test_inconsistent_singular_systems_are_never_successful(nullity):
    eigenvalues = np.random.default_rng(1).uniform(1, 10, (1000, SIZE))
    eigenvalues[:, :nullity] = 0
    _, result, _ = _solve(*_with_eigenvalues(eigenvalues), TIGHT)
    assert not jnp.any(result == SUCCESSFUL)


@pytest.mark.default("False")
@pytest.mark.ci("*")
@pytest.mark.parametrize("well_posed", [True, False])
def test_solution_does_not_depend_on_the_scale_of_the_operator(well_posed):
    a, z = _deficient() if not well_posed else _definite()
    b = _apply(a, z)
    scale = 10.0 ** np.repeat([-150, 0, 150], COUNT)[:, None]
    solver = pj.CG(1e-11, 0.0, max_steps=200, well_posed=well_posed)
    a, b = np.concatenate([a] * 3), np.concatenate([b] * 3)
    x, result, _ = _solve(scale[..., None] * a, b, solver)
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(x * scale, _pinv(a, b), rtol=1e-7, atol=1e-8)


@pytest.mark.default("1")
@pytest.mark.ci("*")
@pytest.mark.parametrize("stabilise_every", [None, 1, 10])
def test_stabilising_does_not_change_the_solution(stabilise_every):
    a, b = _definite(size=8)
    solver = pj.CG(1e-11, 1e-11, stabilise_every=stabilise_every, max_steps=200)
    x, result, _ = _solve(a, b, solver)
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(x, np.linalg.solve(a, b[..., None])[..., 0], rtol=1e-8)


def test_too_few_steps_report_max_steps_reached():
    a, b = _definite()
    _, result, num_steps = _solve(a, b, pj.CG(1e-11, 1e-11, max_steps=2))
    assert jnp.all(result == lx.RESULTS.max_steps_reached)
    assert np.all(np.asarray(num_steps) == 2)


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_default_step_limit_is_ten_times_the_size_and_reported_as_singular():
    eigenvalues = np.geomspace(1, 1e14, SIZE)[None]
    solver = pj.CG(1e-30, 0.0)
    _, result, num_steps = _solve(*_with_eigenvalues(eigenvalues), solver)
    assert jnp.all(result == lx.RESULTS.singular)
    assert int(num_steps[0]) == 10 * SIZE


def test_no_tolerance_runs_max_steps_to_the_krylov_optimum():
    a, b = _definite()
    x, result, num_steps = _solve(a, b, pj.CG(0.0, 0.0, max_steps=3))
    assert jnp.all(result == SUCCESSFUL)
    assert np.all(np.asarray(num_steps) == 3)
    krylov = np.stack([b, _apply(a, b), _apply(a, _apply(a, b))], -1)
    basis, _ = np.linalg.qr(krylov)
    projected = np.linalg.solve(basis.mT @ a @ basis, basis.mT @ b[..., None])
    np.testing.assert_allclose(x, (basis @ projected)[..., 0], rtol=1e-8, atol=1e-10)


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
@signs
def test_first_guess_saves_steps_and_leaves_the_solution(sign, tag):
    a, b = _definite()
    exact = sign * np.linalg.solve(a, b[..., None])[..., 0]
    _, _, from_zero = _solve(sign * a, b, TIGHT, tag)
    for guess, most_steps in ((exact * (1 + 1e-13), 2), (b, 3 * SIZE)):
        x, result, steps = _solve(sign * a, b, TIGHT, tag, {"y0": guess})
        assert jnp.all(result == SUCCESSFUL)
        np.testing.assert_allclose(x, exact, rtol=1e-8, atol=1e-10)
        assert np.max(steps) <= most_steps
    assert np.min(from_zero) > 2


INVERSE_TESTS = pytest.mark.parametrize(
    ("sign", "tag", "dtype"),
    [(1, PSD, float), (1, PSD, complex), (-1, NSD, float), (-1, NSD, complex)],
    ids=["positive-real", "positive-complex", "negative-real", "negative-complex"],
)


@pytest.mark.default("negative-complex")
@pytest.mark.ci("*")
@INVERSE_TESTS
def test_exact_preconditioner_as_a_field_converges_at_once(sign, tag, dtype):
    a, b = _definite(dtype, count=1)
    inverse = lx.MatrixLinearOperator(jnp.linalg.inv(a[0]), PSD)
    solver = pj.CG(1e-9, 1e-9, max_steps=50, preconditioner=inverse)
    x, result, steps = _solve(sign * a, b, solver, tag)
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(x, sign * np.linalg.solve(a[0], b[0])[None], rtol=1e-8)
    assert int(steps[0]) <= 2


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_preconditioner_of_options_wins_over_the_field():
    a, b = _definite(count=1)
    identity = lx.MatrixLinearOperator(jnp.eye(SIZE), PSD)
    solver = pj.CG(1e-9, 1e-9, max_steps=50, preconditioner=identity)
    options = {"preconditioner": lx.MatrixLinearOperator(jnp.linalg.inv(a[0]), PSD)}
    operator = lx.MatrixLinearOperator(a[0], PSD)
    with_options = pj.linear_solve(operator, b[0], solver, options=options)
    without = pj.linear_solve(operator, b[0], solver)
    assert with_options.stats["num_steps"] <= 2
    assert without.stats["num_steps"] >= SIZE


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
@pytest.mark.parametrize("solver", [TIGHT, SINGULAR], ids=["well-posed", "singular"])
def test_zero_vector_gives_zero(solver):
    a, b = _deficient()
    x, result, _ = _solve(a, 0 * b, solver)
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_array_equal(x, 0)


def test_vmap_stops_each_member_at_its_own_step():
    # As many steps as there are distinct eigenvalues.
    eigenvalues = np.minimum(np.arange(1.0, SIZE + 1), np.arange(1, SIZE + 1)[:, None])
    a, b = _with_eigenvalues(eigenvalues)
    x, result, together = _solve(a, b, TIGHT)
    alone = [int(_solve(a[i : i + 1], b[i : i + 1], TIGHT)[2][0]) for i in range(SIZE)]
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(_apply(a, x), b, atol=1e-9)
    np.testing.assert_array_equal(together, alone)
    assert len(set(alone)) == SIZE


def _relative_errors(a, b, exact, solver):
    """The relative errors, infinite errors where not finite, and which are successful."""
    x, result, _ = _solve(a, b, solver)
    error = np.linalg.norm(x - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return np.nan_to_num(error, nan=np.inf), np.asarray(result == SUCCESSFUL)


# Residual entries within tolerance * |b|: |x - A†b| <= cond * tolerance * |x| up to
# rounding. The factor 10, and 10 eps * cond beside the tolerance, leave room for that.
def _bound(condition, tolerance):
    return 10 * condition * (tolerance + 10 * np.finfo(float).eps * condition)


@pytest.mark.parametrize("rank", [3, 5])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_no_successful_solution_has_a_large_error(rank, tolerance):
    eigenvalues = 10.0 ** np.random.default_rng(4).uniform(-5, 0, (4000, SIZE))
    eigenvalues[:, rank:] = 0
    eigenvalues[:, 0] = 1
    a, z = _with_eigenvalues(eigenvalues)
    b = _apply(a, z)
    solver = pj.CG(jnp.array(tolerance), jnp.array(0.0), max_steps=500)
    error, successful = _relative_errors(a, b, _pinv(a, b), solver)
    bound = _bound(1 / eigenvalues[:, :rank].min(1), tolerance)
    assert np.all(error[successful] <= bound[successful])
    assert successful.mean() > 0.9


@pytest.mark.default("1e-06-complex")
@pytest.mark.ci("*")
@dtypes
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
def test_no_successful_projected_solution_has_a_large_error(dtype, tolerance):
    eigenvalues = np.random.default_rng(1).uniform(1, 10, (4000, SIZE))
    eigenvalues[:, :2] = 0
    a, b = _with_eigenvalues(eigenvalues, dtype)
    exact = _pinv(a, b)
    # With atol scaled to the solution, so that it is as strict as rtol.
    b, exact = (v / np.abs(exact).max(1, keepdims=True) for v in (b, exact))
    tolerances = (jnp.array(tolerance), jnp.array(tolerance))
    solver = pj.CG(*tolerances, max_steps=200, well_posed=False)
    error, successful = _relative_errors(a, b, exact, solver)
    # Twice: the tolerance holds for each of the two runs. The vector may be larger than
    # its projection by the factor |b| / |A x|.
    excess = np.linalg.norm(b, axis=1) / np.linalg.norm(_apply(a, exact), axis=1)
    assert np.all(error[successful] <= 2 * excess[successful] * _bound(10, tolerance))
    assert successful.mean() > 0.99
