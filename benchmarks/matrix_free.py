"""How long does a gradient through an iterative solve take, A a function (milliseconds)?

Both operators have 2000 unknowns and coefficients θ; the gradient of <c, A(θ)†b> is taken
with respect to θ and b. The tolerances are 1e-10, relative and absolute.
"""

import functools as ft

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg as jspl
import lineax as lx
import numpy as np

import pseudojvp

from . import contenders, reference
from .contenders import Ours
from .harness import Workload


_SIZE = 2000
_TAPS = 7
_SHIFT = 0.2


def _convolve(kernel, x):
    """Full convolution with a kernel of 7 taps: 2000 to 2006."""
    return sum(jnp.pad(kernel[k] * x, (k, _TAPS - 1 - k)) for k in range(_TAPS))


def _diffuse(conductivity, x):
    """Implicit step of 1-D diffusion, u − (κ u')' with zero ends: positive definite."""
    slopes = jnp.diff(jnp.pad(x, 1))
    return _SHIFT * x - jnp.diff(conductivity * slopes)


def _gradient(mv, tags):
    def program(linear_solve, solver):
        def loss(coefficients, vector, weights):
            operator = lx.FunctionLinearOperator(
                lambda x: mv(coefficients, x),
                jax.ShapeDtypeStruct((_SIZE,), vector.dtype),
                tags,
            )
            return jnp.sum(weights * linear_solve(operator, vector, solver).value)

        return jax.grad(loss, argnums=(0, 1))

    return program


def _convolution_problem():
    rng = np.random.default_rng(0)
    kernel = 0.3 ** np.abs(np.arange(_TAPS) - _TAPS // 2)
    return kernel, rng.standard_normal(_SIZE + _TAPS - 1), rng.standard_normal(_SIZE)


def _convolution_reference(kernel, vector, weights):
    rows = np.arange(_SIZE)[:, None] + np.arange(_TAPS)  # (unknowns, taps)
    cols = np.arange(_SIZE)[:, None]
    matrix = np.zeros((_SIZE + _TAPS - 1, _SIZE))
    matrix[rows, cols] = kernel
    ct_matrix, ct_vector = reference.cotangents(
        matrix, reference.inverse_by_gram(matrix), vector[:, None], weights[:, None]
    )
    return ct_matrix[rows, cols].sum(axis=0), ct_vector[:, 0]


def _diffusion_problem():
    rng = np.random.default_rng(0)
    conductivity = rng.uniform(0.5, 1.5, _SIZE + 1)
    return conductivity, rng.standard_normal(_SIZE), rng.standard_normal(_SIZE)


def _diffusion_reference(conductivity, vector, weights):
    # A = shift I + D^T diag(κ) D with D the differences of x padded by zeros.
    differences = np.eye(_SIZE + 1, _SIZE) - np.eye(_SIZE + 1, _SIZE, k=-1)
    matrix = _SHIFT * np.eye(_SIZE) + differences.T @ (
        conductivity[:, None] * differences
    )
    x, ct_vector = np.linalg.solve(matrix, np.stack([vector, weights], axis=1)).T
    return -(differences @ ct_vector) * (differences @ x), ct_vector


def _jax_cg(operator, vector, tol):
    return jspl.cg(operator.mv, vector, tol=tol)[0]


def _jax_cgls(operator, vector, tol):
    adjoint = operator.transpose()
    return jspl.cg(lambda x: adjoint.mv(operator.mv(x)), adjoint.mv(vector), tol=tol)[0]


def at(tolerance: float) -> tuple[Workload, ...]:
    """The jobs, solved to so much, relative and absolute."""
    tolerances = {"rtol": tolerance, "atol": tolerance}
    cg, cgls = (ft.partial(f, tol=tolerance) for f in (_jax_cg, _jax_cgls))
    return (
        Workload(
            "convolution 2006 x 2000, matrix-free: gradient",
            _convolution_problem,
            _convolution_reference,
            contenders.solvers(
                _gradient(_convolve, ()),
                ours=(
                    Ours(
                        pseudojvp.Normal(pseudojvp.CG(**tolerances)),
                        lx.Normal(lx.CG(**tolerances)),
                    ),
                    Ours(pseudojvp.LSMR(**tolerances), lx.LSMR(**tolerances)),
                ),
                operators={"scipy.sparse.linalg.cg of AᵀA": cgls},
            ),
        ),
        Workload(
            "diffusion 2000 x 2000, matrix-free: gradient",
            _diffusion_problem,
            _diffusion_reference,
            contenders.solvers(
                _gradient(_diffuse, lx.positive_semidefinite_tag),
                ours=(Ours(pseudojvp.CG(**tolerances), lx.CG(**tolerances)),),
                operators={"scipy.sparse.linalg.cg": cg},
            ),
        ),
    )


workloads = at(1e-10)
