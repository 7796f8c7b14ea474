"""What the tests of the derivatives share: compiling, nesting, comparing, counting."""

import functools as ft

import jax
import jax.extend.core as jex
import numpy as np


# Compiling is most of a test's time, and the optimised code would run a few times only.
jit = ft.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def assert_close(got, want, rtol):
    """Relative to the largest entry of `want`."""
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


def derivatives(function, order):
    """t ↦ [f, f', ..., f^(order)], by nested `jax.jvp`."""

    def extend(function):
        def extended(t):
            values, tangents = jax.jvp(function, (t,), (1.0,))
            return [*values, tangents[-1]]

        return extended

    out = lambda t: [function(t)]
    for _ in range(order):
        out = extend(out)
    return out


def count_primitive(name, jaxpr):
    """Occurrences of a primitive in a jaxpr and in all jaxprs within."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == name
        for inner in _inner_jaxprs(equation.params):
            count += count_primitive(name, inner)
    return count


def _inner_jaxprs(params):
    for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, jex.Jaxpr)):
        if isinstance(leaf, jex.ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, jex.Jaxpr):
            yield leaf
