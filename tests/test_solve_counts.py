"""How many solves each primal, JVP and VJP issues, pinned in `solve_counts.json`.

`solves` counts applications of the primitive in the jaxpr, `loops` the loops left in the
compiled program. More fails; fewer means updating the file in the same commit.
"""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import count_primitive
from problems import PROBLEMS

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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PINNED["solves"])
def test_number_of_solves(name, mode):
    problem = PROBLEMS[name]
    function = in_mode(mode, problem.solve_arrays)
    jaxpr = jax.make_jaxpr(function)(*arrays(problem))
    got = count_primitive("linear_solve", jaxpr.jaxpr)
    assert got == PINNED["solves"][name][mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PINNED["loops"])
def test_number_of_inner_loops_in_compiled_program(name, mode):
    problem = PROBLEMS[name]
    function = jax.jit(in_mode(mode, problem.solve_arrays))
    text = function.lower(*arrays(problem)).compile().as_text()
    assert len(re.findall(r" while\(", text)) == PINNED["loops"][name][mode]


@pytest.mark.parametrize("well_posed", [True, False])
def test_cg_has_four_products_with_the_operator(well_posed):
    # To begin with, for its size; in each iteration; to recompute the residual now and
    # then; and at the end, for the residual that is told.
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
    assert len(re.findall(r"\bstablehlo\.tan\b|\bchlo\.tan\b", text)) == 4


def ormqr_operands(function, *args):
    """The shapes of (reflectors, taus, columns) of each `ormqr` compiled."""
    text = jax.jit(function).lower(*args).compile().as_text()
    shapes = []
    for line in text.splitlines():
        if "ormqr_ffi" in line:
            operands = line.split("operand_layout_constraints=")[1]
            shapes.append(re.findall(r"f64\[([\d,]*)\]\{", operands)[:3])
    return shapes


@pytest.mark.parametrize("name", ["tall-real-QR", "wide-real-QR"])
def test_qr_factors_are_not_copied_per_tangent(name):
    matrix, vector = arrays(PROBLEMS[name])
    tangents = np.random.default_rng(0).standard_normal((32, *matrix.shape))

    def push_forward(matrix, vector, tangent):
        solve = lambda matrix: PROBLEMS[name].solve_arrays(matrix, vector)
        return jax.jvp(solve, (matrix,), (tangent,))[1]

    many = jax.vmap(push_forward, in_axes=(None, None, 0))
    operands = ormqr_operands(many, matrix, vector, tangents)
    assert {reflectors for reflectors, _, _ in operands} == {"7,4"}
    assert {columns for _, _, columns in operands} == {"7,32"}


@pytest.mark.parametrize("name", ["tall-real-QR", "wide-real-QR"])
def test_qr_factors_are_not_copied_per_vector(name):
    matrix, vector = arrays(PROBLEMS[name])
    vectors = np.random.default_rng(0).standard_normal((64, *vector.shape))
    many = jax.vmap(PROBLEMS[name].solve_arrays, in_axes=(None, 0))
    operands = ormqr_operands(many, matrix, vectors)
    assert operands == [["7,4", "4", "7,64"]]


@pytest.mark.parametrize("name", ["tall-real-QR", "wide-real-QR"])
def test_qr_factors_are_not_copied_per_cotangent(name):
    matrix, vector = arrays(PROBLEMS[name])
    cotangents = np.random.default_rng(0).standard_normal((32, matrix.shape[1]))

    def pull_back(matrix, vector, cotangent):
        return jax.vjp(PROBLEMS[name].solve_arrays, matrix, vector)[1](cotangent)

    many = jax.vmap(pull_back, in_axes=(None, None, 0))
    operands = ormqr_operands(many, matrix, vector, cotangents)
    assert {reflectors for reflectors, _, _ in operands} == {"7,4"}
    assert {columns for _, _, columns in operands} == {"7,32"}
