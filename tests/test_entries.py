"""What `solve_entries` promises, against solutions in extended precision."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from entries_cases import dominant, exact, exact_in_fractions, grid
from jax.experimental import sparse

import pseudojvp as pj
from pseudojvp._kernel import entry as entries
from pseudojvp._kernel.pushes import Tolerance


SUCCESSFUL = lx.RESULTS.successful
DTYPES = np.float64, np.float32, np.complex128, np.complex64


def _codes(result):
    return [int(code) for code in np.ravel(result._value)]


def _told(A, b, index, tolerance, most):
    row, col = np.nonzero(A)
    system = entries.System(row, col, A[row, col], len(b))
    with np.errstate(all="ignore"):
        return entries.Entries(system, b, tolerance, most).tell(index)[0]


def _random_case(rng):
    size, dtype = int(rng.integers(2, 50)), DTYPES[rng.integers(4)]
    dominance = 10 ** rng.uniform(-10, np.log10(0.5))
    by = ("rows", "columns")[rng.integers(2)]
    entries_of_b = (None, 1, 4)[rng.integers(3)]
    A, b = dominant(rng, size, dominance, by, dtype, entries_of_b=entries_of_b)
    most = (None, 0, 1, 7, 50, 400, 3000)[rng.integers(7)]
    tolerance = Tolerance(10 ** rng.uniform(-14, -1), (0.0, 1e-8)[rng.integers(2)])
    return A, b, int(rng.integers(size)), tolerance, most


@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 1000), marks=pytest.mark.slow)]
)
def test_no_certificate_is_false_from_strong_dominance_to_none(seeds):
    codes = set()
    for seed in seeds:
        A, b, index, tolerance, most = _random_case(np.random.default_rng(seed))
        told = _told(A, b, index, tolerance, most)
        codes.add(told.code)
        if told.code == entries.NOT_DOMINANT:
            assert np.isnan(told.value)
            assert told.bound == np.inf
            continue
        value, bound = A.dtype.type(told.value), A.real.dtype.type(told.bound)
        assert abs(exact(A, b)[index] - value) <= bound
        met = bound <= tolerance.of(value)
        assert met == (told.code == entries.SUCCESSFUL)
    everything = {entries.SUCCESSFUL, entries.NOT_DOMINANT, entries.LIMITED}
    assert codes == {*everything, entries.ROUNDED}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_no_certificate_is_false_where_numbers_are_taken_for_zero(dtype):
    """XLA's threads flush what is below the smallest normal number."""
    rng, smallest = np.random.default_rng(0), np.log10(np.finfo(dtype).tiny)
    row, col = np.divmod(np.arange(16), 4)
    places = np.stack([row, col], 1)
    told = 0
    for case in range(40):
        A = rng.standard_normal((4, 4)) * 10 ** rng.uniform(-3, 3, (4, 4))
        gaps = 10 ** rng.uniform(-4, 0, 4)
        A[np.diag_indices(4)] = np.abs(A).sum(1) - np.abs(np.diag(A)) + gaps
        A = (A * 10 ** (smallest * rng.uniform(-0.5, 0.95))).astype(dtype)
        A = A if case % 2 else A.T.copy()
        b = rng.standard_normal(4) * 10 ** (smallest * rng.uniform(0, 1.03, 4))
        b = b.astype(dtype)
        solution = pj.solve_entries(
            sparse.BCOO((A[row, col], places), shape=(4, 4)),
            b,
            np.arange(4),
            rtol=1e-3,
            atol=0.0,
            throw=False,
        )
        x = exact_in_fractions(A, b)
        for value, bound, want in zip(solution.value, solution.bound, x, strict=True):
            if np.isfinite(bound):
                told += 1
                assert abs(Fraction(float(value)) - want) <= Fraction(float(bound))
    assert told > 50


def test_what_adds_up_in_one_place_is_in_the_bound():
    """Ten thousand entries of which each is lost beside the first."""
    data = np.append(1.0, np.full(10_000, 1e-16))
    A = sparse.BCOO((jnp.asarray(data), jnp.zeros((10_001, 2), int)), shape=(1, 1))
    solution = pj.solve_entries(A, np.ones(1), 0, rtol=1e-6, atol=0.0)
    assert abs(float(solution.value) - 1 / (1 + 1e-12)) <= solution.bound


def test_residual_without_the_gap_is_no_bound():
    """The formula ‖r‖₁ ‖b‖∞, of a path with δ = 0.01, after ten pushes."""
    size, gap = 40, 0.01
    A = np.diag(np.full(size, 2 + gap)) - np.eye(size, k=1) - np.eye(size, k=-1)
    A[0, 0] = A[-1, -1] = 1 + gap
    b = np.ones(size)
    told = _told(A, b, 20, Tolerance(1e-3, 0.0), 400)
    error = abs(exact(A, b)[20] - told.value)
    without = told.bound * gap
    assert without < 0.02 * error
    assert error <= told.bound


def test_bound_is_that_of_the_theorem():
    """|x_i − yᵀb| ≤ ‖e_i − Aᵀy‖₁ ‖b‖∞ / δ, for all rows of the same gap."""
    A = grid(20, 0.5).toarray()
    A[np.diag_indices(400)] += 0.5 - (np.diag(A) - (np.abs(A).sum(1) - np.diag(A)))
    b = np.ones(400)
    row, col = np.nonzero(A)
    system = entries.System(row, col, A[row, col], 400)
    told = entries.Entries(system, b, Tolerance(1e-3, 0.0), 10**6).tell(190)[0]
    y = system.unit(190).solution
    bound = np.abs(np.eye(400)[190] - A.T @ y).sum() / 0.5
    np.testing.assert_allclose(told.value, y @ b, rtol=1e-14)
    np.testing.assert_allclose(told.bound, bound, rtol=1e-9)  # with rounding


def _check(solution, want, rtol):
    value, bound = np.asarray(solution.value), np.asarray(solution.bound)
    assert np.all(np.abs(value - want) <= bound)
    assert np.all(bound <= rtol * np.abs(value))
    assert not any(_codes(solution.result))


@pytest.mark.parametrize("by", ["rows", "columns"])
def test_entries_are_found_under_jit_and_vmap_over_vectors_and_matrices(by):
    rng = np.random.default_rng(0)
    A, b = dominant(rng, 60, 0.3, by, np.complex128)
    row, col = np.nonzero(A)
    operator = pj.SparseLinearOperator((A[row, col], row, col, A.shape))
    indices = np.array([3, 59])

    def solve(data, b):
        moved = pj.SparseLinearOperator((data, operator.sparsity))
        return pj.solve_entries(moved, b, indices, rtol=1e-8, atol=0.0)

    data, columns = jnp.stack([operator.data, 2j * operator.data]), jnp.stack([b, 1j * b])

    @jax.jit
    def everything(data, columns):
        single = solve(data[0], columns[0])
        return (
            single,
            jax.vmap(solve, (None, 0))(data[0], columns),
            jax.vmap(solve)(data, columns),
        )

    single, of_vectors, of_matrices = everything(data, columns)
    x = exact(A, b)[indices]
    _check(single, x, 1e-8)
    _check(of_vectors, np.stack([x, 1j * x]), 1e-8)
    _check(of_matrices, np.stack([x, x / 2]), 1e-8)


def test_entries_in_one_place_add_up_and_formats_agree():
    A = grid(6, 1.0).tocoo()
    b = np.arange(36.0)
    want = exact(A.toarray(), b)[7]
    twice = np.tile(A.row, 2), np.tile(A.col, 2)
    halves = np.concatenate([3 * A.data, -2 * A.data])
    added = sparse.BCOO(
        (jnp.asarray(halves), jnp.asarray(np.stack(twice, 1))), shape=A.shape
    )
    row, col = np.append(A.row, 36), np.append(A.col, 36)
    padded = sparse.BCOO(
        (jnp.append(A.data, 7.0), jnp.asarray(np.stack([row, col], 1))), shape=(36, 36)
    )
    for matrix in (A, added, padded, sparse.BCSR.from_scipy_sparse(A.tocsr())):
        solution = pj.solve_entries(matrix, b, 7, rtol=1e-9, atol=0.0)
        assert solution.value.shape == ()
        _check(solution, want, 1e-9)


def test_single_precision_is_certified_in_single_precision():
    A = grid(10, 1.0).astype(np.float32)
    b = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    solution = pj.solve_entries(A, b, [50, 3], rtol=1e-6, atol=0.0)
    assert solution.value.dtype == solution.bound.dtype == np.float32
    _check(solution, exact(A.toarray(), b)[[50, 3]], 1.01e-6)


@pytest.mark.parametrize("side", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_rows_read_do_not_grow_with_the_number_of_unknowns(side):
    rows = []
    for size in (100, side):
        b = np.cos(np.arange(size**2))
        index = size**2 // 2 + size // 2
        solution = pj.solve_entries(grid(size, 1.0), b, index, rtol=0.0, atol=1e-6)
        assert not solution.whole
        rows.append(int(solution.rows_read))
    assert rows[0] < 2000
    assert rows[1] < 1.1 * rows[0]


@pytest.mark.slow  # beside the solver that it is compared with
def test_entry_takes_a_tenth_of_the_rows_of_all_of_x():
    A, b = grid(100, 1.0), np.cos(np.arange(10_000))
    operator = pj.SparseLinearOperator(A, lx.positive_semidefinite_tag)
    whole = pj.linear_solve(operator, b, pj.CG(rtol=0.0, atol=1e-6))
    one = pj.solve_entries(A, b, 5050, rtol=0.0, atol=1e-6)
    assert int(one.pushes) < 0.1 * int(whole.stats["num_steps"]) * 10_000
    assert abs(float(one.value) - float(whole.value[5050])) < 2e-6


def test_random_graph_is_left_to_the_whole_solve_unless_pushes_are_limited():
    rng = np.random.default_rng(0)
    row, col = np.repeat(np.arange(2000), 4), rng.integers(0, 2000, 8000)
    A = scipy.sparse.csr_array((-np.ones(8000), (row, col)))
    A = A + scipy.sparse.diags_array(np.full(2000, 4.1))
    b = rng.standard_normal(2000)
    x = scipy.sparse.linalg.spsolve(A.tocsc(), b)
    solution = pj.solve_entries(A, b, [5, 6], rtol=1e-8, atol=0.0)
    assert solution.whole.all()
    assert (solution.rows_read == 2000).all()
    _check(solution, x[[5, 6]], 1e-8)
    limited = pj.solve_entries(
        A, b, [5, 6], rtol=1e-8, atol=0.0, max_pushes=3000, throw=False
    )
    assert (limited.pushes == 3000).all()
    assert not limited.whole.any()
    assert _codes(limited.result) == 2 * [int(lx.RESULTS.max_steps_reached._value)]
    assert np.all(np.abs(limited.value - x[[5, 6]]) <= limited.bound)


def test_sparse_vector_is_met_half_way():
    """The product of both residuals bounds the error: fewer pushes than from one side."""
    A, b = grid(100, 0.2), np.zeros(10_000)
    b[5000] = 1.0
    met = pj.solve_entries(A, b, 5004, rtol=1e-6, atol=0.0, max_pushes=10**7)
    b[::7] += 1e-30  # no longer sparse
    one_sided = pj.solve_entries(A, b, 5004, rtol=1e-6, atol=0.0, max_pushes=10**7)
    assert int(met.pushes) < 0.7 * int(one_sided.pushes)
    _check(met, scipy.sparse.linalg.spsolve(A.tocsc(), b)[5004], 1e-6)
