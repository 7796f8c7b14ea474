"""What `test_mesh_uses.py` does on four devices: fronts, operators, preconditioners."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp as pj


BATCH = 8
rng = np.random.default_rng(0)
tall = rng.normal(size=(BATCH, 6, 3))
square = rng.normal(size=(BATCH, 4, 4)) + 4 * np.eye(4)
definite = square @ square.transpose(0, 2, 1) + np.eye(4)
of_tall, of_square = rng.normal(size=(BATCH, 6)), rng.normal(size=(BATCH, 4))
times = np.linspace(0.0, 3.0, 12)
rates = rng.uniform(0.5, 2.0, BATCH)
decays = np.exp(-rates[:, None] * times)
noisy = 2 * decays + 1e-2 * rng.normal(size=decays.shape)
psd = lx.positive_semidefinite_tag
row, col = np.nonzero(np.ones((4, 4)))
lower = np.nonzero(np.tril(np.ones((4, 4))))
PRECISE = (1e-13, 1e-13)  # rtol and atol


# Of rectified units, with rules of their own.
network = eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(1))


class Use(NamedTuple):
    function: Callable
    arrays: tuple = (square, of_square)
    truth: Callable | None = None  # of values and of cotangents of all members


def weights(array):
    return 1 + np.arange(array.size).reshape(array.shape)


def value(operator, vector, solver=None, **keywords):
    solver = pj.AutoLinearSolver(True) if solver is None else solver
    return pj.linear_solve(operator, vector, solver, **keywords).value


def matrix(a):
    return lx.MatrixLinearOperator(a, psd)


def sparse(a, *tags):
    return pj.SparseLinearOperator((a[row, col], row, col, (4, 4)), tags)


def triangle(a):
    entries = a[lower], *lower, (4, 4)
    return pj.SparseLinearOperator(entries, lx.lower_triangular_tag)


def of_function(a, b):
    size = jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
    return lx.FunctionLinearOperator(lambda x: a @ x, size)


def of_loops(a, b):
    """A sum of multiples of A, by a loop from zero and a branch."""

    def product(x):
        step = lambda _, y: 0.5 * y + a @ x
        y = jax.lax.fori_loop(0, 3, step, jnp.zeros(len(a)))
        return y + jax.lax.cond(a[0, 0] > 0, lambda x: a @ x, lambda x: 0 * (a @ x), x)

    return lx.FunctionLinearOperator(product, jax.ShapeDtypeStruct(a.shape[1:], a.dtype))


def jacobian(a, p, **keywords):
    # Of a function with a jit within: its Jacobian is A + 0.03 diag(p^2).
    at = lambda x, a: a @ x + 0.01 * jnp.where(x > 0, x, x) ** 3
    return lx.JacobianLinearOperator(at, p, a, **keywords)


def fit(data, **keywords):
    basis = lambda theta, times: jnp.exp(-theta * times)[:, None]
    return pj.varpro(basis, data, jnp.array(0.7), jnp.asarray(times), **keywords)


def theta(**keywords):
    return Use(lambda a, data: fit(data, **keywords).theta, (tall, noisy))


def preconditioned(make, operator=matrix, solver=None):
    solver = pj.CG(*PRECISE) if solver is None else solver
    arrays = definite, of_square

    def solve(a, b):
        options = {"preconditioner": make(operator(a))}
        return value(operator(a), b, solver, options=options)

    return Use(solve, arrays)


def methods(*names, solver):
    def function(a, b):
        factorised = pj.factorise(a, solver)
        of_rows = {"solve": b, "residual": b}
        return [getattr(factorised, name)(of_rows.get(name, a.T @ b)) for name in names]

    return Use(function, (tall, of_tall))


def lstsq_truth(a, b):
    inverse = np.linalg.pinv(a)
    x = inverse @ b
    r, u = b - a @ x, weights(x) * np.cos(x)
    ct_b = inverse.T @ u
    return x, np.outer(r, inverse @ ct_b) - np.outer(ct_b, x), ct_b


def slogdet_truth(a, b):
    logabsdet = np.linalg.slogdet(a)[1]
    return logabsdet, np.cos(logabsdet) * np.linalg.inv(a).T, 0 * b


def jacobian_truth(a, p):
    inverse = np.linalg.inv(a + np.diag(0.03 * p**2))
    y = inverse @ p
    ct = inverse.T @ (weights(y) * np.cos(y))
    return y, -np.outer(ct, y), ct - ct * y * 0.06 * p


def varpro_truth(a, data):
    rate = np.log(data[0] / data[1]) / times[1]
    phi = np.exp(-rate * times)
    full = np.stack([-times * phi * data[0], phi], axis=1)
    return rate, 0 * a, np.linalg.pinv(full)[0] * np.cos(rate)


LSTSQ = (tall, of_tall)
USES = {
    "linear_solve": Use(value),
    "factorise": methods("solve", "residual", "project", solver=pj.QR()),
    "factorise-adjoint": methods("adjoint_solve", "gram_inverse", solver=pj.PivotedQR()),
    "invert": Use(lambda a, b: pj.invert(a).mv(b)),
    "invert-columns": Use(lambda a, b: pj.invert(a) @ jnp.stack([b, 2 * b], 1)),
    "lstsq": Use(lambda a, b: pj.lstsq(a, b)[0], LSTSQ, lstsq_truth),
    "lstsq-all": Use(lambda a, b: (*pj.lstsq(a, b)[:2], pj.lstsq(a, b)[3]), LSTSQ),
    "lstsq-SVD": Use(lambda a, b: pj.lstsq(a, b, solver=pj.SVD())[0], LSTSQ, lstsq_truth),
    "lstsq-damped": Use(
        lambda a, b: pj.lstsq(a, b, damp=0.1, weights=jnp.abs(b))[:2], LSTSQ
    ),
    "pinv": Use(lambda a, b: pj.pinv(a) @ b, LSTSQ, lstsq_truth),
    "project": Use(pj.project, LSTSQ),
    "slogdet": Use(lambda a, b: pj.slogdet(a).logabsdet, truth=slogdet_truth),
    "slogdet-QR": Use(lambda a, b: pj.slogdet(a, pj.QR()).logabsdet, LSTSQ),
    "slogdet-diagonal": Use(
        lambda a, b: pj.slogdet(lx.DiagonalLinearOperator(b), lx.Diagonal()).logabsdet
    ),
    "slogdet-of-factors": Use(
        lambda a, b: pj.factorise(a, pj.LU()).slogdet().logabsdet, truth=slogdet_truth
    ),
    "lsq_linear": Use(lambda a, b: pj.lsq_linear(a, b, (-0.1, 0.1)).value, LSTSQ),
    "nnls": Use(lambda a, b: pj.nnls(a, b)[0], LSTSQ),
    "shifted_solve": Use(
        lambda a, b: pj.shifted_solve(matrix(a), b, jnp.array([0.1, 1.0])).value,
        (definite, of_square),
    ),
    "sparse_solve": Use(lambda a, b: pj.sparse_solve(sparse(a), b)),
    "sparse_lstsq": Use(lambda a, b: pj.sparse_lstsq(sparse(a), b)),
    "SparseLU": Use(lambda a, b: value(sparse(a), b, pj.SparseLU())),
    "SparseTriangular": Use(lambda a, b: value(triangle(a), b, pj.SparseTriangular())),
    "solve_entries": Use(
        lambda a, b: (
            pj.solve_entries(
                sparse(a + 20 * jnp.eye(4)), b, jnp.array([0, 2]), rtol=1e-10, atol=1e-12
            ).value
        )
    ),
    "Function-GMRES": Use(lambda a, b: value(of_function(a, b), b, pj.GMRES(*PRECISE))),
    "Function-QR": Use(
        lambda a, b: value(of_function(a, b), b, pj.QR()), LSTSQ, lstsq_truth
    ),
    "Function-of-loops": Use(lambda a, b: value(of_loops(a, b), b, pj.QR()), LSTSQ),
    "Jacobian-GMRES": Use(
        lambda a, b: value(jacobian(a, b), b, pj.GMRES(*PRECISE)), truth=jacobian_truth
    ),
    "Jacobian-LU": Use(
        lambda a, b: value(jacobian(a, b), b, pj.LU()), truth=jacobian_truth
    ),
    "Jacobian-backward": Use(
        lambda a, b: value(jacobian(a, b, jac="bwd"), b, pj.LU()), truth=jacobian_truth
    ),
    "Jacobian-invert": Use(
        lambda a, b: pj.invert(jacobian(a, b)).mv(b), truth=jacobian_truth
    ),
    "Jacobian-of-softplus": Use(  # which has a rule of its own; closes over A
        lambda a, b: value(
            lx.JacobianLinearOperator(lambda x, _: jax.nn.softplus(a @ x) + 9 * x, b),
            b,
            pj.LU(),
        )
    ),
    "Jacobian-symmetric": Use(
        lambda a, b: value(
            jacobian(a, b, tags=lx.symmetric_tag, closure_convert=False),
            b,
            pj.MINRES(*PRECISE),
        ),
        (definite, of_square),
    ),
    "hessian_operator": Use(
        lambda a, b: value(
            pj.hessian_operator(
                lambda x: jnp.sum(jnp.cosh(x)) + x @ a @ x, b, damping=0.1
            ),
            b,
            pj.MINRES(*PRECISE),
        ),
        (definite, of_square),
    ),
    "hessian_operator-at-a-constant": Use(
        lambda a, b: value(
            pj.hessian_operator(
                lambda x: jnp.sum(jnp.cosh(a @ x)),
                jnp.arange(4.0) / 20,
                damping=b[0] ** 2,
            ),
            b,
            pj.LU(),
        ),
        (definite, of_square),
    ),
    "hessian_operator-of-a-network": Use(
        lambda a, b: value(
            pj.hessian_operator(lambda x: jnp.sum(network(a @ x) ** 2), b, damping=20.0),
            b,
            pj.LU(),
        )
    ),
    "gauss_newton_operator": Use(
        lambda a, b: value(
            pj.gauss_newton_operator(
                lambda x: a @ x, lambda y: jnp.sum(y**2), b, damping=0.1
            ),
            b,
            pj.CG(*PRECISE),
        )
    ),
    "gauss_newton_operator-of-a-network": Use(
        lambda a, b: value(
            pj.gauss_newton_operator(
                lambda x: network(a @ x), jax.nn.logsumexp, b, damping=1.0
            ),
            b,
            pj.LU(),
        )
    ),
    "Kronecker": Use(lambda a, b: value(pj.Kronecker(a, a), jnp.kron(b, b))),
    "BlockDiagonal": Use(
        lambda a, b: value(pj.BlockDiagonal(a, 2 * a), jnp.concatenate([b, b]))
    ),
    "Circulant": Use(lambda a, b: value(pj.Circulant(a[0]), b)),
    "Toeplitz": Use(lambda a, b: value(pj.Toeplitz(a[0], a[0]), b)),
    "Eigh": Use(
        lambda a, b: value(pj.Eigh(*jnp.linalg.eigh(a)), b), (definite, of_square)
    ),
    "Woodbury": Use(
        lambda a, b: value(
            pj.LowRankUpdate(lx.DiagonalLinearOperator(b**2 + 1), a[:, :2]),
            b,
            pj.Woodbury(),
        )
    ),
    "UnrolledAdjoint": Use(
        lambda a, b: value(
            matrix(a), b, pj.CG(0, 0, max_steps=6), adjoint=pj.UnrolledAdjoint()
        ),
        (definite, of_square),
    ),
    "TruncatedAdjoint": Use(
        lambda a, b: value(
            matrix(a / 40), b, pj.CG(*PRECISE), adjoint=pj.TruncatedAdjoint(50)
        ),
        (definite, of_square),
    ),
    "StochasticAdjoint": Use(
        lambda a, b: value(
            matrix(a / 40),
            b,
            pj.CG(*PRECISE),
            adjoint=pj.StochasticAdjoint(
                jax.random.key((100 * b[0]).astype(jnp.int32)), decay=0.5, max_terms=8
            ),
        ),
        (definite, of_square),
    ),
    "ImplicitAdjoint-Cholesky": Use(
        lambda a, b: value(
            matrix(a), b, pj.CG(*PRECISE), adjoint=pj.ImplicitAdjoint(pj.Cholesky())
        ),
        (definite, of_square),
    ),
    "FlexibleCG-of-a-function": Use(
        lambda a, b: value(
            matrix(a),
            b,
            pj.FlexibleCG(*PRECISE, preconditioner=lambda v: v / jnp.diag(a)),
        ),
        (definite, of_square),
    ),
    "FlexibleCG-of-a-solve": Use(
        lambda a, b: value(
            matrix(a),
            b,
            pj.FlexibleCG(
                *PRECISE,
                preconditioner=lambda v: value(matrix(a), v, pj.CG(0, 0, max_steps=2)),
            ),
        ),
        (definite, of_square),
    ),
    "FlexibleGMRES-of-a-function": Use(
        lambda a, b: value(
            a,
            b,
            pj.FlexibleGMRES(
                *PRECISE,
                preconditioner=lambda v: network(v) / 100 + v / jnp.diag(a),
                adjoint_preconditioner=lambda v: v / jnp.diag(a),
            ),
        )
    ),
    "factorised_inverse": preconditioned(
        lambda a: pj.factorised_inverse(lx.materialise(a).matrix / 40, 0.1)
    ),
    "factorised_inverse-products": Use(lambda a, b: pj.factorised_inverse(a, b**2).mv(b)),
    "jacobi": preconditioned(pj.jacobi),
    "block_jacobi": preconditioned(lambda a: pj.block_jacobi(a, 2)),
    "chebyshev": preconditioned(lambda a: pj.chebyshev(a, 3)),
    "nystrom": preconditioned(lambda a: pj.nystrom(a, 2, jax.random.key(0))),
    "incomplete_cholesky": preconditioned(
        pj.incomplete_cholesky, lambda a: sparse(a, psd)
    ),
    "incomplete_lu": preconditioned(pj.incomplete_lu, sparse, pj.GMRES(*PRECISE)),
    "complex": Use(
        lambda a, b: (
            pj.lstsq(a + 1j * jnp.flip(a), b)[0].real,
            pj.lstsq(a + 1j * jnp.flip(a), b)[0].imag,
        ),
        LSTSQ,
    ),
    "batch-in-batch": Use(
        lambda a, b: jax.vmap(lambda c: value(a, c * b, pj.QR()))(jnp.arange(3.0)), LSTSQ
    ),
    "second-derivative": Use(
        lambda a, b: jax.grad(lambda b: jnp.sum(pj.lstsq(a, b)[0] ** 3))(b), LSTSQ
    ),
    "varpro": Use(lambda a, y: fit(y).theta, (tall, 2 * decays), varpro_truth),
    "varpro-fields": Use(
        lambda a, y: (fit(y).coefficients, fit(y).residual, fit(y).cost), (tall, noisy)
    ),
    "varpro-statistics": Use(
        lambda a, y: fit(y).statistics().theta_covariance, (tall, noisy)
    ),
    "varpro-predict": Use(
        lambda a, y: fit(y).predict(jnp.asarray(times)).standard_deviation, (tall, noisy)
    ),
    "varpro-bounds": theta(bounds=(0.1, 1.0)),
    "varpro-loss": theta(loss="huber", f_scale=0.01),
    "varpro-coefficient_bounds": theta(coefficient_bounds=(0, 1.5)),
    "varpro-prior": theta(prior=(1.0, 0.1)),
}
