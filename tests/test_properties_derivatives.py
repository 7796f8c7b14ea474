"""Derivatives of random systems: Golub & Pereyra's formula, and adjoint to each other."""

import functools as ft

import jax
import numpy as np
from checks import jit
from claims import CLAIMS, each_cell
from hypothesis import given, settings, strategies as st
from strategies import direction, FIXED, numbers, systems, t_solution
from truth import pairing

import pseudojvp as pj


# With b in the range only, a derivative is not that of A†b: the tangent leaves the range.
DIFFERENTIABLE = [label for label in CLAIMS if not CLAIMS[label].consistent]
FEW = ("Cholesky", "CG")  # a compilation of seconds each
each_differentiable_cell = each_cell(DIFFERENTIABLE, default=FEW)


@ft.cache
def compiled(cell):
    """The tangent of x, and the cotangents of A and b."""
    claim, dtype = cell.claim, cell.dtype
    solver = claim.solver(dtype)

    def solve(matrix, vector):
        operator = claim.operator(matrix)
        return pj.linear_solve(operator, vector, solver, throw=False).value

    def derivatives(matrix, vector, t_matrix, t_vector, ct_solution):
        primals, tangents = (matrix, vector), (t_matrix, t_vector)
        _, t_solution = jax.jvp(solve, primals, tangents)
        _, pull = jax.vjp(solve, *primals)
        return t_solution, *pull(ct_solution)

    return jit(derivatives)


class Drawn:
    """A system, a direction that keeps its rank, a cotangent, and what comes of them."""

    def __init__(self, cell, data):
        claim, shape, dtype = cell.claim, cell.shape, cell.dtype
        self.system = data.draw(systems(cell, scaled=False, condition=10.0))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        self.t_matrix = direction(rng, claim, self.system, dtype).astype(dtype)
        self.t_vector = numbers(rng, shape[:1], dtype, False).astype(dtype)
        self.ct_solution = numbers(rng, shape[1:], dtype, False).astype(dtype)
        vectors = self.t_matrix, self.t_vector, self.ct_solution
        out = compiled(cell)(self.system.matrix, self.system.vector, *vectors)
        self.t_solution, self.ct_matrix, self.ct_vector = map(np.asarray, out)

    def bound(self, claim, dtype):
        """Of the tangent: a backward error in each of up to three nested solves."""
        inverse = np.linalg.norm(self.system.pseudoinverse)
        matrix, vector = map(np.linalg.norm, (self.t_matrix, self.t_vector))
        size = inverse * (matrix * inverse * (1 + self.system.vector_norm) + vector)
        return (
            1000 * claim.unit(dtype) * self.system.condition ** (2 * claim.power) * size
        )


@each_differentiable_cell
@settings(FIXED, max_examples=30)
@given(data=st.data())
def test_tangent_along_constant_rank_is_that_of_the_pseudoinverse(cell, data):
    drawn = Drawn(cell, data)
    want = t_solution(drawn.system, drawn.t_matrix, drawn.t_vector)
    error = np.linalg.norm(drawn.t_solution - want)
    assert error <= drawn.bound(cell.claim, cell.dtype)


@each_differentiable_cell
@settings(FIXED, max_examples=30)
@given(data=st.data())
def test_cotangents_are_adjoint_to_the_tangent(cell, data):
    drawn = Drawn(cell, data)
    forward = pairing((drawn.ct_solution, drawn.t_solution))
    backward = pairing(
        (drawn.ct_matrix, drawn.t_matrix), (drawn.ct_vector, drawn.t_vector)
    )
    bound = drawn.bound(cell.claim, cell.dtype) * np.linalg.norm(drawn.ct_solution)
    assert abs(forward - backward) <= bound
