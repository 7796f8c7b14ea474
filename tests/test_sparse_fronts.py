"""`sparse_solve` and `sparse_lstsq`: values, gradients on the pattern, errors."""

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import count_primitive, jit

import pseudojvp as pj


def _random(shape, seed, *, shift=0.0, dtype=float, density=0.5):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal(shape) * (rng.random(shape) < density)
    if np.issubdtype(dtype, np.complexfloating):
        dense = dense + 1j * rng.standard_normal(shape) * (dense != 0)
    return dense + shift * np.eye(*shape)


def _deficient():
    """7 × 4 of rank 2 on a pattern that its perturbations along constant rank keep."""
    rng = np.random.default_rng(5)
    left = rng.standard_normal((7, 1)) * (np.arange(7)[:, None] < 4)
    right = rng.standard_normal((7, 1)) * (np.arange(7)[:, None] >= 4)
    first = np.array([[1.0, 2.0, 0.0, 0.0]])
    second = np.array([[0.0, 0.0, 3.0, -1.0]])
    return left @ first + right @ second


_GENERAL = _random((6, 6), 0, shift=4.0)
_SYMMETRIC = _GENERAL + _GENERAL.T - np.diag([0.0, 30.0, 0, 0, 0, 0])
_COMPLEX = _random((6, 6), 1, shift=5.0, dtype=complex)
_FORMATS = {"BCOO": jsparse.BCOO.fromdense, "BCSR": jsparse.BCSR.fromdense}
_each_format = pytest.mark.parametrize("create", _FORMATS.values(), ids=_FORMATS)
_SQUARE = {
    "general": (_GENERAL, ()),
    "symmetric": (_SYMMETRIC, lx.symmetric_tag),
    "definite": (_GENERAL @ _GENERAL.T, lx.positive_semidefinite_tag),
    "complex": (_COMPLEX, ()),
}
_each_square = pytest.mark.parametrize(
    ("dense", "tags"), _SQUARE.values(), ids=_SQUARE.keys()
)
_RECTANGULAR = {
    "tall": _random((7, 4), 2, density=0.7),
    "wide": _random((4, 7), 3, density=0.7),
    "deficient": _deficient(),
    "complex": _random((7, 4), 4, density=0.7, dtype=complex),
}
_each_rectangular = pytest.mark.parametrize(
    "dense", _RECTANGULAR.values(), ids=_RECTANGULAR.keys()
)


def _vectors(rows, dtype, columns=()):
    values = np.random.default_rng(9).standard_normal((rows, *columns))
    return jnp.asarray(values.astype(dtype))


def _gradient(solve, matrix, vector):
    """Of the sum of squares of the solution, with respect to both."""

    def loss(data, vector):
        moved = eqx.tree_at(lambda matrix: matrix.data, matrix, data)
        return jnp.sum(jnp.abs(solve(moved, vector)) ** 2)

    return jit(jax.grad(loss, argnums=(0, 1)))(matrix.data, vector)


def _dense_gradient(dense, vector, damp=0.0):
    """Of ‖A†b‖² by hand: with u = A†ᴴx, dA = −u xᴴ + (b − A x)(A†u)ᴴ + null part."""
    a, b = np.asarray(dense), np.asarray(vector)
    stacked = np.vstack([a, damp * np.eye(a.shape[1])]) if damp else a
    pinv = np.linalg.pinv(stacked)
    rows = a.shape[0]
    x = pinv[:, :rows] @ b
    u = 2 * pinv.conj().T @ x
    residual = b - a @ x
    null = 2 * x - pinv @ (stacked @ (2 * x))  # zero: x has no part in the null space
    gram = pinv @ u
    slope = -np.outer(u[:rows], x.conj()) + np.outer(residual, gram.conj())
    slope = slope + np.outer(u[:rows] * 0, null.conj())
    # JAX's gradient of a real function is the conjugate of this one.
    return slope.conj(), u[:rows].conj()


@pytest.mark.ci("*")
@_each_square
@_each_format
@pytest.mark.parametrize("products", [False, True], ids=["dense", "products"])
def test_square_solution_is_that_of_the_dense_matrix(dense, tags, create, products):
    b = _vectors(6, dense.dtype)
    options = {"y0": 0 * b} if products else None
    matrix = create(jnp.asarray(dense))
    x = pj.sparse_solve(matrix, b, options=options, tags=tags, throw=False)
    np.testing.assert_allclose(x, np.linalg.solve(dense, b), rtol=1e-8)


@pytest.mark.ci("*")
@_each_square
def test_gradient_of_square_solve_lives_on_the_pattern(dense, tags):
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense))
    b = _vectors(6, dense.dtype)
    solver = {lx.symmetric_tag: pj.MINRES(rtol=1e-13)}.get(tags)
    solve = lambda matrix, b: pj.sparse_solve(matrix, b, solver, tags=tags, throw=False)
    of_data, of_b = _gradient(solve, matrix, b)
    slope, of_vector = _dense_gradient(dense, b)
    truth = slope[tuple(np.asarray(matrix.indices).T)]
    np.testing.assert_allclose(of_data, truth, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(of_b, of_vector, rtol=1e-8, atol=1e-8)


@pytest.mark.ci("*")
@_each_rectangular
@_each_format
@pytest.mark.parametrize("solver", [None, pj.LSMR()], ids=["default", "LSMR"])
def test_least_squares_solution_is_that_of_the_pseudoinverse(dense, create, solver):
    b = _vectors(dense.shape[0], dense.dtype, (2,))
    x = pj.sparse_lstsq(create(jnp.asarray(dense)), b, solver, throw=False)
    np.testing.assert_allclose(x, np.linalg.pinv(dense) @ b, rtol=1e-7, atol=1e-9)


# Not by default: there `test_sparse_gradients.py` has the claim.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tall", "wide", "complex"])
def test_gradient_of_least_squares_lives_on_the_pattern(name):
    dense = _RECTANGULAR[name]
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense))
    b = _vectors(dense.shape[0], dense.dtype)
    solver = pj.LSMR(rtol=1e-13)
    of_data, of_b = _gradient(
        lambda matrix, b: pj.sparse_lstsq(matrix, b, solver, throw=False), matrix, b
    )
    slope, of_vector = _dense_gradient(dense, b)
    truth = slope[tuple(np.asarray(matrix.indices).T)]
    np.testing.assert_allclose(of_data, truth, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(of_b, of_vector, rtol=1e-8, atol=1e-8)


@pytest.mark.slow  # a second
def test_derivative_of_deficient_least_squares_is_that_along_constant_rank():
    dense = _deficient()
    direction = dense * [1.0, 1.0, -0.5, -0.5]  # scales columns: the rank stays
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense))
    b = _vectors(7, float)
    place = tuple(np.asarray(matrix.indices).T)
    solve = lambda data: pj.sparse_lstsq(
        jsparse.BCOO((data, matrix.indices), shape=matrix.shape),
        b,
        pj.LSMR(rtol=1e-13),
        throw=False,
    )
    _, got = jit(lambda data, tangent: jax.jvp(solve, (data,), (tangent,)))(
        matrix.data, jnp.asarray(direction[place])
    )
    h = 1e-6
    pinv = lambda t: np.linalg.pinv(dense + t * direction, rcond=1e-9) @ np.asarray(b)
    np.testing.assert_allclose(got, (pinv(h) - pinv(-h)) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.slow  # one more program
def test_damped_solution_and_its_derivatives_are_those_of_the_stacked_matrix():
    dense, damp = _RECTANGULAR["tall"], 0.7
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense))
    b = _vectors(7, float)

    solver = pj.LSMR(rtol=1e-13, well_posed=True)

    def loss(data, damp):
        moved = jsparse.BCOO((data, matrix.indices), shape=matrix.shape)
        x = pj.sparse_lstsq(moved, b, solver, damp=damp, throw=False)
        return jnp.sum(x**2)

    def dense_loss(damp):
        gram = dense.T @ dense + damp**2 * np.eye(4)
        return np.sum(np.linalg.solve(gram, dense.T @ np.asarray(b)) ** 2)

    run = jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (of_data, of_damp) = run(matrix.data, damp)
    slope, _ = _dense_gradient(dense, b, damp)
    truth = slope[tuple(np.asarray(matrix.indices).T)]
    np.testing.assert_allclose(value, dense_loss(damp), rtol=1e-9)
    np.testing.assert_allclose(of_data, truth, rtol=1e-8, atol=1e-9)
    h = 1e-5
    difference = (dense_loss(damp + h) - dense_loss(damp - h)) / (2 * h)
    np.testing.assert_allclose(of_damp, difference, rtol=1e-7)


@pytest.mark.slow  # a second
def test_damping_takes_one_solver_as_a_number_and_as_an_array():
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_RECTANGULAR["tall"]))

    def solves(as_given):
        loss = lambda b: jnp.sum(pj.sparse_lstsq(matrix, b, damp=as_given(0.7)) ** 2)
        jaxpr = jax.make_jaxpr(jax.grad(loss))(_vectors(7, float))
        return count_primitive("linear_solve", jaxpr.jaxpr)

    # One for x, one for the cotangent of b: A of unknown rank would take more.
    assert solves(float) == solves(jnp.asarray) == 2


def test_damping_of_a_zero_array_raises():
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_RECTANGULAR["tall"]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="got zero.*Leave `damp` out"):
        pj.sparse_lstsq(matrix, _vectors(7, float), damp=jnp.zeros(()))


@pytest.mark.slow  # four seconds of compiling
def test_damping_of_zero_is_nan_without_throw_and_so_are_its_derivatives():
    dense = _RECTANGULAR["tall"]
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense))
    b = _vectors(7, float)

    def solve(data, b, damp):
        moved = jsparse.BCOO((data, matrix.indices), shape=matrix.shape)
        return pj.sparse_lstsq(moved, b, damp=damp, throw=False)

    @jit
    @jax.vmap
    def run(damp):
        primals = matrix.data, b, damp
        x, pull = jax.vjp(solve, *primals)
        push = lambda *tangents: jax.jvp(solve, primals, tangents)[1]
        zeros = jax.tree.map(jnp.zeros_like, primals)
        pushed = [
            push(*zeros[:i], jnp.ones_like(primals[i]), *zeros[i + 1 :]) for i in range(3)
        ]
        return x, pull(jnp.ones(4)), pushed

    damps = jnp.array([0.0, 0.7])
    x, pulled, pushed = run(damps)
    gram = dense.T @ dense + 0.49 * np.eye(4)
    np.testing.assert_allclose(x[1], np.linalg.solve(gram, dense.T @ b), rtol=1e-8)
    for leaf in (x, *pulled, *pushed):
        assert np.all(np.isnan(leaf[0]))
        assert np.all(np.isfinite(leaf[1]))


@pytest.mark.ci("wide")  # second derivatives through two Krylov loops: compilation
@pytest.mark.parametrize("name", ["tall", "wide"])
def test_hessian_vector_product_of_least_squares(name):
    dense = _RECTANGULAR[name]
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense))
    b = _vectors(dense.shape[0], float)
    place = tuple(np.asarray(matrix.indices).T)
    direction = _vectors(matrix.nse, float)

    def loss(data):
        moved = jsparse.BCOO((data, matrix.indices), shape=matrix.shape)
        x = pj.sparse_lstsq(moved, b, pj.LSMR(rtol=1e-13), throw=False)
        return jnp.sum(x**2)

    _, got = jit(lambda d, t: jax.jvp(jax.grad(loss), (d,), (t,)))(matrix.data, direction)

    def slope(t):
        moved = dense.copy()
        moved[place] += t * np.asarray(direction)
        return _dense_gradient(moved, b)[0][place]

    h = 1e-5
    truth = (slope(h) - slope(-h)) / (2 * h)
    np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.slow  # a second
def test_gradient_by_jax_sparse_is_a_matrix_of_the_same_format():
    dense = np.tril(_GENERAL)
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense))
    b = _vectors(6, float)
    loss = lambda matrix: jnp.sum(pj.sparse_solve(matrix, b, throw=False) ** 2)

    @jit
    def gradient_at(data):
        moved = jsparse.BCOO((data, matrix.indices), shape=matrix.shape)
        return jsparse.grad(loss)(moved)

    gradient = gradient_at(matrix.data)
    assert isinstance(gradient, jsparse.BCOO)
    np.testing.assert_array_equal(gradient.indices, matrix.indices)
    slope, _ = _dense_gradient(dense, b)
    truth = slope[tuple(np.asarray(matrix.indices).T)]
    np.testing.assert_allclose(gradient.data, truth, rtol=1e-7, atol=1e-8)


@pytest.mark.slow  # two more programs
def test_transpose_solver_is_what_the_gradient_solves_with():
    """The one for Aᵀ may take a single step, and the gradient shows it."""
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_GENERAL))
    b = _vectors(6, float)
    slope, _ = _dense_gradient(_GENERAL, b)
    truth = slope[tuple(np.asarray(matrix.indices).T)]
    good, _ = _gradient(
        lambda matrix, b: pj.sparse_solve(
            matrix, b, pj.LU(), pj.GMRES(1e-13), throw=False
        ),
        matrix,
        b,
    )
    np.testing.assert_allclose(good, truth, rtol=1e-8, atol=1e-8)
    bad, _ = _gradient(
        lambda matrix, b: pj.sparse_solve(
            matrix, b, pj.LU(), pj.GMRES(max_steps=1), throw=False
        ),
        matrix,
        b,
    )
    assert np.all(np.isnan(bad))


@pytest.mark.slow  # two seconds
def test_preconditioner_is_transposed_in_the_gradient():
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_GENERAL))
    b = _vectors(6, float)
    options = {"preconditioner": lx.MatrixLinearOperator(jnp.linalg.inv(_GENERAL))}
    solver = pj.BiCGStab(rtol=1e-12, max_steps=2)  # enough with the right one only
    got, _ = _gradient(
        lambda matrix, b: pj.sparse_solve(
            matrix, b, solver, options=options, throw=False
        ),
        matrix,
        b,
    )
    slope, _ = _dense_gradient(_GENERAL, b)
    truth = slope[tuple(np.asarray(matrix.indices).T)]
    np.testing.assert_allclose(got, truth, rtol=1e-8, atol=1e-8)


def test_scipy_matrix_and_operator_are_taken():
    b = _vectors(6, float)
    truth = np.linalg.solve(_GENERAL, b)
    csr = scipy.sparse.csr_array(_GENERAL)
    for matrix in (csr, pj.SparseLinearOperator(csr)):
        np.testing.assert_allclose(pj.sparse_solve(matrix, b), truth, rtol=1e-8)


def test_triangular_matrix_is_solved_by_substitution():
    dense = np.tril(_GENERAL)
    b = _vectors(6, float, (3,))
    x = pj.sparse_solve(scipy.sparse.csr_array(dense), b)
    np.testing.assert_allclose(x, np.linalg.solve(dense, b), rtol=1e-12)


def test_single_precision_reaches_its_tolerance():
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_GENERAL, jnp.float32))
    b = _vectors(6, np.float32)
    x = pj.sparse_solve(matrix, b, pj.BiCGStab(), throw=False)
    assert x.dtype == jnp.float32
    residual = np.linalg.norm(_GENERAL @ np.asarray(x) - np.asarray(b)) / np.linalg.norm(
        b
    )
    assert residual < 2e-5  # the tolerance is 1e-5, and A is rounded


@pytest.mark.ci("zeros", "empty-row")
@pytest.mark.parametrize(
    "dense",
    [np.zeros((6, 6)), np.diag([1.0, 0, 2, 3, 4, 5])],
    ids=["zeros", "empty-row"],
)
def test_singular_matrix_is_never_solved_in_silence(dense):
    matrix = jsparse.BCOO.fromdense(jnp.asarray(dense), nse=6)
    x = pj.sparse_solve(matrix, _vectors(6, float), pj.GMRES(), throw=False)
    assert np.all(np.isnan(x))


def test_what_did_not_converge_raises():
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_GENERAL))
    with pytest.raises(Exception, match="max"):
        pj.sparse_solve(matrix, _vectors(6, float), pj.GMRES(max_steps=1))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a, b: pj.sparse_solve(_GENERAL, b), "got a ndarray"),
        (lambda a, b: pj.sparse_lstsq(jnp.asarray(_GENERAL), b), "for a dense one"),
        (lambda a, b: pj.sparse_solve(a, b[:4]), r"got an array of shape \(4,\)"),
        (lambda a, b: pj.sparse_solve(a[:4], b[:4]), "Pass a square matrix"),
        (lambda a, b: pj.sparse_solve(a, b.astype("float32")), "Convert one of them"),
        (lambda a, b: pj.sparse_solve(a, b, "cg"), "Pass an instance of a solver"),
        (lambda a, b: pj.sparse_solve(a, b, None, "cg"), "Pass an instance of a solver"),
        (lambda a, b: pj.sparse_lstsq(a, b, damp=np.ones(2)), "Pass a scalar"),
        (lambda a, b: pj.sparse_lstsq(a, b, damp=1j), "Pass a real number"),
        (lambda a, b: pj.sparse_lstsq(a, b, damp=0), "got zero.*Leave `damp` out"),
        (lambda a, b: pj.sparse_lstsq(a, b, damp=-0.0), "got zero.*Leave `damp` out"),
        (lambda a, b: pj.sparse_lstsq(a, b, options={"y0": b}), "takes neither"),
        (lambda a, b: pj.sparse_solve(a, b, pj.CG()), "positive"),
    ],
)
def test_bad_arguments_are_named(call, match):
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_GENERAL))
    with pytest.raises((TypeError, ValueError), match=match):
        call(matrix, _vectors(6, float))
