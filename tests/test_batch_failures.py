"""A batch of small matrices, some of which are singular or not finite."""

import jax
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.CholeskyQR(), pj.Normal(pj.Cholesky())],
    ids=lambda solver: type(solver).__name__,
)
def test_what_is_wrong_with_one_of_a_batch_is_told_of_that_one(solver):
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((100, 6, 3))
    matrices[3, :, 2] = matrices[3, :, 1]
    matrices[5, 2, 1] = np.nan
    matrices[7, 2, 1] = np.inf
    matrices[9] = 0

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    vectors = rng.standard_normal((100, 6))
    value, successful = jax.jit(jax.vmap(solve))(matrices, vectors)
    sound = ~np.isin(np.arange(100), [3, 5, 7, 9])
    assert successful.tolist() == sound.tolist()
    want = np.linalg.pinv(matrices[sound]) @ vectors[sound][..., None]
    np.testing.assert_allclose(value[sound], want[..., 0], rtol=1e-9)
