"""Learns a conductivity field from the pressures that sources raise: Darcy's equation.

Water is pumped into the ground at some wells, one after the other, and the pressure u is
measured in a grid of boreholes, with noise:

    -div(κ ∇u) = f on a square,   u = 0 around it.

Unknown is κ in each cell. Finite volumes make a sparse definite system A(κ) u = f, which
`pseudojvp.sparse_solve` solves for all sources at once, by preconditioned conjugate
gradients. Its gradient lives on the pattern of A, and costs one more solve. With it,
L-BFGS of Optimistix minimises

    Σ ((u - data) / σ)² + β Σ (differences of log κ between neighbours)².

The script compares the gradient with the adjoint method by hand on SciPy's direct solver,
and the fit with SciPy's L-BFGS on that. It draws the field before and after, and the
truth:

    python examples/conductivity.py [--output conductivity.png]
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import scipy.optimize
import scipy.sparse.linalg
from matplotlib.figure import Figure

import pseudojvp as pj


SIDE = 40  # cells along each side
WELLS = 3  # along each side
BOREHOLES = 13  # likewise
NOISE = 0.002  # of the largest pressure that a source raises
SMOOTHING = 6.0  # β

CELLS = np.arange(SIDE**2).reshape(SIDE, SIDE)
# The two cells of each face between cells, and the cells of each face on the boundary.
ONE = np.concatenate([CELLS[:-1].ravel(), CELLS[:, :-1].ravel()])
OTHER = np.concatenate([CELLS[1:].ravel(), CELLS[:, 1:].ravel()])
EDGE = np.concatenate([CELLS[0], CELLS[-1], CELLS[:, 0], CELLS[:, -1]])
ROW = np.concatenate([ONE, OTHER, ONE, OTHER, EDGE])
COL = np.concatenate([OTHER, ONE, ONE, OTHER, EDGE])


def grid(count):
    """The cells nearest to a grid of `count` by `count` points."""
    place = np.round((np.arange(count) + 0.5) * SIDE / count - 0.5).astype(int)
    return CELLS[np.ix_(place, place)].ravel()


AT_WELLS, AT_BOREHOLES = grid(WELLS), grid(BOREHOLES)
SOURCES = np.zeros((SIDE**2, WELLS**2))
SOURCES[AT_WELLS, np.arange(WELLS**2)] = 1.0


def entries(log_conductivity):
    """Those of A at (ROW, COL); several in one place add up."""
    conductivity = jnp.exp(log_conductivity)
    between = 2 / (1 / conductivity[ONE] + 1 / conductivity[OTHER])
    outward = 2 * conductivity[EDGE]
    return jnp.concatenate([-between, -between, between, between, outward])


# Where the entries are is sorted once.
SPARSITY = pj.SparseLinearOperator((np.ones(ROW.size), ROW, COL, (SIDE**2,) * 2)).sparsity


def pressures(log_conductivity):
    """u in each cell, a column for each source; NaN for a κ so extreme that CG fails."""
    operator = pj.SparseLinearOperator(
        (entries(log_conductivity), SPARSITY), lx.positive_semidefinite_tag
    )
    options = {"preconditioner": pj.chebyshev(operator, 4)}
    solver = pj.CG(max_steps=300)
    return pj.sparse_solve(operator, SOURCES, solver, options=options, throw=False)


@jax.jit
def cost(log_conductivity, problem):
    data, deviation = problem
    misfit = (pressures(log_conductivity)[AT_BOREHOLES] - data) / deviation
    roughness = log_conductivity[ONE] - log_conductivity[OTHER]
    return (jnp.sum(misfit**2) + SMOOTHING * jnp.sum(roughness**2)) / data.size


def truth():
    """log κ: a channel through which water runs well, and a lens of clay."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    channel = np.exp(-(((y - 0.5 - 0.22 * np.sin(5 * x + 0.6)) / 0.07) ** 2))
    lens = np.exp(-((((x - 0.72) / 0.16) ** 2 + ((y - 0.75) / 0.1) ** 2) ** 2))
    return (1.8 * channel - 1.8 * lens + 0.4 * (x - 0.5)).ravel()


def measure(log_conductivity, rng):
    exact = np.asarray(jax.jit(pressures)(log_conductivity)[AT_BOREHOLES])
    deviation = NOISE * exact.max()
    return exact + deviation * rng.standard_normal(exact.shape), deviation


@jax.jit
def fit(start, problem):
    """The field, the number of steps and whether the search ended well."""
    solver = optx.LBFGS(rtol=1e-3, atol=1e-3)
    found = optx.minimise(cost, solver, start, problem, max_steps=1000, throw=False)
    successful = found.result == optx.RESULTS.successful
    return found.value, found.stats["num_steps"], successful


def cost_by_adjoint(log_conductivity, problem):
    """The cost and its gradient, by hand on SciPy's direct solver."""
    data, deviation = problem
    conductivity = np.exp(log_conductivity)
    between = 2 / (1 / conductivity[ONE] + 1 / conductivity[OTHER])
    values = [-between, -between, between, between, 2 * conductivity[EDGE]]
    matrix = scipy.sparse.csc_array(
        (np.concatenate(values), (ROW, COL)), shape=(SIDE**2,) * 2
    )
    factors = scipy.sparse.linalg.splu(matrix)
    u = factors.solve(SOURCES)
    misfit = (u[AT_BOREHOLES] - data) / deviation
    roughness = log_conductivity[ONE] - log_conductivity[OTHER]

    pull = np.zeros_like(u)
    pull[AT_BOREHOLES] = 2 * misfit / deviation
    adjoint = factors.solve(pull, "T")
    by_face = -np.sum((u[ONE] - u[OTHER]) * (adjoint[ONE] - adjoint[OTHER]), axis=1)
    by_edge = -2 * np.sum(u[EDGE] * adjoint[EDGE], axis=1)
    gradient = np.zeros(SIDE**2)
    np.add.at(gradient, ONE, by_face * between**2 / (2 * conductivity[ONE]))
    np.add.at(gradient, OTHER, by_face * between**2 / (2 * conductivity[OTHER]))
    np.add.at(gradient, EDGE, by_edge * conductivity[EDGE])
    np.add.at(gradient, ONE, 2 * SMOOTHING * roughness)
    np.add.at(gradient, OTHER, -2 * SMOOTHING * roughness)
    value = np.sum(misfit**2) + SMOOTHING * np.sum(roughness**2)
    return value / data.size, gradient / data.size


def seconds_of(call, repeats=10):
    """The median time of a call that has been made before."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def draw(before, after, true, problem, output: pathlib.Path) -> None:
    data, deviation = problem
    figure = Figure(figsize=(11.6, 7.4), layout="constrained")
    top, bottom = figure.subplots(2, 3)
    limit = np.abs(true).max()
    shape = (SIDE, SIDE)
    style = {"vmin": -limit, "vmax": limit, "cmap": "BrBG", "origin": "lower"}
    titles = ("before: a guess", "after: learned", "truth")
    for panel, field, title in zip(top, (before, after, true), titles, strict=True):
        image = panel.imshow(field.reshape(shape), **style)
        panel.set_title(title, fontweight="bold")
    figure.colorbar(image, ax=top, shrink=0.85, pad=0.01, label="log κ")
    top[0].plot(*np.divmod(AT_BOREHOLES, SIDE)[::-1], ".", color="0.35", ms=2.5)
    top[0].plot(*np.divmod(AT_WELLS, SIDE)[::-1], "v", color="#d81b60", ms=6)
    top[0].set_xlabel("boreholes (dots) and wells (triangles)")

    well = WELLS * (WELLS // 2) + 1
    pressure = np.asarray(pressures(after))[:, well].reshape(shape)
    levels = np.geomspace(0.01, 1, 9) * pressure.max()
    bottom[0].contourf(pressure, [0, *levels], cmap="Blues")
    bottom[0].contour(pressure, levels, colors="white", linewidths=0.6)
    bottom[0].set_aspect("equal")
    bottom[0].plot(*np.divmod(AT_WELLS[well], SIDE)[::-1], "v", color="#d81b60", ms=6)
    bottom[0].set_title("pressure of one source")
    error = (after - true).reshape(shape)
    image = bottom[1].imshow(error, **style)
    bottom[1].set_title("learned − truth")
    for panel in (*top, *bottom[:2]):
        panel.set_xticks([])
        panel.set_yticks([])

    bins = np.linspace(-6, 6, 61)
    for field, color, label in ((before, "0.7", "before"), (after, "#00695c", "after")):
        misfit = (np.asarray(pressures(field))[AT_BOREHOLES] - data) / deviation
        bottom[2].hist(misfit.ravel(), bins, density=True, color=color, label=label)
    normal = np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi)
    bottom[2].plot(bins, normal, color="#d81b60", lw=1.5, label="noise, σ = 1")
    bottom[2].set_title("misfit of the measurements / σ")
    bottom[2].set_yticks([])
    bottom[2].spines[["left", "top", "right"]].set_visible(False)
    bottom[2].legend(frameon=False)
    figure.savefig(output, dpi=80)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    true = truth()
    problem = measure(true, np.random.default_rng(0))
    before = np.zeros(SIDE**2)
    print(
        f"{SIDE**2} unknown conductivities, {problem[0].size} measurements of "
        f"{WELLS**2} sources"
    )

    ours = jax.jit(jax.value_and_grad(cost))
    (_, gradient), (_, by_hand) = ours(before, problem), cost_by_adjoint(before, problem)
    difference = np.linalg.norm(gradient - by_hand) / np.linalg.norm(by_hand)
    time_ours = seconds_of(lambda: ours(before, problem))
    time_scipy = seconds_of(lambda: cost_by_adjoint(before, problem))
    print(
        f"Cost and gradient: {1e3 * time_ours:.0f} ms, by hand on SciPy's splu "
        f"{1e3 * time_scipy:.0f} ms; relative difference {difference:.1e}"
    )

    began = time.perf_counter()
    compiled = fit.lower(before, problem).compile()
    compiling = time.perf_counter() - began
    began = time.perf_counter()
    after, steps, successful = jax.block_until_ready(compiled(before, problem))
    time_ours = time.perf_counter() - began
    after = np.asarray(after)
    began = time.perf_counter()
    settings = {"method": "L-BFGS-B", "jac": True, "options": {"maxiter": 1000}}
    by_scipy = scipy.optimize.minimize(cost_by_adjoint, before, (problem,), **settings)
    time_scipy = time.perf_counter() - began
    cost_ours = float(cost(after, problem))
    print(
        f"Fit: {int(steps)} steps in {time_ours:.1f} s (and {compiling:.1f} s to "
        f"compile), cost {cost_ours:.4f}\n"
        f"SciPy's L-BFGS with splu: {by_scipy.nit} steps in {time_scipy:.1f} s, "
        f"cost {by_scipy.fun:.4f}"
    )

    measured, deviation = problem
    misfit = (pressures(after)[AT_BOREHOLES] - measured) / deviation
    spread = float(jnp.std(misfit))
    was, now = (np.sqrt(np.mean((field - true) ** 2)) for field in (before, after))
    print(
        f"Misfit over σ: {spread:.3f}; error of log κ: {was:.3f} before, {now:.3f} after"
    )
    draw(before, after, true, problem, output)
    print(f"Wrote {output}.")

    assert difference < 1e-6, difference
    assert successful
    assert 0.8 < spread < 1.1, spread
    assert cost_ours < 1.01 * by_scipy.fun, (cost_ours, by_scipy.fun)
    assert now < 0.2 * was, (was, now)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("conductivity.png")
    )
    main(parser.parse_args().output)
