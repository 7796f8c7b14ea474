"""What does a user pay before the first answer? Instructions and seconds, beside lineax.

    python -m benchmarks.latency [PROGRAM ...]

For each program, of ours and of the peer: the instructions and fusions of the optimised
program, and the processor seconds to trace, lower and compile it from empty caches, one
after the other in one process. A program is the gradient of Σ x² with respect to A and b,
in float64, of a 20 x 20 or 60 x 20 matrix, unless it says otherwise. A Hessian product is
the tangent of that gradient along (A, b). Those of `varpro`
fit two decaying exponentials to 60 points, beside Levenberg-Marquardt for rates and
amplitudes together; their gradient is with respect to the data.
"""

import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

import pseudojvp as pj


class Program(NamedTuple):
    """Two functions of (A, b), ours and the peer's; their gradients, or themselves."""

    ours: Callable
    peer: Callable
    matrix: np.ndarray
    arguments: tuple[int, ...] = (0, 1)  # of the gradient; none for the function itself
    hessian: bool = False  # its tangent in the place of the gradient


class Size(NamedTuple):
    instructions: int
    fusions: int
    seconds: float


def _solve(library, solver, tags=()):
    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, tags)
        return library.linear_solve(operator, vector, solver).value

    return solve


def _decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


def _fit(times, data):
    return pj.varpro(_decays, data, np.array([0.2, 1.0]), times)


def _fitted(times, data):
    fit = _fit(times, data)
    return jnp.concatenate([fit.theta, fit.coefficients])


def _fit_with_statistics(times, data):
    fit = _fit(times, data)
    return fit, fit.statistics()


def _full_fit(times, data):
    """The peer of `varpro`: rates and amplitudes together, by Optimistix."""

    def residual(parameters, inputs):
        times, data = inputs
        return _decays(parameters[:2], times) @ parameters[2:] - data

    method = optx.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
    start = jnp.array([0.2, 1.0, 1.0, 1.0])
    return optx.least_squares(residual, method, start, (times, data)).value


def programs() -> dict[str, Program]:
    rng = np.random.default_rng(0)
    square = rng.standard_normal((20, 20)) + 5 * np.eye(20)
    tall = rng.standard_normal((60, 20))
    definite, lower = tall.T @ tall, np.tril(square)
    positive, triangular = lx.positive_semidefinite_tag, lx.lower_triangular_tag
    tolerances = 1e-8, 1e-8

    def pair(ours, peer, matrix, tags=(), **options):
        functions = _solve(pj, ours, tags), _solve(lx, peer, tags)
        return Program(*functions, matrix, **options)

    times = np.linspace(0, 5, 60)
    lstsq = lambda matrix, vector: pj.lstsq(matrix, vector)[0]
    return {
        "LU": pair(pj.LU(), lx.LU(), square),
        "Cholesky": pair(pj.Cholesky(), lx.Cholesky(), definite, positive),
        "Triangular": pair(pj.Triangular(), lx.Triangular(), lower, triangular),
        "QR, tall": pair(pj.QR(), lx.QR(), tall),
        "QR, wide": pair(pj.QR(), lx.QR(), tall.T),
        "CholeskyQR / QR": pair(pj.CholeskyQR(), lx.QR(), tall),
        "Normal(Cholesky)": pair(
            pj.Normal(pj.Cholesky()), lx.Normal(lx.Cholesky()), tall
        ),
        "SVD": pair(pj.SVD(), lx.SVD(), tall),
        "PivotedQR / SVD": pair(pj.PivotedQR(), lx.SVD(), tall),
        "CG": pair(pj.CG(*tolerances), lx.CG(*tolerances), definite, positive),
        "Normal(CG)": pair(
            pj.Normal(pj.CG(*tolerances)), lx.Normal(lx.CG(*tolerances)), tall
        ),
        "GMRES": pair(pj.GMRES(*tolerances), lx.GMRES(*tolerances), square),
        "BiCGStab": pair(pj.BiCGStab(*tolerances), lx.BiCGStab(*tolerances), square),
        "LSMR": pair(pj.LSMR(*tolerances), lx.LSMR(*tolerances), tall),
        "LSMR, Hessian": pair(
            pj.LSMR(*tolerances), lx.LSMR(*tolerances), tall, hessian=True
        ),
        "MINRES / LSMR, Hessian": pair(
            pj.MINRES(*tolerances),
            lx.LSMR(*tolerances),
            definite,
            lx.symmetric_tag,
            hessian=True,
        ),
        "lx.LU": pair(lx.LU(), lx.LU(), square),
        "lx.QR": pair(lx.QR(), lx.QR(), tall),
        "lstsq / SVD, solve": Program(lstsq, _solve(lx, lx.SVD()), tall, ()),
        "lstsq / jnp.linalg.lstsq": Program(
            lstsq, lambda matrix, vector: jnp.linalg.lstsq(matrix, vector)[0], tall
        ),
        "varpro": Program(_fit, _full_fit, times, ()),
        "varpro and statistics": Program(_fit_with_statistics, _full_fit, times, ()),
        "gradient of varpro": Program(_fitted, _full_fit, times, (1,)),
    }


def size_of(function: Callable, program: Program) -> Size:
    """Of one of the two functions of a program."""
    arguments = program.matrix, np.ones(len(program.matrix))
    loss = lambda matrix, vector: jnp.sum(function(matrix, vector) ** 2)
    run = jax.grad(loss, argnums=program.arguments) if program.arguments else function
    gradient = run
    if program.hessian:
        run = lambda *primals: jax.jvp(gradient, primals, primals)[1]
    start = time.process_time()
    compiled = jax.jit(run).lower(*arguments).compile()
    seconds = time.process_time() - start
    text = compiled.as_text()
    instructions = sum(" = " in line for line in text.splitlines())
    return Size(instructions, len(re.findall(r" fusion\(", text)), seconds)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    every = programs()
    unknown = set(sys.argv[1:]) - set(every)
    if unknown:
        sys.exit(f"unknown: {sorted(unknown)}; one of {sorted(every)}")
    for function in every["LU"][:2]:  # the first compilation loads what all need
        size_of(function, every["LU"])
    print("| program | instructions | ratio | fusions | seconds | ratio |")
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:] or every:
        sizes = []
        for function in every[name][:2]:
            jax.clear_caches()
            sizes.append(size_of(function, every[name]))
        ours, peer = sizes
        print(
            f"| {name} "
            f"| {ours.instructions} / {peer.instructions} "
            f"| {ours.instructions / peer.instructions:.1f} "
            f"| {ours.fusions} / {peer.fusions} "
            f"| {ours.seconds:.2f} / {peer.seconds:.2f} "
            f"| {ours.seconds / peer.seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
