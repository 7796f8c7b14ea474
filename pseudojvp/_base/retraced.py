"""Loops and branches of a traced function, for arguments over explicit axes of a mesh.

They keep the types of what they carry, which was on no mesh while they were traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.lax as lax

from .axes import placed_as


Evaluate = Callable[[jex.ClosedJaxpr, list[Any]], list[Any]]


def is_retraced(step: jex.JaxprEqn) -> bool:
    of_platform = step.params.get("branches_platforms") is not None
    return step.primitive.name in _RULES and not of_platform


def retraced(step: jex.JaxprEqn, inputs: list[Any], evaluate: Evaluate) -> list[Any]:
    """What a loop or a branch returns, traced again of `inputs`."""
    return _RULES[step.primitive.name](evaluate, inputs, step.params)


def _scan(evaluate: Evaluate, inputs: list[Any], params: dict) -> list[Any]:
    if "num_consts" in params:
        counts = params["num_consts"], params["num_carry"]
    else:  # later than JAX 0.10
        counts = map(len, params["ft_in"].unpack()[:2])
    consts, carry, xs = _parts(inputs, *counts)
    count = len(carry)

    def step(carry, xs):
        out = evaluate(params["jaxpr"], [*consts, *carry, *xs])
        return out[:count], out[count:]

    carry = _settled(lambda carry: step(carry, [x[0] for x in xs])[0], carry)

    def step_alike(carry, xs):
        out, ys = step(carry, xs)
        return _placed(out, carry), ys

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(step_alike, carry, xs, **options)
    return [*carry, *ys]


def _while(evaluate: Evaluate, inputs: list[Any], params: dict) -> list[Any]:
    counts = params["cond_nconsts"], params["body_nconsts"]
    of_going, of_step, carry = _parts(inputs, *counts)
    step = lambda carry: evaluate(params["body_jaxpr"], [*of_step, *carry])
    going = lambda carry: evaluate(params["cond_jaxpr"], [*of_going, *carry])[0]
    step_alike = lambda carry: _placed(step(carry), carry)
    return lax.while_loop(going, step_alike, _settled(step, carry))


def _cond(evaluate: Evaluate, inputs: list[Any], params: dict) -> list[Any]:
    index, *operands = inputs
    branches = [
        lambda *operands, branch=branch: evaluate(branch, [*operands])
        for branch in params["branches"]
    ]
    types = jax.eval_shape(branches[0], *operands)
    for branch in branches[1:]:
        others = jax.eval_shape(branch, *operands)
        pairs = zip(types, others, strict=True)
        types = [one if _is_explicit(one) else other for one, other in pairs]
    alike = [
        lambda *operands, branch=branch: _placed(branch(*operands), types)
        for branch in branches
    ]
    return lax.switch(index, alike, *operands)


_RULES = {"scan": _scan, "while": _while, "cond": _cond}


def _parts(inputs: list[Any], first: int, second: int) -> tuple[list, list, list]:
    return inputs[:first], inputs[first : first + second], inputs[first + second :]


def _is_explicit(leaf: Any) -> bool:
    return len(jax.typeof(leaf).sharding.mesh.explicit_axes) > 0


def _placed(arrays: list[Any], types: list[Any]) -> list[Any]:
    pairs = zip(types, arrays, strict=True)
    return [placed_as(jax.typeof(one), array) for one, array in pairs]


def _settled(step: Callable, carry: list[Any]) -> list[Any]:
    """`carry`, sharded as what `step` returns."""
    shardings = lambda arrays: [jax.typeof(array).sharding for array in arrays]
    while True:
        placed = _placed(carry, jax.eval_shape(step, carry))
        if shardings(placed) == shardings(carry):
            return placed
        carry = placed
