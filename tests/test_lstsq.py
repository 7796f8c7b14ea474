"""`lstsq`: values, shapes and dtypes, beside `jax.numpy.linalg.lstsq` and NumPy."""

import functools as ft

import drop_in_cases as cases
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


SHAPES = {
    "tall": ((6, 3), [3.0, 2.0, 1.0]),
    "wide": ((3, 6), [3.0, 2.0, 1.0]),
    "square": ((4, 4), [4.0, 3.0, 2.0, 1.0]),
    "tall-deficient": ((6, 4), [2.0, 1.0]),
    "wide-deficient": ((4, 6), [2.0, 1.0]),
    "zero": ((4, 3), [0.0]),
}
# Without the branch that raises there is half as much to compile.
lstsq = ft.partial(pj.lstsq, throw=False)
_CASES = [
    *[("pivoted_qr", kind, "float64") for kind in SHAPES],
    ("pivoted_qr", "tall", "float32"),
    ("pivoted_qr", "tall-deficient", "complex64"),
    ("pivoted_qr", "wide-deficient", "complex128"),
    ("svd", "square", "float32"),
    ("svd", "wide-deficient", "complex64"),
    ("svd", "tall-deficient", "complex128"),
    ("qr", "tall", "complex128"),
    ("qr", "wide", "complex64"),
    ("qr", "square", "float64"),
]


def system(kind, dtype="float64"):
    shape, singular_values = SHAPES[kind]
    dtype = np.dtype(dtype)
    a = cases.conditioned(shape, singular_values, dtype, 0)
    return a, cases.random_array((shape[0], 2), dtype, 5)


def assert_alike(got, want, rtol):
    """As (x, residuals, rank, s), in shapes, dtypes and values."""
    for g, w in zip(got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol)


@pytest.mark.default("svd-tall-deficient-complex128")
@pytest.mark.ci("pivoted_qr-*-deficient-*", "svd-square-float32", "qr-*")
@pytest.mark.parametrize(("name", "kind", "dtype"), _CASES)
def test_agrees_with_jax_numpy(name, kind, dtype):
    a, b = system(kind, dtype)
    tolerance = 10 * cases.TOLERANCE[np.dtype(dtype)]
    rcond = None if name == "qr" else 1e-4

    @jit
    def both(a, b):
        ours = lambda b: lstsq(a, b, rcond, solver=cases.LSTSQ[name])
        theirs = lambda b: jnp.linalg.lstsq(a, b, rcond=rcond)
        return (ours(b), ours(b[:, 0])), (theirs(b), theirs(b[:, 0]))

    (many, one), (jnp_many, jnp_one) = both(a, b)
    assert_alike(many, jnp_many, tolerance)
    assert_alike(one, jnp_one, tolerance)


@pytest.mark.default(
    "True-int64-int32", "True-float32-float64", "False-bool-bool", "False-uint8-complex64"
)
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("int32", "int32"),
        ("int64", "int32"),
        ("int32", "float32"),
        ("bool", "bool"),
        ("uint8", "complex64"),
        ("float32", "float64"),
        ("float64", "complex64"),
        ("complex128", "float32"),
    ],
)
@pytest.mark.parametrize("x64", [True, False])
def test_dtypes_are_those_of_jax_numpy(a, b, x64):
    with jax.enable_x64(x64):
        structs = (
            jax.ShapeDtypeStruct((4, 3), jax.dtypes.canonicalize_dtype(a)),
            jax.ShapeDtypeStruct((4,), jax.dtypes.canonicalize_dtype(b)),
        )
        got = jax.eval_shape(lstsq, *structs)
        with jax.numpy_dtype_promotion("standard"):
            want = jax.eval_shape(jnp.linalg.lstsq, *structs)
    assert [(g.shape, g.dtype) for g in got] == [(w.shape, w.dtype) for w in want]


@pytest.mark.slow  # a second
def test_strict_promotion_admits_weights_and_damping_of_another_dtype():
    a, b = system("tall", "complex64")
    weights = np.arange(1.0, 7.0)
    with jax.numpy_dtype_promotion("strict"):
        x, *_ = lstsq(a, b, damp=0.5, weights=weights, solver=pj.QR())
    want = np.linalg.solve(
        (a.conj().T * weights**2) @ a + 0.25 * np.eye(3), (a.conj().T * weights**2) @ b
    )
    np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)  # float32
    assert x.dtype == np.complex64


def test_numpy_arrays_and_jax_arrays_give_the_same():
    a, b = system("tall-deficient")
    assert_alike(lstsq(jnp.asarray(a), jnp.asarray(b)), lstsq(a, b), 0)


OTHERS = {
    "Auto": ("tall-deficient", pj.AutoLinearSolver(False)),
    "LSMR": ("wide-deficient", pj.LSMR(1e-14, 1e-14)),
    "Normal": ("tall", pj.Normal(pj.Cholesky())),
    "GMRES": ("square", pj.GMRES(1e-14, 1e-14)),
    "lx.SVD": ("wide-deficient", lx.SVD()),
    "lx.QR": ("tall", lx.QR()),
}


@pytest.mark.default("Auto")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("kind", "solver"), OTHERS.values(), ids=OTHERS.keys())
def test_any_solver_of_dense_matrices_agrees_with_numpy(kind, solver):
    a, b = system(kind)
    x, residuals, rank, s = lstsq(a, b, solver=solver)
    want = np.linalg.pinv(a, rcond=1e-8) @ b
    np.testing.assert_allclose(x, want, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(residuals, ((b - a @ want) ** 2).sum(0), atol=1e-11)
    assert rank == len(SHAPES[kind][1])
    np.testing.assert_allclose(s, np.linalg.svd(a, compute_uv=False), atol=1e-14)


@pytest.mark.parametrize("damp", [None, 1e-9])
@pytest.mark.parametrize("solver", [pj.PivotedQR(1e-3), pj.SVD(1e-3), lx.SVD(1e-3)])
def test_cutoff_of_the_solver_holds_for_solution_and_rank(solver, damp):
    a = cases.conditioned((6, 4), [1.0, 0.5, 1e-5, 1e-6], float, 0)
    b = cases.random_array((6,), float, 5)
    x, _, rank, _ = lstsq(a, b, solver=solver, damp=damp)
    # What pivoting drops differs from what the SVD drops by about σ₃ / σ₂ = 2e-5.
    np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-3) @ b, rtol=1e-3)
    assert rank == 2


@pytest.mark.default("svd-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    # What pivoting drops differs from what the SVD drops by about σ₃ / σ₂ = 1e-9.
    ("name", "rtol"),
    [("pivoted_qr", 1e-7), ("svd", 1e-12)],
)
def test_rcond_drops_small_singular_values_as_numpy_does(name, rtol):
    a = cases.conditioned((6, 4), [1.0, 0.5, 5e-10, 1e-10], float, 0)
    b = cases.random_array((6,), float, 5)
    x, _, rank, s = lstsq(a, b, 1e-6, solver=cases.LSTSQ[name])
    want, _, want_rank, want_s = np.linalg.lstsq(a, b, 1e-6)
    assert int(rank) == int(want_rank) == 2
    np.testing.assert_allclose(x, want, rtol=rtol)
    np.testing.assert_allclose(s, want_s, atol=1e-15)


@pytest.mark.default("None-2-svd", "1e-13-1-svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["pivoted_qr", "svd"])
@pytest.mark.parametrize(
    ("rcond", "rank"), [(None, 2), (-1, 3), (0.0, 4), (1e-13, 1), (np.float32(0.5), 1)]
)
def test_rank_counts_singular_values_above_rcond_times_the_largest(name, rcond, rank):
    eps = np.finfo(float).eps
    # Orthogonal columns, so that both solvers see the singular values to rounding.
    a = np.zeros((6, 4))
    np.fill_diagonal(a, [1.0, 10 * eps, 3 * eps, 0.3 * eps])
    got = lstsq(a, np.ones(6), rcond, solver=cases.LSTSQ[name])[2]
    jax_rcond = rcond if rcond is None else float(rcond)
    assert int(got) == int(jnp.linalg.lstsq(a, np.ones(6), jax_rcond)[2]) == rank


@pytest.mark.default("qr-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("pivoted_qr", "wide-deficient"), ("svd", "tall"), ("qr", "tall-deficient")],
)
def test_damping_minimises_the_damped_objective(name, kind):
    a, b = system(kind, "complex128")
    x, residuals, rank, s = lstsq(a, b, damp=0.7, solver=cases.LSTSQ[name])
    gram = a.conj().T @ a + 0.49 * np.eye(a.shape[1])
    want = np.linalg.solve(gram, a.conj().T @ b)
    least = (abs(b - a @ want) ** 2).sum(0) + 0.49 * (abs(want) ** 2).sum(0)
    np.testing.assert_allclose(x, want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(residuals, least, rtol=1e-12)
    assert rank == len(SHAPES[kind][1])
    np.testing.assert_allclose(s, np.linalg.svd(a, compute_uv=False), atol=1e-14)


@pytest.mark.default("svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["pivoted_qr", "svd"])
def test_damping_of_zero_gives_the_minimum_norm_solution(name):
    a, b = system("wide-deficient")
    x, *_ = lstsq(a, b, damp=0.0, solver=cases.LSTSQ[name])
    np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-8) @ b, rtol=1e-11)


@pytest.mark.default("svd-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("pivoted_qr", "tall-deficient"), ("svd", "tall-deficient"), ("qr", "tall")],
)
def test_weights_multiply_the_residual(name, kind):
    a, b = system(kind, "complex128")
    weights = np.array([2.0, -1.0, 0.5, 3.0, 1.0, 0.0])
    x, residuals, rank, s = lstsq(a, b, weights=weights, solver=cases.LSTSQ[name])
    weighted, weighted_b = weights[:, None] * a, weights[:, None] * b
    want = np.linalg.pinv(weighted, rcond=1e-8) @ weighted_b
    np.testing.assert_allclose(x, want, rtol=1e-11)
    least = (abs(weighted_b - weighted @ want) ** 2).sum(0)
    np.testing.assert_allclose(residuals, least, rtol=1e-11)
    assert rank == len(SHAPES[kind][1])
    np.testing.assert_allclose(s, np.linalg.svd(weighted, compute_uv=False), atol=1e-14)


def test_weights_are_those_of_polyfit():
    points, values = np.linspace(-1, 1, 7), cases.random_array((7,), float, 1)
    weights = np.linspace(1, 2, 7)
    x, *_ = lstsq(np.vander(points, 3), values, weights=weights, solver=pj.QR())
    np.testing.assert_allclose(x, np.polyfit(points, values, 2, w=weights), rtol=1e-12)


def test_damping_may_be_batched():
    a, b = system("tall")
    damps = np.array([0.1, 1.0, 10.0])
    x = jax.vmap(lambda damp: lstsq(a, b[:, 0], damp=damp, solver=pj.QR())[0])(damps)
    want = [np.linalg.solve(a.T @ a + d**2 * np.eye(3), a.T @ b[:, 0]) for d in damps]
    np.testing.assert_allclose(x, want, rtol=1e-11)


@pytest.mark.default("qr")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_batch_agrees_with_one_after_the_other(name):
    a = cases.random_array((3, 5, 2), float, 1)
    b = cases.random_array((3, 5, 2), float, 2)
    solve = lambda a, b: lstsq(a, b, solver=cases.LSTSQ[name])
    batched = jax.jit(jax.vmap(solve))(a, b)
    one_by_one = [np.linalg.lstsq(a[i], b[i], None) for i in range(3)]
    for got, want in zip(batched, zip(*one_by_one, strict=True), strict=True):
        np.testing.assert_allclose(got, np.stack(want), rtol=1e-12, atol=1e-12)


@pytest.mark.default("*-columns-pivoted_qr")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "columns"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_matrix_has_solution_zero(shape, columns, name):
    b = np.ones((shape[0], *columns))
    x, residuals, rank, s = lstsq(np.zeros(shape), b, solver=cases.LSTSQ[name])
    np.testing.assert_array_equal(x, np.zeros((shape[1], *columns)))
    np.testing.assert_array_equal(residuals, np.full(columns or (1,), float(shape[0])))
    assert (int(rank), s.shape) == (0, (0,))


@pytest.mark.default("svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_no_right_hand_sides_leave_rank_and_singular_values(name):
    a, b = system("tall")
    x, residuals, rank, s = lstsq(a, b[:, :0], solver=cases.LSTSQ[name])
    assert (x.shape, residuals.shape, int(rank)) == ((3, 0), (0,), 3)
    np.testing.assert_allclose(s, [3.0, 2.0, 1.0], rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_scale_of_the_matrix_does_not_matter(scale):
    a, b = system("tall-deficient")
    x, _, rank, _ = lstsq(scale * a, b)
    assert rank == 2
    np.testing.assert_allclose(
        scale * x, np.linalg.pinv(a, rcond=1e-8) @ b, rtol=1e-11, atol=1e-13
    )
