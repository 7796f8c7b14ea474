"""How many products does training take with warm starts, beside cold ones?

Hyperparameters of a Gaussian process of 2000 points (a Matérn kernel of smoothness 3/2
with lengthscale, amplitude and noise) by 50 steps of Adam on the marginal likelihood: 16
fixed probes for the gradient of the log-determinant, solves by CG to 1e-6, and the
adjoint solve of the data. Products with the kernel matrix are counted a column each, as
they are made, those for the first guesses too. The likelihood at the end is exact, by a
Cholesky factorisation. Minutes. As published, memory 3 has to take at most a third of the
products to the same likelihood to 1e-3, or the script fails.

    python -m benchmarks.warm_starts [--size 2000] [--rate 0.01] [--memories 0 3]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp as pj

from . import turns


_PUBLISHED = 2000, 50, 0.01  # points, steps and their size
_PROBES = 16
_START = [1.0, 1.0, 0.03]  # lengthscale, amplitude, noise


class _Counter:
    def __init__(self):
        self.products = 0

    def operator(self, matrix) -> lx.FunctionLinearOperator:
        def mv(vector):
            jax.debug.callback(self._add, vector[0])
            return matrix @ vector

        structure = jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype)
        tag = lx.positive_semidefinite_tag
        return lx.FunctionLinearOperator(mv, structure, tag)

    def _add(self, entry):
        self.products += np.size(entry)


def _data(size: int):
    rng = np.random.default_rng(0)
    points = rng.uniform(-3, 3, (size, 2))
    values = np.sin(2 * points[:, 0]) * np.cos(points[:, 1])
    values = values + 0.1 * rng.standard_normal(size)
    return points, values, rng.choice([-1.0, 1.0], (_PROBES, size))


def _kernel(parameters, points):
    """Of the logarithms of lengthscale, amplitude and noise."""
    length, amplitude, noise = jnp.exp(parameters)
    norms = jnp.sum(points**2, 1)
    squares = norms[:, None] + norms[None] - 2 * points @ points.T
    # Their root has no derivative at zero.
    distances = jnp.sqrt(3 * jnp.maximum(squares, 1e-12)) / length
    kernel = amplitude * (1 + distances) * jnp.exp(-distances)
    return kernel + noise * jnp.eye(len(points))


def _log_likelihood(parameters, points, values) -> float:
    factor = np.linalg.cholesky(_kernel(parameters, points))
    whitened = np.linalg.solve(factor, values)
    log_determinant = 2 * np.sum(np.log(np.diag(factor)))
    both = whitened @ whitened + log_determinant + len(values) * np.log(2 * np.pi)
    return -0.5 * float(both)


def train(size: int, steps: int, rate: float, memory: int):
    """The parameters at the end, and the products; cold starts for a `memory` of zero."""
    points, values, probes = map(jnp.asarray, _data(size))
    solver, counter = pj.CG(rtol=1e-6), _Counter()

    def loss(parameters, warm):
        """Its gradient is that of the negative log-likelihood, by the probes."""
        matrix = _kernel(parameters, points)
        operator = counter.operator(matrix)

        def solve(vector, warm):
            if memory == 0:
                solution = pj.linear_solve(operator, vector, solver, throw=False)
                return solution.value, warm
            solution, warm = pj.warm_solve(operator, vector, warm, solver, throw=False)
            return solution.value, warm

        of_values, of_probes = warm
        by_values, of_values = solve(values, of_values)
        by_probes, of_probes = jax.vmap(solve)(probes, of_probes)
        by_probes = jax.lax.stop_gradient(by_probes)
        trace = jnp.mean(jnp.sum(by_probes * (probes @ matrix), axis=1))
        return 0.5 * (values @ by_values + trace), (of_values, of_probes)

    step = pj.warm_value_and_grad(loss)

    def adam(carry, count):
        parameters, first, second, warm = carry
        _, gradient, warm = step(parameters, warm)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        move = first / (1 - 0.9**count)
        move = move / (jnp.sqrt(second / (1 - 0.999**count)) + 1e-8)
        return (parameters - rate * move, first, second, warm), parameters

    @jax.jit
    def run(parameters, warm):
        zeros = jnp.zeros_like(parameters)
        counts = jnp.arange(1.0, steps + 1)
        carry = (parameters, zeros, zeros, warm)
        (parameters, *_), _ = jax.lax.scan(adam, carry, counts)
        return parameters

    state = lambda **batch: pj.warm_start(
        np.zeros((size, size)), memory=max(memory, 1), **batch
    )
    warm = state(), state(batch=_PROBES)
    parameters = jax.block_until_ready(run(jnp.log(jnp.array(_START)), warm))
    jax.effects_barrier()
    return np.asarray(parameters), counter.products


def compare(size: int, steps: int, rate: float, memories) -> None:
    points, values, _ = _data(size)
    print(f"\n{size} points, {_PROBES} probes, {steps} steps of Adam of {rate}\n")
    print("| start | products | of cold ones | log-likelihood | relative change | s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    cold = None
    for memory in memories:
        begin = time.perf_counter()
        parameters, products = train(size, steps, rate, memory)
        seconds = time.perf_counter() - begin
        likelihood = _log_likelihood(parameters, points, values)
        cold = cold or (products, likelihood)
        change = abs(likelihood / cold[1] - 1)
        name = f"warm, memory {memory}" if memory else "cold"
        print(
            f"| {name} | {products} | {products / cold[0]:.3f} | {likelihood:.4f} | "
            f"{change:.1e} | {seconds:.0f} |",
            flush=True,
        )
        if (size, steps, rate) == _PUBLISHED and memory == 3:
            assert change < 1e-3, change
            assert memories[0] != 0 or products <= cold[0] / 3, (products, cold)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=_PUBLISHED[0], help="points (2000)")
    parser.add_argument("--steps", type=int, default=_PUBLISHED[1], help="of Adam (50)")
    parser.add_argument(
        "--rate", type=float, default=_PUBLISHED[2], help="of Adam (0.01)"
    )
    parser.add_argument(
        "--memories", type=int, nargs="+", default=[0, 1, 2, 3], help="0 is cold"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    turns.print_header()
    compare(arguments.size, arguments.steps, arguments.rate, arguments.memories)


if __name__ == "__main__":
    main()
