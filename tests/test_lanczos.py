"""The tridiagonal matrix of a run, against Lanczos in NumPy."""

import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 12
VALUES = np.geomspace(0.5, 40, SIZE)
SOLVERS = {
    "CG": pj.CG(1e-12, lanczos=True),
    "MINRES": pj.MINRES(1e-12, lanczos=True),
    "MINRES(well_posed=True)": pj.MINRES(1e-12, well_posed=True, lanczos=True),
}
each = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def lanczos(matrix, vector, steps):
    """Diagonal, what stands beside it, by vectors that are orthogonal to rounding."""
    basis, alphas, betas = [vector / np.linalg.norm(vector)], [], []
    for _ in range(steps):
        image = matrix @ basis[-1]
        alphas.append(np.vdot(basis[-1], image).real)
        for _ in range(2):
            for v in basis:
                image = image - np.vdot(v, image) * v
        betas.append(np.linalg.norm(image))
        basis.append(image / betas[-1])
    return np.array(alphas), np.array(betas[:-1])


def _kept(stats):
    """Without the NaN at the end."""
    alphas, betas = stats["lanczos"]["alphas"], stats["lanczos"]["betas"]
    steps = int(np.isfinite(alphas).sum())
    assert np.isfinite(alphas[:steps]).all()
    assert np.isfinite(betas[: steps - 1]).all()
    assert np.isnan(betas[steps - 1 :]).all()
    return alphas[:steps], betas[: steps - 1]


def _matrix_of(alphas, betas):
    return np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)


@pytest.mark.default("CG-True", "MINRES-False")
@pytest.mark.ci("*")
@pytest.mark.parametrize("is_complex", [False, True])
@each
def test_tridiagonal_is_that_of_lanczos_from_the_right_hand_side(solver, is_complex):
    matrix = 1e3 * krylov.hermitian(0, is_complex, VALUES)
    vector = krylov.random(1, is_complex, SIZE)
    _, successful, _, stats = krylov.solve(matrix, vector, solver, krylov.PSD)
    got = _kept(stats)
    want = lanczos(matrix, vector, 6)
    assert successful
    assert len(got[0]) == stats["num_steps"]
    np.testing.assert_allclose(got[0][:6], want[0], rtol=1e-8)
    np.testing.assert_allclose(got[1][:5], want[1], rtol=1e-8)
    assert stats["lanczos"]["alphas"].shape == (10 * SIZE,)
    assert stats["lanczos"]["betas"].shape == (10 * SIZE - 1,)


@pytest.mark.default("CG")
@pytest.mark.ci("*")
@each
def test_extreme_eigenvalues_and_log_determinant_by_quadrature(solver):
    matrix, vector = krylov.hermitian(0, False, VALUES), krylov.random(1, False, SIZE)
    *_, stats = krylov.solve(matrix, vector, solver, krylov.PSD)
    nodes, vectors = np.linalg.eigh(_matrix_of(*_kept(stats)))
    np.testing.assert_allclose(nodes[[0, -1]], VALUES[[0, -1]], rtol=1e-8)
    # b' log(A) b, whose mean over random b is log det A.
    got = np.linalg.norm(vector) ** 2 * np.sum(vectors[0] ** 2 * np.log(nodes))
    values, basis = np.linalg.eigh(matrix)
    np.testing.assert_allclose(got, np.sum((basis.T @ vector) ** 2 * np.log(values)))


@pytest.mark.ci("*")
@each
def test_each_right_hand_side_has_its_own(solver):
    matrix, vectors = krylov.hermitian(0, False, VALUES), krylov.random(1, False, 3, SIZE)
    operator = krylov.operator(matrix, krylov.PSD)
    solve = lambda b: pj.linear_solve(operator, b, solver).stats
    stats = jax.jit(jax.vmap(solve))(vectors)
    for k, vector in enumerate(vectors):
        alphas, betas = _kept(jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), stats))
        want = lanczos(matrix, vector, 5)
        np.testing.assert_allclose(alphas[:5], want[0], rtol=1e-8)
        np.testing.assert_allclose(betas[:4], want[1], rtol=1e-8)


@pytest.mark.slow  # beside the main ones
def test_checks_on_the_way_leave_the_extreme_eigenvalues():
    matrix = krylov.hermitian(0, False, np.geomspace(1, 1e4, 50))
    *_, stats = krylov.solve(
        matrix, krylov.random(1, False, 50), SOLVERS["CG"], krylov.PSD
    )
    nodes = np.linalg.eigvalsh(_matrix_of(*_kept(stats)))
    assert stats["num_steps"] > 100  # of which two ended in a check
    np.testing.assert_allclose(nodes[[0, -1]], [1, 1e4], rtol=1e-8)


def test_negative_definite_operator_has_a_negative_tridiagonal():
    matrix, vector = -krylov.hermitian(0, True, VALUES), krylov.random(1, True, SIZE)
    tags = lx.negative_semidefinite_tag
    *_, stats = krylov.solve(matrix, vector, SOLVERS["CG"], tags)
    alphas, betas = _kept(stats)
    want = lanczos(matrix, vector, 5)
    np.testing.assert_allclose(alphas[:5], want[0], rtol=1e-8)
    np.testing.assert_allclose(betas[:4], want[1], rtol=1e-8)


@pytest.mark.default("CG")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["CG", "MINRES(well_posed=True)"])
def test_preconditioned_run_has_that_of_the_preconditioned_operator(name):
    matrix, vector = krylov.hermitian(0, False, VALUES), krylov.random(1, False, SIZE)
    factor = np.diag(np.linspace(1, 2, SIZE))
    options = {"preconditioner": krylov.operator(factor @ factor, krylov.PSD)}
    *_, stats = krylov.solve(matrix, vector, SOLVERS[name], krylov.PSD, options)
    alphas, betas = _kept(stats)
    want = lanczos(factor @ matrix @ factor, factor @ vector, 5)
    np.testing.assert_allclose(alphas[:5], want[0], rtol=1e-8)
    np.testing.assert_allclose(betas[:4], want[1], rtol=1e-8)


def test_no_entries_beyond_the_first_cycle():
    # Stopped by its own recurrence, and by b - A x begun anew.
    matrix = krylov.hermitian(0, False, np.geomspace(1e-7, 1, SIZE))
    vector = krylov.random(1, False, SIZE)
    solver = pj.MINRES(1e-13, well_posed=True, lanczos=True)
    *_, stats = krylov.solve(matrix, vector, solver, krylov.PSD)
    alphas, _ = _kept(stats)
    assert len(alphas) < stats["num_steps"]


@pytest.mark.ci("*")
@pytest.mark.parametrize("make", [pj.CG, pj.MINRES])
def test_nothing_is_kept_unless_asked_for_nor_in_derivatives(make):
    matrix, vector = krylov.hermitian(0, False, VALUES), krylov.random(1, False, SIZE)
    assert "lanczos" not in krylov.solve(matrix, vector, make(), krylov.PSD)[3]
    assert not make(lanczos=True).for_derivative().lanczos

    def total(vector):
        operator = krylov.operator(jnp.asarray(matrix), krylov.PSD)
        return pj.linear_solve(operator, vector, make(1e-12, lanczos=True)).value.sum()

    truth = np.linalg.solve(matrix, np.ones(SIZE))
    assert krylov.relative_error(jax.jit(jax.grad(total))(vector), truth) < 1e-9


def test_projected_runs_of_cg_have_none():
    with pytest.raises(ValueError, match=r"Use `MINRES\(lanczos=True\)`"):
        pj.CG(lanczos=True, well_posed=False)
