"""Orders two and three in every mix of forward and reverse, along Σ weights |x(t)|²."""

import contextlib
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, derivatives, jit
from problems import CORE, each, marks_of, Problem, PROBLEMS
from programs import TIMES
from truth import loss_derivatives, solution_derivatives


THRICE_REVERSE = [
    "tall-complex-QR",
    "wide-complex-QR",
    "tall-deficient-complex-SVD",
    "wide-deficient-real-SVD",
    "wide-deficient-complex-PivotedQR",
    "square-complex-lineax.LU",
    "definite-complex-CG",
]


def weights(problem: Problem):
    return 1.0 + np.arange(problem.path.right.shape[-1])


def loss(problem: Problem):
    def function(t):
        solution = problem.solve(t, t)
        return jnp.sum(weights(problem) * jnp.abs(solution) ** 2)

    return function


def forward(function):
    """f' of f: R → R, or of its map over a batch."""
    return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def reverse(function):
    return jax.grad(lambda t: jnp.sum(function(t)))


class RuleClass(NamedTuple):
    """A class of the rule in `_map/primitive.py`, and a problem of it that is cheap."""

    label: str
    problem: Problem
    mixes: tuple[str, ...]  # that run by default: of those that take longest none
    loops: bool = False  # compiled, for loops are slow when run step by step
    others: str = "slow"  # when the other mixes run


# Outermost first. In one place of each mix stands `vmap`, in others before a release.
MIXES = {
    "jvp-jvp-jvp-vmap": (forward, forward, forward, jax.vmap),
    "jvp-jvp-vmap-vjp": (forward, forward, jax.vmap, reverse),
    "jvp-vmap-vjp-jvp": (forward, jax.vmap, reverse, forward),
    "vmap-jvp-vjp-vjp": (jax.vmap, forward, reverse, reverse),
    "vjp-jvp-jvp-vmap": (reverse, forward, forward, jax.vmap),
    "vjp-jvp-vmap-vjp": (reverse, forward, jax.vmap, reverse),
    "vjp-vmap-vjp-jvp": (reverse, jax.vmap, reverse, forward),
    "vmap-vjp-vjp-vjp": (jax.vmap, reverse, reverse, reverse),
}
ONE = ("vmap-vjp-vjp-vjp",)
FEW = (*ONE, "jvp-vmap-vjp-jvp")
CLASSES = [
    RuleClass("independent-columns", PROBLEMS["tall-complex-Pinv(True)"], ONE),
    RuleClass("independent-columns-and-rows", PROBLEMS["square-real-Pinv(True)"], ONE),
    RuleClass("entered-from-the-adjoint", PROBLEMS["wide-complex-Pinv(True)"], ONE),
    RuleClass(
        "deficient-with-projection",
        PROBLEMS["wide-deficient-complex-SVD"],
        (),
        others="nightly",
    ),
    RuleClass("deficient", PROBLEMS["wide-deficient-complex-Pinv(False)"], FEW),
    RuleClass(
        "neumann",
        PROBLEMS["consistent-clustered-semidefinite-complex-Neumann"],
        (),
        loops=True,
        others="nightly",
    ),
]
_OTHER_PLACES = {
    "-".join(names): tuple(transforms)
    for rules in itertools.product((("jvp", forward), ("vjp", reverse)), repeat=3)
    for place in range(4)
    for names, transforms in [
        zip(*rules[:place], ("vmap", jax.vmap), *rules[place:], strict=True)
    ]
    if "-".join(names) not in MIXES
}


def _of_classes():
    for rule in CLASSES:
        for mix, transforms in (MIXES | _OTHER_PLACES).items():
            marks = ()
            if mix not in MIXES:
                marks = pytest.mark.nightly
            elif mix not in rule.mixes:  # seconds each
                marks = marks_of("slow" if mix in ONE else rule.others)
            yield pytest.param(rule, transforms, id=f"{rule.label}-{mix}", marks=marks)


@pytest.mark.shows("third derivative")
@pytest.mark.parametrize(("rule", "transforms"), [*_of_classes()])
def test_third_derivative_of_each_class_of_the_rule(rule, transforms):
    function = loss(rule.problem)
    for transform in reversed(transforms):
        function = transform(function)
    # Step by step the small operations are compiled once, for all classes and mixes.
    with contextlib.nullcontext() if rule.loops else jax.disable_jit():
        got = (jit(function) if rule.loops else function)(jnp.asarray(TIMES))
    path = rule.problem.path
    want = [loss_derivatives(path, weights(rule.problem), t)[3] for t in TIMES]
    assert_close(got, np.stack(want), 10 * rule.problem.rtol)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        pytest.param(reverse, forward, id="vjp of jvp"),
        pytest.param(forward, reverse, id="jvp of vjp", marks=pytest.mark.nightly),
        pytest.param(reverse, reverse, id="vjp of vjp", marks=pytest.mark.nightly),
    ],
)
@each(PROBLEMS, "slow")
def test_second_derivative(problem, outer, inner):
    want = loss_derivatives(problem.path, weights(problem))[2]
    got = jit(outer(inner(loss(problem))))(0.0)
    assert got == pytest.approx(want, rel=problem.rtol)


@each(CORE, "nightly")
def test_third_tangent(problem):
    got = jit(derivatives(lambda t: problem.solve(t, t), 3))(0.0)[3]
    assert_close(got, solution_derivatives(problem.path)[3], 10 * problem.rtol)


@each(CORE, "nightly")
def test_third_derivative_by_jvp_of_vjp_of_jvp(problem):
    got = jit(forward(reverse(forward(loss(problem)))))(0.0)
    want = loss_derivatives(problem.path, weights(problem))[3]
    assert got == pytest.approx(want, rel=10 * problem.rtol)


@each(THRICE_REVERSE, "nightly")
def test_third_derivative_by_vjp_of_vjp_of_vjp(problem):
    got = jit(reverse(reverse(reverse(loss(problem)))))(0.0)
    want = loss_derivatives(problem.path, weights(problem))[3]
    assert got == pytest.approx(want, rel=10 * problem.rtol)
