"""Two compiled programs a problem, alone and in a batch, with all that is compared."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from checks import derivatives, jit
from jaxtyping import Array
from problems import Problem, PROBLEMS


TIMES = np.array([-0.02, 0.0, 0.03])


class Answer(NamedTuple):
    """x, x', x'' along the path, and what a cotangent of x pulls back to."""

    result: Array
    x: Array
    t_x: Array
    tt_x: Array
    ct_matrix: Array
    ct_vector: Array


def cotangent(problem: Problem):
    """Of the solution, at random."""
    return random_like(np.asarray(problem.matrix(0.0))[0], 0)


def random_like(array, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(array.shape)
    if np.iscomplexobj(array):
        values = values + 1j * rng.standard_normal(array.shape)
    return values.astype(array.dtype)


def _answer(problem: Problem, t, ct_solution, poison) -> Answer:
    """With `poison` added to the first entry of A: 0, or NaN."""

    def solution(matrix, vector):
        return problem.linear_solve(
            matrix.at[0, 0].add(jnp.asarray(poison, matrix.dtype)), vector
        )

    def along_path(t):
        return solution(problem.matrix(t), problem.vector(t)).value

    def with_result(matrix, vector):
        out = solution(matrix, vector)
        return out.value, out.result

    primals = problem.matrix(t), problem.vector(t)
    _, pull_back, result = jax.vjp(with_result, *primals, has_aux=True)
    return Answer(result._value, *derivatives(along_path, 2)(t), *pull_back(ct_solution))


@ft.cache
def alone(name) -> Answer:
    """At t = 0."""
    problem = PROBLEMS[name]
    return jit(ft.partial(_answer, problem))(0.0, cotangent(problem), 0.0)


@ft.cache
def in_batch(name) -> Answer:
    """At `TIMES`, and of a fourth member with a NaN in A."""
    problem = PROBLEMS[name]
    times, poisons = np.append(TIMES, 0.0), np.array([0.0, 0.0, 0.0, np.nan])
    member = ft.partial(_answer, problem)
    return jit(jax.vmap(member, (0, None, 0)))(times, cotangent(problem), poisons)
