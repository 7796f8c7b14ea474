"""Real unknowns of complex data, and the other way round: linear over the reals alone."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.optimize

import pseudojvp as pj


ROWS, COLS = 7, 4
TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
SOLVERS = {
    "QR": pj.QR(),
    "PivotedQR": pj.PivotedQR(),
    "SVD": pj.SVD(),
    "CholeskyQR": pj.CholeskyQR(),
    "Normal(Cholesky)": pj.Normal(pj.Cholesky()),
    "Normal(CG)": pj.Normal(pj.CG(1e-12, 1e-12)),
    "LSMR": pj.LSMR(1e-13),
    "Auto(None)": pj.AutoLinearSolver(None),
    "Auto(False)": pj.AutoLinearSolver(False),
}
each = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def _random(seed, *shape):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


MATRIX, VECTOR = _random(0, ROWS, COLS), _random(1, ROWS)


def _real_to_complex(matrix):
    structure = jax.ShapeDtypeStruct((matrix.shape[1],), float)
    return lx.FunctionLinearOperator(lambda x: matrix @ x.astype(complex), structure)


def _stacked(matrix, vector):
    both = np.concatenate([matrix.real, matrix.imag])
    return both, np.concatenate([vector.real, vector.imag])


def _truth(matrix, vector):
    both, data = _stacked(np.asarray(matrix), np.asarray(vector))
    return np.linalg.pinv(both) @ data


@pytest.mark.default("SVD")
@pytest.mark.ci("*")
@each
def test_real_unknowns_of_complex_data(solver):
    def loss(matrix, vector):
        x = pj.linear_solve(_real_to_complex(matrix), vector, solver).value
        return jnp.sum(x**3), x

    arguments = jnp.asarray(MATRIX), jnp.asarray(VECTOR)
    (_, x), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(*arguments)
    np.testing.assert_allclose(x, _truth(MATRIX, VECTOR), rtol=1e-9)
    step = 1e-6
    for seed in (2, 3):
        move = _random(seed, ROWS, COLS), _random(seed + 2, ROWS)

        def at(t, move=move):
            return np.sum(_truth(MATRIX + t * move[0], VECTOR + t * move[1]) ** 3)

        want = (at(step) - at(-step)) / (2 * step)
        got = sum(np.sum(g * m).real for g, m in zip(gradient, move, strict=True))
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "PivotedQR", "SVD", "LSMR"])
def test_second_derivative_is_that_over_the_reals(name):
    direction = _random(5, ROWS, COLS)

    def along(solve):
        def value(t):
            return jnp.sum(solve(MATRIX + t.astype(complex) * direction) ** 2)

        return jax.hessian(value)(jnp.zeros(()))

    def by_hand(matrix):
        both = jnp.concatenate([matrix.real, matrix.imag])
        data = jnp.concatenate([VECTOR.real, VECTOR.imag])
        return jnp.linalg.solve(both.T @ both, both.T @ data)

    solve = lambda matrix: (
        pj.linear_solve(_real_to_complex(matrix), VECTOR, SOLVERS[name]).value
    )
    np.testing.assert_allclose(along(solve), along(by_hand), rtol=1e-8)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "PivotedQR", "SVD", "Normal(Cholesky)"])
def test_complex_unknowns_of_real_data(name):
    structure = jax.ShapeDtypeStruct((ROWS,), complex)
    wide = MATRIX.T
    operator = lx.FunctionLinearOperator(lambda x: (wide @ x).real, structure)
    data = VECTOR.real[:COLS]
    solve = lambda data: pj.linear_solve(operator, data, SOLVERS[name]).value
    parts = np.linalg.pinv(np.concatenate([wide.real, -wide.imag], 1))
    want = parts @ data
    np.testing.assert_allclose(solve(data), want[:ROWS] + 1j * want[ROWS:], rtol=1e-9)
    gradient = jax.grad(lambda data: jnp.sum(solve(data).imag))(jnp.asarray(data))
    np.testing.assert_allclose(gradient, parts[ROWS:].sum(0), rtol=1e-9)


@pytest.mark.default("PivotedQR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "PivotedQR", "SVD", "Normal(Cholesky)"])
def test_real_fourier_transform_is_inverted(name):
    structure = jax.ShapeDtypeStruct((8,), float)
    operator = lx.FunctionLinearOperator(jnp.fft.rfft, structure)
    signal = np.random.default_rng(0).standard_normal(8)
    solve = jax.jit(lambda data: pj.linear_solve(operator, data, SOLVERS[name]).value)
    np.testing.assert_allclose(solve(np.fft.rfft(signal)), signal, rtol=1e-10)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "LSMR"])
def test_trees_of_real_and_complex_leaves(name):
    square = _random(3, 3, 3)

    def mv(x):
        return {"c": square @ x["c"] + x["r"].astype(complex), "r": x["c"][:2].real}

    structure = {
        "c": jax.ShapeDtypeStruct((3,), complex),
        "r": jax.ShapeDtypeStruct((1,), float),
    }
    operator = lx.FunctionLinearOperator(mv, structure)
    data = {"c": jnp.asarray(_random(4, 3)), "r": jnp.array([0.5, -1.0])}
    x = pj.linear_solve(operator, data, SOLVERS[name]).value
    units = np.eye(7)
    columns = []
    for unit in units:
        image = mv({"c": unit[:3] + 1j * unit[3:6], "r": jnp.asarray(unit[6:])})
        columns.append(np.concatenate([image["c"].real, image["c"].imag, image["r"]]))
    flat = np.concatenate([data["c"].real, data["c"].imag, data["r"]])
    want = np.linalg.pinv(np.stack(columns, 1)) @ flat
    np.testing.assert_allclose(x["c"], want[:3] + 1j * want[3:6], rtol=1e-8)
    np.testing.assert_allclose(x["r"], want[6:], rtol=1e-8)


def test_each_block_of_the_map_is_that_over_the_reals():
    factorised = pj.factorise(_real_to_complex(MATRIX), pj.QR())
    both, data = _stacked(MATRIX, VECTOR)
    weights = np.arange(1.0, COLS + 1)
    inverse = np.linalg.pinv(both)
    join = lambda flat: flat[:ROWS] + 1j * flat[ROWS:]
    close = lambda got, want: np.testing.assert_allclose(got, want, atol=1e-12)
    close(factorised.solve(VECTOR), inverse @ data)
    close(factorised.residual(VECTOR), join(data - both @ inverse @ data))
    close(factorised.adjoint_solve(weights), join(inverse.T @ weights))
    close(factorised.gram_inverse(weights), inverse @ inverse.T @ weights)
    close(factorised.project(weights), weights)


def test_batches_and_a_state_are_taken():
    operator = _real_to_complex(MATRIX)
    vectors = jnp.asarray(_random(6, 3, ROWS))
    state = pj.linear_solve(operator, VECTOR, pj.QR()).state
    solve = lambda b: pj.linear_solve(operator, b, pj.QR(), state=state).value
    want = np.stack([_truth(MATRIX, b) for b in np.asarray(vectors)])
    np.testing.assert_allclose(jax.jit(jax.vmap(solve))(vectors), want, rtol=1e-10)


def test_preconditioner_and_first_guess_are_taken():
    structure = [jax.ShapeDtypeStruct((3,), float), jax.ShapeDtypeStruct((2,), complex)]
    diagonal = [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])]

    def times(factors):
        mv = lambda x: [a * f.astype(a.dtype) for a, f in zip(x, factors, strict=True)]
        tags = lx.positive_semidefinite_tag
        return lx.FunctionLinearOperator(mv, structure, tags)

    data = [jnp.ones(3), jnp.array([1 + 2j, 2 - 1j])]
    with jax.numpy_dtype_promotion("standard"):  # lineax asks for it
        inverse = times([1 / d for d in diagonal])
        options = {"preconditioner": inverse, "y0": [0 * leaf for leaf in data]}
        solver = pj.CG(1e-12)
        solution = pj.linear_solve(times(diagonal), data, solver, options=options)
    for x, b, d in zip(solution.value, data, diagonal, strict=True):
        np.testing.assert_allclose(x, np.asarray(b) / d, rtol=1e-10)
    assert solution.stats["num_steps"] <= 2


def test_state_of_a_dense_solver_alone_is_refused():
    with pytest.raises(ValueError, match="of real leaves beside complex ones"):
        pj.QR().init(_real_to_complex(MATRIX), {})


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "PivotedQR", "Auto(None)"])
def test_some_rows_of_a_fourier_transform(name):
    rows = np.fft.fft(np.eye(8))[:5]
    operator = lx.FunctionLinearOperator(
        lambda x: jnp.fft.fft(x)[:5], jax.ShapeDtypeStruct((8,), complex)
    )
    vector = _random(12, 5)
    solve = lambda b: pj.linear_solve(operator, b, SOLVERS[name]).value
    np.testing.assert_allclose(solve(vector), np.linalg.pinv(rows) @ vector, atol=1e-12)
    cotangent = jax.grad(lambda b: jnp.sum(jnp.abs(solve(b)) ** 2))(jnp.asarray(vector))
    inverse = np.linalg.pinv(rows)
    want = 2 * (inverse.conj().T @ inverse @ vector).conj()
    np.testing.assert_allclose(cotangent, want, atol=1e-12)


_TIMES = jnp.linspace(0.0, 2.0, 20)


def _decays(theta, _):
    return lx.MatrixLinearOperator(jnp.exp(-jnp.outer(_TIMES, theta)))


def _real_part(theta, _):
    decay = jnp.exp(-theta[0] * _TIMES)
    structure = jax.ShapeDtypeStruct((1,), complex)
    return lx.FunctionLinearOperator(lambda c: decay * c[0].real, structure)


def _fit(basis, data, **options):
    return pj.varpro(basis, data, jnp.array([0.8, 2.0]), **options)


def _residual(basis, data, **options):
    return pj.projected_residual(basis, data, **options)(jnp.array([0.8, 2.0]))


@pytest.mark.parametrize("fit", [_fit, _residual])
def test_basis_that_would_lose_an_imaginary_part_is_refused(fit):
    data = jnp.exp(-_TIMES)
    with pytest.raises(ValueError, match="real vectors, but `data` is complex"):
        fit(_decays, data.astype(complex))
    with pytest.raises(ValueError, match="real vectors, but `offset` is complex"):
        fit(_decays, data, offset=lambda theta, _: data.astype(complex))
    with pytest.raises(ValueError, match="from complex coefficients to real data"):
        fit(_real_part, data)


@pytest.mark.slow  # a second
def test_complex_data_count_twice_for_real_coefficients():
    def basis(theta, _):
        angle = theta * jnp.arange(2.0)
        mv = lambda c: jax.lax.complex(
            c[0] * jnp.cos(angle), c[0] * jnp.sin(angle) + c[1]
        )
        return lx.FunctionLinearOperator(mv, jax.ShapeDtypeStruct((2,), float))

    data = jnp.asarray(3 * np.exp(0.5j * np.arange(2)) + 2j)
    fit = pj.varpro(basis, data, jnp.array(0.4))
    np.testing.assert_allclose(fit.theta, 0.5, rtol=1e-6)
    np.testing.assert_allclose(fit.coefficients, [3.0, 2.0], rtol=1e-6)


@pytest.mark.slow  # two seconds
def test_operator_of_real_coefficients_fits_complex_data():
    times = np.linspace(0, 4, 30)
    rng = np.random.default_rng(0)

    def columns(theta):
        rate, frequency = theta.astype(complex)
        decay = jnp.exp((1j * frequency - rate) * times.astype(complex))
        return decay[:, None] * jnp.stack([jnp.ones(30), times], 1).astype(complex)

    def basis(theta, _):
        matrix = columns(theta)
        structure = jax.ShapeDtypeStruct((2,), float)
        return lx.FunctionLinearOperator(lambda c: matrix @ c.astype(complex), structure)

    noise = rng.standard_normal(30) + 1j * rng.standard_normal(30)
    truth = np.array([0.5, 3.0]), np.array([1.0, -0.3])
    data = np.asarray(columns(jnp.asarray(truth[0]))) @ truth[1] + 0.01 * noise

    def residual(parameters):
        misfit = np.asarray(columns(jnp.asarray(parameters[:2]))) @ parameters[2:] - data
        return np.concatenate([misfit.real, misfit.imag])

    full = scipy.optimize.least_squares(residual, np.concatenate(truth), **TIGHT)
    fit = pj.varpro(basis, data, jnp.array([0.4, 2.8]))
    errors = fit.statistics()
    np.testing.assert_allclose(fit.theta, full.x[:2], rtol=1e-7)
    np.testing.assert_allclose(fit.coefficients, full.x[2:], rtol=1e-6)
    assert errors.degrees_of_freedom == 56
    covariance = np.linalg.inv(full.jac.T @ full.jac) * 2 * full.cost / 56
    found = np.concatenate(
        [errors.theta_standard_deviation, errors.coefficient_standard_deviation]
    )
    np.testing.assert_allclose(found, np.sqrt(np.diag(covariance)), rtol=1e-3)
