"""An order of library calls, in a batch only, and the bug of jaxlib that asks for it."""

import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from checks import count_primitive, jit

import pseudojvp as pj
from benchmarks import deadlock
from pseudojvp._base.order import after, after_in_batch


EARLIER, VECTOR = jnp.arange(1.0, 4.0), jnp.array([2.0, -1.0])
MENDED = 0, 11, 1  # the first jaxlib with which `benchmarks/deadlock.py` returns
BATCHED = [(0, None), (0, 0)]


def test_nothing_is_computed_outside_of_a_batch():
    text = jax.jit(after_in_batch).lower(EARLIER, VECTOR).as_text()
    assert "multiply" not in text
    assert "is_finite" not in text


@pytest.mark.parametrize("axes", BATCHED)
def test_a_batch_depends_on_what_is_earlier(axes):
    earlier, vector = (
        array if axis is None else jnp.stack([array, array])
        for array, axis in zip((EARLIER, VECTOR), axes, strict=True)
    )
    program = jax.make_jaxpr(jax.vmap(after_in_batch, axes))(earlier, vector).jaxpr
    assert count_primitive("is_finite", program) == 1
    out = jit(jax.vmap(after_in_batch, axes))(earlier, vector)
    np.testing.assert_array_equal(out, [VECTOR, VECTOR])


def test_a_batch_of_vectors_after_a_single_call_depends_on_nothing():
    vectors = jnp.stack([VECTOR, VECTOR])
    program = jax.make_jaxpr(jax.vmap(after_in_batch, (None, 0)))(EARLIER, vectors)
    assert count_primitive("is_finite", program.jaxpr) == 0


def test_what_is_around_a_batch_depends_on_it_too():
    program = jax.make_jaxpr(after)(EARLIER, VECTOR).jaxpr
    assert count_primitive("is_finite", program) == 1


@pytest.mark.parametrize("ordered", [after, after_in_batch])
def test_it_is_linear_in_the_tree_and_a_constant_of_what_is_earlier(ordered):
    function = lambda earlier, vector: ordered({"a": earlier}, (vector, 3 * vector))
    _, tangent = jax.jvp(function, (EARLIER, VECTOR), (EARLIER, jnp.ones(2)))
    np.testing.assert_array_equal(tangent, [[1, 1], [3, 3]])
    _, pull = jax.vjp(function, EARLIER, VECTOR)
    of_earlier, of_vector = pull((jnp.ones(2), jnp.ones(2)))
    np.testing.assert_array_equal(of_earlier, np.zeros(3))
    np.testing.assert_array_equal(of_vector, [4, 4])


def test_tangents_and_cotangents_of_a_batch_depend_on_it_too():
    function = lambda vector: after_in_batch(jax.lax.stop_gradient(vector), vector)
    tangent = lambda vector: jax.jvp(function, (vector,), (vector,))[1]
    cotangent = lambda vector: jax.vjp(function, vector)[1](vector)
    for derivative in (tangent, cotangent):
        program = jax.make_jaxpr(jax.vmap(derivative))(jnp.ones((2, 3))).jaxpr
        assert count_primitive("is_finite", program) == 2


@pytest.mark.slow  # a second
def test_gradients_of_a_batch_within_a_batch_are_those_of_each():
    matrices = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 3)))
    loss = lambda matrix: jnp.sum(pj.linear_solve(matrix, jnp.ones(4), pj.QR()).value)
    got = jit(jax.vmap(jax.vmap(jax.grad(loss))))(matrices)
    one = jit(jax.grad(loss))
    want = [[one(matrix) for matrix in row] for row in matrices]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def _version(text):
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


@pytest.mark.slow  # a process that hangs, for twenty seconds
@pytest.mark.skipif(_version(jaxlib.__version__) >= MENDED, reason="mended there")
def test_batched_library_calls_without_an_order_hang():
    assert deadlock.outcome(20) == "hangs"


def test_the_lowest_jax_that_is_allowed_needs_the_order():
    """Once it does not, `_base/order.py` can go, and each call of it."""
    path = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    dependencies = tomllib.loads(path.read_text())["project"]["dependencies"]
    (lowest,) = [name for name in dependencies if re.match(r"jax\W", name)]
    assert _version(lowest) < MENDED
