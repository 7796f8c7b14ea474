"""What does one entry of x cost beside all of x by conjugate gradients (rows, seconds)?

`python -m benchmarks.entries`, about a minute. A shifted Laplacian of a square grid and
one of a random graph, float64, to an absolute error of 1e-6: rows of A that are read, and
the median of three calls after the one that compiles. With `--picture FILE` what is read
around a node.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import lineax as lx
import numpy as np
import scipy.sparse
from matplotlib.figure import Figure

import pseudojvp as pj


_TOLERANCE = 1e-6
_GRIDS = ((100, 1.0), (316, 1.0), (1000, 1.0), (316, 0.1))


def _grid(side: int, shift: float):
    line = scipy.sparse.diags_array([-1.0, 2, -1], offsets=[-1, 0, 1], shape=(side, side))
    square = scipy.sparse.kronsum(line, line)
    return (square + shift * scipy.sparse.eye_array(side**2)).tocsr()


def _random_graph(size: int, shift: float):
    """Six neighbours each, somewhere."""
    rng = np.random.default_rng(0)
    one, other = np.repeat(np.arange(size), 3), rng.integers(0, size, 3 * size)
    links = scipy.sparse.csr_array((np.ones(3 * size), (one, other)), (size, size))
    links = links + links.T
    links = links - scipy.sparse.diags_array(links.diagonal())
    return (scipy.sparse.diags_array(links.sum(axis=1) + shift) - links).tocsr()


def _seconds(call: Callable) -> float:
    """The median of three calls, after the first."""
    jax.block_until_ready(call())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _row(name: str, matrix, shift: float) -> None:
    size = matrix.shape[0]
    b = np.random.default_rng(1).standard_normal(size)
    index = size // 2 + int(np.sqrt(size)) // 2
    operator = pj.SparseLinearOperator(matrix, lx.positive_semidefinite_tag)
    # ‖b − A x‖ ≤ δ · tolerance makes each entry of x right to the tolerance.
    solver = pj.CG(rtol=0.0, atol=shift * _TOLERANCE)

    def entry(b=b):
        return pj.solve_entries(operator, b, index, rtol=0.0, atol=_TOLERANCE)

    def gradient():
        return jax.grad(lambda b: entry(b).value)(b)

    def whole():
        solution = pj.linear_solve(operator, b, solver)
        return solution.value, solution.stats["num_steps"]

    one, (x, steps) = entry(), whole()
    times = [_seconds(call) for call in (entry, gradient, whole)]
    error = abs(float(one.value) - float(x[index]))
    assert error <= float(one.bound) + _TOLERANCE
    print(
        f"| {name} | {size:,} | {int(one.rows_read):,} | {int(one.pushes):,} "
        f"| {'yes' if one.whole else ''} | {times[0]:.2g} | {times[1]:.2g} "
        f"| {int(steps) * size:,} | {times[2]:.2g} |",
        flush=True,
    )


def _picture(file: pathlib.Path) -> None:
    side = 1000
    operator = pj.SparseLinearOperator(_grid(side, 1.0))
    node = (side // 2) * (side + 1)

    def entry(b):
        return pj.solve_entries(operator, b, node, rtol=0.0, atol=_TOLERANCE).value

    y = np.asarray(jax.grad(entry)(np.ones(side**2))).reshape(side, side)
    near = slice(side // 2 - 40, side // 2 + 41)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    powers = np.log10(np.where(y == 0, np.nan, np.abs(y)))[near, near]
    image = axes.imshow(powers, extent=(-40, 40, -40, 40))
    figure.colorbar(image, label="log10 |y|")
    axes.set_title(f"{np.count_nonzero(y):,} of {side**2:,} unknowns")
    figure.savefig(file, dpi=120)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description="An entry of x beside all of x.")
    parser.add_argument("--picture", type=pathlib.Path, help="draw, and measure nothing")
    picture = parser.parse_args().picture
    if picture is not None:
        return _picture(picture)
    print(
        "| problem | unknowns | rows read | pushes | whole | entry, s | with gradient, s "
        "| rows of CG | CG, s |"
    )
    print("|---|---:|---:|---:|---|---:|---:|---:|---:|")
    for side, shift in _GRIDS:
        _row(f"grid, shift {shift:g}", _grid(side, shift), shift)
    _row("random graph, shift 1", _random_graph(10_000, 1.0), 1.0)


if __name__ == "__main__":
    main()
