"""`Woodbury`: solutions and derivatives through the parts, against the dense sum."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, jit
from test_low_rank import DTYPES, normal

import pseudojvp as pj


PSD = lx.positive_semidefinite_tag
SIZE, RANK = 7, 2


def tridiagonal(parts):
    diagonal, lower, upper, *rest = parts
    return pj.LowRankUpdate(lx.TridiagonalLinearOperator(diagonal, lower, upper), *rest)


def parts_of(dtype, shift=4.0):
    shapes = [(SIZE,), (SIZE - 1,), (SIZE - 1,), *[(SIZE, RANK)] * 2, (RANK, RANK)]
    parts = [jnp.asarray(normal(seed, shape, dtype)) for seed, shape in enumerate(shapes)]
    return [parts[0] + jnp.asarray(shift, dtype), *parts[1:]]


def vector_of(dtype, seed=20):
    return jnp.asarray(normal(seed, (SIZE,), dtype))


AUTO = pj.AutoLinearSolver(True)


def solve(operator, vector, solver=AUTO, **kwargs):
    return pj.linear_solve(operator, vector, solver, throw=False, **kwargs)


def _moved(parts, t):
    """Along a line, for a derivative in every part at once."""
    directions = [
        jnp.asarray(normal(30 + i, p.shape, float)) for i, p in enumerate(parts)
    ]
    pairs = zip(parts, directions, strict=True)
    return [part + (t * way).astype(part.dtype) for part, way in pairs]


@pytest.mark.ci("*")
@DTYPES
def test_derivatives_in_all_parts_are_those_of_the_dense_solve_to_third_order(dtype):
    parts, vector = parts_of(dtype), vector_of(dtype)

    def derivatives(solution):
        functions = [lambda t: solution(tridiagonal(_moved(parts, t)), vector)]
        for _ in range(3):
            functions.append(jax.jacfwd(functions[-1]))
        return jit(lambda t: [function(t) for function in functions])(0.0)

    got = derivatives(lambda operator, b: solve(operator, b).value)
    want = derivatives(lambda operator, b: jnp.linalg.solve(operator.as_matrix(), b))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-10)


@pytest.mark.slow
@DTYPES
def test_gradients_by_each_part_are_those_of_the_dense_solve(dtype):
    parts, vector = parts_of(dtype), vector_of(dtype)

    def gradients(solution):
        def loss(parts, vector):
            x = solution(tridiagonal(parts), vector)
            return jnp.sum(jnp.abs(x) ** 2) + jnp.real(jnp.sum(x))

        def curved(parts, vector):  # a second derivative too
            first = jax.grad(loss)(parts, vector)
            return sum(jnp.sum(jnp.abs(g) ** 2) for g in first)

        both = lambda *a: (jax.grad(loss, (0, 1))(*a), jax.grad(curved)(*a))
        return jax.tree.leaves(jit(both)(parts, vector))

    got = gradients(lambda operator, b: solve(operator, b).value)
    want = gradients(lambda operator, b: jnp.linalg.solve(operator.as_matrix(), b))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-9)


def _definite(seed=3):
    root = normal(seed, (SIZE, SIZE), float)
    return lx.MatrixLinearOperator(jnp.asarray(root @ root.T / SIZE + np.eye(SIZE)), PSD)


_FUNCTION = pj.FunctionSolver(lambda a, b: jnp.linalg.solve(a.as_matrix(), b))
SOLVERS = {
    "LU": (pj.LU(), 1e-12),
    "Cholesky": (pj.Cholesky(), 1e-12),
    "lineax.LU": (lx.LU(), 1e-12),
    "SVD": (pj.SVD(), 1e-12),
    "CG": (pj.CG(1e-12), 1e-9),
    "GMRES": (pj.GMRES(1e-12), 1e-9),
    "lineax.CG": (lx.CG(1e-12, 1e-12), 1e-9),
    "Normal(CG)": (pj.Normal(pj.CG(1e-12)), 1e-9),
    "Neumann": (pj.Neumann(40, 0.3), 1e-9),  # refined
    "FunctionSolver": (_FUNCTION, 1e-7),
}


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", SOLVERS)
def test_any_solver_of_what_is_updated_serves(name):
    solver, rtol = SOLVERS[name]
    u, v = (jnp.asarray(normal(seed, (SIZE, RANK), float)) for seed in (0, 1))
    vector = vector_of(float)

    @jit
    def program(u, v, vector):
        loss = lambda u: jnp.sum(
            solve(pj.LowRankUpdate(_definite(), u, v), vector, pj.Woodbury(solver)).value
        )
        solution = solve(pj.LowRankUpdate(_definite(), u, v), vector, pj.Woodbury(solver))
        return solution.value, jax.grad(loss)(u), solution.result._value

    value, gradient, result = program(u, v, vector)
    matrix = np.asarray(_definite().as_matrix()) + np.asarray(u @ v.T)
    want = np.linalg.solve(matrix, vector)
    assert result == lx.RESULTS.successful._value
    assert_close(value, want, rtol)
    adjoint = np.linalg.solve(matrix.T, np.ones(SIZE))
    assert_close(gradient, -np.outer(adjoint, np.asarray(v).T @ want), 10 * rtol)


def test_the_automatic_solver_picks_it_and_the_solver_of_what_is_updated():
    select = pj.AutoLinearSolver(True).select_solver
    u = jnp.ones((SIZE, 1))
    operator = pj.LowRankUpdate(lx.DiagonalLinearOperator(jnp.ones(SIZE)), u)
    assert isinstance(select(operator), pj.Woodbury)
    tagged = lx.TaggedLinearOperator(operator, PSD)
    assert isinstance(select(tagged), pj.Woodbury)
    assert isinstance(pj.AutoLinearSolver(None).select_solver(operator), pj.Woodbury)
    full = pj.LowRankUpdate(operator.operator, jnp.eye(SIZE))
    assert isinstance(select(full), pj.LU)
    any_rank = pj.AutoLinearSolver(False).select_solver(operator)
    assert isinstance(any_rank, pj.PivotedQR)
    wide = pj.LowRankUpdate(jnp.ones((3, 5)), jnp.ones((3, 1)), jnp.ones((5, 1)))
    assert isinstance(pj.AutoLinearSolver(None).select_solver(wide), pj.QR)


@pytest.mark.slow
@DTYPES
def test_an_update_of_an_update_is_solved_by_its_parts(dtype):
    parts, vector = parts_of(dtype), vector_of(dtype)
    inner = tridiagonal(parts)
    more = jnp.asarray(normal(40, (SIZE, 1), dtype))
    operator = pj.LowRankUpdate(inner, more)
    got, result = jit(
        lambda: (lambda s: (s.value, s.result._value))(solve(operator, vector))
    )()
    assert result == lx.RESULTS.successful._value
    assert_close(got, np.linalg.solve(operator.as_matrix(), vector), 1e-12)


@pytest.mark.slow  # two seconds
def test_vectors_may_be_pytrees():
    structure = jax.eval_shape(lambda: {"a": jnp.zeros(2), "b": jnp.zeros((3, 1))})
    scale = lambda tree: {"a": 2 * tree["a"], "b": 3 * tree["b"]}
    a = lx.FunctionLinearOperator(scale, structure)
    u = jnp.asarray(normal(0, (5, 2), float))
    operator = pj.LowRankUpdate(a, u, jnp.asarray(normal(1, (5, 2), float)))
    b = {"a": jnp.arange(2.0), "b": jnp.ones((3, 1))}
    x = solve(operator, b).value
    flat = jnp.concatenate([x["a"], x["b"][:, 0]])
    want = np.linalg.solve(operator.as_matrix(), np.array([0.0, 1, 1, 1, 1]))
    assert_close(flat, want, 1e-12)


@pytest.mark.ci("*")
@DTYPES
def test_every_block_of_the_map_is_that_of_the_dense_sum(dtype):
    parts, vector = parts_of(dtype), vector_of(dtype)
    operator = tridiagonal(parts)

    @jit
    def blocks(vector):
        factorised = pj.factorise(operator, throw=False)
        return factorised.adjoint_solve(vector), factorised.gram_inverse(vector)

    adjoint, gram = blocks(vector)
    matrix = np.asarray(operator.as_matrix())
    assert_close(adjoint, np.linalg.solve(matrix.conj().T, vector), 1e-12)
    assert_close(gram, np.linalg.solve(matrix.conj().T @ matrix, vector), 1e-11)


@pytest.mark.slow  # three seconds
def test_the_state_follows_the_laws_of_transposes_and_conjugates():
    parts, vector = parts_of(complex), vector_of(complex)
    operator, solver = tridiagonal(parts), pj.Woodbury()
    matrix = np.asarray(operator.as_matrix())
    maps = {"transpose": np.transpose, "conj": np.conj}

    @ft.partial(jit, static_argnums=1)
    def solution(vector, names):
        state, options = solver.init(operator, {}), {}
        for name in names:
            state, options = getattr(solver, name)(state, options)
        return solver.compute(state, vector, options)[0]

    for names in [(), ("transpose",), ("conj",), ("transpose", "conj"), ("conj",) * 2]:
        expected = matrix
        for name in names:
            expected = maps[name](expected)
        assert_close(solution(vector, names), np.linalg.solve(expected, vector), 1e-12)


@pytest.mark.slow  # two seconds
def test_a_batch_of_updates_is_solved_as_each():
    u = jnp.asarray(normal(0, (4, SIZE, 1), float))
    a = lx.DiagonalLinearOperator(jnp.arange(1.0, SIZE + 1))
    vector = vector_of(float)
    gradient = jax.grad(lambda u: jnp.sum(solve(pj.LowRankUpdate(a, u), vector).value))
    got = jit(jax.vmap(gradient))(u)
    for one, part in zip(got, u, strict=True):
        matrix = np.diag(np.arange(1.0, SIZE + 1)) + np.asarray(part @ part.T)
        x, y = np.linalg.solve(matrix, np.stack([vector, np.ones(SIZE)], 1)).T
        want = -np.outer(y, x @ part) - np.outer(x, y @ part)
        assert_close(one, want, 1e-11)


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"]
)
def test_lower_precisions_have_their_digits(dtype):
    diagonal = jnp.arange(1.0, SIZE + 1).astype(dtype)
    u = jnp.asarray(normal(0, (SIZE, 1), float)).astype(dtype)
    operator = pj.LowRankUpdate(lx.DiagonalLinearOperator(diagonal), u)
    vector = jnp.ones(SIZE, dtype)
    solution = solve(operator, vector)
    assert solution.result == lx.RESULTS.successful
    assert solution.value.dtype == dtype
    matrix = (
        np.diag(np.arange(1.0, SIZE + 1)) + np.asarray(u, float) @ np.asarray(u, float).T
    )
    want = np.linalg.solve(matrix, np.ones(SIZE))
    assert_close(
        np.asarray(solution.value, float), want, 20 * float(jnp.finfo(dtype).eps)
    )


@pytest.mark.slow
def test_a_preconditioner_is_one_of_what_is_updated():
    diagonal = jnp.logspace(0, 6, SIZE)
    a = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(diagonal), PSD)
    u = jnp.ones((SIZE, 1))
    solver = pj.Woodbury(pj.CG(1e-12))
    options = {"preconditioner": pj.jacobi(a)}
    with_one = solve(pj.LowRankUpdate(a, u), u[:, 0], solver, options=options)
    without = solve(pj.LowRankUpdate(a, u), u[:, 0], solver)
    assert 2 * with_one.stats["num_steps"] < without.stats["num_steps"]
    matrix = np.diag(np.asarray(diagonal)) + 1
    assert_close(with_one.value, np.linalg.solve(matrix, np.ones(SIZE)), 1e-9)
