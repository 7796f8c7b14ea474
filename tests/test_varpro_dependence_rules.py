"""Each rule of `_varpro/dependence.py`, against tangents pushed through as numbers.

The pattern of an array says which parameters move which entries. Here each parameter has
a tangent of random numbers where the pattern of an operand has it, and the operation
takes one tangent after the other: what is not zero afterwards depends on the parameter.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.interpreters.ad as ad
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudojvp._varpro import dependence


Q = 4


class Rule(NamedTuple):
    """An operation that is linear in the operands that `moving` marks together.

    - `shapes`: of all operands; those that do not move are constants.
    - `exact`: the pattern is that of the numbers, and not only above it.
    """

    apply: Callable
    shapes: tuple[tuple[int, ...], ...]
    moving: tuple[bool, ...] = (True,)
    exact: bool = True
    dtype: type = float


def _dot(contracted, batched):
    return lambda a, b: lax.dot_general(a, b, (contracted, batched))


_BOTH = (True, True)
_SHAPE = (3, 2)
_MATRIX = ((2, 3, 4),)
RULES = {
    "add": Rule(lax.add, (_SHAPE, _SHAPE), _BOTH),
    "add-one": Rule(lax.add, (_SHAPE, _SHAPE), (True, False)),
    "add_any": Rule(ad.add_jaxvals, (_SHAPE, _SHAPE), _BOTH),
    "broadcast_in_dim": Rule(
        lambda x: lax.broadcast_in_dim(x, (2, 3, 5, 1), (1, 3)), ((3, 1),)
    ),
    "broadcast_in_dim-longer": Rule(
        lambda x: lax.broadcast_in_dim(x, (2, 3, 5), (1, 2)), ((3, 1),)
    ),
    "broadcast_in_dim-scalar": Rule(lambda x: lax.broadcast(x, (2, 3)), ((),)),
    "complex": Rule(lax.complex, (_SHAPE, _SHAPE), _BOTH),
    "concatenate": Rule(
        lambda *arrays: lax.concatenate(arrays, 1),
        ((3, 2), (3, 1), (3, 4)),
        (True, False, True),
    ),
    "concatenate-first": Rule(
        lambda *arrays: lax.concatenate(arrays, 0), ((3, 2), (1, 2)), _BOTH
    ),
    "conj": Rule(lax.conj, (_SHAPE,), dtype=complex),
    "convert_element_type": Rule(lambda x: x.astype(jnp.float32), (_SHAPE,)),
    "copy": Rule(jnp.copy, (_SHAPE,)),
    "div": Rule(lax.div, (_SHAPE, _SHAPE), (True, False)),
    "dot_general": Rule(_dot(((1,), (0,)), ((), ())), ((2, 3), (3, 4)), (True, False)),
    "dot_general-right": Rule(
        _dot(((1,), (0,)), ((), ())), ((2, 3), (3, 4)), (False, True)
    ),
    "dot_general-last": Rule(
        _dot(((0,), (1,)), ((), ())), ((3, 2), (4, 3)), (False, True)
    ),
    "dot_general-batch": Rule(
        _dot(((2, 3), (1, 3)), ((1,), (2,))), ((2, 5, 3, 4), (6, 3, 5, 4)), (True, False)
    ),
    "dot_general-batch-right": Rule(
        _dot(((2, 3), (1, 3)), ((1,), (2,))), ((2, 5, 3, 4), (6, 3, 5, 4)), (False, True)
    ),
    "dot_general-outer": Rule(_dot(((), ()), ((), ())), ((2,), (3,)), (False, True)),
    "imag": Rule(lax.imag, (_SHAPE,), dtype=complex),
    "jit": Rule(jax.jit(lambda x: 2 * x.T), (_SHAPE,)),
    "mul": Rule(lax.mul, (_SHAPE, _SHAPE), (False, True)),
    "neg": Rule(lax.neg, (_SHAPE,)),
    "real": Rule(lax.real, (_SHAPE,), dtype=complex),
    "reduce_precision": Rule(lambda x: lax.reduce_precision(x, 8, 7), (_SHAPE,)),
    "reduce_sum": Rule(lambda x: jnp.sum(x, (0, 2)), _MATRIX),
    "reduce_sum-all": Rule(jnp.sum, _MATRIX),
    "reshape": Rule(lambda x: lax.reshape(x, (3, 8)), _MATRIX),
    "reshape-ones": Rule(lambda x: lax.reshape(x, (2, 1, 3, 4, 1)), ((1, 2, 3, 4),)),
    "reshape-order": Rule(
        lambda x: lax.reshape(x, (4, 6), (2, 0, 1)), _MATRIX, exact=False
    ),
    "select_n": Rule(
        lambda a, b: lax.select_n(np.eye(3, 2, dtype=bool), a, b),
        (_SHAPE, _SHAPE),
        _BOTH,
        exact=False,
    ),
    "slice": Rule(lambda x: lax.slice(x, (0, 1, 1), (2, 2, 4), (1, 1, 2)), _MATRIX),
    "slice-plain": Rule(lambda x: lax.slice(x, (1, 0, 1), (2, 3, 3)), _MATRIX),
    "split": Rule(lambda x: lax.split(x, (1, 3), 2), _MATRIX),
    "squeeze": Rule(lambda x: lax.squeeze(x, (0, 2)), ((1, 3, 1, 2),)),
    "stack": Rule(
        lambda *x: jnp.stack(x, 1), (_SHAPE, _SHAPE, _SHAPE), (True, False, True)
    ),
    "sub": Rule(lax.sub, (_SHAPE, _SHAPE), _BOTH),
    "transpose": Rule(lambda x: lax.transpose(x, (2, 0, 1)), _MATRIX),
    "unstack": Rule(lambda x: jnp.unstack(x, axis=1), _MATRIX),
    # What no rule knows.
    "cumsum": Rule(lambda x: lax.cumsum(x, 1), _MATRIX, exact=False),
    "rev": Rule(lambda x: lax.rev(x, (1,)), _MATRIX, exact=False),
}
_NOT_HERE = {"copy_p", "pjit"}  # names of "copy" and "jit" in other versions of JAX


def _named(name: str) -> str:
    return name.partition("-")[0]


def _random_patterns(rule, rng):
    """One for each operand, some axes of length one where the array's is longer."""
    patterns = []
    for shape, moves in zip(rule.shapes, rule.moving, strict=True):
        short = [1 if rng.random() < 0.4 else size for size in shape]
        pattern = rng.random((Q, *short)) < 0.3
        patterns.append(pattern if moves else None)
    return patterns


def _numbers(rng, shape, dtype):
    values = rng.uniform(0.5, 1.5, shape)
    return values + 1j * rng.uniform(0.5, 1.5, shape) if dtype is complex else values


def _numeric_patterns(rule, apply, patterns, rng):
    """Those of what the operation returns for one tangent after the other."""
    constants = [_numbers(rng, shape, rule.dtype) for shape in rule.shapes]

    def push(parameter):
        arrays = [
            constant if pattern is None else np.where(pattern[parameter], constant, 0)
            for constant, pattern in zip(constants, patterns, strict=True)
        ]
        return jax.tree_util.tree_leaves(apply(*arrays))

    # What constants add is not of the tangent.
    still = [
        constant if pattern is None else np.zeros_like(constant)
        for constant, pattern in zip(constants, patterns, strict=True)
    ]
    base = jax.tree_util.tree_leaves(apply(*still))
    pushed = [push(parameter) for parameter in range(Q)]
    return [
        np.stack([np.asarray(one[i]) != np.asarray(base[i]) for one in pushed])
        for i in range(len(base))
    ]


def _equation(name, rule):
    arrays = [np.ones(shape, rule.dtype) for shape in rule.shapes]
    (equation,) = jax.make_jaxpr(rule.apply)(*arrays).jaxpr.eqns
    assert equation.primitive.name == _named(name)
    return equation


@pytest.mark.parametrize("name", RULES)
def test_pattern_of_a_rule_is_that_of_tangents_pushed_through_as_numbers(name):
    rule = RULES[name]
    rng = np.random.default_rng(0)
    equation, apply = _equation(name, rule), jax.jit(rule.apply)
    for _ in range(10):
        patterns = _random_patterns(rule, rng)
        # Closed-over constants stand in front.
        constants = [None] * (len(equation.invars) - len(patterns))
        got = dependence._outcome(equation, constants + patterns)
        truth = _numeric_patterns(rule, apply, patterns, rng)
        for pattern, true, atom in zip(got, truth, equation.outvars, strict=True):
            full = np.broadcast_to(
                False if pattern is None else pattern, (Q, *atom.aval.shape)
            )
            assert np.all(full >= true)
            if rule.exact:
                np.testing.assert_array_equal(full, true)


def test_each_rule_has_a_case():
    known = dependence._ELEMENTWISE | dependence._MOVEMENTS.keys() | {"jit", "pjit"}
    assert known <= {_named(name) for name in RULES} | _NOT_HERE


def test_two_moving_factors_of_a_product_move_all():
    """No linear map multiplies them, so that there is no rule for it."""
    equation = _equation("dot_general", RULES["dot_general"])
    one = np.zeros((Q, 2, 3), bool)
    one[0, 1, 2] = True
    other = np.zeros((Q, 3, 4), bool)
    other[1, 0, 0] = True
    (pattern,) = dependence._outcome(equation, [one, other])
    full = np.broadcast_to(pattern, (Q, 2, 4))
    assert np.array_equal(full.all((1, 2)), [True, True, False, False])


def test_a_pattern_that_would_be_too_large_moves_all(monkeypatch):
    monkeypatch.setattr(dependence, "_LARGEST", 20)
    equation = _equation("reshape", RULES["reshape"])
    pattern = np.zeros((Q, 2, 3, 4), bool)
    pattern[2, 0, 0, 0] = True
    (got,) = dependence._outcome(equation, [pattern])
    np.testing.assert_array_equal(got[:, 0, 0], [False, False, True, False])
    assert got.shape == (Q, 1, 1)
