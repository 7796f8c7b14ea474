"""What is not used of `lstsq` costs nothing under jit, read off the compiled program."""

import re
import subprocess
import sys

import drop_in_cases as cases
import jax
import jax.numpy as jnp
import pytest
from checks import count_primitive
from jax.interpreters import partial_eval

import pseudojvp as pj


pytestmark = pytest.mark.optimised

A = cases.random_array((6, 3), float, 1)
B = cases.random_array((6,), float, 2)
# So many that the reflectors are applied by the library and not one by one, and fewer
# than those of `LARGE`.
COLUMNS = cases.random_array((20, 12), float, 3)
LARGE = cases.random_array((20, 15), float, 4)


def library_calls(name, function, *args):
    text = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(f'custom_call_target="lapack_d{name}', text))


def part(which, name, throw=False):
    """x, the residual, rank or s of a single right-hand side."""
    return lambda a, b: pj.lstsq(a, b, solver=cases.LSTSQ[name], throw=throw)[which]


def solves(function):
    """Applications of the primitive left once what is not used is gone."""
    closed = jax.make_jaxpr(function)(A, B)
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    # `linear_solve_batch`: the primitive under the `vmap` over the right-hand sides.
    names = "linear_solve", "linear_solve_batch"
    return sum(count_primitive(name, used) for name in names)


@pytest.mark.default("residuals-pivoted_qr-False")
@pytest.mark.ci("*")
@pytest.mark.parametrize("throw", [True, False])
@pytest.mark.parametrize("name", ["pivoted_qr", "qr"])
@pytest.mark.parametrize("which", [0, 1], ids=["solution", "residuals"])
def test_solution_and_residuals_need_no_svd(which, name, throw):
    assert library_calls("gesdd", part(which, name, throw), A, B) == 0


@pytest.mark.slow  # one to two seconds of compiling each
@pytest.mark.parametrize("which", [0, 1], ids=["solution", "residuals"])
def test_gradients_need_no_svd(which):
    gradient = jax.grad(lambda a, b: jnp.sum(part(which, "pivoted_qr")(a, b)))
    assert library_calls("gesdd", gradient, A, B) == 0


def test_rank_needs_no_svd_unless_counted_in_the_singular_values():
    assert library_calls("gesdd", part(2, "pivoted_qr"), A, B) == 0
    assert library_calls("gesdd", part(2, "qr"), A, B) == 1


def test_singular_values_need_no_factorisation():
    assert library_calls("geqrf", part(3, "pivoted_qr"), A, B) == 0


def test_svd_computes_everything_from_one_decomposition():
    everything = lambda a, b: pj.lstsq(a, b, solver=pj.SVD())
    assert library_calls("gesdd", everything, A, B) == 1


@pytest.mark.ci("*")
@pytest.mark.parametrize("throw", [True, False])
def test_solution_and_residuals_share_one_solve(throw):
    both = lambda a, b: pj.lstsq(a, b, solver=pj.QR(), throw=throw)[:2]
    assert library_calls("ormqr", both, LARGE, COLUMNS) == 2  # Q^H b and Q c
    assert library_calls("ormqr", part(0, "qr", throw), LARGE, COLUMNS) == 1
    calls = [library_calls("trsm", f, A, B) for f in (both, part(0, "qr", throw))]
    assert calls[0] == calls[1]


def test_solution_and_residuals_share_one_loop_of_an_iterative_solver():
    both = lambda a, b: pj.lstsq(a, b, solver=pj.LSMR(), throw=False)[:2]
    text = jax.jit(both).lower(A, B).compile().as_text()
    assert text.count(" while(") == 1


def test_columns_share_one_factorisation():
    assert library_calls("geqrf", part(0, "qr"), LARGE, COLUMNS) == 1
    assert library_calls("ormqr", part(0, "qr"), LARGE, COLUMNS) == 1


@pytest.mark.default("qr", "svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_vjp_of_the_residuals_needs_no_further_solve(name):
    loss = lambda a, b: part(1, name)(a, b)[0]
    assert solves(jax.value_and_grad(loss, (0, 1))) == 1


@pytest.mark.default("qr", "svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_jvp_of_the_residuals_needs_no_further_solve(name):
    push_forward = lambda a, b: jax.jvp(part(1, name), (a, b), (a, b))
    assert solves(push_forward) == 1


@pytest.mark.parametrize(("name", "count"), [("pivoted_qr", 3), ("svd", 3), ("qr", 2)])
def test_derivatives_of_the_solution_cost_those_of_linear_solve(name, count):
    solution = part(0, name)
    assert solves(lambda a, b: jax.jvp(solution, (a, b), (a, b))) == count
    assert solves(lambda a, b: jax.vjp(solution, a, b)[1](jnp.ones(3))) == count


# On jaxlib 0.10.2 batched library calls without a data dependency, such as a QR and an
# SVD, can deadlock on two cores; in a subprocess, so that a deadlock is a failure.
_SCRIPT = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
import pseudojvp as pj

rng = np.random.default_rng(0)
a = jnp.asarray(rng.standard_normal((10000, 32, 8)))
b = jnp.asarray(rng.standard_normal((10000, 32)))

def loss(a, b):
    x, residuals, rank, s = pj.lstsq(a, b, solver=pj.{solver})
    return jnp.sum(x**2) + residuals[0], (rank, s)

function = jax.value_and_grad(loss, (0, 1), has_aux=True)
out = jax.jit(jax.vmap(function))(a, b)
print(all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(out)))
"""


# A process each, and the singular values of ten thousand matrices.
@pytest.mark.ci("pivoted_qr")
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_ten_thousand_with_gradients_and_singular_values_end(name):
    script = _SCRIPT.format(solver=cases.LSTSQ[name])
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.split() == ["True"]
