"""What a failed solve hands back under `throw=False`: one rule for all functions.

With a `result` beside it, what the solver has; alone, NaN.
"""

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


DIVERGING, VECTOR = np.diag([3.0, 1.0]), np.ones(2)
NEUMANN = pj.Neumann(num_terms=5)
PARTIAL = np.array([sum((-2.0) ** k for k in range(6)), 1.0])


def inverse():
    return pj.invert(DIVERGING, NEUMANN, throw=False)


def factorised():
    return pj.factorise(DIVERGING, NEUMANN, throw=False)


WITH_RESULT = {
    "linear_solve": lambda: pj.linear_solve(DIVERGING, VECTOR, NEUMANN, throw=False),
    "inverse.solve": lambda: inverse().solve(VECTOR),
    "inverse.T.solve": lambda: inverse().T.solve(VECTOR),
}
ALONE = {
    "inverse.mv": lambda: inverse().mv(VECTOR),
    "inverse.mm": lambda: inverse().mm(VECTOR[:, None]),
    "inverse.T.mv": lambda: inverse().T.mv(VECTOR),
    "Factorised.solve": lambda: factorised().solve(VECTOR),
    "Factorised.residual": lambda: factorised().residual(VECTOR),
    "Factorised.adjoint_solve": lambda: factorised().adjoint_solve(VECTOR),
    "Factorised.gram_inverse": lambda: factorised().gram_inverse(VECTOR),
    "project": lambda: pj.project(DIVERGING, VECTOR, NEUMANN, throw=False).residual,
    "sparse_solve": lambda: pj.sparse_solve(
        jsparse.BCOO.fromdense(DIVERGING), VECTOR, NEUMANN, throw=False
    ),
    "sparse_lstsq": lambda: pj.sparse_lstsq(
        jsparse.BCOO.fromdense(DIVERGING), VECTOR, NEUMANN, throw=False
    ),
    "lstsq": lambda: pj.lstsq(np.ones((2, 2)), VECTOR, solver=pj.QR(), throw=False)[0],
    "pinv": lambda: pj.pinv(np.full((2, 2), np.inf), throw=False),
    "gradient": lambda: jax.grad(
        lambda b: pj.linear_solve(DIVERGING, b, NEUMANN, throw=False).value[0]
    )(VECTOR),
    "slogdet": lambda: jnp.stack(
        pj.slogdet(
            lx.MatrixLinearOperator(-jnp.eye(2), lx.positive_semidefinite_tag),
            throw=False,
        )
    ),
}


@pytest.mark.default("inverse.solve")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", WITH_RESULT)
def test_value_beside_a_result_is_what_the_solver_has(name):
    solution = WITH_RESULT[name]()
    assert solution.result == lx.RESULTS.breakdown
    np.testing.assert_allclose(solution.value, PARTIAL, rtol=1e-14)


@pytest.mark.default("inverse.mm")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ALONE)
def test_value_alone_is_nan(name):
    assert np.all(np.isnan(ALONE[name]()))
