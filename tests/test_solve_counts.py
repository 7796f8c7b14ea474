"""How many solves each primal, JVP and VJP issues, pinned in `solve_counts.json`.

`solves` counts applications of the primitive in the jaxpr, `loops` the loops left in the
compiled program. More fails; fewer means updating the file in the same commit.
"""

import json
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import count_primitive, jit
from problems import Pinv, PROBLEMS

import pseudojvp as pj


PINNED = json.loads(pathlib.Path(__file__).with_name("solve_counts.json").read_text())
MODES = ["primal", "jvp", "vjp"]


def in_mode(mode, solve):
    """`solve(matrix, vector)` alone, with its tangent, or with its cotangents."""

    def vjp(*primals):
        solution, pull_back = jax.vjp(solve, *primals)
        return pull_back(jnp.ones_like(solution))

    functions = {"primal": solve, "jvp": lambda *p: jax.jvp(solve, p, p), "vjp": vjp}
    return functions[mode]


def arrays(problem):
    return problem.matrix(0.0), problem.vector(0.0)


@pytest.mark.default(
    *("wide-complex-*-vjp", "tall-deficient-complex-*-vjp", "definite-*-jvp"),
    *("square-complex-LU-*", "lower-triangular-*-jvp", "tridiagonal-*-jvp"),
)
@pytest.mark.ci("*")  # tracing takes a second
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PINNED["solves"])
def test_number_of_solves(name, mode):
    problem = PROBLEMS[name]
    function = in_mode(mode, problem.solve_arrays)
    jaxpr = jax.make_jaxpr(function)(*arrays(problem))
    got = count_primitive("linear_solve", jaxpr.jaxpr)
    assert got == PINNED["solves"][name][mode]


@pytest.mark.default("solver0-4", "solver1-13")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("solver", "solves"), [(pj.QR(), 4), (pj.SVD(), 13), (pj.LSMR(), 10)]
)
def test_number_of_solves_of_a_hessian_product(solver, solves):
    def loss(matrix):
        operator = lx.MatrixLinearOperator(matrix)
        return jnp.sum(pj.linear_solve(operator, jnp.ones(5), solver).value ** 2)

    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)))
    product = lambda matrix: jax.jvp(jax.grad(loss), (matrix,), (matrix,))
    jaxpr = jax.make_jaxpr(product)(matrix)
    assert count_primitive("linear_solve", jaxpr.jaxpr) == solves


class Counted(Pinv):
    """Counts how often it is traced."""

    traces: list[None] = eqx.field(static=True)

    def compute(self, state, vector, options):
        self.traces.append(None)
        return super().compute(state, vector, options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("full_rank", [True, False])
def test_no_solver_is_traced_for_the_shapes_of_a_derivative(full_rank, mode):
    problem = PROBLEMS["tall-complex-Pinv(True)"]
    solver = Counted(full_rank, traces=[])
    solve = problem._replace(solver=solver).solve_arrays
    jax.make_jaxpr(in_mode(mode, solve))(*arrays(problem))
    # Of the primal it is, in the jaxpr of the solve and in the tangent of that.
    assert len(solver.traces) == (1 if mode == "primal" else 2)


@pytest.mark.optimised
@pytest.mark.default("wide-*-Normal(CG)-primal", "*-real-CG-vjp", "*-Neumann-primal")
@pytest.mark.ci("*")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PINNED["loops"])
def test_number_of_inner_loops_in_compiled_program(name, mode):
    problem = PROBLEMS[name]
    function = jax.jit(in_mode(mode, problem.solve_arrays))
    text = function.lower(*arrays(problem)).compile().as_text()
    assert len(re.findall(r" while\(", text)) == PINNED["loops"][name][mode]


@pytest.mark.parametrize(("well_posed", "count"), [(True, 2), (False, 2)])
def test_number_of_products_with_the_operator_in_a_program_of_cg(well_posed, count):
    # To begin with, for its size; and in each pass, of a direction or of x.
    matrix, vector = np.diag([1.0, 2.0, 3.0]), np.ones(3)
    structure = jax.ShapeDtypeStruct((3,), np.float64)
    solver = pj.CG(1e-10, 1e-10, well_posed=well_posed)

    def solve(matrix, vector):
        # The tangent marks each product: nothing else in a solve computes one.
        product = lambda x: jnp.tan(jnp.arctan(matrix @ x))
        operator = lx.FunctionLinearOperator(
            product, structure, lx.positive_semidefinite_tag
        )
        return pj.linear_solve(operator, vector, solver, throw=False).value

    text = jax.jit(solve).lower(matrix, vector).as_text()
    assert len(re.findall(r"\bstablehlo\.tan\b|\bchlo\.tan\b", text)) == count


def _sums(jaxpr):
    """The sums and maxima over vectors, but those within branches."""
    inner = [
        _sums(equation.params["jaxpr"].jaxpr)
        for equation in jaxpr.eqns
        if equation.primitive.name in ("jit", "pjit")
    ]
    names = ("dot_general", "reduce_sum", "reduce_max", "reduce_and", "reduce_or")
    return sum(equation.primitive.name in names for equation in jaxpr.eqns) + sum(inner)


@pytest.mark.parametrize(
    ("solver", "preconditioner", "count"),
    [
        (pj.CG(), None, 2),
        (pj.CG(), lx.positive_semidefinite_tag, 3),
        (pj.Normal(pj.CG()), None, 2),
    ],
)
def test_number_of_sums_over_vectors_in_an_iteration_of_cg(solver, preconditioner, count):
    structure = jax.ShapeDtypeStruct((3,), np.float64)
    create = lambda tag: lx.FunctionLinearOperator(lambda x: 2 * x, structure, tag)
    operator = create(lx.positive_semidefinite_tag)
    options = {} if preconditioner is None else {"preconditioner": create(preconditioner)}

    def solve(vector):
        return solver.compute(solver.init(operator, options), vector, options)[0]

    equations = jax.make_jaxpr(solve)(np.ones(3)).jaxpr.eqns
    (loop,) = (eqn for eqn in equations if eqn.primitive.name == "while")
    assert _sums(loop.params["body_jaxpr"].jaxpr) == count


# More columns than tangents, vectors or cotangents: with fewer, Q itself is formed.
TALL = np.random.default_rng(0).standard_normal((50, 40))
MANY = 32
_shapes = pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(TALL, id="tall", marks=pytest.mark.slow),  # a program each
        pytest.param(TALL.T, id="wide"),
    ],
)


def library_operands(name, function, *args):
    """The shapes of the operands of each LAPACK call of that name that is compiled."""
    text = jit(function).lower(*args).compile().as_text()
    shapes = []
    for line in text.splitlines():
        if f"{name}_ffi" in line:
            operands = line.split("operand_layout_constraints=")[1]
            shapes.append(re.findall(r"f64\[([\d,]*)\]\{", operands)[:3])
    return shapes


def solve_by_qr(matrix, vector):
    return pj.linear_solve(lx.MatrixLinearOperator(matrix), vector, pj.QR()).value


def random_array(*shape):
    return np.random.default_rng(1).standard_normal(shape)


@_shapes
def test_qr_factors_are_not_copied_per_tangent(matrix):
    def push_forward(matrix, vector, tangent):
        solve = lambda matrix: solve_by_qr(matrix, vector)
        return jax.jvp(solve, (matrix,), (tangent,))[1]

    many = jax.vmap(push_forward, in_axes=(None, None, 0))
    vector, tangents = random_array(len(matrix)), random_array(MANY, *matrix.shape)
    operands = library_operands("ormqr", many, matrix, vector, tangents)
    assert {reflectors for reflectors, _, _ in operands} == {"50,40"}
    # Of the primal one vector, of the derivatives all at once.
    assert {columns for _, _, columns in operands} - {"50,1"} == {"50,32"}


@_shapes
def test_qr_factors_are_not_copied_per_vector(matrix):
    many = jax.vmap(solve_by_qr, in_axes=(None, 0))
    operands = library_operands("ormqr", many, matrix, random_array(MANY, len(matrix)))
    assert operands == [["50,40", "40", "50,32"]]


@_shapes
def test_qr_factors_are_not_copied_per_cotangent(matrix):
    def pull_back(matrix, vector, cotangent):
        return jax.vjp(solve_by_qr, matrix, vector)[1](cotangent)

    many = jax.vmap(pull_back, in_axes=(None, None, 0))
    rows, cols = matrix.shape
    vector, cotangents = random_array(rows), random_array(MANY, cols)
    operands = library_operands("ormqr", many, matrix, vector, cotangents)
    assert {reflectors for reflectors, _, _ in operands} == {"50,40"}
    # Of the primal one vector, of the derivatives all at once.
    assert {columns for _, _, columns in operands} - {"50,1"} == {"50,32"}


@_shapes
def test_q_is_formed_once_for_as_many_vectors_as_it_has_columns(matrix):
    many = jax.vmap(solve_by_qr, in_axes=(None, 0))
    vectors = random_array(40, len(matrix))
    assert library_operands("orgqr", many, matrix, vectors) == [["50,40", "40"]]
    assert library_operands("ormqr", many, matrix, vectors) == []
